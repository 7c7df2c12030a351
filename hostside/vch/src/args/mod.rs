//! What `vch run` understands of what its user wrote.
//!
//! Names and meanings are `docker run`'s (docker CLI reference, "docker container run") wherever it
//! has one. Files are nouns; each turns one kind of flag's text into a value or a sentence.

pub mod environment;
pub mod host;
pub mod hosts;
pub mod publish;
pub mod serve;
pub mod size;
pub mod stop_signal;
pub mod tmpfs;
pub mod ulimit;
pub mod unsupported;
pub mod volume;
pub mod vsphere;

use clap::{ArgAction, Args, ValueEnum};
use hypervisor::{ChannelKind, Hardware, Start};
use std::path::PathBuf;

/// Flags of `vch run`; everything from IMAGE on belongs to the container.
#[derive(Args, Debug, Default)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Forward standard input to the process
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub tty: bool,
    /// Remove the container when it has ended
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub rm: bool,
    /// Run a small init as process 1 that forwards signals and reaps
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub init: bool,
    /// Mount the container's root read-only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub read_only: bool,
    /// Forward signals that `vch run` gets to the process
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", hide_default_value = true, hide_possible_values = true, action = ArgAction::Set)]
    pub sig_proxy: bool,

    /// Set an environment variable, NAME=VALUE or NAME to pass it on
    #[arg(short, long, value_name = "ENV")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, by name or number, USER[:GROUP]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Further group, by name or number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Replace the image's entrypoint; empty clears it
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Which pid namespace: `host` is the VM's own
    #[arg(long, value_name = "NAMESPACE")]
    pub pid: Option<String>,
    /// Resource limit, NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<ulimit::Ulimit>,
    /// Signal that stops the process
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<stop_signal::StopSignal>,
    /// Seconds the process has to stop before it is killed
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,

    /// Container's host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Container's NIS domain name
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Add a line to /etc/hosts, HOST:IP
    #[arg(long, value_name = "HOST:IP")]
    pub add_host: Vec<hosts::ExtraHost>,
    /// Name server
    #[arg(long, value_name = "IP")]
    pub dns: Vec<std::net::IpAddr>,
    /// Search domain; `.` for none
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub dns_option: Vec<String>,
    /// Publish a port, [[IP:]HOST[-END]:]CONTAINER[-END][/tcp|/udp]
    #[arg(short, long, value_name = "PORT")]
    pub publish: Vec<publish::Publish>,
    /// `none`, or `bridge` for user-mode networking
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub network: Option<String>,

    /// Memory of the VM
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<size::Size>,
    /// Processors of the VM; a fraction counts as a whole one
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<size::Size>,
    /// Mount a tmpfs, PATH[:OPTIONS]
    #[arg(long, value_name = "PATH")]
    pub tmpfs: Vec<tmpfs::Tmpfs>,
    /// Mount an ext4 VMDK, FILE.vmdk:PATH[:ro][,size=SIZE]; with a size it is made when missing
    #[arg(short, long, value_name = "VOLUME")]
    pub volume: Vec<volume::Volume>,

    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Label, NAME=VALUE
    #[arg(short, long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<PathBuf>,
    /// Write the container's id to a file that must not exist
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// Go on with a container whose `vch run` was killed
    #[arg(long, value_name = "NAME", conflicts_with = "image_and_command")]
    pub resume: Option<String>,

    #[command(flatten, next_help_heading = "For kernel developers")]
    pub machine: MachineArgs,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// A reference in the store, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or dir:ROOTFS,
    /// and the command
    #[arg(value_name = "IMAGE [COMMAND [ARG...]]", trailing_var_arg = true, required_unless_present = "resume", num_args = 1..)]
    pub image_and_command: Vec<String>,
}

/// What the VM is made of.
#[derive(Args, Debug, Default)]
pub struct MachineArgs {
    #[command(flatten)]
    pub vm: VmArgs,
    /// Show the kernel's log on stderr
    #[arg(long)]
    pub console: bool,
    /// Wait for gdb before the first instruction
    #[arg(long, value_name = "[IP:]PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:1234")]
    pub gdb: Option<String>,
    /// Seconds the guest has to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub boot_timeout: u32,
}

