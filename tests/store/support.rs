//! Images to load, and this program again in another role.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use coracle::system::{Depth, Report};
use coracle::{Digest, Engine, Platform};

/// A docker archive of one image, `name`: each layer has some files of `size` bytes that do not compress well. What
/// `seed` says is in the first layer only, so images of different seeds share the other layers.
pub fn archive(name: &str, seed: u32, layers: usize, files: usize, size: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut put = |name: &str, bytes: &[u8]| append(&mut archive, name, bytes);
    let (mut names, mut diff_ids) = (vec![], vec![]);
    for layer in 0..layers {
        let mut tar = tar::Builder::new(Vec::new());
        // A layer that names its directories stands alone, so images share it.
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        for name in ["", "dir0/", "dir1/", "dir2/", "dir3/", "dir4/"] {
            tar.append_data(&mut header, format!("layer{layer}/{name}"), &[][..]).unwrap();
        }
        let mut state = if layer == 0 { seed } else { 0 } ^ (layer as u32).wrapping_mul(0x9e37_79b9) | 1;
        for file in 0..files {
            let body: Vec<u8> = (0..size)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8 & 0x3f
                })
                .collect();
            append(&mut tar, &format!("layer{layer}/dir{}/file{file}", file % 5), &body);
        }
        if layer == 0 {
            // Where the programs of the host are mounted.
            tar.append_data(&mut header, "usr/", &[][..]).unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            for name in ["bin", "sbin", "lib", "lib64"] {
                tar.append_link(&mut header, name, format!("usr/{name}")).unwrap();
            }
        }
        // Directories that only their owner enters: of another id of the range, only that id.
        header.set_mode(0o700);
        header.set_uid(7);
        header.set_gid(7);
        tar.append_data(&mut header, format!("layer{layer}/closed/"), &[][..]).unwrap();
        let tar = tar.into_inner().unwrap();
        diff_ids.push(Digest::of(&tar).to_string());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        names.push(format!("{layer}.tar"));
        put(&format!("{layer}.tar"), &gzip.finish().unwrap());
    }
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux", "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    put("config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    put("manifest.json", manifest.to_string().as_bytes());
    archive.into_inner().unwrap()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

/// What du(1) says, in bytes of allocated blocks. `None` where it may not look everywhere: into directories of the ids of
/// a range only as the root of a user namespace that has them, and not every unshare(1) can make one.
pub fn du(path: &Path) -> Option<u64> {
    let mut plain = Command::new("du");
    let mut mapped = Command::new("unshare");
    mapped.args(["--user", "--map-auto", "--map-root-user", "du"]);
    [&mut plain, &mut mapped].into_iter().find_map(|command| {
        let out = command.args(["-s", "--block-size=1"]).arg(path).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        out.status.success().then(|| text.split_whitespace().next().unwrap().parse().unwrap())
    })
}

/// Nothing is damaged, the shares add up, and du(1) agrees.
pub fn assert_whole(engine: &Engine) -> Report {
    let report = engine.check(Depth::Full).unwrap();
    assert!(report.is_whole(), "{:#?}", report.findings);
    let mut usage = engine.disk_usage().unwrap();
    // File systems that allocate late may do it between the two.
    for _ in 0..10 {
        if du(engine.root()).is_none_or(|bytes| bytes == usage.total.bytes) {
            break;
        }
        nix::unistd::sync();
        usage = engine.disk_usage().unwrap();
    }
    let shares = [usage.images, usage.layers, usage.containers, usage.snapshots, usage.temporary];
    let mut sum = usage.other;
    for share in shares {
        sum += share.usage;
    }
    assert_eq!(sum, usage.total);
    if let Some(bytes) = du(engine.root()) {
        assert_eq!(usage.total.bytes, bytes, "{usage:#?}");
    }
    report
}

/// This program again, in a role; see [`role_entry`].
pub fn role(name: &str, root: &Path, seed: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["support::role_entry", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("CORACLE_TEST_ROLE", name).env("CORACLE_TEST_ROOT", root).env("CORACLE_TEST_SEED", seed.to_string());
    command
}

/// Not a test by itself: the way into a program of its own.
#[test]
fn role_entry() {
    let Ok(role) = std::env::var("CORACLE_TEST_ROLE") else { return };
    let root = std::path::PathBuf::from(std::env::var_os("CORACLE_TEST_ROOT").unwrap());
    let seed = std::env::var("CORACLE_TEST_SEED").unwrap().parse().unwrap();
    match role.as_str() {
        "worker" => super::crash::worker(&root, seed),
        "full" => super::crash::full(&root),
        "loader" => super::crowd::loader(&root),
        "rmi" => super::whole::removal(&root, false),
        "prune" => super::whole::removal(&root, true),
        other => panic!("no such role: {other}"),
    }
}
