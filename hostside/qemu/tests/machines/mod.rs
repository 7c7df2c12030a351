//! VCHs in temporary directories and guests of a few instructions.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use hypervisor::{
    Attachment, Boot, Channel, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial,
    DiskSource, DiskSpec, Firmware, Hardware, Hypervisor as _, MacAddress, MachineId, MachineSpec,
    Memory, Metadata, NicSpec, Protocol, PublishedPort,
};
use qemu::qmp::{Event, Qmp};
use qemu::{Options, Qemu};
use tokio::io::AsyncWriteExt as _;

/// Guests in real mode, as a BIOS starts them from a CD-ROM.
pub mod guest {
    /// `hlt` for ever.
    pub const IDLE: &[u8] = b"\xf4\xeb\xfd";
    /// Pulses the reset line of the keyboard controller.
    pub const RESET: &[u8] = b"\xb0\xfe\xe6\x64\xf4\xeb\xfd";
    /// Writes "panicked" to pvpanic's port, 0x505.
    pub const PANIC: &[u8] = b"\xba\x05\x05\xb0\x01\xee\xf4\xeb\xfd";
    /// Writes `SLP_EN` to the PIIX4's PM1a control register.
    pub const POWER_OFF: &[u8] = b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd";
    /// Sends back what the second serial port receives.
    pub const ECHO: &[u8] = b"\xba\xfd\x02\xec\xa8\x01\x74\xf8\xba\xf8\x02\xec\xee\xeb\xf1";
    /// Writes to the first serial port for ever.
    pub const FLOOD: &[u8] = b"\xba\xf8\x03\xb0\x41\xee\xeb\xfd";
    /// Waits for a byte on the second serial port, says "bye" on the first,
    /// and resets.
    pub const SAY_AND_RESET_ON_BYTE: &[u8] =
        b"\xba\xfd\x02\xec\xa8\x01\x74\xf8\xba\xf8\x03\xb0\x62\xee\xb0\x79\xee\xb0\x65\xee\xb0\xfe\xe6\x64\xf4\xeb\xfd";
}

/// An ISO image that a BIOS boots into `code` (ECMA-119; El Torito 1.0, no
/// emulation).
fn iso(code: &[u8]) -> Vec<u8> {
    const SECTOR: usize = 2048;
    let mut image = vec![0u8; 21 * SECTOR];
    let mut put = |sector: usize, offset: usize, bytes: &[u8]| {
        let at = sector * SECTOR + offset;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, 0, b"\x01CD001\x01");
    put(17, 0, b"\x00CD001\x01EL TORITO SPECIFICATION");
    put(17, 71, &19u32.to_le_bytes());
    put(18, 0, b"\xffCD001\x01");
    // Validation entry; its sixteen words sum to zero.
    put(19, 0, b"\x01");
    put(
        19,
        28,
        &0xaa55u16.wrapping_add(1).wrapping_neg().to_le_bytes(),
    );
    put(19, 30, b"\x55\xaa");
    // Default entry: bootable, four 512-byte sectors of sector 20.
    put(19, 32, b"\x88\x00\x00\x00\x00\x00\x04\x00");
    put(19, 40, &20u32.to_le_bytes());
    put(20, 0, code);
    image
}

/// A VCH of the test's own.
pub struct Vch {
    state: tempfile::TempDir,
}

impl Vch {
    /// A VCH without machines; none, with the reason said, where QEMU is not
    /// installed.
    pub fn new() -> Option<Self> {
        if let Err(error) = Command::new(Options::default().program)
            .arg("-version")
            .output()
        {
            // Not `eprintln`, which the test runner keeps to itself.
            let reason =
                format!("QEMU cannot be run here ({error}); install the package qemu-system-x86");
            let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
            return None;
        }
        Some(Self {
            state: tempfile::tempdir().unwrap(),
        })
    }

    pub async fn open(&self) -> Qemu {
        self.try_open().await.unwrap()
    }

