//! Directory blocks: one linear block for a small directory, a hash tree (`dir_index`) for a large.
//!
//! Source: `fs/ext4/ext4.h`, `fs/ext4/namei.c`. Every block ends in a checksum; the root and the
//! index nodes of a hash tree look like empty directory blocks to code that does not know them.

use super::bytes::Fields;
use super::crc::crc32c;
use super::geometry::BLOCK;
use super::hash::{HALF_MD4, half_md4};

const SIZE: usize = BLOCK as usize;
/// The entry that holds a linear block's checksum.
const TAIL: usize = 12;
/// Index entries in the root and in a node: what fits behind their false entries, less the checksum.
const ROOT_LIMIT: usize = (SIZE - 32 - 8) / 8;
const NODE_LIMIT: usize = (SIZE - 8 - 8) / 8;

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'n> {
    pub name: &'n [u8],
    pub inode: u32,
    /// `EXT4_FT_*`.
    pub kind: u8,
}

/// A directory has more entries than two levels of index can hold.
#[derive(Debug)]
pub(super) struct TooLarge;

/// A directory's blocks, and whether they are a hash tree.
///
/// `entries` without `.` and `..`; `seed` is the directory inode's checksum seed.
pub(super) fn blocks(
    own: u32,
    parent: u32,
    entries: &[Entry<'_>],
    seed: u32,
    hash_seed: &[u32; 4],
) -> Result<(Vec<u8>, bool), TooLarge> {
    let dots = [
        Entry {
            name: b".",
            inode: own,
            kind: 2,
        },
        Entry {
            name: b"..",
            inode: parent,
            kind: 2,
        },
    ];
    let length = |name: &[u8]| (8 + name.len()).next_multiple_of(4);
    let total: usize = 24
        + entries
            .iter()
            .map(|entry| length(entry.name))
            .sum::<usize>();
    if total <= SIZE - TAIL {
        let mut block = vec![0; SIZE];
        linear(&mut block, dots.iter().chain(entries), seed);
        return Ok((block, false));
    }

    let mut hashed: Vec<_> = entries
        .iter()
        .map(|entry| (half_md4(entry.name, hash_seed), *entry))
        .collect();
    hashed.sort_unstable_by(|a, b| (a.0, a.1.name).cmp(&(b.0, b.1.name)));
    // Leaves: each as many entries as fit.
    let mut leaves: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, (_, entry)) in hashed.iter().enumerate() {
        if used + length(entry.name) > SIZE - TAIL {
            leaves.push(start..index);
            (start, used) = (index, 0);
        }
        used += length(entry.name);
    }
    leaves.push(start..hashed.len());
    // A leaf that starts with the hash the one before it ends with says so by the low bit.
    let first_hash = |leaf: &std::ops::Range<usize>| {
        let hash = hashed[leaf.start].0.0;
        let continues = leaf.start > 0 && hashed[leaf.start - 1].0.0 == hash;
        hash | u32::from(continues)
    };

    let nodes = if leaves.len() <= ROOT_LIMIT {
        0
    } else {
        leaves.len().div_ceil(NODE_LIMIT)
    };
    if nodes > ROOT_LIMIT {
        return Err(TooLarge);
    }
    let mut out = vec![0; SIZE * (1 + nodes + leaves.len())];
    let leaf_block = |index: usize| (1 + nodes + index) as u32;
    let index: Vec<(u32, u32)> = leaves
        .iter()
        .enumerate()
        .map(|(place, leaf)| (first_hash(leaf), leaf_block(place)))
        .collect();

    let (root, rest) = out.split_at_mut(SIZE);
    put_entry(root, 0, &dots[0], 12);
    put_entry(root, 12, &dots[1], SIZE - 12);
    root[28] = HALF_MD4;
    root[29] = 8;
    root[30] = u8::from(nodes > 0);
    let (node_blocks, leaf_blocks) = rest.split_at_mut(nodes * SIZE);
    if nodes == 0 {
        put_index(root, 32, ROOT_LIMIT, &index, seed);
    } else {
        let mut above = Vec::with_capacity(nodes);
        for (place, (block, part)) in node_blocks
            .as_chunks_mut::<SIZE>()
            .0
            .iter_mut()
            .zip(index.chunks(NODE_LIMIT))
            .enumerate()
        {
            block.put16(4, SIZE as u16);
            put_index(block, 8, NODE_LIMIT, part, seed);
            above.push((part[0].0, 1 + place as u32));
        }
        put_index(root, 32, ROOT_LIMIT, &above, seed);
    }
    for (block, leaf) in leaf_blocks
        .as_chunks_mut::<SIZE>()
        .0
        .iter_mut()
        .zip(&leaves)
    {
        linear(
            block,
            hashed[leaf.clone()].iter().map(|(_, entry)| entry),
            seed,
        );
    }
    Ok((out, true))
}

fn put_entry(block: &mut [u8], at: usize, entry: &Entry<'_>, length: usize) {
    block.put32(at, entry.inode);
    block.put16(at + 4, length as u16);
    block[at + 6] = entry.name.len() as u8;
    block[at + 7] = entry.kind;
    block[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
}

/// Fills a block with `entries`, the last of which reaches to the checksum.
fn linear<'e, 'n: 'e>(block: &mut [u8], entries: impl Iterator<Item = &'e Entry<'n>>, seed: u32) {
    let end = SIZE - TAIL;
    let (mut at, mut last) = (0, 0);
    for entry in entries {
        let length = (8 + entry.name.len()).next_multiple_of(4);
        put_entry(block, at, entry, length);
        last = at;
        at += length;
    }
    block.put16(last + 4, (end - last) as u16);
    block.put16(end + 4, TAIL as u16);
    block[end + 7] = 0xde;
    let checksum = crc32c(seed, &block[..end]);
    block.put32(end + 8, checksum);
}

/// Puts index entries at `at`: the count in place of the first one's hash.
fn put_index(block: &mut [u8], at: usize, limit: usize, index: &[(u32, u32)], seed: u32) {
    for (place, &(hash, child)) in index.iter().enumerate() {
        block.put32(at + place * 8, hash);
        block.put32(at + place * 8 + 4, child);
    }
    block.put16(at, limit as u16);
    block.put16(at + 2, index.len() as u16);
    // The checksum covers what is in use, then its own reserved word and itself as zero.
    let used = crc32c(seed, &block[..at + index.len() * 8]);
    let checksum = crc32c(used, &[0; 8]);
    block.put32(at + limit * 8 + 4, checksum);
}
