//! Making what the records say.
//!
//! A record's path is looked up in the container's root each time, below the operation's own: links
//! on the way are followed as `tar` in the container would, and never lead out. Its last name is
//! never followed: what is there is replaced. Owner, attributes, mode and time are set in this order,
//! because each takes away what a later one sets; a directory's time is set at the end, because
//! what is made in it would change it.

use super::{At, CHUNK, Outcome, Owner, Stopped};
use crate::mount::path_of;
use crate::prelude::*;
use crate::tree::Tree;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod,
    chownat, linkat, makedev, mkdirat, mknodat, openat, setxattr, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::{self, Errno, read};
use rustix::time::Timespec;
use tether_wire::files::{
    Decoder, Failure, FileEntry, FileKind, FormatError, Item, MOUNT_POINT, Shape, Timestamp,
};
use tether_wire::message::Conflicts;

/// What is being made.
struct Extraction<'a> {
    tree: &'a Tree,
    /// Where, with a slash at its end.
    base: Vec<u8>,
    conflicts: Conflicts,
    owner: Owner,
    /// The last parent, by its path below `base`: the next record's is mostly the same.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times that are set at the end.
    directories: Vec<(Vec<u8>, Timestamp)>,
    /// The file whose contents come.
    file: Option<(OwnedFd, FileEntry, u64)>,
}

/// Makes below `path`, which is a directory, what comes on `input`.
pub fn tree(
    tree: &Tree,
    path: &[u8],
    conflicts: Conflicts,
    owner: Owner,
    input: BorrowedFd<'_>,
) -> Outcome<()> {
    tree.at(path, OFlags::PATH | OFlags::DIRECTORY)
        .at("writing into", path)?;
    let mut base = path.to_vec();
    base.push(b'/');
    let mut extraction = Extraction {
        tree,
        base,
        conflicts,
        owner,
        parent: None,
        directories: Vec::new(),
        file: None,
    };
    let mut decoder = Decoder::new(Shape::Archive);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut bytes = match read(input, &mut buffer[..]) {
            Ok(0) => break,
            Ok(length) => &buffer[..length],
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno).at("receiving files for", path),
        };
        let wrong = |error| Stopped::format(path, error);
        while let Some(item) = decoder.next(&mut bytes).map_err(wrong)? {
            match item {
                Item::Entry(entry) => extraction.make(entry)?,
                Item::Data(data) => extraction.fill(data)?,
                Item::End => {}
            }
        }
    }
    decoder
        .finish()
        .map_err(|error| Stopped::format(path, error))?;
    extraction.finish_directories()
}

