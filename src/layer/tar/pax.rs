//! The records of a PAX header: `<length> <key>=<value>\n`, see pax(1), "pax Extended Header".

use std::collections::HashMap;

use super::header::Why;
use super::sparse::Pieces;
use crate::layer::acl;
use crate::sys::fs::Time;

/// What the records say, as far as this crate uses it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
    /// Access control lists as text, in the order of [`ACLS`]; empty once the header is read.
    acls: [Option<Vec<u8>>; 2],
}

/// The records of GNU tar's three ways to describe a sparse file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) version: Option<(u64, u64)>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) count: Option<u64>,
    pub(super) map: Option<Pieces>,
}

impl SparseRecords {
    pub(super) fn is_any(&self) -> bool {
        *self != SparseRecords::default()
    }
}

const XATTR: &[u8] = b"SCHILY.xattr.";

/// A record that holds an access control list, and the attribute that it becomes.
struct Acl {
    record: &'static [u8],
    attribute: &'static [u8],
}

const ACLS: [Acl; 2] = [
    Acl { record: b"SCHILY.acl.access", attribute: b"system.posix_acl_access" },
    Acl { record: b"SCHILY.acl.default", attribute: b"system.posix_acl_default" },
];

/// Key, value, and what follows.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits off the first record.
fn record(bytes: &[u8]) -> Result<Record<'_>, Why> {
    let malformed = || "a record is malformed".to_owned();
    let space = bytes.iter().take(12).position(|byte| *byte == b' ').ok_or_else(malformed)?;
    let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| malformed())?;
    if length <= space + 1 || length > bytes.len() {
        return Err("a record's length does not fit".into());
    }
    let (record, rest) = bytes.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) || key.contains(&b'\n') {
        return Err("a record's key is malformed".into());
    }
    Ok((key, value, rest))
}

/// Digits only: no sign, no space.
fn decimal(digits: &[u8]) -> Result<u64, Why> {
    if digits.is_empty() {
        return Err("a number is missing".into());
    }
    digits.iter().try_fold(0u64, |value, digit| {
        if !digit.is_ascii_digit() {
            return Err(format!("{:?} is not a number", String::from_utf8_lossy(digits)));
        }
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or_else(|| "a number is out of range".to_owned())
    })
}

