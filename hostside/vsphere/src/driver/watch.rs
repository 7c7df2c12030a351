//! What the server tells of machines, whoever did it, as events.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use hypervisor::{MachineId, Notice, StopCause};
use tokio::sync::mpsc::UnboundedReceiver;

use super::console::Run;
use super::view::{self, Seen};
use super::{Core, record};
use crate::property::{Change, Properties};
use crate::session::chain;
use crate::types::{ManagedObject, VirtualMachinePowerState as Power};

/// Tells of changes until the driver is gone.
pub(super) async fn work(core: Weak<Core>, mut changes: UnboundedReceiver<Change>) {
    while let Some(change) = changes.recv().await {
        let Some(core) = core.upgrade() else { return };
        core.tell(&change);
    }
}

/// What an object is to the machine that it says it is.
enum Seat {
    /// The machine, of which nobody has heard.
    New,
    /// The machine, in the place of another object.
    Other,
    /// The machine, as before.
    Same,
    /// What it was before it was forked.
    Former,
}

impl Core {
    /// Tells of a change.
    pub(super) fn tell(self: &Arc<Self>, change: &Change) {
        let ours = |properties: &Option<Arc<Properties>>| {
            let properties = properties.as_ref()?;
            self.record(properties)?;
            view::identity(properties)
        };
        let (before, after) = (ours(&change.before), ours(&change.after));
        match (before, after, &change.before, &change.after) {
            (_, Some(id), was, Some(now)) => match self.seat(id, &change.object) {
                Seat::New => {
                    self.serial.admit(id);
                    self.events.send(id, Notice::Created);
                    if view::power(now) == Power::PoweredOn {
                        self.events.send(id, Notice::PoweredOn);
                    }
                }
                Seat::Other => self.tell_of_fork(id, now),
                Seat::Same => {
                    if let Some(was) = was {
                        self.tell_of(id, was, now);
                    }
                }
                Seat::Former => {}
            },
            (Some(id), None, ..) if self.unseat(id, &change.object) => {
                self.forget(&id);
                self.events.send(id, Notice::Destroyed);
            }
            _ => {}
        }
    }

    /// A fork is the machine from now on. It may have been told of already.
    pub(super) fn take_place(self: &Arc<Self>, id: MachineId, object: &ManagedObject) {
        let known = self.collector.look(|objects| objects.get(object).cloned());
        if let (Seat::Other, Some(now)) = (self.seat(id, object), known) {
            self.tell_of_fork(id, &now);
        }
    }

    fn tell_of_fork(self: &Arc<Self>, id: MachineId, now: &Properties) {
        if view::power(now) == Power::PoweredOn {
            self.read_console(&id, Run::New);
            self.events.send(id, Notice::PoweredOn);
        }
    }

    /// Whether the object is the machine, of those that say so.
    fn seat(&self, id: MachineId, object: &ManagedObject) -> Seat {
        let current = self.collector.look(|objects| view::find(objects, &id));
        let is_current = current.is_none_or(|(current, _)| current == *object);
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        match seats.get(&id) {
            Some(seated) if seated == object => Seat::Same,
            _ if !is_current => Seat::Former,
            Some(_) => {
                seats.insert(id, object.clone());
                Seat::Other
            }
            None => {
                seats.insert(id, object.clone());
                Seat::New
            }
        }
    }

    /// The object is gone; whether the machine is.
    fn unseat(&self, id: MachineId, object: &ManagedObject) -> bool {
        let other = self.collector.look(|objects| view::find(objects, &id));
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.get(&id) != Some(object) {
            return false;
        }
        match other {
            Some((other, _)) if other != *object => {
                seats.insert(id, other);
                false
            }
            _ => {
                seats.remove(&id);
                true
            }
        }
    }

    fn tell_of(self: &Arc<Self>, id: MachineId, was: &Properties, now: &Properties) {
        let text = |properties: &Properties, path: &str| {
            properties
                .get(path)
                .map(|node| node.text.clone())
                .unwrap_or_default()
        };
        let (host, moved) = (text(was, "runtime.host"), text(now, "runtime.host"));
        if !host.is_empty() && !moved.is_empty() && host != moved {
            self.events.send(id, Notice::Moved);
        }
        let (state, other) = (
            text(was, "runtime.connectionState"),
            text(now, "runtime.connectionState"),
        );
        if state != other {
            tracing::warn!(machine = %id, was = state, now = other, "its host's connection changed");
        }
        match (view::power(was), view::power(now)) {
            (was, now) if was == now => {}
            (Power::Suspended, Power::PoweredOn) => self.events.send(id, Notice::Resumed),
            (_, Power::PoweredOn) => {
                // Powered on by somebody else, it has a console all the same.
                self.read_console(&id, Run::New);
                if let Some(record) = self.record(now) {
                    self.publish_found(id, record.spec);
                }
                self.events.send(id, Notice::PoweredOn);
            }
            (_, Power::Suspended) => self.events.send(id, Notice::Suspended),
            _ => self.went_off(id, now),
        }
    }

    fn went_off(self: &Arc<Self>, id: MachineId, now: &Properties) {
        let cell = self.cell(&id);
        let run = |properties: &Properties| self.record(properties).map(|record| record.started);
        let last = self
            .find(&id)
            .is_ok_and(|(_, current)| run(&current) == run(now));
        // Whoever has the machine to himself sees to it: he may be powering it on again.
        if last && let Ok(_one) = cell.operation.try_lock() {
            cell.end_run();
        }
        let known = self.record(now).and_then(|record| {
            let ended = cell.ended().clone();
            ended.filter(|ended| ended.started == record.started)
        });
        if let Some(ended) = known {
            self.events.send(id, Notice::PoweredOff(ended.cause));
        } else if cell.cutting.load(Ordering::SeqCst) {
            self.events
                .send(id, Notice::PoweredOff(StopCause::PoweredOff));
        } else {
            // Why has to be asked; nobody else waits for it.
            let core = self.clone();
            tokio::spawn(async move {
                let cause = core.why_off(&id).await;
                core.events.send(id, Notice::PoweredOff(cause));
            });
        }
    }

    /// Why a machine is off that this driver did not power off.
    async fn why_off(&self, id: &MachineId) -> StopCause {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        if let Err(error) = self.settle(id).await {
            return StopCause::HypervisorFailed {
                detail: chain(&error),
            };
        }
        let ended = cell.ended().clone();
        if let Some(ended) = ended {
            return ended.cause;
        }
        let seen = self.find(id).ok().and_then(|(_, properties)| {
            let never = record::value(&view::entries(&properties), record::STARTED).is_none();
            match self.see(id, &properties)? {
                Seen::Whole(view) if !never => match view.power {
                    hypervisor::PowerState::Off { cause } => Some(cause),
                    _ => None,
                },
                _ => None,
            }
        });
        // Powered on and off by somebody else, without a run of this driver's.
        seen.unwrap_or(StopCause::PoweredOff)
    }
}
