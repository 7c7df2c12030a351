//! Telnet without I/O: a parser that survives any bytes, the encoder, and the negotiation of options.
//!
//! Sources: RFC 854 (commands, the NVT's CR NUL), 855 (options), 856 (binary), 857 (echo), 858 (suppress
//! go ahead), 1143 (negotiation that cannot loop). Memory is bounded by [`SUBNEGOTIATION_MAX`].

/// "Interpret as command", RFC 854.
pub const IAC: u8 = 255;
const SE: u8 = 240;
const SB: u8 = 250;
const CR: u8 = b'\r';

/// The longest subnegotiation that is read, in bytes after unescaping: a URI and a name fit many times.
pub const SUBNEGOTIATION_MAX: usize = 4096;

/// The option numbers that are negotiated here.
pub mod option {
    /// RFC 856.
    pub const BINARY: u8 = 0;
    /// RFC 857.
    pub const ECHO: u8 = 1;
    /// RFC 858.
    pub const SUPPRESS_GO_AHEAD: u8 = 3;
    /// VMWARE-TELNET-EXT.
    pub const VMWARE: u8 = 232;
}

/// The four verbs of negotiation, RFC 854.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// The sender will use the option.
    Will = 251,
    /// The sender will not.
    Wont = 252,
    /// The receiver is asked to.
    Do = 253,
    /// The receiver is asked not to.
    Dont = 254,
}

impl Verb {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Will, Self::Wont, Self::Do, Self::Dont]
            .into_iter()
            .find(|verb| *verb as u8 == byte)
    }
}

/// What a parser found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of the stream. A run of them may come in any number of pieces.
    Data(&'a [u8]),
    /// A verb about an option.
    Negotiation(Verb, u8),
    /// The content between SB and SE, option first; it is in [`Parser::subnegotiation`].
    Subnegotiation,
}

/// A subnegotiation longer than [`SUBNEGOTIATION_MAX`]: nothing that comes after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a telnet subnegotiation of more than {SUBNEGOTIATION_MAX} bytes")]
pub struct TooLong;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Data,
    Command,
    Verb(Verb),
    Subnegotiation,
    SubnegotiationCommand,
}

/// Takes a stream of telnet apart. Commands without meaning here (NOP, GA, AYT, ...) are passed over.
#[derive(Debug)]
pub struct Parser {
    at: At,
    after_cr: bool,
    content: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            at: At::Data,
            after_cr: false,
            content: Vec::new(),
        }
    }
}

impl Parser {
    /// The next event of `input`, which is shortened by what was read; `None` when all of it was.
    /// `binary` says whether the sender's bytes are as RFC 856 has them, else CR NUL stands for CR.
    ///
    /// # Errors
    /// A subnegotiation is too long. The connection is of no more use.
    pub fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
        binary: bool,
    ) -> Result<Option<Event<'a>>, TooLong> {
        while let Some((&byte, rest)) = input.split_first() {
            match self.at {
                At::Data => {
                    if byte == IAC {
                        self.at = At::Command;
                        *input = rest;
                        continue;
                    }
                    if core::mem::take(&mut self.after_cr) && byte == 0 && !binary {
                        *input = rest;
                        continue;
                    }
                    let stop = |at: &u8| *at == IAC || (!binary && *at == CR);
                    let length = match input.iter().position(stop) {
                        Some(at) if input[at] == CR => {
                            self.after_cr = true;
                            at + 1
                        }
                        Some(at) => at,
                        None => input.len(),
                    };
                    let (data, rest) = input.split_at(length);
                    *input = rest;
                    return Ok(Some(Event::Data(data)));
                }
                At::Command => {
                    let (escaped, rest) = input.split_at(1);
                    *input = rest;
                    self.at = At::Data;
                    match byte {
                        IAC => {
                            self.after_cr = false;
                            return Ok(Some(Event::Data(escaped)));
                        }
                        SB => {
                            self.content.clear();
                            self.at = At::Subnegotiation;
                        }
                        _ => {
                            if let Some(verb) = Verb::from_byte(byte) {
                                self.at = At::Verb(verb);
                            }
                        }
                    }
                }
                At::Verb(verb) => {
                    *input = rest;
                    self.at = At::Data;
                    return Ok(Some(Event::Negotiation(verb, byte)));
                }
                At::Subnegotiation => {
                    let length = input
                        .iter()
                        .position(|at| *at == IAC)
                        .unwrap_or(input.len());
                    if self.content.len() + length > SUBNEGOTIATION_MAX {
                        return Err(TooLong);
                    }
                    let (content, rest) = input.split_at(length);
                    self.content.extend_from_slice(content);
                    *input = rest;
                    if let Some((_, rest)) = input.split_first() {
                        *input = rest;
                        self.at = At::SubnegotiationCommand;
                    }
                }
                At::SubnegotiationCommand => {
                    *input = rest;
                    match byte {
                        IAC if self.content.len() < SUBNEGOTIATION_MAX => {
                            self.content.push(IAC);
                            self.at = At::Subnegotiation;
                        }
                        IAC => return Err(TooLong),
                        SE => {
                            self.at = At::Data;
                            return Ok(Some(Event::Subnegotiation));
                        }
                        // RFC 855 has nothing else here. What was begun is given up, as most do.
                        _ => self.at = At::Data,
                    }
                }
            }
        }
        Ok(None)
    }

    /// What the last [`Event::Subnegotiation`] held: the option's number, then its own bytes.
    pub fn subnegotiation(&self) -> &[u8] {
        &self.content
    }
}

