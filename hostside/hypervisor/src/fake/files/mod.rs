//! What a simulated machine keeps: file systems in memory, and what is in them
//! at first.
//!
//! A [`tree::Tree`] is one disk's file system; it belongs to the machine room
//! and outlives power, drivers and machines. A [`mounts::Mounts`] is what one
//! booted machine has mounted where.

pub mod image;
pub mod mounts;
pub mod tree;

pub use rustix::io::Errno;

/// The kernel's word for an error, as `strerror(3)` in the C locale.
pub fn describe(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "Operation not permitted",
        Errno::NOENT => "No such file or directory",
        Errno::SRCH => "No such process",
        Errno::INTR => "Interrupted system call",
        Errno::IO => "I/O error",
        Errno::TOOBIG => "Argument list too long",
        Errno::NOEXEC => "Exec format error",
        Errno::BADF => "Bad file descriptor",
        Errno::CHILD => "No child processes",
        Errno::AGAIN => "Resource temporarily unavailable",
        Errno::NOMEM => "Out of memory",
        Errno::ACCESS => "Permission denied",
        Errno::BUSY => "Resource busy",
        Errno::EXIST => "File exists",
        Errno::XDEV => "Cross-device link",
        Errno::NOTDIR => "Not a directory",
        Errno::ISDIR => "Is a directory",
        Errno::INVAL => "Invalid argument",
        Errno::NOTTY => "Not a tty",
        Errno::TXTBSY => "Text file busy",
        Errno::NOSPC => "No space left on device",
        Errno::ROFS => "Read-only file system",
        Errno::PIPE => "Broken pipe",
        Errno::NOTEMPTY => "Directory not empty",
        Errno::LOOP => "Too many levels of symbolic links",
        _ => "Unknown error",
    }
}
