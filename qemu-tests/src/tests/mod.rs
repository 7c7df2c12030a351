//! The tests, a file for each group.

mod run;

use crate::harness::Test;

/// All of them, in the order they are started.
pub fn all() -> Vec<Test> {
    [run::TESTS].concat()
}
