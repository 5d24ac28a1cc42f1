//! The container's tree, as steps.
//!
//! Everything is made detached while the host's tree can still be seen, then the root is changed and the old root is
//! gone, and only then is anything attached: no path that an image shaped is ever resolved with the host in reach.
//!
//! procfs, sysfs and `/dev` are attached through no symbolic link: one that an image has there could lead to a place
//! that stops existing, or that nobody looks at, as soon as the next file system is attached. What is masked or made
//! read-only below them is found from those mounts themselves.
//!
//! What a container finds in `/dev` comes from a small tmpfs of our own, called *parts* below. Only that one may hold
//! device nodes; it lies covered under the `/dev` that the container sees, whose nodes are binds of single files. Every
//! file system that the workload can write to is `nodev`, so CAP_MKNOD makes nothing that can be opened.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount as SpecMount, Spec};

use super::nodes::{devices, devices_of, furnish, given_devices, host_devices, make_devices};
use super::process::has_selinux;
use super::ways::Ways;
use super::{Console, Request, can_be_open, has_own, has_users, missing, names};
use crate::isolation::mount_options::{self, MS_SLAVE, NODEV, NOEXEC, NOSUID, Options, RDONLY};
use crate::isolation::validate::refused;
use crate::isolation::{sysctl, userns};
use crate::launch::{Base, Care, Create, Op, Plan, Reg};
use crate::snapshot::Mount;
use crate::{Error, ErrorKind, Result};

/// Longest string that fsconfig(2) takes, with its NUL.
const FSCONFIG_LIMIT: usize = 256;
/// Longest data that mount(2) takes.
const PAGE: usize = 4096;

/// A mount that exists and is to be attached.
struct Ready {
    mount: Reg,
    at: PathBuf,
    create: Create,
    care: Care,
}

/// Attached where no image can lead elsewhere.
const OURS: Care = Care { optional: false, guarded: false, no_links: true };

