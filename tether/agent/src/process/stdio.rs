//! Descriptors 0, 1 and 2 from tether's side: pipes or a terminal, never blocking.

use crate::failure::{Context, Result};
use crate::poller::{Poller, Token};
use crate::sys;
use crate::tree::Tree;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tether_wire::guest::{GuestSession, Input};
use tether_wire::message::{Output, ProcessId, TerminalSize};

/// Tether's ends.
pub enum Streams {
    /// Three pipes; an end that is done with is closed.
    Pipes {
        /// Written to.
        stdin: Option<OwnedFd>,
        /// Read from.
        stdout: Option<OwnedFd>,
        /// Read from.
        stderr: Option<OwnedFd>,
    },
    /// The master of a pseudo-terminal.
    Terminal {
        /// Read from and written to; `None` once nobody has the other end open.
        master: Option<OwnedFd>,
        /// What the last byte written was, for the end of input.
        line: Line,
    },
}

/// Where in a line of a terminal's input the host is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// At its start.
    Start,
    /// Amidst it.
    Middle,
    /// The end was sent; or nothing ever is, and the terminal stays silent.
    Ended,
}

/// The child's ends of three pipes, close-on-exec.
pub struct ChildPipes([OwnedFd; 3]);

impl ChildPipes {
    /// The ends themselves, in order.
    pub fn ends(&self) -> &[OwnedFd; 3] {
        &self.0
    }

    /// Numbers for the child.
    pub fn numbers(&self) -> [i32; 3] {
        let [stdin, stdout, stderr] = &self.0;
        [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()]
    }
}

/// Makes the pipes; without `stdin` descriptor 0 is /dev/null.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipes(stdin: bool) -> Result<(Streams, ChildPipes)> {
    let what = || "making pipes";
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (child_stdin, stdin) = if stdin {
        let (theirs, ours) = pipe().context(what)?;
        (theirs, Some(never_wait(ours)?))
    } else {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let null = open("/dev/null", flags, Mode::empty()).context(|| "opening /dev/null")?;
        (null, None)
    };
    let (stdout, child_stdout) = pipe().context(what)?;
    let (stderr, child_stderr) = pipe().context(what)?;
    let streams = Streams::Pipes {
        stdin,
        stdout: Some(never_wait(stdout)?),
        stderr: Some(never_wait(stderr)?),
    };
    Ok((
        streams,
        ChildPipes([child_stdin, child_stdout, child_stderr]),
    ))
}

/// Makes a terminal in the container's own devpts; with it its number there.
///
/// # Errors
/// What `open(2)` says.
pub fn terminal(container: &Tree, size: TerminalSize, stdin: bool) -> Result<(Streams, u32)> {
    let what = || "making a terminal";
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    let master = container.open_file("/dev/pts/ptmx", flags).context(what)?;
    let number = sys::unlock_terminal(master.as_fd()).context(what)?;
    if size.rows != 0 || size.columns != 0 {
        tcsetwinsize(&master, window(size)).context(what)?;
    }
    let streams = Streams::Terminal {
        master: Some(master),
        line: if stdin { Line::Start } else { Line::Ended },
    };
    Ok((streams, number))
}

