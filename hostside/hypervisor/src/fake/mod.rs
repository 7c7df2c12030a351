//! The in-process hypervisor: machines are tasks, and inside each the real
//! wire's guest end speaks for a simulated tether on a simulated kernel: file
//! systems in memory, processes, signals, pipes and terminals, a shell and what
//! busybox has (`programs::NAMES` lists them).
//!
//! A [`Host`] stands for the machine room: it holds the machines and outlives
//! the drivers opened on it, as QEMU's processes and an ESXi host outlive a
//! controller. Dropping a [`Fake`] and opening another is a controller's kill
//! and restart. Everything that goes wrong, goes wrong on demand: see
//! [`Host::fault`], [`Host::crash`], [`Host::fail_next`],
//! [`Host::fault_at_boot`].
//!
//! ```text
//! guest     the machine's task: carrier, power, faults
//! tether    what the wire asks, done on the kernel
//! kernel    processes, scheduling, signals, descriptors, terminals
//! files     disks in memory, mounts, what images hold
//! shell     the POSIX shell          programs   the rest of /bin
//! ```
//!
//! Disks belong to the [`Host`]: what a container wrote is there after a power
//! cycle and after a controller's restart. What is on them at first comes from
//! [`Host::with_images`], or is a small tree like busybox's.
//!
//! What it does not do: read disk files, boot kernels, move packets, fork.

mod files;
mod guest;
mod kernel;
mod machine;
mod programs;
#[cfg(test)]
mod script;
mod shell;
mod tether;

pub use files::image::{ImageFile, Images};
pub use guest::Fault;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{
    Applied, Capabilities, Cause, Channel, ChannelKey, ChannelKind, DiskSerial, DiskSpec, Error,
    EventSender, Events, Fork, ForkParent, Hardware, Hypervisor, Machine, MachineId, MachineSpec,
    Metadata, MetadataChange, Notice, PowerOff, PowerState, Reconfigure, Repair, Result,
    Statistics, StopCause, Template, TemplateId,
};
use machine::FakeMachine;

const DRIVER: &str = "fake";

/// The bytes `flood` writes, over and over: a period that divides no buffer.
pub const FLOOD_PERIOD: usize = 251;

/// The byte that the simulated program `flood [N]` writes at this offset of its
/// output.
pub fn flood_byte(offset: u64) -> u8 {
    // The remainder is below 251.
    (offset % FLOOD_PERIOD as u64) as u8
}

/// An operation that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Hypervisor::create`].
    Create,
    /// [`Hypervisor::power_on`].
    PowerOn,
    /// [`Hypervisor::connect_channel`].
    ConnectChannel,
    /// [`Hypervisor::destroy`].
    Destroy,
    /// [`Hypervisor::attach_disk`].
    AttachDisk,
}

/// The machine room.
#[derive(Debug, Clone, Default)]
pub struct Host(Arc<Room>);

#[derive(Debug, Default)]
struct Room {
    machines: Mutex<BTreeMap<MachineId, Arc<FakeMachine>>>,
    events: EventSender,
    failures: Mutex<VecDeque<(Operation, String)>>,
    disks: Arc<files::image::Disks>,
}

impl Host {
    /// A room whose disks hold what `images` says of the disk file's path, when
    /// they are first used.
    pub fn with_images(images: Images) -> Self {
        Self(Arc::new(Room {
            disks: Arc::new(files::image::Disks::new(Some(images))),
            ..Room::default()
        }))
    }

    /// A driver on this room.
    pub fn open(&self) -> Fake {
        Fake {
            room: self.0.clone(),
        }
    }

    /// Makes something go wrong in a running machine.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`] or [`Cause::WrongState`].
    pub fn fault(&self, id: &MachineId, fault: Fault) -> std::result::Result<(), Cause> {
        self.0.machine(id)?.control(guest::Control::Fault(fault))
    }

    /// Makes something go wrong at every boot of a machine from the next on,
    /// before its first instruction.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`].
    pub fn fault_at_boot(
        &self,
        id: &MachineId,
        faults: Vec<Fault>,
    ) -> std::result::Result<(), Cause> {
        self.0.machine(id)?.set_boot_faults(faults);
        Ok(())
    }

