#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::layer::testing::{Archive, Block, Scratch, snapshot};

/// The layers below, given.
pub(super) struct Given(pub(super) Option<View>);

impl Below for Given {
    fn view(&self) -> Result<Option<&View>> {
        Ok(self.0.as_ref())
    }
}

pub(super) fn options(whiteouts: WhiteoutFormat) -> LayerOptions {
    let ownership = if is_root() { Ownership::Full } else { Ownership::Single };
    LayerOptions { whiteouts, ownership, ..LayerOptions::default() }
}

/// The overlay format that this user can write.
pub(super) fn whiteouts() -> WhiteoutFormat {
    if is_root() { WhiteoutFormat::Overlay } else { WhiteoutFormat::OverlayUser }
}

/// Unpacks on a thread of its own, as the pipeline does.
pub(super) fn unpack_at(
    tree: &Path,
    archive: &[u8],
    options: &LayerOptions,
    below: &[&Path],
) -> Result<(Unpacked, Vec<Owner>)> {
    let below = Given((!below.is_empty()).then(|| View::new(below, options.whiteouts).unwrap()));
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let exact = crate::sys::fs::clear_umask_of_this_thread();
                let (unpacked, owners, _) = unpack(archive, Root::open(tree).unwrap(), options, &below, exact)?;
                let mut all = Vec::new();
                owners.each_batch(|batch| {
                    all.extend_from_slice(batch);
                    Ok(())
                })?;
                Ok((unpacked, all))
            })
            .join()
            .unwrap()
    })
}

/// A place with an empty `tree`, and something outside that must not change.
pub(super) fn place() -> Scratch {
    let place = Scratch::new();
    fs::create_dir(place.path().join("tree")).unwrap();
    fs::set_permissions(place.path().join("tree"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.path().join("outside")).unwrap();
    fs::write(place.path().join("outside/secret"), "secret").unwrap();
    place
}

pub(super) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn whiteout_at(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_char_device() && metadata.rdev() == 0)
}

fn opaque_at(path: &Path) -> bool {
    let dir = File::open(path).unwrap().into();
    let formats = [WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUser];
    formats
        .into_iter()
        .any(|format| crate::layer::view::is_opaque(&crate::layer::view::Help::of(format), &dir).unwrap())
}

// ---- What an honest tar says is what the tree has.

