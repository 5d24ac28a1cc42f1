//! Terminals of a container's own, and of further commands.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use coracle::container::{Container, ContainerBuilder, Mount, Terminal, WindowSize};
use coracle::{ErrorKind, Stdio};

use super::support::{Lab, image, with_programs};

const SIZE: WindowSize = WindowSize { rows: 33, columns: 101 };

/// A container of the lab's image with a terminal.
fn described(lab: &Lab) -> ContainerBuilder {
    with_programs(image(&lab.engine).container()).tty(SIZE)
}

fn script(builder: &ContainerBuilder, script: &str) -> ContainerBuilder {
    builder.clone().command(["sh", "-c", script])
}

/// What a script shows on its terminal; it has to succeed.
fn shows(builder: &ContainerBuilder, text: &str) -> String {
    let out = script(builder, text).output().unwrap();
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{text}: {}\n{shown}", out.status);
    assert_eq!(out.stderr, b"");
    shown
}

/// Reads until this has been shown, and returns all of it.
fn until(mut terminal: &Terminal, text: &str) -> String {
    let (mut shown, mut buffer) = (String::new(), [0; 1000]);
    while !shown.contains(text) {
        let count = terminal.read(&mut buffer).unwrap();
        assert!(count > 0, "{text:?} is not in {shown:?}");
        shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    shown
}

fn types(mut terminal: &Terminal, text: &str) {
    terminal.write_all(text.as_bytes()).unwrap();
}

fn terminal(container: &Container) -> Terminal {
    container.terminal.clone().unwrap()
}

#[test]
fn the_three_streams_are_one_terminal() {
    let Some(lab) = Lab::new() else { return };
    let builder = described(&lab);
    assert_eq!(
        shows(&builder, "tty; echo err >&2; tty <&1; tty <&2"),
        "/dev/pts/0\r\nerr\r\n/dev/pts/0\r\n/dev/pts/0\r\n"
    );
    assert_eq!(shows(&builder, "stty size; echo $TERM"), "33 101\r\nxterm\r\n");
    assert_eq!(shows(&builder.clone().env("TERM", "dumb"), "echo $TERM"), "dumb\r\n");
    assert_eq!(shows(&builder.clone().env_remove("TERM"), "echo -$TERM-"), "-dumb-\r\n".replace("dumb", ""));
    // It is the controlling one, and the console is the same.
    assert_eq!(
        shows(&builder, "echo one >/dev/tty; echo two >/dev/console; tty </dev/console"),
        "one\r\ntwo\r\n/dev/console\r\n"
    );
    assert_eq!(shows(&builder, "stat -c %t:%T /dev/console /dev/pts/0 | uniq | wc -l"), "1\r\n");
    // A devpts of the container's own, with nothing else in it.
    assert_eq!(
        shows(&builder, "ls /dev/pts; stat -c %a /dev/pts/ptmx; stat -fc %T /dev/pts"),
        "0  ptmx\r\n666\r\ndevpts\r\n"
    );
    // Nothing but the streams is open: 3 is the list itself.
    assert_eq!(shows(&builder, "ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
    // Without a terminal there is none of that.
    let without =
        script(&builder.clone().tty(None), "test -t 0 || test -e /dev/console || echo ${TERM:-none}").output();
    assert_eq!(without.unwrap().stdout, b"none\n");
    lab.assert_clean();
}

#[test]
fn it_belongs_to_the_containers_user() {
    let Some(lab) = Lab::new() else { return };
    let builder = described(&lab);
    let look =
        "stat -c '%u %a' $(tty); echo x >$(tty); echo y >/dev/console; echo z >/dev/stderr; test -r $(tty); id -u";
    let expected = |uid: u32| format!("{uid} 620\r\nx\r\ny\r\nz\r\n{uid}\r\n");
    assert_eq!(shows(&builder, look), expected(0));
    assert_eq!(shows(&builder.clone().user("1000:1000"), look), expected(1000));
    let group = shows(&builder, "stat -c %g $(tty)");
    match lab.engine.identity() {
        "rootless with one id" => assert_eq!(group, "0\r\n"),
        _ => assert_eq!(group, "5\r\n"),
    }
    lab.assert_clean();
}

#[test]
fn a_shell_has_job_control() {
    let Some(lab) = Lab::new() else { return };
    let container = described(&lab).command(["sh", "-i"]).env("PS1", "> ").spawn().unwrap();
    let terminal = terminal(&container);
    let begin = until(&terminal, "> ");
    assert!(!begin.contains("job control") && !begin.contains("access tty"), "{begin}");
    types(&terminal, "echo $((40 + 2))\r");
    until(&terminal, "42\r\n");
    // ^C ends what is in the foreground, and not the shell.
    types(&terminal, "sh -c 'echo go; exec sleep 1000'; echo st$((1))ll\r");
    until(&terminal, "go\r\n");
    types(&terminal, "\x03");
    until(&terminal, "^C");
    // ^Z stops it.
    types(&terminal, "sh -c 'echo went; exec sleep 1001'\r");
    until(&terminal, "went\r\n");
    types(&terminal, "\x1a");
    until(&terminal, "^Z");
    types(&terminal, "jobs; echo =$((2 + 3))\r");
    let jobs = until(&terminal, "=5");
    assert!(jobs.contains("topped") || jobs.contains("uspended"), "{jobs}");
    types(&terminal, "kill %1; fg 2>/dev/null; exit 7\r");
    let mut rest = String::new();
    (&terminal).read_to_string(&mut rest).unwrap();
    assert_eq!(container.wait().unwrap().code(), Some(7), "{rest}");
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn a_new_size_is_told() {
    let Some(lab) = Lab::new() else { return };
    let wait = "trap 'stty size' WINCH; stty size; while :; do sleep 0.02; done";
    for init in [false, true] {
        let container = script(&described(&lab).init(init), wait).spawn().unwrap();
        let terminal = terminal(&container);
        until(&terminal, "33 101\r\n");
        assert_eq!(terminal.size().unwrap(), SIZE);
        let other = terminal.clone();
        std::thread::spawn(move || other.resize(WindowSize { rows: 50, columns: 132 }).unwrap()).join().unwrap();
        until(&terminal, "50 132\r\n");
        container.kill().unwrap();
        container.wait().unwrap();
        terminal.resize(SIZE).unwrap();
        container.close().unwrap();
    }
    lab.assert_clean();
}

/// What is typed to end the command is for the command, and not for the init in front of it.
#[test]
fn with_an_init_the_command_has_the_terminal() {
    let Some(lab) = Lab::new() else { return };
    let builder = described(&lab).init(true);
    // Session, group and foreground group of the command are the command; pid 1 has no terminal.
    let shown = shows(
        &builder,
        "read -r _ _ _ _ pgrp session _ foreground _ < /proc/$$/stat; echo $$ $pgrp $session $foreground; cut -d' ' -f7 /proc/1/stat",
    );
    assert_eq!(shown, "2 2 2 2\r\n0\r\n");
    let count = "n=0; trap 'n=$((n+1)); echo int $n' INT; echo ready; while test $n -lt 2; do sleep 0.05; done; sleep 0.2; echo $n";
    let container = script(&builder, count).spawn().unwrap();
    let terminal = terminal(&container);
    until(&terminal, "ready");
    types(&terminal, "\x03");
    until(&terminal, "int 1");
    // And signals to the container still arrive.
    container.signal(coracle::container::Signal::INT).unwrap();
    until(&terminal, "int 2\r\n2\r\n");
    assert!(container.wait().unwrap().success());
    container.close().unwrap();
    lab.assert_clean();
}

/// Most of these end before anybody has begun to read.
#[test]
fn a_short_life_loses_no_output() {
    let Some(lab) = Lab::new() else { return };
    let builder = described(&lab).command(["echo", "hello"]);
    for turn in 0..200 {
        let out = builder.output().unwrap();
        assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stdout)), (Some(0), "hello\r\n".into()), "{turn}");
    }
    // From several threads at once, and read by hand after the end.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let container = builder.spawn().unwrap();
                    assert!(container.wait().unwrap().success());
                    let mut shown = String::new();
                    terminal(&container).read_to_string(&mut shown).unwrap();
                    assert_eq!(shown, "hello\r\n");
                    container.close().unwrap();
                }
            });
        }
    });
    lab.assert_clean();
}

