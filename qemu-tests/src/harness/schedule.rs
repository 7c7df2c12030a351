//! Running tests side by side, each in a thread, within the number of guests this machine takes.

use super::leftovers;
use super::{Context, Outcome, Skip, Test};
use crate::environment::Environment;
use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long processes of a test that passed may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How long a test has to end once its processes were killed.
const UNWIND: Duration = Duration::from_secs(20);

thread_local! {
    /// Where the last panic of this thread came from.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs all of them and says, as each ends, what became of it; returns the same in the order of
/// `tests`.
pub fn run_all(tests: &[Test], environment: &Arc<Environment>, jobs: u32) -> Vec<(Test, Outcome)> {
    // The message becomes the test's reason, and is said once.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        PLACE.set(place.unwrap_or_default());
    }));
    let mut waiting: VecDeque<(usize, Test)> = tests.iter().cloned().enumerate().collect();
    let mut outcomes: Vec<Option<Outcome>> = tests.iter().map(|_| None).collect();
    let (sender, ended) = channel();
    let mut free = jobs;
    let mut ended_count = 0;
    while ended_count < tests.len() {
        // The first that fits: a big one is passed by until there is room, and it is first in turn.
        while let Some(position) = waiting
            .iter()
            .position(|(_, test)| needs(test, jobs) <= free)
        {
            let Some((index, test)) = waiting.remove(position) else {
                break;
            };
            free -= needs(&test, jobs);
            let (sender, environment) = (sender.clone(), environment.clone());
            std::thread::spawn(move || {
                let start = Instant::now();
                let outcome = run_one(&test, index, &environment);
                // The receiver outlives every test.
                let _ = sender.send((index, test, outcome, start.elapsed()));
            });
        }
        let Ok((index, test, outcome, took)) = ended.recv() else {
            break;
        };
        free += needs(&test, jobs);
        ended_count += 1;
        say(&test, &outcome, took);
        outcomes[index] = Some(outcome);
    }
    let _ = std::panic::take_hook();
    tests
        .iter()
        .cloned()
        .zip(outcomes.into_iter().flatten())
        .collect()
}

fn needs(test: &Test, jobs: u32) -> u32 {
    test.guests.clamp(1, jobs)
}

fn say(test: &Test, outcome: &Outcome, took: Duration) {
    let seconds = took.as_secs_f32();
    match outcome {
        Outcome::Passed => println!("pass  {} ({seconds:.1} s)", test.title()),
        Outcome::Skipped(_) => println!("skip  {}", test.title()),
        Outcome::Failed { reason, directory } => {
            println!("FAIL  {} ({seconds:.1} s)", test.title());
            for line in reason.lines() {
                println!("      {line}");
            }
            println!("      directory: {}", directory.display());
        }
    }
}

fn run_one(test: &Test, index: usize, environment: &Arc<Environment>) -> Outcome {
    if test.full && !environment.full() {
        return Outcome::Skipped("takes very long: only with --full".to_owned());
    }
    let directory = match environment.test_directory(index, test) {
        Ok(directory) => directory,
        Err(error) => {
            return Outcome::Failed {
                reason: format!("{error:#}"),
                directory: environment.out().to_owned(),
            };
        }
    };
    let deadline = Instant::now() + test.within;
    let context = Context::new(
        environment.clone(),
        directory.clone(),
        deadline,
        test.driver,
    );
    let body = test.body;
    let (sender, result) = channel();
    let thread = std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| body(&context)));
        let outcome = match result {
            Ok(Ok(())) => Ok(None),
            Ok(Err(error)) => match error.downcast::<Skip>() {
                Ok(skip) => Ok(Some(skip.0)),
                Err(error) => Err(format!("{error:#}")),
            },
            Err(panic) => Err(message(panic.as_ref())),
        };
        // After the deadline nobody listens.
        let _ = sender.send(outcome);
    });
    let outcome = match result.recv_timeout(test.within) {
        Ok(Ok(None)) => {
            let _ = thread.join();
            match leftovers::clear(&directory, GRACE).as_slice() {
                [] => Ok(Outcome::Passed),
                left => Err(format!("left running: {}", left.join("; "))),
            }
        }
        Ok(Ok(Some(why))) => Ok(Outcome::Skipped(why)),
        Ok(Err(reason)) => Err(reason),
        Err(RecvTimeoutError::Disconnected) => Err("the test's thread vanished".to_owned()),
        Err(RecvTimeoutError::Timeout) => {
            let killed = leftovers::clear(&directory, Duration::ZERO);
            let said = match result.recv_timeout(UNWIND) {
                Ok(Err(reason)) => reason,
                _ => String::new(),
            };
            Err(format!(
                "not over after {} s; killed: {}\n{said}",
                test.within.as_secs(),
                killed.join("; ")
            ))
        }
    };
    leftovers::clear(&directory, Duration::ZERO);
    match outcome {
        Ok(outcome) => {
            environment.drop_directory(&directory);
            outcome
        }
        Err(reason) => {
            note(&directory, &reason);
            Outcome::Failed { reason, directory }
        }
    }
}

/// The reason lies with the rest of what there is to see.
fn note(directory: &Path, reason: &str) {
    // It was also said on standard output.
    let _ = std::fs::write(directory.join("reason"), reason);
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    format!("{}: {text}", PLACE.take())
}
