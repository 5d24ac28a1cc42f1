//! run -t, exec -t: a terminal of the command's own, shown on the caller's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::support::{COMMAND, Root, complaint, feed, needs_containers};

/// Somebody at a terminal, which is the controlling one of the command that runs on it.
struct Desk {
    keyboard_and_screen: File,
    terminal: OwnedFd,
    before: Termios,
    child: Child,
    shown: String,
}

impl Desk {
    fn start(root: &Root, arguments: &[&str]) -> Desk {
        let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let before = tcgetattr(&pair.slave).unwrap();
        // It replaces itself, so the child is the command.
        let mut command = Command::new("setsid");
        command.args(["--ctty", COMMAND, "--root"]).arg(root.path()).args(arguments).env("PS1", "> ");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Desk { keyboard_and_screen: pair.master.into(), terminal: pair.slave, before, child, shown: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.keyboard_and_screen.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this is shown; what is behind it is left for the next time.
    fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} is not in {:?}", self.shown);
            self.read(100);
        }
    }

    fn read(&mut self, millis: u16) -> bool {
        let mut fds = [PollFd::new(self.keyboard_and_screen.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(millis)).unwrap() == 0 {
            return false;
        }
        let mut buffer = [0; 4096];
        let count = self.keyboard_and_screen.read(&mut buffer).unwrap();
        self.shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        true
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn until_raw(&self) {
        crate::support::eventually(|| self.is_raw());
    }

    fn resize(&self, rows: u32, columns: u32) {
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        assert!(stty.stdin(self.terminal.try_clone().unwrap()).status().unwrap().success());
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its status, and what else was shown. The terminal is as it was, and nothing was typed on it by anybody else.
    fn ends(mut self) -> (i32, String) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let status = loop {
            self.read(2);
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "still running; {:?}", self.shown);
        };
        while self.read(0) {}
        assert_eq!(tcgetattr(&self.terminal).unwrap(), self.before, "modes were not restored");
        let mut input = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut input, PollTimeout::ZERO), Ok(0), "input is left");
        (status.code().unwrap(), std::mem::take(&mut self.shown))
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A terminal needs setsid(1) to be the controlling one.
macro_rules! needs_desk {
    () => {
        needs_containers!();
        if Command::new("setsid").arg("--version").stdout(Stdio::null()).status().is_err() {
            return crate::shared::skip::missing("setsid(1)");
        }
    };
}

/// What a person does with a shell; it is at its prompt, and ends with 7.
fn try_out(desk: &mut Desk, name: &str) {
    desk.until_raw();
    let begin = desk.until("> ");
    assert!(!begin.contains("job control") && !begin.contains("access tty"), "{begin}");
    desk.types("tty\r");
    // Shown once: by the line discipline of the one terminal, and not by the other.
    assert_eq!(desk.until("> "), format!("tty\r\n{name}\r\n> "));
    desk.types("stty size; echo $TERM\r");
    desk.until("33 101\r\nxterm\r\n> ");
    desk.resize(50, 132);
    // The signal and what is typed go different ways.
    desk.types("until test \"$(stty size)\" = '50 132'; do sleep 0.05; done; stty size\r");
    desk.until("\n50 132\r\n> ");
    desk.types("cat\r");
    desk.until("cat\r\n");
    desk.types("typed\r");
    desk.until("typed\r\ntyped\r\n");
    desk.types("\x03");
    desk.until("> ");
    // Who says so is in the foreground.
    desk.types("sh -c 'echo go; exec sleep 1000'\r");
    desk.until("go\r\n");
    desk.types("\x1a");
    desk.until("> ");
    desk.types("kill -9 %1; fg\r");
    desk.until("> ");
    desk.types("exit $((3+4))\r");
    desk.until("exit");
}

#[test]
fn a_shell_is_used_as_any_other() {
    needs_desk!();
    let root = Root::new();
    for init in [&[][..], &["--init"]] {
        let options = [&["run", "--rm", "-it", "-e", "PS1"], init, &["--rootfs", "/", "--", "sh"]].concat();
        let mut desk = Desk::start(&root, &options);
        try_out(&mut desk, "/dev/pts/0");
        assert_eq!(desk.ends().0, 7);
    }
    assert_eq!(root.json(&["ps", "-a"]), serde_json::json!([]));
}

