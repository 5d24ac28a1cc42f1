//! From a tar to the blob that travels: hashed and compressed in one pass, on all cores.
//!
//! ```text
//! caller's thread                          threads of the encoder          caller's thread
//! bytes → block → SHA-256 of the tar ────→ deflate, with the 32 KiB ─────→ blocks in order → out
//!                                          before the block
//! ```
//!
//! Blocks have a fixed size and each is compressed by itself, so the result does not depend on how many threads there
//! are. Gzip is what pigz makes: one member whose blocks know the 32 KiB before them, without a name and a time. Zstd is
//! a row of frames, see RFC 8878, section 3.1. Memory is bounded by the number of blocks under way.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::Compression;
use crate::name::{Algorithm, Digest, Hasher};
use crate::{Error, ErrorKind, Result};

/// How a layer's blob is written.
///
/// ```
/// use coracle::layer::{Compression, EncoderOptions};
///
/// let small = EncoderOptions { level: Some(9), ..EncoderOptions::default() };
/// assert_eq!(small.compression, Compression::Gzip);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderOptions {
    /// [`Compression::Gzip`], which every registry and engine reads, by default.
    pub compression: Compression,
    /// How hard to try: 0 to 9 for gzip (default 4, which takes a quarter less time than 6 for 2 % more bytes), 1 to 22
    /// for zstd (default 3). Means nothing without compression.
    pub level: Option<u32>,
    /// Threads that compress; as many as the machine gives this process by default, and at most 16. The result is the
    /// same whatever the number. Each has up to 1 MiB (gzip) or 8 MiB (zstd) under way.
    pub threads: Option<usize>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        EncoderOptions { compression: Compression::Gzip, level: None, threads: None }
    }
}

/// Bytes of a block. Larger ones compress little better and keep more memory busy.
const GZIP_BLOCK: usize = 256 << 10;
/// A frame starts without knowing those before it, so it has to be larger for the same ratio.
#[cfg(feature = "zstd")]
const ZSTD_BLOCK: usize = 2 << 20;

/// What deflate can look back on.
const WINDOW: usize = 32 << 10;

/// More threads than this are of no use to one layer.
const MAX_THREADS: usize = 16;

/// Blocks under way for each thread: one that it works on and one that waits.
const BLOCKS_A_THREAD: usize = 2;

const STEP: &str = "compress the layer";

/// How a block becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Gzip(u32),
    #[cfg(feature = "zstd")]
    Zstd(i32),
}

impl Method {
    fn block(self) -> usize {
        match self {
            Method::Gzip(_) => GZIP_BLOCK,
            #[cfg(feature = "zstd")]
            Method::Zstd(_) => ZSTD_BLOCK,
        }
    }
}

/// Compresses what is written to it into `W`, and computes the digest of what it says before compression.
pub(crate) struct Encoder<W> {
    out: W,
    written: u64,
    /// `None` writes everything through.
    blocks: Option<Blocks>,
}

/// What an encoder comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// The digest before compression. `None` without compression: then it is the digest of the blob, which whoever
    /// receives the bytes computes anyway.
    pub(crate) digest: Option<Digest>,
    /// Bytes before compression.
    pub(crate) size: u64,
}

struct Blocks {
    method: Method,
    threads: usize,
    hasher: Hasher,
    block: Vec<u8>,
    /// The end of the block before, for gzip.
    window: Vec<u8>,
    crc: flate2::Crc,
    pool: Option<Pool>,
    own: Worker,
}

