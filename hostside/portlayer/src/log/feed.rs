//! What a container's log writer tells its readers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// One for each container, as long as the container is there: its writers (one a run) tell their progress
/// here. When the last clone is dropped, with the container, all reading ends.
#[derive(Debug, Clone)]
pub(crate) struct Feed(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    progress: watch::Sender<Progress>,
    /// Held while files get other names, and while a name is made from [`Progress::current`] and opened.
    /// A few renames long.
    names: Arc<Mutex<()>>,
}

/// How far the log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Number of the current file. One more at each rotation, so a reader's file keeps its number.
    pub(super) current: u64,
    /// Bytes of the current file that are whole lines. Without a writer since this process began: whatever
    /// the file holds.
    pub(super) len: Option<u64>,
    /// Whether more is to come.
    pub(super) running: bool,
}

/// High enough for any number of rotated files below it.
const FIRST: u64 = 1 << 32;

impl Feed {
    /// For a container that does not run.
    pub(crate) fn new() -> Self {
        let (progress, _) = watch::channel(Progress {
            current: FIRST,
            len: None,
            running: false,
        });
        Self(Arc::new(Inner {
            progress,
            names: Arc::default(),
        }))
    }

    pub(super) fn follow(&self) -> Follower {
        Follower {
            progress: self.0.progress.subscribe(),
            names: self.0.names.clone(),
        }
    }

    /// Holds names as they are.
    pub(super) fn names(&self) -> MutexGuard<'_, ()> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wrote(&self, len: u64) {
        self.0.progress.send_modify(|progress| {
            progress.len = Some(len);
            progress.running = true;
        });
    }

    /// With the names held.
    pub(super) fn rotated(&self) {
        self.0.progress.send_modify(|progress| {
            progress.current += 1;
            progress.len = Some(0);
        });
    }

    pub(super) fn ended(&self) {
        self.0
            .progress
            .send_modify(|progress| progress.running = false);
    }
}

/// A reader's end of a [`Feed`].
#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) names: Arc<Mutex<()>>,
}
