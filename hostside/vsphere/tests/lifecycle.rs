//! The life of a VCH against the simulator of vCenter and ESXi.

mod simulator;

use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{
    Boot, ChannelIo, ChannelKey, ChannelKind, Cpus, Firmware, Hardware, Hypervisor as _, MachineId,
    MachineSpec, Memory, Metadata, Start,
};
use simulator::{KINDS, Kind, Simulator};
use vsphere::lifecycle::{self, Allocation, Check, Error, Vch, VchSpec};
use vsphere::serial::SerialPorts;
use vsphere::session::{Client, chain};
use vsphere::types::{
    CreateFolder, CreateResourcePool, Destroy_Task, FindByInventoryPath, ManagedObject, ObjectSpec,
    PropertyFilterSpec, PropertySpec, ResourceAllocationInfo, ResourceConfigSpec, RetrieveOptions,
    RetrievePropertiesEx, SharesInfo, SharesLevel,
};
use vsphere::{Options, Vsphere};

struct Silent;

#[async_trait]
impl SerialPorts for Silent {
    fn proxy_uri(&self) -> String {
        "telnet://controller.test:2377".into()
    }

    async fn connect(&self, _id: MachineId, _service: &str) -> std::io::Result<Box<dyn ChannelIo>> {
        std::future::pending().await
    }

    fn admit(&self, _id: MachineId) {}

    fn forget(&self, _id: MachineId) {}
}

const CPU: Allocation = Allocation {
    reservation: 500,
    limit: Some(2000),
    shares: Some(1234),
};
const MEMORY: Allocation = Allocation {
    reservation: 256,
    limit: None,
    shares: None,
};
/// The rule is off on the simulator's hosts.
const ACCEPTED: &[Check] = &[Check::Firewall];

fn spec(simulator: &Simulator) -> VchSpec {
    VchSpec {
        name: "vch-a".into(),
        datacenter: format!("/{}", simulator.datacenter()),
        parent_pool: simulator.pool(),
        parent_folder: simulator.folder(),
        datastore: "LocalDS_0".into(),
        networks: vec!["VM Network".into()],
        cpu: CPU,
        memory: MEMORY,
    }
}

fn options(simulator: &Simulator, vch: &Vch) -> Options {
    Options {
        session: simulator.options(),
        vch: vch.spec.name.clone(),
        place: vch.place(),
        user_network: None,
        guests_are_here: false,
        state: simulator.directory.path().join("state"),
    }
}

fn machine(iso: std::path::PathBuf) -> MachineSpec {
    MachineSpec {
        id: MachineId::random().unwrap(),
        name: "web".into(),
        cpus: Cpus::ONE,
        memory: Memory::from_mib(64).unwrap(),
        boot: Boot::Iso {
            iso,
            firmware: Firmware::Bios,
        },
        start: Start::Boot,
        hardware: Hardware::Vmware,
        channel: ChannelKind::Serial,
        disks: Vec::new(),
        nics: Vec::new(),
        debugger: None,
    }
}

async fn find(client: &Client, path: &str) -> Option<ManagedObject> {
    let search = FindByInventoryPath {
        _this: client.content().searchIndex.clone().unwrap(),
        inventoryPath: path.to_owned(),
    };
    client.call(&search).await.unwrap()
}

