//! What is there: one place, or a tree in order, with contents or without.

use std::collections::BTreeMap;

use tether_wire::files::{FileEntry, FileKind, Timestamp, Xattr, encode_end, encode_entry};
use tether_wire::message::Boundary;

use super::{At, Outcome, Stopped, View, checked, find};
use crate::fake::files::Errno;
use crate::fake::files::image::{Disks, READ_OUT_FILE};
use crate::fake::files::mounts::{Place, Source};
use crate::fake::files::tree::{Content, Kind, Node};
use crate::fake::kernel::sys::{CHUNK, Sys};
use crate::fake::lock;

/// Whether files' contents go with them.
#[derive(Clone, Copy)]
pub enum Contents<'a> {
    /// They do, and the room that the disks are of knows them from then on.
    Included(&'a Disks),
    /// They do not, and every name is a file.
    Left,
}

fn entry_of(node: &Node, path: Vec<u8>) -> FileEntry {
    let kind = match &node.kind {
        Kind::Regular(content) => FileKind::Regular {
            size: content.len(),
        },
        Kind::Directory { .. } => FileKind::Directory,
        Kind::Symlink(target) => FileKind::Symlink {
            target: target.clone(),
        },
        Kind::Fifo => FileKind::Fifo,
        Kind::Socket => FileKind::Socket,
        Kind::Character(major, minor) => FileKind::CharacterDevice {
            major: *major,
            minor: *minor,
        },
        Kind::Block(major, minor) => FileKind::BlockDevice {
            major: *major,
            minor: *minor,
        },
        Kind::Descriptor(pid, fd) => FileKind::Symlink {
            target: format!("/proc/{pid}/fd/{fd}").into_bytes(),
        },
    };
    FileEntry {
        path,
        kind,
        // Twelve bits.
        mode: (node.mode & 0o7777) as u16,
        uid: node.uid,
        gid: node.gid,
        modified: Timestamp {
            seconds: node.mtime.seconds,
            nanos: node.mtime.nanos,
        },
        xattrs: node
            .xattrs
            .iter()
            .map(|(name, value)| Xattr {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
    }
}

struct Output<'a> {
    sys: &'a Sys,
    buffer: Vec<u8>,
}

impl Output<'_> {
    async fn entry(&mut self, entry: &FileEntry) -> Outcome<()> {
        encode_entry(entry, &mut self.buffer)
            .map_err(|error| Stopped::format(&entry.path, error))?;
        if self.buffer.len() > CHUNK {
            self.flush().await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Outcome<()> {
        encode_end(&mut self.buffer);
        self.flush().await
    }

    async fn flush(&mut self) -> Outcome<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.sys.write(1, &buffer).await.at("sending", b"files")
    }
}

/// What is at `path`, and where it leads if it is a symbolic link.
pub async fn stat(sys: &Sys, path: &[u8]) -> Outcome<()> {
    let path = checked(path)?;
    let what = "looking at";
    let mut output = Output {
        sys,
        buffer: Vec::new(),
    };
    let (entry, target) = {
        let mut kernel = sys.kernel();
        kernel.show_processes(0);
        let mounts = &kernel.mounts;
        let place = find(mounts, path, false).at(what, path)?;
        let node = mounts.node(place).at(what, path)?;
        let target = match node.kind {
            Kind::Symlink(_) => find(mounts, path, true).ok().and_then(|place| {
                let inside = mounts.path_of(place);
                let inside = inside.trim_start_matches('/').as_bytes().to_vec();
                Some(entry_of(&mounts.node(place).ok()?, inside))
            }),
            _ => None,
        };
        (entry_of(&node, Vec::new()), target)
    };
    output.entry(&entry).await?;
    if let Some(target) = target {
        output.entry(&target).await?;
    }
    output.end().await
}

/// A directory that is being read.
struct Level {
    place: Place,
    /// In descending order: the next is the last.
    names: Vec<Vec<u8>>,
    /// The length of the directory's own path.
    path: usize,
}

/// What is at `path` and below.
pub async fn tree(
    sys: &Sys,
    path: &[u8],
    boundary: Boundary,
    contents: Contents<'_>,
) -> Outcome<()> {
    let path = checked(path)?;
    let what = "reading";
    let view = View::new(&sys.kernel(), boundary).at(what, path)?;
    let start = {
        let kernel = sys.kernel();
        find(view.mounts(&kernel), path, false).at(what, path)?
    };
    let mut walk = Walk {
        output: Output {
            sys,
            buffer: Vec::new(),
        },
        view,
        contents,
        path: Vec::new(),
        links: BTreeMap::new(),
    };
    let mut levels = Vec::new();
    levels.extend(walk.visit(start, None).await?);
    while let Some(level) = levels.last_mut() {
        sys.step().await;
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        walk.path.truncate(level.path);
        if level.path > 0 {
            walk.path.push(b'/');
        }
        walk.path.extend_from_slice(&name);
        let directory = level.place;
        let found = {
            let kernel = sys.kernel();
            let mounts = walk.view.mounts(&kernel);
            mounts.get(directory.mount).and_then(|mount| {
                let inode = lock(&mount.disk).lookup(directory.inode, &name)?;
                Ok(mounts.surface(Place {
                    mount: directory.mount,
                    inode,
                }))
            })
        };
        match found {
            // What is gone when its turn comes is left out.
            Err(Errno::NOENT) => {}
            found => {
                let place = found.at(what, &walk.path)?;
                let below = walk.visit(place, Some(directory.mount)).await?;
                levels.extend(below);
            }
        }
    }
    walk.output.end().await
}

struct Walk<'a> {
    output: Output<'a>,
    view: View,
    contents: Contents<'a>,
    path: Vec<u8>,
    /// Paths of files that have several names.
    links: BTreeMap<(usize, u64), Vec<u8>>,
}

