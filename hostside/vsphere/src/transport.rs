//! HTTP over TLS to one server: addresses, which certificate is trusted, connections, and whether a
//! request that failed may have arrived.
//!
//! A certificate is trusted because a CA signed it or because its thumbprint was given. One that is not is
//! refused with its thumbprint in the error; there is no way to trust without either.

mod thumbprint;
mod verifier;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

pub use thumbprint::{NotAThumbprint, Thumbprint};
use verifier::Verifier;

/// How long a server may take to accept a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(20);
/// The longest answer, in bytes. An inventory of 10,000 machines is a tenth of it.
const ANSWER_MAX: usize = 256 << 20;
/// Connections kept for later.
const IDLE_MAX: usize = 32;

/// What is sent with a request.
pub type RequestBody = BoxBody<Bytes, std::io::Error>;

/// A body that is in memory.
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// A body that comes piece by piece.
pub fn streamed(
    pieces: impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static,
) -> RequestBody {
    BodyExt::boxed(StreamBody::new(pieces.map_ok(Frame::data)))
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Its name or IP address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where its API is, as in `/sdk`.
    pub path: String,
}

/// Text that is no server's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no address of a vCenter or ESXi: {why}; give HOST, HOST:PORT or https://HOST[:PORT]/sdk"
)]
pub struct NotAnAddress {
    text: String,
    why: &'static str,
}

impl std::str::FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        // A password in a URL would be in the error as well.
        let shown = || match text.rsplit_once('@') {
            Some((_, host)) => format!("...@{host}"),
            None => text.to_owned(),
        };
        let refuse = |why| NotAnAddress { text: shown(), why };
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some(_) => return Err(refuse("only https is spoken")),
            None => text,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/sdk"),
        };
        if authority.contains('@') {
            return Err(refuse("user and password do not belong into it"));
        }
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| refuse("an open bracket"))?;
            (host, rest.strip_prefix(':'))
        } else {
            match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        let port = port
            .map_or(Ok(443), str::parse)
            .map_err(|_| refuse("its port is no number"))?;
        let fits = !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'_'));
        if !fits || !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse("it has no host, or characters no address has"));
        }
        let path = match path.trim_end_matches('/') {
            "" => "/sdk",
            path => path,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.authority())
    }
}

impl Address {
    /// Host and port as they stand in a URL and in a `Host` header.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// The CAs of this host (`/etc/ssl/certs/ca-certificates.crt`).
    System,
    /// The CAs in a PEM file.
    Ca(PathBuf),
    /// One certificate, whoever signed it.
    Thumbprint(Thumbprint),
}

/// A request did not get its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CAs could not be read.
    #[error("cannot read the CA certificates {}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server's certificate is not trusted. Nothing was sent.
    #[error(
        "the certificate of {server} is not trusted ({why}); its SHA-256 thumbprint is {} (SHA-1 {}): \
         if that is the server's own, give it as the thumbprint, or else the file of its CA",
        thumbprints.0,
        thumbprints.1
    )]
    Certificate {
        /// The server.
        server: String,
        /// Why not.
        why: String,
        /// The certificate's thumbprints by SHA-256 and, as older clients show it, SHA-1.
        thumbprints: Box<(Thumbprint, Thumbprint)>,
    },
    /// There was no connection. Nothing was sent.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection ended before the answer. The server may have done what was asked.
    #[error("the connection to {server} ended before the answer came")]
    Interrupted {
        /// The server.
        server: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A request was not sent, for its connection was closed meanwhile.
    #[error("the connection to {server} was closed before the request was sent")]
    Unsent {
        /// The server.
        server: String,
        /// Why.
        source: hyper::Error,
    },
    /// The answer did not come in time. The server may have done what was asked.
    #[error("{server} has not answered for {} s", after.as_secs())]
    Timeout {
        /// The server.
        server: String,
        /// How long it was given.
        after: Duration,
    },
    /// The answer has more bytes than any has.
    #[error("the answer of {server} has more than {ANSWER_MAX} bytes")]
    TooLong {
        /// The server.
        server: String,
    },
}

impl Error {
    /// Whether the server cannot have seen the request.
    pub fn never_sent(&self) -> bool {
        matches!(
            self,
            Self::Ca { .. } | Self::Certificate { .. } | Self::Connect { .. } | Self::Unsent { .. }
        )
    }

    /// Whether trying again may help.
    pub fn may_pass(&self) -> bool {
        !matches!(
            self,
            Self::Ca { .. } | Self::Certificate { .. } | Self::TooLong { .. }
        )
    }
}

