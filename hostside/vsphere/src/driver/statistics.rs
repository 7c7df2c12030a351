//! What a machine uses, from the server's performance counters.
//!
//! The server counts in intervals of 20 s and keeps them for an hour (API reference, `PerformanceManager`,
//! real-time statistics); nothing there counts from power on. So each question adds the intervals since the
//! last one to a total, which begins with the run, or with the hour before the first question.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hypervisor::{BlockStatistics, Cause, MachineId, NicStatistics, Statistics};

use super::{Core, cause, devices, place, record, view};
use crate::session::Error;
use crate::soap::Node;
use crate::types::{EntityMetric, MetricSeries, PerfMetricId, PerfQuerySpec, QueryPerf};

/// Seconds in an interval.
const INTERVAL: i32 = 20;
/// Intervals in an hour.
const INTERVALS_MAX: i32 = 180;

/// Counters by name: group, name, roll-up.
const CPU: &str = "cpu.used.summation";
const CONSUMED: &str = "mem.consumed.average";
const DISK_READ: &str = "virtualDisk.read.average";
const DISK_WRITTEN: &str = "virtualDisk.write.average";
const DISK_READS: &str = "virtualDisk.numberReadAveraged.average";
const DISK_WRITES: &str = "virtualDisk.numberWriteAveraged.average";
const NET_RECEIVED: &str = "net.bytesRx.average";
const NET_SENT: &str = "net.bytesTx.average";

/// The numbers a server has for counters.
#[derive(Debug, Default)]
pub struct Counters(HashMap<String, i32>);

/// What a run has used so far.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    run: Option<SystemTime>,
    /// The end of the last interval that is in it.
    until: Option<SystemTime>,
    /// By counter and instance.
    sums: HashMap<(String, String), u64>,
    /// The newest samples.
    newest: HashMap<(String, String), u64>,
}

impl Counters {
    fn read(property: &Node) -> Self {
        let one = |counter: &Node| {
            let key = counter.text_of("key")?.trim().parse().ok()?;
            let name = format!(
                "{}.{}.{}",
                counter.at(&["groupInfo", "key"])?.text,
                counter.at(&["nameInfo", "key"])?.text,
                counter.text_of("rollupType")?
            );
            Some((name, key))
        };
        Self(property.children.iter().filter_map(one).collect())
    }

    fn ids(&self) -> Vec<PerfMetricId> {
        let whole = [CPU, CONSUMED];
        let each = [
            DISK_READ,
            DISK_WRITTEN,
            DISK_READS,
            DISK_WRITES,
            NET_RECEIVED,
            NET_SENT,
        ];
        let id = |name: &str, instance: &str| {
            Some(PerfMetricId {
                counterId: *self.0.get(name)?,
                instance: instance.to_owned(),
            })
        };
        let whole = whole.iter().filter_map(|name| id(name, ""));
        whole
            .chain(each.iter().filter_map(|name| id(name, "*")))
            .collect()
    }

    fn name(&self, key: i32) -> Option<&str> {
        self.0
            .iter()
            .find_map(|(name, other)| (*other == key).then_some(name.as_str()))
    }
}

impl Totals {
    /// Adds what a query gave.
    fn add(&mut self, counters: &Counters, metrics: &[EntityMetric]) {
        for metric in metrics {
            let EntityMetric::PerfEntityMetric(metric) = metric else {
                continue;
            };
            let times: Vec<Option<SystemTime>> = metric
                .sampleInfo
                .iter()
                .map(|sample| sample.timestamp)
                .collect();
            let fresh = |at: usize| match (times.get(at).copied().flatten(), self.until) {
                (Some(time), Some(until)) => time > until,
                (Some(_), None) => true,
                (None, _) => false,
            };
            let fresh: Vec<bool> = (0..times.len()).map(fresh).collect();
            let newest = (0..times.len()).max_by_key(|at| times[*at]);
            for series in &metric.value {
                let MetricSeries::PerfMetricIntSeries(series) = series else {
                    continue;
                };
                let Some(name) = counters.name(series.id.counterId) else {
                    continue;
                };
                let key = (name.to_owned(), series.id.instance.clone());
                // -1 is how the server says that it has no sample.
                let value = |at: usize| {
                    series
                        .value
                        .get(at)
                        .map(|value| u64::try_from(*value).unwrap_or(0))
                };
                let sum: u64 = (0..times.len())
                    .filter(|at| fresh[*at])
                    .filter_map(value)
                    .sum();
                *self.sums.entry(key.clone()).or_default() += sum;
                if let Some(value) = newest.and_then(value) {
                    self.newest.insert(key, value);
                }
            }
            if let Some(last) = times.iter().flatten().max() {
                self.until = Some(self.until.map_or(*last, |until| until.max(*last)));
            }
        }
    }

    fn sum(&self, name: &str, instance: &str) -> u64 {
        let key = (name.to_owned(), instance.to_owned());
        self.sums.get(&key).copied().unwrap_or_default()
    }

    /// Bytes, of a counter in KiB/s.
    fn bytes(&self, name: &str, instance: &str) -> u64 {
        self.sum(name, instance) * 1024 * INTERVAL as u64
    }

    fn newest(&self, name: &str) -> u64 {
        let key = (name.to_owned(), String::new());
        self.newest.get(&key).copied().unwrap_or_default()
    }
}

