//! Records from a [`Read`].

use std::io::Read;

use tether_wire::files::{Decoder, FileEntry, Item, Shape};

use super::FilesError;

const CHUNK: usize = 64 * 1024;

/// Takes records off a reader.
#[derive(Debug)]
pub struct Records<R> {
    inner: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// What of the buffer is still to be taken.
    range: std::ops::Range<usize>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Entry(FileEntry),
    /// So many bytes of contents, to be had with [`Records::data`] before anything else.
    Data(std::ops::Range<usize>),
    End,
}

impl<R: Read> Records<R> {
    /// At the beginning of a stream of this shape.
    pub fn new(inner: R, shape: Shape) -> Self {
        Self {
            inner,
            decoder: Decoder::new(shape),
            buffer: vec![0; CHUNK],
            range: 0..0,
        }
    }

    /// The next entry of a stream, its contents passed over; `None` at its end, which is checked.
    ///
    /// # Errors
    /// The reader's; a stream that is wrong or cut off.
    pub fn entry(&mut self) -> Result<Option<FileEntry>, FilesError> {
        loop {
            match self.next()? {
                Next::Entry(entry) => return Ok(Some(entry)),
                Next::Data(_) => {}
                Next::End => return Ok(None),
            }
        }
    }

    pub(crate) fn next(&mut self) -> Result<Next, FilesError> {
        loop {
            let mut input = &self.buffer[self.range.clone()];
            let start = self.range.end;
            match self.decoder.next(&mut input)? {
                Some(Item::Entry(entry)) => {
                    self.range.start = start - input.len();
                    return Ok(Next::Entry(entry));
                }
                Some(Item::Data(data)) => {
                    self.range.start = start - input.len();
                    let end = self.range.start;
                    return Ok(Next::Data(end - data.len()..end));
                }
                // The end is the end of the reader too: what follows is an error.
                Some(Item::End) => {
                    self.range.start = start - input.len();
                    continue;
                }
                None => {}
            }
            let length = loop {
                match self.inner.read(&mut self.buffer) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    other => break other.map_err(FilesError::Read)?,
                }
            };
            if length == 0 {
                self.decoder.finish()?;
                return Ok(Next::End);
            }
            self.range = 0..length;
        }
    }

    pub(crate) fn data(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.buffer[range]
    }
}
