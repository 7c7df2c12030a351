//! Versions of the Engine API: which there are, and what a request asks for.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;

use crate::errors::ApiError;

/// A version of the Engine API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Always 1 so far.
    pub major: u16,
    /// What counts.
    pub minor: u16,
}

/// The oldest that is answered.
pub const OLDEST: ApiVersion = ApiVersion::new(1, 24);
/// The newest, and that of requests that name none.
pub const NEWEST: ApiVersion = ApiVersion::new(1, 47);
/// The version of the Engine whose API this is, which clients and scripts read.
pub const ENGINE: &str = "27.5.1";

impl ApiVersion {
    /// `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| {
            if text.bytes().all(|b| b.is_ascii_digit()) {
                text.parse().map_err(|_| ())
            } else {
                Err(())
            }
        };
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self::new(number(major)?, number(minor)?))
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(NEWEST))
    }
}

/// Takes the version off a request's path. A path without one is of the newest.
///
/// # Errors
/// 400: too old or too new, in the Engine's words.
pub fn negotiate(uri: &Uri) -> Result<(ApiVersion, Option<Uri>), ApiError> {
    let path = uri.path();
    let versioned = path
        .strip_prefix("/v")
        .and_then(|rest| Some((rest, rest.find('/')?)))
        .and_then(|(rest, slash)| {
            Some((rest[..slash].parse::<ApiVersion>().ok()?, &rest[slash..]))
        });
    let Some((version, rest)) = versioned else {
        return Ok((NEWEST, None));
    };
    if version < OLDEST {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {OLDEST}, \
             please upgrade your client to a newer version"
        )));
    }
    if version > NEWEST {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {NEWEST}"
        )));
    }
    let text = match uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    let path =
        PathAndQuery::try_from(text).map_err(|error| ApiError::invalid(error.to_string()))?;
    parts.path_and_query = Some(path);
    let uri = Uri::from_parts(parts).map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok((version, Some(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_taken_off_the_path() {
        let cases = [
            (
                "/v1.47/containers/json?all=1",
                Ok(("1.47", "/containers/json?all=1")),
            ),
            ("/v1.24/_ping", Ok(("1.24", "/_ping"))),
            ("/_ping", Ok(("1.47", "/_ping"))),
            ("/volumes", Ok(("1.47", "/volumes"))),
            ("/v1.x/info", Ok(("1.47", "/v1.x/info"))),
            (
                "/v1.23/info",
                Err("client version 1.23 is too old. Minimum supported API version is 1.24"),
            ),
            (
                "/v1.48/info",
                Err("client version 1.48 is too new. Maximum supported API version is 1.47"),
            ),
            ("/v2.0/info", Err("too new")),
        ];
        for (path, expected) in cases {
            let uri: Uri = path.parse().unwrap();
            match (negotiate(&uri), expected) {
                (Ok((version, rewritten)), Ok((wanted, rest))) => {
                    assert_eq!(version.to_string(), wanted, "{path}");
                    assert_eq!(rewritten.unwrap_or(uri).to_string(), rest);
                }
                (Err(error), Err(words)) => {
                    assert!(error.message.contains(words), "{}", error.message)
                }
                (got, _) => panic!("{path}: {got:?}"),
            }
        }
    }
}
