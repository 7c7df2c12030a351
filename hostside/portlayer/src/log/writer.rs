//! Stores a run's output, exactly once whatever happens to this process.
//!
//! A stream's offsets say what is stored. A record is one line of the file, a file's lines are counted from
//! the last checkpoint on when it is opened again, and a last line that is only half there is cut off: so
//! what the file holds and what the offsets say cannot differ.
//!
//! Rotation is written down before it begins and after it ended; in between nothing is appended. Every step
//! of it can be done again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::checkpoint::{Checkpoint, CheckpointFile, Phase};
use super::feed::Feed;
use super::line::{self, LONGEST_RECORD};
use super::storage::{Disk, Storage};
use super::{checkpoint_file, current_file, numbered_file, rotated_file};
use crate::error::Error;
use crate::spec::LogSpec;
use crate::stream::Output;

/// Lines are written together up to this many bytes; bounds the memory a flood takes.
const BATCH: usize = 256 * 1024;
/// Bytes between two checkpoints; bounds what is read when it is opened.
const CHECKPOINT_EVERY: u64 = 1024 * 1024;

/// The writer of one run's output. One at a time for a directory.
#[derive(Debug)]
pub(crate) struct Writer<S = Disk> {
    storage: S,
    directory: PathBuf,
    feed: Feed,
    kept: Kept,
    checkpoints: CheckpointFile,
    run: u64,
    streams: [Stream; 2],
}

/// What is done with the bytes.
#[derive(Debug)]
enum Kept {
    /// They are counted and forgotten.
    Nothing,
    /// They are appended.
    File(Current),
}

/// The file appended to.
#[derive(Debug)]
struct Current {
    max_size: u64,
    max_files: u32,
    file: File,
    /// Bytes in it that are whole lines.
    len: u64,
    /// Where the last checkpoint is.
    checkpointed: u64,
    state: FileState,
}

/// Whether the file can be appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileState {
    Clean,
    /// A write failed and left something behind `len`.
    Torn,
    /// A rotation began and did not end.
    Rotating,
}

/// One of a run's two streams.
#[derive(Debug, Default)]
struct Stream {
    /// Bytes of it that are stored; `None` when that was lost: the next bytes tell.
    stored: Option<u64>,
    /// What came after those: a line without an end yet.
    pending: Vec<u8>,
    /// When the last of it came.
    last: Option<SystemTime>,
}

impl Writer {
    /// Opens the log in this directory (made if it is not there) for the run of this number. A run that was
    /// written to before goes on at [`cursor`](Self::cursor); another begins at offset 0.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn open(
        directory: &Path,
        spec: &LogSpec,
        run: u64,
        feed: Feed,
    ) -> Result<Self, Error> {
        Self::open_on(Disk, directory, spec, run, feed)
    }
}

