//! `DELETE /images/{name}` and `POST /images/prune`.

use axum::extract::State;
use portlayer::image::store::{ImageRecord, Removal, Removed};
use portlayer::{Container, Error, PortLayer};
use serde_json::{Value, json};

use crate::body;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::images::{list, same_name};
use crate::query::Query;

/// What was taken away (`ImageDeleteResponseItem`, Engine API 1.47).
fn items(removed: &Removed) -> Vec<Value> {
    let untagged = removed
        .untagged
        .iter()
        .map(|name| json!({ "Untagged": name.to_string() }));
    let deleted = removed
        .deleted
        .iter()
        .map(|id| json!({ "Deleted": id.to_string() }));
    untagged.chain(deleted).collect()
}

/// Why an image that containers use stays, in Docker's words.
fn in_use(text: &str, record: &ImageRecord, user: &Container, by_id: bool) -> ApiError {
    let image = &record.id.hex()[..12];
    let container = user.id.short();
    let running = user.state.is_on();
    let message = match (by_id, running) {
        (true, true) => format!(
            "conflict: unable to delete {image} (cannot be forced) - image is being used by running container {container}"
        ),
        (true, false) => format!(
            "conflict: unable to delete {image} (must be forced) - image is being used by stopped container {container}"
        ),
        (false, _) => format!(
            "conflict: unable to remove repository reference \"{text}\" (must force) - container {container} is using its referenced image {image}"
        ),
    };
    ApiError::conflict(message)
}

fn user_of(port_layer: &PortLayer, record: &ImageRecord) -> Option<Container> {
    let users = port_layer.image_users(&record.id);
    let mut containers: Vec<Container> = users
        .iter()
        .filter_map(|id| port_layer.inspect(id).ok())
        .collect();
    containers.sort_by_key(|container| !container.state.is_on());
    containers.into_iter().next()
}

/// `DELETE /images/{name}` (Engine API 1.24). An image that a container uses is never deleted: its disk is
/// the parent of the container's.
///
/// # Errors
/// 404: no such image. 409: it has other names, or containers use it.
pub async fn remove(engine: &Engine, text: &str, query: &Query) -> Answer {
    let record = engine.image(text)?;
    let by_id = !record.names.iter().any(|name| same_name(name, text));
    let how = if query.flag("force") {
        Removal::Forced
    } else {
        Removal::Unforced
    };
    let last = record.names.len() <= 1 || by_id;
    if last && let Some(user) = user_of(engine.port_layer(), &record) {
        return Err(in_use(text, &record, &user, by_id));
    }
    // By name, only that name goes, forced or not, as long as there are others.
    let how = if last { how } else { Removal::Unforced };
    let port_layer = engine.port_layer().clone();
    let name = if by_id {
        record.id.to_string()
    } else {
        crate::images::familiar(text).to_owned()
    };
    let removed = to_the_end(async move { Ok(port_layer.remove_image(&name, how)?) }).await?;
    Ok(body::ok(&items(&removed)))
}

/// `POST /images/prune` (Engine API 1.25): images without names, or with `dangling=false` all that no
/// container uses.
///
/// # Errors
/// 400: a filter makes no sense.
pub async fn prune(State(engine): State<Engine>, query: Query) -> Answer {
    let filters = query.filters()?;
    filters.only(&["dangling", "label", "label!", "until"])?;
    let dangling = filters.boolean("dangling")?.unwrap_or(true);
    let mut chosen = list::chosen(&engine, &filters, "")?;
    chosen.retain(|record| record.names.is_empty() || !dangling);
    let port_layer = engine.port_layer().clone();
    let pruned = to_the_end(async move {
        let (mut deleted, mut reclaimed) = (Vec::new(), 0);
        for record in chosen {
            if !port_layer.image_users(&record.id).is_empty() {
                continue;
            }
            match port_layer.remove_image(&record.id.to_string(), Removal::Forced) {
                Ok(removed) => {
                    deleted.extend(items(&removed));
                    reclaimed += record.stored;
                }
                // Used since, or gone.
                Err(Error::Image { .. } | Error::NoSuchImage(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((deleted, reclaimed))
    });
    let (deleted, reclaimed) = pruned.await?;
    Ok(body::ok(&json!({
        "ImagesDeleted": if deleted.is_empty() { Value::Null } else { json!(deleted) },
        "SpaceReclaimed": reclaimed,
    })))
}
