//! Against a simulated host: what lies behind the port, as guest_msg_def.h and the VMX's side of rpcin.c
//! and rpcout.c have it.

use super::message::LONGEST;
use super::tools::TCLO;
use super::*;
use alloc::collections::{BTreeMap, VecDeque};
use tether_wire::message::Action;

/// A channel as the host sees it.
struct HostChannel {
    protocol: u32,
    cookie: (u32, u32),
    /// What the guest is sending: the length, and what came of it.
    sending: Option<(usize, Vec<u8>)>,
    /// What waits for the guest, and how much of it is gone.
    waiting: VecDeque<Vec<u8>>,
    taken: usize,
}

/// The host.
struct Host {
    channels: BTreeMap<u32, HostChannel>,
    next: u32,
    /// It knows no cookies.
    is_old: bool,
    /// Every so many calls one fails, as after a checkpoint.
    checkpoint_every: Option<usize>,
    calls: usize,
    /// guestinfo, and answers to other requests by their beginning.
    values: BTreeMap<String, Vec<u8>>,
    refuses: Vec<&'static [u8]>,
    /// All requests the guest made over RPCI.
    requests: Vec<Vec<u8>>,
    /// All it sent over TCLO.
    said: Vec<Vec<u8>>,
    /// What goes out to the guest over TCLO at its next sign of life, one at a time.
    orders: VecDeque<Vec<u8>>,
}

impl Host {
    fn new() -> Self {
        Self {
            channels: BTreeMap::new(),
            next: 3,
            is_old: false,
            checkpoint_every: None,
            calls: 0,
            values: BTreeMap::new(),
            refuses: Vec::new(),
            requests: Vec::new(),
            said: Vec::new(),
            orders: VecDeque::new(),
        }
    }

    fn order(&mut self, text: &str) {
        self.orders.push_back(text.as_bytes().to_vec());
    }

    /// A whole message came.
    fn arrived(&mut self, id: u32, message: Vec<u8>) {
        let channel = self.channels.get_mut(&id).unwrap();
        if channel.protocol == TCLO {
            self.said.push(message);
            channel.waiting.extend(self.orders.pop_front());
            return;
        }
        let refused = self.refuses.iter().any(|what| message.starts_with(what));
        let answer = match message.strip_prefix(b"info-get ") {
            _ if refused => b"0 Unknown command".to_vec(),
            Some(name) => match self.values.get(core::str::from_utf8(name).unwrap()) {
                Some(value) => [b"1 ", &value[..]].concat(),
                None => b"0 No value found".to_vec(),
            },
            None => b"1 ".to_vec(),
        };
        channel.waiting.push_back(answer);
        self.requests.push(message);
    }

    fn requests(&mut self) -> Vec<String> {
        let requests = core::mem::take(&mut self.requests);
        let text = |request: Vec<u8>| String::from_utf8_lossy(&request).into_owned();
        requests.into_iter().map(text).collect()
    }

    fn said(&mut self) -> Vec<String> {
        let said = core::mem::take(&mut self.said);
        let text = |message: Vec<u8>| String::from_utf8(message).unwrap();
        said.into_iter().map(text).collect()
    }

