//! Signals by name or number (`signal(7)`, x86-64), in Docker's words.

/// Names of 1 to 31, in order.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const OTHER_NAMES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// The C library's first real-time signal.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// SIGKILL.
pub const KILL: u8 = 9;
/// SIGTERM.
pub const TERM: u8 = 15;

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid signal: {0}")]
pub struct InvalidSignal(String);

/// The number of a signal: a number, or a name with or without `SIG` in either case; `RTMIN+n` and
/// `RTMAX-n` too.
///
/// # Errors
/// [`InvalidSignal`].
pub fn parse(text: &str) -> Result<u8, InvalidSignal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = || {
        if let Some(place) = NAMES.iter().position(|&known| known == name) {
            return u8::try_from(place + 1).ok();
        }
        if let Some((_, number)) = OTHER_NAMES.iter().find(|(known, _)| *known == name) {
            return Some(*number);
        }
        if let Some(rest) = name.strip_prefix("RTMIN") {
            return match rest.strip_prefix('+') {
                Some(offset) => RTMIN.checked_add(offset.parse().ok()?),
                None => rest.is_empty().then_some(RTMIN),
            };
        }
        let rest = name.strip_prefix("RTMAX")?;
        let number = match rest.strip_prefix('-') {
            Some(offset) => RTMAX.checked_sub(offset.parse().ok()?),
            None => rest.is_empty().then_some(RTMAX),
        };
        number.filter(|number| *number >= RTMIN)
    };
    let number = text.parse::<u8>().ok().or_else(named);
    number
        .filter(|number| (1..=RTMAX).contains(number))
        .ok_or_else(|| InvalidSignal(text.chars().take(80).collect()))
}

/// What a signal is called, for sentences.
pub fn name(signal: u8) -> String {
    match signal {
        1..=31 => format!("SIG{}", NAMES[usize::from(signal) - 1]),
        _ => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_number_and_names() {
        let cases = [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigusr1", Some(10)),
            ("SIGPOLL", Some(29)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("64", Some(64)),
            ("0", None),
            ("65", None),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("SIGNOTHING", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).ok(), expected, "{text:?}");
        }
    }
}
