//! Records to tar streams and back.

use std::io::{BufRead, Write};

use tether_wire::files::{
    Decoder, FileEntry, FileKind, Item, MOUNT_POINT, Shape, Timestamp, Xattr, encode_end,
    encode_entry,
};

use super::FilesError;
use crate::tar::{Entry, EntryKind, Reader, Writer};
use crate::tree::{Time, Xattrs};

/// How the entries of an archive are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// What the operation began with has this name, and everything else begins with it, as `docker cp`
    /// has it: of `/a/b` that is `b`, `b/...`.
    Named(Vec<u8>),
    /// It is left out, and everything else has its path below it, as `docker export` has it.
    Left,
}

/// What `Read` writes as a tar stream, for as long as its bytes come. Sockets are left out, as Docker
/// does; so are extended attributes that are none of the container's (`trusted.*`).
#[derive(Debug)]
pub struct ToTar<W> {
    decoder: Decoder,
    writer: Writer<W>,
    base: Base,
}

impl<W: Write> ToTar<W> {
    /// At the beginning.
    pub fn new(out: W, base: Base) -> Self {
        Self {
            decoder: Decoder::new(Shape::Tree),
            writer: Writer::new(out),
            base,
        }
    }

    /// What is written into.
    pub fn get_mut(&mut self) -> &mut W {
        self.writer.get_mut()
    }

    /// Takes the next bytes of the records.
    ///
    /// # Errors
    /// Records that are wrong or cannot be said in a tar; the writer's own.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), FilesError> {
        while let Some(item) = self.decoder.next(&mut bytes)? {
            match item {
                Item::Entry(entry) => {
                    if let Some(entry) = to_tar(entry, &self.base) {
                        self.writer.entry(&entry).map_err(FilesError::Write)?;
                    }
                }
                Item::Data(data) => self.writer.contents(data).map_err(FilesError::Write)?,
                Item::End => self.writer.finish().map_err(FilesError::Write)?,
            }
        }
        Ok(())
    }

    /// Says whether the records were whole; gives what was written into.
    ///
    /// # Errors
    /// [`tether_wire::files::FormatError::Truncated`], and what was wrong before.
    pub fn finish(self) -> Result<W, FilesError> {
        self.decoder.finish()?;
        Ok(self.writer.into_inner())
    }
}

fn to_tar(entry: FileEntry, base: &Base) -> Option<Entry> {
    let named = |path: Vec<u8>| match base {
        Base::Left if path.is_empty() => None,
        Base::Left => Some(path),
        Base::Named(base) if path.is_empty() => Some(base.clone()),
        Base::Named(base) if base.ends_with(b"/") => Some([base.as_slice(), &path].concat()),
        Base::Named(base) => Some([base.as_slice(), b"/", &path].concat()),
    };
    let mut size = 0;
    let kind = match entry.kind {
        FileKind::Regular { size: bytes } => {
            size = bytes;
            EntryKind::File
        }
        FileKind::Directory => EntryKind::Directory,
        FileKind::Symlink { target } => EntryKind::Symlink(target),
        FileKind::HardLink { target } => EntryKind::Link(named(target)?),
        FileKind::Fifo => EntryKind::Fifo,
        FileKind::Socket => return None,
        FileKind::CharacterDevice { major, minor } => EntryKind::Character { major, minor },
        FileKind::BlockDevice { major, minor } => EntryKind::Block { major, minor },
    };
    Some(Entry {
        path: named(entry.path)?,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Time {
            seconds: entry.modified.seconds,
            nanoseconds: entry.modified.nanos,
        },
        xattrs: attributes(entry.xattrs),
        size,
    })
}

/// Those of a file that are the container's.
pub(super) fn attributes(xattrs: Vec<Xattr>) -> Xattrs {
    xattrs
        .into_iter()
        .filter(|xattr| !xattr.name.starts_with(b"trusted."))
        .map(|xattr| (xattr.name.into(), xattr.value.into()))
        .collect()
}

/// A tar stream as the records that `Write` takes. Names lose `/` and `./` at their start; sparse files
/// are written out.
///
/// # Errors
/// A tar stream that is wrong, that leads out with `..`, or whose names or attributes are longer than
/// records take; the writer's own.
pub fn from_tar<R: BufRead>(tar: R, out: &mut impl Write) -> Result<(), FilesError> {
    let mut reader = Reader::new(tar);
    let mut record = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let size = entry.size;
        let is_file = entry.kind == EntryKind::File;
        let converted = from_entry(entry).and_then(|entry| {
            record.clear();
            encode_entry(&entry, &mut record).map_err(|error| error.to_string())
        });
        converted.map_err(|what| FilesError::Entry { path: shown, what })?;
        out.write_all(&record).map_err(FilesError::Write)?;
        if !is_file {
            continue;
        }
        let mut at = 0;
        while let Some((offset, bytes)) = reader.chunk()? {
            zeros(out, offset - at)?;
            out.write_all(bytes).map_err(FilesError::Write)?;
            let count = bytes.len();
            at = offset + count as u64;
            reader.consume(count);
        }
        zeros(out, size - at)?;
    }
    record.clear();
    encode_end(&mut record);
    out.write_all(&record).map_err(FilesError::Write)
}

fn zeros(out: &mut impl Write, mut count: u64) -> Result<(), FilesError> {
    const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
    while count > 0 {
        let step = count.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..step as usize])
            .map_err(FilesError::Write)?;
        count -= step;
    }
    Ok(())
}

fn from_entry(entry: Entry) -> Result<FileEntry, String> {
    let kind = match entry.kind {
        EntryKind::File => FileKind::Regular { size: entry.size },
        EntryKind::Link(target) => FileKind::HardLink {
            target: clean(&target)?,
        },
        EntryKind::Symlink(target) => FileKind::Symlink { target },
        EntryKind::Character { major, minor } => FileKind::CharacterDevice { major, minor },
        EntryKind::Block { major, minor } => FileKind::BlockDevice { major, minor },
        EntryKind::Directory => FileKind::Directory,
        EntryKind::Fifo => FileKind::Fifo,
    };
    Ok(FileEntry {
        path: clean(&entry.path)?,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified: Timestamp {
            seconds: entry.mtime.seconds,
            nanos: entry.mtime.nanoseconds,
        },
        xattrs: entry
            .xattrs
            .into_iter()
            .filter(|(name, _)| **name != *MOUNT_POINT)
            .map(|(name, value)| Xattr {
                name: name.into(),
                value: value.into(),
            })
            .collect(),
    })
}

/// A path without what says nothing.
fn clean(path: &[u8]) -> Result<Vec<u8>, String> {
    let names: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect();
    if names.contains(&&b".."[..]) {
        return Err("its path has `..`".to_owned());
    }
    Ok(names.join(&b'/'))
}
