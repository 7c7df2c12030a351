//! A channel's socket, which a newer connection can end.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The controller's end of a channel.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    /// Another descriptor of the same socket, for [`Older`].
    _handle: Arc<StdStream>,
}

/// What is kept of a channel that was handed out.
#[derive(Debug, Default)]
pub struct Older(Weak<StdStream>);

impl Socket {
    /// A channel, and what ends it.
    pub fn new(stream: UnixStream) -> io::Result<(Self, Older)> {
        let handle = Arc::new(StdStream::from(stream.as_fd().try_clone_to_owned()?));
        let older = Older(Arc::downgrade(&handle));
        Ok((
            Self {
                stream,
                _handle: handle,
            },
            older,
        ))
    }
}

impl Older {
    /// Ends the channel, if it is still there.
    pub fn end(&self) {
        if let Some(handle) = self.0.upgrade() {
            // It may have been shut down by its other end.
            let _ = handle.shutdown(Shutdown::Both);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_dropped_channel_is_closed_and_an_older_one_can_be() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (socket, older) = Socket::new(ours).unwrap();
        drop(socket);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        older.end();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (mut socket, older) = Socket::new(ours).unwrap();
        older.end();
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    }
}
