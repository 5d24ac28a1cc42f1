//! What the suites work with: a small image, and looks at trees that know nothing of the code under test.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::container::Mount;
use crate::image::{Image, LoadOptions, LoadSource};
use crate::name::{Digest, Platform};
use crate::{ContainerBuilder, Engine, Error, ErrorKind, Result};

const STEP: &str = "make the contract's image";

/// Entries of a tar: a name, what it is, a mode.
enum Entry<'a> {
    Directory(&'a str, u32),
    File(&'a str, u32, &'a [u8]),
    Symlink(&'a str, &'a str),
    HardLink(&'a str, &'a str),
}

fn tar(entries: &[Entry<'_>]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(vec![]);
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header.set_mode(0o777);
        match entry {
            Entry::Directory(name, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, name, &[][..])?;
            }
            Entry::File(name, mode, content) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, name, *content)?;
            }
            Entry::Symlink(name, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, name, target)?;
            }
            Entry::HardLink(name, target) => {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, name, target)?;
            }
        }
    }
    tar.into_inner()
}

/// Directories of the host that hold its programs, shown in containers of an image that has none.
const PROGRAMS: [&str; 5] = ["usr", "bin", "sbin", "lib", "lib64"];

/// The layers: one with files, and one that changes them in every way.
fn layers() -> std::io::Result<[Vec<u8>; 2]> {
    use Entry::{Directory, File, HardLink, Symlink};
    let big = vec![b'b'; 200_000];
    let links: Vec<(&str, PathBuf)> =
        PROGRAMS.iter().filter_map(|name| Some((*name, fs::read_link(Path::new("/").join(name)).ok()?))).collect();
    let mut low = vec![
        Directory("etc", 0o755),
        File("etc/changed", 0o644, b"low"),
        File("etc/gone", 0o644, b"low"),
        File("etc/kept", 0o600, b"kept"),
        Directory("data", 0o755),
        File("data/big", 0o644, &big),
        HardLink("data/twin", "data/big"),
        Symlink("data/link", "/etc/kept"),
        Directory("replaced", 0o755),
        File("replaced/hidden", 0o644, b"low"),
        Directory("tmp", 0o1777),
    ];
    for name in PROGRAMS {
        match links.iter().find(|(link, _)| *link == name) {
            Some((_, target)) => low.push(Symlink(name, target.to_str().unwrap_or("usr"))),
            None => low.push(Directory(name, 0o755)),
        }
    }
    let high = [
        Directory("./", 0o751),
        Directory("etc", 0o755),
        File("etc/changed", 0o4755, b"high"),
        File("etc/.wh.gone", 0o644, b""),
        Directory("replaced", 0o755),
        File("replaced/.wh..wh..opq", 0o644, b""),
        File("replaced/shown", 0o644, b"high"),
    ];
    Ok([tar(&low)?, tar(&high)?])
}

/// Loads the image into an engine.
pub(super) fn image(engine: &Engine) -> Result<Image> {
    let made = |result: std::io::Result<Vec<u8>>| result.map_err(|error| Error::io(STEP, "write", error));
    let layers = layers().map_err(|error| Error::io(STEP, "write", error))?;
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux", "config": {"Env": ["CONTRACT=kept"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": ["coracle-contract:1"], "Layers": ["low.tar", "high.tar"],
    }])
    .to_string();
    let [low, high] = &layers;
    let archive = made(tar(&[
        Entry::File("config.json", 0o644, config.as_bytes()),
        Entry::File("low.tar", 0o644, low),
        Entry::File("high.tar", 0o644, high),
        Entry::File("manifest.json", 0o644, manifest.as_bytes()),
    ]))?;
    let source = LoadSource::Stream(Box::new(std::io::Cursor::new(archive)));
    let images = engine.images().load(source, &LoadOptions::default())?;
    images.into_iter().next().ok_or_else(|| Error::new(ErrorKind::NotFound, STEP))
}

/// The container, with the host's programs and a shell script to run.
pub(super) fn script(builder: ContainerBuilder, script: &str) -> ContainerBuilder {
    let host = |name: &&str| Path::new("/").join(name).is_dir() && !Path::new("/").join(name).is_symlink();
    let builder = PROGRAMS.iter().filter(|name| host(name)).fold(builder, |builder, name| {
        let path = format!("/{name}");
        builder.mount(Mount::bind(&path, &path).read_only())
    });
    builder.command(["/bin/sh", "-ec", script])
}

fn looked(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::io("look at a tree", "readdir", error).path(path)
}

/// Every path below `root` (which is not among them), without following links.
fn walk(root: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let (mut found, mut open) = (vec![], vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).map_err(looked(&dir))? {
            let path = entry.map_err(looked(&dir))?.path();
            let metadata = path.symlink_metadata().map_err(looked(&path))?;
            if metadata.is_dir() {
                open.push(path.clone());
            }
            found.push((path, metadata));
        }
    }
    Ok(found)
}

/// Bytes of allocated blocks and inodes of `dir` and what is in it, hard links once.
pub(super) fn du(dir: &Path) -> Result<(u64, u64)> {
    let mut seen = HashSet::new();
    let mut all = walk(dir)?;
    all.push((dir.to_owned(), dir.metadata().map_err(looked(dir))?));
    let once = all.iter().filter(|(_, status)| seen.insert((status.dev(), status.ino())));
    Ok(once.fold((0, 0), |(bytes, inodes), (_, status)| (bytes + status.blocks() * 512, inodes + 1)))
}

/// What a tree is: equal before and after when nothing was changed in it.
pub(super) fn fingerprint(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    for (path, status) in walk(root)? {
        // Files that this user may not read are known by the rest.
        let content =
            if status.is_file() { fs::read(&path).map(|bytes| Digest::of(&bytes).to_string()).ok() } else { None };
        let times = (status.mtime(), status.mtime_nsec(), status.ctime(), status.ctime_nsec());
        let owner = (status.uid(), status.gid(), status.nlink());
        all.insert(path, format!("{:o} {owner:?} {} {times:?} {content:?}", status.mode(), status.size()));
    }
    Ok(all)
}

/// The names in a directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(looked(dir))?,
    };
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}
