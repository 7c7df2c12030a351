//! `vch serve`: the Docker Engine API of one VCH.
//!
//! ```text
//! STATE/vch/NAME/lock          held by the one process that serves it
//!                id            what `docker info` calls its ID
//!                machines/     the driver's
//!                containers/   the port layer's
//!                docker.sock   where it listens unless told otherwise
//! ```

use crate::args::host::NamedArgs;
use crate::args::serve::{DriverArg, LogFormat, ServeArgs};
use crate::failure::Failure;
use crate::{host_commands, machine, paths, simulated};
use anyhow::{Context, Result, bail};
use docker_api::Vch;
use docker_api::serve::{Host, Listener, Options};
use hypervisor::{Boot, ChannelKind, Cpus, Hardware, Hypervisor, Memory, Start};
use portlayer::{Config, ContainerId, DefaultNetwork, Limits, PortLayer};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vsphere::concentrator::Concentrator;
use vsphere::serial::Reached;

/// How long what is being written to disks is waited for at the end.
const ENDING: Duration = Duration::from_secs(5);

/// Serves until it is told to end.
///
/// # Errors
/// Something it needs is missing, another process's, or not understood.
pub fn run(state: Option<&Path>, args: ServeArgs) -> Result<u8, Failure> {
    log(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let served = runtime.block_on(serve(state, args));
    // Reading a file may still be going on in a thread: nobody waits for it.
    runtime.shutdown_background();
    served?;
    Ok(0)
}

fn log(args: &ServeArgs) -> Result<()> {
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("invalid --log-level {}", args.log_level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn serve(state: Option<&Path>, args: ServeArgs) -> Result<()> {
    let security = args.security()?;
    let connections = connections();
    let state = paths::State::open(state)?;
    let directory = state.vch(&args.name)?;
    let _owner = own(&directory, &args.name)?;
    let id = identity(&directory)?;
    let images = args.images.clone().unwrap_or_else(|| state.images());
    let images = image::store::Store::open(&images)
        .with_context(|| format!("cannot open the image store {}", images.display()))?;
    let machines = directory.join("machines");
    paths::make(&machines)?;
    let containers = directory.join("containers");
    paths::make(&containers)?;
    // Another VCH's templates are never this one's, unless it is told so.
    let templates = match &args.vm.templates {
        Some(directory) => directory.clone(),
        None => state.templates_of(&args.name)?,
    };
    let Driver {
        boot,
        hypervisor,
        qemu,
        start,
        network,
        devices: (hardware, channel),
        memory,
    } = driver(&args, &machines, templates, &images).await?;
    let config = Config {
        state: containers,
        hypervisor,
        images,
        boot,
        start,
        network,
        hardware,
        channel,
        limits: limits(&args, memory)?,
    };
    let port_layer = PortLayer::open(config)
        .await
        .with_context(|| format!("cannot open VCH {}", args.name))?;
    let mut listeners = Vec::new();
    for host in hosts(&args, &directory) {
        listeners.extend(Listener::open(&host, &security).await?);
    }
    let metrics = match args.metrics_addr {
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await;
            let listener =
                listener.with_context(|| format!("cannot listen on {address} for metrics"))?;
            let address = listener.local_addr().unwrap_or(address);
            tracing::info!(metrics = %address, "metrics are at /metrics");
            if !address.ip().is_loopback() {
                tracing::warn!(
                    "whoever reaches {address} can read metrics: they ask for no password"
                );
            }
            Some(listener)
        }
        None => None,
    };
    let vch = Vch {
        name: args.name.clone(),
        id,
        state: directory,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
    // A terminal that is closed is no reason to end: caught, and never asked for.
    let _hangup = signal(SignalKind::hangup()).context("cannot catch signals")?;
    let shutdown = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("ending; containers run on");
        notify("STOPPING=1");
    };
    tracing::info!(
        vch = vch.name,
        driver = port_layer.hypervisor_name(),
        accelerated = port_layer.accelerated(),
        containers = port_layer.list().len(),
        "serving"
    );
    notify("READY=1");
    docker_api::serve(
        listeners,
        port_layer.clone(),
        Options {
            vch,
            metrics,
            connections,
        },
        shutdown,
    )
    .await;
    // One who is killed leaves no more behind than one who does not wait.
    if tokio::time::timeout(ENDING, port_layer.close())
        .await
        .is_err()
    {
        tracing::info!("something was still being written to a disk");
    }
    if let Some(qemu) = qemu {
        qemu.end_spares();
    }
    Ok(())
}

/// What the VCH's containers run on.
struct Driver {
    boot: Boot,
    hypervisor: Arc<dyn Hypervisor>,
    /// The same, where it is QEMU's.
    qemu: Option<Arc<qemu::Qemu>>,
    start: Start,
    network: DefaultNetwork,
    devices: (Hardware, ChannelKind),
    /// Bytes that all VMs may have together, where the driver knows better than this host.
    memory: Option<u64>,
}

/// How many clients can be connected. They may have half of the descriptors that this process may have, two
/// each (the connection, and a second one to see that its client has gone); the other half is for
/// containers: a channel, a log and a few more of each. It asks for as many as it is let.
fn connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot have more open files: {error}");
    }
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / 4).unwrap_or(usize::MAX)
}

