//! EFI applications: PE32+ images, made from ELF programs.
//!
//! Firmware loads an application as Microsoft's "PE Format" describes (UEFI 2.10, section 2.1.1): its
//! sections at a base of its own choice, corrected by base relocations. An ELF program linked as
//! position-independent has the same parts under other names, so `efi-loader/` is built for
//! `x86_64-unknown-none`, a target that every toolchain carries and that uses no red zone (firmware
//! takes its interrupts on the running stack), and its headers are exchanged here:
//!
//! ```text
//! ELF                                   PE32+
//! first page, left free by the linker   DOS, COFF and optional headers, section table
//! PT_LOAD                               a section at the same address
//! R_X86_64_RELATIVE in .rela.dyn        the address in place, and an entry of .reloc
//! ```

use crate::elf::{Program, SEGMENT_DYNAMIC, SEGMENT_LOAD, Segment, long};
use crate::{Content, Error};

/// Larger than any loader that fits the ISO's FAT volume with sense.
const MAX_LOADER: u64 = 1 << 20;

/// Alignment of sections in memory, and of everything in the file.
const PAGE: u64 = 4096;
const FILE_ALIGNMENT: u64 = 512;

const DOS_HEADER: usize = 64;
const COFF_HEADER: usize = 24;
/// The optional header with its 16 data directories.
const OPTIONAL_HEADER: usize = 112 + 16 * 8;
const SECTION_HEADER: usize = 40;

/// `DT_RELA` and `DT_RELASZ` (System V ABI, chapter 5), and the size of what they count.
const DYNAMIC_RELA: u64 = 7;
const DYNAMIC_RELA_SIZE: u64 = 8;
const RELA: usize = 24;
/// `R_X86_64_RELATIVE`: the addend, moved by as much as the program was.
const RELATIVE: u64 = 8;

/// `IMAGE_REL_BASED_DIR64`: a 64-bit address.
const BASED_DIR64: u16 = 10;

/// The EFI application in `loader`: itself if it is one, else made from the ELF program that it is.
///
/// # Errors
/// [`Error::UnusableLoader`] if it is neither, or needs more from its loader than firmware does;
/// [`Error::TooLarge`], [`Error::Read`], [`Error::Changed`] from reading it.
pub fn efi_application(loader: &Content) -> Result<Content, Error> {
    let bytes = loader.read_all("EFI loader", MAX_LOADER)?;
    if bytes.starts_with(b"MZ") {
        return Ok(Content::bytes(bytes));
    }
    convert(&bytes)
        .map(Content::bytes)
        .map_err(|reason| Error::UnusableLoader {
            what: loader.name(),
            reason,
        })
}

/// A part of the application: what firmware puts at one address.
struct Section {
    name: &'static [u8; 8],
    characteristics: u32,
    address: u64,
    size: u64,
    bytes: Vec<u8>,
}

fn convert(elf: &[u8]) -> Result<Vec<u8>, &'static str> {
    let program = Program::parse(elf).map_err(|_| "it is neither PE nor an x86-64 ELF program")?;
    let mut sections = Vec::new();
    for segment in program.segments.iter().filter(|s| s.kind == SEGMENT_LOAD) {
        sections.push(section(elf, segment)?);
    }
    if sections.is_empty() || sections.len() > 16 {
        return Err("it has no segments, or more than 16");
    }
    let mut end = PAGE;
    for section in &sections {
        if section.address < end || section.address % PAGE != 0 || section.address > MAX_LOADER {
            return Err("its segments do not start on pages of their own above the first");
        }
        end = (section.address + section.size).next_multiple_of(PAGE);
    }
    let relocated = relocate(&program, &mut sections)?;
    let table = relocation_table(relocated);
    sections.push(Section {
        name: b".reloc\0\0",
        // Initialised data, discardable, readable.
        characteristics: 0x4200_0040,
        address: end,
        size: table.len() as u64,
        bytes: table,
    });
    image(program.entry, &sections)
}

fn section(elf: &[u8], segment: &Segment) -> Result<Section, &'static str> {
    const OUTSIDE: &str = "a segment lies outside of the file";
    let start = usize::try_from(segment.offset).map_err(|_| OUTSIDE)?;
    let stored = usize::try_from(segment.stored).map_err(|_| OUTSIDE)?;
    let bytes = start
        .checked_add(stored)
        .and_then(|end| elf.get(start..end))
        .ok_or(OUTSIDE)?;
    if segment.size < segment.stored || segment.size == 0 || segment.size > MAX_LOADER {
        return Err("a segment has no sensible size");
    }
    // What is readable, what it holds, and whether it is executed or written.
    let (name, characteristics) = match segment.flags & 3 {
        0 => (b".rdata\0\0", 0x4000_0040),
        1 => (b".text\0\0\0", 0x6000_0020),
        2 => (b".data\0\0\0", 0xc000_0040),
        _ => return Err("a segment is both written and executed"),
    };
    Ok(Section {
        name,
        characteristics,
        address: segment.address,
        size: segment.size,
        bytes: bytes.to_vec(),
    })
}

