//! The host end of what `scripts/bench` measures through a channel: tether behind a link in one
//! machine, and in another a C program (`scripts/bench-baselines/agent.c`) that does the same work
//! straight on the carrier. Same driver, same devices, same kernel; only the initramfs differs.
//!
//! Prints one JSON object: samples of both, taken in turn. What they mean is for `scripts/bench`.

mod fork;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use hypervisor::{
    Boot, Channel, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial, DiskSource,
    DiskSpec, Hardware, Hypervisor as _, MachineId, MachineSpec, Memory, Metadata, Start,
};
use qemu::{Accelerator, Options, Qemu, Rehearsal, SpareLimits};
use serde_json::{Value, json};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tether_link::{Config, Link, RunningProcess};
use tether_wire::CarrierKind;
use tether_wire::message::{
    Claim, DiskId, ExitStatus, Identity, MacAddress, Network, PidNamespace, ProcessId, ProcessSpec,
    Role, Root, Setup, Stdio, User,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// No step takes as long, even in emulation on a busy machine.
const DEADLINE: Duration = Duration::from_secs(300);
/// The root disk's serial, which the C agent knows.
const ROOT: &str = "root";

/// Measures tether beside a C agent
#[derive(Clone, Parser)]
struct Arguments {
    /// Directory for machines; one user at a time
    #[arg(long)]
    state: PathBuf,
    /// QEMU
    #[arg(long, default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// `kvm` or `tcg`
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// bzImage of both machines
    #[arg(long)]
    kernel: PathBuf,
    /// Initramfs with tether
    #[arg(long)]
    ours: PathBuf,
    /// Initramfs with the C agent
    #[arg(long)]
    theirs: PathBuf,
    /// Raw ext4 image with a busybox and /bin/writer; each machine gets a copy
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Directory for templates, on a tmpfs
    #[arg(long)]
    templates: Option<PathBuf>,
    /// `virtio`, `vsock` or `serial`
    #[arg(long, default_value = "virtio")]
    channel: ChannelKind,
    /// How many pairs
    #[arg(long, default_value_t = 1)]
    pairs: u32,
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Subcommand)]
enum What {
    /// From power on to the first answer
    Ready {
        /// Where QEMU counts the guest's instructions, in eight bytes
        #[arg(long)]
        count: Option<PathBuf>,
    },
    /// From asking for /bin/true to its status
    Exec,
    /// Bytes a second of a program's standard output
    Throughput {
        /// How much it writes
        #[arg(long)]
        mib: u32,
    },
    /// From power on to the first answer and the first byte of a process, forked and booted
    Fork,
    /// What PID 1 of an idle machine holds, in bytes
    Memory,
    /// Destroy every machine an interrupted run left
    Clean,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(samples) => {
            println!("{samples}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let bench = Bench::open(arguments).await?;
        // What an earlier run left when it was killed.
        bench.clean().await?;
        let result = bench.run().await;
        bench.clean().await?;
        result
    })
}

/// Two kinds of machine and one driver.
struct Bench {
    arguments: Arguments,
    driver: Arc<Qemu>,
}

/// A machine that runs.
struct Running {
    id: MachineId,
    powered_on: Instant,
}

impl Bench {
    async fn open(arguments: Arguments) -> Result<Self> {
        Self::open_with(arguments, 0).await
    }

    /// With so many QEMUs started ahead of need.
    async fn open_with(arguments: Arguments, spares: usize) -> Result<Self> {
        let options = Options {
            program: arguments.qemu.clone(),
            accelerator: match arguments.accel.as_str() {
                "kvm" => Accelerator::Kvm,
                "tcg" => Accelerator::Tcg,
                other => bail!("--accel {other}: it is kvm or tcg"),
            },
            templates: arguments.templates.clone(),
            spares: SpareLimits {
                count: spares,
                ..SpareLimits::default()
            },
            rehearsal: Some(Rehearsal::new(|channel: Channel| async move {
                let key = tether_wire::ChannelKey(*channel.key.as_bytes());
                Ok(tether_link::rehearse(channel.io, key, DEADLINE).await?)
            })),
            ..Options::default()
        };
        let driver = Arc::new(Qemu::open(&arguments.state, options).await?);
        Ok(Self { arguments, driver })
    }