/// The steps; they end with the parts and, where one was asked for, the slave of a terminal.
pub(super) fn build(
    plan: &mut Plan,
    request: &mut Request<'_>,
    (ways, stop): (&Ways, Option<Reg>),
) -> Result<(Reg, Option<Reg>)> {
    let spec = request.spec;
    let rootless = has_users(request);
    // The user namespace that the host's root is about to enter: what needs his rights comes before.
    let maps = ways.entered(request);
    // A slave of the host's mount is taken while that is still known as what it is: a private one has no slaves.
    let mut slaves = vec![];
    for mount in spec.mounts().iter().flatten() {
        let options = options_of(mount)?;
        let is_bind = mount.typ().as_deref().map_or(options.bind, |kind| kind == "bind");
        slaves.push(if is_bind && (options.propagation == MS_SLAVE || options.idmap.is_some() || maps.is_some()) {
            Some(bind_source(plan, request, mount, (&options, maps))?)
        } else {
            None
        });
    }
    plan.plain(Op::Private);
    let root_register = plan.send_copy(request.root_fd)?;
    plan.change_dir(request.root, root_register);
    if let Some(namespace) = maps {
        map_layers(plan, request, namespace)?;
        // Overlay makes its files as whoever mounts it, and ids that the map does not have cannot be on these mounts.
        match ways.root() {
            Some((uid, gid)) => plan.file_ids(uid, gid),
            None => {
                let why = "its map has no root, who the container is made by";
                return Err(refused("linux.namespaces", ErrorKind::Invalid, why));
            }
        }
    }
    let root = snapshot_mount(plan, request, &request.snapshot.root, maps)?;
    if maps.is_some() {
        ways.arrive(plan, request.identity);
    }
    let mut ready = vec![];
    for (at, mount) in &request.snapshot.inner {
        let mount = snapshot_mount(plan, request, mount, None)?;
        let at = Path::new("/").join(at);
        let care = Care { optional: true, guarded: true, no_links: false };
        ready.push(Ready { mount, at, create: Create::No, care });
    }
    let mut bases = vec![];
    let mut procfs = None;
    let (mut dev, mut devpts) = (None, None);
    for (mount, slave) in spec.mounts().iter().flatten().zip(slaves) {
        let destination = destination(mount)?;
        if destination == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs") {
            dev = Some(mount);
            continue;
        }
        let is_devpts = mount.typ().as_deref() == Some("devpts") && destination == Path::new("/dev/pts");
        let mounted = spec_mount(plan, request, mount, slave, destination)?;
        devpts = mounted.as_ref().filter(|_| is_devpts).map(|mounted| mounted.mount).or(devpts);
        if let (None, Some(mounted), Some("proc")) = (procfs, &mounted, mount.typ().as_deref()) {
            procfs = Some(mounted.mount);
        }
        bases.extend(mounted.as_ref().and_then(|mounted| base(request, mount, mounted)));
        ready.extend(mounted);
    }
    let dev = dev.ok_or_else(|| missing("tmpfs on /dev"))?;
    // In the container's own procfs, which nothing is mounted on yet: no image has a part in where these lead.
    let settings = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    for (name, value) in settings.into_iter().flatten() {
        let setting = sysctl::setting(name)
            .map_err(|why| refused(format!("linux.sysctl[{name:?}]"), ErrorKind::Unsupported, why))?;
        plan.sysctl(procfs, &setting.path, value);
    }
    let nodes = devices_of(spec);
    let inodes = (64 + nodes.len()).to_string();
    let parts = plan.file_system(
        "tmpfs",
        NOSUID | NOEXEC,
        &[("size", Some(b"1m")), ("nr_inodes", Some(inodes.as_bytes())), ("mode", Some(b"0755"))],
    );
    let options = options_of(dev)?;
    let data = data_of(&options);
    let dev = plan.file_system("tmpfs", options.set | NODEV | NOSUID, &data);
    let host_devices = if rootless { host_devices(plan)? } else { vec![] };
    let given = if rootless { given_devices(plan, nodes)? } else { vec![] };

    // Hooks find the container as it will be, but for its tree.
    names(plan, spec);
    if let Some(socket) = stop {
        plan.pause(socket, can_be_open(request));
    }
    plan.on(Op::Pivot, root);

    // The host's tree first, so that what follows covers it.
    let (inner, rest): (Vec<Ready>, Vec<Ready>) = {
        let count = request.snapshot.inner.len();
        let rest = ready.split_off(count);
        (ready, rest)
    };
    // All of it is the container's own tree.
    let own: Vec<Reg> = inner.iter().map(|ready| ready.mount).chain([root]).collect();
    for ready in inner {
        plan.attach(ready.mount, &ready.at, ready.create, ready.care);
    }
    plan.attach(parts, Path::new("/dev"), Create::Directory, OURS);
    furnish(plan, parts, request, &host_devices);
    plan.attach(dev, Path::new("/dev"), Create::No, OURS);
    devices(plan, parts, dev);
    if !rootless {
        make_devices(plan, parts, nodes);
    }
    let taken: Vec<PathBuf> = rest.iter().map(|ready| ready.at.clone()).collect();
    for ready in rest {
        plan.attach(ready.mount, &ready.at, ready.create, ready.care);
    }
    let terminal = match request.console.take() {
        Some(console) => Some(terminal(plan, request, console, devpts, dev, &taken)?),
        None => None,
    };
    for (index, device) in nodes.iter().enumerate() {
        let node = match given.get(index) {
            Some(node) => *node,
            None => plan.open_tree(Some(parts), Path::new(&format!("device{index}")), false, None),
        };
        let no_links = device.path().starts_with("/dev");
        plan.attach(node, device.path(), Create::File, Care { optional: false, guarded: true, no_links });
    }
    for file in &request.files {
        if taken.iter().any(|at| at == Path::new(file.target)) {
            continue;
        }
        let copy = plan.open_tree(Some(parts), Path::new(file.name), false, None);
        plan.attributes(copy, false, NODEV | NOSUID | NOEXEC, 0, 0);
        // A tree that has no /etc and cannot be given one does without.
        let care = Care { optional: true, guarded: true, no_links: false };
        plan.attach(copy, Path::new(file.target), Create::File, care);
    }
    if let Some(linux) = spec.linux() {
        for path in linux.masked_paths().iter().flatten().map(Path::new) {
            plan.cover(parts, path, below(&bases, path));
        }
        for path in linux.readonly_paths().iter().flatten().map(Path::new) {
            plan.read_only(path, below(&bases, path));
        }
    }
    for path in &request.snapshot.masked {
        plan.cover(parts, &Path::new("/").join(path), None);
    }
    for path in &request.hidden {
        plan.cover(parts, path, None);
    }
    if spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        for mount in own {
            plan.attributes(mount, false, RDONLY, 0, 0);
            plan.on(Op::VerifyReadOnly, mount);
        }
    }
    let propagation = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
    if let Some((kind, recursive)) = propagation.and_then(mount_options::propagation) {
        // Of a tree that only the container has: nothing of it is ever the host's.
        plan.attributes(root, recursive, 0, 0, kind);
    }
    Ok((parts, terminal))
}

