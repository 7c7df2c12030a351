//! From on to off: what is written down, told, and done then.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hypervisor::{Cause, MachineId, Notice, PowerOff, PowerState, StopCause};
use tether_link::{Link, LinkError};
use tether_wire::message::{Action as EndAction, Exit, ShutdownSpec};
use tokio::time::{Instant, timeout};

use super::{LOST, Phase, SIGKILL, Task, Waiting, tell};
use crate::boot::{self, chain};
use crate::cell::{ExecFiles, lock};
use crate::container::{Ended, State};
use crate::error::Error;
use crate::event::Action;
use crate::restart::{self, Occasion};
use crate::spec::AtEnd;

/// How long a guest may take to unmount and power off.
const POWER_OFF: Duration = Duration::from_secs(15);

impl Task {
    pub(super) async fn main_ended(&mut self, result: Result<Exit, LinkError>) {
        match result {
            Ok(exit) => {
                if exit.oom_killed {
                    self.out_of_memory();
                }
                self.end(exit.status.shell(), String::new()).await;
            }
            Err(error) => {
                // The hypervisor knows better why.
                let machine = self.layer.driver.inspect(&self.machine).await;
                match machine.map(|machine| machine.power) {
                    Ok(PowerState::Off { cause }) => self.end(LOST, said(&cause)).await,
                    _ => {
                        self.cut().await;
                        self.end(LOST, chain(&error)).await;
                    }
                }
            }
        }
    }

    pub(super) fn out_of_memory(&self) {
        if let Phase::On(on) = &self.phase
            && !on.out_of_memory.swap(true, Ordering::Relaxed)
        {
            self.emit(Action::OutOfMemory);
        }
    }

    /// The main process has ended, one way or another, and all that will ever be stored of it is.
    pub(super) async fn end(&mut self, status: u8, error: String) {
        let Phase::On(on) = std::mem::replace(&mut self.phase, Phase::Off) else {
            return;
        };
        let mut on = *on;
        let now = SystemTime::now();
        let ended = Ended {
            status,
            out_of_memory: on.out_of_memory.load(Ordering::Relaxed),
            error,
            started: on.started,
            // By this host's clock; never before the start, whatever it did meanwhile.
            finished: now.max(on.started),
            by_request: self.kept.stopped_by_request,
        };
        self.record_end(ended).await;
        let ran = now.duration_since(on.started).unwrap_or_default();
        let waiting = on.stopping.take().map(|stopping| stopping.waiting);
        self.cell.set_run(None);
        if self.made.spec.at_end == AtEnd::Keep {
            self.power_off(&on.channel.link).await;
        }
        drop(on);
        lock(&self.layer.admission).release(&self.cell.id);
        let waiting = waiting.unwrap_or_default();
        if !waiting.is_empty() {
            self.emit(Action::Stop);
        }
        self.after_end(ran).await;
        self.answer_waiting(waiting).await;
    }

    pub(super) async fn answer_waiting(&mut self, waiting: Vec<Waiting>) {
        let mut started: Option<Result<(), Error>> = None;
        for waiting in waiting {
            match waiting {
                Waiting::Stop(answer) => tell(answer, Ok(())),
                Waiting::Restart(answer) => {
                    if started.is_none() && matches!(self.phase, Phase::Off | Phase::Waiting { .. })
                    {
                        let result = self.start_by_request().await;
                        if result.is_ok() {
                            self.emit(Action::Restart);
                        }
                        started = Some(result);
                    }
                    tell(answer, started.take().unwrap_or(Ok(())));
                }
            }
        }
    }

    /// Writes the end down, then tells it.
    pub(super) async fn record_end(&mut self, ended: Ended) {
        let (die, since) = (died(&ended), ended.started);
        self.kept.last = Some(ended);
        if let Err(error) = self.keep().await {
            tracing::error!(container = %self.cell.id, error = chain(&error), "cannot write its end down");
        }
        self.emit_once(die, since);
        self.cell.hub.end();
        self.show_last();
        let last = self.kept.last.clone();
        self.cell.view.send_modify(|view| {
            view.ends += 1;
            view.last = last;
        });
    }

    /// Lets the guest unmount its disk and power off; cuts the power if it does not.
    pub(super) async fn power_off(&mut self, link: &Link) {
        let spec = ShutdownSpec {
            signal: SIGKILL,
            grace_ms: 0,
            action: EndAction::PowerOff,
        };
        let mut events = self.layer.driver.events();
        let machine = self.machine;
        let driver = self.layer.driver.clone();
        let asked = link.shutdown(spec);
        let off = async {
            // The machine may be off before the answer arrives.
            tokio::pin!(asked);
            let mut answered = false;
            loop {
                if let Ok(found) = driver.inspect(&machine).await
                    && found.power.is_off()
                {
                    return;
                }
                tokio::select! {
                    result = &mut asked, if !answered => {
                        answered = true;
                        if matches!(result, Err(LinkError::Guest(_))) {
                            return;
                        }
                    }
                    () = changed(&mut events, machine) => {}
                }
            }
        };
        let _ = timeout(POWER_OFF, off).await;
        self.cut().await;
    }

