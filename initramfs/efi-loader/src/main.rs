//! `EFI/BOOT/BOOTX64.EFI` of the boot ISO: starts the kernel beside it.
//!
//! Firmware loads this program from the ISO's FAT volume. It loads `\VMLINUZ`
//! from that volume through the firmware, so Secure Boot's rules apply to the
//! kernel as to any image; gives it the text of `\CMDLINE` as load options;
//! offers `\INITRD` under Linux' initrd media GUID, from where the kernel's EFI
//! stub (5.8 and newer) reads it straight to its final place; and starts it.
//!
//! A failure is told on the firmware's console and powers the machine off, as
//! a failure early in the init does: nothing else can boot here.
//!
//! Why a program of our own: the kernel's stub as `BOOTX64.EFI` gets neither
//! command line nor initramfs from firmware, and a unified image would keep a
//! second copy of both on the disc.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod sys;

use sys::{Firmware, Path, Status};

const KERNEL: Path = sys::volume_path!("\\VMLINUZ");
const INITRAMFS: Path = sys::volume_path!("\\INITRD");
const COMMAND_LINE: Path = sys::volume_path!("\\CMDLINE");
/// The kernel takes 2048 bytes with a NUL.
const COMMAND_LINE_LIMIT: usize = 2047;

/// What was being done when the firmware said no.
struct Failure(&'static str, Status);

/// Runs the kernel; comes back only with the reason why it does not run.
fn boot(firmware: &Firmware) -> Failure {
    match start_kernel(firmware) {
        Ok(()) => Failure("the kernel returned", Status::SUCCESS),
        Err(failure) => failure,
    }
}

fn start_kernel(firmware: &Firmware) -> Result<(), Failure> {
    let at = |doing| move |status| Failure(doing, status);
    let volume = firmware
        .boot_volume()
        .map_err(at("cannot open the volume it was started from"))?;
    let options = command_line(firmware, &volume).map_err(at("cannot read \\CMDLINE"))?;
    let initramfs = volume.open(INITRAMFS).map_err(at("cannot open \\INITRD"))?;
    let kernel = firmware
        .load_image(KERNEL)
        .map_err(at("cannot load \\VMLINUZ"))?;
    kernel
        .set_options(options)
        .map_err(at("cannot set the kernel's command line"))?;
    firmware
        .start_with_initramfs(kernel, initramfs)
        .map_err(at("the kernel did not start"))
}

/// The text of `\CMDLINE` as UTF-16 with a NUL, which is what Linux' stub wants.
fn command_line(firmware: &Firmware, volume: &sys::Volume) -> Result<&'static [u16], Status> {
    let file = volume.open(COMMAND_LINE)?;
    let length = file.length()?;
    if length > COMMAND_LINE_LIMIT {
        return Err(Status::BAD_BUFFER_SIZE);
    }
    let options = firmware.allocate_utf16(length + 1)?;
    let mut filled = 0;
    let mut chunk = [0; 256];
    while filled < length {
        let wanted = chunk.len().min(length - filled);
        let count = file.read(&mut chunk[..wanted])?;
        if count == 0 {
            return Err(Status::END_OF_FILE);
        }
        for (unit, byte) in options[filled..].iter_mut().zip(&chunk[..count]) {
            *unit = u16::from(*byte);
        }
        filled += count;
    }
    Ok(options)
}
