//! The programs of a simulated container: what busybox has that tests use, as
//! futures on simulated system calls.
//!
//! Which program a file is, is decided as busybox does: by the last part of the
//! path it is called by. So an image's own list of files, without contents, has
//! the programs that its names promise.

pub mod condition;
mod data;
mod entries;
mod listing;
pub mod process;
mod regex;
mod system;
pub mod text;
mod words;

use std::future::Future;
use std::pin::Pin;

use super::files::{Errno, describe};
use super::kernel::sys::{CHUNK, Sys};
use super::kernel::{Access, Task};

/// Deepest `#!` of a `#!`.
const DEEPEST: u32 = 4;

/// How a program was called.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its system calls.
    pub sys: Sys,
    /// Its name and its arguments.
    pub argv: Vec<String>,
}

/// Why a program failed: said on standard error, after its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its exit code.
    pub status: u8,
    /// For people; empty says nothing.
    pub message: String,
}

/// How a program ended.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// With this code.
    pub fn new(status: u8, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// A failed system call on something.
    pub fn on(what: impl std::fmt::Display, errno: Errno) -> Self {
        Self::new(1, format!("{what}: {}", describe(errno)))
    }

    /// It was called wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }
}

/// Options taken off the front of arguments.
#[derive(Debug, Default)]
pub struct Options {
    flags: Vec<(char, String)>,
    /// What is left.
    pub operands: Vec<String>,
}

impl Options {
    /// Whether a flag was given.
    pub fn has(&self, flag: char) -> bool {
        self.flags.iter().any(|(given, _)| *given == flag)
    }

    /// The last value of an option.
    pub fn value(&self, flag: char) -> Option<&str> {
        self.flags
            .iter()
            .rev()
            .find(|(given, _)| *given == flag)
            .map(|(_, value)| value.as_str())
    }

    /// All values of an option.
    pub fn values(&self, flag: char) -> impl Iterator<Item = &str> {
        self.flags
            .iter()
            .filter(move |(given, _)| *given == flag)
            .map(|(_, value)| value.as_str())
    }
}

impl Call {
    /// Its name without a directory.
    pub fn name(&self) -> String {
        let path = self.argv.first().map_or("", String::as_str);
        let name = path.rsplit('/').next().unwrap_or("");
        name.trim_start_matches('-').to_owned()
    }

    /// getopt(3): `known` has letters, each with a colon when it takes a value.
    ///
    /// # Errors
    /// An option that is not known, or without its value.
    pub fn options(&self, known: &str) -> Result<Options, Failure> {
        let mut options = Options::default();
        let mut rest = self.argv[1..].iter();
        while let Some(argument) = rest.next() {
            if argument == "--" {
                options.operands.extend(rest.by_ref().cloned());
                break;
            }
            let flags = match argument.strip_prefix('-') {
                Some(flags) if !flags.is_empty() => flags,
                _ => {
                    options.operands.push(argument.clone());
                    continue;
                }
            };
            let mut flags = flags.chars();
            while let Some(flag) = flags.next() {
                let at = known.find(flag).filter(|_| flag != ':');
                let Some(at) = at else {
                    return Err(Failure::usage(format!("invalid option -- '{flag}'")));
                };
                let mut value = String::new();
                if known[at + flag.len_utf8()..].starts_with(':') {
                    value = flags.by_ref().collect();
                    if value.is_empty() {
                        value = rest.next().cloned().ok_or_else(|| {
                            Failure::usage(format!("option requires an argument -- '{flag}'"))
                        })?;
                    }
                }
                options.flags.push((flag, value));
            }
        }
        Ok(options)
    }

    /// As [`Call::options`], up to the first operand: what follows is another
    /// program's.
    ///
    /// # Errors
    /// The same.
    pub fn options_of_prefix(&self, known: &str) -> Result<Options, Failure> {
        let mut end = 1;
        while let Some(argument) = self.argv.get(end)
            && let Some(flag) = argument
                .strip_prefix('-')
                .and_then(|rest| rest.chars().last())
        {
            let takes = known
                .find(flag)
                .is_some_and(|at| known[at + flag.len_utf8()..].starts_with(':'));
            end += 1 + usize::from(takes && argument.len() == 2);
        }
        let end = end.min(self.argv.len());
        let own = Self {
            sys: self.sys.clone(),
            argv: self.argv[..end].to_vec(),
        };
        let mut options = own.options(known)?;
        options.operands.extend_from_slice(&self.argv[end..]);
        Ok(options)
    }

