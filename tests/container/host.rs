//! What an embedding program may rely on: any thread, any habit with SIGCHLD, nothing of its own changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle::Engine;

use super::shared::skip::other_user;
use super::support::Lab;

/// This program again, in a role; see [`role_entry`].
pub fn role(name: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["host::role_entry", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("CORACLE_TEST_ROLE", name).env("CORACLE_TEST_ROOT", root);
    command
}

/// Not a test by itself: the way into a host program of its own.
#[test]
fn role_entry() {
    let Ok(role) = std::env::var("CORACLE_TEST_ROLE") else { return };
    let root = std::env::var("CORACLE_TEST_ROOT").unwrap();
    match role.as_str() {
        "victim" => super::lifetime::victim(&root),
        "guardian" => super::lifetime::guardian(&root),
        "stopped" => super::lifetime::stopped(&root),
        "starved" => super::records::starved(&root),
        "leaking" => super::leaks::leaking(&root),
        "launching" => super::leaks::launching(&root),
        "storm" => storm(&root, 16),
        "ignoring" => {
            // SAFETY: `SIG_IGN` is a valid disposition.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            storm(&root, turns());
        }
        "hooked" => {
            // SAFETY: as above.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            super::hooks::hooked(&root);
        }
        "waiting" => waiting(&root),
        "refusing" => refusing(&root),
        "watched" => super::ladder::watched(&root),
        "removed" => super::removed::role(&root),
        other => panic!("no such role: {other}"),
    }
}

/// Everything of this process that must not change.
#[derive(Debug, PartialEq, Eq)]
struct Habits {
    cwd: PathBuf,
    environment: BTreeSet<(std::ffi::OsString, std::ffi::OsString)>,
    /// Umask, signals, capabilities and limits, as the kernel tells them.
    status: Vec<String>,
    dumpable: i32,
    children: usize,
}

fn habits() -> Habits {
    // Of this thread: the first one may be in the middle of making this one, with all its signals blocked.
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let wanted =
        ["Umask", "SigBlk", "SigIgn", "SigCgt", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid", "Gid"];
    let children = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        list.split_whitespace().count()
    });
    Habits {
        cwd: std::env::current_dir().unwrap(),
        environment: std::env::vars_os().collect(),
        status: status
            .lines()
            .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect(),
        // SAFETY: takes only integers.
        dumpable: unsafe { libc::prctl(libc::PR_GET_DUMPABLE) },
        children: children.sum(),
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// How often each thread launches in hosts of odd habits. Those are the same for everybody, and without root a launch
/// takes long when so many threads want the processors.
fn turns() -> usize {
    if super::support::is_root() { 16 } else { 3 }
}

/// 200 threads launch this often each while others keep the allocator's locks busy.
fn storm(root: &str, turns: usize) {
    let engine = Engine::open(root).unwrap();
    // The first launch brings the guardian; what it costs stays.
    assert!(engine.sandbox().command(["/bin/true"]).status().unwrap().success());
    let (before, open) = (habits(), descriptors());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut size = 1;
                while !done.load(Ordering::Relaxed) {
                    size = size * 7 % 65_521;
                    drop(std::hint::black_box(vec![0u8; size]));
                }
            });
        }
        let workers: Vec<_> = (0..200)
            .map(|worker| {
                let engine = &engine;
                scope.spawn(move || {
                    for turn in 0..turns {
                        let text = format!("{worker} {turn}");
                        let out = engine.sandbox().command(["/bin/echo", &text]).output().unwrap();
                        assert!(out.status.success(), "{out:?}");
                        assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{text}\n"));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(habits(), before);
    assert_eq!(descriptors(), open);
}

/// A host program that reaps whatever it can get, in a loop.
fn waiting(root: &str) {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let reaper = {
        let (stop, seen) = (stop.clone(), seen.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: a null status is allowed.
                match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
                    1.. => drop(seen.fetch_add(1, Ordering::Relaxed)),
                    _ => std::thread::yield_now(),
                }
            }
        })
    };
    storm(root, turns());
    let engine = Engine::open(root).unwrap();
    for code in 0..100 {
        let status = engine.sandbox().command(["/bin/sh", "-c", &format!("exit {code}")]).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
    stop.store(true, Ordering::Relaxed);
    reaper.join().unwrap();
    // Ours cost it none, either: nothing of us was ever its child.
    assert_eq!(seen.load(Ordering::Relaxed), 0);
}

/// A host program under a filter that knows less than this crate does: `CORACLE_TEST_REFUSED` lists the errno and then
/// the numbers of the calls.
fn refusing(root: &str) {
    let words = std::env::var("CORACLE_TEST_REFUSED").unwrap();
    let mut words = words.split(' ').map(|word| word.parse::<u32>().unwrap());
    let errno = words.next().unwrap();
    let entry = |code: u32, skip: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: skip, k };
    let mut filter = vec![entry(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for call in words {
        filter.push(entry(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call));
        filter.push(entry(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | errno));
    }
    filter.push(entry(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program and its instructions live for the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let engine = Engine::open(root).unwrap();
    for init in [false, true] {
        let builder = engine.sandbox().init(init).workdir("/tmp/made/here");
        let script = "pwd; cat /proc/self/cgroup; (: >> /proc/sys/kernel/core_pattern) 2>/dev/null || echo refused";
        let container = builder.clone().command(["/bin/sh", "-c", script]).output();
        let out = String::from_utf8(container.unwrap().stdout).unwrap();
        let mut lines: Vec<&str> = out.lines().collect();
        assert_eq!((lines.first().copied(), lines.pop()), (Some("/tmp/made/here"), Some("refused")), "{out}");
        // Namespaces of control groups show the container's own as the root, once it is in there.
        assert!(lines[1..].iter().all(|line| line.ends_with(":/") || !super::support::is_root()), "{out}");
        let tty = coracle::container::WindowSize::default();
        assert_eq!(builder.clone().tty(tty).command(["tty"]).output().unwrap().stdout, b"/dev/pts/0\r\n");
        let container = builder.clone().command(["sleep", "1000"]).spawn().unwrap();
        assert_eq!(container.exec().tty(tty).command(["tty"]).output().unwrap().stdout, b"/dev/pts/0\r\n");
        container.close().unwrap();
        assert!(!builder.command(["/bin/false"]).status().unwrap().success());
    }
}

fn refuse(errno: i32, calls: &[libc::c_long]) {
    let Some(lab) = Lab::new() else { return };
    if lab.engine.identity() == "rootless with a range" {
        // Who has no-new-privileges cannot use newuidmap.
        return super::shared::skip::other_user("root, or users without a range");
    }
    let list: Vec<String> = calls.iter().map(|call| call.to_string()).collect();
    let mut command = role("refusing", &lab.root());
    finish(&lab, command.env("CORACLE_TEST_REFUSED", format!("{errno} {}", list.join(" "))));
}

/// What the container is born in its control group with.
#[test]
fn without_clone3_containers_join_their_group() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        refuse(errno, &[libc::SYS_clone3]);
    }
}

/// Old filters answer EPERM to calls that they do not know.
#[test]
fn without_close_range_and_openat2_there_are_other_ways() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        refuse(errno, &[libc::SYS_close_range, libc::SYS_openat2]);
    }
}

fn play(name: &str) {
    let Some(lab) = Lab::new() else { return };
    finish(&lab, &mut role(name, &lab.root()));
}

pub fn finish(lab: &Lab, command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!String::from_utf8_lossy(&output.stderr).contains("allocator trap"));
    lab.assert_clean();
}

