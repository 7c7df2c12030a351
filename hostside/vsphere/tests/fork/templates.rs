//! Templates: one for each shape, made when they are needed, gone with their VCH.

use super::*;

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
