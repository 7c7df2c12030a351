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
//! migration minds no VMDK open for writing); its memory is copied into a file that every child maps
//! privately ([`memory`]); what its disks are then is never written to again.
//!
//! **Killed at any instant.** The file [`MARK`] in the parent's directory says that it may stand still,
//! and on which disks: who adopts the machine lets it run. A child's record says that it is off until it
//! has all of its state; who finds a QEMU of a machine that is off ends it.

mod memory;

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant, SystemTime};

use hypervisor::{Boot, Bystander, DiskAccess, DiskSpec, Forked, HOLD, MachineSpec, Started};
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::argv::{self, Birth, KERNEL_HEAD, Wire};
use crate::directory::Devices;
use crate::qmp::EventStream;
use memory::{Copy, Place};

/// Says that the parent is being forked.
const MARK: &str = "fork.json";
/// Where QEMU writes its state, for a moment.
const STATE: &str = "fork.state";
/// How long a child may take to have its state.
const BIRTH: Duration = Duration::from_secs(60);

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

/// What of a machine's command line its children must have alike.
#[derive(Debug, PartialEq, Eq)]
struct CommandLine {
    memory_mib: u64,
    cpus: u32,
    /// The descriptor its memory is a private view of.
    memory_fd: Option<u32>,
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
        let kernel = kernel_head(&spec)?;
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
        let below = line.memory_fd.map(|fd| open_of(pid, fd)).transpose()?;
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

    /// Becomes a running child, whose guest's processes stand still.
    pub(crate) async fn be_born(self: &Arc<Self>, capture: &Capture) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        if !matches!(state.body, Body::Off) {
            return Err(Cause::WrongState {
                state: self.view().power,
            });
        }
        let spec = state.record.spec.clone();
        let born = async {
            let log = self.open_log()?;
            self.console.reset().await;
            let (qmp, events, process) = self.incoming(&spec, &log, capture).await?;
            let process_ended = process.ended();
            let went = async {
                disconnect(&qmp, &spec).await?;
                let mut record = state.record.clone();
                record.life = Life::Started;
                record.started = SystemTime::now();
                record.devices = Some(capture.devices);
                record.began = Some(Started::ForkedRunning {
                    parent: capture.parent,
                });
                self.directory.write(&record)?;
                qmp.ask("cont").await.map_err(refused)?;
                Ok(record)
            };
            let went = tokio::select! {
                biased;
                ending = process_ended => Err(self.starter().failure(&ending)),
                went = went => went,
            };
            match went {
                Ok(record) => Ok((record, self.watched(qmp, events, process))),
                Err(cause) => {
                    process.kill().await;
                    Err(cause)
                }
            }
        }
        .await;
        match born {
            Ok((record, running)) => {
                state.record = record;
                state.body = Body::Running(running);
                self.show(&state.record);
                self.set_power(PowerState::On);
                Ok(())
            }
            Err(cause) => {
                self.clean(&mut state).await;
                Err(cause)
            }
        }
    }

    /// A QEMU that has the parent's state and stands still.
    async fn incoming(
        &self,
        spec: &MachineSpec,
        log: &File,
        capture: &Capture,
    ) -> Result<(Qmp, EventStream, Process), Cause> {
        let channel = self.starter().listen(CHANNEL_SOCKET)?;
        // Each child reads it from its beginning.
        let saved = in_memory("vch-state", &capture.state)?;
        let inherited = vec![
            channel.as_fd(),
            capture.memory.as_fd(),
            capture.kernel.as_fd(),
            saved.as_fd(),
        ];
        let birth = Birth::Child {
            ram_fd: capture.memory.as_raw_fd(),
            kernel_fd: capture.kernel.as_raw_fd(),
            boot_id: MachineId::random()
                .map_err(|source| Cause::because("the host has no random bytes", source))?,
            devices: capture.devices,
        };
        let wire = Wire::Listener {
            fd: channel.as_raw_fd(),
        };
        let process = self.start_qemu(spec, log, wire, birth, inherited).await?;
        drop(channel);
        let starter = self.starter();
        let (qmp, mut events) = starter.greeted(&process).await?;
        let uri = format!("fd:{}", saved.as_raw_fd());
        let restored = starter.restore(&process, &qmp, &mut events, &uri, BIRTH);
        match restored.await {
            Ok(()) => Ok((qmp, events, process)),
            Err(cause) => {
                process.kill().await;
                Err(cause)
            }
        }
    }

    /// Connects the vNICs.
    pub(crate) async fn connect_nics(&self) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        let nics = state.record.spec.nics.len();
        let running = state.body.running(&self.view().power)?;
        for index in 0..nics {
            let arguments = json!({"name": argv::nic_name(index), "up": true});
            let set = running.qmp.execute("set_link", arguments).await;
            set.map_err(refused)?;
        }
        Ok(())
    }
}

