//! Frames on a byte stream that does not damage bytes, but may begin in the middle of something.
//!
//! ```text
//!   preamble   MAGIC (8)  nonce (16)                     the host's nonce, echoed by the guest
//!   frame      length u32 LE (1 ..= MAX_FRAME)  body  tag u32 LE
//! ```
//!
//! A reader *hunts* until it sees a preamble, then reads frames. The tag is taken from the nonce,
//! so it costs nothing to compute and a process that writes look-alike frames cannot know it. A
//! virtio-serial port hands a new host whatever was left over from the last one: a frame cut short
//! by that has a wrong tag, and the reader hunts again *inside* what it took for the frame, so
//! the preamble that it swallowed is found.

use crate::MAX_FRAME;
use alloc::vec::Vec;

/// Begins a connection in either direction. Read as a length it is over [`MAX_FRAME`], so a
/// preamble between frames is never taken for one.
pub const MAGIC: [u8; 8] = *b"\xffTETHER1";
/// Length of a preamble.
pub const PREAMBLE: usize = MAGIC.len() + 16;
/// What a frame costs beside its body.
pub const OVERHEAD: usize = 8;

/// A connection's nonce, chosen by the host.
pub type Nonce = [u8; 16];

/// Which end wrote a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host.
    ToGuest,
    /// From the guest.
    ToHost,
}

fn tag(nonce: &Nonce, direction: Direction) -> [u8; 4] {
    let at = match direction {
        Direction::ToGuest => 0,
        Direction::ToHost => 4,
    };
    [nonce[at], nonce[at + 1], nonce[at + 2], nonce[at + 3]]
}

/// Writes a preamble.
pub fn write_preamble(nonce: &Nonce, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(nonce);
}

/// Writes one frame whose body `write` appends. Returns false, with nothing written, when the
/// body came out empty or over [`MAX_FRAME`].
pub fn write_frame(
    nonce: &Nonce,
    direction: Direction,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = out.len() - start - 4;
    if length == 0 || length > MAX_FRAME {
        out.truncate(start);
        return false;
    }
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&tag(nonce, direction));
    true
}

/// What a reader found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A connection began.
    Preamble(Nonce),
    /// A frame's body.
    Frame(&'a [u8]),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Hunting,
    Reading(Nonce),
}

