//! Power on by fork: a QEMU that begins with a template's state instead of a firmware's first
//! instruction.
//!
//! ```text
//!   obtain the template --> start QEMU --> restore --> cont --> running
//!        | cannot              | fails         | fails
//!        v                     v               v
//!       boot              power on failed   template made anew, once; then boot
//! ```
//!
//! The machine's disks and vNICs are on QEMU's command line, and not in the template: the state says
//! nothing of them, so they begin as at power on, and tether finds them when it looks at the bus
//! again. A boot instead says why ([`Started::BootedInstead`]).

use hypervisor::{Attachment, MachineSpec, Start, Started, TemplateId};
use serde_json::json;

use super::*;
use crate::argv;
use crate::qmp::EventStream;
use crate::spare::{Shape, Spare};
use crate::template::{Template, Templates};
use std::fs::File;
use std::time::Duration;

/// How long a state may take to arrive.
const RESTORE: Duration = Duration::from_secs(30);

/// What was at fault when a machine did not start.
#[derive(Debug)]
pub(super) enum StartFailure {
    /// The machine or its host: it would not have booted either.
    Machine(Cause),
    /// The template.
    Template(Cause),
}

impl From<Cause> for StartFailure {
    fn from(cause: Cause) -> Self {
        Self::Machine(cause)
    }
}

impl StartFailure {
    fn cause(self) -> Cause {
        match self {
            Self::Machine(cause) | Self::Template(cause) => cause,
        }
    }
}

/// The way a machine will begin.
#[derive(Debug)]
pub(super) enum Way {
    Boot(Started),
    Fork(Box<Template>),
}

impl Machine {
    /// What its specification wishes, as far as that can be had. Makes the template if there is none.
    pub(super) async fn way(&self, spec: &MachineSpec) -> Way {
        match spec.start {
            Start::Boot => Way::Boot(Started::Booted),
            Start::Fork => match self.template(spec).await {
                Ok(template) => Way::Fork(Box::new(template)),
                Err(cause) => Way::Boot(instead(&cause)),
            },
        }
    }

    async fn template(&self, spec: &MachineSpec) -> Result<Template, Cause> {
        let templates = Templates::of(&self.options)?;
        templates.obtain(spec, &self.options, self.tsc).await
    }

    /// Starts QEMU that way, or another if it cannot be.
    pub(super) async fn begin(
        self: &Arc<Self>,
        state: &mut State,
        spec: &MachineSpec,
        log: &File,
        mut way: Way,
    ) -> Result<(Running, Started), Cause> {
        let mut again = true;
        loop {
            let template = match way {
                Way::Fork(template) => template,
                Way::Boot(began) => {
                    let running = self.start(state, spec, log, None).await;
                    return Ok((running.map_err(StartFailure::cause)?, began));
                }
            };
            let started = match self.take_spare(&template, spec).await {
                Some(running) => Ok(running),
                None => self.start(state, spec, log, Some(&template)).await,
            };
            let cause = match started {
                Ok(running) => {
                    let began = Started::Forked {
                        template: template.record.id.clone(),
                        made: template.made,
                    };
                    self.spares.refill(template, spec);
                    return Ok((running, began));
                }
                Err(StartFailure::Machine(cause)) => return Err(cause),
                Err(StartFailure::Template(cause)) => cause,
            };
            let id = template.record.id.clone();
            tracing::warn!(machine = %self.id, template = %id, %cause, "a template cannot be forked");
            // Its lock is whole for who removes it.
            drop(template);
            self.clean(state).await;
            way = Way::Boot(instead(&cause));
            if std::mem::take(&mut again) && self.drop_template(&id).await {
                way = self.way(spec).await;
            }
        }
    }

    /// A QEMU that was started ahead of need, made this machine's and running; `None` when there is none,
    /// or when it is none any more.
    async fn take_spare(
        self: &Arc<Self>,
        template: &Template,
        spec: &MachineSpec,
    ) -> Option<Running> {
        let spare = self.spares.take(&Shape::of(&template.record.id, spec))?;
        let pid = spare.pid();
        match self.claim(spare, spec).await {
            Ok(running) => Some(running),
            Err(cause) => {
                tracing::warn!(machine = %self.id, pid, %cause, "cannot use a QEMU started ahead of need");
                self.directory.leave_run();
                None
            }
        }
    }

    async fn claim(self: &Arc<Self>, spare: Spare, spec: &MachineSpec) -> Result<Running, Cause> {
        spare.check().await?;
        let qmp = spare.qmp().clone();
        for disk in &spec.disks {
            for node in argv::nodes(disk) {
                qmp.execute("blockdev-add", node).await.map_err(refused)?;
            }
            let name = argv::disk_name(&disk.serial);
            let place = format!("/machine/peripheral/{name}");
            let arguments = json!({"path": place, "property": "drive", "value": name});
            qmp.execute("qom-set", arguments).await.map_err(refused)?;
            let holder = json!({"node-name": argv::holder_name(&disk.serial)});
            qmp.execute("blockdev-del", holder).await.map_err(refused)?;
        }
        for (index, nic) in spec.nics.iter().enumerate() {
            let Attachment::UserMode { published } = &nic.attachment else {
                continue;
            };
            for port in published {
                let line = format!(
                    "hostfwd_add {} {}",
                    argv::network_name(index),
                    argv::forwarded(port)
                );
                let answer = qmp.monitor(&line).await.map_err(refused)?;
                if !answer.trim().is_empty() {
                    return Err(Cause::hypervisor(answer.trim().to_owned()));
                }
            }
        }
        let (qmp, events, process) = spare.become_part_of(&self.directory)?;
        if let Err(error) = qmp.ask("cont").await {
            process.kill().await;
            return Err(refused(error));
        }
        Ok(self.watched(qmp, events, process))
    }

    /// Sees to it that nobody forks this template any more; whether that was to be had.
    async fn drop_template(&self, id: &TemplateId) -> bool {
        match Templates::of(&self.options) {
            Ok(templates) => matches!(
                templates.remove(id).await,
                Ok(()) | Err(Cause::NotFound { .. })
            ),
            Err(_) => false,
        }
    }

    /// Gives a QEMU that waits for it the template's state, and lets it run.
    pub(super) async fn restore(
        &self,
        template: &Template,
        qmp: &Qmp,
        events: &mut EventStream,
        process: &Process,
    ) -> Result<(), StartFailure> {
        self.starter()
            .restore(process, qmp, events, &template.state_uri(), RESTORE)
            .await
            .map_err(StartFailure::Template)?;
        // The disks are locked for it now; another machine that has one of them is no fault of the
        // template's.
        qmp.ask("cont")
            .await
            .map(drop)
            .map_err(|error| StartFailure::Machine(refused(error)))
    }
}

fn instead(cause: &Cause) -> Started {
    Started::BootedInstead { why: words(cause) }
}

/// A cause with its sources, as one sentence.
fn words(cause: &Cause) -> String {
    let mut words = cause.to_string();
    let mut source = std::error::Error::source(cause);
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}
