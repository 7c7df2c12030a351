//! `POST /containers/create`: from what a client asks for to a [`ContainerSpec`].

use std::num::NonZeroU32;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use portlayer::image::store::ImageRecord;
use portlayer::spec::{
    Access, AtEnd, ContainerSpec, Cpus, ImageChoice, LogSpec, Memory, PidNamespace, ProcessSpec,
    ResourceLimit, RestartPolicy, Stdin, Stdio, StopSpec, TerminalSize, User,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::body;
use crate::containers::config::Config;
use crate::containers::host_config::{self, HostConfig, LogConfig, SHM_SIZE};
use crate::containers::mounts;
use crate::containers::network::{Networking, network};
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::version::ApiVersion;
use crate::{signals, ulimits};

/// Docker's `--stop-timeout`, seconds.
const STOP_TIMEOUT: i64 = 10;

/// The body of a create: a [`Config`] with two more members (Engine API 1.47).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CreateRequest {
    #[serde(flatten)]
    config: Config,
    #[serde(rename = "HostConfig", deserialize_with = "crate::json::or_default")]
    host_config: HostConfig,
    #[serde(
        rename = "NetworkingConfig",
        deserialize_with = "crate::json::or_default"
    )]
    networking: Networking,
}

/// What the endpoint writes down with a container, to answer `inspect` word by word.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// As the client gave it, merged with the image's.
    pub config: Config,
    /// As the client gave it.
    pub host_config: HostConfig,
}

impl Written {
    /// What was written down with a container. One of another endpoint has nothing.
    pub fn of(spec: &ContainerSpec) -> Self {
        Self::deserialize(&spec.endpoint).unwrap_or_default()
    }
}

/// `POST /containers/create` (Engine API 1.24).
///
/// # Errors
/// 400: it makes no sense. 404: no such image. 409: the name is taken. 501: what a VM or this VCH cannot.
pub async fn create(
    State(engine): State<Engine>,
    version: ApiVersion,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let request: CreateRequest = body::read_json(&headers, body)
        .await?
        .ok_or_else(|| ApiError::invalid("invalid JSON: got EOF while reading request body"))?;
    let platform = query.text("platform");
    if version >= ApiVersion::new(1, 41)
        && !platform.is_empty()
        && !matches!(platform, "linux" | "linux/amd64" | "linux/x86_64" | "amd64")
    {
        return Err(ApiError::not_found(format!(
            "image with reference {} was found but does not match the specified platform: wanted {platform}, actual: linux/amd64",
            request.config.image
        )));
    }
    let image = engine.port_layer().image(&request.config.image)?;
    let (mut spec, mut warnings) = plan(request, &image, version)?;
    let name = query.text("name").trim_start_matches('/');
    if query.has("name") && !query.text("name").is_empty() {
        spec.name = Some(name.parse()?);
    }
    let port_layer = engine.port_layer().clone();
    let id = to_the_end(async move { Ok(port_layer.create(spec).await?) }).await?;
    warnings.dedup();
    let answer = json!({ "Id": id.to_string(), "Warnings": warnings });
    Ok(body::json(StatusCode::CREATED, &answer))
}

