//! From a machine that is on to a main process that runs, whoever began it.
//!
//! Setup and start are sent again by a controller that finds the machine on: what is there already answers
//! that it exists. So a start that was cut short anywhere is finished by the same calls.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hypervisor::{Carrier, Channel, ChannelIo, Hypervisor, Machine, MachineId};
use tether_link::{Adopted, Config, Link, LinkError, Resumed, RunningProcess};
use tether_wire::message::{self as wire, ErrorKind, ProcessId, Role, Setup};
use tether_wire::{CarrierKind, ChannelKey};

use crate::cell::lock;
use crate::container::StartFailure;
use crate::machine;
use crate::record::Made;

/// How long a guest may take to answer for the first time: a host may boot many at once under emulation.
const BOOT: Duration = Duration::from_secs(180);
/// The status of a container that could not be started for a reason that is not its program's.
pub(crate) const DAEMON_ERROR: u8 = 125;

/// A main process that runs.
pub(crate) struct Begun {
    pub link: Link,
    pub resumed: Resumed,
    pub main: RunningProcess,
}

/// The host end of a machine's channel. `stored` is how far the main process's two streams are stored.
pub(crate) async fn connect(
    driver: &Arc<dyn Hypervisor>,
    id: MachineId,
    stored: [u64; 2],
) -> Result<Link, NotBegun> {
    let channel = driver.connect_channel(&id).await;
    let channel = channel.map_err(|error| unreached(chain(&error)))?;
    let carrier = match channel.carrier {
        Carrier::Stream => CarrierKind::Stream,
        Carrier::Serial => CarrierKind::Serial,
    };
    let mut config = Config::new(carrier, ChannelKey(*channel.key.as_bytes()));
    if stored != [0, 0] {
        config.adopt.push(Adopted {
            process: ProcessId::MAIN,
            stdout: stored[0],
            stderr: stored[1],
        });
    }
    let claim = channel.claim.clone();
    let link = Link::spawn(connector(driver.clone(), id, channel), config)
        .map_err(|error| unreached(format!("cannot open the channel: {error}")))?;
    if let Some(claim) = claim {
        link.ready(BOOT).await.map_err(silent)?;
        let claim = wire::Claim {
            uuid: *claim.id.as_bytes(),
            macs: claim
                .macs
                .iter()
                .map(|mac| wire::MacAddress(mac.bytes()))
                .collect(),
        };
        set_up(link.claim(claim).await)?;
    }
    Ok(link)
}

/// Connections, the first of which is there already.
fn connector(
    driver: Arc<dyn Hypervisor>,
    id: MachineId,
    first: Channel,
) -> impl tether_link::Connector<Carrier = Box<dyn ChannelIo>> {
    let first = Mutex::new(Some(first.io));
    move || {
        let ready = lock(&first).take();
        let driver = driver.clone();
        async move {
            if let Some(io) = ready {
                return Ok(io);
            }
            let channel = driver.connect_channel(&id).await;
            channel
                .map(|channel| channel.io)
                .map_err(|error| io::Error::other(chain(&error)))
        }
    }
}

/// Where a machine that is on comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was powered on just now.
    New,
    /// An earlier controller powered it on: its main process runs, as like as not.
    Found,
}

/// Why no main process runs.
#[derive(Debug)]
pub(crate) enum NotBegun {
    /// The guest said so: there is none and will be none.
    Refused(StartFailure),
    /// The guest could not be asked.
    Unreached(StartFailure),
    /// Somebody wanted its end.
    Interrupted,
}

impl NotBegun {
    /// As a start's failure.
    pub fn into_failure(self) -> StartFailure {
        match self {
            Self::Refused(failure) | Self::Unreached(failure) => failure,
            Self::Interrupted => failure(DAEMON_ERROR, "its start was interrupted".to_owned()),
        }
    }
}

/// Makes the machine the container's and starts its main process, as far as that is not done.
pub(crate) async fn begin(
    link: Link,
    origin: Origin,
    made: &Made,
    machine: &Machine,
) -> Result<Begun, NotBegun> {
    let resumed = link.ready(BOOT).await.map_err(silent)?;
    if origin == Origin::Found {
        let mut known = resumed.processes.iter().map(|state| state.process);
        if known.any(|process| process == ProcessId::MAIN)
            && let Some(main) = link.attach(ProcessId::MAIN)
        {
            return Ok(Begun {
                link,
                resumed,
                main,
            });
        }
    }
    let spec = &made.spec;
    // Not before: the guest's clock is set to what the setup says, when it arrives.
    let setup = machine::setup(&made.id, spec, &machine.spec.nics);
    let setup = setup.map_err(|error| unreached(format!("cannot get random bytes: {error}")))?;
    let role = Role::Main {
        pid_namespace: spec.pid_namespace,
        init: spec.init,
    };
    // Both are on their way before the first answer.
    let setup = link.setup(setup);
    let start = link.start(ProcessId::MAIN, machine::process(&spec.process, role));
    set_up(setup.await)?;
    let main = match start.await {
        Err(LinkError::Guest(error)) if error.kind == ErrorKind::Exists => link
            .attach(ProcessId::MAIN)
            .ok_or_else(|| unreached("the main process is gone".to_owned())),
        Err(LinkError::Guest(error)) => {
            Err(NotBegun::Refused(not_started(&error, &spec.process.argv)))
        }
        Err(error) => Err(unreached(chain(&error))),
        Ok(main) => Ok(main),
    }?;
    Ok(Begun {
        link,
        resumed,
        main,
    })
}

/// Makes the machine one that only reads and writes files.
pub(crate) async fn prepare(link: &Link, setup: Setup) -> Result<(), NotBegun> {
    let setup = link.setup(setup);
    link.ready(BOOT).await.map_err(silent)?;
    set_up(setup.await)
}

fn set_up(result: Result<(), LinkError>) -> Result<(), NotBegun> {
    let cannot = |why: String| failure(DAEMON_ERROR, format!("cannot set the VM up: {why}"));
    match result {
        Err(LinkError::Guest(error)) if error.kind == ErrorKind::Exists => Ok(()),
        Err(LinkError::Guest(error)) => Err(NotBegun::Refused(cannot(error.message))),
        Err(error) => Err(NotBegun::Unreached(cannot(chain(&error)))),
        Ok(()) => Ok(()),
    }
}

fn silent(error: LinkError) -> NotBegun {
    unreached(format!("the VM did not come up: {}", chain(&error)))
}

fn unreached(message: String) -> NotBegun {
    NotBegun::Unreached(failure(DAEMON_ERROR, message))
}

/// Docker's words where its clients look for the reason: its command line takes 127 and 126 from them.
pub(crate) fn not_started(error: &wire::Error, argv: &[String]) -> StartFailure {
    let program = argv.first().map_or("", String::as_str);
    let why = match error.kind {
        ErrorKind::NotFound => {
            format!("exec: {program:?}: executable file not found in $PATH ({error})")
        }
        ErrorKind::NotExecutable => format!("exec: {program:?}: permission denied ({error})"),
        _ => error.to_string(),
    };
    let message = format!("unable to start container process: {why}");
    failure(error.kind.start_status(), message)
}

pub(crate) fn failure(status: u8, message: String) -> StartFailure {
    StartFailure {
        status,
        message,
        at: std::time::SystemTime::now(),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
