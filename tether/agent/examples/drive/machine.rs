//! One QEMU with tether in it, and the host's end of its channel, without threads.

use std::collections::BTreeMap;
use std::io::{ErrorKind as Io, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as Pipe};
use std::time::{Duration, Instant};
use tether_wire::message::{
    Action, DiskId, Error, Exit, Identity, MachineEvent, Network, Output, PidNamespace, ProcessId,
    ProcessSpec, Reply, Request, RequestId, Role, Root, Setup, ShutdownSpec, SignalTarget,
    Statistics, Stdio, User,
};
use tether_wire::{CarrierKind, ChannelKey, HostEvent, HostSession, Time};

/// What to boot.
#[derive(Clone)]
pub struct Options {
    kernel: String,
    initramfs: String,
    image: String,
    /// Another disk.
    pub volume: Option<String>,
    channel: String,
    memory: String,
    append: String,
    damage: u32,
}

impl Options {
    /// From the command line; with the names of the checks that are wanted.
    pub fn from_arguments() -> (Self, Vec<String>) {
        let mut arguments = std::env::args().skip(1);
        let mut next = || arguments.next().expect("see the head of main.rs");
        let mut options = Self {
            kernel: next(),
            initramfs: next(),
            image: next(),
            volume: None,
            channel: "virtio".into(),
            memory: "128".into(),
            append: String::new(),
            damage: 0,
        };
        let mut names = Vec::new();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().expect("a value");
            match argument.as_str() {
                "--channel" => options.channel = value(),
                "--volume" => options.volume = Some(value()),
                "--memory" => options.memory = value(),
                "--append" => options.append = value(),
                "--damage" => options.damage = value().parse().expect("one byte in how many"),
                _ => names.push(argument),
            }
        }
        (options, names)
    }

    /// The same with more on the kernel's command line.
    pub fn with(&self, append: &str) -> Self {
        Self {
            append: format!("{} {append}", self.append),
            ..self.clone()
        }
    }
}

/// A process that ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub exit: Exit,
    /// All of it.
    pub stdout: Vec<u8>,
    /// All of it.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

#[derive(Default)]
struct Seen {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: u32,
    exit: Option<Exit>,
    held_back: bool,
}

/// A running machine.
pub struct Machine {
    qemu: Child,
    daemon: Option<Daemon>,
    directory: PathBuf,
    stream: UnixStream,
    session: HostSession,
    out: Vec<u8>,
    started: Instant,
    seen: BTreeMap<ProcessId, Seen>,
    replies: BTreeMap<RequestId, Result<Reply, Error>>,
    /// What came unasked.
    pub events: Vec<MachineEvent>,
    off: bool,
    damage: Damage,
}

/// vhost-device-vsock, which carries AF_VSOCK to a Unix socket.
struct Daemon(Child);

impl Daemon {
    fn start(directory: &std::path::Path, socket: &std::path::Path) -> Self {
        let vhost = directory.join("vhost");
        let _ = std::fs::remove_file(&vhost);
        let child = Command::new("vhost-device-vsock")
            .args(["--guest-cid", "3", "--uds-path"])
            .arg(socket)
            .arg("--socket")
            .arg(&vhost)
            .spawn()
            .unwrap();
        while !vhost.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(path: &std::path::Path, vsock: bool) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    if vsock {
        stream.write_all(b"CONNECT 2376\n")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
    }
    Ok(stream)
}

/// Flips and drops bytes, one in so many; 0 is never.
struct Damage {
    one_in: u32,
    state: u64,
}

impl Damage {
    fn apply(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut damaged = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let random = (self.state >> 33) as u32;
            if self.one_in == 0 || !random.is_multiple_of(self.one_in) {
                damaged.push(byte);
            } else if random & 0x1000 != 0 {
                damaged.push(byte ^ (1 << (random >> 16 & 7)));
            }
        }
        damaged
    }
}

/// A main process with pipes and without input.
pub fn spec(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|&argument| argument.into()).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: false },
        limits: Vec::new(),
        role: Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false,
        },
    }
}

const PATIENCE: Duration = Duration::from_secs(120);

