//! Bytes by digest: an [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) on
//! disk, which skopeo, umoci and podman read as it is.
//!
//! ```text
//! <root>/                  0700, owned by this user
//!   coracle.json           {"version":1}, written first: a directory without it is somebody else's, and not touched
//!   oci-layout             {"imageLayoutVersion":"1.0.0"}, written last: where it stands the rest stands
//!   index.json             the tags; replaced as a whole by rename, so readers take no lock
//!   index.lock             held exclusively by whoever replaces index.json, and by gc
//!   blobs/sha256/<hex>     complete and verified, or absent; never changed once there
//!   leases/<random>        digests, one a line; locked as long as the lease lives. A file that is not locked is garbage
//!   gc.lock                held shared while a lease takes a digest, exclusively while gc marks and sweeps
//!   gc.gate                held by who waits to have gc.lock alone; whoever shares it passes through here
//!   unsynced               there as long as something may not be on the disk, see [`Durability::Relaxed`]
//!   tmp/<random>           files and directories being made, each locked by its maker. One that is not locked is garbage
//! ```
//!
//! **Roots of garbage collection** are the entries of `index.json`, the digests that live leases hold, and what the
//! caller of [`Store::gc`] adds. Everything that a root reaches stays: an index reaches its manifests, a manifest its
//! config and layers.
//!
//! **Order for writers**: take a [`Lease`], hold the digest, *then* ask whether the blob is there, ingest it, and name
//! it in the index before the lease is dropped. So no collection comes between.

mod gc;
mod index;
mod ingest;
mod lease;
pub(crate) mod lock;
pub(crate) mod tmp;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use gc::Collected;
pub(crate) use gc::Collection;
pub use index::{IndexEntry, REF_NAME};
pub use ingest::Ingest;
pub use lease::Lease;
pub(crate) use lease::Leases;

use crate::name::{Algorithm, Digest};
pub use crate::sys::usage::{Measured, Usage};
use crate::{Error, ErrorKind, Result};

/// How hard the store works against a loss of power.
///
/// Either way another process, or this one after SIGKILL, never sees half a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Contents and names are on the disk before they are visible (fsync(2)).
    #[default]
    Full,
    /// Left to the kernel's write-back, but for the index: faster, and a loss of power may leave blobs and layers behind
    /// whose bytes are not those of their name. For stores that live on tmpfs or are thrown away.
    ///
    /// As long as such a store is open, and until the next one with `Full` has written everything out, a file
    /// `unsynced` in the root says so; then `Full` makes durable what it finds present, too.
    Relaxed,
}

/// A store of blobs and tags. Cloning is cheap; any number of threads and processes may work on one root.
///
/// ```no_run
/// use std::io::Write;
/// use coracle::content::Store;
///
/// let store = Store::open("/tmp/example".as_ref())?;
/// let mut ingest = store.ingest(None, None)?;
/// ingest.write_all(b"hello").unwrap();
/// let digest = ingest.commit()?;
/// assert_eq!(store.read_blob(&digest, 1024)?, b"hello");
/// # Ok::<(), coracle::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    durability: Durability,
    /// Relaxed: shared for as long as something may be written that is not synced.
    _unsynced: Option<File>,
}

const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// Says that something may not be on the disk yet; locked and shared by those who write such.
const UNSYNCED: &str = "unsynced";

/// What makes a directory ours. Without it nothing in the directory is touched, for it is somebody's.
const MARKER: &str = "coracle.json";
/// The version of everything that is in a root.
const VERSION: u32 = 1;

impl Store {
    /// Opens the store at `root` with [`Durability::Full`], making what is absent. See [`Store::open_with`].
    ///
    /// # Errors
    /// Those of [`Store::open_with`].
    pub fn open(root: &Path) -> Result<Store> {
        Store::open_with(root, Durability::Full)
    }