    /// Ends a machine's hypervisor process.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`] or [`Cause::WrongState`].
    pub fn crash(&self, id: &MachineId) -> std::result::Result<(), Cause> {
        let cause = StopCause::HypervisorFailed {
            detail: "it was made to crash".into(),
        };
        self.0.machine(id)?.cut(cause)
    }

    /// Makes the next such operation fail; several wait in order.
    pub fn fail_next(&self, operation: Operation, message: impl Into<String>) {
        lock(&self.0.failures).push_back((operation, message.into()));
    }

    /// Removes a machine as someone else would.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`].
    pub fn remove(&self, id: &MachineId) -> std::result::Result<(), Cause> {
        self.0.destroy(id)
    }
}

/// Nothing that panics runs under the locks of this module.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    fn machine(&self, id: &MachineId) -> std::result::Result<Arc<FakeMachine>, Cause> {
        lock(&self.machines)
            .get(id)
            .cloned()
            .ok_or(Cause::NotFound { what: "machine" })
    }

    fn fail(&self, operation: Operation) -> std::result::Result<(), Cause> {
        let mut failures = lock(&self.failures);
        match failures
            .iter()
            .position(|(failing, _)| *failing == operation)
        {
            Some(at) => {
                let message = failures.remove(at).map(|(_, message)| message);
                Err(Cause::hypervisor(message.unwrap_or_default()))
            }
            None => Ok(()),
        }
    }

    fn create(
        &self,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> std::result::Result<(), Cause> {
        self.fail(Operation::Create)?;
        spec.check()?;
        let id = spec.id;
        let mut machines = lock(&self.machines);
        if machines.contains_key(&id) {
            return Err(Cause::AlreadyExists {
                what: format!("machine {id}"),
            });
        }
        machines.insert(
            id,
            FakeMachine::new(spec, key, metadata, self.events.clone(), self.disks.clone()),
        );
        self.events.send(id, Notice::Created);
        Ok(())
    }

    fn destroy(&self, id: &MachineId) -> std::result::Result<(), Cause> {
        let machine = self.machine(id)?;
        // Off already is well.
        let _ = machine.cut(StopCause::PoweredOff);
        if lock(&self.machines).remove(id).is_none() {
            return Err(Cause::NotFound { what: "machine" });
        }
        self.events.send(*id, Notice::Destroyed);
        Ok(())
    }
}

/// The in-process driver.
#[derive(Debug)]
pub struct Fake {
    room: Arc<Room>,
}