/// Appends `data` as it travels: IAC doubled and, where `binary` is not agreed on, CR as CR NUL.
pub fn encode(data: &[u8], binary: bool, out: &mut Vec<u8>) {
    let mut rest = data;
    while let Some(at) = rest
        .iter()
        .position(|byte| *byte == IAC || (!binary && *byte == CR))
    {
        let (head, tail) = rest.split_at(at + 1);
        out.extend_from_slice(head);
        out.push(if head[at] == IAC { IAC } else { 0 });
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// Appends `IAC SB option content IAC SE`.
pub fn encode_subnegotiation(option: u8, content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[IAC, SB, option]);
    encode(content, true, out);
    out.extend_from_slice(&[IAC, SE]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agreement {
    No,
    Asked,
    Yes,
}

/// One end's part of the negotiation. Each option is asked for at most once and an answer is only given
/// where it changes something, so that two ends cannot loop (RFC 1143).
#[derive(Debug)]
pub struct Options {
    local: Vec<(u8, Agreement)>,
    remote: Vec<(u8, Agreement)>,
}

impl Options {
    /// What this end is willing to do, and what it lets the other end do.
    pub fn new(local: &[u8], remote: &[u8]) -> Self {
        let of = |options: &[u8]| options.iter().map(|o| (*o, Agreement::No)).collect();
        Self {
            local: of(local),
            remote: of(remote),
        }
    }

    /// Asks for everything this end would have.
    pub fn ask(&mut self, out: &mut Vec<u8>) {
        for (sides, verb) in [(&mut self.local, Verb::Will), (&mut self.remote, Verb::Do)] {
            for (option, agreement) in sides {
                if *agreement == Agreement::No {
                    *agreement = Agreement::Asked;
                    out.extend_from_slice(&[IAC, verb as u8, *option]);
                }
            }
        }
    }

    /// Takes the other end's verb, and appends an answer where one is due.
    pub fn hear(&mut self, verb: Verb, option: u8, out: &mut Vec<u8>) {
        let (sides, yes, no) = match verb {
            Verb::Do | Verb::Dont => (&mut self.local, Verb::Will, Verb::Wont),
            Verb::Will | Verb::Wont => (&mut self.remote, Verb::Do, Verb::Dont),
        };
        let wanted = matches!(verb, Verb::Do | Verb::Will);
        let known = sides.iter_mut().find(|(known, _)| *known == option);
        let answer = match (known, wanted) {
            (None, true) => Some(no),
            (None, false) => None,
            (Some((_, agreement)), true) => {
                let before = core::mem::replace(agreement, Agreement::Yes);
                (before == Agreement::No).then_some(yes)
            }
            (Some((_, agreement)), false) => {
                let before = core::mem::replace(agreement, Agreement::No);
                (before == Agreement::Yes).then_some(no)
            }
        };
        if let Some(answer) = answer {
            out.extend_from_slice(&[IAC, answer as u8, option]);
        }
    }

    /// Whether this end does `option`.
    pub fn does(&self, option: u8) -> bool {
        self.local.contains(&(option, Agreement::Yes))
    }

    /// Whether the other end does `option`.
    pub fn other_does(&self, option: u8) -> bool {
        self.remote.contains(&(option, Agreement::Yes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything a parser makes of `pieces`: data, and the other events with where in it they stood.
    type Read = (Vec<u8>, Vec<(usize, String)>);

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, binary: bool) -> Result<Read, TooLong> {
        let (mut parser, mut data, mut others) = (Parser::default(), Vec::new(), Vec::new());
        for mut piece in pieces {
            while let Some(event) = parser.next(&mut piece, binary)? {
                match event {
                    Event::Data(bytes) => data.extend_from_slice(bytes),
                    Event::Negotiation(verb, option) => {
                        others.push((data.len(), format!("{verb:?} {option}")));
                    }
                    Event::Subnegotiation => {
                        others.push((data.len(), format!("{:?}", parser.subnegotiation())));
                    }
                }
            }
            assert!(parser.content.capacity() <= 2 * SUBNEGOTIATION_MAX);
        }
        Ok((data, others))
    }

    #[test]
    fn bytes_on_the_line_are_those_of_the_rfcs() {
        let check = |line: &[u8], binary: bool, data: &[u8], others: &[&str]| {
            let (found, events) = read([line], binary).unwrap();
            assert_eq!(found, data, "{line:?}");
            let events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
            assert_eq!(events, others, "{line:?}");
        };
        check(b"a\xff\xffb", true, b"a\xffb", &[]);
        check(b"\xff\xfb\xe8", true, b"", &["Will 232"]);
        check(
            b"a\xff\xfd\x00b\xff\xfe\x01",
            true,
            b"ab",
            &["Do 0", "Dont 1"],
        );
        check(
            b"\xff\xfa\xe8\x50ab\xff\xf0c",
            true,
            b"c",
            &["[232, 80, 97, 98]"],
        );
        check(b"\xff\xfa\xe8\xff\xff\xff\xf0", true, b"", &["[232, 255]"]);
        // NOP, GA and AYT say nothing here.
        check(b"x\xff\xf1\xff\xf9\xff\xf6y", true, b"xy", &[]);
        check(b"1\r\x002\r\n3\r", false, b"1\r2\r\n3\r", &[]);
        check(b"1\r\x002", true, b"1\r\x002", &[]);
        check(b"\r\xff\xff\x00", false, b"\r\xff\x00", &[]);
    }

    #[test]
    fn a_subnegotiation_without_an_end_is_refused_when_it_is_too_long() {
        let mut line = vec![IAC, SB, 232];
        line.extend(vec![7; SUBNEGOTIATION_MAX - 1]);
        assert!(read([&line[..]], true).is_ok());
        line.push(7);
        assert_eq!(read([&line[..]], true), Err(TooLong));
        let mut escaped = vec![IAC, SB];
        escaped.extend(vec![IAC; 2 * SUBNEGOTIATION_MAX + 2]);
        assert_eq!(read(escaped.chunks(1), true), Err(TooLong));
    }

    #[test]
    fn negotiation_ends_and_both_ends_agree() {
        use option::*;
        let mut server = Options::new(&[BINARY, ECHO], &[BINARY, VMWARE]);
        let mut client = Options::new(&[BINARY, VMWARE, 40], &[BINARY]);
        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        server.ask(&mut to_client);
        client.ask(&mut to_server);
        let mut rounds = 0;
        while !(to_client.is_empty() && to_server.is_empty()) {
            rounds += 1;
            assert!(rounds < 4, "{to_client:?} {to_server:?}");
            let talk = |line: &mut Vec<u8>, end: &mut Options, out: &mut Vec<u8>| {
                let line = core::mem::take(line);
                let (mut parser, mut input) = (Parser::default(), &line[..]);
                while let Some(event) = parser.next(&mut input, true).unwrap() {
                    match event {
                        Event::Negotiation(verb, option) => end.hear(verb, option, out),
                        other => panic!("{other:?}"),
                    }
                }
            };
            talk(&mut to_client, &mut client, &mut to_server);
            talk(&mut to_server, &mut server, &mut to_client);
        }
        for (option, by_server, by_client) in [
            (BINARY, true, true),
            (ECHO, false, false),
            (VMWARE, false, true),
            (40, false, false),
        ] {
            assert_eq!(server.does(option), by_server, "{option}");
            assert_eq!(client.other_does(option), by_server, "{option}");
            assert_eq!(client.does(option), by_client, "{option}");
            assert_eq!(server.other_does(option), by_client, "{option}");
        }
    }

    fn pieces(line: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (line.len() + 1)).collect();
        cuts.extend([0, line.len()]);
        cuts.sort_unstable();
        cuts.windows(2)
            .map(|pair| line[pair[0]..pair[1]].to_vec())
            .collect()
    }

    /// Bytes among which those with a meaning are frequent.
    fn bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
        let special = prop_oneof![
            Just(IAC),
            Just(SB),
            Just(SE),
            Just(CR),
            Just(0u8),
            Just(251u8),
            Just(232u8),
            any::<u8>()
        ];
        proptest::collection::vec(special, 0..length)
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_however_they_are_cut(
            line in bytes(600), cuts in proptest::collection::vec(any::<usize>(), 0..8), binary: bool,
        ) {
            let whole = read([&line[..]], binary);
            let pieces = pieces(&line, &cuts);
            let cut = read(pieces.iter().map(Vec::as_slice), binary);
            if let Ok((data, _)) = &whole {
                prop_assert!(data.len() <= line.len());
            }
            prop_assert_eq!(whole, cut);
        }

        #[test]
        fn what_is_encoded_is_read_back(
            parts in proptest::collection::vec((bytes(60), bytes(60)), 0..5),
            cuts in proptest::collection::vec(any::<usize>(), 0..8),
            binary: bool,
        ) {
            let (mut line, mut data, mut others) = (Vec::new(), Vec::new(), Vec::new());
            for (plain, content) in &parts {
                encode(plain, binary, &mut line);
                data.extend_from_slice(plain);
                encode_subnegotiation(232, content, &mut line);
                let mut expected = vec![232];
                expected.extend_from_slice(content);
                others.push((data.len(), format!("{expected:?}")));
            }
            let pieces = pieces(&line, &cuts);
            prop_assert_eq!(read(pieces.iter().map(Vec::as_slice), binary), Ok((data, others)));
        }
    }
}
