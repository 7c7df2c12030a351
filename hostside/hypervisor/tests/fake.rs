//! The in-process hypervisor, asked over the real wire.

mod controller;

use controller::{Controller, KEY, running, setup, spec, until};
use hypervisor::fake::{Fault, Host, Operation, flood_byte};
use hypervisor::{
    Cause, ChannelKey, ChannelKind, Hypervisor as _, Metadata, Notice, PowerOff, PowerState,
    StopCause,
};
use tether_wire::message::{
    Action, ErrorKind, ExitStatus, Output, ProcessId, Request, ShutdownSpec, SignalTarget,
};

#[tokio::test(start_paused = true)]
async fn a_program_runs_and_the_machine_powers_off_when_asked() {
    for kind in [ChannelKind::Virtio, ChannelKind::Serial] {
        let driver = Host::default().open();
        let mut events = driver.events();
        let id = running(&driver, kind).await;
        let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
        controller.set_up().await.unwrap();
        controller
            .start(0, &["sh", "-c", "echo hello world; echo oh >&2; exit 42"])
            .await
            .unwrap();
        assert_eq!(controller.exit(0).await, ExitStatus::Code(42));
        assert_eq!(controller.stdout(0), b"hello world\n");
        assert_eq!(controller.output[&(ProcessId(0), Output::Stderr)], b"oh\n");
        let shutdown = ShutdownSpec {
            signal: 15,
            grace_ms: 0,
            action: Action::PowerOff,
        };
        controller.ask(Request::Shutdown(shutdown)).await.unwrap();
        controller.until(|_| false).await;
        until(&mut events, Notice::PoweredOff(StopCause::GuestShutdown)).await;
        assert_eq!(
            driver.inspect(&id).await.unwrap().power,
            PowerState::Off {
                cause: StopCause::GuestShutdown
            }
        );
    }
}

#[tokio::test(start_paused = true)]
async fn programs_fail_as_tethers_do() {
    let driver = Host::default().open();
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    assert_eq!(
        controller
            .ask(Request::Setup(setup("other")))
            .await
            .unwrap_err()
            .kind,
        ErrorKind::NotFound
    );
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    assert_eq!(
        controller.start(0, &["nonsense"]).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    assert_eq!(
        controller.start(0, &["/dev/null"]).await.unwrap_err().kind,
        ErrorKind::NotExecutable
    );
    assert_eq!(
        controller.start(1, &["true"]).await.unwrap_err().kind,
        ErrorKind::Busy
    );
    controller
        .start(0, &["sh", "-c", "trap '' TERM; sleep infinity"])
        .await
        .unwrap();
    controller.start(1, &["pause"]).await.unwrap();
    let signal = |signal, process| Request::Signal {
        process: ProcessId(process),
        signal,
        target: SignalTarget::Process,
    };
    controller.ask(signal(15, 0)).await.unwrap();
    controller.ask(signal(9, 0)).await.unwrap();
    assert_eq!(controller.exit(0).await, ExitStatus::Signal(9));
    assert_eq!(
        controller.exit(1).await,
        ExitStatus::Signal(9),
        "an exec outlived its pid namespace"
    );
}

#[tokio::test(start_paused = true)]
async fn input_is_copied_to_its_end() {
    let driver = Host::default().open();
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    controller.start(0, &["cat"]).await.unwrap();
    let sent: Vec<u8> = (0..300_000).map(flood_byte).collect();
    let mut at = 0;
    while at < sent.len() {
        at += controller.session.write_input(ProcessId(0), &sent[at..]);
        assert!(
            controller
                .until(|c| c.stdout(0).len() >= at.min(sent.len()))
                .await
        );
    }
    controller.session.end_input(ProcessId(0));
    assert_eq!(controller.exit(0).await, ExitStatus::Code(0));
    assert!(controller.stdout(0) == sent, "the copy differs");
}

#[tokio::test(start_paused = true)]
async fn no_byte_is_lost_or_doubled_when_connections_break() {
    let host = Host::default();
    let driver = host.open();
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    controller.start(0, &["flood", "1000000"]).await.unwrap();
    for round in 1..=10 {
        assert!(
            controller
                .until(|c| c.resumed == round && c.stdout(0).len() >= round * 80_000)
                .await
        );
        host.fault(&id, Fault::DropConnection).unwrap();
        assert!(!controller.until(|_| false).await);
        controller.reconnect(
            driver.connect_channel(&id).await.unwrap(),
            10 + u8::try_from(round).unwrap(),
        );
    }
    assert_eq!(controller.exit(0).await, ExitStatus::Code(0));
    assert_eq!(controller.stdout(0).len(), 1_000_000);
    assert!(
        controller
            .stdout(0)
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == flood_byte(i as u64))
    );
    assert_eq!(controller.resumed, 11);
}

