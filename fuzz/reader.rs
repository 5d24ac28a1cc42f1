//! A second reader of tars, written from the formats' descriptions and with the rules of Go's archive/tar, which most
//! tools around containers are built on: the last record of a name counts, an empty one is as good as none, a GNU long
//! name comes before a PAX path. It trusts what it reads and knows no limits; what it cannot read is an error in words.

use std::collections::BTreeMap;

use coracle::fuzzing::TarEntry;

type Said<T> = Result<T, String>;

/// Entries with the holes of sparse files filled; attributes sorted.
pub fn read(tar: &[u8]) -> Said<Vec<TarEntry>> {
    let mut reader = Reader { tar, at: 0 };
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

struct Reader<'a> {
    tar: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Said<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.tar.len()).ok_or("it is cut off")?;
        let taken = &self.tar[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Data and its padding.
    fn body(&mut self, size: u64) -> Said<&'a [u8]> {
        let size = usize::try_from(size).map_err(|_| "too large")?;
        let taken = self.take(size)?;
        self.take(size.next_multiple_of(512) - size)?;
        Ok(taken)
    }

    fn next(&mut self) -> Said<Option<TarEntry>> {
        let (mut long_name, mut long_link) = (None, None);
        let mut pax = BTreeMap::new();
        loop {
            let header = self.take(512)?;
            if header == [0; 512] {
                return Ok(None);
            }
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' => pax = records(self.body(size as u64)?)?,
                b'L' => long_name = Some(text(self.body(size as u64)?)),
                b'K' => long_link = Some(text(self.body(size as u64)?)),
                b'V' => {}
                _ => return self.entry(header, &pax, long_name, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &[u8],
        pax: &BTreeMap<Vec<u8>, Vec<u8>>,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Said<TarEntry> {
        let said = |key: &str| pax.get(key.as_bytes()).filter(|value| !value.is_empty());
        let decimal = |key: &str| said(key).map(|value| digits(value)).transpose();
        let is_gnu = &header[257..265] == b"ustar  \0";
        let is_posix = &header[257..263] == b"ustar\0";
        // Other dialects, which this does not read.
        if header[257..].starts_with(b"ustar") && !is_gnu && !is_posix || &header[508..512] == b"tar\0" {
            return Err("an odd dialect".into());
        }
        let mut path = text(&header[..100]);
        if is_posix && header[345] != 0 {
            path = [&text(&header[345..500]), &b"/"[..], &path].concat();
        }
        // Where the times of access and change are no numbers, an old writer's prefix stands in their place.
        let no_time = |field: &[u8]| field[0] != 0 && number(field).is_err();
        if is_gnu && (no_time(&header[345..357]) || no_time(&header[357..369])) {
            let prefix = text(&header[345..500]);
            if prefix.is_ascii() && !prefix.is_empty() {
                path = [&prefix, &b"/"[..], &path].concat();
            }
        }
        path = long_name.or_else(|| said("path").cloned()).unwrap_or(path);
        let link = long_link.or_else(|| said("linkpath").cloned()).unwrap_or_else(|| text(&header[157..257]));
        let flag = header[156];
        let kind = match flag {
            0 | b'0' if path.ends_with(b"/") => 'd',
            0 | b'0' | b'7' | b'S' => '-',
            b'1' => 'h',
            b'2' => 'l',
            b'3' => 'c',
            b'4' => 'b',
            b'5' => 'd',
            b'6' => 'p',
            other => return Err(format!("type {other}")),
        };
        let device = match kind {
            'c' | 'b' if is_gnu || is_posix => (number(&header[329..337])? as u32, number(&header[337..345])? as u32),
            _ => (0, 0),
        };
        let size = decimal("size")?.map_or_else(|| number(&header[124..136]).map(|size| size as u64), Ok)?;
        let mtime = match said("mtime") {
            Some(value) => time(value)?,
            None => (number(&header[136..148])? as i64, 0),
        };
        let id = |key: &str, field| decimal(key)?.map_or_else(|| number(field).map(|id| id as u64), Ok);
        let (uid, gid) = (id("uid", &header[108..116])? as u32, id("gid", &header[116..124])? as u32);
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in pax {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                xattrs.push((name.to_vec(), value.clone()));
            }
        }
        let mut data = Vec::new();
        if flag == b'S' {
            if !is_gnu {
                return Err("sparse without being GNU's".into());
            }
            let mut pieces = Vec::new();
            old_map(&header[386..482], &mut pieces)?;
            let mut more = header[482] != 0;
            while more {
                let block = self.take(512)?;
                old_map(&block[..504], &mut pieces)?;
                more = block[504] != 0;
            }
            let real_size = number(&header[483..495])? as u64;
            data = filled(self.body(size)?, &pieces, real_size)?;
        } else if kind == '-' {
            let stored = self.body(size)?;
            let version = (said("GNU.sparse.major").cloned(), said("GNU.sparse.minor").cloned());
            let real_size = decimal("GNU.sparse.realsize")?.or(decimal("GNU.sparse.size")?);
            let pieces = match version {
                (Some(major), Some(minor)) if (&major[..], &minor[..]) == (b"1", b"0") => Some(new_map(stored)?),
                (None, None) | (Some(_), Some(_)) if said("GNU.sparse.map").is_some() => {
                    let map = said("GNU.sparse.map").map_or(&[][..], |map| map);
                    let numbers: Vec<u64> = map.split(|byte| *byte == b',').map(digits).collect::<Said<_>>()?;
                    Some((stored, numbers.as_chunks::<2>().0.iter().map(|pair| (pair[0], pair[1])).collect()))
                }
                _ => None,
            };
            data = match pieces {
                Some((stored, pieces)) => {
                    path = said("GNU.sparse.name").cloned().unwrap_or(path);
                    filled(stored, &pieces, real_size.unwrap_or(size))?
                }
                // No piece at all leaves no map in the oldest form.
                None => match real_size {
                    Some(real_size) if stored.is_empty() => {
                        path = said("GNU.sparse.name").cloned().unwrap_or(path);
                        filled(stored, &[], real_size)?
                    }
                    _ => stored.to_vec(),
                },
            };
        }
        let link = if matches!(kind, 'h' | 'l') { link } else { Vec::new() };
        let mode = number(&header[100..108])? as u32 & 0o7777;
        Ok(TarEntry { path, kind, link, mode, uid, gid, mtime, device, xattrs, data, sparse: None })
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// Octal digits with spaces or NULs around, or a large number with the first bit set.
fn number(field: &[u8]) -> Said<i128> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 { byte & 0x7f | if negative { 0x80 } else { 0 } } else { *byte };
            value = value.checked_mul(256).ok_or("a number is too large")? | i128::from(byte);
        }
        return Ok(value);
    }
    let around = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !around(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !around(byte)).map_or(start, |last| last + 1);
    text(&field[start..end]).iter().try_fold(0i128, |value, byte| match byte {
        b'0'..=b'7' => Ok(value * 8 + i128::from(byte - b'0')),
        _ => Err(format!("numeric field {field:?}")),
    })
}

