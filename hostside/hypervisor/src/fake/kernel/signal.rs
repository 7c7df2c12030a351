//! Signals: numbers, names, and what they do to who does not care (signal(7),
//! x86-64).

/// Hangup.
pub const HUP: u8 = 1;
/// ^C.
pub const INT: u8 = 2;
/// ^\.
pub const QUIT: u8 = 3;
/// Cannot be caught.
pub const KILL: u8 = 9;
/// Nobody reads.
pub const PIPE: u8 = 13;
/// Please end.
pub const TERM: u8 = 15;
/// A child ended.
pub const CHLD: u8 = 17;
/// Go on.
pub const CONT: u8 = 18;
/// Cannot be caught.
pub const STOP: u8 = 19;
/// ^Z.
pub const TSTP: u8 = 20;
/// Reads from the background.
pub const TTIN: u8 = 21;
/// Writes from the background.
pub const TTOU: u8 = 22;
/// Something urgent came.
pub const URG: u8 = 23;
/// The window changed its size.
pub const WINCH: u8 = 28;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "POLL", "PWR", "SYS",
];

/// What a signal does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ends the process.
    Terminate,
    /// Nothing.
    Ignore,
    /// Stops it.
    Stop,
    /// Lets it go on.
    Continue,
}

/// What a signal does by itself.
pub fn action(signal: u8) -> Action {
    match signal {
        CHLD | URG | WINCH => Action::Ignore,
        STOP | TSTP | TTIN | TTOU => Action::Stop,
        CONT => Action::Continue,
        _ => Action::Terminate,
    }
}

/// A signal by number or name, with or without `SIG`, in any case; 0 is none.
pub fn parse(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse::<u8>() {
        return (number <= 64).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match name {
        "EXIT" => Some(0),
        "IO" => Some(29),
        "CLD" => Some(CHLD),
        _ => NAMES
            .iter()
            .position(|known| *known == name)
            .and_then(|at| u8::try_from(at + 1).ok()),
    }
}

/// Its name without `SIG`.
pub fn name(signal: u8) -> Option<&'static str> {
    NAMES.get(usize::from(signal).checked_sub(1)?).copied()
}

/// What a shell says of a child that ended so.
pub fn sentence(signal: u8) -> &'static str {
    match signal {
        HUP => "Hangup",
        INT => "",
        QUIT => "Quit",
        6 => "Aborted",
        KILL => "Killed",
        10 => "User defined signal 1",
        11 => "Segmentation fault",
        12 => "User defined signal 2",
        PIPE => "",
        14 => "Alarm clock",
        TERM => "Terminated",
        _ => "Killed by a signal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_known() {
        for (text, number) in [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigusr1", Some(10)),
            ("9", Some(9)),
            ("0", Some(0)),
            ("65", None),
            ("NONE", None),
            ("SYS", Some(31)),
            ("WINCH", Some(28)),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
        assert_eq!(name(15), Some("TERM"));
        assert_eq!(name(0), None);
    }
}
