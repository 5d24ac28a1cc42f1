//! The engine: the chosen roots and backends. It hands out images, containers and repositories, and has no verbs of its
//! own beyond finding and making them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::container::rung::Rung;
use crate::container::runtime::{Runtime, Swept};
use crate::container::{self, Container, ContainerBuilder, Info, SavedSnapshot, SnapshotInfo};
use crate::image::{Image, ImageId, Images, ImportOptions, ImportSource, Listed, LoadOptions, LoadSource};
use crate::isolation::{Chroot, Identity, Isolation, Landlock, Namespaces, Range};
use crate::layer::{LayerOptions, LayerStore, Limits, Ownership, WhiteoutFormat};
use crate::name::{Platform, Reference};
use crate::probe::{Feature, Host};
use crate::repository::Removed;
use crate::snapshot::Snapshotter;
use crate::{Error, ErrorKind, Result, content, snapshot, system};

/// An engine over one root directory. Cheap to clone; may be used from any thread. Several with different roots live
/// side by side in one process.
#[derive(Debug, Clone)]
pub struct Engine {
    images: Images,
    runtime: Arc<Runtime>,
    leftovers: Vec<String>,
}

/// How to open an engine, where the defaults do not fit.
#[derive(Debug, Clone)]
#[must_use = "options open nothing by themselves"]
pub struct EngineOptions {
    root: PathBuf,
    platform: Option<Platform>,
    durability: content::Durability,
    limits: Limits,
    snapshotter: SnapshotterChoice,
    backend: Option<Arc<dyn Snapshotter>>,
    isolation: IsolationChoice,
    isolation_backend: Option<Arc<dyn Isolation>>,
    single_id: bool,
}

/// Which rung of the [ladder](crate::isolation) isolates containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum IsolationChoice {
    /// The strongest that is within reach and does what the container asks for; [`Enforcement::backend`] says which. What it
    /// does not enforce is an error, unless the container's requirement says otherwise.
    ///
    /// [`Enforcement::backend`]: crate::isolation::Enforcement::backend
    #[default]
    Auto,
    /// [`Namespaces`], or an error.
    Namespaces,
    /// [`Landlock`](struct@crate::isolation::Landlock), or an error.
    Landlock,
    /// [`Chroot`], or an error; with a snapshot backend that mounts nothing, unless one is chosen.
    Chroot,
}

/// Which snapshot backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SnapshotterChoice {
    /// Overlay where it works, else trees that share blocks, else copies; [`Engine::snapshotter`] says which and why.
    #[default]
    Auto,
    /// Overlay; a root where it cannot work gives an error with the first container.
    Overlay,
    /// A tree of its own for every container that shares its blocks with the image; a root on a file system that cannot
    /// do that is not opened.
    Reflink,
    /// A whole copy of the tree for every container.
    Copy,
}

