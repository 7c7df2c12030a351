//! Signals that `vch run` gets.

use signal_hook::consts::signal as s;
use signal_hook::iterator::Signals as Iterator;
use std::io;
use tokio::sync::mpsc;

/// What `docker run` forwards, without what the shell's job control needs (TSTP, TTIN, TTOU), what
/// would hide this process's own faults (ABRT, BUS, TRAP, SYS, STKFLT), and what is no message at
/// all (CHLD, PIPE, URG).
const FORWARDED: [i32; 12] = [
    s::SIGHUP,
    s::SIGINT,
    s::SIGQUIT,
    s::SIGTERM,
    s::SIGUSR1,
    s::SIGUSR2,
    s::SIGALRM,
    s::SIGVTALRM,
    s::SIGPROF,
    s::SIGIO,
    s::SIGXCPU,
    PWR,
];
/// Linux signal 30; not in signal-hook's list.
const PWR: i32 = 30;
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
/// Signals waiting to be handled; more of one kind than this are one.
const BACKLOG: usize = 64;

/// A signal, sorted by what is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// For the container's process.
    Forward(u8),
    /// The terminal has another size.
    Resized,
    /// This process was stopped and goes on.
    Continued,
}

/// The signals of this process from now on.
#[derive(Debug)]
pub struct Signals(mpsc::Receiver<Got>);

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// The kernel refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let all = FORWARDED
            .into_iter()
            .chain(REAL_TIME)
            .chain([s::SIGWINCH, s::SIGCONT]);
        let mut signals = Iterator::new(all)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    let got = match signal {
                        s::SIGWINCH => Got::Resized,
                        s::SIGCONT => Got::Continued,
                        other => Got::Forward(other as u8),
                    };
                    if sender.blocking_send(got).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self(receiver))
    }

    /// The next one. Cancel safe.
    pub async fn next(&mut self) -> Got {
        match self.0.recv().await {
            Some(got) => got,
            None => std::future::pending().await,
        }
    }
}
