//! Children of a running container. The Engine has nothing like it: the path is a VCH's own.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::json;

use crate::body;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::signals;

/// `POST /vch/containers/{id}/fork`: `count` children (1), each main process told by `signal` (none); answers
/// `{"Ids": [...]}`, and 201, when all of them run.
///
/// # Errors
/// 400: no such count or signal. 404: no such container. 409: it does not run, is paused, or the VCH is full.
/// 501: it has volumes, or the driver cannot.
pub async fn fork(State(engine): State<Engine>, Path(name): Path<String>, query: Query) -> Answer {
    let count = query.number("count")?.unwrap_or(1);
    let count = u32::try_from(count)
        .map_err(|_| ApiError::invalid(format!("invalid count {count}: it is 1 or more")))?;
    let signal = match query.text("signal") {
        "" => 0,
        text => signals::parse(text)?,
    };
    let id = engine.find(&name)?;
    let port_layer = engine.port_layer().clone();
    let ids = to_the_end(async move { Ok(port_layer.fork(&id, count, signal).await?) }).await?;
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    Ok(body::json(StatusCode::CREATED, &json!({ "Ids": ids })))
}
