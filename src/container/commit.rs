//! What a container has changed, and an image of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::record::{self, Info, State};
use super::runtime::Runtime;
use super::{Container, Inner, group_name};
use crate::cgroup::Group;
use crate::image::{CommitOptions, Image, Images, Running};
use crate::isolation::{Identity, Range};
use crate::layer::{self, Change, ChangeKind, PackOptions, PackOwners, PackSource, View};
use crate::snapshot::{self, Changes};
use crate::{Error, ErrorKind, Result};

const STEP: &str = "commit the container";

impl Container {
    /// Makes an image of what the container has changed, on top of the image that it was made from. What was made for
    /// mounts (`/etc/hosts`, say) is not part of it, nor is what mounts hold.
    ///
    /// A container that runs is frozen for as long as its files are read, see [`CommitOptions::running`]; it goes on
    /// afterwards, also after an error. A container that has changed nothing gives an image of the same layers.
    ///
    /// ```no_run
    /// use coracle::image::CommitOptions;
    ///
    /// # fn main() -> coracle::Result<()> {
    /// let engine = coracle::Engine::open_default()?;
    /// let options = CommitOptions { reference: Some("mine:latest".parse()?), ..CommitOptions::default() };
    /// let image = engine.find_container("build")?.commit(&options)?;
    /// assert!(image.container().command(["true"]).status()?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) over a directory of the host, and for a container that runs without a
    /// control group (rootless, as a rule) or whose files cannot be in a layer; [`Conflict`](ErrorKind::Conflict) for
    /// one that runs when the options refuse that, and for files that change meanwhile;
    /// [`Invalid`](ErrorKind::Invalid) for a time or a level of compression that there is not. Nothing is left behind.
    pub fn commit(&self, options: &CommitOptions) -> Result<Image> {
        let info = self.inner.info();
        self.commit_as(&info, options).map_err(|error| info.which(error))
    }

    fn commit_as(&self, info: &Info, options: &CommitOptions) -> Result<Image> {
        let inner = &self.inner;
        let (images, parent) = inner.image(STEP, info)?;
        // While it is read it is neither removed, and its image with it, nor moved to a saved snapshot.
        let _locked = super::snapshot::lock(&record::directory(inner.runtime.root(), &info.id))?;
        let changed = Changed::of(inner, info, images, &parent)?;
        let packing = PackOptions { clamp_mtime: options.clamp_mtime, ..changed.packing.clone() };
        let changes = (&*changed.sources(), &packing);
        images.commit(&parent, changes, &info.command.join(" "), options, || inner.hold_still(info, options.running))
    }

    /// What the container has changed so far, sorted, as `docker diff` tells it. What was made for mounts is not told.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) over a directory of the host; [`Conflict`](ErrorKind::Conflict) for
    /// files that go while they are looked at, as those of a container that runs may.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let info = self.inner.info();
        self.changes_as(&info).map_err(|error| info.which(error))
    }

    fn changes_as(&self, info: &Info) -> Result<Vec<Change>> {
        let (images, parent) = self.inner.image("list the changes of the container", info)?;
        let _locked = super::snapshot::lock(&record::directory(self.inner.runtime.root(), &info.id))?;
        let changed = Changed::of(&self.inner, info, images, &parent)?;
        match changed.sources().as_slice() {
            [source] => layer::changes(*source, &changed.packing),
            sources => changed.together(sources),
        }
    }
}

impl Inner {
    /// The image that the container was made from, and where it is.
    fn image(&self, step: &'static str, info: &Info) -> Result<(&Images, Image)> {
        match (&self.images, &info.image) {
            (Some(images), Some(id)) => Ok((images, images.resolve(id)?)),
            _ => Err(Error::new(ErrorKind::Unsupported, step)
                .because("it was not made from an image, but over a directory of the host")),
        }
    }

    /// Makes sure that nobody writes as long as the value lives.
    fn hold_still(&self, info: &Info, running: Running) -> Result<Option<Frozen>> {
        // One that is said to be created is about to run.
        if !matches!(info.state, State::Created | State::Running) {
            return Ok(None);
        }
        let refuse = |kind, why: &'static str| Err(Error::new(kind, STEP).because(why).remedy("stop it first"));
        if running == Running::Refuse {
            return refuse(ErrorKind::Conflict, "it is running");
        }
        match self.runtime.open_group(&group_name(&info.id), &info.groups) {
            Some(group) => Frozen::new(group, &record::directory(self.runtime.root(), &info.id)).map(Some),
            None if info.groups.is_empty() => {
                refuse(ErrorKind::Unsupported, "it is running, and has no control group that could be frozen")
            }
            None => refuse(ErrorKind::Unsupported, "it is running, and its control group cannot be found from here"),
        }
    }
}

/// A control group whose processes stand still. As long as they do, a file in the container's directory says so: where
/// this program is killed meanwhile, the next that opens the root [thaws](thaw_again) them.
struct Frozen {
    group: Group,
    mark: PathBuf,
}

