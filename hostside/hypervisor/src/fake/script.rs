//! For tests: a script run in a container without a wire.

use std::sync::{Arc, Mutex};

use tether_wire::message::{
    DiskId, Dns, ExitStatus, Identity, Network, PidNamespace, ProcessId, ProcessSpec, Role, Root,
    Setup, Stdio, User,
};
use tokio::time::Instant;

use super::files::image::Disks;
use super::kernel::Kernel;
use super::kernel::schedule::{Slice, Tasks};
use super::lock;
use super::tether::streams::Streams;
use super::tether::{Hardware, launch, setup};
use crate::{DiskAccess, DiskFormat, DiskSerial, DiskSource, DiskSpec};

/// What came of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub status: u8,
}

/// A container that has just been set up.
pub struct Container {
    pub kernel: Arc<Mutex<Kernel>>,
    pub tasks: Tasks,
}

impl Container {
    pub fn new() -> Self {
        let hardware = Hardware {
            disks: Mutex::new(vec![DiskSpec {
                source: DiskSource::File("/nowhere".into()),
                format: DiskFormat::Vmdk,
                access: DiskAccess::ReadWrite,
                serial: DiskSerial::new("root").unwrap(),
            }]),
            size: Mutex::new((128 << 20, 2)),
            store: Arc::new(Disks::default()),
        };
        let mut kernel = Kernel::new(128 << 20, 2, 7);
        let wanted = Setup {
            identity: Identity {
                hostname: "box".into(),
                domainname: String::new(),
                machine_id: [3; 16],
                seed: [4; 32],
                unix_nanos: 1_700_000_000_000_000_000,
            },
            root: Root {
                disk: DiskId::Serial("root".into()),
                read_only: false,
            },
            mounts: Vec::new(),
            network: Network {
                interfaces: Vec::new(),
                dns: Dns::default(),
                hosts: Vec::new(),
            },
            deadline_ms: 1000,
        };
        setup::set_up(&mut kernel, &hardware, &wanted).unwrap();
        let kernel = Arc::new(Mutex::new(kernel));
        Self {
            tasks: Tasks::new(kernel.clone()),
            kernel,
        }
    }

    /// Runs a program to its end.
    pub fn run(&mut self, argv: &[&str], stdin: &[u8]) -> Ran {
        let spec = ProcessSpec {
            argv: argv.iter().map(|&word| word.into()).collect(),
            env: Vec::new(),
            cwd: "/tmp".into(),
            user: User::default(),
            stdio: Stdio::Pipes { stdin: true },
            limits: Vec::new(),
            role: Role::Main {
                pid_namespace: PidNamespace::Private,
                init: false,
            },
        };
        let launched = launch::start(&self.kernel, ProcessId(0), &spec).unwrap();
        let Streams::Pipes {
            stdin: Some(input),
            stdout: Some(stdout),
            stderr: Some(stderr),
        } = launched.streams
        else {
            panic!("no pipes");
        };
        let mut rest = stdin;
        let mut input = Some(input);
        let mut outputs = [(stdout, Vec::new()), (stderr, Vec::new())];
        let mut buffer = [0; 4096];
        let give_up = Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let mut kernel = lock(&self.kernel);
            if let Some(pipe) = input {
                let taken = kernel.fill_pipe(pipe, rest).unwrap_or(rest.len());
                rest = &rest[taken..];
                if rest.is_empty() {
                    kernel.release_pipe(pipe, false);
                    input = None;
                }
            }
            let mut open = false;
            for (pipe, bytes) in &mut outputs {
                loop {
                    match kernel.drain_pipe(*pipe, &mut buffer) {
                        Some(0) => {
                            open = true;
                            break;
                        }
                        Some(length) => bytes.extend_from_slice(&buffer[..length]),
                        None => break,
                    }
                }
            }
            let ended = kernel.ends.first().copied();
            if let (Some(end), false) = (ended, open) {
                kernel.ends.clear();
                let [(_, stdout), (_, stderr)] = outputs;
                return Ran {
                    stdout: String::from_utf8_lossy(&stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&stderr).into_owned(),
                    status: match end.status {
                        ExitStatus::Code(code) => code,
                        ExitStatus::Signal(number) => 128 + number,
                    },
                };
            }
            drop(kernel);
            assert!(Instant::now() < give_up, "{argv:?} does not end");
            if let Slice::Idle(at) = self.tasks.run()
                && let Some(at) = at
            {
                // Time is what it waits for, if nothing came of it.
                let quiet = lock(&self.kernel).ends.is_empty();
                if quiet {
                    std::thread::sleep(
                        at.saturating_duration_since(Instant::now())
                            .min(std::time::Duration::from_millis(1)),
                    );
                }
            }
        }
    }

    /// Runs a script to its end.
    pub fn sh(&mut self, script: &str) -> Ran {
        self.run(&["sh", "-c", script], b"")
    }
}
