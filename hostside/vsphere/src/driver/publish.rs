//! Published ports of machines on port groups: the controller listens, and carries what comes to the
//! machine's own address.
//!
//! ```text
//! a client ──> a port of the controller's ──> the machine's address in its port group, as its guest says it
//! ```
//!
//! The address is what the server says of the guest (`guest.net`, which tether reports as VMware's tools do),
//! looked up for each connection, so that one that changes does no harm. Whether the controller reaches that
//! network is between the two of them: a connection that cannot be carried is closed, and the log says why.
//! Ports are bound before a machine is powered on and given back when it is off; a controller that comes
//! later binds them again. What is connected while the controller ends is cut off.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hypervisor::{Attachment, Cause, MachineId, MachineSpec, Protocol, PublishedPort};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Core, view};
use crate::soap::Node;
use crate::types::VirtualMachinePowerState;

/// How long a client waits until the guest has an address.
const ADDRESS: Duration = Duration::from_secs(30);
/// How long the machine may take to answer.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the two directions of UDP may be silent before the client is forgotten (as Docker's proxy does).
const UDP_IDLE: Duration = Duration::from_secs(90);
/// The most clients of one port at a time. Each costs two descriptors (TCP) or one (UDP).
const CLIENTS: usize = 256;
/// The largest UDP datagram.
const DATAGRAM: usize = 65_535;
/// How long a listener that fails for want of descriptors rests.
const REST: Duration = Duration::from_millis(100);

/// The ports of one machine. Dropped or ended, nobody listens and every connection is closed.
#[derive(Debug, Default)]
pub struct Published(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Published {
    fn drop(&mut self) {
        self.end();
    }
}

impl Published {
    fn tasks(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine is off.
    pub fn end(&self) {
        for task in self.tasks().drain(..) {
            task.abort();
        }
    }
}

/// A listener that is bound, and where it leads.
enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Where a port leads.
#[derive(Clone)]
struct Way {
    core: Weak<Core>,
    machine: MachineId,
    mac: String,
    port: PublishedPort,
}

impl Core {
    /// Listens on the ports of a machine, all or none. Listening already is success.
    ///
    /// # Errors
    ///
    /// [`Cause::PortInUse`], or why a port cannot be bound.
    pub async fn publish(
        self: &Arc<Self>,
        id: &MachineId,
        spec: &MachineSpec,
    ) -> Result<(), Cause> {
        let cell = self.cell(id);
        if !cell.published.tasks().is_empty() {
            return Ok(());
        }
        let mut all = Vec::new();
        for nic in &spec.nics {
            let Attachment::PortGroup(group) = &nic.attachment else {
                continue;
            };
            for port in &group.published {
                let way = Way {
                    core: Arc::downgrade(self),
                    machine: *id,
                    mac: nic.mac.to_string(),
                    port: port.clone(),
                };
                all.push((bind(port).await?, way));
            }
        }
        let mut tasks = cell.published.tasks();
        if tasks.is_empty() {
            tasks.extend(all.into_iter().map(|(bound, way)| match bound {
                Bound::Tcp(listener) => tokio::spawn(carry_tcp(listener, way)),
                Bound::Udp(socket) => tokio::spawn(carry_udp(Arc::new(socket), way)),
            }));
        }
        Ok(())
    }

    /// The same for a machine that is on already, whatever comes of it.
    pub fn publish_found(self: &Arc<Self>, id: MachineId, spec: MachineSpec) {
        if spec
            .nics
            .iter()
            .all(|nic| nic.attachment.published().is_empty())
        {
            return;
        }
        let core = self.clone();
        tokio::spawn(async move {
            if let Err(error) = core.publish(&id, &spec).await {
                let error = crate::session::chain(&error);
                tracing::error!(machine = %id, error, "its ports are not published");
            }
            let off = core.find(&id).map_or(true, |(_, properties)| {
                view::power(&properties) == VirtualMachinePowerState::PoweredOff
            });
            if off {
                core.cell(&id).published.end();
            }
        });
    }
}

async fn bind(port: &PublishedPort) -> Result<Bound, Cause> {
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(port.host).await.map(Bound::Tcp),
        Protocol::Udp => UdpSocket::bind(port.host).await.map(Bound::Udp),
    };
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Cause::PortInUse {
            address: port.host,
            protocol: port.protocol,
            source,
        },
        _ => Cause::because(
            format!("cannot listen on {} ({}) for it", port.host, port.protocol),
            source,
        ),
    })
}