impl<S: Storage> Writer<S> {
    pub(super) fn open_on(
        mut storage: S,
        directory: &Path,
        spec: &LogSpec,
        run: u64,
        feed: Feed,
    ) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::state("create", directory))?;
        let path = checkpoint_file(directory);
        let (checkpoints, last) = storage
            .open(&path)
            .and_then(CheckpointFile::new)
            .map_err(Error::state("read", &path))?;
        let path = current_file(directory);
        let kept = match *spec {
            LogSpec::None => Kept::Nothing,
            LogSpec::JsonFile {
                max_size,
                max_files,
            } => {
                let file = storage.open(&path).map_err(Error::state("open", &path))?;
                let len = file.metadata().map_err(Error::state("read", &path))?.len();
                Kept::File(Current {
                    max_size: max_size.unwrap_or(u64::MAX).max(1),
                    max_files: max_files.get(),
                    file,
                    len,
                    checkpointed: 0,
                    state: FileState::Torn,
                })
            }
        };
        let mut writer = Self {
            storage,
            directory: directory.to_owned(),
            feed,
            kept,
            checkpoints,
            run,
            streams: Default::default(),
        };
        writer.recover(last)?;
        Ok(writer)
    }

    /// Finds out what is stored, cuts off half a line, ends a rotation that began.
    fn recover(&mut self, last: Option<Checkpoint>) -> Result<(), Error> {
        let mut stored = last.map_or([None; 2], |last| last.stored);
        let mut empty = true;
        if let Kept::File(current) = &mut self.kept {
            empty = current.len == 0;
            let from = match &last {
                Some(last) if last.phase == Phase::Rotating => {
                    // Whatever it is: the old file, whole, or the new one, empty.
                    current.state = FileState::Rotating;
                    current.len
                }
                Some(last) => last.position.min(current.len),
                None => 0,
            };
            let scanned = scan(&current.file, from)
                .map_err(Error::state("read", current_file(&self.directory)))?;
            current.len = scanned.end;
            for (stored, more) in stored.iter_mut().zip(scanned.bytes) {
                *stored = stored.map(|stored| stored + more);
            }
        }
        match &last {
            Some(last) if last.run == self.run => {}
            None if !empty => tracing::warn!(
                directory = %self.directory.display(),
                "log.cursor is missing or damaged; output may be stored twice"
            ),
            _ => stored = [Some(0); 2],
        }
        for (stream, stored) in self.streams.iter_mut().zip(stored) {
            stream.stored = stored;
        }
        self.settle()?;
        self.checkpoint(Phase::Writing)?;
        self.feed.wrote(self.len());
        Ok(())
    }

    /// Begins a run's streams where others had them before: of what is earlier nothing comes, and none is
    /// missed.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn begin_at(&mut self, offsets: [u64; 2]) -> Result<(), Error> {
        for (stream, offset) in self.streams.iter_mut().zip(offsets) {
            stream.stored = Some(offset);
        }
        self.checkpoint(Phase::Writing)
    }

    /// Bytes of this run's stdout and stderr that are stored.
    pub(crate) fn cursor(&self) -> [u64; 2] {
        [&self.streams[0], &self.streams[1]].map(|stream| stream.stored.unwrap_or(0))
    }

    /// Takes the stream's bytes from this offset on, that came now. What is stored already is left out, so
    /// giving bytes again does no harm. Gives the offset up to which all is stored; the rest, less than
    /// 16 KiB, is kept in memory until its line ends.
    ///
    /// # Errors
    /// [`Error::State`]: a full disk, mostly, or bytes before this offset are missing. What is stored stays
    /// so ([`cursor`](Self::cursor)); give the bytes again, from this offset or from there.
    pub(crate) fn append(
        &mut self,
        output: Output,
        offset: u64,
        data: &[u8],
        now: SystemTime,
    ) -> Result<u64, Error> {
        let index = index(output);
        let stream = &mut self.streams[index];
        let known = *stream.stored.get_or_insert(offset) + stream.pending.len() as u64;
        let Some(again) = known.checked_sub(offset) else {
            let missing = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("bytes {known} to {offset} of {output:?} did not come"),
            );
            return Err(Error::state("write", current_file(&self.directory))(
                missing,
            ));
        };
        let fresh = usize::try_from(again).ok().and_then(|n| data.get(n..));
        if let Some(fresh) = fresh.filter(|fresh| !fresh.is_empty()) {
            self.streams[index].last = Some(now);
            match &self.kept {
                Kept::Nothing => {
                    self.streams[index].stored = Some(known + fresh.len() as u64);
                    // No line is read back, so only the checkpoint tells.
                    self.checkpoint(Phase::Writing)?;
                }
                Kept::File(_) => self.append_lines(output, fresh, now)?,
            }
        }
        Ok(self.streams[index].stored.unwrap_or(0))
    }

    fn append_lines(
        &mut self,
        output: Output,
        mut fresh: &[u8],
        now: SystemTime,
    ) -> Result<(), Error> {
        let index = index(output);
        let mut batch = Vec::new();
        loop {
            // What `batch` has of `pending` and of `fresh`.
            let mut head = std::mem::take(&mut self.streams[index].pending);
            let mut taken = 0;
            let mut from_head = 0;
            batch.clear();
            while !self.is_full(batch.len())
                && let Some(n) = record_end(head.len() - from_head, &fresh[taken..])
            {
                let end = taken + n;
                if from_head < head.len() {
                    let record = [&head[from_head..], &fresh[taken..end]].concat();
                    line::encode(&mut batch, output, now, &record);
                    from_head = head.len();
                } else {
                    line::encode(&mut batch, output, now, &fresh[taken..end]);
                }
                taken = end;
            }
            if taken == 0 {
                head.extend_from_slice(fresh);
                self.streams[index].pending = head;
                return Ok(());
            }
            if let Err(error) = self.write(&batch) {
                self.streams[index].pending = head;
                return Err(error);
            }
            self.stored(index, (from_head + taken) as u64);
            fresh = &fresh[taken..];
            // The lines are stored whether or not this comes off: it is tried again later.
            self.checkpoint_if_due();
        }
    }

    /// No more comes on this stream: stores a last line that has no end. Gives the offset up to which all
    /// is stored, which is all of it.
    ///
    /// # Errors
    /// [`Error::State`]; nothing is lost, it can be called again.
    pub(crate) fn finish(&mut self, output: Output) -> Result<u64, Error> {
        let index = index(output);
        let stream = &self.streams[index];
        if !stream.pending.is_empty() {
            let mut batch = Vec::new();
            let last = stream.last.unwrap_or(SystemTime::UNIX_EPOCH);
            line::encode(&mut batch, output, last, &stream.pending);
            let pending = stream.pending.len() as u64;
            self.write(&batch)?;
            self.streams[index].pending = Vec::new();
            self.stored(index, pending);
        }
        Ok(self.streams[index].stored.unwrap_or(0))
    }

    /// The run is over: finishes both streams and tells the readers, who end when they have read all.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        self.finish(Output::Stdout)?;
        self.finish(Output::Stderr)?;
        self.feed.ended();
        Ok(())
    }

    fn stored(&mut self, index: usize, more: u64) {
        let stream = &mut self.streams[index];
        stream.stored = Some(stream.stored.unwrap_or(0) + more);
    }

    fn len(&self) -> u64 {
        match &self.kept {
            Kept::Nothing => 0,
            Kept::File(current) => current.len,
        }
    }

    /// Whether lines of this many bytes are enough for one write: a file ends with the line that reaches its
    /// size, as Docker's does.
    fn is_full(&self, batch: usize) -> bool {
        match &self.kept {
            Kept::Nothing => false,
            Kept::File(current) => {
                let len = match current.len {
                    len if len >= current.max_size => 0,
                    len => len,
                };
                batch >= BATCH || batch > 0 && len + batch as u64 >= current.max_size
            }
        }
    }

    /// Appends whole lines, all or nothing.
    fn write(&mut self, lines: &[u8]) -> Result<(), Error> {
        self.settle()?;
        if let Kept::File(current) = &mut self.kept
            && current.len >= current.max_size
        {
            self.checkpoint(Phase::Rotating)?;
            self.mark(FileState::Rotating);
            self.settle()?;
        }
        let Kept::File(current) = &mut self.kept else {
            return Ok(());
        };
        let written = self.storage.write_at(&current.file, current.len, lines);
        if let Err(source) = written {
            current.state = FileState::Torn;
            // Not to leave a full disk fuller than it has to be; tried again before the next write.
            let _ = self.settle();
            return Err(Error::state("write", current_file(&self.directory))(source));
        }
        current.len += lines.len() as u64;
        self.feed.wrote(current.len);
        Ok(())
    }

    fn mark(&mut self, state: FileState) {
        if let Kept::File(current) = &mut self.kept {
            current.state = state;
        }
    }

    /// Makes the file fit to be appended to.
    fn settle(&mut self) -> Result<(), Error> {
        let Kept::File(current) = &mut self.kept else {
            return Ok(());
        };
        let path = current_file(&self.directory);
        match current.state {
            FileState::Clean => {}
            FileState::Torn => self
                .storage
                .set_len(&current.file, current.len)
                .map_err(Error::state("write", &path))?,
            FileState::Rotating => {
                if current.len > 0 {
                    let feed = self.feed.clone();
                    let _names = feed.names();
                    shift(&mut self.storage, &self.directory, current.max_files)?;
                    // From here on the file under the current name is the new one.
                    current.len = 0;
                    feed.rotated();
                }
                current.file = self
                    .storage
                    .open(&path)
                    .map_err(Error::state("create", &path))?;
                current.checkpointed = 0;
                self.checkpoint(Phase::Writing)?;
            }
        }
        self.mark(FileState::Clean);
        Ok(())
    }

    fn checkpoint_if_due(&mut self) {
        if let Kept::File(current) = &self.kept
            && current.len - current.checkpointed >= CHECKPOINT_EVERY
            && let Err(error) = self.checkpoint(Phase::Writing)
        {
            tracing::debug!(%error, "checkpoint");
        }
    }

    fn checkpoint(&mut self, phase: Phase) -> Result<(), Error> {
        let checkpoint = Checkpoint {
            phase,
            run: self.run,
            position: self.len(),
            stored: [self.streams[0].stored, self.streams[1].stored],
        };
        let path = checkpoint_file(&self.directory);
        self.checkpoints
            .write(&mut self.storage, &checkpoint)
            .map_err(Error::state("write", path))?;
        if let Kept::File(current) = &mut self.kept {
            current.checkpointed = current.len;
        }
        Ok(())
    }
}

