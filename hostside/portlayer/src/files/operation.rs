//! One operation of tether's on a container's files, and which tether does it.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use tether_link::{Link, RunningProcess};
use tether_wire::files::Failure;
use tether_wire::message::{ExitStatus, FileOperation, ProcessId, SignalTarget};
use tokio::sync::mpsc;

use super::convert::{convert, joined, pipe};
use crate::cell::{Cell, HelperInUse, Run};
use crate::command::Command;
use crate::container::State;
use crate::error::{Error, PathProblem, WrongState};
use crate::identity::ContainerId;
use crate::images::ByteSource;
use crate::port_layer::PortLayer;

/// Pieces on their way.
pub(super) const AHEAD: usize = 8;
/// Bytes of an operation's sentence that are kept.
const SENTENCE: usize = 4096;
const SIGKILL: u8 = 9;

/// A tether that has the container's disk.
pub(super) enum Access {
    Run(Arc<Run>),
    Helper(HelperInUse),
}

impl Access {
    pub(super) async fn to(port_layer: &PortLayer, cell: &Cell) -> Result<Self, Error> {
        let not_now: WrongState = match &cell.view.borrow().container.state {
            State::Running(_) => match cell.run() {
                Some(run) => return Ok(Self::Run(run)),
                None => WrongState::NotRunning(cell.id),
            },
            State::Paused(_) => WrongState::Paused(cell.id),
            State::Removing => WrongState::Removing(cell.id),
            State::Restarting { .. } => WrongState::Restarting(cell.id),
            State::Created { .. } | State::Exited(_) | State::Starting => {
                WrongState::NothingToDo(cell.id)
            }
        };
        if !matches!(not_now, WrongState::NothingToDo(_)) {
            return Err(not_now.into());
        }
        match port_layer.layer.ask(&cell.id, Command::Helper).await {
            // It was started meanwhile.
            Err(Error::WrongState(WrongState::NothingToDo(id))) => match cell.run() {
                Some(run) => Ok(Self::Run(run)),
                None => Err(WrongState::NotRunning(id).into()),
            },
            other => other.map(Self::Helper),
        }
    }

    fn tether(&self) -> Option<(&Link, ProcessId)> {
        match self {
            Self::Run(run) => Some((&run.link, run.process())),
            Self::Helper(helper) => helper
                .as_ref()
                .map(|helper| (&helper.link, helper.process())),
        }
    }

    pub(super) async fn begin(
        &self,
        id: ContainerId,
        operation: FileOperation,
    ) -> Result<RunningProcess, Error> {
        // A helper that is in use is there.
        let (link, process) = self.tether().ok_or(Error::ShuttingDown)?;
        let beginning = link.files(process, operation);
        beginning
            .await
            .map_err(|source| Error::Guest { id, source })
    }
}

/// Takes what an operation writes, to its end and its exit code.
pub(super) async fn read(
    id: ContainerId,
    process: RunningProcess,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let (sender, mut received) = mpsc::channel::<Bytes>(AHEAD);
    // Its end of the pieces goes with it: then the reading ends, too.
    let taking = async move {
        while let Some(bytes) = received.recv().await {
            take(&bytes)?;
        }
        Ok::<(), Error>(())
    };
    let (read, taken) = tokio::join!(read_to(id, process, sender), taking);
    read.and(taken)
}

/// Passes on what an operation writes, to its end and its exit code. It is ended when nobody takes more.
pub(super) async fn read_to(
    id: ContainerId,
    process: RunningProcess,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let RunningProcess {
        mut stdout,
        stderr,
        control,
        stdin,
        ..
    } = process;
    stdin.finish();
    let guest = |source| Error::Guest { id, source };
    let signalled = control.clone();
    // Whoever takes the pieces knows by their end that they are all there.
    let reading = async move {
        while let Some(chunk) = stdout.next().await.map_err(guest)? {
            let end = chunk.end();
            if pieces.send(chunk.data).await.is_err() {
                drop(signalled.signal(SIGKILL, SignalTarget::Process));
                stdout.discard();
                break;
            }
            stdout.stored(end);
        }
        Ok::<(), Error>(())
    };
    let (read, sentence) = tokio::join!(reading, sentence(stderr));
    let exit = control.wait().await.map_err(guest)?;
    drop(control.forget());
    read?;
    outcome(exit.status, &sentence)
}

/// Sends a tar stream to a `Write` as records.
pub(super) async fn write(
    id: ContainerId,
    process: RunningProcess,
    tar: ByteSource,
) -> Result<(), Error> {
    let RunningProcess {
        stdout,
        stderr,
        control,
        mut stdin,
        ..
    } = process;
    stdout.discard();
    let (mut records, sink) = pipe()?;
    let converting = tokio::task::spawn_blocking(move || convert(tar, sink));
    let (sender, mut pieces) = mpsc::channel::<Bytes>(AHEAD);
    let draining = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match records.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let piece = Bytes::copy_from_slice(&buffer[..count]);
                    if sender.blocking_send(piece).is_err() {
                        return;
                    }
                }
            }
        }
    });
    let sending = async move {
        while let Some(piece) = pieces.recv().await {
            // A process that reads no more has said why, or will.
            if stdin.write_all(&piece).await.is_err() {
                break;
            }
        }
        stdin.finish();
    };
    let ((), sentence) = tokio::join!(sending, sentence(stderr));
    let exit = control.wait().await;
    let _ = draining.await;
    let converted = joined(converting.await);
    drop(control.forget());
    let exit = exit.map_err(|source| Error::Guest { id, source })?;
    match (Failure::of_code(code(exit.status)), converted) {
        // A tar stream that is wrong ends the records early, which is then all that the guest sees.
        (Some(Failure::BadStream), Err(error)) | (None, Err(error)) => Err(error),
        _ => outcome(exit.status, &sentence),
    }
}

/// The last of what an operation says of its failure.
pub(super) async fn sentence(mut stderr: tether_link::OutputReader) -> String {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = stderr.next().await {
        text.extend_from_slice(&chunk.data);
        let surplus = text.len().saturating_sub(SENTENCE);
        text.drain(..surplus);
        stderr.stored(chunk.end());
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

pub(super) fn code(status: ExitStatus) -> u8 {
    match status {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(_) => Failure::Other.code(),
    }
}

pub(super) fn outcome(status: ExitStatus, sentence: &str) -> Result<(), Error> {
    let Some(failure) = Failure::of_code(code(status)) else {
        return Ok(());
    };
    let kind = match failure {
        Failure::NotFound => PathProblem::NotFound,
        Failure::NotADirectory => PathProblem::NotADirectory,
        Failure::Conflict => PathProblem::Conflict,
        Failure::ReadOnly => PathProblem::ReadOnly,
        Failure::NoSpace => PathProblem::NoSpace,
        Failure::BadStream => PathProblem::BadArchive,
        Failure::BadPath | Failure::Other => PathProblem::Other,
    };
    let message = match sentence {
        "" => format!("the guest ended the operation with {status:?}"),
        sentence => sentence.to_owned(),
    };
    Err(Error::Path { kind, message })
}