impl EngineOptions {
    /// Options for this root directory. It is created when the engine is opened, with mode 0700.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        EngineOptions {
            root: root.into(),
            platform: None,
            durability: content::Durability::default(),
            limits: Limits::default(),
            snapshotter: SnapshotterChoice::default(),
            backend: None,
            isolation: IsolationChoice::default(),
            isolation_backend: None,
            single_id: false,
        }
    }

    /// The platform that is taken from multi-platform images; this machine's by default.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// What a power cut may cost; see [`content::Durability`].
    pub fn durability(mut self, durability: content::Durability) -> Self {
        self.durability = durability;
        self
    }

    /// What one layer may cost at most.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Which snapshot backend to use.
    pub fn snapshotter(mut self, choice: SnapshotterChoice) -> Self {
        self.snapshotter = choice;
        self
    }

    /// Uses a snapshot backend of the caller's own, whatever [`snapshotter`](Self::snapshotter) says. Run
    /// [`contract::snapshotter`](crate::contract::snapshotter) on it first.
    pub fn snapshot_backend(mut self, backend: Arc<dyn Snapshotter>) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Which rung of the ladder isolates containers.
    pub fn isolation(mut self, choice: IsolationChoice) -> Self {
        self.isolation = choice;
        self
    }

    /// Uses an isolation backend of the caller's own, whatever [`isolation`](Self::isolation) says. Run
    /// [`contract::isolation`](crate::contract::isolation) on it first.
    pub fn isolation_backend(mut self, backend: Arc<dyn Isolation>) -> Self {
        self.isolation_backend = Some(backend);
        self
    }

    /// Rootless: use one id only, even where a subordinate range could be used.
    pub fn single_id(mut self, single: bool) -> Self {
        self.single_id = single;
        self
    }

    /// Opens the engine: creates the root where it is missing, and brings in order what killed programs left in it.
    /// What resists that is in [`Engine::leftovers`], and is no error.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) when the root belongs to somebody else or others may write to it;
    /// [`Conflict`](ErrorKind::Conflict) when it is a directory with something in it that this crate has not made: that
    /// stays as it is; [`Unsupported`](ErrorKind::Unsupported) when [`SnapshotterChoice::Reflink`] cannot work there, and
    /// when /proc is not mounted: who this process is would be a guess. Nothing was touched then.
    pub fn open(self) -> Result<Engine> {
        self.open_on(Host::probe())
    }

    /// [`open`](Self::open) with a host that tests can make up.
    fn open_on(self, host: Host) -> Result<Engine> {
        if !host.proc {
            return Err(host.finding(Feature::Proc).error("open the engine's root").path(&self.root));
        }
        // Paths of the root are used in other working directories.
        let root = std::path::absolute(&self.root)
            .map_err(|error| Error::io("open the engine's root", "getcwd", error).path(&self.root))?;
        let on_directories = self.is_on_directories(&host);
        let identity = match on_directories && host.has(Feature::ChrootIsolation) {
            true => Identity::Host,
            false => identity(&host, self.single_id),
        };
        let content = content::Store::open_with(&root, self.durability)?;
        // With every link resolved: the stub enters it by this path and compares what it finds.
        let root = std::fs::canonicalize(&root)
            .map_err(|error| Error::io("open the engine's root", "realpath", error).path(&root))?;
        let (ownership, whiteouts) = match &identity {
            // Without CAP_SYS_ADMIN nobody sets the attributes that overlay has for root.
            Identity::Host if !host.is_admin() => (Ownership::Full, WhiteoutFormat::OverlayUser),
            Identity::Host => (Ownership::Full, WhiteoutFormat::Overlay),
            Identity::Range { .. } => {
                (Ownership::Mapped(Arc::new(Range::new(&identity, &root)?)), WhiteoutFormat::OverlayUser)
            }
            Identity::Single { .. } | Identity::Caller { .. } => (Ownership::Single, WhiteoutFormat::OverlayUser),
        };
        let options = LayerOptions { ownership: ownership.clone(), whiteouts, limits: self.limits };
        let layers = LayerStore::open(&content, options)?;
        let layers = match &identity {
            Identity::Host => layers,
            Identity::Range { .. } | Identity::Single { .. } | Identity::Caller { .. } => {
                let (identity, root) = (identity.clone(), root.clone());
                layers.with_access(move || Some(Arc::new(Range::new(&identity, &root).ok()?) as _))
            }
        };
        let (snapshotter, note): (Arc<dyn Snapshotter>, _) = match (self.backend, self.snapshotter) {
            (Some(backend), _) => (backend, None),
            (None, SnapshotterChoice::Auto) if on_directories => snapshot::choose_directory(&root, ownership),
            (None, SnapshotterChoice::Auto) => snapshot::choose(&root, &host, ownership),
            (None, SnapshotterChoice::Overlay) => (Arc::new(snapshot::Overlay::new(ownership)), None),
            (None, SnapshotterChoice::Reflink) => (Arc::new(snapshot::Reflink::new(&root, ownership)?), None),
            (None, SnapshotterChoice::Copy) => (Arc::new(snapshot::Copy::new(ownership)), None),
        };
        let platform = self.platform.unwrap_or_else(Platform::host);
        let ladder = ladder(self.isolation, self.isolation_backend, &host, &identity);
        let runtime = Runtime::open((&root, self.durability), host, identity, (snapshotter, note), ladder)?;
        let images = Images::new(content, layers, platform, runtime.clone());
        // Nobody makes a container while nobody but us holds the lock; if somebody does, the next open sweeps.
        let alone = images.lock().try_alone()?;
        let Swept { failures, remains } = runtime.sweep(alone.is_some(), &images.layers().options().ownership);
        let mut engine = Engine { images, runtime, leftovers: failures };
        if let Some(alone) = alone
            && let Err(error) = engine.images.sweep(alone, &|| engine.images_in_use())
        {
            engine.leftovers.push(error.to_string());
        }
        // The slow part, when nobody waits any more.
        engine.leftovers.extend(engine.runtime.empty_all(remains));
        engine.leftovers.extend(engine.runtime.sweep_range());
        Ok(engine)
    }
}

