//! Which machines' ports are connected, who waits for one, and which migrations are under way.
//!
//! One lock, never held across a wait. A session's lock may be taken under it, not the other way round.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::error;

use super::session::{ConnectionId, Session};
use super::stream::PortStream;
use super::{Limits, Service};

/// Bytes of a migration's secret, as many as other concentrators send. It comes with the sequence, which
/// the host chose and nobody else sees.
const SECRET: usize = 4;

/// One serial port of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The machine.
    pub uuid: [u8; 16],
    /// The place of the service in the list of those that are served.
    pub service: usize,
}

impl Key {
    /// The machine's UUID, to be printed.
    pub fn shown(self) -> Shown {
        Shown(self.uuid)
    }
}

/// Prints a UUID in the form the vSphere API has it.
#[derive(Debug, Clone, Copy)]
pub struct Shown([u8; 16]);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(at, 4 | 6 | 8 | 10) {
                "-"
            } else {
                ""
            };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Port {
    session: Option<Arc<Session>>,
    arrived: Arc<Notify>,
    waiting: usize,
}

#[derive(Debug, Default)]
struct State {
    ports: HashMap<Key, Port>,
    migrations: HashMap<Vec<u8>, (Key, Arc<Session>)>,
    admitted: HashSet<[u8; 16]>,
    /// Connections that have not said yet whose they are, or that nobody asked for.
    pending: usize,
    pending_of: HashMap<IpAddr, usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    services: Vec<Service>,
    limits: Limits,
    connections: AtomicU64,
}

/// What became of a connection that said which machine's it is.
#[derive(Debug)]
pub enum Claim {
    /// It is.
    Yours(Seat),
    /// The machine is being migrated: a cookie has to come.
    Moving,
    /// Another connection of the machine is alive.
    Taken,
}

impl Registry {
    /// An empty one.
    pub fn new(services: Vec<Service>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            services,
            limits,
            connections: AtomicU64::new(1),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limits that hold here.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A name for a new connection.
    pub fn next_connection(&self) -> ConnectionId {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// The place of the service of this name.
    pub fn service(&self, name: &str) -> Option<usize> {
        self.services
            .iter()
            .position(|service| service.name == name)
    }

    /// A place among the connections that are not known yet; `None` where there are too many, in all or
    /// from one address.
    pub fn pend(self: &Arc<Self>, address: IpAddr) -> Option<Pending> {
        let mut state = self.lock();
        let state = &mut *state;
        let own = state.pending_of.entry(address).or_default();
        let room = *own < self.limits.pending_of_address && state.pending < self.limits.pending;
        if room {
            *own += 1;
            state.pending += 1;
        } else if *own == 0 {
            state.pending_of.remove(&address);
        }
        room.then(|| Pending {
            registry: self.clone(),
            address,
        })
    }

    /// The machine is known here: its ports may stay connected without a reader.
    pub fn admit(&self, uuid: [u8; 16]) {
        let mut state = self.lock();
        state.admitted.insert(uuid);
        for (_, port) in state.ports.iter().filter(|(key, _)| key.uuid == uuid) {
            if let Some(session) = &port.session {
                session.claim();
            }
        }
    }

    /// The machine is no longer known here: its connections are closed.
    pub fn forget(&self, uuid: [u8; 16]) {
        let mut state = self.lock();
        state.admitted.remove(&uuid);
        let keys: Vec<_> = state
            .ports
            .keys()
            .filter(|key| key.uuid == uuid)
            .copied()
            .collect();
        for key in keys {
            if let Some(session) = state
                .ports
                .get_mut(&key)
                .and_then(|port| port.session.take())
            {
                state.end(&session);
            }
            state.tidy(key);
        }
    }

    /// A place for the connection `id` as the machine's. One that is there already has to be dead, which it
    /// is asked; while that one migrates the answer is to wait, unless `at_last`.
    pub async fn claim(self: &Arc<Self>, key: Key, id: ConnectionId, at_last: bool) -> Claim {
        let mut dead: Option<Arc<Session>> = None;
        loop {
            let old = {
                let mut state = self.lock();
                let old = state.ports.get(&key).and_then(|port| port.session.clone());
                let free = old.as_ref().is_none_or(|old| {
                    old.ended() || dead.as_ref().is_some_and(|dead| Arc::ptr_eq(dead, old))
                });
                if free {
                    return Claim::Yours(self.install(&mut state, key, id, old));
                }
                old
            };
            let Some(old) = old else { continue };
            if old.moving() && !at_last {
                return Claim::Moving;
            }
            if old.is_alive(self.limits.probe).await {
                return Claim::Taken;
            }
            dead = Some(old);
        }
    }

    fn install(
        self: &Arc<Self>,
        state: &mut State,
        key: Key,
        id: ConnectionId,
        old: Option<Arc<Session>>,
    ) -> Seat {
        if let Some(old) = old {
            state.end(&old);
        }
        let admitted = state.admitted.contains(&key.uuid);
        let port = state.ports.entry(key).or_default();
        let when_full = self.services[key.service].when_full;
        let session = Arc::new(Session::new(id, when_full, admitted || port.waiting > 0));
        port.session = Some(session.clone());
        port.arrived.notify_waiters();
        let registry = self.clone();
        Seat {
            registry,
            key,
            id,
            session,
        }
    }

    /// A place for the connection `id` as the target of the migration of this cookie.
    pub fn take_peer_seat(self: &Arc<Self>, cookie: &[u8], id: ConnectionId) -> Option<Seat> {
        let state = self.lock();
        let (key, session) = state.migrations.get(cookie)?;
        session.peer(id, cookie).then(|| Seat {
            registry: self.clone(),
            key: *key,
            id,
            session: session.clone(),
        })
    }

    /// Lets a migration begin and makes its cookie; `None` where it may not.
    pub fn begin_migration(&self, seat: &Seat, sequence: &[u8]) -> Option<Vec<u8>> {
        let secret = match secret() {
            Ok(secret) => secret,
            Err(error) => {
                error!(%error, "no random bytes for a migration's secret: it is put off");
                return None;
            }
        };
        let cookie = [sequence, &secret].concat();
        let mut state = self.lock();
        if state.migrations.contains_key(&cookie) || !seat.session.begin(seat.id, &cookie) {
            return None;
        }
        let value = (seat.key, seat.session.clone());
        state.migrations.insert(cookie.clone(), value);
        Some(cookie)
    }

    /// A migration's cookie has no more use.
    pub fn forget_migration(&self, cookie: Option<Vec<u8>>) {
        if let Some(cookie) = cookie {
            self.lock().migrations.remove(&cookie);
        }
    }

    /// Waits for the machine's port to be connected and becomes its reader.
    pub async fn connect(&self, key: Key) -> PortStream {
        let waiting = Waiting::new(self, key);
        loop {
            let mut arrived = pin_notified(&waiting.arrived);
            arrived.as_mut().enable();
            let session = self
                .lock()
                .ports
                .get(&key)
                .and_then(|port| port.session.clone());
            if let Some(stream) = session.as_ref().and_then(PortStream::attach) {
                return stream;
            }
            arrived.await;
        }
    }

    /// Ends everything.
    pub fn close(&self) {
        let mut state = self.lock();
        let ports = std::mem::take(&mut state.ports);
        for session in ports.into_values().filter_map(|port| port.session) {
            state.end(&session);
        }
    }

    /// How many connections are not known yet, ports are kept, and migrations are under way.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.pending, state.ports.len(), state.migrations.len())
    }
}

fn pin_notified(notify: &Notify) -> std::pin::Pin<Box<tokio::sync::futures::Notified<'_>>> {
    Box::pin(notify.notified())
}

