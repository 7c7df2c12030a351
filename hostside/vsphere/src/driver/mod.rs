//! The driver: every machine of one VCH, in a resource pool of a vCenter or an ESXi host.
//!
//! The server is the truth: what a machine is and how it is, the collector knows; what it is for, is written
//! on it ([`record`]). Nothing is asked twice and nothing is polled. Calls for one machine come one after the
//! other; a call that was begun goes on when its caller is gone.
//!
//! | operation | calls beside the one that waits |
//! |---|---|
//! | create | `CreateVM_Task` |
//! | power on | `ReconfigVM_Task` (when, for the record), `PowerOnVM_Task` |
//! | power off | `PowerOffVM_Task`, `ReconfigVM_Task` (when and why) |
//! | went off by itself | three to ask the events who did it, `ReconfigVM_Task` |
//! | destroy | `ReconfigVM_Task` (takes the disks off), `Destroy_Task`; `DeleteVirtualDisk_Task` once its local disk is gone |
//!
//! Before the first machine of a boot image or an image disk there are its uploads ([`disks`]).
//!
//! What the guest needs: its key and its disks from `guestinfo` ([`record`], [`devices`]); its console on the
//! first serial port, its channel on the second.
//!
//! A power on forks where it can ([`fork`], [`template`]): then it is `InstantClone_Task` and `ReconfigVM_Task`,
//! and, while the guest begins, `ReconfigVM_Task` and `Destroy_Task` for what the machine was before.

mod calls;
mod change;
mod console;
mod create;
pub mod datastore;
mod devices;
pub mod disks;
mod fork;
mod lease;
pub(crate) mod place;
mod power;
mod publish;
mod record;
mod repair;
mod statistics;
mod template;
mod view;
mod watch;

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hypervisor::{
    Applied, Capabilities, Carrier, Cause, Channel, ChannelKey, ChannelKind, DiskSerial, DiskSpec,
    Error, EventSender, Events, Fork, ForkParent, Hardware, Hypervisor, Machine as View, MachineId,
    MachineSpec, Metadata, MetadataChange, PowerOff, Reconfigure, Repair, Result, Statistics,
    StopCause, Template, TemplateId,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use place::PlaceNames;

use crate::property::{Collector, Properties};
use crate::serial::{CHANNEL, SerialPorts};
use crate::session::{self, Client};
use crate::task;
use crate::types::ManagedObject;

const DRIVER: &str = "vsphere";
/// How often a VCH that has an owner is tried again, 20 ms apart: a process that an owner was about to start
/// holds its lock until it executes its program.
const OWNER_PATIENCE: u32 = 50;

/// What the driver needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server, and who logs in.
    pub session: session::Options,
    /// The VCH's name, which is written on its machines.
    pub vch: String,
    /// Where its machines are.
    pub place: PlaceNames,
    /// The network of vNICs that are to have user-mode networking. Its addresses must be
    /// [`hypervisor::UserNetwork`]'s.
    pub user_network: Option<String>,
    /// A local directory for what is known of disks.
    pub state: PathBuf,
    /// Whether guests can be at addresses of this machine's own, as simulated ones are. A guest says its address
    /// itself, and what comes to its published ports is carried there: one that says this machine's is not
    /// believed elsewhere.
    pub guests_are_here: bool,
}

/// The vSphere driver of one VCH. Dropping it leaves its machines as they are.
pub struct Vsphere {
    core: Arc<Core>,
    worker: AbortHandle,
    /// Held as long as this owns the VCH.
    _owner: File,
}

impl std::fmt::Debug for Vsphere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsphere")
            .field("vch", &self.core.vch)
            .finish_non_exhaustive()
    }
}

impl Drop for Vsphere {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// How a machine's last run ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    /// Which run: when it began.
    pub started: SystemTime,
    pub stopped: SystemTime,
    pub cause: StopCause,
}

/// What is known of a machine beside what is written on it.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    /// Held by whoever changes the machine.
    pub operation: Arc<tokio::sync::Mutex<()>>,
    /// Whether its power is being cut by this driver.
    pub cutting: std::sync::atomic::AtomicBool,
    pub ended: Mutex<Option<Ended>>,
    pub totals: Mutex<statistics::Totals>,
    pub console: console::Console,
    pub published: publish::Published,
}

impl Cell {
    pub fn ended(&self) -> MutexGuard<'_, Option<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is off: nobody listens for it, nobody reads its console.
    pub fn end_run(&self) {
        self.console.end();
        self.published.end();
    }
}

