//! What the two ends say to each other, as postcard values.
//!
//! Files are nouns; this one holds the two directions, [`ToGuest`] and [`ToHost`].
//!
//! The rule of growth: enums are **append-only**. A variant is never removed, reordered or given
//! another field, because postcard identifies a variant by its position and a field by its place.
//! What a later version needs is a new variant at the end, sent only when the hello agreed on a
//! version that has it. `tests/golden.rs` holds the bytes of version 1: do not change that test.

mod error;
mod files;
mod machine;
mod mount;
mod network;
mod process;

pub use error::{Error, ErrorKind};
pub use files::{Boundary, Conflicts, FileOperation, Owners};
pub use machine::{
    Action, BlockDeviceUsage, Claim, CpuUsage, Identity, InterfaceUsage, MachineEvent, MemoryUsage,
    ProcessInfo, ProcessPage, Rebirth, Setup, ShutdownSpec, Statistics,
};
pub use mount::{DiskId, Mount, MountSource, Root};
pub use network::{
    Address, Dns, HostsEntry, Interface, InterfaceAddressing, MacAddress, Network, Route,
};
pub use process::{
    Exit, ExitStatus, InputState, Output, OutputState, PidNamespace, ProcessId, ProcessSpec,
    ProcessState, ResourceLimit, Role, RunState, SignalTarget, Started, Stdio, TerminalSize, User,
};

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Serde's own way for a slice of bytes is one call a byte; this is one copy, and the same encoding.
fn as_bytes<S: serde::Serializer>(
    data: &&[u8],
    serializer: S,
) -> core::result::Result<S::Ok, S::Error> {
    serializer.serialize_bytes(data)
}

/// A request's number, chosen by the host: strictly increasing within one host session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u32);

/// What the host sends after the handshake: one frame each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call, and a box would cost the guest code"
)]
pub enum ToGuest<'a> {
    /// A request; answered by exactly one [`ToHost::Reply`] with the same id.
    Request {
        /// The request's number.
        id: RequestId,
        /// Every reply below this id has reached the host: the guest forgets them.
        settled: RequestId,
        /// What is asked.
        request: Request,
    },
    /// Bytes for a process's standard input, starting at `offset` of that stream.
    Input {
        /// The process.
        process: ProcessId,
        /// Offset of the first byte of `data` in the stream.
        offset: u64,
        /// At most [`crate::MAX_CHUNK`] bytes.
        #[serde(borrow, serialize_with = "as_bytes")]
        data: &'a [u8],
    },
    /// Standard input ends at `offset` (half-close).
    InputEnd {
        /// The process.
        process: ProcessId,
        /// The stream's length.
        offset: u64,
    },
    /// The host has stored a stream up to `stored` and accepts bytes up to `limit`.
    Ack {
        /// The process.
        process: ProcessId,
        /// Which of its output streams.
        output: Output,
        /// Everything below this offset is safe with the host: the guest may drop it.
        stored: u64,
        /// The guest may send bytes below this offset; it never shrinks within a connection.
        limit: u64,
    },
    /// Are you there?
    Ping {
        /// Comes back in [`ToHost::Pong`].
        token: u32,
    },
    /// Every reply below this id has reached the host, and no request is there to carry it.
    Settled {
        /// The lowest id still unanswered.
        below: RequestId,
    },
}

/// What the guest sends after the handshake: one frame each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost<'a> {
    /// First message of a connection: everything the guest knows, so that a host that has
    /// forgotten all can resume.
    Resume {
        /// Whether the setup was done, with its result.
        setup: Option<Result<(), Error>>,
        /// Every process that was started and not yet forgotten.
        processes: Vec<ProcessState>,
    },
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: RequestId,
        /// Its outcome.
        result: Result<Reply, Error>,
    },
    /// Bytes a process wrote, starting at `offset` of that stream.
    Output {
        /// The process.
        process: ProcessId,
        /// Which stream.
        output: Output,
        /// Offset of the first byte of `data` in the stream.
        offset: u64,
        /// At most [`crate::MAX_CHUNK`] bytes.
        #[serde(borrow, serialize_with = "as_bytes")]
        data: &'a [u8],
    },
    /// A stream ended: no writer is left, and its length is `offset`.
    OutputEnd {
        /// The process.
        process: ProcessId,
        /// Which stream.
        output: Output,
        /// The stream's length.
        offset: u64,
    },
    /// The guest accepts standard input up to `limit`, and everything below `taken` has been
    /// written to the process (or thrown away because the process no longer reads).
    InputRoom {
        /// The process.
        process: ProcessId,
        /// The host may drop bytes below this offset.
        taken: u64,
        /// The host may send bytes below this offset.
        limit: u64,
    },
    /// A process ended and was reaped. Repeated in [`ToHost::Resume`] until it is forgotten.
    Exited {
        /// The process.
        process: ProcessId,
        /// How it ended.
        exit: Exit,
    },
    /// Something happened that nobody asked for.
    Event(MachineEvent),
    /// The answer to [`ToGuest::Ping`].
    Pong {
        /// The ping's token.
        token: u32,
    },
}

