//! Bytes between the wire's streams and a simulated process's descriptors, as
//! the agent's `process/stdio.rs` moves them.

use tether_wire::message::{Output, ProcessId, TerminalSize};
use tether_wire::{GuestSession, Input};

use crate::fake::kernel::{Kernel, Origin, PipeId, signal};

/// Tether's ends.
#[derive(Debug)]
pub enum Streams {
    /// Three pipes; an end that is done with is gone.
    Pipes {
        /// Written to.
        stdin: Option<PipeId>,
        /// Read from.
        stdout: Option<PipeId>,
        /// Read from.
        stderr: Option<PipeId>,
    },
    /// The master of a terminal.
    Terminal {
        /// Its number, until nobody has the other end open.
        number: Option<u32>,
        /// Where in a line the host is.
        line: Line,
    },
}

/// Where in a line of a terminal's input the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// At its start.
    Start,
    /// Amidst it.
    Middle,
    /// The end was sent, or nothing ever is.
    Ended,
}

impl Streams {
    /// Moves what there is; whether anything moved.
    pub fn pump(&mut self, kernel: &mut Kernel, session: &mut GuestSession, id: ProcessId) -> bool {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let mut moved = pump_input(stdin, kernel, session, id);
                moved |= pump_output(stdout, kernel, session, id, Output::Stdout);
                moved | pump_output(stderr, kernel, session, id, Output::Stderr)
            }
            Self::Terminal { number, line } => {
                let Some(terminal) = *number else {
                    return abandon(session, id);
                };
                let mut moved = type_input(terminal, line, kernel, session, id);
                moved |= show_output(terminal, kernel, session, id);
                let gone = kernel
                    .terminal(terminal)
                    .is_none_or(|terminal| terminal.openers == 0 && !terminal.has_output());
                if gone {
                    kernel.drop_terminal(terminal);
                    *number = None;
                    session.output_ended(id, Output::Stdout);
                    session.output_ended(id, Output::Stderr);
                    moved = true;
                }
                moved
            }
        }
    }

    /// Whether every output has ended.
    pub fn ended(&self) -> bool {
        match self {
            Self::Pipes { stdout, stderr, .. } => stdout.is_none() && stderr.is_none(),
            Self::Terminal { number, .. } => number.is_none(),
        }
    }

    /// Lets go of everything: nobody will read or write.
    pub fn release(self, kernel: &mut Kernel) {
        match self {
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                for (pipe, reader) in [(stdin, false), (stdout, true), (stderr, true)] {
                    if let Some(pipe) = pipe {
                        kernel.release_pipe(pipe, reader);
                    }
                }
            }
            Self::Terminal { number, .. } => {
                if let Some(number) = number {
                    kernel.drop_terminal(number);
                }
            }
        }
    }

    /// Lets go of the input: its process has ended.
    pub fn close_input(&mut self, kernel: &mut Kernel) {
        if let Self::Pipes { stdin, .. } = self
            && let Some(pipe) = stdin.take()
        {
            kernel.release_pipe(pipe, false);
        }
    }

    /// Changes a terminal's size, and tells those in front; whether it is one.
    pub fn resize(&self, kernel: &mut Kernel, size: TerminalSize) -> bool {
        let Self::Terminal { number, .. } = self else {
            return false;
        };
        if let Some(terminal) = number.and_then(|number| kernel.terminal(number))
            && (terminal.rows, terminal.columns) != (size.rows, size.columns)
        {
            terminal.rows = size.rows;
            terminal.columns = size.columns;
            let foreground = terminal.foreground;
            kernel.signal_group(foreground, signal::WINCH, Origin::Outside);
        }
        true
    }
}

fn abandon(session: &mut GuestSession, id: ProcessId) -> bool {
    if let Input::Data(_) = session.input(id) {
        session.input_abandoned(id);
    }
    false
}

fn pump_input(
    stdin: &mut Option<PipeId>,
    kernel: &mut Kernel,
    session: &mut GuestSession,
    id: ProcessId,
) -> bool {
    let mut moved = false;
    loop {
        let Some(pipe) = *stdin else {
            return abandon(session, id) || moved;
        };
        match session.input(id) {
            Input::Empty => return moved,
            Input::End => {
                kernel.release_pipe(pipe, false);
                *stdin = None;
                moved = true;
            }
            Input::Data(data) => match kernel.fill_pipe(pipe, data) {
                Some(0) => return moved,
                Some(length) => {
                    session.input_taken(id, length);
                    moved = true;
                }
                None => {
                    kernel.release_pipe(pipe, false);
                    *stdin = None;
                    session.input_abandoned(id);
                    moved = true;
                }
            },
        }
    }
}

fn pump_output(
    end: &mut Option<PipeId>,
    kernel: &mut Kernel,
    session: &mut GuestSession,
    id: ProcessId,
    output: Output,
) -> bool {
    let mut moved = false;
    while let Some(pipe) = *end {
        let room = session.output_room(id, output);
        if room.is_empty() {
            return moved;
        }
        match kernel.drain_pipe(pipe, room) {
            Some(0) => return moved,
            Some(length) => session.output_filled(id, output, length),
            None => {
                kernel.release_pipe(pipe, true);
                *end = None;
                session.output_ended(id, output);
            }
        }
        moved = true;
    }
    moved
}

fn type_input(
    number: u32,
    line: &mut Line,
    kernel: &mut Kernel,
    session: &mut GuestSession,
    id: ProcessId,
) -> bool {
    let mut moved = false;
    loop {
        let Some(terminal) = kernel.terminal(number) else {
            return moved;
        };
        let typed: Vec<u8> = match session.input(id) {
            Input::Empty => return moved,
            Input::End if *line == Line::Ended => return moved,
            // ^D twice amidst a line: the first hands over what was typed so far.
            Input::End => {
                let twice = *line == Line::Middle && terminal.modes.lines;
                *line = Line::Ended;
                vec![4; 1 + usize::from(twice)]
            }
            Input::Data(_) if !terminal.takes_input() => return moved,
            Input::Data(data) => {
                let data = data[..data.len().min(1024)].to_vec();
                session.input_taken(id, data.len());
                *line = match data.last() {
                    Some(b'\n' | b'\r') => Line::Start,
                    _ => Line::Middle,
                };
                data
            }
        };
        for byte in typed {
            let Some(terminal) = kernel.terminal(number) else {
                return moved;
            };
            if let Some(made) = terminal.typed(byte) {
                let foreground = terminal.foreground;
                kernel.signal_group(foreground, made, Origin::Inside);
            }
        }
        kernel.terminal_changed(number);
        moved = true;
    }
}

fn show_output(
    number: u32,
    kernel: &mut Kernel,
    session: &mut GuestSession,
    id: ProcessId,
) -> bool {
    let mut moved = false;
    loop {
        let room = session.output_room(id, Output::Stdout);
        let Some(terminal) = kernel.terminal(number) else {
            return moved;
        };
        let bytes = terminal.take_output(room.len());
        if bytes.is_empty() {
            return moved;
        }
        room[..bytes.len()].copy_from_slice(&bytes);
        session.output_filled(id, Output::Stdout, bytes.len());
        kernel.terminal_changed(number);
        moved = true;
    }
}
