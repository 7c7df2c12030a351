//! Power: on, off, suspended, and how a run ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hypervisor::{Cause, MachineId, PowerOff, PowerState, Started, StopCause};

use super::console::Run;
use super::record::{self, Edit};
use super::view::{self, Seen};
use super::{Core, Ended, cause, create, place};
use crate::property::{Objects, Properties};
use crate::session::chain;
use crate::soap::{Element as _, Node};
use crate::types::{
    CreateCollectorForEvents, DestroyCollector, EventFilterSpec, EventFilterSpecByEntity,
    EventFilterSpecRecursionOption, ManagedObject, PowerOffVM_Task, PowerOnVM_Task, ShutdownGuest,
    SuspendVM_Task, VirtualMachineConfigSpec, VirtualMachinePowerState as Power,
};

const ON: &str = "VmPoweredOnEvent";
const OFF: &str = "VmPoweredOffEvent";
const ASKED: &str = "VmGuestShutdownEvent";
/// How long the event may come after the state it tells of.
const EVENT: Duration = Duration::from_secs(10);

impl Core {
    pub async fn power_on(self: Arc<Self>, id: &MachineId) -> Result<(), Cause> {
        let cell = self.cell(id);
        let one = cell.operation.clone().lock_owned().await;
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
        let (_, properties) = self.find(id)?;
        let record = self
            .record(&properties)
            .ok_or(Cause::NotFound { what: "machine" })?;
        self.publish(id, &record.spec).await?;
        let began = match self.fork_if_wished(id, &object, &properties).await {
            Ok(true) => {
                self.remove_former_soon(object, one);
                return Ok(());
            }
            Ok(false) => Started::Booted,
            Err(error) => {
                let why = chain(&error);
                match error {
                    // As always here.
                    Cause::Unsupported { .. } => tracing::debug!(machine = %id, why, "it boots"),
                    _ => tracing::warn!(machine = %id, why, "it boots instead of being forked"),
                }
                Started::BootedInstead { why }
            }
        };
        let begun = self.begin_run(&object, &properties, &began).await;
        if begun.is_err() {
            cell.published.end();
        }
        begun?;
        self.read_console(id, Run::New);
        let on = self.switch_on(&object).await;
        if on.is_err() {
            cell.end_run();
            self.no_run(&object, &properties).await;
        } else if self
            .find(id)
            .is_ok_and(|(_, now)| view::power(&now) == Power::PoweredOff)
        {
            // Off again already, while nobody else could see to it.
            cell.end_run();
        }
        on
    }

    /// Takes back that a run began; `before` is what the machine was.
    async fn no_run(&self, object: &ManagedObject, before: &Properties) {
        let was = view::entries(before);
        let edit = [record::STARTED, record::CAUSE, record::BEGAN]
            .into_iter()
            .fold(Edit::default(), |edit, key| {
                match record::value(&was, key) {
                    Some(value) => edit.set(key, &value, &was),
                    None => edit.plain(key, ""),
                }
            });
        let spec = VirtualMachineConfigSpec {
            extraConfig: edit.options(),
            ..VirtualMachineConfigSpec::default()
        };
        if let Err(error) = self.reconfigure_machine(object, spec).await {
            tracing::warn!(machine = %object, error = %chain(&error), "its record has a start that was none");
        }
    }

