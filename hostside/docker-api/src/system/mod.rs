//! The VCH itself: `/info`, `/version`, `/_ping`, `/system/df`.

mod df;
mod info;

pub use df::disk_usage;
pub use info::info;

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::body;
use crate::engine::Engine;
use crate::errors::ApiError;
use crate::version::{ENGINE, NEWEST, OLDEST};

/// What runs containers here, where Docker says `runc`.
pub const RUNTIME: &str = "containervm";
/// How disks are kept, where Docker says `overlay2`.
pub const STORAGE: &str = "vmdk";

/// `GET /_ping` and `HEAD /_ping` (Engine API 1.24).
pub async fn ping() -> Response {
    let mut response = Response::new(axum::body::Body::from("OK"));
    body::set(&mut response, "content-type", "text/plain; charset=utf-8");
    body::set(
        &mut response,
        "cache-control",
        "no-cache, no-store, must-revalidate",
    );
    body::set(&mut response, "pragma", "no-cache");
    body::set(&mut response, "builder-version", "1");
    body::set(&mut response, "swarm", "inactive");
    response
}

/// The host's kernel.
fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// `GET /version` (Engine API 1.24).
pub async fn version(axum::extract::State(engine): axum::extract::State<Engine>) -> Response {
    let vch = engine.vch();
    let kernel = kernel();
    body::ok(&json!({
        "Platform": { "Name": "containerVMs" },
        "Components": [{
            "Name": "Engine",
            "Version": ENGINE,
            "Details": {
                "ApiVersion": NEWEST.to_string(),
                "Arch": "amd64",
                "Experimental": "false",
                "GitCommit": "",
                "KernelVersion": kernel,
                "MinAPIVersion": OLDEST.to_string(),
                "Os": "linux",
            },
        }, {
            "Name": "vch",
            "Version": vch.version,
            "Details": {
                "Driver": engine.port_layer().hypervisor_name(),
                "Name": vch.name,
            },
        }],
        "Version": ENGINE,
        "ApiVersion": NEWEST.to_string(),
        "MinAPIVersion": OLDEST.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": "amd64",
        "KernelVersion": kernel,
        "BuildTime": "",
    }))
}

/// `POST /auth` (Engine API 1.24).
pub fn auth() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "logging in to a registry is not supported by this VCH: it cannot reach registries yet",
    )
}
