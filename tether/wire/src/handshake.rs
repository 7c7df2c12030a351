//! How a connection begins, and how each end proves that it holds the channel's key.
//!
//! ```text
//!   host                                   guest
//!   preamble(nonce), HostHello  ------->
//!                               <-------   preamble(nonce), GuestHello::Welcome{.., proof}
//!   HostProof, requests...      ------->   (checks the proof before it reads anything else)
//!                               <-------   ToHost::Resume, then everything else
//! ```
//!
//! A proof is HMAC-SHA256 (RFC 2104) under the channel key over who proves, both nonces, the host
//! session, the boot id and the version: neither end can replay the other's.

use crate::frame::Nonce;
use core::fmt;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Oldest version this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest version this crate speaks.
pub const VERSION_MAX: u16 = 4;

/// The secret both ends of one machine's channel hold; all zero where none was given.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelKey(pub [u8; 32]);

impl fmt::Debug for ChannelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelKey(..)")
    }
}

/// First frame from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// Oldest version it speaks.
    pub min: u16,
    /// Newest version it speaks.
    pub max: u16,
    /// Random, the same for as long as the controller process lives: requests of one session are
    /// executed once however often the connection breaks.
    pub session: [u8; 16],
}

/// First frame from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestHello {
    /// We can talk.
    Welcome {
        /// The newest version both speak.
        version: u16,
        /// Random, the same until the guest boots or is forked.
        boot_id: [u8; 16],
        /// The guest's part of what is proved.
        nonce: [u8; 16],
        /// The guest holds the key.
        proof: [u8; 32],
    },
    /// We cannot.
    Refused(Refusal),
}

/// Second frame from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProof {
    /// The host holds the key.
    pub proof: [u8; 32],
}

/// Why two ends cannot talk. Final: trying again changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No version in common.
    Version {
        /// Oldest version the guest speaks.
        min: u16,
        /// Newest version the guest speaks.
        max: u16,
    },
    /// The other end does not hold this channel's key.
    Key,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { min, max } => write!(
                f,
                "the guest's tether speaks protocol versions {min} to {max}, the host side {VERSION_MIN} to \
                 {VERSION_MAX}: use a boot image and a vch of the same release"
            ),
            Self::Key => f.write_str("the other end does not hold this machine's channel key"),
        }
    }
}

/// First byte of a hello's frame, in both directions: no message begins so.
pub(crate) const HELLO: u8 = 0xfe;
/// First byte of a proof's frame.
pub(crate) const PROOF: u8 = 0xfd;

/// What both ends prove they know the key over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transcript {
    pub(crate) host_nonce: Nonce,
    pub(crate) session: [u8; 16],
    pub(crate) guest_nonce: [u8; 16],
    pub(crate) boot_id: [u8; 16],
    pub(crate) version: u16,
}

/// Who proves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Prover {
    Host,
    Guest,
}

impl Transcript {
    fn mac(&self, key: &ChannelKey, prover: Prover) -> Option<Hmac<Sha256>> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&key.0).ok()?;
        mac.update(match prover {
            Prover::Host => b"tether host ",
            Prover::Guest => b"tether guest",
        });
        mac.update(&self.host_nonce);
        mac.update(&self.session);
        mac.update(&self.guest_nonce);
        mac.update(&self.boot_id);
        mac.update(&self.version.to_le_bytes());
        Some(mac)
    }

    pub(crate) fn prove(&self, key: &ChannelKey, prover: Prover) -> [u8; 32] {
        self.mac(key, prover)
            .map_or([0; 32], |mac| mac.finalize().into_bytes().into())
    }

    /// In constant time.
    pub(crate) fn verify(&self, key: &ChannelKey, prover: Prover, proof: &[u8; 32]) -> bool {
        self.mac(key, prover)
            .is_some_and(|mac| mac.verify_slice(proof).is_ok())
    }
}
