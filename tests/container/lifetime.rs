//! What outlives what: handles, programs, records.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio as Process};
use std::time::{Duration, Instant};

use coracle::container::{Lifetime, Signal, State};
use coracle::{Container, Engine, ErrorKind};

use super::support::{Lab, image, is_root, with_programs};

/// Waits for something that another process does. Generous: a busy machine is no failure.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

#[test]
fn dropping_the_handle_kills_and_removes() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.engine.sandbox().command(["sleep", "1000"]).spawn().unwrap();
    let pid = container.pid().unwrap();
    assert_eq!(lab.engine.containers().unwrap().len(), 1);
    drop(container);
    eventually("the process is gone", || !lives(pid));
    lab.assert_clean();
}

#[test]
fn an_attached_container_outlives_its_handle() {
    let Some(lab) = Lab::new() else { return };
    let container =
        lab.engine.sandbox().command(["sleep", "1000"]).lifetime(Lifetime::Attached).name("worker").spawn().unwrap();
    let pid = container.pid().unwrap();
    drop(container);
    assert!(lives(pid));
    let found = lab.engine.find_container("worker").unwrap();
    assert_eq!(found.info().state, State::Running);
    found.kill().unwrap();
    eventually("the process is gone", || !lives(pid));
    // The record goes first; a thread of the engine is still at the rest then.
    let files = lab.root().join("containers");
    eventually("its files are gone", || std::fs::read_dir(&files).unwrap().next().is_none());
    drop(found);
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn a_kept_container_is_listed_until_removed() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).command(["/bin/sh", "-c", "exit 7"]).keep(true).name("seven");
    assert_eq!(builder.status().unwrap().code(), Some(7));
    let info = lab.engine.containers().unwrap().pop().unwrap();
    assert_eq!((info.state, info.exit.unwrap().code()), (State::Exited, Some(7)));
    assert_eq!(info.name.as_deref(), Some("seven"));
    let again = builder.spawn().unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");
    let short = info.id.short().to_owned();
    assert_eq!(lab.engine.find_container(&short).unwrap().wait().unwrap().code(), Some(7));
    // An image that a container needs stays.
    assert_eq!(lab.engine.remove_image("lab", false).unwrap_err().kind(), ErrorKind::Conflict);
    lab.engine.find_container("seven").unwrap().remove().unwrap();
    assert!(lab.engine.find_container("seven").is_err());
    lab.assert_clean();
    assert_eq!(lab.engine.remove_image("lab", false).unwrap().deleted.len(), 1);
}

#[test]
fn another_engine_sees_and_stops_a_container() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.engine.sandbox().command(["sleep", "1000"]).keep(true).spawn().unwrap();
    let other = Engine::open(lab.root()).unwrap();
    let found = other.find_container(&container.id().to_string()).unwrap();
    assert_eq!(found.info().state, State::Running);
    let waiter = std::thread::spawn(move || {
        found.signal(Signal::KILL).unwrap();
        found.wait().unwrap()
    });
    assert_eq!(container.wait().unwrap().signal(), Some(9));
    assert_eq!(waiter.join().unwrap().signal(), Some(9));
    assert_eq!(container.id(), other.containers().unwrap()[0].id);
    container.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn one_that_runs_is_not_removed_and_goes_on() {
    let Some(lab) = Lab::new() else { return };
    for keep in [false, true] {
        let container = lab.engine.sandbox().command(["sleep", "1000"]).keep(keep).name("busy").spawn().unwrap();
        let pid = container.pid().unwrap();
        assert_eq!(container.remove().unwrap_err().kind(), ErrorKind::Conflict);
        assert!(lives(pid) && container.try_wait().unwrap().is_none());
        container.kill().unwrap();
        container.wait().unwrap();
        container.remove().unwrap();
        lab.assert_clean();
        // Another one may have the name now, and is nobody's to touch.
        let other = lab.engine.sandbox().command(["sleep", "1000"]).keep(keep).name("busy").spawn().unwrap();
        container.remove().unwrap();
        container.kill().unwrap();
        assert_eq!((container.wait().unwrap().signal(), container.info().state), (Some(9), State::Exited));
        assert!(container.snapshot().is_err() && container.changes().is_err());
        assert_eq!(container.usage().unwrap().bytes, 0);
        drop(container);
        let found = lab.engine.find_container("busy").unwrap();
        assert_eq!((found.id(), found.info().state), (other.id(), State::Running));
        assert_eq!(found.remove().unwrap_err().kind(), ErrorKind::Conflict);
        other.kill().unwrap();
        other.wait().unwrap();
        found.remove().unwrap();
        found.remove().unwrap();
        assert_eq!(found.kill().map_err(|error| error.kind()), Ok(()));
        other.close().unwrap();
        lab.assert_clean();
    }
}

