//! What is on disk about a container: one small file. It appears whole by a rename; its owner writes later states behind
//! the first, the last whole one counts, and whoever has the file open learns the end even after the container is gone.
//!
//! ```text
//! <root>/containers/<id>/state.json    this record
//!                        upper/ …      the writable part, see crate::snapshot
//!                        frozen        there as long as its processes are kept still, for a commit
//! <root>/names/<name>                  a link whose target is the id; it counts as long as that has a record
//! <root>/names.lock                    locked by whoever changes names, so that they are unique
//! <root>/owners/<name>                 locked by the program that the container belongs to
//! ```
//!
//! A directory without a record is being made or being removed; when nobody does either any more, it is garbage. One
//! with a record that cannot be read, or that a later release has written, is none: it may be what somebody kept.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::status::ExitStatus;
use crate::content::Durability;
use crate::content::lock::{Held, Lock};
use crate::name::ContainerId;
use crate::{Error, ErrorKind, Result};

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Made, and not started yet.
    Created,
    /// Its first process lives.
    Running,
    /// Its first process has ended. The exit status is known once the program that it belongs to has asked for it.
    Exited,
    /// The program that ran it was killed, and it with that; its exit status is lost.
    Dead,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Exited => "exited",
            State::Dead => "dead",
        })
    }
}

/// What is known of a container, as `ps` and `inspect` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Info {
    /// 64 hexadecimal digits.
    pub id: ContainerId,
    /// The name that it was given, if any; unique in its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The ID of its image; `None` over a directory of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What it was started from: the name that the caller used for the image, which may mean another image by now, or
    /// the first digits of its ID where that was used, or of a snapshot's; the directory of the host.
    pub base: String,
    /// Command and arguments.
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub created: String,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Where it is in its life.
    pub state: State,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Of its first process, in the pid namespace of the program that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When that process started, in clock ticks since boot: tells it from a later one with the same pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) start_time: Option<u64>,
    /// Its first process watches over what comes of its command, for want of a pid namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) watched: bool,
    /// It stays listed after its end, until it is removed.
    pub keep: bool,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// Paths inside that mounts needed, and that were made for them where they were missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mount_points: Vec<String>,
    /// The directories of its control group. Where the next program looks depends on the group that it is in itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<PathBuf>,
    /// What further commands are started with, see [`Template`](super::exec::Template).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) template: Option<serde_json::Value>,
    /// Hooks for when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last: Option<super::hooks::Last>,
    /// The mark of the program that it belongs to.
    pub(crate) owner: String,
}

impl Info {
    /// The error with the name of the container, or the first digits of its ID: others may be at work beside it.
    pub(crate) fn which(&self, error: Error) -> Error {
        error.which("the container", self.name.as_deref().unwrap_or(self.id.short()))
    }
}

pub(crate) fn directory(root: &Path, id: &ContainerId) -> PathBuf {
    root.join("containers").join(id.to_string())
}

/// Writes the record beside and renames it into place. That of a container that is kept is synced, as `durability` says;
/// any other is of no use after a power cut.
pub(crate) fn write(root: &Path, info: &Info, durability: Durability) -> Result<()> {
    let step = "write the container's record";
    let dir = directory(root, &info.id);
    let (new, path) = (dir.join("state.json.new"), dir.join("state.json"));
    let json = serde_json::to_vec(info).map_err(|error| Error::new(ErrorKind::Io, step).source_is(error))?;
    let durable = info.keep && durability == Durability::Full;
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&json)?;
        if durable { file.sync_all() } else { Ok(()) }
    });
    written.map_err(|error| {
        // Half of one, on a full disk, is of no use to anybody.
        let _ = std::fs::remove_file(&new);
        Error::io(step, "write", error).path(&new)
    })?;
    std::fs::rename(&new, &path).map_err(|error| Error::io(step, "rename", error).path(&path))?;
    if durable {
        // The record's name, and the container's.
        for place in [Some(dir.as_path()), dir.parent()].into_iter().flatten() {
            let synced = File::open(place).and_then(|place| place.sync_all());
            synced.map_err(|error| Error::io(step, "fsync", error).path(place))?;
        }
    }
    Ok(())
}

/// Writes the record behind what is there, into the same file. For its owner alone.
pub(crate) fn append(root: &Path, info: &Info) -> Result<()> {
    let step = "write the container's record";
    let path = directory(root, &info.id).join("state.json");
    let json = serde_json::to_vec(info).map_err(|error| Error::new(ErrorKind::Io, step).source_is(error))?;
    let fail = |syscall| {
        let path = &path;
        move |error| Error::io(step, syscall, error).path(path)
    };
    let mut file = File::options().append(true).open(&path).map_err(fail("open"))?;
    let length = file.metadata().map_err(fail("fstat"))?.len();
    file.write_all(&json).map_err(|error| {
        // As in `write`.
        let _ = file.set_len(length);
        fail("write")(error)
    })
}

