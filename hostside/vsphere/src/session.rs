//! A logged-in client of one server.
//!
//! The version spoken is one the server lists. A session that the server has forgotten is opened again,
//! once for all calls that found out; what was refused for that is sent again. What got lost on the way is
//! sent again only if the server cannot have seen it, or if doing it twice is doing it once
//! ([`crate::types::Repeat`]). At most [`Options::concurrency`] calls are under way at a time; waiting for
//! updates is not counted.

mod secret;
mod version;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use hyper::{Method as HttpMethod, Request, Response};
use tokio::sync::Semaphore;

pub use secret::{NoSecret, Secret};
pub use version::ApiVersion;

use crate::faults::Fault;
use crate::soap::{self, Body, Malformed, Unreadable};
use crate::transport::{self, Address, RequestBody, Transport, Trust, full};
use crate::types::{
    CurrentTime, DataObject, Login, Logout, ManagedObject, Method, Repeat, RetrieveServiceContent,
    Returned, ServiceContent,
};

/// How long a call may take. Long work is a task, whose call returns at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a call is sent again at most.
const REPEATS: u32 = 4;
/// The first wait before sending again; each next one is twice as long.
const BACKOFF: Duration = Duration::from_millis(200);
/// How often an idle session is used. vCenter forgets one after 30 minutes, ESXi likewise.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: Address,
    /// Whose certificate it may have.
    pub trust: Trust,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Secret,
    /// The most calls under way at a time.
    pub concurrency: usize,
}

/// A call failed. What the server said is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server could not be reached, or its answer not be had.
    #[error("{method} failed")]
    Transport {
        /// The method.
        method: &'static str,
        /// Why.
        source: transport::Error,
    },
    /// The server refused or failed.
    #[error("{method} failed on {object}")]
    Fault {
        /// The method.
        method: &'static str,
        /// What it was asked of.
        object: ManagedObject,
        /// What the server said.
        source: Fault,
    },
    /// The user may not log in.
    #[error(
        "{server} does not let {user} log in: check user and password, or whether the account is locked"
    )]
    Login {
        /// The server.
        server: String,
        /// The user.
        user: String,
        /// What the server said.
        source: Fault,
    },
    /// The answer is no answer of a vSphere server.
    #[error("{method} was answered by HTTP status {status}: {said:?}")]
    Status {
        /// The method.
        method: &'static str,
        /// The status.
        status: u16,
        /// The beginning of what was said.
        said: String,
    },
    /// The answer could not be read.
    #[error("the answer to {method} cannot be read")]
    Unreadable {
        /// The method.
        method: &'static str,
        /// Why.
        source: Unreadable,
    },
    /// The answer is not what the API's types say.
    #[error("the answer to {method} is not what the API says")]
    Malformed {
        /// The method.
        method: &'static str,
        /// Where.
        source: Malformed,
    },
    /// No version is spoken by both ends.
    #[error(
        "{server} speaks vSphere API {offered}; needed is one from {} to {}",
        ApiVersion::OLDEST,
        ApiVersion::NEWEST
    )]
    Version {
        /// The server.
        server: String,
        /// What it lists.
        offered: String,
    },
    /// The server has not this manager.
    #[error("{server} has no {manager}")]
    NoManager {
        /// The server.
        server: String,
        /// The manager.
        manager: &'static str,
    },
    /// A task failed.
    #[error("{method} failed on {object}")]
    Task {
        /// The method that began it.
        method: &'static str,
        /// What it was asked of.
        object: ManagedObject,
        /// What the server said.
        source: Fault,
    },
    /// It is not known what became of a task.
    #[error(
        "{method} was begun on {object}, and the server does not know its task any more: look what became of it"
    )]
    TaskGone {
        /// The method that began it.
        method: &'static str,
        /// What it was asked of.
        object: ManagedObject,
    },
    /// The collector is closed.
    #[error("the connection to the server is closed")]
    Closed,
    /// A file of this host could not be read.
    #[error("cannot read {}", path.display())]
    Local {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be sent or had.
    #[error("{what} {place} was answered by HTTP status {status}")]
    File {
        /// What was done, as in "uploading".
        what: &'static str,
        /// The file.
        place: String,
        /// The status.
        status: u16,
    },
}

impl Error {
    /// The fault, if the server said one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault { source, .. } | Self::Login { source, .. } | Self::Task { source, .. } => {
                Some(source)
            }
            _ => None,
        }
    }

    /// Whether the server said a fault of this type.
    pub fn is(&self, fault: &str) -> bool {
        self.fault().is_some_and(|found| found.is(fault))
    }

    /// Whether what was asked may have been done all the same.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !source.never_sent(),
            Self::TaskGone { .. } | Self::Closed => true,
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    options: Options,
    version: ApiVersion,
    content: ServiceContent,
    session: Mutex<SessionState>,
    login: tokio::sync::Mutex<()>,
    gate: Semaphore,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    used: AtomicU64,
}

