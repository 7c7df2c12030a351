//! The driver against the simulator of vCenter and ESXi: every operation, whoever else interferes.

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

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_what_its_specification_says() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_machine_is_what_its_specification_says", kind).await else {
            return;
        };
        let disk = rig.container("web");
        let spec = rig.spec("web", &disk);
        let mut events = rig.driver.events();
        let before = SystemTime::now();
        let id = rig
            .driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap();
        assert_eq!(id, spec.id);
        assert_eq!(next(&mut events, &id).await, Notice::Created);
        let machine = rig.driver.inspect(&id).await.unwrap();
        assert_eq!(machine.spec, spec);
        assert_eq!(machine.metadata, metadata());
        assert_eq!(
            machine.power,
            PowerState::Off {
                cause: StopCause::NeverStarted
            }
        );
        assert!(machine.created >= before - Duration::from_secs(1));
        assert_eq!((machine.started, machine.stopped), (UNIX_EPOCH, UNIX_EPOCH));
        assert_eq!(machine.began, None);
        assert_eq!(rig.driver.list().await.unwrap(), [machine]);
        assert_eq!(*rig.ports.admitted.lock().unwrap(), [id, id]);

        let all = rig.others_view().await;
        let (_, config) = &all[0];
        assert_eq!(config.text_of("uuid"), Some(id.to_string().as_str()));
        assert_eq!(
            config.text_of("instanceUuid"),
            Some(id.to_string().as_str())
        );
        assert_eq!(config.at(&["hardware", "memoryMB"]).unwrap().text, "128");
        assert_eq!(config.text_of("cpuHotAddEnabled"), Some("true"));
        assert_eq!(config.text_of("memoryHotAddEnabled"), Some("true"));
        assert_eq!(devices(config, "ParaVirtualSCSIController").len(), 1);
        let disks = devices(config, "VirtualDisk");
        assert_eq!(disks.len(), 1);
        let backing = disks[0].child("backing").unwrap();
        assert!(
            backing
                .text_of("fileName")
                .unwrap()
                .starts_with("[LocalDS_0] vch1/disks/")
        );
        let image = format!("[LocalDS_0] vch1/images/{}.vmdk", "ab".repeat(32));
        assert_eq!(backing.at(&["parent", "fileName"]).unwrap().text, image);
        assert_eq!(disks[0].text_of("capacityInKB"), Some("65536"));
        let nic = devices(config, "VirtualVmxnet3")[0];
        assert_eq!(nic.text_of("macAddress"), Some("02:42:aa:bb:cc:dd"));
        assert_eq!(
            nic.at(&["backing", "deviceName"]).unwrap().text,
            "VM Network"
        );
        let ports: Vec<_> = devices(config, "VirtualSerialPort")
            .iter()
            .map(|port| port.child("backing").unwrap())
            .map(|backing| {
                let text = |name| backing.text_of(name).unwrap().to_owned();
                (text("serviceURI"), text("direction"), text("proxyURI"))
            })
            .collect();
        let port = |service: &str| {
            (
                service.to_owned(),
                "client".to_owned(),
                "telnet://controller.test:2377".to_owned(),
            )
        };
        assert_eq!(ports, [port(CONSOLE), port(CHANNEL)]);
        let boot = devices(config, "VirtualCdrom");
        let boot = boot
            .iter()
            .find_map(|drive| Some(drive.at(&["backing", "fileName"])?.text.clone()));
        let boot = boot.expect("a CD-ROM drive with an image");
        let path = boot.strip_prefix("[LocalDS_0] ").unwrap();
        assert_eq!(
            std::fs::read(rig.on_datastore(path)).unwrap(),
            vec![7; 300_000]
        );
        let disk = format!("vch1/images/{}.vmdk", "ab".repeat(32));
        assert!(rig.on_datastore(&disk).exists());
        let option = |key: &str| {
            let mut all = config.children_named("extraConfig");
            all.find(|option| option.text_of("key") == Some(key))
                .map(|option| option.text_of("value").unwrap().to_owned())
        };
        assert_eq!(option("guestinfo.tether.key"), Some("17".repeat(32)));
        assert_eq!(
            option("guestinfo.tether.channel").as_deref(),
            Some("serial:ttyS1")
        );
        assert_eq!(option("guestinfo.tether.disks").as_deref(), Some("0=root"));
        assert_eq!(
            option("monitor_control.restrict_backdoor").as_deref(),
            Some("TRUE")
        );

        let again = rig
            .driver
            .create(spec, key(), metadata())
            .await
            .unwrap_err();
        assert!(
            matches!(again.cause(), Cause::AlreadyExists { .. }),
            "{again:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_runs_stops_and_goes() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_machine_runs_stops_and_goes", kind).await else {
            return;
        };
        let id = rig.make("life").await;
        let driver = &rig.driver;
        let mut events = driver.events();
        let error = driver.connect_channel(&id).await.unwrap_err();
        assert!(
            matches!(error.cause(), Cause::WrongState { .. }),
            "{error:?}"
        );
        let error = driver.suspend(&id).await.unwrap_err();
        assert!(
            matches!(error.cause(), Cause::WrongState { .. }),
            "{error:?}"
        );

        driver.power_on(&id).await.unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::PoweredOn);
        let machine = driver.inspect(&id).await.unwrap();
        assert_eq!(machine.power, PowerState::On);
        assert_eq!(machine.began, Some(Started::Booted));
        let error = driver.power_on(&id).await.unwrap_err();
        assert!(
            matches!(
                error.cause(),
                Cause::WrongState {
                    state: PowerState::On
                }
            ),
            "{error:?}"
        );

        let mut channel = driver.connect_channel(&id).await.unwrap();
        assert_eq!(channel.key.as_bytes(), key().as_bytes());
        let mut guest = rig.ports.port(id, CHANNEL).await;
        guest.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        channel.io.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");

        let mut followed = driver.follow_console(&id).await.unwrap();
        let mut console = rig.ports.port(id, CONSOLE).await;
        console.write_all(b"Linux version").await.unwrap();
        assert_eq!(followed.recv().await.unwrap(), b"Linux version");
        assert_eq!(driver.console(&id).await.unwrap(), b"Linux version");

        driver.suspend(&id).await.unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::Suspended);
        driver.suspend(&id).await.unwrap();
        assert_eq!(rig.power(&id).await, PowerState::Suspended);
        driver.resume(&id).await.unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::Resumed);
        driver.resume(&id).await.unwrap();

        let used = driver.statistics(&id).await.unwrap();
        assert_eq!(used.memory_given, 128 << 20);
        assert_eq!(used.disks.len(), 1);
        assert!(used.memory_resident > 0, "{used:?}");

        driver.power_off(&id, PowerOff::Cut).await.unwrap();
        driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert_eq!(
            next(&mut events, &id).await,
            Notice::PoweredOff(StopCause::PoweredOff)
        );
        let off = PowerState::Off {
            cause: StopCause::PoweredOff,
        };
        let stopped = driver.inspect(&id).await.unwrap();
        assert_eq!(stopped.power, off);
        assert!(stopped.stopped >= stopped.started && stopped.started > UNIX_EPOCH);
        assert_eq!(
            driver.console(&id).await.unwrap(),
            b"Linux version",
            "it is there when it is off"
        );
        assert_eq!(followed.recv().await, None, "followers end");
        let error = driver.statistics(&id).await.unwrap_err();
        assert!(
            matches!(error.cause(), Cause::WrongState { .. }),
            "{error:?}"
        );

        // A second run is another, and a third controller knows which.
        driver.power_on(&id).await.unwrap();
        let second = driver.inspect(&id).await.unwrap();
        assert!(second.started > stopped.started);
        let rig = rig.again().await;
        assert_eq!(rig.driver.inspect(&id).await.unwrap(), second);
        let mut events = rig.driver.events();
        rig.driver.power_off(&id, PowerOff::Ask).await.unwrap();
        assert_eq!(
            next(&mut events, &id).await,
            Notice::PoweredOff(StopCause::GuestShutdown)
        );
        let third = rig.driver.inspect(&id).await.unwrap();
        assert_eq!(
            third.power,
            PowerState::Off {
                cause: StopCause::GuestShutdown
            }
        );
        let rig = rig.again().await;
        assert_eq!(rig.driver.inspect(&id).await.unwrap(), third);

        let mut events = rig.driver.events();
        rig.driver.power_on(&id).await.unwrap();
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::PoweredOn);
        assert_eq!(
            next(&mut events, &id).await,
            Notice::PoweredOff(StopCause::PoweredOff)
        );
        assert_eq!(next(&mut events, &id).await, Notice::Destroyed);
        assert_eq!(rig.driver.list().await.unwrap(), []);
        let error = rig.driver.destroy(&id).await.unwrap_err();
        assert!(matches!(error.cause(), Cause::NotFound { .. }), "{error:?}");
        assert_eq!(rig.others_view().await, []);
        assert_eq!(*rig.ports.admitted.lock().unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_and_start_are_three_calls() {
    for kind in KINDS {
        let Some(rig) = Rig::start("create_and_start_are_three_calls", kind).await else {
            return;
        };
        rig.make("first").await;
        let before = rig.driver.calls();
        let id = rig.make("second").await;
        rig.driver.power_on(&id).await.unwrap();
        let mut calls: Vec<(&str, u64)> = rig
            .driver
            .calls()
            .into_iter()
            .map(|(name, count)| (name, count - before.get(name).copied().unwrap_or_default()))
            .filter(|(name, count)| *count > 0 && *name != "WaitForUpdatesEx")
            .collect();
        calls.sort();
        assert_eq!(
            calls,
            [
                ("CreateVM_Task", 1),
                ("PowerOnVM_Task", 1),
                ("ReconfigVM_Task", 1)
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_a_machine_is_told_and_believed() {
    for kind in KINDS {
        let Some(rig) = Rig::start("what_others_do", kind).await else {
            return;
        };
        let id = rig.make("shared").await;
        let object = rig.object(&id).await;
        let other = rig.simulator.client().await.unwrap();
        let mut events = rig.driver.events();
        other
            .call(&PowerOnVM_Task {
                _this: object.clone(),
                host: None,
            })
            .await
            .unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::PoweredOn);
        other
            .call(&PowerOffVM_Task {
                _this: object.clone(),
            })
            .await
            .unwrap();
        assert_eq!(
            next(&mut events, &id).await,
            Notice::PoweredOff(StopCause::PoweredOff)
        );
        rig.driver.power_on(&id).await.unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::PoweredOn);
        other
            .call(&ShutdownGuest {
                _this: object.clone(),
            })
            .await
            .unwrap();
        assert_eq!(
            next(&mut events, &id).await,
            Notice::PoweredOff(StopCause::GuestShutdown)
        );
        assert_eq!(
            rig.power(&id).await,
            PowerState::Off {
                cause: StopCause::GuestShutdown
            }
        );
        other
            .call(&Destroy_Task {
                _this: object.clone(),
            })
            .await
            .unwrap();
        assert_eq!(next(&mut events, &id).await, Notice::Destroyed);
        let error = rig.driver.inspect(&id).await.unwrap_err();
        assert!(matches!(error.cause(), Cause::NotFound { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_no_controller_looks_is_found_out() {
    for kind in KINDS {
        let Some(rig) = Rig::start("what_happens_while_no_controller_looks", kind).await else {
            return;
        };
        let (cut, ended, gone) = (
            rig.make("cut").await,
            rig.make("ended").await,
            rig.make("gone").await,
        );
        for id in [cut, ended, gone] {
            rig.driver.power_on(&id).await.unwrap();
        }
        let objects = [
            rig.object(&cut).await,
            rig.object(&ended).await,
            rig.object(&gone).await,
        ];
        let Rig {
            simulator,
            ports,
            driver,
            image,
        } = rig;
        drop(driver);
        let other = simulator.client().await.unwrap();
        let [cut_object, ended_object, gone_object] = objects;
        for object in [&cut_object, &gone_object] {
            other
                .call(&PowerOffVM_Task {
                    _this: object.clone(),
                })
                .await
                .unwrap();
        }
        other
            .call(&ShutdownGuest {
                _this: ended_object,
            })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        other
            .call(&Destroy_Task { _this: gone_object })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let driver = Vsphere::open(options(&simulator), ports.clone())
            .await
            .unwrap();
        let rig = Rig {
            simulator,
            ports,
            driver,
            image,
        };
        let repairs = rig.driver.reconcile().await.unwrap();
        assert_eq!(repairs.len(), 2, "{repairs:?}");
        assert_eq!(
            rig.power(&cut).await,
            PowerState::Off {
                cause: StopCause::PoweredOff
            }
        );
        assert_eq!(
            rig.power(&ended).await,
            PowerState::Off {
                cause: StopCause::GuestShutdown
            }
        );
        assert_eq!(rig.driver.list().await.unwrap().len(), 2);
        assert_eq!(rig.driver.reconcile().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_get_lost_and_sessions_that_end_change_nothing() {
    for kind in KINDS {
        let Some(rig) = Rig::start("answers_that_get_lost", kind).await else {
            return;
        };
        let lose = |method: &str| {
            rig.simulator
                .rule(json!({"method": method, "do": "drop-after", "times": 1}));
        };
        let off = PowerState::Off {
            cause: StopCause::PoweredOff,
        };
        lose("CreateVM_Task");
        let id = rig.make("lost").await;
        rig.simulator.end_sessions();
        rig.driver.power_on(&id).await.unwrap();
        assert_eq!(rig.power(&id).await, PowerState::On);
        lose("SuspendVM_Task");
        rig.driver.suspend(&id).await.unwrap();
        rig.simulator
            .rule(json!({"method": "PowerOnVM_Task", "do": "expire-session", "times": 1}));
        rig.driver.resume(&id).await.unwrap();
        rig.simulator.end_sessions();
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert_eq!(rig.power(&id).await, off);
        lose("PowerOnVM_Task");
        rig.driver.power_on(&id).await.unwrap();
        assert_eq!(rig.power(&id).await, PowerState::On);
        lose("PowerOffVM_Task");
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert_eq!(rig.power(&id).await, off);
        lose("Destroy_Task");
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(rig.driver.list().await.unwrap(), []);
        let calls = rig.simulator.calls();
        // The upload's machine is destroyed as well.
        assert_eq!(
            (calls["CreateVM_Task"], calls["Destroy_Task"]),
            (1, 2),
            "{calls:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_failed_after_it_was_done_is_done() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_task_that_failed_after", kind).await else {
            return;
        };
        for method in ["CreateVM_Task", "PowerOnVM_Task", "PowerOffVM_Task"] {
            rig.simulator.rule(json!({"method": method, "do": "task-fault-after", "fault": "HostCommunication", "times": 1}));
        }
        let id = rig.make("after").await;
        rig.driver.power_on(&id).await.unwrap();
        assert_eq!(rig.power(&id).await, PowerState::On);
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert_eq!(
            rig.power(&id).await,
            PowerState::Off {
                cause: StopCause::PoweredOff
            }
        );
        rig.simulator.rule(json!({"method": "Destroy_Task", "do": "task-fault-after", "fault": "HostCommunication", "times": 1}));
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(rig.others_view().await, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_machine_can_be_powered_off_and_removed() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_suspended_machine", kind).await else {
            return;
        };
        let (off, gone) = (rig.make("off").await, rig.make("gone").await);
        for id in [off, gone] {
            rig.driver.power_on(&id).await.unwrap();
            rig.driver.suspend(&id).await.unwrap();
            let error = rig.driver.power_on(&id).await.unwrap_err();
            assert!(
                matches!(
                    error.cause(),
                    Cause::WrongState {
                        state: PowerState::Suspended
                    }
                ),
                "{error:?}"
            );
        }
        rig.driver.power_off(&off, PowerOff::Cut).await.unwrap();
        assert_eq!(
            rig.power(&off).await,
            PowerState::Off {
                cause: StopCause::PoweredOff
            }
        );
        rig.driver.destroy(&gone).await.unwrap();
        assert_eq!(rig.driver.list().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_vch_has_one_owner_at_a_time() {
    let Some(rig) = Rig::start("a_vch_has_one_owner", Kind::VCenter).await else {
        return;
    };
    let second = Vsphere::open(options(&rig.simulator), rig.ports.clone())
        .await
        .unwrap_err();
    assert!(
        chain(&second).contains("another process owns this VCH"),
        "{}",
        chain(&second)
    );
    rig.again().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_made_or_started_leaves_nothing_and_says_why() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_machine_that_cannot_be_made", kind).await else {
            return;
        };
        let disk = rig.container("bad");
        let mut spec = rig.spec("bad", &disk);
        spec.nics[0].attachment = Attachment::PortGroup("no such".into());
        let error = rig
            .driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap_err();
        assert!(chain(&error).contains("VM Network"), "{}", chain(&error));
        spec.nics.clear();
        rig.simulator.rule(json!({"method": "CreateVM_Task", "do": "task-fault", "fault": "NoPermission", "message": "not you", "times": 1}));
        let error = rig
            .driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap_err();
        let said = chain(&error);
        assert!(
            said.contains("NoPermission")
                && said.contains("not you")
                && said.contains("PRIVILEGES.md"),
            "{said}"
        );
        assert_eq!(rig.driver.list().await.unwrap(), []);
        // What stood in the way is gone.
        rig.driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap();
        rig.simulator.rule(json!({"method": "PowerOnVM_Task", "do": "task-fault", "fault": "InsufficientResourcesFault", "times": 1}));
        let error = rig.driver.power_on(&spec.id).await.unwrap_err();
        assert!(
            chain(&error).contains("not enough left"),
            "{}",
            chain(&error)
        );
        let machine = rig.driver.inspect(&spec.id).await.unwrap();
        assert_eq!(
            machine.power,
            PowerState::Off {
                cause: StopCause::NeverStarted
            }
        );
        assert_eq!(machine.began, None);
        rig.driver.power_on(&spec.id).await.unwrap();
        spec.boot = Boot::Kernel {
            kernel: "k".into(),
            initramfs: "i".into(),
            append: String::new(),
        };
        let error = rig
            .driver
            .create(spec, key(), metadata())
            .await
            .unwrap_err();
        assert!(
            matches!(error.cause(), Cause::Unsupported { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_and_go_and_are_the_same_for_who_comes_later() {
    for kind in KINDS {
        let Some(rig) = Rig::start("disks_come_and_go", kind).await else {
            return;
        };
        let disk = rig.container("files");
        let spec = rig.spec("files", &disk);
        let id = rig
            .driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap();
        rig.driver.power_on(&id).await.unwrap();
        let volume = rig.simulator.directory.path().join("volume.vmdk");
        image::vmdk::create_scratch(32 << 20, image::ext4::Label::new("vol").unwrap(), &volume)
            .unwrap();
        rig.driver
            .attach_disk(&id, disk_spec("data", &volume))
            .await
            .unwrap();
        let error = rig
            .driver
            .attach_disk(&id, disk_spec("data", &volume))
            .await
            .unwrap_err();
        assert!(
            matches!(error.cause(), Cause::AlreadyExists { .. }),
            "{error:?}"
        );
        let view = rig.others_view().await;
        let disks = devices(&view[0].1, "VirtualDisk");
        assert_eq!(disks.len(), 2);
        assert_eq!(
            disks[1].at(&["backing", "diskMode"]).unwrap().text,
            "independent_persistent"
        );
        assert_eq!(rig.driver.inspect(&id).await.unwrap().spec.disks.len(), 2);
        let data = DiskSerial::new("data").unwrap();
        rig.driver.detach_disk(&id, &data).await.unwrap();
        let error = rig.driver.detach_disk(&id, &data).await.unwrap_err();
        assert!(matches!(error.cause(), Cause::NotFound { .. }), "{error:?}");
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert_eq!(rig.disks_on_datastore(), 2);

        // A helper has the same disk, also by a controller that comes later, and leaves it there.
        let rig = rig.again().await;
        let mut helper = rig.spec("files-helper", &disk);
        helper.nics.clear();
        let helper = rig
            .driver
            .create(helper, key(), Metadata::new())
            .await
            .unwrap();
        let view = rig.others_view().await;
        let files: Vec<&str> = view
            .iter()
            .flat_map(|(_, config)| devices(config, "VirtualDisk"))
            .map(|disk| disk.at(&["backing", "fileName"]).unwrap().text.as_str())
            .collect();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0], files[1]);
        rig.driver.destroy(&helper).await.unwrap();
        assert_eq!(rig.disks_on_datastore(), 2);
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(rig.disks_on_datastore(), 2, "disks are the caller's");
        std::fs::remove_file(&disk).unwrap();
        rig.driver.reconcile().await.unwrap();
        assert_eq!(rig.disks_on_datastore(), 1, "the volume's");
        assert!(
            rig.on_datastore(&format!("vch1/images/{}.vmdk", "ab".repeat(32)))
                .exists()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cpus_and_memory_grow_at_once_and_shrink_at_the_next_start() {
    for kind in KINDS {
        let Some(rig) = Rig::start("cpus_and_memory_grow", kind).await else {
            return;
        };
        let id = rig.make("grow").await;
        rig.driver.power_on(&id).await.unwrap();
        let change = |cpus, mib| Reconfigure {
            cpus: Cpus::new(cpus).unwrap(),
            memory: Memory::from_mib(mib).unwrap(),
        };
        let hardware = async |name: &str| {
            let view = rig.others_view().await;
            view[0].1.at(&["hardware", name]).unwrap().text.clone()
        };
        let driver = &rig.driver;
        assert_eq!(
            driver.reconfigure(&id, change(2, 256)).await.unwrap(),
            Applied::Live
        );
        assert_eq!(
            (
                hardware("numCPU").await.as_str(),
                hardware("memoryMB").await.as_str()
            ),
            ("2", "256")
        );
        assert_eq!(
            driver.reconfigure(&id, change(1, 128)).await.unwrap(),
            Applied::AtPowerOn
        );
        assert_eq!(hardware("numCPU").await, "2");
        assert_eq!(driver.inspect(&id).await.unwrap().spec.cpus.count(), 1);
        driver.power_off(&id, PowerOff::Cut).await.unwrap();
        driver.power_on(&id).await.unwrap();
        assert_eq!(
            (
                hardware("numCPU").await.as_str(),
                hardware("memoryMB").await.as_str()
            ),
            ("1", "128")
        );
        // A server that takes no more while it runs makes it so at the next start.
        rig.simulator.rule(json!({"method": "ReconfigVM_Task", "do": "task-fault", "fault": "NotSupported", "times": 1}));
        assert_eq!(
            driver.reconfigure(&id, change(4, 512)).await.unwrap(),
            Applied::AtPowerOn
        );
        driver.power_off(&id, PowerOff::Cut).await.unwrap();
        driver.power_on(&id).await.unwrap();
        assert_eq!(hardware("numCPU").await, "4");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_set_and_removed_all_at_once() {
    for kind in KINDS {
        let Some(rig) = Rig::start("metadata_is_set", kind).await else {
            return;
        };
        let id = rig.make("meta").await;
        let set = |key: &str, value: &str| MetadataChange::Set {
            key: key.into(),
            value: value.into(),
        };
        let remove = |key: &str| MetadataChange::Remove { key: key.into() };
        let changes = vec![
            set("long", "short"),
            set("new", "1"),
            remove("kind"),
            remove("absent"),
        ];
        rig.driver.set_metadata(&id, changes).await.unwrap();
        let expected: Metadata = [("long", "short"), ("new", "1"), ("empty", "")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        assert_eq!(rig.driver.inspect(&id).await.unwrap().metadata, expected);
        let rig = rig.again().await;
        assert_eq!(rig.driver.inspect(&id).await.unwrap().metadata, expected);
        let error = rig
            .driver
            .set_metadata(&id, vec![set("huge", &"x".repeat(4 << 20))])
            .await
            .unwrap_err();
        assert!(chain(&error).contains("fit"), "{}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_cut_short_is_finished_by_the_next_controller() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_removal_that_was_cut_short", kind).await else {
            return;
        };
        let (id, stays) = (rig.make("half").await, rig.make("stays").await);
        rig.simulator.rule(json!({"method": "Destroy_Task", "do": "task-fault", "fault": "HostCommunication", "times": 1}));
        rig.driver.destroy(&id).await.unwrap_err();
        let rig = rig.again().await;
        let listed: Vec<MachineId> = rig
            .driver
            .list()
            .await
            .unwrap()
            .into_iter()
            .map(|machine| machine.id)
            .collect();
        assert_eq!(listed, [stays]);
        let repairs = rig.driver.reconcile().await.unwrap();
        assert_eq!(repairs.len(), 1);
        assert_eq!(repairs[0].id, id);
        assert_eq!(rig.others_view().await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_disk_can_come_by_an_import_lease() {
    for kind in KINDS {
        let Some(rig) = Rig::start("an_import_lease", kind).await else {
            return;
        };
        let id = rig.make("leased").await;
        // Without guests the simulator throws away what is sent to a lease; what can be seen is that the
        // disk is in its place and nothing is left of the machine it came with.
        assert!(
            rig.on_datastore(&format!("vch1/images/{}.vmdk", "ab".repeat(32)))
                .exists()
        );
        assert_eq!(rig.others_view().await.len(), 1);
        let calls = rig.driver.calls();
        for method in [
            "ImportVApp",
            "uploading to",
            "HttpNfcLeaseComplete",
            "MoveVirtualDisk_Task",
        ] {
            assert_eq!(calls[method], 1, "{method} in {calls:?}");
        }
        rig.make("second").await;
        assert_eq!(rig.driver.calls()["ImportVApp"], 1, "once for each image");
        rig.driver.power_on(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_machines_at_once_are_made_started_and_removed() {
    let Some(rig) = Rig::start("many_machines_at_once", Kind::VCenter).await else {
        return;
    };
    // More tasks than a server lists as recent: 200.
    let names: Vec<String> = (0..200).map(|number| format!("many{number}")).collect();
    let ids = join_all(names.iter().map(|name| rig.make(name))).await;
    for started in join_all(ids.iter().map(|id| rig.driver.power_on(id))).await {
        started.unwrap();
    }
    let calls = rig.driver.calls();
    assert_eq!(calls["CreateVM_Task"], 200);
    assert_eq!(calls["PowerOnVM_Task"], 200);
    let uploads = (calls["uploading"], calls["ImportVApp"]);
    assert_eq!(uploads, (1, 1), "one boot image, one image disk: {calls:?}");
    let all = rig.driver.list().await.unwrap();
    assert!(all.len() == 200 && all.iter().all(|machine| machine.power == PowerState::On));
    for gone in join_all(ids.iter().map(|id| rig.driver.destroy(id))).await {
        gone.unwrap();
    }
    assert_eq!(rig.others_view().await, []);
}

#[tokio::test]
async fn a_place_that_is_not_there_is_reported_all_at_once() {
    for kind in KINDS {
        let Some(simulator) = Simulator::start("a_place_that_is_not_there", kind) else {
            return;
        };
        let mut options = options(&simulator);
        options.place.pool = "/nowhere/pool".into();
        options.place.datastore = "no-such".into();
        let error = Vsphere::open(options, Arc::new(Ports::default()))
            .await
            .unwrap_err();
        let said = chain(&error);
        assert!(
            said.contains("/nowhere/pool") && said.contains("no-such"),
            "{said}"
        );
    }
}