/// The specification of a container, and what there is to be said about it.
///
/// # Errors
/// 400 or 501.
pub fn plan(
    request: CreateRequest,
    image: &ImageRecord,
    version: ApiVersion,
) -> Result<(ContainerSpec, Vec<String>), ApiError> {
    let CreateRequest {
        mut config,
        mut host_config,
        networking,
    } = request;
    if version < ApiVersion::new(1, 25) {
        // There the client removes it.
        host_config.auto_remove = false;
    }
    if version < ApiVersion::new(1, 42) {
        host_config.console_size = [0, 0];
    }
    config.merge(&Config::of_image(&image.config.config));
    config.check()?;
    let mut warnings = Vec::new();
    refuse(&host_config)?;
    remark(&host_config, &mut warnings);
    let cwd = config.directory()?;
    let network = network(&config, &mut host_config, &networking)?;
    let spec = ContainerSpec {
        name: None,
        image: ImageChoice {
            id: image.id,
            reference: config.image.clone(),
        },
        process: ProcessSpec {
            argv: config.argv()?,
            env: config.environment(),
            cwd,
            user: User {
                user: config.user.clone(),
                groups: host_config.group_add.clone().unwrap_or_default(),
            },
            stdio: stdio(config.tty, host_config.console_size),
            stdin: match (config.open_stdin, config.stdin_once) {
                (false, _) => Stdin::Closed,
                // A client that leaves a terminal does not end it, as in dockerd.
                (true, once) if config.tty || !once => Stdin::Open,
                (true, _) => Stdin::Once,
            },
            limits: limits(&host_config)?,
        },
        pid_namespace: match host_config.pid_mode.as_str() {
            "" | "private" => PidNamespace::Private,
            "host" => PidNamespace::Machine,
            other => {
                return Err(ApiError::unsupported(format!(
                    "sharing a pid namespace ({other})"
                )));
            }
        },
        init: host_config.init.unwrap_or(false),
        hostname: hostname(&config.hostname)?,
        domainname: config.domainname.clone(),
        memory: memory(host_config.memory)?,
        cpus: cpus(&host_config, &mut warnings)?,
        root_access: if host_config.readonly_rootfs {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        },
        mounts: mounts::all(&host_config)?,
        network,
        stop: StopSpec {
            signal: match config.stop_signal.as_str() {
                "" => signals::TERM,
                name => signals::parse(name)?,
            },
            grace: grace(config.stop_timeout.unwrap_or(STOP_TIMEOUT)),
        },
        restart: restart(&host_config.restart_policy)?,
        at_end: if host_config.auto_remove {
            AtEnd::Remove
        } else {
            AtEnd::Keep
        },
        health: config.health()?,
        log: log(&host_config.log_config)?,
        labels: config.labels.clone(),
        endpoint: serde_json::Value::Null,
    };
    if host_config.auto_remove && spec.restart != RestartPolicy::No {
        return Err(ApiError::invalid(
            "can't create 'AutoRemove' container with restart policy",
        ));
    }
    if host_config.shm_size == 0 {
        host_config.shm_size = SHM_SIZE;
    }
    let written = Written {
        config,
        host_config,
    };
    let endpoint = serde_json::to_value(&written)
        .map_err(|error| ApiError::internal(format!("cannot write the configuration: {error}")))?;
    Ok((ContainerSpec { endpoint, ..spec }, warnings))
}

/// A terminal of this first size, or pipes.
pub fn stdio(tty: bool, [rows, columns]: [u32; 2]) -> Stdio {
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    if tty {
        Stdio::Terminal(TerminalSize {
            rows: cut(rows),
            columns: cut(columns),
        })
    } else {
        Stdio::Pipes
    }
}

/// Seconds to stop in; negative is for ever.
pub fn grace(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

/// What a VM or this VCH cannot do, refused by name.
fn refuse(host_config: &HostConfig) -> Result<(), ApiError> {
    let some = |list: &Option<Vec<serde_json::Value>>| list.iter().flatten().next().is_some();
    let foreign = |mode: &str| mode.starts_with("container:");
    let refused = [
        (
            some(&host_config.devices),
            "passing on the host's devices (--device)",
        ),
        (
            some(&host_config.device_requests),
            "passing on the host's devices (--gpus)",
        ),
        (
            !host_config.sysctls.is_empty(),
            "setting kernel parameters (--sysctl)",
        ),
        (
            !host_config.storage_opt.is_empty(),
            "storage options (--storage-opt)",
        ),
        (
            host_config.links.iter().flatten().next().is_some(),
            "links (--link)",
        ),
        (
            foreign(&host_config.ipc_mode),
            "sharing another container's IPC namespace",
        ),
    ];
    if let Some((_, what)) = refused.iter().find(|(wanted, _)| *wanted) {
        return Err(ApiError::unsupported(what));
    }
    if !matches!(host_config.runtime.as_str(), "" | crate::system::RUNTIME) {
        return Err(ApiError::invalid(format!(
            "unknown or invalid runtime name: {}",
            host_config.runtime
        )));
    }
    if !matches!(host_config.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!(
            "invalid isolation '{}' on linux",
            host_config.isolation
        )));
    }
    Ok(())
}

