//! Somebody inside the tree swaps directories for symlinks that lead out, all the while.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{RenameFlags, renameat2};

use super::tests::{Given, is_root, options, place};
use super::{WhiteoutFormat, unpack};
use crate::layer::testing::{Archive, Block, snapshot};
use crate::sys::path::{Resolver, Root};

/// The names that change places: in the root a directory and a symlink, and the same one level below.
const SWAPS: [(&str, &str, &str); 3] = [("", "d", "out"), ("d", "sub", "out"), ("d/sub", "deep", "out")];

/// Archives, resolvers and formats are gone through so many times.
const ROUNDS: u64 = 120;

/// Opens a directory of the tree. Through a symlink the attacker would attack the outside by himself.
fn open(tree: &Path, name: &str) -> Option<OwnedFd> {
    let name = crate::sys::fs::c_string(name.as_bytes()).unwrap();
    Root::open(tree).unwrap().open_beneath_nofollow(&name, libc::O_DIRECTORY, 0).ok()
}

/// One swap, where both names are there.
fn swap(tree: &Path, which: usize, outside: &Path) -> bool {
    let (parent, a, b) = SWAPS[which % SWAPS.len()];
    let Some(dir) = open(tree, parent) else { return false };
    // Through the descriptor: by its path this could lead out itself, and the attacker would be to blame.
    let own = format!("/proc/self/fd/{}/{b}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let _ = symlink(outside, own);
    renameat2(&dir, a, &dir, b, RenameFlags::RENAME_EXCHANGE).is_ok()
}

/// An archive that is handed out piece by piece, with a swap before each piece.
struct Treacherous<'a> {
    archive: &'a [u8],
    tree: &'a Path,
    outside: &'a Path,
    turn: Cell<u64>,
    swaps: &'a AtomicU64,
}

impl Read for Treacherous<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.archive[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Treacherous<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let turn = self.turn.get();
        // Not every time, or all of it would go astray at the first directory.
        if turn.is_multiple_of(3) && swap(self.tree, (turn / 3) as usize, self.outside) {
            self.swaps.fetch_add(1, Ordering::Relaxed);
        }
        self.turn.set(turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 3);
        Ok(&self.archive[..self.archive.len().min(512)])
    }

    fn consume(&mut self, count: usize) {
        self.archive = &self.archive[count..];
    }
}

/// Everything that an archive can do, below the directories that change places, and with the names that are outside.
fn archive() -> Vec<u8> {
    let mut archive = Archive::new();
    for round in 0..3 {
        for dir in ["d", "d/sub", "d/sub/deep"] {
            let at = |name: &str| format!("{dir}/{name}");
            archive = archive
                .block(Block::new(dir.as_bytes(), b'5').mode(0o2777).owner(9, 9).mtime(9))
                .pax(&[("SCHILY.xattr.user.evil", b"x")])
                .block(Block::new(at("secret").as_bytes(), b'0').mode(0o4777).owner(9, 9).mtime(9).size(4))
                .data(b"evil")
                .symlink(&at(&format!("link{round}")), "/etc/passwd")
                .hard_link(&at(&format!("hard{round}")), &at("secret"))
                .block(Block::new(at("fifo").as_bytes(), b'6').mode(0o777).owner(9, 9).mtime(9))
                .file(&at(".wh.kept"), b"")
                .dir(&at("full"))
                .file(&at("full/file"), b"x")
                .file(&at("full"), b"now a file")
                .file(&at(&format!("implied{round}/file")), b"x");
            if round == 1 {
                archive = archive.file(&at(".wh..wh..opq"), b"");
            }
        }
    }
    archive.end()
}

/// All that can be seen of the outside, and when any of it was last changed in any way.
fn state(outside: &Path) -> (impl PartialEq + std::fmt::Debug, Vec<(i64, i64)>) {
    let changed = ["", "secret", "full", "full/file", "kept", "sub", "sub/deep"].map(|name| {
        let metadata = outside.join(name).symlink_metadata().unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    });
    (snapshot(outside), changed.to_vec())
}

fn attack(whiteouts: WhiteoutFormat, resolver: Resolver, threads: bool) {
    let place = place();
    let outside = place.path().join("outside");
    for dir in ["full", "sub", "sub/deep"] {
        fs::create_dir(outside.join(dir)).unwrap();
    }
    for file in ["full/file", "kept", "sub/kept", "sub/secret", "sub/deep/secret"] {
        fs::write(outside.join(file), "outside").unwrap();
    }
    fs::set_permissions(outside.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = state(&outside);
    let (archive, options) = (archive(), options(whiteouts));
    let swaps = AtomicU64::new(0);
    let (mut done, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let tree = place.path().join(format!("tree{round}"));
        fs::create_dir(&tree).unwrap();
        let stop = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            if threads {
                scope.spawn(|| {
                    for turn in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        if swap(&tree, turn, &outside) {
                            swaps.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let unpacker = scope.spawn(|| {
                let exact = crate::sys::fs::clear_umask_of_this_thread();
                let root = Root::open(&tree).unwrap().with_resolver(resolver);
                if threads {
                    return unpack(&archive[..], root, &options, &Given(None), exact).map(drop);
                }
                let turn = Cell::new(round);
                let archive = Treacherous { archive: &archive, tree: &tree, outside: &outside, turn, swaps: &swaps };
                unpack(archive, root, &options, &Given(None), exact).map(drop)
            });
            let result = unpacker.join();
            stop.store(true, Ordering::Relaxed);
            result.unwrap()
        });
        match result {
            Ok(()) => done += 1,
            // A tree that changes under it is an error of whatever kind.
            Err(_) => refused += 1,
        }
        crate::sys::fs::remove_tree(
            std::os::fd::AsFd::as_fd(&File::open(place.path()).unwrap()),
            format!("tree{round}").as_ref(),
        )
        .unwrap();
    }
    assert_eq!(done + refused, ROUNDS);
    assert!(state(&outside) == before, "{whiteouts:?} {resolver:?}: {:?} was {before:?}", state(&outside));
    // The attack took place. With threads that is for the scheduler to say.
    assert!(threads || swaps.into_inner() > ROUNDS, "{whiteouts:?} {resolver:?}");
}

fn every_way(threads: bool) {
    for whiteouts in [WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUser, WhiteoutFormat::Apply] {
        if whiteouts == WhiteoutFormat::Overlay && !is_root() {
            continue;
        }
        for resolver in [Resolver::Kernel, Resolver::Walk] {
            attack(whiteouts, resolver, threads);
        }
    }
}

#[test]
fn directories_that_turn_into_symlinks_between_entries_lead_nowhere() {
    every_way(false);
}

#[test]
fn directories_that_turn_into_symlinks_at_any_instant_lead_nowhere() {
    every_way(true);
}
