//! `POST /containers/{id}/wait`.
//!
//! The answer's head goes out as soon as the waiting has begun, since 1.30: `docker run` starts the
//! container only when it has it, and so misses no end, however short the container lives.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::task::Poll;

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use portlayer::{Ended, Error, WaitFor};
use serde_json::json;

use crate::body;
use crate::engine::Engine;
use crate::errors::{Answer, ApiError, chain};
use crate::query::Query;
use crate::version::ApiVersion;

/// `POST /containers/{id}/wait` (Engine API 1.24; `condition` since 1.30).
///
/// # Errors
/// 400: no such condition. 404: no such container.
pub async fn wait(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    version: ApiVersion,
    query: Query,
) -> Answer {
    let condition = if version < ApiVersion::new(1, 30) {
        ""
    } else {
        query.text("condition")
    };
    let what = match condition {
        "" | "not-running" => WaitFor::NotRunning,
        "next-exit" => WaitFor::NextExit,
        "removed" => WaitFor::Removed,
        other => {
            return Err(ApiError::invalid(format!("invalid condition: {other:?}")));
        }
    };
    let id = engine.find(&name)?;
    let port_layer = engine.port_layer().clone();
    let ending = engine.ending();
    let mut waiting = Box::pin(async move {
        let ended = pin!(port_layer.wait(&id, what));
        tokio::select! {
            biased;
            ended = ended => Some(ended),
            () = ending => None,
        }
    });
    // Polled once, it has begun: what happens from here on is seen.
    let begun = std::future::poll_fn(|context| {
        Poll::Ready(match waiting.as_mut().poll(context) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        })
    })
    .await;
    if let Some(Some(Err(error))) = begun {
        return Err(error.into());
    }
    if version < ApiVersion::new(1, 30) {
        let result = match begun {
            Some(result) => result,
            None => waiting.await,
        };
        return Ok(answer(result));
    }
    let body = stream::once(async move {
        let result = match begun {
            Some(result) => result,
            None => waiting.await,
        };
        line(result)
    });
    Ok(body::streamed("application/json", body))
}

fn answer(result: Option<Result<Ended, Error>>) -> Response {
    match line(result) {
        Ok(line) => {
            let pieces = stream::once(async { Ok::<_, Infallible>(line) });
            let mut response = Response::new(axum::body::Body::from_stream(pieces));
            body::set(&mut response, "content-type", "application/json");
            response
        }
        Err(error) => {
            axum::response::IntoResponse::into_response(ApiError::internal(error.to_string()))
        }
    }
}

/// The answer's body. One that breaks off says that the end was not seen.
fn line(result: Option<Result<Ended, Error>>) -> io::Result<Bytes> {
    match result {
        Some(Ok(ended)) => Ok(body::line(&json!({ "StatusCode": ended.status }))),
        Some(Err(error)) => Ok(body::line(
            &json!({ "StatusCode": -1, "Error": { "Message": chain(&error) } }),
        )),
        None => Err(io::Error::other("the endpoint is shutting down")),
    }
}
