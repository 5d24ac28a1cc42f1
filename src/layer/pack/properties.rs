//! Random trees and random pairs of trees: what is packed and unpacked again is the same.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proptest::prelude::*;

use super::*;
use crate::layer::testing::{Scratch, snapshot};
use crate::layer::unpack::unpack;
use crate::layer::{Below, LayerOptions, Limits, WhiteoutFormat};
use crate::sys::fs::{Time, c_string, lchownat, lutimensat};
use crate::sys::xattr;

/// One change to a tree: what to do, and numbers that choose where and how.
type Step = (u8, u16, u16, u32);

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0u8..22, any::<u16>(), any::<u16>(), any::<u32>()), 0..most)
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"a-b",
    b"\xff\xfe",
    b"new\nline",
    b" ",
    b"-x",
    b"...",
    "\u{e9}\u{4e2d}".as_bytes(),
    &[b'n'; 255],
    b"PaxHeaders.0",
];

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// All paths below `root`, directories first.
fn paths(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let mut dirs = vec![root.to_owned()];
    let mut others = Vec::new();
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let (more, rest): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|path| path.symlink_metadata().unwrap().is_dir());
        dirs.extend(more);
        others.extend(rest);
        next += 1;
    }
    (dirs, others)
}

/// Makes the changes that make sense; the others are passed over.
fn change(root: &Path, steps: &[Step]) {
    for (what, a, b, c) in steps {
        let (dirs, others) = paths(root);
        let dir = &dirs[*a as usize % dirs.len()];
        let new = dir.join(OsStr::from_bytes(NAMES[*b as usize % NAMES.len()]));
        let pick = |list: &[PathBuf]| (!list.is_empty()).then(|| list[*a as usize % list.len()].clone());
        let any = pick(&[&dirs[1..], &others].concat());
        let file = pick(&others).filter(|path| path.symlink_metadata().unwrap().is_file());
        // Opening a FIFO would wait for ever.
        if *what <= 12 && new.symlink_metadata().is_ok() {
            continue;
        }
        // What cannot be is no change.
        let _ = match what {
            0..=2 => fs::create_dir(&new),
            3..=6 => fs::write(&new, c.to_string().repeat(*c as usize % 900)),
            7 => File::create(&new).and_then(|file| {
                file.write_all_at(b"data", u64::from(*c % 2_000_000))?;
                file.set_len(u64::from(*c % 3_000_000))
            }),
            8 => symlink(OsStr::from_bytes(&NAMES[*c as usize % NAMES.len()].repeat(*c as usize % 8 + 1)), &new),
            9 | 10 => pick(&others).map_or(Ok(()), |old| fs::hard_link(old, &new)),
            11 => mknod(&new, SFlag::S_IFIFO, Mode::from_bits_truncate(c & 0o777), 0).map_err(io::Error::from),
            12 if is_root() => {
                let device = makedev(u64::from(c % 300), u64::from(c % 70_000) + 1);
                mknod(&new, SFlag::S_IFBLK, Mode::from_bits_truncate(c & 0o777), device).map_err(io::Error::from)
            }
            13 => any.filter(|path| !path.symlink_metadata().unwrap().is_symlink()).map_or(Ok(()), |path| {
                // Without root, a mode can shut its owner out.
                let least = if is_root() { 0 } else { 0o700 };
                fs::set_permissions(path, fs::Permissions::from_mode(c & 0o7777 | least))
            }),
            14 => any.map_or(Ok(()), |path| {
                let time = Time { seconds: i64::from(*c) - (1 << 31), nanoseconds: *c % 1_000_000_000 };
                let parent = File::open(path.parent().unwrap()).unwrap();
                lutimensat(parent.as_fd(), &c_string(path.file_name().unwrap().as_bytes()).unwrap(), time)
            }),
            15 => file.or(pick(&dirs[1..])).map_or(Ok(()), |path| {
                let value = vec![0xa5; *c as usize % 300];
                let open = File::open(path)?;
                xattr::set(open.as_fd(), [c"user.a", c"user.a longer name", c"user.c"][*b as usize % 3], &value)
            }),
            16 if is_root() => file.map_or(Ok(()), |path| {
                let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                xattr::set(File::open(path)?.as_fd(), c"security.capability", &value)
            }),
            17 => file.or(pick(&dirs[1..])).map_or(Ok(()), |path| {
                // Owner, one user more, group, mask, others.
                let mut acl = 2u32.to_le_bytes().to_vec();
                for (tag, rights, id) in
                    [(1u16, 7u16, u32::MAX), (2, 5, c % 1000), (4, 4, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
                {
                    acl.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
                    acl.extend(id.to_le_bytes());
                }
                xattr::set(File::open(path)?.as_fd(), c"system.posix_acl_access", &acl)
            }),
            18 if is_root() => any.map_or(Ok(()), |path| {
                let parent = File::open(path.parent().unwrap()).unwrap();
                let name = c_string(path.file_name().unwrap().as_bytes()).unwrap();
                lchownat(parent.as_fd(), &name, c % 3_000_000, c % 70_000)
            }),
            19 => any.map_or(Ok(()), |path| match path.symlink_metadata().unwrap().is_dir() {
                true => fs::remove_dir_all(path),
                false => fs::remove_file(path),
            }),
            20 => any.filter(|path| !new.starts_with(path)).map_or(Ok(()), |path| fs::rename(path, &new)),
            _ => file.map_or(Ok(()), |path| fs::write(path, c.to_string())),
        };
    }
}

struct Given(Option<View>);

impl Below for Given {
    fn view(&self) -> Result<Option<&View>> {
        Ok(self.0.as_ref())
    }
}

fn unpacked(tar: &[u8], tree: &Path, whiteouts: WhiteoutFormat, below: Option<&Path>) {
    unpacked_within(tar, tree, whiteouts, below, Limits::default());
}

fn unpacked_within(tar: &[u8], tree: &Path, whiteouts: WhiteoutFormat, below: Option<&Path>, limits: Limits) {
    let options = LayerOptions { whiteouts, limits, ..LayerOptions::default() };
    let below = Given(below.map(|below| View::new([below], WhiteoutFormat::OverlayUser).unwrap()));
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let exact = crate::sys::fs::clear_umask_of_this_thread();
            unpack(tar, crate::sys::path::Root::open(tree).unwrap(), &options, &below, exact).map(drop)
        });
        work.join().unwrap().unwrap();
    });
}