    /// Writes to standard output.
    ///
    /// # Errors
    /// `write error`.
    pub async fn print(&self, bytes: impl AsRef<[u8]> + Send) -> Result<(), Failure> {
        self.sys
            .write(1, bytes.as_ref())
            .await
            .map_err(|errno| Failure::on("write error", errno))
    }

    /// Says what is wrong, and that the program goes on.
    pub async fn complain(&self, what: impl std::fmt::Display + Send) {
        let line = format!("{}: {what}\n", self.name());
        let _ = self.sys.write(2, line.as_bytes()).await;
    }

    /// Opens a file to be read; `-` is standard input.
    ///
    /// # Errors
    /// As `cat` says it.
    pub async fn open(&self, path: &str) -> Result<u32, Failure> {
        if path == "-" {
            return Ok(0);
        }
        self.sys
            .open(path, Access::READ)
            .await
            .map_err(|errno| Failure::on(format!("can't open '{path}'"), errno))
    }

    /// What is in a file; `-` is standard input.
    ///
    /// # Errors
    /// As [`Call::open`]; what reading says.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let fd = self.open(path).await?;
        let bytes = self.sys.read_all(fd).await;
        if fd != 0 {
            self.sys.close(fd);
        }
        bytes.map_err(|errno| Failure::on(format!("read error on '{path}'"), errno))
    }

    /// What is in all files, or on standard input when none is named. What
    /// cannot be read is complained of.
    pub async fn read_operands(&self, operands: &[String]) -> (Vec<u8>, u8) {
        let standard = ["-".to_owned()];
        let operands = if operands.is_empty() {
            &standard[..]
        } else {
            operands
        };
        let (mut all, mut status) = (Vec::new(), 0);
        for path in operands {
            match self.read(path).await {
                Ok(bytes) => all.extend(bytes),
                Err(failure) => {
                    self.complain(failure.message).await;
                    status = 1;
                }
            }
        }
        (all, status)
    }

    /// Copies a descriptor to standard output until its end.
    ///
    /// # Errors
    /// What reading or writing says.
    pub async fn copy(&self, fd: u32, name: &str) -> Result<(), Failure> {
        loop {
            let bytes = self
                .sys
                .read(fd, CHUNK)
                .await
                .map_err(|errno| Failure::on(format!("read error on '{name}'"), errno))?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.print(bytes).await?;
        }
    }
}

type Program = fn(Call) -> Task;

async fn end(call: &Call, outcome: Outcome) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                call.complain(failure.message).await;
            }
            failure.status
        }
    }
}

macro_rules! programs {
    ($($($name:literal)|+ => $function:path,)*) => {
        /// Every program's name.
        pub const NAMES: &[&str] = &[$($($name),+),*];

        fn find(name: &str) -> Option<Program> {
            Some(match name {
                $($($name)|+ => |call| Box::pin(async move {
                    let outcome = $function(&call).await;
                    end(&call, outcome).await
                }),)*
                _ => return None,
            })
        }
    };
}

programs! {
    "sh" | "ash" | "bash" | "dash" => super::shell::main,
    "true" => system::yes,
    "false" => system::no,
    "echo" => text::echo,
    "printf" => text::printf,
    "cat" => text::cat,
    "head" => text::head,
    "tail" => text::tail,
    "wc" => words::wc,
    "sort" => words::sort,
    "uniq" => words::uniq,
    "tr" => words::tr,
    "cut" => words::cut,
    "grep" | "egrep" | "fgrep" => regex::grep,
    "sed" => regex::sed,
    "rev" => words::rev,
    "tac" => words::tac,
    "xargs" => words::xargs,
    "seq" => text::seq,
    "yes" => text::yes,
    "tee" => text::tee,
    "flood" => text::flood,
    "sleep" => system::sleep,
    "pause" => system::pause,
    "timeout" => system::timeout,
    "nohup" => system::nohup,
    "pwd" => system::pwd,
    "env" | "printenv" => system::env,
    "id" => system::id,
    "whoami" => system::whoami,
    "hostname" => system::hostname,
    "uname" => system::uname,
    "date" => system::date,
    "nproc" => system::nproc,
    "tty" => system::tty,
    "stty" => system::stty,
    "mount" => system::mount,
    "free" => system::free,
    "df" => system::df,
    "uptime" => system::uptime,
    "sync" => system::yes,
    "which" => system::which,
    "su" => system::su,
    "kill" => process::kill,
    "ps" => process::ps,
    "pidof" => process::pidof,
    "killall" => process::killall,
    "top" => process::ps,
    "test" | "[" => condition::test,
    "ls" => listing::ls,
    "stat" => listing::stat,
    "find" => listing::find,
    "du" => listing::du,
    "readlink" => listing::readlink,
    "realpath" => listing::realpath,
    "basename" => listing::basename,
    "dirname" => listing::dirname,
    "mkdir" => entries::mkdir,
    "rmdir" => entries::rmdir,
    "rm" => entries::rm,
    "touch" => entries::touch,
    "cp" => entries::cp,
    "mv" => entries::mv,
    "ln" => entries::ln,
    "chmod" => entries::chmod,
    "chown" | "chgrp" => entries::chown,
    "mknod" => entries::mknod,
    "mkfifo" => entries::mkfifo,
    "truncate" => entries::truncate,
    "mktemp" => entries::mktemp,
    "dd" => data::dd,
    "base64" => data::base64,
    "sha256sum" => data::sha256sum,
    "md5sum" | "sha1sum" => data::no_digest,
    "od" | "hexdump" | "xxd" => data::od,
    "cmp" | "diff" => data::cmp,
}

