//! A simulated tether: does what the wire's [`Machine`] is asked, on a simulated
//! kernel.

mod files;
pub(super) mod launch;
pub(super) mod setup;
pub(super) mod streams;
mod user;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tether_wire::message::{
    Action, CpuUsage, Error, ErrorKind, Exit, FileOperation, InterfaceUsage, MachineEvent,
    MemoryUsage, Mount, Network, ProcessId, ProcessInfo, ProcessPage, ProcessSpec, Reply, Setup,
    ShutdownSpec, SignalTarget, Started, Statistics, TerminalSize,
};
use tether_wire::{GuestSession, Machine, Outcome, Ticket};
use tokio::time::Instant;

use super::files::image;
use super::kernel::schedule::{Slice, Tasks};
use super::kernel::{HIDDEN, Kernel, Origin, signal};
use super::lock;
use crate::disk::DiskSpec;
use crate::machine::random_bytes;
use launch::Launched;
use streams::Streams;

/// How long a simulated tether waits for the last acknowledgement.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Turns in a row that used up their slice, after which a machine spins.
const PATIENCE: u32 = 400;
/// How long a machine that spins rests between its slices.
const REST: Duration = Duration::from_millis(5);
/// Most processes of one page, as the real tether's.
const PAGE: usize = 64;
/// Memory of tether itself, bytes.
const OWN_MEMORY: u64 = 1 << 20;

/// What a machine is made of, as the hypervisor changes it while it runs.
#[derive(Debug)]
pub struct Hardware {
    /// Its disks, as they are plugged and unplugged.
    pub disks: Mutex<Vec<DiskSpec>>,
    /// Memory in bytes, and processors.
    pub size: Mutex<(u64, u32)>,
    /// What is on the disks.
    pub store: Arc<image::Disks>,
}

/// How far the machine's end has come.
#[derive(Debug)]
enum Ending {
    Running,
    Stopping {
        ticket: Option<Ticket>,
        kill_at: Instant,
        action: Action,
    },
    LastWord {
        off_at: Instant,
        action: Action,
    },
}

/// What the machine's owner has to do after a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Go on; wake at this moment if one is named.
    On(Option<Instant>),
    /// Go on at once, after others had their turn.
    Again,
    /// Power off.
    PowerOff,
    /// Reset.
    Reset,
}

/// The simulated tether of one machine.
#[derive(Debug)]
pub struct Tether {
    hardware: Arc<Hardware>,
    kernel: Arc<Mutex<Kernel>>,
    tasks: Tasks,
    processes: BTreeMap<ProcessId, Streams>,
    interfaces: Vec<String>,
    ending: Ending,
    /// Turns in a row that used up their slice.
    spent: u32,
}

fn error(kind: ErrorKind, message: impl Into<String>) -> Outcome {
    Outcome::Done(Err(Error::new(kind, message)))
}

impl Tether {
    /// One that has just booted.
    pub fn new(hardware: Arc<Hardware>) -> Self {
        let (memory, processors) = *lock(&hardware.size);
        let seed = random_bytes().unwrap_or([1; 8]);
        let kernel = Kernel::new(memory, processors, u64::from_le_bytes(seed));
        let kernel = Arc::new(Mutex::new(kernel));
        Self {
            hardware,
            tasks: Tasks::new(kernel.clone()),
            kernel,
            processes: BTreeMap::new(),
            interfaces: Vec::new(),
            ending: Ending::Running,
            spent: 0,
        }
    }

