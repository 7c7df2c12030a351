//! Tests that boot real guests, and the harness that runs them.
//!
//! # Two levels
//!
//! Most tests are black boxes: they run `vch` as a user does ([`vch`]) and look at its output, its
//! exit status and what it leaves behind. What the command line has no word for (fifty execs at
//! once, a channel that lies, a reader that stops) is done with the QEMU driver and the link
//! directly ([`machine`]).
//!
//! # How a test is added
//!
//! A test is a function that takes a [`Context`](harness::Context), and an entry in its group's
//! table in `tests/`. Its name is a sentence. It reads as a script:
//!
//! ```ignore
//! fn false_is_one(t: &Context) -> Result<()> {
//!     t.run(["false"]).done()?.status(1).stdout("");
//!     Ok(())
//! }
//! ```
//!
//! What is claimed is asserted, by panic, with everything the process said in the message; what
//! the harness itself cannot do is an error (`?`). What this machine lacks is a
//! [`skip`](harness::skip) with its reason, never a pass. A guest's script ends by printing
//! `done`: [`Run::script`](vch::Run::script) adds it and asks for it, so one that ended early
//! cannot pass. Booting a guest costs seconds in emulation, so one guest may answer several
//! questions where they do not disturb each other. Nothing sleeps: a test waits for a line, a
//! prompt, an exit.
//!
//! # What the harness does
//!
//! It runs as many guests at once as there are processors, gives each test a directory (its state
//! directory, and the command line, output and error output of each `vch` it ran), a deadline, and
//! the name of that directory in its environment. Whatever is found running with that mark when
//! the test is over is killed, by process id; if the test passed otherwise, that alone fails it.
//! The last line is `N passed, N failed, N skipped`.
//!
//! # How a failing test is debugged
//!
//! * `qemu-tests 'part of its name' --jobs 1`: alone.
//! * Its directory is named beside the failure and kept: `1.argv`, `1.stdout`, `1.stderr` are its
//!   first `vch`; consoles and QEMU's own log are below `state/runs/`.
//! * The command line in `1.argv` can be run by hand in a shell; `--console` shows the kernel's log.
//! * `--keep` keeps the directories of tests that pass, too.

#![forbid(unsafe_code)]

mod archive;
mod docker;
mod environment;
mod harness;
mod lying;
mod machine;
mod random;
mod terminal;
mod tests;
mod vch;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = harness::Options::parse();
    match harness::run(options, &tests::all()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("qemu-tests: {error:#}");
            ExitCode::from(2)
        }
    }
}
