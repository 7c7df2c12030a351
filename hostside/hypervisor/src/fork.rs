//! Templates and forks: machines that begin where another one is.
//!
//! On QEMU a template is guest memory in a file and a saved device state; on
//! vSphere it is a machine without disks that `InstantClone_Task` copies.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::disk::DiskSpec;
use crate::error::Cause;
use crate::machine::{MachineId, Metadata};
use crate::nic::NicSpec;
use crate::spec::{ChannelKey, MachineSpec};

/// A template's name: the hash of everything it was made from, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TemplateId(pub String);

impl fmt::Display for TemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine frozen at "tether ready".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub id: TemplateId,
    /// The machine it was, without disks and vNICs.
    pub spec: MachineSpec,
}

/// What is forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkParent {
    /// A template, which stays as it is.
    Template(TemplateId),
    /// A running machine, which goes on after a pause.
    Machine(MachineId),
}

impl fmt::Display for ForkParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(id) => write!(f, "template {id}"),
            Self::Machine(id) => write!(f, "machine {id}"),
        }
    }
}

/// One child: what it does not have from its parent.
#[derive(Debug, Clone)]
pub struct Fork {
    /// Its identity.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Its own key.
    pub key: ChannelKey,
    /// What is written on it.
    pub metadata: Metadata,
    /// Its disks. Forking a running machine, each replaces the parent's disk
    /// of the same serial and is a child of what that disk was at the fork.
    pub disks: Vec<DiskSpec>,
    /// Its vNICs, each with an address of its own.
    pub nics: Vec<NicSpec>,
}

/// What a running machine's fork needs of who knows its guest and makes its disks. Each is called at
/// most once, in this order, as late as can be: the first two are the pause that the guest sees.
#[async_trait]
pub trait Bystander: Send + Sync {
    /// Makes the guest's processes stand still, so that no instruction of theirs runs in a child before
    /// the child is another machine. They stay so for [`HOLD`] of the guest's time.
    ///
    /// # Errors
    ///
    /// What the guest said. Nothing has been done to the machine.
    async fn freeze(&self) -> Result<(), Cause>;

    /// The virtual CPUs stand still and every write of theirs is in the disks: makes the disks of the
    /// children, and those that the parent goes on with, as children of what they are now.
    ///
    /// # Errors
    ///
    /// What kept a disk from being made. The parent goes on with the disks it has.
    async fn branch(&self) -> Result<(), Cause>;

    /// The parent's virtual CPUs run again: lets its processes go on. Called after each `freeze`, also
    /// one that failed.
    async fn thaw(&self);
}

/// How long a guest that was frozen for a fork stays so without another word, of its own time.
pub const HOLD: Duration = Duration::from_secs(10);

/// What a fork of a running machine came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forked {
    /// How long the parent's virtual CPUs stood still.
    pub stopped: Duration,
    /// From before its processes were told to stand still to after they were told to go on.
    pub paused: Duration,
    /// Bytes of memory that parent and children had in common at the fork, zeros aside.
    pub shared: u64,
    /// Of those, bytes copied while the machine stood still.
    pub copied_while_stopped: u64,
}
