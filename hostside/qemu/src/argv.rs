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
    DiskSpec, Firmware, Hardware, MachineSpec, NicSpec,
};
use serde_json::{Value, json};

use crate::accel::Accelerator;

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
        format!("ringbuf,id=console,size={CONSOLE_RING}"),
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
    if spec.hardware == Hardware::Virtio {
        args.pair("-object", "rng-builtin,id=entropy");
        args.pair("-device", "virtio-rng-pci,rng=entropy");
        args.pair(
            "-device",
            "virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on",
        );
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
        for node in nodes(disk) {
            args.pair("-blockdev", node.to_string());
        }
        args.pair("-device", device(spec.hardware, disk, None).to_string());
    }
    for (index, nic) in spec.nics.iter().enumerate() {
        args.nic(spec.hardware, index, nic);
    }
    args.boot(prepared);
    if let Some(debugger) = &spec.debugger {
        args.pair("-gdb", format!("tcp:{}", debugger.listen));
        if debugger.start == DebuggerStart::Wait {
            args.plain(&["-S"]);
        }
    }
    args.0
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
        // vhost-user devices reach guest memory by mapping it.
        let backend = match prepared.channel {
            Wire::VhostUser { .. } => "memory-backend-memfd,id=ram,share=on",
            Wire::Listener { .. } | Wire::Vhost { .. } => "memory-backend-ram,id=ram",
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
        let mut netdev = format!("user,id=net{index}");
        if let Attachment::UserMode { published } = &nic.attachment {
            for port in published {
                let host = match port.host.ip() {
                    std::net::IpAddr::V4(ip) => ip.to_string(),
                    std::net::IpAddr::V6(ip) => format!("[{ip}]"),
                };
                netdev.push_str(&format!(
                    ",hostfwd={}:{host}:{}-:{}",
                    port.protocol,
                    port.host.port(),
                    port.guest_port
                ));
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
