//! A container that stands still, so that its machine can be forked; and its child's first steps.
//!
//! ```text
//!   running --Freeze--> stopping --frozen--> still --Thaw, or nobody came--> running
//!                                              '-- (in a child) newborn --Rebirth--> running
//! ```
//!
//! The host copies a machine whose processes are frozen. The copy wakes up in the same instant, with
//! another identity in the firmware's hands; as long as the processes stand still, tether compares
//! before it reads a byte of the channel or lets them go on. A newborn never goes on by itself: without
//! a rebirth it would be its parent a second time.
//!
//! | what | from where | when |
//! |---|---|---|
//! | random generator, channel key, boot id | as in a template's fork ([`crate::fork`]) | before the greeting |
//! | connections to other machines | reset (`SOCK_DESTROY`), with every vNIC down | `Rebirth` |
//! | host's seed, clock, names | [`crate::identity`] | `Rebirth` |
//! | MAC, addresses, routes, neighbours | set anew | `Rebirth` |
//! | the processes' word of it | [`FORK_FILE`], then a signal if wished | `Rebirth`, before they go on |

use crate::boot::Identity;
use crate::cgroup::Groups;
use crate::container::Container;
use crate::failure::Result;
use crate::fork::{Expectant, NewMachine};
use crate::poller::Token;
use crate::prelude::*;
use crate::{clock, files, identity, warning};
use rustix::event::epoll::EventFlags;
use tether_wire::guest::{Outcome, Ticket};
use tether_wire::message::{Error, ErrorKind, Rebirth, Reply, SignalTarget};

/// Where a process of the container reads how often it has been forked while it ran: a decimal
/// number and a newline, 0 in a machine that is no child. Written before it goes on in the child.
pub const FORK_FILE: &str = "/dev/vch-fork";

/// Devices of the balloon's driver.
const BALLOONS: &str = "/sys/bus/virtio/drivers/virtio_balloon";

/// How a container stands still.
pub struct Standstill {
    /// What the firmware said when it began.
    identity: Identity,
    /// When it ends by itself, in microseconds.
    until: u64,
    stage: Stage,
}

enum Stage {
    /// Some process may still run.
    Stopping(Ticket),
    /// None does.
    Still,
    /// None does, and this is a child that is to become a machine of its own.
    Newborn,
}

impl Standstill {
    /// Whether this is a child by now; if it is, with a random generator and names of its own.
    ///
    /// # Errors
    /// As [`Expectant::prepare`] and [`Expectant::look`].
    pub fn look(&self) -> Result<Option<NewMachine>> {
        if matches!(self.stage, Stage::Newborn)
            || Identity::read()?.as_ref() == Some(&self.identity)
        {
            return Ok(None);
        }
        Expectant::prepare()?.look()
    }

    /// Whether the firmware says another identity than when it began, and nobody has taken note. An
    /// error is [`Self::look`]'s to report.
    pub fn is_elsewhere(&self) -> bool {
        !matches!(self.stage, Stage::Newborn)
            && Identity::read().is_ok_and(|now| now.as_ref() != Some(&self.identity))
    }

    /// When it ends by itself.
    pub fn deadline(&self) -> Option<u64> {
        (!matches!(self.stage, Stage::Newborn)).then_some(self.until)
    }
}

fn busy(message: &str) -> Outcome {
    Outcome::Done(Err(Error::new(ErrorKind::Busy, message)))
}

impl Container {
    /// The wire's `Freeze`.
    pub fn stand_still(&mut self, ticket: Ticket, hold_ms: u32) -> Outcome {
        if self.standstill.is_some() {
            return busy("the container stands still already");
        }
        if self.shutdown.is_some() {
            return busy("the machine is shutting down");
        }
        if !self.tasks.is_empty() || self.processes.has_transfers() {
            return busy("files are being copied, or something is being mounted: try again later");
        }
        let identity = match Identity::read() {
            Ok(Some(identity)) => identity,
            Ok(None) => {
                return Outcome::Done(Err(Error::new(
                    ErrorKind::Unsupported,
                    "the hypervisor gave this machine no identity by which a child would know itself",
                )));
            }
            Err(error) => return Outcome::Done(Err(error)),
        };
        if let Err(error) = self.freeze_group() {
            return Outcome::Done(Err(error));
        }
        self.standstill = Some(Standstill {
            identity,
            until: clock::now() + u64::from(hold_ms) * 1000,
            stage: Stage::Stopping(ticket),
        });
        self.advance_standstill();
        Outcome::Later
    }

