//! How fast the guest's time-stamp counter runs, under emulation.
//!
//! QEMU hands an emulated guest the host's counter, but nothing that says how
//! fast it runs, so a kernel measures it against the PIT. On a busy host that
//! goes wrong: a guest was seen to take 2,600 MHz for 144 and live eighteen
//! times too fast. The driver measures better and says so on the kernel
//! command line (`tsc_early_khz`), which also saves the kernel the wait.
//!
//! Under KVM the paravirtual clock says it. A guest booted from an ISO has a
//! fixed command line and still measures for itself.

use std::fs;
use std::time::{Duration, Instant};

use crate::sys::time_stamp;

/// Shorter than this, reading the clocks is too much of what is measured.
const LEAST: Duration = Duration::from_millis(20);

/// A measurement that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Measurement {
    begun: Option<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    stamp: u64,
}

impl Sample {
    /// Reads both clocks as close together as one of several tries gets.
    fn take() -> Option<Self> {
        let tries = (0..8).filter_map(|_| {
            let before = Instant::now();
            let stamp = time_stamp()?;
            Some((before.elapsed(), Self { at: before, stamp }))
        });
        tries.min_by_key(|(gap, _)| *gap).map(|(_, sample)| sample)
    }
}

impl Measurement {
    /// Begins, if the counter runs at one speed.
    pub fn begin() -> Self {
        let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let begun = if runs_steadily(&information) {
            Sample::take()
        } else {
            None
        };
        Self { begun }
    }

    /// The counter's speed in kHz, to some ten parts in a million. The later
    /// it is asked, the better; at once, it waits a little.
    pub async fn khz(&self) -> Option<u64> {
        let begun = self.begun?;
        if let Some(rest) = LEAST.checked_sub(begun.at.elapsed()) {
            tokio::time::sleep(rest).await;
        }
        khz(begun, Sample::take()?)
    }
}

fn khz(from: Sample, to: Sample) -> Option<u64> {
    let nanoseconds = to.at.checked_duration_since(from.at)?.as_nanos();
    let ticks = u128::from(to.stamp.checked_sub(from.stamp)?);
    let khz = u64::try_from((ticks * 1_000_000).checked_div(nanoseconds)?).ok()?;
    // What is far from any processor's speed is no measurement.
    (100_000..=20_000_000).contains(&khz).then_some(khz)
}

/// Whether the counter neither changes its speed nor stops (`constant_tsc`,
/// `nonstop_tsc`).
fn runs_steadily(information: &str) -> bool {
    let flags = information
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.is_some_and(|(_, flags)| {
        let has = |wanted| flags.split_ascii_whitespace().any(|flag| flag == wanted);
        has("constant_tsc") && has("nonstop_tsc")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_ticks_by_time() {
        let at = Instant::now();
        let from = Sample { at, stamp: 1_000 };
        let after = |stamp, milliseconds| Sample {
            at: at + Duration::from_millis(milliseconds),
            stamp,
        };
        assert_eq!(khz(from, after(1_000 + 260_000_000, 100)), Some(2_600_000));
        for nonsense in [
            after(0, 100),
            after(1_001, 100),
            after(5_000, 0),
            after(u64::MAX, 1),
        ] {
            assert_eq!(khz(from, nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_counter_that_may_stop_is_not_used() {
        assert!(runs_steadily(
            "flags\t\t: fpu constant_tsc tsc nonstop_tsc\n"
        ));
        assert!(!runs_steadily("flags\t\t: fpu tsc constant_tsc\n"));
        assert!(!runs_steadily(""));
    }

    #[tokio::test]
    async fn two_measurements_agree() {
        let measurement = Measurement::begin();
        let (Some(first), Some(second)) =
            (measurement.khz().await, Measurement::begin().khz().await)
        else {
            // Not `eprintln`, which the test runner keeps to itself.
            use std::io::Write as _;
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: this processor's time-stamp counter may change its speed"
            );
            return;
        };
        assert!(
            first.abs_diff(second) < first / 500,
            "{first} and {second} kHz"
        );
    }
}
