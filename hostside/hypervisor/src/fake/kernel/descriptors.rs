//! Open files: what a descriptor leads to, and the bytes that go through.
//!
//! A description ([`OpenFile`]) is counted by the descriptors that share it; with
//! the last one its end of a pipe is closed, and who waits at the other learns.

use std::collections::VecDeque;

use super::terminal::Terminal;
use super::{Kernel, Pid};
use crate::fake::files::Errno;
use crate::fake::files::mounts::Place;
use crate::fake::files::tree::{Disk, Inode, Kind, Node};
use crate::fake::lock;

/// An open description's number.
pub type FileId = u64;
/// A pipe's number.
pub type PipeId = u64;

/// Bytes in a pipe (pipe(7)).
const PIPE_SIZE: usize = 64 * 1024;
/// Bytes that are written together or not at all.
const ATOMIC: usize = 4096;

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
    /// `O_CREAT`, with this mode before the umask.
    pub create: Option<u32>,
    /// `O_EXCL`.
    pub exclusive: bool,
    /// `O_TRUNC`.
    pub truncate: bool,
    /// `O_APPEND`.
    pub append: bool,
}

impl Access {
    /// To be read.
    pub const READ: Self = Self {
        read: true,
        write: false,
        create: None,
        exclusive: false,
        truncate: false,
        append: false,
    };
    /// To be written from its start, made where it is not there.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
        create: Some(0o666),
        exclusive: false,
        truncate: true,
        append: false,
    };
    /// To be written at its end.
    pub const APPEND: Self = Self {
        truncate: false,
        append: true,
        ..Self::WRITE
    };
}

/// What a description leads to.
#[derive(Debug, Clone)]
pub enum Handle {
    /// A file of a tree.
    File {
        /// Its file system, which may be one that is gone from the mounts.
        disk: Disk,
        /// Its inode.
        inode: Inode,
        /// Where the next byte is.
        offset: u64,
        /// How it was opened.
        access: Access,
    },
    /// A directory.
    Directory(Place),
    /// The end of a pipe that is read.
    Reader(PipeId),
    /// The end that is written.
    Writer(PipeId),
    /// A terminal.
    Terminal(u32),
    /// /dev/null.
    Null,
    /// /dev/zero.
    Zero,
    /// /dev/full.
    Full,
    /// /dev/urandom.
    Random,
}

#[derive(Debug)]
pub(super) struct OpenFile {
    handle: Handle,
    holders: u32,
}

/// A pipe.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    readers: u32,
    writers: u32,
    waiters: Vec<Pid>,
    /// One that has a name stays.
    named: bool,
    /// How often the end that is read was opened, and the one that is written.
    opened: [u64; 2],
}

impl Kernel {
    /// A new description with one holder.
    pub fn describe(&mut self, handle: Handle) -> FileId {
        match &handle {
            Handle::Reader(pipe) => {
                if let Some(pipe) = self.pipes.get_mut(pipe) {
                    pipe.readers += 1;
                    pipe.opened[0] += 1;
                }
            }
            Handle::Writer(pipe) => {
                if let Some(pipe) = self.pipes.get_mut(pipe) {
                    pipe.writers += 1;
                    pipe.opened[1] += 1;
                }
            }
            Handle::Terminal(number) => {
                if let Some(terminal) = self.terminals.get_mut(number) {
                    terminal.openers += 1;
                }
            }
            Handle::File { disk, inode, .. } => lock(disk).opened(*inode),
            _ => {}
        }
        let id = self.number();
        self.files.insert(id, OpenFile { handle, holders: 1 });
        id
    }

    /// One more holder.
    pub fn hold(&mut self, file: FileId) {
        if let Some(open) = self.files.get_mut(&file) {
            open.holders += 1;
        }
    }

    /// One holder less.
    pub fn release(&mut self, file: FileId) {
        let Some(open) = self.files.get_mut(&file) else {
            return;
        };
        open.holders = open.holders.saturating_sub(1);
        if open.holders > 0 {
            return;
        }
        let Some(open) = self.files.remove(&file) else {
            return;
        };
        match open.handle {
            Handle::Reader(id) => {
                if let Some(pipe) = self.pipes.get_mut(&id) {
                    pipe.readers = pipe.readers.saturating_sub(1);
                    self.pipe_changed(id);
                }
            }
            Handle::Writer(id) => {
                if let Some(pipe) = self.pipes.get_mut(&id) {
                    pipe.writers = pipe.writers.saturating_sub(1);
                    self.pipe_changed(id);
                }
            }
            Handle::Terminal(number) => {
                if let Some(terminal) = self.terminals.get_mut(&number) {
                    terminal.openers = terminal.openers.saturating_sub(1);
                }
            }
            Handle::File { disk, inode, .. } => lock(&disk).closed(inode),
            _ => {}
        }
    }