#[test]
fn the_pid_goes_with_the_process_whether_somebody_waits_or_not() {
    let Some(lab) = Lab::new() else { return };
    let container = lab.engine.sandbox().command(["sleep", "1000"]).spawn().unwrap();
    let pid = container.pid().unwrap();
    container.kill().unwrap();
    eventually("the process is gone", || !lives(pid));
    eventually("its number is not told any more", || container.pid().is_none());
    assert_eq!(container.wait().unwrap().signal(), Some(9));
}

/// A host program whose standard output takes nothing.
pub fn stopped(root: &str) {
    let engine = Engine::open(root).unwrap();
    let script = "head -c 1000000 /dev/zero";
    let builder = engine.sandbox().command(["/bin/sh", "-c", script]).stdout(coracle::Stdio::Inherit);
    let container = builder.spawn().unwrap();
    let pid = container.pid().unwrap();
    // The first process waits for room, so that it is still there to be killed.
    assert!(container.wait_timeout(Duration::from_millis(100)).unwrap().is_none() && lives(pid));
    container.kill().unwrap();
    let begin = Instant::now();
    while container.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(container.wait_timeout(Duration::from_millis(50)).unwrap().unwrap().signal(), Some(9));
    assert!(begin.elapsed() < Duration::from_secs(20));
    eprintln!("answered");
    // Whoever closes it waits for the last of the output.
    std::process::exit(0);
}

#[test]
fn a_stopped_terminal_keeps_nobody_who_has_a_limit() {
    let Some(lab) = Lab::new() else { return };
    // A pipe with a name is relayed as a terminal is, and when it is full it takes as little.
    let dir = super::support::scratch();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let unread = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut host = super::host::role("stopped", &lab.root());
    let mut host = host.stdout(unread).stderr(Process::piped()).spawn().unwrap();
    eventually("the host program ends", || host.try_wait().unwrap().is_some());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut host.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("answered"), "{said}");
}

