//! `GET /containers/json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use portlayer::image::digest::Digest;
use portlayer::image::store::ImageRecord;
use portlayer::{Container, ContainerId, State as ContainerState};
use serde::Serialize;
use serde_json::{Value, json};

use crate::body;
use crate::containers::create::Written;
use crate::containers::ports::{self, Port};
use crate::containers::{describe, inspect};
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::filters::Filters;
use crate::query::Query;
use crate::time;

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "id",
    "isolation",
    "label",
    "name",
    "status",
    "health",
    "since",
    "volume",
    "network",
    "is-task",
    "publish",
    "expose",
];

/// A container in a listing (`ContainerSummary`, Engine API 1.47).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    id: String,
    names: Vec<String>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    command: String,
    created: i64,
    ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    labels: BTreeMap<String, String>,
    state: &'static str,
    status: String,
    host_config: Value,
    network_settings: Value,
    mounts: Vec<Value>,
}

/// Images by the names containers call them, so that a listing reads the store once.
pub struct Images(HashMap<Digest, ImageRecord>);

impl Images {
    /// All there are.
    ///
    /// # Errors
    /// 500: the store cannot be read.
    pub fn read(engine: &Engine) -> Result<Self, ApiError> {
        let records = engine.port_layer().images()?;
        Ok(Self(
            records
                .into_iter()
                .map(|record| (record.id, record))
                .collect(),
        ))
    }

    /// How a container's image is called: as the user did, or by its id if that is another's name now.
    fn shown(&self, container: &Container) -> String {
        let choice = &container.spec.image;
        let id = choice.id.to_string();
        let written = choice.reference.trim_start_matches("sha256:");
        let is_id = !written.is_empty() && choice.id.hex().starts_with(written);
        let still = self.0.get(&choice.id).is_some_and(|record| {
            record
                .names
                .iter()
                .any(|name| crate::images::same_name(name, &choice.reference))
        });
        if is_id || still {
            choice.reference.clone()
        } else {
            id
        }
    }
}

/// `GET /containers/json` (Engine API 1.24).
///
/// # Errors
/// 400: a filter makes no sense.
pub async fn list(State(engine): State<Engine>, query: Query) -> Answer {
    let filters = query.filters()?;
    filters.only(&FILTERS)?;
    let limit = query.number("limit")?.unwrap_or(0);
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
    let asked = Asked::new(&engine, &query, &filters, limit.is_some())?;
    let images = Images::read(&engine)?;
    let now = SystemTime::now();
    let containers = engine.port_layer().list();
    let summaries: Vec<Summary> = asked
        .between(&containers)
        .filter(|container| asked.includes(container))
        .take(limit.unwrap_or(usize::MAX))
        .map(|container| summary(container, &images, now, query.flag("size")))
        .collect();
    Ok(response(&summaries))
}

fn response(summaries: &[Summary]) -> Response {
    body::ok(summaries)
}

/// One line of a listing.
pub fn summary(container: &Container, images: &Images, now: SystemTime, size: bool) -> Summary {
    let written = Written::of(&container.spec);
    let root = || {
        let record = images.0.get(&container.spec.image.id)?;
        Some(record.stored)
    };
    Summary {
        id: container.id.to_string(),
        names: vec![format!("/{}", container.name)],
        image: images.shown(container),
        image_id: container.spec.image.id.to_string(),
        command: describe::command(&container.spec.process.argv),
        created: time::unix_seconds(container.created),
        ports: ports::listed(container, &written.config.exposed_ports),
        size_root_fs: size.then(root).flatten(),
        labels: container.spec.labels.clone(),
        state: describe::state_word(&container.state),
        status: describe::status(container, now),
        host_config: json!({ "NetworkMode": written.host_config.network_mode }),
        network_settings: json!({ "Networks": inspect::networks(container) }),
        mounts: inspect::mounts(container),
    }
}

