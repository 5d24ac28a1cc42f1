//! Saved snapshots: what a stopped container had written, frozen, for any number of containers to start on.
//!
//! ```text
//! <root>/snapshots/<id>/snapshot.json   what it is, see SnapshotInfo
//!                       upper/ | tree/  the frozen part, see crate::snapshot; a snapshot without one does not count
//! <root>/containers/<id>/below          a link whose target is the ID of the snapshot that the container stands on
//! ```
//!
//! With overlay the writes *move* into the snapshot, and the container goes on on top of it with an empty upper
//! directory. Taking one is, in this order:
//!
//! 1. hold `images.lock` shared, which keeps the image, and half-made snapshots from being swept; then lock the
//!    container's directory, so that there is one at a time;
//! 2. make `snapshots/<new>/` with its record, which names the snapshot below as parent;
//! 3. point the container's `below` at the new one. It has no frozen part, so whoever follows `below` skips it and goes
//!    on with its parent: nothing has changed yet;
//! 4. rename the upper directory into it. From this one step on there are both;
//! 5. make a fresh upper directory.
//!
//! A crash before 4 leaves a snapshot without a frozen part: the next open that is alone puts `below` back and removes it.
//! After a crash before 5 it makes up for that.
//! Where the container has a whole tree of its own, 3 and 5 are left out, and in 4 a copy of the tree (on btrfs a
//! snapshot of it, in constant time) appears by one rename.
//!
//! A snapshot that a container's `below` or another snapshot's parent names is not removed, and the image of every
//! snapshot counts as used.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::known::the_only;
use super::record::{self, State};
use super::runtime::Runtime;
use super::{Container, ContainerBuilder, Control, Inner};
use crate::content::Durability;
use crate::content::tmp::TmpDir;
use crate::image::{Image, Images};
use crate::layer::Ownership;
use crate::name::ContainerId;
use crate::snapshot::{self, Base, Changes, Usage};
use crate::{Error, ErrorKind, Result, sys};

const STEP: &str = "snapshot the container";

/// The name that the engine gives a saved snapshot: 64 lower-case hexadecimal digits, drawn at random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(ContainerId);

impl SnapshotId {
    /// The first 12 digits, which lists show.
    pub fn short(&self) -> &str {
        self.0.short()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(SnapshotId)
    }
}

/// What is known of a saved snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// 64 hexadecimal digits.
    pub id: SnapshotId,
    /// The ID of the image below it.
    pub image: String,
    /// The snapshot that the container stood on when this one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The container that it was taken of, which may be gone.
    pub container: ContainerId,
    /// RFC 3339, UTC.
    pub created: String,
}

/// A saved snapshot: a container's tree as it was when [`Container::snapshot`] was called. Immutable, outlives this
/// process, and can be started from any number of times, at once and from any thread.
///
/// The value describes it; dropping the value removes nothing.
#[derive(Debug, Clone)]
pub struct SavedSnapshot {
    runtime: Arc<Runtime>,
    image: Image,
    info: SnapshotInfo,
}

impl SavedSnapshot {
    /// Its ID.
    pub fn id(&self) -> &SnapshotId {
        &self.info.id
    }

    /// What is known of it.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// The image below it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Describes a container that starts on it, with the image's configuration.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// let engine = coracle::Engine::open_default()?;
    /// let image = engine.image("debian")?;
    /// let prepared = image.container().command(["touch", "/ready"]).spawn()?;
    /// prepared.wait()?;
    /// let saved = prepared.snapshot()?;
    /// for _ in 0..3 {
    ///     assert!(saved.container().command(["test", "-e", "/ready"]).status()?.success());
    /// }
    /// saved.remove()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn container(&self) -> ContainerBuilder {
        ContainerBuilder::over_saved(self.runtime.clone(), self.clone())
    }

    /// What its frozen part takes, as du(1) counts it; not what it stands on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is gone; those of reading its directories.
    pub fn usage(&self) -> Result<Usage> {
        let dir = directory(self.runtime.root(), &self.info.id);
        let part = snapshot::frozen(&dir).ok_or_else(|| gone(&self.info.id))?;
        crate::layer::measure(part.path(), self.ownership()).map(|found| found.usage())
    }

    /// Removes it. Containers that were started on it keep it: it is refused as long as one of them is listed.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) while a container, or another saved snapshot, stands on it, which includes the
    /// container that it was taken of where its writes moved here. [`NotFound`](ErrorKind::NotFound) when it is gone.
    pub fn remove(self) -> Result<()> {
        let step = || format!("remove the snapshot {}", self.info.id.short());
        let root = self.runtime.root();
        // Nobody starts a container on it meanwhile.
        let _alone = self.image.images().lock().alone()?;
        if let Some(user) = user_of(root, &self.info.id)? {
            return Err(Error::new(ErrorKind::Conflict, step())
                .because(format!("{user} stands on it"))
                .remedy("remove that one first"));
        }
        let dir = directory(root, &self.info.id);
        if !dir.exists() {
            return Err(gone(&self.info.id));
        }
        // Renamed first, so that what is visible is whole.
        let grave = TmpDir::create(&root.join("tmp"))?;
        let name = Path::new("snapshot");
        fs::rename(&dir, grave.path().join(name)).map_err(|error| Error::io(step(), "rename", error).path(&dir))?;
        snapshot::discard(grave.path(), name, self.ownership())
    }

    fn ownership(&self) -> &Ownership {
        &self.image.images().layers().options().ownership
    }

    /// What a container on it is based on. The caller holds `images.lock`.
    pub(super) fn base(&self) -> Result<Base> {
        let parts = parts(self.runtime.root(), Some(&self.info.id))?;
        if parts.is_empty() {
            return Err(gone(&self.info.id));
        }
        Ok(Base::Frozen(self.image.ensure_layers(None)?, parts))
    }
}