impl Fake {
    fn unsupported(what: &str) -> Cause {
        Cause::Unsupported {
            driver: DRIVER,
            what: what.to_owned(),
            why: "it simulates machines one by one".to_owned(),
        }
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fork: false,
            cpu_hot_add: true,
            memory_hot_add: true,
            balloon: true,
            disk_hot_plug: true,
            hardware: vec![Hardware::Virtio, Hardware::Vmware],
            channels: vec![ChannelKind::Virtio, ChannelKind::Vsock, ChannelKind::Serial],
            user_network: true,
            port_groups: true,
            accelerated: false,
        }
    }

    async fn create(
        &self,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> Result<MachineId> {
        let (id, name) = (spec.id, spec.name.clone());
        self.room
            .create(spec, key, metadata)
            .map_err(|source| Error::Create { id, name, source })?;
        Ok(id)
    }

    async fn destroy(&self, id: &MachineId) -> Result<()> {
        let destroyed = self
            .room
            .fail(Operation::Destroy)
            .and_then(|()| self.room.destroy(id));
        destroyed.map_err(|source| Error::Destroy { id: *id, source })
    }

    async fn power_on(&self, id: &MachineId) -> Result<()> {
        let on = self
            .room
            .fail(Operation::PowerOn)
            .and_then(|()| self.room.machine(id)?.power_on());
        on.map_err(|source| Error::PowerOn { id: *id, source })
    }

    async fn power_off(&self, id: &MachineId, how: PowerOff) -> Result<()> {
        let off = || {
            let machine = self.room.machine(id)?;
            if machine.view().power.is_off() {
                return Ok(());
            }
            match how {
                PowerOff::Ask => machine.control(guest::Control::PowerButton),
                PowerOff::Cut => machine.cut(StopCause::PoweredOff),
            }
        };
        off().map_err(|source| Error::PowerOff { id: *id, source })
    }

    async fn suspend(&self, id: &MachineId) -> Result<()> {
        let suspend = async { self.room.machine(id)?.freeze(PowerState::Suspended).await };
        suspend
            .await
            .map_err(|source| Error::Suspend { id: *id, source })
    }

    async fn resume(&self, id: &MachineId) -> Result<()> {
        let resume = async { self.room.machine(id)?.freeze(PowerState::On).await };
        resume
            .await
            .map_err(|source| Error::Resume { id: *id, source })
    }

    async fn reconfigure(&self, id: &MachineId, change: Reconfigure) -> Result<Applied> {
        let machine = self
            .room
            .machine(id)
            .map_err(|source| Error::Reconfigure { id: *id, source })?;
        Ok(machine.reconfigure(change))
    }

    async fn attach_disk(&self, id: &MachineId, disk: DiskSpec) -> Result<()> {
        let serial = disk.serial.clone();
        let attached = self
            .room
            .fail(Operation::AttachDisk)
            .and_then(|()| self.room.machine(id)?.attach_disk(disk));
        attached.map_err(|source| Error::AttachDisk {
            id: *id,
            serial,
            source,
        })
    }

    async fn detach_disk(&self, id: &MachineId, serial: &DiskSerial) -> Result<()> {
        let detached = self
            .room
            .machine(id)
            .and_then(|machine| machine.detach_disk(serial));
        detached.map_err(|source| Error::DetachDisk {
            id: *id,
            serial: serial.clone(),
            source,
        })
    }

    async fn set_metadata(&self, id: &MachineId, changes: Vec<MetadataChange>) -> Result<()> {
        let machine = self
            .room
            .machine(id)
            .map_err(|source| Error::SetMetadata { id: *id, source })?;
        machine.set_metadata(changes);
        Ok(())
    }

    async fn inspect(&self, id: &MachineId) -> Result<Machine> {
        let machine = self
            .room
            .machine(id)
            .map_err(|source| Error::Inspect { id: *id, source })?;
        Ok(machine.view())
    }

    async fn list(&self) -> Result<Vec<Machine>> {
        Ok(lock(&self.room.machines)
            .values()
            .map(|machine| machine.view())
            .collect())
    }

    async fn statistics(&self, id: &MachineId) -> Result<Statistics> {
        let statistics = self
            .room
            .machine(id)
            .and_then(|machine| machine.statistics());
        statistics.map_err(|source| Error::Statistics { id: *id, source })
    }

    async fn connect_channel(&self, id: &MachineId) -> Result<Channel> {
        let connected = self
            .room
            .fail(Operation::ConnectChannel)
            .and_then(|()| self.room.machine(id)?.connect());
        connected.map_err(|source| Error::ConnectChannel { id: *id, source })
    }

    async fn console(&self, id: &MachineId) -> Result<Vec<u8>> {
        let machine = self
            .room
            .machine(id)
            .map_err(|source| Error::Console { id: *id, source })?;
        Ok(machine.console())
    }

    async fn follow_console(&self, id: &MachineId) -> Result<mpsc::Receiver<Vec<u8>>> {
        let followed = self
            .room
            .machine(id)
            .and_then(|machine| machine.follow_console());
        followed.map_err(|source| Error::Console { id: *id, source })
    }

    fn events(&self) -> Events {
        self.room.events.listen()
    }

    async fn freeze(&self, id: &MachineId, template: TemplateId) -> Result<Template> {
        Err(Error::Freeze {
            id: *id,
            template,
            source: Self::unsupported("freeze a machine into a template"),
        })
    }

    async fn fork(&self, parent: &ForkParent, _children: Vec<Fork>) -> Result<Vec<MachineId>> {
        Err(Error::Fork {
            parent: parent.clone(),
            source: Self::unsupported("fork"),
        })
    }

    async fn reconcile(&self) -> Result<Vec<Repair>> {
        Ok(Vec::new())
    }
}
