//! VMware's telnet option 232: what a virtual machine and its serial port's proxy say to each other.
//!
//! Source: "Using a Proxy with vSphere Virtual Serial Ports" of the vSphere Web Services SDK. A message is
//! a subnegotiation of the option: one byte of command, then its parameters without separators.

use super::telnet::{encode_subnegotiation, option};

/// The commands' numbers.
mod command {
    pub const KNOWN_SUBOPTIONS_1: u8 = 0;
    pub const KNOWN_SUBOPTIONS_2: u8 = 1;
    pub const UNKNOWN_SUBOPTION_RCVD_1: u8 = 2;
    pub const UNKNOWN_SUBOPTION_RCVD_2: u8 = 3;
    pub const VMOTION_BEGIN: u8 = 40;
    pub const VMOTION_GOAHEAD: u8 = 41;
    pub const VMOTION_NOTNOW: u8 = 43;
    /// The number of [`super::Message::VmotionPeer`].
    pub const VMOTION_PEER: u8 = 44;
    pub const VMOTION_PEER_OK: u8 = 45;
    pub const VMOTION_COMPLETE: u8 = 46;
    pub const VMOTION_ABORT: u8 = 48;
    pub const DO_PROXY: u8 = 70;
    pub const WILL_PROXY: u8 = 71;
    pub const WONT_PROXY: u8 = 73;
    pub const VM_VC_UUID: u8 = 80;
    /// The number of [`super::Message::GetVmVcUuid`].
    pub const GET_VM_VC_UUID: u8 = 81;
    pub const VM_NAME: u8 = 82;
    pub const GET_VM_NAME: u8 = 83;
    pub const VM_BIOS_UUID: u8 = 84;
    /// The number of [`super::Message::GetVmBiosUuid`].
    pub const GET_VM_BIOS_UUID: u8 = 85;
    pub const VM_LOCATION_UUID: u8 = 86;
    pub const GET_VM_LOCATION_UUID: u8 = 87;
}
use command::*;
pub use command::{GET_VM_BIOS_UUID, GET_VM_VC_UUID, VMOTION_PEER};

/// The commands this end knows, as KNOWN-SUBOPTIONS-2 tells them.
pub const KNOWN: [u8; 22] = [
    KNOWN_SUBOPTIONS_1,
    KNOWN_SUBOPTIONS_2,
    UNKNOWN_SUBOPTION_RCVD_1,
    UNKNOWN_SUBOPTION_RCVD_2,
    VMOTION_BEGIN,
    VMOTION_GOAHEAD,
    VMOTION_NOTNOW,
    VMOTION_PEER,
    VMOTION_PEER_OK,
    VMOTION_COMPLETE,
    VMOTION_ABORT,
    DO_PROXY,
    WILL_PROXY,
    WONT_PROXY,
    VM_VC_UUID,
    GET_VM_VC_UUID,
    VM_NAME,
    GET_VM_NAME,
    VM_BIOS_UUID,
    GET_VM_BIOS_UUID,
    VM_LOCATION_UUID,
    GET_VM_LOCATION_UUID,
];

/// Which end of the proxied connection the virtual machine is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `C`: the service URI is to be dialled.
    Client,
    /// `S`: the service URI is to be listened on.
    Server,
}

