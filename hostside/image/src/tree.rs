//! The metadata of one filesystem, in memory: what layers are flattened into and the ext4 writer
//! writes out. File contents are not here, only where on the disk they already are ([`Run`]).
//!
//! A node may have several names (hard links); a node whose last name goes is dropped and its blocks
//! are remembered as released. Names remember the layer that put them there, because whiteouts hide
//! what lower layers put and never what their own layer does.

mod path;

use std::collections::BTreeMap;

pub use path::PathError;
use path::clean;

/// The longest name in a directory, in bytes (Linux `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (Linux `PATH_MAX` less its NUL).
pub const TARGET_MAX: usize = 4095;
/// How deep directories may nest: more than any path of `PATH_MAX` bytes can name.
pub const DEPTH_MAX: u16 = 2048;
/// How many symbolic links one path may pass through (as Linux's `MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// How many names a file may have (ext4's `EXT4_LINK_MAX`).
pub const NAMES_MAX: u32 = 65_000;
/// How much memory names, link targets, extended attributes and block lists may take together, in bytes.
pub const MEMORY_MAX: u64 = 1 << 30;

/// A node of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// A number below [`Tree::capacity`], for tables beside the tree.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A time: seconds since the epoch, and nanoseconds below one second after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970, negative before it.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Extended attributes by full name (`user.x`, `security.capability`), sorted.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every kind of node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: 12 bits, no file type.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification; also written as access and change time.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attributes {
    /// Mode `mode`, owned by root, at the epoch, without extended attributes.
    pub fn plain(mode: u16) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::new(),
        }
    }
}

/// Consecutive blocks of a file that are consecutive on the disk too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first block's number within the file.
    pub logical: u64,
    /// The first block's number on the disk.
    pub physical: u64,
    /// How many.
    pub blocks: u64,
}

/// A node's type and what only that type has.
#[derive(Debug)]
pub enum Kind {
    /// A directory.
    Directory(Directory),
    /// A regular file of `size` bytes; what no run covers is a hole.
    File {
        /// Length in bytes.
        size: u64,
        /// Where its blocks are, by ascending logical block.
        runs: Vec<Run>,
    },
    /// A symbolic link to this target.
    Symlink(Box<[u8]>),
    /// A character device.
    Character {
        /// Device major number.
        major: u32,
        /// Device minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Device major number.
        major: u32,
        /// Device minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl Kind {
    /// An empty directory.
    pub fn directory() -> Self {
        Kind::Directory(Directory::default())
    }
}

/// A directory's entries.
#[derive(Debug, Default)]
pub struct Directory {
    entries: BTreeMap<Box<[u8]>, Entry>,
    depth: u16,
    /// The last layer that put something at or below here.
    touched: u32,
}

impl Directory {
    /// Names and their nodes, by ascending name.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], NodeId)> {
        self.entries
            .iter()
            .map(|(name, entry)| (&**name, entry.node))
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    node: NodeId,
    layer: u32,
}

/// A file, directory or other object.
#[derive(Debug)]
pub struct Node {
    /// Owner, mode, time, extended attributes.
    pub attributes: Attributes,
    /// Type and what belongs to it.
    pub kind: Kind,
    names: u32,
}

impl Node {
    /// How many names it has; 1 for a directory.
    pub fn names(&self) -> u32 {
        self.names
    }
}

/// A filesystem's metadata. It always has a root directory.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    released: Vec<Run>,
    limit: u32,
    count: u32,
    memory: u64,
}

impl Tree {
    /// An empty root directory (mode 0755, root's, at the epoch); at most `limit` nodes.
    pub fn new(limit: u32) -> Self {
        let root = Node {
            attributes: Attributes::plain(0o755),
            kind: Kind::directory(),
            names: 1,
        };
        Self {
            nodes: vec![Some(root)],
            free: Vec::new(),
            released: Vec::new(),
            limit,
            count: 1,
            memory: 0,
        }
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// One more than the highest [`NodeId::index`].
    pub fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// How many nodes there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.count == 1
    }

    /// Disk blocks of files that were replaced or removed.
    pub fn released(&self) -> &[Run] {
        &self.released
    }

