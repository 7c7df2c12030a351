//! Forks against the simulator of vCenter, without guests: the calls, what becomes of a machine, and what is left
//! when something goes wrong in between.

mod killed;
#[path = "../simulator/mod.rs"]
mod simulator;
mod templates;
#[path = "../vch/mod.rs"]
mod vch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use hypervisor::{
    Boot, Cause, ChannelIo, Claim, Cpus, Events, Firmware, Fork, ForkParent, Hypervisor,
    MachineEvent, MachineId, MachineSpec, Memory, Metadata, MetadataChange, Next, Notice, PowerOff,
    PowerState, Start, Started, StopCause, TemplateId,
};
use serde_json::json;
use simulator::{Kind, Simulator};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use vch::{devices, disks_on_datastore, image, key, options, others_view};
use vsphere::lifecycle::{self, Allocation, Check, VchSpec};
use vsphere::serial::{CONSOLE, SerialPorts};
use vsphere::session::chain;
use vsphere::soap::Node;
use vsphere::types::{ManagedObject, PowerOffVM_Task};
use vsphere::{Options, Vsphere};

/// Serial ports of machines without guests. A console says that a template is ready, unless it is told not to.
#[derive(Default)]
struct Ports {
    mute: AtomicBool,
    open: Mutex<Vec<DuplexStream>>,
}

#[async_trait]
impl SerialPorts for Ports {
    fn proxy_uri(&self) -> String {
        "telnet://controller.test:2377".into()
    }

    async fn connect(&self, _id: MachineId, service: &str) -> std::io::Result<Box<dyn ChannelIo>> {
        let (own, mut other) = tokio::io::duplex(1 << 12);
        if service == CONSOLE && !self.mute.load(Ordering::SeqCst) {
            other
                .write_all(b"tether: ready\r\ntether: template ready\r\n")
                .await?;
        }
        self.open.lock().unwrap().push(other);
        Ok(Box::new(own))
    }

    fn admit(&self, _id: MachineId) {}

    fn forget(&self, _id: MachineId) {}
}

struct Rig {
    simulator: Simulator,
    ports: Arc<Ports>,
    driver: Arc<Vsphere>,
    image: PathBuf,
}

async fn open(simulator: &Simulator, ports: &Arc<Ports>) -> Arc<Vsphere> {
    let driver = Vsphere::open(options(simulator), ports.clone()).await;
    Arc::new(driver.unwrap_or_else(|error| panic!("{}", chain(&error))))
}

