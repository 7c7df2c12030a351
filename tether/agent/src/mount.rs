//! `mount(2)` with an error that names the target, and option strings as `mount(8)` takes them.

use crate::failure::{Context, Result, invalid};
use nix::mount::MsFlags;
use std::os::fd::{AsRawFd, BorrowedFd};

/// nosuid, nodev, noexec: for file systems that hold no programs.
pub const CLOSED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Mounts a file system of `kind` (proc, tmpfs, ext4, ...).
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn mount(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<()> {
    nix::mount::mount(Some(source), target, Some(kind), flags, Some(data))
        .context(|| format!("mounting {kind} on {target}"))
}

/// Mounts what is at `source` at `target` too.
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn bind(source: &str, target: &str) -> Result<()> {
    let none = None::<&str>;
    nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND, none)
        .context(|| format!("mounting {source} on {target}"))
}

/// Makes one mount read-only, whatever other mounts of its file system are.
///
/// # Errors
/// What `mount(2)` says, with the target.
pub fn make_read_only(target: &str, others: MsFlags) -> Result<()> {
    let none = None::<&str>;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | others;
    nix::mount::mount(none, target, none, flags, none)
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
pub fn parse_options(options: &str) -> Result<(MsFlags, String)> {
    let mut flags = MsFlags::empty();
    let mut data = String::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" | "defaults" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "dev" => flags -= MsFlags::MS_NODEV,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
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
        let check = |options: &str, flags: MsFlags, data: &str| {
            assert_eq!(
                parse_options(options).unwrap(),
                (flags, data.to_owned()),
                "{options}"
            );
        };
        check("", MsFlags::empty(), "");
        check("ro,noexec", MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC, "");
        check(
            "nosuid,uid=5,huge=never",
            MsFlags::MS_NOSUID,
            "uid=5,huge=never",
        );
        check("noexec,exec,,rw", MsFlags::empty(), "");
    }

    #[test]
    fn options_that_change_the_operation_are_refused() {
        assert!(parse_options("nosuid,bind").is_err());
        assert!(parse_options("remount").is_err());
    }
}
