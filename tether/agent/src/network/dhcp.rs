//! A DHCPv4 client (RFC 2131, RFC 2132): discover, request, renew, rebind.
//!
//! Its state and its packets are pure; the socket is an ordinary UDP one bound to the vNIC, which
//! Linux lets send from 0.0.0.0. Answers are asked for as broadcasts, because no address would
//! accept them otherwise.
//!
//! ```text
//! Selecting ──offer──▶ Requesting ──ack──▶ Bound ──T1──▶ Renewing ──T2──▶ Rebinding
//!     ▲──────nak, no answer──┘  ▲──────────────ack──────────┴─────────────────┘
//!     ▲───────────────────────────────lease over, nak─────────────────────────┘
//! ```

use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::prelude::*;
use crate::sys;
use core::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::sockopt::{set_socket_broadcast, set_socket_reuseaddr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tether_wire::message::{Address, MacAddress};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Length of the fixed part, with the magic cookie.
const FIXED: usize = 240;
const SECOND: u64 = 1_000_000;

mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const SERVERS: u8 = 6;
    pub const HOSTNAME: u8 = 12;
    pub const REQUESTED: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const PAD: u8 = 0;
    pub const END: u8 = 255;
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Ours.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix: u8,
    /// The default gateway.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub servers: Vec<Ipv4Addr>,
    server: Ipv4Addr,
}

impl Lease {
    /// The address with its prefix.
    pub fn prefixed(&self) -> Address {
        Address {
            address: IpAddr::V4(self.address),
            prefix: self.prefix,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Selecting,
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    Bound,
    Renewing,
    Rebinding,
}

/// When a lease's phases begin, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    renew: u64,
    rebind: u64,
    end: u64,
}

/// The protocol, without its socket.
#[derive(Debug)]
struct Exchange {
    mac: MacAddress,
    hostname: String,
    transaction: u32,
    phase: Phase,
    lease: Option<Lease>,
    times: Times,
    started: u64,
    tries: u32,
    next: u64,
}

/// A packet to be sent.
#[derive(Debug, PartialEq, Eq)]
struct Outgoing {
    to: Ipv4Addr,
    bytes: Vec<u8>,
}

impl Exchange {
    fn new(mac: MacAddress, hostname: &str, transaction: u32, now: u64) -> Self {
        Self {
            mac,
            hostname: hostname.to_owned(),
            transaction,
            phase: Phase::Selecting,
            lease: None,
            times: Times {
                renew: 0,
                rebind: 0,
                end: 0,
            },
            started: now,
            tries: 0,
            next: now,
        }
    }

    fn enter(&mut self, phase: Phase, now: u64) {
        self.phase = phase;
        self.tries = 0;
        self.next = now;
        self.started = now;
    }

    /// What has to be sent because time has passed.
    fn expire(&mut self, now: u64) -> Option<Outgoing> {
        if now < self.next {
            return None;
        }
        if self.lease.is_some() && now >= self.times.end {
            self.lease = None;
            self.enter(Phase::Selecting, now);
        }
        match self.phase {
            Phase::Bound => self.enter(Phase::Renewing, now),
            Phase::Renewing if now >= self.times.rebind => self.enter(Phase::Rebinding, now),
            Phase::Requesting { .. } if self.tries >= 4 => self.enter(Phase::Selecting, now),
            _ => {}
        }
        let wait = match self.phase {
            // RFC 2131 4.4.5: half of what is left, at least a minute.
            Phase::Renewing => (self.times.rebind.saturating_sub(now) / 2).max(60 * SECOND),
            Phase::Rebinding => (self.times.end.saturating_sub(now) / 2).max(60 * SECOND),
            // 4.1 doubles from 4 to 64 seconds. A container waits for this: begin at one.
            _ => SECOND << self.tries.min(6),
        };
        self.tries += 1;
        let limit = match self.phase {
            Phase::Renewing => self.times.rebind,
            Phase::Rebinding => self.times.end,
            _ => u64::MAX,
        };
        self.next = now.saturating_add(wait).min(limit.max(now + 1));
        Some(self.packet(now))
    }

