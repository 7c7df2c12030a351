//! One serial port of one machine, from when it dialled in until its last connection is gone.
//!
//! It owns the bytes between the port's reader and its connections, and the state of a migration:
//!
//! ```text
//!            BEGIN               PEER                 COMPLETE             source's end, or silence
//!   Steady ────────> Announced ────────> Peered ──────────────> Draining ────────────────> Steady
//!      ^                 │ ABORT          │ ABORT
//!      └─────────────────┴────────────────┘
//! ```
//!
//! From BEGIN's answer on nothing is sent to the guest, since ESXi takes what it was sent before along to the
//! target. What the target sends is kept back until the source has said all, so the reader sees one stream.
//! Nothing here does I/O; connections ([`super::connection`]) and the reader ([`super::stream`]) call it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Unread bytes of the guest, at which its connection is no longer read.
const INBOUND: usize = 256 << 10;
/// What may be read beyond that to find the answer to a question.
const INBOUND_QUESTION: usize = 64 << 10;
/// Bytes to the guest that wait for its connection.
const OUTBOUND: usize = 64 << 10;
/// Bytes of a migration's target that wait for its source.
const AHEAD: usize = 64 << 10;

/// Names one connection among all of a concentrator's.
pub type ConnectionId = u64;

/// What becomes of a guest's bytes that nobody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The guest waits: nothing is lost.
    Wait,
    /// The oldest go: the guest never waits.
    DropOldest,
}

/// What a connection is to its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The machine's only one, or the source of a migration that is not complete.
    Active,
    /// The target of a migration that is not complete.
    Peer,
    /// The source of one that is; what it still sends comes first.
    Drained,
    /// None any more: it is to be closed.
    Gone,
}

/// What a connection has to know before it waits.
#[derive(Debug)]
pub struct View {
    /// Its role.
    pub role: Role,
    /// Whether there is room for what it reads.
    pub may_read: bool,
    /// Whether it is to ask the machine something, to learn whether it lives.
    pub ask: bool,
    /// Whether anyone on this side knows the machine.
    pub claimed: bool,
    /// For a peer: since when its source has been gone.
    pub source_gone: Option<Instant>,
}

