//! Launch plans that are none: broken anywhere, cut, mixed, or of bytes that somebody made up. The carried program refuses
//! what it cannot read, does nothing beyond what a step says, dies of no fault of its own, and its guardian goes on.
//!
//! Plans are walked in a world of their own, by nobody: every namespace is new, the tree is empty and in memory. Without
//! root there is no such world, and nothing is tried.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use coracle::fuzzing::{Walked, sample_plans, walk_plan};
use libfuzzer_sys::fuzz_target;

/// The way to the world, where there is one.
static WORLD: Mutex<Option<UnixStream>> = Mutex::new(None);

fuzz_target!(
    init: {
        *WORLD.lock().unwrap() = world();
    },
    |bytes: &[u8]| {
        let Some((kind, bytes)) = bytes.split_first() else { return };
        let plan = match kind % 2 {
            0 => bytes.to_vec(),
            _ => changed(bytes),
        };
        let mut world = WORLD.lock().unwrap();
        let Some(stream) = world.as_mut() else { return };
        let mut answer = [0; 8];
        stream.write_all(&(plan.len() as u32).to_ne_bytes()).unwrap();
        stream.write_all(&plan).unwrap();
        stream.read_exact(&mut answer).expect("the world did not survive the plan, or does not answer");
        let signal = i32::from_ne_bytes(answer[4..].try_into().unwrap());
        // Limits that a plan sets may kill, and so may its filter.
        let limited = steps(&plan).any(|(op, _)| op == 22);
        let fault = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];
        assert!(limited || !fault.contains(&signal), "the first process died of signal {signal}");
    }
);

/// Where the steps of a plan begin, and what they are.
fn steps(plan: &[u8]) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
    let mut at = 24;
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(plan.get(at..at + 4)?.try_into().ok()?));
        let (op, length) = (word(at)?, word(at + 4)? as usize);
        let begin = at;
        at = at.checked_add(8)?.checked_add(length)?;
        (at <= plan.len()).then_some((op, begin..at))
    })
}

/// A plan as it should be, and then changes, three words each: what, where, with what.
fn changed(bytes: &[u8]) -> Vec<u8> {
    let samples = sample_plans();
    let mut words = bytes.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]) as usize);
    let mut next = || words.next();
    let mut plan = samples[next().unwrap_or(1) % samples.len()].clone();
    while let (Some(what), Some(place), Some(value)) = (next(), next(), next()) {
        let all: Vec<_> = steps(&plan).map(|(_, range)| range).collect();
        let length = plan.len().max(1);
        match what % 6 {
            0 => plan[place % length] = value as u8,
            // A word, where words are: small ones, and the edges of what fits.
            1 => {
                let at = (place % length) & !3;
                let edges = [0, 1, u32::MAX, u32::MAX - 7, i32::MAX as u32, 1 << 16, value as u32];
                if let Some(word) = plan.get_mut(at..at + 4) {
                    word.copy_from_slice(&edges[value % edges.len()].to_ne_bytes());
                }
            }
            2 => plan.truncate(place % length),
            3 if !all.is_empty() => drop(plan.drain(all[place % all.len()].clone())),
            4 if !all.is_empty() => {
                let step = plan[all[place % all.len()].clone()].to_vec();
                let at = all[value % all.len()].start;
                plan.splice(at..at, step);
            }
            5 if !all.is_empty() => {
                let at = all[place % all.len()].start;
                plan[at..at + 4].copy_from_slice(&(value as u32 % 110).to_ne_bytes());
            }
            _ => {}
        }
        if plan.is_empty() {
            break;
        }
    }
    plan
}

/// Starts the process that walks the plans.
fn world() -> Option<UnixStream> {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("plan: without root there is no place to walk plans in");
        return None;
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    // SAFETY: no thread but this one has been started yet; the child goes on as a program of its own and never returns.
    match unsafe { libc::fork() } {
        0 => {
            drop(ours);
            enter();
            // The first process of the pid namespace has to be another.
            // SAFETY: as above.
            if unsafe { libc::fork() } == 0 {
                // SAFETY: integers only.
                must(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) });
                furnish();
                walk_all(theirs);
            }
            drop(theirs);
            // SAFETY: waits for its only child, and ends.
            unsafe {
                libc::wait(std::ptr::null_mut());
                libc::_exit(0)
            }
        }
        child => assert!(child > 0),
    }
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Some(ours)
}

fn must(result: i32) {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
}

/// New namespaces, as nobody outside of them.
fn enter() {
    let nobody = 65_534;
    // SAFETY: integers, and C strings that live for the call.
    unsafe {
        must(libc::setgroups(0, std::ptr::null()));
        must(libc::setresgid(nobody, nobody, nobody));
        must(libc::setresuid(nobody, nobody, nobody));
        must(libc::prctl(libc::PR_SET_DUMPABLE, 1));
        // A change of ids takes it away.
        must(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        let all = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        must(libc::unshare(all));
    }
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {nobody} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {nobody} 1")).unwrap();
}

/// An empty tree as the root.
fn furnish() {
    let mount = |source: &std::ffi::CStr, target: &std::ffi::CStr, kind: &std::ffi::CStr, flags| {
        // SAFETY: C strings that live for the call.
        must(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, c"".as_ptr().cast()) });
    };
    mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE);
    mount(c"tmpfs", c"/mnt", c"tmpfs", 0);
    for name in ["proc", "dev", "tmp", "work"] {
        std::fs::create_dir(format!("/mnt/{name}")).unwrap();
    }
    std::fs::write("/mnt/dev/null", "").unwrap();
    mount(c"/dev/null", c"/mnt/dev/null", c"", libc::MS_BIND);
    mount(c"proc", c"/mnt/proc", c"proc", 0);
    std::env::set_current_dir("/mnt").unwrap();
    // SAFETY: C strings that live for the call.
    unsafe {
        must(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32);
        must(libc::umount2(c".".as_ptr(), libc::MNT_DETACH));
    }
    std::env::set_current_dir("/").unwrap();
    // SAFETY: nobody else reads the environment in this process.
    unsafe { std::env::set_var("TMPDIR", "/tmp") };
}

fn walk_all(mut stream: UnixStream) -> ! {
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let good = &sample_plans()[0];
    let mut count = 0u64;
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            std::process::exit(0);
        }
        let mut plan = vec![0; u32::from_ne_bytes(length) as usize];
        stream.read_exact(&mut plan).unwrap();
        let dir = File::open("/work").unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let fds: [BorrowedFd<'_>; 4] = [dir.as_fd(), null.as_fd(), reader.as_fd(), writer.as_fd()];
        let walked = walk_plan(&plan, &fds).unwrap();
        count += 1;
        // Whatever came of it, the next plan is walked.
        if count % 16 == 0 {
            assert_eq!(walk_plan(good, &fds).unwrap(), Walked::Ended(Ok(0)));
        }
        let signal = match walked {
            Walked::Ended(Err(signal)) => signal,
            _ => 0,
        };
        let mut answer = [0; 8];
        answer[4..].copy_from_slice(&signal.to_ne_bytes());
        stream.write_all(&answer).unwrap();
    }
}
