//! What the one loop waits for: epoll, edge-triggered, with a name for everything in it.
//!
//! Edge-triggered because a stream without room is simply not read: there is nothing to disarm, and
//! a hung-up descriptor that nobody has reason to touch does not spin.

use crate::failure::{Context, Result};
use crate::prelude::*;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::time::Timespec;
use tether_wire::message::{Output, ProcessId};

/// Whose descriptor it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The signalfd: a child died.
    Signals,
    /// The kernel's uevents: a device came.
    Uevents,
    /// The vsock listener.
    Listener,
    /// The channel's byte stream.
    Channel,
    /// The container's `memory.events`.
    OutOfMemory,
    /// The container's `cgroup.events`.
    Frozen,
    /// The pipe on which a worker says why it failed.
    Worker,
    /// The DHCP client of the network's n-th vNIC.
    Dhcp(u32),
    /// The pipe on which a child says why it could not start.
    Launch(ProcessId),
    /// A process's output.
    Output(ProcessId, Output),
    /// A process's standard input.
    Input(ProcessId),
    /// A process's terminal, both ways.
    Terminal(ProcessId),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0, 0),
            Self::Uevents => (1, 0),
            Self::Listener => (2, 0),
            Self::Channel => (3, 0),
            Self::OutOfMemory => (4, 0),
            Self::Worker => (5, 0),
            Self::Dhcp(index) => (6, index),
            Self::Launch(process) => (7, process.0),
            Self::Output(process, Output::Stdout) => (8, process.0),
            Self::Output(process, Output::Stderr) => (9, process.0),
            Self::Input(process) => (10, process.0),
            Self::Terminal(process) => (11, process.0),
            Self::Frozen => (12, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn decode(data: u64) -> Option<Self> {
        let number = data as u32;
        let process = ProcessId(number);
        Some(match data >> 32 {
            0 => Self::Signals,
            1 => Self::Uevents,
            2 => Self::Listener,
            3 => Self::Channel,
            4 => Self::OutOfMemory,
            5 => Self::Worker,
            6 => Self::Dhcp(number),
            7 => Self::Launch(process),
            8 => Self::Output(process, Output::Stdout),
            9 => Self::Output(process, Output::Stderr),
            10 => Self::Input(process),
            11 => Self::Terminal(process),
            12 => Self::Frozen,
            _ => return None,
        })
    }
}

/// Something happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Which.
    pub token: Token,
    /// What.
    pub flags: EventFlags,
}

/// The epoll instance.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

/// How many events are taken at once.
const BATCH: usize = 64;

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new() -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context(|| "making an epoll")?;
        let events = Vec::with_capacity(BATCH);
        Ok(Self { epoll, events })
    }

    /// Watches a descriptor until it is closed.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`.
    pub fn watch(&self, fd: impl AsFd, flags: EventFlags, token: Token) -> Result<()> {
        let data = EventData::new_u64(token.encode());
        epoll::add(&self.epoll, fd, data, flags | EventFlags::ET)
            .context(|| "watching a descriptor")
    }

    /// Waits at most `milliseconds` (`None`: for ever) and puts what happened into `events`.
    pub fn wait(&mut self, milliseconds: Option<u64>, events: &mut Vec<Event>) {
        let timeout = milliseconds.map(|time| Timespec {
            tv_sec: (time / 1000).min(3600) as i64,
            tv_nsec: (time % 1000 * 1_000_000) as i64,
        });
        let room = rustix::buffer::spare_capacity(&mut self.events);
        let _ = epoll::wait(&self.epoll, room, timeout.as_ref());
        events.clear();
        events.extend(self.events.drain(..).filter_map(|event| {
            let data = event.data;
            Some(Event {
                token: Token::decode(data.u64())?,
                flags: event.flags,
            })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let process = ProcessId(u32::MAX);
        for token in [
            Token::Signals,
            Token::Uevents,
            Token::Listener,
            Token::Channel,
            Token::OutOfMemory,
            Token::Worker,
            Token::Dhcp(3),
            Token::Launch(process),
            Token::Output(process, Output::Stdout),
            Token::Output(ProcessId(0), Output::Stderr),
            Token::Input(process),
            Token::Terminal(process),
            Token::Frozen,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
