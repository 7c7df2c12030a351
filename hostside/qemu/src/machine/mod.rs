//! One machine: its record, its QEMU while it has one, and the lock under
//! which they change.
//!
//! What others see of it ([`Machine::view`]) is a copy that takes no lock
//! held across I/O. The [`watch`] task turns what QEMU says into changes; it
//! holds the machine weakly, so that dropping the driver ends it and leaves
//! QEMU running.

mod change;
mod fork;
mod live;
mod power;
mod watch;

pub(crate) use change::{absolute, check_metadata, resolve};

use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use hypervisor::{
    Carrier, Cause, Channel, ChannelKind, Claim, EventSender, Machine as View, MachineId, Notice,
    PowerState,
};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, broadcast};
use tokio::task::AbortHandle;

use crate::channel::{Older, Socket};
use crate::console::Console;
use crate::directory::{CHANNEL_SOCKET, Directory, Life, Record};
use crate::driver::Options;
use crate::process::{Ending, Process};
use crate::qmp::{Qmp, QmpError, RunState};
use crate::spare::Spares;
use crate::tsc::Measurement;
use crate::{log, statistics, vsock};

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    id: MachineId,
    directory: Directory,
    console: Console,
    options: Arc<Options>,
    tsc: Measurement,
    spares: Arc<Spares>,
    events: EventSender,
    view: StdMutex<View>,
    state: Mutex<State>,
    /// Devices the guest let go of.
    deleted: broadcast::Sender<String>,
}

#[derive(Debug)]
struct State {
    record: Record,
    body: Body,
    /// Its vsock daemon, while its channel is carried by one.
    vsock: Option<Process>,
}

/// The machine's QEMU.
#[derive(Debug)]
enum Body {
    /// There is none.
    Off,
    /// It runs and answers.
    Running(Running),
    /// It runs and does not answer; it can only be killed.
    Mute { process: Process, why: QmpError },
    /// The machine is being or has been removed.
    Destroyed,
}

