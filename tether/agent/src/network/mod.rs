//! The container's network: vNICs found by MAC, named, addressed, routed; and the names of hosts.
//!
//! Nothing is kept that the host did not send, so that a fork told of another network has that one
//! and nothing of its template's.

use crate::prelude::*;
mod dhcp;
mod names;
mod netlink;
mod sockets;

use crate::failure::{Context, Result, invalid};
use crate::files;
use crate::guestinfo::{Nic, NicAddress};
use crate::poller::Poller;
use crate::root::write_file;
use core::net::{IpAddr, Ipv4Addr};
use dhcp::Client;
use netlink::Netlink;
use tether_wire::message::{
    Address, Error, ErrorKind, Interface, InterfaceAddressing, MacAddress, MachineEvent, Network,
    Route,
};

const LINKS: &str = "/sys/class/net";

/// What was last asked for, and what leases add to it.
#[derive(Default)]
pub struct State {
    wanted: Network,
    clients: Vec<Client>,
}

/// A link as /sys shows it.
struct Link {
    name: String,
    index: u32,
}

impl State {
    /// The first vNIC that is asked for and not there.
    pub fn absent(network: &Network) -> Option<&Interface> {
        let links = links();
        network
            .interfaces
            .iter()
            .find(|wanted| !links.iter().any(|(mac, _)| *mac == wanted.mac.to_string()))
    }

    /// What is said when it did not come in time.
    pub fn absence(wanted: &Interface) -> Error {
        let present: Vec<String> = links().into_iter().map(|(mac, _)| mac).collect();
        Error::new(
            ErrorKind::NotFound,
            format!(
                "no vNIC with the MAC address {} appeared in time; the machine's: {}",
                wanted.mac,
                present.join(", ")
            ),
        )
    }

    /// Parts from the network of the machine that this one is a child of: every vNIC down, nothing
    /// left of its connections, and then each with its own MAC address of `network`, which names them
    /// in the same order.
    ///
    /// # Errors
    /// Another number of vNICs; what the kernel says.
    pub fn disown(&mut self, network: &Network) -> Result<()> {
        self.clients.clear();
        let former = &self.wanted.interfaces;
        if former.len() != network.interfaces.len() {
            return Err(invalid(format!(
                "a child has the vNICs of its parent, which are {}, not {}",
                former.len(),
                network.interfaces.len()
            )));
        }
        let netlink = Netlink::open()?;
        let links = links();
        let mut changes = Vec::new();
        for (former, new) in former.iter().zip(&network.interfaces) {
            let mac = former.mac.to_string();
            let (_, link) = links
                .iter()
                .find(|(found, _)| *found == mac)
                .ok_or_else(|| Self::absence(former))?;
            netlink.set_up(link.index, false)?;
            changes.push((link.index, new.mac));
        }
        sockets::reset_connections()?;
        for (index, mac) in changes {
            netlink.flush(index)?;
            netlink.set_mac(index, mac)?;
        }
        Ok(())
    }

    /// Replaces the network. All its vNICs are there.
    ///
    /// # Errors
    /// Which part, and why.
    pub fn apply(
        &mut self,
        network: Network,
        names: (&str, &str),
        poller: &Poller,
        now: u64,
    ) -> Result<()> {
        self.clients.clear();
        self.wanted = network;
        let netlink = Netlink::open()?;
        if let Some(index) = index_of("lo") {
            netlink.set_up(index, true)?;
        }
        let named = name_links(&netlink, &self.wanted.interfaces)?;
        for (wanted, index) in self.wanted.interfaces.iter().zip(named) {
            if wanted.mtu != 0 {
                netlink.set_mtu(index, wanted.mtu)?;
            }
            netlink.set_up(index, true)?;
            // Brought up, QEMU's vmxnet3 takes its first address for its own again, whatever it was told since.
            if was_given_another(&wanted.name) {
                netlink.set_mac(index, wanted.mac)?;
            }
            match &wanted.addressing {
                InterfaceAddressing::Static { addresses, routes } => {
                    for address in addresses {
                        netlink.add_address(index, address)?;
                    }
                    // On-link ones first: a gateway must be reachable before it is named.
                    let (direct, through): (Vec<&Route>, Vec<&Route>) =
                        routes.iter().partition(|route| route.gateway.is_none());
                    for route in direct.into_iter().chain(through) {
                        netlink.add_route(index, route)?;
                    }
                }
                InterfaceAddressing::Dhcp => {
                    let number = self.clients.len() as u32;
                    let client = Client::start(&wanted.name, wanted.mac, index, names.0, now)?;
                    client.watch(poller, number)?;
                    self.clients.push(client);
                }
            }
        }
        self.write_names(names)
    }

    /// Writes /etc/hosts and /etc/resolv.conf from what is known now.
    fn write_names(&self, (hostname, domainname): (&str, &str)) -> Result<()> {
        let mut own: Vec<IpAddr> = Vec::new();
        for interface in &self.wanted.interfaces {
            if let InterfaceAddressing::Static { addresses, .. } = &interface.addressing {
                own.extend(addresses.iter().map(|address| address.address));
            }
        }
        let mut servers = Vec::new();
        for lease in self.clients.iter().filter_map(Client::lease) {
            own.push(IpAddr::V4(lease.address));
            servers.extend(lease.servers.iter().copied().map(IpAddr::V4));
        }
        let hosts = names::hosts(&own, hostname, domainname, &self.wanted.hosts)?;
        write_file("hosts", &hosts)?;
        write_file(
            "resolv.conf",
            &names::resolv_conf(&self.wanted.dns, &servers)?,
        )
    }