#[test]
fn much_output_is_complete_and_has_a_limit() {
    let Some(lab) = Lab::new() else { return };
    let builder = described(&lab);
    let expected: String = (1..=100_000).map(|number| format!("{number}\r\n")).collect();
    assert!(shows(&builder, "seq 100000") == expected);
    let error = script(&builder, "cat /dev/zero").output_limit(100_000).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    lab.assert_clean();
}

#[test]
fn what_is_typed_arrives() {
    let Some(lab) = Lab::new() else { return };
    let container = script(&described(&lab), "stty -echo raw; echo ready; head -c 300000 | sha256sum").spawn().unwrap();
    let terminal = terminal(&container);
    until(&terminal, "ready");
    let bytes: Vec<u8> = (0..300_000u32).map(|number| (number ^ (number >> 7)) as u8).collect();
    let typist = terminal.clone();
    let copy = bytes.clone();
    let typing = std::thread::spawn(move || (&typist).write_all(&copy).unwrap());
    use sha2::Digest as _;
    let sum: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    until(&terminal, &sum);
    typing.join().unwrap();
    assert!(container.wait().unwrap().success());
    // Nobody is there any more.
    assert!((&terminal).write_all(&[b'x'; 100]).is_err());
    container.close().unwrap();
    lab.assert_clean();
}

