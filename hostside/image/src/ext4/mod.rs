//! Writes an ext4 filesystem in one pass: file contents as they come, everything else once the tree
//! is complete.
//!
//! [`Writer::new`] lays the disk out; [`Writer::contents`] takes file contents; [`Writer::finish`]
//! consumes the writer with the finished [`Tree`]. Nothing is read back, nothing is mounted, and what
//! need not be written is not: a disk that reads as zeros elsewhere is assumed ([`Disk`]).
//!
//! The features are those `mke2fs` gives a filesystem today (extents, 64bit, flex_bg, dir_index,
//! metadata_csum, extra_isize, a journal), except that it cannot be grown beyond its size
//! (no resize_inode), keeps one copy of its superblock (sparse_super2), reserves no blocks for root,
//! and has no `lost+found`: a container's root is exactly the image's, and an empty volume is empty.
//! `e2fsck` makes that directory when it first needs it.
//!
//! Every inode table counts as zeroed, so the kernel's lazy initialisation has nothing to do.

mod bitmap;
mod bytes;
mod contents;
mod crc;
mod directory;
mod extent;
mod finish;
mod geometry;
mod hash;
mod inode;
mod superblock;
mod xattr;

use std::io;

use crate::digest::Digest;
use crate::disk::Disk;
use crate::tree::Tree;
pub use contents::{Contents, FileWriter};
use finish::Finisher;
pub use geometry::BLOCK;
use geometry::Geometry;
pub(crate) use inode::kept as kept_time;
pub use xattr::{fit as xattrs_fit, is_kept as xattr_is_kept};

/// The largest filesystem, in bytes: what a monolithic sparse VMDK can be, 2 TiB.
pub const SIZE_MAX: u64 = 2 << 40;
/// The smallest, in bytes.
pub const SIZE_MIN: u64 = 16 << 20;

/// How large the filesystem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// This many bytes, rounded down to whole blocks.
    Fixed(u64),
    /// `size` bytes, or more if less than `free` bytes would be free otherwise.
    AtLeast {
        /// Bytes.
        size: u64,
        /// Bytes.
        free: u64,
    },
}

/// A volume label: at most 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label([u8; 16]);

impl Label {
    /// No label.
    pub const EMPTY: Self = Self([0; 16]);

    /// `text` as a label, unless it is longer than 16 bytes or contains NUL.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        (!text.contains('\0')).then_some(Self(bytes))
    }

    fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// What tells one filesystem from another.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The filesystem's UUID.
    pub uuid: [u8; 16],
    /// Its label.
    pub label: Label,
}

impl Identity {
    /// An identity that follows from `digest`: a UUID of version 8 (custom, RFC 9562).
    pub fn of(digest: &Digest, label: Label) -> Self {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(
            &Digest::of(&[b"ext4 uuid ", &digest.bytes()[..]].concat()).bytes()[..16],
        );
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Self { uuid, label }
    }
}

/// Why a filesystem could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    /// A size outside [`SIZE_MIN`]..=[`SIZE_MAX`].
    #[error("a filesystem of {0} bytes is too small or too large: 16 MiB to 2 TiB are possible")]
    Size(u64),
    /// The disk refused a write.
    #[error("the disk refused a write")]
    Write(#[source] io::Error),
    /// A directory beyond what two levels of index hold.
    #[error("a directory of {0} entries is too large")]
    Directory(usize),
    /// Extended attributes beyond an inode and a block.
    #[error("a file's extended attributes take more than 4 KiB")]
    Xattrs,
    /// More files than inodes.
    #[error("{files} files do not fit into a filesystem of {inodes} inodes: make the disk larger")]
    Inodes {
        /// How many there are.
        files: u32,
        /// How many would fit.
        inodes: u32,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The filesystem's size, in bytes.
    pub size: u64,
    /// Of which free, in bytes.
    pub free: u64,
    /// Inodes in use, the reserved ones not counted.
    pub files: u32,
}

/// A filesystem being written.
#[derive(Debug)]
pub struct Writer<D> {
    contents: Contents<D>,
    size: Size,
}

impl<D: Disk> Writer<D> {
    /// Lays out a filesystem on `disk`.
    pub fn new(disk: D, size: Size) -> Result<Self, Ext4Error> {
        let (Size::Fixed(wanted) | Size::AtLeast { size: wanted, .. }) = size;
        if !(SIZE_MIN..=SIZE_MAX).contains(&wanted) {
            return Err(Ext4Error::Size(wanted));
        }
        let limit = match size {
            Size::Fixed(size) => size / BLOCK,
            Size::AtLeast { .. } => SIZE_MAX / BLOCK,
        };
        let geometry = Geometry::for_blocks(limit);
        Ok(Self {
            contents: Contents::new(disk, geometry, geometry.usable(limit)),
            size,
        })
    }

    /// Where file contents go.
    pub fn contents(&mut self) -> &mut Contents<D> {
        &mut self.contents
    }

    /// Writes all that is not file contents. `tree`'s runs must come from [`Writer::contents`].
    pub fn finish(self, tree: &Tree, identity: &Identity) -> Result<(D, Summary), Ext4Error> {
        Finisher::new(self, tree, identity).run()
    }
}