impl Walk<'_> {
    /// Writes one entry; gives what is in it when it is a directory to be
    /// entered.
    async fn visit(&mut self, place: Place, above: Option<usize>) -> Outcome<Option<Level>> {
        let sys = self.output.sys;
        let (node, told, disk, enters, names) = {
            let kernel = sys.kernel();
            let mounts = self.view.mounts(&kernel);
            let mount = mounts.get(place.mount).at("reading", &self.path)?;
            let tree = lock(&mount.disk);
            let node = tree.node(place.inode).at("reading", &self.path)?;
            let names = if node.is_directory() {
                let entries = tree.list(place.inode).at("reading", &self.path)?;
                entries.into_iter().rev().map(|(name, _)| name).collect()
            } else {
                Vec::new()
            };
            let is_mount = above.is_some_and(|above| above != place.mount);
            let enters = !is_mount || mount.source == Source::Disk;
            let told = matches!(&node.kind, Kind::Regular(Content::Bytes(_)));
            let node = match &node.kind {
                // Its bytes are read as they go.
                Kind::Regular(content) => Node {
                    kind: Kind::Regular(Content::Untold(content.len())),
                    xattrs: node.xattrs.clone(),
                    ..*node
                },
                _ => node.clone(),
            };
            (node, told, mount.disk.clone(), enters, names)
        };
        let mut entry = entry_of(&node, self.path.clone());
        if node.is_directory() {
            self.output.entry(&entry).await?;
            return Ok(enters.then_some(Level {
                place,
                names,
                path: self.path.len(),
            }));
        }
        let mut linked = false;
        if matches!(self.contents, Contents::Included(_)) && node.links > 1 {
            let key = (place.mount, place.inode);
            if let Some(target) = self.links.get(&key) {
                entry.kind = FileKind::HardLink {
                    target: target.clone(),
                };
                linked = true;
            } else if !self.path.is_empty() {
                self.links.insert(key, self.path.clone());
            }
        }
        self.output.entry(&entry).await?;
        if let FileKind::Regular { size } = entry.kind
            && let Contents::Included(store) = self.contents
            && !linked
        {
            self.output.flush().await?;
            let mut whole = (told && size <= READ_OUT_FILE).then(Vec::new);
            let mut offset = 0;
            while offset < size {
                let most = usize::try_from(size - offset).unwrap_or(CHUNK).min(CHUNK);
                let mut bytes = lock(&disk)
                    .read(place.inode, offset, most)
                    .unwrap_or_default();
                // Exactly what was announced: one that shrank is filled up.
                bytes.resize(most, 0);
                if let Some(whole) = &mut whole {
                    whole.extend_from_slice(&bytes);
                }
                sys.write(1, &bytes).await.at("sending", b"files")?;
                offset += most as u64;
            }
            if let Some(whole) = whole {
                store.was_read(&entry, whole);
            }
        }
        Ok(None)
    }
}
