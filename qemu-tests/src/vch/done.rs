//! A `vch` that ended, and what is claimed about it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The end of what is shown of an output in a failure.
const SHOWN: usize = 2000;

/// A `vch` that ended.
#[derive(Clone, Debug)]
pub struct Done {
    title: String,
    status: ExitStatus,
    /// Everything on standard output.
    pub out: Vec<u8>,
    /// Everything on standard error.
    pub err: Vec<u8>,
}

impl Done {
    pub(super) fn new(title: String, status: ExitStatus, out: Vec<u8>, err: Vec<u8>) -> Self {
        Self {
            title,
            status,
            out,
            err,
        }
    }

    #[track_caller]
    fn wrong(&self, what: &str) -> ! {
        panic!(
            "{what}\n{}\nended with {}\nstandard output: {}\nstandard error: {}",
            self.title,
            self.status,
            shown(&self.out),
            shown(&self.err)
        )
    }

    /// It exited with this status.
    #[track_caller]
    pub fn status(&self, wanted: i32) -> &Self {
        if self.status.code() != Some(wanted) {
            self.wrong(&format!("the exit status is not {wanted}"));
        }
        self
    }

    /// The signal that killed it, if one did.
    pub fn killed_by(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Standard output is exactly this.
    #[track_caller]
    pub fn stdout(&self, wanted: &str) -> &Self {
        if self.out != wanted.as_bytes() {
            self.wrong(&format!("standard output is not {wanted:?}"));
        }
        self
    }

    /// Standard error is exactly this.
    #[track_caller]
    pub fn stderr(&self, wanted: &str) -> &Self {
        if self.err != wanted.as_bytes() {
            self.wrong(&format!("standard error is not {wanted:?}"));
        }
        self
    }

    /// Standard error has this in it, capitals or not.
    #[track_caller]
    pub fn stderr_has(&self, wanted: &str) -> &Self {
        let error = self.error().to_lowercase();
        if !error.contains(&wanted.to_lowercase()) {
            self.wrong(&format!("standard error has no {wanted:?}"));
        }
        self
    }

    /// Standard error is one sentence of `vch`'s with these words in it, and perhaps the end of
    /// the guest's console below it.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        let error = self.error();
        let mut lines = error.lines();
        let sentence = lines.next().unwrap_or_default();
        if !sentence.starts_with("vch: ") || !sentence.ends_with('.') {
            self.wrong("standard error is not a sentence of vch's");
        }
        for word in words {
            if !sentence.to_lowercase().contains(&word.to_lowercase()) {
                self.wrong(&format!("the sentence does not say {word:?}"));
            }
        }
        match lines.next() {
            None => {}
            Some("The guest's console ended with:") if lines.all(|line| line.starts_with("  | ")) => {}
            Some(line) if line.starts_with("See 'vch ") => {}
            Some(_) => self.wrong("standard error has more than one sentence"),
        }
        self
    }

    /// The guest's console is shown with a line that has this in it.
    #[track_caller]
    pub fn shows_console(&self, wanted: &str) -> &Self {
        let error = self.error();
        let mut shown = error.lines().filter_map(|line| line.strip_prefix("  | "));
        if !shown.any(|line| line.contains(wanted)) {
            self.wrong(&format!("no console line has {wanted:?}"));
        }
        self
    }

    /// It was a [script](super::Run::script) and came to its end: status 0, and `done` as the last
    /// line. What it said before that.
    #[track_caller]
    pub fn finished(&self) -> String {
        self.status(0);
        let text = self.text();
        match text.strip_suffix("done\n") {
            Some(rest) if rest.is_empty() || rest.ends_with('\n') => rest.to_owned(),
            _ => self.wrong("the guest never said that it was done"),
        }
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Standard error as text.
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }
}

fn shown(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(SHOWN);
    let text = String::from_utf8_lossy(&bytes[start..]);
    match start {
        0 => format!("{text:?}"),
        _ => format!("({} bytes, ending with) {text:?}", bytes.len()),
    }
}
