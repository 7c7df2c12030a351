//! The simulated machine's kernel: processes, signals, descriptors, mounts.
//!
//! A program is a future. It is polled when something it may wait for has
//! happened, by [`schedule::Tasks`], on the task of its machine; it never blocks
//! that, and after its slice it gives way. Its system calls are [`sys::Sys`].
//!
//! ```text
//! born --polled--> Running --signal--> Stopped --CONT--> Running
//!                     '--exit, signal--> Zombie --reaped--> (gone)
//! ```
//!
//! Pids are the container's own; what the machine's own namespace calls a
//! process is its [`Process::machine_pid`].

mod descriptors;
mod paths;
mod proc;
pub mod schedule;
pub mod signal;
pub mod sys;
pub mod terminal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tether_wire::message::{ExitStatus, ProcessId};
use tokio::time::Instant;

pub use descriptors::{Access, FileId, Handle, PipeId};
pub use proc::limit;
use signal::Action;
use terminal::Terminal;

use crate::fake::files::Errno;
use crate::fake::files::mounts::{Credentials, Mounts, Place};
use crate::fake::files::tree::Stamp;

/// A process's number in the container; 0 is tether, outside of it.
pub type Pid = u32;
/// A program that runs; its output is its exit code.
pub type Task = Pin<Box<dyn Future<Output = u8> + Send>>;

/// The first pid of what tether itself runs, which no container sees.
pub const HIDDEN: Pid = 1 << 30;
/// Memory that the machine's own kernel keeps, bytes.
const RESERVED: u64 = 16 << 20;
/// What any process takes, bytes.
const SMALLEST: u64 = 256 << 10;
/// Most processes of a machine.
const MOST_PROCESSES: usize = 1024;
/// What a system call counts as processor time.
const CALL: Duration = Duration::from_micros(1);

/// What a process does about a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Nothing.
    Ignore,
    /// It looks for itself.
    Handle,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs or waits.
    Running,
    /// It was stopped.
    Stopped,
    /// It ended, and its parent has not looked.
    Zombie(ExitStatus),
}

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A process of the same pid namespace, or the terminal.
    Inside,
    /// Tether, from the namespace above.
    Outside,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// In the machine's own pid namespace.
    pub machine_pid: u32,
    /// Its parent; 0 is tether.
    pub parent: Pid,
    /// Process group.
    pub group: Pid,
    /// Session.
    pub session: Pid,
    /// Controlling terminal.
    pub terminal: Option<u32>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Who it is.
    pub who: Credentials,
    /// umask(2).
    pub umask: u32,
    /// Working directory.
    pub cwd: Place,
    /// Open files by number.
    pub descriptors: BTreeMap<u32, FileId>,
    /// Signals it does not take as they come.
    pub dispositions: BTreeMap<u8, Disposition>,
    /// Handled signals that came.
    pub pending: BTreeSet<u8>,
    /// How far it is.
    pub state: State,
    /// The process of the wire it belongs to.
    pub wire: ProcessId,
    /// The first process of a pid namespace: signals it does not handle do
    /// nothing to it (`SIGNAL_UNKILLABLE`).
    pub unkillable: bool,
    /// Memory, bytes.
    pub resident: u64,
    /// Processor time.
    pub cpu: Duration,
    /// Since boot.
    pub started: Duration,
    /// `setrlimit(2)`: resource, soft, hard.
    pub limits: BTreeMap<u8, (u64, u64)>,
}

impl Process {
    /// Whether it has not ended.
    pub fn lives(&self) -> bool {
        !matches!(self.state, State::Zombie(_))
    }
}

/// An end for the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Whose.
    pub process: ProcessId,
    /// How.
    pub status: ExitStatus,
    /// Something of it was killed for memory.
    pub oom_killed: bool,
}