impl Frozen {
    /// The caller has the lock on `dir`, which is the container's.
    fn new(group: Group, dir: &Path) -> Result<Frozen> {
        let mark = dir.join(MARK);
        File::create(&mark).map_err(|error| Error::io(STEP, "open", error).path(&mark))?;
        // Made first, so that a group that does not freeze in time thaws again.
        let frozen = Frozen { group, mark };
        frozen.group.freeze()?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that is gone needs no thawing. The mark stays where it may be needed.
        if self.group.thaw().is_ok() {
            let _ = std::fs::remove_file(&self.mark);
        }
    }
}

const MARK: &str = "frozen";

/// Lets a container go on that a killed program has frozen.
pub(super) fn thaw_again(runtime: &Runtime, info: &Info) -> Result<()> {
    let step = "thaw the container";
    let dir = record::directory(runtime.root(), &info.id);
    let mark = dir.join(MARK);
    if !mark.exists() {
        return Ok(());
    }
    let _locked = match super::snapshot::try_lock(&dir) {
        // Whoever has frozen it lives.
        Err(error) if error.kind() == ErrorKind::Conflict => return Ok(()),
        other => other?,
    };
    match runtime.open_group(&group_name(&info.id), &info.groups) {
        Some(group) => group.thaw()?,
        // Whoever finds it thaws it. One that has ended needs none.
        None if info.state == State::Running && !info.groups.is_empty() => {
            return Err(Error::new(ErrorKind::Unsupported, step)
                .because("a commit that was killed has frozen it, and its control group cannot be found from here")
                .remedy("open the root where the control group file systems are mounted"));
        }
        None => {}
    }
    match std::fs::remove_file(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(step, "unlink", error).path(&mark)),
        _ => Ok(()),
    }
}

/// Where a container's changes are, and how they are read.
struct Changed {
    /// Each with what lies below it, the lowest first: saved snapshots that it stands on, then its own.
    parts: Vec<(Changes, View)>,
    packing: PackOptions,
}

impl Changed {
    fn of(inner: &Inner, info: &Info, images: &Images, parent: &Image) -> Result<Changed> {
        let runtime = &inner.runtime;
        let directory = record::directory(runtime.root(), &info.id);
        let layers = parent.ensure_layers(None)?;
        let mut trees: Vec<PathBuf> = layer::trees(&layers).into_iter().map(Path::to_owned).collect();
        let frozen = super::snapshot::parts(runtime.root(), super::snapshot::below(&directory).as_ref())?;
        let own = runtime.snapshotter.changes(&directory);
        // A whole tree holds the changes of the trees that it was copied from as well.
        let frozen = if matches!(own, Changes::Tree(_)) { Vec::new() } else { frozen };
        let mut parts = Vec::new();
        for changes in frozen.iter().filter_map(|dir| snapshot::frozen(dir)).chain([own]) {
            let below = View::new(&trees, layer::whiteouts(&layers))?;
            match &changes {
                Changes::Upper(upper) => trees.insert(0, upper.clone()),
                Changes::Tree(tree) => trees = vec![tree.clone()],
            }
            parts.push((changes, below));
        }
        let range = match &runtime.identity {
            Identity::Host => None,
            rootless => Some(Arc::new(Range::new(rootless, runtime.root())?)),
        };
        let packing = PackOptions {
            owners: match (&runtime.identity, &range) {
                (Identity::Range { .. }, Some(range)) => PackOwners::Mapped(range.clone()),
                (Identity::Single { .. }, _) => PackOwners::Recorded,
                _ => PackOwners::AsFound,
            },
            access: range.map(|range| range as _),
            limits: images.layers().options().limits.clone(),
            mount_points: info.mount_points.iter().map(|path| relative(Path::new(path))).collect(),
            ..PackOptions::default()
        };
        Ok(Changed { parts, packing })
    }

    fn sources(&self) -> Vec<PackSource<'_>> {
        let mut sources = Vec::with_capacity(self.parts.len());
        for (changes, below) in &self.parts {
            sources.push(match changes {
                Changes::Upper(upper) => PackSource::Upper { upper, below },
                Changes::Tree(tree) => PackSource::Tree { tree, below },
            });
        }
        sources
    }

    /// What several parts come to: a later one may have taken back what an earlier one did.
    fn together(&self, sources: &[PackSource<'_>]) -> Result<Vec<Change>> {
        let mut paths = BTreeMap::new();
        for source in sources {
            for change in layer::changes(*source, &self.packing)? {
                let removed = change.kind == ChangeKind::Removed;
                paths.insert(change.path, removed);
            }
        }
        let Some((_, image)) = self.parts.first() else { return Ok(Vec::new()) };
        let mut changes = Vec::new();
        for (path, removed) in paths {
            let was = image.lookup(path.as_os_str().as_bytes()).is_ok_and(|found| found.is_some());
            let kind = match (was, removed) {
                (true, true) => ChangeKind::Removed,
                (true, false) => ChangeKind::Modified,
                (false, false) => ChangeKind::Added,
                (false, true) => continue,
            };
            changes.push(Change { path, kind });
        }
        Ok(changes)
    }
}

/// `a/b` of `/a/./b/`. A link on the way leads elsewhere; then the path names nothing that was made.
fn relative(path: &Path) -> Vec<u8> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.as_bytes()),
        _ => None,
    });
    names.collect::<Vec<_>>().join(&b'/')
}
