//! What the host asks for, done: the wire's [`Machine`] on a real one.
//!
//! Whatever cannot be answered at once leaves its answer in [`Container::answers`], which the loop
//! hands to the session; nothing here knows the session's connection.

use crate::cgroup::{Group, Groups};
use crate::failure::{Context, Result};
use crate::guestinfo::Facts;
use crate::poller::{Poller, Token};
use crate::prelude::*;
use crate::process::{Death, Processes, Surroundings};
use crate::root::Root;
use crate::setup::{Task, Work};
use crate::shutdown::Shutdown;
use crate::standstill::Standstill;
use crate::sys::Ended;
use crate::{clock, fork, identity, network, process_list, statistics};
use alloc::collections::VecDeque;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags, open};
use rustix::rand::{GetRandomFlags, getrandom};
use tether_wire::guest::{Machine, Outcome, Ticket};
use tether_wire::message::{
    Claim, Error, ErrorKind, Exit, ExitStatus, FileOperation, MacAddress, MachineEvent, Mount,
    Network, ProcessId, ProcessPage, ProcessSpec, Rebirth, Reply, Setup, ShutdownSpec,
    SignalTarget, Started, Statistics, TerminalSize,
};

/// The machine as the one container it is.
pub struct Container {
    /// What the loop waits for.
    pub poller: Poller,
    /// Control groups.
    pub groups: Groups,
    /// Where counting begins.
    start: statistics::Start,
    /// When its host was last heard, in microseconds of the clock that never jumps.
    pub heard: u64,
    /// Whether it has devices that nothing has announced.
    is_fork: bool,
    /// The MAC addresses that its vNICs are to have, if it was forked before it was wanted.
    claimed: Option<Vec<MacAddress>>,
    /// The wire's processes.
    pub processes: Processes,
    /// Mounted by setup.
    pub root: Option<Root>,
    /// Its vNICs.
    pub network: network::State,
    /// Host name and domain name.
    pub names: (String, String),
    /// Work that waits for devices, in order.
    pub tasks: VecDeque<Task>,
    /// Under way, when asked for.
    pub shutdown: Option<Shutdown>,
    /// Answers for the session.
    pub answers: Vec<(Ticket, Result<Reply>)>,
    /// Exits for the session.
    pub exits: Vec<(ProcessId, Exit)>,
    /// News for the session.
    pub events: Vec<MachineEvent>,
    /// OOM kills that were told.
    kills_told: u64,
    /// Its processes stand still, for its machine to be forked.
    pub standstill: Option<Standstill>,
    /// Whether the poller tells when they do.
    pub watches_freezer: bool,
    /// How often it was forked while it ran, counted in its children.
    pub forks: u32,
}

impl Container {
    /// An empty machine.
    ///
    /// # Errors
    /// No control groups; no descriptors.
    pub fn new(poller: Poller) -> Result<Self> {
        let groups = Groups::new()?;
        poller.watch(groups.events(), EventFlags::PRI, Token::OutOfMemory)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let path = "/proc/self/ns/pid";
        let pids = open(path, flags, Mode::empty()).context(|| format!("opening {path}"))?;
        Ok(Self {
            poller,
            groups,
            start: statistics::Start::default(),
            heard: 0,
            is_fork: false,
            claimed: None,
            processes: Processes::new(pids),
            root: None,
            network: network::State::default(),
            names: (String::new(), String::new()),
            tasks: VecDeque::new(),
            shutdown: None,
            answers: Vec::new(),
            exits: Vec::new(),
            events: Vec::new(),
            kills_told: 0,
            standstill: None,
            watches_freezer: false,
            forks: 0,
        })
    }

    /// Whether this machine is another than the one whose processes stood still.
    pub fn may_be_a_child(&self) -> bool {
        self.standstill
            .as_ref()
            .is_some_and(Standstill::is_elsewhere)
    }

    /// This machine is a fork, from now on.
    pub fn forked(&mut self, start: statistics::Start) {
        self.start = start;
        self.is_fork = true;
    }

    /// A child's pipe says that its program runs, or why not.
    pub fn launched(&mut self, process: ProcessId) {
        if let Some(launched) = self.processes.launched(&self.poller, process) {
            let result = launched.result.map(|pid| Reply::Started(Started { pid }));
            self.answers.push((launched.ticket, result));
        }
    }

