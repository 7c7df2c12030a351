//! What the endpoint asks for: one method an operation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::{Applied, Boot, ChannelKind, Hardware, Hypervisor, Start};
use image::store::Store;
use tether_wire::message::{ProcessInfo, Statistics};

use crate::admission::Limits;
use crate::cell::lock;
use crate::command::{Command, Removal, Stop};
use crate::container::{Container, Ended, State};
use crate::error::{Error, WrongState};
use crate::event::{Action, EventReader};
use crate::exec::Exec;
use crate::identity::{ContainerId, ContainerName, ExecId};
use crate::layer::Layer;
use crate::log::{Follow, LogQuery, LogReader};
use crate::machine::DefaultNetwork;
use crate::spec::{ContainerSpec, LogSpec, ProcessSpec, Stdio, TerminalSize, Update};
use crate::stream::{AttachedOutput, Attachment, Piece, Wanted};
use crate::task::subject;
use crate::{execs, log};

/// What a port layer works with.
#[derive(Clone)]
pub struct Config {
    /// Where containers' disks and logs are.
    pub state: PathBuf,
    /// The hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Images.
    pub images: Store,
    /// What VMs boot from.
    pub boot: Boot,
    /// How they start; a driver that cannot fork boots.
    pub start: Start,
    /// Their devices.
    pub hardware: Hardware,
    /// Their channel.
    pub channel: ChannelKind,
    /// What they are attached to.
    pub network: DefaultNetwork,
    /// What the VCH has, and what a container gets that does not say.
    pub limits: Limits,
}

/// What of a VCH is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// What it has.
    pub limits: Limits,
    /// Memory of VMs that are on, bytes.
    pub memory: u64,
    /// Virtual CPUs of VMs that are on.
    pub cpus: u32,
    /// Containers that run.
    pub running: usize,
    /// Containers that are paused.
    pub paused: usize,
    /// All others.
    pub stopped: usize,
}

/// What [`PortLayer::wait`] waits for (Engine API, `POST /containers/{id}/wait`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// That it does not run: at once if so.
    NotRunning,
    /// The next time its main process ends.
    NextExit,
    /// That it is removed.
    Removed,
}

/// One VCH's containers. Clones are the same.
#[derive(Clone)]
pub struct PortLayer {
    pub(crate) layer: Arc<Layer>,
}

