//! What the configs of a Docker archive say about its layers, found without reading these: an uncompressed layer's digest
//! is its DiffID, so one that the store has need not be read again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::archive::{BUFFER, MAX_LINKS, clean};
use super::docker;
use crate::error::Result;
use crate::image::config::Config;
use crate::image::manifest::MAX_DOCUMENT;
use crate::layer::Limits;
use crate::layer::tar::{Kind, Reader};
use crate::name::Digest;

/// [`Jump`](crate::layer::tar::Jump) for files.
pub(super) fn jump(input: &mut BufReader<File>, count: u64) -> io::Result<u64> {
    let position = input.stream_position()?;
    let count = count.min(input.get_ref().metadata()?.len().saturating_sub(position));
    input.seek(SeekFrom::Start(position + count))?;
    Ok(count)
}

/// Where the files of an archive are, and what it says that they are.
#[derive(Default)]
struct Places {
    files: HashMap<String, (u64, u64)>,
    links: HashMap<String, String>,
}

/// The paths of the layers that the archive's configs name, with their DiffIDs. Nothing of an image layout, whose files are
/// called after their digests.
pub(super) fn layers(file: &File, limits: &Limits) -> Result<HashMap<String, Digest>> {
    let input = file.try_clone().map_err(|error| crate::Error::io(super::STEP, "fcntl", error))?;
    let mut reader = Reader::jumping(BufReader::with_capacity(BUFFER.min(16 << 10), input), limits, jump);
    let mut places = Places::default();
    while let Some(entry) = reader.next()? {
        let Some(path) = clean(&String::from_utf8_lossy(&entry.path))? else { continue };
        match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                places.links.remove(&path);
                places.files.insert(path, (reader.offset(), entry.size));
            }
            Kind::Symlink => {
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                let target = String::from_utf8_lossy(&entry.link);
                if let Some(target) = clean(format!("{parent}/{target}").trim_start_matches('/'))? {
                    places.links.insert(path, target);
                }
            }
            Kind::HardLink => {
                if let Some(target) = clean(&String::from_utf8_lossy(&entry.link))? {
                    places.links.insert(path, target);
                }
            }
            _ => {}
        }
    }
    let mut known = HashMap::new();
    let Some(saved) = places.document(file, "manifest.json") else { return Ok(known) };
    for image in docker::parse(&saved)? {
        let Some(config) = places.document(file, &image.config) else { continue };
        let Ok(config) = Config::parse(&config) else { continue };
        for (path, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
            if let Some(path) = places.resolve(path) {
                known.insert(path, diff_id.digest().clone());
            }
        }
    }
    Ok(known)
}

impl Places {
    /// The file that a path leads to.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut path = clean(path).ok()??;
        for _ in 0..MAX_LINKS {
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => return Some(path),
            }
        }
        None
    }

    fn document(&self, file: &File, path: &str) -> Option<Vec<u8>> {
        let (offset, size) = *self.files.get(&self.resolve(path)?)?;
        let mut bytes = vec![0; usize::try_from(size).ok().filter(|_| size <= MAX_DOCUMENT)?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}
