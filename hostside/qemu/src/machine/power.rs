//! On and off.

use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, SystemTime};

use hypervisor::{
    Attachment, Boot, DiskAccess, DiskSource, Firmware, MachineSpec, PowerOff, Protocol, StopCause,
};

use super::fork::StartFailure;
use super::*;
use crate::accel::Accelerator;
use crate::argv::{Birth, UEFI_VARIABLES, Wire};
use crate::directory::{LOG, QMP_SOCKET};
use crate::process::Lifetime;
use crate::qmp::EventStream;
use crate::start::{LAST_BREATH, Starter, Wanted, greet};
use crate::template::Template;
use crate::vsock::VsockCarrier;

/// How long an old QEMU may take to greet a new controller.
const ATTACH: Duration = Duration::from_secs(30);
/// How long QEMU may take to end when told to, before it is killed. It writes
/// back its disks meanwhile.
const QUIT: Duration = Duration::from_secs(20);

impl Machine {
    /// Starts QEMU.
    pub(crate) async fn power_on(self: &Arc<Self>) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        match &state.body {
            Body::Off => {}
            Body::Running(_) | Body::Mute { .. } => {
                return Err(Cause::WrongState {
                    state: self.view().power,
                });
            }
            Body::Destroyed => return Err(Cause::NotFound { what: "machine" }),
        }
        let spec = state.record.spec.clone();
        check_files(&spec)?;
        check_ports(&spec)?;
        // May take as long as a boot. A controller killed meanwhile leaves a machine that is off.
        let way = self.way(&spec).await;
        let before = state.record.clone();
        state.record.life = Life::Started;
        state.record.started = SystemTime::now();
        // Not until it runs.
        state.record.began = None;
        let log = self.open_log()?;
        self.console.reset().await;
        self.directory.write(&state.record)?;
        match self.begin(&mut state, &spec, &log, way).await {
            Ok((running, began)) => {
                state.body = Body::Running(running);
                state.record.began = Some(began);
                state.record.devices = None;
                // Unwritten, only how it began is forgotten.
                if let Err(error) = self.directory.note(&state.record) {
                    tracing::warn!(machine = %self.id, %error, "cannot record how a machine began");
                }
                self.show(&state.record);
                self.set_power(PowerState::On);
                Ok(())
            }
            Err(cause) => {
                state.record = before;
                self.clean(&mut state).await;
                if let Err(error) = self.directory.write(&state.record) {
                    tracing::warn!(machine = %self.id, %error, "cannot record that a machine did not start");
                }
                Err(cause)
            }
        }
    }

    /// Starts QEMU; with a template, waits until the machine has its state.
    pub(super) async fn start(
        self: &Arc<Self>,
        state: &mut State,
        spec: &MachineSpec,
        log: &File,
        template: Option<&Template>,
    ) -> Result<Running, StartFailure> {
        let mut inherited = Vec::new();
        let channel;
        let wire = match (spec.channel, &self.options.vsock) {
            (ChannelKind::Virtio | ChannelKind::Serial, _) => {
                channel = self.starter().listen(CHANNEL_SOCKET)?;
                inherited.push(channel.as_fd());
                Wire::Listener {
                    fd: channel.as_raw_fd(),
                }
            }
            (ChannelKind::Vsock, VsockCarrier::Kernel) => Wire::Vhost {
                cid: vsock::context_id(&self.id),
            },
            (ChannelKind::Vsock, VsockCarrier::Daemon(program)) => {
                state.vsock = Some(vsock::start_daemon(program, &self.directory, log).await?);
                Wire::VhostUser {
                    socket: vsock::DEVICE_SOCKET,
                }
            }
            (ChannelKind::Vsock, VsockCarrier::None) => {
                return Err(StartFailure::Machine(Cause::Unsupported {
                    driver: "qemu",
                    what: "carry a channel by vsock".into(),
                    why: "neither /dev/vhost-vsock nor vhost-device-vsock is there any more".into(),
                }));
            }
        };
        let birth = match template {
            None => Birth::Boot,
            Some(template) => {
                inherited.extend(template.files());
                template.birth(false)?
            }
        };
        let process = self.start_qemu(spec, log, wire, birth, inherited).await?;
        let (qmp, mut events) = self.starter().greeted(&process).await?;
        if let Some(template) = template
            && let Err(failure) = self.restore(template, &qmp, &mut events, &process).await
        {
            process.kill().await;
            return Err(failure);
        }
        Ok(self.watched(qmp, events, process))
    }

    /// What starts QEMUs in its directory.
    pub(super) fn starter(&self) -> Starter<'_> {
        Starter {
            directory: &self.directory,
            options: &self.options,
        }
    }

    pub(super) async fn start_qemu(
        &self,
        spec: &MachineSpec,
        log: &File,
        channel: Wire,
        birth: Birth,
        inherited: Vec<BorrowedFd<'_>>,
    ) -> Result<Process, Cause> {
        let uefi_code = match &spec.boot {
            Boot::Iso {
                firmware: Firmware::Uefi,
                ..
            } => Some(self.prepare_uefi()?),
            Boot::Iso {
                firmware: Firmware::Bios,
                ..
            }
            | Boot::Kernel { .. } => None,
        };
        let tsc_khz = match (&birth, self.options.accelerator) {
            (Birth::Boot, Accelerator::Tcg) => self.tsc.khz().await,
            // A fork's kernel knows.
            _ => None,
        };
        self.starter().start(Wanted {
            spec,
            log,
            lifetime: Lifetime::Own,
            channel,
            birth,
            inherited,
            tsc_khz,
            uefi_code,
        })
    }

    pub(super) fn watched(
        self: &Arc<Self>,
        qmp: Qmp,
        events: EventStream,
        process: Process,
    ) -> Running {
        let process = Arc::new(process);
        let task = tokio::spawn(watch::watch(
            Arc::downgrade(self),
            qmp.clone(),
            events,
            process.clone(),
        ));
        Running {
            qmp,
            process,
            _watch: AbortOnDrop(task.abort_handle()),
            channel: Older::default(),
        }
    }

    /// Takes over what an earlier controller left: `qemu` and `vsock` are the
    /// machine's, if it has them. Says what it repaired.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        qemu: Option<Process>,
        vsock: Option<Process>,
    ) -> Option<String> {
        let mut state = self.state.lock().await;
        state.vsock = vsock;
        // As far as the earlier controller did not come to it; without, it is a QEMU that does not answer.
        if let Err(error) = self.directory.link_run() {
            tracing::warn!(machine = %self.id, %error, "cannot link a machine's sockets");
        }
        match (&state.record.life, qemu) {
            (Life::Off(_), None) => {
                self.clean(&mut state).await;
                None
            }
            (Life::Off(_), Some(process)) => {
                process.kill().await;
                self.clean(&mut state).await;
                Some("ended the QEMU of a machine that was off".to_owned())
            }
            (Life::Started, None) => {
                self.end_fork(&mut state).await;
                let cause = log::vanished_cause(&self.directory.log_tail(log::TAIL), "is gone");
                let said = format!("it went off while nobody watched: {cause}");
                self.record_off(&mut state, cause);
                self.clean(&mut state).await;
                Some(said)
            }
            (Life::Started, Some(process)) => match greet(&self.directory, ATTACH).await {
                // It may have been found while it ended.
                Err(why) => {
                    if let Ok(ending) = tokio::time::timeout(LAST_BREATH, process.ended()).await {
                        let tail = self.directory.log_tail(log::TAIL);
                        let cause = log::vanished_cause(&tail, &ending.to_string());
                        let said = format!("it went off while nobody watched: {cause}");
                        self.record_off(&mut state, cause);
                        self.clean(&mut state).await;
                        return Some(said);
                    }
                    let said = format!(
                        "its QEMU (process {}) does not answer: {why}",
                        process.pid()
                    );
                    state.body = Body::Mute { process, why };
                    Some(said)
                }
                Ok((qmp, events)) => {
                    state.body = Body::Running(self.watched(qmp.clone(), events, process));
                    let forking = self.end_fork(&mut state).await;
                    match qmp.run_state().await {
                        // The earlier controller was on its way to make it run.
                        Ok(RunState::Incoming) => {
                            self.finish(&mut state, StopCause::NeverStarted).await;
                            Some("ended a fork whose start was cut short".to_owned())
                        }
                        Ok(RunState::Running) => forking,
                        // As is one that has its state and was to be let go.
                        Ok(RunState::Stopped) if state.record.began.is_none() => {
                            self.finish(&mut state, StopCause::NeverStarted).await;
                            Some("ended a machine whose start was cut short".to_owned())
                        }
                        Ok(RunState::Stopped) => {
                            self.set_power(PowerState::Suspended);
                            None
                        }
                        Ok(ended) => {
                            let cause = self.cause_of(ended);
                            let said = format!("it went off while nobody watched: {cause}");
                            self.finish(&mut state, cause).await;
                            Some(said)
                        }
                        // The watch sees how it ends.
                        Err(_) => None,
                    }
                }
            },
        }
    }

    /// Why a guest that QEMU keeps after its end ended.
    pub(super) fn cause_of(&self, ended: RunState) -> StopCause {
        match ended {
            RunState::Panicked => StopCause::GuestPanic,
            RunState::Shutdown => log::shutdown_cause(&self.directory.log_tail(log::TAIL)),
            RunState::InternalError => {
                let words = log::last_words(&self.directory.log_tail(log::TAIL));
                StopCause::HypervisorFailed {
                    detail: words.unwrap_or_else(|| "QEMU internal error".to_owned()),
                }
            }
            RunState::Running | RunState::Stopped | RunState::Incoming => StopCause::PoweredOff,
        }
    }

    /// Off, by request or by force.
    pub(crate) async fn power_off(&self, how: PowerOff) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        match (&state.body, how) {
            (Body::Off, _) => Ok(()),
            (Body::Destroyed, _) => Err(Cause::NotFound { what: "machine" }),
            (Body::Running(running), PowerOff::Ask) => running
                .qmp
                .ask("system_powerdown")
                .await
                .map(drop)
                .map_err(refused),
            (Body::Mute { .. }, PowerOff::Ask) => state.body.running(&self.view().power).map(drop),
            (Body::Running(_) | Body::Mute { .. }, PowerOff::Cut) => {
                self.end(&mut state).await;
                Ok(())
            }
        }
    }

    /// Ends the QEMU there is, for the cause it may already have.
    async fn end(&self, state: &mut State) {
        let cause = match &state.body {
            Body::Running(running) => {
                match tokio::time::timeout(LAST_BREATH, running.qmp.run_state()).await {
                    Ok(Ok(run_state)) => self.cause_of(run_state),
                    Ok(Err(_)) | Err(_) => StopCause::PoweredOff,
                }
            }
            Body::Mute { .. } => StopCause::PoweredOff,
            Body::Off | Body::Destroyed => return,
        };
        self.finish(state, cause).await;
    }

    /// Records why the machine is off, then makes it so, then says so.
    pub(super) async fn finish(&self, state: &mut State, cause: StopCause) {
        // Dropped at the very end: with it goes the watch, in which this may run.
        let body = std::mem::replace(&mut state.body, Body::Off);
        match &body {
            Body::Running(running) => {
                // A QEMU that is stuck takes its last lines along.
                let drain = self.console.drain(&running.qmp);
                let _ = tokio::time::timeout(LAST_BREATH, drain).await;
                self.write_off(state, &cause);
                let quit = async {
                    // An answer or the end of the connection: both are well.
                    let _ = running.qmp.ask("quit").await;
                    running.process.ended().await
                };
                if tokio::time::timeout(QUIT, quit).await.is_err() {
                    running.process.kill().await;
                }
            }
            Body::Mute { process, .. } => {
                self.write_off(state, &cause);
                process.kill().await;
            }
            Body::Off => self.write_off(state, &cause),
            Body::Destroyed => {
                state.body = Body::Destroyed;
                return;
            }
        }
        self.clean(state).await;
        self.console.close().await;
        self.show(&state.record);
        self.set_power(PowerState::Off { cause });
    }

    /// Records that a machine without a QEMU is off.
    fn record_off(&self, state: &mut State, cause: StopCause) {
        self.write_off(state, &cause);
        self.show(&state.record);
        self.set_power(PowerState::Off { cause });
    }

    fn write_off(&self, state: &mut State, cause: &StopCause) {
        state.record.life = Life::Off(cause.clone());
        state.record.stopped = SystemTime::now();
        // Unwritten, the next controller reads the same from QEMU's log.
        if let Err(error) = self.directory.write(&state.record) {
            tracing::warn!(machine = %self.id, %error, "cannot record why a machine is off");
        }
    }

    /// Ends and removes the machine.
    pub(crate) async fn destroy(&self) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        if matches!(state.body, Body::Destroyed) {
            return Err(Cause::NotFound { what: "machine" });
        }
        self.end(&mut state).await;
        self.directory.remove()?;
        state.body = Body::Destroyed;
        self.events.send(self.id, Notice::Destroyed);
        Ok(())
    }

    /// Stops the virtual CPUs.
    pub(crate) async fn suspend(&self) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        let running = state.body.running(&self.view().power)?;
        running.qmp.ask("stop").await.map_err(refused)?;
        self.settle(&mut state).await
    }

    /// Lets the virtual CPUs run.
    pub(crate) async fn resume(&self) -> Result<(), Cause> {
        let mut state = self.state.lock().await;
        let running = state.body.running(&self.view().power)?;
        // `cont` would also revive a guest that has ended.
        if running.qmp.run_state().await.map_err(refused)? == RunState::Stopped {
            running.qmp.ask("cont").await.map_err(refused)?;
        }
        self.settle(&mut state).await
    }

    /// Makes the power state what QEMU says it is.
    pub(super) async fn settle(&self, state: &mut State) -> Result<(), Cause> {
        let Body::Running(running) = &state.body else {
            return Ok(());
        };
        match running.qmp.run_state().await.map_err(refused)? {
            RunState::Running => self.set_power(PowerState::On),
            RunState::Stopped | RunState::Incoming => self.set_power(PowerState::Suspended),
            ended => {
                let cause = self.cause_of(ended);
                self.finish(state, cause.clone()).await;
                return Err(Cause::WrongState {
                    state: PowerState::Off { cause },
                });
            }
        }
        Ok(())
    }

    pub(super) fn open_log(&self) -> Result<File, Cause> {
        let path = self.directory.file(LOG);
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .and_then(|log| log.set_len(0).map(|()| log))
            .map_err(|source| Cause::File {
                what: "cannot open",
                path,
                source,
            })
    }

    /// Ends and removes what served a QEMU that is gone.
    pub(super) async fn clean(&self, state: &mut State) {
        if let Some(vsock) = state.vsock.take() {
            vsock.kill().await;
        }
        self.directory.leave_run();
        for name in [
            QMP_SOCKET,
            CHANNEL_SOCKET,
            vsock::DEVICE_SOCKET,
            vsock::HOST_SOCKET,
        ] {
            let _ = fs::remove_file(self.directory.file(name));
        }
    }

    /// Gives the machine UEFI variables of its own, and finds UEFI's code.
    fn prepare_uefi(&self) -> Result<std::path::PathBuf, Cause> {
        let (code, variables) = self.options.uefi.clone();
        let own = self.directory.file(UEFI_VARIABLES);
        if !code.exists() || !variables.exists() {
            return Err(Cause::Unsupported {
                driver: "qemu",
                what: "boot by UEFI".into(),
                why: format!("there is no {}; install the package ovmf", code.display()),
            });
        }
        if !own.exists() {
            fs::copy(&variables, &own).map_err(|source| Cause::File {
                what: "cannot copy",
                path: variables,
                source,
            })?;
        }
        Ok(code)
    }
}

