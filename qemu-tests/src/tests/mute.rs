//! An initramfs whose init never says a word.

/// System calls of x86-64 Linux: `for (;;) pause();`.
const CODE: [u8; 9] = [
    0xb8, 34, 0, 0, 0, // mov eax, __NR_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp back to the start
];

/// The archive: one file, `init`.
pub fn initramfs() -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, &program());
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// A static program (System V ABI, ELF-64) of [`CODE`] alone.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.resize(16, 0);
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes()); // executable, x86-64
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        elf.extend(word.to_le_bytes()); // loaded, read and executed
    }
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    elf
}

/// One entry of a newc archive (Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        data.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_program_at_a_multiple_of_four() {
        let archive = initramfs();
        let program = program();
        let place = archive
            .windows(program.len())
            .position(|window| window == program);
        assert_eq!(place.map(|place| place % 4), Some(0));
        assert_eq!(archive.len() % 4, 0);
    }
}
