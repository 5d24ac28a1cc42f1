//! Tars of arbitrary bytes: what is accepted has the entries that two other readers find too: the tar crate, and one with
//! the rules of Go's. Where two readers disagree, entries can be smuggled past the one that checks to the one that
//! unpacks.
#![no_main]

#[path = "../honest.rs"]
mod honest;
#[path = "../reader.rs"]
mod reader;

use std::io::Read;

use coracle::fuzzing::{TarEntry, read_tar};
use coracle::layer::Limits;
use honest::honest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The bytes in front that seeds have for another target.
    let bytes = &bytes[bytes.len() % 512..];
    let (mut peculiar, mut unlike) = (false, false);
    let tar = honest(bytes, |header| {
        // Magic and version together, as every writer has them; the tar crate looks at both.
        if header[257..].starts_with(b"ustar") {
            let gnu = header[262] == b' ';
            header[257..265].copy_from_slice(if gnu { b"ustar  \0" } else { b"ustar\x0000" });
            // What may be a prefix to Go and to us is none to the tar crate.
            unlike |= gnu && header[345..369].iter().any(|byte| !matches!(byte, 0 | b'0'..=b'7'));
        }
        // These mean something to us and nothing to the tar crate, or the other way round: global headers, Sun's
        // extended headers, extensions without a magic, names with star's shorter prefix.
        let extends = matches!(header[156], b'x' | b'L' | b'K' | b'S');
        peculiar |= matches!(header[156], b'g' | b'X') || extends && !header[257..].starts_with(b"ustar");
        peculiar |= &header[508..512] == b"tar\0";
        // More of a sparse map follows where this is anything; to the tar crate, where it is 1.
        unlike |= header[156] == b'S' && header[482] != 0;
    });
    let limits = Limits { bytes: 1 << 22, entries: 1000, sparse_pieces: 1000, ..Limits::default() };
    let Ok(ours) = read_tar(&tar, &limits) else { return };
    let long = |entry: &TarEntry| entry.sparse.as_ref().is_some_and(|(size, _)| *size > 1 << 24);
    if peculiar || ours.iter().any(long) {
        return;
    }
    like_go(&tar, &ours);
    if unlike {
        return;
    }
    let theirs = match independent(&tar) {
        Ok(theirs) => theirs,
        // An empty field is 0 to others, and no number to it.
        Err(error) if error.to_string().contains("numeric field") => return,
        // It wants a hole at a sparse file's end to be in the map; GNU tar does not.
        Err(error) if error.to_string().contains("sparse") => return,
        Err(error) if error.to_string().contains("several lines") => return,
        Err(error) => panic!("accepted here, and the tar crate says: {error}\n{ours:#?}"),
    };
    assert_eq!(ours.len(), theirs.len(), "{ours:#?}\n{theirs:#?}");
    for (ours, (theirs, is_sparse)) in ours.into_iter().zip(theirs) {
        if is_sparse {
            // PAX sparse files are plain ones with odd names and a map in front, to the tar crate.
            assert!(ours.sparse.is_some() && theirs.data.len() >= ours.data.len());
            continue;
        }
        let (mut ours, mut theirs) = (comparable(ours), theirs);
        // Of these the tar crate reads the plain header's alone.
        (theirs.mtime, theirs.device, theirs.xattrs) = (ours.mtime, ours.device, ours.xattrs.clone());
        assert!(std::mem::take(&mut ours.data) == std::mem::take(&mut theirs.data), "other data: {ours:?}");
        for (ours, theirs) in [(ours.mode, &mut theirs.mode), (ours.uid, &mut theirs.uid), (ours.gid, &mut theirs.gid)]
        {
            if *theirs == UNREAD {
                *theirs = ours;
            }
        }
        assert_eq!(ours, theirs);
    }
});

/// The same with the rules of Go's reader, times, attributes, device numbers and sparse files included.
fn like_go(tar: &[u8], ours: &[TarEntry]) {
    let theirs = match reader::read(tar) {
        Ok(theirs) => theirs,
        Err(error) => panic!("accepted here, and the second reader says: {error}\n{ours:#?}"),
    };
    assert_eq!(ours.len(), theirs.len(), "{ours:#?}\n{theirs:#?}");
    for (ours, mut theirs) in ours.iter().zip(theirs) {
        let mut ours = comparable(ours.clone());
        // Made of records that are no attributes to others.
        ours.xattrs.retain(|(name, _)| !name.starts_with(b"system.posix_acl_"));
        assert!(std::mem::take(&mut ours.data) == std::mem::take(&mut theirs.data), "other data: {ours:?}");
        assert_eq!(ours, theirs);
    }
}

/// A number of which the tar crate can make nothing.
const UNREAD: u32 = u32::MAX;

/// Ours as the other shows it: sparse files with their holes filled.
fn comparable(mut entry: TarEntry) -> TarEntry {
    if let Some((size, pieces)) = entry.sparse.take() {
        let mut data = vec![0; usize::try_from(size).unwrap()];
        let mut rest = &entry.data[..];
        for (offset, length) in pieces {
            let (piece, later) = rest.split_at(length as usize);
            data[offset as usize..][..piece.len()].copy_from_slice(piece);
            rest = later;
        }
        entry.data = data;
    }
    entry
}

/// What the tar crate finds, and whether an entry has records of GNU's sparse files.
fn independent(bytes: &[u8]) -> std::io::Result<Vec<(TarEntry, bool)>> {
    let mut archive = tar::Archive::new(bytes);
    let mut entries = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        // A volume's label.
        if kind.as_byte() == b'V' {
            continue;
        }
        let path = until_nul(&entry.path_bytes());
        let kind = match kind.as_byte() {
            b'0' | 0 if path.ends_with(b"/") => 'd',
            b'0' | b'7' | b'S' | 0 => '-',
            b'1' => 'h',
            b'2' => 'l',
            b'3' => 'c',
            b'4' => 'b',
            b'5' => 'd',
            b'6' => 'p',
            other => char::from(other),
        };
        let is_link = matches!(kind, 'h' | 'l');
        let link = entry.link_name_bytes().filter(|_| is_link).map_or(Vec::new(), |link| until_nul(&link));
        let header = entry.header();
        // Numbers that it cannot read, such as empty fields, say nothing against ours.
        let id = |id: std::io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(UNREAD);
        let (mode, uid, gid) = (header.mode().map_or(UNREAD, |mode| mode & 0o7777), id(header.uid()), id(header.gid()));
        let mut is_sparse = false;
        for record in entry.pax_extensions()?.into_iter().flatten() {
            // It ends records at their first line end, whatever their length says.
            let record = record.map_err(|_| std::io::Error::other("records of several lines"))?;
            is_sparse |= record.key_bytes().starts_with(b"GNU.sparse.");
        }
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        let (mtime, device, xattrs) = ((0, 0), (0, 0), Vec::new());
        let entry = TarEntry { path, kind, link, mode, uid, gid, mtime, device, xattrs, data, sparse: None };
        entries.push((entry, is_sparse));
    }
    Ok(entries)
}

/// A GNU long name may have more than one NUL at its end, of which the tar crate takes one away.
fn until_nul(name: &[u8]) -> Vec<u8> {
    name.iter().copied().take_while(|byte| *byte != 0).collect()
}
