//! The channel's descriptor: finding it, knowing when the host is there, and moving bytes without
//! ever waiting.
//!
//! | carrier | the host comes | the host goes |
//! |---|---|---|
//! | vsock | a connection is accepted; it replaces the one before | end of file, reset |
//! | virtio-serial | the port is no longer hung up, or has bytes before it says so | the port is hung up, or reads nothing |
//! | serial line | nobody says | nobody says |

use crate::boot::ChannelAddress;
use crate::container::Container;
use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::prelude::*;
use crate::{files, sys, warning};
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::io::{read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, listen, socket_with};
use rustix::termios::{
    ControlModes, InputModes, OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr,
};
use tether_wire::{CarrierKind, GuestSession, Time};

const PORTS: &str = "/sys/class/virtio-ports";
/// Bytes read at once.
const READ: usize = 32 * 1024;
/// Reads, and batches written, before the rest of the machine has its turn.
const TURNS: usize = 16;

enum Carrier {
    Vsock { listener: OwnedFd },
    Virtio,
    Serial,
}

/// The open channel.
pub struct Channel {
    carrier: Carrier,
    line: Option<OwnedFd>,
    connected: bool,
    /// The line has said so itself. A virtio port's bytes can come before its word that it is open.
    announced: bool,
    readable: bool,
    writable: bool,
    input: Vec<u8>,
    /// Bytes of it that were read and not handed on.
    held: usize,
    output: Vec<u8>,
    written: usize,
}

impl Channel {
    /// Opens what `address` names; `None` when it is a virtio port that has not appeared.
    ///
    /// # Errors
    /// What the carrier's system calls say.
    pub fn open(address: &ChannelAddress, poller: &Poller) -> Result<Option<Self>> {
        let (carrier, line) = match address {
            ChannelAddress::Vsock(port) => {
                let listener = listen_on(*port)?;
                poller.watch(&listener, EventFlags::IN, Token::Listener)?;
                (Carrier::Vsock { listener }, None)
            }
            ChannelAddress::Virtio(name) => {
                let Some(device) = port_named(name) else {
                    return Ok(None);
                };
                (Carrier::Virtio, Some(open_device(&device)?))
            }
            ChannelAddress::Serial(name) => {
                let line = open_device(&format!("/dev/{name}"))?;
                make_raw(&line).context(|| format!("setting up /dev/{name}"))?;
                // The UART's own 16 bytes: fewer interrupts while they fill; what overruns is
                // retransmitted.
                let _ = files::tell(format!("/sys/class/tty/{name}/rx_trig_bytes"), "14");
                (Carrier::Serial, Some(line))
            }
        };
        let connected = matches!(carrier, Carrier::Serial);
        if let Some(line) = &line {
            watch(poller, line)?;
        }
        Ok(Some(Self {
            carrier,
            line,
            connected,
            announced: connected,
            readable: false,
            writable: false,
            input: vec![0; READ],
            held: 0,
            output: Vec::new(),
            written: 0,
        }))
    }

    /// What the session has to know of it.
    pub fn kind(&self) -> CarrierKind {
        match self.carrier {
            Carrier::Vsock { .. } | Carrier::Virtio => CarrierKind::Stream,
            Carrier::Serial => CarrierKind::Serial,
        }
    }

    /// Tells the session of a line that is there from the start.
    pub fn begin(&self, session: &mut GuestSession) {
        if self.connected {
            session.connected();
        }
    }

    /// Takes the newest connection. An older one is of a host side that has been restarted.
    pub fn accept(&mut self, poller: &Poller, session: &mut GuestSession) {
        let Carrier::Vsock { listener } = &self.carrier else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut newest = None;
        while let Ok(connection) = accept_with(listener, flags) {
            // Only the host: a process of the container can reach the port too.
            if sys::is_from_host(connection.as_fd()) {
                newest = Some(connection);
            }
        }
        let Some(connection) = newest else { return };
        self.drop_connection(session);
        match watch(poller, &connection) {
            Ok(()) => {
                self.line = Some(connection);
                self.connected = true;
                session.connected();
            }
            Err(error) => warning!("{}", error.message),
        }
    }

    /// Something happened to the line.
    pub fn ready(&mut self, flags: EventFlags, session: &mut GuestSession) {
        self.readable |= flags.contains(EventFlags::IN);
        self.writable |= flags.contains(EventFlags::OUT);
        let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        match self.carrier {
            // The end is read in its turn, after what came before it.
            Carrier::Vsock { .. } => self.readable |= hung_up,
            // What can be read is the next host's, if there was none: its coming is still to be said.
            Carrier::Virtio if hung_up => {
                if self.announced {
                    self.drop_connection(session);
                    self.discard();
                } else if !self.readable {
                    self.drop_connection(session);
                }
            }
            Carrier::Virtio => {
                self.host_came(session);
                self.announced = true;
            }
            Carrier::Serial => {}
        }
    }

