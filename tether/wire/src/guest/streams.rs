//! One process's three streams at the guest's end.

use crate::message::{InputState, Output, OutputState, ProcessState, RunState, Stdio};
use crate::ring::Ring;
use crate::{
    BUFFER_BUDGET, INITIAL_INPUT_CREDIT, INITIAL_OUTPUT_CREDIT, INPUT_BUFFER, Input, OUTPUT_BUFFER,
    SMALL_BUFFER, Violation,
};

/// An output stream: read from the process, kept until the host has stored it.
///
/// `stored <= sent <= produced`, and `sent <= limit` but for what an earlier connection sent.
#[derive(Debug, Default)]
pub(crate) struct OutputStream {
    /// Holds `stored .. produced`.
    ring: Ring,
    stored: u64,
    sent: u64,
    limit: u64,
    ended: bool,
    end_sent: bool,
    /// The adapter found no room and waits.
    starved: bool,
}

impl OutputStream {
    fn new(open: bool) -> Self {
        Self {
            limit: INITIAL_OUTPUT_CREDIT,
            ended: !open,
            end_sent: !open,
            ..Self::default()
        }
    }

    pub(crate) fn produced(&self) -> u64 {
        self.stored + self.ring.len() as u64
    }

    pub(crate) fn room(&mut self, used: usize) -> &mut [u8] {
        let bound = if used > BUFFER_BUDGET {
            SMALL_BUFFER
        } else {
            OUTPUT_BUFFER
        };
        // A buffer that grew before the budget was used up is not filled further.
        let full = self.ended || self.ring.len() >= bound;
        self.starved = full && !self.ended;
        if full {
            return &mut [];
        }
        self.ring.room(bound)
    }

