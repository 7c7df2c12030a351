//! Tar streams: a reader that trusts nothing in them, and a writer ([`Writer`]).
//!
//! The reader takes POSIX ustar and PAX (with extended attributes as `SCHILY.xattr.*` and
//! `LIBARCHIVE.xattr.*`), GNU (long names, base-256 numbers) and the sparse formats of both (GNU
//! old, PAX 0.0, 0.1 and 1.0). It is pure over [`BufRead`]: bytes in, entries and contents out; what
//! the names mean on a filesystem is the caller's to judge.
//!
//! Sources: POSIX.1-2017 `pax`, the GNU tar manual's appendix on formats, and what
//! Go's `archive/tar` accepts, because that wrote most images.

mod header;
mod pax;
mod sparse;
mod writer;

use std::io::{self, BufRead};

use crate::tree::{Time, Xattrs};
use header::Header;
use pax::Records;
pub use sparse::Segment;
pub use writer::Writer;

const BLOCK: u64 = 512;
/// The most bytes one PAX header or GNU long name may take.
const HEADER_MAX: u64 = 1 << 20;
/// The longest path taken, in bytes: four times what Linux can be asked for in one call.
const PATH_MAX: usize = 16 << 10;
/// The most PAX and long name headers in front of one entry.
const PREFIXES_MAX: u32 = 16;

