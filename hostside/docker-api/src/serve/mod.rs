//! Listening, and answering whoever connects.
//!
//! One task a connection, [`Options::connections`] of them at most. At the end no more connections are taken, streams end, requests under way are
//! given [`GRACE`], and containers run on.

mod activation;
mod tls;
mod unix;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use portlayer::PortLayer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::engine::{Engine, Vch};
use crate::hijack::{Peer, PeerKind};
use crate::router::{self, Endpoint};

pub use activation::activated;
pub use tls::TlsFiles;
pub use unix::SocketFile;

/// How long requests under way have when the endpoint ends.
const GRACE: Duration = Duration::from_secs(10);
/// How long a client has to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take to come, and a connection be kept without one (`ReadHeaderTimeout` of
/// the Engine's server).
const HEAD: Duration = Duration::from_secs(300);
/// How long a client that is one too many has to read that it is.
const REFUSAL: Duration = Duration::from_secs(2);
/// Those who are told at the same time; the rest are let go without a word.
const REFUSALS: usize = 16;
/// What it reads.
const TOO_MANY: &str = "{\"message\":\"too many connections: try again later, or serve with a higher limit \
    of open files (LimitNOFILE= of the unit, ulimit -n)\"}\n";
/// Readers of metrics at the same time.
const SCRAPES: usize = 16;
/// How long nothing is taken when the process has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What keeps an endpoint from listening.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A `--host` that is none.
    #[error("invalid host {0:?}: it is unix://PATH, tcp://ADDRESS[:PORT] or fd://")]
    Host(String),
    /// Somebody listens there.
    #[error("{} is in use: another endpoint listens on it", .0.display())]
    InUse(PathBuf),
    /// What is there is no socket, and is not replaced.
    #[error("{} is there and is no socket: remove it, or choose another path", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("cannot listen on {host}")]
    Listen {
        /// Where.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Plain TCP on an address others reach.
    #[error(
        "{0} can be reached from other machines: without TLS only loopback addresses are listened on; \
         give --tlsverify, --tlscacert, --tlscert and --tlskey"
    )]
    Plain(SocketAddr),
    /// A certificate or key.
    #[error("cannot use {what} {}: {why}", path.display())]
    Tls {
        /// Which.
        what: &'static str,
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A socket that was handed over.
    #[error("cannot use the sockets handed over by the service manager")]
    Activation(#[source] io::Error),
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// `unix://PATH`.
    Unix(PathBuf),
    /// `tcp://ADDRESS[:PORT]`, by name or number.
    Tcp(String),
    /// `fd://`: what systemd hands over.
    Activated,
}

impl std::str::FromStr for Host {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let bad = || ServeError::Host(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "tcp" => Ok(Self::Tcp(rest.to_owned())),
            "fd" => Ok(Self::Activated),
            _ => Err(bad()),
        }
    }
}

/// Whether TCP connections are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// By TLS.
    Tls(TlsFiles),
    /// Not at all, for loopback addresses only.
    Plain,
}

/// One place connections come from.
pub struct Listener {
    kind: Kind,
    shown: String,
    /// Removed at the end.
    _file: Option<SocketFile>,
}

enum Kind {
    Unix(UnixListener),
    Tcp(TcpListener, Option<TlsAcceptor>),
}

impl Listener {
    /// Listens on what a host says. Port 2376 with TLS and 2375 without if it names none.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn open(host: &Host, security: &Security) -> Result<Vec<Self>, ServeError> {
        match host {
            Host::Unix(path) => {
                let (listener, file) = unix::listen(path)?;
                Ok(vec![Self {
                    kind: Kind::Unix(listener),
                    shown: format!("unix://{}", path.display()),
                    _file: Some(file),
                }])
            }
            Host::Tcp(address) => {
                let listener = bind(address, security).await?;
                Ok(vec![Self::tcp(listener, security)?])
            }
            Host::Activated => activated(security),
        }
    }

    fn tcp(listener: TcpListener, security: &Security) -> Result<Self, ServeError> {
        let address = listener.local_addr().map_err(|source| ServeError::Listen {
            host: "tcp".to_owned(),
            source,
        })?;
        let acceptor = match security {
            Security::Tls(files) => Some(files.acceptor()?),
            Security::Plain if address.ip().is_loopback() => None,
            Security::Plain => return Err(ServeError::Plain(address)),
        };
        Ok(Self {
            kind: Kind::Tcp(listener, acceptor),
            shown: format!("tcp://{address}"),
            _file: None,
        })
    }

    /// Where it listens, as a client's `DOCKER_HOST` would say it.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

