//! A container's state in Docker's words.

use std::time::SystemTime;

use portlayer::{Container, Health, HealthStatus, State};

use crate::time;

/// The state in one word (`State.Status`, Engine API 1.47).
pub fn state_word(state: &State) -> &'static str {
    match state {
        State::Created { .. } => "created",
        // Not running yet: `docker ps -a` of a container that is being started says the same.
        State::Starting => "created",
        State::Running(_) => "running",
        State::Paused(_) => "paused",
        State::Restarting { .. } => "restarting",
        State::Exited(_) => "exited",
        State::Removing => "removing",
    }
}

/// Health in one word.
pub fn health_word(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Starting => "starting",
        HealthStatus::Healthy => "healthy",
        HealthStatus::Unhealthy => "unhealthy",
    }
}

/// What its health check says, if it runs and has one.
pub fn health(container: &Container) -> Option<&Health> {
    match &container.state {
        State::Running(run) | State::Paused(run) => run.health.as_ref(),
        _ => None,
    }
}

/// The sentence `docker ps` shows (the Engine's `container/state.go`).
pub fn status(container: &Container, now: SystemTime) -> String {
    let ago = |time: SystemTime| time::human(now.duration_since(time).unwrap_or_default());
    match &container.state {
        State::Created { .. } | State::Starting => "Created".to_owned(),
        State::Running(run) => {
            let up = format!("Up {}", ago(run.started));
            match &run.health {
                None => up,
                Some(health) if health.status == HealthStatus::Starting => {
                    format!("{up} (health: starting)")
                }
                Some(health) => format!("{up} ({})", health_word(health.status)),
            }
        }
        State::Paused(run) => format!("Up {} (Paused)", ago(run.started)),
        State::Restarting { last } => {
            format!("Restarting ({}) {} ago", last.status, ago(last.finished))
        }
        State::Exited(ended) => format!("Exited ({}) {} ago", ended.status, ago(ended.finished)),
        State::Removing => "Removal In Progress".to_owned(),
    }
}

/// Program and arguments as one text; arguments with spaces are quoted.
pub fn command(argv: &[String]) -> String {
    let quoted = argv.iter().enumerate().map(|(place, word)| {
        if place > 0 && word.contains(' ') {
            format!("'{word}'")
        } else {
            word.clone()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_s_arguments_with_spaces_are_quoted() {
        let argv = ["sh", "-c", "echo a b"].map(str::to_owned);
        assert_eq!(command(&argv), "sh -c 'echo a b'");
    }
}
