//! A pseudo-terminal's line discipline (termios(3)): what is typed becomes
//! lines, echo and signals; what is written gets carriage returns.

use std::collections::VecDeque;

use super::{Pid, signal};

/// Bytes of output that wait for the host before a writer has to.
const OUTPUT_BOUND: usize = 64 * 1024;
/// Bytes of input that wait for a reader before the host has to
/// (`N_TTY_BUF_SIZE` of drivers/tty/n_tty.c).
const INPUT_BOUND: usize = 4096;

/// Modes that stty(1) knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// `icanon`: lines, with editing.
    pub lines: bool,
    /// `echo`.
    pub echo: bool,
    /// `isig`: ^C and its like are signals.
    pub signals: bool,
    /// `onlcr`: a newline goes out as carriage return and newline.
    pub returns: bool,
    /// `icrnl`: a carriage return comes in as a newline.
    pub newlines: bool,
}

impl Modes {
    /// As a terminal is opened.
    pub const SANE: Self = Self {
        lines: true,
        echo: true,
        signals: true,
        returns: true,
        newlines: true,
    };
}

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
    /// How it treats bytes.
    pub modes: Modes,
    /// The process group that is typed to.
    pub foreground: Pid,
    /// Open descriptions.
    pub openers: u32,
    /// Who waits for input, or for room.
    pub waiters: Vec<Pid>,
    edited: Vec<u8>,
    /// Lines to be read; an empty one is the end of a file.
    lines: VecDeque<Vec<u8>>,
    output: VecDeque<u8>,
}

impl Terminal {
    /// One of this size.
    pub fn new(rows: u16, columns: u16) -> Self {
        Self {
            rows,
            columns,
            modes: Modes::SANE,
            foreground: 0,
            openers: 0,
            waiters: Vec::new(),
            edited: Vec::new(),
            lines: VecDeque::new(),
            output: VecDeque::new(),
        }
    }

    /// Whether more may be typed.
    pub fn takes_input(&self) -> bool {
        self.lines.iter().map(Vec::len).sum::<usize>() + self.edited.len() < INPUT_BOUND
    }

    /// A byte is typed; the signal it makes for the foreground.
    pub fn typed(&mut self, byte: u8) -> Option<u8> {
        let byte = if byte == b'\r' && self.modes.newlines {
            b'\n'
        } else {
            byte
        };
        if self.modes.signals {
            let made = match byte {
                0x03 => Some(signal::INT),
                0x1c => Some(signal::QUIT),
                0x1a => Some(signal::TSTP),
                _ => None,
            };
            if made.is_some() {
                self.edited.clear();
                self.lines.clear();
                self.echo(byte);
                return made;
            }
        }
        if !self.modes.lines {
            self.echo(byte);
            self.lines.push_back(vec![byte]);
            return None;
        }
        match byte {
            b'\n' => {
                self.echo(byte);
                let mut line = std::mem::take(&mut self.edited);
                line.push(b'\n');
                self.lines.push_back(line);
            }
            // ^D hands over what was typed so far: nothing of a line is the end.
            0x04 => {
                let line = std::mem::take(&mut self.edited);
                self.lines.push_back(line);
            }
            0x7f => {
                if self.edited.pop().is_some() && self.modes.echo {
                    self.output.extend(b"\x08 \x08");
                }
            }
            // ^U.
            0x15 => {
                for _ in 0..std::mem::take(&mut self.edited).len() {
                    if self.modes.echo {
                        self.output.extend(b"\x08 \x08");
                    }
                }
            }
            byte => {
                self.echo(byte);
                self.edited.push(byte);
            }
        }
        None
    }

    fn echo(&mut self, byte: u8) {
        if !self.modes.echo {
            return;
        }
        match byte {
            b'\n' => {
                self.put(b'\n');
            }
            b'\t' => self.output.push_back(b'\t'),
            0..0x20 => self.output.extend([b'^', byte + 0x40]),
            byte => self.output.push_back(byte),
        }
    }

    fn put(&mut self, byte: u8) {
        if byte == b'\n' && self.modes.returns {
            self.output.push_back(b'\r');
        }
        self.output.push_back(byte);
    }

    /// Writes what there is room for; how much that was.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let room = OUTPUT_BOUND.saturating_sub(self.output.len());
        let taken = &data[..data.len().min(room)];
        for byte in taken {
            self.put(*byte);
        }
        taken.len()
    }

    /// Reads a line or a part of it; nothing when there is none yet.
    pub fn read(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut line = self.lines.pop_front()?;
        if !self.modes.lines {
            while line.len() < most
                && let Some(more) = self.lines.pop_front()
            {
                line.extend(more);
            }
        }
        if line.len() > most {
            let rest = line.split_off(most);
            self.lines.push_front(rest);
        }
        Some(line)
    }

    /// What was written, at most `most` bytes.
    pub fn take_output(&mut self, most: usize) -> Vec<u8> {
        let most = most.min(self.output.len());
        self.output.drain(..most).collect()
    }

    /// Whether there is output.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_all(terminal: &mut Terminal, text: &str) -> Vec<u8> {
        text.bytes()
            .filter_map(|byte| terminal.typed(byte))
            .collect()
    }

    #[test]
    fn lines_are_edited_echoed_and_ended() {
        let check = |typed: &str, lines: &[&str], echo: &str, signals: &[u8]| {
            let mut terminal = Terminal::new(24, 80);
            assert_eq!(type_all(&mut terminal, typed), signals, "{typed:?}");
            let read: Vec<String> = std::iter::from_fn(|| terminal.read(100))
                .map(|line| String::from_utf8(line).unwrap())
                .collect();
            assert_eq!(read, lines, "{typed:?}");
            assert_eq!(
                String::from_utf8(terminal.take_output(100)).unwrap(),
                echo,
                "{typed:?}"
            );
        };
        check("ls\r", &["ls\n"], "ls\r\n", &[]);
        check("ab\x7fc\n", &["ac\n"], "ab\x08 \x08c\r\n", &[]);
        check("ab\x15c\n", &["c\n"], "ab\x08 \x08\x08 \x08c\r\n", &[]);
        check("\x04", &[""], "", &[]);
        check("ab\x04\x04", &["ab", ""], "ab", &[]);
        check("ab\x03c\n", &["c\n"], "ab^Cc\r\n", &[signal::INT]);
        check("\x1c\x1a", &[], "^\\^Z", &[signal::QUIT, signal::TSTP]);
    }

    #[test]
    fn raw_bytes_come_as_they_are() {
        let mut terminal = Terminal::new(0, 0);
        terminal.modes = Modes {
            lines: false,
            echo: false,
            signals: false,
            returns: false,
            newlines: false,
        };
        assert!(type_all(&mut terminal, "a\r\x03\x04").is_empty());
        assert_eq!(terminal.read(3).unwrap(), b"a\r\x03");
        assert_eq!(terminal.read(3).unwrap(), b"\x04");
        assert_eq!(terminal.read(3), None);
        assert_eq!(terminal.write(b"x\n"), 2);
        assert_eq!(terminal.take_output(9), b"x\n");
    }
}
