//! Others read what we write, and see the same.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle::image::CommitOptions;
use coracle::layer::{PackOptions, PackSource, pack};
use coracle::{Engine, Image};

use super::shared::skip::{missing, other_user};
use super::support::{Lab, image, is_root, run, scratch, with_programs};

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        missing(program);
    }
    found
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Something of everything that a tar can hold.
fn tree(root: &Path) {
    let long = root.join("d".repeat(200)).join("e".repeat(90));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(255)), "long").unwrap();
    fs::hard_link(long.join("f".repeat(255)), root.join("twin")).unwrap();
    symlink("t".repeat(300), root.join("link")).unwrap();
    let bytes = std::ffi::OsStr::new("line\nfeed");
    fs::write(root.join(bytes), "odd").unwrap();
    fs::write(root.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"raw\xff")), "raw").unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(4 << 20).unwrap();
    fs::write(root.join("program"), "#!/bin/sh").unwrap();
    fs::set_permissions(root.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    if is_root() {
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&root.join("null"), kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
        std::os::unix::fs::lchown(root.join("link"), Some(3_000_000), Some(5)).unwrap();
        std::os::unix::fs::lchown(root.join("sticky"), Some(7), Some(2_500_000)).unwrap();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    File::options().write(true).open(root.join("twin")).unwrap().set_modified(time).unwrap();
}

fn packed(tree: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    pack(PackSource::Directory(tree), &PackOptions::default(), &mut tar).unwrap();
    tar
}

#[test]
fn gnu_tar_makes_the_same_tree() {
    if !has("tar") {
        return;
    }
    let dir = scratch();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for path in [&from, &to] {
        fs::create_dir(path).unwrap();
    }
    tree(&from);
    let tar = packed(&from);
    let file = dir.path().join("tar");
    fs::write(&file, &tar).unwrap();
    let names = output(Command::new("tar").arg("-tf").arg(&file));
    assert_eq!(names.lines().count(), if is_root() { 12 } else { 11 }, "{names}");
    output(Command::new("tar").args(["-xpf"]).arg(&file).arg("-C").arg(&to).args(["--xattrs", "--xattrs-include=*"]));
    assert!(packed(&to) == tar);
}

/// An image layout with this image, called `latest`.
fn layout(engine: &Engine, image: &Image, at: &Path) -> PathBuf {
    let layout = at.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for entry in fs::read_dir(engine.root().join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), blobs.join(entry.file_name())).unwrap();
    }
    fs::copy(engine.root().join("oci-layout"), layout.join("oci-layout")).unwrap();
    let size = fs::metadata(blobs.join(image.digest().hex())).unwrap().len();
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.digest(), "size": size,
            "annotations": { "org.opencontainers.image.ref.name": "latest" },
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    layout
}

/// An image that a container has changed in every way that a layer can say.
fn changed(lab: &Lab) -> Image {
    let script = "echo more >> /etc/passwd; rm /etc/group; rm -r /home/bob; echo file > /home/bob; mkdir -p /made/a/b;
                  touch -d @5.25 /made/a/b; ln /etc/passwd /made/twin; ln -s ../x /made/link; mkfifo /made/pipe;
                  truncate -s 2M /made/hole; chmod 4755 /made/twin; rm -r /tmp; mkdir -m 1777 /tmp; echo y > /tmp/y";
    let parent = image(&lab.engine);
    run(&with_programs(parent.container()).keep(true).name("changed"), script);
    lab.engine.find_container("changed").unwrap().commit(&CommitOptions::default()).unwrap()
}

#[test]
fn umoci_unpacks_what_we_show() {
    if !is_root() {
        return other_user("root");
    }
    if !has("umoci") {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let committed = changed(&lab);
    let dir = scratch();
    let layout = layout(&lab.engine, &committed, dir.path());
    let bundle = dir.path().join("bundle");
    output(Command::new("umoci").args(["unpack", "--image"]).arg(format!("{}:latest", layout.display())).arg(&bundle));
    let list = "find etc home made tmp -printf '%y %m %U:%G %T@ %l %p\\n' | grep -v -e etc/hostname -e etc/hosts -e etc/resolv \
                | sort; find made home tmp -type f | sort | xargs md5sum; stat -c %h made/twin";
    let mut theirs = Command::new("sh");
    theirs.args(["-c", list]).current_dir(bundle.join("rootfs"));
    let ours = run(&with_programs(committed.container()), &format!("cd /; {list}"));
    // Mounting its own files there changes the time of the container's /etc.
    let settled = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| match line.ends_with(" etc") {
            true => line.split(' ').take(3).collect::<Vec<_>>().join(" "),
            false => line.to_owned(),
        });
        let mut lines: Vec<String> = lines.collect();
        lines.sort();
        lines
    };
    assert_eq!(settled(&ours), settled(&output(&mut theirs)));
}

#[test]
fn skopeo_carries_what_we_commit() {
    if !has("skopeo") {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let committed = changed(&lab);
    let dir = scratch();
    let layout = layout(&lab.engine, &committed, dir.path());
    let archive = dir.path().join("archive.tar");
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--insecure-policy"]).arg(format!("oci:{}:latest", layout.display()));
    output(copy.arg(format!("docker-archive:{}:carried:1", archive.display())));
    lab.engine.remove_image(&committed.id().to_string(), true).unwrap();
    let loaded = lab.engine.load(archive.as_path()).unwrap();
    assert_eq!(loaded.config().rootfs.diff_ids, committed.config().rootfs.diff_ids);
    assert_eq!(run(&with_programs(loaded.container()), "cat /tmp/y"), "y\n");
}
