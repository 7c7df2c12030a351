//! Files of a container: `docker cp`, `docker export`, `docker diff`.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use serde_json::{Value, json};

use crate::body;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::file_mode::go_mode;
use crate::query::Query;
use crate::time;
use portlayer::{ChangeKind, ExtractOptions, PathStat};

const TAR: &str = "application/x-tar";

fn path(query: &Query) -> Result<String, ApiError> {
    match query.text("path") {
        "" => Err(ApiError::invalid("bad parameter: 'path' cannot be empty")),
        path => Ok(path.to_owned()),
    }
}

/// `X-Docker-Container-Path-Stat` (Engine API 1.24): JSON in base64, the mode in Go's numbers.
fn tell(response: &mut Response, stat: &PathStat) {
    let value = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": go_mode(stat.mode),
        "mtime": time::rfc3339(stat.modified),
        "linkTarget": stat.link_target,
    });
    let encoded = STANDARD.encode(value.to_string());
    body::set(response, "x-docker-container-path-stat", &encoded);
}

/// `HEAD /containers/{id}/archive` (Engine API 1.24).
///
/// # Errors
/// 404: no such container or path.
pub async fn stat(State(engine): State<Engine>, Path(name): Path<String>, query: Query) -> Answer {
    let path = path(&query)?;
    let id = engine.find(&name)?;
    let stat = engine.port_layer().path_stat(&id, &path).await?;
    let mut response = body::empty(StatusCode::OK);
    tell(&mut response, &stat);
    Ok(response)
}

/// `GET /containers/{id}/archive` (Engine API 1.24).
///
/// # Errors
/// 404: no such container or path.
pub async fn download(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> Answer {
    let path = path(&query)?;
    let id = engine.find(&name)?;
    let (stat, tar) = engine.port_layer().archive(&id, &path).await?;
    let mut response = body::streamed(TAR, body::from_port_layer(tar));
    tell(&mut response, &stat);
    Ok(response)
}

/// `PUT /containers/{id}/archive` (Engine API 1.24).
///
/// # Errors
/// 400: no directory, or no archive. 403: it cannot be written. 404: no such container or path.
pub async fn upload(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
    request: Request,
) -> Answer {
    let path = path(&query)?;
    let id = engine.find(&name)?;
    let options = ExtractOptions {
        no_overwrite_dir_non_dir: query.flag("noOverwriteDirNonDir"),
        copy_uid_gid: query.flag("copyUIDGID"),
    };
    let (tar, feed) = body::upload(request.into_body());
    let port_layer = engine.port_layer().clone();
    let extract = port_layer.extract(&id, &path, options, tar);
    let (result, ()) = tokio::join!(extract, feed);
    result?;
    Ok(body::empty(StatusCode::OK))
}

/// `GET /containers/{id}/export` (Engine API 1.24).
///
/// # Errors
/// 404: no such container.
pub async fn export(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    let id = engine.find(&name)?;
    let tar = engine.port_layer().export(&id).await?;
    Ok(body::streamed(
        "application/octet-stream",
        body::from_port_layer(tar),
    ))
}

/// `GET /containers/{id}/changes` (Engine API 1.24).
///
/// # Errors
/// 404: no such container.
pub async fn changes(State(engine): State<Engine>, Path(name): Path<String>) -> Answer {
    let id = engine.find(&name)?;
    let changes = engine.port_layer().diff(&id).await?;
    let changes: Vec<Value> = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({ "Path": change.path, "Kind": kind })
        })
        .collect();
    Ok(body::ok(&changes))
}
