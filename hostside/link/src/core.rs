//! The state behind a link: the session, and what waits on it.
//!
//! Nothing here awaits or does I/O. The driver feeds bytes in and takes bytes out; calls look in,
//! and are woken when what they look at has changed.

use crate::LinkError;
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tether_wire::message::{
    Error, ErrorKind, Exit, MachineEvent, Output, ProcessId, ProcessState, Reply, Request,
    RequestId, RunState, Stdio,
};
use tether_wire::{Full, HostEvent, HostSession, OUTPUT_WINDOW};
use tokio::sync::Notify;

/// Machine events kept for a reader that does not read; later ones are counted in
/// [`Notice::Lost`].
pub const MAX_EVENTS: usize = 256;

/// What the guest said when the channel came up.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// One boot of the guest's kernel.
    pub boot_id: [u8; 16],
    /// The machine was restarted since the last time: its former processes are gone.
    pub rebooted: bool,
    /// Whether setup was done, with its result.
    pub setup: Option<Result<(), Error>>,
    /// Every process started and not forgotten.
    pub processes: Vec<ProcessState>,
}

/// What the guest, or the link itself, says unasked.
#[derive(Clone, Debug)]
pub enum Notice {
    /// From the guest.
    Machine(MachineEvent),
    /// The channel came up, for the first time or again.
    Up,
    /// The channel went down; the link connects again.
    Down,
    /// This many notices were thrown away because nobody read them.
    Lost(u64),
}

/// A link's life; see the crate's diagram.
#[derive(Debug)]
pub(crate) enum Phase {
    /// No answer from the guest yet on this carrier, or no carrier.
    Waiting {
        /// Why the last attempt to connect failed.
        carrier: Option<String>,
    },
    /// The guest answered.
    Up,
    /// Nothing will come any more.
    Ended(LinkError),
}

/// Unread bytes of one stream that are kept at most. The session's credit keeps a guest below half
/// of it; one that claims, over and over, that bytes were acknowledged that were not gets here.
const MAX_UNREAD: usize = 2 * OUTPUT_WINDOW as usize;

/// One output stream's unread bytes.
#[derive(Debug, Default)]
pub(crate) struct OutputBuffer {
    /// Offset of the byte after the last one that came.
    end: u64,
    /// Unread bytes. One piece, unless the guest lost bytes of a former controller's.
    pieces: VecDeque<(u64, BytesMut)>,
    /// No byte follows the unread ones.
    pub ended: bool,
    /// Nobody wants them: acknowledged as they come.
    discard: bool,
    /// Who waits for more.
    pub reader: Option<Waker>,
}

impl OutputBuffer {
    fn at(offset: u64) -> Self {
        Self {
            end: offset,
            ..Self::default()
        }
    }

    /// Takes bytes; says whether there was room.
    fn push(&mut self, offset: u64, data: &[u8]) -> bool {
        let unread: usize = self.pieces.iter().map(|(_, piece)| piece.len()).sum();
        if unread + data.len() > MAX_UNREAD {
            return false;
        }
        match self.pieces.back_mut() {
            Some((start, piece)) if *start + piece.len() as u64 == offset => {
                piece.extend_from_slice(data);
            }
            _ => self.pieces.push_back((offset, BytesMut::from(data))),
        }
        self.end = offset + data.len() as u64;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        true
    }

    /// The first unread bytes and their offset.
    pub fn pop(&mut self) -> Option<(u64, Bytes)> {
        let (offset, piece) = self.pieces.pop_front()?;
        Some((offset, piece.freeze()))
    }

    /// Throws unread bytes away, now and later; gives the offset up to which.
    pub fn discard(&mut self) -> u64 {
        self.discard = true;
        self.pieces.clear();
        self.end
    }
}

/// What a process came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life {
    /// Not known to have ended.
    Running,
    /// Ended.
    Exited(Exit),
    /// Its machine restarted.
    Lost,
}

/// A process as its handles see it.
#[derive(Debug)]
pub(crate) struct Process {
    pub pid: Option<u32>,
    pub life: Life,
    pub stdout: OutputBuffer,
    pub stderr: OutputBuffer,
    pub writer: Option<Waker>,
    pub attached: bool,
}

impl Process {
    pub fn new(stdout: u64, stderr: u64) -> Self {
        Self {
            pid: None,
            life: Life::Running,
            stdout: OutputBuffer::at(stdout),
            stderr: OutputBuffer::at(stderr),
            writer: None,
            attached: false,
        }
    }

