//! A process that belongs to nobody, from its start to its end.

use super::{Phase, Processes, Surroundings};
use crate::cgroup::Groups;
use crate::clock;
use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::prelude::*;
use crate::root::Root;
use crate::sys::{self, entry::REHEARSAL};
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags, open};
use tether_wire::guest::Ticket;
use tether_wire::message::{
    Error, ErrorKind, PidNamespace, ProcessId, ProcessSpec, Role, Stdio, User,
};

/// How long it may take, in microseconds.
const DEADLINE: u64 = 10_000_000;

/// Starts tether's own rehearsal in a root that holds it, as a main process is started, and waits for
/// its end. Nothing else of tether's goes on meanwhile: there is nobody yet.
///
/// # Errors
/// Why it did not start; that it did not end.
pub fn rehearse(ticket: Ticket, root: &Root, groups: &mut Groups) -> Result<()> {
    let path = "/proc/self/ns/pid";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let pids = open(path, flags, Mode::empty()).context(|| format!("opening {path}"))?;
    // Their own, so that no event of anybody else's is taken.
    let (mut poller, mut processes) = (Poller::new()?, Processes::new(pids));
    let spec = ProcessSpec {
        argv: vec![REHEARSAL.to_owned()],
        env: Vec::new(),
        cwd: String::new(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: false },
        limits: Vec::new(),
        role: Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false,
        },
    };
    let around = Surroundings {
        poller: &poller,
        groups,
        root,
        hostname: "",
    };
    processes.start(ticket, ProcessId::MAIN, &spec, around)?;
    let ended = processes.watch_to_the_end(&mut poller);
    for process in core::mem::take(&mut processes.by_id).into_values() {
        if let Phase::Launching { pid, group, .. } | Phase::Running { pid, group } = process.phase {
            let _ = sys::kill(pid, libc::SIGKILL);
            groups.give_back(group);
        }
    }
    for (_, group) in core::mem::take(&mut processes.failed) {
        groups.give_back(group);
    }
    ended
}

impl Processes {
    /// Waits until the main process has ended. Whose it was, the reaper does not ask.
    fn watch_to_the_end(&mut self, poller: &mut Poller) -> Result<()> {
        let Some(main) = &self.main else {
            return Ok(());
        };
        // Readable from the end on (pidfd_open(2)).
        poller.watch(&main.pidfd, EventFlags::IN, Token::Signals)?;
        let due = clock::now() + DEADLINE;
        let mut events = Vec::new();
        loop {
            let left = due.saturating_sub(clock::now());
            if left == 0 {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    "the rehearsal's process did not end",
                ));
            }
            poller.wait(Some(left.div_ceil(1000)), &mut events);
            if let Some(launched) = self.launched(poller, ProcessId::MAIN) {
                launched.result?;
            }
            if events.iter().any(|event| event.token == Token::Signals) {
                return Ok(());
            }
        }
    }
}
