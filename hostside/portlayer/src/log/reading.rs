//! Reads a container's log: from its beginning, or the last records of it, and on with what comes.
//!
//! A reader is a task that reads a piece of a file on a blocking thread, hands its records out, and reads
//! the next when there is room: a reader nobody reads from costs a bounded buffer and no thread. Files are
//! known by number (see [`Progress`]), so that one that is rotated is read to its end and followed by the
//! next; one that is rotated away before it was reached is skipped.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::feed::{Feed, Follower, Progress};
use super::line::{self, LONGEST_LINE};
use super::{Follow, LogQuery, LogReader, LogRecord, numbered_file};
use crate::error::Error;
use crate::spec::LogSpec;
use crate::stream::Output;

/// Read at once, in bytes.
const PIECE: usize = 64 * 1024;
/// Records between the reading and whoever takes them; with what was read at once, the bound on memory.
const AHEAD: usize = 16;

/// Reads the log in this directory. Has to be called within a tokio runtime.
///
/// # Errors
/// [`Error::Invalid`] when no log is kept, in Docker's words. What goes wrong later comes through the reader.
pub(crate) fn read(
    directory: &Path,
    spec: &LogSpec,
    query: LogQuery,
    feed: &Feed,
) -> Result<LogReader, Error> {
    if let LogSpec::None = spec {
        return Err(Error::Invalid(
            "configured logging driver does not support reading".to_owned(),
        ));
    }
    let (sender, records) = mpsc::channel(AHEAD);
    let task = Reading {
        files: Files {
            directory: directory.to_owned(),
            follower: feed.follow(),
            stop: None,
        },
        query,
        sender,
    };
    tokio::spawn(task.run());
    Ok(LogReader { records })
}

struct Reading {
    files: Files,
    query: LogQuery,
    sender: mpsc::Sender<Result<LogRecord, Error>>,
}

impl Reading {
    async fn run(mut self) {
        if let Err(error) = self.pass_on().await {
            // Nobody listens any more: then nobody misses it.
            let _ = self.sender.send(Err(error)).await;
        }
    }

    async fn pass_on(&mut self) -> Result<(), Error> {
        let mut progress = self.files.follower.progress.clone();
        let query = self.query;
        if query.follow == Follow::No {
            let Progress { current, len, .. } = *progress.borrow();
            self.files.stop = Some((current, len.unwrap_or(u64::MAX)));
        }
        let files = self.files.clone();
        let mut place = blocking(move || files.first(&query)).await?;
        loop {
            // Before reading: what is written meanwhile is then a change.
            let running = progress.borrow_and_update().running;
            loop {
                let files = self.files.clone();
                let step = blocking(move || files.step(place)).await?;
                place = step.place;
                for record in step.records {
                    if is_wanted(&query, &record) && self.sender.send(Ok(record)).await.is_err() {
                        return Ok(());
                    }
                }
                if step.at_end {
                    break;
                }
            }
            if !running || query.follow == Follow::No {
                return Ok(());
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = self.sender.closed() => return Ok(()),
                () = moment(query.until) => return Ok(()),
            }
        }
    }
}

/// Waits for the moment; for ever if there is none.
async fn moment(until: Option<SystemTime>) {
    match until {
        Some(until) => {
            let left = until.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left).await;
        }
        None => std::future::pending().await,
    }
}

fn is_wanted(query: &LogQuery, record: &LogRecord) -> bool {
    is_counted(query, record) && query.since.is_none_or(|since| record.time >= since)
}

/// Whether it is one of those `tail` counts.
fn is_counted(query: &LogQuery, record: &LogRecord) -> bool {
    let stream = match record.output {
        Output::Stdout => query.stdout,
        Output::Stderr => query.stderr,
    };
    stream && query.until.is_none_or(|until| record.time < until)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only when the runtime goes down.
        Err(_) => Err(Error::ShuttingDown),
    }
}

/// Where reading goes on.
#[derive(Debug)]
struct Place {
    /// Number of the file.
    number: u64,
    position: u64,
    /// Open once it was reached.
    file: Option<File>,
}

