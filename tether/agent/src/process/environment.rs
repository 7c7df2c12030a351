//! A process's environment: the host's, and what is added where it is silent.

use super::path;
use crate::prelude::*;
use tether_wire::message::{ProcessSpec, Stdio};

/// `NAME=value` strings, complete.
pub fn complete(spec: &ProcessSpec, home: &str, hostname: &str) -> Vec<String> {
    let mut environment = spec.env.clone();
    let mut default = |name: &str, value: &str| {
        if value_of(&spec.env, name).is_none() {
            environment.push(format!("{name}={value}"));
        }
    };
    default("PATH", path::DEFAULT);
    default("HOSTNAME", hostname);
    if matches!(spec.stdio, Stdio::Terminal { .. }) {
        default("TERM", "xterm");
    }
    default("HOME", home);
    environment
}

/// The last value of a variable, as `getenv(3)` after `putenv(3)` would see it.
pub fn value_of<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tether_wire::message::{PidNamespace, Role, TerminalSize, User};

    fn spec(env: &[&str], stdio: Stdio) -> ProcessSpec {
        ProcessSpec {
            argv: vec!["sh".to_owned()],
            env: env.iter().map(|&variable| variable.to_owned()).collect(),
            cwd: "/".to_owned(),
            user: User::default(),
            stdio,
            limits: Vec::new(),
            role: Role::Main {
                pid_namespace: PidNamespace::Private,
                init: false,
            },
        }
    }

    #[test]
    fn only_what_is_absent_is_added() {
        let pipes = Stdio::Pipes { stdin: false };
        assert_eq!(
            complete(
                &spec(&["PATH=/x", "HOME=", "PATHS=1"], pipes),
                "/root",
                "box"
            ),
            ["PATH=/x", "HOME=", "PATHS=1", "HOSTNAME=box"]
        );
        assert_eq!(
            complete(&spec(&[], pipes), "/root", "box"),
            [
                &format!("PATH={}", path::DEFAULT),
                "HOSTNAME=box",
                "HOME=/root"
            ]
        );
    }

    #[test]
    fn a_terminal_has_a_type() {
        let size = TerminalSize {
            rows: 0,
            columns: 0,
        };
        let terminal = Stdio::Terminal { size, stdin: true };
        assert!(complete(&spec(&[], terminal), "/", "h").contains(&"TERM=xterm".to_owned()));
        let own = complete(&spec(&["TERM=vt100"], terminal), "/", "h");
        assert_eq!(value_of(&own, "TERM"), Some("vt100"));
    }
}
