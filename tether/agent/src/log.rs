//! Tether's own words: lines of the kernel log.
//!
//! Not the console directly: a serial console whose far end does not read would hold tether up,
//! while the kernel log is memory and the kernel's console drivers do the waiting.

use nix::fcntl::{self, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::write;
use std::fmt;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;

static KERNEL_LOG: OnceLock<OwnedFd> = OnceLock::new();

/// Severity, as syslog(2) numbers it.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Level {
    /// Tether ends.
    Fatal = b'0',
    /// Something did not work.
    Warning = b'4',
    /// Good to know.
    Info = b'6',
}

/// Opens the kernel log; until then lines go to standard error. Gives descriptors 0 to 2 a place to
/// lead to if the kernel found no console for them: whatever is opened later must not become one.
pub fn open() {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    while let Ok(null) = fcntl::open("/dev/null", flags, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            break;
        }
        let _ = null.into_raw_fd();
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    if let Ok(log) = fcntl::open("/dev/kmsg", flags, Mode::empty()) {
        let _ = KERNEL_LOG.set(log);
    }
}

/// Writes one line.
pub fn line(level: Level, text: fmt::Arguments<'_>) {
    let line = format!("<{}>tether: {text}\n", level as u8 as char);
    match KERNEL_LOG.get() {
        Some(log) => {
            let _ = write(log, line.as_bytes());
        }
        None => {
            let _ = write(std::io::stderr(), &line.as_bytes()[3..]);
        }
    }
}

/// Logs at [`Level::Info`].
#[macro_export]
macro_rules! info {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($part)*)) };
}

/// Logs at [`Level::Warning`].
#[macro_export]
macro_rules! warning {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Warning, format_args!($($part)*)) };
}
