//! A terminal with a test sitting at it.

use crate::vch::{Capture, Said};
use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long something is waited for on the screen.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pseudo-terminal. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<Ends>);

#[derive(Debug)]
struct Ends {
    keyboard: File,
    /// Kept open, so that the screen does not end with the first program on it.
    line: OwnedFd,
    screen: Capture,
    seen: Mutex<usize>,
}

impl Terminal {
    /// A terminal of this size; what is shown on it is also in `file`.
    ///
    /// # Errors
    /// The kernel has none to give.
    pub fn open(rows: u16, columns: u16, file: &Path) -> Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("cannot open a pseudo-terminal")?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?;
        let flags =
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let line = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())
            .context("cannot open the pseudo-terminal's line")?;
        let keyboard = File::from(keyboard);
        let screen = Capture::start(Some(keyboard.try_clone()?), file)?;
        let terminal = Self(Arc::new(Ends {
            keyboard,
            line,
            screen,
            seen: Mutex::new(0),
        }));
        terminal.resize(rows, columns)?;
        Ok(terminal)
    }

    /// The program's end, as one of its standard descriptors.
    ///
    /// # Errors
    /// Too many descriptors are open.
    pub fn line(&self) -> Result<Stdio> {
        Ok(self.0.line.try_clone()?.into())
    }

    /// Changes its size; whoever runs on it is told by the test ([`Signal::WINCH`]), for it is
    /// nobody's controlling terminal.
    ///
    /// [`Signal::WINCH`]: rustix::process::Signal::WINCH
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.0.line, size)?)
    }

    /// Its modes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn modes(&self) -> Result<Termios> {
        Ok(tcgetattr(&self.0.line)?)
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn types(&self, keys: &str) -> Result<&Self> {
        (&self.0.keyboard).write_all(keys.as_bytes())?;
        Ok(self)
    }

    /// Waits until the screen shows this, after what was waited for before.
    ///
    /// # Panics
    /// It never does.
    #[track_caller]
    pub fn expect(&self, text: &str) -> &Self {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let said: &Said = self.0.screen.said();
        match said.find(text.as_bytes(), *seen, Instant::now() + PATIENCE) {
            Some(end) => *seen = end,
            None => panic!(
                "the terminal never showed {text:?}; it showed {:?}",
                String::from_utf8_lossy(&said.all())
            ),
        }
        drop(seen);
        self
    }

    /// Waits until the screen shows one of the two; whether it is the first.
    ///
    /// # Panics
    /// It never does.
    #[track_caller]
    pub fn shows_one_of(&self, first: &str, second: &str) -> bool {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let said: &Said = self.0.screen.said();
        let wanted = [first.as_bytes(), second.as_bytes()];
        match said.find_one_of(&wanted, *seen, Instant::now() + PATIENCE) {
            Some((end, which)) => {
                *seen = end;
                which == 0
            }
            None => panic!(
                "the terminal never showed {first:?} or {second:?}; it showed {:?}",
                String::from_utf8_lossy(&said.all())
            ),
        }
    }
}

/// Whether two modes are the same.
pub fn same_modes(a: &Termios, b: &Termios) -> bool {
    a.input_modes == b.input_modes
        && a.output_modes == b.output_modes
        && a.control_modes == b.control_modes
        && a.local_modes == b.local_modes
}