impl State {
    fn end(&mut self, session: &Session) {
        if let Some(cookie) = session.end() {
            self.migrations.remove(&cookie);
        }
    }

    /// Drops a port that nobody waits for and that has nothing to read.
    fn tidy(&mut self, key: Key) {
        if let Some(port) = self.ports.get_mut(&key) {
            let kept = self.admitted.contains(&key.uuid);
            let over = |session: &Arc<Session>| session.spent() || (session.ended() && !kept);
            if port.session.as_ref().is_some_and(over) {
                port.session = None;
            }
            if port.session.is_none() && port.waiting == 0 {
                self.ports.remove(&key);
            }
        }
    }
}

/// Random bytes, none of them the one that telnet doubles: a host that did not would still say them right.
fn secret() -> rustix::io::Result<[u8; SECRET]> {
    let mut secret = [0xff; SECRET];
    while secret.contains(&0xff) {
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(secret)
}

/// A connection's place in a session, given up when this is dropped.
#[derive(Debug)]
pub struct Seat {
    registry: Arc<Registry>,
    key: Key,
    id: ConnectionId,
    session: Arc<Session>,
}

impl Seat {
    /// The connection's name.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The port it belongs to.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The machine's UUID, to be printed.
    pub fn shown(&self) -> Shown {
        self.key.shown()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let cookie = self.session.lost(self.id);
        let mut state = self.registry.lock();
        if let Some(cookie) = cookie {
            state.migrations.remove(&cookie);
        }
        state.tidy(self.key);
    }
}

/// A connection's place among those that are not known yet, given up when this is dropped.
#[derive(Debug)]
pub struct Pending {
    registry: Arc<Registry>,
    address: IpAddr,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        state.pending -= 1;
        if let Some(own) = state.pending_of.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                state.pending_of.remove(&self.address);
            }
        }
    }
}

/// One who waits for a port.
struct Waiting<'a> {
    registry: &'a Registry,
    key: Key,
    arrived: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn new(registry: &'a Registry, key: Key) -> Self {
        let mut state = registry.lock();
        let port = state.ports.entry(key).or_default();
        port.waiting += 1;
        let arrived = port.arrived.clone();
        Self {
            registry,
            key,
            arrived,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if let Some(port) = state.ports.get_mut(&self.key) {
            port.waiting -= 1;
        }
        state.tidy(self.key);
    }
}
