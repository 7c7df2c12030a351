//! A simulated POSIX shell: what `sh -c`, `sh FILE` and `sh` with a terminal do
//! in a simulated container.
//!
//! ```text
//! text --parser, words--> syntax::Node --eval--> processes, redirections
//!                                        '--expand--> fields of a word
//! ```
//!
//! What it lacks of the real one: aliases, job control beyond `^Z`, history.

mod arithmetic;
mod builtins;
mod eval;
mod expand;
mod parser;
mod pattern;
mod redirection;
pub mod syntax;
#[cfg(test)]
mod tests;
mod waiting;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use tether_wire::message::ExitStatus;

use super::files::{Errno, describe};
use super::kernel::sys::{Patience, Sys, Waited};
use super::kernel::{Access, Disposition, Pid, signal};
use super::programs::{Call, Failure, Outcome};
use parser::{Bad, Parser};
use syntax::Node;

pub use pattern::{Marked, in_class, matches as matches_pattern};

/// A variable.
#[derive(Debug, Clone, Default)]
struct Variable {
    /// Nothing when it is only exported or made read-only.
    value: Option<String>,
    exported: bool,
    read_only: bool,
}

/// `set -X`.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    exit_on_error: bool,
    no_unset: bool,
    trace: bool,
    no_patterns: bool,
    pipefail: bool,
}

/// What leaves the command that is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// So many loops.
    Break(u32),
    /// So many loops but for the last, which goes on.
    Continue(u32),
    /// The function or sourced file.
    Return,
    /// The shell.
    Exit,
}

type Flow = Result<(), Leave>;

/// A shell.
#[derive(Debug, Clone)]
pub struct Shell {
    sys: Sys,
    variables: BTreeMap<String, Variable>,
    /// `$0`.
    name: String,
    /// `$1` and on.
    parameters: Vec<String>,
    /// `$?`.
    status: u8,
    /// `$!`.
    background: Option<Pid>,
    /// `$$`, the same in subshells.
    own_pid: Pid,
    functions: BTreeMap<String, Arc<Node>>,
    /// What is run for a signal; 0 is the shell's end. Empty ones are ignored.
    traps: BTreeMap<u8, String>,
    options: Options,
    /// Children in the background.
    jobs: Vec<Pid>,
    /// Values that `local` covers, by function call.
    locals: Vec<Vec<(String, Option<Variable>)>>,
    interactive: bool,
    loops: u32,
    calls: u32,
    /// A condition is being looked at: `set -e` waits.
    condition: u32,
    in_trap: bool,
}

/// Bytes of a variable's value from which it counts as memory.
const LARGE: usize = 1 << 20;
/// Deepest calls of functions and `eval`.
const DEEPEST_CALL: u32 = 30;

/// The program.
pub async fn main(call: &Call) -> Outcome {
    let mut arguments = call.argv[1..].iter();
    let mut options = Options::default();
    let mut command = None;
    let mut rest: Vec<String> = Vec::new();
    let mut forced_interactive = false;
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix('-').filter(|flags| !flags.is_empty()) {
            Some("-") => {
                rest.extend(arguments.by_ref().cloned());
            }
            Some(flags) if !flags.starts_with('-') => {
                for flag in flags.chars() {
                    match flag {
                        'c' => command = Some(String::new()),
                        'i' => forced_interactive = true,
                        'l' | 's' => {}
                        'o' => drop(arguments.next()),
                        _ if options.set(flag, true) => {}
                        _ => {
                            return Err(Failure::new(2, format!("illegal option -{flag}")));
                        }
                    }
                }
                if command.is_some() {
                    command = Some(
                        arguments
                            .next()
                            .cloned()
                            .ok_or_else(|| Failure::new(2, "-c requires an argument"))?,
                    );
                    rest.extend(arguments.by_ref().cloned());
                }
            }
            // A long option of bash's.
            Some(_) => {}
            None => {
                rest.push(argument.clone());
                rest.extend(arguments.by_ref().cloned());
            }
        }
    }
    let mut shell = Shell::new(call.sys.clone(), &call.name());
    shell.options = options;
    if let Some(script) = command {
        let mut rest = rest.into_iter();
        if let Some(name) = rest.next() {
            shell.name = name;
        }
        shell.parameters = rest.collect();
        return Ok(shell.run_script(&script, true).await);
    }
    if rest.is_empty() {
        let terminal = shell.sys.terminal_of(0).is_some();
        shell.interactive = forced_interactive || terminal;
        return Ok(shell.run_input().await);
    }
    let file = rest.remove(0);
    shell.parameters = rest;
    shell.name.clone_from(&file);
    let script = match shell.read_file(&file).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(errno) => {
            let status = if errno == Errno::NOENT { 127 } else { 126 };
            return Err(Failure::new(
                status,
                format!("can't open '{file}': {}", describe(errno)),
            ));
        }
    };
    Ok(shell.run_script(&script, false).await)
}

