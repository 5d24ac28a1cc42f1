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
//! 1. lock the container's directory, so that there is one at a time; its record keeps the image;
//! 2. make `snapshots/<new>/` and lock it, which keeps it from being swept; for this moment `images.lock` is shared, and no
//!    longer, for everybody waits for that. Then write its record, which names the snapshot below as parent;
//! 3. point the container's `below` at the new one. It has no frozen part, so whoever follows `below` skips it and goes
//!    on with its parent: nothing has changed yet;
//! 4. rename the upper directory into it. From this one step on there are both;
//! 5. make a fresh upper directory.
//!
//! A crash before 4 leaves a snapshot without a frozen part: the next open that is alone puts `below` back and removes it.
//! After a crash before 5 it makes up for that. Where the upper directory belongs to another id, or is closed to its owner,
//! it changes mode and owner for 4; the record says what they were, and after a crash they become that again.
//! Where the container has a whole tree of its own, 3 and 5 are left out, and in 4 a copy of the tree (on btrfs a
//! snapshot of it, in constant time) appears by one rename.
//!
//! A snapshot that a container's `below` or another snapshot's parent names is not removed, and the image of every
//! snapshot counts as used. Of a half-made one the parent is meant.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::known::the_only;
use super::record::{self, State};
use super::runtime::Runtime;
use super::{Container, ContainerBuilder, Control, Inner};
use crate::content::Durability;
use crate::content::lock::Held;
use crate::content::tmp::TmpDir;
use crate::image::{Image, Images};
use crate::layer::Ownership;
use crate::name::ContainerId;
use crate::snapshot::{self, Base, Changes, RootDirectory, Usage};
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
    images: Images,
    /// Opened when it is asked for: who removes a snapshot needs no image, which may be damaged.
    image: OnceLock<Image>,
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
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is damaged, or was removed after the snapshot was. A snapshot can be removed
    /// all the same.
    pub fn image(&self) -> Result<&Image> {
        match self.image.get() {
            Some(image) => Ok(image),
            None => {
                let image = self.images.resolve(&self.info.image)?;
                Ok(self.image.get_or_init(|| image))
            }
        }
    }

    /// Describes a container that starts on it, with the image's configuration. That the image is damaged is told when the
    /// container is started.
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
        // Once for all of them.
        let _ = self.image();
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
        let alone = self.images.lock().alone()?;
        if let Some(user) = user_of(root, &self.info.id)? {
            return Err(Error::new(ErrorKind::Conflict, step())
                .because(format!("{user} stands on it"))
                .remedy("remove that one first"));
        }
        let dir = directory(root, &self.info.id);
        if !dir.exists() {
            return Err(gone(&self.info.id));
        }
        let grave = bury(root, &self.info.id)?;
        drop(alone);
        // The slow part, when nobody waits any more.
        grave.remove(self.ownership())
    }

    fn ownership(&self) -> &Ownership {
        &self.images.layers().options().ownership
    }

    /// What a container on it is based on. The caller holds `images.lock`.
    pub(super) fn base(&self) -> Result<Base> {
        let parts = parts(self.runtime.root(), Some(&self.info.id))?;
        if parts.is_empty() {
            return Err(gone(&self.info.id));
        }
        Ok(Base::Frozen(self.image()?.ensure_layers(None)?, parts))
    }
}

/// A snapshot that is out of sight, and still takes space.
struct Grave(TmpDir);

/// Takes a snapshot that nobody stands on out of sight, so that what is visible is whole.
fn bury(root: &Path, id: &SnapshotId) -> Result<Grave> {
    let dir = directory(root, id);
    let grave = TmpDir::create(&root.join("tmp"))?;
    let step = || format!("remove the snapshot {}", id.short());
    fs::rename(&dir, grave.path().join("snapshot")).map_err(|error| Error::io(step(), "rename", error).path(&dir))?;
    Ok(Grave(grave))
}

impl Grave {
    fn remove(self, ownership: &Ownership) -> Result<()> {
        snapshot::discard(self.0.path(), Path::new("snapshot"), ownership)
    }
}

fn gone(id: &SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, format!("use the snapshot {}", id.short())).because("it was removed")
}

pub(crate) fn directory(root: &Path, id: &SnapshotId) -> PathBuf {
    root.join("snapshots").join(id.to_string())
}

/// What is in a record.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    info: SnapshotInfo,
    /// What the upper directory is like, where it changes while it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upper: Option<RootDirectory>,
}

/// [`record_of`] without what only a sweep needs.
fn read(root: &Path, id: &SnapshotId) -> Result<Option<SnapshotInfo>> {
    Ok(record_of(root, id)?.map(|record| record.info))
}

