//! What a driver can do, changes to machines, and what machines use.

use std::time::Duration;

use crate::disk::DiskSerial;
use crate::machine::MachineId;
use crate::nic::MacAddress;
use crate::spec::{ChannelKind, Cpus, Hardware, Memory};

/// What a driver can do here and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Machines can be frozen into templates and forked.
    pub fork: bool,
    /// Virtual CPUs can be added to a running machine.
    pub cpu_hot_add: bool,
    /// Memory can be added to a running machine.
    pub memory_hot_add: bool,
    /// Memory of a running machine can be lowered and raised again below what
    /// it booted with.
    pub balloon: bool,
    /// Disks can come and go while a machine runs.
    pub disk_hot_plug: bool,
    /// Hardware the driver offers.
    pub hardware: Vec<Hardware>,
    /// Channels the driver offers, the best first.
    pub channels: Vec<ChannelKind>,
    /// vNICs can be published ports of the host by user-mode networking.
    pub user_network: bool,
    /// vNICs can be attached to port groups.
    pub port_groups: bool,
    /// Guests run on the host's processor rather than in emulation.
    pub accelerated: bool,
}

/// A change to CPUs or memory. The current value changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconfigure {
    /// CPUs it shall have.
    pub cpus: Cpus,
    /// Memory it shall have.
    pub memory: Memory,
}

/// When a change holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Now.
    Live,
    /// From the next power on.
    AtPowerOn,
}

/// What a running machine has used since power on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Time its virtual CPUs and its hypervisor have run on the host.
    pub cpu_time: Duration,
    /// Memory the guest was given, in bytes.
    pub memory_given: u64,
    /// Host memory it holds, in bytes: guest memory touched and the
    /// hypervisor's own.
    pub memory_resident: u64,
    /// Host memory that is its alone, in bytes.
    pub memory_private: u64,
    /// Its disks, by serial.
    pub disks: Vec<BlockStatistics>,
    /// Its vNICs, by address. Empty where the driver cannot count.
    pub nics: Vec<NicStatistics>,
}

/// One disk's traffic as the hypervisor counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatistics {
    /// Which disk.
    pub serial: DiskSerial,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
}

/// One vNIC's traffic as the hypervisor counts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicStatistics {
    /// Which vNIC.
    pub mac: MacAddress,
    /// Bytes to the guest.
    pub received_bytes: u64,
    /// Bytes from the guest.
    pub sent_bytes: u64,
}

/// Something [`crate::Hypervisor::reconcile`] put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// Which machine it was about.
    pub id: MachineId,
    /// What was found and done, as a sentence.
    pub what: String,
}
