//! Virtual devices and their backings.

use super::data::SharesInfo;
use super::macros::{data_objects, one_of, words};
use super::reference::ManagedObject;
use crate::soap::{Node, Raw};

words! {
    /// What is done with a device.
    enum VirtualDeviceConfigSpecOperation {
        Add = "add",
        Remove = "remove",
        Edit = "edit",
    }
}

words! {
    /// What is done with the file behind a device.
    enum VirtualDeviceConfigSpecFileOperation {
        Create = "create",
        Destroy = "destroy",
        Replace = "replace",
    }
}

words! {
    /// Whether several machines share a SCSI bus.
    enum VirtualSCSISharing {
        NoSharing = "noSharing",
        VirtualSharing = "virtualSharing",
        PhysicalSharing = "physicalSharing",
    }
}

one_of! {
    /// A virtual device.
    enum VirtualDevice : "VirtualDevice" {
        VirtualDisk,
        VirtualVmxnet3,
        VirtualCdrom,
        VirtualSerialPort,
        ParaVirtualSCSIController,
        VirtualAHCIController,
        VirtualIDEController,
        VirtualSIOController,
    }
}

one_of! {
    /// What is behind a device.
    enum Backing : "VirtualDeviceBackingInfo" {
        VirtualDiskFlatVer2BackingInfo,
        VirtualDiskSparseVer2BackingInfo,
        VirtualDiskSeSparseBackingInfo,
        VirtualCdromIsoBackingInfo,
        VirtualSerialPortURIBackingInfo,
        VirtualEthernetCardNetworkBackingInfo,
        VirtualEthernetCardDistributedVirtualPortBackingInfo,
    }
}

one_of! {
    /// A change to a machine's devices.
    enum DeviceChange : "VirtualDeviceConfigSpec" { VirtualDeviceConfigSpec, }
}

impl VirtualDevice {
    /// Its key, by which a machine knows it.
    pub fn key(&self) -> Option<i32> {
        match self {
            Self::VirtualDisk(device) => Some(device.key),
            Self::VirtualVmxnet3(device) => Some(device.key),
            Self::VirtualCdrom(device) => Some(device.key),
            Self::VirtualSerialPort(device) => Some(device.key),
            Self::ParaVirtualSCSIController(device) => Some(device.key),
            Self::VirtualAHCIController(device) => Some(device.key),
            Self::VirtualIDEController(device) => Some(device.key),
            Self::VirtualSIOController(device) => Some(device.key),
            Self::Other(node) => key_of(node),
        }
    }
}

fn key_of(node: &Node) -> Option<i32> {
    node.text_of("key")?.trim().parse().ok()
}

impl Backing {
    /// The datastore path of the file behind the device, if it is a file.
    pub fn file_name(&self) -> Option<&str> {
        match self {
            Self::VirtualDiskFlatVer2BackingInfo(backing) => Some(&backing.fileName),
            Self::VirtualDiskSparseVer2BackingInfo(backing) => Some(&backing.fileName),
            Self::VirtualDiskSeSparseBackingInfo(backing) => Some(&backing.fileName),
            Self::VirtualCdromIsoBackingInfo(backing) => Some(&backing.fileName),
            Self::Other(node) => node.text_of("fileName"),
            _ => None,
        }
    }
}

data_objects! {
    /// A change to a machine's devices.
    struct VirtualDeviceConfigSpec {
        operation: Option<VirtualDeviceConfigSpecOperation>,
        fileOperation: Option<VirtualDeviceConfigSpecFileOperation>,
        device: Option<VirtualDevice>,
    }
    /// Whether a device is connected.
    struct VirtualDeviceConnectInfo {
        startConnected: bool,
        allowGuestControl: bool,
        connected: bool,
    }
    /// A disk.
    struct VirtualDisk {
        key: i32,
        deviceInfo: Option<Raw>,
        backing: Option<Backing>,
        connectable: Option<VirtualDeviceConnectInfo>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        capacityInKB: i64,
        capacityInBytes: Option<i64>,
        shares: Option<SharesInfo>,
    }
    /// A disk's file: a VMFS disk, or a child of one.
    struct VirtualDiskFlatVer2BackingInfo {
        fileName: String,
        datastore: Option<ManagedObject>,
        diskMode: String,
        split: Option<bool>,
        writeThrough: Option<bool>,
        thinProvisioned: Option<bool>,
        eagerlyScrub: Option<bool>,
        uuid: Option<String>,
        parent: Option<Box<VirtualDiskFlatVer2BackingInfo>>,
    }
    /// A disk's file: a sparse child as hosts before vSphere 6.5 make them.
    struct VirtualDiskSparseVer2BackingInfo {
        fileName: String,
        datastore: Option<ManagedObject>,
        diskMode: String,
    }
    /// A disk's file: a sparse child as newer hosts make them.
    struct VirtualDiskSeSparseBackingInfo {
        fileName: String,
        datastore: Option<ManagedObject>,
        diskMode: String,
    }
    /// A vNIC.
    struct VirtualVmxnet3 {
        key: i32,
        deviceInfo: Option<Raw>,
        backing: Option<Backing>,
        connectable: Option<VirtualDeviceConnectInfo>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        addressType: Option<String>,
        macAddress: Option<String>,
        wakeOnLanEnabled: Option<bool>,
    }
    /// A port group of a standard switch.
    struct VirtualEthernetCardNetworkBackingInfo {
        deviceName: String,
        network: Option<ManagedObject>,
    }
    /// A port group of a distributed switch.
    struct VirtualEthernetCardDistributedVirtualPortBackingInfo {
        port: DistributedVirtualSwitchPortConnection,
    }
    /// A port of a distributed switch.
    struct DistributedVirtualSwitchPortConnection {
        switchUuid: String,
        portgroupKey: Option<String>,
    }
    /// A CD-ROM drive.
    struct VirtualCdrom {
        key: i32,
        deviceInfo: Option<Raw>,
        backing: Option<Backing>,
        connectable: Option<VirtualDeviceConnectInfo>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
    }
    /// An ISO image.
    struct VirtualCdromIsoBackingInfo {
        fileName: String,
        datastore: Option<ManagedObject>,
    }
    /// A serial port.
    struct VirtualSerialPort {
        key: i32,
        deviceInfo: Option<Raw>,
        backing: Option<Backing>,
        connectable: Option<VirtualDeviceConnectInfo>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        yieldOnPoll: bool,
    }
    /// A serial port over the network.
    struct VirtualSerialPortURIBackingInfo {
        serviceURI: String,
        direction: String,
        proxyURI: Option<String>,
    }
    /// A paravirtual SCSI controller.
    struct ParaVirtualSCSIController {
        key: i32,
        deviceInfo: Option<Raw>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        busNumber: i32,
        device: Vec<i32>,
        hotAddRemove: Option<bool>,
        sharedBus: VirtualSCSISharing,
    }
    /// A SATA controller.
    struct VirtualAHCIController {
        key: i32,
        deviceInfo: Option<Raw>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        busNumber: i32,
        device: Vec<i32>,
    }
    /// An IDE controller.
    struct VirtualIDEController {
        key: i32,
        deviceInfo: Option<Raw>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        busNumber: i32,
        device: Vec<i32>,
    }
    /// The controller of serial ports.
    struct VirtualSIOController {
        key: i32,
        deviceInfo: Option<Raw>,
        controllerKey: Option<i32>,
        unitNumber: Option<i32>,
        busNumber: i32,
        device: Vec<i32>,
    }
}
