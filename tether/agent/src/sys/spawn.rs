//! From one process to two: what happens between `clone3(2)` and `execve(2)`.
//!
//! The child runs on a copy of tether's memory and does nothing but system calls: everything that
//! allocates, reads a file or can fail in an interesting way was done before, in [`Plan`]. What
//! still fails is written into a pipe as a [`Stage`] and an `errno`; the pipe closes by itself when
//! the program starts.

use super::{check, init, last_errno, owned};
use crate::prelude::*;
use alloc::ffi::CString;
use core::ptr;
use libc::{c_char, c_int, c_long};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// Where a child was when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Joining or making namespaces.
    Namespace,
    /// Making the image the root.
    Root,
    /// Mounting proc, cgroup2 or the console.
    Mount,
    /// Becoming the terminal's session.
    Terminal,
    /// Placing descriptors 0 to 2.
    Descriptors,
    /// `setrlimit(2)`; with it the index of the limit.
    Limit,
    /// `chdir(2)`.
    WorkingDirectory,
    /// `setgroups(2)`, `setgid(2)`, `setuid(2)`.
    User,
    /// The small init's own `fork(2)`.
    Init,
    /// `execve(2)`.
    Execute,
}

impl Stage {
    const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Root,
        Self::Mount,
        Self::Terminal,
        Self::Descriptors,
        Self::Limit,
        Self::WorkingDirectory,
        Self::User,
        Self::Init,
        Self::Execute,
    ];
}

/// What a child that could not start says last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub stage: Stage,
    /// Why.
    pub errno: Errno,
}

impl Failure {
    /// Bytes on the pipe.
    pub const SIZE: usize = 8;

    /// Reads what [`fail`] wrote; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let [stage, _, _, _, errno @ ..] = *bytes;
        Some(Self {
            stage: *Stage::ALL.get(usize::from(stage))?,
            errno: Errno::from_raw_os_error(i32::from_ne_bytes(errno)),
        })
    }
}

/// A null-terminated array of C strings.
pub struct StringArray {
    // Keeps alive what `pointers` points to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Of these strings, in order.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            _strings: strings,
            pointers,
        }
    }
}

/// The namespaces of a child.
pub enum Place {
    /// Its own, with this directory as its root.
    Main {
        /// Where the image is mounted in tether's namespace.
        root: CString,
        /// A pid namespace of its own.
        private_pids: bool,
    },
    /// Those of the main process.
    Join {
        /// The main process's pidfd.
        main: RawFd,
        /// Tether's own pid namespace, to come back to; `None` when the main process shares it.
        home: Option<RawFd>,
    },
}

/// Descriptors 0, 1 and 2.
pub enum Descriptors {
    /// These.
    Given([RawFd; 3]),
    /// A terminal of the container's devpts.
    Terminal {
        /// `/dev/pts/N` in the container.
        path: CString,
        /// Make it /dev/console too.
        console: bool,
    },
}

/// Everything a child needs.
pub struct Plan {
    /// Namespaces.
    pub place: Place,
    /// The files that are tried, in order.
    pub programs: Vec<CString>,
    /// Arguments.
    pub arguments: StringArray,
    /// Environment.
    pub environment: StringArray,
    /// Working directory.
    pub directory: CString,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `RLIMIT_*` numbers with soft and hard limit.
    pub limits: Vec<(u8, [u64; 2])>,
    /// Descriptors 0, 1 and 2.
    pub descriptors: Descriptors,
    /// Stay as a small init and run the program as a child.
    pub init: bool,
    /// Where a failure is told; close-on-exec.
    pub status: RawFd,
}

/// Starts the child, in the control group whose directory is `group`.
///
/// # Errors
/// Of `setns(2)` and `clone3(2)`: `ESRCH` or `ENOMEM` when the main process is just ending.
pub fn spawn(plan: &Plan, group: BorrowedFd<'_>) -> Result<(i32, OwnedFd), Errno> {
    let mut flags = libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    let mut away = None;
    match plan.place {
        Place::Main { private_pids, .. } => {
            flags |= libc::CLONE_NEWNS as u64;
            if private_pids {
                flags |= libc::CLONE_NEWPID as u64;
            }
        }
        // For the pid namespace alone, setns(2) concerns children only. So the child is tether's
        // own and nobody in between has to be waited for.
        Place::Join { main, home } => {
            if let Some(home) = home {
                set_namespace(main, libc::CLONE_NEWPID)?;
                away = Some(home);
            }
        }
    }
    let result = clone(plan, flags, group);
    if let Some(home) = away {
        // Cannot fail: it is the namespace tether itself lives in.
        set_namespace(home, libc::CLONE_NEWPID)?;
    }
    result
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn set_namespace(fd: RawFd, kind: c_int) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(fd, kind) }).map(drop)
}

