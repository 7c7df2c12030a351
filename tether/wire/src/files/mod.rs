//! What a process of [`FileOperation`](crate::message::FileOperation) says on its streams.
//!
//! ```text
//!   stream := record* end          record := length header [contents]
//!   length := u32, little-endian   header := postcard of FileEntry, `length` bytes
//!   end    := length 0             contents := exactly the regular file's size, where they travel
//! ```
//!
//! A stream that stops before its end record was cut off; what comes behind it is an error. Three
//! shapes of stream share the format, see [`Shape`]. Encoding is [`encode_entry`], [`encode_end`]
//! and the contents as they are; decoding is [`Decoder`], which takes bytes however they are cut and
//! holds one header at most. Both ends treat the other as hostile: whatever a [`Decoder`] gives has
//! passed [`FileEntry::check`], and in an ordered stream has its parent before it.
//!
//! What it does not say: access and change times, inode numbers, holes, file flags. ACLs and
//! capabilities are extended attributes, in the kernel's own bytes.

mod decode;

pub use decode::{Decoder, Item, Shape};

use crate::codec::encode;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;
use serde::{Deserialize, Serialize};

/// An extended attribute, with any value, of directories and files that tether made for something to
/// be mounted on, because the image had none: as long as it holds nothing, `docker diff` is silent
/// about it, and it goes into no archive.
pub const MOUNT_POINT: &[u8] = b"trusted.tether.mount-point";
/// Longest path of an entry, in bytes. Twice `PATH_MAX`: a tree may be deeper than one system call
/// reaches, and most writers of archives end before this.
pub const MAX_PATH: usize = 8192;
/// Longest target of a symbolic link, in bytes (`PATH_MAX` without its NUL).
pub const MAX_TARGET: usize = 4095;
/// Most bytes of all names and values of one entry's extended attributes.
pub const MAX_XATTRS: usize = 128 * 1024;
/// Longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`, linux/limits.h).
pub const MAX_XATTR_NAME: usize = 255;
/// Most extended attributes of one entry.
pub const MAX_XATTR_COUNT: usize = 1024;
/// Longest header, in bytes: every part at its longest.
pub const MAX_HEADER: usize = MAX_XATTRS + 2 * MAX_PATH + 8 * MAX_XATTR_COUNT + 128;

/// One file, directory or whatever else has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it is, below where the operation began: names with `/` between them, no `.`, no `..`.
    /// Empty is the beginning itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky: 0 to 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its contents last changed.
    pub modified: Timestamp,
    /// In ascending byte order of their names where tether writes them.
    pub xattrs: Vec<Xattr>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A file; its contents follow where the stream has contents.
    Regular {
        /// In bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// As it stands, 1 to [`MAX_TARGET`] bytes.
        target: Vec<u8>,
    },
    /// Another name of a file that came before. Everything else in the entry repeats that file's.
    HardLink {
        /// That entry's path.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Time since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// With its namespace (`security.capability`), no NUL.
    pub name: Vec<u8>,
    /// Any bytes.
    pub value: Vec<u8>,
}

/// What is wrong with a stream of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// A header's length is beyond [`MAX_HEADER`].
    HeaderLength(u32),
    /// A header does not decode.
    Header,
    /// An entry breaks a rule; says which.
    Entry(&'static str),
    /// Bytes behind the end record.
    AfterEnd,
    /// The stream stopped before its end record.
    Truncated,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderLength(length) => {
                write!(f, "a file's header has {length} bytes, over {MAX_HEADER}")
            }
            Self::Header => f.write_str("a file's header does not decode"),
            Self::Entry(what) => write!(f, "a file's header is wrong: {what}"),
            Self::AfterEnd => f.write_str("the stream of files goes on behind its end"),
            Self::Truncated => f.write_str("the stream of files stopped before its end"),
        }
    }
}

impl core::error::Error for FormatError {}

