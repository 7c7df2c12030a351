//! Messages of any length over calls that carry four bytes each (`BDOOR_CMD_MESSAGE`, guest_msg_def.h).

use super::{Door, MAGIC, PORT};
use crate::prelude::*;
use crate::sys::backdoor::Registers;

const MESSAGE: u32 = 30;

/// What a call is about; the other half of its command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open = 0,
    SendSize = 1,
    SendPayload = 2,
    ReceiveSize = 3,
    ReceivePayload = 4,
    ReceiveStatus = 5,
    Close = 6,
}

const SUCCESS: u32 = 0x01;
/// A message for the guest waits.
const WAITING: u32 = 0x02;
/// The machine was suspended, moved or copied: the message is to be begun anew.
const CHECKPOINT: u32 = 0x10;
/// The channel is to be known by a cookie too, so that no other process can use it.
const WITH_COOKIE: u32 = 0x8000_0000;
/// The longest message that is taken, as long as the host takes (`GUESTMSG_MAX_IN_SIZE`).
pub const LONGEST: usize = 64 * 1024;
/// How often a message is begun.
const ATTEMPTS: u32 = 8;

/// The host did not do its part. The channel is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Why one attempt came to nothing.
enum Interrupted {
    Checkpoint,
    Broken,
}

/// A channel of messages in both directions.
#[derive(Debug)]
pub struct Channel {
    id: u32,
    cookie: (u32, u32),
}

/// What came back: the status, what it is about, and four bytes.
struct Answer {
    status: u32,
    about: u32,
    value: u32,
    registers: Registers,
}

impl Channel {
    /// Opens one of a protocol, named by four letters; `None` where the host has none.
    pub fn open(door: &mut dyn Door, protocol: u32) -> Option<Self> {
        let nameless = Self {
            id: 0,
            cookie: (0, 0),
        };
        for flags in [WITH_COOKIE, 0] {
            let answer = nameless.call(door, Kind::Open, protocol | flags);
            if answer.status & SUCCESS != 0 {
                return Some(Self {
                    id: answer.about,
                    cookie: (answer.registers.esi, answer.registers.edi),
                });
            }
        }
        None
    }

    fn call(&self, door: &mut dyn Door, kind: Kind, value: u32) -> Answer {
        let registers = door.call(Registers {
            eax: MAGIC,
            ebx: value,
            ecx: (kind as u32) << 16 | MESSAGE,
            edx: self.id << 16 | PORT,
            esi: self.cookie.0,
            edi: self.cookie.1,
        });
        Answer {
            status: registers.ecx >> 16,
            about: registers.edx >> 16,
            value: registers.ebx,
            registers,
        }
    }

    fn done(&self, door: &mut dyn Door, kind: Kind, value: u32) -> Result<Answer, Interrupted> {
        let answer = self.call(door, kind, value);
        if answer.status & SUCCESS != 0 {
            Ok(answer)
        } else if answer.status & CHECKPOINT != 0 {
            Err(Interrupted::Checkpoint)
        } else {
            Err(Interrupted::Broken)
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The host does not take it.
    pub fn send(&self, door: &mut dyn Door, message: &[u8]) -> Result<(), Broken> {
        often(|| {
            self.done(door, Kind::SendSize, message.len() as u32)?;
            for piece in message.chunks(4) {
                let mut bytes = [0; 4];
                bytes[..piece.len()].copy_from_slice(piece);
                self.done(door, Kind::SendPayload, u32::from_le_bytes(bytes))?;
            }
            Ok(())
        })
    }

    /// Takes the message that waits, if one does.
    ///
    /// # Errors
    /// The host breaks off, or has one that is too long.
    pub fn receive(&self, door: &mut dyn Door) -> Result<Option<Vec<u8>>, Broken> {
        often(|| {
            let answer = self.done(door, Kind::ReceiveSize, 0)?;
            if answer.status & WAITING == 0 {
                return Ok(None);
            }
            let length = answer.value as usize;
            if answer.about != Kind::SendSize as u32 || length > LONGEST {
                self.call(door, Kind::ReceivePayload, 0);
                return Err(Interrupted::Broken);
            }
            let mut message = Vec::with_capacity(length.next_multiple_of(4));
            while message.len() < length {
                let answer = self.done(door, Kind::ReceivePayload, SUCCESS)?;
                if answer.about != Kind::SendPayload as u32 {
                    self.call(door, Kind::ReceivePayload, 0);
                    return Err(Interrupted::Broken);
                }
                message.extend_from_slice(&answer.value.to_le_bytes());
            }
            message.truncate(length);
            self.done(door, Kind::ReceiveStatus, SUCCESS)?;
            Ok(Some(message))
        })
    }

    /// Gives it back to the host.
    pub fn close(self, door: &mut dyn Door) {
        self.call(door, Kind::Close, 0);
    }
}

fn often<T>(mut attempt: impl FnMut() -> Result<T, Interrupted>) -> Result<T, Broken> {
    for _ in 0..ATTEMPTS {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(Interrupted::Checkpoint) => {}
            Err(Interrupted::Broken) => break,
        }
    }
    Err(Broken)
}