fn clone(plan: &Plan, flags: u64, group: BorrowedFd<'_>) -> Result<(i32, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { core::mem::zeroed() };
    arguments.flags = flags;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of the stack and returns here as after
    // fork(2); it runs `child`, which only makes system calls and does not return.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        ) as c_int
    })?;
    if pid == 0 {
        // SAFETY: this is the child, once.
        unsafe { child(plan) }
    }
    Ok((pid, owned(pidfd)))
}

/// Tells tether why and leaves.
///
/// # Safety
/// Only in the child.
unsafe fn fail(plan: &Plan, stage: Stage) -> ! {
    let [a, b, c, d] = last_errno().raw_os_error().to_ne_bytes();
    let bytes = [stage as u8, 0, 0, 0, a, b, c, d];
    // SAFETY: system calls on the child's own copies.
    unsafe {
        libc::write(plan.status, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(127)
    }
}

/// # Safety
/// Only in the child of [`clone`].
unsafe fn child(plan: &Plan) -> ! {
    // SAFETY: every call below is async-signal-safe and every pointer belongs to `plan` or is a
    // constant string.
    unsafe {
        let must = |result: c_int, stage: Stage| {
            if result < 0 {
                fail(plan, stage);
            }
        };
        may_be_killed_when_memory_is_short();
        match &plan.place {
            Place::Main { root, .. } => {
                must(libc::unshare(libc::CLONE_NEWCGROUP), Stage::Namespace);
                enter_root(plan, root);
            }
            Place::Join { main, .. } => {
                let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
                must(libc::setns(*main, kinds), Stage::Namespace);
            }
        }
        must(libc::setsid(), Stage::Terminal);
        match &plan.descriptors {
            Descriptors::Given(three) => {
                for (standard, fd) in (0..).zip(three) {
                    must(libc::dup2(*fd, standard), Stage::Descriptors);
                    // So that /dev/stdout can be opened by its own user; not for /dev/null.
                    if standard > 0 || is_pipe(standard) {
                        libc::fchown(standard, plan.uid, plan.gid);
                    }
                }
            }
            Descriptors::Terminal { path, console } => {
                open_terminal(plan, path, *console);
            }
        }
        if plan.init {
            let program = libc::fork();
            must(program, Stage::Init);
            if program > 0 {
                init::supervise(program);
            }
            if matches!(plan.descriptors, Descriptors::Terminal { .. }) {
                // A group of its own in front of the terminal, so that ^C does not reach it twice.
                // SIGTTOU is still blocked here.
                libc::setpgid(0, 0);
                libc::tcsetpgrp(0, libc::getpid());
            }
        }
        become_program(plan)
    }
}

/// # Safety
/// Only in the child.
unsafe fn is_pipe(fd: c_int) -> bool {
    // SAFETY: all-zero is a valid stat, and fstat fills it.
    unsafe {
        let mut stat: libc::stat = core::mem::zeroed();
        libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
    }
}

/// Undoes tether's own protection.
///
/// # Safety
/// Only in the child.
pub(super) unsafe fn may_be_killed_when_memory_is_short() {
    // SAFETY: constant strings.
    unsafe {
        let fd = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if fd >= 0 {
            libc::write(fd, c"0".as_ptr().cast(), 1);
            libc::close(fd);
        }
    }
}

/// Makes the image's tree the root of this mount namespace and mounts what belongs to its own pid
/// and cgroup namespaces. The old root is the initramfs, which `pivot_root(2)` refuses, so the
/// image is moved over it; nothing of it can be reached from there.
///
/// # Safety
/// Only in the child.
unsafe fn enter_root(plan: &Plan, root: &CString) {
    // SAFETY: strings of the plan and constants.
    unsafe {
        let must = |result: c_int, stage: Stage| {
            if result < 0 {
                fail(plan, stage);
            }
        };
        let none = ptr::null();
        let slash = c"/".as_ptr();
        let boot_id = boot_id_of_fork();
        // What tether mounts later below the root arrives here; nothing goes back.
        let flags = libc::MS_REC | libc::MS_SLAVE;
        must(
            libc::mount(none, slash, none, flags, none.cast()),
            Stage::Root,
        );
        must(libc::chdir(root.as_ptr()), Stage::Root);
        let here = c".".as_ptr();
        must(
            libc::mount(here, slash, none, libc::MS_MOVE, none.cast()),
            Stage::Root,
        );
        must(libc::chroot(here), Stage::Root);
        must(libc::chdir(slash), Stage::Root);
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let proc = c"proc".as_ptr();
        must(
            libc::mount(proc, c"/proc".as_ptr(), proc, flags, none.cast()),
            Stage::Mount,
        );
        if boot_id >= 0 {
            must(lay_over_boot_id(boot_id), Stage::Mount);
        }
        let kind = c"cgroup2".as_ptr();
        let target = c"/sys/fs/cgroup".as_ptr();
        let flags = flags | libc::MS_RDONLY;
        must(
            libc::mount(c"cgroup".as_ptr(), target, kind, flags, none.cast()),
            Stage::Mount,
        );
    }
}

/// A mount of the file that a fork has instead of the kernel's boot id ([`crate::fork`]), which the
/// kernel kept from its template; negative for a machine that booted. Taken before the image hides
/// the file, laid over the kernel's when there is a proc to lay it over.
///
/// # Safety
/// Only in the child.
unsafe fn boot_id_of_fork() -> c_int {
    const OPEN_TREE_CLONE: c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC;
    let file = c"/run/etc/boot-id".as_ptr();
    // SAFETY: a constant string.
    unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, file, flags) as c_int }
}

