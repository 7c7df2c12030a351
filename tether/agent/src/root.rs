//! The container's root: the image disk, what every container finds mounted in it, and the few
//! files of /etc that are the machine's and not the image's.
//!
//! The disk is mounted twice: where tether makes what is missing ([`DISK`]) and where the container
//! lives ([`ROOT`]), which alone becomes read-only. Mounts below `ROOT` propagate into the main
//! process's mount namespace, so a volume can be added while it runs.

use crate::failure::{Context, Result, invalid, number};
use crate::files;
use crate::fork;
use crate::mount::{self, CLOSED, mount, path_of};
use crate::prelude::*;
use crate::tree::Tree;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chmodat, makedev, mknodat, open, symlinkat, sync,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_change, mount_remount, unmount,
};
use tether_wire::message::Error;

/// Where the container's root is mounted.
pub const ROOT: &str = "/run/root";
const DISK: &str = "/run/disk";
const ETC: &str = "/run/etc";
const VOLUME: &str = "/run/volume";

/// The mounted root.
pub struct Root {
    view: Tree,
    disk: Tree,
}

/// Files that tether keeps and the container sees in /etc.
const FILES: [&str; 4] = ["hostname", "hosts", "resolv.conf", "machine-id"];

impl Root {
    /// Mounts the image disk at `device` and what belongs into every container.
    ///
    /// # Errors
    /// Which mount failed, and why.
    pub fn mount(device: &str) -> Result<Self> {
        Self::of(device, "ext4", "")
    }

    /// A root in memory, that holds tether itself under this name.
    ///
    /// # Errors
    /// As [`Root::mount`].
    pub fn with_tether(program: &str) -> Result<Self> {
        let root = Self::of("tmpfs", "tmpfs", "mode=0755,size=1m")?;
        let file = root.make_file(program)?;
        mount::bind("/proc/self/exe", &path_of(file.as_fd()))?;
        Ok(root)
    }

    fn of(device: &str, kind: &str, data: &str) -> Result<Self> {
        for directory in [DISK, ROOT, ETC] {
            make_directory(directory)?;
        }
        mount(device, DISK, kind, MountFlags::empty(), data)?;
        mount::bind(DISK, ROOT)?;
        mount_change(ROOT, MountPropagationFlags::SHARED).context(|| format!("sharing {ROOT}"))?;
        let root = Self {
            view: Tree::open(ROOT)?,
            disk: Tree::open(DISK)?,
        };
        root.mount_pseudo_file_systems()?;
        Ok(root)
    }

    /// The tree as tether sees it: without proc and cgroup2, which the main process mounts in its
    /// own namespaces.
    pub fn tree(&self) -> &Tree {
        &self.view
    }

    /// The image disk alone, without what is mounted on it.
    pub fn disk(&self) -> &Tree {
        &self.disk
    }

    fn mount_at(&self, kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<()> {
        let directory = self.make_mount_point(target)?;
        mount(kind, &path_of(directory.as_fd()), kind, flags, data)
            .map_err(|error| of_target(target, error))
    }

    /// As Docker lays them out, but for what it hides of proc: the machine is the container's own.
    fn mount_pseudo_file_systems(&self) -> Result<()> {
        self.make_mount_point("/proc")?;
        self.mount_at("sysfs", "/sys", CLOSED | MountFlags::RDONLY, "")?;
        // What the firmware told a fork's template of itself (drivers/firmware/dmi-id.c).
        let (own, uuid) = (
            file(fork::PRODUCT_UUID),
            "/sys/devices/virtual/dmi/id/product_uuid",
        );
        if files::exists(&own) && files::exists(uuid) {
            mount::bind(&own, &format!("{ROOT}{uuid}"))?;
        }
        // As Docker does; here it also holds the channel's key.
        if files::exists("/sys/firmware") {
            self.mount_at(
                "tmpfs",
                "/sys/firmware",
                CLOSED | MountFlags::RDONLY,
                "size=0",
            )?;
        }
        let device_flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
        self.mount_at("tmpfs", "/dev", device_flags, "mode=0755,size=64m")?;
        self.make_devices()?;
        let programless = MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = "newinstance,ptmxmode=0666,mode=0620,gid=5";
        self.mount_at("devpts", "/dev/pts", programless, options)?;
        self.mount_at("tmpfs", "/dev/shm", CLOSED, "mode=1777,size=64m")?;
        // A kernel without POSIX message queues has no file system for them.
        match self.mount_at("mqueue", "/dev/mqueue", CLOSED, "") {
            Err(error) if error.errno == number(Errno::NODEV) => Ok(()),
            other => other,
        }
    }

    fn make_devices(&self) -> Result<()> {
        let directory = self.make_directory("/dev")?;
        let mode = Mode::from_raw_mode(0o666);
        // Numbers: Documentation/admin-guide/devices.txt.
        for (name, major, minor) in [
            ("null", 1, 3),
            ("zero", 1, 5),
            ("full", 1, 7),
            ("random", 1, 8),
            ("urandom", 1, 9),
            ("tty", 5, 0),
        ] {
            // umask 0 would be a state of the whole program: chmod by name in our own tmpfs.
            let what = || format!("making /dev/{name}");
            let number = makedev(major, minor);
            mknodat(&directory, name, FileType::CharacterDevice, mode, number).context(what)?;
            chmodat(&directory, name, mode, AtFlags::empty()).context(what)?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("core", "/proc/kcore"),
            ("ptmx", "pts/ptmx"),
        ] {
            symlinkat(target, &directory, name).context(|| format!("making /dev/{name}"))?;
        }
        Ok(())
    }

    /// A directory of the container, made where missing, even below a read-only root.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn make_directory(&self, path: &str) -> Result<OwnedFd> {
        self.or_on_disk(|tree| tree.make_directory(path))
    }