/// Opens what QEMU will, to fail in plain words.
fn check_files(spec: &MachineSpec) -> Result<(), Cause> {
    let mut files = Vec::new();
    match &spec.boot {
        Boot::Kernel {
            kernel, initramfs, ..
        } => files.extend([(kernel, false), (initramfs, false)]),
        Boot::Iso { iso, .. } => files.push((iso, false)),
    }
    for disk in &spec.disks {
        if let DiskSource::File(path) = &disk.source {
            files.push((path, disk.access == DiskAccess::ReadWrite));
        }
    }
    for (path, write) in files {
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map_err(|source| Cause::File {
                what: "cannot open",
                path: path.clone(),
                source,
            })?;
    }
    Ok(())
}

/// Binds what QEMU will, to fail in plain words. Who takes the port between
/// this and QEMU's start is reported in QEMU's words.
fn check_ports(spec: &MachineSpec) -> Result<(), Cause> {
    for nic in &spec.nics {
        let Attachment::UserMode { published } = &nic.attachment else {
            continue;
        };
        for port in published {
            let bound = match port.protocol {
                Protocol::Tcp => TcpListener::bind(port.host).map(drop),
                Protocol::Udp => UdpSocket::bind(port.host).map(drop),
            };
            bound.map_err(|source| Cause::PortInUse {
                address: port.host,
                protocol: port.protocol,
                source,
            })?;
        }
    }
    Ok(())
}