    /// Opens the store at `root`, making what is absent, and sweeps what dead processes left in `tmp/`.
    ///
    /// Idempotent, and safe while others open the same root. A relative `root` is resolved now, once.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] where `root` belongs to another user or others may write to it: whoever can write there
    /// decides what runs. [`ErrorKind::Conflict`] where it is a directory with something in it that this crate has not
    /// made, an image layout of another program included; nothing in it has been touched then.
    /// [`ErrorKind::Unsupported`] where it is an image layout, or a root, of another version.
    pub fn open_with(root: &Path, durability: Durability) -> Result<Store> {
        let step = "open the store";
        let root = std::path::absolute(root).map_err(|error| Error::io(step, "getcwd", error).path(root))?;
        check_root(&root)?;
        claim(&root)?;
        let unsynced = match durability {
            Durability::Full => None,
            Durability::Relaxed => Some(mark_unsynced(&root)?),
        };
        let store = Store { inner: Arc::new(Inner { root, durability, _unsynced: unsynced }) };
        match fs::read_to_string(store.path("oci-layout")) {
            Ok(text) => check_layout(&text).map_err(|error| error.path(store.path("oci-layout")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(step, "read", error).path(store.path("oci-layout"))),
        }
        store.make()?;
        // Garbage takes space and nothing else: never a reason not to open.
        let _ = tmp::sweep(&store.path("tmp"));
        Ok(store)
    }

    /// The directory that holds everything.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// What was chosen when it was opened.
    pub fn durability(&self) -> Durability {
        self.inner.durability
    }

    /// Reads the marker of the image layout again.
    pub(crate) fn check_layout(&self) -> Result<()> {
        let path = self.path("oci-layout");
        let text = fs::read_to_string(&path).map_err(|error| Error::io("open the store", "read", error).path(&path))?;
        check_layout(&text).map_err(|error| error.path(path))
    }

    /// Makes durable what stores without that promise have written, where there are or were any; whatever is named in
    /// the index after this survives a loss of power.
    pub(crate) fn settle(&self) -> Result<()> {
        let path = self.path(UNSYNCED);
        if self.durability() != Durability::Full || !path.exists() {
            return Ok(());
        }
        let failed = |syscall| move |error| Error::io("write out the store", syscall, error);
        // Before the contents are written out: who joins later leaves the mark alone, or makes another.
        let last = match File::open(&path) {
            Ok(file) => lock::Held::try_take_named(file).map_err(failed("flock"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("open")(error)),
        };
        let root = File::open(self.root()).map_err(failed("open"))?;
        crate::sys::fs::syncfs(std::os::fd::AsFd::as_fd(&root)).map_err(failed("syncfs"))?;
        if last.is_some() {
            // What cannot be removed costs a little time at each change.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// Makes the skeleton; `oci-layout` last.
    fn make(&self) -> Result<()> {
        for name in ["blobs", "blobs/sha256", "tmp", "leases"] {
            make_dir(&self.path(name))?;
        }
        if !self.path("index.json").exists() {
            self.update_index(|_| Ok(()))?;
        }
        if !self.path("oci-layout").exists() {
            // Blobs are only as durable as the way to them; the root itself is synced for the index and the layout.
            tmp::sync_parent(&self.path("blobs/sha256"), self.durability())?;
            self.write_file(&self.path("oci-layout"), LAYOUT.as_bytes())?;
        }
        Ok(())
    }

    /// A path below the root.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.inner.root.join(name)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.path("blobs");
        path.push(digest.algorithm().as_str());
        path.push(digest.hex());
        path
    }

    /// Replaces the file `path`, which lies on the store's file system, as a whole: written in `tmp/`, synced as
    /// [`Durability`] says, renamed.
    pub(crate) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.write_as(path, bytes, self.inner.durability)
    }

    /// [`write_file`](Store::write_file), synced in any case.
    fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.write_as(path, bytes, Durability::Full)
    }

    fn write_as(&self, path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
        let mut file = tmp::TmpFile::create(&self.path("tmp"))?;
        io::Write::write_all(file.file(), bytes)
            .map_err(|error| Error::io("write a file of the store", "write", error).path(path))?;
        file.publish(path, durability)
    }

    /// Starts to write a blob; nothing is visible before [`Ingest::commit`].
    ///
    /// Where `expected` or `size` (in bytes) are given, the bytes have to be these. The hash is that of `expected`,
    /// SHA-256 without it.
    ///
    /// # Errors
    /// Where no file can be made in `tmp/`.
    pub fn ingest(&self, expected: Option<&Digest>, size: Option<u64>) -> Result<Ingest> {
        Ingest::new(self.clone(), expected.cloned(), size)
    }

    /// Whether the blob is there, and therefore whole.
    pub fn contains(&self, digest: &Digest) -> bool {
        fs::symlink_metadata(self.blob_path(digest)).is_ok_and(|metadata| metadata.is_file())
    }

    /// The size of a blob in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the store does not have it.
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        let path = self.blob_path(digest);
        let metadata = fs::symlink_metadata(&path).map_err(|error| blob_error(digest, "lstat", error))?;
        if !metadata.is_file() {
            return Err(not_a_file(digest).path(path));
        }
        Ok(metadata.len())
    }

