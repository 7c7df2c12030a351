//! A helper containerVM: a machine with a stopped container's disk and nothing to run, through which its
//! files are read and written. It boots from our own image and runs no instruction of the container's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hypervisor::{Cause, ChannelKey, DiskSource, Hypervisor, MachineId, PowerOff};
use tether_link::Link;
use tether_wire::message::{Action, ProcessId, ShutdownSpec};
use tokio::time::timeout;

use crate::boot::{self, NotBegun, chain};
use crate::cell::Cell;
use crate::error::Error;
use crate::identity::ContainerId;
use crate::layer::Layer;
use crate::{machine, record};

/// How long its guest may take to unmount the disk.
const UNMOUNT: Duration = Duration::from_secs(30);
const SIGKILL: u8 = 9;

/// One that is on.
#[derive(Debug)]
pub(crate) struct Helper {
    pub link: Link,
    machine: MachineId,
    container: ContainerId,
    next_process: AtomicU32,
}

impl Helper {
    /// Boots one for a container that is off.
    pub async fn boot(layer: &Layer, cell: &Cell) -> Result<Self, Error> {
        let id = cell.id;
        let container = cell.container();
        let machine = MachineId::random().map_err(Error::Random)?;
        // A fork gave it another disk than it was made with.
        let own = layer.driver.inspect(&record::machine_id(&id)).await;
        let own = own.map_err(Error::hypervisor(id))?.spec.disks;
        let disk = match own.first().map(|disk| &disk.source) {
            Some(DiskSource::File(path)) => path.clone(),
            _ => cell.disk(),
        };
        let spec = layer
            .mold
            .helper(machine, &id, container.memory, disk)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let key = ChannelKey::random().map_err(Error::Random)?;
        let of_driver = |source| Error::hypervisor(id)(source);
        let metadata = record::helper_metadata(&id);
        let driver = &layer.driver;
        driver
            .create(spec, key, metadata)
            .await
            .map_err(of_driver)?;
        let booted = async {
            driver.power_on(&machine).await.map_err(of_driver)?;
            let failed = |why: NotBegun| Error::Start {
                id,
                failure: why.into_failure(),
            };
            let link = boot::connect(driver, machine, [0, 0])
                .await
                .map_err(failed)?;
            let setup = machine::helper_setup(&id).map_err(Error::Random)?;
            boot::prepare(&link, setup).await.map_err(failed)?;
            Ok(link)
        };
        match booted.await {
            Ok(link) => Ok(Self {
                link,
                machine,
                container: id,
                next_process: AtomicU32::new(0),
            }),
            Err(error) => {
                destroy(driver, machine, id).await;
                Err(error)
            }
        }
    }

    /// A number for one more operation.
    pub fn process(&self) -> ProcessId {
        ProcessId(self.next_process.fetch_add(1, Ordering::Relaxed))
    }

    /// Unmounts the disk, so that everything written is on it, and removes the machine.
    pub async fn end(self, driver: &Arc<dyn Hypervisor>) {
        let spec = ShutdownSpec {
            signal: SIGKILL,
            grace_ms: 0,
            action: Action::PowerOff,
        };
        // Its answer comes when the disk is unmounted.
        match timeout(UNMOUNT, self.link.shutdown(spec)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(container = %self.container, error = chain(&error), "its helper did not shut down");
            }
            Err(_) => {
                tracing::warn!(container = %self.container, "its helper did not shut down in time")
            }
        }
        destroy(driver, self.machine, self.container).await;
    }
}

async fn destroy(driver: &Arc<dyn Hypervisor>, machine: MachineId, container: ContainerId) {
    // A machine that is off, or gone, is no failure.
    let _ = driver.power_off(&machine, PowerOff::Cut).await;
    match driver.destroy(&machine).await {
        Err(error) if !matches!(error.cause(), Cause::NotFound { .. }) => {
            tracing::error!(%container, error = chain(&error), "its helper is left behind until the next start");
        }
        _ => {}
    }
}
