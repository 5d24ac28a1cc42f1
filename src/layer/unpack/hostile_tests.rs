//! Hostile archives. Each must leave the outside as it was.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::tests::{is_root, options, place, unpack_at};
use super::*;
use crate::layer::Limits;
use crate::layer::testing::{Archive, Block, snapshot};

/// Unpacks in every whiteout format that works here; the outside must stay as it was, and `check` sees each result.
fn attack(archive: Archive, check: impl Fn(&Path, Result<Unpacked>)) {
    let archive = archive.end();
    for whiteouts in [WhiteoutFormat::Overlay, WhiteoutFormat::OverlayUser, WhiteoutFormat::Apply] {
        if whiteouts == WhiteoutFormat::Overlay && !is_root() {
            continue;
        }
        // The outside is where the archives' links say: the place is made anew with a fixed name below the tree's own.
        let place = place();
        let bytes = substitute(&archive, place.path());
        let before = snapshot(&place.path().join("outside"));
        let result = unpack_at(&place.path().join("tree"), &bytes, &options(whiteouts), &[]);
        assert_eq!(snapshot(&place.path().join("outside")), before, "{whiteouts:?}");
        check(&place.path().join("tree"), result.map(|(unpacked, _)| unpacked));
    }
}

/// Rewrites link targets that start with `@` to the real outside, and seals the headers again.
fn substitute(archive: &[u8], place: &Path) -> Vec<u8> {
    let outside = place.join("outside");
    let mut bytes = archive.to_vec();
    for at in (0..bytes.len()).step_by(512) {
        let mut block = Block(bytes[at..at + 512].try_into().unwrap());
        if block.0[157] == b'@' {
            let rest = block.0[158..257].to_vec();
            let text =
                [outside.as_os_str().as_bytes(), &rest[..rest.iter().position(|byte| *byte == 0).unwrap()]].concat();
            block.put(157, &[0; 100]);
            block.put(157, &text);
            bytes[at..at + 512].copy_from_slice(&block.seal());
        }
    }
    bytes
}

