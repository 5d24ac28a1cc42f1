//! Archives made byte by byte, also such as no tool would write.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The value in an attribute of the access control list `user::rw-,user:12345:r--,group::r--,mask::r--,other::---`.
pub(crate) const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 57, 48, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0,
    255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// Makes a directory hand that list down, with all rights for its owner; `false` where the file system has no lists.
pub(crate) fn hand_down_acl(dir: &Path) -> bool {
    use std::os::fd::AsFd;
    let dir = std::fs::File::open(dir).unwrap();
    let mut list = ACL.to_vec();
    list[6] = 7;
    match crate::sys::xattr::set(dir.as_fd(), c"system.posix_acl_default", &list) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => false,
        result => {
            result.unwrap();
            true
        }
    }
}

/// A header block with a correct checksum; the fields can be bent before.
#[derive(Clone)]
pub(crate) struct Block(pub(crate) [u8; 512]);

impl Block {
    pub(crate) fn new(name: &[u8], flag: u8) -> Block {
        let mut block = Block([0; 512]);
        block.put(0, name);
        block.put(100, b"0000644\0");
        block.put(108, b"0000000\0");
        block.put(116, b"0000000\0");
        block.put(136, b"00000000000\0");
        block.0[156] = flag;
        block.put(257, b"ustar\x0000");
        block.size(0)
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Block {
        self.put(at, bytes);
        self
    }

    pub(crate) fn gnu(self) -> Block {
        self.with(257, b"ustar  \0")
    }

    pub(crate) fn size(self, size: u64) -> Block {
        self.with(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn mode(self, mode: u32) -> Block {
        self.with(100, format!("{mode:07o}\0").as_bytes())
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Block {
        self.with(108, format!("{uid:07o}\0").as_bytes()).with(116, format!("{gid:07o}\0").as_bytes())
    }

    pub(crate) fn mtime(self, seconds: u64) -> Block {
        self.with(136, format!("{seconds:011o}\0").as_bytes())
    }

    pub(crate) fn link(self, target: &[u8]) -> Block {
        self.with(157, target)
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Block {
        self.with(329, format!("{major:07o}\0").as_bytes()).with(337, format!("{minor:07o}\0").as_bytes())
    }

    pub(crate) fn seal(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// A directory that goes at the end of the test, whatever modes its directories have been given: without root,
/// nothing can be removed from a read-only one.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fn open_up(directory: &Path) {
            let _ = std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700));
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    open_up(&entry.path());
                }
            }
        }
        open_up(self.path());
    }
}

/// An archive being written.
#[derive(Clone, Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive::default()
    }

    pub(crate) fn block(mut self, block: Block) -> Archive {
        self.0.extend(block.seal());
        self
    }

    /// Data, padded to whole blocks.
    pub(crate) fn data(mut self, bytes: &[u8]) -> Archive {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Archive {
        self.block(Block::new(name.as_bytes(), b'0').size(data.len() as u64)).data(data)
    }

    pub(crate) fn dir(self, name: &str) -> Archive {
        self.block(Block::new(name.as_bytes(), b'5').mode(0o755))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Archive {
        self.block(Block::new(name.as_bytes(), b'2').mode(0o777).link(target.as_bytes()))
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Archive {
        self.block(Block::new(name.as_bytes(), b'1').link(target.as_bytes()))
    }

    pub(crate) fn pax_bytes(self, body: &[u8]) -> Archive {
        self.block(Block::new(b"PaxHeaders/x", b'x').size(body.len() as u64)).data(body)
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Archive {
        self.pax_bytes(&pax_records(records))
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub(crate) fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend(format!("{length} {key}=").as_bytes());
        body.extend(*value);
        body.push(b'\n');
    }
    body
}

/// Runs the test `name` of `module` (its `module_path!()`) again in a process of its own, which [`is_alone`] tells, and
/// returns what it said.
pub(crate) fn run_alone(module: &str, name: &str, variables: &[(&str, &std::ffi::OsStr)]) -> String {
    let name = format!("{}::{name}", module.split_once("::").unwrap().1);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    said
}

const ALONE: &str = "CORACLE_TEST_ALONE";

/// Whether this process was made by [`run_alone`].
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Bytes that this process had in memory at its worst, from proc_pid_status(5).
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What a tree looks like, for comparison: one line per path with everything but inode numbers and directory sizes.
pub(crate) fn snapshot(root: &std::path::Path) -> std::collections::BTreeMap<Vec<u8>, String> {
    use std::os::unix::ffi::OsStrExt;
    let mut found = std::collections::BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        found.insert(name, describe(&path));
        if path.symlink_metadata().unwrap().is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

fn describe(path: &std::path::Path) -> String {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    let metadata = path.symlink_metadata().unwrap();
    let content = if metadata.is_symlink() {
        format!("{:?}", std::fs::read_link(path).unwrap())
    } else if metadata.is_file() {
        crate::Digest::of(&std::fs::read(path).unwrap()).hex()[..12].to_owned()
    } else {
        String::new()
    };
    let root = crate::sys::path::Root::open(path.parent().unwrap()).unwrap();
    let name = crate::sys::fs::c_string(std::os::unix::ffi::OsStrExt::as_bytes(path.file_name().unwrap())).unwrap();
    let handle = crate::sys::fs::open_handle(root.dir(), &name).unwrap();
    let mut xattrs = Vec::new();
    for name in crate::sys::xattr::list_handle(handle.as_fd()).unwrap() {
        let value = crate::sys::xattr::get_handle(handle.as_fd(), &name).unwrap().unwrap();
        xattrs.push((name, String::from_utf8_lossy(&value).into_owned()));
    }
    xattrs.sort();
    format!(
        "{:o} {}:{} {}.{:09} n{} s{} d{:x} {content} {xattrs:?}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        if metadata.is_dir() { 0 } else { metadata.nlink() },
        if metadata.is_dir() { 0 } else { metadata.size() },
        metadata.rdev(),
    )
}
