//! One load under way: what it has taken in, and the lease that keeps it.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::Arc;

use crate::content::{Ingest, Lease};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, Images, Observer, Progress};
use crate::name::{Digest, Hasher};

/// Bytes are copied in pieces of this size, and progress is told after each.
const PIECE: usize = 1 << 20;

/// Blobs up to this size are read before they count as present.
const VERIFIED: u64 = 64 * 1024;

pub(crate) struct Session {
    images: Images,
    lease: Lease,
    /// Blobs that this load brought into the store.
    new: HashSet<Digest>,
    /// Blobs that are there, but with other bytes than they should have.
    damaged: HashSet<Digest>,
    progress: Option<Observer>,
    buffer: Vec<u8>,
}

impl Session {
    pub fn new(images: Images, progress: Option<Observer>) -> Result<Session> {
        let lease = images.content().lease()?;
        Ok(Session { images, lease, new: HashSet::new(), damaged: HashSet::new(), progress, buffer: Vec::new() })
    }

    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Whether the store has a blob; from now on it stays. One that is damaged counts as absent, so that loading again
    /// mends it. Damage of a large blob shows by its length, or when it is unpacked, see [`Session::find_damage`]: reading them
    /// all would take as long as the first load.
    pub fn has(&mut self, digest: &Digest, size: u64) -> Result<bool> {
        self.lease.hold(digest)?;
        let content = self.images.content();
        if !content.contains(digest) {
            return Ok(false);
        }
        if self.new.contains(digest) {
            return self.wrong_size(digest, size).map_or(Ok(true), Err);
        }
        if self.damaged.contains(digest)
            || content.size(digest)? != size
            || (size <= VERIFIED && content.read_blob(digest, size).is_err())
        {
            return Ok(false);
        }
        self.tell(Progress::Present { digest: digest.clone() });
        Ok(true)
    }

    /// Reads the layers that were there before this load; those that are damaged count as absent from now on. Whether there
    /// are any.
    pub fn find_damage<'a>(&mut self, layers: impl Iterator<Item = &'a Digest>) -> Result<bool> {
        for digest in layers {
            if self.new.contains(digest) {
                continue;
            }
            let mut file = self.images.content().open_blob(digest)?;
            let mut hasher = Hasher::new(digest.algorithm());
            self.buffer.resize(PIECE, 0);
            loop {
                let count = fill(&mut file, &mut self.buffer).map_err(|error| Error::io(STEP, "read", error))?;
                hasher.update(&self.buffer[..count]);
                if count < PIECE {
                    break;
                }
            }
            if hasher.finish() != *digest {
                self.damaged.insert(digest.clone());
            }
        }
        Ok(!self.damaged.is_empty())
    }

    /// What is wrong where the store has the blob, but not with that size.
    pub fn wrong_size(&self, digest: &Digest, size: u64) -> Option<Error> {
        let actual = self.images.content().size(digest).ok().filter(|actual| *actual != size)?;
        Some(
            Error::new(ErrorKind::Corrupt, format!("take in the blob {digest}"))
                .because(format!("it has {actual} bytes, but is said to have {size}")),
        )
    }

    /// Takes in `size` bytes as a blob; `name` is what messages and progress call it.
    pub fn take(&mut self, name: &str, from: &mut dyn Read, expected: Option<&Digest>, size: u64) -> Result<Digest> {
        let label: Arc<str> = name.into();
        let progress = self.progress.clone();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PIECE, 0);
        // What is full is the disk of the store.
        let root = self.images.content().root().to_owned();
        let taken = self.ingest(name, expected, Some(size), |ingest| {
            loop {
                let count = fill(from, &mut buffer).map_err(|error| Error::io(STEP, "read", error))?;
                ingest.write_all(&buffer[..count]).map_err(|error| unwritten(error, &root))?;
                let last = count < buffer.len();
                if let Some(observer) = &progress
                    && (last || ingest.written() < size)
                {
                    observer(Progress::Blob { name: label.clone(), done: ingest.written(), total: size });
                }
                if last {
                    return Ok(());
                }
            }
        });
        self.buffer = buffer;
        taken.map(|(digest, _)| digest)
    }

    /// Takes in what `write` writes, a blob whose digest and size are not known before.
    pub fn write(&mut self, name: &str, write: impl FnOnce(&mut Ingest) -> Result<()>) -> Result<(Digest, u64)> {
        self.ingest(name, None, None, write)
    }

    fn ingest(
        &mut self,
        name: &str,
        expected: Option<&Digest>,
        size: Option<u64>,
        write: impl FnOnce(&mut Ingest) -> Result<()>,
    ) -> Result<(Digest, u64)> {
        let named = |error: Error| if error.failed_path().is_some() { error } else { error.path(name) };
        let mut ingest = self.images.content().ingest(expected, size)?;
        write(&mut ingest).map_err(named)?;
        let written = ingest.written();
        let digest = match expected {
            Some(_) => ingest.commit(),
            None => ingest.commit_held(&self.lease),
        };
        let digest = digest.map_err(named)?;
        self.new.insert(digest.clone());
        Ok((digest, written))
    }

    /// The layers of an image that are about to be unpacked: from now on they stay, too.
    pub fn hold_layers(&self, image: &Image) -> Result<()> {
        self.lease.hold_all(image.config().rootfs.diff_ids.iter().map(|diff_id| &diff_id.0))
    }

    /// Takes in a document.
    pub fn put(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64;
        if !self.has(&digest, size)? {
            self.take(digest.as_str(), &mut &*bytes, Some(&digest), size)?;
        }
        Ok(digest)
    }

    /// The first bytes of a blob, enough to tell how it is compressed.
    pub fn beginning(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut beginning = vec![0; 512];
        let mut file = self.images.content().open_blob(digest)?;
        let count = fill(&mut file, &mut beginning).map_err(|error| Error::io(STEP, "read", error))?;
        beginning.truncate(count);
        Ok(beginning)
    }

    /// Ends the lease and removes what this load brought in and nothing needs; `keep` is what is needed.
    pub fn finish(self, keep: &HashSet<Digest>) -> Result<()> {
        let Session { images, lease, new, .. } = self;
        drop(lease);
        if new.iter().any(|digest| !keep.contains(digest)) {
            images.content().gc(&[])?;
        }
        Ok(())
    }

    pub fn tell(&self, progress: Progress) {
        if let Some(observer) = &self.progress {
            observer(progress);
        }
    }
}

fn unwritten(error: std::io::Error, root: &std::path::Path) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::io(STEP, "write", error).path(root),
        None => Error::io(STEP, "write", error),
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

const STEP: &str = "take in a blob";
