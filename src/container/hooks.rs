//! Hooks: programs that the spec names, run at points of a container's life.
//!
//! ```text
//! prestart, createRuntime   on the host        namespaces and mounts are there, the tree is not changed yet
//! createContainer           in its namespaces  the same moment; the host's tree is what it sees
//! startContainer            in the container   everything but the command is there; as confined as the command
//! (the command is executed)
//! poststart                 on the host        before the start returns
//! poststop                  on the host        when the container is gone, whoever removes it: its record has them
//! ```
//!
//! A failure of one of the first four ends the container, and is the error of its start. One of the last two changes
//! nothing, and is told by [`Container::hook_failures`].

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks, LinuxNamespaceType};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::draft::Draft;
use super::record::{self, Info};
use super::rung::Rung;
use super::runtime::Runtime;
use super::{Container, exec};
use crate::isolation::{ExecRequest, HookPlace, Stops, Stream, hook_plan, persona};
use crate::launch::{self, Plan, Process};
use crate::{Error, ErrorKind, Result};

/// As much of what a hook writes to standard error is told when it fails.
const TOLD: usize = 1024;

/// What a container's record keeps for when it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Last {
    hooks: Vec<Hook>,
    /// What they are told, but the status.
    state: Value,
}

/// The hooks of a container that is being made.
pub(super) struct Lifecycle<'a> {
    hooks: Hooks,
    state: Value,
    rung: &'a Rung,
}

