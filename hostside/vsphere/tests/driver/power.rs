//! Power: on, off, suspended, by this driver and by others, seen and unseen; and what it costs in calls.

use std::collections::BTreeMap;

use super::*;

/// The calls since those, but for the one that waits for changes.
fn calls_since(rig: &Rig, before: &BTreeMap<&'static str, u64>) -> Vec<(&'static str, u64)> {
    rig.driver
        .calls()
        .into_iter()
        .map(|(name, count)| (name, count - before.get(name).copied().unwrap_or_default()))
        .filter(|(name, count)| *count > 0 && *name != "WaitForUpdatesEx")
        .collect()
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
        assert_eq!(others_view(&rig.simulator).await, []);
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
        assert_eq!(
            calls_since(&rig, &before),
            [
                ("CreateVM_Task", 1),
                ("PowerOnVM_Task", 1),
                ("ReconfigVM_Task", 1)
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_goes_takes_its_disk_along_in_three_calls() {
    for kind in KINDS {
        let Some(rig) = Rig::start("a_container_that_goes_takes_its_disk", kind).await else {
            return;
        };
        let (id, _stays) = (rig.make("goes").await, rig.make("stays").await);
        let before = rig.driver.calls();
        rig.driver.destroy(&id).await.unwrap();
        assert_eq!(disks_on_datastore(&rig.simulator), 2, "it is the caller's");
        let local = rig
            .simulator
            .directory
            .path()
            .join("containers/goes/disk.vmdk");
        std::fs::remove_file(&local).unwrap();
        for _ in 0..1000 {
            if disks_on_datastore(&rig.simulator) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(
            disks_on_datastore(&rig.simulator),
            1,
            "nobody had to come by for that"
        );
        assert_eq!(
            calls_since(&rig, &before),
            [
                ("DeleteVirtualDisk_Task", 1),
                ("Destroy_Task", 1),
                ("ReconfigVM_Task", 1)
            ]
        );
        // What the next one costs is its own.
        let before = rig.driver.calls();
        rig.make("next").await;
        assert_eq!(calls_since(&rig, &before), [("CreateVM_Task", 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_said_is_there_for_the_next_controller() {
    for kind in KINDS {
        let Some(rig) = Rig::start("what_a_machine_said", kind).await else {
            return;
        };
        let id = rig.make("says").await;
        let said = async |rig: &Rig, wanted: &[u8]| {
            for _ in 0..500 {
                if rig.driver.console(&id).await.unwrap() == wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let found = rig.driver.console(&id).await.unwrap();
            panic!("{:?}", String::from_utf8_lossy(&found));
        };
        rig.driver.power_on(&id).await.unwrap();
        let mut port = rig.ports.port(id, CONSOLE).await;
        port.write_all(b"booting").await.unwrap();
        said(&rig, b"booting").await;
        // One that comes while it is on hears the rest of it.
        let rig = rig.again().await;
        let mut port = rig.ports.port(id, CONSOLE).await;
        said(&rig, b"booting").await;
        port.write_all(b", panic").await.unwrap();
        said(&rig, b"booting, panic").await;
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        // One that comes when it is off can still say why it did not come up.
        let rig = rig.again().await;
        said(&rig, b"booting, panic").await;
        let mut followed = rig.driver.follow_console(&id).await.unwrap();
        assert_eq!(followed.recv().await.unwrap(), b"booting, panic");
        rig.driver.power_on(&id).await.unwrap();
        said(&rig, b"").await;
        rig.driver.destroy(&id).await.unwrap();
        let kept = rig.simulator.directory.path().join("state/consoles");
        assert_eq!(std::fs::read_dir(kept).unwrap().count(), 0);
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
