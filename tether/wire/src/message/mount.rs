//! Disks and mounts.

use alloc::string::String;
use serde::{Deserialize, Serialize};

/// How tether recognises a disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskId {
    /// The disk's serial number: virtio-blk's `serial`, or SCSI VPD page 0x80.
    Serial(String),
    /// The ext4 volume label.
    Label(String),
}

/// The container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The disk (ext4).
    pub disk: DiskId,
    /// Mount it read-only for the container (`--read-only`); tether prepares it first.
    pub read_only: bool,
}

/// One mount inside the container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the root; made when missing. Never leads outside, whatever symbolic
    /// links the image holds.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
    /// Read-only.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// An ext4 disk.
    Disk {
        /// Which.
        disk: DiskId,
        /// When its root directory is empty but for lost+found, copy what the image has at the
        /// target first, as Docker does for a new named volume.
        populate: bool,
    },
    /// A tmpfs.
    Tmpfs {
        /// Bound in bytes; 0 is the kernel's default, half of memory.
        size: u64,
        /// Mode of its root directory, e.g. 0o1777.
        mode: u32,
        /// Further options as `mount(8)` takes them, comma separated (`noexec,nosuid`).
        options: String,
    },
}
