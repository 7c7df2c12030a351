//! A rehearsal, from the first word to the last.

use crate::{Config, Link, LinkError};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tether_wire::message::ErrorKind;
use tether_wire::{CarrierKind, ChannelKey};
use tokio::io::{AsyncRead, AsyncWrite};

/// Has a guest that was forked ahead of need greet, go through a start and undo it, all over this one
/// connection, which is closed afterwards. A guest that is too old to know how has greeted, and that is
/// all. Must be called inside a tokio runtime.
///
/// # Errors
/// The guest did not answer within `patience`; what went wrong in it.
pub async fn rehearse<C>(connection: C, key: ChannelKey, patience: Duration) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let only = Mutex::new(Some(connection));
    let connector = move || {
        let next = only.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { next.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    };
    let link = Link::spawn(connector, Config::new(CarrierKind::Stream, key))?;
    link.ready(patience).await.map_err(io::Error::other)?;
    match tokio::time::timeout(patience, link.rehearse()).await {
        Ok(Err(LinkError::Guest(error))) if error.kind == ErrorKind::Unsupported => Ok(()),
        Ok(done) => done.map_err(io::Error::other),
        Err(late) => Err(late.into()),
    }
}