/// What kind of failure an operation ended with, as its exit code: a sentence for people is on its
/// standard error. A process that ended with 0 did all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing is at the path (`ENOENT`).
    NotFound,
    /// Something on the way, or at a path that has to be a directory, is none (`ENOTDIR`).
    NotADirectory,
    /// A directory met something else, or something else a directory ([`crate::message::Conflicts`]).
    Conflict,
    /// The file system, or the file, cannot be written to (`EROFS`, `EPERM`).
    ReadOnly,
    /// The disk or its inodes are used up, or a quota (`ENOSPC`, `EDQUOT`).
    NoSpace,
    /// What came on standard input is no stream of records ([`FormatError`]).
    BadStream,
    /// A path is no absolute path without NUL, or leads in a circle (`ELOOP`, `ENAMETOOLONG`).
    BadPath,
    /// Anything else, errors of the disk among them.
    Other,
}

impl Failure {
    /// Every kind there is.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::NotADirectory,
        Self::Conflict,
        Self::ReadOnly,
        Self::NoSpace,
        Self::BadStream,
        Self::BadPath,
        Self::Other,
    ];

    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::NotFound => 2,
            Self::NotADirectory => 3,
            Self::Conflict => 4,
            Self::ReadOnly => 5,
            Self::NoSpace => 6,
            Self::BadStream => 7,
            Self::BadPath => 8,
        }
    }

    /// What an exit code means; `None` is success.
    pub fn of_code(code: u8) -> Option<Self> {
        if code == 0 {
            return None;
        }
        let known = Self::ALL.into_iter().find(|kind| kind.code() == code);
        Some(known.unwrap_or(Self::Other))
    }
}

impl FileEntry {
    /// Whether every part keeps to its bounds and rules.
    ///
    /// # Errors
    /// [`FormatError::Entry`] names the rule.
    pub fn check(&self) -> Result<(), FormatError> {
        let wrong = |what| Err(FormatError::Entry(what));
        check_path(&self.path)?;
        match &self.kind {
            FileKind::Symlink { target } if target.is_empty() => wrong("an empty symbolic link"),
            FileKind::Symlink { target } if target.len() > MAX_TARGET => {
                wrong("a symbolic link that is too long")
            }
            FileKind::Symlink { target } if target.contains(&0) => {
                wrong("a symbolic link with a zero byte")
            }
            FileKind::HardLink { target } if target.is_empty() || *target == self.path => {
                wrong("a hard link to no other file")
            }
            FileKind::HardLink { target } => check_path(target),
            _ => Ok(()),
        }?;
        if self.mode > 0o7777 {
            return wrong("a mode beyond 0o7777");
        }
        if self.modified.nanos >= 1_000_000_000 {
            return wrong("a second with too many nanoseconds");
        }
        if self.xattrs.len() > MAX_XATTR_COUNT {
            return wrong("too many extended attributes");
        }
        let mut bytes = 0;
        for Xattr { name, value } in &self.xattrs {
            if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
                return wrong("an extended attribute without a proper name");
            }
            bytes += name.len() + value.len();
        }
        if bytes > MAX_XATTRS {
            return wrong("extended attributes that are too long");
        }
        Ok(())
    }
}

fn check_path(path: &[u8]) -> Result<(), FormatError> {
    let wrong = |what| Err(FormatError::Entry(what));
    if path.len() > MAX_PATH {
        return wrong("a path that is too long");
    }
    if path.contains(&0) {
        return wrong("a path with a zero byte");
    }
    let mut names = path.split(|byte| *byte == b'/');
    if !path.is_empty() && names.any(|name| matches!(name, b"" | b"." | b"..")) {
        return wrong("a path with an empty name, . or ..");
    }
    Ok(())
}

/// The order of an ordered stream: a directory before what is in it, siblings by their bytes.
pub fn compare(one: &[u8], other: &[u8]) -> Ordering {
    // A `/` sorts below every byte of a name, so that names of one directory stay together.
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    one.iter().map(rank).cmp(other.iter().map(rank))
}

/// Appends an entry's record, without contents.
///
/// # Errors
/// [`FormatError::Entry`]: nothing was appended.
pub fn encode_entry(entry: &FileEntry, out: &mut Vec<u8>) -> Result<(), FormatError> {
    entry.check()?;
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    encode(entry, out);
    // Bounded by MAX_HEADER, because every part was checked.
    let length = (out.len() - start - 4) as u32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    Ok(())
}

/// Appends the end record.
pub fn encode_end(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}
