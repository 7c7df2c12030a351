//! What is on a disk when it is first used: an image's files, or a small tree
//! like busybox's.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tether_wire::files::{FileEntry, FileKind};

use super::tree::{Content, Disk, Inode, Kind, Node, ROOT, Stamp, Tree};
use crate::disk::DiskSource;
use crate::fake::{lock, programs};

/// What a disk holds at most, bytes: none is filled by accident.
const DISK_SIZE: u64 = 512 << 20;

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Where and what it is; the path is relative to the image's root.
    pub entry: FileEntry,
    /// What a regular file holds, where that is known. What is not has the
    /// entry's size and reads as bytes that mean nothing; it can be run if a
    /// simulated program has its name.
    pub content: Option<Vec<u8>>,
}

/// Gives the files of the image behind a disk file; nothing for a disk that is
/// no image's.
pub type Images = Arc<dyn Fn(&Path) -> Option<Vec<ImageFile>> + Send + Sync>;

/// All disks that any machine of a room ever had.
#[derive(Default)]
pub struct Disks {
    known: Mutex<BTreeMap<String, (Identity, Disk)>>,
    images: Option<Images>,
    read: Mutex<ReadOut>,
}

/// The contents of files that were read out of machines, up to [`READ_OUT`]: an image made of them has a
/// list of files and no contents, and gets them from here.
#[derive(Debug, Default)]
struct ReadOut {
    files: BTreeMap<(Vec<u8>, i64, u32), Vec<u8>>,
    bytes: usize,
}

/// Bytes of contents that a room remembers at most.
const READ_OUT: usize = 64 << 20;
/// The biggest file it remembers, bytes.
pub const READ_OUT_FILE: u64 = 1 << 20;

impl ReadOut {
    /// A file is the same one while its path and the time of its last change are.
    fn key(entry: &FileEntry) -> (Vec<u8>, i64, u32) {
        let FileEntry { path, modified, .. } = entry;
        (path.clone(), modified.seconds, modified.nanos)
    }

    fn of(&self, entry: &FileEntry) -> Option<Vec<u8>> {
        let FileKind::Regular { size } = entry.kind else {
            return None;
        };
        let found = self.files.get(&Self::key(entry));
        found.filter(|bytes| bytes.len() as u64 == size).cloned()
    }
}

/// Tells a disk file from another at the same path, later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity(Option<(u64, u64, i64, i64)>);

impl Identity {
    fn of(source: &DiskSource) -> Self {
        let DiskSource::File(path) = source else {
            return Self(None);
        };
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec())))
    }
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks").finish_non_exhaustive()
    }
}

/// What a disk without an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A container's root.
    Root,
    /// A volume, empty at first.
    Volume,
}

impl Disks {
    /// With what knows images.
    pub fn new(images: Option<Images>) -> Self {
        Self {
            images,
            ..Self::default()
        }
    }

    /// A file was read out of a machine.
    pub fn was_read(&self, entry: &FileEntry, content: Vec<u8>) {
        let mut read = lock(&self.read);
        if read.bytes + content.len() <= READ_OUT {
            read.bytes += content.len();
            if let Some(before) = read.files.insert(ReadOut::key(entry), content) {
                read.bytes -= before.len();
            }
        }
    }

    /// A disk's file system: the one it had, while the same file is there.
    pub fn open(&self, source: &DiskSource, purpose: Purpose) -> Disk {
        let key = match source {
            DiskSource::File(path) => path.display().to_string(),
            DiskSource::Datastore { datastore, path } => format!("[{datastore}] {path}"),
        };
        let identity = Identity::of(source);
        if let Some((known, disk)) = lock(&self.known).get(&key)
            && *known == identity
        {
            return disk.clone();
        }
        let files = match (source, &self.images) {
            (DiskSource::File(path), Some(images)) => images(path),
            _ => None,
        };
        let tree = match (files, purpose) {
            (Some(mut files), _) => {
                let read = lock(&self.read);
                for file in files.iter_mut().filter(|file| file.content.is_none()) {
                    file.content = read.of(&file.entry);
                }
                of_image(files)
            }
            (None, Purpose::Root) => busybox(),
            (None, Purpose::Volume) => Tree::new(DISK_SIZE, 0o755, Stamp::default()),
        };
        let disk = Arc::new(Mutex::new(tree));
        lock(&self.known).insert(key, (identity, disk.clone()));
        disk
    }
}

