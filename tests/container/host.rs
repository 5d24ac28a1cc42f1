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
        "storm" => storm(&root),
        "ignoring" => {
            // SAFETY: `SIG_IGN` is a valid disposition.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            storm(&root);
        }
        "waiting" => waiting(&root),
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
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
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

/// 64 threads launch 50 times each while others keep the allocator's locks busy.
fn storm(root: &str) {
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
        let workers: Vec<_> = (0..64)
            .map(|worker| {
                let engine = &engine;
                scope.spawn(move || {
                    for turn in 0..50 {
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

fn play(name: &str) {
    let Some(lab) = Lab::new() else { return };
    let output = role(name, &lab.root()).output().unwrap();
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
