//! A guest in this process: the real session over a machine whose programs are a match.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use tether_link::Connector;
use tether_wire::message::{
    Error, ErrorKind, Exit, ExitStatus, FileOperation, MachineEvent, Mount, Network, Output,
    ProcessId, ProcessInfo, ProcessPage, ProcessSpec, Reply, Setup, ShutdownSpec, SignalTarget,
    Started, Statistics, TerminalSize,
};
use tether_wire::{CarrierKind, ChannelKey, GuestSession, Input, Machine, Outcome, Ticket, Time};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Duration, Instant};

pub const KEY: ChannelKey = ChannelKey([9; 32]);

/// What a program still has to do.
struct Program {
    argv: Vec<String>,
    out: VecDeque<u8>,
    err: VecDeque<u8>,
    reads: bool,
    waits: bool,
    exit: u8,
    killed: Option<u8>,
    exited: bool,
}

#[derive(Default)]
pub struct Programs {
    running: BTreeMap<ProcessId, Program>,
    next_pid: u32,
    pub setups: u32,
    pub starts: u32,
    /// Rehearsals, and what becomes of the next; without, the guest does not know what that is.
    pub rehearsals: u32,
    pub rehearsal: Option<Result<(), Error>>,
    pub signals: Vec<(ProcessId, u8)>,
    pub sizes: Vec<(ProcessId, TerminalSize)>,
    entropy: u8,
}

impl Machine for Programs {
    fn entropy(&mut self) -> [u8; 16] {
        self.entropy = self.entropy.wrapping_add(1);
        [self.entropy; 16]
    }

    fn setup(&mut self, _: Ticket, setup: Setup) -> Outcome {
        self.setups += 1;
        Outcome::Done(if setup.identity.hostname == "impossible" {
            Err(Error::new(ErrorKind::TimedOut, "no such disk"))
        } else {
            Ok(Reply::Done)
        })
    }

    fn rehearse(&mut self, _: Ticket) -> Outcome {
        self.rehearsals += 1;
        let unknown = Error::new(ErrorKind::Unsupported, "what is that?");
        let done = self.rehearsal.clone().unwrap_or(Err(unknown));
        Outcome::Done(done.map(|()| Reply::Done))
    }

    /// `say OUT ERR STATUS`, `count N` (that many bytes of a pattern), `cat`, `sleep`.
    fn start(&mut self, _: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome {
        self.starts += 1;
        let arg = |n: usize| spec.argv.get(n).cloned().unwrap_or_default();
        let number = |n: usize| arg(n).parse::<usize>().unwrap_or(0);
        let mut program = Program {
            out: VecDeque::new(),
            err: VecDeque::new(),
            reads: false,
            waits: false,
            exit: 0,
            killed: None,
            exited: false,
            argv: spec.argv.clone(),
        };
        match arg(0).as_str() {
            "say" => {
                program.out.extend(arg(1).as_bytes());
                program.err.extend(arg(2).as_bytes());
                program.exit = number(3) as u8;
            }
            "count" => program.out.extend(pattern(number(1))),
            "both" => {
                program.out.extend(pattern(number(1)));
                program.err.extend(pattern(number(2)));
            }
            "cat" => program.reads = true,
            "sleep" => program.waits = true,
            other => {
                return Outcome::Done(Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{other}: not found"),
                )));
            }
        }
        self.next_pid += 1;
        self.running.insert(process, program);
        Outcome::Done(Ok(Reply::Started(Started { pid: self.next_pid })))
    }

    fn files(&mut self, _: Ticket, process: ProcessId, operation: FileOperation) -> Outcome {
        self.starts += 1;
        let (out, reads) = match operation {
            FileOperation::Stat { path } => (path, false),
            FileOperation::Write { .. } => (Vec::new(), true),
            FileOperation::Read { .. } | FileOperation::List { .. } => (pattern(100_000), false),
        };
        let program = Program {
            argv: Vec::new(),
            out: out.into(),
            err: VecDeque::new(),
            reads,
            waits: false,
            exit: 0,
            killed: None,
            exited: false,
        };
        self.next_pid += 1;
        self.running.insert(process, program);
        Outcome::Done(Ok(Reply::Started(Started { pid: self.next_pid })))
    }

    fn signal(&mut self, process: ProcessId, signal: u8, _: SignalTarget) -> Result<(), Error> {
        self.signals.push((process, signal));
        if let Some(program) = self.running.get_mut(&process) {
            program.killed = Some(signal);
        }
        Ok(())
    }

    fn resize(&mut self, process: ProcessId, size: TerminalSize) -> Result<(), Error> {
        self.sizes.push((process, size));
        Ok(())
    }

    fn forget(&mut self, process: ProcessId) {
        self.running.remove(&process);
    }

    fn processes(&mut self, after: u32) -> Result<ProcessPage, Error> {
        // Three to a page.
        let pids = after + 1..=(after + 3).min(10);
        Ok(ProcessPage {
            more: *pids.end() < 10,
            processes: pids
                .map(|pid| ProcessInfo {
                    pid,
                    parent: 0,
                    container_pid: pid,
                    uid: 0,
                    state: b'S',
                    cpu_ms: 0,
                    started_ms: 0,
                    resident: 0,
                    virtual_size: 0,
                    threads: 1,
                    terminal: 0,
                    command: String::new(),
                })
                .collect(),
        })
    }

    fn statistics(&mut self) -> Result<Statistics, Error> {
        Ok(Statistics {
            processes: self.running.len() as u32,
            ..Statistics::default()
        })
    }

    fn set_clock(&mut self, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn shutdown(&mut self, _: Ticket, _: ShutdownSpec) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }

    fn mount(&mut self, _: Ticket, _: Mount) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }

    fn network(&mut self, _: Ticket, _: Network) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
}