/// A terminal in the container's own devpts, which is in its place by now. Its slave is `/dev/console` as well, as docker
/// has it, unless the caller has mounted something there.
fn terminal(
    plan: &mut Plan,
    request: &Request<'_>,
    console: Console,
    devpts: Option<Reg>,
    dev: Reg,
    taken: &[PathBuf],
) -> Result<Reg> {
    let Some(devpts) = devpts else {
        return Err(Error::new(ErrorKind::Invalid, "open a pseudo-terminal")
            .path("/dev/pts")
            .because("a mount of the caller's is in the place of the container's own devpts")
            .remedy("leave that mount out, or the terminal"));
    };
    let uid = request.spec.process().as_ref().map_or(0, |process| process.user().uid());
    let slave = super::open_terminal(plan, console, Some(devpts), uid);
    let name = "console";
    if !taken.iter().any(|at| at == &Path::new("/dev").join(name)) {
        let copy = plan.open_tree(Some(slave), Path::new(""), false, Some(slave));
        plan.file(dev, name, 0o600, b"");
        plan.attach_in(copy, dev, name);
    }
    Ok(slave)
}

/// The mount as something below which paths are masked, if it is procfs or sysfs.
fn base(request: &Request<'_>, mount: &SpecMount, mounted: &Ready) -> Option<(PathBuf, Base)> {
    const PROC_SUPER_MAGIC: u32 = 0x9fa0;
    const SYSFS_MAGIC: u32 = 0x6265_6572;
    let magic = match mount.typ().as_deref()? {
        "proc" => PROC_SUPER_MAGIC,
        // The host's own, where what has been mounted on it may cover such a path already.
        "sysfs" if is_host_sysfs(request) => 0,
        "sysfs" => SYSFS_MAGIC,
        _ => return None,
    };
    Some((mounted.at.clone(), Base(mounted.mount, magic)))
}

/// A user namespace may not mount a sysfs of a network namespace that is not its own.
fn is_host_sysfs(request: &Request<'_>) -> bool {
    has_users(request) && !has_own(request.spec, LinuxNamespaceType::Network)
}

/// Which of the mounts the path is below, and its path there.
fn below<'a>(bases: &[(PathBuf, Base)], path: &'a Path) -> Option<(Base, &'a Path)> {
    let rest = |at| path.strip_prefix(at).ok().filter(|rest| !rest.as_os_str().is_empty());
    bases.iter().find_map(|(at, base)| Some((*base, rest(at)?)))
}

/// One mount of the snapshot, detached.
fn snapshot_mount(plan: &mut Plan, request: &Request<'_>, mount: &Mount, maps: Option<Reg>) -> Result<Reg> {
    Ok(match mount {
        Mount::Overlay { lower, upper, work } => {
            let bytes = |path: &Path| {
                let path = path.strip_prefix(request.root).unwrap_or(path);
                path.as_os_str().as_bytes().to_vec()
            };
            let lower: Vec<Vec<u8>> = lower.iter().map(|path| bytes(path)).collect();
            let (upper, work) = (bytes(upper), bytes(work));
            let joined = lower.iter().map(|path| escaped(path)).collect::<Vec<_>>().join(&b':');
            let mut options: Vec<(&str, Option<&[u8]>)> = vec![];
            let by_string = match request.overlay_append {
                true => lower.iter().all(|path| path.len() < FSCONFIG_LIMIT),
                // Kernels that old refuse a comma there, escaped or not.
                false => joined.len() < FSCONFIG_LIMIT && !joined.contains(&b','),
            };
            if !by_string {
                return legacy_overlay(plan, request, &joined, &upper, &work);
            }
            if request.overlay_append {
                options.extend(lower.iter().map(|path| ("lowerdir+", Some(path.as_slice()))));
            } else {
                options.push(("lowerdir", Some(&joined)));
            }
            options.extend([("upperdir", Some(upper.as_slice())), ("workdir", Some(&work))]);
            if request.identity.is_rootless() {
                // It switches the three below off by itself.
                options.push(("userxattr", None));
            } else {
                // Or the upper directory would not be the difference.
                let off = Some(&b"off"[..]);
                options.extend([("redirect_dir", off), ("metacopy", off), ("index", off)]);
            }
            if request.volatile {
                options.push(("volatile", None));
            }
            options.extend(label_of(request.spec)?);
            plan.file_system("overlay", NODEV, &options)
        }
        Mount::Bind { source, read_only, recursive } => {
            let expect = plan.send(open_source(source)?.into());
            let tree = plan.open_tree(None, source, *recursive, Some(expect));
            if let Some(namespace) = maps {
                plan.idmap(tree, namespace, false, source);
            }
            let set = NODEV | if *read_only { RDONLY } else { 0 };
            plan.attributes(tree, *recursive, set, 0, 0);
            if *read_only {
                plan.on(Op::VerifyReadOnly, tree);
            }
            tree
        }
        Mount::Tmpfs { mode } => {
            let mode = format!("{mode:o}");
            plan.file_system("tmpfs", NODEV | NOSUID, &[("mode", Some(mode.as_bytes()))])
        }
    })
}

