//! Edits of the entries of `index.json`, as pure functions over the list, to be run inside
//! [`content::Store::update_index`](crate::content::Store::update_index).
//!
//! Rules: a name stands in one entry only; an image has either named entries or exactly one nameless entry; an image
//! that loses its last name because the name moved to another image stays as a nameless one.

use std::collections::HashSet;

use crate::content::IndexEntry;
use crate::name::{Digest, Reference};

/// The name of an entry. Bare tags and other forms that foreign programs write name nothing here.
pub(crate) fn name_of(entry: &IndexEntry) -> Option<Reference> {
    entry.ref_name().filter(|name| name.contains(['/', ':'])).and_then(|name| name.parse().ok())
}

/// Whether an entry carries `name`.
pub(crate) fn is_named(entry: &IndexEntry, name: &Reference) -> bool {
    name_of(entry).as_ref() == Some(name)
}

/// Gives `names` to the image of `target`, taking them from whichever images had them. One look at each entry, however
/// many names there are: an archive may have thousands.
pub(crate) fn set(entries: &mut Vec<IndexEntry>, target: &IndexEntry, names: &[Reference]) {
    let mut wanted: HashSet<&Reference> = names.iter().collect();
    let mut robbed = Vec::new();
    entries.retain(|entry| {
        let Some(name) = name_of(entry) else {
            return entry.digest != target.digest || entry.ref_name().is_some();
        };
        if !wanted.contains(&name) {
            return true;
        }
        if entry.digest == target.digest {
            return wanted.remove(&name);
        }
        robbed.push(entry.clone());
        false
    });
    let mut there: HashSet<Digest> = entries.iter().map(|entry| entry.digest.clone()).collect();
    there.insert(target.digest.clone());
    for mut entry in robbed {
        if there.insert(entry.digest.clone()) {
            entry.set_ref_name(None);
            entries.push(entry);
        }
    }
    // In the order in which they were given.
    for name in names {
        if wanted.remove(name) {
            let mut entry = target.clone();
            entry.set_ref_name(Some(&name.to_string()));
            entries.push(entry);
        }
    }
}

/// Removes the entry of `name`.
pub(crate) fn take(entries: &mut Vec<IndexEntry>, name: &Reference) -> Option<IndexEntry> {
    let position = entries.iter().position(|entry| is_named(entry, name))?;
    Some(entries.remove(position))
}

/// Makes sure that the image of `target` has an entry, nameless if there is no other.
pub(crate) fn keep(entries: &mut Vec<IndexEntry>, mut target: IndexEntry) {
    if !has(entries, &target.digest) {
        target.set_ref_name(None);
        entries.push(target);
    }
}

/// Whether a manifest has any entry.
pub(crate) fn has(entries: &[IndexEntry], digest: &Digest) -> bool {
    entries.iter().any(|entry| entry.digest == *digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::MediaType;

    fn entry(content: &str) -> IndexEntry {
        IndexEntry::new(MediaType::OciManifest, Digest::of(content.as_bytes()), 1)
    }

    fn name(text: &str) -> Reference {
        text.parse().unwrap()
    }

    /// `a=debian:1 b=` for readable comparisons.
    fn show(entries: &[IndexEntry]) -> String {
        let label = |digest: &Digest| if *digest == Digest::of(b"a") { "a" } else { "b" };
        let show = |entry: &IndexEntry| {
            format!("{}={}", label(&entry.digest), name_of(entry).map(|name| name.familiar()).unwrap_or_default())
        };
        entries.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_move_and_images_stay() {
        let mut entries = Vec::new();
        keep(&mut entries, entry("a"));
        keep(&mut entries, entry("a"));
        assert_eq!(show(&entries), "a=");
        set(&mut entries, &entry("a"), &[name("debian:1")]);
        set(&mut entries, &entry("a"), &[name("debian:1")]);
        assert_eq!(show(&entries), "a=debian:1");
        set(&mut entries, &entry("a"), &[name("other:1")]);
        set(&mut entries, &entry("b"), &[name("debian:1")]);
        assert_eq!(show(&entries), "a=other:1 b=debian:1");
        set(&mut entries, &entry("b"), &[name("other:1")]);
        assert_eq!(show(&entries), "b=debian:1 a= b=other:1");
        assert_eq!(take(&mut entries, &name("debian:1")).unwrap().digest, Digest::of(b"b"));
        assert!(take(&mut entries, &name("debian:1")).is_none());
    }

    #[test]
    fn foreign_names_are_left_alone() {
        let mut bare = entry("a");
        bare.set_ref_name(Some("latest"));
        let mut short = entry("b");
        short.set_ref_name(Some("debian:1"));
        let mut entries = vec![bare, short];
        assert_eq!(name_of(&entries[0]), None);
        assert!(is_named(&entries[1], &name("docker.io/library/debian:1")));
        set(&mut entries, &entry("a"), &[name("x:1")]);
        assert_eq!(show(&entries), "a= b=debian:1 a=x:1");
    }
}
