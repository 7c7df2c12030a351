//! A blob on its way to the tar reader: read, hashed and decompressed on a thread of its own, so that a
//! layer is unpacked while it is inflated and the next one is inflated meanwhile.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::digest::{Digest, Hasher, HashingReader};

/// Bytes in a piece handed from thread to thread.
const CHUNK: usize = 256 << 10;
/// Pieces a thread may be ahead: 16 MiB.
const AHEAD: usize = 64;
/// The largest zstd window taken, as a power of two: 128 MiB, what its own tool takes by default.
const ZSTD_WINDOW: u32 = 27;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of any number of members.
    Gzip,
    /// zstd, of any number of frames.
    Zstd,
}

impl Compression {
    /// What a stream with these first bytes is compressed with, by the formats' magic numbers.
    pub fn guess(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A blob to be read as a tar stream.
pub struct Blob {
    /// Its bytes.
    pub reader: Box<dyn Read + Send>,
    /// What they must hash to, where that is known; otherwise what the tar stream hashes to counts.
    pub digest: Option<Digest>,
    /// How many they must be, where that is known.
    pub size: Option<u64>,
    /// How it is compressed.
    pub compression: Compression,
    /// What the decompressed stream must hash to.
    pub content: Option<Digest>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A blob that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It could not be read or decompressed.
    #[error("cannot read or decompress it")]
    Read(#[source] io::Error),
    /// Its bytes hash to something else.
    #[error("its content is damaged: it hashes to {found}, not {expected}")]
    Digest {
        /// What it should hash to.
        expected: Digest,
        /// What it does.
        found: Digest,
    },
    /// It decompresses to something else.
    #[error(
        "it decompresses to something that hashes to {found}, not to the {expected} of the image's configuration"
    )]
    Content {
        /// What it should hash to.
        expected: Digest,
        /// What it does.
        found: Digest,
    },
    /// It is longer or shorter than it should be.
    #[error("it has {found} bytes, not {expected}")]
    Size {
        /// How many it should have.
        expected: u64,
        /// How many it has (one more than expected if there are more).
        found: u64,
    },
    /// It decompresses to more than is allowed.
    #[error("it decompresses to more than {0} bytes, the limit")]
    TooLarge(u64),
}

enum Piece {
    Bytes(Vec<u8>),
    /// All was read and is what it should be.
    End,
    Failed(BlobError),
}

/// The decompressed stream of a [`Blob`].
///
/// An error of the blob's own surfaces as an [`io::Error`] here and in full from
/// [`Stream::finish`].
pub struct Stream<'scope> {
    pieces: Receiver<Piece>,
    /// Where spent pieces go back to.
    spent: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hasher: Option<(Hasher, Digest)>,
    taken: u64,
    limit: u64,
    state: State,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

enum State {
    Open,
    Ended,
    Failed(BlobError),
}

impl<'scope> Stream<'scope> {
    /// Starts reading `blob` in `scope`; at most `limit` decompressed bytes of it. `advance` is told of
    /// every read of the blob's own bytes.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        blob: Blob,
        limit: u64,
        advance: impl Fn(u64) + Send + 'scope,
    ) -> Self {
        let (send, pieces) = sync_channel(AHEAD);
        let (spent, empty) = sync_channel(AHEAD + 2);
        // An uncompressed blob's own digest is that of its content: one hash does.
        let hasher = match (blob.compression, blob.digest, blob.content) {
            (_, _, None) => None,
            (Compression::None, Some(digest), Some(content)) if digest == content => None,
            (_, _, Some(content)) => Some((Hasher::default(), content)),
        };
        let thread = scope.spawn(move || {
            // When the receiver is gone nobody wants to know.
            let _ = match produce(blob, &send, &empty, &advance) {
                Ok(()) => send.send(Piece::End),
                Err(error) => send.send(Piece::Failed(error)),
            };
        });
        Self {
            pieces,
            spent,
            current: Vec::new(),
            position: 0,
            hasher,
            taken: 0,
            limit,
            state: State::Open,
            thread,
        }
    }