    async fn run(&self) -> Result<Value> {
        match &self.arguments.what {
            What::Ready { count } => self.ready(count.as_deref()).await,
            What::Exec => self.exec().await,
            What::Throughput { mib } => self.throughput(*mib).await,
            What::Fork => self.fork().await,
            What::Memory => self.memory().await,
            What::Clean => Ok(Value::Null),
        }
    }

    async fn clean(&self) -> Result<()> {
        for machine in self.driver.list().await? {
            self.driver.destroy(&machine.id).await?;
        }
        Ok(())
    }

    async fn start(&self, name: &str, initramfs: &Path, start: Start) -> Result<Running> {
        let id = MachineId::random()?;
        let disks = match &self.arguments.disk {
            None => Vec::new(),
            Some(disk) => {
                let copy = self.arguments.state.join(format!("{id}.ext4"));
                std::fs::copy(disk, &copy)
                    .with_context(|| format!("cannot copy {}", disk.display()))?;
                vec![DiskSpec {
                    source: DiskSource::File(copy.canonicalize()?),
                    format: DiskFormat::Raw,
                    access: DiskAccess::ReadWrite,
                    serial: DiskSerial::new(ROOT)?,
                }]
            }
        };
        let spec = MachineSpec {
            id,
            name: name.to_owned(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(256)?,
            boot: Boot::Kernel {
                kernel: self.arguments.kernel.clone(),
                initramfs: initramfs.to_owned(),
                append: String::new(),
            },
            start,
            hardware: Hardware::Virtio,
            channel: self.arguments.channel,
            disks,
            nics: Vec::new(),
            debugger: None,
        };
        let key = ChannelKey::random()?;
        self.driver.create(spec, key, Metadata::new()).await?;
        let powered_on = Instant::now();
        self.driver.power_on(&id).await?;
        Ok(Running { id, powered_on })
    }

    async fn ours(&self, start: Start) -> Result<Tether> {
        let machine = self.start("ours", &self.arguments.ours, start).await?;
        let id = machine.id;
        let kind = match self.arguments.channel {
            ChannelKind::Serial => CarrierKind::Serial,
            ChannelKind::Virtio | ChannelKind::Vsock => CarrierKind::Stream,
        };
        let driver = self.driver.clone();
        let first = self.driver.connect_channel(&id).await?;
        // One that was started ahead of need has another.
        let (key, claim) = (first.key, first.claim);
        let mut first = Some(first.io);
        let connector = move || {
            let (driver, ready) = (driver.clone(), first.take());
            async move {
                if let Some(io) = ready {
                    return Ok(io);
                }
                let channel = driver.connect_channel(&id).await;
                channel
                    .map(|channel| channel.io)
                    .map_err(std::io::Error::other)
            }
        };
        let config = Config::new(kind, tether_wire::ChannelKey(*key.as_bytes()));
        let link = Link::spawn(connector, config)?;
        let waited = link.ready(DEADLINE).await;
        if let Err(error) = waited {
            bail!(
                "tether did not answer: {error}; {}",
                self.console(&id).await
            );
        }
        if let Some(claim) = claim {
            let uuid = *claim.id.as_bytes();
            let macs = claim.macs.iter().map(|mac| MacAddress(mac.bytes()));
            let macs = macs.collect();
            link.claim(Claim { uuid, macs }).await?;
        }
        Ok(Tether { machine, link })
    }

    async fn theirs(&self, start: Start) -> Result<Agent> {
        let machine = self.start("theirs", &self.arguments.theirs, start).await?;
        let channel = within(self.connect(&machine)).await?;
        let mut agent = Agent { machine, channel };
        // A serial line loses what comes before it is open: there the agent speaks first.
        let greeting: &[u8] = match self.arguments.channel {
            ChannelKind::Serial => b"",
            ChannelKind::Virtio | ChannelKind::Vsock => b"h",
        };
        if let Err(error) = within(agent.ask(greeting)).await {
            let console = self.console(&agent.machine.id).await;
            bail!("the C agent did not answer: {error:#}; {console}");
        }
        Ok(agent)
    }

    /// Over vsock there is nobody to connect to before the guest listens: a pause as the link's.
    async fn connect(&self, machine: &Running) -> Result<Channel> {
        loop {
            match self.driver.connect_channel(&machine.id).await {
                Err(error) if self.arguments.channel == ChannelKind::Vsock => {
                    if machine.powered_on.elapsed() > DEADLINE {
                        return Err(error.into());
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                done => return Ok(done?),
            }
        }
    }

    async fn console(&self, id: &MachineId) -> String {
        let said = self.driver.console(id).await.unwrap_or_default();
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(500)..]).into_owned();
        format!("its console ends with {said:?}")
    }

    async fn ready(&self, count: Option<&Path>) -> Result<Value> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.pairs {
            let tether = self.ours(Start::Boot).await?;
            ours.push(Started::now(&tether.machine, count)?);
            let id = tether.machine.id;
            drop(tether);
            self.driver.destroy(&id).await?;

            let agent = self.theirs(Start::Boot).await?;
            theirs.push(Started::now(&agent.machine, count)?);
            self.driver.destroy(&agent.machine.id).await?;
        }
        Ok(json!({ "ours": Started::list(&ours), "theirs": Started::list(&theirs) }))
    }