/// Makes room for the current file among the rotated ones and moves it there. A gap in the numbers, left by
/// one that was broken off, is filled first, so that doing it again drops nothing.
fn shift(storage: &mut impl Storage, directory: &Path, max_files: u32) -> Result<(), Error> {
    let current = current_file(directory);
    if max_files <= 1 {
        return storage
            .remove(&current)
            .map_err(Error::state("remove", current));
    }
    let free = (1..max_files - 1)
        .find(|number| !rotated_file(directory, *number).exists())
        .unwrap_or(max_files - 1);
    for number in (0..free).rev() {
        let from = numbered_file(directory, number);
        storage
            .rename(&from, &rotated_file(directory, number + 1))
            .map_err(Error::state("rename", from))?;
    }
    Ok(())
}

/// How many bytes of `more` end the record that began with `begun` bytes, none of which is a newline;
/// `None` if they do not end it.
fn record_end(begun: usize, more: &[u8]) -> Option<usize> {
    let room = LONGEST_RECORD - begun;
    match more.iter().take(room).position(|byte| *byte == b'\n') {
        Some(newline) => Some(newline + 1),
        None => (more.len() >= room).then_some(room),
    }
}

/// What a file's lines hold from a position on.
struct Scanned {
    /// Bytes of stdout and stderr.
    bytes: [u64; 2],
    /// Where the last whole line ends.
    end: u64,
}

fn scan(file: &File, from: u64) -> io::Result<Scanned> {
    let mut scanned = Scanned {
        bytes: [0; 2],
        end: from,
    };
    let mut buffer = vec![0; BATCH];
    let mut begun = Vec::new();
    let mut position = from;
    loop {
        let read = match file.read_at(&mut buffer, position) {
            Ok(0) => return Ok(scanned),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        position += read as u64;
        for piece in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            begun.extend_from_slice(piece);
            if begun.last() == Some(&b'\n') {
                scanned.end += begun.len() as u64;
                if let Some(record) = line::decode(&begun[..begun.len() - 1]) {
                    scanned.bytes[index(record.output)] += record.data.len() as u64;
                }
                begun.clear();
            }
        }
    }
}

fn index(output: Output) -> usize {
    match output {
        Output::Stdout => 0,
        Output::Stderr => 1,
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