    /// Lets every program go on as far as it can, and ends what has to end.
    pub fn turn(&mut self, session: &mut GuestSession) -> Turn {
        {
            let (memory, processors) = *lock(&self.hardware.size);
            let mut kernel = lock(&self.kernel);
            kernel.memory = memory;
            kernel.processors = processors;
        }
        let mut slice;
        let mut rounds = 0;
        loop {
            let mut moved = self.pump(session);
            slice = self.tasks.run();
            moved |= self.settle(session);
            moved |= self.pump(session);
            rounds += 1;
            // What moved may let a program go on; others have a turn too.
            if !moved || slice == Slice::Spent || rounds == 16 {
                if moved && slice != Slice::Spent {
                    slice = Slice::Spent;
                }
                break;
            }
        }
        let mut wake = match slice {
            Slice::Idle(at) => {
                self.spent = 0;
                at
            }
            Slice::Spent if self.spent < PATIENCE => {
                self.spent += 1;
                None
            }
            Slice::Spent => Instant::now().checked_add(REST),
        };
        if let Some(turn) = self.advance_end(session, &mut wake) {
            return turn;
        }
        match slice {
            Slice::Spent if self.spent < PATIENCE => Turn::Again,
            _ => Turn::On(wake),
        }
    }

    fn pump(&mut self, session: &mut GuestSession) -> bool {
        let mut kernel = lock(&self.kernel);
        let mut moved = false;
        for (id, streams) in &mut self.processes {
            moved |= streams.pump(&mut kernel, session, *id);
        }
        moved
    }

    /// Tells the wire what ended.
    fn settle(&mut self, session: &mut GuestSession) -> bool {
        let (ends, kills, now) = {
            let mut kernel = lock(&self.kernel);
            let ends = std::mem::take(&mut kernel.ends);
            (ends, std::mem::take(&mut kernel.kills), kernel.now())
        };
        let some = !ends.is_empty() || !kills.is_empty();
        for process in kills {
            let process = Some(process);
            session.event(MachineEvent::OutOfMemory { process });
        }
        for end in ends {
            if let Some(streams) = self.processes.get_mut(&end.process) {
                streams.close_input(&mut lock(&self.kernel));
            }
            session.exited(
                end.process,
                Exit {
                    status: end.status,
                    oom_killed: end.oom_killed,
                    unix_nanos: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                },
            );
        }
        some
    }

    fn advance_end(
        &mut self,
        session: &mut GuestSession,
        wake: &mut Option<Instant>,
    ) -> Option<Turn> {
        let mut earliest = |at: Instant| *wake = Some(wake.map_or(at, |wake| wake.min(at)));
        let now = Instant::now();
        if let Ending::Stopping {
            ticket,
            kill_at,
            action,
        } = self.ending
        {
            let main_runs = lock(&self.kernel).main().is_some();
            if main_runs && now < kill_at {
                earliest(kill_at);
                return None;
            }
            lock(&self.kernel).kill_everything();
            self.settle(session);
            self.pump(session);
            if let Some(ticket) = ticket {
                session.complete(ticket, Ok(Reply::Done), self);
            }
            let off_at = now + LAST_WORD;
            self.ending = Ending::LastWord { off_at, action };
            earliest(now);
            return None;
        }
        if let Ending::LastWord { off_at, action } = self.ending {
            let said = session.is_flushed() && self.processes.values().all(Streams::ended);
            if said || now >= off_at {
                return Some(match action {
                    Action::PowerOff => Turn::PowerOff,
                    Action::Reboot => Turn::Reset,
                });
            }
            earliest(off_at);
        }
        None
    }

    /// The power button: an orderly end, as a `docker stop` would ask for.
    pub fn power_button(&mut self) {
        if matches!(self.ending, Ending::Running) {
            let spec = ShutdownSpec {
                signal: signal::TERM,
                grace_ms: 10_000,
                action: Action::PowerOff,
            };
            self.stop(None, spec);
        }
    }

    /// The kernel ran out of memory: the main process is killed.
    pub fn out_of_memory(&mut self) {
        let mut kernel = lock(&self.kernel);
        if let Some(main) = kernel.main() {
            kernel.kill_for_memory(main);
        }
    }

