//! Repositories: named sets of tags, here those of the local store.
//!
//! | word | meaning |
//! |---|---|
//! | [`Repository`] | everything under one name, such as `docker.io/library/debian`: one image per tag |
//! | tag | a name that can be moved: `latest` |
//! | nameless image | one that lost its last tag to another image, or came without a name; listed, and gone by pruning |
//!
//! The names of the local store are the entries of its `index.json`, see [`crate::image`]. Lookups take no lock and
//! see the index as it was at one moment; changes replace it as a whole.

mod remove;
mod resolve;

pub(crate) use remove::Needless;
pub use remove::Removed;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, Images, index};
use crate::name::Reference;

/// One name of the local store and the tags under it. Cheap to clone; reads the store anew with each call.
#[derive(Debug, Clone)]
pub struct Repository {
    images: Images,
    /// Of this, the tag means nothing.
    name: Reference,
}

impl Repository {
    /// Registry and path: `docker.io/library/debian`.
    pub fn name(&self) -> String {
        self.name.name()
    }

    /// The tags under this name, sorted.
    ///
    /// # Errors
    /// Only those of reading the index.
    pub fn tags(&self) -> Result<Vec<String>> {
        let names = self.images.content().tags()?;
        let names = names.iter().filter_map(index::name_of).filter(|name| name.name() == self.name());
        let mut tags: Vec<String> = names.filter_map(|name| name.tag().map(str::to_owned)).collect();
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }

    /// The image that a tag names now.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for a tag that is not there, [`Invalid`](ErrorKind::Invalid) for a text that
    /// can be no tag.
    pub fn image(&self, tag: &str) -> Result<Image> {
        self.images.named(&self.name.with_tag(tag)?)
    }

    /// Makes a tag name an image, whatever it named before.
    ///
    /// # Errors
    /// Those of [`Images::tag`].
    pub fn tag(&self, image: &Image, tag: &str) -> Result<()> {
        self.images.tag(image, &self.name.with_tag(tag)?)
    }
}

impl Images {
    /// The repository of a name without tag or digest, whether or not it has tags yet.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a text that is no such name.
    pub fn repository(&self, name: &str) -> Result<Repository> {
        let reference: Reference = name.parse()?;
        let last = name.rsplit('/').next().unwrap_or(name);
        if last.contains([':', '@']) {
            return Err(Error::new(ErrorKind::Invalid, "open the repository")
                .path(name)
                .because("a repository's name has no tag and no digest")
                .remedy(reference.name()));
        }
        Ok(Repository { images: self.clone(), name: reference })
    }

    /// Gives an image one more name. An image that had the name stays, nameless if it has no other.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a name with a digest or without a tag, for a digest cannot be chosen;
    /// [`NotFound`](ErrorKind::NotFound) when the image was removed meanwhile.
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<()> {
        if name.digest().is_some() || name.tag().is_none() {
            return Err(Error::new(ErrorKind::Invalid, "tag the image")
                .path(name.to_string())
                .because("a name that is given has a tag and no digest"));
        }
        self.content().update_index(|entries| {
            if !entries.iter().any(|entry| self.is_same(entry, image)) {
                return Err(Error::new(ErrorKind::NotFound, "tag the image")
                    .path(image.id().to_string())
                    .because("the image was removed"));
            }
            self.set_names(entries, image, std::slice::from_ref(name));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
