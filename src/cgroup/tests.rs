#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::limits::{Version, weight_of_shares};
use super::*;
use crate::probe::CgroupMode;

const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const HYBRID_GROUPS: &str = "\
9:name=systemd:/
4:memory:/a/b
1:cpu,cpuacct:/
0::/user.slice/x.scope
";

fn find(hierarchies: &Hierarchies, controllers: Controllers) -> &hierarchies::Hierarchy {
    hierarchies.all.iter().find(|one| one.controllers.contains(controllers)).unwrap()
}

#[test]
fn hierarchies_are_found_where_mountinfo_says() {
    let found = Hierarchies::parse(HYBRID_MOUNTS, HYBRID_GROUPS);
    assert_eq!(found.mode(), CgroupMode::Hybrid);
    assert_eq!(found.all.len(), 3);
    let memory = find(&found, Controllers::MEMORY);
    assert_eq!(memory.own.as_deref(), Ok(Path::new("/sys/fs/cgroup/memory/a/b")));
    let cpu = find(&found, Controllers::CPU.union(Controllers::CPUACCT));
    assert_eq!(cpu.own.as_deref(), Ok(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
    let v2 = found.all.iter().find(|one| one.version == Version::V2).unwrap();
    assert_eq!(v2.own.as_deref(), Ok(Path::new("/sys/fs/cgroup/unified/user.slice/x.scope")));
}

#[test]
fn a_mount_may_begin_inside_the_hierarchy() {
    // As in a container without a cgroup namespace: the mount shows /docker/abc as its root, and a space is escaped.
    let mounts = "35 31 0:32 /docker/abc /sys/fs/c\\040group ro,relatime - cgroup cgroup rw,memory\n";
    let own = |group: &str| find(&Hierarchies::parse(mounts, group), Controllers::MEMORY).own.clone();
    assert_eq!(own("4:memory:/docker/abc\n"), Ok(PathBuf::from("/sys/fs/c group")));
    assert_eq!(own("4:memory:/docker/abc/in\n"), Ok(PathBuf::from("/sys/fs/c group/in")));
    assert!(own("4:memory:/docker/abcd\n").unwrap_err().cause.contains("outside"));
    assert!(own("4:memory:/docker/abc/../x\n").unwrap_err().cause.contains("outside"));
    // Mounted twice, the writable view that shows our group is taken.
    let twice = format!("{mounts}36 31 0:32 / /rw rw - cgroup cgroup rw,memory\n");
    let found = Hierarchies::parse(&twice, "4:memory:/docker/abc\n");
    assert_eq!(find(&found, Controllers::MEMORY).own, Ok(PathBuf::from("/rw/docker/abc")));
    // A broken line is nobody's group.
    assert_eq!(Hierarchies::parse("garbage\n1 2 - cgroup", "x\n:\n").mode(), CgroupMode::None);
}

#[test]
fn limits_become_the_files_of_each_version() {
    let limits = Limits {
        memory: Some(1 << 20),
        swap: Some(Swap::Bytes(4096)),
        cpu_quota: Some(CpuQuota::cpus(1.5)),
        cpu_shares: Some(1024),
        pids: Some(7),
        ..Limits::default()
    };
    let files = |version| -> Vec<(&str, String)> {
        let all = limits.kinds().into_iter().flat_map(|kind| limits.settings(kind, version));
        all.map(|setting| (setting.file, setting.value)).collect()
    };
    let owned = |pairs: &[(&'static str, &str)]| -> Vec<(&str, String)> {
        pairs.iter().map(|(file, value)| (*file, (*value).to_owned())).collect()
    };
    assert_eq!(
        files(Version::V1),
        owned(&[
            ("memory.limit_in_bytes", "1048576"),
            ("memory.memsw.limit_in_bytes", "1052672"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "150000"),
            ("cpu.shares", "1024"),
            ("pids.max", "7"),
        ])
    );
    assert_eq!(
        files(Version::V2),
        owned(&[
            ("memory.max", "1048576"),
            ("memory.swap.max", "4096"),
            ("cpu.max", "150000 100000"),
            ("cpu.weight", "100"),
            ("pids.max", "7"),
        ])
    );
    assert_eq!(CpuQuota::cpus(f64::NAN).quota_us, 1000);
}

#[test]
fn shares_become_weights_through_the_three_fixed_points() {
    assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
    assert_eq!([0, u64::MAX].map(weight_of_shares), [1, 10_000]);
    let mut last = 0;
    for shares in (2..262_144).step_by(1000) {
        let weight = weight_of_shares(shares);
        assert!(weight >= last);
        last = weight;
    }
}

#[test]
fn dockers_device_rules_as_version_1_lines() {
    let Devices::Only(rules) = Devices::docker_2026_11() else { unreachable!() };
    let lines: Vec<String> = rules.iter().map(DeviceRule::v1_line).collect();
    assert_eq!(lines[0], "c *:* m");
    assert_eq!(lines[2], "c 1:3 rwm");
    assert_eq!(lines.last().unwrap(), "c 136:* rwm");
}

#[test]
fn names_cannot_leave_the_directory() {
    for name in ["", ".", "..", "a/b", "a b", "memory.max", "a\0", &"x".repeat(129)] {
        assert!(check_name(name).is_err(), "{name:?}");
    }
    assert!(check_name(&"f".repeat(64)).is_ok());
}

// ---- version 2 on a directory tree that looks like one -------------------------------------------------------------

/// A version 2 hierarchy of ordinary files. It has no kernel behind it, so a group's files are laid out beforehand.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    fn new(controllers: &str) -> Fake {
        let fake = Fake { directory: tempfile::tempdir().unwrap() };
        for group in ["own", "own/coracle"] {
            fake.group(group, controllers);
        }
        fake
    }

    fn group(&self, path: &str, controllers: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("cgroup.controllers"), controllers).unwrap();
        for file in ["cgroup.subtree_control", "cgroup.procs", "cgroup.kill", "cgroup.freeze"] {
            std::fs::write(path.join(file), "").unwrap();
        }
        std::fs::write(path.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }

    fn driver(&self) -> Direct {
        let mounts = format!("41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n", self.directory.path().display());
        Direct::new(Hierarchies::parse(&mounts, "0::/own\n"), Parent::Own)
    }
}

#[test]
fn v2_passes_controllers_down_one_by_one() {
    let fake = Fake::new("cpuset cpu io memory pids");
    let driver = fake.driver();
    let all = Controllers::MEMORY.union(Controllers::PIDS).union(Controllers::CPU).union(Controllers::CPUSET);
    assert_eq!(driver.available(), all);
    assert!(driver.unavailable().is_empty());
    // Separate writes land on each other in an ordinary file; the last one shows.
    assert_eq!(fake.read("own/cgroup.subtree_control"), "+cpuset");
    assert_eq!(fake.read("own/coracle/cgroup.subtree_control"), "+cpuset");
}

#[test]
fn v2_names_what_is_not_passed_down() {
    let fake = Fake::new("pids");
    let driver = fake.driver();
    assert_eq!(driver.available(), Controllers::PIDS);
    let unavailable = driver.unavailable();
    let memory = unavailable.iter().find(|one| one.limit == Limit::Memory).unwrap();
    assert!(memory.to_string().contains("not passed down") && memory.to_string().contains("Delegate="), "{memory}");
    let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
    let group = driver.create("one", &Request { limits, ..Request::default() }).unwrap();
    assert_eq!(group.unenforced().iter().map(|one| one.limit).collect::<Vec<_>>(), [Limit::Memory]);
    assert!(group.clone_into_fd().is_some() && group.join_fds().is_empty() && group.can_kill());
    // The name is taken now, and nothing of it was touched.
    let again = driver.create("one", &Request::default()).unwrap_err();
    assert_eq!(again.kind(), crate::ErrorKind::AlreadyExists);
    assert!(fake.path("own/coracle/one").exists());
    assert_eq!(driver.list().unwrap(), ["one"]);
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(driver.open("one").unwrap().is_none());
}

#[test]
fn v2_limits_stats_and_kill_use_the_right_files() {
    let fake = Fake::new("memory pids cpu");
    let driver = fake.driver();
    fake.group("own/coracle/two", "");
    // As the kernel would show it after the group was made.
    std::fs::write(fake.path("own/coracle/cgroup.subtree_control"), "cpu memory pids\n").unwrap();
    let files = ["memory.max", "memory.swap.max", "pids.max", "cpu.max"];
    for file in files {
        std::fs::write(fake.path("own/coracle/two").join(file), "").unwrap();
    }
    let group = driver.open("two").unwrap().unwrap();
    let limits = Limits {
        memory: Some(65536),
        swap: Some(Swap::Bytes(0)),
        pids: Some(3),
        cpu_quota: Some(CpuQuota::cpus(0.5)),
        memory_reservation: Some(1),
        ..Limits::default()
    };
    let unenforced = group.update(&limits).unwrap();
    // memory.low is missing in this tree, as on an old kernel.
    assert_eq!(unenforced.iter().map(|one| one.limit).collect::<Vec<_>>(), [Limit::MemoryReservation]);
    let written = files.map(|file| fake.read(&format!("own/coracle/two/{file}")));
    assert_eq!(written, ["65536", "0", "3", "50000 100000"]);

    for (file, text) in [
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.events", "low 0\noom 1\noom_kill 2\noom_group_kill 0\n"),
        ("pids.current", "5\n"),
        ("cpu.stat", "usage_usec 77\nuser_usec 70\n"),
    ] {
        std::fs::write(fake.path("own/coracle/two").join(file), text).unwrap();
    }
    let expected =
        Stats { memory: Some(4096), memory_peak: Some(8192), oom_kills: Some(2), pids: Some(5), cpu_usec: Some(77) };
    assert_eq!(group.stats().unwrap(), expected);

    assert!(group.is_empty().unwrap());
    std::fs::write(fake.path("own/coracle/two/cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
    assert!(!group.is_empty().unwrap());
    group.freeze().unwrap();
    assert_eq!(fake.read("own/coracle/two/cgroup.freeze"), "1");
    group.kill().unwrap();
    assert_eq!(fake.read("own/coracle/two/cgroup.kill"), "1");
}

#[test]
fn v2_threaded_groups_are_told() {
    let fake = Fake::new("memory pids");
    std::fs::write(fake.path("own/coracle/cgroup.type"), "domain invalid\n").unwrap();
    let driver = fake.driver();
    assert!(driver.available().is_empty());
    let unavailable = driver.unavailable();
    assert!(unavailable.iter().any(|one| one.limit == Limit::Kill));
    assert!(unavailable.iter().all(|one| one.cause.contains("threaded")), "{unavailable:?}");
    let group = driver.create("three", &Request::default()).unwrap();
    assert!(!group.can_kill() && group.paths().is_empty());
    assert_eq!(group.kill().unwrap_err().kind(), crate::ErrorKind::Unsupported);
}

#[test]
fn no_hierarchy_at_all_is_a_value_too() {
    let driver = Direct::new(Hierarchies::parse("", ""), Parent::Own);
    let limits = Limits { pids: Some(1), ..Limits::default() };
    let group = driver.create("x", &Request { limits, ..Request::default() }).unwrap();
    let told: Vec<Limit> = group.unenforced().iter().map(|one| one.limit).collect();
    assert_eq!(told, [Limit::Pids, Limit::Kill]);
    assert!(group.unenforced()[0].to_string().contains("no cgroup file system"));
    group.remove().unwrap();
}

// ---- the hierarchies of this machine -------------------------------------------------------------------------------

fn parents_called(name: &str) -> Vec<PathBuf> {
    let all = Hierarchies::detect().unwrap().all;
    all.into_iter().filter_map(|one| one.own.ok()).map(|own| own.join(name)).filter(|path| path.exists()).collect()
}

/// Groups in a directory of this test's own, which is taken away at the end.
struct Native {
    driver: Direct,
    name: String,
}

impl Native {
    fn new() -> Native {
        Native::on(Hierarchies::detect().unwrap())
    }

    /// As on a host without version 2: the freezer has to do.
    fn legacy() -> Native {
        let mut hierarchies = Hierarchies::detect().unwrap();
        hierarchies.all.retain(|one| one.version == Version::V1);
        Native::on(hierarchies)
    }

    fn on(hierarchies: Hierarchies) -> Native {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coracle-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Native { driver: Direct::new(hierarchies, Parent::OwnNamed(name.clone())), name }
    }

    /// Its own directories that are there.
    fn parents(&self) -> Vec<PathBuf> {
        parents_called(&self.name)
    }

    /// Where this user may make groups; elsewhere every limit must be reported, which is checked instead.
    fn usable(&self) -> bool {
        if self.driver.available().contains(Controllers::MEMORY.union(Controllers::PIDS)) {
            return true;
        }
        let limits = Limits { memory: Some(1 << 24), pids: Some(4), ..Limits::default() };
        let group = self.driver.create("reported", &Request { limits, ..Request::default() }).unwrap();
        let told: Vec<Limit> = group.unenforced().iter().map(|one| one.limit).collect();
        for limit in [Limit::Memory, Limit::Pids] {
            assert_eq!(!self.driver.available().contains(limit.controller()), told.contains(&limit), "{limit:?}");
        }
        for one in group.unenforced() {
            assert!(!one.cause.is_empty(), "{one}");
        }
        group.remove().unwrap();
        false
    }
}

#[test]
fn looking_for_a_group_makes_no_directory() {
    let native = Native::new();
    assert!(native.driver.open("nobody").unwrap().is_none());
    assert!(native.driver.list().unwrap().is_empty());
    assert_eq!(native.parents(), Vec::<PathBuf>::new());
}

#[test]
fn the_next_user_takes_along_what_a_killed_program_left() {
    let native = Native::new();
    let killed = Direct::new(Hierarchies::detect().unwrap(), Parent::OwnNamed(native.name.clone()));
    let all = Controllers::MEMORY.union(Controllers::PIDS).union(Controllers::CPU);
    let group = killed.create("one", &Request { track: all, ..Request::default() }).unwrap();
    group.remove().unwrap();
    let left = native.parents();
    assert_eq!(left.is_empty(), group.paths().is_empty());
    // Its last words are never said.
    std::mem::forget((killed, group));
    let (name, driver) = (native.name.clone(), native.driver);
    drop(driver);
    assert_eq!(parents_called(&name), Vec::<PathBuf>::new());
}

/// A shell that joins as the launcher's child does, and then runs `script`.
fn spawn_in(group: &Group, script: &str) -> Child {
    let procs = group.open_v2_procs().unwrap();
    let fds: Vec<i32> =
        group.join_fds().iter().map(AsRawFd::as_raw_fd).chain(procs.iter().map(AsRawFd::as_raw_fd)).collect();
    // Through procfs: the descriptors themselves are close-on-exec.
    let pid = std::process::id();
    let joins: String = fds.iter().map(|fd| format!("echo 0 > /proc/{pid}/fd/{fd}; ")).collect();
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{joins} echo in; {script}")).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    child
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_group_lives_and_dies() {
    lives_and_dies(&Native::new());
}

#[test]
fn a_group_lives_and_dies_without_version_2() {
    let native = Native::legacy();
    lives_and_dies(&native);
}

fn lives_and_dies(native: &Native) {
    if !native.usable() {
        return;
    }
    let limits = Limits { memory: Some(64 << 20), pids: Some(32), ..Limits::default() };
    let group = native.driver.create("life", &Request { limits, ..Request::default() }).unwrap();
    assert_eq!(group.unenforced(), []);
    assert!(group.is_empty().unwrap());

    let mut child = spawn_in(&group, "sleep 60 & sleep 60 & wait");
    wait_until("both sleeps are in", || group.processes().unwrap().len() == 3);
    assert!(group.processes().unwrap().contains(&(child.id() as i32)));
    assert!(!group.is_empty().unwrap());
    let stats = group.stats().unwrap();
    assert_eq!(stats.pids, Some(3));
    assert!(stats.memory_peak.unwrap() > 0);
    assert_eq!(stats.oom_kills, Some(0));

    // Another value finds it again, as after a restart of the program.
    let found = native.driver.open("life").unwrap().unwrap();
    assert_eq!(found.processes().unwrap().len(), 3);
    assert!(native.driver.list().unwrap().contains(&"life".to_owned()));

    group.freeze().unwrap();
    group.thaw().unwrap();
    group.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    group.remove().unwrap();
    group.remove().unwrap();
    for path in group.paths() {
        assert!(!path.exists(), "{path:?}");
    }
}

#[test]
fn the_last_driver_takes_the_parent_along_and_the_next_makes_it_again() {
    let name = format!("coracle-shared-{}", std::process::id());
    let driver = || Direct::new(Hierarchies::detect().unwrap(), Parent::OwnNamed(name.clone()));
    let request = Request { track: Controllers::PIDS, ..Request::default() };
    let first = driver();
    let parent_of = |group: &Group| group.paths().first().and_then(|path| path.parent()).map(Path::to_path_buf);
    let group = first.create("one", &request).unwrap();
    let Some(parent) = parent_of(&group) else { return };
    drop(driver());
    assert!(parent.exists(), "a group is in it");
    group.remove().unwrap();
    drop(group);
    // Another program has it open and goes.
    drop(std::fs::remove_dir(&parent));
    assert!(!parent.exists());
    assert_eq!(first.list().unwrap(), Vec::<String>::new());
    let group = first.create("two", &request).unwrap();
    assert!(group.paths().iter().all(|path| path.exists()));
    group.remove().unwrap();
    drop((group, first));
    assert!(!parent.exists());

    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (driver, request) = (&driver, &request);
            scope.spawn(move || {
                for round in 0..100 {
                    let driver = driver();
                    let group = driver.create(&format!("g{thread}-{round}"), request).unwrap();
                    assert!(group.can_kill() && !group.paths().is_empty());
                    group.remove().unwrap();
                }
            });
        }
    });
    assert!(!parent.exists());
}

#[test]
fn the_pids_limit_holds() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let limits = Limits { pids: Some(2), ..Limits::default() };
    let group = native.driver.create("pids", &Request { limits, ..Request::default() }).unwrap();
    let mut child = spawn_in(&group, "(sleep 30; :) & (sleep 30; :) & (sleep 30; :) & wait");
    // dash gives up at the first fork that fails.
    wait_until("a fork fails", || {
        let over = group.stats().unwrap().pids.unwrap() <= 2;
        over && child.try_wait().unwrap().is_some()
    });
    group.kill().unwrap();
    group.remove().unwrap();
}

