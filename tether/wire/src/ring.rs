//! A byte queue that grows on demand to a bound and gives its memory back when it is empty and was
//! little used: a stream that flows keeps its buffer, one that falls silent does not.

use alloc::{boxed::Box, vec};

/// First allocation.
const SMALLEST: usize = 4 * 1024;

/// A ring of bytes. `capacity()` is what it holds of memory now.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    buffer: Box<[u8]>,
    head: usize,
    len: usize,
    /// Most bytes held since it was last empty.
    peak: usize,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Contiguous room for more bytes, growing up to `bound` bytes in all; empty when full.
    pub(crate) fn room(&mut self, bound: usize) -> &mut [u8] {
        if self.len == self.buffer.len() && self.len < bound {
            self.grow((self.len * 2).max(SMALLEST).min(bound));
        }
        let capacity = self.buffer.len();
        let free = capacity.min(bound).saturating_sub(self.len);
        if free == 0 {
            return &mut [];
        }
        let tail = (self.head + self.len) % capacity;
        let end = (tail + free).min(capacity);
        &mut self.buffer[tail..end]
    }

    /// Says that `n` bytes of the last `room` were filled.
    pub(crate) fn filled(&mut self, n: usize) {
        self.len = (self.len + n).min(self.buffer.len());
        self.peak = self.peak.max(self.len);
    }

    /// Appends what fits under `bound`, and says how much that was.
    pub(crate) fn push(&mut self, mut bytes: &[u8], bound: usize) -> usize {
        let before = bytes.len();
        let wanted = (self.len + bytes.len()).min(bound);
        if wanted > self.buffer.len() {
            self.grow(
                wanted
                    .next_power_of_two()
                    .max(SMALLEST)
                    .min(bound.max(SMALLEST)),
            );
        }
        while !bytes.is_empty() {
            let room = self.room(bound);
            let n = room.len().min(bytes.len());
            if n == 0 {
                break;
            }
            room[..n].copy_from_slice(&bytes[..n]);
            self.filled(n);
            bytes = &bytes[n..];
        }
        before - bytes.len()
    }

    /// Contiguous bytes from `offset` on, at most `most`; empty past the end.
    pub(crate) fn peek(&self, offset: usize, most: usize) -> &[u8] {
        if offset >= self.len {
            return &[];
        }
        let capacity = self.buffer.len();
        let start = (self.head + offset) % capacity;
        let n = (self.len - offset).min(most).min(capacity - start);
        &self.buffer[start..start + n]
    }

    /// Drops the first `n` bytes. A ring that comes to be empty gives its memory back when it is more
    /// than the smallest block and was not half used.
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        if self.len == 0 {
            self.head = 0;
            if self.buffer.len() > SMALLEST && self.peak < self.buffer.len() / 2 {
                self.buffer = Box::default();
            }
            self.peak = 0;
        } else {
            self.head = (self.head + n) % self.buffer.len();
        }
    }

    /// Drops everything and the memory.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn grow(&mut self, capacity: usize) {
        let mut buffer = vec![0u8; capacity].into_boxed_slice();
        let mut at = 0;
        while at < self.len {
            let part = self.peek(at, usize::MAX);
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.buffer = buffer;
        self.head = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Ring, SMALLEST};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[test]
    fn a_stream_that_falls_silent_gives_its_memory_back() {
        let mut ring = Ring::default();
        for _ in 0..3 {
            ring.push(&[0; 100_000], 131_072);
            ring.consume(100_000);
            assert_eq!(ring.capacity(), 131_072);
        }
        ring.push(b"last words", 131_072);
        ring.consume(10);
        assert!(ring.capacity() <= SMALLEST);
    }

    proptest! {
        #[test]
        fn a_ring_is_a_bounded_queue(steps in prop::collection::vec((any::<bool>(), 0usize..6000), 1..60)) {
            let bound = 20_000;
            let mut ring = Ring::default();
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in steps {
                if push {
                    let bytes: Vec<u8> = (0..n).map(|_| { next = next.wrapping_mul(31).wrapping_add(7); next }).collect();
                    let taken = ring.push(&bytes, bound);
                    prop_assert_eq!(taken, n.min(bound - model.len()));
                    model.extend(&bytes[..taken]);
                } else {
                    let n = n.min(model.len());
                    model.drain(..n);
                    ring.consume(n);
                }
                prop_assert_eq!(ring.len(), model.len());
                prop_assert!(ring.capacity() <= bound);
                let mut at = 0;
                let mut all = Vec::new();
                while at < ring.len() {
                    let part = ring.peek(at, 700);
                    all.extend_from_slice(part);
                    at += part.len();
                }
                prop_assert!(all.iter().eq(model.iter()));
            }
        }
    }
}
