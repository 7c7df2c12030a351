//! A reliable byte stream over a line that damages and drops bytes.
//!
//! ```text
//!   packet   COBS( kind u8  epoch u32  seq u32  ack u32  sack u64  payload  crc u32 )  0x00
//! ```
//!
//! Integers are little-endian; the CRC is CRC-32C over everything before it. COBS keeps 0x00 for
//! the end of a packet, so a reader that lost its place has it again after the next one, and no
//! payload can look like a packet's end.
//!
//! The host opens an *epoch* with a number of its own; its packet 0 resets the guest's end. The
//! line keeps order, so when a packet is acknowledged every packet transmitted before it and not
//! acknowledged was lost: it is sent again at once. Only the last packets of a burst need the
//! timer. `seq` counts packets; `ack` is the next one wanted, and bit *i* of `sack` says that
//! packet `ack + 1 + i` is here.
//!
//! A guest that does not know the epoch of a packet other than the first answers [`Kind::Reset`]:
//! it was restarted, and the host opens a new epoch.

use crate::ring::Ring;
use crate::{Time, Violation};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use crc::{CRC_32_ISCSI, Crc, Table};

/// Most payload bytes in one packet: short, so that one damaged byte costs little.
pub const PAYLOAD: usize = 512;
/// Packets that may be unacknowledged; not more than the bits of `sack`.
pub const WINDOW: u32 = 64;

const CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);
const HEADER: usize = 1 + 4 + 4 + 4 + 8;
/// A decoded packet is never longer than this.
const PACKET: usize = HEADER + PAYLOAD + 4;
/// Bytes the writer may have waiting for transmission.
const SEND_BUFFER: usize = 32 * 1024;
const FIRST_TIMEOUT: u64 = 200_000;
const LEAST_TIMEOUT: u64 = 50_000;
const MOST_TIMEOUT: u64 = 2_000_000;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Carries payload, numbered by `seq`.
    Data = 1,
    /// Carries only `ack` and `sack`.
    Ack = 2,
    /// The guest does not know this epoch.
    Reset = 3,
}

/// Appends the COBS encoding of `packet` (Cheshire and Baker, 1999) and its end to `out`.
fn cobs_encode(packet: &[u8], out: &mut Vec<u8>) {
    let mut code_at = out.len();
    out.push(0);
    let mut code = 1u8;
    for &byte in packet {
        if byte != 0 {
            out.push(byte);
            code += 1;
        }
        if byte == 0 || code == u8::MAX {
            out[code_at] = code;
            code_at = out.len();
            out.push(0);
            code = 1;
        }
    }
    out[code_at] = code;
    out.push(0);
}

/// Decodes in place what stood before a 0x00; `None` when it is no COBS.
fn cobs_decode(bytes: &mut [u8]) -> Option<&mut [u8]> {
    let (mut read, mut write) = (0, 0);
    while read < bytes.len() {
        let code = usize::from(bytes[read]);
        read += 1;
        let run = code.checked_sub(1)?;
        if read + run > bytes.len() {
            return None;
        }
        bytes.copy_within(read..read + run, write);
        read += run;
        write += run;
        if code != usize::from(u8::MAX) && read < bytes.len() {
            bytes[write] = 0;
            write += 1;
        }
    }
    Some(&mut bytes[..write])
}

