//! Everything but file contents: inodes, directories, the journal, and at last what counts it all.

use std::collections::HashMap;
use std::io;

use super::bitmap::Bitmap;
use super::contents::Contents;
use super::geometry::{BLOCK, FIRST_INODE, GROUP_BLOCKS, Geometry, INODE_SIZE};
use super::inode::{self, Inode, format};
use super::superblock::{self, Counts, Group, JOURNAL_INODE, Journal};
use super::{Ext4Error, Identity, SIZE_MAX, Size, Summary, Writer, crc, directory, extent, xattr};
use crate::digest::Digest;
use crate::disk::Disk;
use crate::tree::{Kind, NodeId, Run, Tree};

const ROOT_INODE: u32 = 2;
/// More links than this are written as 1, "unknown", for a directory (`dir_nlink`).
const LINKS_MAX: u32 = 65_000;

/// The part of the inode tables gathered for the next write: consecutive inodes from `first` on.
#[derive(Debug, Default)]
struct Table {
    first: u32,
    bytes: Vec<u8>,
}

/// A block of extended attributes that inodes share, until it is written.
#[derive(Debug)]
struct Shared {
    place: u64,
    shares: u32,
}

pub(super) struct Finisher<'a, D> {
    contents: Contents<D>,
    size: Size,
    tree: &'a Tree,
    identity: &'a Identity,
    seed: u32,
    hash_seed: [u32; 4],
    /// Inode numbers by node, 0 where there is none yet.
    numbers: Vec<u32>,
    /// Nodes by inode number from [`FIRST_INODE`] on, and the parent's number for directories.
    order: Vec<(NodeId, u32)>,
    /// How many directories each group has.
    directories: Vec<u32>,
    table: Table,
    shared: HashMap<Box<[u8]>, Shared>,
    /// Such blocks that no more inodes may share.
    full: Vec<(Box<[u8]>, Shared)>,
}

