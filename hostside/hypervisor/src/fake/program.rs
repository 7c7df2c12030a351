//! The programs a simulated tether can run. Each is a small state machine
//! that is stepped whenever something it may wait for has happened.

use std::collections::VecDeque;
use std::time::Duration;

use tether_wire::message::{Error, ErrorKind, ExitStatus, Output, ProcessId, ProcessSpec, Stdio};
use tether_wire::{GuestSession, Input};
use tokio::time::Instant;

/// The bytes `flood` writes, over and over: a period that divides no buffer.
pub const FLOOD_PERIOD: usize = 251;

/// The byte `flood` writes at this offset of its output.
pub fn flood_byte(offset: u64) -> u8 {
    // The remainder is below 251.
    (offset % FLOOD_PERIOD as u64) as u8
}

/// What a program does next.
#[derive(Debug)]
enum Step {
    Write(Output, Vec<u8>, usize),
    Flood { written: u64, end: u64 },
    Copy,
    Swallow { left: u64 },
    Sleep(Duration),
    Until(Instant),
    Exit(ExitStatus),
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    steps: VecDeque<Step>,
    /// Signals it does not die of.
    ignores: Vec<u8>,
    stdin: bool,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for input, room or a signal.
    Waits,
    /// It waits for this moment.
    WaitsUntil(Instant),
    /// It has ended.
    Ended(ExitStatus),
}

