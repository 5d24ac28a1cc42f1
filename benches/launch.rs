//! The full life of `true` from an image: snapshot, namespaces, control group, system call filter, pivot, exec, wait,
//! everything removed. Beside it a floor: raw system calls that do the same work with nothing around them.
#![allow(clippy::unwrap_used, clippy::panic, unsafe_code, missing_docs)]

mod support;

use std::ffi::CString;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use support::{Candidate, compare};

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("launch: the floor needs root; skipped");
        return;
    }
    let dir = support::scratch();
    let tree = dir.path().join("tree");
    for name in ["bin", "proc", "sys", "dev", "etc"] {
        std::fs::create_dir_all(tree.join(name)).unwrap();
    }
    let program = tree.join("bin/true");
    for (path, waits) in [(&program, false), (&tree.join("bin/wait"), true)] {
        std::fs::write(path, support::tiny_program(waits)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    let engine = coracle::Engine::open(dir.path().join("root")).unwrap();
    let image = engine.import(tree.as_path(), None).unwrap();
    let container = image.container().command(["/bin/true"]);
    println!("{}", container.enforcement().unwrap());
    let ours = || assert!(container.status().unwrap().success());
    let floor = Floor::new(dir.path(), &tree);

    for (title, pause, turns) in [("back to back", 0, 500), ("50 ms between launches", 50, 40)] {
        compare(
            &format!("image -> true -> gone, {title}"),
            turns,
            Duration::from_millis(pause),
            vec![
                Candidate { name: "floor: raw system calls", turn: Box::new(|| floor.run()) },
                Candidate { name: "coracle", turn: Box::new(ours) },
            ],
        );
    }
    for threads in [1, 16, 64] {
        concurrently(threads, &container);
    }
    let waiting = image.container().command(["/bin/wait"]).stdin(coracle::Stdio::Piped).spawn().unwrap();
    let exec = waiting.exec().command(["/bin/true"]);
    let further = || assert!(exec.status().unwrap().success());
    compare(
        "true in a container that runs",
        500,
        Duration::ZERO,
        vec![
            Candidate { name: "floor: raw system calls", turn: Box::new(|| enter(waiting.pid().unwrap())) },
            Candidate { name: "coracle exec", turn: Box::new(further) },
        ],
    );
    many_at_once(&exec);
    // A host program with much memory: what a plain fork would have to copy page tables for.
    let gib: usize = if support::is_trial() { 1 } else { 4 };
    let mut ballast = vec![0u8; gib << 30];
    for page in ballast.chunks_mut(4096) {
        page[0] = 1;
    }
    compare(
        &format!("the same from a host program of {gib} GiB"),
        100,
        Duration::ZERO,
        vec![
            Candidate { name: "a plain fork of the host program", turn: Box::new(fork) },
            Candidate { name: "coracle", turn: Box::new(ours) },
            Candidate { name: "coracle exec", turn: Box::new(further) },
        ],
    );
    drop(std::hint::black_box(ballast));
    waiting.close().unwrap();
}

/// How long a launch takes while others are under way. Two processors do two things at a time: with more threads, each
/// launch waits for the others.
fn concurrently(threads: usize, container: &coracle::ContainerBuilder) {
    let turns = if support::is_trial() { 2 } else { 1024 / threads.max(4) };
    let begin = std::time::Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let container = container.clone();
                scope.spawn(move || {
                    let one = |_| {
                        let begin = std::time::Instant::now();
                        assert!(container.status().unwrap().success());
                        begin.elapsed()
                    };
                    (0..turns).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    times.sort();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let at = |percent: usize| millis(times[(times.len() * percent / 100).min(times.len() - 1)]);
    support::fact(&format!(
        "{threads} launches at a time: median {:.2} ms, p99 {:.2} ms, worst {:.2} ms, {rate:.0} a second",
        at(50),
        at(99),
        at(100)
    ));
}

/// A thousand commands that all run at the same time.
fn many_at_once(exec: &coracle::container::ExecBuilder) {
    let begin = std::time::Instant::now();
    let count = if support::is_trial() { 100 } else { 1000 };
    std::thread::scope(|scope| {
        for thread in 0..20 {
            let waiting = exec.clone().command(["/bin/wait"]);
            scope.spawn(move || {
                let share = count / 20 + usize::from(thread < count % 20);
                let start = |_| waiting.clone().stdin(coracle::Stdio::Piped).spawn().unwrap();
                let mut all: Vec<_> = (0..share).map(start).collect();
                all.iter_mut().for_each(|one| drop(one.stdin.take()));
                assert!(all.iter().all(|one| one.wait().unwrap().success()));
            });
        }
    });
    println!("{count} commands at once in one container: {:.3} s", begin.elapsed().as_secs_f64());
}

/// setns(2) by pidfd, a fork for the pid namespace, exec, wait.
fn enter(pid: u32) {
    let kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    let wait = |child: i32| {
        let mut status = 0;
        // SAFETY: a child of ours and a live integer.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        status
    };
    // SAFETY: plain integers; the children call only the kernel, on live C strings, and end in exec or exit.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        let child = libc::fork();
        if child == 0 {
            if libc::setns(pidfd, kinds) < 0 {
                libc::_exit(1);
            }
            let inside = libc::fork();
            if inside == 0 {
                let argv = [c"true".as_ptr(), std::ptr::null()];
                libc::execve(c"/bin/true".as_ptr(), argv.as_ptr(), argv[1..].as_ptr());
                libc::_exit(127);
            }
            libc::_exit(libc::WEXITSTATUS(wait(inside)));
        }
        assert_eq!(wait(child), 0);
        libc::close(pidfd);
    }
}

fn fork() {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        0 => unsafe { libc::_exit(0) },
        child => {
            // SAFETY: a child of ours; a null status is allowed.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

/// What the floor needs, prepared once as far as it can be.
struct Floor {
    home: std::path::PathBuf,
    groups: Vec<std::path::PathBuf>,
    options: CString,
    merged: CString,
    filter: Vec<u64>,
}

impl Floor {
    fn new(home: &Path, tree: &Path) -> Floor {
        let home = home.join("floor");
        std::fs::create_dir(&home).unwrap();
        // The groups that ours uses: version 2, and pids on version 1 where that is mounted.
        let mut groups = vec![];
        for mount in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            let mount = Path::new(mount);
            if mount.join("cgroup.procs").exists() {
                groups.push(mount.join("coracle-floor"));
            }
        }
        let at = |name: &str| home.join(name).to_str().unwrap().to_owned();
        let options = format!("lowerdir={},upperdir={},workdir={},volatile", tree.display(), at("upper"), at("work"));
        let merged = CString::new(at("merged")).unwrap();
        std::fs::create_dir(home.join("merged")).unwrap();
        // As many instructions as docker's filter has, all of them harmless: load, then compare, then allow.
        let mut filter = vec![0x20u64];
        for number in 0..296u64 {
            // jeq #(1000 + number), 0, 0
            filter.push(0x15 | (1000 + number) << 32);
        }
        filter.push(6 | 0x7fff_0000 << 32);
        Floor { home, groups, options: CString::new(options).unwrap(), merged, filter }
    }

    fn run(&self) {
        for name in ["upper", "work"] {
            std::fs::create_dir(self.home.join(name)).unwrap();
        }
        // Version 1: the child writes itself down. Version 2: it is born inside.
        let (mut tasks, mut born) = (vec![], None);
        for group in &self.groups {
            std::fs::create_dir(group).unwrap();
            match std::fs::File::options().write(true).open(group.join("tasks")) {
                Ok(file) => tasks.push(file),
                Err(_) => born = Some(std::fs::File::open(group).unwrap()),
            }
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let flags =
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET;
        // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack (3 words), set_tid (2), cgroup.
        let mut arguments = [0u64; 11];
        arguments[0] = flags as u64;
        arguments[4] = libc::SIGCHLD as u64;
        if let Some(group) = &born {
            const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
            arguments[0] |= CLONE_INTO_CGROUP;
            arguments[10] = group.as_raw_fd() as u64;
        }
        // SAFETY: no stack and no shared memory: a fork. The child calls only the kernel.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
        if pid == 0 {
            // SAFETY: see above; it ends in exec or exit.
            unsafe { self.child(&tasks) }
        }
        drop(writer);
        std::io::Read::read(&mut reader, &mut [0]).unwrap();
        let mut status = 0;
        // SAFETY: a child of ours and a live integer.
        unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
        assert_eq!(status, 0, "the floor failed at step {}", libc::WEXITSTATUS(status));
        for group in &self.groups {
            while std::fs::remove_dir(group).is_err() {
                std::thread::yield_now();
            }
        }
        for name in ["upper", "work"] {
            std::fs::remove_dir_all(self.home.join(name)).unwrap();
        }
    }

    /// # Safety
    ///
    /// Runs in a forked copy: only system calls on prepared values.
    unsafe fn child(&self, tasks: &[std::fs::File]) -> ! {
        // SAFETY: all pointers are to live C strings and structures.
        unsafe {
            let check = |step: i32, result: i64| {
                if result < 0 {
                    libc::_exit(step);
                }
            };
            let null = std::ptr::null();
            for file in tasks {
                check(1, libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) as i64);
            }
            check(2, libc::unshare(libc::CLONE_NEWCGROUP).into());
            let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
            check(3, libc::mount(none, root, null, libc::MS_REC | libc::MS_PRIVATE, null.cast()).into());
            let merged = self.merged.as_ptr();
            let overlay = c"overlay".as_ptr();
            check(4, libc::mount(overlay, merged, overlay, 0, self.options.as_ptr().cast()).into());
            check(5, libc::chdir(merged).into());
            for (kind, target, data) in
                [(c"proc", c"proc", c""), (c"sysfs", c"sys", c""), (c"tmpfs", c"dev", c"mode=755")]
            {
                check(6, libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()).into());
            }
            for (kind, target) in [(c"devpts", c"dev/pts"), (c"tmpfs", c"dev/shm"), (c"mqueue", c"dev/mqueue")] {
                check(7, libc::mkdir(target.as_ptr(), 0o755).into());
                check(8, libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, null.cast()).into());
            }
            for (name, device) in
                [(c"dev/null", 3), (c"dev/zero", 5), (c"dev/full", 7), (c"dev/random", 8), (c"dev/urandom", 9)]
            {
                check(9, libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, device)).into());
            }
            check(10, libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()));
            check(11, libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into());
            check(12, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into());
            let program = [self.filter.len() as u64, self.filter.as_ptr() as u64];
            check(13, libc::syscall(libc::SYS_seccomp, 1, 0, program.as_ptr()));
            let argv = [c"true".as_ptr(), null];
            libc::execve(c"/bin/true".as_ptr(), argv.as_ptr(), argv[1..].as_ptr());
            libc::_exit(14)
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = std::io::stdout().flush();
    }
}