    fn stop(&mut self, ticket: Option<Ticket>, spec: ShutdownSpec) {
        let mut kernel = lock(&self.kernel);
        if let Some(main) = kernel.main()
            && spec.signal != 0
        {
            let _ = kernel.signal(main, spec.signal, Origin::Outside);
        }
        let grace = Duration::from_millis(u64::from(spec.grace_ms));
        let now = Instant::now();
        self.ending = Ending::Stopping {
            ticket,
            // Beyond what a clock can say it is never.
            kill_at: now.checked_add(grace).unwrap_or(now),
            action: spec.action,
        };
    }

    fn launched(&mut self, process: ProcessId, launched: Launched) -> Outcome {
        self.processes.insert(process, launched.streams);
        let pid = launched.machine_pid;
        Outcome::Done(Ok(Reply::Started(Started { pid })))
    }

    /// Why nothing can be started now.
    fn refusal(&self) -> Option<Outcome> {
        if lock(&self.kernel).mounts.iter().next().is_none() {
            let message = "the container has no root: its setup did not succeed";
            return Some(error(ErrorKind::Busy, message));
        }
        if !matches!(self.ending, Ending::Running) {
            return Some(error(ErrorKind::Busy, "the machine is shutting down"));
        }
        None
    }
}

impl Machine for Tether {
    fn entropy(&mut self) -> [u8; 16] {
        random_bytes().unwrap_or_default()
    }

    fn setup(&mut self, _ticket: Ticket, setup: Setup) -> Outcome {
        let mut kernel = lock(&self.kernel);
        let done = setup::set_up(&mut kernel, &self.hardware, &setup);
        if done.is_err() {
            kernel.mounts = super::files::mounts::Mounts::default();
        }
        self.interfaces = names(&setup.network);
        Outcome::Done(done.map(|()| Reply::Done))
    }

