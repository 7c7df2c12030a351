//! A disk to write a filesystem to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A disk that reads as zeros wherever it was not written.
pub trait Disk {
    /// Writes `bytes` at byte `offset`, both multiples of 512.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `length` bytes at byte `offset` read as zeros again and gives their space back where
    /// that is possible. Multiples of 512.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Says that the disk is `size` bytes long, and makes what was written complete. Nothing is
    /// written after it.
    fn finish(&mut self, size: u64) -> io::Result<()>;
}

/// A disk as a plain file, hole where nothing was written: what tests and other formats' converters
/// read.
#[derive(Debug)]
pub struct RawDisk(pub File);

impl Disk for RawDisk {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        punch(&self.0, offset, length)
    }

    fn finish(&mut self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }
}

/// Makes a part of `file` a hole, or writes zeros where the filesystem below has none.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, length) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeros = [0; 64 << 10];
            let mut done = 0;
            while done < length {
                let step = (length - done).min(zeros.len() as u64);
                file.write_all_at(&zeros[..step as usize], offset + done)?;
                done += step;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
