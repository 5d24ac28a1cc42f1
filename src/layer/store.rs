//! Unpacked layers on disk.
//!
//! ```text
//! <root>/
//!   layers/<name>/tree/        the files; never changed after the rename that publishes <name>
//!   layers/<name>/layer.json   what it is
//!   layers/<name>/damaged      the check has found the tree changed; the next load replaces it
//!   layers/<name>.lock         held by whoever unpacks it; gone when nobody does
//!   tmp/<random>/              being unpacked or removed
//! ```
//!
//! `<name>` is the hex DiffID, or `chain-` and the hex ChainID of a layer that depends on those below it, followed by
//! `-single` or `-mapped` and `-user` where ownership and whiteouts are written in another way than root's. It has no
//! comma and no colon, which overlayfs' mount options could not take.
//!
//! What is in `layers/` is whole. Which of it is needed is known to the images and containers, so nothing is removed
//! here without being asked.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde::{Deserialize, Serialize};

use super::pipeline::{self, Beside, Job};
use super::{Below, Limits, Ownership, Skipped, Unpacked, View, WhiteoutFormat};
use crate::content::lock::Held;
use crate::content::tmp::{self, Buried, TmpDir};
use crate::content::{self, Durability};
use crate::name::{ChainId, DiffId, Digest};
use crate::{Error, ErrorKind, Result, sys};

/// How layers are unpacked.
#[derive(Debug, Clone, Default)]
pub struct LayerOptions {
    /// Whom the files belong to.
    pub ownership: Ownership,
    /// How whiteouts are written.
    pub whiteouts: WhiteoutFormat,
    /// What one layer may cost.
    pub limits: Limits,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Which layer.
    pub diff_id: DiffId,
    /// Bytes of the blob that are read.
    pub done: u64,
    /// Bytes that the blob has.
    pub total: u64,
}

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    diff_id: DiffId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain_id: Option<ChainId>,
    bytes: u64,
    entries: u64,
    sets_root: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<(Skipped, u64)>,
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    dir: PathBuf,
    tree: PathBuf,
    record: Record,
    whiteouts: WhiteoutFormat,
}

impl Layer {
    /// The directory that holds the layer's files; never changed.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The directory that the layer is in, with what is known about it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    pub fn diff_id(&self) -> &DiffId {
        &self.record.diff_id
    }

    /// The stack that it belongs to, where what it unpacked to depends on the layers below.
    pub fn chain_id(&self) -> Option<&ChainId> {
        self.record.chain_id.as_ref()
    }

    /// Bytes of its regular files.
    pub fn bytes(&self) -> u64 {
        self.record.bytes
    }

    /// Entries of its tar.
    pub fn entries(&self) -> u64 {
        self.record.entries
    }

    /// Whether its tar says what mode and owner the root directory has; see [`Unpacked::sets_root`].
    pub fn sets_root(&self) -> bool {
        self.record.sets_root
    }

    /// What was left out when it was unpacked, each with the number of times.
    pub fn skipped(&self) -> &[(Skipped, u64)] {
        &self.record.skipped
    }
}

/// The trees of a stack of layers (lowest first) in the order of overlayfs' `lowerdir`: the uppermost first, and each
/// tree once, where it is uppermost.
///
/// Images do have one layer twice, and overlayfs refuses a directory that is given twice (`ELOOP`). The lower of the
/// two shows nothing that the upper one does not show: it can only add names that the upper one has, and hide names
/// that the upper one hides.
pub fn trees(layers: &[Layer]) -> Vec<&Path> {
    let mut seen = std::collections::HashSet::new();
    layers.iter().rev().map(Layer::tree).filter(|tree| seen.insert(*tree)).collect()
}

/// How the layers of one store say what they hide. Without layers: as the trees of whoever runs this are mounted.
pub(crate) fn whiteouts(layers: &[Layer]) -> WhiteoutFormat {
    match layers.first() {
        Some(layer) => layer.whiteouts,
        None if nix::unistd::geteuid().is_root() => WhiteoutFormat::Overlay,
        None => WhiteoutFormat::OverlayUser,
    }
}

/// The unpacked layers of a root. Cloning is cheap enough; any number of threads and processes may work on one root,
/// and each layer is unpacked once.
#[derive(Debug, Clone)]
pub struct LayerStore {
    content: content::Store,
    options: LayerOptions,
    access: Access,
}

