//! From what the user wrote and what the image says to what is to be run.
//!
//! The rules are Docker's: `runconfig.Merge` of the Engine for entrypoint and command, the
//! command line client for everything that it checks before it asks.

use crate::args::hosts::HostAddress;
use crate::args::stop_signal::StopSignal;
use crate::args::{RunArgs, environment};
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tether_wire::message::{
    Action, Address, Dns, HostsEntry, Interface, InterfaceAddressing, MacAddress, Mount,
    MountSource, Network, PidNamespace, ProcessSpec, Role, Route, ShutdownSpec, Stdio,
    TerminalSize, User,
};

/// Memory of a VM whose user named none: kernel, tether and a good deal of program.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// Docker's `--stop-timeout`.
const STOP_TIMEOUT: u32 = 10;
/// What a process may take to end when nobody reads its output any more.
const UNREAD_GRACE_MS: u32 = 1000;

/// What an image says about its containers (OCI image configuration, `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
}

/// The addresses of the one vNIC there is without a server.
#[derive(Clone, Copy, Debug)]
pub struct UserModeNetwork {
    pub guest: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub dns: Ipv4Addr,
}

/// The process to run.
///
/// # Errors
/// There is no command, or a flag contradicts another.
pub fn process(
    args: &RunArgs,
    image: &ImageConfig,
    hostname: &str,
    size: TerminalSize,
) -> Result<ProcessSpec> {
    let argv = argv(args.entrypoint.as_deref(), args.command(), image)?;
    let mut given = Vec::new();
    for file in &args.env_file {
        given.extend(environment::file(file)?);
    }
    for variable in &args.env {
        if variable.is_empty() || variable.starts_with('=') {
            bail!("invalid environment variable: {variable:?}");
        }
        given.push(variable.clone());
    }
    let mut env = environment::merge(&image.env, &given, |name| std::env::var(name).ok());
    if !env.iter().any(|entry| entry.starts_with("HOSTNAME=")) {
        env.push(format!("HOSTNAME={hostname}"));
    }
    let cwd = match &args.workdir {
        Some(directory) if !directory.starts_with('/') => {
            bail!("the working directory '{directory}' is invalid, it needs to be an absolute path")
        }
        Some(directory) => directory.clone(),
        None if image.working_dir.starts_with('/') => image.working_dir.clone(),
        None => format!("/{}", image.working_dir),
    };
    let pid_namespace = match args.pid.as_deref() {
        None | Some("" | "private") => PidNamespace::Private,
        Some("host") => PidNamespace::Machine,
        Some(other) => bail!("--pid {other}: only `host`, which is the VM's own, is supported"),
    };
    Ok(ProcessSpec {
        argv,
        env,
        cwd,
        user: User {
            user: args.user.clone().unwrap_or_else(|| image.user.clone()),
            groups: args.group_add.clone(),
        },
        stdio: if args.tty {
            Stdio::Terminal {
                size,
                stdin: args.interactive,
            }
        } else {
            Stdio::Pipes {
                stdin: args.interactive,
            }
        },
        limits: args.ulimit.iter().map(|limit| limit.0).collect(),
        role: Role::Main {
            pid_namespace,
            init: args.init,
        },
    })
}

fn argv(entrypoint: Option<&str>, command: &[String], image: &ImageConfig) -> Result<Vec<String>> {
    let argv = match (entrypoint, command) {
        (Some(""), command) => command.to_vec(),
        (Some(program), command) => [&[program.to_owned()], command].concat(),
        (None, []) => [&image.entrypoint[..], &image.cmd].concat(),
        (None, command) => [&image.entrypoint[..], command].concat(),
    };
    if argv.is_empty() {
        bail!("no command specified, and the image has none");
    }
    Ok(argv)
}

/// How the container is stopped.
///
/// # Errors
/// The image names a signal that does not exist.
pub fn stop(args: &RunArgs, image: &ImageConfig) -> Result<ShutdownSpec> {
    let signal = match args.stop_signal {
        Some(signal) => signal,
        None if image.stop_signal.is_empty() => StopSignal::TERM,
        None => image
            .stop_signal
            .parse()
            .map_err(|why: String| anyhow!("the image's stop signal: {why}"))?,
    };
    Ok(ShutdownSpec {
        signal: signal.0,
        grace_ms: args
            .stop_timeout
            .unwrap_or(STOP_TIMEOUT)
            .saturating_mul(1000),
        action: Action::PowerOff,
    })
}