/// A tree with everything that a tar can hold.
fn rich_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir_all(at("dir/sub/deep")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("sticky")).unwrap();
    fs::create_dir(at("group")).unwrap();
    fs::write(at("group/inside"), "x").unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("closed/file"), "y").unwrap();
    fs::write(at("dir/file"), "content").unwrap();
    fs::write(at("big"), (0..700_000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>()).unwrap();
    fs::write(at("none"), "").unwrap();
    fs::hard_link(at("dir/file"), at("dir/sub/twin")).unwrap();
    fs::hard_link(at("dir/file"), at("zz-twin")).unwrap();
    symlink("dir/file", at("link")).unwrap();
    symlink("/absolute/nowhere", at("dangling")).unwrap();
    symlink("t".repeat(300), at("long-target")).unwrap();
    fs::write(root.join("l".repeat(250)), "long").unwrap();
    let deep = root.join("p".repeat(120)).join("q".repeat(120)).join("r".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe")), "z").unwrap();
    fs::write(at("new\nline and space"), "z").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    for piece in 0..30 {
        sparse.write_at(b"piece", piece * 300_000).unwrap();
    }
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let suid = [
        ("suid", 0o4755),
        ("sgid", 0o2755),
        ("plain", 0o640),
        ("secret", if is_root() { 0o000 } else { 0o400 }),
        ("readonly", 0o444),
    ];
    for (name, mode) in suid {
        fs::write(at(name), name).unwrap();
        if is_root() {
            std::os::unix::fs::chown(at(name), Some(1000), Some(50)).unwrap();
        }
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("sticky", 0o1777), ("group", 0o2775), ("closed", 0o555), ("empty", 0o711)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    if is_root() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(&at("char"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        mknod(&at("block"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(7, 300)).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(at("dir"), Some(9), Some(10)).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&at("plain"), "security.capability", &capability);
        set_xattr(&at("dir/sub"), "trusted.note", b"t");
    }
    set_xattr(&at("dir/file"), "user.note", b"a\0b\n=");
    set_xattr(&at("dir"), "user.empty", b"");
    for (at_second, name) in
        ["dir/file", "big", "fifo", "sticky", "closed", "dir/sub/deep", "dir/sub", "dir", "."].into_iter().enumerate()
    {
        let file = crate::sys::path::Root::open(root).unwrap();
        let name = crate::sys::fs::c_string(name.as_bytes()).unwrap();
        let time = crate::sys::fs::Time { seconds: 1_000_000_000 + at_second as i64, nanoseconds: 123_456_789 };
        crate::sys::fs::lutimensat(file.dir(), &name, time).unwrap();
    }
}

pub(super) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let parent = crate::sys::path::Root::open(path.parent().unwrap()).unwrap();
    let file = crate::sys::fs::c_string(path.file_name().unwrap().as_bytes()).unwrap();
    let handle = crate::sys::fs::open_handle(parent.dir(), &file).unwrap();
    crate::sys::xattr::set_handle(handle.as_fd(), &crate::sys::fs::c_string(name.as_bytes()).unwrap(), value).unwrap();
}

#[test]
fn a_tree_survives_the_way_through_gnu_tar() {
    let source = Scratch::new();
    rich_tree(source.path());
    let expected = snapshot(source.path());
    for extra in [&["--sparse"][..], &[], &["--sparse", "--sparse-version=0.0"], &["--sparse", "--sparse-version=0.1"]]
    {
        let output = Command::new("tar")
            .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", "-"])
            .args(extra)
            .arg("-C")
            .arg(source.path())
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        for exact in [true, false] {
            let place = place();
            let tree = place.path().join("tree");
            let unpacked = unpack_inexact(&tree, &output.stdout, exact).unwrap();
            let actual = snapshot(&tree);
            for (path, line) in &expected {
                assert_eq!(actual.get(path), Some(line), "{:?} {extra:?}", String::from_utf8_lossy(path));
            }
            assert_eq!(actual.len(), expected.len());
            assert!(unpacked.sets_root && !unpacked.dependent && unpacked.skipped.is_empty(), "{unpacked:?}");
            if extra == ["--sparse"] {
                let blocks = tree.join("sparse").metadata().unwrap().blocks();
                assert!(blocks * 512 < 2 << 20, "the holes are gone: {blocks} blocks");
            }
        }
    }
}

fn unpack_inexact(tree: &Path, archive: &[u8], exact: bool) -> Result<Unpacked> {
    if exact {
        return unpack_at(tree, archive, &LayerOptions::default(), &[]).map(|(unpacked, _)| unpacked);
    }
    let tree = Root::open(tree).unwrap();
    unpack(archive, tree, &LayerOptions::default(), &Given(None), false).map(|(unpacked, ..)| unpacked)
}

/// An access control list shows as the group's bits, and setting it changes them.
#[test]
fn modes_are_set_after_access_control_lists() {
    if !is_root() {
        return;
    }
    let place = place();
    let tree = place.path().join("tree");
    let list = b"user::rwx\nuser:12345:r--\ngroup::r--\nmask::r--\nother::---\n";
    let with_list = |archive: Archive| archive.pax(&[("SCHILY.acl.access", list)]);
    let archive = with_list(Archive::new()).block(Block::new(b"fifo", b'6').mode(0o755));
    let archive = with_list(archive).block(Block::new(b"file", b'0').mode(0o755));
    let archive = with_list(archive).block(Block::new(b"null", b'3').mode(0o755).device(1, 3)).end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[]).unwrap();
    if !unpacked.skipped.is_empty() {
        return;
    }
    for name in ["file", "fifo", "null"] {
        assert_eq!(tree.join(name).symlink_metadata().unwrap().mode() & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new()
        .file("a", b"old")
        .file("a", b"new")
        .dir("b")
        .file("b/inside", b"x")
        .file("b", b"now a file")
        .file("c", b"x")
        .dir("c")
        .file("c/inside", b"y")
        .symlink("d", "c")
        .dir("d")
        .block(Block::new(b"e", b'6'))
        .file("e", b"no longer a fifo")
        .dir("f")
        .file("f/x", b"1")
        .block(Block::new(b"f", b'5').mode(0o700).mtime(5))
        .symlink("g", "a")
        .file("g", b"not through the link")
        .end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[]).unwrap();
    assert_eq!(unpacked.entries, 17);
    let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c/inside")), ("new".into(), "now a file".into(), "y".into()));
    assert!(tree.join("d").symlink_metadata().unwrap().is_dir());
    assert_eq!((read("e"), read("g")), ("no longer a fifo".into(), "not through the link".into()));
    assert_eq!(read("f/x"), "1");
    let f = tree.join("f").metadata().unwrap();
    assert_eq!((f.mode() & 0o7777, f.mtime()), (0o700, 5));
}

#[test]
fn symlinked_parents_in_one_tar_are_followed_inside() {
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new()
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("chain", "usr/../abs")
        .file("lib/a", b"a")
        .file("abs/b", b"b")
        .file("chain/c", b"c")
        .dir("usr/lib/new")
        .file("chain/new/d", b"d")
        .hard_link("e", "chain/c")
        .end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[]).unwrap();
    assert!(!unpacked.dependent);
    for name in ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/new/d", "e"] {
        assert!(tree.join(name).symlink_metadata().unwrap().is_file(), "{name}");
    }
    assert_eq!(tree.join("e").metadata().unwrap().ino(), tree.join("usr/lib/c").metadata().unwrap().ino());
}

