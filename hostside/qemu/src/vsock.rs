//! What carries AF_VSOCK to a guest: the host kernel's vhost-vsock, or where
//! there is none, a `vhost-device-vsock` of the machine's own.
//!
//! The daemon lives in the machine's directory beside QEMU and ends with the
//! machine: it would otherwise wait for another QEMU. Its socket for host
//! connections takes a line `CONNECT port` and answers `OK port` when the
//! guest has accepted (Firecracker's hybrid vsock protocol).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::{Cause, ChannelKind, MachineId};
use rustix::fs::inotify;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::directory::Directory;
use crate::process::{Lifetime, Process};
use crate::sys::watch_readable;

/// The daemon's name, by which its processes are known.
pub const DAEMON: &str = "vhost-device-vsock";
/// Where QEMU reaches the daemon.
pub const DEVICE_SOCKET: &str = "vhost.sock";
/// Where the host reaches the guest through the daemon.
pub const HOST_SOCKET: &str = "vsock.sock";
/// How long a guest may take to accept: it may still be booting.
const ACCEPT: Duration = Duration::from_secs(30);
/// How long the daemon may take to listen.
const START: Duration = Duration::from_secs(20);

/// What carries vsock on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockCarrier {
    /// Nothing.
    None,
    /// The kernel's `/dev/vhost-vsock`.
    Kernel,
    /// This program.
    Daemon(PathBuf),
}

impl VsockCarrier {
    /// The kernel's where it may be opened, else this daemon, else one that is
    /// installed: in `PATH`, or by `scripts/vsock-daemon` in the cache.
    pub fn detect(daemon: Option<&Path>) -> Self {
        if File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-vsock")
            .is_ok()
        {
            return Self::Kernel;
        }
        let found = match daemon {
            Some(daemon) => Some(daemon.to_owned()).filter(|daemon| daemon.is_file()),
            None => installed(|name| std::env::var_os(name)),
        };
        found.map_or(Self::None, Self::Daemon)
    }
}

/// Looks for an installed daemon.
fn installed(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    let cache = variable("TETHER_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("XDG_CACHE_HOME")?).join("tether")))
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache/tether")));
    let mut versions: Vec<PathBuf> = cache
        .and_then(|cache| std::fs::read_dir(cache.join("vsock")).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    versions.sort();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(versions.into_iter().rev())
        .map(|directory| directory.join(DAEMON))
        .find(|daemon| daemon.is_file())
}

/// A machine's context identifier under the kernel's vhost-vsock, which the
/// whole host shares: taken from the machine's random identity, so that two of
/// them meet once in two thousand million.
pub fn context_id(id: &MachineId) -> u32 {
    let [.., a, b, c, d] = *id.as_bytes();
    // 0 to 2 are the hypervisor's and the host's; the upper half is left alone.
    (u32::from_be_bytes([a, b, c, d]) & 0x7fff_ffff).max(3)
}

/// Starts the daemon of a machine, and returns when QEMU can connect to it.
pub async fn start_daemon(
    program: &Path,
    directory: &Directory,
    log: &File,
) -> Result<Process, Cause> {
    let failed = |source: io::Error| {
        Cause::because(
            format!(
                "cannot start {} for the channel by vsock",
                program.display()
            ),
            source,
        )
    };
    for socket in [DEVICE_SOCKET, HOST_SOCKET] {
        let _ = std::fs::remove_file(directory.file(socket));
    }
    let watch = created(directory.path()).map_err(failed)?;
    let arguments = [
        "--guest-cid",
        "3",
        "--socket",
        DEVICE_SOCKET,
        "--uds-path",
        HOST_SOCKET,
    ]
    .map(Into::into);
    let process = Process::spawn(
        program,
        &arguments,
        directory.path(),
        log,
        &[],
        Lifetime::Own,
    )
    .map_err(failed)?;
    let listens = async {
        while !directory.file(DEVICE_SOCKET).exists() || !directory.file(HOST_SOCKET).exists() {
            let mut ready = watch.readable().await?;
            let mut buffer = [0u8; 4096];
            // What was created is looked for by name; the event only wakes.
            while matches!(rustix::io::read(watch.get_ref(), &mut buffer), Ok(n) if n > 0) {}
            ready.clear_ready();
        }
        io::Result::Ok(())
    };
    let started = tokio::select! {
        listens = tokio::time::timeout(START, listens) => {
            listens.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)
        }
        ending = process.ended() => Err(Cause::hypervisor(format!("{} {ending}", program.display()))),
    };
    match started {
        Ok(()) => Ok(process),
        Err(cause) => {
            process.kill().await;
            Err(cause)
        }
    }
}

/// Watches a directory for new names.
fn created(directory: &Path) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, directory, inotify::WatchFlags::CREATE)?;
    watch_readable(watch)
}

