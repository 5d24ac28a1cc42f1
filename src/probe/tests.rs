#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;

/// A tree of files that looks like a host.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    /// An ordinary desktop: uid 1000, subordinate ids, cgroup v2.
    fn ordinary() -> Fake {
        let fake = Fake { directory: tempfile::tempdir().unwrap() };
        let files = BTreeMap::from([
            ("proc/sys/kernel/osrelease", "6.8.0-45-generic\n"),
            (
                "proc/self/status",
                "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1001\t1000\t1000\nCapEff:\t0000000000000000\n\
                 CapBnd:\t000001ffffffffff\nNoNewPrivs:\t0\n",
            ),
            ("proc/self/uid_map", "         0          0 4294967295\n"),
            ("proc/sys/user/max_user_namespaces", "63000\n"),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"),
            ("etc/subuid", "bob:100000:65536\nalice:165536:65536\n1000:300000:10\nalice:4294967290:100\n"),
            ("etc/subgid", "alice:165536:65536\n"),
            ("usr/bin/newuidmap", ""),
            ("usr/bin/newgidmap", ""),
            ("proc/filesystems", "nodev\tsysfs\nnodev\toverlay\n\text4\n"),
            ("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n"),
            ("proc/sys/kernel/seccomp/actions_avail", "kill_process trap errno allow\n"),
            ("proc/sys/vm/memfd_noexec", "0\n"),
            ("sys/devices/system/cpu/possible", "0-3\n"),
        ]);
        for (path, text) in files {
            fake.write(path, text);
        }
        for helper in ["newuidmap", "newgidmap"] {
            fake.chmod(&format!("usr/bin/{helper}"), 0o4755);
        }
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.directory.path().join(path), permissions).unwrap();
    }

    fn host(&self) -> Host {
        Host::read(&Sources { root: self.directory.path().to_owned() })
    }
}

#[test]
fn this_host_can_be_probed_and_every_no_is_explained() {
    let host = Host::probe();
    assert!(host.kernel() > KernelVersion::new(4, 0));
    assert_eq!(host.uid(), nix::unistd::geteuid().as_raw());
    let report = host.report();
    assert_eq!(report.len(), Feature::ALL.len());
    for finding in report {
        assert_eq!(finding.state == State::Yes, finding.cause.is_none(), "{finding}");
        assert_eq!(finding.state == State::Yes, finding.remedy.is_none(), "{finding}");
    }
    assert!(serde_json::to_string(&host.report()).unwrap().contains("\"user-namespaces\""));
}

#[test]
fn without_proc_only_that_is_told() {
    let fake = Fake::ordinary();
    std::fs::remove_dir_all(fake.directory.path().join("proc")).unwrap();
    let report = fake.host().report();
    assert_eq!((report.len(), report[0].what, report[0].state), (1, Feature::Proc, State::No));
    assert!(report[0].remedy.as_deref().unwrap().contains("mount"));
}

#[test]
fn an_ordinary_host_has_it_all() {
    let host = Fake::ordinary().host();
    assert_eq!(host.kernel(), KernelVersion::new(6, 8));
    assert_eq!((host.uid(), host.gid()), (1000, 1001));
    // By name and by number; a range that would wrap is left out, and bob's is not ours.
    let ranges = [IdRange { start: 165536, count: 65536 }, IdRange { start: 300000, count: 10 }];
    assert_eq!(host.subordinate_uids(), ranges);
    assert_eq!(host.finding(Feature::SubordinateIds).state, State::Yes);
    assert_eq!(host.cgroup_mode(), CgroupMode::Unified);
    assert_eq!(host.possible_cpus(), 4);
    assert!(host.has_overlay_append() && host.has_overlay_userxattr());
    assert!(!host.is_root());
    assert!(host.newuidmap().unwrap().ends_with("usr/bin/newuidmap"));
}

