//! The host end of a channel.
//!
//! A [`Link`] owns one [`HostSession`](tether_wire::HostSession) and a task that drives it over
//! whatever carrier its [`Connector`] yields: a vsock stream, the Unix socket of a virtio-serial
//! port or of a serial line, an in-memory pair. When the carrier breaks, the task connects again;
//! requests under way are answered once all the same, and every stream goes on at its offset.
//!
//! ```text
//!              Connector::connect            hello answered
//!   Connecting ------------------> Greeting ----------------> Up
//!       ^                             |                        |
//!       +------- carrier broke -------+------------------------+
//!                                     |
//!                          refused    v        Link dropped (from any state)
//!                         ---------> Ended <--------------------------------
//! ```
//!
//! All state is in one structure under one lock that is never held across I/O or an await; calls
//! look at it and wait for it to change. That is why every future here can be dropped at any time
//! without losing a byte, and why a reader that stops reading one stream delays no other: its
//! stream alone runs out of credit.
//!
//! What is kept is bounded whatever the guest sends: a stream's unread bytes by the credit the
//! session gives, machine events by [`MAX_EVENTS`], the process list by [`MAX_LISTED`].
//!
//! This crate does not know what carries the bytes and does not store anything: what "stored"
//! means is for whoever calls [`OutputReader::stored`].

#![forbid(unsafe_code)]

mod connector;
mod core;
mod driver;
mod error;
mod link;
mod process;
mod rehearsal;
mod request;

pub use connector::Connector;
pub use core::{MAX_EVENTS, Notice, Resumed};
pub use error::LinkError;
pub use link::{Adopted, Config, Link, MAX_LISTED};
pub use process::{Chunk, InputWriter, OutputReader, ProcessControl, RunningProcess};
pub use rehearsal::rehearse;
pub use request::Answer;
