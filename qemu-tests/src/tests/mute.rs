//! An initramfs whose init never says a word.

/// System calls of x86-64 Linux: `for (;;) pause();`.
const CODE: [u8; 9] = [
    0xb8, 34, 0, 0, 0, // mov eax, __NR_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp back to the start
];

/// What one says that lets itself be made a template.
const READY: &[u8] = b"tether: template ready\n";
/// What it says from then on, once a second.
pub const MUTTERED: &str = "and not a word on the channel";

/// The archive: one file, `init`.
pub fn initramfs() -> Vec<u8> {
    archive(&CODE)
}

/// One that says on its console what tether does when it is to become a template, and never opens the
/// channel, neither there nor in a fork.
pub fn template() -> Vec<u8> {
    archive(&muttering())
}

/// `write(1, READY); for (;;) { nanosleep({1, 0}); write(1, MUTTERED); }`
fn muttering() -> Vec<u8> {
    let line = format!("{MUTTERED}\n");
    let mut code = Vec::new();
    // Places in the data behind the code, whose length is known: seven bytes each to load.
    const LENGTH: usize = 72;
    let data = LENGTH..;
    let (time, ready) = (data.start, data.start + 16);
    let word = ready + READY.len();
    let load = |code: &mut Vec<u8>, register: u8, place: usize| {
        code.extend([0x48, 0x8d, register]); // lea register, [rip + distance]
        let distance = (place - code.len() - 4) as u32;
        code.extend(distance.to_le_bytes());
    };
    const RSI: u8 = 0x35;
    const RDI: u8 = 0x3d;
    let number = |code: &mut Vec<u8>, register: u8, value: u32| {
        code.push(register); // mov register, value
        code.extend(value.to_le_bytes());
    };
    const EAX: u8 = 0xb8;
    const EDI: u8 = 0xbf;
    const EDX: u8 = 0xba;
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let say = |code: &mut Vec<u8>, place, length: usize| {
        number(code, EAX, 1);
        number(code, EDI, 1);
        load(code, RSI, place);
        number(code, EDX, length as u32);
        code.extend(SYSCALL);
    };
    say(&mut code, ready, READY.len());
    let again = code.len();
    number(&mut code, EAX, 35);
    load(&mut code, RDI, time);
    code.extend([0x31, 0xf6]); // xor esi, esi
    code.extend(SYSCALL);
    say(&mut code, word, line.len());
    code.push(0xeb); // jmp again
    code.push((again as i64 - code.len() as i64 - 1) as i8 as u8);
    assert!(code.len() <= LENGTH, "{}", code.len());
    code.resize(LENGTH, 0x90);
    code.extend(1u64.to_le_bytes());
    code.extend(0u64.to_le_bytes());
    code.extend(READY);
    code.extend(line.bytes());
    code
}

fn archive(code: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "init", 0o100_755, &program(code));
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

/// A static program (System V ABI, ELF-64) of this code alone.
fn program(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
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
    elf.extend(code);
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
        let program = program(&CODE);
        let place = archive
            .windows(program.len())
            .position(|window| window == program);
        assert_eq!(place.map(|place| place % 4), Some(0));
        assert_eq!(archive.len() % 4, 0);
    }
}
