//! A simulated guest: the real wire's guest end over an in-memory carrier,
//! in a task that stands for the machine.

use std::sync::Arc;

use tether_wire::{CarrierKind, ChannelKey, GuestSession, Time};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::tether::{Hardware, Tether, Turn};
use crate::machine::{StopCause, random_bytes};

/// Bytes in flight each way, as in a socket's buffer.
pub const CARRIER_BUFFER: usize = 64 * 1024;

/// What is done to a running guest.
#[derive(Debug)]
pub enum Control {
    /// A controller connected.
    Connect(DuplexStream),
    /// Stop the virtual CPUs.
    Suspend(oneshot::Sender<()>),
    /// Let them run.
    Resume(oneshot::Sender<()>),
    /// The power button.
    PowerButton,
    /// Something goes wrong.
    Fault(Fault),
}

/// Something that goes wrong inside a machine or on its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks; the guest can be connected to again.
    DropConnection,
    /// The guest neither reads nor writes any more.
    Silence,
    /// It does again.
    Speak,
    /// On a serial line, about one byte in so many is flipped, lost or added,
    /// both ways, in an order `seed` decides. On a stream it breaks the
    /// connection's promise, which the session has to notice.
    Noise {
        /// The start of the sequence.
        seed: u64,
        /// One byte in so many; zero ends it.
        one_in: u32,
    },
    /// The guest's kernel panics.
    Panic,
    /// The guest resets.
    Reset,
    /// The guest's kernel kills the main process for memory.
    OutOfMemory,
}

/// Deterministic damage to a line.
#[derive(Debug)]
struct Noise {
    state: u64,
    one_in: u32,
}

impl Noise {
    /// xorshift64 (Marsaglia, 2003).
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        if self.one_in == 0 {
            return;
        }
        let clean = std::mem::take(bytes);
        for byte in clean {
            let dice = self.next();
            if !dice.is_multiple_of(u64::from(self.one_in)) {
                bytes.push(byte);
                continue;
            }
            // The low byte of the dice's upper half.
            let noise = (dice >> 32) as u8;
            match (dice >> 40) % 3 {
                0 => bytes.push(byte ^ noise.max(1)),
                1 => {}
                _ => bytes.extend([byte, noise]),
            }
        }
    }
}

struct Guest {
    session: GuestSession,
    tether: Tether,
    kind: CarrierKind,
    booted: Instant,
    io: Option<(ReadHalf<DuplexStream>, WriteHalf<DuplexStream>)>,
    out: Vec<u8>,
    silent: bool,
    suspended: bool,
    noise: Noise,
}

/// Runs a guest to its end. Aborted, it stands for a machine whose power is
/// cut.
pub async fn run(
    kind: CarrierKind,
    key: [u8; 32],
    hardware: Arc<Hardware>,
    mut control: mpsc::UnboundedReceiver<Control>,
) -> StopCause {
    let mut guest = Guest {
        session: GuestSession::new(kind, ChannelKey(key), random_bytes().unwrap_or_default()),
        tether: Tether::new(hardware),
        kind,
        booted: Instant::now(),
        io: None,
        out: Vec::new(),
        silent: false,
        suspended: false,
        noise: Noise {
            state: 1,
            one_in: 0,
        },
    };
    if kind == CarrierKind::Serial {
        // A line is opened once and says nothing of who is at its other end.
        guest.session.connected();
    }
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        let mut wake = None;
        let mut again = false;
        if !guest.suspended {
            match guest.turn() {
                Turn::On(at) => wake = at,
                Turn::Again => again = true,
                Turn::PowerOff => return StopCause::GuestShutdown,
                Turn::Reset => return StopCause::GuestReset,
            }
        }
        let speaks = !guest.suspended && !guest.silent;
        let (reads, writes) = match &mut guest.io {
            Some((read, write)) => (Some(read), Some(write)),
            None => (None, None),
        };
        tokio::select! {
            command = control.recv() => match command {
                Some(command) => if let Some(cause) = guest.command(command) {
                    return cause;
                },
                None => return StopCause::PoweredOff,
            },
            read = async { match reads { Some(read) => read.read(&mut buffer).await, None => std::future::pending().await } },
                if speaks => match read {
                    Ok(0) | Err(_) => guest.hang_up(),
                    Ok(n) => guest.receive(&buffer[..n]),
                },
            written = async { match writes { Some(write) => write.write(&guest.out).await, None => std::future::pending().await } },
                if speaks && !guest.out.is_empty() => match written {
                    Ok(n) => { guest.out.drain(..n); }
                    Err(_) => guest.hang_up(),
                },
            () = async { match wake { Some(wake) => tokio::time::sleep_until(wake).await, None => std::future::pending().await } },
                if !guest.suspended => {}
            // Others of this thread have their turn first.
            () = tokio::task::yield_now(), if again => {}
        }
    }
}

impl Guest {
    fn now(&self) -> Time {
        Time(u64::try_from(self.booted.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) -> Turn {
        let turn = self.tether.turn(&mut self.session);
        // The programs look for themselves; what could go on is what they do.
        while self.session.next_ready().is_some() {}
        let (mut wake, again) = match turn {
            Turn::On(wake) => (wake, false),
            Turn::Again => (None, true),
            end @ (Turn::PowerOff | Turn::Reset) => return end,
        };
        if !self.silent && self.out.is_empty() {
            let now = self.now();
            self.session.transmit(now, &mut self.out);
            if !self.out.is_empty() {
                self.noise.damage(&mut self.out);
            }
            if self.io.is_none() {
                // Nobody is at the line's other end.
                self.out.clear();
            }
        }
        if let Some(Time(at)) = self
            .session
            .timeout()
            .filter(|_| !self.silent && self.out.is_empty())
        {
            let at = self.booted + std::time::Duration::from_micros(at);
            wake = Some(wake.map_or(at, |wake| wake.min(at)));
        }
        if again { Turn::Again } else { Turn::On(wake) }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.noise.damage(&mut bytes);
        let now = self.now();
        if self.session.receive(&bytes, now, &mut self.tether).is_err()
            && self.kind == CarrierKind::Stream
        {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        self.io = None;
        self.out.clear();
        if self.kind == CarrierKind::Stream {
            self.session.disconnected();
        }
    }

    fn command(&mut self, command: Control) -> Option<StopCause> {
        match command {
            Control::Connect(io) => {
                self.hang_up();
                self.io = Some(tokio::io::split(io));
                if self.kind == CarrierKind::Stream {
                    self.session.connected();
                }
            }
            Control::Suspend(done) => {
                self.suspended = true;
                let _ = done.send(());
            }
            Control::Resume(done) => {
                self.suspended = false;
                let _ = done.send(());
            }
            Control::PowerButton => self.tether.power_button(),
            Control::Fault(Fault::DropConnection) => self.hang_up(),
            Control::Fault(Fault::Silence) => self.silent = true,
            Control::Fault(Fault::Speak) => self.silent = false,
            Control::Fault(Fault::Noise { seed, one_in }) => {
                self.noise = Noise {
                    state: seed | 1,
                    one_in,
                }
            }
            Control::Fault(Fault::Panic) => return Some(StopCause::GuestPanic),
            Control::Fault(Fault::Reset) => return Some(StopCause::GuestReset),
            Control::Fault(Fault::OutOfMemory) => self.tether.out_of_memory(),
        }
        None
    }
}
