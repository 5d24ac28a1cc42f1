//! A tar of a layout or of `docker save`, read once from front to back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;

use super::session::Session;
use super::{Bundle, STEP, known};
use crate::error::{Error, ErrorKind, Result};
use crate::image::manifest::MAX_DOCUMENT;
use crate::layer::tar::{Entry, Kind, Reader};
use crate::layer::{Compression, Decoder, Limits, exceeded};
use crate::name::{DiffId, Digest};

/// Buffers of this size on both sides of the decompressor.
pub(super) const BUFFER: usize = 256 << 10;

/// Files up to this size wait in memory until `manifest.json` says what they are …
const SMALL: u64 = 256 << 10;
/// … as long as they are no more than this together; after that they go to the store like large ones.
const SMALL_TOGETHER: u64 = 32 << 20;

/// Entries of an archive. Images have a few dozen layers, with four files each at most, and archives a few images.
const MAX_ENTRIES: u64 = 50_000;

/// Layers as large as they may be that fit into one archive. Overlayfs takes no more of them for an image.
const MAX_FULL: u64 = 128;

/// Length of a path or link in an archive. The longest in use name two digests.
const MAX_PATH: usize = 512;

/// Links that lead to links.
pub(super) const MAX_LINKS: usize = 16;

/// Bytes behind the end of the archive that are read to see the end of the compressed stream.
const MAX_TRAILER: u64 = 64 << 20;

/// Documents that tell what the archive is.
const DOCUMENTS: [&str; 4] = ["oci-layout", "index.json", "manifest.json", "repositories"];

/// Directories that root file systems have at their top and image archives have not.
const SYSTEM: [&str; 12] = ["bin", "boot", "dev", "etc", "home", "lib", "proc", "root", "sbin", "sys", "usr", "var"];

/// What the archive held; the blobs are in the store by now.
#[derive(Default)]
pub(super) struct Archive {
    documents: HashMap<String, Vec<u8>>,
    members: HashMap<String, Member>,
    /// Paths that are links, with the path that they lead to.
    links: HashMap<String, String>,
    small: u64,
    /// Bytes that a member may have.
    most: u64,
    /// Paths of uncompressed layers, with what the configs say that they are.
    known: HashMap<String, Digest>,
}

enum Member {
    Memory(Vec<u8>),
    Stored(Digest, u64),
}

/// What an archive may have: as much as the layers in it.
fn limits(session: &Session) -> Limits {
    let layers = session.images().layers().options().limits.clone();
    let bytes = layers.bytes.saturating_mul(MAX_FULL);
    let path_length = MAX_PATH.min(layers.path_length);
    Limits { entries: MAX_ENTRIES, path_length, bytes, ..layers }
}

impl Archive {
    /// Reads the whole archive.
    pub fn read(session: &mut Session, source: impl Read) -> Result<Archive> {
        let limits = limits(session);
        let window = session.images().layers().options().limits.zstd_window;
        let decoder = Decoder::with_window(BufReader::with_capacity(BUFFER, source), window)?;
        let reader = Reader::new(BufReader::with_capacity(BUFFER, decoder), &limits);
        Archive::default().walk(session, reader)
    }

    /// Reads an archive that is a file. Of one that is not compressed, what the store has already is passed over.
    pub fn read_file(session: &mut Session, mut file: File) -> Result<Archive> {
        let failed = |error| Error::io(STEP, "lseek", error);
        let mut start = [0; 512];
        let count = file.read_at(&mut start, 0).unwrap_or(0);
        if !file.metadata().is_ok_and(|status| status.is_file())
            || Compression::detect(&start[..count]) != Compression::None
        {
            return Archive::read(session, file);
        }
        let limits = limits(session);
        // What is wrong with the archive is told by those who read it in earnest.
        let known = known::layers(&file, &limits).unwrap_or_default();
        file.rewind().map_err(failed)?;
        let reader = Reader::jumping(BufReader::with_capacity(BUFFER, file), &limits, known::jump);
        Archive { known, ..Archive::default() }.walk(session, reader)
    }

    fn walk<R: BufRead>(mut self, session: &mut Session, mut reader: Reader<R>) -> Result<Archive> {
        self.most = session.images().layers().options().limits.bytes;
        while let Some(entry) = reader.next()? {
            let Some(path) = clean(&String::from_utf8_lossy(&entry.path))? else { continue };
            self.entry(session, path, &entry, &mut reader.data())?;
        }
        // Only the end of the compressed stream tells that it is whole.
        let mut rest = reader.into_inner().take(MAX_TRAILER);
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(|error| Error::io(STEP, "read", error))?;
        if rest.limit() == 0 {
            return Err(Error::new(ErrorKind::Limit, STEP)
                .because(format!("more than {MAX_TRAILER} bytes follow the end of the archive")));
        }
        Ok(self)
    }

    fn entry(&mut self, session: &mut Session, path: String, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        refuse_root_file_system(&path)?;
        match entry.kind {
            Kind::File => self.file(session, path, entry, data),
            Kind::Symlink => {
                let target = String::from_utf8_lossy(&entry.link);
                if target.starts_with('/') {
                    return Err(leaves(&target));
                }
                let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                self.link(path.clone(), clean(format!("{parent}/{target}").trim_start_matches('/'))?)
            }
            Kind::HardLink => self.link(path, clean(&String::from_utf8_lossy(&entry.link))?),
            // Directories say nothing, and what is neither file nor link is never named by a manifest.
            _ => Ok(()),
        }
    }

