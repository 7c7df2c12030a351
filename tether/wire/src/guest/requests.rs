//! What becomes of the host's requests: each is done once, and answered until the host has the answer.

use super::{Answer, GuestSession, Machine, Outcome, SetupState, Ticket};
use crate::MAX_PROCESSES;
use crate::Violation;
use crate::guest::streams::Process;
use crate::message::{
    Error, ErrorKind, Exit, ExitStatus, FileOperation, Output, ProcessId, Reply, Request,
    RequestId, RunState, Stdio,
};
use alloc::format;

impl GuestSession {
    pub(super) fn settle(&mut self, below: RequestId) -> Result<(), Violation> {
        if below.0 > self.settled {
            self.settled = below.0;
            let kept = self.answers.split_off(&below);
            let gone = core::mem::replace(&mut self.answers, kept);
            if gone
                .values()
                .any(|answer| matches!(answer, Answer::Pending))
            {
                return Err(Violation::Unexpected(
                    "a settled request that was never answered",
                ));
            }
        }
        Ok(())
    }

    pub(super) fn request<M: Machine>(
        &mut self,
        ticket: Ticket,
        request: Request,
        machine: &mut M,
    ) {
        let done = |result: Result<(), Error>| Outcome::Done(result.map(|()| Reply::Done));
        let outcome = match request {
            Request::Setup(setup) => match self.setup {
                SetupState::Bare => {
                    self.setup = SetupState::Underway { ticket };
                    machine.setup(ticket, setup)
                }
                _ => error(ErrorKind::Exists, "this machine was set up before".into()),
            },
            Request::Start { process, ref spec } => {
                let stdio = spec.stdio;
                self.begin(ticket, process, stdio, request, machine)
            }
            Request::Files {
                process,
                ref operation,
            } => {
                let stdin = matches!(operation, FileOperation::Write { .. });
                let stdio = Stdio::Pipes { stdin };
                self.begin(ticket, process, stdio, request, machine)
            }
            Request::Signal {
                process,
                signal,
                target,
            } => done(self.running(process).and_then(|()| {
                if (1..=64).contains(&signal) {
                    machine.signal(process, signal, target)
                } else {
                    Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{signal} is no signal: 1 to 64 are"),
                    ))
                }
            })),
            Request::Resize { process, size } => done(
                self.running(process)
                    .and_then(|()| machine.resize(process, size)),
            ),
            Request::Forget { process } => done(self.forget(process, machine)),
            Request::Processes { after } => {
                Outcome::Done(machine.processes(after).map(Reply::Processes))
            }
            Request::Statistics => Outcome::Done(machine.statistics().map(Reply::Statistics)),
            Request::SetClock { unix_nanos } => done(machine.set_clock(unix_nanos)),
            Request::Shutdown(spec) => machine.shutdown(ticket, spec),
            Request::Thaw { unix_nanos } => done(machine.thaw(unix_nanos)),
            Request::Rebirth(rebirth) => machine.rebirth(ticket, rebirth),
            Request::Claim(_) | Request::Rehearse if !matches!(self.setup, SetupState::Bare) => {
                error(ErrorKind::Exists, "this machine was set up before".into())
            }
            Request::Claim(claim) => done(machine.claim(claim)),
            Request::Rehearse => machine.rehearse(ticket),
            request @ (Request::Mount(_) | Request::Network(_) | Request::Freeze { .. }) => {
                self.when_set_up(ticket, request, machine)
            }
        };
        if let Outcome::Done(result) = outcome {
            self.complete(ticket, result, machine);
        }
    }

    fn begin<M: Machine>(
        &mut self,
        ticket: Ticket,
        process: ProcessId,
        stdio: Stdio,
        request: Request,
        machine: &mut M,
    ) -> Outcome {
        if self.processes.contains_key(&process) {
            error(ErrorKind::Exists, format!("process {} exists", process.0))
        } else if self.processes.len() >= MAX_PROCESSES {
            error(
                ErrorKind::Limit,
                format!("{MAX_PROCESSES} processes are known: forget some that ended"),
            )
        } else {
            self.processes.insert(process, Process::new(stdio));
            self.starting.push((ticket, process));
            self.when_set_up(ticket, request, machine)
        }
    }

    fn when_set_up<M: Machine>(
        &mut self,
        ticket: Ticket,
        request: Request,
        machine: &mut M,
    ) -> Outcome {
        match &self.setup {
            SetupState::Bare => error(
                ErrorKind::Busy,
                "the machine is not set up yet: send Setup first".into(),
            ),
            SetupState::Finished(Err(cause)) => Outcome::Done(Err(cause.clone())),
            SetupState::Underway { .. } => {
                self.deferred.push_back((ticket, request));
                Outcome::Later
            }
            SetupState::Finished(Ok(())) => match request {
                Request::Start { process, spec } => machine.start(ticket, process, spec),
                Request::Files { process, operation } => machine.files(ticket, process, operation),
                Request::Mount(mount) => machine.mount(ticket, mount),
                Request::Network(network) => machine.network(ticket, network),
                Request::Freeze { hold_ms } => machine.freeze(ticket, hold_ms),
                _ => error(
                    ErrorKind::Invalid,
                    "this request does not wait for the setup".into(),
                ),
            },
        }
    }

    fn running(&self, process: ProcessId) -> Result<(), Error> {
        match self.processes.get(&process).map(|p| p.run) {
            Some(RunState::Running { .. }) => Ok(()),
            Some(RunState::Starting) => Err(Error::new(
                ErrorKind::Busy,
                format!("process {} has not started yet", process.0),
            )),
            Some(RunState::Exited(_)) => Err(Error::new(
                ErrorKind::NotFound,
                format!("process {} has ended", process.0),
            )),
            None => Err(no_process(process)),
        }
    }

    fn forget<M: Machine>(&mut self, process: ProcessId, machine: &mut M) -> Result<(), Error> {
        match self.processes.get(&process).map(|p| p.run) {
            Some(RunState::Exited(_)) => {
                machine.forget(process);
                self.drop_process(process);
                Ok(())
            }
            Some(_) => Err(Error::new(
                ErrorKind::Busy,
                format!("process {} still runs", process.0),
            )),
            None => Err(no_process(process)),
        }
    }

    /// Answers a request whose outcome was [`Outcome::Later`]. Finishing the setup lets the
    /// requests that waited for it begin.
    pub fn complete<M: Machine>(
        &mut self,
        ticket: Ticket,
        result: Result<Reply, Error>,
        machine: &mut M,
    ) {
        if let Some(at) = self
            .starting
            .iter()
            .position(|(starting, _)| *starting == ticket)
        {
            let (_, process) = self.starting.swap_remove(at);
            match &result {
                Ok(Reply::Started(started)) => {
                    if let Some(p) = self.processes.get_mut(&process)
                        && p.run == RunState::Starting
                    {
                        p.run = RunState::Running { pid: started.pid };
                    }
                }
                // The controller that asked is gone, and its successor was told of a process that is
                // starting: it learns of the end as it would of any other.
                Err(error) if ticket.epoch != self.epoch => {
                    let status = ExitStatus::Code(error.kind.start_status());
                    for output in [Output::Stdout, Output::Stderr] {
                        self.output_ended(process, output);
                    }
                    self.exited(
                        process,
                        Exit {
                            status,
                            oom_killed: false,
                            unix_nanos: 0,
                        },
                    );
                }
                _ => self.drop_process(process),
            }
        }
        let setup =
            matches!(self.setup, SetupState::Underway { ticket: underway } if underway == ticket);
        if setup {
            self.setup = SetupState::Finished(result.clone().map(|_| ()));
        }
        if ticket.epoch == self.epoch
            && let Some(answer) = self.answers.get_mut(&ticket.request)
        {
            *answer = Answer::Ready { result, due: true };
        }
        if setup {
            while let Some((ticket, request)) = self.deferred.pop_front() {
                if let Outcome::Done(result) = self.when_set_up(ticket, request, machine) {
                    self.complete(ticket, result, machine);
                }
            }
        }
    }
}

fn no_process(process: ProcessId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no process {}", process.0),
    )
}

fn error(kind: ErrorKind, message: alloc::string::String) -> Outcome {
    Outcome::Done(Err(Error::new(kind, message)))
}