#[test]
fn nobody_at_the_terminal_for_a_while_is_no_end() {
    let Some(lab) = Lab::new() else { return };
    let away = "echo one; exec <&- >&- 2>&-; sleep 0.5; exec sh -c 'echo two' >/dev/console 2>&1";
    assert_eq!(shows(&described(&lab), away), "one\r\ntwo\r\n");
    lab.assert_clean();
}

#[test]
fn letting_go_of_it_hangs_up() {
    let Some(lab) = Lab::new() else { return };
    let listen = "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done";
    let mut container = script(&described(&lab), listen).spawn().unwrap();
    let terminal = container.terminal.take().unwrap();
    until(&terminal, "ready");
    drop(terminal);
    assert_eq!(container.wait().unwrap().code(), Some(9));
    container.close().unwrap();
    // Whoever shows what it shows lets go of it when that cannot go on.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let builder = script(&described(&lab), listen).stdout(writer);
    let container = builder.spawn().unwrap();
    assert_eq!(container.wait().unwrap().code(), Some(9));
    assert!(terminal_is_gone(&container));
    container.close().unwrap();
    lab.assert_clean();
}

fn terminal_is_gone(container: &Container) -> bool {
    let terminal = terminal(container);
    terminal.size().is_err() && terminal.resize(SIZE).is_ok() && terminal.try_clone_fd().is_err()
}

#[test]
fn streams_say_who_types_and_where_it_is_shown() {
    let Some(lab) = Lab::new() else { return };
    let (reader, mut typing) = std::io::pipe().unwrap();
    let (mut shown, writer) = std::io::pipe().unwrap();
    let builder = script(&described(&lab), "stty -echo; echo ready; read x; echo got $x; stty size");
    let container = builder.clone().stdin(reader).stdout(writer).spawn().unwrap();
    terminal(&container).resize(WindowSize { rows: 3, columns: 4 }).unwrap();
    let mut text = vec![0; 7];
    shown.read_exact(&mut text).unwrap();
    assert_eq!(text, b"ready\r\n");
    typing.write_all(b"word\n").unwrap();
    let mut rest = String::new();
    shown.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got word\r\n3 4\r\n");
    assert!(container.wait().unwrap().success());
    container.check_output().unwrap();
    container.close().unwrap();
    // Nowhere: nobody has to read it.
    let quiet = script(&described(&lab), "seq 100000").stdout(Stdio::Null);
    assert!(quiet.status().unwrap().success());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let error = script(&described(&lab), "echo x").stdout(full).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    // There is no standard error beside it.
    let error = builder.stderr(Stdio::Piped).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    lab.assert_clean();
}

