//! Every `unsafe` line of tether: the system calls `nix` has no safe form of, and the two places
//! where one process becomes two.

pub mod entry;
mod init;
pub mod spawn;

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// How a child ended, as `wait(2)` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// `exit(code)`.
    Code(u8),
    /// Killed by this signal, real-time ones included (`nix`'s own `waitpid` refuses those).
    Signal(u8),
}

/// Takes one dead child from the kernel, if there is one.
///
/// # Errors
/// `ECHILD` when there is no child at all.
pub fn wait_any() -> Result<Option<(i32, Ended)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int; -1 and WNOHANG take no other pointer.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some((pid, ended(status))))
}

fn ended(status: i32) -> Ended {
    if libc::WIFSIGNALED(status) {
        Ended::Signal(u8::try_from(libc::WTERMSIG(status)).unwrap_or(u8::MAX))
    } else {
        Ended::Code((libc::WEXITSTATUS(status) & 0xff) as u8)
    }
}

/// `kill(2)` with any signal number: a negative `pid` is a process group.
///
/// # Errors
/// `ESRCH` when nobody is there.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// `TIOCSWINSZ`.
///
/// # Errors
/// `ENOTTY`.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request takes a pointer to a winsize, which lives through the call.
    Errno::result(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size)
    })
    .map(drop)
}

/// Unlocks a pseudo-terminal's other end and says its number in /dev/pts (`TIOCSPTLCK`, `TIOCGPTN`).
///
/// # Errors
/// `ENOTTY` when it is no pseudo-terminal master.
pub fn unlock_terminal(master: BorrowedFd<'_>) -> Result<u32, Errno> {
    let locked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: both requests take a pointer to an int, which live through the calls.
    unsafe {
        Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK as _,
            &raw const locked,
        ))?;
        Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTN as _,
            &raw mut number,
        ))?;
    }
    Ok(number)
}

/// `RNDADDENTROPY` with every bit credited, then `RNDRESEEDCRNG` (linux/random.h).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn seed_generator(random: BorrowedFd<'_>, seed: &[u8; 32]) -> Result<(), Errno> {
    const RND_ADD_ENTROPY: u32 = 0x4008_5203;
    const RND_RESEED_CRNG: u32 = 0x5207;
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; 32],
    }
    let info = PoolInfo {
        entropy_count: 256,
        buf_size: 32,
        buf: *seed,
    };
    // SAFETY: `info` is laid out as struct rand_pool_info with a 32-byte buffer.
    unsafe {
        Errno::result(libc::ioctl(
            random.as_raw_fd(),
            RND_ADD_ENTROPY as _,
            &raw const info,
        ))?;
        Errno::result(libc::ioctl(random.as_raw_fd(), RND_RESEED_CRNG as _))?;
    }
    Ok(())
}

/// Random bytes that never wait: `GRND_INSECURE` (Linux 5.6) is what the generator has now.
pub fn random_now(buffer: &mut [u8]) {
    const GRND_INSECURE: libc::c_uint = 4;
    // SAFETY: the buffer is valid for its length.
    unsafe {
        libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), GRND_INSECURE);
    }
}

/// `setdomainname(2)`.
///
/// # Errors
/// `EINVAL` when it is longer than 64 bytes.
pub fn set_domain_name(name: &str) -> Result<(), Errno> {
    // SAFETY: the pointer is valid for the length given with it.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Forks a process of tether's own that runs `work` and exits with its result. Fine in a program
/// of one thread, whose every lock is free.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
pub fn fork_worker(work: impl FnOnce() -> u8) -> Result<i32, Errno> {
    // SAFETY: there is one thread, so the child's copy of memory is consistent.
    let pid = Errno::result(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = work();
        // SAFETY: leaves at once, running nothing of the parent's.
        unsafe { libc::_exit(i32::from(code)) }
    }
    Ok(pid)
}

/// Copies every extended attribute of a file that is no link.
///
/// # Errors
/// What the system calls say; a file system without any is no error.
pub fn copy_attributes(from: &CStr, to: &CStr) -> Result<(), Errno> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h).
    let mut names = vec![0u8; 65536];
    let mut value = vec![0u8; 65536];
    // SAFETY: every buffer is valid for the length given with it, every string is terminated.
    unsafe {
        let length = libc::listxattr(from.as_ptr(), names.as_mut_ptr().cast(), names.len());
        let length = match Errno::result(length) {
            Err(Errno::EOPNOTSUPP) => return Ok(()),
            other => other? as usize,
        };
        for name in names[..length].split_inclusive(|byte| *byte == 0) {
            let name = name.as_ptr().cast();
            let buffer = value.as_mut_ptr().cast();
            let size = libc::getxattr(from.as_ptr(), name, buffer, value.len());
            let size = Errno::result(size)? as usize;
            let bytes = value.as_ptr().cast();
            Errno::result(libc::setxattr(to.as_ptr(), name, bytes, size, 0))?;
        }
    }
    Ok(())
}

/// Owns what `accept4(2)` has just returned, which `nix` gives as a number.
pub fn adopt(accepted: libc::c_int) -> OwnedFd {
    assert!(
        accepted > 2,
        "a new descriptor is none of the standard ones"
    );
    owned(accepted)
}

/// Takes ownership of a descriptor a system call has just returned.
fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: called only with a descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_codes_and_signals() {
        assert_eq!(ended(42 << 8), Ended::Code(42));
        assert_eq!(ended(9), Ended::Signal(9));
        assert_eq!(ended(0x80 | 11), Ended::Signal(11));
        assert_eq!(ended(64), Ended::Signal(64));
    }
}