impl Machine {
    /// Starts QEMU and waits until it ends; what the console said.
    pub fn boot_to_its_end(options: &Options) -> String {
        let mut machine = Self::begin(options);
        let status = machine.qemu.wait().unwrap();
        assert!(status.success());
        let console = std::fs::read(machine.directory.join("console")).unwrap();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Starts QEMU and waits until tether is there.
    pub fn boot(options: &Options) -> Self {
        let mut machine = Self::begin(options);
        machine.prepare();
        machine.until("the first hello", |machine| machine.session.is_open());
        println!("ready after {:.2?}", machine.started.elapsed());
        machine
    }

    /// Starts QEMU and connects to its channel.
    fn begin(options: &Options) -> Self {
        let directory = std::env::temp_dir().join(format!("drive-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("channel");
        let _ = std::fs::remove_file(&socket);
        let overlay = directory.join("root.img");
        std::fs::copy(&options.image, &overlay).unwrap();
        let serial = options.channel == "serial";
        let vsock = options.channel == "vsock";
        let channel = match options.channel.as_str() {
            "serial" => "serial:ttyS1",
            "vsock" => "vsock:2376",
            _ => "virtio:org.tether.channel",
        };
        // The kernel's vhost-vsock would do as well, and needs a host that has it.
        let daemon = vsock.then(|| Daemon::start(&directory, &socket));
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-display", "none",
        ])
        .args(["-nodefaults", "-no-user-config", "-m", &options.memory])
        .args(["-kernel", &options.kernel, "-initrd", &options.initramfs])
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet panic=-1 no_timer_check tether.channel={channel} {}",
            options.append
        ))
        .arg("-serial")
        .arg(format!("file:{}", directory.join("console").display()))
        .arg("-drive")
        .arg(format!(
            "if=none,id=root,format=raw,file={}",
            overlay.display()
        ))
        .args(["-device", "virtio-blk-pci,drive=root,serial=image"])
        .args(["-netdev", "user,id=net", "-device"])
        .arg("virtio-net-pci,netdev=net,mac=52:54:00:00:00:01,romfile=")
        .arg("-no-reboot");
        if !vsock {
            qemu.arg("-chardev").arg(format!(
                "socket,id=channel,server=on,wait=off,path={}",
                socket.display()
            ));
        }
        if serial {
            qemu.args(["-serial", "chardev:channel"]);
        } else if vsock {
            qemu.arg("-object")
                .arg(format!(
                    "memory-backend-memfd,id=mem,size={}M,share=on",
                    options.memory
                ))
                .args(["-machine", "memory-backend=mem", "-chardev"])
                .arg(format!(
                    "socket,id=vsock,path={}",
                    directory.join("vhost").display()
                ))
                .args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        } else {
            qemu.args(["-device", "virtio-serial-pci", "-device"])
                .arg("virtserialport,chardev=channel,name=org.tether.channel");
        }
        if let Some(volume) = &options.volume {
            let copy = directory.join("volume.img");
            std::fs::copy(volume, &copy).unwrap();
            qemu.arg("-drive")
                .arg(format!(
                    "if=none,id=volume,format=raw,file={}",
                    copy.display()
                ))
                .args(["-device", "virtio-blk-pci,drive=volume,serial=vol"]);
        }
        let started = Instant::now();
        let mut child = qemu.stdin(Pipe::null()).spawn().unwrap();
        let stream = loop {
            match connect(&socket, vsock) {
                Ok(stream) => break stream,
                Err(_) => {
                    assert!(child.try_wait().unwrap().is_none(), "QEMU ended");
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        let kind = if serial {
            CarrierKind::Serial
        } else {
            CarrierKind::Stream
        };
        Self {
            qemu: child,
            daemon,
            directory,
            stream,
            session: HostSession::new(kind, ChannelKey([0; 32]), [1; 16]),
            out: Vec::new(),
            started,
            seen: BTreeMap::new(),
            replies: BTreeMap::new(),
            events: Vec::new(),
            off: false,
            damage: Damage {
                one_in: options.damage,
                state: 1,
            },
        }
    }

    fn prepare(&mut self) {
        let timeout = Some(Duration::from_millis(5));
        self.stream.set_read_timeout(timeout).unwrap();
        let mut nonce = [0; 16];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut nonce))
            .unwrap();
        self.session.connected(nonce);
        self.out.clear();
    }

