//! `POST /images/load` and `docker import`.

use std::io;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Request, State};
use bytes::Bytes;
use futures_util::stream;
use portlayer::Loaded;
use portlayer::image::config::ImageConfig;
use serde_json::{Value, json};

use crate::body;
use crate::containers::commit::{apply, name};
use crate::containers::config::Config;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::images::familiar;
use crate::query::Query;
use crate::time;

/// What `docker load` prints of an image: the names it has in the archive.
fn loaded(image: &Loaded) -> Vec<Value> {
    if image.names.is_empty() {
        return vec![json!({ "stream": format!("Loaded image ID: {}\n", image.record.id) })];
    }
    image
        .names
        .iter()
        .map(|name| json!({ "stream": format!("Loaded image: {name}\n") }))
        .collect()
}

/// An error in a stream of progress (`JSONMessage` of the Engine).
fn failed(error: &ApiError) -> Value {
    json!({ "errorDetail": { "message": error.message }, "error": error.message })
}

/// `POST /images/load` (Engine API 1.24): progress in JSON lines. The upload is read as it comes; what is
/// wrong with it is told in the stream, as the Engine does.
///
/// # Errors
/// 501: `platform`.
pub async fn load(State(engine): State<Engine>, request: Request) -> Answer {
    let (archive, feed) = body::upload(request.into_body());
    let port_layer = engine.port_layer().clone();
    let work = async move {
        let load = async { port_layer.load(archive).await.map_err(ApiError::from) };
        let (result, ()) = tokio::join!(load, feed);
        let lines = match result {
            Ok(records) => records.iter().flat_map(loaded).collect(),
            Err(error) => vec![failed(&error)],
        };
        Ok::<Bytes, io::Error>(lines.iter().flat_map(body::line).collect())
    };
    Ok(body::streamed("application/json", stream::once(work)))
}

/// `POST /images/create?fromSrc=-` (Engine API 1.24): a root file system as tar becomes an image.
///
/// # Errors
/// 400: the name or a change makes no sense.
pub async fn import(engine: &Engine, query: &Query, body: Body) -> Answer {
    let name = name(familiar(query.text("repo")), query.text("tag"))?;
    let mut config = Config::default();
    apply(&mut config, query.values("changes"))?;
    config.check()?;
    let image = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        created: Some(time::rfc3339(SystemTime::now())),
        config: config.into_image(),
        ..ImageConfig::default()
    };
    let (tar, feed) = body::upload(body);
    let port_layer = engine.port_layer().clone();
    let work = async move {
        let import = async {
            let imported = port_layer.import(tar, image, name).await;
            imported.map_err(ApiError::from)
        };
        let (result, ()) = tokio::join!(import, feed);
        let line = match result {
            Ok(id) => json!({ "status": id.to_string() }),
            Err(error) => failed(&error),
        };
        Ok::<Bytes, io::Error>(body::line(&line))
    };
    Ok(body::streamed("application/json", stream::once(work)))
}
