//! `GET /events`.

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

use axum::extract::State;
use futures_util::stream;
use portlayer::{Action, Event, Subject};
use serde::Serialize;

use crate::body;
use crate::containers::describe::health_word;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::filters::Filters;
use crate::query::Query;
use crate::time;

/// An event as the API tells it (`EventMessage`, Engine API 1.47).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Until 1.22 the action; containers' and images' only.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    /// Until 1.22 the actor.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Until 1.22 the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    scope: &'static str,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

/// Whom an event happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: BTreeMap<String, String>,
}

/// The action's name, and what it adds to the actor's attributes.
fn action(action: &Action) -> Option<(String, Vec<(&'static str, String)>)> {
    let plain = |name: &str| Some((name.to_owned(), Vec::new()));
    let with =
        |name: &str, attributes: Vec<(&'static str, String)>| Some((name.to_owned(), attributes));
    match action {
        Action::Create => plain("create"),
        Action::Start => plain("start"),
        Action::Die { status, seconds } => with(
            "die",
            vec![
                ("exitCode", status.to_string()),
                ("execDuration", seconds.to_string()),
            ],
        ),
        Action::Stop => plain("stop"),
        Action::Kill { signal } => with("kill", vec![("signal", signal.to_string())]),
        Action::Restart => plain("restart"),
        Action::Pause => plain("pause"),
        Action::Unpause => plain("unpause"),
        Action::OutOfMemory => plain("oom"),
        Action::Rename { from } => with("rename", vec![("oldName", format!("/{from}"))]),
        Action::Update => plain("update"),
        Action::Destroy => plain("destroy"),
        Action::Attach => plain("attach"),
        Action::Detach => plain("detach"),
        Action::Resize { rows, columns } => with(
            "resize",
            vec![("height", rows.to_string()), ("width", columns.to_string())],
        ),
        Action::Top => plain("top"),
        Action::ExecCreate { exec, command } => with(
            &format!("exec_create: {command}"),
            vec![("execID", exec.to_string())],
        ),
        Action::ExecStart { exec, command } => with(
            &format!("exec_start: {command}"),
            vec![("execID", exec.to_string())],
        ),
        Action::ExecDetach { exec } => with("exec_detach", vec![("execID", exec.to_string())]),
        Action::ExecDie { exec, status } => with(
            "exec_die",
            vec![
                ("execID", exec.to_string()),
                ("exitCode", status.to_string()),
            ],
        ),
        Action::HealthStatus { status } => {
            plain(&format!("health_status: {}", health_word(*status)))
        }
        Action::ArchivePath => plain("archive-path"),
        Action::ExtractToDir => plain("extract-to-dir"),
        Action::Export => plain("export"),
        Action::Commit => plain("commit"),
        Action::Load => plain("load"),
        Action::Import => plain("import"),
        Action::Tag => plain("tag"),
        Action::Untag => plain("untag"),
        Action::Delete => plain("delete"),
        // One that is newer than this endpoint.
        _ => None,
    }
}

impl Message {
    /// What the port layer tells, in the API's words.
    pub fn of(event: &Event) -> Option<Self> {
        let (action, added) = action(&event.action)?;
        let (kind, id, name, image, labels) = match &event.subject {
            Subject::Container {
                id,
                name,
                image,
                labels,
            } => ("container", id.to_string(), name, Some(image), labels),
            Subject::Image { id, name, labels } => ("image", id.clone(), name, None, labels),
        };
        let mut attributes = labels.clone();
        attributes.insert("name".to_owned(), name.clone());
        if let Some(image) = image {
            attributes.insert("image".to_owned(), image.clone());
        }
        attributes.extend(
            added
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value)),
        );
        Some(Self {
            status: Some(action.clone()),
            id: Some(id.clone()),
            from: image.cloned(),
            kind,
            action,
            actor: Actor { id, attributes },
            scope: "local",
            time: time::unix_seconds(event.time),
            time_nano: time::unix_nanos(event.time),
        })
    }

    /// Whether filters let it through (the Engine's `daemon/events/filter.go`).
    pub fn passes(&self, filters: &Filters) -> bool {
        let name = self.actor.attributes.get("name").map_or("", String::as_str);
        let of_kind = |kind: &str| {
            !filters.has(kind)
                || (self.kind == kind
                    && (filters.prefix(kind, &self.actor.id) || filters.prefix(kind, name)))
        };
        self.passes_event(filters)
            && filters.exact("type", self.kind)
            && filters.exact("scope", self.scope)
            && of_kind("container")
            && of_kind("plugin")
            && of_kind("volume")
            && of_kind("network")
            && self.passes_image(filters, name)
            && filters.labels("label", &self.actor.attributes)
            && !filters.has("daemon")
    }

    /// Events with a text after a colon are also meant by what is before it.
    fn passes_event(&self, filters: &Filters) -> bool {
        let loose = ["health_status", "exec_create", "exec_start"];
        if filters
            .values("event")
            .any(|wanted| loose.contains(&wanted))
        {
            return filters.prefix("event", &self.action);
        }
        filters.exact("event", &self.action)
    }

    fn passes_image(&self, filters: &Filters, name: &str) -> bool {
        if !filters.has("image") {
            return true;
        }
        let untagged = |text: &str| match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
            _ => text.to_owned(),
        };
        let image = match self.kind {
            "image" => name,
            _ => self.from.as_deref().unwrap_or_default(),
        };
        let names = [&self.actor.id, image, &untagged(image)].map(str::to_owned);
        names.iter().any(|name| filters.exact("image", name))
    }
}