fn window(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Non-blocking on our side only: the other end of a pipe is a file description of its own.
fn never_wait(fd: OwnedFd) -> Result<OwnedFd> {
    fcntl_setfl(&fd, OFlags::NONBLOCK).context(|| "making a pipe non-blocking")?;
    Ok(fd)
}

impl Streams {
    /// Puts every end into the loop, which at once says what is ready.
    ///
    /// # Errors
    /// `ENOSPC`, `ENOMEM`.
    pub fn watch(&self, poller: &Poller, process: ProcessId) -> Result<()> {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                if let Some(fd) = stdin {
                    poller.watch(fd, EventFlags::OUT, Token::Input(process))?;
                }
                for (fd, output) in [(stdout, Output::Stdout), (stderr, Output::Stderr)] {
                    if let Some(fd) = fd {
                        poller.watch(fd, EventFlags::IN, Token::Output(process, output))?;
                    }
                }
            }
            Self::Terminal { master, .. } => {
                if let Some(fd) = master {
                    let both = EventFlags::IN | EventFlags::OUT;
                    poller.watch(fd, both, Token::Terminal(process))?;
                }
            }
        }
        Ok(())
    }

    /// Changes a terminal's size; whether it is one.
    ///
    /// # Errors
    /// What `ioctl(2)` says.
    pub fn resize(&self, size: TerminalSize) -> Result<bool> {
        match self {
            Self::Terminal {
                master: Some(fd), ..
            } => {
                tcsetwinsize(fd, window(size)).context(|| "resizing the terminal")?;
                Ok(true)
            }
            Self::Terminal { master: None, .. } => Ok(true),
            Self::Pipes { .. } => Ok(false),
        }
    }

    fn output(&mut self, output: Output) -> Option<&mut Option<OwnedFd>> {
        match (self, output) {
            (Self::Pipes { stdout, .. }, Output::Stdout) => Some(stdout),
            (Self::Pipes { stderr, .. }, Output::Stderr) => Some(stderr),
            (Self::Terminal { master, .. }, Output::Stdout) => Some(master),
            (Self::Terminal { .. }, Output::Stderr) => None,
        }
    }

    /// Moves output into the session until there is none, or no room.
    pub fn pump_output(&mut self, session: &mut GuestSession, process: ProcessId, output: Output) {
        let Some(end) = self.output(output) else {
            return;
        };
        while let Some(fd) = end {
            let room = session.output_room(process, output);
            if room.is_empty() {
                return;
            }
            match read(fd, room) {
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(length) if length > 0 => session.output_filled(process, output, length),
                // The end of a pipe; EIO is a terminal's.
                _ => {
                    *end = None;
                    session.output_ended(process, output);
                }
            }
        }
    }

    /// The process closed its end of the input pipe.
    pub fn reader_left(&mut self, session: &mut GuestSession, process: ProcessId) {
        if let Self::Pipes { stdin, .. } = self {
            *stdin = None;
            session.input_abandoned(process);
        }
    }

    /// Moves input out of the session until there is none, or the process does not read.
    pub fn pump_input(&mut self, session: &mut GuestSession, process: ProcessId) {
        match self {
            Self::Pipes { stdin, .. } => pump_pipe(stdin, session, process),
            Self::Terminal { master, line } => pump_terminal(master, line, session, process),
        }
    }
}

fn pump_pipe(stdin: &mut Option<OwnedFd>, session: &mut GuestSession, process: ProcessId) {
    loop {
        match (&*stdin, session.input(process)) {
            (_, Input::Empty) | (None, Input::End) => return,
            (None, Input::Data(_)) => return session.input_abandoned(process),
            (Some(_), Input::End) => {
                *stdin = None;
                return;
            }
            (Some(fd), Input::Data(data)) => match write(fd, data) {
                Ok(length) => session.input_taken(process, length),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    *stdin = None;
                    session.input_abandoned(process);
                }
            },
        }
    }
}

fn pump_terminal(
    master: &mut Option<OwnedFd>,
    line: &mut Line,
    session: &mut GuestSession,
    process: ProcessId,
) {
    loop {
        match (&*master, session.input(process)) {
            (_, Input::Empty) | (None, Input::End) => return,
            (None, Input::Data(_)) => return session.input_abandoned(process),
            (Some(fd), Input::End) => {
                if *line != Line::Ended && end_input(fd, *line) {
                    *line = Line::Ended;
                }
                return;
            }
            (Some(fd), Input::Data(data)) => match write(fd, data) {
                Ok(length) => {
                    let last = data[..length].last();
                    if let Some(last) = last {
                        let starts = matches!(last, b'\n' | b'\r');
                        *line = if starts { Line::Start } else { Line::Middle };
                    }
                    session.input_taken(process, length);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    session.input_abandoned(process);
                    return;
                }
            },
        }
    }
}

/// Types the terminal's end-of-file character (^D unless changed), twice amidst a line, where the
/// first only hands over what was typed so far. Whether the terminal took it.
fn end_input(master: &OwnedFd, line: Line) -> bool {
    let Ok(settings) = tcgetattr(master) else {
        return true;
    };
    let character = settings.special_codes[SpecialCodeIndex::VEOF];
    let canonical = settings.local_modes.contains(LocalModes::ICANON);
    let twice = [character; 2];
    let typed = if canonical && line == Line::Middle {
        &twice[..]
    } else {
        &twice[..1]
    };
    !matches!(write(master, typed), Err(Errno::AGAIN | Errno::INTR))
}
