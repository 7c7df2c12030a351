//! `GET /images/{name}/json` and `GET /images/{name}/history`.

use portlayer::image::reference::Name;
use serde_json::json;

use crate::body;
use crate::containers::config::Config;
use crate::engine::Engine;
use crate::errors::Answer;
use crate::images::list::created;
use crate::time;
use crate::version::ApiVersion;

/// `GET /images/{name}/json` (Engine API 1.24).
///
/// # Errors
/// 404: no such image.
pub fn inspect(engine: &Engine, name: &str, version: ApiVersion) -> Answer {
    let record = engine.image(name)?;
    let names: Vec<String> = record.names.iter().map(Name::to_string).collect();
    let imported = std::time::UNIX_EPOCH + std::time::Duration::from_secs(record.imported);
    let config = &record.config;
    let mut value = json!({
        "Id": record.id.to_string(),
        "RepoTags": names,
        "RepoDigests": [],
        "Parent": "",
        "Comment": "",
        "Created": config.created.clone().unwrap_or_else(|| time::rfc3339(imported)),
        "DockerVersion": "",
        "Author": config.author.clone().unwrap_or_default(),
        "Config": Config::of_image(&config.config),
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": record.stored,
        "GraphDriver": { "Name": crate::system::STORAGE, "Data": {} },
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
        "Metadata": { "LastTagTime": time::rfc3339(imported) },
    });
    if version < ApiVersion::new(1, 44) {
        value["VirtualSize"] = json!(record.stored);
    }
    Ok(body::ok(&value))
}

/// `GET /images/{name}/history` (Engine API 1.24): one entry, since an image's layers become one disk.
///
/// # Errors
/// 404: no such image.
pub fn history(engine: &Engine, name: &str) -> Answer {
    let record = engine.image(name)?;
    let names: Vec<String> = record.names.iter().map(Name::to_string).collect();
    Ok(body::ok(&json!([{
        "Id": record.id.to_string(),
        "Created": created(&record),
        "CreatedBy": format!("imported from {}", record.source),
        "Tags": if names.is_empty() { json!(null) } else { json!(names) },
        "Size": record.stored,
        "Comment": "",
    }])))
}