/// One message of the option, in either direction. Sequences, secrets and lists are opaque bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The machine's list of commands.
    KnownSuboptions1(Vec<u8>),
    /// The proxy's answer to it.
    KnownSuboptions2(Vec<u8>),
    /// The machine did not know this command.
    UnknownSuboption1(u8),
    /// The proxy did not know this command.
    UnknownSuboption2(u8),
    /// A migration is to begin; the sequence names it.
    VmotionBegin(Vec<u8>),
    /// It may: the sequence, then the proxy's secret.
    VmotionGoahead(Vec<u8>),
    /// It may not now: the sequence.
    VmotionNotnow(Vec<u8>),
    /// From the target host: this connection continues the one of that sequence and secret.
    VmotionPeer(Vec<u8>),
    /// The secret was right: what the peer had said.
    VmotionPeerOk(Vec<u8>),
    /// From the target host: the machine now runs there.
    VmotionComplete(Vec<u8>),
    /// From the source host: the machine stays.
    VmotionAbort(Vec<u8>),
    /// The machine asks for its port to be proxied.
    DoProxy(Direction, String),
    /// It will be.
    WillProxy,
    /// It will not.
    WontProxy,
    /// The machine's `config.instanceUuid`; `None` where it has none or what came is not one.
    VmVcUuid(Option<[u8; 16]>),
    /// Asks for that.
    GetVmVcUuid,
    /// The machine's name.
    VmName(String),
    /// Asks for that.
    GetVmName,
    /// The machine's `config.uuid`.
    VmBiosUuid(Option<[u8; 16]>),
    /// Asks for that.
    GetVmBiosUuid,
    /// The machine's `config.locationId`, in whatever form.
    VmLocationUuid(String),
    /// Asks for that.
    GetVmLocationUuid,
    /// A command nobody has written down yet, or one whose parameters make no sense.
    Unknown(u8),
}