#[derive(Debug)]
struct Packet<'a> {
    kind: Kind,
    epoch: u32,
    seq: u32,
    ack: u32,
    sack: u64,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut plain = [0u8; PACKET];
        plain[0] = self.kind as u8;
        plain[1..5].copy_from_slice(&self.epoch.to_le_bytes());
        plain[5..9].copy_from_slice(&self.seq.to_le_bytes());
        plain[9..13].copy_from_slice(&self.ack.to_le_bytes());
        plain[13..21].copy_from_slice(&self.sack.to_le_bytes());
        let end = HEADER + self.payload.len();
        plain[HEADER..end].copy_from_slice(self.payload);
        let crc = CRC.checksum(&plain[..end]);
        plain[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        cobs_encode(&plain[..end + 4], out);
    }

    fn decode(bytes: &'a mut [u8]) -> Option<Self> {
        let plain: &[u8] = cobs_decode(bytes)?;
        if plain.len() < HEADER + 4 || plain.len() > PACKET {
            return None;
        }
        let (body, crc) = plain.split_last_chunk::<4>()?;
        if CRC.checksum(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let word = |at: usize| {
            body[at..]
                .first_chunk::<4>()
                .map(|b| u32::from_le_bytes(*b))
        };
        Some(Self {
            kind: match body[0] {
                1 => Kind::Data,
                2 => Kind::Ack,
                3 => Kind::Reset,
                _ => return None,
            },
            epoch: word(1)?,
            seq: word(5)?,
            ack: word(9)?,
            sack: body[13..]
                .first_chunk::<8>()
                .map(|b| u64::from_le_bytes(*b))?,
            payload: &body[HEADER..],
        })
    }
}

/// A packet sent and not yet acknowledged.
#[derive(Debug)]
struct Sent {
    payload: Vec<u8>,
    /// Which transmission of the line carried it last; 0 when it has to go out (again).
    order: u64,
    /// When that was.
    at: Time,
    /// Sent more than once: useless for measuring.
    again: bool,
    acknowledged: bool,
}

/// What a reader found on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A host opened a new epoch: whatever came before is void.
    Opened,
    /// More bytes are there to be read.
    Bytes,
}

/// One end of a serial line.
#[derive(Debug)]
pub struct Serial {
    host: bool,
    epoch: Option<u32>,
    /// The other end has answered in this epoch.
    heard: bool,
    /// The packet being received, still COBS-encoded.
    partial: Vec<u8>,
    /// What follows is the rest of a packet that is too long to be one.
    skipping: bool,
    // Receiving.
    next_in: u32,
    early: VecDeque<Option<Vec<u8>>>,
    received: Vec<u8>,
    ack_due: bool,
    reset_due: Option<u32>,
    // Sending.
    waiting: Ring,
    first_out: u32,
    sent: VecDeque<Sent>,
    order: u64,
    lost: bool,
    smoothed: Option<u64>,
    timeout: u64,
    deadline: Option<Time>,
    /// Packets sent again since the epoch began.
    pub retransmitted: u64,
}

impl Serial {
    /// The guest's end: waits for an epoch.
    pub fn guest() -> Self {
        Self::new(false, None)
    }

    /// The host's end, opening this epoch.
    pub fn host(epoch: u32) -> Self {
        Self::new(true, Some(epoch))
    }

    fn new(host: bool, epoch: Option<u32>) -> Self {
        Self {
            host,
            epoch,
            heard: false,
            partial: Vec::new(),
            skipping: false,
            next_in: 0,
            early: VecDeque::new(),
            received: Vec::new(),
            ack_due: false,
            reset_due: None,
            waiting: Ring::default(),
            first_out: 0,
            sent: VecDeque::new(),
            order: 0,
            lost: false,
            smoothed: None,
            timeout: FIRST_TIMEOUT,
            deadline: None,
            retransmitted: 0,
        }
    }

