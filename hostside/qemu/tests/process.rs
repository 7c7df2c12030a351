//! The driver against a real QEMU without a guest system: control socket,
//! power, events, what a second controller finds, and what a flood leaves.
//!
//! Skipped, with the reason, where QEMU is not installed.

mod machines;

use hypervisor::{
    Cause, ChannelKey, DiskAccess, DiskFormat, DiskSerial, DiskSource, DiskSpec, Error, Hardware,
    Hypervisor, Metadata, MetadataChange, Next, Notice, PowerOff, PowerState, StopCause,
};
use machines::{Vch, guest};

/// The next event's notice; the driver tells of one machine here.
async fn next(events: &mut hypervisor::Events) -> Notice {
    match events.next().await {
        Next::Event(event) => event.notice,
        other => panic!("no event: {other:?}"),
    }
}

#[tokio::test]
async fn a_machine_goes_through_its_power_states_and_says_so() {
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    let mut events = driver.events();
    let id = vch.create(&driver, guest::IDLE).await;
    assert_eq!(
        driver.inspect(&id).await.unwrap().power,
        PowerState::Off {
            cause: StopCause::NeverStarted
        }
    );
    driver.power_on(&id).await.unwrap();
    assert!(matches!(
        driver.power_on(&id).await.unwrap_err().cause(),
        Cause::WrongState {
            state: PowerState::On
        }
    ));
    driver.suspend(&id).await.unwrap();
    driver.suspend(&id).await.unwrap();
    assert_eq!(
        driver.inspect(&id).await.unwrap().power,
        PowerState::Suspended
    );
    driver.resume(&id).await.unwrap();
    let used = driver.statistics(&id).await.unwrap();
    assert!(
        used.memory_resident > 0 && used.memory_given == 32 << 20,
        "{used:?}"
    );
    driver.power_off(&id, PowerOff::Cut).await.unwrap();
    driver.power_off(&id, PowerOff::Cut).await.unwrap();
    driver.destroy(&id).await.unwrap();
    assert!(matches!(
        driver.inspect(&id).await.unwrap_err().cause(),
        Cause::NotFound { .. }
    ));
    for expected in [
        Notice::Created,
        Notice::PoweredOn,
        Notice::Suspended,
        Notice::Resumed,
        Notice::PoweredOff(StopCause::PoweredOff),
        Notice::Destroyed,
    ] {
        assert_eq!(next(&mut events).await, expected);
    }
    vch.assert_empty();
}

#[tokio::test]
async fn a_guest_that_resets_or_panics_is_off_with_that_cause() {
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    for (code, cause) in [
        (guest::RESET, StopCause::GuestReset),
        (guest::PANIC, StopCause::GuestPanic),
        (guest::POWER_OFF, StopCause::GuestShutdown),
    ] {
        let mut events = driver.events();
        let id = vch.create(&driver, code).await;
        driver.power_on(&id).await.unwrap();
        while next(&mut events).await != Notice::PoweredOff(cause.clone()) {}
        assert_eq!(
            driver.inspect(&id).await.unwrap().power,
            PowerState::Off { cause }
        );
        driver.destroy(&id).await.unwrap();
    }
    vch.assert_empty();
}

