//! As much of rtnetlink(7) as a few vNICs need: names, flags, addresses, routes.
//!
//! Requests are answered before `sendto(2)` returns, so the one socket here is used and closed
//! within a call and never waits for anybody but the kernel.

use crate::failure::{Result, invalid, system};
use crate::prelude::*;
use core::net::IpAddr;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use tether_wire::message::{Address, MacAddress, Route};

const HEADER: usize = 16;

/// A message under construction (linux/netlink.h, linux/rtnetlink.h).
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// One of this kind, with flags of its own beside `NLM_F_REQUEST`.
    pub fn new(kind: u16, flags: i32, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        Self { bytes }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len() as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// struct ifinfomsg.
fn link_body(index: u32, flags: i32, change: i32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

/// struct ifaddrmsg.
fn address_body(family: i32, prefix: u8, flags: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family as u8, prefix, flags, 0, a, b, c, d]
}

/// struct rtmsg, of the main table.
fn route_body(family: i32, prefix: u8, scope: u8) -> [u8; 12] {
    let mut body = [0; 12];
    body[0] = family as u8;
    body[1] = prefix;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = libc::RTPROT_BOOT;
    body[6] = scope;
    body[7] = libc::RTN_UNICAST;
    body
}

fn family(address: IpAddr) -> i32 {
    match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    }
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn check_prefix(address: &Address) -> Result<()> {
    let longest = if address.address.is_ipv4() { 32 } else { 128 };
    if address.prefix <= longest {
        Ok(())
    } else {
        Err(invalid(format!(
            "{}/{} has a prefix longer than {longest}",
            address.address, address.prefix
        )))
    }
}

fn new_address(index: u32, address: &Address) -> Result<Vec<u8>> {
    check_prefix(address)?;
    let v6 = address.address.is_ipv6();
    // Duplicate detection would hold the address back for a second; the host gives each once.
    let flags = if v6 { libc::IFA_F_NODAD as u8 } else { 0 };
    let body = address_body(family(address.address), address.prefix, flags, index);
    let octets = octets(&address.address);
    let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let mut request = Request::new(libc::RTM_NEWADDR, create, &body)
        .attribute(libc::IFA_LOCAL, &octets)
        .attribute(libc::IFA_ADDRESS, &octets);
    if let IpAddr::V4(v4) = address.address
        && address.prefix < 31
    {
        let broadcast = u32::from(v4) | (u32::MAX >> address.prefix);
        request = request.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
    }
    Ok(request.finish())
}

fn new_route(index: u32, route: &Route) -> Result<Vec<u8>> {
    check_prefix(&route.destination)?;
    let scope = match route.gateway {
        None => libc::RT_SCOPE_LINK,
        Some(_) => libc::RT_SCOPE_UNIVERSE,
    };
    let destination = route.destination.address;
    if let Some(gateway) = route.gateway
        && family(gateway) != family(destination)
    {
        return Err(invalid(format!(
            "the route to {destination} and its gateway {gateway} are of different families"
        )));
    }
    let body = route_body(family(destination), route.destination.prefix, scope);
    let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    let mut request = Request::new(libc::RTM_NEWROUTE, create, &body)
        .attribute(libc::RTA_OIF, &index.to_ne_bytes());
    if route.destination.prefix > 0 {
        request = request.attribute(libc::RTA_DST, &octets(&destination));
    }
    if let Some(gateway) = route.gateway {
        request = request.attribute(libc::RTA_GATEWAY, &octets(&gateway));
    }
    Ok(request.finish())
}

/// Whom a netlink socket speaks to.
pub enum Protocol {
    /// `NETLINK_ROUTE`.
    Route,
    /// `NETLINK_SOCK_DIAG`.
    SocketDiagnosis,
}

/// A netlink socket.
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Opens one for links, addresses and routes.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open() -> Result<Self> {
        Self::open_for(Protocol::Route)
    }

    /// Opens one.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn open_for(protocol: Protocol) -> Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            match protocol {
                // Protocol 0.
                Protocol::Route => None,
                Protocol::SocketDiagnosis => Some(SOCK_DIAG),
            },
        )
        .map_err(|errno| system("opening a netlink socket", errno))?;
        Ok(Self { socket })
    }

    /// Sets link flags (`IFF_UP`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let flags = if up { libc::IFF_UP } else { 0 };
        let body = link_body(index, flags, libc::IFF_UP);
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &body);
        let what = if up { "bringing up" } else { "taking down" };
        self.ask(&request.finish(), |_| {})
            .map_err(|errno| system(format!("{what} link {index}"), errno))
    }

    /// Renames a link that is down.
    ///
    /// # Errors
    /// `Invalid` for a name that is too long; what the kernel says.
    pub fn rename(&self, index: u32, name: &str) -> Result<()> {
        let fits = (1..16).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if !fits {
            return Err(invalid(format!("{name:?} is no name for a vNIC")));
        }
        let mut terminated = name.as_bytes().to_vec();
        terminated.push(0);
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link_body(index, 0, 0))
            .attribute(libc::IFLA_IFNAME, &terminated);
        self.ask(&request.finish(), |_| {})
            .map_err(|errno| system(format!("naming a vNIC {name}"), errno))
    }

    /// Sets a link's MTU.
    ///
    /// # Errors
    /// `EINVAL` outside the device's range.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link_body(index, 0, 0))
            .attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        self.ask(&request.finish(), |_| {})
            .map_err(|errno| system(format!("setting the MTU {mtu}"), errno))
    }

    /// Sets a link's MAC address, while it is down.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_mac(&self, index: u32, mac: MacAddress) -> Result<()> {
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link_body(index, 0, 0))
            .attribute(libc::IFLA_ADDRESS, &mac.0);
        self.ask(&request.finish(), |_| {})
            .map_err(|errno| system(format!("setting the MAC address {mac}"), errno))
    }

    /// Adds an address, or keeps it.
    ///
    /// # Errors
    /// `Invalid` for an impossible prefix; what the kernel says.
    pub fn add_address(&self, index: u32, address: &Address) -> Result<()> {
        self.ask(&new_address(index, address)?, |_| {})
            .map_err(|errno| {
                system(
                    format!("adding the address {}/{}", address.address, address.prefix),
                    errno,
                )
            })
    }

    /// Adds a route, or replaces it.
    ///
    /// # Errors
    /// `Invalid` for one that makes no sense; what the kernel says.
    pub fn add_route(&self, index: u32, route: &Route) -> Result<()> {
        self.ask(&new_route(index, route)?, |_| {})
            .map_err(|errno| {
                let destination = &route.destination;
                system(
                    format!(
                        "adding the route to {}/{}",
                        destination.address, destination.prefix
                    ),
                    errno,
                )
            })
    }

    /// Removes every address of a link, and with them its routes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flush(&self, index: u32) -> Result<()> {
        let what = |errno| system(format!("removing the addresses of link {index}"), errno);
        let body = address_body(libc::AF_UNSPEC, 0, 0, 0);
        let request = Request::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &body);
        let mut found = Vec::new();
        self.ask(&request.finish(), |body| {
            // struct ifaddrmsg and its attributes serve unchanged to delete what they describe.
            if body.get(4..8) == Some(&index.to_ne_bytes()) {
                found.push(body.to_vec());
            }
        })
        .map_err(what)?;
        for body in found {
            let request = Request::new(libc::RTM_DELADDR, libc::NLM_F_ACK, &body);
            match self.ask(&request.finish(), |_| {}) {
                // Gone with the one it was secondary to.
                Err(Errno::ADDRNOTAVAIL) => {}
                other => other.map_err(what)?,
            }
        }
        Ok(())
    }

    /// Sends a request and hands on the body of each message of its answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask(&self, request: &[u8], mut each: impl FnMut(&[u8])) -> rustix::io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, request, SendFlags::empty(), &kernel)?;
        let mut buffer = [0; 8192];
        loop {
            let (length, _) = recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            if let Some(outcome) = read_answer(&buffer[..length], &mut each) {
                return outcome;
            }
        }
    }
}

