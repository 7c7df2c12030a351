//! `vch run`, from the command line to the exit status.

use crate::args::RunArgs;
use crate::failure::Failure;
use crate::foreground::{Foreground, Origin, Outcome};
use crate::paths::State;
use crate::plan::{self, UserModeNetwork};
use crate::record::{Ended, FORM, GuestRecord, Record, now};
use crate::run_directory::{self, Claim, RunDirectory};
use crate::signals::Signals;
use crate::{images, machine, terminal};
use anyhow::{Context, Result, anyhow, bail};
use hypervisor::{Cause, Hypervisor, PowerOff, PowerState, Started, UserNetwork};
use image::digest::Digest;
use image::store::Store;
use portlayer::{names, random_bytes};
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use tether_wire::message::MacAddress;

/// How long disks and vNICs are waited for in the guest.
const SETUP_DEADLINE_MS: u32 = 30_000;

/// Runs or resumes a container; gives the status to exit with.
pub fn run(state: Option<&Path>, args: RunArgs) -> Result<u8, Failure> {
    let state = State::open(state)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(async {
        // Before anything is made, so that nothing is left when one arrives.
        let signals = Signals::listen().context("cannot listen for signals")?;
        match &args.resume {
            Some(name) => resume(&state, name, signals).await,
            None => fresh(&state, &args, signals).await,
        }
    });
    // Threads may still wait for a terminal or a pipe.
    runtime.shutdown_background();
    result
}