impl Extraction<'_> {
    fn make(&mut self, entry: FileEntry) -> Outcome<()> {
        if entry.path.is_empty() {
            return match entry.kind {
                FileKind::Directory => Ok(()),
                _ => {
                    let error = FormatError::Entry("the directory itself as something else");
                    Err(Stopped::format(&self.base, error))
                }
            };
        }
        let path = [self.base.as_slice(), &entry.path].concat();
        let (parent, name) = split(&entry.path);
        let parent = self.parent(parent)?;
        let directory = parent.1.as_fd();
        let made = self.make_at(directory, name, &path, &entry);
        self.parent = Some(parent);
        let Some(file) = made? else {
            return Ok(());
        };
        match entry.kind {
            FileKind::Regular { size } if size > 0 => {
                self.file = Some((file, entry, size));
                Ok(())
            }
            _ => finish(file.as_fd(), &entry, self.owner).at("writing", &path),
        }
    }

    /// Makes an entry; a regular file is given back open, to be filled and finished.
    fn make_at(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        entry: &FileEntry,
    ) -> Outcome<Option<OwnedFd>> {
        let is_directory = matches!(entry.kind, FileKind::Directory);
        let present = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno).at("writing", path),
        };
        let merged = is_directory && present == Some(FileType::Directory);
        if let Some(present) = present.filter(|_| !merged) {
            if self.conflicts == Conflicts::KeepKind
                && (is_directory || present == FileType::Directory)
            {
                return Err(conflict(path, is_directory));
            }
            remove(directory, name, present).at("replacing", path)?;
        }
        let private = Mode::RUSR | Mode::WUSR;
        let node = |kind, device| mknodat(directory, name, kind, private, device);
        let made = match &entry.kind {
            FileKind::Regular { .. } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                return openat(directory, name, flags, private)
                    .map(Some)
                    .at("writing", path);
            }
            FileKind::Directory if merged => Ok(()),
            FileKind::Directory => mkdirat(directory, name, Mode::RWXU),
            FileKind::Symlink { target } => symlinkat(target.as_slice(), directory, name),
            FileKind::HardLink { target } => {
                let (from, target) = split(target);
                let from = self.parent_path(from);
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                let from = self.tree.at(&from, flags).at("linking", path)?;
                // It has the owner, mode and time of the file it is.
                return linkat(&from, target, directory, name, AtFlags::empty())
                    .map(|()| None)
                    .at("linking", path);
            }
            FileKind::Fifo => node(FileType::Fifo, 0),
            FileKind::Socket => node(FileType::Socket, 0),
            FileKind::CharacterDevice { major, minor } => {
                node(FileType::CharacterDevice, makedev(*major, *minor))
            }
            FileKind::BlockDevice { major, minor } => {
                node(FileType::BlockDevice, makedev(*major, *minor))
            }
        };
        made.at("making", path)?;
        if is_directory {
            self.directories.push((entry.path.clone(), entry.modified));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(directory, name, flags, Mode::empty()).at("making", path)?;
        finish(place.as_fd(), entry, self.owner).at("making", path)?;
        Ok(None)
    }

    fn fill(&mut self, data: &[u8]) -> Outcome<()> {
        let Some((file, entry, mut left)) = self.file.take() else {
            return Ok(());
        };
        let path = || [self.base.as_slice(), &entry.path].concat();
        super::write_all(file.as_fd(), data)
            .map_err(|errno| Stopped::new("writing", &path(), errno))?;
        left = left.saturating_sub(data.len() as u64);
        if left == 0 {
            finish(file.as_fd(), &entry, self.owner)
                .map_err(|errno| Stopped::new("writing", &path(), errno))?;
        } else {
            self.file = Some((file, entry, left));
        }
        Ok(())
    }

    fn parent_path(&self, parent: &[u8]) -> Vec<u8> {
        [self.base.as_slice(), parent].concat()
    }

    /// The directory at a path below the base, made with its parents where missing.
    fn parent(&mut self, path: &[u8]) -> Outcome<(Vec<u8>, OwnedFd)> {
        if let Some(known) = self.parent.take()
            && known.0 == path
        {
            return Ok(known);
        }
        let whole = self.parent_path(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = match self.tree.at(&whole, flags) {
            Err(Errno::NOENT) if !path.is_empty() => {
                let (above, name) = split(path);
                let above = self.parent(above)?.1;
                match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    // A symbolic link to nothing.
                    Err(Errno::EXIST) => Err(Errno::NOTDIR).at("making", &whole)?,
                    other => other.at("making", &whole)?,
                }
                self.tree.at(&whole, flags)
            }
            other => other,
        };
        Ok((path.to_vec(), directory.at("writing into", &whole)?))
    }

    fn finish_directories(&mut self) -> Outcome<()> {
        // The innermost first: setting a time changes no other.
        while let Some((path, modified)) = self.directories.pop() {
            let whole = self.parent_path(&path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY;
            match self.tree.at(&whole, flags) {
                // A later record put something else there.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                place => {
                    let place = place.at("writing", &whole)?;
                    set_time(place.as_fd(), modified).at("writing", &whole)?;
                }
            }
        }
        Ok(())
    }
}

fn conflict(path: &[u8], is_directory: bool) -> Stopped {
    let path = super::shown(path);
    let sentence = if is_directory {
        format!("cannot overwrite non-directory {path:?} with a directory")
    } else {
        format!("cannot overwrite directory {path:?} with a non-directory")
    };
    Stopped {
        kind: Failure::Conflict,
        sentence,
    }
}

/// Parent and last name of a relative path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (
            path.get(..at).unwrap_or_default(),
            path.get(at + 1..).unwrap_or_default(),
        ),
        None => (b"", path),
    }
}

/// Owner, extended attributes, mode and time of what a descriptor stands for.
fn finish(place: BorrowedFd<'_>, entry: &FileEntry, owner: Owner) -> io::Result<()> {
    let (uid, gid) = owner.unwrap_or((entry.uid, entry.gid));
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(place, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    // `O_PATH` descriptors have no calls of their own; by this name it is exactly this inode.
    let name = path_of(place);
    for xattr in &entry.xattrs {
        if xattr.name == MOUNT_POINT {
            continue;
        }
        let flags = XattrFlags::empty();
        match setxattr(name.as_str(), xattr.name.as_slice(), &xattr.value, flags) {
            // A file system without them.
            Err(Errno::OPNOTSUPP) => {}
            // Links and devices have none of the `user` namespace (xattr(7)).
            Err(Errno::PERM)
                if !matches!(entry.kind, FileKind::Regular { .. } | FileKind::Directory) => {}
            other => other?,
        }
    }
    if !matches!(entry.kind, FileKind::Symlink { .. }) {
        let mode = Mode::from_raw_mode(u32::from(entry.mode));
        chmod(name.as_str(), mode)?;
    }
    set_time(place, entry.modified)
}

/// Sets the time of the last change; that of the last access stays.
fn set_time(place: BorrowedFd<'_>, modified: Timestamp) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: modified.seconds,
            tv_nsec: i64::from(modified.nanos),
        },
    };
    utimensat(place, c"", &times, AtFlags::EMPTY_PATH)
}

/// Removes what has this name, a directory with everything in it.
fn remove(directory: BorrowedFd<'_>, name: &[u8], kind: FileType) -> io::Result<()> {
    if kind != FileType::Directory {
        return unlinkat(directory, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = openat(directory, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&inside)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(&inside, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        remove(inside.as_fd(), name.to_bytes(), kind)?;
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}
