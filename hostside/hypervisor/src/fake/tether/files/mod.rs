//! The container's files on request (`Request::Files`), on simulated disks, with
//! the real tether's outcomes (`transfer` of the agent).
//!
//! An operation is a program of tether's own, which no container sees.

use std::sync::Arc;

mod read;
mod write;

use tether_wire::files::{Failure, FormatError};
use tether_wire::message::{Boundary, Error, FileOperation, Owners};

use super::launch::resolve_user;
use crate::fake::files::image::Disks;
use crate::fake::files::mounts::{Credentials, Found, Mount, Mounts, Place, Source};
use crate::fake::files::tree::ROOT;
use crate::fake::files::{Errno, describe};
use crate::fake::kernel::Kernel;
use crate::fake::kernel::sys::Sys;

/// Most bytes of a path (`PATH_MAX` without its NUL).
const MAX_PATH: usize = 4095;

/// Why an operation failed.
struct Stopped {
    kind: Failure,
    sentence: String,
}

type Outcome<T> = Result<T, Stopped>;

impl Stopped {
    fn new(what: &str, path: &[u8], errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT => Failure::NotFound,
            Errno::NOTDIR => Failure::NotADirectory,
            Errno::EXIST | Errno::ISDIR => Failure::Conflict,
            Errno::ROFS | Errno::PERM => Failure::ReadOnly,
            Errno::NOSPC => Failure::NoSpace,
            Errno::LOOP => Failure::BadPath,
            _ => Failure::Other,
        };
        Self {
            kind,
            sentence: format!("{what} {}: {}", shown(path), describe(errno)),
        }
    }

    fn format(path: &[u8], error: FormatError) -> Self {
        Self {
            kind: Failure::BadStream,
            sentence: format!("{}: {error}", shown(path)),
        }
    }
}

/// Adds to a failed call what it was for.
trait At<T> {
    fn at(self, what: &str, path: &[u8]) -> Outcome<T>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, what: &str, path: &[u8]) -> Outcome<T> {
        self.map_err(|errno| Stopped::new(what, path, errno))
    }
}

fn shown(path: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path)
}

fn checked(path: &[u8]) -> Outcome<&[u8]> {
    if path.first() == Some(&b'/') && path.len() <= MAX_PATH && !path.contains(&0) {
        Ok(path)
    } else {
        Err(Stopped {
            kind: Failure::BadPath,
            sentence: format!("{}: not an absolute path", shown(path)),
        })
    }
}

/// Whom everything that is written belongs to, where the operation says so.
///
/// # Errors
/// `Invalid`: a user that is not there.
pub fn owner(kernel: &Kernel, operation: &FileOperation) -> Result<Option<(u32, u32)>, Error> {
    match operation {
        FileOperation::Write {
            owners: Owners::All(user),
            ..
        } => {
            let resolved = resolve_user(kernel, user)?;
            Ok(Some((resolved.who.uid, resolved.who.gid)))
        }
        _ => Ok(None),
    }
}

/// Runs an operation to its exit code.
pub async fn run(
    sys: Sys,
    store: Arc<Disks>,
    operation: FileOperation,
    owner: Option<(u32, u32)>,
) -> u8 {
    let outcome = match &operation {
        FileOperation::Stat { path } => read::stat(&sys, path).await,
        FileOperation::Read { path, boundary } => {
            read::tree(&sys, path, *boundary, read::Contents::Included(&store)).await
        }
        FileOperation::List { path, boundary } => {
            read::tree(&sys, path, *boundary, read::Contents::Left).await
        }
        FileOperation::Write {
            path, conflicts, ..
        } => write::tree(&sys, path, *conflicts, owner).await,
    };
    match outcome {
        Ok(()) => 0,
        Err(stopped) => {
            let _ = sys.write(2, stopped.sentence.as_bytes()).await;
            stopped.kind.code()
        }
    }
}

/// The mounts an operation sees: all of them, or the root's disk as if nothing
/// were mounted on it.
struct View(Option<Mounts>);

impl View {
    fn new(kernel: &Kernel, boundary: Boundary) -> Result<Self, Errno> {
        if boundary == Boundary::Volumes {
            return Ok(Self(None));
        }
        let root = kernel.mounts.get(0)?;
        let mut alone = Mounts::default();
        alone.add(Mount {
            disk: root.disk.clone(),
            root: ROOT,
            on: None,
            read_only: root.read_only,
            source: Source::Disk,
            target: "/".into(),
        });
        Ok(Self(Some(alone)))
    }

    fn mounts<'a>(&'a self, kernel: &'a Kernel) -> &'a Mounts {
        self.0.as_ref().unwrap_or(&kernel.mounts)
    }
}

fn walk(mounts: &Mounts, path: &[u8], follow: bool) -> Result<Found, Errno> {
    mounts.walk(mounts.root(), path, &Credentials::default(), follow)
}

fn find(mounts: &Mounts, path: &[u8], follow: bool) -> Result<Place, Errno> {
    mounts.find(mounts.root(), path, &Credentials::default(), follow)
}
