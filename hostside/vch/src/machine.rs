//! The VM of one `vch run`: its specification, and the driver that makes it.

use crate::args::publish::Transport;
use crate::args::{BootArg, FirmwareArg, MachineArgs, RunArgs, VmArgs};
use crate::plan;
use crate::record::{MachineRecord, NewVolume, ROOT_SERIAL};
use anyhow::{Context, Result, anyhow, bail};
use hypervisor::{
    Attachment, Boot, Channel, Cpus, DebuggerStart, DiskAccess, DiskFormat, DiskSerial, DiskSource,
    DiskSpec, Firmware, GuestDebugger, Hypervisor, MacAddress, MachineId, MachineSpec, Memory,
    NicSpec, Protocol, PublishedPort, Start,
};
use qemu::{AcceleratorChoice, Probe, Rehearsal};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tether_wire::ChannelKey;
use tether_wire::message::{DiskId, Mount, MountSource};

/// How long a guest may take to greet, and to rehearse.
const REHEARSAL: Duration = Duration::from_secs(30);

/// Opens the driver of one container, with the accelerator that `record` asks for.
///
/// # Errors
/// The directory is another process's, or KVM was asked for and does not work.
pub async fn driver(directory: &Path, record: &MachineRecord) -> Result<Arc<dyn Hypervisor>> {
    let templates = record.templates.clone();
    open(directory, &record.accel, &record.spec.boot, templates).await
}

/// Opens the driver of the VMs in a directory, with the accelerator of this name and templates there.
///
/// # Errors
/// The directory is another process's, or KVM was asked for and does not work.
pub async fn open(
    directory: &Path,
    accel: &str,
    boot: &Boot,
    templates: Option<PathBuf>,
) -> Result<Arc<dyn Hypervisor>> {
    let options = options(accel, boot, templates).await?;
    let driver = qemu::Qemu::open(directory, options).await?;
    Ok(Arc::new(driver))
}

/// What the driver has to know to run such VMs.
///
/// # Errors
/// KVM was asked for and does not work.
pub async fn options(
    accel: &str,
    boot: &Boot,
    templates: Option<PathBuf>,
) -> Result<qemu::Options> {
    let options = qemu::Options::default();
    let choice: AcceleratorChoice = accel.parse().map_err(|why: String| anyhow!(why))?;
    let probe = Probe {
        program: options.program.clone(),
        kernel: match boot {
            Boot::Kernel { kernel, .. } => Some(kernel.clone()),
            // What is on the ISO is beside it.
            Boot::Iso { iso, .. } => Some(iso.with_file_name("bzImage")).filter(|k| k.exists()),
        },
        cache: cache(),
    };
    let acceleration = probe.choose(choice).await?;
    Ok(qemu::Options {
        accelerator: acceleration.accelerator,
        templates,
        ..options
    })
}

/// How guests that were started ahead of need are led through their first steps: by a link.
pub fn rehearsal() -> Rehearsal {
    Rehearsal::new(|channel: Channel| async move {
        let key = ChannelKey(*channel.key.as_bytes());
        Ok(tether_link::rehearse(channel.io, key, REHEARSAL).await?)
    })
}

/// Where what was found out about this host is kept.
pub fn cache() -> PathBuf {
    let directory = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(cache) = directory("TETHER_CACHE") {
        return PathBuf::from(cache);
    }
    match (directory("XDG_CACHE_HOME"), directory("HOME")) {
        (Some(cache), _) => PathBuf::from(cache).join("tether"),
        (None, Some(home)) => PathBuf::from(home).join(".cache/tether"),
        (None, None) => std::env::temp_dir().join("tether"),
    }
}

/// The VM that was asked for. `disk` is where its root will be.
///
/// # Errors
/// A file that is not there, a flag that contradicts another.
pub fn plan(args: &RunArgs, name: &str, disk: PathBuf) -> Result<(MachineRecord, Vec<Mount>)> {
    let machine = &args.machine;
    let (hardware, channel) = machine.vm.hardware();
    let (disks, mounts, new_volumes) = volumes(args, disk)?;
    let memory = match args.memory {
        Some(size) => Memory::from_bytes(size.0).context("invalid --memory")?,
        None => Memory::from_bytes(plan::DEFAULT_MEMORY)?,
    };
    let nics = if plan::has_network(args)? {
        vec![NicSpec {
            mac: MacAddress::random().context("cannot choose a MAC address")?,
            attachment: Attachment::UserMode {
                published: published(args)?,
            },
        }]
    } else {
        Vec::new()
    };
    let spec = MachineSpec {
        id: MachineId::random().context("cannot choose a machine identity")?,
        name: name.to_owned(),
        cpus: Cpus::new(plan::cpus(args)?).context("invalid --cpus")?,
        memory,
        boot: boot(&machine.vm, machine.console)?,
        start: start(machine),
        hardware,
        channel,
        disks,
        nics,
        debugger: debugger(machine.gdb.as_deref())?,
    };
    spec.check()?;
    let waits_for_debugger = spec.debugger.is_some();
    let record = MachineRecord {
        spec,
        accel: machine.vm.acceleration().to_owned(),
        templates: machine.vm.templates.clone(),
        says_how: machine.vm.boot == Some(BootArg::Fork),
        boot_timeout: if waits_for_debugger {
            0
        } else {
            machine.boot_timeout
        },
        show_console: machine.console,
        new_volumes,
    };
    Ok((record, mounts))
}

/// Fork where nothing stands against it. The kernel's log and a debugger begin where a fork is past.
fn start(machine: &MachineArgs) -> Start {
    match machine.vm.boot {
        None if machine.console || machine.gdb.is_some() => Start::Boot,
        _ => machine.vm.start(),
    }
}

