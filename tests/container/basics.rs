//! Command, environment, user, working directory, streams, status.

use std::io::{Read, Write};
use std::time::Duration;

use coracle::container::{Mount, Network, Signal};
use coracle::isolation::{Aspect, Level, Requirement};
use coracle::{ErrorKind, Stdio};

use super::shared::skip::other_user;
use super::support::{Lab, image, is_root, run, shell, with_programs};

#[test]
fn an_image_runs_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    assert_eq!(shell(&image, "cat /etc/os-release"), "NAME=lab\n");
    lab.assert_clean();
    // Its writes were its own.
    shell(&image, "echo x > /etc/new; rm /etc/os-release; mkdir -p /a/b/c; chmod 0 /a/b");
    assert_eq!(shell(&image, "ls /etc"), "group\nhostname\nhosts\nos-release\npasswd\nresolv.conf\n");
    lab.assert_clean();
}

#[test]
fn the_host_is_shown_and_not_touched() {
    let Some(lab) = Lab::new() else { return };
    let marker = format!("coracle-{}", std::process::id());
    run(&lab.engine.sandbox(), &format!("echo x > /tmp/{marker}; cat /tmp/{marker}; test -e /etc/passwd"));
    assert!(!std::path::Path::new("/tmp").join(&marker).exists());
    if is_root() {
        run(&lab.engine.sandbox(), &format!("echo x > /etc/{marker}; rm -f /etc/passwd; test ! -e /etc/passwd"));
        assert!(!std::path::Path::new("/etc").join(&marker).exists());
        assert!(std::path::Path::new("/etc/passwd").exists());
    }
    lab.assert_clean();
}

#[test]
fn namespaces_are_its_own() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let inside = shell(&image, "for n in mnt pid uts ipc net cgroup; do readlink /proc/self/ns/$n; done");
    for (line, name) in inside.lines().zip(["mnt", "pid", "uts", "ipc", "net", "cgroup"]) {
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(line, ours.to_str().unwrap());
    }
    assert_eq!(shell(&image, "echo $$"), "1\n");
    assert_eq!(shell(&image, "cat /sys/class/net/lo/flags"), "0x9\n");
    assert_eq!(run(&with_programs(image.container()).hostname("box"), "hostname; cat /etc/hostname"), "box\nbox\n");
    let host = with_programs(image.container()).network(Network::Host);
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(run(&host, "readlink /proc/self/ns/net").trim(), ours.to_str().unwrap());
}

/// The second launch and later ones may find a network namespace that was made for them beforehand.
#[test]
fn every_network_namespace_is_new() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let mut seen = vec![format!("{host}\n")];
    let mut living = vec![];
    for turn in 0..6 {
        let script = "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags; ls /sys/class/net; exec sleep 1000";
        let builder = with_programs(image.container()).command(["/bin/sh", "-ec", script]).stdout(Stdio::Piped);
        let mut container = builder.spawn().unwrap();
        let mut reader = std::io::BufReader::new(container.stdout.take().unwrap());
        let mut line = || {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
            line
        };
        let namespace = line();
        assert!(namespace.starts_with("net:[") && !seen.contains(&namespace), "{turn}: {namespace} in {seen:?}");
        seen.push(namespace);
        assert_eq!((line().as_str(), line().as_str()), ("0x9\n", "lo\n"));
        living.push(container);
        // In between, others are where they want to be.
        let on_host = with_programs(image.container()).network(Network::Host);
        assert_eq!(run(&on_host, "readlink /proc/self/ns/net").trim(), host);
    }
    for container in living {
        container.kill().unwrap();
        container.wait().unwrap();
    }
}

#[test]
fn a_user_is_who_the_image_says() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let as_user = |user: &str| run(&with_programs(image.container()).user(user), "id -u; id -g; echo $HOME");
    assert_eq!(as_user("bob"), "1000\n1000\n/home/bob\n");
    assert_eq!(as_user("1000"), "1000\n1000\n/home/bob\n");
    assert_eq!(as_user("7:8"), "7\n8\n/\n");
    let refused = |user: &str| with_programs(image.container()).user(user).command(["/bin/true"]).output().unwrap_err();
    assert_eq!(refused("nobody-here").kind(), ErrorKind::NotFound);
    assert_eq!(refused("4294967296").kind(), ErrorKind::Invalid);
    assert_eq!(refused("-1").kind(), ErrorKind::Invalid);
    if lab.engine.identity() == "rootless with a range" {
        let error = refused("3000000000");
        assert!(error.to_string().contains("subuid"), "{error}");
    }
}

