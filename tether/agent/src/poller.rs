//! What the one loop waits for: epoll, edge-triggered, with a name for everything in it.
//!
//! Edge-triggered because a stream without room is simply not read: there is nothing to disarm, and
//! a hung-up descriptor that nobody has reason to touch does not spin.

use crate::failure::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::AsFd;
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
    pub flags: EpollFlags,
}

/// The epoll instance.
pub struct Poller {
    epoll: Epoll,
}

/// How many events are taken at once.
const BATCH: usize = 64;

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context(|| "making an epoll")?;
        Ok(Self { epoll })
    }

    /// Watches a descriptor until it is closed.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`.
    pub fn watch(&self, fd: impl AsFd, flags: EpollFlags, token: Token) -> Result<()> {
        let event = EpollEvent::new(flags | EpollFlags::EPOLLET, token.encode());
        self.epoll
            .add(fd, event)
            .context(|| "watching a descriptor")
    }

    /// Waits at most `milliseconds` (`None`: for ever) and gives what happened to `each`.
    pub fn wait(&self, milliseconds: Option<u64>, events: &mut Vec<Event>) {
        let timeout = match milliseconds {
            None => EpollTimeout::NONE,
            Some(time) => EpollTimeout::from(time.min(60_000) as u16),
        };
        let mut raw = [EpollEvent::empty(); BATCH];
        let count = self.epoll.wait(&mut raw, timeout).unwrap_or(0);
        events.clear();
        events.extend(raw[..count].iter().filter_map(|event| {
            Some(Event {
                token: Token::decode(event.data())?,
                flags: event.events(),
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
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