// ---- Whiteouts.

#[test]
fn whiteouts_become_overlays() {
    if !is_root() {
        return;
    }
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new()
        .file(".wh.gone", b"")
        .dir("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/kept", b"x")
        .file(".wh.again", b"")
        .dir("again")
        .file("again/x", b"")
        .file(".wh.file", b"")
        .file("file", b"new")
        .dir("first")
        .file(".wh.first", b"")
        .file("stays", b"")
        .file(".wh.stays", b"")
        .file(".wh..wh.plnk", b"aufs")
        .end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[]).unwrap();
    assert!(!unpacked.dependent);
    assert!(whiteout_at(&tree.join("gone")));
    assert!(opaque_at(&tree.join("d")) && tree.join("d/kept").exists());
    assert!(opaque_at(&tree.join("again")) && opaque_at(&tree.join("first")));
    assert_eq!(fs::read(tree.join("file")).unwrap(), b"new");
    assert!(tree.join("stays").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_dir(&tree).unwrap().count(), 6);
}

/// umoci writes this when a directory became a file. Before or after the file, deep or not.
#[test]
fn a_whiteout_inside_of_a_file_hides_nothing_more() {
    let replaced = |archive: Archive| archive.file("replaced", b"new");
    let hidden = |archive: Archive| archive.file("replaced/.wh.a", b"").file("replaced/deep/er/.wh.b", b"");
    for archive in [hidden(replaced(Archive::new())), replaced(hidden(Archive::new()))] {
        let archive = archive.end();
        for whiteouts in [whiteouts(), WhiteoutFormat::Apply] {
            let place = place();
            let tree = place.path().join("tree");
            if whiteouts == WhiteoutFormat::Apply {
                fs::create_dir_all(tree.join("replaced/deep")).unwrap();
            }
            unpack_at(&tree, &archive, &options(whiteouts), &[]).unwrap();
            assert_eq!(fs::read(tree.join("replaced")).unwrap(), b"new");
        }
    }
}