impl EngineOptions {
    /// Whether containers of images will have their trees in plain directories.
    fn is_on_directories(&self, host: &Host) -> bool {
        if let Some(backend) = &self.isolation_backend {
            return backend.ground() == crate::isolation::Ground::Directory;
        }
        match self.isolation {
            IsolationChoice::Chroot => true,
            IsolationChoice::Auto => !host.has(Feature::NamespaceIsolation) && host.has(Feature::ChrootIsolation),
            _ => false,
        }
    }
}

/// The rungs to try, the strongest first.
fn ladder(choice: IsolationChoice, own: Option<Arc<dyn Isolation>>, host: &Host, identity: &Identity) -> Vec<Rung> {
    if let Some(backend) = own {
        return vec![Rung::new(backend, None, host, identity)];
    }
    let namespaces = |needs| Rung::new(Arc::new(Namespaces), needs, host, identity);
    let landlock = || Rung::new(Arc::new(Landlock), Some(Feature::LandlockIsolation), host, identity);
    let chroot = || Rung::new(Arc::new(Chroot), Some(Feature::ChrootIsolation), host, identity);
    match choice {
        IsolationChoice::Auto => vec![namespaces(Some(Feature::NamespaceIsolation)), landlock(), chroot()],
        // Tried all the same: the kernel may know better.
        IsolationChoice::Namespaces => vec![namespaces(None)],
        IsolationChoice::Landlock => vec![landlock()],
        IsolationChoice::Chroot => vec![chroot()],
    }
}

/// Root's own ids, the caller's range, or the caller's one id.
fn identity(host: &Host, single: bool) -> Identity {
    if host.is_root() {
        return Identity::Host;
    }
    let (uid, gid) = (host.uid(), host.gid());
    let (uids, gids) = (host.subordinate_uids(), host.subordinate_gids());
    // Also a process with no_new_privs has none: newuidmap gains no privileges then.
    let usable = !single && host.has(Feature::SubordinateIds) && host.has(Feature::UserNamespaces);
    match (host.newuidmap(), host.newgidmap()) {
        (Some(uid_tool), Some(gid_tool)) if usable => Identity::Range {
            uid,
            gid,
            uids: uids.to_vec(),
            gids: gids.to_vec(),
            uid_tool: uid_tool.to_owned(),
            gid_tool: gid_tool.to_owned(),
        },
        _ => {
            // A process whose groups cannot be asked for has none that matter: getgroups(2) fails for a short list only.
            let groups = nix::unistd::getgroups().unwrap_or_default();
            let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).filter(|group| *group != gid).collect();
            Identity::Single { uid, gid, groups }
        }
    }
}

impl Engine {
    /// Opens the default root: `/var/lib/coracle` as root, `$XDG_DATA_HOME/coracle` or `~/.local/share/coracle` as
    /// anybody else. Of the library only this, and
    /// [`open_default_with`](Self::open_default_with), read the environment.
    ///
    /// # Errors
    /// Those of [`EngineOptions::open`]; [`NotFound`](ErrorKind::NotFound) when there is no home directory.
    pub fn open_default() -> Result<Engine> {
        Self::open_default_with(|options| options)
    }

    /// [`open_default`](Self::open_default), with other options.
    ///
    /// # Errors
    /// As there.
    pub fn open_default_with(options: impl FnOnce(EngineOptions) -> EngineOptions) -> Result<Engine> {
        Self::open_at_home(options(EngineOptions::new(default_root()?)))
    }

