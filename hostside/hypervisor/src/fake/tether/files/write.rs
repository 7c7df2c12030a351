//! Making what the records say.

use tether_wire::files::{
    Decoder, Failure, FileEntry, FileKind, FormatError, Item, MOUNT_POINT, Shape,
};
use tether_wire::message::Conflicts;

use super::{At, Outcome, Stopped, checked, find, shown, walk};
use crate::fake::files::Errno;
use crate::fake::files::image::{dress, node_of, stamp};
use crate::fake::files::mounts::{Found, Place};
use crate::fake::files::tree::{Disk, Inode, Node, Stamp, Tree};
use crate::fake::kernel::Kernel;
use crate::fake::kernel::sys::{CHUNK, Sys};
use crate::fake::lock;

type Owner = Option<(u32, u32)>;

/// The file whose contents come.
struct Filling {
    disk: Disk,
    inode: Inode,
    entry: FileEntry,
    written: u64,
}

struct Extraction<'a> {
    sys: &'a Sys,
    /// Where, with a slash at its end.
    base: Vec<u8>,
    conflicts: Conflicts,
    owner: Owner,
    /// Times that are set at the end.
    directories: Vec<(Place, Stamp)>,
    file: Option<Filling>,
}

/// Makes below `path`, which is a directory, what comes on standard input.
pub async fn tree(sys: &Sys, path: &[u8], conflicts: Conflicts, owner: Owner) -> Outcome<()> {
    let path = checked(path)?;
    let is_directory = {
        let kernel = sys.kernel();
        find(&kernel.mounts, path, true)
            .and_then(|place| kernel.mounts.with(place, |node| Ok(node.is_directory())))
            .at("writing into", path)?
    };
    if !is_directory {
        return Err(Errno::NOTDIR).at("writing into", path);
    }
    let mut extraction = Extraction {
        sys,
        base: [path, b"/"].concat(),
        conflicts,
        owner,
        directories: Vec::new(),
        file: None,
    };
    let mut decoder = Decoder::new(Shape::Archive);
    let wrong = |error| Stopped::format(path, error);
    loop {
        let bytes = sys.read(0, CHUNK).await.at("receiving files for", path)?;
        if bytes.is_empty() {
            break;
        }
        let mut bytes = bytes.as_slice();
        while let Some(item) = decoder.next(&mut bytes).map_err(wrong)? {
            match item {
                Item::Entry(entry) => extraction.make(entry)?,
                Item::Data(data) => extraction.fill(data)?,
                Item::End => {}
            }
        }
    }
    decoder.finish().map_err(wrong)?;
    extraction.finish_directories();
    Ok(())
}

