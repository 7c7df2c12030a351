//! What is mounted where, and how a path is walked through it.

use super::Errno;
use super::tree::{Disk, Inode, Kind, MAX_LINKS, Node, ROOT};
use crate::fake::lock;

/// An inode of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which mount.
    pub mount: usize,
    /// Which inode of its file system.
    pub inode: Inode,
}

/// What kind of file system a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A disk's, or a directory of one.
    Disk,
    /// Memory.
    Memory,
    /// The processes.
    Proc,
}

/// One mount.
#[derive(Debug)]
pub struct Mount {
    /// Its files.
    pub disk: Disk,
    /// Its root: a directory, or a single file laid over another.
    pub root: Inode,
    /// What it covers; nothing for the container's root.
    pub on: Option<Place>,
    /// Whether nothing can be changed through it.
    pub read_only: bool,
    /// What it shows.
    pub source: Source,
    /// Where, for mount tables.
    pub target: String,
}

/// Who walks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Whether `wanted` (4 read, 2 write, 1 execute or search) is permitted.
    ///
    /// # Errors
    /// `EACCES`.
    pub fn may(&self, node: &Node, wanted: u32) -> Result<(), Errno> {
        let bits = if self.uid == 0 {
            // Root needs one execute bit to execute, and nothing else.
            if node.is_directory() || wanted & 1 == 0 || node.mode & 0o111 != 0 {
                7
            } else {
                6
            }
        } else if self.uid == node.uid {
            node.mode >> 6
        } else if self.gid == node.gid || self.groups.contains(&node.gid) {
            node.mode >> 3
        } else {
            node.mode
        };
        if bits & wanted == wanted {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }
}

/// All mounts of a machine. A mount's number is its place here, for ever.
#[derive(Debug, Default)]
pub struct Mounts(Vec<Mount>);

/// What a walk came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    There(Place),
    /// Its directory is, and there it has this name to be.
    Missing(Place, Vec<u8>),
}

impl Mounts {
    /// Mounts one more thing.
    pub fn add(&mut self, mount: Mount) -> usize {
        self.0.push(mount);
        self.0.len() - 1
    }

    /// One of them.
    ///
    /// # Errors
    /// `ENOENT`: none of that number.
    pub fn get(&self, mount: usize) -> Result<&Mount, Errno> {
        self.0.get(mount).ok_or(Errno::NOENT)
    }

    /// As [`Mounts::get`], to be changed.
    pub fn get_mut(&mut self, mount: usize) -> Option<&mut Mount> {
        self.0.get_mut(mount)
    }

    /// All, in the order they were mounted.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }

    /// The container's root.
    pub fn root(&self) -> Place {
        self.surface(Place {
            mount: 0,
            inode: ROOT,
        })
    }

    /// What is seen at a place: what was mounted over it last.
    pub fn surface(&self, mut place: Place) -> Place {
        while let Some((number, mount)) = self
            .0
            .iter()
            .enumerate()
            .rev()
            .find(|(_, mount)| mount.on == Some(place))
        {
            place = Place {
                mount: number,
                inode: mount.root,
            };
        }
        place
    }

    /// A copy of an inode.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn node(&self, place: Place) -> Result<Node, Errno> {
        lock(&self.get(place.mount)?.disk)
            .node(place.inode)
            .cloned()
    }

    /// Looks at an inode.
    ///
    /// # Errors
    /// `ENOENT`, or what `look` says.
    pub fn with<T>(
        &self,
        place: Place,
        look: impl FnOnce(&Node) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        look(lock(&self.get(place.mount)?.disk).node(place.inode)?)
    }

    /// `..`, out of a mount where it is its root.
    pub fn parent(&self, mut place: Place) -> Place {
        while let Some(mount) = self.0.get(place.mount) {
            if mount.root != place.inode {
                let inode = lock(&mount.disk).parent(place.inode);
                return self.surface(Place {
                    mount: place.mount,
                    inode,
                });
            }
            match mount.on {
                Some(covered) => place = covered,
                None => return place,
            }
        }
        place
    }

    /// Walks a path from `start`; `follow` says whether a link at its end is
    /// followed. `own` is the walker's pid, for /proc/self.
    ///
    /// # Errors
    /// `ENOENT` of a directory on the way, `ENOTDIR`, `ELOOP`, `EACCES`.
    pub fn walk(
        &self,
        start: Place,
        path: &[u8],
        who: &Credentials,
        follow: bool,
    ) -> Result<Found, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut links = 0;
        let mut here = start;
        // Components still to go, the next one last.
        let mut rest: Vec<Vec<u8>> = Vec::new();
        let push = |rest: &mut Vec<Vec<u8>>, path: &[u8]| {
            // A slash at the end asks for a directory, as a dot does.
            if path.ends_with(b"/") {
                rest.push(b".".to_vec());
            }
            rest.extend(
                path.split(|byte| *byte == b'/')
                    .filter(|name| !name.is_empty())
                    .rev()
                    .map(<[u8]>::to_vec),
            );
        };
        if path.starts_with(b"/") {
            here = self.root();
        }
        push(&mut rest, path);
        while let Some(name) = rest.pop() {
            self.with(here, |node| {
                if !node.is_directory() {
                    return Err(Errno::NOTDIR);
                }
                who.may(node, 1)
            })?;
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    here = self.parent(here);
                    continue;
                }
                _ => {}
            }
            let found = lock(&self.get(here.mount)?.disk).lookup(here.inode, &name);
            let inode = match found {
                Ok(inode) => inode,
                Err(Errno::NOENT) if rest.iter().all(|name| name == b".") => {
                    return Ok(Found::Missing(here, name));
                }
                Err(errno) => return Err(errno),
            };
            let there = self.surface(Place {
                mount: here.mount,
                inode,
            });
            let target = self.with(there, |node| {
                Ok(match &node.kind {
                    Kind::Symlink(target) => Some(target.clone()),
                    _ => None,
                })
            })?;
            match target {
                Some(target) if follow || !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.is_empty() {
                        return Err(Errno::NOENT);
                    }
                    if target.starts_with(b"/") {
                        here = self.root();
                    }
                    push(&mut rest, &target);
                }
                _ => here = there,
            }
        }
        Ok(Found::There(here))
    }

    /// As [`Mounts::walk`], for what has to be there.
    ///
    /// # Errors
    /// `ENOENT` too.
    pub fn find(
        &self,
        start: Place,
        path: &[u8],
        who: &Credentials,
        follow: bool,
    ) -> Result<Place, Errno> {
        match self.walk(start, path, who, follow)? {
            Found::There(place) => Ok(place),
            Found::Missing(..) => Err(Errno::NOENT),
        }
    }

    /// Where something is, as a path from the root.
    pub fn path_of(&self, mut place: Place) -> String {
        let mut names: Vec<String> = Vec::new();
        let root = self.root();
        while place != root && names.len() < 1000 {
            let above = self.parent(place);
            // The entry whose surface this is.
            let name = self.get(above.mount).ok().and_then(|mount| {
                let entries = lock(&mount.disk).list(above.inode).ok()?;
                entries.into_iter().find_map(|(name, inode)| {
                    let entry = Place {
                        mount: above.mount,
                        inode,
                    };
                    (self.surface(entry) == place)
                        .then(|| String::from_utf8_lossy(&name).into_owned())
                })
            });
            match name {
                Some(name) => names.push(name),
                None => return "(unreachable)".to_owned(),
            }
            place = above;
        }
        if names.is_empty() {
            return "/".to_owned();
        }
        names
            .iter()
            .rev()
            .fold(String::new(), |path, name| path + "/" + name)
    }
}
