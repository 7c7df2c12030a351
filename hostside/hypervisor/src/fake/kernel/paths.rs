//! System calls that name files.

use std::sync::Arc;

use super::sys::{Patience, Stat, Sys};
use super::{Access, Handle, Kernel, PipeId};
use crate::fake::files::Errno;
use crate::fake::files::mounts::{Found, Place};
use crate::fake::files::tree::{Disk, Inode, Kind, Node, Stamp};
use crate::fake::lock;

impl Sys {
    fn walk(&self, kernel: &mut Kernel, path: &str, follow: bool) -> Result<Found, Errno> {
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        let (cwd, who) = (process.cwd, process.who.clone());
        if ["proc", "dev/std", "dev/fd"]
            .iter()
            .any(|part| path.contains(part))
            || !path.starts_with('/')
        {
            kernel.show_processes(self.pid);
        }
        kernel.mounts.walk(cwd, path.as_bytes(), &who, follow)
    }

    fn find(&self, kernel: &mut Kernel, path: &str, follow: bool) -> Result<Place, Errno> {
        match self.walk(kernel, path, follow)? {
            Found::There(place) => Ok(place),
            Found::Missing(..) => Err(Errno::NOENT),
        }
    }

    /// A directory that may be changed, and the name in it.
    fn new_entry(&self, kernel: &mut Kernel, path: &str) -> Result<(Disk, Inode, Vec<u8>), Errno> {
        match self.walk(kernel, path, false)? {
            Found::There(_) => Err(Errno::EXIST),
            Found::Missing(directory, name) => {
                let disk = self.writable(kernel, directory)?;
                Ok((disk, directory.inode, name))
            }
        }
    }

