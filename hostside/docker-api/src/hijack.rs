//! Connections that become a process's streams.
//!
//! A client that asks to upgrade gets 101 and from then on the connection is raw: what it sends is the
//! process's input, and the end of that (it shuts its sending side down) is the input's end while output goes
//! on. A client that does not ask gets the output as an answer's body; its request's body is the input.
//!
//! Such a connection ends with the process, with the detach keys, when the client is gone for good (which
//! is not the same as that it sends no more), or when the endpoint ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portlayer::{AttachedInput, AttachedOutput, LogReader};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::{Duration, timeout};

use crate::body;
use crate::detach_keys::{DetachKeys, Scanned, Scanner};
use crate::engine::Engine;
use crate::multiplex::{Channel, Framing, MULTIPLEXED_STREAM, RAW_STREAM};
use crate::version::ApiVersion;

/// How much is read from a client at once, bytes.
const PIECE: usize = 32 << 10;
/// How long a client has to close its end after ours: closing a socket that still holds what the client
/// sent would tell it of an error instead of the end.
const LINGER: Duration = Duration::from_secs(5);

/// How long a client has to read an answer's head before output follows it anyway.
const HEAD: Duration = Duration::from_millis(250);

/// Sees when a client is gone for good. Kept beside a connection, whose reading and writing it leaves alone.
#[derive(Clone, Debug)]
pub struct Peer {
    socket: Arc<OwnedFd>,
    kind: PeerKind,
}

/// What is known of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A process here: the kernel tells when it reads.
    Unix,
    /// Whatever is at the other end of TCP.
    Tcp,
}

impl Peer {
    /// The other end of a socket.
    ///
    /// # Errors
    /// No further descriptor is to be had.
    pub fn of(socket: &impl AsFd, kind: PeerKind) -> io::Result<Self> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        Ok(Self {
            socket: Arc::new(socket),
            kind,
        })
    }

    /// Its socket once more, for its readiness only, so that what kind it is makes no difference.
    fn watch(&self) -> Option<UnixStream> {
        let fd = self.socket.try_clone().ok()?;
        UnixStream::from_std(fd.into()).ok()
    }

    /// Waits, from now on, until the other end of a Unix socket has read something: the kernel tells then
    /// that there is room, also when there was (`unix_write_space`). Begins to look before it returns.
    async fn reads(&self) -> impl Future<Output = ()> + Send + use<> {
        let watched = match self.kind {
            PeerKind::Unix => self.watch(),
            PeerKind::Tcp => None,
        };
        if let Some(watched) = &watched
            && watched.ready(Interest::WRITABLE).await.is_ok()
        {
            put_aside(watched);
        }
        async move {
            if let Some(watched) = watched {
                // One that cannot be watched is not waited for.
                let _ = timeout(HEAD, watched.ready(Interest::WRITABLE)).await;
            }
        }
    }

    /// Returns when neither direction is open any more (`EPOLLHUP`, `EPOLLERR`; epoll_ctl(2)).
    async fn gone(&self) {
        let Some(watched) = self.watch() else {
            // Writing will show.
            return std::future::pending().await;
        };
        // The kernel tells of every change once: that there is room is put aside, and the next change
        // waited for.
        while let Ok(ready) = watched.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            put_aside(&watched);
        }
    }
}

/// Forgets that there is room, until the kernel tells of it again.
fn put_aside(watched: &UnixStream) {
    let full: io::Result<()> =
        watched.try_io(Interest::WRITABLE, || Err(io::ErrorKind::WouldBlock.into()));
    // It is an error because the closure says so.
    let _ = full;
}

/// Where a client's output comes from.
pub enum Source {
    /// A process.
    Process(AttachedOutput),
    /// What was written so far.
    Log(LogReader),
    /// One text, on standard output.
    Text(Option<Bytes>),
}

