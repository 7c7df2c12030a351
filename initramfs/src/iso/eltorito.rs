//! The boot catalog: El Torito section 2, and UEFI 2.10 section 13.3.2.1 for
//! the EFI entry.

use super::SECTOR;

const PLATFORM_BIOS: u8 = 0;
const PLATFORM_EFI: u8 = 0xef;
const BOOTABLE: u8 = 0x88;
const FINAL_HEADER: u8 = 0x91;
const NO_EMULATION: u8 = 0;
/// El Torito counts in 512-byte sectors.
const VIRTUAL_SECTOR: u64 = 512;
/// What the BIOS loads of isolinux, which then loads the rest of itself.
const BIOS_SECTORS: u16 = 4;

/// The catalog's sector: BIOS boots the image at `bios_sector`, UEFI the FAT
/// volume of `efi_length` bytes at `efi_sector`.
pub(super) fn catalog(bios_sector: u32, efi_sector: u32, efi_length: u64) -> [u8; SECTOR as usize] {
    // A count of 0 means "to the end of the disc", where the volume ends too.
    let efi_sectors = u16::try_from(efi_length / VIRTUAL_SECTOR).unwrap_or(0);
    let entries = [
        validation(PLATFORM_BIOS),
        boot(bios_sector, BIOS_SECTORS),
        section(PLATFORM_EFI),
        boot(efi_sector, efi_sectors),
    ];
    let mut bytes = [0; SECTOR as usize];
    for (field, entry) in bytes.as_chunks_mut().0.iter_mut().zip(entries) {
        *field = entry;
    }
    bytes
}

/// Validation entry; its sixteen words sum to zero.
fn validation(platform: u8) -> [u8; 32] {
    let header_id = 1;
    let mut entry = [0; 32];
    entry[0] = header_id;
    entry[1] = platform;
    entry[30..].copy_from_slice(&[0x55, 0xaa]);
    let sum = entry
        .as_chunks()
        .0
        .iter()
        .map(|word| u16::from_le_bytes(*word))
        .fold(0, u16::wrapping_add);
    entry[28..30].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    entry
}

/// Header of the last section, which has one entry.
fn section(platform: u8) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[0] = FINAL_HEADER;
    entry[1] = platform;
    entry[2..4].copy_from_slice(&1u16.to_le_bytes());
    entry
}

/// Default or section entry without emulation, loaded at the usual segment.
fn boot(sector: u32, virtual_sectors: u16) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[0] = BOOTABLE;
    entry[1] = NO_EMULATION;
    entry[6..8].copy_from_slice(&virtual_sectors.to_le_bytes());
    entry[8..12].copy_from_slice(&sector.to_le_bytes());
    entry
}