#[test]
fn a_further_command_has_one_in_the_same_devpts() {
    let Some(lab) = Lab::new() else { return };
    for with in [None, Some(SIZE)] {
        let builder = described(&lab).tty(with).env("LAB", "yes");
        let container = builder.command(["sleep", "1000"]).spawn().unwrap();
        let found = lab.engine.find_container(container.id().as_str()).unwrap();
        let number = u32::from(with.is_some());
        for container in [&container, &found] {
            let exec = container.exec().tty(WindowSize { rows: 7, columns: 9 });
            let says = |text: &str| {
                let out = exec.clone().command(["sh", "-c", text]).output().unwrap();
                assert!(out.status.success(), "{text}: {out:?}");
                String::from_utf8(out.stdout).unwrap()
            };
            let look =
                "tty; stty size; echo $TERM $LAB; tty </dev/tty; echo x >/dev/pts/$((N)); stat -c '%u %a' $(tty)";
            let expected = format!("/dev/pts/{number}\r\n7 9\r\nxterm yes\r\n/dev/tty\r\nx\r\n0 620\r\n");
            assert_eq!(says(&look.replace('N', &number.to_string())), expected);
            assert_eq!(says("ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
            // Leader of a session and of the foreground group.
            assert_eq!(
                says(
                    "read -r pid _ _ _ pgrp session _ foreground _ < /proc/$$/stat; test $pid$pid$pid = $pgrp$session$foreground; echo $?"
                ),
                "0\r\n"
            );
        }
        // Typed, shown, resized.
        let exec = container.exec().command(["sh", "-i"]).env("PS1", "> ").tty(SIZE).spawn().unwrap();
        let terminal = exec.terminal.clone().unwrap();
        let begin = until(&terminal, "> ");
        assert!(!begin.contains("job control") && !begin.contains("access tty"), "{begin}");
        terminal.resize(WindowSize { rows: 11, columns: 22 }).unwrap();
        types(&terminal, "stty size\r");
        until(&terminal, "11 22\r\n");
        types(&terminal, "sh -c 'echo go; exec sleep 1000'\r");
        until(&terminal, "go\r\n");
        types(&terminal, "\x03");
        until(&terminal, "^C");
        types(&terminal, "exit 5\r");
        assert_eq!(exec.wait().unwrap().code(), Some(5));
        if lab.engine.identity() != "rootless with one id" {
            let exec = container.exec().user("bob").tty(SIZE);
            let out = exec.command(["sh", "-c", "stat -c '%u %g %a' $(tty); echo x >$(tty)"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), "1000 5 620\r\nx\r\n");
        }
        drop(found);
        container.close().unwrap();
    }
    lab.assert_clean();
}

#[test]
fn further_commands_are_complete_and_wait_for_nobody_else() {
    let Some(lab) = Lab::new() else { return };
    let container = described(&lab).tty(None).command(["sleep", "1000"]).spawn().unwrap();
    let exec = container.exec().tty(SIZE);
    for _ in 0..200 {
        assert_eq!(exec.clone().command(["echo", "hello"]).output().unwrap().stdout, b"hello\r\n");
    }
    // Somebody keeps the terminal open, and one of them goes on to write.
    for script in ["sleep 1000 & echo end", "trap '' HUP; yes & echo end"] {
        let begin = Instant::now();
        let out = exec.clone().command(["sh", "-c", script]).output().unwrap();
        assert!(String::from_utf8_lossy(&out.stdout).contains("end\r\n"), "{script}: {out:?}");
        assert!(begin.elapsed() < Duration::from_secs(20), "{script}");
    }
    let out = exec.clone().command(["seq", "100000"]).output().unwrap();
    assert!(out.stdout.ends_with(b"99999\r\n100000\r\n") && out.stdout.len() == 688_895, "{}", out.stdout.len());
    let error = exec.command(["cat", "/dev/zero"]).output_limit(100_000).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    container.close().unwrap();
    lab.assert_clean();
}

/// Whoever is root in the container may put anything where its terminals were.
#[test]
fn a_devpts_that_is_none_is_refused() {
    let Some(lab) = Lab::new() else { return };
    for hide in [
        "umount -l /dev/pts",
        "mount -t tmpfs none /dev/pts",
        "mount -t tmpfs none /dev/pts && mknod /dev/pts/ptmx p",
        "mount --bind /dev/null /dev/pts/ptmx",
        "umount -l /dev/pts && rmdir /dev/pts && ln -s /tmp /dev/pts",
    ] {
        let builder = described(&lab).tty(None).cap_add("SYS_ADMIN").cap_add("MKNOD");
        let hidden = format!("set -e; {hide}; echo ready; exec sleep 1000");
        let mut container =
            builder.command(["sh", "-c", &hidden]).stdout(Stdio::Piped).stderr(Stdio::Inherit).spawn().unwrap();
        let mut line = [0; 6];
        container.stdout.take().unwrap().read_exact(&mut line).unwrap();
        let error = container.exec().command(["true"]).tty(SIZE).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hostile, "{hide}: {error}");
        assert!(error.to_string().contains("/dev/pts"), "{hide}: {error}");
        assert!(container.exec().command(["true"]).status().unwrap().success());
        container.close().unwrap();
    }
    lab.assert_clean();
}

#[test]
fn mounts_of_the_callers_stay_as_they_are() {
    let Some(lab) = Lab::new() else { return };
    let error = described(&lab).command(["true"]).mount(Mount::tmpfs("/dev/pts")).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let file = super::support::scratch();
    let path = file.path().join("console");
    std::fs::write(&path, "mine").unwrap();
    let builder = described(&lab).mount(Mount::bind(&path, "/dev/console")).read_only(true);
    assert_eq!(shows(&builder, "tty; cat /dev/console"), "/dev/pts/0\r\nmine");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    lab.assert_clean();
}

/// Links and files of an image lead the console nowhere.
#[test]
fn cve_2025_52565_the_console_is_the_terminal_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    let tree = super::support::tree();
    std::fs::create_dir(tree.path().join("dev")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.path().join("dev/console")).unwrap();
    std::os::unix::fs::symlink("/tmp", tree.path().join("dev/pts")).unwrap();
    let image = lab.engine.import(tree.path(), Some("linked".parse().unwrap())).unwrap();
    let builder = with_programs(image.container()).tty(SIZE);
    let look = "stat -c %F /dev/console; head -c 5 /etc/passwd; echo; stat -fc %T /dev/console; \
                grep -c ' /dev/console devpts ' /proc/self/mounts";
    assert_eq!(shows(&builder, look), "character special file\r\nroot:\r\ndevpts\r\n1\r\n");
    lab.assert_clean();
}

