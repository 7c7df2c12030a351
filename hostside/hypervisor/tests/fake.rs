//! The in-process hypervisor, asked over the real wire.

use std::collections::BTreeMap;

use hypervisor::fake::{Fake, Fault, Host, Operation, flood_byte};
use hypervisor::{
    Boot, Carrier, Cause, Channel, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat,
    DiskSerial, DiskSource, DiskSpec, Events, Hardware, Hypervisor as _, MachineId, MachineSpec,
    Memory, Metadata, Next, Notice, PowerOff, PowerState, StopCause,
};
use tether_wire::message::{
    Action, DiskId, Dns, ErrorKind, Exit, ExitStatus, Identity, Network, Output, PidNamespace,
    ProcessId, ProcessSpec, Reply, Request, RequestId, Role, Root, Setup, ShutdownSpec,
    SignalTarget, Stdio, User,
};
use tether_wire::{CarrierKind, HostEvent, HostSession, Time};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

const KEY: [u8; 32] = [9; 32];

fn spec(channel: ChannelKind) -> MachineSpec {
    MachineSpec {
        id: MachineId::random().unwrap(),
        name: "test".into(),
        cpus: Cpus::ONE,
        memory: Memory::MIN,
        boot: Boot::Kernel {
            kernel: "k".into(),
            initramfs: "i".into(),
            append: String::new(),
        },
        hardware: Hardware::Virtio,
        channel,
        disks: vec![DiskSpec {
            source: DiskSource::File("image.vmdk".into()),
            format: DiskFormat::Vmdk,
            access: DiskAccess::ReadWrite,
            serial: DiskSerial::new("root").unwrap(),
        }],
        nics: Vec::new(),
        debugger: None,
    }
}

async fn running(driver: &Fake, channel: ChannelKind) -> MachineId {
    let id = driver
        .create(spec(channel), ChannelKey::from_bytes(KEY), Metadata::new())
        .await
        .unwrap();
    driver.power_on(&id).await.unwrap();
    id
}

/// A controller: the wire's host end on a channel.
struct Controller {
    session: HostSession,
    channel: Option<Channel>,
    started: Instant,
    replies: BTreeMap<RequestId, Result<Reply, tether_wire::message::Error>>,
    output: BTreeMap<(ProcessId, Output), Vec<u8>>,
    ended: Vec<(ProcessId, Output)>,
    exits: BTreeMap<ProcessId, Exit>,
    resumed: usize,
}

impl Controller {
    fn new(channel: Channel) -> Self {
        let kind = match channel.carrier {
            Carrier::Stream => CarrierKind::Stream,
            Carrier::Serial => CarrierKind::Serial,
        };
        let key = tether_wire::ChannelKey(*channel.key.as_bytes());
        let mut session = HostSession::new(kind, key, [1; 16]);
        session.connected([2; 16]);
        Self {
            session,
            channel: Some(channel),
            started: Instant::now(),
            replies: BTreeMap::new(),
            output: BTreeMap::new(),
            ended: Vec::new(),
            exits: BTreeMap::new(),
            resumed: 0,
        }
    }

    fn reconnect(&mut self, channel: Channel, nonce: u8) {
        self.session.disconnected();
        self.session.connected([nonce; 16]);
        self.channel = Some(channel);
    }

