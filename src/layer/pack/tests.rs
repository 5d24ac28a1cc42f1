//! Trees that are packed, and what readers see of them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::*;
use crate::ErrorKind;
use crate::layer::tar::{Entry, Kind, Reader};
use crate::layer::testing::Scratch;
use crate::layer::{Limits, Ownership, WhiteoutFormat};
use crate::sys::xattr;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What is in the tar of `source`.
fn entries(source: PackSource<'_>, options: &PackOptions) -> Vec<Entry> {
    let mut tar = Vec::new();
    pack(source, options, &mut tar).unwrap();
    let mut reader = Reader::new(tar.as_slice(), &Limits::default());
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

/// Names, and a mark for what is not a file.
fn listed(source: PackSource<'_>, options: &PackOptions) -> Vec<String> {
    let shown = |entry: Entry| {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        match entry.kind {
            Kind::HardLink => format!("{path} => {}", String::from_utf8_lossy(&entry.link)),
            Kind::Symlink => format!("{path} -> {}", String::from_utf8_lossy(&entry.link)),
            _ => path,
        }
    };
    entries(source, options).into_iter().map(shown).collect()
}

/// `A /added` and so on, as docker shows it.
fn changed(source: PackSource<'_>, options: &PackOptions) -> Vec<String> {
    let letter = |kind| match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Removed => 'D',
    };
    let changes = changes(source, options).unwrap();
    changes.into_iter().map(|change| format!("{} {}", letter(change.kind), change.path.display())).collect()
}

/// A place with directories of the given names.
fn place(names: &[&str]) -> (Scratch, impl Fn(&str) -> PathBuf) {
    let scratch = Scratch::new();
    let root = scratch.path().to_owned();
    for name in names {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    (scratch, move |name| root.join(name))
}

fn mark(path: &Path, name: &CStr, value: &[u8]) {
    use std::os::fd::AsFd;
    xattr::set(File::open(path).unwrap().as_fd(), name, value).unwrap();
}

#[test]
fn links_names_modes_and_times_survive() {
    let (_scratch, at) = place(&["tree"]);
    let tree = at("tree");
    let deep = tree.join("d".repeat(90)).join("e".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), b"body").unwrap();
    fs::set_permissions(deep.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(deep.join("file"), tree.join("again")).unwrap();
    symlink(format!("a//b/{}/", "x".repeat(120)), tree.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let options = PackOptions { owners: PackOwners::Fixed(0, 5), ..PackOptions::default() };
    let mut tar = Vec::new();
    let packed = pack(PackSource::Directory(&tree), &options, &mut tar).unwrap();
    assert_eq!((packed.entries, packed.bytes), (5, 4));
    assert_eq!(packed.left_out, [(LeftOut::Socket, 1)]);
    let mut again = Vec::new();
    pack(PackSource::Directory(&tree), &options, &mut again).unwrap();
    assert_eq!(tar, again);
    let found = entries(PackSource::Directory(&tree), &options);
    let kinds: Vec<_> = found.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::File, Kind::Directory, Kind::Directory, Kind::HardLink, Kind::Symlink]);
    assert!(found.iter().all(|entry| (entry.uid, entry.gid) == (0, 5)));
    assert_eq!((found[0].mode, found[3].link.as_slice()), (0o4751, &b"again"[..]));
    assert_eq!(found[3].path.len(), 186);
    let metadata = tree.join("again").metadata().unwrap();
    assert_eq!(found[0].mtime.nanoseconds, metadata.mtime_nsec() as u32);
    let clamped = PackOptions { clamp_mtime: Some(1000), ..PackOptions::default() };
    for entry in entries(PackSource::Directory(&tree), &clamped) {
        assert_eq!((entry.mtime.seconds, entry.mtime.nanoseconds), (1000, 0));
        assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()));
    }
}

