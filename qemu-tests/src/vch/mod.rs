//! `vch` as its users run it.

mod capture;
mod done;
mod run;
mod running;

pub use done::Done;
pub use run::Run;
pub use running::Running;

use crate::harness::{Context, MARK};
use crate::terminal::Terminal;
use anyhow::{Context as _, Result};
pub use capture::{Capture, Said};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a process's standard input comes from.
#[derive(Clone, Debug)]
enum Input {
    /// It has none.
    Null,
    /// A pipe that these bytes are written to and that is then closed.
    Bytes(Vec<u8>),
    /// A pipe that the test writes to.
    Pipe,
}

/// Where standard output goes.
#[derive(Clone, Debug)]
enum Output {
    /// A pipe that is read at once.
    Pipe,
    /// A file, written from where it ends.
    Append(PathBuf),
}

/// A `vch` about to be started.
#[derive(Debug)]
pub struct Vch {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Input,
    output: Output,
    terminal: Option<Terminal>,
    /// `NUMBER.` of its files in the test's directory.
    number: u32,
    directory: PathBuf,
}

impl Vch {
    /// `vch ARGUMENTS...` in the test's directory, with its state directory.
    pub fn new<I>(test: &Context, number: u32, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let environment = [
            ("VCH_STATE".into(), test.state().into_os_string()),
            (
                "VCH_BOOT_IMAGE".into(),
                test.environment().boot_image().into(),
            ),
            (
                "VCH_TEMPLATES".into(),
                test.environment().templates().into(),
            ),
            (MARK.into(), test.directory().into()),
        ];
        Self {
            program: test.environment().vch().to_owned(),
            arguments: arguments
                .into_iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
            environment: environment.into(),
            input: Input::Null,
            output: Output::Pipe,
            terminal: None,
            number,
            directory: test.directory().to_owned(),
        }
    }

    /// Another program instead, by path or by name in `PATH`.
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// With another variable in its own environment.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().into()));
        self
    }

    /// Without an environment variable that the harness sets.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    /// With these bytes as standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// With standard input left open: [`Running::write`], until [`Running::wait`].
    pub fn stdin_open(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }

    /// With standard output appended to a file.
    pub fn stdout_to(mut self, path: &Path) -> Self {
        self.output = Output::Append(path.to_owned());
        self
    }

    /// With a terminal as standard input, output and error output.
    pub fn on(mut self, terminal: &Terminal) -> Self {
        self.terminal = Some(terminal.clone());
        self
    }

    /// With its standard output read by `head -n 1`, as in a shell's pipeline. Its own exit status
    /// is in the file `status` of the test's directory when it ended.
    pub fn into_head(mut self) -> Self {
        let script = r#"{ "$0" "$@"; echo $? >status; } | head -n 1"#;
        let mut arguments = vec!["-c".into(), script.into(), self.program.into_os_string()];
        arguments.append(&mut self.arguments);
        self.program = "/bin/sh".into();
        self.arguments = arguments;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started, or its files cannot be written.
    pub fn spawn(self) -> Result<Running> {
        let file = |kind: &str| self.directory.join(format!("{}.{kind}", self.number));
        let title = title(&self.program, &self.arguments);
        let variables: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("{}={} ", name.display(), quote(value)))
            .collect();
        std::fs::write(file("argv"), format!("{variables}{title}\n"))
            .with_context(|| format!("cannot write {}", file("argv").display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory);
        match (&self.terminal, &self.input) {
            (Some(terminal), _) => command.stdin(terminal.line()?),
            (None, Input::Null) => command.stdin(Stdio::null()),
            (None, Input::Bytes(_) | Input::Pipe) => command.stdin(Stdio::piped()),
        };
        match (&self.terminal, &self.output) {
            (Some(terminal), _) => command.stdout(terminal.line()?),
            (None, Output::Pipe) => command.stdout(Stdio::piped()),
            (None, Output::Append(path)) => command.stdout(
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot open {}", path.display()))?,
            ),
        };
        match &self.terminal {
            Some(terminal) => command.stderr(terminal.line()?),
            None => command.stderr(Stdio::piped()),
        };
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let stdout = Capture::start(child.stdout.take(), &file("stdout"))?;
        let stderr = Capture::start(child.stderr.take(), &file("stderr"))?;
        let stdin = child.stdin.take();
        Running::new(child, title, stdin, self.input, stdout, stderr)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or its files cannot be written.
    pub fn done(self) -> Result<Done> {
        self.spawn()?.wait()
    }
}

/// A command line as a shell takes it.
fn title(program: &Path, arguments: &[OsString]) -> String {
    let mut words = vec![quote(program.as_os_str())];
    words.extend(arguments.iter().map(|word| quote(word)));
    words.join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_=+./:,@%".contains(&b));
    if plain {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
