//! The task that owns one container's transitions.
//!
//! Commands arrive one by one and are carried out in order; what takes long (a boot, a stop's grace) does not
//! keep a kill from being heard. The states are the crate's; here they are four:
//!
//! ```text
//!  Off <---> On (running, paused, being stopped)
//!   ^  \      |
//!   |   +---- Waiting (for the restart policy's pause)
//!   +-- Gone (removed: the task ends)
//! ```

mod change;
mod commands;
mod end;
mod files;
mod fork;
mod start;
mod stop;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use hypervisor::{MachineId, StopCause};
use tether_link::LinkError;
use tether_wire::message::Exit;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::cell::{Cell, Run as Channel};
use crate::command::{Answer, Command};
use crate::container::{Ended, State};
use crate::error::Error;
use crate::event::Subject;
use crate::layer::Layer;
use crate::record::{self, Kept, Made};
use fork::Birth;

const SIGKILL: u8 = 9;
/// The status of a process whose machine went away under it: as if it was killed.
const LOST: u8 = 128 + SIGKILL;

/// Where a task begins.
#[derive(Debug)]
pub(crate) enum First {
    /// A container that was just made, or that is off and stays so.
    Off,
    /// The policy starts it.
    Start,
    /// Its machine is on: an earlier controller started it.
    On,
    /// Its machine is on, and its process's end is written down.
    EndedOn,
    /// Its machine went off, and nobody wrote down how its process ended.
    EndedUnseen(StopCause),
    /// Its machine is a child of a running one, and its guest does not know yet.
    Newborn(Birth),
}

pub(crate) struct Task {
    layer: Arc<Layer>,
    cell: Arc<Cell>,
    made: Arc<Made>,
    kept: Kept,
    machine: MachineId,
    inbox: mpsc::UnboundedReceiver<Command>,
    /// Commands heard while a start was under way.
    deferred: VecDeque<Command>,
    phase: Phase,
    last_pause: Option<Duration>,
    /// When its helper containerVM, if it has one, is looked at.
    helper_until: Option<Instant>,
}

enum Phase {
    Off,
    Waiting { until: Instant },
    On(Box<On>),
    Gone,
}

/// A machine that is on.
struct On {
    channel: Arc<Channel>,
    attending: Aborting<Result<Exit, LinkError>>,
    _aside: Vec<Aborting<()>>,
    started: SystemTime,
    stopping: Option<Stopping>,
    out_of_memory: Arc<AtomicBool>,
}

/// A stop under way.
struct Stopping {
    /// When the next, harder thing is done.
    deadline: Option<Instant>,
    killed: bool,
    waiting: Vec<Waiting>,
}

enum Waiting {
    Stop(Answer<()>),
    Restart(Answer<()>),
}

/// A task that ends with its owner.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    pub fn new(
        layer: Arc<Layer>,
        cell: Arc<Cell>,
        made: Arc<Made>,
        kept: Kept,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            machine: record::machine_id(&made.id),
            layer,
            cell,
            made,
            kept,
            inbox,
            deferred: VecDeque::new(),
            phase: Phase::Off,
            last_pause: None,
            helper_until: None,
        }
    }

    /// Runs until the container is removed or the port layer is closed.
    pub async fn run(mut self, first: First) {
        match first {
            First::Off => self.settle().await,
            First::Start => {
                self.tell_end();
                self.start_by_policy().await;
            }
            First::On => self.take_over().await,
            First::EndedOn => self.finish_end().await,
            First::EndedUnseen(cause) => self.ended_unseen(&cause).await,
            First::Newborn(birth) => self.be_born(birth).await,
        }
        loop {
            match &mut self.phase {
                Phase::Gone => return,
                Phase::Off => tokio::select! {
                    () = reached(self.helper_until) => self.helper_idle().await,
                    command = next(&mut self.deferred, &mut self.inbox) => match command {
                        Some(command) => self.when_off(command).await,
                        None => return,
                    },
                },
                Phase::Waiting { until } => {
                    let until = *until;
                    tokio::select! {
                        () = sleep_until(until) => self.start_by_policy().await,
                        command = self.command() => match command {
                            Some(command) => self.when_waiting(command).await,
                            None => return,
                        },
                    }
                }
                Phase::On(on) => {
                    let deadline = on.stopping.as_ref().and_then(|stopping| stopping.deadline);
                    tokio::select! {
                        biased;
                        result = &mut on.attending.0 => {
                            // It does not panic, and nobody else aborts it.
                            let result = result.unwrap_or(Err(LinkError::Closed));
                            self.main_ended(result).await;
                        }
                        () = self.cell.machine_changed.notified() => self.look().await,
                        () = reached(deadline) => self.overdue().await,
                        command = next(&mut self.deferred, &mut self.inbox) => match command {
                            Some(command) => self.when_on(command).await,
                            None => return,
                        },
                    }
                }
            }
        }
    }

    async fn command(&mut self) -> Option<Command> {
        next(&mut self.deferred, &mut self.inbox).await
    }
}

/// The state of a container that is off, from what is kept.
pub(crate) fn off_state(kept: &Kept) -> State {
    match (&kept.last, &kept.failed) {
        (Some(last), None) => State::Exited(last.clone()),
        (Some(last), Some(failed)) => State::Exited(Ended {
            status: failed.status,
            error: failed.message.clone(),
            ..last.clone()
        }),
        (None, failed) => State::Created {
            failed: failed.clone(),
        },
    }
}

/// Whom an event of this container is about.
pub(crate) fn subject(cell: &Cell) -> Subject {
    let view = cell.view.borrow();
    Subject::Container {
        id: cell.id,
        name: view.container.name.as_str().to_owned(),
        image: view.container.spec.image.reference.clone(),
        labels: view.container.spec.labels.clone(),
    }
}

/// Resolves at that moment; never without one.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn next(
    deferred: &mut VecDeque<Command>,
    inbox: &mut mpsc::UnboundedReceiver<Command>,
) -> Option<Command> {
    match deferred.pop_front() {
        Some(command) => Some(command),
        None => inbox.recv().await,
    }
}

fn tell<T>(answer: Answer<T>, result: Result<T, Error>) {
    // Whoever asked may have gone; it is done all the same.
    let _ = answer.send(result);
}
