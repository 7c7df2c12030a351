//! What the writer does to files, behind a trait: tests end or fail it after any byte.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Changing files. A failed [`write_at`](Self::write_at) may have written a part.
pub(crate) trait Storage {
    /// Writes all of it at this position.
    fn write_at(&mut self, file: &File, position: u64, data: &[u8]) -> io::Result<()>;
    /// Cuts the file (or fills it with zeroes).
    fn set_len(&mut self, file: &File, len: u64) -> io::Result<()>;
    /// Opens for reading and writing; makes it if it is not there.
    fn open(&mut self, path: &Path) -> io::Result<File>;
    /// Gives a file another name, whose former file is gone.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The files themselves.
#[derive(Debug, Default)]
pub(crate) struct Disk;

impl Storage for Disk {
    fn write_at(&mut self, file: &File, position: u64, data: &[u8]) -> io::Result<()> {
        file.write_all_at(data, position)
    }

    fn set_len(&mut self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}
