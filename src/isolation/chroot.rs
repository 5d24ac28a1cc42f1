//! The third rung: another root, and nothing else of namespaces. For roots that may change theirs and may not mount.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Aspect, Enforcement, Ground, Isolation, Level, Request, Stream, bare};
use crate::launch::Plan;
use crate::security::{self, Capability};
use crate::snapshot::Mount;
use crate::{Error, ErrorKind, Result};

/// chroot(2), with capabilities that would lead out of it taken away, a system call filter, no-new-privileges, and landlock on
/// top where the kernel has it.
///
/// Runs an image from a copy of its tree ([`Reflink`](crate::snapshot::Reflink) or [`Copy`](struct@crate::snapshot::Copy)), for
/// overlay would have to be mounted; or a directory of the host whose root is [read-only](crate::ContainerBuilder::read_only),
/// which takes landlock. Nothing is mounted: `/proc`, `/sys` and `/dev` are what the image has there, which is mostly nothing,
/// and mounts of the caller's are an error. So is a device node in the tree, which nothing would keep shut.
///
/// Processes are those of the host, as with [`Landlock`](super::Landlock).
#[derive(Debug, Clone, Copy)]
pub struct Chroot;

const STEP: &str = "change the root to the container's tree";

impl Isolation for Chroot {
    fn name(&self) -> &'static str {
        "chroot"
    }

    fn ground(&self) -> Ground {
        Ground::Directory
    }

    fn enforcement(&self, request: &Request<'_>) -> Enforcement {
        let mut enforcement = Enforcement::full("chroot");
        let abi = request.host.landlock_abi().unwrap_or(0);
        if bare::holds(request, Capability::SysChroot) && abi == 0 {
            for aspect in [Aspect::FilesystemRead, Aspect::FilesystemWrite] {
                enforcement.lower(aspect, Level::None, "with CAP_SYS_CHROOT the change of the root can be undone");
            }
        }
        if abi == 0 {
            let reason = "without landlock, whoever has a user of the host's is let into the processes of that";
            for aspect in [Aspect::FilesystemRead, Aspect::FilesystemWrite] {
                enforcement.lower(aspect, Level::None, reason);
            }
        }
        if is_the_hosts(request) {
            let reason = "modes, owners, times and attributes of the host's files can be changed, set-user-ID included, and \
                          sockets and named pipes in the directory be connected to";
            enforcement.lower(Aspect::FilesystemWrite, Level::None, reason);
        }
        enforcement.note(Aspect::FilesystemRead, "there is no /proc, /sys or /dev but what the tree has");
        if !request.readable.is_empty() && abi == 0 {
            enforcement.lower(Aspect::FilesystemRead, Level::Partial, "landlock is missing, which would confine reads");
        }
        if request.is_read_only() && abi == 0 {
            enforcement.lower(Aspect::FilesystemWrite, Level::None, "without mounts and landlock no tree is read-only");
        }
        bare::judge(&mut enforcement, request, abi);
        enforcement
    }

    fn plan(&self, mut request: Request<'_>) -> Result<Plan> {
        let refuse = |why: &'static str| Error::new(ErrorKind::Unsupported, STEP).because(why);
        let abi = request.host.landlock_abi();
        let (source, writable) = match &request.snapshot.root {
            Mount::Bind { source, read_only, .. } => (source.clone(), !read_only),
            Mount::Overlay { .. } => {
                return Err(refuse("an overlay would have to be mounted, and nothing can be")
                    .remedy("open the engine with the copy or reflink snapshotter"));
            }
            Mount::Tmpfs { .. } => return Err(refuse("a tmpfs would have to be mounted, and nothing can be")),
        };
        if !writable && (!request.is_read_only() || abi.is_none()) {
            return Err(refuse("writes to a directory of the host cannot be thrown away without mounts").remedy(
                "make its root read-only, which takes landlock; or import the directory as an image, and run that",
            ));
        }
        if let Some(device) = device_in(&source)? {
            return Err(Error::new(ErrorKind::Hostile, STEP).path(device).because(
                "it is a device, and without a mount of its own nothing keeps the container from opening it",
            ));
        }
        let root = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(&source)
            .map_err(|error| Error::io(STEP, "open", error).path(&source))?;
        if let Stream::Null = request.stdio[0] {
            // A pipe that nobody writes to ends as that does, and takes no device.
            let (reader, _) = std::io::pipe().map_err(|error| Error::io(STEP, "pipe2", error))?;
            request.stdio[0] = Stream::Fd(reader.into());
        }
        let null = request.stdio.iter().any(|stream| matches!(stream, Stream::Null)).then(|| null(request.root));
        let ruleset = ruleset(&request);
        let tree = bare::Tree { root, path: &source, null: null.transpose()?, writable };
        let mut plan = bare::plan(request, Some(tree))?;
        if let Some(abi) = abi {
            plan.landlock(&ruleset, abi)?;
        }
        Ok(plan)
    }
}

