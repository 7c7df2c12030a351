//! The one loop: descriptors and deadlines in, calls of the container, the session and the channel
//! out. Nothing in it waits but [`Poller::wait`](crate::poller::Poller::wait).

use crate::boot::{self, ChannelAddress, Configuration};
use crate::channel::Channel;
use crate::clock;
use crate::console;
use crate::container::Container;
use crate::failure::{Context, Result};
use crate::fork::Expectant;
use crate::guestinfo::{self, Tools};
use crate::poller::{Event, Poller, Token};
use crate::prelude::*;
use crate::reaper::Reaper;
use crate::shutdown;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tether_wire::message::{Error, ErrorKind};
use tether_wire::{ChannelKey, GuestSession};

/// How long a virtio-serial port may take to appear, in microseconds.
const CHANNEL_DEADLINE: u64 = 30_000_000;

/// Tether, running.
pub struct Tether {
    container: Container,
    session: GuestSession,
    channel: Channel,
    reaper: Reaper,
    uevents: OwnedFd,
    /// On a VMware platform.
    tools: Option<Tools>,
    /// Of a template: the next host to come comes to a fork of this machine.
    expectant: Option<Expectant>,
}

impl Tether {
    /// Opens everything the loop waits for, the channel last.
    ///
    /// # Errors
    /// What cannot be opened; a channel that does not appear.
    pub fn new(configuration: &Configuration) -> Result<Self> {
        let poller = Poller::new()?;
        let reaper = Reaper::new(&poller)?;
        let uevents = listen_for_uevents(&poller)?;
        let mut container = Container::new(poller)?;
        let channel = find_channel(&configuration.channel, &mut container.poller, &uevents)?;
        let key = ChannelKey(configuration.key);
        let mut session = GuestSession::new(channel.kind(), key, boot::boot_id());
        channel.begin(&mut session);
        Ok(Self {
            container,
            session,
            channel,
            reaper,
            uevents,
            tools: guestinfo::door().map(|_| Tools::default()),
            expectant: None,
        })
    }

    /// Makes it a template, which never speaks to a host.
    ///
    /// # Errors
    /// As [`Expectant::prepare`].
    pub fn expect_fork(&mut self) -> Result<()> {
        let expectant = Expectant::prepare()?;
        // So that its forks' have pages already.
        expectant.write_names(&[0; 16], &[0; 16])?;
        self.expectant = Some(expectant);
        Ok(())
    }

    /// Runs until the machine ends.
    pub fn run(mut self) -> ! {
        let mut events = Vec::new();
        let mut is_quiet = self.expectant.is_none();
        loop {
            let more = self.settle();
            let timeout = if more || !is_quiet {
                Some(0)
            } else {
                self.timeout()
            };
            self.container.poller.wait(timeout, &mut events);
            // A template may be frozen from its word on. An event of its own that was still on its way
            // then, such as a port's first, would be a fork's, and its host's bytes be taken for the template's.
            if !is_quiet && !more && events.is_empty() {
                is_quiet = true;
                console!("{}", boot::TEMPLATE_READY);
            }
            self.look_for_child();
            for event in &events {
                self.dispatch(*event);
            }
            let now = clock::now();
            if self.container.deadline().is_some_and(|due| due <= now) {
                self.container.expire(now);
            }
            self.look_at_hypervisor(now);
        }
    }

    /// Shows a VMware host that the machine lives, and does what it asks.
    fn look_at_hypervisor(&mut self, now: u64) {
        let Some(tools) = self.tools.as_mut().filter(|tools| tools.deadline() <= now) else {
            return;
        };
        // Without its backdoor it is not looked for again.
        let Some(mut door) = guestinfo::door() else {
            self.tools = None;
            return;
        };
        let action = tools.look(&mut door, now, || self.container.facts());
        // What follows may make processes, which must not have the privilege.
        drop(door);
        if let Some(action) = action {
            self.container.shut_down_for_hypervisor(action);
        }
    }

    /// Milliseconds until something is due, rounded up.
    fn timeout(&self) -> Option<u64> {
        let session = self.session.timeout().map(|time| time.0);
        let tools = self.tools.as_ref().map(Tools::deadline);
        let due = [session, self.container.deadline(), tools]
            .into_iter()
            .flatten()
            .min()?;
        Some(due.saturating_sub(clock::now()).div_ceil(1000))
    }

