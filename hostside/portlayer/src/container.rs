//! A container as it can be looked at.

use std::sync::Arc;
use std::time::SystemTime;

use hypervisor::{MacAddress, PublishedPort};
use serde::{Deserialize, Serialize};

use crate::identity::{ContainerId, ContainerName};
use crate::spec::{ContainerSpec, Cpus, Memory, NetworkAttachment, RestartPolicy};

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its identity.
    pub id: ContainerId,
    /// Its name now.
    pub name: ContainerName,
    /// When it was made.
    pub created: SystemTime,
    /// What it was made as; [`name`](Self::name) and the four fields below say what has changed since.
    pub spec: Arc<ContainerSpec>,
    /// Memory of its VM.
    pub memory: Memory,
    /// Virtual CPUs of its VM.
    pub cpus: Cpus,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Ports reached from outside, with the host ports chosen.
    pub published: Vec<PublishedPort>,
    /// How it stands.
    pub state: State,
    /// How often the restart policy started it since somebody did.
    pub restarts: u32,
}

impl Container {
    /// The address of its vNIC, if it has one.
    pub fn mac_address(&self) -> Option<MacAddress> {
        match &self.spec.network.attachment {
            NetworkAttachment::None => None,
            NetworkAttachment::Default { mac, .. } => {
                mac.or_else(|| crate::machine::own_mac(&self.id).ok())
            }
        }
    }
}

/// How a container stands. See the crate's diagram.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Made, never run. A start that failed leaves it so, with the reason.
    Created {
        /// Why the last start failed.
        failed: Option<StartFailure>,
    },
    /// Its VM boots; no process runs yet.
    Starting,
    /// Its main process runs.
    Running(Run),
    /// Its VM is paused.
    Paused(Run),
    /// Its main process ended; the restart policy starts it again after a pause.
    Restarting {
        /// How it ended.
        last: Ended,
    },
    /// Its main process ended.
    Exited(Ended),
    /// It is being removed.
    Removing,
}

impl State {
    /// Whether its VM is on (running, paused, or on the way there).
    pub fn is_on(&self) -> bool {
        matches!(self, Self::Starting | Self::Running(_) | Self::Paused(_))
    }
}

/// A main process that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Since when.
    pub started: SystemTime,
    /// Its pid in the VM's own pid namespace.
    pub pid: u32,
    /// What the health check says, where there is one.
    pub health: Option<Health>,
}

/// How a main process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// As a shell reports it: the exit code, or 128 plus the signal.
    pub status: u8,
    /// Whether memory ran out.
    pub out_of_memory: bool,
    /// What went wrong beyond the process itself; empty if nothing.
    pub error: String,
    /// When it was started.
    pub started: SystemTime,
    /// When it ended.
    pub finished: SystemTime,
    /// Whether somebody asked for it (`stop`, `kill`).
    pub by_request: bool,
}

/// A start that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// 125, 126 or 127, as `docker run` ends with it.
    pub status: u8,
    /// One sentence.
    pub message: String,
    /// When.
    pub at: SystemTime,
}

/// What the health check says.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// In a word.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last checks, oldest first, at most five.
    pub log: Vec<HealthResult>,
}

/// A container's health in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthStatus {
    /// No check has succeeded yet, and failures do not count yet.
    Starting,
    /// The last check succeeded.
    Healthy,
    /// As many checks failed in a row as are allowed.
    Unhealthy,
}

/// One health check's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthResult {
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// The program's status; -1 when it could not run or took too long.
    pub status: i32,
    /// The last 4096 bytes it wrote, as text.
    pub output: String,
}
