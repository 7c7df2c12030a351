//! vNICs: their addresses, what they are attached to, and published ports.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::machine::random_bytes;
use crate::spec::{InvalidSpec, words};

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

words!(Protocol, "tcp, udp", Tcp => "tcp", Udp => "udp");

/// A vNIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Its address.
    pub mac: MacAddress,
    /// What its other end is.
    pub attachment: Attachment,
}

/// What a vNIC is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A network of its own behind the hypervisor's process, which needs no
    /// privilege: out through the host's sockets, in through published ports.
    /// Addresses are [`UserNetwork`]'s.
    UserMode {
        /// Ports of the host that lead to the guest.
        published: Vec<PublishedPort>,
    },
    /// A port group, where it has an address of its own.
    PortGroup(PortGroup),
}

impl Attachment {
    /// The ports that lead to the vNIC.
    pub fn published(&self) -> &[PublishedPort] {
        match self {
            Self::UserMode { published } => published,
            Self::PortGroup(group) => &group.published,
        }
    }
}

/// A port group that a vNIC is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenPortGroup")]
pub struct PortGroup {
    /// Its name.
    pub name: String,
    /// Ports of the machine that runs the driver that lead to the vNIC's address there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
}

/// A port group as it is written down: where nothing was published there was a time when only its name was.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenPortGroup {
    Name(String),
    Whole {
        name: String,
        #[serde(default)]
        published: Vec<PublishedPort>,
    },
}

impl From<WrittenPortGroup> for PortGroup {
    fn from(written: WrittenPortGroup) -> Self {
        match written {
            WrittenPortGroup::Name(name) => name.into(),
            WrittenPortGroup::Whole { name, published } => Self { name, published },
        }
    }
}

impl From<String> for PortGroup {
    /// The port group of this name, with nothing published.
    fn from(name: String) -> Self {
        Self {
            name,
            published: Vec::new(),
        }
    }
}

impl From<&str> for PortGroup {
    fn from(name: &str) -> Self {
        name.to_owned().into()
    }
}

/// The fixed addresses of a user-mode network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserNetwork;

impl UserNetwork {
    /// The guest's address.
    pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// The prefix of the network.
    pub const PREFIX: u8 = 24;
    /// The way out.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// The name server, which asks the host's.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
}

/// A port of the host that leads to one of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where the guest is reached.
    pub guest_port: u16,
}

/// An Ethernet address for one station.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address with these bytes.
    ///
    /// # Errors
    ///
    /// A group address, or all zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, InvalidSpec> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            Err(InvalidSpec::Mac(mac.to_string()))
        } else {
            Ok(mac)
        }
    }

    /// A random, locally administered address (IEEE 802: second-least bit of
    /// the first byte set).
    ///
    /// # Errors
    ///
    /// When the kernel's random source fails.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = random_bytes::<6>()?;
        bytes[0] = (bytes[0] & !1) | 2;
        Ok(Self(bytes))
    }

    /// Its six bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = InvalidSpec;
    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let refuse = || InvalidSpec::Mac(text.chars().take(40).collect());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(refuse)?;
            // from_str_radix takes a sign; two characters of hex digits do not have one.
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() {
            Err(refuse())
        } else {
            Self::new(bytes)
        }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidSpec;
    fn try_from(text: String) -> Result<Self, InvalidSpec> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_group_that_was_written_down_as_its_name_is_read() {
        let read = |text: &str| serde_json::from_str::<Attachment>(text).unwrap();
        let plain = Attachment::PortGroup("VM Network".into());
        assert_eq!(read(r#"{"port-group":"VM Network"}"#), plain);
        let published = Attachment::PortGroup(PortGroup {
            name: "VM Network".into(),
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                host: "127.0.0.1:80".parse().unwrap(),
                guest_port: 8080,
            }],
        });
        for attachment in [plain, published] {
            assert_eq!(
                read(&serde_json::to_string(&attachment).unwrap()),
                attachment
            );
        }
    }

    #[test]
    fn a_mac_address_is_for_one_station() {
        for bad in [
            "",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "02:00:00:00:00:01:02",
            "+2:00:00:00:00:01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?} was taken");
        }
        let mac = MacAddress::random().unwrap();
        assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        assert_eq!(mac.bytes()[0] & 3, 2);
    }
}
