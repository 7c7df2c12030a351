//! Starting, stopping and removing containers.
//!
//! Every change runs to its end whether or not the client waits for it.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use portlayer::spec::TerminalSize;
use portlayer::{ContainerId, PortLayer, Removal, WaitFor};

use crate::body;
use crate::containers::create::grace;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::signals;
use crate::version::ApiVersion;

/// Does something to one container.
async fn change<F, R>(engine: &Engine, name: &str, change: F) -> Answer
where
    F: FnOnce(PortLayer, ContainerId) -> R,
    R: Future<Output = Result<(), portlayer::Error>> + Send + 'static,
{
    let id = engine.find(name)?;
    let change = change(engine.port_layer().clone(), id);
    to_the_end(async move { Ok(change.await?) }).await?;
    Ok(body::done())
}

/// `POST /containers/{id}/start` (Engine API 1.24).
///
/// # Errors
/// 304: it runs. 400: its command is not in the image. 404: no such container. 409: it is paused, or the
/// VCH is full. 501: checkpoints.
pub async fn start(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> Answer {
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.unwrap_or(0) > 7 || headers.contains_key(TRANSFER_ENCODING) {
        return Err(ApiError::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    if !query.text("checkpoint").is_empty() {
        return Err(ApiError::unsupported("starting from a checkpoint"));
    }
    change(&engine, &name, |port_layer, id| async move {
        port_layer.start(&id).await
    })
    .await
}

/// Signal and seconds as stop and restart take them.
type Stopping = (Option<u8>, Option<Option<std::time::Duration>>);

fn stopping(query: &Query, version: ApiVersion) -> Result<Stopping, ApiError> {
    let signal = match query.text("signal") {
        "" => None,
        _ if version < ApiVersion::new(1, 42) => None,
        name => Some(signals::parse(name)?),
    };
    Ok((signal, query.number("t")?.map(grace)))
}

/// `POST /containers/{id}/stop` (Engine API 1.24).
///
/// # Errors
/// 304: it does not run. 404: no such container.
pub async fn stop(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let (signal, grace) = stopping(&query, version)?;
    change(&engine, &name, |port_layer, id| async move {
        port_layer.stop(&id, signal, grace).await
    })
    .await
}

/// `POST /containers/{id}/restart` (Engine API 1.24).
///
/// # Errors
/// 404: no such container. Those of a start.
pub async fn restart(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let (signal, grace) = stopping(&query, version)?;
    change(&engine, &name, |port_layer, id| async move {
        port_layer.restart(&id, signal, grace).await
    })
    .await
}

/// `POST /containers/{id}/kill` (Engine API 1.24).
///
/// # Errors
/// 400: no such signal. 404: no such container. 409: it does not run.
pub async fn kill(State(engine): State<Engine>, Path(name): Path<String>, query: Query) -> Answer {
    let signal = match query.text("signal") {
        "" => signals::KILL,
        text => signals::parse(text)?,
    };
    let answer = change(&engine, &name, |port_layer, id| async move {
        port_layer.kill(&id, signal).await?;
        if signal == signals::KILL {
            // As the Engine does: who asks next finds that it does not run. The port layer cuts the power
            // of one that does not obey, so this ends.
            let _ = port_layer.wait(&id, WaitFor::NotRunning).await;
        }
        Ok(())
    });
    answer.await.map_err(|error| ApiError {
        message: format!("cannot kill container: {name}: {}", error.message),
        ..error
    })
}

/// `POST /containers/{id}/pause` (Engine API 1.24).
///
/// # Errors
/// 404: no such container. 409: it does not run, or is paused.
pub async fn pause(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    change(&engine, &name, |port_layer, id| async move {
        port_layer.pause(&id).await
    })
    .await
}

/// `POST /containers/{id}/unpause` (Engine API 1.24).
///
/// # Errors
/// 404: no such container. 409: it is not paused.
pub async fn unpause(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    change(&engine, &name, |port_layer, id| async move {
        port_layer.unpause(&id).await
    })
    .await
}

/// `POST /containers/{id}/rename` (Engine API 1.24).
///
/// # Errors
/// 400: it is no name. 404: no such container. 409: the name is taken.
pub async fn rename(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> Answer {
    let new = query.text("name");
    if new.is_empty() || name.is_empty() {
        return Err(ApiError::invalid("Neither old nor new names may be empty"));
    }
    let new: portlayer::ContainerName = new.trim_start_matches('/').parse()?;
    let current = engine.container(&name)?;
    if current.name == new {
        return Err(ApiError::invalid(
            "Renaming a container with the same name as its current name",
        ));
    }
    change(&engine, &name, |port_layer, id| async move {
        port_layer.rename(&id, new).await
    })
    .await
}

/// Height and width of a terminal in a query.
///
/// # Errors
/// 400: they are none.
pub fn size(query: &Query) -> Result<TerminalSize, ApiError> {
    let number = |name: &str| {
        let number = query.number(name)?.and_then(|n| u16::try_from(n).ok());
        number.ok_or_else(|| ApiError::invalid(format!("invalid resize: {name} is no size")))
    };
    Ok(TerminalSize {
        rows: number("h")?,
        columns: number("w")?,
    })
}

/// `POST /containers/{id}/resize` (Engine API 1.24).
///
/// # Errors
/// 400: no size. 404: no such container. 409: it does not run.
pub async fn resize(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> Answer {
    let size = size(&query)?;
    let id = engine.find(&name)?;
    engine.port_layer().resize(&id, size).await?;
    Ok(body::empty(axum::http::StatusCode::OK))
}

/// `DELETE /containers/{id}` (Engine API 1.24).
///
/// # Errors
/// 404: no such container. 409: it runs, and `force` was not given. 501: links.
pub async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> Answer {
    if query.flag("link") {
        return Err(ApiError::unsupported("removing links"));
    }
    let how = if query.flag("force") {
        Removal::Force
    } else {
        Removal::IfStopped
    };
    change(&engine, &name, |port_layer, id| async move {
        port_layer.remove(&id, how).await
    })
    .await
}