/// Puts the address of each relocation in its place, as for a program loaded at 0, and says where they are.
fn relocate(program: &Program, sections: &mut [Section]) -> Result<Vec<u64>, &'static str> {
    const DAMAGED: &str = "its relocations are damaged";
    let dynamic = program.segments.iter().find(|s| s.kind == SEGMENT_DYNAMIC);
    let Some(dynamic) = dynamic else {
        return Err("it is not position-independent");
    };
    let (mut start, mut size) = (0, 0);
    let entries = at(sections, dynamic.address, dynamic.stored).ok_or(DAMAGED)?;
    for entry in entries.as_chunks::<16>().0 {
        match long(entry, 0) {
            DYNAMIC_RELA => start = long(entry, 8),
            DYNAMIC_RELA_SIZE => size = long(entry, 8),
            _ => {}
        }
    }
    if size == 0 {
        return Ok(Vec::new());
    }
    let table = at(sections, start, size).ok_or(DAMAGED)?.to_vec();
    let mut addresses = Vec::new();
    for entry in table.as_chunks::<RELA>().0 {
        let (address, kind, addend) = (long(entry, 0), long(entry, 8), long(entry, 16));
        if kind != RELATIVE {
            return Err("it has relocations other than of its own base");
        }
        at(sections, address, 8)
            .ok_or(DAMAGED)?
            .copy_from_slice(&addend.to_le_bytes());
        addresses.push(address);
    }
    addresses.sort_unstable();
    Ok(addresses)
}

/// The `length` stored bytes at `address`.
fn at(sections: &mut [Section], address: u64, length: u64) -> Option<&mut [u8]> {
    sections.iter_mut().find_map(|section| {
        let start = usize::try_from(address.checked_sub(section.address)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        section.bytes.get_mut(start..end)
    })
}

/// The contents of `.reloc`: a block for every page with relocations. Never empty: firmware takes an
/// image without the section for one that cannot be moved.
fn relocation_table(addresses: Vec<u64>) -> Vec<u8> {
    let mut table = Vec::new();
    let mut rest = addresses.as_slice();
    loop {
        let page = rest.first().map_or(PAGE, |address| address / PAGE * PAGE);
        let count = rest.partition_point(|address| *address < page + PAGE);
        // Padded with `IMAGE_REL_BASED_ABSOLUTE`, which does nothing, to a multiple of 32 bits.
        let padded = count.max(1).next_multiple_of(2);
        table.extend_from_slice(&(page as u32).to_le_bytes());
        table.extend_from_slice(&(8 + 2 * padded as u32).to_le_bytes());
        for address in &rest[..count] {
            let entry = BASED_DIR64 << 12 | (address - page) as u16;
            table.extend_from_slice(&entry.to_le_bytes());
        }
        table.resize(table.len() + 2 * (padded - count), 0);
        rest = &rest[count..];
        if rest.is_empty() {
            return table;
        }
    }
}

/// The whole file. Addresses are below [`MAX_LOADER`] and a page more, so they fit their 32-bit fields.
fn image(entry: u64, sections: &[Section]) -> Result<Vec<u8>, &'static str> {
    let code = sections
        .iter()
        .find(|section| (section.address..section.address + section.size).contains(&entry));
    let Some(code) = code.filter(|section| section.characteristics & 0x20 != 0) else {
        return Err("its entry point is not in its code");
    };
    let headers = (DOS_HEADER + COFF_HEADER + OPTIONAL_HEADER + SECTION_HEADER * sections.len())
        .next_multiple_of(FILE_ALIGNMENT as usize);
    let last = &sections[sections.len() - 1];

    let mut file = Vec::with_capacity(headers);
    file.extend_from_slice(b"MZ");
    file.resize(DOS_HEADER - 4, 0);
    put_words(&mut file, &[DOS_HEADER as u32]);

    file.extend_from_slice(b"PE\0\0");
    put_halves(&mut file, &[0x8664, sections.len() as u16]);
    // No time of day, no symbols.
    put_words(&mut file, &[0, 0, 0]);
    // Executable, addresses above 2 GiB, no debugging information.
    put_halves(&mut file, &[OPTIONAL_HEADER as u16, 0x0222]);

    // PE32+, linker version, sizes of code and data (which firmware does not use), entry, start of code.
    put_halves(&mut file, &[0x020b, 0]);
    put_words(&mut file, &[0, 0, 0, entry as u32, code.address as u32]);
    // Where it is linked to: 0, so it is always relocated.
    put_words(&mut file, &[0, 0, PAGE as u32, FILE_ALIGNMENT as u32]);
    // Versions of operating system, image and subsystem.
    put_words(&mut file, &[0, 0, 0, 0]);
    let size = (last.address + last.size).next_multiple_of(PAGE);
    put_words(&mut file, &[size as u32, headers as u32, 0]);
    // An EFI application whose pages may be kept from execution (NX compatible).
    put_halves(&mut file, &[10, 0x0100]);
    // Stack and heap are firmware's; no loader flags; 16 data directories.
    put_words(&mut file, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 16]);
    for directory in 0..16 {
        match directory {
            5 => put_words(&mut file, &[last.address as u32, last.size as u32]),
            _ => put_words(&mut file, &[0, 0]),
        }
    }

    let mut offset = headers as u64;
    for section in sections {
        let stored = (section.bytes.len() as u64).next_multiple_of(FILE_ALIGNMENT);
        file.extend_from_slice(section.name);
        let place = [section.size, section.address, stored, offset];
        put_words(&mut file, &place.map(|number| number as u32));
        put_words(&mut file, &[0, 0, 0, section.characteristics]);
        offset += stored;
    }
    file.resize(headers, 0);
    for section in sections {
        file.extend_from_slice(&section.bytes);
        file.resize(file.len().next_multiple_of(FILE_ALIGNMENT as usize), 0);
    }
    Ok(file)
}

