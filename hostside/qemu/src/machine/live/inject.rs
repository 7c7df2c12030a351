//! System calls that another process makes for us: its main thread is stopped (ptrace(2)), makes them one after
//! the other, and goes on where it was.
//!
//! **Killed at any instant.** Who traces may die between any two steps, and the thread then runs on by itself. So
//! it is never left with nowhere to go: each call is made by libc's `syscall; ret`, on a stack that returns into
//! `rt_sigreturn` with a frame (as the kernel's `arch/x86/kernel/signal_64.c` makes one) of what the thread was
//! doing. That was a system call, which has been interrupted, as by a signal (`EINTR`). The frame has no state
//! of floating point: a thread in a system call of libc keeps none across it (System V ABI, x86-64, 3.2.1).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `syscall; ret`.
const SYSCALL_RET: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: libc's own end of a signal handler.
const SIGRETURN: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// What may be in use below a stack pointer (System V ABI, x86-64, 3.2.2).
const RED_ZONE: u64 = 128;
/// Room for the frame and for what calls read.
const ROOM: u64 = 4096;
/// Where in that room what calls read begins.
const DATA: u64 = 1024;
/// `UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS` (`arch/x86/include/uapi/asm/ucontext.h`).
const UC_FLAGS: u64 = 6;
const SS_DISABLE: u64 = 2;
/// How long a thread may take to stop.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often a thread that is not in a system call is let go on.
const ATTEMPTS: u32 = 20;
/// Between two looks at it.
const PAUSE: Duration = Duration::from_micros(100);
/// What the kernel has in a register of a system call that it will begin again (`include/linux/errno.h`):
/// `ERESTARTSYS` to `ERESTART_RESTARTBLOCK`.
const RESTARTS: std::ops::RangeInclusive<i64> = -516..=-512;

/// A thread that has been stopped, and goes on when this is dropped.
pub struct Stopped {
    thread: Pid,
    was: user_regs_struct,
    memory: File,
    code: Code,
    /// Where the frame is.
    stack: u64,
    /// A signal that came meanwhile.
    came: Option<Signal>,
}

/// Where libc has what is needed.
#[derive(Debug, Clone, Copy)]
struct Code {
    syscall: u64,
    sigreturn: u64,
}

/// Runs something on a stopped process's main thread, which goes on afterwards, whatever happens here. Blocks.
///
/// # Errors
///
/// It may not be traced, or does not stop where it can be made to do something else.
pub fn within<T: Send>(
    pid: u32,
    work: impl FnOnce(&mut Stopped) -> io::Result<T> + Send,
) -> io::Result<T> {
    // The kernel lets go of what a thread traces when that thread ends.
    std::thread::scope(|scope| {
        let traced = scope.spawn(|| work(&mut Stopped::stop(pid)?));
        traced
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("tracing it panicked")))
    })
}

