//! The list of an image's files, as `List` of a container that has changed nothing gives it.

use std::io::{self, Write};

use tether_wire::files::{FileEntry, FileKind, Timestamp, Xattr, encode_end, encode_entry};

use crate::ext4::{kept_time, xattr_is_kept};
use crate::tree::{Kind, NodeId, Tree};

/// Writes a listing of `tree`.
///
/// # Errors
/// The writer's own; `InvalidData` for a path that is longer than records take.
pub(crate) fn write_listing(tree: &Tree, out: &mut dyn Write) -> io::Result<()> {
    let mut record = Vec::new();
    // What is still to be written, last first.
    let mut todo: Vec<(NodeId, Vec<u8>)> = vec![(tree.root(), Vec::new())];
    while let Some((id, path)) = todo.pop() {
        let entry = describe(tree, id, path);
        record.clear();
        encode_entry(&entry, &mut record).map_err(|error| {
            let path = String::from_utf8_lossy(&entry.path);
            io::Error::new(io::ErrorKind::InvalidData, format!("{path:.200}: {error}"))
        })?;
        out.write_all(&record)?;
        let Kind::Directory(directory) = &tree.node(id).kind else {
            continue;
        };
        let first = todo.len();
        for (name, child) in directory.entries() {
            let path = match &entry.path[..] {
                [] => name.to_vec(),
                parent => [parent, b"/", name].concat(),
            };
            todo.push((child, path));
        }
        todo[first..].reverse();
    }
    record.clear();
    encode_end(&mut record);
    out.write_all(&record)
}

fn describe(tree: &Tree, id: NodeId, path: Vec<u8>) -> FileEntry {
    let node = tree.node(id);
    // What of device numbers an inode keeps (linux/kdev_t.h).
    let device = |major: u32, minor: u32| (major & 0xfff, minor & 0xf_ffff);
    let kind = match &node.kind {
        Kind::Directory(_) => FileKind::Directory,
        Kind::File { size, .. } => FileKind::Regular { size: *size },
        Kind::Symlink(target) => FileKind::Symlink {
            target: target.to_vec(),
        },
        Kind::Character { major, minor } => {
            let (major, minor) = device(*major, *minor);
            FileKind::CharacterDevice { major, minor }
        }
        Kind::Block { major, minor } => {
            let (major, minor) = device(*major, *minor);
            FileKind::BlockDevice { major, minor }
        }
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
    };
    let attributes = &node.attributes;
    let modified = kept_time(attributes.mtime);
    FileEntry {
        path,
        kind,
        mode: attributes.mode & 0o7777,
        uid: attributes.uid,
        gid: attributes.gid,
        modified: Timestamp {
            seconds: modified.seconds,
            nanos: modified.nanoseconds,
        },
        xattrs: attributes
            .xattrs
            .iter()
            .filter(|(name, _)| xattr_is_kept(name))
            .map(|(name, value)| Xattr {
                name: name.to_vec(),
                value: value.to_vec(),
            })
            .collect(),
    }
}
