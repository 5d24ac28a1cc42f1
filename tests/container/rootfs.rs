//! What a container finds in its tree.

use super::support::{Lab, image, run, scratch, shell, tree, with_programs};

#[test]
fn dev_is_complete_and_nothing_more() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    assert_eq!(
        shell(&image, "ls /dev"),
        "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"
    );
    assert_eq!(shell(&image, "stat -c %t:%T /dev/null /dev/zero /dev/urandom"), "1:3\n1:5\n1:9\n");
    assert_eq!(
        shell(&image, "echo x > /dev/null; head -c 3 /dev/zero | wc -c; stat -fc %T /dev/shm /dev/pts"),
        "3\ntmpfs\ndevpts\n"
    );
}

#[test]
fn kernel_file_systems_are_covered() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    assert_eq!(shell(&image, "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c"), "0\n");
    assert_eq!(shell(&image, "ls /sys/firmware | wc -l"), "0\n");
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let script = format!("(echo x > {path}) 2>/dev/null || echo refused");
        assert_eq!(shell(&image, &script), "refused\n", "{path}");
    }
    assert_eq!(shell(&image, "(mkdir /sys/fs/cgroup/x) 2>/dev/null || echo refused"), "refused\n");
}

/// CVE-2024-21626: a descriptor of the host's that the container finds open.
#[test]
fn descriptors_of_the_host_stay_outside() {
    use std::os::fd::AsRawFd;
    let Some(lab) = Lab::new() else { return };
    // One that the host program left inheritable.
    let leak = std::fs::File::open("/").unwrap();
    // SAFETY: plain integers.
    unsafe { libc::fcntl(leak.as_raw_fd(), libc::F_SETFD, 0) };
    let image = image(&lab.engine);
    // 3 is the directory that ls itself reads.
    assert_eq!(shell(&image, "ls /proc/self/fd"), "0\n1\n2\n3\n");
}

#[test]
fn limits_are_those_of_the_host_program() {
    let Some(lab) = Lab::new() else { return };
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert_eq!(shell(&image(&lab.engine), "ulimit -n").trim(), soft.to_string());
}

#[test]
fn a_directory_needs_no_mount_points_of_its_own() {
    let Some(lab) = Lab::new() else { return };
    let base = tree();
    let sandbox = with_programs(lab.engine.sandbox_over(base.path()));
    assert_eq!(
        run(&sandbox, "echo x > /new; cat /new; test -c /dev/null; test -d /proc/self; ls -d /sys"),
        "x\n/sys\n"
    );
    assert!(!base.path().join("new").exists() && !base.path().join("dev").exists());
}

#[test]
fn paths_of_any_length_and_with_separators_are_roots() {
    let Some(lab) = Lab::new() else { return };
    let place = scratch();
    let long = "l".repeat(200);
    for name in ["a:b,c\\d".to_owned(), format!("{long}/{long}"), format!("x:y,{long}/z\\:{long}")] {
        let base = place.path().join(name);
        std::fs::create_dir_all(&base).unwrap();
        std::fs::write(base.join("here"), "here\n").unwrap();
        for name in ["usr", "bin", "sbin", "lib", "lib64"] {
            match std::fs::read_link(tree().path().join(name)) {
                Ok(link) => std::os::unix::fs::symlink(link, base.join(name)).unwrap(),
                Err(_) => std::fs::create_dir(base.join(name)).unwrap(),
            }
        }
        let sandbox = with_programs(lab.engine.sandbox_over(&base));
        assert_eq!(run(&sandbox, "cat /here; echo x > /here"), "here\n");
        assert_eq!(std::fs::read_to_string(base.join("here")).unwrap(), "here\n");
    }
}

#[test]
fn temporary_files_are_written_and_thrown_away() {
    let Some(lab) = Lab::new() else { return };
    let sandbox = lab.engine.sandbox();
    assert_eq!(run(&sandbox, "echo x > /tmp/coracle-test-new; cat /tmp/coracle-test-new"), "x\n");
    assert!(!std::path::Path::new("/tmp/coracle-test-new").exists());
}

/// `/etc/resolv.conf` of many images leads to where a service would write it; the way there is made.
#[test]
fn links_that_lead_nowhere_are_no_obstacle() {
    use std::os::unix::fs::symlink;
    let Some(lab) = Lab::new() else { return };
    let tree = tree();
    for (target, name) in [
        ("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
        ("/etc/again", "etc/hosts"),
        ("../var/run/hosts", "etc/again"),
        ("../run", "var/run"),
        ("far/away", "job"),
        ("../missing/../hostname", "etc/hostname"),
    ] {
        let at = tree.path().join(name);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
    }
    let image = lab.engine.import(tree.path(), None).unwrap();
    let script = "cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf; grep -c localhost /etc/hosts /run/hosts; pwd; \
                  cat /etc/hostname 2>/dev/null || echo none";
    let out = run(&with_programs(image.container()).workdir("/job/deep"), script);
    let line = "# This container has no network.\n";
    assert_eq!(out, format!("{line}{line}/etc/hosts:2\n/run/hosts:2\n/far/away/deep\nnone\n"));
    lab.assert_clean();
}
