//! Templates and forks: machines that begin where another one is.
//!
//! On QEMU a template is guest memory in a file and a saved device state; on
//! vSphere it is a frozen machine that `InstantClone_Task` copies.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::disk::DiskSpec;
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
