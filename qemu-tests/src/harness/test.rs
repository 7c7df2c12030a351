//! One test, and what becomes of it.

use super::Context;
use crate::docker::Driver;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A test's entry in its group's table.
#[derive(Clone, Debug)]
pub struct Test {
    /// What it belongs to: `run`, `streams`, ...
    pub group: &'static str,
    /// A sentence that is true when it passes.
    pub name: &'static str,
    /// How many guests it runs at once, at most.
    pub guests: u32,
    /// How long it may take.
    pub within: Duration,
    /// Whether it is left out unless asked for with `--full`.
    pub full: bool,
    /// What its machines are.
    pub driver: Driver,
    /// What it does.
    pub body: fn(&Context) -> anyhow::Result<()>,
}

impl Test {
    /// One guest, three minutes.
    pub const fn new(
        group: &'static str,
        name: &'static str,
        body: fn(&Context) -> anyhow::Result<()>,
    ) -> Self {
        Self {
            group,
            name,
            guests: 1,
            within: Duration::from_secs(180),
            full: false,
            driver: Driver::Qemu,
            body,
        }
    }

    /// It runs this many guests at once, or as much else.
    pub const fn guests(mut self, guests: u32) -> Self {
        self.guests = guests;
        self
    }

    /// It may take this long.
    pub const fn minutes(mut self, minutes: u64) -> Self {
        self.within = Duration::from_secs(60 * minutes);
        self
    }

    /// It is left out unless asked for with `--full`.
    pub const fn full(mut self) -> Self {
        self.full = true;
        self
    }

    /// With machines that are only played.
    pub const fn on_the_fake(mut self) -> Self {
        self.driver = Driver::Fake;
        self.guests = 1;
        self.full = false;
        self
    }

    /// With real guests behind a simulated vCenter.
    pub const fn on_vsphere(mut self) -> Self {
        self.driver = Driver::Vsphere;
        self
    }

    /// With real guests on a simulated ESXi host without a vCenter.
    pub const fn on_esxi(mut self) -> Self {
        self.driver = Driver::Esxi;
        self
    }

    /// What it is chosen by: its group, or what its machines are behind.
    pub fn family(&self) -> &'static str {
        match self.driver {
            Driver::Fake | Driver::Qemu => self.group,
            Driver::Vsphere | Driver::Esxi => "vsphere",
        }
    }

    /// Group and name.
    pub fn title(&self) -> String {
        let driver = match self.driver {
            Driver::Fake => " (fake)",
            Driver::Qemu => "",
            Driver::Vsphere => " (vsphere)",
            Driver::Esxi => " (ESXi)",
        };
        format!("{}: {}{driver}", self.group, self.name)
    }
}

/// What became of a test.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// What it claims is true.
    Passed,
    /// It is not.
    Failed {
        /// Why, in as many lines as it takes.
        reason: String,
        /// Where everything about it is.
        directory: PathBuf,
    },
    /// This machine cannot say; why not.
    Skipped(String),
}

impl Outcome {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

/// The error of a test that this machine cannot run.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test that this machine cannot run: `return skip("there is no /dev/vhost-vsock")`.
///
/// # Errors
/// Always; that is what it is for.
pub fn skip<T>(why: impl Into<String>) -> anyhow::Result<T> {
    Err(Skip(why.into()).into())
}
