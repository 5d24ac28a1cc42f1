//! Further commands in a container that runs.

use std::io::{Read, Write};
use std::time::Duration;

use coracle::container::{Container, Network};
use coracle::{Engine, ErrorKind, Stdio};

use super::support::{Lab, image, with_programs};

/// A container of the lab's image that waits.
fn waiting(lab: &Lab) -> Container {
    let image = image(&lab.engine);
    with_programs(image.container()).command(["sleep", "1000"]).env("LAB", "yes").spawn().unwrap()
}

fn says(container: &Container, script: &str) -> String {
    let out = container.exec().command(["sh", "-c", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Its namespaces, privileges, limits and filter, by a command that shows those of the process that runs it.
const LOOK: &str = "for n in mnt pid uts ipc net cgroup user; do readlink /proc/self/ns/$n; done; \
                    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Umask)' /proc/self/status; cat /proc/self/cgroup; pwd; \
                    echo $LAB $HOME; ulimit -a";

#[test]
fn a_further_command_is_the_containers_equal() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let builder = with_programs(image.container()).env("LAB", "yes").workdir("/home");
    let script = format!("({LOOK}) > /tmp/look; : > /tmp/done; exec sleep 1000");
    let container = builder.command(["sh", "-c", &script]).spawn().unwrap();
    let found = lab.engine.find_container(container.id().as_str()).unwrap();
    let first = says(&container, "until test -e /tmp/done; do sleep 0.01; done; cat /tmp/look");
    for container in [&container, &found] {
        assert_eq!(says(container, LOOK), first);
    }
    // It sees the others and is seen, and has nothing but its streams.
    assert_eq!(says(&container, "tr '\\0' ' ' < /proc/1/cmdline"), "sleep 1000 ");
    let open = says(&container, "ls /proc/self/fd | wc -l").trim().parse::<u32>().unwrap();
    assert!(open <= 4, "{open}");
    assert_eq!(says(&container, "exec 2>/dev/null; ps x >/dev/null; cat /proc/self/stat | cut -d' ' -f7"), "0\n");
    drop(found);
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn options_change_what_it_is_started_with() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let exec = || container.exec().command(["sh", "-c", "echo $LAB-$NEW-$(pwd)"]);
    let out = |builder: coracle::container::ExecBuilder| String::from_utf8(builder.output().unwrap().stdout).unwrap();
    assert_eq!(out(exec()), "yes--/\n");
    assert_eq!(out(exec().env("LAB", "no").env("NEW", "new").workdir("/home/bob")), "no-new-/home/bob\n");
    assert_eq!(out(exec().env_remove("LAB")), "--/\n");
    let user = container.exec().command(["sh", "-c", "id -u; id -g; echo $HOME"]).user("bob").output();
    match lab.engine.identity() {
        "rootless with one id" => assert_eq!(user.unwrap_err().kind(), ErrorKind::Unsupported),
        _ => assert_eq!(String::from_utf8(user.unwrap().stdout).unwrap(), "1000\n1000\n/home/bob\n"),
    }
    let kind = |builder: coracle::container::ExecBuilder| builder.output().unwrap_err().kind();
    assert_eq!(kind(exec().user("nobody-knows")), ErrorKind::NotFound);
    assert_eq!(kind(exec().workdir("/not/there")), ErrorKind::NotFound);
    assert_eq!(kind(exec().workdir("home")), ErrorKind::Invalid);
    assert_eq!(kind(exec().env("A=B", "")), ErrorKind::Invalid);
    assert_eq!(kind(container.exec()), ErrorKind::Invalid);
    assert_eq!(kind(container.exec().command(["no-such-command"])), ErrorKind::CommandNotFound);
    assert_eq!(kind(container.exec().command(["/etc/passwd"])), ErrorKind::CommandNotExecutable);
    assert_eq!(container.exec().command(["sh", "-c", "exit 7"]).status().unwrap().code(), Some(7));
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn streams_are_its_own_and_complete() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let exec = container.exec().command(["sh", "-c", "cat; echo error >&2"]);
    let mut exec = exec.stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped).spawn().unwrap();
    exec.stdin.take().unwrap().write_all(b"input").unwrap();
    let out = exec.wait_with_output().unwrap();
    assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"input"[..], &b"error\n"[..]));
    // More than a pipe holds, and an end that no background process delays.
    let script = "sleep 1000 & head -c 3000000 /dev/zero; echo end";
    let out = container.exec().command(["sh", "-c", script]).output().unwrap();
    assert_eq!(out.stdout.len(), 3_000_004);
    assert!(out.stdout.ends_with(b"end\n"));
    let many = container.exec().command(["sh", "-c", "cat /dev/zero"]).output_limit(100_000).output().unwrap_err();
    assert_eq!(many.kind(), ErrorKind::Limit);
    // What it reads and writes by default is the container's own null device.
    let mut null = container.exec().command(["sh", "-c", "cat; test -c /dev/stdin && echo ok >&2"]);
    null = null.stderr(Stdio::Piped);
    let mut spawned = null.spawn().unwrap();
    let mut text = String::new();
    spawned.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "ok\n");
    assert!(spawned.wait().unwrap().success());
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn it_ends_with_its_value_and_with_its_container() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let sleeping = || container.exec().command(["sleep", "1000"]).spawn().unwrap();
    let exec = sleeping();
    assert_eq!(exec.try_wait().unwrap(), None);
    assert_eq!(exec.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    exec.kill().unwrap();
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    exec.signal(coracle::container::Signal::TERM).unwrap();
    let seen = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    let exec = sleeping();
    let pid = exec.pid();
    assert!(seen(pid));
    drop(exec);
    let mut tries = 0;
    while seen(pid) && tries < 1000 {
        std::thread::sleep(Duration::from_millis(10));
        tries += 1;
    }
    assert!(!seen(pid));
    let exec = sleeping();
    container.kill().unwrap();
    container.wait().unwrap();
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    for container in [&container, &lab.engine.find_container(container.id().as_str()).unwrap()] {
        let error = container.exec().command(["true"]).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    drop(exec);
    container.close().unwrap();
    lab.assert_clean();
}

/// Some ends come while the second process is not yet known as the first one's successor.
#[test]
fn many_at_once_all_tell_how_they_ended() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let container = &container;
            scope.spawn(move || {
                for turn in 0..20 {
                    let code = (thread * 20 + turn) % 256;
                    let script = format!("echo {code}; exit {code}");
                    let out = container.exec().command(["sh", "-c", &script]).output().unwrap();
                    assert_eq!((out.status.code(), out.stdout), (Some(code), format!("{code}\n").into_bytes()));
                }
            });
        }
    });
    container.close().unwrap();
    lab.assert_clean();
}

