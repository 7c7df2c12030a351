//! A guest reached by the driver and the link themselves, for what the command line has no word for.

use crate::harness::Context;
use crate::lying::{Lying, Told};
use crate::random::Random;
use anyhow::{Context as _, Result, anyhow, bail};
use hypervisor::{
    Boot, Carrier, ChannelKey, ChannelKind, Cpus, DiskAccess, DiskFormat, DiskSerial, DiskSource,
    DiskSpec, Hardware, Hypervisor, MachineId, MachineSpec, Memory, NicSpec, PowerOff, PowerState,
    Start,
};
use qemu::{Options, Qemu};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tether_link::{Adopted, Config, Link, OutputReader, RunningProcess};
use tether_wire::CarrierKind;
use tether_wire::message::{
    Action, DiskId, Exit, Identity, Network, PidNamespace, ProcessId, ProcessSpec, Role, Root,
    Setup, ShutdownSpec, Stdio, User,
};

const ROOT: &str = "root";
const SIGTERM: u8 = 15;
/// How long a guest may take to come up, among many.
const BOOT: Duration = Duration::from_secs(120);
/// The `PATH` of the sample images.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is booted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The channel's carrier.
    pub channel: ChannelKind,
    /// Memory in MiB.
    pub memory: u64,
    /// One byte in so many is flipped or dropped on the way.
    pub lies: Option<u64>,
    /// Its vNICs.
    pub nics: Vec<NicSpec>,
}

impl Default for Wanted {
    /// virtio, 128 MiB, the truth, no vNIC.
    fn default() -> Self {
        Self {
            channel: ChannelKind::Virtio,
            memory: 128,
            lies: None,
            nics: Vec::new(),
        }
    }
}

/// A running guest with `sample/busybox` as its disk.
#[derive(Debug)]
pub struct Machine {
    driver: Arc<Qemu>,
    id: MachineId,
    key: [u8; 32],
    wanted: Wanted,
    told: Told,
    /// What the lies are made from.
    random: Random,
    /// The controller's end of the channel.
    pub link: Arc<Link>,
}

