//! Starting a process: who, where, with what, and the errors that the real
//! tether gives (`process/launch.rs` of the agent).

use std::sync::{Arc, Mutex};

use tether_wire::message::{
    Error, ErrorKind, ExitStatus, PidNamespace, ProcessId, ProcessSpec, Role, Stdio,
};

use super::setup::{make_directory, system};
use super::streams::{Line, Streams};
use super::user;
use crate::fake::files::Errno;
use crate::fake::files::image::{GROUP, PASSWD};
use crate::fake::files::mounts::Credentials;
use crate::fake::files::tree::{Content, Kind};
use crate::fake::kernel::sys::{Patience, Sys, Waited};
use crate::fake::kernel::terminal::Terminal;
use crate::fake::kernel::{Birth, Disposition, Handle, Kernel, Pid, Task, signal};
use crate::fake::{lock, programs};

/// What a process without `PATH` gets.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that runs.
#[derive(Debug)]
pub struct Launched {
    /// Its pid in the machine's own namespace.
    pub machine_pid: u32,
    /// Tether's ends of its streams.
    pub streams: Streams,
}

/// The last value of a variable.
fn value_of<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

fn complete(spec: &ProcessSpec, home: &str, hostname: &str) -> Vec<String> {
    let mut environment = spec.env.clone();
    let mut default = |name: &str, value: &str| {
        if value_of(&spec.env, name).is_none() {
            environment.push(format!("{name}={value}"));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOSTNAME", hostname);
    if matches!(spec.stdio, Stdio::Terminal { .. }) {
        default("TERM", "xterm");
    }
    default("HOME", home);
    environment
}

fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
        .collect()
}

/// A small file of the container; `untold` where the image does not tell it.
fn text_of(kernel: &Kernel, path: &str, untold: &str) -> String {
    let root = kernel.mounts.root();
    let who = Credentials::default();
    let node = kernel
        .mounts
        .find(root, path.as_bytes(), &who, true)
        .and_then(|place| kernel.mounts.node(place));
    match node.map(|node| node.kind) {
        Ok(Kind::Regular(Content::Bytes(bytes))) => String::from_utf8_lossy(&bytes).into_owned(),
        Ok(Kind::Regular(Content::Untold(_))) => untold.to_owned(),
        _ => String::new(),
    }
}

/// Numbers of a user of the container.
///
/// # Errors
/// `Invalid` for a name that is not there.
pub fn resolve_user(
    kernel: &Kernel,
    wanted: &tether_wire::message::User,
) -> Result<user::Resolved, Error> {
    let passwd = text_of(kernel, "/etc/passwd", PASSWD);
    let group = text_of(kernel, "/etc/group", GROUP);
    user::resolve(wanted, &passwd, &group)
}

/// Starts a process.
///
/// # Errors
/// Those of the real tether: kinds and sentences.
pub fn start(
    shared: &Arc<Mutex<Kernel>>,
    process: ProcessId,
    spec: &ProcessSpec,
) -> Result<Launched, Error> {
    let mut kernel = lock(shared);
    match (spec.role, kernel.main()) {
        (Role::Main { .. }, Some(_)) => {
            let message = "the container already has a main process";
            return Err(Error::new(ErrorKind::Exists, message));
        }
        (Role::Exec, None) => {
            let message = "the container's main process does not run";
            return Err(Error::new(ErrorKind::Busy, message));
        }
        _ => {}
    }
    let resolved = resolve_user(&kernel, &spec.user)?;
    let directory = match spec.cwd.as_str() {
        "" => "/",
        path if path.starts_with('/') => path,
        path => {
            let message = format!("the working directory {path:?} is not absolute");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    };
    let cwd = make_directory(&mut kernel, directory)?;
    let environment = complete(spec, &resolved.home, &kernel.hostname);
    let program = spec
        .argv
        .first()
        .filter(|program| !program.is_empty())
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "no program is named"))?;
    for text in spec.argv.iter().chain(&environment) {
        if text.contains('\0') {
            let message = format!("{text:?} contains a zero byte");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    if let Some(limit) = spec.limits.iter().find(|limit| limit.resource > 15) {
        let message = format!("there is no resource limit {}", limit.resource);
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let may_enter = kernel.mounts.with(cwd, |node| resolved.who.may(node, 1));
    may_enter.map_err(|errno| {
        let what = format!("entering the working directory {directory}");
        system(ErrorKind::NotExecutable, what, errno)
    })?;
    let init = match spec.role {
        Role::Main {
            pid_namespace,
            init,
        } => {
            kernel.begin_namespace(pid_namespace == PidNamespace::Private);
            init
        }
        Role::Exec => false,
    };
    let mut birth = Birth {
        parent: 0,
        wire: process,
        argv: vec!["init".into()],
        environment: environment.clone(),
        who: Credentials::default(),
        cwd,
    };
    let supervisor = init.then(|| kernel.bear(birth_of(&birth)));
    birth.parent = supervisor.unwrap_or(0);
    birth.argv.clone_from(&spec.argv);
    birth.who = resolved.who;
    let pid = kernel.bear(birth);
    let streams = connect(&mut kernel, pid, spec.stdio);
    if let Some(own) = kernel.processes.get_mut(&pid) {
        own.limits = spec
            .limits
            .iter()
            .map(|limit| (limit.resource, (limit.soft, limit.hard)))
            .collect();
    }
    drop(kernel);
    let sys = Sys::new(pid, shared.clone());
    let search = value_of(&environment, "PATH").unwrap_or(DEFAULT_PATH);
    let task = load(&sys, &candidates(program, search), &spec.argv, &environment);
    let mut kernel = lock(shared);
    let task = match task {
        Ok(task) => task,
        Err(errno) => {
            for failed in [Some(pid), supervisor].into_iter().flatten() {
                kernel.exit(failed, ExitStatus::Code(127));
                kernel.processes.remove(&failed);
            }
            streams.release(&mut kernel);
            return Err(explain(program, errno));
        }
    };
    kernel.run(pid, task);
    let leader = supervisor.unwrap_or(pid);
    if let Some(supervisor) = supervisor {
        supervise(&mut kernel, shared, supervisor, pid);
    }
    kernel.set_leader(process, leader);
    if matches!(spec.role, Role::Main { .. }) {
        kernel.set_main(leader);
    }
    let machine_pid = kernel
        .processes
        .get(&leader)
        .map_or(0, |process| process.machine_pid);
    Ok(Launched {
        machine_pid,
        streams,
    })
}

fn birth_of(birth: &Birth) -> Birth {
    Birth {
        parent: birth.parent,
        wire: birth.wire,
        argv: birth.argv.clone(),
        environment: Vec::new(),
        who: birth.who.clone(),
        cwd: birth.cwd,
    }
}

/// The first of these files that can be run.
fn load(
    sys: &Sys,
    paths: &[String],
    argv: &[String],
    environment: &[String],
) -> Result<Task, Errno> {
    let mut refused = Errno::NOENT;
    for path in paths {
        match programs::load_now(sys, path, argv.to_vec(), environment.to_vec()) {
            Ok(task) => return Ok(task),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::ACCESS) => refused = Errno::ACCESS,
            Err(errno) => return Err(errno),
        }
    }
    Err(refused)
}

fn explain(program: &str, errno: Errno) -> Error {
    if errno == Errno::NOENT && !program.contains('/') {
        return Error {
            kind: ErrorKind::NotFound,
            errno: u16::try_from(errno.raw_os_error()).unwrap_or(0),
            message: format!("exec: {program:?}: executable file not found in $PATH"),
        };
    }
    let kind = match errno {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::ACCESS
        | Errno::NOEXEC
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::PERM
        | Errno::LOOP => ErrorKind::NotExecutable,
        _ => ErrorKind::System,
    };
    system(kind, format!("exec: {program:?}"), errno)
}

/// Gives a process its descriptors 0, 1 and 2.
pub fn connect(kernel: &mut Kernel, pid: Pid, stdio: Stdio) -> Streams {
    let mut files = Vec::new();
    let streams = match stdio {
        Stdio::Pipes { stdin } => {
            let input = stdin.then(|| {
                let pipe = kernel.pipe();
                kernel.hold_pipe(pipe, false);
                files.push(kernel.describe(Handle::Reader(pipe)));
                pipe
            });
            if input.is_none() {
                files.push(kernel.describe(Handle::Null));
            }
            let mut output = || {
                let pipe = kernel.pipe();
                kernel.hold_pipe(pipe, true);
                files.push(kernel.describe(Handle::Writer(pipe)));
                Some(pipe)
            };
            Streams::Pipes {
                stdin: input,
                stdout: output(),
                stderr: output(),
            }
        }
        Stdio::Terminal { size, stdin } => {
            let mut terminal = Terminal::new(size.rows, size.columns);
            terminal.foreground = pid;
            let number = kernel.make_terminal(terminal);
            let file = kernel.describe(Handle::Terminal(number));
            files.push(file);
            for _ in 0..2 {
                kernel.hold(file);
                files.push(file);
            }
            if let Some(process) = kernel.processes.get_mut(&pid) {
                process.terminal = Some(number);
            }
            Streams::Terminal {
                number: Some(number),
                line: if stdin { Line::Start } else { Line::Ended },
            }
        }
    };
    if let Some(process) = kernel.processes.get_mut(&pid) {
        process.descriptors = (0..).zip(files).collect();
    }
    streams
}

/// The small init of `--init`: forwards signals, reaps, ends as the program
/// ended.
fn supervise(kernel: &mut Kernel, shared: &Arc<Mutex<Kernel>>, init: Pid, program: Pid) {
    let descriptors = kernel
        .processes
        .get(&program)
        .map(|process| process.descriptors.clone())
        .unwrap_or_default();
    // Descriptors 1 and 2 stay, for those who write to /proc/1/fd/1.
    let outputs: std::collections::BTreeMap<u32, _> = descriptors
        .into_iter()
        .filter(|(fd, _)| matches!(fd, 1 | 2))
        .collect();
    for file in outputs.values() {
        kernel.hold(*file);
    }
    if let Some(process) = kernel.processes.get_mut(&init) {
        process.descriptors = outputs;
        process.dispositions = (1..=64)
            .filter(|number| !matches!(*number, signal::KILL | signal::STOP))
            .map(|number| (number, Disposition::Handle))
            .collect();
    }
    let sys = Sys::new(init, shared.clone());
    kernel.run(
        init,
        Box::pin(async move {
            loop {
                while let Some(number) = sys.take_signal() {
                    if number != signal::CHLD {
                        let _ = sys.kill(i64::from(program), number);
                    }
                }
                match sys.wait(None, false, Patience::UntilSignal).await {
                    Ok(Waited::Ended(ended, status)) if ended == program => return status.shell(),
                    Ok(_) => {}
                    Err(Errno::INTR) => {}
                    Err(_) => return 0,
                }
            }
        }),
    );
}

/// What tether runs for itself, as root at the container's root: its output is
/// its exit code.
pub fn start_hidden(
    shared: &Arc<Mutex<Kernel>>,
    process: ProcessId,
    stdin: bool,
    program: impl FnOnce(Sys) -> Task,
) -> Launched {
    let mut kernel = lock(shared);
    let cwd = kernel.mounts.root();
    let pid = kernel.bear_hidden(Birth {
        parent: 0,
        wire: process,
        argv: vec!["tether".into()],
        environment: Vec::new(),
        who: Credentials::default(),
        cwd,
    });
    let streams = connect(&mut kernel, pid, Stdio::Pipes { stdin });
    kernel.set_leader(process, pid);
    let machine_pid = kernel
        .processes
        .get(&pid)
        .map_or(0, |process| process.machine_pid);
    drop(kernel);
    let task = program(Sys::new(pid, shared.clone()));
    lock(shared).run(pid, task);
    Launched {
        machine_pid,
        streams,
    }
}
