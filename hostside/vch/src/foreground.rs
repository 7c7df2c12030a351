//! The time between power on and the process's end: streams, signals, and everything that can go
//! wrong meanwhile.
//!
//! ```text
//!   Booting --started--> Attached --exited and all output written--> Stopping --> Ended
//!      |                    |                                           (status kept)
//!      +--------------------+--> Failed (panic, power, refusal)
//!                           +--> Left (output cannot be written: the VM waits for --resume)
//! ```

use crate::failure::{DAEMON, Failure, last_lines};
use crate::output::OutputError;
use crate::power::PowerWatch;
use crate::record::{Ended, Record, now};
use crate::run::out_of_memory;
use crate::run_directory::RunDirectory;
use crate::signals::{Got, Signals};
use crate::sink::Sink;
use crate::{cursor, input, output, terminal};
use anyhow::{Context, Result, anyhow};
use hypervisor::{ChannelKind, Hypervisor, StopCause};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tether_link::{Adopted, Config, Link, LinkError, Notice, RunningProcess};
use tether_wire::message::{
    ErrorKind, Exit, ExitStatus, MachineEvent, ProcessId, ShutdownSpec, SignalTarget,
};
use tether_wire::{CarrierKind, ChannelKey};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGQUIT: u8 = 3;
const SIGPIPE: u8 = 13;
const SIGTERM: u8 = 15;
/// Lines of console shown with a failure.
const CONSOLE_LINES: usize = 20;
/// What a guest may take to unmount and power off beyond its process's grace.
const POWER_OFF: Duration = Duration::from_secs(15);

/// How it ended.
pub enum Outcome {
    /// The process ended and everything is written.
    Ended(Ended),
    /// It cannot go on; the VM is to be cut off.
    Failed(Failure),
    /// This process cannot go on; the VM can.
    Left(Failure),
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Where the machine comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Powered on just now: nothing of value is in it.
    New,
    /// It was on already: an earlier `vch run` started its process, as like as not.
    Found,
}

/// A machine that is on, and who it belongs to.
pub struct Foreground<'a> {
    pub record: &'a Record,
    pub directory: &'a RunDirectory,
    pub key: [u8; 32],
    pub driver: &'a Arc<dyn Hypervisor>,
    pub origin: Origin,
}