#[derive(Debug, Default)]
struct SessionState {
    cookie: Option<String>,
    /// How often a session was opened.
    generation: u64,
}

/// A client. Clones are the same one; when the last is gone, the session is left to its end.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

impl Client {
    /// Connects, agrees on a version and logs in.
    ///
    /// # Errors
    ///
    /// [`Error::Login`], [`Error::Version`], or whatever else stood in the way.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let transport = |source| Error::Transport {
            method: "connecting",
            source,
        };
        let connections =
            Transport::new(options.address.clone(), &options.trust).map_err(transport)?;
        let version = version::negotiate(&connections).await?;
        let mut inner = Inner {
            transport: connections,
            version,
            content: ServiceContent::default(),
            session: Mutex::default(),
            login: tokio::sync::Mutex::default(),
            gate: Semaphore::new(options.concurrency.max(1)),
            calls: Mutex::default(),
            used: AtomicU64::new(0),
            options,
        };
        let service = RetrieveServiceContent {
            _this: service_instance(),
        };
        inner.content = inner.repeated(&service, PATIENCE).await?;
        inner.log_in().await?;
        let inner = Arc::new(inner);
        tokio::spawn(keep_alive(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The server's managers.
    pub fn content(&self) -> &ServiceContent {
        &self.0.content
    }

    /// The server.
    pub fn address(&self) -> &Address {
        self.0.transport.address()
    }

    /// The user who is logged in.
    pub fn user(&self) -> &str {
        &self.0.options.user
    }

    /// The version spoken.
    pub fn version(&self) -> &ApiVersion {
        &self.0.version
    }

    /// Whether the server is a vCenter, not a host.
    pub fn is_vcenter(&self) -> bool {
        self.0.content.about.apiType == "VirtualCenter"
    }

    /// One of the server's managers.
    ///
    /// # Errors
    ///
    /// [`Error::NoManager`].
    pub fn manager(
        &self,
        manager: &'static str,
        of: impl FnOnce(&ServiceContent) -> &Option<ManagedObject>,
    ) -> Result<ManagedObject, Error> {
        of(&self.0.content).clone().ok_or_else(|| Error::NoManager {
            server: self.address().to_string(),
            manager,
        })
    }

    /// How often each method was sent, and each file. What was repeated counts each time.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.0.calls().clone()
    }

    /// How often a session was opened.
    pub fn sessions(&self) -> u64 {
        self.0.session().generation
    }

    /// Calls a method.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn call<M: Method>(&self, method: &M) -> Result<M::Returns, Error> {
        let permit = self.0.gate.acquire().await.map_err(|_| Error::Closed)?;
        let answer = self.logged_in(method, PATIENCE).await;
        drop(permit);
        answer
    }

    /// Calls a method that takes its time, beside all others.
    pub(crate) async fn call_waiting<M: Method>(
        &self,
        method: &M,
        patience: Duration,
    ) -> Result<M::Returns, Error> {
        // What belongs to the session that is gone has to be made anew, so it is not sent again here.
        self.0.once(method, patience).await
    }

    async fn logged_in<M: Method>(
        &self,
        method: &M,
        patience: Duration,
    ) -> Result<M::Returns, Error> {
        let generation = self.0.session().generation;
        match self.0.repeated(method, patience).await {
            Err(Error::Fault { source, .. }) if source.is_logged_out() => {
                self.log_in_again(generation).await?;
                self.0.repeated(method, patience).await
            }
            answer => answer,
        }
    }

    /// Opens a new session in the place of the one of this generation, unless somebody has.
    pub(crate) async fn log_in_again(&self, generation: u64) -> Result<(), Error> {
        let _one = self.0.login.lock().await;
        if self.0.session().generation == generation {
            tracing::info!(server = %self.address(), "the session was gone; opening another");
            self.0.session().cookie = None;
            self.0.log_in().await?;
        }
        Ok(())
    }

    /// Ends the session.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn log_out(&self) -> Result<(), Error> {
        let logout = Logout {
            _this: self.manager("session manager", |content| &content.sessionManager)?,
        };
        self.0.once(&logout, PATIENCE).await?;
        self.0.session().cookie = None;
        Ok(())
    }

    /// Sends a request that is no call, such as an upload, with the session's cookie.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`].
    pub(crate) async fn send_file(
        &self,
        what: &'static str,
        mut request: Request<RequestBody>,
        patience: Duration,
    ) -> Result<Response<bytes::Bytes>, Error> {
        self.0.count(what);
        self.0.add_cookie(request.headers_mut());
        let exchanged = self.0.transport.exchange(request, patience).await;
        exchanged.map_err(|source| Error::Transport {
            method: what,
            source,
        })
    }
}

fn service_instance() -> ManagedObject {
    ManagedObject::new("ServiceInstance", "ServiceInstance")
}

