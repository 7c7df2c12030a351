//! `vch fork`: children of a running container, asked for at the endpoint that serves it.

use crate::failure::Failure;
use crate::paths;
use anyhow::{Context, Result, bail};
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// More than any answer has, bytes.
const ANSWER: usize = 1 << 20;

#[derive(Args, Debug)]
pub struct ForkArgs {
    /// A running container, by name, id, or start of one
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// How many children
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub count: u32,
    /// Signal for the main process of each child as it goes on
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// The endpoint that serves it, unix://PATH [default: that of the VCH]
    #[arg(short = 'H', long, value_name = "HOST", env = "DOCKER_HOST")]
    pub host: Option<String>,
    /// The VCH
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        conflicts_with = "host"
    )]
    pub vch: String,
}

/// Forks it and prints the children's ids, one a line.
///
/// # Errors
/// Nobody serves, or the endpoint's own.
pub fn run(state: Option<&Path>, args: &ForkArgs) -> Result<u8, Failure> {
    let socket = socket(state, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    for id in runtime.block_on(ask(&socket, args))? {
        println!("{id}");
    }
    Ok(0)
}

fn socket(state: Option<&Path>, args: &ForkArgs) -> Result<PathBuf> {
    match &args.host {
        None => Ok(paths::State::open(state)?
            .vch(&args.vch)?
            .join("docker.sock")),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => Ok(path.into()),
            None => {
                bail!("vch fork asks at Unix sockets only: give --host unix://PATH, not {host}")
            }
        },
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Forked {
    ids: Vec<String>,
}

#[derive(Deserialize)]
struct Refused {
    message: String,
}

async fn ask(socket: &Path, args: &ForkArgs) -> Result<Vec<String>> {
    let at = socket.display();
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!("nobody serves at {at}: start vch serve, or give its socket with --host")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .with_context(|| format!("cannot talk to {at}"))?;
    let connection = tokio::spawn(connection);
    let signal = args.signal.as_deref().unwrap_or_default();
    if !args.container.bytes().all(plain) || !signal.bytes().all(plain) {
        bail!("{:?} or {signal:?} is no name", args.container);
    }
    let uri = format!(
        "/vch/containers/{}/fork?count={}&signal={signal}",
        args.container, args.count
    );
    let request = Request::post(uri)
        .header("host", "docker")
        .body(Empty::<Bytes>::new())?;
    let answer = sender
        .send_request(request)
        .await
        .with_context(|| format!("{at} gave no answer"))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer of {at} broke off: {error}"))?;
    drop(sender);
    let _ = connection.await;
    let body = body.to_bytes();
    if status != StatusCode::CREATED {
        let message = serde_json::from_slice::<Refused>(&body).map(|refused| refused.message);
        bail!(
            "{}",
            message.unwrap_or_else(|_| format!("{at} answered {status}"))
        );
    }
    let forked: Forked = serde_json::from_slice(&body)
        .with_context(|| format!("the answer of {at} makes no sense"))?;
    Ok(forked.ids)
}

/// What a name, an id or a signal is made of, none of which means anything in a URI.
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+')
}
