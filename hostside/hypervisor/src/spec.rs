//! What a machine is made of. Every type here holds only what is valid by
//! itself; [`MachineSpec::check`] says what does not fit together.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::disk::{DiskSerial, DiskSource, DiskSpec};
use crate::machine::{MachineId, random_bytes};
use crate::nic::{MacAddress, NicSpec, Protocol, PublishedPort};

/// An enum whose variants have one word each for users and files.
macro_rules! words {
    ($type:ty, $choices:literal, $($variant:ident => $word:literal),+ $(,)?) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
        impl FromStr for $type {
            type Err = InvalidSpec;
            fn from_str(text: &str) -> Result<Self, InvalidSpec> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(InvalidSpec::Choice(text.to_owned(), $choices)),
                }
            }
        }
    };
}
pub(crate) use words;

/// Everything a machine is made of, except the key of its channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Its identity.
    pub id: MachineId,
    /// Its name for people; need not be unique.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// Guest memory.
    pub memory: Memory,
    /// What it boots.
    pub boot: Boot,
    /// How a power on gets it there.
    #[serde(default)]
    pub start: Start,
    /// What its devices are.
    pub hardware: Hardware,
    /// What carries its channel.
    pub channel: ChannelKind,
    /// Its disks, in the order the guest should see them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Its vNICs, in the order the guest should see them.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// A debugger's port, for kernel developers.
    #[serde(default)]
    pub debugger: Option<GuestDebugger>,
}

/// A specification that cannot be met by any hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum InvalidSpec {
    #[error("{0} virtual CPUs: it must be 1 to {max}", max = Cpus::MAX)]
    Cpus(u32),
    #[error("{0} bytes of memory: it must be at least {min} bytes", min = Memory::MIN.bytes())]
    Memory(u64),
    #[error("machine name {0:?}: it must be 1 to 80 printable ASCII characters without comma")]
    Name(String),
    #[error("disk serial {0:?}: it must be 1 to 20 of a-z, A-Z, 0-9, dot, underscore and hyphen")]
    Serial(String),
    #[error("two disks have the serial {0}")]
    TwoDisks(DiskSerial),
    #[error("{0:?} is not a unicast MAC address such as 02:00:00:00:00:01")]
    Mac(String),
    #[error("two vNICs have the address {0}")]
    TwoNics(MacAddress),
    #[error("{0:?} is not one of {1}")]
    Choice(String, &'static str),
    #[error("{0} hardware has no {1} channel; use {2}")]
    Channel(Hardware, ChannelKind, &'static str),
    #[error("host port {0} ({1}) is published twice")]
    PublishedTwice(SocketAddr, Protocol),
    #[error("port 0 cannot be published")]
    PortZero,
    #[error("the kernel command line has a character that is not printable ASCII")]
    CommandLine,
    #[error("a file name has a character no hypervisor takes (a control character): {0}")]
    FileName(String),
}

impl MachineSpec {
    /// Whether the parts fit together.
    ///
    /// # Errors
    ///
    /// The first thing that does not.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        let printable = |text: &str| text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !(1..=80).contains(&self.name.len()) || !printable(&self.name) || self.name.contains(',')
        {
            return Err(InvalidSpec::Name(self.name.chars().take(100).collect()));
        }
        if self.hardware == Hardware::Vmware && self.channel == ChannelKind::Virtio {
            return Err(InvalidSpec::Channel(
                self.hardware,
                self.channel,
                "serial or vsock",
            ));
        }
        let mut files = Vec::new();
        match &self.boot {
            Boot::Kernel {
                kernel,
                initramfs,
                append,
            } => {
                if !printable(append) {
                    return Err(InvalidSpec::CommandLine);
                }
                files.extend([kernel, initramfs]);
            }
            Boot::Iso { iso, .. } => files.push(iso),
        }
        for (i, disk) in self.disks.iter().enumerate() {
            if self.disks[..i]
                .iter()
                .any(|other| other.serial == disk.serial)
            {
                return Err(InvalidSpec::TwoDisks(disk.serial.clone()));
            }
            if let DiskSource::File(path) = &disk.source {
                files.push(path);
            }
        }
        for path in files {
            if path
                .as_os_str()
                .as_encoded_bytes()
                .iter()
                .any(u8::is_ascii_control)
            {
                return Err(InvalidSpec::FileName(
                    path.display().to_string().escape_debug().to_string(),
                ));
            }
        }
        let mut ports: Vec<&PublishedPort> = Vec::new();
        for (i, nic) in self.nics.iter().enumerate() {
            if self.nics[..i].iter().any(|other| other.mac == nic.mac) {
                return Err(InvalidSpec::TwoNics(nic.mac));
            }
            for port in nic.attachment.published() {
                if port.host.port() == 0 || port.guest_port == 0 {
                    return Err(InvalidSpec::PortZero);
                }
                if ports
                    .iter()
                    .any(|p| p.host == port.host && p.protocol == port.protocol)
                {
                    return Err(InvalidSpec::PublishedTwice(port.host, port.protocol));
                }
                ports.push(port);
            }
        }
        Ok(())
    }
}

