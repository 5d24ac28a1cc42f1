#![allow(clippy::unwrap_used, clippy::panic)]
//! The launcher alone, without a container around it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::error::ErrorKind;

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

fn shell(script: &str) -> (Plan, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut plan = Plan::new(0);
    let input = plan.send(null().into());
    let output = plan.send(writer.into());
    let error = plan.send(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
    plan.plain(Op::Session);
    plan.plain(Op::DieWithParent);
    plan.stdio([input, output, error]);
    plan.exec(&[b"/bin/sh".to_vec()], &[b"sh".to_vec(), b"-c".to_vec(), script.into()], &[b"A=b".to_vec()]);
    (plan, reader)
}

use std::os::fd::AsFd;

fn run(script: &str) -> (String, Ended) {
    let (plan, mut reader) = shell(script);
    let process = launch(plan, null().as_fd(), Path::new("")).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (text, process.wait(None).unwrap().unwrap())
}

#[test]
fn output_and_status_come_back() {
    let (text, ended) = run("echo $A; exit 7");
    assert_eq!((text.as_str(), ended.code, ended.signal), ("b\n", Some(7), None));
}

#[test]
fn a_deadly_signal_is_told_apart() {
    let (_, ended) = run("kill -9 $$");
    assert_eq!((ended.code, ended.signal), (None, Some(9)));
}

#[test]
fn nothing_is_inherited_but_the_three() {
    let (text, _) = run("ls /proc/self/fd | tr '\\n' ' '; cat /proc/self/status | grep -E '^Sig(Blk|Ign|Cgt)'");
    let mut lines = text.lines();
    // ls itself opens the directory as 3.
    assert!(lines.next().unwrap().starts_with("0 1 2 3 SigBlk:\t0000000000000000"), "{text}");
    assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
}

#[test]
fn a_missing_command_is_said_so() {
    let mut plan = Plan::new(0);
    plan.exec(&[b"/nowhere".to_vec()], &[b"x".to_vec()], &[]);
    let error = launch(plan, null().as_fd(), Path::new("")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{error}");
}

/// Another thread of the host program may have started something in the moment in which the command was written.
#[test]
fn a_command_that_is_still_written_is_waited_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let command = dir.path().join("true");
    std::fs::copy("/bin/true", &command).unwrap();
    let run = || {
        let mut plan = Plan::new(0);
        let path = command.to_str().unwrap().as_bytes().to_vec();
        plan.exec(std::slice::from_ref(&path), std::slice::from_ref(&path), &[]);
        launch(plan, null().as_fd(), Path::new("")).and_then(|process| process.wait(None))
    };
    let writer = File::options().write(true).open(&command).unwrap();
    let error = run().unwrap_err();
    assert!(error.to_string().contains("open for writing"), "{error}");
    let closing = std::thread::spawn(move || drop(writer));
    let ended = loop {
        match run() {
            Ok(ended) => break ended,
            // The other thread takes its time.
            Err(error) => assert!(error.to_string().contains("open for writing"), "{error}"),
        }
    };
    closing.join().unwrap();
    assert_eq!(ended.unwrap().code, Some(0));
}

#[test]
fn a_large_plan_travels_in_a_file() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut plan = Plan::new(0);
    let (input, output) = (plan.send(null().into()), plan.send(writer.into()));
    plan.stdio([input, output, output]);
    let big = (0..20).map(|n| format!("V{n}={}", "x".repeat(100_000)).into_bytes()).collect::<Vec<_>>();
    plan.exec(&[b"/usr/bin/env".to_vec()], &[b"env".to_vec()], &big);
    let process = launch(plan, null().as_fd(), Path::new("")).unwrap();
    let mut text = String::new();
    { reader }.read_to_string(&mut text).unwrap();
    assert_eq!(process.wait(None).unwrap().unwrap().code, Some(0));
    assert!(text.len() > 2_000_000);
}

#[test]
fn dropping_kills_and_signals_arrive() {
    let (plan, mut reader) = shell("exec sleep 1000");
    drop(launch(plan, null().as_fd(), Path::new("")).unwrap());
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    let (plan, _reader) = shell("exec sleep 1000");
    let process = launch(plan, null().as_fd(), Path::new("")).unwrap();
    assert!(process.wait(Some(Duration::from_millis(5))).unwrap().is_none());
    assert!(process.signal(15).unwrap());
    assert_eq!(process.wait(None).unwrap().unwrap().signal, Some(15));
    assert!(!process.signal(15).unwrap());
}

#[test]
fn a_malformed_plan_is_refused_by_the_stub() {
    let mut plan = Plan::new(0);
    plan.word(Op::Attach, 999);
    let error = launch(plan, null().as_fd(), Path::new("")).err().unwrap();
    assert!(error.to_string().contains("malformed"), "{error}");
}

