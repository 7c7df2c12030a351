//! One error per operation, with the machine it was for and its cause.

use std::error::Error as StdError;

use crate::disk::DiskSerial;
use crate::fork::{ForkParent, TemplateId};
use crate::machine::{MachineId, PowerState};
use crate::spec::InvalidSpec;

/// The result of an operation on a hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation failed. `Display` says which, on what; the [`Cause`] is its
/// source and says why.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are the operation's own arguments")]
pub enum Error {
    /// [`crate::Hypervisor::create`] failed.
    #[error("cannot create machine {name} ({id})")]
    Create {
        id: MachineId,
        name: String,
        source: Cause,
    },
    /// [`crate::Hypervisor::destroy`] failed.
    #[error("cannot destroy machine {id}")]
    Destroy { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::power_on`] failed.
    #[error("cannot power on machine {id}")]
    PowerOn { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::power_off`] failed.
    #[error("cannot power off machine {id}")]
    PowerOff { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::suspend`] failed.
    #[error("cannot suspend machine {id}")]
    Suspend { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::resume`] failed.
    #[error("cannot resume machine {id}")]
    Resume { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::reconfigure`] failed.
    #[error("cannot reconfigure machine {id}")]
    Reconfigure { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::attach_disk`] failed.
    #[error("cannot attach disk {serial} to machine {id}")]
    AttachDisk {
        id: MachineId,
        serial: DiskSerial,
        source: Cause,
    },
    /// [`crate::Hypervisor::detach_disk`] failed.
    #[error("cannot detach disk {serial} from machine {id}")]
    DetachDisk {
        id: MachineId,
        serial: DiskSerial,
        source: Cause,
    },
    /// [`crate::Hypervisor::set_metadata`] failed.
    #[error("cannot write the metadata of machine {id}")]
    SetMetadata { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::inspect`] failed.
    #[error("cannot inspect machine {id}")]
    Inspect { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::list`] failed.
    #[error("cannot list machines")]
    List { source: Cause },
    /// [`crate::Hypervisor::statistics`] failed.
    #[error("cannot read the statistics of machine {id}")]
    Statistics { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::connect_channel`] failed.
    #[error("cannot connect to the channel of machine {id}")]
    ConnectChannel { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::console`] or
    /// [`crate::Hypervisor::follow_console`] failed.
    #[error("cannot read the console of machine {id}")]
    Console { id: MachineId, source: Cause },
    /// [`crate::Hypervisor::freeze`] failed.
    #[error("cannot freeze machine {id} into template {template}")]
    Freeze {
        id: MachineId,
        template: TemplateId,
        source: Cause,
    },
    /// [`crate::Hypervisor::templates`], [`crate::Hypervisor::make_template`]
    /// or [`crate::Hypervisor::remove_template`] failed.
    #[error("templates cannot be used")]
    Template { source: Cause },
    /// [`crate::Hypervisor::fork`] failed.
    #[error("cannot fork {parent}")]
    Fork { parent: ForkParent, source: Cause },
    /// [`crate::Hypervisor::reconcile`] failed.
    #[error("cannot repair what an earlier run left")]
    Reconcile { source: Cause },
    /// The driver could not be opened at all.
    #[error("cannot open the {driver} driver on {place}")]
    Open {
        driver: &'static str,
        place: String,
        source: Cause,
    },
}

impl Error {
    /// Why it failed.
    pub fn cause(&self) -> &Cause {
        match self {
            Self::Create { source, .. }
            | Self::Destroy { source, .. }
            | Self::PowerOn { source, .. }
            | Self::PowerOff { source, .. }
            | Self::Suspend { source, .. }
            | Self::Resume { source, .. }
            | Self::Reconfigure { source, .. }
            | Self::AttachDisk { source, .. }
            | Self::DetachDisk { source, .. }
            | Self::SetMetadata { source, .. }
            | Self::Inspect { source, .. }
            | Self::List { source }
            | Self::Statistics { source, .. }
            | Self::ConnectChannel { source, .. }
            | Self::Console { source, .. }
            | Self::Freeze { source, .. }
            | Self::Template { source }
            | Self::Fork { source, .. }
            | Self::Reconcile { source }
            | Self::Open { source, .. } => source,
        }
    }
}

/// Why an operation failed, in the words every driver shares.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There is no such machine, template or disk.
    #[error("there is no such {what}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
    },
    /// The identity or serial is taken.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What is in the way.
        what: String,
    },
    /// The specification contradicts itself or a limit.
    #[error("the specification cannot be met")]
    InvalidSpec(#[from] InvalidSpec),
    /// The driver cannot do this here.
    #[error("{driver} cannot {what}: {why}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked, as a verb phrase.
        what: String,
        /// Why not, and what to do instead.
        why: String,
    },
    /// The machine is in a state in which this makes no sense.
    #[error("the machine is {}", describe(state))]
    WrongState {
        /// The state it is in.
        state: PowerState,
    },
    /// A host port that should be published is taken.
    #[error(
        "host port {address} ({protocol}) is in use; choose another, or stop what listens there"
    )]
    PortInUse {
        /// The address and port on the host.
        address: std::net::SocketAddr,
        /// TCP or UDP.
        protocol: crate::nic::Protocol,
        /// What binding it said.
        source: std::io::Error,
    },
    /// A file of the host's stood in the way.
    #[error("{what} {}", path.display())]
    File {
        /// What was done to it, as in "cannot open".
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// The hypervisor refused or failed, in its own words.
    #[error("{message}")]
    Hypervisor {
        /// What happened, and what to do about it if known.
        message: String,
        /// The driver's own error, if there is more to say.
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
}

fn describe(state: &PowerState) -> String {
    match state {
        PowerState::Off { cause } => format!("off ({cause})"),
        PowerState::On => "on".to_owned(),
        PowerState::Suspended => "suspended".to_owned(),
    }
}

impl Cause {
    /// A refusal in the hypervisor's own words.
    pub fn hypervisor(message: impl Into<String>) -> Self {
        Self::Hypervisor {
            message: message.into(),
            source: None,
        }
    }

    /// A failure with the driver's own error below it.
    pub fn because(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Hypervisor {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}
