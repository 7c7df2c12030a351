//! Waiting for a machine to go off.

use hypervisor::{Events, Hypervisor, MachineId, Next, Notice, PowerState, StopCause};
use std::sync::Arc;

/// Watches one machine.
#[derive(Debug)]
pub struct PowerWatch {
    events: Events,
    id: MachineId,
    off: Option<StopCause>,
}

impl PowerWatch {
    /// Starts to watch; make it before the machine is powered on.
    pub fn new(hypervisor: &dyn Hypervisor, id: MachineId) -> Self {
        Self {
            events: hypervisor.events(),
            id,
            off: None,
        }
    }

    /// Whether it was seen to go off.
    pub fn is_off(&self) -> bool {
        self.off.is_some()
    }

    /// Resolves when the machine is off, with the cause; again and again. Cancel safe.
    pub async fn off(&mut self, hypervisor: &Arc<dyn Hypervisor>) -> StopCause {
        loop {
            if let Some(cause) = &self.off {
                return cause.clone();
            }
            match self.events.next().await {
                Next::Event(event) if event.id == self.id => match event.notice {
                    Notice::PoweredOff(cause) => self.off = Some(cause),
                    Notice::Destroyed => self.off = Some(StopCause::PoweredOff),
                    _ => {}
                },
                Next::Event(_) => {}
                Next::Missed => {
                    if let Ok(machine) = hypervisor.inspect(&self.id).await
                        && let PowerState::Off { cause } = machine.power
                    {
                        self.off = Some(cause);
                    }
                }
                Next::End => std::future::pending().await,
            }
        }
    }
}