    async fn exec(&self) -> Result<Value> {
        let tether = self.container().await?;
        let mut agent = self.theirs(Start::Boot).await?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The first of each reads its program from the disk.
        for number in 0..=self.arguments.pairs {
            let process = ProcessId(number + 1);
            let asked = Instant::now();
            let running = within(tether.start(process, &["/bin/true"], Role::Exec)).await?;
            let exit = within(running.wait()).await?;
            let one = asked.elapsed();
            ensure!(
                exit.status == ExitStatus::Code(0),
                "/bin/true in the container ended with {:?}",
                exit.status
            );
            within(running.control.forget()).await?;

            let asked = Instant::now();
            let status = within(agent.ask(b"t")).await?;
            let other = asked.elapsed();
            ensure!(
                status == 0,
                "/bin/true under the C agent ended with {status}"
            );
            if number > 0 {
                ours.push(one.as_secs_f64());
                theirs.push(other.as_secs_f64());
            }
        }
        Ok(json!({ "ours": ours, "theirs": theirs }))
    }

    async fn throughput(&self, mib: u32) -> Result<Value> {
        let tether = self.container().await?;
        let mut agent = self.theirs(Start::Boot).await?;
        let length = u64::from(mib) << 20;
        let (mut ours, mut theirs, mut relayed) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..self.arguments.pairs {
            let argv = ["/bin/writer", &mib.to_string()];
            let asked = Instant::now();
            let mut writer = within(tether.start(ProcessId(number + 1), &argv, Role::Exec)).await?;
            let mut end = 0;
            while let Some(chunk) = within(writer.stdout.next()).await? {
                end = chunk.end();
                writer.stdout.stored(end);
            }
            let one = asked.elapsed();
            ensure!(end == length, "the writer wrote {length} bytes, {end} came");
            within(writer.wait()).await?;
            within(writer.control.forget()).await?;

            ours.push(length as f64 / one.as_secs_f64());
            for (command, samples) in [('w', &mut theirs), ('r', &mut relayed)] {
                let asked = Instant::now();
                within(agent.zeros(command, mib)).await?;
                samples.push(length as f64 / asked.elapsed().as_secs_f64());
            }
        }
        Ok(json!({ "ours": ours, "theirs": theirs, "relayed": relayed }))
    }

    async fn memory(&self) -> Result<Value> {
        let tether = self.container().await?;
        let argv = ["/bin/cat", "/proc/1/status"];
        let mut cat = within(tether.start(ProcessId(1), &argv, Role::Exec)).await?;
        let mut status = Vec::new();
        while let Some(chunk) = within(cat.stdout.next()).await? {
            status.extend_from_slice(&chunk.data);
            cat.stdout.stored(chunk.end());
        }
        let mut agent = self.theirs(Start::Boot).await?;
        Ok(json!({
            "ours": resident(&String::from_utf8_lossy(&status))?,
            "theirs": resident(&within(agent.status()).await?)?,
        }))
    }