/// The address of the vNIC `mac` in the property `guest.net`: IPv4 before IPv6, none that leads nowhere from
/// outside its link.
pub fn address(net: &Node, mac: &str) -> Option<IpAddr> {
    let nic = net.children.iter().find(|nic| {
        nic.text_of("macAddress")
            .is_some_and(|own| own.trim().eq_ignore_ascii_case(mac))
    })?;
    let all = nic.children_named("ipAddress");
    let mut usable: Vec<IpAddr> = all
        .filter_map(|node| node.text.trim().parse().ok())
        .filter(|address| match address {
            IpAddr::V4(v4) => {
                !(v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast())
                    && !v4.is_multicast()
            }
            IpAddr::V6(v6) => {
                !(v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast())
            }
        })
        .collect();
    usable.sort_by_key(|address| address.is_ipv6());
    usable.first().copied()
}

/// Whether what is sent there arrives on this machine.
async fn is_ours(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() {
        return true;
    }
    // Nothing is sent: the kernel says from where it would be, which for an address of its own is that one.
    let from = async {
        let socket = UdpSocket::bind(any(address)).await?;
        socket.connect((address, 9)).await?;
        socket.local_addr()
    };
    from.await.is_ok_and(|from| from.ip() == address)
}

fn any(of: IpAddr) -> SocketAddr {
    match of {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

impl Way {
    /// Where the machine is reached now.
    async fn find(&self) -> io::Result<SocketAddr> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the driver has ended");
        let core = self.core.upgrade().ok_or_else(gone)?;
        let found = core.collector.wait(|objects| {
            let (_, properties) = view::find(objects, &self.machine)?;
            address(properties.get("guest.net")?, &self.mac)
        });
        match timeout(ADDRESS, found).await {
            Ok(Ok(address)) => {
                if !core.guests_are_here && is_ours(address).await {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        format!(
                            "the guest says it is at {address}, which is this machine's own address"
                        ),
                    ));
                }
                Ok(SocketAddr::new(address, self.port.guest_port))
            }
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the guest has not said which address it has on its port group: no DHCP there?",
            )),
        }
    }

    /// Says that something could not be carried.
    fn complain(&self, to: Option<SocketAddr>, error: &io::Error) {
        let (machine, port) = (self.machine, self.port.host);
        match (to, error.kind()) {
            // Its own affair: nobody listens there.
            (Some(to), io::ErrorKind::ConnectionRefused) => {
                tracing::debug!(%machine, %port, %to, "the guest refuses a connection");
            }
            (Some(to), _) => {
                let hint = "this machine has to reach the port group's network itself";
                tracing::warn!(%machine, %port, %to, %error, hint, "a published port leads nowhere");
            }
            (None, _) => tracing::warn!(%machine, %port, %error, "a published port leads nowhere"),
        }
    }
}

