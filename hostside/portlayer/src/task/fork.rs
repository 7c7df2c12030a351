//! Forks of a running container: the parent's side, and the child's until it is one like any other.
//!
//! ```text
//!  parent's task                                       child's task
//!  names, ports, memory, directories   (undone when anything fails)
//!  driver: freeze, branch the disks, thaw
//!  each child's task -------------------------------->  connect, rebirth, vNICs
//!                                                       take the mark off its machine
//!  answer <-------------------------------------------  running
//! ```
//!
//! A child's machine is marked until its guest is another machine and its processes go on. Nobody has
//! been told of it before, so a controller that finds the mark destroys the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hypervisor::{Bystander, Cause, ChannelKey, DiskSource, DiskSpec, Fork, HOLD, MetadataChange};
use image::vmdk;
use tether_link::Resumed;
use tether_wire::message::{ProcessId, Rebirth};
use tokio::sync::{mpsc, oneshot};

use super::{First, Phase, Task};
use crate::bases::Bases;
use crate::boot::{self, Begun, DAEMON_ERROR, chain, failure};
use crate::cell::{self, Cell, Run as Channel, lock};
use crate::command::{Command, Removal};
use crate::container::{Container, StartFailure, State};
use crate::error::Error;
use crate::event::Action;
use crate::identity::ContainerId;
use crate::layer::{IMAGE, Layer, image_error};
use crate::log::Writer;
use crate::machine;
use crate::record::{self, Kept, Made};
use crate::spec::{ContainerSpec, NetworkAttachment};
use crate::under_way::UnderWay;

/// Most children of one request.
pub(crate) const MOST: u32 = 64;
/// How long a guest's processes may take to stand still.
const FREEZE: Duration = Duration::from_secs(4);
/// How long a child may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How a child of a running container begins.
#[derive(Debug)]
pub(crate) struct Birth {
    /// Sent to the main process when it goes on; 0 for none.
    pub signal: u8,
    /// Hears what became of it.
    pub born: oneshot::Sender<Result<(), Error>>,
}

/// A child on its way.
struct Child {
    id: ContainerId,
    made: Made,
    kept: Kept,
    directory: PathBuf,
    machine: hypervisor::MachineSpec,
}

impl Task {
    /// Children of this container, which runs.
    pub(super) async fn fork(&mut self, count: u32, signal: u8) -> Result<Vec<ContainerId>, Error> {
        let Phase::On(on) = &self.phase else {
            return Err(crate::error::WrongState::NotRunning(self.cell.id).into());
        };
        if on.stopping.is_some() {
            return Err(Error::Invalid(format!(
                "container {} is being stopped",
                self.cell.id
            )));
        }
        if !(1..=MOST).contains(&count) {
            return Err(Error::Invalid(format!(
                "a fork makes 1 to {MOST} children, not {count}"
            )));
        }
        let channel = on.channel.clone();
        let mut children = Vec::new();
        let forked = self.fork_into(&mut children, count, signal, channel).await;
        match forked {
            Ok(()) => Ok(children.into_iter().map(|child| child.id).collect()),
            Err(error) => {
                for child in children {
                    self.layer.undo(child).await;
                }
                Err(error)
            }
        }
    }