impl Stopped {
    fn stop(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).map_err(io::Error::other)?;
        let thread = Pid::from_raw(number);
        let code = Code::of(pid)?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        // A stop at a call that leaves no signal behind when its tracer dies, as one after a single step does.
        ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD)?;
        for _ in 0..ATTEMPTS {
            ptrace::interrupt(thread)?;
            let signal = match wait(thread)? {
                WaitStatus::PtraceEvent(..) => None,
                WaitStatus::Stopped(_, signal) => Some(signal),
                other => return Err(unexpected(other)),
            };
            let was = ptrace::getregs(thread)?;
            let in_call =
                was.orig_rax.cast_signed() >= 0 && RESTARTS.contains(&was.rax.cast_signed());
            if signal.is_none() && in_call {
                let mut stopped = Self {
                    thread,
                    was,
                    memory,
                    code,
                    stack: (was.rsp - RED_ZONE - ROOM) & !15,
                    came: None,
                };
                stopped.write_frame()?;
                return Ok(stopped);
            }
            ptrace::cont(thread, signal)?;
            std::thread::sleep(PAUSE);
        }
        Err(io::Error::other("its main thread is always at something"))
    }

    /// What the thread returns by if nobody puts its registers back.
    fn write_frame(&mut self) -> io::Result<()> {
        let was = &self.was;
        let interrupted = i64::from(-libc::EINTR).cast_unsigned();
        let segments = (was.cs & 0xffff) | (was.ss & 0xffff) << 48;
        let mask = blocked(self.thread)?;
        let frame: Vec<u64> = [
            // The return address of the call.
            &[self.code.sigreturn][..],
            // uc_flags, uc_link, uc_stack
            &[UC_FLAGS, 0, 0, SS_DISABLE, 0],
            // uc_mcontext: struct sigcontext_64
            &[
                was.r8, was.r9, was.r10, was.r11, was.r12, was.r13, was.r14, was.r15,
            ],
            &[
                was.rdi,
                was.rsi,
                was.rbp,
                was.rbx,
                was.rdx,
                interrupted,
                was.rcx,
            ],
            &[was.rsp, was.rip, was.eflags, segments],
            // err, trapno, oldmask, cr2, fpstate, reserved
            &[0; 4],
            &[0; 9],
            // uc_sigmask
            &[mask],
        ]
        .concat();
        let bytes: Vec<u8> = frame.into_iter().flat_map(u64::to_ne_bytes).collect();
        self.memory.write_all_at(&bytes, self.stack)
    }

    /// Puts bytes where a call can read them, until the next are put; gives the address.
    ///
    /// # Errors
    ///
    /// They are too many, or the process's memory cannot be written.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if bytes.len() as u64 > ROOM - DATA {
            return Err(io::Error::other("too much to hand over"));
        }
        let address = self.stack + DATA;
        self.memory.write_all_at(bytes, address)?;
        Ok(address)
    }

    /// Has a system call made.
    ///
    /// # Errors
    ///
    /// The call's own, or tracing's.
    pub fn call(&mut self, number: c_long, arguments: [u64; 6]) -> io::Result<u64> {
        self.prepare(number, arguments)?;
        // It stops where the call begins and where it is done.
        let mut stops = 0;
        while stops < 2 {
            ptrace::syscall(self.thread, None)?;
            match wait(self.thread)? {
                WaitStatus::PtraceSyscall(_) => stops += 1,
                WaitStatus::PtraceEvent(..) => {}
                WaitStatus::Stopped(_, signal) => self.came = Some(signal),
                other => return Err(unexpected(other)),
            }
        }
        let now = ptrace::getregs(self.thread)?;
        match now.rax.cast_signed() {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(
                i32::try_from(-error).unwrap_or(libc::EINVAL),
            )),
            _ => Ok(now.rax),
        }
    }

    /// Lets the thread stand before a call, from where it would return by itself.
    fn prepare(&self, number: c_long, arguments: [u64; 6]) -> io::Result<()> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let before = user_regs_struct {
            rip: self.code.syscall,
            rsp: self.stack,
            rax: number.cast_unsigned(),
            // It is in no call that could be begun again.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.was
        };
        Ok(ptrace::setregs(self.thread, before)?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // What it was doing is begun again by the kernel. Where that fails, its frame leads back.
        let _ = ptrace::setregs(self.thread, self.was);
        let _ = ptrace::detach(self.thread, self.came);
    }
}

impl Code {
    fn of(pid: u32) -> io::Result<Self> {
        for mapping in Mapping::all(pid)? {
            let name = mapping.path.rsplit('/').next().unwrap_or_default();
            if !mapping.executable || !(name.starts_with("libc.so") || name.starts_with("libc-")) {
                continue;
            }
            let length = usize::try_from(mapping.end - mapping.start).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, mapping.start)?;
            let find = |code: &[u8]| {
                let at = bytes.windows(code.len()).position(|found| found == code)?;
                Some(mapping.start + at as u64)
            };
            if let (Some(syscall), Some(sigreturn)) = (find(SYSCALL_RET), find(SIGRETURN)) {
                return Ok(Self { syscall, sigreturn });
            }
        }
        Err(io::Error::other("it has no libc that is known"))
    }
}

/// A line of `/proc/PID/maps` (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub executable: bool,
    pub offset: u64,
    /// The file's, or 0.
    pub inode: u64,
    pub path: String,
}

impl Mapping {
    /// All of a process's.
    ///
    /// # Errors
    ///
    /// It is gone, or another user's.
    pub fn all(pid: u32) -> io::Result<Vec<Self>> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        Ok(text.lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let access = words.next()?;
        let offset = words.next()?;
        let _device = words.next()?;
        let inode = words.next()?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: hexadecimal(start)?,
            end: hexadecimal(end)?,
            executable: access.as_bytes().get(2) == Some(&b'x'),
            offset: hexadecimal(offset)?,
            inode: inode.parse().ok()?,
            path: words.next().unwrap_or_default().trim_start().to_owned(),
        })
    }
}

/// The signals that a thread has blocked, as `/proc/PID/status` has them.
fn blocked(thread: Pid) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status"))?;
    let mask = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigBlk:")?.trim(), 16).ok());
    mask.ok_or_else(|| io::Error::other("its blocked signals are not known"))
}

