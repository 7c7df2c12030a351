//! Images: `/images/...`.
//!
//! An image's name may have slashes, so that what is to be done with it is found at the end of the path.

pub mod inspect;
pub mod list;
pub mod load;
pub mod remove;

use axum::extract::{Path, Request, State};
use axum::http::{Method, StatusCode};

use portlayer::image::reference::Name;
use portlayer::image::store::ImageRecord;

use crate::body;
use crate::engine::{Engine, to_the_end};
use crate::errors::{Answer, ApiError};
use crate::query::Query;
use crate::version::ApiVersion;

/// Where Docker's own images are said to come from; names with and without it are the same here.
const IMPLIED: [&str; 2] = ["docker.io/library/", "docker.io/"];

/// A name without what clients put in front of it.
pub fn familiar(text: &str) -> &str {
    IMPLIED
        .iter()
        .find_map(|implied| text.strip_prefix(implied))
        .unwrap_or(text)
}

/// Whether a text is this name.
pub fn same_name(name: &Name, text: &str) -> bool {
    familiar(text)
        .parse::<Name>()
        .is_ok_and(|other| other.tagged() == *name)
}

impl Engine {
    /// The image called `text`.
    ///
    /// # Errors
    /// 404: there is none. 400: it is no name.
    pub fn image(&self, text: &str) -> Result<ImageRecord, ApiError> {
        let found = self.port_layer().image(text);
        let short = familiar(text);
        match found {
            Err(_) if short != text => Ok(self.port_layer().image(short)?),
            found => Ok(found?),
        }
    }
}

/// `/images/{name}/...`.
///
/// # Errors
/// 404: no such route, or no such image.
pub async fn route(
    State(engine): State<Engine>,
    Path(path): Path<String>,
    version: ApiVersion,
    query: Query,
    request: Request,
) -> Answer {
    let (name, action) = path.rsplit_once('/').unwrap_or((&path, ""));
    match (request.method().as_str(), action) {
        ("GET", "json") => inspect::inspect(&engine, name, version),
        ("GET", "history") => inspect::history(&engine, name),
        ("GET", "get") => Err(save()),
        ("POST", "tag") => tag(&engine, name, &query).await,
        ("POST", "push") => Err(ApiError::unsupported(
            "pushing images (no registry can be reached yet)",
        )),
        ("DELETE", _) => remove::remove(&engine, &path, &query).await,
        _ => Err(crate::router::page_not_found()),
    }
}

/// `GET /images/get` and `GET /images/{name}/get`.
pub fn save() -> ApiError {
    ApiError::unsupported("saving images (docker save)")
}

/// `POST /images/{name}/tag` (Engine API 1.24).
async fn tag(engine: &Engine, name: &str, query: &Query) -> Answer {
    let record = engine.image(name)?;
    let target = crate::containers::commit::name(familiar(query.text("repo")), query.text("tag"))?
        .ok_or_else(|| ApiError::invalid("invalid reference format: the repository is empty"))?;
    let port_layer = engine.port_layer().clone();
    to_the_end(async move { Ok(port_layer.tag(&record.id.to_string(), &target)?) }).await?;
    Ok(body::empty(StatusCode::CREATED))
}

/// `POST /images/create`: import, and what would be a pull.
///
/// # Errors
/// 404 with the wording `docker run` ends with: there is no registry to pull from.
pub async fn create(State(engine): State<Engine>, query: Query, request: Request) -> Answer {
    debug_assert_eq!(request.method(), Method::POST);
    let source = query.text("fromSrc");
    if !source.is_empty() {
        if source != "-" {
            return Err(ApiError::unsupported(
                "importing from a URL (download it, then `docker import FILE`)",
            ));
        }
        return load::import(&engine, &query, request.into_body()).await;
    }
    let (image, tag) = (query.text("fromImage"), query.text("tag"));
    let name = match tag {
        "" => image.to_owned(),
        digest if digest.contains(':') => format!("{image}@{digest}"),
        tag => format!("{image}:{tag}"),
    };
    let shown = familiar(&name);
    Err(ApiError::not_found(format!(
        "No such image: {shown}: this VCH cannot pull from registries yet; bring it in with \
         `docker load` or `docker import`"
    )))
}