/// Seconds with an optional sign and fraction. What is finer than a nanosecond is cut off towards the past, so that
/// `-0.5` is half a second before 1970.
fn time(text: &[u8]) -> Result<Time, Why> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| "a time is out of range")?;
    let mut nanoseconds = 0u32;
    let mut finer = false;
    for (at, digit) in fraction.iter().enumerate() {
        if !digit.is_ascii_digit() {
            return Err("a time is not a number".into());
        }
        match at {
            0..9 => nanoseconds += u32::from(digit - b'0') * 10u32.pow(8 - at as u32),
            _ => finer |= *digit != b'0',
        }
    }
    if !negative {
        return Ok(Time { seconds, nanoseconds });
    }
    nanoseconds += u32::from(finer);
    Ok(match nanoseconds {
        0 => Time { seconds: -seconds, nanoseconds: 0 },
        _ => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Sets `slot`, unless another record has set it to something else.
fn once<T: PartialEq>(slot: &mut Option<T>, value: T, key: &[u8]) -> Result<(), Why> {
    match slot {
        Some(before) if *before != value => {
            Err(format!("the record {:?} stands there twice and disagrees", String::from_utf8_lossy(key)))
        }
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn path(value: &[u8]) -> Result<Vec<u8>, Why> {
    if value.contains(&0) { Err("a path contains NUL".into()) } else { Ok(value.to_vec()) }
}

/// Records that override what the plain header says, and access control lists.
const NAMED: [&[u8]; 8] = [b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", ACLS[0].record, ACLS[1].record];

impl Pax {
    /// Whether one of the [`NAMED`] has a value.
    fn says(&self, key: &[u8]) -> bool {
        match key {
            b"path" => self.path.is_some(),
            b"linkpath" => self.link_path.is_some(),
            b"size" => self.size.is_some(),
            b"uid" => self.uid.is_some(),
            b"gid" => self.gid.is_some(),
            b"mtime" => self.mtime.is_some(),
            _ => ACLS.iter().zip(&self.acls).any(|(acl, text)| acl.record == key && text.is_some()),
        }
    }

    /// Reads all records of one header. An empty value means that the plain header counts.
    ///
    /// Keys that nobody here knows are passed over, as POSIX asks, except in namespaces that change where an entry's
    /// data ends.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Pax, Why> {
        let mut pax = Pax::default();
        // GNU sparse 0.0 gives each piece as two records.
        let mut offset = None;
        // Keys that stand there with nothing.
        let mut empty: Vec<&[u8]> = Vec::new();
        let (mut major, mut minor) = (None, None);
        // Attributes by name: there may be tens of thousands before anybody counts them.
        let mut attributes: HashMap<&[u8], &[u8]> = HashMap::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            bytes = rest;
            if value.is_empty() && !key.starts_with(XATTR) {
                if key.starts_with(b"GNU.sparse.") {
                    return Err("the sparse map is malformed".into());
                }
                if NAMED.contains(&key) && !empty.contains(&key) {
                    empty.push(key);
                }
                continue;
            }
            match key {
                b"path" => once(&mut pax.path, path(value)?, key)?,
                b"linkpath" => once(&mut pax.link_path, path(value)?, key)?,
                b"size" => once(&mut pax.size, decimal(value)?, key)?,
                b"uid" => once(&mut pax.uid, decimal(value)?, key)?,
                b"gid" => once(&mut pax.gid, decimal(value)?, key)?,
                b"mtime" => once(&mut pax.mtime, time(value)?, key)?,
                // A text to Go, to which 01 is no 1.
                b"GNU.sparse.major" | b"GNU.sparse.minor" if value.len() > 1 => {
                    return Err("the version of the sparse format is not known".into());
                }
                b"GNU.sparse.major" => once(&mut major, decimal(value)?, key)?,
                b"GNU.sparse.minor" => once(&mut minor, decimal(value)?, key)?,
                b"GNU.sparse.name" => once(&mut pax.sparse.name, path(value)?, key)?,
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                    once(&mut pax.sparse.real_size, decimal(value)?, key)?;
                }
                b"GNU.sparse.numblocks" => once(&mut pax.sparse.count, decimal(value)?, key)?,
                b"GNU.sparse.offset" => {
                    if offset.replace(decimal(value)?).is_some() {
                        return Err("the sparse map is malformed".into());
                    }
                }
                b"GNU.sparse.numbytes" => {
                    let offset = offset.take().ok_or("the sparse map is malformed")?;
                    pax.sparse.map.get_or_insert_default().push((offset, decimal(value)?));
                }
                b"GNU.sparse.map" => {
                    let numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
                    let (pairs, []) = numbers.as_chunks::<2>() else {
                        return Err("the sparse map is malformed".into());
                    };
                    once(&mut pax.sparse.map, pairs.iter().map(|pair| (pair[0], pair[1])).collect(), key)?;
                }
                key if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" || key == b"GNU.dumpdir" => {
                    return Err(format!("the record {:?} is not understood", String::from_utf8_lossy(key)));
                }
                b"SCHILY.acl.access" => once(&mut pax.acls[0], value.to_vec(), key)?,
                b"SCHILY.acl.default" => once(&mut pax.acls[1], value.to_vec(), key)?,
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        match attributes.insert(name, value) {
                            Some(before) if before != value => {
                                return Err(format!(
                                    "the attribute {:?} stands there twice and disagrees",
                                    String::from_utf8_lossy(name)
                                ));
                            }
                            Some(_) => {}
                            None if name.is_empty() => return Err("an attribute has no name".into()),
                            None => pax.xattrs.push((name.to_vec(), value.to_vec())),
                        }
                    }
                }
            }
        }
        if offset.is_some() {
            return Err("the sparse map is malformed".into());
        }
        pax.sparse.version = match (major, minor) {
            (Some(major), Some(minor)) => Some((major, minor)),
            (None, None) => None,
            // A map of the version that is half there to GNU tar, a file's own bytes to Go.
            _ => return Err("the version of the sparse format is only half there".into()),
        };
        // Go lets the last record count, GNU tar the last with a value.
        if let Some(key) = empty.iter().find(|key| pax.says(key)) {
            return Err(format!("the record {:?} stands there with and without a value", String::from_utf8_lossy(key)));
        }
        for (name, text) in ACLS.into_iter().zip(std::mem::take(&mut pax.acls)) {
            let Some(text) = text else { continue };
            // Where the attribute itself stands there too, it is exact.
            if pax.xattrs.iter().any(|(known, _)| known == name.attribute) {
                continue;
            }
            // A list that cannot be understood is left to the kernel under the record's own name, which it refuses; so
            // it is counted as left out.
            let understood = acl::from_text(&text).map(|value| (name.attribute.to_vec(), value));
            pax.xattrs.push(understood.unwrap_or((name.record.to_vec(), text)));
        }
        Ok(pax)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records() {
        let pax = Pax::parse(b"12 path=abc\n15 mtime=1.500\n13 comment=x\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(pax.mtime, Some(Time { seconds: 1, nanoseconds: 500_000_000 }));
        let pax = Pax::parse(b"27 SCHILY.xattr.user.a=b\nc\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"b\nc".to_vec())]);
        assert_eq!(Pax::parse(b"7 uid=\n7 uid=\n").unwrap(), Pax::default());
    }

    #[test]
    fn malformed_records() {
        for bad in [
            &b"x"[..],
            b"0 ",
            b"3 a\n",
            b"99 path=abc\n",
            b"11 path=abc\n",
            b"12 path=abcd",
            b"+2 path=abc\n",
            b"-12 path=abc\n",
            b" 12 path=abc\n",
            b"12 path=a\0c\n",
            b"99999999999999999999 path=abc\n",
            b"12 path=abc\n12 path=abd\n",
            b"11 size=-1\n",
            b"11 size= 1\n",
            b"11 size=1x\n",
            b"4 =\n",
            b"23 GNU.sparse.offset=1\n",
            b"24 GNU.sparse.unheard=1\n",
            b"18 GNU.sparse.map=\n",
            b"7 uid=\n8 uid=0\n",
            b"8 uid=0\n7 uid=\n",
            b"12 path=abc\n8 path=\n",
            b"22 GNU.sparse.major=1\n22 GNU.sparse.major=0\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    /// Looking each up among those before took minutes.
    #[test]
    fn many_attributes_are_read_in_time() {
        let mut bytes = Vec::new();
        for number in 0..200_000 {
            bytes.extend(format!("24 SCHILY.xattr.{number:06}=\n").as_bytes());
        }
        let before = std::time::Instant::now();
        assert_eq!(Pax::parse(&bytes).unwrap().xattrs.len(), 200_000);
        assert!(before.elapsed() < std::time::Duration::from_secs(20), "{:?}", before.elapsed());
    }

    #[test]
    fn times_before_1970() {
        assert_eq!(time(b"-0.5").unwrap(), Time { seconds: -1, nanoseconds: 500_000_000 });
        assert_eq!(time(b"-3").unwrap(), Time { seconds: -3, nanoseconds: 0 });
        assert_eq!(time(b"1.0000000019").unwrap(), Time { seconds: 1, nanoseconds: 1 });
        assert_eq!(time(b"-1.0000000001").unwrap(), Time { seconds: -2, nanoseconds: 999_999_999 });
        assert!(time(b"").is_err() && time(b".5").is_err() && time(b"1.x").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&bytes);
        }
    }
}
