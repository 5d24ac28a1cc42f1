//! A container on its way: its record, snapshot and control group, made in this order and taken away again when a later
//! step fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::builder::{ContainerBuilder, From, Network};
use super::edits;
use super::exec::Template;
use super::hooks;
use super::owner::Owner;
use super::record::{self, Info, State};
use super::rung::Rung;
use super::runtime::Runtime;
use crate::cgroup::{Devices, Group, Limits};
use crate::image::{self, Images};
use crate::isolation::{Aspect, Console, Ground, Identity, MadeFile, Request, Stream, devices, resources, validate};
use crate::name::{ContainerId, ContainerName};
use crate::security::{Capability, CapabilitySet, Landlock, Masking, Seccomp};
use crate::snapshot::{Base, Mount, Snapshot};
use crate::{Error, ErrorKind, Result};

/// A container that is being made: whatever exists of it is removed again, unless it is kept.
pub(super) struct Draft {
    pub(super) runtime: Arc<Runtime>,
    pub(super) owner: Arc<Owner>,
    pub(super) info: Info,
    pub(super) group: Option<Group>,
    /// Why there is no group.
    pub(super) no_group: String,
    pub(super) snapshot: Snapshot,
    pub(super) spec: Spec,
    pub(super) filter: Seccomp,
    pub(super) seccomp: Option<Arc<[u8]>>,
    pub(super) seccomp_flags: u32,
    pub(super) files: Vec<MadeFile>,
    pub(super) hidden: Vec<PathBuf>,
    pub(super) writable: Vec<PathBuf>,
    pub(super) readable: Vec<PathBuf>,
    /// What landlock allows on top of namespaces.
    pub(super) layer: Option<Landlock>,
    pub(super) kept: bool,
}

/// What is kept of a draft once its process runs.
pub(super) struct Made {
    pub(super) owner: Arc<Owner>,
    pub(super) info: Info,
    pub(super) group: Option<Group>,
    pub(super) images: Option<Images>,
}

impl Draft {
    pub(super) fn keep(mut self, images: Option<Images>) -> Made {
        self.kept = true;
        Made { owner: self.owner.clone(), info: self.info.clone(), group: self.group.take(), images }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // The error that led here is the one to be told; what stays is swept by the next open.
            super::take_away(&self.runtime, &self.info, self.group.as_ref()).ok();
        }
    }
}

impl ContainerBuilder {
    /// Makes what a container has on disk.
    pub(super) fn draft(&self, rung: &Rung) -> Result<Draft> {
        let runtime = &self.runtime;
        let name = self.name.as_deref().map(str::parse::<ContainerName>).transpose()?;
        let owner = runtime.owner()?;
        // Until the record is written, nobody removes the image or takes the directory for garbage.
        let hold = image::lock(runtime.root()).share()?;
        let base = match &self.base {
            From::Image(image) => {
                image.images().require(image)?;
                Base::Layers(image.ensure_layers(None)?)
            }
            From::Saved(saved) => saved.base()?,
            From::Directory(path) => {
                let step = "use the directory as a root";
                let status = std::fs::metadata(path).map_err(|error| Error::of_path(step, "stat", error, path))?;
                if !status.is_dir() {
                    return Err(Error::new(ErrorKind::Invalid, step).path(path).because("it is no directory"));
                }
                Base::Directory(path.clone())
            }
        };
        let view = base.view()?;
        let id = ContainerId::random()?;
        let decided = self.decide(rung, &id, &view)?;
        let info = Info {
            id,
            name: name.map(|name| name.to_string()),
            image: self.base.image().map(|image| image.id().to_string()),
            base: match &self.base {
                From::Image(image) => match image.called().first() {
                    Some(name) => name.familiar(),
                    None => image.id().short().to_owned(),
                },
                From::Saved(saved) => saved.id().short().to_owned(),
                From::Directory(path) => path.display().to_string(),
            },
            command: decided.shown,
            created: record::now(),
            started: None,
            finished: None,
            state: State::Created,
            exit: None,
            pid: None,
            start_time: None,
            watched: false,
            keep: self.keep,
            stop_signal: decided.stop_signal.number(),
            mount_points: mount_points(&decided.spec, &decided.files),
            groups: vec![],
            template: Template::of(
                rung,
                &decided.spec,
                (&decided.filter, decided.seccomp_flags),
                decided.seccomp.as_deref(),
                decided.layer.as_ref(),
            ),
            last: None,
            owner: owner.name().to_owned(),
        };
        let info = Info { last: hooks::last(runtime, &decided.spec, &info), ..info };
        let directory = record::directory(runtime.root(), &info.id);
        let mut draft = Draft {
            runtime: runtime.clone(),
            owner,
            info,
            group: None,
            no_group: match rung.identity {
                Identity::Caller { .. } => "without root, a container is given no control group",
                _ => "containers in a user namespace are given no control group",
            }
            .to_owned(),
            snapshot: Snapshot::of(Mount::Tmpfs { mode: 0o755 }),
            spec: decided.spec,
            filter: decided.filter,
            seccomp: decided.seccomp,
            seccomp_flags: decided.seccomp_flags,
            files: decided.files,
            hidden: decided.hidden,
            writable: decided.writable,
            readable: decided.readable,
            layer: decided.layer,
            kept: false,
        };
        let made = self.make(&mut draft, rung, &directory, &base);
        // Before the draft goes, which waits for whoever has the container in hand: he may wait for the images.
        drop(hold);
        made.map(|()| draft)
    }

