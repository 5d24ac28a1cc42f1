//! Layers: a tar of changes in transit, a directory tree on disk, and the way from one to the other.
//!
//! | word | meaning |
//! |---|---|
//! | blob | the tar as it travels, plain or compressed; named by its [`Digest`](crate::Digest) |
//! | [`DiffId`](crate::name::DiffId) | the digest of the tar before compression; names what it unpacks to |
//! | tree | the directory that the tar was unpacked to, whiteouts in overlay's form |
//! | whiteout | an entry `.wh.<name>` that hides `<name>` of the layers below |
//! | opaque | a directory with an entry `.wh..wh..opq`, which hides everything that lower layers have in it |
//! | dependent | of a layer: what it unpacks to depends on the layers below, so it is kept per stack and not per DiffID |
//!
//! Layers come from strangers. Every name is resolved beneath the tree's own descriptor, the last component is never
//! followed, metadata goes through descriptors, and [`Limits`] bound what a layer may cost.

mod acl;
mod compare;
mod compression;
mod copy;
mod encoder;
mod limits;
mod owner_record;
mod pack;
mod pipeline;
mod store;
pub(crate) mod tar;
#[cfg(test)]
pub(crate) mod testing;
mod unpack;
mod usage;
mod view;

pub use compression::{Compression, Decoder};
pub(crate) use copy::{Contents, copy};
pub use encoder::EncoderOptions;
pub use limits::Limits;
pub(crate) use limits::exceeded;
pub(crate) use pack::encode;
pub use pack::{
    Access, Change, ChangeKind, LeftOut, PackOptions, PackOwners, PackSource, Packed, PackedBlob, changes, pack,
    pack_blob,
};
pub(crate) use store::Grave;
pub use store::{Layer, LayerOptions, LayerProgress, LayerStore, trees};
pub(crate) use store::{LockFile, whiteouts};
pub(crate) use unpack::Owners;
pub use unpack::{Below, Owner, Ownership, Reown, Skipped, Unpacked, WhiteoutFormat};
pub(crate) use usage::measure;
pub use view::View;
