//! `GET /containers/{id}/stats`.

use std::io;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, State};
use futures_util::stream;
use portlayer::{Container, ContainerId, Statistics};
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::body;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::time::{self, NEVER};
use crate::version::ApiVersion;

/// How often a stream tells; clients compute rates from two.
const PERIOD: Duration = Duration::from_secs(1);

/// `GET /containers/{id}/stats` (Engine API 1.24; `one-shot` since 1.41).
///
/// # Errors
/// 404: no such container.
pub async fn stats(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let container = engine.container(&name)?;
    let id = container.id;
    let one_shot = version >= ApiVersion::new(1, 41) && query.flag("one-shot");
    let mut sampler = Sampler {
        engine: engine.clone(),
        id,
        before: None,
    };
    if !query.flag_or("stream", true) {
        if !one_shot && container.state.is_on() {
            sampler.sample().await?;
            tokio::time::sleep(PERIOD).await;
        }
        return Ok(body::ok(&sampler.sample().await?));
    }
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ending = Box::pin(engine.ending());
    let lines = stream::unfold(
        (sampler, ticks, ending),
        |(mut sampler, mut ticks, mut ending)| async move {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut ending => return None,
            }
            // A container that is gone is the end.
            let value = sampler.sample().await.ok()?;
            let line = body::line(&value);
            Some((Ok::<_, io::Error>(line), (sampler, ticks, ending)))
        },
    );
    Ok(body::streamed("application/json", lines))
}

struct Sample {
    read: SystemTime,
    statistics: Statistics,
}

struct Sampler {
    engine: Engine,
    id: ContainerId,
    before: Option<Sample>,
}

impl Sampler {
    /// What is used now. A container that does not run uses nothing.
    async fn sample(&mut self) -> Result<Value, ApiError> {
        let port_layer = self.engine.port_layer();
        let container = port_layer.inspect(&self.id)?;
        if !container.state.is_on() {
            self.before = None;
            return Ok(value(&container, None, None));
        }
        let Ok(statistics) = port_layer.statistics(&self.id).await else {
            // It ended just now, or is paused.
            return Ok(value(&container, None, None));
        };
        let now = Sample {
            read: SystemTime::now(),
            statistics,
        };
        let value = value(&container, Some(&now), self.before.as_ref());
        self.before = Some(now);
        Ok(value)
    }
}

/// `Stats` (Engine API 1.47).
fn value(container: &Container, now: Option<&Sample>, before: Option<&Sample>) -> Value {
    let read = |sample: Option<&Sample>| {
        sample.map_or(NEVER.to_owned(), |sample| time::rfc3339(sample.read))
    };
    let mut value = json!({
        "read": read(now),
        "preread": read(before),
        "pids_stats": {},
        "blkio_stats": blkio(now),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": {},
        "name": format!("/{}", container.name),
        "id": container.id.to_string(),
    });
    let Some(sample) = now else {
        return value;
    };
    let statistics = &sample.statistics;
    value["pids_stats"] = json!({ "current": statistics.processes });
    let memory = &statistics.memory;
    value["memory_stats"] = json!({
        "usage": memory.container,
        "stats": { "inactive_file": memory.container_inactive_file },
        "limit": container.memory.bytes(),
    });
    let networks: Map<String, Value> = statistics
        .interfaces
        .iter()
        .map(|interface| {
            let usage = json!({
                "rx_bytes": interface.received,
                "rx_packets": interface.received_packets,
                "rx_errors": interface.receive_errors,
                "rx_dropped": interface.receive_dropped,
                "tx_bytes": interface.sent,
                "tx_packets": interface.sent_packets,
                "tx_errors": interface.send_errors,
                "tx_dropped": interface.send_dropped,
            });
            (interface.name.clone(), usage)
        })
        .collect();
    if !networks.is_empty() {
        value["networks"] = Value::Object(networks);
    }
    value
}

/// Processor time in nanoseconds. The system's is that of all processors, idle or not, so that their
/// quotient is the part of the machine that the container used.
fn cpu(sample: Option<&Sample>) -> Value {
    let throttling = json!({ "periods": 0, "throttled_periods": 0, "throttled_time": 0 });
    let Some(Sample { statistics, .. }) = sample else {
        return json!({
            "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 },
            "throttling_data": throttling,
        });
    };
    let cpu = &statistics.cpu;
    json!({
        "cpu_usage": {
            "total_usage": cpu.container,
            "usage_in_kernelmode": cpu.container_system,
            "usage_in_usermode": cpu.container_user,
        },
        "system_cpu_usage": statistics.monotonic_nanos.saturating_mul(cpu.online.into()),
        "online_cpus": cpu.online,
        "throttling_data": throttling,
    })
}

fn blkio(sample: Option<&Sample>) -> Value {
    let entries: Option<Vec<Value>> = sample.map(|sample| {
        let disks = sample.statistics.disks.iter();
        disks
            .flat_map(|disk| {
                [("read", disk.read), ("write", disk.written)].map(|(op, bytes)| {
                    json!({ "major": disk.major, "minor": disk.minor, "op": op, "value": bytes })
                })
            })
            .collect()
    });
    json!({
        "io_service_bytes_recursive": entries,
        "io_serviced_recursive": null,
        "io_queue_recursive": null,
        "io_service_time_recursive": null,
        "io_wait_time_recursive": null,
        "io_merged_recursive": null,
        "io_time_recursive": null,
        "sectors_recursive": null,
    })
}