/// Shows the layers and the writable part with ids as the user namespace maps them: mounts of them that cover them, in a
/// mount namespace that only this process sees. What is written has the ids of inside, and so have images of it.
fn map_layers(plan: &mut Plan, request: &Request<'_>, namespace: Reg) -> Result<()> {
    let snapshot = request.snapshot;
    let of_host = |path: &Path| !path.starts_with(request.root);
    let foreign = match &snapshot.root {
        Mount::Overlay { lower, .. } => lower.iter().any(|path| of_host(path)),
        Mount::Bind { source, .. } => of_host(source),
        Mount::Tmpfs { .. } => false,
    };
    if foreign || !snapshot.inner.is_empty() {
        let why = "the ids of a tree of the host are not mapped";
        return Err(refused("linux.uidMappings", ErrorKind::Unsupported, why).remedy("use an image"));
    }
    let Mount::Overlay { lower, upper, .. } = &snapshot.root else { return Ok(()) };
    // Overlay wants the writable directories on one mount: that of the container's own directory.
    for path in lower.iter().map(PathBuf::as_path).chain(upper.parent()) {
        let path = path.strip_prefix(request.root).unwrap_or(path);
        let tree = plan.open_tree(None, path, false, None);
        plan.idmap(tree, namespace, false, path);
        plan.cover_source(tree, path);
    }
    Ok(())
}

/// A lower directory as the joined form of the option takes it, where `:` and `,` separate.
fn escaped(path: &[u8]) -> Vec<u8> {
    let special = |byte: &u8| matches!(byte, b':' | b',' | b'\\');
    path.iter().flat_map(|byte| special(byte).then_some(b'\\').into_iter().chain([*byte])).collect()
}

/// An overlay whose lower directories are longer than one string of fsconfig(2) can be: one path that is, or many layers
/// on a kernel that does not take them one by one. `lower` is escaped and joined. Mounted by mount(2) over its own upper directory, which only this mount namespace sees, and picked up from there.
fn legacy_overlay(plan: &mut Plan, request: &Request<'_>, lower: &[u8], upper: &[u8], work: &[u8]) -> Result<Reg> {
    const MS_NODEV: u64 = 4;
    let mut data = [b"lowerdir=", lower, b",upperdir=", upper, b",workdir=", work].concat();
    data.extend_from_slice(match request.identity.is_rootless() {
        true => b",userxattr",
        false => b",redirect_dir=off,metacopy=off,index=off",
    });
    if request.volatile {
        data.extend_from_slice(b",volatile");
    }
    if data.len() >= PAGE {
        if let Mount::Overlay { lower, .. } = &request.snapshot.root
            && let [base] = lower.as_slice()
        {
            return Err(Error::new(ErrorKind::Limit, "overlay the directory")
                .path(base)
                .because("its path, or that of a mount inside it, is longer than the options of a mount may be")
                .remedy("use a directory with a shorter path"));
        }
        return Err(Error::new(ErrorKind::Unsupported, "mount the image's layers")
            .because("this kernel names all layers of an overlay in one page, and these are too many")
            .remedy("use Linux 6.5 or later, or open the engine with the copy snapshotter"));
    }
    let upper = Path::new(std::ffi::OsStr::from_bytes(upper));
    plan.legacy_mount("overlay", upper, "overlay", MS_NODEV, &data);
    Ok(plan.open_tree(None, upper, false, None))
}

