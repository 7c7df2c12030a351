//! Signals by name or number (`signal(7)`, x86-64).

use std::str::FromStr;

/// Names of 1 to 31, in order.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const OTHER_NAMES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// glibc's and musl's first real-time signal; the kernel's own is 32.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(pub u8);

impl StopSignal {
    /// SIGTERM.
    pub const TERM: Self = Self(15);
}

impl FromStr for StopSignal {
    type Err = String;

    /// A number, or a name with or without `SIG`, in either case; `RTMIN+n` and `RTMAX-n` too.
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |text: &str| text.parse::<u8>().ok();
        let number = if let Ok(number) = text.parse::<u8>() {
            Some(number)
        } else if let Some(place) = NAMES.iter().position(|&known| known == name) {
            Some(place as u8 + 1)
        } else if let Some((_, number)) = OTHER_NAMES.iter().find(|(known, _)| *known == name) {
            Some(*number)
        } else if let Some(rest) = name.strip_prefix("RTMIN") {
            match rest.strip_prefix('+') {
                Some(rest) => offset(rest).and_then(|n| RTMIN.checked_add(n)),
                None => rest.is_empty().then_some(RTMIN),
            }
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            match rest.strip_prefix('-') {
                Some(rest) => offset(rest)
                    .and_then(|n| RTMAX.checked_sub(n))
                    .filter(|&n| n >= RTMIN),
                None => rest.is_empty().then_some(RTMAX),
            }
        } else {
            None
        };
        number
            .filter(|number| (1..=RTMAX).contains(number))
            .map(Self)
            .ok_or_else(|| format!("invalid signal: {text}"))
    }
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
    fn every_signal_has_a_number_and_a_name() {
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
            assert_eq!(
                text.parse::<StopSignal>().ok().map(|s| s.0),
                expected,
                "{text}"
            );
        }
        for number in 1..=31 {
            assert_eq!(name(number).parse(), Ok(StopSignal(number)));
        }
    }
}
