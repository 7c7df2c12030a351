//! The guest's end: [`GuestSession`] speaks the protocol, a [`Machine`] does what is asked.
//!
//! Tether's agent and the in-process fake implement [`Machine`] and share everything else.

use crate::carrier::Carrier;
use crate::codec::{decode, decode_marked};
use crate::frame::{Found, Nonce};
use crate::handshake::{
    GuestHello, HELLO, HostHello, HostProof, PROOF, Prover, Refusal, Transcript, VERSION_MAX,
    VERSION_MIN,
};
use crate::message::{
    Claim, Error, ErrorKind, Exit, FileOperation, MachineEvent, Mount, Network, Output, ProcessId,
    ProcessPage, ProcessSpec, Rebirth, Reply, Request, RequestId, RunState, Setup, ShutdownSpec,
    SignalTarget, Statistics, TerminalSize, ToGuest,
};
use crate::{CarrierKind, ChannelKey, MAX_IN_FLIGHT, Time, Violation};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use streams::Process;

mod requests;
mod streams;
mod transmit;

/// Names a request whose answer comes later; handed back to [`GuestSession::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) epoch: u32,
    pub(crate) request: RequestId,
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// Finished.
    Done(Result<Reply, Error>),
    /// Under way: [`GuestSession::complete`] will be called with the ticket.
    Later,
}

/// What does the work a host asks for.
pub trait Machine {
    /// Unpredictable bytes for a handshake.
    fn entropy(&mut self) -> [u8; 16];
    /// Makes the machine one container's. Called at most once.
    fn setup(&mut self, ticket: Ticket, setup: Setup) -> Outcome;
    /// Starts a process. Its streams exist in the session from before this call until an error or forget.
    fn start(&mut self, ticket: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome;
    /// Starts a process that reads or writes the container's files; its streams as for a start.
    fn files(&mut self, ticket: Ticket, process: ProcessId, operation: FileOperation) -> Outcome;
    /// Sends a signal (1 to 64, already checked) to a running process.
    fn signal(&mut self, process: ProcessId, signal: u8, target: SignalTarget)
    -> Result<(), Error>;
    /// Changes a terminal's size.
    fn resize(&mut self, process: ProcessId, size: TerminalSize) -> Result<(), Error>;
    /// Drops what is kept of an exited process. The session has checked that it exited.
    fn forget(&mut self, process: ProcessId);
    /// Lists processes with pids above `after`.
    fn processes(&mut self, after: u32) -> Result<ProcessPage, Error>;
    /// Measures.
    fn statistics(&mut self) -> Result<Statistics, Error>;
    /// Sets the realtime clock to nanoseconds since the Unix epoch.
    fn set_clock(&mut self, unix_nanos: u64) -> Result<(), Error>;
    /// Stops everything; see [`crate::message::Request::Shutdown`].
    fn shutdown(&mut self, ticket: Ticket, spec: ShutdownSpec) -> Outcome;
    /// Mounts one more thing.
    fn mount(&mut self, ticket: Ticket, mount: Mount) -> Outcome;
    /// Replaces the network.
    fn network(&mut self, ticket: Ticket, network: Network) -> Outcome;
    /// Stops the container's processes where they are; see [`Request::Freeze`].
    fn freeze(&mut self, _ticket: Ticket, _hold_ms: u32) -> Outcome {
        cannot_fork()
    }
    /// Lets them go on.
    fn thaw(&mut self, _unix_nanos: u64) -> Result<(), Error> {
        Err(Error::new(ErrorKind::Unsupported, NO_FORK))
    }
    /// Makes a child of a running machine another machine; see [`Request::Rebirth`].
    fn rebirth(&mut self, _ticket: Ticket, _rebirth: Rebirth) -> Outcome {
        cannot_fork()
    }
    /// Tells it whose it is; see [`Request::Claim`].
    fn claim(&mut self, _claim: Claim) -> Result<(), Error> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this machine was not forked ahead of need",
        ))
    }
    /// Goes through a start with nothing of anybody's; see [`Request::Rehearse`].
    fn rehearse(&mut self, _ticket: Ticket) -> Outcome {
        Outcome::Done(Err(Error::new(
            ErrorKind::Unsupported,
            "this machine was not forked ahead of need",
        )))
    }
}

const NO_FORK: &str = "this machine cannot be forked while it runs";

fn cannot_fork() -> Outcome {
    Outcome::Done(Err(Error::new(ErrorKind::Unsupported, NO_FORK)))
}

/// Standard input waiting for a process.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// These bytes come next; never empty.
    Data(&'a [u8]),
    /// Nothing now.
    Empty,
    /// All was taken and the host has sent the end.
    End,
}