#[test]
fn the_memory_limit_kills_and_is_counted() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let limits = Limits { memory: Some(8 << 20), swap: Some(Swap::Bytes(0)), ..Limits::default() };
    let group = native.driver.create("memory", &Request { limits, ..Request::default() }).unwrap();
    // tail keeps the last line, which never ends.
    let mut child = spawn_in(&group, "exec tail -n 1 /dev/zero");
    wait_until("the kernel kills it", || child.try_wait().unwrap().is_some());
    let stats = group.stats().unwrap();
    assert!(stats.oom_kills.unwrap() >= 1, "{stats:?}");
    assert!(stats.memory_peak.unwrap() <= 8 << 20, "{stats:?}");
    group.remove().unwrap();
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    // No machine has this CPU; the kernel refuses the list after the directories are made.
    let limits = Limits { cpuset_cpus: Some("99999".to_owned()), ..Limits::default() };
    let request = Request { limits, ..Request::default() };
    if native.driver.available().contains(Controllers::CPUSET) {
        let error = native.driver.create("half", &request).unwrap_err();
        assert!(error.to_string().contains("cpuset.cpus"), "{error}");
        assert!(native.driver.list().unwrap().is_empty());
    }
    let swap = Limits { swap: Some(Swap::Bytes(0)), ..Limits::default() };
    assert!(native.driver.create("swap", &Request { limits: swap, ..Request::default() }).is_err());
    assert!(native.driver.list().unwrap().is_empty());
}

