//! One simulated machine: its specification, and its guest's task while it is
//! on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tether_wire::CarrierKind;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::files::image;
use super::guest::{self, CARRIER_BUFFER, Control, Fault};
use super::lock;
use super::tether::Hardware;
use crate::{
    Applied, Carrier, Cause, Channel, ChannelKey, ChannelKind, DiskSerial, DiskSpec, EventSender,
    Machine, MachineSpec, Metadata, MetadataChange, Notice, PowerState, Reconfigure, Statistics,
    StopCause,
};

#[derive(Debug)]
pub(super) struct FakeMachine {
    key: ChannelKey,
    events: EventSender,
    hardware: Arc<Hardware>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    view: Machine,
    guest: Guest,
    /// Tells one run's end from the next one's.
    runs: u64,
    boot_faults: Vec<Fault>,
    console: Vec<u8>,
    followers: Vec<mpsc::Sender<Vec<u8>>>,
}

#[derive(Debug)]
enum Guest {
    Off,
    On {
        run: u64,
        control: mpsc::UnboundedSender<Control>,
        task: AbortHandle,
        since: Instant,
    },
}

impl FakeMachine {
    pub(super) fn new(
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
        events: EventSender,
        store: Arc<image::Disks>,
    ) -> Arc<Self> {
        let hardware = Arc::new(Hardware {
            disks: Mutex::new(spec.disks.clone()),
            size: Mutex::new((spec.memory.bytes(), spec.cpus.count())),
            store,
        });
        let view = Machine {
            id: spec.id,
            spec,
            power: PowerState::Off {
                cause: StopCause::NeverStarted,
            },
            metadata,
            created: SystemTime::now(),
            started: SystemTime::UNIX_EPOCH,
            stopped: SystemTime::UNIX_EPOCH,
            began: None,
        };
        let state = State {
            view,
            guest: Guest::Off,
            runs: 0,
            boot_faults: Vec::new(),
            console: Vec::new(),
            followers: Vec::new(),
        };
        Arc::new(Self {
            key,
            events,
            hardware,
            state: Mutex::new(state),
        })
    }

    pub(super) fn view(&self) -> Machine {
        lock(&self.state).view.clone()
    }

    pub(super) fn set_boot_faults(&self, faults: Vec<Fault>) {
        lock(&self.state).boot_faults = faults;
    }

    fn carrier(kind: ChannelKind) -> (Carrier, CarrierKind) {
        match kind {
            ChannelKind::Serial => (Carrier::Serial, CarrierKind::Serial),
            ChannelKind::Vsock | ChannelKind::Virtio => (Carrier::Stream, CarrierKind::Stream),
        }
    }

