//! What a container is asked to be. Everything here is written down with the machine and read back after
//! the controller was killed, so fields are only added, with a default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

pub use hypervisor::{Cpus, MacAddress, Memory, Protocol};
use image::digest::Digest;
use serde::{Deserialize, Serialize};
pub use tether_wire::message::{HostsEntry, PidNamespace, ResourceLimit, TerminalSize, User};

use crate::identity::ContainerName;

/// A container to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name; without one the port layer chooses.
    pub name: Option<ContainerName>,
    /// The image.
    pub image: ImageChoice,
    /// What runs in it.
    pub process: ProcessSpec,
    /// Its pid namespace.
    pub pid_namespace: PidNamespace,
    /// Run tether's small init as process 1 (`--init`).
    pub init: bool,
    /// Host name; without one, the first 12 digits of the id.
    pub hostname: Option<String>,
    /// NIS domain name; empty leaves it unset.
    pub domainname: String,
    /// Memory of its VM; without it the port layer's default.
    pub memory: Option<Memory>,
    /// Virtual CPUs; without it the port layer's default.
    pub cpus: Option<Cpus>,
    /// Whether its root is read-only.
    pub root_access: Access,
    /// What is mounted in it, in order.
    pub mounts: Vec<MountSpec>,
    /// Its network.
    pub network: NetworkSpec,
    /// How it is asked to stop.
    pub stop: StopSpec,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Whether it goes away when it ends.
    pub at_end: AtEnd,
    /// How to find out whether it is well.
    pub health: Option<HealthCheck>,
    /// Where its output is kept.
    pub log: LogSpec,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// What the endpoint wants to have back word by word; the port layer does not look into it.
    pub endpoint: serde_json::Value,
}

/// An image, and how the user called it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageChoice {
    /// The digest of its configuration.
    pub id: Digest,
    /// What the user wrote.
    pub reference: String,
}

/// A process to be run, the main one or an exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments, at least one.
    pub argv: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Where it starts, absolute; made when missing.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Where its output leads.
    pub stdio: Stdio,
    /// Whether it has a standard input.
    pub stdin: Stdin,
    /// `setrlimit(2)` before it starts.
    pub limits: Vec<ResourceLimit>,
}

/// Where a process's output leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// Two pipes.
    Pipes,
    /// One terminal of this first size (zeroes leave it unset).
    Terminal(TerminalSize),
}

impl Stdio {
    /// Whether it is a terminal.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Terminal(_))
    }
}

/// Whether a process has a standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// /dev/null.
    Closed,
    /// A pipe (or the terminal) that stays open when who is attached leaves.
    Open,
    /// The same, at its end when the first who is attached leaves (Docker's `StdinOnce`).
    Once,
}

/// Whether something can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// It can.
    ReadWrite,
    /// It cannot.
    ReadOnly,
}

/// Something mounted in a container. Volumes get a variant here when they come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSpec {
    /// A tmpfs.
    Tmpfs {
        /// Absolute path in the container.
        target: String,
        /// Bound in bytes; 0 is half of memory.
        size: u64,
        /// Mode of its root directory.
        mode: u32,
        /// Further options as `mount(8)` takes them, comma separated.
        options: String,
    },
}

/// A container's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Where it is attached. Named networks get a variant in [`NetworkAttachment`] when they come.
    pub attachment: NetworkAttachment,
    /// Name servers; empty takes the network's.
    pub dns: Vec<IpAddr>,
    /// Search list.
    pub dns_search: Vec<String>,
    /// `options` of resolv.conf(5).
    pub dns_options: Vec<String>,
    /// Further lines of /etc/hosts.
    pub hosts: Vec<HostSpec>,
}

/// A line of /etc/hosts to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// The name.
    pub name: String,
    /// Its address; `None` is the host side's (`host-gateway`).
    pub address: Option<IpAddr>,
}

/// Where a container is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkAttachment {
    /// Nowhere: loopback only.
    None,
    /// The default network.
    Default {
        /// Its address on the link; without one, a random one.
        mac: Option<MacAddress>,
        /// Ports reached from outside.
        published: Vec<PublishSpec>,
    },
}

/// A port reached from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSpec {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address on the host side to listen on; `None` is all of them.
    pub address: Option<IpAddr>,
    /// First and last port on the host side to choose a free one from; `None` is any.
    pub host: Option<(u16, u16)>,
    /// The port in the container.
    pub guest: u16,
}

/// How a container is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSpec {
    /// Linux signal number, 1 to 64.
    pub signal: u8,
    /// How long it has before SIGKILL; `None` is for ever (Docker's -1).
    pub grace: Option<Duration>,
}

/// When a container that ended is started again (Engine API, `RestartPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    No,
    /// Always, also at the controller's start after it was stopped by hand.
    Always,
    /// Always, unless it was stopped by hand.
    UnlessStopped,
    /// When its status is not 0, at most this many times in a row where given.
    OnFailure(Option<NonZeroU32>),
}

/// What becomes of a container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtEnd {
    /// It stays.
    Keep,
    /// It is removed (`--rm`).
    Remove,
}

/// How to find out whether a container is well: a program whose exit status 0 says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// Before a check counts as failed.
    pub timeout: Duration,
    /// In which failures do not count.
    pub start_period: Duration,
    /// Between two checks in the start period.
    pub start_interval: Duration,
    /// How many failures in a row make it unhealthy.
    pub retries: NonZeroU32,
}

/// Where a container's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogSpec {
    /// In files of JSON lines, as Docker's `json-file` writes them.
    JsonFile {
        /// A file longer than this many bytes is rotated; `None` is never.
        max_size: Option<u64>,
        /// Files kept, the current one included.
        max_files: NonZeroU32,
    },
    /// Nowhere.
    None,
}

/// What of a container can be changed while it exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Update {
    /// Memory of its VM.
    pub memory: Option<Memory>,
    /// Virtual CPUs.
    pub cpus: Option<Cpus>,
    /// When it is started again.
    pub restart: Option<RestartPolicy>,
}