#[test]
fn each_user_namespace_limit_is_named() {
    let fake = Fake::ordinary();
    let remedy = |fake: &Fake| fake.host().finding(Feature::UserNamespaces).remedy.unwrap_or_default().into_owned();
    assert_eq!(remedy(&fake), "");
    fake.write("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
    assert_eq!(fake.host().finding(Feature::UserNamespaces).state, State::Partial);
    assert!(remedy(&fake).contains("apparmor_restrict_unprivileged_userns=0"));
    fake.write("proc/sys/kernel/unprivileged_userns_clone", "0\n");
    assert!(remedy(&fake).contains("unprivileged_userns_clone=1"));
    fake.write("proc/sys/user/max_user_namespaces", "0\n");
    assert!(remedy(&fake).contains("max_user_namespaces"));
    let filtered = Host { unshare: Trial::Refused, ..fake.host() };
    assert!(filtered.finding(Feature::UserNamespaces).cause.unwrap().contains("filter"));
    let error = filtered.finding(Feature::UserNamespaces).error("create a user namespace");
    assert!(error.to_string().contains("seccomp=unconfined"));
}

#[test]
fn root_is_not_bound_by_the_knobs_for_others() {
    let fake = Fake::ordinary();
    fake.write("proc/sys/kernel/unprivileged_userns_clone", "0\n");
    let status = "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";
    fake.write("proc/self/status", status);
    let host = fake.host();
    assert!(host.is_root());
    assert_eq!(host.finding(Feature::UserNamespaces).state, State::Yes);
    // The same capabilities in a namespace of one id are not root's.
    fake.write("proc/self/uid_map", "0 1000 1\n");
    let host = fake.host();
    assert!(!host.is_root() && host.mapped_ids == 1);
}

/// The bounding set of `docker run --cap-add SYS_ADMIN` lacks CAP_NET_ADMIN.
#[test]
fn what_root_lacks_is_named() {
    let fake = Fake::ordinary();
    fake.write("proc/sys/kernel/unprivileged_userns_clone", "0\n");
    fake.write("proc/self/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t00000000a82425fb\n");
    let host = fake.host();
    assert!(!host.is_root());
    let finding = host.finding(Feature::Root);
    assert!(finding.cause.unwrap().ends_with("without CAP_NET_ADMIN"));
    // It has what lets it make user namespaces all the same.
    assert_eq!(host.finding(Feature::UserNamespaces).state, State::Yes);
}

#[test]
fn helpers_without_privileges_are_no_helpers() {
    let fake = Fake::ordinary();
    fake.chmod("usr/bin/newgidmap", 0o755);
    let host = fake.host();
    assert_eq!(host.newgidmap(), None);
    assert!(host.finding(Feature::SubordinateIds).cause.unwrap().contains("set-uid"));
    std::fs::remove_file(fake.directory.path().join("usr/bin/newuidmap")).unwrap();
    assert!(fake.host().finding(Feature::SubordinateIds).cause.unwrap().contains("newuidmap is not installed"));
    fake.write("etc/subgid", "");
    assert!(fake.host().finding(Feature::SubordinateIds).cause.unwrap().contains("/etc/subgid grants uid 1000"));
}

#[test]
fn few_ids_and_no_new_privs_are_told() {
    let fake = Fake::ordinary();
    fake.write("etc/subuid", "alice:165536:1000\n");
    assert_eq!(fake.host().finding(Feature::SubordinateIds).state, State::Partial);
    let host = Host { no_new_privs: true, ..fake.host() };
    assert!(host.finding(Feature::SubordinateIds).cause.unwrap().contains("no_new_privs"));
}

#[test]
fn old_kernels_and_missing_modules() {
    let fake = Fake::ordinary();
    fake.write("proc/sys/kernel/osrelease", "5.10.0\n");
    let host = fake.host();
    assert!(!host.has_overlay_append() && !host.has_overlay_userxattr());
    assert_eq!(host.finding(Feature::OverlayUnprivileged).state, State::No);
    fake.write("proc/filesystems", "\text4\n");
    assert_eq!(fake.host().finding(Feature::Overlay).state, State::No);
    fake.write("lib/modules/5.10.0/kernel/fs/overlayfs/overlay.ko.xz", "");
    assert_eq!(fake.host().finding(Feature::Overlay).state, State::Yes);
    assert!(host.finding(Feature::Landlock).cause.unwrap().contains("5.13"));
}

#[test]
fn cgroup_modes() {
    let of = CgroupMode::of_mountinfo;
    let v1 = "33 31 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    let v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 none rw\n";
    assert_eq!(of(""), CgroupMode::None);
    assert_eq!(of(v1), CgroupMode::Legacy);
    assert_eq!(of(v2), CgroupMode::Unified);
    assert_eq!(of(&format!("{v1}{v2}")), CgroupMode::Hybrid);
    // A mount point of that name is no cgroup.
    assert_eq!(of("1 1 0:1 / /cgroup2 rw - tmpfs cgroup rw\n"), CgroupMode::None);
}

#[test]
fn an_empty_host_is_all_explained_noes() {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::read(&Sources { root: directory.path().to_owned() });
    assert_eq!(host.possible_cpus(), 1);
    for feature in [Feature::UserNamespaces, Feature::Overlay, Feature::Cgroups, Feature::Seccomp, Feature::Landlock] {
        let finding = host.finding(feature);
        assert_eq!(finding.state, State::No, "{finding}");
        assert!(finding.cause.is_some() && finding.remedy.is_some());
    }
}

/// Root of `docker run`: no CAP_SYS_ADMIN, and a filter that lets nobody make namespaces or mounts.
#[test]
fn each_rung_says_what_keeps_it_out_of_reach() {
    let fake = Fake::ordinary();
    let rung = |host: &Host, what| (host.finding(what).state, host.finding(what).to_string());
    let ordinary = Host { landlock_abi: Some(7), ..fake.host() };
    assert_eq!(rung(&ordinary, Feature::NamespaceIsolation).0, State::Yes);
    assert_eq!(rung(&ordinary, Feature::LandlockIsolation).0, State::Yes);
    assert!(rung(&ordinary, Feature::ChrootIsolation).1.contains("run this program as root"));
    fake.write("proc/self/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n");
    let in_docker = Host { unshare: Trial::Refused, open_tree: Trial::Refused, landlock_abi: Some(4), ..fake.host() };
    let (state, words) = rung(&in_docker, Feature::NamespaceIsolation);
    assert!(state == State::No && words.contains("seccomp=unconfined"), "{words}");
    let (state, words) = rung(&in_docker, Feature::LandlockIsolation);
    assert!(state == State::Partial && words.contains("6.12"), "{words}");
    assert_eq!(rung(&in_docker, Feature::ChrootIsolation).0, State::Yes);
    let filtered = Host { landlock: Trial::Missing, landlock_abi: None, ..in_docker };
    assert!(rung(&filtered, Feature::LandlockIsolation).1.contains("landlock_create_ruleset"));
    fake.write("proc/self/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapEff:\t0000000000000000\n");
    assert!(rung(&fake.host(), Feature::ChrootIsolation).1.contains("CAP_SYS_CHROOT"));
}

#[test]
fn the_range_to_ask_for_is_nobody_elses() {
    let fake = Fake::ordinary();
    fake.write("etc/subuid", "bob:100000:65536\ncarol:300000:10\n");
    let finding = fake.host().finding(Feature::SubordinateIds);
    let remedy = finding.remedy.unwrap();
    assert!(remedy.contains("--add-subuids 300010-365545") && remedy.ends_with(" alice"), "{remedy}");
}

#[test]
fn an_id_that_is_not_mapped_makes_no_namespace() {
    let fake = Fake::ordinary();
    fake.write("proc/self/uid_map", "");
    let finding = fake.host().finding(Feature::UserNamespaces);
    assert!(finding.state == State::No && finding.cause.unwrap().contains("does not map"));
}
