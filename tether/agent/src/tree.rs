//! Paths inside a directory tree that somebody else filled.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT` (openat2(2)): absolute symbolic
//! links and `..` stay inside, whatever the image holds. Missing parts are made one at a time
//! through descriptors, never by a path that could be changed in between.

use crate::failure::{Context, Result, of_kind};
use crate::files;
use crate::mount::path_of;
use crate::prelude::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, XattrFlags, fstat, mkdirat, open, openat, openat2,
    readlinkat, setxattr,
};
use rustix::io;
use rustix::io::Errno;
use tether_wire::files::MOUNT_POINT;
use tether_wire::message::ErrorKind;

/// How many dangling symbolic links a path may lead through when its missing parts are made.
const LINKS: u32 = 16;
/// How often a path is looked up again because of a rename on the way.
const RACES: u32 = 64;

/// A directory that is the root of all paths given to it.
pub struct Tree {
    root: OwnedFd,
    place: String,
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

#[derive(Clone, Copy)]
enum Wanted {
    Directory,
    MountPoint,
    /// To be mounted on as well.
    File,
}

impl Tree {
    /// The tree at `path`.
    ///
    /// # Errors
    /// It is not there or is no directory.
    pub fn open(path: &str) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty()).context(|| format!("opening {path}"))?;
        let place = path.to_owned();
        Ok(Self { root, place })
    }

    fn open_in(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "/" } else { path };
        openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// Opens what is at `path`, in bytes, with these flags, `O_NOFOLLOW` among them if wanted.
    ///
    /// # Errors
    /// `ENOENT` and the like; `EAGAIN` when the directories on the way do not stop moving.
    pub fn at(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let mut tries = 0;
        loop {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // Something was renamed meanwhile, and `..` might have led out (openat2(2)).
                Err(Errno::AGAIN) if tries < RACES => tries += 1,
                other => return other,
            }
        }
    }

    /// The path that was opened, as the kernel shows it in front of what is inside.
    pub fn place(&self) -> &[u8] {
        self.place.as_bytes()
    }

    /// Opens what is at `path`, without permission to read or write it.
    ///
    /// # Errors
    /// `ENOENT` and the like.
    pub fn find(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH)
    }

    /// The directory at `path`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR` and the like.
    pub fn find_directory(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens what is at `path` with these flags.
    ///
    /// # Errors
    /// `ENOENT` and the like.
    pub fn open_file(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        self.open_in(path, flags | OFlags::NOCTTY)
    }

    /// A regular file's content; `None` when it is not there.
    ///
    /// # Errors
    /// `Limit` when it has more than `limit` bytes; anything but "not there" on the way.
    pub fn read(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>> {
        let what = || format!("reading {path} of the image");
        // Without O_NONBLOCK a FIFO under this name would hold tether up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match self.open_file(path, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.context(what)?,
        };
        let kind = FileType::from_raw_mode(fstat(&file).context(what)?.st_mode);
        if kind != FileType::RegularFile {
            return Ok(None);
        }
        let content = files::rest(&file, limit + 1).context(what)?;
        if content.len() > limit {
            return Err(of_kind(ErrorKind::Limit, what(), Errno::FBIG));
        }
        Ok(Some(content))
    }

    /// The directory at `path`, made with its parents (owner root, mode 0755) where missing.
    ///
    /// # Errors
    /// `Invalid` when something else is in the way; what `mkdir(2)` says.
    pub fn make_directory(&self, path: &str) -> Result<OwnedFd> {
        self.make(path, Wanted::Directory, LINKS)
            .context(|| format!("making the directory {path} of the container"))
    }

    /// The same, and what is made is marked as made for something to be mounted on.
    ///
    /// # Errors
    /// As [`Tree::make_directory`].
    pub fn make_mount_point(&self, path: &str) -> Result<OwnedFd> {
        self.make(path, Wanted::MountPoint, LINKS)
            .context(|| format!("making the directory {path} of the container"))
    }

    /// The file at `path`, made empty, with its parents, when missing. For mounting on it, and marked
    /// so.
    ///
    /// # Errors
    /// `Invalid` when something else is in the way; what `open(2)` says.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd> {
        self.make(path, Wanted::File, LINKS)
            .context(|| format!("making the file {path} of the container"))
    }

    fn make(&self, path: &str, wanted: Wanted, links: u32) -> io::Result<OwnedFd> {
        let find = || match wanted {
            Wanted::Directory | Wanted::MountPoint => self.find_directory(path),
            Wanted::File => self.find(path),
        };
        match find() {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent_path, name) = split(path).ok_or(Errno::NOENT)?;
        let above = match wanted {
            Wanted::Directory => Wanted::Directory,
            Wanted::MountPoint | Wanted::File => Wanted::MountPoint,
        };
        let parent = self.make(parent_path, above, links)?;
        let made = match wanted {
            Wanted::Directory | Wanted::MountPoint => {
                mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o755))
            }
            Wanted::File => create(parent.as_fd(), name),
        };
        match made {
            // A symbolic link to nothing: make what it names.
            Err(Errno::EXIST) => {
                let links = links.checked_sub(1).ok_or(Errno::LOOP)?;
                let link = readlinkat(&parent, name, Vec::new())?;
                let link = link.to_str().map_err(|_| Errno::ILSEQ)?;
                let target = if link.starts_with('/') {
                    link.to_owned()
                } else {
                    format!("{parent_path}/{link}")
                };
                self.make(&target, wanted, links)
            }
            Err(other) => Err(other),
            Ok(()) => {
                let made = find()?;
                if !matches!(wanted, Wanted::Directory) {
                    mark(&made);
                }
                Ok(made)
            }
        }
    }
}