    /// The vNICs that were asked for, with what addresses they have.
    pub fn nics(&self) -> Vec<Nic> {
        let of = |address: Address, leased| NicAddress {
            address: address.address,
            prefix: address.prefix,
            leased,
        };
        let interface = |interface: &Interface| {
            let addresses = match &interface.addressing {
                InterfaceAddressing::Static { addresses, .. } => addresses
                    .iter()
                    .map(|address| of(*address, false))
                    .collect(),
                InterfaceAddressing::Dhcp => self
                    .clients
                    .iter()
                    .filter(|client| client.interface() == interface.name)
                    .filter_map(Client::lease)
                    .map(|lease| of(lease.prefixed(), true))
                    .collect(),
            };
            Nic {
                mac: interface.mac.to_string(),
                addresses,
            }
        };
        self.wanted.interfaces.iter().map(interface).collect()
    }

    /// The name of a vNIC that still waits for its first lease.
    pub fn without_lease(&self) -> Option<&str> {
        self.clients
            .iter()
            .find(|client| client.lease().is_none())
            .map(Client::interface)
    }

    /// When a DHCP client has something to do next.
    pub fn deadline(&self) -> Option<u64> {
        self.clients.iter().map(Client::deadline).min()
    }

    /// A DHCP answer may have come for client `number`, or time has passed for any.
    pub fn advance(
        &mut self,
        arrived: Option<u32>,
        names: (&str, &str),
        now: u64,
        events: &mut Vec<MachineEvent>,
    ) {
        let mut changed = false;
        for (number, client) in (0..).zip(&mut self.clients) {
            let before = client.lease().cloned();
            if arrived == Some(number) {
                client.receive(now);
            }
            client.expire(now);
            if client.lease() == before.as_ref() {
                continue;
            }
            changed = true;
            if let Err(error) = install(client) {
                events.push(MachineEvent::Warning {
                    message: error.message,
                });
            }
            match client.lease() {
                Some(lease) => events.push(MachineEvent::Lease {
                    interface: client.interface().to_owned(),
                    address: lease.prefixed(),
                    gateway: lease.router.map(IpAddr::V4),
                }),
                None => events.push(MachineEvent::Warning {
                    message: format!("the DHCP lease of {} ended", client.interface()),
                }),
            }
        }
        if changed && let Err(error) = self.write_names(names) {
            events.push(MachineEvent::Warning {
                message: error.message,
            });
        }
    }
}

/// Puts a lease, or its end, on the vNIC.
fn install(client: &Client) -> Result<()> {
    let netlink = Netlink::open()?;
    let index = client.index();
    netlink.flush(index)?;
    let Some(lease) = client.lease() else {
        return Ok(());
    };
    netlink.add_address(index, &lease.prefixed())?;
    if let Some(router) = lease.router {
        let everywhere = Address {
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            prefix: 0,
        };
        netlink.add_route(
            index,
            &Route {
                destination: everywhere,
                gateway: Some(IpAddr::V4(router)),
            },
        )?;
    }
    Ok(())
}

/// Gives every vNIC its name and nothing else, down and empty; their indices in the same order.
fn name_links(netlink: &Netlink, interfaces: &[Interface]) -> Result<Vec<u32>> {
    let mut indices = Vec::new();
    for wanted in interfaces {
        let mac = wanted.mac.to_string();
        let links = links();
        let (_, link) = links
            .iter()
            .find(|(found, _)| *found == mac)
            .ok_or_else(|| State::absence(wanted))?;
        netlink.flush(link.index)?;
        netlink.set_up(link.index, false)?;
        if link.name != wanted.name {
            if let Some((_, other)) = links.iter().find(|(_, other)| other.name == wanted.name) {
                // Its turn comes, or nobody asked for it.
                netlink.set_up(other.index, false)?;
                netlink.rename(other.index, &format!("link{}", other.index))?;
            }
            netlink.rename(link.index, &wanted.name)?;
        }
        indices.push(link.index);
    }
    Ok(indices)
}

fn links() -> Vec<(String, Link)> {
    let mut links = Vec::new();
    for name in files::names(LINKS).unwrap_or_default() {
        let mac = files::text(format!("{LINKS}/{name}/address"));
        if let Some(index) = index_of(&name) {
            links.push((mac.trim().to_owned(), Link { name, index }));
        }
    }
    links
}

fn index_of(name: &str) -> Option<u32> {
    let index = files::text(format!("{LINKS}/{name}/ifindex"));
    index.trim().parse().ok()
}

/// Gives the vNICs, in the order in which they were found, these MAC addresses.
///
/// # Errors
/// Another number of vNICs; what the kernel says.
pub fn assign(macs: &[MacAddress]) -> Result<()> {
    let names = names()?;
    let mut indices: Vec<u32> = names.iter().filter_map(|name| index_of(name)).collect();
    indices.sort_unstable();
    if indices.len() != macs.len() {
        return Err(invalid(format!(
            "this machine has {} vNICs, and addresses came for {}",
            indices.len(),
            macs.len()
        )));
    }
    if indices.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open()?;
    for (index, mac) in indices.iter().zip(macs) {
        netlink.set_mac(*index, *mac)?;
    }
    Ok(())
}

/// Whether a link has another address than it was made with: NET_ADDR_SET of linux/netdevice.h.
fn was_given_another(name: &str) -> bool {
    files::text(format!("{LINKS}/{name}/addr_assign_type")).trim() == "3"
}

/// Names of the links that are there, loopback aside, for measuring.
///
/// # Errors
/// /sys cannot be read.
pub fn names() -> Result<Vec<String>> {
    let mut names = files::names(LINKS).context(|| format!("reading {LINKS}"))?;
    names.retain(|name| files::exists(format!("{LINKS}/{name}/device")));
    names.sort();
    Ok(names)
}