/// Why a tar stream could not be read on. Offsets are in bytes from the stream's start.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes below could not be read.
    #[error("cannot read the tar stream at byte {at}")]
    Read {
        /// Offset.
        at: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The stream ended within an entry.
    #[error("the tar stream ends at byte {at}, in the middle of an entry")]
    Truncated {
        /// Offset.
        at: u64,
    },
    /// A header that makes no sense.
    #[error("the tar header before byte {at} is damaged: {what}")]
    Header {
        /// Offset of the header's end.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A header beyond what this reader takes.
    #[error("the tar header before byte {at} is refused: {what}")]
    Limit {
        /// Offset of the header's end.
        at: u64,
        /// Which limit.
        what: &'static str,
    },
    /// An entry of a type no image has.
    #[error("the tar header before byte {at} is of an unknown type, {kind:#04x}")]
    Type {
        /// Offset of the header's end.
        at: u64,
        /// The type byte.
        kind: u8,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its contents follow.
    File,
    /// Another name for the entry of this path.
    Link(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    Character {
        /// Device major number.
        major: u32,
        /// Device minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Device major number.
        major: u32,
        /// Device minor number.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry of a tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path as written, unjudged: it may be absolute or contain `..`.
    pub path: Vec<u8>,
    /// Type and what belongs to it.
    pub kind: EntryKind,
    /// The low 12 bits of the mode.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Length in bytes, holes included; 0 unless a regular file.
    pub size: u64,
}

/// Reads entries one after another, and each one's contents before the next.
pub struct Reader<R> {
    inner: R,
    at: u64,
    global: Records,
    /// Content bytes of the current entry still in the stream.
    stored: u64,
    padding: u64,
    /// The data segments of the current entry not yet delivered, last first.
    segments: Vec<Segment>,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Starts at the beginning of a tar stream.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            at: 0,
            global: Records::default(),
            stored: 0,
            padding: 0,
            segments: Vec::new(),
            ended: false,
        }
    }

    /// How many bytes of the stream were taken.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// How many bytes of the current entry's contents are in the stream and not yet taken.
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// The reader below, at whatever follows what was taken.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the archive's end. Contents not taken are skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip(self.stored.saturating_add(self.padding))?;
        self.stored = 0;
        self.padding = 0;
        self.segments.clear();

        let mut local: Option<Records> = None;
        let mut long_path: Option<Vec<u8>> = None;
        let mut long_target: Option<Vec<u8>> = None;
        for _ in 0..=PREFIXES_MAX {
            let Some(block) = self.block_or_end()? else {
                self.ended = true;
                return Ok(None);
            };
            let header = Header::parse(&block, self.at)?;
            match header.kind {
                b'x' | b'X' => {
                    let bytes = self.small(header.size)?;
                    let records = local.get_or_insert_with(|| self.global.clone());
                    records
                        .parse(&bytes)
                        .map_err(|what| TarError::Header { at: self.at, what })?;
                }
                b'g' => {
                    let bytes = self.small(header.size)?;
                    let at = self.at;
                    self.global
                        .parse(&bytes)
                        .map_err(|what| TarError::Header { at, what })?;
                }
                b'L' => long_path = Some(until_nul(self.small(header.size)?)),
                b'K' => long_target = Some(until_nul(self.small(header.size)?)),
                b'V' | b'M' | b'N' => self.skip(padded(header.size))?,
                _ => {
                    let records = local.unwrap_or_else(|| self.global.clone());
                    return self
                        .entry(&block, header, records, long_path, long_target)
                        .map(Some);
                }
            }
        }
        Err(TarError::Limit {
            at: self.at,
            what: "too many extension headers in a row",
        })
    }

    /// The next piece of the current entry's contents: its offset in the file and its bytes, which
    /// [`Reader::consume`] must take before the next call. `None` after the last. Offsets ascend; what
    /// is left out is a hole.
    pub fn chunk(&mut self) -> Result<Option<(u64, &[u8])>, TarError> {
        while self
            .segments
            .last()
            .is_some_and(|segment| segment.length == 0)
        {
            self.segments.pop();
        }
        let Some(segment) = self.segments.last().copied() else {
            return Ok(None);
        };
        let at = self.at;
        let bytes = self
            .inner
            .fill_buf()
            .map_err(|source| TarError::Read { at, source })?;
        if bytes.is_empty() {
            return Err(TarError::Truncated { at });
        }
        let count = usize::try_from(segment.length)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        Ok(Some((segment.offset, &bytes[..count])))
    }

    /// Takes `count` bytes of what [`Reader::chunk`] returned.
    pub fn consume(&mut self, count: usize) {
        let taken = count as u64;
        if let Some(segment) = self.segments.last_mut() {
            debug_assert!(taken <= segment.length);
            segment.offset += taken;
            segment.length -= taken;
        }
        self.stored -= taken;
        self.at += taken;
        self.inner.consume(count);
    }

    fn entry(
        &mut self,
        block: &[u8; 512],
        header: Header,
        mut records: Records,
        long_path: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let at = self.at;
        let wrong = |what| TarError::Header { at, what };
        let path = records
            .sparse_name
            .take()
            .or(records.path.take())
            .or(long_path)
            .unwrap_or_else(|| header.path.clone());
        let target = records
            .target
            .take()
            .or(long_target)
            .unwrap_or_else(|| header.target.clone());
        if path.len() > PATH_MAX || target.len() > PATH_MAX {
            return Err(TarError::Limit {
                at,
                what: "a path is longer than 16 KiB",
            });
        }
        if path.is_empty() {
            return Err(wrong("it has no path"));
        }
        let named_directory = path.ends_with(b"/");
        let kind = match header.kind {
            0 | b'0' | b'7' if named_directory => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::Link(target),
            b'2' => EntryKind::Symlink(target),
            b'3' => EntryKind::Character {
                major: header.major,
                minor: header.minor,
            },
            b'4' => EntryKind::Block {
                major: header.major,
                minor: header.minor,
            },
            b'5' | b'D' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            kind => return Err(TarError::Type { at, kind }),
        };
        let mut size = 0;
        if kind == EntryKind::File
            || header.kind == b'D'
            || (named_directory && header.kind != b'5')
        {
            // What a header-only type says of its size is ignored, as by every reader of images.
            self.stored = records.size.unwrap_or(header.size);
            self.padding = padded(self.stored)
                .checked_sub(self.stored)
                .ok_or(wrong("its size overflows"))?;
        }
        if kind == EntryKind::File {
            size = self.stored;
            let sparse = if header.kind == b'S' {
                Some(self.gnu_map(block)?)
            } else {
                self.pax_map(&mut records)?
            };
            self.segments = match sparse {
                Some(map) => {
                    size = map.size;
                    sparse::checked(map, self.stored).map_err(wrong)?
                }
                None => vec![Segment {
                    offset: 0,
                    length: size,
                }],
            };
            self.segments.reverse();
        }
        if size > i64::MAX as u64 {
            return Err(wrong("its size overflows"));
        }
        Ok(Entry {
            path,
            kind,
            mode: header.mode,
            uid: records.uid.unwrap_or(header.uid),
            gid: records.gid.unwrap_or(header.gid),
            mtime: records.mtime.unwrap_or(Time {
                seconds: header.mtime,
                nanoseconds: 0,
            }),
            xattrs: std::mem::take(&mut records.xattrs),
            size,
        })
    }

    /// The map of GNU's own sparse type: four segments in the header, 21 in each block after it.
    fn gnu_map(&mut self, block: &[u8; 512]) -> Result<sparse::Map, TarError> {
        let mut map =
            sparse::gnu_header(block).map_err(|what| TarError::Header { at: self.at, what })?;
        while map.continues {
            if map.map.segments.len() > sparse::SEGMENTS_MAX {
                return Err(TarError::Limit {
                    at: self.at,
                    what: "its sparse map is too long",
                });
            }
            let mut more = [0; 512];
            self.exact(&mut more)?;
            sparse::gnu_extension(&more, &mut map)
                .map_err(|what| TarError::Header { at: self.at, what })?;
        }
        Ok(map.map)
    }

    /// The map of the PAX sparse formats: in records (0.0, 0.1) or in front of the contents (1.0).
    fn pax_map(&mut self, records: &mut Records) -> Result<Option<sparse::Map>, TarError> {
        let Some(size) = records.sparse_size else {
            return Ok(None);
        };
        if !records.sparse_in_contents {
            let segments = std::mem::take(&mut records.sparse_map);
            return Ok(Some(sparse::Map { size, segments }));
        }
        let mut map = sparse::ContentsMap::default();
        loop {
            if self.stored < BLOCK {
                return Err(TarError::Header {
                    at: self.at,
                    what: "its sparse map is longer than its contents",
                });
            }
            let mut block = [0; 512];
            self.exact(&mut block)?;
            self.stored -= BLOCK;
            match map.block(&block) {
                Ok(Some(segments)) => return Ok(Some(sparse::Map { size, segments })),
                Ok(None) => {}
                Err(what) => return Err(TarError::Header { at: self.at, what }),
            }
        }
    }

    /// One header block, or `None` at the end: a zero block or the end of the stream between entries.
    fn block_or_end(&mut self) -> Result<Option<[u8; 512]>, TarError> {
        let at = self.at;
        if self
            .inner
            .fill_buf()
            .map_err(|source| TarError::Read { at, source })?
            .is_empty()
        {
            return Ok(None);
        }
        let mut block = [0; 512];
        self.exact(&mut block)?;
        Ok(block.iter().any(|&b| b != 0).then_some(block))
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        let at = self.at;
        self.inner
            .read_exact(buffer)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => TarError::Truncated { at },
                _ => TarError::Read { at, source },
            })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// The contents of an extension header.
    fn small(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > HEADER_MAX {
            return Err(TarError::Limit {
                at: self.at,
                what: "an extension header is longer than 1 MiB",
            });
        }
        let mut bytes = vec![0; size as usize];
        self.exact(&mut bytes)?;
        self.skip(padded(size) - size)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        while count > 0 {
            let at = self.at;
            let bytes = self
                .inner
                .fill_buf()
                .map_err(|source| TarError::Read { at, source })?;
            if bytes.is_empty() {
                return Err(TarError::Truncated { at });
            }
            let step = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            self.inner.consume(step);
            self.at += step as u64;
            count -= step as u64;
        }
        Ok(())
    }
}

/// `size` rounded up to whole blocks; saturates, which the end of the stream then catches.
fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}
