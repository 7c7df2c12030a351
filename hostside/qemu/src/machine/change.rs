//! Disks, memory and metadata of a machine that may be running.

use std::time::Duration;

use hypervisor::{
    Applied, DiskSerial, DiskSource, DiskSpec, Hardware, Metadata, MetadataChange, Reconfigure,
    Started,
};
use serde_json::json;

use super::*;
use crate::argv;

/// How long a guest may take to let go of a disk.
const UNPLUG: Duration = Duration::from_secs(30);
/// What may be written on a machine: keys and values together, in bytes.
const METADATA_LIMIT: usize = 1 << 20;

impl Machine {
    /// Sets and removes metadata.
    pub(crate) async fn set_metadata(&self, changes: Vec<MetadataChange>) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        state.alive()?;
        let mut record = state.record.clone();
        for change in changes {
            match change {
                MetadataChange::Set { key, value } => record.metadata.insert(key, value),
                MetadataChange::Remove { key } => record.metadata.remove(&key),
            };
        }
        check_metadata(&record.metadata)?;
        self.commit(&mut state, record)
    }

    /// Changes CPUs or memory.
    pub(crate) async fn reconfigure(&self, change: Reconfigure) -> Result<Applied, Cause> {
        let mut state = self.state.lock().await;
        state.alive()?;
        let mut record = state.record.clone();
        let same_cpus = record.spec.cpus == change.cpus;
        record.spec.cpus = change.cpus;
        record.spec.memory = change.memory;
        let mut applied = Applied::AtPowerOn;
        if let Body::Running(running) = &state.body {
            let summary = running
                .qmp
                .ask("query-memory-size-summary")
                .await
                .map_err(refused)?;
            let booted = summary
                .get("base-memory")
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0);
            // A fork has no balloon (`argv`).
            let balloon = record.spec.hardware == Hardware::Virtio
                && !matches!(
                    record.began,
                    Some(Started::Forked { .. } | Started::ForkedRunning { .. })
                );
            if balloon && change.memory.bytes() <= booted {
                let arguments = json!({"value": change.memory.bytes()});
                running
                    .qmp
                    .execute("balloon", arguments)
                    .await
                    .map_err(refused)?;
                if same_cpus {
                    applied = Applied::Live;
                }
            }
        } else if matches!(state.body, Body::Off) {
            applied = Applied::AtPowerOn;
        }
        self.commit(&mut state, record)?;
        Ok(applied)
    }

    /// Adds a disk.
    pub(crate) async fn attach_disk(&self, mut disk: DiskSpec) -> Result<(), Cause> {
        resolve(&mut disk)?;
        let mut state = self.state.lock().await;
        state.alive()?;
        let mut record = state.record.clone();
        if record
            .spec
            .disks
            .iter()
            .any(|other| other.serial == disk.serial)
        {
            return Err(Cause::AlreadyExists {
                what: format!("disk {}", disk.serial),
            });
        }
        let before = record.clone();
        record.spec.disks.push(disk.clone());
        record.spec.check()?;
        // Written first: a record with a disk that is not plugged is mended by
        // the next power on, the reverse would lose the disk.
        self.commit(&mut state, record)?;
        let Body::Running(running) = &state.body else {
            return Ok(());
        };
        let plugged = plug(&running.qmp, before.spec.hardware, &disk).await;
        if plugged.is_err() {
            self.commit(&mut state, before)?;
        }
        plugged
    }

    /// Removes a disk.
    pub(crate) async fn detach_disk(&self, serial: &DiskSerial) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        state.alive()?;
        let mut record = state.record.clone();
        let before = record.spec.disks.len();
        record.spec.disks.retain(|disk| disk.serial != *serial);
        if record.spec.disks.len() == before {
            return Err(Cause::NotFound { what: "disk" });
        }
        if let Body::Running(running) = &state.body {
            let name = argv::disk_name(serial);
            let mut deleted = self.deleted.subscribe();
            running
                .qmp
                .execute("device_del", json!({"id": name}))
                .await
                .map_err(refused)?;
            let gone = async {
                loop {
                    match deleted.recv().await {
                        Ok(device) if device == name => return Ok(()),
                        Ok(_) => {}
                        // Too many at once to know which.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => {
                            return Err(refused(QmpError::Closed));
                        }
                    }
                }
            };
            tokio::select! {
                gone = tokio::time::timeout(UNPLUG, gone) => gone.map_err(|_| {
                    Cause::hypervisor("the guest has not let go of the disk; unmount it there and try again")
                })??,
                _ = running.process.ended() => return Err(refused(QmpError::Closed)),
            }
            for node in [name, argv::file_name(serial)] {
                running
                    .qmp
                    .execute("blockdev-del", json!({"node-name": node}))
                    .await
                    .map_err(refused)?;
            }
        }
        self.commit(&mut state, record)
    }

    /// Writes a changed record, then shows it.
    fn commit(&self, state: &mut State, record: Record) -> Result<(), Cause> {
        self.directory.write(&record)?;
        self.show(&record);
        state.record = record;
        Ok(())
    }
}

