//! gzip, zstd and plain, told apart by their first bytes.
//!
//! Decompression happens in this process: a program found by name could be one that an image brought along.

use std::fmt;
use std::io::{self, BufRead, Read};

#[cfg(feature = "zstd")]
use super::limits::exceeded;
use crate::{Error, ErrorKind, Result};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, RFC 1952; several members in a row are one stream.
    Gzip,
    /// zstd, RFC 8878 (feature `zstd`).
    Zstd,
    /// bzip2; recognised to be refused by name.
    Bzip2,
    /// xz; recognised to be refused by name.
    Xz,
}

impl Compression {
    /// How a stream that starts with `start` is compressed. Six bytes are enough to know, except of what starts with
    /// `BZh`: that may be the name of a plain tar's first entry, which 262 bytes tell.
    pub fn detect(start: &[u8]) -> Compression {
        match start {
            [b'B', b'Z', b'h', ..] if start.get(MAGIC..ENOUGH) == Some(b"ustar") => Compression::None,
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [b'B', b'Z', b'h', ..] => Compression::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            _ => Compression::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
        })
    }
}

/// Where a tar's header says that it is one, and how many bytes tell.
const MAGIC: usize = 257;
const ENOUGH: usize = MAGIC + 5;

/// Bytes that tell every kind but bzip2 from a tar.
const FEW: usize = 6;

/// A reader of which the first bytes were taken to look at. Pipes hand out as little as one byte at a time.
struct Started<R> {
    start: Vec<u8>,
    at: usize,
    inner: R,
}

impl<R: BufRead> Started<R> {
    /// Takes out of `inner` what is needed to know its kind, where it has not that much at hand.
    fn new(mut inner: R) -> io::Result<Started<R>> {
        let mut start = Vec::new();
        loop {
            let ready = match inner.fill_buf() {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let whole = if start.is_empty() { ready } else { &[&start, ready].concat() };
            let wanted = if whole.starts_with(b"BZh") { ENOUGH } else { FEW };
            if ready.is_empty() || whole.len() >= wanted {
                return Ok(Started { start, at: 0, inner });
            }
            start.extend_from_slice(ready);
            let count = ready.len();
            inner.consume(count);
        }
    }

    fn kind(&mut self) -> io::Result<Compression> {
        let ready = self.inner.fill_buf()?;
        let whole = if self.start.is_empty() { ready } else { &[&self.start, ready].concat() };
        Ok(Compression::detect(whole))
    }
}

impl<R: BufRead> BufRead for Started<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.start.len() { Ok(&self.start[self.at..]) } else { self.inner.fill_buf() }
    }

    fn consume(&mut self, count: usize) {
        if self.at < self.start.len() {
            self.at = (self.at + count).min(self.start.len());
        } else {
            self.inner.consume(count);
        }
    }
}

impl<R: BufRead> Read for Started<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.start.len() {
            return self.inner.read(buffer);
        }
        let count = buffer.len().min(self.start.len() - self.at);
        buffer[..count].copy_from_slice(&self.start[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

/// Reads what a stream says before compression. Give it buffers of 64 KiB or more on both sides: with 512 bytes at a
/// time gzip is half as fast.
pub struct Decoder<R: BufRead> {
    compression: Compression,
    inner: Inner<R>,
}

enum Inner<R: BufRead> {
    Plain(Started<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Started<R>>>),
    #[cfg(feature = "zstd")]
    Zstd {
        decoder: Box<zstd::stream::read::Decoder<'static, Started<R>>>,
        window: u64,
    },
}

/// The window that the command `zstd` accepts without being told more, in bytes.
const USUAL_WINDOW: u64 = 128 << 20;

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `reader` and chooses. zstd may ask for a window of 128 MiB, which is held in memory.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for bzip2 and xz, and for zstd where the crate was built without the feature.
    pub fn new(reader: R) -> Result<Decoder<R>> {
        Decoder::with_window(reader, USUAL_WINDOW)
    }

    /// The same with a window of at most `zstd_window` bytes for zstd, rounded down to a power of two. Reading a stream
    /// that asks for more fails with [`ErrorKind::Limit`].
    ///
    /// # Errors
    /// As [`Decoder::new`].
    #[cfg_attr(not(feature = "zstd"), expect(unused_variables))]
    pub fn with_window(reader: R, zstd_window: u64) -> Result<Decoder<R>> {
        let failed = |error| Error::io("decompress", "read", error);
        let mut reader = Started::new(reader).map_err(failed)?;
        let compression = reader.kind().map_err(failed)?;
        let inner = match compression {
            Compression::None => Inner::Plain(reader),
            Compression::Gzip => Inner::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(failed)?;
                // The format has no window below 1 KiB, and the library none above 2 GiB.
                let log = zstd_window.max(1).ilog2().clamp(10, 31);
                decoder.window_log_max(log).map_err(failed)?;
                Inner::Zstd { decoder: Box::new(decoder), window: 1 << log }
            }
            #[cfg(not(feature = "zstd"))]
            Compression::Zstd => {
                return Err(Error::new(ErrorKind::Unsupported, "decompress")
                    .because("it is zstd, and this program was built without the feature `zstd` of coracle")
                    .remedy("cargo add coracle --features zstd"));
            }
            Compression::Bzip2 | Compression::Xz => {
                return Err(Error::new(ErrorKind::Unsupported, "decompress")
                    .because(format!("it is {compression}, which is not read"))
                    .remedy(format!("pack it again: {compression} -dc < OLD | gzip > NEW")));
            }
        };
        Ok(Decoder { compression, inner })
    }

    /// What was recognised.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// The reader below, with what it has read beyond the stream still in its buffer. Of a plain stream that was not
    /// read, up to 262 bytes may be missing.
    pub fn into_inner(self) -> R {
        match self.inner {
            Inner::Plain(reader) => reader.inner,
            Inner::Gzip(decoder) => decoder.into_inner().inner,
            #[cfg(feature = "zstd")]
            Inner::Zstd { decoder, .. } => decoder.finish().inner,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Plain(reader) => reader.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer).map_err(damaged),
            #[cfg(feature = "zstd")]
            Inner::Zstd { decoder, window } => {
                decoder.read(buffer).map_err(|error| too_large(error, *window)).map_err(damaged)
            }
        }
    }
}

