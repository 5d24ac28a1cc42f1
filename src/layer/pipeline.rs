//! From a blob to a tree in one pass, bounded in memory.
//!
//! ```text
//! this thread                                              a thread of its own
//! read → SHA-256 of the blob → inflate ──── full buffers ───→ SHA-256 of the tar → parse → create files
//!                                 ↑──────── empty buffers ──────┘
//! ```
//!
//! Each hash is taken of a buffer that has just been written, while it is in the cache. Inflating is the larger half
//! of the work, so the hash of the tar goes with the files; the two sides then take about the same time.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::limits::exceeded;
use super::unpack::{Share, given_up, unpack_beside};
use super::{Below, Decoder, LayerOptions, Limits, Owners, Unpacked};
use crate::name::{DiffId, Digest, Hasher};
use crate::{Error, ErrorKind, Result, content, sys};

/// Bytes in one buffer: large enough for the inflater, small enough that a buffer is still in the cache when the other
/// side takes it up.
const BUFFER: usize = 256 << 10;

/// Buffers under way.
const DEPTH: usize = 8;

/// What to unpack, and where to.
pub(super) struct Job<'a> {
    pub(super) content: &'a content::Store,
    pub(super) blob: &'a Digest,
    pub(super) diff_id: &'a DiffId,
    pub(super) tree: OwnedFd,
    pub(super) options: &'a LayerOptions,
    /// What is unpacked at the same time.
    pub(super) beside: &'a Beside<'a>,
    /// Called with the bytes read and the bytes to read.
    pub(super) progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// What layers that are unpacked at the same time share, as one of them sees it.
pub(super) struct Beside<'a> {
    /// Set to give up.
    pub(super) stop: &'a AtomicBool,
    /// Bytes that all of them remember, held against one limit.
    pub(super) memory: Arc<AtomicUsize>,
    /// Bytes of zstd's window that each of them may have.
    pub(super) zstd_window: u64,
    /// Set where this one failed because of what the others take up, and may succeed alone.
    pub(super) crowded: Arc<AtomicBool>,
}

