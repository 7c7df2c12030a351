//! One process's three streams at the host's end.

use crate::message::{Exit, InputState, Output, OutputState, ProcessState, RunState};
use crate::ring::Ring;
use crate::{INITIAL_INPUT_CREDIT, INITIAL_OUTPUT_CREDIT, INPUT_BUFFER, OUTPUT_WINDOW, Violation};

/// An output stream: received, and stored by the caller some time later.
#[derive(Debug)]
pub(crate) struct OutputStream {
    received: u64,
    stored: u64,
    limit: u64,
    ended: bool,
    /// The guest should hear of `stored` and the new limit.
    dirty: bool,
    /// At once: nothing was said of it on this connection, or it was held back for long enough.
    due: bool,
}

impl OutputStream {
    fn new(stored: u64) -> Self {
        Self {
            received: stored,
            stored,
            limit: INITIAL_OUTPUT_CREDIT,
            ended: false,
            dirty: false,
            due: false,
        }
    }

    /// Bytes from the guest: how many of the first are known already.
    pub(crate) fn receive(&mut self, offset: u64, length: usize) -> Result<usize, Violation> {
        let Some(known) = self.received.checked_sub(offset) else {
            return Err(Violation::Unexpected("output with a gap"));
        };
        let end = offset
            .checked_add(length as u64)
            .ok_or(Violation::Malformed)?;
        if end > self.limit {
            return Err(Violation::Overrun("output"));
        }
        if self.ended && end > self.received {
            return Err(Violation::Unexpected("output after its end"));
        }
        self.received = self.received.max(end);
        Ok(usize::try_from(known).unwrap_or(usize::MAX).min(length))
    }

    /// The end; whether that is news.
    pub(crate) fn end(&mut self, offset: u64) -> Result<bool, Violation> {
        if offset != self.received {
            return Err(Violation::Unexpected("the end of output with a gap"));
        }
        Ok(!core::mem::replace(&mut self.ended, true))
    }

    pub(crate) fn stored(&mut self, offset: u64) {
        let offset = offset.min(self.received);
        if offset > self.stored {
            self.stored = offset;
            self.dirty = true;
        }
    }

    /// A new connection: what the guest still has; gives the gap where it has less than we need.
    fn resume(&mut self, state: &OutputState) -> Option<(u64, u64)> {
        let gap = (state.stored > self.received).then_some((self.received, state.stored));
        if gap.is_some() {
            self.received = state.stored;
            self.stored = state.stored;
        }
        // The guest has no credit on a new connection until it hears from us (or what a start
        // that is as new as the connection gave it).
        self.limit = self.stored + OUTPUT_WINDOW;
        self.dirty = true;
        self.due = true;
        gap
    }

    /// What was held back is held back no longer.
    fn hurry(&mut self) {
        self.due |= self.dirty;
    }

    pub(crate) fn take_ack(&mut self) -> Option<(u64, u64)> {
        // While much is on its way a word now and then is enough: each one interrupts the guest.
        let due = self.dirty
            && (self.due
                || (self.ended && self.stored == self.received)
                || self.stored + OUTPUT_WINDOW >= self.limit + OUTPUT_WINDOW / 8);
        due.then(|| {
            self.dirty = false;
            self.due = false;
            self.limit = self.limit.max(self.stored + OUTPUT_WINDOW);
            (self.stored, self.limit)
        })
    }
}

/// Standard input: kept until the guest has taken it.
#[derive(Debug)]
pub(crate) struct InputStream {
    /// Holds `taken ..` what the caller has written.
    ring: Ring,
    taken: u64,
    sent: u64,
    limit: u64,
    ended: bool,
    end_sent: bool,
    /// The caller was refused room and waits.
    starved: bool,
    /// The process ended: nobody reads this.
    discarded: bool,
}

impl InputStream {
    fn new() -> Self {
        Self {
            ring: Ring::default(),
            taken: 0,
            sent: 0,
            limit: INITIAL_INPUT_CREDIT,
            ended: false,
            end_sent: false,
            starved: false,
            discarded: false,
        }
    }

