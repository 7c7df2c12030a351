//! How the machine ends.
//!
//! ```text
//! Stopping ──main ended, or grace over──▶ Killing ──all gone──▶ (unmount) ──▶ Flushing ──▶ off
//! ```
//!
//! Every phase has a deadline; nothing a process or a disk does keeps a machine from ending.

use crate::clock;
use crate::container::Container;
use crate::prelude::*;
use crate::root;
use crate::{log, sys, warning};
use rustix::system::{RebootCommand, reboot};
use tether_wire::guest::{Outcome, Ticket};
use tether_wire::message::{
    Action, Error, ErrorKind, MachineEvent, ProcessId, Reply, ShutdownSpec, SignalTarget,
};

/// After SIGKILL, for what hangs in the kernel.
const KILLING: u64 = 10_000_000;
/// For the host to say that it has everything.
const FLUSHING: u64 = 2_000_000;

/// A shutdown under way.
pub struct Shutdown {
    action: Action,
    phase: Phase,
    until: u64,
}

enum Phase {
    /// The main process was asked to stop.
    Stopping { ticket: Option<Ticket> },
    /// Everything was killed.
    Killing { ticket: Option<Ticket> },
    /// The answer is on its way.
    Flushing,
}

impl Shutdown {
    /// When its phase is over at the latest, in microseconds.
    pub fn deadline(&self) -> u64 {
        self.until
    }
}

impl Container {
    /// Starts it; without a ticket nobody on the channel has asked for it.
    pub fn begin_shutdown(&mut self, ticket: Option<Ticket>, spec: ShutdownSpec) -> Outcome {
        if self.shutdown.is_some() {
            return Outcome::Done(Err(Error::new(
                ErrorKind::Busy,
                "the machine is shutting down already",
            )));
        }
        self.cancel_tasks();
        let until = clock::now() + u64::from(spec.grace_ms) * 1000;
        let phase = Phase::Stopping { ticket };
        if spec.signal != 0 {
            for process in self
                .processes
                .main_id()
                .into_iter()
                .collect::<Vec<ProcessId>>()
            {
                let _ = self
                    .processes
                    .signal(process, spec.signal, SignalTarget::Process);
            }
        }
        self.shutdown = Some(Shutdown {
            action: spec.action,
            phase,
            until,
        });
        self.advance_shutdown();
        Outcome::Later
    }

    /// The hypervisor asks for it, as "Shut down guest" of vSphere's client does. It knows no stop signal:
    /// the main process gets what `docker stop` sends by default.
    pub fn shut_down_for_hypervisor(&mut self, action: Action) {
        self.events.push(MachineEvent::Warning {
            message: "the hypervisor asked for a shutdown".to_owned(),
        });
        let spec = ShutdownSpec {
            signal: libc::SIGTERM as u8,
            grace_ms: 10_000,
            action,
        };
        // One that is under way already is as good.
        let _ = self.begin_shutdown(None, spec);
    }

    /// Goes as far as it goes; called whenever a child died or time has passed.
    pub fn advance_shutdown(&mut self) {
        let Some(shutdown) = &mut self.shutdown else {
            return;
        };
        let now = clock::now();
        if let Phase::Stopping { ticket } = shutdown.phase
            && (self.processes.main_id().is_none() || now >= shutdown.until)
        {
            self.groups.kill_all();
            self.processes.kill_transfers();
            shutdown.phase = Phase::Killing { ticket };
            shutdown.until = now + KILLING;
        }
        if let Phase::Killing { ticket } = shutdown.phase {
            let gone = self.processes.all_ended() && !self.groups.is_populated();
            if gone || now >= shutdown.until {
                shutdown.phase = Phase::Flushing;
                // Let go of our own hold on the root first.
                self.root = None;
                if let Err(error) = root::unmount_all() {
                    warning!("{}", error.message);
                    self.events.push(MachineEvent::Warning {
                        message: error.message,
                    });
                }
                shutdown.until = clock::now() + FLUSHING;
                self.answers
                    .extend(ticket.map(|ticket| (ticket, Ok(Reply::Done))));
            }
        }
    }

    /// Ends the machine when all is done and the host knows it, or took too long.
    pub fn end_if_done(&self, flushed: bool) {
        if let Some(Shutdown {
            action,
            phase: Phase::Flushing,
            until,
        }) = &self.shutdown
            && (flushed || clock::now() >= *until)
        {
            end(*action);
        }
    }
}

/// Ends the machine.
pub fn end(action: Action) -> ! {
    rustix::fs::sync();
    let command = match action {
        Action::PowerOff => RebootCommand::PowerOff,
        Action::Reboot => RebootCommand::Restart,
    };
    // It returns only if this is not process 1 of a real machine.
    let _ = reboot(command);
    sys::exit(1)
}

/// Says why on the console and powers off: what is left to do before the point of no return, and
/// for a defect of tether's own.
pub fn die(cause: core::fmt::Arguments<'_>) -> ! {
    log::line(log::Level::Fatal, cause);
    end(Action::PowerOff)
}
