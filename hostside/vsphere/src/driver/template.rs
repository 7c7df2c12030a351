//! Templates: machines without disks that stand at "tether ready", from which others are forked.
//!
//! ```text
//!           CreateVM, PowerOn                    "template ready"          Destroy
//! (nothing) -----------------> coming (boots) ------------------> whole ----------> (nothing)
//!                                 | fails, or found by reconcile
//!                                 +-----------------> (nothing)
//! ```
//!
//! A template is a virtual machine of the VCH's pool that is none of its machines ([`record::ROLE`]): booted from
//! the boot image, with as many vNICs as its forks, none of them connected, and no disk. It runs, and waits for a
//! host that never comes. Its key and its identity are zeros, so that its forks can be told from it.
//!
//! Its name is the hash of all that its forks have in common: boot image, firmware, CPUs, memory, number of vNICs,
//! and where their serial ports dial. What is made from something else is another one; the least used go when
//! there are more than [`KEEP`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hypervisor::{
    Attachment, Boot, Cause, ChannelKey, ChannelKind, Hardware, MacAddress, MachineId, MachineSpec,
    Metadata, NicSpec, Template, TemplateId,
};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::datastore::DatastorePath;
use super::devices::{self, Cable};
use super::power::gone_or_off;
use super::record::{self, Edit, Entries};
use super::repair::repaired;
use super::{Core, cause, unsupported, view};
use crate::property::{Objects, Properties};
use crate::serial::CONSOLE;
use crate::session::chain;
use crate::types::{
    ConfigOption, CreateVM_Task, ManagedObject, VirtualMachineConfigSpec,
    VirtualMachinePowerState as Power,
};

/// The most templates of one VCH.
pub const KEEP: usize = 4;
/// What tether says when it can be forked (`tether/agent/src/boot.rs`).
const READY: &[u8] = b"tether: template ready";
/// How long it may take to say so.
const BOOT: Duration = Duration::from_secs(180);
/// How long after one could not be made it is not tried again: machines boot meanwhile.
const AGAIN: Duration = Duration::from_secs(300);
/// Bytes of console kept for a message.
const CONSOLE_KEPT: usize = 64 << 10;
/// What a template's forks begin with besides; another number makes all of them anew.
const GENERATION: u32 = 1;
/// A table of no disks. A server takes an empty value for none.
const NO_DISKS: &str = "none";

/// What is known of the templates of a VCH beside what is written on them.
#[derive(Debug, Default)]
pub struct Templates {
    slots: Mutex<HashMap<TemplateId, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Held by whoever makes or removes it; when and why it could not be made.
    failed: tokio::sync::Mutex<Option<(Instant, String)>>,
    used: Mutex<Option<Instant>>,
}

impl Slot {
    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn used(&self) -> Option<Instant> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Templates {
    fn slot(&self, id: &TemplateId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(id.clone()).or_default().clone()
    }
}

/// A template that can be forked now.
#[derive(Debug)]
pub struct Ready {
    pub id: TemplateId,
    pub object: ManagedObject,
    /// Whether it was made for who asked.
    pub made: bool,
}

/// A template as the server has it.
struct Found {
    id: TemplateId,
    object: ManagedObject,
    properties: Arc<Properties>,
    coming: bool,
}

impl Found {
    fn can_be_forked(&self) -> bool {
        !self.coming && view::power(&self.properties) == Power::PoweredOn
    }
}

impl Core {
    /// Whether machines can be forked here.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn can_fork(&self) -> Result<(), Cause> {
        let why = if !self.client.is_vcenter() {
            "InstantClone_Task is vCenter's, and this is a host by itself"
        } else if !self.client.version().is_at_least(&[6, 7]) {
            "InstantClone_Task came with vSphere 6.7"
        } else {
            return Ok(());
        };
        Err(unsupported("fork a machine", why))
    }

