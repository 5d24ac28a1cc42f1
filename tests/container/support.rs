//! What tests share: a root of their own, a small image of their own making, and skips that are seen.

use std::path::{Path, PathBuf};

use coracle::container::Mount;
use coracle::{ContainerBuilder, Engine, EngineOptions, Image};

use super::shared::skip::missing;

/// An engine over a fresh root, which goes with it.
pub struct Lab {
    pub engine: Engine,
    _dir: tempfile::TempDir,
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where tests put their roots: in memory, where there is such a place.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let writable = nix::unistd::access(memory, nix::unistd::AccessFlags::W_OK).is_ok();
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("coracle-test-");
    if writable && std::env::var_os("TMPDIR").is_none() { builder.tempdir_in(memory) } else { builder.tempdir() }
        .unwrap()
}

impl Drop for Lab {
    fn drop(&mut self) {
        // With a range of ids, files belong to ids that only the engine itself can remove.
        for info in self.engine.containers().unwrap_or_default() {
            let _ = self.engine.find_container(&info.id.to_string()).map(|container| container.remove());
        }
        for saved in self.engine.snapshots().unwrap_or_default().iter().rev() {
            let _ = self.engine.find_snapshot(&saved.id.to_string()).map(|saved| saved.remove());
        }
        for listed in self.engine.list_images().unwrap_or_default() {
            let _ = self.engine.remove_image(&listed.image.id().to_string(), true);
        }
    }
}

impl Lab {
    /// `None`, after a loud word, where this host cannot run containers at all.
    pub fn new() -> Option<Lab> {
        let dir = scratch();
        let engine = Engine::open(dir.path().join("root")).unwrap();
        match engine.sandbox().command(["/bin/true"]).output() {
            Ok(out) => {
                assert!(out.status.success(), "{out:?}");
                Some(Lab { engine, _dir: dir })
            }
            Err(error) => {
                missing(&format!("containers: {error}"));
                None
            }
        }
    }

    /// A lab of which nothing has been tried.
    pub fn with(options: impl FnOnce(EngineOptions) -> EngineOptions) -> Lab {
        let dir = scratch();
        let engine = options(EngineOptions::new(dir.path().join("root"))).open().unwrap();
        Lab { engine, _dir: dir }
    }

    pub fn root(&self) -> PathBuf {
        self.engine.root().to_owned()
    }

    /// Nothing of any container is left in the root.
    pub fn assert_clean(&self) {
        let left = |name: &str| {
            let entries = std::fs::read_dir(self.root().join(name));
            entries.map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(left("containers"), Vec::<PathBuf>::new());
        assert_eq!(left("names"), Vec::<PathBuf>::new());
        assert_eq!(left("tmp"), Vec::<PathBuf>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.root().to_string_lossy()), "{mounts}");
    }
}

/// A tree with the files that an image has to have, and with links to where the host's programs will be mounted.
pub fn tree() -> tempfile::TempDir {
    use std::os::unix::fs::symlink;
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    for name in ["etc", "usr", "tmp", "home/bob", "made"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), at(name)).unwrap();
    }
    std::fs::write(at("etc/passwd"), "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n").unwrap();
    std::fs::write(at("etc/group"), "root:x:0:\nbob:x:1000:\nwheel:x:10:carol\n").unwrap();
    std::fs::write(at("etc/os-release"), "NAME=lab\n").unwrap();
    dir
}

/// An image of [`tree`], called `lab`.
pub fn image(engine: &Engine) -> Image {
    engine.import(tree().path(), Some("lab".parse().unwrap())).unwrap()
}

/// The host's programs in a container of an image that has none.
pub fn with_programs(builder: ContainerBuilder) -> ContainerBuilder {
    let mut builder = builder.mount(Mount::bind("/usr", "/usr").read_only());
    for name in ["/bin", "/sbin", "/lib", "/lib64"] {
        // Merged, they are links; the image has the same.
        if !Path::new(name).is_symlink() && Path::new(name).exists() {
            builder = builder.mount(Mount::bind(name, name).read_only());
        }
    }
    builder
}

/// Runs a shell script in a container of the image and returns what it wrote; it has to succeed.
pub fn shell(image: &Image, script: &str) -> String {
    run(&with_programs(image.container()), script)
}

pub fn run(builder: &ContainerBuilder, script: &str) -> String {
    let out = builder.clone().command(["/bin/sh", "-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
