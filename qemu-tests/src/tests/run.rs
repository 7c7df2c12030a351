//! A process's output, input and exit status are its own.

use crate::harness::{Context, Test};
use anyhow::Result;

pub const TESTS: &[Test] = &[
    Test::new("run", "echo hello prints hello", echo_hello),
    Test::new("run", "sort sorts its input", sort),
];

fn echo_hello(t: &Context) -> Result<()> {
    t.run(["echo", "hello"]).done()?.status(0).stdout("hello\n").stderr("");
    Ok(())
}

fn sort(t: &Context) -> Result<()> {
    t.run(["sort"]).flags(["-i"]).stdin("b\na\n").done()?.status(0).stdout("a\nb\n");
    Ok(())
}
