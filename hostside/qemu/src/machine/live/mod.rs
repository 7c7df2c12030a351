//! Forks of a machine that runs.
//!
//! ```text
//!  parent  runs | processes frozen | stopped                       | runs, processes go on
//!               | by its guest     | state, memory, disks branched |
//!  memory  copied ahead ...........| the rest                      |
//!  child                                                           | QEMU, state, frozen processes
//! ```
//!
//! The parent's device state is saved without its memory (`xen-save-devices-state`, which unlike a
//! migration minds no VMDK open for writing); its memory is copied into a file that every child, and from
//! then on the parent, maps privately ([`memory`]); what its disks are then is never written to again.
//!
//! **Killed at any instant.** The file [`MARK`] in the parent's directory says that it may stand still,
//! and on which disks: who adopts the machine lets it run. A child's record says that it is off until it
//! has all of its state; who finds a QEMU of a machine that is off ends it.

mod child;
mod inject;
mod memory;
mod parent;

use std::fs::{self, File};
use std::time::{Duration, Instant};

use hypervisor::{Boot, Bystander, DiskAccess, DiskSpec, Forked, HOLD, MachineSpec};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::argv;
use crate::directory::Devices;
use crate::template;
use memory::{Copy, Place};
use parent::{CommandLine, guest_memory, open_of};

/// Says that the parent is being forked.
const MARK: &str = "fork.json";
/// Where QEMU writes its state, for a moment.
const STATE: &str = "fork.state";

/// What [`MARK`] holds.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// The disks that the parent goes on with, once they are made.
    disks: Option<Vec<DiskSpec>>,
}

/// What children are made of.
#[derive(Debug)]
pub(crate) struct Capture {
    parent: MachineId,
    devices: Devices,
    memory: File,
    state: Vec<u8>,
    kernel: File,
}

impl Machine {
    /// Stops the guest as shortly as can be, takes what children are made of, and lets it go on, on
    /// `disks`.
    pub(crate) async fn capture(
        &self,
        disks: &[DiskSpec],
        bystander: &dyn Bystander,
    ) -> Result<(Capture, Forked), Cause> {
        let mut state = self.state.lock().await;
        let power = self.view().power;
        let running = state.body.running(&power)?;
        if running.qmp.run_state().await.map_err(refused)? != RunState::Running {
            return Err(Cause::WrongState { state: power });
        }
        let (qmp, pid) = (running.qmp.clone(), running.process.pid());
        let spec = state.record.spec.clone();
        forkable(&spec, self.options.hot_plug_slots)?;
        check_disks(&spec, disks)?;
        let kernel = in_memory("vch-kernel", &template::kernel_head(&spec)?)?;
        let line = CommandLine::of(pid)?;
        if (line.memory_mib, line.cpus) != (spec.memory.mib(), spec.cpus.count()) {
            return Err(unsupported(
                "its memory or its processors have been changed since it was started; start it again",
            ));
        }
        let place = Place {
            pid,
            address: guest_memory(&qmp).await?,
            bytes: spec.memory.bytes(),
        };
        let below = match place.below()? {
            Some(file) => Some(file),
            None => line.memory_fd.map(|fd| open_of(pid, fd)).transpose()?,
        };
        let copy = blocking(move || {
            let mut copy = Copy::begin(place, below)?;
            copy.ahead()?;
            Ok(copy)
        })
        .await?;

        let begun = Instant::now();
        let frozen = bystander.freeze().await;
        let taken = match frozen {
            Ok(()) => self.take(&mut state, &qmp, disks, bystander, copy).await,
            Err(cause) => Err(cause),
        };
        bystander.thaw().await;
        let paused = begun.elapsed();
        let (saved, stopped, (copy, copied_while_stopped)) = taken?;
        let (memory, shared) = blocking(move || copy.finish()).await?;
        let capture = Capture {
            parent: self.id,
            devices: state.record.devices(),
            memory,
            state: saved,
            kernel,
        };
        let forked = Forked {
            stopped,
            paused,
            shared,
            copied_while_stopped,
        };
        Ok((capture, forked))
    }

