//! `dir:` sources: a directory of this machine, copied as it is.
//!
//! Everything below is taken, other filesystems mounted there included; symbolic links are copied and
//! never followed. The order is that of sorted names, so that one directory always gives one disk and
//! one image id.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::config::{ImageConfig, RootFs};
use crate::digest::{Digest, Hasher};
use crate::disk::Disk;
use crate::ext4::{Contents, xattr_is_kept, xattrs_fit};
use crate::progress::Progress;
use crate::tree::{Attributes, Kind, NodeId, PathError, Time, Tree, Xattrs};

/// Bytes read at once.
const BUFFER: usize = 1 << 20;

/// Who owns the files of a disk made from a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Who owns them here.
    Kept,
    /// One user and group, for directories that someone unprivileged made.
    Fixed {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// Why a directory could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A file or directory could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It became shorter or something else meanwhile.
    #[error("{0} changed while it was copied")]
    Changed(PathBuf),
    /// The disk refused contents.
    #[error("cannot write the contents of {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that the filesystem cannot hold.
    #[error("{path} cannot be copied")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: PathError,
    },
}

/// Copies `root` into `tree` and `contents`. Returns a digest of all that was copied.
pub fn copy<D: Disk>(
    root: &Path,
    owners: Owners,
    tree: &mut Tree,
    contents: &mut Contents<D>,
    progress: &dyn Progress,
) -> Result<Digest, RootfsError> {
    let mut copier = Copier {
        owners,
        tree,
        contents,
        progress,
        hasher: Hasher::default(),
        linked: HashMap::new(),
        buffer: vec![0; BUFFER],
    };
    let metadata = fs::metadata(root).map_err(|source| RootfsError::Read {
        path: root.to_owned(),
        source,
    })?;
    if !metadata.is_dir() {
        let source = io::ErrorKind::NotADirectory.into();
        return Err(RootfsError::Read {
            path: root.to_owned(),
            source,
        });
    }
    let attributes = copier.attributes(root, &metadata)?;
    copier.record(b"", b"directory", &attributes);
    let node = copier.tree.root();
    let wrong = |source| RootfsError::Path {
        path: root.to_owned(),
        source,
    };
    copier
        .tree
        .set_attributes(node, attributes)
        .map_err(wrong)?;
    let mut todo = vec![(root.to_owned(), node)];
    while let Some((path, node)) = todo.pop() {
        let read = |source| RootfsError::Read {
            path: path.clone(),
            source,
        };
        let entries = fs::read_dir(&path).map_err(read)?;
        let mut names: Vec<_> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(read)?;
        names.sort_unstable();
        let first = todo.len();
        for name in names {
            let below = path.join(&name);
            if let Some(directory) = copier.entry(node, name.as_bytes(), &below)? {
                todo.push((below, directory));
            }
        }
        copier.hasher.update(b"end of directory");
        todo[first..].reverse();
    }
    Ok(copier.hasher.finish())
}

/// The configuration of an image that is the directory of digest `content`.
pub fn config(content: Digest) -> Vec<u8> {
    let config = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids: vec![content],
        },
        ..ImageConfig::default()
    };
    serde_json::to_vec(&config).unwrap_or_default()
}

struct Copier<'a, D> {
    owners: Owners,
    tree: &'a mut Tree,
    contents: &'a mut Contents<D>,
    progress: &'a dyn Progress,
    hasher: Hasher,
    /// Nodes of files with several names, by device and inode, and their place in the order.
    linked: HashMap<(u64, u64), (NodeId, u64)>,
    buffer: Vec<u8>,
}

