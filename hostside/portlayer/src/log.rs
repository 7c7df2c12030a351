//! A container's output as it is kept: Docker's `json-file`, in the container's directory.
//!
//! ```text
//!  process --> Writer --append--> json.log --rotate--> json.log.1 --> ... --> json.log.N-1 --> gone
//!                 |                  |
//!                 | Feed: how far    +--> reading, any number of them, each at its own pace
//!                 +----------------------> (waits for the feed to change, never polls)
//! ```
//!
//! The writer ([`writer`]) is what "stored" means: bytes it says are stored survive the controller's
//! death at any instant, once. It does not `fsync`: a host that loses power may lose the last seconds.
//! Reading ([`reading`]) takes the files as they are and never holds the writer up.

mod checkpoint;
mod feed;
mod line;
mod reading;
mod storage;
mod time;
mod writer;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use self::feed::Feed;
pub(crate) use self::reading::read;
pub(crate) use self::writer::Writer;
use crate::error::Error;
use crate::stream::Output;

/// Which part of a container's log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// Its standard output.
    pub stdout: bool,
    /// Its standard error.
    pub stderr: bool,
    /// Nothing before this moment.
    pub since: Option<SystemTime>,
    /// Nothing from this moment on.
    pub until: Option<SystemTime>,
    /// Only this many records from the end; `None` is all.
    pub tail: Option<u64>,
    /// Whether to go on with what comes until the container ends.
    pub follow: Follow,
}

/// Whether a reader goes on with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Until the container ends, or is removed.
    Yes,
    /// It ends where the log ends now.
    No,
}

/// One line, or a part of a longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Where it was written to.
    pub output: Output,
    /// When its last byte came.
    pub time: SystemTime,
    /// The bytes as they came, with the newline where there is one; at most 16 KiB.
    pub data: Bytes,
}

/// Records one after the other. Dropping it ends the reading.
#[derive(Debug)]
pub struct LogReader {
    pub(crate) records: mpsc::Receiver<Result<LogRecord, Error>>,
}

impl LogReader {
    /// The next record; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<LogRecord, Error>> {
        self.records.recv().await
    }
}

/// The file being written in a container's directory; what Docker calls `LogPath`.
pub(crate) fn current_file(directory: &Path) -> PathBuf {
    directory.join("json.log")
}

/// A file that was rotated; 1 is the newest.
fn rotated_file(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("json.log.{number}"))
}

fn checkpoint_file(directory: &Path) -> PathBuf {
    directory.join("log.cursor")
}

/// The current file for 0, a rotated one else.
fn numbered_file(directory: &Path, number: u32) -> PathBuf {
    match number {
        0 => current_file(directory),
        number => rotated_file(directory, number),
    }
}