    fn packet(&self, now: u64) -> Outgoing {
        let kind = match self.phase {
            Phase::Selecting => DISCOVER,
            _ => REQUEST,
        };
        let ours = match (&self.lease, self.phase) {
            (Some(lease), Phase::Renewing | Phase::Rebinding) => lease.address,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let mut bytes = vec![0; FIXED];
        // BOOTREQUEST over Ethernet with six-byte addresses.
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        let seconds = (now.saturating_sub(self.started) / SECOND).min(u64::from(u16::MAX)) as u16;
        bytes[8..10].copy_from_slice(&seconds.to_be_bytes());
        if ours.is_unspecified() {
            bytes[10] = 0x80;
        }
        bytes[12..16].copy_from_slice(&ours.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes[236..240].copy_from_slice(&MAGIC);
        let mut add = |code: u8, value: &[u8]| {
            bytes.extend([code, value.len() as u8]);
            bytes.extend(value);
        };
        add(option::KIND, &[kind]);
        let [a, b, c, d, e, f] = self.mac.0;
        add(option::CLIENT, &[1, a, b, c, d, e, f]);
        if let Phase::Requesting { address, server } = self.phase {
            add(option::REQUESTED, &address.octets());
            add(option::SERVER, &server.octets());
        }
        if !self.hostname.is_empty() {
            add(option::HOSTNAME, self.hostname.as_bytes());
        }
        add(
            option::PARAMETERS,
            &[
                option::MASK,
                option::ROUTER,
                option::SERVERS,
                option::LEASE_TIME,
                option::RENEWAL,
                option::REBINDING,
            ],
        );
        bytes.push(option::END);
        // Old relays drop what is shorter than a BOOTP packet.
        bytes.resize(bytes.len().max(300), option::PAD);
        let to = match (&self.lease, self.phase) {
            (Some(lease), Phase::Renewing) => lease.server,
            _ => Ipv4Addr::BROADCAST,
        };
        Outgoing { to, bytes }
    }

    /// Takes a packet from anybody on the network.
    fn receive(&mut self, bytes: &[u8], now: u64) {
        let Some(answer) = Answer::decode(bytes) else {
            return;
        };
        if answer.transaction != self.transaction || answer.mac != self.mac {
            return;
        }
        match (self.phase, answer.kind) {
            (Phase::Selecting, OFFER) => {
                if let Some(server) = answer.server {
                    let address = answer.address;
                    self.enter(Phase::Requesting { address, server }, now);
                }
            }
            (Phase::Requesting { .. } | Phase::Renewing | Phase::Rebinding, ACK) => {
                self.bind(&answer, now);
            }
            (Phase::Requesting { .. } | Phase::Renewing | Phase::Rebinding, NAK) => {
                self.lease = None;
                self.enter(Phase::Selecting, now);
                // Not at once: a server that always refuses must not be flooded.
                self.next = now + SECOND;
            }
            _ => {}
        }
    }

    fn bind(&mut self, answer: &Answer, now: u64) {
        let known = match (&self.lease, self.phase) {
            (_, Phase::Requesting { server, .. }) => Some(server),
            (Some(lease), _) => Some(lease.server),
            _ => None,
        };
        let (Some(server), Some(seconds)) = (answer.server.or(known), answer.lease_time) else {
            return;
        };
        if answer.address.is_unspecified() || answer.address.is_broadcast() {
            return;
        }
        // A lease of no time at all would make this spin.
        let total = u64::from(seconds.max(30)) * SECOND;
        let time = |given: Option<u32>, usual: u64, latest: u64| {
            given
                .map_or(usual, |given| u64::from(given) * SECOND)
                .min(latest)
        };
        let rebind = time(answer.rebinding, total / 8 * 7, total);
        let renew = time(answer.renewal, total / 2, rebind).max(SECOND);
        self.times = Times {
            renew: now + renew,
            rebind: now + rebind,
            end: now.saturating_add(total),
        };
        self.lease = Some(Lease {
            address: answer.address,
            prefix: answer
                .mask
                .map_or(24, |mask| u32::from(mask).count_ones() as u8),
            router: answer.router,
            servers: answer.servers.clone(),
            server,
        });
        self.enter(Phase::Bound, now);
        self.next = self.times.renew;
    }
}

/// A server's packet, as far as it matters.
#[derive(Debug)]
struct Answer {
    transaction: u32,
    mac: MacAddress,
    kind: u8,
    address: Ipv4Addr,
    server: Option<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    servers: Vec<Ipv4Addr>,
    lease_time: Option<u32>,
    renewal: Option<u32>,
    rebinding: Option<u32>,
}

impl Answer {
    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FIXED || bytes[0] != 2 || bytes[236..240] != MAGIC {
            return None;
        }
        let mut answer = Self {
            transaction: u32::from_be_bytes(*bytes[4..].first_chunk()?),
            mac: MacAddress(*bytes[28..].first_chunk()?),
            kind: 0,
            address: Ipv4Addr::from(*bytes[16..].first_chunk::<4>()?),
            server: None,
            mask: None,
            router: None,
            servers: Vec::new(),
            lease_time: None,
            renewal: None,
            rebinding: None,
        };
        let mut rest = &bytes[FIXED..];
        while let [code, tail @ ..] = rest {
            rest = tail;
            match *code {
                option::PAD => continue,
                option::END => break,
                _ => {}
            }
            let [length, tail @ ..] = rest else { break };
            let Some((value, after)) = tail.split_at_checked(usize::from(*length)) else {
                break;
            };
            rest = after;
            let addresses = || {
                value
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|four| Ipv4Addr::from(*four))
            };
            match *code {
                option::KIND => answer.kind = *value.first()?,
                option::SERVER => answer.server = addresses().next(),
                option::MASK => answer.mask = addresses().next(),
                option::ROUTER => answer.router = addresses().next(),
                option::SERVERS => answer.servers = addresses().take(3).collect(),
                option::LEASE_TIME => answer.lease_time = number(value),
                option::RENEWAL => answer.renewal = number(value),
                option::REBINDING => answer.rebinding = number(value),
                _ => {}
            }
        }
        Some(answer)
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// The client of one vNIC.
pub struct Client {
    socket: OwnedFd,
    interface: String,
    index: u32,
    exchange: Exchange,
}

impl Client {
    /// Opens its socket; the first packet goes with the first [`Client::expire`].
    ///
    /// # Errors
    /// What the socket calls say.
    pub fn start(
        interface: &str,
        mac: MacAddress,
        index: u32,
        hostname: &str,
        now: u64,
    ) -> Result<Self> {
        let what = || format!("opening a DHCP socket on {interface}");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None).context(what)?;
        set_socket_reuseaddr(&socket, true).context(what)?;
        set_socket_broadcast(&socket, true).context(what)?;
        sys::bind_to_device(socket.as_fd(), interface).context(what)?;
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
        bind(&socket, &any).context(what)?;
        let mut random = [0; 4];
        let _ = getrandom(&mut random, GetRandomFlags::INSECURE);
        let transaction = u32::from_ne_bytes(random);
        Ok(Self {
            socket,
            interface: interface.to_owned(),
            index,
            exchange: Exchange::new(mac, hostname, transaction, now),
        })
    }

    /// Puts it into the loop.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn watch(&self, poller: &Poller, number: u32) -> Result<()> {
        poller.watch(&self.socket, EventFlags::IN, Token::Dhcp(number))
    }

