//! A simulated tether: does what the wire's [`Machine`] is asked, without a
//! kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tether_wire::message::{
    DiskId, Error, ErrorKind, Exit, ExitStatus, Mount, MountSource, Network, Output, ProcessId,
    ProcessInfo, ProcessPage, ProcessSpec, Reply, Role, Setup, ShutdownSpec, SignalTarget, Started,
    Statistics, TerminalSize,
};
use tether_wire::{GuestSession, Machine, Outcome, Ticket};
use tokio::time::Instant;

use super::program::{Program, Progress};
use crate::disk::DiskSerial;
use crate::machine::random_bytes;

/// SIGKILL.
const KILL: u8 = 9;
/// How long a simulated tether waits for the last acknowledgement.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A machine's disks, as the hypervisor plugs and unplugs them.
pub type Disks = Arc<Mutex<Vec<DiskSerial>>>;

#[derive(Debug)]
struct Process {
    pid: u32,
    spec: ProcessSpec,
    program: Program,
    killed: Option<Killed>,
}

#[derive(Debug, Clone, Copy)]
struct Killed {
    signal: u8,
    oom: bool,
}

/// How far the machine's end has come.
#[derive(Debug)]
enum Ending {
    Running,
    Stopping {
        ticket: Option<Ticket>,
        kill_at: Instant,
    },
    LastWord {
        off_at: Instant,
    },
}

/// What the machine's owner has to do after a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Go on; wake at this moment if one is named.
    On(Option<Instant>),
    /// Power off.
    PowerOff,
}

/// The simulated tether of one machine.
#[derive(Debug)]
pub struct Tether {
    disks: Disks,
    booted: Instant,
    next_pid: u32,
    processes: BTreeMap<ProcessId, Process>,
    ending: Ending,
}

impl Tether {
    /// One that has just booted.
    pub fn new(disks: Disks) -> Self {
        Self {
            disks,
            booted: Instant::now(),
            next_pid: 2,
            processes: BTreeMap::new(),
            ending: Ending::Running,
        }
    }

    /// Lets every program go on as far as it can, and ends what has to end.
    pub fn turn(&mut self, session: &mut GuestSession) -> Turn {
        let mut wake: Option<Instant> = None;
        let mut earliest = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        let mut ended = Vec::new();
        for (id, process) in &mut self.processes {
            let (status, oom_killed) = match process.killed {
                Some(killed) => (ExitStatus::Signal(killed.signal), killed.oom),
                None => match process.program.step(session, *id) {
                    Progress::Waits => continue,
                    Progress::WaitsUntil(at) => {
                        earliest(at);
                        continue;
                    }
                    Progress::Ended(status) => (status, false),
                },
            };
            ended.push((
                *id,
                Exit {
                    status,
                    oom_killed,
                    unix_nanos: unix_nanos(),
                },
            ));
        }
        for (id, exit) in ended {
            let main = matches!(
                self.processes.remove(&id),
                Some(Process {
                    spec: ProcessSpec {
                        role: Role::Main { .. },
                        ..
                    },
                    ..
                })
            );
            session.output_ended(id, Output::Stdout);
            session.output_ended(id, Output::Stderr);
            session.exited(id, exit);
            if main {
                // Its pid namespace ends with it.
                self.kill_all(false);
                earliest(Instant::now());
            }
        }
        match self.ending {
            Ending::Running => {}
            Ending::Stopping { ticket, kill_at } if self.processes.is_empty() => {
                let _ = kill_at;
                if let Some(ticket) = ticket {
                    session.complete(ticket, Ok(Reply::Done), self);
                }
                let off_at = Instant::now() + LAST_WORD;
                self.ending = Ending::LastWord { off_at };
                earliest(off_at);
            }
            Ending::Stopping { kill_at, .. } => {
                if Instant::now() >= kill_at {
                    self.kill_all(false);
                    earliest(Instant::now());
                } else {
                    earliest(kill_at);
                }
            }
            Ending::LastWord { off_at } => {
                if session.is_flushed() || Instant::now() >= off_at {
                    return Turn::PowerOff;
                }
                earliest(off_at);
            }
        }
        Turn::On(wake)
    }

    /// The power button: an orderly end, as a `docker stop` would ask for.
    pub fn power_button(&mut self) {
        self.stop(
            None,
            ShutdownSpec {
                signal: 15,
                grace_ms: 10_000,
                action: tether_wire::message::Action::PowerOff,
            },
        );
    }

    /// The kernel ran out of memory: the main process is killed.
    pub fn out_of_memory(&mut self) -> Option<ProcessId> {
        let (id, main) = self
            .processes
            .iter_mut()
            .find(|(_, p)| matches!(p.spec.role, Role::Main { .. }))?;
        main.killed = Some(Killed {
            signal: KILL,
            oom: true,
        });
        Some(*id)
    }

