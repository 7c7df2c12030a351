//! What an earlier owner left half done.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{Cause, MachineId, Repair};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use super::view::{self, Seen};
use super::{Core, cause, devices, lease};
use crate::session::{self, chain};
use crate::types::{Destroy_Task, ManagedObject, VirtualMachinePowerState};

/// How long after its machine a container's local disk may be removed for its counterpart to go at once.
const REMOVAL: Duration = Duration::from_secs(60);

/// Waits until none of these files is there (inotify(7)).
async fn removed(files: &[PathBuf]) -> io::Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    for file in files {
        // A file that loses a name has its attributes changed, also where it has another.
        let changes = WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF;
        match inotify::add_watch(&watch, file, changes) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // It is waited for and read as a pipe is.
    let mut watch = Receiver::from_owned_fd_unchecked(watch)?;
    let mut buffer = [0; 4096];
    while files.iter().any(|file| file.exists()) {
        // Which it is does not matter.
        let _ = watch.read(&mut buffer).await?;
    }
    Ok(())
}

/// Whether something was repaired. What the server refuses of one machine stands in nobody else's way: it stays as
/// it is found, and is tried again by the next who looks.
///
/// # Errors
///
/// The server cannot be asked.
pub fn repaired(
    what: &(impl std::fmt::Display + ?Sized),
    done: Result<(), Cause>,
) -> Result<bool, Cause> {
    match done {
        Ok(()) | Err(Cause::NotFound { .. }) => Ok(true),
        Err(error) if is_the_servers(&error) => {
            tracing::warn!(machine = %what, error = chain(&error), "it cannot be repaired now");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether the server answered, with a fault.
fn is_the_servers(error: &Cause) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<session::Error>())
        .is_some_and(|error| error.fault().is_some())
}

impl Core {
    pub async fn reconcile(self: Arc<Self>) -> Result<Vec<Repair>, Cause> {
        let mut repairs = self.repair_forks().await?;
        self.repair_templates().await?;
        for (id, object, leaving) in self.leftovers() {
            match id.filter(|_| leaving) {
                Some(id) => {
                    let cell = self.cell(&id);
                    let _one = cell.operation.lock().await;
                    if repaired(&id, self.destroy_locked(&id).await)? {
                        repairs.push(Repair {
                            id,
                            what: "removed a machine half removed".into(),
                        });
                    }
                }
                None => {
                    let destroy = Destroy_Task {
                        _this: object.clone(),
                    };
                    let destroyed = self.task(&destroy).await.map(drop);
                    let destroyed = destroyed
                        .map_err(|error| cause("an upload's machine cannot be removed", error));
                    if repaired(&object, destroyed)? {
                        tracing::info!(machine = %object, "removed what was left of an upload");
                    }
                }
            }
        }
        for id in self.identities() {
            let unsettled = self.find(&id).is_ok_and(|(_, properties)| {
                matches!(self.see(&id, &properties), Some(Seen::Unsettled))
            });
            if unsettled && repaired(&id, self.inspect(&id).await.map(drop))? {
                repairs.push(Repair {
                    id,
                    what: "wrote down why it is off, which nobody saw".into(),
                });
            }
        }
        self.sweep_consoles();
        for file in self.sweep().await {
            tracing::info!(file, "removed a disk whose container is gone");
        }
        Ok(repairs)
    }

    /// Machines half removed, and those of uploads that nobody goes on with.
    fn leftovers(&self) -> Vec<(Option<MachineId>, ManagedObject, bool)> {
        let sending = self.disks.is_sending();
        self.collector.look(|objects| {
            objects
                .of_kind("VirtualMachine")
                .filter_map(|(object, properties)| {
                    let record = self.record(properties);
                    let leaving = record.as_ref().is_some_and(|record| record.leaving);
                    let name = properties.get("name").map_or("", |node| &node.text);
                    let upload = !sending
                        && record.is_none()
                        && name.starts_with(lease::UPLOAD)
                        && view::power(properties) == VirtualMachinePowerState::PoweredOff;
                    (leaving || upload)
                        .then(|| (view::identity(properties), object.clone(), leaving))
                })
                .collect()
        })
    }

    /// Removes from the datastore what belonged to local disks that are gone.
    pub async fn sweep(&self) -> Vec<String> {
        let used: HashSet<String> = self.collector.look(|objects| {
            objects
                .of_kind("VirtualMachine")
                .filter_map(|(_, properties)| properties.get("config.hardware"))
                .flat_map(devices::disks)
                .map(|disk| disk.file)
                .collect()
        });
        self.disks.sweep(&self.collector, &used).await
    }

    /// The same, while nobody waits, as soon as these local disks are gone: who removes a container removes
    /// its disk after its machine.
    pub fn sweep_without(self: &Arc<Self>, disks: Vec<PathBuf>) {
        let core = Arc::downgrade(self);
        tokio::spawn(async move {
            // One that stays is its owner's affair; the next sweep looks again.
            if let Ok(Err(error)) = tokio::time::timeout(REMOVAL, removed(&disks)).await {
                tracing::warn!(%error, "local disks cannot be watched: what is theirs is removed later");
            }
            let Some(core) = core.upgrade() else { return };
            let removed = core.sweep().await;
            if !removed.is_empty() {
                tracing::debug!(?removed, "removed disks whose containers are gone");
            }
        });
    }
}
