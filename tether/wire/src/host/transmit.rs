//! What goes out, and in which order.

use super::streams::Process;
use super::{Acknowledge, Connection, HostSession, Sending};
use crate::carrier::Carrier;
use crate::codec::encode;
use crate::frame::{Direction, Nonce};
use crate::handshake::{HELLO, HostHello, PROOF, VERSION_MAX, VERSION_MIN};
use crate::message::{Output, ProcessId, RequestId, ToGuest};
use crate::{MAX_FRAME, Time};
use alloc::vec::Vec;
use core::ops::Bound;

/// And the longest such pause.
const GREETING_TIMEOUT_MOST: u64 = 8_000_000;
/// How long an acknowledgement waits for more to say, in microseconds.
const ACKNOWLEDGE_WITHIN: u64 = 2_000;

impl HostSession {
    /// When [`HostSession::transmit`] has to be called at the latest.
    pub fn timeout(&self) -> Option<Time> {
        let greeting = match &self.connection {
            Connection::Greeting { again_at, .. } => *again_at,
            _ => None,
        };
        let carrier = self.carrier.as_ref().and_then(Carrier::deadline);
        let acknowledge = match self.acknowledge {
            Acknowledge::At(at) => Some(at),
            Acknowledge::Nothing | Acknowledge::Soon => None,
        };
        [greeting, carrier, acknowledge].into_iter().flatten().min()
    }

    /// Appends what should be sent now, at most about 64 KiB. Call it when everything it gave
    /// before is written, after every other call.
    pub fn transmit(&mut self, now: Time, out: &mut Vec<u8>) {
        let Some(mut carrier) = self.carrier.take() else {
            return;
        };
        self.greet(&mut carrier, now, out);
        match self.acknowledge {
            Acknowledge::Soon => self.acknowledge = Acknowledge::At(now.plus(ACKNOWLEDGE_WITHIN)),
            Acknowledge::At(at) if at <= now => {
                self.acknowledge = Acknowledge::Nothing;
                self.processes.values_mut().for_each(Process::hurry);
            }
            Acknowledge::Nothing | Acknowledge::At(_) => {}
        }
        while carrier.wants_frames(out) && self.transmit_one(&mut carrier, out) {}
        carrier.flush(now, out);
        self.carrier = Some(carrier);
    }

    fn greet(&mut self, carrier: &mut Carrier, now: Time, out: &mut Vec<u8>) {
        let hello = HostHello {
            min: VERSION_MIN,
            max: VERSION_MAX,
            session: self.session,
        };
        let Connection::Greeting {
            nonce,
            due,
            again_at,
            pause,
            padding,
        } = &mut self.connection
        else {
            return;
        };
        if !core::mem::take(due) {
            // A serial line repeats what was lost by itself.
            if carrier.is_serial() || again_at.is_none_or(|at| now < at) {
                return;
            }
            *padding = (*padding * 4).clamp(4096, MAX_FRAME + 4096);
            out.resize(out.len() + *padding, 0);
        }
        if !carrier.is_serial() {
            *again_at = Some(now.plus(*pause));
            *pause = (*pause * 2).min(GREETING_TIMEOUT_MOST);
        }
        carrier.preamble(nonce, out);
        carrier.frame(nonce, Direction::ToGuest, out, |out| {
            out.push(HELLO);
            encode(&hello, out);
        });
    }

    fn transmit_one(&mut self, carrier: &mut Carrier, out: &mut Vec<u8>) -> bool {
        let nonce = match &mut self.connection {
            Connection::Down | Connection::Refused | Connection::Greeting { .. } => return false,
            Connection::Proven { nonce, proof, .. } => {
                let nonce = *nonce;
                if let Some(proof) = proof.take() {
                    return carrier.frame(&nonce, Direction::ToGuest, out, |out| {
                        out.push(PROOF);
                        encode(&proof, out);
                    });
                }
                nonce
            }
            Connection::Open { nonce } => *nonce,
        };
        let open = self.is_open();
        let mut send = |message: &ToGuest<'_>| {
            carrier.frame(&nonce, Direction::ToGuest, out, |out| encode(message, out))
        };
        let settled = self
            .requests
            .keys()
            .next()
            .copied()
            .unwrap_or(RequestId(self.next_request));
        // Requests go out behind the proof without waiting for the state to resume from: the
        // guest knows those it has seen.
        let fresh = self.boot_id.is_none() || open;
        if fresh
            && let Some((id, (request, sending))) = self
                .requests
                .iter_mut()
                .find(|(_, (_, sending))| *sending != Sending::Now)
        {
            *sending = Sending::Now;
            self.settled_sent = settled.0;
            return send(&ToGuest::Request {
                id: *id,
                settled,
                request: request.clone(),
            });
        }
        if !open {
            return false;
        }
        if let Some(token) = self.ping.take() {
            return send(&ToGuest::Ping { token });
        }
        if settled.0 > self.settled_sent {
            self.settled_sent = settled.0;
            return send(&ToGuest::Settled { below: settled });
        }
        self.transmit_stream(&nonce, carrier, out)
    }

    /// What the next process in turn that has something to say has to say.
    fn transmit_stream(&mut self, nonce: &Nonce, carrier: &mut Carrier, out: &mut Vec<u8>) -> bool {
        let most = carrier.chunk();
        let mut send = |message: &ToGuest<'_>| {
            carrier.frame(nonce, Direction::ToGuest, out, |out| encode(message, out))
        };
        for turn in [
            (Bound::Excluded(self.turn), Bound::Unbounded),
            (Bound::Unbounded, Bound::Included(self.turn)),
        ] {
            for (&process, p) in self.processes.range_mut(turn) {
                if p.transmit(process, most, &mut send) {
                    self.turn = process;
                    return true;
                }
            }
        }
        false
    }
}

impl Process {
    /// Its acknowledgements and at most `most` bytes of its input; whether any was sent.
    fn transmit(
        &mut self,
        process: ProcessId,
        most: usize,
        send: &mut impl FnMut(&ToGuest<'_>) -> bool,
    ) -> bool {
        let mut any = false;
        for output in [Output::Stdout, Output::Stderr] {
            if let Some((stored, limit)) = self.output(output).take_ack() {
                any |= send(&ToGuest::Ack {
                    process,
                    output,
                    stored,
                    limit,
                });
            }
        }
        let mut n = 0;
        if let Some((offset, data)) = self.input.next(most) {
            n = data.len();
            any |= send(&ToGuest::Input {
                process,
                offset,
                data,
            });
        }
        self.input.sent(n);
        if let Some(offset) = self.input.take_end() {
            any |= send(&ToGuest::InputEnd { process, offset });
        }
        any
    }
}