/// Gives who reaches files of layers that this process may not. For each layer anew: it may be tied to the thread that
/// needs it, and ends with the work.
#[derive(Clone, Default)]
struct Access(Option<Arc<Accessor>>);

type Accessor = dyn Fn() -> Option<Arc<dyn super::Access>> + Send + Sync;

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Access").field(&self.0.is_some()).finish()
    }
}

const STEP: &str = "unpack the layer";
const REMOVE: &str = "remove the layer";

/// The window that zstd's levels up to 19 ask for. A layer that wants more is unpacked alone.
const USUAL_WINDOW: u64 = 8 << 20;

impl LayerStore {
    /// Opens the layers beside the blobs of `content`, and sweeps what dead processes left half made.
    ///
    /// # Errors
    /// Where the directory cannot be made. [`ErrorKind::Invalid`] for [`WhiteoutFormat::Apply`]: such trees cannot be
    /// shared.
    pub fn open(content: &content::Store, options: LayerOptions) -> Result<LayerStore> {
        if options.whiteouts == WhiteoutFormat::Apply {
            return Err(Error::new(ErrorKind::Invalid, "open the layers")
                .because("a tree that whiteouts were applied to belongs to one image only"));
        }
        let store = LayerStore { content: content.clone(), options, access: Access::default() };
        let dir = store.dir();
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("open the layers", "mkdir", error).path(dir));
            }
            _ => {}
        }
        // The content store has swept what this user can remove; the rest needs other identities.
        if let Ownership::Mapped(reown) = &store.options.ownership {
            let tmp = content.path("tmp");
            if let (Ok(parent), Ok(stale)) = (File::open(&tmp), tmp::stale(&tmp)) {
                for garbage in stale {
                    // Garbage takes space and nothing else: never a reason not to open.
                    let _ = reown.remove(parent.as_fd(), &garbage.name);
                }
            }
        }
        Ok(store)
    }

    /// The same with somebody who reaches files of layers that this process may not: those of other ids of a range, and
    /// those whose modes shut out their owner. A layer that depends on such files cannot be unpacked else.
    pub(crate) fn with_access(
        self,
        access: impl Fn() -> Option<Arc<dyn super::Access>> + Send + Sync + 'static,
    ) -> LayerStore {
        LayerStore { access: Access(Some(Arc::new(access))), ..self }
    }

    /// How layers are unpacked here.
    pub fn options(&self) -> &LayerOptions {
        &self.options
    }

    fn dir(&self) -> PathBuf {
        self.content.path("layers")
    }

    /// What trees written in this store's way are called.
    fn suffix(&self) -> String {
        let ownership = match self.options.ownership {
            Ownership::Full => "",
            Ownership::Single => "-single",
            Ownership::Mapped(_) => "-mapped",
        };
        let whiteouts = if self.options.whiteouts == WhiteoutFormat::OverlayUser { "-user" } else { "" };
        format!("{ownership}{whiteouts}")
    }

    fn name(&self, diff_id: &DiffId) -> String {
        format!("{}{}", diff_id.hex(), self.suffix())
    }

    fn chain_name(&self, chain_id: &ChainId) -> String {
        format!("chain-{}{}", chain_id.hex(), self.suffix())
    }

    /// Reads the published layer `name`; `None` where there is none.
    fn read(&self, name: &str) -> Result<Option<Layer>> {
        let dir = self.dir().join(name);
        let path = dir.join("layer.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("find the layer", "read", error).path(path)),
        };
        let record = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "find the layer")
                .path(&path)
                .because("it is not what this crate writes")
                .remedy(format!("remove {}", dir.display()))
                .source_is(error)
        })?;
        Ok(Some(Layer { tree: dir.join("tree"), dir, record, whiteouts: self.options.whiteouts }))
    }

    /// The published layer `diff_id`, on its own or in the stack `chain_id`.
    fn published(&self, diff_id: &DiffId, chain_id: &ChainId) -> Result<Option<Layer>> {
        match self.read(&self.name(diff_id))? {
            Some(layer) => Ok(Some(layer)),
            None => self.read(&self.chain_name(chain_id)),
        }
    }

    /// The unpacked layer of `blob` on top of `below` (lowest first), unpacking it first where it is not there.
    ///
    /// Of several threads and processes that ask for one layer, one unpacks and the others wait for it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the blob is absent; [`ErrorKind::Corrupt`] where blob or tar do not have their
    /// digests; [`ErrorKind::Hostile`] and [`ErrorKind::Limit`] for what the tar attempts. Nothing is left behind.
    pub fn ensure(&self, blob: &Digest, diff_id: &DiffId, below: &[Layer]) -> Result<Layer> {
        let diff_ids: Vec<_> = below.iter().map(Layer::diff_id).chain([diff_id]).cloned().collect();
        let view = ReadyBelow::new(below, &self.access);
        self.ensure_with(blob, &diff_ids, &view, &Beside::alone(&AtomicBool::new(false), &self.options.limits), None)
    }

    /// The unpacked layers of a whole image, lowest first, several at a time.
    ///
    /// `progress` is called from several threads.
    ///
    /// # Errors
    /// Those of [`LayerStore::ensure`], of whichever layer failed first. Layers that were complete by then stay.
    pub fn ensure_all(
        &self,
        layers: &[(Digest, DiffId)],
        progress: Option<&(dyn Fn(LayerProgress) + Send + Sync)>,
    ) -> Result<Vec<Layer>> {
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id.clone()).collect();
        let done: Vec<Mutex<Option<Layer>>> = layers.iter().map(|_| Mutex::new(None)).collect();
        let failure = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let workers = thread::available_parallelism().map_or(1, usize::from).min(layers.len());
        let memory = Arc::new(AtomicUsize::new(0));
        let window = self.options.limits.zstd_window;
        let zstd_window = if workers > 1 { window.min(USUAL_WINDOW) } else { window };
        // First all layers at once, on the assumption that each stands alone and that all take little memory. One that
        // turns out to need the layers below is given up and done again when they are there: a thread never waits with a
        // layer's lock in its hand. One that takes more memory than the others leave is given up, too, and done alone.
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((blob, _)) = layers.get(index) else { break };
                let unready = UnreadyBelow { lowest: index == 0, asked: AtomicBool::new(false) };
                let (memory, crowded) = (memory.clone(), Arc::new(AtomicBool::new(false)));
                let beside = Beside { stop: &stop, memory, zstd_window, crowded: crowded.clone() };
                match self.ensure_with(blob, &diff_ids[..=index], &unready, &beside, progress) {
                    Ok(layer) => *lock(&done[index]) = Some(layer),
                    Err(_) if unready.asked.load(Ordering::Relaxed) || crowded.load(Ordering::Relaxed) => {}
                    Err(error) => {
                        if !stop.swap(true, Ordering::Relaxed) {
                            *lock(&failure) = Some(error);
                        }
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..workers {
                // With fewer threads it takes longer, no more.
                let _ = thread::Builder::new().name("coracle-layers".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        let mut ready: Vec<Layer> = Vec::with_capacity(layers.len());
        for (index, (blob, _)) in layers.iter().enumerate() {
            let layer = match lock(&done[index]).take() {
                Some(layer) => layer,
                None => {
                    let below = ReadyBelow::new(&ready, &self.access);
                    let beside = Beside::alone(&stop, &self.options.limits);
                    self.ensure_with(blob, &diff_ids[..=index], &below, &beside, progress)?
                }
            };
            ready.push(layer);
        }
        Ok(ready)
    }

    /// The unpacked layers of the stack `diff_ids`, lowest first; `None` where one of them is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where a layer's record cannot be read.
    pub fn find(&self, diff_ids: &[DiffId]) -> Result<Option<Vec<Layer>>> {
        let mut chain_id = None;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let chain = ChainId::on(chain_id.as_ref(), diff_id);
            match self.published(diff_id, &chain)? {
                Some(layer) => layers.push(layer),
                None => return Ok(None),
            }
            chain_id = Some(chain);
        }
        Ok(Some(layers))
    }

    /// Those of the stack `diff_ids` that are there, lowest first, up to the first that is not.
    pub(crate) fn present(&self, diff_ids: &[DiffId]) -> Vec<Layer> {
        let mut chain_id = None;
        let mut layers = vec![];
        for diff_id in diff_ids {
            let chain = ChainId::on(chain_id.as_ref(), diff_id);
            let Ok(Some(layer)) = self.published(diff_id, &chain) else { break };
            layers.push(layer);
            chain_id = Some(chain);
        }
        layers
    }

    /// Compares a layer's tree with what `blob` unpacks to now over `below` (lowest first), and calls `tell` with the path in
    /// the tree and the cause of each difference. Takes as much space as the layer while it works.
    ///
    /// # Errors
    /// Those of [`LayerStore::ensure`]. Nothing is left behind.
    pub(crate) fn compare(
        &self,
        blob: &Digest,
        layer: &Layer,
        below: &[Layer],
        tell: &mut dyn FnMut(&[u8], String),
    ) -> Result<()> {
        let staging = TmpDir::create(&self.content.path("tmp"))?;
        let below = ReadyBelow::new(below, &self.access);
        let stop = AtomicBool::new(false);
        let beside = Beside::alone(&stop, &self.options.limits);
        let made = self.make_tree(&staging, blob, layer.diff_id(), &below, &beside, &|_, _| {});
        let compared = made.and_then(|(fresh, unpacked)| {
            let Record { bytes, entries, sets_root, .. } = layer.record;
            if (unpacked.bytes, unpacked.entries, unpacked.sets_root) != (bytes, entries, sets_root)
                || unpacked.dependent != layer.record.chain_id.is_some()
            {
                tell(b"../layer.json", "it does not say what the layer has".to_owned());
            }
            let open = |error| Error::io("compare the layer's tree", "open", error).path(&layer.tree);
            let dir = fs::File::open(&layer.dir).map_err(open)?;
            let help = super::view::Help::new(self.access.0.as_ref().and_then(|access| access()), layer.whiteouts);
            // Its owner may be another, and let nobody else in.
            let tree = help.open_dir(std::os::fd::AsFd::as_fd(&dir), c"tree").map_err(open)?;
            super::compare::compare(fresh, tree, &help, &self.options.limits, tell)
        });
        self.discard(staging);
        compared
    }

    /// All unpacked layers, also such that are written in another way than this store writes. One whose record cannot
    /// be read is left out; [`Engine::check`](crate::Engine::check) names it.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Layer>> {
        Ok(self.names()?.iter().filter_map(|name| self.read(name).ok().flatten()).collect())
    }

    /// The names in `layers/` that are layers.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let dir = self.dir();
        let failed = |error| Error::io("list the layers", "readdir", error).path(&dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().filter(|name| !name.ends_with(".lock")).map(str::to_owned));
        }
        Ok(names)
    }

    /// Where the layer `name` is.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The layer `name`, with a look at whether it is what the name says.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] where it is not.
    pub(crate) fn look(&self, name: &str) -> Result<Layer> {
        let corrupt = |why: &'static str| Error::new(ErrorKind::Corrupt, "find the layer").because(why);
        let layer = self.read(name)?.ok_or_else(|| corrupt("it has no layer.json"))?;
        let stem = match &layer.record.chain_id {
            None => layer.record.diff_id.hex().to_owned(),
            Some(chain_id) => format!("chain-{}", chain_id.hex()),
        };
        let way = name.strip_prefix(&stem).map(|rest| rest.strip_suffix("-user").unwrap_or(rest));
        if !matches!(way, Some("" | "-single" | "-mapped")) {
            return Err(corrupt("its layer.json is that of another layer"));
        }
        if !fs::symlink_metadata(&layer.tree).is_ok_and(|status| status.is_dir()) {
            return Err(corrupt("it has no tree"));
        }
        Ok(layer)
    }

    /// Removes a layer's tree; one that is gone is fine. The caller knows that no image and no container needs it.
    ///
    /// # Errors
    /// Where something of it stays; it is out of sight even then, and swept by the next open.
    pub fn remove(&self, layer: &Layer) -> Result<()> {
        self.bury(layer)?.map_or(Ok(()), Grave::remove)
    }

    /// Takes a layer out of sight at once; `None` where it is gone already. Removing what it was is the slow part, and
    /// needs no lock any more.
    pub(crate) fn bury(&self, layer: &Layer) -> Result<Option<Grave>> {
        let tmp = self.content.path("tmp");
        let buried =
            tmp::bury(&layer.dir, &tmp).map_err(|error| Error::io(REMOVE, "rename", error).path(&layer.dir))?;
        Ok(buried.map(|buried| Grave {
            buried,
            tmp,
            from: layer.dir.clone(),
            ownership: self.options.ownership.clone(),
        }))
    }

    /// Lock files of unpackings whose programs are dead, locked by us.
    pub(crate) fn stale_locks(&self) -> Result<Vec<(PathBuf, Held)>> {
        let dir = self.dir();
        let failed = |error| Error::io("list the layers", "readdir", error).path(&dir);
        let mut stale = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "lock")
                && let Ok(file) = File::open(&path)
                && let Ok(Some(lock)) = Held::try_take_named(file)
            {
                stale.push((path, lock));
            }
        }
        Ok(stale)
    }

    fn ensure_with<B: Below + Sync>(
        &self,
        blob: &Digest,
        diff_ids: &[DiffId],
        below: &B,
        beside: &Beside<'_>,
        progress: Option<&(dyn Fn(LayerProgress) + Send + Sync)>,
    ) -> Result<Layer> {
        let (Some(diff_id), Some(chain_id)) = (diff_ids.last(), ChainId::of(diff_ids)) else {
            return Err(Error::new(ErrorKind::Invalid, STEP).because("there is none"));
        };
        if let Some(layer) = self.published(diff_id, &chain_id)? {
            return Ok(layer);
        }
        let lock = LockFile::acquire(self.dir().join(format!("{}.lock", self.name(diff_id))))?;
        // Somebody else may have been faster.
        if let Some(layer) = self.published(diff_id, &chain_id)? {
            return Ok(layer);
        }
        let staging = TmpDir::create(&self.content.path("tmp"))?;
        let result = self.unpack(&staging, blob, diff_id, &chain_id, below, beside, progress);
        let record = match result {
            Ok(record) => record,
            Err(error) => {
                self.discard(staging);
                return Err(error);
            }
        };
        let name = match &record.chain_id {
            None => self.name(diff_id),
            Some(chain_id) => self.chain_name(chain_id),
        };
        let dir = self.dir().join(name);
        let published = staging.publish(&dir, self.content.durability());
        drop(lock);
        match published {
            Ok(()) => Ok(Layer { tree: dir.join("tree"), dir, record, whiteouts: self.options.whiteouts }),
            // It is what we wanted, whoever was faster.
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::AlreadyExists) => {
                self.published(diff_id, &chain_id).ok().flatten().ok_or(error)
            }
            // Ours may be there, but not for certain on the disk.
            Err(error) => Err(error),
        }
    }

    /// Throws a half-made layer away, with the help of whoever may where we may not.
    fn discard(&self, staging: TmpDir) {
        if let Ownership::Mapped(reown) = &self.options.ownership {
            // What cannot be removed now is swept by a later open.
            let _ = reown.remove(staging.dir().as_fd(), "tree".as_ref());
        }
    }

    /// Unpacks and verifies a blob into `tree` of the staging directory, which is given back open.
    fn make_tree<B: Below + Sync>(
        &self,
        staging: &TmpDir,
        blob: &Digest,
        diff_id: &DiffId,
        below: &B,
        beside: &Beside<'_>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(OwnedFd, Unpacked)> {
        let tree = new_tree(&staging.path().join("tree"))?;
        let handle = tree.try_clone().map_err(|error| Error::io(STEP, "fcntl", error))?;
        let job = Job { content: &self.content, blob, diff_id, tree, options: &self.options, beside, progress };
        // Whatever went wrong, it went wrong in this one of the image's layers.
        let named = |error: Error| error.in_step(STEP, || format!("{STEP} {diff_id}"));
        let (unpacked, owners) = pipeline::run(job, Shared(below)).map_err(named)?;
        if let Ownership::Mapped(reown) = &self.options.ownership
            && !owners.is_empty()
        {
            owners.each_batch(|batch| reown.reown(handle.as_fd(), batch))?;
        }
        Ok((handle, unpacked))
    }

    #[allow(clippy::too_many_arguments)] // One caller; the alternative is a struct that is taken apart at once.
    fn unpack<B: Below + Sync>(
        &self,
        staging: &TmpDir,
        blob: &Digest,
        diff_id: &DiffId,
        chain_id: &ChainId,
        below: &B,
        beside: &Beside<'_>,
        progress: Option<&(dyn Fn(LayerProgress) + Send + Sync)>,
    ) -> Result<Record> {
        let report = |done, total| {
            if let Some(progress) = progress {
                progress(LayerProgress { diff_id: diff_id.clone(), done, total });
            }
        };
        let (handle, unpacked) = self.make_tree(staging, blob, diff_id, below, beside, &report)?;
        let Unpacked { entries, bytes, dependent, sets_root, skipped } = unpacked;
        let chain_id = dependent.then(|| chain_id.clone());
        let record = Record { diff_id: diff_id.clone(), chain_id, bytes, entries, sets_root, skipped };
        let json = serde_json::to_vec(&record).map_err(|error| Error::new(ErrorKind::Io, STEP).source_is(error))?;
        fs::write(staging.path().join("layer.json"), json)
            .map_err(|error| Error::io(STEP, "write", error).path(staging.path()))?;
        if self.content.durability() == Durability::Full {
            // One call for thousands of files.
            sys::fs::syncfs(handle.as_fd()).map_err(|error| Error::io(STEP, "syncfs", error).path(staging.path()))?;
        }
        Ok(record)
    }
}

