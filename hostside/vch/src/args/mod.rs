//! What `vch run` understands of what its user wrote.
//!
//! Names and meanings are `docker run`'s (docker CLI reference, "docker container run") wherever it
//! has one. Files are nouns; each turns one kind of flag's text into a value or a sentence.

pub mod environment;
pub mod hosts;
pub mod publish;
pub mod size;
pub mod stop_signal;
pub mod tmpfs;
pub mod ulimit;
pub mod unsupported;
pub mod volume;

use clap::{ArgAction, Args, ValueEnum};
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
    /// Show the kernel's log on stderr
    #[arg(long)]
    pub console: bool,
    /// Wait for gdb before the first instruction
    #[arg(long, value_name = "[IP:]PORT", num_args = 0..=1, require_equals = true, default_missing_value = "127.0.0.1:1234")]
    pub gdb: Option<String>,
    /// Devices
    #[arg(long, value_name = "KIND", value_enum)]
    pub hardware: Option<HardwareArg>,
    /// Boot the kernel directly, or from the ISO
    #[arg(long, value_name = "HOW", value_enum)]
    pub boot: Option<BootArg>,
    /// Firmware that boots the ISO
    #[arg(long, value_name = "KIND", value_enum)]
    pub firmware: Option<FirmwareArg>,
    /// What carries the control channel
    #[arg(long, value_name = "KIND", value_enum)]
    pub channel: Option<ChannelArg>,
    /// Acceleration
    #[arg(long, value_name = "KIND", value_enum)]
    pub accel: Option<AccelArg>,
    /// Seconds the guest has to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub boot_timeout: u32,
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

    /// What follows IMAGE.
    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}