impl<W: Write> Encoder<W> {
    /// # Errors
    /// [`ErrorKind::Invalid`] for a level that there is not, [`ErrorKind::Unsupported`] for formats that are only
    /// recognised, and for zstd where the crate was built without the feature.
    pub(crate) fn new(mut out: W, options: &EncoderOptions) -> Result<Encoder<W>> {
        let Some(method) = method(options)? else { return Ok(Encoder { out, written: 0, blocks: None }) };
        if matches!(method, Method::Gzip(_)) {
            // RFC 1952: no name, no time, no word about the machine.
            out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]).map_err(|error| Error::io(STEP, "write", error))?;
        }
        let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let blocks = Blocks {
            method,
            threads: threads.clamp(1, MAX_THREADS),
            hasher: Hasher::new(Algorithm::Sha256),
            block: Vec::new(),
            window: Vec::new(),
            crc: flate2::Crc::new(),
            pool: None,
            own: Worker::new(method),
        };
        Ok(Encoder { out, written: 0, blocks: Some(blocks) })
    }

    /// Ends the stream; gives what it came to and what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<(Encoded, W)> {
        let Some(mut blocks) = self.blocks else {
            self.out.flush()?;
            return Ok((Encoded { digest: None, size: self.written }, self.out));
        };
        blocks.submit(&mut self.out, true)?;
        blocks.drain(&mut self.out, 0)?;
        if matches!(blocks.method, Method::Gzip(_)) {
            self.out.write_all(&blocks.crc.sum().to_le_bytes())?;
            // Modulo 2³², as the format has it.
            self.out.write_all(&(self.written as u32).to_le_bytes())?;
        }
        self.out.flush()?;
        Ok((Encoded { digest: Some(blocks.hasher.finish()), size: self.written }, self.out))
    }
}

/// `None` stands for no compression.
fn method(options: &EncoderOptions) -> Result<Option<Method>> {
    let level = |default: u32, range: std::ops::RangeInclusive<u32>| {
        let level = options.level.unwrap_or(default);
        range.contains(&level).then_some(level).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, STEP).because(format!(
                "{} has the levels {} to {}, not {level}",
                options.compression,
                range.start(),
                range.end()
            ))
        })
    };
    match options.compression {
        Compression::None => Ok(None),
        Compression::Gzip => level(4, 0..=9).map(|level| Some(Method::Gzip(level))),
        #[cfg(feature = "zstd")]
        Compression::Zstd => level(3, 1..=22).map(|level| Some(Method::Zstd(level as i32))),
        #[cfg(not(feature = "zstd"))]
        Compression::Zstd => Err(Error::new(ErrorKind::Unsupported, STEP)
            .because("this program was built without the feature `zstd` of coracle")
            .remedy("cargo add coracle --features zstd")),
        other => Err(Error::new(ErrorKind::Unsupported, STEP).because(format!("{other} is not written"))),
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.blocks {
            None => {
                self.out.write_all(bytes)?;
                bytes.len()
            }
            Some(blocks) => {
                let count = bytes.len().min(blocks.method.block() - blocks.block.len());
                blocks.block.extend_from_slice(&bytes[..count]);
                // Kept back while it may be the last one.
                if blocks.block.len() == blocks.method.block() {
                    blocks.submit(&mut self.out, false)?;
                }
                count
            }
        };
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Blocks {
    /// Sends the block to be compressed.
    fn submit(&mut self, out: &mut impl Write, last: bool) -> io::Result<()> {
        self.hasher.update(&self.block);
        let mut window = Vec::new();
        if matches!(self.method, Method::Gzip(_)) && !last {
            window = self.block[self.block.len().saturating_sub(WINDOW)..].to_vec();
        }
        let window = std::mem::replace(&mut self.window, window);
        let job = Job { block: std::mem::take(&mut self.block), window, last };
        // What fits into one block is done before a thread has started.
        if self.pool.is_none() && !last && self.threads > 1 {
            self.pool = Some(Pool::start(self.method, self.threads));
        }
        if self.pool.as_ref().is_none_or(|pool| pool.threads.is_empty()) {
            let done = self.own.compress(&job)?;
            return self.take(out, done);
        }
        self.drain(out, self.threads * BLOCKS_A_THREAD - 1)?;
        match &mut self.pool {
            Some(pool) => pool.send(job),
            None => Ok(()),
        }
    }

    /// Writes finished blocks until at most `most` are under way.
    fn drain(&mut self, out: &mut impl Write, most: usize) -> io::Result<()> {
        while let Some(done) = self.pool.as_mut().and_then(|pool| pool.receive(most)) {
            self.take(out, done?)?;
        }
        Ok(())
    }

    fn take(&mut self, out: &mut impl Write, done: Done) -> io::Result<()> {
        self.crc.combine(&done.crc);
        // Its memory serves for the next block.
        if self.block.capacity() == 0 {
            self.block = done.block;
            self.block.clear();
        }
        out.write_all(&done.bytes)
    }
}

/// A block to be compressed.
struct Job {
    block: Vec<u8>,
    window: Vec<u8>,
    last: bool,
}

/// A compressed block.
struct Done {
    bytes: Vec<u8>,
    crc: flate2::Crc,
    block: Vec<u8>,
}

type Reply = io::Result<Done>;

/// A block, and where it goes when it is done.
type Order = (Job, Sender<Reply>);

/// Threads that compress, and what they are about to give back, in order.
struct Pool {
    jobs: Option<Sender<Order>>,
    threads: Vec<JoinHandle<()>>,
    under_way: VecDeque<Receiver<Reply>>,
}

impl Pool {
    fn start(method: Method, count: usize) -> Pool {
        let (jobs, queue) = channel::<Order>();
        let queue = Arc::new(Mutex::new(queue));
        let work = |queue: Arc<Mutex<Receiver<Order>>>| {
            move || {
                let mut worker = Worker::new(method);
                loop {
                    // Held while waiting, so that the others wait for the lock instead: one wakes up for each job.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((job, reply)) = next else { break };
                    // Nobody waits for it where the caller has given up.
                    let _ = reply.send(worker.compress(&job).map(|done| Done { block: job.block, ..done }));
                }
            }
        };
        let start = |_| thread::Builder::new().name("coracle-pack".to_owned()).spawn(work(queue.clone())).ok();
        // With fewer threads it takes longer, no more.
        Pool { threads: (0..count).filter_map(start).collect(), jobs: Some(jobs), under_way: VecDeque::new() }
    }

    fn send(&mut self, job: Job) -> io::Result<()> {
        let (reply, done) = channel();
        self.under_way.push_back(done);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((job, reply)).is_ok());
        if sent { Ok(()) } else { Err(lost()) }
    }

    /// The oldest block, waiting for it; `None` while no more than `most` are under way.
    fn receive(&mut self, most: usize) -> Option<Reply> {
        if self.under_way.len() <= most {
            return None;
        }
        let done = self.under_way.pop_front()?;
        Some(done.recv().unwrap_or_else(|_| Err(lost())))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It has no result, and a panic of it was noticed where its block was missing.
            let _ = thread.join();
        }
    }
}