    fn pipe_changed(&mut self, id: PipeId) {
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        let waiters = std::mem::take(&mut pipe.waiters);
        if pipe.readers == 0 && pipe.writers == 0 && !pipe.named {
            self.pipes.remove(&id);
        }
        self.wake_all(waiters);
    }

    /// A new pipe.
    pub fn pipe(&mut self) -> PipeId {
        let id = self.number();
        self.pipes.insert(id, Pipe::default());
        id
    }

    /// The pipe behind a fifo.
    pub fn fifo(&mut self, place: Place) -> PipeId {
        if let Some(pipe) = self.fifos.get(&(place.mount, place.inode)) {
            return *pipe;
        }
        let id = self.pipe();
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.named = true;
        }
        self.fifos.insert((place.mount, place.inode), id);
        id
    }

    /// How often the other end of a fifo was opened: `reads` says which is the
    /// own one.
    pub fn other_end_opened(&self, id: PipeId, reads: bool) -> u64 {
        self.pipes
            .get(&id)
            .map_or(0, |pipe| pipe.opened[usize::from(reads)])
    }

    /// Whether a fifo's other end is open, or was since it had been so often;
    /// else `pid` is woken when it may be.
    pub fn has_other_end(&mut self, id: PipeId, reads: bool, before: u64, pid: Pid) -> bool {
        let opened = self.other_end_opened(id, reads);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return false;
        };
        let there = if reads { pipe.writers } else { pipe.readers };
        if there > 0 || opened > before {
            self.pipe_changed(id);
            return true;
        }
        pipe.waiters.push(pid);
        false
    }

    /// Tether's hold on a pipe's end, without a description: readers, writers.
    pub fn hold_pipe(&mut self, id: PipeId, reader: bool) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            if reader {
                pipe.readers += 1;
            } else {
                pipe.writers += 1;
            }
        }
    }

    /// Lets go of [`Kernel::hold_pipe`].
    pub fn release_pipe(&mut self, id: PipeId, reader: bool) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            let count = if reader {
                &mut pipe.readers
            } else {
                &mut pipe.writers
            };
            *count = count.saturating_sub(1);
            self.pipe_changed(id);
        }
    }

    /// What is in a pipe, for tether: copied into `room`; `None` at its end.
    pub fn drain_pipe(&mut self, id: PipeId, room: &mut [u8]) -> Option<usize> {
        let pipe = self.pipes.get_mut(&id)?;
        if pipe.bytes.is_empty() && pipe.writers == 0 {
            return None;
        }
        let length = room.len().min(pipe.bytes.len());
        let (front, back) = pipe.bytes.as_slices();
        let from_front = length.min(front.len());
        room[..from_front].copy_from_slice(&front[..from_front]);
        room[from_front..length].copy_from_slice(&back[..length - from_front]);
        pipe.bytes.drain(..length);
        if length > 0 {
            self.pipe_changed(id);
        }
        Some(length)
    }

    /// Puts bytes into a pipe, for tether: how many fitted; `None` when nobody
    /// reads it.
    pub fn fill_pipe(&mut self, id: PipeId, data: &[u8]) -> Option<usize> {
        let pipe = self.pipes.get_mut(&id)?;
        if pipe.readers == 0 {
            return None;
        }
        let length = data.len().min(PIPE_SIZE.saturating_sub(pipe.bytes.len()));
        pipe.bytes.extend(&data[..length]);
        if length > 0 {
            self.pipe_changed(id);
        }
        Some(length)
    }

    /// A new terminal.
    pub fn make_terminal(&mut self, terminal: Terminal) -> u32 {
        let number = (0..).find(|number| !self.terminals.contains_key(number));
        let number = number.unwrap_or(0);
        self.terminals.insert(number, terminal);
        number
    }

    /// A terminal.
    pub fn terminal(&mut self, number: u32) -> Option<&mut Terminal> {
        self.terminals.get_mut(&number)
    }

    /// Nobody has it any more.
    pub fn drop_terminal(&mut self, number: u32) {
        self.terminals.remove(&number);
    }

    /// Has those look again who wait for a terminal.
    pub fn terminal_changed(&mut self, number: u32) {
        if let Some(terminal) = self.terminals.get_mut(&number) {
            let waiters = std::mem::take(&mut terminal.waiters);
            self.wake_all(waiters);
        }
    }

    /// The description behind a descriptor.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn file_of(&self, pid: Pid, fd: u32) -> Result<FileId, Errno> {
        self.processes
            .get(&pid)
            .and_then(|process| process.descriptors.get(&fd))
            .copied()
            .ok_or(Errno::BADF)
    }

    /// What a descriptor leads to.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn handle_of(&self, pid: Pid, fd: u32) -> Result<&Handle, Errno> {
        let file = self.file_of(pid, fd)?;
        self.files
            .get(&file)
            .map(|open| &open.handle)
            .ok_or(Errno::BADF)
    }

    /// lseek(2) from the start.
    pub(super) fn seek(&mut self, pid: Pid, fd: u32, to: u64) -> Result<(), Errno> {
        let file = self.file_of(pid, fd)?;
        match self.files.get_mut(&file).map(|open| &mut open.handle) {
            Some(Handle::File { offset, .. }) => {
                *offset = to;
                Ok(())
            }
            _ => Err(Errno::SPIPE),
        }
    }

    /// read(2); `None` when there is nothing yet, and the caller will be woken.
    pub fn read(&mut self, pid: Pid, fd: u32, most: usize) -> Option<Result<Vec<u8>, Errno>> {
        let file = match self.file_of(pid, fd) {
            Ok(file) => file,
            Err(errno) => return Some(Err(errno)),
        };
        let open = self.files.get_mut(&file)?;
        match &mut open.handle {
            Handle::File {
                disk,
                inode,
                offset,
                access,
            } => {
                if !access.read {
                    return Some(Err(Errno::BADF));
                }
                let read = lock(disk).read(*inode, *offset, most);
                if let Ok(bytes) = &read {
                    *offset += bytes.len() as u64;
                }
                Some(read)
            }
            Handle::Directory(_) => Some(Err(Errno::ISDIR)),
            Handle::Reader(id) => {
                let id = *id;
                let pipe = self.pipes.get_mut(&id)?;
                if pipe.bytes.is_empty() {
                    if pipe.writers == 0 {
                        return Some(Ok(Vec::new()));
                    }
                    pipe.waiters.push(pid);
                    return None;
                }
                let length = most.min(pipe.bytes.len());
                let bytes = pipe.bytes.drain(..length).collect();
                self.pipe_changed(id);
                Some(Ok(bytes))
            }
            Handle::Terminal(number) => {
                let terminal = self.terminals.get_mut(number)?;
                match terminal.read(most) {
                    Some(bytes) => Some(Ok(bytes)),
                    None => {
                        terminal.waiters.push(pid);
                        None
                    }
                }
            }
            Handle::Null => Some(Ok(Vec::new())),
            Handle::Zero | Handle::Full => Some(Ok(vec![0; most])),
            Handle::Random => {
                let words = most.div_ceil(8);
                let mut bytes: Vec<u8> = (0..words)
                    .flat_map(|_| self.random().to_le_bytes())
                    .collect();
                bytes.truncate(most);
                Some(Ok(bytes))
            }
            Handle::Writer(_) => Some(Err(Errno::BADF)),
        }
    }

    /// write(2); `None` when there is no room yet, and the caller will be woken.
    pub fn write(&mut self, pid: Pid, fd: u32, data: &[u8]) -> Option<Result<usize, Errno>> {
        let now = self.stamp();
        let file = match self.file_of(pid, fd) {
            Ok(file) => file,
            Err(errno) => return Some(Err(errno)),
        };
        let open = self.files.get_mut(&file)?;
        match &mut open.handle {
            Handle::File {
                disk,
                inode,
                offset,
                access,
            } => {
                if !access.write {
                    return Some(Err(Errno::BADF));
                }
                let mut tree = lock(disk);
                if access.append {
                    *offset = tree.node(*inode).map_or(0, Node::size);
                }
                let written = tree.write(*inode, *offset, data, now);
                if let Ok(length) = written {
                    *offset += length as u64;
                }
                Some(written)
            }
            Handle::Writer(id) => {
                let id = *id;
                let pipe = self.pipes.get_mut(&id)?;
                if pipe.readers == 0 {
                    return Some(Err(Errno::PIPE));
                }
                let room = PIPE_SIZE - pipe.bytes.len().min(PIPE_SIZE);
                if room == 0 || (data.len() <= ATOMIC && room < data.len()) {
                    pipe.waiters.push(pid);
                    return None;
                }
                let length = data.len().min(room);
                pipe.bytes.extend(&data[..length]);
                self.pipe_changed(id);
                Some(Ok(length))
            }
            Handle::Terminal(number) => {
                let terminal = self.terminals.get_mut(number)?;
                match terminal.write(data) {
                    0 if !data.is_empty() => {
                        terminal.waiters.push(pid);
                        None
                    }
                    written => Some(Ok(written)),
                }
            }
            Handle::Null | Handle::Zero | Handle::Random => Some(Ok(data.len())),
            Handle::Full => Some(Err(Errno::NOSPC)),
            Handle::Directory(_) | Handle::Reader(_) => Some(Err(Errno::BADF)),
        }
    }

    /// What opening a device leads to.
    pub(super) fn device(&self, pid: Pid, major: u32, minor: u32) -> Result<Handle, Errno> {
        let own = self
            .processes
            .get(&pid)
            .and_then(|process| process.terminal);
        match (major, minor) {
            (1, 3) => Ok(Handle::Null),
            (1, 5) => Ok(Handle::Zero),
            (1, 7) => Ok(Handle::Full),
            (1, 8 | 9) => Ok(Handle::Random),
            (5, 0) => own.map(Handle::Terminal).ok_or(Errno::NXIO),
            (136, number) if self.terminals.contains_key(&number) => Ok(Handle::Terminal(number)),
            _ => Err(Errno::NXIO),
        }
    }

    /// How /proc names what a descriptor leads to.
    pub(super) fn name_of(&self, file: FileId) -> Vec<u8> {
        match self.files.get(&file).map(|open| &open.handle) {
            Some(Handle::Reader(pipe) | Handle::Writer(pipe)) => format!("pipe:[{pipe}]"),
            Some(Handle::Terminal(number)) => format!("/dev/pts/{number}"),
            Some(Handle::Null) => "/dev/null".into(),
            Some(Handle::Directory(place)) => self.mounts.path_of(*place),
            Some(Handle::File { inode, .. }) => format!("inode:[{inode}]"),
            _ => "/dev/zero".into(),
        }
        .into_bytes()
    }

    /// Opens what is at a place.
    pub(super) fn open_place(
        &mut self,
        pid: Pid,
        place: Place,
        access: Access,
    ) -> Result<FileId, Errno> {
        let mount = self.mounts.get(place.mount)?;
        let (disk, read_only) = (mount.disk.clone(), mount.read_only);
        let (kind, device) = {
            let tree = lock(&disk);
            let node = tree.node(place.inode)?;
            let who = self.processes.get(&pid).map(|process| &process.who);
            let wanted = u32::from(access.read) * 4 + u32::from(access.write) * 2;
            if let Some(who) = who
                && !matches!(node.kind, Kind::Descriptor(..))
            {
                who.may(node, wanted)?;
            }
            match &node.kind {
                Kind::Regular(_) => (Opens::File, None),
                Kind::Directory { .. } => (Opens::Directory, None),
                Kind::Character(major, minor) => (Opens::Device, Some((*major, *minor))),
                Kind::Descriptor(owner, fd) => (Opens::Descriptor, Some((*owner, *fd))),
                Kind::Fifo => (Opens::Fifo, None),
                Kind::Symlink(_) => return Err(Errno::LOOP),
                Kind::Socket | Kind::Block(..) => return Err(Errno::NXIO),
            }
        };
        match (kind, device) {
            (Opens::Directory, _) if access.write => Err(Errno::ISDIR),
            (Opens::Directory, _) => Ok(self.describe(Handle::Directory(place))),
            (Opens::File, _) => {
                if access.write && read_only {
                    return Err(Errno::ROFS);
                }
                if access.truncate {
                    let now = self.stamp();
                    lock(&disk).truncate(place.inode, 0, now)?;
                }
                Ok(self.describe(Handle::File {
                    disk,
                    inode: place.inode,
                    offset: 0,
                    access,
                }))
            }
            (Opens::Device, Some((major, minor))) => {
                let handle = self.device(pid, major, minor)?;
                Ok(self.describe(handle))
            }
            (Opens::Descriptor, Some((owner, fd))) => {
                let file = self.file_of(owner, fd)?;
                // A pipe's other end can be had, as /proc gives it.
                let again = match self.files.get(&file).map(|open| &open.handle) {
                    Some(Handle::Reader(pipe) | Handle::Writer(pipe)) if access.write => {
                        Some(Handle::Writer(*pipe))
                    }
                    Some(Handle::Reader(pipe) | Handle::Writer(pipe)) => {
                        Some(Handle::Reader(*pipe))
                    }
                    _ => None,
                };
                match again {
                    Some(handle) => Ok(self.describe(handle)),
                    None => {
                        self.hold(file);
                        Ok(file)
                    }
                }
            }
            (Opens::Fifo, _) => {
                let pipe = self.fifo(place);
                Ok(self.describe(if access.write {
                    Handle::Writer(pipe)
                } else {
                    Handle::Reader(pipe)
                }))
            }
            (Opens::Device | Opens::Descriptor, None) => Err(Errno::NXIO),
        }
    }
}

/// What kind of thing is opened.
#[derive(Debug, Clone, Copy)]
enum Opens {
    File,
    Directory,
    Device,
    Descriptor,
    Fifo,
}
