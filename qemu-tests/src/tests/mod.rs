//! The tests, a file for each group.

mod boot;
mod builds;
mod exec;
mod failures;
mod flags;
mod images;
mod mute;
mod network;
mod resume;
mod run;
mod signals;
mod streams;
mod terminal;

use crate::harness::Test;

/// All of them, in the order they are started.
pub fn all() -> Vec<Test> {
    [
        run::TESTS,
        failures::TESTS,
        boot::TESTS,
        flags::TESTS,
        signals::TESTS,
        exec::TESTS,
        streams::TESTS,
        resume::TESTS,
        terminal::TESTS,
        network::TESTS,
        images::TESTS,
        builds::TESTS,
    ]
    .concat()
}
