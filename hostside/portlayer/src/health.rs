//! Health checks: an exec every so often, and what its status says.

use std::sync::Arc;
use std::time::SystemTime;

use tether_link::{LinkError, OutputReader, RunningProcess};
use tether_wire::message::{ExitStatus, Role, SignalTarget};
use tokio::time::{Instant, sleep, timeout};

use crate::cell::{Cell, Run};
use crate::container::{Health, HealthResult, HealthStatus, State};
use crate::event::Action;
use crate::layer::Layer;
use crate::machine;
use crate::spec::{HealthCheck, ProcessSpec, Stdin, Stdio};
use crate::task::subject;

/// Results kept.
const RESULTS: usize = 5;
/// Bytes of a check's output kept.
const OUTPUT: usize = 4096;
const SIGKILL: u8 = 9;

/// What is said before the first check.
pub(crate) fn unknown() -> Health {
    Health {
        status: HealthStatus::Starting,
        failing_streak: 0,
        log: Vec::new(),
    }
}

/// Checks until it is dropped. `like` says as whom and where the checks run.
pub(crate) async fn watch(
    layer: Arc<Layer>,
    cell: Arc<Cell>,
    run: Arc<Run>,
    check: HealthCheck,
    like: ProcessSpec,
) {
    let spec = ProcessSpec {
        argv: check.argv.clone(),
        stdio: Stdio::Pipes,
        stdin: Stdin::Closed,
        ..like
    };
    let begun = Instant::now();
    loop {
        let starting = health(&cell).is_some_and(|health| health.status == HealthStatus::Starting);
        let in_start_period = begun.elapsed() < check.start_period;
        sleep(if starting && in_start_period {
            check.start_interval
        } else {
            check.interval
        })
        .await;
        if !matches!(cell.view.borrow().container.state, State::Running(_)) {
            // A paused VM cannot answer.
            continue;
        }
        let start = SystemTime::now();
        let (status, output) = probe(&run, &spec, &check).await;
        let result = HealthResult {
            start,
            end: SystemTime::now().max(start),
            status,
            output,
        };
        let counts = begun.elapsed() >= check.start_period;
        let Some(before) = health(&cell) else { return };
        let after = judge(&before, result, counts, check.retries.get());
        let changed = (after.status != before.status).then_some(after.status);
        cell.view.send_modify(|view| {
            if let State::Running(run) | State::Paused(run) = &mut view.container.state {
                run.health = Some(after);
            }
        });
        if let Some(status) = changed {
            layer.emit(subject(&cell), Action::HealthStatus { status });
        }
    }
}

fn health(cell: &Cell) -> Option<Health> {
    match &cell.view.borrow().container.state {
        State::Running(run) | State::Paused(run) => run.health.clone(),
        _ => None,
    }
}

/// What a check's result makes of what was known. `counts` is whether failures count yet.
fn judge(before: &Health, result: HealthResult, counts: bool, retries: u32) -> Health {
    let mut after = before.clone();
    let well = result.status == 0;
    after.log.push(result);
    let surplus = after.log.len().saturating_sub(RESULTS);
    after.log.drain(..surplus);
    if well {
        after.status = HealthStatus::Healthy;
        after.failing_streak = 0;
    } else if counts || before.status != HealthStatus::Starting {
        after.failing_streak = after.failing_streak.saturating_add(1);
        if after.failing_streak >= retries {
            after.status = HealthStatus::Unhealthy;
        }
    }
    after
}

/// One check: its status and what it wrote.
async fn probe(run: &Run, spec: &ProcessSpec, check: &HealthCheck) -> (i32, String) {
    let number = run.process();
    let started = run
        .link
        .start(number, machine::process(spec, Role::Exec))
        .await;
    let process = match started {
        Ok(process) => process,
        Err(LinkError::Guest(error)) => {
            return (i32::from(error.kind.start_status()), error.message);
        }
        Err(error) => return (-1, error.to_string()),
    };
    let RunningProcess {
        stdout,
        stderr,
        control,
        ..
    } = process;
    let mut text = Vec::new();
    let ended = async {
        read(stdout, stderr, &mut text).await;
        control.wait().await
    };
    let ended = timeout(check.timeout, ended).await;
    let status = match ended {
        Ok(Ok(exit)) => i32::from(match exit.status {
            ExitStatus::Code(code) => code,
            signal @ ExitStatus::Signal(_) => signal.shell(),
        }),
        Ok(Err(_)) => -1,
        Err(_) => {
            text = format!(
                "Health check exceeded timeout ({} s)",
                check.timeout.as_secs_f64()
            )
            .into_bytes();
            drop(control.signal(SIGKILL, SignalTarget::Group));
            // What it is killed for is to end; its machine's end ends this, too.
            let _ = control.wait().await;
            -1
        }
    };
    drop(control.forget());
    (status, String::from_utf8_lossy(&text).into_owned())
}

/// Reads both streams to their ends and keeps the last bytes.
async fn read(mut stdout: OutputReader, mut stderr: OutputReader, text: &mut Vec<u8>) {
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let (chunk, reader, open) = tokio::select! {
            chunk = stdout.next(), if out_open => (chunk, &stdout, &mut out_open),
            chunk = stderr.next(), if err_open => (chunk, &stderr, &mut err_open),
        };
        match chunk {
            Ok(Some(chunk)) => {
                text.extend_from_slice(&chunk.data);
                let surplus = text.len().saturating_sub(OUTPUT);
                text.drain(..surplus);
                reader.stored(chunk.end());
            }
            Ok(None) | Err(_) => *open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: i32) -> HealthResult {
        HealthResult {
            start: SystemTime::UNIX_EPOCH,
            end: SystemTime::UNIX_EPOCH,
            status,
            output: String::new(),
        }
    }

    #[test]
    fn a_container_is_unhealthy_after_as_many_failures_as_are_allowed() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        // (status, counts) -> what is said then
        let steps = [
            (1, false, Starting, 0),
            (1, true, Starting, 1),
            (0, true, Healthy, 0),
            (1, true, Healthy, 1),
            (1, true, Healthy, 2),
            (1, true, Unhealthy, 3),
            (1, true, Unhealthy, 4),
            (0, true, Healthy, 0),
        ];
        let mut health = unknown();
        for (number, (status, counts, expected, streak)) in steps.into_iter().enumerate() {
            health = judge(&health, result(status), counts, 3);
            assert_eq!(
                (health.status, health.failing_streak),
                (expected, streak),
                "step {number}"
            );
            assert!(health.log.len() <= RESULTS);
        }
    }
}
