//! The client against the simulator of vCenter and ESXi, with what can go wrong going wrong.

mod simulator;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use simulator::{KINDS, Kind, Simulator};
use vsphere::property::{Change, Collector, Objects};
use vsphere::session::{Client, Error, Options, Secret, chain};
use vsphere::soap::Element as _;
use vsphere::task::{self, Progress};
use vsphere::transport::{self, Thumbprint, Trust};
use vsphere::types::{
    CreateFolder, CreateVM_Task, CurrentTime, FindByInventoryPath, ManagedObject, ObjectSpec,
    PowerOnVM_Task, PropertyFilterSpec, PropertySpec, Selection, TraversalSpec,
    VirtualMachineConfigSpec, VirtualMachineFileInfo,
};

async fn find(client: &Client, path: &str) -> ManagedObject {
    let search = FindByInventoryPath {
        _this: client.content().searchIndex.clone().unwrap(),
        inventoryPath: path.to_owned(),
    };
    client.call(&search).await.unwrap().expect(path)
}

async fn time(client: &Client) -> Result<std::time::SystemTime, Error> {
    let service = ManagedObject::new("ServiceInstance", "ServiceInstance");
    client.call(&CurrentTime { _this: service }).await
}

fn machines_of(pool: &ManagedObject) -> PropertyFilterSpec {
    PropertyFilterSpec {
        propSet: vec![PropertySpec {
            r#type: "VirtualMachine".into(),
            all: None,
            pathSet: vec!["name".into(), "runtime.powerState".into()],
        }],
        objectSet: vec![ObjectSpec {
            obj: pool.clone(),
            skip: Some(true),
            selectSet: vec![Selection::from(TraversalSpec {
                r#type: "ResourcePool".into(),
                path: "vm".into(),
                skip: Some(false),
                ..TraversalSpec::default()
            })],
        }],
        reportMissingObjectsInResults: None,
    }
}

struct Rig {
    simulator: Simulator,
    client: Client,
    collector: Collector,
    pool: ManagedObject,
    folder: ManagedObject,
    changes: Arc<Mutex<Vec<Change>>>,
}

impl Rig {
    async fn start(test: &str, kind: Kind) -> Option<Self> {
        let simulator = Simulator::start(test, kind)?;
        let client = simulator.client().await.unwrap();
        let pool = find(&client, &simulator.pool()).await;
        let folder = find(&client, &simulator.folder()).await;
        let tasks = client.content().taskManager.clone().unwrap();
        let changes = Arc::new(Mutex::new(Vec::new()));
        let seen = changes.clone();
        let collector = Collector::open(
            client.clone(),
            vec![machines_of(&pool), task::recent_tasks(tasks)],
            Box::new(move |change| seen.lock().unwrap().push(change.clone())),
        )
        .await
        .unwrap();
        Some(Self {
            simulator,
            client,
            collector,
            pool,
            folder,
            changes,
        })
    }

    fn creation(&self, name: &str) -> CreateVM_Task {
        CreateVM_Task {
            _this: self.folder.clone(),
            config: VirtualMachineConfigSpec {
                name: Some(name.into()),
                guestId: Some("other3xLinux64Guest".into()),
                files: Some(VirtualMachineFileInfo {
                    vmPathName: Some("[LocalDS_0]".into()),
                    ..VirtualMachineFileInfo::default()
                }),
                numCPUs: Some(1),
                memoryMB: Some(64),
                ..VirtualMachineConfigSpec::default()
            },
            pool: self.pool.clone(),
            host: None,
        }
    }

    async fn create(&self, name: &str) -> Result<ManagedObject, Error> {
        let creation = self.creation(name);
        let result = task::run(&self.client, &self.collector, &creation, &mut task::quiet).await?;
        Ok(ManagedObject::read(&result.unwrap()).unwrap())
    }

    async fn power_on(&self, machine: &ManagedObject) -> Result<(), Error> {
        let on = PowerOnVM_Task {
            _this: machine.clone(),
            host: None,
        };
        task::run(&self.client, &self.collector, &on, &mut task::quiet).await?;
        Ok(())
    }

