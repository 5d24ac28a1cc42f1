//! What few tars have, and all may.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::tests::{Nobody, is_root, options, place, set_xattr, unpack_at, whiteouts};
use super::*;
use crate::layer::testing::{ACL, Archive, Block, Scratch, snapshot};
use crate::sys::fs::{c_string, fstat, open_handle};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

#[test]
fn access_control_lists_survive_gnu_tar_and_the_attributes_of_others() {
    if !is_root() {
        return;
    }
    let source = Scratch::new();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/before"), "x").unwrap();
    fs::write(source.path().join("f"), "x").unwrap();
    set_xattr(&source.path().join("f"), ACCESS, ACL);
    set_xattr(&source.path().join("d"), ACCESS, ACL);
    set_xattr(&source.path().join("d"), DEFAULT, ACL);
    let expected = snapshot(source.path());
    assert!(expected[&b"d"[..]].contains(DEFAULT));
    let options_of_tar = ["--format=posix", "--acls", "--numeric-owner", "-cf", "-", "-C"];
    let output = Command::new("tar").args(options_of_tar).arg(source.path()).arg(".").output().unwrap();
    assert!(output.status.success() && output.stdout.windows(17).any(|bytes| bytes == b"SCHILY.acl.access"));
    let place = place();
    let (unpacked, _) = unpack_at(&place.path().join("tree"), &output.stdout, &options(whiteouts()), &[]).unwrap();
    assert_eq!(unpacked.skipped, []);
    let mut actual = snapshot(&place.path().join("tree"));
    // The directory above was made by the test.
    actual.insert(Vec::new(), expected[&Vec::new()].clone());
    assert_eq!(actual, expected);
    // As umoci and Go's tools write it.
    let key = format!("SCHILY.xattr.{ACCESS}");
    let both = Archive::new().pax(&[(&key, ACL), ("SCHILY.acl.access", b"user::rwx")]);
    let archive = both.block(Block::new(b"f", b'0').mode(0o640)).end();
    let place = self::place();
    unpack_at(&place.path().join("tree"), &archive, &options(whiteouts()), &[]).unwrap();
    let handle = fs::File::open(place.path().join("tree/f")).unwrap();
    assert_eq!(crate::sys::xattr::get(handle.as_fd(), c"system.posix_acl_access").unwrap().unwrap(), ACL);
}