fn put_halves(file: &mut Vec<u8>, numbers: &[u16]) {
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

fn put_words(file: &mut Vec<u8>, numbers: &[u32]) {
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (kind, flags, address, bytes), each at the file offset that is its address.
    type Part<'a> = (u32, u32, u64, &'a [u8]);

    fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
        let mut file = vec![0; 0x5000];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = parts.len() as u8;
        for (index, (kind, flags, address, bytes)) in parts.iter().enumerate() {
            let mut header = Vec::new();
            put_words(&mut header, &[*kind, *flags]);
            let length = bytes.len() as u64;
            for number in [*address, *address, *address, length, length, PAGE] {
                header.extend_from_slice(&number.to_le_bytes());
            }
            file[64 + 56 * index..][..56].copy_from_slice(&header);
            file[*address as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    fn longs(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    /// Code at 0x1000; data at 0x2000: two relocated addresses, their table, the dynamic table.
    fn program(relocation_kind: u64) -> Vec<u8> {
        let mut data = longs(&[0, 0]);
        data.extend(longs(&[0x2008, relocation_kind, 0x1004, 0x2000, 8, 0x1001]));
        data.extend(longs(&[7, 0x2010, 8, 48, 0, 0]));
        elf(
            0x1002,
            &[
                (1, 5, 0x1000, &[0x90; 16]),
                (1, 6, 0x2000, &data),
                (2, 6, 0x2040, &data[0x40..]),
            ],
        )
    }

    #[test]
    fn a_program_becomes_an_application_that_can_be_moved() {
        let file = convert(&program(8)).expect("application");
        assert_eq!(&file[..2], b"MZ");
        let header = u32::from_le_bytes([file[60], file[61], file[62], file[63]]) as usize;
        assert_eq!(&file[header..header + 6], b"PE\0\0\x64\x86");
        let optional = header + COFF_HEADER;
        assert_eq!(crate::elf::word(&file, optional + 16), 0x1002, "entry");
        let table = optional + OPTIONAL_HEADER;
        let contents = |index: usize| {
            let section = table + SECTION_HEADER * index;
            let offset = crate::elf::word(&file, section + 20) as usize;
            &file[offset..][..crate::elf::word(&file, section + 8) as usize]
        };
        assert_eq!(contents(0), [0x90; 16]);
        assert_eq!(contents(1)[..16], longs(&[0x1001, 0x1004]));
        let mut expected = Vec::new();
        put_words(&mut expected, &[0x2000, 12]);
        put_halves(&mut expected, &[0xa000, 0xa008]);
        assert_eq!(contents(2), expected);
        assert_eq!(file.len() % FILE_ALIGNMENT as usize, 0);
    }

    #[test]
    fn what_is_an_application_already_stays_as_it_is() {
        let same = efi_application(&Content::bytes(b"MZ and more".to_vec())).expect("application");
        assert_eq!(same.head(64).expect("bytes"), b"MZ and more");
    }

    #[test]
    fn a_program_that_needs_more_than_firmware_does_is_refused() {
        let code: Part = (1, 5, 0x1000, &[0x90; 16]);
        let dynamic: Part = (2, 6, 0x1000, &[0; 16]);
        let cases = [
            (b"text".to_vec(), "neither PE nor"),
            (program(6), "other than of its own base"),
            (elf(0x1000, &[code]), "not position-independent"),
            (elf(0x1000, &[]), "no segments"),
            (elf(0x3000, &[code, dynamic]), "entry point"),
            (
                elf(0x800, &[(1, 5, 0x800, &[0x90; 16]), dynamic]),
                "above the first",
            ),
            (
                elf(0x1000, &[(1, 7, 0x1000, &[0x90; 16]), dynamic]),
                "written and executed",
            ),
        ];
        for (bytes, expected) in cases {
            let reason = convert(&bytes).expect_err(expected);
            assert!(reason.contains(expected), "{reason}");
        }
    }

    #[test]
    fn no_damaged_program_panics() {
        let whole = program(8);
        for position in (0..64 + 3 * 56).chain(0x2000..0x2070) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = value;
                let _ = convert(&damaged);
            }
        }
        for length in [0, 10, 64, 70, 200, 0x1008, 0x2008, 0x2050] {
            let _ = convert(&whole[..length]);
        }
    }
}
