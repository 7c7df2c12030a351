//! System calls: what a simulated program can ask of its kernel.
//!
//! Those that may wait are futures and count against the machine's slice; the
//! others are done at once. All give way to a signal that ends the process: its
//! program is never polled again.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use tether_wire::message::ExitStatus;
use tokio::time::Instant;

use super::{CALL, Disposition, Kernel, Origin, Pid, Process, State, Task, signal};
use crate::fake::files::Errno;
use crate::fake::files::mounts::Place;
use crate::fake::files::tree::Node;
use crate::fake::lock;

/// Most bytes of one read.
pub const CHUNK: usize = 32 * 1024;

/// A process's own hold on its kernel.
#[derive(Debug, Clone)]
pub struct Sys {
    /// Who asks.
    pub pid: Pid,
    kernel: Arc<Mutex<Kernel>>,
}

/// What stat(2) tells.
#[derive(Debug, Clone)]
pub struct Stat {
    /// Where it is.
    pub place: Place,
    /// What it is; a file's content is left out.
    pub node: Node,
    /// Bytes.
    pub size: u64,
}

/// What a call waits for besides its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Nothing.
    Endless,
    /// A signal that the process handles.
    UntilSignal,
}

/// What waitpid(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// It ended.
    Ended(Pid, ExitStatus),
    /// It was stopped.
    Stopped(Pid),
}

impl Sys {
    /// For a process of this kernel.
    pub fn new(pid: Pid, kernel: Arc<Mutex<Kernel>>) -> Self {
        Self { pid, kernel }
    }

