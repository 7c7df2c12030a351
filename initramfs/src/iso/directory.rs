//! The root directory, which is the only one, and the path table that says so:
//! ECMA-119 section 9.

use super::descriptor::{both16, both32};
use super::{ROOT_DIRECTORY, SECTOR};
use crate::Date;
use crate::fat::Extent;

/// A file of the root directory.
pub(super) struct Record {
    /// Name with version, as ECMA-119 7.5 writes it: `VMLINUZ.;1`.
    pub identifier: &'static str,
    /// Place on the disc.
    pub extent: Extent,
}

/// Identifier of a directory's record of itself (ECMA-119 6.8.2.2).
pub(super) const SELF: &[u8] = &[0];
const PARENT: &[u8] = &[1];
const FLAG_DIRECTORY: u8 = 2;

/// The root directory's sector. Six short names and two records of itself are
/// far below a sector's 2048 bytes.
pub(super) fn root(records: &[Record], date: Date) -> Vec<u8> {
    let start = u64::from(ROOT_DIRECTORY) * SECTOR;
    let mut bytes = itself(start, SELF, date);
    bytes.extend(itself(start, PARENT, date));
    for Record { identifier, extent } in records {
        bytes.extend(record(identifier.as_bytes(), *extent, 0, date));
    }
    assert!(
        bytes.len() as u64 <= SECTOR,
        "the root directory is one sector"
    );
    bytes
}

/// The root directory's record of itself, or of its parent, which it also is.
pub(super) fn itself(offset: u64, identifier: &[u8], date: Date) -> Vec<u8> {
    let length = SECTOR;
    record(identifier, Extent { offset, length }, FLAG_DIRECTORY, date)
}

/// ECMA-119 9.1.
fn record(identifier: &[u8], extent: Extent, flags: u8, date: Date) -> Vec<u8> {
    let length = (33 + identifier.len()).next_multiple_of(2);
    let (extended_attributes, unit_size, gap, volume_number) = (0, 0, 0, 1);
    let mut bytes = vec![length as u8, extended_attributes];
    bytes.extend(both32(super::sector(extent.offset)));
    bytes.extend(both32(extent.length as u32));
    bytes.extend(date.iso_record());
    bytes.extend([flags, unit_size, gap]);
    bytes.extend(both16(volume_number));
    bytes.push(identifier.len() as u8);
    bytes.extend(identifier);
    bytes.resize(length, 0);
    bytes
}

/// Bytes of the path table: one record (ECMA-119 9.4) for the root.
pub(super) const PATH_TABLE_LENGTH: usize = 10;

/// The path table in the byte order of the two functions.
pub(super) fn path_table(
    word: fn(u32) -> [u8; 4],
    half: fn(u16) -> [u8; 2],
) -> [u8; PATH_TABLE_LENGTH] {
    let (identifier_length, extended_attributes, parent) = (1, 0, 1);
    let mut bytes = [0; PATH_TABLE_LENGTH];
    bytes[0] = identifier_length;
    bytes[1] = extended_attributes;
    bytes[2..6].copy_from_slice(&word(ROOT_DIRECTORY));
    bytes[6..8].copy_from_slice(&half(parent));
    bytes
}