impl Rig {
    async fn start(test: &str, kind: Kind) -> Option<Self> {
        let simulator = Simulator::start(test, kind)?;
        let ports = Arc::new(Ports::default());
        Some(Self {
            image: image(&simulator),
            driver: open(&simulator, &ports).await,
            simulator,
            ports,
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
        Self {
            driver: open(&simulator, &ports).await,
            simulator,
            ports,
            image,
        }
    }

    fn spec(&self, name: &str) -> MachineSpec {
        spec(&self.simulator, &self.image, name)
    }

    async fn make(&self, name: &str) -> MachineId {
        make(&self.driver, self.spec(name)).await
    }

    async fn forked(&self, name: &str) -> MachineId {
        let id = self.make(name).await;
        self.power_on(&id).await;
        id
    }

    async fn power_on(&self, id: &MachineId) {
        let on = self.driver.power_on(id).await;
        on.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    async fn began(&self, id: &MachineId) -> Started {
        let machine = self.driver.inspect(id).await.unwrap();
        machine.began.expect("it began")
    }

    /// Why it booted.
    async fn why(&self, id: &MachineId) -> String {
        match self.began(id).await {
            Started::BootedInstead { why } => why,
            other => panic!("{other:?}"),
        }
    }

    /// What another client sees, as soon as there are so many.
    async fn machines(&self, count: usize) -> Vec<(ManagedObject, Node)> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let all = others_view(&self.simulator).await;
            if all.len() == count {
                return all;
            }
            let names: Vec<_> = all.iter().map(|(_, config)| name(config)).collect();
            assert!(Instant::now() < until, "{count} machines: {names:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The same of the one that is a container's.
    async fn fork(&self, count: usize) -> (ManagedObject, Node) {
        let all = self.machines(count).await;
        let mut forks = all
            .into_iter()
            .filter(|(_, config)| option(config, "vch.role").as_deref() == Some("1:machine"));
        forks.next().expect("a container's")
    }
}

fn spec(simulator: &Simulator, image: &Path, name: &str) -> MachineSpec {
    let disk = vch::container(simulator, image, name);
    vch::spec(simulator, name, &disk, Start::Fork)
}

async fn make(driver: &Vsphere, spec: MachineSpec) -> MachineId {
    let made = driver.create(spec, key(), metadata()).await;
    made.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn metadata() -> Metadata {
    [
        ("kind", "container"),
        ("long", &*"{\"a\": \"ü\n\"}".repeat(600)),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn name(config: &Node) -> String {
    config.text_of("name").unwrap_or_default().to_owned()
}

fn option(config: &Node, key: &str) -> Option<String> {
    let mut all = config.children_named("extraConfig");
    all.find(|option| option.text_of("key") == Some(key))
        .map(|option| option.text_of("value").unwrap_or_default().to_owned())
}

/// Everything a machine has been heard of so far.
async fn heard(events: &mut Events, id: &MachineId, last: Notice) -> Vec<Notice> {
    let mut all = Vec::new();
    let listen = async {
        loop {
            match events.next().await {
                Next::Event(MachineEvent { id: of, notice }) if of == *id => {
                    all.push(notice.clone());
                    if notice == last {
                        return;
                    }
                }
                Next::Event(_) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let listened = tokio::time::timeout(Duration::from_secs(30), listen).await;
    assert!(listened.is_ok(), "{last:?} after {all:?}");
    all
}

const OFF: PowerState = PowerState::Off {
    cause: StopCause::PoweredOff,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_power_on_forks_and_the_fork_is_the_machine() {
    let Some(rig) = Rig::start("a_power_on_forks", Kind::VCenter).await else {
        return;
    };
    let driver = &rig.driver;
    assert!(driver.capabilities().fork);
    let spec = rig.spec("web");
    let mut events = driver.events();
    let id = make(driver, spec.clone()).await;
    let (shell, _) = rig.fork(1).await;
    rig.power_on(&id).await;
    let machine = driver.inspect(&id).await.unwrap();
    let template = driver.templates().await.unwrap().remove(0);
    assert_eq!(machine.power, PowerState::On);
    assert_eq!((machine.spec, machine.metadata), (spec, metadata()));
    assert_eq!(
        machine.began,
        Some(Started::Forked {
            template: template.id.clone(),
            made: true
        })
    );
    assert!(template.spec.disks.is_empty() && template.spec.nics.is_empty());

    // What it was before is gone, with its disk still there.
    let (object, config) = rig.fork(2).await;
    assert_ne!(object, shell);
    assert_eq!(disks_on_datastore(&rig.simulator), 1);
    let own = id.to_string();
    assert_eq!(config.text_of("uuid"), Some(own.as_str()));
    assert!(name(&config).ends_with(".f"), "{}", name(&config));
    let disks = devices(&config, "VirtualDisk");
    let parent = disks[0].at(&["backing", "parent", "fileName"]);
    assert_eq!(disks.len(), 1);
    assert_eq!(
        parent.map(|node| node.text.clone()),
        Some(format!("[LocalDS_0] vch1/images/{}.vmdk", "ab".repeat(32)))
    );
    let nics = devices(&config, "VirtualVmxnet3");
    assert_eq!(nics.len(), 1);
    assert_eq!(nics[0].text_of("macAddress"), Some("02:42:aa:bb:cc:dd"));
    assert_eq!(
        nics[0].at(&["connectable", "connected"]).unwrap().text,
        "true"
    );
    let services: Vec<_> = devices(&config, "VirtualSerialPort")
        .iter()
        .map(|port| port.at(&["backing", "serviceURI"]).unwrap().text.clone())
        .collect();
    assert_eq!(services, [format!("console/{id}"), format!("channel/{id}")]);
    assert_eq!(option(&config, "vch.state"), None);
    let at = |key: &str| option(&config, &format!("guestinfo.tether.{key}")).unwrap_or_default();
    assert_eq!(at("key"), "17".repeat(32));
    assert_eq!(at("disks"), "0=root");
    assert!(at("identity").len() == 64 && at("identity").ends_with(&own.replace('-', "")));

    // The template has nothing of it, and no secret.
    let all = rig.machines(2).await;
    let (_, of_template) = all.iter().find(|(other, _)| *other != object).unwrap();
    assert!(name(of_template).starts_with("template-"));
    assert_eq!(
        option(of_template, "guestinfo.tether.key"),
        Some("0".repeat(64))
    );
    assert_eq!(
        option(of_template, "guestinfo.tether.identity"),
        Some("0".repeat(64))
    );
    assert_eq!(devices(of_template, "VirtualDisk").len(), 0);
    let card = devices(of_template, "VirtualVmxnet3")[0];
    assert_eq!(
        card.at(&["connectable", "connected"]).unwrap().text,
        "false"
    );

    // The guest has to be told who it is; who comes later knows as much.
    let claim = Claim {
        id,
        macs: vec!["02:42:aa:bb:cc:dd".parse().unwrap()],
    };
    let channel = driver.connect_channel(&id).await.unwrap();
    assert_eq!((channel.claim.as_ref(), channel.key), (Some(&claim), key()));
    driver.power_off(&id, PowerOff::Cut).await.unwrap();
    let off = heard(&mut events, &id, Notice::PoweredOff(StopCause::PoweredOff)).await;
    assert_eq!(
        off,
        [
            Notice::Created,
            Notice::PoweredOn,
            Notice::PoweredOff(StopCause::PoweredOff)
        ],
        "that it is another virtual machine is nobody's business"
    );
    driver.destroy(&id).await.unwrap();
    assert_eq!(
        heard(&mut events, &id, Notice::Destroyed).await,
        [Notice::Destroyed]
    );
    assert_eq!(rig.machines(1).await.len(), 1, "the template stays");
    assert_eq!(
        disks_on_datastore(&rig.simulator),
        1,
        "disks are the caller's"
    );
    driver.remove_template(&template.id).await.unwrap();
    assert_eq!(rig.machines(0).await, []);
    let error = driver.remove_template(&template.id).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::NotFound { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_was_stopped_is_forked_again_and_is_the_same_machine() {
    let Some(rig) = Rig::start("a_fork_that_was_stopped", Kind::VCenter).await else {
        return;
    };
    let id = rig.forked("again").await;
    let (first, config) = rig.fork(2).await;
    let identity = option(&config, "guestinfo.tether.identity");
    let run = rig.driver.inspect(&id).await.unwrap();
    rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
    let set = MetadataChange::Set {
        key: "kind".into(),
        value: "stopped".into(),
    };
    rig.driver.set_metadata(&id, vec![set]).await.unwrap();
    // Whoever comes later finds it as it was left.
    let rig = rig.again().await;
    let stopped = rig.driver.inspect(&id).await.unwrap();
    assert_eq!((&stopped.power, &stopped.began), (&OFF, &run.began));
    assert_eq!(rig.driver.reconcile().await.unwrap(), []);
    rig.power_on(&id).await;
    let (second, config) = rig.fork(2).await;
    assert_ne!(first, second);
    assert!(!name(&config).ends_with(".f"), "{}", name(&config));
    assert_ne!(option(&config, "guestinfo.tether.identity"), identity);
    let machine = rig.driver.inspect(&id).await.unwrap();
    assert_eq!(machine.metadata["kind"], "stopped");
    assert!(machine.started > stopped.stopped && machine.created == run.created);
    let Some(Started::Forked { made: false, .. }) = machine.began else {
        panic!("{:?}", machine.began);
    };
    assert_eq!(disks_on_datastore(&rig.simulator), 1);
    let rig = rig.again().await;
    assert_eq!(rig.driver.inspect(&id).await.unwrap(), machine);
    assert_eq!(rig.driver.list().await.unwrap(), [machine]);
    rig.driver.destroy(&id).await.unwrap();
    rig.machines(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_two_calls_and_two_more_when_it_runs() {
    let Some(rig) = Rig::start("a_fork_is_two_calls", Kind::VCenter).await else {
        return;
    };
    rig.forked("first").await;
    let id = rig.make("second").await;
    rig.machines(3).await;
    let before = rig.driver.calls();
    rig.power_on(&id).await;
    rig.machines(3).await;
    let calls = rig.driver.calls();
    let since = |name: &str| calls[name] - before.get(name).copied().unwrap_or_default();
    assert_eq!(since("InstantClone_Task"), 1);
    assert_eq!(since("ReconfigVM_Task"), 2);
    assert_eq!(since("Destroy_Task"), 1);
    assert_eq!((since("CreateVM_Task"), since("PowerOnVM_Task")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_by_itself_boots_and_says_why() {
    let Some(rig) = Rig::start("a_host_by_itself_boots", Kind::Esxi).await else {
        return;
    };
    assert!(!rig.driver.capabilities().fork);
    let id = rig.forked("boots").await;
    let why = rig.why(&id).await;
    assert!(why.contains("vCenter"), "{why}");
    assert_eq!(rig.driver.connect_channel(&id).await.unwrap().claim, None);
    let error = rig.driver.make_template(&rig.spec("t")).await.unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Unsupported { .. }),
        "{error:?}"
    );
    assert_eq!(rig.driver.templates().await.unwrap(), []);
    assert_eq!(rig.machines(1).await.len(), 1);
    assert!(!rig.driver.calls().contains_key("InstantClone_Task"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_fails_boots_instead_and_leaves_nothing() {
    let Some(rig) = Rig::start("a_fork_that_fails", Kind::VCenter).await else {
        return;
    };
    rig.driver.make_template(&rig.spec("t")).await.unwrap();
    for (method, says) in [
        ("InstantClone_Task", "does not clone its template"),
        // Of the clone: the first of a power on.
        ("ReconfigVM_Task", "does not give it its devices"),
    ] {
        let mut events = rig.driver.events();
        let id = rig.make(method).await;
        let before = rig.fork(2).await.0;
        rig.simulator.rule(json!({"method": method, "do": "task-fault", "fault": "InsufficientResourcesFault", "times": 1}));
        rig.power_on(&id).await;
        let why = rig.why(&id).await;
        assert!(
            why.contains(says) && why.contains("InsufficientResourcesFault"),
            "{why}"
        );
        let (object, config) = rig.fork(2).await;
        assert_eq!(object, before, "it is what it was");
        assert_eq!(devices(&config, "VirtualDisk").len(), 1);
        assert_eq!(rig.driver.connect_channel(&id).await.unwrap().claim, None);
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        let off = Notice::PoweredOff(StopCause::PoweredOff);
        assert_eq!(
            heard(&mut events, &id, off.clone()).await,
            [Notice::Created, Notice::PoweredOn, off]
        );
        // What stood in the way is gone.
        rig.power_on(&id).await;
        assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
        rig.driver.destroy(&id).await.unwrap();
        rig.machines(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_though_nobody_was_told_is_done() {
    let Some(rig) = Rig::start("what_was_done_though_nobody", Kind::VCenter).await else {
        return;
    };
    rig.driver.make_template(&rig.spec("t")).await.unwrap();
    let mut number = 0;
    for method in ["InstantClone_Task", "ReconfigVM_Task"] {
        for rule in [
            json!({"method": method, "do": "drop-after", "times": 1}),
            json!({"method": method, "do": "task-fault-after", "fault": "HostCommunication", "times": 1}),
        ] {
            number += 1;
            let id = rig.make(&format!("told-{number}")).await;
            rig.simulator.rule(rule);
            rig.power_on(&id).await;
            assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
            rig.fork(2).await;
            rig.driver.destroy(&id).await.unwrap();
        }
    }
    let calls = rig.simulator.calls();
    assert_eq!(calls["InstantClone_Task"], 4, "{calls:?}");
}