pub(crate) struct Core {
    pub client: Client,
    pub collector: Collector,
    pub place: place::Place,
    pub names: PlaceNames,
    pub vch: String,
    pub user_network: Option<String>,
    pub guests_are_here: bool,
    pub serial: Arc<dyn SerialPorts>,
    pub events: EventSender,
    pub disks: disks::Disks,
    pub networks: place::Networks,
    pub counters: tokio::sync::OnceCell<statistics::Counters>,
    pub templates: template::Templates,
    /// A local directory for what machines say on their consoles.
    consoles: PathBuf,
    cells: Mutex<BTreeMap<MachineId, Arc<Cell>>>,
    /// The objects that are machines, as far as was told.
    seats: Mutex<BTreeMap<MachineId, ManagedObject>>,
}

/// Something the driver cannot do.
pub(crate) fn unsupported(what: &str, why: &str) -> Cause {
    Cause::Unsupported {
        driver: DRIVER,
        what: what.to_owned(),
        why: why.to_owned(),
    }
}

/// A failure of the server's as the cause of an operation's.
pub(crate) fn cause(what: &str, error: session::Error) -> Cause {
    let hint = match error.fault() {
        Some(fault) if fault.is_gone() => return Cause::NotFound { what: "machine" },
        Some(fault) if fault.is("NoPermission") => {
            "; grant the privilege to the user (PRIVILEGES.md lists all), or use another"
        }
        Some(fault) if fault.is("RestrictedVersion") => {
            "; the licence of this host (as the free ESXi's) lets nobody change anything through the API: use another, or a vCenter"
        }
        Some(fault)
            if fault.name.starts_with("Insufficient") || fault.is("NoActiveHostInCluster") =>
        {
            "; the resource pool or its hosts have not enough left: stop machines, or give the VCH more"
        }
        Some(fault) if fault.is("NoDiskSpace") => "; the datastore is full",
        _ => "",
    };
    Cause::because(format!("{what}{hint}"), error)
}

/// Makes the local directory, and this process its owner.
async fn own(state: &Path) -> std::result::Result<File, Cause> {
    std::fs::create_dir_all(state).map_err(disks::file("cannot make directory", state))?;
    let path = state.join("owner.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(disks::file("cannot open", &path))?;
    let mut locked = lock.try_lock();
    for _ in 0..OWNER_PATIENCE {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        locked = lock.try_lock();
    }
    match locked {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Cause::hypervisor(
            "another process owns this VCH; speak to it, or wait until it has ended",
        )),
        Err(TryLockError::Error(source)) => Err(disks::file("cannot lock", &path)(source)),
    }
}

impl Vsphere {
    /// Opens the VCH: logs in, finds its place, and learns its machines.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub async fn open(options: Options, serial: Arc<dyn SerialPorts>) -> Result<Self> {
        let place = format!("{} ({})", options.place.pool, options.session.address);
        Self::open_here(options, serial)
            .await
            .map_err(|source| Error::Open {
                driver: DRIVER,
                place,
                source,
            })
    }

    async fn open_here(
        options: Options,
        serial: Arc<dyn SerialPorts>,
    ) -> std::result::Result<Self, Cause> {
        let owner = own(&options.state).await?;
        let failed = |error| cause("the server cannot be used", error);
        let client = Client::connect(options.session).await.map_err(failed)?;
        let place = place::Place::find(&client, &options.place).await?;
        let directory = datastore::Directory::new(
            client.clone(),
            place.datacenter.clone(),
            &options.place.datacenter,
            datastore::DatastorePath {
                datastore: options.place.datastore.clone(),
                path: options.place.directory.trim_matches('/').to_owned(),
            },
        );
        let lease = lease::Lease {
            client: client.clone(),
            pool: place.pool.clone(),
            folder: place.folder.clone(),
        };
        let disks = disks::Disks::open(directory, options.state.join("disks"), lease)?;
        let consoles = options.state.join("consoles");
        std::fs::create_dir_all(&consoles)
            .map_err(disks::file("cannot make directory", &consoles))?;
        disks
            .make_directories()
            .await
            .map_err(|error| cause("the VCH's directory cannot be made", error))?;
        let tasks = client
            .manager("task manager", |content| &content.taskManager)
            .map_err(failed)?;
        let (sender, mut changes) = mpsc::unbounded_channel();
        let specs = vec![view::machines(&place.pool), task::recent_tasks(tasks)];
        let observer = Box::new(move |change: &crate::property::Change| {
            if change.object.kind == "VirtualMachine" {
                // The worker is gone with the driver.
                let _ = sender.send(change.clone());
            }
        });
        let collector = Collector::open(client.clone(), specs, observer)
            .await
            .map_err(failed)?;
        let core = Arc::new(Core {
            networks: place::Networks::new(client.clone(), place.datacenter.clone()),
            client,
            collector,
            place,
            names: options.place,
            vch: options.vch,
            user_network: options.user_network,
            guests_are_here: options.guests_are_here,
            serial,
            events: EventSender::default(),
            disks,
            counters: tokio::sync::OnceCell::new(),
            templates: template::Templates::default(),
            consoles,
            cells: Mutex::default(),
            seats: Mutex::default(),
        });
        core.adopt();
        // What was there already is told before there is anybody to listen.
        while let Ok(change) = changes.try_recv() {
            core.tell(&change);
        }
        let worker = tokio::spawn(watch::work(Arc::downgrade(&core), changes)).abort_handle();
        Ok(Self {
            core,
            worker,
            _owner: owner,
        })
    }

    /// How often each method of the server was called.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.core.client.calls()
    }

    /// Runs an operation to its end, whether or not its caller waits.
    async fn on<T, F>(
        &self,
        operation: impl FnOnce(Arc<Core>) -> F,
    ) -> std::result::Result<T, Cause>
    where
        T: Send + 'static,
        F: Future<Output = std::result::Result<T, Cause>> + Send + 'static,
    {
        tokio::spawn(operation(self.core.clone()))
            .await
            .unwrap_or_else(|error| Err(Cause::because("the driver failed", error)))
    }
}