fn gone(id: &SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("use the snapshot {}", id.short())).because("it was removed")
}

pub(crate) fn directory(root: &Path, id: &SnapshotId) -> PathBuf {
    root.join("snapshots").join(id.to_string())
}

fn read(root: &Path, id: &SnapshotId) -> Option<SnapshotInfo> {
    serde_json::from_slice(&fs::read(directory(root, id).join("snapshot.json")).ok()?).ok()
}

/// The names in `snapshots/`, also of half-made ones.
fn ids(root: &Path) -> Result<Vec<SnapshotId>> {
    let dir = root.join("snapshots");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|error| Error::io("list the snapshots", "open", error).path(dir))?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// All snapshots that are whole, oldest first.
pub(crate) fn all(root: &Path) -> Result<Vec<SnapshotInfo>> {
    let whole = |id: &SnapshotId| snapshot::frozen(&directory(root, id)).is_some();
    let mut all: Vec<SnapshotInfo> = ids(root)?.iter().filter(|id| whole(id)).filter_map(|id| read(root, id)).collect();
    all.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(all)
}

/// Containers and snapshots that stand on a snapshot which is gone, each with what is wrong.
pub(crate) fn broken(root: &Path) -> Result<Vec<(PathBuf, Error)>> {
    let mut broken = vec![];
    for id in record::ids(root)? {
        let dir = root.join("containers").join(id);
        let wrong = below(&dir).and_then(|id| parts(root, Some(&id)).err());
        broken.extend(wrong.map(|error| (dir, error)));
    }
    for info in all(root)? {
        let wrong = parts(root, Some(&info.id)).err();
        broken.extend(wrong.map(|error| (directory(root, &info.id), error)));
    }
    Ok(broken)
}

/// Finds a snapshot by ID, or by the unambiguous beginning of one.
pub(crate) fn find(runtime: &Arc<Runtime>, images: &Images, text: &str) -> Result<SavedSnapshot> {
    let step = || format!("find the snapshot {text:?}");
    let begins = |info: &SnapshotInfo| !text.is_empty() && info.id.to_string().starts_with(text);
    let found = all(runtime.root())?.into_iter().filter(begins);
    let info = the_only(found, step, "no ID starts like that", "`coracle snapshots` lists them")?;
    let image = images.resolve(&info.image)?;
    Ok(SavedSnapshot { runtime: runtime.clone(), image, info })
}

/// The directories of `id` and of what it stands on, lowest first. Half-made ones have changed nothing yet, and a whole
/// tree stands on nothing.
pub(super) fn parts(root: &Path, id: Option<&SnapshotId>) -> Result<Vec<PathBuf>> {
    let mut parts = vec![];
    let mut next = id.cloned();
    while let Some(id) = next {
        let info = read(root, &id).ok_or_else(|| gone(&id))?;
        let dir = directory(root, &id);
        let part = snapshot::frozen(&dir);
        next = if matches!(part, Some(Changes::Tree(_))) { None } else { info.parent };
        parts.extend(part.map(|_| dir));
    }
    parts.reverse();
    Ok(parts)
}

/// The snapshot that the container in `dir` stands on.
pub(super) fn below(dir: &Path) -> Option<SnapshotId> {
    fs::read_link(dir.join("below")).ok()?.to_str()?.parse().ok()
}

