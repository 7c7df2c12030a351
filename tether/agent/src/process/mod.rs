//! The processes of the wire: from a request to a running program to an exit.
//!
//! ```text
//! start ──▶ Launching ──pipe closes──▶ Running ──reaped──▶ Ended ──forget──▶ (gone)
//!               └──failure on the pipe, or dead before──▶ (gone, reply is the error)
//! ```
//!
//! What reads or writes files ([`Processes::transfer`]) is a process of the wire too, without a launch
//! and without a program.
//!
//! A child that could not start stays in [`Processes::failed`] until it is reaped: its pid must not
//! be taken for anything else's.

use crate::prelude::*;
mod environment;
mod launch;
mod path;
mod rehearsal;
mod stdio;
pub mod user;

pub use launch::Surroundings;
pub use rehearsal::rehearse;
use stdio::Streams;

use crate::cgroup::Group;
use crate::failure::Result;
use crate::poller::{Event, Poller, Token};
use crate::root::Root;
use crate::{sys, transfer};
use alloc::collections::BTreeMap;
use launch::Launch;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tether_wire::guest::{GuestSession, Ready, Ticket};
use tether_wire::message::{
    Error, ErrorKind, FileOperation, Output, ProcessId, SignalTarget, TerminalSize,
};

/// One of them.
pub struct Process {
    phase: Phase,
    streams: Streams,
}

enum Phase {
    Launching {
        pid: i32,
        group: Group,
        launch: Launch,
    },
    Running {
        pid: i32,
        group: Group,
    },
    /// Tether's own child, which reads or writes files; in no group of the container's.
    Transferring {
        pid: i32,
    },
    Ended,
}

/// The main process while it lives, for those who join it.
struct Main {
    process: ProcessId,
    pid: i32,
    pidfd: OwnedFd,
    private_pids: bool,
}

/// All of them.
pub struct Processes {
    by_id: BTreeMap<ProcessId, Process>,
    by_pid: BTreeMap<i32, ProcessId>,
    failed: Vec<(i32, Group)>,
    main: Option<Main>,
    own_pid_namespace: OwnedFd,
}

/// What a dead child was.
pub enum Death {
    /// A process of the wire; its group is empty of it.
    Process {
        /// Which.
        process: ProcessId,
        /// Its group, to be given back, if it had one.
        group: Option<Group>,
        /// It was the main process.
        main: bool,
    },
    /// A child that could not start, already answered for.
    Failed {
        /// Its group, to be given back.
        group: Group,
    },
    /// An orphan, or a worker.
    Other,
}

/// The end of a launch.
pub struct Launched {
    /// Whom to answer.
    pub ticket: Ticket,
    /// The pid, or why not.
    pub result: Result<u32>,
}

impl Processes {
    /// None yet.
    pub fn new(own_pid_namespace: OwnedFd) -> Self {
        Self {
            by_id: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            failed: Vec::new(),
            main: None,
            own_pid_namespace,
        }
    }

    /// The main process, while it runs.
    pub fn main_id(&self) -> Option<ProcessId> {
        self.main.as_ref().map(|main| main.process)
    }

    /// Those that run, with their groups.
    pub fn groups_mut(&mut self) -> impl Iterator<Item = (ProcessId, &mut Group)> {
        self.by_id.iter_mut().filter_map(|(process, state)| {
            let group = match &mut state.phase {
                Phase::Launching { group, .. } | Phase::Running { group, .. } => group,
                Phase::Transferring { .. } | Phase::Ended => return None,
            };
            Some((*process, group))
        })
    }

    /// Starts reading or writing the container's files; gives the pid.
    ///
    /// # Errors
    /// A user that is not there; no descriptors or processes left.
    pub fn transfer(
        &mut self,
        process: ProcessId,
        operation: &FileOperation,
        root: &Root,
        poller: &Poller,
    ) -> Result<i32> {
        let stdin = matches!(operation, FileOperation::Write { .. });
        let (streams, theirs) = stdio::pipes(stdin)?;
        streams.watch(poller, process)?;
        let pid = transfer::start(operation, root, theirs.ends())?;
        // From here the reaper knows whose this pid is; SIGCHLD is read only after this returns.
        self.by_pid.insert(pid, process);
        let phase = Phase::Transferring { pid };
        self.by_id.insert(process, Process { phase, streams });
        Ok(pid)
    }

    /// Whether a pid is of what reads or writes files.
    pub fn is_transfer(&self, wanted: u32) -> bool {
        self.by_id.values().any(
            |process| matches!(process.phase, Phase::Transferring { pid } if pid as u32 == wanted),
        )
    }

    /// Whether anything reads or writes files.
    pub fn has_transfers(&self) -> bool {
        self.by_id
            .values()
            .any(|process| matches!(process.phase, Phase::Transferring { .. }))
    }