/// What VMs are made of, one or many.
#[derive(Args, Debug, Default)]
pub struct VmArgs {
    /// Directory with bzImage, initramfs.cpio and tether.iso
    #[arg(long, env = "VCH_BOOT_IMAGE", value_name = "DIR")]
    pub boot_image: Option<PathBuf>,
    /// Boot another kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Boot with another initramfs
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Add kernel arguments
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Devices
    #[arg(long, value_name = "KIND", value_enum)]
    pub hardware: Option<HardwareArg>,
    /// Fork the VM from a template, boot its kernel, or boot the ISO [default: fork, where it works]
    #[arg(long, value_name = "HOW", value_enum)]
    pub boot: Option<BootArg>,
    /// Where templates are, on a tmpfs [default: one place for each state directory]
    #[arg(long, env = "VCH_TEMPLATES", value_name = "DIR")]
    pub templates: Option<PathBuf>,
    /// Firmware that boots the ISO
    #[arg(long, value_name = "KIND", value_enum)]
    pub firmware: Option<FirmwareArg>,
    /// What carries the control channel
    #[arg(long, value_name = "KIND", value_enum)]
    pub channel: Option<ChannelArg>,
    /// Acceleration
    #[arg(long, value_name = "KIND", value_enum)]
    pub accel: Option<AccelArg>,
}

impl VmArgs {
    /// The devices and what carries the channel.
    pub fn hardware(&self) -> (Hardware, ChannelKind) {
        let hardware = match self.hardware {
            Some(HardwareArg::Vmware) => Hardware::Vmware,
            None | Some(HardwareArg::Virtio) => Hardware::Virtio,
        };
        let channel = match (self.channel, hardware) {
            (Some(ChannelArg::Vsock), _) => ChannelKind::Vsock,
            (Some(ChannelArg::Serial), _) | (None, Hardware::Vmware) => ChannelKind::Serial,
            (Some(ChannelArg::Virtio), _) | (None, Hardware::Virtio) => ChannelKind::Virtio,
        };
        (hardware, channel)
    }

    /// Fork unless told to boot, where every machine can be forked.
    pub fn start_by_fork(&self) -> Start {
        match self.boot {
            None | Some(BootArg::Fork) => Start::Fork,
            Some(BootArg::Kernel | BootArg::Iso) => Start::Boot,
        }
    }

    /// Fork where nothing stands against it.
    pub fn start(&self) -> Start {
        let forkable = (Hardware::Virtio, ChannelKind::Virtio);
        match self.boot {
            Some(BootArg::Fork) => Start::Fork,
            None if self.hardware() == forkable => Start::Fork,
            None | Some(BootArg::Kernel | BootArg::Iso) => Start::Boot,
        }
    }

    /// The acceleration as the driver calls it.
    pub fn acceleration(&self) -> &'static str {
        match self.accel {
            Some(AccelArg::Kvm) => "kvm",
            Some(AccelArg::Tcg) => "tcg",
            None | Some(AccelArg::Auto) => "auto",
        }
    }
}

/// `--hardware`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HardwareArg {
    Virtio,
    Vmware,
}

/// `--boot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BootArg {
    Fork,
    Kernel,
    Iso,
}

/// `--firmware`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirmwareArg {
    Bios,
    Uefi,
}

/// `--channel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChannelArg {
    Vsock,
    Virtio,
    Serial,
}

/// `--accel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    Auto,
    Kvm,
    Tcg,
}

impl RunArgs {
    /// IMAGE; empty only with `--resume`.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// Flags that say no more than this, for a VM that nothing runs in.
    pub fn of_machine(machine: MachineArgs, memory: Option<size::Size>, cpus: Option<f64>) -> Self {
        Self {
            memory,
            cpus,
            network: Some("none".to_owned()),
            machine,
            ..Self::default()
        }
    }

    /// What follows IMAGE.
    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}
