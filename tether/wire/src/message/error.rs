//! Why a request failed.

use alloc::string::String;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The kinds of failure the host side treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The program, disk or process does not exist (`docker run` exits 127 for a program). A user or a
    /// group that does not exist is [`ErrorKind::Invalid`].
    NotFound,
    /// The program exists and cannot be executed (`docker run` exits 126).
    NotExecutable,
    /// The request makes no sense; nothing was done.
    Invalid,
    /// Already there, with the same id.
    Exists,
    /// Not now: it still runs, or setup is not done.
    Busy,
    /// It did not happen within its deadline.
    TimedOut,
    /// This tether or this kernel cannot do it.
    Unsupported,
    /// A bound was reached (processes, memory, message size).
    Limit,
    /// A system call failed.
    System,
    /// The session ended before an answer came.
    Cancelled,
}

impl ErrorKind {
    /// The status a `docker run` ends with when a start fails so.
    pub fn start_status(self) -> u8 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// A failed request: what kind, and one sentence that says what failed, on what, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// The Linux `errno` behind it, 0 where there is none.
    pub errno: u16,
    /// For people; at most a few hundred bytes.
    pub message: String,
}

impl Error {
    /// An error without an `errno`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            errno: 0,
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for Error {}
