//! The machine's addresses as VMware's tools tell them: `NicInfoV3` of nicinfo.x, in XDR (RFC 4506).

use crate::prelude::*;
use core::net::IpAddr;

/// As many as the host takes (`NICINFO_MAX_NICS`, `INFO_IPADDRESS_V2_MAX_IPS`).
const NICS: usize = 16;
const ADDRESSES: usize = 64;

/// `NIC_INFO_V3`.
const VERSION: u32 = 3;
/// `IAT_IPV4` and `IAT_IPV6`.
const TYPE_IPV4: u32 = 1;
const TYPE_IPV6: u32 = 2;
/// `IAO_MANUAL` and `IAO_DHCP`.
const ORIGIN_MANUAL: u32 = 2;
const ORIGIN_DHCP: u32 = 4;
/// `IAS_PREFERRED`.
const PREFERRED: u32 = 1;
const ABSENT: u32 = 0;
const PRESENT: u32 = 1;

/// One vNIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// What it has.
    pub addresses: Vec<NicAddress>,
}

/// One address of a vNIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicAddress {
    /// The address.
    pub address: IpAddr,
    /// 0 to 32, or 0 to 128.
    pub prefix: u8,
    /// Whether a lease gave it.
    pub leased: bool,
}

/// Appends `GuestNicProto` with what is known here; the rest of it is optional.
pub fn encode(nics: &[Nic], out: &mut Vec<u8>) {
    let nics = &nics[..nics.len().min(NICS)];
    word(out, VERSION);
    word(out, PRESENT);
    word(out, nics.len() as u32);
    for nic in nics {
        opaque(out, nic.mac.as_bytes());
        let addresses = &nic.addresses[..nic.addresses.len().min(ADDRESSES)];
        word(out, addresses.len() as u32);
        for address in addresses {
            match address.address {
                IpAddr::V4(address) => {
                    word(out, TYPE_IPV4);
                    opaque(out, &address.octets());
                }
                IpAddr::V6(address) => {
                    word(out, TYPE_IPV6);
                    opaque(out, &address.octets());
                }
            }
            word(out, address.prefix.into());
            word(out, PRESENT);
            word(
                out,
                if address.leased {
                    ORIGIN_DHCP
                } else {
                    ORIGIN_MANUAL
                },
            );
            word(out, PRESENT);
            word(out, PREFERRED);
        }
        // DNS, WINS, DHCPv4, DHCPv6.
        (0..4).for_each(|_| word(out, ABSENT));
    }
    // No routes; and of all vNICs together DNS, WINS, DHCPv4, DHCPv6.
    (0..5).for_each(|_| word(out, ABSENT));
}

fn word(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    word(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
    // What came before need not be aligned: the padding is the bytes' own.
    out.resize(out.len() + (4 - bytes.len() % 4) % 4, 0);
}
