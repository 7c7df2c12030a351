//! One disk's file system.
//!
//! Inodes, directories, links and bounds as Linux has them; who may do what is
//! the kernel's business, not the tree's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::Errno;

/// An inode's number.
pub type Inode = u64;
/// The root directory.
pub const ROOT: Inode = 1;
/// Most symbolic links of one walk (`MAXSYMLINKS` of linux/namei.h).
pub const MAX_LINKS: usize = 40;

/// A file system that is shared by those who mount it.
pub type Disk = Arc<Mutex<Tree>>;

/// A moment, seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest, below 1,000,000,000.
    pub nanos: u32,
}

/// What a regular file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many that nobody told: they read as the file's own number, over and
    /// over.
    Untold(u64),
}

impl Content {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Untold(size) => *size,
        }
    }
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Regular(Content),
    /// A directory: its parent and its entries.
    Directory {
        /// `..`; the root's is itself.
        parent: Inode,
        /// Names in byte order.
        entries: BTreeMap<Vec<u8>, Inode>,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// Another process's descriptor, as /proc shows it: pid, number.
    Descriptor(u32, u32),
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-id and sticky bits; no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Stamp,
    /// Names it has.
    pub links: u32,
    /// Open descriptions of it.
    pub opens: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    /// One of root's, changed at `mtime`.
    pub fn new(kind: Kind, mode: u32, mtime: Stamp) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime,
            links: 0,
            opens: 0,
            xattrs: BTreeMap::new(),
        }
    }

    /// An empty directory.
    pub fn directory(mode: u32, mtime: Stamp) -> Self {
        let kind = Kind::Directory {
            parent: ROOT,
            entries: BTreeMap::new(),
        };
        Self::new(kind, mode, mtime)
    }

    /// A file with these bytes.
    pub fn file(bytes: impl Into<Vec<u8>>, mode: u32, mtime: Stamp) -> Self {
        Self::new(Kind::Regular(Content::Bytes(bytes.into())), mode, mtime)
    }

    /// Bytes of a file or a link's target.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Regular(content) => content.len(),
            Kind::Symlink(target) => target.len() as u64,
            Kind::Directory { .. } => 4096,
            _ => 0,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    fn entries(&self) -> Result<&BTreeMap<Vec<u8>, Inode>, Errno> {
        match &self.kind {
            Kind::Directory { entries, .. } => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn entries_mut(&mut self) -> Result<&mut BTreeMap<Vec<u8>, Inode>, Errno> {
        match &mut self.kind {
            Kind::Directory { entries, .. } => Ok(entries),
            _ => Err(Errno::NOTDIR),
        }
    }
}

/// A file system.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<Inode, Node>,
    next: Inode,
    /// Bound on the bytes of all files.
    limit: u64,
    used: u64,
}