impl Options {
    fn set(&mut self, flag: char, on: bool) -> bool {
        match flag {
            'e' => self.exit_on_error = on,
            'u' => self.no_unset = on,
            'x' => self.trace = on,
            'f' => self.no_patterns = on,
            // Accepted, and nothing a simulated script would notice.
            'a' | 'b' | 'h' | 'm' | 'n' | 'v' | 'C' => {}
            _ => return false,
        }
        true
    }

    fn set_named(&mut self, name: &str, on: bool) -> bool {
        match name {
            "errexit" => self.exit_on_error = on,
            "nounset" => self.no_unset = on,
            "xtrace" => self.trace = on,
            "noglob" => self.no_patterns = on,
            "pipefail" => self.pipefail = on,
            _ => return false,
        }
        true
    }

    fn letters(self) -> String {
        [
            (self.exit_on_error, 'e'),
            (self.no_unset, 'u'),
            (self.trace, 'x'),
            (self.no_patterns, 'f'),
        ]
        .into_iter()
        .filter_map(|(on, letter)| on.then_some(letter))
        .collect()
    }
}

impl Shell {
    fn new(sys: Sys, name: &str) -> Self {
        let variables = sys
            .environment()
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| {
                let variable = Variable {
                    value: Some(value.to_owned()),
                    exported: true,
                    read_only: false,
                };
                (name.to_owned(), variable)
            })
            .collect();
        let own_pid = sys.pid;
        let mut shell = Self {
            sys,
            variables,
            name: name.to_owned(),
            parameters: Vec::new(),
            status: 0,
            background: None,
            own_pid,
            functions: BTreeMap::new(),
            traps: BTreeMap::new(),
            options: Options::default(),
            jobs: Vec::new(),
            locals: Vec::new(),
            interactive: false,
            loops: 0,
            calls: 0,
            condition: 0,
            in_trap: false,
        };
        let directory = shell.sys.directory();
        shell.assign("PWD", directory);
        shell
    }

    async fn read_file(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let fd = self.sys.open(path, Access::READ).await?;
        let content = self.sys.read_all(fd).await;
        self.sys.close(fd);
        content
    }

    /// Runs a whole script; `last` says that nothing comes after it, so that its
    /// last command may take the shell's place.
    async fn run_script(&mut self, text: &str, last: bool) -> u8 {
        match parser::parse(text) {
            Ok(script) => {
                let _ = self.eval(&script, last).await;
            }
            Err(bad) => self.complain_of(&bad).await,
        }
        self.end().await
    }

    async fn complain_of(&mut self, bad: &Bad) {
        let what = match bad {
            Bad::Unfinished => "syntax error: unexpected end of file".to_owned(),
            Bad::Syntax(what) => format!("syntax error: {what}"),
        };
        self.complain(&what).await;
        self.status = 2;
    }

    /// Says something on standard error.
    async fn complain(&self, what: &str) {
        let name = self.name.rsplit('/').next().unwrap_or("sh");
        let _ = self
            .sys
            .write(2, format!("{name}: {what}\n").as_bytes())
            .await;
    }

    /// Runs what comes on standard input, line by line.
    async fn run_input(&mut self) -> u8 {
        if self.interactive {
            for number in [signal::INT, signal::QUIT, signal::TERM, signal::TSTP] {
                let disposition = if number == signal::INT {
                    Disposition::Handle
                } else {
                    Disposition::Ignore
                };
                self.sys.set_disposition(number, Some(disposition));
            }
        }
        let mut text = String::new();
        loop {
            if self.interactive {
                self.prompt(text.is_empty()).await;
            }
            let line = match self.read_line().await {
                Ok(line) => line,
                Err(_) => {
                    // ^C: a new line, a new prompt.
                    while self.sys.take_signal().is_some() {}
                    let _ = self.sys.write(1, b"\n").await;
                    text.clear();
                    self.status = 130;
                    continue;
                }
            };
            let ended = line.is_empty();
            text.push_str(&line);
            let mut parser = Parser::new(&text);
            let parsed = parser.next_line();
            match parsed {
                Ok(Some(command)) => {
                    text.clear();
                    if self.eval(&command, false).await == Err(Leave::Exit) {
                        break;
                    }
                }
                Ok(None) => text.clear(),
                Err(Bad::Unfinished) if !ended => continue,
                Err(bad) => {
                    self.complain_of(&bad).await;
                    text.clear();
                    if !self.interactive {
                        break;
                    }
                }
            }
            if ended {
                break;
            }
        }
        self.end().await
    }

    async fn prompt(&self, first: bool) {
        let prompt = if !first {
            "> ".to_owned()
        } else if let Some(own) = self.get("PS1") {
            own.replace("\\w", &self.sys.directory())
                .replace("\\$", if self.is_root() { "#" } else { "$" })
        } else {
            let sign = if self.is_root() { '#' } else { '$' };
            format!("{} {sign} ", self.sys.directory())
        };
        let _ = self.sys.write(2, prompt.as_bytes()).await;
    }

    fn is_root(&self) -> bool {
        self.sys.own(|process| process.who.uid == 0)
    }

    /// A line with its end; empty at the end of the input.
    async fn read_line(&mut self) -> Result<String, Errno> {
        let mut line = Vec::new();
        loop {
            match self.sys.read_byte(0).await {
                Ok(Some(byte)) => {
                    line.push(byte);
                    if byte == b'\n' {
                        break;
                    }
                }
                Err(Errno::INTR) if self.interactive => return Err(Errno::INTR),
                Err(Errno::INTR) => {
                    let _ = self.run_traps().await;
                }
                Ok(None) | Err(_) => break,
            }
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// The shell's own end: its trap, its status.
    async fn end(&mut self) -> u8 {
        let _ = self.run_traps().await;
        if let Some(action) = self.traps.remove(&0) {
            let status = self.status;
            if self.run_text(&action).await != Err(Leave::Exit) {
                self.status = status;
            }
        }
        self.status
    }

    /// Runs a text in this shell: `eval`, traps, sourced files.
    async fn run_text(&mut self, text: &str) -> Flow {
        if self.calls >= DEEPEST_CALL {
            self.complain("nested too deeply").await;
            self.status = 2;
            return Err(Leave::Exit);
        }
        match parser::parse(text) {
            Ok(script) => {
                self.calls += 1;
                let flow = self.eval(&script, false).await;
                self.calls -= 1;
                flow
            }
            Err(bad) => {
                self.complain_of(&bad).await;
                if self.interactive {
                    Ok(())
                } else {
                    Err(Leave::Exit)
                }
            }
        }
    }

    /// Runs what is trapped of what came.
    async fn run_traps(&mut self) -> Flow {
        if self.in_trap {
            return Ok(());
        }
        while let Some(number) = self.sys.take_signal() {
            let Some(action) = self.traps.get(&number).cloned() else {
                continue;
            };
            let status = self.status;
            self.in_trap = true;
            let flow = self.run_text(&action).await;
            self.in_trap = false;
            flow?;
            self.status = status;
        }
        Ok(())
    }

    /// Waits for a child of the foreground.
    async fn wait_for(&mut self, pid: Pid) -> u8 {
        match self
            .sys
            .wait(Some(pid), self.interactive, Patience::Endless)
            .await
        {
            Ok(Waited::Ended(_, status)) => {
                if let ExitStatus::Signal(number) = status {
                    let said = signal::sentence(number);
                    if !said.is_empty() {
                        let _ = self.sys.write(2, format!("{said}\n").as_bytes()).await;
                    }
                }
                status.shell()
            }
            Ok(Waited::Stopped(_)) => {
                self.jobs.push(pid);
                let line = format!("\n[{}]+  Stopped\n", self.jobs.len());
                let _ = self.sys.write(2, line.as_bytes()).await;
                128 + signal::TSTP
            }
            Err(_) => 127,
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name)?.value.clone()
    }

    fn assign(&mut self, name: &str, value: String) {
        if value.len() > LARGE {
            self.sys.allocate(value.len() as u64);
        }
        let variable = self.variables.entry(name.to_owned()).or_default();
        if !variable.read_only {
            variable.value = Some(value);
        }
    }

    /// Exported variables, as a program gets them.
    fn environment(&self) -> Vec<String> {
        self.variables
            .iter()
            .filter(|(_, variable)| variable.exported)
            .filter_map(|(name, variable)| Some(format!("{name}={}", variable.value.as_ref()?)))
            .collect()
    }

    /// The same shell in a child of its own.
    fn child(&self, sys: Sys) -> Self {
        let mut child = self.clone();
        child.sys = sys;
        child.jobs.clear();
        child.interactive = false;
        child.in_trap = false;
        child.loops = 0;
        // Only what is ignored stays.
        child.traps.retain(|_, action| action.is_empty());
        child
    }
}