    fn message(&mut self, r: Registers) -> Registers {
        const OK: u32 = 1;
        let answer = |status: u32, about: u32, ebx: u32| Registers {
            ebx,
            ecx: status << 16 | r.ecx & 0xffff,
            edx: about << 16 | r.edx & 0xffff,
            ..r
        };
        let (kind, id) = (r.ecx >> 16, r.edx >> 16);
        if kind == 0 {
            let with_cookie = r.ebx & 0x8000_0000 != 0;
            if with_cookie && self.is_old {
                return answer(0, 0, 0);
            }
            let protocol = r.ebx & 0x7fff_ffff;
            assert!([RPCI, TCLO].contains(&protocol), "{protocol:#x}");
            let id = self.next;
            self.next += 1;
            let cookie = if with_cookie {
                (id * 77, id * 99)
            } else {
                (0, 0)
            };
            let channel = HostChannel {
                protocol,
                cookie,
                sending: None,
                waiting: VecDeque::new(),
                taken: 0,
            };
            self.channels.insert(id, channel);
            let opened = answer(OK, id, 0);
            return Registers {
                esi: cookie.0,
                edi: cookie.1,
                ..opened
            };
        }
        let Some(channel) = self.channels.get_mut(&id) else {
            return answer(4, id, 0);
        };
        if channel.cookie != (r.esi, r.edi) {
            return answer(0, id, 0);
        }
        if kind != 6
            && self
                .checkpoint_every
                .is_some_and(|every| self.calls.is_multiple_of(every))
        {
            channel.sending = None;
            channel.taken = 0;
            return answer(0x10, id, 0);
        }
        match kind {
            1 => {
                assert!(r.ebx as usize <= LONGEST);
                channel.sending = Some((r.ebx as usize, Vec::new()));
                if r.ebx == 0 {
                    channel.sending = None;
                    self.arrived(id, Vec::new());
                }
                answer(OK, id, 0)
            }
            2 => {
                let Some((length, bytes)) = &mut channel.sending else {
                    return answer(0, id, 0);
                };
                bytes.extend(r.ebx.to_le_bytes());
                if bytes.len() >= *length {
                    bytes.truncate(*length);
                    let (_, message) = channel.sending.take().unwrap();
                    self.arrived(id, message);
                }
                answer(OK, id, 0)
            }
            3 => match channel.waiting.front() {
                Some(message) => {
                    channel.taken = 0;
                    answer(OK | 2, 1, message.len() as u32)
                }
                None => answer(OK, id, 0),
            },
            4 => {
                assert!(r.ebx & !1 == 0);
                let Some(message) = channel.waiting.front() else {
                    return answer(0, id, 0);
                };
                if r.ebx == 0 {
                    channel.waiting.pop_front();
                    return answer(OK, id, 0);
                }
                let mut piece = [0; 4];
                let rest = &message[channel.taken.min(message.len())..];
                let length = rest.len().min(4);
                piece[..length].copy_from_slice(&rest[..length]);
                channel.taken += 4;
                answer(OK, 2, u32::from_le_bytes(piece))
            }
            5 => {
                let message = channel.waiting.pop_front().expect("a message was taken");
                assert!(channel.taken >= message.len(), "not all of it was taken");
                answer(OK, id, 0)
            }
            6 => {
                self.channels.remove(&id);
                answer(OK, id, 0)
            }
            other => panic!("kind {other}"),
        }
    }
}

impl Door for Host {
    fn call(&mut self, registers: Registers) -> Registers {
        assert_eq!((registers.eax, registers.edx & 0xffff), (MAGIC, PORT));
        self.calls += 1;
        match registers.ecx & 0xffff {
            GET_VERSION => Registers {
                eax: 6,
                ebx: MAGIC,
                ecx: 4,
                ..registers
            },
            30 => self.message(registers),
            other => panic!("command {other}"),
        }
    }
}

/// What answers on QEMU's port: the version, and no messages (hw/i386/vmport.c).
struct Qemu;

impl Door for Qemu {
    fn call(&mut self, registers: Registers) -> Registers {
        match registers.ecx {
            GET_VERSION => Registers {
                eax: 6,
                ebx: MAGIC,
                ecx: 2,
                ..registers
            },
            _ => registers,
        }
    }
}

/// A port that nobody is behind.
struct Nobody;

impl Door for Nobody {
    fn call(&mut self, registers: Registers) -> Registers {
        Registers {
            eax: u32::MAX,
            ..registers
        }
    }
}

#[test]
fn a_value_is_read_and_a_missing_one_is_not() {
    for (is_old, checkpoint_every) in [(false, None), (true, None), (false, Some(45))] {
        let mut host = Host::new();
        host.is_old = is_old;
        host.checkpoint_every = checkpoint_every;
        let key = "0f".repeat(32);
        host.values
            .insert("guestinfo.tether.key".into(), key.clone().into_bytes());
        let channel = b"serial:ttyS1\n\0".to_vec();
        host.values
            .insert("guestinfo.tether.channel".into(), channel);
        host.values
            .insert("guestinfo.tether.empty".into(), Vec::new());
        assert_eq!(value(&mut host, "key"), Some(key.into_bytes()));
        assert_eq!(value(&mut host, "channel").unwrap(), b"serial:ttyS1");
        assert_eq!(value(&mut host, "empty").unwrap(), b"");
        assert_eq!(value(&mut host, "identity"), None);
        assert!(host.channels.is_empty(), "a channel was left open");
    }
}

