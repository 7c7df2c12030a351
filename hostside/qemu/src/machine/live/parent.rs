//! What a running QEMU tells of itself: how it was started, and where its guest's memory is.

use std::fs::{self, File};

use hypervisor::Cause;

use crate::machine::refused;
use crate::qmp::Qmp;

/// What of a machine's command line its children must have alike.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub memory_mib: u64,
    pub cpus: u32,
    /// The descriptor its memory is a private view of.
    pub memory_fd: Option<u32>,
}

/// Where the guest's memory begins in its QEMU.
pub(super) async fn guest_memory(qmp: &Qmp) -> Result<u64, Cause> {
    let answer = qmp.monitor("gpa2hva 0").await.map_err(refused)?;
    address_in(&answer).ok_or_else(|| {
        Cause::hypervisor(format!(
            "QEMU does not say where its guest's memory is: {answer}"
        ))
    })
}

/// From QEMU's `Host virtual address for 0x0 (ram) is 0x7f0000000000`.
fn address_in(words: &str) -> Option<u64> {
    let (_, address) = words.trim().split_once("(ram) is 0x")?;
    u64::from_str_radix(address, 16).ok()
}

impl CommandLine {
    pub(super) fn of(pid: u32) -> Result<Self, Cause> {
        let path = format!("/proc/{pid}/cmdline");
        let bytes = fs::read(&path).map_err(|source| Cause::File {
            what: "cannot read",
            path: path.into(),
            source,
        })?;
        let text = String::from_utf8_lossy(&bytes);
        let words: Vec<&str> = text.split('\0').collect();
        Self::parse(&words)
            .ok_or_else(|| Cause::hypervisor("its QEMU was not started by this driver"))
    }

    fn parse(words: &[&str]) -> Option<Self> {
        let after = |option: &str| {
            let mut pairs = words.windows(2);
            pairs.find(|pair| pair[0] == option).map(|pair| pair[1])
        };
        let part = |list: &str, key: &str| {
            list.split(',')
                .find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
        };
        let memory = words
            .iter()
            .find(|word| word.starts_with("memory-backend-") && word.contains(",id=ram,"))?;
        Some(Self {
            memory_mib: after("-m")?.strip_suffix('M')?.parse().ok()?,
            cpus: part(after("-smp")?, "cpus")?.parse().ok()?,
            memory_fd: match part(memory, "mem-path") {
                Some(path) => Some(path.strip_prefix("/proc/self/fd/")?.parse().ok()?),
                None => None,
            },
        })
    }
}

/// A file that another process has open.
pub(super) fn open_of(pid: u32, fd: u32) -> Result<File, Cause> {
    let path = format!("/proc/{pid}/fd/{fd}");
    File::open(&path).map_err(|source| Cause::File {
        what: "cannot open what a running QEMU has as",
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_where_qemu_says() {
        let words = "Host virtual address for 0x0 (ram) is 0x7fead7fff000\r\n";
        assert_eq!(address_in(words), Some(0x7fea_d7ff_f000));
        let rom = "Host virtual address for 0x0 (pc.bios) is 0x7fead7fff000\r\n";
        assert_eq!(address_in(rom), None);
        assert_eq!(address_in("No memory is mapped at address 0x0\r\n"), None);
    }

    #[test]
    fn a_command_line_says_what_children_must_have_alike() {
        let forked = [
            "qemu-system-x86_64",
            "-smp",
            "cpus=2,sockets=1,cores=2,threads=1",
            "-m",
            "64M",
            "-object",
            "memory-backend-file,id=ram,mem-path=/proc/self/fd/17,share=off,size=64M",
        ];
        let expected = CommandLine {
            memory_mib: 64,
            cpus: 2,
            memory_fd: Some(17),
        };
        assert_eq!(CommandLine::parse(&forked), Some(expected));
        let mut booted = forked;
        booted[6] = "memory-backend-ram,id=ram,size=64M";
        let line = CommandLine::parse(&booted).unwrap();
        assert_eq!(line.memory_fd, None);
        booted[6] = "memory-backend-file,id=ram,mem-path=/dev/shm/x,size=64M";
        assert_eq!(CommandLine::parse(&booted), None);
        assert_eq!(CommandLine::parse(&forked[..3]), None);
    }
}
