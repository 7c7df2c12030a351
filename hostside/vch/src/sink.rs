//! Where a container's output goes: standard output or standard error of `vch run`.

use crate::cursor::{Intent, Place, Slot};
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// What a pipe takes whole or not at all (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;
/// What is written to a regular file at once.
const FILE_PIECE: usize = 256 * 1024;

/// One output, its slot in the cursor file, and how far it came.
#[derive(Debug)]
pub struct Sink {
    file: File,
    slot: Slot,
    kind: Kind,
    cursor: u64,
    /// Both streams may lead to one file: between an intent and its write nobody else writes.
    turn: Arc<Mutex<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A regular file written where its descriptor stands.
    Positioned,
    /// A regular file written at its end.
    Appended,
    /// A terminal, pipe, socket or device.
    Other,
}

impl Sink {
    /// Takes up a stream where `slot` says it stopped. `turn` is shared by both sinks.
    ///
    /// # Errors
    /// The cursor file or the descriptor cannot be read.
    pub fn open(file: File, slot: Slot, turn: Arc<Mutex<()>>) -> io::Result<Self> {
        let (mut cursor, intent) = slot.read()?;
        let stat = rustix::fs::fstat(&file)?;
        let kind = if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            Kind::Other
        } else if rustix::fs::fcntl_getfl(&file)?.contains(OFlags::APPEND) {
            Kind::Appended
        } else {
            Kind::Positioned
        };
        let size = stat.st_size as u64;
        if let Some(Intent {
            offset,
            length,
            place: Some(place),
        }) = intent
            && (place.device, place.inode) == (stat.st_dev, stat.st_ino)
            && size >= place.position
        {
            let finished = offset + length <= cursor;
            match kind {
                Kind::Appended if !finished => {
                    cursor = offset + length.min(size - place.position);
                    slot.commit(cursor)?;
                }
                Kind::Positioned => {
                    // An unfinished write is done again in its place.
                    let here = if finished {
                        place.position + length
                    } else {
                        place.position
                    };
                    if here <= size && rustix::fs::tell(&file)? < here {
                        rustix::fs::seek(&file, SeekFrom::Start(here))?;
                    }
                }
                Kind::Appended | Kind::Other => {}
            }
        }
        Ok(Self {
            file,
            slot,
            kind,
            cursor,
            turn,
        })
    }

    /// How much of the stream is written: where the guest has to go on.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Writes bytes of the stream that start at `offset`; what lies below the cursor is there
    /// already. When it returns they are safe to acknowledge.
    ///
    /// # Errors
    /// Writing failed; the cursor says how far it came.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A guest that no longer has the bytes between has said so by the offset.
        self.cursor = self.cursor.max(offset);
        let known = self.cursor - offset;
        let mut data = data.get(known as usize..).unwrap_or_default();
        let piece = match self.kind {
            Kind::Other => PIECE,
            Kind::Positioned | Kind::Appended => FILE_PIECE,
        };
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(piece));
            self.write_piece(now)?;
            data = later;
        }
        Ok(())
    }

    fn write_piece(&mut self, mut piece: &[u8]) -> io::Result<()> {
        if self.kind == Kind::Other {
            while !piece.is_empty() {
                let count = write_some(&self.file, piece)?;
                self.cursor += count as u64;
                self.slot.commit(self.cursor)?;
                piece = &piece[count..];
            }
            return Ok(());
        }
        let turn = self.turn.clone();
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let stat = rustix::fs::fstat(&self.file)?;
        let position = match self.kind {
            Kind::Appended => stat.st_size as u64,
            _ => rustix::fs::tell(&self.file)?,
        };
        self.slot.intend(&Intent {
            offset: self.cursor,
            length: piece.len() as u64,
            place: Some(Place {
                device: stat.st_dev,
                inode: stat.st_ino,
                position,
            }),
        })?;
        let mut written = 0;
        while written < piece.len() {
            match write_some(&self.file, &piece[written..]) {
                Ok(count) => written += count,
                Err(error) => {
                    // What is in the file is in the file.
                    self.cursor += written as u64;
                    self.slot.commit(self.cursor)?;
                    return Err(error);
                }
            }
        }
        self.cursor += written as u64;
        self.slot.commit(self.cursor)
    }
}

