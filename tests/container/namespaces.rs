//! Namespaces that are joined by path, shifted clocks, and user namespaces of root's.

use coracle::container::runtime_spec::{LinuxNamespaceBuilder, LinuxNamespaceType as Namespace, Spec};
use coracle::isolation::Requirement;
use coracle::{Container, ContainerBuilder, ErrorKind};

use super::support::{Lab, image, is_root, run, with_programs};

/// In place of the container's own of that kind, the one at the path.
fn at(kind: Namespace, path: impl Into<std::path::PathBuf>) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    let joined = LinuxNamespaceBuilder::default().typ(kind).path(path.into()).build().unwrap();
    move |spec| {
        if kind == Namespace::Uts {
            spec.set_hostname(None);
        }
        let all = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
        all.retain(|namespace| namespace.typ() != kind);
        all.push(joined.clone());
    }
}

fn own(kind: Namespace) -> impl Fn(&mut Spec) + Send + Sync + 'static {
    let new = LinuxNamespaceBuilder::default().typ(kind).build().unwrap();
    move |spec| spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap().push(new.clone())
}

fn base(lab: &Lab) -> ContainerBuilder {
    with_programs(image(&lab.engine).container())
}

fn other(lab: &Lab) -> Container {
    base(lab).hostname("other").command(["/bin/sleep", "1000"]).spawn().unwrap()
}

fn file(container: &Container, name: &str) -> String {
    format!("/proc/{}/ns/{name}", container.pid().unwrap())
}

fn link(path: &str) -> String {
    std::fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

const KINDS: [(Namespace, &str); 5] = [
    (Namespace::Network, "net"),
    (Namespace::Ipc, "ipc"),
    (Namespace::Uts, "uts"),
    (Namespace::Cgroup, "cgroup"),
    (Namespace::Pid, "pid"),
];

#[test]
fn namespaces_of_another_container_are_joined_by_path() {
    let Some(lab) = Lab::new() else { return };
    let other = other(&lab);
    let users = |builder: ContainerBuilder| match is_root() {
        true => builder.require(Requirement::nothing()),
        // They belong to that one's user namespace.
        false => builder.spec(at(Namespace::User, file(&other, "user"))),
    };
    for (kind, name) in KINDS {
        let path = file(&other, name);
        if kind == Namespace::Pid && is_root() {
            // Whoever may trace in there could take the rights of the host's root, so nobody gets there unasked.
            let error = base(&lab).spec(at(kind, &path)).command(["/bin/true"]).output().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Weaker, "{error}");
        }
        let builder = users(base(&lab)).spec(at(kind, &path));
        assert_eq!(run(&builder, &format!("readlink /proc/self/ns/{name}")).trim(), link(&path), "{name}");
    }
    let all = KINDS.iter().fold(users(base(&lab)), |builder, (kind, name)| builder.spec(at(*kind, file(&other, name))));
    let script = "hostname; for kind in net ipc uts cgroup pid; do readlink /proc/self/ns/$kind; done";
    let links: String = KINDS.iter().map(|(_, name)| link(&file(&other, name)) + "\n").collect();
    assert_eq!(run(&all, script), format!("other\n{links}"));
    // Its processes are in sight, and the container's own is one of many.
    let script = "cat /proc/1/comm; test $$ != 1";
    assert_eq!(run(&users(base(&lab)).spec(at(Namespace::Pid, file(&other, "pid"))), script), "sleep\n");
    // So they are for a further command.
    let beside = all.command(["/bin/sleep", "1000"]).spawn().unwrap();
    let out =
        beside.exec().command(["/bin/sh", "-ec", "cat /proc/1/comm; readlink /proc/self/ns/net"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), format!("sleep\n{}\n", link(&file(&other, "net"))), "{out:?}");
    beside.kill().unwrap();
    beside.wait().unwrap();
    // Who has joined leaves the other as it was.
    assert_eq!(other.exec().command(["/bin/hostname"]).output().unwrap().stdout, b"other\n");
    other.kill().unwrap();
}

