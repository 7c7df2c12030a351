//! Extent trees: the map from a file's blocks to the disk's.
//!
//! Source: `fs/ext4/ext4_extents.h`. Four extents fit into the inode; more go into blocks of 340,
//! under as many levels of index as it takes.

use std::io;

use super::bytes::Fields;
use super::contents::Contents;
use super::crc::crc32c;
use super::geometry::BLOCK;
use crate::disk::Disk;
use crate::tree::Run;

const MAGIC: u16 = 0xf30a;
/// The longest extent that counts as written, in blocks.
const EXTENT_MAX: u64 = 32768;
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK as usize - 12 - 4) / 12;

/// One 12-byte entry of a leaf or index.
type Record = [u8; 12];

/// The 60 bytes that go into the inode, and how many blocks the tree took beside it.
///
/// `seed` is the inode's checksum seed. The tree's own blocks are written to `contents`.
pub(super) fn tree<D: Disk>(
    runs: &[Run],
    seed: u32,
    contents: &mut Contents<D>,
) -> io::Result<([u8; 60], u64)> {
    let mut records: Vec<(u32, Record)> = Vec::with_capacity(runs.len());
    for run in runs {
        let mut done = 0;
        while done < run.blocks {
            let count = (run.blocks - done).min(EXTENT_MAX);
            let logical = u32::try_from(run.logical + done).map_err(|_| {
                io::Error::new(io::ErrorKind::FileTooLarge, "a file is larger than 16 TiB")
            })?;
            let physical = run.physical + done;
            let mut record = Record::default();
            record.put32(0, logical);
            record.put16(4, count as u16);
            record.put16(6, (physical >> 32) as u16);
            record.put32(8, physical as u32);
            records.push((logical, record));
            done += count;
        }
    }
    let mut depth = 0;
    let mut taken = 0;
    while records.len() > IN_INODE {
        let mut above = Vec::with_capacity(records.len().div_ceil(IN_BLOCK));
        for node in records.chunks(IN_BLOCK) {
            let mut block = [0; BLOCK as usize];
            fill(&mut block, node, IN_BLOCK, depth);
            let end = 12 + IN_BLOCK * 12;
            let checksum = crc32c(seed, &block[..end]);
            block.put32(end, checksum);
            let place = contents.whole(&block)?[0].physical;
            taken += 1;
            let mut record = Record::default();
            record.put32(0, node[0].0);
            record.put32(4, place as u32);
            record.put16(8, (place >> 32) as u16);
            above.push((node[0].0, record));
        }
        records = above;
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &records, IN_INODE, depth);
    Ok((root, taken))
}

fn fill(node: &mut [u8], records: &[(u32, Record)], room: usize, depth: u16) {
    node.put16(0, MAGIC);
    node.put16(2, records.len() as u16);
    node.put16(4, room as u16);
    node.put16(6, depth);
    for (index, (_, record)) in records.iter().enumerate() {
        node[12 + index * 12..][..12].copy_from_slice(record);
    }
}