#[test]
fn environment_and_directory_are_put_together_as_docker_does() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let odd = with_programs(image.container()).workdir("/fresh/./a/../b/");
    assert_eq!(run(&odd, "pwd"), "/fresh/b\n");
    let builder = with_programs(image.container()).env("A", "b c").env("HOME", "/x").workdir("/made/on/the/way");
    assert_eq!(
        run(&builder, "echo $A; echo $HOME; pwd; echo $PATH"),
        "b c\n/x\n/made/on/the/way\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    );
    if lab.engine.identity() != "rootless with one id" {
        let made = with_programs(image.container()).workdir("/made/by").user("bob");
        assert_eq!(run(&made, "stat -c '%u:%g %a' ."), "0:0 755\n");
    }
    let error = with_programs(image.container()).workdir("relative").command(["/bin/true"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = with_programs(image.container()).workdir("/etc/passwd").command(["/bin/true"]).output().unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
    let error = image.container().output().unwrap_err();
    assert!(error.to_string().contains("no command was given"), "{error}");
    lab.assert_clean();
}

#[test]
fn commands_that_cannot_run_say_why() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let refused = |command: &str| with_programs(image.container()).command([command]).output().unwrap_err();
    let error = refused("no-such-command");
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    assert!(error.to_string().contains("PATH"), "{error}");
    assert_eq!(refused("/no/such/command").kind(), ErrorKind::CommandNotFound);
    assert_eq!(refused("/etc/passwd").kind(), ErrorKind::CommandNotExecutable);
    assert_eq!(refused("/etc").kind(), ErrorKind::CommandNotExecutable);
    lab.assert_clean();
}

#[test]
fn streams_are_complete_and_apart() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let out = with_programs(image.container())
        .command(["/bin/sh", "-c", "head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2; exit 3"])
        .output()
        .unwrap();
    assert_eq!((out.stdout.len(), out.stderr.len(), out.status.code()), (3_000_000, 2_000_000, Some(3)));
    let mut container =
        with_programs(image.container()).command(["cat"]).stdin(Stdio::Piped).stdout(Stdio::Piped).spawn().unwrap();
    let mut input = container.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let block = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            input.write_all(&block).unwrap();
        }
    });
    let mut count = 0;
    let mut buffer = vec![0; 1 << 16];
    let mut output = container.stdout.take().unwrap();
    loop {
        match output.read(&mut buffer).unwrap() {
            0 => break,
            n => {
                assert!(buffer[..n].iter().all(|byte| *byte == b'x'));
                count += n;
            }
        }
    }
    writer.join().unwrap();
    assert_eq!(count, 100 << 20);
    assert!(container.wait().unwrap().success());
    // Once ended, the answer stays the same.
    assert!(container.try_wait().unwrap().unwrap().success());
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn a_user_can_open_its_own_streams() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).user("bob");
    assert_eq!(run(&builder, "echo out > /dev/stdout"), "out\n");
}

#[test]
fn signals_and_stop() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut container =
        with_programs(image.container()).command(["/bin/sh", "-c", script]).stdout(Stdio::Piped).spawn().unwrap();
    let mut line = [0; 6];
    container.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(container.stop(Duration::from_secs(60)).unwrap().code(), Some(5));
    // pid 1 without a handler ignores the polite signal; then comes the other one.
    let container = with_programs(image.container()).command(["sleep", "1000"]).spawn().unwrap();
    assert_eq!(container.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    assert_eq!(container.stop(Duration::from_millis(50)).unwrap().signal(), Some(9));
    // With an init in front it does not.
    let container = with_programs(image.container()).command(["sleep", "1000"]).init(true).spawn().unwrap();
    assert_eq!(container.stop(Duration::from_secs(60)).unwrap().shell_code(), 128 + 15);
    container.signal(Signal::TERM).unwrap();
}

#[test]
fn an_init_reaps_orphans() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let script = "(sleep 0.01 &) ; sleep 0.2; grep -h ^State /proc/[0-9]*/status | grep -c zombie || true; exit 0";
    assert_eq!(run(&with_programs(image.container()).init(true), script), "0\n");
}

#[test]
fn mounts_bind_and_memory() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let host = super::support::scratch();
    std::fs::write(host.path().join("file"), "from the host").unwrap();
    let bound = |mount: Mount| with_programs(image.container()).mount(mount);
    assert_eq!(
        run(&bound(Mount::bind(host.path(), "/new/place")), "cat /new/place/file; echo x > /new/place/out"),
        "from the host"
    );
    assert!(host.path().join("out").exists());
    let sealed = bound(Mount::bind(host.path(), "/m").read_only());
    assert_eq!(run(&sealed, "touch /m/x 2>/dev/null || echo refused"), "refused\n");
    assert_eq!(run(&bound(Mount::bind(host.path().join("file"), "/one")), "cat /one"), "from the host");
    assert_eq!(
        run(
            &bound(Mount::tmpfs("/scratch").option("size=64k")),
            "stat -fc %T /scratch; head -c 100000 /dev/zero > /scratch/x 2>/dev/null || echo full"
        ),
        "tmpfs\nfull\n"
    );
    let missing = bound(Mount::bind("/no/such/source", "/m")).command(["/bin/true"]).output().unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("/no/such/source"), "{missing}");
    lab.assert_clean();
}