/// A property of an object, by the names of its fields.
async fn property(client: &Client, of: &ManagedObject, name: &str, path: &[&str]) -> String {
    let read = RetrievePropertiesEx {
        _this: client.content().propertyCollector.clone(),
        specSet: vec![PropertyFilterSpec {
            propSet: vec![PropertySpec {
                r#type: of.kind.clone(),
                all: None,
                pathSet: vec![name.into()],
            }],
            objectSet: vec![ObjectSpec {
                obj: of.clone(),
                skip: Some(false),
                selectSet: Vec::new(),
            }],
            reportMissingObjectsInResults: None,
        }],
        options: RetrieveOptions::default(),
    };
    let found = client.call(&read).await.unwrap().unwrap();
    found.objects[0].propSet[0]
        .val
        .0
        .at(path)
        .unwrap()
        .text
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vch_is_made_changed_and_removed_and_nothing_else_is() {
    for kind in KINDS {
        let Some(simulator) = Simulator::start("a_vch_is_made", kind) else {
            return;
        };
        let client = simulator.client().await.unwrap();
        let iso = simulator.directory.path().join("boot.iso");
        std::fs::write(&iso, b"boot image").unwrap();
        let spec = spec(&simulator);
        let mut vch = lifecycle::create(&client, spec.clone(), &iso, ACCEPTED)
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let place = vch.place();
        let pool = find(&client, &place.pool).await.expect("the pool");
        for (path, expected) in [
            (&["cpuAllocation", "reservation"][..], "500"),
            (&["cpuAllocation", "limit"], "2000"),
            (&["cpuAllocation", "shares", "shares"], "1234"),
            (&["memoryAllocation", "reservation"], "256"),
            (&["memoryAllocation", "limit"], "-1"),
        ] {
            assert_eq!(
                property(&client, &pool, "config", path).await,
                expected,
                "{path:?}"
            );
        }
        assert_eq!(vch.own_folder, kind == Kind::VCenter);
        assert!(find(&client, &place.folder).await.is_some());
        assert_eq!(lifecycle::inspect(&client, &spec).await.unwrap(), vch);
        assert_eq!(
            lifecycle::list(&client, &spec.parent_pool).await.unwrap(),
            ["vch-a"]
        );
        let again = lifecycle::create(&client, spec.clone(), &iso, ACCEPTED)
            .await
            .unwrap_err();
        assert!(
            matches!(again, Error::Wrong(_)) && again.to_string().contains("there already"),
            "{again}"
        );

        let more = Allocation {
            reservation: 100,
            limit: Some(3000),
            shares: None,
        };
        lifecycle::configure(&client, &mut vch, more, MEMORY)
            .await
            .unwrap();
        assert_eq!(
            property(&client, &pool, "config", &["cpuAllocation", "limit"]).await,
            "3000"
        );
        let old = vch.boot_image.clone();
        std::fs::write(&iso, b"newer boot image").unwrap();
        lifecycle::upgrade(&client, &mut vch, &iso).await.unwrap();
        assert_ne!(vch.boot_image, old);
        assert_eq!(lifecycle::inspect(&client, &spec).await.unwrap(), vch);

        // Its containers go with it. What somebody else put there stays, and its place with it.
        let driver = Vsphere::open(options(&simulator, &vch), Arc::new(Silent))
            .await
            .unwrap();
        let key = ChannelKey::random().unwrap();
        let id = driver
            .create(machine(iso.clone()), key, Metadata::new())
            .await
            .unwrap();
        driver.power_on(&id).await.unwrap();
        drop(driver);
        let stranger = CreateResourcePool {
            _this: find(&client, &spec.parent_pool).await.unwrap(),
            name: "not-a-vch".into(),
            spec: resources(),
        };
        let stranger = client.call(&stranger).await.unwrap();
        let inside = vch.own_folder.then(|| CreateFolder {
            _this: ManagedObject::default(),
            name: "notes".into(),
        });
        let mut left_over = None;
        if let Some(mut inside) = inside {
            inside._this = find(&client, &place.folder).await.unwrap();
            left_over = Some(client.call(&inside).await.unwrap());
        }
        std::fs::write(simulator.datastore().join("vch-a/own.txt"), b"a user's").unwrap();
        let left = lifecycle::delete(options(&simulator, &vch), &vch)
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        if let Some(folder) = left_over {
            assert_eq!(left, [format!("{}: notes", place.folder)]);
            assert!(
                simulator.datastore().join("vch-a/vch.json").exists(),
                "it can be asked for again"
            );
            client.call(&Destroy_Task { _this: folder }).await.unwrap();
            while find(&client, &format!("{}/notes", place.folder))
                .await
                .is_some()
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let left = lifecycle::delete(options(&simulator, &vch), &vch)
                .await
                .unwrap();
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(find(&client, &place.folder).await, None);
        } else {
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(find(&client, &place.pool).await, None);
        assert_eq!(
            lifecycle::list(&client, &spec.parent_pool).await.unwrap(),
            ["not-a-vch"]
        );
        assert_eq!(
            property(
                &client,
                &stranger,
                "config",
                &["cpuAllocation", "reservation"]
            )
            .await,
            "1"
        );
        let rest: Vec<_> = std::fs::read_dir(simulator.datastore().join("vch-a"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(rest, ["own.txt"]);
        // Without a user's file in it, the directory goes too.
        std::fs::remove_file(simulator.datastore().join("vch-a/own.txt")).unwrap();
        lifecycle::delete(options(&simulator, &vch), &vch)
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let rest = std::fs::read_dir(simulator.datastore()).unwrap().count();
        assert_eq!(rest, 0, "the datastore is as it was before");
        assert!(matches!(
            lifecycle::inspect(&client, &spec).await,
            Err(Error::NotFound { .. })
        ));
    }
}

fn resources() -> ResourceConfigSpec {
    let allocation = ResourceAllocationInfo {
        reservation: Some(1),
        expandableReservation: Some(true),
        limit: Some(-1),
        shares: Some(SharesInfo {
            shares: 4000,
            level: SharesLevel::Normal,
        }),
    };
    ResourceConfigSpec {
        cpuAllocation: allocation.clone(),
        memoryAllocation: allocation,
        ..ResourceConfigSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_told_at_once_and_nothing_is_made() {
    for kind in KINDS {
        let Some(simulator) = Simulator::start("everything_that_is_wrong", kind) else {
            return;
        };
        let client = simulator.client().await.unwrap();
        let iso = simulator.directory.path().join("boot.iso");
        std::fs::write(&iso, b"boot image").unwrap();
        let mut wrong = spec(&simulator);
        wrong.name = "a/b".into();
        wrong.networks = vec!["VM Network".into(), "no such".into()];
        wrong.datastore = "missing".into();
        simulator.forget_calls();
        let error = lifecycle::create(&client, wrong.clone(), &iso, &[])
            .await
            .unwrap_err();
        let Error::Wrong(findings) = &error else {
            panic!("{}", chain(&error));
        };
        let checks: Vec<Check> = findings.iter().map(|finding| finding.check).collect();
        for check in [Check::Place, Check::Network, Check::Firewall] {
            assert!(checks.contains(&check), "{check:?} is not in\n{error}");
        }
        let said = error.to_string();
        for word in ["missing", "a/b", "no such", "remoteSerialPort"] {
            assert!(said.contains(word), "{word:?} is not in\n{said}");
        }
        for made in [
            "CreateResourcePool",
            "CreateFolder",
            "MakeDirectory",
            "PUT /folder",
        ] {
            assert!(!simulator.calls().contains_key(made), "{made}");
        }
        wrong.parent_pool = "/nowhere".into();
        let error = lifecycle::create(&client, wrong, &iso, &[])
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("no resource pool /nowhere"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_fails_takes_back_what_it_made() {
    for kind in KINDS {
        let Some(simulator) = Simulator::start("a_creation_that_fails", kind) else {
            return;
        };
        let client = simulator.client().await.unwrap();
        let spec = spec(&simulator);
        let missing = simulator.directory.path().join("no.iso");
        lifecycle::create(&client, spec.clone(), &missing, ACCEPTED)
            .await
            .unwrap_err();
        assert_eq!(
            lifecycle::list(&client, &spec.parent_pool).await.unwrap(),
            [""; 0]
        );
        assert_eq!(
            find(&client, &format!("{}/vch-a", spec.parent_folder)).await,
            None
        );
    }
}
