//! The virtual serial port concentrator: where the serial ports of machines on ESXi arrive.
//!
//! A machine's port whose `proxyURI` is `telnet://HOST:2377` dials here, from whatever host it runs on, and
//! speaks telnet with VMware's option 232. The concentrator gives the port's bytes to whoever asks for the
//! machine by its UUID, through migrations; it never dials anything itself.
//!
//! ```text
//!  ESXi ── TCP ──> connection ──> session <── stream <── connect(uuid)
//!                      └─ registry ─┘
//! ```
//!
//! * [`telnet`], [`extension`]: bytes to messages and back, without I/O.
//! * `session`: one port's bytes and migration; `registry`: whose they are; `connection`: one TCP connection.
//!
//! Whoever reaches the address can dial. What that gives: connections are limited in number, those that are
//! not known to anyone here more so and for a bounded time; every buffer is bounded; a machine whose
//! connection answers cannot be replaced without the secret of its migration. What it does not give is
//! authenticity of a machine that is not connected: the channel's key proves that, in the layer above.

pub mod extension;
pub mod telnet;

mod connection;
mod registry;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

pub use session::WhenFull;
pub use stream::PortStream;

use registry::{Key, Registry};

/// The service that carries tether's channel.
pub const CHANNEL: &str = "channel";
/// The service that carries the machine's console.
pub const CONSOLE: &str = "console";

/// A kind of port, told from a machine's others by the `serviceURI` of its backing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name in the URI; a scheme before it and a port after it do not count.
    pub name: String,
    /// What becomes of bytes that nobody reads.
    pub when_full: WhenFull,
}

/// What holds for whoever dials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. One port needs one, and a second during a migration.
    pub connections: usize,
    /// Those among them that nobody here knows yet.
    pub pending: usize,
    /// Those among these from one address.
    pub pending_of_address: usize,
    /// The time to say which machine's a connection is.
    pub identify: Duration,
    /// The time until someone has to want a machine that dialled in.
    pub unclaimed: Duration,
    /// The time a connected machine has to answer before another connection may take its name.
    pub probe: Duration,
    /// How long the source of a complete migration has to be silent before its connection is closed.
    pub drain: Duration,
    /// How long the target of a migration may take to complete it when the source is gone.
    pub takeover: Duration,
    /// The time to send the last answer to a connection that is refused.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            pending: 1024,
            pending_of_address: 512,
            identify: Duration::from_secs(15),
            unclaimed: Duration::from_secs(60),
            probe: Duration::from_secs(3),
            drain: Duration::from_millis(500),
            takeover: Duration::from_secs(60),
            farewell: Duration::from_secs(1),
        }
    }
}

/// A running concentrator; dropping it closes everything.
#[derive(Debug)]
pub struct Concentrator {
    registry: Arc<Registry>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Concentrator {
    /// Listens for [`CHANNEL`], whose guest waits for its reader, and [`CONSOLE`], which keeps the newest.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen(address: impl ToSocketAddrs) -> io::Result<Self> {
        let services = [(CHANNEL, WhenFull::Wait), (CONSOLE, WhenFull::DropOldest)];
        let services = services.map(|(name, when_full)| Service {
            name: name.into(),
            when_full,
        });
        Self::listen_with(address, services.into(), Limits::default()).await
    }

    /// Listens for `services` under `limits`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn listen_with(
        address: impl ToSocketAddrs,
        services: Vec<Service>,
        limits: Limits,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let registry = Registry::new(services, limits);
        let accepting = tokio::spawn(accept(listener, registry.clone())).abort_handle();
        Ok(Self {
            registry,
            address,
            accepting,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The newest byte stream of the machine's channel, as soon as the machine has dialled in. `uuid` is its
    /// `config.instanceUuid`, or `config.uuid` where it has none. An earlier stream of it ends. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// `NotFound`: [`CHANNEL`] is not served here.
    pub async fn connect(&self, uuid: [u8; 16]) -> io::Result<PortStream> {
        self.connect_to(uuid, CHANNEL).await
    }

    /// The same for the machine's port of another service.
    ///
    /// # Errors
    /// `NotFound`: the service is not served here.
    pub async fn connect_to(&self, uuid: [u8; 16], service: &str) -> io::Result<PortStream> {
        let service = self.registry.service(service).ok_or_else(|| {
            let text = format!("the concentrator does not serve {service:?}");
            io::Error::new(io::ErrorKind::NotFound, text)
        })?;
        Ok(self.registry.connect(Key { uuid, service }).await)
    }

    /// Lets the machine's ports stay connected while nobody reads them.
    pub fn admit(&self, uuid: [u8; 16]) {
        self.registry.admit(uuid);
    }

    /// Takes [`Concentrator::admit`] back and closes the machine's connections.
    pub fn forget(&self, uuid: [u8; 16]) {
        self.registry.forget(uuid);
    }
}

impl Drop for Concentrator {
    fn drop(&mut self) {
        self.accepting.abort();
        self.registry.close();
    }
}

/// Takes connections. Ends with its task, and all connections with it.
///
/// An acceptor of TLS, for `telnets`, goes between the stream and [`connection::serve`], under the same
/// limits and the time of `identify`.
async fn accept(listener: TcpListener, registry: Arc<Registry>) {
    let room = Arc::new(Semaphore::new(registry.limits().connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "no connection can be taken from a serial port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let permit = room.clone().try_acquire_owned();
        let (Ok(permit), Some(pending)) = (permit, registry.pend(address.ip())) else {
            warn!(%address, "too many connections of serial ports: one is refused");
            continue;
        };
        if let Err(error) = keep_alive(&stream) {
            warn!(%address, %error, "the host's death may be noticed late");
        }
        let registry = registry.clone();
        connections.spawn(async move {
            connection::serve(registry, stream, address, pending).await;
            drop(permit);
        });
    }
}

/// Has the kernel notice a host that is gone: a serial port may be silent for days.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 3)?)
}
