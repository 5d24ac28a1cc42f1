//! Reading tar archives that may be hostile.
//!
//! Dialects: v7, ustar, star, PAX (local and global headers), GNU with long names, long links and all its sparse
//! formats. Where two readers in the field would disagree about what an archive contains, the archive is refused:
//! that disagreement is how entries are smuggled past a check. So refused are a PAX size that contradicts the plain
//! header, two extended headers for one entry that disagree, data behind entries that have none, an extended header
//! without its entry, a zero block between entries, and records whose length does not fit.
//!
//! Nothing is allocated on the archive's word: every length is checked against [`Limits`] first.

mod header;
mod pax;
mod sparse;
mod writer;

use std::io::{self, BufRead, Read};

use self::header::{Format, Header, Why};
use self::pax::Pax;
pub(crate) use self::sparse::Sparse;
pub(crate) use self::writer::{Writer, can_be_recorded, sparse_map_length};
use super::Limits;
use super::limits::exceeded;
use crate::sys::fs::Time;
use crate::{Error, ErrorKind, Result};

/// The unit of an archive, in bytes.
const BLOCK: usize = 512;

/// Largest size that twelve octal digits with a terminator can say. Only beyond it may PAX say another, and then writers
/// put nothing or this in the plain header.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry: everything but its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As written: may be absolute, contain `..`, end in `/`. Contains no NUL and is not empty.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a symlink, or path of the file that a hard link names; empty for other kinds. Contains no NUL.
    pub(crate) link: Vec<u8>,
    /// Permission bits, 07777.
    pub(crate) mode: u32,
    /// Never `u32::MAX`, which chown(2) takes for "leave it".
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Bytes of data in the archive; without the holes of a sparse file.
    pub(crate) size: u64,
    /// Major and minor number of a device node.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<Sparse>,
    /// Where its header stands, in bytes from the archive's start.
    pub(crate) offset: u64,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Pending {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    offset: Option<u64>,
}

/// Reads an archive entry by entry.
pub(crate) struct Reader<R> {
    input: R,
    limits: Limits,
    /// Bytes consumed.
    offset: u64,
    entries: u64,
    /// Data of the current entry still to come, and the padding behind it.
    data: u64,
    padding: u64,
    global: Pax,
    /// What the current entry is, for messages.
    at: (u64, Vec<u8>),
    ended: bool,
    jump: Option<Jump<R>>,
}

/// Passes over so many bytes of an input without reading them, as far as there are so many; gives the number.
pub(crate) type Jump<R> = fn(&mut R, u64) -> io::Result<u64>;

/// Less than this is read and not jumped over: the buffer has most of it.
const JUMP: u64 = 1 << 20;

impl<R: BufRead> Reader<R> {
    /// With an input that can jump over what nobody reads.
    pub(crate) fn jumping(input: R, limits: &Limits, jump: Jump<R>) -> Reader<R> {
        Reader { jump: Some(jump), ..Reader::new(input, limits) }
    }

    pub(crate) fn new(input: R, limits: &Limits) -> Reader<R> {
        Reader {
            input,
            limits: limits.clone(),
            offset: 0,
            entries: 0,
            data: 0,
            padding: 0,
            global: Pax::default(),
            at: (0, Vec::new()),
            ended: false,
            jump: None,
        }
    }

