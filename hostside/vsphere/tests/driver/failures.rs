//! What goes wrong: answers that get lost, tasks that fail, things cut short, places that are not there.

use super::*;

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
        assert_eq!(others_view(&rig.simulator).await, []);
    }
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
        assert_eq!(others_view(&rig.simulator).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_be_repaired_is_in_nobodys_way() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_machine_that_cannot_be_repaired", kind).await else {
            return;
        };
        let (stuck, half) = (rig.make("stuck").await, rig.make("half").await);
        let object = rig.object(&stuck).await.value;
        rig.simulator.rule(json!({"method": "Destroy_Task", "object": object, "do": "task-fault", "fault": "HostCommunication"}));
        rig.driver.destroy(&stuck).await.unwrap_err();
        rig.simulator.rule(json!({"method": "Destroy_Task", "do": "task-fault", "fault": "HostCommunication", "times": 1}));
        rig.driver.destroy(&half).await.unwrap_err();
        let rig = rig.again().await;
        let repaired = |repairs: Vec<hypervisor::Repair>| -> Vec<MachineId> {
            repairs.into_iter().map(|repair| repair.id).collect()
        };
        assert_eq!(repaired(rig.driver.reconcile().await.unwrap()), [half]);
        assert_eq!(rig.driver.list().await.unwrap(), []);
        rig.simulator.forget_rules();
        assert_eq!(repaired(rig.driver.reconcile().await.unwrap()), [stuck]);
        assert_eq!(others_view(&rig.simulator).await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_gets_power_while_it_is_removed_is_removed() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_machine_that_gets_power_while", kind).await else {
            return;
        };
        let id = rig.make("late").await;
        let object = rig.object(&id).await;
        rig.simulator
            .rule(json!({"method": "Destroy_Task", "do": "delay", "ms": 1500, "times": 1}));
        let client = rig.simulator.client().await.unwrap();
        let (gone, on) = tokio::join!(rig.driver.destroy(&id), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let power = PowerOnVM_Task {
                _this: object,
                host: None,
            };
            client.call(&power).await
        });
        on.unwrap();
        gone.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(others_view(&rig.simulator).await.len(), 0);
        assert_eq!(rig.simulator.calls()["PowerOffVM_Task"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_waits_for_the_one_that_is_in_its_way() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_task_waits_for_the_one", kind).await else {
            return;
        };
        let id = rig.make("busy").await;
        // Before anything that could be waited for, and with the task in the way named.
        rig.simulator.rule(json!({"method": "ReconfigVM_Task", "do": "fault", "fault": "TaskInProgress", "times": 2}));
        let mut change = Reconfigure {
            cpus: Cpus::new(2).unwrap(),
            memory: Memory::from_mib(64).unwrap(),
        };
        rig.driver.reconfigure(&id, change).await.unwrap();
        let object = rig.object(&id).await;
        let client = rig.simulator.client().await.unwrap();
        rig.simulator
            .rule(json!({"method": "PowerOnVM_Task", "do": "slow-task", "ms": 1500, "times": 1}));
        rig.simulator.rule(json!({"method": "ReconfigVM_Task", "do": "fault", "fault": "TaskInProgress", "times": 1}));
        let power = PowerOnVM_Task {
            _this: object,
            host: None,
        };
        client.call(&power).await.unwrap();
        rig.simulator.forget_calls();
        change.cpus = Cpus::new(3).unwrap();
        rig.driver.reconfigure(&id, change).await.unwrap();
        assert_eq!(rig.simulator.calls()["ReconfigVM_Task"], 2);
        assert_eq!(rig.power(&id).await, PowerState::On, "it was waited for");
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
