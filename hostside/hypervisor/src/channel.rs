//! The byte stream to a machine's tether, and what it is made of.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::machine::MachineId;
use crate::nic::MacAddress;
use crate::spec::{ChannelKey, ChannelKind};

/// What a channel's bytes can be read from and written to.
pub trait ChannelIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ChannelIo for T {}

/// What a carrier promises, from which the link layer chooses its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Every byte arrives, in order, unharmed, or the connection ends.
    Stream,
    /// Bytes may be damaged, lost, or left over from an earlier connection.
    Serial,
}

/// A connection to a machine's tether.
pub struct Channel {
    /// The bytes.
    pub io: Box<dyn ChannelIo>,
    /// What carries them.
    pub kind: ChannelKind,
    /// What the carrier promises.
    pub carrier: Carrier,
    /// The key both ends prove to know.
    pub key: ChannelKey,
    /// What the guest has to be told before its setup, if it was forked before it was this machine.
    pub claim: Option<Claim>,
}

/// What a machine that was forked ahead of need does not know of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its identity.
    pub id: MachineId,
    /// The addresses of its vNICs, in the order of the specification.
    pub macs: Vec<MacAddress>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("kind", &self.kind)
            .field("carrier", &self.carrier)
            .finish_non_exhaustive()
    }
}