/// Makes writing the record of a container fail, for any user.
fn block_record(lab: &Lab, container: &Container) -> PathBuf {
    let path = lab.root().join("containers").join(container.id().to_string()).join("state.json.new");
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
fn a_status_that_cannot_be_written_down_is_told_all_the_same() {
    let Some(lab) = Lab::new() else { return };
    let builder = lab.engine.sandbox().command(["/bin/sh", "-c", "exit 3"]).keep(true);
    let container = builder.spawn().unwrap();
    let block = block_record(&lab, &container);
    assert_eq!(container.wait().unwrap().code(), Some(3));
    assert_eq!(container.wait().unwrap().code(), Some(3));
    // In time for the end, it works again.
    std::fs::remove_dir(&block).unwrap();
    let id = container.id().to_string();
    container.close().unwrap();
    let found = lab.engine.find_container(&id).unwrap();
    assert_eq!(found.wait().unwrap().code(), Some(3));
    found.remove().unwrap();

    let container = builder.spawn().unwrap();
    block_record(&lab, &container);
    assert_eq!(container.wait().unwrap().code(), Some(3));
    let error = container.close().unwrap_err();
    assert!(error.to_string().contains("state.json"), "{error}");
    let left = lab.engine.containers().unwrap().pop().unwrap();
    assert_eq!((left.state, left.exit), (State::Exited, None));
    lab.engine.find_container(&left.id.to_string()).unwrap().remove().unwrap();
    lab.assert_clean();
}

#[test]
fn who_removes_a_container_waits_for_the_word_of_its_owner() {
    let Some(lab) = Lab::new() else { return };
    let other = Engine::open(lab.root()).unwrap();
    let running = lab.engine.sandbox().command(["sleep", "1000"]).keep(true).spawn().unwrap();
    let error = other.find_container(&running.id().to_string()).unwrap().remove().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    running.kill().unwrap();
    running.wait().unwrap();
    running.remove().unwrap();

    for asks in [true, false] {
        let container = lab.engine.sandbox().command(["/bin/sh", "-c", "exit 5"]).keep(true).spawn().unwrap();
        let found = other.find_container(&container.id().to_string()).unwrap();
        eventually("it has ended", || found.info().state == State::Exited);
        // Nobody has asked for its status; looking does not take the time that waiting may.
        let begin = Instant::now();
        assert!(found.try_wait().unwrap().is_none());
        assert!(found.wait_timeout(Duration::from_millis(20)).unwrap().is_none());
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        let late = Duration::from_millis(300);
        std::thread::scope(|scope| {
            if asks {
                scope.spawn(|| {
                    std::thread::sleep(late);
                    container.wait().unwrap();
                });
            }
            let begin = Instant::now();
            found.remove().unwrap();
            assert!(begin.elapsed() >= late, "{:?}", begin.elapsed());
        });
        assert!(other.containers().unwrap().is_empty());
        // That it is gone is no reason not to tell its owner.
        assert_eq!(container.wait().unwrap().code(), Some(5));
        container.close().unwrap();
    }
    lab.assert_clean();
}

/// The host program that is killed: starts containers of every kind, says their pids, and waits for its end.
pub fn victim(root: &str) {
    let engine = Engine::open(root).unwrap();
    let mut commands = vec![
        vec!["sleep", "1000"],
        vec!["/bin/sh", "-c", "sleep 1000 & sleep 1000"],
        // One that takes the parent-death signal away.
        vec!["setpriv", "--pdeathsig", "clear", "sleep", "1000"],
    ];
    if is_root() {
        // One that changes its user, as gosu and su-exec do; the kernel clears the signal then.
        commands.push(vec!["setpriv", "--reuid", "1", "--clear-groups", "sleep", "1000"]);
    }
    let mut kept = vec![];
    for (index, command) in commands.into_iter().enumerate() {
        let lifetime = if index == 1 { Lifetime::Attached } else { Lifetime::Throwaway };
        let container = engine.sandbox().command(command).lifetime(lifetime).keep(index == 0).spawn().unwrap();
        // libtest leaves its own line unfinished.
        println!("\npid {}", container.pid().unwrap());
        kept.push(container);
    }
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

#[test]
fn a_killed_host_takes_its_containers_along() {
    let Some(lab) = Lab::new() else { return };
    let mut host = super::host::role("victim", &lab.root()).stdout(Process::piped()).spawn().unwrap();
    let mut pids = vec![];
    for line in BufReader::new(host.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.strip_prefix("pid ") {
            Some(pid) => pids.push(pid.parse::<u32>().unwrap()),
            None if line == "ready" => break,
            None => {}
        }
    }
    assert!(pids.len() >= 3 && pids.iter().all(|pid| lives(*pid)), "{pids:?}");
    host.kill().unwrap();
    host.wait().unwrap();
    eventually("all of them are gone", || !pids.iter().any(|pid| lives(*pid)));
    // The guardian lets go of the mark when the last one is reaped; then the next open brings everything in order.
    eventually("the root is swept", || {
        let engine = Engine::open(lab.root()).unwrap();
        engine.containers().unwrap().iter().all(|info| info.state == State::Dead)
    });
    let left = lab.engine.containers().unwrap();
    assert_eq!(left.len(), 1, "the one that was to be kept");
    let dead = lab.engine.find_container(&left[0].id.to_string()).unwrap();
    assert!(dead.wait().unwrap_err().to_string().contains("lost"));
    dead.remove().unwrap();
    lab.assert_clean();
}

#[test]
fn a_killed_guardian_is_told_and_replaced() {
    let Some(lab) = Lab::new() else { return };
    let mut host = super::host::role("guardian", &lab.root());
    let output = host.stdin(Process::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn kill_parent_of(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    assert!(Command::new("kill").args(["-9", &parent]).status().unwrap().success());
}

/// A host program whose guardian is killed under it.
pub fn guardian(root: &str) {
    let engine = Engine::open(root).unwrap();
    let container = engine.sandbox().command(["sleep", "1000"]).spawn().unwrap();
    let pid = container.pid().unwrap();
    kill_parent_of(pid);
    let error = container.wait().unwrap_err();
    assert!(error.to_string().contains("guardian"), "{error}");
    eventually("the container is gone", || !lives(pid));
    // One that took the parent-death signal away is ended by its descriptor.
    let command = ["setpriv", "--pdeathsig", "clear", "sleep", "1000"];
    let stubborn = engine.sandbox().command(command).spawn().unwrap();
    let pid = stubborn.pid().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    kill_parent_of(pid);
    assert!(stubborn.wait().unwrap_err().to_string().contains("guardian"));
    assert!(!lives(pid));
    stubborn.close().unwrap();
    assert!(engine.sandbox().command(["/bin/true"]).status().unwrap().success());
}