    fn written(&self) -> u64 {
        self.taken + self.ring.len() as u64
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        if self.ended {
            return data.len();
        }
        let n = self.ring.push(data, INPUT_BUFFER);
        self.starved = n < data.len();
        n
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// The guest's word; whether a starved caller may go on.
    pub(crate) fn room(&mut self, taken: u64, limit: u64) -> Result<bool, Violation> {
        if taken > self.sent {
            return Err(Violation::Overrun("input taken that was never sent"));
        }
        if taken > self.taken {
            self.ring.consume((taken - self.taken) as usize);
            self.taken = taken;
        }
        self.limit = self.limit.max(limit);
        Ok(self.ring.len() < INPUT_BUFFER && core::mem::take(&mut self.starved))
    }

    fn resume(&mut self, state: &InputState) {
        if self.discarded {
            // The process ended: whatever the guest had of its input, nothing more goes there.
            return;
        }
        if self.sent == 0 {
            // What is there came from another controller: we go on after it.
            self.taken = state.received;
        } else if state.taken > self.taken {
            self.ring.consume((state.taken - self.taken) as usize);
            self.taken = state.taken;
        }
        self.sent = state.received.max(self.taken);
        self.limit = state.limit;
        self.end_sent = state.ended;
        self.ended |= state.ended;
    }

    pub(crate) fn next(&self, most: usize) -> Option<(u64, &[u8])> {
        let credit = self.limit.saturating_sub(self.sent).min(most as u64) as usize;
        let bytes = self.ring.peek((self.sent - self.taken) as usize, credit);
        (!bytes.is_empty()).then_some((self.sent, bytes))
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.sent += n as u64;
    }

    pub(crate) fn take_end(&mut self) -> Option<u64> {
        if !self.ended || self.end_sent || self.sent < self.written() {
            return None;
        }
        self.end_sent = true;
        Some(self.written())
    }

    /// The caller waits for room, or wrote nothing yet.
    pub(crate) fn take_starved(&mut self) -> bool {
        core::mem::take(&mut self.starved)
    }

    pub(crate) fn discard(&mut self) {
        self.taken = self.written();
        self.sent = self.sent.max(self.taken);
        self.ring.clear();
        self.ended = true;
        self.end_sent = true;
        self.discarded = true;
    }
}

/// A process and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    /// The guest has said that it knows of it on this connection, or before.
    pub(crate) confirmed: bool,
    pub(crate) exit: Option<Exit>,
    pub(crate) input: InputStream,
    outputs: [OutputStream; 2],
}

impl Process {
    pub(crate) fn new() -> Self {
        Self::adopted(0, 0)
    }

    pub(crate) fn adopted(stdout: u64, stderr: u64) -> Self {
        Self {
            confirmed: false,
            exit: None,
            input: InputStream::new(),
            outputs: [OutputStream::new(stdout), OutputStream::new(stderr)],
        }
    }

    pub(crate) fn output(&mut self, output: Output) -> &mut OutputStream {
        &mut self.outputs[match output {
            Output::Stdout => 0,
            Output::Stderr => 1,
        }]
    }

    /// Its acknowledgements were held back for long enough.
    pub(crate) fn hurry(&mut self) {
        self.outputs.iter_mut().for_each(OutputStream::hurry);
    }

    /// Takes what the guest says after a reconnect. Gives gaps by stream, and whether the exit is news.
    pub(crate) fn resume(
        &mut self,
        state: &ProcessState,
    ) -> ([Option<(u64, u64)>; 2], Option<Exit>) {
        self.confirmed = true;
        self.input.resume(&state.input);
        let [stdout, stderr] = &mut self.outputs;
        let gaps = [stdout.resume(&state.stdout), stderr.resume(&state.stderr)];
        let news = match state.run {
            RunState::Exited(exit) if self.exit.is_none() => {
                self.exit = Some(exit);
                Some(exit)
            }
            _ => None,
        };
        (gaps, news)
    }
}
