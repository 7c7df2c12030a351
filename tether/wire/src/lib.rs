//! The protocol between tether (PID 1 of a containerVM) and the host side.
//!
//! `no_std` and sans-I/O: bytes and a clock go in, bytes and events come out. No descriptor,
//! clock or environment is touched here; the adapters are `tether` and `tether-link`.
//!
//! ```text
//!   GuestSession / HostSession   requests, streams with credits and offsets, resume
//!   handshake                    version range, boot id, proof of the channel key
//!   frame                        length, body, tag; hunts for the preamble when lost
//!   serial (CarrierKind::Serial) packets: COBS, CRC-32C, selective retransmission
//!   ------------------------------------------------------------------------------
//!   the carrier                  vsock, virtio-serial port, serial line
//! ```
//!
//! Beside them, [`files`] is what a process that reads or writes the container's files says on its
//! streams.
//!
//! What bounds memory, whatever the peer sends: one frame is at most [`MAX_FRAME`]; the host takes
//! at most [`OUTPUT_WINDOW`] bytes of a stream beyond what it has stored; the guest keeps at most
//! [`OUTPUT_BUFFER`] of an output stream and grants at most [`INPUT_BUFFER`] of input, and gives
//! less to each once [`BUFFER_BUDGET`] is reached; processes and unanswered requests are counted.
//!
//! What is deliberately absent: no clock (time is an argument), no logging, no threads, no
//! `unsafe`, no encryption (the key proves who speaks, it does not hide what is said).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod carrier;
mod codec;
pub mod files;
pub mod frame;
pub mod guest;
pub mod handshake;
pub mod host;
pub mod message;
mod ring;
pub mod serial;

pub use carrier::CarrierKind;
pub use guest::{GuestSession, Input, Machine, Outcome, Ready, Ticket};
pub use handshake::{ChannelKey, Refusal, VERSION_MAX, VERSION_MIN};
pub use host::{Full, HostEvent, HostSession};

use core::fmt;

/// Largest frame body, in bytes: a request with a long argument list has to fit.
pub const MAX_FRAME: usize = 256 * 1024;
/// Most bytes of a stream in one frame.
pub const MAX_CHUNK: usize = 32 * 1024;
/// How far the host lets a guest's stream run ahead of what it has stored.
pub const OUTPUT_WINDOW: u64 = 512 * 1024;
/// What a process may write before the host's first acknowledgement.
pub const INITIAL_OUTPUT_CREDIT: u64 = 64 * 1024;
/// What the host may send of standard input before the guest's first word on it.
pub const INITIAL_INPUT_CREDIT: u64 = 16 * 1024;
/// Most bytes of one output stream that the guest keeps.
pub const OUTPUT_BUFFER: usize = 512 * 1024;
/// Most bytes of standard input that the guest keeps for one process.
pub const INPUT_BUFFER: usize = 64 * 1024;
/// Bytes of buffers in a guest after which every stream is held to [`SMALL_BUFFER`].
pub const BUFFER_BUDGET: usize = 16 * 1024 * 1024;
/// A stream's buffer when the budget is used up.
pub const SMALL_BUFFER: usize = 8 * 1024;
/// Most processes a guest keeps records of.
pub const MAX_PROCESSES: usize = 1024;
/// Most requests that may be unanswered, counted from the oldest one.
pub const MAX_IN_FLIGHT: u32 = 1024;

/// Monotonic time in microseconds from any fixed start; each end has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This time and so many microseconds.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }
}

/// The peer broke the protocol, or the carrier broke the bytes beyond repair. The session has let
/// go of the connection and hunts for a new one; nothing wrong was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A frame did not decode as a message of the agreed version.
    Malformed,
    /// A message that may not come now, or names what does not exist; says which.
    Unexpected(&'static str),
    /// More than was granted; says of what.
    Overrun(&'static str),
    /// The other end of a serial line does not know this connection (it was restarted).
    Reset,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the peer sent a frame that does not decode"),
            Self::Unexpected(what) => write!(f, "the peer sent an unexpected message: {what}"),
            Self::Overrun(what) => write!(f, "the peer sent more than it was granted: {what}"),
            Self::Reset => f.write_str("the peer was restarted and does not know this connection"),
        }
    }
}

impl core::error::Error for Violation {}
