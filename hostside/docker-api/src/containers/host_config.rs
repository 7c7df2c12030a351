//! A container's place on its host (`HostConfig` of the Engine API).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::json::{Words, engine_object};

/// What Docker gives /dev/shm unless told otherwise, in bytes; tether mounts it so by itself.
pub const SHM_SIZE: i64 = 64 << 20;

engine_object! {
    /// A log driver and its options (`LogConfig`, Engine API 1.47).
    LogConfig {
        /// `json-file` or `none`; empty is the former.
        #[serde(rename = "Type")]
        kind: String,
        /// Its options.
        config: BTreeMap<String, String>,
    }
}

engine_object! {
    /// Where on the host a port is reached (`PortBinding`, Engine API 1.47).
    PortBinding {
        /// Address; empty is all of them.
        host_ip: String,
        /// Port or `FIRST-LAST`; empty is any.
        host_port: String,
    }
}

engine_object! {
    /// When a container is started again (`RestartPolicy`, Engine API 1.47).
    RestartPolicy {
        /// `no`, `always`, `unless-stopped` or `on-failure`; empty is `no`.
        name: String,
        /// How often in a row, for `on-failure`; 0 is without bound.
        maximum_retry_count: i64,
    }
}

engine_object! {
    /// One `setrlimit(2)` (`Ulimit`, Engine API 1.47).
    Ulimit {
        /// As ulimit(1) calls it.
        name: String,
        /// -1 is no limit.
        soft: i64,
        /// -1 is no limit.
        hard: i64,
    }
}

engine_object! {
    /// Something to be mounted (`Mount`, Engine API 1.47).
    Mount {
        /// Path in the container.
        target: String,
        /// What is mounted there.
        source: String,
        /// `bind`, `volume`, `tmpfs`, ...
        #[serde(rename = "Type")]
        kind: String,
        /// Whether it can only be read.
        read_only: bool,
        /// For `tmpfs`.
        #[serde(skip_serializing_if = "Option::is_none")]
        tmpfs_options: Option<TmpfsOptions>,
    }
}

engine_object! {
    /// A tmpfs (`Mount.TmpfsOptions`, Engine API 1.47).
    TmpfsOptions {
        /// Bytes; 0 is half of memory.
        size_bytes: u64,
        /// Mode of its root; 0 is 01777.
        mode: u32,
        /// Further options of mount(8), with or without values; since 1.46.
        options: Vec<Vec<String>>,
    }
}

engine_object! {
    /// A container's place on its host (`HostConfig`, Engine API 1.47). Members without a word of their own
    /// mean nothing for a VM: they are kept to be shown, and `create` says so where it matters.
    HostConfig {
        /// `SOURCE:TARGET[:OPTIONS]`.
        binds: Option<Vec<String>>,
        /// For the command line client.
        #[serde(rename = "ContainerIDFile")]
        container_id_file: String,
        /// Where output is kept.
        log_config: LogConfig,
        /// `default`, `bridge`, `none`, or what is not there yet.
        network_mode: String,
        /// `PORT/PROTOCOL` and where each is reached.
        port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
        /// When it is started again.
        restart_policy: RestartPolicy,
        /// Whether it goes away when it ends.
        auto_remove: bool,
        /// Docker only.
        volume_driver: String,
        /// Containers whose volumes are mounted.
        volumes_from: Option<Vec<String>>,
        /// Lines and characters a line of the terminal at first.
        console_size: [u32; 2],
        /// Free-form.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        annotations: BTreeMap<String, String>,
        /// A VM has them all.
        cap_add: Option<Words>,
        /// A VM has them all.
        cap_drop: Option<Words>,
        /// A VM has its own.
        cgroupns_mode: String,
        /// Name servers.
        dns: Vec<String>,
        /// Options of resolv.conf(5).
        dns_options: Vec<String>,
        /// Search list of resolv.conf(5).
        dns_search: Vec<String>,
        /// `NAME:ADDRESS`.
        extra_hosts: Option<Vec<String>>,
        /// Further groups.
        group_add: Option<Vec<String>>,
        /// A VM has its own.
        ipc_mode: String,
        /// Docker only.
        cgroup: String,
        /// Legacy links.
        links: Option<Vec<String>>,
        /// A VM has its own.
        oom_score_adj: i64,
        /// `host` is the VM's.
        pid_mode: String,
        /// A VM is.
        privileged: bool,
        /// Whether exposed ports are published too.
        publish_all_ports: bool,
        /// Whether the root can only be read.
        readonly_rootfs: bool,
        /// A VM needs none.
        security_opt: Option<Vec<String>>,
        /// Docker only.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        storage_opt: BTreeMap<String, String>,
        /// Path and options of each tmpfs.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        tmpfs: BTreeMap<String, String>,
        /// A VM has its own.
        #[serde(rename = "UTSMode")]
        uts_mode: String,
        /// A VM has its own.
        userns_mode: String,
        /// Bytes of /dev/shm.
        shm_size: i64,
        /// Kernel parameters.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        sysctls: BTreeMap<String, String>,
        /// What runs it; there is one.
        #[serde(skip_serializing_if = "String::is_empty")]
        runtime: String,
        /// Windows only.
        isolation: String,
        /// Relative weight.
        cpu_shares: i64,
        /// Bytes of the VM's memory.
        memory: i64,
        /// Billionths of a CPU.
        nano_cpus: i64,
        /// Docker only.
        cgroup_parent: String,
        /// Relative weight.
        blkio_weight: u16,
        /// Limits by device.
        blkio_weight_device: Option<Value>,
        /// Limits by device.
        blkio_device_read_bps: Option<Value>,
        /// Limits by device.
        blkio_device_write_bps: Option<Value>,
        /// Limits by device.
        #[serde(rename = "BlkioDeviceReadIOps")]
        blkio_device_read_iops: Option<Value>,
        /// Limits by device.
        #[serde(rename = "BlkioDeviceWriteIOps")]
        blkio_device_write_iops: Option<Value>,
        /// Microseconds.
        cpu_period: i64,
        /// Microseconds in a period.
        cpu_quota: i64,
        /// Microseconds.
        cpu_realtime_period: i64,
        /// Microseconds.
        cpu_realtime_runtime: i64,
        /// Which of the host's CPUs.
        cpuset_cpus: String,
        /// Which of the host's memory nodes.
        cpuset_mems: String,
        /// Devices of the host.
        devices: Option<Vec<Value>>,
        /// Rules for devices.
        device_cgroup_rules: Option<Vec<String>>,
        /// Devices by kind.
        device_requests: Option<Vec<Value>>,
        /// Bytes, soft.
        memory_reservation: i64,
        /// Bytes of memory and swap.
        memory_swap: i64,
        /// 0 to 100.
        memory_swappiness: Option<i64>,
        /// Whether the kernel may not kill.
        oom_kill_disable: Option<bool>,
        /// Most tasks.
        pids_limit: Option<i64>,
        /// Limits of its processes.
        ulimits: Vec<Ulimit>,
        /// Virtual CPUs (Windows' word for it).
        cpu_count: i64,
        /// Windows only.
        cpu_percent: i64,
        /// Windows only.
        #[serde(rename = "IOMaximumIOps")]
        io_maximum_iops: u64,
        /// Windows only.
        #[serde(rename = "IOMaximumBandwidth")]
        io_maximum_bandwidth: u64,
        /// What is mounted.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<Mount>,
        /// Hidden paths.
        masked_paths: Option<Vec<String>>,
        /// Paths that can only be read.
        readonly_paths: Option<Vec<String>>,
        /// Run a small init as process 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        init: Option<bool>,
    }
}
