//! Starting a process: everything that can be prepared is, then [`spawn`], then a pipe that tells
//! whether the program runs.

use super::stdio::{self, ChildPipes, Streams};
use super::{Launched, Main, Phase, Process, Processes, environment, path, user};
use crate::cgroup::Groups;
use crate::failure::{Context, Result, invalid, number, of_kind, system};
use crate::poller::{Poller, Token};
use crate::prelude::*;
use crate::root::{ROOT, Root};
use crate::sys::spawn::{Descriptors, Failure, Place, Plan, Stage, StringArray, spawn};
use crate::tree::Tree;
use alloc::ffi::CString;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::io::read;
use rustix::pipe::{PipeFlags, pipe_with};
use tether_wire::guest::Ticket;
use tether_wire::message::{
    Error, ErrorKind, PidNamespace, ProcessId, ProcessSpec, ResourceLimit, Role, Stdio,
};

/// A child on its way to `execve(2)`.
pub struct Launch {
    ticket: Ticket,
    status: OwnedFd,
    program: String,
    directory: String,
    limits: usize,
}

/// What of the machine a start needs.
pub struct Surroundings<'a> {
    /// The loop.
    pub poller: &'a Poller,
    /// Control groups.
    pub groups: &'a mut Groups,
    /// The container's root.
    pub root: &'a Root,
    /// For `HOSTNAME`.
    pub hostname: &'a str,
}

impl Processes {
    /// Starts a process; the answer is [`Processes::launched`]'s.
    ///
    /// # Errors
    /// Whatever is known before there is a child: no such user, no main process to join, no
    /// descriptors left.
    pub fn start(
        &mut self,
        ticket: Ticket,
        process: ProcessId,
        spec: &ProcessSpec,
        around: Surroundings<'_>,
    ) -> Result<()> {
        let (place, init) = self.place(spec.role)?;
        let joined = match &self.main {
            Some(main) if matches!(spec.role, Role::Exec) => Some(view_of(main.pid)?),
            _ => None,
        };
        let tree = joined.as_ref().unwrap_or(around.root.tree());
        let credentials = user::resolve(&spec.user, tree)?;
        let directory = directory(spec)?;
        match &joined {
            Some(tree) => drop(tree.make_directory(directory)?),
            None => drop(around.root.make_directory(directory)?),
        }
        let environment = environment::complete(spec, &credentials.home, around.hostname);
        let program = spec
            .argv
            .first()
            .filter(|program| !program.is_empty())
            .ok_or_else(|| invalid("no program is named"))?;
        let search = environment::value_of(&environment, "PATH").unwrap_or(path::DEFAULT);
        let programs = path::candidates(program, search);
        let (streams, descriptors, theirs) = streams(spec, around.root.tree())?;
        let (status, told) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context(|| "making a pipe")?;
        let plan = Plan {
            place,
            programs: c_strings(&programs)?,
            arguments: StringArray::new(c_strings(&spec.argv)?),
            environment: StringArray::new(c_strings(&environment)?),
            directory: c_string(directory)?,
            uid: credentials.uid,
            gid: credentials.gid,
            groups: credentials.groups,
            limits: limits(&spec.limits)?,
            descriptors,
            init,
            status: told.as_raw_fd(),
        };
        let launch = Launch {
            ticket,
            status,
            program: program.clone(),
            directory: directory.to_owned(),
            limits: spec.limits.len(),
        };
        around
            .poller
            .watch(&launch.status, EventFlags::IN, Token::Launch(process))?;
        let group = around.groups.take()?;
        let (pid, pidfd) = match spawn(&plan, group.directory()) {
            Ok(child) => child,
            Err(errno) => {
                around.groups.give_back(group);
                return Err(of_kind(kind_of_spawn(errno), "starting a process", errno));
            }
        };
        drop((told, theirs));
        // From here the reaper knows whose this pid is; SIGCHLD is read only after this returns.
        if let Role::Main { pid_namespace, .. } = spec.role {
            self.main = Some(Main {
                process,
                pid,
                pidfd,
                private_pids: pid_namespace == PidNamespace::Private,
            });
        }
        self.by_pid.insert(pid, process);
        let phase = Phase::Launching { pid, group, launch };
        self.by_id.insert(process, Process { phase, streams });
        Ok(())
    }