impl<'a> Beside<'a> {
    /// Nothing else.
    pub(super) fn alone(stop: &'a AtomicBool, limits: &Limits) -> Beside<'a> {
        let (memory, crowded) = Default::default();
        Beside { stop, memory, zstd_window: limits.zstd_window, crowded }
    }
}

/// Unpacks a blob and verifies both of its digests. After an error the tree is to be thrown away.
pub(super) fn run<B: Below + Send>(job: Job<'_>, below: B) -> Result<(Unpacked, Owners)> {
    let file = job.content.open_blob(job.blob)?;
    let total = job.content.size(job.blob)?;
    let (full_in, full_out) = sync_channel(DEPTH);
    let (empty_in, empty_out) = channel();
    let Job { blob, diff_id, tree, options, beside, progress, .. } = job;
    thread::scope(|scope| {
        let chunks = Chunks {
            full: full_out,
            empty: empty_in,
            chunk: Vec::new(),
            at: 0,
            hasher: Hasher::new(diff_id.0.algorithm()),
            ended: false,
        };
        let creator = thread::Builder::new()
            .name("coracle-unpack".to_owned())
            .spawn_scoped(scope, move || create(chunks, tree, options, &below, beside))
            .map_err(|error| Error::io("unpack the layer", "clone", error))?;
        let source = Source {
            file,
            hasher: Hasher::new(blob.algorithm()),
            buffer: vec![0; BUFFER],
            at: 0,
            end: 0,
            done: 0,
            total,
            progress,
        };
        let produced = produce(source, &full_in, &empty_out, &options.limits, beside);
        // A failure reaches the other side through the channel, so that it stops where the bytes stop.
        let produced = match produced {
            Ok(digest) => Some(digest),
            Err(Stop::Failed(error)) => {
                if error.kind() == ErrorKind::Limit && beside.zstd_window < options.limits.zstd_window {
                    beside.crowded.store(true, Ordering::Relaxed);
                }
                let _ = full_in.send(Err(error));
                None
            }
            Err(Stop::Unwanted) => None,
        };
        drop(full_in);
        let created = creator.join().map_err(|_| {
            Error::new(ErrorKind::Io, "unpack the layer")
                .because("a defect in this crate: the unpacking thread panicked")
        })?;
        let (unpacked, owners, actual_diff_id) = created?;
        match produced {
            Some(actual) if actual == *blob => {}
            Some(actual) => return Err(content::corrupt_blob(blob, &actual)),
            // Cannot be: the other side has seen the end of the bytes.
            None => return Err(Error::new(ErrorKind::Io, "unpack the layer").because("its bytes ended early")),
        }
        if actual_diff_id != diff_id.0 {
            return Err(Error::new(ErrorKind::Corrupt, format!("verify the layer {diff_id}"))
                .because(format!("its blob {blob} unpacks to a tar with the digest {actual_diff_id}"))
                .remedy("get the archive again; if that does not help, it was put together wrongly"));
        }
        Ok((unpacked, owners))
    })
}

/// The creating side.
fn create<B: Below>(
    chunks: Chunks,
    tree: OwnedFd,
    options: &LayerOptions,
    below: &B,
    beside: &Beside<'_>,
) -> Result<(Unpacked, Owners, Digest)> {
    // This thread is ours and ends here, so it may have a umask of its own.
    let exact_modes = sys::fs::clear_umask_of_this_thread();
    let share = Share::new(beside.memory.clone(), beside.crowded.clone());
    let tree = sys::path::Root::new(tree);
    let (unpacked, owners, mut chunks) =
        unpack_beside(chunks, tree, options, below, exact_modes, Some(share), beside.stop)?;
    // What follows the archive's end belongs to the digest.
    while let length @ 1.. = chunks.fill_buf().map_err(|error| Error::io("read the tar", "read", error))?.len() {
        chunks.consume(length);
    }
    Ok((unpacked, owners, chunks.hasher.finish()))
}

/// Why the producing side stopped early.
enum Stop {
    /// Nobody takes the bytes any more, or the caller has given up on the whole image.
    Unwanted,
    Failed(Error),
}

/// The producing side; returns the digest of the blob.
fn produce(
    source: Source<'_>,
    full: &SyncSender<Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
    limits: &Limits,
    beside: &Beside<'_>,
) -> Result<Digest, Stop> {
    let mut decoder = Decoder::with_window(source, beside.zstd_window).map_err(Stop::Failed)?;
    let mut produced = 0u64;
    loop {
        if beside.stop.load(Ordering::Relaxed) {
            return Err(Stop::Failed(given_up()));
        }
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(BUFFER, 0);
        let mut filled = 0;
        while filled < BUFFER {
            match decoder.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Failed(undecodable(error))),
            }
        }
        if filled == 0 {
            break;
        }
        produced += filled as u64;
        if produced > limits.bytes {
            return Err(Stop::Failed(exceeded("bytes", limits.bytes)));
        }
        chunk.truncate(filled);
        full.send(Ok(chunk)).map_err(|_| Stop::Unwanted)?;
    }
    let mut source = decoder.into_inner();
    let rest = |error| Stop::Failed(Error::io("read the blob", "read", error));
    while let length @ 1.. = source.fill_buf().map_err(rest)?.len() {
        source.consume(length);
    }
    Ok(source.hasher.finish())
}

fn undecodable(error: io::Error) -> Error {
    let by_the_kernel = error.raw_os_error().is_some();
    let ours = error.get_ref().is_some_and(|inner| inner.is::<Error>());
    let error = Error::io("decompress the layer", "read", error);
    if by_the_kernel || ours { error } else { error.kind_is(ErrorKind::Corrupt) }
}

/// The blob, hashed as it is read.
struct Source<'a> {
    file: File,
    hasher: Hasher,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    done: u64,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.end {
            let count = self.file.read(&mut self.buffer)?;
            (self.at, self.end) = (0, count);
            self.hasher.update(&self.buffer[..count]);
            self.done += count as u64;
            if count > 0 {
                (self.progress)(self.done, self.total);
            }
        }
        Ok(&self.buffer[self.at..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.end);
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The tar as it arrives from the other side, hashed as it is taken up.
struct Chunks {
    full: Receiver<Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    hasher: Hasher,
    ended: bool,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.ended {
            // Back to be filled again; the other side may be done with it all.
            let _ = self.empty.send(std::mem::take(&mut self.chunk));
            self.at = 0;
            match self.full.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => self.ended = true,
            }
            self.hasher.update(&self.chunk);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.chunk.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
