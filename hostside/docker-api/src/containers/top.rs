//! `GET /containers/{id}/top`.

use std::time::{Duration, SystemTime};

use axum::extract::{Path, State};
use serde_json::json;

use crate::body;
use crate::containers::ps::{self, Machine};
use crate::engine::Engine;
use crate::errors::Answer;
use crate::query::Query;

/// `GET /containers/{id}/top` (Engine API 1.24).
///
/// # Errors
/// 404: no such container. 409: it does not run. 500: `ps_args` are none of ps.
pub async fn top(State(engine): State<Engine>, Path(name): Path<String>, query: Query) -> Answer {
    let arguments = query.text("ps_args");
    let id = engine.find(&name)?;
    // Arguments are looked at before the guest is asked.
    let nowhere = Machine {
        uptime: Duration::ZERO,
        memory: 0,
        now: SystemTime::UNIX_EPOCH,
    };
    ps::table(arguments, &[], &nowhere)?;
    let port_layer = engine.port_layer();
    let processes = port_layer.processes(&id).await?;
    let statistics = port_layer.statistics(&id).await?;
    let machine = Machine {
        uptime: Duration::from_nanos(statistics.monotonic_nanos),
        memory: statistics.memory.total,
        now: SystemTime::now(),
    };
    let (titles, rows) = ps::table(arguments, &processes, &machine)?;
    Ok(body::ok(&json!({ "Titles": titles, "Processes": rows })))
}