    /// What is done while the guest stands still; it runs again when this returns.
    async fn take(
        &self,
        state: &mut State,
        qmp: &Qmp,
        disks: &[DiskSpec],
        bystander: &dyn Bystander,
        mut copy: Copy,
    ) -> Result<(Vec<u8>, Duration, (Copy, u64)), Cause> {
        let frozen = Instant::now();
        self.mark(&Mark { disks: None })?;
        let begun = Instant::now();
        let mut branched = false;
        let taken = async {
            qmp.ask("stop").await.map_err(refused)?;
            // Else its processes may have gone on by themselves.
            if frozen.elapsed() > HOLD / 2 {
                return Err(Cause::hypervisor("the host is too slow to fork it now"));
            }
            let file = self.directory.seen_from_qemu(STATE);
            let arguments = json!({"filename": file, "live": false});
            let saved = qmp.execute("xen-save-devices-state", arguments).await;
            saved.map_err(refused)?;
            let path = self.directory.file(STATE);
            let saved = fs::read(&path).map_err(|source| Cause::File {
                what: "cannot read",
                path,
                source,
            })?;
            let copied = blocking(move || {
                let copied = copy.rest()?;
                if let Err(error) = copy.share() {
                    tracing::warn!(%error, "a machine that was forked does not share its memory");
                }
                Ok((copy, copied))
            })
            .await?;
            bystander.branch().await?;
            self.mark(&Mark {
                disks: Some(disks.to_vec()),
            })?;
            for disk in disks {
                branch(qmp, &state.record.spec, disk).await?;
            }
            branched = true;
            Ok((saved, copied))
        }
        .await;
        let resumed = qmp.ask("cont").await;
        let stopped = begun.elapsed();
        let _ = fs::remove_file(self.directory.file(STATE));
        if branched || taken.is_err() {
            // Whatever was reached, the disks it has are those that QEMU says.
            self.settle_disks(state, qmp, disks).await?;
        }
        resumed.map_err(refused)?;
        let (saved, copied) = taken?;
        Ok((saved, stopped, copied))
    }

    /// Records the disks that QEMU has, and that nothing is under way any more.
    async fn settle_disks(
        &self,
        state: &mut State,
        qmp: &Qmp,
        disks: &[DiskSpec],
    ) -> Result<(), Cause> {
        let used = used_nodes(qmp).await?;
        let mut record = state.record.clone();
        for disk in disks {
            if used.contains(&argv::branch_name(disk)) {
                replace(&mut record.spec, disk);
                continue;
            }
            // Opened, as like as not, and never used.
            for node in argv::branch_nodes(disk).iter().rev() {
                let gone = json!({"node-name": node["node-name"]});
                let _ = qmp.execute("blockdev-del", gone).await;
            }
        }
        if record != state.record {
            self.directory.write(&record)?;
            state.record = record;
            self.show(&state.record);
        }
        self.unmark();
        Ok(())
    }

    fn mark(&self, mark: &Mark) -> Result<(), Cause> {
        let path = self.directory.file(MARK);
        let new = self.directory.file("fork.json.new");
        serde_json::to_vec(mark)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| Cause::File {
                what: "cannot write",
                path,
                source,
            })
    }

    fn unmark(&self) {
        let _ = fs::remove_file(self.directory.file(MARK));
    }

    /// Ends what a controller that was killed had begun: lets the parent run, if it has a QEMU, on the
    /// disks it has. Says what it did.
    pub(super) async fn end_fork(&self, state: &mut State) -> Option<String> {
        let text = fs::read(self.directory.file(MARK)).ok()?;
        let mark: Mark = serde_json::from_slice(&text).unwrap_or(Mark { disks: None });
        let disks = mark.disks.unwrap_or_default();
        let _ = fs::remove_file(self.directory.file(STATE));
        let Body::Running(running) = &state.body else {
            // New disks read as the old ones until they are written to.
            for disk in &disks {
                replace(&mut state.record.spec, disk);
            }
            self.show(&state.record);
            match self.directory.write(&state.record) {
                Ok(()) => self.unmark(),
                Err(error) => {
                    tracing::warn!(machine = %self.id, %error, "cannot record its disks");
                }
            }
            return Some("ended a fork that was cut short with its machine".to_owned());
        };
        let qmp = running.qmp.clone();
        let resumed = match qmp.run_state().await {
            Ok(RunState::Stopped) => qmp.ask("cont").await.map(drop),
            other => other.map(drop),
        };
        let settled = self.settle_disks(state, &qmp, &disks).await;
        if let Err(error) = resumed.map_err(refused).and(settled) {
            tracing::warn!(machine = %self.id, %error, "cannot end a fork that was cut short");
        }
        Some("let a machine run on whose fork was cut short".to_owned())
    }
}

