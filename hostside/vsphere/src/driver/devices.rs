//! A machine's specification as virtual devices, and the devices a machine has.
//!
//! The guest tells its disks by their place: the disk of SCSI target `n` has the serial that
//! `guestinfo.tether.disks` gives for `n` (a pvscsi disk has no serial that could be chosen). Its first serial
//! port is the console, its second the channel.

use hypervisor::{Boot, Cause, DiskAccess, DiskSerial, DiskSpec, Firmware, MachineSpec, NicSpec};

use super::disks::Prepared;
use crate::serial::{CHANNEL, CONSOLE};
use crate::soap::{Element as _, Node};
use crate::types::{
    Backing, DeviceChange, ParaVirtualSCSIController, VirtualCdrom, VirtualCdromIsoBackingInfo,
    VirtualDevice, VirtualDeviceConfigSpec, VirtualDeviceConfigSpecFileOperation as FileOperation,
    VirtualDeviceConfigSpecOperation as Operation, VirtualDeviceConnectInfo, VirtualDisk,
    VirtualDiskFlatVer2BackingInfo, VirtualIDEController, VirtualSCSISharing, VirtualSerialPort,
    VirtualSerialPortURIBackingInfo, VirtualVmxnet3,
};

/// The key every machine's first IDE controller has.
const IDE: i32 = 200;
/// The PCI controller's, which every machine has.
const PCI: i32 = 100;
/// The controller's of serial ports, likewise.
const SIO: i32 = 400;
/// The target of the SCSI controller itself.
const OWN_TARGET: i32 = 7;
/// Targets of a SCSI controller.
const TARGETS: i32 = 16;
/// Keys in a specification are negative where the server chooses them.
const SCSI: i32 = -1;

/// The disk at a SCSI target of a machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its key.
    pub key: i32,
    /// Its target.
    pub target: i32,
    /// Its file, as in `[datastore] path`.
    pub file: String,
    /// Its controller's key.
    pub controller: i32,
}

/// Every disk in the property `config.hardware`.
pub fn disks(hardware: &Node) -> Vec<Attached> {
    hardware
        .children_named("device")
        .filter(|device| device.type_name() == "VirtualDisk")
        .filter_map(|device| {
            let disk = VirtualDisk::read(device).ok()?;
            Some(Attached {
                key: disk.key,
                target: disk.unitNumber?,
                file: disk.backing?.file_name()?.to_owned(),
                controller: disk.controllerKey?,
            })
        })
        .collect()
}

/// The pvscsi controller's key in the property `config.hardware`.
pub fn controller(hardware: &Node) -> Option<i32> {
    let device = hardware
        .children_named("device")
        .find(|device| device.type_name() == "ParaVirtualSCSIController")?;
    device.text_of("key")?.trim().parse().ok()
}

/// Which serial is at which target: the words of `guestinfo.tether.disks`.
pub fn write_table(table: &[(i32, DiskSerial)]) -> String {
    let words: Vec<String> = table
        .iter()
        .map(|(target, serial)| format!("{target}={serial}"))
        .collect();
    words.join(",")
}

/// The reverse.
pub fn read_table(text: &str) -> Vec<(i32, DiskSerial)> {
    text.split(',')
        .filter_map(|word| {
            let (target, serial) = word.split_once('=')?;
            Some((target.parse().ok()?, DiskSerial::new(serial).ok()?))
        })
        .collect()
}

/// The first target that is free.
pub fn free_target(taken: impl Fn(i32) -> bool) -> Result<i32, Cause> {
    (0..TARGETS)
        .find(|target| *target != OWN_TARGET && !taken(*target))
        .ok_or_else(|| {
            super::unsupported(
                "attach another disk",
                "15 disks are on the machine's SCSI controller already",
            )
        })
}

/// What a machine is made of.
pub fn creation(
    spec: &MachineSpec,
    disks: &[(i32, Prepared)],
    nics: Vec<Backing>,
    boot: &super::datastore::DatastorePath,
    proxy: &str,
) -> Vec<DeviceChange> {
    let mut number = 1000;
    let mut next = || {
        number += 1;
        -number
    };
    let mut changes = vec![
        add(VirtualIDEController {
            key: IDE,
            ..VirtualIDEController::default()
        }),
        add(ParaVirtualSCSIController {
            key: SCSI,
            controllerKey: Some(PCI),
            sharedBus: VirtualSCSISharing::NoSharing,
            hotAddRemove: Some(true),
            ..ParaVirtualSCSIController::default()
        }),
        add(VirtualCdrom {
            key: next(),
            controllerKey: Some(IDE),
            unitNumber: Some(0),
            connectable: Some(connected()),
            backing: Some(Backing::from(VirtualCdromIsoBackingInfo {
                fileName: boot.to_string(),
                datastore: None,
            })),
            ..VirtualCdrom::default()
        }),
    ];
    for (unit, service) in [(0, CONSOLE), (1, CHANNEL)] {
        changes.push(add(VirtualSerialPort {
            key: next(),
            controllerKey: Some(SIO),
            unitNumber: Some(unit),
            connectable: Some(connected()),
            backing: Some(Backing::from(VirtualSerialPortURIBackingInfo {
                serviceURI: service.to_owned(),
                direction: "client".into(),
                proxyURI: Some(proxy.to_owned()),
            })),
            // The guest's driver sleeps; without this a port that is polled takes the whole processor.
            yieldOnPoll: true,
            ..VirtualSerialPort::default()
        }));
    }
    for (nic, backing) in spec.nics.iter().zip(nics) {
        changes.push(add(vnic(next(), nic, backing, Cable::In)));
    }
    for ((target, prepared), disk) in disks.iter().zip(&spec.disks) {
        changes.push(attach(next(), SCSI, *target, disk, prepared));
    }
    changes
}