    async fn until_on(&self, machine: &ManagedObject) {
        let on = |objects: &Objects| {
            let power = objects.get(machine)?.get("runtime.powerState")?;
            (power.text == "poweredOn").then_some(())
        };
        tokio::time::timeout(Duration::from_secs(30), self.collector.wait(on))
            .await
            .expect("the collector tells of it")
            .unwrap();
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_refused_with_its_thumbprint() {
    for kind in KINDS {
        let Some(simulator) = Simulator::start("a_certificate_that_is_not_trusted", kind) else {
            return;
        };
        let ca = simulator.directory.path().join("ca.pem");
        std::fs::copy("/etc/ssl/certs/ca-certificates.crt", &ca).unwrap();
        for trust in [
            Trust::System,
            Trust::Ca(ca),
            Trust::Thumbprint(Thumbprint::sha256(b"another")),
            Trust::Thumbprint(Thumbprint::sha1(b"another")),
        ] {
            let options = Options {
                trust,
                ..simulator.options()
            };
            let error = Client::connect(options).await.unwrap_err();
            let Error::Transport { source, .. } = &error else {
                panic!("{error:?}");
            };
            let transport::Error::Certificate { thumbprints, .. } = source else {
                panic!("{error:?}");
            };
            assert_eq!(thumbprints.0.to_string(), simulator.thumbprint());
            assert!(
                chain(&error).contains(simulator.thumbprint()),
                "{}",
                chain(&error)
            );
            // The SHA-1 thumbprint that was shown does as well.
            let options = Options {
                trust: Trust::Thumbprint(thumbprints.1),
                ..simulator.options()
            };
            let client = Client::connect(options).await.unwrap();
            assert_eq!(client.is_vcenter(), kind == Kind::VCenter);
            client.log_out().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_repeated() {
    let Some(simulator) = Simulator::start("a_wrong_password", Kind::VCenter) else {
        return;
    };
    let options = Options {
        password: Secret::new("wrong-password"),
        ..simulator.options()
    };
    let error = Client::connect(options).await.unwrap_err();
    assert!(error.is("InvalidLogin"), "{error:?}");
    let shown = format!("{error:?} {}", chain(&error));
    assert!(!shown.contains("wrong-password"), "{shown}");
    assert!(shown.contains("administrator@vsphere.local"), "{shown}");
    assert_eq!(
        simulator.calls()["Login"],
        1,
        "an account may be locked after a few"
    );
}

#[tokio::test]
async fn a_session_that_ended_is_opened_again_once_for_all() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_session_that_ended", kind).await else {
            return;
        };
        let machine = rig.create("before").await.unwrap();
        rig.simulator.end_sessions();
        let times = (0..8).map(|_| time(&rig.client));
        for time in futures_util::future::join_all(times).await {
            time.unwrap();
        }
        assert_eq!(rig.client.sessions(), 2);
        // The collector was the old session's; it goes on with the new one.
        rig.power_on(&machine).await.unwrap();
        rig.until_on(&machine).await;
        rig.simulator.end_sessions();
        let other = rig.create("after").await.unwrap();
        rig.power_on(&other).await.unwrap();
        rig.until_on(&other).await;
        let found = rig
            .collector
            .look(|objects| objects.of_kind("VirtualMachine").count());
        assert_eq!(found, 2);
        let entered = |change: &Change| change.before.is_none() && change.object == machine;
        let entered = rig
            .changes
            .lock()
            .unwrap()
            .iter()
            .filter(|change| entered(change))
            .count();
        assert_eq!(
            entered, 1,
            "a machine that was there all the time is not told of again"
        );
    }
}

#[tokio::test]
async fn what_may_be_sent_again_is_and_what_may_not_is_not() {
    for kind in KINDS {
        let Some(rig) = Rig::start("what_may_be_sent_again", kind).await else {
            return;
        };
        for how in ["drop-before", "drop-after"] {
            rig.simulator
                .rule(json!({"method": "CurrentTime", "do": how, "times": 2}));
            time(&rig.client).await.unwrap();
        }
        rig.simulator
            .rule(json!({"method": "CurrentTime", "do": "status", "status": 503, "times": 1}));
        time(&rig.client).await.unwrap();
        rig.simulator.forget_calls();
        rig.simulator
            .rule(json!({"method": "CreateVM_Task", "do": "drop-after", "times": 1}));
        let error = rig.create("once").await.unwrap_err();
        assert!(error.is_open(), "{error:?}");
        assert_eq!(rig.simulator.calls()["CreateVM_Task"], 1);
        // It was made, and the collector tells so.
        let made = |objects: &Objects| {
            let mut machines = objects.of_kind("VirtualMachine");
            machines
                .any(|(_, machine)| machine.get("name").is_some_and(|name| name.text == "once"))
                .then_some(())
        };
        tokio::time::timeout(Duration::from_secs(30), rig.collector.wait(made))
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn a_fault_keeps_its_type_and_its_words_from_calls_and_from_tasks() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_fault_keeps_its_type", kind).await else {
            return;
        };
        rig.simulator.rule(json!({"method": "CreateVM_Task", "do": "task-fault", "fault": "NoPermission", "message": "not you", "times": 1}));
        let error = rig.create("refused").await.unwrap_err();
        assert!(error.is("NoPermission") && !error.is_open(), "{error:?}");
        assert!(chain(&error).contains("not you"), "{}", chain(&error));
        let machine = rig.create("twice-on").await.unwrap();
        rig.power_on(&machine).await.unwrap();
        let error = rig.power_on(&machine).await.unwrap_err();
        assert!(error.is("InvalidPowerState"), "{error:?}");
        assert_eq!(
            error.fault().unwrap().field("existingState"),
            Some("poweredOn")
        );
        let nowhere = CreateFolder {
            _this: ManagedObject::new("Folder", "group-v999999"),
            name: "x".into(),
        };
        let error = rig.client.call(&nowhere).await.unwrap_err();
        assert!(error.is("ManagedObjectNotFound"), "{error:?}");
    }
}

#[tokio::test]
async fn tasks_tell_their_progress_and_updates_may_come_in_any_order_or_twice() {
    for kind in KINDS {
        let Some(rig) = Rig::start("tasks_tell_their_progress", kind).await else {
            return;
        };
        rig.simulator
            .rule(json!({"method": "WaitForUpdatesEx", "do": "reorder-updates"}));
        rig.simulator
            .rule(json!({"method": "WaitForUpdatesEx", "do": "duplicate-updates"}));
        rig.simulator
            .rule(json!({"method": "CreateVM_Task", "do": "slow-task", "ms": 600, "times": 1}));
        let mut told = Vec::new();
        let creation = rig.creation("slow");
        let mut progress = |progress| told.push(progress);
        let result = task::run(&rig.client, &rig.collector, &creation, &mut progress)
            .await
            .unwrap();
        assert!(
            told.iter()
                .any(|progress| matches!(progress, Progress::Running(Some(1..=99)))),
            "{told:?}"
        );
        let machine = task::object(result).unwrap();
        rig.power_on(&machine).await.unwrap();
        rig.until_on(&machine).await;
    }
}

#[tokio::test]
async fn many_tasks_at_once_cost_one_call_each() {
    let Some(rig) = Rig::start("many_tasks_at_once", Kind::VCenter).await else {
        return;
    };
    rig.simulator.forget_calls();
    let names: Vec<String> = (0..40).map(|number| format!("many-{number}")).collect();
    let all = futures_util::future::join_all(names.iter().map(|name| rig.create(name))).await;
    for machine in all {
        machine.unwrap();
    }
    let calls = rig.simulator.calls();
    assert_eq!(calls["CreateVM_Task"], 40);
    let others: Vec<_> = calls
        .keys()
        .filter(|name| !["CreateVM_Task", "WaitForUpdatesEx"].contains(&name.as_str()))
        .collect();
    assert!(others.is_empty(), "{calls:?}");
}

#[tokio::test]
async fn something_more_can_be_watched_for_a_while() {
    for kind in KINDS {
        let Some(rig) = Rig::start("something_more_can_be_watched", kind).await else {
            return;
        };
        let spec = PropertyFilterSpec {
            propSet: vec![PropertySpec {
                r#type: "Folder".into(),
                all: None,
                pathSet: vec!["name".into()],
            }],
            objectSet: vec![ObjectSpec {
                obj: rig.folder.clone(),
                skip: Some(false),
                selectSet: Vec::new(),
            }],
            reportMissingObjectsInResults: None,
        };
        let filter = rig.collector.watch(spec).await.unwrap();
        let name = |objects: &Objects| Some(objects.get(&rig.folder)?.get("name")?.text.clone());
        let seen = tokio::time::timeout(Duration::from_secs(20), rig.collector.wait(name)).await;
        assert_eq!(seen.expect("it is told of").unwrap(), "vm");
        rig.collector.unwatch(filter, &rig.folder).await;
        assert!(
            rig.collector
                .look(|objects| objects.get(&rig.folder).is_none())
        );
    }
}