/// A handle on a mount source. The stub opens it again in the container's namespace and compares.
pub(super) fn open_source(source: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(source)
        .map_err(|error| Error::io("open the mount source", "open", error).path(source))
}

/// The mount's destination: absolute, without `..`.
fn destination(mount: &SpecMount) -> Result<PathBuf> {
    let path = mount.destination();
    let refuse =
        |why: &'static str| Err(Error::new(ErrorKind::Invalid, "mount into the container").path(path).because(why));
    if !path.is_absolute() {
        return refuse("the target has to be an absolute path");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refuse("the target must not contain `..`");
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return refuse("the target must not be the root");
    }
    let kernel = ["proc", "sysfs", "cgroup", "cgroup2"];
    if !mount.typ().as_deref().is_some_and(|kind| kernel.contains(&kind))
        && (clean.starts_with("/proc") || clean.starts_with("/sys"))
    {
        return refuse("the target lies on /proc or /sys, where a mount could disarm the container's protection");
    }
    Ok(clean)
}

fn options_of(mount: &SpecMount) -> Result<Options> {
    mount_options::parse(mount.options().as_deref().unwrap_or(&[]))
}

fn data_of(options: &Options) -> Vec<(&str, Option<&[u8]>)> {
    options.data.iter().map(|(key, value)| (key.as_str(), value.as_deref().map(str::as_bytes))).collect()
}

/// An option of a file system: its key, and its value where it has one.
type Setting<'a> = (&'a str, Option<&'a [u8]>);

/// `linux.mountLabel`, as the option of a file system. Those of the kernel have labels of their own.
fn label_of(spec: &Spec) -> Result<Option<Setting<'_>>> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    match label.filter(|label| !label.is_empty()) {
        Some(_) if !has_selinux() => {
            let why = "SELinux is not in force on this machine";
            Err(refused("linux.mountLabel", ErrorKind::Unsupported, why).remedy("take the label away"))
        }
        label => Ok(label.map(|label| ("context", Some(label.as_bytes())))),
    }
}

/// One mount of the spec, detached; `None` where there is nothing to mount on this host.
///
/// `slave` is the source of a bind mount that has been taken already.
fn spec_mount(
    plan: &mut Plan,
    request: &Request<'_>,
    mount: &SpecMount,
    slave: Option<Source>,
    at: PathBuf,
) -> Result<Option<Ready>> {
    let options = options_of(mount)?;
    let mut data = data_of(&options);
    data.extend(label_of(request.spec)?);
    let kind = mount.typ().as_deref().unwrap_or(if options.bind { "bind" } else { "" });
    let plain = |mount| Ready { mount, at: at.clone(), create: Create::Directory, care: OURS };
    Ok(Some(match kind {
        "sysfs" if is_host_sysfs(request) => {
            let tree = plan.open_tree(None, Path::new("/sys"), true, None);
            plan.attributes(tree, true, RDONLY | NOSUID | NODEV | NOEXEC, 0, 0);
            plain(tree)
        }
        "proc" | "sysfs" => {
            let tree = plan.file_system(kind, options.set | NOSUID | NODEV | NOEXEC, &data_of(&options));
            if options.set & RDONLY != 0 {
                plan.on(Op::VerifyReadOnly, tree);
            }
            plain(tree)
        }
        "cgroup" | "cgroup2" => {
            if !request.cgroup_v2 {
                // v1 shows one hierarchy per controller, with the host's release_agent in it: better none at all.
                return Ok(None);
            }
            let tree = plan.file_system("cgroup2", options.set | NOSUID | NODEV | NOEXEC | RDONLY, &[]);
            plan.on(Op::VerifyReadOnly, tree);
            Ready { create: Create::No, care: Care { optional: true, ..OURS }, ..plain(tree) }
        }
        "devpts" => {
            // Group 5 (tty) is not mapped for a single id, nor in the smallest of ranges.
            let mapped = !request.identity.shows_one() && request.identity.refuses(0, 5, &[]).is_none();
            let data: Vec<_> = data.into_iter().filter(|(key, _)| mapped || *key != "gid").collect();
            plain(plan.file_system("devpts", options.set | NOSUID | NOEXEC, &data))
        }
        "mqueue" => plain(plan.file_system("mqueue", options.set | NODEV | NOSUID | NOEXEC, &[])),
        "tmpfs" => {
            let set = options.set | if options.devices { 0 } else { NODEV };
            // What the spec puts on our /dev meets no link of an image; elsewhere links are an image's good right.
            let care = Care { optional: false, guarded: true, no_links: at.starts_with("/dev") };
            Ready { care, ..plain(plan.file_system("tmpfs", set, &data)) }
        }
        "bind" => {
            let source = match slave {
                Some(source) => source,
                None => bind_source(plan, request, mount, (&options, None))?,
            };
            bind(plan, &source, &options, at)
        }
        other => {
            return Err(Error::new(ErrorKind::Invalid, format!("mount a file system of type {other:?}"))
                .path(&at)
                .because("containers mount bind, tmpfs, proc, sysfs, devpts, mqueue and cgroup"));
        }
    }))
}