impl State {
    fn alive(&self) -> Result<(), Cause> {
        match &self.body {
            Body::Destroyed => Err(Cause::NotFound { what: "machine" }),
            Body::Off | Body::Running(_) | Body::Mute { .. } => Ok(()),
        }
    }
}

/// Adds a disk's nodes and device to a running QEMU, all or none.
async fn plug(qmp: &Qmp, hardware: Hardware, disk: &DiskSpec) -> Result<(), Cause> {
    let mut made: Vec<String> = Vec::new();
    let result = async {
        for node in argv::nodes(disk) {
            let name = node
                .get("node-name")
                .and_then(|name| name.as_str())
                .unwrap_or_default()
                .to_owned();
            qmp.execute("blockdev-add", node).await.map_err(refused)?;
            made.push(name);
        }
        match hardware {
            Hardware::Virtio => plug_into_slot(qmp, disk).await,
            Hardware::Vmware => qmp
                .execute("device_add", argv::device(hardware, disk, None))
                .await
                .map(drop)
                .map_err(refused),
        }
    }
    .await;
    if result.is_err() {
        for node in made.into_iter().rev() {
            let _ = qmp
                .execute("blockdev-del", json!({"node-name": node}))
                .await;
        }
    }
    result
}

/// Plugs a virtio disk into the first slot that takes it.
async fn plug_into_slot(qmp: &Qmp, disk: &DiskSpec) -> Result<(), Cause> {
    for slot in 0..argv::HOT_PLUG_MOST {
        let device = argv::device(Hardware::Virtio, disk, Some(slot));
        match qmp.execute("device_add", device).await {
            Ok(_) => return Ok(()),
            Err(QmpError::Refused { description, .. }) if description.contains("in use by") => {}
            Err(QmpError::Refused { description, .. }) if description.contains("not found") => {
                break;
            }
            Err(error) => return Err(refused(error)),
        }
    }
    Err(Cause::Unsupported {
        driver: "qemu",
        what: "attach another disk while the machine runs".into(),
        why: "no hot-plug slot is free; attach it while the machine is off".into(),
    })
}

/// Whether metadata is small enough to be kept with every change.
pub(crate) fn check_metadata(metadata: &Metadata) -> Result<(), Cause> {
    let size: usize = metadata
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > METADATA_LIMIT {
        return Err(Cause::hypervisor(format!(
            "{size} bytes of metadata: it must be at most {METADATA_LIMIT}"
        )));
    }
    Ok(())
}

/// Makes a disk's file name absolute: QEMU runs in a directory of its own.
pub(crate) fn resolve(disk: &mut DiskSpec) -> Result<(), Cause> {
    match &mut disk.source {
        DiskSource::File(path) => absolute(path),
        DiskSource::Datastore { .. } => Err(Cause::Unsupported {
            driver: "qemu",
            what: "use a disk of a datastore".into(),
            why: "its disks are files of this host".into(),
        }),
    }
}

/// Makes a file name absolute, and refuses one QEMU cannot be told (its JSON
/// is UTF-8).
pub(crate) fn absolute(path: &mut std::path::PathBuf) -> Result<(), Cause> {
    let fail = |source| Cause::File {
        what: "cannot use the file name",
        path: path.clone(),
        source,
    };
    if path.to_str().is_none() {
        return Err(fail(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is not UTF-8",
        )));
    }
    *path = std::path::absolute(&*path).map_err(fail)?;
    Ok(())
}