    /// Speaks until `done` or the carrier breaks; whether it was `done`.
    async fn until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            while let Some(event) = self.session.next_event() {
                self.take(event);
            }
            if done(self) {
                return true;
            }
            let now = Time(u64::try_from(self.started.elapsed().as_micros()).unwrap());
            let mut out = Vec::new();
            self.session.transmit(now, &mut out);
            let wake = self
                .session
                .timeout()
                .map(|Time(at)| self.started + std::time::Duration::from_micros(at));
            let Some(channel) = &mut self.channel else {
                return false;
            };
            if channel.io.write_all(&out).await.is_err() {
                self.channel = None;
                return false;
            }
            tokio::select! {
                read = channel.io.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => {
                        self.channel = None;
                        return false;
                    }
                    Ok(n) => {
                        let now = Time(u64::try_from(self.started.elapsed().as_micros()).unwrap());
                        self.session.receive(&buffer[..n], now).unwrap();
                    }
                },
                () = async { match wake { Some(wake) => tokio::time::sleep_until(wake).await, None => std::future::pending().await } } => {}
            }
        }
    }

    fn take(&mut self, event: HostEvent) {
        match event {
            HostEvent::Resumed { .. } => self.resumed += 1,
            HostEvent::Reply { id, result } => {
                self.replies.insert(id, result);
            }
            HostEvent::Output {
                process,
                output,
                offset,
                data,
            } => {
                let stored = self.output.entry((process, output)).or_default();
                assert_eq!(offset, stored.len() as u64, "a byte was lost or doubled");
                stored.extend(data);
                self.session.stored(process, output, stored.len() as u64);
            }
            HostEvent::OutputEnd {
                process, output, ..
            } => self.ended.push((process, output)),
            HostEvent::Exited { process, exit } => {
                self.exits.insert(process, exit);
            }
            _ => {}
        }
    }

    async fn ask(&mut self, request: Request) -> Result<Reply, tether_wire::message::Error> {
        let id = self.session.request(request).unwrap();
        assert!(
            self.until(|c| c.replies.contains_key(&id)).await,
            "the carrier broke"
        );
        self.replies.remove(&id).unwrap()
    }

    async fn set_up(&mut self) -> Result<Reply, tether_wire::message::Error> {
        self.ask(Request::Setup(setup("root"))).await
    }

    async fn start(
        &mut self,
        process: u32,
        argv: &[&str],
    ) -> Result<Reply, tether_wire::message::Error> {
        let role = if process == 0 {
            Role::Main {
                pid_namespace: PidNamespace::Private,
                init: false,
            }
        } else {
            Role::Exec
        };
        self.ask(Request::Start {
            process: ProcessId(process),
            spec: program(argv, role),
        })
        .await
    }

    async fn exit(&mut self, process: u32) -> ExitStatus {
        let process = ProcessId(process);
        let all = |c: &Self| {
            c.exits.contains_key(&process)
                && [Output::Stdout, Output::Stderr]
                    .iter()
                    .all(|output| c.ended.contains(&(process, *output)))
        };
        assert!(self.until(all).await, "the carrier broke");
        self.exits[&process].status
    }

    fn stdout(&self, process: u32) -> &[u8] {
        self.output
            .get(&(ProcessId(process), Output::Stdout))
            .map_or(&[], Vec::as_slice)
    }
}

fn setup(disk: &str) -> Setup {
    Setup {
        identity: Identity {
            hostname: "test".into(),
            domainname: String::new(),
            machine_id: [3; 16],
            seed: [4; 32],
            unix_nanos: 0,
        },
        root: Root {
            disk: DiskId::Serial(disk.into()),
            read_only: false,
        },
        mounts: Vec::new(),
        network: Network {
            interfaces: Vec::new(),
            dns: Dns::default(),
            hosts: Vec::new(),
        },
        deadline_ms: 1000,
    }
}

fn program(argv: &[&str], role: Role) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|&word| word.into()).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: true },
        limits: Vec::new(),
        role,
    }
}

async fn until(events: &mut Events, wanted: Notice) {
    loop {
        match events.next().await {
            Next::Event(event) if event.notice == wanted => return,
            Next::Event(_) => {}
            other => panic!("{wanted:?} did not come: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_runs_and_the_machine_powers_off_when_asked() {
    for kind in [ChannelKind::Virtio, ChannelKind::Serial] {
        let driver = Host::default().open();
        let mut events = driver.events();
        let id = running(&driver, kind).await;
        let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
        controller.set_up().await.unwrap();
        controller
            .start(
                0,
                &[
                    "say", "echo", "hello", "world", ",", "warn", "oh", ",", "exit", "42",
                ],
            )
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
    controller.start(0, &["stubborn"]).await.unwrap();
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
        .start(
            0,
            &["say", "sleep", "3", ",", "echo", "done", ",", "exit", "3"],
        )
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