async fn disconnect(qmp: &Qmp, spec: &MachineSpec) -> Result<(), Cause> {
    for index in 0..spec.nics.len() {
        let arguments = json!({"name": argv::nic_name(index), "up": false});
        let set = qmp.execute("set_link", arguments).await;
        set.map_err(refused)?;
    }
    Ok(())
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

/// Where the guest's memory begins in its QEMU.
async fn guest_memory(qmp: &Qmp) -> Result<u64, Cause> {
    let answer = qmp.monitor("gpa2hva 0").await.map_err(refused)?;
    address_in(&answer).ok_or_else(|| {
        Cause::hypervisor(format!(
            "QEMU does not say where its guest's memory is: {answer}"
        ))
    })
}

/// From QEMU's `Host virtual address for 0x0 (ram) is 0x7f0000000000`.
fn address_in(words: &str) -> Option<u64> {
    let (_, address) = words.trim().split_once("(ram) is 0x")?;
    u64::from_str_radix(address, 16).ok()
}

impl CommandLine {
    fn of(pid: u32) -> Result<Self, Cause> {
        let path = format!("/proc/{pid}/cmdline");
        let bytes = fs::read(&path).map_err(|source| Cause::File {
            what: "cannot read",
            path: path.into(),
            source,
        })?;
        let text = String::from_utf8_lossy(&bytes);
        let words: Vec<&str> = text.split('\0').collect();
        Self::parse(&words)
            .ok_or_else(|| Cause::hypervisor("its QEMU was not started by this driver"))
    }

    fn parse(words: &[&str]) -> Option<Self> {
        let after = |option: &str| {
            let mut pairs = words.windows(2);
            pairs.find(|pair| pair[0] == option).map(|pair| pair[1])
        };
        let part = |list: &str, key: &str| {
            list.split(',')
                .find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
        };
        let memory = words
            .iter()
            .find(|word| word.starts_with("memory-backend-") && word.contains(",id=ram,"))?;
        Some(Self {
            memory_mib: after("-m")?.strip_suffix('M')?.parse().ok()?,
            cpus: part(after("-smp")?, "cpus")?.parse().ok()?,
            memory_fd: match part(memory, "mem-path") {
                Some(path) => Some(path.strip_prefix("/proc/self/fd/")?.parse().ok()?),
                None => None,
            },
        })
    }
}

/// A file that another process has open.
fn open_of(pid: u32, fd: u32) -> Result<File, Cause> {
    let path = format!("/proc/{pid}/fd/{fd}");
    File::open(&path).map_err(|source| Cause::File {
        what: "cannot open what a running QEMU has as",
        path: path.into(),
        source,
    })
}

/// The head of its kernel, in memory: see [`Birth::Fork`].
fn kernel_head(spec: &MachineSpec) -> Result<File, Cause> {
    use std::io::Read as _;
    let Boot::Kernel { kernel, .. } = &spec.boot else {
        return Err(unsupported("it was not booted from a kernel"));
    };
    let mut head = Vec::new();
    File::open(kernel)
        .and_then(|file| file.take(KERNEL_HEAD).read_to_end(&mut head))
        .map_err(|source| Cause::File {
            what: "cannot read",
            path: kernel.clone(),
            source,
        })?;
    in_memory("vch-kernel", &head)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_where_qemu_says() {
        let words = "Host virtual address for 0x0 (ram) is 0x7fead7fff000\r\n";
        assert_eq!(address_in(words), Some(0x7fea_d7ff_f000));
        let rom = "Host virtual address for 0x0 (pc.bios) is 0x7fead7fff000\r\n";
        assert_eq!(address_in(rom), None);
        assert_eq!(address_in("No memory is mapped at address 0x0\r\n"), None);
    }

    #[test]
    fn a_command_line_says_what_children_must_have_alike() {
        let forked = [
            "qemu-system-x86_64",
            "-smp",
            "cpus=2,sockets=1,cores=2,threads=1",
            "-m",
            "64M",
            "-object",
            "memory-backend-file,id=ram,mem-path=/proc/self/fd/17,share=off,size=64M",
        ];
        let expected = CommandLine {
            memory_mib: 64,
            cpus: 2,
            memory_fd: Some(17),
        };
        assert_eq!(CommandLine::parse(&forked), Some(expected));
        let mut booted = forked;
        booted[6] = "memory-backend-ram,id=ram,size=64M";
        let line = CommandLine::parse(&booted).unwrap();
        assert_eq!(line.memory_fd, None);
        booted[6] = "memory-backend-file,id=ram,mem-path=/dev/shm/x,size=64M";
        assert_eq!(CommandLine::parse(&booted), None);
        assert_eq!(CommandLine::parse(&forked[..3]), None);
    }
}