    /// A child was reaped.
    pub fn died(&mut self, pid: i32, ended: Ended) {
        // Its pipe may hold a failure that nobody has read yet, or close only now.
        if let Some(process) = self.processes.of_pid(pid) {
            self.launched(process);
        }
        match self.processes.died(pid) {
            Death::Process {
                process,
                mut group,
                main,
            } => {
                let kills = group.as_mut().map_or(0, Group::new_kills);
                self.tell_kills(Some(process), kills);
                let status = match ended {
                    Ended::Code(code) => ExitStatus::Code(code),
                    Ended::Signal(signal) => ExitStatus::Signal(signal),
                };
                let exit = Exit {
                    status,
                    oom_killed: group.as_ref().is_some_and(Group::was_out_of_memory),
                    unix_nanos: clock::unix_nanos(),
                };
                if let Some(group) = group {
                    self.groups.give_back(group);
                }
                self.exits.push((process, exit));
                if main {
                    // With a pid namespace of its own the kernel has done this already.
                    self.groups.kill_all();
                }
            }
            Death::Failed { group } => self.groups.give_back(group),
            Death::Other => {}
        }
        self.advance_shutdown();
    }

    /// The OOM killer may have killed something.
    pub fn out_of_memory(&mut self) {
        if !self.groups.kills_rose() {
            return;
        }
        let mut told = Vec::new();
        for (process, group) in self.processes.groups_mut() {
            let kills = group.new_kills();
            if kills > 0 {
                told.push((process, kills));
            }
        }
        for (process, kills) in told {
            self.tell_kills(Some(process), kills);
        }
        let rest = self.groups.kills().saturating_sub(self.kills_told);
        self.tell_kills(None, rest);
    }

    fn tell_kills(&mut self, process: Option<ProcessId>, kills: u64) {
        if kills > 0 {
            self.kills_told += kills;
            self.events.push(MachineEvent::OutOfMemory { process });
        }
    }

    /// An answer to DHCP came for the n-th client, or its time has come.
    pub fn advance_network(&mut self, arrived: Option<u32>) {
        let names = (self.names.0.as_str(), self.names.1.as_str());
        self.network
            .advance(arrived, names, clock::now(), &mut self.events);
        self.advance_tasks();
    }

    /// What a hypervisor's client shows of the machine.
    pub fn facts(&self) -> Facts {
        Facts {
            name: self.names.0.clone(),
            nics: self.network.nics(),
        }
    }

    /// When [`Container::expire`] has to be called at the latest.
    pub fn deadline(&self) -> Option<u64> {
        let task = self.tasks.front().map(Task::deadline);
        let shutdown = self.shutdown.as_ref().map(Shutdown::deadline);
        let still = self.standstill.as_ref().and_then(Standstill::deadline);
        [task, shutdown, self.network.deadline(), still]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: u64) {
        if self.network.deadline().is_some_and(|due| due <= now) {
            self.advance_network(None);
        }
        self.expire_tasks(now);
        self.expire_standstill(now);
        self.advance_shutdown();
    }

    fn enqueue(&mut self, task: Task) -> Outcome {
        self.tasks.push_back(task);
        self.advance_tasks();
        Outcome::Later
    }
}

impl Machine for Container {
    fn entropy(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // What the generator has now: early in boot, waiting for more would take for ever.
        let _ = getrandom(&mut bytes, GetRandomFlags::INSECURE);
        bytes
    }

    fn setup(&mut self, ticket: Ticket, setup: Setup) -> Outcome {
        // Before anything else is even looked at.
        if let Err(error) = identity::assume(&setup.identity, self.heard) {
            return Outcome::Done(Err(error));
        }
        if self.is_fork
            && let Err(error) = fork::find_devices()
        {
            return Outcome::Done(Err(error));
        }
        if let Some(macs) = self.claimed.take()
            && let Err(error) = network::assign(&macs)
        {
            return Outcome::Done(Err(error));
        }
        let Setup {
            identity,
            root,
            mounts,
            network,
            deadline_ms,
        } = setup;
        self.names = (identity.hostname, identity.domainname);
        let read_only = root.read_only;
        let mut steps = VecDeque::from([Work::Root(root)]);
        steps.extend(mounts.into_iter().map(Work::Mount));
        steps.push_back(Work::Files { read_only });
        steps.push_back(Work::Network(network));
        steps.push_back(Work::Lease);
        self.enqueue(Task::new(ticket, steps, deadline_ms))
    }

