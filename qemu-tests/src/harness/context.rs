//! What a test is given.

use crate::docker::Driver;
use crate::environment::Environment;
use crate::vch::{Run, Vch};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// One test's own directory and the means to run guests in it.
#[derive(Debug)]
pub struct Context {
    environment: Arc<Environment>,
    directory: PathBuf,
    deadline: Instant,
    driver: Driver,
    ran: AtomicU32,
}

impl Context {
    /// A context whose directory exists.
    pub fn new(
        environment: Arc<Environment>,
        directory: PathBuf,
        deadline: Instant,
        driver: Driver,
    ) -> Self {
        Self {
            environment,
            directory,
            deadline,
            driver,
            ran: AtomicU32::new(0),
        }
    }

    /// What all tests share.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The test's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The state directory of this test's `vch`; its images are everyone's.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// What this test's machines are.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// When the test has to be over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// `vch ARGUMENTS...`.
    pub fn vch<I>(&self, arguments: I) -> Vch
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let number = self.ran.fetch_add(1, Ordering::Relaxed) + 1;
        Vch::new(self, number, arguments)
    }

    /// `vch run sample/busybox COMMAND...`, until more is said.
    pub fn run<I>(&self, command: I) -> Run<'_>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        Run::new(self, command)
    }

    /// `vch run sample/busybox sh -c SCRIPT`, where the script stops at the first command that
    /// fails and has to reach its end.
    pub fn script(&self, script: &str) -> Run<'_> {
        Run::script(self, script)
    }
}
