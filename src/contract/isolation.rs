//! What an isolation backend has to keep.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio as HostStdio};
use std::time::{Duration, Instant};

use super::{Clause, require, run, spread};
use crate::isolation::{Aspect, Enforcement, Level, Requirement};
use crate::{Container, ContainerBuilder, Error, ErrorKind, Result, Stdio};

/// How long the kernel may take over what it does by itself.
const PATIENCE: Duration = Duration::from_secs(10);

struct Suite<'a> {
    container: &'a (dyn Fn() -> ContainerBuilder + Sync),
    writable: &'a str,
    enforcement: Enforcement,
}

type Part = fn(&Suite<'_>, Clause) -> Result<()>;

const PARTS: &[(Clause, Part)] = &[
    ("the exit status is the command's own", |suite, clause| suite.status(clause)),
    ("streams are connected, and apart from each other", |suite, clause| suite.streams(clause)),
    ("what was said of variables holds", |suite, clause| suite.variables(clause)),
    ("a command that is not there is told as such", |suite, clause| suite.no_command(clause)),
    ("a launch that fails leaves nothing", |suite, clause| suite.failure(clause)),
    ("writes reach what is writable", |suite, clause| suite.writes(clause)),
    ("what is not writable stays as it is", |suite, clause| suite.outside(clause)),
    ("what is not to be read is not", |suite, clause| suite.secrets(clause)),
    ("processes outside are out of reach", |suite, clause| suite.processes(clause)),
    ("a network that is out of reach is not reached", |suite, clause| suite.network(clause)),
    ("privileges, filter, signals and descriptors are as was said", |suite, clause| suite.state(clause)),
    ("limits that hold have a group to hold in", |suite, clause| suite.limits(clause)),
    ("a kill ends all that came of the command", |suite, clause| suite.kill(clause)),
    ("what the command leaves ends with it", |suite, clause| suite.leftovers(clause)),
    ("many at once do not disturb each other", |suite, clause| suite.crowd(clause)),
    ("less than is required is an error", |suite, clause| suite.requirement(clause)),
];

/// Runs the suite for an isolation backend, one that an engine was opened with; the clauses, all of them kept.
///
/// `container` describes containers that the backend can run, with a POSIX shell at `/bin/sh` and the usual programs beside it,
/// and that [require](ContainerBuilder::require) no more than it enforces. `writable` is a directory in them that their user
/// can write to. What the [`Enforcement`] says is held against what can be done: whatever is said to be enforced is tried.
///
/// Takes a few seconds, and makes processes, sockets and a directory beside the engine's root, all of which are gone
/// afterwards. A clause on something that this host cannot try (no program that opens connections, say) counts as kept.
///
/// # Errors
/// [`Invalid`](ErrorKind::Invalid) for the first clause that is broken, or the error that something in it ended with.
pub fn isolation(
    container: &(dyn Fn() -> ContainerBuilder + Sync),
    writable: impl AsRef<Path>,
) -> Result<Vec<&'static str>> {
    let writable = writable.as_ref().to_str().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "run the contract").because("the writable directory is not UTF-8")
    })?;
    let enforcement = container().command(["/bin/sh"]).enforcement()?;
    let suite = Suite { container, writable, enforcement };
    run(PARTS, |part, clause| part(&suite, clause))
}

fn io(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io("try what the contract says", call, error)
}

/// A process of the host's, ended with this value.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of the host's that everybody may write to, with a file in it.
struct Outside(tempfile::TempDir);

impl Outside {
    const TEXT: &'static str = "nobody else's business";

    fn new() -> Result<Outside> {
        // Where no container has a tmpfs of its own.
        let parent = ["/var/tmp", "/tmp"].into_iter().find(|path| Path::new(path).is_dir()).unwrap_or("/tmp");
        let dir = tempfile::Builder::new().prefix("contract-").tempdir_in(parent).map_err(io("mkdir"))?;
        let all = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(dir.path(), all(0o777)).map_err(io("chmod"))?;
        let outside = Outside(dir);
        fs::write(outside.file(), Self::TEXT).map_err(io("write"))?;
        fs::set_permissions(outside.file(), all(0o666)).map_err(io("chmod"))?;
        Ok(outside)
    }

