//! A machine's identity, its power state, and what a driver says of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fork::TemplateId;
use crate::spec::MachineSpec;

/// Free-form facts kept with the machine by the hypervisor itself (vSphere
/// `extraConfig`; a file beside the machine on QEMU), so that whoever finds
/// the machine knows what it is for.
pub type Metadata = BTreeMap<String, String>;

/// One change to a machine's [`Metadata`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataChange {
    /// Sets a key, new or not.
    Set {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Removes a key, there or not.
    Remove {
        /// The key.
        key: String,
    },
}

/// A machine's identity: 128 bits, written as a UUID.
///
/// It is the SMBIOS UUID the guest sees and, on vSphere, the instance UUID of
/// a machine that has not been forked. It never changes and is never used
/// again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId([u8; 16]);

impl MachineId {
    /// The identity with these 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A random (version 4, RFC 9562) identity.
    ///
    /// # Errors
    ///
    /// When the kernel's random source fails, as `getrandom(2)` may early in
    /// boot.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = random_bytes::<16>()?;
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Ok(Self(bytes))
    }

    /// The 16 bytes, in the order they are written.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// `N` bytes from the kernel.
pub(crate) fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What [`MachineId::from_str`] was given is not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("not a machine identity (a UUID in lower case with its four hyphens): {0:?}")]
pub struct NotAMachineId(String);

impl FromStr for MachineId {
    type Err = NotAMachineId;

    /// Takes the one form [`fmt::Display`] writes, so that an identity has one
    /// spelling as a file name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || NotAMachineId(text.chars().take(64).collect());
        let mut bytes = [0u8; 16];
        let mut nibbles = 0usize;
        for c in text.bytes() {
            let nibble = match c {
                b'0'..=b'9' => c - b'0',
                b'a'..=b'f' => c - b'a' + 10,
                b'-' => continue,
                _ => return Err(refuse()),
            };
            let byte = bytes.get_mut(nibbles / 2).ok_or_else(refuse)?;
            *byte = (*byte << 4) | nibble;
            nibbles += 1;
        }
        let id = Self(bytes);
        if nibbles == 32 && id.to_string() == text {
            Ok(id)
        } else {
            Err(refuse())
        }
    }
}

impl Serialize for MachineId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MachineId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Whether a machine runs, and if not, why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// Off.
    Off {
        /// Why.
        cause: StopCause,
    },
    /// Its virtual CPUs run.
    On,
    /// In memory with its virtual CPUs stopped.
    Suspended,
}

impl PowerState {
    /// Whether the machine is off.
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Off { .. })
    }
}

/// Why a machine is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopCause {
    /// It has not been powered on.
    NeverStarted,
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest asked for a reset, which ends a containerVM: tether never
    /// restarts, so this is a kernel that panicked without a panic device, or
    /// a triple fault.
    GuestReset,
    /// The guest's kernel panicked and said so.
    GuestPanic,
    /// Whoever drives the hypervisor cut the power.
    PoweredOff,
    /// The hypervisor's process ended without being asked to by its owner.
    HypervisorFailed {
        /// What is known of it: a signal, an exit status, its last words.
        detail: String,
    },
}

impl StopCause {
    /// Whether this is how a machine ends when nothing went wrong.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::NeverStarted | Self::GuestShutdown | Self::PoweredOff
        )
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverStarted => f.write_str("it has not been started"),
            Self::GuestShutdown => f.write_str("the guest powered off"),
            Self::GuestReset => {
                f.write_str("the guest reset itself (kernel panic or triple fault)")
            }
            Self::GuestPanic => f.write_str("the guest's kernel panicked"),
            Self::PoweredOff => f.write_str("it was powered off"),
            Self::HypervisorFailed { detail } => write!(f, "the hypervisor failed: {detail}"),
        }
    }
}

/// A machine as its hypervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its identity.
    pub id: MachineId,
    /// What it was made as, with every change since.
    pub spec: MachineSpec,
    /// Whether it runs.
    pub power: PowerState,
    /// What its maker wrote on it.
    pub metadata: Metadata,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last powered on; the epoch if never.
    pub started: SystemTime,
    /// When it last went off; the epoch if never.
    pub stopped: SystemTime,
    /// How its last power on got it to run; `None` if never.
    pub began: Option<Started>,
}

/// How a machine got to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Started {
    /// It booted, as it was told to.
    Booted,
    /// It booted although it was to be forked.
    BootedInstead {
        /// Why, and what to do about it.
        why: String,
    },
    /// It was forked from a template.
    Forked {
        /// From which.
        template: TemplateId,
        /// Whether that template was made for it just before.
        made: bool,
    },
    /// It is a child of a machine that ran.
    ForkedRunning {
        /// Of which.
        parent: MachineId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_as_it_was_written() {
        let id = MachineId::from_bytes(
            *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        );
        assert_eq!(id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
    }

    #[test]
    fn an_identity_has_one_spelling() {
        for text in [
            "",
            "00112233445566778899aabbccddeeff",
            "00112233-4455-6677-8899-AABBCCDDEEFF",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeeff0",
            "0-0112233-4455-6677-8899-aabbccddeeff",
            "../../../../../../../../../etc/passwd",
        ] {
            assert!(text.parse::<MachineId>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn random_identities_differ_and_say_their_version() {
        let a = MachineId::random().unwrap();
        let b = MachineId::random().unwrap();
        assert_ne!(a, b);
        assert_eq!(&a.to_string()[14..15], "4");
    }
}
