//! Processes that belong to a test.
//!
//! Everything a test starts inherits [`MARK`] in its environment, with the test's directory as its
//! value; a QEMU that was started with an environment of its own still works below that directory.
//! Nothing else is ever killed.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The variable that marks a test's processes.
pub const MARK: &str = "QEMU_TESTS_DIRECTORY";

/// A process of a test, held so that its id cannot become another's.
#[derive(Debug)]
struct Found {
    handle: OwnedFd,
    what: String,
}

impl Found {
    /// Whether it is gone by then.
    fn ended_by(&self, when: Instant) -> bool {
        loop {
            let left = when.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(count) => return count > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The processes of the tests in and below `directory`, without this one.
fn find(directory: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&number: &i32| number != std::process::id() as i32)
        .filter_map(|number| {
            let handle = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
            let process = Path::new("/proc").join(number.to_string());
            // Asked after it is held: what is read is of the process that is held.
            belongs(&process, directory).then(|| Found {
                handle,
                what: format!("{number} ({})", command(&process)),
            })
        })
        .collect()
}

fn belongs(process: &Path, directory: &Path) -> bool {
    let prefix = [MARK.as_bytes(), b"="].concat();
    let marked = std::fs::read(process.join("environ")).is_ok_and(|environment| {
        environment
            .split(|&b| b == 0)
            .filter_map(|entry| entry.strip_prefix(&prefix[..]))
            .any(|value| Path::new(OsStr::from_bytes(value)).starts_with(directory))
    });
    marked
        || std::fs::read_link(process.join("cwd"))
            .is_ok_and(|place| !place.as_os_str().is_empty() && place.starts_with(directory))
}

fn command(process: &Path) -> String {
    let text = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).replace('\0', " ");
    text.trim_end().chars().take(120).collect()
}

/// Waits a moment for the test's processes to end by themselves, kills those that do not and says
/// what they were.
pub fn clear(directory: &Path, grace: Duration) -> Vec<String> {
    let mut killed = Vec::new();
    let until = Instant::now() + grace;
    loop {
        let found: Vec<Found> = find(directory)
            .into_iter()
            .filter(|process| !process.ended_by(until))
            .collect();
        if found.is_empty() {
            return killed;
        }
        for process in &found {
            let sent = pidfd_send_signal(&process.handle, Signal::KILL);
            let gone = process.ended_by(Instant::now() + Duration::from_secs(10));
            killed.push(process.what.clone());
            if sent.is_err() || !gone {
                // A zombie of this process's own is reaped by whoever waits for it.
                return killed;
            }
        }
    }
}

/// Ends this program, and every process of every test below `directory`, when it is told to end.
///
/// # Errors
/// The kernel refuses a handler.
pub fn clear_when_told(directory: &Path) -> std::io::Result<()> {
    use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let directory = directory.to_owned();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let killed = clear(&directory, Duration::ZERO);
            eprintln!("qemu-tests: told to end; killed: {}", killed.join("; "));
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
