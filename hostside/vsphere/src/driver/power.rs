//! Power: on, off, suspended, and how a run ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use hypervisor::{Cause, MachineId, PowerOff, PowerState, StopCause};

use super::record::{self, Edit};
use super::view::{self, Seen};
use super::{Core, Ended, cause, create, place};
use crate::property::Properties;
use crate::session::chain;
use crate::soap::{Element as _, Node};
use crate::types::{
    CreateCollectorForEvents, DestroyCollector, EventFilterSpec, EventFilterSpecByEntity,
    EventFilterSpecRecursionOption, ManagedObject, PowerOffVM_Task, PowerOnVM_Task, ShutdownGuest,
    SuspendVM_Task, VirtualMachineConfigSpec, VirtualMachinePowerState as Power,
};

/// Events that say how a machine went off.
const ENDINGS: &[&str] = &["VmPoweredOffEvent", "VmGuestShutdownEvent"];

impl Core {
    pub async fn power_on(self: Arc<Self>, id: &MachineId) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        match view::power(&properties) {
            Power::PoweredOn => {
                return Err(Cause::WrongState {
                    state: PowerState::On,
                });
            }
            Power::Suspended => {
                return Err(Cause::WrongState {
                    state: PowerState::Suspended,
                });
            }
            _ => {}
        }
        // The last run's end is written down before the next begins.
        self.settle(id).await?;
        self.begin_run(&object, &properties).await?;
        cell.console.begin(self.serial.clone(), *id);
        self.switch_on(&object)
            .await
            .inspect_err(|_| cell.console.end())
    }

    /// Writes down that a run begins now, and with which CPUs and memory.
    async fn begin_run(
        &self,
        object: &ManagedObject,
        properties: &Properties,
    ) -> Result<(), Cause> {
        let record = self
            .record(properties)
            .ok_or(Cause::NotFound { what: "machine" })?;
        let entries = view::entries(properties);
        let edit = Edit::default()
            .set(record::STARTED, &record::nanos(SystemTime::now()), &entries)
            .remove(record::CAUSE, &entries);
        let number = |name: &str| {
            let hardware = properties.get("config.hardware")?;
            hardware.text_of(name)?.trim().parse::<i64>().ok()
        };
        let (cpus, memory) = (create::cpus(&record.spec), create::memory_mb(&record.spec));
        let spec = VirtualMachineConfigSpec {
            numCPUs: (number("numCPU") != Some(i64::from(cpus))).then_some(cpus),
            memoryMB: (number("memoryMB") != Some(memory)).then_some(memory),
            extraConfig: edit.options(),
            ..VirtualMachineConfigSpec::default()
        };
        let written = self.reconfigure_machine(object, spec).await;
        written.map_err(|error| cause("its start cannot be written down", error))
    }

    async fn switch_on(&self, object: &ManagedObject) -> Result<(), Cause> {
        let on = |objects: &crate::property::Objects| {
            (view::power(objects.get(object)?) == Power::PoweredOn).then_some(())
        };
        let switch = PowerOnVM_Task {
            _this: object.clone(),
            host: None,
        };
        match self.task_seen(&switch, on).await {
            Ok(_) => {}
            Err(error) if already(&error, "poweredOn") => {}
            Err(error) => return Err(cause("the server does not power it on", error)),
        }
        // It may be off again before it was seen on.
        let seen = self.collector.wait(|objects| match objects.get(object) {
            None => Some(()),
            Some(properties) => (view::power(properties) == Power::PoweredOn).then_some(()),
        });
        match tokio::time::timeout(super::DOUBT, seen).await {
            Ok(seen) => seen.map_err(|error| cause("the server is not heard of any more", error)),
            Err(_) => Ok(()),
        }
    }

    pub async fn power_off(self: Arc<Self>, id: &MachineId, how: PowerOff) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        if view::power(&properties) == Power::PoweredOff {
            return Ok(());
        }
        self.power_off_locked(id, &object, how).await
    }

    /// The same of a machine that has power, by whoever has it to himself.
    pub async fn power_off_locked(
        &self,
        id: &MachineId,
        object: &ManagedObject,
        how: PowerOff,
    ) -> Result<(), Cause> {
        if how == PowerOff::Ask {
            let shutdown = ShutdownGuest {
                _this: object.clone(),
            };
            return match self.client.call(&shutdown).await {
                Err(error) if already(&error, "poweredOff") => Ok(()),
                Err(error) if error.is("ToolsUnavailable") => Err(super::unsupported(
                    "ask this guest to shut down",
                    "it has not said yet that it listens; try later, or cut the power",
                )),
                answer => answer
                    .map(drop)
                    .map_err(|error| cause("the guest cannot be asked", error)),
            };
        }
        let cell = self.cell(id);
        let off = |objects: &crate::property::Objects| match objects.get(object) {
            None => Some(()),
            Some(properties) => (view::power(properties) == Power::PoweredOff).then_some(()),
        };
        let cut = PowerOffVM_Task {
            _this: object.clone(),
        };
        cell.cutting.store(true, Ordering::SeqCst);
        let done = self.task_seen(&cut, off).await;
        let by_itself = match &done {
            Err(error) => already(error, "poweredOff"),
            Ok(_) => false,
        };
        if let Err(error) = done
            && !by_itself
        {
            cell.cutting.store(false, Ordering::SeqCst);
            return Err(cause("the server does not power it off", error));
        }
        let seen = self.collector.wait(off).await;
        if !by_itself
            && let Ok((_, properties)) = self.find(id)
            && let Some(record) = self.record(&properties)
        {
            *cell.ended() = Some(Ended {
                started: record.started,
                stopped: SystemTime::now(),
                cause: StopCause::PoweredOff,
            });
        }
        cell.cutting.store(false, Ordering::SeqCst);
        cell.console.end();
        seen.map_err(|error| cause("the server is not heard of any more", error))?;
        self.settle(id).await
    }

    pub async fn suspend(self: Arc<Self>, id: &MachineId) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        self.must_be_on(id, &properties)?;
        if view::power(&properties) == Power::Suspended {
            return Ok(());
        }
        let suspend = SuspendVM_Task {
            _this: object.clone(),
        };
        let suspended = |objects: &crate::property::Objects| {
            (view::power(objects.get(&object)?) == Power::Suspended).then_some(())
        };
        self.task_seen(&suspend, suspended)
            .await
            .map_err(|error| cause("the server does not suspend it", error))?;
        self.until_not(&object, &Power::PoweredOn).await
    }

    pub async fn resume(self: Arc<Self>, id: &MachineId) -> Result<(), Cause> {
        let cell = self.cell(id);
        let _one = cell.operation.lock().await;
        let (object, properties) = self.find(id)?;
        self.must_be_on(id, &properties)?;
        if view::power(&properties) == Power::PoweredOn {
            return Ok(());
        }
        self.switch_on(&object).await
    }

    async fn until_not(&self, object: &ManagedObject, state: &Power) -> Result<(), Cause> {
        let changed = self.collector.wait(|objects| match objects.get(object) {
            Some(properties) if view::power(properties) == *state => None,
            _ => Some(()),
        });
        let changed = changed.await;
        changed.map_err(|error| cause("the server is not heard of any more", error))
    }

    /// Sees to it that the end of a machine that is off is known and written on it. Does nothing for one
    /// that is on, has never been, or is settled. The caller has the machine to himself.
    pub async fn settle(&self, id: &MachineId) -> Result<(), Cause> {
        let (object, properties) = self.find(id)?;
        let Some(record) = self.record(&properties) else {
            return Ok(());
        };
        let cell = self.cell(id);
        let known = cell
            .ended()
            .clone()
            .filter(|ended| ended.started == record.started);
        let ended = match (self.see(id, &properties), known) {
            // Known, and perhaps not written.
            (Some(Seen::Whole(view)), Some(known)) if view.power.is_off() => known,
            (Some(Seen::Unsettled), _) => {
                let (stopped, cause) = self.ending(&object, record.started).await;
                let ended = Ended {
                    started: record.started,
                    stopped,
                    cause,
                };
                *cell.ended() = Some(ended.clone());
                ended
            }
            _ => return Ok(()),
        };
        if record.stopped >= record.started && record.cause.as_ref() == Some(&ended.cause) {
            return Ok(());
        }
        let text = serde_json::to_string(&ended.cause)
            .map_err(|error| Cause::because("the cause cannot be written down", error))?;
        let entries = view::entries(&properties);
        let edit = Edit::default()
            .set(record::STOPPED, &record::nanos(ended.stopped), &entries)
            .set(record::CAUSE, &text, &entries);
        let spec = VirtualMachineConfigSpec {
            extraConfig: edit.options(),
            ..VirtualMachineConfigSpec::default()
        };
        if let Err(error) = self.reconfigure_machine(&object, spec).await {
            // Known here, and to be found out again by the next controller.
            tracing::warn!(machine = %id, error = %chain(&error), "its end is not written down");
        }
        Ok(())
    }

    /// When and why a machine went off, as the server's events say.
    async fn ending(&self, object: &ManagedObject, started: SystemTime) -> (SystemTime, StopCause) {
        let unknown = |detail: String| {
            let cause = StopCause::HypervisorFailed { detail };
            (SystemTime::now(), cause)
        };
        match self.endings(object).await {
            Ok(events) => ending_of(&events, started).unwrap_or_else(|| {
                unknown("it is off, and the server has no event that says why".into())
            }),
            Err(error) => unknown(format!(
                "it is off, and why cannot be asked: {}",
                chain(&error)
            )),
        }
    }

    /// The newest events of a machine that say how it went off.
    async fn endings(&self, object: &ManagedObject) -> Result<Vec<Node>, crate::session::Error> {
        let manager = self
            .client
            .manager("event manager", |content| &content.eventManager)?;
        let query = CreateCollectorForEvents {
            _this: manager,
            filter: EventFilterSpec {
                entity: Some(EventFilterSpecByEntity {
                    entity: object.clone(),
                    recursion: EventFilterSpecRecursionOption::Itself,
                }),
                disableFullMessage: Some(false),
                eventTypeId: ENDINGS.iter().map(|name| (*name).to_owned()).collect(),
                maxCount: None,
            },
        };
        let history = self.client.call(&query).await?;
        let page = place::read(&self.client, place::of_one(&history, &["latestPage"])).await;
        // A client has 32 of them at most.
        let ended = self.client.call(&DestroyCollector { _this: history }).await;
        if let Err(error) = ended {
            tracing::debug!(error = %chain(&error), "a history collector is left to its session's end");
        }
        let mut events = Vec::new();
        for (_, mut properties) in page? {
            if let Some(page) = properties.remove("latestPage") {
                events.extend(page.children);
            }
        }
        Ok(events)
    }
}