/// What the host can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make the machine this container's: identity, root, mounts, network, in this order. Once.
    /// A [`Request::Start`] that arrives while it is under way waits for it.
    Setup(Setup),
    /// Start a process. The id is the host's and must not be in use.
    Start {
        /// The process's name from now on.
        process: ProcessId,
        /// What to run.
        spec: ProcessSpec,
    },
    /// Send a signal.
    Signal {
        /// The process.
        process: ProcessId,
        /// Linux signal number, 1 to 64 (`signal(7)`, x86-64).
        signal: u8,
        /// The process alone or its process group.
        target: SignalTarget,
    },
    /// Change the size of a process's terminal.
    Resize {
        /// A process with [`Stdio::Terminal`].
        process: ProcessId,
        /// The new size.
        size: TerminalSize,
    },
    /// The host has stored the exit and both streams to their ends: drop the process's record.
    /// Refused with [`ErrorKind::Busy`] while it runs.
    Forget {
        /// The process.
        process: ProcessId,
    },
    /// List processes as the kernel sees them, in order of pid, a page at a time.
    Processes {
        /// Only pids greater than this one; 0 for the first page.
        after: u32,
    },
    /// Measure the machine.
    Statistics,
    /// Set the realtime clock.
    SetClock {
        /// Nanoseconds since the Unix epoch.
        unix_nanos: u64,
    },
    /// Stop everything and end the machine. The reply is sent once the processes are gone and the
    /// file systems unmounted; then tether waits a moment for it to be acknowledged and acts.
    Shutdown(ShutdownSpec),
    /// Mount one more thing (a hot-added volume).
    Mount(Mount),
    /// Replace addresses, routes and name service.
    Network(Network),
    /// Read or write the container's files, as a process without a role: answered with
    /// [`Reply::Started`], and from then on a process like any other. Needs the setup, and no main
    /// process. The id is the host's and must not be in use.
    Files {
        /// The process's name from now on.
        process: ProcessId,
        /// What it does.
        operation: FileOperation,
    },
    /// Stop every process of the container where it is, so that the machine can be forked: no
    /// instruction of theirs runs until [`Request::Thaw`], or in a child [`Request::Rebirth`].
    /// Answered when they stand still. Needs the setup, and no copy of files or other work under
    /// way. Since version 2.
    Freeze {
        /// How long it lasts at most, in milliseconds of the machine's own clock, should nobody
        /// thaw it; a child of the machine stays frozen.
        hold_ms: u32,
    },
    /// Let them go on. Not frozen is success. Since version 2.
    Thaw {
        /// The realtime clock, nanoseconds since the Unix epoch; set if the machine's is behind it.
        unix_nanos: u64,
    },
    /// Make a child of a running machine a machine of its own and let its processes go on. Once:
    /// then it is [`ErrorKind::Exists`]. Since version 2.
    Rebirth(Rebirth),
    /// Tell a fork that was made ahead of need whose it is, before its setup: after it, it is
    /// [`ErrorKind::Exists`]. Since version 3.
    Claim(Claim),
    /// Have a fork that was made ahead of need go through what its setup and the start of a process will ask of
    /// it, with nothing of anybody's, and undo it: what a machine does for the first time takes it
    /// longest. Before its setup; any number of times. Since version 4.
    Rehearse,
}

impl Request {
    /// The process that this request brings into being, if it does.
    pub fn starts(&self) -> Option<ProcessId> {
        match self {
            Self::Start { process, .. } | Self::Files { process, .. } => Some(*process),
            _ => None,
        }
    }
}

/// What the guest answers when a request succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// To [`Request::Start`] and [`Request::Files`].
    Started(Started),
    /// To [`Request::Processes`].
    Processes(ProcessPage),
    /// To [`Request::Statistics`].
    Statistics(Statistics),
}