    fn file(&self) -> String {
        self.0.path().join("file").display().to_string()
    }
}

impl Suite<'_> {
    fn shell(&self, script: &str) -> ContainerBuilder {
        (self.container)().command(["/bin/sh", "-c", script])
    }

    fn says(&self, script: &str) -> Result<String> {
        let output = self.shell(script).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn level(&self, aspect: Aspect) -> Level {
        self.enforcement.level(aspect)
    }

    /// Starts a script that says `ready` when it is.
    fn ready(&self, script: &str) -> Result<Container> {
        let mut container = self.shell(script).stdout(Stdio::Piped).spawn()?;
        let mut line = [0; 6];
        if let Some(stdout) = &mut container.stdout {
            stdout.read_exact(&mut line).map_err(io("read"))?;
        }
        Ok(container)
    }

    fn status(&self, clause: Clause) -> Result<()> {
        for code in [0, 1, 7, 126, 255] {
            let status = self.shell(&format!("exit {code}")).output()?.status;
            require(status.code() == Some(code), clause, format!("{status} in place of {code}"))?;
        }
        let container = self.ready("echo ready; exec sleep 1000")?;
        container.kill()?;
        let status = container.wait()?;
        require(status.signal() == Some(libc::SIGKILL), clause, format!("{status} of a command that was killed"))?;
        require(container.wait()? == status, clause, "another one when asked again")
    }

    fn streams(&self, clause: Clause) -> Result<()> {
        let script = "cat; echo to error >&2";
        let mut container = self.shell(script).stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped).spawn()?;
        if let Some(mut stdin) = container.stdin.take() {
            stdin.write_all(b"in and out").map_err(io("write"))?;
        }
        let output = container.wait_with_output()?;
        let found = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        require(found == ("in and out".into(), "to error\n".into()), clause, format!("{found:?}"))?;
        let end = self.says("read line; echo $?")?;
        require(end == "1\n", clause, format!("{end:?} where no input was connected"))
    }

    fn variables(&self, clause: Clause) -> Result<()> {
        let output = self.shell("echo \"$CONTRACT\"").env("CONTRACT", "a b").output()?;
        let found = String::from_utf8_lossy(&output.stdout);
        require(found == "a b\n", clause, format!("{found:?}"))
    }

    fn no_command(&self, clause: Clause) -> Result<()> {
        match (self.container)().command(["/nowhere/command"]).output() {
            Err(error) if error.kind() == ErrorKind::CommandNotFound => Ok(()),
            Err(error) => require(false, clause, error.to_string()),
            Ok(output) => require(false, clause, format!("{output:?}")),
        }
    }

    fn failure(&self, clause: Clause) -> Result<()> {
        let probe = self.shell("true");
        let name = "contract-failure";
        let failed = self.shell("true").name(name).workdir("/bin/sh/below").spawn();
        require(failed.is_err(), clause, "a working directory below a program was entered")?;
        let root = probe.root();
        let left = fs::read_link(root.join("names").join(name));
        require(left.is_err(), clause, "its name is still taken")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        require(!mounts.contains(&*root.to_string_lossy()), clause, "a mount of the engine's is in the host's table")
    }

    fn writes(&self, clause: Clause) -> Result<()> {
        let script = format!("cd {} && echo x > f && mkdir d && mv f d/g && cat d/g && rm -r d", self.writable);
        let found = self.says(&script)?;
        require(found == "x\n", clause, format!("{found:?}"))
    }

    fn outside(&self, clause: Clause) -> Result<()> {
        if self.level(Aspect::FilesystemWrite) == Level::None {
            return Ok(());
        }
        let outside = Outside::new()?;
        let (file, dir) = (outside.file(), outside.0.path().display().to_string());
        let script = format!(
            "(echo x > {file}) 2>/dev/null; (echo x >> {file}) 2>/dev/null; rm -f {file}; mkdir {dir}/new; ln -s x {dir}/link; \
             mv {file} {dir}/moved; : > {dir}/made; mkfifo {dir}/fifo; true"
        );
        self.shell(&script).output()?;
        let text = fs::read_to_string(outside.file()).unwrap_or_default();
        require(text == Outside::TEXT, clause, format!("a file of the host is {text:?} now"))?;
        let entries = fs::read_dir(outside.0.path()).map_err(io("readdir"))?;
        let names: BTreeSet<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        require(names.len() == 1, clause, format!("in a directory of the host there are {names:?}"))
    }

    fn secrets(&self, clause: Clause) -> Result<()> {
        // Over a directory of the host everything in it is to be read.
        let probe = self.shell("true");
        let confined = !probe.is_over_host() || probe.is_confined();
        if !confined || self.level(Aspect::FilesystemRead) == Level::None {
            return Ok(());
        }
        let outside = Outside::new()?;
        let found = self.says(&format!("cat {} 2>/dev/null; ls {}", outside.file(), outside.0.path().display()))?;
        require(found.is_empty(), clause, format!("it reads {found:?}"))
    }

    fn processes(&self, clause: Clause) -> Result<()> {
        if self.level(Aspect::Processes) == Level::None {
            return Ok(());
        }
        let child = Command::new("sleep").arg("1000").stdin(HostStdio::null()).stdout(HostStdio::null()).spawn();
        let mut bystander = Bystander(child.map_err(io("spawn"))?);
        let pid = bystander.0.id();
        let hit = format!("(kill -9 {pid} || kill -9 -- -{pid}) 2>/dev/null && echo hit; exit 0");
        let hit = String::from_utf8_lossy(&self.shell(&hit).output()?.stdout).contains("hit");
        let mut ended = bystander.0.try_wait().map_err(io("waitid"))?.is_some();
        // Who was hit ends in a moment. It may have been one of the container's own that has this number inside.
        let begin = Instant::now();
        while hit && !ended && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            ended = bystander.0.try_wait().map_err(io("waitid"))?.is_some();
        }
        require(!ended, clause, "it killed a process of the host")?;
        if self.level(Aspect::Processes) == Level::Full {
            let found = self.says(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline"))?;
            require(!found.contains("sleep 1000"), clause, "it sees a process of the host")?;
        }
        Ok(())
    }

    fn network(&self, clause: Clause) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(io("bind"))?;
        listener.set_nonblocking(true).map_err(io("fcntl"))?;
        let port = listener.local_addr().map_err(io("getsockname"))?.port();
        let script = format!(
            "bash -c ': > /dev/tcp/127.0.0.1/{port}' || busybox nc -w 2 127.0.0.1 {port} < /dev/null || nc -z -w 2 127.0.0.1 {port}"
        );
        let came = || listener.accept().is_ok();
        let mut try_outside = Command::new("/bin/sh");
        try_outside.args(["-c", &script]).stdout(HostStdio::null()).stderr(HostStdio::null()).stdin(HostStdio::null());
        let _ = try_outside.status().map_err(io("spawn"))?;
        if self.level(Aspect::Network) == Level::None || !came() {
            return Ok(());
        }
        while came() {}
        self.shell(&script).output()?;
        require(!came(), clause, "it opened a connection to a server of the host")
    }

    fn state(&self, clause: Clause) -> Result<()> {
        let container = self.ready("echo ready; exec sleep 1000")?;
        let pid =
            command_of(&container).ok_or_else(|| Error::new(ErrorKind::Invalid, clause).because("it has ended"))?;
        // The shell has said that it is ready a moment before it is another program.
        let name = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        wait_until(|| !name().starts_with("sh"));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(io("read"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let zero = |name: &str| {
            require(field(name).trim_start_matches('0').is_empty(), clause, format!("{name} {}", field(name)))
        };
        zero("SigBlk")?;
        zero("SigIgn")?;
        if self.level(Aspect::Privileges) == Level::Full {
            require(field("NoNewPrivs") == "1", clause, "no-new-privileges is off")?;
        }
        if self.level(Aspect::Syscalls) > Level::None {
            require(field("Seccomp") == "2", clause, "there is no system call filter")?;
        }
        let open = || {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            Some(open.flatten().map(|entry| entry.file_name()).collect::<BTreeSet<_>>())
        };
        // Its loader has its libraries open, one after the other; what the launch has left open stays so.
        if !wait_until(|| open().is_none_or(|open| open.len() == 3)) {
            require(false, clause, format!("these descriptors are open: {:?}", open().unwrap_or_default()))?;
        }
        container.close()
    }

    fn limits(&self, clause: Clause) -> Result<()> {
        if self.level(Aspect::Limits) == Level::None {
            return Ok(());
        }
        let container = self.ready("echo ready; exec sleep 1000")?;
        let groups = container.info().groups;
        require(!groups.is_empty(), clause, "it is in no group of its own")?;
        container.close()?;
        let left: Vec<_> = groups.iter().filter(|path| path.exists()).collect();
        require(left.is_empty(), clause, format!("groups are left: {left:?}"))
    }

    /// Processes in every place that they can be in: a child, one that left its session, and one whose parent has gone.
    const FAMILY: &'static str = "sleep 1000 & (sleep 1000 &) ; (setsid sleep 1000 & ) ; sleep 0.2; echo ready";

    fn kill(&self, clause: Clause) -> Result<()> {
        let container = self.ready(&format!("{}; exec sleep 1000", Self::FAMILY))?;
        let family = family_of(&container);
        require(family.len() >= 4, clause, format!("of four processes there are {}", family.len()))?;
        container.kill()?;
        container.wait()?;
        require(wait_until(|| !family.iter().any(is_alive)), clause, "some live on")?;
        container.close()
    }

    fn leftovers(&self, clause: Clause) -> Result<()> {
        let mut container = self.shell(&format!("{}; read line; exit 9", Self::FAMILY));
        container = container.stdin(Stdio::Piped).stdout(Stdio::Piped);
        let mut container = container.spawn()?;
        let mut line = [0; 6];
        if let Some(stdout) = &mut container.stdout {
            stdout.read_exact(&mut line).map_err(io("read"))?;
        }
        let family = family_of(&container);
        drop(container.stdin.take());
        let status = container.wait()?;
        require(status.code() == Some(9), clause, format!("the command ended with {status}"))?;
        require(wait_until(|| !family.iter().any(is_alive)), clause, "some live on")?;
        container.close()
    }

    fn crowd(&self, clause: Clause) -> Result<()> {
        spread(8, clause, || {
            for code in 0..5 {
                let output = self.shell(&format!("echo {code}; exit {code}")).output()?;
                let found = (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
                require(found == (Some(code), format!("{code}\n")), clause, format!("{found:?} in place of {code}"))?;
            }
            Ok(())
        })
    }

    fn requirement(&self, clause: Clause) -> Result<()> {
        for aspect in Aspect::ALL.into_iter().filter(|aspect| self.level(*aspect) < Level::Full) {
            let strict = Requirement::nothing().at_least(aspect, Level::Full);
            match self.shell("true").require(strict).output() {
                Err(error) if error.kind() == ErrorKind::Weaker => {}
                other => require(false, clause, format!("of {aspect}: {other:?}"))?,
            }
        }
        let just = Aspect::ALL
            .into_iter()
            .fold(Requirement::nothing(), |all, aspect| all.at_least(aspect, self.level(aspect)));
        let status = self.shell("exit 3").require(just).output()?.status;
        require(status.code() == Some(3), clause, format!("{status}"))
    }
}

/// A process, by its number and when it started: what has that number later is another.
type Known = (u32, u64);

fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    // One that waits to be reaped has ended.
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

fn is_alive(known: &Known) -> bool {
    started(known.0) == Some(known.1)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// All that came of a container, its first process included.
fn family_of(container: &Container) -> Vec<Known> {
    let mut all: Vec<u32> = container.pid().into_iter().collect();
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children(*pid));
        at += 1;
    }
    all.into_iter().filter_map(|pid| Some((pid, started(pid)?))).collect()
}

/// The command itself, which may have a process of the backend's as its parent.
fn command_of(container: &Container) -> Option<u32> {
    family_of(container).last().map(|(pid, _)| *pid)
}

fn wait_until(holds: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !holds() {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
