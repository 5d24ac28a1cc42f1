//! Settings of the kernel that belong to one of a container's namespaces, see sysctl(8) and namespaces(7).
//!
//! Only those are written, and only where the container has that namespace of its own: every other would change the host,
//! or somebody else's container.

use oci_spec::runtime::LinuxNamespaceType as Namespace;

/// Where a setting is, below `/proc/sys`, and whose it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) path: String,
    pub(crate) namespace: Namespace,
}

/// Settings of System V IPC, each by its name.
const IPC: [&str; 9] =
    ["msgmax", "msgmnb", "msgmni", "msg_next_id", "sem", "sem_next_id", "shmall", "shmmax", "shmmni"];
const IPC_MORE: [&str; 2] = ["shm_next_id", "shm_rmid_forced"];

/// Reads a name as sysctl(8) does: `net.ipv4.ip_forward`, or with slashes where a part has a dot in it. The other answer
/// says why it is none that a container may change.
pub(crate) fn setting(name: &str) -> Result<Setting, &'static str> {
    let path: String = match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => {
            let swap = |letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    };
    let sound = |part: &str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'@');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(letter)
    };
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() < 2 || !parts.iter().copied().all(sound) {
        return Err("it is no name of a setting");
    }
    let namespace = match *parts {
        ["kernel", name] if IPC.contains(&name) || IPC_MORE.contains(&name) => Namespace::Ipc,
        ["fs", "mqueue", _] => Namespace::Ipc,
        ["net", _, ..] => Namespace::Network,
        ["kernel", "hostname"] => return Err("the spec has the field hostname for it"),
        ["kernel", "domainname"] => return Err("the spec has the field domainname for it"),
        _ => return Err("it is not a setting of one namespace, but the whole machine's"),
    };
    Ok(Setting { path, namespace })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sysctl_does() {
        let path = |name| setting(name).map(|setting| setting.path);
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Ok("net/ipv4/ip_forward"));
        assert_eq!(path("net/ipv4/conf/eth0.100/forwarding").as_deref(), Ok("net/ipv4/conf/eth0.100/forwarding"));
        assert_eq!(path("net.ipv4.conf.eth0/100.forwarding").as_deref(), Ok("net/ipv4/conf/eth0.100/forwarding"));
        assert_eq!(setting("kernel.shmmax").map(|setting| setting.namespace), Ok(Namespace::Ipc));
        assert_eq!(setting("fs.mqueue.msg_max").map(|setting| setting.namespace), Ok(Namespace::Ipc));
    }

    #[test]
    fn the_machines_settings_are_refused() {
        for name in [
            "kernel.core_pattern",
            "vm.overcommit_memory",
            "kernel.hostname",
            "kernel.shmmax.x",
            "net",
            "net/../kernel/core_pattern",
            "net..x",
            "net/ipv4/../../kernel/core_pattern",
            "fs.mqueue",
            "/net/ipv4/ip_forward",
            "net.ipv4.ip_forward\0",
            "",
        ] {
            assert!(setting(name).is_err(), "{name:?}");
        }
    }
}
