//! Power on by fork: a machine goes on from where its template is, instead of booting.
//!
//! ```text
//!  shell (off) --- InstantClone ---> coming (runs, says nothing) --- Reconfig ---> the machine
//!     |                 | fails                  | fails
//!     | boots <---------+<---- destroyed --------+
//!     +--- destroyed as soon as the fork is the machine
//! ```
//!
//! An instant clone is a virtual machine of its own, with another reference and instance UUID. So a machine's
//! identity is written on it ([`record::ID`]), as is everything else; the clone is given a copy, and the mark
//! [`record::COMING`]. What a clone cannot be given as it is made, its disks and its own serial ports, comes with
//! the reconfiguration that takes the mark away; from then on it is the machine, being of the later run
//! ([`view::find`]), and what the machine was before is destroyed. Two names of the inventory are used in turn.
//!
//! Killed in between, there is either a clone with the mark, or a machine and what it was before: the next owner
//! removes the one or the other ([`Core::repair_forks`]). A coming clone has no disks.
//!
//! The guest does not know that it was cloned. Its first sign is its channel's first byte, and what it reads then in
//! `guestinfo` is its own: identity (boot id and UUID), key and disks (`tether/agent/src/fork.rs`). The
//! channel is known to be its own by its service URI, which names the machine, and by the key. Its vNICs have
//! the template's addresses until it is told ([`hypervisor::Claim`]); in a template they are neither connected
//! nor up, so that connecting them before that lets nothing out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::{Cause, Claim, Fork, MachineId, MachineSpec, Repair, Start, Started, TemplateId};
use tokio::sync::OwnedMutexGuard;

use super::console::Run;
use super::devices::{self, Cable};
use super::disks::Prepared;
use super::record::{self, Edit, Entries, Record};
use super::repair::repaired;
use super::template::Ready;
use super::{Core, cause, create, power, view};
use crate::concentrator::extension::service_name;
use crate::property::{Objects, Properties};
use crate::serial::{CHANNEL, CONSOLE};
use crate::session::chain;
use crate::soap::{Element as _, Node, Raw};
use crate::types::{
    Backing, ConfigOption, DeviceChange, InstantClone_Task, ManagedObject, OptionValue,
    ReconfigVM_Task, VirtualDeviceConnectInfo, VirtualMachineConfigSpec,
    VirtualMachineInstantCloneSpec, VirtualMachinePowerState as Power, VirtualMachineRelocateSpec,
    VirtualSerialPort, VirtualSerialPortURIBackingInfo, VirtualVmxnet3,
};

/// The prefix of what tether reads.
const TETHER: &str = "guestinfo.tether.";
/// The prefix of what the driver writes.
const OWN: &str = "vch.";

/// A machine on its way from what it was to a fork.
struct Birth<'a> {
    id: &'a MachineId,
    record: &'a Record,
    /// What is written on what it was.
    before: &'a Entries,
    name: String,
    nics: Vec<Backing>,
    disks: Vec<(i32, Prepared)>,
}