async fn bind(address: &str, security: &Security) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen {
        host: format!("tcp://{address}"),
        source,
    };
    let (host, port) = match address.rsplit_once(':') {
        // The last colon may be an IPv6 address's own.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (address, None),
    };
    let port = match (port, security) {
        (Some(port), _) => port
            .parse::<u16>()
            .map_err(|_| ServeError::Host(format!("tcp://{address}")))?,
        (None, Security::Tls(_)) => 2376,
        (None, Security::Plain) => 2375,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(failed)?
        .collect();
    // Before it is bound: nobody shall get in, not even for a moment.
    if *security == Security::Plain
        && let Some(reachable) = addresses.iter().find(|a| !a.ip().is_loopback())
    {
        return Err(ServeError::Plain(*reachable));
    }
    TcpListener::bind(addresses.as_slice())
        .await
        .map_err(failed)
}

/// What an endpoint is besides its listeners.
pub struct Options {
    /// Whose it is.
    pub vch: Vch,
    /// Where Prometheus reads metrics, if it shall.
    pub metrics: Option<TcpListener>,
    /// The most connections at a time; those beyond are told so, with 503.
    pub connections: usize,
}

/// Serves the Engine API until `shutdown` returns.
pub async fn serve(
    listeners: Vec<Listener>,
    port_layer: PortLayer,
    options: Options,
    shutdown: impl Future<Output = ()>,
) {
    let (end, ending) = watch::channel(false);
    let engine = Engine::new(port_layer, options.vch, ending);
    let endpoint = Endpoint::new(engine.clone());
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut accepting = JoinSet::new();
    let (taken, mut incoming) = tokio::sync::mpsc::channel(1);
    for listener in listeners {
        tracing::info!(host = listener.shown(), "listening");
        accepting.spawn(accept(listener, taken.clone()));
    }
    if let Some(listener) = options.metrics {
        accepting.spawn(serve_metrics(listener, engine));
    }
    drop(taken);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(incoming) = incoming.recv() => {
                if connections.len() < options.connections {
                    connections.spawn(connection(incoming, endpoint.clone()));
                } else if refusals.len() < REFUSALS {
                    refusals.spawn(refuse(incoming));
                }
            }
            Some(_) = refusals.join_next() => {}
            // What ended need not be kept.
            Some(_) = connections.join_next() => {}
            Some(_) = accepting.join_next() => {}
            else => break,
        }
    }
    accepting.shutdown().await;
    // Nobody may be listening to it any more.
    let _ = end.send(true);
    let rest = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE, rest).await.is_err() {
        tracing::warn!(connections = connections.len(), "cut off at the end");
    }
}

/// A connection that was taken.
enum Incoming {
    Unix(tokio::net::UnixStream),
    Tcp(TcpStream, Option<TlsAcceptor>),
}

