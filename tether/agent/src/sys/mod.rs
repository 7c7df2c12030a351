//! Every `unsafe` line of tether: the system calls `nix` has no safe form of, and the two places
//! where one process becomes two.

#[cfg(all(target_env = "musl", panic = "abort", not(test)))]
mod alone;
pub mod backdoor;
pub mod entry;
mod init;
pub mod spawn;

use core::ffi::CStr;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;

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
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
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
    check(unsafe { libc::kill(pid, signal) }).map(drop)
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
        check(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK as _,
            &raw const locked,
        ))?;
        check(libc::ioctl(
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
        check(libc::ioctl(
            random.as_raw_fd(),
            RND_ADD_ENTROPY as _,
            &raw const info,
        ))?;
        check(libc::ioctl(random.as_raw_fd(), RND_RESEED_CRNG as _))?;
    }
    Ok(())
}

/// Forks a process of tether's own that runs `work` and exits with its result. Fine in a program
/// of one thread, whose every lock is free.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
pub fn fork_worker(work: impl FnOnce() -> u8) -> Result<i32, Errno> {
    // SAFETY: there is one thread, so the child's copy of memory is consistent.
    let pid = check(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = work();
        // SAFETY: leaves at once, running nothing of the parent's.
        unsafe { libc::_exit(i32::from(code)) }
    }
    Ok(pid)
}

/// As [`fork_worker`], for what takes long beside the loop: with only these descriptors open, which
/// are few; it can be killed, by signals and when memory is short.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`.
pub fn fork_operation(kept: [RawFd; 4], work: impl FnOnce() -> u8) -> Result<i32, Errno> {
    fork_worker(|| {
        // SAFETY: this is the child: no owner of a descriptor that is closed here is used again or
        // dropped, because it ends in `_exit`.
        unsafe {
            spawn::may_be_killed_when_memory_is_short();
            close_all_but(kept);
            libc::setsid();
            libc::umask(0);
            // A tree may be deeper than the 1024 directories that may be open by default.
            let limit = libc::rlimit {
                rlim_cur: DEPTH,
                rlim_max: DEPTH,
            };
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            spawn::unblock_signals();
        }
        work()
    })
}

/// One more than the directories of the longest path that is read, and a few.
const DEPTH: libc::rlim_t = 8192;

/// # Safety
/// Nobody uses the others after.
unsafe fn close_all_but(mut kept: [RawFd; 4]) {
    kept.sort_unstable();
    let mut first: libc::c_uint = 0;
    for fd in kept {
        let fd = fd.unsigned_abs();
        if fd > first {
            // SAFETY: no pointers.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd + 1);
    }
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Blocks every signal.
pub fn block_signals() {
    // SAFETY: the set is filled before it is used.
    unsafe {
        let mut all: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
    }
}

/// A signalfd of SIGCHLD alone.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is emptied before it is used.
    let fd = check(unsafe {
        let mut mask: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGCHLD);
        libc::signalfd(-1, &raw const mask, flags)
    })?;
    Ok(owned(fd))
}

/// Binds a socket to a vsock port, for whoever connects.
///
/// # Errors
/// `EADDRINUSE`.
pub fn bind_vsock(socket: BorrowedFd<'_>, port: u32) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid sockaddr_vm, and the length given is its own.
    check(unsafe {
        let mut address: libc::sockaddr_vm = core::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    })
    .map(drop)
}

/// Whether the other end of a vsock connection is the host itself.
pub fn is_from_host(connection: BorrowedFd<'_>) -> bool {
    // SAFETY: all-zero is a valid sockaddr_vm, and the length given is its own.
    unsafe {
        let mut address: libc::sockaddr_vm = core::mem::zeroed();
        let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let place = (&raw mut address).cast();
        libc::getpeername(connection.as_raw_fd(), place, &raw mut length) == 0
            && address.svm_cid == libc::VMADDR_CID_HOST
    }
}

/// `SO_BINDTODEVICE`.
///
/// # Errors
/// `ENODEV`.
pub fn bind_to_device(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    // SAFETY: the pointer is valid for the length given with it.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// What the C library calls an `errno`.
pub fn describe(errno: Errno) -> &'static str {
    // SAFETY: musl and glibc give a terminated string that lasts; tether has one thread.
    let text = unsafe { CStr::from_ptr(libc::strerror(errno.raw_os_error())) };
    text.to_str().unwrap_or("unknown error")
}

/// Writes to a descriptor by its number, whoever owns it; it may be closed.
pub fn write_somewhere(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the pointer is valid for the length given with it.
    unsafe {
        libc::write(fd, bytes.as_ptr().cast(), bytes.len());
    }
}

/// Ends this process.
pub fn exit(code: i32) -> ! {
    // SAFETY: leaves at once.
    unsafe { libc::_exit(code) }
}

/// The outcome of a C library call.
fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(result)
    }
}

fn last_errno() -> Errno {
    // SAFETY: always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
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