    /// The template for machines like this one, made if there is none.
    pub async fn obtain(&self, spec: &MachineSpec) -> Result<Ready, Cause> {
        self.can_fork()?;
        let (id, model, boot) = self.model(spec).await?;
        let slot = self.templates.slot(&id);
        let mut failed = slot.failed.lock().await;
        slot.touch();
        let there = self.find_template(&id);
        if let Some(found) = there.iter().find(|found| found.can_be_forked()) {
            return Ok(Ready {
                id,
                object: found.object.clone(),
                made: false,
            });
        }
        if let Some((when, why)) = failed.as_ref()
            && when.elapsed() < AGAIN
        {
            let left = AGAIN.saturating_sub(when.elapsed()).as_secs();
            return Err(Cause::hypervisor(format!(
                "its template could not be made ({why}), which is tried again in {left} s"
            )));
        }
        for found in there {
            // Half made, or powered off by whomever.
            self.dismiss(&found.object).await?;
        }
        match self.make(&id, &model, spec, &boot).await {
            Ok(object) => {
                *failed = None;
                drop(failed);
                self.drop_unused(&id).await;
                let made = true;
                Ok(Ready { id, object, made })
            }
            Err(error) => {
                *failed = Some((Instant::now(), chain(&error)));
                Err(error)
            }
        }
    }

    /// What all machines that are forked from one template have in common, its name, and its boot image.
    async fn model(
        &self,
        spec: &MachineSpec,
    ) -> Result<(TemplateId, MachineSpec, DatastorePath), Cause> {
        let iso = match (&spec.boot, spec.hardware, spec.channel) {
            (Boot::Iso { iso, .. }, Hardware::Vmware, ChannelKind::Serial) => iso,
            _ => {
                return Err(unsupported(
                    "fork this machine",
                    "only those that boot the ISO and have a serial channel are forked",
                ));
            }
        };
        let boot = self.disks.boot_image(&self.collector, iso).await?;
        let inputs = format!(
            "{GENERATION}\n{boot}\n{}\n{}\n{}\n{}\n{}\n",
            devices::firmware(&spec.boot),
            super::create::cpus(spec),
            super::create::memory_mb(spec),
            spec.nics.len(),
            self.serial.proxy_uri(),
        );
        let digest = Sha256::digest(inputs.as_bytes());
        let mut own = [0; 16];
        own.copy_from_slice(&Sha256::digest(digest)[..16]);
        let id = TemplateId(hex::encode(digest));
        let model = MachineSpec {
            id: MachineId::from_bytes(own),
            name: "template".into(),
            disks: Vec::new(),
            nics: Vec::new(),
            ..spec.clone()
        };
        Ok((id, model, boot))
    }

    /// Makes one, and waits until it can be forked. `like` is a machine that is to be forked from it.
    async fn make(
        &self,
        id: &TemplateId,
        model: &MachineSpec,
        like: &MachineSpec,
        boot: &DatastorePath,
    ) -> Result<ManagedObject, Cause> {
        let create = CreateVM_Task {
            _this: self.place.folder.clone(),
            config: self.template_config(id, model, like, boot).await?,
            pool: self.place.pool.clone(),
            host: None,
        };
        let there = |objects: &Objects| {
            let mut all = self.templates_in(objects);
            all.find(|found| found.id == *id).map(|found| found.object)
        };
        tracing::info!(template = %id, "making a template");
        self.serial.admit(model.id);
        let begun = Instant::now();
        let made = async {
            let seen = |objects: &Objects| there(objects).map(drop);
            let created = self.task_seen(&create, seen).await;
            created.map_err(|error| cause("the server does not make a template", error))?;
            let object = self.collector.wait(there).await;
            let object =
                object.map_err(|error| cause("the new template is not heard of", error))?;
            self.switch_on(&object).await?;
            self.until_ready(&model.id, &object).await?;
            let whole = VirtualMachineConfigSpec {
                extraConfig: Edit::default().plain(record::STATE, "").options(),
                ..VirtualMachineConfigSpec::default()
            };
            let written = self.reconfigure_machine(&object, whole).await;
            written.map_err(|error| cause("a template cannot be written down", error))?;
            Ok(object)
        };
        let made = made.await;
        match &made {
            Ok(_) => {
                tracing::info!(template = %id, seconds = begun.elapsed().as_secs_f32(), "made a template")
            }
            Err(_) => {
                for found in self.find_template(id) {
                    if let Err(error) = self.dismiss(&found.object).await {
                        tracing::warn!(template = %id, error = chain(&error), "what was made of a template is left to be repaired");
                    }
                }
                self.serial.forget(model.id);
            }
        }
        made
    }

