//! The small init of `docker run --init`: process 1 of the container, never another program.
//!
//! It forwards every signal to the program, reaps what is orphaned, and ends as the program ended.
//! This is the one `waitpid` besides the reaper's, in a process of its own.

use libc::c_int;

/// Stays until `program` has ended. All signals are blocked, as tether left them, and stay so.
///
/// # Safety
/// Only in a forked child of one thread that owns all its descriptors.
pub(super) unsafe fn supervise(program: libc::pid_t) -> ! {
    // SAFETY: system calls on this process; the sets and structures are initialised before use.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"init".as_ptr());
        // Descriptors 1 and 2 stay for those who write to /proc/1/fd/1; the program alone reads
        // standard input.
        libc::close(0);
        libc::syscall(libc::SYS_close_range, 3, c_int::MAX, 0);
        let mut all: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
        loop {
            let mut info: libc::siginfo_t = core::mem::zeroed();
            let signal = libc::sigwaitinfo(&raw const all, &raw mut info);
            if signal == libc::SIGCHLD {
                reap(program);
            } else if signal > 0 {
                libc::kill(program, signal);
            }
        }
    }
}

/// # Safety
/// As [`supervise`].
unsafe fn reap(program: libc::pid_t) {
    // SAFETY: as above.
    unsafe {
        loop {
            let mut status = 0;
            let pid = libc::waitpid(-1, &raw mut status, libc::WNOHANG);
            if pid <= 0 {
                return;
            }
            if pid != program {
                continue;
            }
            if libc::WIFSIGNALED(status) {
                // Process 1 cannot die of a signal it sends itself: the shell's convention, as
                // other small inits do.
                libc::_exit(128 + libc::WTERMSIG(status));
            }
            libc::_exit(libc::WEXITSTATUS(status));
        }
    }
}
