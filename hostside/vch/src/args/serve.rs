//! The command line of `vch serve`.

use super::VmArgs;
use super::size::Size;
use anyhow::{Result, bail};
use clap::{ArgAction, Args, ValueEnum};
use docker_api::serve::{Host, Security, TlsFiles};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The flags of `vch serve`.
#[derive(Args, Debug, Default)]
pub struct ServeArgs {
    /// Where to listen: unix://PATH, tcp://ADDRESS[:PORT], or fd:// for systemd's sockets
    /// [default: fd:// if there are any, else unix://STATE/vch/NAME/docker.sock]
    #[arg(short = 'H', long, value_name = "HOST", value_parser = parse_host)]
    pub host: Vec<Host>,
    /// Name of the VCH; each has its own containers, and they share images
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = name)]
    pub name: String,
    /// Image store [default: STATE/images]
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Hypervisor: `qemu`; `vsphere`, for a VCH that `vch host create` has made; or `fake`, which only plays
    /// machines, for tests
    #[arg(long, value_enum, default_value = "qemu")]
    pub driver: DriverArg,
    /// Memory of all VMs together [default: the host's]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// The most virtual CPUs of one VM [default: the host's]
    #[arg(long, value_name = "COUNT")]
    pub cpus: Option<u32>,
    /// Memory of a container that does not say
    #[arg(long, value_name = "SIZE", default_value = "256m")]
    pub container_memory: Option<Size>,
    /// Virtual CPUs of a container that does not say
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub container_cpus: u32,
    /// Take TCP connections with client certificates only; needs the three files
    #[arg(long)]
    pub tlsverify: bool,
    /// `false` takes plain TCP connections, on loopback addresses
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Who signs clients' certificates
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// The endpoint's certificate
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Listen here for Prometheus, at /metrics
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_addr: Option<SocketAddr>,
    /// What is logged: error, warn, info, debug, trace, or directives such as docker_api=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How it is logged
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// QEMUs started ahead of need, each to become a container's like the one last started; 0 for none
    #[arg(long, value_name = "COUNT", default_value_t = 1, env = "VCH_SPARES")]
    pub spares: usize,
    /// Guest memory that those may have together
    #[arg(long, value_name = "SIZE", default_value = "1g")]
    pub spares_memory: Size,
    /// Where ESXi hosts dial to carry machines' channels (driver `vsphere`)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:2377")]
    pub concentrator: String,
    /// The name by which they reach that [default: the address itself]
    #[arg(long, value_name = "HOST:PORT")]
    pub concentrator_name: Option<String>,
    #[command(flatten)]
    pub server: super::vsphere::ServerArgs,
    #[command(flatten)]
    pub vm: VmArgs,
}

/// `--driver`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DriverArg {
    #[default]
    Qemu,
    Vsphere,
    Fake,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

fn parse_host(text: &str) -> Result<Host, String> {
    text.parse()
        .map_err(|error: docker_api::serve::ServeError| error.to_string())
}

pub fn name(text: &str) -> Result<String, String> {
    let good = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if good {
        Ok(text.to_owned())
    } else {
        Err(
            "a name has letters, digits, `-`, `_` and `.`, and starts with one of the first two"
                .to_owned(),
        )
    }
}

impl ServeArgs {
    /// How TCP connections are secured.
    ///
    /// # Errors
    /// Files are missing, or neither TLS nor its absence was asked for.
    pub fn security(&self) -> Result<Security> {
        let files = (&self.tlscacert, &self.tlscert, &self.tlskey);
        let tcp = self.host.iter().any(|host| matches!(host, Host::Tcp(_)));
        match (self.tlsverify, self.tls, files) {
            (true, Some(false), _) => bail!("--tlsverify and --tls=false contradict each other"),
            (true, _, (Some(authority), Some(certificate), Some(key))) => {
                Ok(Security::Tls(TlsFiles {
                    authority: authority.clone(),
                    certificate: certificate.clone(),
                    key: key.clone(),
                }))
            }
            (true, ..) => bail!("--tlsverify needs --tlscacert, --tlscert and --tlskey"),
            (false, Some(false), _) => Ok(Security::Plain),
            (false, ..) if tcp => bail!(
                "--host tcp://... needs --tlsverify with --tlscacert, --tlscert and --tlskey, or \
                 --tls=false on a loopback address"
            ),
            // Sockets that are handed over may be TCP: those on loopback only.
            (false, ..) => Ok(Security::Plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<ServeArgs, clap::Error> {
        match Cli::try_parse_from(["vch", "serve"].iter().chain(words))?.command {
            Command::Serve(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tcp_is_secured_or_said_not_to_be() {
        let files = ["--tlscacert=a", "--tlscert=b", "--tlskey=c"];
        let tcp = "--host=tcp://127.0.0.1:1";
        let cases: Vec<(Vec<&str>, Option<bool>)> = vec![
            (vec![], Some(false)),
            (vec![tcp], None),
            (vec![tcp, "--tls=false"], Some(false)),
            (vec![tcp, "--tlsverify"], None),
            ([&[tcp, "--tlsverify"], &files[..]].concat(), Some(true)),
            (
                [&[tcp, "--tlsverify", "--tls=false"], &files[..]].concat(),
                None,
            ),
            ([&[tcp, "--tlsverify"], &files[..2]].concat(), None),
        ];
        for (words, expected) in cases {
            let security = parse(&words).unwrap().security();
            let tls = security.ok().map(|security| security != Security::Plain);
            assert_eq!(tls, expected, "{words:?}");
        }
    }

    #[test]
    fn a_vch_s_name_is_a_directory_s() {
        assert_eq!(parse(&["--name", "team-1"]).unwrap().name, "team-1");
        for bad in ["", "../x", ".x", "a/b", "-x"] {
            assert!(
                parse(&[&format!("--name={bad}")]).is_err(),
                "{bad:?} was taken"
            );
        }
        assert!(parse(&["--host", "http://x"]).is_err());
    }
}
