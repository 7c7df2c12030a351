//! The one place that takes dead children from the kernel.
//!
//! SIGCHLD is blocked from tether's first moment and read from a signalfd, so no child is reaped
//! before the code that made it has written down whose it is.

use crate::container::Container;
use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::sys;
use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signalfd.
pub struct Reaper {
    signals: SignalFd,
}

/// Blocks every signal: nothing interrupts tether, and as process 1 nothing kills it.
///
/// # Errors
/// None that happens.
pub fn block_signals() -> Result<()> {
    let every = Some(&SigSet::all());
    sigprocmask(SigmaskHow::SIG_BLOCK, every, None).context(|| "blocking signals")
}

impl Reaper {
    /// Opens the signalfd and puts it into the loop.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn new(poller: &Poller) -> Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals =
            SignalFd::with_flags(&mask, flags).context(|| "opening a signal descriptor")?;
        poller.watch(&signals, EpollFlags::EPOLLIN, Token::Signals)?;
        Ok(Self { signals })
    }

    /// Reaps until there is nobody left: any number of deaths may be one signal.
    pub fn reap(&self, container: &mut Container) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(Some((pid, ended))) = sys::wait_any() {
            container.died(pid, ended);
        }
    }
}