/// A migration that is not complete.
#[derive(Debug)]
struct Migration {
    /// Sequence and secret, as the target will say them.
    cookie: Vec<u8>,
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Peer {
    id: ConnectionId,
    ahead: Vec<u8>,
    source_gone: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    Steady,
    Moving(Migration),
    Draining {
        source: ConnectionId,
        ahead: Vec<u8>,
        target_gone: bool,
    },
}

#[derive(Debug)]
struct Reader {
    number: u64,
    read: Option<Waker>,
    write: Option<Waker>,
}

#[derive(Debug)]
struct State {
    inbound: VecDeque<u8>,
    outbound: VecDeque<u8>,
    dropped: u64,
    reader: Option<Reader>,
    readers: u64,
    claimed: bool,
    active: ConnectionId,
    phase: Phase,
    questions: usize,
    ask: bool,
    answers: u64,
    ended: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    state: Mutex<State>,
    when_full: WhenFull,
    changed: Notify,
    answered: Notify,
}

/// A peer sent more before its migration was complete than a machine that does not run there could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {AHEAD} bytes from a migration's target before the migration was complete")]
pub struct TooMuchAhead;

impl Session {
    /// The session of a connection that has just said which machine's it is.
    pub fn new(active: ConnectionId, when_full: WhenFull, claimed: bool) -> Self {
        Self {
            state: Mutex::new(State {
                inbound: VecDeque::new(),
                outbound: VecDeque::new(),
                dropped: 0,
                reader: None,
                readers: 0,
                claimed,
                active,
                phase: Phase::Steady,
                questions: 0,
                ask: false,
                answers: 0,
                ended: false,
            }),
            when_full,
            changed: Notify::new(),
            answered: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told to all connections when what [`Session::view`] says may have changed.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// What the connection `id` has to know; a question is given out once.
    pub fn view(&self, id: ConnectionId) -> View {
        let mut state = self.lock();
        let role = state.role(id);
        let room = match (&state.phase, role) {
            (_, Role::Gone) => false,
            (
                Phase::Moving(Migration {
                    peer: Some(peer), ..
                }),
                Role::Peer,
            ) => peer.ahead.len() <= AHEAD,
            (Phase::Draining { ahead, .. }, Role::Active) => ahead.len() <= AHEAD,
            _ => {
                let more = if state.questions > 0 {
                    INBOUND_QUESTION
                } else {
                    0
                };
                self.when_full == WhenFull::DropOldest || state.inbound.len() < INBOUND + more
            }
        };
        let source_gone = match &state.phase {
            Phase::Moving(Migration {
                peer: Some(peer), ..
            }) if role == Role::Peer => peer.source_gone,
            _ => None,
        };
        View {
            role,
            may_read: room,
            ask: role == Role::Active && std::mem::take(&mut state.ask),
            claimed: state.claimed,
            source_gone,
        }
    }

    /// Bytes a guest sent on the connection `id`.
    ///
    /// # Errors
    /// It is a migration's target that is too far ahead; the connection is to be closed.
    pub fn deliver(&self, id: ConnectionId, data: &[u8]) -> Result<(), TooMuchAhead> {
        if data.is_empty() {
            return Ok(());
        }
        let mut state = self.lock();
        match (state.role(id), &mut state.phase) {
            (Role::Gone, _) => {}
            (
                Role::Peer,
                Phase::Moving(Migration {
                    peer: Some(peer), ..
                }),
            ) => {
                if peer.ahead.len() + data.len() > AHEAD {
                    return Err(TooMuchAhead);
                }
                peer.ahead.extend_from_slice(data);
            }
            (Role::Active, Phase::Draining { ahead, .. }) => ahead.extend_from_slice(data),
            _ => self.receive(&mut state, data),
        }
        Ok(())
    }

    fn receive(&self, state: &mut State, data: &[u8]) {
        state.inbound.extend(data);
        if self.when_full == WhenFull::DropOldest && state.inbound.len() > INBOUND {
            let excess = state.inbound.len() - INBOUND;
            state.inbound.drain(..excess);
            state.dropped += excess as u64;
        }
        state.wake_reader();
    }

    /// Takes up to `room` bytes for the guest, if they are the connection `id`'s to send.
    pub fn take_outbound(&self, id: ConnectionId, room: usize, take: impl FnMut(&[u8])) {
        let mut state = self.lock();
        if state.active != id
            || matches!(state.phase, Phase::Moving(_))
            || state.outbound.is_empty()
        {
            return;
        }
        let State { outbound, .. } = &mut *state;
        consume(outbound, room, take);
        if let Some(waker) = state.reader.as_mut().and_then(|reader| reader.write.take()) {
            waker.wake();
        }
    }

    /// A source host asks to begin a migration, which the target will know by `cookie`. `false` where one is
    /// under way already.
    pub fn begin(&self, id: ConnectionId, cookie: &[u8]) -> bool {
        let mut state = self.lock();
        let can = state.role(id) == Role::Active && matches!(state.phase, Phase::Steady);
        if can {
            state.phase = Phase::Moving(Migration {
                cookie: cookie.to_vec(),
                peer: None,
            });
        }
        can
    }

    /// A connection said the cookie of this session's migration. `false` when that is no longer under way.
    /// An earlier peer is given up for it.
    pub fn peer(&self, id: ConnectionId, cookie: &[u8]) -> bool {
        let mut state = self.lock();
        let Phase::Moving(migration) = &mut state.phase else {
            return false;
        };
        if migration.cookie != cookie {
            return false;
        }
        let source_gone = migration.peer.as_ref().and_then(|peer| peer.source_gone);
        migration.peer = Some(Peer {
            id,
            ahead: Vec::new(),
            source_gone,
        });
        self.changed.notify_waiters();
        true
    }

    /// The target says that the machine runs there. Gives the cookie that has no more use.
    pub fn complete(&self, id: ConnectionId) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.role(id) != Role::Peer {
            return None;
        }
        let Phase::Moving(Migration { cookie, peer }) =
            std::mem::replace(&mut state.phase, Phase::Steady)
        else {
            return None;
        };
        let Peer {
            ahead, source_gone, ..
        } = peer?;
        let source = std::mem::replace(&mut state.active, id);
        state.phase = Phase::Draining {
            source,
            ahead,
            target_gone: false,
        };
        if source_gone.is_some() {
            self.drained(state);
        }
        self.changed.notify_waiters();
        Some(cookie)
    }

    /// The source says that the machine stays. Gives the cookie that has no more use; the target's
    /// connection is given up with what came on it.
    pub fn abort(&self, id: ConnectionId) -> Option<Vec<u8>> {
        let mut state = self.lock();
        if state.role(id) != Role::Active || !matches!(state.phase, Phase::Moving(_)) {
            return None;
        }
        let Phase::Moving(migration) = std::mem::replace(&mut state.phase, Phase::Steady) else {
            return None;
        };
        self.changed.notify_waiters();
        Some(migration.cookie)
    }

    /// Ends the wait for the source `id` of a complete migration.
    pub fn drain_over(&self, id: ConnectionId) {
        let mut state = self.lock();
        if state.role(id) == Role::Drained {
            self.drained(&mut state);
        }
    }

    fn drained(&self, state: &mut State) {
        if let Phase::Draining {
            ahead, target_gone, ..
        } = std::mem::replace(&mut state.phase, Phase::Steady)
        {
            self.receive(state, &ahead);
            if target_gone {
                state.end();
            }
        }
        self.changed.notify_waiters();
    }

    /// The connection `id` is gone. Gives the cookie that has no more use.
    pub fn lost(&self, id: ConnectionId) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let state = &mut *state;
        let mut cookie = None;
        match (state.role(id), &mut state.phase) {
            (Role::Gone, _) => {}
            (Role::Drained, _) => self.drained(state),
            (Role::Active, Phase::Draining { target_gone, .. }) => *target_gone = true,
            (
                Role::Active,
                Phase::Moving(Migration {
                    peer: Some(peer), ..
                }),
            ) if peer.source_gone.is_none() => {
                peer.source_gone = Some(Instant::now());
            }
            (Role::Peer, Phase::Moving(migration)) => {
                let gone = migration
                    .peer
                    .take()
                    .is_some_and(|peer| peer.source_gone.is_some());
                if gone {
                    cookie = Some(std::mem::take(&mut migration.cookie));
                    state.end();
                }
            }
            (_, phase) => {
                if let Phase::Moving(migration) = phase {
                    cookie = Some(std::mem::take(&mut migration.cookie));
                }
                state.end();
            }
        }
        self.changed.notify_waiters();
        self.answered.notify_waiters();
        cookie
    }

