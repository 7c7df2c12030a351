//! Advisory locks on files (`flock(2)`): they go when their holder does, however it ends.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A held lock.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// How a lock is held.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

impl Lock {
    /// Waits for the lock on the file at `path`, which is made if it is missing.
    pub fn wait(path: &Path, mode: Mode) -> io::Result<Self> {
        let file = open(path)?;
        let operation = match mode {
            Mode::Shared => FlockOperation::LockShared,
            Mode::Exclusive => FlockOperation::LockExclusive,
        };
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock on the file at `path`, or `None` if another holds it.
    pub fn attempt(path: &Path, mode: Mode) -> io::Result<Option<Self>> {
        let file = open(path)?;
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