/// The kernel of one booted machine.
pub struct Kernel {
    /// What is mounted.
    pub mounts: Mounts,
    /// All processes.
    pub processes: BTreeMap<Pid, Process>,
    /// Host name.
    pub hostname: String,
    /// Domain name.
    pub domainname: String,
    /// The machine's memory, bytes.
    pub memory: u64,
    /// Its processors.
    pub processors: u32,
    /// OOM kills since boot.
    pub oom_kills: u64,
    /// Ends that the wire has not heard of.
    pub ends: Vec<Ended>,
    /// OOM kills that the wire has not heard of.
    pub kills: Vec<ProcessId>,
    terminals: BTreeMap<u32, Terminal>,
    files: BTreeMap<FileId, descriptors::OpenFile>,
    pipes: BTreeMap<PipeId, descriptors::Pipe>,
    fifos: BTreeMap<(usize, u64), PipeId>,
    next_number: u64,
    next_pid: Pid,
    next_hidden: Pid,
    next_machine_pid: u32,
    short_of_memory: BTreeSet<ProcessId>,
    leaders: BTreeMap<ProcessId, Pid>,
    main: Option<Pid>,
    ready: VecDeque<Pid>,
    born: Vec<(Pid, Task)>,
    timers: BTreeSet<(Instant, Pid)>,
    budget: u32,
    booted: Instant,
    /// The clock at boot, since the Unix epoch.
    epoch: Duration,
    random: u64,
    used: Duration,
}

/// What a new process is made of.
#[derive(Debug)]
pub struct Birth {
    /// Its parent; 0 is tether.
    pub parent: Pid,
    /// The process of the wire it belongs to.
    pub wire: ProcessId,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Who it is.
    pub who: Credentials,
    /// Working directory.
    pub cwd: Place,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("processes", &self.processes)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// A machine that has just booted.
    pub fn new(memory: u64, processors: u32, seed: u64) -> Self {
        Self {
            mounts: Mounts::default(),
            processes: BTreeMap::new(),
            hostname: "(none)".into(),
            domainname: String::new(),
            memory,
            processors,
            oom_kills: 0,
            ends: Vec::new(),
            kills: Vec::new(),
            terminals: BTreeMap::new(),
            files: BTreeMap::new(),
            pipes: BTreeMap::new(),
            fifos: BTreeMap::new(),
            next_number: 1,
            next_pid: 1,
            next_hidden: HIDDEN,
            next_machine_pid: 40,
            short_of_memory: BTreeSet::new(),
            leaders: BTreeMap::new(),
            main: None,
            ready: VecDeque::new(),
            born: Vec::new(),
            timers: BTreeSet::new(),
            budget: 0,
            booted: Instant::now(),
            epoch: Duration::ZERO,
            random: seed | 1,
            used: Duration::ZERO,
        }
    }

    /// Since boot.
    pub fn uptime(&self) -> Duration {
        self.booted.elapsed()
    }

    /// The clock, since the Unix epoch.
    pub fn now(&self) -> Duration {
        self.epoch + self.uptime()
    }