#[test]
fn a_read_only_root_is_read_only() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).read_only(true).mount(Mount::tmpfs("/tmp"));
    assert_eq!(run(&builder, "touch /x 2>/dev/null || echo refused; touch /tmp/y && echo fine"), "refused\nfine\n");
}

#[test]
fn enforcement_is_a_value_and_less_is_an_error() {
    let Some(lab) = Lab::new() else { return };
    let sandbox = lab.engine.sandbox().command(["/bin/true"]);
    let enforcement = sandbox.enforcement().unwrap();
    for aspect in [Aspect::FilesystemRead, Aspect::Processes, Aspect::Network, Aspect::Privileges] {
        assert_eq!(enforcement.level(aspect), Level::Full, "{aspect}");
    }
    // Over the host's tree there may be a mount that cannot be overlaid, with sockets in it.
    let write = enforcement.level(Aspect::FilesystemWrite);
    assert!(write >= Level::Partial);
    assert_eq!(write == Level::Partial, enforcement.reason(Aspect::FilesystemWrite).contains("sockets"));
    let image = image(&lab.engine).container().command(["/bin/true"]).enforcement().unwrap();
    assert_eq!(image.level(Aspect::FilesystemWrite), Level::Full);
    lab.assert_clean();
    if !is_root() {
        assert_eq!(enforcement.level(Aspect::Limits), Level::None);
        let strict = Requirement::default().at_least(Aspect::Limits, Level::Full);
        let error = sandbox.clone().require(strict).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Weaker);
        assert!(error.to_string().contains("limits"), "{error}");
        lab.assert_clean();
    }
}

#[test]
fn ids_of_a_range_are_there() {
    let Some(lab) = Lab::new() else { return };
    if lab.engine.identity() == "rootless with one id" {
        return other_user("a user with subordinate ids");
    }
    let image = image(&lab.engine);
    assert_eq!(shell(&image, "touch /tmp/x; chown 33:44 /tmp/x; stat -c %u:%g /tmp/x"), "33:44\n");
    shell(&image, "mkdir -p /tmp/a/b/c; touch /tmp/a/b/c/d; chown -R 1000:1000 /tmp/a; chmod 700 /tmp/a/b");
    lab.assert_clean();
}

#[test]
fn groups_that_stay_in_force_are_reported() {
    let dir = super::support::scratch();
    let engine = coracle::EngineOptions::new(dir.path().join("root")).single_id(true).open().unwrap();
    if engine.identity() != "rootless with one id" {
        return other_user("anybody but root");
    }
    let gid = nix::unistd::getegid();
    let groups: Vec<_> = nix::unistd::getgroups().unwrap().into_iter().filter(|group| *group != gid).collect();
    let enforcement = engine.sandbox().command(["/bin/true"]).enforcement().unwrap();
    let reason = enforcement.reason(Aspect::Privileges);
    assert_eq!(reason.contains("supplementary groups"), !groups.is_empty(), "{reason}");
}

#[test]
fn clones_have_streams_of_their_own() {
    let Some(lab) = Lab::new() else { return };
    let (mut one, to_one) = std::io::pipe().unwrap();
    let (mut two, to_two) = std::io::pipe().unwrap();
    let first = lab.engine.sandbox().command(["/bin/echo", "one"]).stdout(to_one);
    let second = first.clone().command(["/bin/echo", "two"]).stdout(to_two);
    let third = first.clone().command(["/bin/echo", "three"]);
    for builder in [&second, &first, &third] {
        assert!(builder.status().unwrap().success());
    }
    let mut text = String::new();
    one.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\nthree\n");
    text.clear();
    two.read_to_string(&mut text).unwrap();
    assert_eq!(text, "two\n");
    lab.assert_clean();
}

/// CVE-2022-31030: output without end must not take the host's memory.
#[test]
fn output_is_captured_up_to_a_limit() {
    let Some(lab) = Lab::new() else { return };
    let builder = || lab.engine.sandbox().output_limit(100_000);
    let exact = builder().command(["head", "-c", "100000", "/dev/zero"]).output().unwrap();
    assert_eq!(exact.stdout.len(), 100_000);
    let more = builder().command(["head", "-c", "100001", "/dev/zero"]).output().unwrap_err();
    assert_eq!(more.kind(), ErrorKind::Limit);
    for (script, name) in [("cat /dev/zero", "standard output"), ("cat /dev/zero >&2", "standard error")] {
        let error = builder().command(["sh", "-c", script]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains("output_limit = 100000") && error.to_string().contains(name), "{error}");
        let piped = builder().command(["sh", "-c", script]).stdout(Stdio::Piped).stderr(Stdio::Piped);
        assert_eq!(piped.spawn().unwrap().wait_with_output().unwrap_err().kind(), ErrorKind::Limit);
    }
    lab.assert_clean();
}