    /// The same for something to be mounted on; what is made is marked as [`tether_wire::files::MOUNT_POINT`].
    fn make_mount_point(&self, path: &str) -> Result<OwnedFd> {
        self.or_on_disk(|tree| tree.make_mount_point(path))
    }

    fn make_file(&self, path: &str) -> Result<OwnedFd> {
        self.or_on_disk(|tree| tree.make_file(path))
    }

    fn or_on_disk(&self, make: impl Fn(&Tree) -> Result<OwnedFd>) -> Result<OwnedFd> {
        match make(&self.view) {
            Err(error) if error.errno == number(Errno::ROFS) => {
                make(&self.disk)?;
                make(&self.view)
            }
            other => other,
        }
    }

    /// Lays tether's files over the image's: /etc/hosts and its like.
    ///
    /// # Errors
    /// Which file, and why.
    pub fn mount_files(&self) -> Result<()> {
        for name in FILES {
            let source = file(name);
            if files::exists(&source) {
                let target = self.make_file(&format!("/etc/{name}"))?;
                mount::bind(&source, &path_of(target.as_fd()))
                    .map_err(|error| of_target(&format!("/etc/{name}"), error))?;
            }
        }
        Ok(())
    }

    /// Writes a file of tether's in the container's /dev, which is a tmpfs of tether's own making.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn write_device_file(&self, path: &str, content: &str) -> Result<()> {
        let target = self.make_file(path)?;
        files::replace(path_of(target.as_fd()), content.as_bytes())
            .context(|| format!("writing {path}"))
    }

    /// Makes the root read-only for the container; what is mounted on it stays as it is.
    ///
    /// # Errors
    /// What `mount(2)` says.
    pub fn make_read_only(&self) -> Result<()> {
        mount::make_read_only(ROOT)
    }

    /// Mounts a tmpfs: `data` as tmpfs(5) takes it.
    ///
    /// # Errors
    /// A target that is not absolute; options that make no sense; what `mount(2)` says.
    pub fn mount_tmpfs(&self, target: &str, flags: MountFlags, data: &str) -> Result<()> {
        self.mount_at("tmpfs", absolute(target)?, flags, data)
    }

    /// Mounts a volume. Aside first, because a mount is made read-only after it is made, and the
    /// main process's namespace would already have it.
    ///
    /// # Errors
    /// A target that is not absolute; what `mount(2)` says.
    pub fn mount_volume(&self, volume: &Volume, target: &str, read_only: bool) -> Result<()> {
        let directory = self.make_mount_point(absolute(target)?)?;
        if let Volume::Device(device) = volume {
            mount_aside(device, read_only)?;
        }
        if read_only {
            mount::make_read_only(VOLUME)?;
        }
        mount::bind(VOLUME, &path_of(directory.as_fd()))?;
        unmount(VOLUME, UnmountFlags::empty()).context(|| format!("unmounting {VOLUME}"))
    }

    /// Mounts a new volume aside, for filling; whether there is anything to fill it with.
    ///
    /// # Errors
    /// What `mount(2)` says.
    pub fn prepare_volume(&self, device: &str, target: &str) -> Result<bool> {
        mount_aside(device, false)?;
        let holds_nothing = files::names(VOLUME)
            .context(|| format!("reading {VOLUME}"))?
            .iter()
            .all(|name| name == "lost+found");
        Ok(holds_nothing && self.view.find_directory(absolute(target)?).is_ok())
    }

    /// Copies what the image has at `target` into the prepared volume. Takes its time: for a
    /// process of its own.
    ///
    /// # Errors
    /// What could not be copied, and why.
    pub fn fill_volume(&self, target: &str) -> Result<()> {
        let source = self
            .view
            .open_file(target, OFlags::RDONLY | OFlags::DIRECTORY)
            .context(|| format!("opening {target} of the image"))?;
        crate::copy::tree(&source, VOLUME)
    }
}

