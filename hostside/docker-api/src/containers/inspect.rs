//! `GET /containers/{id}/json`: everything known of a container.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use portlayer::spec::{LogSpec, MountSpec, NetworkAttachment, RestartPolicy};
use portlayer::{Container, ContainerId, ExecState, Health, State as ContainerState};
use serde_json::{Value, json};

use crate::body;
use crate::containers::create::Written;
use crate::containers::{describe, host_config, ports};
use crate::engine::Engine;
use crate::errors::Answer;
use crate::networks;
use crate::query::Query;
use crate::time::{self, NEVER};
use crate::version::ApiVersion;

/// `GET /containers/{id}/json` (Engine API 1.24).
///
/// # Errors
/// 404: no such container.
pub async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let container = engine.container(&id)?;
    let written = Written::of(&container.spec);
    let port_layer = engine.port_layer();
    let execs: Vec<String> = port_layer
        .execs(&container.id)
        .iter()
        .filter(|exec| !matches!(exec.state, ExecState::Ended { .. }))
        .map(|exec| exec.id.to_string())
        .collect();
    let log_path = port_layer.log_path(&container.id);
    let argv = &container.spec.process.argv;
    let mut config = written.config.clone();
    if config.hostname.is_empty() {
        config.hostname = container.id.short();
    }
    if version < ApiVersion::new(1, 44)
        && let Some(mac) = mac(&container)
    {
        config.mac_address = mac;
    }
    let mut answer = json!({
        "Id": container.id.to_string(),
        "Created": time::rfc3339(container.created),
        "Path": argv.first(),
        "Args": argv.get(1..).unwrap_or_default(),
        "State": state(&container),
        "Image": container.spec.image.id.to_string(),
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": log_path.map(|path| path.display().to_string()).unwrap_or_default(),
        "Name": format!("/{}", container.name),
        "RestartCount": container.restarts,
        "Driver": crate::system::STORAGE,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": host_config(&container, &written),
        "GraphDriver": { "Name": crate::system::STORAGE, "Data": {} },
        "Mounts": mounts(&container),
        "Config": config,
        "NetworkSettings": network_settings(&container, &written),
    });
    if query.flag("size") {
        let image = port_layer.image(&container.spec.image.id.to_string());
        answer["SizeRootFs"] = json!(image.map(|record| record.stored).unwrap_or(0));
    }
    Ok(body::ok(&answer))
}

/// `State` (`ContainerState`, Engine API 1.47).
pub fn state(container: &Container) -> Value {
    let state = &container.state;
    let (mut pid, mut code, mut error, mut out_of_memory) = (0, 0, String::new(), false);
    let (mut started, mut finished) = (NEVER.to_owned(), NEVER.to_owned());
    match state {
        ContainerState::Created {
            failed: Some(failure),
        } => {
            code = failure.status;
            error.clone_from(&failure.message);
        }
        ContainerState::Created { failed: None }
        | ContainerState::Starting
        | ContainerState::Removing => {}
        ContainerState::Running(run) | ContainerState::Paused(run) => {
            pid = run.pid;
            started = time::rfc3339(run.started);
        }
        ContainerState::Restarting { last: ended } | ContainerState::Exited(ended) => {
            code = ended.status;
            error.clone_from(&ended.error);
            out_of_memory = ended.out_of_memory;
            started = time::rfc3339(ended.started);
            finished = time::rfc3339(ended.finished);
        }
    }
    let mut value = json!({
        "Status": describe::state_word(state),
        "Running": matches!(
            state,
            ContainerState::Running(_) | ContainerState::Paused(_) | ContainerState::Restarting { .. }
        ),
        "Paused": matches!(state, ContainerState::Paused(_)),
        "Restarting": matches!(state, ContainerState::Restarting { .. }),
        "OOMKilled": out_of_memory,
        "Dead": false,
        "Pid": pid,
        "ExitCode": code,
        "Error": error,
        "StartedAt": started,
        "FinishedAt": finished,
    });
    if let Some(health) = describe::health(container) {
        value["Health"] = health_value(health);
    }
    value
}