    /// Drops the connection and makes another one after a while.
    pub fn reconnect(&mut self, pause: Duration) {
        self.session.disconnected();
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        std::thread::sleep(pause);
        let path = self.directory.join("channel");
        // QEMU listens again once it has seen the end of this one.
        self.stream = loop {
            match connect(&path, self.daemon.is_some()) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.prepare();
        self.until("another hello", |machine| machine.session.is_open());
    }

    /// Since QEMU's start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    fn turn(&mut self) {
        let now = || Time(self.started.elapsed().as_micros() as u64);
        loop {
            if self.out.is_empty() {
                self.session.transmit(now(), &mut self.out);
                self.out = self.damage.apply(&self.out);
            }
            if self.out.is_empty() {
                break;
            }
            // Blocking: QEMU takes what the guest has not.
            match self.stream.write(&self.out) {
                Ok(length) => drop(self.out.drain(..length)),
                Err(error) if error.kind() == Io::WouldBlock => break,
                Err(_) => {
                    self.off = true;
                    return;
                }
            }
        }
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.off = true,
            Ok(length) => {
                let damaged = self.damage.apply(&buffer[..length]);
                if let Err(violation) = self.session.receive(&damaged, now()) {
                    println!("violation: {violation}");
                }
            }
            Err(error) if matches!(error.kind(), Io::WouldBlock | Io::TimedOut) => {}
            Err(_) => self.off = true,
        }
        while let Some(event) = self.session.next_event() {
            self.take(event);
        }
    }

    fn take(&mut self, event: HostEvent) {
        match event {
            HostEvent::Reply { id, result } => {
                self.replies.insert(id, result);
            }
            HostEvent::Output {
                process,
                output,
                offset,
                data,
            } => {
                let seen = self.seen.entry(process).or_default();
                let held_back = seen.held_back;
                let stream = match output {
                    Output::Stdout => &mut seen.stdout,
                    Output::Stderr => &mut seen.stderr,
                };
                assert_eq!(stream.len() as u64, offset);
                stream.extend(data);
                let stored = stream.len() as u64;
                if !held_back {
                    self.session.stored(process, output, stored);
                }
            }
            HostEvent::OutputEnd { process, .. } => {
                self.seen.entry(process).or_default().ended += 1;
            }
            HostEvent::Exited { process, exit } => {
                self.seen.entry(process).or_default().exit = Some(exit);
            }
            HostEvent::Event(event) => self.events.push(event),
            HostEvent::Gap { .. } | HostEvent::Refused(_) => panic!("{event:?}"),
            HostEvent::Resumed { .. } | HostEvent::InputRoom { .. } | HostEvent::Pong { .. } => {}
        }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            if self.off || begun.elapsed() > PATIENCE {
                let console = std::fs::read(self.directory.join("console")).unwrap_or_default();
                println!("console:\n{}", String::from_utf8_lossy(&console));
                panic!("{what} did not come");
            }
            self.turn();
        }
    }

    /// Sends a request.
    pub fn send(&mut self, request: Request) -> RequestId {
        self.session.request(request).unwrap()
    }

    /// Waits for its answer.
    pub fn reply(&mut self, id: RequestId) -> Result<Reply, Error> {
        self.until("a reply", |machine| machine.replies.contains_key(&id));
        self.replies.remove(&id).unwrap()
    }

    /// Both.
    pub fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        let id = self.send(request);
        self.reply(id)
    }

    /// A setup with the image as root and nothing else.
    pub fn default_setup(&self) -> Setup {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Setup {
            identity: Identity {
                hostname: "box".into(),
                domainname: String::new(),
                machine_id: [0xab; 16],
                seed: [7; 32],
                unix_nanos: now.as_nanos() as u64,
            },
            root: Root {
                disk: DiskId::Serial("image".into()),
                read_only: false,
            },
            mounts: Vec::new(),
            network: Network::default(),
            deadline_ms: 10_000,
        }
    }

    /// Does that setup.
    pub fn set_up(&mut self) {
        let setup = self.default_setup();
        self.ask(Request::Setup(setup)).unwrap();
    }

    /// Starts a process.
    pub fn start(&mut self, process: ProcessId, spec: ProcessSpec) -> Result<Reply, Error> {
        // A terminal has one stream, and both ends know that the other is empty.
        let silent = u32::from(matches!(spec.stdio, Stdio::Terminal { .. }));
        let result = self.ask(Request::Start { process, spec });
        if result.is_ok() {
            self.seen.entry(process).or_default().ended += silent;
        }
        result
    }

    /// Starts a process, feeds it and waits for its end.
    pub fn run(&mut self, process: ProcessId, spec: ProcessSpec, input: &[u8]) -> Finished {
        self.start(process, spec).unwrap();
        self.input(process, input);
        self.session.end_input(process);
        self.wait(process)
    }

    /// Writes to its standard input.
    pub fn input(&mut self, process: ProcessId, mut input: &[u8]) {
        while !input.is_empty() {
            let taken = self.session.write_input(process, input);
            input = &input[taken..];
            self.turn();
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, process: ProcessId) -> Finished {
        self.until("an exit", |machine| {
            machine
                .seen
                .get(&process)
                .is_some_and(|seen| seen.exit.is_some() && seen.ended == 2)
        });
        let seen = self.seen.remove(&process).unwrap();
        Finished {
            exit: seen.exit.unwrap(),
            stdout: seen.stdout,
            stderr: seen.stderr,
        }
    }

    /// Waits until its output contains something.
    pub fn wait_output(&mut self, process: ProcessId, wanted: &[u8]) {
        self.until("output", |machine| {
            machine.seen.get(&process).is_some_and(|seen| {
                seen.stdout
                    .windows(wanted.len())
                    .any(|window| window == wanted)
            })
        });
    }

    /// Waits until there is more of its output.
    pub fn wait_more(&mut self, process: ProcessId) {
        let before = self.output_so_far(process).len();
        self.until("more output", |machine| {
            machine.output_so_far(process).len() > before
        });
    }

    /// Its standard output until now.
    pub fn output_so_far(&self, process: ProcessId) -> String {
        let seen = self.seen.get(&process);
        seen.map_or(String::new(), |seen| {
            String::from_utf8_lossy(&seen.stdout).into_owned()
        })
    }

    /// Stores nothing of what it writes.
    pub fn hold_back(&mut self, process: ProcessId) {
        self.seen.entry(process).or_default().held_back = true;
    }

    /// Sends it a signal.
    pub fn signal(&mut self, process: ProcessId, signal: u8, target: SignalTarget) {
        self.ask(Request::Signal {
            process,
            signal,
            target,
        })
        .unwrap();
    }

    /// Drops its record.
    pub fn forget(&mut self, process: ProcessId) {
        self.ask(Request::Forget { process }).unwrap();
    }

    /// Measures.
    pub fn statistics(&mut self) -> Statistics {
        match self.ask(Request::Statistics).unwrap() {
            Reply::Statistics(statistics) => statistics,
            other => panic!("{other:?}"),
        }
    }

    /// Ends it and checks its disk.
    pub fn power_off(mut self) {
        let spec = ShutdownSpec {
            signal: 9,
            grace_ms: 1000,
            action: Action::PowerOff,
        };
        self.ask(Request::Shutdown(spec)).unwrap();
        for event in &self.events {
            println!("event: {event:?}");
        }
        self.settle_and_expect_off();
    }

    /// Waits for QEMU's end and checks the disk.
    pub fn settle_and_expect_off(mut self) {
        let begun = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(15), "it stays on");
            if !self.off {
                self.turn();
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let console = std::fs::read(self.directory.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        if !console.is_empty() {
            println!("console: {console}");
        }
        let image = self.directory.join("root.img");
        let check = Command::new("e2fsck")
            .arg("-fn")
            .arg(image)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(
            check.status.success() && !said.contains("recover"),
            "{said}"
        );
        let volume = self.directory.join("volume.img");
        if volume.exists() {
            let check = Command::new("e2fsck")
                .arg("-fn")
                .arg(volume)
                .output()
                .unwrap();
            assert!(check.status.success(), "the volume");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// With the system's own program.
pub fn sha256(data: &[u8]) -> String {
    let mut sum = Command::new("sha256sum")
        .stdin(Pipe::piped())
        .stdout(Pipe::piped())
        .spawn()
        .unwrap();
    sum.stdin.take().unwrap().write_all(data).unwrap();
    let output = sum.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout[..64]).into_owned()
}