    /// Another connection has taken the machine's name, or the concentrator lets it go: everything of this
    /// session is over. Gives the cookie that has no more use.
    pub fn end(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let cookie = match &mut state.phase {
            Phase::Moving(migration) => Some(std::mem::take(&mut migration.cookie)),
            _ => None,
        };
        state.end();
        self.changed.notify_waiters();
        self.answered.notify_waiters();
        cookie
    }

    /// Whether no connection is left.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Whether a migration is under way.
    pub fn moving(&self) -> bool {
        matches!(self.lock().phase, Phase::Moving(_))
    }

    /// Someone on this side knows the machine.
    pub fn claim(&self) {
        self.lock().claimed = true;
        self.changed.notify_waiters();
    }

    /// Whether the session is over and has nothing that somebody could come to read.
    pub fn spent(&self) -> bool {
        let state = self.lock();
        state.ended && (state.reader.is_some() || state.inbound.is_empty())
    }

    /// The machine answered on the connection `id`.
    pub fn heard(&self, id: ConnectionId) {
        let mut state = self.lock();
        if state.role(id) == Role::Active {
            state.answers += 1;
            self.answered.notify_waiters();
        }
    }

    /// Asks the machine something that it has to answer, to learn whether its connection is one that only
    /// this end still believes in. Where its bytes stand in the way of an answer, it is believed.
    pub async fn is_alive(&self, limit: Duration) -> bool {
        let before = {
            let mut state = self.lock();
            state.questions += 1;
            state.ask = true;
            state.answers
        };
        let _asked = Asked(self);
        self.changed.notify_waiters();
        let answer = async {
            loop {
                let mut answered = std::pin::pin!(self.answered.notified());
                answered.as_mut().enable();
                {
                    let state = self.lock();
                    if state.ended || state.answers != before {
                        return !state.ended;
                    }
                }
                answered.await;
            }
        };
        match tokio::time::timeout(limit, answer).await {
            Ok(alive) => alive,
            Err(_) => self.lock().inbound.len() >= INBOUND + INBOUND_QUESTION,
        }
    }

