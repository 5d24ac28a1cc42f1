//! POSIX access control lists: as text in a tar, and as the kernel keeps them in the attributes
//! `system.posix_acl_access` and `system.posix_acl_default`; see acl(5).

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Bytes of one entry: tag, permissions, id.
const ENTRY: usize = 8;

/// The attribute's value for the text that GNU tar, star and bsdtar write: entries such as `user:1000:rw-`, separated by
/// commas or line ends, with an id as a fourth part where star writes a name. `None` for what is not of that form, and
/// for users and groups that are given by name only: nobody here knows their ids.
pub(super) fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        // What `getfacl` would show as a comment.
        let entry = entry.split('#').next()?.trim();
        if entry.is_empty() {
            continue;
        }
        let mut parts = entry.split(':');
        let (kind, name, permissions, id) = (parts.next()?, parts.next()?, parts.next()?, parts.next());
        let tag = match (kind, name.is_empty()) {
            ("user" | "u", true) => USER_OBJ,
            ("user" | "u", false) => USER,
            ("group" | "g", true) => GROUP_OBJ,
            ("group" | "g", false) => GROUP,
            ("mask" | "m", true) => MASK,
            ("other" | "o", true) => OTHER,
            _ => return None,
        };
        let id = if name.is_empty() { u32::MAX } else { id.unwrap_or(name).parse().ok()? };
        let mut bits = 0u16;
        for letter in permissions.bytes() {
            bits |= match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return None,
            };
        }
        entries.push((tag, id, bits));
    }
    // The kernel wants them in this order.
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in &entries {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    (!entries.is_empty()).then_some(value)
}

/// Rewrites the ids in an attribute's value with those that `user` and `group` give for them. What does not look like
/// such a value stays as it is; the kernel refuses it.
pub(super) fn map_ids(value: &mut [u8], user: impl Fn(u32) -> u32, group: impl Fn(u32) -> u32) {
    let Some(entries) = value.get_mut(VERSION.to_le_bytes().len()..) else { return };
    for entry in entries.as_chunks_mut::<ENTRY>().0 {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let id = match tag {
            USER => user(id),
            GROUP => group(id),
            _ => continue,
        };
        entry[4..].copy_from_slice(&id.to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const VALUE: &[u8] = &[
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 5,
        0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];

    #[test]
    fn every_writers_text_is_the_same_value() {
        for text in [
            "user::rw-\nuser:1000:r--\ngroup::r--\nmask::r-x\nother::---\n",
            "user::rw-,group::r--,user:1000:r--\t#effective:r--,mask::r-x,other::---",
            "u::rw-,u:lisa:r--:1000,g::r--,m::r-x,o::---",
        ] {
            assert_eq!(from_text(text.as_bytes()).unwrap(), VALUE, "{text}");
        }
        for text in ["", "user:lisa:rw-", "user", "user::rwz", "robot::rw-", "other:5:r--", "user:1000", "\u{ff}:"] {
            assert_eq!(from_text(text.as_bytes()), None, "{text}");
        }
        assert_eq!(from_text(b"\xff"), None);
    }

    #[test]
    fn only_ids_are_mapped() {
        let mut value = VALUE.to_vec();
        map_ids(&mut value, |id| id + 1, |id| id + 2);
        assert_eq!(value.iter().zip(VALUE).filter(|(a, b)| a != b).count(), 1);
        assert_eq!(value[16], 233);
        map_ids(&mut [1, 2, 3], |_| 0, |_| 0);
    }
}