    /// The kernel itself.
    pub fn kernel(&self) -> MutexGuard<'_, Kernel> {
        lock(&self.kernel)
    }

    /// The process itself, looked at.
    pub fn own<T: Default>(&self, look: impl FnOnce(&mut Process) -> T) -> T {
        self.kernel()
            .processes
            .get_mut(&self.pid)
            .map(look)
            .unwrap_or_default()
    }

    /// Tries until it does not have to wait, or, where that may be, until a
    /// handled signal came.
    pub(super) async fn block<T>(
        &self,
        patience: Patience,
        mut attempt: impl FnMut(&mut Kernel) -> Option<Result<T, Errno>>,
    ) -> Result<T, Errno> {
        poll_fn(|_| {
            let mut kernel = self.kernel();
            let lives = |kernel: &Kernel| {
                kernel
                    .processes
                    .get(&self.pid)
                    .is_some_and(|process| process.state == State::Running)
            };
            if !lives(&kernel) {
                return Poll::Pending;
            }
            if kernel.budget == 0 {
                kernel.wake(self.pid);
                return Poll::Pending;
            }
            kernel.budget -= 1;
            kernel.spend(self.pid, CALL);
            if let Some(result) = attempt(&mut kernel) {
                // Something may have ended the process meanwhile.
                return if lives(&kernel) {
                    Poll::Ready(result)
                } else {
                    Poll::Pending
                };
            }
            let process = kernel.processes.get(&self.pid);
            if patience == Patience::UntilSignal
                && process.is_some_and(|process| !process.pending.is_empty())
            {
                return Poll::Ready(Err(Errno::INTR));
            }
            Poll::Pending
        })
        .await
    }

    /// Counts a step, and gives way when the slice is over.
    pub async fn step(&self) {
        let _ = self.block(Patience::Endless, |_| Some(Ok(()))).await;
    }

    /// read(2): some bytes, none at the end.
    ///
    /// # Errors
    /// `EBADF`, `EISDIR`; `EINTR` with a handled signal.
    pub async fn read(&self, fd: u32, most: usize) -> Result<Vec<u8>, Errno> {
        self.block(Patience::UntilSignal, |kernel| {
            kernel.read(self.pid, fd, most)
        })
        .await
    }

    /// write(2), repeated until all is written. A pipe without a reader is
    /// `SIGPIPE`.
    ///
    /// # Errors
    /// `EBADF`, `EPIPE`, `ENOSPC`.
    pub async fn write(&self, fd: u32, data: &[u8]) -> Result<(), Errno> {
        let mut written = 0;
        while written < data.len() {
            written += self
                .block(Patience::Endless, |kernel| {
                    let result = kernel.write(self.pid, fd, &data[written..]);
                    if result == Some(Err(Errno::PIPE)) {
                        kernel.send(self.pid, signal::PIPE, Origin::Inside);
                    }
                    result
                })
                .await?;
        }
        Ok(())
    }

    /// Everything there is to read.
    ///
    /// # Errors
    /// As [`Sys::read`].
    pub async fn read_all(&self, fd: u32) -> Result<Vec<u8>, Errno> {
        let mut all = Vec::new();
        loop {
            let bytes = self
                .block(Patience::Endless, |kernel| kernel.read(self.pid, fd, CHUNK))
                .await?;
            if bytes.is_empty() {
                return Ok(all);
            }
            self.allocate(bytes.len() as u64);
            all.extend(bytes);
        }
    }

    /// One byte, if there is one: for a shell, which must not take what its
    /// children are to read.
    ///
    /// # Errors
    /// As [`Sys::read`].
    pub async fn read_byte(&self, fd: u32) -> Result<Option<u8>, Errno> {
        Ok(self.read(fd, 1).await?.first().copied())
    }

    /// Waits so long.
    ///
    /// # Errors
    /// `EINTR` with a handled signal.
    pub async fn sleep(&self, time: Option<Duration>) -> Result<(), Errno> {
        let end = time.and_then(|time| Instant::now().checked_add(time));
        self.block(Patience::UntilSignal, |kernel| match end {
            Some(end) if Instant::now() >= end => Some(Ok(())),
            Some(end) => {
                kernel.wake_at(end, self.pid);
                None
            }
            None => None,
        })
        .await
    }

    /// waitpid(2): a child of those wanted that ended, or, where asked, stopped.
    ///
    /// # Errors
    /// `ECHILD`; `EINTR` with a handled signal, where it may be interrupted.
    pub async fn wait(
        &self,
        wanted: Option<Pid>,
        stopped: bool,
        patience: Patience,
    ) -> Result<Waited, Errno> {
        self.block(patience, |kernel| self.waited(kernel, wanted, stopped))
            .await
    }

    fn waited(
        &self,
        kernel: &mut Kernel,
        wanted: Option<Pid>,
        stopped: bool,
    ) -> Option<Result<Waited, Errno>> {
        let mut any = false;
        let mut found = None;
        for (pid, process) in &kernel.processes {
            if process.parent != self.pid || wanted.is_some_and(|wanted| wanted != *pid) {
                continue;
            }
            any = true;
            match process.state {
                State::Zombie(status) => found = Some(Waited::Ended(*pid, status)),
                State::Stopped if stopped => found = Some(Waited::Stopped(*pid)),
                _ => continue,
            }
            break;
        }
        if let Some(Waited::Ended(pid, _)) = found {
            kernel.processes.remove(&pid);
        }
        match found {
            Some(waited) => Some(Ok(waited)),
            None if any => None,
            None => Some(Err(Errno::CHILD)),
        }
    }

    /// Waits for a handled signal.
    pub async fn pause(&self) {
        let _ = self.block::<()>(Patience::UntilSignal, |_| None).await;
    }

    /// The next handled signal that came.
    pub fn take_signal(&self) -> Option<u8> {
        self.own(|process| process.pending.pop_first())
    }

    /// What to do about a signal; `None` is what it does by itself.
    pub fn set_disposition(&self, number: u8, disposition: Option<Disposition>) {
        self.own(|process| match disposition {
            Some(disposition) => drop(process.dispositions.insert(number, disposition)),
            None => drop(process.dispositions.remove(&number)),
        });
    }

    /// kill(2): `pid` above 0 is a process, 0 the own group, -1 everyone, below
    /// a group.
    ///
    /// # Errors
    /// `ESRCH`, `EPERM`.
    pub fn kill(&self, pid: i64, number: u8) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let uid = kernel
            .processes
            .get(&self.pid)
            .map_or(0, |process| process.who.uid);
        let own_group = kernel.processes.get(&self.pid).map(|process| process.group);
        let group = if pid == 0 {
            own_group
        } else {
            pid.checked_neg()
                .and_then(|group| u32::try_from(group).ok())
        };
        let targets: Vec<(Pid, u32)> = kernel
            .processes
            .range(..super::HIDDEN)
            .filter(|(target, process)| match pid {
                1.. => i64::from(**target) == pid,
                -1 => **target != 1 && **target != self.pid,
                _ => Some(process.group) == group,
            })
            .map(|(target, process)| (*target, process.who.uid))
            .collect();
        if targets.is_empty() {
            return Err(Errno::SRCH);
        }
        let allowed: Vec<Pid> = targets
            .iter()
            .filter(|(_, owner)| uid == 0 || uid == *owner)
            .map(|(target, _)| *target)
            .collect();
        if allowed.is_empty() {
            return Err(Errno::PERM);
        }
        for target in allowed {
            kernel.signal(target, number, Origin::Inside)?;
        }
        Ok(())
    }

    /// A child that runs what `program` makes of its system calls.
    ///
    /// # Errors
    /// `ESRCH`: this process has ended.
    pub fn fork(&self, program: impl FnOnce(Self) -> Task) -> Result<Pid, Errno> {
        let child = self.kernel().fork(self.pid)?;
        let task = program(Self {
            pid: child,
            kernel: self.kernel.clone(),
        });
        self.kernel().run(child, task);
        Ok(child)
    }

    /// Becomes another program, as `execve(2)` does: nothing is handled any
    /// more.
    pub fn become_program(&self, argv: Vec<String>, environment: Vec<String>) {
        self.own(|process| {
            process.argv = argv;
            process.environment = environment;
            process.resident = super::SMALLEST;
            process
                .dispositions
                .retain(|_, disposition| *disposition == Disposition::Ignore);
            process.pending.clear();
        });
    }

    /// Its environment.
    pub fn environment(&self) -> Vec<String> {
        self.own(|process| process.environment.clone())
    }

    /// Takes memory.
    pub fn allocate(&self, bytes: u64) {
        self.kernel().allocate(self.pid, bytes);
    }

    /// Gives memory back.
    pub fn free(&self, bytes: u64) {
        self.own(|process| process.resident = process.resident.saturating_sub(bytes));
    }

    /// The clock.
    pub fn now(&self) -> Duration {
        self.kernel().now()
    }
}
