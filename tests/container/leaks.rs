//! What is left after ten thousand launches, and after a host program that was killed in the middle of them: nothing.

use std::path::Path;
use std::process::Stdio as Process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coracle::Engine;

use super::support::{Lab, image, is_root, with_programs};

/// Half of them launches, half of them further commands.
fn turns() -> u32 {
    // Without root a launch takes longer, and leaks the same.
    if is_root() { 10_000 } else { 1_000 }
}

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

/// A line of a file in /proc that starts with a word and a number.
fn number(file: &str, word: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split([' ', ':']).next() == Some(word))?;
    line[word.len()..].trim_matches([':', ' ', '\t']).split_whitespace().next()?.parse().ok()
}

/// Namespaces that the kernel has objects of: those of this machine, whoever uses them.
fn namespaces() -> Vec<(&'static str, u64)> {
    let kinds = ["net_namespace", "pid_namespace", "uts_namespace", "user_namespace", "mnt_cache"];
    kinds.into_iter().filter_map(|kind| Some((kind, number("/proc/slabinfo", kind)?))).collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    mounts: usize,
    /// Of the guardian: its descriptors, where they can be seen, and its children.
    guardian: (usize, usize),
}

fn held(guardian: u32) -> Held {
    let children = std::fs::read_to_string(format!("/proc/{guardian}/task/{guardian}/children")).unwrap_or_default();
    Held {
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
        mounts: std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
        guardian: (count(&format!("/proc/{guardian}/fd")), children.split_whitespace().count()),
    }
}

/// The guardian tells of an end before it has closed what belonged to it, and so does a thread.
fn settled(guardian: u32) -> Held {
    let (mut last, mut times) = (held(guardian), 0);
    while times < 10 {
        std::thread::sleep(Duration::from_millis(20));
        let now = held(guardian);
        times = if now == last { times + 1 } else { 0 };
        last = now;
    }
    last
}

fn resident(process: &str) -> u64 {
    number(&format!("/proc/{process}/status"), "VmRSS").unwrap()
}

/// A host program of its own, so that nothing else allocates in it.
pub fn leaking(root: &str) {
    let engine = Engine::open(root).unwrap();
    let image = engine.image("lab").unwrap();
    let container = with_programs(image.container());
    let waiting = container.clone().command(["sleep", "100000"]).spawn().unwrap();
    let guardian = number(&format!("/proc/{}/status", waiting.pid().unwrap()), "PPid").unwrap() as u32;
    let launch = container.command(["true"]);
    let further = waiting.exec().command(["true"]);
    let run = |turns: u32| {
        let next = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while next.fetch_add(2, Ordering::Relaxed) < turns {
                        assert!(launch.output().unwrap().status.success());
                        assert!(further.output().unwrap().status.success());
                    }
                });
            }
        });
    };
    // What is kept for the next time is there after some.
    run(turns() / 10);
    let before = settled(guardian);
    let (own, carried, all) = (resident("self"), resident(&guardian.to_string()), namespaces());
    run(turns());
    assert_eq!(settled(guardian), before);
    // Heaps have holes; something that is lost with every turn is ten times as much.
    let grown = resident("self").saturating_sub(own);
    // The kernel counts pages for each processor and adds up now and then.
    let slack = 4 * 64 * std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    assert!(grown < u64::from(turns()) / 20 + slack, "the host program grew by {grown} KiB");
    let (now, most) = (resident(&guardian.to_string()), carried + slack);
    assert!(now <= most, "the guardian had {carried} KiB, and has {now}");
    // The kernel takes them down in its own time; others make some meanwhile.
    for (kind, before) in all {
        let now = || number("/proc/slabinfo", kind).unwrap_or(0);
        let mut tries = 0;
        while now() > before + u64::from(turns()) / 5 && tries < 600 {
            std::thread::sleep(Duration::from_millis(100));
            tries += 1;
        }
        assert!(tries < 600, "{kind}: {before} before, {} now", now());
    }
    waiting.close().unwrap();
}

#[test]
fn ten_thousand_launches_leave_nothing() {
    let Some(lab) = Lab::new() else { return };
    drop(image(&lab.engine));
    let output = super::host::role("leaking", &lab.root()).stdin(Process::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lab.engine.containers().unwrap().is_empty());
    lab.assert_clean();
}

/// Launches, and starts further commands, for as long as it lives.
pub fn launching(root: &str) {
    let engine = Engine::open(root).unwrap();
    let image = engine.image("lab").unwrap();
    let marker = std::env::var("CORACLE_TEST_MARKER").unwrap();
    let sleep = ["sleep".to_owned(), marker];
    let container = with_programs(image.container());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (container, sleep) = (container.clone(), &sleep);
            scope.spawn(move || {
                loop {
                    let waiting = container.clone().keep(thread == 0).command(sleep.clone()).spawn().unwrap();
                    let further = waiting.exec().command(sleep.clone()).spawn().unwrap();
                    assert!(waiting.exec().command(["true"]).status().unwrap().success());
                    drop(further);
                    waiting.kill().unwrap();
                    waiting.wait().unwrap();
                    waiting.remove().unwrap();
                }
            });
        }
    });
}

/// Processes that have this word as their last argument.
fn with_argument(word: &str) -> Vec<String> {
    let word = format!("\0{word}\0").into_bytes();
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let has = |path: &Path| std::fs::read(path.join("cmdline")).is_ok_and(|line| line.ends_with(&word));
    all.filter(|path| has(path)).map(|path| path.display().to_string()).collect()
}

#[test]
fn a_hundred_hosts_that_are_killed_leave_nothing() {
    let Some(lab) = Lab::new() else { return };
    drop(image(&lab.engine));
    for round in 0..if is_root() { 100u64 } else { 20 } {
        // A length of sleep that nobody else asks for.
        let marker = format!("{}{round:03}", std::process::id());
        let mut host = super::host::role("launching", &lab.root());
        let mut host = host.env("CORACLE_TEST_MARKER", &marker).stdout(Process::null()).spawn().unwrap();
        // Spread over the first instants of a host program, when it opens the root, and over its launches.
        std::thread::sleep(Duration::from_micros(round * 7_919 % 100_000));
        host.kill().unwrap();
        host.wait().unwrap();
        let mut tries = 0;
        loop {
            let engine = Engine::open(lab.root()).unwrap();
            for info in engine.containers().unwrap() {
                // One that was to be kept is there to be looked at, dead.
                if let Ok(container) = engine.find_container(info.id.as_str()) {
                    let _ = container.remove();
                }
            }
            let left = (with_argument(&marker), engine.containers().unwrap());
            if left.0.is_empty() && left.1.is_empty() {
                break;
            }
            tries += 1;
            assert!(tries < 600, "{left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    lab.assert_clean();
}