impl<'a, D: Disk> Finisher<'a, D> {
    /// Starts on what `writer` was given.
    pub fn new(writer: Writer<D>, tree: &'a Tree, identity: &'a Identity) -> Self {
        let mut hash_seed = [0; 4];
        let digest = Digest::of(&[b"ext4 hash seed ", &identity.uuid[..]].concat());
        for (word, bytes) in hash_seed.iter_mut().zip(digest.bytes().as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self {
            contents: writer.contents,
            size: writer.size,
            tree,
            identity,
            seed: superblock::checksum_seed(identity),
            hash_seed,
            numbers: Vec::new(),
            order: Vec::new(),
            directories: Vec::new(),
            table: Table::default(),
            shared: HashMap::new(),
            full: Vec::new(),
        }
    }

    /// Writes everything.
    pub fn run(mut self) -> Result<(D, Summary), Ext4Error> {
        self.number();
        let first_size = match self.size {
            Size::Fixed(size) | Size::AtLeast { size, .. } => size / BLOCK,
        };
        self.node(self.tree.root(), ROOT_INODE, ROOT_INODE)?;
        let journal = self.journal(superblock::journal_blocks(
            first_size.max(self.contents.end_block()),
        ))?;
        // The inodes between are reserved and stay zero.
        for index in 0..self.order.len() {
            let (id, parent) = self.order[index];
            self.node(id, FIRST_INODE + index as u32, parent)?;
        }
        self.seal_all().map_err(Ext4Error::Write)?;
        self.flush_table().map_err(Ext4Error::Write)?;
        self.contents.flush().map_err(Ext4Error::Write)?;
        self.groups(journal)
    }

    /// Numbers all nodes: a directory's entries one after the other, so that listing it reads one
    /// stretch of the inode table.
    fn number(&mut self) {
        self.numbers = vec![0; self.tree.capacity()];
        self.numbers[self.tree.root().index()] = ROOT_INODE;
        let mut todo = vec![self.tree.root()];
        while let Some(id) = todo.pop() {
            let Kind::Directory(directory) = &self.tree.node(id).kind else {
                continue;
            };
            let parent = self.numbers[id.index()];
            let first = todo.len();
            for (_, child) in directory.entries() {
                if self.numbers[child.index()] != 0 {
                    continue;
                }
                self.numbers[child.index()] = FIRST_INODE + self.order.len() as u32;
                self.order.push((child, parent));
                if let Kind::Directory(_) = self.tree.node(child).kind {
                    todo.push(child);
                }
            }
            todo[first..].reverse();
        }
    }

    /// Writes one node: its blocks and its inode.
    fn node(&mut self, id: NodeId, number: u32, parent: u32) -> Result<(), Ext4Error> {
        let node = self.tree.node(id);
        let seed = inode::seed(self.seed, number);
        let attributes = &node.attributes;
        let mut inode = Inode {
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            links: node.names().min(LINKS_MAX) as u16,
            size: 0,
            blocks: 0,
            flags: 0,
            block: [0; 60],
            xattr_block: 0,
            xattrs: None,
        };
        match &node.kind {
            Kind::Directory(directory) => {
                inode.mode |= format::DIRECTORY;
                let mut subdirectories = 0;
                let entries: Vec<_> = directory
                    .entries()
                    .map(|(name, child)| {
                        let kind = file_type(&self.tree.node(child).kind);
                        subdirectories += u32::from(kind == 2);
                        directory::Entry {
                            name,
                            inode: self.numbers[child.index()],
                            kind,
                        }
                    })
                    .collect();
                inode.links = if subdirectories + 2 > LINKS_MAX {
                    1
                } else {
                    (subdirectories + 2) as u16
                };
                let (bytes, indexed) =
                    directory::blocks(number, parent, &entries, seed, &self.hash_seed)
                        .map_err(|directory::TooLarge| Ext4Error::Directory(entries.len()))?;
                inode.flags |= if indexed { inode::INDEX } else { 0 };
                inode.size = bytes.len() as u64;
                let runs = self.contents.whole(&bytes).map_err(Ext4Error::Write)?;
                self.extents(&mut inode, &runs, seed)?;
                let group = ((number - 1) / self.contents.geometry.inodes_per_group) as usize;
                if self.directories.len() <= group {
                    self.directories.resize(group + 1, 0);
                }
                self.directories[group] += 1;
            }
            Kind::File { size, runs } => {
                inode.mode |= format::FILE;
                inode.size = *size;
                self.extents(&mut inode, runs, seed)?;
            }
            Kind::Symlink(target) => {
                inode.mode |= format::SYMLINK;
                inode.size = target.len() as u64;
                if target.len() < inode.block.len() {
                    inode.block[..target.len()].copy_from_slice(target);
                } else {
                    let runs = self.contents.whole(target).map_err(Ext4Error::Write)?;
                    self.extents(&mut inode, &runs, seed)?;
                }
            }
            Kind::Character { major, minor } => {
                inode.mode |= format::CHARACTER;
                inode.block = inode::device(*major, *minor);
            }
            Kind::Block { major, minor } => {
                inode.mode |= format::BLOCK;
                inode.block = inode::device(*major, *minor);
            }
            Kind::Fifo => inode.mode |= format::FIFO,
            Kind::Socket => inode.mode |= format::SOCKET,
        }
        let encoded =
            xattr::encode(&attributes.xattrs).map_err(|xattr::TooLarge| Ext4Error::Xattrs)?;
        inode.xattrs = encoded.in_inode;
        if let Some(block) = encoded.block {
            inode.xattr_block = self.share(block)?;
            inode.blocks += 1;
        }
        self.put(number, &inode.encode(seed))
            .map_err(Ext4Error::Write)
    }

    fn extents(&mut self, inode: &mut Inode, runs: &[Run], seed: u32) -> Result<(), Ext4Error> {
        let (block, taken) =
            extent::tree(runs, seed, &mut self.contents).map_err(Ext4Error::Write)?;
        inode.block = block;
        inode.flags |= inode::EXTENTS;
        inode.blocks += taken + runs.iter().map(|run| run.blocks).sum::<u64>();
        Ok(())
    }

    /// A place for a block of extended attributes, an earlier one if it has the same.
    fn share(&mut self, block: Box<[u8]>) -> Result<u64, Ext4Error> {
        if let Some(shared) = self.shared.get_mut(&block) {
            shared.shares += 1;
            let place = shared.place;
            if shared.shares == xattr::SHARES_MAX {
                self.full.extend(self.shared.remove_entry(&block));
            }
            return Ok(place);
        }
        let (place, _) = self.contents.reserve(1).map_err(Ext4Error::Write)?;
        self.shared.insert(block, Shared { place, shares: 1 });
        Ok(place)
    }

    /// Writes all blocks of extended attributes, in the disk's order.
    fn seal_all(&mut self) -> io::Result<()> {
        let mut blocks: Vec<_> = self.shared.drain().chain(self.full.drain(..)).collect();
        blocks.sort_unstable_by_key(|(_, shared)| shared.place);
        for (mut block, shared) in blocks {
            xattr::seal(&mut block, shared.shares, shared.place, self.seed);
            self.contents.disk.write(shared.place * BLOCK, &block)?;
        }
        Ok(())
    }

    /// Puts an inode into its table.
    fn put(&mut self, number: u32, bytes: &[u8; INODE_SIZE as usize]) -> io::Result<()> {
        let geometry = self.contents.geometry;
        let next = self.table.first + (self.table.bytes.len() as u64 / INODE_SIZE) as u32;
        let adjacent = number == next
            && geometry.inode_offset(number)
                == geometry.inode_offset(self.table.first.max(1)) + self.table.bytes.len() as u64;
        if !adjacent || self.table.bytes.len() >= 1 << 20 {
            self.flush_table()?;
            self.table.first = number;
        }
        self.table.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush_table(&mut self) -> io::Result<()> {
        let Table { first, mut bytes } = std::mem::take(&mut self.table);
        if bytes.is_empty() {
            return Ok(());
        }
        // The disk takes whole sectors, of two inodes each; the one not there is zero, for only the
        // first and the last piece of a table can start or end in the middle of a sector.
        let mut offset = self.contents.geometry.inode_offset(first);
        if !offset.is_multiple_of(512) {
            bytes.splice(0..0, [0; INODE_SIZE as usize]);
            offset -= INODE_SIZE;
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        self.contents.disk.write(offset, &bytes)
    }

    /// Sets the journal aside and writes its inode.
    fn journal(&mut self, blocks: u64) -> Result<Option<Journal>, Ext4Error> {
        if blocks == 0 {
            return Ok(None);
        }
        let mut runs = Vec::new();
        let mut done = 0;
        while done < blocks {
            let (physical, count) = self
                .contents
                .reserve(blocks - done)
                .map_err(Ext4Error::Write)?;
            runs.push(Run {
                logical: done,
                physical,
                blocks: count,
            });
            done += count;
        }
        let first = runs[0].physical;
        let block = superblock::journal(self.identity, blocks);
        self.contents
            .disk
            .write(first * BLOCK, &block)
            .map_err(Ext4Error::Write)?;
        let mut inode = Inode {
            mode: format::FILE | 0o600,
            uid: 0,
            gid: 0,
            mtime: crate::tree::Time::default(),
            links: 1,
            size: blocks * BLOCK,
            blocks: 0,
            flags: 0,
            block: [0; 60],
            xattr_block: 0,
            xattrs: None,
        };
        let seed = inode::seed(self.seed, JOURNAL_INODE);
        self.extents(&mut inode, &runs, seed)?;
        self.put(JOURNAL_INODE, &inode.encode(seed))
            .map_err(Ext4Error::Write)?;
        Ok(Some(Journal {
            block: inode.block,
            size: inode.size,
        }))
    }

    /// Fixes the size and writes bitmaps, descriptors and superblocks.
    fn groups(self, journal: Option<Journal>) -> Result<(D, Summary), Ext4Error> {
        let geometry = self.contents.geometry;
        let end = self.contents.end_block();
        let files = self.order.len() as u32;
        let inodes = FIRST_INODE - 1 + files;
        let per_group = geometry.inodes_per_group;
        let blocks = match self.size {
            Size::Fixed(size) => geometry.usable(size / BLOCK),
            Size::AtLeast { size, free } => {
                let wanted = geometry.usable(size / BLOCK);
                let wanted_inodes = u64::from(inodes) + (u64::from(inodes) / 4).max(1024);
                let for_inodes = wanted_inodes.div_ceil(u64::from(per_group)) * GROUP_BLOCKS;
                // The tables of flexible groups that start in what is free take from it: a 63rd.
                let free = free / BLOCK;
                let for_blocks = end + free + free / 32 + 16 * geometry.table_blocks();
                if for_inodes.max(for_blocks) <= wanted {
                    wanted
                } else {
                    for_inodes.max(for_blocks).next_multiple_of(GROUP_BLOCKS)
                }
            }
        };
        if blocks > SIZE_MAX / BLOCK {
            return Err(Ext4Error::Size(blocks * BLOCK));
        }
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        if u64::from(inodes) > groups * u64::from(per_group) {
            return Err(Ext4Error::Inodes {
                files,
                inodes: groups as u32 * per_group,
            });
        }

        let mut released: Vec<(u64, u64)> = self
            .tree
            .released()
            .iter()
            .map(|run| (run.physical, run.physical + run.blocks))
            .collect();
        released.sort_unstable();
        let mut disk = self.contents.disk;
        for (start, end) in merged(&released) {
            disk.discard(start * BLOCK, (end - start) * BLOCK)
                .map_err(Ext4Error::Write)?;
        }
        let mut released = &released[..];
        let mut descriptors = Vec::with_capacity((groups * 64) as usize);
        let mut free_blocks = 0u64;
        for number in 0..groups {
            let start = number * GROUP_BLOCKS;
            let stop = (start + GROUP_BLOCKS).min(blocks);
            let mut bitmap = Bitmap::new();
            let mut used = geometry.structures(number, groups);
            let (data, _) = geometry.data_stretch(start);
            if data < stop.min(end) {
                used.push(data..stop.min(end));
            }
            let written = !used.is_empty() || number == groups - 1;
            for range in &used {
                bitmap.set(range.start - start..range.end - start, true);
            }
            while let Some(&(from, to)) = released.first() {
                if from >= stop {
                    break;
                }
                bitmap.set(from.max(start) - start..to.min(stop) - start, false);
                if to > stop {
                    break;
                }
                released = &released[1..];
            }
            let in_use = bitmap.ones();
            bitmap.set(stop - start..GROUP_BLOCKS, true);
            let mut group = Group {
                free_blocks: (stop - start) as u32 - in_use,
                ..Group::default()
            };
            free_blocks += u64::from(group.free_blocks);
            if written {
                group.block_bitmap = Some(crc::crc32c(self.seed, bitmap.bytes()));
                disk.write(geometry.block_bitmap(number) * BLOCK, bitmap.bytes())
                    .map_err(Ext4Error::Write)?;
            }
            let first = number as u32 * per_group;
            let here = inodes.saturating_sub(first).min(per_group);
            group.free_inodes = per_group - here;
            group.unused_inodes = per_group - here;
            group.directories = self.directories.get(number as usize).copied().unwrap_or(0);
            if here > 0 {
                let mut bitmap = Bitmap::new();
                bitmap.set(0..u64::from(here), true);
                bitmap.set(u64::from(per_group)..GROUP_BLOCKS, true);
                let covered = &bitmap.bytes()[..per_group as usize / 8];
                group.inode_bitmap = Some(crc::crc32c(self.seed, covered));
                disk.write(geometry.inode_bitmap(number) * BLOCK, bitmap.bytes())
                    .map_err(Ext4Error::Write)?;
            }
            descriptors.extend_from_slice(&superblock::descriptor(
                &group, number, &geometry, self.seed,
            ));
        }
        descriptors.resize(descriptors.len().next_multiple_of(BLOCK as usize), 0);

        let counts = Counts {
            blocks,
            free_blocks,
            groups,
            free_inodes: groups as u32 * per_group - inodes,
        };
        for group in (0..groups).filter(|&group| Geometry::has_superblock(group)) {
            let copy = superblock::encode(
                self.identity,
                &self.hash_seed,
                &geometry,
                &counts,
                journal.as_ref(),
                group as u16,
            );
            let start = group * GROUP_BLOCKS * BLOCK;
            let within = if group == 0 { 1024 } else { 0 };
            disk.write(start + within, &copy)
                .map_err(Ext4Error::Write)?;
            disk.write(start + BLOCK, &descriptors)
                .map_err(Ext4Error::Write)?;
        }
        let size = match self.size {
            // A tail too short to be a group is still part of the disk.
            Size::Fixed(size) => size / BLOCK * BLOCK,
            Size::AtLeast { .. } => blocks * BLOCK,
        };
        disk.finish(size).map_err(Ext4Error::Write)?;
        Ok((
            disk,
            Summary {
                size,
                free: free_blocks * BLOCK,
                files,
            },
        ))
    }
}

/// Ranges that touch made one.
fn merged(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in ranges {
        match merged.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => merged.push((start, end)),
        }
    }
    merged
}

/// `EXT4_FT_*`.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::Character { .. } => 3,
        Kind::Block { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}
