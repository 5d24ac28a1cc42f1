//! What a snapshot backend has to keep.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fixture::{du, fingerprint, image, names, script};
use super::{Clause, require, run, spread};
use crate::content::tmp::TmpDir;
use crate::image::Image;
use crate::layer::{Layer, View, WhiteoutFormat};
use crate::snapshot::{Base, Changes, Mount, Snapshotter, frozen};
use crate::{Container, ContainerBuilder, Engine, Error, ErrorKind, Result};

/// Tries everything that [`Snapshotter`] promises on the backend of an engine, and returns the clauses that were kept.
///
/// `engine` is opened over a root that is empty or at least not used by anybody else meanwhile, on the file system that
/// the backend is meant for, by the user that it is meant for: nothing here needs root. What a backend says to mount is
/// looked at by containers, which run the host's shell and core utilities. Afterwards the root is as it was.
///
/// # Errors
/// The first clause that is broken, or that could not be tried.
pub fn snapshotter(engine: &Engine) -> Result<Vec<&'static str>> {
    let image = image(engine)?;
    let tried = Suite::new(engine, &image).and_then(|suite| run(&PARTS, |part, clause| part(&suite, clause)));
    let removed = engine.remove_image(&image.id().to_string(), true);
    let kept = tried?;
    removed?;
    Ok(kept)
}

/// What containers write, and what the tests look for afterwards.
const WRITE: &str = "echo new > /data/new; echo changed > /etc/changed; rm /etc/kept; mkdir -p /deep/er; \
                     ln /data/new /deep/er/again; chmod 0700 /deep";

struct Suite {
    engine: Engine,
    backend: Arc<dyn Snapshotter>,
    image: Image,
    layers: Vec<Layer>,
    /// On the file system of the engine's root.
    place: TmpDir,
    before: BTreeMap<PathBuf, String>,
}

type Part = fn(&Suite, Clause) -> Result<()>;

const PARTS: [(Clause, Part); 12] = [
    ("prepare is idempotent", Suite::idempotent),
    ("what is to be mounted is there", Suite::mounts_are_there),
    ("usage is what du says", Suite::usage),
    ("remove leaves nothing, whatever was made, and is idempotent", Suite::removal),
    ("many snapshots are prepared and removed at once", Suite::crowd),
    ("what is frozen is the base of others, and can be frozen on top of", Suite::freezing),
    ("a container sees the merged layers", Suite::shows_the_image),
    ("writes reach one container alone", Suite::writes_stay),
    ("changes say what a container has changed", Suite::changes),
    ("a saved snapshot is started from many times at once, and stacked", Suite::saved),
    ("the base is never written", Suite::base_untouched),
    ("nothing is left", Suite::nothing_left),
];

impl Suite {
    fn new(engine: &Engine, image: &Image) -> Result<Suite> {
        let layers = image.ensure_layers(None)?;
        let place = TmpDir::create(&engine.root().join("tmp"))?;
        let backend = engine.snapshot_backend();
        let (engine, image) = (engine.clone(), image.clone());
        let mut suite = Suite { engine, backend, image, layers, place, before: BTreeMap::new() };
        suite.before = suite.trees()?;
        Ok(suite)
    }

    fn trees(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut all = BTreeMap::new();
        for layer in &self.layers {
            all.extend(fingerprint(layer.tree())?);
        }
        Ok(all)
    }

