//! What the ISO needs from isolinux, the BIOS boot loader: its core with the
//! boot info table filled in, its library module, and its configuration.

use crate::{Content, Error};

/// Where isolinux's core keeps the boot info table (mkisofs, "El Torito Boot
/// Information Table"): four 32-bit words and forty reserved bytes.
const TABLE: usize = 8;
const TABLE_END: usize = 64;
/// Far above what any release of either file measures.
const LIMIT: u64 = 1 << 20;
/// The x86 kernel's `COMMAND_LINE_SIZE` is 2048 with its NUL; isolinux puts
/// `BOOT_IMAGE=/VMLINUZ ` and `initrd=/INITRD ` before ours.
const COMMAND_LINE_LIMIT: usize = 2048 - 1 - 64;

/// A kernel command line that both boot loaders pass on unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// Takes `text` as it is.
    ///
    /// # Errors
    /// [`Error::CommandLine`] if it is longer than the kernel takes, or holds
    /// anything but printable ASCII: it becomes a line of isolinux's
    /// configuration and is widened to UTF-16 for the EFI stub.
    pub fn new(text: &str) -> Result<Self, Error> {
        if text.len() > COMMAND_LINE_LIMIT {
            let reason = format!(
                "it is {} bytes long; at most {COMMAND_LINE_LIMIT} fit",
                text.len()
            );
            return Err(Error::CommandLine { reason });
        }
        if let Some(bad) = text.chars().find(|c| !(' '..='~').contains(c)) {
            let reason = format!("it contains {bad:?}; only printable ASCII can be passed on");
            return Err(Error::CommandLine { reason });
        }
        Ok(CommandLine(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// isolinux's two files, checked.
#[derive(Debug)]
pub struct Isolinux {
    core: Vec<u8>,
    module: Vec<u8>,
}

impl Isolinux {
    /// `core` is `isolinux.bin`, `module` the `ldlinux.c32` of the same
    /// release for BIOS.
    ///
    /// # Errors
    /// [`Error::NotIsolinux`] if either is plainly another file;
    /// [`Error::TooLarge`], [`Error::Read`], [`Error::Changed`] from reading.
    pub fn new(core: &Content, module: &Content) -> Result<Self, Error> {
        let core = core.read_all("isolinux.bin", LIMIT)?;
        let module = module.read_all("ldlinux.c32", LIMIT)?;
        // Its banner, which every release prints.
        let is_core = core.len() > TABLE_END && core.windows(9).any(|text| text == b"ISOLINUX ");
        if !is_core {
            return Err(Error::NotIsolinux {
                what: "isolinux.bin",
                reason: "it is not the core of isolinux (Debian package isolinux)",
            });
        }
        // e_machine of the ELF header: the BIOS modules are for i386.
        if !module.starts_with(b"\x7fELF\x01\x01") || module.get(18..20) != Some(&[3, 0]) {
            return Err(Error::NotIsolinux {
                what: "ldlinux.c32",
                reason: "it is not a BIOS module of syslinux (Debian package syslinux-common, \
                         modules/bios)",
            });
        }
        Ok(Isolinux { core, module })
    }

    /// The core, with the boot info table for a core that lies at sector
    /// `sector` of an ISO whose primary volume descriptor is at `descriptor`.
    pub(crate) fn core_at(&self, descriptor: u32, sector: u32) -> Vec<u8> {
        let checksum = self.core[TABLE_END..]
            .chunks(4)
            .map(|chunk| {
                let mut word = [0; 4];
                word[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(word)
            })
            .fold(0, u32::wrapping_add);
        let words = [descriptor, sector, self.core.len() as u32, checksum];
        let mut core = self.core.clone();
        core[TABLE..TABLE_END].fill(0);
        for (field, word) in core[TABLE..].as_chunks_mut().0.iter_mut().zip(words) {
            *field = word.to_le_bytes();
        }
        core
    }

    pub(crate) fn core_length(&self) -> u64 {
        self.core.len() as u64
    }

    pub(crate) fn module(&self) -> &[u8] {
        &self.module
    }
}

/// `isolinux.cfg`: boots at once, whatever key is held.
pub(crate) fn configuration(kernel: &str, initramfs: &str, append: &CommandLine) -> String {
    format!(
        "DEFAULT tether\n\
         PROMPT 0\n\
         NOESCAPE 1\n\
         LABEL tether\n\
         \x20 LINUX /{kernel}\n\
         \x20 INITRD /{initramfs}\n\
         \x20 APPEND {}\n",
        append.as_str()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_info_table_holds_places_length_and_checksum() {
        let mut core = vec![0xee; TABLE_END];
        core.extend_from_slice(b"ISOLINUX \0\0\0");
        core.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 5]);
        // "ISOL" + "INUX" + " \0\0\0" - 1 + 5
        const CHECKSUM: u32 = 0x4c4f_5349_u32
            .wrapping_add(0x5855_4e49)
            .wrapping_add(0x20)
            .wrapping_add(4);
        let mut module = b"\x7fELF\x01\x01".to_vec();
        module.resize(18, 0);
        module.extend_from_slice(&[3, 0]);
        let isolinux = Isolinux::new(&Content::bytes(core.clone()), &Content::bytes(module))
            .expect("both look right");
        let patched = isolinux.core_at(16, 23);
        let mut table = Vec::new();
        for word in [16u32, 23, 81, CHECKSUM] {
            table.extend_from_slice(&word.to_le_bytes());
        }
        table.resize(TABLE_END - TABLE, 0);
        assert_eq!(patched[..TABLE], core[..TABLE]);
        assert_eq!(patched[TABLE..TABLE_END], table);
        assert_eq!(patched[TABLE_END..], core[TABLE_END..]);
    }

    #[test]
    fn other_files_are_not_isolinux() {
        let cases: [(&[u8], &[u8], &str); 2] = [
            (b"not isolinux", b"", "isolinux.bin"),
            (
                &[*b"ISOLINUX "; 20].concat(),
                b"\x7fELF\x02\x01",
                "ldlinux.c32",
            ),
        ];
        for (core, module, expected) in cases {
            match Isolinux::new(&Content::bytes(core), &Content::bytes(module)) {
                Err(Error::NotIsolinux { what, .. }) => assert_eq!(what, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_command_line_is_one_line_of_printable_ascii() {
        let longest = "x".repeat(COMMAND_LINE_LIMIT);
        for good in ["", "console=ttyS0 panic=-1", &longest] {
            assert_eq!(CommandLine::new(good).expect(good).as_str(), good);
        }
        let too_long = format!("{longest}x");
        for bad in ["a\nb", "a\0", "caf\u{e9}", "a\tb", &too_long] {
            let result = CommandLine::new(bad);
            assert!(matches!(result, Err(Error::CommandLine { .. })), "{bad:?}");
        }
    }
}