/// CVE-2026-41579, CVE-2026-88264, CVE-2026-88265: where `/dev` itself is a link there is no terminal either.
#[test]
fn dev_as_a_link_leads_no_terminal_elsewhere() {
    let Some(lab) = Lab::new() else { return };
    let outside = super::support::scratch();
    for target in [outside.path().to_str().unwrap(), "/etc", "."] {
        let tree = super::support::tree();
        std::os::unix::fs::symlink(target, tree.path().join("dev")).unwrap();
        let image = lab.engine.import(tree.path(), Some("linked".parse().unwrap())).unwrap();
        let error = with_programs(image.container()).tty(SIZE).command(["true"]).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hostile, "{error}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    lab.assert_clean();
}

/// CVE-2017-5226: what is pushed into the terminal's input comes out in the container and nowhere else; and a container
/// that has no terminal has none to push into.
#[test]
fn cve_2017_5226_nothing_is_typed_outside() {
    let Some(lab) = Lab::new() else { return };
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return super::shared::skip::missing("perl, to call ioctl(2)");
    }
    let outer = nix::pty::openpty(None, None).unwrap();
    let push = "perl -e 'ioctl(STDIN, 0x5412, my $c = \"x\") or print \"refused\"; ioctl(STDERR, 0x5412, $c = \"x\");'; echo =";
    // A terminal that is handed to it to write to is not one that it has.
    let builder = script(&described(&lab), push);
    let shown = outer.slave.try_clone().unwrap();
    assert!(builder.stdout(shown).status().unwrap().success());
    let without = script(
        &described(&lab).tty(None),
        "perl -e 'ioctl(STDIN, 0x5412, my $c = \"x\") or print 1; open(T, \"/dev/tty\") or print 2; open(C, \"/dev/console\") or print 3'",
    );
    assert_eq!(without.output().unwrap().stdout, b"123");
    let count = nix::poll::poll(
        &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&outer.slave), nix::poll::PollFlags::POLLIN)],
        nix::poll::PollTimeout::from(100u8),
    );
    assert_eq!(count, Ok(0), "something was typed on the host's terminal");
    lab.assert_clean();
}