/// `GET /events` (Engine API 1.24): JSON lines, from `since` on, until `until` or the client goes.
///
/// # Errors
/// 400: a time or a filter makes no sense.
pub async fn events(State(engine): State<Engine>, query: Query) -> Answer {
    let (mut since, until) = (query.moment("since")?, query.moment("until")?);
    if query.text("since") == "0" {
        // The logs' "from the beginning" is no time at all; here it is one, as in dockerd.
        since = Some(SystemTime::UNIX_EPOCH);
    }
    if let (Some(from), Some(to)) = (since, until)
        && to < from
    {
        return Err(ApiError::invalid(format!(
            "`since` time ({}) cannot be after `until` time ({})",
            query.text("since"),
            query.text("until")
        )));
    }
    let filters = query.filters()?;
    // An end that is past asks for what was: without a beginning, for all that is kept.
    let past = until.is_some_and(|until| until < SystemTime::now());
    let since = if past {
        since.or(Some(SystemTime::UNIX_EPOCH))
    } else {
        since
    };
    let reader = engine.port_layer().events(since, until);
    let ending = Box::pin(engine.ending());
    let lines = stream::unfold(
        (reader, filters, ending),
        |(mut reader, filters, mut ending)| async move {
            loop {
                let event = tokio::select! {
                    biased;
                    event = reader.next() => event?,
                    () = &mut ending => return None,
                };
                let message = Message::of(&event).filter(|message| message.passes(&filters));
                if let Some(message) = message {
                    let line = body::line(&message);
                    return Some((Ok::<_, io::Error>(line), (reader, filters, ending)));
                }
            }
        },
    );
    Ok(body::streamed("application/json", lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use portlayer::{ContainerId, ExecId, HealthStatus};
    use std::time::Duration;

    fn container(action: Action) -> Message {
        let event = Event {
            time: SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            subject: Subject::Container {
                id: ContainerId::random().unwrap(),
                name: "web".into(),
                image: "sample/app:1".into(),
                labels: BTreeMap::from([("tier".into(), "front".into())]),
            },
            action,
        };
        Message::of(&event).unwrap()
    }

    #[test]
    fn an_event_has_docker_s_attributes() {
        let died = container(Action::Die {
            status: 3,
            seconds: 7,
        });
        assert_eq!(died.action, "die");
        assert_eq!(died.from.as_deref(), Some("sample/app:1"));
        assert_eq!(died.status.as_deref(), Some("die"));
        assert_eq!(
            (died.time, died.time_nano),
            (1_700_000_000, 1_700_000_000_000_000_005)
        );
        let expected = [
            ("execDuration", "7"),
            ("exitCode", "3"),
            ("image", "sample/app:1"),
            ("name", "web"),
            ("tier", "front"),
        ];
        let found: Vec<(&str, &str)> = died
            .actor
            .attributes
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        assert_eq!(found, expected);
        let exec = ExecId::random().unwrap();
        let cases = [
            (
                Action::Kill { signal: 15 },
                "kill",
                Some(("signal", "15".to_owned())),
            ),
            (
                Action::ExecCreate {
                    exec,
                    command: "sh -c x".into(),
                },
                "exec_create: sh -c x",
                Some(("execID", exec.to_string())),
            ),
            (
                Action::ExecDie { exec, status: 9 },
                "exec_die",
                Some(("exitCode", "9".to_owned())),
            ),
            (
                Action::HealthStatus {
                    status: HealthStatus::Healthy,
                },
                "health_status: healthy",
                None,
            ),
            (
                Action::Rename { from: "old".into() },
                "rename",
                Some(("oldName", "/old".to_owned())),
            ),
        ];
        for (action, name, attribute) in cases {
            let message = container(action);
            assert_eq!(message.action, name);
            if let Some((key, value)) = attribute {
                assert_eq!(message.actor.attributes[key], value);
            }
        }
    }

    #[test]
    fn filters_let_through_what_docker_s_would() {
        let exec = Action::ExecCreate {
            exec: ExecId::random().unwrap(),
            command: "ls".into(),
        };
        let message = container(exec);
        let cases = [
            ("{}", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["exec_create"]}"#, true),
            (r#"{"event":["exec_create: ls"]}"#, true),
            (r#"{"event":["start"]}"#, false),
            (r#"{"container":["we"]}"#, true),
            (r#"{"container":["db"]}"#, false),
            (r#"{"image":["sample/app"]}"#, true),
            (r#"{"image":["sample/app:1"]}"#, true),
            (r#"{"image":["sample"]}"#, false),
            (r#"{"label":["tier=front"]}"#, true),
            (r#"{"label":["tier=back"]}"#, false),
            (r#"{"network":["bridge"]}"#, false),
            (
                r#"{"type":["image","container"],"event":["exec_create","die"]}"#,
                true,
            ),
        ];
        for (text, expected) in cases {
            let filters = Filters::parse(text).unwrap();
            assert_eq!(message.passes(&filters), expected, "{text}");
        }
    }
}