/// A number of virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Cpus(u32);

impl Cpus {
    /// The most a machine can have (i440FX and xAPIC: 8-bit APIC ids).
    pub const MAX: u32 = 254;
    /// One.
    pub const ONE: Self = Self(1);

    /// `count` CPUs.
    ///
    /// # Errors
    ///
    /// None, or more than [`Self::MAX`].
    pub fn new(count: u32) -> Result<Self, InvalidSpec> {
        if (1..=Self::MAX).contains(&count) {
            Ok(Self(count))
        } else {
            Err(InvalidSpec::Cpus(count))
        }
    }

    /// How many.
    pub const fn count(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Cpus {
    type Error = InvalidSpec;
    fn try_from(count: u32) -> Result<Self, InvalidSpec> {
        Self::new(count)
    }
}

impl From<Cpus> for u32 {
    fn from(cpus: Cpus) -> Self {
        cpus.0
    }
}

/// An amount of guest memory, in whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Memory(u64);

impl Memory {
    const MIB: u64 = 1 << 20;
    /// The least a guest kernel starts in.
    pub const MIN: Self = Self(32 << 20);

    /// At least `bytes` bytes, rounded up to whole MiB.
    ///
    /// # Errors
    ///
    /// Less than [`Self::MIN`], or more than a signed 64-bit count.
    pub fn from_bytes(bytes: u64) -> Result<Self, InvalidSpec> {
        if bytes < Self::MIN.0 || bytes > i64::MAX as u64 {
            return Err(InvalidSpec::Memory(bytes));
        }
        Ok(Self(bytes.next_multiple_of(Self::MIB)))
    }

    /// `mib` MiB.
    ///
    /// # Errors
    ///
    /// As [`Self::from_bytes`].
    pub fn from_mib(mib: u64) -> Result<Self, InvalidSpec> {
        Self::from_bytes(mib.saturating_mul(Self::MIB))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In MiB, exactly.
    pub const fn mib(self) -> u64 {
        self.0 / Self::MIB
    }
}

impl TryFrom<u64> for Memory {
    type Error = InvalidSpec;
    fn try_from(bytes: u64) -> Result<Self, InvalidSpec> {
        Self::from_bytes(bytes)
    }
}

impl From<Memory> for u64 {
    fn from(memory: Memory) -> Self {
        memory.0
    }
}

/// What a machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// A kernel the hypervisor loads itself.
    Kernel {
        /// The bzImage.
        kernel: PathBuf,
        /// The initramfs with tether in it.
        initramfs: PathBuf,
        /// Kernel arguments beyond the driver's own.
        append: String,
    },
    /// A CD-ROM with the boot image, found by the machine's firmware.
    Iso {
        /// The ISO image.
        iso: PathBuf,
        /// The firmware that finds it.
        firmware: Firmware,
    },
}

/// How a powered-on machine gets from nothing to a tether that answers.
///
/// A wish: a driver that cannot fork here and now boots, and says why
/// ([`crate::Started::BootedInstead`]). Whoever powers machines on need not
/// know which hypervisor it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// It boots.
    #[default]
    Boot,
    /// It is forked from the template of machines like it, which is made when
    /// there is none.
    Fork,
}

words!(Start, "boot, fork", Boot => "boot", Fork => "fork");

/// A machine's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A PC BIOS.
    Bios,
    /// UEFI, without secure boot.
    Uefi,
}

words!(Firmware, "bios, uefi", Bios => "bios", Uefi => "uefi");

/// What a machine's devices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hardware {
    /// virtio disks, vNICs and channel.
    Virtio,
    /// What an ESXi guest sees: pvscsi, vmxnet3, serial ports, a CD-ROM.
    Vmware,
}

/// What carries a machine's channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// A socket between guest and host (`AF_VSOCK`, port [`Self::VSOCK_PORT`]).
    Vsock,
    /// A virtio-serial port named [`Self::VIRTIO_PORT`].
    Virtio,
    /// The second serial port, [`Self::SERIAL_TTY`].
    Serial,
}

impl ChannelKind {
    /// Where tether listens on a vsock.
    pub const VSOCK_PORT: u32 = 2376;
    /// What tether's virtio-serial port is called.
    pub const VIRTIO_PORT: &'static str = "org.tether.channel";
    /// What the guest calls the second serial port.
    pub const SERIAL_TTY: &'static str = "ttyS1";