async fn fresh(state: &State, args: &RunArgs, signals: Signals) -> Result<u8, Failure> {
    if args.tty && args.interactive && !terminal::stdin_is_terminal() {
        return Err(anyhow!("the input device is not a TTY").into());
    }
    if let Some(file) = &args.cidfile
        && file.exists()
    {
        return Err(anyhow!(
            "container ID file found, make sure the other container isn't running or delete {}",
            file.display()
        )
        .into());
    }
    let store = images::store(state)?;
    let image = images::resolve(&store, args.image())?;
    images::check_platform(&image, args.image())?;
    // Not removed between here and the moment it has this container as a user.
    let lease = store.hold(&image.id)?;

    let runs = state.runs()?;
    let mut record = record(args, &images::config(&image), &image.id.to_string(), &runs)?;
    if record.machine.templates.is_none() {
        record.machine.templates = Some(state.templates()?);
    }
    let key = random_bytes().context("cannot choose a channel key")?;
    if let Some(file) = &args.cidfile {
        std::fs::write(file, &record.id)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let directory = RunDirectory::create(&runs, &record, &key)?;
    let container = Container {
        store,
        record,
        directory,
        key,
    };
    let (driver, origin) = match container.prepare().await {
        Ok(prepared) => prepared,
        Err(error) => {
            container.remove(None).await?;
            return Err(error.into());
        }
    };
    drop(lease);
    container.attend(driver, origin, signals).await
}

async fn resume(state: &State, name: &str, signals: Signals) -> Result<u8, Failure> {
    let store = images::store(state)?;
    let runs = state.runs()?;
    let name = run_directory::find(&runs, name)?;
    let directory = match RunDirectory::claim(&runs, &name)? {
        Claim::Owned(directory) => directory,
        Claim::Taken { pid } => {
            let who = pid.map_or_else(|| "another vch".to_owned(), |pid| format!("process {pid}"));
            return Err(anyhow!("container {name} is attended by {who}").into());
        }
    };
    let record = run_directory::record(&runs, &name)?;
    if record.form != FORM {
        return Err(anyhow!(
            "container {name} was made by another version of vch (form {}, this one knows {FORM})",
            record.form
        )
        .into());
    }
    let key = directory.key()?;
    let container = Container {
        store,
        record,
        directory,
        key,
    };
    if let Some(ended) = run_directory::ended(&runs, &name)? {
        // Killed between writing the status down and leaving.
        let driver = container.driver().await?;
        return container.leave(driver, ended).await;
    }
    let (driver, origin) = container.prepare().await?;
    container.attend(driver, origin, signals).await
}

/// What is to be run.
fn record(args: &RunArgs, image: &plan::ImageConfig, digest: &str, runs: &Path) -> Result<Record> {
    let id = hex::encode(random_bytes::<32>().context("cannot choose an id")?);
    let name = match &args.name {
        Some(name) => name.clone(),
        None => names::random_name().context("cannot choose a name")?,
    };
    let hostname = plan::hostname(args, &id)?;
    let disk = runs.join(&name).join("disk.vmdk");
    let (machine, mut mounts) = machine::plan(args, &name, disk)?;
    mounts.extend(plan::tmpfs(args));
    let vnic = machine.spec.nics.first().map(|nic| {
        let network = UserModeNetwork {
            guest: UserNetwork::GUEST,
            prefix: UserNetwork::PREFIX,
            gateway: UserNetwork::GATEWAY,
            dns: UserNetwork::DNS,
        };
        (MacAddress(nic.mac.bytes()), network)
    });
    Ok(Record {
        form: FORM,
        process: plan::process(args, image, &hostname, terminal::size())?,
        guest: GuestRecord {
            hostname,
            domainname: args.domainname.clone().unwrap_or_default(),
            machine_id: id.chars().take(32).collect(),
            read_only: args.read_only,
            mounts,
            network: plan::network(args, vnic)?,
            deadline_ms: SETUP_DEADLINE_MS,
        },
        id,
        name,
        image: args.image().to_owned(),
        image_digest: digest.to_owned(),
        created: now().as_secs(),
        labels: plan::labels(args, image)?,
        remove: args.rm,
        interactive: args.interactive,
        forward_signals: args.sig_proxy,
        stop: plan::stop(args, image)?,
        unread_grace_ms: plan::unread_grace_ms(args),
        machine,
    })
}

/// A container that this process owns.
pub struct Container {
    pub store: Store,
    pub record: Record,
    pub directory: RunDirectory,
    pub key: [u8; 32],
}

impl Container {
    /// Its driver.
    ///
    /// # Errors
    /// The driver's.
    pub async fn driver(&self) -> Result<Arc<dyn Hypervisor>> {
        machine::driver(&self.directory.join("vm"), &self.record.machine).await
    }

    /// Makes of disks and VM what is not there yet, and powers it on if it never was. May be cut
    /// short and done again.
    async fn prepare(&self) -> Result<(Arc<dyn Hypervisor>, Origin)> {
        let disk = self.directory.join("disk.vmdk");
        if !disk.exists() {
            let id: Digest = self.record.image_digest.parse()?;
            let new = self.directory.join("disk.vmdk.new");
            // Left by one that was killed here.
            let _ = std::fs::remove_file(&new);
            self.store.child(&id, &self.record.id, &new)?;
            std::fs::rename(&new, &disk)
                .with_context(|| format!("cannot make {}", disk.display()))?;
        }
        for volume in &self.record.machine.new_volumes {
            if !volume.file.exists() {
                let label = image::ext4::Label::new("volume").unwrap_or(image::ext4::Label::EMPTY);
                image::vmdk::create_scratch(volume.size, label, &volume.file)?;
            }
        }
        let driver = self.driver().await?;
        let spec = &self.record.machine.spec;
        let power = match driver.inspect(&spec.id).await {
            Ok(machine) => machine.power,
            Err(error) if matches!(error.cause(), Cause::NotFound { .. }) => {
                let key = hypervisor::ChannelKey::from_bytes(self.key);
                let create = || driver.create(spec.clone(), key, Default::default());
                match create().await {
                    // Half made by one that was killed there.
                    Err(error) if matches!(error.cause(), Cause::AlreadyExists { .. }) => {
                        driver.reconcile().await?;
                        create().await?;
                    }
                    created => {
                        created?;
                    }
                }
                PowerState::Off {
                    cause: hypervisor::StopCause::NeverStarted,
                }
            }
            Err(error) => return Err(error.into()),
        };
        let origin = match power {
            PowerState::On => Origin::Found,
            PowerState::Suspended => {
                driver.resume(&spec.id).await?;
                Origin::Found
            }
            PowerState::Off {
                cause: hypervisor::StopCause::NeverStarted,
            } => {
                driver.power_on(&spec.id).await?;
                if let Some(began) = driver.inspect(&spec.id).await?.began {
                    self.say(&began);
                }
                Origin::New
            }
            PowerState::Off { cause } => bail!(
                "container {} cannot go on: {cause}. Remove it with `vch rm {}`",
                self.record.name,
                self.record.name
            ),
        };
        Ok((driver, origin))
    }

    /// Tells people what took its time. A program that reads standard error is told only what it
    /// asked for and did not get.
    fn say(&self, began: &Started) {
        let people = std::io::stderr().is_terminal();
        match began {
            Started::Forked { made: true, .. } if people => eprintln!(
                "vch: made a template of this VM; the next like it are forked in a fraction of the time."
            ),
            Started::BootedInstead { why } if people || self.record.machine.says_how => {
                eprintln!("vch: the VM booted instead of being forked: {why}.");
            }
            Started::Booted
            | Started::Forked { .. }
            | Started::ForkedRunning { .. }
            | Started::BootedInstead { .. } => {}
        }
    }

    /// Stays with the container to its end.
    async fn attend(
        self,
        driver: Arc<dyn Hypervisor>,
        origin: Origin,
        signals: Signals,
    ) -> Result<u8, Failure> {
        let foreground = Foreground {
            record: &self.record,
            directory: &self.directory,
            key: self.key,
            driver: &driver,
            origin,
        };
        match foreground.attend(signals).await {
            Outcome::Ended(ended) => self.leave(driver, ended).await,
            Outcome::Failed(failure) => {
                let ended = Ended {
                    status: failure.status,
                    exit: None,
                    error: Some(format!("{:#}", failure.error)),
                    finished: now().as_secs(),
                };
                self.directory.write_ended(&ended)?;
                self.cut(&driver).await;
                if self.record.remove {
                    self.remove(Some(driver)).await?;
                }
                Err(failure)
            }
            Outcome::Left(failure) => Err(failure),
        }
    }

    /// The process has ended and all it wrote is written: nothing but the VM is left.
    async fn leave(self, driver: Arc<dyn Hypervisor>, ended: Ended) -> Result<u8, Failure> {
        self.cut(&driver).await;
        if self.record.remove {
            self.remove(Some(driver)).await?;
        }
        match ended.error {
            Some(error) => Err(Failure::new(ended.status, anyhow!(error))),
            None => Ok(ended.status),
        }
    }

    /// No power after this; a machine that is off or was never made is no failure.
    async fn cut(&self, driver: &Arc<dyn Hypervisor>) {
        let id = &self.record.machine.spec.id;
        if let Err(error) = driver.power_off(id, PowerOff::Cut).await
            && !matches!(error.cause(), Cause::NotFound { .. })
        {
            let error = anyhow::Error::new(error);
            eprintln!("vch: {error:#}.");
        }
    }

    /// Nothing of it is left after this, volumes aside.
    ///
    /// # Errors
    /// The driver's, or the file system's.
    pub async fn remove(self, driver: Option<Arc<dyn Hypervisor>>) -> Result<()> {
        if let Some(driver) = driver {
            match driver.destroy(&self.record.machine.spec.id).await {
                Err(error) if !matches!(error.cause(), Cause::NotFound { .. }) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        let id: Digest = self.record.image_digest.parse()?;
        let (store, user) = (self.store, self.record.id);
        self.directory.remove()?;
        store.release(&id, &user)?;
        Ok(())
    }
}

/// What is said when a process ran out of memory.
pub fn out_of_memory(record: &Record) -> String {
    let memory = crate::image_commands::human(record.machine.spec.memory.bytes());
    format!(
        "container {} ran out of memory and was killed: its VM has {memory}; give it more with --memory",
        record.name
    )
}
