//! The helper containerVM of a container that is off: booted when its files are asked for, kept for the next
//! question, gone before anything else has the disk.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Task;
use crate::cell::{HelperInUse, lock};
use crate::error::{Error, WrongState};
use crate::helper::Helper;

/// How long a helper is kept for the next question: `docker cp` asks two or three.
const IDLE: Duration = Duration::from_secs(5);
/// How long whoever reads or writes files may hold up a start or a removal.
const IN_USE: Duration = Duration::from_secs(30);

impl Task {
    /// A helper that is on.
    pub(super) async fn helper(&mut self) -> Result<HelperInUse, Error> {
        self.helper_until = Some(Instant::now() + IDLE);
        // Only this task writes, so neither of the two waits.
        let there = self.cell.helper.clone().read_owned().await;
        if there.is_some() {
            return Ok(there);
        }
        drop(there);
        let mut slot = self.cell.helper.clone().write_owned().await;
        let (memory, _) = self.size();
        let one = hypervisor::Cpus::ONE;
        lock(&self.layer.admission).admit(self.cell.id, memory, one, &[])?;
        match Helper::boot(&self.layer, &self.cell).await {
            Ok(helper) => *slot = Some(helper),
            Err(error) => {
                lock(&self.layer.admission).release(&self.cell.id);
                return Err(error);
            }
        }
        Ok(slot.downgrade())
    }

    /// Nobody has asked for a while.
    pub(super) async fn helper_idle(&mut self) {
        let Ok(mut slot) = self.cell.helper.clone().try_write_owned() else {
            self.helper_until = Some(Instant::now() + IDLE);
            return;
        };
        self.helper_until = None;
        if let Some(helper) = slot.take() {
            helper.end(&self.layer.driver).await;
            lock(&self.layer.admission).release(&self.cell.id);
        }
    }

    /// The disk is needed for something else.
    pub(super) async fn end_helper(&mut self) -> Result<(), Error> {
        let taking = timeout(IN_USE, self.cell.helper.clone().write_owned());
        let mut slot = taking
            .await
            .map_err(|_| WrongState::FilesInUse(self.cell.id))?;
        self.helper_until = None;
        if let Some(helper) = slot.take() {
            helper.end(&self.layer.driver).await;
            lock(&self.layer.admission).release(&self.cell.id);
        }
        Ok(())
    }
}