#[test]
fn a_platform_without_messages_has_no_values() {
    assert_eq!(version(&mut Qemu), Some(6));
    assert_eq!(value(&mut Qemu, "key"), None);
    assert_eq!(version(&mut Nobody), None);
    assert_eq!(value(&mut Nobody, "key"), None);
    assert_eq!(ask(&mut Qemu, b"info-get x"), Err(Failure::Broken));
    // Here is none; and no I/O privilege is kept that was not there.
    if !backdoor::cpuid_says_vmware() {
        assert!(door().is_none());
    }
}

#[test]
fn messages_of_every_length_arrive_whole() {
    for length in (0..70).chain([1000, LONGEST - 3, LONGEST - 2]) {
        let mut host = Host::new();
        let value: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        host.values.insert("x".into(), value.clone());
        assert_eq!(ask(&mut host, b"info-get x"), Ok(value.clone()));
        let request = [b"log ", &value[..value.len().min(LONGEST - 4)]].concat();
        ask(&mut host, &request).unwrap();
        assert_eq!(host.requests.last(), Some(&request));
    }
    // One that is too long is not taken, and the host is told so.
    let mut host = Host::new();
    host.values.insert("x".into(), vec![0; LONGEST]);
    assert_eq!(ask(&mut host, b"info-get x"), Err(Failure::Broken));
}

#[test]
fn a_host_that_always_interrupts_is_given_up() {
    let mut host = Host::new();
    host.checkpoint_every = Some(1);
    assert_eq!(ask(&mut host, b"info-get x"), Err(Failure::Broken));
    assert!(host.calls < 100, "{}", host.calls);
}

fn facts(name: &str, addresses: &[&str]) -> Facts {
    let address = |text: &&str| NicAddress {
        address: text.parse().unwrap(),
        prefix: 24,
        leased: false,
    };
    let nic = Nic {
        mac: "00:50:56:00:00:01".into(),
        addresses: addresses.iter().map(address).collect(),
    };
    Facts {
        name: name.into(),
        nics: vec![nic],
    }
}

/// Looks until nothing more is to be said at once.
fn settle(tools: &mut Tools, host: &mut Host, now: &mut u64, facts: &Facts) -> Option<Action> {
    let mut action = None;
    for _ in 0..100 {
        let wish = tools.look(host, *now, || facts.clone());
        action = action.or(wish);
        if tools.deadline() > *now {
            *now = tools.deadline();
            return action;
        }
    }
    panic!("the tools do not come to rest");
}

#[test]
fn the_tools_are_registered_and_tell_what_changes() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("web", &["192.0.2.7"]);
    assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), None);
    assert_eq!(host.said(), [""]);
    assert!(host.requests().is_empty(), "something was told unasked");
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.said(), ["", "OK ATR toolbox"]);
    assert_eq!(host.requests(), ["vmx.capability.unified_loop toolbox\0"]);
    host.order("Capabilities_Register");
    host.order("Set_Option synctime 0");
    host.order("ping");
    host.order("OS_Frobnicate");
    settle(&mut tools, &mut host, &mut now, &shown);
    let answers = ["", "OK ", "OK ", "OK ", "ERROR Unknown Command"];
    assert_eq!(host.said(), answers);
    let requests = host.requests();
    assert_eq!(
        requests[..4],
        [
            "tools.capability.statechange ",
            "tools.capability.softpowerop_retry ",
            "tools.set.version 2147483647\0",
            "SetGuestInfo  1 web\0",
        ]
    );
    assert!(requests[4].starts_with("SetGuestInfo  10 "), "{requests:?}");
    assert_eq!(requests.len(), 5);

    // Nothing new is nothing told; what is new, is.
    settle(&mut tools, &mut host, &mut now, &shown);
    assert!(host.requests().is_empty());
    let shown = facts("web", &["192.0.2.7", "2001:db8::1"]);
    settle(&mut tools, &mut host, &mut now, &shown);
    let requests = host.requests();
    assert!(requests.len() == 1 && requests[0].starts_with("SetGuestInfo  10 "));
    // After a reset all is told again.
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.requests().len(), 3);
}