/// What VMs boot from; `console` lets the kernel say more than warnings.
///
/// # Errors
/// A file that is not there, a flag that contradicts another.
pub fn boot(machine: &VmArgs, console: bool) -> Result<Boot> {
    let built = |name: &str| match &machine.boot_image {
        Some(directory) => existing(&directory.join(name)),
        None => bail!(
            "no boot image: name the directory that scripts/boot-image prints with --boot-image or VCH_BOOT_IMAGE, or use scripts/vch"
        ),
    };
    let given = |file: &Option<PathBuf>, name: &str| match file {
        Some(file) => existing(file),
        None => built(name),
    };
    if machine.boot == Some(BootArg::Iso) {
        if machine.kernel.is_some() || machine.initrd.is_some() || !machine.append.is_empty() {
            bail!(
                "--kernel, --initrd and --append do not go with --boot iso: what is on the ISO is fixed"
            );
        }
        return Ok(Boot::Iso {
            iso: built("tether.iso")?,
            firmware: match machine.firmware {
                Some(FirmwareArg::Uefi) => Firmware::Uefi,
                None | Some(FirmwareArg::Bios) => Firmware::Bios,
            },
        });
    }
    if machine.firmware.is_some() {
        bail!("--firmware goes with --boot iso: a kernel booted directly has none");
    }
    // On a busy host emulated timer interrupts come late, and the kernel's check of them panics
    // (arch/x86/kernel/apic/io_apic.c, check_timer).
    let mut append = vec!["no_timer_check"];
    if console {
        // The driver's own arguments say `quiet`; the last word counts.
        append.push("loglevel=7");
    }
    append.extend(machine.append.iter().map(String::as_str));
    Ok(Boot::Kernel {
        kernel: given(&machine.kernel, "bzImage")?,
        initramfs: given(&machine.initrd, "initramfs.cpio")?,
        append: append.join(" "),
    })
}

fn existing(file: &Path) -> Result<PathBuf> {
    file.canonicalize()
        .with_context(|| format!("cannot use {}", file.display()))
}

fn debugger(gdb: Option<&str>) -> Result<Option<GuestDebugger>> {
    let Some(text) = gdb else { return Ok(None) };
    let listen = match text.parse::<u16>() {
        Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
        Err(_) => text
            .parse()
            .map_err(|_| anyhow!("invalid --gdb {text}: it is [IP:]PORT"))?,
    };
    Ok(Some(GuestDebugger {
        listen,
        start: DebuggerStart::Wait,
    }))
}

fn volumes(args: &RunArgs, root: PathBuf) -> Result<(Vec<DiskSpec>, Vec<Mount>, Vec<NewVolume>)> {
    let mut disks = vec![DiskSpec {
        source: DiskSource::File(root),
        format: DiskFormat::Vmdk,
        access: DiskAccess::ReadWrite,
        serial: DiskSerial::new(ROOT_SERIAL)?,
    }];
    let mut mounts = Vec::new();
    let mut new = Vec::new();
    for (number, volume) in args.volume.iter().enumerate() {
        let shown = volume.file.display();
        let file = match volume.file.metadata() {
            Ok(meta) if meta.is_dir() => bail!(
                "volume {shown}: it is a directory; a volume is an ext4 VMDK file (host directories cannot be mounted)"
            ),
            Ok(_) => {
                if !image::vmdk::is_vmdk(&volume.file).with_context(|| format!("volume {shown}"))? {
                    bail!(
                        "volume {shown}: it is not a VMDK; make one of a raw disk with \
                         `qemu-img convert -O vmdk RAW {shown}`"
                    );
                }
                existing(&volume.file)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match volume.size {
                Some(size) => {
                    let file = std::path::absolute(&volume.file)
                        .with_context(|| format!("volume {shown}"))?;
                    new.push(NewVolume {
                        file: file.clone(),
                        size,
                    });
                    file
                }
                None => bail!(
                    "volume {shown}: no such file; to make it, say how big: -v {shown}:{}:size=1g",
                    volume.target
                ),
            },
            Err(error) => return Err(error).with_context(|| format!("volume {shown}")),
        };
        let serial = format!("volume{number}");
        disks.push(DiskSpec {
            source: DiskSource::File(file),
            format: DiskFormat::Vmdk,
            access: if volume.read_only {
                DiskAccess::ReadOnly
            } else {
                DiskAccess::ReadWrite
            },
            serial: DiskSerial::new(serial.clone())?,
        });
        mounts.push(Mount {
            target: volume.target.clone(),
            source: MountSource::Disk {
                disk: DiskId::Serial(serial),
                populate: volume.populate && !volume.read_only,
            },
            read_only: volume.read_only,
        });
    }
    Ok((disks, mounts, new))
}

fn published(args: &RunArgs) -> Result<Vec<PublishedPort>> {
    let mut all = Vec::new();
    for publish in &args.publish {
        for (host, guest_port) in publish.ports() {
            let host = match host {
                Some(host) => host,
                None => free_port(publish.address, publish.transport)?,
            };
            all.push(PublishedPort {
                protocol: match publish.transport {
                    Transport::Tcp => Protocol::Tcp,
                    Transport::Udp => Protocol::Udp,
                },
                host,
                guest_port,
            });
        }
    }
    Ok(all)
}

/// A port nobody listens on at this moment.
fn free_port(address: std::net::IpAddr, transport: Transport) -> Result<SocketAddr> {
    let any = SocketAddr::new(address, 0);
    let port = match transport {
        Transport::Tcp => TcpListener::bind(any).and_then(|socket| socket.local_addr()),
        Transport::Udp => UdpSocket::bind(any).and_then(|socket| socket.local_addr()),
    };
    port.with_context(|| format!("cannot find a free port on {address}"))
}
