//! `--stop-signal`.

pub use docker_api::signals::name;
use std::str::FromStr;

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
        docker_api::signals::parse(text)
            .map(Self)
            .map_err(|_| format!("invalid signal: {text}"))
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
