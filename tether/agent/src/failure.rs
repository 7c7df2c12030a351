//! How an `errno` becomes the wire's [`Error`]: a sentence that says what failed and on what, and
//! the kernel's word for why.

use crate::prelude::*;
use crate::sys;
use rustix::io::Errno;
use tether_wire::message::{Error, ErrorKind};

/// Short for what nearly everything here returns.
pub type Result<T> = core::result::Result<T, Error>;

/// The error of a system call; `what` is a clause such as `mounting /proc`.
pub fn system(what: impl Into<String>, errno: Errno) -> Error {
    of_kind(kind_of(errno), what, errno)
}

/// As [`system`], with a kind of the caller's choosing.
pub fn of_kind(kind: ErrorKind, what: impl Into<String>, errno: Errno) -> Error {
    let mut message = what.into();
    message.push_str(": ");
    message.push_str(sys::describe(errno));
    Error {
        kind,
        errno: number(errno),
        message,
    }
}

/// The request makes no sense.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, message)
}

fn kind_of(errno: Errno) -> ErrorKind {
    match errno {
        Errno::NOENT | Errno::SRCH | Errno::NODEV => ErrorKind::NotFound,
        Errno::INVAL | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP => ErrorKind::Invalid,
        Errno::NOSYS | Errno::OPNOTSUPP => ErrorKind::Unsupported,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => ErrorKind::Limit,
        _ => ErrorKind::System,
    }
}

/// Adds to a failed system call what it was for.
pub trait Context<T> {
    /// `what` is a clause such as `mounting /proc`; built only on failure.
    ///
    /// # Errors
    /// The same failure, said in full.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for core::result::Result<T, Errno> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|errno| system(what(), errno))
    }
}

/// An `errno` as the wire carries it.
pub fn number(errno: Errno) -> u16 {
    u16::try_from(errno.raw_os_error()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_says_what_it_was_for() {
        let error = Err::<(), _>(Errno::NOENT)
            .context(|| "opening /etc/passwd")
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.errno, 2);
        assert_eq!(
            error.message,
            "opening /etc/passwd: No such file or directory"
        );
    }
}
