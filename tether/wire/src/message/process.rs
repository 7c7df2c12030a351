//! Processes: what to run, how it stands, how it ended.

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// A process's name on the wire, chosen by the host; not a pid. The main process is 0 by custom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// The container's main process.
    pub const MAIN: Self = Self(0);
}

/// One of a process's two output streams. A terminal writes everything to [`Output::Stdout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Output {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in `PATH` of `env`, inside the image.
    pub argv: Vec<String>,
    /// `NAME=value`, complete but for what tether adds when absent: `PATH`, `HOME` (from the
    /// image's passwd), `HOSTNAME`, and `TERM=xterm` with a terminal.
    pub env: Vec<String>,
    /// Working directory, absolute; made (owner root, 0755) when missing, as Docker does.
    pub cwd: String,
    /// Who runs it.
    pub user: User,
    /// Where its descriptors 0, 1 and 2 lead.
    pub stdio: Stdio,
    /// `setrlimit(2)` before exec.
    pub limits: Vec<ResourceLimit>,
    /// Main process or exec.
    pub role: Role,
}

/// User and groups, by name or number, resolved against the image's passwd and group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Docker's `user[:group]`: each a name or a number; empty is root.
    pub user: String,
    /// Further supplementary groups (`--group-add`), names or numbers.
    pub groups: Vec<String>,
}

/// Where descriptors 0, 1 and 2 lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Three pipes; without `stdin`, descriptor 0 is /dev/null.
    Pipes {
        /// Whether standard input is a pipe.
        stdin: bool,
    },
    /// One pseudo-terminal, its session's controlling terminal; all output arrives as
    /// [`Output::Stdout`].
    Terminal {
        /// The first size.
        size: TerminalSize,
        /// Whether the host will send input; without it the terminal's input stays silent.
        stdin: bool,
    },
}

/// A terminal's size in characters (`TIOCSWINSZ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines; 0 leaves it unset.
    pub rows: u16,
    /// Characters a line; 0 leaves it unset.
    pub columns: u16,
}

/// One `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// Linux `RLIMIT_*` number (`asm-generic/resource.h`), 0 to 15.
    pub resource: u8,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is infinity.
    pub hard: u64,
}

/// What a process is to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The main process. At most one at a time; when it ends its pid namespace ends with it.
    Main {
        /// Its pid namespace.
        pid_namespace: PidNamespace,
        /// Run tether's small init as process 1 and the program as its child: it forwards signals
        /// and reaps orphans (`docker run --init`).
        init: bool,
    },
    /// An additional process in the main process's namespaces (`docker exec`). When no main
    /// process runs it gets [`ErrorKind::Busy`](super::ErrorKind::Busy).
    Exec,
}

/// Which pid namespace the main process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// Its own; it is process 1 there.
    Private,
    /// The machine's (`--pid host`); tether is process 1.
    Machine,
}

/// The answer to a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its pid in the machine's own pid namespace.
    pub pid: u32,
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalTarget {
    /// The process.
    Process,
    /// Its process group.
    Group,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// The kernel's OOM killer killed something in this process's group of processes.
    pub oom_killed: bool,
    /// When tether reaped it: nanoseconds since the Unix epoch by the guest's clock.
    pub unix_nanos: u64,
}

/// `wait(2)` status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// `exit(code)`.
    Code(u8),
    /// Killed by this signal.
    Signal(u8),
}

impl ExitStatus {
    /// The status a shell reports: the code, or 128 plus the signal.
    pub fn shell(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Everything the guest knows of one process, for a host that resumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its name.
    pub process: ProcessId,
    /// Running or ended.
    pub run: RunState,
    /// Standard input.
    pub input: InputState,
    /// Standard output (or the terminal).
    pub stdout: OutputState,
    /// Standard error; ended at 0 for a terminal.
    pub stderr: OutputState,
}

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Accepted, and not yet running (setup is under way).
    Starting,
    /// Running.
    Running {
        /// Its pid in the machine's own pid namespace.
        pid: u32,
    },
    /// Ended and reaped.
    Exited(Exit),
}

/// Standard input as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputState {
    /// Bytes received from the host: where the next [`super::ToGuest::Input`] starts.
    pub received: u64,
    /// Bytes written to the process.
    pub taken: u64,
    /// The host may send bytes below this offset.
    pub limit: u64,
    /// The host has sent the end.
    pub ended: bool,
}

/// An output stream as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputState {
    /// The oldest byte the guest still has.
    pub stored: u64,
    /// Bytes read from the process so far.
    pub produced: u64,
    /// No writer is left; `produced` is the stream's length.
    pub ended: bool,
}