    /// A machine with tether, its root, and a main process that does nothing. Its processes are in
    /// the machine's pid namespace, where tether is process 1.
    async fn container(&self) -> Result<Tether> {
        let tether = self.ours(Start::Boot).await?;
        tether.set_up().await?;
        let main = Role::Main {
            pid_namespace: PidNamespace::Machine,
            init: false,
        };
        within(tether.start(ProcessId::MAIN, &["/bin/sleep", "1000000"], main)).await?;
        Ok(tether)
    }
}

/// Tether, and the link to it.
struct Tether {
    machine: Running,
    link: Link,
}

impl Tether {
    async fn set_up(&self) -> Result<()> {
        let setup = Setup {
            identity: Identity {
                hostname: "bench".to_owned(),
                domainname: String::new(),
                machine_id: [1; 16],
                seed: [2; 32],
                unix_nanos: std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64,
            },
            root: Root {
                disk: DiskId::Serial(ROOT.to_owned()),
                read_only: false,
            },
            mounts: Vec::new(),
            network: Network::default(),
            deadline_ms: DEADLINE.as_millis() as u32,
        };
        within(self.link.setup(setup))
            .await
            .context("the setup failed")
    }

    async fn start(&self, process: ProcessId, argv: &[&str], role: Role) -> Result<RunningProcess> {
        let spec = ProcessSpec {
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: User::default(),
            stdio: Stdio::Pipes { stdin: false },
            limits: Vec::new(),
            role,
        };
        let running = self.link.start(process, spec).await;
        running.with_context(|| format!("could not start {}", argv[0]))
    }
}

/// The C agent, and the carrier to it.
struct Agent {
    machine: Running,
    channel: Channel,
}

impl Agent {
    /// A command that is answered by one byte.
    async fn ask(&mut self, command: &[u8]) -> Result<u8> {
        self.channel.io.write_all(command).await?;
        self.channel.io.flush().await?;
        Ok(self.channel.io.read_u8().await?)
    }

    /// `w` writes them straight on the carrier, `r` through a pipe.
    async fn zeros(&mut self, command: char, mib: u32) -> Result<()> {
        let io = &mut self.channel.io;
        io.write_all(format!("{command}{mib}\n").as_bytes()).await?;
        io.flush().await?;
        let mut block = vec![0; 64 << 10];
        let mut left = (mib as usize) << 20;
        while left > 0 {
            let room = left.min(block.len());
            let got = io.read(&mut block[..room]).await?;
            ensure!(got > 0, "the carrier ended {left} bytes early");
            left -= got;
        }
        Ok(())
    }

    async fn status(&mut self) -> Result<String> {
        self.channel.io.write_all(b"m").await?;
        self.channel.io.flush().await?;
        let mut text = Vec::new();
        loop {
            match self.channel.io.read_u8().await? {
                0 => return Ok(String::from_utf8(text)?),
                byte => text.push(byte),
            }
        }
    }
}

/// When a machine answered.
struct Started {
    seconds: f64,
    instructions: Option<u64>,
}

impl Started {
    fn now(machine: &Running, count: Option<&Path>) -> Result<Self> {
        let seconds = machine.powered_on.elapsed().as_secs_f64();
        let instructions = match count {
            None => None,
            Some(file) => {
                let bytes = std::fs::read(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let bytes = bytes.first_chunk().context("QEMU counted nothing")?;
                Some(u64::from_ne_bytes(*bytes))
            }
        };
        Ok(Self {
            seconds,
            instructions,
        })
    }

    fn list(all: &[Self]) -> Value {
        all.iter()
            .map(|one| json!({ "seconds": one.seconds, "instructions": one.instructions }))
            .collect()
    }
}

/// The memory lines of proc_pid_status(5), in bytes.
fn resident(status: &str) -> Result<Value> {
    let line = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line
            .and_then(|rest| rest.strip_prefix(':'))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .with_context(|| format!("/proc/1/status has no {name} in kB"))?;
        Ok(kib.trim().parse::<u64>()? << 10)
    };
    Ok(json!({ "private": line("RssAnon")?, "resident": line("VmRSS")? }))
}

/// A step with the deadline.
async fn within<T, E>(step: impl Future<Output = std::result::Result<T, E>>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    match tokio::time::timeout(DEADLINE, step).await {
        Ok(result) => Ok(result?),
        Err(_) => bail!("no answer for {} s", DEADLINE.as_secs()),
    }
}
