//! The one place of this crate that needs `unsafe`: what happens between
//! `fork` and `exec`, and tokio's promise about watched descriptors.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Lifetime;

/// Makes `command` start in a session of its own (no terminal's hang-up or
/// Ctrl-C reaches it), without core dumps (they would hold guest memory), and
/// with `inherited` open under the numbers they have here. It ends with the
/// thread that starts it if `lifetime` says so.
pub fn detach(command: &mut Command, inherited: &[BorrowedFd<'_>], lifetime: Lifetime) {
    let numbers: Vec<i32> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure runs in the forked child before exec, where only
    // async-signal-safe calls are allowed: it makes raw system calls (rustix's
    // Linux backend) and touches no allocator, lock or thread-local. The
    // descriptors are the child's copies, open because the caller holds them
    // across `spawn`.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if lifetime == Lifetime::Ours {
                let signal = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(signal)?;
            }
            rustix::process::setrlimit(
                Resource::Core,
                Rlimit {
                    current: Some(0),
                    maximum: Some(0),
                },
            )?;
            for number in &numbers {
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(*number), FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Watches a descriptor for becoming readable.
///
/// # Errors
///
/// When the runtime's poller takes no more.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, until it is
    // dropped, which the `AsyncFd` that owns it does after deregistering.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// The processor's time-stamp counter, where it has one that guests under
/// emulation are given as it is.
#[cfg(target_arch = "x86_64")]
pub fn time_stamp() -> Option<u64> {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user space run
    // it unless a process asks otherwise of itself (PR_SET_TSC), which this
    // one does not.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

/// The processor's time-stamp counter: other processors than x86 have none.
#[cfg(not(target_arch = "x86_64"))]
pub fn time_stamp() -> Option<u64> {
    None
}
