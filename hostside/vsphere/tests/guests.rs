//! Real guests behind the simulator: tether boots from its ISO on a machine the driver made, dials the
//! concentrator, and runs a program from an image disk that came by an import lease.
//!
//! `VCH_BOOT_IMAGE` names the directory of the boot image (scripts/boot-image prints it) and `VCH_SAMPLES`
//! that of the sample images (scripts/sample-image makes them).

mod simulator;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor::{
    Attachment, Boot, Carrier, Channel, ChannelIo, ChannelKey, ChannelKind, Cpus, DiskAccess,
    DiskFormat, DiskSerial, DiskSource, DiskSpec, Firmware, Hardware, Hypervisor, MachineEvent,
    MachineId, MachineSpec, Memory, Metadata, Next, NicSpec, Notice, PowerOff, PowerState, Start,
    StopCause, UserNetwork,
};
use image::progress::Silent;
use image::store::Store;
use simulator::{KINDS, Kind, Simulator};
use tether_link::{Config, Link};
use tether_wire::CarrierKind;
use tether_wire::message::{
    Action, Address, DiskId, Dns, ExitStatus, Identity, Interface, InterfaceAddressing, Network,
    PidNamespace, ProcessId, ProcessSpec, Role, Root, Setup, ShutdownSpec, Stdio, User,
};
use vsphere::concentrator::Concentrator;
use vsphere::serial::Reached;
use vsphere::session::chain;
use vsphere::{Options, PlaceNames, Vsphere};

/// How long a guest may take to boot under emulation, on a machine that has other things to do.
const BOOT: Duration = Duration::from_secs(180);

struct Rig {
    simulator: Simulator,
    driver: Arc<Vsphere>,
    iso: PathBuf,
    store: Store,
    image: image::digest::Digest,
}

fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
}

impl Rig {
    async fn start(test: &str, kind: Kind) -> Option<Self> {
        let Some(boot) = std::env::var_os("VCH_BOOT_IMAGE").map(PathBuf::from) else {
            skipped(
                test,
                "VCH_BOOT_IMAGE does not name the boot image's directory (scripts/boot-image)",
            );
            return None;
        };
        let Some(samples) = std::env::var_os("VCH_SAMPLES").map(PathBuf::from) else {
            skipped(
                test,
                "VCH_SAMPLES does not name the directory of the sample images (scripts/sample-image)",
            );
            return None;
        };
        let simulator = Simulator::start_with(test, kind, &["--guests"])?;
        let store = Store::open(&simulator.directory.path().join("store")).unwrap();
        let source = format!("oci:{}", samples.join("busybox").display());
        let record = store.import(
            &source.parse().unwrap(),
            None,
            &image::import::Options::default(),
            &Silent,
        );
        let image = record.unwrap().id;
        let concentrator = Concentrator::listen("127.0.0.1:0").await.unwrap();
        let options = Options {
            session: simulator.options(),
            vch: "guests".into(),
            place: PlaceNames {
                datacenter: format!("/{}", simulator.datacenter()),
                pool: simulator.pool(),
                folder: simulator.folder(),
                datastore: "LocalDS_0".into(),
                directory: "guests".into(),
            },
            user_network: Some("VM Network".into()),
            guests_are_here: false,
            state: simulator.directory.path().join("state"),
        };
        let driver = Vsphere::open(options, Arc::new(Reached::new(concentrator, None))).await;
        Some(Self {
            driver: Arc::new(driver.unwrap_or_else(|error| panic!("{}", chain(&error)))),
            iso: boot.join("tether.iso"),
            simulator,
            store,
            image,
        })
    }