    fn place(&self, role: Role) -> Result<(Place, bool)> {
        match (role, &self.main) {
            (Role::Main { .. }, Some(_)) => Err(Error::new(
                ErrorKind::Exists,
                "the container already has a main process",
            )),
            (
                Role::Main {
                    pid_namespace,
                    init,
                },
                None,
            ) => Ok((
                Place::Main {
                    root: c_string(ROOT)?,
                    private_pids: pid_namespace == PidNamespace::Private,
                },
                init,
            )),
            (Role::Exec, None) => Err(Error::new(
                ErrorKind::Busy,
                "the container's main process does not run",
            )),
            (Role::Exec, Some(main)) if self.is_launching(main.process) => Err(Error::new(
                ErrorKind::Busy,
                "the container's main process is just starting",
            )),
            (Role::Exec, Some(main)) => Ok((
                Place::Join {
                    main: main.pidfd.as_raw_fd(),
                    home: main
                        .private_pids
                        .then(|| self.own_pid_namespace.as_raw_fd()),
                },
                false,
            )),
        }
    }

    fn is_launching(&self, process: ProcessId) -> bool {
        self.by_id
            .get(&process)
            .is_some_and(|process| matches!(process.phase, Phase::Launching { .. }))
    }

    /// Reads a launch's pipe: closed means the program runs, a failure that it never will. `None`
    /// when neither is known yet, or the process is not starting.
    pub fn launched(&mut self, poller: &Poller, process: ProcessId) -> Option<Launched> {
        let state = self.by_id.get_mut(&process)?;
        let Phase::Launching { pid, launch, .. } = &state.phase else {
            return None;
        };
        let (pid, ticket) = (*pid, launch.ticket);
        let mut bytes = [0; Failure::SIZE];
        let result = match read(&launch.status, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Ok(0) => state.streams.watch(poller, process),
            Ok(length) => Err(match Failure::decode(&bytes[..length]) {
                Some(failure) => explain(failure, launch),
                None => system("starting a process", Errno::IO),
            }),
            Err(errno) => Err(system("starting a process", errno)),
        };
        match result {
            Ok(()) => {
                let old = core::mem::replace(&mut state.phase, Phase::Ended);
                if let Phase::Launching { group, .. } = old {
                    state.phase = Phase::Running { pid, group };
                }
            }
            Err(_) => {
                self.by_pid.remove(&pid);
                self.end_main(process);
                if let Some(Process {
                    phase: Phase::Launching { group, .. },
                    ..
                }) = self.by_id.remove(&process)
                {
                    self.failed.push((pid, group));
                }
                // Dead already, but for a program that runs and cannot be watched.
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
        }
        Some(Launched {
            ticket,
            result: result.map(|()| pid as u32),
        })
    }
}

/// The container as its main process sees it, with what was mounted inside since.
fn view_of(main: i32) -> Result<Tree> {
    Tree::open(&format!("/proc/{main}/root")).map_err(|error| {
        of_kind(
            ErrorKind::Busy,
            "joining the main process",
            Errno::from_raw_os_error(i32::from(error.errno)),
        )
    })
}

fn directory(spec: &ProcessSpec) -> Result<&str> {
    match spec.cwd.as_str() {
        "" => Ok("/"),
        path if path.starts_with('/') => Ok(path),
        path => Err(invalid(format!(
            "the working directory {path:?} is not absolute"
        ))),
    }
}

fn streams(
    spec: &ProcessSpec,
    container: &Tree,
) -> Result<(Streams, Descriptors, Option<ChildPipes>)> {
    match spec.stdio {
        Stdio::Pipes { stdin } => {
            let (streams, theirs) = stdio::pipes(stdin)?;
            let descriptors = Descriptors::Given(theirs.numbers());
            Ok((streams, descriptors, Some(theirs)))
        }
        Stdio::Terminal { size, stdin } => {
            let (streams, number) = stdio::terminal(container, size, stdin)?;
            let descriptors = Descriptors::Terminal {
                path: c_string(&format!("/dev/pts/{number}"))?,
                console: matches!(spec.role, Role::Main { .. }),
            };
            Ok((streams, descriptors, None))
        }
    }
}

fn limits(wanted: &[ResourceLimit]) -> Result<Vec<(u8, [u64; 2])>> {
    wanted
        .iter()
        .map(|limit| {
            if limit.resource > 15 {
                Err(invalid(format!(
                    "there is no resource limit {}",
                    limit.resource
                )))
            } else {
                // u64::MAX is RLIM64_INFINITY (linux/resource.h).
                Ok((limit.resource, [limit.soft, limit.hard]))
            }
        })
        .collect()
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| invalid(format!("{text:?} contains a zero byte")))
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text)).collect()
}

