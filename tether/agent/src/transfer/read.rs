//! What is there: one place, or a tree in order, with contents or without.
//!
//! A container that runs changes its files while they are read. What is gone when its turn comes is
//! left out; a file has the size that was announced, cut or filled with zeros.

use super::{At, CHUNK, Outcome, Stopped, write_all};
use crate::mount::path_of;
use crate::prelude::*;
use crate::tree::Tree;
use alloc::collections::{BTreeMap, BinaryHeap};
use alloc::ffi::CString;
use core::cmp::Reverse;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, getxattr, getxattr_query, listxattr,
    listxattr_query, major, minor, open, openat, readlinkat,
};
use rustix::io::{self, Errno, read};
use tether_wire::files::{FileEntry, FileKind, Timestamp, Xattr, encode_end, encode_entry};

/// Bytes of paths that are remembered for hard links to them; a file that is beyond has a copy for
/// each of its names.
const LINKS: usize = 8 << 20;
/// linux/magic.h.
const EXT4: i64 = 0xef53;

/// Whether files' contents go with them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// They do.
    Included,
    /// They do not, and every name is a file.
    Left,
}

/// Records on their way out.
struct Output<'a> {
    to: BorrowedFd<'a>,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(to: BorrowedFd<'a>) -> Self {
        let buffer = Vec::new();
        Self { to, buffer }
    }

    fn entry(&mut self, entry: &FileEntry) -> Outcome<()> {
        encode_entry(entry, &mut self.buffer)
            .map_err(|error| Stopped::format(&entry.path, error))?;
        self.flush_above(CHUNK)
    }

    fn end(&mut self) -> Outcome<()> {
        encode_end(&mut self.buffer);
        self.flush_above(0)
    }

    fn flush_above(&mut self, bound: usize) -> Outcome<()> {
        if self.buffer.len() > bound {
            write_all(self.to, &self.buffer).at("sending", b"files")?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Exactly `size` bytes: what the file has, then zeros.
    fn contents(&mut self, file: &OwnedFd, size: u64, path: &[u8]) -> Outcome<()> {
        let mut left = size;
        let mut at_end = false;
        while left > 0 {
            self.flush_above(0)?;
            let wanted = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            self.buffer.resize(wanted, 0);
            if !at_end {
                match read(file, &mut self.buffer[..]) {
                    Ok(0) => at_end = true,
                    Ok(length) => self.buffer.truncate(length),
                    Err(Errno::INTR) => self.buffer.clear(),
                    Err(errno) => return Err(errno).at("reading", path),
                }
            }
            // What is in the buffer at the end of the file is zeros.
            left -= self.buffer.len() as u64;
        }
        Ok(())
    }
}

/// A tree on its way out.
struct Walk<'a> {
    output: Output<'a>,
    contents: Contents,
    /// Where it is, below the beginning.
    path: Vec<u8>,
    /// Paths of files that have several names, by device and inode.
    links: BTreeMap<(u64, u64), CString>,
    link_bytes: usize,
}

/// One directory that is being read.
struct Level {
    directory: OwnedFd,
    device: u64,
    /// The first by its bytes comes first.
    names: BinaryHeap<Reverse<CString>>,
    /// The length of the directory's own path.
    path: usize,
}

/// What is at `path`, and where it leads if it is a symbolic link.
pub fn stat(tree: &Tree, path: &[u8], to: BorrowedFd<'_>) -> Outcome<()> {
    let what = "looking at";
    let mut output = Output::new(to);
    let place = tree.at(path, OFlags::PATH | OFlags::NOFOLLOW);
    let place = place.at(what, path)?;
    let (_, entry) = describe(&place, Vec::new()).at(what, path)?;
    output.entry(&entry)?;
    if matches!(entry.kind, FileKind::Symlink { .. })
        && let Ok(target) = tree.at(path, OFlags::PATH)
    {
        let resolved = readlinkat(CWD, path_of(target.as_fd()), Vec::new()).at(what, path)?;
        let resolved = resolved.as_bytes();
        let inside = resolved.strip_prefix(tree.place()).unwrap_or(resolved);
        let inside = inside.strip_prefix(b"/").unwrap_or(inside);
        output.entry(&describe(&target, inside.to_vec()).at(what, path)?.1)?;
    }
    output.end()
}

/// What is at `path` and below.
pub fn tree(tree: &Tree, path: &[u8], contents: Contents, to: BorrowedFd<'_>) -> Outcome<()> {
    let mut walk = Walk {
        output: Output::new(to),
        contents,
        path: Vec::new(),
        links: BTreeMap::new(),
        link_bytes: 0,
    };
    let place = tree.at(path, OFlags::PATH | OFlags::NOFOLLOW);
    let place = place.at("reading", path)?;
    let mut levels = Vec::new();
    levels.extend(walk.visit(&place, None)?);
    while let Some(level) = levels.last_mut() {
        let Some(Reverse(name)) = level.names.pop() else {
            levels.pop();
            continue;
        };
        walk.path.truncate(level.path);
        if level.path > 0 {
            walk.path.push(b'/');
        }
        walk.path.extend_from_slice(name.as_bytes());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = match openat(&level.directory, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => None,
            place => {
                let place = place.at("reading", &walk.path)?;
                walk.visit(&place, Some(level.device))?
            }
        };
        levels.extend(below);
    }
    walk.output.end()
}

