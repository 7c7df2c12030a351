//! Changes to machines: CPUs, memory, disks, metadata.

use std::sync::Arc;

use hypervisor::{Applied, Cause, DiskSerial, DiskSpec, MachineId, MetadataChange, Reconfigure};

use super::record::{self, Edit};
use super::{Core, cause, create, devices, view};
use crate::session::chain;
use crate::types::{VirtualMachineConfigSpec, VirtualMachinePowerState as Power};

impl Core {
    pub async fn reconfigure(
        self: Arc<Self>,
        id: &MachineId,
        change: Reconfigure,
    ) -> Result<Applied, Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        let mut spec = self
            .record(&properties)
            .ok_or(Cause::NotFound { what: "machine" })?
            .spec;
        spec.cpus = change.cpus;
        spec.memory = change.memory;
        spec.check()?;
        let entries = view::entries(&properties);
        let text = create::spec_text(&spec)?;
        let written = |hardware: VirtualMachineConfigSpec| VirtualMachineConfigSpec {
            extraConfig: Edit::default().set(record::SPEC, &text, &entries).options(),
            ..hardware
        };
        let number = |name: &str| {
            let hardware = properties.get("config.hardware")?;
            hardware.text_of(name)?.trim().parse::<i64>().ok()
        };
        let (cpus, memory) = (create::cpus(&spec), create::memory_mb(&spec));
        let more_cpus = number("numCPU").map(|now| i64::from(cpus).cmp(&now));
        let more_memory = number("memoryMB").map(|now| memory.cmp(&now));
        let hardware = VirtualMachineConfigSpec {
            numCPUs: more_cpus.is_none_or(|order| order.is_ne()).then_some(cpus),
            memoryMB: more_memory
                .is_none_or(|order| order.is_ne())
                .then_some(memory),
            ..VirtualMachineConfigSpec::default()
        };
        let failed = |error| cause("the server does not change it", error);
        let on = view::power(&properties) == Power::PoweredOn;
        let grows = more_cpus.is_some_and(|order| order.is_ge())
            && more_memory.is_some_and(|order| order.is_ge());
        if on && grows {
            match self
                .reconfigure_machine(&object, written(hardware.clone()))
                .await
            {
                Ok(()) => return Ok(Applied::Live),
                // A guest or licence that takes no more while it runs; the next power on makes it so.
                Err(error) if error.fault().is_some() => {
                    tracing::info!(machine = %id, error = %chain(&error), "it cannot grow while it runs");
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let hardware = match view::power(&properties) {
            Power::PoweredOff => hardware,
            _ => VirtualMachineConfigSpec::default(),
        };
        let changed = self.reconfigure_machine(&object, written(hardware)).await;
        changed.map_err(failed).map(|()| Applied::AtPowerOn)
    }

    pub async fn attach_disk(self: Arc<Self>, id: &MachineId, disk: DiskSpec) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        let mut spec = self
            .record(&properties)
            .ok_or(Cause::NotFound { what: "machine" })?
            .spec;
        if spec.disks.iter().any(|other| other.serial == disk.serial) {
            return Err(Cause::AlreadyExists {
                what: format!("disk {}", disk.serial),
            });
        }
        let entries = view::entries(&properties);
        let hardware = properties.get("config.hardware");
        let attached = hardware.map(devices::disks).unwrap_or_default();
        let mut table = table(&entries);
        let taken = |target: i32| {
            attached.iter().any(|disk| disk.target == target)
                || table.iter().any(|(other, _)| *other == target)
        };
        let target = devices::free_target(taken)?;
        let controller = hardware
            .and_then(devices::controller)
            .ok_or_else(|| Cause::hypervisor("the machine has lost its SCSI controller"))?;
        let prepared = self.disks.prepare(&self.collector, &disk).await?;
        table.push((target, disk.serial.clone()));
        let device = devices::attach(-1, controller, target, &disk, &prepared);
        spec.disks.push(disk);
        spec.check()?;
        let change = VirtualMachineConfigSpec {
            deviceChange: vec![device],
            extraConfig: Edit::default()
                .plain(record::DISKS, devices::write_table(&table))
                .set(record::SPEC, &create::spec_text(&spec)?, &entries)
                .options(),
            ..VirtualMachineConfigSpec::default()
        };
        let changed = self.reconfigure_machine(&object, change).await;
        changed.map_err(|error| cause("the server does not attach it", error))?;
        self.disks.made(&prepared);
        Ok(())
    }

    pub async fn detach_disk(
        self: Arc<Self>,
        id: &MachineId,
        serial: &DiskSerial,
    ) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        let mut spec = self
            .record(&properties)
            .ok_or(Cause::NotFound { what: "machine" })?
            .spec;
        let entries = view::entries(&properties);
        let mut table = table(&entries);
        let place = table.iter().position(|(_, other)| other == serial);
        let known = spec.disks.iter().position(|disk| disk.serial == *serial);
        let (Some(place), Some(known)) = (place, known) else {
            return Err(Cause::NotFound { what: "disk" });
        };
        let (target, _) = table.remove(place);
        spec.disks.remove(known);
        let attached = properties
            .get("config.hardware")
            .map(devices::disks)
            .unwrap_or_default();
        let device = attached.iter().find(|disk| disk.target == target);
        let change = VirtualMachineConfigSpec {
            deviceChange: device.map(devices::detach).into_iter().collect(),
            extraConfig: Edit::default()
                .plain(record::DISKS, devices::write_table(&table))
                .set(record::SPEC, &create::spec_text(&spec)?, &entries)
                .options(),
            ..VirtualMachineConfigSpec::default()
        };
        let changed = self.reconfigure_machine(&object, change).await;
        changed.map_err(|error| cause("the server does not detach it", error))
    }

    pub async fn set_metadata(
        self: Arc<Self>,
        id: &MachineId,
        changes: Vec<MetadataChange>,
    ) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        let entries = view::entries(&properties);
        // The last change of a key is the one that counts.
        let mut last: std::collections::BTreeMap<String, Option<String>> = Default::default();
        for change in changes {
            match change {
                MetadataChange::Set { key, value } => {
                    record::check(&key, &value)?;
                    last.insert(key, Some(value))
                }
                MetadataChange::Remove { key } => last.insert(key, None),
            };
        }
        let edit = last.iter().fold(Edit::default(), |edit, (key, value)| {
            let key = record::metadata_key(key);
            match value {
                Some(value) => edit.set(&key, value, &entries),
                None => edit.remove(&key, &entries),
            }
        });
        let options = edit.options();
        if options.is_empty() {
            return Ok(());
        }
        let spec = VirtualMachineConfigSpec {
            extraConfig: options,
            ..VirtualMachineConfigSpec::default()
        };
        let changed = self.reconfigure_machine(&object, spec).await;
        changed.map_err(|error| cause("the server does not write it", error))
    }
}

fn table(entries: &record::Entries) -> Vec<(i32, DiskSerial)> {
    entries
        .get(record::DISKS)
        .map(|text| devices::read_table(text))
        .unwrap_or_default()
}