impl Inner {
    fn session(&self) -> std::sync::MutexGuard<'_, SessionState> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &'static str) {
        *self.calls().entry(what).or_default() += 1;
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    async fn log_in(&self) -> Result<(), Error> {
        let server = self.transport.address().to_string();
        let manager = self.content.sessionManager.clone();
        let login = Login {
            _this: manager.ok_or(Error::NoManager {
                server: server.clone(),
                manager: "session manager",
            })?,
            userName: self.options.user.clone(),
            password: self.options.password.clone(),
            locale: None,
        };
        match self.repeated(&login, PATIENCE).await {
            Ok(_) => {
                self.session().generation += 1;
                Ok(())
            }
            Err(Error::Fault { source, .. }) => Err(Error::Login {
                server,
                user: self.options.user.clone(),
                source,
            }),
            Err(error) => Err(error),
        }
    }

    /// Sends a call until it is answered, if it may be sent again.
    async fn repeated<M: Method>(
        &self,
        method: &M,
        patience: Duration,
    ) -> Result<M::Returns, Error> {
        let mut wait = BACKOFF;
        for _ in 0..REPEATS {
            let error = match self.once(method, patience).await {
                Err(error) => error,
                answer => return answer,
            };
            let again = match &error {
                Error::Transport { source, .. } => {
                    source.may_pass() && (source.never_sent() || M::REPEAT == Repeat::Safe)
                }
                // A server that is starting, or a proxy before one.
                Error::Status { status, .. } => {
                    matches!(status, 502..=504) && M::REPEAT == Repeat::Safe
                }
                _ => false,
            };
            if !again {
                return Err(error);
            }
            tracing::debug!(method = M::NAME, %error, "sending it again");
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        self.once(method, patience).await
    }

    async fn once<M: Method>(&self, method: &M, patience: Duration) -> Result<M::Returns, Error> {
        let text = soap::envelope(M::NAME, |out| method.write_fields(out));
        let mut request = Request::new(full(text));
        *request.method_mut() = HttpMethod::POST;
        let transport = |source| Error::Transport {
            method: M::NAME,
            source,
        };
        let path = &self.transport.address().path;
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        let content_type = hyper::header::HeaderValue::from_static("text/xml; charset=\"utf-8\"");
        headers.insert(CONTENT_TYPE, content_type);
        if let Ok(action) = self.version.action().parse() {
            headers.insert("SOAPAction", action);
        }
        self.add_cookie(headers);
        self.count(M::NAME);
        let response = self
            .transport
            .exchange(request, patience)
            .await
            .map_err(transport)?;
        self.take_cookie(&response);
        let (status, body) = (response.status().as_u16(), response.into_body());
        let opened = match soap::open(&body) {
            Ok(opened) => opened,
            Err(_) if !(200..300).contains(&status) => {
                return Err(Error::Status {
                    method: M::NAME,
                    status,
                    said: String::from_utf8_lossy(&body).chars().take(200).collect(),
                });
            }
            Err(source) => {
                return Err(Error::Unreadable {
                    method: M::NAME,
                    source,
                });
            }
        };
        match opened {
            Body::Answer(answer) => {
                M::Returns::returned(&answer).map_err(|source| Error::Malformed {
                    method: M::NAME,
                    source,
                })
            }
            Body::Fault(source) => Err(Error::Fault {
                method: M::NAME,
                object: this(method),
                source,
            }),
        }
    }

    fn add_cookie(&self, headers: &mut hyper::HeaderMap) {
        if let Some(Ok(mut cookie)) = self
            .session()
            .cookie
            .as_ref()
            .map(|cookie| hyper::header::HeaderValue::from_str(cookie))
        {
            cookie.set_sensitive(true);
            headers.insert(COOKIE, cookie);
        }
    }

    fn take_cookie(&self, response: &Response<bytes::Bytes>) {
        for value in response.headers().get_all(SET_COOKIE) {
            let Ok(text) = value.to_str() else { continue };
            let pair = text.split(';').next().unwrap_or_default().trim();
            if pair.starts_with("vmware_soap_session=") {
                self.session().cookie = Some(pair.to_owned());
            }
        }
    }
}

/// What a method is asked of.
pub(crate) fn this<M: DataObject>(method: &M) -> ManagedObject {
    let text = soap::envelope("M", |out| method.write_fields(out));
    let node = match soap::open(text.as_bytes()) {
        Ok(Body::Answer(node)) => node,
        _ => return ManagedObject::default(),
    };
    node.child("_this")
        .and_then(|node| <ManagedObject as soap::Element>::read(node).ok())
        .unwrap_or_default()
}

async fn keep_alive(inner: std::sync::Weak<Inner>) {
    let mut used = 0;
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.used.load(Ordering::Relaxed);
        if now == used {
            let client = Client(inner.clone());
            let time = CurrentTime {
                _this: service_instance(),
            };
            if let Err(error) = client.call(&time).await {
                tracing::warn!(error = %chain(&error), "the session could not be kept alive");
            }
        }
        used = inner.used.load(Ordering::Relaxed);
    }
}

/// An error with what is below it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        text.push_str(": ");
        text.push_str(&error.to_string());
        below = error.source();
    }
    text
}