    fn start(&mut self, ticket: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome {
        let root = match ready(self.root.as_ref(), self.shutdown.as_ref()) {
            Ok(root) => root,
            Err(error) => return Outcome::Done(Err(error)),
        };
        let around = Surroundings {
            poller: &self.poller,
            groups: &mut self.groups,
            root,
            hostname: &self.names.0,
        };
        match self.processes.start(ticket, process, &spec, around) {
            Ok(()) => Outcome::Later,
            Err(error) => Outcome::Done(Err(error)),
        }
    }

    fn files(&mut self, _: Ticket, process: ProcessId, operation: FileOperation) -> Outcome {
        let root = ready(self.root.as_ref(), self.shutdown.as_ref());
        let started = root.and_then(|root| {
            self.processes
                .transfer(process, &operation, root, &self.poller)
        });
        Outcome::Done(started.map(|pid| Reply::Started(Started { pid: pid as u32 })))
    }

    fn signal(&mut self, process: ProcessId, signal: u8, target: SignalTarget) -> Result<()> {
        self.processes.signal(process, signal, target)
    }

    fn resize(&mut self, process: ProcessId, size: TerminalSize) -> Result<()> {
        self.processes.resize(process, size)
    }

    fn forget(&mut self, process: ProcessId) {
        self.processes.forget(process);
    }

    fn processes(&mut self, after: u32) -> Result<ProcessPage> {
        process_list::page(after, |pid| self.processes.is_transfer(pid))
    }

    fn statistics(&mut self) -> Result<Statistics> {
        statistics::measure(self.groups.kills(), self.start)
    }

    fn set_clock(&mut self, unix_nanos: u64) -> Result<()> {
        clock::set(clock::since_heard(unix_nanos, self.heard))
    }

    fn shutdown(&mut self, ticket: Ticket, spec: ShutdownSpec) -> Outcome {
        self.begin_shutdown(Some(ticket), spec)
    }

    fn mount(&mut self, ticket: Ticket, mount: Mount) -> Outcome {
        let steps = VecDeque::from([Work::Mount(mount)]);
        self.enqueue(Task::new(ticket, steps, LATER_MS))
    }

    fn network(&mut self, ticket: Ticket, network: Network) -> Outcome {
        let steps = VecDeque::from([Work::Network(network), Work::Lease]);
        self.enqueue(Task::new(ticket, steps, LATER_MS))
    }

    fn freeze(&mut self, ticket: Ticket, hold_ms: u32) -> Outcome {
        self.stand_still(ticket, hold_ms)
    }

    fn thaw(&mut self, unix_nanos: u64) -> Result<()> {
        self.thaw_by_request(unix_nanos)
    }

    fn rebirth(&mut self, _: Ticket, rebirth: Rebirth) -> Outcome {
        Outcome::Done(self.reborn(rebirth))
    }

    fn claim(&mut self, claim: Claim) -> Result<()> {
        if !self.is_fork {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this machine was not forked ahead of need",
            ));
        }
        fork::keep_uuid(&claim.uuid)?;
        // Its vNICs are found with the setup.
        self.claimed = Some(claim.macs);
        // What it did until now was nobody's.
        self.start = statistics::Start::now();
        Ok(())
    }

    fn rehearse(&mut self, ticket: Ticket) -> Outcome {
        if !self.is_fork {
            return Outcome::Done(Err(Error::new(
                ErrorKind::Unsupported,
                "this machine was not forked ahead of need",
            )));
        }
        Outcome::Done(self.go_through_a_start(ticket).map(|()| Reply::Done))
    }
}

/// The root, while there is one to do something with.
fn ready<'a>(root: Option<&'a Root>, shutdown: Option<&Shutdown>) -> Result<&'a Root> {
    let busy = |message: &str| Err(Error::new(ErrorKind::Busy, message));
    match (root, shutdown) {
        (None, _) => busy("the container has no root: its setup did not succeed"),
        (_, Some(_)) => busy("the machine is shutting down"),
        (Some(root), None) => Ok(root),
    }
}

/// How long devices are waited for after setup, which has a deadline of its own, in milliseconds.
const LATER_MS: u32 = 30_000;