#[tokio::test]
async fn a_second_controller_finds_what_the_first_left() {
    let Some(vch) = Vch::new() else { return };
    let first = vch.open().await;
    let running = vch.create(&first, guest::IDLE).await;
    let stopped = vch.create(&first, guest::IDLE).await;
    let killed = vch.create(&first, guest::IDLE).await;
    let change = MetadataChange::Set {
        key: "container".into(),
        value: "web".into(),
    };
    first.set_metadata(&running, vec![change]).await.unwrap();
    first.power_on(&running).await.unwrap();
    first.power_on(&killed).await.unwrap();
    first.suspend(&running).await.unwrap();
    assert!(
        matches!(vch.try_open().await, Err(Error::Open { .. })),
        "two owners at once"
    );
    drop(first);
    vch.kill_qemu_of(&killed);

    let second = vch.open().await;
    let repairs = second.reconcile().await.unwrap();
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert_eq!(repairs[0].id, killed);
    let machine = second.inspect(&running).await.unwrap();
    assert_eq!(machine.power, PowerState::Suspended);
    assert_eq!(machine.metadata["container"], "web");
    assert_eq!(
        second.inspect(&stopped).await.unwrap().power,
        PowerState::Off {
            cause: StopCause::NeverStarted
        }
    );
    let PowerState::Off {
        cause: StopCause::HypervisorFailed { .. },
    } = second.inspect(&killed).await.unwrap().power
    else {
        panic!("a killed QEMU is not off by failure");
    };
    // It is in command: events arrive, and what is asked is done.
    let mut events = second.events();
    second.resume(&running).await.unwrap();
    assert_eq!(next(&mut events).await, Notice::Resumed);
    vch.kill_qemu_of(&running);
    assert!(matches!(
        next(&mut events).await,
        Notice::PoweredOff(StopCause::HypervisorFailed { .. })
    ));
    for id in [running, stopped, killed] {
        second.destroy(&id).await.unwrap();
    }
    vch.assert_empty();
}

#[tokio::test]
async fn a_guest_that_ended_without_a_controller_keeps_its_cause_and_console() {
    let Some(vch) = Vch::new() else { return };
    let first = vch.open().await;
    let id = vch.create(&first, guest::SAY_AND_RESET_ON_BYTE).await;
    first.power_on(&id).await.unwrap();
    let channel = first.connect_channel(&id).await.unwrap();
    drop(first);
    // The channel outlives the driver here, so the guest can be told to go on.
    vch.reset_by_channel(channel, &id).await;

    let second = vch.open().await;
    assert_eq!(
        second.inspect(&id).await.unwrap().power,
        PowerState::Off {
            cause: StopCause::GuestReset
        }
    );
    assert!(second.console(&id).await.unwrap().ends_with(b"bye"));
    second.destroy(&id).await.unwrap();
    vch.assert_empty();
}

#[tokio::test]
async fn the_newest_channel_is_the_one_that_works() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    let id = vch.create(&driver, guest::ECHO).await;
    driver.power_on(&id).await.unwrap();
    let mut older = driver.connect_channel(&id).await.unwrap();
    assert_eq!(older.key, ChannelKey::from_bytes([7; 32]));
    older.io.write_all(b"a").await.unwrap();
    assert_eq!(older.io.read_u8().await.unwrap(), b'a');
    let mut newer = driver.connect_channel(&id).await.unwrap();
    newer.io.write_all(b"b").await.unwrap();
    assert_eq!(newer.io.read_u8().await.unwrap(), b'b');
    assert_eq!(
        older.io.read(&mut [0; 8]).await.unwrap(),
        0,
        "the older channel still lives"
    );
    driver.destroy(&id).await.unwrap();
    vch.assert_empty();
}

#[tokio::test]
async fn a_console_flood_neither_stops_the_guest_nor_fills_the_host() {
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    let id = vch.create(&driver, guest::FLOOD).await;
    driver.power_on(&id).await.unwrap();
    let mut followed = driver.follow_console(&id).await.unwrap();
    let mut bytes = 0;
    while bytes < 3 << 20 {
        bytes += followed.recv().await.expect("the console ended").len();
    }
    assert!(
        vch.size_of(&id) < 3 << 20,
        "{} bytes kept of a flood",
        vch.size_of(&id)
    );
    driver.destroy(&id).await.unwrap();
    while followed.recv().await.is_some() {}
    vch.assert_empty();
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let mut spec = vch.spec(guest::IDLE);
    spec.nics = vec![machines::published(port)];
    let id = driver
        .create(spec, ChannelKey::from_bytes([7; 32]), Metadata::new())
        .await
        .unwrap();
    let error = driver.power_on(&id).await.unwrap_err();
    assert!(
        matches!(error.cause(), Cause::PortInUse { address, .. } if *address == port),
        "{error:?}"
    );
    drop(taken);
    driver.power_on(&id).await.unwrap();
    driver.destroy(&id).await.unwrap();

    let mut spec = vch.spec(guest::IDLE);
    spec.disks = vec![machines::disk("/nonexistent/image.vmdk")];
    let id = driver
        .create(spec, ChannelKey::from_bytes([7; 32]), Metadata::new())
        .await
        .unwrap();
    let said = driver.power_on(&id).await.unwrap_err().cause().to_string();
    assert_eq!(said, "cannot open /nonexistent/image.vmdk");
    driver.destroy(&id).await.unwrap();
    vch.assert_empty();
}

