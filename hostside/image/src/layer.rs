//! Layers, applied one over the other: tar entries in, one [`Tree`] and file contents out.
//!
//! The rules are those of the OCI image specification's *Image Layer Filesystem Changeset* and, where it
//! is silent, what Docker's and containerd's unpackers do: a path's symbolic links are followed within
//! the root; a directory over a directory keeps what is below; anything else replaces what had its
//! name; `.wh.NAME` hides a name and `.wh..wh..opq` all names of its directory as lower layers left
//! them, wherever in the layer they stand.

use std::io::{self, BufRead};

use crate::disk::Disk;
use crate::ext4::{Contents, xattr_is_kept, xattrs_fit};
use crate::tar::{Entry, EntryKind, Reader, TarError};
use crate::tree::{Attributes, Kind, PathError, Tree};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an image may cost before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, directories and everything else with an inode, at any one time.
    pub files: u32,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer, decompressed.
    pub layer_bytes: u64,
    /// Bytes of all layers, decompressed; and of the disk that their files take.
    pub total_bytes: u64,
    /// Layers.
    pub layers: usize,
}

impl Default for Limits {
    /// 4 million files, 8 million entries and 128 GiB a layer, 256 GiB in all, 512 layers.
    fn default() -> Self {
        Self {
            files: 4_000_000,
            entries: 8_000_000,
            layer_bytes: 128 << 30,
            total_bytes: 256 << 30,
            layers: 512,
        }
    }
}

/// Why a layer could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream is damaged, or what is below it is.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that cannot be put where it says.
    #[error("the entry `{path}` cannot be unpacked")]
    Path {
        /// The entry's path.
        path: String,
        /// Why.
        source: PathError,
    },
    /// A hard link to something that is not there or cannot be linked.
    #[error("the hard link `{path}` to `{target}` cannot be made")]
    Link {
        /// The entry's path.
        path: String,
        /// What it should be another name for.
        target: String,
        /// Why.
        source: PathError,
    },
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("the whiteout `{0}` names nothing that could be hidden")]
    Whiteout(String),
    /// The disk refused contents.
    #[error("cannot write the contents of `{path}`")]
    Write {
        /// The entry's path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// More disk than [`Limits::total_bytes`], by files of many small pieces.
    #[error("the image's files take more than {0} bytes of disk, the limit")]
    Disk(u64),
    /// More entries than [`Limits::entries`].
    #[error("the layer has more than {0} entries, the limit")]
    Entries(u64),
}

/// Applies the layer that `stream` is to `tree`, as layer number `layer` (1 for the lowest).
///
/// File contents go to `contents`. Returns how many entries it had and the reader below, which may
/// have bytes left behind the archive's end.
pub fn apply<R: BufRead, D: Disk>(
    stream: R,
    layer: u32,
    tree: &mut Tree,
    contents: &mut Contents<D>,
    limits: &Limits,
) -> Result<(u64, R), LayerError> {
    let mut reader = Reader::new(stream);
    let mut entries = 0;
    while let Some(entry) = reader.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            return Err(LayerError::Entries(limits.entries));
        }
        one(entry, &mut reader, layer, tree, contents)?;
        if contents.taken() > limits.total_bytes {
            return Err(LayerError::Disk(limits.total_bytes));
        }
    }
    Ok((entries, reader.into_inner()))
}

fn one<R: BufRead, D: Disk>(
    entry: Entry,
    reader: &mut Reader<R>,
    layer: u32,
    tree: &mut Tree,
    contents: &mut Contents<D>,
) -> Result<(), LayerError> {
    let Entry {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime,
        mut xattrs,
        size,
    } = entry;
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let wrong = |source| LayerError::Path {
        path: shown(&path),
        source,
    };

    let last = path
        .rsplit(|&b| b == b'/')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    if last.starts_with(WHITEOUT) {
        return whiteout(&path, last, layer, tree);
    }

    xattrs.retain(|name, _| xattr_is_kept(name));
    if !xattrs_fit(&xattrs) {
        return Err(wrong(PathError::Xattrs));
    }
    let attributes = Attributes {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    };
    if let EntryKind::Link(target) = &kind {
        let failed = |source| LayerError::Link {
            path: shown(&path),
            target: shown(target),
            source,
        };
        let (parent, name) = tree.parent_of(target, None).map_err(failed)?;
        let name = name.ok_or(PathError::LinkToDirectory).map_err(failed)?;
        let node = tree
            .child(parent, name)
            .ok_or(PathError::Missing)
            .map_err(failed)?;
        let (parent, name) = tree.parent_of(&path, Some(layer)).map_err(wrong)?;
        let name = name.ok_or(PathError::Root).map_err(wrong)?;
        return tree.link(parent, name, node, layer).map_err(failed);
    }

    let (parent, name) = tree.parent_of(&path, Some(layer)).map_err(wrong)?;
    let Some(name) = name else {
        if kind != EntryKind::Directory {
            return Err(wrong(PathError::Root));
        }
        let root = tree.root();
        return tree.set_attributes(root, attributes).map_err(wrong);
    };
    let kind = match kind {
        EntryKind::Directory | EntryKind::Link(_) => {
            return tree
                .insert_directory(parent, name, attributes, layer)
                .map(|_| ())
                .map_err(wrong);
        }
        EntryKind::File => {
            let mut file = contents.file();
            while let Some((offset, bytes)) = reader.chunk()? {
                let count = bytes.len();
                let failed = |source| LayerError::Write {
                    path: shown(&path),
                    source,
                };
                contents.write(&mut file, offset, bytes).map_err(failed)?;
                reader.consume(count);
            }
            Kind::File {
                size,
                runs: contents.end(file),
            }
        }
        EntryKind::Symlink(target) => Kind::Symlink(target.into()),
        EntryKind::Character { major, minor } => Kind::Character { major, minor },
        EntryKind::Block { major, minor } => Kind::Block { major, minor },
        EntryKind::Fifo => Kind::Fifo,
    };
    tree.insert(parent, name, attributes, kind, layer)
        .map(|_| ())
        .map_err(wrong)
}

fn whiteout(path: &[u8], last: &[u8], layer: u32, tree: &mut Tree) -> Result<(), LayerError> {
    let shown = || String::from_utf8_lossy(path).into_owned();
    let hidden = &last[WHITEOUT.len()..];
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(LayerError::Whiteout(shown()));
    }
    let parent = match tree.parent_of(path, None) {
        Ok((parent, _)) => parent,
        // There is nothing to hide.
        Err(PathError::Missing | PathError::NotDirectory(_)) => return Ok(()),
        Err(source) => {
            return Err(LayerError::Path {
                path: shown(),
                source,
            });
        }
    };
    if last == OPAQUE {
        tree.hide_all(parent, layer);
    } else if !last.starts_with(WHITEOUT_META) {
        tree.hide(parent, hidden, layer);
    }
    Ok(())
}
