//! Reading and writing the container's files when the host asks: `docker cp`, `diff`, `export`.
//!
//! The host parses no guest's file system, so tether makes the system calls and speaks records
//! ([`tether_wire::files`]) on its streams; what a tar is, it does not know. One operation is one
//! forked child of tether's own with three pipes, so that however long a disk takes, the loop does
//! not. It is root, and in tether's own control group and not in the container's: the end of the main
//! process, which ends everything there, need not cut off a copy. It can be killed when memory is
//! short, which tether cannot.
//!
//! Nothing here leaves the container's root: paths are resolved by the kernel inside it, and below
//! the place they lead to everything is done by descriptor and single name, links never followed.

mod read;
mod write;

use crate::failure::Result;
use crate::prelude::*;
use crate::process::user;
use crate::root::Root;
use crate::sys;
use crate::tree::Tree;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{self, Errno};
use tether_wire::files::{Failure, FormatError};
use tether_wire::message::{Boundary, FileOperation, Owners};

/// Most bytes of a path, as the kernel takes it (`PATH_MAX` without its NUL).
const MAX_PATH: usize = 4095;
/// Bytes moved at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Where an operation's streams lead, in the child.
struct Streams<'a> {
    input: BorrowedFd<'a>,
    output: BorrowedFd<'a>,
}

/// Why an operation failed.
struct Stopped {
    kind: Failure,
    sentence: String,
}

/// An operation's outcome.
type Outcome<T> = core::result::Result<T, Stopped>;

/// Who owns what is written, when the records do not say.
type Owner = Option<(u32, u32)>;

/// Starts an operation with these descriptors 0, 1 and 2; gives its pid.
///
/// # Errors
/// A user that is not there; no more processes.
pub fn start(operation: &FileOperation, root: &Root, stdio: &[OwnedFd; 3]) -> Result<i32> {
    let owner = match operation {
        FileOperation::Write {
            owners: Owners::All(user),
            ..
        } => {
            let credentials = user::resolve(user, root.tree())?;
            Some((credentials.uid, credentials.gid))
        }
        _ => None,
    };
    let tree = match operation {
        FileOperation::Read { boundary, .. } | FileOperation::List { boundary, .. }
            if *boundary == Boundary::FileSystem =>
        {
            root.disk()
        }
        _ => root.tree(),
    };
    let [input, output, errors] = stdio;
    let kept = [input, output, errors].map(AsRawFd::as_raw_fd);
    sys::fork_operation(
        [kept[0], kept[1], kept[2], tree.as_fd().as_raw_fd()],
        || {
            let streams = Streams {
                input: input.as_fd(),
                output: output.as_fd(),
            };
            match run(operation, tree, owner, &streams) {
                Ok(()) => 0,
                Err(stopped) => {
                    let _ = write_all(errors.as_fd(), stopped.sentence.as_bytes());
                    stopped.kind.code()
                }
            }
        },
    )
    .map_err(|errno| crate::failure::system("starting to read or write files", errno))
}

fn run(operation: &FileOperation, tree: &Tree, owner: Owner, streams: &Streams<'_>) -> Outcome<()> {
    match operation {
        FileOperation::Stat { path } => read::stat(tree, checked(path)?, streams.output),
        FileOperation::Read { path, .. } => read::tree(
            tree,
            checked(path)?,
            read::Contents::Included,
            streams.output,
        ),
        FileOperation::List { path, .. } => {
            read::tree(tree, checked(path)?, read::Contents::Left, streams.output)
        }
        FileOperation::Write {
            path, conflicts, ..
        } => write::tree(tree, checked(path)?, *conflicts, owner, streams.input),
    }
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

/// A path for people.
fn shown(path: &[u8]) -> alloc::borrow::Cow<'_, str> {
    String::from_utf8_lossy(path)
}

impl Stopped {
    fn new(what: &str, path: &[u8], errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT => Failure::NotFound,
            Errno::NOTDIR => Failure::NotADirectory,
            Errno::EXIST | Errno::ISDIR => Failure::Conflict,
            Errno::ROFS | Errno::PERM => Failure::ReadOnly,
            Errno::NOSPC | Errno::DQUOT => Failure::NoSpace,
            Errno::LOOP | Errno::NAMETOOLONG => Failure::BadPath,
            _ => Failure::Other,
        };
        let (path, why) = (shown(path), sys::describe(errno));
        Self {
            kind,
            sentence: format!("{what} {path}: {why}"),
        }
    }

    fn format(path: &[u8], error: FormatError) -> Self {
        Self {
            kind: Failure::BadStream,
            sentence: format!("{}: {error}", shown(path)),
        }
    }
}

/// Adds to a failed system call what it was for.
trait At<T> {
    fn at(self, what: &str, path: &[u8]) -> Outcome<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &str, path: &[u8]) -> Outcome<T> {
        self.map_err(|errno| Stopped::new(what, path, errno))
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match io::write(fd, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
