//! From off to on: power, boot, setup, main process; and the same for a machine found on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hypervisor::{Machine, PowerState, StopCause};
use tether_link::Notice as LinkNotice;
use tether_wire::message::{MachineEvent, ProcessId, RunState};

use tokio::time::sleep;

use super::{Aborting, On, Phase, SIGKILL, Task, subject};
use crate::boot::{self, Begun, DAEMON_ERROR, NotBegun, Origin, chain, failure};
use crate::cell::{Cell, Run as Channel, lock};
use crate::command::{Command, Removal};
use crate::container::{Run, StartFailure, State};
use crate::error::Error;
use crate::event::Action;
use crate::layer::Layer;
use crate::log::Writer;
use crate::spec::AtEnd;
use crate::{attend, execs, health};

/// The pause before a machine that could not be reached is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Task {
    pub(super) async fn start_by_request(&mut self) -> Result<(), Error> {
        let former = (self.kept.restarts, self.kept.stopped_by_request);
        self.kept.restarts = 0;
        self.kept.stopped_by_request = false;
        self.last_pause = None;
        if former != (0, false) {
            self.keep().await?;
        }
        let started = self.start().await;
        if let Err(Error::Start { .. }) = &started
            && self.made.spec.at_end == AtEnd::Remove
            && let Err(error) = self.remove().await
        {
            tracing::error!(container = %self.cell.id, error = chain(&error), "cannot remove it");
        }
        started
    }

    pub(super) async fn start_by_policy(&mut self) {
        self.kept.restarts = self.kept.restarts.saturating_add(1);
        self.kept.stopped_by_request = false;
        // What cannot be written down now is with the next end.
        let _ = self.keep().await;
        if let Err(error) = self.start().await {
            tracing::warn!(container = %self.cell.id, error = chain(&error), "cannot start it again");
            self.after_end(Duration::ZERO).await;
        }
    }

    /// Powers the machine on and starts the main process. Nothing is left running when it fails.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        let id = self.cell.id;
        let size = self.size();
        self.end_helper().await?;
        lock(&self.layer.admission).admit(id, size.0, size.1, &self.made.published)?;
        self.phase = Phase::Off;
        self.show(State::Starting);
        match self.boot().await {
            Ok(()) => Ok(()),
            Err(failure) => {
                self.not_started(failure.clone()).await;
                Err(Error::Start { id, failure })
            }
        }
    }

    pub(super) async fn boot(&mut self) -> Result<(), StartFailure> {
        let driver = self.layer.driver.clone();
        let hypervisor = |error: hypervisor::Error| failure(DAEMON_ERROR, chain(&error));
        driver.power_on(&self.machine).await.map_err(hypervisor)?;
        let machine = driver.inspect(&self.machine).await.map_err(hypervisor)?;
        let begun = self.begin(machine, Origin::New).await;
        begun.map_err(NotBegun::into_failure)?;
        self.emit(Action::Start);
        Ok(())
    }

    /// From a machine that is on to [`Phase::On`].
    pub(super) async fn begin(&mut self, machine: Machine, origin: Origin) -> Result<(), NotBegun> {
        let run = crate::machine::unix_nanos(machine.started);
        let feed = self.cell.log.clone();
        let log = Writer::open(&self.cell.directory, &self.made.spec.log, run, feed);
        let log = log.map_err(|error| NotBegun::Unreached(failure(DAEMON_ERROR, chain(&error))))?;
        let driver = self.layer.driver.clone();
        let made = self.made.clone();
        let stored = log.cursor();
        let machine_id = self.machine;
        let started = machine.started;
        let booting = async {
            let link = boot::connect(&driver, machine_id, stored).await?;
            boot::begin(link, origin, &made, &machine).await
        };
        let begun = self.unless_interrupted(origin, booting).await?;
        self.attend(begun, log, started);
        Ok(())
    }

    /// Waits for a boot and hears commands meanwhile: whoever wants the end of it gets it.
    pub(super) async fn unless_interrupted(
        &mut self,
        origin: Origin,
        booting: impl Future<Output = Result<Begun, NotBegun>>,
    ) -> Result<Begun, NotBegun> {
        tokio::pin!(booting);
        let gone_off =
            |cause: &StopCause| failure(DAEMON_ERROR, format!("the VM did not come up: {cause}"));
        loop {
            tokio::select! {
                begun = &mut booting => {
                    return match begun {
                        Err(NotBegun::Unreached(mut failure)) => {
                            failure.message.push_str(&self.console().await);
                            Err(NotBegun::Unreached(failure))
                        }
                        begun => begun,
                    };
                }
                () = self.cell.machine_changed.notified() => {
                    if let Ok(machine) = self.layer.driver.inspect(&self.machine).await
                        && let PowerState::Off { cause } = machine.power
                    {
                        let mut failure = gone_off(&cause);
                        failure.message.push_str(&self.console().await);
                        return Err(NotBegun::Unreached(failure));
                    }
                }
                command = self.inbox.recv() => match command {
                    None => return std::future::pending().await,
                    Some(command) => {
                        let ends = match command {
                            Command::Kill(SIGKILL, _) | Command::Remove(Removal::Force, _) => true,
                            // A process that may run for long already is asked in its own way.
                            Command::Stop(..) | Command::Restart(..) => origin == Origin::New,
                            _ => false,
                        };
                        self.deferred.push_back(command);
                        if ends {
                            return Err(NotBegun::Interrupted);
                        }
                    }
                },
            }
        }
    }

    /// The last lines of the VM's console, for a message.
    pub(super) async fn console(&self) -> String {
        let Ok(console) = self.layer.driver.console(&self.machine).await else {
            return String::new();
        };
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = &lines[lines.len().saturating_sub(10)..];
        if last.is_empty() {
            return String::new();
        }
        format!("; its console ends with:\n{}", last.join("\n"))
    }

    pub(super) fn attend(&mut self, begun: Begun, log: Writer, started: SystemTime) {
        let Begun {
            link,
            resumed,
            main,
        } = begun;
        let highest = resumed.processes.iter().map(|state| state.process).max();
        let known = resumed.processes.iter().find_map(|state| match state.run {
            RunState::Running { pid } if state.process == ProcessId::MAIN => Some(pid),
            _ => None,
        });
        let pid = main.control.pid().or(known).unwrap_or(0);
        let channel = Arc::new(Channel::new(
            link,
            main.control.clone(),
            highest.unwrap_or(ProcessId::MAIN),
        ));
        self.cell.set_run(Some(channel.clone()));
        let cell = self.cell.clone();
        let attending = {
            let cell = cell.clone();
            let (control, streams) = (main.control, [main.stdout, main.stderr]);
            tokio::spawn(async move { attend::attend(&cell, control, streams, log).await })
        };
        let mut aside = Vec::new();
        if let Some(pieces) = cell.hub.take_input() {
            aside.push(Aborting(tokio::spawn(attend::feed(pieces, main.stdin))));
        }
        let out_of_memory = Arc::default();
        aside.push(Aborting(tokio::spawn(listen(
            self.layer.clone(),
            cell.clone(),
            channel.clone(),
            Arc::clone(&out_of_memory),
        ))));
        execs::take_over(&self.layer, &cell, &channel, &resumed);
        self.kept.failed = None;
        let health = self.made.spec.health.clone();
        self.show(State::Running(Run {
            started,
            pid,
            health: health.as_ref().map(|_| health::unknown()),
        }));
        if let Some(check) = health {
            aside.push(Aborting(tokio::spawn(health::watch(
                self.layer.clone(),
                cell,
                channel.clone(),
                check,
                self.made.spec.process.clone(),
            ))));
        }
        self.phase = Phase::On(Box::new(On {
            channel,
            attending: Aborting(attending),
            _aside: aside,
            started,
            stopping: None,
            out_of_memory,
        }));
    }

    /// Goes on with a machine that an earlier controller powered on.
    pub(super) async fn take_over(&mut self) {
        let id = self.cell.id;
        let (memory, cpus) = self.size();
        lock(&self.layer.admission).count(id, memory, cpus, &self.made.published);
        self.show(State::Starting);
        let mut paused = false;
        // Only its machine's end, its guest's word or somebody's wish ends it: whatever else is in the way
        // may pass.
        loop {
            let machine = match self.layer.driver.inspect(&self.machine).await {
                Ok(machine) => machine,
                Err(error) => {
                    tracing::error!(container = %id, error = chain(&error), "cannot look at its machine");
                    return self.lost(chain(&error), SystemTime::now()).await;
                }
            };
            match &machine.power {
                PowerState::Off { cause } => return self.ended_unseen(cause).await,
                PowerState::On => {}
                PowerState::Suspended => {
                    // Its tether has to answer before anything is known of it.
                    paused = self.layer.driver.resume(&self.machine).await.is_ok();
                }
            }
            let started = machine.started;
            match self.begin(machine, Origin::Found).await {
                Ok(()) => return self.taken_over(started, paused).await,
                // It had been powered on and not started, and cannot be.
                Err(NotBegun::Refused(failure)) => return self.not_started(failure).await,
                Err(NotBegun::Interrupted) => {
                    self.kept.stopped_by_request = true;
                    self.cut().await;
                    return self.lost(String::new(), started).await;
                }
                Err(NotBegun::Unreached(failure)) => {
                    tracing::error!(container = %id, error = failure.message, "cannot go on with it yet");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn taken_over(&mut self, started: SystemTime, paused: bool) {
        self.emit_once(Action::Start, started);
        if paused && self.layer.driver.suspend(&self.machine).await.is_ok() {
            self.show_paused_silently(true);
        }
        if self.kept.stopped_by_request {
            // An earlier controller was stopping it.
            self.go_on_stopping().await;
        }
    }

    /// Leaves nothing of a start that failed but the reason.
    async fn not_started(&mut self, failure: StartFailure) {
        self.cut().await;
        lock(&self.layer.admission).release(&self.cell.id);
        self.cell.hub.end();
        self.kept.failed = Some(failure);
        // A reason that cannot be written down is told all the same.
        let _ = self.keep().await;
        self.show_last();
    }
}

/// What a guest says unasked.
async fn listen(
    layer: Arc<Layer>,
    cell: Arc<Cell>,
    channel: Arc<Channel>,
    out_of_memory: Arc<AtomicBool>,
) {
    while let Ok(notice) = channel.link.notice().await {
        match notice {
            LinkNotice::Machine(MachineEvent::OutOfMemory { .. }) => {
                if !out_of_memory.swap(true, Ordering::Relaxed) {
                    layer.emit(subject(&cell), Action::OutOfMemory);
                }
            }
            LinkNotice::Machine(MachineEvent::Warning { message }) => {
                tracing::warn!(container = %cell.id, "{message}");
            }
            LinkNotice::Machine(MachineEvent::Lease {
                interface, address, ..
            }) => {
                tracing::info!(container = %cell.id, interface, ?address, "DHCP lease");
            }
            LinkNotice::Lost(count) => {
                tracing::warn!(container = %cell.id, count, "notices of the guest were lost");
            }
            LinkNotice::Up | LinkNotice::Down => {}
        }
    }
}