    fn make(&self, draft: &mut Draft, rung: &Rung, directory: &Path, base: &Base) -> Result<()> {
        let runtime = &self.runtime;
        super::make_directory(directory, "make the container's directory")?;
        // Before the record, which names it.
        if runtime.identity == Identity::Host {
            let devices = devices::rules(&draft.spec, &draft.filter)?;
            let limits = resources::limits(&draft.spec)?;
            let listed = resources::devices(&draft.spec)?.is_some_and(|listed| listed != Devices::Any);
            let lacking = |why: String| validate::refused("linux.resources", ErrorKind::Weaker, why);
            match runtime.make_group(&super::group_name(&draft.info.id), limits.clone(), devices) {
                Err(why) if listed || limits != Limits::default() => return Err(lacking(why)),
                Ok(group) => {
                    let lost = group.unenforced().iter().find(|lost| resources::asks(&limits, listed, lost.limit));
                    let lost = lost.map(|lost| lacking(lost.to_string()));
                    draft.info.groups = group.paths();
                    draft.group = Some(group);
                    if let Some(lost) = lost {
                        return Err(lost);
                    }
                }
                Err(why) => draft.no_group = why,
            }
        } else if resources::limits(&draft.spec)? != Limits::default() || resources::devices(&draft.spec)?.is_some() {
            let why = draft.no_group.clone();
            return Err(validate::refused("linux.resources", ErrorKind::Unsupported, why));
        }
        record::write(runtime.root(), &draft.info, runtime.durability)?;
        // After the record: a name without one is free.
        if let Some(name) = &draft.info.name {
            record::take_name(runtime.root(), name, &draft.info.id)?;
        }
        if let From::Saved(saved) = &self.base {
            super::snapshot::stand_on(directory, Some(saved.id()))?;
        }
        // What is there already needs nothing made for it.
        match (rung.ground(), base) {
            (Ground::Host, _) => {}
            (Ground::Directory, Base::Directory(path)) => {
                let mount = Mount::Bind { source: path.clone(), read_only: true, recursive: true };
                draft.snapshot = Snapshot::of(mount);
            }
            _ => draft.snapshot = runtime.snapshotter.prepare(directory, base)?,
        }
        Ok(())
    }

    pub(super) fn request<'a>(
        &'a self,
        draft: &'a mut Draft,
        rung: &'a Rung,
        stdio: [Stream; 3],
        stdio_made: [bool; 3],
        console: Option<Console>,
    ) -> Result<(Request<'a>, Vec<Aspect>)> {
        let runtime = &self.runtime;
        let mut waived = self.waived();
        if !self.edits.is_empty() {
            waived.extend(edits::given_away(&draft.spec, &draft.filter));
        }
        let request = Request {
            spec: &draft.spec,
            snapshot: &draft.snapshot,
            root: runtime.root(),
            root_fd: runtime.root_fd(),
            identity: &rung.identity,
            stdio,
            stdio_made,
            console,
            files: std::mem::take(&mut draft.files),
            seccomp: draft.seccomp.as_deref(),
            seccomp_flags: draft.seccomp_flags,
            filter: &draft.filter,
            stops: None,
            cgroup: draft.group.as_ref(),
            no_cgroup: &draft.no_group,
            unlimited: if draft.group.is_some() { runtime.unlimited() } else { &[] },
            init: self.init,
            hidden: std::mem::take(&mut draft.hidden),
            volatile: !self.keep,
            overlay_append: runtime.host.has_overlay_append(),
            host: &runtime.host,
            layer: draft.layer.as_ref(),
            readable: &draft.readable,
            writable: &draft.writable,
            cgroup_v2: runtime.host.cgroup_mode() == crate::probe::CgroupMode::Unified,
        };
        Ok((request, waived))
    }

    /// What options of the caller's give away by themselves.
    fn waived(&self) -> Vec<Aspect> {
        let profile = &self.profile;
        let mut waived = vec![];
        if self.network == Network::Host {
            waived.push(Aspect::Network);
        }
        if matches!(profile.seccomp, Seccomp::Unconfined | Seccomp::Custom(_)) {
            waived.push(Aspect::Syscalls);
        }
        let added = CapabilitySet::EMPTY.adjusted(self.cap_add.iter().map(String::as_str), []);
        let sys_admin = profile.capabilities.contains(Capability::SysAdmin)
            || added.is_ok_and(|added| added.contains(Capability::SysAdmin));
        let unmasked = profile.masking != Masking::DOCKER_2026_11;
        if !profile.no_new_privs || unmasked || sys_admin {
            waived.push(Aspect::Privileges);
        }
        if unmasked || sys_admin {
            waived.push(Aspect::FilesystemWrite);
        }
        waived
    }
}

/// Where mounts will be: what is made there for them is not the workload's.
fn mount_points(spec: &Spec, files: &[MadeFile]) -> Vec<String> {
    let mounts = spec.mounts().iter().flatten().map(|mount| mount.destination().to_string_lossy().into_owned());
    mounts.chain(files.iter().map(|file| file.target.to_owned())).collect()
}
