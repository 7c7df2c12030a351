//! `GET /info`.

use std::time::SystemTime;

use axum::extract::State;
use serde_json::json;

use crate::body;
use crate::engine::Engine;
use crate::errors::Answer;
use crate::system::{RUNTIME, STORAGE, kernel};
use crate::time;
use crate::version::ENGINE;

/// Bytes as people read them.
fn human(bytes: u64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    if bytes >= 1 << 30 {
        format!("{:.2} GiB", bytes as f64 / GIB)
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

/// `GET /info` (Engine API 1.24). CPUs and memory are the VCH's, not the host's: what containers can have.
///
/// # Errors
/// 500: the image store cannot be read.
pub async fn info(State(engine): State<Engine>) -> Answer {
    let port_layer = engine.port_layer();
    let usage = port_layer.usage();
    let limits = usage.limits;
    let images = port_layer.images()?.len();
    let vch = engine.vch();
    let accelerated = port_layer.accelerated();
    let status = [
        ("Hypervisor driver", port_layer.hypervisor_name().to_owned()),
        ("VCH", vch.name.clone()),
        (
            "VCH memory",
            format!(
                "{} of {} in use",
                human(usage.memory),
                human(limits.memory.bytes())
            ),
        ),
        (
            "VCH CPUs",
            format!(
                "{} in use by VMs, at most {} each",
                usage.cpus,
                limits.cpus.count()
            ),
        ),
        (
            "Default container memory",
            human(limits.default_memory.bytes()),
        ),
        (
            "Default container CPUs",
            limits.default_cpus.count().to_string(),
        ),
        (
            "Acceleration",
            if accelerated {
                "hardware"
            } else {
                "none (emulation)"
            }
            .to_owned(),
        ),
    ];
    let mut warnings = Vec::new();
    if !accelerated {
        warnings.push("WARNING: containers run in emulation: this host has no working KVM");
    }
    let status = status.map(|(name, value)| [name.to_owned(), value]);
    let kernel = kernel();
    Ok(body::ok(&json!({
        "ID": vch.id,
        "Name": vch.name,
        "Containers": usage.running + usage.paused + usage.stopped,
        "ContainersRunning": usage.running,
        "ContainersPaused": usage.paused,
        "ContainersStopped": usage.stopped,
        "Images": images,
        "Driver": STORAGE,
        "DriverStatus": status,
        "Plugins": {
            "Volume": [],
            "Network": ["bridge", "null"],
            "Authorization": null,
            "Log": ["json-file", "none"],
        },
        "MemoryLimit": true,
        "SwapLimit": false,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": false,
        "CPUSet": false,
        "PidsLimit": false,
        "IPv4Forwarding": true,
        "BridgeNfIptables": true,
        "BridgeNfIp6tables": true,
        "Debug": false,
        "NFd": 0,
        "OomKillDisable": false,
        "NGoroutines": 0,
        "SystemTime": time::rfc3339(SystemTime::now()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "none",
        "CgroupVersion": "2",
        "NEventsListener": 0,
        "KernelVersion": kernel,
        "OperatingSystem": format!("containerVMs {} ({})", vch.version, port_layer.hypervisor_name()),
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": "x86_64",
        "IndexServerAddress": "",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": [],
            "IndexConfigs": {},
            "Mirrors": [],
        },
        "NCPU": limits.cpus.count(),
        "MemTotal": limits.memory.bytes(),
        "GenericResources": null,
        "DockerRootDir": vch.state.display().to_string(),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": ENGINE,
        "Runtimes": { RUNTIME: { "path": "" } },
        "DefaultRuntime": RUNTIME,
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "tether",
        "ContainerdCommit": { "ID": "", "Expected": "" },
        "RuncCommit": { "ID": "", "Expected": "" },
        "InitCommit": { "ID": "", "Expected": "" },
        "SecurityOptions": ["name=vm"],
        "CDISpecDirs": [],
        "Warnings": warnings,
    })))
}