/// Makes this process the one owner of the VCH for as long as the file is open.
fn own(directory: &Path, name: &str) -> Result<File> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "VCH {name} is served by another process: use its socket, or serve another VCH with --name"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// What identifies the VCH, chosen once.
fn identity(directory: &Path) -> Result<String> {
    let path = directory.join("id");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let id = ContainerId::random()
        .context("cannot choose an identity")?
        .to_string();
    let new = directory.join("id.new");
    std::fs::write(&new, &id)
        .and_then(|()| std::fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

async fn driver(
    args: &ServeArgs,
    machines: &Path,
    templates: PathBuf,
    images: &image::store::Store,
) -> Result<Driver> {
    match args.driver {
        DriverArg::Qemu => {
            let boot = machine::boot(&args.vm, false)?;
            let acceleration = args.vm.acceleration();
            let mut options = machine::options(acceleration, &boot, Some(templates)).await?;
            options.spares = qemu::SpareLimits {
                count: args.spares,
                memory: args.spares_memory.0,
            };
            options.rehearsal = Some(machine::rehearsal());
            let qemu = Arc::new(qemu::Qemu::open(machines, options).await?);
            Ok(Driver {
                boot,
                hypervisor: qemu.clone(),
                qemu: Some(qemu),
                start: args.vm.start(),
                network: DefaultNetwork::UserMode,
                devices: args.vm.hardware(),
                memory: None,
            })
        }
        DriverArg::Vsphere => on_vsphere(args, machines).await,
        DriverArg::Fake => {
            // It boots nothing.
            let boot = Boot::Kernel {
                kernel: "/dev/null".into(),
                initramfs: "/dev/null".into(),
                append: String::new(),
            };
            let driver = simulated::driver(images.clone());
            Ok(Driver {
                boot,
                hypervisor: Arc::new(driver),
                qemu: None,
                start: args.vm.start(),
                network: DefaultNetwork::UserMode,
                devices: args.vm.hardware(),
                memory: None,
            })
        }
    }
}

/// A VCH that `vch host create` has made: its place and its networks are in its record on the server.
async fn on_vsphere(args: &ServeArgs, machines: &Path) -> Result<Driver> {
    let vm = &args.vm;
    if vm.kernel.is_some() || vm.initrd.is_some() || !vm.append.is_empty() {
        bail!("--kernel, --initrd and --append do not go with --driver vsphere: it boots the ISO");
    }
    let iso = vm.boot_image.as_ref().map(|at| at.join("tether.iso"));
    let Some(iso) = iso.filter(|iso| iso.exists()) else {
        bail!(
            "no boot image: name the directory that scripts/boot-image prints with --boot-image or VCH_BOOT_IMAGE"
        );
    };
    let named = NamedArgs {
        name: args.name.clone(),
        server: args.server.clone(),
    };
    let (client, vch) = host_commands::find(&named).await?;
    host_commands::log_out(client).await;
    let Some(network) = vch.spec.networks.first().cloned() else {
        bail!("VCH {} has no network", args.name);
    };
    let concentrator = Concentrator::listen(args.concentrator.as_str()).await;
    let concentrator = concentrator
        .with_context(|| format!("cannot listen on {} for serial ports", args.concentrator))?;
    let at = concentrator.local_addr();
    if args.concentrator_name.is_none() && at.ip().is_unspecified() {
        bail!(
            "ESXi hosts cannot dial {at}: say by which name or address they reach this machine with --concentrator-name HOST:{}",
            at.port()
        );
    }
    tracing::info!(concentrator = %at, "hosts dial here");
    let options = vsphere::Options {
        session: args.server.session()?,
        vch: vch.spec.name.clone(),
        place: vch.place(),
        user_network: None,
        guests_are_here: false,
        state: machines.to_owned(),
    };
    let serial = Arc::new(Reached::new(concentrator, args.concentrator_name.clone()));
    let driver = vsphere::Vsphere::open(options, serial).await?;
    let limit = vch.spec.memory.limit.and_then(|mb| u64::try_from(mb).ok());
    if limit.is_none() && args.memory.is_none() {
        bail!(
            "VCH {} has no memory limit: give it one with vch host configure --memory-limit, or with --memory",
            args.name
        );
    }
    Ok(Driver {
        boot: Boot::Iso {
            iso,
            firmware: hypervisor::Firmware::Bios,
        },
        hypervisor: Arc::new(driver),
        qemu: None,
        start: vm.start_by_fork(),
        network: DefaultNetwork::PortGroup(network),
        devices: (Hardware::Vmware, ChannelKind::Serial),
        memory: limit.map(|mb| mb << 20),
    })
}

fn limits(args: &ServeArgs, known: Option<u64>) -> Result<Limits> {
    let memory = match (args.memory, known) {
        (Some(size), _) => size.0,
        (None, Some(known)) => known,
        (None, None) => {
            let info = rustix::system::sysinfo();
            info.totalram.saturating_mul(info.mem_unit.into())
        }
    };
    let cpus = match args.cpus {
        Some(cpus) => cpus,
        None => std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(Cpus::MAX))
            .min(Cpus::MAX),
    };
    let container = args
        .container_memory
        .map_or(crate::plan::DEFAULT_MEMORY, |size| size.0);
    Ok(Limits {
        memory: Memory::from_bytes(memory).context("invalid --memory")?,
        cpus: Cpus::new(cpus).context("invalid --cpus")?,
        default_memory: Memory::from_bytes(container).context("invalid --container-memory")?,
        default_cpus: Cpus::new(args.container_cpus).context("invalid --container-cpus")?,
    })
}

fn hosts(args: &ServeArgs, directory: &Path) -> Vec<Host> {
    if !args.host.is_empty() {
        return args.host.clone();
    }
    // sd_listen_fds(3)
    if std::env::var_os("LISTEN_FDS").is_some() {
        return vec![Host::Activated];
    }
    vec![Host::Unix(directory.join("docker.sock"))]
}

/// Tells the service manager, where there is one (sd_notify(3)).
fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let told = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = told {
        tracing::warn!("cannot tell the service manager {state}: {error}");
    }
}
