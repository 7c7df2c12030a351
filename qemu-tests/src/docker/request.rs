//! HTTP as plain as can be: what the command line does not show is asked for directly.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What the endpoint answered.
#[derive(Debug)]
pub struct Answer {
    /// Of the first line.
    pub status: u16,
    /// All header lines, in lower case.
    pub headers: String,
    /// As it came; may be chunked.
    pub body: String,
}

/// Sends one request of HTTP/1.0, so that the answer ends with the connection.
pub(super) fn send(socket: &Path, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let kind = match body {
        "" => "",
        _ => "Content-Type: application/json\r\n",
    };
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: docker\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("no status in {head:?}"))?,
        headers: head.to_lowercase(),
        body: body.to_owned(),
    })
}
