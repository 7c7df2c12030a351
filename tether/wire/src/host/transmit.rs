//! What goes out, and in which order.

use super::{Connection, HostSession, Sending};
use crate::carrier::Carrier;
use crate::codec::encode;
use crate::frame::Direction;
use crate::handshake::{HELLO, HostHello, PROOF, VERSION_MAX, VERSION_MIN};
use crate::message::{Output, ProcessId, RequestId, ToGuest};
use crate::{MAX_FRAME, Time};
use alloc::vec::Vec;

/// And the longest such pause.
const GREETING_TIMEOUT_MOST: u64 = 8_000_000;

impl HostSession {
    /// When [`HostSession::transmit`] has to be called at the latest.
    pub fn timeout(&self) -> Option<Time> {
        let greeting = match &self.connection {
            Connection::Greeting { again_at, .. } => *again_at,
            _ => None,
        };
        let carrier = self.carrier.as_ref().and_then(Carrier::deadline);
        [greeting, carrier].into_iter().flatten().min()
    }

    /// Appends what should be sent now, at most about 64 KiB. Call it when everything it gave
    /// before is written, after every other call.
    pub fn transmit(&mut self, now: Time, out: &mut Vec<u8>) {
        let Some(mut carrier) = self.carrier.take() else {
            return;
        };
        self.greet(&mut carrier, now, out);
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
        let most = carrier.chunk();
        let after = (
            core::ops::Bound::Excluded(self.turn),
            core::ops::Bound::Unbounded,
        );
        let ids: Vec<ProcessId> = self.processes.range(after).map(|(id, _)| *id).collect();
        let ids = ids.into_iter().chain(
            self.processes
                .range(..=self.turn)
                .map(|(id, _)| *id)
                .collect::<Vec<_>>(),
        );
        for process in ids {
            let Some(p) = self.processes.get_mut(&process) else {
                continue;
            };
            let mut any = false;
            let mut send = |message: &ToGuest<'_>| {
                carrier.frame(&nonce, Direction::ToGuest, out, |out| encode(message, out))
            };
            for output in [Output::Stdout, Output::Stderr] {
                if let Some((stored, limit)) = p.output(output).take_ack() {
                    any |= send(&ToGuest::Ack {
                        process,
                        output,
                        stored,
                        limit,
                    });
                }
            }
            let mut n = 0;
            if let Some((offset, data)) = p.input.next(most) {
                n = data.len();
                any |= send(&ToGuest::Input {
                    process,
                    offset,
                    data,
                });
            }
            p.input.sent(n);
            if let Some(offset) = p.input.take_end() {
                any |= send(&ToGuest::InputEnd { process, offset });
            }
            if any {
                self.turn = process;
                return true;
            }
        }
        false
    }
}
