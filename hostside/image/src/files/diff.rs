//! What a container changed of its image's files, as `docker diff` says it.
//!
//! Both lists are in the same order, so comparing them is one merge, with one record of each and the
//! directories above in memory. What counts as a change is what counts for Docker's graph drivers that
//! compare trees (`pkg/archive`, `changes_unix.go`): kind and mode, owner and group, device numbers,
//! capabilities; of what is no directory also size and time; times that have no nanoseconds on one
//! side are compared by the second. A directory in which something changed is itself changed. Of a
//! directory that is gone, or is something else now, only it itself is told.

use std::cmp::Ordering;
use std::io::Read;

use tether_wire::files::{
    Decoder, FileEntry, FileKind, Item, MOUNT_POINT, Shape, Timestamp, compare,
};

use super::{FilesError, Records};

/// What happened to a path; the Engine API's numbers (`ContainerChanges`, 1.24 on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// `C`.
    Modified = 0,
    /// `A`.
    Added = 1,
    /// `D`.
    Deleted = 2,
}

/// One line of `docker diff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// A comparison under way. Changes come in the order of the lists: a directory before what is in it,
/// siblings by their bytes.
#[derive(Debug)]
pub struct Diff<R> {
    image: Records<R>,
    container: Decoder,
    /// The image's next entry, once it was asked for.
    next: Option<FileEntry>,
    started: bool,
    /// Below this path of the image everything is gone with it.
    gone: Option<Vec<u8>>,
    /// The directories above, and whether they were told.
    above: Vec<(Vec<u8>, bool)>,
    changes: Vec<Change>,
}

impl<R: Read> Diff<R> {
    /// Against the image whose list this is ([`crate::store::Store::files`]).
    pub fn new(image: R) -> Self {
        Self {
            image: Records::new(image, Shape::Listing),
            container: Decoder::new(Shape::Listing),
            next: None,
            started: false,
            gone: None,
            above: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Takes the next bytes of what `List` of the container's root writes.
    ///
    /// # Errors
    /// Lists that are wrong or cannot be read.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), FilesError> {
        if !self.started {
            self.started = true;
            self.next = self.image.entry()?;
        }
        while let Some(item) = self.container.next(&mut bytes)? {
            match item {
                Item::Entry(entry) => self.entry(entry)?,
                Item::Data(_) => {}
                Item::End => self.rest()?,
            }
        }
        Ok(())
    }

    /// The changes found since this was last called.
    pub fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Says whether the container's list was whole; gives the last changes.
    ///
    /// # Errors
    /// It was cut off.
    pub fn finish(self) -> Result<Vec<Change>, FilesError> {
        self.container.finish()?;
        Ok(self.changes)
    }

    fn entry(&mut self, new: FileEntry) -> Result<(), FilesError> {
        while let Some(old) = self.next.take() {
            match compare(&old.path, &new.path) {
                Ordering::Less => self.deleted(&old)?,
                Ordering::Equal => {
                    self.next = self.image.entry()?;
                    self.both(&old, new);
                    return Ok(());
                }
                Ordering::Greater => {
                    self.next = Some(old);
                    break;
                }
            }
        }
        let silent = is_mount_point(&new);
        if !silent {
            self.tell(&new.path, ChangeKind::Added);
        }
        self.enter(new, !silent);
        Ok(())
    }

    fn rest(&mut self) -> Result<(), FilesError> {
        while let Some(old) = self.next.take() {
            self.deleted(&old)?;
        }
        Ok(())
    }

    fn deleted(&mut self, old: &FileEntry) -> Result<(), FilesError> {
        let with_another = self
            .gone
            .as_ref()
            .is_some_and(|gone| is_below(&old.path, gone));
        if !with_another {
            self.tell(&old.path, ChangeKind::Deleted);
            self.gone = Some(old.path.clone());
        }
        self.next = self.image.entry()?;
        Ok(())
    }

    fn both(&mut self, old: &FileEntry, new: FileEntry) {
        let changed = !new.path.is_empty() && differ(old, &new);
        if changed {
            self.tell(&new.path, ChangeKind::Modified);
        }
        if new.kind == FileKind::Directory {
            self.enter(new, changed);
        } else if old.kind == FileKind::Directory {
            self.gone = Some(new.path);
        }
    }

    fn enter(&mut self, entry: FileEntry, told: bool) {
        if entry.kind == FileKind::Directory {
            self.leave(&entry.path);
            // The root is never told.
            let told = told || entry.path.is_empty();
            self.above.push((entry.path, told));
        }
    }

    /// Forgets directories that `path` is not in.
    fn leave(&mut self, path: &[u8]) {
        while self
            .above
            .last()
            .is_some_and(|(above, _)| !is_below(path, above))
        {
            self.above.pop();
        }
    }

    fn tell(&mut self, path: &[u8], kind: ChangeKind) {
        self.leave(path);
        let untold = self.above.iter_mut().filter(|(_, told)| !*told);
        for (above, told) in untold {
            *told = true;
            self.changes.push(change(above, ChangeKind::Modified));
        }
        self.changes.push(change(path, kind));
    }
}

fn change(path: &[u8], kind: ChangeKind) -> Change {
    let path = [b"/", path].concat();
    Change { path, kind }
}

/// Whether a path is in a directory or further down.
fn is_below(path: &[u8], directory: &[u8]) -> bool {
    if directory.is_empty() {
        return !path.is_empty();
    }
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// What tether made for something to be mounted on, and holds nothing of its own.
fn is_mount_point(entry: &FileEntry) -> bool {
    matches!(
        entry.kind,
        FileKind::Directory | FileKind::Regular { size: 0 }
    ) && entry.xattrs.iter().any(|xattr| xattr.name == MOUNT_POINT)
}

fn differ(old: &FileEntry, new: &FileEntry) -> bool {
    fn capability(entry: &FileEntry) -> Option<&[u8]> {
        let mut xattrs = entry.xattrs.iter();
        let found = xattrs.find(|xattr| xattr.name == b"security.capability");
        found.map(|xattr| xattr.value.as_slice())
    }
    let is_directory = new.kind == FileKind::Directory;
    old.kind != new.kind
        || old.mode != new.mode
        || (old.uid, old.gid) != (new.uid, new.gid)
        || capability(old) != capability(new)
        || (!is_directory && !same_time(old.modified, new.modified))
}

fn same_time(one: Timestamp, other: Timestamp) -> bool {
    let exact = one.nanos != 0 && other.nanos != 0;
    one.seconds == other.seconds && (!exact || one.nanos == other.nanos)
}
