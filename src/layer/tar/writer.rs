//! Writing tar archives: the same entries always make the same bytes.
//!
//! An entry is a ustar header; whatever that cannot say (long names, large numbers, parts of a second, attributes,
//! holes) stands in a PAX header before it, see pax(1). Names are bytes on both sides: the readers of GNU tar and Go
//! take the bytes of a PAX record as they are, whether they are UTF-8 or not. No names of users or groups are written,
//! since the numbers are what counts.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind, MAX_OCTAL_SIZE, Sparse};
use crate::sys::fs::Time;

/// Largest number that seven octal digits can say.
const MAX_OCTAL_ID: u64 = 0o7_777_777;

/// Writes an archive entry by entry.
pub(crate) struct Writer<W> {
    out: W,
    /// Bytes of the current entry still to come, and the padding behind them.
    data: u64,
    padding: usize,
    entries: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Writer<W> {
        Writer { out, data: 0, padding: 0, entries: 0 }
    }

    /// Entries written so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Starts an entry. Its `size` bytes of data follow by [`Writer::data`]; of a sparse file they are the pieces.
    ///
    /// The name of a directory gets its slash here. An attribute whose name a record cannot hold is the caller's to
    /// leave out, see [`can_be_recorded`].
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.pad()?;
        let mut path = entry.path.clone();
        if entry.kind == Kind::Directory && !path.ends_with(b"/") {
            path.push(b'/');
        }
        let mut records = Records::default();
        let mut header = [0; BLOCK];
        let map = entry.sparse.as_ref().map(sparse_map);
        let size = entry.size + map.as_ref().map_or(0, |map| map.len() as u64);
        match &entry.sparse {
            None => records.name(&mut header, &path),
            Some(sparse) => {
                records.add(b"GNU.sparse.major", b"1");
                records.add(b"GNU.sparse.minor", b"0");
                records.add(b"GNU.sparse.name", &path);
                records.add(b"GNU.sparse.realsize", sparse.real_size.to_string().as_bytes());
                put(&mut header[..100], &[b"GNUSparseFile.0/", last_component(&path)].concat());
            }
        }
        octal(&mut header[100..108], u64::from(entry.mode & 0o7777));
        records.number(&mut header[108..116], b"uid", entry.uid.into(), MAX_OCTAL_ID);
        records.number(&mut header[116..124], b"gid", entry.gid.into(), MAX_OCTAL_ID);
        records.number(&mut header[124..136], b"size", size, MAX_OCTAL_SIZE);
        records.time(&mut header[136..148], entry.mtime);
        header[156] = type_flag(entry.kind);
        records.link(&mut header, &entry.link);
        put(&mut header[257..265], b"ustar\x0000");
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            for (field, number) in [(329, entry.device.0), (337, entry.device.1)] {
                if u64::from(number) > MAX_OCTAL_ID {
                    return Err(io::Error::from_raw_os_error(libc::EOVERFLOW));
                }
                octal(&mut header[field..field + 8], number.into());
            }
        }
        for (name, value) in &entry.xattrs {
            records.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.0.is_empty() {
            self.extended_header(&path, &records.0)?;
        }
        self.block(header)?;
        self.data = size;
        self.padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        self.entries += 1;
        match map {
            Some(map) => self.data(&map),
            None => Ok(()),
        }
    }

    /// Bytes of the current entry.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.data = self.data.checked_sub(bytes.len() as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "an entry gets more data than its header announced")
        })?;
        self.out.write_all(bytes)
    }

    /// Ends the archive with its two blocks of zeros, and gives back what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn pad(&mut self) -> io::Result<()> {
        if self.data > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an entry got less data than its header announced",
            ));
        }
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&[0; BLOCK][..padding])
    }

    fn extended_header(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        let mut header = [0; BLOCK];
        // Readers that know no PAX make a file of it; nothing else ever sees this name.
        put(&mut header[..100], &[b"PaxHeaders.0/", last_component(path)].concat());
        octal(&mut header[100..108], 0o644);
        for field in [108..116, 116..124, 136..148] {
            octal(&mut header[field], 0);
        }
        octal(&mut header[124..136], records.len() as u64);
        header[156] = b'x';
        put(&mut header[257..265], b"ustar\x0000");
        self.block(header)?;
        self.out.write_all(records)?;
        self.out.write_all(&[0; BLOCK][..records.len().next_multiple_of(BLOCK) - records.len()])
    }

    /// Writes a header with its checksum.
    fn block(&mut self, mut header: [u8; BLOCK]) -> io::Result<()> {
        put(&mut header[148..156], b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header[148..156], format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&header)
    }
}

