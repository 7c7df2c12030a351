//! `POST /containers/{id}/attach`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use portlayer::{Follow, LogQuery, State as ContainerState, Wanted};

use crate::detach_keys::DetachKeys;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError};
use crate::hijack::{End, Hijack, Session, Source};
use crate::query::Query;
use crate::version::ApiVersion;

/// `POST /containers/{id}/attach` (Engine API 1.24).
///
/// # Errors
/// 400: no such keys. 404: no such container. 409: it is paused or restarting.
pub async fn attach(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
    mut request: Request,
) -> Answer {
    let keys = DetachKeys::parse(query.text("detachKeys"))?;
    let container = engine.container(&name)?;
    match container.state {
        ContainerState::Paused(_) => {
            return Err(ApiError::conflict(format!(
                "container {name} is paused, unpause the container before attach"
            )));
        }
        ContainerState::Restarting { .. } => {
            return Err(ApiError::conflict(format!(
                "container {name} is restarting, wait until the container is running"
            )));
        }
        _ => {}
    }
    let wanted = Wanted {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    let id = container.id;
    let port_layer = engine.port_layer().clone();
    let (source, input) = match (query.flag("stream"), query.flag("logs")) {
        (true, replay) => {
            let attachment = port_layer.attach(&id, wanted, replay).await?;
            (Source::Process(attachment.output), attachment.input)
        }
        (false, true) => {
            let log_query = LogQuery {
                stdout: wanted.stdout,
                stderr: wanted.stderr,
                since: None,
                until: None,
                tail: None,
                follow: Follow::No,
            };
            (Source::Log(port_layer.logs(&id, log_query).await?), None)
        }
        (false, false) => (Source::Text(None), None),
    };
    let terminal = container.spec.process.stdio.is_terminal();
    let session = Session {
        source,
        input,
        keys: terminal.then_some(keys),
    };
    let hijack = Hijack::of(&mut request);
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let connected = hijack.connect(
        &engine,
        version,
        terminal,
        std::future::ready(session),
        body,
        move |end| {
            if end == End::Detached {
                port_layer.detached(&id, None);
            }
        },
    );
    Ok(connected.await)
}
