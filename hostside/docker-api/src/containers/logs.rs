//! `GET /containers/{id}/logs`.

use std::collections::VecDeque;
use std::fmt::Write;
use std::io;

use axum::extract::{Path, State};
use bytes::Bytes;
use futures_util::stream;
use portlayer::spec::{ContainerSpec, LogSpec};
use portlayer::{Follow, LogQuery, LogReader, LogRecord, State as ContainerState, WrongState};

use crate::body;
use crate::containers::create::Written;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError, chain};
use crate::multiplex::{Channel, Framing, MULTIPLEXED_STREAM, RAW_STREAM};
use crate::query::Query;
use crate::time;
use crate::version::ApiVersion;

/// `GET /containers/{id}/logs` (Engine API 1.24).
///
/// # Errors
/// 400: no stream was chosen, or a time is none. 404: no such container. 501: it keeps no log.
pub async fn logs(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::invalid(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let container = engine.container(&name)?;
    if matches!(container.state, ContainerState::Removing) {
        return Err(portlayer::Error::from(WrongState::Removing(container.id)).into());
    }
    if container.spec.log == LogSpec::None {
        return Err(ApiError::new(
            axum::http::StatusCode::NOT_IMPLEMENTED,
            "configured logging driver does not support reading",
        ));
    }
    let log_query = LogQuery {
        stdout,
        stderr,
        since: query.moment("since")?,
        until: query.moment("until")?,
        // Anything that is no number is all.
        tail: query.text("tail").parse().ok(),
        follow: if query.flag("follow") {
            Follow::Yes
        } else {
            Follow::No
        },
    };
    let terminal = container.spec.process.stdio.is_terminal();
    let content_type = if !terminal && version >= ApiVersion::new(1, 42) {
        MULTIPLEXED_STREAM
    } else {
        RAW_STREAM
    };
    let reader = engine.port_layer().logs(&container.id, log_query).await?;
    let lines = Lines {
        reader,
        framing: Framing::for_terminal(terminal),
        prefix: Prefix {
            timestamps: query.flag("timestamps"),
            details: query.flag("details").then(|| details(&container.spec)),
        },
        // A line longer than a record comes in several: only its first has a prefix.
        within: VecDeque::new(),
    };
    let ending = Box::pin(engine.ending());
    let pieces = stream::unfold((lines, ending), |(mut lines, mut ending)| async move {
        tokio::select! {
            biased;
            piece = lines.next() => Some((Ok::<_, io::Error>(piece?), (lines, ending))),
            () = &mut ending => None,
        }
    });
    Ok(body::streamed(content_type, pieces))
}

/// What `--details` puts in front of a line: the labels and variables that the log's options choose.
fn details(spec: &ContainerSpec) -> String {
    let written = Written::of(spec);
    let options = &written.host_config.log_config.config;
    let chosen = |option: &str| -> Vec<String> {
        let names = options.get(option).map(String::as_str).unwrap_or_default();
        names.split(',').map(str::to_owned).collect()
    };
    let mut pairs: Vec<(String, String)> = Vec::new();
    for name in chosen("labels") {
        if let Some(value) = spec.labels.get(&name) {
            pairs.push((name, value.clone()));
        }
    }
    for name in chosen("env") {
        let value = spec.process.env.iter().find_map(|entry| {
            let (known, value) = entry.split_once('=')?;
            (known == name).then(|| value.to_owned())
        });
        if let Some(value) = value {
            pairs.push((name, value));
        }
    }
    pairs.sort();
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    pairs.collect::<Vec<_>>().join(",")
}

struct Prefix {
    timestamps: bool,
    details: Option<String>,
}

impl Prefix {
    fn of(&self, record: &LogRecord) -> String {
        let mut prefix = String::new();
        if self.timestamps {
            let _ = write!(prefix, "{} ", time::rfc3339_fixed(record.time));
        }
        if let Some(details) = &self.details {
            let _ = write!(prefix, "{details} ");
        }
        prefix
    }
}

struct Lines {
    reader: LogReader,
    framing: Framing,
    prefix: Prefix,
    /// Streams whose last record did not end its line.
    within: VecDeque<Channel>,
}

impl Lines {
    /// The next record as it goes to the client.
    async fn next(&mut self) -> Option<Bytes> {
        let record = match self.reader.next().await? {
            Ok(record) => record,
            Err(error) => {
                let text = format!("Error grabbing logs: {}\n", chain(&error));
                return Some(self.framing.frame(Channel::System, text.into()));
            }
        };
        let channel = Channel::from(record.output);
        let goes_on = self.within.contains(&channel);
        self.within.retain(|known| *known != channel);
        if !record.data.ends_with(b"\n") {
            self.within.push_back(channel);
        }
        let prefix = if goes_on {
            String::new()
        } else {
            self.prefix.of(&record)
        };
        let data = if prefix.is_empty() {
            record.data
        } else {
            let mut line = prefix.into_bytes();
            line.extend_from_slice(&record.data);
            line.into()
        };
        Some(self.framing.frame(channel, data))
    }
}
