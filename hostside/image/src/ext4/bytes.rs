//! Little-endian fields at fixed offsets.

/// Puts numbers into a block.
pub(super) trait Fields {
    fn put16(&mut self, at: usize, value: u16);
    fn put32(&mut self, at: usize, value: u32);
    /// A number whose low and high halves are apart.
    fn put_split(&mut self, low: usize, high: usize, value: u64);
}

impl Fields for [u8] {
    fn put16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_split(&mut self, low: usize, high: usize, value: u64) {
        self.put32(low, value as u32);
        self.put32(high, (value >> 32) as u32);
    }
}
