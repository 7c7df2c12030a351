//! The reader's end of a machine's serial port, as an asynchronous byte stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::Session;

/// The bytes of one serial port of a machine, from one dialling in to its end. It outlives migrations. It ends
/// when the machine's connection does, and when another reader is given the port. Dropping it leaves the
/// machine connected: the next reader goes on with what this one had not read.
#[derive(Debug)]
pub struct PortStream {
    session: Arc<Session>,
    number: u64,
}

impl PortStream {
    /// A new reader of `session`, if it has something to read yet.
    pub(super) fn attach(session: &Arc<Session>) -> Option<Self> {
        let number = session.attach()?;
        let session = session.clone();
        Some(Self { session, number })
    }
}

impl Drop for PortStream {
    fn drop(&mut self) {
        self.session.detach(self.number);
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        self.session
            .poll_read(self.number, cx, room, |bytes| buffer.put_slice(bytes))
            .map(Ok)
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.session.poll_write(self.number, cx, data).map(|taken| {
            taken.ok_or_else(|| {
                let text =
                    "the machine's serial port is no longer connected, or has another reader";
                io::Error::new(io::ErrorKind::BrokenPipe, text)
            })
        })
    }

    /// What was written is on its way; during a migration it waits for the machine to run again.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A serial port has no end of its own to tell.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
