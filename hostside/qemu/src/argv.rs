//! QEMU's command line for a machine. Pure: a specification and what the
//! driver has opened go in, arguments come out.
//!
//! QEMU runs in the machine's directory, so that the files the driver keeps
//! there have short, stable names, and sockets can live below any path (a
//! socket's address is 107 bytes at most).
//!
//! What ends a guest must not end QEMU: `-action` pauses instead, so that the
//! cause can still be asked for when no controller was there to see it. The
//! traces write the same to the log, for when QEMU itself is killed.
//!
//! Source: QEMU 7.2's manual and `qapi/*.json`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hypervisor::{
    Attachment, Boot, ChannelKind, DebuggerStart, DiskAccess, DiskFormat, DiskSerial, DiskSource,
    DiskSpec, Firmware, Hardware, MachineId, MachineSpec, NicSpec, PublishedPort,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::accel::Accelerator;
use crate::directory::Devices;

/// The key's file in the machine's directory.
pub const KEY_FILE: &str = "channel.key";
/// The UEFI firmware's variables in the machine's directory.
pub const UEFI_VARIABLES: &str = "uefi-variables.fd";
/// Bytes of console QEMU keeps; a power of two.
pub const CONSOLE_RING: usize = 256 << 10;

/// What every kernel is told before the machine's own arguments.
///
/// * `console=ttyS0`: the console is the first serial port;
/// * `quiet`: each byte on it is an exit (`loglevel=7` later undoes it);
/// * `panic=-1`: a panic that pvpanic did not report ends in a reset at once.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1";

/// The serial port that is a [`ChannelKind::Serial`] channel. UEFI firmware takes what arrives on
/// COM1 and COM2 for a keyboard, and the first word of a host opens its setup menu: there it is COM4,
/// which the firmware does not know and which shares its interrupt with no port that exists.
fn serial_port(spec: &MachineSpec) -> u8 {
    match spec.boot {
        Boot::Iso {
            firmware: Firmware::Uefi,
            ..
        } => 3,
        _ => 1,
    }
}

/// What tether is told of its channel.
fn guest_word(spec: &MachineSpec) -> String {
    match (spec.channel, serial_port(spec)) {
        (ChannelKind::Serial, port) if port != 1 => format!("serial:ttyS{port}"),
        (channel, _) => channel.guest_word(),
    }
}

/// What the driver has ready for the machine.
#[derive(Debug, Clone)]
pub struct Prepared<'a> {
    /// The specification.
    pub spec: &'a MachineSpec,
    /// How guest instructions run.
    pub accelerator: Accelerator,
    /// The listening control socket, inherited under this number.
    pub qmp_fd: i32,
    /// The channel's carrier.
    pub channel: Wire,
    /// Slots for disks that come while it runs.
    pub hot_plug_slots: u8,
    /// The speed of the time-stamp counter, if the guest has to be told.
    pub tsc_khz: Option<u64>,
    /// UEFI's code, if the machine boots by it.
    pub uefi_code: Option<PathBuf>,
    /// Where its first instruction comes from.
    pub birth: Birth,
}

/// Where a machine's first instruction comes from. Descriptors are inherited under these numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Birth {
    /// Its firmware.
    Boot,
    /// Its firmware; and then it becomes a template.
    Template {
        /// The file that is its memory.
        ram_fd: i32,
        /// A connected socket for its console.
        console_fd: i32,
    },
    /// A template.
    Fork {
        /// The template's memory, of which it gets a private view.
        ram_fd: i32,
        /// The head of the template's kernel. Nothing runs it: it stands for the kernel in the
        /// firmware's directory, whose entries the guest knows by number.
        kernel_fd: i32,
        /// The name of this start.
        boot_id: MachineId,
        /// It is started ahead of need: its disks come later, and their places are held.
        spare: bool,
    },
    /// A machine that ran.
    Child {
        /// What its memory was, of which it gets a private view.
        ram_fd: i32,
        /// As a fork's.
        kernel_fd: i32,
        /// The name of this start.
        boot_id: MachineId,
        /// Its parent's, which its state speaks of.
        devices: Devices,
    },
}

impl Birth {
    /// Which devices such a machine has.
    fn devices(&self) -> Devices {
        match self {
            Self::Boot => Devices::Booted,
            Self::Template { .. } | Self::Fork { .. } => Devices::Forked,
            Self::Child { devices, .. } => *devices,
        }
    }
}

