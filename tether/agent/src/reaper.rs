//! The one place that takes dead children from the kernel.
//!
//! SIGCHLD is blocked from tether's first moment and read from a signalfd, so no child is reaped
//! before the code that made it has written down whose it is.

use crate::container::Container;
use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::sys;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::read;

/// The signalfd.
pub struct Reaper {
    signals: OwnedFd,
}

impl Reaper {
    /// Opens the signalfd and puts it into the loop.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new(poller: &Poller) -> Result<Self> {
        let signals = sys::child_signals().context(|| "opening a signal descriptor")?;
        poller.watch(&signals, EventFlags::IN, Token::Signals)?;
        Ok(Self { signals })
    }

    /// Reaps until there is nobody left: any number of deaths may be one signal.
    pub fn reap(&self, container: &mut Container) {
        // struct signalfd_siginfo (linux/signalfd.h) has 128 bytes; what it says does not matter.
        let mut information = [0; 128];
        while read(&self.signals, &mut information).is_ok_and(|length| length > 0) {}
        while let Ok(Some((pid, ended))) = sys::wait_any() {
            container.died(pid, ended);
        }
    }
}