/// A filter that does this with these calls, and lets all others pass.
fn filter(calls: &[libc::c_long], action: u32) -> Vec<u8> {
    let mut bytes = vec![];
    let mut put = |code: u16, skip: u8, value: u32| {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0, skip]);
        bytes.extend(value.to_ne_bytes());
    };
    put(0x20, 0, 0);
    for call in calls {
        put(0x15, 1, *call as u32);
        put(0x06, 0, action);
    }
    put(0x06, 0, libc::SECCOMP_RET_ALLOW);
    bytes
}

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

#[test]
fn a_process_that_ends_while_it_sets_up_is_no_launch() {
    let plan = |when| {
        let mut plan = Plan::new(0);
        plan.plain(Op::NoNewPrivileges);
        plan.seccomp(when, &filter(&[libc::SYS_setsid], libc::SECCOMP_RET_KILL_PROCESS));
        plan.plain(Op::Session);
        plan.exec(&[b"/bin/true".to_vec()], &[b"true".to_vec()], &[]);
        launch(plan, null().as_fd(), Path::new(""))
    };
    let error = plan(When::Now).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Launch);
    assert!(error.to_string().contains("died of signal 31"), "{error}");
    // A filter that is held is none yet.
    let process = plan(When::Held).unwrap();
    assert_eq!(process.wait(None).unwrap().unwrap().code, Some(0));
}

#[test]
fn owners_are_set_without_openat2() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("a/b")).unwrap();
    std::fs::write(at("a/b/file"), "x").unwrap();
    symlink("b", at("a/link")).unwrap();
    let own = std::fs::metadata(dir.path()).unwrap();
    let reown = |paths: &[&str]| {
        let mut bytes = vec![];
        let mut list = Payload(&mut bytes);
        for path in paths {
            list.str(path.as_bytes());
            [own.uid(), own.gid(), 0o741, 0].iter().for_each(|word| list.u32(*word));
        }
        let mut plan = Plan::new(0);
        plan.plain(Op::NoNewPrivileges);
        plan.seccomp(When::Now, &filter(&[libc::SYS_openat2], refused(libc::EPERM)));
        let tree = plan.send(File::open(dir.path()).unwrap().into());
        let list = plan.send(in_memory(&bytes).unwrap());
        plan.reown(tree, list);
        plan.plain(Op::Done);
        launch(plan, null().as_fd(), Path::new("")).map(|process| process.wait(None).unwrap().unwrap().code)
    };
    assert_eq!(reown(&[".", "a/b/file", "a/link"]).unwrap(), Some(0));
    assert_eq!(std::fs::metadata(at("a/b/file")).unwrap().permissions().mode() & 0o7777, 0o741);
    for path in ["a/link/file", "a/../a/b/file", "/etc/passwd", "a//b", "a/none"] {
        assert!(reown(&[path]).is_err(), "{path}");
    }
}

#[test]
fn a_path_that_is_too_long_is_refused_without_openat2() {
    let mut plan = Plan::new(0);
    plan.plain(Op::NoNewPrivileges);
    plan.seccomp(When::Now, &filter(&[libc::SYS_openat2], refused(libc::ENOSYS)));
    plan.work_dir(Path::new(&"/x".repeat(3000)), 0, 0);
    let error = launch(plan, null().as_fd(), Path::new("")).err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG), "{error}");
}

#[test]
fn refused_launches_leave_nothing_mapped() {
    let (plan, _reader) = shell("exec sleep 1000");
    let living = launch(plan, null().as_fd(), Path::new("")).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", living.pid())).unwrap();
    let guardian = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let size = || {
        let pages = std::fs::read_to_string(format!("/proc/{guardian}/statm")).unwrap();
        pages.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = size();
    for _ in 0..20 {
        let mut plan = Plan::new(0);
        let none = plan.send(null().into());
        plan.born_in(none);
        plan.write(none, &vec![0; 4 << 20], "");
        assert!(launch(plan, null().as_fd(), Path::new("")).is_err());
    }
    // Other tests launch meanwhile.
    assert!(size() < before + (20 << 20));
}

#[test]
fn the_stub_has_no_allocator() {
    // An unstripped static program: its symbols and strings would name one.
    let stub = super::spawn::STUB;
    for word in [&b"__rust_alloc"[..], b"__rdl_alloc", b"malloc", b"dlmalloc", b"__libc", b"ld-linux"] {
        assert!(!stub.windows(word.len()).any(|window| window == word), "{}", String::from_utf8_lossy(word));
    }
    assert!(stub.windows(6).any(|window| window == b"memcpy"), "symbols are there to be searched");
    assert!(stub.len() < 80 * 1024, "a few tens of KiB");
}