    pub async fn try_open(&self) -> hypervisor::Result<Qemu> {
        // Longer than a socket's address may be.
        let options = Options {
            hot_plug_slots: 1,
            ..Options::default()
        };
        Qemu::open(self.state.path().join("long".repeat(30)), options).await
    }

    fn machines(&self) -> PathBuf {
        self.state.path().join("long".repeat(30)).join("machines")
    }

    pub fn spec(&self, code: &[u8]) -> MachineSpec {
        let id = MachineId::random().unwrap();
        let file = self.state.path().join(format!("{id}.iso"));
        fs::write(&file, iso(code)).unwrap();
        MachineSpec {
            id,
            name: "test".into(),
            cpus: Cpus::ONE,
            memory: Memory::MIN,
            boot: Boot::Iso {
                iso: file,
                firmware: Firmware::Bios,
            },
            start: Default::default(),
            hardware: Hardware::Vmware,
            channel: ChannelKind::Serial,
            disks: Vec::new(),
            nics: Vec::new(),
            debugger: None,
        }
    }

    pub async fn create(&self, driver: &Qemu, code: &[u8]) -> MachineId {
        driver
            .create(
                self.spec(code),
                ChannelKey::from_bytes([7; 32]),
                Metadata::new(),
            )
            .await
            .unwrap()
    }

    /// The processes that run below the VCH.
    fn processes(&self) -> Vec<(u32, PathBuf)> {
        let machines = self.machines().canonicalize().unwrap();
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
                cwd.starts_with(&machines).then_some((pid, cwd))
            })
            .collect()
    }

    pub fn kill_qemu_of(&self, id: &MachineId) {
        let (pid, _) = self
            .processes()
            .into_iter()
            .find(|(_, cwd)| cwd.ends_with(id.to_string()))
            .expect("it has no QEMU");
        assert!(
            Command::new("kill")
                .args(["-9", &pid.to_string()])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Tells [`guest::SAY_AND_RESET_ON_BYTE`] to go on, and waits until it has.
    pub async fn reset_by_channel(&self, mut channel: Channel, id: &MachineId) {
        let directory = fs::File::open(self.machines().join(id.to_string())).unwrap();
        let socket = format!(
            "/proc/self/fd/{}/qmp.sock",
            std::os::fd::AsRawFd::as_raw_fd(&directory)
        );
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let (_qmp, mut events) = Qmp::connect(stream).await.unwrap();
        channel.io.write_all(b"!").await.unwrap();
        while !matches!(events.recv().await.expect("QEMU ended"), Event::Stop) {}
    }

    /// Bytes in the machine's directory.
    pub fn size_of(&self, id: &MachineId) -> u64 {
        let directory = self.machines().join(id.to_string());
        fs::read_dir(directory)
            .unwrap()
            .flatten()
            .map(|file| file.metadata().map_or(0, |m| m.len()))
            .sum()
    }

    /// A file of so many zero bytes, beside the machines.
    pub fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.state.path().join(name);
        fs::File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
        path
    }

    pub fn rename(&self, from: &str, to: &str) {
        fs::rename(self.machines().join(from), self.machines().join(to)).unwrap();
    }

    pub fn make_directory(&self, name: &str) {
        fs::create_dir(self.machines().join(name)).unwrap();
    }

    /// Nothing is left: no process, no directory.
    pub fn assert_empty(&self) {
        assert_eq!(self.processes(), []);
        let left: Vec<_> = fs::read_dir(self.machines())
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Vch {
    /// A test that failed leaves no QEMU either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (pid, _) in self.processes() {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            }
        }
    }
}

pub fn published(host: SocketAddr) -> NicSpec {
    let port = PublishedPort {
        protocol: Protocol::Tcp,
        host,
        guest_port: 80,
    };
    NicSpec {
        mac: MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap(),
        attachment: Attachment::UserMode {
            published: vec![port],
        },
    }
}

pub fn disk(path: &str) -> DiskSpec {
    DiskSpec {
        source: DiskSource::File(path.into()),
        format: DiskFormat::Vmdk,
        access: DiskAccess::ReadOnly,
        serial: DiskSerial::new("image").unwrap(),
    }
}