#[test]
fn a_quiet_host_is_looked_at_once_a_second_and_a_talking_one_at_once() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("", &[]);
    for _ in 0..10 {
        settle(&mut tools, &mut host, &mut now, &shown);
    }
    let before = now;
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(now - before, 1_000_000);
    host.order("ping");
    tools.look(&mut host, now, || shown.clone());
    assert_eq!(tools.deadline(), now);
}

#[test]
fn a_guest_is_shut_down_when_the_host_asks() {
    for (order, wish, status) in [
        ("OS_Halt", Some(Action::PowerOff), "1"),
        ("OS_Reboot", Some(Action::Reboot), "2"),
        ("OS_Suspend", None, "5"),
    ] {
        let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
        let shown = facts("web", &[]);
        host.order(&format!("{order}\0"));
        assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), wish);
        assert_eq!(host.said(), ["", "OK "]);
        let expected = format!("tools.os.statechange.status 1 {status}\0");
        assert_eq!(host.requests(), [expected]);
        // The heart beats on until the machine is off.
        assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), None);
        assert_eq!(host.said(), [""]);
    }
}

#[test]
fn a_channel_that_the_host_forgot_is_opened_anew() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("web", &[]);
    settle(&mut tools, &mut host, &mut now, &shown);
    host.channels.clear();
    settle(&mut tools, &mut host, &mut now, &shown);
    host.said();
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.said(), ["", "OK ATR toolbox"]);
    assert_eq!(host.channels.len(), 1);
    // Where there never is one, it is tried now and then.
    let mut tools = Tools::default();
    assert_eq!(tools.look(&mut Qemu, 7, || shown.clone()), None);
    assert_eq!(tools.deadline(), 5_000_007);
}

#[test]
fn an_old_host_is_told_addresses_as_it_knows_them() {
    let run = |refuses: &[&'static [u8]]| {
        let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
        host.refuses = refuses.to_vec();
        host.order("Capabilities_Register");
        let shown = facts("", &["192.0.2.7"]);
        settle(&mut tools, &mut host, &mut now, &shown);
        settle(&mut tools, &mut host, &mut now, &shown);
        let requests = host.requests();
        let kinds = requests[3..].iter().map(|request| {
            let end = request.find('\0').unwrap_or(request.len());
            request[..end].to_owned()
        });
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(run(&[]), ["SetGuestInfo  10 "]);
    assert_eq!(
        run(&[b"SetGuestInfo  10 "]),
        ["SetGuestInfo  10 ", "SetGuestInfo  9 "]
    );
    assert_eq!(
        run(&[b"SetGuestInfo"]),
        [
            "SetGuestInfo  10 ",
            "SetGuestInfo  9 ",
            "info-set guestinfo.ip 192.0.2.7"
        ]
    );
}

#[test]
fn addresses_are_xdr_as_nicinfo_x_has_them() {
    let mut shown = facts("web", &["192.0.2.7", "2001:db8::1"]);
    shown.nics[0].addresses[0].leased = true;
    let mut out = Vec::new();
    nics::encode(&shown.nics, &mut out);
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect::<Vec<_>>()
    };
    let expected = [
        // Version, the optional body, one NIC.
        words(&[3, 1, 1]),
        words(&[17]),
        b"00:50:56:00:00:01\0\0\0".to_vec(),
        words(&[2]),
        words(&[1, 4]),
        vec![192, 0, 2, 7],
        words(&[24, 1, 4, 1, 1]),
        words(&[2, 16]),
        vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        words(&[24, 1, 2, 1, 1]),
        words(&[0, 0, 0, 0]),
        words(&[0, 0, 0, 0, 0]),
    ];
    assert_eq!(out, expected.concat());
    let many = vec![shown.nics[0].clone(); 40];
    let mut out = Vec::new();
    nics::encode(&many, &mut out);
    assert_eq!(out[8..12], 16u32.to_be_bytes());
}
