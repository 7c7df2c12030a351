//! The driver against the simulator of vCenter and ESXi: every operation, whoever else interferes.

mod failures;
mod machines;
mod power;
mod published;
#[path = "../simulator/mod.rs"]
mod simulator;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::future::join_all;
use hypervisor::{
    Applied, Attachment, Boot, Cause, ChannelIo, ChannelKey, ChannelKind, Cpus, DiskAccess,
    DiskFormat, DiskSerial, DiskSource, DiskSpec, Events, Firmware, Hardware, Hypervisor,
    MachineEvent, MachineId, MachineSpec, Memory, Metadata, MetadataChange, Next, NicSpec, Notice,
    PowerOff, PowerState, Reconfigure, Start, Started, StopCause,
};
use image::disk::Disk as _;
use serde_json::json;
use simulator::{KINDS, Kind, Simulator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use vsphere::serial::{CHANNEL, CONSOLE, SerialPorts};
use vsphere::session::chain;
use vsphere::soap::Node;
use vsphere::types::{
    Destroy_Task, FindByInventoryPath, ManagedObject, ObjectSpec, PowerOffVM_Task, PowerOnVM_Task,
    PropertyFilterSpec, PropertySpec, RetrieveOptions, RetrievePropertiesEx, Selection,
    ShutdownGuest, TraversalSpec,
};
use vsphere::{Options, PlaceNames, Vsphere};

/// Serial ports whose other ends the test has.
#[derive(Default)]
struct Ports {
    dialled: Mutex<Vec<(MachineId, String, DuplexStream)>>,
    admitted: Mutex<Vec<MachineId>>,
}

#[async_trait]
impl SerialPorts for Ports {
    fn proxy_uri(&self) -> String {
        "telnet://controller.test:2377".into()
    }

    async fn connect(&self, id: MachineId, service: &str) -> std::io::Result<Box<dyn ChannelIo>> {
        let (own, other) = tokio::io::duplex(1 << 16);
        self.dialled
            .lock()
            .unwrap()
            .push((id, service.to_owned(), other));
        Ok(Box::new(own))
    }

    fn admit(&self, id: MachineId) {
        self.admitted.lock().unwrap().push(id);
    }

    fn forget(&self, id: MachineId) {
        self.admitted.lock().unwrap().retain(|other| *other != id);
    }
}

impl Ports {
    /// The machine's end of a port that was connected to.
    async fn port(&self, id: MachineId, service: &str) -> DuplexStream {
        for _ in 0..500 {
            {
                let mut dialled = self.dialled.lock().unwrap();
                let found = dialled
                    .iter()
                    .position(|(of, name, _)| *of == id && name == service);
                if let Some(found) = found {
                    return dialled.remove(found).2;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nobody connects to {service} of {id}");
    }
}

struct Rig {
    simulator: Simulator,
    ports: Arc<Ports>,
    driver: Vsphere,
    image: PathBuf,
}

fn options(simulator: &Simulator) -> Options {
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

impl Rig {
    async fn start(test: &str, kind: Kind) -> Option<Self> {
        let simulator = Simulator::start(test, kind)?;
        let store = simulator
            .directory
            .path()
            .join("store/images")
            .join("ab".repeat(32));
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
        std::fs::write(
            simulator.directory.path().join("boot.iso"),
            vec![7; 300_000],
        )
        .unwrap();
        let ports = Arc::new(Ports::default());
        let driver = Vsphere::open(options(&simulator), ports.clone()).await;
        let driver = driver.unwrap_or_else(|error| panic!("{}", chain(&error)));
        Some(Self {
            simulator,
            ports,
            driver,
            image,
        })
    }

    /// The driver of a controller that comes after this one.
    async fn again(self) -> Self {
        let Self {
            simulator,
            ports,
            driver,
            image,
        } = self;
        drop(driver);
        let driver = Vsphere::open(options(&simulator), ports.clone())
            .await
            .unwrap();
        Self {
            simulator,
            ports,
            driver,
            image,
        }
    }

    fn container(&self, name: &str) -> PathBuf {
        let directory = self
            .simulator
            .directory
            .path()
            .join("containers")
            .join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let disk = directory.join("disk.vmdk");
        image::vmdk::create_child(&self.image, &disk).unwrap();
        disk
    }

    fn spec(&self, name: &str, disk: &Path) -> MachineSpec {
        MachineSpec {
            id: MachineId::random().unwrap(),
            name: name.into(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(128).unwrap(),
            boot: Boot::Iso {
                iso: self.simulator.directory.path().join("boot.iso"),
                firmware: Firmware::Bios,
            },
            start: Start::Boot,
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

    async fn make(&self, name: &str) -> MachineId {
        let disk = self.container(name);
        let spec = self.spec(name, &disk);
        let made = self.driver.create(spec, key(), metadata()).await;
        made.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    async fn power(&self, id: &MachineId) -> PowerState {
        self.driver.inspect(id).await.unwrap().power
    }

    fn on_datastore(&self, path: &str) -> PathBuf {
        self.simulator.datastore().join(path)
    }

    fn disks_on_datastore(&self) -> usize {
        let listing = std::fs::read_dir(self.on_datastore("vch1/disks")).unwrap();
        let names = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.ends_with(".vmdk") && !name.ends_with("-flat.vmdk"))
            .count()
    }

    /// What another client sees of the machines: their references and devices.
    async fn others_view(&self) -> Vec<(ManagedObject, Node)> {
        let client = self.simulator.client().await.unwrap();
        let search = FindByInventoryPath {
            _this: client.content().searchIndex.clone().unwrap(),
            inventoryPath: self.simulator.pool(),
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
        let machines = found
            .objects
            .into_iter()
            .map(|mut object| (object.obj, object.propSet.remove(0).val.0));
        machines.collect()
    }

    async fn object(&self, id: &MachineId) -> ManagedObject {
        let all = self.others_view().await;
        let found = all
            .into_iter()
            .find(|(_, config)| config.text_of("instanceUuid") == Some(&id.to_string()));
        found.expect("the machine is there").0
    }
}

fn key() -> ChannelKey {
    ChannelKey::from_bytes([0x17; 32])
}

fn metadata() -> Metadata {
    [
        ("kind", "container"),
        ("long", &*"{\"a\": \"ü\n\"}".repeat(600)),
        ("empty", ""),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn disk_spec(serial: &str, path: &Path) -> DiskSpec {
    DiskSpec {
        source: DiskSource::File(path.to_owned()),
        format: DiskFormat::Vmdk,
        access: DiskAccess::ReadWrite,
        serial: DiskSerial::new(serial).unwrap(),
    }
}

/// The next event of a machine.
async fn next(events: &mut Events, id: &MachineId) -> Notice {
    let next = async {
        loop {
            match events.next().await {
                Next::Event(MachineEvent { id: of, notice }) if of == *id => return notice,
                Next::Event(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), next)
        .await
        .expect("an event comes")
}

fn devices<'a>(config: &'a Node, kind: &'a str) -> Vec<&'a Node> {
    let hardware = config.child("hardware").unwrap();
    hardware
        .children_named("device")
        .filter(|device| device.type_name() == kind)
        .collect()
}