struct Step {
    place: Place,
    records: Vec<LogRecord>,
    /// Whether this is all there is now.
    at_end: bool,
}

/// The files of one container's log. All of it blocks.
#[derive(Debug, Clone)]
struct Files {
    directory: PathBuf,
    follower: Follower,
    /// File and position where a reader that does not follow ends, however fast the log grows.
    stop: Option<(u64, u64)>,
}

impl Files {
    fn progress(&self) -> Progress {
        *self.follower.progress.borrow()
    }

    /// Number of the last file to be read.
    fn last(&self, progress: &Progress) -> u64 {
        self.stop.map_or(progress.current, |(number, _)| number)
    }

    /// Opens a file by its number, with how the log stands at that moment. `None` if it is not there.
    fn open(&self, number: u64) -> Result<(Progress, Option<File>), Error> {
        let names = self.follower.names.lock();
        let _names = names.unwrap_or_else(PoisonError::into_inner);
        let progress = self.progress();
        let Ok(back) = u32::try_from(progress.current.saturating_sub(number)) else {
            return Ok((progress, None));
        };
        let path = numbered_file(&self.directory, back);
        match File::open(&path) {
            Ok(file) => Ok((progress, Some(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((progress, None)),
            Err(error) => Err(Error::state("read", path)(error)),
        }
    }

    /// The oldest file's number.
    fn oldest(&self) -> Result<u64, Error> {
        let names = self.follower.names.lock();
        let _names = names.unwrap_or_else(PoisonError::into_inner);
        let current = self.progress().current;
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(current),
            Err(error) => return Err(Error::state("read", &self.directory)(error)),
        };
        let most = entries
            .filter_map(|entry| {
                let name = entry.ok()?.file_name();
                name.to_str()?
                    .strip_prefix("json.log.")?
                    .parse::<u32>()
                    .ok()
            })
            .max();
        Ok(current - u64::from(most.unwrap_or(0)))
    }

    /// Where what is wanted begins.
    fn first(&self, query: &LogQuery) -> Result<Place, Error> {
        let oldest = self.oldest()?;
        let at = |number, position| Place {
            number,
            position,
            file: None,
        };
        let Some(mut tail) = query.tail else {
            return Ok(at(oldest, 0));
        };
        let mut number = self.progress().current;
        loop {
            let (progress, file) = self.open(number)?;
            if let Some(file) = file {
                let mut lines = Backwards::new(&file, self.len(&file, number, &progress)?);
                let begin = loop {
                    if tail == 0 {
                        break Some(lines.position());
                    }
                    let previous = lines
                        .previous()
                        .map_err(Error::state("read", self.path(number)))?;
                    match previous {
                        Some(line) => {
                            let record = line::decode(&line).ok_or_else(|| self.damaged(number))?;
                            tail -= u64::from(is_counted(query, &record));
                        }
                        None => break None,
                    }
                };
                if let Some(position) = begin {
                    return Ok(Place {
                        number,
                        position,
                        file: Some(file),
                    });
                }
            }
            if number <= oldest {
                return Ok(at(oldest, 0));
            }
            number -= 1;
        }
    }

    /// Reads a piece from there on.
    fn step(&self, mut place: Place) -> Result<Step, Error> {
        let (file, len, is_last) = loop {
            if let Some(file) = place.file.take() {
                // In this order: a file that is no longer the current one does not grow after that.
                let progress = self.progress();
                let len = self.len(&file, place.number, &progress)?;
                let is_last = place.number >= self.last(&progress);
                if place.position < len || is_last {
                    break (file, len, is_last);
                }
                place.number += 1;
                place.position = 0;
            }
            let (progress, file) = self.open(place.number)?;
            match file {
                Some(file) => place.file = Some(file),
                None if place.number < self.last(&progress) => place.number += 1,
                None => {
                    return Ok(Step {
                        place,
                        records: Vec::new(),
                        at_end: true,
                    });
                }
            }
        };
        let mut records = Vec::new();
        let mut piece = vec![0; PIECE];
        let wanted = len.saturating_sub(place.position);
        let filled = loop {
            let most = usize::try_from(wanted).unwrap_or(usize::MAX);
            let part = piece.len().min(most);
            let filled = read_at(&file, &mut piece[..part], place.position)
                .map_err(Error::state("read", self.path(place.number)))?;
            if filled == 0 || piece[..filled].contains(&b'\n') {
                break filled;
            }
            if filled >= LONGEST_LINE {
                return Err(self.damaged(place.number));
            }
            if filled < piece.len() {
                // Half a line at the file's end.
                break 0;
            }
            piece.resize(LONGEST_LINE, 0);
        };
        let mut used = 0;
        for line in piece[..filled].split_inclusive(|byte| *byte == b'\n') {
            let Some(text) = line.strip_suffix(b"\n") else {
                break;
            };
            records.push(line::decode(text).ok_or_else(|| self.damaged(place.number))?);
            used += line.len();
        }
        place.position += used as u64;
        let at_end = used == 0 && is_last;
        if used == 0 && !at_end {
            // Half a line at the end of a file that will not grow: left by a kill, never a record.
            place.number += 1;
            place.position = 0;
        } else {
            place.file = Some(file);
        }
        Ok(Step {
            place,
            records,
            at_end,
        })
    }

    /// Up to where the file may be read.
    fn len(&self, file: &File, number: u64, progress: &Progress) -> Result<u64, Error> {
        let len = match progress.len {
            Some(len) if number >= progress.current => len,
            _ => file
                .metadata()
                .map_err(Error::state("read", self.path(number)))?
                .len(),
        };
        Ok(match self.stop {
            Some((last, end)) if last == number => len.min(end),
            _ => len,
        })
    }

    /// What it is called now, for messages.
    fn path(&self, number: u64) -> PathBuf {
        let back = self.progress().current.saturating_sub(number);
        numbered_file(&self.directory, u32::try_from(back).unwrap_or(0))
    }

    fn damaged(&self, number: u64) -> Error {
        let source = io::Error::new(
            io::ErrorKind::InvalidData,
            "a line in it is no record; the file was changed by somebody else",
        );
        Error::state("read", self.path(number))(source)
    }
}

/// As much as there is, up to the buffer's length.
fn read_at(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], position + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A file's lines from the last to the first.
struct Backwards<'a> {
    file: &'a File,
    /// Where `buffer` lies in the file.
    begin: u64,
    /// What was read and not handed out; ends with a newline, or is empty.
    buffer: Vec<u8>,
}

impl<'a> Backwards<'a> {
    /// From this position on, which need not be the end of a line.
    fn new(file: &'a File, end: u64) -> Self {
        Self {
            file,
            begin: end,
            buffer: Vec::new(),
        }
    }

    /// Where the line handed out last begins; at first, where the last line ends.
    fn position(&self) -> u64 {
        self.begin + self.buffer.len() as u64
    }

    /// The line before that one.
    fn previous(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let line_end = self.buffer.len().checked_sub(1);
            if let Some(end) = line_end
                && let Some(before) = self.buffer[..end].iter().rposition(|b| *b == b'\n')
            {
                let line = self.buffer[before + 1..end].to_vec();
                self.buffer.truncate(before + 1);
                return Ok(Some(line));
            }
            if self.begin == 0 {
                let mut line = std::mem::take(&mut self.buffer);
                return Ok(line.pop().map(|_newline| line));
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line in it is longer than a record can be",
                ));
            }
            let more = self.begin.min(PIECE as u64);
            self.begin -= more;
            let mut piece = vec![0; usize::try_from(more).unwrap_or(PIECE)];
            self.file.read_exact_at(&mut piece, self.begin)?;
            if line_end.is_none() {
                // Half a line at the end is none.
                let whole = piece.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
                piece.truncate(whole);
            }
            piece.append(&mut self.buffer);
            self.buffer = piece;
        }
    }
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