/// Whether a vNIC is connected, now and at the next power on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    In,
    Out,
}

/// A vNIC.
pub fn vnic(key: i32, nic: &NicSpec, backing: Backing, cable: Cable) -> VirtualVmxnet3 {
    VirtualVmxnet3 {
        key,
        controllerKey: Some(PCI),
        connectable: Some(VirtualDeviceConnectInfo {
            startConnected: cable == Cable::In,
            allowGuestControl: false,
            connected: cable == Cable::In,
        }),
        backing: Some(backing),
        addressType: Some("manual".into()),
        macAddress: Some(nic.mac.to_string()),
        wakeOnLanEnabled: Some(false),
        ..VirtualVmxnet3::default()
    }
}

/// Adds a disk, making its file if there is none.
pub fn attach(
    key: i32,
    controller: i32,
    target: i32,
    disk: &DiskSpec,
    prepared: &Prepared,
) -> DeviceChange {
    let mode = match (disk.access, &prepared.parent) {
        // What a guest may not change: what it writes is gone with its power.
        (DiskAccess::ReadOnly, _) => "independent_nonpersistent",
        // A container's own disk; a snapshot for a commit holds it still.
        (DiskAccess::ReadWrite, Some(_)) => "persistent",
        // A volume, which no snapshot of a machine takes with it.
        (DiskAccess::ReadWrite, None) => "independent_persistent",
    };
    let backing = |file: String| VirtualDiskFlatVer2BackingInfo {
        fileName: file,
        diskMode: mode.to_owned(),
        ..VirtualDiskFlatVer2BackingInfo::default()
    };
    let parent = prepared.parent.as_ref().filter(|_| prepared.make);
    let device = VirtualDisk {
        key,
        controllerKey: Some(controller),
        unitNumber: Some(target),
        capacityInKB: i64::try_from(prepared.capacity / 1024).unwrap_or_default(),
        backing: Some(Backing::from(VirtualDiskFlatVer2BackingInfo {
            thinProvisioned: prepared.make.then_some(true),
            parent: parent.map(|parent| Box::new(backing(parent.to_string()))),
            ..backing(prepared.file.to_string())
        })),
        ..VirtualDisk::default()
    };
    DeviceChange::from(VirtualDeviceConfigSpec {
        operation: Some(Operation::Add),
        fileOperation: prepared.make.then_some(FileOperation::Create),
        device: Some(VirtualDevice::from(device)),
    })
}

/// Removes a disk and leaves its file.
pub fn detach(disk: &Attached) -> DeviceChange {
    let device = VirtualDisk {
        key: disk.key,
        controllerKey: Some(disk.controller),
        unitNumber: Some(disk.target),
        backing: Some(Backing::from(VirtualDiskFlatVer2BackingInfo {
            fileName: disk.file.clone(),
            diskMode: "persistent".into(),
            ..VirtualDiskFlatVer2BackingInfo::default()
        })),
        ..VirtualDisk::default()
    };
    DeviceChange::from(VirtualDeviceConfigSpec {
        operation: Some(Operation::Remove),
        fileOperation: None,
        device: Some(VirtualDevice::from(device)),
    })
}

/// The API's word for a firmware.
pub fn firmware(boot: &Boot) -> &'static str {
    match boot {
        Boot::Iso {
            firmware: Firmware::Uefi,
            ..
        } => "efi",
        _ => "bios",
    }
}

/// Adds a device.
pub fn add(device: impl Into<VirtualDevice>) -> DeviceChange {
    change(Operation::Add, device)
}

/// Changes a device, which its key names.
pub fn edit(device: impl Into<VirtualDevice>) -> DeviceChange {
    change(Operation::Edit, device)
}

fn change(operation: Operation, device: impl Into<VirtualDevice>) -> DeviceChange {
    DeviceChange::from(VirtualDeviceConfigSpec {
        operation: Some(operation),
        fileOperation: None,
        device: Some(device.into()),
    })
}

fn connected() -> VirtualDeviceConnectInfo {
    VirtualDeviceConnectInfo {
        startConnected: true,
        allowGuestControl: false,
        connected: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_disks_reads_back() {
        let table =
            [0, 1, 8].map(|target| (target, DiskSerial::new(format!("s.{target}")).unwrap()));
        assert_eq!(write_table(&table), "0=s.0,1=s.1,8=s.8");
        assert_eq!(read_table("0=s.0,1=s.1,8=s.8"), table);
        assert_eq!(read_table(""), []);
    }

    #[test]
    fn the_controllers_own_target_is_never_given_away() {
        let mut taken = Vec::new();
        while let Ok(target) = free_target(|target| taken.contains(&target)) {
            taken.push(target);
        }
        assert_eq!(taken.len(), 15);
        assert!(!taken.contains(&OWN_TARGET));
    }
}
