//! Which vSphere server, whose word for it, and where on it: the flags that `vch host` and
//! `vch serve --driver vsphere` have in common.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::PathBuf;
use vsphere::session::{Client, Options, Secret};
use vsphere::transport::Trust;

/// The environment variable with the password, where no file is named: an argument would be seen by all.
const PASSWORD: &str = "VSPHERE_PASSWORD";
/// Calls under way at a time.
const CONCURRENCY: usize = 16;
/// The one datacenter of an ESXi host (vSphere API reference, `HostSystem`).
const HOST_DATACENTER: &str = "/ha-datacenter";

/// A server, and who logs in.
#[derive(Args, Clone, Debug, Default)]
pub struct ServerArgs {
    /// vCenter or ESXi host: HOST, HOST:PORT, or https://HOST/sdk
    #[arg(long = "vsphere-server", env = "VSPHERE_SERVER", value_name = "HOST")]
    pub server: Option<String>,
    /// Its user
    #[arg(long = "vsphere-user", env = "VSPHERE_USER", value_name = "NAME")]
    pub user: Option<String>,
    /// A file whose first line is the password [default: the environment's VSPHERE_PASSWORD]
    #[arg(long = "vsphere-password-file", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Who signs the server's certificate [default: this host's CAs]
    #[arg(long = "vsphere-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The thumbprint of the server's certificate, whoever signed it
    #[arg(
        long = "vsphere-thumbprint",
        env = "VSPHERE_THUMBPRINT",
        value_name = "HEX",
        conflicts_with = "ca"
    )]
    pub thumbprint: Option<String>,
    /// Inventory path of the datacenter, as in /DC0 [default: an ESXi host's only one]
    #[arg(long, env = "VSPHERE_DATACENTER", value_name = "PATH")]
    pub datacenter: Option<String>,
    /// Name of the datastore that has the VCH's files
    #[arg(long, env = "VSPHERE_DATASTORE", value_name = "NAME")]
    pub datastore: Option<String>,
}

impl ServerArgs {
    /// What a client needs.
    ///
    /// # Errors
    /// A flag that is missing or makes no sense; a password that cannot be read.
    pub fn session(&self) -> Result<Options> {
        let Some(server) = &self.server else {
            bail!("no vSphere server: name it with --vsphere-server or VSPHERE_SERVER");
        };
        let Some(user) = &self.user else {
            bail!("no user of {server}: name one with --vsphere-user or VSPHERE_USER");
        };
        let password = match &self.password_file {
            Some(file) => Secret::from_file(file),
            None => Secret::from_environment(PASSWORD),
        };
        Ok(Options {
            address: server.parse()?,
            trust: match (&self.ca, &self.thumbprint) {
                (Some(file), _) => Trust::Ca(file.clone()),
                (None, Some(text)) => Trust::Thumbprint(text.parse()?),
                (None, None) => Trust::System,
            },
            user: user.clone(),
            password: password.with_context(|| {
                format!("no password of {user}: set {PASSWORD} or give --vsphere-password-file")
            })?,
            concurrency: CONCURRENCY,
        })
    }

    /// The datacenter's path.
    ///
    /// # Errors
    /// A vCenter, which has many, and none was named.
    pub fn datacenter(&self, client: &Client) -> Result<String> {
        match &self.datacenter {
            Some(path) if path.starts_with('/') => Ok(path.clone()),
            Some(name) => Ok(format!("/{name}")),
            None if client.is_vcenter() => {
                bail!("which datacenter? name it with --datacenter or VSPHERE_DATACENTER")
            }
            None => Ok(HOST_DATACENTER.to_owned()),
        }
    }

    /// The datastore's name.
    ///
    /// # Errors
    /// There is none.
    pub fn datastore(&self) -> Result<String> {
        match &self.datastore {
            Some(name) => Ok(name.clone()),
            None => bail!("which datastore? name it with --datastore or VSPHERE_DATASTORE"),
        }
    }
}
