//! What VMware's tools do that vSphere needs of a guest: a heartbeat, addresses and a name to show, and "Shut
//! down guest".
//!
//! ```text
//!  host: reset ─▶ ATR ─▶ Capabilities_Register ─▶ statechange, version ─▶ ping, ping, OS_Halt ...
//! ```
//!
//! The host asks over TCLO, a channel that nothing announces: it is looked at once a second, which is the
//! heartbeat itself, and more often while it has something to say.

use super::message::Channel;
use super::{Door, Failure, Nic, ask, nics};
use crate::prelude::*;
use tether_wire::message::Action;

/// `TCLO`, the protocol of requests of the host's.
pub const TCLO: u32 = 0x4f4c_4354;
/// The longest and the shortest time between two looks, in microseconds.
const HEARTBEAT: u64 = 1_000_000;
const SHORTEST: u64 = 10_000;
/// Between two attempts to open the channel.
const REOPEN: u64 = 5_000_000;

/// `INFO_DNS_NAME`.
const INFO_NAME: u32 = 1;
/// `INFO_IPADDRESS_V3`, and `INFO_IPADDRESS_V2` for hosts that do not know it.
const INFO_ADDRESSES: [u32; 2] = [10, 9];

/// The host's wishes about the machine, as powerops.h numbers them.
const STATE_CHANGES: [(&str, u32, Option<Action>); 5] = [
    ("OS_Halt", 1, Some(Action::PowerOff)),
    ("OS_Reboot", 2, Some(Action::Reboot)),
    ("OS_PowerOn", 3, None),
    ("OS_Resume", 4, None),
    ("OS_Suspend", 5, None),
];

/// What is shown of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The host name; empty when it has none yet.
    pub name: String,
    /// Its vNICs.
    pub nics: Vec<Nic>,
}

/// The tools' state.
#[derive(Default)]
pub struct Tools {
    channel: Option<Channel>,
    /// What the next look sends: the answer to the last request, or nothing, as a sign of life.
    answer: Vec<u8>,
    due: u64,
    delay: u64,
    /// The host began anew, and is to be told that this is a guest's only answering program.
    is_reset: bool,
    /// The host wants to be told about the machine.
    is_registered: bool,
    told: Option<Facts>,
}

impl Tools {
    /// When [`Tools::look`] has to be called, in microseconds.
    pub fn deadline(&self) -> u64 {
        self.due
    }

    /// Shows that the machine lives, does what the host asks, and says what has changed. What is left for
    /// the machine to do is the answer.
    pub fn look(
        &mut self,
        door: &mut dyn Door,
        now: u64,
        facts: impl FnOnce() -> Facts,
    ) -> Option<Action> {
        if self.channel.is_none() {
            self.channel = Channel::open(door, TCLO);
            self.answer.clear();
        }
        let Some(channel) = self.channel.take() else {
            self.due = now + REOPEN;
            return None;
        };
        let request = match channel.send(door, &self.answer) {
            Ok(()) => channel.receive(door),
            Err(broken) => Err(broken),
        };
        self.answer.clear();
        let Ok(request) = request else {
            // As after a migration, or a resume: the host knows nothing of the channel any more.
            channel.close(door);
            self.due = now + HEARTBEAT;
            return None;
        };
        self.channel = Some(channel);
        if core::mem::take(&mut self.is_reset) {
            let _ = ask(door, b"vmx.capability.unified_loop toolbox\0");
        }
        let mut action = None;
        self.delay = match request {
            None => (self.delay * 2).clamp(SHORTEST, HEARTBEAT),
            Some(request) => {
                action = self.obey(door, &request);
                0
            }
        };
        self.due = now + self.delay;
        if self.is_registered {
            self.tell(door, facts());
        }
        action
    }

    /// Does what the host asks, and leaves the answer for the next look.
    fn obey(&mut self, door: &mut dyn Door, request: &[u8]) -> Option<Action> {
        let request = request.strip_suffix(b"\0").unwrap_or(request);
        let name = request
            .split(|byte| *byte == b' ')
            .next()
            .unwrap_or(request);
        let mut answer: &[u8] = b"OK ";
        let mut action = None;
        match name {
            b"reset" => {
                self.is_reset = true;
                self.told = None;
                answer = b"OK ATR toolbox";
            }
            b"ping" | b"Set_Option" => {}
            b"Capabilities_Register" => {
                // Old hosts mind a NUL after a request without parameters, and a missing space (toolsRpc.c).
                let _ = ask(door, b"tools.capability.statechange ");
                let _ = ask(door, b"tools.capability.softpowerop_retry ");
                // `TOOLS_VERSION_UNMANAGED`: not the host's to upgrade.
                let _ = ask(door, b"tools.set.version 2147483647\0");
                self.is_registered = true;
                self.told = None;
            }
            _ => match STATE_CHANGES
                .iter()
                .find(|(known, ..)| known.as_bytes() == name)
            {
                Some((_, number, wish)) => {
                    let status = format!("tools.os.statechange.status 1 {number}\0");
                    let _ = ask(door, status.as_bytes());
                    action = *wish;
                }
                None => answer = b"ERROR Unknown Command",
            },
        }
        self.answer = answer.to_vec();
        action
    }

    /// Tells what the host does not know yet. What it refuses is not offered again before a reset.
    fn tell(&mut self, door: &mut dyn Door, facts: Facts) {
        let told = self.told.as_ref();
        if told.is_none_or(|told| told.name != facts.name) && !facts.name.is_empty() {
            let request = format!("SetGuestInfo  {INFO_NAME} {}\0", facts.name);
            let _ = ask(door, request.as_bytes());
        }
        if told.is_none_or(|told| told.nics != facts.nics) {
            let refused = INFO_ADDRESSES.into_iter().all(|kind| {
                let mut request = format!("SetGuestInfo  {kind} ").into_bytes();
                nics::encode(&facts.nics, &mut request);
                matches!(ask(door, &request), Err(Failure::Refused(_)))
            });
            let first = facts.nics.iter().flat_map(|nic| &nic.addresses).next();
            if refused && let Some(first) = first {
                let request = format!("info-set guestinfo.ip {}", first.address);
                let _ = ask(door, request.as_bytes());
            }
        }
        self.told = Some(facts);
    }
}
