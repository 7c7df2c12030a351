//! A child, from a machine that is off to one that runs and whose guest's processes stand still.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::{Cause, MachineId, MachineSpec, PowerState, Started};
use serde_json::json;

use super::{Capture, in_memory};
use crate::argv::{self, Birth, Wire};
use crate::directory::{CHANNEL_SOCKET, Life};
use crate::machine::{Body, Machine, refused};
use crate::process::Process;
use crate::qmp::{EventStream, Qmp};

/// How long a child may take to have its state.
const BIRTH: Duration = Duration::from_secs(60);

impl Machine {
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
