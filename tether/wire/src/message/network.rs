//! vNICs, addresses, routes, names.

use alloc::{string::String, vec::Vec};
use core::fmt;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// The network as the container sees it. Replaces what was there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// vNICs; one that is named and absent is waited for until setup's deadline.
    pub interfaces: Vec<Interface>,
    /// /etc/resolv.conf.
    pub dns: Dns,
    /// Further lines of /etc/hosts (`--add-host`), after localhost and the container's own.
    pub hosts: Vec<HostsEntry>,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One vNIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// How it is recognised.
    pub mac: MacAddress,
    /// The name it gets (`eth0`).
    pub name: String,
    /// In bytes; 0 leaves the device's own.
    pub mtu: u32,
    /// Where its addresses come from.
    pub addressing: InterfaceAddressing,
}

/// Where a vNIC's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InterfaceAddressing {
    /// These, and these routes.
    Static {
        /// IPv4 and IPv6.
        addresses: Vec<Address>,
        /// Routes through this vNIC.
        routes: Vec<Route>,
    },
    /// DHCPv4 (RFC 2131): address, routes and, where [`Dns`] names none, servers from the lease,
    /// renewed while the machine runs.
    Dhcp,
}

/// An address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// 0 to 32, or 0 to 128.
    pub prefix: u8,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination; prefix 0 is the default route.
    pub destination: Address,
    /// Through this router; `None` is on-link.
    pub gateway: Option<IpAddr>,
}

/// Name service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    pub servers: Vec<IpAddr>,
    /// Search list.
    pub search: Vec<String>,
    /// `options` of resolv.conf(5).
    pub options: Vec<String>,
}

/// A line of /etc/hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsEntry {
    /// The address.
    pub address: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}
