//! A block of bits: which blocks or inodes of a group are in use.

use super::geometry::BLOCK;

/// One block's worth of bits.
pub(super) struct Bitmap(Box<[u8; BLOCK as usize]>);

impl Bitmap {
    /// No bit set.
    pub fn new() -> Self {
        Self(Box::new([0; BLOCK as usize]))
    }

    /// Makes the bits of `range` `value`.
    pub fn set(&mut self, range: std::ops::Range<u64>, value: bool) {
        let mut bit = range.start as usize;
        let end = range.end as usize;
        while bit < end {
            if bit.is_multiple_of(8) && end - bit >= 8 {
                self.0[bit / 8] = if value { 0xff } else { 0 };
                bit += 8;
                continue;
            }
            let mask = 1 << (bit % 8);
            if value {
                self.0[bit / 8] |= mask;
            } else {
                self.0[bit / 8] &= !mask;
            }
            bit += 1;
        }
    }

    /// How many bits are set.
    pub fn ones(&self) -> u32 {
        self.0.iter().map(|byte| byte.count_ones()).sum()
    }

    /// The block.
    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }
}