#[tokio::test(start_paused = true)]
async fn a_noisy_serial_line_delivers_every_byte_once() {
    let host = Host::default();
    let driver = host.open();
    let id = running(&driver, ChannelKind::Serial).await;
    host.fault(
        &id,
        Fault::Noise {
            seed: 7,
            one_in: 5_000,
        },
    )
    .unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    controller.start(0, &["flood", "200000"]).await.unwrap();
    assert_eq!(controller.exit(0).await, ExitStatus::Code(0));
    assert_eq!(controller.stdout(0).len(), 200_000);
    assert!(
        controller
            .stdout(0)
            .iter()
            .enumerate()
            .all(|(i, byte)| *byte == flood_byte(i as u64))
    );
}

#[tokio::test(start_paused = true)]
async fn a_machine_outlives_its_controller_and_keeps_its_exit_status() {
    let host = Host::default();
    let first = host.open();
    let id = running(&first, ChannelKind::Virtio).await;
    let mut controller = Controller::new(first.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    controller
        .start(0, &["sh", "-c", "sleep 3; echo done; exit 3"])
        .await
        .unwrap();
    drop((controller, first));
    let second = host.open();
    assert_eq!(second.list().await.unwrap()[0].power, PowerState::On);
    let mut controller = Controller::new(second.connect_channel(&id).await.unwrap());
    assert_eq!(controller.exit(0).await, ExitStatus::Code(3));
    assert_eq!(controller.stdout(0), b"done\n");
}

#[tokio::test(start_paused = true)]
async fn every_end_has_its_cause() {
    let host = Host::default();
    let driver = host.open();
    let crash = StopCause::HypervisorFailed {
        detail: "it was made to crash".into(),
    };
    for (end, cause) in [
        (Some(Fault::Panic), StopCause::GuestPanic),
        (Some(Fault::Reset), StopCause::GuestReset),
        (None, crash),
    ] {
        let id = running(&driver, ChannelKind::Virtio).await;
        let mut events = driver.events();
        match end {
            Some(fault) => host.fault(&id, fault).unwrap(),
            None => host.crash(&id).unwrap(),
        }
        until(&mut events, Notice::PoweredOff(cause.clone())).await;
        assert_eq!(
            driver.inspect(&id).await.unwrap().power,
            PowerState::Off { cause }
        );
        assert!(matches!(
            driver.connect_channel(&id).await.unwrap_err().cause(),
            Cause::WrongState { .. }
        ));
        // It can be powered on again, and ends for the new cause.
        driver.power_on(&id).await.unwrap();
        driver.power_off(&id, PowerOff::Ask).await.unwrap();
        until(&mut events, Notice::PoweredOff(StopCause::GuestShutdown)).await;
        host.remove(&id).unwrap();
        until(&mut events, Notice::Destroyed).await;
    }
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_suspended_or_silent_guest_says_nothing_until_it_may() {
    let host = Host::default();
    let driver = host.open();
    let id = running(&driver, ChannelKind::Virtio).await;
    driver.suspend(&id).await.unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    let minute = std::time::Duration::from_secs(60);
    assert!(
        tokio::time::timeout(minute, controller.until(|c| c.resumed > 0))
            .await
            .is_err()
    );
    driver.resume(&id).await.unwrap();
    assert!(controller.until(|c| c.resumed > 0).await);

    host.fault_at_boot(&id, vec![Fault::Silence]).unwrap();
    driver.power_off(&id, PowerOff::Cut).await.unwrap();
    driver.power_on(&id).await.unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    assert!(
        tokio::time::timeout(minute, controller.until(|c| c.resumed > 0))
            .await
            .is_err()
    );
    host.fault(&id, Fault::Speak).unwrap();
    assert!(controller.until(|c| c.resumed > 0).await);
}

#[tokio::test]
async fn operations_fail_when_told_to_and_then_no_more() {
    let host = Host::default();
    let driver = host.open();
    host.fail_next(Operation::PowerOn, "no memory");
    let id = driver
        .create(
            spec(ChannelKind::Virtio),
            ChannelKey::from_bytes(KEY),
            Metadata::new(),
        )
        .await
        .unwrap();
    assert_eq!(
        driver.power_on(&id).await.unwrap_err().cause().to_string(),
        "no memory"
    );
    assert_eq!(
        driver.inspect(&id).await.unwrap().power,
        PowerState::Off {
            cause: StopCause::NeverStarted
        }
    );
    driver.power_on(&id).await.unwrap();
}
