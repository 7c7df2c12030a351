//! One container as everybody sees it: its view, its streams, its run, and the way to its task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tether_link::{Link, ProcessControl};
use tether_wire::message::ProcessId;
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, mpsc, watch};

use crate::command::Command;
use crate::container::{Container, Ended};
use crate::exec::Exec;
use crate::helper::Helper;
use crate::hub::Hub;
use crate::identity::{ContainerId, ExecId};
use crate::log::Feed;

/// One container.
#[derive(Debug)]
pub(crate) struct Cell {
    pub id: ContainerId,
    /// Its directory: disk, log, execs.
    pub directory: PathBuf,
    pub view: watch::Sender<View>,
    pub hub: Hub,
    /// To its task.
    pub commands: mpsc::UnboundedSender<Command>,
    /// Something happened to its machine that the task should look at.
    pub machine_changed: Notify,
    run: Mutex<Option<Arc<Run>>>,
    execs: Mutex<BTreeMap<ExecId, Exec>>,
    /// Of those that run.
    exec_controls: Mutex<BTreeMap<ExecId, ProcessControl>>,
    exec_files: Mutex<ExecFiles>,
    /// The helper containerVM of a container that is off. Whoever uses it reads, its task writes.
    pub helper: Arc<RwLock<Option<Helper>>>,
    /// Tells readers of the log what its writer does.
    pub log: Feed,
}

/// A helper containerVM that stays as long as this does.
pub(crate) type HelperInUse = OwnedRwLockReadGuard<Option<Helper>>;

/// Whether anything may be written of a container's execs. An exec can end after its container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ExecFiles {
    #[default]
    Kept,
    /// Its directory is being taken away.
    Gone,
}

/// What can be looked at and waited for.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub container: Container,
    /// How often its main process has ended since the controller started.
    pub ends: u64,
    /// How it ended last.
    pub last: Option<Ended>,
    /// It is gone.
    pub removed: bool,
}

/// A machine that is on and whose tether has answered.
#[derive(Debug)]
pub(crate) struct Run {
    pub link: Link,
    /// The main process.
    pub main: ProcessControl,
    next_process: AtomicU32,
}

impl Run {
    /// `highest` is the highest number of a process the guest knows.
    pub fn new(link: Link, main: ProcessControl, highest: ProcessId) -> Self {
        Self {
            link,
            main,
            next_process: AtomicU32::new(highest.0.saturating_add(1)),
        }
    }

    /// A number for one more process.
    pub fn process(&self) -> ProcessId {
        ProcessId(self.next_process.fetch_add(1, Ordering::Relaxed))
    }
}

impl Cell {
    pub fn new(
        container: Container,
        directory: PathBuf,
        commands: mpsc::UnboundedSender<Command>,
        last: Option<Ended>,
    ) -> Self {
        Self {
            id: container.id,
            directory,
            hub: Hub::new(container.spec.process.stdin),
            view: watch::Sender::new(View {
                container,
                ends: 0,
                last,
                removed: false,
            }),
            commands,
            machine_changed: Notify::new(),
            run: Mutex::default(),
            execs: Mutex::default(),
            exec_controls: Mutex::default(),
            exec_files: Mutex::default(),
            helper: Arc::default(),
            log: Feed::new(),
        }
    }

    /// How it is now.
    pub fn container(&self) -> Container {
        self.view.borrow().container.clone()
    }

    /// Its root disk.
    pub fn disk(&self) -> PathBuf {
        disk(&self.directory)
    }

    /// Whoever holds this writes of its execs, or makes an end of that.
    pub fn exec_files(&self) -> MutexGuard<'_, ExecFiles> {
        lock(&self.exec_files)
    }

    pub fn run(&self) -> Option<Arc<Run>> {
        lock(&self.run).clone()
    }

    pub fn set_run(&self, run: Option<Arc<Run>>) {
        *lock(&self.run) = run;
    }

    pub fn exec_controls(&self) -> MutexGuard<'_, BTreeMap<ExecId, ProcessControl>> {
        lock(&self.exec_controls)
    }

    pub fn execs(&self) -> MutexGuard<'_, BTreeMap<ExecId, Exec>> {
        lock(&self.execs)
    }
}

/// The root disk in a container's directory.
pub(crate) fn disk(directory: &Path) -> PathBuf {
    directory.join("disk.vmdk")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