#[tokio::test]
async fn leftovers_of_a_killed_controller_are_removed() {
    let Some(vch) = Vch::new() else { return };
    let first = vch.open().await;
    let id = vch.create(&first, guest::IDLE).await;
    first.power_on(&id).await.unwrap();
    drop(first);
    // As after a kill in the middle of a removal, and of a creation.
    vch.rename(&format!("{id}"), &format!(".gone-{id}"));
    vch.make_directory(".new-00000000-0000-4000-8000-000000000001");
    let second = vch.open().await;
    let repairs = second.reconcile().await.unwrap();
    assert_eq!(repairs.len(), 3, "{repairs:?}");
    assert!(second.list().await.unwrap().is_empty());
    assert!(
        second.reconcile().await.unwrap().is_empty(),
        "repaired twice"
    );
    vch.assert_empty();
}

#[tokio::test]
async fn disks_come_and_go_and_are_shared_as_they_may() {
    let Some(vch) = Vch::new() else { return };
    let driver = vch.open().await;
    let raw = |name: &str, access| DiskSpec {
        source: DiskSource::File(vch.file(name, 1 << 20)),
        format: DiskFormat::Raw,
        access,
        serial: DiskSerial::new(name).unwrap(),
    };
    let mut machines = Vec::new();
    for hardware in [Hardware::Vmware, Hardware::Virtio] {
        let mut spec = vch.spec(guest::IDLE);
        spec.hardware = hardware;
        spec.disks = vec![raw("image", DiskAccess::ReadOnly)];
        let id = driver
            .create(spec, ChannelKey::from_bytes([7; 32]), Metadata::new())
            .await
            .unwrap();
        driver.power_on(&id).await.unwrap();
        machines.push(id);
    }
    let [vmware, virtio] = machines[..] else {
        unreachable!()
    };
    // The image is both's; a volume is one's.
    let volume = raw("volume", DiskAccess::ReadWrite);
    driver.attach_disk(&vmware, volume.clone()).await.unwrap();
    assert!(matches!(
        driver
            .attach_disk(&vmware, volume.clone())
            .await
            .unwrap_err()
            .cause(),
        Cause::AlreadyExists { .. }
    ));
    let error = driver
        .attach_disk(&virtio, volume.clone())
        .await
        .unwrap_err();
    let said = std::error::Error::source(error.cause())
        .unwrap()
        .to_string();
    assert!(said.contains("lock"), "{said}");
    assert_eq!(driver.inspect(&virtio).await.unwrap().spec.disks.len(), 1);
    let serials: Vec<_> = driver
        .statistics(&vmware)
        .await
        .unwrap()
        .disks
        .into_iter()
        .map(|disk| disk.serial)
        .collect();
    assert_eq!(
        serials,
        [DiskSerial::new("image").unwrap(), volume.serial.clone()]
    );
    driver.detach_disk(&vmware, &volume.serial).await.unwrap();
    driver.attach_disk(&virtio, volume.clone()).await.unwrap();
    // There is one slot.
    let error = driver
        .attach_disk(&virtio, raw("other", DiskAccess::ReadWrite))
        .await
        .unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Unsupported { .. }),
        "{error:?}"
    );
    // What was attached while it ran is there when it starts again.
    driver.power_off(&virtio, PowerOff::Cut).await.unwrap();
    driver.power_on(&virtio).await.unwrap();
    assert_eq!(driver.statistics(&virtio).await.unwrap().disks.len(), 2);
    for id in machines {
        driver.destroy(&id).await.unwrap();
    }
    vch.assert_empty();
}
