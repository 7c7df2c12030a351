//! The boot ISO: one ISO 9660 file system that BIOS boots through isolinux and
//! UEFI through a FAT volume, with kernel and initramfs in it once.
//!
//! Owns the order of things on the disc. Does not own what the FAT volume
//! looks like inside ([`fat`](crate::fat)) nor what isolinux wants
//! ([`Isolinux`](crate::Isolinux)).
//!
//! ```text
//! sector  0  system area, zeros
//!        16  primary volume descriptor
//!        17  boot record, pointing at the boot catalog
//!        18  end of volume descriptors
//!        19  path table, little-endian; 20 the same, big-endian
//!        21  root directory
//!        22  boot catalog: BIOS -> ISOLINUX.BIN, EFI -> FAT volume
//!        23  ISOLINUX.BIN, LDLINUX.C32, ISOLINUX.CFG
//!         n  FAT volume, to the end of the disc
//!              EFI/BOOT/BOOTX64.EFI, CMDLINE
//!              VMLINUZ   <- also the root directory's VMLINUZ
//!              INITRD    <- also the root directory's INITRD
//! ```
//!
//! Sources: ECMA-119 (ISO 9660), "El Torito" Bootable CD-ROM Format 1.0,
//! UEFI 2.10 section 13.3.2.

mod descriptor;
mod directory;
mod eltorito;

use std::io::Write;

use crate::content::Positioned;
use crate::fat::{self, Extent};
use crate::isolinux::{CommandLine, Isolinux, configuration};
use crate::{Content, Date, Error};
use directory::Record;

/// Bytes in a sector of a CD-ROM and in a logical block of this file system.
pub const SECTOR: u64 = 2048;
/// Volume identifier of the ISO and label of the FAT volume.
pub const VOLUME: &str = "TETHER";
/// The kernel's name in the root of both file systems.
pub const KERNEL: &str = "VMLINUZ";
/// The initramfs' name in the root of both file systems.
pub const INITRAMFS: &str = "INITRD";
/// The file in the FAT volume that holds the command line for the EFI loader.
pub const COMMAND_LINE: &str = "CMDLINE";
/// Where UEFI looks for a loader on removable media (UEFI 2.10, 3.5.1.1).
pub const EFI_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";

const IMAGE: &str = "ISO";
/// "TETH": any fixed number does.
const SERIAL: u32 = 0x5445_5448;
/// Largest of each: a debug kernel with room to spare, within what FAT16 holds.
const FILE_LIMIT: u64 = 64 << 20;

const PRIMARY_DESCRIPTOR: u32 = 16;
const PATH_TABLE_LITTLE: u32 = 19;
const PATH_TABLE_BIG: u32 = 20;
const ROOT_DIRECTORY: u32 = 21;
const BOOT_CATALOG: u32 = 22;
const FIRST_FILE: u32 = 23;

/// What goes onto a boot ISO.
#[derive(Debug)]
pub struct Contents {
    /// The kernel, a bzImage with `EFI_STUB`.
    pub kernel: Content,
    /// The initramfs, as [`newc::write`](crate::newc::write) makes it.
    pub initramfs: Content,
    /// The EFI application that starts the kernel: `efi-loader` of this crate.
    pub efi_loader: Content,
    /// BIOS boot loader.
    pub isolinux: Isolinux,
    /// What either loader passes to the kernel.
    pub command_line: CommandLine,
    /// The date of every file and of the volume.
    pub date: Date,
}

/// An ISO whose layout is decided and whose bytes are not yet written.
#[derive(Debug)]
pub struct BootIso {
    date: Date,
    isolinux: Isolinux,
    configuration: String,
    volume: fat::Volume,
    core: Extent,
    module: Extent,
    configuration_at: Extent,
    volume_at: Extent,
    kernel: Extent,
    initramfs: Extent,
}