/// Makes the empty root of a tree, without anything inherited from the directory that it stands in.
fn new_tree(path: &Path) -> Result<OwnedFd> {
    let failed = |syscall| move |error| Error::io(STEP, syscall, error).path(path);
    fs::create_dir(path).map_err(failed("mkdir"))?;
    let dir = File::open(path).map_err(failed("open"))?;
    sys::xattr::remove_acls(dir.as_fd()).map_err(failed("fremovexattr"))?;
    dir.set_permissions(fs::Permissions::from_mode(0o755)).map_err(failed("fchmod"))?;
    Ok(dir.into())
}

/// A mutex here guards a single assignment, which cannot panic half way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A layer that is out of sight, and still takes space.
#[derive(Debug)]
pub(crate) struct Grave {
    buried: Buried,
    tmp: PathBuf,
    from: PathBuf,
    ownership: Ownership,
}

impl Grave {
    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.tmp.join(&self.buried.name)
    }

    /// Removes it.
    ///
    /// # Errors
    /// Where something of it stays, to be swept by the next open.
    pub(crate) fn remove(self) -> Result<()> {
        let Grave { buried, tmp, from, ownership } = self;
        let fail = |syscall, error| Error::io(REMOVE, syscall, error).path(&from);
        let tmp = File::open(&tmp).map_err(|error| fail("open", error))?;
        match (&ownership, sys::fs::remove_tree(tmp.as_fd(), &buried.name)) {
            (Ownership::Mapped(reown), Err(_)) => reown.remove(tmp.as_fd(), &buried.name),
            (_, result) => result.map_err(|error| fail("unlink", error)),
        }
    }
}