async fn accept(listener: Listener, taken: tokio::sync::mpsc::Sender<Incoming>) {
    loop {
        let incoming = match &listener.kind {
            Kind::Unix(socket) => socket.accept().await.map(|(io, _)| Incoming::Unix(io)),
            Kind::Tcp(socket, acceptor) => socket
                .accept()
                .await
                .map(|(io, _)| Incoming::Tcp(io, acceptor.clone())),
        };
        match incoming {
            Ok(incoming) => {
                if taken.send(incoming).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(host = listener.shown(), "cannot take a connection: {error}");
                // Without descriptors this would fail again at once, for ever.
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn connection(incoming: Incoming, endpoint: Endpoint) {
    match incoming {
        Incoming::Unix(io) => {
            let peer = Peer::of(&io, PeerKind::Unix).ok();
            talk(io, peer, endpoint).await;
        }
        Incoming::Tcp(io, None) => {
            let peer = Peer::of(&io, PeerKind::Tcp).ok();
            // Keystrokes are not to wait for each other.
            let _ = io.set_nodelay(true);
            talk(io, peer, endpoint).await;
        }
        Incoming::Tcp(io, Some(acceptor)) => {
            let peer = Peer::of(&io, PeerKind::Tcp).ok();
            let _ = io.set_nodelay(true);
            let shaken = tokio::select! {
                shaken = timeout(HANDSHAKE, acceptor.accept(io)) => shaken,
                // Who has not said who it is has asked for nothing.
                () = endpoint.engine().ending() => return,
            };
            match shaken {
                Ok(Ok(io)) => talk(io, peer, endpoint).await,
                Ok(Err(error)) => tracing::info!("a client was refused: {error}"),
                Err(_) => tracing::info!("a client did not finish its handshake"),
            }
        }
    }
}

/// Tells a client that it is one too many. One that would have to prove who it is first is told nothing.
async fn refuse(incoming: Incoming) {
    tracing::warn!("a client was refused: there are too many connections");
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{TOO_MANY}",
        TOO_MANY.len()
    );
    async fn tell(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> io::Result<()> {
        io.write_all(answer.as_bytes()).await?;
        io.shutdown().await?;
        // Closed with its request unread, the answer could be lost on the way.
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await?;
        Ok(())
    }
    // It goes away or does not read: as it likes.
    let _ = timeout(REFUSAL, async {
        match incoming {
            Incoming::Unix(io) => tell(io, &answer).await,
            Incoming::Tcp(io, None) => tell(io, &answer).await,
            Incoming::Tcp(_, Some(_)) => Ok(()),
        }
    })
    .await;
}

/// Answers all requests of one connection.
pub(crate) async fn talk<I>(io: I, peer: Option<Peer>, endpoint: Endpoint)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ending = endpoint.engine().ending();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        let endpoint = endpoint.clone();
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        async move { Ok::<_, Infallible>(endpoint.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = ending => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("a connection broke off: {error}");
    }
}

async fn serve_metrics(listener: TcpListener, engine: Engine) {
    let mut connections = JoinSet::new();
    loop {
        let io = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((io, _)) => io,
                Err(error) => {
                    tracing::warn!("cannot take a connection for metrics: {error}");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        if connections.len() >= SCRAPES {
            continue;
        }
        let engine = engine.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let response = router::metrics(&engine, request.uri().path());
                async move { Ok::<_, Infallible>(response) }
            });
            // A reader that goes away is its own affair.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HANDSHAKE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(io), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_path_an_address_or_handed_over() {
        let cases = [
            (
                "unix:///run/vch.sock",
                Some(Host::Unix("/run/vch.sock".into())),
            ),
            (
                "tcp://127.0.0.1:2375",
                Some(Host::Tcp("127.0.0.1:2375".into())),
            ),
            ("fd://", Some(Host::Activated)),
            ("unix://relative", None),
            ("/run/vch.sock", None),
            ("ssh://host", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Host>().ok(), expected, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_comes_is_not_waited_for_for_ever() {
        let world = crate::tests::world::World::new().await;
        for begun in [&b""[..], b"GET /_ping HTTP/1.1\r\nHost: d"] {
            let (mut client, io) = tokio::io::duplex(4096);
            let serving = tokio::spawn(talk(io, None, world.endpoint.clone()));
            client.write_all(begun).await.unwrap();
            let start = tokio::time::Instant::now();
            let mut answer = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer)
                .await
                .unwrap();
            assert!(start.elapsed() >= HEAD && start.elapsed() < HEAD * 2);
            serving.await.unwrap();
        }
    }

    #[tokio::test]
    async fn plain_tcp_is_for_loopback_only() {
        let refused = bind("0.0.0.0:0", &Security::Plain).await.unwrap_err();
        assert!(matches!(refused, ServeError::Plain(_)), "{refused}");
        bind("127.0.0.1:0", &Security::Plain).await.unwrap();
        bind("[::1]:0", &Security::Plain).await.ok();
        assert!(bind("127.0.0.1:x", &Security::Plain).await.is_err());
    }
}