    /// The entry at the end of a path, in a directory that may be changed.
    fn entry(&self, kernel: &mut Kernel, path: &str) -> Result<(Place, Disk, Vec<u8>), Errno> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = match trimmed.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some((parent, name)) => (parent, name),
            None => (".", trimmed),
        };
        if matches!(name, "" | "." | "..") {
            return Err(if name.is_empty() {
                Errno::BUSY
            } else {
                Errno::INVAL
            });
        }
        let directory = self.find(kernel, parent, true)?;
        let mount = kernel.mounts.get(directory.mount)?;
        let disk = mount.disk.clone();
        let inode = lock(&disk).lookup(directory.inode, name.as_bytes())?;
        let place = Place {
            mount: directory.mount,
            inode,
        };
        if kernel.mounts.surface(place) != place {
            return Err(Errno::BUSY);
        }
        let disk = self.writable(kernel, directory)?;
        Ok((directory, disk, name.as_bytes().to_vec()))
    }

    fn writable(&self, kernel: &Kernel, directory: Place) -> Result<Disk, Errno> {
        let mount = kernel.mounts.get(directory.mount)?;
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        if mount.read_only {
            return Err(Errno::ROFS);
        }
        kernel
            .mounts
            .with(directory, |node| process.who.may(node, 3))?;
        Ok(mount.disk.clone())
    }

    /// open(2).
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, `EROFS`, `EEXIST`, `EISDIR`, ...
    pub async fn open(&self, path: &str, access: Access) -> Result<u32, Errno> {
        let fd = self.open_at_once(path, access)?;
        // A fifo opens when it has both ends.
        let fifo = {
            let kernel = self.kernel();
            match kernel.handle_of(self.pid, fd)? {
                Handle::Reader(pipe) => Some((*pipe, true)),
                Handle::Writer(pipe) if !access.read => Some((*pipe, false)),
                _ => None,
            }
            .map(|(pipe, reads)| (pipe, reads, kernel.other_end_opened(pipe, reads)))
        };
        if let Some((pipe, reads, before)) = fifo {
            self.block(Patience::UntilSignal, |kernel| {
                kernel
                    .has_other_end(pipe, reads, before, self.pid)
                    .then_some(Ok(()))
            })
            .await?;
        }
        Ok(fd)
    }

    fn open_at_once(&self, path: &str, access: Access) -> Result<u32, Errno> {
        let mut kernel = self.kernel();
        let kernel = &mut *kernel;
        let place = match self.walk(kernel, path, true)? {
            Found::There(_) if access.exclusive => return Err(Errno::EXIST),
            Found::There(place) => place,
            Found::Missing(directory, name) => {
                let mode = access.create.ok_or(Errno::NOENT)?;
                if path.ends_with('/') {
                    return Err(Errno::ISDIR);
                }
                let disk = self.writable(kernel, directory)?;
                let node = self.new_node(kernel, Node::file([], mode, Stamp::default()));
                let now = kernel.stamp();
                let inode = lock(&disk).create(directory.inode, &name, node, now)?;
                let place = Place {
                    mount: directory.mount,
                    inode,
                };
                // Whoever makes a file may write to it, whatever its mode.
                let file = kernel.describe(Handle::File {
                    disk,
                    inode: place.inode,
                    offset: 0,
                    access,
                });
                return self.place_file(kernel, file, 0);
            }
        };
        let file = kernel.open_place(self.pid, place, access)?;
        self.place_file(kernel, file, 0)
    }

    /// A node that belongs to the process, its mode held to the umask.
    fn new_node(&self, kernel: &Kernel, mut node: Node) -> Node {
        if let Some(process) = kernel.processes.get(&self.pid) {
            node.uid = process.who.uid;
            node.gid = process.who.gid;
            node.mode &= !process.umask;
        }
        node.mtime = kernel.stamp();
        node
    }

    fn place_file(&self, kernel: &mut Kernel, file: u64, lowest: u32) -> Result<u32, Errno> {
        let Some(process) = kernel.processes.get_mut(&self.pid) else {
            kernel.release(file);
            return Err(Errno::SRCH);
        };
        let fd = (lowest..)
            .find(|fd| !process.descriptors.contains_key(fd))
            .unwrap_or(0);
        process.descriptors.insert(fd, file);
        Ok(fd)
    }

    /// pipe(2): the end that is read, the end that is written.
    ///
    /// # Errors
    /// `ESRCH`.
    pub fn pipe(&self) -> Result<(u32, u32), Errno> {
        let mut kernel = self.kernel();
        let pipe: PipeId = kernel.pipe();
        let reader = kernel.describe(Handle::Reader(pipe));
        let writer = kernel.describe(Handle::Writer(pipe));
        let reader = self.place_file(&mut kernel, reader, 10)?;
        let writer = self.place_file(&mut kernel, writer, 10)?;
        Ok((reader, writer))
    }

    /// dup2(2); the same number twice is nothing.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn duplicate(&self, from: u32, to: u32) -> Result<(), Errno> {
        if from == to {
            return Ok(());
        }
        let mut kernel = self.kernel();
        let file = kernel.file_of(self.pid, from)?;
        kernel.hold(file);
        let old = kernel
            .processes
            .get_mut(&self.pid)
            .and_then(|process| process.descriptors.insert(to, file));
        if let Some(old) = old {
            kernel.release(old);
        }
        Ok(())
    }

    /// Puts a descriptor aside, above 9; its number there.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn put_aside(&self, fd: u32) -> Result<u32, Errno> {
        let mut kernel = self.kernel();
        let file = kernel.file_of(self.pid, fd)?;
        kernel.hold(file);
        self.place_file(&mut kernel, file, 100)
    }

    /// close(2); what is not open stays so.
    pub fn close(&self, fd: u32) {
        let mut kernel = self.kernel();
        let file = kernel
            .processes
            .get_mut(&self.pid)
            .and_then(|process| process.descriptors.remove(&fd));
        if let Some(file) = file {
            kernel.release(file);
        }
    }

    /// stat(2), or lstat(2).
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, ...
    pub fn stat(&self, path: &str, follow: bool) -> Result<Stat, Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, follow)?;
        kernel.stat_place(place)
    }

    /// The number of the terminal behind a descriptor.
    pub fn terminal_of(&self, fd: u32) -> Option<u32> {
        match self.kernel().handle_of(self.pid, fd) {
            Ok(Handle::Terminal(number)) => Some(*number),
            _ => None,
        }
    }

    /// A directory's entries in byte order, without `.` and `..`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn list(&self, path: &str) -> Result<Vec<String>, Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, true)?;
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        kernel.mounts.with(place, |node| {
            if node.is_directory() {
                process.who.may(node, 4)
            } else {
                Err(Errno::NOTDIR)
            }
        })?;
        let entries = lock(&kernel.mounts.get(place.mount)?.disk).list(place.inode)?;
        Ok(entries
            .into_iter()
            .map(|(name, _)| String::from_utf8_lossy(&name).into_owned())
            .collect())
    }

    /// A symbolic link's target.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL` for anything else.
    pub fn read_link(&self, path: &str) -> Result<String, Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, false)?;
        match kernel.mounts.node(place)?.kind {
            Kind::Symlink(target) => Ok(String::from_utf8_lossy(&target).into_owned()),
            Kind::Descriptor(owner, fd) => {
                let file = kernel.file_of(owner, fd)?;
                Ok(String::from_utf8_lossy(&kernel.name_of(file)).into_owned())
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Makes a new entry: a directory, a link, a device.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT`, `EACCES`, `EROFS`, `ENOSPC`.
    pub fn make(&self, path: &str, node: Node) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let kernel = &mut *kernel;
        let (disk, directory, name) = self.new_entry(kernel, path)?;
        let keeps_mode = matches!(node.kind, Kind::Symlink(_));
        let mode = node.mode;
        let mut node = self.new_node(kernel, node);
        if keeps_mode {
            node.mode = mode;
        }
        let now = kernel.stamp();
        lock(&disk).create(directory, &name, node, now).map(drop)
    }

    /// link(2).
    ///
    /// # Errors
    /// `EXDEV` and what [`Sys::make`] says.
    pub fn link(&self, from: &str, to: &str) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, from, false)?;
        let (disk, directory, name) = self.new_entry(&mut kernel, to)?;
        if !std::sync::Arc::ptr_eq(&disk, &kernel.mounts.get(place.mount)?.disk) {
            return Err(Errno::XDEV);
        }
        let now = kernel.stamp();
        lock(&disk).link(place.inode, directory, &name, now)
    }

    /// unlink(2).
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EACCES`, `EROFS`, `EBUSY` for a mount point.
    pub fn unlink(&self, path: &str) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let (directory, disk, name) = self.entry(&mut kernel, path)?;
        let now = kernel.stamp();
        lock(&disk).unlink(directory.inode, &name, now)
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EACCES`, `EROFS`, `EBUSY`.
    pub fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let (directory, disk, name) = self.entry(&mut kernel, path)?;
        let now = kernel.stamp();
        lock(&disk).rmdir(directory.inode, &name, now)
    }

    /// rename(2).
    ///
    /// # Errors
    /// `EXDEV`, `ENOENT`, `EACCES`, `EROFS`, `EBUSY`, ...
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let (source, disk, name) = self.entry(&mut kernel, from)?;
        let (to_directory, to_disk, to_name) = match self.new_entry(&mut kernel, to) {
            Ok((disk, directory, name)) => (directory, disk, name),
            Err(Errno::EXIST) => {
                let (directory, disk, name) = self.entry(&mut kernel, to)?;
                (directory.inode, disk, name)
            }
            Err(errno) => return Err(errno),
        };
        if !Arc::ptr_eq(&disk, &to_disk) {
            return Err(Errno::XDEV);
        }
        let now = kernel.stamp();
        lock(&disk).rename((source.inode, &name), (to_directory, &to_name), now)
    }

    /// Changes an inode's mode, owner or time.
    ///
    /// # Errors
    /// `ENOENT`, `EROFS`; `EPERM` for somebody else's.
    pub fn change(
        &self,
        path: &str,
        follow: bool,
        change: impl FnOnce(&mut Node),
    ) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, follow)?;
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        let mount = kernel.mounts.get(place.mount)?;
        if mount.read_only {
            return Err(Errno::ROFS);
        }
        let mut tree = lock(&mount.disk);
        let node = tree.node_mut(place.inode)?;
        if process.who.uid != 0 && process.who.uid != node.uid {
            return Err(Errno::PERM);
        }
        change(node);
        Ok(())
    }

    /// truncate(2).
    ///
    /// # Errors
    /// `ENOENT`, `EROFS`, `ENOSPC`, `EISDIR`, `EACCES`.
    pub fn truncate(&self, path: &str, size: u64) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, true)?;
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        kernel.mounts.with(place, |node| process.who.may(node, 2))?;
        let mount = kernel.mounts.get(place.mount)?;
        if mount.read_only {
            return Err(Errno::ROFS);
        }
        lock(&mount.disk).truncate(place.inode, size, kernel.stamp())
    }

    /// lseek(2) from the start.
    ///
    /// # Errors
    /// `EBADF`; `ESPIPE` for what has no places.
    pub fn seek(&self, fd: u32, to: u64) -> Result<(), Errno> {
        self.kernel().seek(self.pid, fd, to)
    }

    /// chdir(2).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `EACCES`.
    pub fn change_directory(&self, path: &str) -> Result<(), Errno> {
        let mut kernel = self.kernel();
        let place = self.find(&mut kernel, path, true)?;
        let process = kernel.processes.get(&self.pid).ok_or(Errno::SRCH)?;
        kernel.mounts.with(place, |node| {
            if node.is_directory() {
                process.who.may(node, 1)
            } else {
                Err(Errno::NOTDIR)
            }
        })?;
        drop(kernel);
        self.own(|process| process.cwd = place);
        Ok(())
    }

    /// getcwd(3).
    pub fn directory(&self) -> String {
        let kernel = self.kernel();
        match kernel.processes.get(&self.pid) {
            Some(process) => kernel.mounts.path_of(process.cwd),
            None => "/".into(),
        }
    }
}

impl Kernel {
    /// stat(2) of a place.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn stat_place(&self, place: Place) -> Result<Stat, Errno> {
        self.mounts.with(place, |node| {
            let size = node.size();
            let node = match &node.kind {
                Kind::Regular(_) => Node {
                    kind: Kind::Regular(crate::fake::files::tree::Content::Untold(size)),
                    xattrs: node.xattrs.clone(),
                    ..*node
                },
                Kind::Directory { parent, .. } => Node {
                    kind: Kind::Directory {
                        parent: *parent,
                        entries: std::collections::BTreeMap::new(),
                    },
                    xattrs: node.xattrs.clone(),
                    ..*node
                },
                _ => node.clone(),
            };
            Ok(Stat { place, node, size })
        })
    }
}
