//! While it runs: signals, stops and their deadlines, pauses, and what others do to its machine.

use std::time::{Duration, SystemTime};

use hypervisor::{Cause, PowerState, StopCause};
use tether_wire::message::SignalTarget;
use tokio::time::Instant;

use super::end::said;
use super::{LOST, Phase, SIGKILL, Stopping, Task, Waiting, tell};
use crate::boot::chain;
use crate::command::Stop;
use crate::error::Error;
use crate::event::Action;
use crate::spec::StopSpec;

/// How long a process may take to be gone after SIGKILL before its VM's power is cut.
const AFTER_KILL: Duration = Duration::from_secs(10);

impl Task {
    pub(super) async fn stop(&mut self, how: Stop, waiting: Waiting) {
        let Phase::On(_) = &self.phase else { return };
        let stop = how.or(self.made.spec.stop);
        // So that an end while the controller is away is not taken for the process's own.
        self.kept.stopped_by_request = true;
        let kept = self.keep().await;
        let Phase::On(on) = &mut self.phase else {
            return;
        };
        if let Err(error) = kept {
            return match waiting {
                Waiting::Stop(answer) | Waiting::Restart(answer) => tell(answer, Err(error)),
            };
        }
        match &mut on.stopping {
            Some(stopping) => {
                let sooner = stop.grace.map(|grace| Instant::now() + grace);
                stopping.deadline = match (stopping.deadline, sooner) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                stopping.waiting.push(waiting);
            }
            None => {
                on.stopping = Some(Stopping {
                    deadline: stop.grace.map(|grace| Instant::now() + grace),
                    killed: false,
                    waiting: vec![waiting],
                });
            }
        }
        self.ask_to_stop(stop).await;
    }

    pub(super) async fn ask_to_stop(&mut self, stop: StopSpec) {
        self.emit(Action::Kill {
            signal: stop.signal,
        });
        self.signal(stop.signal);
        if self.is_paused() {
            // It cannot obey while it is paused.
            let _ = self.unpause().await;
        }
    }

    pub(super) async fn go_on_stopping(&mut self) {
        let stop = self.made.spec.stop;
        if let Phase::On(on) = &mut self.phase {
            on.stopping = Some(Stopping {
                deadline: stop.grace.map(|grace| Instant::now() + grace),
                killed: false,
                waiting: Vec::new(),
            });
            self.ask_to_stop(stop).await;
        }
    }

    /// A stop's time is over.
    pub(super) async fn overdue(&mut self) {
        let Phase::On(on) = &mut self.phase else {
            return;
        };
        let Some(stopping) = &mut on.stopping else {
            return;
        };
        if !std::mem::replace(&mut stopping.killed, true) {
            stopping.deadline = Some(Instant::now() + AFTER_KILL);
            self.emit(Action::Kill { signal: SIGKILL });
            return self.signal(SIGKILL);
        }
        stopping.deadline = None;
        tracing::warn!(container = %self.cell.id, "it does not end of SIGKILL; its power is cut");
        self.cut().await;
        self.end(LOST, String::new()).await;
    }

    pub(super) async fn kill(&mut self, signal: u8) -> Result<(), Error> {
        let own = self.made.spec.stop.signal;
        if (signal == SIGKILL || signal == own) && !self.kept.stopped_by_request {
            self.kept.stopped_by_request = true;
            self.keep().await?;
        }
        if let Phase::On(on) = &mut self.phase
            && signal == SIGKILL
        {
            let stopping = on.stopping.get_or_insert(Stopping {
                deadline: None,
                killed: true,
                waiting: Vec::new(),
            });
            stopping.killed = true;
            stopping.deadline = Some(Instant::now() + AFTER_KILL);
        }
        self.signal(signal);
        self.emit(Action::Kill { signal });
        if signal == SIGKILL && self.is_paused() {
            self.unpause().await?;
        }
        Ok(())
    }

    /// Sends a signal to the main process; the answer is its end.
    pub(super) fn signal(&self, signal: u8) {
        if let Phase::On(on) = &self.phase {
            drop(on.channel.main.signal(signal, SignalTarget::Process));
        }
    }

    pub(super) async fn unpause(&mut self) -> Result<(), Error> {
        let id = self.cell.id;
        let driver = self.layer.driver.clone();
        let done = driver.resume(&self.machine).await;
        done.map_err(Error::hypervisor(id))?;
        // The guest's clock stood still.
        if let Phase::On(on) = &self.phase {
            let now = crate::machine::unix_nanos(SystemTime::now());
            drop(on.channel.link.set_clock(now));
        }
        self.show_paused(false);
        Ok(())
    }

    /// Somebody else did something to the machine.
    pub(super) async fn look(&mut self) {
        match self.layer.driver.inspect(&self.machine).await {
            Ok(machine) => match machine.power {
                PowerState::Off { cause } => self.went_off(&cause).await,
                PowerState::Suspended if !self.is_paused() => self.show_paused(true),
                PowerState::On if self.is_paused() => self.show_paused(false),
                _ => {}
            },
            Err(error) if matches!(error.cause(), Cause::NotFound { .. }) => {
                self.end(LOST, "its machine was removed".to_owned()).await;
                if !matches!(self.phase, Phase::Gone)
                    && let Err(error) = self.remove().await
                {
                    tracing::warn!(container = %self.cell.id, error = chain(&error), "what is left of it stays");
                }
            }
            Err(error) => {
                tracing::warn!(container = %self.cell.id, error = chain(&error), "cannot look at its machine");
            }
        }
    }

    pub(super) async fn went_off(&mut self, cause: &StopCause) {
        // What arrived before is stored by now or was never to come: the channel is gone.
        self.end(LOST, said(cause)).await;
    }
}
