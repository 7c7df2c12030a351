//! A container as a machine: its specification, what tether is told to make of it, and the ports chosen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::{
    Attachment, Boot, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial, DiskSource, DiskSpec,
    Hardware, InvalidSpec, MacAddress, MachineId, MachineSpec, Memory, NicSpec, PortGroup,
    Protocol, PublishedPort, Start, UserNetwork,
};
use tether_wire::message::{
    self as wire, Address, DiskId, Dns, HostsEntry, Identity, Interface, InterfaceAddressing,
    Mount, MountSource, Network, Role, Root, Route, Setup,
};

use crate::admission::clashes;
use crate::error::Error;
use crate::identity::{ContainerId, random_bytes};
use crate::record::Made;
use crate::spec::{
    Access, ContainerSpec, MountSpec, NetworkAttachment, ProcessSpec, PublishSpec, Stdin, Stdio,
};

/// The serial of a container's root disk.
const ROOT_SERIAL: &str = "root";
/// How long disks and vNICs are waited for in the guest, milliseconds.
const SETUP_DEADLINE_MS: u32 = 30_000;

/// What containers are attached to that ask for no other network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DefaultNetwork {
    /// A network of each one's own.
    #[default]
    UserMode,
    /// A port group of the hypervisor's, where they ask for an address (DHCP).
    PortGroup(String),
}

/// What every VM of a VCH is made with.
#[derive(Debug, Clone)]
pub(crate) struct Mold {
    pub boot: Boot,
    pub start: Start,
    pub hardware: Hardware,
    pub channel: ChannelKind,
    pub network: DefaultNetwork,
}

impl Mold {
    /// The machine of a container.
    pub fn container(
        &self,
        id: MachineId,
        made: &Made,
        (memory, cpus): (Memory, Cpus),
        disk: PathBuf,
    ) -> Result<MachineSpec, InvalidSpec> {
        let nics = match &made.spec.network.attachment {
            NetworkAttachment::None => Vec::new(),
            NetworkAttachment::Default { mac, .. } => vec![NicSpec {
                mac: match mac {
                    Some(mac) => *mac,
                    None => own_mac(&made.id)?,
                },
                attachment: match &self.network {
                    DefaultNetwork::UserMode => Attachment::UserMode {
                        published: made.published.clone(),
                    },
                    DefaultNetwork::PortGroup(name) => Attachment::PortGroup(PortGroup {
                        name: name.clone(),
                        published: made.published.clone(),
                    }),
                },
            }],
        };
        self.machine(id, made.id.short(), (memory, cpus), disk, nics)
    }

    /// A machine that reads and writes a stopped container's disk.
    pub fn helper(
        &self,
        id: MachineId,
        container: &ContainerId,
        memory: Memory,
        disk: PathBuf,
    ) -> Result<MachineSpec, InvalidSpec> {
        let name = format!("{}-files", container.short());
        self.machine(id, name, (memory, Cpus::ONE), disk, Vec::new())
    }

    fn machine(
        &self,
        id: MachineId,
        name: String,
        (memory, cpus): (Memory, Cpus),
        disk: PathBuf,
        nics: Vec<NicSpec>,
    ) -> Result<MachineSpec, InvalidSpec> {
        let spec = MachineSpec {
            id,
            name,
            cpus,
            memory,
            boot: self.boot.clone(),
            start: self.start,
            hardware: self.hardware,
            channel: self.channel,
            disks: vec![DiskSpec {
                source: DiskSource::File(disk),
                format: DiskFormat::Vmdk,
                access: DiskAccess::ReadWrite,
                serial: DiskSerial::new(ROOT_SERIAL)?,
            }],
            nics,
            debugger: None,
        };
        spec.check()?;
        Ok(spec)
    }
}

