//! Unix sockets: mode 0660, of the group docker where there is one.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use crate::serve::ServeError;

const GROUP: &str = "docker";
const BACKLOG: i32 = 1024;

/// A socket's file, removed when this goes, unless another has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // One that cannot be removed is found stale by the next endpoint.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The number of the group docker.
pub fn group() -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == GROUP).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Listens on a path. A socket that nobody listens on any more is replaced; nothing else is.
///
/// # Errors
/// Somebody listens there, it is no socket, or the system refuses.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), ServeError> {
    let failed = |source: io::Error| ServeError::Listen {
        host: format!("unix://{}", path.display()),
        source,
    };
    clear(path)?;
    let listen = || {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody gets in before `listen`: until then its mode and group can be set without a gap.
        rustix::fs::chmod(path, Mode::from_raw_mode(0o660))?;
        if let Some(group) = group()
            && let Err(error) = rustix::fs::chown(path, None, Some(Gid::from_raw(group)))
        {
            tracing::warn!("{} cannot be of the group {GROUP}: {error}", path.display());
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    let socket = listen().map_err(|error: rustix::io::Errno| failed(error.into()))?;
    let file = SocketFile {
        path: path.to_owned(),
        inode: inode(path),
    };
    let listener = UnixListener::from_std(socket.into()).map_err(failed)?;
    Ok((listener, file))
}

/// Makes room for a socket.
fn clear(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Listen {
        host: format!("unix://{}", path.display()),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServeError::NoSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vch.sock");
        let (listener, file) = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(listen(&path), Err(ServeError::InUse(_))));
        // As after a kill: the file stays, nobody listens.
        std::mem::forget(file);
        drop(listener);
        let (listener, file) = listen(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(matches!(listen(&path), Err(ServeError::NoSocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
