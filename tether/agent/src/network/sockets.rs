//! TCP connections that are another machine's: a child of a running machine has its parent's, and
//! what it would send on them the other end would take for the parent's.
//!
//! sock_diag(7); linux/inet_diag.h. `SOCK_DESTROY` needs `CONFIG_INET_DIAG_DESTROY`.

use super::netlink::{Netlink, Protocol, Request};
use crate::failure::{Result, system};
use crate::prelude::*;
use core::net::{Ipv4Addr, Ipv6Addr};
use rustix::io::Errno;

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// net/tcp_states.h, as bits: all but those that are no connection (`TCP_CLOSE`, `TCP_LISTEN`) and
/// those that no process has any more (`TCP_TIME_WAIT`).
const CONNECTIONS: u32 = 0xfff & !(1 << 7 | 1 << 10 | 1 << 6 | 1);
/// struct inet_diag_sockid.
const ID: usize = 48;

/// Resets every connection that leaves the machine. Those of the machine with itself stay: both
/// their ends are here. Nothing of it is sent where no vNIC is up.
///
/// # Errors
/// What the kernel says.
pub fn reset_connections() -> Result<()> {
    let what = |errno| system("resetting the parent's TCP connections", errno);
    let netlink = Netlink::open_for(Protocol::SocketDiagnosis)?;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut found: Vec<[u8; ID]> = Vec::new();
        let dump = request(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, &[0; ID]);
        netlink
            .ask(&dump, |message| {
                // struct inet_diag_msg: four bytes, then the socket's id.
                if let Some(id) = message.get(4..).and_then(|rest| rest.first_chunk::<ID>())
                    && leaves_the_machine(family, id)
                {
                    found.push(*id);
                }
            })
            .map_err(what)?;
        for id in found {
            let destroy = request(SOCK_DESTROY, libc::NLM_F_ACK, family, &id);
            match netlink.ask(&destroy, |_| {}) {
                // It ended by itself.
                Err(Errno::NOENT) => {}
                other => other.map_err(what)?,
            }
        }
    }
    Ok(())
}

/// struct inet_diag_req_v2.
fn request(kind: u16, flags: i32, family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut body = [0; 8 + ID];
    body[0] = family;
    body[1] = libc::IPPROTO_TCP as u8;
    body[4..8].copy_from_slice(&CONNECTIONS.to_ne_bytes());
    body[8..].copy_from_slice(id);
    Request::new(kind, flags, &body).finish()
}

/// Whether the other end is not this machine's loopback.
fn leaves_the_machine(family: u8, id: &[u8; ID]) -> bool {
    let Some(remote) = id.get(20..36).and_then(|bytes| bytes.first_chunk::<16>()) else {
        return true;
    };
    if i32::from(family) == libc::AF_INET {
        let [a, b, c, d, ..] = *remote;
        return !Ipv4Addr::new(a, b, c, d).is_loopback();
    }
    let remote = Ipv6Addr::from(*remote);
    let mapped = remote.to_ipv4_mapped();
    !(remote.is_loopback() || mapped.is_some_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(remote: &[u8]) -> [u8; ID] {
        let mut id = [0; ID];
        id[20..20 + remote.len()].copy_from_slice(remote);
        id
    }

    #[test]
    fn only_the_machines_own_loopback_stays_connected() {
        let v4 = |remote: [u8; 4]| leaves_the_machine(libc::AF_INET as u8, &to(&remote));
        assert!(v4([10, 0, 2, 2]));
        assert!(!v4([127, 0, 0, 1]));
        assert!(!v4([127, 9, 9, 9]));
        let v6 = |remote: Ipv6Addr| leaves_the_machine(libc::AF_INET6 as u8, &to(&remote.octets()));
        assert!(v6("2001:db8::1".parse().unwrap()));
        assert!(v6("::ffff:10.0.2.2".parse().unwrap()));
        assert!(!v6("::1".parse().unwrap()));
        assert!(!v6("::ffff:127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn listeners_are_no_connections() {
        // TCP_ESTABLISHED, TCP_SYN_SENT, TCP_LISTEN of net/tcp_states.h.
        assert_ne!(CONNECTIONS & 1 << 1, 0);
        assert_ne!(CONNECTIONS & 1 << 2, 0);
        assert_eq!(CONNECTIONS & 1 << 10, 0);
    }
}