/// Tells what the decompressor has found wrong from what reading has: that has an errno, or is an error of ours.
fn damaged(error: io::Error) -> io::Error {
    let of_reading = error.raw_os_error().is_some() || error.get_ref().is_some_and(|inner| inner.is::<Error>());
    if of_reading || matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) {
        return error;
    }
    Error::new(ErrorKind::Corrupt, "decompress")
        .because(format!("the compressed data is damaged or cut short: {error}"))
        .remedy("get the file again, and compare its digest with the one of where it came from")
        .source_is(error)
        .into()
}

/// Tells the library's refusal of a window from other failures; it says so in words only.
#[cfg(feature = "zstd")]
fn too_large(error: io::Error, window: u64) -> io::Error {
    if error.raw_os_error().is_none() && error.to_string().contains("too much memory") {
        return exceeded("zstd_window", window).into();
    }
    error
}

impl<R: BufRead> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes).unwrap().read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_kind_is_read() {
        assert_eq!(decode(b"plain").unwrap(), b"plain");
        assert_eq!(decode(b"").unwrap(), b"");
        assert_eq!(decode(&gzip(b"one")).unwrap(), b"one");
        assert_eq!(decode(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        #[cfg(feature = "zstd")]
        {
            let one = zstd::encode_all(&b"one"[..], 1).unwrap();
            assert_eq!(decode(&[one.clone(), one].concat()).unwrap(), b"oneone");
        }
    }

    /// A pipe whose writer hesitates after each byte.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(buffer.len()).min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn a_start_in_small_pieces_is_recognised() {
        let slow = |bytes: &[u8]| {
            let mut out = Vec::new();
            Decoder::new(io::BufReader::new(Slow(bytes))).unwrap().read_to_end(&mut out).unwrap();
            out
        };
        let plain: Vec<u8> = (0..2000u32).map(|byte| byte as u8).collect();
        for bytes in [&b""[..], b"a", b"plain", b"BZ", &plain] {
            assert_eq!(slow(bytes), bytes);
        }
        assert_eq!(slow(&gzip(&plain)), plain);
        #[cfg(feature = "zstd")]
        assert_eq!(slow(&zstd::encode_all(&plain[..], 1).unwrap()), plain);
        assert!(Decoder::new(io::BufReader::new(Slow(b"BZh91AY"))).is_err());
        assert!(Decoder::new(io::BufReader::new(Slow(b"\xfd7zXZ\0\0"))).is_err());
    }

    #[test]
    fn a_tar_may_start_with_a_name_like_bzip2() {
        let tar = crate::layer::testing::Archive::new().file("BZh9", b"x").end();
        assert_eq!(decode(&tar).unwrap(), tar);
        assert_eq!(Compression::detect(&tar[..400]), Compression::None);
        assert_eq!(Compression::detect(&tar[..200]), Compression::Bzip2);
    }

    #[test]
    fn a_stream_that_is_damaged_or_cut_is_corrupt() {
        let noise: Vec<u8> = (0..10_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let whole = gzip(&noise);
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            bytes
        };
        // The sum at its end, the length after that, the data itself, the header.
        let end = whole.len();
        let mut bad = vec![flipped(end - 6), flipped(end - 1), flipped(10), flipped(end / 2)];
        bad.extend([1, 8, 9, end / 2].map(|cut| whole[..end - cut].to_vec()));
        bad.extend([4, 12].map(|length| whole[..length].to_vec()));
        #[cfg(feature = "zstd")]
        {
            let whole = zstd::encode_all(&noise[..], 1).unwrap();
            bad.extend([1, 3, whole.len() / 2].map(|cut| whole[..whole.len() - cut].to_vec()));
            let mut broken = whole;
            broken[4] ^= 0xff;
            bad.push(broken);
        }
        for (number, bytes) in bad.iter().enumerate() {
            let error = decode(bytes).expect_err(&number.to_string());
            let error = Error::io("read it", "read", error);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{number}: {error}");
            assert!(error.to_string().contains("damaged or cut short") && error.remedy_hint().is_some(), "{error}");
        }
    }

    #[test]
    fn a_stream_that_cannot_be_read_is_not_called_damaged() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
        }
        let whole = gzip(&[7; 1000]);
        let mut decoder = Decoder::new(io::BufReader::new(whole[..15].chain(Failing))).unwrap();
        let error = decoder.read_to_end(&mut vec![]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn what_is_not_read_is_named() {
        let error = Decoder::new(&b"BZh91AY"[..]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("bzip2"), "{error}");
        assert!(Decoder::new(&b"\xfd7zXZ\0\0"[..]).unwrap_err().to_string().contains("xz"));
    }
}