/// Bytes that tell where they are.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

struct Inner {
    session: GuestSession,
    machine: Programs,
}

impl Inner {
    /// Everything every program can do now.
    fn work(&mut self) {
        while self.session.next_ready().is_some() {}
        let processes: Vec<ProcessId> = self.machine.running.keys().copied().collect();
        for process in processes {
            self.work_on(process);
        }
    }

    fn work_on(&mut self, process: ProcessId) {
        let Self { session, machine } = self;
        let Some(program) = machine.running.get_mut(&process) else {
            return;
        };
        if program.exited {
            return;
        }
        let mut at_end = false;
        loop {
            let mut moved = false;
            if program.reads && program.out.is_empty() {
                let taken = match session.input(process) {
                    Input::Data(data) => {
                        program.out.extend(data);
                        data.len()
                    }
                    Input::Empty => 0,
                    Input::End => {
                        at_end = true;
                        0
                    }
                };
                session.input_taken(process, taken);
            }
            for (output, bytes) in [
                (Output::Stdout, &mut program.out),
                (Output::Stderr, &mut program.err),
            ] {
                let room = session.output_room(process, output);
                let count = room.len().min(bytes.len());
                for (place, byte) in room.iter_mut().zip(bytes.drain(..count)) {
                    *place = byte;
                }
                session.output_filled(process, output, count);
                moved |= count > 0;
            }
            if !moved {
                break;
            }
        }
        let done = program.out.is_empty()
            && program.err.is_empty()
            && !program.waits
            && (!program.reads || at_end);
        if done || program.killed.is_some() {
            program.exited = true;
            let status = match program.killed {
                Some(signal) => ExitStatus::Signal(signal),
                None => ExitStatus::Code(program.exit),
            };
            session.output_ended(process, Output::Stdout);
            session.output_ended(process, Output::Stderr);
            session.exited(
                process,
                Exit {
                    status,
                    oom_killed: program.argv.is_empty(),
                    unix_nanos: 0,
                },
            );
        }
    }
}

/// A guest and where its host connects.
#[derive(Clone)]
pub struct Guest {
    inner: Arc<Mutex<Inner>>,
    nudge: Arc<Notify>,
    accept: mpsc::UnboundedSender<DuplexStream>,
    kind: CarrierKind,
}

