//! Output of the process on its way to this one's, each stream on a thread of its own: a terminal
//! or a pipe that is not read stops its stream and nothing else.

use crate::sink::Sink;
use std::io;
use tether_link::{LinkError, OutputReader};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Why a stream was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Whoever read it has gone.
    #[error("nobody reads it any more")]
    Closed,
    /// It cannot be written.
    #[error(transparent)]
    Write(io::Error),
    /// It does not come any more.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Writes a stream to its end; acknowledges what is written.
///
/// # Errors
/// No thread can be started.
pub fn forward(
    handle: Handle,
    name: &str,
    reader: OutputReader,
    sink: Sink,
) -> io::Result<oneshot::Receiver<Result<(), OutputError>>> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // Nobody is left to tell when the receiver is gone.
            let _ = done.send(write(&handle, reader, sink));
        })?;
    Ok(result)
}

fn write(handle: &Handle, mut reader: OutputReader, mut sink: Sink) -> Result<(), OutputError> {
    while let Some(chunk) = handle.block_on(reader.next())? {
        match sink.write(chunk.offset, &chunk.data) {
            Ok(()) => reader.stored(chunk.end()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                reader.discard();
                return Err(OutputError::Closed);
            }
            Err(error) => {
                reader.stored(sink.cursor());
                return Err(OutputError::Write(error));
            }
        }
    }
    Ok(())
}