impl Machine {
    /// Boots a guest until it has answered; nothing is set up yet.
    ///
    /// # Errors
    /// The driver's, or the link's with the end of the console.
    pub async fn boot(t: &Context, wanted: Wanted) -> Result<Self> {
        t.environment().need_sample("busybox")?;
        let store = image::store::Store::open(&t.environment().images())?;
        let image = store.inspect("sample/busybox")?;
        let mut random = Random::from_clock();
        let id = MachineId::random()?;
        let disk = t.file(&format!("{id}.vmdk"));
        store.child(&image.id, &id.to_string(), &disk)?;
        let options = Options {
            templates: Some(t.environment().templates().to_owned()),
            ..Options::default()
        };
        let driver = Qemu::open(t.file(&format!("vm-{id}")), options).await?;
        if !driver.capabilities().channels.contains(&wanted.channel) {
            return crate::harness::skip(format!(
                "the driver has no {} channel here",
                wanted.channel
            ));
        }
        let mut key = [0; 32];
        key.copy_from_slice(&random.bytes(32));
        let boot_image = t.environment().boot_image();
        let spec = MachineSpec {
            id,
            name: "test".to_owned(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(wanted.memory)?,
            boot: Boot::Kernel {
                kernel: boot_image.join("bzImage"),
                initramfs: boot_image.join("initramfs.cpio"),
                append: String::new(),
            },
            start: match wanted.channel {
                ChannelKind::Virtio => Start::Fork,
                ChannelKind::Vsock | ChannelKind::Serial => Start::Boot,
            },
            hardware: Hardware::Virtio,
            channel: wanted.channel,
            disks: vec![DiskSpec {
                source: DiskSource::File(disk),
                format: DiskFormat::Vmdk,
                access: DiskAccess::ReadWrite,
                serial: DiskSerial::new(ROOT)?,
            }],
            nics: wanted.nics.clone(),
            debugger: None,
        };
        driver
            .create(spec, ChannelKey::from_bytes(key), Default::default())
            .await?;
        driver.power_on(&id).await?;
        let driver = Arc::new(driver);
        let told = Told::default();
        let link = Arc::new(connect(
            &driver,
            id,
            key,
            &wanted,
            &told,
            &mut random,
            Vec::new(),
        )?);
        let machine = Self {
            driver,
            id,
            key,
            wanted,
            told,
            random,
            link,
        };
        if let Err(error) = machine.link.ready(BOOT).await {
            bail!("{error}; the console: {}", machine.console().await);
        }
        Ok(machine)
    }

    /// Boots and sets up.
    ///
    /// # Errors
    /// As [`boot`](Self::boot), or what the guest says.
    pub async fn set_up(t: &Context, wanted: Wanted) -> Result<Self> {
        let machine = Self::boot(t, wanted).await?;
        machine.link.setup(setup(ROOT)).await?;
        Ok(machine)
    }

    /// The lies told on its channel.
    pub fn lies(&self) -> u64 {
        self.told.count()
    }

    /// A new controller in place of the old one, which is dropped with whatever it had not stored.
    ///
    /// # Errors
    /// The link's.
    pub async fn another_controller(&mut self, adopt: Vec<Adopted>) -> Result<()> {
        let (driver, random) = (&self.driver, &mut self.random);
        let link = connect(
            driver,
            self.id,
            self.key,
            &self.wanted,
            &self.told,
            random,
            adopt,
        )?;
        self.link = Arc::new(link);
        self.link.ready(BOOT).await?;
        Ok(())
    }

    /// Lets the controller go, and time pass in which the guest sees that nobody is there: the one
    /// thing here that only time brings.
    pub async fn nobody(&mut self) {
        let nowhere =
            || async { Err::<tokio::io::DuplexStream, _>(io::ErrorKind::NotFound.into()) };
        let config = Config::new(CarrierKind::Stream, tether_wire::ChannelKey(self.key));
        if let Ok(link) = Link::spawn(nowhere, config) {
            self.link = Arc::new(link);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    /// What the kernel said last.
    pub async fn console(&self) -> String {
        let console = self.driver.console(&self.id).await.unwrap_or_default();
        let start = console.len().saturating_sub(2000);
        String::from_utf8_lossy(&console[start..]).into_owned()
    }

    /// Runs a process to its end, with this input if there is any.
    ///
    /// # Errors
    /// The guest's or the link's.
    pub async fn run(&self, id: u32, spec: ProcessSpec, input: &[u8]) -> Result<Finished> {
        run(&self.link, ProcessId(id), spec, input).await
    }

    /// Shuts the guest down in order and removes the machine.
    ///
    /// # Errors
    /// It does not go off by itself.
    pub async fn end(self) -> Result<()> {
        let shutdown = self.link.shutdown(ShutdownSpec {
            signal: SIGTERM,
            grace_ms: 1000,
            action: Action::PowerOff,
        });
        // The machine may be gone before its answer is here.
        let (_, ended) = tokio::join!(shutdown, self.ended());
        ended
    }

    /// Waits until the guest has powered off as it was told, and removes the machine.
    ///
    /// # Errors
    /// It does not go off by itself.
    pub async fn ended(&self) -> Result<()> {
        let mut events = self.driver.events();
        let off = async {
            loop {
                if let PowerState::Off { cause } = self.driver.inspect(&self.id).await?.power {
                    return Ok::<_, anyhow::Error>(cause);
                }
                events.next().await;
            }
        };
        let cause = tokio::time::timeout(Duration::from_secs(60), off).await;
        let cause = cause.map_err(|_| anyhow!("the guest did not power off"))??;
        if !cause.is_orderly() {
            bail!("the guest went off otherwise than asked: {cause}");
        }
        self.driver.power_off(&self.id, PowerOff::Cut).await?;
        self.driver.destroy(&self.id).await?;
        Ok(())
    }
}

fn connect(
    driver: &Arc<Qemu>,
    id: MachineId,
    key: [u8; 32],
    wanted: &Wanted,
    told: &Told,
    random: &mut Random,
    adopt: Vec<Adopted>,
) -> Result<Link> {
    let carrier = match wanted.channel {
        ChannelKind::Serial => CarrierKind::Serial,
        ChannelKind::Virtio | ChannelKind::Vsock => CarrierKind::Stream,
    };
    let mut config = Config::new(carrier, tether_wire::ChannelKey(key));
    config.adopt = adopt;
    let driver = driver.clone();
    let (lies, told) = (wanted.lies, told.clone());
    let mut random = Random::new(random.next());
    let connector = move || {
        let driver = driver.clone();
        let told = told.clone();
        let random = Random::new(random.next());
        async move {
            let channel = driver
                .connect_channel(&id)
                .await
                .map_err(|error| io::Error::other(format!("{:#}", anyhow!(error))))?;
            if (channel.carrier == Carrier::Serial) != (carrier == CarrierKind::Serial) {
                return Err(io::Error::other(
                    "the driver calls the carrier something else",
                ));
            }
            Ok(match lies {
                None => channel.io,
                Some(mean) => Box::new(Lying::new(channel.io, random, mean, &told)),
            })
        }
    };
    Link::spawn(connector, config).context("cannot open the channel")
}

/// What makes the machine a container's, with its root on the disk of this serial.
pub fn setup(disk: &str) -> Setup {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Setup {
        identity: Identity {
            hostname: "test".to_owned(),
            domainname: String::new(),
            machine_id: [7; 16],
            seed: [9; 32],
            unix_nanos: now.map_or(0, |now| now.as_nanos() as u64),
        },
        root: Root {
            disk: DiskId::Serial(disk.to_owned()),
            read_only: false,
        },
        mounts: Vec::new(),
        network: Network::default(),
        deadline_ms: 30_000,
    }
}

/// A main process, without input.
pub fn main_process(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        env: vec![PATH.to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: false },
        limits: Vec::new(),
        role: Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false,
        },
    }
}

/// An exec beside the main process.
pub fn exec(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        role: Role::Exec,
        ..main_process(argv)
    }
}