    /// Writes down that a run begins now, and with which CPUs and memory.
    async fn begin_run(
        &self,
        object: &ManagedObject,
        properties: &Properties,
        began: &Started,
    ) -> Result<(), Cause> {
        let record = self
            .record(properties)
            .ok_or(Cause::NotFound { what: "machine" })?;
        let entries = view::entries(properties);
        let edit = Edit::default()
            .set(record::STARTED, &record::nanos(SystemTime::now()), &entries)
            .set(record::BEGAN, &began_text(began)?, &entries)
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

    pub async fn switch_on(&self, object: &ManagedObject) -> Result<(), Cause> {
        let on = |objects: &Objects| {
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
        match tokio::time::timeout(super::calls::DOUBT, seen).await {
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
        let off = gone_or_off(object);
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
        cell.end_run();
        seen.map_err(|error| cause("the server is not heard of any more", error))?;
        self.settle(id).await
    }

    /// Takes the power of a virtual machine, whatever else it is. Off or gone already is success.
    pub async fn cut_power(&self, object: &ManagedObject) -> Result<(), Cause> {
        let off = gone_or_off(object);
        let cut = PowerOffVM_Task {
            _this: object.clone(),
        };
        match self.task_seen(&cut, off).await {
            Err(error) if !already(&error, "poweredOff") => {
                return Err(cause("the server does not power it off", error));
            }
            _ => {}
        }
        let seen = self.collector.wait(off).await;
        seen.map_err(|error| cause("the server is not heard of any more", error))
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
        let suspended = |objects: &Objects| {
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
                let (stopped, mut cause) = self.ending(&object, record.started).await;
                if view::failed(&properties) {
                    let detail = "the server says that it did not go off orderly: its host failed, or its process".into();
                    cause = StopCause::HypervisorFailed { detail };
                }
                let ended = Ended {
                    started: record.started,
                    stopped,
                    cause,
                };
                *cell.ended() = Some(ended.clone());
                cell.end_run();
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
        match self.ask_events(object).await {
            Ok(Some((when, cause))) => (when.max(started), cause),
            Ok(None) => unknown("it is off, and the server has no event that says why".into()),
            Err(error) => unknown(format!(
                "it is off, and why cannot be asked: {}",
                chain(&error)
            )),
        }
    }

    async fn ask_events(
        &self,
        object: &ManagedObject,
    ) -> Result<Option<(SystemTime, StopCause)>, crate::session::Error> {
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
                eventTypeId: [ON, OFF, ASKED].map(str::to_owned).into(),
                maxCount: None,
            },
        };
        let history = self.client.call(&query).await?;
        let answer = self.read_history(&history).await;
        // A client has 32 of them at most.
        let ended = self.client.call(&DestroyCollector { _this: history }).await;
        if let Err(error) = ended {
            tracing::debug!(error = %chain(&error), "a history collector is left to its session's end");
        }
        answer
    }

    /// Reads a history, and waits for the event that is not in it yet.
    async fn read_history(
        &self,
        history: &ManagedObject,
    ) -> Result<Option<(SystemTime, StopCause)>, crate::session::Error> {
        let page = || place::of_one(history, &["latestPage"]);
        let found = place::read(&self.client, page()).await?;
        let ending = |properties: &Properties| ending_of(&properties.get("latestPage")?.children);
        if let Some(ending) = found.first().and_then(|(_, properties)| ending(properties)) {
            return Ok(Some(ending));
        }
        let watched = self.collector.watch(page()).await?;
        let waited = self.collector.wait(|objects| ending(objects.get(history)?));
        let waited = tokio::time::timeout(EVENT, waited).await;
        self.collector.unwatch(watched, history).await;
        match waited {
            Ok(found) => found.map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// How a run began as it is written on a machine.
pub fn began_text(began: &Started) -> Result<String, Cause> {
    serde_json::to_string(began)
        .map_err(|error| Cause::because("how it began cannot be written down", error))
}

/// What is seen of a virtual machine that has no power, or is not there.
pub fn gone_or_off(object: &ManagedObject) -> impl Fn(&Objects) -> Option<()> + Copy + Send + '_ {
    move |objects| match objects.get(object) {
        None => Some(()),
        Some(properties) => (view::power(properties) == Power::PoweredOff).then_some(()),
    }
}

/// Whether a call was refused because the machine is in that state already.
pub fn already(error: &crate::session::Error, state: &str) -> bool {
    error.fault().is_some_and(|fault| {
        fault.is("InvalidPowerState") && fault.field("existingState") == Some(state)
    })
}

/// The end of the last run, by events in any order: what came after the last power on. A power off without a
/// user, or one that the guest was asked for, is the guest's own.
fn ending_of(events: &[Node]) -> Option<(SystemTime, StopCause)> {
    let key = |event: &Node| event.text_of("key")?.trim().parse::<i64>().ok();
    let of = |kind: &'static str| events.iter().filter(move |event| event.type_name() == kind);
    let on = of(ON).filter_map(key).max();
    let of_run = |event: &&Node| key(event) > on;
    let off = of(OFF).filter(of_run).max_by_key(|event| key(event))?;
    let when = SystemTime::read(off.child("createdTime")?).ok()?;
    let user = off.text_of("userName").unwrap_or_default().trim();
    let cause = match user.is_empty() || of(ASKED).any(|event| of_run(&event)) {
        true => StopCause::GuestShutdown,
        false => StopCause::PoweredOff,
    };
    Some((when, cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn event(key: u64, kind: &str, user: &str) -> Node {
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
                leaf("key", key.to_string()),
                leaf("createdTime", format!("2024-01-01T00:00:{key:02}Z")),
                leaf("userName", user.into()),
            ],
            ..Node::default()
        }
    }

    #[test]
    fn who_powered_a_machine_off_is_told_by_the_events_of_its_last_run() {
        let at = |key: u64| UNIX_EPOCH + Duration::from_secs(1_704_067_200 + key);
        let check = |events: &[Node]| ending_of(events);
        assert_eq!(check(&[]), None);
        let first = [event(1, ON, "root"), event(2, OFF, "")];
        assert_eq!(check(&first), Some((at(2), StopCause::GuestShutdown)));
        let second = [&first[..], &[event(9, ON, "root")]].concat();
        assert_eq!(check(&second), None, "what there is is of the run before");
        let cut = [&[event(10, OFF, "root")], &second[..]].concat();
        assert_eq!(check(&cut), Some((at(10), StopCause::PoweredOff)));
        let asked = [
            &second[..],
            &[event(10, ASKED, "root"), event(11, OFF, "root")],
        ]
        .concat();
        assert_eq!(check(&asked), Some((at(11), StopCause::GuestShutdown)));
        assert_eq!(
            check(&[event(3, OFF, "x")]),
            Some((at(3), StopCause::PoweredOff)),
            "the power on is forgotten"
        );
    }
}