fn ruleset(request: &Request<'_>) -> security::Landlock {
    let mut ruleset = security::Landlock::nothing();
    match request.readable {
        [] => {
            ruleset.read("/");
        }
        paths => {
            for path in paths {
                ruleset.read(path);
            }
        }
    }
    if !request.is_read_only() && request.readable.is_empty() {
        ruleset.write("/");
    }
    if !request.without_network() {
        ruleset.tcp();
    }
    ruleset
}

/// Whether the tree is a directory of the host's, and no copy.
fn is_the_hosts(request: &Request<'_>) -> bool {
    matches!(request.snapshot.root, Mount::Bind { read_only: true, .. })
}

/// A device node somewhere in the tree, on whichever file system; no link is followed.
fn device_in(root: &Path) -> Result<Option<PathBuf>> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::io("look for devices in the container's tree", "readdir", error).path(path)
    };
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(fail(&dir))? {
            let entry = entry.map_err(fail(&dir))?;
            let kind = entry.file_type().map_err(fail(&dir))?;
            if kind.is_block_device() {
                return Ok(Some(entry.path()));
            }
            // Whiteouts of what overlay would merge are devices of number 0, which nothing answers to; and of what keeps
            // nothing, everybody may have one.
            if kind.is_char_device() {
                let device = entry.metadata().map_err(fail(&dir))?.rdev();
                let harmless = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (0, 0)];
                if !harmless.contains(&(nix::sys::stat::major(device), nix::sys::stat::minor(device))) {
                    return Ok(Some(entry.path()));
                }
            }
            if kind.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(None)
}

/// A null device of the container's own: with the host's, root in the container would have its mode to change. It has no name
/// any more when this returns.
fn null(root: &Path) -> Result<File> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let name = format!("null-{}", crate::name::ContainerId::random()?.short());
    let mut last = None;
    for dir in [&root.join("tmp"), Path::new("/var/tmp"), Path::new("/run"), Path::new("/tmp")] {
        let path = dir.join(&name);
        match mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)) {
            Err(errno) => last = Some(Error::sys("make a null device", "mknod", errno as i32).path(&path)),
            Ok(()) => {
                let opened = File::options().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path);
                let removed = std::fs::remove_file(&path);
                match (opened, removed) {
                    (Ok(file), Ok(())) => return Ok(file),
                    (Err(error), _) => last = Some(Error::io("make a null device", "open", error).path(&path)),
                    (_, Err(error)) => return Err(Error::io("make a null device", "unlink", error).path(&path)),
                }
            }
        }
    }
    let error = last.unwrap_or_else(|| Error::new(ErrorKind::Unsupported, "make a null device"));
    Err(error
        .kind_is(ErrorKind::Unsupported)
        .because("CAP_MKNOD is missing, or no file system here lets devices be opened")
        .remedy("give the container pipes or files for its output"))
}