    /// SIGKILL to everything that reads or writes files.
    pub fn kill_transfers(&self) {
        for process in self.by_id.values() {
            if let Phase::Transferring { pid } = process.phase {
                let _ = sys::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Sends a signal to a running process.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name or it has ended.
    pub fn signal(&self, process: ProcessId, signal: u8, target: SignalTarget) -> Result<()> {
        let pid = match self.by_id.get(&process).map(|process| &process.phase) {
            Some(
                Phase::Launching { pid, .. }
                | Phase::Running { pid, .. }
                | Phase::Transferring { pid },
            ) => *pid,
            _ => return Err(absent(process)),
        };
        let signal = i32::from(signal);
        let sent = match target {
            SignalTarget::Process => sys::kill(pid, signal),
            // Every process is the leader of its own session, and so of its group.
            SignalTarget::Group => match sys::kill(-pid, signal) {
                Err(Errno::SRCH) => sys::kill(pid, signal),
                other => other,
            },
        };
        sent.map_err(|errno| {
            crate::failure::system(
                format!("sending signal {signal} to process {}", process.0),
                errno,
            )
        })
    }

    /// Changes the size of a process's terminal.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it has no terminal.
    pub fn resize(&self, process: ProcessId, size: TerminalSize) -> Result<()> {
        let state = self.by_id.get(&process).ok_or_else(|| absent(process))?;
        if state.streams.resize(size)? {
            Ok(())
        } else {
            Err(crate::failure::invalid(format!(
                "process {} has no terminal",
                process.0
            )))
        }
    }

    /// Drops what is kept of a process that ended, its streams included.
    pub fn forget(&mut self, process: ProcessId) {
        if matches!(
            self.by_id.get(&process),
            Some(Process {
                phase: Phase::Ended,
                ..
            })
        ) {
            self.by_id.remove(&process);
        }
    }

    /// Whether nothing of the wire's runs.
    pub fn all_ended(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// Moves bytes because a descriptor is ready.
    pub fn ready(&mut self, session: &mut GuestSession, event: Event) {
        let (Token::Output(process, _) | Token::Input(process) | Token::Terminal(process)) =
            event.token
        else {
            return;
        };
        let Some(state) = self.by_id.get_mut(&process) else {
            return;
        };
        let hung_up = EventFlags::HUP | EventFlags::ERR;
        if event.flags.intersects(EventFlags::IN | hung_up) {
            match event.token {
                Token::Output(_, output) => {
                    state.streams.pump_output(session, process, output);
                }
                Token::Terminal(_) => {
                    state.streams.pump_output(session, process, Output::Stdout);
                }
                _ => {}
            }
        }
        if event.flags.intersects(EventFlags::OUT | hung_up) {
            match event.token {
                Token::Input(_) if event.flags.contains(EventFlags::ERR) => {
                    state.streams.reader_left(session, process);
                }
                Token::Input(_) | Token::Terminal(_) => state.streams.pump_input(session, process),
                _ => {}
            }
        }
    }

    /// Moves bytes because the session can go on.
    pub fn resume(&mut self, session: &mut GuestSession, ready: Ready) {
        let (Ready::Input(process) | Ready::Room(process, _)) = ready;
        let Some(state) = self.by_id.get_mut(&process) else {
            return;
        };
        if matches!(state.phase, Phase::Launching { .. }) {
            // Its descriptors are watched, and looked at, from when it runs.
            return;
        }
        match ready {
            Ready::Input(_) => state.streams.pump_input(session, process),
            Ready::Room(_, output) => state.streams.pump_output(session, process, output),
        }
    }

    /// A dead child of tether's: whose it was.
    pub fn died(&mut self, pid: i32) -> Death {
        if let Some(index) = self.failed.iter().position(|(failed, _)| *failed == pid) {
            let (_, group) = self.failed.swap_remove(index);
            return Death::Failed { group };
        }
        let Some(process) = self.by_pid.remove(&pid) else {
            return Death::Other;
        };
        let Some(state) = self.by_id.get_mut(&process) else {
            return Death::Other;
        };
        match core::mem::replace(&mut state.phase, Phase::Ended) {
            Phase::Launching { group, .. } | Phase::Running { group, .. } => Death::Process {
                process,
                group: Some(group),
                main: self.end_main(process),
            },
            Phase::Transferring { .. } => Death::Process {
                process,
                group: None,
                main: false,
            },
            Phase::Ended => Death::Other,
        }
    }

    fn end_main(&mut self, process: ProcessId) -> bool {
        let is_main = self
            .main
            .as_ref()
            .is_some_and(|main| main.process == process);
        if is_main {
            self.main = None;
        }
        is_main
    }

    /// The process of a pid, while it has not been reaped.
    pub fn of_pid(&self, pid: i32) -> Option<ProcessId> {
        self.by_pid.get(&pid).copied()
    }
}

fn absent(process: ProcessId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("process {} does not run", process.0),
    )
}