/// The same with standard input.
pub fn with_input(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        stdio: Stdio::Pipes { stdin: true },
        ..spec
    }
}

/// A process that ended, and all it wrote.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: Exit,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a process to its end and forgets it.
///
/// # Errors
/// The guest's or the link's.
pub async fn run(link: &Link, id: ProcessId, spec: ProcessSpec, input: &[u8]) -> Result<Finished> {
    let wants_input = spec.stdio == Stdio::Pipes { stdin: true };
    let running = link.start(id, spec).await?;
    finish(running, wants_input.then_some(input)).await
}

/// Waits for the end of what was started, writing all of `input` where it takes some, and forgets it.
///
/// # Errors
/// The guest's or the link's.
pub async fn finish(running: RunningProcess, input: Option<&[u8]>) -> Result<Finished> {
    let RunningProcess {
        mut stdin,
        mut stdout,
        mut stderr,
        control,
        ..
    } = running;
    let write = async {
        if let Some(input) = input {
            match stdin.write_all(input).await {
                // It need not read all of it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
            stdin.finish();
        }
        Ok::<_, anyhow::Error>(())
    };
    let ((), out, err, exit) = tokio::try_join!(
        write,
        read_all(&mut stdout, 0),
        read_all(&mut stderr, 0),
        async { Ok(control.wait().await?) }
    )?;
    control.forget().await?;
    Ok(Finished {
        stdout: out,
        stderr: err,
        exit,
    })
}

/// Reads a stream from `from` to its end, storing as it goes; every byte once and in its place.
///
/// # Errors
/// The link's, or bytes out of place.
pub async fn read_all(reader: &mut OutputReader, from: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().await? {
        let place = from + all.len() as u64;
        if chunk.offset != place {
            bail!("bytes from {} came where {place} was next", chunk.offset);
        }
        all.extend_from_slice(&chunk.data);
        reader.stored(chunk.end());
    }
    Ok(all)
}

/// Runs the driver's part of a test, until its deadline.
///
/// # Errors
/// The test's, or that it was not over in time.
pub fn block_on<T>(t: &Context, test: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let deadline = tokio::time::Instant::from_std(t.deadline());
    let result = runtime.block_on(async {
        tokio::time::timeout_at(deadline - Duration::from_secs(2), test)
            .await
            .map_err(|_| anyhow!("not over in time"))?
    });
    runtime.shutdown_background();
    result
}
