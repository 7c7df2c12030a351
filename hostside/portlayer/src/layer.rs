//! What all containers of a VCH share, and how it is found again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hypervisor::{Cause, Hypervisor, Machine, Next, PowerState, PublishedPort, StopCause};
use image::digest::Digest;
use image::store::Store;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};

use crate::admission::Admission;
use crate::bases::Bases;
use crate::boot::chain;
use crate::cell::{self, Cell, lock};
use crate::command::Command;
use crate::container::{Container, State};
use crate::error::Error;
use crate::event::{Action, Journal, Subject};
use crate::execs;
use crate::identity::{ContainerId, ContainerName};
use crate::machine::{self, Mold};
use crate::names::random_name;
use crate::port_layer::Config;
use crate::record::{self, Kept, Made, Purpose};
use crate::restart::{self, Occasion};
use crate::spec::{ContainerSpec, NetworkAttachment};
use crate::task::{self, First, Task, subject};
use crate::under_way::UnderWay;

/// How long guests of running containers are waited for when a controller begins.
const KNOWN: Duration = Duration::from_secs(5);

/// The file that names the image of a container's disk.
pub(crate) const IMAGE: &str = "image";

pub(crate) struct Layer {
    pub driver: Arc<dyn Hypervisor>,
    pub images: Store,
    pub mold: Mold,
    pub admission: Mutex<Admission>,
    pub journal: Journal,
    pub bases: Bases,
    containers: PathBuf,
    /// Where archives on their way lie.
    pub scratch: PathBuf,
    registry: Mutex<Registry>,
    tasks: Mutex<Tasks>,
    pub under_way: UnderWay,
}

/// Who is called how.
#[derive(Default)]
struct Registry {
    cells: BTreeMap<ContainerId, Arc<Cell>>,
    names: HashMap<ContainerName, ContainerId>,
}

/// What runs until the port layer is closed.
#[derive(Default)]
struct Tasks {
    closed: bool,
    /// How many there may be before those that have ended are let go of.
    sweep_at: usize,
    running: Vec<AbortHandle>,
}

