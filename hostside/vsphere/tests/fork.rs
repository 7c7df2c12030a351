//! Forks against the simulator of vCenter, without guests: the calls, what becomes of a machine, and what is left
//! when something goes wrong in between.

mod simulator;
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

#[tokio::test(flavor = "multi_thread")]
async fn one_template_is_made_for_many_at_once_and_another_for_each_shape() {
    let Some(rig) = Rig::start("one_template_for_many", Kind::VCenter).await else {
        return;
    };
    let ids = join_all((0..6).map(|n| rig.make(["a", "b", "c", "d", "e", "f"][n]))).await;
    for on in join_all(ids.iter().map(|id| rig.driver.power_on(id))).await {
        on.unwrap();
    }
    assert_eq!(rig.driver.templates().await.unwrap().len(), 1);
    let mut made = 0;
    for id in &ids {
        let Started::Forked { made: first, .. } = rig.began(id).await else {
            panic!("{id} is no fork");
        };
        made += usize::from(first);
    }
    assert_eq!(made, 1, "for one of them");
    rig.machines(7).await;

    let change: [fn(&mut MachineSpec); 5] = [
        |spec| spec.memory = Memory::from_mib(256).unwrap(),
        |spec| spec.cpus = Cpus::new(2).unwrap(),
        |spec| spec.nics.clear(),
        |spec| {
            spec.boot = Boot::Iso {
                iso: match &spec.boot {
                    Boot::Iso { iso, .. } => iso.clone(),
                    Boot::Kernel { kernel, .. } => kernel.clone(),
                },
                firmware: Firmware::Uefi,
            }
        },
        |spec| spec.name = "other".into(),
    ];
    let mut templates = Vec::new();
    for (number, change) in change.into_iter().enumerate() {
        let mut spec = rig.spec(&format!("shape{number}"));
        change(&mut spec);
        templates.push(rig.driver.make_template(&spec).await.unwrap().id);
        if number == 0 {
            // Another boot image is another template; the names do not count.
            let iso = rig.simulator.directory.path().join("boot.iso");
            std::fs::write(&iso, b"another").unwrap();
            let again = rig.driver.make_template(&spec).await.unwrap().id;
            assert_ne!(templates[0], again);
            std::fs::write(&iso, vec![7; 300_000]).unwrap();
            rig.driver.remove_template(&again).await.unwrap();
        }
    }
    // The last is the first ones' again, which was longest unused and had to go.
    let listed: Vec<TemplateId> = rig
        .driver
        .templates()
        .await
        .unwrap()
        .into_iter()
        .map(|template| template.id)
        .collect();
    assert_eq!(listed.len(), 4, "no more are kept");
    assert!(templates[1..].iter().all(|id| listed.contains(id)));
    for id in &ids {
        assert_eq!(
            rig.driver.inspect(id).await.unwrap().power,
            PowerState::On,
            "forks outlive their template"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_does_not_come_up_is_no_obstacle() {
    let Some(rig) = Rig::start("a_template_that_does_not_come_up", Kind::VCenter).await else {
        return;
    };
    rig.ports.mute.store(true, Ordering::SeqCst);
    let id = rig.make("first").await;
    let driver = rig.driver.clone();
    let starting = tokio::spawn(async move { driver.power_on(&id).await });
    // Its guest ends; nobody has to wait for its deadline.
    let other = rig.simulator.client().await.unwrap();
    let all = rig.machines(2).await;
    let (template, _) = all
        .iter()
        .find(|(_, config)| name(config).starts_with("template-"))
        .unwrap();
    let cut = PowerOffVM_Task {
        _this: template.clone(),
    };
    while !starting.is_finished() {
        let _ = other.call(&cut).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    starting.await.unwrap().unwrap();
    let why = rig.why(&id).await;
    assert!(why.contains("template did not come up"), "{why}");
    rig.machines(1).await;
    // The next one does not try: it boots at once.
    let second = rig.forked("second").await;
    let why = rig.why(&second).await;
    assert!(why.contains("could not be made"), "{why}");
    assert_eq!(rig.driver.templates().await.unwrap(), []);
    // Who asks for it in so many words gets it.
    rig.ports.mute.store(false, Ordering::SeqCst);
    rig.driver.make_template(&rig.spec("t")).await.unwrap();
    let third = rig.forked("third").await;
    assert!(matches!(rig.began(&third).await, Started::Forked { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_is_off_or_gone_is_made_anew() {
    let Some(rig) = Rig::start("a_template_that_is_off", Kind::VCenter).await else {
        return;
    };
    rig.forked("first").await;
    let all = rig.machines(2).await;
    let (template, _) = all
        .iter()
        .find(|(_, config)| name(config).starts_with("template-"))
        .unwrap();
    let other = rig.simulator.client().await.unwrap();
    let cut = PowerOffVM_Task {
        _this: template.clone(),
    };
    other.call(&cut).await.unwrap();
    let rig = rig.again().await;
    let second = rig.forked("second").await;
    let Started::Forked { made: true, .. } = rig.began(&second).await else {
        panic!("{:?}", rig.began(&second).await);
    };
    rig.machines(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_of_a_template_are_made_all_or_none() {
    let Some(rig) = Rig::start("children_of_a_template", Kind::VCenter).await else {
        return;
    };
    let template = rig.driver.make_template(&rig.spec("t")).await.unwrap();
    let parent = ForkParent::Template(template.id.clone());
    let child = |name: &str| {
        let spec = rig.spec(name);
        Fork {
            id: spec.id,
            name: spec.name,
            key: key(),
            metadata: Metadata::new(),
            disks: spec.disks,
            nics: spec.nics,
        }
    };
    let ids = rig
        .driver
        .fork(&parent, vec![child("one"), child("two")])
        .await;
    let ids = ids.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(ids.len(), 2);
    rig.machines(3).await;
    rig.simulator.rule(
        json!({"method": "InstantClone_Task", "do": "task-fault", "fault": "NoPermission", "skip": 1, "times": 1}),
    );
    let error = rig
        .driver
        .fork(&parent, vec![child("three"), child("four")])
        .await;
    let said = chain(&error.unwrap_err());
    assert!(said.contains("NoPermission"), "{said}");
    rig.machines(3).await;
    let nobody = ForkParent::Template(TemplateId("none".into()));
    let error = rig
        .driver
        .fork(&nobody, vec![child("five")])
        .await
        .unwrap_err();
    assert!(matches!(error.cause(), Cause::NotFound { .. }), "{error:?}");
}

/// A controller of its own, which ends as if killed.
struct Controller {
    runtime: tokio::runtime::Runtime,
    driver: Arc<Vsphere>,
}

impl Controller {
    fn start(simulator: &Simulator, ports: &Arc<Ports>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let driver = runtime.block_on(open(simulator, ports));
        Self { runtime, driver }
    }

    /// Powers on until `is_there`, and ends in the middle of it.
    fn killed(self, id: MachineId, is_there: impl Fn() -> bool) {
        let driver = self.driver.clone();
        self.runtime
            .spawn(async move { driver.power_on(&id).await });
        let until = Instant::now() + Duration::from_secs(20);
        while !is_there() {
            assert!(Instant::now() < until, "it did not get there");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        drop(self.driver);
    }
}

/// Kills a controller while a machine is powered on, when the simulator has been called so; then what the next one
/// repairs, and that the machine is as it was and can be forked.
fn killed_when(test: &str, hang: &str, mute: bool, repaired: Option<&str>) {
    let Some(simulator) = Simulator::start(test, Kind::VCenter) else {
        return;
    };
    let ports = Arc::new(Ports::default());
    let image = image(&simulator);
    let first = Controller::start(&simulator, &ports);
    let id = first.runtime.block_on(async {
        if !mute {
            let like = spec(&simulator, &image, "template");
            first.driver.make_template(&like).await.unwrap();
        }
        make(&first.driver, spec(&simulator, &image, "killed")).await
    });
    let before = if mute { 2 } else { 3 };
    ports.mute.store(mute, Ordering::SeqCst);
    simulator.forget_calls();
    simulator.rule(json!({"method": hang, "do": "drop-before"}));
    let there = tokio::runtime::Runtime::new().unwrap();
    first.killed(id, || {
        // The template is on its way, or the clone waits for what does not come.
        let last = if mute { "PowerOnVM_Task" } else { hang };
        simulator.calls().contains_key(last)
            && there.block_on(others_view(&simulator)).len() == before
    });
    simulator.forget_rules();
    ports.mute.store(false, Ordering::SeqCst);

    let next = Controller::start(&simulator, &ports);
    next.runtime.block_on(async {
        let repairs = next.driver.reconcile().await.unwrap();
        let said: Vec<&str> = repairs.iter().map(|repair| repair.what.as_str()).collect();
        assert_eq!(said, repaired.into_iter().collect::<Vec<_>>());
        assert!(repairs.iter().all(|repair| repair.id == id));
        assert_eq!(others_view(&simulator).await.len(), before - 1);
        let all = next.driver.list().await.unwrap();
        assert_eq!(all.len(), 1);
        let off = PowerState::Off {
            cause: StopCause::NeverStarted,
        };
        assert_eq!((all[0].id, &all[0].power), (id, &off));
        assert_eq!(next.driver.reconcile().await.unwrap(), []);
        next.driver.power_on(&id).await.unwrap();
        let began = next.driver.inspect(&id).await.unwrap().began;
        assert!(matches!(began, Some(Started::Forked { .. })), "{began:?}");
    });
}

#[test]
fn a_controller_killed_after_the_clone_leaves_what_the_next_one_removes() {
    let repaired = Some("removed a fork half made");
    killed_when("killed_after_the_clone", "ReconfigVM_Task", false, repaired);
}

#[test]
fn a_controller_killed_while_a_template_boots_leaves_what_the_next_one_removes() {
    killed_when("killed_while_a_template_boots", "Nothing", true, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_fork_took_the_place_of_is_removed_by_whoever_comes_next() {
    let Some(rig) = Rig::start("what_a_fork_took_the_place_of", Kind::VCenter).await else {
        return;
    };
    rig.driver.make_template(&rig.spec("t")).await.unwrap();
    for comes_next in ["a controller", "a start", "a removal"] {
        let id = rig.make(&comes_next.replace(' ', "-")).await;
        rig.simulator.rule(json!({"method": "Destroy_Task", "do": "task-fault", "fault": "HostCommunication", "times": 1}));
        rig.power_on(&id).await;
        assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
        // It fails once, after the machine was powered on.
        let until = Instant::now() + Duration::from_secs(20);
        while !rig.simulator.calls().contains_key("Destroy_Task") {
            assert!(Instant::now() < until, "nobody removes it");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        rig.machines(3).await;
        let machine = rig.driver.inspect(&id).await.unwrap();
        match comes_next {
            "a controller" => {
                drop(rig.driver.reconcile().await.unwrap());
                assert_eq!(rig.driver.inspect(&id).await.unwrap(), machine);
                rig.machines(2).await;
            }
            "a start" => {
                rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
                rig.power_on(&id).await;
                assert!(matches!(rig.began(&id).await, Started::Forked { .. }));
                rig.machines(2).await;
            }
            _ => {}
        }
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(rig.machines(1).await.len(), 1);
        assert_eq!(rig.driver.list().await.unwrap(), []);
        rig.simulator.forget_calls();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_go_with_their_vch() {
    let Some(simulator) = Simulator::start("templates_go_with_their_vch", Kind::VCenter) else {
        return;
    };
    let image = image(&simulator);
    let client = simulator.client().await.unwrap();
    let some = Allocation {
        reservation: 100,
        limit: None,
        shares: None,
    };
    let wanted = VchSpec {
        name: "vch-t".into(),
        datacenter: "/DC0".into(),
        parent_pool: simulator.pool(),
        parent_folder: simulator.folder(),
        datastore: "LocalDS_0".into(),
        networks: vec!["VM Network".into()],
        cpu: some,
        memory: some,
    };
    let iso = simulator.directory.path().join("boot.iso");
    let vch = lifecycle::create(&client, wanted, &iso, &[Check::Firewall])
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let options = Options {
        vch: "vch-t".into(),
        place: vch.place(),
        ..options(&simulator)
    };
    let driver = Vsphere::open(options.clone(), Arc::new(Ports::default()))
        .await
        .unwrap();
    let id = make(&driver, spec(&simulator, &image, "in-vch")).await;
    driver.power_on(&id).await.unwrap();
    assert_eq!(driver.templates().await.unwrap().len(), 1);
    drop(driver);
    let left = lifecycle::delete(options, &vch).await;
    let left = left.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(left, Vec::<String>::new());
}
