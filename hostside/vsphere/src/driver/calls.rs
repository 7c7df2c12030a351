//! How the driver has something done by the server: to its end, whatever else is under way.

use std::time::Duration;

use tokio::time::Instant;

use super::{Core, record};
use crate::property::Objects;
use crate::session::{self, chain};
use crate::task;
use crate::types::{ManagedObject, Method, ReconfigVM_Task, VirtualMachineConfigSpec};

/// How long it is waited for what may have been done by a call whose answer got lost.
pub const DOUBT: Duration = Duration::from_secs(30);
/// How long others may keep a machine busy.
const BUSY: Duration = Duration::from_secs(60);
/// How long before one that is busy with nothing that could be waited for is tried again.
const PAUSE: Duration = Duration::from_millis(250);

impl Core {
    /// Runs a task to its end. One that is refused because the machine is in the middle of another
    /// (`TaskInProgress`) is begun when that one is over.
    pub async fn task<M>(
        &self,
        method: &M,
    ) -> std::result::Result<Option<crate::soap::Node>, session::Error>
    where
        M: Method<Returns = ManagedObject>,
    {
        let patience = Instant::now() + BUSY;
        loop {
            let done = task::run(&self.client, &self.collector, method, &mut task::quiet).await;
            match done {
                Err(error) if error.is("TaskInProgress") && Instant::now() < patience => {
                    tracing::debug!(method = M::NAME, "the server is at something else with it");
                    self.until_free(&error, patience).await;
                }
                done => return done,
            }
        }
    }

    /// The same, of what can be seen when it is done: then it is done, also if the answer got lost or the task
    /// says that it failed.
    pub async fn task_seen<M>(
        &self,
        method: &M,
        mut seen: impl FnMut(&Objects) -> Option<()> + Send,
    ) -> std::result::Result<Option<crate::soap::Node>, session::Error>
    where
        M: Method<Returns = ManagedObject>,
    {
        let error = match self.task(method).await {
            Ok(result) => return Ok(result),
            // It was so already, and somebody else's doing.
            Err(error) if error.is("InvalidPowerState") => return Err(error),
            Err(error) => error,
        };
        let done = self.collector.look(&mut seen).is_some();
        let done = done
            || error.is_open()
                && matches!(
                    tokio::time::timeout(DOUBT, self.collector.wait(seen)).await,
                    Ok(Ok(()))
                );
        if !done {
            return Err(error);
        }
        tracing::warn!(method = M::NAME, error = %chain(&error), "it was done all the same");
        Ok(None)
    }

    /// Reconfigures a machine. What is written on it is known at once.
    pub async fn reconfigure_machine(
        &self,
        machine: &ManagedObject,
        spec: VirtualMachineConfigSpec,
    ) -> std::result::Result<(), session::Error> {
        let reconfigure = ReconfigVM_Task {
            _this: machine.clone(),
            spec,
        };
        self.task(&reconfigure).await?;
        let options = &reconfigure.spec.extraConfig;
        if !options.is_empty() {
            self.collector.assume(machine, |properties| {
                let property = properties.entry("config.extraConfig".into()).or_default();
                record::merge(property, options);
            });
        }
        Ok(())
    }

    /// Waits for the task that stands in the way, as the fault names it.
    async fn until_free(&self, error: &session::Error, patience: Instant) {
        let named = error
            .fault()
            .and_then(|fault| fault.object("task"))
            .filter(|task| task.kind == "Task");
        let ended = async {
            match named {
                Some(other) => task::ended(&self.collector, other).await,
                None => false,
            }
        };
        if !tokio::time::timeout_at(patience, ended)
            .await
            .unwrap_or(true)
        {
            // Nothing can be waited for.
            tokio::time::sleep(PAUSE).await;
        }
    }
}