/// /etc/passwd of an image that does not tell its content.
pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    bin:x:2:2:bin:/bin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    operator:x:37:37:Operator:/var:/bin/false\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";

/// /etc/group likewise.
pub const GROUP: &str = "root:x:0:\n\
    daemon:x:1:\n\
    bin:x:2:\n\
    tty:x:5:\n\
    wheel:x:10:root\n\
    www-data:x:33:\n\
    users:x:100:\n\
    nobody:x:65534:\n";

/// A tree like that of a busybox image.
fn busybox() -> Tree {
    // 2024-01-01: a day that no test takes for its own.
    let made = Stamp {
        seconds: 1_704_067_200,
        nanos: 0,
    };
    let mut tree = Tree::new(DISK_SIZE, 0o755, made);
    let mut put = |directory: Inode, name: &str, node: Node| {
        // Every name is put once, into a directory that was.
        tree.create(directory, name.as_bytes(), node, made)
            .unwrap_or(ROOT)
    };
    let directory = |mode| Node::directory(mode, made);
    let bin = put(ROOT, "bin", directory(0o755));
    let program = put(
        bin,
        "busybox",
        Node::file(*b"\x7fELF busybox, simulated\n", 0o755, made),
    );
    for (name, mode) in [
        ("dev", 0o755),
        ("home", 0o755),
        ("mnt", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
    ] {
        put(ROOT, name, directory(mode));
    }
    let etc = put(ROOT, "etc", directory(0o755));
    for (name, text, mode) in [
        ("group", GROUP, 0o644),
        ("hostname", "", 0o644),
        ("hosts", "", 0o644),
        ("machine-id", "", 0o644),
        ("passwd", PASSWD, 0o644),
        ("resolv.conf", "", 0o644),
        ("shadow", "root:*:10933:0:99999:7:::\n", 0o600),
    ] {
        put(etc, name, Node::file(text, mode, made));
    }
    let usr = put(ROOT, "usr", directory(0o755));
    for name in ["bin", "sbin", "lib", "share"] {
        put(usr, name, directory(0o755));
    }
    let local = put(usr, "local", directory(0o755));
    put(local, "bin", directory(0o755));
    let var = put(ROOT, "var", directory(0o755));
    for (name, mode) in [("log", 0o755), ("lib", 0o755), ("tmp", 0o1777)] {
        put(var, name, directory(mode));
    }
    let usr_bin = tree.find(b"usr/bin").unwrap_or(ROOT);
    for name in programs::NAMES {
        let directory = match *name {
            "env" | "id" | "seq" | "sort" | "tail" | "head" | "wc" | "yes" | "tr" | "cut"
            | "uniq" | "tee" | "which" | "xargs" | "timeout" | "find" | "flood" => usr_bin,
            _ => bin,
        };
        // As busybox's image does: one file, many names.
        let _ = tree.link(program, directory, name.as_bytes(), made);
    }
    tree
}

/// The tree of an image's own list of files.
fn of_image(files: Vec<ImageFile>) -> Tree {
    let mut tree = Tree::new(DISK_SIZE, 0o755, Stamp::default());
    for file in files {
        // A list that names what is not there is the caller's mistake, and shows.
        let _ = add(&mut tree, file);
    }
    tree
}

/// A stamp of the wire's.
pub fn stamp(modified: tether_wire::files::Timestamp) -> Stamp {
    Stamp {
        seconds: modified.seconds,
        nanos: modified.nanos,
    }
}

/// The inode an entry describes; a hard link has none of its own.
pub fn node_of(entry: &FileEntry, content: Option<Vec<u8>>) -> Option<Node> {
    let kind = match &entry.kind {
        FileKind::Regular { size } => Kind::Regular(match content {
            Some(bytes) => Content::Bytes(bytes),
            None => Content::Untold(*size),
        }),
        FileKind::Directory => Kind::Directory {
            parent: ROOT,
            entries: BTreeMap::new(),
        },
        FileKind::Symlink { target } => Kind::Symlink(target.clone()),
        FileKind::HardLink { .. } => return None,
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
        FileKind::CharacterDevice { major, minor } => Kind::Character(*major, *minor),
        FileKind::BlockDevice { major, minor } => Kind::Block(*major, *minor),
    };
    let mut node = Node::new(kind, u32::from(entry.mode), stamp(entry.modified));
    dress(&mut node, entry);
    Some(node)
}

/// Gives an inode what an entry says beside its kind.
pub fn dress(node: &mut Node, entry: &FileEntry) {
    node.mode = u32::from(entry.mode);
    node.uid = entry.uid;
    node.gid = entry.gid;
    node.mtime = stamp(entry.modified);
    node.xattrs = entry
        .xattrs
        .iter()
        .map(|xattr| (xattr.name.clone(), xattr.value.clone()))
        .collect();
}

fn add(tree: &mut Tree, file: ImageFile) -> Result<(), super::Errno> {
    let ImageFile { entry, content } = file;
    if entry.path.is_empty() {
        dress(tree.node_mut(ROOT)?, &entry);
        return Ok(());
    }
    let at = entry.path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = match at {
        Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
        None => (&b""[..], entry.path.as_slice()),
    };
    let directory = tree.find(parent)?;
    // A new entry is no change of the image's directory.
    let before = tree.node(directory)?.mtime;
    match (&entry.kind, node_of(&entry, content)) {
        (FileKind::HardLink { target }, _) => {
            let inode = tree.find(target)?;
            tree.link(inode, directory, name, before)
        }
        (_, Some(node)) => tree.create(directory, name, node, before).map(drop),
        (_, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use tether_wire::files::Timestamp;

    fn entry(path: &str, kind: FileKind) -> FileEntry {
        FileEntry {
            path: path.into(),
            kind,
            mode: 0o640,
            uid: 3,
            gid: 4,
            modified: Timestamp {
                seconds: 77,
                nanos: 5,
            },
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn an_images_files_are_the_disk_as_they_are_told() {
        let images: Images = Arc::new(|path| {
            (path == Path::new("/image")).then(|| {
                [
                    (entry("", FileKind::Directory), None),
                    (entry("d", FileKind::Directory), None),
                    (
                        entry("d/f", FileKind::Regular { size: 3 }),
                        Some(b"abc".to_vec()),
                    ),
                    (entry("d/u", FileKind::Regular { size: 1 << 40 }), None),
                    (
                        entry(
                            "l",
                            FileKind::HardLink {
                                target: b"d/f".to_vec(),
                            },
                        ),
                        None,
                    ),
                ]
                .into_iter()
                .map(|(entry, content)| ImageFile { entry, content })
                .collect()
            })
        });
        let disks = Disks::new(Some(images));
        let disk = disks.open(&DiskSource::File("/image".into()), Purpose::Root);
        let tree = lock(&disk);
        let file = tree.find(b"d/f").unwrap();
        assert_eq!(tree.find(b"l").unwrap(), file);
        assert_eq!(tree.read(file, 1, 9).unwrap(), b"bc");
        let untold = tree.node(tree.find(b"d/u").unwrap()).unwrap();
        assert_eq!((untold.size(), untold.mtime.seconds), (1 << 40, 77));
        let directory = tree.node(tree.find(b"d").unwrap()).unwrap();
        assert_eq!((directory.mode, directory.mtime.nanos), (0o640, 5));
    }

    #[test]
    fn a_disk_is_the_same_until_its_file_is_another() {
        let directory = std::env::temp_dir().join(format!("disk-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path: PathBuf = directory.join("volume");
        let source = DiskSource::File(path.clone());
        std::fs::write(&path, "a").unwrap();
        let disks = Disks::default();
        let first = disks.open(&source, Purpose::Volume);
        assert!(Arc::ptr_eq(&first, &disks.open(&source, Purpose::Volume)));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(directory.join("other"), "b").unwrap();
        std::fs::rename(directory.join("other"), &path).unwrap();
        assert!(!Arc::ptr_eq(&first, &disks.open(&source, Purpose::Volume)));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
