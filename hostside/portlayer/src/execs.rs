//! Execs: processes beside the main one, from creation to their status.
//!
//! What an exec is, and which process of the guest it became, lies in a small file beside the container's
//! disk, so that its status is known also when the controller was killed while it ran.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tether_link::{LinkError, Resumed, RunningProcess};
use tether_wire::message::{Output, ProcessId, Role};

use crate::boot;
use crate::cell::{Cell, ExecFiles, Run};
use crate::container::State;
use crate::error::{Error, WrongState};
use crate::event::Action;
use crate::exec::{Exec, ExecState};
use crate::hub::Hub;
use crate::identity::ExecId;
use crate::layer::Layer;
use crate::spec::{ProcessSpec, Stdin, Stdio, TerminalSize};
use crate::stream::{Attachment, Piece, Wanted};
use crate::task::subject;
use crate::{attend, machine};

/// The status of a process that was lost with its machine.
const LOST: u8 = 137;
/// Ended execs that are kept to be asked about, by container.
const KEPT: usize = 256;

/// An exec's file.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    exec: Exec,
    /// The guest's process, once started.
    process: Option<u32>,
}

/// Makes an exec of a running container.
pub(crate) fn create(
    layer: &Arc<Layer>,
    cell: &Arc<Cell>,
    process: ProcessSpec,
    endpoint: serde_json::Value,
) -> Result<ExecId, Error> {
    running(cell)?;
    if process.argv.is_empty() {
        return Err(Error::Invalid("No exec command specified".to_owned()));
    }
    let id = ExecId::random().map_err(Error::Random)?;
    let exec = Exec {
        id,
        container: cell.id,
        process,
        state: ExecState::Created,
        endpoint,
    };
    write(cell, &exec, None)?;
    let command = command(&exec.process);
    {
        let mut execs = cell.execs();
        prune(cell, &mut execs);
        execs.insert(id, exec);
    }
    layer.emit(subject(cell), Action::ExecCreate { exec: id, command });
    Ok(id)
}

/// Starts one. What it writes goes to the attachment, or nowhere.
pub(crate) async fn start(
    layer: &Arc<Layer>,
    cell: &Arc<Cell>,
    id: ExecId,
    wanted: Option<Wanted>,
    size: Option<TerminalSize>,
) -> Result<Option<Attachment>, Error> {
    let run = running(cell)?;
    let mut process = {
        let mut execs = cell.execs();
        let exec = execs.get_mut(&id).ok_or_else(|| no_such(&id))?;
        if exec.state != ExecState::Created {
            return Err(WrongState::ExecStarted(id).into());
        }
        // Nobody else starts it.
        exec.state = ExecState::Running { pid: 0 };
        exec.process.clone()
    };
    if let (Some(size), Stdio::Terminal(_)) = (size, process.stdio) {
        process.stdio = Stdio::Terminal(size);
    }
    if !wanted.is_some_and(|wanted| wanted.stdin) {
        process.stdin = Stdin::Closed;
    }
    let number = run.process();
    let exec = cell.execs().get(&id).cloned();
    if let Some(exec) = &exec {
        write(cell, exec, Some(number))?;
    }
    let started = run
        .link
        .start(number, machine::process(&process, Role::Exec))
        .await;
    let running = match started {
        Ok(running) => running,
        Err(error) => {
            let (status, message) = match &error {
                LinkError::Guest(error) => {
                    let failure = boot::not_started(error, &process.argv);
                    (failure.status, failure.message)
                }
                other => (boot::DAEMON_ERROR, boot::chain(other)),
            };
            finish(layer, cell, id, status);
            return Err(Error::ExecStart {
                id,
                status,
                message,
            });
        }
    };
    let pid = running.control.pid().unwrap_or(0);
    set_state(cell, id, ExecState::Running { pid });
    layer.emit(
        subject(cell),
        Action::ExecStart {
            exec: id,
            command: command(&process),
        },
    );
    let stdin = match process.stdin {
        Stdin::Closed => Stdin::Closed,
        // Whoever leaves a terminal does not end it: the process goes on without them.
        _ if process.stdio.is_terminal() => Stdin::Open,
        // Whoever starts it is the only one to be attached, so its input ends with them.
        Stdin::Open | Stdin::Once => Stdin::Once,
    };
    Ok(watch(layer, cell, id, running, stdin, wanted))
}