impl Layer {
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        let containers = config.state.join("containers");
        let scratch = config.state.join("scratch");
        // What an earlier controller was in the middle of has nobody to go on with it.
        let _ = fs::remove_dir_all(&scratch);
        for directory in [&containers, &scratch] {
            fs::create_dir_all(directory).map_err(Error::state("create", directory))?;
        }
        let events = config.state.join("events");
        let journal = Journal::open(&events)?;
        let bases = Bases::open(&config.state, &containers)?;
        let layer = Arc::new(Self {
            driver: config.hypervisor,
            images: config.images,
            mold: Mold {
                boot: config.boot,
                start: config.start,
                hardware: config.hardware,
                channel: config.channel,
                network: config.network,
            },
            admission: Mutex::new(Admission::new(config.limits)),
            journal,
            bases,
            containers,
            scratch,
            registry: Mutex::default(),
            tasks: Mutex::default(),
            under_way: UnderWay::default(),
        });
        layer.follow_hypervisor();
        layer.restore().await?;
        Ok(layer)
    }

    /// Ends every task, and returns when none is left and none of their threads. Containers run on, and what
    /// was not stored stays in their guests.
    pub async fn close(&self) {
        {
            let mut tasks = lock(&self.tasks);
            tasks.closed = true;
            for task in tasks.running.drain(..) {
                task.abort();
            }
            for cell in lock(&self.registry).cells.values() {
                cell.set_run(None);
            }
        }
        self.under_way.ended().await;
    }

    /// Tells that something happened, now.
    pub fn emit(&self, subject: Subject, action: Action) {
        if let Err(error) = self.journal.emit(subject, action, SystemTime::now()) {
            tracing::warn!(
                error = chain(&error),
                "an event was told and not written down"
            );
        }
    }

    /// Runs something until it ends or the port layer is closed.
    pub fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let mut tasks = lock(&self.tasks);
        let piece = self.under_way.begin();
        let task = tokio::spawn(async move {
            let _piece = piece;
            future.await
        });
        if tasks.closed {
            task.abort();
            return task;
        }
        if tasks.running.len() >= tasks.sweep_at {
            tasks.running.retain(|task| !task.is_finished());
            tasks.sweep_at = (2 * tasks.running.len()).max(64);
        }
        tasks.running.push(task.abort_handle());
        task
    }

    /// Runs something to its end, whether or not whoever asked for it stays.
    pub async fn carry_through<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.spawn(future).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::ShuttingDown),
        }
    }

    /// Tells tasks what happened to their machines, whoever did it.
    fn follow_hypervisor(self: &Arc<Self>) {
        let mut events = self.driver.events();
        let layer = Arc::downgrade(self);
        self.spawn(async move {
            loop {
                let next = events.next().await;
                let Some(layer) = layer.upgrade() else { return };
                let registry = lock(&layer.registry);
                match next {
                    Next::Event(event) => {
                        let cell = registry
                            .cells
                            .values()
                            .find(|cell| record::machine_id(&cell.id) == event.id);
                        if let Some(cell) = cell {
                            cell.machine_changed.notify_one();
                        }
                    }
                    Next::Missed => {
                        for cell in registry.cells.values() {
                            cell.machine_changed.notify_one();
                        }
                    }
                    Next::End => return,
                }
            }
        });
    }

    // --- finding again ----------------------------------------------------------------------------

    async fn restore(self: &Arc<Self>) -> Result<(), Error> {
        for repair in self.driver.reconcile().await.map_err(Error::driver)? {
            tracing::info!(machine = %repair.id, "repaired: {}", repair.what);
        }
        // One that removes itself meanwhile is no orphan.
        let mut found = BTreeSet::new();
        for machine in self.driver.list().await.map_err(Error::driver)? {
            match record::purpose(&machine.metadata) {
                Purpose::Container(both) => {
                    let (made, kept) = *both;
                    found.insert(made.id);
                    self.found(machine, made, kept);
                }
                purpose @ (Purpose::Helper | Purpose::Unborn) => {
                    match self.driver.destroy(&machine.id).await {
                        Err(error) if !matches!(error.cause(), Cause::NotFound { .. }) => {
                            // A child's directory would be taken for nobody's.
                            if matches!(purpose, Purpose::Unborn) {
                                return Err(Error::driver(error));
                            }
                            tracing::warn!(machine = %machine.id, error = chain(&error), "a helper is left behind");
                        }
                        // What else there is of a child is removed with all directories of nobody.
                        _ => {
                            tracing::info!(machine = %machine.id, ?purpose, "removed what a controller left half done")
                        }
                    }
                }
                Purpose::Unreadable(why) => {
                    tracing::warn!(machine = %machine.id, why, "left alone: it is no container of this program");
                }
            }
        }
        self.remove_orphans(&found).await?;
        self.known().await;
        Ok(())
    }

    /// Waits until it is known of every container whose machine is on how it is, so that nobody is told
    /// of a running one that it does not run. A guest that does not answer is not waited for.
    async fn known(&self) {
        let cells: Vec<Arc<Cell>> = lock(&self.registry).cells.values().cloned().collect();
        let all = async {
            for cell in cells {
                let mut view = cell.view.subscribe();
                // It ends with the cell, which is held here.
                let _ = view
                    .wait_for(|view| !matches!(view.container.state, State::Starting))
                    .await;
            }
        };
        if tokio::time::timeout(KNOWN, all).await.is_err() {
            tracing::warn!("some containers' VMs do not answer yet");
        }
    }

    fn found(self: &Arc<Self>, machine: Machine, made: Made, kept: Kept) {
        let id = made.id;
        let first = self.first(&machine, &kept);
        let state = match &first {
            First::Off | First::Start | First::EndedOn => task::off_state(&kept),
            // Until the task knows.
            First::On | First::EndedUnseen(_) | First::Newborn(_) => State::Starting,
        };
        let container = Container {
            id,
            name: kept.name.clone(),
            created: made.created,
            spec: Arc::new(made.spec.clone()),
            memory: machine.spec.memory,
            cpus: machine.spec.cpus,
            restart: kept.restart,
            published: made.published.clone(),
            state,
            restarts: kept.restarts,
        };
        let (commands, inbox) = mpsc::unbounded_channel();
        let cell = Arc::new(Cell::new(
            container,
            self.directory(&id),
            commands,
            kept.last.clone(),
        ));
        execs::load(&cell);
        {
            let mut registry = lock(&self.registry);
            registry.names.insert(kept.name.clone(), id);
            registry.cells.insert(id, cell.clone());
        }
        if !self.journal.covers(made.created) {
            // Too long ago to tell whether it was told.
        } else if !self.journal.contains(|event| {
            event.action == Action::Create
                && matches!(&event.subject, Subject::Container { id: other, .. } if *other == id)
        }) {
            self.emit(subject(&cell), Action::Create);
        }
        let task = Task::new(self.clone(), cell, Arc::new(made), kept, inbox);
        self.spawn(task.run(first));
    }

    /// How the task of a container that was found begins.
    fn first(&self, machine: &Machine, kept: &Kept) -> First {
        let seen = kept
            .last
            .as_ref()
            .is_some_and(|last| last.started >= machine.started);
        let PowerState::Off { cause } = &machine.power else {
            return if seen { First::EndedOn } else { First::On };
        };
        if *cause == StopCause::NeverStarted {
            return First::Off;
        }
        let failed = kept
            .failed
            .as_ref()
            .is_some_and(|failed| failed.at >= machine.started);
        match &kept.last {
            _ if !seen && !failed => First::EndedUnseen(cause.clone()),
            Some(last)
                if restart::again(
                    kept.restart,
                    Occasion::ControllerStarts,
                    last,
                    kept.stopped_by_request,
                    kept.restarts,
                ) =>
            {
                First::Start
            }
            _ => First::Off,
        }
    }

    /// Directories without a machine: creations and removals that were cut short. Those of the containers
    /// that were found are theirs.
    async fn remove_orphans(&self, found: &BTreeSet<ContainerId>) -> Result<(), Error> {
        let read = || -> io::Result<Vec<PathBuf>> {
            let entries = fs::read_dir(&self.containers)?;
            entries.map(|entry| Ok(entry?.path())).collect()
        };
        for path in read().map_err(Error::state("read", &self.containers))? {
            let id = path.file_name().and_then(|name| name.to_str());
            let Some(Ok(id)) = id.map(str::parse::<ContainerId>) else {
                continue;
            };
            if found.contains(&id) {
                continue;
            }
            let image = fs::read_to_string(path.join(IMAGE));
            match image.ok().and_then(|text| text.trim().parse().ok()) {
                Some(image) => self.remove_directory(image, id, path).await?,
                None => fs::remove_dir_all(&path).map_err(Error::state("remove", &path))?,
            }
            tracing::info!(container = %id, "removed what was left of it");
        }
        Ok(())
    }

    // --- making and removing ----------------------------------------------------------------------

    pub async fn create(self: Arc<Self>, mut spec: ContainerSpec) -> Result<ContainerId, Error> {
        if spec.process.argv.is_empty() {
            return Err(Error::Invalid("No command specified".to_owned()));
        }
        let limits = lock(&self.admission).limits();
        let memory = spec.memory.unwrap_or(limits.default_memory);
        let cpus = spec.cpus.unwrap_or(limits.default_cpus);
        limits.check(memory, cpus)?;
        let image = spec.image.id;
        let id = ContainerId::random().map_err(Error::Random)?;
        let name = self.reserve(spec.name.clone(), id)?;
        spec.name = Some(name.clone());
        let made = self.make(id, spec, &name, (memory, cpus)).await;
        match made {
            Ok((made, kept)) => {
                let cell = self.enter(made, kept, (memory, cpus));
                self.emit(subject(&cell), Action::Create);
                Ok(id)
            }
            Err(error) => {
                self.free(&name, &id);
                if let Err(error) = self.remove_directory(image, id, self.directory(&id)).await {
                    tracing::warn!(container = %id, error = chain(&error), "what is left of it stays");
                }
                Err(error)
            }
        }
    }

    /// Disk and machine.
    async fn make(
        &self,
        id: ContainerId,
        spec: ContainerSpec,
        name: &ContainerName,
        size: (hypervisor::Memory, hypervisor::Cpus),
    ) -> Result<(Made, Kept), Error> {
        let published = match &spec.network.attachment {
            NetworkAttachment::Default { published, .. } => {
                machine::publish(published, &self.published())?
            }
            NetworkAttachment::None => Vec::new(),
        };
        let directory = self.directory(&id);
        let disk = cell::disk(&directory);
        self.make_disk(&spec, id, &directory).await?;
        let kept = Kept {
            name: name.clone(),
            restart: spec.restart,
            last: None,
            failed: None,
            stopped_by_request: false,
            restarts: 0,
        };
        let made = Made::new(id, SystemTime::now(), published, spec);
        let machine = self
            .mold
            .container(record::machine_id(&id), &made, size, disk)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let key = hypervisor::ChannelKey::random().map_err(Error::Random)?;
        let metadata = record::metadata(&made, &kept);
        let created = self.driver.create(machine, key, metadata).await;
        created.map_err(Error::hypervisor(id))?;
        Ok((made, kept))
    }

    async fn make_disk(
        &self,
        spec: &ContainerSpec,
        id: ContainerId,
        directory: &Path,
    ) -> Result<(), Error> {
        let (image, store) = (spec.image.id, self.images.clone());
        let directory = directory.to_owned();
        let reference = spec.image.reference.clone();
        self.under_way
            .blocking(move || {
                fs::create_dir_all(&directory).map_err(Error::state("create", &directory))?;
                let file = directory.join(IMAGE);
                // Before the image learns of the container, so that one that is cut short is found.
                fs::write(&file, image.to_string()).map_err(Error::state("write", &file))?;
                let child = store.child(&image, &id.to_string(), &cell::disk(&directory));
                child.map_err(|source| image_error(reference, source))
            })
            .await
    }

    fn enter(
        self: &Arc<Self>,
        made: Made,
        kept: Kept,
        (memory, cpus): (hypervisor::Memory, hypervisor::Cpus),
    ) -> Arc<Cell> {
        let id = made.id;
        let container = Container {
            id,
            name: kept.name.clone(),
            created: made.created,
            spec: Arc::new(made.spec.clone()),
            memory,
            cpus,
            restart: kept.restart,
            published: made.published.clone(),
            state: State::Created { failed: None },
            restarts: 0,
        };
        let (commands, inbox) = mpsc::unbounded_channel();
        let cell = Arc::new(Cell::new(container, self.directory(&id), commands, None));
        lock(&self.registry).cells.insert(id, cell.clone());
        let task = Task::new(self.clone(), cell.clone(), Arc::new(made), kept, inbox);
        self.spawn(task.run(First::Off));
        cell
    }

    /// Takes away a container's disk and everything beside it.
    pub async fn remove_directory(
        &self,
        image: Digest,
        id: ContainerId,
        directory: PathBuf,
    ) -> Result<(), Error> {
        let (store, all) = (self.images.clone(), self.bases.clone());
        self.under_way
            .blocking(move || {
                let grown_from = Bases::of(&directory)?;
                // The disk first: an image may only go when nothing depends on it.
                let disk = cell::disk(&directory);
                match fs::remove_file(&disk) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::state("remove", &disk)(error));
                    }
                    _ => {}
                }
                match store.release(&image, &id.to_string()) {
                    Err(image::store::StoreError::NotFound(_)) | Ok(()) => {}
                    Err(source) => return Err(image_error(image.to_string(), source)),
                }
                match fs::remove_dir_all(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::state("remove", &directory)(error))
                    }
                    _ => all.sweep(grown_from),
                }
            })
            .await
    }

    // --- names ------------------------------------------------------------------------------------

    /// Gives a name to a container that is to be made, or that is renamed: one wins.
    pub fn reserve(
        &self,
        name: Option<ContainerName>,
        id: ContainerId,
    ) -> Result<ContainerName, Error> {
        if let Some(name) = name {
            let mut registry = lock(&self.registry);
            return match registry.names.get(&name) {
                Some(by) => Err(Error::NameTaken { name, by: *by }),
                None => {
                    registry.names.insert(name.clone(), id);
                    Ok(name)
                }
            };
        }
        loop {
            let text = random_name().map_err(Error::Random)?;
            let name: ContainerName = text
                .parse()
                .map_err(|error: crate::InvalidName| Error::Invalid(error.to_string()))?;
            if let Ok(name) = self.reserve(Some(name), id) {
                return Ok(name);
            }
        }
    }

    /// Gives a name back.
    pub fn free(&self, name: &ContainerName, id: &ContainerId) {
        let mut registry = lock(&self.registry);
        if registry.names.get(name) == Some(id) {
            registry.names.remove(name);
        }
    }

    /// A container that is gone.
    pub fn forget(&self, cell: &Cell) {
        let mut registry = lock(&self.registry);
        registry.cells.remove(&cell.id);
        registry.names.retain(|_, id| *id != cell.id);
    }

    /// By full id, name, or unambiguous prefix of an id.
    pub fn find(&self, text: &str) -> Result<ContainerId, Error> {
        let none = || Error::NoSuchContainer(text.to_owned());
        let name = text.strip_prefix('/').unwrap_or(text);
        let registry = lock(&self.registry);
        if let Ok(id) = name.parse::<ContainerId>()
            && registry.cells.contains_key(&id)
        {
            return Ok(id);
        }
        if let Ok(name) = name.parse::<ContainerName>()
            && let Some(id) = registry.names.get(&name)
            // A name that is reserved has no container yet.
            && registry.cells.contains_key(id)
        {
            return Ok(*id);
        }
        if name.is_empty() {
            return Err(none());
        }
        let mut matching = registry
            .cells
            .keys()
            .filter(|id| id.to_string().starts_with(name));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(*id),
            (Some(_), Some(_)) => Err(Error::Ambiguous(text.to_owned())),
            _ => Err(none()),
        }
    }

    pub fn cell(&self, id: &ContainerId) -> Result<Arc<Cell>, Error> {
        lock(&self.registry)
            .cells
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NoSuchContainer(id.to_string()))
    }

    pub fn cells(&self) -> Vec<Arc<Cell>> {
        lock(&self.registry).cells.values().cloned().collect()
    }

    /// A container that is there from now on.
    pub fn register(&self, cell: &Arc<Cell>) {
        lock(&self.registry).cells.insert(cell.id, cell.clone());
    }

    pub fn published(&self) -> Vec<PublishedPort> {
        let cells = self.cells();
        let ports = cells.iter().flat_map(|cell| cell.container().published);
        ports.collect()
    }

    pub fn directory(&self, id: &ContainerId) -> PathBuf {
        self.containers.join(id.to_string())
    }

    /// Asks a container's task, and waits for the answer.
    pub async fn ask<T>(
        &self,
        id: &ContainerId,
        command: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let cell = self.cell(id)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let gone = || {
            if cell.view.borrow().removed {
                Error::NoSuchContainer(id.to_string())
            } else {
                Error::ShuttingDown
            }
        };
        cell.commands.send(command(answer)).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// The image that a container's root disk is a child of.
pub fn image_of(disk: &Path) -> Option<Digest> {
    let text = fs::read_to_string(disk.with_file_name(IMAGE)).ok()?;
    text.trim().parse().ok()
}

pub(crate) fn image_error(image: String, source: image::store::StoreError) -> Error {
    match source {
        image::store::StoreError::NotFound(_) => Error::NoSuchImage(image),
        source => Error::Image {
            image,
            source: Box::new(source),
        },
    }
}