impl Foreground<'_> {
    /// Stays to the end.
    pub async fn attend(&self, mut signals: Signals) -> Outcome {
        match self.attend_or_fail(&mut signals).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(Failure::new(DAEMON, error)),
        }
    }

    async fn attend_or_fail(&self, signals: &mut Signals) -> Result<Outcome> {
        let id = self.record.machine.spec.id;
        let mut power = PowerWatch::new(self.driver.as_ref(), id);
        if let hypervisor::PowerState::Off { cause } = self.driver.inspect(&id).await?.power {
            return Ok(self.died(&cause).await.into());
        }
        let console = self.show_console().await?;
        let turn = Arc::new(Mutex::new(()));
        let [out_slot, err_slot] = cursor::open(&self.directory.join("cursor"))
            .context("cannot open the output cursor")?;
        let open = |fd: &dyn AsFd, slot, turn| -> Result<Sink> {
            let fd = fd.as_fd().try_clone_to_owned()?;
            Ok(Sink::open(File::from(fd), slot, turn)?)
        };
        let stdout =
            open(&io::stdout(), out_slot, turn.clone()).context("cannot use standard output")?;
        let stderr = open(&io::stderr(), err_slot, turn).context("cannot use standard error")?;

        let link = self.link(stdout.cursor(), stderr.cursor())?;
        let process = match self.begin(&link, &mut power, signals).await {
            Ok(process) => process,
            Err(outcome) => return Ok(outcome),
        };
        let outcome = self
            .attached(link, process, [stdout, stderr], &mut power, signals)
            .await;
        if let Some(console) = console {
            // Ends with the machine.
            if !matches!(outcome, Ok(Outcome::Left(_))) && power.is_off() {
                let _ = console.await;
            }
        }
        outcome
    }

    /// The host end of the channel, going on where output stopped.
    fn link(&self, stdout: u64, stderr: u64) -> Result<Link> {
        let carrier = match self.record.machine.spec.channel {
            ChannelKind::Serial => CarrierKind::Serial,
            ChannelKind::Virtio | ChannelKind::Vsock => CarrierKind::Stream,
        };
        let mut config = Config::new(carrier, ChannelKey(self.key));
        if stdout > 0 || stderr > 0 {
            config.adopt.push(Adopted {
                process: ProcessId::MAIN,
                stdout,
                stderr,
            });
        }
        let driver = self.driver.clone();
        let id = self.record.machine.spec.id;
        let connector = move || {
            let driver = driver.clone();
            async move {
                let channel = driver.connect_channel(&id).await;
                let channel = channel.map_err(|error| {
                    io::Error::other(format!("{:#}", anyhow::Error::new(error)))
                })?;
                Ok::<_, io::Error>(channel.io)
            }
        };
        Link::spawn(connector, config).context("cannot open the channel")
    }

    /// Setup and start, however much of them an earlier `vch run` has done: what is there already
    /// answers that it exists.
    async fn begin(
        &self,
        link: &Link,
        power: &mut PowerWatch,
        signals: &mut Signals,
    ) -> Result<RunningProcess, Outcome> {
        let begun = async {
            let within = match self.record.machine.boot_timeout {
                0 => Duration::MAX,
                seconds => Duration::from_secs(seconds.into()),
            };
            link.ready(within).await?;
            // Not before: the guest's clock is set to what the setup says, when it arrives.
            let setup = link.setup(self.record.setup().map_err(Begin::Entropy)?);
            // Both are on their way before the first answer.
            let start = link.start(ProcessId::MAIN, self.record.process.clone());
            match setup.await {
                Err(LinkError::Guest(error)) if error.kind == ErrorKind::Exists => {}
                Err(LinkError::Guest(error)) => return Err(Begin::Setup(error)),
                other => other?,
            }
            match start.await {
                Err(LinkError::Guest(error)) if error.kind == ErrorKind::Exists => link
                    .attach(ProcessId::MAIN)
                    .ok_or(Begin::Link(LinkError::Unknown(ProcessId::MAIN))),
                Err(LinkError::Guest(error)) => Err(Begin::Start(error)),
                other => Ok(other?),
            }
        };
        tokio::pin!(begun);
        loop {
            tokio::select! {
                begun = &mut begun => return match begun {
                    Ok(process) => Ok(process),
                    Err(begin) => Err(self.not_begun(begin).await),
                },
                cause = power.off(self.driver) => return Err(self.died(&cause).await.into()),
                got = signals.next() => {
                    if let Got::Forward(signal @ (SIGHUP | SIGINT | SIGQUIT | SIGTERM)) = got {
                        let name = crate::args::stop_signal::name(signal);
                        let error = anyhow!("{name} before the VM had answered");
                        return Err(self.give_up(Failure::new(128 + signal, error)));
                    }
                }
            }
        }
    }

    async fn not_begun(&self, begin: Begin) -> Outcome {
        let failure = match begin {
            Begin::Entropy(error) => {
                let error = anyhow!(error).context("cannot get random bytes for the guest");
                Failure::new(DAEMON, error)
            }
            Begin::Setup(error) => {
                Failure::new(DAEMON, anyhow!(error).context("cannot set the VM up"))
            }
            Begin::Start(error) => Failure::new(error.kind.start_status(), anyhow!(error)),
            Begin::Link(error @ LinkError::Silent { .. }) => {
                let mut failure = Failure::new(DAEMON, anyhow!("the VM did not come up: {error}"));
                failure.console = self.console().await;
                return self.give_up(failure);
            }
            Begin::Link(error) => Failure::new(DAEMON, anyhow!(error)),
        };
        failure.into()
    }

    /// Nothing was heard of the guest: only a new one is not worth keeping.
    fn give_up(&self, failure: Failure) -> Outcome {
        match self.origin {
            Origin::New => Outcome::Failed(failure),
            Origin::Found => Outcome::Left(failure),
        }
    }

    /// From the start of the process to its end.
    async fn attached(
        &self,
        link: Link,
        process: RunningProcess,
        [stdout, stderr]: [Sink; 2],
        power: &mut PowerWatch,
        signals: &mut Signals,
    ) -> Result<Outcome> {
        let handle = Handle::current();
        let raw = self.lend_terminal()?;
        if self.record.interactive {
            input::forward(handle.clone(), process.stdin).context("cannot read standard input")?;
        }
        let mut stdout = Stream::Open(output::forward(
            handle.clone(),
            "stdout",
            process.stdout,
            stdout,
        )?);
        let mut stderr = Stream::Open(output::forward(handle, "stderr", process.stderr, stderr)?);
        let control = process.control;
        if self.record.has_terminal() {
            // It may have changed since the start was asked for.
            drop(control.resize(terminal::size()));
        }
        let mut exit: Option<Result<Exit, LinkError>> = None;
        // Gone when the machine is: then what has arrived is written, and no more comes.
        let mut link = Some(link);
        let mut cause = None;
        let mut asked_to_end = 0;
        loop {
            let open = matches!(stdout, Stream::Open(_)) || matches!(stderr, Stream::Open(_));
            if exit.is_some() && !open {
                break;
            }
            tokio::select! {
                result = control.wait(), if exit.is_none() => exit = Some(result),
                result = stdout.done() => stdout = Stream::Done(result),
                result = stderr.done() => stderr = Stream::Done(result),
                notice = notice(link.as_ref()) => self.tell(&notice, raw.as_ref()),
                off = power.off(self.driver), if cause.is_none() => {
                    cause = Some(off);
                    link = None;
                }
                got = signals.next() => match got {
                    Got::Forward(signal) if self.record.forward_signals => {
                        drop(control.signal(signal, SignalTarget::Process));
                        asked_to_end += u32::from(matches!(signal, SIGINT | SIGTERM));
                        if asked_to_end == 3 {
                            let error = anyhow!("got 3 SIGTERM/SIGINTs, powering the VM off");
                            return Ok(Failure::new(128 + 9, error).into());
                        }
                    }
                    Got::Forward(signal @ (SIGHUP | SIGINT | SIGQUIT | SIGTERM)) => {
                        let error = anyhow!(
                            "{}; container {name} runs on: `vch run --resume {name}`",
                            crate::args::stop_signal::name(signal),
                            name = self.record.name
                        );
                        return Ok(Outcome::Left(Failure::new(128 + signal, error)));
                    }
                    Got::Forward(_) => {}
                    Got::Resized => drop(control.resize(terminal::size())),
                    Got::Continued => {
                        if let Some(raw) = &raw {
                            // A terminal that is gone shows as an end of input.
                            let _ = raw.again();
                            drop(control.resize(terminal::size()));
                        }
                    }
                },
            }
            if let Stream::Done(Err(OutputError::Closed)) = stdout {
                // As a shell's pipeline would: what nobody reads need not be made.
                drop(raw);
                let spec = ShutdownSpec {
                    grace_ms: self.record.unread_grace_ms,
                    ..self.record.stop
                };
                let ended = self.ended(128 + SIGPIPE, None, None);
                self.directory.write_ended(&ended)?;
                self.stop(link, spec, power).await;
                return Ok(Outcome::Ended(ended));
            }
            for (name, stream) in [("output", &mut stdout), ("error", &mut stderr)] {
                if let Some(error) = stream.take_write_error() {
                    let error = anyhow!(error).context(format!(
                        "cannot write standard {name}; container {} waits for `vch run --resume {}`",
                        self.record.name, self.record.name
                    ));
                    return Ok(Outcome::Left(Failure::new(DAEMON, error)));
                }
            }
        }
        drop(raw);
        let complete = stdout.is_complete() && stderr.is_complete_or_closed();
        match (exit, complete) {
            (Some(Ok(exit)), true) => {
                let error = (exit.oom_killed && exit.status == ExitStatus::Signal(9))
                    .then(|| out_of_memory(self.record));
                let ended = self.ended(exit.status.shell(), Some(exit), error);
                self.directory.write_ended(&ended)?;
                self.stop(link, self.record.stop, power).await;
                Ok(Outcome::Ended(ended))
            }
            (Some(Err(error)), _) if cause.is_none() => {
                Ok(Failure::new(DAEMON, anyhow!(error)).into())
            }
            (exit, _) => {
                let cause = cause.unwrap_or(StopCause::GuestReset);
                let mut failure = self.died(&cause).await;
                if let Some(Ok(exit)) = exit {
                    failure.error = failure.error.context(format!(
                        "the process ended with status {}, and not all it wrote arrived",
                        exit.status.shell()
                    ));
                }
                Ok(failure.into())
            }
        }
    }

    fn ended(&self, status: u8, exit: Option<Exit>, error: Option<String>) -> Ended {
        Ended {
            status,
            exit,
            error,
            finished: now().as_secs(),
        }
    }

    /// Lets the guest end in order, unless nobody would know the difference.
    async fn stop(&self, link: Option<Link>, spec: ShutdownSpec, power: &mut PowerWatch) {
        if self.record.remove && !self.record.writes_volumes() {
            return;
        }
        let Some(link) = link else { return };
        let answer = link.shutdown(spec);
        let within = Duration::from_millis(spec.grace_ms.into()) + POWER_OFF;
        let off = async {
            tokio::select! {
                _ = power.off(self.driver) => {}
                // Whatever it answers, the power is what counts.
                () = async { let _ = answer.await; std::future::pending::<()>().await } => {}
            }
        };
        if tokio::time::timeout(within, off).await.is_err() {
            eprintln!(
                "vch: container {} did not power off within {} s and was cut off.",
                self.record.name,
                within.as_secs()
            );
        }
    }

    fn lend_terminal(&self) -> Result<Option<terminal::Raw>> {
        let wanted = self.record.has_terminal() && self.record.interactive;
        if !wanted || !terminal::stdin_is_terminal() {
            return Ok(None);
        }
        terminal::Raw::enter()
            .map(Some)
            .context("cannot put the terminal into raw mode")
    }

    /// Copies the guest's console to standard error, if that was asked for.
    async fn show_console(&self) -> Result<Option<tokio::task::JoinHandle<()>>> {
        if !self.record.machine.show_console {
            return Ok(None);
        }
        let id = &self.record.machine.spec.id;
        let mut console = self.driver.follow_console(id).await?;
        Ok(Some(tokio::spawn(async move {
            while let Some(bytes) = console.recv().await {
                use std::io::Write;
                // A reader that has gone misses nothing it wants.
                let _ = io::stderr().write_all(&bytes);
            }
        })))
    }

    fn tell(&self, notice: &Notice, raw: Option<&terminal::Raw>) {
        let sentence = match notice {
            Notice::Machine(MachineEvent::OutOfMemory { process }) => {
                // The main process's end says it.
                if *process == Some(ProcessId::MAIN) {
                    return;
                }
                "the container ran out of memory, and its kernel killed a process".to_owned()
            }
            Notice::Machine(MachineEvent::Warning { message }) => message.clone(),
            _ => return,
        };
        let end = if raw.is_some() { "\r\n" } else { "\n" };
        eprint!("vch: {sentence}.{end}");
    }

    async fn console(&self) -> Vec<String> {
        let id = &self.record.machine.spec.id;
        match self.driver.console(id).await {
            Ok(console) => last_lines(&console, CONSOLE_LINES),
            Err(_) => Vec::new(),
        }
    }

    /// The machine went off by itself.
    async fn died(&self, cause: &StopCause) -> Failure {
        let console = self.console().await;
        let panic = console
            .iter()
            .find_map(|line| line.split_once("Kernel panic - not syncing: "))
            .map(|(_, why)| why.to_owned());
        let name = &self.record.name;
        let error = match (cause, panic) {
            (StopCause::GuestPanic | StopCause::GuestReset, Some(why)) => {
                anyhow!("the kernel of container {name} panicked: {why}")
            }
            (StopCause::GuestShutdown, _) => {
                anyhow!(
                    "the VM of container {name} powered itself off before its process had ended"
                )
            }
            (cause, _) => anyhow!("the VM of container {name} is off: {cause}"),
        };
        let mut failure = Failure::new(DAEMON, error);
        failure.console = console;
        failure
    }
}

