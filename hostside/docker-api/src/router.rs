//! Which request goes where, and what every answer has.

use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, head, post};
use bytes::Bytes;
use http_body_util::BodyExt;
use tower_service::Service;

use crate::containers::{
    archive, attach, commit, create, fork, inspect, lifecycle, list, logs, prune, stats, top,
    update, wait,
};
use crate::engine::Engine;
use crate::errors::ApiError;
use crate::version::{self, ENGINE, NEWEST};
use crate::{body, events, exec, images, networks, system, unsupported};

/// 404 for a path that is none.
pub fn page_not_found() -> ApiError {
    ApiError::not_found("page not found")
}

/// The route that was found, for those who count.
#[derive(Clone)]
struct Route(String);

async fn remember(request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| format!("{} {}", request.method(), path.as_str()));
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(Route(route));
    }
    response
}

fn routes() -> Router<Engine> {
    let containers = Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", post(create::create))
        .route("/containers/prune", post(prune::prune))
        .route("/containers/{id}", delete(lifecycle::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/top", get(top::top))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/changes", get(archive::changes))
        .route("/containers/{id}/export", get(archive::export))
        .route(
            "/containers/{id}/archive",
            head(archive::stat)
                .get(archive::download)
                .put(archive::upload),
        )
        .route("/containers/{id}/start", post(lifecycle::start))
        .route("/containers/{id}/stop", post(lifecycle::stop))
        .route("/containers/{id}/restart", post(lifecycle::restart))
        .route("/containers/{id}/kill", post(lifecycle::kill))
        .route("/containers/{id}/pause", post(lifecycle::pause))
        .route("/containers/{id}/unpause", post(lifecycle::unpause))
        .route("/containers/{id}/rename", post(lifecycle::rename))
        .route("/containers/{id}/resize", post(lifecycle::resize))
        .route("/containers/{id}/update", post(update::update))
        .route("/containers/{id}/wait", post(wait::wait))
        .route("/vch/containers/{id}/fork", post(fork::fork))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/commit", post(commit::commit))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect));
    let images = Router::new()
        .route("/images/json", get(images::list::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load::load))
        .route("/images/prune", post(images::remove::prune))
        .route("/images/get", get(|| async { images::save() }))
        .route("/images/{*rest}", any(images::route));
    let system = Router::new()
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/system/df", get(system::disk_usage))
        .route("/events", get(events::events))
        .route("/networks", get(networks::list))
        .route("/networks/prune", post(networks::prune))
        .route(
            "/networks/{id}",
            get(networks::inspect).delete(networks::remove),
        )
        .route("/volumes", get(networks::volumes))
        .route("/build/prune", post(networks::prune_build_cache))
        .route("/volumes/prune", post(networks::prune_volumes))
        .route(
            "/volumes/{name}",
            get(networks::volume)
                .put(networks::volume)
                .delete(networks::volume),
        );
    containers
        .merge(images)
        .merge(system)
        .merge(unsupported::routes())
        .route_layer(middleware::from_fn(remember))
        .method_not_allowed_fallback(|| async { page_not_found() })
        .fallback(|| async { page_not_found() })
}

/// Answers requests. Clones are the same.
#[derive(Clone)]
pub struct Endpoint {
    engine: Engine,
    routes: Router,
}

impl Endpoint {
    /// The endpoint of a VCH.
    pub fn new(engine: Engine) -> Self {
        let routes = routes().with_state(engine.clone());
        Self { engine, routes }
    }

    /// Whose it is.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Answers one request.
    pub async fn answer<B>(&self, request: axum::http::Request<B>) -> Response
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let begun = Instant::now();
        let mut request = read_small(request.map(Body::new)).await;
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut response = match version::negotiate(request.uri()) {
            Err(error) => error.into_response(),
            Ok((version, rewritten)) => {
                if let Some(uri) = rewritten {
                    *request.uri_mut() = uri;
                }
                request.extensions_mut().insert(version);
                let mut routes = self.routes.clone();
                match routes.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        };
        identify(response.headers_mut());
        let status = response.status().as_u16();
        let route = response.extensions_mut().remove::<Route>();
        let route = route.map_or("other".to_owned(), |Route(route)| route);
        let took = begun.elapsed();
        self.engine.metrics().count(&route, status, took);
        tracing::debug!(%method, path, status, milliseconds = took.as_millis() as u64, "request");
        response
    }
}

/// A short body is read before anything is answered: a refusal that does not look into it would close the
/// connection on a client that is still sending.
async fn read_small(request: Request) -> Request {
    const SMALL: usize = 256 << 10;
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if !length.is_some_and(|length| (1..=SMALL).contains(&length)) {
        return request;
    }
    let (parts, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(whole) => Body::from(whole.to_bytes()),
        // Whoever reads it finds the same.
        Err(error) => {
            Body::from_stream(futures_util::stream::once(async { Err::<Bytes, _>(error) }))
        }
    };
    Request::from_parts(parts, body)
}

/// What every answer says of who gave it.
fn identify(headers: &mut HeaderMap) {
    let fields = [
        ("api-version", NEWEST.to_string()),
        ("docker-experimental", "false".to_owned()),
        ("ostype", "linux".to_owned()),
        ("server", format!("Docker/{ENGINE} (linux)")),
    ];
    for (name, value) in fields {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
}

/// The answer of the metrics listener.
pub fn metrics(engine: &Engine, path: &str) -> Response {
    if path != "/metrics" {
        return body::empty(StatusCode::NOT_FOUND);
    }
    let text = engine.metrics().text(engine.port_layer());
    let mut response = Response::new(Body::from(text));
    body::set(
        &mut response,
        "content-type",
        "text/plain; version=0.0.4; charset=utf-8",
    );
    response
}
