//! The simulator as a child of a test: started, told what goes wrong, asked what was called.
//!
//! The program is the one that the environment variable `VSPHERE_SIMULATOR` names (scripts/vsphere-simulator
//! builds it). Without it the tests here are skipped, and say so.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;
use tempfile::TempDir;
use vsphere::session::{Client, Error, Options, Secret};
use vsphere::transport::Trust;

pub const USER: &str = "administrator@vsphere.local";
pub const PASSWORD: &str = "right & proper";

/// Which server is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    VCenter,
    Esxi,
}

/// Both.
pub const KINDS: [Kind; 2] = [Kind::VCenter, Kind::Esxi];

#[derive(Debug, Deserialize)]
struct Ready {
    url: String,
    thumbprint_sha256: String,
    control: Option<String>,
}

/// A running simulator.
pub struct Simulator {
    pub kind: Kind,
    pub directory: TempDir,
    child: Child,
    ready: Ready,
}

impl Simulator {
    /// Starts one; `None`, and the reason printed, where there is none to start.
    pub fn start(test: &str, kind: Kind) -> Option<Self> {
        Self::start_with(test, kind, &[])
    }

    /// The same with more arguments.
    pub fn start_with(test: &str, kind: Kind, arguments: &[&str]) -> Option<Self> {
        let Some(program) = std::env::var_os("VSPHERE_SIMULATOR") else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: {test}: VSPHERE_SIMULATOR does not name the simulator (scripts/vsphere-simulator)"
            );
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let password = directory.path().join("password");
        std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut child = Command::new(program)
            .args(["--kind", if kind == Kind::VCenter { "vpx" } else { "esx" }])
            .args(["--listen", "127.0.0.1:0", "--user", USER])
            .arg("--password-file")
            .arg(&password)
            .arg("--datastore")
            .arg(directory.path().join("datastore"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
            panic!("the simulator said {line:?} ({error}); its log:\n{log}")
        });
        Some(Self {
            kind,
            directory,
            child,
            ready,
        })
    }

    pub fn datastore(&self) -> PathBuf {
        self.directory.path().join("datastore")
    }

    pub fn thumbprint(&self) -> &str {
        &self.ready.thumbprint_sha256
    }

    pub fn options(&self) -> Options {
        Options {
            address: self.ready.url.parse().unwrap(),
            trust: Trust::Thumbprint(self.ready.thumbprint_sha256.parse().unwrap()),
            user: USER.into(),
            password: Secret::from_file(&self.directory.path().join("password")).unwrap(),
            concurrency: 16,
        }
    }

    pub async fn client(&self) -> Result<Client, Error> {
        Client::connect(self.options()).await
    }

    pub fn datacenter(&self) -> &'static str {
        match self.kind {
            Kind::VCenter => "DC0",
            Kind::Esxi => "ha-datacenter",
        }
    }

    pub fn folder(&self) -> String {
        format!("/{}/vm", self.datacenter())
    }

    pub fn pool(&self) -> String {
        match self.kind {
            Kind::VCenter => "/DC0/host/DC0_C0/Resources".into(),
            Kind::Esxi => "/ha-datacenter/host/localhost.localdomain/Resources".into(),
        }
    }

    /// Has something go wrong from now on.
    pub fn rule(&self, rule: serde_json::Value) {
        let answer = self.control("POST", "/rules", &rule.to_string());
        assert!(answer.contains("id"), "{answer}");
    }

    pub fn forget_rules(&self) {
        self.control("DELETE", "/rules", "");
    }

    pub fn end_sessions(&self) {
        self.control("DELETE", "/sessions", "");
    }

    pub fn forget_calls(&self) {
        self.control("DELETE", "/calls", "");
    }

    pub fn calls(&self) -> BTreeMap<String, u64> {
        serde_json::from_str(&self.control("GET", "/calls", "")).unwrap()
    }

    fn control(&self, method: &str, path: &str, body: &str) -> String {
        let address = self.ready.control.as_deref().unwrap();
        let address = address.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        assert!(status.starts_with('2'), "{method} {path}: {answer}");
        body.to_owned()
    }

    pub fn log(&self) -> String {
        let path: &Path = &self.directory.path().join("log");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(6000);
            let tail = log.char_indices().map(|(at, _)| at).find(|at| *at >= tail);
            eprintln!(
                "the simulator's log ends with\n{}",
                &log[tail.unwrap_or(0)..]
            );
        }
        let _ = self.child.wait();
    }
}