    /// A fresh directory.
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.place.path().join(name);
        fs::create_dir(&dir).map_err(|error| Error::io("make a directory", "mkdir", error).path(&dir))?;
        Ok(dir)
    }

    fn base(&self) -> Base {
        Base::Layers(self.layers.clone())
    }

    fn idempotent(&self, clause: Clause) -> Result<()> {
        let dir = self.dir("twice")?;
        let first = self.backend.prepare(&dir, &self.base())?;
        let written = self.backend.changes(&dir).path().join("written");
        put(&written, b"written")?;
        let second = self.backend.prepare(&dir, &self.base())?;
        require(first == second, clause, format!("{second:?} is not {first:?}"))?;
        require(fs::read(&written).is_ok_and(|bytes| bytes == b"written"), clause, "what was written is gone")?;
        self.gone(&dir, clause)
    }

    fn mounts_are_there(&self, clause: Clause) -> Result<()> {
        let dir = self.dir("mounts")?;
        let snapshot = self.backend.prepare(&dir, &self.base())?;
        for mount in std::iter::once(&snapshot.root).chain(snapshot.inner.iter().map(|(_, mount)| mount)) {
            let paths: Vec<&PathBuf> = match mount {
                Mount::Overlay { lower, upper, work } => lower.iter().chain([upper, work]).collect(),
                Mount::Bind { source, .. } => vec![source],
                Mount::Tmpfs { .. } => vec![],
            };
            for path in paths {
                require(path.is_absolute() && path.exists(), clause, format!("{} is not there", path.display()))?;
            }
        }
        let changes = self.backend.changes(&dir);
        let inside = changes.path().starts_with(&dir) && changes.path().is_dir();
        require(inside, clause, format!("{changes:?} is no directory of the container's"))?;
        let mode = changes.path().metadata().map(|status| status.mode() & 0o7777).unwrap_or(0);
        require(mode == 0o751, clause, format!("the root's mode is {mode:o}, and 751 in the image"))?;
        self.gone(&dir, clause)
    }

    fn usage(&self, clause: Clause) -> Result<()> {
        let dir = self.dir("usage")?;
        require(self.backend.usage(&dir)?.inodes == 0, clause, "something that is not there takes something")?;
        self.backend.prepare(&dir, &self.base())?;
        let root = self.backend.changes(&dir).path().to_owned();
        put(&root.join("file"), &[7; 100_000])?;
        let made = fs::hard_link(root.join("file"), root.join("again"))
            .and_then(|()| fs::File::create(root.join("sparse"))?.set_len(1 << 30));
        made.map_err(|error| Error::io("write to the snapshot", "link", error).path(&root))?;
        let (usage, du) = (self.backend.usage(&dir)?, du(&root)?);
        require((usage.bytes, usage.inodes) == du, clause, format!("{usage:?}, and du finds {du:?}"))?;
        self.gone(&dir, clause)
    }

    fn removal(&self, clause: Clause) -> Result<()> {
        let dir = self.dir("removal")?;
        self.gone(&dir, clause)?;
        let dir = self.dir("removal")?;
        self.backend.prepare(&dir, &self.base())?;
        let made = names(&dir)?;
        // As a crash could leave it: without one of the things that are made.
        for absent in &made {
            self.backend.prepare(&dir, &self.base())?;
            let closed = self.backend.changes(&dir).path().join("closed");
            put_closed(&closed)?;
            crate::content::tmp::remove(&dir.join(absent))
                .map_err(|error| Error::io("take a part away", "unlink", error).path(&dir))?;
            self.backend.remove(&dir)?;
            let left = names(&dir)?;
            require(left.is_empty(), clause, format!("without {absent}, {left:?} is left"))?;
        }
        self.gone(&dir, clause)
    }

    /// Removes, twice, and looks.
    fn gone(&self, dir: &Path, clause: Clause) -> Result<()> {
        for _ in 0..2 {
            self.backend.remove(dir)?;
            let left = names(dir)?;
            require(left.is_empty(), clause, format!("{left:?} is left"))?;
        }
        fs::remove_dir(dir).map_err(|error| Error::io("remove a directory", "rmdir", error).path(dir))
    }

    fn crowd(&self, clause: Clause) -> Result<()> {
        let count = AtomicUsize::new(0);
        spread(6, clause, || {
            for _ in 0..4 {
                let dir = self.dir(&format!("crowd-{}", count.fetch_add(1, Ordering::Relaxed)))?;
                self.backend.prepare(&dir, &self.base())?;
                let file = self.backend.changes(&dir).path().join("own");
                require(!file.exists(), clause, "a fresh one holds another's file")?;
                put(&file, b"x")?;
                self.gone(&dir, clause)?;
            }
            Ok(())
        })
    }

    fn freezing(&self, clause: Clause) -> Result<()> {
        let (dir, one, two) = (self.dir("freezing")?, self.dir("one")?, self.dir("two")?);
        require(frozen(&one).is_none(), clause, "an empty directory counts as frozen")?;
        let mut base = self.base();
        let mut parts: Vec<PathBuf> = vec![];
        for (into, name) in [(&one, "first"), (&two, "second")] {
            self.backend.prepare(&dir, &base)?;
            let changes = self.backend.changes(&dir);
            put(&changes.path().join(name), name.as_bytes())?;
            self.backend.freeze(&dir, into)?;
            let part =
                frozen(into).ok_or_else(|| Error::new(ErrorKind::Invalid, clause).because("nothing is frozen"))?;
            let moved = matches!(changes, Changes::Upper(_));
            require(moved == matches!(part, Changes::Upper(_)), clause, format!("{changes:?} became {part:?}"))?;
            require(moved != changes.path().exists(), clause, "an upper directory moves, a tree does not")?;
            parts.push(into.clone());
            if moved {
                base = Base::Frozen(self.layers.clone(), parts.clone());
            }
        }
        self.gone(&dir, clause)?;
        let base = Base::Frozen(self.layers.clone(), parts);
        for name in ["from-a", "from-b"] {
            let dir = self.dir(name)?;
            let first = self.backend.prepare(&dir, &base)?;
            require(first == self.backend.prepare(&dir, &base)?, clause, "it is not prepared idempotently")?;
            let view = self.seen(&dir, &base)?;
            for file in ["first", "second"] {
                require(read(&view, file)? == file.as_bytes(), clause, format!("{file} is not seen"))?;
            }
            require(read(&view, "etc/changed")? == b"high", clause, "the layers are not seen")?;
            put(&self.backend.changes(&dir).path().join("first"), b"changed")?;
            self.gone(&dir, clause)?;
        }
        for into in [&one, &two] {
            require(frozen(into).is_some(), clause, "what was frozen went with a container")?;
            crate::content::tmp::remove(into)
                .map_err(|error| Error::io("remove what was frozen", "unlink", error).path(into))?;
        }
        Ok(())
    }

    /// The tree that a container over `base` with its writable part in `dir` sees.
    fn seen(&self, dir: &Path, base: &Base) -> Result<View> {
        match self.backend.changes(dir) {
            Changes::Upper(upper) => View::new(std::iter::once(upper).chain(base.trees()?), base.whiteouts()),
            Changes::Tree(tree) => View::new([tree], WhiteoutFormat::Apply),
        }
    }

    /// Runs a script in a container to its end, which has to be a good one, and keeps the container.
    fn run_in(&self, builder: ContainerBuilder, text: &str) -> Result<Container> {
        let container = script(builder, text).keep(true).spawn()?;
        let status = container.wait()?;
        require(status.success(), "a container runs", format!("{text:?}: {status}"))?;
        Ok(container)
    }

    fn says(&self, builder: ContainerBuilder, text: &str) -> Result<String> {
        let out = script(builder, text).output()?;
        let complaint = String::from_utf8_lossy(&out.stderr).into_owned();
        require(out.status.success(), "a container runs", format!("{text:?}: {}: {complaint}", out.status))?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn shows_the_image(&self, clause: Clause) -> Result<()> {
        let text = "cat /etc/changed /replaced/shown /data/link; echo; ls /replaced /etc | grep -E 'gone|hidden' || true; \
                    stat -c '%a %Y %h %s' /etc/changed /data/big; stat -c %a /; test /data/big -ef /data/twin";
        let said = self.says(self.image.container(), text)?;
        let expected = "highhighkept\n4755 1700000000 1 4\n644 1700000000 2 200000\n751\n";
        require(said == expected, clause, format!("{said:?}"))
    }

    fn writes_stay(&self, clause: Clause) -> Result<()> {
        let writer = self.run_in(self.image.container(), WRITE)?;
        let said = self.says(self.image.container(), "cat /etc/changed /etc/kept; test ! -e /data/new")?;
        require(said == "highkept", clause, format!("another one sees {said:?}"))?;
        writer.remove()
    }

    fn changes(&self, clause: Clause) -> Result<()> {
        let writer = self.run_in(self.image.container(), WRITE)?;
        let dir = self.engine.root().join("containers").join(writer.id().to_string());
        let base = self.base();
        let view = self.seen(&dir, &base)?;
        require(read(&view, "data/new")? == b"new\n", clause, "a new file is missing")?;
        require(read(&view, "deep/er/again")? == b"new\n", clause, "a new link is missing")?;
        require(read(&view, "etc/changed")? == b"changed\n", clause, "a changed file has its old content")?;
        require(view.open(b"etc/kept")?.is_none(), clause, "a removed file is there")?;
        require(read(&view, "data/big")?.len() == 200_000, clause, "a file that nobody touched is missing")?;
        if let Changes::Upper(upper) = self.backend.changes(&dir) {
            require(!upper.join("data/big").exists(), clause, "a file that nobody touched counts as changed")?;
        }
        let (usage, backend) = (writer.usage()?, self.backend.usage(&dir)?);
        require(usage == backend && usage.bytes > 0, clause, format!("it takes {usage:?}, and {backend:?}"))?;
        writer.remove()
    }

    fn saved(&self, clause: Clause) -> Result<()> {
        let writer = self.run_in(self.image.container(), WRITE)?;
        let saved = writer.snapshot()?;
        let text = "cat /data/new /etc/changed; test ! -e /etc/kept; test /data/new -ef /deep/er/again; echo $CONTRACT; \
                    echo mine > /data/new; rm -r /deep";
        spread(4, clause, || {
            let said = self.says(saved.container(), text)?;
            require(said == "new\nchanged\nkept\n", clause, format!("{said:?}"))
        })?;
        let second = self.run_in(saved.container(), "echo second > /data/second; rm /data/new")?;
        let stacked = second.snapshot()?;
        let said = self.says(stacked.container(), "cat /etc/changed /data/second; ls /data")?;
        require(said == "changed\nsecond\nbig\nlink\nsecond\ntwin\n", clause, format!("stacked: {said:?}"))?;
        let found = self.engine.find_snapshot(&saved.id().to_string())?;
        require(found.remove().is_err(), clause, "one that a container stands on was removed")?;
        second.remove()?;
        writer.remove()?;
        stacked.remove()?;
        saved.remove()
    }

    fn base_untouched(&self, clause: Clause) -> Result<()> {
        let after = self.trees()?;
        let changed = self.before.iter().find(|(path, was)| after.get(*path) != Some(was));
        let changed = changed.map(|(path, was)| format!("{}: {was}, then {:?}", path.display(), after.get(path)));
        require(changed.is_none() && after.len() == self.before.len(), clause, changed.unwrap_or_default())
    }

    fn nothing_left(&self, clause: Clause) -> Result<()> {
        let root = self.engine.root();
        let tmp: Vec<String> = names(&root.join("tmp"))?;
        let own = self.place.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let tmp: Vec<&String> = tmp.iter().filter(|name| Some(*name) != own.as_ref()).collect();
        let (containers, snapshots) = (names(&root.join("containers"))?, names(&root.join("snapshots"))?);
        let left = format!("containers {containers:?}, snapshots {snapshots:?}, tmp {tmp:?}");
        require(containers.is_empty() && snapshots.is_empty() && tmp.is_empty(), clause, left)?;
        let place = names(self.place.path())?;
        require(place.is_empty(), clause, format!("{place:?} is left"))
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| Error::io("write to the snapshot", "write", error).path(path))
}

/// A directory with something in it that its mode forbids to remove.
fn put_closed(path: &Path) -> Result<()> {
    let made = fs::create_dir(path)
        .and_then(|()| fs::write(path.join("file"), b"x"))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o500)));
    made.map_err(|error| Error::io("write to the snapshot", "mkdir", error).path(path))
}

fn read(view: &View, path: &str) -> Result<Vec<u8>> {
    Ok(view.read_file(path.as_bytes(), 1 << 20)?.unwrap_or_default())
}