/// The record's file, for [`last`]: what is written to it before the container goes can be read afterwards.
pub(crate) fn open(root: &Path, id: &str) -> Option<File> {
    File::open(root.join("containers").join(id).join("state.json")).ok()
}

/// What an open record says now.
pub(crate) fn last(file: &File) -> Option<Info> {
    let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).ok()?;
    parse(&bytes).ok()
}

/// The last of the records in a file; half a one at its end is still being written. NULs there are what a power cut has
/// left of one.
fn parse(bytes: &[u8]) -> serde_json::Result<Info> {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let bytes = bytes.get(..length).unwrap_or_default();
    let mut documents = serde_json::Deserializer::from_slice(bytes).into_iter();
    let mut info: Option<Info> = None;
    loop {
        match (documents.next(), info) {
            (Some(Ok(next)), _) => info = Some(next),
            (None, Some(last)) => return Ok(last),
            (Some(Err(error)), Some(last)) if error.is_eof() => return Ok(last),
            (Some(Err(error)), _) => return Err(error),
            (None, None) => return Err(serde::de::Error::custom("it is empty")),
        }
    }
}

/// The record of one container; `None` only when there is none.
///
/// # Errors
/// Those of [`look`].
pub(crate) fn read(root: &Path, id: &str) -> Result<Option<Info>> {
    match look(root, id) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(Some),
    }
}

const UNREADABLE: &str = "put a copy of it back, or remove it if nothing needs the container: the next open of the root \
                          removes the rest";

/// The record of one container.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) when there is none; [`Corrupt`](ErrorKind::Corrupt) when it is not what this
/// release writes; those of reading it, which say nothing of the container.
pub(crate) fn look(root: &Path, id: &str) -> Result<Info> {
    let step = "read the container's record";
    let path = root.join("containers").join(id).join("state.json");
    let bytes = std::fs::read(&path).map_err(|error| {
        let error = Error::io(step, "open", error).path(&path);
        match error.remedy_hint() {
            Some(_) => error,
            None => error.remedy(UNREADABLE),
        }
    })?;
    let corrupt = |why: String| Error::new(ErrorKind::Corrupt, step).path(&path).because(why).remedy(UNREADABLE);
    let info = parse(&bytes)
        .map_err(|error| corrupt(format!("it is not what this release writes: {error}")).source_is(error))?;
    if info.id.to_string() != id {
        return Err(corrupt("it is another container's".to_owned()));
    }
    Ok(info)
}

/// The names in `containers/`.
pub(crate) fn ids(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("containers");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(Error::io("list the containers", "open", error).path(dir)),
    };
    let mut ids = vec![];
    for entry in entries {
        let name = entry.map_err(|error| Error::io("list the containers", "readdir", error).path(&dir))?.file_name();
        ids.extend(name.into_string());
    }
    Ok(ids)
}

/// All records, oldest first; without those that this release cannot read, which opening the root and checking it tell.
///
/// # Errors
/// Those of the file system, and of a process that has too many files open: a list that leaves out what is whole is none.
pub(crate) fn all(root: &Path) -> Result<Vec<Info>> {
    gather(root, |error| error.kind() == ErrorKind::Corrupt)
}

/// [`all`] for those who remove what no container needs.
///
/// # Errors
/// Where a record cannot be read: what that container needs is not known.
pub(crate) fn all_for_certain(root: &Path) -> Result<Vec<Info>> {
    gather(root, |_| false)
}

fn gather(root: &Path, may_be_left_out: impl Fn(&Error) -> bool) -> Result<Vec<Info>> {
    let mut all = vec![];
    for id in ids(root)? {
        match read(root, &id) {
            Ok(found) => all.extend(found),
            // A file that lies about is nobody's container.
            Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) || may_be_left_out(&error) => {}
            Err(error) => return Err(error),
        }
    }
    all.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
    Ok(all)
}

/// Whether a container of this ID has a record, readable or not; true also where nobody can tell.
fn is_there(root: &Path, id: &Path) -> bool {
    root.join("containers").join(id).join("state.json").try_exists().unwrap_or(true)
}

/// Lets one program at a time change names.
fn lock_names(root: &Path) -> Result<Held> {
    Lock::new(root, "names", "lock the names of containers").exclusive()
}

