//! What QEMU says of itself, turned into changes of the machine.

use std::sync::Weak;

use super::*;
use crate::qmp::{Event, EventStream};
use crate::start::LAST_BREATH;

/// Follows one QEMU until its end.
pub(super) async fn watch(
    machine: Weak<Machine>,
    qmp: Qmp,
    mut events: EventStream,
    process: Arc<Process>,
) {
    loop {
        let event = tokio::select! {
            // What it said before it ended comes first.
            biased;
            event = events.recv() => event,
            ending = process.ended() => {
                if let Some(machine) = machine.upgrade() {
                    machine.vanished(&ending).await;
                }
                return;
            }
        };
        let Some(machine) = machine.upgrade() else {
            return;
        };
        match event {
            Some(Event::DeviceDeleted { device }) => {
                let _ = machine.deleted.send(device);
            }
            Some(Event::Shutdown { .. } | Event::GuestPanicked | Event::Stop | Event::Resume) => {
                if machine.look(&qmp).await.is_break() {
                    return;
                }
            }
            // Who asked for it waited for it.
            Some(Event::Migration { .. }) => {}
            // The socket closed. QEMU's end follows; one that lives on cannot be
            // spoken to any more.
            None => {
                machine.muted(&process).await;
                return;
            }
        }
    }
}

impl Machine {
    /// Looks at what became of the guest.
    async fn look(&self, qmp: &Qmp) -> std::ops::ControlFlow<()> {
        let mut state = self.state.lock().await;
        let Body::Running(_) = &state.body else {
            return std::ops::ControlFlow::Break(());
        };
        match qmp.run_state().await {
            Ok(RunState::Running) => self.set_power(PowerState::On),
            Ok(RunState::Stopped | RunState::Incoming) => self.set_power(PowerState::Suspended),
            Ok(ended) => {
                let cause = self.cause_of(ended);
                self.finish(&mut state, cause).await;
                return std::ops::ControlFlow::Break(());
            }
            // Its end is told by the events' end.
            Err(_) => {}
        }
        std::ops::ControlFlow::Continue(())
    }

    /// The control socket closed without being asked to.
    async fn muted(&self, process: &Process) {
        let ending = match tokio::time::timeout(LAST_BREATH, process.ended()).await {
            Ok(ending) => ending,
            Err(_) => {
                tracing::warn!(machine = %self.id, pid = process.pid(), "killing a QEMU that closed its control socket");
                process.kill().await
            }
        };
        self.vanished(&ending).await;
    }

    /// QEMU ended by itself.
    async fn vanished(&self, ending: &Ending) {
        let mut state = self.state.lock().await;
        if let Body::Running(_) = &state.body {
            let cause =
                log::vanished_cause(&self.directory.log_tail(log::TAIL), &ending.to_string());
            self.finish(&mut state, cause).await;
        }
    }
}
