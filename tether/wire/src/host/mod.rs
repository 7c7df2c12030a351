//! The host's end: [`HostSession`] asks, and tells what the guest says.

use crate::carrier::Carrier;
use crate::codec::{decode, decode_marked, encode};
use crate::frame::{Found, Nonce};
use crate::handshake::{
    GuestHello, HELLO, HostProof, Prover, Refusal, Transcript, VERSION_MAX, VERSION_MIN,
};
use crate::message::{
    Error, ErrorKind, Exit, MachineEvent, Output, ProcessId, ProcessState, Reply, Request,
    RequestId, ToGuest, ToHost,
};
use crate::{CarrierKind, ChannelKey, MAX_FRAME, MAX_IN_FLIGHT, MAX_PROCESSES, Time, Violation};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use streams::Process;

mod streams;
mod transmit;

/// How long the first greeting may stay unanswered on a stream before it is said again.
const GREETING_TIMEOUT: u64 = 1_000_000;

/// Too many requests are unanswered, or this one is larger than a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Full {
    /// [`MAX_IN_FLIGHT`] requests, counted from the oldest unanswered one.
    InFlight,
    /// The request's encoding in bytes; [`MAX_FRAME`] is the most.
    Size(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight => write!(f, "{MAX_IN_FLIGHT} requests are unanswered"),
            Self::Size(size) => write!(
                f,
                "the request takes {size} bytes and a message at most {MAX_FRAME}: shorten the command line, the \
                 environment or the lists"
            ),
        }
    }
}

impl core::error::Error for Full {}

/// What the guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A connection stands. Comes first on every connection.
    Resumed {
        /// The guest's boot.
        boot_id: [u8; 16],
        /// Another boot than before: its processes are gone, and what was asked is answered with
        /// [`ErrorKind::Cancelled`].
        rebooted: bool,
        /// The setup's result, when it is done.
        setup: Option<Result<(), Error>>,
        /// Every process the guest knows.
        processes: Vec<ProcessState>,
    },
    /// The answer to a request; exactly one each.
    Reply {
        /// The request's number.
        id: RequestId,
        /// Its outcome.
        result: Result<Reply, Error>,
    },
    /// A stream's next bytes: in order, without gap or overlap, across connections.
    Output {
        /// The process.
        process: ProcessId,
        /// Which stream.
        output: Output,
        /// Offset of the first byte.
        offset: u64,
        /// Never empty.
        data: Vec<u8>,
    },
    /// A stream is complete.
    OutputEnd {
        /// The process.
        process: ProcessId,
        /// Which stream.
        output: Output,
        /// Its length.
        offset: u64,
    },
    /// The guest no longer has bytes that this host never had: an earlier controller acknowledged
    /// them and did not pass on that it had.
    Gap {
        /// The process.
        process: ProcessId,
        /// Which stream.
        output: Output,
        /// First missing byte.
        from: u64,
        /// First byte there is.
        to: u64,
    },
    /// A process ended.
    Exited {
        /// The process.
        process: ProcessId,
        /// How.
        exit: Exit,
    },
    /// [`HostSession::write_input`] took less than it was given and takes more now.
    InputRoom {
        /// The process.
        process: ProcessId,
    },
    /// Something that nobody asked for.
    Event(MachineEvent),
    /// The answer to a ping.
    Pong {
        /// Its token.
        token: u32,
    },
    /// These two ends cannot talk; final for this machine.
    Refused(Refusal),
}

#[derive(Debug)]
enum Connection {
    Down,
    /// Said hello; `padding` grows with every repetition, to push a guest out of a half-read frame.
    Greeting {
        nonce: Nonce,
        due: bool,
        again_at: Option<Time>,
        pause: u64,
        padding: usize,
    },
    /// The guest proved itself; our proof is on its way.
    Proven {
        nonce: Nonce,
        boot_id: [u8; 16],
        proof: Option<HostProof>,
    },
    Open {
        nonce: Nonce,
    },
    Refused,
}

/// Whether the guest can know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Never,
    /// On an earlier connection: it may have arrived.
    Earlier,
    Now,
}

