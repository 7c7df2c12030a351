//! What has to be there before anything else: the machine's own pseudo file systems, limits, and
//! what the host left to be read at start.

use crate::failure::{Context, Result, invalid};
use crate::files;
use crate::guestinfo;
use crate::mount::{CLOSED, mount};
use crate::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit, setrlimit};

/// tmpfs of the machine (not of the container): mount points and the files the container sees at
/// /etc/hosts and such.
pub const RUN: &str = "/run";
/// The control groups of the machine.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Mounts proc, sys, dev, cgroup2 and /run.
///
/// # Errors
/// Which one, and why.
pub fn mount_file_systems() -> Result<()> {
    for directory in ["/proc", "/sys", "/dev", RUN] {
        files::make_directory(directory).context(|| format!("making {directory}"))?;
    }
    mount("proc", "/proc", "proc", CLOSED, "")?;
    mount("sysfs", "/sys", "sysfs", CLOSED, "")?;
    mount(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MountFlags::NOSUID,
        "mode=0755",
    )?;
    mount("cgroup2", CGROUPS, "cgroup2", CLOSED, "")?;
    mount("tmpfs", RUN, "tmpfs", CLOSED, "mode=0755,size=8m")
}

/// Raises limits for tether (three descriptors a process) and, inherited, for the container, which
/// gets what Docker's own service file gives it; and takes tether out of the OOM killer's sight.
///
/// The rest of "cannot be OOM-killed" needs nothing: tether's pages are in the root control group,
/// the machine has no swap, and the initramfs its text lives in is never reclaimed.
pub fn protect() {
    for (resource, limit) in [
        (Resource::Nofile, Some(1 << 20)),
        (Resource::Nproc, None),
        (Resource::Core, None),
    ] {
        let (current, maximum) = (limit, limit);
        let _ = setrlimit(resource, Rlimit { current, maximum });
    }
    let _ = files::tell("/proc/self/oom_score_adj", "-1000");
    // What Docker sets in every container's network: no port and no ping needs privilege.
    for (name, value) in [
        ("ip_unprivileged_port_start", "0"),
        ("ping_group_range", "0 2147483647"),
    ] {
        let _ = files::tell(format!("/proc/sys/net/ipv4/{name}"), value);
    }
}

/// Where the channel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelAddress {
    /// Listen on this vsock port.
    Vsock(u32),
    /// The virtio-serial port of this name.
    Virtio(String),
    /// The serial line with this name in /dev.
    Serial(String),
}

impl ChannelAddress {
    /// Reads `vsock:PORT`, `virtio:PORTNAME` or `serial:TTY`.
    ///
    /// # Errors
    /// `Invalid`, with what is possible.
    pub fn parse(text: &str) -> Result<Self> {
        let refused = || {
            invalid(format!(
                "the channel {text:?} is none of vsock:PORT, virtio:PORTNAME, serial:TTY"
            ))
        };
        let (kind, name) = text.trim().split_once(':').ok_or_else(refused)?;
        let plain = !name.is_empty() && !name.contains(['/', '\0']);
        match kind {
            "vsock" => name.parse().map(Self::Vsock).map_err(|_| refused()),
            "virtio" if plain => Ok(Self::Virtio(name.into())),
            "serial" if plain => Ok(Self::Serial(name.into())),
            _ => Err(refused()),
        }
    }
}

/// What the host left to be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Where the channel is.
    pub channel: ChannelAddress,
    /// The channel's key; all zero when there is none.
    pub key: [u8; 32],
    /// Whether this machine is not to be used but to be forked.
    pub is_template: bool,
}

const FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/tether";

/// What a template says on its console when it can be frozen.
pub const TEMPLATE_READY: &str = "template ready";

/// What the host gave to a machine that is, or comes from, a template. Reading it asks the firmware,
/// each time: a fork's answer is another than its template's.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is the template.
    Template,
    /// It is a fork.
    Own {
        /// The name of this start of the machine, never used before.
        boot_id: [u8; 16],
        /// The machine's name, as SMBIOS would have it.
        uuid: [u8; 16],
    },
}

impl Identity {
    /// What the firmware says; `None` where it says nothing of the kind.
    ///
    /// # Errors
    /// `Invalid` when it makes no sense.
    pub fn read() -> Result<Option<Self>> {
        Self::of(firmware("identity"))
    }

    fn of(bytes: Option<Vec<u8>>) -> Result<Option<Self>> {
        bytes.map(|bytes| Self::parse(&bytes)).transpose()
    }