fn health_value(health: &Health) -> Value {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|result| {
            json!({
                "Start": time::rfc3339(result.start),
                "End": time::rfc3339(result.end),
                "ExitCode": result.status,
                "Output": result.output,
            })
        })
        .collect();
    json!({
        "Status": describe::health_word(health.status),
        "FailingStreak": health.failing_streak,
        "Log": log,
    })
}

/// The host configuration as it holds now: limits always exist, whatever the client asked for.
pub fn host_config(container: &Container, written: &Written) -> host_config::HostConfig {
    let mut host_config = written.host_config.clone();
    host_config.memory = i64::try_from(container.memory.bytes()).unwrap_or(i64::MAX);
    let cpus = i64::from(container.cpus.count());
    if host_config.cpu_quota > 0 {
        let period = if host_config.cpu_period > 0 {
            host_config.cpu_period
        } else {
            100_000
        };
        host_config.cpu_quota = cpus * period;
    } else {
        host_config.nano_cpus = cpus * 1_000_000_000;
    }
    host_config.restart_policy = restart_policy(container.restart);
    host_config.log_config.kind = match container.spec.log {
        LogSpec::JsonFile { .. } => "json-file",
        LogSpec::None => "none",
    }
    .to_owned();
    if host_config.runtime.is_empty() {
        host_config.runtime = crate::system::RUNTIME.to_owned();
    }
    host_config
}

fn restart_policy(policy: RestartPolicy) -> host_config::RestartPolicy {
    let (name, count) = match policy {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure(most) => ("on-failure", most.map_or(0, |most| most.get().into())),
    };
    host_config::RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count: count,
    }
}

/// What is mounted (`MountPoint`, Engine API 1.47).
pub fn mounts(container: &Container) -> Vec<Value> {
    let mounts = container.spec.mounts.iter();
    mounts
        .map(|mount| match mount {
            MountSpec::Tmpfs {
                target, options, ..
            } => json!({
                "Type": "tmpfs",
                "Source": "",
                "Destination": target,
                "Mode": "",
                "RW": !options.split(',').any(|option| option == "ro"),
                "Propagation": "",
            }),
        })
        .collect()
}

fn mac(container: &Container) -> Option<String> {
    match &container.spec.network.attachment {
        NetworkAttachment::Default { mac, .. } => mac.map(String::from),
        NetworkAttachment::None => None,
    }
}

/// What its vNIC has: while it is on, or as it was chosen.
fn mac_now(container: &Container) -> Option<String> {
    if container.state.is_on() {
        container.mac_address().map(String::from)
    } else {
        mac(container)
    }
}

/// The name of the network it is in.
pub fn network_name(container: &Container) -> &'static str {
    match container.spec.network.attachment {
        NetworkAttachment::None => networks::NONE,
        NetworkAttachment::Default { .. } => networks::BRIDGE,
    }
}

/// Its place in a network (`EndpointSettings`, Engine API 1.47). Stable for a container.
pub fn endpoint_id(id: &ContainerId, network: &str) -> String {
    portlayer::image::digest::Digest::of(format!("{id} {network}").as_bytes()).hex()
}

/// Its networks by name.
pub fn networks(container: &Container) -> BTreeMap<&'static str, Value> {
    let name = network_name(container);
    let on = container.state.is_on();
    let endpoint = if on {
        endpoint_id(&container.id, name)
    } else {
        String::new()
    };
    let settings = json!({
        "IPAMConfig": null,
        "Links": null,
        "Aliases": null,
        "MacAddress": mac_now(container).unwrap_or_default(),
        "DriverOpts": null,
        "NetworkID": networks::id_of(name),
        "EndpointID": endpoint,
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": null,
    });
    BTreeMap::from([(name, settings)])
}

fn network_settings(container: &Container, written: &Written) -> Value {
    json!({
        "Bridge": "",
        "SandboxID": "",
        "SandboxKey": "",
        "Ports": ports::inspected(container, &written.config.exposed_ports),
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": "",
        "Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "MacAddress": mac_now(container).unwrap_or_default(),
        "Networks": networks(container),
    })
}