impl Core {
    pub async fn statistics(self: Arc<Self>, id: &MachineId) -> Result<Statistics, Cause> {
        let (object, properties) = self.find(id)?;
        self.must_be_on(id, &properties)?;
        let record = self
            .record(&properties)
            .ok_or(Cause::NotFound { what: "machine" })?;
        let failed = |error| cause("the server does not say", error);
        let counters = self.counters().await.map_err(failed)?;
        let cell = self.cell(id);
        let mut totals = {
            let totals = cell
                .totals
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            totals.clone()
        };
        if totals.run != Some(record.started) {
            totals = Totals {
                run: Some(record.started),
                ..Totals::default()
            };
        }
        let hour = SystemTime::now() - Duration::from_secs(3600);
        let since = totals.until.unwrap_or(record.started).max(hour);
        let query = QueryPerf {
            _this: self
                .client
                .manager("performance manager", |content| &content.perfManager)
                .map_err(failed)?,
            querySpec: vec![PerfQuerySpec {
                entity: object,
                startTime: Some(since),
                endTime: None,
                maxSample: Some(INTERVALS_MAX),
                metricId: counters.ids(),
                intervalId: Some(INTERVAL),
                format: Some("normal".into()),
            }],
        };
        let metrics = self.client.call(&query).await.map_err(failed)?;
        totals.add(counters, &metrics);
        let statistics = self.sum_up(&totals, &record.spec, &properties);
        *cell
            .totals
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = totals;
        Ok(statistics)
    }

    fn sum_up(
        &self,
        totals: &Totals,
        spec: &hypervisor::MachineSpec,
        properties: &crate::property::Properties,
    ) -> Statistics {
        let entries = view::entries(properties);
        let table = entries
            .get(record::DISKS)
            .map(|text| devices::read_table(text))
            .unwrap_or_default();
        let disks = table.iter().map(|(target, serial)| {
            // The first SCSI controller's, which is the only one.
            let instance = format!("scsi0:{target}");
            BlockStatistics {
                serial: serial.clone(),
                read_bytes: totals.bytes(DISK_READ, &instance),
                written_bytes: totals.bytes(DISK_WRITTEN, &instance),
                reads: totals.sum(DISK_READS, &instance) * INTERVAL as u64,
                writes: totals.sum(DISK_WRITES, &instance) * INTERVAL as u64,
                flushes: 0,
            }
        });
        let nics = spec.nics.iter().filter_map(|nic| {
            let key = nic_key(properties, &nic.mac.to_string())?;
            Some(NicStatistics {
                mac: nic.mac,
                received_bytes: totals.bytes(NET_RECEIVED, &key),
                sent_bytes: totals.bytes(NET_SENT, &key),
            })
        });
        let consumed = totals.newest(CONSUMED) * 1024;
        Statistics {
            cpu_time: Duration::from_millis(totals.sum(CPU, "")),
            memory_given: spec.memory.bytes(),
            memory_resident: consumed,
            memory_private: consumed,
            disks: disks.collect(),
            nics: nics.collect(),
        }
    }

    async fn counters(&self) -> Result<&Counters, Error> {
        self.counters
            .get_or_try_init(|| async {
                let manager = self
                    .client
                    .manager("performance manager", |content| &content.perfManager)?;
                let found =
                    place::read(&self.client, place::of_one(&manager, &["perfCounter"])).await?;
                let property = found.first().and_then(|(_, all)| all.get("perfCounter"));
                Ok(property.map(Counters::read).unwrap_or_default())
            })
            .await
    }
}

/// The key of the vNIC with this address, by which counters know it.
fn nic_key(properties: &crate::property::Properties, mac: &str) -> Option<String> {
    let device = properties
        .get("config.hardware")?
        .children_named("device")
        .find(|device| {
            let found = device.text_of("macAddress").unwrap_or_default();
            found.eq_ignore_ascii_case(mac)
        })?;
    Some(device.text_of("key")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ManagedObject, PerfEntityMetric, PerfMetricIntSeries, PerfSampleInfo};
    use std::time::UNIX_EPOCH;

    fn answer(seconds: &[u64], values: &[i64]) -> Vec<EntityMetric> {
        let sample = |seconds: &u64| PerfSampleInfo {
            timestamp: Some(UNIX_EPOCH + Duration::from_secs(*seconds)),
            interval: INTERVAL,
        };
        vec![EntityMetric::from(PerfEntityMetric {
            entity: ManagedObject::default(),
            sampleInfo: seconds.iter().map(sample).collect(),
            value: vec![MetricSeries::from(PerfMetricIntSeries {
                id: PerfMetricId {
                    counterId: 5,
                    instance: String::new(),
                },
                value: values.to_vec(),
            })],
        })]
    }

    #[test]
    fn an_interval_counts_once_whatever_is_answered_again() {
        let counters = Counters(HashMap::from([(CPU.to_owned(), 5)]));
        let mut totals = Totals::default();
        totals.add(&counters, &answer(&[20, 40], &[100, 50]));
        assert_eq!(totals.sum(CPU, ""), 150);
        totals.add(&counters, &answer(&[40, 60, 80], &[50, 7, -1]));
        assert_eq!(totals.sum(CPU, ""), 157);
        totals.add(&counters, &answer(&[], &[]));
        assert_eq!(totals.sum(CPU, ""), 157);
        // The newest first, as some servers answer.
        totals.add(&counters, &answer(&[120, 100], &[3, 4]));
        assert_eq!((totals.sum(CPU, ""), totals.newest(CPU)), (164, 3));
    }
}