impl Core {
    /// Forks the machine if its specification says so: whether it did. The caller has the machine, which is
    /// off, to himself.
    ///
    /// # Errors
    ///
    /// Why it has to boot instead. Nothing is left of the attempt, or it is marked.
    pub async fn fork_if_wished(
        self: &Arc<Self>,
        id: &MachineId,
        object: &ManagedObject,
        properties: &Properties,
    ) -> Result<bool, Cause> {
        let record = self
            .record(properties)
            .ok_or(Cause::NotFound { what: "machine" })?;
        if record.spec.start == Start::Boot {
            return Ok(false);
        }
        self.can_fork()?;
        self.remove_formers(id).await?;
        let mut template = self.obtain(&record.spec).await?;
        let before = view::entries(properties);
        let birth = Birth {
            id,
            record: &record,
            before: &before,
            name: other_name(&record.spec, properties),
            nics: self.backings(&record.spec).await?,
            disks: self.disks_of(&record.spec, &before).await?,
        };
        let forked = match self.be_born(&birth, &template).await {
            Err(error) if !self.can_be_forked(&template.id) => {
                tracing::warn!(template = %template.id, error = chain(&error), "a template is gone");
                template = self.obtain(&record.spec).await?;
                self.be_born(&birth, &template).await
            }
            forked => forked,
        };
        match forked {
            Ok(child) => {
                debug_assert_ne!(child, *object, "a clone is another object");
                for (_, prepared) in &birth.disks {
                    self.disks.made(prepared);
                }
                self.read_console(id, Run::New);
                self.take_place(*id, &child);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Clones the template and makes the clone the machine. Of one that fails nothing is left.
    async fn be_born(&self, birth: &Birth<'_>, template: &Ready) -> Result<ManagedObject, Cause> {
        let (clone, seen) = self.clone_spec(birth, template)?;
        let born = |objects: &Objects| find_coming(objects, &seen).map(|(object, _)| object);
        let ran = |objects: &Objects| {
            let (object, properties) = find_coming(objects, &seen)?;
            let whole = properties.contains_key("config.hardware");
            (whole && view::power(&properties) == Power::PoweredOn).then_some((object, properties))
        };
        let attempt = async {
            let done = |objects: &Objects| born(objects).map(drop);
            let cloned = self.task_seen(&clone, done).await;
            cloned.map_err(|error| cause("the server does not clone its template", error))?;
            let known = tokio::time::timeout(super::calls::DOUBT, self.collector.wait(ran)).await;
            let (object, properties) = known
                .map_err(|_| Cause::hypervisor("its clone is not heard of, or does not run"))?
                .map_err(|error| cause("its clone is not heard of", error))?;
            self.finish(birth, &object, &properties).await?;
            Ok(object)
        };
        let child = attempt.await;
        if child.is_err()
            && let Some(object) = self.collector.look(born)
            && let Err(error) = self.dismiss(&object).await
        {
            tracing::warn!(machine = %birth.id, error = chain(&error), "a fork that failed is left to be repaired");
        }
        child
    }

    /// The call that clones the template, and what tells its clone from others: its identity, never used before.
    fn clone_spec(
        &self,
        birth: &Birth<'_>,
        template: &Ready,
    ) -> Result<(InstantClone_Task, String), Cause> {
        let source = self
            .collector
            .look(|objects| objects.get(&template.object).cloned())
            .ok_or(Cause::NotFound { what: "template" })?;
        let boot_id = MachineId::random()
            .map_err(|source| Cause::because("the host has no random bytes", source))?;
        let digits = |id: &MachineId| hex::encode(id.as_bytes());
        let identity = digits(&boot_id) + &digits(birth.id);
        // A clock that was set back makes no earlier run of it.
        let started = SystemTime::now().max(birth.record.started + Duration::from_micros(1));
        let began = Started::Forked {
            template: template.id.clone(),
            made: template.made,
        };
        let mut entries: Entries = birth.before.clone();
        entries.retain(|key, _| key.starts_with(OWN) || key.starts_with(TETHER));
        let table: Vec<_> = birth
            .disks
            .iter()
            .zip(&birth.record.spec.disks)
            .map(|((target, _), disk)| (*target, disk.serial.clone()))
            .collect();
        let edit = Edit::default()
            .plain(record::ID, birth.id.to_string())
            .plain(record::IDENTITY, &identity)
            .plain(record::DISKS, devices::write_table(&table))
            .set(record::ROLE, record::MACHINE_ROLE, birth.before)
            .set(record::STATE, record::COMING, birth.before)
            .set(record::STARTED, &record::nanos(started), birth.before)
            .set(record::BEGAN, &power::began_text(&began)?, birth.before)
            .remove(record::CAUSE, birth.before);
        edit.apply(&mut entries);
        let mut config: Vec<ConfigOption> = entries
            .into_iter()
            .map(|(key, value)| option(key, value))
            .collect();
        config.push(option(record::TEMPLATE.into(), String::new()));
        let cards = source.get("config.hardware").map(cards).unwrap_or_default();
        let clone = InstantClone_Task {
            _this: template.object.clone(),
            spec: VirtualMachineInstantCloneSpec {
                name: birth.name.clone(),
                location: VirtualMachineRelocateSpec {
                    folder: Some(self.place.folder.clone()),
                    pool: Some(self.place.pool.clone()),
                    deviceChange: vnics(birth, &cards, Cable::Out),
                },
                config,
                biosUuid: Some(birth.id.to_string()),
            },
        };
        Ok((clone, identity))
    }

    /// Gives a clone what is the machine's own, and makes it that.
    async fn finish(
        &self,
        birth: &Birth<'_>,
        clone: &ManagedObject,
        properties: &Properties,
    ) -> Result<(), Cause> {
        let hardware = properties
            .get("config.hardware")
            .ok_or_else(|| Cause::hypervisor("its clone has no hardware"))?;
        let controller = devices::controller(hardware)
            .ok_or_else(|| Cause::hypervisor("its clone has no SCSI controller"))?;
        let cards = cards(hardware);
        if cards.len() != birth.nics.len() {
            return Err(Cause::hypervisor(format!(
                "its clone has {} vNICs, and it is to have {}",
                cards.len(),
                birth.nics.len()
            )));
        }
        let mut changes = serial_ports(hardware, birth.id, &self.serial.proxy_uri());
        if changes.len() != 2 {
            return Err(Cause::hypervisor("its clone has lost its serial ports"));
        }
        changes.extend(vnics(birth, &cards, Cable::In));
        let disks = birth.disks.iter().zip(&birth.record.spec.disks);
        for (number, ((target, prepared), disk)) in (1..).zip(disks) {
            changes.push(devices::attach(
                -number, controller, *target, disk, prepared,
            ));
        }
        let reconfigure = ReconfigVM_Task {
            _this: clone.clone(),
            spec: VirtualMachineConfigSpec {
                deviceChange: changes,
                extraConfig: Edit::default().plain(record::STATE, "").options(),
                ..VirtualMachineConfigSpec::default()
            },
        };
        let done = |objects: &Objects| (!view::is_coming(objects.get(clone)?)).then_some(());
        let done = self.task_seen(&reconfigure, done).await;
        done.map_err(|error| cause("the server does not give it its devices", error))?;
        self.collector.assume(clone, |properties| {
            let property = properties.entry("config.extraConfig".into()).or_default();
            record::merge(property, &reconfigure.spec.extraConfig);
        });
        Ok(())
    }

    /// The disks of a specification, each at the target that it has.
    async fn disks_of(
        &self,
        spec: &MachineSpec,
        entries: &Entries,
    ) -> Result<Vec<(i32, Prepared)>, Cause> {
        let table = entries
            .get(record::DISKS)
            .map(|text| devices::read_table(text))
            .unwrap_or_default();
        let mut disks: Vec<(i32, Prepared)> = Vec::new();
        for disk in &spec.disks {
            let known = table.iter().find(|(_, serial)| *serial == disk.serial);
            let target = match known {
                Some((target, _)) => *target,
                None => devices::free_target(|target| {
                    let taken = |(other, _): &(i32, Prepared)| *other == target;
                    disks.iter().any(taken) || table.iter().any(|(other, _)| *other == target)
                })?,
            };
            disks.push((target, self.disks.prepare(&self.collector, disk).await?));
        }
        Ok(disks)
    }

    /// What a guest has to be told before its setup.
    pub fn claim(&self, id: &MachineId, properties: &Properties) -> Option<Claim> {
        let record = self.record(properties)?;
        // A later power on of somebody else's booted it.
        let runs = record.stopped < record.started;
        let forked = matches!(record.began, Some(Started::Forked { .. }));
        (runs && forked).then(|| Claim {
            id: *id,
            macs: record.spec.nics.iter().map(|nic| nic.mac).collect(),
        })
    }

    /// Removes what a machine was before it was forked, while nobody waits but who wants the machine next.
    pub fn remove_former_soon(self: &Arc<Self>, object: ManagedObject, one: OwnedMutexGuard<()>) {
        let core = self.clone();
        tokio::spawn(async move {
            if let Err(error) = core.dismiss(&object).await {
                tracing::warn!(machine = %object, error = chain(&error), "what a fork took the place of is left to be repaired");
            }
            drop(one);
        });
    }

    /// What a machine was before, if it is there still.
    fn formers(&self, id: &MachineId) -> Vec<ManagedObject> {
        self.collector.look(|objects| {
            let Some((current, _)) = view::find(objects, id) else {
                return Vec::new();
            };
            let all = objects.of_kind("VirtualMachine");
            all.filter(|(object, properties)| {
                **object != current
                    && view::identity(properties) == Some(*id)
                    && self.record(properties).is_some()
            })
            .map(|(object, _)| object.clone())
            .collect()
        })
    }

    /// Removes what a machine was before. The caller has the machine to himself.
    pub async fn remove_formers(&self, id: &MachineId) -> Result<(), Cause> {
        for former in self.formers(id) {
            self.dismiss(&former).await?;
        }
        Ok(())
    }

    /// Removes forks half made, and what those that were made took the place of.
    pub async fn repair_forks(&self) -> Result<Vec<Repair>, Cause> {
        let mut repairs = Vec::new();
        for (id, object) in self.coming() {
            let cell = self.cell(&id);
            let _one = cell.operation.lock().await;
            if !self.coming().contains(&(id, object.clone())) {
                continue;
            }
            if repaired(&id, self.dismiss(&object).await)? {
                repairs.push(Repair {
                    id,
                    what: "removed a fork half made".into(),
                });
            }
        }
        for id in self.identities() {
            if self.formers(&id).is_empty() {
                continue;
            }
            let cell = self.cell(&id);
            let _one = cell.operation.lock().await;
            if self.formers(&id).is_empty() {
                continue;
            }
            if repaired(&id, self.remove_formers(&id).await)? {
                repairs.push(Repair {
                    id,
                    what: "removed what a fork took the place of".into(),
                });
            }
        }
        Ok(repairs)
    }

    /// Clones of this VCH's that are no machines yet.
    fn coming(&self) -> Vec<(MachineId, ManagedObject)> {
        self.collector.look(|objects| {
            let all = objects.of_kind("VirtualMachine");
            all.filter(|(_, properties)| view::is_coming(properties))
                .filter(|(_, properties)| {
                    let entries = view::entries(properties);
                    record::value(&entries, record::OWNER).as_deref() == Some(&self.vch)
                        && !record::is_template(&entries)
                })
                .filter_map(|(object, properties)| {
                    Some((view::identity(properties)?, object.clone()))
                })
                .collect()
        })
    }

    /// All of the children, or none.
    pub async fn fork_template(
        self: Arc<Self>,
        id: &TemplateId,
        children: Vec<Fork>,
    ) -> Result<Vec<MachineId>, Cause> {
        let all = self.list_templates();
        let template = all
            .into_iter()
            .find(|template| template.id == *id)
            .ok_or(Cause::NotFound { what: "template" })?;
        let mut made = Vec::new();
        for child in children {
            let spec = MachineSpec {
                id: child.id,
                name: child.name,
                start: Start::Fork,
                disks: child.disks,
                nics: child.nics,
                ..template.spec.clone()
            };
            let forked = async {
                self.clone().create(spec, child.key, child.metadata).await?;
                made.push(child.id);
                self.clone().power_on(&child.id).await?;
                match self.inspect(&child.id).await?.began {
                    Some(Started::Forked { template, .. }) if template == *id => Ok(()),
                    Some(Started::BootedInstead { why }) => Err(Cause::hypervisor(why)),
                    // Its inputs have changed, so what is there now is another.
                    _ => Err(Cause::NotFound {
                        what: "template that fits such a machine",
                    }),
                }
            };
            if let Err(error) = forked.await {
                for id in made {
                    if let Err(error) = self.clone().destroy(&id).await {
                        tracing::warn!(machine = %id, error = chain(&error), "a child is left behind");
                    }
                }
                return Err(error);
            }
        }
        Ok(made)
    }
}

fn option(key: String, value: String) -> ConfigOption {
    ConfigOption::from(OptionValue {
        key,
        value: Raw::string(value),
    })
}

/// The clone that has this identity.
fn find_coming(objects: &Objects, identity: &str) -> Option<(ManagedObject, Arc<Properties>)> {
    objects
        .of_kind("VirtualMachine")
        .find(|(_, properties)| {
            let property = properties.get("config.extraConfig");
            property.and_then(|property| record::entry(property, record::IDENTITY))
                == Some(identity)
        })
        .map(|(object, properties)| (object.clone(), properties.clone()))
}

/// The name that what the machine was before does not have.
fn other_name(spec: &MachineSpec, before: &Properties) -> String {
    let name = create::name(spec);
    let fork = format!("{name}{}", create::FORK_SUFFIX);
    match before.get("name").map(|node| node.text.as_str()) {
        Some(text) if text == fork => name,
        _ => fork,
    }
}

/// The keys of the vNICs in the property `config.hardware`, in their order.
fn cards(hardware: &Node) -> Vec<i32> {
    let mut keys: Vec<i32> = hardware
        .children_named("device")
        .filter(|device| device.type_name() == "VirtualVmxnet3")
        .filter_map(|device| Some(VirtualVmxnet3::read(device).ok()?.key))
        .collect();
    keys.sort_unstable();
    keys
}

/// Makes vNICs with these keys the machine's.
fn vnics(birth: &Birth<'_>, keys: &[i32], cable: Cable) -> Vec<DeviceChange> {
    let nics = birth.record.spec.nics.iter().zip(&birth.nics);
    keys.iter()
        .zip(nics)
        .map(|(key, (nic, backing))| {
            devices::edit(devices::vnic(*key, nic, backing.clone(), cable))
        })
        .collect()
}

/// Makes the serial ports of a clone the machine's: its URIs name it.
fn serial_ports(hardware: &Node, id: &MachineId, proxy: &str) -> Vec<DeviceChange> {
    hardware
        .children_named("device")
        .filter(|device| device.type_name() == "VirtualSerialPort")
        .filter_map(|device| {
            let port = VirtualSerialPort::read(device).ok()?;
            let Some(Backing::VirtualSerialPortURIBackingInfo(backing)) = &port.backing else {
                return None;
            };
            let service = service_name(&backing.serviceURI);
            let service = [CONSOLE, CHANNEL]
                .into_iter()
                .find(|name| *name == service)?;
            Some(devices::edit(VirtualSerialPort {
                key: port.key,
                controllerKey: port.controllerKey,
                unitNumber: port.unitNumber,
                connectable: Some(VirtualDeviceConnectInfo {
                    startConnected: true,
                    allowGuestControl: false,
                    connected: true,
                }),
                backing: Some(Backing::from(VirtualSerialPortURIBackingInfo {
                    serviceURI: format!("{service}/{id}"),
                    direction: "client".into(),
                    proxyURI: Some(proxy.to_owned()),
                })),
                yieldOnPoll: true,
                ..VirtualSerialPort::default()
            }))
        })
        .collect()
}