/// Requests in a fork's disk queue. The guest's driver clears memory for all of them, as many
/// segments each: 4 MiB for QEMU's own 256, that are shared with nobody.
const FORK_QUEUE: u32 = 64;

/// Bytes of a bzImage that QEMU looks at before it loads the rest: boot sector and setup code, 64
/// sectors and one at most (Documentation/x86/boot.rst), and a little of what follows.
pub const KERNEL_HEAD: u64 = 65 * 512 + 4096;

/// The path by which QEMU opens an inherited descriptor once more.
fn inherited(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

/// What QEMU's end of the channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// A listening socket, inherited under this number.
    Listener {
        /// The descriptor's number in QEMU.
        fd: i32,
    },
    /// The host kernel's vhost-vsock.
    Vhost {
        /// The guest's context identifier.
        cid: u32,
    },
    /// A `vhost-device-vsock` listening on this socket.
    VhostUser {
        /// The socket, relative to the machine's directory.
        socket: &'static str,
    },
}

/// QEMU's arguments, without its own name.
pub fn arguments(prepared: &Prepared<'_>) -> Vec<OsString> {
    let mut args = Arguments(Vec::with_capacity(96));
    let spec = prepared.spec;
    args.plain(&["-nodefaults", "-no-user-config", "-display", "none"]);
    args.pair("-name", format!("guest={},debug-threads=on", spec.name));
    args.pair("-uuid", spec.id.to_string());
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    args.pair("-msg", "timestamp=on");
    args.pair("-action", "panic=pause,shutdown=pause,reboot=shutdown");
    args.pair("-trace", "enable=qemu_system_*_request");
    args.pair("-trace", "enable=runstate_set");
    args.machine(prepared);
    args.pair(
        "-chardev",
        format!("socket,id=qmp,fd={},server=on,wait=off", prepared.qmp_fd),
    );
    args.pair("-mon", "chardev=qmp,mode=control");
    args.pair(
        "-chardev",
        match prepared.birth {
            Birth::Template { console_fd, .. } => format!("socket,id=console,fd={console_fd}"),
            Birth::Boot | Birth::Fork { .. } | Birth::Child { .. } => {
                format!("ringbuf,id=console,size={CONSOLE_RING}")
            }
        },
    );
    args.pair("-device", "isa-serial,id=serial0,chardev=console");
    args.pair("-device", "pvpanic");
    args.pair("-device", "vmgenid,guid=auto");
    args.pair("-rtc", "base=utc");
    args.pair("-fw_cfg", format!("name=opt/tether/key,file={KEY_FILE}"));
    args.pair(
        "-fw_cfg",
        format!("name=opt/tether/channel,string={}", guest_word(spec)),
    );
    let identity = identity(prepared);
    args.pair(
        "-fw_cfg",
        format!("name=opt/tether/identity,string={identity}"),
    );
    if spec.hardware == Hardware::Virtio {
        args.pair("-object", "rng-builtin,id=entropy");
        args.pair("-device", "virtio-rng-pci,rng=entropy");
        // What a balloon gives back, QEMU punches out of the memory's file: out of the template.
        if prepared.birth.devices() == Devices::Booted {
            args.pair(
                "-device",
                "virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on",
            );
        }
    }
    args.channel(spec, &prepared.channel);
    match spec.hardware {
        // Disks come and go on the controller, so it is always there.
        Hardware::Vmware => args.pair("-device", "pvscsi,id=scsi"),
        // A PCI Express root complex takes nothing while it runs; its ports do.
        Hardware::Virtio => {
            for slot in 0..prepared.hot_plug_slots.min(HOT_PLUG_MOST) {
                args.pair(
                    "-device",
                    format!(
                        "pcie-root-port,id={},chassis={},addr=1e.{slot},multifunction=on",
                        slot_name(slot),
                        slot + 1
                    ),
                );
            }
        }
    }
    for disk in &spec.disks {
        let mut device = device(spec.hardware, disk, None);
        if matches!(prepared.birth, Birth::Fork { spare: true, .. }) {
            args.pair("-blockdev", holder(disk).to_string());
            device["drive"] = holder_name(&disk.serial).into();
        } else {
            for node in nodes(disk) {
                args.pair("-blockdev", node.to_string());
            }
        }
        if prepared.birth.devices() == Devices::Forked {
            device["queue-size"] = FORK_QUEUE.into();
        }
        args.pair("-device", device.to_string());
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        args.nic(spec.hardware, index, nic);
    }
    match prepared.birth {
        Birth::Boot | Birth::Template { .. } => args.boot(prepared),
        Birth::Fork { kernel_fd, .. } => {
            args.pair("-kernel", inherited(kernel_fd));
            args.pair("-incoming", "defer");
        }
        Birth::Child { kernel_fd, .. } => {
            args.pair("-kernel", inherited(kernel_fd));
            args.pair("-incoming", "defer");
            // `xen-save-devices-state` writes neither memory nor the migration's own section.
            args.pair("-global", "migration.send-configuration=off");
            // It runs when its vNICs are disconnected.
            args.plain(&["-S"]);
        }
    }
    if let Some(debugger) = &spec.debugger {
        args.pair("-gdb", format!("tcp:{}", debugger.listen));
        if debugger.start == DebuggerStart::Wait {
            args.plain(&["-S"]);
        }
    }
    args.0
}

