//! What the tests of this crate share: a writer of tar streams that can also write wrong ones, a reader
//! of ext4 that knows nothing of the crate's writer, image layouts, and the tools used as oracles.
#![allow(dead_code)]

pub mod ext4;
pub mod layout;
pub mod tar;

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool; `None`, with the reason printed, if it is not installed.
pub fn run(program: &str, args: &[&str]) -> Option<Output> {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    match Command::new(program).args(args).env("PATH", path).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {program} cannot be run here: {error}");
            None
        }
    }
}

/// The error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

/// Panics unless `e2fsck -fn` finds the filesystem in the raw file `disk` clean.
pub fn assert_clean(disk: &Path) {
    let Some(output) = run("e2fsck", &["-fn", disk.to_str().unwrap()]) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "e2fsck: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What `debugfs` prints for `request`.
pub fn debugfs(disk: &Path, request: &str) -> Option<String> {
    let output = run("debugfs", &["-R", request, disk.to_str().unwrap()])?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