fn packed(source: PackSource<'_>) -> Vec<u8> {
    let mut tar = Vec::new();
    pack(source, &PackOptions::default(), &mut tar).unwrap();
    tar
}

/// What is below the root: whose own times are of no tree's making.
fn looks(tree: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = snapshot(tree);
    found.remove(&b""[..]);
    found
}

fn place() -> (Scratch, impl Fn(&str) -> PathBuf) {
    let scratch = Scratch::new();
    let root = scratch.path().to_owned();
    let at = move |name: &str| {
        let dir = root.join(name);
        let _ = fs::create_dir(&dir);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        dir
    };
    (scratch, at)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_tree_comes_back_as_it_was(steps in steps(60)) {
        let (_scratch, at) = place();
        let (tree, again) = (at("tree"), at("again"));
        change(&tree, &steps);
        let before = looks(&tree);
        let tar = packed(PackSource::Directory(&tree));
        unpacked(&tar, &again, WhiteoutFormat::OverlayUser, None);
        prop_assert_eq!(looks(&again), before);
        prop_assert!(packed(PackSource::Directory(&again)) == tar);
    }

    /// With a tight limit: either it is refused here, or whoever has the same limits takes it.
    #[test]
    fn what_is_packed_is_taken_back(steps in steps(60), which in 0..7, size in 0usize..20) {
        let mut limits = Limits::default();
        match which {
            0 => limits.entries = size as u64,
            1 => limits.path_length = 30 * size,
            2 => limits.depth = size / 2,
            3 => limits.xattrs = size / 4,
            4 => limits.xattr_bytes = 20 * size,
            5 => limits.sparse_pieces = size / 4,
            _ => limits.bytes = 1 << (8 + size),
        }
        let (_scratch, at) = place();
        let (tree, again) = (at("tree"), at("again"));
        change(&tree, &steps);
        let options = PackOptions { limits: limits.clone(), ..PackOptions::default() };
        let mut tar = Vec::new();
        match pack(PackSource::Directory(&tree), &options, &mut tar) {
            Ok(_) => unpacked_within(&tar, &again, WhiteoutFormat::OverlayUser, None, limits),
            Err(error) => prop_assert_eq!(error.kind(), crate::ErrorKind::Limit, "{}", error),
        }
    }

    #[test]
    fn a_difference_leads_from_one_tree_to_the_other(first in steps(40), then in steps(30)) {
        let (_scratch, at) = place();
        let (tree, base, copy, upper) = (at("tree"), at("base"), at("copy"), at("upper"));
        change(&base, &first);
        let all = packed(PackSource::Directory(&base));
        for target in [&tree, &copy] {
            unpacked(&all, target, WhiteoutFormat::OverlayUser, None);
        }
        let below = View::new([&base], WhiteoutFormat::OverlayUser).unwrap();
        let untouched = PackSource::Tree { tree: &tree, below: &below };
        prop_assert_eq!(packed(untouched).len(), 1024);
        change(&tree, &then);
        let source = PackSource::Tree { tree: &tree, below: &below };
        let difference = packed(source);
        unpacked(&difference, &copy, WhiteoutFormat::Apply, None);
        prop_assert_eq!(looks(&copy), looks(&tree));
        // The same as an upper directory, as overlay would have made it.
        unpacked(&difference, &upper, WhiteoutFormat::OverlayUser, Some(&base));
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).unwrap();
        let source = PackSource::Upper { upper: &upper, below: &below };
        prop_assert!(packed(source) == difference);
    }
}

#[test]
fn paths_of_four_kibibytes_and_long_targets_come_back() {
    let (_scratch, at) = place();
    let (tree, again) = (at("tree"), at("again"));
    // Made step by step: the whole path is longer than one call takes.
    let mut dir = std::os::fd::OwnedFd::from(File::open(&tree).unwrap());
    let name = c_string(&[b'd'; 255]).unwrap();
    for _ in 0..15 {
        crate::sys::fs::mkdirat(dir.as_fd(), &name, 0o755).unwrap();
        dir = crate::sys::fs::open_dir(dir.as_fd(), &name).unwrap();
    }
    let last = c_string(&[b'l'; 255]).unwrap();
    let target = c_string(&[b't'; 4095]).unwrap();
    crate::sys::fs::symlinkat(&target, dir.as_fd(), &last).unwrap();
    let tar = packed(PackSource::Directory(&tree));
    unpacked(&tar, &again, WhiteoutFormat::OverlayUser, None);
    assert!(packed(PackSource::Directory(&again)) == tar);
    let mut reader = crate::layer::tar::Reader::new(tar.as_slice(), &crate::layer::Limits::default());
    let entries: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
    assert_eq!((entries[15].path.len(), entries[15].link.len()), (4095, 4095));
}
