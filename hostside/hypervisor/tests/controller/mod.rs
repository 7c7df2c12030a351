//! A controller: the wire's host end on a channel of the in-process
//! hypervisor.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;

use hypervisor::fake::Fake;
use hypervisor::{
    Boot, Carrier, Channel, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial,
    DiskSource, DiskSpec, Events, Hardware, Hypervisor as _, MachineId, MachineSpec, Memory,
    Metadata, Next, Notice,
};
use tether_wire::message::{
    DiskId, Dns, Exit, ExitStatus, Identity, MachineEvent, Network, Output, PidNamespace,
    ProcessId, ProcessSpec, Reply, Request, RequestId, Role, Root, Setup, Stdio, User,
};
use tether_wire::{CarrierKind, HostEvent, HostSession, Time};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

pub const KEY: [u8; 32] = [9; 32];

pub fn spec(channel: ChannelKind) -> MachineSpec {
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
        start: Default::default(),
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

pub async fn running(driver: &Fake, channel: ChannelKind) -> MachineId {
    let id = driver
        .create(spec(channel), ChannelKey::from_bytes(KEY), Metadata::new())
        .await
        .unwrap();
    driver.power_on(&id).await.unwrap();
    id
}

/// A controller: the wire's host end on a channel.
pub struct Controller {
    pub session: HostSession,
    pub channel: Option<Channel>,
    pub started: Instant,
    pub replies: BTreeMap<RequestId, Result<Reply, tether_wire::message::Error>>,
    pub output: BTreeMap<(ProcessId, Output), Vec<u8>>,
    pub ended: Vec<(ProcessId, Output)>,
    pub exits: BTreeMap<ProcessId, Exit>,
    pub resumed: usize,
    pub events: Vec<MachineEvent>,
}

impl Controller {
    pub fn new(channel: Channel) -> Self {
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
            events: Vec::new(),
        }
    }

    pub fn reconnect(&mut self, channel: Channel, nonce: u8) {
        self.session.disconnected();
        self.session.connected([nonce; 16]);
        self.channel = Some(channel);
    }

    /// Speaks until `done` or the carrier breaks; whether it was `done`.
    pub async fn until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
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

    pub fn take(&mut self, event: HostEvent) {
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
            HostEvent::Event(event) => self.events.push(event),
            HostEvent::Exited { process, exit } => {
                self.exits.insert(process, exit);
            }
            _ => {}
        }
    }

    pub async fn ask(&mut self, request: Request) -> Result<Reply, tether_wire::message::Error> {
        let id = self.session.request(request).unwrap();
        assert!(
            self.until(|c| c.replies.contains_key(&id)).await,
            "the carrier broke"
        );
        self.replies.remove(&id).unwrap()
    }

    pub async fn set_up(&mut self) -> Result<Reply, tether_wire::message::Error> {
        self.ask(Request::Setup(setup("root"))).await
    }

    pub async fn start(
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

    pub async fn exit(&mut self, process: u32) -> ExitStatus {
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

    /// As [`Controller::exit`], of a process that has a terminal: no standard
    /// error ever begins or ends.
    pub async fn exit_of_terminal(&mut self, process: u32) -> ExitStatus {
        let process = ProcessId(process);
        let all = |c: &Self| {
            c.exits.contains_key(&process) && c.ended.contains(&(process, Output::Stdout))
        };
        assert!(self.until(all).await, "the carrier broke");
        self.exits[&process].status
    }

    pub fn stdout(&self, process: u32) -> &[u8] {
        self.output
            .get(&(ProcessId(process), Output::Stdout))
            .map_or(&[], Vec::as_slice)
    }
}

pub fn setup(disk: &str) -> Setup {
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

pub fn program(argv: &[&str], role: Role) -> ProcessSpec {
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

pub async fn until(events: &mut Events, wanted: Notice) {
    loop {
        match events.next().await {
            Next::Event(event) if event.notice == wanted => return,
            Next::Event(_) => {}
            other => panic!("{wanted:?} did not come: {other:?}"),
        }
    }
}

pub async fn container(driver: &Fake) -> Controller {
    let id = running(driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    controller
}

/// Runs a script as the main process; standard output and error, status.
pub async fn sh(controller: &mut Controller, script: &str) -> (String, String, ExitStatus) {
    controller.start(0, &["sh", "-c", script]).await.unwrap();
    let status = controller.exit(0).await;
    said(controller, 0, status).await
}

pub async fn said(
    controller: &mut Controller,
    process: u32,
    status: ExitStatus,
) -> (String, String, ExitStatus) {
    let mut text = |output| {
        let bytes = controller.output.remove(&(ProcessId(process), output));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    };
    let said = (text(Output::Stdout), text(Output::Stderr), status);
    let id = ProcessId(process);
    controller.exits.remove(&id);
    controller.ended.retain(|(ended, _)| *ended != id);
    let forgotten = Request::Forget { process: id };
    controller.ask(forgotten).await.unwrap();
    said
}