/// What is accepted though it means nothing, or something else, for a VM.
fn remark(host_config: &HostConfig, warnings: &mut Vec<String>) {
    let named =
        |words: &Option<crate::json::Words>| words.as_ref().is_some_and(|w| !w.0.is_empty());
    let mut say = |when: bool, text: &str| {
        if when {
            warnings.push(text.to_owned());
        }
    };
    say(
        host_config.privileged,
        "The container is a VM of its own: --privileged changes nothing, it is root of its own kernel and of nothing else.",
    );
    say(
        named(&host_config.cap_add) || named(&host_config.cap_drop),
        "The container is a VM of its own: capabilities are not limited, --cap-add and --cap-drop change nothing.",
    );
    say(
        host_config.security_opt.iter().flatten().next().is_some(),
        "The container is a VM of its own: --security-opt changes nothing.",
    );
    let own = [
        &host_config.ipc_mode,
        &host_config.uts_mode,
        &host_config.userns_mode,
        &host_config.cgroupns_mode,
    ];
    say(
        own.iter().any(|mode| mode.as_str() == "host"),
        "The container is a VM of its own: a namespace of the host is the VM's.",
    );
    let ignored = [
        (host_config.cpu_shares != 0, "CpuShares"),
        (!host_config.cpuset_cpus.is_empty(), "CpusetCpus"),
        (!host_config.cpuset_mems.is_empty(), "CpusetMems"),
        (host_config.blkio_weight != 0, "BlkioWeight"),
        (host_config.memory_reservation != 0, "MemoryReservation"),
        (
            host_config.memory_swap > 0 && host_config.memory_swap != host_config.memory,
            "MemorySwap",
        ),
        (host_config.oom_kill_disable == Some(true), "OomKillDisable"),
        (
            host_config.pids_limit.is_some_and(|limit| limit > 0),
            "PidsLimit",
        ),
        (host_config.cpu_realtime_runtime != 0, "CpuRealtimeRuntime"),
        (!host_config.cgroup_parent.is_empty(), "CgroupParent"),
        (host_config.oom_score_adj != 0, "OomScoreAdj"),
    ];
    for (set, name) in ignored {
        say(
            set,
            &format!("{name} is not applied to a VM and was discarded."),
        );
    }
}

/// Memory of the VM; 0 is the VCH's default.
///
/// # Errors
/// 400: negative, or less than a VM starts in.
pub fn memory(bytes: i64) -> Result<Option<Memory>, ApiError> {
    if bytes == 0 {
        return Ok(None);
    }
    let memory = u64::try_from(bytes).ok().map(Memory::from_bytes);
    match memory {
        Some(Ok(memory)) => Ok(Some(memory)),
        _ => Err(ApiError::invalid(format!(
            "Minimum memory limit allowed is {}MB: the container is a VM",
            Memory::MIN.mib()
        ))),
    }
}

/// Virtual CPUs of the VM, a whole number of them.
///
/// # Errors
/// 400: negative, or too many.
pub fn cpus(
    host_config: &HostConfig,
    warnings: &mut Vec<String>,
) -> Result<Option<Cpus>, ApiError> {
    const NANO: i64 = 1_000_000_000;
    let HostConfig {
        nano_cpus,
        cpu_quota,
        cpu_period,
        cpu_count,
        ..
    } = host_config;
    if *nano_cpus < 0 {
        return Err(ApiError::invalid("NanoCPUs cannot be negative"));
    }
    if *nano_cpus > 0 && *cpu_quota > 0 {
        return Err(ApiError::invalid(
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set.",
        ));
    }
    if *nano_cpus > 0 && *cpu_period > 0 {
        return Err(ApiError::invalid(
            "Conflicting options: Nano CPUs and CPU Period cannot both be set.",
        ));
    }
    let period = if *cpu_period > 0 {
        *cpu_period
    } else {
        100_000
    };
    let (count, exact) = if *nano_cpus > 0 {
        whole(*nano_cpus, NANO)
    } else if *cpu_quota > 0 {
        whole(*cpu_quota, period)
    } else if *cpu_count > 0 {
        (*cpu_count, true)
    } else {
        return Ok(None);
    };
    if !exact {
        warnings.push(format!(
            "A VM has whole CPUs: the container gets {count} instead of the fraction asked for."
        ));
    }
    let cpus = u32::try_from(count).map(Cpus::new);
    match cpus {
        Ok(Ok(cpus)) => Ok(Some(cpus)),
        _ => Err(ApiError::invalid(format!(
            "Range of CPUs is from 1 to {}: a VM has no more",
            Cpus::MAX
        ))),
    }
}