#[test]
fn remove_says_that_processes_are_left_and_can_be_called_again() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let group = native.driver.create("busy", &Request { track: Controllers::PIDS, ..Request::default() }).unwrap();
    let mut child = spawn_in(&group, "exec sleep 60");
    let error = group.remove().unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Conflict);
    assert!(error.to_string().contains("processes are still in it"), "{error}");
    group.kill().unwrap();
    // Not even reaped yet: the retries cover the moment until it is gone.
    group.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn groups_that_the_workload_made_are_removed_and_killed_too() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let group = native.driver.create("nest", &Request::default()).unwrap();
    for path in group.paths() {
        std::fs::create_dir_all(path.join("inner/most")).unwrap();
    }
    let inner = group.paths()[0].join("inner/most/cgroup.procs");
    let mut child = spawn_in(&group, &format!("echo 0 > {}; exec sleep 60", inner.display()));
    wait_until("it is inside", || group.processes().unwrap().contains(&(child.id() as i32)));
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
}

#[test]
fn every_limit_can_be_set_where_its_controller_is() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let limits = Limits {
        memory: Some(64 << 20),
        swap: Some(Swap::Bytes(0)),
        memory_reservation: Some(32 << 20),
        cpu_quota: Some(CpuQuota::cpus(0.5)),
        cpu_shares: Some(512),
        pids: Some(10),
        cpuset_cpus: Some("0".to_owned()),
        cpuset_mems: Some("0".to_owned()),
    };
    let request = Request { limits, track: Controllers::CPU, devices: Devices::docker_2026_11() };
    let group = native.driver.create("all", &request).unwrap();
    for one in group.unenforced() {
        assert!(!native.driver.available().contains(one.limit.controller()) || one.limit == Limit::Devices, "{one}");
    }
    let mut child = spawn_in(&group, "cat /dev/null; exec sleep 60");
    // Up and down again; version 1 wants both orders of memory and memory + swap.
    for memory in [256 << 20, 32 << 20] {
        let limits = Limits { memory: Some(memory), swap: Some(Swap::Bytes(0)), ..Limits::default() };
        assert_eq!(group.update(&limits).unwrap(), []);
    }
    assert!(group.stats().unwrap().cpu_usec.is_some());
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
}

