//! Records into a disk's tree: an image of a container's files.

use std::io::{self, Read};

use tether_wire::files::{FileEntry, FileKind, MOUNT_POINT, Shape};

use super::read::Next;
use super::tar::attributes;
use super::{FilesError, Records};
use crate::digest::{Digest, HashingReader};
use crate::disk::Disk;
use crate::ext4::{Contents, FileWriter, xattr_is_kept, xattrs_fit};
use crate::layer::Limits;
use crate::progress::Progress;
use crate::tree::{Attributes, Kind, PathError, Time, Tree};

/// Why a container's files cannot be an image.
#[derive(Debug, thiserror::Error)]
pub enum Recorded {
    /// The records.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file that cannot be put where it is.
    #[error("`{path}` cannot be put into the image")]
    Path {
        /// Its path.
        path: String,
        /// Why.
        source: PathError,
    },
    /// The disk refused contents.
    #[error("cannot write the contents of `{path}`")]
    Write {
        /// The file's path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More records, or more bytes of disk, than the limits.
    #[error("the files are more than an image may have: {0}")]
    Limit(&'static str),
}

/// A file whose contents come.
struct Filling {
    entry: FileEntry,
    writer: FileWriter,
    at: u64,
    size: u64,
}

/// Copies what `Read` or `Write` speak into an empty tree; returns the stream's digest. Sockets, and
/// what is there only to be mounted on, are left out, as `docker commit` does.
pub(crate) fn copy<D: Disk>(
    records: &mut dyn Read,
    tree: &mut Tree,
    contents: &mut Contents<D>,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Digest, Recorded> {
    let mut reader = HashingReader::new(records);
    let mut stream = Records::new(&mut reader, Shape::Archive);
    let mut count = 0;
    let mut filling: Option<Filling> = None;
    loop {
        match stream.next()? {
            Next::Entry(entry) => {
                count += 1;
                if count > limits.entries {
                    return Err(Recorded::Limit("entries"));
                }
                match entry.kind {
                    FileKind::Regular { size } if size > 0 => {
                        let writer = contents.file();
                        filling = Some(Filling {
                            entry,
                            writer,
                            at: 0,
                            size,
                        });
                    }
                    _ => put(entry, None, tree)?,
                }
            }
            Next::Data(range) => {
                let Some(mut file) = filling.take() else {
                    continue;
                };
                let bytes = stream.data(range);
                progress.advance(bytes.len() as u64);
                // Zeros take no space where they are whole blocks.
                if bytes.iter().any(|byte| *byte != 0) {
                    contents
                        .write(&mut file.writer, file.at, bytes)
                        .map_err(|source| Recorded::Write {
                            path: shown(&file.entry.path),
                            source,
                        })?;
                }
                file.at += bytes.len() as u64;
                if contents.taken() > limits.total_bytes {
                    return Err(Recorded::Limit("bytes"));
                }
                if file.at == file.size {
                    let runs = contents.end(file.writer);
                    let size = file.size;
                    put(file.entry, Some(Kind::File { size, runs }), tree)?;
                } else {
                    filling = Some(file);
                }
            }
            Next::End => break,
        }
    }
    Ok(reader.finish().0)
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn put(entry: FileEntry, file: Option<Kind>, tree: &mut Tree) -> Result<(), Recorded> {
    const LAYER: u32 = 1;
    let path = entry.path;
    let wrong = |source| Recorded::Path {
        path: shown(&path),
        source,
    };
    if entry.xattrs.iter().any(|xattr| xattr.name == MOUNT_POINT)
        && matches!(
            entry.kind,
            FileKind::Directory | FileKind::Regular { size: 0 }
        )
    {
        return Ok(());
    }
    let mut xattrs = attributes(entry.xattrs);
    xattrs.retain(|name, _| xattr_is_kept(name));
    if !xattrs_fit(&xattrs) {
        return Err(wrong(PathError::Xattrs));
    }
    let attributes = Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Time {
            seconds: entry.modified.seconds,
            nanoseconds: entry.modified.nanos,
        },
        xattrs,
    };
    let kind = match entry.kind {
        FileKind::Socket => return Ok(()),
        FileKind::HardLink { target } => {
            let (parent, name) = tree.parent_of(&target, None).map_err(wrong)?;
            let name = name.ok_or(PathError::LinkToDirectory).map_err(wrong)?;
            let node = tree.child(parent, name).ok_or(PathError::Missing);
            let node = node.map_err(wrong)?;
            let (parent, name) = tree.parent_of(&path, Some(LAYER)).map_err(wrong)?;
            let name = name.ok_or(PathError::Root).map_err(wrong)?;
            return tree.link(parent, name, node, LAYER).map_err(wrong);
        }
        FileKind::Regular { size } => file.unwrap_or(Kind::File {
            size,
            runs: Vec::new(),
        }),
        FileKind::Directory => Kind::directory(),
        FileKind::Symlink { target } => Kind::Symlink(target.into()),
        FileKind::Fifo => Kind::Fifo,
        FileKind::CharacterDevice { major, minor } => Kind::Character { major, minor },
        FileKind::BlockDevice { major, minor } => Kind::Block { major, minor },
    };
    let (parent, name) = tree.parent_of(&path, Some(LAYER)).map_err(wrong)?;
    let put = match (name, kind) {
        (None, Kind::Directory(_)) => {
            let root = tree.root();
            tree.set_attributes(root, attributes)
        }
        (None, _) => Err(PathError::Root),
        (Some(name), Kind::Directory(_)) => tree
            .insert_directory(parent, name, attributes, LAYER)
            .map(drop),
        (Some(name), kind) => tree.insert(parent, name, attributes, kind, LAYER).map(drop),
    };
    put.map_err(wrong)
}
