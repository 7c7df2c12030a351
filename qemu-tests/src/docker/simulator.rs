//! A simulated vCenter or ESXi host of a test's own, with real guests behind its machines.

use crate::harness::{Context, skip};
use crate::vch::Vch;
use anyhow::{Context as _, Result};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

const USER: &str = "administrator@vsphere.local";
const PASSWORD: &str = "simulated";

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    VCenter,
    Esxi,
}

/// The simulator. Dropped, it ends with its guests.
#[derive(Debug)]
pub(super) struct Simulator {
    child: Child,
    kind: Kind,
    url: String,
    thumbprint: String,
    /// Where hosts dial; the same for every controller, as the machines remember it.
    concentrator: String,
    /// Whether this machine is on the network of its guests.
    lan: bool,
}

impl Simulator {
    /// Starts one.
    ///
    /// # Errors
    /// A skip when there is none.
    pub fn start(test: &Context, kind: Kind) -> Result<Self> {
        let Some(program) = std::env::var_os("VSPHERE_SIMULATOR") else {
            return skip("VSPHERE_SIMULATOR does not name what scripts/vsphere-simulator prints");
        };
        let password = test.file("password");
        std::fs::write(&password, PASSWORD)?;
        let log = std::fs::File::create(test.file("simulator.log"))?;
        // Whoever may open this and is root may make interfaces.
        let mut tun = std::fs::File::options();
        let tun = tun.read(true).write(true).open("/dev/net/tun");
        let lan = tun.is_ok() && rustix::process::geteuid().is_root();
        let mut child = Command::new(program)
            .args(["--kind", if kind == Kind::VCenter { "vpx" } else { "esx" }])
            .args(["--listen", "127.0.0.1:0", "--guests"])
            .args(["--user", USER, "--password-file"])
            .arg(&password)
            .arg("--datastore")
            .arg(test.file("datastore"))
            .args(lan.then_some("--lan"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the simulator has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let ready: serde_json::Value = serde_json::from_str(&line)
            .with_context(|| format!("the simulator said {line:?}: see simulator.log"))?;
        let word = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        // Free now, and hardly anybody's in a moment.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            child,
            kind,
            url: word("url"),
            thumbprint: word("thumbprint_sha256"),
            concentrator: format!("127.0.0.1:{port}"),
            lan,
        })
    }

    /// Whether this machine is on the network of its guests.
    pub fn reaches_guests(&self) -> bool {
        self.lan
    }

    /// The command with what it has to know of the server.
    pub fn tell(&self, vch: Vch) -> Vch {
        let vch = vch
            .variable("VSPHERE_SERVER", &self.url)
            .variable("VSPHERE_THUMBPRINT", &self.thumbprint)
            .variable("VSPHERE_USER", USER)
            .variable("VSPHERE_PASSWORD", PASSWORD)
            .variable("VSPHERE_DATASTORE", "LocalDS_0");
        // A host has one datacenter, which need not be named.
        let pool = "VSPHERE_RESOURCE_POOL";
        match self.kind {
            Kind::VCenter => vch
                .variable("VSPHERE_DATACENTER", "/DC0")
                .variable(pool, "/DC0/host/DC0_C0/Resources"),
            Kind::Esxi => vch.variable(pool, "/ha-datacenter/host/localhost.localdomain/Resources"),
        }
    }

    /// Where it is and who logs in; the password is in the test's file `password`.
    pub fn server_and_user(&self) -> [&str; 2] {
        [&self.url, USER]
    }

    /// What `vch serve` has to be told beside.
    pub fn flags(&self) -> [&str; 2] {
        ["--concentrator", &self.concentrator]
    }

    /// Makes a VCH.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn make_vch(&self, test: &Context, name: &str) -> Result<()> {
        let words = [
            "host",
            "create",
            name,
            "--network",
            "VM Network",
            "--memory-limit",
            "16g",
            // The simulator's hosts have no rule for it.
            "--accept",
            "firewall",
        ];
        let made = self.tell(test.vch(words)).done()?;
        made.status(0);
        assert!(
            made.text().contains("export DOCKER_HOST=unix://"),
            "{}",
            made.text()
        );
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn delete_vch(&self, test: &Context, name: &str) -> Result<()> {
        self.tell(test.vch(["host", "delete", name]))
            .done()?
            .status(0);
        Ok(())
    }

    /// Looks whether anything of any VCH is left.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn must_be_empty(&self, test: &Context) -> Result<()> {
        let left = self.tell(test.vch(["host", "ls"])).done()?;
        left.status(0).stdout("");
        let found = std::fs::read_dir(test.file("datastore"))?;
        let left: Vec<_> = found.flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "left on the datastore: {left:?}");
        Ok(())
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
