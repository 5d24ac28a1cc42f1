//! Is everything whole?
//!
//! The first look takes no lock. What it finds wrong may only have been changed by others in between, so then there is
//! a second look under the lock that removals of images wait for, and only what that finds counts.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::prune::layers_of;
use super::{Garbage, GarbageKind, Root};
use crate::container::{record, snapshot};
use crate::image::{Config, Descriptor, Document, MAX_DOCUMENT};
use crate::name::{ChainId, DiffId, Digest, Hasher};
use crate::{Error, ErrorKind, Result};

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Documents are read and verified; of layers' blobs only the sizes are compared.
    Quick,
    /// Every byte of every blob is read and verified, and every unpacked layer is compared with what its blob unpacks to.
    /// For that each is unpacked once more, one at a time; one that there is no room for on the disk is
    /// [`unchecked`](Report::unchecked). Layers that another identity has unpacked (root's, seen by a user) are not compared.
    #[default]
    Full,
}

/// Something that is not whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Finding {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub cause: String,
    /// What would help.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug formatting keeps control characters of foreign names off the terminal.
        write!(f, "{:?}: {}; try: {}", self.path, self.cause, self.remedy)
    }
}

/// What [`Engine::check`](crate::Engine::check) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What is damaged, sorted by path. Empty when everything is whole.
    pub findings: Vec<Finding>,
    /// What could not be looked at for want of space, of memory that may be used, or the like: unpacked layers, mostly.
    pub unchecked: Vec<Finding>,
    /// What programs left that were killed, and what nothing needs. No damage: [`Engine::prune`](crate::Engine::prune)
    /// removes it.
    pub garbage: Vec<Garbage>,
    /// Entries of the index that were followed.
    pub names: usize,
    /// Blobs that were looked at.
    pub blobs: usize,
    /// Bytes of blobs that were read and verified.
    pub verified: u64,
    /// Unpacked layers that were looked at.
    pub layers: usize,
    /// Containers that were looked at.
    pub containers: usize,
    /// Saved snapshots that were looked at.
    pub snapshots: usize,
}

