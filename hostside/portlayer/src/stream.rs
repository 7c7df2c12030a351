//! Streams of a process as whoever is attached sees them.

use bytes::Bytes;
pub use tether_wire::message::Output;
use tokio::sync::mpsc;

/// Bytes a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// To which stream; a terminal writes everything to [`Output::Stdout`].
    pub output: Output,
    /// Never empty.
    pub data: Bytes,
}

/// What of a process is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its standard output.
    pub stdout: bool,
    /// Its standard error.
    pub stderr: bool,
    /// Its standard input.
    pub stdin: bool,
}

/// A process one is attached to. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    /// What the process writes.
    pub output: AttachedOutput,
    /// What it reads, if that was wanted and it has a standard input.
    pub input: Option<AttachedInput>,
}

/// What a process writes, from the moment of attaching. A reader that does not read stops the process
/// when the buffers between are full, and nobody else.
#[derive(Debug)]
pub struct AttachedOutput {
    pub(crate) pieces: mpsc::Receiver<Piece>,
}

impl AttachedOutput {
    /// The next bytes; `None` when the process has ended and everything was handed out. Cancel safe.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.recv().await
    }
}

/// What a process reads. Whether its end is the end of the process's input is the process's
/// [`Stdin`](crate::spec::Stdin): dropping it is all there is to do.
#[derive(Debug)]
pub struct AttachedInput {
    pub(crate) pieces: mpsc::Sender<Bytes>,
}

/// The process reads no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process has ended or closed its input")]
pub struct InputClosed;

impl AttachedInput {
    /// Passes bytes on; waits while the process does not read.
    ///
    /// # Errors
    /// [`InputClosed`].
    pub async fn write(&mut self, data: Bytes) -> Result<(), InputClosed> {
        self.pieces.send(data).await.map_err(|_| InputClosed)
    }
}