/// What a file is to `execve(2)`.
enum Executable {
    /// A program that is simulated, or would be one that is not.
    Binary,
    /// `#!`: interpreter and its argument.
    Script(String, Option<String>),
}

fn look(sys: &Sys, path: &str) -> Result<Executable, Errno> {
    use super::files::tree::{Content, Kind};
    let stat = sys.stat(path, true)?;
    if stat.node.is_directory() {
        return Err(Errno::ACCESS);
    }
    let kernel = sys.kernel();
    let who = kernel
        .processes
        .get(&sys.pid)
        .map(|process| process.who.clone())
        .unwrap_or_default();
    kernel.mounts.with(stat.place, |node| {
        who.may(node, 1)?;
        match &node.kind {
            Kind::Regular(Content::Untold(_)) => Ok(Executable::Binary),
            Kind::Regular(Content::Bytes(bytes)) if bytes.starts_with(b"\x7fELF") => {
                Ok(Executable::Binary)
            }
            Kind::Regular(Content::Bytes(bytes)) => {
                let line = bytes
                    .strip_prefix(b"#!")
                    .and_then(|rest| rest.split(|byte| *byte == b'\n').next())
                    .ok_or(Errno::NOEXEC)?;
                let line = String::from_utf8_lossy(line);
                let mut words = line.trim().splitn(2, char::is_whitespace);
                let interpreter = words.next().filter(|word| !word.is_empty());
                Ok(Executable::Script(
                    interpreter.ok_or(Errno::NOEXEC)?.to_owned(),
                    words.next().map(|word| word.trim().to_owned()),
                ))
            }
            _ => Err(Errno::ACCESS),
        }
    })
}

/// execve(2): the process becomes what the file at `path` is; to be awaited to
/// its end.
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOEXEC`, ...: it stays what it was.
pub fn load<'a>(
    sys: &'a Sys,
    path: &'a str,
    argv: Vec<String>,
    environment: Vec<String>,
) -> Pin<Box<dyn Future<Output = Result<Task, Errno>> + Send + 'a>> {
    Box::pin(async move {
        sys.step().await;
        load_now(sys, path, argv, environment)
    })
}

/// As [`load`], at once.
///
/// # Errors
/// The same.
pub fn load_now(
    sys: &Sys,
    path: &str,
    mut argv: Vec<String>,
    environment: Vec<String>,
) -> Result<Task, Errno> {
    let mut path = path.to_owned();
    for _ in 0..DEEPEST {
        match look(sys, &path)? {
            Executable::Binary => {
                let program = simulated(&path, &mut argv);
                sys.become_program(argv.clone(), environment);
                // What a shell put aside is not handed on.
                let high: Vec<u32> =
                    sys.own(|process| process.descriptors.range(10..).map(|(fd, _)| *fd).collect());
                for fd in high {
                    sys.close(fd);
                }
                let call = Call {
                    sys: sys.clone(),
                    argv,
                };
                return Ok(program(call));
            }
            Executable::Script(interpreter, argument) => {
                let mut new = vec![interpreter.clone()];
                new.extend(argument);
                new.push(path);
                new.extend(argv.drain(..).skip(1));
                argv = new;
                path = interpreter;
            }
        }
    }
    Err(Errno::LOOP)
}

/// The program of a path; `busybox NAME` is NAME.
fn simulated(path: &str, argv: &mut Vec<String>) -> Program {
    let mut name = path.rsplit('/').next().unwrap_or("").to_owned();
    if name == "busybox" && argv.len() > 1 {
        argv.remove(0);
        name.clone_from(&argv[0]);
    }
    find(&name).unwrap_or(|call| {
        Box::pin(async move {
            let line = format!("{}: applet not found\n", call.name());
            let _ = call.sys.write(2, line.as_bytes()).await;
            127
        })
    })
}
