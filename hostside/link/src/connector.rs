//! Where carriers come from.

use std::future::Future;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// Makes a carrier, again and again.
///
/// A failed [`connect`](Connector::connect) is tried again after a pause that grows; a connector
/// that can wait for the event that makes the next attempt worth while waits for it inside
/// `connect`. The future may be dropped at any await.
///
/// Implemented for every `FnMut() -> Future<Output = io::Result<Carrier>>`.
pub trait Connector: Send + 'static {
    /// The byte stream.
    type Carrier: AsyncRead + AsyncWrite + Unpin + Send;

    /// Connects once.
    fn connect(&mut self) -> impl Future<Output = io::Result<Self::Carrier>> + Send;
}

impl<F, R, C> Connector for F
where
    F: FnMut() -> R + Send + 'static,
    R: Future<Output = io::Result<C>> + Send,
    C: AsyncRead + AsyncWrite + Unpin + Send,
{
    type Carrier = C;

    fn connect(&mut self) -> impl Future<Output = io::Result<C>> + Send {
        self()
    }
}
