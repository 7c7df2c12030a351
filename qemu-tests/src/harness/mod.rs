//! Choosing tests, running them side by side, saying what became of them.

mod context;
mod leftovers;
mod schedule;
#[cfg(test)]
mod schedule_tests;
mod test;

pub use context::Context;
pub use leftovers::MARK;
pub use test::{Outcome, Skip, Test, skip};

use crate::environment::Environment;
use anyhow::{Context as _, Result, bail};
use clap::Parser;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Tests that boot real guests
#[derive(Debug, Parser)]
#[command(name = "qemu-tests")]
pub struct Options {
    /// Only list the tests
    #[arg(long)]
    pub list: bool,
    /// Guests at once [default: one for each processor]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<u32>,
    /// Also the tests that take very long
    #[arg(long)]
    pub full: bool,
    /// Keep the directories of tests that pass
    #[arg(long)]
    pub keep: bool,
    /// The program under test
    #[arg(long, env = "VCH", value_name = "FILE", default_value = "vch")]
    pub vch: PathBuf,
    /// Directory with bzImage, initramfs.cpio and tether.iso
    #[arg(long, env = "VCH_BOOT_IMAGE", value_name = "DIR")]
    pub boot_image: Option<PathBuf>,
    /// Directory with the OCI layouts of the sample images [default: samples/ in tether's cache]
    #[arg(long, env = "VCH_SAMPLES", value_name = "DIR")]
    pub samples: Option<PathBuf>,
    /// The project's sources
    #[arg(long, env = "VCH_SOURCE", value_name = "DIR", default_value = ".")]
    pub source: PathBuf,
    /// Where the tests' directories go [default: a new one in the system's]
    #[arg(long, env = "QEMU_TESTS_OUT", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Only tests of groups whose name begins so
    #[arg(long, value_name = "GROUPS")]
    pub only: Option<String>,
    /// No tests of groups whose name begins so
    #[arg(long, value_name = "GROUPS")]
    pub without: Option<String>,
    /// Only tests of a group of this name, or whose name has this in it
    pub filter: Vec<String>,
}

impl Options {
    /// A word that is a group's name means that group, any other a part of a test's name.
    fn chooses(&self, test: &Test, groups: &BTreeSet<&str>) -> bool {
        let matches = |word: &String| match groups.contains(word.as_str()) {
            true => test.group == word,
            false => test.title().contains(word.as_str()),
        };
        let begins = |beginning: &Option<String>| {
            beginning
                .as_ref()
                .map(|word| test.family().starts_with(word.as_str()))
        };
        if begins(&self.only) == Some(false) || begins(&self.without) == Some(true) {
            return false;
        }
        self.filter.is_empty() || self.filter.iter().any(matches)
    }
}

/// Runs the tests that `options` chooses; whether none failed.
///
/// # Errors
/// Nothing could be run at all, or nothing is of that name.
pub fn run(options: Options, tests: &[Test]) -> Result<bool> {
    let titles: BTreeSet<String> = tests.iter().map(Test::title).collect();
    if titles.len() != tests.len() {
        bail!("two tests have the same name");
    }
    let groups = tests.iter().map(|test| test.group).collect();
    let chosen: Vec<Test> = tests
        .iter()
        .filter(|test| options.chooses(test, &groups))
        .cloned()
        .collect();
    if chosen.is_empty() {
        bail!("no test matches {:?}; see --list", options.filter);
    }
    if options.list {
        for test in &chosen {
            println!(
                "{}{}",
                test.title(),
                if test.full { " (--full)" } else { "" }
            );
        }
        return Ok(true);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = options.jobs.unwrap_or(processors as u32).max(1);
    let environment = Arc::new(Environment::prepare(&options)?);
    leftovers::clear_when_told(environment.out()).context("cannot listen for signals")?;
    let outcomes = schedule::run_all(&chosen, &environment, jobs);
    report(&environment, &outcomes);
    Ok(outcomes.iter().all(|(_, outcome)| !outcome.failed()))
}

/// The failures and the skips once more, and the line with the numbers.
fn report(environment: &Environment, outcomes: &[(Test, Outcome)]) {
    let mut counts = [0; 3];
    for (test, outcome) in outcomes {
        match outcome {
            Outcome::Passed => counts[0] += 1,
            Outcome::Failed { .. } => counts[1] += 1,
            Outcome::Skipped(why) => {
                counts[2] += 1;
                println!("skipped: {}: {why}", test.title());
            }
        }
    }
    for (test, outcome) in outcomes {
        if let Outcome::Failed { directory, .. } = outcome {
            println!("failed: {}: see {}", test.title(), directory.display());
        }
    }
    environment.finish(counts[1] == 0);
    println!(
        "{} passed, {} failed, {} skipped",
        counts[0], counts[1], counts[2]
    );
}