/// The host's end of the protocol: requests, bytes and a clock in, bytes and [`HostEvent`]s out.
///
/// ```text
///   Down -> Greeting -> Proven -> Open        disconnected leads back to Down
///                '-> Refused
/// ```
#[derive(Debug)]
pub struct HostSession {
    kind: CarrierKind,
    carrier: Option<Carrier>,
    key: ChannelKey,
    session: [u8; 16],
    connection: Connection,
    boot_id: Option<[u8; 16]>,
    version: Option<u16>,
    next_request: u32,
    settled_sent: u32,
    /// Unanswered.
    requests: BTreeMap<RequestId, (Request, Sending)>,
    processes: BTreeMap<ProcessId, Process>,
    turn: ProcessId,
    ping: Option<u32>,
    /// When acknowledgements that are held back have to go.
    acknowledge: Acknowledge,
    events: VecDeque<HostEvent>,
}

/// Acknowledgements that wait for more of their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acknowledge {
    /// None.
    Nothing,
    /// There are some since the last [`HostSession::transmit`].
    Soon,
    /// They wait until then.
    At(Time),
}

impl HostSession {
    /// A session of a controller. `session` is random and the same for as long as the controller
    /// lives.
    pub fn new(carrier: CarrierKind, key: ChannelKey, session: [u8; 16]) -> Self {
        Self {
            kind: carrier,
            carrier: None,
            key,
            session,
            connection: Connection::Down,
            boot_id: None,
            version: None,
            next_request: 0,
            settled_sent: 0,
            requests: BTreeMap::new(),
            processes: BTreeMap::new(),
            turn: ProcessId::MAIN,
            ping: None,
            acknowledge: Acknowledge::Nothing,
            events: VecDeque::new(),
        }
    }

    /// A carrier stands. `nonce` is fresh and unpredictable for every one.
    pub fn connected(&mut self, nonce: [u8; 16]) {
        self.carrier = Some(Carrier::host(self.kind, nonce));
        self.connection = Connection::Greeting {
            nonce,
            due: true,
            again_at: None,
            pause: GREETING_TIMEOUT,
            padding: 0,
        };
        self.settled_sent = 0;
        self.ping = None;
        self.requests
            .values_mut()
            .filter(|(_, sending)| *sending == Sending::Now)
            .for_each(|(_, sending)| *sending = Sending::Earlier);
    }

    /// The carrier went.
    pub fn disconnected(&mut self) {
        self.carrier = None;
        self.connection = Connection::Down;
        self.acknowledge = Acknowledge::Nothing;
    }

    /// The protocol's version that the guest last agreed to; `None` before it has.
    pub fn version(&self) -> Option<u16> {
        self.version
    }

    /// Whether the guest has proved itself and said where it stands.
    pub fn is_open(&self) -> bool {
        matches!(self.connection, Connection::Open { .. })
    }

    /// Says, before the first connection, what an earlier controller has stored of a process's
    /// output: the guest sends what follows.
    pub fn adopt(&mut self, process: ProcessId, stdout: u64, stderr: u64) {
        self.processes
            .insert(process, Process::adopted(stdout, stderr));
    }

    /// Asks for something. The request survives reconnects and is executed once.
    ///
    /// # Errors
    /// Nothing was queued: see [`Full`].
    pub fn request(&mut self, request: Request) -> Result<RequestId, Full> {
        if self.next_request - self.settled().0 >= MAX_IN_FLIGHT {
            return Err(Full::InFlight);
        }
        let id = RequestId(self.next_request);
        let mut body = Vec::new();
        encode(
            &ToGuest::Request {
                id,
                settled: id,
                request: request.clone(),
            },
            &mut body,
        );
        if body.len() > MAX_FRAME {
            return Err(Full::Size(body.len()));
        }
        self.next_request += 1;
        if let Some(process) = request.starts() {
            self.processes.entry(process).or_insert_with(Process::new);
        }
        self.requests.insert(id, (request, Sending::Never));
        Ok(id)
    }

    fn settled(&self) -> RequestId {
        self.requests
            .keys()
            .next()
            .copied()
            .unwrap_or(RequestId(self.next_request))
    }