/// Parent and last name of a relative path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
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
        let mut kernel = self.sys.kernel();
        let (parent, name) = split(&entry.path);
        let directory = self.parent(&mut kernel, parent)?;
        let now = kernel.stamp();
        let mount = kernel.mounts.get(directory.mount).at("writing", &path)?;
        let disk = mount.disk.clone();
        if mount.read_only {
            return Err(Errno::ROFS).at("making", &path);
        }
        let is_directory = matches!(entry.kind, FileKind::Directory);
        let present = lock(&disk).lookup(directory.inode, name).ok();
        if let Some(present) = present {
            let there = kernel.mounts.surface(Place {
                mount: directory.mount,
                inode: present,
            });
            let was_directory = kernel
                .mounts
                .with(there, |node| Ok(node.is_directory()))
                .at("writing", &path)?;
            if is_directory && was_directory {
                let mounts = &kernel.mounts;
                let mount = mounts.get(there.mount).at("writing", &path)?;
                let mut tree = lock(&mount.disk);
                let node = tree.node_mut(there.inode).at("writing", &path)?;
                finish(node, &entry, self.owner);
                self.directories.push((there, stamp(entry.modified)));
                return Ok(());
            }
            if self.conflicts == Conflicts::KeepKind && (is_directory || was_directory) {
                return Err(conflict(&path, is_directory));
            }
            if there.inode != present || there.mount != directory.mount {
                return Err(Errno::BUSY).at("replacing", &path);
            }
            remove(&mut lock(&disk), directory.inode, name, now).at("replacing", &path)?;
        }
        if let FileKind::HardLink { target } = &entry.kind {
            let (from, last) = split(target);
            let from = [self.base.as_slice(), from].concat();
            let from = find(&kernel.mounts, &from, true).at("linking", &path)?;
            if from.mount != directory.mount {
                return Err(Errno::XDEV).at("linking", &path);
            }
            let mut tree = lock(&disk);
            return tree
                .lookup(from.inode, last)
                .and_then(|inode| tree.link(inode, directory.inode, name, now))
                .at("linking", &path);
        }
        let Some(mut node) = node_of(&entry, Some(Vec::new())) else {
            return Ok(());
        };
        finish(&mut node, &entry, self.owner);
        let inode = lock(&disk)
            .create(directory.inode, name, node, now)
            .at("making", &path)?;
        match entry.kind {
            FileKind::Directory => {
                let place = Place {
                    mount: directory.mount,
                    inode,
                };
                self.directories.push((place, stamp(entry.modified)));
            }
            FileKind::Regular { size } if size > 0 => {
                self.file = Some(Filling {
                    disk,
                    inode,
                    entry,
                    written: 0,
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn fill(&mut self, data: &[u8]) -> Outcome<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let path = [self.base.as_slice(), &file.entry.path].concat();
        let time = stamp(file.entry.modified);
        let written = lock(&file.disk)
            .write(file.inode, file.written, data, time)
            .at("writing", &path)?;
        if written < data.len() {
            return Err(Errno::NOSPC).at("writing", &path);
        }
        file.written += written as u64;
        Ok(())
    }

    /// The directory at a path below the base, made with its parents where
    /// missing.
    fn parent(&self, kernel: &mut Kernel, path: &[u8]) -> Outcome<Place> {
        let whole = [self.base.as_slice(), path].concat();
        let now = kernel.stamp();
        let mut here = self.base.clone();
        let names = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty());
        for name in names {
            here.extend_from_slice(name);
            match walk(&kernel.mounts, &here, true).at("writing into", &whole)? {
                Found::There(_) => {}
                Found::Missing(directory, last) if last == name => {
                    let mount = kernel.mounts.get(directory.mount);
                    let mount = mount.at("making", &whole)?;
                    if mount.read_only {
                        return Err(Errno::ROFS).at("making", &whole);
                    }
                    let made = Node::directory(0o755, now);
                    lock(&mount.disk)
                        .create(directory.inode, name, made, now)
                        .at("making", &whole)?;
                }
                // A symbolic link to nothing.
                Found::Missing(..) => return Err(Errno::NOTDIR).at("making", &whole),
            }
            here.push(b'/');
        }
        let place = find(&kernel.mounts, &whole, true).at("writing into", &whole)?;
        let directory = kernel.mounts.with(place, |node| Ok(node.is_directory()));
        if directory.at("writing into", &whole)? {
            Ok(place)
        } else {
            Err(Errno::NOTDIR).at("writing into", &whole)
        }
    }

    fn finish_directories(self) {
        let kernel = self.sys.kernel();
        for (place, modified) in self.directories {
            // A later record may have put something else there.
            if let Ok(mount) = kernel.mounts.get(place.mount)
                && let Ok(node) = lock(&mount.disk).node_mut(place.inode)
            {
                node.mtime = modified;
            }
        }
    }
}

fn finish(node: &mut Node, entry: &FileEntry, owner: Owner) {
    let kept = node.xattrs.clone();
    dress(node, entry);
    node.xattrs.extend(kept);
    for xattr in &entry.xattrs {
        node.xattrs.insert(xattr.name.clone(), xattr.value.clone());
    }
    node.xattrs.remove(MOUNT_POINT);
    if let Some((uid, gid)) = owner {
        (node.uid, node.gid) = (uid, gid);
    }
}

fn conflict(path: &[u8], is_directory: bool) -> Stopped {
    let path = shown(path);
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

/// Removes an entry, a directory with everything in it.
fn remove(tree: &mut Tree, directory: Inode, name: &[u8], now: Stamp) -> Result<(), Errno> {
    // What is to be removed, what is in it after it.
    let mut found = vec![(directory, name.to_vec())];
    let mut next = 0;
    while let Some((parent, name)) = found.get(next).cloned() {
        next += 1;
        let inode = tree.lookup(parent, &name)?;
        if tree.node(inode)?.is_directory() {
            found.extend(tree.list(inode)?.into_iter().map(|(name, _)| (inode, name)));
        }
    }
    for (parent, name) in found.into_iter().rev() {
        let inode = tree.lookup(parent, &name)?;
        if tree.node(inode)?.is_directory() {
            tree.rmdir(parent, &name, now)?;
        } else {
            tree.unlink(parent, &name, now)?;
        }
    }
    Ok(())
}
