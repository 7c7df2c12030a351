//! What each command does in each phase.

use super::{LOST, Phase, SIGKILL, Task, Waiting, tell};
use crate::command::{Command, Removal};
use crate::error::{Error, WrongState};
use crate::event::Action;

impl Task {
    pub(super) async fn when_off(&mut self, command: Command) {
        let id = self.cell.id;
        match command {
            Command::Start(answer) => {
                let started = self.start_by_request().await;
                tell(answer, started);
            }
            Command::Restart(_, answer) => {
                let started = self.start_by_request().await;
                if started.is_ok() {
                    self.emit(Action::Restart);
                }
                tell(answer, started);
            }
            Command::Stop(_, answer) => tell(answer, Err(WrongState::NothingToDo(id).into())),
            Command::Kill(_, answer) | Command::Pause(answer) => {
                tell(answer, Err(WrongState::NotRunning(id).into()));
            }
            Command::Fork(_, _, answer) => tell(answer, Err(WrongState::NotRunning(id).into())),
            Command::Unpause(answer) => tell(answer, Err(WrongState::NotPaused(id).into())),
            Command::Update(update, answer) => {
                let updated = self.update(update).await;
                tell(answer, updated);
            }
            Command::Rename(name, answer) => {
                let renamed = self.rename(name).await;
                tell(answer, renamed);
            }
            Command::Remove(_, answer) => {
                let removed = self.remove().await;
                tell(answer, removed);
            }
            Command::Helper(answer) => {
                let helper = self.helper().await;
                tell(answer, helper);
            }
        }
    }

    pub(super) async fn when_waiting(&mut self, command: Command) {
        match command {
            Command::Stop(_, answer) => {
                self.kept.stopped_by_request = true;
                let kept = self.keep().await;
                self.phase = Phase::Off;
                self.show_last();
                tell(answer, kept);
            }
            Command::Remove(Removal::IfStopped, answer) => {
                tell(answer, Err(self.in_the_way("restarting")));
            }
            Command::Helper(answer) => {
                tell(answer, Err(WrongState::Restarting(self.cell.id).into()));
            }
            other => self.when_off(other).await,
        }
    }

    pub(super) async fn when_on(&mut self, command: Command) {
        let id = self.cell.id;
        let paused = self.is_paused();
        match command {
            Command::Start(answer) if paused => tell(answer, Err(WrongState::StartPaused.into())),
            Command::Start(answer) => tell(answer, Err(WrongState::NothingToDo(id).into())),
            Command::Stop(how, answer) => self.stop(how, Waiting::Stop(answer)).await,
            Command::Restart(how, answer) => self.stop(how, Waiting::Restart(answer)).await,
            Command::Kill(signal, answer) => {
                let killed = self.kill(signal).await;
                tell(answer, killed);
            }
            Command::Pause(answer) if paused => {
                tell(answer, Err(WrongState::AlreadyPaused(id).into()));
            }
            Command::Pause(answer) => {
                let driver = self.layer.driver.clone();
                let done = driver.suspend(&self.machine).await;
                let done = done.map_err(Error::hypervisor(id));
                if done.is_ok() {
                    self.show_paused(true);
                }
                tell(answer, done);
            }
            Command::Unpause(answer) if !paused => {
                tell(answer, Err(WrongState::NotPaused(id).into()));
            }
            Command::Unpause(answer) => {
                let done = self.unpause().await;
                tell(answer, done);
            }
            Command::Update(update, answer) => {
                let updated = self.update(update).await;
                tell(answer, updated);
            }
            Command::Rename(name, answer) => {
                let renamed = self.rename(name).await;
                tell(answer, renamed);
            }
            Command::Fork(_, _, answer) if paused => {
                tell(answer, Err(WrongState::Paused(id).into()));
            }
            Command::Fork(count, signal, answer) => {
                let forked = self.fork(count, signal).await;
                tell(answer, forked);
            }
            Command::Helper(answer) if paused => tell(answer, Err(WrongState::Paused(id).into())),
            // Its own tether does it.
            Command::Helper(answer) => tell(answer, Err(WrongState::NothingToDo(id).into())),
            Command::Remove(Removal::IfStopped, answer) => {
                let state = if paused { "paused" } else { "running" };
                tell(answer, Err(self.in_the_way(state)));
            }
            Command::Remove(Removal::Force, answer) => {
                self.kept.stopped_by_request = true;
                self.emit(Action::Kill { signal: SIGKILL });
                self.cut().await;
                self.end(LOST, String::new()).await;
                let removed = match self.phase {
                    // It went away by itself.
                    Phase::Gone => Ok(()),
                    _ => self.remove().await,
                };
                tell(answer, removed);
            }
        }
    }

    pub(super) fn in_the_way(&self, state: &'static str) -> Error {
        let name = self.kept.name.clone();
        WrongState::Running { name, state }.into()
    }
}