    pub(super) fn power_on(self: &Arc<Self>) -> Result<(), Cause> {
        let mut state = lock(&self.state);
        if let Guest::On { .. } = state.guest {
            return Err(Cause::WrongState {
                state: state.view.power.clone(),
            });
        }
        let (control, commands) = mpsc::unbounded_channel();
        for fault in &state.boot_faults {
            let _ = control.send(Control::Fault(fault.clone()));
        }
        let (_, kind) = Self::carrier(state.view.spec.channel);
        let since = Instant::now();
        state.runs += 1;
        let run = state.runs;
        let guest = guest::run(kind, *self.key.as_bytes(), self.hardware.clone(), commands);
        let machine = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            let cause = guest.await;
            if let Some(machine) = machine.upgrade() {
                machine.ended(run, cause);
            }
        });
        state.guest = Guest::On {
            run,
            control,
            task: task.abort_handle(),
            since,
        };
        state.console.clear();
        state.say("tether: ready\n");
        state.view.power = PowerState::On;
        state.view.started = SystemTime::now();
        self.events.send(state.view.id, Notice::PoweredOn);
        Ok(())
    }

    /// The guest came to its end by itself.
    fn ended(&self, ended: u64, cause: StopCause) {
        let mut state = lock(&self.state);
        if let Guest::On { run, .. } = state.guest
            && run == ended
        {
            self.off(&mut state, cause);
        }
    }

    /// Cuts the power, for this cause.
    pub(super) fn cut(&self, cause: StopCause) -> Result<(), Cause> {
        let mut state = lock(&self.state);
        match &state.guest {
            Guest::Off => Err(Cause::WrongState {
                state: state.view.power.clone(),
            }),
            Guest::On { task, .. } => {
                task.abort();
                self.off(&mut state, cause);
                Ok(())
            }
        }
    }

    fn off(&self, state: &mut State, cause: StopCause) {
        match &cause {
            StopCause::GuestPanic => state.say("Kernel panic - not syncing: it was made to\n"),
            StopCause::GuestShutdown => state.say("reboot: Power down\n"),
            _ => {}
        }
        state.guest = Guest::Off;
        state.followers.clear();
        state.view.stopped = SystemTime::now();
        state.view.power = PowerState::Off {
            cause: cause.clone(),
        };
        self.events.send(state.view.id, Notice::PoweredOff(cause));
    }

    pub(super) fn control(&self, command: Control) -> Result<(), Cause> {
        let state = lock(&self.state);
        match &state.guest {
            Guest::On { control, .. } if control.send(command).is_ok() => Ok(()),
            _ => Err(Cause::WrongState {
                state: state.view.power.clone(),
            }),
        }
    }

    /// Stops the virtual CPUs or lets them run.
    pub(super) async fn freeze(&self, wanted: PowerState) -> Result<(), Cause> {
        let (done, answer) = oneshot::channel();
        let suspends = wanted == PowerState::Suspended;
        self.control(if suspends {
            Control::Suspend(done)
        } else {
            Control::Resume(done)
        })?;
        let answered = answer.await;
        let mut state = lock(&self.state);
        if answered.is_err() || matches!(state.guest, Guest::Off) {
            return Err(Cause::WrongState {
                state: state.view.power.clone(),
            });
        }
        if state.view.power != wanted {
            state.view.power = wanted;
            self.events.send(
                state.view.id,
                if suspends {
                    Notice::Suspended
                } else {
                    Notice::Resumed
                },
            );
        }
        Ok(())
    }

    pub(super) fn connect(&self) -> Result<Channel, Cause> {
        let kind = lock(&self.state).view.spec.channel;
        let (ours, theirs) = tokio::io::duplex(CARRIER_BUFFER);
        self.control(Control::Connect(theirs))?;
        let (carrier, _) = Self::carrier(kind);
        Ok(Channel {
            io: Box::new(ours),
            kind,
            carrier,
            key: self.key,
            claim: None,
        })
    }

    pub(super) fn reconfigure(&self, change: Reconfigure) -> Applied {
        let mut state = lock(&self.state);
        state.view.spec.cpus = change.cpus;
        state.view.spec.memory = change.memory;
        *lock(&self.hardware.size) = (change.memory.bytes(), change.cpus.count());
        match state.guest {
            Guest::On { .. } => Applied::Live,
            Guest::Off => Applied::AtPowerOn,
        }
    }

    pub(super) fn attach_disk(&self, disk: DiskSpec) -> Result<(), Cause> {
        let mut state = lock(&self.state);
        if state
            .view
            .spec
            .disks
            .iter()
            .any(|other| other.serial == disk.serial)
        {
            return Err(Cause::AlreadyExists {
                what: format!("disk {}", disk.serial),
            });
        }
        lock(&self.hardware.disks).push(disk.clone());
        state.view.spec.disks.push(disk);
        Ok(())
    }

    pub(super) fn detach_disk(&self, serial: &DiskSerial) -> Result<(), Cause> {
        let mut state = lock(&self.state);
        let before = state.view.spec.disks.len();
        state.view.spec.disks.retain(|disk| disk.serial != *serial);
        if state.view.spec.disks.len() == before {
            return Err(Cause::NotFound { what: "disk" });
        }
        lock(&self.hardware.disks).retain(|disk| disk.serial != *serial);
        Ok(())
    }

    pub(super) fn set_metadata(&self, changes: Vec<MetadataChange>) {
        let mut state = lock(&self.state);
        for change in changes {
            match change {
                MetadataChange::Set { key, value } => state.view.metadata.insert(key, value),
                MetadataChange::Remove { key } => state.view.metadata.remove(&key),
            };
        }
    }

    pub(super) fn statistics(&self) -> Result<Statistics, Cause> {
        let state = lock(&self.state);
        match &state.guest {
            Guest::Off => Err(Cause::WrongState {
                state: state.view.power.clone(),
            }),
            Guest::On { since, .. } => Ok(Statistics {
                cpu_time: since.elapsed().min(Duration::from_secs(1)),
                memory_given: state.view.spec.memory.bytes(),
                memory_resident: state.view.spec.memory.bytes(),
                ..Statistics::default()
            }),
        }
    }

    pub(super) fn console(&self) -> Vec<u8> {
        lock(&self.state).console.clone()
    }

    pub(super) fn follow_console(&self) -> Result<mpsc::Receiver<Vec<u8>>, Cause> {
        let mut state = lock(&self.state);
        if matches!(state.guest, Guest::Off) {
            return Err(Cause::WrongState {
                state: state.view.power.clone(),
            });
        }
        let (follower, receiver) = mpsc::channel(16);
        let _ = follower.try_send(state.console.clone());
        state.followers.push(follower);
        Ok(receiver)
    }
}

impl State {
    fn say(&mut self, line: &str) {
        self.console.extend_from_slice(line.as_bytes());
        for follower in &self.followers {
            let _ = follower.try_send(line.as_bytes().to_vec());
        }
    }
}