/// Takes bytes, gives preambles and frames. Holds at most one frame and what was pushed last.
#[derive(Debug)]
pub struct FrameReader {
    direction: Direction,
    /// Only this nonce begins a connection (the host's end); `None` takes any (the guest's).
    expected: Option<Nonce>,
    state: State,
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// A guest's reader: any preamble begins a connection.
    pub fn guest() -> Self {
        Self {
            direction: Direction::ToGuest,
            expected: None,
            state: State::Hunting,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// A host's reader: only the echo of its own nonce begins the connection.
    pub fn host(nonce: Nonce) -> Self {
        Self {
            direction: Direction::ToHost,
            expected: Some(nonce),
            state: State::Hunting,
            buffer: Vec::new(),
            start: 0,
        }
    }

    /// Forgets everything; hunts.
    pub fn reset(&mut self) {
        self.state = State::Hunting;
        self.buffer = Vec::new();
        self.start = 0;
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Adds bytes. Call [`FrameReader::next`] until it gives nothing before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * crate::MAX_CHUNK {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing found in what was pushed.
    #[expect(clippy::should_implement_trait, reason = "borrows from self")]
    pub fn next(&mut self) -> Option<Found<'_>> {
        loop {
            match self.state {
                State::Hunting => {
                    let nonce = self.hunt()?;
                    self.state = State::Reading(nonce);
                    return Some(Found::Preamble(nonce));
                }
                State::Reading(nonce) => {
                    let held = &self.buffer[self.start..];
                    let length = held.first_chunk::<4>()?;
                    let length = u32::from_le_bytes(*length) as usize;
                    if length == 0 || length > MAX_FRAME {
                        self.state = State::Hunting;
                        continue;
                    }
                    if held.len() < length + OVERHEAD {
                        return None;
                    }
                    if held[4 + length..length + OVERHEAD] != tag(&nonce, self.direction) {
                        self.start += 1;
                        self.state = State::Hunting;
                        continue;
                    }
                    let body = self.start + 4;
                    self.start += length + OVERHEAD;
                    return Some(Found::Frame(&self.buffer[body..body + length]));
                }
            }
        }
    }

    /// Finds the next preamble; drops what cannot be part of one.
    fn hunt(&mut self) -> Option<Nonce> {
        loop {
            let held = &self.buffer[self.start..];
            let Some(at) = held.iter().position(|byte| *byte == MAGIC[0]) else {
                self.buffer.clear();
                self.start = 0;
                return None;
            };
            self.start += at;
            let held = &self.buffer[self.start..];
            let n = held.len().min(MAGIC.len());
            if held[..n] != MAGIC[..n] {
                self.start += 1;
                continue;
            }
            let nonce = held.get(MAGIC.len()..PREAMBLE)?;
            let nonce: Nonce = nonce.try_into().ok()?;
            if self.expected.is_some_and(|expected| expected != nonce) {
                self.start += 1;
                continue;
            }
            self.start += PREAMBLE;
            return Some(nonce);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const NONCE: Nonce = *b"0123456789abcdef";
    const OTHER: Nonce = *b"fedcba9876543210";

    fn frame(nonce: &Nonce, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(write_frame(nonce, Direction::ToGuest, &mut out, |out| out
            .extend_from_slice(body)));
        out
    }

    fn preamble(nonce: &Nonce) -> Vec<u8> {
        let mut out = Vec::new();
        write_preamble(nonce, &mut out);
        out
    }

    fn all(reader: &mut FrameReader, bytes: &[u8], step: usize) -> Vec<Result<Vec<u8>, Nonce>> {
        let mut found = Vec::new();
        for part in bytes.chunks(step.max(1)) {
            reader.push(part);
            while let Some(next) = reader.next() {
                found.push(match next {
                    Found::Preamble(nonce) => Err(nonce),
                    Found::Frame(body) => Ok(body.to_vec()),
                });
            }
            assert!(reader.held() <= MAX_FRAME + OVERHEAD + part.len());
        }
        found
    }

    proptest! {
        #[test]
        fn frames_come_through_whatever_the_pieces(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
            step in 1usize..400,
        ) {
            let mut bytes = garbage;
            bytes.extend(preamble(&NONCE));
            for body in &bodies { bytes.extend(frame(&NONCE, body)); }
            let mut reader = FrameReader::guest();
            let mut expected = vec![Err(NONCE)];
            expected.extend(bodies.into_iter().map(Ok));
            prop_assert_eq!(all(&mut reader, &bytes, step), expected);
        }

        #[test]
        fn a_frame_cut_short_by_a_new_connection_is_dropped_and_the_connection_found(
            body in prop::collection::vec(any::<u8>(), 1..3000),
            cut in 0usize..3000,
            step in 1usize..400,
        ) {
            let whole = frame(&NONCE, &body);
            let cut = cut.min(whole.len() - 1);
            let mut bytes = preamble(&NONCE);
            bytes.extend(&whole[..cut]);
            bytes.extend(preamble(&OTHER));
            bytes.extend(frame(&OTHER, b"hello"));
            // What a host does when nothing answers: zeros, then the preamble again.
            bytes.extend(vec![0; body.len() + OVERHEAD]);
            bytes.extend(preamble(&OTHER));
            bytes.extend(frame(&OTHER, b"hello"));
            let found = all(&mut FrameReader::guest(), &bytes, step);
            prop_assert_eq!(&found[0], &Err(NONCE));
            prop_assert_eq!(&found[found.len() - 2..], &[Err(OTHER), Ok(b"hello".to_vec())]);
            for between in &found[1..found.len() - 2] {
                prop_assert!(*between == Err(OTHER) || *between == Ok(b"hello".to_vec()));
            }
        }

        #[test]
        fn a_reader_survives_anything(bytes in prop::collection::vec(any::<u8>(), 0..5000), step in 1usize..500) {
            let mut with = preamble(&NONCE);
            with.extend(bytes);
            all(&mut FrameReader::guest(), &with, step);
        }
    }

    #[test]
    fn a_host_takes_only_the_echo_of_its_own_nonce() {
        let mut bytes = preamble(&OTHER);
        bytes.extend(preamble(&NONCE));
        assert_eq!(
            all(&mut FrameReader::host(NONCE), &bytes, 7),
            vec![Err(NONCE)]
        );
    }

    #[test]
    fn an_oversized_frame_is_not_written() {
        let mut out = Vec::new();
        assert!(!write_frame(&NONCE, Direction::ToHost, &mut out, |out| out
            .resize(out.len() + MAX_FRAME + 1, 0)));
        assert!(out.is_empty());
    }
}