    /// Boot id and UUID, 32 hexadecimal digits each; both zero for a template.
    fn parse(bytes: &[u8]) -> Result<Self> {
        let read = core::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.split_at_checked(32))
            .and_then(|(boot_id, uuid)| Some((hexadecimal(boot_id)?, hexadecimal(uuid)?)));
        match read {
            Some((boot_id, uuid)) if boot_id == [0; 16] && uuid == [0; 16] => Ok(Self::Template),
            Some((boot_id, uuid)) => Ok(Self::Own { boot_id, uuid }),
            None => Err(invalid(
                "the identity that the host left is not 64 hexadecimal digits",
            )),
        }
    }
}

/// QEMU's fw_cfg `opt/tether/NAME`, or VMware's `guestinfo.tether.NAME`.
fn firmware(name: &str) -> Option<Vec<u8>> {
    let file = files::content(format!("{FIRMWARE}/{name}/raw"));
    file.ok().or_else(|| guestinfo::read(name))
}

/// What tells a fork from its template, open: to ask once more is a read each, and no path is looked up.
pub struct Sources {
    identity: Source,
    key: Source,
}

impl Sources {
    /// Opens them, as far as the firmware has files.
    pub fn open() -> Self {
        Self {
            identity: Source::open("identity"),
            key: Source::open("key"),
        }
    }

    /// Asks who the machine is; see [`Identity::read`].
    ///
    /// # Errors
    /// `Invalid` when it makes no sense.
    pub fn identity(&self) -> Result<Option<Identity>> {
        Identity::of(self.identity.read())
    }

    /// The channel's key as the firmware has it now.
    ///
    /// # Errors
    /// It has none, or one of the wrong form.
    pub fn key(&self) -> Result<[u8; 32]> {
        key_of(self.key.read().unwrap_or_default())
    }
}

/// One entry of the firmware's.
struct Source {
    name: &'static str,
    file: Option<OwnedFd>,
}

impl Source {
    fn open(name: &'static str) -> Self {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = open(format!("{FIRMWARE}/{name}/raw"), flags, Mode::empty());
        Self {
            name,
            file: file.ok(),
        }
    }

    /// A read of the file asks the firmware (drivers/firmware/qemu_fw_cfg.c).
    fn read(&self) -> Option<Vec<u8>> {
        let Some(file) = &self.file else {
            return firmware(self.name);
        };
        let mut bytes = vec![0; 128];
        let length = pread(file, &mut bytes[..], 0).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }
}

/// Which disk is at which SCSI target, as the firmware has it now: `0=root,1=data`. A hypervisor whose disks have no
/// serial that could be chosen says so.
pub fn firmware_disks() -> Option<Vec<u8>> {
    firmware("disks")
}

/// 32 bytes, or as many hexadecimal digits as a guestinfo value needs, which is text.
fn key_of(bytes: Vec<u8>) -> Result<[u8; 32]> {
    let digits = core::str::from_utf8(&bytes).ok().and_then(hexadecimal);
    digits.or_else(|| bytes[..].try_into().ok()).ok_or_else(|| {
        invalid(format!(
            "the key that the host left has {} bytes: neither 32 nor 64 hexadecimal digits",
            bytes.len()
        ))
    })
}

impl Configuration {
    /// From QEMU's fw_cfg or VMware's guestinfo where they hold them, else from the kernel command line.
    ///
    /// # Errors
    /// No channel, or one that makes no sense; a key of the wrong form.
    pub fn read() -> Result<Self> {
        let line = files::text("/proc/cmdline");
        let configuration = Self::from_sources(&line, firmware("channel"), firmware("key"))?;
        Ok(Self {
            is_template: Identity::read()? == Some(Identity::Template),
            ..configuration
        })
    }

    fn from_sources(
        line: &str,
        firmware_channel: Option<Vec<u8>>,
        firmware_key: Option<Vec<u8>>,
    ) -> Result<Self> {
        let channel = match firmware_channel {
            Some(bytes) => String::from_utf8(bytes)
                .map_err(|_| invalid("the channel that the host left is not text"))?,
            None => parameter(line, "tether.channel").map(str::to_owned).ok_or_else(|| {
                invalid(
                    "no channel: put tether.channel=vsock:PORT, virtio:PORTNAME or serial:TTY on \
                     the kernel command line",
                )
            })?,
        };
        let key = match (firmware_key, parameter(line, "tether.key")) {
            (Some(bytes), _) => key_of(bytes)?,
            (None, Some(text)) => hexadecimal(text)
                .ok_or_else(|| invalid("tether.key is not 64 hexadecimal digits"))?,
            (None, None) => [0; 32],
        };
        Ok(Self {
            channel: ChannelAddress::parse(&channel)?,
            key,
            is_template: false,
        })
    }
}