impl Report {
    /// Whether nothing is damaged, as far as everything could be looked at; see [`unchecked`](Report::unchecked).
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

const LOAD_AGAIN: &str = "remove the image, and load it again";

impl Root<'_> {
    /// See [`Engine::check`](crate::Engine::check).
    pub(crate) fn check(&self, depth: Depth) -> Result<Report> {
        let mut look = Look::of(self)?;
        if !look.report.findings.is_empty() {
            let _no_removals = self.images.lock().share()?;
            look = Look::of(self)?;
        }
        let mut report = look.report;
        if depth == Depth::Full {
            let (verified, damaged) = self.verify(&look.verified)?;
            report.verified += verified;
            self.compare_layers(&look.images, &damaged, &mut report)?;
            report.findings.extend(damaged);
        }
        match self.garbage(report.is_whole()) {
            Ok(garbage) => report.garbage = garbage,
            // Which blobs nothing needs is not known then; that is damage like any other.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let path = error.failed_path().map_or_else(|| self.path().to_owned(), Path::to_owned);
                report.findings.push(finding(&path, &error, LOAD_AGAIN));
                report.garbage = self.garbage(false)?;
            }
            Err(error) => return Err(error),
        }
        report.findings.sort();
        report.findings.dedup();
        Ok(report)
    }

    /// Reads all blobs but those of `known` on several threads; gives the number of bytes and what is wrong.
    fn verify(&self, known: &HashSet<Digest>) -> Result<(u64, Vec<Finding>)> {
        let blobs: Vec<Digest> =
            self.images.content().blobs()?.into_iter().filter(|digest| !known.contains(digest)).collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new((0u64, vec![])));
        let work = || {
            let mut buffer = vec![0; 1 << 20];
            while let Some(digest) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let outcome = self.verify_blob(digest, &mut buffer);
                let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match outcome {
                    Ok(bytes) => done.0 += bytes,
                    Err(error) => done.1.push(self.blob_finding(digest, &error)),
                }
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(blobs.len());
        std::thread::scope(|scope| {
            for _ in 1..workers {
                // With fewer threads it takes longer, no more.
                let _ = std::thread::Builder::new().name("coracle-check".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        Ok(done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Reads one blob; gives the number of its bytes. One that is gone meanwhile is fine.
    fn verify_blob(&self, digest: &Digest, buffer: &mut [u8]) -> Result<u64> {
        let mut file = match self.images.content().open_blob(digest) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            other => other?,
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut bytes = 0;
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    bytes += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("verify the blob", "read", error)),
            }
        }
        let actual = hasher.finish();
        // One that was replaced or removed while it was read is another one's business.
        if actual != *digest && self.images.content().contains(digest) {
            return Err(Error::new(ErrorKind::Corrupt, "verify the blob")
                .because(format!("its {bytes} bytes have the digest {actual}")));
        }
        Ok(bytes)
    }

    /// Compares the images' unpacked layers with their blobs, where these are whole.
    fn compare_layers(&self, images: &[Stack], damaged: &[Finding], report: &mut Report) -> Result<()> {
        let (store, content) = (self.images.layers(), self.images.content());
        let mut seen = HashSet::new();
        for Stack { layers: stack, .. } in images {
            let diff_ids: Vec<DiffId> = stack.iter().map(|(_, diff_id)| diff_id.clone()).collect();
            let layers = store.present(&diff_ids);
            for (index, (layer, (blob, _))) in layers.iter().zip(stack).enumerate() {
                let path = content.blob_path(blob);
                let unsure = !content.contains(blob) || damaged.iter().any(|finding| finding.path == path);
                if unsure || !seen.insert(layer.dir().to_owned()) {
                    continue;
                }
                let before = inode(layer.tree());
                let mut differences = Differences::default();
                let compared =
                    store.compare(blob, layer, &layers[..index], &mut |at, cause| differences.add(at, cause));
                // One that was removed or replaced meanwhile is another one's business.
                if before.is_none() || inode(layer.tree()) != before {
                    continue;
                }
                match compared {
                    Err(error) if error.kind() == ErrorKind::NotFound && !content.contains(blob) => continue,
                    Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Hostile) => {
                        report.findings.push(finding(&path, &error, LOAD_AGAIN));
                        continue;
                    }
                    // Of this layer nothing is known then, and of the others what there is to know.
                    Err(error) => {
                        report.unchecked.push(finding(layer.tree(), &error, "see what the cause names"));
                        continue;
                    }
                    Ok(()) => {}
                }
                report.findings.extend(differences.told(layer.tree(), layer.dir()));
            }
        }
        Ok(())
    }

    fn blob_finding(&self, digest: &Digest, error: &Error) -> Finding {
        finding(&self.images.content().blob_path(digest), error, LOAD_AGAIN)
    }

    /// What nothing needs. With damage about, the blobs and layers that are needed are not known for certain.
    fn garbage(&self, whole: bool) -> Result<Vec<Garbage>> {
        let content = self.images.content();
        let alone = self.images.lock().try_alone()?;
        let leftovers = self.leftovers(alone.as_ref())?;
        if !whole {
            return Ok(self.garbage_of(&leftovers, &content.leases().unwrap_or_default()));
        }
        let used = self.used_images(&self.containers()?)?;
        let collection = content.collection()?;
        let mut garbage = self.garbage_of(&leftovers, collection.leases());
        let blobs = collection.unreached(collection.entries(), &[])?.into_iter();
        let blobs = blobs.map(|blob| (GarbageKind::Blob, content.blob_path(&blob.digest)));
        let needless = self.images.needless(&collection, collection.entries(), &used)?;
        let layers = layers_of(&needless).into_iter().map(|path| (GarbageKind::Layer, path));
        garbage.extend(blobs.chain(layers).map(|(kind, path)| Garbage { kind, path }));
        Ok(garbage)
    }
}

/// What tells one directory from another that takes its place.
fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|status| (status.dev(), status.ino()))
}

/// In how many ways a tree is not its layer's, and the first of them.
#[derive(Default)]
struct Differences {
    number: usize,
    first: Vec<(PathBuf, String)>,
}

impl Differences {
    /// More than these say nothing new.
    const TOLD: usize = 20;

    fn add(&mut self, at: &[u8], cause: String) {
        self.number += 1;
        if self.first.len() < Self::TOLD {
            self.first.push((PathBuf::from(std::ffi::OsStr::from_bytes(at)), cause));
        }
    }

    fn told(self, tree: &Path, dir: &Path) -> Vec<Finding> {
        let remedy =
            "remove the images that have this layer, and the containers on them (coracle rmi, rm), and load or import \
                      them again"
                .to_owned();
        let more = self.number - self.first.len();
        let mut findings: Vec<Finding> = Vec::with_capacity(self.first.len() + 1);
        for (at, cause) in self.first {
            let path = match at.strip_prefix("..") {
                Ok(beside) => dir.join(beside),
                Err(_) if at.as_os_str().is_empty() => tree.to_owned(),
                Err(_) => tree.join(at),
            };
            findings.push(Finding { path, cause, remedy: remedy.clone() });
        }
        if more > 0 {
            findings.push(Finding { path: tree.to_owned(), cause: format!("{more} more things differ in it"), remedy });
        }
        findings
    }
}

