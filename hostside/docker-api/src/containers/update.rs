//! `POST /containers/{id}/update`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use portlayer::spec::Update;
use serde_json::json;

use crate::body;
use crate::containers::create;
use crate::containers::host_config::HostConfig;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};

/// `POST /containers/{id}/update` (Engine API 1.24): limits and restart policy.
///
/// # Errors
/// 400: it makes no sense. 404: no such container. 409: the VCH is full.
pub async fn update(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let wanted: HostConfig = body::read_json(&headers, body).await?.unwrap_or_default();
    let mut warnings = Vec::new();
    let policy = &wanted.restart_policy;
    let update = Update {
        memory: create::memory(wanted.memory)?,
        cpus: create::cpus(&wanted, &mut warnings)?,
        restart: if policy.name.is_empty() {
            None
        } else {
            Some(create::restart(policy)?)
        },
    };
    let ignored = [
        (wanted.cpu_shares != 0, "CpuShares"),
        (!wanted.cpuset_cpus.is_empty(), "CpusetCpus"),
        (!wanted.cpuset_mems.is_empty(), "CpusetMems"),
        (wanted.blkio_weight != 0, "BlkioWeight"),
        (wanted.memory_reservation != 0, "MemoryReservation"),
        (wanted.memory_swap > 0, "MemorySwap"),
        (
            wanted.pids_limit.is_some_and(|limit| limit > 0),
            "PidsLimit",
        ),
    ];
    for (_, name) in ignored.iter().filter(|(set, _)| *set) {
        warnings.push(format!("{name} is not applied to a VM and was discarded."));
    }
    let id = engine.find(&name)?;
    let port_layer = engine.port_layer().clone();
    let limits = update.memory.is_some() || update.cpus.is_some();
    let applied = to_the_end(async move {
        let on = port_layer.inspect(&id)?.state.is_on();
        let applied = port_layer
            .update(&id, update)
            .await
            .map_err(|error| ApiError {
                message: format!(
                    "Cannot update container {id}: {}",
                    crate::errors::chain(&error)
                ),
                ..error.into()
            })?;
        Ok((applied, on))
    });
    let (applied, on) = applied.await?;
    if limits && on && applied == portlayer::Applied::AtPowerOn {
        warnings.push("The new limits hold from the next start on.".to_owned());
    }
    Ok(body::ok(&json!({ "Warnings": warnings })))
}
