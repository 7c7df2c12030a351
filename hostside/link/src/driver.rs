//! The task that moves bytes between a carrier and the session.

use crate::core::{Notice, Phase, Shared};
use crate::{Connector, LinkError};
use bytes::{Buf, BytesMut};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tether_wire::{Time, Violation};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// Bytes read from the carrier at once.
const READ: usize = 64 * 1024;

/// How long a stream may stay unanswered before another is tried; doubles each time.
///
/// QEMU 7.2 can leave a virtio-serial port mute: when its client dies while the guest writes, the
/// port is closed, and throttled a moment later by the write that failed, so that the next client
/// hears nothing. The one after that does. A guest that still boots loses nothing by it: what was
/// said to it is said again.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST_PATIENCE: Duration = Duration::from_secs(60);

/// How long the pause after a failed connection may grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

/// Why a carrier was given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the carrier ended")]
    Ended,
    #[error("the carrier failed")]
    Failed(#[source] io::Error),
    #[error("the guest broke the protocol: {0}")]
    Violation(Violation),
    #[error("the channel was refused")]
    Refused,
    #[error("the guest did not answer")]
    Silent,
}

/// Connects, serves, and connects again, until the link is refused or dropped.
pub(crate) async fn drive<C: Connector>(
    shared: Arc<Shared>,
    mut connector: C,
    backoff: Backoff,
    epoch: Instant,
) {
    let mut pause = backoff.first;
    let mut patience = PATIENCE;
    loop {
        match connector.connect().await {
            Ok(carrier) => {
                let mut up = false;
                let reason = serve(&shared, carrier, epoch, patience, &mut up).await;
                tracing::debug!(%reason, up, "carrier lost");
                let mut core = shared.lock();
                core.session.disconnected();
                core.drain();
                if up {
                    core.notice(Notice::Down);
                    pause = backoff.first;
                    patience = PATIENCE;
                } else if matches!(reason, Broken::Silent) {
                    patience = (patience * 2).min(LONGEST_PATIENCE);
                }
                if core.ended().is_none() {
                    core.phase = Phase::Waiting {
                        carrier: Some(reason.to_string()),
                    };
                }
            }
            Err(error) => {
                let mut core = shared.lock();
                if core.ended().is_none() {
                    core.phase = Phase::Waiting {
                        carrier: Some(error.to_string()),
                    };
                }
            }
        }
        shared.changed.notify_waiters();
        if shared.lock().ended().is_some() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(backoff.longest);
    }
}

async fn serve<C>(
    shared: &Shared,
    carrier: C,
    epoch: Instant,
    patience: Duration,
    up: &mut bool,
) -> Broken
where
    C: tokio::io::AsyncRead + AsyncWrite + Unpin + Send,
{
    let nonce = match random() {
        Ok(nonce) => nonce,
        Err(error) => return Broken::Failed(error),
    };
    let now = || Time(epoch.elapsed().as_micros() as u64);
    let (mut reader, mut writer) = tokio::io::split(carrier);
    let mut incoming = vec![0; READ];
    let mut outgoing = Outgoing::default();
    let serial = {
        let mut core = shared.lock();
        core.session.connected(nonce);
        core.serial
    };
    let give_up = Instant::now() + patience;
    loop {
        let mut deadline = None;
        if outgoing.is_empty() {
            let mut core = shared.lock();
            core.session.transmit(now(), &mut outgoing.fresh);
            deadline = core.session.timeout();
            drop(core);
            outgoing.take_fresh();
        }
        let timer = async {
            match deadline {
                // A deadline that has passed and brought nothing must not spin.
                Some(Time(at)) => {
                    let at = epoch + Duration::from_micros(at);
                    tokio::time::sleep_until(at.max(Instant::now() + Duration::from_millis(1)))
                        .await
                }
                _ => std::future::pending().await,
            }
        };
        let idle = outgoing.is_empty();
        tokio::select! {
            read = reader.read(&mut incoming) => {
                let bytes = match read {
                    Ok(0) => return Broken::Ended,
                    Ok(count) => &incoming[..count],
                    Err(error) => return Broken::Failed(error),
                };
                let mut core = shared.lock();
                let received = core.session.receive(bytes, now());
                // What came before a violation was sound.
                let drained = core.drain();
                let refused = core.ended().is_some();
                drop(core);
                *up |= drained.up;
                if drained.any {
                    shared.changed.notify_waiters();
                }
                if refused {
                    return Broken::Refused;
                }
                if let Err(violation) = received {
                    return Broken::Violation(violation);
                }
            }
            written = outgoing.push(&mut writer), if !idle => {
                if let Err(error) = written {
                    return Broken::Failed(error);
                }
            }
            () = shared.outbound.notified(), if idle => {}
            () = timer, if idle => {}
            // A serial line is the same line however often it is opened.
            () = tokio::time::sleep_until(give_up), if !*up && !serial => return Broken::Silent,
        }
    }
}

/// Bytes on their way into the carrier. Survives a dropped [`push`](Outgoing::push).
#[derive(Default)]
struct Outgoing {
    fresh: Vec<u8>,
    bytes: BytesMut,
    unflushed: bool,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    fn take_fresh(&mut self) {
        self.bytes.extend_from_slice(&self.fresh);
        self.fresh.clear();
    }

    async fn push<W: AsyncWrite + Unpin>(&mut self, writer: &mut W) -> io::Result<()> {
        while !self.bytes.is_empty() {
            let count = writer.write(&self.bytes).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.bytes.advance(count);
            self.unflushed = true;
        }
        writer.flush().await?;
        self.unflushed = false;
        Ok(())
    }
}

/// Bytes from the kernel's generator.
pub(crate) fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Ends the link when its last owner is gone.
#[derive(Debug)]
pub(crate) struct Running {
    pub shared: Arc<Shared>,
    pub task: tokio::task::AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.lock().end(LinkError::Closed);
        self.shared.changed.notify_waiters();
    }
}