/// The record of a snapshot; `None` only where there is none.
///
/// # Errors
/// [`Corrupt`](ErrorKind::Corrupt) when it is not what this crate writes; those of reading it.
fn record_of(root: &Path, id: &SnapshotId) -> Result<Option<Record>> {
    let step = "read the snapshot's record";
    let path = directory(root, id).join("snapshot.json");
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io(step, "open", error).path(&path))?,
    };
    let corrupt = |why: String| Error::new(ErrorKind::Corrupt, step).path(&path).because(why);
    let record: Record = serde_json::from_slice(&bytes)
        .map_err(|error| corrupt(format!("it is not what this crate writes: {error}")).source_is(error))?;
    if record.info.id != *id {
        return Err(corrupt("it is another snapshot's".to_owned()));
    }
    Ok(Some(record))
}

/// The names in `snapshots/`, also of half-made ones.
fn ids(root: &Path) -> Result<Vec<SnapshotId>> {
    let dir = root.join("snapshots");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|error| Error::io("list the snapshots", "open", error).path(&dir))?,
    };
    let mut ids = vec![];
    for entry in entries {
        let name = entry.map_err(|error| Error::io("list the snapshots", "readdir", error).path(&dir))?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(ids)
}

/// Directories, each with what is wrong.
type Damaged = Vec<(PathBuf, Error)>;

/// All snapshots that are whole, oldest first, and those with a frozen part whose record cannot be read, each with what
/// is wrong.
fn look(root: &Path) -> Result<(Vec<SnapshotInfo>, Damaged)> {
    let (mut whole, mut damaged) = (vec![], vec![]);
    for id in ids(root)? {
        let dir = directory(root, &id);
        // In this order: the record is written first.
        if !snapshot::may_be_frozen(&dir) {
            continue;
        }
        match read(root, &id) {
            Ok(Some(info)) => whole.push(info),
            Ok(None) if !snapshot::may_be_frozen(&dir) => {} // Removed meanwhile.
            Ok(None) => damaged.push((dir, unreadable().because("it has no record"))),
            Err(error) => damaged.push((dir, error.remedy(UNREADABLE))),
        }
    }
    whole.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok((whole, damaged))
}

const UNREADABLE: &str = "put a copy of its snapshot.json back, or remove its directory if nothing needs it";

fn unreadable() -> Error {
    Error::new(ErrorKind::Corrupt, "read the snapshot's record").remedy(UNREADABLE)
}

/// All snapshots that are whole, oldest first.
pub(crate) fn all(root: &Path) -> Result<Vec<SnapshotInfo>> {
    look(root).map(|(whole, _)| whole)
}

/// [`all`] for those who remove what no snapshot needs.
///
/// # Errors
/// Where a record cannot be read: what that snapshot needs is not known.
pub(crate) fn all_for_certain(root: &Path) -> Result<Vec<SnapshotInfo>> {
    let (whole, damaged) = look(root)?;
    match damaged.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(whole),
    }
}