/// Root of the container may have put anything where its null device was.
#[test]
fn a_null_device_that_is_none_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    for script in [
        "rm /dev/null; echo x > /dev/null",
        "rm /dev/null; mkfifo /dev/null",
        "rm /dev/null; ln -s zero /dev/null",
        "rm /dev/null",
    ] {
        // A mount, which takes this capability to be undone.
        let builder = with_programs(image.container()).cap_add("SYS_ADMIN");
        let script = format!("umount -l /dev/null && ({script}); exec sleep 1000");
        let container = builder.command(["sh", "-c", &script]).spawn().unwrap();
        let mut tries = 0;
        let refused = loop {
            match container.exec().command(["true"]).spawn() {
                // Not there yet.
                Ok(_) if tries < 10_000 => std::thread::sleep(Duration::from_millis(1)),
                Ok(_) => panic!("{script}: it is not refused"),
                Err(error) => break error,
            }
            tries += 1;
        };
        assert_eq!(refused.kind(), ErrorKind::Hostile, "{script}: {refused}");
        container.close().unwrap();
    }
    lab.assert_clean();
}

/// CVE-2016-9962: what is being set up in a container cannot be traced or read from inside; and by root that may trace
/// anybody nothing is found in it that the command will not have.
#[test]
fn cve_2016_9962_who_enters_cannot_be_traced() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    // Looks at every process that appears, as long as there is time: what descriptors of ours show.
    let watch = "for i in $(seq 200); do for p in /proc/[0-9]*; do \
                 case $(readlink $p/exe 2>/dev/null) in *coracle*) ls -l $p/fd 2>/dev/null | sed -n 's/.* -> //p';; esac; \
                 done; done; :";
    for may_trace in [false, true] {
        let mut builder = with_programs(image.container()).command(["sleep", "1000"]);
        if may_trace {
            builder = builder.cap_add("SYS_PTRACE");
        }
        let container = builder.spawn().unwrap();
        let watcher = container.exec().command(["sh", "-c", watch]).stdout(Stdio::Piped).spawn().unwrap();
        while watcher.try_wait().unwrap().is_none() {
            assert!(container.exec().command(["true"]).status().unwrap().success());
        }
        let out = String::from_utf8(watcher.wait_with_output().unwrap().stdout).unwrap();
        let harmless = |link: &str| may_trace && (link == "/dev/null" || link.starts_with("pipe:["));
        assert!(out.lines().all(harmless), "{out}");
        container.close().unwrap();
    }
    lab.assert_clean();
}