/// What tells a template's tether that it is one, and a fork's or a child's that it is another machine:
/// boot id and UUID, 32 hexadecimal digits each, as many bytes for one as for the other. A machine that
/// boots goes by its kernel's boot id and has its UUID in both places, so that a child of it finds the
/// entry where it was.
fn identity(prepared: &Prepared<'_>) -> String {
    let digits = |id: &MachineId| id.to_string().replace('-', "");
    let uuid = &prepared.spec.id;
    match &prepared.birth {
        Birth::Boot => format!("{}{}", digits(uuid), digits(uuid)),
        Birth::Template { .. } => "0".repeat(64),
        Birth::Fork { boot_id, .. } | Birth::Child { boot_id, .. } => {
            format!("{}{}", digits(boot_id), digits(uuid))
        }
    }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn plain(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn machine(&mut self, prepared: &Prepared<'_>) {
        let spec = prepared.spec;
        let vmport = match spec.hardware {
            Hardware::Virtio => "off",
            Hardware::Vmware => "on",
        };
        let sata = match spec.boot {
            Boot::Kernel { .. } => "off",
            Boot::Iso { .. } => "on",
        };
        // The q35 without what is not needed: a kernel waits for an i440FX's
        // interrupt links (0.3 s under emulation) and for empty SATA ports.
        self.pair(
            "-machine",
            format!(
                "q35,usb=off,sata={sata},smbus=off,vmport={vmport},smm=off,hpet=off,dump-guest-core=off,memory-backend=ram"
            ),
        );
        let cpus = spec.cpus.count();
        match prepared.accelerator {
            Accelerator::Kvm => {
                self.pair("-accel", "kvm");
                self.pair("-cpu", "host,migratable=off");
            }
            Accelerator::Tcg => {
                // The cache of translated code bounds what emulation adds to
                // the guest's memory, in MiB; the default is 1,024.
                let threads = if cpus > 1 { "multi" } else { "single" };
                self.pair("-accel", format!("tcg,thread={threads},tb-size=128"));
                self.pair("-cpu", TCG_CPU);
            }
        }
        self.pair(
            "-smp",
            format!("cpus={cpus},sockets=1,cores={cpus},threads=1"),
        );
        self.pair("-m", format!("{}M", spec.memory.mib()));
        let file = |fd, share| {
            let path = inherited(fd);
            format!("memory-backend-file,id=ram,mem-path={path},share={share}")
        };
        let backend = match (&prepared.birth, &prepared.channel) {
            (Birth::Template { ram_fd, .. }, _) => file(*ram_fd, "on"),
            (Birth::Fork { ram_fd, .. } | Birth::Child { ram_fd, .. }, _) => file(*ram_fd, "off"),
            // vhost-user devices reach guest memory by mapping it.
            (Birth::Boot, Wire::VhostUser { .. }) => {
                "memory-backend-memfd,id=ram,share=on".to_owned()
            }
            (Birth::Boot, Wire::Listener { .. } | Wire::Vhost { .. }) => {
                "memory-backend-ram,id=ram".to_owned()
            }
        };
        self.pair("-object", format!("{backend},size={}M", spec.memory.mib()));
    }

    fn channel(&mut self, spec: &MachineSpec, wire: &Wire) {
        match wire {
            Wire::Listener { fd } => {
                self.pair(
                    "-chardev",
                    format!("socket,id=channel,fd={fd},server=on,wait=off"),
                );
                if spec.channel == ChannelKind::Serial {
                    let port = match serial_port(spec) {
                        1 => String::new(),
                        port => format!(",index={port}"),
                    };
                    self.pair(
                        "-device",
                        format!("isa-serial,id=serial1,chardev=channel{port}"),
                    );
                } else {
                    self.pair("-device", "virtio-serial-pci,id=ports,max_ports=4");
                    self.pair(
                        "-device",
                        format!(
                            "virtserialport,bus=ports.0,chardev=channel,id=channel0,name={}",
                            ChannelKind::VIRTIO_PORT
                        ),
                    );
                }
            }
            Wire::Vhost { cid } => self.pair(
                "-device",
                format!("vhost-vsock-pci,id=vsock,guest-cid={cid}"),
            ),
            Wire::VhostUser { socket } => {
                self.pair("-chardev", format!("socket,id=vsock,path={socket}"));
                self.pair("-device", "vhost-user-vsock-pci,chardev=vsock");
            }
        }
    }

    fn nic(&mut self, hardware: Hardware, index: usize, nic: &NicSpec) {
        let mut netdev = format!("user,id={}", network_name(index));
        if let Attachment::UserMode { published } = &nic.attachment {
            for port in published {
                netdev.push_str(&format!(",hostfwd={}", forwarded(port)));
            }
        }
        self.pair("-netdev", netdev);
        let model = match hardware {
            Hardware::Virtio => "virtio-net-pci",
            Hardware::Vmware => "vmxnet3",
        };
        // No option ROM: nothing boots from the network.
        self.pair(
            "-device",
            format!(
                "{model},id=nic{index},netdev=net{index},mac={},romfile=",
                nic.mac
            ),
        );
    }

    fn boot(&mut self, prepared: &Prepared<'_>) {
        match &prepared.spec.boot {
            Boot::Kernel {
                kernel,
                initramfs,
                append,
            } => {
                self.pair("-kernel", kernel);
                self.pair("-initrd", initramfs);
                let word = guest_word(prepared.spec);
                let mut line = format!("{KERNEL_ARGUMENTS} tether.channel={word}");
                if let Some(khz) = prepared.tsc_khz {
                    line.push_str(&format!(" tsc_early_khz={khz}"));
                }
                if !append.trim().is_empty() {
                    line.push(' ');
                    line.push_str(append.trim());
                }
                self.pair("-append", line);
            }
            Boot::Iso { iso, firmware } => {
                if let (Firmware::Uefi, Some(code)) = (firmware, &prepared.uefi_code) {
                    for (unit, file, access) in [
                        (0, code.as_path(), "on"),
                        (1, Path::new(UEFI_VARIABLES), "off"),
                    ] {
                        let mut drive = OsString::from(format!(
                            "if=pflash,format=raw,unit={unit},readonly={access},file="
                        ));
                        drive.push(escape(file));
                        self.pair("-drive", drive);
                    }
                }
                self.pair(
                    "-blockdev",
                    json!({
                        "driver": "raw", "node-name": "cdrom", "read-only": true,
                        "file": {"driver": "file", "filename": text(iso), "read-only": true},
                    })
                    .to_string(),
                );
                self.pair("-device", "ide-cd,bus=ide.2,drive=cdrom,bootindex=0");
                self.pair("-boot", "menu=off,strict=on");
            }
        }
    }
}

/// The processor emulation offers: all it can, except what makes it slow.
/// Five-level page tables lengthen every walk; `erms` and `fsrm` make guests
/// copy by `rep movsb`, which is emulated byte by byte.
const TCG_CPU: &str = "max,la57=off,erms=off,fsrm=off";

/// The name of a disk's node and device in QEMU.
pub fn disk_name(serial: &DiskSerial) -> String {
    // A node's name is 31 characters at most; a serial is 20.
    format!("disk-{serial}")
}

/// The name of the node below a disk's.
pub fn file_name(serial: &DiskSerial) -> String {
    format!("file-{serial}")
}

/// The name of the node that holds a disk's place.
pub fn holder_name(serial: &DiskSerial) -> String {
    format!("holder-{serial}")
}

/// The node that holds a disk's place: a disk of nothing.
fn holder(disk: &DiskSpec) -> Value {
    json!({
        "driver": "null-co", "node-name": holder_name(&disk.serial), "size": 1 << 20,
        "read-only": disk.access == DiskAccess::ReadOnly,
    })
}

/// A published port, as `hostfwd` options and `hostfwd_add` take it.
pub fn forwarded(port: &PublishedPort) -> String {
    let host = match port.host.ip() {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!(
        "{}:{host}:{}-:{}",
        port.protocol,
        port.host.port(),
        port.guest_port
    )
}

/// The name of a vNIC's user-mode network in QEMU.
pub fn network_name(index: usize) -> String {
    format!("net{index}")
}

/// The name of a vNIC's device in QEMU.
pub fn nic_name(index: usize) -> String {
    format!("nic{index}")
}

/// The name of the node of a disk that came in the place of another of its serial: by its file, for
/// there may be many in a row.
pub fn branch_name(disk: &DiskSpec) -> String {
    format!("branch-{}", file_digest(disk))
}

/// The block nodes of such a disk, in the order they have to be made.
pub fn branch_nodes(disk: &DiskSpec) -> Vec<Value> {
    let mut nodes = nodes(disk);
    let file = format!("branch-file-{}", file_digest(disk));
    if let [below, top] = nodes.as_mut_slice() {
        below["node-name"] = file.as_str().into();
        top["file"] = file.into();
        top["node-name"] = branch_name(disk).into();
    }
    nodes
}

/// 16 digits.
fn file_digest(disk: &DiskSpec) -> String {
    let mut digest = Sha256::new();
    match &disk.source {
        DiskSource::File(path) => digest.update(path.as_os_str().as_encoded_bytes()),
        DiskSource::Datastore { path, .. } => digest.update(path.as_bytes()),
    }
    digest.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The block nodes of a disk, in the order they have to be made.
///
/// Read-only files are opened without QEMU's write lock, so that many machines
/// share them, as are the parents of a VMDK. The host's page cache is used:
/// many machines read the same image, and a guest's flush is still a flush.
pub fn nodes(disk: &DiskSpec) -> Vec<Value> {
    let read_only = disk.access == DiskAccess::ReadOnly;
    let filename = match &disk.source {
        DiskSource::File(path) => text(path),
        // Refused before it comes here.
        DiskSource::Datastore { path, .. } => path.clone(),
    };
    let format = match disk.format {
        DiskFormat::Vmdk => "vmdk",
        DiskFormat::Raw => "raw",
    };
    vec![
        json!({
            "driver": "file", "node-name": file_name(&disk.serial), "filename": filename,
            "read-only": read_only, "discard": "unmap", "aio": "threads",
        }),
        json!({
            "driver": format, "node-name": disk_name(&disk.serial), "file": file_name(&disk.serial),
            "read-only": read_only, "discard": "unmap",
        }),
    ]
}

/// Most hot-plug slots: the functions of one PCI device.
pub const HOT_PLUG_MOST: u8 = 8;

/// The name of a hot-plug slot in QEMU.
pub fn slot_name(slot: u8) -> String {
    format!("slot{slot}")
}

/// The device that shows a disk to the guest, as `-device` and `device_add`
/// take it; before the machine starts a virtio disk needs no `slot`.
pub fn device(hardware: Hardware, disk: &DiskSpec, slot: Option<u8>) -> Value {
    let name = disk_name(&disk.serial);
    let mut device = match hardware {
        Hardware::Virtio => json!({"driver": "virtio-blk-pci"}),
        Hardware::Vmware => json!({"driver": "scsi-hd", "bus": "scsi.0"}),
    };
    device["id"] = name.clone().into();
    device["drive"] = name.into();
    device["serial"] = disk.serial.as_str().into();
    if let Some(slot) = slot {
        device["bus"] = slot_name(slot).into();
        // A port's guest looks at its first device only.
        device["addr"] = "0".into();
    }
    device
}

/// A file name in JSON. QEMU takes UTF-8 only; the driver refuses other names
/// before they come here.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A file name as a value of QEMU's comma-separated options.
fn escape(path: &Path) -> OsString {
    OsString::from(path.to_string_lossy().replace(',', ",,"))
}

#[cfg(test)]
mod tests;
