//! The 256-byte inode (`struct ext4_inode` in `fs/ext4/ext4.h`).

use super::bytes::Fields;
use super::crc::crc32c;
use crate::tree::Time;

/// `EXT4_INDEX_FL`: a directory that is a hash tree.
pub(super) const INDEX: u32 = 0x1000;
/// `EXT4_EXTENTS_FL`: the block map is an extent tree.
pub(super) const EXTENTS: u32 = 0x8_0000;

/// File type bits of the mode.
pub(super) mod format {
    pub const FIFO: u16 = 0o010_000;
    pub const CHARACTER: u16 = 0o020_000;
    pub const DIRECTORY: u16 = 0o040_000;
    pub const BLOCK: u16 = 0o060_000;
    pub const FILE: u16 = 0o100_000;
    pub const SYMLINK: u16 = 0o120_000;
    pub const SOCKET: u16 = 0o140_000;
}

/// What is written of an inode.
#[derive(Debug)]
pub(super) struct Inode {
    /// Type and permissions.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub links: u16,
    /// Bytes.
    pub size: u64,
    /// Blocks taken, trees and attributes included.
    pub blocks: u64,
    pub flags: u32,
    /// Extent tree root, short symbolic link, or device number.
    pub block: [u8; 60],
    /// The block of extended attributes, or 0.
    pub xattr_block: u64,
    pub xattrs: Option<[u8; 96]>,
}

/// The seed for checksums of inode `number` and of its directory and extent blocks.
pub(super) fn seed(filesystem: u32, number: u32) -> u32 {
    // The generation is 0 for all.
    crc32c(crc32c(filesystem, &number.to_le_bytes()), &[0; 4])
}

impl Inode {
    /// The bytes on disk; `seed` as from [`seed`].
    pub fn encode(&self, seed: u32) -> [u8; 256] {
        let mut bytes = [0; 256];
        bytes.put16(0x00, self.mode);
        bytes.put16(0x02, self.uid as u16);
        bytes.put_split(0x04, 0x6c, self.size);
        let (seconds, extra) = time(self.mtime);
        for (at, extra_at) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            bytes.put32(at, seconds);
            bytes.put32(extra_at, extra);
        }
        bytes.put16(0x18, self.gid as u16);
        bytes.put16(0x1a, self.links);
        // In units of 512 bytes, 48 bits.
        let sectors = self.blocks * 8;
        bytes.put32(0x1c, sectors as u32);
        bytes.put16(0x74, (sectors >> 32) as u16);
        bytes.put32(0x20, self.flags);
        bytes[0x28..0x64].copy_from_slice(&self.block);
        bytes.put32(0x68, self.xattr_block as u32);
        bytes.put16(0x76, (self.xattr_block >> 32) as u16);
        bytes.put16(0x78, (self.uid >> 16) as u16);
        bytes.put16(0x7a, (self.gid >> 16) as u16);
        bytes.put16(0x80, 32);
        if let Some(xattrs) = &self.xattrs {
            bytes[160..].copy_from_slice(xattrs);
        }
        let checksum = crc32c(seed, &bytes);
        bytes.put16(0x7c, checksum as u16);
        bytes.put16(0x82, (checksum >> 16) as u16);
        bytes
    }
}

/// The time that an inode keeps: before 1901 and after 2446 the nearest there is.
pub fn kept(time: Time) -> Time {
    const LAST: i64 = (1 << 34) - (1 << 31) - 1;
    const FIRST: i64 = -(1 << 31);
    let (seconds, nanoseconds) = match time.seconds {
        ..FIRST => (FIRST, 0),
        FIRST..=LAST => (time.seconds, time.nanoseconds.min(999_999_999)),
        _ => (LAST, 999_999_999),
    };
    Time {
        seconds,
        nanoseconds,
    }
}

/// A time as its low 32 bits and the extra field: two more bits of seconds under the nanoseconds.
fn time(time: Time) -> (u32, u32) {
    let Time {
        seconds,
        nanoseconds,
    } = kept(time);
    let low = seconds as u32;
    let epoch = (seconds - i64::from(low.cast_signed())) >> 32;
    (low, nanoseconds << 2 | (epoch as u32 & 3))
}

/// The `i_block` of a device node: the old 16-bit form where it fits, else the new one behind it.
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut block = [0; 60];
    if major < 256 && minor < 256 {
        block.put32(0, major << 8 | minor);
    } else {
        block.put32(
            4,
            (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12,
        );
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_34_bits_and_stop_at_the_ends() {
        for (seconds, nanoseconds, expected) in [
            (0, 1, (0, 4)),
            (-1, 0, (0xffff_ffff, 0)),
            (0x7fff_ffff, 0, (0x7fff_ffff, 0)),
            (0x8000_0000, 0, (0x8000_0000, 1)),
            (0x1_0000_0000, 5, (0, 5 << 2 | 1)),
            ((1 << 34) - (1 << 31) - 1, 0, (0x7fff_ffff, 3)),
            (i64::MAX, 0, (0x7fff_ffff, 999_999_999 << 2 | 3)),
            (i64::MIN, 7, (0x8000_0000, 0)),
        ] {
            assert_eq!(
                time(Time {
                    seconds,
                    nanoseconds
                }),
                expected,
                "{seconds}"
            );
        }
    }
}
