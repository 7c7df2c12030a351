//! What is counted, and the text format in which Prometheus reads it
//! (prometheus.io, exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use portlayer::PortLayer;

/// Upper bounds of the latency histogram, seconds.
const BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

#[derive(Debug, Default)]
struct Latency {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

/// Requests answered, by method and route and by status.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    by_status: BTreeMap<(String, u16), u64>,
    latency: BTreeMap<String, Latency>,
}

impl Metrics {
    /// Counts a request to a route (its pattern, never a path: ids would make them endless). What is
    /// measured is the time until the answer's head.
    pub fn count(&self, route: &str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests
            .by_status
            .entry((route.to_owned(), status))
            .or_default() += 1;
        let latency = requests.latency.entry(route.to_owned()).or_default();
        let seconds = took.as_secs_f64();
        latency.count += 1;
        latency.seconds += seconds;
        for (bucket, bound) in latency.buckets.iter_mut().zip(BOUNDS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
    }

    /// All of it as text.
    pub fn text(&self, port_layer: &PortLayer) -> String {
        let mut text = String::new();
        containers(&mut text, port_layer);
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        head(
            &mut text,
            "vch_requests_total",
            "counter",
            "Requests answered.",
        );
        for ((route, status), count) in &requests.by_status {
            let _ = writeln!(
                text,
                "vch_requests_total{{route=\"{}\",status=\"{status}\"}} {count}",
                escape(route)
            );
        }
        head(
            &mut text,
            "vch_request_seconds",
            "histogram",
            "Time until an answer's head.",
        );
        for (route, latency) in &requests.latency {
            let route = escape(route);
            for (bound, count) in BOUNDS.iter().zip(latency.buckets) {
                let _ = writeln!(
                    text,
                    "vch_request_seconds_bucket{{route=\"{route}\",le=\"{bound}\"}} {count}"
                );
            }
            let _ = writeln!(
                text,
                "vch_request_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {0}\n\
                 vch_request_seconds_sum{{route=\"{route}\"}} {1}\n\
                 vch_request_seconds_count{{route=\"{route}\"}} {0}",
                latency.count, latency.seconds
            );
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn containers(text: &mut String, port_layer: &PortLayer) {
    let usage = port_layer.usage();
    head(text, "vch_containers", "gauge", "Containers by state.");
    for (state, count) in [
        ("running", usage.running),
        ("paused", usage.paused),
        ("stopped", usage.stopped),
    ] {
        let _ = writeln!(text, "vch_containers{{state=\"{state}\"}} {count}");
    }
    let gauges = [
        (
            "vch_memory_bytes",
            "Memory of VMs that are on.",
            usage.memory,
        ),
        (
            "vch_memory_limit_bytes",
            "Memory of the VCH.",
            usage.limits.memory.bytes(),
        ),
        (
            "vch_cpus",
            "Virtual CPUs of VMs that are on.",
            usage.cpus.into(),
        ),
        (
            "vch_cpus_limit",
            "Virtual CPUs of the VCH.",
            usage.limits.cpus.count().into(),
        ),
    ];
    for (name, help, value) in gauges {
        head(text, name, "gauge", help);
        let _ = writeln!(text, "{name} {value}");
    }
    if let Some(resident) = resident() {
        let name = "process_resident_memory_bytes";
        head(
            text,
            name,
            "gauge",
            "Resident memory of the endpoint itself.",
        );
        let _ = writeln!(text, "{name} {resident}");
    }
}

/// Resident memory of this process in bytes (proc(5), `statm`: pages).
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_below_them() {
        let metrics = Metrics::default();
        metrics.count("GET /info", 200, Duration::from_millis(2));
        metrics.count("GET /info", 200, Duration::from_millis(200));
        metrics.count("GET /info", 500, Duration::from_secs(60));
        let requests = metrics.requests.lock().unwrap();
        assert_eq!(requests.by_status[&("GET /info".to_owned(), 200)], 2);
        let latency = &requests.latency["GET /info"];
        assert_eq!(latency.count, 3);
        assert_eq!(latency.buckets, [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn a_label_is_escaped() {
        assert_eq!(escape("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }
}