/// Walks the messages of one datagram; `Some` once the answer is complete.
fn read_answer(mut bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Option<rustix::io::Result<()>> {
    while let Some((length, kind)) = header(bytes) {
        let body = &bytes[HEADER..length];
        match i32::from(kind) {
            libc::NLMSG_DONE => return Some(Ok(())),
            libc::NLMSG_ERROR => {
                let code = body
                    .first_chunk()
                    .map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                return Some(match code {
                    0 => Ok(()),
                    code => Err(Errno::from_raw_os_error(-code)),
                });
            }
            _ => each(body),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    None
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    (length >= HEADER && length <= bytes.len()).then_some((length, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn attributes_are_padded_and_lengths_are_not() {
        let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link_body(2, 0, 0))
            .attribute(libc::IFLA_IFNAME, b"eth0\0")
            .finish();
        assert_eq!(
            request,
            [
                44, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // header
                0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ifinfomsg
                9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, // IFLA_IFNAME
            ]
        );
    }

    #[test]
    fn an_address_carries_its_broadcast() {
        let address = Address {
            address: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
            prefix: 16,
        };
        let request = new_address(7, &address).unwrap();
        assert_eq!(
            request[HEADER..],
            [
                2, 16, 0, 0, 7, 0, 0, 0, // ifaddrmsg
                8, 0, 2, 0, 10, 1, 2, 3, // IFA_LOCAL
                8, 0, 1, 0, 10, 1, 2, 3, // IFA_ADDRESS
                8, 0, 4, 0, 10, 1, 255, 255, // IFA_BROADCAST
            ]
        );
    }

    #[test]
    fn impossible_prefixes_and_mixed_families_are_refused() {
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let address = |address, prefix| Address { address, prefix };
        assert!(new_address(1, &address(v4, 33)).is_err());
        assert!(new_address(1, &address(v6, 128)).is_ok());
        assert!(new_address(1, &address(v6, 129)).is_err());
        let route = Route {
            destination: address(v4, 0),
            gateway: Some(v6),
        };
        assert!(new_route(1, &route).is_err());
    }

    #[test]
    fn a_default_route_names_no_destination() {
        let route = Route {
            destination: Address {
                address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                prefix: 0,
            },
            gateway: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2))),
        };
        let request = new_route(3, &route).unwrap();
        assert_eq!(
            request[HEADER..],
            [
                2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, // rtmsg
                8, 0, 4, 0, 3, 0, 0, 0, // RTA_OIF
                8, 0, 5, 0, 10, 0, 2, 2, // RTA_GATEWAY
            ]
        );
    }

    #[test]
    fn answers_end_with_done_or_an_error() {
        let message = |kind: i32, body: &[u8]| {
            let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend((kind as u16).to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes
        };
        let mut seen = Vec::new();
        let mut dump = message(20, &[1; 8]);
        dump.extend(message(20, &[2; 8]));
        assert_eq!(
            read_answer(&dump, &mut |body: &[u8]| seen.push(body[0])),
            None
        );
        assert_eq!(seen, [1, 2]);
        let mut ignore = |_: &[u8]| {};
        let done = message(libc::NLMSG_DONE, &[0; 4]);
        assert_eq!(read_answer(&done, &mut ignore), Some(Ok(())));
        let refused = message(libc::NLMSG_ERROR, &(-libc::EEXIST).to_ne_bytes());
        assert_eq!(read_answer(&refused, &mut ignore), Some(Err(Errno::EXIST)));
        let cut = &refused[..10];
        assert_eq!(read_answer(cut, &mut ignore), None);
    }
}
