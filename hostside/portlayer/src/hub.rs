//! Who is attached to a process, and what they send it.
//!
//! A hub belongs to a container and lives through its runs: one can attach before the process is started.
//! Its end of run lets everybody go.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::spec::Stdin;
use crate::stream::{AttachedInput, AttachedOutput, Attachment, Output, Piece, Wanted};

/// Pieces that wait for one reader at most; a piece is at most as long as the link's.
const WAITING: usize = 32;

#[derive(Debug)]
pub(crate) struct Hub {
    stdin: Stdin,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    readers: Vec<Reader>,
    input: Input,
}

#[derive(Debug)]
struct Reader {
    wanted: Wanted,
    pieces: mpsc::Sender<Piece>,
}

/// The way into the process of the current or coming run.
#[derive(Debug)]
struct Input {
    /// Keeps the way open while nobody is attached.
    kept: Option<mpsc::Sender<Bytes>>,
    /// Lets further ones in while somebody is.
    shared: mpsc::WeakSender<Bytes>,
    /// Until the run takes it.
    receiver: Option<mpsc::Receiver<Bytes>>,
}

impl Input {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            shared: sender.downgrade(),
            kept: Some(sender),
            receiver: Some(receiver),
        }
    }
}

impl Hub {
    pub fn new(stdin: Stdin) -> Self {
        let state = State {
            readers: Vec::new(),
            input: Input::new(),
        };
        Self {
            stdin,
            state: Mutex::new(state),
        }
    }

    /// Attaches somebody.
    pub fn attach(&self, wanted: Wanted) -> Attachment {
        let mut state = self.lock();
        let (sender, pieces) = mpsc::channel(WAITING);
        state.readers.push(Reader {
            wanted,
            pieces: sender,
        });
        let input = match (wanted.stdin, self.stdin) {
            (false, _) | (_, Stdin::Closed) => None,
            (true, Stdin::Open) => state.input.shared.upgrade(),
            (true, Stdin::Once) => {
                let kept = state.input.kept.take();
                kept.or_else(|| state.input.shared.upgrade())
            }
        };
        Attachment {
            output: AttachedOutput { pieces },
            input: input.map(|pieces| AttachedInput { pieces }),
        }
    }

    /// Hands a piece to everybody who wants it; waits for the slowest.
    pub async fn publish(&self, piece: Piece) {
        let readers: Vec<_> = {
            let mut state = self.lock();
            state.readers.retain(|reader| !reader.pieces.is_closed());
            let wants = |reader: &&Reader| match piece.output {
                Output::Stdout => reader.wanted.stdout,
                Output::Stderr => reader.wanted.stderr,
            };
            let wanting = state.readers.iter().filter(wants);
            wanting.map(|reader| reader.pieces.clone()).collect()
        };
        for reader in readers {
            // Whoever is gone meanwhile wants nothing.
            let _ = reader.send(piece.clone()).await;
        }
    }

    /// Lets those go who have not taken what was handed to them.
    pub fn drop_stalled(&self) {
        self.lock()
            .readers
            .retain(|reader| reader.pieces.capacity() > 0);
    }

    /// What is sent to the process, once for each run.
    pub fn take_input(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.lock().input.receiver.take()
    }

    /// The run is over: everybody has come to the end, and what was typed and not read is gone.
    pub fn end(&self) {
        let mut state = self.lock();
        state.readers.clear();
        state.input = Input::new();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted {
        stdout: true,
        stderr: true,
        stdin: true,
    };

    fn piece(output: Output, text: &'static str) -> Piece {
        Piece {
            output,
            data: Bytes::from_static(text.as_bytes()),
        }
    }

    #[tokio::test]
    async fn everybody_gets_what_they_want_until_the_end() {
        let hub = Hub::new(Stdin::Open);
        let mut both = hub.attach(ALL).output;
        let mut errors = hub
            .attach(Wanted {
                stdout: false,
                ..ALL
            })
            .output;
        drop(hub.attach(ALL));
        hub.publish(piece(Output::Stdout, "a")).await;
        hub.publish(piece(Output::Stderr, "b")).await;
        hub.end();
        assert_eq!(both.next().await, Some(piece(Output::Stdout, "a")));
        assert_eq!(both.next().await, Some(piece(Output::Stderr, "b")));
        assert_eq!(both.next().await, None);
        assert_eq!(errors.next().await, Some(piece(Output::Stderr, "b")));
        assert_eq!(errors.next().await, None);
    }

    #[tokio::test]
    async fn input_ends_with_the_first_who_leaves_only_when_it_is_once() {
        for (stdin, ends) in [(Stdin::Open, false), (Stdin::Once, true)] {
            let hub = Hub::new(stdin);
            let mut input = hub.take_input().unwrap();
            let mut attached = hub.attach(ALL).input.unwrap();
            attached.write(Bytes::from_static(b"x")).await.unwrap();
            drop(attached);
            assert_eq!(input.recv().await.unwrap(), "x");
            assert_eq!(
                input.try_recv() == Err(mpsc::error::TryRecvError::Disconnected),
                ends
            );
        }
        assert!(Hub::new(Stdin::Closed).attach(ALL).input.is_none());
    }

    #[tokio::test]
    async fn the_next_run_has_an_input_of_its_own() {
        let hub = Hub::new(Stdin::Once);
        let mut old = hub.attach(ALL).input.unwrap();
        drop(hub.take_input());
        hub.end();
        assert_eq!(
            old.write(Bytes::from_static(b"x")).await,
            Err(crate::InputClosed)
        );
        assert!(hub.take_input().is_some());
        assert!(hub.attach(ALL).input.is_some());
    }
}