    pub fn output(&mut self, output: Output) -> &mut OutputBuffer {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }

    fn wake(&mut self) {
        let wakers = [
            self.writer.take(),
            self.stdout.reader.take(),
            self.stderr.reader.take(),
        ];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Slot {
    /// What its answer means for the process table.
    effect: Effect,
    /// Present until somebody takes it.
    pub result: Option<Result<Reply, Error>>,
    pub waker: Option<Waker>,
    /// Nobody waits for the answer any more.
    pub abandoned: bool,
}

#[derive(Clone, Copy, Debug)]
enum Effect {
    None,
    Start(ProcessId),
    Forget(ProcessId),
}

/// Everything under the lock.
#[derive(Debug)]
pub(crate) struct Core {
    pub session: HostSession,
    /// The carrier is a serial line.
    pub serial: bool,
    pub phase: Phase,
    pub resumed: Option<Resumed>,
    pub processes: BTreeMap<ProcessId, Process>,
    pub answers: HashMap<RequestId, Slot>,
    pub pongs: u32,
    pub pings: u32,
    /// Who waits for room for one more request.
    room: Vec<Waker>,
    notices: VecDeque<Notice>,
    lost: u64,
}

impl Core {
    pub fn new(session: HostSession, serial: bool) -> Self {
        Self {
            session,
            serial,
            phase: Phase::Waiting { carrier: None },
            resumed: None,
            processes: BTreeMap::new(),
            answers: HashMap::new(),
            pongs: 0,
            pings: 0,
            room: Vec::new(),
            notices: VecDeque::new(),
            lost: 0,
        }
    }

    /// Hands a request to the session.
    pub fn submit(&mut self, request: &Request) -> Result<RequestId, Full> {
        let effect = match (request.starts(), request) {
            (Some(process), _) => Effect::Start(process),
            (None, Request::Forget { process }) => Effect::Forget(*process),
            _ => Effect::None,
        };
        let id = self.session.request(request.clone())?;
        if let Some(process) = request.starts() {
            let process = self
                .processes
                .entry(process)
                .or_insert_with(|| Process::new(0, 0));
            // A terminal's output is all standard output: nothing will say that the other ended.
            process.stderr.ended |= matches!(
                request,
                Request::Start { spec, .. } if matches!(spec.stdio, Stdio::Terminal { .. })
            );
        }
        let slot = Slot {
            effect,
            result: None,
            waker: None,
            abandoned: false,
        };
        self.answers.insert(id, slot);
        Ok(id)
    }

    /// Wakes `waker` when a request was answered, or the link ended.
    pub fn wait_for_room(&mut self, waker: &Waker) {
        if !self.room.iter().any(|known| known.will_wake(waker)) {
            self.room.push(waker.clone());
        }
    }

    /// Takes over everything the session has to tell. Says whether it came up meanwhile.
    pub fn drain(&mut self) -> Drained {
        let mut drained = Drained::default();
        while let Some(event) = self.session.next_event() {
            drained.any = true;
            match event {
                HostEvent::Resumed {
                    boot_id,
                    rebooted,
                    setup,
                    processes,
                } => {
                    drained.up = true;
                    self.resume(Resumed {
                        boot_id,
                        rebooted,
                        setup,
                        processes,
                    });
                }
                HostEvent::Reply { id, result } => self.answer(id, result),
                HostEvent::Output {
                    process,
                    output,
                    offset,
                    data,
                } => self.output(process, output, offset, &data),
                HostEvent::OutputEnd {
                    process, output, ..
                } => {
                    let buffer = self.process(process).output(output);
                    buffer.ended = true;
                    if let Some(reader) = buffer.reader.take() {
                        reader.wake();
                    }
                }
                // Each chunk says its offset; the reader sees that one is missing.
                HostEvent::Gap { .. } => {}
                HostEvent::Exited { process, exit } => {
                    let process = self.process(process);
                    process.life = Life::Exited(exit);
                    if let Some(writer) = process.writer.take() {
                        writer.wake();
                    }
                }
                HostEvent::InputRoom { process } => {
                    let writer = self
                        .processes
                        .get_mut(&process)
                        .and_then(|p| p.writer.take());
                    if let Some(writer) = writer {
                        writer.wake();
                    }
                }
                HostEvent::Event(event) => self.notice(Notice::Machine(event)),
                HostEvent::Pong { token } => self.pongs = self.pongs.max(token),
                HostEvent::Refused(refusal) => self.end(LinkError::Refused(refusal)),
            }
        }
        drained
    }

    fn process(&mut self, process: ProcessId) -> &mut Process {
        self.processes
            .entry(process)
            .or_insert_with(|| Process::new(0, 0))
    }

    fn resume(&mut self, resumed: Resumed) {
        if resumed.rebooted {
            for process in self.processes.values_mut() {
                if matches!(process.life, Life::Running) {
                    process.life = Life::Lost;
                }
                process.wake();
            }
        }
        for state in &resumed.processes {
            let process = self
                .processes
                .entry(state.process)
                .or_insert_with(|| Process::new(state.stdout.stored, state.stderr.stored));
            match state.run {
                RunState::Starting => {}
                RunState::Running { pid } => process.pid = Some(pid),
                RunState::Exited(exit) => process.life = Life::Exited(exit),
            }
            if let Some(writer) = process.writer.take() {
                writer.wake();
            }
        }
        self.phase = Phase::Up;
        self.resumed = Some(resumed);
        self.notice(Notice::Up);
    }

    fn answer(&mut self, id: RequestId, result: Result<Reply, Error>) {
        self.room.drain(..).for_each(Waker::wake);
        let Some(slot) = self.answers.get_mut(&id) else {
            return;
        };
        match (slot.effect, &result) {
            (Effect::Start(process), Ok(Reply::Started(started))) => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.pid = Some(started.pid);
                }
            }
            // An earlier controller started it.
            (Effect::Start(_), Err(error)) if error.kind == ErrorKind::Exists => {}
            (Effect::Start(process), Err(_)) | (Effect::Forget(process), Ok(_)) => {
                if let Some(mut process) = self.processes.remove(&process) {
                    process.wake();
                }
            }
            _ => {}
        }
        if slot.abandoned {
            self.answers.remove(&id);
            return;
        }
        slot.result = Some(result);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    fn output(&mut self, process: ProcessId, output: Output, offset: u64, data: &[u8]) {
        let buffer = self.process(process).output(output);
        if buffer.discard {
            buffer.end = offset + data.len() as u64;
            let end = buffer.end;
            self.session.stored(process, output, end);
        } else if !buffer.push(offset, data) {
            self.end(LinkError::Nonsense("credit for output"));
        }
    }

    pub fn notice(&mut self, notice: Notice) {
        if self.notices.len() >= MAX_EVENTS {
            self.lost += 1;
        } else {
            self.notices.push_back(notice);
        }
    }

    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front().or_else(|| {
            let lost = std::mem::take(&mut self.lost);
            (lost > 0).then_some(Notice::Lost(lost))
        })
    }

