//! The attribute in which a tree of a single user keeps owners, see <https://rootlesscontaine.rs/proto/>: written by who
//! unpacks, read by who unpacks on top of it and by who packs. A container can write what it likes there.

use std::ffi::CStr;

/// Its name.
pub(super) const RECORD: &CStr = c"user.rootlesscontainers";

/// The protobuf message `{ uint32 uid = 1; uint32 gid = 2; }`; zeros are left out, as proto3 does.
pub(super) fn owner_record(uid: u32, gid: u32) -> Vec<u8> {
    let mut record = Vec::new();
    for (tag, mut value) in [(0x08, uid), (0x10, gid)] {
        if value == 0 {
            continue;
        }
        record.push(tag);
        while value > 0x7f {
            record.push(value as u8 & 0x7f | 0x80);
            value >>= 7;
        }
        record.push(value as u8);
    }
    record
}

/// What [`owner_record`] was made of; `None` for anything else.
pub(super) fn recorded_owner(mut record: &[u8]) -> Option<(u32, u32)> {
    let (mut uid, mut gid) = (0, 0);
    while let [tag, rest @ ..] = record {
        let end = rest.iter().position(|byte| byte & 0x80 == 0).filter(|end| *end < 5)?;
        let (digits, rest) = rest.split_at(end + 1);
        record = rest;
        let value = digits.iter().rev().fold(0, |value, digit| value << 7 | u64::from(digit & 0x7f));
        // The greatest number is no id: the protocol and the kernel mean "leave it" by it.
        let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX)?;
        match tag {
            0x08 => uid = id,
            0x10 => gid = id,
            _ => return None,
        }
    }
    Some((uid, gid))
}

#[cfg(test)]
mod tests {
    #[test]
    fn records_are_read_back() {
        use super::{owner_record, recorded_owner};
        for (uid, gid) in [(0, 0), (1, 300), (1000, 0), (0, 127), (128, 65_534), (u32::MAX - 1, 100_000)] {
            assert_eq!(recorded_owner(&owner_record(uid, gid)), Some((uid, gid)));
        }
        let no_ids = [&b"lie"[..], &[0x08], &[0x08, 0x80], &[0x18, 1], &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 1]];
        for record in no_ids.into_iter().map(<[u8]>::to_vec).chain([owner_record(u32::MAX, 1)]) {
            assert_eq!(recorded_owner(&record), None, "{record:?}");
        }
    }

    #[test]
    fn records_are_protobuf() {
        assert!(super::owner_record(0, 0).is_empty());
        assert_eq!(super::owner_record(1, 300), [0x08, 1, 0x10, 0xac, 0x02]);
        assert_eq!(super::owner_record(u32::MAX, 0), [0x08, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    }
}