    /// A user whose home is not there, or not to be written to, has to learn of other places.
    fn open_at_home(options: EngineOptions) -> Result<Engine> {
        options.open().map_err(|error| match (error.syscall(), error.kind()) {
            (Some("mkdir"), kind) if kind != ErrorKind::Full => {
                error.remedy("name a root with --root DIR (Engine::open), or set XDG_DATA_HOME to a directory of yours")
            }
            _ => error,
        })
    }

    /// Opens an engine over a root directory with the default options.
    ///
    /// # Errors
    /// Those of [`EngineOptions::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Engine> {
        EngineOptions::new(root.as_ref()).open()
    }

    /// The root directory, absolute.
    pub fn root(&self) -> &Path {
        self.runtime.root()
    }

    /// The images of the root.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Loads an archive (`docker save`, `skopeo`, `umoci`; an OCI image layout as a directory or tar) and returns its
    /// image.
    ///
    /// # Errors
    /// Those of [`Images::load`]; [`Invalid`](ErrorKind::Invalid) when the archive holds several images, which are
    /// loaded all the same: [`Images::load`] returns them all.
    pub fn load(&self, source: impl Into<LoadSource>) -> Result<Image> {
        let mut images = self.images.load(source, &LoadOptions::default())?;
        match (images.pop(), images.len()) {
            (Some(image), 0) => Ok(image),
            (_, more) => Err(Error::new(ErrorKind::Invalid, "load one image")
                .because(format!("the archive holds {} images; all of them were loaded", more + 1))
                .remedy("use Images::load, or name one of them")),
        }
    }

    /// Makes an image of one layer from a root file system: a tar or a directory.
    ///
    /// # Errors
    /// Those of [`Images::import`].
    pub fn import(&self, source: impl Into<ImportSource>, reference: Option<Reference>) -> Result<Image> {
        self.images.import(source, &ImportOptions { reference, ..ImportOptions::default() })
    }

    /// The image of this name, ID, or beginning of an ID.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), or [`Invalid`](ErrorKind::Invalid) when several IDs start like that.
    pub fn image(&self, name: &str) -> Result<Image> {
        self.images.resolve(name)
    }

    /// All images with their names.
    ///
    /// # Errors
    /// Those of [`Images::list`].
    pub fn list_images(&self) -> Result<Vec<Listed>> {
        self.images.list()
    }

    /// Removes a name, or an image by its ID. With its last name an image goes, and with it every blob and unpacked
    /// layer that no other image needs.
    ///
    /// An image that containers use, whatever state those are in, stays: removing its last name is refused, and with
    /// `force` leaves it nameless. An image with several names is removed by ID only with `force`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) for the refusals above; then nothing has
    /// changed. After errors of the file system the names are gone, and the next removal takes what stayed.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Removed> {
        self.images.remove(name, force, &|| self.images_in_use())
    }

    /// Removes all nameless images without containers, and every blob and unpacked layer that nothing needs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prune_images(&self) -> Result<Removed> {
        self.images.prune(&|| self.images_in_use())
    }

    fn images_in_use(&self) -> Result<HashSet<ImageId>> {
        let system = self.system();
        system.used_images(&system.containers_for_certain()?)
    }

    /// All saved snapshots of the root, oldest first; see [`Container::snapshot`].
    ///
    /// # Errors
    /// Only those of reading the directory.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        container::snapshot::all(self.runtime.root())
    }

    /// The saved snapshot of this ID, or beginning of an ID.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), or [`Invalid`](ErrorKind::Invalid) when several IDs start like that.
    pub fn find_snapshot(&self, id: &str) -> Result<SavedSnapshot> {
        container::snapshot::find(&self.runtime, &self.images, id)
    }

    /// Looks whether everything in the root is whole. Others may work in it meanwhile. Nothing is mended. With
    /// [`Depth::Full`](system::Depth::Full) every unpacked layer is compared with what its blob unpacks to.
    ///
    /// # Errors
    /// Only where looking itself fails; what is damaged is in the [`Report`](system::Report).
    pub fn check(&self, depth: system::Depth) -> Result<system::Report> {
        self.system().check(depth)
    }

    /// What the root takes on its disk, to the byte. Waits for removals that are under way.
    ///
    /// # Errors
    /// Where a directory cannot be read.
    pub fn disk_usage(&self) -> Result<system::DiskUsage> {
        self.system().disk_usage()
    }

    /// Removes what nobody needs: what killed programs left, nameless images without containers, blobs and unpacked
    /// layers without images; and what the options name beyond that. Nothing goes that a container that stays or a
    /// load under way holds.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// use coracle::system::PruneOptions;
    ///
    /// let engine = coracle::Engine::open_default()?;
    /// let would = engine.prune(&PruneOptions { dry_run: true, ..PruneOptions::default() })?;
    /// println!("{} bytes can go", would.freed.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) where the manifest of an image that stays cannot be read: what it needs is
    /// unknown, so nothing goes. What cannot be removed is in [`Pruned::failures`](system::Pruned::failures).
    pub fn prune(&self, options: &system::PruneOptions) -> Result<system::Pruned> {
        self.system().prune(options)
    }

    fn system(&self) -> system::Root<'_> {
        system::Root { images: &self.images, runtime: &self.runtime }
    }

    /// A throwaway sandbox over the whole host: everything can be read as before, writes are thrown away.
    ///
    /// ```no_run
    /// # fn main() -> coracle::Result<()> {
    /// let out = coracle::Engine::open_default()?.sandbox().command(["id"]).output()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sandbox(&self) -> ContainerBuilder {
        self.sandbox_over("/")
    }

    /// A throwaway sandbox over one directory of the host, which becomes its root.
    pub fn sandbox_over(&self, directory: impl Into<PathBuf>) -> ContainerBuilder {
        ContainerBuilder::over_directory(self.runtime.clone(), directory.into())
    }

    /// All containers of the root, of this program and of others, oldest first.
    ///
    /// # Errors
    /// Only those of reading the directory.
    pub fn containers(&self) -> Result<Vec<Info>> {
        self.system().containers()
    }

    /// The container of this name, ID, or beginning of an ID.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), or [`Invalid`](ErrorKind::Invalid) when several IDs start like that.
    pub fn find_container(&self, name: &str) -> Result<Container> {
        container::find(&self.runtime, &self.images, name)
    }

    /// What killed programs left in the root and opening this engine could not bring in order, a sentence for each
    /// container with the cause; empty as a rule. A full disk is such a cause, or files of ids that a smaller range
    /// than before does not reach. Nothing else suffers from it, and the next open tries again.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// What this host can do.
    pub fn host(&self) -> &Host {
        &self.runtime.host
    }

    /// The snapshot backend and, where it is not the best one, why.
    pub fn snapshotter(&self) -> (&'static str, Option<&str>) {
        (self.runtime.snapshotter.name(), self.runtime.snapshotter_note.as_deref())
    }

    /// The snapshot backend itself.
    pub(crate) fn snapshot_backend(&self) -> Arc<dyn Snapshotter> {
        self.runtime.snapshotter.clone()
    }

    /// `rootful`, `rootless with a range`, or `rootless with one id`.
    pub fn identity(&self) -> &'static str {
        self.runtime.identity.name()
    }
}

