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

/// What was the time on the host when it sent something that was heard at this moment of [`now`], and is more by
/// what it took to come to it: on an emulated processor most of what lies in between.
pub fn since_heard(unix_nanos: u64, heard: u64) -> u64 {
    unix_nanos.saturating_add(now().saturating_sub(heard).saturating_mul(1000))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_a_while_ago_is_later_by_now() {
        let heard = now() - 5_000;
        let time = since_heard(1_000_000_000, heard);
        assert!((1_005_000_000..1_900_000_000).contains(&time), "{time}");
        assert_eq!(
            since_heard(7, now() + 60_000_000),
            7,
            "a clock that is behind takes nothing away"
        );
    }
}
