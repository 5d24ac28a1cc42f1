//! What is in a directory tree, looked at with nothing of the crate's.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// As in [`coracle::fuzzing::TarEntry`]; a further name of a file is shown like the first.
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    /// What is in a file, or what a symlink says.
    pub content: Vec<u8>,
    /// Those that start with `user.`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The same for all names of one file, and the first of them.
    pub first: Vec<u8>,
}

/// Everything below `root`, by path.
pub fn walk(root: &Path) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut open = vec![Vec::new()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(root.join(OsString::from_vec(dir.clone()))).unwrap() {
            let name = entry.unwrap().file_name();
            let path = if dir.is_empty() { name.as_bytes().to_vec() } else { [&dir, name.as_bytes()].join(&b'/') };
            let full = root.join(OsString::from_vec(path.clone()));
            let status = full.symlink_metadata().unwrap();
            let (kind, content) = match status.file_type() {
                kind if kind.is_dir() => ('d', Vec::new()),
                kind if kind.is_symlink() => ('l', std::fs::read_link(&full).unwrap().into_os_string().into_vec()),
                kind if kind.is_file() => ('-', std::fs::read(&full).unwrap_or_default()),
                kind if kind.is_fifo() => ('p', Vec::new()),
                kind if kind.is_char_device() => ('c', Vec::new()),
                kind if kind.is_block_device() => ('b', Vec::new()),
                _ => ('?', Vec::new()),
            };
            let node = Node {
                kind,
                mode: status.mode() & 0o7777,
                owner: (status.uid(), status.gid()),
                mtime: (status.mtime(), status.mtime_nsec() as u32),
                device: match kind {
                    'c' | 'b' => (libc::major(status.rdev()), libc::minor(status.rdev())),
                    _ => (0, 0),
                },
                content,
                xattrs: if matches!(kind, 'd' | '-') { xattrs(&full) } else { BTreeMap::new() },
                first: path.clone(),
            };
            if kind == 'd' {
                open.push(path.clone());
            } else {
                inodes.entry(status.ino()).or_default().push(path.clone());
            }
            nodes.insert(path, node);
        }
    }
    for names in inodes.values() {
        let first = names.iter().min().unwrap();
        for name in names {
            nodes.get_mut(name).unwrap().first.clone_from(first);
        }
    }
    nodes
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0u8; 1 << 16];
    // SAFETY: the path ends with a NUL; pointer and length are those of one live buffer.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let names = names.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let mut found = BTreeMap::new();
    for name in names {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0u8; 1 << 16];
        // SAFETY: as above.
        let length = unsafe { libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        if let Ok(length) = usize::try_from(length) {
            value.truncate(length);
            found.insert(name.to_vec(), value);
        }
    }
    found
}

/// Sets an attribute; whether that went well.
#[allow(dead_code)]
pub fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> bool {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end with NUL; pointer and length are those of one live slice.
    unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) == 0 }
}

pub fn is_root() -> bool {
    // SAFETY: takes and does nothing.
    unsafe { libc::geteuid() == 0 }
}
