//! The command line of `vch host`.

use super::size::Size;
use super::vsphere::ServerArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `vch host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Make a VCH on vSphere: a resource pool, a folder, a directory on a datastore
    Create(Box<CreateArgs>),
    /// Change what a VCH is given of its hosts
    Configure(Box<ConfigureArgs>),
    /// Show what a VCH is, as JSON
    Inspect(NamedArgs),
    /// List the VCHs in a resource pool
    Ls(ListArgs),
    /// Give a VCH another boot image, for the containers made from then on
    Upgrade(UpgradeArgs),
    /// Remove a VCH with its containers, and nothing else
    #[command(alias = "rm")]
    Delete(NamedArgs),
}

/// One VCH.
#[derive(Args, Clone, Debug, Default)]
pub struct NamedArgs {
    /// Its name
    #[arg(value_parser = super::serve::name)]
    pub name: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What of processors and memory a VCH gets.
#[derive(Args, Clone, Debug, Default)]
pub struct AllocationArgs {
    /// MHz that it always has
    #[arg(long, value_name = "MHZ")]
    pub cpu_reservation: Option<i64>,
    /// The most MHz
    #[arg(long, value_name = "MHZ")]
    pub cpu_limit: Option<i64>,
    /// How it counts when there is not enough; 4000 is normal
    #[arg(long, value_name = "COUNT")]
    pub cpu_shares: Option<i32>,
    /// Memory that it always has
    #[arg(long, value_name = "SIZE")]
    pub memory_reservation: Option<Size>,
    /// The most memory
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<Size>,
    /// How it counts when there is not enough; 4000 is normal
    #[arg(long, value_name = "COUNT")]
    pub memory_shares: Option<i32>,
}

/// `vch host create`.
#[derive(Args, Clone, Debug, Default)]
pub struct CreateArgs {
    #[command(flatten)]
    pub named: NamedArgs,
    /// Inventory path of the pool in which its own is made, as in /DC0/host/C0/Resources
    #[arg(long, env = "VSPHERE_RESOURCE_POOL", value_name = "PATH")]
    pub resource_pool: String,
    /// Inventory path of the folder in which its own is made [default: the datacenter's]
    #[arg(long, value_name = "PATH")]
    pub folder: Option<String>,
    /// A network for its containers, the first for those that name none
    #[arg(long = "network", value_name = "NAME", required = true)]
    pub networks: Vec<String>,
    #[command(flatten)]
    pub allocation: AllocationArgs,
    /// Directory with tether.iso
    #[arg(long, env = "VCH_BOOT_IMAGE", value_name = "DIR")]
    pub boot_image: PathBuf,
    /// Go on though this check finds something wrong: place, datastore, network, host, licence, firewall, privileges
    #[arg(long = "accept", value_name = "CHECK")]
    pub accepted: Vec<String>,
}

/// `vch host configure`.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigureArgs {
    #[command(flatten)]
    pub named: NamedArgs,
    #[command(flatten)]
    pub allocation: AllocationArgs,
}

/// `vch host ls`.
#[derive(Args, Clone, Debug, Default)]
pub struct ListArgs {
    /// Inventory path of the pool, as in /DC0/host/C0/Resources
    #[arg(long, env = "VSPHERE_RESOURCE_POOL", value_name = "PATH")]
    pub resource_pool: String,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// `vch host upgrade`.
#[derive(Args, Clone, Debug, Default)]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub named: NamedArgs,
    /// Directory with tether.iso
    #[arg(long, env = "VCH_BOOT_IMAGE", value_name = "DIR")]
    pub boot_image: PathBuf,
}
