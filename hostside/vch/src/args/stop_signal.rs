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
    fn every_signal_has_a_name_that_is_read_again() {
        for number in 1..=31 {
            assert_eq!(name(number).parse(), Ok(StopSignal(number)));
        }
        let refused = "SIGNOTHING".parse::<StopSignal>();
        assert_eq!(refused, Err("invalid signal: SIGNOTHING".to_owned()));
    }
}
