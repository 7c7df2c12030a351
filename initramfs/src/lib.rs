//! The boot image: what a containerVM starts from.
//!
//! Three artefacts, each a function of its inputs' bytes alone: the kernel as
//! it was built, the initramfs ([`newc`]) with one file in it, and an ISO
//! ([`iso`]) that holds both for machines that boot from a CD-ROM. The program
//! `bootimage` writes the latter two from files, `scripts/boot-image` puts all
//! three into the cache. What is *in* kernel and init is none of this crate's
//! business beyond checking that they can boot at all ([`check_bootable`],
//! [`check_static`]).
//!
//! # Kernel and initramfs are on the ISO once
//!
//! BIOS firmware starts isolinux, which reads the ISO 9660 file system; UEFI
//! firmware starts `EFI/BOOT/BOOTX64.EFI` from a FAT volume inside the ISO.
//! Both file systems list the kernel and the initramfs, and both lists point
//! at the same sectors: the FAT volume ([`fat`]) keeps its files whole and
//! aligned to CD-ROM sectors. `BOOTX64.EFI` is `efi-loader/`, 6 KB of our own,
//! made an EFI application by [`efi_application`]: the kernel's EFI stub alone gets neither initramfs nor command line from the
//! firmware, and a unified kernel image would be a second copy of both.
//!
//! Besides kernel and initramfs an ISO of 6 MB holds 228 KiB: isolinux 155, what
//! ISO 9660 and El Torito put before the first file 46, the FAT volume's tables
//! 12, and directories, loader and rounding.
//!
//! # The initramfs is not compressed
//!
//! Measured on Linux 6.1 with an init of 542 KB in guest instructions, which
//! repeat exactly (`qemu -icount shift=0`), from kernel start to init, and with
//! all that the firmware and isolinux do before:
//!
//! | archive | bytes   | direct boot     | ISO, BIOS, from reset |
//! |---------|---------|-----------------|-----------------------|
//! | plain   | 542,344 | 455 million     | 511 million           |
//! | LZ4     | 281,286 | +4.0 (0.9 %)    | +4                    |
//! | zstd    | 226,743 | +6 to +10 [^1]  |                       |
//! | gzip    | 250,704 | +12.0 (2.6 %)   |                       |
//! | xz      | 215,552 | +70 to +74 [^1] |                       |
//!
//! A containerVM is started far more often than its ISO is copied, and the
//! bytes saved are 5 % of the ISO; even read from the CD-ROM the smaller
//! archive does not make up for unpacking it. Nor does the kernel then need a
//! decompressor (`RD_*`).
//!
//! [^1]: Debian's cloud kernel, against its own 1,552 to 1,557 million.
#![forbid(unsafe_code)]

mod content;
mod date;
mod elf;
mod error;
pub mod fat;
pub mod iso;
mod isolinux;
mod kernel;
pub mod newc;
mod pe;

pub use content::Content;
pub use date::Date;
pub use elf::check_static;
pub use error::Error;
pub use isolinux::{CommandLine, Isolinux};
pub use kernel::check_bootable;
pub use pe::efi_application;
