//! Networks: the two there are. Creating others is not there yet.

use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::body;
use crate::containers::inspect;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::time;

/// The default network.
pub const BRIDGE: &str = "bridge";
/// No network.
pub const NONE: &str = "none";

const ALL: [&str; 2] = [BRIDGE, NONE];

/// A network's id: the same in every VCH, since the two are.
pub fn id_of(name: &str) -> String {
    portlayer::image::digest::Digest::of(format!("network {name}").as_bytes()).hex()
}

/// The name of the network called `text`: its name, id, or the start of that.
pub fn name_of(text: &str) -> Option<&'static str> {
    ALL.into_iter().find(|name| *name == text).or_else(|| {
        let by_id = |name: &&str| text.len() >= 2 && id_of(name).starts_with(text);
        ALL.into_iter().find(by_id)
    })
}

/// 404 in Docker's words.
pub fn not_found(name: &str) -> ApiError {
    ApiError::not_found(format!("network {name} not found"))
}

fn describe(engine: &Engine, name: &'static str, containers: bool) -> Value {
    let driver = if name == NONE { "null" } else { "bridge" };
    let inside: serde_json::Map<String, Value> = engine
        .port_layer()
        .list()
        .iter()
        .filter(|container| {
            containers && container.state.is_on() && inspect::network_name(container) == name
        })
        .map(|container| {
            let endpoint = json!({
                "Name": container.name.as_str(),
                "EndpointID": inspect::endpoint_id(&container.id, name),
                "MacAddress": "",
                "IPv4Address": "",
                "IPv6Address": "",
            });
            (container.id.to_string(), endpoint)
        })
        .collect();
    json!({
        "Name": name,
        "Id": id_of(name),
        "Created": time::rfc3339(engine.started()),
        "Scope": "local",
        "Driver": driver,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": [] },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": inside,
        "Options": {},
        "Labels": {},
    })
}

/// `GET /networks` (Engine API 1.24).
///
/// # Errors
/// 400: a filter makes no sense.
pub async fn list(State(engine): State<Engine>, query: Query) -> Answer {
    let filters = query.filters()?;
    filters.only(&["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    // Those that nobody made are never dangling.
    let dangling = filters.boolean("dangling")? == Some(true);
    let labels = std::collections::BTreeMap::new();
    let networks: Vec<Value> = ALL
        .into_iter()
        .filter(|name| {
            let driver = if *name == NONE { "null" } else { "bridge" };
            !dangling
                && filters.pattern("name", name)
                && filters.prefix("id", &id_of(name))
                && filters.exact("driver", driver)
                && filters.exact("scope", "local")
                && filters.exact("type", "builtin")
                && filters.labels("label", &labels)
        })
        .map(|name| describe(&engine, name, false))
        .collect();
    Ok(body::ok(&networks))
}

/// `GET /networks/{id}` (Engine API 1.24).
///
/// # Errors
/// 404: no such network.
pub async fn inspect(State(engine): State<Engine>, Path(text): Path<String>) -> Answer {
    let name = name_of(&text).ok_or_else(|| not_found(&text))?;
    Ok(body::ok(&describe(&engine, name, true)))
}

/// `DELETE /networks/{id}` (Engine API 1.24).
///
/// # Errors
/// 403: these two stay. 404: no such network.
pub async fn remove(Path(text): Path<String>) -> Answer {
    let name = name_of(&text).ok_or_else(|| not_found(&text))?;
    Err(ApiError::new(
        axum::http::StatusCode::FORBIDDEN,
        format!("{name} is a pre-defined network and cannot be removed"),
    ))
}

/// `POST /networks/prune` (Engine API 1.25): there is none to prune.
pub async fn prune() -> Response {
    body::ok(&json!({ "NetworksDeleted": null }))
}

/// `GET /volumes` (Engine API 1.24): there is none.
pub async fn volumes() -> Response {
    body::ok(&json!({ "Volumes": [], "Warnings": null }))
}

/// `GET /volumes/{name}`, `DELETE /volumes/{name}` (Engine API 1.24).
///
/// # Errors
/// 404: there is none.
pub async fn volume(Path(name): Path<String>) -> Answer {
    Err(ApiError::not_found(format!("get {name}: no such volume")))
}

/// `POST /build/prune` (Engine API 1.31): nothing is built here, so no cache is left of it.
pub async fn prune_build_cache() -> Response {
    body::ok(&json!({ "CachesDeleted": null, "SpaceReclaimed": 0 }))
}

/// `POST /volumes/prune` (Engine API 1.25): there is none to prune.
pub async fn prune_volumes() -> Response {
    body::ok(&json!({ "VolumesDeleted": null, "SpaceReclaimed": 0 }))
}
