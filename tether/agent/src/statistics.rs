//! What the machine uses, from /proc, /sys and the container's control group.

use crate::cgroup::{CONTAINER, field};
use crate::failure::Result;
use crate::files::{self, text};
use crate::prelude::*;
use crate::{clock, network};
use tether_wire::message::{BlockDeviceUsage, CpuUsage, InterfaceUsage, MemoryUsage, Statistics};

/// Where the machine's own counters stood when it began: at zero, or where its template's did.
#[derive(Clone, Copy, Default)]
pub struct Start {
    boot_nanos: u64,
    cpu_nanos: u64,
    /// Of the container's group: all, user, system.
    container_nanos: [u64; 3],
}

impl Start {
    /// It begins now.
    pub fn now() -> Self {
        Self {
            boot_nanos: clock::boot_nanos(),
            cpu_nanos: machine_cpu(&text("/proc/stat")).0,
            container_nanos: container_cpu(),
        }
    }
}

/// Nanoseconds of processor time of the container's group: all, user, system
/// (Documentation/admin-guide/cgroup-v2.rst, cpu.stat).
fn container_cpu() -> [u64; 3] {
    let table = text(format!("{CONTAINER}/cpu.stat"));
    ["usage_usec", "user_usec", "system_usec"].map(|name| field(&table, name).unwrap_or(0) * 1000)
}

/// Measures now.
///
/// # Errors
/// /sys cannot be read. Anything else that is missing counts as 0.
pub fn measure(oom_kills: u64, start: Start) -> Result<Statistics> {
    let group = |file: &str| text(format!("{CONTAINER}/{file}"));
    let (machine, online) = machine_cpu(&text("/proc/stat"));
    let cpu = container_cpu();
    let [container, container_user, container_system] =
        core::array::from_fn(|index| cpu[index].saturating_sub(start.container_nanos[index]));
    let meminfo = text("/proc/meminfo");
    let interfaces = network::names()?;
    Ok(Statistics {
        monotonic_nanos: clock::boot_nanos().saturating_sub(start.boot_nanos),
        cpu: CpuUsage {
            container,
            container_user,
            container_system,
            machine: machine.saturating_sub(start.cpu_nanos),
            online,
        },
        memory: MemoryUsage {
            container: number(&group("memory.current")),
            container_inactive_file: field(&group("memory.stat"), "inactive_file").unwrap_or(0),
            total: kibibytes(&meminfo, "MemTotal:"),
            available: kibibytes(&meminfo, "MemAvailable:"),
            tether: kibibytes(&text("/proc/self/status"), "VmRSS:"),
            oom_kills,
        },
        processes: u32::try_from(number(&group("pids.current"))).unwrap_or(u32::MAX),
        interfaces: interfaces.into_iter().map(interface).collect(),
        disks: disks(&text("/proc/diskstats")),
    })
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// A line `Name:   123 kB` of /proc/meminfo or /proc/PID/status, in bytes.
fn kibibytes(table: &str, name: &str) -> u64 {
    table
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .map_or(0, number)
        * 1024
}

/// Busy nanoseconds of all processors and how many there are, from /proc/stat (proc(5)), whose unit
/// is `USER_HZ`, 100 a second on x86-64.
fn machine_cpu(text: &str) -> (u64, u32) {
    const NANOS: u64 = 10_000_000;
    let mut busy = 0;
    let mut online = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("cpu") => {
                // user nice system idle iowait irq softirq steal; guest time is in user already.
                let ticks: Vec<u64> = words.take(8).map(number).collect();
                let idle: u64 = ticks.iter().skip(3).take(2).sum();
                busy = (ticks.iter().sum::<u64>() - idle) * NANOS;
            }
            Some(word) if word.starts_with("cpu") => online += 1,
            _ => {}
        }
    }
    (busy, online)
}

fn interface(name: String) -> InterfaceUsage {
    let count = |file: &str| number(&text(format!("/sys/class/net/{name}/statistics/{file}")));
    InterfaceUsage {
        received: count("rx_bytes"),
        received_packets: count("rx_packets"),
        receive_errors: count("rx_errors"),
        receive_dropped: count("rx_dropped"),
        sent: count("tx_bytes"),
        sent_packets: count("tx_packets"),
        send_errors: count("tx_errors"),
        send_dropped: count("tx_dropped"),
        name,
    }
}

/// /proc/diskstats (Documentation/admin-guide/iostats.rst): whole disks that were ever used. Its
/// sectors are of 512 bytes whatever the disk's are.
fn disks(text: &str) -> Vec<BlockDeviceUsage> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [
                major,
                minor,
                name,
                reads,
                _,
                sectors_read,
                _,
                writes,
                _,
                sectors_written,
                ..,
            ] = words[..]
            else {
                return None;
            };
            let pseudo = name.starts_with("loop") || name.starts_with("ram");
            if pseudo || !files::exists(format!("/sys/block/{name}")) {
                return None;
            }
            Some(BlockDeviceUsage {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                read: number(sectors_read) * 512,
                written: number(sectors_written) * 512,
                reads: number(reads),
                writes: number(writes),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_all_but_idle_and_iowait() {
        let text = "cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5\n";
        assert_eq!(machine_cpu(text), (171 * 10_000_000, 2));
        assert_eq!(machine_cpu(""), (0, 0));
    }

    #[test]
    fn kibibytes_become_bytes() {
        let text = "MemTotal:       16384 kB\nMemFree: 1 kB\n";
        assert_eq!(kibibytes(text, "MemTotal:"), 16384 * 1024);
        assert_eq!(kibibytes(text, "MemAvailable:"), 0);
    }
}