    /// Opens a blob for reading from its start. The bytes are *not* verified again: whoever reads a blob of a store
    /// that others fill computes the digest on the way.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the store does not have it.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        // No-follow and non-blocking: a layout that was copied from elsewhere may hold a symlink or a FIFO here.
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| blob_error(digest, "open", error).path(&path))?;
        let metadata = file.metadata().map_err(|error| blob_error(digest, "fstat", error).path(&path))?;
        if !metadata.is_file() {
            return Err(not_a_file(digest).path(path));
        }
        Ok(file)
    }

    /// Reads a whole blob of at most `limit` bytes and verifies it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the store does not have it, [`ErrorKind::Limit`] where it is longer,
    /// [`ErrorKind::Corrupt`] where the bytes are not those of the digest.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let file = self.open_blob(digest)?;
        let size = file.metadata().map_err(|error| blob_error(digest, "fstat", error))?.len();
        let too_long = || {
            Error::new(ErrorKind::Limit, format!("read the blob {digest}"))
                .because(format!("it has more than the {limit} bytes that are allowed here"))
        };
        if size > limit {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(size as usize);
        // One byte more than stated, so that a file that grows is noticed.
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| blob_error(digest, "read", error))?;
        if bytes.len() as u64 > limit {
            return Err(too_long());
        }
        let mut hasher = crate::name::Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(corrupt_blob(digest, &actual).path(self.blob_path(digest)));
        }
        Ok(bytes)
    }

    /// Removes a blob, whoever needs it. A blob that is not there is fine. To remove what nothing needs any more, use
    /// [`Store::gc`].
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        match fs::remove_file(self.blob_path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove the blob {digest}"), "unlink", error).path(self.blob_path(digest)))
            }
            _ => Ok(()),
        }
    }

    /// All blobs of the store.
    ///
    /// # Errors
    /// Where a directory cannot be read.
    pub fn blobs(&self) -> Result<Vec<Digest>> {
        let mut blobs = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.path("blobs").join(algorithm.as_str());
            let failed = |error| Error::io("list the blobs", "readdir", error).path(&dir);
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                // Names that are not digests are not blobs.
                let digest = name.to_str().and_then(|hex| format!("{}:{hex}", algorithm.as_str()).parse().ok());
                blobs.extend(digest);
            }
        }
        Ok(blobs)
    }
}

/// The error of bytes that are not those of their name.
pub(crate) fn corrupt_blob(expected: &Digest, actual: &Digest) -> Error {
    Error::new(ErrorKind::Corrupt, format!("verify the blob {expected}"))
        .because(format!("its bytes have the digest {actual}"))
        .remedy("load the image again")
}

fn not_a_file(digest: &Digest) -> Error {
    Error::new(ErrorKind::Hostile, format!("read the blob {digest}")).because("it is not a regular file")
}

fn blob_error(digest: &Digest, syscall: &'static str, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::new(ErrorKind::NotFound, format!("read the blob {digest}"))
            .because("the store does not have it")
            .remedy("load the image again"),
        Some(libc::ELOOP) => not_a_file(digest),
        _ => Error::io(format!("read the blob {digest}"), syscall, error),
    }
}

/// Makes a private directory; one that exists is fine.
fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("make a directory of the store", "mkdir", error).path(path))
        }
        _ => Ok(()),
    }
}

/// A directory could not be made; where something else is in its place or on the way, that is what is said.
fn not_made(step: &'static str, error: io::Error, path: &Path) -> Error {
    let other = path.ancestors().find(|path| fs::symlink_metadata(path).is_ok()).filter(|path| !path.is_dir());
    match (error.raw_os_error(), other) {
        (Some(libc::EEXIST | libc::ENOTDIR | libc::ENOENT), Some(other)) => {
            let what =
                if other.is_symlink() { "it is a symbolic link that leads nowhere" } else { "it is not a directory" };
            Error::new(ErrorKind::Invalid, step).path(other).because(what).remedy("choose another root")
        }
        _ => Error::io(step, "mkdir", error).path(path),
    }
}

