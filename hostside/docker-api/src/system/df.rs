//! `GET /system/df`.

use std::time::SystemTime;

use axum::extract::State;
use serde_json::json;

use crate::body;
use crate::containers::list::{Images, Summary, summary};
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::images::list;
use crate::query::Query;
use crate::version::ApiVersion;

/// `GET /system/df` (Engine API 1.25; `type` since 1.42).
///
/// # Errors
/// 400: an unknown type. 500: the image store cannot be read.
pub async fn disk_usage(State(engine): State<Engine>, version: ApiVersion, query: Query) -> Answer {
    let kinds: Vec<&str> = query.values("type").collect();
    let known = ["container", "image", "volume", "build-cache"];
    if let Some(kind) = kinds.iter().find(|kind| !known.contains(kind)) {
        return Err(ApiError::invalid(format!("unknown object type: {kind}")));
    }
    let wanted = |kind: &str| kinds.is_empty() || kinds.contains(&kind);
    let records = engine.port_layer().images()?;
    let mut answer = json!({ "BuilderSize": 0 });
    if wanted("image") {
        let images: Vec<_> = records
            .iter()
            .map(|record| list::summary(&engine, record, version))
            .collect();
        answer["LayersSize"] = json!(records.iter().map(|record| record.stored).sum::<u64>());
        answer["Images"] = json!(images);
    }
    if wanted("container") {
        let images = Images::read(&engine)?;
        let now = SystemTime::now();
        let containers: Vec<Summary> = engine
            .port_layer()
            .list()
            .iter()
            .map(|container| summary(container, &images, now, true))
            .collect();
        answer["Containers"] = json!(containers);
    }
    if wanted("volume") {
        answer["Volumes"] = json!([]);
    }
    if wanted("build-cache") {
        answer["BuildCache"] = json!([]);
    }
    Ok(body::ok(&answer))
}