    fn link(&mut self, path: String, target: Option<String>) -> Result<()> {
        // As when unpacking, the later of two entries counts.
        if let Some(target) = target {
            self.members.remove(&path);
            self.links.insert(path, target);
        }
        Ok(())
    }

    fn file(&mut self, session: &mut Session, path: String, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        if entry.sparse.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, STEP).path(path).because("it is stored as a sparse file"));
        }
        if DOCUMENTS.contains(&path.as_str()) {
            if entry.size > MAX_DOCUMENT {
                return Err(Error::new(ErrorKind::Limit, STEP)
                    .path(path)
                    .because(format!("it has {} bytes; the limit for documents is {MAX_DOCUMENT}", entry.size)));
            }
            let bytes = read_all(data, &path)?;
            return match self.documents.insert(path.clone(), bytes) {
                None => Ok(()),
                Some(_) => Err(Error::new(ErrorKind::Hostile, STEP).path(path).because("the archive has it twice")),
            };
        }
        // What may be too much for a layer is too much for whatever else it may turn out to be.
        if entry.size > self.most {
            return Err(exceeded("bytes", self.most));
        }
        let member = if let Some(digest) = blob_digest(&path) {
            if !session.has(&digest, entry.size)? {
                session.take(&path, data, Some(&digest), entry.size)?;
            }
            Member::Stored(digest, entry.size)
        } else if let Some(digest) = self.known.get(&path).cloned()
            && session.has(&digest, entry.size)?
        {
            Member::Stored(digest, entry.size)
        } else if entry.size <= SMALL && self.small + entry.size <= SMALL_TOGETHER {
            self.small += entry.size;
            Member::Memory(read_all(data, &path)?)
        } else {
            Member::Stored(session.take(&path, data, None, entry.size)?, entry.size)
        };
        self.links.remove(&path);
        self.members.insert(path, member);
        Ok(())
    }
}

impl Bundle for Archive {
    fn document(&mut self, name: &'static str) -> Result<Option<Vec<u8>>> {
        Ok(self.documents.get(name).cloned())
    }

    fn is_empty(&self) -> bool {
        self.documents.is_empty() && self.members.is_empty() && self.links.is_empty()
    }

    fn blob(&mut self, _: &mut Session, _: &Digest, _: u64) -> Result<bool> {
        // Every blob of the archive went to the store when it came by.
        Ok(false)
    }

    fn member(&mut self, session: &mut Session, path: &str, _: Option<&DiffId>) -> Result<Option<(Digest, u64)>> {
        let Some(mut path) = clean(path)? else { return Ok(None) };
        for _ in 0..MAX_LINKS {
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => {
                    return Ok(match self.members.get(&path) {
                        None => None,
                        Some(Member::Stored(digest, size)) => Some((digest.clone(), *size)),
                        Some(Member::Memory(bytes)) => Some((session.put(bytes)?, bytes.len() as u64)),
                    });
                }
            }
        }
        Err(Error::new(ErrorKind::Hostile, STEP).path(path).because("its links lead in a circle, or too far"))
    }
}

/// A path of an archive in one spelling: no `.`, no empty parts, `..` resolved. `None` for the top itself.
///
/// # Errors
/// [`Hostile`](ErrorKind::Hostile) for a path that leads out of the archive.
pub(super) fn clean(path: &str) -> Result<Option<String>> {
    let mut parts: Vec<&str> = Vec::new();
    if path.starts_with('/') {
        return Err(leaves(path));
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop().ok_or_else(|| leaves(path))?;
            }
            part => parts.push(part),
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn leaves(path: &str) -> Error {
    Error::new(ErrorKind::Hostile, STEP).path(path).because("this path leads out of the archive")
}

/// The digest of `blobs/sha256/<hex>`.
fn blob_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Says what is wrong before thousands of files have been taken in.
fn refuse_root_file_system(path: &str) -> Result<()> {
    let first = path.split('/').next().unwrap_or(path);
    if !SYSTEM.contains(&first) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, STEP)
        .because(format!("it holds {path:?}: this is a root file system and not an image archive"))
        .remedy("a root file system becomes an image by import"))
}

/// Reads a whole member whose size was checked.
fn read_all(data: &mut dyn Read, path: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).map_err(|error| Error::io(STEP, "read", error).path(path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(clean("./a//b/./c/").unwrap().as_deref(), Some("a/b/c"));
        assert_eq!(clean("x/../a").unwrap().as_deref(), Some("a"));
        assert_eq!(clean("./").unwrap(), None);
        for bad in ["../x", "a/../../x", "/etc/passwd"] {
            let error = clean(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Hostile);
            assert!(error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn blobs_are_recognised() {
        let digest = Digest::of(b"");
        assert_eq!(blob_digest(&format!("blobs/sha256/{}", digest.hex())), Some(digest.clone()));
        assert_eq!(blob_digest(&format!("blobs/sha256/x/{}", digest.hex())), None);
        assert_eq!(blob_digest(&format!("blob/sha256/{}", digest.hex())), None);
    }
}
