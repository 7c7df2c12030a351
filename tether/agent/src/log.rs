//! Tether's own words: lines of the kernel log.
//!
//! Not the console directly: a serial console whose far end does not read would hold tether up,
//! while the kernel log is memory and the kernel's console drivers do the waiting.

use crate::prelude::*;
use core::fmt;
use core::sync::atomic::{AtomicI32, Ordering};
use rustix::fd::{AsRawFd, IntoRawFd};
use rustix::fs::{Mode, OFlags};

/// The kernel log's descriptor, which stays open; standard error until then.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(2);

/// Severity, as syslog(2) numbers it.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Level {
    /// Tether ends.
    Fatal = b'0',
    /// Has to be on the console, even of a kernel told to be `quiet`.
    Console = b'3',
    /// Something did not work.
    Warning = b'4',
    /// Good to know.
    Info = b'6',
}

/// Opens the kernel log. Gives descriptors 0 to 2 a place to lead to if the kernel found no console
/// for them: whatever is opened later must not become one.
pub fn open() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    while let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            break;
        }
        let _ = null.into_raw_fd();
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if let Ok(log) = rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        DESCRIPTOR.store(log.into_raw_fd(), Ordering::Relaxed);
    }
}

/// Writes one line.
pub fn line(level: Level, text: fmt::Arguments<'_>) {
    let line = format!("<{}>tether: {text}\n", level as u8 as char);
    crate::sys::write_somewhere(DESCRIPTOR.load(Ordering::Relaxed), line.as_bytes());
}

/// Logs at [`Level::Console`].
#[macro_export]
macro_rules! console {
    ($($part:tt)*) => { $crate::log::line($crate::log::Level::Console, format_args!($($part)*)) };
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
