//! The driver: every machine of one VCH.

mod fork;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Applied, Attachment, Boot, Bystander, Capabilities, Cause, Channel, ChannelKey, ChannelKind,
    DiskSerial, DiskSpec, Error, EventSender, Events, Fork, ForkParent, Forked, Hardware,
    Hypervisor, Machine as View, MachineId, MachineSpec, Metadata, MetadataChange, Notice,
    PowerOff, Reconfigure, Repair, Result, Statistics, Template, TemplateId,
};
use tokio::sync::mpsc;

use crate::accel::Accelerator;
use crate::directory::{self, Directory, Record};
use crate::machine::{Machine, absolute, check_metadata, resolve};
use crate::process;
use crate::rehearsal::Rehearsal;
use crate::spare::{SpareLimits, Spares};
use crate::template::Templates;
use crate::tsc::Measurement;
use crate::vsock::VsockCarrier;

/// How often a VCH that has an owner is tried again, 20 ms apart: a process that the owner was about to start
/// when it was killed holds its lock until it executes its program.
const OWNER_PATIENCE: u32 = 50;

const DRIVER: &str = "qemu";

/// What the driver needs to know of its host.
#[derive(Debug, Clone)]
pub struct Options {
    /// QEMU.
    pub program: PathBuf,
    /// How guest instructions run.
    pub accelerator: Accelerator,
    /// What carries channels by vsock.
    pub vsock: VsockCarrier,
    /// Slots of a machine with virtio hardware for disks that come while it
    /// runs, at most 8. Each costs a boot some 10 ms under emulation.
    pub hot_plug_slots: u8,
    /// UEFI's code and the template of its variables.
    pub uefi: (PathBuf, PathBuf),
    /// Where the templates are that machines are forked from, on a tmpfs; without, all boot.
    pub templates: Option<PathBuf>,
    /// How many forks may be started ahead of need.
    pub spares: SpareLimits,
    /// What they are led through; without, they stand still.
    pub rehearsal: Option<Rehearsal>,
}

impl Default for Options {
    /// QEMU from `PATH`, in emulation, with Debian's UEFI (package `ovmf`), without templates.
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            accelerator: Accelerator::Tcg,
            vsock: VsockCarrier::detect(None),
            hot_plug_slots: 0,
            uefi: (
                "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
                "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
            ),
            templates: None,
            spares: SpareLimits::default(),
            rehearsal: None,
        }
    }
}

/// The QEMU driver of one VCH. Dropping it leaves its machines running.
#[derive(Debug)]
pub struct Qemu {
    machines_directory: PathBuf,
    options: Arc<Options>,
    tsc: Measurement,
    spares: Arc<Spares>,
    events: EventSender,
    machines: Mutex<BTreeMap<MachineId, Arc<Machine>>>,
    /// What opening repaired, for the first `reconcile`.
    repairs: Mutex<Vec<Repair>>,
    /// Held as long as this owns the VCH.
    _owner: File,
}

impl Qemu {
    /// Opens the VCH in this state directory, making it if need be, and takes
    /// over the machines an earlier owner left.
    ///
    /// # Errors
    ///
    /// [`Error::Open`]: the directory cannot be used, or another process owns
    /// it.
    pub async fn open(state: impl Into<PathBuf>, options: Options) -> Result<Self> {
        let state = state.into();
        let place = state.display().to_string();
        Self::open_here(state, options)
            .await
            .map_err(|source| Error::Open {
                driver: DRIVER,
                place,
                source,
            })
    }

    /// How many QEMUs started ahead of need are ready ([`Options::spares`]).
    pub fn spares_ready(&self) -> usize {
        self.spares.ready()
    }

    /// Ends them. There are none from then on.
    pub fn end_spares(&self) {
        self.spares.close();
    }