fn error_kind(result: Result<Unpacked>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn cve_2018_20990_a_file_is_not_written_through_a_symlinked_parent() {
    attack(Archive::new().symlink("d", "@").file("d/secret", b"evil").file("d/new", b"evil"), |tree, result| {
        result.unwrap();
        // Followed inside the tree, where the same path was made.
        assert!(tree.join("d").symlink_metadata().unwrap().is_symlink());
        assert_eq!(snapshot(tree).keys().filter(|name| name.ends_with(b"outside/new")).count(), 1);
    });
    attack(Archive::new().symlink("d", "../../../../../../../../outside").file("d/new", b""), |tree, result| {
        result.unwrap();
        assert!(tree.join("outside/new").is_file());
    });
}

#[test]
fn cve_2021_38511_names_do_not_climb() {
    for name in ["../evil", "a/../../evil", "../../outside/secret", "/../evil", "./.././evil"] {
        attack(Archive::new().file(name, b"evil"), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
        attack(Archive::new().dir(name), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
        attack(Archive::new().hard_link("a", name), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
    }
    attack(Archive::new().file("/etc/passwd", b"x").file("a/b/../c", b"y"), |tree, result| {
        result.unwrap();
        assert!(tree.join("etc/passwd").is_file() && tree.join("a/c").is_file());
    });
}

#[test]
fn cve_2026_33056_metadata_does_not_go_through_a_symlink() {
    let over = |flag| Archive::new().symlink("d", "@").block(Block::new(b"d", flag).mode(0o777).owner(9, 9).mtime(9));
    attack(over(b'5'), |tree, result| {
        result.unwrap();
        assert!(tree.join("d").symlink_metadata().unwrap().is_dir());
    });
    attack(over(b'0'), |tree, result| {
        result.unwrap();
        assert!(tree.join("d").symlink_metadata().unwrap().is_file());
    });
    let file = Archive::new().block(Block::new(b"s", b'2').link(b"@/secret").mode(0o777).owner(9, 9).mtime(9));
    attack(file, |tree, result| {
        result.unwrap();
        assert!(tree.join("s").symlink_metadata().unwrap().is_symlink());
    });
    let xattr = Archive::new().pax(&[("SCHILY.xattr.user.evil", b"x")]).symlink("s", "@/secret");
    attack(xattr, |_, result| assert!(result.unwrap().skipped.contains(&(Skipped::Xattr("user.evil".into()), 1))));
    // A directory that waits for its metadata is swapped for a symlink.
    let swapped = Archive::new()
        .block(Block::new(b"d", b'5').mode(0o2777).owner(9, 9).mtime(9))
        .block(Block::new(b"d/sub", b'5').mode(0o2777).owner(9, 9).mtime(9))
        .symlink("d", "@");
    attack(swapped, |tree, result| {
        result.unwrap();
        assert!(tree.join("d").symlink_metadata().unwrap().is_symlink());
    });
}

#[test]
fn hard_links_do_not_reach_outside() {
    let through = Archive::new().symlink("d", "@").hard_link("h", "d/secret");
    attack(through, |_, result| assert_eq!(error_kind(result), ErrorKind::Corrupt));
    let absolute = Archive::new().symlink("s", "@/secret").hard_link("h", "s").file("h", b"evil");
    attack(absolute, |tree, result| {
        result.unwrap();
        assert_eq!(fs::read(tree.join("h")).unwrap(), b"evil");
        assert!(tree.join("s").symlink_metadata().unwrap().is_symlink());
    });
    attack(Archive::new().file("a", b"").hard_link("a", "a"), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
    attack(Archive::new().dir("d").hard_link("h", "d"), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
    attack(Archive::new().hard_link("h", "."), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
    attack(Archive::new().hard_link("h", "nowhere"), |_, result| assert_eq!(error_kind(result), ErrorKind::Corrupt));
}

#[test]
fn cve_2021_29136_whiteouts_do_not_reach_outside() {
    attack(Archive::new().symlink("d", "@").file("d/.wh.secret", b""), |_, result| drop(result.unwrap()));
    attack(Archive::new().symlink("d", "@").file("d/.wh..wh..opq", b""), |_, result| drop(result.unwrap()));
    attack(Archive::new().symlink("d", "../outside").file(".wh.d", b""), |_, result| drop(result.unwrap()));
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.x/inside"] {
        attack(Archive::new().file(name, b""), |_, result| {
            assert_eq!(error_kind(result), ErrorKind::Hostile, "{name}");
        });
    }
    attack(Archive::new().file("../.wh.outside", b""), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
}

#[test]
fn overlays_own_marks_cannot_be_forged() {
    attack(Archive::new().block(Block::new(b"c", b'3').device(0, 0)), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
    let marks =
        ["trusted.overlay.redirect", "user.overlay.redirect", "trusted.overlay.opaque", "user.overlay.metacopy"];
    for mark in marks {
        let key = format!("SCHILY.xattr.{mark}");
        attack(Archive::new().pax(&[(&key, b"/outside")]).dir("d"), |tree, result| {
            assert_eq!(result.unwrap().skipped, [(Skipped::Xattr(mark.into()), 1)]);
            assert!(crate::sys::xattr::list(File::open(tree.join("d")).unwrap().as_fd()).unwrap().is_empty());
        });
    }
}

#[test]
fn odd_parents_are_errors_and_nothing_waits() {
    attack(Archive::new().file("f", b"").file("f/x", b""), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Corrupt);
    });
    attack(Archive::new().block(Block::new(b"p", b'6')).file("p/x", b""), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Corrupt);
    });
    attack(Archive::new().symlink("l", "l").file("l/x", b""), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
    attack(Archive::new().symlink("a", "b/x").symlink("b", "a/x").file("a/x", b""), |_, result| {
        assert_eq!(error_kind(result), ErrorKind::Hostile);
    });
    attack(Archive::new().symlink("./", "@"), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
    attack(Archive::new().file(".", b"x"), |_, result| assert_eq!(error_kind(result), ErrorKind::Hostile));
    attack(
        Archive::new().dir("proc").symlink("proc/self", "/proc/self/root").file("proc/self/x", b""),
        |tree, result| {
            // `/proc/self` inside the tree is that same symlink.
            assert_eq!(error_kind(result), ErrorKind::Hostile);
            assert!(tree.join("proc/self").symlink_metadata().unwrap().is_symlink());
        },
    );
}

/// CVE-2021-32760: a hard link's mode was given to what the symlink that it names leads to.
#[test]
fn cve_2021_32760_modes_do_not_go_through_links() {
    let evil = |name: &[u8], link: &[u8]| Block::new(name, b'1').link(link).mode(0o4777).owner(9, 9).mtime(9);
    attack(Archive::new().symlink("s", "@/secret").block(evil(b"h", b"s")), |tree, result| {
        result.unwrap();
        assert!(tree.join("h").symlink_metadata().unwrap().is_symlink());
    });
    let file = Archive::new().file("f", b"x").symlink("s", "@/secret").block(evil(b"s", b"f"));
    attack(file, |tree, result| {
        result.unwrap();
        let metadata = tree.join("s").symlink_metadata().unwrap();
        // A link has no metadata of its own: the file keeps what it was made with.
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o644, 2));
    });
}

#[test]
fn names_with_line_ends_are_names_and_nul_is_none() {
    let odd = "a\nb\rc\td\x1b[31m";
    attack(Archive::new().file(odd, b"x").symlink("s", odd), |tree, result| {
        result.unwrap();
        assert_eq!(fs::read(tree.join(odd)).unwrap(), b"x");
    });
    for key in ["path", "linkpath", "GNU.sparse.name"] {
        attack(Archive::new().pax(&[(key, b"a\0b")]).symlink("s", "t"), |_, result| {
            assert_eq!(error_kind(result), ErrorKind::Hostile);
        });
    }
    // A field ends at its first NUL; what stands behind it is nobody's.
    attack(Archive::new().block(Block::new(b"a\0/../../evil", b'0')), |tree, result| {
        result.unwrap();
        assert!(tree.join("a").is_file());
    });
}

#[test]
fn device_nodes_are_made_for_root_of_the_host_only() {
    let archive = || Archive::new().block(Block::new(b"sda", b'4').device(8, 0).mode(0o666)).end();
    for (ownership, is_device) in [(Ownership::Full, is_root()), (Ownership::Single, false)] {
        if matches!(ownership, Ownership::Full) && !is_root() {
            continue;
        }
        let place = place();
        let options = LayerOptions { ownership, ..options(WhiteoutFormat::OverlayUser) };
        let (unpacked, _) = unpack_at(&place.path().join("tree"), &archive(), &options, &[]).unwrap();
        let made = place.path().join("tree/sda").symlink_metadata().unwrap();
        assert_eq!(made.file_type().is_block_device(), is_device);
        assert_eq!(unpacked.skipped.is_empty(), is_device);
        assert_eq!(made.len(), 0);
    }
}

/// A child process, so that other tests' memory is not counted.
#[test]
fn many_long_names_in_one_directory_are_not_collected() {
    if !crate::layer::testing::is_alone() {
        let name = "many_long_names_in_one_directory_are_not_collected";
        crate::layer::testing::run_alone(module_path!(), name, &[]);
        return;
    }
    // The first time, the program's own pages come in.
    for names in [10, 30_000] {
        let before = crate::layer::testing::peak();
        let place = place();
        // The names of all of them would take 9 MiB.
        let fill = |dir: &Path| {
            fs::create_dir(dir).unwrap();
            let dir = File::open(dir).unwrap();
            fs::write(format!("/proc/self/fd/{}/first", std::os::fd::AsRawFd::as_raw_fd(&dir)), "").unwrap();
            for number in 0..names {
                let name = crate::sys::fs::c_string(format!("{number:08}{}", "n".repeat(246)).as_bytes()).unwrap();
                crate::sys::fs::linkat(dir.as_fd(), c"first", dir.as_fd(), &name).unwrap();
                if number % 20_000 == 19_999 {
                    // File systems bound how many names one file has.
                    fs::remove_file(format!("/proc/self/fd/{}/first", std::os::fd::AsRawFd::as_raw_fd(&dir))).unwrap();
                    fs::write(format!("/proc/self/fd/{}/first", std::os::fd::AsRawFd::as_raw_fd(&dir)), "").unwrap();
                }
            }
        };
        let at = |name: &str| place.path().join(name);
        let small = |what: &str| {
            let grown = crate::layer::testing::peak().saturating_sub(before);
            assert!(names < 30_000 || grown < 4 << 20, "{what}: {grown} bytes");
        };
        fill(&at("full"));
        let opaque = Archive::new().file(".wh..wh..opq", b"").end();
        unpack_at(&at("tree"), &opaque, &options(WhiteoutFormat::OverlayUser), &[&at("full")]).unwrap();
        assert_eq!(fs::read_dir(at("tree")).unwrap().count() as u32, names + 1);
        small("an opaque root");
        let parent = File::open(place.path()).unwrap();
        crate::sys::fs::remove_tree(parent.as_fd(), "tree".as_ref()).unwrap();
        assert!(!at("tree").exists());
        small("removal");
        let opaque = Archive::new().file("new", b"").file(".wh..wh..opq", b"").end();
        unpack_at(&at("full"), &opaque, &options(WhiteoutFormat::Apply), &[]).unwrap();
        assert_eq!(fs::read_dir(at("full")).unwrap().count(), 1);
        small("an opaque root that is applied");
    }
}

/// A child process, so that other tests' memory is not counted.
#[test]
fn few_symlinks_do_not_make_many_directories() {
    if crate::layer::testing::is_alone() {
        let place = place();
        let archive = fs::read(std::env::var_os("CORACLE_TEST_ARCHIVE").unwrap()).unwrap();
        let error = unpack_at(&place.path().join("tree"), &archive, &options(WhiteoutFormat::OverlayUser), &[]);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Limit);
        let peak = crate::layer::testing::peak();
        assert!(peak < 64 << 20, "{peak} bytes");
        return;
    }
    let long = ["n".repeat(200).as_str(); 18].join("/");
    let deep = ["a"; 2000].join("/");
    let around = format!("a/{}", "k/../".repeat(800));
    let mut deeper = Archive::new();
    let mut longer = Archive::new();
    let mut circles = Archive::new().dir("a").dir("a/k");
    for number in 0..39 {
        let before = if number == 0 { String::new() } else { format!("s{}/", number - 1) };
        let link = |text: &str| format!("{before}{text}").into_bytes();
        let name = format!("s{number}");
        deeper = deeper.pax(&[("linkpath", &link(&deep))]).symlink(&name, "x");
        longer = longer.pax(&[("linkpath", &link(&long))]).symlink(&name, "x");
        circles = circles.pax(&[("linkpath", &link(&around))]).symlink(&name, "x");
    }
    for archive in [deeper, longer, circles] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &archive.file("s38/f", b"").end()).unwrap();
        let variable = ("CORACLE_TEST_ARCHIVE", file.path().as_os_str());
        crate::layer::testing::run_alone(module_path!(), "few_symlinks_do_not_make_many_directories", &[variable]);
    }
    let grown = Archive::new().pax(&[("linkpath", long.as_bytes())]).symlink("s", "x");
    let name = format!("s/{}/f", ["m".repeat(200).as_str(); 15].join("/"));
    let archive = grown.pax(&[("path", name.as_bytes())]).file("x", b"").end();
    let place = place();
    let error = unpack_at(&place.path().join("tree"), &archive, &options(WhiteoutFormat::OverlayUser), &[]);
    assert!(error.unwrap_err().to_string().contains("`path_length`"));
}

#[test]
fn bombs_stop_at_a_named_limit() {
    let limits = Limits {
        depth: 20,
        bytes: 1 << 20,
        entries: 30,
        path_length: 200,
        xattrs: 3,
        xattr_bytes: 1000,
        pax_bytes: 5000,
        sparse_pieces: 5,
        ..Limits::default()
    };
    let options = LayerOptions { limits, ..options(WhiteoutFormat::OverlayUser) };
    let limit = |archive: Archive| {
        let place = place();
        let error = unpack_at(&place.path().join("tree"), &archive.end(), &options, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
        error.to_string()
    };
    assert!(
        limit(Archive::new().file(&"d/".repeat(20).trim_end_matches('/').replace("/d", "/e/d"), b"")).contains("depth")
    );
    let mut doubling = Archive::new().dir("a/b/c/d/e/f/g");
    for (name, target) in [("s1", "a/b/c/d/e/f/g"), ("s2", "s1/x/x/x/x/x"), ("s3", "s2/x/x/x/x/x/x/x")] {
        doubling = doubling.symlink(name, target);
    }
    assert!(limit(doubling.file("s3/x/x/x", b"")).contains("depth"));
    let sparse = Block::new(b"s", b'S').gnu().with(483, format!("{:011o}\0", 2 << 20).as_bytes());
    assert!(limit(Archive::new().block(sparse)).contains("bytes"));
    let many = (0..31).fold(Archive::new(), |archive, number| archive.file(&number.to_string(), b""));
    assert!(limit(many).contains("`entries` of 30"));
    // Directories that only the paths of others name count, too, and so do files that come from below.
    let ways = |count: u32| {
        (0..count).fold(Archive::new(), |archive, number| archive.file(&format!("{number}/a/a/a/a/f"), b""))
    };
    assert!(limit(ways(6)).contains("`entries` of 30"));
    let unpack = |archive: Archive, below: &[&Path]| {
        let place = place();
        unpack_at(&place.path().join("tree"), &archive.end(), &options, below)
    };
    unpack(ways(5), &[]).unwrap();
    let lower = place();
    (0..16).for_each(|number| fs::write(lower.path().join(number.to_string()), "").unwrap());
    let links = |count: u32| {
        (0..count).fold(Archive::new(), |all, number| all.hard_link(&format!("l{number}"), &number.to_string()))
    };
    unpack(links(15), &[lower.path()]).unwrap();
    let error = unpack(links(16), &[lower.path()]).unwrap_err();
    assert!(error.to_string().contains("`entries` of 30"), "{error}");
    let pax = |records: &[(&str, &[u8])]| limit(Archive::new().pax(records).file("f", b""));
    assert!(pax(&[("path", &[b'p'; 201])]).contains("`path_length` of 200"));
    assert!(pax(&[("linkpath", &[b'p'; 201])]).contains("`path_length` of 200"));
    assert!(pax(&[("comment", &[b'c'; 5000])]).contains("`pax_bytes` of 5000"));
    assert!(pax(&[("SCHILY.xattr.user.a", &[0; 1000])]).contains("`xattr_bytes` of 1000"));
    let names = ["a", "b", "c", "d"].map(|name| format!("SCHILY.xattr.user.{name}"));
    assert!(pax(&names.each_ref().map(|name| (name.as_str(), &b""[..]))).contains("`xattrs` of 3"));
    let map: String = (0..6).map(|piece| format!("{},0,", piece * 10)).collect();
    let pieces = [("GNU.sparse.map", map.trim_end_matches(',').as_bytes()), ("GNU.sparse.size", b"100")];
    assert!(pax(&pieces).contains("`sparse_pieces` of 5"));
    assert!(limit(Archive::new().file("f", &[0; 2 << 20])).contains("`bytes`"));
}