    async fn fork_into(
        &self,
        children: &mut Vec<Child>,
        count: u32,
        signal: u8,
        channel: Arc<Channel>,
    ) -> Result<(), Error> {
        let (layer, id) = (&self.layer, self.cell.id);
        let inspected = layer.driver.inspect(&self.machine).await;
        let parent = inspected.map_err(Error::hypervisor(id))?;
        let [disk] = parent.spec.disks.as_slice() else {
            return Err(Error::Unsupported(
                "forking a container with volumes".to_owned(),
            ));
        };
        let DiskSource::File(current) = &disk.source else {
            return Err(Error::Unsupported(
                "forking from a datastore's disk".to_owned(),
            ));
        };
        let size = self.size();
        for _ in 0..count {
            let child = layer.conceive(&self.made, &self.kept, size)?;
            children.push(child);
            // Behind the name, so that what is refused here is undone.
            if let Some(child) = children.last() {
                let published = &child.made.published;
                lock(&layer.admission).admit(child.id, size.0, size.1, published)?;
            }
        }
        let branching = Branching::new(self, current.clone(), children)?;
        let goes_on = DiskSpec {
            source: DiskSource::File(branching.parent_disk.clone()),
            ..disk.clone()
        };
        layer
            .under_way
            .blocking({
                let prepared = branching.clone();
                move || prepared.prepare()
            })
            .await?;
        let forks = children
            .iter()
            .map(|child| {
                let mut metadata = record::metadata(&child.made, &child.kept);
                record::mark_unborn(&mut metadata, &id);
                Ok(Fork {
                    id: child.machine.id,
                    name: child.machine.name.clone(),
                    key: ChannelKey::random().map_err(Error::Random)?,
                    metadata,
                    disks: child.machine.disks.clone(),
                    nics: child.machine.nics.clone(),
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let bystander = Arc::new(Guest {
            channel,
            branching,
            under_way: layer.under_way.clone(),
        });
        let forked = layer
            .driver
            .fork_running(&self.machine, vec![goes_on], forks, bystander)
            .await
            .map_err(Error::hypervisor(id))?;
        tracing::info!(
            container = %id,
            children = count,
            stopped_us = forked.stopped.as_micros() as u64,
            paused_us = forked.paused.as_micros() as u64,
            shared = forked.shared,
            copied_while_stopped = forked.copied_while_stopped,
            "forked while it runs"
        );
        let mut births = Vec::new();
        for child in children.iter() {
            let (born, outcome) = oneshot::channel();
            layer.enter_newborn(child, size, Birth { signal, born });
            births.push(outcome);
        }
        let mut outcome = Ok(());
        for birth in births {
            let born = birth.await.unwrap_or(Err(Error::ShuttingDown));
            outcome = outcome.and(born);
        }
        outcome
    }

    /// A child's first: from a guest whose processes stand still to a container that runs.
    pub(super) async fn be_born(&mut self, birth: Birth) {
        self.show(State::Starting);
        let born = self.become_another(birth.signal).await;
        let answer = match born {
            Ok(()) => {
                self.emit(Action::Create);
                self.emit(Action::Start);
                Ok(())
            }
            Err(mut failure) => {
                failure.message.push_str(&self.console().await);
                Err(Error::Start {
                    id: self.cell.id,
                    failure,
                })
            }
        };
        // Whoever asked undoes what has failed.
        let _ = birth.born.send(answer);
    }

    async fn become_another(&mut self, signal: u8) -> Result<(), StartFailure> {
        let driver = self.layer.driver.clone();
        let failed =
            |what: &str, why: String| failure(DAEMON_ERROR, format!("the forked VM {what}: {why}"));
        let of_driver = |error: hypervisor::Error| failed("cannot be used", chain(&error));
        let machine = driver.inspect(&self.machine).await.map_err(of_driver)?;
        let link = boot::connect(&driver, self.machine, [0, 0])
            .await
            .map_err(boot::NotBegun::into_failure)?;
        let resumed = link
            .ready(ANSWER)
            .await
            .map_err(|error| failed("did not answer", chain(&error)))?;
        let setup = machine::setup(&self.made.id, &self.made.spec, &machine.spec.nics)
            .map_err(|error| failed("has no random bytes", error.to_string()))?;
        let rebirth = link.rebirth(Rebirth {
            identity: setup.identity,
            network: setup.network,
            signal,
        });
        match tokio::time::timeout(ANSWER, rebirth).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed("did not become another machine", chain(&error))),
            Err(_) => return Err(failed("did not become another machine", "no answer".into())),
        }
        driver
            .connect_nics(&self.machine)
            .await
            .map_err(of_driver)?;
        let run = machine::unix_nanos(machine.started);
        let feed = self.cell.log.clone();
        let log = Writer::open(&self.cell.directory, &self.made.spec.log, run, feed)
            .and_then(|mut log| log.begin_at(streams_of(&resumed)).map(|()| log))
            .map_err(|error| failed("has no log", chain(&error)))?;
        let main = link
            .attach(ProcessId::MAIN)
            .ok_or_else(|| failed("has no main process", "it ended at the fork".to_owned()))?;
        let changes = vec![MetadataChange::Remove {
            key: record::UNBORN.to_owned(),
        }];
        let unmarked = driver.set_metadata(&self.machine, changes).await;
        unmarked.map_err(of_driver)?;
        let begun = Begun {
            link,
            resumed,
            main,
        };
        self.attend(begun, log, machine.started);
        Ok(())
    }
}

/// Where the main process's two streams begin for who has nothing of them.
fn streams_of(resumed: &Resumed) -> [u64; 2] {
    let main = resumed
        .processes
        .iter()
        .find(|state| state.process == ProcessId::MAIN);
    main.map_or([0, 0], |main| [main.stdout.stored, main.stderr.stored])
}

impl Layer {
    /// Everything of a child but its machine: name, ports, specification.
    fn conceive(
        &self,
        parent: &Made,
        parent_kept: &Kept,
        size: (hypervisor::Memory, hypervisor::Cpus),
    ) -> Result<Child, Error> {
        let id = ContainerId::random().map_err(Error::Random)?;
        let name = self.reserve(None, id)?;
        let conceived = (|| {
            let mut spec = ContainerSpec {
                name: Some(name.clone()),
                // Its own, as its MAC address.
                hostname: None,
                ..parent.spec.clone()
            };
            let mut published = Vec::new();
            if let NetworkAttachment::Default {
                mac,
                published: wanted,
            } = &mut spec.network.attachment
            {
                *mac = None;
                // Its parent has those that were asked for.
                for port in wanted.iter_mut() {
                    port.host = None;
                }
                published = machine::publish(wanted, &self.published())?;
            }
            let made = Made::new(id, SystemTime::now(), published, spec);
            let kept = Kept {
                name: name.clone(),
                restart: parent_kept.restart,
                last: None,
                failed: None,
                stopped_by_request: false,
                restarts: 0,
            };
            let directory = self.directory(&id);
            let machine = self
                .mold
                .container(record::machine_id(&id), &made, size, cell::disk(&directory))
                .map_err(|error| Error::Invalid(error.to_string()))?;
            Ok(Child {
                id,
                made,
                kept,
                directory,
                machine,
            })
        })();
        if conceived.is_err() {
            self.free(&name, &id);
        }
        conceived
    }

    /// A container whose machine runs and whose guest has yet to become another machine.
    fn enter_newborn(
        self: &Arc<Self>,
        child: &Child,
        (memory, cpus): (hypervisor::Memory, hypervisor::Cpus),
        birth: Birth,
    ) {
        let container = Container {
            id: child.id,
            name: child.kept.name.clone(),
            created: child.made.created,
            spec: Arc::new(child.made.spec.clone()),
            memory,
            cpus,
            restart: child.kept.restart,
            published: child.made.published.clone(),
            state: State::Starting,
            restarts: 0,
        };
        let (commands, inbox) = mpsc::unbounded_channel();
        let cell = Arc::new(Cell::new(
            container,
            child.directory.clone(),
            commands,
            None,
        ));
        self.register(&cell);
        let made = Arc::new(child.made.clone());
        let task = Task::new(self.clone(), cell, made, child.kept.clone(), inbox);
        self.spawn(task.run(First::Newborn(birth)));
    }

    /// Leaves nothing of a child.
    async fn undo(&self, child: Child) {
        let removal = |answer| Command::Remove(Removal::Force, answer);
        if self.cell(&child.id).is_ok() {
            match self.ask(&child.id, removal).await {
                Ok(()) | Err(Error::NoSuchContainer(_)) => return,
                Err(error) => {
                    tracing::error!(container = %child.id, error = chain(&error), "a child that failed is left behind");
                    return;
                }
            }
        }
        // The driver left no machine of it.
        lock(&self.admission).release(&child.id);
        self.free(&child.kept.name, &child.id);
        let image = child.made.spec.image.id;
        let removed = self
            .remove_directory(image, child.id, child.directory)
            .await;
        if let Err(error) = removed {
            tracing::warn!(container = %child.id, error = chain(&error), "what is left of it stays");
        }
    }
}

/// Which disks grow from what.
#[derive(Clone)]
struct Branching {
    layer: Arc<Layer>,
    image: image::digest::Digest,
    reference: String,
    parent: PathBuf,
    /// What the parent writes to now, and what it goes on with.
    current: PathBuf,
    parent_disk: PathBuf,
    /// The parent's bases and the new one.
    bases: BTreeSet<String>,
    base: PathBuf,
    children: Vec<(ContainerId, PathBuf)>,
}

impl Branching {
    fn new(task: &Task, current: PathBuf, children: &[Child]) -> Result<Self, Error> {
        let name = Bases::new_name()?;
        let parent = task.cell.directory.clone();
        let mut bases = Bases::of(&parent)?;
        bases.insert(name.clone());
        let image = &task.made.spec.image;
        Ok(Self {
            image: image.id,
            reference: image.reference.clone(),
            parent_disk: parent.join(format!("disk-{}", name)),
            base: task.layer.bases.path(&name),
            parent,
            current,
            bases,
            children: children
                .iter()
                .map(|child| (child.id, child.directory.clone()))
                .collect(),
            layer: task.layer.clone(),
        })
    }

    /// While the parent runs: directories, and who depends on what.
    fn prepare(&self) -> Result<(), Error> {
        Bases::set(&self.parent, &self.bases)?;
        for (id, directory) in &self.children {
            fs::create_dir_all(directory).map_err(Error::state("create", directory))?;
            let file = directory.join(IMAGE);
            // Before the image learns of the container, so that one that is cut short is found.
            fs::write(&file, self.image.to_string()).map_err(Error::state("write", &file))?;
            self.layer
                .images
                .add_user(&self.image, &id.to_string())
                .map_err(|source| image_error(self.reference.clone(), source))?;
            Bases::set(directory, &self.bases)?;
        }
        Ok(())
    }

    /// While it stands still.
    fn branch(&self) -> Result<(), Cause> {
        let linked = fs::hard_link(&self.current, &self.base);
        linked.map_err(|source| Cause::File {
            what: "cannot make a base of",
            path: self.current.clone(),
            source,
        })?;
        let disks = self
            .children
            .iter()
            .map(|(_, directory)| cell::disk(directory));
        for disk in std::iter::once(self.parent_disk.clone()).chain(disks) {
            vmdk::create_child(&self.base, &disk)
                .map_err(|error| Cause::because("cannot branch its disk", error))?;
        }
        Ok(())
    }
}

/// The parent's guest and disks, for the driver.
struct Guest {
    channel: Arc<Channel>,
    branching: Branching,
    under_way: UnderWay,
}

#[async_trait]
impl Bystander for Guest {
    async fn freeze(&self) -> Result<(), Cause> {
        match tokio::time::timeout(FREEZE, self.channel.link.freeze(HOLD)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cause::because("its processes cannot be frozen", error)),
            Err(_) => Err(Cause::hypervisor(
                "its processes did not stand still in time; they wait for a disk, as like as not",
            )),
        }
    }

    async fn branch(&self) -> Result<(), Cause> {
        let branching = self.branching.clone();
        self.under_way
            .thread(move || branching.branch())
            .await
            .unwrap_or_else(|error| Err(Cause::because("cannot branch its disk", error)))
    }

    async fn thaw(&self) {
        let now = machine::unix_nanos(SystemTime::now());
        let thawed = tokio::time::timeout(HOLD, self.channel.link.thaw(now)).await;
        if let Ok(Err(error)) = thawed {
            // It goes on by itself when its time is over.
            tracing::warn!(
                error = chain(&error),
                "a forked container was not told to go on"
            );
        }
    }
}