/// Takes an exec's streams where they are wanted, and its end to the record.
fn watch(
    layer: &Arc<Layer>,
    cell: &Arc<Cell>,
    id: ExecId,
    process: RunningProcess,
    stdin: Stdin,
    wanted: Option<Wanted>,
) -> Option<Attachment> {
    let hub = Hub::new(stdin);
    let attachment = wanted.map(|wanted| hub.attach(wanted));
    let input = hub.take_input();
    cell.exec_controls().insert(id, process.control.clone());
    let (layer, cell) = (layer.clone(), cell.clone());
    layer.clone().spawn(async move {
        let feeding = async {
            match input {
                Some(pieces) if stdin != Stdin::Closed => {
                    attend::feed(pieces, process.stdin).await;
                }
                _ => {}
            }
            std::future::pending::<()>().await;
        };
        let status = async {
            if wanted.is_some() {
                deliver(&hub, process.stdout, process.stderr).await?;
            } else {
                process.stdout.discard();
                process.stderr.discard();
            }
            process.control.wait().await
        };
        let status = tokio::select! {
            exit = status => exit.map_or(LOST, |exit| exit.status.shell()),
            () = feeding => LOST,
        };
        cell.exec_controls().remove(&id);
        finish(&layer, &cell, id, status);
        drop(process.control.forget());
        // Now whoever was attached sees the end, and can ask for the status.
        hub.end();
    });
    attachment
}

async fn deliver(
    hub: &Hub,
    mut stdout: tether_link::OutputReader,
    mut stderr: tether_link::OutputReader,
) -> Result<(), LinkError> {
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let (output, chunk) = tokio::select! {
            chunk = stdout.next(), if out_open => (Output::Stdout, chunk?),
            chunk = stderr.next(), if err_open => (Output::Stderr, chunk?),
        };
        let (reader, open) = match output {
            Output::Stdout => (&stdout, &mut out_open),
            Output::Stderr => (&stderr, &mut err_open),
        };
        let Some(chunk) = chunk else {
            *open = false;
            continue;
        };
        let end = chunk.end();
        hub.publish(Piece {
            output,
            data: chunk.data,
        })
        .await;
        reader.stored(end);
    }
    Ok(())
}

/// Goes on with the processes that a former controller started. Their output has nobody to go to.
pub(crate) fn take_over(layer: &Arc<Layer>, cell: &Arc<Cell>, run: &Arc<Run>, resumed: &Resumed) {
    let known = written(&cell.directory);
    for state in &resumed.processes {
        if state.process == ProcessId::MAIN {
            continue;
        }
        let Some(process) = run.link.attach(state.process) else {
            continue;
        };
        let exec = known
            .iter()
            .find(|written| written.process == Some(state.process.0));
        match exec {
            Some(written) => {
                let id = written.exec.id;
                let pid = process.control.pid().unwrap_or(0);
                set_state(cell, id, ExecState::Running { pid });
                watch(layer, cell, id, process, Stdin::Closed, None);
            }
            None => {
                // A health check's, as like as not.
                layer.spawn(async move {
                    process.stdout.discard();
                    process.stderr.discard();
                    if process.control.wait().await.is_ok() {
                        drop(process.control.forget());
                    }
                });
            }
        }
    }
}

/// What is known of a container's execs from before; those that ran and are not taken over are lost.
pub(crate) fn load(cell: &Cell) {
    let mut execs = cell.execs();
    for written in written(&cell.directory) {
        let mut exec = written.exec;
        if matches!(exec.state, ExecState::Running { .. }) {
            exec.state = ExecState::Ended { status: LOST };
        }
        execs.insert(exec.id, exec);
    }
}

