//! What a machine is made of: its devices, disks, CPUs and memory, metadata; many of them.

use super::*;

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

        let all = others_view(&rig.simulator).await;
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
        let view = others_view(&rig.simulator).await;
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
        assert_eq!(disks_on_datastore(&rig.simulator), 2);

        // A helper has the same disk, also by a controller that comes later, and leaves it there.
        let rig = rig.again().await;
        let mut helper = rig.spec("files-helper", &disk);
        helper.nics.clear();
        let helper = rig
            .driver
            .create(helper, key(), Metadata::new())
            .await
            .unwrap();
        let view = others_view(&rig.simulator).await;
        let files: Vec<&str> = view
            .iter()
            .flat_map(|(_, config)| devices(config, "VirtualDisk"))
            .map(|disk| disk.at(&["backing", "fileName"]).unwrap().text.as_str())
            .collect();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0], files[1]);
        rig.driver.destroy(&helper).await.unwrap();
        assert_eq!(disks_on_datastore(&rig.simulator), 2);
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(
            disks_on_datastore(&rig.simulator),
            2,
            "disks are the caller's"
        );
        std::fs::remove_file(&disk).unwrap();
        rig.driver.reconcile().await.unwrap();
        assert_eq!(disks_on_datastore(&rig.simulator), 1, "the volume's");
        assert!(
            rig.on_datastore(&format!("vch1/images/{}.vmdk", "ab".repeat(32)))
                .exists()
        );
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
        assert_eq!(others_view(&rig.simulator).await.len(), 1);
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
            let view = others_view(&rig.simulator).await;
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
    assert_eq!(others_view(&rig.simulator).await, []);
}
