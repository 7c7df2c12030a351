//! The superblock, group descriptors, bitmaps and the journal's superblock.
//!
//! Sources: `struct ext4_super_block` and `struct ext4_group_desc` in `fs/ext4/ext4.h`,
//! `struct journal_superblock_s` in `include/linux/jbd2.h`.

use super::Identity;
use super::bytes::Fields;
use super::crc::crc32c;
use super::geometry::{
    BLOCK, DESCRIPTOR_SIZE, FIRST_INODE, FLEX_SHIFT, GROUP_BLOCKS, Geometry, INODE_SIZE,
};
use super::hash::HALF_MD4;

/// has_journal, ext_attr, dir_index, sparse_super2.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20 | 0x200;
const HAS_JOURNAL: u32 = 0x4;
/// filetype, extents, 64bit, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// user_xattr and acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// The inode of the journal.
pub(super) const JOURNAL_INODE: u32 = 8;

/// The journal's inode, as the superblock keeps a copy of it.
#[derive(Debug)]
pub(super) struct Journal {
    pub block: [u8; 60],
    pub size: u64,
}

/// What the superblock counts.
#[derive(Debug)]
pub(super) struct Counts {
    pub blocks: u64,
    pub free_blocks: u64,
    pub groups: u64,
    pub free_inodes: u32,
}

/// The seed of most checksums.
pub(super) fn checksum_seed(identity: &Identity) -> u32 {
    crc32c(!0, &identity.uuid)
}

/// The 1024 bytes of the superblock, for the copy in `group`.
pub(super) fn encode(
    identity: &Identity,
    hash_seed: &[u32; 4],
    geometry: &Geometry,
    counts: &Counts,
    journal: Option<&Journal>,
    group: u16,
) -> [u8; 1024] {
    let mut sb = [0; 1024];
    sb.put32(0x00, geometry.inodes_per_group * counts.groups as u32);
    sb.put_split(0x04, 0x150, counts.blocks);
    sb.put_split(0x0c, 0x158, counts.free_blocks);
    sb.put32(0x10, counts.free_inodes);
    sb.put32(0x18, BLOCK.ilog2() - 10);
    sb.put32(0x1c, BLOCK.ilog2() - 10);
    sb.put32(0x20, GROUP_BLOCKS as u32);
    sb.put32(0x24, GROUP_BLOCKS as u32);
    sb.put32(0x28, geometry.inodes_per_group);
    // Never checked because of a mount count or a date.
    sb.put16(0x36, 0xffff);
    sb.put16(0x38, 0xef53);
    sb.put16(0x3a, 1);
    sb.put16(0x3c, 1);
    sb.put32(0x4c, 1);
    sb.put32(0x54, FIRST_INODE);
    sb.put16(0x58, INODE_SIZE as u16);
    sb.put16(0x5a, group);
    sb.put32(
        0x5c,
        if journal.is_some() {
            COMPATIBLE
        } else {
            COMPATIBLE & !HAS_JOURNAL
        },
    );
    sb.put32(0x60, INCOMPATIBLE);
    sb.put32(0x64, READ_ONLY_COMPATIBLE);
    sb[0x68..0x78].copy_from_slice(&identity.uuid);
    sb[0x78..0x88].copy_from_slice(identity.label.bytes());
    if let Some(journal) = journal {
        sb.put32(0xe0, JOURNAL_INODE);
        // One kind of backup: the inode's block map and size.
        sb[0xfd] = 1;
        sb[0x10c..0x10c + 60].copy_from_slice(&journal.block);
        sb.put_split(0x10c + 64, 0x10c + 60, journal.size);
    }
    for (index, word) in hash_seed.iter().enumerate() {
        sb.put32(0xec + index * 4, *word);
    }
    sb[0xfc] = HALF_MD4;
    sb.put16(0xfe, DESCRIPTOR_SIZE as u16);
    sb.put32(0x100, DEFAULT_MOUNT_OPTIONS);
    sb.put16(0x15c, 32);
    sb.put16(0x15e, 32);
    // Hashes of signed characters.
    sb.put32(0x160, 1);
    sb[0x174] = FLEX_SHIFT;
    sb[0x175] = 1;
    sb.put32(0x24c, u32::from(counts.groups > 1));
    let checksum = crc32c(!0, &sb[..0x3fc]);
    sb.put32(0x3fc, checksum);
    sb
}

/// What a group descriptor says.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub free_blocks: u32,
    pub free_inodes: u32,
    pub directories: u32,
    /// Inodes at the table's end that were never used.
    pub unused_inodes: u32,
    /// `None` when no block is in use and the bitmap is not written.
    pub block_bitmap: Option<u32>,
    /// `None` when no inode is in use and the bitmap is not written.
    pub inode_bitmap: Option<u32>,
}

/// The 64 bytes of `number`'s descriptor. The bitmaps are given by their checksums.
pub(super) fn descriptor(group: &Group, number: u64, geometry: &Geometry, seed: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes.put_split(0x00, 0x20, geometry.block_bitmap(number));
    bytes.put_split(0x04, 0x24, geometry.inode_bitmap(number));
    bytes.put_split(0x08, 0x28, geometry.inode_table(number));
    let mut halves = |low: usize, high: usize, value: u32| {
        bytes.put16(low, value as u16);
        bytes.put16(high, (value >> 16) as u16);
    };
    halves(0x0c, 0x2c, group.free_blocks);
    halves(0x0e, 0x2e, group.free_inodes);
    halves(0x10, 0x30, group.directories);
    halves(0x1c, 0x32, group.unused_inodes);
    halves(0x18, 0x38, group.block_bitmap.unwrap_or(0));
    halves(0x1a, 0x3a, group.inode_bitmap.unwrap_or(0));
    // INODE_ZEROED on all: what was not written reads as zeros, so that the kernel has nothing to
    // initialise later. INODE_UNINIT and BLOCK_UNINIT where there is no bitmap.
    let mut flags = 0x4;
    flags |= if group.inode_bitmap.is_none() { 0x1 } else { 0 };
    flags |= if group.block_bitmap.is_none() { 0x2 } else { 0 };
    bytes.put16(0x12, flags);
    let checksum = crc32c(crc32c(seed, &(number as u32).to_le_bytes()), &bytes);
    bytes.put16(0x1e, checksum as u16);
    bytes
}

/// The superblock of an empty journal of `blocks` blocks, as its first block. Big-endian.
pub(super) fn journal(identity: &Identity, blocks: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0x00, 0xc03b_3998);
    put(0x04, 4);
    put(0x0c, BLOCK as u32);
    put(0x10, blocks as u32);
    put(0x14, 1);
    put(0x18, 1);
    put(0x40, 1);
    block[0x30..0x40].copy_from_slice(&identity.uuid);
    block
}

/// How many blocks the journal of a filesystem of `blocks` blocks has, as `mke2fs` chooses; 0 for one
/// too small to have any.
pub(super) fn journal_blocks(blocks: u64) -> u64 {
    // Below how many blocks of the filesystem how many of the journal.
    const STEPS: [(u64, u64); 9] = [
        (2048, 0),
        (32_768, 1024),
        (262_144, 4096),
        (524_288, 8192),
        (4_194_304, 16_384),
        (8_388_608, 32_768),
        (16_777_216, 65_536),
        (33_554_432, 131_072),
        (u64::MAX, 262_144),
    ];
    STEPS
        .iter()
        .find(|(below, _)| blocks < *below)
        .map_or(0, |(_, journal)| *journal)
}