#[test]
fn a_further_shell_is_used_as_any_other() {
    needs_desk!();
    let root = Root::new();
    let mut running =
        root.start_script(&["--name", "one"], "trap 'exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    root.until_running("one");
    let mut desk = Desk::start(&root, &["exec", "-it", "-e", "PS1", "one", "sh"]);
    try_out(&mut desk, "/dev/pts/0");
    assert_eq!(desk.ends().0, 7);
    // Without -i nothing is read, and the terminal stays as it is.
    let desk = Desk::start(&root, &["exec", "-t", "one", "sh", "-c", "tty; stty size"]);
    assert_eq!(desk.ends(), (0, "/dev/pts/0\r\n33 101\r\n".to_owned()));
    // What it leaves behind has the terminal open, and is not waited for.
    let desk = Desk::start(&root, &["exec", "-it", "one", "sh", "-c", "sleep 1000 & echo end"]);
    assert_eq!(desk.ends(), (0, "end\r\n".to_owned()));
    root.ok(&["stop", "one"]);
    assert_eq!(running.status(), 0);
}

#[test]
fn other_options_go_with_it() {
    needs_desk!();
    let root = Root::new();
    for options in [
        &["--read-only"][..],
        &["--security-opt", "no-new-privileges=false"],
        &["--security-opt", "no-new-privileges=false", "--init"],
        &["--security-opt", "seccomp=strict"],
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt", "systempaths=unconfined"],
        &["--network", "host"],
        &["--cap-drop", "ALL"],
        &["--user", "12:34", "--init"],
        &["--tmpfs", "/dev/shm"],
    ] {
        let arguments = [&["run", "--rm", "-it"], options, &["--rootfs", "/", "--", "sh", "-c", "tty </dev/tty; tty"]];
        let (code, shown) = Desk::start(&root, &arguments.concat()).ends();
        assert_eq!((code, shown.as_str()), (0, "/dev/tty\r\n/dev/pts/0\r\n"), "{options:?}");
    }
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    needs_desk!();
    let root = Root::new();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let script = ["--", "sh", "-c", "echo ready; exec sleep 1000"];
        let mut desk = Desk::start(&root, &[&["run", "--rm", "-it", "--init", "--rootfs", "/"], &script[..]].concat());
        desk.until_raw();
        desk.until("ready");
        desk.signal(signal);
        assert_eq!(desk.ends().0, code, "{signal}");
    }
    let listen = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let mut desk = Desk::start(&root, &["run", "--name", "one", "-it", "--rootfs", "/", "--", "sh", "-c", listen]);
    desk.until_raw();
    desk.until("ready");
    root.until_running("one");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130), (Signal::SIGQUIT, 131)]
    {
        let mut exec = Desk::start(&root, &["exec", "-it", "one", "sh", "-c", "echo ready; exec sleep 1000"]);
        exec.until_raw();
        exec.until("ready");
        exec.signal(signal);
        assert_eq!(exec.ends().0, code, "{signal}");
    }
    desk.signal(Signal::SIGTERM);
    assert_eq!(desk.ends().0, 7);
}

#[test]
fn failures_leave_the_terminal_as_it_was() {
    needs_desk!();
    let root = Root::new();
    let desk = Desk::start(&root, &["run", "--rm", "-it", "--rootfs", "/", "--", "surely-no-such-command"]);
    let (code, shown) = desk.ends();
    assert!(code == 127 && shown.contains("surely-no-such-command"), "{code} {shown}");
    let desk = Desk::start(&root, &["--json", "exec", "-it", "nobody", "true"]);
    let (code, shown) = desk.ends();
    let error: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((code, error["error"]["kind"].as_str()), (125, Some("not_found")), "{shown}");
}

#[test]
fn t_alone_needs_no_terminal_and_reads_nothing() {
    needs_containers!();
    let root = Root::new();
    let command =
        root.command(&["run", "--rm", "-t", "--rootfs", "/", "--", "sh", "-c", "tty; stty size; echo err >&2"]);
    let output = feed(command, b"not for the container");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/dev/pts/0\r\n24 80\r\nerr\r\n");
    assert!(output.stderr.is_empty(), "{output:?}");
    for arguments in [&["run", "-ti", "--rootfs", "/", "--", "true"][..], &["exec", "-it", "one", "true"]] {
        let output = root.run(arguments);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(complaint(&output).contains("the input device is not a TTY"), "{output:?}");
    }
}

#[test]
fn what_is_shown_last_is_shown() {
    needs_desk!();
    let root = Root::new();
    for turn in 0..50 {
        let desk = Desk::start(&root, &["run", "--rm", "-it", "--rootfs", "/", "--", "echo", "hello"]);
        assert_eq!(desk.ends(), (0, "hello\r\n".to_owned()), "{turn}");
    }
    let mut desk = Desk::start(&root, &["run", "--rm", "-it", "--rootfs", "/", "--", "seq", "20000"]);
    desk.until("\r\n10000\r\n");
    let (code, shown) = desk.ends();
    assert!(code == 0 && shown.ends_with("\r\n19999\r\n20000\r\n"), "{code}");
    // Nobody looks any more.
    let line = format!("{COMMAND} --root {} run --rm -t --rootfs / -- yes | head -n 1", root.path().display());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(output.stdout, b"y\r\n", "{output:?}");
}

/// CVE-2017-5226: what a container pushes into its terminal stays there.
#[test]
fn cve_2017_5226_nothing_is_typed_on_the_callers_terminal() {
    needs_desk!();
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return crate::shared::skip::missing("perl, to call ioctl(2)");
    }
    let root = Root::new();
    // TIOCSTI, and a newline so that it would be input in every mode; then TIOCLINUX.
    let push = "for my $f (*STDIN, *STDOUT, *STDERR) { ioctl($f, 0x5412, my $c = $_) for 'x', \"\\n\"; ioctl($f, 0x541c, $c = \"\\x02\"); } print \"done\"";
    for options in [&["-it"][..], &["-t"], &["-i"], &[]] {
        let arguments = [&["run", "--rm"], options, &["--rootfs", "/", "--", "perl", "-e", push]].concat();
        // Looks that nothing was typed.
        let (code, shown) = Desk::start(&root, &arguments).ends();
        assert!(code == 0 && shown.ends_with("done"), "{options:?}: {code} {shown:?}");
    }
}