#[derive(Debug)]
struct Running {
    qmp: Qmp,
    process: Arc<Process>,
    /// Held for its end.
    _watch: AbortOnDrop,
    /// The newest channel, which ends when a newer one comes.
    channel: Older,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Machine {
    /// A machine that is off, from its directory and record.
    pub(crate) fn new(
        directory: Directory,
        record: Record,
        options: Arc<Options>,
        tsc: Measurement,
        spares: Arc<Spares>,
        events: EventSender,
    ) -> Arc<Self> {
        let power = match &record.life {
            Life::Off(cause) => PowerState::Off {
                cause: cause.clone(),
            },
            Life::Started => PowerState::On,
        };
        let view = View {
            id: record.spec.id,
            spec: record.spec.clone(),
            power,
            metadata: record.metadata.clone(),
            created: record.created,
            started: record.started,
            stopped: record.stopped,
            began: record.began.clone(),
        };
        Arc::new(Self {
            id: record.spec.id,
            console: Console::new(directory.path()),
            directory,
            options,
            tsc,
            spares,
            events,
            view: StdMutex::new(view),
            state: Mutex::new(State {
                record,
                body: Body::Off,
                vsock: None,
            }),
            deleted: broadcast::channel(64).0,
        })
    }

    pub(crate) fn id(&self) -> MachineId {
        self.id
    }

    /// The machine as it is known now.
    pub(crate) fn view(&self) -> View {
        self.lock_view().clone()
    }

    fn lock_view(&self) -> MutexGuard<'_, View> {
        // Nothing that can panic runs under this lock.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine's directory is still there.
    pub(crate) fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// Makes the view say what the record does.
    fn show(&self, record: &Record) {
        let mut view = self.lock_view();
        view.spec = record.spec.clone();
        view.metadata = record.metadata.clone();
        view.started = record.started;
        view.stopped = record.stopped;
        view.began = record.began.clone();
    }

    /// Changes the power state others see, and tells them if it is news.
    fn set_power(&self, power: PowerState) {
        let before = std::mem::replace(&mut self.lock_view().power, power.clone());
        let notice = match (&before, power) {
            (PowerState::Off { .. }, PowerState::Off { .. }) => return,
            (_, PowerState::Off { cause }) => Notice::PoweredOff(cause),
            (PowerState::On, PowerState::On) | (PowerState::Suspended, PowerState::Suspended) => {
                return;
            }
            (PowerState::Off { .. }, PowerState::On) => Notice::PoweredOn,
            (PowerState::Suspended, PowerState::On) => Notice::Resumed,
            (_, PowerState::Suspended) => Notice::Suspended,
        };
        self.events.send(self.id, notice);
    }

    /// A new connection to the channel; an older one ends.
    pub(crate) async fn connect_channel(&self) -> Result<Channel, Cause> {
        let mut state = self.state.lock().await;
        let State {
            record,
            body,
            vsock,
        } = &mut *state;
        let running = body.running(&self.view().power)?;
        let in_kernel = vsock.is_none();
        let kind = record.spec.channel;
        let key = self.directory.key()?;
        // QEMU serves one client.
        running.channel.end();
        // A vsock's guest takes its time to accept, for which nobody else waits.
        let (name, by_vsock) = match kind {
            ChannelKind::Virtio | ChannelKind::Serial => (CHANNEL_SOCKET, false),
            ChannelKind::Vsock => (vsock::HOST_SOCKET, true),
        };
        let fail = |source| Cause::File {
            what: "cannot connect to",
            path: self.directory.file(name),
            source,
        };
        let stream = if by_vsock && in_kernel {
            drop(state);
            let stream = vsock::connect_kernel(self.id).await.map_err(|source| {
                Cause::because("the guest does not accept a vsock connection", source)
            })?;
            state = self.state.lock().await;
            stream
        } else {
            let stream = StdStream::connect(self.directory.short(name)).map_err(fail)?;
            if by_vsock {
                drop(state);
                let stream = vsock::connect_daemon(stream).await.map_err(|source| {
                    Cause::because("the guest does not accept a vsock connection", source)
                })?;
                state = self.state.lock().await;
                stream
            } else {
                stream.set_nonblocking(true).map_err(fail)?;
                UnixStream::from_std(stream).map_err(fail)?
            }
        };
        let Body::Running(running) = &mut state.body else {
            return Err(Cause::WrongState {
                state: self.view().power,
            });
        };
        let (socket, older) = Socket::new(stream).map_err(fail)?;
        running.channel.end();
        running.channel = older;
        let carrier = match kind {
            ChannelKind::Virtio | ChannelKind::Vsock => Carrier::Stream,
            ChannelKind::Serial => Carrier::Serial,
        };
        let claim = self.directory.took_over().then(|| Claim {
            id: self.id,
            macs: state.record.spec.nics.iter().map(|nic| nic.mac).collect(),
        });
        Ok(Channel {
            io: Box::new(socket),
            kind,
            carrier,
            key,
            claim,
        })
    }

    /// The end of the console.
    pub(crate) async fn console(&self) -> Result<Vec<u8>, Cause> {
        let qmp = match &self.state.lock().await.body {
            Body::Running(running) => Some(running.qmp.clone()),
            Body::Off | Body::Mute { .. } | Body::Destroyed => None,
        };
        if let Some(qmp) = qmp {
            // A QEMU that ends just now drains it on its own way out.
            let _ = self.console.drain(&qmp).await;
        }
        self.console
            .tail()
            .map_err(|source| self.console_failure(source))
    }

    /// The console from power on, as it comes.
    pub(crate) async fn follow_console(
        &self,
    ) -> Result<tokio::sync::mpsc::Receiver<Vec<u8>>, Cause> {
        let mut state = self.state.lock().await;
        let running = state.body.running(&self.view().power)?;
        self.console
            .follow(&running.qmp)
            .await
            .map_err(|source| self.console_failure(source))
    }

    fn console_failure(&self, source: std::io::Error) -> Cause {
        Cause::File {
            what: "cannot read",
            path: self.directory.file("console.log"),
            source,
        }
    }

    /// What it uses.
    pub(crate) async fn statistics(&self) -> Result<hypervisor::Statistics, Cause> {
        let mut state = self.state.lock().await;
        let State { record, body, .. } = &mut *state;
        let running = body.running(&self.view().power)?;
        let pid = running.process.pid();
        let mut used = statistics::of_process(pid).map_err(|source| {
            Cause::because(format!("cannot read what process {pid} uses"), source)
        })?;
        used.memory_given = record.spec.memory.bytes();
        if !record.spec.disks.is_empty() {
            let answer = running.qmp.ask("query-blockstats").await.map_err(refused)?;
            used.disks = statistics::of_disks(&answer, &record.spec.disks);
        }
        Ok(used)
    }
}

impl Body {
    /// The QEMU, if it runs and answers.
    fn running(&mut self, power: &PowerState) -> Result<&mut Running, Cause> {
        match self {
            Self::Running(running) => Ok(running),
            Self::Off => Err(Cause::WrongState {
                state: power.clone(),
            }),
            Self::Mute { process, why } => Err(Cause::because(
                format!(
                    "QEMU (process {}) does not answer; power the machine off to end it",
                    process.pid()
                ),
                why.clone(),
            )),
            Self::Destroyed => Err(Cause::NotFound { what: "machine" }),
        }
    }
}

/// A refused command as a cause.
fn refused(error: QmpError) -> Cause {
    Cause::because("QEMU did not do it", error)
}
