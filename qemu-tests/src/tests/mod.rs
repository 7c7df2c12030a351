//! The tests, a file for each group.

mod boot;
mod builds;
mod docker;
mod exec;
mod failures;
mod files;
mod flags;
mod fork;
mod images;
mod mute;
mod network;
mod resume;
mod run;
mod signals;
mod streams;
mod terminal;
mod vmware;

use crate::harness::Test;

/// All of them, in the order they are started.
pub fn all() -> Vec<Test> {
    [
        run::TESTS,
        failures::TESTS,
        boot::TESTS,
        vmware::TESTS,
        fork::TESTS,
        flags::TESTS,
        signals::TESTS,
        exec::TESTS,
        files::TESTS,
        streams::TESTS,
        resume::TESTS,
        terminal::TESTS,
        network::TESTS,
        images::TESTS,
        builds::TESTS,
        &docker::all(),
    ]
    .concat()
}