    /// Queues standard input; gives how many bytes were taken. After less than all of them
    /// [`HostEvent::InputRoom`] says when to go on. Input for a process that ended is taken and
    /// dropped, as a pipe without a reader would.
    pub fn write_input(&mut self, process: ProcessId, data: &[u8]) -> usize {
        self.processes
            .get_mut(&process)
            .map_or(data.len(), |p| p.input.write(data))
    }

    /// Standard input ends after what was written.
    pub fn end_input(&mut self, process: ProcessId) {
        if let Some(p) = self.processes.get_mut(&process) {
            p.input.end();
        }
    }

    /// Everything of a stream below `offset` is stored: the guest may drop it and send more.
    pub fn stored(&mut self, process: ProcessId, output: Output, offset: u64) {
        if let Some(p) = self.processes.get_mut(&process) {
            p.output(output).stored(offset);
            if self.acknowledge == Acknowledge::Nothing {
                self.acknowledge = Acknowledge::Soon;
            }
        }
    }

    /// Asks for a sign of life.
    pub fn ping(&mut self, token: u32) {
        self.ping = Some(token);
    }

    /// What the guest said, in order. Take all of it before receiving more.
    pub fn next_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    /// Takes bytes from the carrier.
    ///
    /// # Errors
    /// The guest broke the protocol or the line: drop the carrier and connect again.
    pub fn receive(&mut self, bytes: &[u8], now: Time) -> Result<(), Violation> {
        let Some(mut carrier) = self.carrier.take() else {
            return Ok(());
        };
        let result = carrier.receive(bytes, now, |found| match found {
            Found::Preamble(_) => Ok(()),
            Found::Frame(body) => self.frame(body),
        });
        match result {
            Ok(()) => self.carrier = Some(carrier),
            Err(_) => self.disconnected(),
        }
        result
    }

    fn frame(&mut self, body: &[u8]) -> Result<(), Violation> {
        match &mut self.connection {
            Connection::Down | Connection::Refused => Ok(()),
            Connection::Greeting { nonce, .. } => {
                let nonce = *nonce;
                self.hello(nonce, decode_marked(HELLO, body)?)
            }
            Connection::Proven { .. } | Connection::Open { .. } if body.first() == Some(&HELLO) => {
                // The answer to a greeting that was said twice, or a refusal of our proof.
                if let GuestHello::Refused(refusal) = decode_marked(HELLO, body)? {
                    self.refused(refusal);
                }
                Ok(())
            }
            Connection::Proven { nonce, boot_id, .. } => {
                let (nonce, boot_id) = (*nonce, *boot_id);
                let ToHost::Resume { setup, processes } = decode(body)? else {
                    return Err(Violation::Unexpected(
                        "a message before the state to resume from",
                    ));
                };
                self.resume(boot_id, setup, processes)?;
                self.connection = Connection::Open { nonce };
                Ok(())
            }
            Connection::Open { .. } => self.message(decode(body)?),
        }
    }

    fn refused(&mut self, refusal: Refusal) {
        self.connection = Connection::Refused;
        self.events.push_back(HostEvent::Refused(refusal));
    }