/// Images of the times of aufs have its bookkeeping in them: files whose names are all links to one that it keeps.
#[test]
fn links_to_what_aufs_kept_are_files() {
    for whiteouts in [whiteouts(), WhiteoutFormat::Apply] {
        let place = place();
        let tree = place.path().join("tree");
        let archive = Archive::new()
            .dir(".wh..wh.aufs")
            .dir(".wh..wh.orph")
            .file(".wh..wh.orph/left", b"x")
            .dir(".wh..wh.plnk")
            .dir(".wh..wh.plnk/d")
            .file(".wh..wh.plnk/d/e", b"x")
            .block(Block::new(b".wh..wh.plnk/1.2", b'0').size(4).mode(0o755).mtime(5))
            .data(b"kept")
            .file(".wh..wh.plnk/3.4", b"not linked")
            .dir("d")
            .hard_link("d/a", ".wh..wh.plnk/1.2")
            .hard_link("b", ".wh..wh.plnk/1.2")
            .end();
        let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts), &[&place.path().join("outside")]).unwrap();
        assert!(!unpacked.dependent);
        let names: Vec<_> = snapshot(&tree).into_keys().map(|name| String::from_utf8(name).unwrap()).collect();
        assert_eq!(names, ["", "b", "d", "d/a"]);
        let b = tree.join("b").metadata().unwrap();
        assert_eq!((b.nlink(), b.mode() & 0o7777, b.mtime()), (2, 0o755, 5));
        assert_eq!(fs::read(tree.join("d/a")).unwrap(), b"kept");
    }
    // Owners stay with the names that stay.
    let place = place();
    let archive = Archive::new()
        .block(Block::new(b".wh..wh.plnk/1.2", b'0').owner(1000, 0))
        .hard_link("b", ".wh..wh.plnk/1.2")
        .end();
    let options =
        LayerOptions { ownership: Ownership::Mapped(Arc::new(Nobody)), ..options(WhiteoutFormat::OverlayUser) };
    let (_, owners) = unpack_at(&place.path().join("tree"), &archive, &options, &[]).unwrap();
    assert_eq!(owners.iter().map(|owner| (&owner.path[..], owner.uid)).collect::<Vec<_>>(), [(&b"b"[..], 1000)]);
}

#[test]
fn user_whiteouts_use_user_attributes() {
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new().dir("d").file("d/.wh..wh..opq", b"").file(".wh.x", b"").end();
    unpack_at(&tree, &archive, &options(WhiteoutFormat::OverlayUser), &[]).unwrap();
    let dir = File::open(tree.join("d")).unwrap();
    assert_eq!(crate::sys::xattr::get(dir.as_fd(), c"user.overlay.opaque").unwrap().as_deref(), Some(&b"y"[..]));
    assert!(whiteout_at(&tree.join("x")));
}

#[test]
fn applying_deletes_what_lies_below_and_keeps_what_the_layer_makes() {
    let place = place();
    let tree = place.path().join("tree");
    let lower = Archive::new()
        .file("gone", b"")
        .block(Block::new(b"d", b'5').mode(0o555).mtime(7))
        .file("d/old", b"")
        .dir("d/sub")
        .file("d/sub/old", b"")
        .dir("tree")
        .file("tree/x", b"")
        .block(Block::new(b"quiet", b'5').mode(0o755).mtime(9))
        .end();
    let upper = Archive::new()
        .file("d/sub/new", b"")
        .file("d/.wh..wh..opq", b"")
        .file(".wh.gone", b"")
        .file(".wh.tree", b"")
        .file(".wh.never", b"")
        .file("quiet/new", b"")
        .end();
    let options = options(WhiteoutFormat::Apply);
    unpack_at(&tree, &lower, &options, &[]).unwrap();
    let (unpacked, _) = unpack_at(&tree, &upper, &options, &[]).unwrap();
    assert!(!unpacked.dependent);
    let names: Vec<_> = snapshot(&tree).into_keys().map(|name| String::from_utf8(name).unwrap()).collect();
    assert_eq!(names, ["", "d", "d/sub", "d/sub/new", "quiet", "quiet/new"]);
    let d = tree.join("d").metadata().unwrap();
    assert_eq!((d.mode() & 0o7777, d.mtime()), (0o555, 7));
    assert_eq!(tree.join("quiet").metadata().unwrap().mtime(), 9);
}

