//! The machine as a whole: what it is made into, what it measures, how it ends.

use super::{MacAddress, Mount, Network, ProcessId, Root};
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// What makes a machine one container's, in the order it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Who it is: done first, before any instruction of the workload.
    pub identity: Identity,
    /// The container's root.
    pub root: Root,
    /// Mounts inside it, in order.
    pub mounts: Vec<Mount>,
    /// The network.
    pub network: Network,
    /// How long disks and vNICs are waited for, in milliseconds.
    pub deadline_ms: u32,
}

/// What no two machines may share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `sethostname(2)`, /etc/hostname, /etc/hosts; at most 64 bytes.
    pub hostname: String,
    /// NIS domain name; empty leaves it unset.
    pub domainname: String,
    /// machine-id(5).
    pub machine_id: [u8; 16],
    /// Fresh random bytes for the kernel's generator, credited in full (`RNDADDENTROPY`, then
    /// `RNDRESEEDCRNG`).
    pub seed: [u8; 32],
    /// Realtime clock, nanoseconds since the Unix epoch.
    pub unix_nanos: u64,
}

/// What makes a child of a running machine another machine, before its processes go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebirth {
    /// Who it is.
    pub identity: Identity,
    /// Its network: the vNICs of its parent in the same order, each with the MAC address it is to
    /// have. TCP connections to other machines are reset.
    pub network: Network,
    /// Sent to the main process when it goes on; 0 for none.
    pub signal: u8,
}

/// What a machine that was forked before anybody wanted it is told when somebody does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its UUID as processes read it (SMBIOS, /sys/class/dmi/id/product_uuid).
    pub uuid: [u8; 16],
    /// The MAC addresses of its vNICs, in the order of their places on the bus.
    pub macs: Vec<MacAddress>,
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownSpec {
    /// Sent to the main process first (`--stop-signal`).
    pub signal: u8,
    /// How long it has before SIGKILL, in milliseconds (`--stop-timeout`).
    pub grace_ms: u32,
    /// And then.
    pub action: Action,
}

/// What ends a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// `LINUX_REBOOT_CMD_POWER_OFF`.
    PowerOff,
    /// `LINUX_REBOOT_CMD_RESTART`.
    Reboot,
}

/// What a guest says unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineEvent {
    /// The kernel's OOM killer ran; the process, where tether can tell whose it was.
    OutOfMemory {
        /// The wire's process whose descendant or self was killed.
        process: Option<ProcessId>,
    },
    /// Something that is not a request's failure and that the administrator should see.
    Warning {
        /// One sentence.
        message: String,
    },
    /// A DHCP lease came or changed.
    Lease {
        /// The vNIC's name.
        interface: String,
        /// What it has now.
        address: super::Address,
        /// The router, where the lease names one.
        gateway: Option<core::net::IpAddr>,
    },
}

/// A page of the process list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPage {
    /// In order of pid.
    pub processes: Vec<ProcessInfo>,
    /// There are more: ask again after the last pid.
    pub more: bool,
}

/// One process of the container, from /proc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// In the machine's pid namespace.
    pub pid: u32,
    /// Its parent there.
    pub parent: u32,
    /// In the container's pid namespace (`NSpid`); equal to `pid` with `--pid host`.
    pub container_pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// State letter of proc(5): R, S, D, Z, T.
    pub state: u8,
    /// Processor time used, milliseconds.
    pub cpu_ms: u64,
    /// When it started, milliseconds since boot.
    pub started_ms: u64,
    /// Resident memory, bytes.
    pub resident: u64,
    /// Virtual memory, bytes.
    pub virtual_size: u64,
    /// Threads.
    pub threads: u32,
    /// Controlling terminal as a device number, 0 for none.
    pub terminal: u32,
    /// Command line, its arguments separated by spaces, or the name in brackets; cut at 4 KiB.
    pub command: String,
}

/// The machine measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// When, nanoseconds since boot.
    pub monotonic_nanos: u64,
    /// Processor time.
    pub cpu: CpuUsage,
    /// Memory.
    pub memory: MemoryUsage,
    /// Tasks in the container now.
    pub processes: u32,
    /// By vNIC.
    pub interfaces: Vec<InterfaceUsage>,
    /// By disk.
    pub disks: Vec<BlockDeviceUsage>,
}

/// Processor time, nanoseconds since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuUsage {
    /// Of the container, all told (cgroup `cpu.stat`).
    pub container: u64,
    /// Of it, in user mode.
    pub container_user: u64,
    /// Of it, in the kernel.
    pub container_system: u64,
    /// Of the whole machine, not idle.
    pub machine: u64,
    /// Processors online.
    pub online: u32,
}

/// Memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Of the container (cgroup `memory.current`).
    pub container: u64,
    /// Of it, file cache that could be dropped (`inactive_file`).
    pub container_inactive_file: u64,
    /// The machine's (MemTotal).
    pub total: u64,
    /// The machine's (MemAvailable).
    pub available: u64,
    /// Tether's own resident memory.
    pub tether: u64,
    /// OOM kills since boot.
    pub oom_kills: u64,
}

/// A vNIC's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceUsage {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub received: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Receive errors.
    pub receive_errors: u64,
    /// Received and dropped.
    pub receive_dropped: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Send errors.
    pub send_errors: u64,
    /// Dropped on sending.
    pub send_dropped: u64,
}

/// A disk's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeviceUsage {
    /// Device number, major.
    pub major: u32,
    /// Device number, minor.
    pub minor: u32,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}