#[test]
fn a_user_namespace_is_joined_by_path() {
    let Some(lab) = Lab::new() else { return };
    if is_root() {
        // See the tests of user namespaces of root's.
        return super::shared::skip::other_user("others than root");
    }
    let other = other(&lab);
    let builder = base(&lab).spec(at(Namespace::User, file(&other, "user")));
    let script = "readlink /proc/self/ns/user; id -u; touch /tmp/x; stat -c %u /tmp/x; grep CapEff /proc/self/status";
    let out = run(&builder, script);
    assert_eq!(out, format!("{}\n0\n0\nCapEff:\t00000000a80425fb\n", link(&file(&other, "user"))));
    // Without it, what belongs to it is out of reach.
    let error =
        base(&lab).spec(at(Namespace::Network, file(&other, "net"))).command(["/bin/true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
    other.kill().unwrap();
}

#[test]
fn what_is_no_such_namespace_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let file = lab.root().join("file");
    std::fs::write(&file, "").unwrap();
    let pipe = lab.root().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (kind, path, words) in [
        (Namespace::Network, "/proc/self/ns/ipc".into(), "another kind"),
        (Namespace::Ipc, file.clone(), "no namespace"),
        (Namespace::Ipc, pipe.clone(), "no namespace"),
        (Namespace::Pid, "/no/such/file".into(), "/no/such/file"),
        (Namespace::Uts, "relative".into(), "absolute"),
        (Namespace::Mount, "/proc/self/ns/mnt".into(), "theirs as well"),
        (Namespace::User, "/proc/self/ns/user".into(), "in already"),
    ] {
        let builder = base(&lab).spec(at(kind, path)).require(Requirement::nothing());
        let error = builder.command(["/bin/true"]).output().unwrap_err();
        let said = error.to_string();
        assert!(said.contains(words), "{kind} {words}: {said}");
    }
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(pipe).unwrap();
}

#[test]
fn clocks_are_shifted_in_a_time_namespace() {
    let Some(lab) = Lab::new() else { return };
    let offsets = |monotonic: i64| {
        move |spec: &mut Spec| {
            let linux = spec.linux_mut().as_mut().unwrap();
            let mut document = serde_json::to_value(&*linux).unwrap();
            document["timeOffsets"] = serde_json::json!({
                "monotonic": {"secs": monotonic, "nanosecs": 5}, "boottime": {"secs": 864_000}});
            *linux = serde_json::from_value(document).unwrap();
        }
    };
    let builder = base(&lab).spec(own(Namespace::Time)).spec(offsets(7200));
    let uptime = |text: &str| text.split('.').next().unwrap().trim().parse::<u64>().unwrap();
    let host = uptime(&std::fs::read_to_string("/proc/uptime").unwrap());
    let script = "echo $$; cut -d' ' -f1 /proc/uptime; readlink /proc/self/ns/time; cat /proc/self/timens_offsets";
    let check = |out: &str, first: Option<&str>| {
        let lines: Vec<&str> = out.lines().collect();
        assert!(first.is_none_or(|first| lines[0] == first), "{out}");
        assert!((864_000 + host..864_100 + host).contains(&uptime(lines[1])), "{out}");
        assert_ne!(lines[2], link("/proc/self/ns/time"));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[3]), ["monotonic", "7200", "5"]);
    };
    // It is pid 1, as ever.
    check(&run(&builder, script), Some("1"));
    let container = builder.clone().command(["/bin/sleep", "1000"]).spawn().unwrap();
    let out = container.exec().command(["/bin/sh", "-ec", script]).output().unwrap();
    check(&String::from_utf8_lossy(&out.stdout), None);
    // And another joins it.
    if is_root() {
        let joined = base(&lab).spec(at(Namespace::Time, file(&container, "time")));
        check(&run(&joined, script), None);
    }
    container.kill().unwrap();
    // Before zero no clock can be, and without a namespace none can be shifted.
    let error =
        base(&lab).spec(own(Namespace::Time)).spec(offsets(-1 << 40)).command(["/bin/true"]).output().unwrap_err();
    assert!(error.to_string().contains("before zero"), "{error}");
    let error = base(&lab).spec(offsets(1)).command(["/bin/true"]).output().unwrap_err();
    assert!(error.to_string().contains("linux.timeOffsets"), "{error}");
    lab.engine.containers().unwrap();
}

/// The first process that others see is set up by one that went before it; both are the guardian's.
#[test]
fn a_container_in_joined_namespaces_ends_as_every_other() {
    let Some(lab) = Lab::new() else { return };
    let container =
        base(&lab).spec(own(Namespace::Time)).init(true).command(["/bin/sh", "-c", "exit 7"]).spawn().unwrap();
    assert_eq!(container.wait().unwrap().code(), Some(7));
    drop(container);
    let container = base(&lab).spec(own(Namespace::Time)).command(["/bin/sleep", "1000"]).spawn().unwrap();
    container.kill().unwrap();
    assert_eq!(container.wait().unwrap().signal(), Some(9));
    drop(container);
    let error = base(&lab).spec(own(Namespace::Time)).command(["/no/such"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    lab.assert_clean();
}
