//! ELF-64 programs for x86-64: what they are made of, and whether one can be the only file of an
//! initramfs.

use crate::{Content, Error};

/// Offsets and values of the ELF-64 header (System V ABI, chapter 4).
const HEADER: usize = 64;
const MACHINE_X86_64: u16 = 62;
const PROGRAM_HEADER: usize = 56;
/// `PT_LOAD`: a part of the program's memory.
pub(crate) const SEGMENT_LOAD: u32 = 1;
/// `PT_DYNAMIC`: the table of what is to be done when it is loaded.
pub(crate) const SEGMENT_DYNAMIC: u32 = 2;
const SEGMENT_INTERPRETER: u32 = 3;

/// An entry of the program header table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`: 1 execute, 2 write, 4 read.
    pub flags: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Where in memory.
    pub address: u64,
    /// Bytes of it in the file.
    pub stored: u64,
    /// Bytes of it in memory.
    pub size: u64,
}

/// What an ELF program says of itself.
pub(crate) struct Program {
    /// Where it starts.
    pub entry: u64,
    /// Its parts, in the file's order.
    pub segments: Vec<Segment>,
}

impl Program {
    /// The program in `bytes`, or what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Program, &'static str> {
        const BROKEN: &str = "its ELF program headers are damaged";
        if !bytes.starts_with(b"\x7fELF") || bytes.len() < HEADER {
            return Err("it is not an ELF program (the initramfs has no shell for scripts)");
        }
        let half = |offset: usize| u16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
        let (class_64, little_endian) = (bytes[4] == 2, bytes[5] == 1);
        if !class_64 || !little_endian || half(18) != MACHINE_X86_64 {
            return Err("it is not built for x86-64");
        }
        let (entry_size, count) = (usize::from(half(54)), usize::from(half(56)));
        if entry_size != PROGRAM_HEADER {
            return Err(BROKEN);
        }
        let table = usize::try_from(long(bytes, 32))
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(entry_size * count)?))
            .ok_or(BROKEN)?;
        let segments = table.chunks_exact(entry_size).map(|entry| Segment {
            kind: word(entry, 0),
            flags: word(entry, 4),
            offset: long(entry, 8),
            address: long(entry, 16),
            stored: long(entry, 32),
            size: long(entry, 40),
        });
        Ok(Program {
            entry: long(bytes, 24),
            segments: segments.collect(),
        })
    }
}

/// The 32-bit number at `offset`, which is within `bytes`.
pub(crate) fn word(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

/// The 64-bit number at `offset`, which is within `bytes`.
pub(crate) fn long(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

/// Checks that `init` is an x86-64 program that needs no interpreter: no
/// loader or shell exists beside it, and the kernel would panic with no more
/// than "No working init found".
///
/// # Errors
/// [`Error::UnusableInit`] if it is not; [`Error::TooLarge`], [`Error::Read`],
/// [`Error::Changed`] from reading it.
pub fn check_static(init: &Content) -> Result<(), Error> {
    let bytes = init.read_all("init", crate::newc::MAX_INIT)?;
    match problem(&bytes) {
        None => Ok(()),
        Some(reason) => Err(Error::UnusableInit {
            what: init.name(),
            reason,
        }),
    }
}

fn problem(bytes: &[u8]) -> Option<&'static str> {
    let program = match Program::parse(bytes) {
        Ok(program) => program,
        Err(reason) => return Some(reason),
    };
    let interpreted = program
        .segments
        .iter()
        .any(|segment| segment.kind == SEGMENT_INTERPRETER);
    interpreted.then_some(
        "it is dynamically linked, and the initramfs holds no libraries; \
         link it statically (target x86_64-unknown-linux-musl)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(segments: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
        bytes[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        bytes[54..56].copy_from_slice(&(PROGRAM_HEADER as u16).to_le_bytes());
        bytes[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for kind in segments {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.resize(bytes.len() + PROGRAM_HEADER - 4, 0);
        }
        bytes
    }

    #[test]
    fn only_a_static_program_for_x86_64_can_be_init() {
        let mut arm = program(&[1]);
        arm[18] = 183;
        let mut far = program(&[1]);
        far[32..40].fill(0xff);
        let cases = [
            (program(&[1, 2, 6]), None),
            (program(&[6, 3, 1]), Some("dynamically linked")),
            (b"#!/bin/sh\n".to_vec(), Some("not an ELF program")),
            (Vec::new(), Some("not an ELF program")),
            (arm, Some("not built for x86-64")),
            (far, Some("damaged")),
            (program(&[1])[..HEADER].to_vec(), Some("damaged")),
        ];
        for (bytes, expected) in cases {
            let found = problem(&bytes);
            match expected {
                None => assert_eq!(found, None),
                Some(text) => assert!(found.is_some_and(|found| found.contains(text)), "{text}"),
            }
        }
    }
}