#[test]
fn device_rules_hold() {
    let native = Native::new();
    if native.usable() {
        rules_hold(&native);
    }
}

/// As on a host with version 2 alone: a program decides.
#[test]
fn device_rules_hold_on_version_2() {
    let mut hierarchies = Hierarchies::detect().unwrap();
    hierarchies.all.retain(|one| one.version == Version::V2);
    let native = Native::on(hierarchies);
    if nix::unistd::geteuid().is_root() && native.driver.v2().is_some() {
        rules_hold(&native);
    } else {
        eprintln!("SKIP: no version 2 group can be given a program here");
    }
}

fn rules_hold(native: &Native) {
    let node = |minor, access| DeviceRule { access, ..DeviceRule::node(DeviceKind::Character, 1, minor) };
    let read = Access { read: true, write: false, mknod: false };
    let devices = Devices::Only(vec![node(3, Access::ALL), node(9, read)]);
    let group = native.driver.create("devices", &Request { devices, ..Request::default() }).unwrap();
    let lost: Vec<_> = group.unenforced().iter().filter(|one| one.limit == Limit::Devices).collect();
    if !lost.is_empty() {
        eprintln!("SKIP: {lost:?}");
        assert!(std::env::var_os("CORACLE_NO_SKIP").is_none() || !nix::unistd::geteuid().is_root());
        return group.remove().unwrap();
    }
    let script = "head -c1 /dev/null && head -c1 /dev/urandom >/dev/null && echo read
                  (echo >/dev/null) && ! (echo >/dev/urandom) 2>/dev/null && echo write
                  ! head -c1 /dev/zero 2>/dev/null >&2 && echo others";
    let output = spawn_in(&group, script).wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "read\nwrite\nothers\n");
    group.remove().unwrap();
}

