//! What QEMU's log says of how its guest ended: QEMU writes it as it happens
//! (`-trace`, see `argv`), so it is there when no controller was.

use hypervisor::StopCause;

/// How much of the end of a log is read.
pub const TAIL: u64 = 64 << 10;

/// QEMU's `ShutdownCause` for a guest's power off, as the trace writes it
/// (`qapi/run-state.json`; the order is ABI since 4.0).
const GUEST_SHUTDOWN: &str = "6";

/// Why a QEMU that kept its guest after its end (`-action shutdown=pause`)
/// did so.
pub fn shutdown_cause(log: &str) -> StopCause {
    // A reset turned into a shutdown (`reboot=shutdown`) sets the state
    // without a request; everything else requests first.
    match last_request(log) {
        Some(GUEST_SHUTDOWN) => StopCause::GuestShutdown,
        Some(_) => StopCause::PoweredOff,
        None if log.contains(":runstate_set ") => StopCause::GuestReset,
        // A QEMU built without traces.
        None => StopCause::GuestShutdown,
    }
}

/// Why a machine whose QEMU is gone went off.
pub fn vanished_cause(log: &str, ending: &str) -> StopCause {
    match last_state(log) {
        Some("shutdown") => shutdown_cause(log),
        Some("guest-panicked") => StopCause::GuestPanic,
        _ => {
            let detail = match last_words(log) {
                Some(words) => format!("QEMU {ending}: {words}"),
                None => format!("QEMU {ending}"),
            };
            StopCause::HypervisorFailed { detail }
        }
    }
}

/// The last thing QEMU said that is no trace: its last message, which begins
/// with the time (`-msg timestamp=on`) and may go on for some lines.
pub fn last_words(log: &str) -> Option<String> {
    let mut words: Vec<&str> = Vec::new();
    for line in log.lines().rev().filter(|line| !is_trace(line)).take(4) {
        if line.trim().is_empty() {
            continue;
        }
        match line.split_once(' ') {
            Some((time, message)) if time.len() >= 20 && time.ends_with('Z') => {
                words.push(
                    message
                        .strip_prefix("qemu-system-x86_64: ")
                        .unwrap_or(message),
                );
                break;
            }
            _ => words.push(line),
        }
    }
    words.reverse();
    let words = words.join("; ");
    (!words.is_empty()).then(|| words.chars().take(500).collect())
}

/// `PID@SECONDS.MICROSECONDS:name ...`
fn is_trace(line: &str) -> bool {
    let Some((pid, rest)) = line.split_once('@') else {
        return false;
    };
    let Some((time, _)) = rest.split_once(':') else {
        return false;
    };
    !pid.is_empty()
        && pid.bytes().all(|b| b.is_ascii_digit())
        && time.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// The reason of the last shutdown request of this run of the guest.
fn last_request(log: &str) -> Option<&str> {
    log.lines()
        .rev()
        .filter(|line| is_trace(line))
        .find_map(|line| {
            Some(
                line.split_once(":qemu_system_shutdown_request reason=")?
                    .1
                    .trim(),
            )
        })
}

/// The last state the guest was in.
fn last_state(log: &str) -> Option<&str> {
    log.lines()
        .rev()
        .filter(|line| is_trace(line))
        .find_map(|line| {
            let (_, new) = line
                .split_once(":runstate_set ")?
                .1
                .split_once("new_state ")?;
            Some(new.split_once('(')?.1.split_once(')')?.0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "31179@1795447134.582674:runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n";
    const OFF: &str =
        "31179@1.2:runstate_set current_run_state 9 (running) new_state 11 (shutdown)\n";
    const PANIC: &str =
        "31179@1.2:runstate_set current_run_state 9 (running) new_state 15 (guest-panicked)\n";

    #[test]
    fn a_log_tells_how_a_guest_ended() {
        let failed = |detail: &str| StopCause::HypervisorFailed {
            detail: detail.into(),
        };
        let request =
            |reason: u32| format!("31179@1.1:qemu_system_shutdown_request reason={reason}\n");
        let term = "2026-11-23T15:00:00.123456Z qemu-system-x86_64: terminating on signal 15 from pid 9 (sh)\n";
        let cases = [
            (
                format!("{START}{}{OFF}", request(6)),
                StopCause::GuestShutdown,
            ),
            (format!("{START}{OFF}"), StopCause::GuestReset),
            (format!("{START}{PANIC}"), StopCause::GuestPanic),
            (
                format!("{START}{PANIC}{}", request(2)),
                StopCause::GuestPanic,
            ),
            (START.into(), failed("QEMU is gone")),
            (
                format!("{START}{term}{}", request(4)),
                failed("QEMU is gone: terminating on signal 15 from pid 9 (sh)"),
            ),
            (String::new(), failed("QEMU is gone")),
            (
                "\u{fffd}@:\n@\n1@2\n".into(),
                failed("QEMU is gone: \u{fffd}@:; @; 1@2"),
            ),
        ];
        for (log, expected) in cases {
            assert_eq!(vanished_cause(&log, "is gone"), expected, "{log}");
        }
    }

    #[test]
    fn a_message_of_several_lines_is_told_whole() {
        let log = "2026-11-23T15:00:00.123456Z qemu-system-x86_64: warning: before\n\
                   2026-11-23T15:00:00.123456Z qemu-system-x86_64: -blockdev x: Failed to get \"write\" lock\n\
                   Is another process using the image [x]?\n";
        assert_eq!(
            last_words(&format!("{START}{log}{OFF}")).unwrap(),
            "-blockdev x: Failed to get \"write\" lock; Is another process using the image [x]?"
        );
        assert_eq!(last_words(START), None);
    }

    #[test]
    fn a_guest_kept_after_its_end_tells_power_off_from_reset() {
        assert_eq!(
            shutdown_cause(&format!(
                "{START}1@1.1:qemu_system_shutdown_request reason=6\n{OFF}"
            )),
            StopCause::GuestShutdown
        );
        assert_eq!(
            shutdown_cause(&format!("{START}{OFF}")),
            StopCause::GuestReset
        );
        assert_eq!(shutdown_cause(""), StopCause::GuestShutdown);
    }
}