/// Connects to the guest's tether through the daemon.
pub async fn connect_daemon(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    let greeted = async {
        stream
            .write_all(format!("CONNECT {}\n", ChannelKind::VSOCK_PORT).as_bytes())
            .await?;
        // Byte by byte: what follows the line is the guest's.
        let mut line = Vec::new();
        loop {
            match stream.read_u8().await {
                Ok(b'\n') if line.starts_with(b"OK ") => return Ok(()),
                Ok(byte) if line.len() < 32 && byte != b'\n' => line.push(byte),
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                // The guest refused: nothing listens there yet.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Err(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout(ACCEPT, greeted)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(stream)
}

/// Connects to the guest's tether through the kernel.
pub async fn connect_kernel(id: MachineId) -> io::Result<UnixStream> {
    let connect =
        move || vsock::VsockStream::connect_with_cid_port(context_id(&id), ChannelKind::VSOCK_PORT);
    let stream = tokio::task::spawn_blocking(connect)
        .await
        .map_err(io::Error::other)??;
    // A stream socket like any other from here: read, write, shut down.
    let stream = StdStream::from(OwnedFd::from(stream));
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greet(answer: &[u8]) -> io::Result<Vec<u8>> {
        let (ours, theirs) = StdStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = UnixStream::from_std(theirs).unwrap();
        let (connected, ()) = tokio::join!(connect_daemon(ours), async {
            let mut line = [0; 13];
            theirs.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 2376\n");
            theirs.write_all(answer).await.unwrap();
            theirs.shutdown().await.unwrap();
        });
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_the_daemons_answer_is_the_guests() {
        assert_eq!(greet(b"OK 1024\nhello\n").await.unwrap(), b"hello\n");
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_is_a_refused_connection() {
        assert_eq!(
            greet(b"").await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        for nonsense in [&b"NO\n"[..], b"\n", &[b'O'; 4096], b"OK\n"] {
            assert_eq!(
                greet(nonsense).await.unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }

    #[test]
    fn a_daemon_is_found_in_the_path_and_in_the_cache() {
        let place = tempfile::tempdir().unwrap();
        let look = |path: &Path| {
            installed(|name| match name {
                "PATH" => Some(path.as_os_str().to_owned()),
                "HOME" => Some(place.path().as_os_str().to_owned()),
                _ => None,
            })
        };
        let bin = place.path().join("bin");
        assert_eq!(look(&bin), None);
        let cached = place.path().join(".cache/tether/vsock/0.3.0/bin");
        for directory in [&cached, &bin] {
            std::fs::create_dir_all(directory).unwrap();
            File::create(directory.join(DAEMON)).unwrap();
        }
        assert_eq!(look(Path::new("/nowhere")), Some(cached.join(DAEMON)));
        assert_eq!(look(&bin), Some(bin.join(DAEMON)));
    }

    #[test]
    fn a_context_id_is_never_a_reserved_one() {
        assert_eq!(context_id(&MachineId::from_bytes([0; 16])), 3);
        assert_eq!(context_id(&MachineId::from_bytes([0xff; 16])), 0x7fff_ffff);
    }
}