#[test]
fn device_rules_become_a_program_without_loops() {
    let Devices::Only(rules) = Devices::docker_2026_11() else { unreachable!() };
    let program = super::devices::program(&rules);
    assert!(program.len() < 128);
    for (at, [code, _, low, high, ..]) in program.iter().enumerate() {
        let offset = i16::from_ne_bytes([*low, *high]);
        let jumps = *code == 0x56;
        assert_eq!(jumps, jumps && offset > 0);
        assert!(!jumps || at + 1 + (offset as usize) < program.len());
    }
    assert_eq!(program.last().unwrap()[0], 0x95);
}

#[cfg(feature = "cgroups-rs")]
#[test]
fn the_crates_driver_sets_the_same_limits() {
    let native = Native::new();
    if !native.usable() {
        return;
    }
    let other = CgroupsRs::new(Hierarchies::detect().unwrap(), Parent::OwnNamed(native.name.clone()));
    let limits = Limits {
        memory: Some(64 << 20),
        swap: Some(Swap::Bytes(0)),
        memory_reservation: Some(32 << 20),
        cpu_quota: Some(CpuQuota::cpus(0.5)),
        cpu_shares: Some(512),
        pids: Some(10),
        cpuset_cpus: Some("0".to_owned()),
        cpuset_mems: Some("0".to_owned()),
    };
    let request = Request { limits, ..Request::default() };
    let ours = native.driver.create("ours", &request).unwrap();
    let theirs = other.create("theirs", &request).unwrap();
    assert_eq!(ours.unenforced(), theirs.unenforced());
    for (ours, theirs) in ours.paths().iter().zip(theirs.paths()) {
        for file in [
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "pids.max",
            "cpu.cfs_quota_us",
            "cpu.shares",
            "cpuset.cpus",
            "cpuset.mems",
        ] {
            let read = |path: &Path| std::fs::read_to_string(path.join(file)).ok();
            assert_eq!(read(ours), read(&theirs), "{file}");
        }
    }
    let mut child = spawn_in(&theirs, "exec sleep 60");
    theirs.kill().unwrap();
    child.wait().unwrap();
    ours.remove().unwrap();
    theirs.remove().unwrap();
    let wrong = Limits { cpuset_cpus: Some("99999".to_owned()), ..Limits::default() };
    if other.available().contains(Controllers::CPUSET) {
        let error = other.create("wrong", &Request { limits: wrong, ..Request::default() }).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid, "{error}");
        assert!(other.list().unwrap().is_empty());
    }
}
