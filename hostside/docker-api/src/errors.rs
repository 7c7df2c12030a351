//! What a client is told when something is refused or fails: a status and `{"message": ...}`.
//!
//! Statuses and wording are the Engine's where scripts look at them (Engine API 1.47; `api/server/httpstatus`
//! and `daemon/errors.go` of the Engine).

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use portlayer::image::store::StoreError;
use portlayer::{Error, PathProblem, WrongState};
use serde_json::json;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// One sentence or more; empty where the status has no body (304).
    pub message: String,
}

/// What a handler gives.
pub type Answer = Result<Response, ApiError>;

impl ApiError {
    /// Any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400: the request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is none.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: not in this state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500: it failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: a VCH does not do this; `what` is named and the way out is said.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not supported by this VCH"),
        )
    }

    /// 304: it was so already.
    pub fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, String::new())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(status = self.status.as_u16(), "{}", self.message);
        }
        crate::body::json(self.status, &json!({ "message": self.message }))
    }
}

/// An error and all its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        // `transparent` errors say their source's words themselves.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// The command line client finds its exit status (126, 127) by these words in the message
/// (docker/cli, `cli/command/container/run.go`, `toStatusError`).
pub fn start_failure(status: u8, message: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match status {
        127 if !has(&["executable file not found", "no such file or directory"]) => {
            format!("{message}: executable file not found in $PATH")
        }
        126 if !has(&["permission denied", "is a directory"]) => {
            format!("{message}: permission denied")
        }
        _ => message.to_owned(),
    }
}

fn wrong_state(state: &WrongState) -> ApiError {
    match state {
        WrongState::NothingToDo(_) => ApiError::not_modified(),
        WrongState::AutoRemove => ApiError::invalid(state.to_string()),
        _ => ApiError::conflict(state.to_string()),
    }
}

fn store(image: &str, source: &StoreError) -> ApiError {
    match source {
        StoreError::NotFound(_) => no_such_image(image),
        StoreError::Reference(error) => {
            ApiError::invalid(format!("invalid reference format: {error}"))
        }
        StoreError::AmbiguousId(id) => ApiError::not_found(format!(
            "No such image: {id} (ambiguous: several ids start so)"
        )),
        StoreError::Named { id, names } => ApiError::conflict(format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories: {names}",
            &id.hex()[..12]
        )),
        StoreError::InUse { id, users } => ApiError::conflict(format!(
            "conflict: unable to remove repository reference \"{image}\" (must force) - container {users} is using its referenced image {}",
            &id.hex()[..12]
        )),
        StoreError::Digested(_) => {
            ApiError::invalid("refusing to create a tag with a digest reference")
        }
        StoreError::Import(error) => ApiError::invalid(chain(error)),
        // The store's own affairs.
        _ => ApiError::internal(chain(source)),
    }
}

/// What `docker run` looks for before it tries to pull.
pub fn no_such_image(image: &str) -> ApiError {
    ApiError::not_found(format!("No such image: {image}"))
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match &error {
            Error::NoSuchContainer(_) | Error::NoSuchExec(_) => Self::not_found(error.to_string()),
            Error::NoSuchImage(image) => no_such_image(image),
            Error::Ambiguous(_) | Error::Invalid(_) => Self::invalid(error.to_string()),
            Error::NameTaken { .. } | Error::NoRoom { .. } => Self::conflict(error.to_string()),
            Error::Unsupported(_) => Self::new(StatusCode::NOT_IMPLEMENTED, error.to_string()),
            Error::WrongState(state) => wrong_state(state),
            Error::Start { failure, .. } => {
                let message = start_failure(failure.status, &failure.message);
                match failure.status {
                    126 | 127 => Self::invalid(message),
                    _ => Self::internal(message),
                }
            }
            Error::ExecStart {
                status, message, ..
            } => {
                let message = start_failure(*status, message);
                match status {
                    126 | 127 => Self::invalid(message),
                    _ => Self::internal(message),
                }
            }
            Error::Image { image, source } => store(image, source),
            Error::Path { kind, message } => {
                let status = match kind {
                    PathProblem::NotFound => StatusCode::NOT_FOUND,
                    PathProblem::NotADirectory
                    | PathProblem::Conflict
                    | PathProblem::BadArchive => StatusCode::BAD_REQUEST,
                    PathProblem::ReadOnly => StatusCode::FORBIDDEN,
                    PathProblem::NoSpace | PathProblem::Other => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Self::new(status, message)
            }
            Error::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            _ => Self::internal(chain(&error)),
        }
    }
}

/// Errors of reading a request are the client's.
macro_rules! invalid {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for ApiError {
            fn from(error: $error) -> Self {
                Self::invalid(error.to_string())
            }
        }
    )*};
}

invalid!(
    crate::time::InvalidTime,
    crate::signals::InvalidSignal,
    crate::detach_keys::InvalidKeys,
    portlayer::InvalidName,
    portlayer::image::reference::ReferenceError,
);

#[cfg(test)]
mod tests {
    use super::*;
    use portlayer::{ContainerId, StartFailure};
    use std::time::SystemTime;

    #[test]
    fn every_refusal_has_docker_s_status() {
        let id = ContainerId::random().unwrap();
        let start = |status| Error::Start {
            id,
            failure: StartFailure {
                status,
                message: "exec \"x\"".into(),
                at: SystemTime::UNIX_EPOCH,
            },
        };
        let cases: Vec<(Error, u16, &str)> = vec![
            (
                Error::NoSuchContainer("x".into()),
                404,
                "No such container: x",
            ),
            (Error::NoSuchImage("x".into()), 404, "No such image: x"),
            (Error::Invalid("bad".into()), 400, "bad"),
            (
                Error::NameTaken {
                    name: "web".parse().unwrap(),
                    by: id,
                },
                409,
                "The container name \"/web\" is already in use by container",
            ),
            (WrongState::NothingToDo(id).into(), 304, ""),
            (WrongState::NotRunning(id).into(), 409, "is not running"),
            (WrongState::Paused(id).into(), 409, "is paused"),
            (start(127), 400, "executable file not found"),
            (start(126), 400, "permission denied"),
            (start(125), 500, "exec"),
            (
                Error::Path {
                    kind: PathProblem::NotFound,
                    message: "no /x".into(),
                },
                404,
                "no /x",
            ),
            (
                Error::Image {
                    image: "busybox".into(),
                    source: Box::new(StoreError::NotFound("busybox".into())),
                },
                404,
                "No such image: busybox",
            ),
            (Error::Unsupported("this".into()), 501, "this"),
        ];
        for (error, status, words) in cases {
            let shown = error.to_string();
            let answer = ApiError::from(error);
            assert_eq!(answer.status.as_u16(), status, "{shown}");
            assert!(answer.message.contains(words), "{}", answer.message);
        }
    }
}