#[test]
fn an_opaque_root_hides_each_name() {
    if !is_root() {
        return;
    }
    let place = place();
    let tree = place.path().join("tree");
    let lower = place.path().join("outside");
    fs::create_dir(lower.join("shared")).unwrap();
    let archive = Archive::new().dir("shared").file(".wh..wh..opq", b"").file("new", b"").end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[&lower]).unwrap();
    assert!(unpacked.dependent);
    assert!(whiteout_at(&tree.join("secret")) && opaque_at(&tree.join("shared")) && tree.join("new").is_file());
}

// ---- Layers that depend on those below.

#[test]
fn missing_parents_are_taken_from_below() {
    let place = place();
    let (lower, tree) = (place.path().join("outside"), place.path().join("tree"));
    fs::create_dir_all(lower.join("usr/lib/sub")).unwrap();
    symlink("usr/lib", lower.join("lib")).unwrap();
    symlink("/lib/sub", lower.join("far")).unwrap();
    fs::set_permissions(lower.join("usr/lib/sub"), fs::Permissions::from_mode(0o1750)).unwrap();
    set_xattr(&lower.join("usr/lib/sub"), "user.note", b"n");
    if is_root() {
        std::os::unix::fs::chown(lower.join("usr/lib/sub"), Some(5), Some(6)).unwrap();
    }
    let archive = Archive::new().file("lib/sub/a", b"a").file("far/b", b"b").file("brand/new/c", b"c").end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[&lower]).unwrap();
    assert!(unpacked.dependent);
    for name in ["usr/lib/sub/a", "usr/lib/sub/b", "brand/new/c"] {
        assert!(tree.join(name).symlink_metadata().unwrap().is_file(), "{name}");
    }
    assert!(!tree.join("lib").exists() && !tree.join("far").exists());
    let (below, above) = (snapshot(&lower), snapshot(&tree));
    assert_eq!(above[&b"usr/lib/sub"[..]], below[&b"usr/lib/sub"[..]]);
    assert_eq!(tree.join("brand").metadata().unwrap().mode() & 0o7777, 0o755);
}

/// What an entry makes takes the place of a lower layer's symlink, and the entries after it go there: whatever was looked
/// up before, and under whatever name.
#[test]
fn entries_go_where_they_would_go_if_nothing_were_kept_open() {
    let place = place();
    let lower = place.path().join("outside");
    fs::create_dir_all(lower.join("usr/lib/sub")).unwrap();
    fs::create_dir_all(lower.join("opt/sub")).unwrap();
    fs::create_dir_all(lower.join("d")).unwrap();
    for (name, target) in [("lib", "usr/lib"), ("other", "opt"), ("d/link", "../usr/lib"), ("self", ".")] {
        symlink(target, lower.join(name)).unwrap();
    }
    let looks: [fn(Archive) -> Archive; 4] = [
        |archive| archive,
        |archive| archive.file("lib/z", b"z").file("d/link/z", b"z"),
        |archive| archive.file("lib/sub/a", b"a").file("d/link/sub/a", b"a"),
        |archive| archive.file("self/lib/sub/a", b"a").file("lib/sub/z", b"z").file("self/d/link/sub/z", b"z"),
    ];
    let covers: [fn(Archive) -> Archive; 9] = [
        |archive| archive.dir("lib"),
        |archive| archive.symlink("lib", "opt"),
        |archive| archive.file("lib", b"file"),
        |archive| archive.block(Block::new(b"lib", b'6')),
        |archive| archive.file(".wh.lib", b""),
        |archive| archive.hard_link("lib", "other"),
        |archive| archive.file("self/.wh.lib", b""),
        |archive| archive.dir("self/lib"),
        |archive| archive.file("d/.wh..wh..opq", b""),
    ];
    let forgetful = |archive: &[u8], tree: &Path, forgetful: bool| {
        let below = Given(Some(View::new([&lower], whiteouts()).unwrap()));
        super::place::FORGETFUL.set(forgetful);
        let options = options(WhiteoutFormat::OverlayUser);
        let done = unpack(archive, Root::open(tree).unwrap(), &options, &below, false);
        super::place::FORGETFUL.set(false);
        // The outcome of an archive that fails half way is thrown away.
        done.map(|(unpacked, ..)| (unpacked, snapshot(tree).into_keys().collect::<Vec<_>>())).map_err(|it| it.kind())
    };
    for (at, look) in looks.iter().enumerate() {
        for (number, cover) in covers.iter().enumerate() {
            let archive = cover(look(Archive::new())).file("lib/sub/b", b"b").file("d/link/sub/b", b"b").end();
            let [kept, anew] = [false, true].map(|anew| {
                let place = self::place();
                forgetful(&archive, &place.path().join("tree"), anew)
            });
            assert_eq!(kept, anew, "{at} {number}");
            if number == 0 {
                let made = kept.unwrap().1;
                assert!(made.contains(&b"lib/sub/b".to_vec()), "{at}: {made:?}");
            }
        }
    }
}

