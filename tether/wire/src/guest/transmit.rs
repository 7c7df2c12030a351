//! What goes out, and in which order.

use super::{Answer, Greeting, GuestSession, SetupState};
use crate::Time;
use crate::codec::encode;
use crate::frame::{Direction, Nonce};
use crate::guest::streams::Process;
use crate::handshake::HELLO;
use crate::message::{Error, ErrorKind, Output, RunState, ToHost};
use alloc::vec::Vec;

impl GuestSession {
    /// Appends what should be sent now, at most about 64 KiB: greetings, answers and exits first,
    /// then every stream in turn. Call it when everything it gave before is written.
    pub fn transmit(&mut self, now: Time, out: &mut Vec<u8>) {
        if let Some(nonce) = self.connection.nonce() {
            if core::mem::take(&mut self.echo_preamble) {
                self.carrier.preamble(&nonce, out);
            }
            while self.carrier.wants_frames(out) && self.transmit_one(&nonce, out) {}
        }
        self.carrier.flush(now, out);
    }

    /// Whether [`GuestSession::transmit`] would give something, timers aside.
    pub fn wants_to_send(&self) -> bool {
        self.echo_preamble
            || !self.greetings.is_empty()
            || (self.is_open()
                && (self.pong.is_some()
                    || !self.events.is_empty()
                    || self
                        .answers
                        .values()
                        .any(|answer| matches!(answer, Answer::Ready { due: true, .. }))
                    || self.processes.values().any(Process::wants_to_send)))
    }

    fn transmit_one(&mut self, nonce: &Nonce, out: &mut Vec<u8>) -> bool {
        match self.greetings.pop_front() {
            Some(Greeting::Hello(hello)) => {
                return self.carrier.frame(nonce, Direction::ToHost, out, |out| {
                    out.push(HELLO);
                    encode(&hello, out);
                });
            }
            Some(Greeting::Resume) => {
                let resume = self.resume();
                return self.message_out(nonce, out, &resume);
            }
            None => {}
        }
        if !self.is_open() {
            return false;
        }
        if let Some(token) = self.pong.take() {
            return self.message_out(nonce, out, &ToHost::Pong { token });
        }
        if let Some((id, result)) = self
            .answers
            .iter_mut()
            .find_map(|(id, answer)| match answer {
                Answer::Ready { result, due } if *due => {
                    *due = false;
                    Some((*id, result.clone()))
                }
                _ => None,
            })
        {
            if !self.message_out(nonce, out, &ToHost::Reply { id, result }) {
                let result = Err(Error::new(
                    ErrorKind::Limit,
                    "the answer is too long for one message",
                ));
                self.message_out(nonce, out, &ToHost::Reply { id, result });
            }
            return true;
        }
        if let Some(event) = self.events.pop_front() {
            self.message_out(nonce, out, &ToHost::Event(event));
            return true;
        }
        self.transmit_stream(nonce, out)
    }

    /// One frame of the next process in turn that has something to send.
    fn transmit_stream(&mut self, nonce: &Nonce, out: &mut Vec<u8>) -> bool {
        let after = (
            core::ops::Bound::Excluded(self.turn),
            core::ops::Bound::Unbounded,
        );
        let next = self
            .processes
            .range(after)
            .chain(self.processes.range(..=self.turn));
        let Some(process) = next
            .into_iter()
            .find(|(_, p)| p.wants_to_send())
            .map(|(id, _)| *id)
        else {
            return false;
        };
        self.turn = process;
        let most = self.carrier.chunk();
        let carrier = &mut self.carrier;
        let Some(p) = self.processes.get_mut(&process) else {
            return false;
        };
        let mut send = |message: &ToHost<'_>| {
            carrier.frame(nonce, Direction::ToHost, out, |out| encode(message, out));
        };
        if core::mem::take(&mut p.input.dirty) {
            send(&ToHost::InputRoom {
                process,
                taken: p.input.taken(),
                limit: p.input.limit(),
            });
        }
        for output in [Output::Stdout, Output::Stderr] {
            let stream = p.output(output);
            let mut n = 0;
            if let Some((offset, data)) = stream.next(most) {
                n = data.len();
                send(&ToHost::Output {
                    process,
                    output,
                    offset,
                    data,
                });
            }
            stream.sent(n);
            if let Some(offset) = stream.take_end() {
                send(&ToHost::OutputEnd {
                    process,
                    output,
                    offset,
                });
            }
        }
        if core::mem::take(&mut p.exit_due)
            && let RunState::Exited(exit) = p.run
        {
            send(&ToHost::Exited { process, exit });
        }
        true
    }

    fn resume(&self) -> ToHost<'static> {
        let setup = match &self.setup {
            SetupState::Finished(result) => Some(result.clone()),
            _ => None,
        };
        ToHost::Resume {
            setup,
            processes: self.processes.iter().map(|(id, p)| p.state(*id)).collect(),
        }
    }

    fn message_out(&mut self, nonce: &Nonce, out: &mut Vec<u8>, message: &ToHost<'_>) -> bool {
        self.carrier
            .frame(nonce, Direction::ToHost, out, |out| encode(message, out))
    }
}
