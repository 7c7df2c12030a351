//! Machines as the collector knows them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use hypervisor::{Cause, Machine as View, MachineId, PowerState, Started, StopCause};

use super::record::{self, Entries, Record};
use super::{Core, place};
use crate::property::{Objects, Properties};
use crate::types::{
    ManagedObject, ObjectSpec, PropertyFilterSpec, Selection, TraversalSpec,
    VirtualMachinePowerState,
};

/// What is watched of each machine.
const PATHS: &[&str] = &[
    "name",
    "config.instanceUuid",
    "config.extraConfig",
    "config.hardware",
    "guest.net",
    "runtime.powerState",
    "runtime.host",
    "runtime.connectionState",
    "runtime.cleanPowerOff",
];

/// The filter that watches every machine in a pool.
pub fn machines(pool: &ManagedObject) -> PropertyFilterSpec {
    PropertyFilterSpec {
        propSet: vec![place::properties("VirtualMachine", PATHS)],
        objectSet: vec![ObjectSpec {
            obj: pool.clone(),
            skip: Some(true),
            selectSet: vec![Selection::from(TraversalSpec {
                r#type: pool.kind.clone(),
                path: "vm".into(),
                skip: Some(false),
                ..TraversalSpec::default()
            })],
        }],
        reportMissingObjectsInResults: None,
    }
}

/// The identity of a machine: a fork's is written on it, and its UUID is the server's to choose.
pub fn identity(properties: &Properties) -> Option<MachineId> {
    let written = properties
        .get("config.extraConfig")
        .and_then(|property| record::entry(property, record::ID))
        .and_then(|text| text.parse().ok());
    written.or_else(|| record::identity(properties.get("config.instanceUuid")?))
}

/// The object of a machine. Where a fork has just taken the place of what the machine was before, it is the
/// one of the later run.
pub fn find(objects: &Objects, id: &MachineId) -> Option<(ManagedObject, Arc<Properties>)> {
    let started = |properties: &Properties| {
        let text = properties
            .get("config.extraConfig")
            .and_then(|property| record::entry(property, record::STARTED))
            .and_then(|text| text.split_once(':'));
        text.and_then(|(_, nanos)| nanos.parse::<u64>().ok())
    };
    objects
        .of_kind("VirtualMachine")
        .filter(|(_, properties)| identity(properties) == Some(*id) && !is_coming(properties))
        .max_by_key(|(_, properties)| started(properties))
        .map(|(object, properties)| (object.clone(), properties.clone()))
}

/// Whether it is no machine yet.
pub fn is_coming(properties: &Properties) -> bool {
    let state = properties
        .get("config.extraConfig")
        .and_then(|property| record::entry(property, record::STATE))
        .and_then(|text| text.split_once(':'));
    state.is_some_and(|(_, state)| state == record::COMING)
}

/// Whether a machine has power, as the server says.
pub fn power(properties: &Properties) -> VirtualMachinePowerState {
    let text = properties
        .get("runtime.powerState")
        .map(|node| node.text.trim());
    VirtualMachinePowerState::from(text.unwrap_or("poweredOff"))
}

/// Whether the server says of a machine that is off that it did not go off orderly (API reference,
/// `VirtualMachineRuntimeInfo.cleanPowerOff`).
pub fn failed(properties: &Properties) -> bool {
    let clean = properties.get("runtime.cleanPowerOff");
    clean.is_some_and(|node| node.text.trim() == "false")
}

/// What is written on a machine.
pub fn entries(properties: &Properties) -> Entries {
    properties
        .get("config.extraConfig")
        .map(record::entries)
        .unwrap_or_default()
}

/// A machine, or what is missing to say how it ended.
pub enum Seen {
    Whole(Box<View>),
    /// It is off, and why is not known yet.
    Unsettled,
}

impl Core {
    /// What is written on a machine, if it is one of this VCH.
    pub fn record(&self, properties: &Properties) -> Option<Record> {
        Record::read(&entries(properties), &self.vch)
    }