/// A locally administered address of the container's own.
pub(crate) fn own_mac(id: &ContainerId) -> Result<MacAddress, InvalidSpec> {
    let bytes = id.as_bytes();
    MacAddress::new([0x02, 0x42, bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What tether makes of the machine before the container's process starts.
///
/// # Errors
/// The kernel gave no random bytes.
pub(crate) fn setup(
    id: &ContainerId,
    spec: &ContainerSpec,
    spec_nics: &[NicSpec],
) -> std::io::Result<Setup> {
    let mut machine_id = [0; 16];
    machine_id.copy_from_slice(&id.as_bytes()[..16]);
    Ok(Setup {
        identity: Identity {
            hostname: spec.hostname.clone().unwrap_or_else(|| id.short()),
            domainname: spec.domainname.clone(),
            machine_id,
            seed: random_bytes()?,
            unix_nanos: unix_nanos(SystemTime::now()),
        },
        root: Root {
            disk: DiskId::Serial(ROOT_SERIAL.to_owned()),
            read_only: spec.root_access == Access::ReadOnly,
        },
        mounts: spec.mounts.iter().map(mount).collect(),
        network: network(spec, spec_nics),
        deadline_ms: SETUP_DEADLINE_MS,
    })
}

/// The same for a machine that only reads and writes files: no network, nothing mounted.
///
/// # Errors
/// As [`setup`].
pub(crate) fn helper_setup(id: &ContainerId) -> std::io::Result<Setup> {
    let mut machine_id = [0; 16];
    machine_id.copy_from_slice(&id.as_bytes()[..16]);
    Ok(Setup {
        identity: Identity {
            hostname: format!("{}-files", id.short()),
            domainname: String::new(),
            machine_id,
            seed: random_bytes()?,
            unix_nanos: unix_nanos(SystemTime::now()),
        },
        root: Root {
            disk: DiskId::Serial(ROOT_SERIAL.to_owned()),
            read_only: false,
        },
        mounts: Vec::new(),
        network: Network::default(),
        deadline_ms: SETUP_DEADLINE_MS,
    })
}

/// Nanoseconds since 1970, 0 before.
pub(crate) fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn mount(mount: &MountSpec) -> Mount {
    match mount {
        MountSpec::Tmpfs {
            target,
            size,
            mode,
            options,
        } => Mount {
            target: target.clone(),
            source: MountSource::Tmpfs {
                size: *size,
                mode: *mode,
                options: options.clone(),
            },
            read_only: options.split(',').any(|option| option == "ro"),
        },
    }
}

fn network(spec: &ContainerSpec, nics: &[NicSpec]) -> Network {
    let v4 = |address, prefix| Address {
        address: IpAddr::V4(address),
        prefix,
    };
    let interfaces: Vec<Interface> = nics
        .iter()
        .enumerate()
        .map(|(number, nic)| Interface {
            mac: wire::MacAddress(nic.mac.bytes()),
            name: format!("eth{number}"),
            mtu: 0,
            addressing: match nic.attachment {
                Attachment::UserMode { .. } => InterfaceAddressing::Static {
                    addresses: vec![v4(UserNetwork::GUEST, UserNetwork::PREFIX)],
                    routes: vec![Route {
                        destination: v4(Ipv4Addr::UNSPECIFIED, 0),
                        gateway: Some(IpAddr::V4(UserNetwork::GATEWAY)),
                    }],
                },
                _ => InterfaceAddressing::Dhcp,
            },
        })
        .collect();
    let mut servers = spec.network.dns.clone();
    let by_user_mode = |nic: &NicSpec| matches!(nic.attachment, Attachment::UserMode { .. });
    if servers.is_empty() && nics.iter().any(by_user_mode) {
        servers.push(IpAddr::V4(UserNetwork::DNS));
    }
    let gateway = IpAddr::V4(UserNetwork::GATEWAY);
    let entry = |host: &crate::spec::HostSpec| HostsEntry {
        address: host.address.unwrap_or(gateway),
        names: vec![host.name.clone()],
    };
    Network {
        interfaces,
        dns: Dns {
            servers,
            search: spec.network.dns_search.clone(),
            options: spec.network.dns_options.clone(),
        },
        hosts: spec.network.hosts.iter().map(entry).collect(),
    }
}

/// A process as the wire has it.
pub(crate) fn process(spec: &ProcessSpec, role: Role) -> wire::ProcessSpec {
    let stdin = spec.stdin != Stdin::Closed;
    wire::ProcessSpec {
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        stdio: match spec.stdio {
            Stdio::Pipes => wire::Stdio::Pipes { stdin },
            Stdio::Terminal(size) => wire::Stdio::Terminal { size, stdin },
        },
        limits: spec.limits.clone(),
        role,
    }
}

/// Chooses host ports: those asked for, else ones that nobody listens on and no container has.
///
/// # Errors
/// [`Error::Invalid`] when there is none.
pub(crate) fn publish(
    wanted: &[PublishSpec],
    taken: &[PublishedPort],
) -> Result<Vec<PublishedPort>, Error> {
    let mut chosen: Vec<PublishedPort> = Vec::new();
    for spec in wanted {
        let address = spec.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let free = |host: SocketAddr| {
            let mut all = taken.iter().chain(&chosen);
            !all.any(|other| clashes(spec.protocol, host, other))
        };
        let port = match spec.host {
            // What was asked for in so many words is taken as it is; a start finds out.
            Some((first, last)) if first == last => Some(first),
            Some((first, last)) => (first..=last)
                .filter(|port| free(SocketAddr::new(address, *port)))
                .find(|port| listen(address, *port, spec.protocol).is_some()),
            None => (0..64)
                .filter_map(|_| listen(address, 0, spec.protocol))
                .find(|port| free(SocketAddr::new(address, *port))),
        };
        let Some(port) = port else {
            return Err(Error::Invalid(format!(
                "no free host port for port {} of the container",
                spec.guest
            )));
        };
        chosen.push(PublishedPort {
            protocol: spec.protocol,
            host: SocketAddr::new(address, port),
            guest_port: spec.guest,
        });
    }
    Ok(chosen)
}

/// The port one can listen on: `port`, or any for 0.
fn listen(address: IpAddr, port: u16, protocol: Protocol) -> Option<u16> {
    let place = SocketAddr::new(address, port);
    let local = match protocol {
        Protocol::Tcp => TcpListener::bind(place).and_then(|socket| socket.local_addr()),
        Protocol::Udp => UdpSocket::bind(place).and_then(|socket| socket.local_addr()),
    };
    local.ok().map(|place| place.port())
}