/// A list whose mask and mode disagree: the mode is the entry's, of files and directories alike.
#[test]
fn access_control_lists_leave_the_mode() {
    if !is_root() {
        return;
    }
    let key = format!("SCHILY.xattr.{ACCESS}");
    let archive = Archive::new().pax(&[(&key, ACL)]).dir("d").pax(&[(&key, ACL)]);
    let archive = archive.block(Block::new(b"f", b'0').mode(0o755)).end();
    let place = place();
    unpack_at(&place.path().join("tree"), &archive, &options(whiteouts()), &[]).unwrap();
    for name in ["d", "f"] {
        assert_eq!(place.path().join("tree").join(name).metadata().unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn access_control_lists_name_the_containers_ids() {
    let key = format!("SCHILY.xattr.{ACCESS}");
    let named = Archive::new().pax(&[(&key, ACL)]).file("f", b"");
    let archive = named.pax(&[("SCHILY.acl.access", b"user:nobody-knows-whom:r--")]).file("g", b"").end();
    let unpack = |ownership| {
        let place = place();
        let options = LayerOptions { ownership, ..options(WhiteoutFormat::OverlayUser) };
        let result = unpack_at(&place.path().join("tree"), &archive, &options, &[]).unwrap();
        let file = fs::File::open(place.path().join("tree/f")).unwrap();
        assert_eq!(crate::sys::xattr::get(file.as_fd(), c"system.posix_acl_access").unwrap(), None);
        result
    };
    let unknown = (Skipped::Xattr("SCHILY.acl.access".into()), 1);
    let (unpacked, owners) = unpack(Ownership::Mapped(Arc::new(Nobody)));
    assert_eq!(owners[0].xattrs, [(ACCESS.as_bytes().to_vec(), ACL.to_vec())]);
    assert_eq!(unpacked.skipped, std::slice::from_ref(&unknown));
    let (unpacked, owners) = unpack(Ownership::Single);
    assert!(owners.is_empty());
    assert_eq!(unpacked.skipped, [unknown, (Skipped::Xattr(ACCESS.into()), 1)]);
}

#[test]
fn the_longest_paths_and_names() {
    // 255 bytes a name, 4095 a path: what the kernel takes at most.
    let longest = [vec!["n".repeat(255); 15].join("/"), "m".repeat(255)].join("/");
    assert_eq!(longest.len(), 4095);
    let target = "t".repeat(4095);
    let archive = Archive::new()
        .pax(&[("path", longest.as_bytes())])
        .block(Block::new(b"x", b'0').size(4).mtime(7))
        .data(b"deep")
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("s", "x")
        .pax(&[("path", &longest.as_bytes()[..4094]), ("linkpath", longest.as_bytes())])
        .hard_link("x", "y")
        .end();
    let place = place();
    let (unpacked, _) = unpack_at(&place.path().join("tree"), &archive, &options(whiteouts()), &[]).unwrap();
    assert_eq!((unpacked.entries, unpacked.bytes), (3, 4));
    let root = Root::open(&place.path().join("tree")).unwrap();
    let path = c_string(longest.as_bytes()).unwrap();
    let stat = fstat(root.open_beneath_nofollow(&path, libc::O_RDONLY, 0).unwrap().as_fd()).unwrap();
    assert_eq!((stat.st_size, stat.st_mtime, stat.st_nlink), (4, 7, 2));
    let link = open_handle(root.dir(), c"s").unwrap();
    assert_eq!(crate::sys::fs::readlinkat(link.as_fd(), c"").unwrap(), target.as_bytes());
    let too_long = Archive::new().file(&"n".repeat(99), b"").pax(&[("path", &[b'n'; 256])]).file("x", b"").end();
    let error = unpack_at(&place.path().join("tree"), &too_long, &options(whiteouts()), &[]).unwrap_err();
    assert!(error.to_string().contains("ENAMETOOLONG"), "{error}");
}

/// Enough directories that some get their metadata before the end, and then have to be opened again.
#[test]
fn many_directories_get_their_metadata_whenever_that_is() {
    let mut archive = Archive::new();
    let dir = |number: u64| format!("dir{:02}/sub{number:03}", number % 10);
    let mode = |number: u64| [0o755, 0o700, 0o2775, 0o1777, 0o555, 0o711][number as usize % 6];
    for number in 0..10 {
        archive = archive.block(Block::new(format!("dir{number:02}").as_bytes(), b'5').mode(0o750).mtime(50 + number));
    }
    for number in 0..400 {
        let block = Block::new(dir(number).as_bytes(), b'5').mode(mode(number)).mtime(1000 + number);
        archive = archive.block(if number % 7 == 0 { block.owner(5, 6) } else { block });
    }
    for number in (0..400).rev() {
        archive = archive.file(&format!("{}/file", dir(number)), b"x").dir(&format!("{}/implied/dir", dir(number)));
    }
    // Said again, and otherwise.
    let again = dir(133);
    archive = archive.block(Block::new(again.as_bytes(), b'5').mode(0o701).mtime(9));
    let archive = archive.file(&format!("{again}/late"), b"x").end();
    let mapped = Ownership::Mapped(Arc::new(Nobody));
    let own = options(whiteouts());
    for options in [own.clone(), LayerOptions { ownership: mapped, ..own }] {
        let place = place();
        let tree = place.path().join("tree");
        let (_, owners) = unpack_at(&tree, &archive, &options, &[]).unwrap();
        for number in 0..400 {
            let metadata = tree.join(dir(number)).metadata().unwrap();
            let expected = if number == 133 { (0o701, 9) } else { (mode(number), 1000 + number as i64) };
            assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), expected, "{number}");
        }
        for number in 0..10 {
            let metadata = tree.join(format!("dir{number:02}")).metadata().unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o750, 50 + number));
        }
        if let Ownership::Mapped(_) = options.ownership {
            // The last word on a directory is the last entry's.
            let last = owners.iter().rev().find(|owner| owner.path == again.as_bytes()).unwrap();
            assert_eq!((last.uid, last.gid, last.mode), (0, 0, Some(0o701)));
            let given = owners.iter().filter(|owner| owner.uid == 5).count();
            assert!(given >= 57, "{given}");
        } else if is_root() {
            assert_eq!(tree.join(dir(7)).metadata().unwrap().uid(), 5);
            assert_eq!(tree.join(dir(133)).metadata().unwrap().uid(), 0);
        }
    }
}

/// Runs `act` on a thread whose files belong to another user than root, and that may no more than he.
fn as_user<T: Send>(place: &Scratch, act: impl FnOnce(&Path) -> T + Send) -> T {
    let tree = place.path().join("tree");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(&tree, Some(1000), Some(1000)).unwrap();
    std::thread::scope(|scope| {
        let user = || {
            nix::unistd::setfsuid(1000.into());
            act(&tree)
        };
        scope.spawn(user).join().unwrap()
    })
}