#[test]
fn a_hard_link_to_a_lower_file_brings_it_up() {
    let place = place();
    let (lower, tree) = (place.path().join("outside"), place.path().join("tree"));
    fs::create_dir(lower.join("d")).unwrap();
    fs::write(lower.join("d/file"), "below").unwrap();
    fs::set_permissions(lower.join("d/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("d/file", lower.join("link")).unwrap();
    let archive = Archive::new().hard_link("twin", "d/file").hard_link("other", "link").end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(whiteouts()), &[&lower]).unwrap();
    assert!(unpacked.dependent);
    let (twin, file) = (tree.join("twin").metadata().unwrap(), tree.join("d/file").metadata().unwrap());
    assert_eq!((twin.ino(), twin.nlink(), twin.mode() & 0o7777), (file.ino(), 2, 0o4711));
    assert_eq!(fs::read(tree.join("twin")).unwrap(), b"below");
    assert_eq!(file.mtime_nsec(), lower.join("d/file").metadata().unwrap().mtime_nsec());
    assert_eq!(fs::read_link(tree.join("other")).unwrap(), Path::new("d/file"));
    let hidden = Archive::new().file("d/.wh.file", b"").hard_link("twin", "d/file").end();
    let place2 = self::place();
    let error =
        unpack_at(&place2.path().join("tree"), &hidden, &options(WhiteoutFormat::OverlayUser), &[&lower]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_sparse_file_that_is_brought_up_stays_sparse() {
    let place = place();
    let (lower, tree) = (place.path().join("outside"), place.path().join("tree"));
    let sparse = File::create(lower.join("sparse")).unwrap();
    sparse.write_at(b"data", 1 << 30).unwrap();
    sparse.set_len(3 << 30).unwrap();
    let archive = Archive::new().hard_link("twin", "sparse").end();
    unpack_at(&tree, &archive, &options(whiteouts()), &[&lower]).unwrap();
    let twin = File::open(tree.join("twin")).unwrap();
    let metadata = twin.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.nlink()), (3 << 30, 2));
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    let mut data = [0; 6];
    twin.read_exact_at(&mut data, (1 << 30) - 1).unwrap();
    assert_eq!(&data, b"\0data\0");
}

#[test]
fn hard_links_to_lower_nodes_bring_them_up() {
    let place = place();
    let (lower, tree) = (place.path().join("outside"), place.path().join("tree"));
    nix::unistd::mkfifo(&lower.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let mut archive = Archive::new().hard_link("twin", "fifo");
    if is_root() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(&lower.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o620), makedev(1, 3)).unwrap();
        archive = archive.hard_link("other", "null");
    }
    unpack_at(&tree, &archive.end(), &options(whiteouts()), &[&lower]).unwrap();
    let (below, above) = (snapshot(&lower), snapshot(&tree));
    let twice = |line: &str| line.replace(" n1 ", " n2 ");
    assert_eq!(above[&b"twin"[..]], twice(&below[&b"fifo"[..]]));
    if is_root() {
        assert_eq!(above[&b"other"[..]], twice(&below[&b"null"[..]]));
    }
}