/// Snapshots whose record cannot be read, and containers and snapshots that stand on a snapshot which is gone, each with
/// what is wrong.
pub(crate) fn broken(root: &Path) -> Result<Damaged> {
    let mut broken = vec![];
    for id in record::ids(root)? {
        let dir = root.join("containers").join(id);
        let wrong = below(&dir).and_then(|id| parts(root, Some(&id)).err());
        broken.extend(wrong.map(|error| (dir, error)));
    }
    let (whole, damaged) = look(root)?;
    broken.extend(damaged);
    for info in whole {
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
    Ok(SavedSnapshot { runtime: runtime.clone(), images: images.clone(), image: OnceLock::new(), info })
}

/// The directories of `id` and of what it stands on, lowest first. Half-made ones have changed nothing yet, and a whole
/// tree stands on nothing.
pub(super) fn parts(root: &Path, id: Option<&SnapshotId>) -> Result<Vec<PathBuf>> {
    let mut parts = vec![];
    let mut next = id.cloned();
    while let Some(id) = next {
        let info = read(root, &id)?.ok_or_else(|| gone(&id))?;
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
        let mut next = below(&root.join("containers").join(&container));
        while let Some(one) = next {
            if one == *id {
                return Ok(Some(format!("the container {}", container.get(..12).unwrap_or(&container))));
            }
            // One that is half-made has changed nothing yet.
            let half = !snapshot::may_be_frozen(&directory(root, &one));
            next = if half { read(root, &one)?.and_then(|info| info.parent) } else { None };
        }
    }
    let stands = |other: &SnapshotInfo| {
        let upper = matches!(snapshot::frozen(&directory(root, &other.id)), Some(Changes::Upper(_)));
        upper && other.parent.as_ref() == Some(id)
    };
    Ok(all_for_certain(root)?
        .iter()
        .find(|other| stands(other))
        .map(|other| format!("the snapshot {}", other.id.short())))
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
    let mut result = Ok(());
    for id in snapshots {
        // One that cannot be judged stays, and is no reason to leave the others.
        result = result.and(sweep_one(root, &id, &containers, ownership));
    }
    for container in &containers {
        let dir = root.join("containers").join(container);
        // Those that are not kept need none any more, and may be going at this moment.
        if matches!(record::read(root, container), Ok(Some(info)) if info.keep)
            && let Ok(Some(_locked)) = try_lock(&dir)
        {
            result = result.and(refresh(runtime, &dir));
        }
    }
    result
}

/// Removes one that is half-made. What has a frozen part may hold the only copy of what a container wrote, and stays
/// whatever its record says. One that is being made is left alone.
fn sweep_one(root: &Path, id: &SnapshotId, containers: &[String], ownership: &Ownership) -> Result<()> {
    let dir = directory(root, id);
    let locked = match try_lock(&dir) {
        Err(error) if error.kind() == ErrorKind::Conflict => return Ok(()),
        other => other?,
    };
    // Removed meanwhile.
    let Some(_locked) = locked else { return Ok(()) };
    let record = record_of(root, id);
    if snapshot::may_be_frozen(&dir) {
        return match record {
            Ok(Some(record)) => match (record.upper, snapshot::frozen(&dir)) {
                (Some(was), Some(Changes::Upper(upper))) => was.restore(&upper, ownership),
                _ => Ok(()),
            },
            Ok(None) => Err(unreadable().path(dir).because("it has no record")),
            Err(error) => Err(error.remedy(UNREADABLE)),
        };
    }
    let upper = record.as_ref().ok().and_then(|record| record.as_ref()?.upper);
    let parent = match record {
        Ok(record) => record.map(|record| record.info.parent),
        // Killed while it was written.
        Err(error) if error.kind() == ErrorKind::Corrupt => None,
        Err(error) => return Err(error),
    };
    for container in containers {
        let container = root.join("containers").join(container);
        if below(&container).as_ref() == Some(id) {
            let Some(parent) = &parent else {
                // Without the record nobody knows what is below it.
                return Err(unreadable().path(dir).because("a container stands on it"));
            };
            if let Some(was) = upper {
                was.restore(&container.join("upper"), ownership)?;
            }
            stand_on(&container, parent.as_ref())?;
        }
    }
    snapshot::discard(&root.join("snapshots"), Path::new(&id.to_string()), ownership)
}

/// Step 5: gives the container in `dir`, whose writes have moved to a snapshot, a fresh upper directory.
fn refresh(runtime: &Runtime, dir: &Path) -> Result<()> {
    let (Changes::Upper(upper), Some(id)) = (runtime.snapshotter.changes(dir), below(dir)) else { return Ok(()) };
    // One with a whole tree was made by another backend, and needs none.
    if upper.exists() || dir.join("rootfs").exists() {
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
    /// at any instant, the container has what it had. Where only the last step fails, such as writing everything to the
    /// disk after the writes have moved, the snapshot is kept and listed, since it holds them.
    pub fn snapshot(&self) -> Result<SavedSnapshot> {
        self.inner.named(self.inner.snapshot())
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
        // Whoever waits for this one has no other lock, and who has the images to himself does not wait for it.
        let _one_at_a_time = lock(&dir)?;
        let runs = match &self.control {
            Control::Own(_) => self.wait(Some(std::time::Duration::ZERO)).is_ok_and(|status| status.is_none()),
            Control::Foreign(_) => matches!(info.state, State::Created | State::Running),
        };
        if runs {
            return Err(Error::new(ErrorKind::Conflict, STEP).because("it is running").remedy("stop or kill it first"));
        }
        made_by_this_backend(&self.runtime, &dir)?;
        // Whoever took the last one may have been killed before it was done.
        refresh(&self.runtime, &dir)?;
        let image = images.resolve(image)?;
        let info = SnapshotInfo {
            id: SnapshotId(ContainerId::random()?),
            image: image.id().to_string(),
            parent: below(&dir),
            container: info.id,
            created: record::now(),
        };
        let (runtime, images) = (self.runtime.clone(), images.clone());
        let saved = SavedSnapshot { runtime, images, image: OnceLock::from(image), info };
        let _half_made = begin(self.runtime.root(), &saved.images, &saved.info)?;
        if let Err(error) = self.freeze(&dir, &saved.info, saved.ownership()) {
            // The first failure is the one to be told; what stays is swept by the next open.
            let _ = undo(&self.runtime, &dir, &saved.info, saved.ownership());
            return Err(error);
        }
        // The snapshot is there, whatever comes of this; the next one tries again, and so does the next open.
        let _ = refresh(&self.runtime, &dir);
        Ok(saved)
    }

    /// The rest of step 2, to step 4.
    fn freeze(&self, dir: &Path, info: &SnapshotInfo, ownership: &Ownership) -> Result<()> {
        let durability = self.runtime.durability;
        let into = directory(self.runtime.root(), &info.id);
        let path = into.join("snapshot.json");
        let fail = |syscall| {
            let path = path.clone();
            move |error| Error::io(STEP, syscall, error).path(path)
        };
        let upper = match (self.runtime.snapshotter.changes(dir), ownership) {
            (Changes::Upper(upper), Ownership::Single | Ownership::Mapped(_)) => Some(RootDirectory::of(&upper)?),
            // The host's root may move what it likes.
            _ => None,
        };
        let record = Record { info: info.clone(), upper };
        let json = serde_json::to_vec(&record).map_err(|error| Error::new(ErrorKind::Io, STEP).source_is(error))?;
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

/// Makes the directory of a snapshot, locked against sweeps.
fn begin(root: &Path, images: &Images, info: &SnapshotInfo) -> Result<Held> {
    // Nobody sweeps before it is locked.
    let _hold = images.lock().share()?;
    super::make_directory(&root.join("snapshots"), STEP)?;
    let into = directory(root, &info.id);
    super::make_directory(&into, STEP)?;
    lock(&into)
}

/// After a failure: puts the container back on what it stood on, and then removes the half-made snapshot. One that the
/// writes have moved to holds the only copy of them, so it stays, and the container on top of it.
fn undo(runtime: &Runtime, dir: &Path, info: &SnapshotInfo, ownership: &Ownership) -> Result<()> {
    let root = runtime.root();
    if let Changes::Upper(_) = runtime.snapshotter.changes(dir) {
        if snapshot::may_be_frozen(&directory(root, &info.id)) {
            return refresh(runtime, dir);
        }
        stand_on(dir, info.parent.as_ref())?;
    }
    // What may be a whole copy goes by one rename, so that a kill leaves no part of it in the list.
    match snapshot::may_be_frozen(&directory(root, &info.id)) {
        true => bury(root, &info.id)?.remove(ownership),
        false => snapshot::discard(&root.join("snapshots"), Path::new(&info.id.to_string()), ownership),
    }
}

/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) where the writes of the container in `dir` are not where this engine's backend
/// has them.
fn made_by_this_backend(runtime: &Runtime, dir: &Path) -> Result<()> {
    let other = match runtime.snapshotter.changes(dir) {
        Changes::Upper(_) => dir.join("rootfs").exists().then_some("reflink or copy"),
        Changes::Tree(tree) => (!tree.exists() && dir.join("upper").exists()).then_some("overlay"),
    };
    let Some(other) = other else { return Ok(()) };
    let this = runtime.snapshotter.name();
    Err(Error::new(ErrorKind::Unsupported, STEP)
        .because(format!("it was made with the snapshotter {other}, and this engine uses {this}"))
        .remedy(format!("open the root with the snapshotter {other}")))
}

/// [`lock`] for those who hold other locks, which whoever has this one may wait for. `None` where there is no container.
///
/// # Errors
/// [`Conflict`](ErrorKind::Conflict) where somebody has it.
pub(super) fn try_lock(dir: &Path) -> Result<Option<Held>> {
    let step = "lock the container";
    let file = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io(step, "open", error).path(dir))?,
    };
    match Held::try_take(file).map_err(|error| Error::io(step, "flock", error).path(dir))? {
        Some(held) => Ok(Some(held)),
        None => {
            Err(Error::new(ErrorKind::Conflict, step).path(dir).because("somebody reads or removes it at this moment"))
        }
    }
}

/// Excludes other snapshots and the removal of the container in `dir`.
pub(super) fn lock(dir: &Path) -> Result<Held> {
    let step = "lock the container";
    let file = File::open(dir).map_err(|error| Error::io(step, "open", error).path(dir))?;
    let held = Held::take(file).map_err(|error| Error::io(step, "flock", error).path(dir))?;
    // Whoever had it before us may have removed the container.
    if !dir.exists() {
        return Err(Error::new(ErrorKind::NotFound, step).path(dir).because("it was removed"));
    }
    Ok(held)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
