//! What a VMware hypervisor and its guest tell each other: guestinfo, and the part of VMware's tools that
//! vSphere's own client needs.
//!
//! ```text
//! read, Tools ──▶ RPCI, TCLO requests ──▶ messages ──▶ Door::call: one IN instruction
//! ```
//!
//! Sources: open-vm-tools (backdoor_def.h, guest_msg_def.h, rpcout.c, rpcin.c, toolsRpc.c, powerOps.c,
//! guestInfo.h, nicinfo.x) and the kernel's vmwgfx_msg.c. Everything but the instruction is tested against a
//! simulated host.
//!
//! VMware lets any process of a guest use the backdoor, and so read the channel's key, unless the machine's
//! configuration has `monitor_control.restrict_backdoor = "TRUE"`: then it takes I/O privilege, which
//! tether takes and gives back for each exchange, and no container is given.
//!
//! What is deliberately absent: the vsock transport (CID 0, port 976), because the backdoor is there
//! wherever that is; and the high-bandwidth port, because what is said here fits a few hundred bytes.

mod message;
mod nics;
#[cfg(test)]
mod simulated_host;
#[cfg(test)]
mod tests;
mod tools;

use crate::files;
use crate::info;
use crate::prelude::*;
use crate::sys::backdoor::{self, Backdoor, Registers};
use message::{Broken, Channel};
pub use nics::{Nic, NicAddress};
pub use tools::{Facts, Tools};

/// Every call has it, and an answered one returns it (`BDOOR_MAGIC`).
const MAGIC: u32 = 0x564d_5868;
/// The I/O port (`BDOOR_PORT`).
const PORT: u32 = 0x5658;
/// `BDOOR_CMD_GETVERSION`.
const GET_VERSION: u32 = 10;
/// `RPCI`, the protocol of requests of the guest's.
const RPCI: u32 = 0x4943_5052;

/// Where calls go.
pub trait Door {
    /// One call and its answer.
    fn call(&mut self, registers: Registers) -> Registers;
}

impl Door for Backdoor {
    fn call(&mut self, registers: Registers) -> Registers {
        self.call(registers)
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no message channel, or it broke.
    Broken,
    /// The host says no; its words.
    Refused(Vec<u8>),
}

impl From<Broken> for Failure {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

/// The backdoor, where there is one: on a VMware platform, by CPUID or by SMBIOS where CPUID is told not to
/// say so, that answers. `None` elsewhere, where nothing is tried.
pub fn door() -> Option<Backdoor> {
    let vendor = "/sys/class/dmi/id/sys_vendor";
    if !backdoor::cpuid_says_vmware() && files::text(vendor).trim_end() != "VMware, Inc." {
        return None;
    }
    let mut door = match Backdoor::open() {
        Ok(door) => door,
        Err(errno) => {
            crate::warning!("no VMware backdoor: iopl: {}", crate::sys::describe(errno));
            return None;
        }
    };
    version(&mut door).map(|_| door)
}

/// The backdoor's own version; `None` where nobody is behind it.
fn version(door: &mut dyn Door) -> Option<u32> {
    let answer = door.call(Registers {
        eax: MAGIC,
        ebx: !MAGIC,
        ecx: GET_VERSION,
        edx: PORT,
        ..Registers::default()
    });
    (answer.ebx == MAGIC).then_some(answer.eax)
}

/// Says once what was found, for whoever reads the console.
pub fn tell_platform() {
    if let Some(mut door) = door() {
        let version = version(&mut door).unwrap_or(0);
        let messages = Channel::open(&mut door, RPCI).map(|channel| channel.close(&mut door));
        let messages = if messages.is_some() {
            "with"
        } else {
            "without"
        };
        info!("VMware backdoor version {version}, {messages} messages");
    }
}

/// One request of the guest's: an answer of the host's begins with `1 `, a refusal with `0 `.
///
/// # Errors
/// See [`Failure`].
fn ask(door: &mut dyn Door, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let channel = Channel::open(door, RPCI).ok_or(Failure::Broken)?;
    let answer = match channel.send(door, request) {
        Ok(()) => channel.receive(door),
        Err(broken) => Err(broken),
    };
    channel.close(door);
    let mut answer = answer?.ok_or(Failure::Broken)?;
    match answer.get(..2) {
        Some(b"1 ") => Ok(answer.split_off(2)),
        Some(b"0 ") => Err(Failure::Refused(answer.split_off(2))),
        _ => Err(Failure::Broken),
    }
}

/// The value `guestinfo.tether.NAME`, text without the space around it; `None` on another platform, and
/// where the host has none.
pub fn read(name: &str) -> Option<Vec<u8>> {
    value(&mut door()?, name)
}

fn value(door: &mut dyn Door, name: &str) -> Option<Vec<u8>> {
    let request = format!("info-get guestinfo.tether.{name}");
    let value = ask(door, request.as_bytes()).ok()?;
    let value = value.strip_suffix(b"\0").unwrap_or(&value);
    Some(value.trim_ascii().to_vec())
}