/// A lock file that goes with its lock.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    pub(crate) fn acquire(path: PathBuf) -> Result<LockFile> {
        let failed = |syscall| {
            let path = path.clone();
            move |error| Error::io("lock the layer", syscall, error).path(path)
        };
        loop {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed("open"))?;
            content::lock::wait(|| file.lock()).map_err(failed("flock"))?;
            // Whoever had it before us has removed the name; a newcomer would lock another file.
            if file.metadata().map_err(failed("fstat"))?.nlink() > 0 {
                return Ok(LockFile { path, file });
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Still locked: whoever waits for it sees that it is gone and makes another.
        let _ = fs::remove_file(&self.path);
        // Closing would not do where the host program has forked meanwhile: the copy keeps the lock.
        let _ = self.file.unlock();
    }
}

/// The layers below, all there; looked at when first asked for.
struct ReadyBelow<'a> {
    layers: &'a [Layer],
    access: &'a Access,
    view: std::sync::OnceLock<View>,
}

impl<'a> ReadyBelow<'a> {
    fn new(layers: &'a [Layer], access: &'a Access) -> ReadyBelow<'a> {
        ReadyBelow { layers, access, view: std::sync::OnceLock::new() }
    }
}

impl Below for ReadyBelow<'_> {
    fn view(&self) -> Result<Option<&View>> {
        if self.layers.is_empty() {
            return Ok(None);
        }
        if let Some(view) = self.view.get() {
            return Ok(Some(view));
        }
        let view = View::helped(
            trees(self.layers),
            super::store::whiteouts(self.layers),
            self.access.0.as_ref().and_then(|access| access()),
        )?;
        Ok(Some(self.view.get_or_init(|| view)))
    }
}

/// The layers below, not there yet; notes that they were asked for.
struct UnreadyBelow {
    lowest: bool,
    asked: AtomicBool,
}

impl Below for UnreadyBelow {
    fn view(&self) -> Result<Option<&View>> {
        if self.lowest {
            return Ok(None);
        }
        self.asked.store(true, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Conflict, STEP).because("the layers below are not unpacked yet"))
    }
}

/// Lends a `Below` to another thread.
struct Shared<'a, B>(&'a B);

impl<B: Below + Sync> Below for Shared<'_, B> {
    fn view(&self) -> Result<Option<&View>> {
        self.0.view()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
