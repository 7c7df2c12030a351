//! QEMUs started ahead of need: forks of a template that are nobody's machine yet.
//!
//! ```text
//! machines/.spare-UUID/      a spare's directory; its QEMU runs in it, with its state restored
//!     channel.key            drawn for it, as is its boot id
//!     qmp.sock channel.sock qemu.log
//! machines/UUID/run/         the same directory once it is a machine's, which has links to what is in it
//! ```
//!
//! A spare has the shape of the machine it was started for: as many vNICs, and a place for each disk, held
//! by a disk of nothing (`null-co`). A power on that finds one of its shape puts the disks in their places
//! (QEMU lets a device's `drive` be set), publishes the ports, and lets it run. What the firmware cannot tell
//! the guest any more (UUID, MAC addresses) it is told by its host: [`hypervisor::Claim`].
//!
//! Spares are started after a fork, one at a time, for machines like it; those of other shapes make room,
//! the oldest first. Their guests stand still, or have rehearsed ([`Rehearsal`]) and wait. They end with the
//! driver, or when the next one opens its place.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hypervisor::{
    Attachment, Carrier, Cause, Channel, ChannelKey, ChannelKind, DiskAccess, DiskSerial,
    MacAddress, MachineId, MachineSpec, NicSpec, TemplateId,
};
use tokio::net::UnixStream;

use crate::argv::{KEY_FILE, Wire};
use crate::directory::{CHANNEL_SOCKET, Directory, LOG, SPARE};
use crate::driver::Options;
use crate::process::{Lifetime, Process};
use crate::qmp::{EventStream, Qmp, RunState};
use crate::rehearsal::Rehearsal;
use crate::start::{Starter, Wanted};
use crate::template::{self, Template};

/// How long after a power on the next spare is started: what was started comes first.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a spare may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// How many spares there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpareLimits {
    /// QEMUs; none by default.
    pub count: usize,
    /// Bytes of guest memory of all of them, whether touched or not.
    pub memory: u64,
}

impl Default for SpareLimits {
    fn default() -> Self {
        Self {
            count: 0,
            memory: 4 << 30,
        }
    }
}

/// What machines that can become of one spare have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    template: TemplateId,
    disks: Vec<(DiskSerial, DiskAccess)>,
    nics: usize,
    memory: u64,
}

impl Shape {
    /// Of machines like this one.
    pub(crate) fn of(template: &TemplateId, spec: &MachineSpec) -> Self {
        Self {
            template: template.clone(),
            disks: spec
                .disks
                .iter()
                .map(|disk| (disk.serial.clone(), disk.access))
                .collect(),
            nics: spec.nics.len(),
            memory: spec.memory.bytes(),
        }
    }
}

/// A QEMU that waits for its machine. Dropped, it ends and leaves nothing.
#[derive(Debug)]
pub(crate) struct Spare {
    shape: Shape,
    qmp: Qmp,
    events: EventStream,
    // Ended before its directory is removed: fields are dropped in this order.
    process: Unclaimed,
    home: Home,
}

/// A QEMU that ends with this, unless it is taken out.
#[derive(Debug)]
struct Unclaimed(Option<Process>);

impl Unclaimed {
    fn process(&self) -> Result<&Process, Cause> {
        self.0.as_ref().ok_or_else(taken_twice)
    }
}

fn taken_twice() -> Cause {
    Cause::hypervisor("a QEMU was taken twice")
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill_and_reap();
        }
    }
}

/// A spare's directory, removed unless it is taken over.
#[derive(Debug)]
struct Home {
    id: MachineId,
    directory: Directory,
    spares: Arc<Shared>,
    taken: bool,
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.taken {
            let _ = fs::remove_dir_all(self.directory.path());
        }
        self.spares.lock().known.remove(&self.id);
    }
}

impl Spare {
    /// Whether its guest still waits.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`]: QEMU does not answer, or its guest has ended.
    pub(crate) async fn check(&self) -> Result<(), Cause> {
        match self.qmp.run_state().await.map_err(refused)? {
            RunState::Running | RunState::Stopped | RunState::Incoming => Ok(()),
            RunState::Shutdown | RunState::Panicked | RunState::InternalError => {
                Err(Cause::hypervisor("its guest has ended"))
            }
        }
    }

