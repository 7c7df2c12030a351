//! Small files, read and written whole: /proc, /sys, control groups.

use crate::prelude::*;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Dir, Mode, OFlags, mkdirat, open};
use rustix::io::{Errno, Result, read, write};
use rustix::path::Arg;

/// A file's content. Meant for what the kernel or tether itself wrote: there is no bound.
///
/// # Errors
/// What `open(2)` and `read(2)` say.
pub fn content(path: impl Arg) -> Result<Vec<u8>> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rest(&file, usize::MAX)
}

/// What can still be read of a file, up to a bound in bytes.
///
/// # Errors
/// What `read(2)` says.
pub fn rest(file: &OwnedFd, bound: usize) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = [0; 4096];
    while content.len() < bound {
        let room = buffer.len().min(bound - content.len());
        match read(file, &mut buffer[..room]) {
            Ok(0) => break,
            Ok(length) => content.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(content)
}

/// A file's content as text; empty when it cannot be read.
pub fn text(path: impl Arg) -> String {
    let content = content(path).unwrap_or_default();
    String::from_utf8_lossy(&content).into_owned()
}

/// Makes a file this, in place: whoever has it open or mounted sees the change.
///
/// # Errors
/// What `open(2)` and `write(2)` say.
pub fn replace(path: impl Arg, mut content: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::from_raw_mode(0o644))?;
    while !content.is_empty() {
        match write(&file, content) {
            Ok(length) => content = &content[length..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes a word into a file of the kernel's, which has to be there.
///
/// # Errors
/// What `open(2)` and `write(2)` say.
pub fn tell(path: impl Arg, word: &str) -> Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, word.as_bytes()).map(drop)
}

/// The names in a directory, in no order; those that are no UTF-8 are not the kernel's.
///
/// # Errors
/// What `open(2)` and `getdents(2)` say.
pub fn names(directory: impl Arg) -> Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        if let Ok(name) = entry?.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Makes a directory, if it is not there.
///
/// # Errors
/// What `mkdir(2)` says.
pub fn make_directory(path: impl Arg) -> Result<()> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Whether something is there.
pub fn exists(path: impl Arg) -> bool {
    rustix::fs::stat(path).is_ok()
}