/// As in the images that Nix makes, where nobody may write to a directory, its owner neither.
#[test]
fn many_read_only_directories_take_little_memory() {
    const MANY: u64 = 300;
    let outer = |number: u64| format!("dir{number:03}");
    let inner = |number: u64| format!("dir{number:03}/sub");
    let block = |name: String, mtime: u64| Block::new(name.as_bytes(), b'5').mode(0o555).mtime(mtime);
    let mut archive = Archive::new();
    for number in 0..MANY {
        let owner = if number % 5 == 0 { 1001 } else { 0 };
        archive = archive.block(block(outer(number), 1000 + number).owner(owner, owner));
        archive = archive.block(block(inner(number), 2000 + number));
    }
    for round in 0..2 {
        for number in (0..MANY).rev().step_by(1 + round) {
            archive = archive.file(&format!("{}/file{round}", outer(number)), b"x");
            archive = archive.file(&format!("{}/file{round}", inner(number)), b"x");
        }
    }
    // Those that are complete come again: said anew, hidden, and with something else in the place of what is in them.
    archive = archive.block(block(outer(207), 7)).file(&format!("{}/late", outer(207)), b"x");
    archive = archive.file(&format!(".wh.{}", outer(208)), b"").file(&format!("{}/.wh..wh..opq", outer(209)), b"");
    let archive =
        archive.file(&inner(210), b"now a file").hard_link(&format!("{}/link", outer(211)), "dir001/file0").end();
    let check = |tree: &Path| {
        for number in 0..MANY {
            for (name, mtime) in [(outer(number), 1000 + number), (inner(number), 2000 + number)] {
                let metadata = tree.join(&name).metadata().unwrap();
                let expected = match (name == outer(207), name == inner(210)) {
                    (true, _) => (0o40555, 7),
                    (_, true) => (0o100644, 0),
                    _ => (0o40555, mtime as i64),
                };
                assert_eq!((metadata.mode(), metadata.mtime()), expected, "{name}");
            }
        }
        assert_eq!(fs::read_dir(tree.join(outer(207))).unwrap().count(), 4);
    };
    let little = crate::layer::Limits { memory: 24_000, ..Default::default() };
    let own = LayerOptions { limits: little, ..options(whiteouts()) };
    let user = LayerOptions { ownership: Ownership::Single, whiteouts: WhiteoutFormat::OverlayUser, ..own.clone() };
    // Applying remembers all that it makes.
    let apply =
        |of: &LayerOptions| LayerOptions { limits: Default::default(), whiteouts: WhiteoutFormat::Apply, ..of.clone() };
    for options in [&own, &apply(&own)] {
        let place = place();
        unpack_at(&place.path().join("tree"), &archive, options, &[]).unwrap();
        check(&place.path().join("tree"));
    }
    for options in [&user, &apply(&user)] {
        if is_root() {
            let place = place();
            as_user(&place, |tree| unpack_at(tree, &archive, options, &[])).unwrap();
            check(&place.path().join("tree"));
            assert_eq!(place.path().join("tree").join(inner(1)).metadata().unwrap().uid(), 1000);
        }
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let limits = crate::layer::Limits { memory: 10_000, ..Default::default() };
    let options = LayerOptions { limits, ..options(WhiteoutFormat::OverlayUser) };
    let unpack = |archive: Archive, options: &LayerOptions| {
        let place = place();
        unpack_at(&place.path().join("tree"), &archive.end(), options, &[])
    };
    let mut opaque = Archive::new();
    for number in 0..300 {
        opaque = opaque.dir(&format!("directory{number}")).file(&format!("directory{number}/.wh..wh..opq"), b"");
    }
    let error = unpack(opaque, &options).unwrap_err();
    assert!(error.kind() == ErrorKind::Limit && error.to_string().contains("memory"), "{error}");
    let mut owned = Archive::new();
    for number in 0..5000 {
        owned = owned.block(Block::new(format!("{:?}", number * 7919).as_bytes(), b'0').owner(70_000, 70_000));
    }
    let mapped = LayerOptions { ownership: Ownership::Mapped(Arc::new(Nobody)), ..options.clone() };
    let error = unpack(owned.clone(), &mapped).unwrap_err();
    assert!(error.kind() == ErrorKind::Limit && error.to_string().contains("memory"), "{error}");
    unpack(owned, &options).unwrap();
    let mut names = Archive::new();
    for number in 0..300 {
        names = names.pax(&[(&format!("SCHILY.xattr.bogus.{number}"), b"")]).file("f", b"");
    }
    let skipped = unpack(names, &options).unwrap().0.skipped;
    assert_eq!(skipped.len(), MOST_SKIPPED + 1);
    assert_eq!(skipped.iter().map(|(_, count)| count).sum::<u64>(), 300);
}