    fn stop(&mut self, ticket: Option<Ticket>, spec: ShutdownSpec) {
        for process in self.processes.values_mut() {
            if matches!(process.spec.role, Role::Main { .. })
                && process.program.dies_of(spec.signal)
            {
                process.killed.get_or_insert(Killed {
                    signal: spec.signal,
                    oom: false,
                });
            }
        }
        let kill_at = Instant::now() + Duration::from_millis(u64::from(spec.grace_ms));
        self.ending = Ending::Stopping { ticket, kill_at };
    }

    fn kill_all(&mut self, oom: bool) {
        for process in self.processes.values_mut() {
            process.killed.get_or_insert(Killed { signal: KILL, oom });
        }
    }

    fn has_disk(&self, disk: &DiskId) -> Result<(), Error> {
        let DiskId::Serial(serial) = disk else {
            return Ok(());
        };
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if disks.iter().any(|disk| disk.as_str() == serial) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::NotFound,
                format!("no disk with serial {serial} came"),
            ))
        }
    }

    fn can_mount(&self, mount: &Mount) -> Result<(), Error> {
        match &mount.source {
            MountSource::Disk { disk, .. } => self.has_disk(disk),
            _ => Ok(()),
        }
    }

    fn main_runs(&self) -> bool {
        self.processes
            .values()
            .any(|process| matches!(process.spec.role, Role::Main { .. }))
    }
}

fn unix_nanos() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Machine for Tether {
    fn entropy(&mut self) -> [u8; 16] {
        random_bytes().unwrap_or_default()
    }

    fn setup(&mut self, _ticket: Ticket, setup: Setup) -> Outcome {
        let ready = self.has_disk(&setup.root.disk).and_then(|()| {
            setup
                .mounts
                .iter()
                .try_for_each(|mount| self.can_mount(mount))
        });
        Outcome::Done(ready.map(|()| Reply::Done))
    }

    fn start(&mut self, _ticket: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome {
        if !matches!(self.ending, Ending::Running) {
            return Outcome::Done(Err(Error::new(
                ErrorKind::Busy,
                "the machine is shutting down",
            )));
        }
        match spec.role {
            Role::Exec if !self.main_runs() => {
                return Outcome::Done(Err(Error::new(ErrorKind::Busy, "no main process runs")));
            }
            Role::Main { .. } if self.main_runs() => {
                return Outcome::Done(Err(Error::new(ErrorKind::Exists, "a main process runs")));
            }
            Role::Exec | Role::Main { .. } => {}
        }
        let started = Program::new(&spec).map(|program| {
            let pid = self.next_pid;
            self.next_pid += 1;
            self.processes.insert(
                process,
                Process {
                    pid,
                    spec,
                    program,
                    killed: None,
                },
            );
            Reply::Started(Started { pid })
        });
        Outcome::Done(started)
    }

    fn signal(
        &mut self,
        process: ProcessId,
        signal: u8,
        _target: SignalTarget,
    ) -> Result<(), Error> {
        let Some(process) = self.processes.get_mut(&process) else {
            return Err(Error::new(ErrorKind::NotFound, "no such process runs"));
        };
        if process.program.dies_of(signal) {
            process.killed.get_or_insert(Killed { signal, oom: false });
        }
        Ok(())
    }

    fn resize(&mut self, _process: ProcessId, _size: TerminalSize) -> Result<(), Error> {
        Ok(())
    }

    fn forget(&mut self, _process: ProcessId) {}

    fn processes(&mut self, after: u32) -> Result<ProcessPage, Error> {
        let mut processes: Vec<ProcessInfo> = self
            .processes
            .values()
            .filter(|process| process.pid > after)
            .map(|process| ProcessInfo {
                pid: process.pid,
                parent: 1,
                container_pid: if matches!(process.spec.role, Role::Main { .. }) {
                    1
                } else {
                    process.pid
                },
                uid: 0,
                state: b'S',
                cpu_ms: 0,
                started_ms: 0,
                resident: 1 << 20,
                virtual_size: 1 << 20,
                threads: 1,
                terminal: 0,
                command: process.spec.argv.join(" "),
            })
            .collect();
        processes.sort_by_key(|process| process.pid);
        Ok(ProcessPage {
            processes,
            more: false,
        })
    }

    fn statistics(&mut self) -> Result<Statistics, Error> {
        Ok(Statistics {
            monotonic_nanos: u64::try_from(self.booted.elapsed().as_nanos()).unwrap_or(u64::MAX),
            processes: u32::try_from(self.processes.len()).unwrap_or(u32::MAX),
            ..Statistics::default()
        })
    }

    fn set_clock(&mut self, _unix_nanos: u64) -> Result<(), Error> {
        Ok(())
    }

    fn shutdown(&mut self, ticket: Ticket, spec: ShutdownSpec) -> Outcome {
        if !matches!(self.ending, Ending::Running) {
            return Outcome::Done(Err(Error::new(
                ErrorKind::Busy,
                "the machine is shutting down",
            )));
        }
        self.stop(Some(ticket), spec);
        Outcome::Later
    }

    fn mount(&mut self, _ticket: Ticket, mount: Mount) -> Outcome {
        Outcome::Done(self.can_mount(&mount).map(|()| Reply::Done))
    }

    fn network(&mut self, _ticket: Ticket, _network: Network) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
}