/// Lets the container in `dir` stand on this snapshot, or on its image alone.
pub(super) fn stand_on(dir: &Path, id: Option<&SnapshotId>) -> Result<()> {
    let (new, link) = (dir.join("below.new"), dir.join("below"));
    let fail = |syscall| {
        let link = link.clone();
        move |error| Error::io("note the snapshot that the container stands on", syscall, error).path(link)
    };
    let absent = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let Some(id) = id else { return absent(fs::remove_file(&link)).map_err(fail("unlink")) };
    // Left over from a crash.
    absent(fs::remove_file(&new)).map_err(fail("unlink"))?;
    std::os::unix::fs::symlink(id.to_string(), &new).map_err(fail("symlink"))?;
    fs::rename(&new, &link).map_err(fail("rename"))
}

/// Who stands on a snapshot, in words.
fn user_of(root: &Path, id: &SnapshotId) -> Result<Option<String>> {
    for container in record::ids(root)? {
        if below(&root.join("containers").join(&container)).as_ref() == Some(id) {
            return Ok(Some(format!("the container {}", container.get(..12).unwrap_or(&container))));
        }
    }
    let stands = |other: &SnapshotInfo| {
        let upper = matches!(snapshot::frozen(&directory(root, &other.id)), Some(Changes::Upper(_)));
        upper && other.parent.as_ref() == Some(id)
    };
    Ok(all(root)?.iter().find(|other| stands(other)).map(|other| format!("the snapshot {}", other.id.short())))
}

/// Removes what a crash left half-made, and makes what it left out. The caller sees to it that nobody takes a snapshot
/// meanwhile.
pub(super) fn sweep(runtime: &Runtime, ownership: &Ownership) -> Result<()> {
    let root = runtime.root();
    let snapshots = ids(root)?;
    if snapshots.is_empty() {
        return Ok(());
    }
    let containers = record::ids(root)?;
    for id in snapshots {
        let dir = directory(root, &id);
        let info = read(root, &id);
        if info.is_some() && snapshot::frozen(&dir).is_some() {
            continue;
        }
        let parent = info.and_then(|info| info.parent);
        for container in &containers {
            let container = root.join("containers").join(container);
            if below(&container).as_ref() == Some(&id) {
                stand_on(&container, parent.as_ref())?;
            }
        }
        snapshot::discard(&root.join("snapshots"), Path::new(&id.to_string()), ownership)?;
    }
    for container in &containers {
        let dir = root.join("containers").join(container);
        // Those that are not kept need none any more, and may be going at this moment.
        if record::read(root, container).is_some_and(|info| info.keep)
            && let Ok(Some(_locked)) = try_lock(&dir)
        {
            refresh(runtime, &dir)?;
        }
    }
    Ok(())
}

/// Step 5: gives the container in `dir`, whose writes have moved to a snapshot, a fresh upper directory.
fn refresh(runtime: &Runtime, dir: &Path) -> Result<()> {
    let (Changes::Upper(upper), Some(id)) = (runtime.snapshotter.changes(dir), below(dir)) else { return Ok(()) };
    if upper.exists() {
        return Ok(());
    }
    // What to mount is not asked here, so the layers do not matter; the root directory is like that of what was frozen.
    let base = Base::Frozen(vec![], parts(runtime.root(), Some(&id))?);
    runtime.snapshotter.prepare(dir, &base).map(drop)
}

impl Container {
    /// Saves the tree of a container that has ended, for others to start on. The container keeps what it has.
    ///
    /// With the overlay backend this takes constant time, whatever was written: the writes move to the snapshot, and the
    /// container stands on it from then on. On btrfs the reflink backend takes constant time as well; otherwise the tree
    /// is cloned or copied. May be called again, also for a container that was started on a saved snapshot itself.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) while it runs; [`Unsupported`](ErrorKind::Unsupported) over a directory of the
    /// host, which nobody keeps as it is; [`NotFound`](ErrorKind::NotFound) when it was removed. Then, and after a crash
    /// at any instant, the container is as it was.
    pub fn snapshot(&self) -> Result<SavedSnapshot> {
        self.inner.snapshot()
    }

    /// The saved snapshot that it stands on: the one that it was started from, or a later one that was taken of it.
    pub fn stands_on(&self) -> Option<SnapshotId> {
        below(&self.inner.directory())
    }

