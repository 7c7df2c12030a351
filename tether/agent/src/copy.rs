//! Copying a tree, as Docker fills a new volume with what the image has at its place: owners, modes,
//! times, extended attributes, hard links, links and devices.
//!
//! Nothing of the workload runs yet, so the source holds still; links in it are copied and never
//! followed.

use crate::failure::{Context, Result};
use crate::sys;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, Metadata, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Where files with several names were copied to, by device and inode.
type Links = BTreeMap<(u64, u64), PathBuf>;

/// Copies what is in one directory into another, which becomes like it.
///
/// # Errors
/// What could not be copied, and why.
pub fn tree(from: &Path, to: &Path) -> Result<()> {
    // The paths may be names of descriptors, which have to be followed to get anywhere.
    let metadata = fs::metadata(from).context(|| describe(from))?;
    directory(from, to, &metadata, &mut Links::new())
}

fn describe(path: &Path) -> String {
    format!("copying {}", path.display())
}

fn directory(from: &Path, to: &Path, metadata: &Metadata, links: &mut Links) -> Result<()> {
    let what = || describe(from);
    for entry in fs::read_dir(from).context(what)? {
        let name = entry.context(what)?.file_name();
        one(&from.join(&name), &to.join(&name), links)?;
    }
    // Last, because what was made inside changed the times.
    attributes(from, to, metadata)
}

fn one(from: &Path, to: &Path, links: &mut Links) -> Result<()> {
    let what = || describe(from);
    let metadata = fs::symlink_metadata(from).context(what)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        match fs::create_dir(to) {
            // lost+found, which every ext4 has.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.context(what)?,
        }
        return directory(from, to, &metadata, links);
    }
    if metadata.nlink() > 1 {
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = links.get(&inode) {
            return fs::hard_link(first, to).context(what);
        }
        links.insert(inode, to.to_owned());
    }
    if kind.is_symlink() {
        let target = fs::read_link(from).context(what)?;
        symlink(target, to).context(what)?;
    } else if kind.is_file() {
        fs::copy(from, to).context(what)?;
    } else if kind.is_socket() {
        // Of no use to anybody but the process that bound it.
        return Ok(());
    } else {
        let kind = SFlag::from_bits_truncate(metadata.mode() & libc::S_IFMT);
        mknod(to, kind, Mode::empty(), metadata.rdev()).context(what)?;
    }
    attributes(from, to, &metadata)
}

fn attributes(from: &Path, to: &Path, metadata: &Metadata) -> Result<()> {
    let what = || describe(from);
    lchown(to, Some(metadata.uid()), Some(metadata.gid())).context(what)?;
    let is_link = metadata.file_type().is_symlink();
    if !is_link {
        // After the owner, whose change takes set-user-id away.
        let mode = Permissions::from_mode(metadata.mode() & 0o7777);
        fs::set_permissions(to, mode).context(what)?;
        let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes());
        if let (Ok(from), Ok(to)) = (c_path(from), c_path(to)) {
            // After the owner too, whose change takes file capabilities away.
            sys::copy_attributes(&from, &to).context(what)?;
        }
    }
    let accessed = TimeSpec::new(metadata.atime(), metadata.atime_nsec());
    let modified = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    let here = nix::fcntl::AT_FDCWD;
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(here, to, &accessed, &modified, flags).context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_links_times_and_holes_in_the_names_survive() {
        let scratch = std::env::temp_dir().join(format!("tether-copy-{}", std::process::id()));
        let _ = fs::remove_dir_all(&scratch);
        let (from, to) = (scratch.join("from"), scratch.join("to"));
        fs::create_dir_all(from.join("sub/lost+found")).unwrap();
        fs::create_dir_all(to.join("sub")).unwrap();
        fs::write(from.join("sub/a"), "content").unwrap();
        fs::set_permissions(from.join("sub/a"), Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(from.join("sub/a"), from.join("b")).unwrap();
        symlink("/outside", from.join("link")).unwrap();
        let old = TimeSpec::new(1_000_000, 5);
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(nix::fcntl::AT_FDCWD, &from.join("sub"), &old, &old, flags).unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o711)).unwrap();

        tree(&from, &to).unwrap();

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