/// # Safety
/// Only in the child.
unsafe fn lay_over_boot_id(mount: c_int) -> c_int {
    const MOVE_MOUNT_F_EMPTY_PATH: c_int = 4;
    let target = c"/proc/sys/kernel/random/boot_id".as_ptr();
    let here = c"".as_ptr();
    // SAFETY: constant strings, and a descriptor of the child's own, closed once.
    unsafe {
        let result = libc::syscall(
            libc::SYS_move_mount,
            mount,
            here,
            libc::AT_FDCWD,
            target,
            MOVE_MOUNT_F_EMPTY_PATH,
        ) as c_int;
        if result == 0 {
            libc::close(mount);
        }
        result
    }
}

/// Opens the terminal by its path in the container, so that `ttyname(3)` finds it, as the session's
/// controlling one.
///
/// # Safety
/// Only in the child, after `setsid(2)`.
unsafe fn open_terminal(plan: &Plan, path: &CString, console: bool) {
    // SAFETY: strings of the plan and constants.
    unsafe {
        let must = |result: c_int, stage: Stage| {
            if result < 0 {
                fail(plan, stage);
            }
        };
        let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        must(fd, Stage::Terminal);
        must(libc::ioctl(fd, libc::TIOCSCTTY as _, 0), Stage::Terminal);
        // As runc does: the user owns the terminal, the tty group keeps it.
        libc::fchown(fd, plan.uid, u32::MAX);
        for standard in 0..3 {
            must(libc::dup2(fd, standard), Stage::Descriptors);
        }
        if console {
            let target = c"/dev/console".as_ptr();
            let flags = libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NOCTTY;
            let made = libc::open(target, flags, 0o600);
            if made >= 0 {
                libc::close(made);
            }
            let none = ptr::null();
            let result = libc::mount(path.as_ptr(), target, none, libc::MS_BIND, none.cast());
            must(result, Stage::Mount);
        }
    }
}

/// # Safety
/// Only in the child.
unsafe fn become_program(plan: &Plan) -> ! {
    // SAFETY: pointers into the plan; raw system calls where the C library's form would signal
    // other threads.
    unsafe {
        let must = |result: c_long, stage: Stage| {
            if result < 0 {
                fail(plan, stage);
            }
        };
        for (resource, pair) in &plan.limits {
            let none = ptr::null_mut::<u64>();
            let result = libc::syscall(
                libc::SYS_prlimit64,
                0,
                c_int::from(*resource),
                pair.as_ptr(),
                none,
            );
            must(result, Stage::Limit);
        }
        libc::umask(0o022);
        let mut arrived = libc::chdir(plan.directory.as_ptr());
        if arrived < 0 && last_errno() != Errno::ACCESS {
            fail(plan, Stage::WorkingDirectory);
        }
        let groups = libc::syscall(libc::SYS_setgroups, plan.groups.len(), plan.groups.as_ptr());
        must(groups, Stage::User);
        let (gid, uid) = (plan.gid, plan.uid);
        must(
            libc::syscall(libc::SYS_setresgid, gid, gid, gid),
            Stage::User,
        );
        must(
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            Stage::User,
        );
        if arrived < 0 {
            // A directory root may not enter, on NFS, may be the user's own.
            arrived = libc::chdir(plan.directory.as_ptr());
            must(arrived.into(), Stage::WorkingDirectory);
        }
        unblock_signals();
        let mut refused = Errno::NOENT;
        for program in &plan.programs {
            libc::execve(
                program.as_ptr(),
                plan.arguments.pointers.as_ptr(),
                plan.environment.pointers.as_ptr(),
            );
            match last_errno() {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => refused = Errno::ACCESS,
                _ => fail(plan, Stage::Execute),
            }
        }
        *libc::__errno_location() = refused.raw_os_error();
        fail(plan, Stage::Execute)
    }
}

/// # Safety
/// Only in the child.
pub(super) unsafe fn unblock_signals() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut none: libc::sigset_t = core::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        let mut bytes = [0; Failure::SIZE];
        bytes[0] = Stage::Execute as u8;
        bytes[4..].copy_from_slice(&libc::ENOENT.to_ne_bytes());
        assert_eq!(
            Failure::decode(&bytes),
            Some(Failure {
                stage: Stage::Execute,
                errno: Errno::NOENT
            })
        );
        assert_eq!(Failure::decode(&bytes[..7]), None);
        bytes[0] = 200;
        assert_eq!(Failure::decode(&bytes), None);
    }

    #[test]
    fn stages_are_listed_in_order() {
        for (index, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, index);
        }
    }
}