impl PortLayer {
    /// Finds every container, goes on with those that run, repairs what was half done. Must be called inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// The state directory or the hypervisor cannot be used.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let layer = Layer::open(config).await?;
        Ok(Self { layer })
    }

    /// Stops attending to the containers, which run on; what is not stored stays in their guests. Nothing is
    /// under way when it returns: another controller may open the same state.
    pub async fn close(&self) {
        self.layer.close().await;
    }

    /// The driver's name.
    pub fn hypervisor_name(&self) -> &'static str {
        self.layer.driver.name()
    }

    /// Whether VMs run on hardware virtualisation.
    pub fn accelerated(&self) -> bool {
        self.layer.driver.capabilities().accelerated
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let (limits, (memory, cpus)) = {
            let admission = lock(&self.layer.admission);
            (admission.limits(), admission.used())
        };
        let mut usage = Usage {
            limits,
            memory,
            cpus,
            running: 0,
            paused: 0,
            stopped: 0,
        };
        for cell in self.layer.cells() {
            match cell.view.borrow().container.state {
                State::Running(_) | State::Restarting { .. } => usage.running += 1,
                State::Paused(_) => usage.paused += 1,
                _ => usage.stopped += 1,
            }
        }
        usage
    }

    /// Makes a container, powered off. Of several asking for one name at once, one gets it.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::NoSuchImage`], [`Error::NoRoom`], [`Error::Invalid`], or the store's or the
    /// hypervisor's.
    pub async fn create(&self, spec: ContainerSpec) -> Result<ContainerId, Error> {
        let creating = self.layer.clone().create(spec);
        self.layer.carry_through(creating).await
    }

    /// The container called so: by full id, name (with or without a slash before it), or a prefix of one id.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<ContainerId, Error> {
        self.layer.find(text)
    }

    /// A container now.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`].
    pub fn inspect(&self, id: &ContainerId) -> Result<Container, Error> {
        Ok(self.layer.cell(id)?.container())
    }

    /// All containers, newest first.
    pub fn list(&self) -> Vec<Container> {
        let cells = self.layer.cells();
        let mut all: Vec<_> = cells.iter().map(|cell| cell.container()).collect();
        all.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        all
    }

    /// Starts it; returns when its main process runs.
    ///
    /// # Errors
    /// [`Error::Start`] with the reason and nothing left running; [`Error::NoRoom`]; [`WrongState`].
    pub async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.layer.ask(id, Command::Start).await
    }

    /// Stops it: its stop signal (or `signal`), its grace (or `grace`, `Some(None)` for ever), SIGKILL. Returns
    /// when its VM is off.
    ///
    /// # Errors
    /// [`WrongState::NothingToDo`] when it is off.
    pub async fn stop(
        &self,
        id: &ContainerId,
        signal: Option<u8>,
        grace: Option<Option<Duration>>,
    ) -> Result<(), Error> {
        let how = Stop { signal, grace };
        self.layer
            .ask(id, |answer| Command::Stop(how, answer))
            .await
    }

    /// Stops it if it runs, and starts it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(
        &self,
        id: &ContainerId,
        signal: Option<u8>,
        grace: Option<Option<Duration>>,
    ) -> Result<(), Error> {
        let how = Stop { signal, grace };
        self.layer
            .ask(id, |answer| Command::Restart(how, answer))
            .await
    }

    /// Sends its main process a signal.
    ///
    /// # Errors
    /// [`WrongState::NotRunning`].
    pub async fn kill(&self, id: &ContainerId, signal: u8) -> Result<(), Error> {
        self.layer
            .ask(id, |answer| Command::Kill(signal, answer))
            .await
    }

    /// Makes running containers out of a running one, `count` of them: with its memory, its processes in the
    /// middle of what they do, and its disk as it is. It stands still for a moment, and keeps its connections;
    /// in the children they are reset. `signal` is sent to each child's main process as it goes on, 0 for
    /// none. The children's ids, all of them running.
    ///
    /// # Errors
    /// [`WrongState`]; [`Error::Invalid`]: no such count; [`Error::Unsupported`]: it has volumes, or the driver
    /// cannot; what [`start`](Self::start) fails with. None of the children is left, and it runs on.
    pub async fn fork(
        &self,
        id: &ContainerId,
        count: u32,
        signal: u8,
    ) -> Result<Vec<ContainerId>, Error> {
        self.layer
            .ask(id, |answer| Command::Fork(count, signal, answer))
            .await
    }

    /// Stops its VM's processors.
    ///
    /// # Errors
    /// [`WrongState`].
    pub async fn pause(&self, id: &ContainerId) -> Result<(), Error> {
        self.layer.ask(id, Command::Pause).await
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`WrongState::NotPaused`].
    pub async fn unpause(&self, id: &ContainerId) -> Result<(), Error> {
        self.layer.ask(id, Command::Unpause).await
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// [`Error::NameTaken`].
    pub async fn rename(&self, id: &ContainerId, name: ContainerName) -> Result<(), Error> {
        let from = self.layer.cell(id)?.container().name;
        if from == name {
            return Err(Error::Invalid(
                "Renaming a container with the same name as its current name".to_owned(),
            ));
        }
        self.layer.reserve(Some(name.clone()), *id)?;
        let asked = self
            .layer
            .ask(id, |answer| Command::Rename(name.clone(), answer));
        let renamed = asked.await;
        let now = self.layer.cell(id).map(|cell| cell.container().name);
        // Whichever it has not is free again.
        for other in [&from, &name] {
            if now.as_ref().ok() != Some(other) {
                self.layer.free(other, id);
            }
        }
        renamed
    }

    /// Changes memory, CPUs, restart policy. Says whether the size applies at once or at the next start.
    ///
    /// # Errors
    /// [`Error::NoRoom`], or the hypervisor's.
    pub async fn update(&self, id: &ContainerId, update: Update) -> Result<Applied, Error> {
        self.layer
            .ask(id, |answer| Command::Update(update, answer))
            .await
    }

    /// Waits, and says how it ended last. Cancel safe.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`]; [`Error::ShuttingDown`].
    pub async fn wait(&self, id: &ContainerId, what: WaitFor) -> Result<Ended, Error> {
        let cell = self.layer.cell(id)?;
        let mut view = cell.view.subscribe();
        let before = view.borrow().ends;
        let view = view
            .wait_for(|view| {
                view.removed
                    || match what {
                        WaitFor::NotRunning => {
                            !view.container.state.is_on()
                                && !matches!(view.container.state, State::Restarting { .. })
                        }
                        WaitFor::NextExit => view.ends > before,
                        WaitFor::Removed => false,
                    }
            })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        Ok(view.last.clone().unwrap_or_else(|| Ended {
            status: 0,
            out_of_memory: false,
            error: String::new(),
            started: SystemTime::UNIX_EPOCH,
            finished: SystemTime::UNIX_EPOCH,
            by_request: false,
        }))
    }

    /// Removes it with its disk and its log.
    ///
    /// # Errors
    /// [`WrongState::Running`] without force.
    pub async fn remove(&self, id: &ContainerId, how: Removal) -> Result<(), Error> {
        self.layer
            .ask(id, |answer| Command::Remove(how, answer))
            .await
    }

    // --- streams ----------------------------------------------------------------------------------

    /// Attaches to the main process, or to the one that will be started; ends when it ends. With `replay` what
    /// it has written comes first, without gap or overlap, by lines.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn attach(
        &self,
        id: &ContainerId,
        wanted: Wanted,
        replay: bool,
    ) -> Result<Attachment, Error> {
        let cell = self.layer.cell(id)?;
        let mut attachment = cell.hub.attach(wanted);
        if replay {
            let query = LogQuery {
                stdout: wanted.stdout,
                stderr: wanted.stderr,
                since: None,
                until: None,
                tail: None,
                follow: Follow::Yes,
            };
            attachment.output = pieces(self.logs(id, query).await?);
        }
        self.layer.emit(subject(&cell), Action::Attach);
        Ok(attachment)
    }

    /// Whoever was attached has left by the detach keys.
    pub fn detached(&self, id: &ContainerId, exec: Option<&ExecId>) {
        if let Ok(cell) = self.layer.cell(id) {
            let action = match exec {
                Some(exec) => Action::ExecDetach { exec: *exec },
                None => Action::Detach,
            };
            self.layer.emit(subject(&cell), action);
        }
    }

    /// Changes the size of the main process's terminal.
    ///
    /// # Errors
    /// [`WrongState`], [`Error::Guest`].
    pub async fn resize(&self, id: &ContainerId, size: TerminalSize) -> Result<(), Error> {
        let cell = self.layer.cell(id)?;
        let run = cell.run().ok_or(WrongState::NotRunning(*id))?;
        if cell.view.borrow().container.spec.process.stdio == Stdio::Pipes {
            return Ok(());
        }
        let resized = run.main.resize(size).await;
        resized.map_err(|source| Error::Guest { id: *id, source })?;
        let (rows, columns) = (size.rows, size.columns);
        self.layer
            .emit(subject(&cell), Action::Resize { rows, columns });
        Ok(())
    }

    /// What it has written, as it is kept.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it is not kept.
    pub async fn logs(&self, id: &ContainerId, query: LogQuery) -> Result<LogReader, Error> {
        let cell = self.layer.cell(id)?;
        let spec = cell.view.borrow().container.spec.log;
        log::read(&cell.directory, &spec, query, &cell.log)
    }

    /// The file its log is in, where it is kept.
    pub fn log_path(&self, id: &ContainerId) -> Option<PathBuf> {
        let cell = self.layer.cell(id).ok()?;
        let spec = cell.view.borrow().container.spec.log;
        (spec != LogSpec::None).then(|| log::current_file(&cell.directory))
    }

    // --- execs ------------------------------------------------------------------------------------

    /// Makes an exec of a running container.
    ///
    /// # Errors
    /// [`WrongState`], [`Error::Invalid`].
    pub async fn exec_create(
        &self,
        id: &ContainerId,
        process: ProcessSpec,
        endpoint: serde_json::Value,
    ) -> Result<ExecId, Error> {
        execs::create(&self.layer, &self.layer.cell(id)?, process, endpoint)
    }

    /// Starts it, attached as `wanted` says; without that its output goes nowhere. `size` replaces its
    /// terminal's first size.
    ///
    /// # Errors
    /// [`Error::ExecStart`], [`WrongState::ExecStarted`], [`WrongState`] of its container.
    pub async fn exec_start(
        &self,
        id: &ExecId,
        wanted: Option<Wanted>,
        size: Option<TerminalSize>,
    ) -> Result<Option<Attachment>, Error> {
        let cell = self.exec_cell(id)?;
        let (layer, id) = (self.layer.clone(), *id);
        let starting = async move { execs::start(&layer, &cell, id, wanted, size).await };
        self.layer.carry_through(starting).await
    }

    /// An exec now.
    ///
    /// # Errors
    /// [`Error::NoSuchExec`].
    pub fn exec_inspect(&self, id: &ExecId) -> Result<Exec, Error> {
        let cell = self.exec_cell(id)?;
        let exec = cell.execs().get(id).cloned();
        exec.ok_or_else(|| execs::no_such(id))
    }

    /// The execs of a container that are known.
    pub fn execs(&self, id: &ContainerId) -> Vec<Exec> {
        match self.layer.cell(id) {
            Ok(cell) => cell.execs().values().cloned().collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Changes the size of an exec's terminal.
    ///
    /// # Errors
    /// [`WrongState::ExecNotRunning`], [`Error::Guest`].
    pub async fn exec_resize(&self, id: &ExecId, size: TerminalSize) -> Result<(), Error> {
        let cell = self.exec_cell(id)?;
        execs::resize(&cell, id, size).await
    }

    fn exec_cell(&self, id: &ExecId) -> Result<Arc<crate::cell::Cell>, Error> {
        let cells = self.layer.cells();
        let cell = cells.into_iter().find(|cell| cell.execs().contains_key(id));
        cell.ok_or_else(|| execs::no_such(id))
    }

    // --- looking in -------------------------------------------------------------------------------

    /// The processes of a running container.
    ///
    /// # Errors
    /// [`WrongState`], [`Error::Guest`].
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<ProcessInfo>, Error> {
        let cell = self.layer.cell(id)?;
        let run = execs::running(&cell)?;
        let processes = run.link.processes().await;
        let processes = processes.map_err(|source| Error::Guest { id: *id, source })?;
        self.layer.emit(subject(&cell), Action::Top);
        Ok(processes)
    }

    /// What a running container uses.
    ///
    /// # Errors
    /// [`WrongState`], [`Error::Guest`].
    pub async fn statistics(&self, id: &ContainerId) -> Result<Statistics, Error> {
        let cell = self.layer.cell(id)?;
        let run = execs::running(&cell)?;
        let statistics = run.link.statistics().await;
        statistics.map_err(|source| Error::Guest { id: *id, source })
    }

    /// The last part of its VM's console, the kernel's log.
    ///
    /// # Errors
    /// The hypervisor's.
    pub async fn console(&self, id: &ContainerId) -> Result<Vec<u8>, Error> {
        self.layer.cell(id)?;
        let machine = crate::record::machine_id(id);
        let console = self.layer.driver.console(&machine).await;
        console.map_err(Error::hypervisor(*id))
    }

    // --- events -----------------------------------------------------------------------------------

    /// Events from `since` on, as far as they are kept, then those to come, until `until`.
    pub fn events(&self, since: Option<SystemTime>, until: Option<SystemTime>) -> EventReader {
        self.layer.journal.subscribe(since, until)
    }
}

/// A log as an attached process's output.
fn pieces(mut log: LogReader) -> AttachedOutput {
    let (sender, pieces) = tokio::sync::mpsc::channel(32);
    tokio::spawn(async move {
        while let Some(Ok(record)) = log.next().await {
            let piece = Piece {
                output: record.output,
                data: record.data,
            };
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    AttachedOutput { pieces }
}