/// Connections to one server.
pub struct Transport {
    address: Address,
    verifier: Arc<Verifier>,
    tls: TlsConnector,
    idle: Mutex<Vec<SendRequest<RequestBody>>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// To this server. Connects when there is something to send.
    ///
    /// # Errors
    ///
    /// [`Error::Ca`].
    pub fn new(address: Address, trust: &Trust) -> Result<Self, Error> {
        let (verifier, config) = verifier::configure(trust)?;
        Ok(Self {
            address,
            verifier,
            tls: TlsConnector::from(config),
            idle: Mutex::default(),
        })
    }

    /// The server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and waits, at most `patience`, for all of its answer.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn exchange(
        &self,
        mut request: Request<RequestBody>,
        patience: Duration,
    ) -> Result<Response<Bytes>, Error> {
        if let Ok(host) = self.address.authority().parse() {
            request.headers_mut().insert(HOST, host);
        }
        let server = || self.address.to_string();
        let connection = self.connection().await?;
        let answered = timeout(patience, self.over(connection, request)).await;
        answered.unwrap_or_else(|_| {
            Err(Error::Timeout {
                server: server(),
                after: patience,
            })
        })
    }

    async fn over(
        &self,
        mut connection: SendRequest<RequestBody>,
        request: Request<RequestBody>,
    ) -> Result<Response<Bytes>, Error> {
        let server = || self.address.to_string();
        let interrupted = |source: Box<dyn std::error::Error + Send + Sync>| Error::Interrupted {
            server: server(),
            source,
        };
        let response = connection
            .try_send_request(request)
            .await
            .map_err(|mut error| {
                let unsent = error.take_message().is_some();
                match unsent {
                    true => Error::Unsent {
                        server: server(),
                        source: error.into_error(),
                    },
                    false => interrupted(error.into_error().into()),
                }
            })?;
        let (head, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, ANSWER_MAX)
            .collect()
            .await
            .map_err(
                |error| match error.is::<http_body_util::LengthLimitError>() {
                    true => Error::TooLong { server: server() },
                    false => interrupted(error),
                },
            )?
            .to_bytes();
        // Ready for the next as soon as its task has seen the end of the answer.
        if connection.ready().await.is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(connection);
            }
        }
        Ok(Response::from_parts(head, body))
    }

    async fn connection(&self) -> Result<SendRequest<RequestBody>, Error> {
        loop {
            let kept = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            match kept {
                Some(connection) if connection.is_ready() => return Ok(connection),
                Some(_) => {}
                None => break,
            }
        }
        let failed = |source| Error::Connect {
            server: self.address.to_string(),
            source,
        };
        timeout(CONNECT, self.connect())
            .await
            .unwrap_or_else(|_| Err(failed(std::io::ErrorKind::TimedOut.into())))
    }

    async fn connect(&self) -> Result<SendRequest<RequestBody>, Error> {
        let failed = |source| Error::Connect {
            server: self.address.to_string(),
            source,
        };
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port))
            .await
            .map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let name = ServerName::try_from(self.address.host.clone()).map_err(|error| {
            failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, error))
        })?;
        let tls =
            self.tls
                .connect(name, tcp)
                .await
                .map_err(|error| match self.verifier.refusal() {
                    Some(refusal) => Error::Certificate {
                        server: self.address.to_string(),
                        why: refusal.why,
                        thumbprints: Box::new((refusal.sha256, refusal.sha1)),
                    },
                    None => failed(error),
                })?;
        let (sender, connection) = handshake(TokioIo::new(tls))
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_every_form_people_write() {
        for (text, expected) in [
            ("vc.example", ("vc.example", 443, "/sdk")),
            ("vc.example:8989", ("vc.example", 8989, "/sdk")),
            ("https://vc.example/sdk", ("vc.example", 443, "/sdk")),
            ("https://127.0.0.1:8989/sdk/", ("127.0.0.1", 8989, "/sdk")),
            ("https://[fd00::1]:444", ("fd00::1", 444, "/sdk")),
        ] {
            let address: Address = text.parse().expect(text);
            let (host, port, path) = expected;
            assert_eq!(
                (address.host.as_str(), address.port, address.path.as_str()),
                (host, port, path)
            );
        }
        for text in ["", "http://vc", "https://", "vc:x", "[::1", "a b", "vc/\n"] {
            assert!(text.parse::<Address>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        let error = "https://root:secret@vc/sdk".parse::<Address>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