    /// How many decompressed bytes came so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Reads what is left and says whether everything was what it should be.
    pub fn finish(mut self) -> Result<u64, BlobError> {
        loop {
            match self.fill_buf() {
                Ok([]) => break,
                Ok(bytes) => {
                    let count = bytes.len();
                    self.consume(count);
                }
                // The state has the full error.
                Err(_) => break,
            }
        }
        let Self {
            pieces,
            hasher,
            state,
            taken,
            thread,
            ..
        } = self;
        drop(pieces);
        let ended = thread.join();
        match state {
            State::Failed(error) => return Err(error),
            State::Open => return Err(BlobError::Read(io::ErrorKind::UnexpectedEof.into())),
            State::Ended => {}
        }
        if ended.is_err() {
            return Err(BlobError::Read(io::Error::other(
                "the decompressing thread panicked",
            )));
        }
        if let Some((hasher, expected)) = hasher {
            let found = hasher.finish();
            if found != expected {
                return Err(BlobError::Content { expected, found });
            }
        }
        Ok(taken)
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && matches!(self.state, State::Open) {
            match self.pieces.recv() {
                Ok(Piece::Bytes(bytes)) => {
                    if let Some((hasher, _)) = &mut self.hasher {
                        hasher.update(&bytes);
                    }
                    self.taken += bytes.len() as u64;
                    let old = std::mem::replace(&mut self.current, bytes);
                    self.position = 0;
                    // When there are enough to reuse, this one is freed.
                    let _ = self.spent.try_send(old);
                    if self.taken > self.limit {
                        self.state = State::Failed(BlobError::TooLarge(self.limit));
                    }
                }
                Ok(Piece::End) => self.state = State::Ended,
                Ok(Piece::Failed(error)) => self.state = State::Failed(error),
                Err(_) => {
                    let error = io::Error::other("the decompressing thread ended early");
                    self.state = State::Failed(BlobError::Read(error));
                }
            }
        }
        match &self.state {
            State::Failed(error) => Err(io::Error::other(error.to_string())),
            _ => Ok(&self.current[self.position..]),
        }
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

/// Reads and decompresses all of `blob`.
fn produce(
    blob: Blob,
    send: &SyncSender<Piece>,
    spent: &Receiver<Vec<u8>>,
    advance: &dyn Fn(u64),
) -> Result<(), BlobError> {
    // One byte more than expected is enough to know that there are too many.
    let most = blob.size.map_or(u64::MAX, |size| size.saturating_add(1));
    let source = Counted {
        inner: blob.reader.take(most),
        advance,
    };
    let mut hashing = match blob.digest {
        Some(_) => Source::Hashed(HashingReader::new(source)),
        None => Source::Plain {
            inner: source,
            count: 0,
        },
    };
    let decoded = {
        let buffered = io::BufReader::with_capacity(CHUNK, &mut hashing);
        match blob.compression {
            Compression::None => pump(buffered.into_inner(), send, spent),
            Compression::Gzip => pump(
                &mut flate2::bufread::MultiGzDecoder::new(buffered),
                send,
                spent,
            ),
            Compression::Zstd => {
                zstd::stream::read::Decoder::with_buffer(buffered).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW)?;
                    pump(&mut decoder, send, spent)
                })
            }
        }
    };
    if let Ok(Pumped::Unwanted) = decoded {
        return Ok(());
    }
    // A damaged blob usually fails to decompress first: its digest is the better explanation.
    let drained = io::copy(&mut hashing, &mut io::sink());
    let (found, count) = hashing.finish();
    if drained.is_ok() {
        if let Some(expected) = blob.size
            && expected != count
        {
            return Err(BlobError::Size {
                expected,
                found: count,
            });
        }
        if let (Some(expected), Some(found)) = (blob.digest, found)
            && expected != found
        {
            return Err(BlobError::Digest { expected, found });
        }
    }
    match decoded {
        Ok(_) => drained.map(|_| ()).map_err(BlobError::Read),
        Err(error) => Err(BlobError::Read(error)),
    }
}

/// Whether the stream's other end is still there.
enum Pumped {
    All,
    Unwanted,
}

fn pump(
    reader: &mut dyn Read,
    send: &SyncSender<Piece>,
    spent: &Receiver<Vec<u8>>,
) -> io::Result<Pumped> {
    loop {
        let mut piece = spent.try_recv().unwrap_or_default();
        piece.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match reader.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(Pumped::All);
        }
        piece.truncate(filled);
        if send.send(Piece::Bytes(piece)).is_err() {
            return Ok(Pumped::Unwanted);
        }
    }
}

struct Counted<'a, R> {
    inner: R,
    advance: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.advance)(count as u64);
        Ok(count)
    }
}

/// A blob's bytes, hashed if there is something to compare with.
enum Source<R> {
    Hashed(HashingReader<R>),
    Plain { inner: R, count: u64 },
}

impl<R: Read> Source<R> {
    fn finish(self) -> (Option<Digest>, u64) {
        match self {
            Self::Hashed(reader) => {
                let (digest, count) = reader.finish();
                (Some(digest), count)
            }
            Self::Plain { count, .. } => (None, count),
        }
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Hashed(reader) => reader.read(buffer),
            Self::Plain { inner, count } => {
                let read = inner.read(buffer)?;
                *count += read as u64;
                Ok(read)
            }
        }
    }
}