    /// The clock as files are stamped.
    pub fn stamp(&self) -> Stamp {
        let now = self.now();
        Stamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanos: now.subsec_nanos(),
        }
    }

    /// Sets the clock.
    pub fn set_clock(&mut self, unix: Duration) {
        self.epoch = unix.saturating_sub(self.uptime());
    }

    /// xorshift64 (Marsaglia, 2003).
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The main process, while it lives.
    pub fn main(&self) -> Option<Pid> {
        self.main
    }

    /// The first process of a process of the wire, while it lives.
    pub fn leader(&self, process: ProcessId) -> Option<Pid> {
        self.leaders.get(&process).copied()
    }

    /// Processor time of all that ever ran.
    pub fn processor_time(&self) -> Duration {
        self.used
    }

    /// The next main process begins a pid namespace of its own, or shares the
    /// machine's.
    pub fn begin_namespace(&mut self, private: bool) {
        self.next_pid = if private { 1 } else { self.next_machine_pid };
    }

    /// Makes `pid` the main process.
    pub fn set_main(&mut self, pid: Pid) {
        self.main = Some(pid);
        if pid == 1
            && let Some(process) = self.processes.get_mut(&pid)
        {
            process.unkillable = true;
        }
    }

    /// Makes `pid` the one that ends a process of the wire.
    pub fn set_leader(&mut self, wire: ProcessId, pid: Pid) {
        self.leaders.insert(wire, pid);
        self.short_of_memory.remove(&wire);
    }

    /// A new process without a program, leader of a session of its own.
    pub fn bear(&mut self, birth: Birth) -> Pid {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.enter(pid, birth);
        pid
    }

    /// As [`Kernel::bear`], for what tether runs for itself.
    pub fn bear_hidden(&mut self, birth: Birth) -> Pid {
        let pid = self.next_hidden;
        self.next_hidden += 1;
        self.enter(pid, birth);
        pid
    }

    fn enter(&mut self, pid: Pid, birth: Birth) {
        let machine_pid = self.next_machine_pid;
        self.next_machine_pid += 1;
        let process = Process {
            machine_pid,
            parent: birth.parent,
            group: pid,
            session: pid,
            terminal: None,
            argv: birth.argv,
            environment: birth.environment,
            who: birth.who,
            umask: 0o022,
            cwd: birth.cwd,
            descriptors: BTreeMap::new(),
            dispositions: BTreeMap::new(),
            pending: BTreeSet::new(),
            state: State::Running,
            wire: birth.wire,
            unkillable: false,
            resident: SMALLEST,
            cpu: Duration::ZERO,
            started: self.uptime(),
            limits: BTreeMap::new(),
        };
        self.processes.insert(pid, process);
    }

    /// fork(2): the same but for what it runs; handled signals are handled by
    /// nobody there.
    ///
    /// # Errors
    /// `ESRCH`: the parent has ended; `EAGAIN`: too many run.
    pub fn fork(&mut self, parent: Pid) -> Result<Pid, Errno> {
        if self.processes.len() >= MOST_PROCESSES {
            return Err(Errno::AGAIN);
        }
        let from = self.processes.get(&parent).ok_or(Errno::SRCH)?;
        let birth = Birth {
            parent,
            wire: from.wire,
            argv: from.argv.clone(),
            environment: from.environment.clone(),
            who: from.who.clone(),
            cwd: from.cwd,
        };
        let (group, session, terminal, umask) =
            (from.group, from.session, from.terminal, from.umask);
        let (descriptors, limits) = (from.descriptors.clone(), from.limits.clone());
        let mut dispositions = from.dispositions.clone();
        dispositions.retain(|_, disposition| *disposition == Disposition::Ignore);
        let pid = if parent >= HIDDEN {
            self.bear_hidden(birth)
        } else {
            self.bear(birth)
        };
        for file in descriptors.values() {
            self.hold(*file);
        }
        if let Some(child) = self.processes.get_mut(&pid) {
            child.group = group;
            child.session = session;
            child.terminal = terminal;
            child.umask = umask;
            child.descriptors = descriptors;
            child.dispositions = dispositions;
            child.limits = limits;
        }
        Ok(pid)
    }

    /// Gives a process something to run.
    pub fn run(&mut self, pid: Pid, task: Task) {
        self.born.push((pid, task));
        self.wake(pid);
    }

    /// Has a process look again.
    pub fn wake(&mut self, pid: Pid) {
        if !self.ready.contains(&pid) {
            self.ready.push_back(pid);
        }
    }

    fn wake_all(&mut self, pids: Vec<Pid>) {
        for pid in pids {
            self.wake(pid);
        }
    }

    /// Wakes a process at a moment.
    pub fn wake_at(&mut self, at: Instant, pid: Pid) {
        self.timers.insert((at, pid));
    }

    fn spend(&mut self, pid: Pid, time: Duration) {
        self.used += time;
        if let Some(process) = self.processes.get_mut(&pid) {
            process.cpu += time;
        }
    }

    /// A process ends.
    pub fn exit(&mut self, pid: Pid, status: ExitStatus) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !process.lives() {
            return;
        }
        process.state = State::Zombie(status);
        process.resident = 0;
        let (parent, wire) = (process.parent, process.wire);
        let leads_terminal = process.terminal.filter(|_| process.session == pid);
        let descriptors = std::mem::take(&mut process.descriptors);
        for file in descriptors.into_values() {
            self.release(file);
        }
        self.timers.retain(|(_, waiting)| *waiting != pid);
        let foster = match self.main {
            Some(1) if pid != 1 && pid < HIDDEN => 1,
            _ => 0,
        };
        let children: Vec<Pid> = self
            .processes
            .iter()
            .filter(|(_, child)| child.parent == pid)
            .map(|(child, _)| *child)
            .collect();
        for child in children {
            if let Some(process) = self.processes.get_mut(&child) {
                process.parent = foster;
                if foster == 0 && !process.lives() {
                    self.processes.remove(&child);
                }
            }
        }
        if foster != 0 {
            self.wake(foster);
        }
        if let Some(foreground) =
            leads_terminal.and_then(|number| self.terminals.get(&number).map(|t| t.foreground))
        {
            self.signal_group(foreground, signal::HUP, Origin::Inside);
        }
        if self.leaders.get(&wire) == Some(&pid) {
            self.leaders.remove(&wire);
            let oom_killed = self.short_of_memory.contains(&wire);
            self.ends.push(Ended {
                process: wire,
                status,
                oom_killed,
            });
        }
        if parent == 0 {
            self.processes.remove(&pid);
        } else {
            self.send(parent, signal::CHLD, Origin::Outside);
            self.wake(parent);
        }
        if self.main == Some(pid) {
            self.main = None;
            // Its pid namespace ends with it, and so does its control group.
            self.kill_all();
        }
    }

    /// Ends every process of the container.
    pub fn kill_all(&mut self) {
        let all: Vec<Pid> = self
            .processes
            .range(..HIDDEN)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in all {
            self.exit(pid, ExitStatus::Signal(signal::KILL));
        }
        self.processes
            .retain(|pid, process| *pid >= HIDDEN || process.lives());
    }

    /// Ends every process, tether's own too.
    pub fn kill_everything(&mut self) {
        self.kill_all();
        let all: Vec<Pid> = self.processes.keys().copied().collect();
        for pid in all {
            self.exit(pid, ExitStatus::Signal(signal::KILL));
        }
    }

    /// Sends a signal; 0 only looks whether there is such a process.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn signal(&mut self, pid: Pid, number: u8, origin: Origin) -> Result<(), Errno> {
        if !self.processes.contains_key(&pid) {
            return Err(Errno::SRCH);
        }
        if number != 0 {
            self.send(pid, number, origin);
        }
        Ok(())
    }

    /// Sends a signal to a process group; whether there is one.
    pub fn signal_group(&mut self, group: Pid, number: u8, origin: Origin) -> bool {
        let members: Vec<Pid> = self
            .processes
            .iter()
            .filter(|(_, process)| process.group == group && process.lives())
            .map(|(pid, _)| *pid)
            .collect();
        for pid in &members {
            self.send(*pid, number, origin);
        }
        !members.is_empty()
    }

    fn send(&mut self, pid: Pid, number: u8, origin: Origin) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if !process.lives() {
            return;
        }
        let action = signal::action(number);
        if action == Action::Continue && process.state == State::Stopped {
            process.state = State::Running;
        }
        let forced = matches!(number, signal::KILL | signal::STOP);
        if !forced {
            match process.dispositions.get(&number) {
                Some(Disposition::Ignore) => return,
                Some(Disposition::Handle) => {
                    process.pending.insert(number);
                    self.wake(pid);
                    return;
                }
                None => {}
            }
        }
        if process.unkillable && !(forced && origin == Origin::Outside) {
            return;
        }
        match action {
            Action::Terminate => self.exit(pid, ExitStatus::Signal(number)),
            // Nobody could let a group go on that no shell looks after.
            Action::Stop if forced || process.group != process.session => {
                process.state = State::Stopped;
                let parent = process.parent;
                self.wake(parent);
            }
            Action::Continue => self.wake(pid),
            Action::Stop | Action::Ignore => {}
        }
    }

    /// A process takes memory, until there is none: then the largest is killed.
    pub fn allocate(&mut self, pid: Pid, bytes: u64) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.resident = process.resident.saturating_add(bytes);
        }
        while self.resident() > self.memory.saturating_sub(RESERVED) {
            let largest = self
                .processes
                .iter()
                .filter(|(_, process)| process.lives())
                .max_by_key(|(_, process)| process.resident)
                .filter(|(_, process)| process.resident > SMALLEST)
                .map(|(pid, _)| *pid);
            match largest {
                Some(largest) => self.kill_for_memory(largest),
                None => return,
            }
        }
    }

    /// Memory of all processes, bytes.
    pub fn resident(&self) -> u64 {
        self.processes
            .values()
            .map(|process| process.resident)
            .sum()
    }

    /// The OOM killer.
    pub fn kill_for_memory(&mut self, pid: Pid) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        let wire = process.wire;
        self.oom_kills += 1;
        self.short_of_memory.insert(wire);
        self.kills.push(wire);
        self.exit(pid, ExitStatus::Signal(signal::KILL));
    }
}
