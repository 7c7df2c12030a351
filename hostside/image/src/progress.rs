//! What an import tells of itself while it runs.

use crate::digest::Digest;

/// What is being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// An archive is indexed, and unpacked to disk first if it is compressed as a whole.
    Index,
    /// A layer is decompressed, checked and unpacked.
    Layer {
        /// From 1 on.
        number: usize,
        /// How many layers the image has.
        count: usize,
        /// The layer's blob, where it has a digest.
        digest: Option<Digest>,
    },
    /// A directory is copied.
    Directory,
    /// Metadata is written and the disk is flushed.
    Finish,
}

/// Follows an import. Methods are called from several threads.
pub trait Progress: Sync {
    /// A phase begins, of `bytes` to be read if that is known.
    fn phase(&self, phase: &Phase, bytes: Option<u64>);

    /// `bytes` more of a source were read. A layer may be read while an earlier one is unpacked.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: &Phase, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
}