fn lost() -> io::Error {
    Error::new(ErrorKind::Io, STEP).because("a defect in this crate: a compressing thread panicked").into()
}

/// What one thread compresses with, made once.
enum Worker {
    Gzip(u32),
    #[cfg(feature = "zstd")]
    Zstd {
        level: i32,
        compressor: Option<zstd::bulk::Compressor<'static>>,
    },
}

impl Worker {
    fn new(method: Method) -> Worker {
        match method {
            Method::Gzip(level) => Worker::Gzip(level),
            #[cfg(feature = "zstd")]
            Method::Zstd(level) => Worker::Zstd { level, compressor: None },
        }
    }

    fn compress(&mut self, job: &Job) -> io::Result<Done> {
        let mut crc = flate2::Crc::new();
        let bytes = match self {
            Worker::Gzip(level) => {
                crc.update(&job.block);
                deflate(*level, job)?
            }
            #[cfg(feature = "zstd")]
            Worker::Zstd { level, compressor } => {
                let compressor = match compressor {
                    Some(compressor) => compressor,
                    None => {
                        let mut fresh = zstd::bulk::Compressor::new(*level)?;
                        fresh.include_checksum(true)?;
                        compressor.insert(fresh)
                    }
                };
                compressor.compress(&job.block)?
            }
        };
        Ok(Done { bytes, crc, block: Vec::new() })
    }
}

