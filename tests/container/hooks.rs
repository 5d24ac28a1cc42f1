//! Hooks of the OCI runtime spec: where each runs, what it is told, and what its failure means.

use std::path::{Path, PathBuf};

use coracle::container::IdMap;
use coracle::container::runtime_spec::Spec;
use coracle::{ContainerBuilder, ErrorKind};

use super::support::{Lab, image, is_root, run, scratch, with_programs};

/// Scripts of the host, and the log that they write.
struct Scripts {
    dir: tempfile::TempDir,
}

impl Scripts {
    fn new() -> Scripts {
        let dir = scratch();
        // A mapped root has to come by.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        Scripts { dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn lines(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A hook that appends a word, its name inside, and what it is told.
    fn script(&self, kind: &str, more: &str) -> serde_json::Value {
        let path = self.dir.path().join(kind);
        let text = format!(
            "#!/bin/sh\nread state\necho \"$state\" > {0}.state; chmod 666 {0}.state 2>/dev/null\n\
             echo {kind} \"$1\" \"$KEY\" $(hostname) >> {1}\n{more}\n",
            path.display(),
            self.log().display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        serde_json::json!({"path": path, "args": [kind, "word"], "env": ["KEY=value", "PATH=/usr/bin:/bin"], "timeout": 60})
    }

    fn state(&self, kind: &str) -> serde_json::Value {
        let file = self.dir.path().join(format!("{kind}.state"));
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    }
}

fn hooks(value: serde_json::Value) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    move |spec| {
        spec.set_hooks(Some(serde_json::from_value(value.clone()).unwrap()));
    }
}

fn base(lab: &Lab) -> ContainerBuilder {
    with_programs(image(&lab.engine).container()).hostname("inside")
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

fn in_order(lab: &Lab, builder: ContainerBuilder) {
    let scripts = Scripts::new();
    std::fs::write(scripts.log(), "").unwrap();
    std::fs::set_permissions(scripts.log(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let script = |kind: &str| scripts.script(kind, "");
    let inside =
        "cat > /made/state; echo \"$KEY $(hostname) $(pwd)\" > /made/ran; grep ^CapEff: /proc/self/status >> /made/ran";
    let all = serde_json::json!({
        "prestart": [script("prestart")],
        "createRuntime": [script("createRuntime"), script("second")],
        "createContainer": [script("createContainer")],
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-ec", inside], "env": ["KEY=value"]}],
        "poststart": [script("poststart")],
        "poststop": [script("poststop")],
    });
    let builder = builder.spec(hooks(all)).spec(|spec| {
        spec.set_annotations(Some([("org.example.key".to_owned(), "x".to_owned())].into()));
    });
    let container = builder.keep(true).command(["/bin/sh", "-c", "cat /made/ran"]).stdout(coracle::Stdio::Piped);
    let mut container = container.spawn().unwrap();
    let mut out = String::new();
    std::io::Read::read_to_string(container.stdout.as_mut().unwrap(), &mut out).unwrap();
    assert_eq!(out, "value inside /\nCapEff:\t00000000a80425fb\n");
    container.wait().unwrap();
    let host = host();
    let expected = format!(
        "prestart word value {host}\ncreateRuntime word value {host}\nsecond word value {host}\n\
         createContainer word value inside\npoststart word value {host}\n"
    );
    assert_eq!(scripts.lines(), expected);
    for (kind, status) in [("prestart", "creating"), ("createContainer", "creating"), ("poststart", "running")] {
        let state = scripts.state(kind);
        assert_eq!(state["status"], status);
        assert_eq!(state["id"], container.id().to_string());
        assert_eq!(state["annotations"]["org.example.key"], "x");
        assert!(Path::new(state["bundle"].as_str().unwrap()).is_absolute() && state["ociVersion"].is_string());
    }
    assert_eq!(scripts.state("createContainer")["pid"], 1);
    assert_eq!(scripts.state("createRuntime")["pid"], scripts.state("poststart")["pid"]);
    assert_eq!(scripts.lines().matches("poststop").count(), 0);
    container.remove().unwrap();
    assert_eq!(scripts.lines().lines().last().unwrap(), format!("poststop word value {host}"));
    assert_eq!(
        (scripts.state("poststop")["status"].as_str(), scripts.state("poststop").get("pid")),
        (Some("stopped"), None)
    );
    assert_eq!(container.hook_failures(), Vec::<String>::new());
    lab.assert_clean();
}

#[test]
fn hooks_run_in_their_order_and_place() {
    let Some(lab) = Lab::new() else { return };
    in_order(&lab, base(&lab));
}

/// With an init, with further namespaces, and with a user namespace of root's.
#[test]
fn hooks_run_whatever_the_container_is() {
    let Some(lab) = Lab::new() else { return };
    in_order(&lab, base(&lab).init(true));
    in_order(
        &lab,
        base(&lab).spec(|spec| {
            use coracle::container::runtime_spec::{LinuxNamespaceBuilder, LinuxNamespaceType};
            let time = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Time).build().unwrap();
            spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap().push(time);
        }),
    );
    if is_root() {
        in_order(&lab, base(&lab).user_namespace(IdMap::new(300_000, 300_000, 65_536)));
    }
}

#[test]
fn a_failing_hook_before_the_command_ends_the_container() {
    let Some(lab) = Lab::new() else { return };
    let scripts = Scripts::new();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let all = serde_json::json!({
            kind: [scripts.script("first", ""), scripts.script(kind, "echo no >&2; exit 3"), scripts.script("later", "")],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 1"]}],
            "poststart": [scripts.script("poststart", "")],
            "poststop": [scripts.script("poststop", "")],
        });
        std::fs::write(scripts.log(), "").unwrap();
        let error = base(&lab).spec(hooks(all)).command(["/bin/true"]).output().unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&format!("the {kind} hook")) && said.contains("status 3: no"), "{said}");
        assert_eq!(error.kind(), ErrorKind::Launch);
        let words: Vec<String> =
            scripts.lines().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(words, ["first", kind, "poststop"]);
    }
    // One that is the image's own, as confined as the command.
    let all =
        serde_json::json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo bad >&2; exit 4"]}]});
    let error = base(&lab).spec(hooks(all)).command(["/bin/true"]).output().unwrap_err().to_string();
    assert!(error.contains("startContainer") && error.contains("status 4: bad"), "{error}");
    for (kind, path) in [("createRuntime", "/no/such"), ("createContainer", "/no/such"), ("startContainer", "/no/such")]
    {
        let error = base(&lab).spec(hooks(serde_json::json!({kind: [{"path": path}]}))).command(["/bin/true"]).output();
        let error = error.unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains("/no/such"), "{error}");
    }
    lab.assert_clean();
}