/// Changes the size of a running exec's terminal.
pub(crate) async fn resize(cell: &Cell, id: &ExecId, size: TerminalSize) -> Result<(), Error> {
    let control = cell.exec_controls().get(id).cloned();
    let control = control.ok_or(WrongState::ExecNotRunning(*id))?;
    let resized = control.resize(size).await;
    resized.map_err(|source| Error::Guest {
        id: cell.id,
        source,
    })
}

pub(crate) fn no_such(id: &ExecId) -> Error {
    Error::NoSuchExec(id.to_string())
}

/// The run of a container in which a process can be started.
///
/// # Errors
/// [`WrongState`].
pub(crate) fn running(cell: &Cell) -> Result<Arc<Run>, Error> {
    let not = match &cell.view.borrow().container.state {
        State::Running(_) => None,
        State::Paused(_) => Some(WrongState::Paused(cell.id)),
        State::Restarting { .. } => Some(WrongState::Restarting(cell.id)),
        _ => Some(WrongState::NotRunning(cell.id)),
    };
    match (not, cell.run()) {
        (None, Some(run)) => Ok(run),
        (not, _) => Err(not.unwrap_or(WrongState::NotRunning(cell.id)).into()),
    }
}

fn finish(layer: &Layer, cell: &Cell, id: ExecId, status: u8) {
    set_state(cell, id, ExecState::Ended { status });
    layer.emit(subject(cell), Action::ExecDie { exec: id, status });
}

fn set_state(cell: &Cell, id: ExecId, state: ExecState) {
    let exec = {
        let mut execs = cell.execs();
        let Some(exec) = execs.get_mut(&id) else {
            return;
        };
        exec.state = state;
        exec.clone()
    };
    // While it runs its file says which process it is; that does not change.
    if matches!(state, ExecState::Ended { .. })
        && let Err(error) = write(cell, &exec, None)
    {
        tracing::warn!(exec = %id, error = boot::chain(&error), "its status is not written down");
    }
}

/// Makes room for one more.
fn prune(cell: &Cell, execs: &mut std::collections::BTreeMap<ExecId, Exec>) {
    let ended: Vec<ExecId> = execs
        .values()
        .filter(|exec| matches!(exec.state, ExecState::Ended { .. }))
        .map(|exec| exec.id)
        .collect();
    if ended.len() < KEPT {
        return;
    }
    for id in ended {
        execs.remove(&id);
        // A file that stays is read again, and that is all.
        let _ = fs::remove_file(file(&cell.directory, &id));
    }
}

fn command(process: &ProcessSpec) -> String {
    process.argv.join(" ")
}

fn file(directory: &Path, id: &ExecId) -> PathBuf {
    directory.join("execs").join(format!("{id}.json"))
}

fn write(cell: &Cell, exec: &Exec, process: Option<ProcessId>) -> Result<(), Error> {
    let path = file(&cell.directory, &exec.id);
    let written = Written {
        exec: exec.clone(),
        process: process.map(|process| process.0),
    };
    let files = cell.exec_files();
    if *files == ExecFiles::Gone {
        return Ok(());
    }
    let put = || {
        if let Some(parent) = path.parent() {
            match fs::create_dir(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let part = path.with_extension("part");
        fs::write(&part, serde_json::to_vec(&written)?)?;
        fs::rename(&part, &path)
    };
    put().map_err(Error::state("write", &path))
}

/// What is written down; a file that cannot be read is none.
fn written(directory: &Path) -> Vec<Written> {
    let read = |entry: io::Result<fs::DirEntry>| -> Option<Written> {
        let path = entry.ok()?.path();
        if path.extension()? != "json" {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    };
    let Ok(entries) = fs::read_dir(directory.join("execs")) else {
        return Vec::new();
    };
    entries.filter_map(read).collect()
}