/// A piece of one deflate stream: it ends on a byte, by an empty stored block or, the last one, by the stream's end.
fn deflate(level: u32, job: &Job) -> io::Result<Vec<u8>> {
    // A fresh one for each block: one that was used before finds other matches than a fresh one, even after a reset.
    let mut deflate = flate2::Compress::new(flate2::Compression::new(level), false);
    if !job.window.is_empty() {
        deflate.set_dictionary(&job.window).map_err(io::Error::other)?;
    }
    let flush = if job.last { flate2::FlushCompress::Finish } else { flate2::FlushCompress::Sync };
    let mut bytes = Vec::with_capacity(job.block.len() / 2 + 128);
    let mut taken = 0;
    loop {
        let before = deflate.total_in();
        let status = deflate.compress_vec(&job.block[taken..], &mut bytes, flush).map_err(io::Error::other)?;
        taken += (deflate.total_in() - before) as usize;
        // Where room is left, nothing is held back.
        let done = if job.last { status == flate2::Status::StreamEnd } else { bytes.len() < bytes.capacity() };
        if done && taken == job.block.len() {
            return Ok(bytes);
        }
        bytes.reserve(bytes.capacity().max(1024));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::super::Decoder;
    use super::*;

    fn encode(bytes: &[u8], piece: usize, options: &EncoderOptions) -> (Encoded, Vec<u8>) {
        let mut encoder = Encoder::new(Vec::new(), options).unwrap();
        for piece in bytes.chunks(piece.max(1)) {
            encoder.write_all(piece).unwrap();
        }
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    /// Bytes that compress somewhat, and refer back over the borders of blocks.
    fn sample(length: usize) -> Vec<u8> {
        let mut seed = 1u32;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.extend_from_slice(format!("{} ", seed >> 20).as_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    fn formats() -> Vec<Compression> {
        let mut formats = vec![Compression::None, Compression::Gzip];
        if cfg!(feature = "zstd") {
            formats.push(Compression::Zstd);
        }
        formats
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads() {
        for compression in formats() {
            for length in [0, 1, GZIP_BLOCK - 1, GZIP_BLOCK, GZIP_BLOCK + 1, 5 * GZIP_BLOCK, 5_000_000] {
                let bytes = sample(length);
                let with = |threads| EncoderOptions { compression, level: None, threads: Some(threads) };
                let (encoded, one) = encode(&bytes, 100_000, &with(1));
                assert_eq!(decode(&one), bytes, "{compression} {length}");
                assert_eq!(encoded.size, length as u64);
                assert_eq!(encoded.digest, (compression != Compression::None).then(|| Digest::of(&bytes)));
                for threads in [2, 3, 16] {
                    let (other, more) = encode(&bytes, 33_333, &with(threads));
                    assert_eq!(other, encoded);
                    assert!(more == one, "{compression} {length} {threads}: {} and {} bytes", one.len(), more.len());
                }
            }
        }
    }

    #[test]
    fn gzip_is_one_member_without_name_and_time() {
        let bytes = sample(1_000_000);
        let (_, gzip) = encode(&bytes, 1 << 20, &EncoderOptions::default());
        assert_eq!(gzip[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        // This reader stops after the first member.
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(gzip.as_slice()).read_to_end(&mut out).unwrap();
        assert_eq!(out, bytes);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(4));
        whole.write_all(&bytes).unwrap();
        let whole = whole.finish().unwrap().len();
        assert!(gzip.len() < whole + whole / 100 + 100, "{} against {whole}", gzip.len());
    }

    #[test]
    fn levels_that_there_are_not() {
        let refused = |compression, level| {
            let options = EncoderOptions { compression, level: Some(level), threads: None };
            Encoder::new(Vec::new(), &options).err().map(|error| error.kind())
        };
        assert_eq!(refused(Compression::Gzip, 10), Some(ErrorKind::Invalid));
        assert_eq!(refused(Compression::Gzip, 0), None);
        assert_eq!(refused(Compression::Xz, 1), Some(ErrorKind::Unsupported));
        let zstd = if cfg!(feature = "zstd") { ErrorKind::Invalid } else { ErrorKind::Unsupported };
        assert_eq!(refused(Compression::Zstd, 23), Some(zstd));
    }

    /// Takes a few bytes, then says that the disk is full.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() > self.0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.0 -= bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_it() {
        let mut encoder = Encoder::new(Full(200_000), &EncoderOptions::default()).unwrap();
        let error = encoder.write_all(&sample(20 << 20)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_level_comes_back(level in 0u32..=9, length in 0usize..900_000, piece in 1usize..400_000) {
            let bytes = sample(length);
            let options = EncoderOptions { level: Some(level), ..EncoderOptions::default() };
            prop_assert_eq!(decode(&encode(&bytes, piece, &options).1), bytes);
        }
    }
}