    fn freeze_group(&mut self) -> Result<()> {
        if !self.watches_freezer {
            self.poller
                .watch(self.groups.state(), EventFlags::PRI, Token::Frozen)?;
            self.watches_freezer = true;
        }
        Groups::freeze(true)
    }

    /// The group's state may have changed.
    pub fn advance_standstill(&mut self) {
        if let Some(standstill) = &mut self.standstill
            && let Stage::Stopping(ticket) = standstill.stage
            && self.groups.is_frozen()
        {
            standstill.stage = Stage::Still;
            self.answers.push((ticket, Ok(Reply::Done)));
        }
    }

    /// Nobody thawed it in time. That this is no child was looked at just before.
    pub fn expire_standstill(&mut self, now: u64) {
        let due = self.standstill.as_ref().and_then(Standstill::deadline);
        if due.is_none_or(|due| due > now) {
            return;
        }
        warning!("the container stood still and nobody let it go on in time");
        if let Some(Standstill {
            stage: Stage::Stopping(ticket),
            ..
        }) = self.standstill
        {
            let error = Error::new(ErrorKind::TimedOut, "the processes did not stop in time");
            self.answers.push((ticket, Err(error)));
        }
        let _ = self.go_on();
    }

    /// The wire's `Thaw`.
    pub fn thaw_by_request(&mut self, unix_nanos: u64) -> Result<()> {
        match &self.standstill {
            None => return Ok(()),
            Some(Standstill {
                stage: Stage::Newborn,
                ..
            }) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "a child goes on when it has become another machine",
                ));
            }
            Some(_) => {}
        }
        // Its clock stood still with it.
        let unix_nanos = clock::since_heard(unix_nanos, self.heard);
        if unix_nanos > clock::unix_nanos() {
            clock::set(unix_nanos)?;
        }
        self.go_on()
    }

    fn go_on(&mut self) -> Result<()> {
        self.standstill = None;
        Groups::freeze(false)
    }

    /// This machine is a child of the one that stood still.
    pub fn born(&mut self) {
        if let Some(standstill) = &mut self.standstill {
            standstill.stage = Stage::Newborn;
        }
        // Its parent's copies have no host here.
        self.processes.kill_transfers();
        // What a balloon gives back would be taken from the memory that all children look at; its host
        // refuses that, in a line of its log each time.
        for device in files::names(BALLOONS).unwrap_or_default() {
            if device.starts_with("virtio") {
                let _ = files::tell(format!("{BALLOONS}/unbind"), &device);
            }
        }
    }

    /// The wire's `Rebirth`.
    pub fn reborn(&mut self, rebirth: Rebirth) -> Result<Reply> {
        match &self.standstill {
            Some(Standstill {
                stage: Stage::Newborn,
                ..
            }) => {}
            None if self.forks > 0 => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    "this machine was reborn before",
                ));
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    "this machine is no child of another that ran",
                ));
            }
        }
        let Rebirth {
            identity,
            network,
            signal,
        } = rebirth;
        self.network.disown(&network)?;
        identity::assume(&identity, self.heard)?;
        self.names = (identity.hostname, identity.domainname);
        let names = (self.names.0.as_str(), self.names.1.as_str());
        self.network
            .apply(network, names, &self.poller, clock::now())?;
        self.forks += 1;
        if let Some(root) = &self.root {
            root.write_device_file(FORK_FILE, &format!("{}\n", self.forks))?;
        }
        if let (1..=64, Some(main)) = (signal, self.processes.main_id()) {
            self.processes.signal(main, signal, SignalTarget::Process)?;
        }
        self.go_on()?;
        Ok(Reply::Done)
    }
}