#[test]
fn many_threads_launch_at_once() {
    play("storm");
}

#[test]
fn a_host_that_ignores_sigchld_loses_no_status() {
    play("ignoring");
}

#[test]
fn a_host_that_reaps_everything_loses_no_status() {
    play("waiting");
}

#[test]
fn the_launching_thread_may_end() {
    let Some(lab) = Lab::new() else { return };
    let engine = lab.engine.clone();
    let container =
        std::thread::spawn(move || engine.sandbox().command(["/bin/sh", "-c", "sleep 0.2; exit 9"]).spawn().unwrap());
    assert_eq!(container.join().unwrap().wait().unwrap().code(), Some(9));
}

#[test]
fn several_engines_live_in_one_process() {
    // Several engines in one process share the guardian and nothing else.
    let Some(lab) = Lab::new() else { return };
    let Some(other) = Lab::new() else { return };
    let one = lab.engine.sandbox().command(["sleep", "1000"]).name("same").spawn().unwrap();
    let two = other.engine.sandbox().command(["sleep", "1000"]).name("same").spawn().unwrap();
    assert_eq!((lab.engine.containers().unwrap().len(), other.engine.containers().unwrap().len()), (1, 1));
    drop((one, two));
    lab.assert_clean();
    other.assert_clean();
}

/// One thread of the host program has moved to another network: its containers are there, those of the others are not.
#[test]
fn containers_are_where_the_thread_is_that_starts_them() {
    let Some(lab) = Lab::new() else { return };
    if !super::support::is_root() {
        return other_user("root");
    }
    let links = |lab: &Lab| {
        let builder = lab.engine.sandbox().network(coracle::container::Network::Host);
        super::support::run(&builder, "readlink /proc/self/ns/net")
    };
    let here = links(&lab);
    let there = std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            (links(&lab), std::fs::read_link("/proc/thread-self/ns/net").unwrap())
        });
        moved.join().unwrap()
    });
    assert_ne!(there.0, here);
    assert_eq!(there.0.trim(), there.1.to_string_lossy());
    assert_eq!(links(&lab), here);
    lab.assert_clean();
}
