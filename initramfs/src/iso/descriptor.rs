//! Volume descriptors: ECMA-119 section 8 and El Torito section 2.

use super::{
    BOOT_CATALOG, PATH_TABLE_BIG, PATH_TABLE_LITTLE, ROOT_DIRECTORY, SECTOR, VOLUME, directory,
};
use crate::Date;

type Sector = [u8; SECTOR as usize];

/// Type, standard identifier, version; the rest zeros.
fn descriptor(kind: u8) -> Sector {
    let mut bytes = [0; SECTOR as usize];
    bytes[0] = kind;
    bytes[1..6].copy_from_slice(b"CD001");
    bytes[6] = 1;
    bytes
}

/// ECMA-119 7.3.3: little-endian, then big-endian.
pub(super) fn both32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// ECMA-119 7.2.3: little-endian, then big-endian.
pub(super) fn both16(value: u16) -> [u8; 4] {
    let [low, high] = value.to_le_bytes();
    [low, high, high, low]
}

/// The primary volume descriptor (ECMA-119 8.4) of a volume of `sectors`.
pub(super) fn primary(sectors: u32, date: Date) -> Sector {
    let mut bytes = descriptor(1);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let blank = [b' '; 128];
    // System and volume identifiers, then volume set, publisher, data
    // preparer, application, copyright, abstract and bibliographic file.
    put(8, &blank[..64]);
    put(40, VOLUME.as_bytes());
    for at in [190, 318, 446, 574] {
        put(at, &blank);
    }
    for at in [702, 739, 776] {
        put(at, &blank[..37]);
    }
    put(574, VOLUME.as_bytes());
    put(80, &both32(sectors));
    let (set_size, sequence_number) = (1, 1);
    put(120, &both16(set_size));
    put(124, &both16(sequence_number));
    put(128, &both16(SECTOR as u16));
    put(132, &both32(directory::PATH_TABLE_LENGTH as u32));
    put(140, &PATH_TABLE_LITTLE.to_le_bytes());
    put(148, &PATH_TABLE_BIG.to_be_bytes());
    let root = u64::from(ROOT_DIRECTORY) * SECTOR;
    put(156, &directory::itself(root, directory::SELF, date));
    // Created, modified, expires, effective; no date is sixteen zero digits.
    let never = *b"0000000000000000\0";
    for (at, moment) in [
        (813, date.iso_descriptor()),
        (830, date.iso_descriptor()),
        (847, never),
        (864, never),
    ] {
        put(at, &moment);
    }
    let structure_version = 1;
    put(881, &[structure_version]);
    bytes
}

/// The boot record that says where the boot catalog is (El Torito, figure 7).
pub(super) fn boot_record() -> Sector {
    let mut bytes = descriptor(0);
    let identifier = b"EL TORITO SPECIFICATION";
    bytes[7..7 + identifier.len()].copy_from_slice(identifier);
    bytes[71..75].copy_from_slice(&BOOT_CATALOG.to_le_bytes());
    bytes
}

/// ECMA-119 8.3.
pub(super) fn terminator() -> Sector {
    descriptor(255)
}