    /// Bytes of the archive before what comes next; after [`next`](Reader::next), before the entry's data.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The reader below; what follows the archive's end is still in it.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// Entries seen so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// The next entry, `None` at the archive's end. What is left of the data before is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.data)?;
        self.data = 0;
        // Some writers (umoci insert) leave the last entry's padding out as a whole; part of it would be a cut.
        if self.padding > 0 && self.input()?.is_empty() {
            return self.end(&Pending::default());
        }
        self.skip(self.padding)?;
        self.padding = 0;
        let mut pending = Pending::default();
        loop {
            self.at = (self.offset, Vec::new());
            let start = self.offset;
            let Some(block) = self.block()? else {
                // Some writers leave the two zero blocks out; GNU tar and Go accept that.
                return self.end(&pending);
            };
            if block == [0; BLOCK] {
                match self.block()? {
                    None => {}
                    Some(second) if second == [0; BLOCK] => {}
                    Some(_) => return Err(self.hostile("a zero block stands between entries")),
                }
                return self.end(&pending);
            }
            let header = Header::new(block).map_err(|why| match self.entries == 0 && start == 0 {
                true => self.corrupt(format!("this is no tar archive: the first header's {why}")),
                false => self.corrupt(format!("the header's {why}")),
            })?;
            self.at.1 = header.name();
            let size = header.size().map_err(|why| self.corrupt(format!("the header's {why}")))?;
            let first = pending.offset.is_none();
            match header.type_flag() {
                b'x' | b'X' => {
                    self.extended(&pending, pending.pax.is_some())?;
                    let bytes = self.body(size, self.limits.pax_bytes, "pax_bytes")?;
                    pending.pax = Some(Pax::parse(&bytes).map_err(|why| self.in_extended(why))?);
                }
                b'L' | b'K' => {
                    let is_name = header.type_flag() == b'L';
                    let taken = if is_name { pending.name.is_some() } else { pending.link.is_some() };
                    self.extended(&pending, taken)?;
                    let bytes = self.body(size, self.limits.path_length as u64 + 1, "path_length")?;
                    let text = header::text(&bytes);
                    // One NUL ends it; more text behind that is read by some and not by others.
                    if bytes[text.len()..].iter().any(|byte| *byte != 0) || text.is_empty() {
                        return Err(self.hostile("a GNU long name has something behind its end, or nothing before it"));
                    }
                    let slot = if is_name { &mut pending.name } else { &mut pending.link };
                    *slot = Some(text.to_vec());
                }
                b'g' => {
                    if !first {
                        return Err(self.hostile("a global header stands between an extended header and its entry"));
                    }
                    let bytes = self.body(size, self.limits.pax_bytes, "pax_bytes")?;
                    let global = Pax::parse(&bytes).map_err(|why| self.in_extended(why))?;
                    self.merge_global(global)?;
                    continue;
                }
                // GNU's label of a volume: not an entry, no data.
                b'V' if size == 0 && first => continue,
                _ => return self.entry(header, size, pending, start).map(Some),
            }
            pending.offset.get_or_insert(start);
        }
    }

    /// The data of the current entry.
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    fn end(&mut self, pending: &Pending) -> Result<Option<Entry>> {
        if pending.offset.is_some() {
            return Err(self.corrupt("an extended header has no entry"));
        }
        self.ended = true;
        Ok(None)
    }

    /// Checks that another extended header may come now.
    fn extended(&self, pending: &Pending, taken: bool) -> Result<()> {
        if taken {
            return Err(self.hostile("an entry has two extended headers of one kind"));
        }
        if pending.pax.as_ref().is_some_and(|pax| pax.size.is_some()) {
            return Err(self.hostile("it is unclear which header a PAX size is about"));
        }
        Ok(())
    }

    /// A global header sets what following entries have where they say nothing. Go's readers ignore it, GNU tar obeys
    /// it; so it may not touch what an archive contains.
    fn merge_global(&mut self, global: Pax) -> Result<()> {
        let Pax { path, link_path, size, uid, gid, mtime, xattrs, sparse, .. } = global;
        let names = path.is_some() || link_path.is_some();
        let owners = uid.is_some() || gid.is_some();
        if names || owners || size.is_some() || !xattrs.is_empty() || sparse.is_any() {
            return Err(self.hostile("a global header changes names, sizes, owners or attributes"));
        }
        self.global.mtime = mtime.or(self.global.mtime);
        Ok(())
    }

    /// Builds the entry that `header` describes together with what `pending` says.
    fn entry(&mut self, header: Header, plain_size: u64, pending: Pending, start: u64) -> Result<Entry> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(exceeded("entries", self.limits.entries));
        }
        let start = pending.offset.unwrap_or(start);
        let mut pax = pending.pax.unwrap_or_default();
        let plain = |why: Why| format!("the header's {why}");
        let path = self.reconcile(pending.name, pax.path.take(), header.name())?;
        // Left in place: a name without a map is a name to some readers only.
        let path = match pax.sparse.name.clone() {
            Some(_) if path.ends_with(b"/") => {
                return Err(self.hostile("it is sparse, and by its other name a directory"));
            }
            Some(name) => name,
            None => path,
        };
        self.at = (start, path.clone());
        let link = self.reconcile(pending.link, pax.link_path.take(), header.link_name())?;
        if path.is_empty() {
            return Err(self.corrupt("an entry has no name"));
        }
        for text in [&path, &link] {
            if text.len() > self.limits.path_length {
                return Err(exceeded("path_length", self.limits.path_length));
            }
        }
        let size = match pax.size {
            Some(size)
                if size != plain_size && (size <= MAX_OCTAL_SIZE || ![0, MAX_OCTAL_SIZE].contains(&plain_size)) =>
            {
                return Err(
                    self.hostile(format!("its PAX size {size} contradicts the {plain_size} of its plain header"))
                );
            }
            Some(size) => size,
            None => plain_size,
        };
        let kind = match header.type_flag() {
            // Before there were type flags, a slash at the end made a directory.
            0 if path.ends_with(b"/") => Kind::Directory,
            b'0' if path.ends_with(b"/") => {
                return Err(self.hostile("it is a file by its type and a directory by its name, and readers differ"));
            }
            b'0' | 0 | b'7' => Kind::File,
            b'S' if header.format == Format::Gnu => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let flag = char::from(other).escape_default();
                return Err(self
                    .corrupt(format!("its type '{flag}' is not one of a layer"))
                    .kind_is(ErrorKind::Unsupported));
            }
        };
        if kind != Kind::File && size != 0 {
            return Err(self.hostile("it has data, which its type has not"));
        }
        let linked = matches!(kind, Kind::HardLink | Kind::Symlink);
        if linked && link.is_empty() {
            return Err(self.corrupt("it is a link to nothing"));
        }
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => header.device().map_err(|why| self.corrupt(plain(why)))?,
            _ => (0, 0),
        };
        let uid = pax.uid.map_or_else(|| header.uid(), Ok);
        let gid = pax.gid.map_or_else(|| header.gid(), Ok);
        let id = |id: Result<u64, Why>, name| match id {
            Ok(id) if id < u64::from(u32::MAX) => Ok(id as u32),
            Ok(id) => Err(self.corrupt(format!("its {name} {id} is out of range"))),
            Err(why) => Err(self.corrupt(plain(why))),
        };
        let (uid, gid) = (id(uid, "uid")?, id(gid, "gid")?);
        let mtime = match pax.mtime.or(self.global.mtime) {
            Some(mtime) => mtime,
            None => Time { seconds: header.mtime().map_err(|why| self.corrupt(plain(why)))?, nanoseconds: 0 },
        };
        self.check_xattrs(&pax.xattrs)?;
        let mode = header.mode().map_err(|why| self.corrupt(plain(why)))?;
        if self.offset.checked_add(size).is_none_or(|end| end > self.limits.bytes) {
            return Err(exceeded("bytes", self.limits.bytes));
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let sparse = self.sparse(&header, kind, &pax, size)?;
        Ok(Entry {
            path,
            kind,
            link: if linked { link } else { Vec::new() },
            mode,
            uid,
            gid,
            mtime,
            size: self.data,
            device,
            xattrs: pax.xattrs,
            sparse,
            offset: start,
        })
    }

    /// One name out of a GNU long name, a PAX record and the plain field. Readers differ in which of the first two
    /// they prefer.
    fn reconcile(&self, gnu: Option<Vec<u8>>, pax: Option<Vec<u8>>, plain: Vec<u8>) -> Result<Vec<u8>> {
        match (gnu, pax) {
            (Some(gnu), Some(pax)) if gnu != pax => Err(self.hostile("its GNU and PAX names disagree")),
            (gnu, pax) => Ok(gnu.or(pax).unwrap_or(plain)),
        }
    }

    fn check_xattrs(&self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        if xattrs.len() > self.limits.xattrs {
            return Err(exceeded("xattrs", self.limits.xattrs));
        }
        if xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > self.limits.xattr_bytes {
            return Err(exceeded("xattr_bytes", self.limits.xattr_bytes));
        }
        Ok(())
    }

    /// The sparse map, wherever it stands. Maps in the data are consumed, so that what is left is the pieces.
    fn sparse(&mut self, header: &Header, kind: Kind, pax: &Pax, size: u64) -> Result<Option<Sparse>> {
        let limit = self.limits.sparse_pieces;
        let records = &pax.sparse;
        let old = header.type_flag() == b'S';
        if !old && !records.is_any() {
            return Ok(None);
        }
        if old && !header.mistaken_prefix().is_empty() {
            return Err(self.hostile("it is sparse, and has a name where only its map can be"));
        }
        if old && records.is_any() || kind != Kind::File {
            return Err(self.hostile("it is sparse in two ways, or sparse without being a file"));
        }
        let (pieces, real_size) = if old {
            let (mut pieces, mut more, real_size) =
                sparse::gnu_header(header).map_err(|why| self.corrupt(format!("the header's {why}")))?;
            while more {
                let Some(block) = self.block()? else { return Err(self.cut()) };
                more = sparse::gnu_extension(&block, &mut pieces)
                    .map_err(|why| self.corrupt(format!("the header's {why}")))?;
                if pieces.len() > limit {
                    return Err(exceeded("sparse_pieces", limit));
                }
            }
            (pieces, Some(real_size))
        } else {
            match records.version {
                Some((1, 0)) => {
                    let mut map = sparse::MapReader::new();
                    loop {
                        if self.data < BLOCK as u64 {
                            return Err(self.corrupt("its sparse map is longer than its data"));
                        }
                        let Some(block) = self.block()? else { return Err(self.cut()) };
                        self.data -= BLOCK as u64;
                        match map.block(&block, limit) {
                            Ok(false) => {}
                            Ok(true) => break,
                            Err(_) if map.too_many => return Err(exceeded("sparse_pieces", limit)),
                            Err(why) => return Err(self.corrupt(why)),
                        }
                    }
                    (map.pieces, records.real_size)
                }
                None | Some((0, 0 | 1)) => {
                    // Go passes over what else is said about a file whose map is missing, its name for instance.
                    if records.map.is_none() && (records.version.is_none() || records.count != Some(0)) {
                        return Err(self.hostile("it is sparse without a map"));
                    }
                    let pieces = records.map.clone().unwrap_or_default();
                    if records.count.is_some_and(|count| count != pieces.len() as u64) {
                        return Err(self.corrupt("its sparse map has another number of pieces than stated"));
                    }
                    (pieces, records.real_size)
                }
                Some((major, minor)) => {
                    return Err(self
                        .corrupt(format!("its sparse format {major}.{minor} is not known"))
                        .kind_is(ErrorKind::Unsupported));
                }
            }
        };
        if pieces.len() > limit {
            return Err(exceeded("sparse_pieces", limit));
        }
        let stored = if old { size } else { self.data };
        let real_size = real_size.ok_or_else(|| self.corrupt("its real size is missing"))?;
        Sparse::new(real_size, pieces, stored).map(Some).map_err(|why| self.corrupt(why))
    }

    /// The body of an extended header, and the padding behind it.
    fn body(&mut self, size: u64, limit: u64, name: &str) -> Result<Vec<u8>> {
        if size > limit {
            return Err(exceeded(name, limit));
        }
        let padded = size.next_multiple_of(BLOCK as u64);
        // Bounded by `limit`, which bounds memory on purpose.
        let mut bytes = vec![0; padded as usize];
        self.fill(&mut bytes)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    /// One block; `None` where the input ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.input()?.is_empty() {
            return Ok(None);
        }
        self.fill(&mut block)?;
        Ok(Some(block))
    }

    fn fill(&mut self, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            let input = self.input()?;
            let count = input.len().min(bytes.len());
            if count == 0 {
                return Err(self.cut());
            }
            bytes[..count].copy_from_slice(&input[..count]);
            self.consume(count)?;
            bytes = &mut bytes[count..];
        }
        Ok(())
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        if let Some(jump) = self.jump.filter(|_| count > JUMP) {
            let jumped = jump(&mut self.input, count).map_err(|error| Error::io("read the tar", "lseek", error))?;
            self.pass(jumped)?;
            count = count.saturating_sub(jumped);
        }
        while count > 0 {
            let step = (self.input()?.len() as u64).min(count);
            if step == 0 {
                return Err(self.cut());
            }
            self.consume(step as usize)?;
            count -= step;
        }
        Ok(())
    }

    /// What the input has ready; empty at its end.
    fn input(&mut self) -> Result<&[u8]> {
        // Asked twice to please the borrow checker; the second call finds the buffer full.
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read the tar", "read", error)),
            }
        }
        self.input.fill_buf().map_err(|error| Error::io("read the tar", "read", error))
    }

    fn consume(&mut self, count: usize) -> Result<()> {
        self.input.consume(count);
        self.pass(count as u64)
    }

    fn pass(&mut self, count: u64) -> Result<()> {
        self.offset = self.offset.saturating_add(count);
        if self.offset > self.limits.bytes {
            return Err(exceeded("bytes", self.limits.bytes));
        }
        Ok(())
    }

    fn error(&self, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        let (offset, name) = &self.at;
        let name = String::from_utf8_lossy(name);
        let what = if name.is_empty() { String::new() } else { format!(", entry {name:?}") };
        Error::new(kind, "read the tar").because(format!("{why} (at byte {offset}{what})"))
    }

    fn corrupt(&self, why: impl std::fmt::Display) -> Error {
        self.error(ErrorKind::Corrupt, why)
    }

    fn hostile(&self, why: impl std::fmt::Display) -> Error {
        self.error(ErrorKind::Hostile, why)
    }

    fn in_extended(&self, why: Why) -> Error {
        self.error(ErrorKind::Hostile, format!("in the extended header, {why}"))
    }

    fn cut(&self) -> Error {
        self.error(ErrorKind::Corrupt, "the archive ends in the middle")
    }
}

/// The data of one entry, as it stands in the archive. Ends with the entry; an archive that ends before is an error.
pub(crate) struct Data<'a, R>(&'a mut Reader<R>);

impl<R: BufRead> BufRead for Data<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let left = self.0.data;
        if left == 0 {
            return Ok(&[]);
        }
        if self.0.input()?.is_empty() {
            return Err(self.0.cut().into());
        }
        let input = self.0.input()?;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        Ok(&input[..count])
    }

    fn consume(&mut self, count: usize) {
        self.0.data -= (count as u64).min(self.0.data);
        self.0.input.consume(count);
        // Within the limit on bytes: the whole size was held against it when the entry was read.
        self.0.offset += count as u64;
    }
}

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = self.fill_buf()?;
        let count = input.len().min(buffer.len());
        buffer[..count].copy_from_slice(&input[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