#[test]
fn what_stands_alone_does_not_ask_below() {
    let place = place();
    let (lower, tree) = (place.path().join("outside"), place.path().join("tree"));
    let archive = Archive::new().dir("d").file("d/f", b"").file("top", b"").file(".wh.secret", b"").end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options(WhiteoutFormat::OverlayUser), &[&lower]).unwrap();
    assert!(!unpacked.dependent);
}

// ---- Owners without root's powers.

#[test]
fn a_single_user_records_owners() {
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new()
        .block(Block::new(b"f", b'0').owner(5, 300).mode(0o4444))
        .block(Block::new(b"mine", b'0'))
        .block(Block::new(b"d", b'5').owner(1, 0).mode(0o500))
        .file("d/x", b"")
        .block(Block::new(b"null", b'3').device(1, 3).mode(0o666))
        .block(Block::new(b"s", b'2').link(b"f").owner(5, 5))
        .pax(&[("SCHILY.xattr.security.capability", b"x"), ("SCHILY.xattr.user.rootlesscontainers", b"lie")])
        .file("cap", b"")
        .end();
    let options = LayerOptions { ownership: Ownership::Single, ..options(WhiteoutFormat::OverlayUser) };
    let (unpacked, owners) = unpack_at(&tree, &archive, &options, &[]).unwrap();
    assert!(owners.is_empty());
    let record = |name: &str| {
        crate::sys::xattr::get(File::open(tree.join(name)).unwrap().as_fd(), c"user.rootlesscontainers").unwrap()
    };
    assert_eq!(record("f").as_deref(), Some(&[0x08, 5, 0x10, 0xac, 2][..]));
    assert_eq!(record("d").as_deref(), Some(&[0x08, 1][..]));
    assert_eq!((record("mine"), record("cap")), (None, None));
    let f = tree.join("f").metadata().unwrap();
    assert_eq!((f.uid(), f.mode() & 0o7777), (nix::unistd::geteuid().as_raw(), 0o4444));
    assert!(tree.join("null").symlink_metadata().unwrap().is_file());
    assert!(unpacked.skipped.contains(&(Skipped::Device, 1)), "{unpacked:?}");
    assert!(unpacked.skipped.contains(&(Skipped::Xattr("security.capability".into()), 1)));
}

/// Directories without an entry and files brought up belong to whom they belong in the layer below.
#[test]
fn a_single_user_takes_owners_over_from_below() {
    let place = place();
    let (lower, tree) = (place.path().join("lower"), place.path().join("tree"));
    fs::create_dir(&lower).unwrap();
    let archive = Archive::new()
        .block(Block::new(b"d", b'5').owner(1000, 300).mode(0o750))
        .block(Block::new(b"d/f", b'0').owner(5, 0).mode(0o4711))
        .pax(&[("SCHILY.xattr.user.note", b"n")])
        .block(Block::new(b"roots", b'5').mode(0o755))
        .end();
    let options = LayerOptions { ownership: Ownership::Single, ..options(WhiteoutFormat::OverlayUser) };
    unpack_at(&lower, &archive, &options, &[]).unwrap();
    let archive = Archive::new().file("d/new", b"").hard_link("twin", "d/f").file("roots/new", b"").end();
    let (unpacked, _) = unpack_at(&tree, &archive, &options, &[&lower]).unwrap();
    assert_eq!(unpacked.skipped, []);
    let (below, above) = (snapshot(&lower), snapshot(&tree));
    for path in [&b"d"[..], b"roots"] {
        assert_eq!(above[path], below[path]);
    }
    let record = |name: &str| {
        crate::sys::xattr::get(File::open(tree.join(name)).unwrap().as_fd(), c"user.rootlesscontainers").unwrap()
    };
    assert_eq!(record("d").as_deref(), Some(&[0x08, 0xe8, 7, 0x10, 0xac, 2][..]));
    assert_eq!(record("twin").as_deref(), Some(&[0x08, 5][..]));
    assert_eq!((record("roots"), record("d/new")), (None, None));
    assert_eq!(tree.join("twin").metadata().unwrap().mode() & 0o7777, 0o4711);
}

pub(super) struct Nobody;

