//! What a container is, in writing.

use hypervisor::{DiskAccess, MachineSpec};
use portlayer::random_bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tether_wire::message::{
    DiskId, Exit, Identity, Mount, Network, ProcessSpec, Root, Setup, ShutdownSpec, Stdio,
};

/// The form of `record.json`; a later form gets the next number.
pub const FORM: u32 = 1;

/// A container as its `vch run` made it. Everything a later `vch run --resume` needs to go on,
/// wherever the first one was killed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`FORM`].
    pub form: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name, and its directory's.
    pub name: String,
    /// The image as the user wrote it.
    pub image: String,
    /// The image's digest in the store.
    pub image_digest: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// Labels of the image and of the command line.
    pub labels: BTreeMap<String, String>,
    /// Removed when it has ended.
    pub remove: bool,
    /// Standard input is forwarded.
    pub interactive: bool,
    /// Signals are forwarded.
    pub forward_signals: bool,
    /// The main process.
    pub process: ProcessSpec,
    /// What the machine is made into.
    pub guest: GuestRecord,
    /// How it is stopped.
    pub stop: ShutdownSpec,
    /// Milliseconds the process has to stop when nobody reads its output any more.
    #[serde(default = "crate::plan::unread_grace_usually")]
    pub unread_grace_ms: u32,
    /// The VM.
    pub machine: MachineRecord,
}

/// What of [`Setup`] does not change from one attempt to the next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestRecord {
    pub hostname: String,
    pub domainname: String,
    /// machine-id(5), hexadecimal.
    pub machine_id: String,
    pub read_only: bool,
    pub mounts: Vec<Mount>,
    pub network: Network,
    pub deadline_ms: u32,
}

/// The VM and its disks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineRecord {
    /// As the driver is asked for it.
    pub spec: MachineSpec,
    /// `--accel`, as the driver has to be opened again with it.
    pub accel: String,
    /// Where the templates are.
    #[serde(default)]
    pub templates: Option<PathBuf>,
    /// The user said how it is to begin, and wants to know if it did not.
    #[serde(default)]
    pub says_how: bool,
    /// Seconds the guest has to come up; 0 waits for ever.
    pub boot_timeout: u32,
    /// The kernel's log goes to stderr.
    pub show_console: bool,
    /// Volumes to make before the first start.
    pub new_volumes: Vec<NewVolume>,
}

/// A volume that did not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    pub file: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// How the process ended, after all its output was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What `vch run` exits with.
    pub status: u8,
    /// As the guest reported it.
    pub exit: Option<Exit>,
    /// What went wrong, where the status alone does not say it.
    pub error: Option<String>,
    /// Seconds since the Unix epoch.
    pub finished: u64,
}

/// The serial number of the root disk; volumes are `volume0` and so on.
pub const ROOT_SERIAL: &str = "root";

impl Record {
    /// The setup, with a seed and a time of this moment.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn setup(&self) -> std::io::Result<Setup> {
        let guest = &self.guest;
        let mut machine_id = [0; 16];
        // Written by this program; anything else is a machine-id of zeros, which tether refuses.
        let _ = hex::decode_to_slice(&guest.machine_id, &mut machine_id);
        Ok(Setup {
            identity: Identity {
                hostname: guest.hostname.clone(),
                domainname: guest.domainname.clone(),
                machine_id,
                seed: random_bytes()?,
                unix_nanos: now().as_nanos() as u64,
            },
            root: Root {
                disk: DiskId::Serial(ROOT_SERIAL.to_owned()),
                read_only: guest.read_only,
            },
            mounts: guest.mounts.clone(),
            network: guest.network.clone(),
            deadline_ms: guest.deadline_ms,
        })
    }

    /// Whether the process has a terminal.
    pub fn has_terminal(&self) -> bool {
        matches!(self.process.stdio, Stdio::Terminal { .. })
    }

    /// Whether a volume would lose something if the power were cut.
    pub fn writes_volumes(&self) -> bool {
        let disks = &self.machine.spec.disks;
        disks
            .iter()
            .any(|disk| disk.access == DiskAccess::ReadWrite && disk.serial.as_str() != ROOT_SERIAL)
    }

    /// A record for tests, with an id that depends on the name.
    #[cfg(test)]
    pub fn for_tests(name: &str) -> Self {
        use tether_wire::message::{Action, PidNamespace, Role, User};
        Self {
            form: FORM,
            id: hex::encode(name).repeat(64).chars().take(64).collect(),
            name: name.to_owned(),
            image: "test".to_owned(),
            image_digest: String::new(),
            created: 0,
            labels: BTreeMap::new(),
            remove: false,
            interactive: false,
            forward_signals: true,
            process: ProcessSpec {
                argv: vec!["true".to_owned()],
                env: Vec::new(),
                cwd: "/".to_owned(),
                user: User::default(),
                stdio: Stdio::Pipes { stdin: false },
                limits: Vec::new(),
                role: Role::Main {
                    pid_namespace: PidNamespace::Private,
                    init: false,
                },
            },
            guest: GuestRecord {
                hostname: name.to_owned(),
                domainname: String::new(),
                machine_id: "00112233445566778899aabbccddeeff".to_owned(),
                read_only: false,
                mounts: Vec::new(),
                network: Network::default(),
                deadline_ms: 1000,
            },
            stop: ShutdownSpec {
                signal: 15,
                grace_ms: 10_000,
                action: Action::PowerOff,
            },
            unread_grace_ms: 1000,
            machine: MachineRecord {
                spec: MachineSpec {
                    id: hypervisor::MachineId::from_bytes([7; 16]),
                    name: name.to_owned(),
                    cpus: hypervisor::Cpus::ONE,
                    memory: hypervisor::Memory::MIN,
                    boot: hypervisor::Boot::Kernel {
                        kernel: "bzImage".into(),
                        initramfs: "initramfs.cpio".into(),
                        append: String::new(),
                    },
                    start: Default::default(),
                    hardware: hypervisor::Hardware::Virtio,
                    channel: hypervisor::ChannelKind::Virtio,
                    disks: Vec::new(),
                    nics: Vec::new(),
                    debugger: None,
                },
                accel: "auto".to_owned(),
                templates: None,
                says_how: false,
                boot_timeout: 60,
                show_console: false,
                new_volumes: Vec::new(),
            },
        }
    }
}

/// The time since the Unix epoch; zero before it.
pub fn now() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