/// Waits for a traced thread to stop.
fn wait(thread: Pid) -> io::Result<WaitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive if Instant::now() < deadline => std::thread::sleep(PAUSE),
            WaitStatus::StillAlive => return Err(io::ErrorKind::TimedOut.into()),
            status => return Ok(status),
        }
    }
}

fn unexpected(status: WaitStatus) -> io::Error {
    io::Error::other(format!("its main thread came to {status:?}"))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that waits in a system call for something to copy.
    pub struct Cat(Child);

    impl Cat {
        pub fn start() -> Self {
            let child = Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("cat");
            let mut cat = Self(child);
            cat.copies(b"it runs\n");
            cat
        }

        pub fn id(&self) -> u32 {
            self.0.id()
        }

        pub fn copies(&mut self, text: &[u8]) {
            let (input, output) = (self.0.stdin.as_mut(), self.0.stdout.as_mut());
            input.unwrap().write_all(text).unwrap();
            let mut read = vec![0; text.len()];
            output.unwrap().read_exact(&mut read).unwrap();
            assert_eq!(read, text);
        }

        pub fn ends_well(mut self) {
            drop(self.0.stdin.take());
            assert!(self.0.wait().unwrap().success());
        }
    }

    #[test]
    fn calls_are_made_and_the_process_goes_on() {
        let mut cat = Cat::start();
        let pid = cat.id();
        let answers = within(pid, |process| {
            let own = process.call(libc::SYS_getpid, [0; 6])?;
            let refused = process.call(libc::SYS_close, [12345, 0, 0, 0, 0, 0]);
            let at = process.data(b"/dev/null\0")?;
            let opened = process.call(libc::SYS_open, [at, 0, 0, 0, 0, 0])?;
            Ok((own, refused.map_err(|error| error.raw_os_error()), opened))
        });
        let (own, refused, opened) = answers.unwrap();
        assert_eq!((own, refused), (u64::from(pid), Err(Some(libc::EBADF))));
        let path = std::fs::read_link(format!("/proc/{pid}/fd/{opened}")).unwrap();
        assert_eq!(path, std::path::Path::new("/dev/null"));
        for _ in 0..3 {
            cat.copies(b"as before\n");
            within(pid, |_| Ok(())).unwrap();
        }
        cat.ends_well();
    }

    /// Ends a thread that traces without letting go.
    fn die(stopped: Stopped) -> io::Result<()> {
        std::mem::forget(stopped);
        Ok(())
    }

    #[test]
    fn a_process_whose_tracer_dies_before_or_after_a_call_goes_on() {
        let mut cat = Cat::start();
        let pid = cat.id();
        for made in [false, true, false, true] {
            let traced = std::thread::spawn(move || {
                let mut stopped = Stopped::stop(pid)?;
                if made {
                    stopped.call(libc::SYS_getppid, [0; 6])?;
                } else {
                    stopped.prepare(libc::SYS_getppid, [0; 6])?;
                }
                die(stopped)
            });
            traced.join().unwrap().unwrap();
            // A read that was interrupted is begun again by cat itself.
            cat.copies(b"still there\n");
        }
        cat.ends_well();
    }

    #[test]
    fn a_process_that_is_never_in_a_call_is_left_alone() {
        let busy = Command::new("sh")
            .args(["-c", "echo; while :; do :; done"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut busy = Ends(busy);
        let mut begun = [0];
        let output = busy.0.stdout.as_mut().unwrap();
        output.read_exact(&mut begun).unwrap();
        let error = within(busy.0.id(), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("always at something"), "{error}");
        assert!(busy.0.try_wait().unwrap().is_none());
    }

    /// A process that ends with its test.
    struct Ends(Child);

    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn mappings_are_read_with_their_files() {
        let line = "7f00000-7f01000 rw-p 00002000 00:01 4711       /memfd:vch-fork (deleted)";
        let expected = Mapping {
            start: 0x7f0_0000,
            end: 0x7f0_1000,
            executable: false,
            offset: 0x2000,
            inode: 4711,
            path: "/memfd:vch-fork (deleted)".to_owned(),
        };
        assert_eq!(Mapping::parse(line), Some(expected));
        assert_eq!(
            Mapping::parse("7f-80 r-xp 0 00:00 0 ").unwrap().path,
            String::new()
        );
        assert_eq!(Mapping::parse("nonsense"), None);
    }
}
