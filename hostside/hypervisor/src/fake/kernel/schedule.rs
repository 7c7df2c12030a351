//! Who runs when: every program that may go on is polled in turn, for a slice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tether_wire::message::ExitStatus;
use tokio::time::Instant;

use super::{Kernel, Pid, State, Task};
use crate::fake::lock;

/// System calls of one slice, of all programs of a machine together.
const SLICE: u32 = 2_000;

/// The programs of a machine.
pub struct Tasks {
    kernel: Arc<Mutex<Kernel>>,
    tasks: BTreeMap<Pid, Task>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks")
            .field("pids", &self.tasks.keys())
            .finish_non_exhaustive()
    }
}

/// Why a slice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// Everything waits; the first until this moment.
    Idle(Option<Instant>),
    /// Something could go on at once.
    Spent,
}

impl Tasks {
    /// Those of this kernel.
    pub fn new(kernel: Arc<Mutex<Kernel>>) -> Self {
        Self {
            kernel,
            tasks: BTreeMap::new(),
        }
    }

    /// Lets every program go on as far as it can.
    pub fn run(&mut self) -> Slice {
        lock(&self.kernel).budget = SLICE;
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let next = {
                let mut kernel = lock(&self.kernel);
                self.tasks.extend(kernel.born.drain(..));
                let now = Instant::now();
                while let Some((at, pid)) = kernel.timers.first().copied()
                    && at <= now
                {
                    kernel.timers.pop_first();
                    kernel.wake(pid);
                }
                if kernel.budget == 0 {
                    break;
                }
                let Some(pid) = kernel.ready.pop_front() else {
                    break;
                };
                match kernel.processes.get(&pid).map(|process| process.state) {
                    Some(State::Running) => Some(pid),
                    // It is looked at when it goes on.
                    Some(State::Stopped) => None,
                    Some(State::Zombie(_)) | None => None,
                }
            };
            let Some(pid) = next else {
                continue;
            };
            let Some(task) = self.tasks.get_mut(&pid) else {
                continue;
            };
            if let Poll::Ready(code) = task.as_mut().poll(&mut context) {
                self.tasks.remove(&pid);
                lock(&self.kernel).exit(pid, ExitStatus::Code(code));
            }
        }
        let mut kernel = lock(&self.kernel);
        // Dropped without the lock: a program's own drop may want it.
        let (alive, dead) = std::mem::take(&mut self.tasks)
            .into_iter()
            .partition(|(pid, _)| kernel.processes.get(pid).is_some_and(super::Process::lives));
        self.tasks = alive;
        let slice = if kernel.ready.is_empty() && kernel.born.is_empty() {
            Slice::Idle(kernel.timers.first().map(|(at, _)| *at))
        } else {
            Slice::Spent
        };
        kernel.budget = SLICE;
        drop(kernel);
        drop::<BTreeMap<Pid, Task>>(dead);
        slice
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // What was never polled holds the kernel that holds it.
        let born = std::mem::take(&mut lock(&self.kernel).born);
        drop(born);
    }
}