    /// Wakes everybody with the reason nothing will come any more.
    pub fn end(&mut self, reason: LinkError) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.phase = Phase::Ended(reason);
        self.room.drain(..).for_each(Waker::wake);
        self.processes.values_mut().for_each(Process::wake);
        for slot in self.answers.values_mut() {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// The reason the link ended, if it has.
    pub fn ended(&self) -> Option<LinkError> {
        match &self.phase {
            Phase::Ended(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// What [`Core::drain`] found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Drained {
    /// Something; whoever waits for a condition looks again.
    pub any: bool,
    /// The guest answered the hello.
    pub up: bool,
}

/// The state, its lock, and the two bells.
#[derive(Debug)]
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// Rings for the driver: the session may have something to send.
    pub outbound: Notify,
    /// Rings for calls that wait for a condition on the state.
    pub changed: Notify,
}

impl Shared {
    pub fn new(session: HostSession, serial: bool) -> Self {
        Self {
            core: Mutex::new(Core::new(session, serial)),
            outbound: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// The state. Never keep the guard across an await.
    pub fn lock(&self) -> MutexGuard<'_, Core> {
        // Every change below is complete before anything can panic, so a poisoned lock is usable.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something; ends with the link.
    pub async fn when<T>(
        &self,
        mut look: impl FnMut(&mut Core) -> Option<Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        loop {
            changed.as_mut().enable();
            {
                let mut core = self.lock();
                if let Some(found) = look(&mut core) {
                    return found;
                }
                if let Some(reason) = core.ended() {
                    return Err(reason);
                }
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }
}
