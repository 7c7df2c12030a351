//! What the server tells of machines, whoever did it, as events.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use hypervisor::{MachineId, Notice, StopCause};
use tokio::sync::mpsc::UnboundedReceiver;

use super::console::Run;
use super::view::{self, Seen};
use super::{Core, record};
use crate::property::{Change, Properties};
use crate::session::chain;
use crate::types::VirtualMachinePowerState as Power;

/// Tells of changes until the driver is gone.
pub(super) async fn work(core: Weak<Core>, mut changes: UnboundedReceiver<Change>) {
    while let Some(change) = changes.recv().await {
        let Some(core) = core.upgrade() else { return };
        core.tell(&change);
    }
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
            (None, Some(id), _, Some(now)) => {
                self.serial.admit(id);
                self.events.send(id, Notice::Created);
                if view::power(now) == Power::PoweredOn {
                    self.events.send(id, Notice::PoweredOn);
                }
            }
            (Some(id), None, ..) => {
                self.forget(&id);
                self.events.send(id, Notice::Destroyed);
            }
            (Some(id), Some(_), Some(was), Some(now)) => self.tell_of(id, was, now),
            _ => {}
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