impl<'a> Lifecycle<'a> {
    /// `None` where there are none, as mostly.
    pub(super) fn of(draft: &Draft, rung: &'a Rung) -> Option<Lifecycle<'a>> {
        let hooks = draft.spec.hooks().clone()?;
        let state = state(&draft.runtime, &draft.spec, &draft.info);
        Some(Lifecycle { hooks, state, rung })
    }

    fn list(&self, kind: &str) -> &[Hook] {
        #[allow(deprecated, reason = "the spec still has prestart")]
        let list = match kind {
            "prestart" => self.hooks.prestart(),
            "createRuntime" => self.hooks.create_runtime(),
            "createContainer" => self.hooks.create_container(),
            "startContainer" => self.hooks.start_container(),
            _ => self.hooks.poststart(),
        };
        list.as_deref().unwrap_or_default()
    }

    /// Where the container has to wait, with this program's end of the socket.
    pub(super) fn stops(&self) -> Result<Option<(Stops, OwnedFd)>> {
        let early = ["prestart", "createRuntime", "createContainer"].iter().any(|kind| !self.list(kind).is_empty());
        let late = !self.list("startContainer").is_empty();
        if !early && !late {
            return Ok(None);
        }
        let (ours, theirs) = launch::halts()?;
        Ok(Some((Stops { socket: theirs, early, late }, ours)))
    }

    /// What is to be done where it waits, the first of its stops or the second.
    pub(super) fn at(&self, stop: usize, draft: &Draft, process: &Process) -> Result<()> {
        let first_is_early =
            ["prestart", "createRuntime", "createContainer"].iter().any(|kind| !self.list(kind).is_empty());
        if stop == 0 && first_is_early { self.early(draft, process) } else { self.late(draft, process) }
    }

    fn early(&self, draft: &Draft, process: &Process) -> Result<()> {
        let runtime = &draft.runtime;
        for kind in ["prestart", "createRuntime"] {
            for hook in self.list(kind) {
                on_host(runtime, kind, hook, &self.told("creating", Some(process.pid())))?;
            }
        }
        let kinds = kinds(draft);
        for hook in self.list("createContainer") {
            let state = self.told("creating", inside(process.pid()));
            run(runtime, "createContainer", hook, &state, |[stdin, stdout, stderr]| {
                let place =
                    HookPlace::Container { process: process.pidfd(), kinds: &kinds, identity: &self.rung.identity };
                hook_plan(hook, place, [stdin, stdout, stderr])
            })?;
        }
        Ok(())
    }

    /// As further commands of the container are run: what is run is the image's.
    fn late(&self, draft: &Draft, process: &Process) -> Result<()> {
        let runtime = &draft.runtime;
        let kinds = kinds(draft);
        let Some(command) = draft.spec.process() else { return Ok(()) };
        let maps = exec::maps(runtime, &kinds, process.pid())?;
        for hook in self.list("startContainer") {
            let mut command = command.clone();
            let path = hook.path().to_string_lossy().into_owned();
            let mut args = hook.args().clone().filter(|args| !args.is_empty()).unwrap_or_else(|| vec![path.clone()]);
            // What is executed is the path, whatever the first argument says.
            args[0] = path;
            command.set_args(Some(args)).set_env(hook.env().clone()).set_cwd("/".into());
            let state = self.told("created", inside(process.pid()));
            run(runtime, "startContainer", hook, &state, |stdio| {
                self.rung.backend.exec(ExecRequest {
                    process: &command,
                    namespaces: &kinds,
                    container: process.pidfd(),
                    identity: &self.rung.identity,
                    layer: draft.layer.as_ref(),
                    host: &runtime.host,
                    stdio: stdio.map(Stream::Fd),
                    stdio_made: [false; 3],
                    console: None,
                    seccomp: draft.seccomp.as_deref(),
                    seccomp_flags: draft.seccomp_flags,
                    personality: persona(&draft.spec),
                    maps: maps.each_ref().map(Vec::as_slice),
                    joining: exec::joining(runtime, &draft.info)?,
                })
            })?;
        }
        Ok(())
    }

    /// When the command has been executed.
    pub(super) fn started(&self, draft: &Draft, process: &Process) {
        for hook in self.list("poststart") {
            let done = on_host(&draft.runtime, "poststart", hook, &self.told("running", Some(process.pid())));
            if let Err(error) = done {
                draft.runtime.note_hook(&draft.info.id, error.to_string());
            }
        }
    }

    fn told(&self, status: &str, pid: Option<u32>) -> Value {
        told(&self.state, status, pid)
    }
}

/// What the record keeps of the spec's hooks.
pub(super) fn last(runtime: &Runtime, spec: &oci_spec::runtime::Spec, info: &Info) -> Option<Last> {
    let hooks = spec.hooks().as_ref()?.poststop().clone().filter(|hooks| !hooks.is_empty())?;
    Some(Last { hooks, state: state(runtime, spec, info) })
}

/// When a container is gone.
pub(super) fn gone(runtime: &Runtime, info: &Info) {
    let Some(last) = &info.last else { return };
    for hook in &last.hooks {
        if let Err(error) = on_host(runtime, "poststop", hook, &told(&last.state, "stopped", None)) {
            runtime.note_hook(&info.id, error.to_string());
        }
    }
}

impl Container {
    /// What poststart and poststop hooks of its spec failed with, in sentences: by the runtime spec that changes nothing
    /// about the container. Those of poststop can be asked for after [`remove`](Container::remove); of a container that
    /// goes with its value there is nobody left to ask.
    pub fn hook_failures(&self) -> Vec<String> {
        self.inner.runtime.hook_notes(&self.id())
    }
}

fn state(runtime: &Runtime, spec: &oci_spec::runtime::Spec, info: &Info) -> Value {
    json!({
        "ociVersion": spec.version(),
        "id": info.id.to_string(),
        "bundle": record::directory(runtime.root(), &info.id),
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
}

/// See <https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state>.
fn told(state: &Value, status: &str, pid: Option<u32>) -> Value {
    let mut state = state.clone();
    state["status"] = status.into();
    if let Some(pid) = pid {
        state["pid"] = pid.into();
    }
    state
}

fn kinds(draft: &Draft) -> Vec<LinuxNamespaceType> {
    let namespaces = draft.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().map(|namespace| namespace.typ()).collect()
}

/// The number of a process in its own pid namespace.
fn inside(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

fn on_host(runtime: &Runtime, kind: &str, hook: &Hook, state: &Value) -> Result<()> {
    run(runtime, kind, hook, state, |stdio| hook_plan(hook, HookPlace::Host, stdio))
}

/// Runs one hook to its end.
fn run(
    runtime: &Runtime,
    kind: &str,
    hook: &Hook,
    state: &Value,
    plan: impl FnOnce([OwnedFd; 3]) -> Result<Plan>,
) -> Result<()> {
    let step = format!("run the {kind} hook");
    let fail = |syscall: &'static str| {
        let step = step.clone();
        move |error: io::Error| Error::io(step, syscall, error)
    };
    let mut input = File::from(launch::in_memory(state.to_string().as_bytes())?);
    input.rewind().map_err(fail("lseek"))?;
    let null = File::options().write(true).open("/dev/null").map_err(fail("open"))?;
    let (mut said, stderr) = io::pipe().map_err(fail("pipe2"))?;
    nix::fcntl::fcntl(&said, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .map_err(|errno| fail("fcntl")(errno.into()))?;
    let plan = plan([input.into(), null.into(), stderr.into()])?;
    let begin = Instant::now();
    let process = launch::launch(plan, runtime.root_fd(), &runtime.root().join("tmp"))
        .map_err(|error| Error::new(error.kind(), step.clone()).path(hook.path()).source_is(error))?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let mut told = vec![];
    loop {
        // It shall not wait for somebody to read what it says. A slice of time is all that this takes from it.
        let ended = process.wait(Some(Duration::from_millis(20)))?;
        let mut piece = [0u8; 4096];
        while let Ok(count @ 1..) = said.read(&mut piece) {
            let room = TOLD.saturating_sub(told.len()).min(count);
            told.extend_from_slice(&piece[..room]);
        }
        let refuse = |why: String| Err(Error::new(ErrorKind::Launch, step.clone()).path(hook.path()).because(why));
        match (ended, limit) {
            (Some(ended), _) if ended.code == Some(0) => return Ok(()),
            (Some(ended), _) => {
                let how = match (ended.code, ended.signal) {
                    (Some(code), _) => format!("it ended with status {code}"),
                    (_, signal) => format!("it died of signal {}", signal.unwrap_or_default()),
                };
                let told = String::from_utf8_lossy(&told);
                let told = told.trim();
                return refuse(if told.is_empty() { how } else { format!("{how}: {told}") });
            }
            (None, Some(limit)) if begin.elapsed() >= limit => {
                process.signal(libc::SIGKILL)?;
                process.wait(None)?;
                return refuse(format!("it had not ended after {} seconds, and was killed", limit.as_secs()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    #[test]
    fn a_state_has_a_pid_while_there_is_a_process() {
        let state = told(&json!({"id": "x"}), "stopped", None);
        assert_eq!(state, json!({"id": "x", "status": "stopped"}));
        assert_eq!(told(&state, "running", Some(7))["pid"], 7);
        assert_eq!(inside(std::process::id()).is_some(), Path::new("/proc/self/status").exists());
    }
}