fn digits(value: &[u8]) -> Said<u64> {
    str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| format!("the number {value:?}"))
}

/// Seconds with a fraction, of which nine digits count, rounded towards the past.
fn time(value: &[u8]) -> Said<(i64, u32)> {
    let value = str::from_utf8(value).map_err(|_| "a time that is no text")?;
    let (seconds, fraction) = value.split_once('.').unwrap_or((value, ""));
    let whole: i64 = seconds.parse().map_err(|_| format!("the time {value}"))?;
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = nine.parse().map_err(|_| format!("the time {value}"))?;
    match seconds.starts_with('-') && nanoseconds > 0 {
        true => Ok((whole - 1, 1_000_000_000 - nanoseconds)),
        false => Ok((whole, nanoseconds)),
    }
}

/// `length key=value\n`, over and over. Offsets and lengths of GNU's oldest sparse maps come one by one.
fn records(mut bytes: &[u8]) -> Said<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    let mut map: Vec<Vec<u8>> = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or("a record without a length")?;
        let length = usize::try_from(digits(&bytes[..space])?).map_err(|_| "a record is too long")?;
        let record = bytes.get(space + 1..length).ok_or("a record is too long")?;
        bytes = &bytes[length..];
        let record = record.strip_suffix(b"\n").ok_or("a record without an end")?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or("a record without a value")?;
        let (key, value) = (record[..equals].to_vec(), record[equals + 1..].to_vec());
        match &key[..] {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => map.push(value),
            _ => drop(records.insert(key, value)),
        }
    }
    if !map.is_empty() {
        records.insert(b"GNU.sparse.map".to_vec(), map.join(&b','));
    }
    Ok(records)
}

type Pieces = Vec<(u64, u64)>;

fn old_map(field: &[u8], pieces: &mut Pieces) -> Said<()> {
    for piece in field.as_chunks::<24>().0 {
        if piece[0] == 0 {
            break;
        }
        pieces.push((number(&piece[..12])? as u64, number(&piece[12..])? as u64));
    }
    Ok(())
}

/// The map in front of the data: a count and numbers, one a line, filled up to whole blocks.
fn new_map(stored: &[u8]) -> Said<(&[u8], Pieces)> {
    let mut at = 0;
    let mut line = || {
        let length = stored.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n')).ok_or("no map")?;
        let value = digits(&stored[at..at + length])?;
        at += length + 1;
        Said::Ok(value)
    };
    let count = line()?;
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push((line()?, line()?));
    }
    Ok((stored.get(at.next_multiple_of(512)..).ok_or("the map is cut off")?, pieces))
}

fn filled(stored: &[u8], pieces: &[(u64, u64)], real_size: u64) -> Said<Vec<u8>> {
    let mut data = vec![0; usize::try_from(real_size).map_err(|_| "too large")?];
    let mut rest = stored;
    for (offset, length) in pieces {
        let (piece, later) = rest.split_at_checked(*length as usize).ok_or("pieces without data")?;
        let place = data.get_mut(*offset as usize..).and_then(|data| data.get_mut(..piece.len()));
        place.ok_or("pieces beyond the end")?.copy_from_slice(piece);
        rest = later;
    }
    Ok(data)
}
