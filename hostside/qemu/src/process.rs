//! QEMU processes: started to outlive this one, found again by the next.
//!
//! A machine's QEMU is the process whose working directory is the machine's
//! and whose arguments have the machine's identity; its vsock daemon is the
//! one there with the daemon's name. That is true from the first instruction
//! to the last, needs no file that could be stale, and no other process can
//! have it by a number used again. Once found it is held by a pidfd.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::directory::RUN;
use hypervisor::{Cause, MachineId};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

/// A process of the driver's, by its pidfd.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
}

/// Whether a process outlives the one that starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It does.
    Own,
    /// It does not, however this one ends.
    Ours,
}

/// How a process ended, as far as this process can know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It was another process's child.
    Unknown,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("is gone"),
        }
    }
}

impl Process {
    /// Starts a program in `directory`, with its output in `log`.
    ///
    /// # Errors
    ///
    /// What starting it said; `NotFound` when there is no such program.
    pub fn spawn(
        program: &Path,
        arguments: &[OsString],
        directory: &Path,
        log: &File,
        inherited: &[BorrowedFd<'_>],
        lifetime: Lifetime,
    ) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        crate::sys::detach(&mut command, inherited, lifetime);
        let child = command.spawn()?;
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
        // `child` is dropped without a wait: `Self::ended` reaps.
        Self::open(pid)
    }

    /// Holds a running process.
    fn open(pid: Pid) -> io::Result<Self> {
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            pid,
            fd: crate::sys::watch_readable(fd)?,
        })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Waits until it has ended. May be called by several at once.
    pub async fn ended(&self) -> Ending {
        // A pidfd is readable when its process has ended, and stays so; the
        // wait can only fail with the runtime.
        let _ = self.fd.readable().await;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        use std::os::fd::AsFd as _;
        let fd = self.fd.get_ref().as_fd();
        let ending = match rustix::process::waitid(WaitId::PidFd(fd), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => Ending::Exited(status),
                (None, Some(signal)) => Ending::Killed(signal),
                (None, None) => Ending::Unknown,
            },
            // Another process's child, or reaped before.
            Ok(None) | Err(_) => Ending::Unknown,
        };
        let _ = rustix::process::waitid(
            WaitId::PidFd(fd),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        ending
    }

    /// Kills it and waits for its end, which takes some milliseconds; blocks.
    pub fn kill_and_reap(&self) {
        use std::os::fd::AsFd as _;
        let fd = self.fd.get_ref().as_fd();
        // It may have ended already, or not be this process's child.
        let _ = rustix::process::pidfd_send_signal(fd, Signal::KILL);
        let _ = rustix::process::waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED);
    }

    /// Kills it and waits for its end.
    pub async fn kill(&self) -> Ending {
        use std::os::fd::AsFd as _;
        // It may have ended already.
        let _ = rustix::process::pidfd_send_signal(self.fd.get_ref().as_fd(), Signal::KILL);
        self.ended().await
    }
}

/// Why there is no QEMU.
pub fn not_started(program: &Path, source: io::Error) -> Cause {
    Cause::because(
        format!("cannot start {} (is QEMU installed?)", program.display()),
        source,
    )
}

/// What a process is to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Its QEMU.
    Qemu,
    /// Its vsock daemon.
    Vsock,
}

/// A process found to belong to a machine.
#[derive(Debug)]
pub struct Found {
    /// The machine, by the process's arguments and working directory.
    pub id: MachineId,
    /// What it is to the machine.
    pub role: Role,
    /// The process.
    pub process: Process,
    /// The directory it runs in, as it is called now.
    pub directory: PathBuf,
    /// Whether that directory has been removed.
    pub removed: bool,
}

/// Every process that runs in a machine's directory below `machines`, which
/// must be canonical.
///
/// # Errors
///
/// When `/proc` cannot be read. A process that cannot be looked into is not
/// this user's, so not the driver's either.
pub fn find(machines: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(cwd) = std::fs::read_link(entry.path().join("cwd")) else {
            continue;
        };
        let Ok(below) = cwd.strip_prefix(machines) else {
            continue;
        };
        let Some(name) = below.to_str() else { continue };
        // What the kernel says of a removed directory.
        let (name, removed) = match name.strip_suffix(" (deleted)") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some(pid) = Pid::from_raw(pid) else {
            continue;
        };
        // Hold it first, then look again: what is looked at is what is held.
        let Ok(process) = Process::open(pid) else {
            continue;
        };
        let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if std::fs::read_link(entry.path().join("cwd")).ok().as_ref() != Some(&cwd) {
            continue;
        }
        // One that was a spare goes by the identity it had then.
        let (name, spare) = match name.strip_suffix(RUN).and_then(|n| n.strip_suffix('/')) {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some(id) = crate::directory::machine_of(name) else {
            continue;
        };
        let Some(role) = role(&cmdline, (!spare).then_some(&id)) else {
            continue;
        };
        found.push(Found {
            id,
            role,
            process,
            directory: machines.join(name),
            removed,
        });
    }
    Ok(found)
}

/// What the process with this command line is to the machine in whose
/// directory it runs, of this identity if it is known; nothing, if it is someone's shell.
fn role(cmdline: &[u8], id: Option<&MachineId>) -> Option<Role> {
    let mut arguments = cmdline.split(|b| *b == 0);
    let program = arguments.next()?;
    if program.rsplit(|b| *b == b'/').next() == Some(crate::vsock::DAEMON.as_bytes()) {
        return Some(Role::Vsock);
    }
    arguments.find(|argument| *argument == b"-uuid")?;
    let uuid = arguments.next()?;
    id.is_none_or(|id| uuid == id.to_string().as_bytes())
        .then_some(Role::Qemu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_what_a_process_is_to_its_machine() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id = text.parse().unwrap();
        let other = MachineId::from_bytes([1; 16]);
        let line = format!("qemu-system-x86_64\0-name\0guest=a\0-uuid\0{text}\0-m\0");
        assert_eq!(role(line.as_bytes(), Some(&id)), Some(Role::Qemu));
        assert_eq!(role(line.as_bytes(), Some(&other)), None);
        assert_eq!(role(line.as_bytes(), None), Some(Role::Qemu));
        assert_eq!(
            role(b"/usr/bin/vhost-device-vsock\0--socket\0", Some(&id)),
            Some(Role::Vsock)
        );
        for stranger in ["", "bash\0", "qemu\0-uuid\0", "vi\0vhost-device-vsock\0"] {
            assert_eq!(role(stranger.as_bytes(), Some(&id)), None, "{stranger:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_known_to_all_who_wait() {
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let arguments = ["-c".into(), "exit 3".into()];
        let process = Process::spawn(
            Path::new("/bin/sh"),
            &arguments,
            directory.path(),
            &log,
            &[],
            Lifetime::Own,
        )
        .unwrap();
        let first = process.ended().await;
        assert_eq!(first, Ending::Exited(3));
        assert_eq!(process.ended().await, Ending::Unknown);
    }

    #[tokio::test]
    async fn a_killed_child_says_by_what() {
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let process = Process::spawn(
            Path::new("/bin/sleep"),
            &["1000".into()],
            directory.path(),
            &log,
            &[],
            Lifetime::Own,
        )
        .unwrap();
        assert_eq!(process.kill().await, Ending::Killed(9));
    }
}
