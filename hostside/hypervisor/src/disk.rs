//! Disks: what they are made of, and how the guest finds them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::{InvalidSpec, words};

/// Whether the guest may write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAccess {
    /// No; the file is opened for reading only, and any number of machines
    /// may share it.
    ReadOnly,
    /// Yes; the file belongs to this machine while it runs.
    ReadWrite,
}

/// A disk file's format. Never guessed from its contents, which may be the
/// guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// A VMDK, or the descriptor of one, with or without a parent.
    Vmdk,
    /// The bytes of the disk.
    Raw,
}

words!(DiskFormat, "vmdk, raw", Vmdk => "vmdk", Raw => "raw");

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Where its bytes are.
    pub source: DiskSource,
    /// How they are laid out.
    pub format: DiskFormat,
    /// Whether the guest may change them.
    pub access: DiskAccess,
    /// How the guest finds it.
    pub serial: DiskSerial,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSource {
    /// A file of the host that runs the driver.
    File(PathBuf),
    /// A file of a vSphere datastore.
    Datastore {
        /// The datastore's name.
        datastore: String,
        /// The path on it.
        path: String,
    },
}

/// A disk's serial number as the guest reads it: 1 to 20 characters
/// (`VIRTIO_BLK_ID_BYTES`), none that needs escaping anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSerial(String);

impl DiskSerial {
    /// The serial with these characters.
    ///
    /// # Errors
    ///
    /// None, too many, or ones that may not be in it.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSpec> {
        let text = text.into();
        let fits = (1..=20).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(text))
        } else {
            Err(InvalidSpec::Serial(text))
        }
    }

    /// Its characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskSerial {
    type Error = InvalidSpec;
    fn try_from(text: String) -> Result<Self, InvalidSpec> {
        Self::new(text)
    }
}

impl From<DiskSerial> for String {
    fn from(serial: DiskSerial) -> Self {
        serial.0
    }
}

impl fmt::Display for DiskSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_never_needs_escaping() {
        for bad in ["", "a b", "a,b", "a=b", "twenty-one-characters", "ü", "a\n"] {
            assert!(DiskSerial::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(DiskSerial::new("twenty-characters.01").is_ok());
    }
}
