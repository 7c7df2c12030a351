//! [`Link`]: what a host asks of one guest.

use crate::core::{Notice, Phase, Process, Resumed, Shared};
use crate::driver::{Backoff, Running, drive, random};
use crate::{Answer, Connector, LinkError, RunningProcess};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tether_wire::message::{
    Claim, Error, ErrorKind, FileOperation, Mount, Network, ProcessId, ProcessInfo, ProcessSpec,
    Rebirth, Reply, Request, Setup, ShutdownSpec, Statistics,
};
use tether_wire::{CarrierKind, ChannelKey, HostSession};
use tokio::time::Instant;

/// The longest process list [`Link::processes`] collects.
pub const MAX_LISTED: usize = 65_536;

/// The protocol's first version with freezing, thawing and rebirth.
const FORKS_SINCE: u16 = 2;
/// The first with a claim.
const CLAIM_SINCE: u16 = 3;
/// The first with a rehearsal.
const REHEARSAL_SINCE: u16 = 4;

/// What a link has to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether the carrier can damage or lose bytes.
    pub carrier: CarrierKind,
    /// The machine's channel key.
    pub key: ChannelKey,
    /// Processes of a former controller, with what it has stored.
    pub adopt: Vec<Adopted>,
    /// The pause after the first failed connection; doubles each time.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Config {
    /// A link that adopts nothing and pauses 2 ms to 250 ms between attempts.
    pub fn new(carrier: CarrierKind, key: ChannelKey) -> Self {
        Self {
            carrier,
            key,
            adopt: Vec::new(),
            first_pause: Duration::from_millis(2),
            longest_pause: Duration::from_millis(250),
        }
    }
}

/// A process a former controller started, and how much of its output that one stored durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The process.
    pub process: ProcessId,
    /// Bytes of standard output stored.
    pub stdout: u64,
    /// Bytes of standard error stored.
    pub stderr: u64,
}

/// The host end of one machine's channel.
///
/// Dropping it closes the carrier and ends every call under way with [`LinkError::Closed`]; the
/// guest keeps its processes and whatever was not acknowledged for the next controller.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    _running: Running,
}

impl Link {
    /// Starts connecting. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The kernel gave no random bytes.
    pub fn spawn<C: Connector>(connector: C, config: Config) -> io::Result<Self> {
        let mut session = HostSession::new(config.carrier, config.key, random()?);
        for adopted in &config.adopt {
            session.adopt(adopted.process, adopted.stdout, adopted.stderr);
        }
        let serial = config.carrier == CarrierKind::Serial;
        let shared = Arc::new(Shared::new(session, serial));
        {
            let mut core = shared.lock();
            for adopted in &config.adopt {
                let process = Process::new(adopted.stdout, adopted.stderr);
                core.processes.insert(adopted.process, process);
            }
        }
        let backoff = Backoff {
            first: config.first_pause,
            longest: config.longest_pause,
        };
        let task = tokio::spawn(drive(shared.clone(), connector, backoff, Instant::now()));
        let running = Running {
            shared: shared.clone(),
            task: task.abort_handle(),
        };
        Ok(Self {
            shared,
            _running: running,
        })
    }

    /// Waits until the guest has answered, at most `within`; at once when it already has.
    ///
    /// # Errors
    /// [`LinkError::Silent`] with the last reason when it did not, [`LinkError::Refused`].
    pub async fn ready(&self, within: Duration) -> Result<Resumed, LinkError> {
        let resumed = self.shared.when(|core| core.resumed.clone().map(Ok));
        match tokio::time::timeout(within, resumed).await {
            Ok(resumed) => resumed,
            Err(_) => Err(LinkError::Silent {
                within,
                carrier: match &self.shared.lock().phase {
                    Phase::Waiting { carrier } => carrier.clone(),
                    _ => None,
                },
            }),
        }
    }

    /// Sends any request; the typed calls below cover them all.
    pub fn request(&self, request: Request) -> Answer {
        Answer::new(&self.shared, request)
    }

    /// Makes the machine a container's. Sent at once, also before the guest has answered the
    /// hello, so a [`start`](Self::start) can follow without a round trip between them.
    pub fn setup(
        &self,
        setup: Setup,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("setup", self.request(Request::Setup(setup)))
    }

    /// Starts a process under an id that is not in use. Sent at once; the future resolves when the
    /// process runs or could not be started. If it is dropped before that, the process is still
    /// there for [`attach`](Self::attach).
    pub fn start(
        &self,
        process: ProcessId,
        spec: ProcessSpec,
    ) -> impl Future<Output = Result<RunningProcess, LinkError>> + Send + use<> {
        self.begin("start", process, Request::Start { process, spec })
    }

    /// Reads or writes the container's files, as a process under an id that is not in use; sent at
    /// once, and handled as one that was [`start`](Self::start)ed. Standard output and input are
    /// streams of [`tether_wire::files`] records; [`tether_wire::files::Failure`] is what the exit
    /// code means, and standard error has the sentence that goes with it. Close the input behind the
    /// last record of a `Write`; kill the process to end it early.
    pub fn files(
        &self,
        process: ProcessId,
        operation: FileOperation,
    ) -> impl Future<Output = Result<RunningProcess, LinkError>> + Send + use<> {
        self.begin("files", process, Request::Files { process, operation })
    }

    fn begin(
        &self,
        what: &'static str,
        process: ProcessId,
        request: Request,
    ) -> impl Future<Output = Result<RunningProcess, LinkError>> + Send + use<> {
        let answer = self.request(request);
        let shared = self.shared.clone();
        async move {
            match answer.await? {
                Reply::Started(_) => attach(&shared, process).ok_or(LinkError::Unknown(process)),
                _ => Err(LinkError::Nonsense(what)),
            }
        }
    }

