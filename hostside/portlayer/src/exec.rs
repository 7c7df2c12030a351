//! Further processes of a running container.

use serde::{Deserialize, Serialize};

use crate::identity::{ContainerId, ExecId};
use crate::spec::ProcessSpec;

/// An exec at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// Its identity.
    pub id: ExecId,
    /// Its container.
    pub container: ContainerId,
    /// What it runs.
    pub process: ProcessSpec,
    /// How it stands.
    pub state: ExecState,
    /// What the endpoint wants to have back word by word.
    pub endpoint: serde_json::Value,
}

/// How an exec stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecState {
    /// Not started.
    Created,
    /// Its process runs.
    Running {
        /// In the VM's own pid namespace.
        pid: u32,
    },
    /// Its process ended, or could not be started.
    Ended {
        /// As a shell reports it.
        status: u8,
    },
}