impl Message {
    /// Reads what lies between SB and SE after the option's number; `None` where there is no command.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let (&command, rest) = content.split_first()?;
        let bytes = || rest.to_vec();
        let text = || String::from_utf8_lossy(rest).into_owned();
        Some(match command {
            KNOWN_SUBOPTIONS_1 => Self::KnownSuboptions1(bytes()),
            KNOWN_SUBOPTIONS_2 => Self::KnownSuboptions2(bytes()),
            UNKNOWN_SUBOPTION_RCVD_1 | UNKNOWN_SUBOPTION_RCVD_2 => match rest {
                [code] if command == UNKNOWN_SUBOPTION_RCVD_1 => Self::UnknownSuboption1(*code),
                [code] => Self::UnknownSuboption2(*code),
                _ => Self::Unknown(command),
            },
            VMOTION_BEGIN => Self::VmotionBegin(bytes()),
            VMOTION_GOAHEAD => Self::VmotionGoahead(bytes()),
            VMOTION_NOTNOW => Self::VmotionNotnow(bytes()),
            VMOTION_PEER => Self::VmotionPeer(bytes()),
            VMOTION_PEER_OK => Self::VmotionPeerOk(bytes()),
            VMOTION_COMPLETE => Self::VmotionComplete(bytes()),
            VMOTION_ABORT => Self::VmotionAbort(bytes()),
            DO_PROXY => match rest.split_first() {
                Some((b'C', uri)) => Self::DoProxy(Direction::Client, lossy(uri)),
                Some((b'S', uri)) => Self::DoProxy(Direction::Server, lossy(uri)),
                _ => Self::Unknown(command),
            },
            WILL_PROXY => Self::WillProxy,
            WONT_PROXY => Self::WontProxy,
            VM_VC_UUID => Self::VmVcUuid(parse_uuid(rest)),
            GET_VM_VC_UUID => Self::GetVmVcUuid,
            VM_NAME => Self::VmName(text()),
            GET_VM_NAME => Self::GetVmName,
            VM_BIOS_UUID => Self::VmBiosUuid(parse_uuid(rest)),
            GET_VM_BIOS_UUID => Self::GetVmBiosUuid,
            VM_LOCATION_UUID => Self::VmLocationUuid(text()),
            GET_VM_LOCATION_UUID => Self::GetVmLocationUuid,
            _ => Self::Unknown(command),
        })
    }

    /// Appends the message as it travels. [`Message::Unknown`] is its command without parameters.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (command, parameters) = self.content();
        let mut content = vec![command];
        content.extend(parameters);
        encode_subnegotiation(option::VMWARE, &content, out);
    }

    fn content(&self) -> (u8, Vec<u8>) {
        match self {
            Self::KnownSuboptions1(list) => (KNOWN_SUBOPTIONS_1, list.clone()),
            Self::KnownSuboptions2(list) => (KNOWN_SUBOPTIONS_2, list.clone()),
            Self::UnknownSuboption1(code) => (UNKNOWN_SUBOPTION_RCVD_1, vec![*code]),
            Self::UnknownSuboption2(code) => (UNKNOWN_SUBOPTION_RCVD_2, vec![*code]),
            Self::VmotionBegin(sequence) => (VMOTION_BEGIN, sequence.clone()),
            Self::VmotionGoahead(cookie) => (VMOTION_GOAHEAD, cookie.clone()),
            Self::VmotionNotnow(sequence) => (VMOTION_NOTNOW, sequence.clone()),
            Self::VmotionPeer(cookie) => (VMOTION_PEER, cookie.clone()),
            Self::VmotionPeerOk(cookie) => (VMOTION_PEER_OK, cookie.clone()),
            Self::VmotionComplete(sequence) => (VMOTION_COMPLETE, sequence.clone()),
            Self::VmotionAbort(sequence) => (VMOTION_ABORT, sequence.clone()),
            Self::DoProxy(direction, uri) => {
                let letter = match direction {
                    Direction::Client => b'C',
                    Direction::Server => b'S',
                };
                (DO_PROXY, [&[letter], uri.as_bytes()].concat())
            }
            Self::WillProxy => (WILL_PROXY, Vec::new()),
            Self::WontProxy => (WONT_PROXY, Vec::new()),
            Self::VmVcUuid(uuid) => (VM_VC_UUID, write_uuid(*uuid)),
            Self::GetVmVcUuid => (GET_VM_VC_UUID, Vec::new()),
            Self::VmName(name) => (VM_NAME, name.clone().into_bytes()),
            Self::GetVmName => (GET_VM_NAME, Vec::new()),
            Self::VmBiosUuid(uuid) => (VM_BIOS_UUID, write_uuid(*uuid)),
            Self::GetVmBiosUuid => (GET_VM_BIOS_UUID, Vec::new()),
            Self::VmLocationUuid(text) => (VM_LOCATION_UUID, text.clone().into_bytes()),
            Self::GetVmLocationUuid => (GET_VM_LOCATION_UUID, Vec::new()),
            Self::Unknown(command) => (*command, Vec::new()),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a UUID as ESXi writes it, `50 12 af … -9c …`: 32 hexadecimal digits among spaces and hyphens, in
/// the order of the API's `instanceUuid` and `uuid`.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut digits = text
        .iter()
        .filter(|byte| !matches!(byte, b' ' | b'-' | 0))
        .map(|byte| char::from(*byte).to_digit(16).map(|digit| digit as u8));
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    digits.next().is_none().then_some(uuid)
}

fn write_uuid(uuid: Option<[u8; 16]>) -> Vec<u8> {
    let Some(uuid) = uuid else {
        return Vec::new();
    };
    let half = |bytes: &[u8]| {
        let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        pairs.join(" ")
    };
    format!("{}-{}", half(&uuid[..8]), half(&uuid[8..])).into_bytes()
}

/// The machine that a service URI names, as `channel/5012af03-0405-0607-0809-0a0b0c0d0eff` does: a machine that was
/// forked may say its source's UUID, or one that nobody here knows yet.
pub fn named_machine(uri: &str) -> Option<[u8; 16]> {
    let uri = uri.trim_matches(['\0', ' ']);
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let (_, machine) = rest.split_once('/')?;
    parse_uuid(machine.as_bytes())
}

/// The name in a service URI, by which the ports of a machine differ: `channel`, `telnet://channel` and
/// `tcp://channel:2377/` all name `channel`.
pub fn service_name(uri: &str) -> &str {
    let uri = uri.trim_matches(['\0', ' ']);
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.split([':', '/']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: [u8; 16] = [
        0x50, 0x12, 0xaf, 0x03, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff,
    ];

    #[test]
    fn messages_are_the_bytes_that_vmware_documents() {
        let check = |message: Message, line: &[u8]| {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(out, line, "{message:?}");
            let content = &line[3..line.len() - 2];
            assert_eq!(Message::parse(content), Some(message));
        };
        check(
            Message::DoProxy(Direction::Server, "telnet://example.com".into()),
            b"\xff\xfa\xe8\x46Stelnet://example.com\xff\xf0",
        );
        check(Message::WillProxy, b"\xff\xfa\xe8\x47\xff\xf0");
        check(Message::WontProxy, b"\xff\xfa\xe8\x49\xff\xf0");
        check(Message::GetVmVcUuid, b"\xff\xfa\xe8\x51\xff\xf0");
        check(
            Message::VmVcUuid(Some(UUID)),
            b"\xff\xfa\xe8\x5050 12 af 03 04 05 06 07-08 09 0a 0b 0c 0d 0e ff\xff\xf0",
        );
        check(
            Message::VmotionBegin(vec![1, 2]),
            b"\xff\xfa\xe8\x28\x01\x02\xff\xf0",
        );
        check(
            Message::VmotionGoahead(vec![1]),
            b"\xff\xfa\xe8\x29\x01\xff\xf0",
        );
        check(
            Message::VmotionNotnow(vec![1]),
            b"\xff\xfa\xe8\x2b\x01\xff\xf0",
        );
        check(
            Message::VmotionPeer(vec![1]),
            b"\xff\xfa\xe8\x2c\x01\xff\xf0",
        );
        check(
            Message::VmotionPeerOk(vec![1]),
            b"\xff\xfa\xe8\x2d\x01\xff\xf0",
        );
        check(
            Message::VmotionComplete(vec![1]),
            b"\xff\xfa\xe8\x2e\x01\xff\xf0",
        );
        check(
            Message::VmotionAbort(vec![1]),
            b"\xff\xfa\xe8\x30\x01\xff\xf0",
        );
        check(
            Message::UnknownSuboption2(99),
            b"\xff\xfa\xe8\x03\x63\xff\xf0",
        );
    }

    #[test]
    fn uuids_are_read_and_nonsense_is_not() {
        let check =
            |text: &str, expected| assert_eq!(parse_uuid(text.as_bytes()), expected, "{text}");
        check(
            "50 12 af 03 04 05 06 07-08 09 0a 0b 0c 0d 0e ff",
            Some(UUID),
        );
        check("5012AF03-0405-0607-0809-0a0b0c0d0eff", Some(UUID));
        check("", None);
        check("50 12", None);
        check("50 12 af 03 04 05 06 07-08 09 0a 0b 0c 0d 0e ff 00", None);
        check("zz 12 af 03 04 05 06 07-08 09 0a 0b 0c 0d 0e ff", None);
    }

    #[test]
    fn a_service_is_named_with_or_without_a_scheme() {
        for uri in [
            "channel",
            "telnet://channel",
            "tcp://channel:2377",
            "channel:1/x",
            "channel\0",
        ] {
            assert_eq!(service_name(uri), "channel", "{uri}");
        }
        assert_eq!(service_name(""), "");
        assert_eq!(service_name("://"), "");
    }

    #[test]
    fn a_service_uri_may_name_its_machine() {
        for uri in [
            "channel/5012af03-0405-0607-0809-0a0b0c0d0eff",
            "tcp://channel:2377/5012AF030405060708090a0b0c0d0eff\0",
        ] {
            assert_eq!(named_machine(uri), Some(UUID), "{uri}");
            assert_eq!(service_name(uri), "channel", "{uri}");
        }
        for uri in [
            "channel",
            "channel/",
            "channel/x",
            "channel/5012",
            "telnet://channel",
            "",
        ] {
            assert_eq!(named_machine(uri), None, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn any_content_is_read_and_says_the_same_when_it_is_written_again(
            content in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let Some(message) = Message::parse(&content) else {
                prop_assert!(content.is_empty());
                return Ok(());
            };
            let (command, parameters) = message.content();
            prop_assert_eq!(command, content[0]);
            let again = [&[command], &parameters[..]].concat();
            prop_assert_eq!(Message::parse(&again).map(|m| m.content()), Some(message.content()));
        }
    }
}
