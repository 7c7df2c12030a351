//! The guest's end: [`GuestSession`] speaks the protocol, a [`Machine`] does what is asked.
//!
//! Tether's agent and the in-process fake implement [`Machine`] and share everything else.

use crate::message::{
    Error, Exit, MachineEvent, Mount, Network, Output, ProcessId, ProcessPage, ProcessSpec, Reply,
    RequestId, Setup, ShutdownSpec, SignalTarget, Statistics, TerminalSize,
};

/// Names a request whose answer comes later; handed back to [`GuestSession::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) epoch: u32,
    pub(crate) request: RequestId,
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// Finished.
    Done(Result<Reply, Error>),
    /// Under way: [`GuestSession::complete`] will be called with the ticket.
    Later,
}

/// What does the work a host asks for.
pub trait Machine {
    /// Unpredictable bytes for a handshake.
    fn entropy(&mut self) -> [u8; 16];
    /// Makes the machine one container's. Called at most once.
    fn setup(&mut self, ticket: Ticket, setup: Setup) -> Outcome;
    /// Starts a process. Its streams exist in the session from before this call until an error or forget.
    fn start(&mut self, ticket: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome;
    /// Sends a signal (1 to 64, already checked) to a running process.
    fn signal(&mut self, process: ProcessId, signal: u8, target: SignalTarget)
    -> Result<(), Error>;
    /// Changes a terminal's size.
    fn resize(&mut self, process: ProcessId, size: TerminalSize) -> Result<(), Error>;
    /// Drops what is kept of an exited process. The session has checked that it exited.
    fn forget(&mut self, process: ProcessId);
    /// Lists processes with pids above `after`.
    fn processes(&mut self, after: u32) -> Result<ProcessPage, Error>;
    /// Measures.
    fn statistics(&mut self) -> Result<Statistics, Error>;
    /// Sets the realtime clock to nanoseconds since the Unix epoch.
    fn set_clock(&mut self, unix_nanos: u64) -> Result<(), Error>;
    /// Stops everything; see [`crate::message::Request::Shutdown`].
    fn shutdown(&mut self, ticket: Ticket, spec: ShutdownSpec) -> Outcome;
    /// Mounts one more thing.
    fn mount(&mut self, ticket: Ticket, mount: Mount) -> Outcome;
    /// Replaces the network.
    fn network(&mut self, ticket: Ticket, network: Network) -> Outcome;
}

/// Standard input waiting for a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// These bytes come next; never empty.
    Data(&'a [u8]),
    /// Nothing now.
    Empty,
    /// All was taken and the host has sent the end.
    End,
}

/// Something that the adapter stopped doing can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// [`GuestSession::input`] has something new.
    Input(ProcessId),
    /// [`GuestSession::output_room`] was empty and is no longer.
    Room(ProcessId, Output),
}
