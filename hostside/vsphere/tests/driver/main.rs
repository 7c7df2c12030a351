//! The driver against the simulator of vCenter and ESXi: every operation, whoever else interferes.

mod failures;
mod machines;
mod power;
mod published;
#[path = "../simulator/mod.rs"]
mod simulator;
#[path = "../vch/mod.rs"]
mod vch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::future::join_all;
use hypervisor::{
    Applied, Attachment, Boot, Cause, ChannelIo, Cpus, DiskSerial, Events, Hypervisor,
    MachineEvent, MachineId, MachineSpec, Memory, Metadata, MetadataChange, Next, Notice, PowerOff,
    PowerState, Reconfigure, Start, Started, StopCause,
};
use serde_json::json;
use simulator::{KINDS, Kind, Simulator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use vch::{devices, disk_spec, disks_on_datastore, image, key, options, others_view};
use vsphere::Vsphere;
use vsphere::serial::{CHANNEL, CONSOLE, SerialPorts};
use vsphere::session::chain;
use vsphere::types::{Destroy_Task, ManagedObject, PowerOffVM_Task, PowerOnVM_Task, ShutdownGuest};

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

impl Rig {
    async fn start(test: &str, kind: Kind) -> Option<Self> {
        let simulator = Simulator::start(test, kind)?;
        let image = image(&simulator);
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
        vch::container(&self.simulator, &self.image, name)
    }

    fn spec(&self, name: &str, disk: &Path) -> MachineSpec {
        vch::spec(&self.simulator, name, disk, Start::Boot)
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

    async fn object(&self, id: &MachineId) -> ManagedObject {
        let all = others_view(&self.simulator).await;
        let found = all
            .into_iter()
            .find(|(_, config)| config.text_of("instanceUuid") == Some(&id.to_string()));
        found.expect("the machine is there").0
    }
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