    fn hello(&mut self, host_nonce: Nonce, hello: GuestHello) -> Result<(), Violation> {
        let (version, boot_id, guest_nonce, proof) = match hello {
            GuestHello::Welcome {
                version,
                boot_id,
                nonce,
                proof,
            } => (version, boot_id, nonce, proof),
            GuestHello::Refused(refusal) => {
                self.refused(refusal);
                return Ok(());
            }
        };
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Err(Violation::Unexpected("a version that was not offered"));
        }
        let transcript = Transcript {
            host_nonce,
            session: self.session,
            guest_nonce,
            boot_id,
            version,
        };
        if !transcript.verify(&self.key, Prover::Guest, &proof) {
            self.refused(Refusal::Key);
            return Ok(());
        }
        self.version = Some(version);
        let proof = Some(HostProof {
            proof: transcript.prove(&self.key, Prover::Host),
        });
        self.connection = Connection::Proven {
            nonce: host_nonce,
            boot_id,
            proof,
        };
        Ok(())
    }

    fn resume(
        &mut self,
        boot_id: [u8; 16],
        setup: Option<Result<(), Error>>,
        states: Vec<ProcessState>,
    ) -> Result<(), Violation> {
        if states.len() > MAX_PROCESSES {
            return Err(Violation::Overrun("processes"));
        }
        let rebooted = self.boot_id.is_some_and(|before| before != boot_id);
        self.boot_id = Some(boot_id);
        let mut news = Vec::new();
        if rebooted {
            self.processes.clear();
            for (id, (request, sending)) in core::mem::take(&mut self.requests) {
                if sending != Sending::Never {
                    let result = Err(Error::new(
                        ErrorKind::Cancelled,
                        "the machine restarted before it answered",
                    ));
                    news.push(HostEvent::Reply { id, result });
                } else {
                    if let Some(process) = request.starts() {
                        self.processes.entry(process).or_insert_with(Process::new);
                    }
                    self.requests.insert(id, (request, sending));
                }
            }
        }
        for state in &states {
            let known = self
                .processes
                .entry(state.process)
                .or_insert_with(|| Process::adopted(state.stdout.stored, state.stderr.stored));
            let process = state.process;
            let ([stdout, stderr], exit) = known.resume(state);
            for (output, gap) in [(Output::Stdout, stdout), (Output::Stderr, stderr)] {
                if let Some((from, to)) = gap {
                    news.push(HostEvent::Gap {
                        process,
                        output,
                        from,
                        to,
                    });
                }
            }
            if let Some(exit) = exit {
                news.push(HostEvent::Exited { process, exit });
            }
            if known.input.take_starved() {
                news.push(HostEvent::InputRoom { process });
            }
        }
        self.events.push_back(HostEvent::Resumed {
            boot_id,
            rebooted,
            setup,
            processes: states,
        });
        self.events.extend(news);
        Ok(())
    }

    fn message(&mut self, message: ToHost<'_>) -> Result<(), Violation> {
        let event = match message {
            ToHost::Resume { .. } => {
                return Err(Violation::Unexpected("a second state to resume from"));
            }
            ToHost::Reply { id, result } => {
                let Some((request, _)) = self.requests.remove(&id) else {
                    return Ok(());
                };
                let gone = match (&request, &result) {
                    (Request::Forget { process }, Ok(_)) => Some(*process),
                    (_, Err(error)) if error.kind != ErrorKind::Exists => request.starts(),
                    _ => None,
                };
                if let Some(process) = gone {
                    self.processes.remove(&process);
                }
                HostEvent::Reply { id, result }
            }
            ToHost::Output {
                process,
                output,
                offset,
                data,
            } => {
                let known = self
                    .known(process)?
                    .output(output)
                    .receive(offset, data.len())?;
                match data.get(known..) {
                    None | Some([]) => return Ok(()),
                    Some(data) => HostEvent::Output {
                        process,
                        output,
                        offset: offset + known as u64,
                        data: data.to_vec(),
                    },
                }
            }
            ToHost::OutputEnd {
                process,
                output,
                offset,
            } => {
                if !self.known(process)?.output(output).end(offset)? {
                    return Ok(());
                }
                HostEvent::OutputEnd {
                    process,
                    output,
                    offset,
                }
            }
            ToHost::InputRoom {
                process,
                taken,
                limit,
            } => {
                if !self.known(process)?.input.room(taken, limit)? {
                    return Ok(());
                }
                HostEvent::InputRoom { process }
            }
            ToHost::Exited { process, exit } => {
                let known = self.known(process)?;
                if known.exit.replace(exit).is_some() {
                    return Ok(());
                }
                let starved = known.input.take_starved();
                known.input.discard();
                self.events.push_back(HostEvent::Exited { process, exit });
                if !starved {
                    return Ok(());
                }
                HostEvent::InputRoom { process }
            }
            ToHost::Event(event) => HostEvent::Event(event),
            ToHost::Pong { token } => HostEvent::Pong { token },
        };
        self.events.push_back(event);
        Ok(())
    }

    fn known(&mut self, process: ProcessId) -> Result<&mut Process, Violation> {
        self.processes
            .get_mut(&process)
            .ok_or(Violation::Unexpected(
                "word of a process that does not exist",
            ))
    }
}
