//! The terminal that `vch run -t` lends to the guest, and gives back however it ends.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use tether_wire::message::TerminalSize;

/// What to give back; also read by the panic hook.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode until this is dropped.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Switches standard input, a terminal, to raw mode: every key is the guest's.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let raw = Self(());
        raw.again()?;
        Ok(raw)
    }

    /// Raw mode once more, after the shell took the terminal back and returned it.
    ///
    /// # Errors
    /// The terminal refuses.
    pub fn again(&self) -> io::Result<()> {
        let mut attributes = tcgetattr(io::stdin())?;
        attributes.make_raw();
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &attributes)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was found. Does nothing when it was never taken.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(saved) = saved {
        // Nothing is left to do when the terminal itself is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &saved);
    }
}

/// A panic in any thread gives the terminal back before its message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal on standard output, or on standard input when output goes elsewhere.
/// Zero in both when neither is a terminal.
pub fn size() -> TerminalSize {
    let of = |result: rustix::io::Result<rustix::termios::Winsize>| {
        result.ok().map(|size| TerminalSize {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    };
    let stdout = isatty(io::stdout()).then(|| tcgetwinsize(io::stdout()));
    let stdin = isatty(io::stdin()).then(|| tcgetwinsize(io::stdin()));
    stdout
        .and_then(of)
        .or_else(|| stdin.and_then(of))
        .unwrap_or(TerminalSize {
            rows: 0,
            columns: 0,
        })
}