/// A pid namespace whose first process is gone takes no more (pid_namespaces(7)).
fn kind_of_spawn(errno: Errno) -> ErrorKind {
    match errno {
        Errno::SRCH | Errno::NOMEM => ErrorKind::Busy,
        Errno::AGAIN => ErrorKind::Limit,
        _ => ErrorKind::System,
    }
}

fn explain(failure: Failure, launch: &Launch) -> Error {
    let Failure { stage, errno } = failure;
    let Launch {
        program, directory, ..
    } = launch;
    let say = |kind, what: String| of_kind(kind, what, errno);
    match stage {
        Stage::Execute => explain_execute(program, errno),
        Stage::WorkingDirectory => say(
            ErrorKind::NotExecutable,
            format!("entering the working directory {directory}"),
        ),
        Stage::Limit => say(
            ErrorKind::Invalid,
            format!("setting {} resource limits", launch.limits),
        ),
        Stage::Namespace => say(ErrorKind::Busy, "joining the container's namespaces".into()),
        Stage::Root => say(ErrorKind::System, "entering the container's root".into()),
        Stage::Mount => say(
            ErrorKind::System,
            "mounting proc, cgroup2 or the console in the container".into(),
        ),
        Stage::Terminal => say(ErrorKind::System, "opening the terminal".into()),
        Stage::Descriptors => say(
            ErrorKind::System,
            "placing standard input and output".into(),
        ),
        Stage::User => say(ErrorKind::System, "becoming the user".into()),
        Stage::Init => say(ErrorKind::Limit, "starting the program under init".into()),
    }
}

fn explain_execute(program: &str, errno: Errno) -> Error {
    if errno == Errno::NOENT && !program.contains('/') {
        return Error {
            kind: ErrorKind::NotFound,
            errno: number(errno),
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
        | Errno::LOOP
        | Errno::TXTBSY
        | Errno::LIBBAD => ErrorKind::NotExecutable,
        Errno::TOOBIG => ErrorKind::Limit,
        _ => ErrorKind::System,
    };
    of_kind(kind, format!("exec: {program:?}"), errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_to_execute_have_the_kinds_docker_tells_apart() {
        let check = |program: &str, errno: Errno, kind: ErrorKind, message: &str| {
            let error = explain_execute(program, errno);
            assert_eq!((error.kind, error.message.as_str()), (kind, message));
        };
        check(
            "foo",
            Errno::NOENT,
            ErrorKind::NotFound,
            "exec: \"foo\": executable file not found in $PATH",
        );
        check(
            "/bin/foo",
            Errno::NOENT,
            ErrorKind::NotFound,
            "exec: \"/bin/foo\": No such file or directory",
        );
        check(
            "/etc",
            Errno::ACCESS,
            ErrorKind::NotExecutable,
            "exec: \"/etc\": Permission denied",
        );
        check(
            "text",
            Errno::NOEXEC,
            ErrorKind::NotExecutable,
            "exec: \"text\": Exec format error",
        );
    }

    #[test]
    fn zero_bytes_and_unknown_limits_are_refused() {
        assert_eq!(c_string("a\0b").unwrap_err().kind, ErrorKind::Invalid);
        let limit = ResourceLimit {
            resource: 16,
            soft: 0,
            hard: 0,
        };
        assert!(limits(&[limit]).is_err());
    }
}