/// The last value of a parameter on a kernel command line (kernel-parameters: later ones win).
fn parameter<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .next_back()
}

/// Reads exactly `N` bytes of hexadecimal digits.
pub fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = (high? * 16 + low?) as u8;
    }
    Some(bytes)
}

/// The kernel's name for this boot.
pub fn boot_id() -> [u8; 16] {
    let text = files::text("/proc/sys/kernel/random/boot_id");
    hexadecimal(&text.trim().replace('-', "")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_read_and_nonsense_is_refused() {
        let check = |text: &str, expected: Option<ChannelAddress>| {
            assert_eq!(ChannelAddress::parse(text).ok(), expected, "{text}");
        };
        check("vsock:2376", Some(ChannelAddress::Vsock(2376)));
        check(
            "virtio:org.tether.channel",
            Some(ChannelAddress::Virtio("org.tether.channel".into())),
        );
        check(
            "serial:ttyS1\n",
            Some(ChannelAddress::Serial("ttyS1".into())),
        );
        check("serial:../mem", None);
        check("serial:", None);
        check("vsock:many", None);
        check("tcp:1", None);
        check("", None);
    }

    #[test]
    fn a_key_may_be_digits() {
        let digits = "0f".repeat(32);
        assert_eq!(key_of(digits.into_bytes()).unwrap(), [15; 32]);
        assert_eq!(key_of(vec![b'a'; 32]).unwrap(), [b'a'; 32]);
        for wrong in [vec![b'g'; 64], vec![b'a'; 63], Vec::new()] {
            assert!(key_of(wrong).is_err());
        }
    }

    #[test]
    fn firmware_wins_over_the_command_line() {
        let line = "quiet tether.channel=vsock:1 tether.channel=vsock:2";
        let read = Configuration::from_sources(line, None, None).unwrap();
        assert_eq!(read.channel, ChannelAddress::Vsock(2));
        assert_eq!(read.key, [0; 32]);
        let firmware = Some(b"serial:ttyS1".to_vec());
        let read = Configuration::from_sources(line, firmware, Some(vec![7; 32])).unwrap();
        assert_eq!(read.channel, ChannelAddress::Serial("ttyS1".into()));
        assert_eq!(read.key, [7; 32]);
    }

    #[test]
    fn a_key_of_the_wrong_form_is_refused() {
        let line = "tether.channel=vsock:1";
        assert!(Configuration::from_sources(line, None, Some(vec![7; 31])).is_err());
        let line = "tether.channel=vsock:1 tether.key=ab";
        assert!(Configuration::from_sources(line, None, None).is_err());
        let key = "0f".repeat(32);
        let line = format!("tether.channel=vsock:1 tether.key={key}");
        let read = Configuration::from_sources(&line, None, None).unwrap();
        assert_eq!(read.key, [15; 32]);
    }

    #[test]
    fn a_template_is_known_by_an_identity_of_zeros() {
        let zeros = "0".repeat(64);
        assert_eq!(
            Identity::parse(zeros.as_bytes()).unwrap(),
            Identity::Template
        );
        // Zeros in front are no zeros throughout.
        for text in ["00".repeat(31) + "01", "0f".repeat(16) + &"00".repeat(16)] {
            let own = Identity::parse(text.as_bytes()).unwrap();
            assert!(matches!(own, Identity::Own { .. }), "{own:?}");
        }
        let text = format!("{}{}", "ab".repeat(16), "cd".repeat(16));
        let own = Identity::Own {
            boot_id: [0xab; 16],
            uuid: [0xcd; 16],
        };
        assert_eq!(Identity::parse(text.as_bytes()).unwrap(), own);
        for nonsense in [&b""[..], b"0", &[b'0'; 63], &[b'0'; 65], &[0xff; 64]] {
            assert!(Identity::parse(nonsense).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn no_channel_is_an_error_that_says_what_to_write() {
        let error = Configuration::from_sources("quiet", None, None).unwrap_err();
        assert!(error.message.contains("tether.channel="), "{error}");
    }
}
