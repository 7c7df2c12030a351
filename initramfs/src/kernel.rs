//! Whether a file is a kernel that both boot loaders can start.

use crate::{Content, Error};

/// Linux' `Documentation/x86/boot.rst`, "The Real-Mode Kernel Header".
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
/// Microsoft's PE format: where the DOS header says where the PE header is.
const PE_POINTER: usize = 0x3c;
const PE_LIMIT: usize = 0x200;
const MACHINE_X86_64: [u8; 2] = 0x8664_u16.to_le_bytes();
/// Enough for both headers.
const HEAD: usize = 0x300;

/// Checks that `kernel` is an x86 bzImage with `EFI_STUB`: of another file
/// isolinux would wait at a prompt for ever, and firmware say "unsupported".
///
/// # Errors
/// [`Error::UnusableKernel`] if it is not; [`Error::Read`] from reading it.
pub fn check_bootable(kernel: &Content) -> Result<(), Error> {
    let head = kernel.head(HEAD)?;
    match problem(&head) {
        None => Ok(()),
        Some(reason) => Err(Error::UnusableKernel {
            what: kernel.name(),
            reason,
        }),
    }
}

fn problem(head: &[u8]) -> Option<&'static str> {
    let boot_flag = head.get(BOOT_FLAG..BOOT_FLAG + 2);
    let magic = head.get(HEADER_MAGIC..HEADER_MAGIC + 4);
    if boot_flag != Some(&[0x55, 0xaa]) || magic != Some(b"HdrS") {
        return Some("it is not a bzImage (arch/x86/boot/bzImage of a kernel build)");
    }
    let pe = head.starts_with(b"MZ").then(|| pe_header(head)).flatten();
    match pe {
        None => Some("it has no EFI_STUB, so UEFI firmware cannot start it"),
        Some(machine) if machine == MACHINE_X86_64 => None,
        Some(_) => Some("it is not built for x86-64"),
    }
}

/// The machine that the PE header names.
fn pe_header(head: &[u8]) -> Option<&[u8]> {
    let pointer = head.get(PE_POINTER..PE_POINTER + 4)?;
    let at = u32::from_le_bytes(pointer.try_into().ok()?) as usize;
    let header = head.get(at..)?;
    (at < PE_LIMIT && header.starts_with(b"PE\0\0")).then(|| header.get(4..6))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[..2].copy_from_slice(b"MZ");
        head[PE_POINTER] = 0x40;
        head[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
        head[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        head[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        head
    }

    #[test]
    fn only_a_bzimage_with_an_efi_stub_can_boot() {
        assert_eq!(problem(&kernel()), None);
        let changed = |at: usize, bytes: &[u8]| {
            let mut head = kernel();
            head[at..at + bytes.len()].copy_from_slice(bytes);
            head
        };
        let cases = [
            (Vec::new(), "not a bzImage"),
            (kernel()[..0x203].to_vec(), "not a bzImage"),
            (changed(0, b"\x7fELF"), "EFI_STUB"),
            (changed(HEADER_MAGIC, b"xxxx"), "not a bzImage"),
            (changed(PE_POINTER, &[0xff; 4]), "EFI_STUB"),
            (changed(PE_POINTER, &[0xfe, 2, 0, 0]), "EFI_STUB"),
            (changed(0x44, &[0x4c, 0x01]), "not built for x86-64"),
        ];
        for (head, expected) in cases {
            let found = problem(&head);
            assert!(
                found.is_some_and(|found| found.contains(expected)),
                "{expected}: {found:?}"
            );
        }
    }
}
