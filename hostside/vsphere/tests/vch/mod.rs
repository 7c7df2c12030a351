//! A VCH on the simulator: where it is, what its machines are made of, and how another client sees them.

use std::path::{Path, PathBuf};

use hypervisor::{
    Attachment, Boot, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial,
    DiskSource, DiskSpec, Firmware, Hardware, MachineId, MachineSpec, Memory, NicSpec, Start,
};
use image::disk::Disk as _;
use vsphere::soap::Node;
use vsphere::types::{
    FindByInventoryPath, ManagedObject, ObjectSpec, PropertyFilterSpec, PropertySpec,
    RetrieveOptions, RetrievePropertiesEx, Selection, TraversalSpec,
};
use vsphere::{Options, PlaceNames};

use crate::simulator::Simulator;

pub fn options(simulator: &Simulator) -> Options {
    Options {
        session: simulator.options(),
        vch: "vch1".into(),
        place: PlaceNames {
            datacenter: format!("/{}", simulator.datacenter()),
            pool: simulator.pool(),
            folder: simulator.folder(),
            datastore: "LocalDS_0".into(),
            directory: "vch1".into(),
        },
        user_network: Some("VM Network".into()),
        guests_are_here: true,
        state: simulator.directory.path().join("state"),
    }
}

/// Makes an image disk and a boot image; the disk's file.
pub fn image(simulator: &Simulator) -> PathBuf {
    let store = simulator.directory.path().join("store/images");
    let store = store.join("ab".repeat(32));
    std::fs::create_dir_all(&store).unwrap();
    let image = store.join("image.vmdk");
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&image)
        .unwrap();
    let mut disk = image::vmdk::SparseDisk::new(file);
    disk.write(0, &[0x5a; 70_000]).unwrap();
    disk.identify(&image::digest::Digest::of(b"image"));
    disk.finish(64 << 20).unwrap();
    let iso = simulator.directory.path().join("boot.iso");
    std::fs::write(iso, vec![7; 300_000]).unwrap();
    image
}

/// A container's disk, new.
pub fn container(simulator: &Simulator, image: &Path, name: &str) -> PathBuf {
    let directory = simulator.directory.path().join("containers").join(name);
    std::fs::create_dir_all(&directory).unwrap();
    let disk = directory.join("disk.vmdk");
    image::vmdk::create_child(image, &disk).unwrap();
    disk
}

pub fn spec(simulator: &Simulator, name: &str, disk: &Path, start: Start) -> MachineSpec {
    MachineSpec {
        id: MachineId::random().unwrap(),
        name: name.into(),
        cpus: Cpus::ONE,
        memory: Memory::from_mib(128).unwrap(),
        boot: Boot::Iso {
            iso: simulator.directory.path().join("boot.iso"),
            firmware: Firmware::Bios,
        },
        start,
        hardware: Hardware::Vmware,
        channel: ChannelKind::Serial,
        disks: vec![disk_spec("root", disk)],
        nics: vec![NicSpec {
            mac: "02:42:aa:bb:cc:dd".parse().unwrap(),
            attachment: Attachment::PortGroup("VM Network".into()),
        }],
        debugger: None,
    }
}

pub fn disk_spec(serial: &str, path: &Path) -> DiskSpec {
    DiskSpec {
        source: DiskSource::File(path.to_owned()),
        format: DiskFormat::Vmdk,
        access: DiskAccess::ReadWrite,
        serial: DiskSerial::new(serial).unwrap(),
    }
}

pub fn key() -> ChannelKey {
    ChannelKey::from_bytes([0x17; 32])
}

pub fn disks_on_datastore(simulator: &Simulator) -> usize {
    let listing = std::fs::read_dir(simulator.datastore().join("vch1/disks")).unwrap();
    let names = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.ends_with(".vmdk") && !name.ends_with("-flat.vmdk"))
        .count()
}

/// What another client sees of the machines: their references and devices.
pub async fn others_view(simulator: &Simulator) -> Vec<(ManagedObject, Node)> {
    let client = simulator.client().await.unwrap();
    let search = FindByInventoryPath {
        _this: client.content().searchIndex.clone().unwrap(),
        inventoryPath: simulator.pool(),
    };
    let pool = client.call(&search).await.unwrap().unwrap();
    let read = RetrievePropertiesEx {
        _this: client.content().propertyCollector.clone(),
        specSet: vec![PropertyFilterSpec {
            propSet: vec![PropertySpec {
                r#type: "VirtualMachine".into(),
                all: None,
                pathSet: vec!["config".into()],
            }],
            objectSet: vec![ObjectSpec {
                obj: pool,
                skip: Some(true),
                selectSet: vec![Selection::from(TraversalSpec {
                    r#type: "ResourcePool".into(),
                    path: "vm".into(),
                    skip: Some(false),
                    ..TraversalSpec::default()
                })],
            }],
            reportMissingObjectsInResults: None,
        }],
        options: RetrieveOptions::default(),
    };
    let found = client.call(&read).await.unwrap().unwrap_or_default();
    client.log_out().await.unwrap();
    let machines = found
        .objects
        .into_iter()
        .map(|mut object| (object.obj, object.propSet.remove(0).val.0));
    machines.collect()
}

pub fn devices<'a>(config: &'a Node, kind: &'a str) -> Vec<&'a Node> {
    let hardware = config.child("hardware").unwrap();
    hardware
        .children_named("device")
        .filter(|device| device.type_name() == kind)
        .collect()
}