/// Something that the adapter stopped doing can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// [`GuestSession::input`] has something new.
    Input(ProcessId),
    /// [`GuestSession::output_room`] was empty and is no longer.
    Room(ProcessId, Output),
}

/// Most events kept for a host that is not there; the oldest warning gives way.
const MAX_EVENTS: usize = 64;

/// How far the connection has come.
#[derive(Debug)]
enum Connection {
    /// No preamble yet.
    Waiting,
    /// A preamble came: the host's hello is next.
    Greeted { nonce: Nonce },
    /// We said who we are: the host's proof is next.
    Proving { transcript: Transcript },
    /// We said that we cannot talk.
    Refused { nonce: Nonce },
    /// Both ends are who they should be.
    Open { transcript: Transcript },
}

impl Connection {
    fn nonce(&self) -> Option<Nonce> {
        match self {
            Self::Waiting => None,
            Self::Greeted { nonce } | Self::Refused { nonce } => Some(*nonce),
            Self::Proving { transcript } | Self::Open { transcript } => Some(transcript.host_nonce),
        }
    }
}

/// A request that was taken and that the host has not said it knows the end of.
#[derive(Debug)]
enum Answer {
    Pending,
    Ready {
        result: Result<Reply, Error>,
        due: bool,
    },
}

#[derive(Debug)]
enum SetupState {
    Bare,
    Underway { ticket: Ticket },
    Finished(Result<(), Error>),
}

/// What goes out before anything else.
#[derive(Debug)]
enum Greeting {
    Hello(GuestHello),
    Resume,
}

/// The guest's end of the protocol: bytes and a clock in, bytes and calls on a [`Machine`] out.
///
/// ```text
///   Waiting -> Greeted -> Proving -> Open        a preamble always leads back to Greeted
///                 '-> Refused
/// ```
///
/// The session outlives connections: streams, records of processes and answers are the same
/// after a reconnect, and a host that comes back learns everything from [`ToHost::Resume`].
#[derive(Debug)]
pub struct GuestSession {
    carrier: Carrier,
    key: ChannelKey,
    boot_id: [u8; 16],
    connection: Connection,
    greetings: VecDeque<Greeting>,
    echo_preamble: bool,
    /// The host session whose requests `answers` holds.
    host: Option<[u8; 16]>,
    epoch: u32,
    settled: u32,
    answers: BTreeMap<RequestId, Answer>,
    setup: SetupState,
    /// Requests that wait for the setup to finish.
    deferred: VecDeque<(Ticket, Request)>,
    /// Starts that have no answer yet.
    starting: Vec<(Ticket, ProcessId)>,
    processes: BTreeMap<ProcessId, Process>,
    /// Bytes of stream buffers held.
    used: usize,
    /// Who sends next.
    turn: ProcessId,
    ready: VecDeque<Ready>,
    events: VecDeque<MachineEvent>,
    pong: Option<u32>,
}

impl GuestSession {
    /// A session that no host has found yet. `boot_id` is random and changes at boot and at fork.
    pub fn new(carrier: CarrierKind, key: ChannelKey, boot_id: [u8; 16]) -> Self {
        Self {
            carrier: Carrier::guest(carrier),
            key,
            boot_id,
            connection: Connection::Waiting,
            greetings: VecDeque::new(),
            echo_preamble: false,
            host: None,
            epoch: 0,
            settled: 0,
            answers: BTreeMap::new(),
            setup: SetupState::Bare,
            deferred: VecDeque::new(),
            starting: Vec::new(),
            processes: BTreeMap::new(),
            used: 0,
            turn: ProcessId::MAIN,
            ready: VecDeque::new(),
            events: VecDeque::new(),
            pong: None,
        }
    }

    /// A carrier came: a connection was accepted, a port opened by the host, a serial line opened.
    pub fn connected(&mut self) {
        self.carrier.reset_guest();
        self.let_go();
    }

    /// The carrier went.
    pub fn disconnected(&mut self) {
        self.connected();
    }

    /// The machine is a child of the one whose session this was, as it runs: processes and streams
    /// go on where they are, under another key and for a host that knows nothing yet.
    pub fn forked(&mut self, key: ChannelKey, boot_id: [u8; 16]) {
        self.key = key;
        self.boot_id = boot_id;
        self.host = None;
        // What the parent's host asked for is answered to nobody.
        self.epoch = self.epoch.wrapping_add(1);
        self.settled = 0;
        self.answers.clear();
        self.connected();
    }

    /// Whether a host is there that has proved to hold the key.
    pub fn is_open(&self) -> bool {
        matches!(self.connection, Connection::Open { .. })
    }