impl Source {
    async fn next(&mut self) -> Option<(Channel, Bytes)> {
        match self {
            Self::Process(output) => {
                let piece = output.next().await?;
                Some((piece.output.into(), piece.data))
            }
            Self::Log(reader) => match reader.next().await? {
                Ok(record) => Some((record.output.into(), record.data)),
                Err(error) => {
                    tracing::warn!("a log cannot be read: {}", crate::errors::chain(&error));
                    None
                }
            },
            Self::Text(text) => text.take().map(|text| (Channel::Stdout, text)),
        }
    }
}

/// What a client is to be connected with.
pub struct Session {
    /// Output.
    pub source: Source,
    /// Input, if it was asked for and there is one.
    pub input: Option<AttachedInput>,
    /// Looked for in the input, where there is a terminal.
    pub keys: Option<DetachKeys>,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All output was written.
    Output,
    /// The client has gone.
    Gone,
    /// The detach keys were typed.
    Detached,
    /// The endpoint ends.
    Ending,
}

/// A request whose connection can be taken over.
pub struct Hijack {
    upgrade: Option<OnUpgrade>,
    peer: Option<Peer>,
}

impl Hijack {
    /// Takes from a request what is needed for that, and leaves it its body.
    pub fn of(request: &mut Request) -> Self {
        let wanted = request.headers().contains_key(UPGRADE);
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        Self {
            upgrade: upgrade.filter(|_| wanted),
            peer: request.extensions_mut().remove(),
        }
    }

    /// Answers, and connects the client with what `session` makes; `after` is told how that ended. `body` is
    /// the rest of the request.
    ///
    /// The session is made when the client has read the answer's head: docker-py drops output that it reads in
    /// one piece with it.
    pub async fn connect(
        self,
        engine: &Engine,
        version: ApiVersion,
        terminal: bool,
        session: impl Future<Output = Session> + Send + 'static,
        body: Body,
        after: impl FnOnce(End) + Send + 'static,
    ) -> Response {
        let framing = Framing::for_terminal(terminal);
        let ending = engine.ending();
        let Some(upgrade) = self.upgrade else {
            return answer(framing, session.await, body, ending, after);
        };
        let peer = self.peer;
        let head_read = match &peer {
            Some(peer) => Some(peer.reads().await),
            None => None,
        };
        tokio::spawn(async move {
            let io = match upgrade.await {
                Ok(io) => TokioIo::new(io),
                Err(error) => {
                    tracing::debug!("a client went away instead of upgrading: {error}");
                    return after(End::Gone);
                }
            };
            let gone = async {
                match &peer {
                    Some(peer) => peer.gone().await,
                    None => std::future::pending().await,
                }
            };
            if let Some(head_read) = head_read {
                head_read.await;
            }
            pump(io, framing, session.await, gone, ending, after).await;
        });
        let multiplexed = framing == Framing::Multiplexed && version >= ApiVersion::new(1, 42);
        let content_type = if multiplexed {
            MULTIPLEXED_STREAM
        } else {
            RAW_STREAM
        };
        let mut response = body::empty(StatusCode::SWITCHING_PROTOCOLS);
        body::set(&mut response, "content-type", content_type);
        let headers = response.headers_mut();
        headers.insert(CONNECTION, axum::http::HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, axum::http::HeaderValue::from_static("tcp"));
        response
    }
}

