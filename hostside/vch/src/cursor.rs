//! How far the output of a container was written on this side, kept so that a killed `vch run`
//! loses nothing and repeats nothing.
//!
//! One file holds a slot for each stream. Around every write to the terminal, pipe or file:
//!
//! 1. an [`Intent`] says which bytes are about to be written, and where when it is a regular file;
//! 2. the bytes are written;
//! 3. the cursor moves past them;
//! 4. and only then the guest hears that they are stored and may drop them.
//!
//! Killed between 1 and 3, the next `vch run --resume` finds an intent beyond the cursor: in the
//! same regular file it can tell what was written. For anything else pieces are small enough
//! (`PIPE_BUF`) that a pipe takes them whole or not at all, and only a kill between the two system
//! calls 2 and 3 repeats one.
//!
//! The file survives the death of a process, which is what it is for, not of the host: the VM
//! would not either. So nothing is synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tether_wire::message::Output;

/// Bytes between the two slots.
const SLOT: u64 = 512;
/// Where in a slot the intent starts.
const INTENT: u64 = 8;
const WORDS: usize = 6;

/// A regular file, and where in it a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Byte position in the file.
    pub position: u64,
}

/// Bytes about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Offset of the first in the stream.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// Where they go, when that is a regular file.
    pub place: Option<Place>,
}

/// One stream's part of the file.
#[derive(Clone, Debug)]
pub struct Slot {
    file: Arc<File>,
    base: u64,
}

/// Opens, or makes, the file and gives standard output's and standard error's slot.
///
/// # Errors
/// Opening failed.
pub fn open(path: &Path) -> io::Result<[Slot; 2]> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let file = Arc::new(file);
    Ok([Output::Stdout, Output::Stderr].map(|output| Slot {
        file: file.clone(),
        base: match output {
            Output::Stdout => 0,
            Output::Stderr => SLOT,
        },
    }))
}

impl Slot {
    /// The cursor, 0 at first, and the last intent.
    ///
    /// # Errors
    /// Reading failed.
    pub fn read(&self) -> io::Result<(u64, Option<Intent>)> {
        let mut bytes = [0; 8 * (1 + WORDS)];
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], self.base + filled as u64)?
            {
                // Beyond the end everything is zero.
                0 => break,
                count => filled += count,
            }
        }
        let words = bytes.as_chunks().0.iter();
        let mut words = words.map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let cursor = next();
        let (offset, length, kind, device, inode, position) =
            (next(), next(), next(), next(), next(), next());
        let intent = (length > 0).then_some(Intent {
            offset,
            length,
            place: (kind == 1).then_some(Place {
                device,
                inode,
                position,
            }),
        });
        Ok((cursor, intent))
    }

    /// Step 1.
    ///
    /// # Errors
    /// Writing failed.
    pub fn intend(&self, intent: &Intent) -> io::Result<()> {
        let place = intent.place.unwrap_or(Place {
            device: 0,
            inode: 0,
            position: 0,
        });
        let words = [
            intent.offset,
            intent.length,
            u64::from(intent.place.is_some()),
            place.device,
            place.inode,
            place.position,
        ];
        let mut bytes = [0; 8 * WORDS];
        for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        self.file.write_all_at(&bytes, self.base + INTENT)
    }

    /// Step 3.
    ///
    /// # Errors
    /// Writing failed.
    pub fn commit(&self, cursor: u64) -> io::Result<()> {
        self.file.write_all_at(&cursor.to_le_bytes(), self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_streams_do_not_touch_and_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cursor");
        let [stdout, stderr] = open(&path).unwrap();
        assert_eq!(stdout.read().unwrap(), (0, None));
        let intent = Intent {
            offset: 7,
            length: 9,
            place: Some(Place {
                device: 1,
                inode: 2,
                position: 3,
            }),
        };
        stdout.intend(&intent).unwrap();
        stderr.commit(u64::MAX).unwrap();
        let [stdout, stderr] = open(&path).unwrap();
        assert_eq!(stdout.read().unwrap(), (0, Some(intent)));
        assert_eq!(stderr.read().unwrap(), (u64::MAX, None));
        stdout.commit(16).unwrap();
        assert_eq!(stdout.read().unwrap(), (16, Some(intent)));
    }
}
