//! The two clocks: one that never jumps, for deadlines; and the one the host sets.

use crate::failure::{Context, Result};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Microseconds of `CLOCK_MONOTONIC`, which the wire's session counts in.
pub fn now() -> u64 {
    let (seconds, nanos) = read(ClockId::Monotonic);
    seconds * 1_000_000 + nanos / 1_000
}

/// Nanoseconds since the Unix epoch.
pub fn unix_nanos() -> u64 {
    let (seconds, nanos) = read(ClockId::Realtime);
    seconds * 1_000_000_000 + nanos
}

/// Nanoseconds since boot, those asleep included.
pub fn boot_nanos() -> u64 {
    let (seconds, nanos) = read(ClockId::Boottime);
    seconds * 1_000_000_000 + nanos
}

fn read(clock: ClockId) -> (u64, u64) {
    let time = clock_gettime(clock);
    (
        u64::try_from(time.tv_sec).unwrap_or(0),
        u64::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Sets the realtime clock.
///
/// # Errors
/// `EINVAL` for a time before boot's own reckoning of the epoch.
pub fn set(unix_nanos: u64) -> Result<()> {
    let time = Timespec {
        tv_sec: (unix_nanos / 1_000_000_000) as i64,
        tv_nsec: (unix_nanos % 1_000_000_000) as i64,
    };
    clock_settime(ClockId::Realtime, time).context(|| "setting the clock")
}