/// Output as an answer's body, input from the request's.
fn answer(
    framing: Framing,
    session: Session,
    body: Body,
    ending: impl Future<Output = ()> + Send + 'static,
    after: impl FnOnce(End) + Send + 'static,
) -> Response {
    let Session { source, input, .. } = session;
    let feed = async move {
        let (mut body, Some(mut input)) = (body, input) else {
            return;
        };
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
                && input.write(data).await.is_err()
            {
                return;
            }
        }
    };
    /// Says that the client has gone when the body is dropped before its end.
    struct After<F: FnOnce(End)>(Option<F>);
    impl<F: FnOnce(End)> After<F> {
        fn tell(&mut self, end: End) {
            if let Some(after) = self.0.take() {
                after(end);
            }
        }
    }
    impl<F: FnOnce(End)> Drop for After<F> {
        fn drop(&mut self) {
            self.tell(End::Gone);
        }
    }
    let state = (
        source,
        Box::pin(feed),
        false,
        Box::pin(ending),
        After(Some(after)),
    );
    let pieces = stream::unfold(
        state,
        move |(mut source, mut feed, mut fed, mut ending, mut after)| async move {
            let piece = loop {
                tokio::select! {
                    piece = source.next() => break piece,
                    () = &mut feed, if !fed => fed = true,
                    () = &mut ending => {
                        after.tell(End::Ending);
                        return None;
                    }
                }
            };
            match piece {
                Some((channel, data)) => {
                    let framed = framing.frame(channel, data);
                    Some((
                        Ok::<_, io::Error>(framed),
                        (source, feed, fed, ending, after),
                    ))
                }
                None => {
                    after.tell(End::Output);
                    None
                }
            }
        },
    );
    body::streamed(RAW_STREAM, pieces)
}

/// Connects a raw connection with a process until one of them ends.
async fn pump<I: AsyncRead + AsyncWrite + Unpin>(
    io: I,
    framing: Framing,
    session: Session,
    gone: impl Future<Output = ()>,
    ending: impl Future<Output = ()>,
    after: impl FnOnce(End),
) {
    let Session {
        mut source,
        input,
        keys,
    } = session;
    let scanner = keys.map(DetachKeys::scanner);
    let (mut reader, mut writer) = tokio::io::split(io);
    let output = async {
        while let Some((channel, data)) = source.next().await {
            let framed = framing.frame(channel, data);
            if writer.write_all(&framed).await.is_err() || writer.flush().await.is_err() {
                return End::Gone;
            }
        }
        End::Output
    };
    let input = async {
        if let Some(input) = input
            && feed(&mut reader, input, scanner).await == Fed::Detached
        {
            return End::Detached;
        }
        // No more input is no reason to end.
        std::future::pending().await
    };
    let end = tokio::select! {
        biased;
        end = output => end,
        end = input => end,
        () = gone => End::Gone,
        () = ending => End::Ending,
    };
    drop(source);
    // Told before the client learns of it, who may ask about it at once.
    after(end);
    if end != End::Gone && writer.shutdown().await.is_ok() {
        let mut rest = reader.unsplit(writer);
        let drained = async {
            let mut buffer = vec![0; PIECE];
            while matches!(rest.read(&mut buffer).await, Ok(1..)) {}
        };
        // Whoever goes on sending is cut off.
        let _ = timeout(LINGER, drained).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fed {
    /// The client sends no more, or the process takes no more.
    Ended,
    /// The detach keys were typed.
    Detached,
}

/// Passes on what a client sends.
async fn feed(
    reader: &mut (impl AsyncRead + Unpin),
    mut input: AttachedInput,
    mut scanner: Option<Scanner>,
) -> Fed {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let (data, detached) = match scanner.as_mut().map(|s| s.scan(&buffer[..count])) {
            None => (Bytes::copy_from_slice(&buffer[..count]), false),
            Some(Scanned::Pass(data)) => (data.into(), false),
            Some(Scanned::Detach(data)) => (data.into(), true),
        };
        if !data.is_empty() && input.write(data).await.is_err() {
            return Fed::Ended;
        }
        if detached {
            return Fed::Detached;
        }
    }
    if let Some(rest) = scanner.map(Scanner::rest)
        && !rest.is_empty()
    {
        // The process may have ended: then nobody misses it.
        let _ = input.write(rest.into()).await;
    }
    Fed::Ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_sends_no_more_is_not_gone_and_one_that_closed_is() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let peer = Peer::of(&near, PeerKind::Unix).unwrap();
        far.shutdown().await.unwrap();
        let early = timeout(Duration::from_millis(50), peer.gone()).await;
        assert!(early.is_err(), "half closed was taken for gone");
        drop(far);
        timeout(Duration::from_secs(5), peer.gone()).await.unwrap();
    }
}