/// The cause is the error's own where it is known, or else the whole sentence.
fn finding(path: &Path, error: &Error, remedy: &str) -> Finding {
    let cause = match error.cause() {
        Some(cause) => cause.to_owned(),
        None => error.to_string(),
    };
    Finding { path: path.to_owned(), cause, remedy: error.remedy_hint().unwrap_or(remedy).to_owned() }
}

/// One look at everything but the bytes of layers' blobs.
struct Look<'a> {
    root: &'a Root<'a>,
    report: Report,
    /// Documents that were followed, and therefore read and verified.
    verified: HashSet<Digest>,
    /// What was looked at, and whether as a document: what one image calls a layer may be another one's manifest.
    seen: HashSet<(Digest, bool)>,
    /// The images that are there.
    images: Vec<Stack>,
}

impl<'a> Look<'a> {
    fn of(root: &'a Root<'a>) -> Result<Look<'a>> {
        let mut look =
            Look { root, report: Report::default(), verified: HashSet::new(), seen: HashSet::new(), images: vec![] };
        // In this order: an image that a container uses was there before the container was.
        let records = look.records()?;
        look.layout()?;
        let layers = look.layers()?;
        look.bases(&records, &layers);
        Ok(look)
    }

    fn wrong(&mut self, path: &Path, cause: impl Into<String>, remedy: impl Into<String>) {
        self.report.findings.push(Finding { path: path.to_owned(), cause: cause.into(), remedy: remedy.into() });
    }

    /// What stands on images: containers and saved snapshots.
    fn records(&mut self) -> Result<Vec<Standing>> {
        let root = self.root.path();
        let mut standing = vec![];
        for id in record::ids(root)? {
            let path = root.join("containers").join(&id).join("state.json");
            match record::look(root, &id) {
                Ok(info) => {
                    standing.extend(info.image.map(|image| Standing { path, image, id: info.id.short().into() }))
                }
                // On its way in or out, or garbage.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(error) => {
                    let remedy = "open the root again, which removes what is left of the container";
                    self.report.findings.push(finding(&path, &error, remedy));
                }
            }
            self.report.containers += 1;
        }
        for info in snapshot::all(root)? {
            let path = snapshot::directory(root, &info.id);
            standing.push(Standing { path, image: info.image, id: info.id.short().into() });
            self.report.snapshots += 1;
        }
        for (path, error) in snapshot::broken(root)? {
            self.report.findings.push(finding(&path, &error, "remove what stands on the snapshot that is gone"));
        }
        Ok(standing)
    }

    /// The image layout: its marker, the index, and all that the index leads to.
    fn layout(&mut self) -> Result<()> {
        let content = self.root.images.content();
        if let Err(error) = content.check_layout() {
            self.report.findings.push(finding(
                &content.path("oci-layout"),
                &error,
                "remove the file; opening the root writes it again",
            ));
        }
        let entries = match content.tags() {
            Ok(entries) => entries,
            Err(error) => {
                let remedy = "put a copy of the file back, or remove it and load the images again";
                self.report.findings.push(finding(&content.path("index.json"), &error, remedy));
                return Ok(());
            }
        };
        for entry in entries {
            self.report.names += 1;
            let descriptor = Descriptor::new(entry.media_type.clone(), entry.digest.clone(), entry.size);
            let name = entry.ref_name().map_or_else(|| "a nameless image".to_owned(), |name| format!("{name:?}"));
            let mut open = vec![Named { descriptor, by: format!("the entry of {name} in index.json"), required: true }];
            while let Some(named) = open.pop() {
                self.follow(&named, &mut open);
            }
        }
        for digest in content.blobs()? {
            self.report.blobs += 1;
            match content.size(&digest) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    self.report.findings.push(self.root.blob_finding(&digest, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks at one blob; what it names in turn is added to `open`.
    fn follow(&mut self, named: &Named, open: &mut Vec<Named>) {
        let Named { descriptor, by, required } = named;
        let content = self.root.images.content();
        let (digest, path) = (&descriptor.digest, content.blob_path(&descriptor.digest));
        let kind = &descriptor.media_type;
        let key = (digest.clone(), kind.is_manifest() || kind.is_index());
        if !self.seen.insert(key.clone()) {
            return;
        }
        match content.size(digest) {
            Ok(size) if size != descriptor.size => {
                let cause = format!("it has {size} bytes, but {by} says {}", descriptor.size);
                return self.wrong(&path, cause, LOAD_AGAIN);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if *required {
                    self.wrong(&path, format!("it is missing, and {by} needs it"), LOAD_AGAIN);
                } else {
                    // Somebody else may need it.
                    self.seen.remove(&key);
                }
                return;
            }
            Err(error) => return self.report.findings.push(self.root.blob_finding(digest, &error)),
        }
        if !key.1 {
            return;
        }
        let document = content.read_blob(digest, MAX_DOCUMENT).and_then(|bytes| {
            self.report.verified += bytes.len() as u64;
            self.verified.insert(digest.clone());
            Document::parse(&bytes, Some(kind))
        });
        match document {
            Ok(Document::Index(index)) => {
                // Often only one platform's manifest is here.
                let by = format!("the index {digest}");
                let children = index.manifests.into_iter();
                open.extend(children.map(|descriptor| Named { descriptor, by: by.clone(), required: false }));
            }
            Ok(Document::Manifest(manifest)) => {
                let by = format!("the manifest {digest}");
                if manifest.config.media_type.is_config() {
                    self.config(&manifest.config.digest, &manifest.layers);
                }
                for descriptor in manifest.layers.into_iter().chain([manifest.config]) {
                    // Layers that are not to be distributed are fetched from elsewhere.
                    let required = !descriptor.media_type.is_foreign_layer();
                    open.push(Named { descriptor, by: by.clone(), required });
                }
            }
            // Of another program's making, and nothing of ours stands on it.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => self.report.findings.push(self.root.blob_finding(digest, &error)),
        }
    }

    fn config(&mut self, digest: &Digest, layers: &[Descriptor]) {
        let bytes = match self.root.images.content().read_blob(digest, MAX_DOCUMENT) {
            Ok(bytes) => bytes,
            // That is known by now.
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => return self.report.findings.push(self.root.blob_finding(digest, &error)),
        };
        if self.verified.insert(digest.clone()) {
            self.report.verified += bytes.len() as u64;
        }
        match Config::parse(&bytes).and_then(|config| config.check_layer_count(layers.len()).map(|()| config)) {
            Ok(config) => {
                let layers = layers.iter().map(|layer| layer.digest.clone()).zip(config.rootfs.diff_ids).collect();
                self.images.push(Stack { id: digest.clone(), layers });
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => self.report.findings.push(self.root.blob_finding(digest, &error)),
        }
    }

    /// The unpacked layers; gives what they are, whichever way they are written.
    fn layers(&mut self) -> Result<Unpacked> {
        let store = self.root.images.layers();
        let mut unpacked = Unpacked::default();
        for name in store.names()? {
            self.report.layers += 1;
            match store.look(&name) {
                Ok(layer) => {
                    unpacked.diff_ids.extend(layer.chain_id().is_none().then(|| layer.diff_id().clone()));
                    unpacked.chain_ids.extend(layer.chain_id().cloned());
                }
                Err(error) => {
                    let path = store.path_of(&name);
                    let remedy = format!("remove {}; it is unpacked again when it is needed", path.display());
                    self.report.findings.push(finding(&path, &error, &remedy));
                }
            }
        }
        Ok(unpacked)
    }

    /// What containers and saved snapshots stand on.
    fn bases(&mut self, standing: &[Standing], layers: &Unpacked) {
        for Standing { path, image, id } in standing {
            let found = self.images.iter().find(|stack| stack.id.as_str() == image);
            let remedy = format!("remove {id}");
            match found.map(|stack| layers.have(stack.layers.iter().map(|(_, diff_id)| diff_id))) {
                Some(true) => {}
                Some(false) => self.wrong(path, format!("layers of its image {image} are not unpacked"), remedy),
                None => self.wrong(path, format!("its image {image} is not there, or not whole"), remedy),
            }
        }
    }
}

/// An image's layers, lowest first.
struct Stack {
    /// The image's ID.
    id: Digest,
    /// Each one's blob and DiffID.
    layers: Vec<(Digest, DiffId)>,
}

/// Something that stands on an image.
struct Standing {
    path: PathBuf,
    image: String,
    /// The first digits of its ID.
    id: String,
}

/// A blob that something names.
struct Named {
    descriptor: Descriptor,
    by: String,
    /// Whether something is damaged where it is not there.
    required: bool,
}

/// Which layers are unpacked.
#[derive(Default)]
struct Unpacked {
    diff_ids: HashSet<DiffId>,
    chain_ids: HashSet<ChainId>,
}

impl Unpacked {
    fn have<'a>(&self, mut stack: impl Iterator<Item = &'a DiffId>) -> bool {
        let mut chain = None;
        stack.all(|diff_id| {
            let next = ChainId::on(chain.as_ref(), diff_id);
            let there = self.diff_ids.contains(diff_id) || self.chain_ids.contains(&next);
            chain = Some(next);
            there
        })
    }
}