    /// Takes the handle of a process that was adopted, or that the guest named when the channel
    /// came up, or whose start was not waited for. `None` when there is no such process or its
    /// handle is taken.
    pub fn attach(&self, process: ProcessId) -> Option<RunningProcess> {
        attach(&self.shared, process)
    }

    /// Measures the machine.
    pub fn statistics(&self) -> impl Future<Output = Result<Statistics, LinkError>> + Send + use<> {
        let answer = self.request(Request::Statistics);
        async move {
            match answer.await? {
                Reply::Statistics(statistics) => Ok(statistics),
                _ => Err(LinkError::Nonsense("statistics")),
            }
        }
    }

    /// Lists every process of the container, in order of pid, at most [`MAX_LISTED`].
    ///
    /// # Errors
    /// [`LinkError::Nonsense`] when the guest's pages do not ascend.
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, LinkError> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = match self.request(Request::Processes { after }).await? {
                Reply::Processes(page) => page,
                _ => return Err(LinkError::Nonsense("processes")),
            };
            for process in page.processes {
                if process.pid <= after {
                    return Err(LinkError::Nonsense("processes"));
                }
                after = process.pid;
                all.push(process);
            }
            if !page.more || all.len() >= MAX_LISTED {
                all.truncate(MAX_LISTED);
                return Ok(all);
            }
        }
    }

    /// Sets the guest's realtime clock, nanoseconds since the Unix epoch.
    pub fn set_clock(
        &self,
        unix_nanos: u64,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("set clock", self.request(Request::SetClock { unix_nanos }))
    }

    /// Mounts one more thing.
    pub fn mount(
        &self,
        mount: Mount,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("mount", self.request(Request::Mount(mount)))
    }

    /// Replaces addresses, routes and name service.
    pub fn network(
        &self,
        network: Network,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("network", self.request(Request::Network(network)))
    }

    /// Stops the container's processes where they are, for at most `hold` of the machine's time.
    ///
    /// # Errors
    /// [`LinkError::Guest`]; of the kind `Unsupported` when this tether or an older one cannot.
    pub async fn freeze(&self, hold: Duration) -> Result<(), LinkError> {
        self.since(FORKS_SINCE)?;
        let hold_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
        done("freeze", self.request(Request::Freeze { hold_ms })).await
    }

    /// Lets frozen processes go on.
    pub fn thaw(
        &self,
        unix_nanos: u64,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("thaw", self.request(Request::Thaw { unix_nanos }))
    }

    /// Makes a child of a running machine another machine and lets its processes go on.
    ///
    /// # Errors
    /// [`LinkError::Guest`]; of the kind `Exists` when that was done before.
    pub fn rebirth(
        &self,
        rebirth: Rebirth,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("rebirth", self.request(Request::Rebirth(rebirth)))
    }

    /// Tells a machine that was forked ahead of need whose it is; before its setup, and once the guest
    /// has answered.
    ///
    /// # Errors
    /// [`LinkError::Guest`]; of the kind `Exists` when the setup was before, `Unsupported` when this
    /// tether is older than that.
    pub async fn claim(&self, claim: Claim) -> Result<(), LinkError> {
        self.since(CLAIM_SINCE)?;
        done("claim", self.request(Request::Claim(claim))).await
    }

    /// Has a machine that was forked ahead of need go through a start and undo it; before its setup, and
    /// once the guest has answered.
    ///
    /// # Errors
    /// As [`Link::claim`].
    pub async fn rehearse(&self) -> Result<(), LinkError> {
        self.since(REHEARSAL_SINCE)?;
        done("rehearsal", self.request(Request::Rehearse)).await
    }

    /// Fails where the guest speaks an older version of the protocol.
    fn since(&self, needed: u16) -> Result<(), LinkError> {
        match self.shared.lock().session.version() {
            Some(version) if version < needed => Err(LinkError::Guest(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the machine was started from a boot image whose tether speaks version {version} \
                     of the protocol, and this needs version {needed}: start it again"
                ),
            ))),
            _ => Ok(()),
        }
    }

    /// Stops everything and ends the machine. The machine may be gone before the answer arrives:
    /// wait for the hypervisor's word beside it.
    pub fn shutdown(
        &self,
        spec: ShutdownSpec,
    ) -> impl Future<Output = Result<(), LinkError>> + Send + use<> {
        done("shutdown", self.request(Request::Shutdown(spec)))
    }

    /// Resolves with the round trip's time when the guest answers.
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        let start = Instant::now();
        let token = {
            let mut core = self.shared.lock();
            core.pings += 1;
            let token = core.pings;
            core.session.ping(token);
            token
        };
        self.shared.outbound.notify_one();
        self.shared
            .when(|core| (core.pongs >= token).then_some(Ok(())))
            .await?;
        Ok(start.elapsed())
    }

    /// The next thing said unasked. For one reader at a time.
    ///
    /// # Errors
    /// The link has ended.
    pub async fn notice(&self) -> Result<Notice, LinkError> {
        self.shared.when(|core| core.take_notice().map(Ok)).await
    }
}

fn attach(shared: &Arc<Shared>, process: ProcessId) -> Option<RunningProcess> {
    let mut core = shared.lock();
    let entry = core.processes.get_mut(&process)?;
    if std::mem::replace(&mut entry.attached, true) {
        return None;
    }
    Some(RunningProcess::new(shared.clone(), process))
}

async fn done(what: &'static str, answer: Answer) -> Result<(), LinkError> {
    match answer.await? {
        Reply::Done => Ok(()),
        _ => Err(LinkError::Nonsense(what)),
    }
}
