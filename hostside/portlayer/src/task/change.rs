//! What is kept on the machine and shown in the view.

use std::time::SystemTime;

use hypervisor::{Applied, Reconfigure};

use super::{Phase, Task, off_state, subject};
use crate::ContainerName;
use crate::admission::Limits;
use crate::cell::lock;
use crate::container::State;
use crate::error::{Error, WrongState};
use crate::event::{Action, Subject};
use crate::record;
use crate::spec::{AtEnd, Update};

impl Task {
    pub(super) async fn update(&mut self, update: Update) -> Result<Applied, Error> {
        let id = self.cell.id;
        if update.restart.is_some() && self.made.spec.at_end == AtEnd::Remove {
            return Err(WrongState::AutoRemove.into());
        }
        let mut applied = Applied::Live;
        let (memory, cpus) = self.size();
        let (new_memory, new_cpus) = (update.memory.unwrap_or(memory), update.cpus.unwrap_or(cpus));
        if (new_memory, new_cpus) != (memory, cpus) {
            let limits: Limits = lock(&self.layer.admission).limits();
            limits.check(new_memory, new_cpus)?;
            let on = matches!(self.phase, Phase::On(_));
            let ports = &self.made.published;
            if on {
                lock(&self.layer.admission).admit(id, new_memory, new_cpus, ports)?;
            }
            let change = Reconfigure {
                cpus: new_cpus,
                memory: new_memory,
            };
            let done = self.layer.driver.reconfigure(&self.machine, change).await;
            match done {
                Ok(how) => {
                    applied = how;
                    if on && how == Applied::AtPowerOn {
                        lock(&self.layer.admission).count(id, memory, cpus, ports);
                    }
                    self.cell.view.send_modify(|view| {
                        view.container.memory = new_memory;
                        view.container.cpus = new_cpus;
                    });
                }
                Err(source) => {
                    if on {
                        lock(&self.layer.admission).count(id, memory, cpus, ports);
                    }
                    return Err(Error::hypervisor(id)(source));
                }
            }
        }
        if let Some(restart) = update.restart {
            self.kept.restart = restart;
            self.keep().await?;
            self.cell
                .view
                .send_modify(|view| view.container.restart = restart);
        }
        self.emit(Action::Update);
        Ok(applied)
    }

    /// The registry has reserved the name.
    pub(super) async fn rename(&mut self, name: ContainerName) -> Result<(), Error> {
        let from = std::mem::replace(&mut self.kept.name, name.clone());
        if let Err(error) = self.keep().await {
            self.kept.name = from;
            return Err(error);
        }
        self.cell
            .view
            .send_modify(|view| view.container.name = name);
        self.emit(Action::Rename {
            from: from.as_str().to_owned(),
        });
        Ok(())
    }

    /// Writes down what must not be forgotten.
    pub(super) async fn keep(&mut self) -> Result<(), Error> {
        let id = self.cell.id;
        let changes = vec![record::change(&self.kept)];
        let kept = self.layer.driver.set_metadata(&self.machine, changes).await;
        kept.map_err(Error::hypervisor(id))
    }

    pub(super) fn size(&self) -> (hypervisor::Memory, hypervisor::Cpus) {
        let view = self.cell.view.borrow();
        (view.container.memory, view.container.cpus)
    }

    pub(super) fn show(&self, state: State) {
        let restarts = self.kept.restarts;
        self.cell.view.send_modify(|view| {
            view.container.state = state;
            view.container.restarts = restarts;
        });
    }

    /// The state of a container that is off.
    pub(super) fn show_last(&self) {
        self.show(off_state(&self.kept));
    }

    pub(super) fn is_paused(&self) -> bool {
        matches!(self.cell.view.borrow().container.state, State::Paused(_))
    }

    pub(super) fn show_paused(&self, paused: bool) {
        self.show_paused_silently(paused);
        self.emit(if paused {
            Action::Pause
        } else {
            Action::Unpause
        });
    }

    pub(super) fn show_paused_silently(&self, paused: bool) {
        self.cell.view.send_modify(|view| {
            view.container.state = match (view.container.state.clone(), paused) {
                (State::Running(run), true) => State::Paused(run),
                (State::Paused(run), false) => State::Running(run),
                (other, _) => other,
            };
        });
    }

    pub(super) fn emit(&self, action: Action) {
        self.layer.emit(subject(&self.cell), action);
    }

    /// Unless it was, by a controller that was killed after that.
    pub(super) fn emit_once(&self, action: Action, since: SystemTime) {
        let id = self.cell.id;
        let same = std::mem::discriminant(&action);
        let told = self.layer.journal.contains(|event| {
            event.time >= since
                && std::mem::discriminant(&event.action) == same
                && matches!(&event.subject, Subject::Container { id: other, .. } if *other == id)
        });
        if !told {
            self.emit(action);
        }
    }
}