    /// What tether is told (`tether.channel=` on the kernel command line, or
    /// the same words from the hypervisor's own carrier).
    pub fn guest_word(self) -> String {
        match self {
            Self::Vsock => format!("vsock:{}", Self::VSOCK_PORT),
            Self::Virtio => format!("virtio:{}", Self::VIRTIO_PORT),
            Self::Serial => format!("serial:{}", Self::SERIAL_TTY),
        }
    }
}

words!(Hardware, "virtio, vmware", Virtio => "virtio", Vmware => "vmware");
words!(ChannelKind, "vsock, virtio, serial", Vsock => "vsock", Virtio => "virtio", Serial => "serial");

/// A debugger's way into the guest (gdb's remote protocol).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDebugger {
    /// Where the hypervisor listens for gdb.
    pub listen: SocketAddr,
    /// Whether the guest waits for gdb before its first instruction.
    pub start: DebuggerStart,
}

/// Whether a guest waits for its debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DebuggerStart {
    /// It runs at once.
    Run,
    /// It stands still until gdb says `continue`.
    Wait,
}

/// The 32 bytes both ends of a channel prove to know. Never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChannelKey([u8; 32]);

impl ChannelKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    ///
    /// # Errors
    ///
    /// When the kernel's random source fails.
    pub fn random() -> std::io::Result<Self> {
        random_bytes().map(Self)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskAccess, DiskFormat};
    use crate::nic::Attachment;

    fn spec() -> MachineSpec {
        MachineSpec {
            id: MachineId::from_bytes([1; 16]),
            name: "web".into(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(128).unwrap(),
            boot: Boot::Kernel {
                kernel: "k".into(),
                initramfs: "i".into(),
                append: String::new(),
            },
            start: Start::Boot,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            disks: vec![disk("image")],
            nics: vec![nic("02:00:00:00:00:01", vec![])],
            debugger: None,
        }
    }

    fn disk(serial: &str) -> DiskSpec {
        DiskSpec {
            source: DiskSource::File("/d.vmdk".into()),
            format: DiskFormat::Vmdk,
            access: DiskAccess::ReadOnly,
            serial: DiskSerial::new(serial).unwrap(),
        }
    }

    fn nic(mac: &str, published: Vec<PublishedPort>) -> NicSpec {
        NicSpec {
            mac: mac.parse().unwrap(),
            attachment: Attachment::UserMode { published },
        }
    }

    fn port(host: &str) -> PublishedPort {
        PublishedPort {
            protocol: Protocol::Tcp,
            host: host.parse().unwrap(),
            guest_port: 80,
        }
    }

    #[test]
    fn a_plain_specification_passes() {
        assert_eq!(spec().check(), Ok(()));
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        type Change = fn(&mut MachineSpec);
        let cases: Vec<(Change, &str)> = vec![
            (|s| s.name.clear(), "machine name \"\""),
            (|s| s.name = "a,guest=b".into(), "machine name"),
            (
                |s| s.hardware = Hardware::Vmware,
                "vmware hardware has no virtio channel; use serial or vsock",
            ),
            (
                |s| s.disks.push(disk("image")),
                "two disks have the serial image",
            ),
            (
                |s| s.nics.push(nic("02:00:00:00:00:01", vec![])),
                "two vNICs have the address 02:00:00:00:00:01",
            ),
            (
                |s| {
                    s.nics = vec![nic(
                        "02:00:00:00:00:01",
                        vec![port("127.0.0.1:80"), port("127.0.0.1:80")],
                    )]
                },
                "published twice",
            ),
            (
                |s| s.nics = vec![nic("02:00:00:00:00:01", vec![port("127.0.0.1:0")])],
                "port 0",
            ),
            (
                |s| {
                    s.boot = Boot::Kernel {
                        kernel: "k".into(),
                        initramfs: "i".into(),
                        append: "a\nb".into(),
                    }
                },
                "kernel command line",
            ),
            (
                |s| s.disks[0].source = DiskSource::File("/a\nb".into()),
                "file name",
            ),
        ];
        for (change, expected) in cases {
            let mut spec = spec();
            change(&mut spec);
            let said = spec.check().expect_err(expected).to_string();
            assert!(
                said.contains(expected),
                "{said:?} does not say {expected:?}"
            );
        }
    }

    #[test]
    fn limits_always_exist() {
        assert!(Cpus::new(0).is_err());
        assert!(Cpus::new(255).is_err());
        assert!(Memory::from_bytes(0).is_err());
        assert!(Memory::from_bytes(u64::MAX).is_err());
        assert_eq!(Memory::from_bytes((32 << 20) + 1).unwrap().mib(), 33);
        assert!(serde_json::from_str::<Memory>("12").is_err());
        assert!(serde_json::from_str::<Cpus>("0").is_err());
    }

    #[test]
    fn a_specification_survives_being_written_down() {
        let spec = spec();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MachineSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(
            format!("{:?}", ChannelKey::from_bytes([0x5a; 32])),
            "ChannelKey(..)"
        );
    }
}