#[test]
fn attributes_of_the_file_are_kept_and_those_of_the_host_are_not() {
    let (_scratch, at) = place(&["tree"]);
    fs::write(at("tree/file"), b"").unwrap();
    for name in [c"user.kept", c"user.overlay.opaque", c"user.rootlesscontainers", c"user.a=b"] {
        mark(&at("tree/file"), name, b"a\nb\0c");
    }
    let tree = at("tree");
    let entry = entries(PackSource::Directory(&tree), &PackOptions::default()).remove(0);
    assert_eq!(entry.xattrs, [(b"user.kept".to_vec(), b"a\nb\0c".to_vec())]);
    let packed = pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap();
    assert_eq!(packed.left_out, [(LeftOut::Xattr("user.a=b".into()), 1)]);
    mark(&at("tree/file"), c"user.rootlesscontainers", &[0x08, 5, 0x10, 7]);
    let recorded = PackOptions { owners: PackOwners::Recorded, ..PackOptions::default() };
    let entry = entries(PackSource::Directory(&tree), &recorded).remove(0);
    assert_eq!((entry.uid, entry.gid), (5, 7));
}

/// Readers set what the entry of each name says, and some take from the file what it does not say.
#[test]
fn every_name_of_a_file_says_whose_it_is_and_which_attributes_it_has() {
    let (_scratch, at) = place(&["tree"]);
    fs::write(at("tree/a"), b"").unwrap();
    mark(&at("tree/a"), c"user.rootlesscontainers", &[0x08, 5, 0x10, 7]);
    mark(&at("tree/a"), c"user.kept", b"value");
    fs::hard_link(at("tree/a"), at("tree/b")).unwrap();
    let recorded = PackOptions { owners: PackOwners::Recorded, ..PackOptions::default() };
    let found = entries(PackSource::Directory(&at("tree")), &recorded);
    assert_eq!((found[0].kind, found[1].kind), (Kind::File, Kind::HardLink));
    for entry in found {
        assert_eq!((entry.uid, entry.gid), (5, 7));
        assert_eq!(entry.xattrs, [(b"user.kept".to_vec(), b"value".to_vec())]);
    }
}

