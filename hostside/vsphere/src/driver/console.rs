//! A machine's console: the bytes of its first serial port, the last of them kept.
//!
//! They are read from power on to power off, by whichever controller there is; what was said while there was
//! none is lost, as is all of it when the controller ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::MachineId;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::serial::{CONSOLE, SerialPorts};

/// How much is kept.
const KEPT: usize = 256 << 10;
/// How many pieces a follower may be behind.
const BEHIND: usize = 256;

#[derive(Debug, Default)]
struct State {
    last: VecDeque<u8>,
    followers: Vec<mpsc::Sender<Vec<u8>>>,
    reader: Option<AbortHandle>,
}

/// A machine's console.
#[derive(Debug, Default)]
pub struct Console(Arc<Mutex<State>>);

impl Console {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what a machine that is powered on says, from now on. Being read already is success.
    pub fn begin(&self, serial: Arc<dyn SerialPorts>, id: MachineId) {
        let mut state = self.state();
        if state.reader.is_some() {
            return;
        }
        state.last.clear();
        let shared = self.0.clone();
        let reader = tokio::spawn(async move {
            loop {
                let mut port = match serial.connect(id, CONSOLE).await {
                    Ok(port) => port,
                    Err(error) => {
                        tracing::debug!(machine = %id, %error, "it has no console");
                        return;
                    }
                };
                let mut piece = vec![0; 16 << 10];
                while let Ok(count @ 1..) = port.read(&mut piece).await {
                    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    state.take(&piece[..count]);
                }
            }
        });
        state.reader = Some(reader.abort_handle());
    }

    /// The machine is off: followers end, what was said stays.
    pub fn end(&self) {
        let mut state = self.state();
        if let Some(reader) = state.reader.take() {
            reader.abort();
        }
        state.followers.clear();
    }

    /// What was said last.
    pub fn last(&self) -> Vec<u8> {
        self.state().last.iter().copied().collect()
    }

    /// What was said, and then what is.
    pub fn follow(&self) -> mpsc::Receiver<Vec<u8>> {
        let mut state = self.state();
        let (sender, receiver) = mpsc::channel(BEHIND);
        let last: Vec<u8> = state.last.iter().copied().collect();
        if !last.is_empty() {
            let _ = sender.try_send(last);
        }
        if state.reader.is_some() {
            state.followers.push(sender);
        }
        receiver
    }
}

impl State {
    fn take(&mut self, piece: &[u8]) {
        self.last.extend(piece);
        let over = self.last.len().saturating_sub(KEPT);
        self.last.drain(..over);
        self.followers.retain(|follower| {
            // One that is too slow loses this piece.
            !matches!(
                follower.try_send(piece.to_vec()),
                Err(mpsc::error::TrySendError::Closed(_))
            )
        });
    }
}