    /// The node `id`.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.index()]
            .as_ref()
            .expect("an id held by a name is of a live node")
    }

    /// The node `id`, to change.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.index()]
            .as_mut()
            .expect("an id held by a name is of a live node")
    }

    fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> &mut Directory {
        match &mut self.node_mut(id).kind {
            Kind::Directory(directory) => directory,
            _ => unreachable!("the caller looked it up as a directory"),
        }
    }

    /// The node named `name` in `parent`, if any.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.directory(parent)?
            .entries
            .get(name)
            .map(|entry| entry.node)
    }

    /// Follows `path` from the root, symbolic links included, to its last directory.
    ///
    /// Returns that directory and the last component, or `None` for the root itself. Absolute and
    /// relative paths mean the same; a symbolic link cannot lead out of the root. With `create`,
    /// directories that are missing on the way are made in that layer (mode 0755, root's).
    /// Without it a missing directory is [`PathError::Missing`].
    pub fn parent_of<'p>(
        &mut self,
        path: &'p [u8],
        create: Option<u32>,
    ) -> Result<(NodeId, Option<&'p [u8]>), PathError> {
        let mut components = clean(path)?;
        let Some(last) = components.pop() else {
            return Ok((self.root(), None));
        };
        // What is still to be walked, last first; symbolic links push theirs.
        let mut todo: Vec<Box<[u8]>> = components.into_iter().rev().map(Into::into).collect();
        let mut stack = vec![self.root()];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = *stack.last().expect("the root never leaves the stack");
            match &*name {
                b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.child(here, &name) else {
                let layer = create.ok_or(PathError::Missing)?;
                let made = self.insert(
                    here,
                    &name,
                    Attributes::plain(0o755),
                    Kind::directory(),
                    layer,
                )?;
                stack.push(made);
                continue;
            };
            match &self.node(child).kind {
                Kind::Directory(_) => stack.push(child),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(PathError::Loop);
                    }
                    let parts: Vec<Box<[u8]>> = target
                        .split(|&b| b == b'/')
                        .filter(|part| !part.is_empty())
                        .rev()
                        .map(Into::into)
                        .collect();
                    if parts.iter().any(|part| part.len() > NAME_MAX) {
                        return Err(PathError::NameTooLong);
                    }
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    todo.extend(parts);
                }
                _ => {
                    return Err(PathError::NotDirectory(
                        String::from_utf8_lossy(&name).into_owned(),
                    ));
                }
            }
        }
        if let Some(layer) = create {
            for &directory in &stack {
                self.directory_mut(directory).touched = layer;
            }
        }
        Ok((
            *stack.last().expect("the root never leaves the stack"),
            Some(last),
        ))
    }

    /// Gives `parent` a new node by the name `name`, in place of whatever has that name.
    pub fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        mut kind: Kind,
        layer: u32,
    ) -> Result<NodeId, PathError> {
        if let Kind::Symlink(target) = &kind
            && (target.is_empty() || target.len() > TARGET_MAX || target.contains(&0))
        {
            return Err(PathError::Target);
        }
        if let Kind::Directory(directory) = &mut kind {
            directory.depth = self.directory(parent).map_or(0, |parent| parent.depth) + 1;
            directory.touched = layer;
            if directory.depth > DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
        }
        self.remove(parent, name);
        if self.count >= self.limit {
            return Err(PathError::TooMany(self.limit));
        }
        self.weigh(name.len() as u64 + weight(&attributes, &kind))?;
        self.count += 1;
        let node = Some(Node {
            attributes,
            kind,
            names: 1,
        });
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id.index()] = node;
                id
            }
            None => {
                self.nodes.push(node);
                NodeId(u32::try_from(self.nodes.len() - 1).expect("the limit is a u32"))
            }
        };
        self.directory_mut(parent)
            .entries
            .insert(name.into(), Entry { node: id, layer });
        Ok(id)
    }

    /// Puts a directory at `name`: an existing one keeps its entries and gets `attributes`,
    /// anything else is replaced.
    pub fn insert_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        attributes: Attributes,
        layer: u32,
    ) -> Result<NodeId, PathError> {
        match self.child(parent, name) {
            Some(id) if self.directory(id).is_some() => {
                self.set_attributes(id, attributes)?;
                self.directory_mut(id).touched = layer;
                if let Some(entry) = self.directory_mut(parent).entries.get_mut(name) {
                    entry.layer = layer;
                }
                Ok(id)
            }
            _ => self.insert(parent, name, attributes, Kind::directory(), layer),
        }
    }

    /// Gives a node other attributes.
    pub fn set_attributes(&mut self, id: NodeId, attributes: Attributes) -> Result<(), PathError> {
        let new = attributes_weight(&attributes);
        self.memory = self
            .memory
            .saturating_sub(attributes_weight(&self.node(id).attributes));
        self.weigh(new)?;
        self.node_mut(id).attributes = attributes;
        Ok(())
    }

    /// Counts `bytes` more of memory.
    fn weigh(&mut self, bytes: u64) -> Result<(), PathError> {
        self.memory += bytes;
        if self.memory > MEMORY_MAX {
            Err(PathError::TooMuch)
        } else {
            Ok(())
        }
    }

    /// Gives the node `target` one more name.
    pub fn link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        target: NodeId,
        layer: u32,
    ) -> Result<(), PathError> {
        if self.directory(target).is_some() {
            return Err(PathError::LinkToDirectory);
        }
        self.weigh(name.len() as u64)?;
        let node = self.node_mut(target);
        if node.names >= NAMES_MAX {
            return Err(PathError::TooManyNames);
        }
        node.names += 1;
        self.remove(parent, name);
        self.directory_mut(parent).entries.insert(
            name.into(),
            Entry {
                node: target,
                layer,
            },
        );
        Ok(())
    }

    /// Removes `name` from `parent` with all below it; nothing if there is none.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(entry) = self.directory_mut(parent).entries.remove(name) {
            self.drop_name(entry.node);
        }
    }

    fn drop_name(&mut self, id: NodeId) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let node = self.node_mut(id);
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            let node = self.nodes[id.index()]
                .take()
                .expect("a live node, just looked at");
            self.free.push(id);
            self.count -= 1;
            self.memory = self
                .memory
                .saturating_sub(weight(&node.attributes, &node.kind));
            match node.kind {
                Kind::Directory(directory) => {
                    todo.extend(directory.entries.values().map(|entry| entry.node))
                }
                Kind::File { runs, .. } => self.released.extend(runs),
                _ => {}
            }
        }
    }

    /// Hides `name` as lower layers than `layer` left it: what `layer` itself put there or below
    /// stays.
    pub fn hide(&mut self, parent: NodeId, name: &[u8], layer: u32) {
        let Some(entry) = self
            .directory(parent)
            .and_then(|directory| directory.entries.get(name))
            .copied()
        else {
            return;
        };
        match self.directory(entry.node) {
            Some(directory) if entry.layer == layer || directory.touched == layer => {
                self.hide_all(entry.node, layer);
            }
            _ if entry.layer == layer => {}
            _ => self.remove(parent, name),
        }
    }

    /// Hides all that lower layers than `layer` left in `directory`.
    pub fn hide_all(&mut self, directory: NodeId, layer: u32) {
        let mut todo = vec![directory];
        while let Some(id) = todo.pop() {
            let Some(directory) = self.directory(id) else {
                continue;
            };
            let mut gone: Vec<Box<[u8]>> = Vec::new();
            for (name, entry) in &directory.entries {
                match self.directory(entry.node) {
                    Some(below) if entry.layer == layer || below.touched == layer => {
                        todo.push(entry.node)
                    }
                    _ if entry.layer == layer => {}
                    _ => gone.push(name.clone()),
                }
            }
            for name in gone {
                self.remove(id, &name);
            }
        }
    }
}

/// What a node takes beside its fixed size, roughly, in bytes.
fn weight(attributes: &Attributes, kind: &Kind) -> u64 {
    let own = match kind {
        Kind::File { runs, .. } => size_of_val(&runs[..]),
        Kind::Symlink(target) => target.len(),
        _ => 0,
    };
    own as u64 + attributes_weight(attributes)
}

fn attributes_weight(attributes: &Attributes) -> u64 {
    // With what the map takes for each.
    attributes
        .xattrs
        .iter()
        .map(|(name, value)| (name.len() + value.len() + 64) as u64)
        .sum()
}