/// Accepts until it is aborted; its connections end with it.
async fn carry_tcp(listener: TcpListener, way: Way) {
    let room = Arc::new(Semaphore::new(CLIENTS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let way = way.clone();
                connections.spawn(async move {
                    let _place = place;
                    connect(client, &way).await;
                });
            }
            Err(error) => {
                tracing::warn!(port = %way.port.host, %error, "a client cannot be accepted");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn connect(mut client: TcpStream, way: &Way) {
    let to = match way.find().await {
        Ok(to) => to,
        Err(error) => return way.complain(None, &error),
    };
    let connected = timeout(CONNECT, TcpStream::connect(to)).await;
    let mut machine = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(machine) => machine,
        Err(error) => return way.complain(Some(to), &error),
    };
    let _ = (client.set_nodelay(true), machine.set_nodelay(true));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut machine).await {
        tracing::debug!(machine = %way.machine, %error, "a connection through a published port broke");
    }
}

/// Carries datagrams until it is aborted: a socket of its own for each client, so that answers find their way.
async fn carry_udp(socket: Arc<UdpSocket>, way: Way) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers: JoinSet<SocketAddr> = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let received = tokio::select! {
            Some(ended) = answers.join_next() => {
                if let Ok(client) = ended {
                    clients.remove(&client);
                }
                continue;
            }
            received = socket.recv_from(&mut datagram) => received,
        };
        // An answer to one that has gone comes back as an error here.
        let Ok((length, client)) = received else {
            continue;
        };
        let known = clients.get(&client).cloned();
        let to_machine = match known {
            Some(known) => known,
            None if clients.len() >= CLIENTS => continue,
            None => match own_socket(&way).await {
                Ok(own) => {
                    let own = Arc::new(own);
                    clients.insert(client, own.clone());
                    answers.spawn(answer(socket.clone(), own.clone(), client));
                    own
                }
                Err(error) => {
                    way.complain(None, &error);
                    continue;
                }
            },
        };
        if let Err(error) = to_machine.send(&datagram[..length]).await {
            way.complain(to_machine.peer_addr().ok(), &error);
        }
    }
}

async fn own_socket(way: &Way) -> io::Result<UdpSocket> {
    let to = way.find().await?;
    let socket = UdpSocket::bind(any(to.ip())).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Carries the machine's answers to one client, until there have been none for long.
async fn answer(to: Arc<UdpSocket>, machine: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut datagram = vec![0; DATAGRAM];
    loop {
        match timeout(UDP_IDLE, machine.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                if to.send_to(&datagram[..length], client).await.is_err() {
                    return client;
                }
            }
            // Nobody listens there, yet or any more.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(_)) | Err(_) => return client,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(name: &str, text: &str) -> Node {
        Node {
            name: name.into(),
            text: text.into(),
            ..Node::default()
        }
    }

    fn nic(mac: &str, addresses: &[&str]) -> Node {
        let mut children = vec![leaf("macAddress", mac)];
        children.extend(addresses.iter().map(|address| leaf("ipAddress", address)));
        Node {
            name: "GuestNicInfo".into(),
            children,
            ..Node::default()
        }
    }

    #[test]
    fn an_address_is_one_that_can_be_reached_from_outside() {
        let net = Node {
            children: vec![
                nic(
                    "02:42:00:00:00:01",
                    &["fe80::1", "169.254.1.1", "fd00::1", "10.1.2.3"],
                ),
                nic(
                    "02:42:00:00:00:02",
                    &["fe80::2", "ff02::1", "224.0.0.1", "255.255.255.255"],
                ),
                nic("02:42:00:00:00:0A", &["fd00::3"]),
            ],
            ..Node::default()
        };
        let of = |mac: &str| address(&net, mac).map(|address| address.to_string());
        assert_eq!(of("02:42:00:00:00:01").as_deref(), Some("10.1.2.3"));
        assert_eq!(of("02:42:00:00:00:02"), None);
        assert_eq!(of("02:42:00:00:00:0a").as_deref(), Some("fd00::3"));
        assert_eq!(of("02:42:00:00:00:03"), None);
    }

    #[tokio::test]
    async fn an_address_of_this_machine_is_known_whichever_it_is() {
        for ours in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert!(is_ours(ours.parse().unwrap()).await, "{ours}");
        }
        // TEST-NET-1 and the prefix for documentation (RFC 5737, RFC 3849).
        for other in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_ours(other.parse().unwrap()).await, "{other}");
        }
        let probe = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        // Where there is a way out, the address by which it leads.
        if probe.connect("192.0.2.1:9").await.is_ok() {
            let own = probe.local_addr().unwrap().ip();
            assert!(is_ours(own).await, "{own}");
        }
    }
}