/// Whether such a machine can be forked while it runs.
fn forkable(spec: &MachineSpec, hot_plug_slots: u8) -> Result<(), Cause> {
    let why = match (&spec.boot, spec.hardware, spec.channel, &spec.debugger) {
        (Boot::Iso { .. }, ..) => "it was booted from an ISO",
        (_, hypervisor::Hardware::Vmware, ..) => "its hardware is not virtio",
        (_, _, ChannelKind::Vsock | ChannelKind::Serial, _) => "its channel is not virtio's",
        (.., Some(_)) => "a debugger holds it",
        _ if hot_plug_slots > 0 => "disks may have come to it while it ran",
        _ => return Ok(()),
    };
    Err(unsupported(why))
}

/// Whether each disk that is written to has one to go on with, and no other.
fn check_disks(spec: &MachineSpec, disks: &[DiskSpec]) -> Result<(), Cause> {
    let written = |disk: &&DiskSpec| disk.access == DiskAccess::ReadWrite;
    let mut wanted: Vec<_> = spec
        .disks
        .iter()
        .filter(written)
        .map(|d| &d.serial)
        .collect();
    let mut given: Vec<_> = disks.iter().map(|disk| &disk.serial).collect();
    wanted.sort();
    given.sort();
    if wanted == given {
        return Ok(());
    }
    Err(Cause::hypervisor(format!(
        "its disks {wanted:?} are written to, and it is given {given:?} to go on with"
    )))
}

fn unsupported(why: &str) -> Cause {
    Cause::Unsupported {
        driver: "qemu",
        what: "fork this machine while it runs".into(),
        why: why.to_owned(),
    }
}

/// Puts a new disk over the one of its serial.
async fn branch(qmp: &Qmp, spec: &MachineSpec, disk: &DiskSpec) -> Result<(), Cause> {
    let current = spec
        .disks
        .iter()
        .find(|former| former.serial == disk.serial)
        .ok_or(Cause::NotFound { what: "disk" })?;
    for mut node in argv::branch_nodes(disk) {
        if node["driver"] != "file" {
            // Taken from the snapshot, not opened by its name a second time.
            node["backing"] = serde_json::Value::Null;
        }
        qmp.execute("blockdev-add", node).await.map_err(refused)?;
    }
    // Where it was forked before, it is not the one it was started with.
    let names = [argv::branch_name(current), argv::disk_name(&current.serial)];
    let used = used_nodes(qmp).await?;
    let node = names.into_iter().find(|name| used.contains(name));
    let arguments = json!({
        "node": node.ok_or(Cause::NotFound { what: "disk" })?,
        "overlay": argv::branch_name(disk),
    });
    qmp.execute("blockdev-snapshot", arguments)
        .await
        .map(drop)
        .map_err(refused)
}

/// The nodes that devices use.
async fn used_nodes(qmp: &Qmp) -> Result<Vec<String>, Cause> {
    let answer = qmp.ask("query-block").await.map_err(refused)?;
    let devices = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let name =
        |device: &serde_json::Value| device["inserted"]["node-name"].as_str().map(str::to_owned);
    Ok(devices.iter().filter_map(name).collect())
}

fn replace(spec: &mut MachineSpec, disk: &DiskSpec) {
    for former in &mut spec.disks {
        if former.serial == disk.serial {
            *former = disk.clone();
        }
    }
}

/// A file of the host's memory, at its beginning.
fn in_memory(name: &str, content: &[u8]) -> Result<File, Cause> {
    use std::os::unix::fs::FileExt as _;
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
    file.map_err(std::io::Error::from)
        .and_then(|file| file.write_all_at(content, 0).map(|()| file))
        .map_err(|source| Cause::because("cannot hold a fork's state in memory", source))
}

/// Runs what reads and writes much on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
) -> Result<T, Cause> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Cause::because("the driver failed", error)))
}