impl Tree {
    /// An empty one that holds at most `limit` bytes.
    pub fn new(limit: u64, mode: u32, now: Stamp) -> Self {
        let mut root = Node::directory(mode, now);
        root.links = 1;
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            limit,
            used: 0,
        }
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Most bytes of all files.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What a machine that lost its power left open is gone.
    pub fn recover(&mut self) {
        let lost: Vec<Inode> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.links == 0)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in lost {
            self.drop_node(inode);
        }
        for node in self.nodes.values_mut() {
            node.opens = 0;
        }
    }

    /// The inode of this number.
    ///
    /// # Errors
    /// `ENOENT`: it is gone.
    pub fn node(&self, inode: Inode) -> Result<&Node, Errno> {
        self.nodes.get(&inode).ok_or(Errno::NOENT)
    }

    /// As [`Tree::node`], to be changed: not its content.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn node_mut(&mut self, inode: Inode) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&inode).ok_or(Errno::NOENT)
    }

    /// An entry of a directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`.
    pub fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Inode, Errno> {
        self.node(directory)?
            .entries()?
            .get(name)
            .copied()
            .ok_or(Errno::NOENT)
    }

    /// A directory's entries, in byte order of their names.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn list(&self, directory: Inode) -> Result<Vec<(Vec<u8>, Inode)>, Errno> {
        Ok(self
            .node(directory)?
            .entries()?
            .iter()
            .map(|(name, inode)| (name.clone(), *inode))
            .collect())
    }

    /// `..`.
    pub fn parent(&self, directory: Inode) -> Inode {
        match self.nodes.get(&directory).map(|node| &node.kind) {
            Some(Kind::Directory { parent, .. }) => *parent,
            _ => ROOT,
        }
    }

    /// A new entry.
    ///
    /// # Errors
    /// `EEXIST`, `ENOTDIR`, `ENOSPC`, `EINVAL` for a name that is none.
    pub fn create(
        &mut self,
        directory: Inode,
        name: &[u8],
        mut node: Node,
        now: Stamp,
    ) -> Result<Inode, Errno> {
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if self.node(directory)?.entries()?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        if let Kind::Regular(Content::Bytes(bytes)) = &node.kind {
            self.charge(bytes.len() as u64)?;
        }
        if let Kind::Directory { parent, .. } = &mut node.kind {
            *parent = directory;
        }
        node.links = 1;
        let inode = self.next;
        self.next += 1;
        self.nodes.insert(inode, node);
        let parent = self.node_mut(directory)?;
        parent.entries_mut()?.insert(name.to_vec(), inode);
        parent.mtime = now;
        Ok(inode)
    }

    /// Another name for a file.
    ///
    /// # Errors
    /// `EEXIST`, `ENOTDIR`; `EPERM` for a directory.
    pub fn link(
        &mut self,
        inode: Inode,
        directory: Inode,
        name: &[u8],
        now: Stamp,
    ) -> Result<(), Errno> {
        if self.node(inode)?.is_directory() {
            return Err(Errno::PERM);
        }
        if self.node(directory)?.entries()?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let parent = self.node_mut(directory)?;
        parent.entries_mut()?.insert(name.to_vec(), inode);
        parent.mtime = now;
        self.node_mut(inode)?.links += 1;
        Ok(())
    }

    /// Takes a name away from what is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub fn unlink(&mut self, directory: Inode, name: &[u8], now: Stamp) -> Result<(), Errno> {
        let inode = self.lookup(directory, name)?;
        if self.node(inode)?.is_directory() {
            return Err(Errno::ISDIR);
        }
        self.detach(directory, name, now)
    }

    /// Takes an empty directory away.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub fn rmdir(&mut self, directory: Inode, name: &[u8], now: Stamp) -> Result<(), Errno> {
        let inode = self.lookup(directory, name)?;
        if !self.node(inode)?.entries()?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.detach(directory, name, now)
    }

    fn detach(&mut self, directory: Inode, name: &[u8], now: Stamp) -> Result<(), Errno> {
        let parent = self.node_mut(directory)?;
        let inode = parent.entries_mut()?.remove(name).ok_or(Errno::NOENT)?;
        parent.mtime = now;
        let node = self.node_mut(inode)?;
        node.links = node.links.saturating_sub(1);
        self.collect(inode);
        Ok(())
    }

    /// Gives an entry another name and place, over what is there.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EISDIR`, `ENOTEMPTY`; `EINVAL` below itself.
    pub fn rename(
        &mut self,
        from: (Inode, &[u8]),
        to: (Inode, &[u8]),
        now: Stamp,
    ) -> Result<(), Errno> {
        let inode = self.lookup(from.0, from.1)?;
        let moves_directory = self.node(inode)?.is_directory();
        let mut above = to.0;
        while moves_directory && above != ROOT {
            if above == inode {
                return Err(Errno::INVAL);
            }
            above = self.parent(above);
        }
        match self.lookup(to.0, to.1) {
            Ok(there) if there == inode => return Ok(()),
            Ok(there) => match (moves_directory, self.node(there)?.is_directory()) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) => self.rmdir(to.0, to.1, now)?,
                (false, false) => self.unlink(to.0, to.1, now)?,
            },
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        let source = self.node_mut(from.0)?;
        source.entries_mut()?.remove(from.1);
        source.mtime = now;
        let target = self.node_mut(to.0)?;
        target.entries_mut()?.insert(to.1.to_vec(), inode);
        target.mtime = now;
        if let Kind::Directory { parent, .. } = &mut self.node_mut(inode)?.kind {
            *parent = to.0;
        }
        Ok(())
    }

    /// One more open description.
    pub fn opened(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.opens += 1;
        }
    }

    /// One less.
    pub fn closed(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.opens = node.opens.saturating_sub(1);
        }
        self.collect(inode);
    }

    fn collect(&mut self, inode: Inode) {
        let gone = |node: &Node| node.links == 0 && node.opens == 0;
        if inode != ROOT && self.nodes.get(&inode).is_some_and(gone) {
            self.drop_node(inode);
        }
    }

    fn drop_node(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.remove(&inode)
            && let Kind::Regular(Content::Bytes(bytes)) = node.kind
        {
            self.used = self.used.saturating_sub(bytes.len() as u64);
        }
    }

    fn charge(&mut self, more: u64) -> Result<(), Errno> {
        let used = self.used.saturating_add(more);
        if used > self.limit {
            return Err(Errno::NOSPC);
        }
        self.used = used;
        Ok(())
    }

    /// Bytes of a file from `offset`, at most `most`; none at its end.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for what has no bytes.
    pub fn read(&self, inode: Inode, offset: u64, most: usize) -> Result<Vec<u8>, Errno> {
        match &self.node(inode)?.kind {
            Kind::Regular(Content::Bytes(bytes)) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(most).min(bytes.len());
                Ok(bytes[from..to].to_vec())
            }
            Kind::Regular(Content::Untold(size)) => {
                let most = size.saturating_sub(offset).min(most as u64);
                Ok((offset..offset + most)
                    .map(|at| inode.to_le_bytes()[(at % 8) as usize])
                    .collect())
            }
            Kind::Directory { .. } => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Puts bytes into a file at `offset`; how many fitted.
    ///
    /// # Errors
    /// `ENOSPC` when none did; `EISDIR`, `EINVAL`.
    pub fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        data: &[u8],
        now: Stamp,
    ) -> Result<usize, Errno> {
        let known = self.tell(inode)?;
        let offset = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let grows = (offset + data.len()).saturating_sub(known) as u64;
        let room = self.limit.saturating_sub(self.used).min(grows);
        let short = usize::try_from(grows - room).unwrap_or(usize::MAX);
        let data = &data[..data.len().saturating_sub(short)];
        if data.is_empty() && short > 0 {
            return Err(Errno::NOSPC);
        }
        self.used += room;
        let node = self.node_mut(inode)?;
        node.mtime = now;
        let Kind::Regular(Content::Bytes(bytes)) = &mut node.kind else {
            return Err(Errno::INVAL);
        };
        if bytes.len() < offset {
            bytes.resize(offset, 0);
        }
        let over = (bytes.len() - offset).min(data.len());
        bytes[offset..offset + over].copy_from_slice(&data[..over]);
        bytes.extend_from_slice(&data[over..]);
        Ok(data.len())
    }

    /// Cuts a file, or fills it up with zeroes.
    ///
    /// # Errors
    /// `ENOSPC`, `EISDIR`, `EINVAL`.
    pub fn truncate(&mut self, inode: Inode, size: u64, now: Stamp) -> Result<(), Errno> {
        if size == 0 {
            // What nobody told need not be made up to be thrown away.
            let node = self.node_mut(inode)?;
            if let Kind::Regular(content @ Content::Untold(_)) = &mut node.kind {
                *content = Content::Bytes(Vec::new());
            }
        }
        let known = self.tell(inode)? as u64;
        if size > known {
            self.charge(size - known)?;
        } else {
            self.used = self.used.saturating_sub(known - size);
        }
        let node = self.node_mut(inode)?;
        node.mtime = now;
        if let Kind::Regular(Content::Bytes(bytes)) = &mut node.kind {
            bytes.resize(usize::try_from(size).map_err(|_| Errno::NOSPC)?, 0);
        }
        Ok(())
    }

    /// Makes a file's content bytes of its own; how many they are.
    fn tell(&mut self, inode: Inode) -> Result<usize, Errno> {
        match &self.node(inode)?.kind {
            Kind::Regular(Content::Bytes(bytes)) => Ok(bytes.len()),
            Kind::Regular(Content::Untold(size)) => {
                let size = usize::try_from(*size).map_err(|_| Errno::NOSPC)?;
                let bytes = self.read(inode, 0, size)?;
                self.charge(bytes.len() as u64)?;
                self.node_mut(inode)?.kind = Kind::Regular(Content::Bytes(bytes));
                Ok(size)
            }
            Kind::Directory { .. } => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// The inode of a plain path from the root; symbolic links are not
    /// followed.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`.
    pub fn find(&self, path: &[u8]) -> Result<Inode, Errno> {
        path.split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .try_fold(ROOT, |inode, name| self.lookup(inode, name))
    }
}