    fn let_go(&mut self) {
        self.connection = Connection::Waiting;
        self.greetings.clear();
        self.echo_preamble = false;
        self.pong = None;
        self.processes.values_mut().for_each(Process::reconnect);
        for answer in self.answers.values_mut() {
            if let Answer::Ready { due, .. } = answer {
                *due = false;
            }
        }
    }

    /// Takes bytes from the carrier and does what they ask.
    ///
    /// # Errors
    /// The peer broke the protocol. The session hunts for a new connection; an adapter whose
    /// carrier can be closed closes it.
    pub fn receive<M: Machine>(
        &mut self,
        bytes: &[u8],
        now: Time,
        machine: &mut M,
    ) -> Result<(), Violation> {
        let mut carrier =
            core::mem::replace(&mut self.carrier, Carrier::guest(CarrierKind::Stream));
        let result = carrier.receive(bytes, now, |found| match found {
            Found::Preamble(nonce) => {
                self.preamble(nonce);
                Ok(())
            }
            Found::Frame(body) => self.frame(body, machine),
        });
        self.carrier = carrier;
        if result.is_err() {
            self.carrier.hunt();
            self.let_go();
        }
        result
    }

    fn preamble(&mut self, nonce: Nonce) {
        // A host that got no answer in time says the same again: it gets the same answer.
        if self.connection.nonce() != Some(nonce) {
            self.let_go();
            self.connection = Connection::Greeted { nonce };
        }
    }

    fn frame<M: Machine>(&mut self, body: &[u8], machine: &mut M) -> Result<(), Violation> {
        match &self.connection {
            Connection::Waiting | Connection::Refused { .. } => Ok(()),
            Connection::Greeted { nonce } => {
                let nonce = *nonce;
                let hello: HostHello = decode_marked(HELLO, body)?;
                self.hello(nonce, hello, machine.entropy());
                Ok(())
            }
            Connection::Proving { transcript } => {
                let transcript = *transcript;
                if body.first() == Some(&HELLO) {
                    self.welcome(&transcript);
                    return Ok(());
                }
                let HostProof { proof } = decode_marked(PROOF, body)?;
                if transcript.verify(&self.key, Prover::Host, &proof) {
                    self.open(transcript);
                } else {
                    self.connection = Connection::Refused {
                        nonce: transcript.host_nonce,
                    };
                    self.greetings
                        .push_back(Greeting::Hello(GuestHello::Refused(Refusal::Key)));
                }
                Ok(())
            }
            // The hello again, from before our answer reached the host.
            Connection::Open { .. } if body.first() == Some(&HELLO) => Ok(()),
            Connection::Open { .. } => self.message(decode(body)?, machine),
        }
    }

    fn hello(&mut self, host_nonce: Nonce, hello: HostHello, guest_nonce: [u8; 16]) {
        self.echo_preamble = true;
        if hello.min > VERSION_MAX || hello.max < VERSION_MIN || hello.min > hello.max {
            self.connection = Connection::Refused { nonce: host_nonce };
            let refusal = Refusal::Version {
                min: VERSION_MIN,
                max: VERSION_MAX,
            };
            self.greetings
                .push_back(Greeting::Hello(GuestHello::Refused(refusal)));
            return;
        }
        let version = hello.max.min(VERSION_MAX);
        let transcript = Transcript {
            host_nonce,
            session: hello.session,
            guest_nonce,
            boot_id: self.boot_id,
            version,
        };
        self.connection = Connection::Proving { transcript };
        self.welcome(&transcript);
    }

    fn welcome(&mut self, transcript: &Transcript) {
        self.echo_preamble = true;
        self.greetings.clear();
        self.greetings
            .push_back(Greeting::Hello(GuestHello::Welcome {
                version: transcript.version,
                boot_id: transcript.boot_id,
                nonce: transcript.guest_nonce,
                proof: transcript.prove(&self.key, Prover::Guest),
            }));
    }

    fn open(&mut self, transcript: Transcript) {
        if self.host != Some(transcript.session) {
            // Another controller: nobody will ask for the old one's answers.
            self.host = Some(transcript.session);
            self.epoch = self.epoch.wrapping_add(1);
            self.settled = 0;
            self.answers.clear();
        }
        self.connection = Connection::Open { transcript };
        self.greetings.push_back(Greeting::Resume);
    }

