//! A root of its own for each test, and commands over it that end in time.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::shared::skip::missing;

/// Far more than any of these commands takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub const COMMAND: &str = env!("CARGO_BIN_EXE_coracle");

/// A root directory that is empty at first and gone afterwards.
pub struct Root(tempfile::TempDir);

impl Root {
    pub fn new() -> Root {
        Root(tempfile::Builder::new().prefix("coracle-cli-").tempdir().unwrap())
    }

    /// Where the images and containers are.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// A place for other files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(COMMAND);
        command.arg("--root").arg(self.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        finish(self.command(arguments))
    }

    /// What it says, when it has to succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains of, in one line, when it has to fail with this status.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        complaint(&output)
    }

    /// Its answer as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Runs a command over the host's own tree.
    pub fn sandbox(&self, options: &[&str], command: &[&str]) -> Output {
        self.run(&sandbox(options, command))
    }

    /// What a command over the host's own tree says.
    pub fn says(&self, options: &[&str], command: &[&str]) -> String {
        self.ok(&sandbox(options, command)).trim_end().to_owned()
    }

    /// Starts it and lets it run.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    /// Starts a shell script over the host's tree that says "ready", and waits until it has; lists of containers may
    /// learn of it a moment later.
    pub fn start_script(&self, options: &[&str], script: &str) -> Running {
        let mut running = self.start(&sandbox(options, &["sh", "-c", script]));
        let line = running.line();
        if line != "ready" {
            let _ = running.child.kill();
            panic!("{script}: {line:?}; {}", running.errors());
        }
        running
    }

    /// Waits until the container of this name runs.
    pub fn until_running(&self, name: &str) {
        eventually(|| {
            let containers = self.json(&["ps"]);
            containers.as_array().unwrap().iter().any(|container| container["name"] == name)
        });
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // With a range of ids, files belong to ids that only the program itself can remove.
        let lists: [(&[&str], &[&str]); 3] = [
            (&["ps", "-aq"], &["rm", "-f"]),
            (&["snapshots", "-q"], &["snapshot", "rm"]),
            (&["images", "-aq"], &["rmi", "-f"]),
        ];
        for (list, remove) in lists {
            let Ok(output) = self.command(list).stderr(Stdio::null()).output() else { continue };
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            let names: Vec<&str> = names.lines().collect();
            if !names.is_empty() {
                let _ = self.command(remove).args(names).stdout(Stdio::null()).stderr(Stdio::null()).status();
            }
        }
    }
}

fn sandbox<'a>(options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["run"], options, &["--rootfs", "/", "--"], command].concat()
}

/// The one line on standard error, without the program's name.
pub fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {text:?}"));
    assert!(!line.contains('\n'), "several lines: {text}");
    line.strip_prefix("coracle: ").unwrap_or_else(|| panic!("not ours: {line}")).to_owned()
}

/// Runs a command to its end, which has to come in time.
pub fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read(&mut out));
        let err = scope.spawn(move || read(&mut err));
        let status = ends(&mut child);
        Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
    })
}

fn read(from: &mut dyn Read) -> Vec<u8> {
    let mut bytes = vec![];
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

fn ends(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that runs beside the test; killed when the test forgets it.
pub struct Running {
    pub child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What is on its standard error, to its end.
    fn errors(&mut self) -> String {
        let errors = self.child.stderr.take().map(|mut errors| read(&mut errors));
        String::from_utf8_lossy(&errors.unwrap_or_default()).into_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its exit status; as shells have it when it was killed itself.
    pub fn status(&mut self) -> i32 {
        let status = ends(&mut self.child);
        status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether containers run on this host at all; says so when not.
pub fn can_run() -> bool {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let reason = REASON.get_or_init(|| {
        let root = Root::new();
        let output = root.run(&["--json", "run", "--rm", "--rootfs", "/", "--", "true"]);
        if output.status.success() {
            return None;
        }
        let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_default();
        let kind = error["error"]["kind"].as_str().unwrap_or_default();
        let of_the_host = ["unsupported", "denied", "launch", "weaker"].contains(&kind);
        assert!(of_the_host, "the smallest sandbox failed, and not for want of anything: {output:?}");
        Some(error["error"]["message"].to_string())
    });
    if let Some(reason) = reason {
        missing(reason);
    }
    reason.is_none()
}

/// Leaves the test when no containers run here.
macro_rules! needs_containers {
    () => {
        if !crate::support::can_run() {
            return;
        }
    };
}
pub(crate) use needs_containers;

/// A directory with a static busybox and links to it; `None`, said loudly, where the host has none.
pub fn busybox(root: &Root) -> Option<PathBuf> {
    let program = crate::shared::skip::static_busybox()?;
    let tree = root.file("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::copy(program, tree.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "echo", "env", "id", "ls", "pwd", "sleep", "true", "touch"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(name)).unwrap();
    }
    fs::write(tree.join("etc/motd"), "hello from the image\n").unwrap();
    for path in ["", "bin", "etc", "bin/busybox"] {
        fs::set_permissions(tree.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    Some(tree)
}

/// A tar of a few files, as bytes.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(vec![]);
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What `docker save` writes for an image of one layer.
pub fn docker_archive(name: &str, layer: &[u8]) -> Vec<u8> {
    let digest = coracle::Digest::of(layer);
    let config = serde_json::json!({
        "architecture": coracle::Platform::host().architecture,
        "os": "linux",
        "created": "2020-01-02T03:04:05Z",
        "config": { "Cmd": ["cat", "/file"], "Env": ["FROM=image"] },
        "rootfs": { "type": "layers", "diff_ids": [digest.to_string()] },
        "history": [
            { "created": "2020-01-02T03:04:05Z", "created_by": "ADD file" },
            { "created": "2020-01-02T03:04:05Z", "created_by": "CMD cat", "empty_layer": true },
        ],
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    tar_of(&[
        ("config.json", config.to_string().as_bytes()),
        ("layer.tar", layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

/// Runs a command with these bytes as its standard input.
pub fn feed(mut command: Command, bytes: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Who refuses an input may close it before the end.
            let _ = input.write_all(bytes);
        });
        child.wait_with_output().unwrap()
    })
}
