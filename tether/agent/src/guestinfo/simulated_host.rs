//! The host's side of VMware's backdoor, for tests: what lies behind the port, as guest_msg_def.h and the
//! VMX's side of rpcin.c and rpcout.c have it. It names nothing of tether's, so that the tests with real guests
//! use it too. Registers are eax, ebx, ecx, edx, esi, edi.

use std::collections::{BTreeMap, VecDeque};

/// Every call has it.
pub const MAGIC: u32 = 0x564d_5868;
/// Where calls go.
pub const PORT: u32 = 0x5658;
/// The longest message.
const LONGEST: usize = 64 * 1024;
const RPCI: u32 = 0x4943_5052;
const TCLO: u32 = 0x4f4c_4354;
const GET_VERSION: u32 = 10;
const MESSAGE: u32 = 30;

/// A channel as the host sees it.
pub struct HostChannel {
    protocol: u32,
    cookie: (u32, u32),
    /// What the guest is sending: the length, and what came of it.
    sending: Option<(usize, Vec<u8>)>,
    /// What waits for the guest, and how much of it is gone.
    waiting: VecDeque<Vec<u8>>,
    taken: usize,
}

/// The host.
pub struct Host {
    pub channels: BTreeMap<u32, HostChannel>,
    next: u32,
    /// It knows no cookies.
    pub is_old: bool,
    /// Every so many calls one fails, as after a checkpoint.
    pub checkpoint_every: Option<usize>,
    pub calls: usize,
    /// guestinfo, and answers to other requests by their beginning.
    pub values: BTreeMap<String, Vec<u8>>,
    pub refuses: Vec<&'static [u8]>,
    /// All requests the guest made over RPCI.
    pub requests: Vec<Vec<u8>>,
    /// All it sent over TCLO.
    pub said: Vec<Vec<u8>>,
    /// What goes out to the guest over TCLO at its next sign of life, one at a time.
    orders: VecDeque<Vec<u8>>,
}

impl Host {
    /// One that knows nothing and wants nothing.
    pub fn new() -> Self {
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

    /// Something for the guest to do.
    pub fn order(&mut self, text: &str) {
        self.orders.push_back(text.as_bytes().to_vec());
    }

    /// One call and its answer.
    pub fn call(&mut self, registers: [u32; 6]) -> [u32; 6] {
        let [eax, _, ecx, edx, esi, edi] = registers;
        assert_eq!((eax, edx & 0xffff), (MAGIC, PORT));
        self.calls += 1;
        match ecx & 0xffff {
            GET_VERSION => [6, MAGIC, 4, edx, esi, edi],
            MESSAGE => self.message(registers),
            other => panic!("command {other}"),
        }
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

    /// What was asked since the last time.
    pub fn requests(&mut self) -> Vec<String> {
        let requests = core::mem::take(&mut self.requests);
        let text = |request: Vec<u8>| String::from_utf8_lossy(&request).into_owned();
        requests.into_iter().map(text).collect()
    }

    /// What was said since the last time.
    pub fn said(&mut self) -> Vec<String> {
        let said = core::mem::take(&mut self.said);
        let text = |message: Vec<u8>| String::from_utf8(message).unwrap();
        said.into_iter().map(text).collect()
    }

    fn message(&mut self, [eax, ebx, ecx, edx, esi, edi]: [u32; 6]) -> [u32; 6] {
        const OK: u32 = 1;
        let answer = |status: u32, about: u32, value: u32| {
            let (ecx, edx) = (status << 16 | ecx & 0xffff, about << 16 | edx & 0xffff);
            [eax, value, ecx, edx, esi, edi]
        };
        let (kind, id) = (ecx >> 16, edx >> 16);
        if kind == 0 {
            let with_cookie = ebx & 0x8000_0000 != 0;
            if with_cookie && self.is_old {
                return answer(0, 0, 0);
            }
            let protocol = ebx & 0x7fff_ffff;
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
            let [eax, ebx, ecx, edx, ..] = answer(OK, id, 0);
            return [eax, ebx, ecx, edx, cookie.0, cookie.1];
        }
        let Some(channel) = self.channels.get_mut(&id) else {
            return answer(4, id, 0);
        };
        if channel.cookie != (esi, edi) {
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
                assert!(ebx as usize <= LONGEST);
                channel.sending = Some((ebx as usize, Vec::new()));
                if ebx == 0 {
                    channel.sending = None;
                    self.arrived(id, Vec::new());
                }
                answer(OK, id, 0)
            }
            2 => {
                let Some((length, bytes)) = &mut channel.sending else {
                    return answer(0, id, 0);
                };
                bytes.extend(ebx.to_le_bytes());
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
                assert!(ebx & !1 == 0);
                let Some(message) = channel.waiting.front() else {
                    return answer(0, id, 0);
                };
                if ebx == 0 {
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
