//! What becomes of containers where a feature is really gone: refused by a filter around the program, or used up. Either
//! there is another way, or an error names what is missing; nothing hangs, and nothing is weaker without a word.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio as HostStdio};
use std::time::{Duration, Instant};

use coracle::container::Mount;
use coracle::isolation::Requirement;
use coracle::probe::{Feature, Host, State};
use coracle::security::Profile;
use coracle::{ContainerBuilder, Engine, Stdio};

use super::host;
use super::ladder::busybox;
use super::shared::skip::missing;
use super::support::{is_root, scratch};

/// Flags of clone(2) and unshare(2) that make namespaces.
const NAMESPACES: u32 = 0x7e02_0080;

/// Calls that are refused whatever their arguments, and those that are when they make namespaces.
struct Shim {
    errno: i32,
    calls: Vec<libc::c_long>,
    with_namespaces: Vec<libc::c_long>,
}

impl Shim {
    fn of(words: &str) -> Option<Shim> {
        let (errno, names) = words.split_once(' ')?;
        let errno = if errno == "ENOSYS" { libc::ENOSYS } else { libc::EPERM };
        let mut shim = Shim { errno, calls: vec![], with_namespaces: vec![] };
        for name in names.split(' ') {
            match name {
                "namespaces" => {
                    shim.with_namespaces.extend([libc::SYS_clone, libc::SYS_unshare]);
                    shim.calls.push(libc::SYS_clone3);
                }
                "clone" => {
                    shim.with_namespaces.push(libc::SYS_clone);
                    shim.calls.push(libc::SYS_clone3);
                }
                "mount" => shim.calls.push(libc::SYS_mount),
                "openat2" => shim.calls.push(libc::SYS_openat2),
                "mount_setattr" => shim.calls.push(libc::SYS_mount_setattr),
                "mounts" => shim.calls.extend([
                    libc::SYS_open_tree,
                    libc::SYS_move_mount,
                    libc::SYS_fsopen,
                    libc::SYS_fsconfig,
                    libc::SYS_fsmount,
                    libc::SYS_mount_setattr,
                ]),
                "landlock" => shim.calls.extend([
                    libc::SYS_landlock_create_ruleset,
                    libc::SYS_landlock_add_rule,
                    libc::SYS_landlock_restrict_self,
                ]),
                other => panic!("no such feature: {other}"),
            }
        }
        Some(shim)
    }

