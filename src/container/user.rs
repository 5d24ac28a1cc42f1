//! Who the workload runs as: the one parser of `USER` and `--user`, and of the image's passwd(5) and group(5).

use crate::layer::View;
use crate::{Error, ErrorKind, Result};

/// What is read of an image's passwd and group file at most; larger ones are refused, not read in part.
pub(super) const LIMIT: u64 = 4 << 20;
/// Supplementary groups that one user may have.
const GROUPS: usize = 256;

/// The user of a workload, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// One half of `user[:group]`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// A number is a number, whatever the files say: digits never become a name, and what does not fit is an error. The
/// last id, 2^32-1, means "no change" to the kernel and is no id.
fn id<'a>(text: &'a str, what: &str) -> Result<Id<'a>> {
    let refuse =
        |why: &'static str| Err(Error::new(ErrorKind::Invalid, format!("use the {what} {text:?}")).because(why));
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<u32>() {
            Ok(u32::MAX) | Err(_) => refuse("ids go from 0 to 4294967294"),
            Ok(number) => Ok(Id::Number(number)),
        };
    }
    if text.starts_with(['-', '+']) {
        return refuse("a name does not start with a sign, and an id has none");
    }
    if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return refuse("names have neither blanks nor control characters");
    }
    Ok(Id::Name(text))
}

/// Resolves `user[:group]` as the image's files say; empty means root.
pub(crate) fn resolve(text: &str, view: &View) -> Result<User> {
    let read = |path: &str| -> Result<Vec<u8>> { Ok(view.read_file(path.as_bytes(), LIMIT)?.unwrap_or_default()) };
    resolve_in(text, &read("/etc/passwd")?, &read("/etc/group")?)
}

pub(super) fn resolve_in(text: &str, passwd: &[u8], group: &[u8]) -> Result<User> {
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    // `:group` alone means root's user.
    let user = if user_text.is_empty() { Id::Number(0) } else { id(user_text, "user")? };
    let entry = lines(passwd, 7).find(|fields| match user {
        Id::Number(number) => field(fields, 2) == Some(number),
        Id::Name(name) => fields[0] == name.as_bytes(),
    });
    let (uid, mut gid, home, name) = match (&entry, &user) {
        (Some(fields), user) => {
            let bad = || {
                Error::new(ErrorKind::Corrupt, format!("use the user {text:?}"))
                    .path("/etc/passwd")
                    .because("its line there has no valid user or group id")
            };
            let uid = match user {
                Id::Number(number) => *number,
                Id::Name(_) => field(fields, 2).ok_or_else(bad)?,
            };
            let home = String::from_utf8_lossy(fields[5]).into_owned();
            (uid, field(fields, 3).ok_or_else(bad)?, home, Some(fields[0]))
        }
        (None, Id::Number(number)) => (*number, 0, String::new(), None),
        (None, Id::Name(name)) => {
            return Err(Error::new(ErrorKind::NotFound, format!("use the user {name:?}"))
                .path("/etc/passwd")
                .because("the container's file has no such user")
                .remedy("use a numeric id"));
        }
    };
    let mut groups = vec![];
    match group_text.map(|text| id(text, "group")).transpose()? {
        Some(Id::Number(number)) => gid = number,
        Some(Id::Name(name)) => {
            let found = lines(group, 4).find(|fields| fields[0] == name.as_bytes());
            gid = found.and_then(|fields| field(&fields, 2)).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("use the group {name:?}"))
                    .path("/etc/group")
                    .because("the container's file has no such group")
                    .remedy("use a numeric id")
            })?;
        }
        // Membership counts only where no group was named, as docker has it.
        None => {
            for fields in lines(group, 4) {
                let member = name.is_some_and(|name| fields[3].split(|byte| *byte == b',').any(|other| other == name));
                if let (true, Some(number)) = (member, field(&fields, 2))
                    && number != gid
                    && !groups.contains(&number)
                {
                    // Fewer groups than the image says would be another user.
                    if groups.len() == GROUPS {
                        return Err(Error::new(ErrorKind::Limit, format!("use the user {text:?}"))
                            .path("/etc/group")
                            .because(format!("the user is in more than {GROUPS} groups"))
                            .remedy("name one group: user:group, which takes no others"));
                    }
                    groups.push(number);
                }
            }
        }
    }
    let home = if home.is_empty() { "/".to_owned() } else { home };
    Ok(User { uid, gid, groups, home })
}

/// Lines with at least `count` fields; fewer than the format has are padded, as long as the first three are there.
fn lines(file: &[u8], count: usize) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"#")).filter_map(move |line| {
        let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        if fields.len() < 3 || fields[0].is_empty() {
            return None;
        }
        fields.resize(fields.len().max(count), b"");
        Some(fields)
    })
}

fn field(fields: &[&[u8]], index: usize) -> Option<u32> {
    let text = std::str::from_utf8(fields.get(index)?).ok()?;
    match id(text, "id") {
        Ok(Id::Number(number)) => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/sh\n99:x:5:5::/:\nbad:x:4294967296:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\nwheel:x:10:alice,bob\naudio:x:29:bob\n";

    fn of(text: &str) -> Result<User> {
        resolve_in(text, PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(of("").unwrap(), User { uid: 0, gid: 0, groups: vec![], home: "/root".into() });
        assert_eq!(of("bob").unwrap(), User { uid: 1000, gid: 100, groups: vec![10, 29], home: "/home/bob".into() });
        assert_eq!(of("1000").unwrap(), of("bob").unwrap());
        assert!(of("bob:wheel").unwrap().groups.is_empty());
        assert_eq!(of("bob:wheel").unwrap().gid, 10);
        assert_eq!(of("7:8").unwrap(), User { uid: 7, gid: 8, groups: vec![], home: "/".into() });
        assert_eq!(of("4294967294").unwrap().uid, 4294967294);
    }

    #[test]
    fn groups_are_never_left_out() {
        let file = |count: u32| -> String { (1..=count).map(|n| format!("g{n}:x:{}:bob\n", 2000 + n)).collect() };
        let of = |text: &str, count| resolve_in(text, PASSWD, file(count).as_bytes());
        assert_eq!(of("bob", 256).unwrap().groups.len(), 256);
        let error = of("bob", 257).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("256"), "{error}");
        assert!(of("bob:g1", 257).unwrap().groups.is_empty());
    }

    #[test]
    fn digits_are_never_a_name_and_never_wrap() {
        // CVE-2024-40635: an id beyond the range must not become a name, and thereby root.
        for text in ["4294967295", "4294967296", "99999999999999999999", "1:4294967296", "-1", "+0", "0x0", " 0", "0 "]
        {
            let kind = of(text).unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::NotFound), "{text}");
        }
        assert_eq!(of("99").unwrap().uid, 99);
        assert_eq!(of("bad").unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(of("nobody").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(of("bob:").unwrap_err().kind(), ErrorKind::Invalid);
    }
}
