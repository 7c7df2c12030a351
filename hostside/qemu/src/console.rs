//! The guest's console: a ring in QEMU's memory, drained into a bounded file.
//!
//! QEMU drops the oldest bytes when its ring is full, so that a flood neither
//! delays the guest nor fills the host, with or without a controller. The ring
//! is drained when somebody asks for it, while somebody follows, and when the
//! machine goes off. There is no event for "more in the ring", so following
//! is by the clock, and only while there is a follower.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use crate::argv::CONSOLE_RING;
use crate::qmp::{Qmp, QmpError};

/// Bytes in a file before the next one is begun; there are two at most.
const FILE_LIMIT: u64 = 1 << 20;
/// Bytes of the console given to who asks.
const TAIL: u64 = 256 << 10;
/// How often a followed console is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(40);
/// Pieces kept for a follower.
const FOLLOWER_BACKLOG: usize = 64;

/// One machine's console.
#[derive(Debug)]
pub struct Console {
    file: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    file: PathBuf,
    followers: Vec<mpsc::Sender<Vec<u8>>>,
}

impl Console {
    /// The console of the machine in this directory.
    pub fn new(directory: &Path) -> Self {
        let file = directory.join("console.log");
        Self {
            state: Arc::new(Mutex::new(State {
                file: file.clone(),
                followers: Vec::new(),
            })),
            file,
        }
    }

    /// Forgets the last run.
    pub async fn reset(&self) {
        let mut state = self.state.lock().await;
        state.followers.clear();
        for file in [&self.file, &previous(&self.file)] {
            let _ = fs::remove_file(file);
        }
    }

    /// Moves what QEMU has into the file and to the followers. Once begun it
    /// is finished whether or not the caller waits: what left the ring is not
    /// lost.
    ///
    /// # Errors
    ///
    /// [`QmpError`], when QEMU does not answer.
    pub async fn drain(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let (state, qmp) = (self.state.clone(), qmp.clone());
        tokio::spawn(async move { state.lock().await.drain(&qmp).await })
            .await
            .unwrap_or(Err(QmpError::Closed))
    }

    /// The last bytes of what was drained.
    ///
    /// # Errors
    ///
    /// Reading the files.
    pub fn tail(&self) -> io::Result<Vec<u8>> {
        let mut bytes = read(&previous(&self.file))?;
        bytes.extend(read(&self.file)?);
        let from = bytes.len().saturating_sub(TAIL as usize);
        Ok(bytes.split_off(from))
    }

    /// What is there, then what comes.
    ///
    /// # Errors
    ///
    /// Reading the files.
    pub async fn follow(&self, qmp: &Qmp) -> io::Result<mpsc::Receiver<Vec<u8>>> {
        let mut state = self.state.lock().await;
        let (sender, receiver) = mpsc::channel(FOLLOWER_BACKLOG);
        let so_far = self.tail()?;
        if !so_far.is_empty() {
            // The queue is empty: it fits.
            let _ = sender.try_send(so_far);
        }
        state.followers.push(sender);
        if state.followers.len() == 1 {
            tokio::spawn(pump(Arc::downgrade(&self.state), qmp.clone()));
        }
        Ok(receiver)
    }

    /// Ends every follower, after the machine's end.
    pub async fn close(&self) {
        self.state.lock().await.followers.clear();
    }
}

/// Drains while somebody follows.
async fn pump(state: Weak<Mutex<State>>, qmp: Qmp) {
    let mut clock = tokio::time::interval(FOLLOW_EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let Some(state) = state.upgrade() else { return };
        let mut state = state.lock().await;
        state.followers.retain(|follower| !follower.is_closed());
        if state.followers.is_empty() || state.drain(&qmp).await.is_err() {
            state.followers.clear();
            return;
        }
    }
}

impl State {
    async fn drain(&mut self, qmp: &Qmp) -> Result<(), QmpError> {
        let arguments = json!({"device": "console", "size": CONSOLE_RING, "format": "base64"});
        let answer = qmp.execute("ringbuf-read", arguments).await?;
        let bytes = answer
            .as_str()
            .and_then(decode_base64)
            .ok_or_else(|| bad_answer(&answer))?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.store(&bytes) {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep a console");
        }
        for follower in &self.followers {
            // A follower too slow loses this piece.
            let _ = follower.try_send(bytes.clone());
        }
        Ok(())
    }

    fn store(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.file)?;
        if file.metadata()?.len() + bytes.len() as u64 > FILE_LIMIT {
            fs::rename(&self.file, previous(&self.file))?;
            file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.file)?;
        }
        file.write_all(bytes)
    }
}

fn bad_answer(answer: &Value) -> QmpError {
    QmpError::Protocol(format!("ringbuf-read gave a {} that is no base64", kind(answer)).into())
}

fn kind(value: &Value) -> &'static str {
    if value.is_string() { "text" } else { "value" }
}

fn previous(file: &Path) -> PathBuf {
    file.with_extension("log.1")
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(file) {
        Ok(file) => file
            .take(FILE_LIMIT + CONSOLE_RING as u64)
            .read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(bytes)
}

/// Base64 (RFC 4648, section 4) with its padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    for (index, group) in text.as_chunks::<4>().0.iter().enumerate() {
        let last = (index + 1) * 4 == text.len();
        let padding = if last {
            group.iter().rev().take_while(|b| **b == b'=').count()
        } else {
            0
        };
        if padding > 2 {
            return None;
        }
        let mut bits = 0u32;
        for digit in &group[..4 - padding] {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * padding;
        bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_decodes_as_rfc_4648_says() {
        let cases: [(&str, Option<&[u8]>); 12] = [
            ("", Some(b"")),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYg==", Some(b"foob")),
            ("Zm9vYmFy", Some(b"foobar")),
            ("/+8A", Some(b"\xff\xef\x00")),
            ("Z", None),
            ("Zg=", None),
            ("Z===", None),
            ("Zg==Zg==", None),
            ("Zm9\u{e9}", None),
        ];
        for (text, expected) in cases {
            assert_eq!(decode_base64(text).as_deref(), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_flood_is_kept_to_its_last_part() {
        let directory = tempfile::tempdir().unwrap();
        let console = Console::new(directory.path());
        let piece = vec![b'x'; 200 << 10];
        for _ in 0..40 {
            console.state.lock().await.store(&piece).unwrap();
        }
        console.state.lock().await.store(b"the end").unwrap();
        let kept: u64 = fs::read_dir(directory.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(kept <= 2 * FILE_LIMIT, "{kept} bytes kept");
        let tail = console.tail().unwrap();
        assert_eq!(tail.len() as u64, TAIL);
        assert!(tail.ends_with(b"xthe end"));
        console.reset().await;
        assert!(console.tail().unwrap().is_empty());
    }
}
