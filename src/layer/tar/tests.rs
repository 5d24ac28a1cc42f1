#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::layer::testing::{Archive, Block, pax_records};

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    read_with(bytes, &Limits::default())
}

fn read_with(bytes: &[u8], limits: &Limits) -> Result<Vec<(Entry, Vec<u8>)>> {
    // Odd pieces, so that headers and data straddle the buffers.
    let mut reader = Reader::new(io::BufReader::with_capacity(333, bytes), limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data).map_err(|error| Error::io("read", "read", error))?;
        entries.push((entry, data));
    }
    Ok(entries)
}

#[track_caller]
fn refused(archive: Archive, kind: ErrorKind, why: &str) {
    let error = read(&archive.end()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn plain_entries() {
    let archive = Archive::new()
        .dir("d/")
        .block(Block::new(b"d/f", b'0').size(3).mode(0o104755).owner(1, 2).mtime(77))
        .data(b"abc")
        .symlink("d/s", "../x")
        .hard_link("d/h", "d/f")
        .block(Block::new(b"c", b'3').device(5, 1))
        .block(Block::new(b"p", b'6'))
        .file("empty", b"")
        .end();
    let entries = read(&archive).unwrap();
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| entry.kind).collect();
    use Kind::*;
    assert_eq!(kinds, [Directory, File, Symlink, HardLink, CharDevice, Fifo, File]);
    let (file, data) = &entries[1];
    assert_eq!((file.mode, file.uid, file.gid, file.mtime.seconds), (0o4755, 1, 2, 77));
    assert_eq!(data, b"abc");
    assert_eq!((entries[2].0.link.as_slice(), entries[4].0.device), (&b"../x"[..], (5, 1)));
    assert_eq!(entries[1].0.offset, 512);
}

#[test]
fn long_names_of_every_kind() {
    let long = "n/".repeat(150) + "file";
    let target = "t/".repeat(150) + "file";
    let archive = Archive::new()
        .block(Block::new(b"././@LongLink", b'L').gnu().size(long.len() as u64 + 1))
        .data(format!("{long}\0").as_bytes())
        .block(Block::new(b"././@LongLink", b'K').gnu().size(target.len() as u64 + 1))
        .data(format!("{target}\0").as_bytes())
        .block(Block::new(b"short", b'2').gnu().link(b"short"))
        .pax(&[("path", long.as_bytes()), ("linkpath", target.as_bytes())])
        .block(Block::new(b"short", b'2').link(b"short"))
        .block(Block::new(b"file", b'0').with(345, b"prefix/of/it"))
        .block(Block::new(b"file", b'0').gnu().with(345, b"as/Go/has/it"))
        .block(Block::new(b"file", b'0').gnu().with(345, b"12345670123\x0012345670123\0"))
        .block(Block::new(b"file", b'0').gnu().with(345, b"12345670123 12345670123 more"))
        .block(Block::new(b"file", b'0').gnu().with(345, b"\x80\0\0\0\0\0\0\0\0\0\0\x05\0"))
        .block(Block::new(b"file", b'0').gnu().with(345, b"not \xff ASCII"))
        .block(Block::new(b"file", b'0').gnu().with(357, b"late"))
        .end();
    let entries = read(&archive).unwrap();
    for (entry, _) in &entries[..2] {
        assert_eq!((entry.path.as_slice(), entry.link.as_slice()), (long.as_bytes(), target.as_bytes()));
    }
    assert_eq!(entries[2].0.path, b"prefix/of/it/file");
    // As Go's reader has them, which every other engine has.
    assert_eq!(entries[3].0.path, b"as/Go/has/it/file");
    for (entry, _) in &entries[4..] {
        assert_eq!(entry.path, b"file");
    }
    let sparse = Block::new(b"a", b'S').gnu().with(345, b"x/y").with(483, b"00000000000\0");
    refused(Archive::new().block(sparse), ErrorKind::Hostile, "sparse");
}

#[test]
fn pax_overrides_what_a_header_cannot_say() {
    let archive = Archive::new()
        .pax(&[
            ("path", b"\xff\xfe"),
            ("uid", b"4000000"),
            ("gid", b"4000001"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.a", b"\0\n="),
            ("SCHILY.xattr.user.empty", b""),
            ("comment", b"any"),
            ("VENDOR.thing", b"any"),
        ])
        .file("short", b"abc")
        .file("next", b"")
        .end();
    let entries = read(&archive).unwrap();
    let entry = &entries[0].0;
    assert_eq!((entry.path.as_slice(), entry.uid, entry.gid), (&b"\xff\xfe"[..], 4_000_000, 4_000_001));
    assert_eq!(entry.mtime, Time { seconds: -2, nanoseconds: 750_000_000 });
    assert_eq!(entry.xattrs[0], (b"user.a".to_vec(), b"\0\n=".to_vec()));
    assert_eq!(entry.xattrs[1], (b"user.empty".to_vec(), b"".to_vec()));
    assert_eq!(entries[1].0.uid, 0);
}

#[test]
fn a_global_header_sets_times_only() {
    let global = |records: &[(&str, &[u8])]| {
        let body = pax_records(records);
        Archive::new().block(Block::new(b"g", b'g').size(body.len() as u64)).data(&body).file("a", b"")
    };
    let entries = read(&global(&[("mtime", b"5"), ("comment", b"x")]).end()).unwrap();
    assert_eq!(entries[0].0.mtime.seconds, 5);
    // Go passes over them, GNU tar obeys them: one sees root's program, the other a user's.
    refused(global(&[("uid", b"0")]), ErrorKind::Hostile, "global header");
    refused(global(&[("gid", b"0")]), ErrorKind::Hostile, "global header");
    refused(global(&[("path", b"x")]), ErrorKind::Hostile, "global header");
    refused(global(&[("size", b"512")]), ErrorKind::Hostile, "global header");
}

/// CVE-2025-62518, CVE-2026-33055: the sizes of PAX and of the plain header disagree, and what one reader takes for data
/// another takes for entries.
#[test]
fn cve_2025_62518_entries_are_not_smuggled_through_a_size() {
    let inner = Archive::new().file("smuggled", b"x");
    let archive = Archive::new()
        .pax(&[("size", inner.0.len().to_string().as_bytes())])
        .block(Block::new(b"outer", b'0').size(0))
        .data(&inner.0);
    refused(archive, ErrorKind::Hostile, "contradicts");
    let archive = Archive::new().pax(&[("size", b"0")]).block(Block::new(b"a", b'0').size(512)).data(&[1; 512]);
    refused(archive, ErrorKind::Hostile, "contradicts");
    // Agreement is fine, and so is a size that the plain field cannot hold.
    assert!(read(&Archive::new().pax(&[("size", b"3")]).file("a", b"abc").end()).is_ok());
    let big = (9u64 << 30).to_string();
    let archive = Archive::new().pax(&[("size", big.as_bytes())]).block(Block::new(b"a", b'0').size(0)).0;
    let mut reader = Reader::new(&archive[..], &Limits::default());
    assert_eq!(reader.next().unwrap().unwrap().size, 9 << 30);
    let archive = Archive::new().pax(&[("size", big.as_bytes())]).block(Block::new(b"a", b'0').size(512));
    refused(archive.data(&[1; 512]), ErrorKind::Hostile, "contradicts");
}

/// GHSA-fp55-jw48-c537 and kin: extended headers that some readers apply to the wrong entry.
#[test]
fn ghsa_fp55_jw48_c537_ambiguous_extended_headers_are_refused() {
    let pax = |name: &[u8]| Archive::new().pax(&[("path", name)]);
    refused(pax(b"a").pax(&[("path", b"b")]).file("c", b""), ErrorKind::Hostile, "two extended headers");
    let long =
        |archive: Archive, name: &[u8]| archive.block(Block::new(b"L", b'L').gnu().size(name.len() as u64)).data(name);
    refused(long(pax(b"a"), b"b\0").file("c", b""), ErrorKind::Hostile, "disagree");
    refused(long(long(Archive::new(), b"a\0"), b"a\0").file("c", b""), ErrorKind::Hostile, "two extended headers");
    refused(long(Archive::new(), b"a\0b\0").file("c", b""), ErrorKind::Hostile, "long name");
    refused(long(Archive::new(), b"\0").file("c", b""), ErrorKind::Hostile, "long name");
    refused(long(Archive::new().pax(&[("size", b"1")]), b"a\0").file("c", b"x"), ErrorKind::Hostile, "unclear");
    refused(pax(b"a"), ErrorKind::Corrupt, "no entry");
    let body = pax_records(&[("uid", b"1")]);
    let global = pax(b"a").block(Block::new(b"g", b'g').size(body.len() as u64)).data(&body).file("c", b"");
    refused(global, ErrorKind::Hostile, "global");
    assert!(read(&long(pax(b"same"), b"same\0").file("c", b"").end()).is_ok());
}

#[test]
fn data_where_none_belongs_is_refused() {
    for flag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let block = Block::new(b"a", flag).link(b"b").size(512);
        refused(Archive::new().block(block).data(&[0; 512]), ErrorKind::Hostile, "has data");
    }
    refused(Archive::new().block(Block::new(b"dir/", 0).size(512)).data(&[0; 512]), ErrorKind::Hostile, "has data");
    for data in [&b""[..], b"x"] {
        refused(Archive::new().file("dir/", data), ErrorKind::Hostile, "readers differ");
    }
    assert_eq!(read(&Archive::new().block(Block::new(b"dir/", 0)).end()).unwrap()[0].0.kind, Kind::Directory);
}

#[test]
fn a_zero_block_hides_nothing() {
    let mut archive = Archive::new().file("a", b"");
    archive.0.extend([0; 512]);
    refused(archive.file("b", b""), ErrorKind::Hostile, "zero block");
    // Two of them are the end, whatever follows.
    let bytes = [Archive::new().file("a", b"").end(), vec![7; 5000]].concat();
    assert_eq!(read(&bytes).unwrap().len(), 1);
    // None or one at the very end is tolerated.
    assert_eq!(read(&Archive::new().file("a", b"").0).unwrap().len(), 1);
    assert_eq!(read(b"").unwrap().len(), 0);
}

#[test]
fn the_last_padding_may_be_missing_as_a_whole() {
    let whole = Archive::new().file("f", b"abc").end();
    let (header_and_data, padded) = (&whole[..515], &whole[..1024]);
    assert_eq!(read(header_and_data).unwrap(), read(padded).unwrap());
    assert!(read(&whole[..600]).is_err(), "a part of it is a cut");
    assert!(read(&whole[..514]).is_err());
}

#[test]
fn cut_archives_and_broken_headers() {
    let whole = Archive::new().file("a", &[1; 700]).0;
    for length in [1, 511, 513, 1100, 1535] {
        assert_eq!(read(&whole[..length]).unwrap_err().kind(), ErrorKind::Corrupt, "{length}");
    }
    let mut broken = whole.clone();
    broken[0] ^= 1;
    assert!(read(&broken).unwrap_err().to_string().contains("checksum"));
    let bend = |at, bytes: &[u8]| Archive::new().block(Block::new(b"a", b'0').with(at, bytes));
    refused(bend(124, b"xyz"), ErrorKind::Corrupt, "size");
    refused(bend(124, &[0xff; 12]), ErrorKind::Corrupt, "size");
    refused(bend(108, &[0xff; 8]), ErrorKind::Corrupt, "uid");
    refused(bend(100, b"9"), ErrorKind::Corrupt, "mode");
    refused(Archive::new().pax(&[("uid", b"4294967295")]).file("a", b""), ErrorKind::Corrupt, "uid");
    refused(Archive::new().block(Block::new(b"a", b'Q')), ErrorKind::Unsupported, "type");
    refused(Archive::new().block(Block::new(b"", b'0')), ErrorKind::Corrupt, "no name");
    refused(Archive::new().block(Block::new(b"a", b'1')), ErrorKind::Corrupt, "link to nothing");
    refused(Archive::new().pax_bytes(b"99 path=x\n").file("a", b""), ErrorKind::Hostile, "length");
}

#[test]
fn limits_are_checked_before_anything_is_allocated() {
    let huge = |flag| Archive::new().block(Block::new(b"x", flag).gnu().size(1 << 33));
    refused(huge(b'x'), ErrorKind::Limit, "pax_bytes");
    refused(huge(b'g'), ErrorKind::Limit, "pax_bytes");
    refused(huge(b'L'), ErrorKind::Limit, "path_length");
    refused(huge(b'K'), ErrorKind::Limit, "path_length");
    refused(Archive::new().pax(&[("path", &[b'a'; 5000])]).file("a", b""), ErrorKind::Limit, "path_length");
    let limits = Limits { entries: 2, bytes: 10_000, xattrs: 1, xattr_bytes: 10, ..Limits::default() };
    let limit = |archive: Archive| read_with(&archive.end(), &limits).unwrap_err();
    let three = Archive::new().file("a", b"").file("b", b"").file("c", b"");
    assert!(limit(three).to_string().contains("entries"));
    assert!(limit(Archive::new().file("a", &[0; 10_000])).to_string().contains("bytes"));
    let two = Archive::new().pax(&[("SCHILY.xattr.a", b""), ("SCHILY.xattr.b", b"")]).file("a", b"");
    assert!(limit(two).to_string().contains("xattrs"));
    let fat = Archive::new().pax(&[("SCHILY.xattr.a", &[0; 20])]).file("a", b"");
    assert!(limit(fat).to_string().contains("xattr_bytes"));
}

fn gnu_sparse(pieces: &[(u64, u64)], stored: u64, real: u64) -> Archive {
    let mut block = Block::new(b"a", b'S').gnu().size(stored).with(483, format!("{real:011o}\0").as_bytes());
    for (at, (offset, length)) in pieces.iter().enumerate() {
        block.put(386 + at * 24, format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    Archive::new().block(block).data(&vec![1; stored as usize])
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    assert!(read(&gnu_sparse(&[(0, 1), (512, 2)], 3, 600).end()).is_ok());
    refused(gnu_sparse(&[(512, 1), (0, 1)], 2, 600), ErrorKind::Corrupt, "backwards");
    refused(gnu_sparse(&[(0, 2), (1, 1)], 3, 600), ErrorKind::Corrupt, "backwards");
    refused(gnu_sparse(&[(0, 3)], 2, 600), ErrorKind::Corrupt, "disagree");
    refused(gnu_sparse(&[(599, 2)], 2, 600), ErrorKind::Corrupt, "end");
    let map = |text: &[u8]| {
        let mut body = text.to_vec();
        body.resize(512, 0);
        Archive::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
            .file("a", &body)
    };
    assert_eq!(read(&map(b"1\n9\n0\n").end()).unwrap()[0].0.sparse.as_ref().unwrap().pieces, [(9, 0)]);
    refused(map(b"999999999999\n"), ErrorKind::Limit, "`sparse_pieces`");
    refused(map(b"1\n2\n"), ErrorKind::Corrupt, "malformed");
    refused(map(b"x\n"), ErrorKind::Corrupt, "malformed");
    refused(map(&[b'1'; 512]), ErrorKind::Corrupt, "range");
    let both = Archive::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1")]);
    let both = Archive([both.0, gnu_sparse(&[(0, 1)], 1, 1).0].concat());
    refused(both, ErrorKind::Hostile, "two ways");
    let named = |more: &[(&str, &[u8])]| {
        let records = [&[("GNU.sparse.name", &b"other"[..]), ("GNU.sparse.realsize", b"9")], more].concat();
        Archive::new().pax(&records).file("a", b"")
    };
    refused(named(&[]), ErrorKind::Hostile, "without a map");
    let nothing_else = Archive::new().pax(&[("GNU.sparse.name", b"other")]).file("a", b"x");
    refused(nothing_else, ErrorKind::Hostile, "without a map");
    let mapped: &[(&str, &[u8])] =
        &[("GNU.sparse.name", b"other"), ("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1")];
    refused(Archive::new().pax(mapped).file("a/", b"x"), ErrorKind::Hostile, "a directory");
    refused(named(&[("GNU.sparse.numblocks", b"0")]), ErrorKind::Hostile, "without a map");
    refused(named(&[("GNU.sparse.major", b"0"), ("GNU.sparse.minor", b"1")]), ErrorKind::Hostile, "without a map");
    for half in ["GNU.sparse.major", "GNU.sparse.minor"] {
        let half = Archive::new().pax(&[(half, b"1"), ("GNU.sparse.realsize", b"9")]).file("a", b"0\n");
        refused(half, ErrorKind::Hostile, "half there");
    }
    refused(named(&[("GNU.sparse.major", b"01"), ("GNU.sparse.minor", b"0")]), ErrorKind::Hostile, "not known");
}

/// GNU tar writes; we read; the system's `tar` says what is right.
#[test]
fn what_gnu_tar_writes_is_read() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir_all(root.join("d")).unwrap();
    let long = "x".repeat(200);
    fs::write(root.join("d").join(&long), "long").unwrap();
    fs::write(root.join("plain"), vec![7; 100_000]).unwrap();
    fs::hard_link(root.join("plain"), root.join("twin")).unwrap();
    std::os::unix::fs::symlink("y".repeat(150), root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    for piece in 0..60u64 {
        std::os::unix::fs::FileExt::write_at(&sparse, b"data", piece * 600_000).unwrap();
    }
    for format in ["gnu", "oldgnu", "posix", "ustar", "v7"] {
        for sparse in [None, Some("0.0"), Some("0.1"), Some("1.0")] {
            if matches!(format, "ustar" | "v7") && sparse.is_some() {
                continue;
            }
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(&root).arg("-cf").arg("-").arg(format!("--format={format}"));
            if let Some(version) = sparse {
                tar.arg("--sparse");
                if format == "posix" {
                    tar.arg(format!("--sparse-version={version}"));
                }
            }
            if matches!(format, "v7" | "ustar") {
                tar.args(["--exclude=d", "--exclude=link"]);
            }
            let output = tar.arg(".").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let entries = read(&output.stdout).unwrap();
            let by_name = |name: &str| entries.iter().find(|(entry, _)| entry.path == format!("./{name}").as_bytes());
            if !matches!(format, "v7" | "ustar") {
                assert_eq!(by_name(&format!("d/{long}")).unwrap().1, b"long");
                assert_eq!(by_name("link").unwrap().0.link, "y".repeat(150).as_bytes());
            }
            let kinds = [by_name("plain").unwrap().0.kind, by_name("twin").unwrap().0.kind];
            assert!(kinds.contains(&Kind::File) && kinds.contains(&Kind::HardLink));
            let (entry, data) = by_name("sparse").unwrap();
            let mut file = vec![0u8; 40 << 20];
            match &entry.sparse {
                None => file.copy_from_slice(data),
                Some(map) => {
                    assert_eq!(map.real_size, 40 << 20);
                    let mut rest = data.as_slice();
                    for (offset, length) in &map.pieces {
                        let (piece, later) = rest.split_at(*length as usize);
                        file[*offset as usize..][..piece.len()].copy_from_slice(piece);
                        rest = later;
                    }
                    assert!(rest.is_empty());
                }
            }
            assert_eq!(entry.sparse.is_some(), sparse.is_some());
            assert!(file == fs::read(root.join("sparse")).unwrap(), "{format} {sparse:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Bytes of a real archive, bent at random: an error or entries, never a panic, and never more than there is.
    #[test]
    fn bent_archives(changes in prop::collection::vec((0usize..6000, any::<u8>()), 0..6), seal in any::<bool>()) {
        let mut bytes = Archive::new()
            .dir("d/")
            .pax(&[("path", b"long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("d/f", &[7; 700])
            .symlink("s", "t")
            .hard_link("h", "d/f")
            .end();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if seal {
                // Make the sum right again, so that the change gets through to the fields.
                let start = at / 512 * 512;
                let block: [u8; 512] = bytes[start..start + 512].try_into().unwrap();
                bytes[start..start + 512].copy_from_slice(&Block(block).seal());
            }
        }
        if let Ok(entries) = read(&bytes) {
            prop_assert!(entries.iter().map(|(_, data)| data.len()).sum::<usize>() <= bytes.len());
        }
    }
}
