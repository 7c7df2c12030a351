//! Bytes to entries, contents and the end.

use super::{FileEntry, FileKind, FormatError, MAX_HEADER, compare};
use crate::codec::decode;
use alloc::vec::Vec;
use core::cmp::Ordering;

/// Which rules a stream keeps beyond those of every entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// What `List` writes: no contents, no hard links; ordered as [`compare`] says, each entry once,
    /// the beginning (an empty path) first, and every other entry's parent a directory before it.
    Listing,
    /// What `Read` writes: contents; ordered as a listing is; hard links to what came before.
    Tree,
    /// What `Write` takes: contents; any order, paths may come again.
    Archive,
    /// What `Stat` writes: one entry, or two; no contents.
    Stat,
}

/// What comes next in a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// An entry. A regular file's contents follow where the shape has contents.
    Entry(FileEntry),
    /// Bytes of the last entry's contents, never empty.
    Data(&'a [u8]),
    /// The end record.
    End,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In a header's length, or the header: what came of it is in the buffer.
    Header,
    /// In contents, with so many bytes to come.
    Contents {
        left: u64,
    },
    Ended,
    /// After an error nothing is to be trusted.
    Broken(FormatError),
}

/// Takes a stream apart as its bytes come. Holds at most one header.
#[derive(Debug)]
pub struct Decoder {
    shape: Shape,
    state: State,
    buffer: Vec<u8>,
    entries: u64,
    /// The last path of an ordered stream, and whether a directory is there.
    last: (Vec<u8>, bool),
}

impl Decoder {
    /// At the beginning of a stream of this shape.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            state: State::Header,
            buffer: Vec::new(),
            entries: 0,
            last: (Vec::new(), false),
        }
    }

    /// The next item, with its bytes taken off `input`; `None` when it needs more of them, and has
    /// taken all there were.
    ///
    /// # Errors
    /// The stream is wrong: the same error from then on.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, FormatError> {
        let result = self.step(input);
        if let Err(error) = result {
            self.state = State::Broken(error);
            self.buffer = Vec::new();
        }
        result
    }

    /// Says whether the stream was whole, once no more bytes come.
    ///
    /// # Errors
    /// [`FormatError::Truncated`], or what was wrong before.
    pub fn finish(&self) -> Result<(), FormatError> {
        match self.state {
            State::Ended => Ok(()),
            State::Broken(error) => Err(error),
            State::Header | State::Contents { .. } => Err(FormatError::Truncated),
        }
    }

    fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, FormatError> {
        match self.state {
            State::Broken(error) => Err(error),
            State::Ended if input.is_empty() => Ok(None),
            State::Ended => Err(FormatError::AfterEnd),
            State::Contents { left } => {
                let length =
                    usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                let (data, rest) = input.split_at(length);
                *input = rest;
                if data.is_empty() {
                    return Ok(None);
                }
                self.state = match left - length as u64 {
                    0 => State::Header,
                    left => State::Contents { left },
                };
                Ok(Some(Item::Data(data)))
            }
            State::Header => self.header(input),
        }
    }

    fn header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, FormatError> {
        self.fill(input, 4);
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        if length == 0 {
            if self.entries == 0 && self.shape != Shape::Archive {
                return Err(FormatError::Entry("a stream without its first entry"));
            }
            self.state = State::Ended;
            self.buffer = Vec::new();
            return Ok(Some(Item::End));
        }
        let bytes = match usize::try_from(length) {
            Ok(bytes) if bytes <= MAX_HEADER => bytes,
            _ => return Err(FormatError::HeaderLength(length)),
        };
        self.fill(input, 4 + bytes);
        let Some(header) = self.buffer.get(4..4 + bytes) else {
            return Ok(None);
        };
        let entry: FileEntry = decode(header).map_err(|_| FormatError::Header)?;
        self.buffer.clear();
        entry.check()?;
        self.admit(&entry)?;
        self.entries += 1;
        if let FileKind::Regular { size: left @ 1.. } = entry.kind
            && matches!(self.shape, Shape::Tree | Shape::Archive)
        {
            self.state = State::Contents { left };
        }
        Ok(Some(Item::Entry(entry)))
    }

    /// Moves bytes until the buffer has `wanted`.
    fn fill(&mut self, input: &mut &[u8], wanted: usize) {
        let missing = wanted.saturating_sub(self.buffer.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.buffer.extend_from_slice(taken);
        *input = rest;
    }

    fn admit(&mut self, entry: &FileEntry) -> Result<(), FormatError> {
        let wrong = |what| Err(FormatError::Entry(what));
        let is_link = matches!(entry.kind, FileKind::HardLink { .. });
        match self.shape {
            Shape::Archive => return Ok(()),
            Shape::Stat if self.entries > 1 => return wrong("more than a file and where it leads"),
            Shape::Listing | Shape::Stat if is_link => {
                return wrong("a hard link without contents");
            }
            Shape::Stat if self.entries == 1 => return Ok(()),
            Shape::Stat | Shape::Listing | Shape::Tree => {}
        }
        let (last, is_directory) = &mut self.last;
        if self.entries == 0 {
            if !entry.path.is_empty() || is_link {
                return wrong("a first entry that is not where the operation began");
            }
        } else {
            if compare(last, &entry.path) != Ordering::Less {
                return wrong("entries out of order");
            }
            let parent = match entry.path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => entry.path.get(..at).unwrap_or_default(),
                None => b"",
            };
            // Every directory above the last entry came before it.
            let above = parent.is_empty() || last.get(parent.len()) == Some(&b'/');
            let known = (above && last.starts_with(parent) && !last.is_empty())
                || (*is_directory && last == parent);
            if !known {
                return wrong("an entry whose directory did not come before it");
            }
            if let FileKind::HardLink { target } = &entry.kind
                && compare(target, &entry.path) != Ordering::Less
            {
                return wrong("a hard link to a file that did not come before it");
            }
        }
        last.clone_from(&entry.path);
        *is_directory = entry.kind == FileKind::Directory;
        Ok(())
    }
}
