//! What an earlier owner left half done.

use std::collections::HashSet;
use std::sync::Arc;

use hypervisor::{Cause, MachineId, Repair};

use super::view::{self, Seen};
use super::{Core, cause, devices, lease};
use crate::types::{Destroy_Task, ManagedObject, VirtualMachinePowerState};

impl Core {
    pub async fn reconcile(self: Arc<Self>) -> Result<Vec<Repair>, Cause> {
        let mut repairs = self.repair_forks().await?;
        self.repair_templates().await?;
        for (id, object, leaving) in self.leftovers() {
            match id.filter(|_| leaving) {
                Some(id) => {
                    let cell = self.cell(&id);
                    let _one = cell.operation.lock().await;
                    match self.destroy_locked(&id).await {
                        Ok(()) | Err(Cause::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    repairs.push(Repair {
                        id,
                        what: "removed a machine half removed".into(),
                    });
                }
                None => {
                    let destroy = Destroy_Task {
                        _this: object.clone(),
                    };
                    let destroyed = self.task(&destroy).await;
                    destroyed
                        .map_err(|error| cause("an upload's machine cannot be removed", error))?;
                    tracing::info!(machine = %object, "removed what was left of an upload");
                }
            }
        }
        for id in self.identities() {
            let unsettled = self.find(&id).is_ok_and(|(_, properties)| {
                matches!(self.see(&id, &properties), Some(Seen::Unsettled))
            });
            if unsettled {
                self.inspect(&id).await?;
                repairs.push(Repair {
                    id,
                    what: "wrote down why it is off, which nobody saw".into(),
                });
            }
        }
        for file in self.sweep().await {
            tracing::info!(file, "removed a disk whose container is gone");
        }
        Ok(repairs)
    }

    /// Machines half removed, and those of uploads that nobody goes on with.
    fn leftovers(&self) -> Vec<(Option<MachineId>, ManagedObject, bool)> {
        let sending = self.disks.is_sending();
        self.collector.look(|objects| {
            objects
                .of_kind("VirtualMachine")
                .filter_map(|(object, properties)| {
                    let record = self.record(properties);
                    let leaving = record.as_ref().is_some_and(|record| record.leaving);
                    let name = properties.get("name").map_or("", |node| &node.text);
                    let upload = !sending
                        && record.is_none()
                        && name.starts_with(lease::UPLOAD)
                        && view::power(properties) == VirtualMachinePowerState::PoweredOff;
                    (leaving || upload)
                        .then(|| (view::identity(properties), object.clone(), leaving))
                })
                .collect()
        })
    }

    /// Removes from the datastore what belonged to local disks that are gone.
    pub async fn sweep(&self) -> Vec<String> {
        let used: HashSet<String> = self.collector.look(|objects| {
            objects
                .of_kind("VirtualMachine")
                .filter_map(|(_, properties)| properties.get("config.hardware"))
                .flat_map(devices::disks)
                .map(|disk| disk.file)
                .collect()
        });
        self.disks.sweep(&self.collector, &used).await
    }

    /// The same, while nobody waits: a container's local disk is removed after its machine, so the sweep
    /// after the next create or destroy finds it gone.
    pub fn sweep_soon(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(core) = core.upgrade() else { return };
            let removed = core.sweep().await;
            if !removed.is_empty() {
                tracing::debug!(?removed, "removed disks whose containers are gone");
            }
        });
    }
}