#[test]
fn a_failing_hook_after_the_command_changes_nothing() {
    let Some(lab) = Lab::new() else { return };
    let scripts = Scripts::new();
    let all = serde_json::json!({
        "poststart": [scripts.script("poststart", "echo one >&2; exit 3"), scripts.script("next", "")],
        "poststop": [scripts.script("poststop", "kill -9 $$"), scripts.script("last", "")],
    });
    let container = base(&lab).keep(true).spec(hooks(all)).command(["/bin/sh", "-c", "exit 5"]).spawn().unwrap();
    assert_eq!(container.wait().unwrap().code(), Some(5));
    container.remove().unwrap();
    let failures = container.hook_failures();
    assert!(
        failures.len() == 2 && failures[0].contains("status 3: one") && failures[1].contains("signal 9"),
        "{failures:?}"
    );
    let words: Vec<String> = scripts.lines().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(words, ["poststart", "next", "poststop", "last"]);
    lab.assert_clean();
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let Some(lab) = Lab::new() else { return };
    let all = |kind: &str| serde_json::json!({kind: [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]});
    for kind in ["createRuntime", "startContainer"] {
        let error = base(&lab).spec(hooks(all(kind))).command(["/bin/true"]).output().unwrap_err().to_string();
        assert!(error.contains("1 seconds"), "{error}");
    }
    // Much that nobody reads keeps none from its end, and says no more than fits.
    let loud = serde_json::json!({"createRuntime": [
        {"path": "/bin/sh", "args": ["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1"]}]});
    let error = base(&lab).spec(hooks(loud)).command(["/bin/true"]).output().unwrap_err().to_string();
    assert!(error.contains("xxx") && error.len() < 2000, "{}", error.len());
    lab.assert_clean();
}

/// Another program that opens the root runs the last hooks of a container whose own program was killed; so does whoever
/// removes one that was kept.
#[test]
fn the_last_hooks_are_run_by_whoever_removes_the_container() {
    let Some(lab) = Lab::new() else { return };
    let scripts = Scripts::new();
    let all = serde_json::json!({"poststop": [scripts.script("poststop", "")]});
    assert_eq!(run(&base(&lab).spec(hooks(all.clone())), "echo ran"), "ran\n");
    assert_eq!(scripts.lines().lines().count(), 1);
    let container = base(&lab).spec(hooks(all)).keep(true).name("kept").command(["/bin/true"]).spawn().unwrap();
    container.wait().unwrap();
    drop(container);
    assert_eq!(scripts.lines().lines().count(), 1);
    let other = coracle::Engine::open(lab.root()).unwrap();
    other.find_container("kept").unwrap().remove().unwrap();
    assert_eq!(scripts.lines().lines().count(), 2);
    lab.assert_clean();
}

/// A host program that ignores SIGCHLD hears how its hooks ended, and has no more descriptors for them.
#[test]
fn a_host_that_ignores_sigchld_hears_how_hooks_end() {
    let Some(lab) = Lab::new() else { return };
    super::host::finish(&lab, &mut super::host::role("hooked", &lab.root()));
}

pub fn hooked(root: &str) {
    let engine = coracle::Engine::open(root).unwrap();
    let start = |status: u8| {
        let script = format!("exit {status}");
        let hook = serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        let all = serde_json::json!({"createRuntime": hook, "startContainer": hook});
        engine.sandbox().spec(hooks(all)).command(["/bin/true"]).output()
    };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(start(0).unwrap().status.success());
    let before = open();
    for _ in 0..3 {
        assert!(start(0).unwrap().status.success());
        assert!(start(3).unwrap_err().to_string().contains("status 3"));
    }
    assert_eq!(open(), before);
}