impl Core {
    /// What is known of a machine beside what is written on it.
    pub fn cell(&self, id: &MachineId) -> Arc<Cell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.entry(*id).or_default().clone()
    }

    pub fn forget(&self, id: &MachineId) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.remove(id) {
            cell.end_run();
        }
        if let Err(error) = console::remove(&self.console_file(id)) {
            tracing::warn!(machine = %id, %error, "what it said on its console stays");
        }
        self.serial.forget(*id);
    }

    /// The server's object for a machine of this VCH, and its properties.
    pub fn find(
        &self,
        id: &MachineId,
    ) -> std::result::Result<(ManagedObject, Arc<Properties>), Cause> {
        self.collector
            .look(|objects| view::find(objects, id))
            .filter(|(_, properties)| self.record(properties).is_some())
            .ok_or(Cause::NotFound { what: "machine" })
    }

    /// Takes care of the machines that are there already.
    fn adopt(self: &Arc<Self>) {
        for view in self.views() {
            self.serial.admit(view.id);
            if !view.power.is_off() {
                self.read_console(&view.id, console::Run::Found);
                self.publish_found(view.id, view.spec);
            }
        }
        self.adopt_templates();
    }
}

#[async_trait]
impl Hypervisor for Vsphere {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fork: self.core.can_fork().is_ok(),
            cpu_hot_add: true,
            memory_hot_add: true,
            balloon: false,
            disk_hot_plug: true,
            hardware: vec![Hardware::Vmware],
            channels: vec![ChannelKind::Serial],
            user_network: self.core.user_network.is_some(),
            port_groups: true,
            accelerated: true,
        }
    }

    async fn create(
        &self,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> Result<MachineId> {
        let (id, name) = (spec.id, spec.name.clone());
        self.on(|core| async move { core.create(spec, key, metadata).await })
            .await
            .map_err(|source| Error::Create { id, name, source })?;
        Ok(id)
    }

    async fn destroy(&self, id: &MachineId) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.destroy(&id).await })
            .await
            .map_err(|source| Error::Destroy { id, source })
    }

    async fn power_on(&self, id: &MachineId) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.power_on(&id).await })
            .await
            .map_err(|source| Error::PowerOn { id, source })
    }

    async fn power_off(&self, id: &MachineId, how: PowerOff) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.power_off(&id, how).await })
            .await
            .map_err(|source| Error::PowerOff { id, source })
    }

    async fn suspend(&self, id: &MachineId) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.suspend(&id).await })
            .await
            .map_err(|source| Error::Suspend { id, source })
    }

    async fn resume(&self, id: &MachineId) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.resume(&id).await })
            .await
            .map_err(|source| Error::Resume { id, source })
    }

    async fn reconfigure(&self, id: &MachineId, change: Reconfigure) -> Result<Applied> {
        let id = *id;
        self.on(move |core| async move { core.reconfigure(&id, change).await })
            .await
            .map_err(|source| Error::Reconfigure { id, source })
    }

    async fn attach_disk(&self, id: &MachineId, disk: DiskSpec) -> Result<()> {
        let (id, serial) = (*id, disk.serial.clone());
        self.on(move |core| async move { core.attach_disk(&id, disk).await })
            .await
            .map_err(|source| Error::AttachDisk { id, serial, source })
    }

    async fn detach_disk(&self, id: &MachineId, serial: &DiskSerial) -> Result<()> {
        let (id, wanted) = (*id, serial.clone());
        self.on(move |core| async move { core.detach_disk(&id, &wanted).await })
            .await
            .map_err(|source| Error::DetachDisk {
                id,
                serial: serial.clone(),
                source,
            })
    }

    async fn set_metadata(&self, id: &MachineId, changes: Vec<MetadataChange>) -> Result<()> {
        let id = *id;
        self.on(move |core| async move { core.set_metadata(&id, changes).await })
            .await
            .map_err(|source| Error::SetMetadata { id, source })
    }

    async fn inspect(&self, id: &MachineId) -> Result<View> {
        let id = *id;
        self.on(move |core| async move { core.inspect(&id).await })
            .await
            .map_err(|source| Error::Inspect { id, source })
    }

    async fn list(&self) -> Result<Vec<View>> {
        self.on(|core| async move { core.list().await })
            .await
            .map_err(|source| Error::List { source })
    }

    async fn statistics(&self, id: &MachineId) -> Result<Statistics> {
        let id = *id;
        self.on(move |core| async move { core.statistics(&id).await })
            .await
            .map_err(|source| Error::Statistics { id, source })
    }

    async fn connect_channel(&self, id: &MachineId) -> Result<Channel> {
        let (core, id) = (&self.core, *id);
        let connect = async {
            let (object, properties) = core.find(&id)?;
            core.must_be_on(&id, &properties)?;
            let key = properties
                .get("config.extraConfig")
                .and_then(|property| record::channel_key(&record::entries(property)))
                .ok_or_else(|| {
                    Cause::hypervisor("the machine's key is not in its extraConfig any more")
                })?;
            let claim = core.claim(&id, &properties);
            tokio::select! {
                io = core.serial.connect(id, CHANNEL) => io
                    .map(|io| Channel { io, kind: ChannelKind::Serial, carrier: Carrier::Serial, key, claim })
                    .map_err(|error| Cause::because("the concentrator does not carry it", error)),
                off = core.until_off(&object) => Err(off),
            }
        };
        connect
            .await
            .map_err(|source| Error::ConnectChannel { id, source })
    }

    async fn console(&self, id: &MachineId) -> Result<Vec<u8>> {
        let known = self.core.find(id);
        known
            .map(|_| self.core.cell(id).console.last(&self.core.console_file(id)))
            .map_err(|source| Error::Console { id: *id, source })
    }

    async fn follow_console(&self, id: &MachineId) -> Result<mpsc::Receiver<Vec<u8>>> {
        let known = self.core.find(id);
        known
            .map(|_| {
                self.core
                    .cell(id)
                    .console
                    .follow(&self.core.console_file(id))
            })
            .map_err(|source| Error::Console { id: *id, source })
    }

    fn events(&self) -> Events {
        self.core.events.listen()
    }

    async fn freeze(&self, id: &MachineId, template: TemplateId) -> Result<Template> {
        Err(Error::Freeze {
            id: *id,
            template,
            source: unsupported(
                "freeze a machine into a template",
                "a power on makes the template it needs",
            ),
        })
    }

    async fn templates(&self) -> Result<Vec<Template>> {
        Ok(self.core.list_templates())
    }

    async fn make_template(&self, spec: &MachineSpec) -> Result<Template> {
        let spec = spec.clone();
        self.on(|core| async move { core.make_template(&spec).await })
            .await
            .map_err(|source| Error::Template { source })
    }

    async fn remove_template(&self, id: &TemplateId) -> Result<()> {
        let id = id.clone();
        self.on(|core| async move { core.remove_template(&id).await })
            .await
            .map_err(|source| Error::Template { source })
    }

    async fn fork(&self, parent: &ForkParent, children: Vec<Fork>) -> Result<Vec<MachineId>> {
        let forked = match parent.clone() {
            ForkParent::Template(id) => {
                self.on(|core| async move { core.fork_template(&id, children).await })
                    .await
            }
            ForkParent::Machine(_) => Err(unsupported(
                "fork a running machine",
                "fork a template instead",
            )),
        };
        forked.map_err(|source| Error::Fork {
            parent: parent.clone(),
            source,
        })
    }

    async fn reconcile(&self) -> Result<Vec<Repair>> {
        self.on(|core| async move { core.reconcile().await })
            .await
            .map_err(|source| Error::Reconcile { source })
    }
}
