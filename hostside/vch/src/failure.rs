//! What `vch` says and exits with when it does not exit with a process's own status.

use std::fmt;

/// `docker run`'s status for everything that is not the process's doing.
pub const DAEMON: u8 = 125;

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

/// Most characters of a console line that are shown.
const LINE: usize = 200;

/// The last `count` lines of a console, without what a terminal would obey rather than show
/// (ECMA-48 control sequences, other control characters), each cut to a readable length.
pub fn last_lines(console: &[u8], count: usize) -> Vec<String> {
    let text = plain(&String::from_utf8_lossy(console));
    let mut lines: Vec<String> = text
        .split('\n')
        .rev()
        .filter(|line| !line.trim().is_empty())
        .map(|line| match line.char_indices().nth(LINE) {
            Some((cut, _)) => format!("{}...", &line[..cut]),
            None => line.to_owned(),
        })
        .take(count)
        .collect();
    lines.reverse();
    lines
}

/// Drops control sequences. One that moves the cursor ends a line, as it does on a screen.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => match rest.next() {
                Some('[') => {
                    // CSI: parameters and intermediates, then one final byte from @ to ~.
                    let end = rest.find(|c| ('@'..='~').contains(c));
                    if matches!(end, Some('A'..='H' | 'J' | 'f')) {
                        plain.push('\n');
                    }
                }
                // OSC: up to its terminator.
                Some(']') => {
                    let _ = rest.find(|c| matches!(c, '\x07' | '\x1b' | '\n'));
                }
                _ => {}
            },
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
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
            "vch: high: low.\nThe guest's console ended with:\n  | two\u{fffd}\n  | three"
        );
    }
    #[test]
    fn a_console_drawn_like_a_screen_is_shown_in_short_plain_lines() {
        let mut console = Vec::new();
        for _ in 0..500 {
            console.extend_from_slice(
                b"\x1b[2J\x1b[01;01H\x1b[0m\x1b[37mMenu\x1b[05;10H\x1b]0;title\x07Item",
            );
        }
        console.extend(vec![b'x'; 1000]);
        let lines = last_lines(&console, 3);
        assert_eq!(lines[..2], ["Item", "Menu"]);
        assert_eq!(lines[2], format!("Item{}...", "x".repeat(LINE - 4)));
        assert!(lines.iter().all(|line| !line.contains('\x1b')));
    }
}
