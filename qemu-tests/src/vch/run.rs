//! `vch run`, written down word by word.

use super::{Done, Running, Vch};
use crate::harness::Context;
use crate::terminal::Terminal;
use anyhow::Result;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The image of most tests.
const BUSYBOX: &str = "sample/busybox";

/// A `vch run` about to be started.
#[derive(Debug)]
pub struct Run<'a> {
    test: &'a Context,
    image: String,
    flags: Vec<OsString>,
    command: Vec<OsString>,
    vch: Vch,
}

impl<'a> Run<'a> {
    /// `vch run sample/busybox COMMAND...`
    pub fn new<I>(test: &'a Context, command: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Self {
            test,
            image: BUSYBOX.to_owned(),
            flags: Vec::new(),
            command: command
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
            vch: test.vch(["run"]),
        }
    }

    /// `vch run sample/busybox sh -c SCRIPT`, where the script stops at the first command that
    /// fails, and says `done` when it comes to its end: ask with [`Done::finished`].
    pub fn script(test: &'a Context, script: &str) -> Self {
        let script = format!("set -eu\n{script}\necho done");
        Self::new(test, ["sh", "-c", &script])
    }

    /// Of another image.
    pub fn image(mut self, image: &str) -> Self {
        self.image = image.to_owned();
        self
    }

    /// With these flags before the image.
    pub fn flags<I>(mut self, flags: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.flags
            .extend(flags.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// With these bytes as standard input; `-i` is for the test to say.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.vch = self.vch.stdin(bytes);
        self
    }

    /// See [`Vch::stdin_open`].
    pub fn stdin_open(mut self) -> Self {
        self.vch = self.vch.stdin_open();
        self
    }

    /// See [`Vch::stdout_to`].
    pub fn stdout_to(mut self, path: &Path) -> Self {
        self.vch = self.vch.stdout_to(path);
        self
    }

    /// See [`Vch::variable`].
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.vch = self.vch.variable(name, value);
        self
    }

    /// See [`Vch::on`].
    pub fn on(mut self, terminal: &Terminal) -> Self {
        self.vch = self.vch.on(terminal);
        self
    }

    /// The `vch` that this is.
    ///
    /// # Errors
    /// A skip when there is no such sample image.
    pub fn into_vch(mut self) -> Result<Vch> {
        if let Some(sample) = self.image.strip_prefix("sample/") {
            self.test.environment().need_sample(sample)?;
        }
        self.vch.arguments.append(&mut self.flags);
        self.vch.arguments.push(self.image.into());
        self.vch.arguments.append(&mut self.command);
        Ok(self.vch)
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> Result<Running> {
        self.into_vch()?.spawn()
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn done(self) -> Result<Done> {
        self.spawn()?.wait()
    }
}
