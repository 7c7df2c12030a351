//! Bodies of requests and answers: JSON of bounded size, and streams that are never held whole.

use std::io;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Frame;
use portlayer::ByteSource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::errors::ApiError;
use portlayer::ByteStream;

/// The most a JSON body may be long, in bytes. Go's server has no bound; what clients send is a few
/// kilobytes.
const LARGEST_JSON: usize = 4 << 20;
/// How much of a body is read though nobody wants it, so that a client that is still sending gets to read
/// its answer, bytes. Whoever sends more finds the connection closed.
const UNWANTED: usize = 64 << 20;
/// How many pieces of an upload wait between the connection and whoever reads it.
const PIECES: usize = 4;

/// An answer in JSON, ended by a newline as Go's encoder does.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    let (status, text) = match serde_json::to_string(value) {
        Ok(text) => (status, text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            serde_json::json!({ "message": error.to_string() }).to_string(),
        ),
    };
    let mut response = Response::new(Body::from(text + "\n"));
    *response.status_mut() = status;
    set(&mut response, "content-type", "application/json");
    response
}

/// 200 and JSON.
pub fn ok<T: Serialize + ?Sized>(value: &T) -> Response {
    json(StatusCode::OK, value)
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// 204.
pub fn done() -> Response {
    empty(StatusCode::NO_CONTENT)
}

/// Sets a header whose value is known to be one.
pub fn set(response: &mut Response, name: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
}

/// 200 and bytes as they come. The stream is dropped when the client goes away.
pub fn streamed<S>(content_type: &str, pieces: S) -> Response
where
    S: Stream<Item = Result<Bytes, io::Error>> + Send + 'static,
{
    let mut response = Response::new(Body::from_stream(pieces));
    set(&mut response, "content-type", content_type);
    response
}

/// What the port layer streams, as a stream of a body. An error breaks the connection off, which is how a
/// client learns that what it has is not all.
pub fn from_port_layer(bytes: ByteStream) -> impl Stream<Item = Result<Bytes, io::Error>> + Send {
    stream::unfold(bytes, |mut bytes| async move {
        let piece = bytes.next().await?;
        let piece = piece.map_err(|error| {
            let text = crate::errors::chain(&error);
            tracing::warn!("a stream to a client broke off: {text}");
            io::Error::other(text)
        });
        Some((piece, bytes))
    })
}

/// A JSON line.
pub fn line<T: Serialize>(value: &T) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    Bytes::from(text)
}

/// Whether a request has a body.
pub fn is_there(headers: &HeaderMap) -> bool {
    match headers.get(CONTENT_LENGTH) {
        Some(length) => length != "0",
        None => headers.contains_key(TRANSFER_ENCODING),
    }
}

/// The JSON in a request's body; `None` if it has no body.
///
/// # Errors
/// 400: it is not declared as JSON, is none, or is longer than this takes.
pub async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
) -> Result<Option<T>, ApiError> {
    if let Some(declared) = headers.get(CONTENT_TYPE) {
        let declared = String::from_utf8_lossy(declared.as_bytes());
        let media = declared.split(';').next().unwrap_or_default().trim();
        if is_there(headers) && !media.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::invalid(format!(
                "unsupported Content-Type header ({declared}): must be 'application/json'"
            )));
        }
    } else if is_there(headers) {
        return Err(ApiError::invalid(
            "malformed Content-Type header (): mime: no media type",
        ));
    }
    let bytes = match Limited::new(body, LARGEST_JSON).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            return Err(ApiError::invalid(format!(
                "invalid JSON: longer than {} MiB",
                LARGEST_JSON >> 20
            )));
        }
        Err(error) => return Err(ApiError::invalid(format!("cannot read the body: {error}"))),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(ApiError::invalid(format!("invalid JSON: {error}"))),
        None => return Ok(None),
    };
    match values.next() {
        None => Ok(value),
        Some(_) => Err(ApiError::invalid("unexpected content after JSON")),
    }
}

/// Reads what is left of a body that nobody wants.
pub async fn swallow(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > UNWANTED {
            return;
        }
    }
}

/// Passes a request's body on to whoever reads the other end; ends with it. A body that breaks off is an
/// error there, so that half an archive is not taken for a whole one.
pub fn upload(body: Body) -> (ByteSource, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let feed = async move {
        let mut body = body;
        while let Some(frame) = body.frame().await {
            let piece = match frame.map(Frame::into_data) {
                // Trailers mean nothing here.
                Ok(Err(_)) => continue,
                Ok(Ok(data)) if data.is_empty() => continue,
                Ok(Ok(data)) => Ok(data),
                Err(error) => Err(io::Error::other(error)),
            };
            let last = piece.is_err();
            if sender.send(piece).await.is_err() {
                return swallow(body).await;
            }
            if last {
                return;
            }
        }
    };
    (receiver, feed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    async fn read(content_type: Option<&str>, text: &'static str) -> Result<Option<Value>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, text.len().into());
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        }
        read_json(&headers, Body::from(text))
            .await
            .map_err(|error| error.message)
    }

    #[tokio::test]
    async fn a_body_is_json_or_nothing() {
        let json = Some("application/json");
        assert_eq!(
            read(json, r#"{"A":1}"#).await,
            Ok(Some(serde_json::json!({"A": 1})))
        );
        assert_eq!(
            read(Some("application/json; charset=utf-8"), "1").await,
            Ok(Some(1.into()))
        );
        assert_eq!(read(json, " \n").await, Ok(None));
        assert_eq!(read(None, "").await, Ok(None));
        assert_eq!(read(Some("text/plain"), "").await, Ok(None));
        let cases = [
            (Some("text/plain"), "{}", "unsupported Content-Type header"),
            (None, "{}", "malformed Content-Type"),
            (json, "{", "invalid JSON"),
            (json, "{} {}", "unexpected content after JSON"),
        ];
        for (content_type, text, words) in cases {
            let message = read(content_type, text).await.unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_end() {
        let pieces = stream::iter([Ok(Bytes::from_static(b"ab")), Err(io::Error::other("cut"))]);
        let (mut source, feed) = upload(Body::from_stream(pieces));
        tokio::spawn(feed);
        assert_eq!(source.recv().await.unwrap().unwrap(), "ab");
        assert!(source.recv().await.unwrap().is_err());
        assert!(source.recv().await.is_none());
    }
}
