//! `POST /containers/prune`.

use std::time::SystemTime;

use axum::extract::State;
use portlayer::{Removal, State as ContainerState};
use serde_json::json;

use crate::body;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::filters::Filters;
use crate::query::Query;
use crate::time;

/// The moment before which something has to have been made to be pruned.
///
/// # Errors
/// 400: several, or none.
pub fn until(filters: &Filters) -> Result<Option<SystemTime>, ApiError> {
    let mut values = filters.values("until");
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(text), None) => Ok(Some(time::parse(text, SystemTime::now())?)),
        (Some(_), Some(_)) => Err(ApiError::invalid("more than one until filter specified")),
    }
}

/// `POST /containers/prune` (Engine API 1.25): removes those that do not run.
///
/// # Errors
/// 400: a filter makes no sense.
pub async fn prune(State(engine): State<Engine>, query: Query) -> Answer {
    let filters = query.filters()?;
    filters.only(&["label", "label!", "until"])?;
    let until = until(&filters)?;
    let port_layer = engine.port_layer().clone();
    let removed = to_the_end(async move {
        let mut removed = Vec::new();
        for container in port_layer.list() {
            let idle = matches!(
                container.state,
                ContainerState::Created { .. } | ContainerState::Exited(_)
            );
            let labels = &container.spec.labels;
            let chosen = idle
                && until.is_none_or(|until| container.created < until)
                && filters.labels("label", labels)
                && filters.without_labels("label!", labels);
            if !chosen {
                continue;
            }
            // One that was started or removed meanwhile stays, or is gone.
            match port_layer.remove(&container.id, Removal::IfStopped).await {
                Ok(()) => removed.push(container.id.to_string()),
                Err(error) => tracing::warn!(
                    container = %container.id,
                    "not pruned: {}",
                    crate::errors::chain(&error)
                ),
            }
        }
        Ok(removed)
    });
    let removed = removed.await?;
    // What a container's disk took is given back with it; nobody counted it.
    Ok(body::ok(
        &json!({ "ContainersDeleted": removed, "SpaceReclaimed": 0 }),
    ))
}