impl Reown for Nobody {
    fn reown(&self, _: BorrowedFd<'_>, _: &[Owner]) -> Result<()> {
        Ok(())
    }

    fn container_ids(&self, uid: u32, gid: u32) -> (u32, u32) {
        (uid, gid)
    }

    fn remove(&self, _: BorrowedFd<'_>, _: &OsStr) -> Result<()> {
        Ok(())
    }
}

#[test]
fn mapped_owners_are_collected_children_first() {
    let place = place();
    let tree = place.path().join("tree");
    let archive = Archive::new()
        .block(Block::new(b"d", b'5').owner(1, 2).mode(0o2755))
        .block(Block::new(b"d/f", b'0').owner(3, 4).mode(0o4755))
        .block(Block::new(b"d/f", b'0').owner(5, 6).mode(0o4755))
        .block(Block::new(b"root", b'0'))
        .block(Block::new(b"s", b'2').link(b"x").owner(7, 8))
        .pax(&[("SCHILY.xattr.security.capability", b"cap")])
        .file("ping", b"")
        .end();
    let options =
        LayerOptions { ownership: Ownership::Mapped(Arc::new(Nobody)), ..options(WhiteoutFormat::OverlayUser) };
    let (_, owners) = unpack_at(&tree, &archive, &options, &[]).unwrap();
    let lines: Vec<_> = owners
        .iter()
        .map(|owner| {
            let path = String::from_utf8_lossy(&owner.path);
            format!("{path} {}:{} {:o} {}", owner.uid, owner.gid, owner.mode.unwrap_or(0), owner.xattrs.len())
        })
        .collect();
    assert_eq!(lines, ["d/f 5:6 4755 0", "s 7:8 0 0", "ping 0:0 644 1", "d 1:2 2755 0"]);
}

/// Else the link would be left to root, with the mode that its owner has been given.
#[test]
fn mapped_owners_stay_with_the_links_to_what_goes() {
    let setuid = |name: &[u8]| Block::new(name, b'0').owner(1000, 1000).mode(0o4755);
    let options =
        LayerOptions { ownership: Ownership::Mapped(Arc::new(Nobody)), ..options(WhiteoutFormat::OverlayUser) };
    let owners = |archive: Archive, below: &[&Path]| -> Vec<_> {
        let place = place();
        let (_, owners) = unpack_at(&place.path().join("tree"), &archive.end(), &options, below).unwrap();
        for owner in &owners {
            let path = place.path().join("tree").join(std::ffi::OsStr::from_bytes(&owner.path));
            assert_eq!(path.symlink_metadata().unwrap().mode() & 0o7777, 0o4755);
        }
        let line = |owner: &Owner| format!("{} {}", String::from_utf8_lossy(&owner.path), owner.uid);
        owners.iter().map(line).collect()
    };
    let linked = || Archive::new().block(setuid(b"d/a")).hard_link("b", "d/a");
    assert_eq!(owners(linked(), &[]), ["d/a 1000"]);
    assert_eq!(owners(linked().file("d/a", b"roots"), &[]), ["b 1000"]);
    assert_eq!(owners(linked().file("d", b"roots"), &[]), ["b 1000"]);
    assert_eq!(owners(linked().hard_link("c", "b").file("d/a", b"").file("b", b""), &[]), ["c 1000"]);
    assert_eq!(owners(linked().file("b", b"roots"), &[]), ["d/a 1000"]);
    if is_root() {
        let lower = place();
        let lower = lower.path().join("outside");
        std::os::unix::fs::chown(lower.join("secret"), Some(1000), Some(1000)).unwrap();
        fs::set_permissions(lower.join("secret"), fs::Permissions::from_mode(0o4755)).unwrap();
        let brought_up = || Archive::new().hard_link("b", "secret");
        assert_eq!(owners(brought_up(), &[&lower]), ["secret 1000"]);
        assert_eq!(owners(brought_up().file(".wh.secret", b""), &[&lower]), ["b 1000"]);
        assert_eq!(owners(brought_up().file("secret", b"roots"), &[&lower]), ["b 1000"]);
    }
}
