//! Where machines' serial ports arrive, as the driver sees it: a byte stream for a machine and a service.
//!
//! The concentrator of this crate is one; a test may have another.

use std::net::SocketAddr;

use async_trait::async_trait;
use hypervisor::{ChannelIo, MachineId};

use crate::concentrator::Concentrator;
pub use crate::concentrator::{CHANNEL, CONSOLE};

/// Serial ports by machine and service.
#[async_trait]
pub trait SerialPorts: Send + Sync + 'static {
    /// Where hosts dial, as in `telnet://controller:2377`: the `proxyURI` of every port.
    fn proxy_uri(&self) -> String;

    /// The newest byte stream of the machine's port, as soon as the machine has dialled in. An earlier one
    /// ends. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// The service is not served.
    async fn connect(&self, id: MachineId, service: &str) -> std::io::Result<Box<dyn ChannelIo>>;

    /// Lets the machine's ports stay connected while nobody reads them.
    fn admit(&self, id: MachineId);

    /// Takes [`Self::admit`] back and closes the machine's connections.
    fn forget(&self, id: MachineId);
}

/// A concentrator, and the name by which hosts reach it.
#[derive(Debug)]
pub struct Reached {
    concentrator: Concentrator,
    authority: String,
}

impl Reached {
    /// This concentrator, reached at `authority`, a host and a port as they stand in a URL; without, at the
    /// address it listens on.
    pub fn new(concentrator: Concentrator, authority: Option<String>) -> Self {
        let own = |address: SocketAddr| address.to_string();
        Self {
            authority: authority.unwrap_or_else(|| own(concentrator.local_addr())),
            concentrator,
        }
    }
}

#[async_trait]
impl SerialPorts for Reached {
    fn proxy_uri(&self) -> String {
        format!("telnet://{}", self.authority)
    }

    async fn connect(&self, id: MachineId, service: &str) -> std::io::Result<Box<dyn ChannelIo>> {
        let stream = self
            .concentrator
            .connect_to(*id.as_bytes(), service)
            .await?;
        Ok(Box::new(stream))
    }

    fn admit(&self, id: MachineId) {
        self.concentrator.admit(*id.as_bytes());
    }

    fn forget(&self, id: MachineId) {
        self.concentrator.forget(*id.as_bytes());
    }
}

/// No serial ports: for who only removes machines.
#[derive(Debug)]
pub(crate) struct NoPorts;

#[async_trait]
impl SerialPorts for NoPorts {
    fn proxy_uri(&self) -> String {
        String::new()
    }

    async fn connect(&self, _id: MachineId, service: &str) -> std::io::Result<Box<dyn ChannelIo>> {
        let text = format!("no {service} is carried here");
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text))
    }

    fn admit(&self, _id: MachineId) {}

    fn forget(&self, _id: MachineId) {}
}