/// What a listing is asked for, looked up once.
struct Asked<'a> {
    filters: &'a Filters,
    all: bool,
    exited: Vec<u8>,
    before: Option<ContainerId>,
    since: Option<ContainerId>,
    ancestors: BTreeSet<Digest>,
    published: BTreeSet<(u16, &'static str)>,
    exposed: BTreeSet<(u16, &'static str)>,
}

impl<'a> Asked<'a> {
    fn new(
        engine: &Engine,
        query: &Query,
        filters: &'a Filters,
        limited: bool,
    ) -> Result<Self, ApiError> {
        let mut exited = Vec::new();
        for value in filters.values("exited") {
            let code = value.parse::<i64>().map_err(|_| {
                ApiError::invalid(format!("invalid filter 'exited={value}': it is no number"))
            })?;
            exited.extend(u8::try_from(code).ok());
        }
        for value in filters.values("status") {
            let known = [
                "paused",
                "restarting",
                "removing",
                "running",
                "dead",
                "created",
                "exited",
            ];
            if !known.contains(&value) {
                return Err(ApiError::invalid(format!(
                    "invalid filter 'status={value}'"
                )));
            }
        }
        for value in filters.values("health") {
            if !["starting", "healthy", "unhealthy", "none"].contains(&value) {
                return Err(ApiError::invalid(format!(
                    "unrecognized filter value for health: {value}"
                )));
            }
        }
        // The parameters of the same names are older than the filters.
        let place = |name: &str| {
            let text = filters.values(name).next().unwrap_or(query.text(name));
            (!text.is_empty()).then(|| engine.find(text)).transpose()
        };
        let ancestors = filters
            .values("ancestor")
            .filter_map(|image| engine.port_layer().image(image).ok())
            .map(|record| record.id);
        Ok(Self {
            filters,
            all: query.flag("all") || limited || filters.has("status"),
            before: place("before")?,
            since: place("since")?,
            ancestors: ancestors.collect(),
            published: port_filter(filters, "publish")?,
            exposed: port_filter(filters, "expose")?,
            exited,
        })
    }

    /// Those made before one and since another.
    fn between<'c>(&self, containers: &'c [Container]) -> impl Iterator<Item = &'c Container> {
        let place = |id: &ContainerId| containers.iter().position(|c| c.id == *id);
        let start = self.before.as_ref().and_then(place).map_or(0, |at| at + 1);
        let end = self.since.as_ref().and_then(place);
        containers[..end.unwrap_or(containers.len())]
            .iter()
            .skip(start)
    }

    fn includes(&self, container: &Container) -> bool {
        let filters = self.filters;
        let running = matches!(
            container.state,
            ContainerState::Running(_)
                | ContainerState::Paused(_)
                | ContainerState::Restarting { .. }
        );
        if !(running || self.all) {
            return false;
        }
        let name = container.name.as_str();
        let named = filters.pattern("name", name) || filters.pattern("name", &format!("/{name}"));
        let health = describe::health(container);
        let health = health.map_or("none", |health| describe::health_word(health.status));
        named
            && filters.prefix("id", &container.id.to_string())
            && filters.labels("label", &container.spec.labels)
            && filters.exact("status", describe::state_word(&container.state))
            && filters.exact("health", health)
            && filters.exact("isolation", "")
            // No task of a swarm is here.
            && filters.boolean("is-task").is_ok_and(|wanted| wanted != Some(true))
            && self.has_exited(container)
            && self.has_volume(container)
            && (!filters.has("ancestor") || self.ancestors.contains(&container.spec.image.id))
            && self.has_network(container)
            && self.has_port(container)
    }

    fn has_exited(&self, container: &Container) -> bool {
        !self.filters.has("exited")
            || matches!(&container.state, ContainerState::Exited(ended) if self.exited.contains(&ended.status))
    }

    fn has_volume(&self, container: &Container) -> bool {
        if !self.filters.has("volume") {
            return true;
        }
        let mounts = inspect::mounts(container);
        self.filters.values("volume").any(|wanted| {
            mounts
                .iter()
                .any(|mount| mount["Destination"] == wanted || mount["Source"] == wanted)
        })
    }

    fn has_network(&self, container: &Container) -> bool {
        let own = inspect::network_name(container);
        !self.filters.has("network")
            || self
                .filters
                .values("network")
                .any(|wanted| crate::networks::name_of(wanted) == Some(own))
    }

    fn has_port(&self, container: &Container) -> bool {
        if !self.filters.has("publish") && !self.filters.has("expose") {
            return true;
        }
        let written = Written::of(&container.spec);
        ports::listed(container, &written.config.exposed_ports)
            .iter()
            .any(|port| {
                let public = port.public.map(|public| (public, port.protocol));
                public.is_some_and(|public| self.published.contains(&public))
                    || self.exposed.contains(&(port.private, port.protocol))
            })
    }
}

fn port_filter(filters: &Filters, key: &str) -> Result<BTreeSet<(u16, &'static str)>, ApiError> {
    let mut wanted = BTreeSet::new();
    for value in filters.values(key) {
        if value.contains(':') {
            return Err(ApiError::invalid(format!(
                "filter for '{key}' should not contain ':': {value}"
            )));
        }
        let ((first, last), protocol) = ports::port(value).map_err(|error| {
            ApiError::invalid(format!(
                "error while looking up for {key} {value}: {}",
                error.message
            ))
        })?;
        wanted.extend((first..=last).map(|port| (port, ports::protocol_name(protocol))));
    }
    Ok(wanted)
}