    /// What it has written takes, as du(1) counts it; with backends that give it a whole tree, that tree.
    ///
    /// # Errors
    /// Those of reading its directories.
    pub fn usage(&self) -> Result<Usage> {
        self.inner.runtime.snapshotter.usage(&self.inner.directory())
    }
}

impl Inner {
    fn directory(&self) -> PathBuf {
        record::directory(self.runtime.root(), &self.lock().id)
    }

    fn snapshot(&self) -> Result<SavedSnapshot> {
        let info = self.info();
        let (Some(images), Some(image)) = (&self.images, &info.image) else {
            return Err(Error::new(ErrorKind::Unsupported, STEP)
                .because("it runs over a directory of the host, which may change")
                .remedy("import the directory as an image, and run a container of that"));
        };
        let dir = self.directory();
        // In this order: whoever has the images to himself locks containers, too.
        let _hold = images.lock().share()?;
        let _one_at_a_time = lock(&dir)?;
        let runs = match &self.control {
            Control::Own(_) => self.wait(Some(std::time::Duration::ZERO)).is_ok_and(|status| status.is_none()),
            Control::Foreign(_) => matches!(info.state, State::Created | State::Running),
        };
        if runs {
            return Err(Error::new(ErrorKind::Conflict, STEP).because("it is running").remedy("stop or kill it first"));
        }
        // Whoever took the last one may have been killed before it was done.
        refresh(&self.runtime, &dir)?;
        let image = images.resolve(image)?;
        let root = self.runtime.root();
        let info = SnapshotInfo {
            id: SnapshotId(ContainerId::random()?),
            image: image.id().to_string(),
            parent: below(&dir),
            container: info.id,
            created: record::now(),
        };
        let saved = SavedSnapshot { runtime: self.runtime.clone(), image, info };
        let durability = images.content().durability();
        if let Err(error) = self.freeze(&dir, &saved.info, durability) {
            // The first failure is the one to be told; what stays is swept by the next open.
            let _ = stand_on(&dir, saved.info.parent.as_ref());
            let name = saved.info.id.to_string();
            let _ = snapshot::discard(&root.join("snapshots"), Path::new(&name), saved.ownership());
            return Err(error);
        }
        // The snapshot is there, whatever comes of this; the next one tries again, and so does the next open.
        let _ = refresh(&self.runtime, &dir);
        Ok(saved)
    }

    /// Steps 2 to 4.
    fn freeze(&self, dir: &Path, info: &SnapshotInfo, durability: Durability) -> Result<()> {
        let root = self.runtime.root();
        super::make_directory(&root.join("snapshots"), STEP)?;
        let into = directory(root, &info.id);
        super::make_directory(&into, STEP)?;
        let path = into.join("snapshot.json");
        let fail = |syscall| {
            let path = path.clone();
            move |error| Error::io(STEP, syscall, error).path(path)
        };
        let json = serde_json::to_vec(info).map_err(|error| Error::new(ErrorKind::Io, STEP).source_is(error))?;
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(fail("open"))?;
        file.write_all(&json).map_err(fail("write"))?;
        if durability == Durability::Full {
            // The record, and what the container wrote: before there is a snapshot that promises it.
            sys::fs::syncfs(file.as_fd()).map_err(fail("syncfs"))?;
        }
        if let Changes::Upper(_) = self.runtime.snapshotter.changes(dir) {
            stand_on(dir, Some(&info.id))?;
        }
        self.runtime.snapshotter.freeze(dir, &into)?;
        if durability == Durability::Full {
            sys::fs::syncfs(file.as_fd()).map_err(fail("syncfs"))?;
        }
        Ok(())
    }
}

/// [`lock`] for those who hold other locks, which whoever has this one may wait for. `None` where there is no container.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where somebody has it.
pub(super) fn try_lock(dir: &Path) -> Result<Option<File>> {
    let step = "lock the container";
    let file = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io(step, "open", error).path(dir))?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Error::new(ErrorKind::Conflict, step).path(dir).because("somebody reads or removes it at this moment"))
        }
        Err(fs::TryLockError::Error(error)) => Err(Error::io(step, "flock", error).path(dir)),
    }
}

/// Excludes other snapshots and the removal of the container in `dir`.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let step = "lock the container";
    let file = File::open(dir).map_err(|error| Error::io(step, "open", error).path(dir))?;
    file.lock().map_err(|error| Error::io(step, "flock", error).path(dir))?;
    // Whoever had it before us may have removed the container.
    if !dir.exists() {
        return Err(Error::new(ErrorKind::NotFound, step).path(dir).because("it was removed"));
    }
    Ok(file)
}