    /// A fork's first sign of life is that its channel moves. Nothing has been read from it yet.
    fn look_for_fork(&mut self) {
        let Some(expectant) = &self.expectant else {
            return;
        };
        match expectant.look() {
            Ok(Some(new)) => {
                let key = ChannelKey(new.key);
                self.session = GuestSession::new(self.channel.kind(), key, new.boot_id);
                self.container.forked(new.start);
                self.expectant = None;
            }
            Ok(None) => {}
            // It cannot be spoken to, for it has no key; and must not be taken for its template.
            Err(error) => shutdown::die(format_args!("cannot become a fork: {}", error.message)),
        }
    }

    /// A machine whose processes stand still may be a child of itself by now. Nothing of its own
    /// host's has been read yet: that comes with an event.
    fn look_for_child(&mut self) {
        let Some(standstill) = &self.container.standstill else {
            return;
        };
        match standstill.look() {
            Ok(Some(new)) => {
                self.session.forked(ChannelKey(new.key), new.boot_id);
                self.channel.forget_host();
                self.container.forked(new.start);
                self.container.born();
            }
            Ok(None) => {}
            Err(error) => shutdown::die(format_args!("cannot become a child: {}", error.message)),
        }
    }

    fn dispatch(&mut self, event: Event) {
        if event.token == Token::Channel {
            self.container.heard = clock::now();
            self.look_for_fork();
            // A template has no host. What can be read by now is for the fork that it may just have
            // become, and comes with an event there.
            if self.expectant.is_some() {
                return;
            }
        }
        let Self {
            container,
            session,
            channel,
            ..
        } = self;
        match event.token {
            Token::Signals => self.reaper.reap(container),
            Token::Uevents => {
                drain(&self.uevents);
                container.advance_tasks();
            }
            Token::Listener => channel.accept(&container.poller, session),
            Token::Channel => channel.ready(event.flags, session),
            Token::OutOfMemory => container.out_of_memory(),
            Token::Frozen => container.advance_standstill(),
            Token::Worker => container.advance_tasks(),
            Token::Dhcp(number) => container.advance_network(Some(number)),
            Token::Launch(process) => container.launched(process),
            Token::Output(..) | Token::Input(_) | Token::Terminal(_) => {
                container.processes.ready(session, event);
            }
        }
    }

    /// Carries between container, session and channel what each has for the others. Whether there
    /// may be more at once.
    fn settle(&mut self) -> bool {
        self.look_for_child();
        let Self {
            container,
            session,
            channel,
            expectant,
            ..
        } = self;
        let mut more = expectant.is_none() && channel.pump_in(session, container);
        if more {
            // What comes next without an event may have come only now.
            container.heard = clock::now();
        }
        while !container.answers.is_empty() {
            for (ticket, result) in core::mem::take(&mut container.answers) {
                session.complete(ticket, result, container);
            }
        }
        for (process, exit) in container.exits.drain(..) {
            session.exited(process, exit);
        }
        for event in container.events.drain(..) {
            session.event(event);
        }
        while let Some(ready) = session.next_ready() {
            container.processes.resume(session, ready);
        }
        more |= channel.pump_out(session);
        while let Some(ready) = session.next_ready() {
            container.processes.resume(session, ready);
            more = true;
        }
        container.end_if_done(session.is_flushed() && channel.is_drained());
        more
    }
}

/// The kernel's own uevents, without udev's (lib/kobject_uevent.c).
fn listen_for_uevents(poller: &Poller) -> Result<OwnedFd> {
    let what = || "listening for uevents";
    let events = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )
    .context(what)?;
    bind(&events, &SocketAddrNetlink::new(0, 1)).context(what)?;
    poller.watch(&events, EventFlags::IN, Token::Uevents)?;
    Ok(events)
}

/// What came does not matter, only that something did: whoever waits looks for itself. An overflow
/// (`ENOBUFS`) is one event as well.
fn drain(events: &OwnedFd) {
    let mut buffer = [0; 4096];
    loop {
        match recv(events, &mut buffer, RecvFlags::empty()) {
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

fn find_channel(
    address: &ChannelAddress,
    poller: &mut Poller,
    uevents: &OwnedFd,
) -> Result<Channel> {
    let deadline = clock::now() + CHANNEL_DEADLINE;
    let mut events = Vec::new();
    loop {
        if let Some(channel) = Channel::open(address, poller)? {
            return Ok(channel);
        }
        let left = deadline.saturating_sub(clock::now());
        if left == 0 {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("the channel {address:?} did not appear"),
            ));
        }
        poller.wait(Some(left.div_ceil(1000)), &mut events);
        drain(uevents);
    }
}