    /// The port is open at the host's end. Said by an event, or by bytes that are read before it: the
    /// session hears of it once, and before them, or it would forget a greeting it has answered.
    fn host_came(&mut self, session: &mut GuestSession) {
        if !self.connected {
            self.connected = true;
            session.connected();
        }
    }

    /// Whoever was at the other end is the host of another machine. The session knows.
    pub fn forget_host(&mut self) {
        self.connected = matches!(self.carrier, Carrier::Serial);
        self.announced = self.connected;
        self.output.clear();
        self.written = 0;
    }

    fn drop_connection(&mut self, session: &mut GuestSession) {
        if self.connected {
            self.connected = false;
            session.disconnected();
        }
        self.announced = false;
        self.output.clear();
        self.written = 0;
        self.held = 0;
        if matches!(self.carrier, Carrier::Vsock { .. }) {
            self.line = None;
            self.readable = false;
            self.writable = false;
        }
    }

    /// Throws away what a host said and nobody read while it was there.
    fn discard(&mut self) {
        let Some(line) = &self.line else { return };
        while matches!(read(line, &mut self.input[..]), Ok(1..) | Err(Errno::INTR)) {}
        self.readable = false;
    }

    /// Reads and hands on what came. Whether there may be more.
    pub fn pump_in(&mut self, session: &mut GuestSession, machine: &mut Container) -> bool {
        for _ in 0..TURNS {
            if !self.readable {
                return false;
            }
            let Some(line) = &self.line else { return false };
            let held = core::mem::take(&mut self.held);
            let result = match held {
                0 => read(line, &mut self.input[..]),
                held => Ok(held),
            };
            match result {
                // The machine may have been forked since it was last looked at: then this is for the child,
                // which has another key.
                Ok(length) if held == 0 && length > 0 && machine.may_be_a_child() => {
                    self.held = length;
                    return true;
                }
                Ok(0) => {
                    self.readable = false;
                    let ends = match self.carrier {
                        Carrier::Vsock { .. } => true,
                        Carrier::Virtio => self.announced,
                        Carrier::Serial => false,
                    };
                    if ends {
                        self.drop_connection(session);
                    }
                }
                Ok(length) => {
                    self.host_came(session);
                    let now = Time(crate::clock::now());
                    if let Err(violation) = session.receive(&self.input[..length], now, machine) {
                        warning!("the host broke the protocol: {violation}");
                        if matches!(self.carrier, Carrier::Vsock { .. }) {
                            self.drop_connection(session);
                        }
                    }
                }
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.readable = false;
                    if !matches!(self.carrier, Carrier::Serial) {
                        self.drop_connection(session);
                    }
                }
            }
        }
        self.readable
    }

    /// Writes what the session has, as far as the line takes it. Whether there may be more.
    pub fn pump_out(&mut self, session: &mut GuestSession) -> bool {
        for _ in 0..TURNS {
            let Some(line) = &self.line else { return false };
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                session.transmit(Time(crate::clock::now()), &mut self.output);
                if self.output.is_empty() {
                    return false;
                }
            }
            if !self.connected || !self.writable {
                return false;
            }
            match write(line, &self.output[self.written..]) {
                Ok(length) => self.written += length,
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                // Reading says so too, and ends the connection.
                Err(_) => {
                    self.writable = false;
                    self.readable = true;
                    return true;
                }
            }
        }
        self.writable
    }

    /// Everything the session gave has gone out.
    pub fn is_drained(&self) -> bool {
        self.written == self.output.len()
    }
}

fn watch(poller: &Poller, line: &OwnedFd) -> Result<()> {
    let both = EventFlags::IN | EventFlags::OUT;
    poller.watch(line, both, Token::Channel)
}

fn listen_on(port: u32) -> Result<OwnedFd> {
    let what = || format!("listening on vsock port {port}");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener =
        socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None).context(what)?;
    sys::bind_vsock(listener.as_fd(), port).context(what)?;
    listen(&listener, 8).context(what)?;
    Ok(listener)
}

fn open_device(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).context(|| format!("opening {path}"))
}

/// The device file of the virtio-serial port with this name. The name's file in /sys appears after
/// the port itself, with an uevent of its own (drivers/char/virtio_console.c).
fn port_named(wanted: &str) -> Option<String> {
    let ports = files::names(PORTS).ok()?;
    let port = ports
        .iter()
        .find(|port| files::text(format!("{PORTS}/{port}/name")).trim_end() == wanted)?;
    Some(format!("/dev/{port}"))
}

/// Every byte as it is, as fast as the line goes, without flow control: the wire has its own, and
/// retransmits what is lost.
fn make_raw(line: &OwnedFd) -> rustix::io::Result<()> {
    let mut settings = tcgetattr(line)?;
    settings.make_raw();
    settings.input_modes -= InputModes::IXOFF | InputModes::IXANY;
    settings.control_modes -= ControlModes::CRTSCTS | ControlModes::HUPCL | ControlModes::CSTOPB;
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    settings.set_speed(115_200)?;
    tcsetattr(line, OptionalActions::Now, &settings)?;
    tcflush(line, QueueSelector::IFlush)
}
