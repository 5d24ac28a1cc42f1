//! The second rung: a command of the host's, restricted by landlock, for where namespaces are refused.

use super::{Aspect, Enforcement, Ground, Isolation, Level, Request, bare, namespaces};
use crate::Result;
use crate::launch::Plan;
use crate::probe::Feature;
use crate::security;

/// Landlock (Linux 5.13), with a system call filter and no-new-privileges; see landlock(7).
///
/// Runs commands over the host's own tree, [`Engine::sandbox`](crate::Engine::sandbox) that is: as this program's user, or
/// as another if this program is root, without capabilities. The root has to be
/// [read-only](crate::ContainerBuilder::read_only), for writes cannot be thrown away; bind mounts whose target is their source
/// name the directories that can be written. Images, tmpfs mounts and host names of their own are an error.
///
/// The command is in sight of the host's processes, and they of it; [`Container::pid`](crate::Container::pid) is the process
/// that watches over it, its parent. All that comes of it is killed when it ends, by a process
/// of this crate that watches over it, and as a whole where it has a control group. With the host program killed the same
/// happens. Only who kills that process by itself may leave something behind; the command is not able to (6.12).
#[derive(Debug, Clone, Copy)]
pub struct Landlock;

impl Isolation for Landlock {
    fn name(&self) -> &'static str {
        "landlock"
    }

    fn ground(&self) -> Ground {
        Ground::Host
    }

    fn enforcement(&self, request: &Request<'_>) -> Enforcement {
        let mut enforcement = Enforcement::full("landlock");
        let abi = request.host.landlock_abi().unwrap_or(0);
        if abi == 0 {
            for aspect in [Aspect::FilesystemRead, Aspect::FilesystemWrite] {
                enforcement.lower(aspect, Level::None, "this kernel, or a filter around this program, has no landlock");
            }
        }
        let read = Aspect::FilesystemRead;
        enforcement.lower(read, Level::Partial, "landlock hides no names, sizes and owners of files");
        if request.readable.is_empty() && !request.hidden.is_empty() {
            enforcement.note(read, "the engine's root is in sight");
        }
        let write = Aspect::FilesystemWrite;
        let reason = "modes, owners, times and attributes of files that its user owns can be changed, and sockets and named \
                      pipes of the host that its user may use can be connected to";
        enforcement.lower(write, Level::Partial, reason);
        if abi < 3 {
            enforcement.note(write, "files that its user may write can be truncated (landlock from 6.2 on)");
        }
        if abi < 5 {
            enforcement.note(write, "devices that can be read take ioctl(2) (landlock from 6.10 on)");
        }
        let user = request.spec.process().as_ref().map_or(0, |process| process.user().uid());
        if user == 0 {
            let reason = "it is the host's root, if without capabilities, to whom most files belong; name another user";
            enforcement.lower(Aspect::Privileges, Level::Partial, reason);
        }
        bare::judge(&mut enforcement, request, abi);
        enforcement
    }

    fn plan(&self, request: Request<'_>) -> Result<Plan> {
        let Some(abi) = request.host.landlock_abi() else {
            return Err(request.host.finding(Feature::Landlock).error("restrict the command by landlock"));
        };
        let mut ruleset = security::Landlock::nothing();
        if request.readable.is_empty() {
            ruleset.read("/");
        }
        for path in request.readable {
            ruleset.read(path);
        }
        for path in request.writable {
            ruleset.write(path);
        }
        for path in namespaces::DEVICES {
            ruleset.r#use(path);
        }
        if !request.without_network() {
            ruleset.tcp();
        }
        let mut plan = bare::plan(request, None)?;
        plan.landlock(&ruleset, abi)?;
        Ok(plan)
    }
}
