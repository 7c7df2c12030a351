//! Extended attributes, in the inode's spare room and in a block of their own.
//!
//! Source: `fs/ext4/xattr.h`, `fs/ext4/acl.h`. What fits goes into the inode (smallest first, so that
//! a file capability is read with it), the rest into one block; inodes with equal rests share it.

use super::bytes::Fields;
use super::crc::crc32c;
use super::geometry::BLOCK;
use crate::tree::Xattrs;

const MAGIC: u32 = 0xea02_0000;
/// Room in a 256-byte inode behind its 160 bytes of fields, less the magic number.
const IN_INODE: usize = 256 - 160 - 4;
const HEADER: usize = 32;
/// How many inodes may share a block.
pub(super) const SHARES_MAX: u32 = 1024;

/// A set that no inode and block can hold.
#[derive(Debug)]
pub(super) struct TooLarge;

/// What is written of an inode's extended attributes.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    /// The inode's bytes from 160 on, or nothing.
    pub in_inode: Option<[u8; 96]>,
    /// A block without its reference count and checksum, or nothing.
    pub block: Option<Box<[u8]>>,
}

struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn entry(&self) -> usize {
        (16 + self.name.len()).next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry() + self.value.len().next_multiple_of(4)
    }

    /// The hash that a block's entries carry.
    fn hash(&self) -> u32 {
        let mut hash = 0u32;
        for &byte in &self.name {
            hash = hash.rotate_left(5) ^ u32::from(byte);
        }
        for word in self.value.chunks(4) {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(bytes);
        }
        hash
    }
}

/// Whether ext4 has a place for an attribute of this name.
pub fn is_kept(name: &[u8]) -> bool {
    split(name).is_some()
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole: [(&[u8], u8); 2] = [
        (b"system.posix_acl_access", 2),
        (b"system.posix_acl_default", 3),
    ];
    if let Some((_, index)) = whole.iter().find(|(known, _)| *known == name) {
        return Some((*index, b""));
    }
    let prefixes: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    prefixes.iter().find_map(|(prefix, index)| {
        name.strip_prefix(*prefix)
            .filter(|rest| !rest.is_empty())
            .map(|rest| (*index, rest))
    })
}

/// Whether there is room for those of `xattrs` that [`is_kept`].
pub fn fit(xattrs: &Xattrs) -> bool {
    xattrs.is_empty() || encode(xattrs).is_ok()
}

/// Encodes those of `xattrs` that [`is_kept`].
pub(super) fn encode(xattrs: &Xattrs) -> Result<Encoded, TooLarge> {
    let mut inside: Vec<Attribute> = Vec::new();
    let mut outside: Vec<Attribute> = Vec::new();
    let mut all: Vec<Attribute> = Vec::new();
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else {
            continue;
        };
        let value = match index {
            2 | 3 => match acl(value) {
                Some(value) => value,
                None => continue,
            },
            _ => value.to_vec(),
        };
        all.push(Attribute {
            index,
            name: rest.to_vec(),
            value,
        });
    }
    all.sort_by_key(Attribute::size);
    let mut room = IN_INODE - 4;
    for attribute in all {
        if attribute.size() <= room {
            room -= attribute.size();
            inside.push(attribute);
        } else {
            outside.push(attribute);
        }
    }
    let mut encoded = Encoded::default();
    if !inside.is_empty() {
        let mut bytes = [0; 96];
        bytes.put32(0, MAGIC);
        // Offsets of values count from the first entry here, from the block's start there.
        put(&mut bytes, 4, 4, &inside, false);
        encoded.in_inode = Some(bytes);
    }
    if !outside.is_empty() {
        let needed: usize = HEADER + 4 + outside.iter().map(Attribute::size).sum::<usize>();
        if needed > BLOCK as usize {
            return Err(TooLarge);
        }
        outside.sort_by(|a, b| {
            (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name))
        });
        let mut block = vec![0; BLOCK as usize].into_boxed_slice();
        block.put32(0, MAGIC);
        block.put32(8, 1);
        let mut whole = 0u32;
        for attribute in &outside {
            let hash = attribute.hash();
            if hash == 0 {
                whole = 0;
                break;
            }
            whole = whole.rotate_left(16) ^ hash;
        }
        block.put32(12, whole);
        put(&mut block, HEADER, 0, &outside, true);
        encoded.block = Some(block);
    }
    Ok(encoded)
}

/// Entries from `at` upwards, values from the end downwards.
fn put(bytes: &mut [u8], at: usize, base: usize, attributes: &[Attribute], hashed: bool) {
    let mut at = at;
    let mut end = bytes.len();
    for attribute in attributes {
        let length = attribute.value.len();
        end -= length.next_multiple_of(4);
        bytes[end..end + length].copy_from_slice(&attribute.value);
        bytes[at] = attribute.name.len() as u8;
        bytes[at + 1] = attribute.index;
        // An empty value has no place.
        bytes.put16(at + 2, if length == 0 { 0 } else { (end - base) as u16 });
        bytes.put32(at + 8, length as u32);
        bytes.put32(at + 12, if hashed { attribute.hash() } else { 0 });
        bytes[at + 16..at + 16 + attribute.name.len()].copy_from_slice(&attribute.name);
        at += attribute.entry();
    }
}

/// Completes a block: how many inodes share it, and its checksum under the filesystem's `seed`.
pub(super) fn seal(block: &mut [u8], shares: u32, place: u64, seed: u32) {
    block.put32(4, shares);
    block.put32(16, 0);
    let checksum = crc32c(crc32c(seed, &place.to_le_bytes()), block);
    block.put32(16, checksum);
}

/// An access control list from the form system calls use (version 2, 8 bytes an entry) to the
/// form on disk (version 1, without ids where there are none). `None` if it is not one.
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut out = vec![1, 0, 0, 0];
    for entry in entries.as_chunks::<8>().0 {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            // The owner's, group's, mask's and others' entries.
            0x01 | 0x04 | 0x10 | 0x20 => out.extend_from_slice(&entry[..4]),
            // A named user's and a named group's.
            0x02 | 0x08 => out.extend_from_slice(entry),
            _ => return None,
        }
    }
    Some(out)
}
