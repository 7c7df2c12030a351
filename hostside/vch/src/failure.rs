//! What `vch` says and exits with when it does not exit with a process's own status.

use std::fmt;

/// `docker run`'s status for everything that is not the process's doing.
pub const DAEMON: u8 = 125;
/// The program cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program does not exist.
pub const NOT_FOUND: u8 = 127;

/// A sentence and a status.
#[derive(Debug)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// What failed, on what, why, and what to do.
    pub error: anyhow::Error,
    /// The last lines of the guest's console, where they say more.
    pub console: Vec<String>,
}

impl Failure {
    /// With a status.
    pub fn new(status: u8, error: impl Into<anyhow::Error>) -> Self {
        Self {
            status,
            error: error.into(),
            console: Vec::new(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(DAEMON, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vch: {:#}.", self.error)?;
        if !self.console.is_empty() {
            f.write_str("\nThe guest's console ended with:")?;
            for line in &self.console {
                write!(f, "\n  | {line}")?;
            }
        }
        Ok(())
    }
}

/// The last `count` lines of a console, without what a terminal would not show.
pub fn last_lines(console: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(console);
    let mut lines: Vec<String> = text
        .lines()
        .rev()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control() || *c == '\t')
                .collect::<String>()
        })
        .filter(|line| !line.trim().is_empty())
        .take(count)
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_failure_is_a_sentence_and_the_consoles_last_lines() {
        let mut failure = Failure::new(DAEMON, anyhow!("low").context("high"));
        assert_eq!(failure.to_string(), "vch: high: low.");
        failure.console = last_lines(b"one\r\n\n\x1b[31mtwo\xff\r\nthree", 2);
        assert_eq!(
            failure.to_string(),
            "vch: high: low.\nThe guest's console ended with:\n  | [31mtwo\u{fffd}\n  | three"
        );
    }
}