    /// Its QEMU.
    pub(crate) fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Its QEMU's number, 0 if it has none any more.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.as_ref().map_or(0, Process::pid)
    }

    /// Makes its directory one of a machine's, and its QEMU that machine's.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; then it ends.
    pub(crate) fn become_part_of(
        mut self,
        machine: &Directory,
    ) -> Result<(Qmp, EventStream, Process), Cause> {
        machine.take_over(&self.home.directory)?;
        self.home.taken = true;
        let process = self.process.0.take().ok_or_else(taken_twice)?;
        Ok((self.qmp, self.events, process))
    }
}

/// The spares of one driver.
#[derive(Debug)]
pub(crate) struct Spares {
    machines: PathBuf,
    options: Arc<Options>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    ready: Vec<Spare>,
    /// Those, and the ones being made.
    known: BTreeSet<MachineId>,
    /// Whether somebody makes some.
    filling: bool,
    /// The driver is gone.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.close();
    }
}

impl Spares {
    /// None yet.
    pub(crate) fn new(machines: PathBuf, options: Arc<Options>) -> Arc<Self> {
        Arc::new(Self {
            machines,
            options,
            shared: Arc::default(),
        })
    }

    /// Ends all, and starts none any more.
    pub(crate) fn close(&self) {
        let ready = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.ready)
        };
        drop(ready);
    }

    /// Whether a machine's identity is a spare's, ready or not.
    pub(crate) fn knows(&self, id: &MachineId) -> bool {
        self.shared.lock().known.contains(id)
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// One of this shape, if there is one.
    pub(crate) fn take(&self, shape: &Shape) -> Option<Spare> {
        let mut state = self.shared.lock();
        let index = state.ready.iter().position(|s| s.shape == *shape)?;
        Some(state.ready.remove(index))
    }

    /// Starts some for machines like this one, in a while; the template is held until then.
    pub(crate) fn refill(self: &Arc<Self>, template: Box<Template>, spec: &MachineSpec) {
        let limits = self.options.spares;
        if limits.count == 0 || spec.memory.bytes() > limits.memory {
            return;
        }
        if std::mem::replace(&mut self.shared.lock().filling, true) {
            return;
        }
        let spares = Arc::downgrade(self);
        let shape = Shape::of(&template.record.id, spec);
        let spec = spec.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            while let Some(spares) = spares.upgrade() {
                spares.make_room(&shape);
                if spares.shared.lock().closed || !spares.wants(&shape) {
                    spares.shared.lock().filling = false;
                    return;
                }
                match spares.start(&template, &spec, &shape).await {
                    Ok(spare) => {
                        let mut state = spares.shared.lock();
                        if state.closed {
                            // Not under the lock, which its end takes.
                            drop(state);
                            drop(spare);
                        } else {
                            tracing::debug!(pid = spare.pid(), spare = %spare.home.id, "a QEMU is ready ahead of need");
                            state.ready.push(spare);
                        }
                    }
                    Err(cause) => {
                        tracing::warn!(%cause, "cannot start a QEMU ahead of need");
                        spares.shared.lock().filling = false;
                        return;
                    }
                }
            }
        });
    }

    fn wants(&self, shape: &Shape) -> bool {
        let limits = self.options.spares;
        let state = self.shared.lock();
        let memory: u64 = state.ready.iter().map(|spare| spare.shape.memory).sum();
        state.ready.len() < limits.count && memory.saturating_add(shape.memory) <= limits.memory
    }

    /// Ends spares of other shapes until one of this has room.
    fn make_room(&self, shape: &Shape) {
        while !self.wants(shape) {
            let other = {
                let mut state = self.shared.lock();
                let index = state.ready.iter().position(|spare| spare.shape != *shape);
                index.map(|index| state.ready.remove(index))
            };
            if other.is_none() {
                return;
            }
        }
    }

    /// Starts one and gives it its state.
    async fn start(
        &self,
        template: &Template,
        model: &MachineSpec,
        shape: &Shape,
    ) -> Result<Spare, Cause> {
        let random = |source| Cause::because("the host has no random bytes", source);
        let id = MachineId::random().map_err(random)?;
        let key = ChannelKey::random().map_err(random)?;
        let mut spec = model.clone();
        spec.id = id;
        spec.name = format!("spare-{}", &id.to_string()[..8]);
        spec.nics = (0..shape.nics)
            .map(|_| {
                Ok(NicSpec {
                    mac: MacAddress::random()?,
                    attachment: Attachment::UserMode {
                        published: Vec::new(),
                    },
                })
            })
            .collect::<std::io::Result<_>>()
            .map_err(random)?;
        let path = self.machines.join(format!("{SPARE}{id}"));
        self.shared.lock().known.insert(id);
        let made = DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(template::at("cannot make directory", &path))
            .and_then(|()| Directory::open(path));
        let directory = match made {
            Ok(directory) => directory,
            Err(cause) => {
                self.shared.lock().known.remove(&id);
                return Err(cause);
            }
        };
        let home = Home {
            id,
            directory,
            spares: self.shared.clone(),
            taken: false,
        };
        let started = self.start_in(&home.directory, &key, template, &spec);
        let (qmp, events, process) = tokio::time::timeout(READY, started)
            .await
            .unwrap_or_else(|_| Err(Cause::hypervisor("QEMU was not ready in time")))?;
        Ok(Spare {
            shape: shape.clone(),
            qmp,
            events,
            process,
            home,
        })
    }

    async fn start_in(
        &self,
        directory: &Directory,
        key: &ChannelKey,
        template: &Template,
        spec: &MachineSpec,
    ) -> Result<(Qmp, EventStream, Unclaimed), Cause> {
        let create = |name: &str| -> Result<File, Cause> {
            let path = directory.file(name);
            OpenOptions::new()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(template::at("cannot create", &path))
        };
        template.rewind()?;
        use std::io::Write as _;
        let key_file = directory.file(KEY_FILE);
        create(KEY_FILE)?
            .write_all(key.as_bytes())
            .map_err(template::at("cannot write", &key_file))?;
        let log = create(LOG)?;
        let starter = Starter {
            directory,
            options: &self.options,
        };
        let channel = starter.listen(CHANNEL_SOCKET)?;
        let mut inherited = vec![channel.as_fd()];
        inherited.extend(template.files());
        let process = starter.start(Wanted {
            spec,
            log: &log,
            lifetime: Lifetime::Own,
            channel: Wire::Listener {
                fd: channel.as_raw_fd(),
            },
            birth: template.birth(true)?,
            inherited,
            tsc_khz: None,
            uefi_code: None,
        })?;
        drop(channel);
        let unclaimed = Unclaimed(Some(process));
        let process = unclaimed.process()?;
        let (qmp, mut events) = starter.greeted(process).await?;
        let uri = template.state_uri();
        let restored = starter.restore(process, &qmp, &mut events, &uri, READY);
        restored.await?;
        if let Some(rehearsal) = &self.options.rehearsal {
            let led = rehearse(rehearsal, directory, key, &qmp);
            tokio::select! {
                led = led => led?,
                ending = process.ended() => {
                    return Err(Cause::hypervisor(format!("QEMU {ending} while its guest rehearsed")));
                }
            }
        }
        Ok((qmp, events, unclaimed))
    }
}

/// Lets the guest run, as nobody's machine yet, and has it led through its first steps.
async fn rehearse(
    rehearsal: &Rehearsal,
    directory: &Directory,
    key: &ChannelKey,
    qmp: &Qmp,
) -> Result<(), Cause> {
    qmp.ask("cont").await.map_err(refused)?;
    let io = UnixStream::connect(directory.short(CHANNEL_SOCKET)).await;
    let io = io.map_err(template::at(
        "cannot connect to",
        &directory.file(CHANNEL_SOCKET),
    ))?;
    let channel = Channel {
        io: Box::new(io),
        kind: ChannelKind::Virtio,
        carrier: Carrier::Stream,
        key: *key,
        claim: None,
    };
    let led = rehearsal.lead(channel).await;
    led.map_err(|source| Cause::hypervisor(format!("its rehearsal failed: {source}")))
}

fn refused(error: crate::qmp::QmpError) -> Cause {
    Cause::because("QEMU did not become a spare", error)
}