    async fn open_here(state: PathBuf, options: Options) -> std::result::Result<Self, Cause> {
        let machines = state.join("machines");
        fs::create_dir_all(&machines).map_err(|source| Cause::File {
            what: "cannot make directory",
            path: machines.clone(),
            source,
        })?;
        // As the kernel will call it (`process::find`).
        let machines_directory = machines.canonicalize().map_err(|source| Cause::File {
            what: "cannot find",
            path: machines,
            source,
        })?;
        let lock = state.join("owner.lock");
        let owner = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock)
            .map_err(|source| Cause::File {
                what: "cannot open",
                path: lock.clone(),
                source,
            })?;
        let mut locked = owner.try_lock();
        for _ in 0..OWNER_PATIENCE {
            if !matches!(locked, Err(fs::TryLockError::WouldBlock)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            locked = owner.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Cause::hypervisor(
                    "another process owns this VCH; speak to it, or wait until it has ended",
                ));
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(Cause::File {
                    what: "cannot lock",
                    path: lock,
                    source,
                });
            }
        }
        let options = Arc::new(options);
        let driver = Self {
            spares: Spares::new(machines_directory.clone(), options.clone()),
            machines_directory,
            options,
            tsc: Measurement::begin(),
            events: EventSender::default(),
            machines: Mutex::default(),
            repairs: Mutex::default(),
            _owner: owner,
        };
        driver.adopt().await?;
        Ok(driver)
    }

    /// Takes over what is there.
    async fn adopt(&self) -> std::result::Result<(), Cause> {
        let listing = directory::list(&self.machines_directory)?;
        let mut processes: BTreeMap<(MachineId, process::Role), process::Process> = self
            .processes()?
            .into_iter()
            .filter(|found| !found.removed && found.directory == self.home(&found.id))
            .map(|found| ((found.id, found.role), found.process))
            .collect();
        let mut adopted = Vec::new();
        for (id, path) in listing.machines {
            let read =
                Directory::open(path).and_then(|directory| Ok((directory.read()?, directory)));
            match read {
                Ok((record, directory)) => {
                    let machine = Machine::new(
                        directory,
                        record,
                        self.options.clone(),
                        self.tsc,
                        self.spares.clone(),
                        self.events.clone(),
                    );
                    self.machines().insert(id, machine.clone());
                    let qemu = processes.remove(&(id, process::Role::Qemu));
                    let vsock = processes.remove(&(id, process::Role::Vsock));
                    adopted.push(tokio::spawn(async move {
                        (id, machine.adopt(qemu, vsock).await)
                    }));
                }
                Err(error) => self.repaired(
                    id,
                    format!("left alone, for its record cannot be read: {error}"),
                ),
            }
        }
        for machine in adopted {
            if let Ok((id, Some(what))) = machine.await {
                self.repaired(id, what);
            }
        }
        Ok(())
    }

    /// Where a whole machine is.
    fn home(&self, id: &MachineId) -> PathBuf {
        self.machines_directory.join(id.to_string())
    }

    fn processes(&self) -> std::result::Result<Vec<process::Found>, Cause> {
        process::find(&self.machines_directory).map_err(|source| Cause::File {
            what: "cannot look for processes in",
            path: "/proc".into(),
            source,
        })
    }

    fn repaired(&self, id: MachineId, what: String) {
        tracing::info!(machine = %id, what, "repaired");
        self.repairs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Repair { id, what });
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<MachineId, Arc<Machine>>> {
        // Nothing that can panic runs under this lock.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, id: &MachineId) -> std::result::Result<Arc<Machine>, Cause> {
        self.machines()
            .get(id)
            .cloned()
            .ok_or(Cause::NotFound { what: "machine" })
    }

    /// Runs an operation on a machine to its end, whether or not the caller
    /// waits for it: a half-started QEMU is nobody's.
    async fn on<T, F>(
        &self,
        id: &MachineId,
        operation: impl FnOnce(Arc<Machine>) -> F,
    ) -> std::result::Result<T, Cause>
    where
        T: Send + 'static,
        F: Future<Output = std::result::Result<T, Cause>> + Send + 'static,
    {
        let operation = operation(self.machine(id)?);
        tokio::spawn(operation)
            .await
            .unwrap_or_else(|error| Err(Cause::because("the driver failed", error)))
    }

    fn create_here(
        &self,
        mut spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> std::result::Result<(), Cause> {
        spec.check()?;
        check_metadata(&metadata)?;
        if spec.channel == ChannelKind::Vsock && self.options.vsock == VsockCarrier::None {
            return Err(unsupported(
                "carry a channel by vsock",
                "this host has no /dev/vhost-vsock and no vhost-device-vsock is installed; \
                 choose virtio or serial",
            ));
        }
        if spec
            .nics
            .iter()
            .any(|nic| matches!(nic.attachment, Attachment::PortGroup(_)))
        {
            return Err(unsupported(
                "attach a vNIC to a port group",
                "it has user-mode networking only",
            ));
        }
        match &mut spec.boot {
            Boot::Kernel {
                kernel, initramfs, ..
            } => {
                absolute(kernel)?;
                absolute(initramfs)?;
            }
            Boot::Iso { iso, .. } => absolute(iso)?,
        }
        for disk in &mut spec.disks {
            resolve(disk)?;
        }
        let id = spec.id;
        let record = Record::new(spec, metadata);
        let directory = Directory::create(&self.machines_directory, &record, &key)?;
        let machine = Machine::new(
            directory,
            record,
            self.options.clone(),
            self.tsc,
            self.spares.clone(),
            self.events.clone(),
        );
        self.machines().insert(id, machine);
        self.events.send(id, Notice::Created);
        Ok(())
    }

    async fn reconcile_here(&self) -> std::result::Result<Vec<Repair>, Cause> {
        // Ended before anything is removed, for they are known by where they run.
        for found in self.processes()? {
            if self.spares.knows(&found.id) {
                continue;
            }
            // Left alone: a machine that is known, and one whose record cannot be read.
            if found.removed || found.directory != self.home(&found.id) {
                found.process.kill().await;
                self.repaired(found.id, "ended a process whose machine was gone".into());
            }
        }
        for (id, path) in directory::list(&self.machines_directory)?.leftovers {
            if self.spares.knows(&id) {
                continue;
            }
            Directory::open(path)?.remove()?;
            self.repaired(
                id,
                "removed what was left of a machine half made or half removed".into(),
            );
        }
        let vanished: Vec<_> = self
            .machines()
            .values()
            .filter(|machine| !machine.exists())
            .cloned()
            .collect();
        for machine in vanished {
            let id = machine.id();
            self.machines().remove(&id);
            // Its directory is gone, so only the process is left to end.
            if machine.destroy().await.is_ok() {
                self.repaired(
                    id,
                    "forgot a machine whose directory someone removed".into(),
                );
            }
        }
        Ok(std::mem::take(
            &mut *self.repairs.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

fn unsupported(what: &str, why: &str) -> Cause {
    Cause::Unsupported {
        driver: DRIVER,
        what: what.to_owned(),
        why: why.to_owned(),
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn capabilities(&self) -> Capabilities {
        let mut channels = vec![ChannelKind::Virtio, ChannelKind::Serial];
        if self.options.vsock != VsockCarrier::None {
            channels.insert(1, ChannelKind::Vsock);
        }
        Capabilities {
            fork: self.options.templates.is_some(),
            cpu_hot_add: false,
            memory_hot_add: false,
            balloon: true,
            disk_hot_plug: self.options.hot_plug_slots > 0,
            hardware: vec![Hardware::Virtio, Hardware::Vmware],
            channels,
            user_network: true,
            port_groups: false,
            accelerated: self.options.accelerator == Accelerator::Kvm,
        }
    }

    async fn create(
        &self,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> Result<MachineId> {
        let (id, name) = (spec.id, spec.name.clone());
        self.create_here(spec, key, metadata)
            .map_err(|source| Error::Create { id, name, source })?;
        Ok(id)
    }

    async fn destroy(&self, id: &MachineId) -> Result<()> {
        self.on(id, |machine| async move { machine.destroy().await })
            .await
            .map_err(|source| Error::Destroy { id: *id, source })?;
        self.machines().remove(id);
        Ok(())
    }

    async fn power_on(&self, id: &MachineId) -> Result<()> {
        self.on(id, |machine| async move { machine.power_on().await })
            .await
            .map_err(|source| Error::PowerOn { id: *id, source })
    }

    async fn power_off(&self, id: &MachineId, how: PowerOff) -> Result<()> {
        self.on(
            id,
            move |machine| async move { machine.power_off(how).await },
        )
        .await
        .map_err(|source| Error::PowerOff { id: *id, source })
    }

    async fn suspend(&self, id: &MachineId) -> Result<()> {
        self.on(id, |machine| async move { machine.suspend().await })
            .await
            .map_err(|source| Error::Suspend { id: *id, source })
    }

    async fn resume(&self, id: &MachineId) -> Result<()> {
        self.on(id, |machine| async move { machine.resume().await })
            .await
            .map_err(|source| Error::Resume { id: *id, source })
    }

    async fn reconfigure(&self, id: &MachineId, change: Reconfigure) -> Result<Applied> {
        self.on(id, move |machine| async move {
            machine.reconfigure(change).await
        })
        .await
        .map_err(|source| Error::Reconfigure { id: *id, source })
    }

    async fn attach_disk(&self, id: &MachineId, disk: DiskSpec) -> Result<()> {
        let serial = disk.serial.clone();
        self.on(
            id,
            move |machine| async move { machine.attach_disk(disk).await },
        )
        .await
        .map_err(|source| Error::AttachDisk {
            id: *id,
            serial,
            source,
        })
    }

    async fn detach_disk(&self, id: &MachineId, serial: &DiskSerial) -> Result<()> {
        let wanted = serial.clone();
        self.on(id, move |machine| async move {
            machine.detach_disk(&wanted).await
        })
        .await
        .map_err(|source| Error::DetachDisk {
            id: *id,
            serial: serial.clone(),
            source,
        })
    }

    async fn set_metadata(&self, id: &MachineId, changes: Vec<MetadataChange>) -> Result<()> {
        self.on(id, move |machine| async move {
            machine.set_metadata(changes).await
        })
        .await
        .map_err(|source| Error::SetMetadata { id: *id, source })
    }

    async fn inspect(&self, id: &MachineId) -> Result<View> {
        let machine = self
            .machine(id)
            .map_err(|source| Error::Inspect { id: *id, source })?;
        Ok(machine.view())
    }

    async fn list(&self) -> Result<Vec<View>> {
        Ok(self
            .machines()
            .values()
            .map(|machine| machine.view())
            .collect())
    }

    async fn statistics(&self, id: &MachineId) -> Result<Statistics> {
        self.on(id, |machine| async move { machine.statistics().await })
            .await
            .map_err(|source| Error::Statistics { id: *id, source })
    }

    async fn connect_channel(&self, id: &MachineId) -> Result<Channel> {
        // Not to its end at any price: a connection nobody waits for is in the way.
        let connect = async { self.machine(id)?.connect_channel().await };
        connect
            .await
            .map_err(|source| Error::ConnectChannel { id: *id, source })
    }

    async fn console(&self, id: &MachineId) -> Result<Vec<u8>> {
        self.on(id, |machine| async move { machine.console().await })
            .await
            .map_err(|source| Error::Console { id: *id, source })
    }

    async fn follow_console(&self, id: &MachineId) -> Result<mpsc::Receiver<Vec<u8>>> {
        self.on(id, |machine| async move { machine.follow_console().await })
            .await
            .map_err(|source| Error::Console { id: *id, source })
    }

    fn events(&self) -> Events {
        self.events.listen()
    }

    /// A machine's memory is in a file from its first instruction or never, and only a template's
    /// is: templates are made by [`Hypervisor::make_template`].
    async fn freeze(&self, id: &MachineId, template: TemplateId) -> Result<Template> {
        let source = unsupported(
            "freeze a running machine",
            "its memory is not in a file; make a template of its specification instead",
        );
        Err(Error::Freeze {
            id: *id,
            template,
            source,
        })
    }

    async fn templates(&self) -> Result<Vec<Template>> {
        let list = || match &self.options.templates {
            Some(directory) => Templates::open(directory)?.list(),
            None => Ok(Vec::new()),
        };
        list()
            .map(|all| {
                all.into_iter()
                    .map(|template| Template {
                        id: template.record.id,
                        spec: template.record.spec,
                    })
                    .collect()
            })
            .map_err(|source| Error::Template { source })
    }

    async fn make_template(&self, spec: &MachineSpec) -> Result<Template> {
        let made = async {
            let templates = Templates::of(&self.options)?;
            templates.make_ready(spec, &self.options).await
        };
        made.await
            .map(|record| Template {
                id: record.id,
                spec: record.spec,
            })
            .map_err(|source| Error::Template { source })
    }

    async fn remove_template(&self, id: &TemplateId) -> Result<()> {
        let removed = async { Templates::of(&self.options)?.remove(id).await };
        removed.await.map_err(|source| Error::Template { source })
    }

    async fn fork(&self, parent: &ForkParent, children: Vec<Fork>) -> Result<Vec<MachineId>> {
        let forked = match parent {
            ForkParent::Template(id) => self.fork_template(id, children).await,
            ForkParent::Machine(_) => Err(unsupported(
                "fork a running machine without a bystander",
                "its guest has to stand still meanwhile",
            )),
        };
        forked.map_err(|source| Error::Fork {
            parent: parent.clone(),
            source,
        })
    }

    async fn fork_running(
        &self,
        parent: &MachineId,
        disks: Vec<DiskSpec>,
        children: Vec<Fork>,
        bystander: Arc<dyn Bystander>,
    ) -> Result<Forked> {
        self.fork_machine(parent, disks, children, bystander)
            .await
            .map_err(|source| Error::Fork {
                parent: ForkParent::Machine(*parent),
                source,
            })
    }

    async fn connect_nics(&self, id: &MachineId) -> Result<()> {
        self.on(id, |machine| async move { machine.connect_nics().await })
            .await
            .map_err(|source| Error::Fork {
                parent: ForkParent::Machine(*id),
                source,
            })
    }

    async fn reconcile(&self) -> Result<Vec<Repair>> {
        self.reconcile_here()
            .await
            .map_err(|source| Error::Reconcile { source })
    }
}