/// Milliseconds the process has to stop when nobody reads its output any more. As a shell's pipeline
/// kills its writer at once, this is short unless `--stop-timeout` says otherwise.
pub fn unread_grace_ms(args: &RunArgs) -> u32 {
    args.stop_timeout
        .map_or(UNREAD_GRACE_MS, |seconds| seconds.saturating_mul(1000))
}

/// What records from before it was one of their fields mean.
pub fn unread_grace_usually() -> u32 {
    UNREAD_GRACE_MS
}

/// tmpfs mounts in the order given, /dev/shm first. Volumes come before these.
pub fn tmpfs(args: &RunArgs) -> Vec<Mount> {
    let shm = args.shm_size.map(|size| Mount {
        target: "/dev/shm".to_owned(),
        source: MountSource::Tmpfs {
            size: size.0,
            mode: 0o1777,
            options: "noexec,nosuid,nodev".to_owned(),
        },
        read_only: false,
    });
    let given = args.tmpfs.iter().map(|tmpfs| tmpfs.0.clone());
    shm.into_iter().chain(given).collect()
}

/// Whether the container has a vNIC.
///
/// # Errors
/// A network there is not without a server.
pub fn has_network(args: &RunArgs) -> Result<bool> {
    match args.network.as_deref() {
        None | Some("" | "default" | "bridge") => Ok(true),
        Some("none") if args.publish.is_empty() => Ok(false),
        Some("none") => bail!("--network none and --publish contradict each other"),
        Some(other) => bail!(
            "--network {other} is not supported: `bridge` (user-mode networking) and `none` are there without a server"
        ),
    }
}

/// The network as the container sees it.
///
/// # Errors
/// `host-gateway` without a network.
pub fn network(args: &RunArgs, vnic: Option<(MacAddress, UserModeNetwork)>) -> Result<Network> {
    let hosts = args
        .add_host
        .iter()
        .map(|extra| {
            let address = match (extra.address, &vnic) {
                (HostAddress::Ip(ip), _) => ip,
                (HostAddress::Gateway, Some((_, network))) => IpAddr::V4(network.gateway),
                (HostAddress::Gateway, None) => bail!("host-gateway needs a network"),
            };
            Ok(HostsEntry {
                address,
                names: vec![extra.name.clone()],
            })
        })
        .collect::<Result<_>>()?;
    let mut servers = args.dns.clone();
    let interfaces = match vnic {
        None => Vec::new(),
        Some((mac, network)) => {
            if servers.is_empty() {
                servers.push(IpAddr::V4(network.dns));
            }
            vec![Interface {
                mac,
                name: "eth0".to_owned(),
                mtu: 0,
                addressing: InterfaceAddressing::Static {
                    addresses: vec![Address {
                        address: IpAddr::V4(network.guest),
                        prefix: network.prefix,
                    }],
                    routes: vec![Route {
                        destination: Address {
                            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                            prefix: 0,
                        },
                        gateway: Some(IpAddr::V4(network.gateway)),
                    }],
                },
            }]
        }
    };
    Ok(Network {
        interfaces,
        dns: Dns {
            servers,
            // Docker's way to say "none".
            search: args
                .dns_search
                .iter()
                .filter(|domain| *domain != ".")
                .cloned()
                .collect(),
            options: args.dns_option.clone(),
        },
        hosts,
    })
}

/// Labels of the image, changed by files and flags.
///
/// # Errors
/// A label file cannot be read.
pub fn labels(args: &RunArgs, image: &ImageConfig) -> Result<BTreeMap<String, String>> {
    let mut labels = image.labels.clone();
    let mut given = Vec::new();
    for file in &args.label_file {
        given.extend(environment::file(file)?);
    }
    given.extend(args.label.iter().cloned());
    for label in given {
        let (name, value) = label.split_once('=').unwrap_or((&label, ""));
        if name.is_empty() {
            bail!("invalid label '{label}': empty name");
        }
        labels.insert(name.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Virtual CPUs for `--cpus`: a VM has whole ones.
///
/// # Errors
/// No number above zero.
pub fn cpus(args: &RunArgs) -> Result<u32> {
    match args.cpus {
        None => Ok(1),
        Some(cpus) if cpus > 0.0 && cpus < f64::from(u32::MAX) => Ok(cpus.ceil() as u32),
        Some(cpus) => bail!("invalid --cpus {cpus}: it must be more than 0"),
    }
}

/// The container's host name: what was given, else the start of its id, as Docker does.
///
/// # Errors
/// Too long, or not a host name.
pub fn hostname(args: &RunArgs, id: &str) -> Result<String> {
    let Some(name) = &args.hostname else {
        return Ok(id.chars().take(12).collect());
    };
    let good = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if good {
        Ok(name.clone())
    } else {
        bail!("invalid hostname format: {name}")
    }
}
