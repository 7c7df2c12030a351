//! What takes long is shown, on a terminal's standard error only.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// One line that says what is being done; gone when dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows a spinner, or nothing when standard error is no terminal.
    pub fn spinner(what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Says something else; with a number of bytes it becomes a bar.
    pub fn phase(&self, what: String, bytes: Option<u64>) {
        self.0.set_message(what);
        if self.0.is_hidden() {
            return;
        }
        if let Some(bytes) = bytes {
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
            );
            if let Ok(style) = style {
                self.0.set_style(style);
            }
            self.0.set_length(bytes);
        } else {
            self.0.set_style(ProgressStyle::default_spinner());
            self.0.unset_length();
        }
        self.0.set_position(0);
    }

    /// So many bytes more.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