    fn spec(&self, name: &str) -> MachineSpec {
        let disk = self.simulator.directory.path().join(format!("{name}.vmdk"));
        if !disk.exists() {
            self.store.child(&self.image, name, &disk).unwrap();
        }
        MachineSpec {
            id: MachineId::random().unwrap(),
            name: name.into(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(128).unwrap(),
            boot: Boot::Iso {
                iso: self.iso.clone(),
                firmware: Firmware::Bios,
            },
            start: Start::Boot,
            hardware: Hardware::Vmware,
            channel: ChannelKind::Serial,
            disks: vec![DiskSpec {
                source: DiskSource::File(disk),
                format: DiskFormat::Vmdk,
                access: DiskAccess::ReadWrite,
                serial: DiskSerial::new("root").unwrap(),
            }],
            nics: vec![NicSpec {
                mac: "02:42:00:00:00:01".parse().unwrap(),
                attachment: Attachment::UserMode {
                    published: Vec::new(),
                },
            }],
            debugger: None,
        }
    }

    async fn power_on(&self, spec: MachineSpec) -> MachineId {
        let key = ChannelKey::random().unwrap();
        let id = self.driver.create(spec, key, Metadata::new()).await;
        let id = id.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let on = self.driver.power_on(&id).await;
        on.unwrap_or_else(|error| panic!("{}", chain(&error)));
        id
    }

    async fn link(&self, id: MachineId) -> Link {
        let first: Channel = self.driver.connect_channel(&id).await.unwrap();
        assert_eq!(first.carrier, Carrier::Serial);
        let config = Config::new(
            CarrierKind::Serial,
            tether_wire::ChannelKey(*first.key.as_bytes()),
        );
        let first: Mutex<Option<Box<dyn ChannelIo>>> = Mutex::new(Some(first.io));
        let driver = self.driver.clone();
        let connector = move || {
            let ready = first.lock().unwrap().take();
            let driver = driver.clone();
            async move {
                match ready {
                    Some(io) => Ok(io),
                    None => {
                        let channel = driver.connect_channel(&id).await;
                        channel
                            .map(|channel| channel.io)
                            .map_err(std::io::Error::other)
                    }
                }
            }
        };
        Link::spawn(connector, config).unwrap()
    }

    /// Runs a shell script to its end.
    async fn run(
        &self,
        link: &Link,
        process: u32,
        role: Role,
        script: &str,
    ) -> (String, ExitStatus) {
        let spec = ProcessSpec {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            env: Vec::new(),
            cwd: "/".into(),
            user: User::default(),
            stdio: Stdio::Pipes { stdin: false },
            limits: Vec::new(),
            role,
        };
        let mut running = link.start(ProcessId(process), spec).await.unwrap();
        let mut output = Vec::new();
        while let Some(chunk) = running.stdout.next().await.unwrap() {
            output.extend_from_slice(&chunk.data);
            running.stdout.stored(chunk.end());
        }
        let exit = running.wait().await.unwrap();
        (String::from_utf8(output).unwrap(), exit.status)
    }
}

fn setup() -> Setup {
    Setup {
        identity: Identity {
            hostname: "behind-vsphere".into(),
            domainname: String::new(),
            machine_id: [3; 16],
            seed: [7; 32],
            unix_nanos: 1_800_000_000_000_000_000,
        },
        root: Root {
            disk: DiskId::Serial("root".into()),
            read_only: false,
        },
        mounts: Vec::new(),
        network: Network {
            interfaces: vec![Interface {
                mac: tether_wire::message::MacAddress([0x02, 0x42, 0, 0, 0, 1]),
                name: "eth0".into(),
                mtu: 0,
                addressing: InterfaceAddressing::Static {
                    addresses: vec![Address {
                        address: std::net::IpAddr::V4(UserNetwork::GUEST),
                        prefix: UserNetwork::PREFIX,
                    }],
                    routes: Vec::new(),
                },
            }],
            dns: Dns::default(),
            hosts: Vec::new(),
        },
        deadline_ms: 60_000,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_runs_a_program_and_keeps_its_disk() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_guest_boots_runs_a_program", kind).await else {
            return;
        };
        let mut events = rig.driver.events();
        let id = rig.power_on(rig.spec("life")).await;
        let link = rig.link(id).await;
        let set_up = link.setup(setup());
        let ready = link.ready(BOOT).await;
        if ready.is_err() {
            let console = rig.driver.console(&id).await.unwrap();
            panic!(
                "{ready:?}; the console:\n{}",
                String::from_utf8_lossy(&console)
            );
        }
        set_up.await.unwrap();
        let main = Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false,
        };
        let (said, status) = rig
            .run(
                &link,
                0,
                main,
                "hostname; cat /sys/class/net/eth0/address; echo kept > /kept; exit 3",
            )
            .await;
        assert_eq!(
            (said.as_str(), status),
            ("behind-vsphere\n02:42:00:00:00:01\n", ExitStatus::Code(3))
        );
        let console = rig.driver.console(&id).await.unwrap();
        assert!(!console.is_empty(), "the kernel says something");
        let shutdown = ShutdownSpec {
            signal: 9,
            grace_ms: 0,
            action: Action::PowerOff,
        };
        let _ = link.shutdown(shutdown).await;
        loop {
            match tokio::time::timeout(Duration::from_secs(60), events.next())
                .await
                .unwrap()
            {
                Next::Event(MachineEvent {
                    notice: Notice::PoweredOff(cause),
                    ..
                }) => {
                    assert_eq!(cause, StopCause::GuestShutdown);
                    break;
                }
                Next::Event(_) => {}
                other => panic!("{other:?}"),
            }
        }
        let off = PowerState::Off {
            cause: StopCause::GuestShutdown,
        };
        assert_eq!(rig.driver.inspect(&id).await.unwrap().power, off);
        rig.driver.destroy(&id).await.unwrap();

        // Another machine on the same local disk finds what the first one wrote.
        let later = rig.power_on(rig.spec("life")).await;
        let link = rig.link(later).await;
        let set_up = link.setup(setup());
        link.ready(BOOT).await.unwrap();
        set_up.await.unwrap();
        let (said, _) = rig.run(&link, 0, main, "cat /kept").await;
        assert_eq!(said, "kept\n");
        drop(link);
        rig.driver.power_off(&later, PowerOff::Cut).await.unwrap();
        rig.driver.destroy(&later).await.unwrap();
    }
}