    fn message<M: Machine>(
        &mut self,
        message: ToGuest<'_>,
        machine: &mut M,
    ) -> Result<(), Violation> {
        match message {
            ToGuest::Request {
                id,
                settled,
                request,
            } => {
                self.settle(settled)?;
                if id.0 < self.settled {
                    return Ok(());
                }
                if id.0 - self.settled >= MAX_IN_FLIGHT {
                    return Err(Violation::Overrun("requests"));
                }
                match self.answers.get_mut(&id) {
                    Some(Answer::Pending) => {}
                    Some(Answer::Ready { due, .. }) => *due = true,
                    None => {
                        self.answers.insert(id, Answer::Pending);
                        let ticket = Ticket {
                            epoch: self.epoch,
                            request: id,
                        };
                        self.request(ticket, request, machine);
                    }
                }
                Ok(())
            }
            ToGuest::Settled { below } => self.settle(below),
            // A process that is not known failed to start or was forgotten while this was on its way.
            ToGuest::Input {
                process,
                offset,
                data,
            } => {
                if self
                    .with(process, |p, _| p.input.receive(offset, data))
                    .transpose()?
                    == Some(true)
                {
                    self.ready.push_back(Ready::Input(process));
                }
                Ok(())
            }
            ToGuest::InputEnd { process, offset } => {
                if self.with(process, |p, _| p.input.end(offset)).transpose()? == Some(true) {
                    self.ready.push_back(Ready::Input(process));
                }
                Ok(())
            }
            ToGuest::Ack {
                process,
                output,
                stored,
                limit,
            } => {
                if self
                    .with(process, |p, _| p.output(output).acknowledge(stored, limit))
                    .transpose()?
                    == Some(true)
                {
                    self.ready.push_back(Ready::Room(process, output));
                }
                Ok(())
            }
            ToGuest::Ping { token } => {
                self.pong = Some(token);
                Ok(())
            }
        }
    }

    /// Contiguous room for what a process writes: read straight into it, then say
    /// [`GuestSession::output_filled`]. Empty when the stream's buffer is full: stop reading until
    /// [`Ready::Room`].
    pub fn output_room(&mut self, process: ProcessId, output: Output) -> &mut [u8] {
        let Some(p) = self.processes.get_mut(&process) else {
            return &mut [];
        };
        let before = p.held();
        // Twice, because the count has to be brought up to date before the room is lent out.
        let _ = p.output(output).room(self.used);
        self.used = self.used + p.held() - before;
        p.output(output).room(self.used)
    }

    /// Says that `n` bytes of the last [`GuestSession::output_room`] were filled.
    pub fn output_filled(&mut self, process: ProcessId, output: Output, n: usize) {
        if let Some(p) = self.processes.get_mut(&process) {
            p.output(output).filled(n);
        }
    }

    /// No writer is left.
    pub fn output_ended(&mut self, process: ProcessId, output: Output) {
        if let Some(p) = self.processes.get_mut(&process) {
            p.output(output).end();
        }
    }

    /// What waits on a process's standard input.
    pub fn input(&self, process: ProcessId) -> Input<'_> {
        self.processes
            .get(&process)
            .map_or(Input::Empty, |p| p.input.peek())
    }

    /// The process took `n` bytes of it.
    pub fn input_taken(&mut self, process: ProcessId, n: usize) {
        self.with(process, |p, used| p.input.take(n, used));
    }

    /// The process no longer reads: what comes is thrown away.
    pub fn input_abandoned(&mut self, process: ProcessId) {
        self.with(process, |p, used| p.input.abandon(used));
    }

    /// A process ended and was reaped.
    pub fn exited(&mut self, process: ProcessId, exit: Exit) {
        let open = self.is_open();
        if let Some(p) = self.processes.get_mut(&process) {
            p.run = RunState::Exited(exit);
            p.exit_due = open;
        }
        self.input_abandoned(process);
    }

    /// Tells the host something it did not ask for; the oldest is dropped when too many wait.
    pub fn event(&mut self, event: MachineEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// What can go on; ask until `None` after receiving, completing and transmitting.
    pub fn next_ready(&mut self) -> Option<Ready> {
        self.ready.pop_front()
    }

    /// The host knows every answer, exit and byte that is not running any more.
    pub fn is_flushed(&self) -> bool {
        self.answers.is_empty()
            && self.carrier.is_flushed()
            && self
                .processes
                .values()
                .all(|p| matches!(p.run, RunState::Exited(_)) && p.is_stored())
    }

    /// When [`GuestSession::transmit`] has to be called at the latest.
    pub fn timeout(&self) -> Option<Time> {
        self.carrier.deadline()
    }

    fn drop_process(&mut self, process: ProcessId) {
        if let Some(p) = self.processes.remove(&process) {
            self.used -= p.held();
        }
    }

    /// Works on a process and keeps count of what its buffers hold.
    fn with<R>(
        &mut self,
        process: ProcessId,
        work: impl FnOnce(&mut Process, usize) -> R,
    ) -> Option<R> {
        let p = self.processes.get_mut(&process)?;
        let before = p.held();
        let result = work(p, self.used);
        self.used = self.used + p.held() - before;
        Some(result)
    }
}