/// How many whole ones a positive fraction takes, and whether it is a whole number.
fn whole(parts: i64, one: i64) -> (i64, bool) {
    let exact = parts % one == 0;
    (parts / one + i64::from(!exact), exact)
}

fn limits(host_config: &HostConfig) -> Result<Vec<ResourceLimit>, ApiError> {
    let limit = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let limits = host_config.ulimits.iter().map(|ulimit| {
        let number = ulimits::NAMES.iter().position(|name| *name == ulimit.name);
        let number = number.and_then(|number| u8::try_from(number).ok());
        let resource = number
            .ok_or_else(|| ApiError::invalid(format!("invalid ulimit type: {}", ulimit.name)))?;
        let (soft, hard) = (limit(ulimit.soft), limit(ulimit.hard));
        if soft > hard {
            return Err(ApiError::invalid(format!(
                "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                ulimit.soft, ulimit.hard
            )));
        }
        Ok(ResourceLimit {
            resource,
            soft,
            hard,
        })
    });
    limits.collect()
}

fn hostname(name: &str) -> Result<Option<String>, ApiError> {
    let good = name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    match name {
        "" => Ok(None),
        name if good => Ok(Some(name.to_owned())),
        name => Err(ApiError::invalid(format!(
            "invalid hostname format: {name}"
        ))),
    }
}

/// The Engine's `ValidateRestartPolicy`, and its meaning.
///
/// # Errors
/// 400.
pub fn restart(policy: &host_config::RestartPolicy) -> Result<RestartPolicy, ApiError> {
    let bad = |why: &str| Err(ApiError::invalid(format!("invalid restart policy: {why}")));
    let count = policy.maximum_retry_count;
    let plain = match policy.name.as_str() {
        "" | "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        "unless-stopped" => RestartPolicy::UnlessStopped,
        "on-failure" => {
            let Ok(count) = u32::try_from(count) else {
                return bad("maximum retry count cannot be negative");
            };
            return Ok(RestartPolicy::OnFailure(NonZeroU32::new(count)));
        }
        other => {
            return bad(&format!(
                "unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
            ));
        }
    };
    if count != 0 && !policy.name.is_empty() {
        return bad("maximum retry count can only be used with 'on-failure'");
    }
    Ok(plain)
}

/// Where output is kept. As many files and as large ones as Docker's `json-file` keeps by default: one,
/// without bound.
fn log(log: &LogConfig) -> Result<LogSpec, ApiError> {
    match log.kind.as_str() {
        "" | "json-file" => {}
        "none" => return Ok(LogSpec::None),
        other => {
            return Err(ApiError::invalid(format!(
                "logger: no log driver named '{other}' is registered"
            )));
        }
    }
    let mut max_size = None;
    let mut max_files = NonZeroU32::MIN;
    for (name, value) in &log.config {
        match name.as_str() {
            "max-size" if value == "-1" => {}
            "max-size" => {
                max_size = Some(bytes(value).filter(|size| *size > 0).ok_or_else(|| {
                    ApiError::invalid(format!("invalid value for max-size: {value}"))
                })?);
            }
            "max-file" => {
                max_files = value
                    .parse()
                    .map_err(|_| ApiError::invalid("max-file cannot be less than 1"))?;
            }
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" | "compress" | "mode"
            | "max-buffer-size" => {}
            other => {
                return Err(ApiError::invalid(format!(
                    "unknown log opt '{other}' for json-file log driver"
                )));
            }
        }
    }
    if max_files > NonZeroU32::MIN && max_size.is_none() {
        return Err(ApiError::invalid(
            "max-size must be set when max-file is greater than 1",
        ));
    }
    Ok(LogSpec::JsonFile {
        max_size,
        max_files,
    })
}

/// A size as docker/go-units reads it: a number, a binary unit, an optional `b`.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let number = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let shift = match lower[number..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let value = lower[..number].parse::<f64>().ok()? * f64::from(1u32 << 10).powi(shift / 10);
    (value < u64::MAX as f64).then_some(value as u64)
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
