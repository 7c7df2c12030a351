//! What a running machine uses, from `/proc` and QEMU's own counters.

use std::fs;
use std::io;
use std::time::Duration;

use hypervisor::{BlockStatistics, DiskSpec, Statistics};
use serde_json::Value;

use crate::argv::{branch_name, disk_name};

/// Processor and memory use of process `pid` (proc(5): `stat`,
/// `smaps_rollup`).
///
/// # Errors
///
/// When the process has ended, or `/proc` says what it never says.
pub fn of_process(pid: u32) -> io::Result<Statistics> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let ticks = ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Statistics {
        cpu_time: Duration::from_millis(ticks.saturating_mul(1000) / per_second),
        memory_resident: sum(&rollup, &["Rss:"]),
        memory_private: sum(&rollup, &["Private_Clean:", "Private_Dirty:"]),
        ..Statistics::default()
    })
}

/// `utime + stime`: fields 14 and 15, counted after the name, which may hold
/// anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// The sum of some fields of a `smaps` file, in bytes.
fn sum(smaps: &str, fields: &[&str]) -> u64 {
    let mut total = 0u64;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next().is_some_and(|name| fields.contains(&name)) {
            let kib: u64 = words
                .next()
                .and_then(|number| number.parse().ok())
                .unwrap_or(0);
            total = total.saturating_add(kib.saturating_mul(1024));
        }
    }
    total
}

/// The disks' counters out of `query-blockstats`.
pub fn of_disks(answer: &Value, disks: &[DiskSpec]) -> Vec<BlockStatistics> {
    let devices = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let node = |device: &Value| {
        device
            .get("node-name")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    disks
        .iter()
        .filter_map(|disk| {
            let names = [disk_name(&disk.serial), branch_name(disk)];
            let stats = devices
                .iter()
                .find(|device| node(device).is_some_and(|name| names.contains(&name)))?
                .get("stats")?;
            let count = |key: &str| stats.get(key).and_then(Value::as_u64).unwrap_or(0);
            Some(BlockStatistics {
                serial: disk.serial.clone(),
                read_bytes: count("rd_bytes"),
                written_bytes: count("wr_bytes"),
                reads: count("rd_operations"),
                writes: count("wr_operations"),
                flushes: count("flush_operations"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_named_to_confuse_is_counted_right() {
        let stat = "7 (a) b 1 2 (c) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(42));
        for bad in [
            "",
            "7 (a)",
            "7 (a) S 1 2",
            "7 (a) S 1 7 7 0 -1 4194560 100 0 0 0 x 11",
        ] {
            assert_eq!(ticks(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn memory_is_summed_in_bytes() {
        let smaps =
            "5581 [rollup]\nRss:  10 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty:  3 kB\nPss: 9 kB\n";
        assert_eq!(sum(smaps, &["Rss:"]), 10 << 10);
        assert_eq!(sum(smaps, &["Private_Clean:", "Private_Dirty:"]), 5 << 10);
    }

    #[test]
    fn this_process_has_used_memory() {
        let used = of_process(std::process::id()).unwrap();
        assert!(used.memory_resident >= used.memory_private && used.memory_private > 0);
    }
}
