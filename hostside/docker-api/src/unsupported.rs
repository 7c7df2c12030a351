//! What a VCH does not do: refused by name, with 501, and the way out where there is one.

use axum::Router;
use axum::extract::Request;
use axum::routing::any;

use crate::engine::Engine;
use crate::errors::{Answer, ApiError};

/// Path, and what is behind it.
const ROUTES: [(&str, &str); 27] = [
    (
        "/build",
        "building images (build elsewhere, `docker save` there and `docker load` here)",
    ),
    ("/build/cancel", "building images"),
    (
        "/session",
        "building images (build elsewhere, `docker save` there and `docker load` here)",
    ),
    (
        "/grpc",
        "building images (build elsewhere, `docker save` there and `docker load` here)",
    ),
    ("/images/search", "searching registries"),
    (
        "/containers/{id}/attach/ws",
        "attaching by WebSocket (use /attach)",
    ),
    ("/containers/{id}/checkpoints", "checkpoints"),
    ("/containers/{id}/checkpoints/{checkpoint}", "checkpoints"),
    ("/networks/create", "creating networks"),
    (
        "/networks/{id}/connect",
        "connecting a container to another network",
    ),
    (
        "/networks/{id}/disconnect",
        "disconnecting a container from its network",
    ),
    ("/volumes/create", "creating volumes"),
    ("/distribution/{*name}", "looking images up in a registry"),
    ("/plugins", "plugins"),
    ("/plugins/{*rest}", "plugins"),
    ("/swarm", "swarm"),
    ("/swarm/{*rest}", "swarm"),
    ("/nodes", "swarm"),
    ("/nodes/{*rest}", "swarm"),
    ("/services", "swarm services"),
    ("/services/{*rest}", "swarm services"),
    ("/tasks", "swarm tasks"),
    ("/tasks/{*rest}", "swarm tasks"),
    ("/secrets", "swarm secrets"),
    ("/secrets/{*rest}", "swarm secrets"),
    ("/configs", "swarm configs"),
    ("/configs/{*rest}", "swarm configs"),
];

/// Those routes.
pub fn routes() -> Router<Engine> {
    ROUTES
        .iter()
        .fold(Router::new(), |router, &(path, what)| {
            let refuse = move |request: Request| async move {
                crate::body::swallow(request.into_body()).await;
                Answer::Err(ApiError::unsupported(what))
            };
            router.route(path, any(refuse))
        })
        .route(
            "/auth",
            any(|request: Request| async {
                crate::body::swallow(request.into_body()).await;
                Answer::Err(crate::system::auth())
            }),
        )
}