    /// Takes bytes off the line. Calls `found` for what they mean; received bytes are passed to it
    /// in order, each once.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        now: Time,
        mut found: impl FnMut(Line, &[u8]) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| *byte == 0) {
            let (part, after) = rest.split_at(at);
            rest = &after[1..];
            if self.keep(part) {
                let mut encoded = core::mem::take(&mut self.partial);
                let taken = self.packet(&mut encoded, now, &mut found);
                encoded.clear();
                self.partial = encoded;
                taken?;
            }
            self.partial.clear();
            self.skipping = false;
        }
        self.keep(rest);
        Ok(())
    }

    /// Adds to the partial packet; false when it cannot be a packet any more.
    fn keep(&mut self, part: &[u8]) -> bool {
        // COBS adds one byte in 254 and one at the start.
        if self.skipping || self.partial.len() + part.len() > PACKET + PACKET / 254 + 2 {
            self.skipping = true;
            self.partial.clear();
            return false;
        }
        self.partial.extend_from_slice(part);
        true
    }

    fn packet(
        &mut self,
        encoded: &mut [u8],
        now: Time,
        found: &mut impl FnMut(Line, &[u8]) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let Some(packet) = Packet::decode(encoded) else {
            return Ok(());
        };
        if self.epoch != Some(packet.epoch) {
            if self.host || packet.kind == Kind::Reset {
                return Ok(());
            }
            if packet.kind != Kind::Data || packet.seq != 0 {
                self.reset_due = Some(packet.epoch);
                return Ok(());
            }
            let partial = core::mem::take(&mut self.partial);
            *self = Self::new(false, Some(packet.epoch));
            self.partial = partial;
            found(Line::Opened, &[])?;
        }
        match packet.kind {
            // Before the first answer a reset only says that our first packet was lost.
            Kind::Reset if self.host && self.heard => return Err(Violation::Reset),
            Kind::Reset => return Ok(()),
            Kind::Data => {
                self.ack_due = true;
                self.take(packet.seq, packet.payload);
            }
            Kind::Ack => {}
        }
        self.heard = true;
        self.acknowledge(packet.ack, packet.sack, now);
        if !self.received.is_empty() {
            let received = core::mem::take(&mut self.received);
            found(Line::Bytes, &received)?;
        }
        Ok(())
    }

    fn take(&mut self, seq: u32, payload: &[u8]) {
        let ahead = seq.wrapping_sub(self.next_in);
        if ahead >= WINDOW {
            return;
        }
        let ahead = ahead as usize;
        if ahead > 0 {
            if self.early.len() < ahead {
                self.early.resize_with(ahead, || None);
            }
            self.early[ahead - 1].get_or_insert_with(|| payload.to_vec());
            return;
        }
        self.received.extend_from_slice(payload);
        self.next_in = self.next_in.wrapping_add(1);
        // early[0] is what follows: shift until the next hole.
        while let Some(next) = self.early.pop_front() {
            let Some(payload) = next else { break };
            self.received.extend_from_slice(&payload);
            self.next_in = self.next_in.wrapping_add(1);
        }
    }

    fn acknowledge(&mut self, ack: u32, sack: u64, now: Time) {
        let gone = ack.wrapping_sub(self.first_out) as usize;
        if gone > self.sent.len() {
            return;
        }
        let mut newest = 0;
        let mut sample = None;
        let mut progress = false;
        for (index, sent) in self.sent.iter_mut().enumerate() {
            let here = index < gone || {
                let bit = index.wrapping_sub(gone + 1);
                index > gone && bit < 64 && sack >> bit & 1 == 1
            };
            if here && !sent.acknowledged {
                sent.acknowledged = true;
                progress = true;
                newest = newest.max(sent.order);
                if !sent.again {
                    sample = Some(now.0.saturating_sub(sent.at.0));
                }
                sent.payload = Vec::new();
            }
        }
        self.sent.drain(..gone);
        self.first_out = ack;
        for sent in &mut self.sent {
            if !sent.acknowledged && sent.order != 0 && sent.order < newest {
                sent.order = 0;
                self.lost = true;
            }
        }
        if progress {
            if let Some(sample) = sample {
                let smoothed = self
                    .smoothed
                    .map_or(sample, |old| old - old / 8 + sample / 8);
                self.smoothed = Some(smoothed);
            }
            if let Some(smoothed) = self.smoothed {
                self.timeout = (smoothed.saturating_mul(3)).clamp(LEAST_TIMEOUT, MOST_TIMEOUT);
            }
            self.deadline = (!self.sent.is_empty()).then(|| now.plus(self.timeout));
        }
    }

    /// Bytes that [`Serial::write`] would take now.
    pub fn room(&self) -> usize {
        if self.epoch.is_none() {
            0
        } else {
            SEND_BUFFER - self.waiting.len().min(SEND_BUFFER)
        }
    }

    /// Queues bytes; the caller has asked [`Serial::room`]. A frame may overdraw it once.
    pub fn write(&mut self, bytes: &[u8]) {
        self.waiting.push(bytes, usize::MAX / 2);
    }

    /// Nothing is queued and everything was acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.waiting.len() == 0 && self.sent.is_empty()
    }

    /// When [`Serial::transmit`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.deadline
    }

    /// Appends the packets that should go out now, up to about `most` bytes.
    pub fn transmit(&mut self, now: Time, most: usize, out: &mut Vec<u8>) {
        let limit = out.len() + most;
        if let Some(epoch) = self.reset_due.take() {
            Packet {
                kind: Kind::Reset,
                epoch,
                seq: 0,
                ack: 0,
                sack: 0,
                payload: &[],
            }
            .encode(out);
        }
        let Some(epoch) = self.epoch else { return };
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            // The tail was lost, or its acknowledgement: one packet finds out.
            if let Some(first) = self.sent.iter_mut().find(|sent| !sent.acknowledged) {
                first.order = 0;
                self.lost = true;
            }
            self.timeout = (self.timeout * 2).min(MOST_TIMEOUT);
            self.deadline = Some(now.plus(self.timeout));
        }
        let (ack, sack) = (self.next_in, self.sack());
        let mut carried_ack = false;
        if self.lost {
            self.lost = false;
            for (index, sent) in self.sent.iter_mut().enumerate() {
                if sent.acknowledged || sent.order != 0 {
                    continue;
                }
                if out.len() >= limit {
                    self.lost = true;
                    break;
                }
                self.order += 1;
                sent.order = self.order;
                sent.at = now;
                sent.again = true;
                self.retransmitted += 1;
                let seq = self.first_out.wrapping_add(index as u32);
                Packet {
                    kind: Kind::Data,
                    epoch,
                    seq,
                    ack,
                    sack,
                    payload: &sent.payload,
                }
                .encode(out);
                carried_ack = true;
            }
        }
        while self.waiting.len() > 0 && (self.sent.len() as u32) < WINDOW && out.len() < limit {
            let mut payload = Vec::with_capacity(PAYLOAD.min(self.waiting.len()));
            while payload.len() < PAYLOAD && self.waiting.len() > 0 {
                let part = self.waiting.peek(0, PAYLOAD - payload.len());
                payload.extend_from_slice(part);
                let n = part.len();
                self.waiting.consume(n);
            }
            self.order += 1;
            let seq = self.first_out.wrapping_add(self.sent.len() as u32);
            Packet {
                kind: Kind::Data,
                epoch,
                seq,
                ack,
                sack,
                payload: &payload,
            }
            .encode(out);
            carried_ack = true;
            self.sent.push_back(Sent {
                payload,
                order: self.order,
                at: now,
                again: false,
                acknowledged: false,
            });
            if self.deadline.is_none() {
                self.deadline = Some(now.plus(self.timeout));
            }
        }
        if self.ack_due && !carried_ack {
            Packet {
                kind: Kind::Ack,
                epoch,
                seq: 0,
                ack,
                sack,
                payload: &[],
            }
            .encode(out);
        }
        self.ack_due = false;
    }

    fn sack(&self) -> u64 {
        // early[i] is packet next_in + 1 + i.
        self.early
            .iter()
            .take(64)
            .enumerate()
            .fold(0, |bits, (i, early)| bits | u64::from(early.is_some()) << i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cobs_is_undone(bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..1200)) {
            let mut out = Vec::new();
            cobs_encode(&bytes, &mut out);
            prop_assert_eq!(out.pop(), Some(0));
            prop_assert!(!out.contains(&0));
            prop_assert_eq!(cobs_decode(&mut out).map(|d| d.to_vec()), Some(bytes));
        }

        #[test]
        fn an_end_survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut guest = Serial::guest();
            guest.receive(&bytes, Time(0), |_, _| Ok(())).unwrap();
            let mut host = Serial::host(7);
            host.receive(&bytes, Time(0), |_, _| Ok(())).unwrap();
        }

        /// Both ends write; the line flips, drops and inserts; the clock runs when nothing moves.
        #[test]
        fn what_is_read_is_what_was_written(
            down in prop::collection::vec(any::<u8>(), 1..40_000),
            up in prop::collection::vec(any::<u8>(), 1..40_000),
            damage in prop::collection::vec((any::<bool>(), 0u8..3, 0usize..3000), 0..60),
            first in any::<u32>(),
        ) {
            let (mut host, mut guest) = (Serial::host(first), Serial::guest());
            let (mut to_guest, mut to_host) = (Vec::new(), Vec::new());
            let (mut down_at, mut up_at) = (0, 0);
            let mut damage = damage.into_iter();
            let mut now = Time(0);
            for _ in 0..20_000 {
                let n = host.room().min(down.len() - down_at);
                host.write(&down[down_at..down_at + n]);
                down_at += n;
                let n = guest.room().min(up.len() - up_at);
                guest.write(&up[up_at..up_at + n]);
                up_at += n;
                let mut lines = [Vec::new(), Vec::new()];
                host.transmit(now, 4096, &mut lines[0]);
                guest.transmit(now, 4096, &mut lines[1]);
                let idle = lines.iter().all(Vec::is_empty);
                if let Some((which, what, at)) = damage.next() {
                    let line = &mut lines[usize::from(which)];
                    if !line.is_empty() {
                        let at = at % line.len();
                        match what {
                            0 => line[at] ^= 0x40,
                            1 => { line.remove(at); }
                            _ => line.insert(at, 0),
                        }
                    }
                }
                guest.receive(&lines[0], now, |line, bytes| {
                    if line == Line::Bytes { to_guest.extend_from_slice(bytes); }
                    Ok(())
                }).unwrap();
                host.receive(&lines[1], now, |_, bytes| { to_host.extend_from_slice(bytes); Ok(()) }).unwrap();
                if idle {
                    match [host.deadline(), guest.deadline()].into_iter().flatten().min() {
                        Some(next) => now = next.max(now),
                        None => break,
                    }
                }
                now = now.plus(100);
            }
            prop_assert!(to_guest == down, "{} of {}", to_guest.len(), down.len());
            prop_assert!(to_host == up, "{} of {}", to_host.len(), up.len());
            prop_assert!(host.is_flushed() && guest.is_flushed());
        }
    }

    #[test]
    fn a_restarted_guest_says_so() {
        let mut host = Serial::host(9);
        host.write(&[1; 2000]);
        let mut line = Vec::new();
        host.transmit(Time(0), 100_000, &mut line);
        // Without its first packet no guest can know the epoch...
        let second = line.iter().position(|b| *b == 0).unwrap() + 1;
        let answer = |guest: &mut Serial, line: &[u8]| {
            guest.receive(line, Time(0), |_, _| Ok(())).unwrap();
            let mut back = Vec::new();
            guest.transmit(Time(0), 1000, &mut back);
            back
        };
        let lost = answer(&mut Serial::guest(), &line[second..]);
        assert_eq!(host.receive(&lost, Time(0), |_, _| Ok(())), Ok(()));
        // ... but one that has answered before and does not know it now was restarted.
        let known = answer(&mut Serial::guest(), &line[..second]);
        assert_eq!(host.receive(&known, Time(0), |_, _| Ok(())), Ok(()));
        let back = answer(&mut Serial::guest(), &line[second..]);
        assert_eq!(
            host.receive(&back, Time(0), |_, _| Ok(())),
            Err(Violation::Reset)
        );
    }
}