impl Guest {
    /// Boots one. `boot` is its boot id's every byte.
    pub fn boot(kind: CarrierKind, boot: u8) -> Self {
        let (accept, mut accepted) = mpsc::unbounded_channel::<DuplexStream>();
        let guest = Self {
            inner: Arc::new(Mutex::new(Inner {
                session: GuestSession::new(kind, KEY, [boot; 16]),
                machine: Programs::default(),
            })),
            nudge: Arc::default(),
            accept,
            kind,
        };
        let serving = guest.clone();
        tokio::spawn(async move {
            let epoch = Instant::now();
            let mut carrier = accepted.recv().await;
            while let Some(current) = carrier {
                tokio::select! {
                    () = serving.serve(current, epoch) => carrier = accepted.recv().await,
                    next = accepted.recv() => carrier = next,
                }
            }
        });
        guest
    }

    pub fn machine<R>(&self, look: impl FnOnce(&mut Programs) -> R) -> R {
        look(&mut self.inner.lock().unwrap().machine)
    }

    pub fn say(&self, event: MachineEvent) {
        self.inner.lock().unwrap().session.event(event);
        self.nudge.notify_one();
    }

    async fn serve(&self, mut carrier: DuplexStream, epoch: Instant) {
        let now = || Time(epoch.elapsed().as_micros() as u64);
        // Nobody tells a serial line's guest that the host came or went.
        if self.kind == CarrierKind::Stream {
            self.inner.lock().unwrap().session.connected();
        }
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let mut out = Vec::new();
            let deadline = {
                let mut inner = self.inner.lock().unwrap();
                inner.work();
                inner.session.transmit(now(), &mut out);
                inner.work();
                inner.session.timeout()
            };
            if carrier.write_all(&out).await.is_err() {
                return;
            }
            if self.inner.lock().unwrap().session.wants_to_send() && !out.is_empty() {
                continue;
            }
            let timer = async {
                match deadline {
                    Some(Time(at)) => {
                        tokio::time::sleep_until(epoch + Duration::from_micros(at)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = carrier.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => {
                        let mut inner = self.inner.lock().unwrap();
                        let Inner { session, machine } = &mut *inner;
                        let received = session.receive(&buffer[..count], now(), machine);
                        if received.is_err() && self.kind == CarrierKind::Stream {
                            return;
                        }
                    }
                    _ => return,
                },
                () = timer => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    /// A connector straight to the guest.
    pub fn connector(&self) -> impl Connector<Carrier = DuplexStream> + use<> {
        let accept = self.accept.clone();
        move || {
            let (host, guest) = duplex(64 * 1024);
            let sent = accept.send(guest);
            async move {
                sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                Ok(host)
            }
        }
    }

    /// A connector through a line that treats every byte as `line` says.
    pub fn through(&self, line: Line) -> impl Connector + use<> {
        let accept = self.accept.clone();
        let mut seed = line.seed;
        move || {
            let (host, host_line) = duplex(4 * 1024);
            let (guest_line, guest) = duplex(4 * 1024);
            let sent = accept.send(guest);
            seed += 2;
            let (host_in, host_out) = tokio::io::split(host_line);
            let (guest_in, guest_out) = tokio::io::split(guest_line);
            let there = Line { seed, ..line };
            let back = Line {
                seed: seed + 1,
                ..line
            };
            // When one direction is cut both are.
            tokio::spawn(async move {
                tokio::select! {
                    () = carry(host_in, guest_out, there) => {}
                    () = carry(guest_in, host_out, back) => {}
                }
            });
            async move {
                sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                Ok(host)
            }
        }
    }
}

/// How bad a line is.
#[derive(Clone, Copy)]
pub struct Line {
    pub seed: u64,
    /// One byte in so many is dropped; 0 for none.
    pub drop: u64,
    /// One byte in so many is changed; 0 for none.
    pub flip: u64,
    /// Cut after so many bytes; 0 for never.
    pub cut: u64,
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    line: Line,
) {
    // xorshift64*: the same every time.
    let mut state = line.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut one_in = |n: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        n > 0 && (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).is_multiple_of(n)
    };
    let mut carried = 0;
    let mut buffer = vec![0; 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let mut out = Vec::new();
        for &byte in &buffer[..count] {
            if one_in(line.drop) {
                continue;
            }
            out.push(if one_in(line.flip) { byte ^ 0x10 } else { byte });
        }
        carried += count as u64;
        if line.cut > 0 && carried > line.cut {
            return;
        }
        if to.write_all(&out).await.is_err() {
            return;
        }
    }
}