    async fn template_config(
        &self,
        id: &TemplateId,
        model: &MachineSpec,
        like: &MachineSpec,
        boot: &DatastorePath,
    ) -> Result<VirtualMachineConfigSpec, Cause> {
        // The key of nobody: a template holds no secret.
        let key = ChannelKey::from_bytes([0; 32]);
        let mut config = self.config(model, &key, &Metadata::new(), &[], Vec::new(), boot)?;
        config.name = Some(format!("template-{:.12}", id.0));
        config.annotation = Some(format!(
            "What containers of the VCH {} are forked from. Its controller looks after it; without it they boot.",
            self.vch
        ));
        for (number, backing) in self.backings(like).await?.into_iter().enumerate() {
            let number = u8::try_from(number).unwrap_or(u8::MAX);
            let nic = NicSpec {
                // Nobody ever sees it: it is not connected, and a fork has its own.
                mac: MacAddress::new([0x02, 0x42, 0, 0, 0, number])?,
                attachment: Attachment::UserMode {
                    published: Vec::new(),
                },
            };
            let card = devices::vnic(-2000 - i32::from(number), &nic, backing, Cable::Out);
            config.deviceChange.push(devices::add(card));
        }
        let none = Entries::new();
        let own = Edit::default()
            .set(record::ROLE, record::TEMPLATE_ROLE, &none)
            .set(record::STATE, record::COMING, &none)
            .plain(record::TEMPLATE, &id.0)
            .plain(record::IDENTITY, "0".repeat(64))
            .plain(record::DISKS, NO_DISKS)
            .options();
        let key = |option: &ConfigOption| match option {
            ConfigOption::OptionValue(option) => option.key.clone(),
            ConfigOption::Other(_) => String::new(),
        };
        let replaced: Vec<String> = own.iter().map(key).collect();
        config
            .extraConfig
            .retain(|option| !replaced.contains(&key(option)));
        config.extraConfig.extend(own);
        Ok(config)
    }

    /// Waits for tether's word on the console.
    async fn until_ready(&self, id: &MachineId, object: &ManagedObject) -> Result<(), Cause> {
        let mut said: Vec<u8> = Vec::new();
        let listening = async {
            loop {
                let mut port = self.serial.connect(*id, CONSOLE).await?;
                let mut piece = vec![0; 16 << 10];
                while let Ok(count @ 1..) = port.read(&mut piece).await {
                    said.extend_from_slice(&piece[..count]);
                    if said.windows(READY.len()).any(|window| window == READY) {
                        return Ok::<_, std::io::Error>(());
                    }
                    let excess = said.len().saturating_sub(CONSOLE_KEPT);
                    said.drain(..excess);
                }
            }
        };
        let why = tokio::select! {
            ready = listening => match ready {
                Ok(()) => return Ok(()),
                Err(error) => return Err(Cause::because("a template has no console", error)),
            },
            off = self.until_off(object) => chain(&off),
            () = tokio::time::sleep(BOOT) => format!("its tether was not ready in {} s", BOOT.as_secs()),
        };
        let said = String::from_utf8_lossy(&said);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().map(str::trim_end).collect();
        Err(Cause::hypervisor(format!(
            "a template did not come up: {why}; its console ends with {:?}",
            last.join("; ")
        )))
    }

    /// Every template of this VCH among these objects, whole or not.
    fn templates_in<'a>(&'a self, objects: &'a Objects) -> impl Iterator<Item = Found> + 'a {
        let all = objects.of_kind("VirtualMachine");
        all.filter_map(|(object, properties)| {
            let property = properties.get("config.extraConfig")?;
            let id = TemplateId(record::entry(property, record::TEMPLATE)?.to_owned());
            let entries = record::entries(property);
            let ours = record::value(&entries, record::OWNER)? == self.vch;
            (ours && record::is_template(&entries)).then(|| Found {
                id,
                object: object.clone(),
                properties: properties.clone(),
                coming: record::is_coming(&entries),
            })
        })
    }