    /// Its vNIC's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its vNIC's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What it has.
    pub fn lease(&self) -> Option<&Lease> {
        self.exchange.lease.as_ref()
    }

    /// When it has something to do next, in microseconds.
    pub fn deadline(&self) -> u64 {
        self.exchange.next
    }

    /// Reads what arrived.
    pub fn receive(&mut self, now: u64) {
        let mut buffer = [0; 1500];
        while let Ok((length, _)) = recv(&self.socket, &mut buffer, RecvFlags::empty()) {
            self.exchange.receive(&buffer[..length], now);
        }
    }

    /// Sends what is due. What cannot be sent, without a carrier yet, is sent again later.
    pub fn expire(&mut self, now: u64) {
        if let Some(packet) = self.exchange.expire(now) {
            let to = SocketAddrV4::new(packet.to, SERVER_PORT);
            let _ = sendto(&self.socket, &packet.bytes, SendFlags::empty(), &to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn answer(kind: u8, seconds: u32) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[0] = 2;
        bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
        bytes[16..20].copy_from_slice(&OURS.octets());
        bytes[28..34].copy_from_slice(&MAC.0);
        bytes[236..240].copy_from_slice(&MAGIC);
        bytes.extend([option::KIND, 1, kind, option::PAD]);
        bytes.extend([option::SERVER, 4]);
        bytes.extend(SERVER.octets());
        bytes.extend([option::MASK, 4, 255, 255, 240, 0]);
        bytes.extend([option::ROUTER, 4, 10, 0, 2, 1]);
        bytes.extend([option::SERVERS, 8, 10, 0, 2, 3, 10, 0, 2, 4]);
        bytes.extend([option::LEASE_TIME, 4]);
        bytes.extend(seconds.to_be_bytes());
        bytes.push(option::END);
        bytes
    }

    fn bound() -> Exchange {
        let mut exchange = Exchange::new(MAC, "box", 7, 0);
        exchange.expire(0).unwrap();
        exchange.receive(&answer(OFFER, 3600), 10);
        exchange.expire(10).unwrap();
        exchange.receive(&answer(ACK, 3600), 20);
        exchange
    }

    fn kind_of(packet: &Outgoing) -> u8 {
        assert_eq!(packet.bytes[FIXED], option::KIND);
        packet.bytes[FIXED + 2]
    }

    #[test]
    fn an_offer_is_requested_and_an_ack_is_a_lease() {
        let mut exchange = Exchange::new(MAC, "box", 7, 0);
        let discover = exchange.expire(0).unwrap();
        assert_eq!(kind_of(&discover), DISCOVER);
        assert_eq!(discover.to, Ipv4Addr::BROADCAST);
        assert_eq!(discover.bytes[10], 0x80);
        assert!(discover.bytes.len() >= 300);
        exchange.receive(&answer(OFFER, 3600), 10);
        let request = exchange.expire(10).unwrap();
        assert_eq!(kind_of(&request), REQUEST);
        let wanted = [&[option::REQUESTED, 4][..], &OURS.octets()].concat();
        assert!(request.bytes.windows(6).any(|window| window == wanted));
        exchange.receive(&answer(ACK, 3600), 20);
        assert_eq!(
            exchange.lease,
            Some(Lease {
                address: OURS,
                prefix: 20,
                router: Some(Ipv4Addr::new(10, 0, 2, 1)),
                servers: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(10, 0, 2, 4)],
                server: SERVER,
            })
        );
        assert_eq!(exchange.next, 20 + 1800 * SECOND);
    }

    #[test]
    fn no_answer_is_asked_for_again_ever_more_slowly() {
        let mut exchange = Exchange::new(MAC, "", 7, 0);
        let mut last = 0;
        for _ in 0..10 {
            let now = exchange.next;
            assert_eq!(kind_of(&exchange.expire(now).unwrap()), DISCOVER);
            assert_eq!(exchange.expire(now), None);
            let wait = exchange.next - now;
            assert!(wait >= last && wait <= 64 * SECOND);
            last = wait;
        }
    }

    #[test]
    fn a_lease_is_renewed_from_its_server_then_from_anybody_then_lost() {
        let mut exchange = bound();
        let now = exchange.next;
        let renew = exchange.expire(now).unwrap();
        assert_eq!((kind_of(&renew), renew.to), (REQUEST, SERVER));
        assert_eq!(renew.bytes[12..16], OURS.octets());
        assert_eq!(renew.bytes[10], 0);
        let mut broadcast = false;
        while exchange.lease.is_some() {
            let now = exchange.next;
            let packet = exchange.expire(now).unwrap();
            broadcast |= packet.to == Ipv4Addr::BROADCAST && exchange.lease.is_some();
        }
        assert!(broadcast);
        assert_eq!(exchange.phase, Phase::Selecting);
    }

    #[test]
    fn an_ack_while_renewing_begins_the_lease_anew() {
        let mut exchange = bound();
        let now = exchange.next;
        exchange.expire(now).unwrap();
        exchange.receive(&answer(ACK, 7200), now + 5);
        assert_eq!(exchange.phase, Phase::Bound);
        assert_eq!(exchange.next, now + 5 + 3600 * SECOND);
    }

    #[test]
    fn a_nak_gives_the_address_up() {
        let mut exchange = bound();
        let now = exchange.next;
        exchange.expire(now).unwrap();
        exchange.receive(&answer(NAK, 0), now + 5);
        assert_eq!(
            (exchange.phase, exchange.lease.clone()),
            (Phase::Selecting, None)
        );
        assert!(exchange.next > now + 5);
    }

    #[test]
    fn packets_for_others_and_broken_ones_are_ignored() {
        let mut exchange = Exchange::new(MAC, "", 8, 0);
        exchange.expire(0).unwrap();
        exchange.receive(&answer(OFFER, 3600), 10);
        assert_eq!(exchange.phase, Phase::Selecting);
        let whole = answer(ACK, 3600);
        for length in 0..whole.len() {
            let mut exchange = Exchange::new(MAC, "", 7, 0);
            exchange.receive(&whole[..length], 0);
            assert_eq!(exchange.lease, None);
        }
    }

    #[test]
    fn a_lease_of_no_time_does_not_spin() {
        let mut exchange = Exchange::new(MAC, "", 7, 0);
        exchange.expire(0).unwrap();
        exchange.receive(&answer(OFFER, 0), 0);
        exchange.expire(0).unwrap();
        exchange.receive(&answer(ACK, 0), 0);
        assert!(exchange.next >= SECOND);
    }
}