/// Whether a PAX record can hold the attribute `name`: a key ends at its first `=`.
pub(crate) fn can_be_recorded(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'=') && !name.contains(&b'\n')
}

/// How many bytes the map of a sparse file takes in front of its pieces.
pub(crate) fn sparse_map_length(pieces: &[(u64, u64)]) -> u64 {
    let digits = |number: u64| u64::from(number.checked_ilog10().unwrap_or(0)) + 2;
    let sum = pieces
        .iter()
        .fold(digits(pieces.len() as u64), |sum, (offset, length)| sum + digits(*offset) + digits(*length));
    sum.next_multiple_of(BLOCK as u64)
}

/// The map: a count and the numbers, one a line, filled up to whole blocks.
fn sparse_map(sparse: &Sparse) -> Vec<u8> {
    let mut map = format!("{}\n", sparse.pieces.len());
    for (offset, length) in &sparse.pieces {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

fn last_component(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'/').rfind(|component| !component.is_empty()).unwrap_or(b"")
}

/// Writes what fits.
fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Octal digits to the end of the field but one, and a NUL.
fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    put(field, format!("{number:0width$o}\0").as_bytes());
}

/// The records of one PAX header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        // The length counts its own digits, a space, `=` and the newline.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        for part in [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// A number in its field, or in a record where it is larger than `most`.
    fn number(&mut self, field: &mut [u8], key: &[u8], number: u64, most: u64) {
        if number <= most {
            return octal(field, number);
        }
        octal(field, 0);
        self.add(key, number.to_string().as_bytes());
    }

    /// A time: whole seconds after 1970 in the field, everything else in a record.
    fn time(&mut self, field: &mut [u8], time: Time) {
        let whole = u64::try_from(time.seconds).ok().filter(|seconds| *seconds <= MAX_OCTAL_SIZE);
        octal(field, whole.unwrap_or(0));
        if whole.is_none() || time.nanoseconds != 0 {
            self.add(b"mtime", decimal(time).as_bytes());
        }
    }

    /// The name in the header's two fields for it, or in a record.
    fn name(&mut self, header: &mut [u8; BLOCK], path: &[u8]) {
        if path.len() <= 100 {
            return put(&mut header[..100], path);
        }
        // A slash that leaves at most 100 bytes behind it and 155 before it; the one that ends a directory's name
        // does not count.
        let from = path.len() - 101;
        let slash = (from..=155.min(path.len() - 2)).find(|at| path[*at] == b'/').filter(|at| *at > 0);
        match slash {
            Some(at) => {
                put(&mut header[345..500], &path[..at]);
                put(&mut header[..100], &path[at + 1..]);
            }
            None => {
                put(&mut header[..100], last_component(path));
                self.add(b"path", path);
            }
        }
    }

    fn link(&mut self, header: &mut [u8; BLOCK], link: &[u8]) {
        put(&mut header[157..257], link);
        if link.len() > 100 {
            self.add(b"linkpath", link);
        }
    }
}

