//! What a container's task is asked.

use std::time::Duration;

use hypervisor::Applied;
use tokio::sync::oneshot;

use crate::cell::HelperInUse;
use crate::error::Error;
use crate::identity::{ContainerId, ContainerName};
use crate::spec::{StopSpec, Update};

/// Where an answer goes. Whoever asked may be gone.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What a container's task is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Start(Answer<()>),
    Stop(Stop, Answer<()>),
    Restart(Stop, Answer<()>),
    Kill(u8, Answer<()>),
    Pause(Answer<()>),
    Unpause(Answer<()>),
    Update(Update, Answer<Applied>),
    Rename(ContainerName, Answer<()>),
    /// Children, this many; a signal to their main processes, or 0.
    Fork(u32, u8, Answer<Vec<ContainerId>>),
    Remove(Removal, Answer<()>),
    /// Its helper containerVM, booted if need be.
    Helper(Answer<HelperInUse>),
}

/// A stop that differs from the container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stop {
    /// Another signal.
    pub signal: Option<u8>,
    /// Another grace; `Some(None)` is for ever.
    pub grace: Option<Option<Duration>>,
}

impl Stop {
    /// Filled up with the container's own.
    pub(crate) fn or(self, own: StopSpec) -> StopSpec {
        StopSpec {
            signal: self.signal.unwrap_or(own.signal),
            grace: self.grace.unwrap_or(own.grace),
        }
    }
}

/// How hard a removal goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Only when it does not run.
    IfStopped,
    /// Also when it runs.
    Force,
}
