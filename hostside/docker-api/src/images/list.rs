//! `GET /images/json`.

use std::collections::BTreeSet;

use axum::extract::State;
use portlayer::image::reference::Name;
use portlayer::image::store::ImageRecord;
use serde_json::{Value, json};

use crate::body;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::filters::Filters;
use crate::images::familiar;
use crate::query::Query;
use crate::time;
use crate::version::ApiVersion;

/// When an image was made, in seconds since 1970: what its configuration says, else when it came here.
pub fn created(record: &ImageRecord) -> i64 {
    let said = record.config.created.as_deref().and_then(|text| {
        let time = time::parse(text, std::time::SystemTime::UNIX_EPOCH).ok()?;
        Some(time::unix_seconds(time))
    });
    said.unwrap_or_else(|| i64::try_from(record.imported).unwrap_or(i64::MAX))
}

/// An image in a listing (`ImageSummary`, Engine API 1.47).
pub fn summary(engine: &Engine, record: &ImageRecord, version: ApiVersion) -> Value {
    let users = engine.port_layer().image_users(&record.id).len();
    let names: Vec<String> = record.names.iter().map(Name::to_string).collect();
    let mut value = json!({
        "Id": record.id.to_string(),
        "ParentId": "",
        "RepoTags": names,
        "RepoDigests": [],
        "Created": created(record),
        "Size": record.stored,
        "SharedSize": -1,
        "Labels": record.config.config.labels,
        "Containers": users,
    });
    if version < ApiVersion::new(1, 44) {
        value["VirtualSize"] = json!(record.stored);
    }
    if version < ApiVersion::new(1, 43) && names.is_empty() {
        value["RepoTags"] = json!(["<none>:<none>"]);
        value["RepoDigests"] = json!(["<none>@<none>"]);
    }
    value
}

/// `GET /images/json` (Engine API 1.24).
///
/// # Errors
/// 400: a filter makes no sense. 404: `before` and `since` name none.
pub async fn list(State(engine): State<Engine>, version: ApiVersion, query: Query) -> Answer {
    let filters = query.filters()?;
    filters.only(&[
        "dangling",
        "label",
        "label!",
        "before",
        "since",
        "reference",
        "until",
    ])?;
    let images: Vec<Value> = chosen(&engine, &filters, query.text("filter"))?
        .iter()
        .map(|record| summary(&engine, record, version))
        .collect();
    Ok(body::ok(&images))
}

/// The images that filters choose, the newest first.
///
/// # Errors
/// As [`list`].
pub fn chosen(
    engine: &Engine,
    filters: &Filters,
    legacy: &str,
) -> Result<Vec<ImageRecord>, ApiError> {
    let dangling = filters.boolean("dangling")?;
    let until = crate::containers::prune::until(filters)?.map(time::unix_seconds);
    let moment = |key: &str| -> Result<Option<i64>, ApiError> {
        let name = filters.values(key).next();
        name.map(|name| engine.image(name).map(|record| created(&record)))
            .transpose()
    };
    let (before, since) = (moment("before")?, moment("since")?);
    let mut references: BTreeSet<&str> = filters.values("reference").collect();
    // Until 1.40 a parameter of its own.
    references.extend(Some(legacy).filter(|text| !text.is_empty()));
    let mut images = engine.port_layer().images()?;
    images.retain(|record| {
        let created = created(record);
        let labels = &record.config.config.labels;
        dangling.is_none_or(|wanted| record.names.is_empty() == wanted)
            && filters.labels("label", labels)
            && filters.without_labels("label!", labels)
            && until.is_none_or(|until| created < until)
            && before.is_none_or(|before| created < before)
            && since.is_none_or(|since| created > since)
    });
    if !references.is_empty() {
        for record in &mut images {
            record
                .names
                .retain(|name| references.iter().any(|pattern| matches(pattern, name)));
        }
        images.retain(|record| !record.names.is_empty());
    }
    images.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.id.cmp(&b.id)));
    Ok(images)
}

/// Whether a name is meant by a pattern: Go's `path.Match` on the repository, or on repository and tag.
fn matches(pattern: &str, name: &Name) -> bool {
    let pattern = familiar(pattern);
    let full = name.to_string();
    glob(pattern.as_bytes(), full.as_bytes())
        || glob(pattern.as_bytes(), name.repository().as_bytes())
}

/// `*` and `?` stand for anything but a slash.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while here < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
                continue;
            }
            Some(b'?') if text[here] != b'/' => {
                at += 1;
                here += 1;
                continue;
            }
            Some(c) if *c == text[here] => {
                at += 1;
                here += 1;
                continue;
            }
            _ => {}
        }
        // The last star takes one more.
        match star {
            Some((place, taken)) if text[taken] != b'/' => {
                star = Some((place, taken + 1));
                at = place + 1;
                here = taken + 1;
            }
            _ => return false,
        }
    }
    pattern[at..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_glob_of_repository_and_tag() {
        let cases = [
            ("busybox", "busybox:latest", true),
            ("busybox:latest", "busybox:latest", true),
            ("busybox:1", "busybox:latest", false),
            ("busy*", "busybox:latest", true),
            ("busy*:l?test", "busybox:latest", true),
            ("*", "sample/busybox:latest", false),
            ("*/*", "sample/busybox:latest", true),
            ("sample/*:latest", "sample/busybox:latest", true),
            ("docker.io/library/busybox", "busybox:latest", true),
            ("*box*x", "busybox:latest", false),
            ("a*b*c", "axbxbxc:1", true),
            ("", "busybox:latest", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(
                matches(pattern, &name.parse().unwrap()),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