impl Walk<'_> {
    /// Writes one entry; gives what is in it when it is a directory to be entered.
    fn visit(&mut self, place: &OwnedFd, device: Option<u64>) -> Outcome<Option<Level>> {
        let (stat, mut entry) = describe(place, self.path.clone()).at("reading", &self.path)?;
        match entry.kind {
            FileKind::Directory => {
                self.output.entry(&entry)?;
                return self.enter(place, stat.st_dev, device);
            }
            _ if self.contents == Contents::Left => self.output.entry(&entry)?,
            FileKind::Regular { size } => {
                // One that is gone has its contents still: it is this file that is opened.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = open(path_of(place.as_fd()), flags, Mode::empty());
                let file = file.at("reading", &self.path)?;
                let linked = self.link(&stat, &mut entry);
                self.output.entry(&entry)?;
                if !linked {
                    self.output.contents(&file, size, &self.path)?;
                }
            }
            _ => {
                self.link(&stat, &mut entry);
                self.output.entry(&entry)?;
            }
        }
        Ok(None)
    }

    /// Makes the entry a link to an earlier name of the same file, if there was one.
    fn link(&mut self, stat: &Stat, entry: &mut FileEntry) -> bool {
        if stat.st_nlink < 2 {
            return false;
        }
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(target) = self.links.get(&inode) {
            let target = target.as_bytes().to_vec();
            entry.kind = FileKind::HardLink { target };
            return true;
        }
        let bytes = self.path.len() + 64;
        if !self.path.is_empty()
            && self.link_bytes + bytes <= LINKS
            && let Ok(path) = CString::new(self.path.as_slice())
        {
            self.link_bytes += bytes;
            self.links.insert(inode, path);
        }
        false
    }

    fn enter(
        &mut self,
        place: &OwnedFd,
        device: u64,
        parent: Option<u64>,
    ) -> Outcome<Option<Level>> {
        let at = |result| At::at(result, "reading", &self.path);
        let is_mount = parent.is_some_and(|parent| parent != device);
        if is_mount && fstatfs(place).at("reading", &self.path)?.f_type != EXT4 {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = at(open(path_of(place.as_fd()), flags, Mode::empty()))?;
        let mut names = BinaryHeap::new();
        for entry in Dir::read_from(&directory).at("reading", &self.path)? {
            let entry = entry.at("reading", &self.path)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(Reverse(name.to_owned()));
            }
        }
        Ok(Some(Level {
            directory,
            device,
            names,
            path: self.path.len(),
        }))
    }
}

/// The entry of what a descriptor, opened with `O_PATH`, stands for.
fn describe(place: &OwnedFd, path: Vec<u8>) -> io::Result<(Stat, FileEntry)> {
    let stat = fstat(place)?;
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::Regular {
            size: u64::try_from(stat.st_size).unwrap_or(0),
        },
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink {
            target: readlinkat(place, c"", Vec::new())?.into_bytes(),
        },
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharacterDevice { major, minor },
        FileType::BlockDevice => FileKind::BlockDevice { major, minor },
        FileType::Unknown => return Err(Errno::IO),
    };
    let entry = FileEntry {
        path,
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Timestamp {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        xattrs: attributes(place)?,
    };
    Ok((stat, entry))
}

/// Every extended attribute, in order of their names.
fn attributes(place: &OwnedFd) -> io::Result<Vec<Xattr>> {
    // `O_PATH` descriptors have no call of their own; by this name it is exactly this inode.
    let path = path_of(place.as_fd());
    let mut xattrs = Vec::new();
    let size = match listxattr_query(path.as_str()) {
        Err(Errno::OPNOTSUPP) | Ok(0) => return Ok(xattrs),
        other => other?,
    };
    let mut names = vec![0; size];
    let size = listxattr(path.as_str(), &mut names[..])?;
    for name in names[..size].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let mut value = Vec::new();
        let size = match getxattr_query(path.as_str(), name) {
            // Listed, and gone or not for reading: POSIX ACLs on a kernel without them.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            other => other?,
        };
        if size > 0 {
            value.resize(size, 0);
            let size = getxattr(path.as_str(), name, &mut value[..])?;
            value.truncate(size);
        }
        let name = name.to_bytes().to_vec();
        let place = xattrs.partition_point(|xattr: &Xattr| xattr.name < name);
        xattrs.insert(place, Xattr { name, value });
    }
    Ok(xattrs)
}