/// Without no-new-privileges the filter is installed with rights that the container's processes must not come by.
#[test]
fn where_a_trace_would_win_rights_nothing_enters() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let mut profile = coracle::security::Profile::DEFAULT_2026_11;
    profile.no_new_privs = false;
    for (may_trace, refused) in [(false, false), (true, true)] {
        let mut builder = with_programs(image.container()).command(["sleep", "1000"]).profile(profile.clone());
        if may_trace {
            builder = builder.cap_add("SYS_PTRACE");
        }
        let container = builder.spawn().unwrap();
        match container.exec().command(["true"]).status() {
            Ok(status) => assert!(status.success() && !refused),
            Err(error) => assert!(refused && error.kind() == ErrorKind::Unsupported, "{error}"),
        }
        container.close().unwrap();
    }
    lab.assert_clean();
}

#[test]
fn beside_an_init_process_it_works_too() {
    let Some(lab) = Lab::new() else { return };
    let image = image(&lab.engine);
    let container = with_programs(image.container()).command(["sleep", "1000"]).init(true).spawn().unwrap();
    for container in [&container, &lab.engine.find_container(container.id().as_str()).unwrap()] {
        assert_eq!(says(container, "echo here"), "here\n");
        // What it leaves behind is reaped by the init process.
        assert_eq!(says(container, "sh -c 'sleep 0.01 & exit 0'; echo done"), "done\n");
    }
    container.close().unwrap();
    lab.assert_clean();
}

/// A throwaway container ends with its own value, whoever else thinks of starting something in it.
#[test]
fn a_builder_keeps_no_container_alive() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let builder = container.exec().command(["true"]);
    assert!(builder.status().unwrap().success());
    let exec = container.exec().command(["sleep", "1000"]).spawn().unwrap();
    drop(container);
    assert_eq!(exec.wait().unwrap().signal(), Some(9));
    drop(exec);
    assert_eq!(builder.status().unwrap_err().kind(), ErrorKind::Conflict);
    lab.assert_clean();
}

/// What a program that starts containers in another way wrote, and what is damaged.
#[test]
fn a_record_that_says_otherwise_is_told() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let record = lab.root().join("containers").join(container.id().to_string()).join("state.json");
    let good = std::fs::read_to_string(&record).unwrap();
    let own = lab.engine.identity();
    let other = if own == "rootful" { "rootless with one id" } else { "rootful" };
    for (from, to, because) in [
        (format!("\"identity\":\"{own}\""), format!("\"identity\":\"{other}\""), other),
        ("\"filter\":\"docker-2026-11\"".to_owned(), "\"filter\":\"docker-2099-01\"".to_owned(), "another release"),
    ] {
        let changed = good.replace(&from, &to);
        assert_ne!(changed, good, "{from} in {good}");
        std::fs::write(&record, changed).unwrap();
        let found = lab.engine.find_container(container.id().as_str()).unwrap();
        let refused = found.exec().command(["true"]).status().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains(because), "{refused}");
    }
    std::fs::write(&record, &good).unwrap();
    assert_eq!(says(&lab.engine.find_container(container.id().as_str()).unwrap(), "echo fine"), "fine\n");
    container.close().unwrap();
    lab.assert_clean();
}

/// A passwd that would never end, or is no file.
#[test]
fn users_are_looked_up_beneath_the_containers_root() {
    let Some(lab) = Lab::new() else { return };
    for (script, kind) in [
        ("rm /etc/passwd; mkfifo /etc/passwd", ErrorKind::Hostile),
        ("rm /etc/passwd; ln -s /dev/zero /etc/passwd", ErrorKind::Hostile),
        ("rm /etc/passwd; ln -s ../../../../../../../../etc/shadow /etc/passwd", ErrorKind::NotFound),
        ("rm /etc/passwd; truncate -s 1G /etc/passwd", ErrorKind::Limit),
    ] {
        let container = waiting(&lab);
        says(&container, script);
        let refused = container.exec().command(["true"]).user("bob").spawn().unwrap_err();
        assert_eq!(refused.kind(), kind, "{script}: {refused}");
        container.close().unwrap();
    }
    lab.assert_clean();
}

#[test]
fn on_the_hosts_network_it_is_there_too() {
    let Some(lab) = Lab::new() else { return };
    let sandbox = lab.engine.sandbox().network(Network::Host).command(["sleep", "1000"]);
    let container = sandbox.spawn().unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(says(&container, "readlink /proc/self/ns/net").trim(), own.to_str().unwrap());
    container.close().unwrap();
}

/// As another program would.
#[test]
fn another_program_enters_and_leaves() {
    let Some(lab) = Lab::new() else { return };
    let container = waiting(&lab);
    let other = Engine::open(lab.root()).unwrap();
    let found = other.find_container(container.id().as_str()).unwrap();
    assert_eq!(says(&found, "cat /etc/os-release"), "NAME=lab\n");
    drop((found, other));
    assert_eq!(container.try_wait().unwrap(), None);
    container.close().unwrap();
    lab.assert_clean();
}
