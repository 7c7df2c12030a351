//! What is written on a container's machine, so that whoever finds the machine knows the container.
//!
//! Two entries of the machine's metadata: what the container was made as, written once by `create`, and
//! what has changed since, written by the task that owns its transitions. Memory and CPUs are the
//! machine's own.

use std::time::SystemTime;

use hypervisor::{MachineId, Metadata, MetadataChange, PublishedPort};
use serde::{Deserialize, Serialize};

use crate::container::{Ended, StartFailure};
use crate::identity::{ContainerId, ContainerName};
use crate::spec::{ContainerSpec, RestartPolicy};

/// The metadata key of [`Made`].
const MADE: &str = "tether.container";
/// The metadata key of [`Kept`].
const KEPT: &str = "tether.state";
/// The metadata key that marks a helper containerVM, with the id of the container it works for.
const HELPER: &str = "tether.helper";
/// The metadata key that marks a child of a running container, with its parent's id, as long as its guest
/// is not another machine.
pub(crate) const UNBORN: &str = "tether.unborn";
/// The form of what is written; another one is not read.
const FORM: u32 = 1;

/// What a container was made as.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Made {
    form: u32,
    pub id: ContainerId,
    pub created: SystemTime,
    pub published: Vec<PublishedPort>,
    pub spec: ContainerSpec,
}

impl Made {
    pub fn new(
        id: ContainerId,
        created: SystemTime,
        published: Vec<PublishedPort>,
        spec: ContainerSpec,
    ) -> Self {
        Self {
            form: FORM,
            id,
            created,
            published,
            spec,
        }
    }
}

/// What has changed since, and what must not be forgotten when the controller is killed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its name now.
    pub name: ContainerName,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// How it ended last.
    pub last: Option<Ended>,
    /// Why the last start failed, where it did.
    pub failed: Option<StartFailure>,
    /// Somebody asked for its end; set before anything is done about it, taken back by the next start.
    pub stopped_by_request: bool,
    /// How often the policy started it since somebody did.
    pub restarts: u32,
}

/// What a machine is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// It is a container.
    Container(Box<(Made, Kept)>),
    /// It reads a stopped container's disk, for a controller that is gone.
    Helper,
    /// It was to become a container, forked from another by a controller that is gone.
    Unborn,
    /// Its metadata cannot be read; says why.
    Unreadable(String),
}

/// The metadata of a container's machine.
pub(crate) fn metadata(made: &Made, kept: &Kept) -> Metadata {
    [(MADE, json(made)), (KEPT, json(kept))]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

/// Marks a child of the running container `parent`.
pub(crate) fn mark_unborn(metadata: &mut Metadata, parent: &ContainerId) {
    metadata.insert(UNBORN.to_owned(), parent.to_string());
}

/// The metadata of a helper containerVM.
pub(crate) fn helper_metadata(id: &ContainerId) -> Metadata {
    [(HELPER.to_owned(), id.to_string())].into()
}

/// The change that writes `kept`.
pub(crate) fn change(kept: &Kept) -> MetadataChange {
    MetadataChange::Set {
        key: KEPT.to_owned(),
        value: json(kept),
    }
}

/// What a machine with this metadata is for.
pub(crate) fn purpose(metadata: &Metadata) -> Purpose {
    if metadata.contains_key(HELPER) {
        return Purpose::Helper;
    }
    if metadata.contains_key(UNBORN) {
        return Purpose::Unborn;
    }
    let read = || -> Result<_, String> {
        let entry = |key| metadata.get(key).ok_or_else(|| format!("it has no {key}"));
        let made: Made = serde_json::from_str(entry(MADE)?).map_err(|e| format!("{MADE}: {e}"))?;
        if made.form != FORM {
            return Err(format!(
                "{MADE} has form {}, and this program knows {FORM}",
                made.form
            ));
        }
        let kept = serde_json::from_str(entry(KEPT)?).map_err(|e| format!("{KEPT}: {e}"))?;
        Ok((made, kept))
    };
    match read() {
        Ok(both) => Purpose::Container(Box::new(both)),
        Err(why) => Purpose::Unreadable(why),
    }
}

/// The identity of a container's machine: the first 16 bytes of the container's, as a version 4 UUID.
pub(crate) fn machine_id(id: &ContainerId) -> MachineId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&id.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    MachineId::from_bytes(bytes)
}

fn json<T: Serialize>(value: &T) -> String {
    // Maps have text keys and no serialiser of ours fails, so there is no error to be had.
    serde_json::to_string(value).unwrap_or_default()
}