    fn start(&mut self, _ticket: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome {
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        match launch::start(&self.kernel, process, &spec) {
            Ok(launched) => self.launched(process, launched),
            Err(error) => Outcome::Done(Err(error)),
        }
    }

    fn files(&mut self, _: Ticket, process: ProcessId, operation: FileOperation) -> Outcome {
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        let stdin = matches!(operation, FileOperation::Write { .. });
        let owner = match files::owner(&lock(&self.kernel), &operation) {
            Ok(owner) => owner,
            Err(error) => return Outcome::Done(Err(error)),
        };
        let store = self.hardware.store.clone();
        let launched = launch::start_hidden(&self.kernel, process, stdin, |sys| {
            Box::pin(files::run(sys, store, operation, owner))
        });
        self.launched(process, launched)
    }

    fn signal(
        &mut self,
        process: ProcessId,
        number: u8,
        target: SignalTarget,
    ) -> Result<(), Error> {
        let mut kernel = lock(&self.kernel);
        let absent = || {
            let message = format!("process {} does not run", process.0);
            Error::new(ErrorKind::NotFound, message)
        };
        let pid = kernel.leader(process).ok_or_else(absent)?;
        let to_group =
            target == SignalTarget::Group && kernel.signal_group(pid, number, Origin::Outside);
        if !to_group {
            kernel
                .signal(pid, number, Origin::Outside)
                .map_err(|_| absent())?;
        }
        Ok(())
    }

    fn resize(&mut self, process: ProcessId, size: TerminalSize) -> Result<(), Error> {
        let streams = self.processes.get(&process).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("process {} does not run", process.0),
            )
        })?;
        if streams.resize(&mut lock(&self.kernel), size) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("process {} has no terminal", process.0),
            ))
        }
    }

    fn forget(&mut self, process: ProcessId) {
        // The session drops the streams: what still writes to them has no reader.
        if let Some(streams) = self.processes.remove(&process) {
            streams.release(&mut lock(&self.kernel));
        }
    }

    fn processes(&mut self, after: u32) -> Result<ProcessPage, Error> {
        let kernel = lock(&self.kernel);
        let machine_pid = |pid: u32| {
            kernel
                .processes
                .get(&pid)
                .map_or(1, |process| process.machine_pid)
        };
        let mut processes: Vec<ProcessInfo> = kernel
            .processes
            .range(..HIDDEN)
            .filter(|(_, process)| process.machine_pid > after)
            .map(|(pid, process)| ProcessInfo {
                pid: process.machine_pid,
                parent: machine_pid(process.parent),
                container_pid: *pid,
                uid: process.who.uid,
                state: process.letter(false),
                cpu_ms: u64::try_from(process.cpu.as_millis()).unwrap_or(u64::MAX),
                started_ms: u64::try_from(process.started.as_millis()).unwrap_or(u64::MAX),
                resident: process.resident,
                virtual_size: process.resident.saturating_mul(2),
                threads: 1,
                // Major 136 are the slaves of pseudo-terminals.
                terminal: process.terminal.map_or(0, |number| 136 << 8 | number),
                command: if process.lives() {
                    process.argv.join(" ").chars().take(4096).collect()
                } else {
                    format!("[{}]", process.name())
                },
            })
            .collect();
        processes.sort_by_key(|process| process.pid);
        let more = processes.len() > PAGE;
        processes.truncate(PAGE);
        Ok(ProcessPage { processes, more })
    }

    fn statistics(&mut self) -> Result<Statistics, Error> {
        let kernel = lock(&self.kernel);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let used = nanos(kernel.processor_time());
        let resident = kernel.resident();
        let written = kernel
            .mounts
            .iter()
            .next()
            .map_or(0, |mount| lock(&mount.disk).used());
        let count = kernel
            .processes
            .range(..HIDDEN)
            .filter(|(_, process)| process.lives())
            .count();
        Ok(Statistics {
            monotonic_nanos: nanos(kernel.uptime()),
            cpu: CpuUsage {
                container: used,
                container_user: used / 2,
                container_system: used - used / 2,
                machine: used,
                online: kernel.processors,
            },
            memory: MemoryUsage {
                container: resident,
                container_inactive_file: 0,
                total: kernel.memory,
                available: kernel.memory.saturating_sub(resident + OWN_MEMORY),
                tether: OWN_MEMORY,
                oom_kills: kernel.oom_kills,
            },
            processes: u32::try_from(count).unwrap_or(u32::MAX),
            interfaces: self
                .interfaces
                .iter()
                .map(|name| InterfaceUsage {
                    name: name.clone(),
                    ..InterfaceUsage::default()
                })
                .collect(),
            disks: vec![tether_wire::message::BlockDeviceUsage {
                major: 253,
                minor: 0,
                written,
                writes: written.div_ceil(4096),
                ..Default::default()
            }],
        })
    }

    fn set_clock(&mut self, unix_nanos: u64) -> Result<(), Error> {
        lock(&self.kernel).set_clock(Duration::from_nanos(unix_nanos));
        Ok(())
    }

    fn shutdown(&mut self, ticket: Ticket, spec: ShutdownSpec) -> Outcome {
        if !matches!(self.ending, Ending::Running) {
            return error(ErrorKind::Busy, "the machine is shutting down already");
        }
        self.stop(Some(ticket), spec);
        Outcome::Later
    }

    fn mount(&mut self, _ticket: Ticket, mount: Mount) -> Outcome {
        let mut kernel = lock(&self.kernel);
        let done = setup::mount_one(&mut kernel, &self.hardware, &mount);
        Outcome::Done(done.map(|()| Reply::Done))
    }

    fn network(&mut self, _ticket: Ticket, network: Network) -> Outcome {
        let mut kernel = lock(&self.kernel);
        let done = setup::apply_network(&mut kernel, &network);
        self.interfaces = names(&network);
        Outcome::Done(done.map(|()| Reply::Done))
    }
}

fn names(network: &Network) -> Vec<String> {
    network
        .interfaces
        .iter()
        .map(|interface| interface.name.clone())
        .collect()
}
