//! Where machines' serial ports arrive, as the driver sees it: a byte stream for a machine and a service.
//!
//! The concentrator of this crate is one; a test may have another.

use async_trait::async_trait;
use hypervisor::{ChannelIo, MachineId};

/// What carries tether's channel: the machine's second serial port.
pub const CHANNEL: &str = "channel";
/// What carries the guest's console: its first.
pub const CONSOLE: &str = "console";

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