/// Whether a call was refused because the machine is in that state already.
fn already(error: &crate::session::Error, state: &str) -> bool {
    error.fault().is_some_and(|fault| {
        fault.is("InvalidPowerState") && fault.field("existingState") == Some(state)
    })
}

/// The end of the run that began at `started`, by the events of it. A power off without a user is the
/// guest's own.
fn ending_of(events: &[Node], started: SystemTime) -> Option<(SystemTime, StopCause)> {
    let time = |event: &Node| SystemTime::read(event.child("createdTime")?).ok();
    // The server's clock and this one's may differ by some seconds.
    let slack = std::time::Duration::from_secs(30);
    let last = events
        .iter()
        .filter(|event| event.type_name() == "VmPoweredOffEvent")
        .filter(|event| time(event).is_some_and(|time| time + slack >= started))
        .max_by_key(|event| time(event))?;
    let when = time(last)?.max(started);
    let by_guest = events.iter().any(|event| {
        event.type_name() == "VmGuestShutdownEvent"
            && time(event).is_some_and(|time| time + slack >= started)
    });
    let user = last.text_of("userName").unwrap_or_default().trim();
    let cause = match user.is_empty() || by_guest {
        true => StopCause::GuestShutdown,
        false => StopCause::PoweredOff,
    };
    Some((when, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn event(kind: &str, seconds: u64, user: &str) -> Node {
        let leaf = |name: &str, text: String| Node {
            name: name.into(),
            text,
            ..Node::default()
        };
        Node {
            xsi_type: Some(crate::soap::TypeName {
                namespace: crate::soap::VIM.into(),
                name: kind.into(),
            }),
            children: vec![
                leaf(
                    "createdTime",
                    format!("2024-01-01T00:{:02}:{:02}Z", seconds / 60, seconds % 60),
                ),
                leaf("userName", user.into()),
            ],
            ..Node::default()
        }
    }

    #[test]
    fn who_powered_a_machine_off_is_told_by_its_events() {
        let day = UNIX_EPOCH + Duration::from_secs(1_704_067_200);
        let at = |seconds| day + Duration::from_secs(seconds);
        let off = |seconds, user| event("VmPoweredOffEvent", seconds, user);
        let check = |events: &[Node]| ending_of(events, at(100));
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[off(10, "")]), None, "an earlier run's");
        assert_eq!(
            check(&[off(10, ""), off(200, "")]),
            Some((at(200), StopCause::GuestShutdown))
        );
        assert_eq!(
            check(&[off(200, "root")]),
            Some((at(200), StopCause::PoweredOff))
        );
        let asked = event("VmGuestShutdownEvent", 190, "root");
        assert_eq!(
            check(&[asked, off(200, "root")]),
            Some((at(200), StopCause::GuestShutdown))
        );
        // A server whose clock is late.
        assert_eq!(
            check(&[off(90, "")]),
            Some((at(100), StopCause::GuestShutdown))
        );
    }
}