/// Where a volume is.
pub enum Volume {
    /// On this device file.
    Device(String),
    /// Mounted aside by [`Root::prepare_volume`].
    Prepared,
}

fn mount_aside(device: &str, read_only: bool) -> Result<()> {
    make_directory(VOLUME)?;
    let writable = MountFlags::empty();
    if !read_only {
        return mount(device, VOLUME, "ext4", writable, "");
    }
    match mount(device, VOLUME, "ext4", MountFlags::RDONLY, "") {
        // It is mounted for writing elsewhere already.
        Err(error) if error.errno == number(Errno::BUSY) => {
            mount(device, VOLUME, "ext4", writable, "")
        }
        other => other,
    }
}

fn of_target(target: &str, mut error: Error) -> Error {
    error.message = format!("{target} of the container: {}", error.message);
    error
}

fn absolute(path: &str) -> Result<&str> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(path)
    } else {
        Err(invalid(format!("the path {path:?} is not absolute")))
    }
}

fn file(name: &str) -> String {
    format!("{ETC}/{name}")
}

fn make_directory(path: &str) -> Result<()> {
    files::make_directory(path).context(|| format!("making {path}"))
}

/// Writes one of the files the container sees in /etc. The file stays the same one, so that a
/// container already running sees the change.
///
/// # Errors
/// Which file, and why.
pub fn write_file(name: &str, content: &str) -> Result<()> {
    make_directory(ETC)?;
    files::replace(file(name), content.as_bytes()).context(|| format!("writing {}", file(name)))
}

/// Opens one of these files for writing, made if it is not there, as it is if it is.
///
/// # Errors
/// Which file, and why.
pub fn open_file(name: &str) -> Result<OwnedFd> {
    make_directory(ETC)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    open(file(name), flags, Mode::from_raw_mode(0o644))
        .context(|| format!("opening {}", file(name)))
}

/// Unmounts everything of the container, innermost first, and writes out what is cached.
///
/// # Errors
/// The first that would not go; the others are tried all the same, and the last resort is to make
/// the file system read-only where it stands.
pub fn unmount_all() -> Result<()> {
    sync();
    let table = files::text("/proc/self/mountinfo");
    let mut outcome = Ok(());
    for target in targets_below(&table, "/run/").iter().rev() {
        if let Err(errno) = unmount(target.as_str(), UnmountFlags::empty()) {
            let _ = mount_remount(target.as_str(), MountFlags::RDONLY, c"");
            if outcome.is_ok() {
                outcome = Err(errno).context(|| format!("unmounting {target}"));
            }
        }
    }
    sync();
    outcome
}

/// Mount points below a path, in the order they were mounted (proc(5), mountinfo: the fifth field,
/// with octal escapes).
fn targets_below(table: &str, prefix: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|target| target.starts_with(prefix))
        .map(unescape)
        .collect()
}

fn unescape(field: &str) -> String {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = |byte: &u8| (b'0'..=b'7').contains(byte);
        match tail {
            [a, b, c, after @ ..] if *first == b'\\' && [a, b, c].into_iter().all(digits) => {
                let value = [a, b, c]
                    .into_iter()
                    .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push(value as u8);
                rest = after;
            }
            _ => plain.push(*first),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_with_their_escapes_undone() {
        let table = "21 1 0:5 / /proc rw - proc proc rw\n\
                     30 1 0:9 / /run rw - tmpfs tmpfs rw\n\
                     31 30 8:0 / /run/root rw shared:1 - ext4 /dev/sda rw\n\
                     32 31 0:7 / /run/root/a\\040b\\134c rw - tmpfs tmpfs rw\n";
        assert_eq!(
            targets_below(table, "/run/"),
            ["/run/root", "/run/root/a b\\c"]
        );
    }

    #[test]
    fn only_absolute_targets_are_taken() {
        assert!(absolute("/data").is_ok());
        assert!(absolute("data").is_err());
        assert!(absolute("").is_err());
        assert!(absolute("/a\0b").is_err());
    }
}
