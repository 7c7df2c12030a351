//! What a process says, read as it comes: kept, written to a file, and waited for.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One output of a process.
#[derive(Debug)]
pub struct Capture {
    said: Arc<Said>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub struct Said {
    text: Mutex<Text>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for `text` at or after byte `from`; where it ends, or `None` when the output has
    /// ended without it or `until` has come.
    pub fn find(&self, text: &[u8], from: usize, until: Instant) -> Option<usize> {
        let found = self.find_one_of(&[text], from, until);
        found.map(|(end, _)| end)
    }

    /// The same for the first that comes of several texts, with its index.
    pub fn find_one_of(
        &self,
        texts: &[&[u8]],
        from: usize,
        until: Instant,
    ) -> Option<(usize, usize)> {
        let mut guard = self.lock();
        loop {
            let tail = guard.bytes.get(from..).unwrap_or_default();
            let found = texts.iter().enumerate().filter_map(|(index, text)| {
                position(tail, text).map(|position| (from + position + text.len(), index))
            });
            if let Some(first) = found.min() {
                return Some(first);
            }
            let left = until.saturating_duration_since(Instant::now());
            if guard.ended || left == Duration::ZERO {
                return None;
            }
            guard = self
                .changed
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for so many bytes; whether they came.
    pub fn reached(&self, count: usize, until: Instant) -> bool {
        let mut guard = self.lock();
        loop {
            if guard.bytes.len() >= count {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if guard.ended || left == Duration::ZERO {
                return false;
            }
            guard = self
                .changed
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }
}

fn position(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1))
        .position(|window| window == wanted)
}

impl Capture {
    /// Reads `source`, where there is one, to its end in a thread, and writes it to `path` too.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn start(source: Option<impl Read + Send + 'static>, path: &Path) -> Result<Self> {
        let said = Arc::new(Said::default());
        let Some(mut source) = source else {
            said.end();
            return Ok(Self { said, reader: None });
        };
        let mut file =
            File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let sink = said.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        // The file is for people; a full disk shows elsewhere.
                        let _ = file.write_all(&buffer[..count]);
                        sink.add(&buffer[..count]);
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // The far end of a terminal closed (EIO).
                    Err(_) => break,
                }
            }
            sink.end();
        });
        Ok(Self {
            said,
            reader: Some(reader),
        })
    }

    /// What was said so far, to be waited on.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Everything, once it has ended.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        std::mem::take(&mut self.said.lock().bytes)
    }
}
