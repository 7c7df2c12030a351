//! A `vch` that runs.

use super::capture::Capture;
use super::{Done, Input};
use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::process::{Child, ChildStdin};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a line is waited for before the test fails with what was said instead. Longer than any
/// guest takes, so a test's own deadline is what usually ends it.
const PATIENCE: Duration = Duration::from_secs(150);

/// A `vch` that runs. Killed when it is dropped before it was waited for.
#[derive(Debug)]
pub struct Running {
    child: Child,
    reaped: bool,
    title: String,
    stdin: Option<ChildStdin>,
    writer: Option<JoinHandle<()>>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    seen: usize,
}

impl Running {
    pub(super) fn new(
        child: Child,
        title: String,
        stdin: Option<ChildStdin>,
        input: Input,
        stdout: Capture,
        stderr: Capture,
    ) -> Result<Self> {
        let (stdin, writer) = match (stdin, input) {
            (Some(mut stdin), Input::Bytes(bytes)) => {
                let writer = std::thread::spawn(move || {
                    // A process that does not read all of it is no error here.
                    let _ = stdin.write_all(&bytes);
                });
                (None, Some(writer))
            }
            (stdin, _) => (stdin, None),
        };
        Ok(Self {
            child,
            reaped: false,
            title,
            stdin,
            writer,
            stdout: Some(stdout),
            stderr: Some(stderr),
            seen: 0,
        })
    }

    /// Waits until standard output has this, after what was waited for before.
    ///
    /// # Panics
    /// It ended, or time did, without.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> &mut Self {
        let Some(stdout) = &self.stdout else {
            panic!("{}: its output was taken", self.title);
        };
        let until = Instant::now() + PATIENCE;
        match stdout.said().find(text.as_bytes(), self.seen, until) {
            Some(end) => self.seen = end,
            None => {
                let stderr = self.stderr.as_ref().map(|stderr| stderr.said().all());
                panic!(
                    "{}\nnever said {text:?}; it said {:?} and on standard error {:?}",
                    self.title,
                    String::from_utf8_lossy(&stdout.said().all()),
                    String::from_utf8_lossy(&stderr.unwrap_or_default())
                )
            }
        }
        self
    }

    /// Waits until standard error has this.
    ///
    /// # Panics
    /// It ended, or time did, without.
    #[track_caller]
    pub fn expect_error(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        let said = self.stderr.as_ref().map(Capture::said);
        let found = said.and_then(|said| said.find(text.as_bytes(), 0, until));
        if found.is_none() {
            let all = said.map(|said| said.all()).unwrap_or_default();
            panic!(
                "{}\nnever said {text:?} on standard error; it said {:?}",
                self.title,
                String::from_utf8_lossy(&all)
            );
        }
    }

    /// What came on standard error by now.
    pub fn error_so_far(&self) -> String {
        let said = self.stderr.as_ref().map(|stderr| stderr.said().all());
        String::from_utf8_lossy(&said.unwrap_or_default()).into_owned()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until standard output has this many bytes; whether it came so far.
    pub fn reached(&self, bytes: usize) -> bool {
        let until = Instant::now() + PATIENCE;
        self.stdout
            .as_ref()
            .is_some_and(|stdout| stdout.said().reached(bytes, until))
    }

    /// Whether standard output has anything by now.
    pub fn said_anything(&self) -> bool {
        self.stdout
            .as_ref()
            .is_some_and(|stdout| !stdout.said().all().is_empty())
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// It does not read any more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<&mut Self> {
        self.stdin
            .as_mut()
            .ok_or_else(|| anyhow!("{}: standard input is not open", self.title))?
            .write_all(bytes)
            .with_context(|| format!("cannot write to {}", self.title))?;
        Ok(self)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<&mut Self> {
        // It is not reaped yet, so the id is its own.
        let pid = Pid::from_raw(self.child.id() as i32).ok_or_else(|| anyhow!("no process id"))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.title))?;
        Ok(self)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Closes its standard input and waits for its end.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn wait(mut self) -> Result<Done> {
        self.stdin = None;
        self.ended()
    }

    /// Waits for its end, with its standard input left as it is.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn ended(mut self) -> Result<Done> {
        let status = self
            .child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.title))?;
        self.reaped = true;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        let finish =
            |capture: &mut Option<Capture>| capture.take().map(Capture::finish).unwrap_or_default();
        Ok(Done::new(
            std::mem::take(&mut self.title),
            status,
            finish(&mut self.stdout),
            finish(&mut self.stderr),
        ))
    }

    /// `kill -9`: not a word of farewell.
    ///
    /// # Errors
    /// It is gone.
    pub fn kill(mut self) -> Result<Done> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.title))?;
        self.ended()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