/// Seconds since 1970 with as many digits behind the point as are needed.
fn decimal(time: Time) -> String {
    let (seconds, nanoseconds) = match (time.seconds, time.nanoseconds) {
        // Half a second before 1970 is second -1 and half a second, and is written -0.5.
        (seconds @ ..0, 1..) => (seconds + 1, 1_000_000_000 - time.nanoseconds),
        other => other,
    };
    let sign = if time.seconds < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{nanoseconds:09}", seconds.unsigned_abs());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::super::Reader;
    use super::*;
    use crate::layer::Limits;

    fn entry(path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: Kind::File,
            link: vec![],
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            device: (0, 0),
            xattrs: vec![],
            sparse: None,
            offset: 0,
        }
    }

    /// Writes entries with their data, and reads them back.
    fn round_trip(entries: &[(Entry, Vec<u8>)]) -> Vec<(Entry, Vec<u8>)> {
        let mut writer = Writer::new(Vec::new());
        for (entry, data) in entries {
            writer.entry(entry).unwrap();
            writer.data(data).unwrap();
        }
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut reader = Reader::new(bytes.as_slice(), &Limits::default());
        let mut read = Vec::new();
        while let Some(mut entry) = reader.next().unwrap() {
            let mut data = Vec::new();
            reader.data().read_to_end(&mut data).unwrap();
            entry.offset = 0;
            read.push((entry, data));
        }
        read
    }

    #[test]
    fn names_of_every_length_come_back() {
        for length in 1..400 {
            for slash in [3, 60, 99, 100, 101, 155, 156, 200] {
                let mut path = vec![b'n'; length];
                if slash + 1 < length {
                    path[slash] = b'/';
                }
                let mut directory = entry(&path);
                directory.kind = Kind::Directory;
                let read = round_trip(&[(entry(&path), vec![]), (directory, vec![])]);
                assert_eq!(read[0].0, entry(&path), "{length} {slash}");
                assert_eq!(read[1].0.path, [path.as_slice(), b"/"].concat());
            }
        }
    }

    #[test]
    fn names_need_no_record_where_the_header_can_hold_them() {
        let path = [&[b'd'; 150][..], b"/", &[b'f'; 100]].concat();
        let mut writer = Writer::new(Vec::new());
        writer.entry(&entry(&path)).unwrap();
        assert_eq!(writer.finish().unwrap().len(), 3 * BLOCK);
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        let at = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(at(0, 0), "0");
        assert_eq!(at(100, 0), "100");
        assert_eq!(at(1, 500_000_000), "1.5");
        assert_eq!(at(-1, 500_000_000), "-0.5");
        assert_eq!(at(-2, 999_999_999), "-1.000000001");
        assert_eq!(at(-10, 0), "-10");
    }

    #[test]
    fn the_map_is_as_long_as_it_is_said_to_be() {
        for pieces in [vec![], vec![(0, 1)], vec![(0, 9), (10, 99), (1 << 40, 1)], vec![(4096, 4096); 1000]] {
            let sparse = Sparse { real_size: 0, pieces };
            assert_eq!(sparse_map(&sparse).len() as u64, sparse_map_length(&sparse.pieces));
        }
    }

    #[test]
    fn data_has_to_fit_its_header() {
        let mut short = entry(b"a");
        short.size = 2;
        let mut writer = Writer::new(Vec::new());
        writer.entry(&short).unwrap();
        writer.data(b"x").unwrap();
        assert!(writer.entry(&short).is_err());
        assert!(writer.data(b"yz").is_err());
    }

    fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
        let name = prop::collection::vec(1u8..=255, 1..300)
            .prop_map(|name| name.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect::<Vec<u8>>());
        let kind = prop::sample::select(vec![
            Kind::File,
            Kind::HardLink,
            Kind::Symlink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Directory,
            Kind::Fifo,
        ]);
        let id = prop_oneof![0u32..3000, 2_000_000u32..2_200_000, Just(u32::MAX - 1)];
        let seconds = prop_oneof![-3i64..3, Just(1 << 33), Just(-(1 << 40)), any::<i32>().prop_map(i64::from)];
        let mtime = (seconds, prop_oneof![Just(0), 0u32..1_000_000_000])
            .prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
        let xattrs = prop::collection::vec(("[a-z.:]{1,20}", prop::collection::vec(any::<u8>(), 0..40)), 0..4);
        let data = prop::collection::vec(any::<u8>(), 0..1500);
        (prop::collection::vec(name, 1..12), kind, 0u32..0o10000, id.clone(), id, mtime, xattrs, data, 0u32..0xfffff)
            .prop_map(|(path, kind, mode, uid, gid, mtime, mut xattrs, data, device)| {
                xattrs.dedup_by(|a, b| a.0 == b.0);
                let mut seen = std::collections::HashSet::new();
                xattrs.retain(|(name, _)| seen.insert(name.clone()));
                let data = if kind == Kind::File { data } else { vec![] };
                let mut path = path.join(&b'/');
                let link = if matches!(kind, Kind::HardLink | Kind::Symlink) { path.clone() } else { vec![] };
                if kind == Kind::Directory {
                    path.push(b'/');
                }
                let device = if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
                    (device & 0xfff, device)
                } else {
                    (0, 0)
                };
                let entry = Entry {
                    kind,
                    link,
                    mode,
                    uid,
                    gid,
                    mtime,
                    size: data.len() as u64,
                    device,
                    xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
                    ..entry(&path)
                };
                (entry, data)
            })
    }

    fn sparse_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
        prop::collection::vec((0u64..100_000, 1u64..3000), 0..8).prop_map(|gaps| {
            let mut pieces = Vec::new();
            let mut end = 0;
            for (gap, length) in gaps {
                pieces.push((end + gap, length));
                end += gap + length;
            }
            let size: u64 = pieces.iter().map(|piece| piece.1).sum();
            let sparse = Some(Sparse { real_size: end + 512, pieces });
            (Entry { sparse, size, ..entry(b"dir/sparse") }, vec![7; size as usize])
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in prop::collection::vec(prop_oneof![4 => any_entry(), 1 => sparse_entry()], 0..6)) {
            prop_assert_eq!(round_trip(&entries), entries);
        }
    }
}