/// What needs other files than those of the tree.
#[test]
fn a_file_that_overlay_has_redirected_is_refused() {
    if !is_root() {
        return;
    }
    for name in [c"trusted.overlay.redirect", c"trusted.overlay.metacopy"] {
        let (_scratch, at) = place(&["tree", "low"]);
        fs::write(at("tree/file"), b"").unwrap();
        mark(&at("tree/file"), name, b"/x");
        let (tree, below) = (at("tree"), View::new([at("low")], WhiteoutFormat::Overlay).unwrap());
        for source in [PackSource::Directory(&tree), PackSource::Upper { upper: &tree, below: &below }] {
            let error = pack(source, &PackOptions::default(), io::sink()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }
}

/// Whoever owns a file may say `user.overlay.*` of it where overlay is mounted with full privileges. It is no mark there:
/// nothing of others goes, nothing fails, and nothing of it is in the layer, where a rootless mount would heed it.
#[test]
fn marks_that_a_container_forges_hide_nothing() {
    let (_scratch, at) = place(&["low/data/sub", "up/data"]);
    fs::write(at("low/data/sub/root's"), b"x").unwrap();
    fs::write(at("low/data/empty"), b"root's").unwrap();
    fs::write(at("up/data/empty"), b"").unwrap();
    mark(&at("up/data"), c"user.overlay.opaque", b"y");
    for name in ["whiteout", "redirect", "metacopy", "opaque", "overlay.whiteout", "overlay.redirect"] {
        mark(&at("up/data/empty"), &CString::new(format!("user.overlay.{name}")).unwrap(), b"y");
    }
    let upper = at("up");
    let options = PackOptions::default();
    let expected = ["C /data", "C /data/empty"];
    for whiteouts in [WhiteoutFormat::Overlay, WhiteoutFormat::Apply] {
        let below = View::new([at("low")], whiteouts).unwrap();
        let source = PackSource::Upper { upper: &upper, below: &below };
        assert_eq!(listed(source, &options), ["data/", "data/empty"]);
        assert_eq!(changed(source, &options), expected);
        assert!(entries(source, &options).iter().all(|entry| entry.xattrs.is_empty()));
        let tree = PackSource::Tree { tree: &upper, below: &below };
        assert_eq!(changed(tree, &options), ["C /data", "C /data/empty", "D /data/sub"]);
    }
    // A rootless mount stores what is set through it under another name, and its own marks count.
    let below = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
    let source = PackSource::Upper { upper: &upper, below: &below };
    assert_eq!(listed(source, &options), ["data/", "data/.wh..wh..opq", "data/.wh.empty"]);
    let empty = File::open(at("up/data/empty")).unwrap();
    xattr::remove(std::os::fd::AsFd::as_fd(&empty), c"user.overlay.whiteout").unwrap();
    assert_eq!(listed(source, &options), ["data/", "data/.wh..wh..opq", "data/empty"]);
    if is_root() {
        mark(&at("up/data"), c"trusted.overlay.opaque", b"y");
        mark(&at("up/data/empty"), c"trusted.overlay.whiteout", b"");
        let below = View::new([at("low")], WhiteoutFormat::Overlay).unwrap();
        let source = PackSource::Upper { upper: &upper, below: &below };
        assert_eq!(listed(source, &options), ["data/", "data/.wh..wh..opq", "data/.wh.empty"]);
    }
}

#[test]
fn holes_stay_holes_where_that_saves_something() {
    use std::io::{Seek, SeekFrom};
    let (_scratch, at) = place(&["tree"]);
    let tree = at("tree");
    let mut file = File::create(at("tree/sparse")).unwrap();
    for offset in [1 << 20, 5 << 20] {
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(b"data").unwrap();
    }
    file.set_len(9 << 20).unwrap();
    File::create(at("tree/empty")).unwrap().set_len(1 << 20).unwrap();
    File::create(at("tree/small")).unwrap().set_len(100).unwrap();
    let mut tar = Vec::new();
    pack(PackSource::Directory(&tree), &PackOptions::default(), &mut tar).unwrap();
    let found = entries(PackSource::Directory(&tree), &PackOptions::default());
    if file.metadata().unwrap().blocks() * 512 >= 9 << 20 {
        return;
    }
    assert!(tar.len() < 1 << 20);
    let sizes: Vec<_> = found.iter().map(|entry| entry.sparse.as_ref().map(|sparse| sparse.real_size)).collect();
    assert_eq!(sizes, [Some(1 << 20), None, Some(9 << 20)]);
}

#[test]
fn an_upper_directory_says_what_is_gone() {
    let (_scratch, at) = place(&["low/etc/conf", "low/gone", "low/opaque/old", "up/etc", "up/opaque/new"]);
    for name in
        ["low/etc/kept", "low/etc/changed", "low/etc/removed", "low/opaque/file", "up/etc/changed", "up/etc/added"]
    {
        fs::write(at(name), name).unwrap();
    }
    mark(&at("up/opaque"), c"user.overlay.opaque", b"y");
    // Newer kernels: it holds whiteouts as attributes, and hides nothing itself.
    mark(&at("up/etc"), c"user.overlay.opaque", b"x");
    fs::write(at("up/etc/conf"), b"").unwrap();
    mark(&at("up/etc/conf"), c"user.overlay.whiteout", b"");
    for name in ["up/etc/removed", "up/gone"] {
        mknod(&at(name), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    }
    let below = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
    let upper = at("up");
    let source = PackSource::Upper { upper: &upper, below: &below };
    let options = PackOptions::default();
    let expected = [
        "etc/",
        "etc/added",
        "etc/changed",
        "etc/.wh.conf",
        "etc/.wh.removed",
        ".wh.gone",
        "opaque/",
        "opaque/.wh..wh..opq",
        "opaque/new/",
    ];
    assert_eq!(listed(source, &options), expected);
    assert_eq!(
        changed(source, &options),
        [
            "C /etc",
            "A /etc/added",
            "C /etc/changed",
            "D /etc/conf",
            "D /etc/removed",
            "D /gone",
            "C /opaque",
            "D /opaque/file",
            "A /opaque/new",
            "D /opaque/old",
        ]
    );
    assert!(entries(source, &options).iter().all(|entry| entry.xattrs.is_empty()));
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(listed(source, &options)[0], "./");
}

#[test]
fn what_was_made_for_mounts_is_left_out() {
    let (_scratch, at) = place(&["low/etc", "up/etc", "up/proc", "up/mnt/deep/point", "up/used", "up/own"]);
    for name in ["up/etc/hosts", "up/mnt/deep/file"] {
        fs::write(at(name), b"").unwrap();
    }
    fs::write(at("up/used/file"), b"x").unwrap();
    let below = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
    let upper = at("up");
    let source = PackSource::Upper { upper: &upper, below: &below };
    let mount_points = ["etc/hosts", "proc", "mnt/deep/point", "used", "absent/x"];
    let mount_points = mount_points.iter().map(|path| path.as_bytes().to_vec()).collect();
    let options = PackOptions { mount_points, ..PackOptions::default() };
    assert_eq!(listed(source, &options), ["mnt/", "mnt/deep/", "mnt/deep/file", "own/", "used/", "used/file"]);
    fs::write(at("up/etc/hosts"), b"127.0.0.1 localhost").unwrap();
    assert_eq!(listed(source, &options)[..2], ["etc/", "etc/hosts"]);
}

#[test]
fn a_whole_tree_is_compared_with_what_it_began_as() {
    let (_scratch, at) = place(&["low/a/sub", "low/dir", "tree"]);
    for name in ["low/a/same", "low/a/other", "low/a/touched", "low/a/gone", "low/dir/file", "low/a/one"] {
        fs::write(at(name), "0123").unwrap();
    }
    fs::hard_link(at("low/a/one"), at("low/a/two")).unwrap();
    symlink("same", at("low/a/link")).unwrap();
    let below = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
    let ownership = if is_root() { Ownership::Full } else { Ownership::Single };
    crate::layer::copy(&below, &at("tree"), &ownership, crate::layer::Contents::SharedOrWritten).unwrap();
    let tree = at("tree");
    fs::set_permissions(&tree, at("low").metadata().unwrap().permissions()).unwrap();
    let source = PackSource::Tree { tree: &tree, below: &below };
    let options = PackOptions::default();
    assert_eq!(listed(source, &options), [] as [&str; 0]);
    // Another content of the same length, at the same time: only reading finds out.
    let time = at("tree/a/other").metadata().unwrap().modified().unwrap();
    let file = File::options().write(true).open(at("tree/a/other")).unwrap();
    (&file).write_all(b"9876").unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    File::options()
        .write(true)
        .open(at("tree/a/touched"))
        .unwrap()
        .set_modified(time + std::time::Duration::from_secs(1))
        .unwrap();
    let time = at("low/a").metadata().unwrap().modified().unwrap();
    fs::remove_file(at("tree/a/gone")).unwrap();
    File::open(at("tree/a")).unwrap().set_modified(time).unwrap();
    fs::remove_dir_all(at("tree/dir")).unwrap();
    fs::write(at("tree/dir"), "a file now").unwrap();
    fs::hard_link(at("tree/a/one"), at("tree/three")).unwrap();
    let expected = ["a/", "a/.wh.gone", "a/one", "a/other", "a/touched", "a/two => a/one", "dir", "three => a/one"];
    let mut found = listed(source, &options);
    found.sort_by_key(|name| name.replace(".wh.", ""));
    assert_eq!(found, expected);
    assert_eq!(
        changed(source, &options),
        ["C /a", "D /a/gone", "C /a/one", "C /a/other", "C /a/touched", "C /a/two", "C /dir", "A /three"]
    );
}

/// Two names of one file below, and two files here that agree with it in everything else.
#[test]
fn names_that_a_container_has_parted_are_packed() {
    let (_scratch, at) = place(&["low", "tree"]);
    for name in ["low/a", "low/c"] {
        fs::write(at(name), "0123").unwrap();
    }
    fs::hard_link(at("low/a"), at("low/b")).unwrap();
    fs::hard_link(at("low/c"), at("low/d")).unwrap();
    let below = View::new([at("low")], WhiteoutFormat::OverlayUser).unwrap();
    let ownership = if is_root() { Ownership::Full } else { Ownership::Single };
    crate::layer::copy(&below, &at("tree"), &ownership, crate::layer::Contents::SharedOrWritten).unwrap();
    let tree = at("tree");
    fs::set_permissions(&tree, at("low").metadata().unwrap().permissions()).unwrap();
    let part = |name: &str| {
        let time = at(name).metadata().unwrap().modified().unwrap();
        fs::copy(at(name), at("tree/new")).unwrap();
        File::options().write(true).open(at("tree/new")).unwrap().set_modified(time).unwrap();
        fs::rename(at("tree/new"), at(name)).unwrap();
    };
    part("tree/b");
    let source = PackSource::Tree { tree: &tree, below: &below };
    let options = PackOptions::default();
    assert_eq!(listed(source, &options), ["a", "b"]);
    assert_eq!(changed(source, &options), ["C /a", "C /b"]);
    // The other one is another in the layer, so that this one is alone without being named.
    fs::write(at("tree/b"), "new").unwrap();
    assert_eq!(listed(source, &options), ["b"]);
}

#[test]
fn a_name_that_would_hide_another_is_refused() {
    let (_scratch, at) = place(&["tree"]);
    fs::write(at("tree/.wh.passwd"), b"").unwrap();
    let tree = at("tree");
    let error = pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains(".wh.passwd"), "{error}");
    fs::remove_file(at("tree/.wh.passwd")).unwrap();
    mknod(&at("tree/white"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    let error = pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Changes a file when its first bytes arrive.
struct Meddler(PathBuf, fn(&Path));

impl Write for Meddler {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.1)(&self.0);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_tree_that_does_not_hold_still_is_an_error() {
    let cases: [fn(&Path); 4] = [
        |dir| File::options().write(true).open(dir.join("b")).unwrap().set_len(3).unwrap(),
        |dir| fs::write(dir.join("b"), vec![1; 2 << 20]).unwrap(),
        |dir| drop(fs::remove_file(dir.join("c"))),
        |dir| {
            let _ = fs::remove_file(dir.join("c"));
            let _ = symlink("/etc/passwd", dir.join("c"));
            let _ = fs::remove_file(dir.join("b"));
        },
    ];
    for (number, case) in cases.into_iter().enumerate() {
        let (_scratch, at) = place(&["tree/d"]);
        for name in ["tree/a", "tree/b", "tree/c", "tree/d/x"] {
            fs::write(at(name), vec![b'x'; 1 << 20]).unwrap();
        }
        let tree = at("tree");
        let error = pack(PackSource::Directory(&tree), &PackOptions::default(), Meddler(tree.clone(), case));
        let error = error.err().unwrap_or_else(|| panic!("case {number}"));
        assert_eq!(error.kind(), ErrorKind::Conflict, "case {number}: {error}");
    }
}

#[test]
fn deep_trees_need_few_descriptors_and_have_a_limit() {
    use std::os::fd::AsFd;
    let (_scratch, at) = place(&["tree"]);
    let build = |depth: usize| {
        let mut dir = std::os::fd::OwnedFd::from(File::open(at("tree")).unwrap());
        for _ in 0..depth {
            let _ = crate::sys::fs::mkdirat(dir.as_fd(), c"d", 0o700);
            let _ = crate::sys::fs::mkdirat(dir.as_fd(), c"e", 0o700);
            dir = crate::sys::fs::open_dir(dir.as_fd(), c"d").unwrap();
        }
    };
    build(500);
    let tree = at("tree");
    let packed = pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap();
    assert_eq!(packed.entries, 1000);
    build(600);
    let error = pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
}

/// One that goes over a limit of the reader's is refused here, by its name, and not when the image is used.
#[test]
fn what_could_not_be_unpacked_is_not_packed() {
    use std::os::fd::AsFd;
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        PackOptions { limits, ..PackOptions::default() }
    };
    let refused = |source: PackSource<'_>, options: &PackOptions, named: &str| {
        let error = pack(source, options, io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    };
    let (_scratch, at) = place(&["tree", "low/a/b", "up/a/b"]);
    // 512 directories and a file in the last one.
    let mut dir = std::os::fd::OwnedFd::from(File::open(at("tree")).unwrap());
    for _ in 0..512 {
        crate::sys::fs::mkdirat(dir.as_fd(), c"d", 0o700).unwrap();
        dir = crate::sys::fs::open_dir(dir.as_fd(), c"d").unwrap();
    }
    let tree = at("tree");
    pack(PackSource::Directory(&tree), &PackOptions::default(), io::sink()).unwrap();
    drop(crate::sys::fs::openat(dir.as_fd(), c"f", libc::O_CREAT | libc::O_WRONLY, 0o600).unwrap());
    refused(PackSource::Directory(&tree), &PackOptions::default(), "d/f\"");
    fs::remove_dir_all(&tree).unwrap();
    fs::create_dir(&tree).unwrap();
    fs::write(at("tree/file"), [1; 3000]).unwrap();
    for number in 0..3 {
        mark(&at("tree/file"), &CString::new(format!("user.{number}")).unwrap(), &[0; 100]);
    }
    symlink("t".repeat(50), at("tree/link")).unwrap();
    let source = PackSource::Directory(&tree);
    for (options, named) in [
        (limits(|limits| limits.xattrs = 2), "tree/file\""),
        (limits(|limits| limits.xattr_bytes = 300), "`xattr_bytes` of 300"),
        (limits(|limits| limits.entries = 1), "tree/link\""),
        (limits(|limits| limits.path_length = 49), "tree/link\""),
        (limits(|limits| limits.bytes = 2999), "tree/file\""),
        // What lies around the files counts for the tar.
        (limits(|limits| limits.bytes = 4096), "`bytes`"),
    ] {
        refused(source, &options, named);
    }
    // The name of what is gone is longer than its own, and that of a directory ends with a slash.
    fs::write(at("low/a/b/removed"), b"").unwrap();
    mknod(&at("up/a/b/removed"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    let (upper, below) = (at("up"), View::new([at("low")], WhiteoutFormat::Overlay).unwrap());
    let source = PackSource::Upper { upper: &upper, below: &below };
    refused(source, &limits(|limits| limits.path_length = 14), "a/b/.wh.removed\"");
    pack(source, &limits(|limits| limits.path_length = 15), io::sink()).unwrap();
    fs::remove_file(at("up/a/b/removed")).unwrap();
    refused(source, &limits(|limits| limits.path_length = 3), "a/b\"");
    pack(source, &limits(|limits| limits.path_length = 4), io::sink()).unwrap();
}

/// A tree of a single user says whose a file is in an attribute that the file's owner, a container, can write.
#[test]
fn a_forged_record_of_an_owner_does_not_make_a_layer_that_nobody_takes() {
    let (_scratch, at) = place(&["tree"]);
    fs::write(at("tree/file"), b"").unwrap();
    let tree = at("tree");
    let recorded = PackOptions { owners: PackOwners::Recorded, ..PackOptions::default() };
    for record in [&[0x08, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x10, 0xff, 0xff, 0xff, 0xff, 0x0f], b"lie", &[0x08]] {
        mark(&at("tree/file"), c"user.rootlesscontainers", record);
        let entry = entries(PackSource::Directory(&tree), &recorded).remove(0);
        assert_eq!((entry.uid, entry.gid), (0, 0), "{record:?}");
    }
    let nobody = PackOptions { owners: PackOwners::Fixed(0, u32::MAX), ..PackOptions::default() };
    let error = pack(PackSource::Directory(&tree), &nobody, io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// More pieces than a reader takes: the short holes are filled.
#[test]
fn a_file_of_many_pieces_is_packed_as_fewer() {
    use std::os::unix::fs::FileExt;
    let (_scratch, at) = place(&["tree"]);
    let file = File::create(at("tree/sparse")).unwrap();
    for piece in 0..40 {
        file.write_all_at(b"data", piece << 16).unwrap();
    }
    file.write_all_at(b"end", 100 << 20).unwrap();
    file.set_len(101 << 20).unwrap();
    if file.metadata().unwrap().blocks() * 512 >= 4 << 20 {
        return;
    }
    let tree = at("tree");
    for (sparse_pieces, expected) in [(1000, 42), (42, 42), (41, 3), (3, 3), (2, 2)] {
        let limits = Limits { sparse_pieces, ..Limits::default() };
        let options = PackOptions { limits: limits.clone(), ..PackOptions::default() };
        let mut tar = Vec::new();
        pack(PackSource::Directory(&tree), &options, &mut tar).unwrap();
        let mut reader = Reader::new(tar.as_slice(), &limits);
        let sparse = reader.next().unwrap().unwrap().sparse.unwrap();
        assert_eq!((sparse.real_size, sparse.pieces.len()), (101 << 20, expected), "{sparse_pieces}");
        let mut data = Vec::new();
        io::Read::read_to_end(&mut reader.data(), &mut data).unwrap();
        let mut whole = vec![0; 101 << 20];
        let mut rest = data.as_slice();
        for (offset, length) in sparse.pieces {
            let (piece, more) = rest.split_at(length as usize);
            whole[offset as usize..][..piece.len()].copy_from_slice(piece);
            rest = more;
        }
        assert!(whole == fs::read(at("tree/sparse")).unwrap());
    }
}

#[test]
fn a_missing_directory_is_named() {
    let source = PackSource::Directory(Path::new("/nonexistent/tree"));
    let error = pack(source, &PackOptions::default(), io::sink()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/nonexistent/tree"), "{error}");
}
