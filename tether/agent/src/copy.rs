//! Copying a tree, as Docker fills a new volume with what the image has at its place: owners, modes,
//! times, extended attributes, hard links, links and devices.
//!
//! Nothing of the workload runs yet, so the source holds still; links in it are copied and never
//! followed.

use crate::failure::{Context, Result};
use crate::prelude::*;
use alloc::collections::BTreeMap;
use alloc::ffi::CString;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fgetxattr, flistxattr, fsetxattr, fstat, linkat, mkdirat, mknodat, open, openat, readlinkat,
    sendfile, statat, symlinkat, utimensat,
};
use rustix::io::{self, Errno};
use rustix::time::Timespec;

/// Where files with several names were copied to, by device and inode; below the top.
type Links = BTreeMap<(u64, u64), CString>;

/// One directory of the copy.
struct Place<'a> {
    /// The copy's top.
    top: BorrowedFd<'a>,
    /// Path of this directory below it, with a slash at its end; empty for the top.
    path: String,
    links: &'a mut Links,
}

/// Copies what is in one directory into another, which becomes like it.
///
/// # Errors
/// What could not be copied, and why.
pub fn tree(from: &OwnedFd, to: &str) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = open(to, flags, Mode::empty()).context(|| format!("opening {to}"))?;
    let mut place = Place {
        top: top.as_fd(),
        path: String::new(),
        links: &mut Links::new(),
    };
    directory(from, &top, &mut place).context(|| format!("copying {}", place.path))
}

/// On failure `place.path` is what failed.
fn directory(from: &OwnedFd, to: &OwnedFd, place: &mut Place<'_>) -> io::Result<()> {
    let length = place.path.len();
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        place.path.push_str(&name.to_string_lossy());
        one(from, to, name, place)?;
        place.path.truncate(length);
    }
    // Last, because what was made inside changed the times.
    let stat = fstat(from)?;
    attributes(from, to)?;
    finish(to.as_fd(), c"", &stat)
}

fn one(from: &OwnedFd, to: &OwnedFd, name: &CStr, place: &mut Place<'_>) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if kind == FileType::Directory {
        match mkdirat(to, name, Mode::RWXU) {
            // lost+found, which every ext4 has.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY;
        let from = openat(from, name, flags, Mode::empty())?;
        let to = openat(to, name, flags, Mode::empty())?;
        place.path.push('/');
        return directory(&from, &to, place);
    }
    if stat.st_nlink > 1 {
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(first) = place.links.get(&inode) {
            return linkat(place.top, first, to, name, AtFlags::empty());
        }
        // The name's own bytes, which the path for messages may have lost.
        if let Ok(path) = CString::new(place.path.as_bytes())
            && path.as_bytes().ends_with(name.to_bytes())
        {
            place.links.insert(inode, path);
        }
    }
    match kind {
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        FileType::RegularFile => {
            let source = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
            let new = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let copy = openat(to, name, new, Mode::RUSR | Mode::WUSR)?;
            while sendfile(&copy, &source, None, 1 << 30)? > 0 {}
            // After the owner, whose change takes file capabilities away.
            chownat(&copy, c"", owner(&stat), group(&stat), AtFlags::EMPTY_PATH)?;
            attributes(&source, &copy)?;
        }
        // Of no use to anybody but the process that bound it.
        FileType::Socket => return Ok(()),
        _ => mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?,
    }
    finish(to.as_fd(), name, &stat)
}

fn owner(stat: &Stat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn group(stat: &Stat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

/// Owner, mode, times of `name` in a directory, or of the directory itself when it is empty.
fn finish(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<()> {
    let name = if name.is_empty() { c"." } else { name };
    let still = AtFlags::SYMLINK_NOFOLLOW;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::RegularFile {
        chownat(directory, name, owner(stat), group(stat), still)?;
    }
    if kind != FileType::Symlink {
        // After the owner, whose change takes set-user-id away.
        let mode = Mode::from_raw_mode(stat.st_mode);
        chmodat(directory, name, mode, AtFlags::empty())?;
    }
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(directory, name, &times, still)
}

/// Copies every extended attribute; a file system without any is no error.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h).
    let mut names = vec![0; 65536];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    if length == 0 {
        return Ok(());
    }
    let mut value = vec![0; 65536];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let size = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..size], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    #[test]
    fn modes_links_times_and_nested_names_survive() {
        let scratch = std::env::temp_dir().join(format!("tether-copy-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        let (from, to) = (scratch.join("from"), scratch.join("to"));
        fs::create_dir_all(from.join("sub/lost+found")).unwrap();
        fs::create_dir_all(to.join("sub")).unwrap();
        fs::write(from.join("sub/a"), "content").unwrap();
        fs::set_permissions(from.join("sub/a"), Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(from.join("sub/a"), from.join("b")).unwrap();
        symlink("/outside", from.join("link")).unwrap();
        let old = Timespec {
            tv_sec: 1_000_000,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: old,
            last_modification: old,
        };
        utimensat(
            CWD,
            from.join("sub").to_str().unwrap(),
            &times,
            AtFlags::empty(),
        )
        .unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o711)).unwrap();

        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let source = open(from.to_str().unwrap(), flags, Mode::empty()).unwrap();
        tree(&source, to.to_str().unwrap()).unwrap();

        let mode = |path: &str| fs::metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(fs::read(to.join("b")).unwrap(), b"content");
        assert_eq!((mode("sub/a"), mode("")), (0o4711, 0o711));
        let inode = |path: &str| fs::metadata(to.join(path)).unwrap().ino();
        assert_eq!(inode("b"), inode("sub/a"));
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/outside")
        );
        let sub = fs::metadata(to.join("sub")).unwrap();
        assert_eq!((sub.mtime(), sub.mtime_nsec()), (1_000_000, 5));
        assert!(to.join("sub/lost+found").is_dir());
        fs::remove_dir_all(&scratch).unwrap();
    }
}
