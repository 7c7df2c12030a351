//! Where a filesystem's own structures are.
//!
//! Blocks of 4 KiB, groups of 128 MiB, sixteen groups to a flexible group: the bitmaps and inode
//! tables of all sixteen lie together at the start of the first, so that data runs on for almost
//! 2 GiB. The only copy of the superblock and group descriptors is in group 1 (`sparse_super2`).
//!
//! All of it follows from the group's number, not from how many groups there will be, so contents
//! can be written before the size is known. For that the descriptors of the largest size have room
//! set aside in groups 0 and 1; what of it is not needed is free space in the end.

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Blocks in a group: as many as one bitmap block has bits.
pub(super) const GROUP_BLOCKS: u64 = BLOCK * 8;
/// Bytes of an inode.
pub(super) const INODE_SIZE: u64 = 256;
/// Bytes of a group descriptor (`64bit`).
pub(super) const DESCRIPTOR_SIZE: u64 = 64;
/// Binary logarithm of the number of groups in a flexible group.
pub(super) const FLEX_SHIFT: u8 = 4;
const FLEX_GROUPS: u64 = 1 << FLEX_SHIFT;
/// Bytes of disk for each inode, as `mke2fs` has it by default.
const BYTES_PER_INODE: u64 = 16 << 10;
/// The first inode that is not reserved.
pub(super) const FIRST_INODE: u32 = 11;

/// The layout of a filesystem that has room to grow to a largest size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    /// Blocks set aside for group descriptors after each superblock.
    pub descriptor_blocks: u64,
    /// Inodes in a group.
    pub inodes_per_group: u32,
}

impl Geometry {
    /// For filesystems of up to `blocks` blocks.
    pub fn for_blocks(blocks: u64) -> Self {
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let per_block = BLOCK / INODE_SIZE;
        let inodes =
            (blocks.min(GROUP_BLOCKS) * BLOCK / BYTES_PER_INODE).next_multiple_of(per_block);
        Self {
            descriptor_blocks: (groups * DESCRIPTOR_SIZE).div_ceil(BLOCK),
            inodes_per_group: inodes.max(4 * per_block) as u32,
        }
    }

    /// Blocks of one group's inode table.
    pub fn table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group) * INODE_SIZE / BLOCK
    }

    /// Whether `group` starts with a superblock.
    pub fn has_superblock(group: u64) -> bool {
        group <= 1
    }

    /// The first block of the tables of `group`'s flexible group.
    fn flex_start(&self, group: u64) -> u64 {
        let first = group / FLEX_GROUPS * FLEX_GROUPS;
        first * GROUP_BLOCKS
            + if first == 0 {
                1 + self.descriptor_blocks
            } else {
                0
            }
    }

    /// Where `group`'s block bitmap is.
    pub fn block_bitmap(&self, group: u64) -> u64 {
        self.flex_start(group) + group % FLEX_GROUPS
    }

    /// Where `group`'s inode bitmap is.
    pub fn inode_bitmap(&self, group: u64) -> u64 {
        self.flex_start(group) + FLEX_GROUPS + group % FLEX_GROUPS
    }

    /// Where `group`'s inode table starts.
    pub fn inode_table(&self, group: u64) -> u64 {
        self.flex_start(group) + 2 * FLEX_GROUPS + group % FLEX_GROUPS * self.table_blocks()
    }

    /// The byte offset of inode `number` on the disk.
    pub fn inode_offset(&self, number: u32) -> u64 {
        let index = number - 1;
        let group = u64::from(index / self.inodes_per_group);
        self.inode_table(group) * BLOCK + u64::from(index % self.inodes_per_group) * INODE_SIZE
    }

    /// Blocks at the start of `group` that are set aside: `[start, end)` of what data must not use.
    fn reserved(&self, group: u64) -> u64 {
        let start = group * GROUP_BLOCKS;
        if group.is_multiple_of(FLEX_GROUPS) {
            self.flex_start(group) + 2 * FLEX_GROUPS + FLEX_GROUPS * self.table_blocks() - start
        } else if Self::has_superblock(group) {
            1 + self.descriptor_blocks
        } else {
            0
        }
    }

    /// The stretch of blocks for data that `block` is in or that comes next: `[start, end)`.
    ///
    /// The tables of a flexible group of sixteen can be longer than one group only if a group had
    /// more inodes than this geometry gives one.
    pub fn data_stretch(&self, block: u64) -> (u64, u64) {
        let mut group = block / GROUP_BLOCKS;
        let start = block.max(group * GROUP_BLOCKS + self.reserved(group));
        loop {
            group += 1;
            if self.reserved(group) > 0 {
                return (start, group * GROUP_BLOCKS);
            }
        }
    }

    /// What is in use of `group` in a filesystem of `groups` groups, data aside, as ranges of blocks
    /// within the whole filesystem.
    pub fn structures(&self, group: u64, groups: u64) -> Vec<std::ops::Range<u64>> {
        let mut found = Vec::new();
        if Self::has_superblock(group) {
            let start = group * GROUP_BLOCKS;
            found.push(start..start + 1 + (groups * DESCRIPTOR_SIZE).div_ceil(BLOCK));
        }
        if group.is_multiple_of(FLEX_GROUPS) {
            let count = FLEX_GROUPS.min(groups - group);
            let bitmaps = self.block_bitmap(group);
            found.push(bitmaps..bitmaps + count);
            let bitmaps = self.inode_bitmap(group);
            found.push(bitmaps..bitmaps + count);
            let tables = self.inode_table(group);
            found.push(tables..tables + count * self.table_blocks());
        }
        found
    }

    /// `blocks`, less a last group that would be too short for its own structures and some data.
    pub fn usable(&self, blocks: u64) -> u64 {
        let group = blocks / GROUP_BLOCKS;
        let rest = blocks % GROUP_BLOCKS;
        if rest > 0 && rest < self.reserved(group) + 64 {
            group * GROUP_BLOCKS
        } else {
            blocks
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_never_meets_structures() {
        for size in [64 << 20, 1 << 30, 10 << 30, 2u64 << 40] {
            let geometry = Geometry::for_blocks(size / BLOCK);
            let groups = (size / BLOCK).div_ceil(GROUP_BLOCKS);
            let structures: Vec<_> = (0..groups)
                .flat_map(|group| geometry.structures(group, groups))
                .collect();
            let mut block = 0;
            while block < size / BLOCK {
                let (start, end) = geometry.data_stretch(block);
                assert!(start < end);
                for used in &structures {
                    assert!(
                        used.end <= start || used.start >= end,
                        "{size}: {used:?} in {start}..{end}"
                    );
                }
                block = end;
            }
        }
    }
}