    /// Makes the caller this port's reader, in place of an earlier one; `None` where there is nothing to
    /// read any more. The number is for the other calls of a reader.
    pub fn attach(&self) -> Option<u64> {
        let mut state = self.lock();
        if state.ended && (state.inbound.is_empty() || state.reader.is_some()) {
            return None;
        }
        state.claimed = true;
        state.readers += 1;
        state.wake_all();
        let number = state.readers;
        state.reader = Some(Reader {
            number,
            read: None,
            write: None,
        });
        self.changed.notify_waiters();
        Some(number)
    }

    /// The reader `number` leaves.
    pub fn detach(&self, number: u64) {
        let mut state = self.lock();
        if state
            .reader
            .as_ref()
            .is_some_and(|reader| reader.number == number)
        {
            state.reader = None;
        }
    }

    /// Hands up to `room` bytes to the reader `number`; nothing is handed over at the stream's end.
    pub fn poll_read(
        &self,
        number: u64,
        cx: &Context<'_>,
        room: usize,
        take: impl FnMut(&[u8]),
    ) -> Poll<()> {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(reader) = state
            .reader
            .as_mut()
            .filter(|reader| reader.number == number)
        else {
            return Poll::Ready(());
        };
        if state.inbound.is_empty() {
            if state.ended || room == 0 {
                return Poll::Ready(());
            }
            reader.read = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let was_full = state.inbound.len() >= INBOUND;
        consume(&mut state.inbound, room, take);
        if was_full && state.inbound.len() < INBOUND {
            self.changed.notify_waiters();
        }
        Poll::Ready(())
    }

    /// Takes bytes for the guest from the reader `number`, as many as there is room for; `None` where the
    /// stream is at its end.
    pub fn poll_write(&self, number: u64, cx: &Context<'_>, data: &[u8]) -> Poll<Option<usize>> {
        let mut state = self.lock();
        let state = &mut *state;
        let reader = state
            .reader
            .as_mut()
            .filter(|reader| reader.number == number);
        let (Some(reader), false) = (reader, state.ended) else {
            return Poll::Ready(None);
        };
        let length = data
            .len()
            .min(OUTBOUND.saturating_sub(state.outbound.len()));
        if length == 0 && !data.is_empty() {
            reader.write = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.outbound.extend(&data[..length]);
        self.changed.notify_waiters();
        Poll::Ready(Some(length))
    }
}

/// One who asked and waits.
struct Asked<'a>(&'a Session);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.lock().questions -= 1;
    }
}

impl State {
    fn role(&self, id: ConnectionId) -> Role {
        match &self.phase {
            _ if self.ended => Role::Gone,
            Phase::Draining {
                target_gone: true, ..
            } if self.active == id => Role::Gone,
            _ if self.active == id => Role::Active,
            Phase::Moving(Migration {
                peer: Some(peer), ..
            }) if peer.id == id => Role::Peer,
            Phase::Draining { source, .. } if *source == id => Role::Drained,
            _ => Role::Gone,
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.phase = Phase::Steady;
        self.wake_all();
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.as_mut().and_then(|reader| reader.read.take()) {
            waker.wake();
        }
    }

    fn wake_all(&mut self) {
        if let Some(reader) = &mut self.reader {
            for waker in [reader.read.take(), reader.write.take()]
                .into_iter()
                .flatten()
            {
                waker.wake();
            }
        }
    }
}

/// Takes up to `room` bytes off the front of `queue`.
fn consume(queue: &mut VecDeque<u8>, room: usize, mut take: impl FnMut(&[u8])) {
    let length = room.min(queue.len());
    let (front, back) = queue.as_slices();
    let first = &front[..length.min(front.len())];
    take(first);
    if length > first.len() {
        take(&back[..length - first.len()]);
    }
    queue.drain(..length);
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
