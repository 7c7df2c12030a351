//! The events of the last while, kept in a file and told to whoever listens.
//!
//! Two generations of JSON lines, `events.json` and the one before it, `events.json.1`: each has at most
//! [`KEPT`] events or [`LONGEST`] bytes, so at least that many of the last ones are found after a restart.
//! One event is one write; half a line, left by a kill, is cut off when it is opened.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Action, Event, Subject};
use crate::error::Error;

/// Events of one generation, and in memory.
const KEPT: usize = 2048;
/// Bytes of one generation, and about those in memory.
const LONGEST: u64 = 8 * 1024 * 1024;
/// Events a listener may be behind before it is cut off.
const BEHIND: usize = 1024;

/// The journal of one VCH. All of it may be called from several tasks at once.
#[derive(Debug)]
pub(crate) struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    /// Bytes of the file that are whole lines.
    len: u64,
    /// Events in the file.
    lines: usize,
    /// The last ones with the size of their lines, oldest first.
    recent: VecDeque<(Event, u64)>,
    /// Bytes of their lines.
    recent_bytes: u64,
    /// The last event's time.
    last: Option<SystemTime>,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    events: mpsc::Sender<Event>,
    until: Option<SystemTime>,
}

impl Journal {
    /// Opens the one in this directory (made if it is not there) and reads what it has.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::state("create", directory))?;
        let path = directory.join("events.json");
        let mut recent = Recent::default();
        recent.read(&former(&path))?;
        let (len, lines) = recent.read(&path)?;
        let file = open(&path).map_err(Error::state("open", &path))?;
        file.set_len(len).map_err(Error::state("write", &path))?;
        let last = recent.events.back().map(|(event, _)| event.time);
        let mut inner = Inner {
            path,
            file,
            len,
            lines,
            recent: recent.events,
            recent_bytes: recent.bytes,
            last,
            listeners: Vec::new(),
        };
        inner.forget();
        Ok(Self {
            inner: Mutex::new(inner),
        })
    }

    /// Writes down that something happened and tells it. The event's time is `at`, or a nanosecond after the
    /// event before if that is later.
    ///
    /// # Errors
    /// [`Error::State`] when it could not be written down. Listeners were told all the same.
    pub(crate) fn emit(
        &self,
        subject: Subject,
        action: Action,
        at: SystemTime,
    ) -> Result<Event, Error> {
        let mut inner = self.inner();
        let earliest = inner.last.map(|last| last + Duration::from_nanos(1));
        let event = Event {
            time: earliest.map_or(at, |earliest| earliest.max(at)),
            subject,
            action,
        };
        inner.last = Some(event.time);
        let written = inner.write(&event);
        inner.tell(&event);
        let size = *written.as_ref().unwrap_or(&0);
        inner.recent.push_back((event.clone(), size));
        inner.recent_bytes += size;
        inner.forget();
        written.map(|_| event)
    }

    /// The events from `since` on (those that come, if neither is given), up to and with `until`. Events kept
    /// come first, then those that come, none left out and none twice.
    pub(crate) fn subscribe(
        &self,
        since: Option<SystemTime>,
        until: Option<SystemTime>,
    ) -> EventReader {
        let mut inner = self.inner();
        let past: Vec<Event> = inner
            .recent
            .iter()
            .map(|(event, _)| event)
            .filter(|_| since.is_some() || until.is_some())
            .filter(|event| since.is_none_or(|since| event.time >= since))
            .filter(|event| until.is_none_or(|until| event.time <= until))
            .cloned()
            .collect();
        let (sender, events) = mpsc::channel(past.len() + BEHIND);
        for event in past {
            let queued = sender.try_send(event);
            debug_assert!(queued.is_ok());
        }
        let left = until.map(|until| until.duration_since(SystemTime::now()));
        inner
            .listeners
            .retain(|listener| !listener.events.is_closed());
        // Too far away for the clock is never.
        let until_instant = match left {
            Some(Ok(left)) => Instant::now().checked_add(left),
            _ => None,
        };
        if !matches!(left, Some(Err(_))) {
            inner.listeners.push(Listener {
                events: sender,
                until,
            });
        }
        EventReader {
            events,
            until: until_instant,
        }
    }

    /// Whether every event from this moment on is kept.
    pub(crate) fn covers(&self, since: SystemTime) -> bool {
        let inner = self.inner();
        let oldest = inner.recent.front().map(|(event, _)| event.time);
        inner.recent.len() < KEPT / 2 || oldest.is_some_and(|oldest| oldest <= since)
    }

    /// Whether such an event is kept.
    pub(crate) fn contains(&self, is_it: impl Fn(&Event) -> bool) -> bool {
        // From the newest on: what is asked about is mostly what happened last.
        self.inner()
            .recent
            .iter()
            .rev()
            .any(|(event, _)| is_it(event))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Gives the bytes written.
    fn write(&mut self, event: &Event) -> Result<u64, Error> {
        if self.lines >= KEPT || self.len >= LONGEST {
            let former = former(&self.path);
            fs::rename(&self.path, &former).map_err(Error::state("rename", &self.path))?;
            self.file = open(&self.path).map_err(Error::state("create", &self.path))?;
            self.len = 0;
            self.lines = 0;
        }
        let path = &self.path;
        let mut line = serde_json::to_vec(event)
            .map_err(io::Error::from)
            .map_err(Error::state("write", path))?;
        line.push(b'\n');
        if let Err(source) = self.file.write_all_at(&line, self.len) {
            // What lies behind is cut off now, or written over by the next, or no line when it is opened.
            let _ = self.file.set_len(self.len);
            return Err(Error::state("write", path)(source));
        }
        self.len += line.len() as u64;
        self.lines += 1;
        Ok(line.len() as u64)
    }

    fn tell(&mut self, event: &Event) {
        self.listeners.retain(|listener| {
            listener.until.is_none_or(|until| event.time <= until)
                && listener.events.try_send(event.clone()).is_ok()
        });
    }

    fn forget(&mut self) {
        while self.recent.len() > KEPT || self.recent_bytes > LONGEST {
            let Some((_, size)) = self.recent.pop_front() else {
                return;
            };
            self.recent_bytes -= size;
        }
    }
}

#[derive(Default)]
struct Recent {
    events: VecDeque<(Event, u64)>,
    bytes: u64,
}

impl Recent {
    /// Adds a file's events; gives how long its whole lines are, and how many.
    fn read(&mut self, path: &Path) -> Result<(u64, usize), Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, 0)),
            Err(error) => return Err(Error::state("read", path)(error)),
        };
        let (mut len, mut lines) = (0, 0);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Some(record) = line.strip_suffix(b"\n") else {
                break;
            };
            let size = line.len() as u64;
            len += size;
            lines += 1;
            match serde_json::from_slice::<Event>(record) {
                Ok(event) => {
                    self.bytes += size;
                    self.events.push_back((event, size));
                }
                // A newer version's, perhaps.
                Err(error) => tracing::warn!(%error, line = lines, "an event cannot be read"),
            }
        }
        Ok((len, lines))
    }
}

fn former(path: &Path) -> PathBuf {
    path.with_extension("json.1")
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Events one after the other. A listener too slow loses its place and is told so by the end.
#[derive(Debug)]
pub struct EventReader {
    events: mpsc::Receiver<Event>,
    until: Option<Instant>,
}

impl EventReader {
    /// The next event; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        let Some(until) = self.until else {
            return self.events.recv().await;
        };
        tokio::select! {
            biased;
            event = self.events.recv() => event,
            () = tokio::time::sleep_until(until) => None,
        }
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