enum Begin {
    Entropy(io::Error),
    Setup(tether_wire::message::Error),
    Start(tether_wire::message::Error),
    Link(LinkError),
}

impl From<LinkError> for Begin {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

async fn notice(link: Option<&Link>) -> Notice {
    match link {
        Some(link) => match link.notice().await {
            Ok(notice) => notice,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// One output stream on its way.
enum Stream {
    Open(oneshot::Receiver<Result<(), OutputError>>),
    Done(Result<(), OutputError>),
}

impl Stream {
    /// Resolves once, when the stream's thread has ended. Cancel safe.
    async fn done(&mut self) -> Result<(), OutputError> {
        match self {
            Self::Open(receiver) => match receiver.await {
                Ok(result) => result,
                Err(_) => Err(OutputError::Link(LinkError::Closed)),
            },
            Self::Done(_) => std::future::pending().await,
        }
    }

    fn is_complete(&self) -> bool {
        matches!(self, Self::Done(Ok(())))
    }

    fn is_complete_or_closed(&self) -> bool {
        matches!(self, Self::Done(Ok(()) | Err(OutputError::Closed)))
    }

    fn take_write_error(&mut self) -> Option<io::Error> {
        match std::mem::replace(self, Self::Done(Ok(()))) {
            Self::Done(Err(OutputError::Write(error))) => Some(error),
            other => {
                *self = other;
                None
            }
        }
    }
}
