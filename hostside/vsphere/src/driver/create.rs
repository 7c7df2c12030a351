//! Making and destroying machines.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use hypervisor::{
    Attachment, Boot, Cause, ChannelKey, ChannelKind, DiskSource, Hardware, MachineId, MachineSpec,
    Metadata, PowerOff,
};

use super::power::already;
use super::record::{self, Edit, Entries};
use super::{Core, cause, devices, unsupported, view};
use crate::property::Objects;
use crate::types::{
    Backing, BootableDevice, CreateVM_Task, Destroy_Task, ManagedObject, ToolsConfigInfo,
    VirtualMachineBootOptions, VirtualMachineBootOptionsBootableCdromDevice,
    VirtualMachineConfigSpec, VirtualMachineFileInfo, VirtualMachinePowerState,
};

/// What every machine is told to be: the kernels that run in them are 6.x.
const GUEST: &str = "other4xLinux64Guest";
/// The same for servers that do not know it (before 6.7).
const OLD_GUEST: &str = "other3xLinux64Guest";
/// Memory comes in pieces of so many MiB (API reference, `VirtualMachineConfigSpec.memoryMB`).
const MEMORY_STEP: u64 = 4;
/// What the name of a fork ends with, unless what it takes the place of has that.
pub const FORK_SUFFIX: &str = ".f";
/// How often power is cut that comes while a machine is being removed.
const MOST_CUTS: u32 = 3;
/// The longest name an object of the inventory has.
const NAME_MAX: usize = 80;

/// A machine's memory as the API takes it.
pub fn memory_mb(spec: &MachineSpec) -> i64 {
    let mib = spec.memory.mib().next_multiple_of(MEMORY_STEP);
    i64::try_from(mib).unwrap_or(i64::MAX)
}

/// A machine's CPUs as the API takes them.
pub fn cpus(spec: &MachineSpec) -> i32 {
    i32::try_from(spec.cpus.count()).unwrap_or(i32::MAX)
}

/// A specification as it is written on a machine.
pub fn spec_text(spec: &MachineSpec) -> Result<String, Cause> {
    serde_json::to_string(spec)
        .map_err(|error| Cause::because("the specification cannot be written down", error))
}

/// The name of a machine in the inventory: the container's, and as much of its identity as tells it from
/// others.
pub fn name(spec: &MachineSpec) -> String {
    let id = spec.id.to_string().replace('-', "");
    // A fork's has a suffix.
    let room = NAME_MAX - 13 - FORK_SUFFIX.len();
    let name: String = spec
        .name
        .chars()
        .map(|c| {
            if matches!(c, '%' | '/' | '\\') {
                '_'
            } else {
                c
            }
        })
        .take(room)
        .collect();
    format!("{name}-{}", &id[..12])
}

/// What the driver does not do, before anything is made.
fn check(spec: &MachineSpec, metadata: &Metadata) -> Result<(), Cause> {
    spec.check()?;
    for (key, value) in metadata {
        record::check(key, value)?;
    }
    if spec.hardware != Hardware::Vmware {
        return Err(unsupported(
            "offer virtio devices",
            "choose vmware hardware",
        ));
    }
    if spec.channel != ChannelKind::Serial {
        return Err(unsupported(
            "carry a channel by vsock or virtio",
            "a guest's vsock ends at its own host; choose serial",
        ));
    }
    if spec.debugger.is_some() {
        return Err(unsupported("debug a guest", "boot it on QEMU"));
    }
    Ok(())
}

impl Core {
    pub async fn create(
        self: Arc<Self>,
        spec: MachineSpec,
        key: ChannelKey,
        metadata: Metadata,
    ) -> Result<(), Cause> {
        check(&spec, &metadata)?;
        let Boot::Iso { iso, .. } = &spec.boot else {
            return Err(unsupported(
                "load a kernel itself",
                "boot from the boot image's ISO",
            ));
        };
        let id = spec.id;
        let cell = self.cell(&id);
        let _one = cell.operation.lock().await;
        if self
            .collector
            .look(|objects| view::find(objects, &id))
            .is_some()
        {
            return Err(Cause::AlreadyExists {
                what: format!("machine {id}"),
            });
        }
        let boot = self.disks.boot_image(&self.collector, iso).await?;
        let nics = self.backings(&spec).await?;
        let mut disks: Vec<(i32, super::disks::Prepared)> = Vec::new();
        for disk in &spec.disks {
            let target =
                devices::free_target(|target| disks.iter().any(|(taken, _)| *taken == target))?;
            disks.push((target, self.disks.prepare(&self.collector, disk).await?));
        }
        let config = self.config(&spec, &key, &metadata, &disks, nics, &boot)?;
        let create = CreateVM_Task {
            _this: self.place.folder.clone(),
            config,
            pool: self.place.pool.clone(),
            host: None,
        };
        let there = |objects: &crate::property::Objects| {
            let (_, properties) = view::find(objects, &id)?;
            self.record(&properties).map(|_| ())
        };
        self.serial.admit(id);
        let made = self.task_seen(&create, there).await;
        if let Err(error) = made {
            self.forget(&id);
            return Err(cause("the server does not make it", error));
        }
        for (_, prepared) in &disks {
            self.disks.made(prepared);
        }
        self.collector
            .wait(there)
            .await
            .map_err(|error| cause("the new machine is not heard of", error))
    }