/// Says that this was made for something to be mounted on. Where that cannot be said, `docker diff`
/// shows it.
fn mark(made: &OwnedFd) {
    let path = path_of(made.as_fd());
    let _ = setxattr(path, MOUNT_POINT, b"1", XattrFlags::empty());
}

fn create(parent: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// Parent and last name; `None` for the root.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    (!name.is_empty()).then_some((parent, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tether-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("root")).unwrap();
            Self(path)
        }
        fn root(&self) -> PathBuf {
            self.0.join("root")
        }
        fn tree(&self) -> Tree {
            Tree::open(self.root().to_str().unwrap()).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let scratch = Scratch::new("parents");
        scratch.tree().make_directory("/a/b//c/").unwrap();
        scratch.tree().make_directory("/a/b/c").unwrap();
        assert!(scratch.root().join("a/b/c").is_dir());
        scratch.tree().make_directory("/").unwrap();
    }

    #[test]
    fn links_that_point_outside_stay_inside() {
        let scratch = Scratch::new("outside");
        fs::create_dir(scratch.0.join("victim")).unwrap();
        symlink("../../../../victim", scratch.root().join("up")).unwrap();
        symlink("/victim", scratch.root().join("abs")).unwrap();
        scratch.tree().make_directory("/up/x").unwrap();
        scratch.tree().make_file("/abs/file").unwrap();
        scratch.tree().make_directory("../../victim/y").unwrap();
        assert_eq!(fs::read_dir(scratch.0.join("victim")).unwrap().count(), 0);
        assert!(scratch.root().join("victim/x").is_dir());
        assert!(scratch.root().join("victim/file").is_file());
        assert!(scratch.root().join("victim/y").is_dir());
    }

    #[test]
    fn a_dangling_link_gets_what_it_names() {
        let scratch = Scratch::new("dangling");
        fs::create_dir(scratch.root().join("etc")).unwrap();
        symlink(
            "../run/systemd/resolve/stub-resolv.conf",
            scratch.root().join("etc/resolv.conf"),
        )
        .unwrap();
        scratch.tree().make_file("/etc/resolv.conf").unwrap();
        assert!(
            scratch
                .root()
                .join("run/systemd/resolve/stub-resolv.conf")
                .is_file()
        );
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let scratch = Scratch::new("loop");
        symlink("b", scratch.root().join("a")).unwrap();
        symlink("a", scratch.root().join("b")).unwrap();
        assert!(scratch.tree().make_directory("/a/c").is_err());
        symlink("never/x", scratch.root().join("never")).unwrap();
        assert!(scratch.tree().make_directory("/never").is_err());
    }

    #[test]
    fn files_are_read_up_to_their_bound() {
        let scratch = Scratch::new("read");
        fs::write(scratch.root().join("f"), "12345").unwrap();
        assert_eq!(scratch.tree().read("/f", 5).unwrap().unwrap(), b"12345");
        assert_eq!(
            scratch.tree().read("/f", 4).unwrap_err().kind,
            ErrorKind::Limit
        );
        assert_eq!(scratch.tree().read("/none", 4).unwrap(), None);
        assert_eq!(scratch.tree().read("/", 4).unwrap(), None);
    }
}