    fn find_template(&self, id: &TemplateId) -> Vec<Found> {
        self.collector.look(|objects| {
            let all = self.templates_in(objects);
            all.filter(|found| found.id == *id).collect()
        })
    }

    /// Whether the template can be forked now.
    pub fn can_be_forked(&self, id: &TemplateId) -> bool {
        self.find_template(id).iter().any(Found::can_be_forked)
    }

    /// Lets their ports stay connected, though nobody reads them.
    pub fn adopt_templates(&self) {
        let all: Vec<Found> = self
            .collector
            .look(|objects| self.templates_in(objects).collect());
        for found in all {
            if let Some(id) = view::identity(&found.properties) {
                self.serial.admit(id);
            }
        }
    }

    pub fn list_templates(&self) -> Vec<Template> {
        let mut all: Vec<Template> = self.collector.look(|objects| {
            let whole = self.templates_in(objects).filter(|found| !found.coming);
            whole
                .filter_map(|found| {
                    let text = record::value(&view::entries(&found.properties), record::SPEC)?;
                    Some(Template {
                        id: found.id,
                        spec: serde_json::from_str(&text).ok()?,
                    })
                })
                .collect()
        });
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    pub async fn make_template(&self, spec: &MachineSpec) -> Result<Template, Cause> {
        self.can_fork()?;
        let (id, ..) = self.model(spec).await?;
        *self.templates.slot(&id).failed.lock().await = None;
        let ready = self.obtain(spec).await?;
        let all = self.list_templates();
        all.into_iter()
            .find(|template| template.id == ready.id)
            .ok_or(Cause::NotFound { what: "template" })
    }

    pub async fn remove_template(&self, id: &TemplateId) -> Result<(), Cause> {
        let slot = self.templates.slot(id);
        let _one = slot.failed.lock().await;
        let there = self.find_template(id);
        if there.is_empty() {
            return Err(Cause::NotFound { what: "template" });
        }
        for found in there {
            self.dismiss_template(&found).await?;
        }
        Ok(())
    }

    async fn dismiss_template(&self, found: &Found) -> Result<(), Cause> {
        self.dismiss(&found.object).await?;
        if let Some(id) = view::identity(&found.properties) {
            self.serial.forget(id);
        }
        Ok(())
    }

    /// Keeps their number bounded.
    async fn drop_unused(&self, new: &TemplateId) {
        let mut all: Vec<(Option<Instant>, Found)> = self.collector.look(|objects| {
            let others = self.templates_in(objects).filter(|found| found.id != *new);
            others
                .map(|found| (self.templates.slot(&found.id).used(), found))
                .collect()
        });
        all.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        for (_, found) in all.into_iter().skip(KEEP - 1) {
            let slot = self.templates.slot(&found.id);
            // One that is just being made or removed has somebody who looks after it.
            let Ok(_one) = slot.failed.try_lock() else {
                continue;
            };
            match self.dismiss_template(&found).await {
                Ok(()) => {
                    tracing::info!(template = %found.id, "removed a template long unused");
                }
                Err(error) => {
                    tracing::warn!(template = %found.id, error = chain(&error), "a template is left behind");
                }
            }
        }
    }

    /// Removes templates whose making was cut short.
    pub async fn repair_templates(&self) -> Result<(), Cause> {
        let coming: Vec<Found> = self.collector.look(|objects| {
            let all = self.templates_in(objects);
            all.filter(|found| found.coming).collect()
        });
        for found in coming {
            let slot = self.templates.slot(&found.id);
            let Ok(_one) = slot.failed.try_lock() else {
                continue;
            };
            if repaired(&found.id, self.dismiss_template(&found).await)? {
                tracing::info!(template = %found.id, "removed a template half made");
            }
        }
        Ok(())
    }

    /// Removes a virtual machine that is none of the VCH's machines, whatever its power. Gone already is success.
    pub async fn dismiss(&self, object: &ManagedObject) -> Result<(), Cause> {
        if self.collector.look(gone_or_off(object)).is_none() {
            self.cut_power(object).await?;
        }
        match self.remove_from_server(object).await {
            Err(Cause::NotFound { .. }) => Ok(()),
            removed => removed,
        }
    }
}