/// Makes the root, or checks that only its owner, this user, can write to it.
fn check_root(root: &Path) -> Result<()> {
    let step = "open the store";
    if let Some(parent) = root.parent() {
        fs::create_dir_all(parent).map_err(|error| not_made(step, error, parent))?;
    }
    let made = match fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(not_made(step, error, root)),
    };
    let metadata = fs::metadata(root).map_err(|error| match root.is_symlink() {
        true => not_made(step, error, root),
        false => Error::io(step, "stat", error).path(root),
    })?;
    let denied = |why: String| Error::new(ErrorKind::Denied, step).path(root).because(why);
    if !metadata.is_dir() {
        return Err(Error::new(ErrorKind::Invalid, step)
            .path(root)
            .because("it is not a directory")
            .remedy("choose another root"));
    }
    let user = nix::unistd::geteuid().as_raw();
    if metadata.uid() != user {
        // The kernel's overflowuid, for owners that are not mapped.
        let whose = match metadata.uid() {
            65534 if user == 0 => "to somebody whom this user namespace does not know".to_owned(),
            uid => format!("to uid {uid}"),
        };
        return Err(
            denied(format!("it belongs {whose}, not to uid {user}")).remedy("choose a root of your own with --root")
        );
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if made && mode & 0o700 != 0o700 {
        // A umask that denies the owner his own directory.
        let permissions = fs::Permissions::from_mode(0o700);
        return fs::set_permissions(root, permissions).map_err(|error| Error::io(step, "chmod", error).path(root));
    }
    if mode & 0o022 != 0 {
        return Err(denied(format!("others may write to it (mode {mode:04o})"))
            .remedy(format!("chmod go-w {}", root.display())));
    }
    Ok(())
}

/// Makes an empty directory ours, or checks that it is: whatever else is in a directory is swept, collected and removed.
fn claim(root: &Path) -> Result<()> {
    let step = "open the store";
    let path = root.join(MARKER);
    loop {
        match fs::read_to_string(&path) {
            Ok(text) => return check_marker(&text).map_err(|error| error.path(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(step, "read", error).path(path)),
        }
        let mut theirs = None;
        for entry in fs::read_dir(root).map_err(|error| Error::io(step, "readdir", error).path(root))? {
            let name = entry.map_err(|error| Error::io(step, "readdir", error).path(root))?.file_name();
            // A file system of its own begins with that; a marker that is being written ends up as one.
            if name != "lost+found" && !name.to_string_lossy().starts_with(MARKER) {
                theirs = Some(name);
                break;
            }
        }
        if let Some(name) = theirs {
            // Another program may have made the directory ours since, and more in it.
            if path.exists() {
                continue;
            }
            return Err(Error::new(ErrorKind::Conflict, step)
                .path(root)
                .because(format!("it is not empty (there is {name:?}), and coracle has not made what is in it"))
                .remedy("name an empty or absent directory; `coracle load DIR` reads an image layout"));
        }
        // Always synced, whatever else is: without it, nothing of the rest can be used after a power cut.
        let mut file = tempfile::Builder::new()
            .prefix(MARKER)
            .tempfile_in(root)
            .map_err(|error| Error::io(step, "open", error).path(&path))?;
        let text = format!("{{\"version\":{VERSION}}}\n");
        io::Write::write_all(&mut file, text.as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(|error| Error::io(step, "write", error).path(&path))?;
        match file.persist_noclobber(&path) {
            Ok(_) => return tmp::sync_parent(&path, Durability::Full),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(step, "rename", error.error).path(&path)),
        }
    }
}

/// Says that this program writes without syncing, as long as the file is open.
fn mark_unsynced(root: &Path) -> Result<File> {
    let path = root.join(UNSYNCED);
    let failed = |syscall| {
        let path = path.clone();
        move |error| Error::io("open the store", syscall, error).path(path)
    };
    loop {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed("open"))?;
        lock::wait(|| file.lock_shared()).map_err(failed("flock"))?;
        // Whoever has written everything out in between has removed it.
        if file.metadata().map_err(failed("fstat"))?.nlink() > 0 {
            return Ok(file);
        }
    }
}

fn check_marker(text: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Marker {
        version: u32,
    }
    let marker: Marker = serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "open the store").because("it is not what this crate writes").source_is(error)
    })?;
    if marker.version != VERSION {
        return Err(Error::new(ErrorKind::Unsupported, "open the store")
            .because(format!("it is a root of version {}; this release knows version {VERSION}", marker.version))
            .remedy("use the release of coracle that made it, or another root"));
    }
    Ok(())
}

fn check_layout(text: &str) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Layout {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let layout: Layout = serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "open the store").because("oci-layout is not what it should be").source_is(error)
    })?;
    if layout.version.split('.').next() != Some("1") {
        return Err(Error::new(ErrorKind::Unsupported, "open the store")
            .because(format!("it is an image layout of version {:?}; this crate knows version 1", layout.version)));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