    /// What a machine's vNICs are attached to, in their order.
    pub async fn backings(&self, spec: &MachineSpec) -> Result<Vec<Backing>, Cause> {
        let mut nics = Vec::new();
        for nic in &spec.nics {
            let network = match &nic.attachment {
                Attachment::PortGroup(group) => &group.name,
                Attachment::UserMode { .. } => self.user_network.as_ref().ok_or_else(|| {
                    unsupported(
                        "give a vNIC user-mode networking",
                        "attach it to a port group, or name a network that has the addresses of one",
                    )
                })?,
            };
            nics.push(self.networks.backing(network).await?);
        }
        Ok(nics)
    }

    /// What a machine is made as.
    pub fn config(
        &self,
        spec: &MachineSpec,
        key: &ChannelKey,
        metadata: &Metadata,
        disks: &[(i32, super::disks::Prepared)],
        nics: Vec<Backing>,
        boot: &super::datastore::DatastorePath,
    ) -> Result<VirtualMachineConfigSpec, Cause> {
        let none = Entries::new();
        let table: Vec<_> = disks
            .iter()
            .zip(&spec.disks)
            .map(|((target, _), disk)| (*target, disk.serial.clone()))
            .collect();
        let mut edit = Edit::default()
            .plain(record::KEY, hex::encode(key.as_bytes()))
            .plain(record::CHANNEL, spec.channel.guest_word())
            .plain(record::DISKS, devices::write_table(&table))
            // Only who has I/O privilege in the guest reads its key.
            .plain("monitor_control.restrict_backdoor", "TRUE")
            // Disks say their UUID to the guest.
            .plain("disk.EnableUUID", "TRUE")
            .plain(record::ID, spec.id.to_string())
            .set(record::OWNER, &self.vch, &none)
            .set(record::ROLE, record::MACHINE_ROLE, &none)
            .set(record::SPEC, &spec_text(spec)?, &none)
            .set(record::CREATED, &record::nanos(SystemTime::now()), &none);
        for (key, value) in metadata {
            edit = edit.set(&record::metadata_key(key), value, &none);
        }
        let proxy = self.serial.proxy_uri();
        let guest = match self.client.version().is_at_least(&[6, 7]) {
            true => GUEST,
            false => OLD_GUEST,
        };
        Ok(VirtualMachineConfigSpec {
            name: Some(name(spec)),
            uuid: Some(spec.id.to_string()),
            instanceUuid: Some(spec.id.to_string()),
            guestId: Some(guest.into()),
            annotation: Some(format!(
                "The container {} of the VCH {}. Its controller looks after it: change it there.",
                spec.name, self.vch
            )),
            files: Some(VirtualMachineFileInfo {
                vmPathName: Some(format!("[{}]", self.names.datastore)),
                ..VirtualMachineFileInfo::default()
            }),
            tools: Some(ToolsConfigInfo {
                syncTimeWithHost: Some(false),
                ..ToolsConfigInfo::default()
            }),
            numCPUs: Some(cpus(spec)),
            numCoresPerSocket: Some(1),
            memoryMB: Some(memory_mb(spec)),
            memoryHotAddEnabled: Some(true),
            cpuHotAddEnabled: Some(true),
            deviceChange: devices::creation(spec, disks, nics, boot, &proxy),
            extraConfig: edit.options(),
            bootOptions: Some(VirtualMachineBootOptions {
                bootOrder: vec![BootableDevice::from(
                    VirtualMachineBootOptionsBootableCdromDevice::default(),
                )],
                ..VirtualMachineBootOptions::default()
            }),
            firmware: Some(devices::firmware(&spec.boot).into()),
            ..VirtualMachineConfigSpec::default()
        })
    }