impl<D: Disk> Copier<'_, D> {
    /// Copies one entry; returns its node if it is a directory.
    fn entry(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &Path,
    ) -> Result<Option<NodeId>, RootfsError> {
        let read = |source| RootfsError::Read {
            path: path.to_owned(),
            source,
        };
        let wrong = |source| RootfsError::Path {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::symlink_metadata(path).map_err(read)?;
        let kind = metadata.file_type();
        let key = (metadata.dev(), metadata.ino());
        let shared = metadata.nlink() > 1 && !kind.is_dir();
        if shared && let Some(&(node, place)) = self.linked.get(&key) {
            self.field(name);
            self.field(b"link");
            self.hasher.update(&place.to_le_bytes());
            self.tree.link(parent, name, node, 0).map_err(wrong)?;
            return Ok(None);
        }
        let attributes = self.attributes(path, &metadata)?;
        if !xattrs_fit(&attributes.xattrs) {
            return Err(wrong(PathError::Xattrs));
        }
        let (major, minor) = (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        );
        let new = if kind.is_dir() {
            self.record(name, b"directory", &attributes);
            Kind::directory()
        } else if kind.is_symlink() {
            let target = fs::read_link(path)
                .map_err(read)?
                .into_os_string()
                .into_vec();
            self.record(name, b"symlink", &attributes);
            self.field(&target);
            Kind::Symlink(target.into())
        } else if kind.is_file() {
            self.record(name, b"file", &attributes);
            self.contents(path, &metadata)?
        } else if kind.is_char_device() {
            self.record(
                name,
                format!("character {major} {minor}").as_bytes(),
                &attributes,
            );
            Kind::Character { major, minor }
        } else if kind.is_block_device() {
            self.record(
                name,
                format!("block {major} {minor}").as_bytes(),
                &attributes,
            );
            Kind::Block { major, minor }
        } else if kind.is_fifo() {
            self.record(name, b"fifo", &attributes);
            Kind::Fifo
        } else {
            self.record(name, b"socket", &attributes);
            Kind::Socket
        };
        let node = self
            .tree
            .insert(parent, name, attributes, new, 0)
            .map_err(wrong)?;
        if shared {
            let place = self.linked.len() as u64;
            self.linked.insert(key, (node, place));
        }
        Ok(kind.is_dir().then_some(node))
    }

    /// Copies a regular file's contents, holes left out.
    fn contents(&mut self, path: &Path, metadata: &Metadata) -> Result<Kind, RootfsError> {
        use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
        use rustix::io::Errno;
        let read = |source: io::Error| RootfsError::Read {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file =
            File::from(open(path, flags, Mode::empty()).map_err(|error| read(error.into()))?);
        let opened = file.metadata().map_err(read)?;
        if !opened.is_file() || (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(RootfsError::Changed(path.to_owned()));
        }
        let size = opened.len();
        self.hasher.update(&size.to_le_bytes());
        let mut writer = self.contents.file();
        let mut offset = 0;
        while offset < size {
            let (start, end) = match seek(&file, SeekFrom::Data(offset)) {
                Ok(start) => (
                    start,
                    seek(&file, SeekFrom::Hole(start)).map_err(|error| read(error.into()))?,
                ),
                Err(Errno::NXIO) => break,
                // Filesystems without holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => (offset, size),
                Err(error) => return Err(read(error.into())),
            };
            let end = end.min(size);
            self.hasher.update(&start.to_le_bytes());
            offset = start;
            while offset < end {
                let most = (end - offset).min(BUFFER as u64) as usize;
                let count = file
                    .read_at(&mut self.buffer[..most], offset)
                    .map_err(read)?;
                if count == 0 {
                    return Err(RootfsError::Changed(path.to_owned()));
                }
                let bytes = &self.buffer[..count];
                self.hasher.update(bytes);
                self.contents
                    .write(&mut writer, offset, bytes)
                    .map_err(|source| RootfsError::Write {
                        path: path.to_owned(),
                        source,
                    })?;
                self.progress.advance(count as u64);
                offset += count as u64;
            }
            self.hasher.update(&end.to_le_bytes());
        }
        Ok(Kind::File {
            size,
            runs: self.contents.end(writer),
        })
    }

    fn attributes(&self, path: &Path, metadata: &Metadata) -> Result<Attributes, RootfsError> {
        let (uid, gid) = match self.owners {
            Owners::Kept => (metadata.uid(), metadata.gid()),
            Owners::Fixed { uid, gid } => (uid, gid),
        };
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        Ok(Attributes {
            mode: (metadata.mode() & 0o7777) as u16,
            uid,
            gid,
            mtime: Time {
                seconds: metadata.mtime(),
                nanoseconds,
            },
            xattrs: xattrs(path).map_err(|source| RootfsError::Read {
                path: path.to_owned(),
                source,
            })?,
        })
    }

    fn record(&mut self, name: &[u8], kind: &[u8], attributes: &Attributes) {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = attributes;
        self.field(name);
        self.field(kind);
        self.field(
            format!(
                "{mode:o} {uid} {gid} {} {} {}",
                mtime.seconds,
                mtime.nanoseconds,
                xattrs.len()
            )
            .as_bytes(),
        );
        for (name, value) in xattrs {
            self.field(name);
            self.field(value);
        }
    }

    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}

/// The extended attributes of `path` itself that a disk can keep.
fn xattrs(path: &Path) -> io::Result<Xattrs> {
    use rustix::fs::{lgetxattr, llistxattr};
    use rustix::io::Errno;
    // Linux's limits on a list of names and on a value, 64 KiB each.
    let mut names = vec![0u8; 64 << 10];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Xattrs::new();
    for name in names[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty() && xattr_is_kept(name))
    {
        let mut value = vec![0u8; 64 << 10];
        match lgetxattr(path, name, &mut value[..]) {
            Ok(length) => found.insert(name.into(), value[..length].into()),
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(found)
}