    pub(crate) fn filled(&mut self, n: usize) {
        self.ring.filled(n);
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// A new connection: everything not stored is sent again once the host opens credit.
    fn reconnect(&mut self) {
        self.sent = self.stored;
        self.limit = 0;
        self.end_sent = false;
    }

    /// What the host says; true when a starved adapter may go on.
    pub(crate) fn acknowledge(&mut self, stored: u64, limit: u64) -> Result<bool, Violation> {
        if stored > self.produced() {
            return Err(Violation::Overrun(
                "an acknowledgement of bytes that were never written",
            ));
        }
        if stored > self.stored {
            self.ring.consume((stored - self.stored) as usize);
            self.stored = stored;
            self.sent = self.sent.max(stored);
        }
        if self.ended && self.ring.len() == 0 {
            self.ring.clear();
        }
        self.limit = self.limit.max(limit);
        // Room is told in steps worth a read: else a full buffer would go on a few bytes at a time,
        // as fast as the host acknowledges them.
        let worth = self.ring.len() <= OUTPUT_BUFFER / 4 * 3;
        Ok(worth && core::mem::take(&mut self.starved))
    }

    /// Offset and bytes to send next, at most `most`.
    pub(crate) fn next(&self, most: usize) -> Option<(u64, &[u8])> {
        let credit = self.limit.saturating_sub(self.sent).min(most as u64) as usize;
        let bytes = self.ring.peek((self.sent - self.stored) as usize, credit);
        (!bytes.is_empty()).then_some((self.sent, bytes))
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.sent += n as u64;
    }

    /// The stream's length, once, when all of it was sent.
    pub(crate) fn take_end(&mut self) -> Option<u64> {
        if !self.ended || self.end_sent || self.sent < self.produced() {
            return None;
        }
        self.end_sent = true;
        Some(self.produced())
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        let more = self.sent < self.produced();
        (more && self.sent < self.limit) || (!more && self.ended && !self.end_sent)
    }

    /// The host has all of it.
    pub(crate) fn is_stored(&self) -> bool {
        self.ring.len() == 0
    }

    fn state(&self) -> OutputState {
        OutputState {
            stored: self.stored,
            produced: self.produced(),
            ended: self.ended,
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.ring.capacity()
    }
}

/// Standard input: received from the host, kept until the process has taken it.
#[derive(Debug, Default)]
pub(crate) struct InputStream {
    /// Holds `taken .. received`.
    ring: Ring,
    taken: u64,
    limit: u64,
    ended: bool,
    /// The process no longer reads: the rest is taken and thrown away.
    abandoned: bool,
    /// The host should hear of `taken` and `limit`.
    pub(crate) dirty: bool,
}

impl InputStream {
    fn new(open: bool) -> Self {
        Self {
            limit: INITIAL_INPUT_CREDIT,
            abandoned: !open,
            ..Self::default()
        }
    }

    fn received(&self) -> u64 {
        self.taken + self.ring.len() as u64
    }

    /// Bytes from the host; true when the process has something new to read.
    pub(crate) fn receive(&mut self, offset: u64, data: &[u8]) -> Result<bool, Violation> {
        let received = self.received();
        let Some(known) = received.checked_sub(offset) else {
            return Err(Violation::Unexpected("standard input with a gap"));
        };
        let Some(fresh) = usize::try_from(known)
            .ok()
            .and_then(|known| data.get(known..))
        else {
            return Ok(false);
        };
        if received + fresh.len() as u64 > self.limit {
            return Err(Violation::Overrun("standard input"));
        }
        if fresh.is_empty() || self.ended {
            return Ok(false);
        }
        if self.abandoned {
            self.taken += fresh.len() as u64;
            self.grant(0);
            return Ok(false);
        }
        let kept = self.ring.push(fresh, INPUT_BUFFER);
        if kept != fresh.len() {
            return Err(Violation::Overrun("standard input"));
        }
        Ok(true)
    }

    pub(crate) fn end(&mut self, offset: u64) -> Result<bool, Violation> {
        if offset != self.received() {
            return if self.ended {
                Ok(false)
            } else {
                Err(Violation::Unexpected("the end of input with a gap"))
            };
        }
        Ok(!core::mem::replace(&mut self.ended, true))
    }

    pub(crate) fn peek(&self) -> Input<'_> {
        match self.ring.peek(0, usize::MAX) {
            [] if self.ended => Input::End,
            [] => Input::Empty,
            bytes => Input::Data(bytes),
        }
    }

    pub(crate) fn take(&mut self, n: usize, used: usize) {
        let n = n.min(self.ring.len());
        self.ring.consume(n);
        self.taken += n as u64;
        self.grant(used);
    }

    pub(crate) fn abandon(&mut self, used: usize) {
        self.taken = self.received();
        self.ring.clear();
        self.abandoned = true;
        self.grant(used);
    }

    /// Moves the limit in steps, so that a word to the host buys many bytes.
    fn grant(&mut self, used: usize) {
        let window = if used > BUFFER_BUDGET {
            SMALL_BUFFER
        } else {
            INPUT_BUFFER
        } as u64;
        let limit = self.taken + window;
        if limit >= self.limit + window / 4 || (self.ring.len() == 0 && limit > self.limit) {
            self.limit = limit;
            self.dirty = true;
        }
    }

    fn state(&self) -> InputState {
        InputState {
            received: self.received(),
            taken: self.taken,
            limit: self.limit,
            ended: self.ended,
        }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn held(&self) -> usize {
        self.ring.capacity()
    }
}

/// A process and its streams.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) run: RunState,
    pub(crate) exit_due: bool,
    pub(crate) input: InputStream,
    outputs: [OutputStream; 2],
}

impl Process {
    pub(crate) fn new(stdio: Stdio) -> Self {
        let (stdin, stderr) = match stdio {
            Stdio::Pipes { stdin } => (stdin, true),
            Stdio::Terminal { stdin, .. } => (stdin, false),
        };
        Self {
            run: RunState::Starting,
            exit_due: false,
            input: InputStream::new(stdin),
            outputs: [OutputStream::new(true), OutputStream::new(stderr)],
        }
    }

    pub(crate) fn output(&mut self, output: Output) -> &mut OutputStream {
        &mut self.outputs[match output {
            Output::Stdout => 0,
            Output::Stderr => 1,
        }]
    }

    pub(crate) fn reconnect(&mut self) {
        self.exit_due = false;
        self.input.dirty = false;
        self.outputs.iter_mut().for_each(OutputStream::reconnect);
    }

    pub(crate) fn state(&self, process: crate::message::ProcessId) -> ProcessState {
        let [stdout, stderr] = &self.outputs;
        ProcessState {
            process,
            run: self.run,
            input: self.input.state(),
            stdout: stdout.state(),
            stderr: stderr.state(),
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.input.held() + self.outputs.iter().map(OutputStream::held).sum::<usize>()
    }

    pub(crate) fn is_stored(&self) -> bool {
        !self.exit_due && self.outputs.iter().all(OutputStream::is_stored)
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        self.exit_due || self.input.dirty || self.outputs.iter().any(OutputStream::wants_to_send)
    }
}