    pub async fn destroy(self: Arc<Self>, id: &MachineId) -> Result<(), Cause> {
        let cell = self.cell(id);
        let one = cell.operation.lock().await;
        let disks = self.local_disks(id);
        let gone = self.destroy_locked(id).await;
        drop(one);
        if matches!(gone, Ok(()) | Err(Cause::NotFound { .. })) {
            self.forget(id);
        }
        self.sweep_without(disks);
        gone
    }

    /// The local disks that a machine has its own by.
    fn local_disks(&self, id: &MachineId) -> Vec<PathBuf> {
        let record = self
            .find(id)
            .ok()
            .and_then(|(_, properties)| self.record(&properties));
        let disks = record.map(|record| record.spec.disks).unwrap_or_default();
        let local = disks.into_iter().filter_map(|disk| match disk.source {
            DiskSource::File(path) => Some(path),
            DiskSource::Datastore { .. } => None,
        });
        local.collect()
    }

    /// The same, by whoever has the machine to himself.
    pub async fn destroy_locked(&self, id: &MachineId) -> Result<(), Cause> {
        let (object, properties) = self.find(id)?;
        self.remove_formers(id).await?;
        if view::power(&properties) != VirtualMachinePowerState::PoweredOff {
            self.cut(id, &object).await?;
        }
        self.remove_from_server(&object).await
    }

    /// Removes a virtual machine that is off, and leaves its disks.
    pub async fn remove_from_server(&self, object: &ManagedObject) -> Result<(), Cause> {
        let known = self.collector.look(|objects| objects.get(object).cloned());
        let properties = known.ok_or(Cause::NotFound { what: "machine" })?;
        // A server removes with a machine what is on its disks; they are the caller's.
        let disks = properties
            .get("config.hardware")
            .map(devices::disks)
            .unwrap_or_default();
        let entries = view::entries(&properties);
        let edit = Edit::default().set(record::STATE, record::LEAVING, &entries);
        if !disks.is_empty() {
            let spec = VirtualMachineConfigSpec {
                deviceChange: disks.iter().map(devices::detach).collect(),
                extraConfig: edit.options(),
                ..VirtualMachineConfigSpec::default()
            };
            let taken = self.reconfigure_machine(object, spec).await;
            taken.map_err(|error| cause("its disks cannot be taken off", error))?;
        }
        let destroy = Destroy_Task {
            _this: object.clone(),
        };
        let left = |objects: &Objects| objects.get(object).is_none().then_some(());
        for again in 0.. {
            let refused = match self.task_seen(&destroy, left).await {
                Ok(_) => break,
                Err(error) => error,
            };
            // Power that an earlier controller asked for, or somebody else, may come only now.
            if again == MOST_CUTS || !already(&refused, "poweredOn") {
                return Err(cause("the server does not remove it", refused));
            }
            tracing::info!(machine = %object, "it was powered on while it was being removed");
            self.cut_power(object).await?;
        }
        self.collector
            .wait(left)
            .await
            .map_err(|error| cause("the server is not heard of any more", error))
    }

    /// Powers a machine off by force, as a step of something else.
    pub async fn cut(&self, id: &MachineId, object: &ManagedObject) -> Result<(), Cause> {
        self.power_off_locked(id, object, PowerOff::Cut).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::{Cpus, Firmware, Memory, Start};

    fn spec(name: &str) -> MachineSpec {
        MachineSpec {
            id: MachineId::from_bytes([0xab; 16]),
            name: name.into(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(65).unwrap(),
            boot: Boot::Iso {
                iso: "/boot.iso".into(),
                firmware: Firmware::Bios,
            },
            start: Start::Boot,
            hardware: Hardware::Vmware,
            channel: ChannelKind::Serial,
            disks: Vec::new(),
            nics: Vec::new(),
            debugger: None,
        }
    }

    #[test]
    fn names_fit_into_the_inventory_and_tell_machines_apart() {
        assert_eq!(name(&spec("web/a")), "web_a-abababababab");
        assert_eq!(
            name(&spec(&"x".repeat(80))).len() + FORK_SUFFIX.len(),
            NAME_MAX
        );
    }

    #[test]
    fn memory_comes_in_pieces_of_four() {
        assert_eq!(memory_mb(&spec("a")), 68);
    }

    #[test]
    fn what_vsphere_has_not_is_refused_with_what_to_do() {
        let mut vsock = spec("a");
        vsock.channel = ChannelKind::Vsock;
        let mut virtio = spec("a");
        virtio.hardware = Hardware::Virtio;
        for spec in [vsock, virtio] {
            assert!(matches!(
                check(&spec, &Metadata::new()),
                Err(Cause::Unsupported { .. })
            ));
        }
        assert!(check(&spec("a"), &Metadata::new()).is_ok());
    }
}
