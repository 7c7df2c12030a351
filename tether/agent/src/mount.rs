//! `mount(2)` with an error that names the target, and option strings as `mount(8)` takes them.

use crate::failure::{Context, Result, invalid};
use crate::prelude::*;
use alloc::ffi::CString;
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::mount::MountFlags;

/// nosuid, nodev, noexec: for file systems that hold no programs.
pub const CLOSED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Mounts a file system of `kind` (proc, tmpfs, ext4, ...).
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<()> {
    let data = CString::new(data).map_err(|_| invalid("a mount option contains a zero byte"))?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())
        .context(|| format!("mounting {source} ({kind}) on {target}"))
}

/// Mounts what is at `source` at `target` too.
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn bind(source: &str, target: &str) -> Result<()> {
    rustix::mount::mount_bind(source, target).context(|| format!("mounting {source} on {target}"))
}

/// Makes one mount read-only, whatever other mounts of its file system are.
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn make_read_only(target: &str) -> Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount_remount(target, flags, c"")
        .context(|| format!("making {target} read-only"))
}

/// A name for an open descriptor that `mount(2)` follows to exactly that file.
pub fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Sorts `mount(8)` options into flags and what the file system itself is told.
///
/// # Errors
/// `Invalid` for options that would change what kind of mount it is.
pub fn parse_options(options: &str) -> Result<(MountFlags, String)> {
    let mut flags = MountFlags::empty();
    let mut data = String::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" | "defaults" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "suid" => flags -= MountFlags::NOSUID,
            "dev" => flags -= MountFlags::NODEV,
            "exec" => flags -= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "bind" | "rbind" | "move" | "remount" | "shared" | "rshared" | "slave" | "rslave"
            | "private" | "rprivate" | "unbindable" | "runbindable" => {
                return Err(invalid(format!(
                    "mount option {option} is not possible here"
                )));
            }
            other => {
                if !data.is_empty() {
                    data.push(',');
                }
                data.push_str(other);
            }
        }
    }
    Ok((flags, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let check = |options: &str, flags: MountFlags, data: &str| {
            assert_eq!(
                parse_options(options).unwrap(),
                (flags, data.to_owned()),
                "{options}"
            );
        };
        check("", MountFlags::empty(), "");
        check("ro,noexec", MountFlags::RDONLY | MountFlags::NOEXEC, "");
        check(
            "nosuid,uid=5,huge=never",
            MountFlags::NOSUID,
            "uid=5,huge=never",
        );
        check("noexec,exec,,rw", MountFlags::empty(), "");
    }

    #[test]
    fn options_that_change_the_operation_are_refused() {
        assert!(parse_options("nosuid,bind").is_err());
        assert!(parse_options("remount").is_err());
    }
}
