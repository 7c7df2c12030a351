//! Why a call on a link failed.

use std::time::Duration;
use tether_wire::message::{Error, ProcessId};
use tether_wire::{Full, Refusal};

/// Why a call on a link failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The guest carried the request out and it failed.
    #[error(transparent)]
    Guest(#[from] Error),
    /// The request cannot be sent, however long one waits.
    #[error("{0}")]
    TooLong(Full),
    /// The guest and this host cannot speak to each other; trying again cannot help.
    #[error("the guest refused the channel: {0}")]
    Refused(Refusal),
    /// The guest did not answer in time.
    #[error("the guest did not answer on its channel within {}{}", seconds(.within), last(.carrier))]
    Silent {
        /// How long was waited.
        within: Duration,
        /// Why the last attempt to connect failed, where one did.
        carrier: Option<String>,
    },
    /// The machine was restarted and the process went with it.
    #[error("process {} was lost when its machine restarted", .0.0)]
    Lost(ProcessId),
    /// The guest does not know the process.
    #[error("there is no process {}", .0.0)]
    Unknown(ProcessId),
    /// The guest said something that cannot be; names what about.
    #[error("what the guest says does not make sense: {0}")]
    Nonsense(&'static str),
    /// The link was closed on this side.
    #[error("the channel was closed")]
    Closed,
}

fn seconds(within: &Duration) -> String {
    format!("{} s", within.as_secs_f64())
}

fn last(carrier: &Option<String>) -> String {
    carrier
        .as_ref()
        .map(|reason| format!(" (last attempt: {reason})"))
        .unwrap_or_default()
}