    fn install(&self) {
        let entry = |code: u32, yes: u8, no: u8, k: u32| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
        let (load, equal, any, ret) = (
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
            libc::BPF_RET | libc::BPF_K,
        );
        let refuse = libc::SECCOMP_RET_ERRNO | self.errno as u32;
        let mut filter = vec![entry(load, 0, 0, 0)];
        for call in &self.calls {
            // Without it C libraries start no threads, unless they are told that there is none.
            let errno = if *call == libc::SYS_clone3 { libc::ENOSYS } else { self.errno };
            filter.push(entry(equal, 0, 1, *call as u32));
            filter.push(entry(ret, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
        }
        for call in &self.with_namespaces {
            // The lower half of the first argument, at 16.
            filter.push(entry(equal, 0, 4, *call as u32));
            filter.push(entry(load, 0, 0, 16));
            filter.push(entry(any, 0, 1, NAMESPACES));
            filter.push(entry(ret, 0, 0, refuse));
            filter.push(entry(ret, 0, 0, libc::SECCOMP_RET_ALLOW));
        }
        filter.push(entry(ret, 0, 0, libc::SECCOMP_RET_ALLOW));
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        // All threads, and no-new-privileges with it.
        let flags = libc::SECCOMP_FILTER_FLAG_TSYNC;
        // SAFETY: the program and its instructions live for the call.
        let done =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

/// The host program: says of each kind of container what became of it.
pub fn role(root: &str) {
    if let Some(shim) = std::env::var("CORACLE_TEST_REMOVED").ok().and_then(|words| Shim::of(&words)) {
        shim.install();
    }
    let host = Host::probe();
    for feature in [Feature::NamespaceIsolation, Feature::LandlockIsolation, Feature::ChrootIsolation] {
        let finding = host.finding(feature);
        assert!(finding.state == State::Yes || finding.cause.is_some() && finding.remedy.is_some(), "{finding}");
        println!("\nANSWER {}={finding}", feature.name());
    }
    let engine = Engine::open(root).unwrap();
    let work = Path::new(root).join("../work");
    std::fs::create_dir_all(&work).unwrap();
    let work = std::fs::canonicalize(work).unwrap();
    say("default", engine.sandbox().command(["/bin/true"]));
    let script = format!("echo x > {0}/x && cat {0}/x > /dev/null && ! (echo x > /etc/x) 2>/dev/null", work.display());
    let confined = engine.sandbox().read_only(true).require(Requirement::nothing()).mount(Mount::bind(&work, &work));
    say("confined", confined.command(["/bin/sh", "-c", &script]));
    say("untrusted", engine.sandbox().profile(Profile::UNTRUSTED_2026_11).command(["/bin/true"]));
    if let Some(image) = busybox(&engine) {
        let builder = image.container().require(Requirement::nothing());
        say("image", builder.stdin(Stdio::Null).command(["/bin/sh", "-c", "echo x > /tmp/x && cat /tmp/x"]));
    }
    for place in ["containers", "names"] {
        let left = std::fs::read_dir(engine.root().join(place)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{place}");
    }
    for listed in engine.list_images().unwrap() {
        let _ = engine.remove_image(&listed.image.id().to_string(), true);
    }
}

fn say(name: &str, builder: ContainerBuilder) {
    let answer = match builder.stdout(Stdio::Piped).stderr(Stdio::Piped).spawn() {
        Err(error) => format!("{:?}: {error}", error.kind()),
        Ok(container) => {
            let backend = container.enforcement().unwrap().backend().to_owned();
            let out = container.wait_with_output().unwrap();
            format!("{backend} {} {}", out.status, String::from_utf8_lossy(&out.stderr).replace('\n', " "))
        }
    };
    println!("\nANSWER {name}={answer}");
}

/// What a host program says, which has a minute for it.
fn ask(command: &mut Command) -> BTreeMap<String, String> {
    let mut child =
        command.stdin(HostStdio::null()).stdout(HostStdio::piped()).stderr(HostStdio::piped()).spawn().unwrap();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begin.elapsed() > Duration::from_secs(60) => {
                child.kill().unwrap();
                panic!("it hangs: {}", errors.join().unwrap());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let (text, errors) = (read.join().unwrap(), errors.join().unwrap());
    assert!(status.success(), "{text}\n{errors}");
    let answers = text.lines().filter_map(|line| line.strip_prefix("ANSWER ")?.split_once('='));
    answers.map(|(name, answer)| (name.to_owned(), answer.to_owned())).collect()
}

fn without(words: &str) -> BTreeMap<String, String> {
    let dir = scratch();
    let answers = ask(host::role("removed", &dir.path().join("root")).env("CORACLE_TEST_REMOVED", words));
    eprintln!("{words}: {answers:#?}");
    answers
}

/// `words` are in the answer.
fn has(answers: &BTreeMap<String, String>, name: &str, words: &[&str]) {
    let answer = answers.get(name).map_or("", |answer| answer);
    for word in words {
        assert!(answer.contains(word), "{name}: {word:?} is not in {answer:?}");
    }
}

/// Containers by default are refused, with all the reasons; those that ask for less run on a lower rung.
fn falls_to_landlock(answers: &BTreeMap<String, String>, image: &[&str]) {
    has(answers, "default", &["Weaker", "landlock would not do", "try:"]);
    has(answers, "confined", &["landlock exit status 0"]);
    has(answers, "untrusted", &["Weaker", "landlock would not do", "try:"]);
    has(answers, "image", image);
}

#[test]
fn namespaces() {
    for errno in ["EPERM", "ENOSYS"] {
        let answers = without(&format!("{errno} namespaces"));
        has(&answers, "rung: namespaces", &["no", "system call filter", "try:"]);
        let image =
            if is_root() { &["chroot exit status 0"][..] } else { &["Weaker", "cannot make an image the root"] };
        falls_to_landlock(&answers, image);
    }
}

/// The probe does not notice, and the launch does.
#[test]
fn clone_with_namespaces() {
    for errno in ["EPERM", "ENOSYS"] {
        let answers = without(&format!("{errno} clone"));
        has(&answers, "rung: namespaces", &["yes"]);
        let image: &[&str] =
            if is_root() { &["overlay would have to be mounted"] } else { &["cannot make an image the root"] };
        falls_to_landlock(&answers, image);
    }
}

#[test]
fn mounts_by_descriptor() {
    for errno in ["EPERM", "ENOSYS"] {
        let answers = without(&format!("{errno} mounts"));
        has(&answers, "rung: namespaces", &["no", "open_tree", "try:"]);
        falls_to_landlock(
            &answers,
            if is_root() { &["chroot exit status 0"] } else { &["cannot make an image the root"] },
        );
    }
}

#[test]
fn mount_and_mount_setattr() {
    for words in ["EPERM mount", "ENOSYS mount", "EPERM mount_setattr", "ENOSYS mount_setattr"] {
        falls_to_landlock(&without(words), &["would not do"]);
    }
}

#[test]
fn openat2() {
    for words in ["EPERM openat2", "ENOSYS openat2"] {
        let answers = without(words);
        for name in ["default", "confined", "untrusted", "image"] {
            has(&answers, name, &["namespaces exit status 0"]);
        }
        let both = without(&format!("{words} namespaces"));
        has(&both, "confined", &["landlock exit status 0"]);
    }
}

#[test]
fn landlock() {
    for words in ["EPERM landlock", "ENOSYS landlock"] {
        let answers = without(words);
        has(&answers, "rung: landlock", &["no", "landlock_create_ruleset", "try:"]);
        for name in ["default", "confined", "image"] {
            has(&answers, name, &["namespaces exit status 0"]);
        }
        has(&answers, "untrusted", &["Weaker", "landlock was asked for on top", "try:"]);
    }
}

#[test]
fn namespaces_and_landlock() {
    let answers = without("EPERM namespaces landlock");
    has(&answers, "default", &["landlock would not do", "chroot would not do", "try:"]);
    has(&answers, "confined", &["landlock would not do", "landlock_create_ruleset"]);
    if is_root() {
        has(&answers, "image", &["chroot exit status 0"]);
    }
}

/// `user.max_user_namespaces` of a user namespace's own.
#[test]
fn the_number_of_user_namespaces() {
    let dir = scratch();
    let role = host::role("removed", &dir.path().join("root"));
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"", "sh"]);
    command.arg(role.get_program()).args(role.get_args());
    command.envs(role.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let answers = ask(&mut command);
    has(&answers, "rung: namespaces", &["no", "max_user_namespaces is 0", "try:"]);
    has(&answers, "rung: chroot", &["no", "inside a user namespace"]);
    falls_to_landlock(&answers, &["cannot make an image the root"]);
}

/// Inside a container of our own: a filter, few capabilities, no file of `/proc/sys` that can be written.
#[test]
fn everything_that_a_container_lacks() {
    let dir = scratch();
    let engine = Engine::open(dir.path().join("root")).unwrap();
    let role = host::role("removed", Path::new("/tmp/inner/root"));
    let words =
        std::iter::once(role.get_program()).chain(role.get_args()).map(|word| word.to_str().unwrap().to_owned());
    let script = "mkdir /tmp/inner && exec \"$@\"".to_owned();
    let command = ["/bin/sh", "-c"].map(str::to_owned).into_iter().chain([script, "sh".to_owned()]).chain(words);
    let mut builder = engine.sandbox().command(command);
    for (key, value) in role.get_envs() {
        builder = builder.env(key.to_str().unwrap(), value.unwrap().to_str().unwrap());
    }
    // Elsewhere than in memory of the host's.
    builder = builder.env("TMPDIR", "/tmp/inner");
    let out = match builder.output() {
        Ok(out) => out,
        Err(error) => return missing(&format!("containers: {error}")),
    };
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let answers: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("ANSWER ")?.split_once('='))
        .map(|(name, answer)| (name.to_owned(), answer.to_owned()))
        .collect();
    eprintln!("{answers:#?}");
    has(&answers, "rung: namespaces", &["no", "try:"]);
    let image = if is_root() { &["chroot exit status 0"][..] } else { &["cannot make an image the root"] };
    falls_to_landlock(&answers, image);
}