/// Takes a name for a container whose record is written: without one, the next that wants the name takes it for a
/// leftover.
///
/// # Errors
/// `AlreadyExists` when another container has it.
pub(crate) fn take_name(root: &Path, name: &str, id: &ContainerId) -> Result<()> {
    let step = "name the container";
    let names = root.join("names");
    super::make_directory(&names, step)?;
    let path = names.join(name);
    let _lock = lock_names(root)?;
    match std::fs::read_link(&path) {
        Ok(holder) if is_there(root, &holder) => {
            let holder = holder.to_string_lossy();
            return Err(Error::new(ErrorKind::AlreadyExists, step)
                .because(format!("the container {} is called {name:?} already", holder.get(..12).unwrap_or(&holder)))
                .remedy("remove that one, or choose another name"));
        }
        // Left over from a container that is gone.
        Ok(_) => std::fs::remove_file(&path).map_err(|error| Error::io(step, "unlink", error).path(&path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(step, "readlink", error).path(&path)),
    }
    std::os::unix::fs::symlink(id.to_string(), &path).map_err(|error| Error::io(step, "symlink", error).path(&path))
}

/// Gives a name back, if it is this container's.
pub(crate) fn give_name_back(root: &Path, name: &str, id: &ContainerId) {
    let path = root.join("names").join(name);
    // Where the lock cannot be had, on a full disk say, giving back matters more.
    let _lock = lock_names(root);
    if std::fs::read_link(&path).is_ok_and(|target| target == Path::new(&id.to_string())) {
        let _ = std::fs::remove_file(path);
    }
}

/// Names whose containers are gone.
pub(crate) fn dangling_names(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join("names")) else { return vec![] };
    entries.flatten().map(|entry| entry.path()).filter(|path| is_dangling(root, path)).collect()
}

fn is_dangling(root: &Path, name: &Path) -> bool {
    std::fs::read_link(name).is_ok_and(|holder| !is_there(root, &holder))
}

/// Removes a name whose container is gone; one that has been taken again meanwhile stays.
pub(crate) fn remove_dangling_name(root: &Path, name: &Path) -> Result<()> {
    let _lock = lock_names(root)?;
    match is_dangling(root, name) {
        true => std::fs::remove_file(name)
            .map_err(|error| Error::io("remove a name that is left over", "unlink", error).path(name)),
        false => Ok(()),
    }
}

/// Now, as records say it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A record of a container that nobody runs.
    fn make(root: &Path) -> ContainerId {
        let id = ContainerId::random().unwrap();
        let json = serde_json::json!({
            "id": id, "base": "/", "command": [], "created": now(), "state": "created", "keep": true,
            "stop_signal": 15, "owner": "0123456789abcdef",
        });
        let info: Info = serde_json::from_value(json).unwrap();
        std::fs::create_dir_all(directory(root, &id)).unwrap();
        write(root, &info, Durability::Full).unwrap();
        id
    }

    #[test]
    fn of_many_that_want_a_name_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("names")).unwrap();
        for round in 0..50 {
            let link = root.join("names/mine");
            let _ = std::fs::remove_file(&link);
            if round % 2 == 0 {
                // Of a container that is gone.
                std::os::unix::fs::symlink("0".repeat(64), &link).unwrap();
            }
            let start = std::sync::Barrier::new(8);
            let results: Vec<(ContainerId, Result<()>)> = std::thread::scope(|scope| {
                let rival = || {
                    let id = make(root);
                    start.wait();
                    let result = take_name(root, "mine", &id);
                    (id, result)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(rival)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let winners: Vec<_> = results.iter().filter(|(_, result)| result.is_ok()).collect();
            assert_eq!(winners.len(), 1);
            assert_eq!(std::fs::read_link(&link).unwrap(), Path::new(&winners[0].0.to_string()));
            for (id, result) in &results {
                if let Err(error) = result {
                    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
                }
                // Only the holder's counts.
                if *id != winners[0].0 {
                    give_name_back(root, "mine", id);
                }
            }
            assert!(link.is_symlink());
        }
    }

    #[test]
    fn half_a_record_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let id = make(dir.path());
        let info = look(dir.path(), &id.to_string()).unwrap();
        std::fs::create_dir(directory(dir.path(), &id).join("state.json.new")).unwrap();
        assert!(write(dir.path(), &info, Durability::Full).is_err());
        assert_eq!(look(dir.path(), &id.to_string()).unwrap(), info);
    }

    #[test]
    fn the_last_whole_record_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let id = make(root);
        let text = id.to_string();
        let first = look(root, &text).unwrap();
        let held = open(root, &text).unwrap();
        let later = Info { state: State::Running, pid: Some(7), ..first };
        append(root, &later).unwrap();
        assert_eq!((look(root, &text).unwrap(), last(&held)), (later.clone(), Some(later.clone())));
        let path = directory(root, &id).join("state.json");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &whole[..20]].concat()).unwrap();
        assert_eq!(look(root, &text).unwrap(), later);
        // What some file systems show of data that a power cut kept from them.
        std::fs::write(&path, [&whole[..], &[0; 99]].concat()).unwrap();
        assert_eq!(look(root, &text).unwrap(), later);
        std::fs::write(&path, [&whole[..], b"?"].concat()).unwrap();
        assert_eq!(look(root, &text).unwrap_err().kind(), ErrorKind::Corrupt);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(look(root, &text).unwrap_err().kind(), ErrorKind::Corrupt);
        std::fs::write(&path, &whole).unwrap();
        std::fs::remove_dir_all(directory(root, &id)).unwrap();
        assert!(read(root, &text).unwrap().is_none());
        assert_eq!(last(&held), Some(later.clone()));
        assert_eq!(append(root, &later).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