/// What is bound: a detached copy of the host's tree.
struct Source {
    tree: Reg,
    is_directory: bool,
}

/// Takes the source of a bind mount, with its propagation where it is a slave.
///
/// `maps` is the container's own user namespace, where that is there already.
fn bind_source(
    plan: &mut Plan,
    request: &Request<'_>,
    mount: &SpecMount,
    (options, maps): (&Options, Option<Reg>),
) -> Result<Source> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if !source.is_absolute() {
        return Err(Error::new(ErrorKind::Invalid, "bind into the container")
            .path(source)
            .because("the source has to be an absolute path of the host"));
    }
    if let Some((key, _)) = options.data.first() {
        return Err(Error::new(ErrorKind::Invalid, format!("use the mount option {key:?}"))
            .path(mount.destination())
            .because("a bind mount has no options of a file system"));
    }
    let real = std::fs::canonicalize(source).map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("open the mount source", "realpath", error).path(source);
        match missing {
            true => error
                .because("there is no such file or directory on the host, and none is made for a bind mount")
                .remedy("make it first (mkdir -p), or correct the path"),
            false => error,
        }
    })?;
    let file = open_source(&real)?;
    let status = file.metadata().map_err(|error| Error::io("open the mount source", "fstat", error).path(&real))?;
    let expect = plan.send(file.into());
    let tree = plan.open_tree(None, &real, options.recursive, Some(expect));
    if let Some(recursive) = options.idmap {
        let given = mount.uid_mappings().as_deref().zip(mount.gid_mappings().as_deref());
        let namespace = match (given, maps) {
            (Some((uids, gids)), _) => {
                let made = userns::make(uids, gids, request.root, request.root_fd)?;
                Some(plan.send(made))
            }
            (None, maps) => maps,
        };
        let why = "there is neither a map nor a user namespace of the container's that has one";
        let namespace = namespace.ok_or_else(|| refused("mounts[].uidMappings", ErrorKind::Invalid, why))?;
        plan.idmap(tree, namespace, recursive, &real);
    }
    if options.propagation == MS_SLAVE {
        // The mounts inside as well, asked for or not: as they are they would carry mounts out to the host.
        plan.attributes(tree, true, 0, 0, MS_SLAVE);
    }
    Ok(Source { tree, is_directory: status.is_dir() })
}

/// A bind mount of something of the host.
fn bind(plan: &mut Plan, source: &Source, options: &Options, at: PathBuf) -> Ready {
    let tree = source.tree;
    let nodev = if options.devices { 0 } else { NODEV };
    let (here, everywhere) = options.split();
    if here | options.clear != 0 {
        plan.attributes(tree, false, here, options.clear, 0);
    }
    if everywhere | nodev != 0 {
        plan.attributes(tree, options.recursive || options.recursive_attributes, everywhere | nodev, 0, 0);
    }
    let (set, clear) = options.everywhere;
    if set | clear != 0 {
        plan.attributes(tree, true, set, clear, 0);
    }
    if !matches!(options.propagation, 0 | MS_SLAVE) {
        plan.attributes(tree, options.recursive_propagation, 0, 0, options.propagation);
    }
    if options.set & RDONLY != 0 {
        plan.on(Op::VerifyReadOnly, tree);
    }
    let create = if source.is_directory { Create::Directory } else { Create::File };
    Ready { mount: tree, at, create, care: Care { guarded: true, ..Care::default() } }
}