fn default_root() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/coracle".into());
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(data) = absolute("XDG_DATA_HOME") {
        return Ok(data.join("coracle"));
    }
    match absolute("HOME") {
        Some(home) => Ok(home.join(".local/share/coracle")),
        None => Err(Error::new(ErrorKind::NotFound, "choose the engine's root")
            .because("neither XDG_DATA_HOME nor HOME is set to an absolute path")
            .remedy("name a root with --root or Engine::open")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::probe::KernelVersion;

    /// A docker archive of twenty layers with one file each.
    fn archive() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut put = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes).unwrap();
        };
        let (mut names, mut diff_ids) = (vec![], vec![]);
        for number in 0..20 {
            let mut layer = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mode(0o644);
            layer.append_data(&mut header, format!("file{number}"), &[][..]).unwrap();
            let layer = layer.into_inner().unwrap();
            diff_ids.push(crate::Digest::of(&layer).to_string());
            names.push(format!("{number}.tar"));
            put(&format!("{number}.tar"), &layer);
        }
        let config = serde_json::json!({
            "architecture": Platform::host().architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        put("config.json", config.to_string().as_bytes());
        let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["twenty:1"], "Layers": names}]);
        put("manifest.json", manifest.to_string().as_bytes());
        archive.into_inner().unwrap()
    }

    fn open(
        change: impl FnOnce(&mut Host),
        options: impl FnOnce(EngineOptions) -> EngineOptions,
    ) -> Option<(tempfile::TempDir, Engine)> {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::probe();
        change(&mut host);
        let engine = options(EngineOptions::new(dir.path().join("root"))).open_on(host).unwrap();
        match engine.sandbox().command(["/bin/true"]).output() {
            Ok(_) => Some((dir, engine)),
            Err(error) => {
                eprintln!("SKIP: containers do not run here: {error}");
                assert!(std::env::var_os("CORACLE_NO_SKIP").is_none());
                None
            }
        }
    }

    /// What a container of that image sees in its root.
    fn seen(dir: &tempfile::TempDir, engine: &Engine) -> String {
        let file = dir.path().join("twenty.tar");
        std::fs::write(&file, archive()).unwrap();
        let image = engine.load(file.as_path()).unwrap();
        assert_eq!(image.layers().len(), 20);
        let programs = ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists());
        let builder = programs.fold(image.container().command(["/bin/ls", "/"]), |builder, path| {
            builder.mount(crate::container::Mount::bind(path, path).read_only())
        });
        let out = builder.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(engine.containers().unwrap().is_empty());
        // With a range of ids, the layers belong to ids that only the engine itself can remove.
        drop(image);
        engine.remove_image("twenty:1", true).unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    fn all_files(text: &str) -> bool {
        (0..20).all(|number| text.lines().any(|line| line == format!("file{number}")))
    }

    #[test]
    fn a_range_is_used_only_where_it_can_be() {
        let ranges = vec![crate::probe::IdRange { start: 100_000, count: 65_536 }];
        let helper = |name| Some(crate::probe::Helper { path: Path::new("/usr/bin").join(name), privileged: true });
        let mut host = Host {
            uid: 1000,
            effective: 0,
            no_new_privs: false,
            subordinate_uids: ranges.clone(),
            subordinate_gids: ranges,
            newuidmap: helper("newuidmap"),
            newgidmap: helper("newgidmap"),
            ..Host::probe()
        };
        assert!(matches!(identity(&host, false), Identity::Range { .. }));
        assert!(matches!(identity(&host, true), Identity::Single { .. }));
        host.no_new_privs = true;
        assert!(matches!(identity(&host, false), Identity::Single { .. }));
    }

    #[test]
    fn many_layers_are_mounted_by_every_way() {
        for old in [false, true] {
            let change = |host: &mut Host| {
                if old {
                    host.kernel = KernelVersion::new(6, 1);
                }
            };
            let Some((dir, engine)) = open(change, |options| options) else { return };
            assert_eq!(engine.runtime.host.has_overlay_append(), !old);
            assert!(all_files(&seen(&dir, &engine)));
        }
    }

    #[test]
    fn the_copy_snapshotter_shows_the_same() {
        let Some((dir, engine)) = open(|_| {}, |options| options.snapshotter(SnapshotterChoice::Copy)) else { return };
        assert_eq!(engine.snapshotter().0, "copy");
        assert!(all_files(&seen(&dir, &engine)));
    }

    /// Puts something in the way of the next record of each container.
    #[derive(Debug)]
    struct Blocking(Arc<dyn Snapshotter>);

    impl Snapshotter for Blocking {
        fn name(&self) -> &'static str {
            self.0.name()
        }

        fn prepare(&self, dir: &Path, base: &snapshot::Base) -> Result<snapshot::Snapshot> {
            std::fs::remove_file(dir.join("state.json")).unwrap();
            std::fs::create_dir(dir.join("state.json")).unwrap();
            self.0.prepare(dir, base)
        }

        fn changes(&self, dir: &Path) -> snapshot::Changes {
            self.0.changes(dir)
        }

        fn usage(&self, dir: &Path) -> Result<snapshot::Usage> {
            self.0.usage(dir)
        }

        fn freeze(&self, dir: &Path, into: &Path) -> Result<()> {
            self.0.freeze(dir, into)
        }

        fn remove(&self, dir: &Path) -> Result<()> {
            self.0.remove(dir)
        }
    }

    #[test]
    fn without_proc_nothing_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let error = EngineOptions::new(&root).open_on(Host { proc: false, ..Host::probe() }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("mount -t proc"), "{error}");
        assert!(!root.exists());
    }

    #[test]
    fn who_has_no_home_learns_where_else_a_root_can_be() {
        // Nobody makes directories there, not even root; in the other place anybody but root is denied it.
        for home in ["/proc/nobody", "/nonexistent"] {
            let root = Path::new(home).join(".local/share/coracle");
            if home == "/nonexistent" && nix::unistd::geteuid().is_root() {
                continue;
            }
            let error = Engine::open_at_home(EngineOptions::new(root)).unwrap_err();
            let remedy = error.remedy_hint().unwrap();
            assert!(remedy.contains("--root DIR") && remedy.contains("XDG_DATA_HOME"), "{error}");
        }
    }

    #[test]
    fn a_container_whose_record_cannot_be_written_is_gone_when_that_is_told() {
        let Some((_dir, engine)) = open(|_| {}, |options| options) else { return };
        let host = Host::probe();
        let identity = identity(&host, false);
        let (root, snapshotter) = (engine.root(), Blocking(engine.runtime.snapshotter.clone()));
        let place = (root, content::Durability::Relaxed);
        let ladder = ladder(IsolationChoice::Namespaces, None, &host, &identity);
        let runtime = Runtime::open(place, host, identity, (Arc::new(snapshotter), None), ladder).unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let builder = ContainerBuilder::over_directory(runtime, "/".into()).command(["sleep", "1000"]).name("never");
        let error = builder.stdout(writer).spawn().unwrap_err();
        assert!(error.to_string().contains("record"), "{error}");
        // Nobody has the other end any more.
        let mut end = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&reader), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut end, nix::poll::PollTimeout::ZERO), Ok(1));
        let mut written = vec![];
        std::io::Read::read_to_end(&mut reader, &mut written).unwrap();
        for place in ["containers", "names"] {
            assert_eq!(std::fs::read_dir(root.join(place)).unwrap().count(), 0, "{place}");
        }
    }

    #[test]
    fn what_lives_in_the_group_of_a_dead_program_is_killed_before_its_files_go() {
        let Some((_dir, engine)) = open(|_| {}, |options| options) else { return };
        let id = crate::name::ContainerId::random().unwrap();
        let Some(group) = engine
            .runtime
            .make_group(&id.to_string(), Default::default(), Default::default())
            .ok()
            .filter(|group| group.can_kill())
        else {
            eprintln!("SKIP: no control groups here");
            return;
        };
        if engine.runtime.identity.is_rootless() {
            group.remove().unwrap();
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for path in group.paths() {
            std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let dir = engine.root().join("containers").join(id.to_string());
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        let record = serde_json::json!({
            "id": id, "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z", "state": "running",
            "keep": false, "stop_signal": 15, "owner": "0123456789abcdef",
        });
        std::fs::write(dir.join("state.json"), record.to_string()).unwrap();
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        let again = Engine::open(engine.root()).unwrap();
        assert_eq!(again.leftovers(), &[] as &[String]);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&waiter.join().unwrap()), Some(libc::SIGKILL));
        assert!(!dir.exists());
        assert!(group.paths().iter().all(|path| !path.exists()));
    }

    /// A container's group as a program in another control group makes it: elsewhere than this one would.
    fn group_elsewhere(engine: &Engine, place: &str, id: &str) -> Option<crate::cgroup::Group> {
        let parent = crate::cgroup::Parent::OwnNamed(format!("coracle-{place}-{}", std::process::id()));
        let driver = crate::cgroup::Direct::new(crate::cgroup::Hierarchies::detect().unwrap(), parent);
        let request = crate::cgroup::Request { track: crate::cgroup::Controllers::PIDS, ..Default::default() };
        let group = crate::cgroup::Driver::create(&driver, id, &request).unwrap();
        if engine.runtime.identity.is_rootless() || !group.can_kill() {
            eprintln!("SKIP: no control groups here");
            group.remove().unwrap();
            return None;
        }
        Some(group)
    }

    #[test]
    fn a_group_that_was_recorded_elsewhere_is_thawed() {
        let Some((_dir, engine)) = open(|_| {}, |options| options) else { return };
        let id = crate::name::ContainerId::random().unwrap();
        let Some(group) = group_elsewhere(&engine, "frozen", &id.to_string()) else { return };
        let dir = engine.root().join("containers").join(id.to_string());
        let mark = dir.join("frozen");
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        let owner = engine.runtime.owner().unwrap();
        let record = |groups: &[PathBuf]| {
            let record = serde_json::json!({
                "id": id, "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z", "state": "running",
                "keep": true, "stop_signal": 15, "owner": owner.name(), "groups": groups,
            });
            std::fs::write(dir.join("state.json"), record.to_string()).unwrap();
        };
        let mut child = std::process::Command::new("sleep");
        child.arg("1000");
        // One that stays frozen must not keep whoever reads what this test says.
        let mut child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        for path in group.paths() {
            std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        group.freeze().unwrap();
        std::fs::write(&mark, "").unwrap();
        // Where it cannot be found, somebody else has to be able to see that it is frozen.
        let nowhere: Vec<PathBuf> =
            group.paths().iter().map(|path| Path::new("/absent").join(path.file_name().unwrap())).collect();
        record(&nowhere);
        let leftovers = Engine::open(engine.root()).unwrap().leftovers().concat();
        assert!(leftovers.contains("cannot be found from here") && mark.exists(), "{leftovers}");
        record(&group.paths());
        assert_eq!(Engine::open(engine.root()).unwrap().leftovers(), &[] as &[String]);
        assert!(!mark.exists());
        let runtime = &engine.runtime;
        assert!(runtime.open_group(&id.to_string(), &[]).is_none());
        assert!(runtime.open_group(&id.to_string(), &group.paths()).is_some());
        // The signal reaches one that is thawed only.
        child.kill().unwrap();
        child.wait().unwrap();
        group.remove().unwrap();
    }

    #[test]
    fn a_group_that_was_recorded_elsewhere_is_cleared() {
        let Some((_dir, engine)) = open(|_| {}, |options| options) else { return };
        let id = crate::name::ContainerId::random().unwrap();
        let Some(group) = group_elsewhere(&engine, "elsewhere", &id.to_string()) else { return };
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for path in group.paths() {
            std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        let other = other.path().join(id.to_string());
        std::fs::create_dir(&other).unwrap();
        let above = group.paths()[0].parent().unwrap().to_owned();
        let dir = engine.root().join("containers").join(id.to_string());
        std::fs::create_dir_all(dir.join("upper")).unwrap();
        // Of these, two are no groups of this container.
        let groups: Vec<PathBuf> = [vec![other.clone(), above.clone()], group.paths()].concat();
        let record = serde_json::json!({
            "id": id, "base": "/", "command": ["sleep"], "created": "2020-01-02T03:04:05Z", "state": "running",
            "keep": false, "stop_signal": 15, "owner": "0123456789abcdef", "groups": groups,
        });
        std::fs::write(dir.join("state.json"), record.to_string()).unwrap();
        let waiter = std::thread::spawn(move || child.wait().unwrap());
        let again = Engine::open(engine.root()).unwrap();
        assert_eq!(again.leftovers(), &[] as &[String]);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&waiter.join().unwrap()), Some(libc::SIGKILL));
        assert!(group.paths().iter().all(|path| !path.exists()));
        assert!(other.is_dir() && above.is_dir() && !dir.exists());
        // What is recorded is where the group is.
        let mut running = engine.sandbox().command(["sleep", "1000"]).spawn().unwrap();
        let groups = running.info().groups;
        assert!(
            !groups.is_empty() && groups.iter().all(|path| path.ends_with(running.id().to_string()) && path.is_dir())
        );
        drop(running.stdin.take());
        running.close().unwrap();
        assert!(groups.iter().all(|path| !path.exists()));
    }
}