impl BootIso {
    /// Lays the ISO out.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if kernel, initramfs or loader exceed 64 MiB or do
    /// not fit the FAT volume together; [`Error::Empty`] if one has no bytes.
    pub fn plan(contents: Contents) -> Result<Self, Error> {
        let Contents {
            kernel,
            initramfs,
            efi_loader,
            isolinux,
            command_line,
            date,
        } = contents;
        for (what, content) in [
            ("kernel", &kernel),
            ("initramfs", &initramfs),
            ("EFI loader", &efi_loader),
        ] {
            let length = content.length();
            if length == 0 {
                return Err(Error::Empty { what });
            }
            if length > FILE_LIMIT {
                return Err(Error::TooLarge {
                    what,
                    length,
                    limit: FILE_LIMIT,
                });
            }
        }
        let volume = fat::Volume::plan(
            VOLUME,
            SERIAL,
            date,
            vec![
                (EFI_LOADER, efi_loader),
                (COMMAND_LINE, Content::bytes(command_line.as_str())),
                (KERNEL, kernel),
                (INITRAMFS, initramfs),
            ],
        )?;
        let configuration = configuration(KERNEL, INITRAMFS, &command_line);
        let mut next = u64::from(FIRST_FILE) * SECTOR;
        let mut place = |length: u64| {
            let offset = next;
            next += length.next_multiple_of(SECTOR);
            Extent { offset, length }
        };
        let core = place(isolinux.core_length());
        let module = place(isolinux.module().len() as u64);
        let configuration_at = place(configuration.len() as u64);
        let volume_at = place(volume.length());
        let on_disc = |path: &str| {
            let Extent { offset, length } = volume
                .extent(path)
                .expect("a file that is not empty has a place");
            Extent {
                offset: volume_at.offset + offset,
                length,
            }
        };
        Ok(BootIso {
            date,
            kernel: on_disc(KERNEL),
            initramfs: on_disc(INITRAMFS),
            isolinux,
            configuration,
            volume,
            core,
            module,
            configuration_at,
            volume_at,
        })
    }

    /// Length of the ISO in bytes, a multiple of [`SECTOR`].
    pub fn length(&self) -> u64 {
        self.volume_at.offset + self.volume_at.length
    }

    /// Where the FAT volume lies on the disc.
    pub fn volume(&self) -> Extent {
        self.volume_at
    }

    /// Where the kernel lies on the disc.
    pub fn kernel(&self) -> Extent {
        self.kernel
    }

    /// Where the initramfs lies on the disc.
    pub fn initramfs(&self) -> Extent {
        self.initramfs
    }

    /// Writes the ISO's [`length`](Self::length) bytes, in order.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Changed`] from the inputs, [`Error::Write`]
    /// from `out`.
    pub fn write(&self, out: impl Write) -> Result<(), Error> {
        let mut out = Positioned::new(out, IMAGE);
        let sectors = sector(self.length());
        out.zeros_until(u64::from(PRIMARY_DESCRIPTOR) * SECTOR)?;
        out.bytes(&descriptor::primary(sectors, self.date))?;
        out.bytes(&descriptor::boot_record())?;
        out.bytes(&descriptor::terminator())?;
        out.bytes(&directory::path_table(u32::to_le_bytes, u16::to_le_bytes))?;
        out.zeros_until(u64::from(PATH_TABLE_BIG) * SECTOR)?;
        out.bytes(&directory::path_table(u32::to_be_bytes, u16::to_be_bytes))?;
        out.zeros_until(u64::from(ROOT_DIRECTORY) * SECTOR)?;
        out.bytes(&directory::root(&self.records(), self.date))?;
        out.zeros_until(u64::from(BOOT_CATALOG) * SECTOR)?;
        out.bytes(&eltorito::catalog(
            sector(self.core.offset),
            sector(self.volume_at.offset),
            self.volume_at.length,
        ))?;
        out.zeros_until(self.core.offset)?;
        let core_sector = sector(self.core.offset);
        out.bytes(&self.isolinux.core_at(PRIMARY_DESCRIPTOR, core_sector))?;
        out.zeros_until(self.module.offset)?;
        out.bytes(self.isolinux.module())?;
        out.zeros_until(self.configuration_at.offset)?;
        out.bytes(self.configuration.as_bytes())?;
        out.zeros_until(self.volume_at.offset)?;
        out.embed(self.volume_at.length, |out| self.volume.write(out))?;
        out.flush()
    }

    /// The root directory's files, sorted by identifier as ECMA-119 9.3 wants.
    fn records(&self) -> [Record; 6] {
        let catalog = Extent {
            offset: u64::from(BOOT_CATALOG) * SECTOR,
            length: SECTOR,
        };
        [
            ("BOOT.CAT;1", catalog),
            ("INITRD.;1", self.initramfs),
            ("ISOLINUX.BIN;1", self.core),
            ("ISOLINUX.CFG;1", self.configuration_at),
            ("LDLINUX.C32;1", self.module),
            ("VMLINUZ.;1", self.kernel),
        ]
        .map(|(identifier, extent)| Record { identifier, extent })
    }
}

/// The sector at `offset`; every offset of an ISO within the size caps fits.
fn sector(offset: u64) -> u32 {
    (offset / SECTOR) as u32
}

#[cfg(test)]
mod tests;