    /// No power after this. A machine that is off, or gone, is no failure.
    pub(super) async fn cut(&self) {
        match self
            .layer
            .driver
            .power_off(&self.machine, PowerOff::Cut)
            .await
        {
            Err(error) if !matches!(error.cause(), Cause::NotFound { .. }) => {
                tracing::error!(container = %self.cell.id, error = chain(&error), "cannot cut its power");
            }
            _ => {}
        }
    }

    /// What comes after an end: the policy's restart, or nothing, or removal.
    pub(super) async fn after_end(&mut self, ran: Duration) {
        let Some(last) = &self.kept.last else { return };
        let failed;
        let last = match &self.kept.failed {
            // A start that failed counts as an end with its status.
            Some(failure) => {
                failed = Ended {
                    status: failure.status,
                    ..last.clone()
                };
                &failed
            }
            None => last,
        };
        let (policy, by_request) = (self.kept.restart, self.kept.stopped_by_request);
        if restart::again(
            policy,
            Occasion::Ended,
            last,
            by_request,
            self.kept.restarts,
        ) {
            let pause = restart::pause(self.last_pause, ran);
            self.last_pause = Some(pause);
            self.phase = Phase::Waiting {
                until: Instant::now() + pause,
            };
            self.show(State::Restarting { last: last.clone() });
        } else if self.made.spec.at_end == AtEnd::Remove
            && let Err(error) = self.remove().await
        {
            tracing::error!(container = %self.cell.id, error = chain(&error), "cannot remove it");
        }
    }

    /// What an earlier controller was about to do when its container had ended.
    pub(super) async fn settle(&mut self) {
        self.tell_end();
        if self.kept.last.is_some() && self.made.spec.at_end == AtEnd::Remove {
            self.after_end(Duration::ZERO).await;
        }
    }

    /// Tells of the last end, if it is certain that nobody has.
    pub(super) fn tell_end(&self) {
        if let Some(last) = &self.kept.last
            && self.layer.journal.covers(last.started)
        {
            self.emit_once(died(last), last.started);
        }
    }

    pub(super) async fn ended_unseen(&mut self, cause: &StopCause) {
        let Ok(machine) = self.layer.driver.inspect(&self.machine).await else {
            return;
        };
        let finished = machine.stopped.max(machine.started);
        self.record_lost(said(cause), machine.started, finished)
            .await;
    }

    /// Nothing is known of it any more.
    pub(super) async fn lost(&mut self, error: String, at: SystemTime) {
        self.record_lost(error, at, at).await;
    }

    async fn record_lost(&mut self, error: String, started: SystemTime, finished: SystemTime) {
        let ended = Ended {
            status: LOST,
            out_of_memory: false,
            error,
            started,
            finished,
            by_request: self.kept.stopped_by_request,
        };
        self.record_end(ended).await;
        lock(&self.layer.admission).release(&self.cell.id);
        self.after_end(Duration::ZERO).await;
    }

    /// Its end is written down already, and its machine is still on.
    pub(super) async fn finish_end(&mut self) {
        self.tell_end();
        if self.made.spec.at_end == AtEnd::Keep {
            let (memory, cpus) = self.size();
            lock(&self.layer.admission).count(self.cell.id, memory, cpus, &[]);
            match boot::connect(&self.layer.driver, self.machine, [0, 0]).await {
                Ok(link) => self.power_off(&link).await,
                Err(_) => self.cut().await,
            }
            lock(&self.layer.admission).release(&self.cell.id);
        }
        self.after_end(Duration::ZERO).await;
    }

    pub(super) async fn remove(&mut self) -> Result<(), Error> {
        let id = self.cell.id;
        self.end_helper().await?;
        self.show(State::Removing);
        match self.layer.driver.destroy(&self.machine).await {
            Err(source) if !matches!(source.cause(), Cause::NotFound { .. }) => {
                self.show_last();
                return Err(Error::hypervisor(id)(source));
            }
            _ => {}
        }
        lock(&self.layer.admission).release(&id);
        let (image, directory) = (self.made.spec.image.id, self.cell.directory.clone());
        *self.cell.exec_files() = ExecFiles::Gone;
        let removed = self.layer.remove_directory(image, id, directory).await;
        // The container is gone with its machine, whatever is left of its files until the next start.
        self.layer.forget(&self.cell);
        self.emit(Action::Destroy);
        self.cell.hub.end();
        self.cell.view.send_modify(|view| view.removed = true);
        self.phase = Phase::Gone;
        removed
    }
}

fn died(ended: &Ended) -> Action {
    let ran = ended.finished.duration_since(ended.started);
    Action::Die {
        status: ended.status,
        seconds: ran.unwrap_or_default().as_secs(),
    }
}

/// What is said of a process whose machine went off under it.
pub(super) fn said(cause: &StopCause) -> String {
    format!("its VM went off: {cause}")
}

/// Resolves when something may have happened to the machine.
async fn changed(events: &mut hypervisor::Events, machine: MachineId) {
    loop {
        match events.next().await {
            hypervisor::Next::Event(event) if event.id == machine => {
                if matches!(event.notice, Notice::PoweredOff(_) | Notice::Destroyed) {
                    return;
                }
            }
            hypervisor::Next::Event(_) => {}
            hypervisor::Next::Missed => return,
            hypervisor::Next::End => std::future::pending().await,
        }
    }
}