impl Program {
    /// The program of this command line.
    ///
    /// | argv | does |
    /// |---|---|
    /// | `true`, `false`, `exit N` | exits |
    /// | `echo WORDS` / `warn WORDS` | writes a line to stdout / stderr |
    /// | `env`, `pwd` | writes what it was started with |
    /// | `cat` | copies stdin to stdout |
    /// | `head N` | reads N bytes of stdin, exits, and leaves the rest |
    /// | `flood N` | writes N bytes, byte `i` being [`flood_byte`]`(i)`; without N for ever |
    /// | `sleep SECONDS`, `pause` | waits |
    /// | `stubborn` | waits, and does not die of SIGTERM |
    /// | `kill N` | dies of signal N |
    /// | `say WORDS , ...` | any of these one after the other, split at `,` |
    ///
    /// # Errors
    ///
    /// As tether's: `NotExecutable` for `/dev/null`, `NotFound` for all else.
    pub fn new(spec: &ProcessSpec) -> Result<Self, Error> {
        let mut steps = VecDeque::new();
        let mut ignores = Vec::new();
        let argv: Vec<&str> = spec.argv.iter().map(String::as_str).collect();
        let commands: Vec<&[&str]> = match argv.as_slice() {
            ["say", rest @ ..] => rest.split(|word| *word == ",").collect(),
            all => vec![all],
        };
        for command in commands {
            let Some((name, arguments)) = command.split_first() else {
                return Err(Error::new(ErrorKind::Invalid, "an empty command"));
            };
            let number = |index: usize| {
                let text = arguments.get(index).copied();
                text.map_or(Ok(None), |text| {
                    text.parse::<u64>()
                        .map(Some)
                        .map_err(|_| Error::new(ErrorKind::Invalid, format!("{text} is no number")))
                })
            };
            let small =
                |index| number(index).map(|n| n.and_then(|n| u8::try_from(n).ok()).unwrap_or(0));
            let line = || format!("{}\n", arguments.join(" ")).into_bytes();
            match *name {
                "true" => {}
                "false" => steps.push_back(Step::Exit(ExitStatus::Code(1))),
                "exit" => steps.push_back(Step::Exit(ExitStatus::Code(small(0)?))),
                "kill" => steps.push_back(Step::Exit(ExitStatus::Signal(small(0)?))),
                "echo" => steps.push_back(Step::Write(Output::Stdout, line(), 0)),
                "warn" => steps.push_back(Step::Write(Output::Stderr, line(), 0)),
                "env" => {
                    let lines: String = spec.env.iter().map(|entry| format!("{entry}\n")).collect();
                    steps.push_back(Step::Write(Output::Stdout, lines.into_bytes(), 0));
                }
                "pwd" => steps.push_back(Step::Write(
                    Output::Stdout,
                    format!("{}\n", spec.cwd).into_bytes(),
                    0,
                )),
                "cat" => steps.push_back(Step::Copy),
                "head" => steps.push_back(Step::Swallow {
                    left: number(0)?.unwrap_or(0),
                }),
                "flood" => steps.push_back(Step::Flood {
                    written: 0,
                    end: number(0)?.unwrap_or(u64::MAX),
                }),
                "sleep" => {
                    steps.push_back(Step::Sleep(Duration::from_secs(number(0)?.unwrap_or(0))))
                }
                "pause" => steps.push_back(Step::Sleep(Duration::MAX)),
                "stubborn" => {
                    ignores.push(15);
                    steps.push_back(Step::Sleep(Duration::MAX));
                }
                "/dev/null" => {
                    return Err(Error::new(
                        ErrorKind::NotExecutable,
                        "/dev/null: permission denied",
                    ));
                }
                other => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("{other}: not found in the image"),
                    ));
                }
            }
        }
        let stdin = match spec.stdio {
            Stdio::Pipes { stdin } | Stdio::Terminal { stdin, .. } => stdin,
        };
        steps.push_back(Step::Exit(ExitStatus::Code(0)));
        Ok(Self {
            steps,
            ignores,
            stdin,
        })
    }

    /// Whether it dies of this signal (signal(7)).
    pub fn dies_of(&self, signal: u8) -> bool {
        // SIGCHLD, SIGCONT, SIGURG and SIGWINCH are ignored by default.
        signal == 9 || !(matches!(signal, 17 | 18 | 23 | 28) || self.ignores.contains(&signal))
    }

    /// Does what can be done now.
    pub fn step(&mut self, session: &mut GuestSession, id: ProcessId) -> Progress {
        loop {
            let Some(step) = self.steps.front_mut() else {
                return Progress::Ended(ExitStatus::Code(0));
            };
            match step {
                Step::Write(output, bytes, at) => {
                    *at += write(session, id, *output, &bytes[*at..]);
                    if *at < bytes.len() {
                        return Progress::Waits;
                    }
                }
                Step::Flood { written, end } => {
                    while written < end {
                        let room = session.output_room(id, Output::Stdout);
                        if room.is_empty() {
                            return Progress::Waits;
                        }
                        let mut filled = 0;
                        for byte in room {
                            if written == end {
                                break;
                            }
                            *byte = flood_byte(*written);
                            *written += 1;
                            filled += 1;
                        }
                        session.output_filled(id, Output::Stdout, filled);
                    }
                }
                Step::Copy if self.stdin => loop {
                    let data = match session.input(id) {
                        Input::Data(data) => data.to_vec(),
                        Input::Empty => return Progress::Waits,
                        Input::End => break,
                    };
                    let copied = write(session, id, Output::Stdout, &data);
                    session.input_taken(id, copied);
                    if copied < data.len() {
                        return Progress::Waits;
                    }
                },
                Step::Swallow { left } if self.stdin => {
                    while *left > 0 {
                        let there = match session.input(id) {
                            Input::Data(data) => data.len(),
                            Input::Empty => return Progress::Waits,
                            Input::End => break,
                        };
                        let taken = there.min(usize::try_from(*left).unwrap_or(usize::MAX));
                        session.input_taken(id, taken);
                        *left -= taken as u64;
                    }
                }
                // /dev/null ends at once.
                Step::Copy | Step::Swallow { .. } => {}
                Step::Sleep(time) => {
                    *step = match Instant::now().checked_add(*time) {
                        Some(end) => Step::Until(end),
                        None => return Progress::Waits,
                    };
                    continue;
                }
                Step::Until(end) => {
                    if Instant::now() < *end {
                        return Progress::WaitsUntil(*end);
                    }
                }
                Step::Exit(status) => return Progress::Ended(*status),
            }
            self.steps.pop_front();
        }
    }
}

/// Writes what fits, and says how much that was.
fn write(session: &mut GuestSession, id: ProcessId, output: Output, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        let room = session.output_room(id, output);
        let fits = room.len().min(bytes.len() - written);
        if fits == 0 {
            break;
        }
        room[..fits].copy_from_slice(&bytes[written..written + fits]);
        session.output_filled(id, output, fits);
        written += fits;
    }
    written
}