/// `write(2)` that waits where a descriptor was made non-blocking by somebody else.
fn write_some(file: &File, data: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(file, data) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut poll = [rustix::event::PollFd::new(
                    file,
                    rustix::event::PollFlags::OUT,
                )];
                match rustix::event::poll(&mut poll, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cursor;
    use std::io::Write;
    use std::path::Path;

    fn slot(directory: &Path) -> Slot {
        let [stdout, _] = cursor::open(&directory.join("cursor")).unwrap();
        stdout
    }

    fn sink(file: File, directory: &Path) -> Sink {
        Sink::open(file, slot(directory), Arc::default()).unwrap()
    }

    fn create(path: &Path) -> File {
        File::create(path).unwrap()
    }

    fn append(path: &Path) -> File {
        File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap()
    }

    fn update(path: &Path) -> File {
        File::options().write(true).open(path).unwrap()
    }

    const STREAM: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

    /// Every way to die between the intent and the cursor, every way to open the file again.
    #[test]
    fn killed_anywhere_in_a_write_to_a_file_nothing_is_lost_or_doubled() {
        for first in [create as fn(&Path) -> File, append] {
            for again in [append as fn(&Path) -> File, update] {
                for written in 0..=10 {
                    for cursor_moved in [false, true] {
                        if cursor_moved && written < 10 {
                            continue;
                        }
                        let directory = tempfile::tempdir().unwrap();
                        let out = directory.path().join("out");
                        std::fs::write(&out, "").unwrap();
                        let mut file = first(&out);
                        let mut before = sink(file.try_clone().unwrap(), directory.path());
                        before.write(0, &STREAM[..8]).unwrap();
                        // The next piece of ten bytes, cut off by a kill.
                        let stat = rustix::fs::fstat(&file).unwrap();
                        let slot = slot(directory.path());
                        slot.intend(&Intent {
                            offset: 8,
                            length: 10,
                            place: Some(Place {
                                device: stat.st_dev,
                                inode: stat.st_ino,
                                position: 8,
                            }),
                        })
                        .unwrap();
                        file.write_all(&STREAM[8..8 + written]).unwrap();
                        if cursor_moved {
                            slot.commit(18).unwrap();
                        }
                        drop(before);

                        let mut after = sink(again(&out), directory.path());
                        let resumed = after.cursor() as usize;
                        assert!(resumed >= 8);
                        after.write(resumed as u64, &STREAM[resumed..]).unwrap();
                        assert_eq!(std::fs::read(&out).unwrap(), STREAM);
                    }
                }
            }
        }
    }

    #[test]
    fn a_new_file_goes_on_where_the_old_one_was_committed() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("old");
        sink(create(&old), directory.path())
            .write(0, &STREAM[..8])
            .unwrap();
        let new = directory.path().join("new");
        let mut after = sink(create(&new), directory.path());
        assert_eq!(after.cursor(), 8);
        after.write(8, &STREAM[8..]).unwrap();
        assert_eq!(std::fs::read(&new).unwrap(), &STREAM[8..]);
    }

    #[test]
    fn both_streams_in_one_file_keep_their_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let file = create(&out);
        let [stdout, stderr] = cursor::open(&directory.path().join("cursor")).unwrap();
        let turn: Arc<Mutex<()>> = Arc::default();
        let mut one = Sink::open(file.try_clone().unwrap(), stdout, turn.clone()).unwrap();
        let mut two = Sink::open(file, stderr, turn).unwrap();
        one.write(0, b"out1 ").unwrap();
        two.write(0, b"err1 ").unwrap();
        one.write(5, b"out2 ").unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"out1 err1 out2 ");

        let file = update(&out);
        let [stdout, stderr] = cursor::open(&directory.path().join("cursor")).unwrap();
        let turn: Arc<Mutex<()>> = Arc::default();
        let _one = Sink::open(file.try_clone().unwrap(), stdout, turn.clone()).unwrap();
        let mut two = Sink::open(file, stderr, turn).unwrap();
        two.write(5, b"err2").unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"out1 err1 out2 err2");
    }

    #[test]
    fn bytes_below_the_cursor_are_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let mut sink = sink(create(&out), directory.path());
        sink.write(0, b"abc").unwrap();
        sink.write(1, b"bcde").unwrap();
        sink.write(0, b"a").unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"abcde");
        sink.write(9, b"f").unwrap();
        assert_eq!(sink.cursor(), 10);
    }

    #[test]
    fn a_closed_pipe_is_an_error_and_the_cursor_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let writer = File::from(std::os::fd::OwnedFd::from(writer));
        let mut sink = sink(writer, directory.path());
        sink.write(0, b"abc").unwrap();
        drop(reader);
        let error = sink.write(3, b"def").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sink.cursor(), 3);
    }
}