    /// A machine.
    pub fn see(&self, id: &MachineId, properties: &Properties) -> Option<Seen> {
        let entries = entries(properties);
        let record = Record::read(&entries, &self.vch)?;
        let mut stopped = record.stopped;
        let power = match power(properties) {
            VirtualMachinePowerState::PoweredOn => PowerState::On,
            VirtualMachinePowerState::Suspended => PowerState::Suspended,
            _ => {
                let ended = self.cell(id).ended().clone();
                let ended = ended.filter(|ended| ended.started == record.started);
                let cause = match (ended, record.cause) {
                    _ if record.started == UNIX_EPOCH => StopCause::NeverStarted,
                    (Some(ended), _) => {
                        stopped = ended.stopped;
                        ended.cause
                    }
                    (None, Some(cause)) if record.stopped >= record.started => cause,
                    _ => return Some(Seen::Unsettled),
                };
                PowerState::Off { cause }
            }
        };
        // Powered on by somebody else it booted.
        let began = (record.started != UNIX_EPOCH).then(|| record.began.unwrap_or(Started::Booted));
        Some(Seen::Whole(Box::new(View {
            id: *id,
            spec: record.spec,
            power,
            metadata: record::metadata(&entries),
            created: record.created,
            started: record.started,
            stopped,
            began,
        })))
    }

    /// Every machine of this VCH, by identity; those that are not settled are off.
    pub fn views(&self) -> Vec<View> {
        let mut all: Vec<View> = self
            .identities()
            .into_iter()
            .filter_map(|id| {
                let (_, properties) = self.find(&id).ok()?;
                match self.see(&id, &properties)? {
                    Seen::Whole(view) => Some(*view),
                    Seen::Unsettled => None,
                }
            })
            .collect();
        all.sort_by_key(|view| view.id);
        all
    }

    /// The identities of this VCH's machines, but for those that are being destroyed.
    pub fn identities(&self) -> BTreeSet<MachineId> {
        self.collector.look(|objects| {
            objects
                .of_kind("VirtualMachine")
                .filter(|(_, properties)| {
                    self.record(properties)
                        .is_some_and(|record| !record.leaving)
                })
                .filter_map(|(_, properties)| identity(properties))
                .collect()
        })
    }

    /// One machine, settled.
    pub async fn inspect(&self, id: &MachineId) -> Result<View, Cause> {
        let (_, properties) = self.find(id)?;
        match self.see(id, &properties) {
            Some(Seen::Whole(view)) => return Ok(*view),
            Some(Seen::Unsettled) => {}
            None => return Err(Cause::NotFound { what: "machine" }),
        }
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        self.settle(id).await?;
        let (_, properties) = self.find(id)?;
        match self.see(id, &properties) {
            Some(Seen::Whole(view)) => Ok(*view),
            _ => Err(Cause::NotFound { what: "machine" }),
        }
    }

    /// All of them, settled.
    pub async fn list(&self) -> Result<Vec<View>, Cause> {
        let mut all = Vec::new();
        for id in self.identities() {
            match self.inspect(&id).await {
                Ok(view) => all.push(view),
                // Gone meanwhile.
                Err(Cause::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by_key(|view| view.id);
        Ok(all)
    }

    /// Refuses what a machine that is off cannot do.
    pub fn must_be_on(&self, id: &MachineId, properties: &Properties) -> Result<(), Cause> {
        if !matches!(
            power(properties),
            VirtualMachinePowerState::PoweredOff | VirtualMachinePowerState::Other(_)
        ) {
            return Ok(());
        }
        let state = match self.see(id, properties) {
            Some(Seen::Whole(view)) => view.power,
            _ => PowerState::Off {
                cause: StopCause::PoweredOff,
            },
        };
        Err(Cause::WrongState { state })
    }

    /// Waits until a machine has no power, or is gone; the reason why something else has to end.
    pub async fn until_off(&self, object: &ManagedObject) -> Cause {
        let off = self
            .collector
            .wait(|objects| match objects.get(object) {
                None => Some(Cause::NotFound { what: "machine" }),
                Some(properties) if power(properties) == VirtualMachinePowerState::PoweredOff => {
                    Some(Cause::WrongState {
                        state: PowerState::Off {
                            cause: StopCause::PoweredOff,
                        },
                    })
                }
                Some(_) => None,
            })
            .await;
        off.unwrap_or_else(|error| Cause::because("the server is not heard of any more", error))
    }
}
