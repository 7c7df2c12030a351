//! A container's configuration (`Config` of the Engine API), and how it takes from its image what it does
//! not say itself.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use portlayer::image::config::{Healthcheck, ProcessConfig};
use portlayer::spec::HealthCheck;

use crate::errors::ApiError;
use crate::json::{Empty, Words, engine_object};
use crate::signals;

engine_object! {
    /// What a container runs, whatever host it is on (`Config`, Engine API 1.47).
    Config {
        /// Host name; empty for the start of the id.
        hostname: String,
        /// NIS domain name.
        domainname: String,
        /// `USER[:GROUP]`.
        user: String,
        /// Whether the client meant to attach standard input.
        attach_stdin: bool,
        /// Whether the client meant to attach standard output.
        attach_stdout: bool,
        /// Whether the client meant to attach standard error.
        attach_stderr: bool,
        /// `PORT[/PROTOCOL]` of what it listens on.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        exposed_ports: BTreeMap<String, Empty>,
        /// Whether it has a terminal.
        tty: bool,
        /// Whether it has a standard input.
        open_stdin: bool,
        /// Whether that ends when the first client that was attached leaves.
        stdin_once: bool,
        /// `NAME=VALUE`, or `NAME` to take the image's away.
        env: Vec<String>,
        /// The command, or the entrypoint's arguments.
        cmd: Option<Words>,
        /// How to find out whether it is well.
        #[serde(skip_serializing_if = "Option::is_none")]
        healthcheck: Option<Healthcheck>,
        /// Windows only.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        args_escaped: bool,
        /// Its image as the user called it.
        image: String,
        /// Directories that are volumes of their own.
        volumes: Option<BTreeMap<String, Empty>>,
        /// Where the command starts.
        working_dir: String,
        /// The command that arguments are given to; `None` takes the image's, empty takes none.
        entrypoint: Option<Words>,
        /// Whether it has no network.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        network_disabled: bool,
        /// Link address; since 1.44 in the network's settings.
        #[serde(skip_serializing_if = "String::is_empty")]
        mac_address: String,
        /// For builders.
        on_build: Option<Vec<String>>,
        /// Free-form labels.
        labels: BTreeMap<String, String>,
        /// The signal that asks it to stop.
        #[serde(skip_serializing_if = "String::is_empty")]
        stop_signal: String,
        /// Seconds until it is killed then; -1 is for ever.
        #[serde(skip_serializing_if = "Option::is_none")]
        stop_timeout: Option<i64>,
        /// The shell for commands given as one text.
        #[serde(skip_serializing_if = "Option::is_none")]
        shell: Option<Words>,
    }
}

fn variable(entry: &str) -> &str {
    entry.split('=').next().unwrap_or_default()
}

impl Config {
    /// An image's configuration in the Engine API's form.
    pub fn of_image(image: &ProcessConfig) -> Self {
        let words = |list: &Vec<String>| (!list.is_empty()).then(|| Words(list.clone()));
        Self {
            user: image.user.clone(),
            exposed_ports: set(image.exposed_ports.iter()),
            env: image.env.clone(),
            cmd: words(&image.cmd),
            entrypoint: words(&image.entrypoint),
            volumes: (!image.volumes.is_empty()).then(|| set(image.volumes.iter())),
            working_dir: image.working_dir.clone(),
            labels: image.labels.clone(),
            stop_signal: image.stop_signal.clone(),
            healthcheck: image.healthcheck.clone(),
            shell: words(&image.shell),
            ..Self::default()
        }
    }

    /// The other way round, for an image to be made of a container.
    pub fn into_image(self) -> ProcessConfig {
        let words = |list: Option<Words>| list.map(|words| words.0).unwrap_or_default();
        ProcessConfig {
            user: self.user,
            exposed_ports: self.exposed_ports.into_keys().collect(),
            env: self.env,
            entrypoint: words(self.entrypoint),
            cmd: words(self.cmd),
            volumes: self.volumes.unwrap_or_default().into_keys().collect(),
            working_dir: self.working_dir,
            labels: self.labels,
            stop_signal: self.stop_signal,
            healthcheck: self.healthcheck,
            shell: words(self.shell),
        }
    }

    /// Takes from `base` (the image's, or a container's for `commit`) what is not said here. The rules are
    /// those of `merge` in the Engine's `daemon/commit.go`: a command that is given replaces the image's;
    /// an entrypoint that is given, even an empty one, takes the image's command away too.
    pub fn merge(&mut self, base: &Config) {
        if self.user.is_empty() {
            self.user.clone_from(&base.user);
        }
        for port in base.exposed_ports.keys() {
            self.exposed_ports.entry(port.clone()).or_insert(Empty);
        }
        for entry in &base.env {
            let known = |own: &String| variable(own) == variable(entry);
            if !self.env.iter().any(known) {
                self.env.push(entry.clone());
            }
        }
        for (name, value) in &base.labels {
            self.labels
                .entry(name.clone())
                .or_insert_with(|| value.clone());
        }
        let none = |words: &Option<Words>| words.as_ref().is_none_or(|words| words.0.is_empty());
        if none(&self.entrypoint) {
            if none(&self.cmd) {
                self.cmd.clone_from(&base.cmd);
            }
            if self.entrypoint.is_none() {
                self.entrypoint.clone_from(&base.entrypoint);
            }
        }
        match (&mut self.healthcheck, &base.healthcheck) {
            (_, None) => {}
            (own @ None, Some(image)) => *own = Some(image.clone()),
            (Some(own), Some(image)) => {
                if own.test.is_empty() {
                    own.test.clone_from(&image.test);
                }
                for (own, image) in [
                    (&mut own.interval, image.interval),
                    (&mut own.timeout, image.timeout),
                    (&mut own.start_period, image.start_period),
                    (&mut own.start_interval, image.start_interval),
                    (&mut own.retries, image.retries),
                ] {
                    if *own == 0 {
                        *own = image;
                    }
                }
            }
        }
        if self.working_dir.is_empty() {
            self.working_dir.clone_from(&base.working_dir);
        }
        if let Some(volumes) = &base.volumes {
            let own = self.volumes.get_or_insert_default();
            own.extend(volumes.keys().map(|path| (path.clone(), Empty)));
        }
        if self.stop_signal.is_empty() {
            self.stop_signal.clone_from(&base.stop_signal);
        }
        // `--entrypoint ""` of the command line client: no entrypoint at all.
        if self
            .entrypoint
            .as_ref()
            .is_some_and(|words| matches!(words.0.as_slice(), [only] if only.is_empty()))
        {
            self.entrypoint = None;
        }
    }

    /// Program and arguments.
    ///
    /// # Errors
    /// 400: there is no command.
    pub fn argv(&self) -> Result<Vec<String>, ApiError> {
        let words = |words: &Option<Words>| words.clone().unwrap_or_default().0;
        let mut argv = words(&self.entrypoint);
        argv.extend(words(&self.cmd));
        if argv.is_empty() {
            return Err(ApiError::invalid("no command specified"));
        }
        Ok(argv)
    }

    /// The environment as a process gets it: a bare name takes the variable away.
    pub fn environment(&self) -> Vec<String> {
        environment(&[], &self.env)
    }

    /// The working directory, absolute.
    ///
    /// # Errors
    /// 400: it is not.
    pub fn directory(&self) -> Result<String, ApiError> {
        if self.working_dir.is_empty() || self.working_dir.starts_with('/') {
            Ok(clean(&self.working_dir))
        } else {
            Err(ApiError::invalid(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                self.working_dir
            )))
        }
    }

    /// Refuses what no container can be (the Engine's `validateContainerConfig`).
    ///
    /// # Errors
    /// 400.
    pub fn check(&self) -> Result<(), ApiError> {
        if !self.stop_signal.is_empty() {
            signals::parse(&self.stop_signal)?;
        }
        for entry in &self.env {
            if variable(entry).is_empty() {
                return Err(ApiError::invalid(format!(
                    "invalid environment variable: {entry}"
                )));
            }
        }
        let Some(check) = &self.healthcheck else {
            return Ok(());
        };
        let times = [
            ("Interval", check.interval),
            ("Timeout", check.timeout),
            ("StartPeriod", check.start_period),
            ("StartInterval", check.start_interval),
        ];
        for (name, nanos) in times {
            if nanos != 0 && nanos < 1_000_000 {
                return Err(ApiError::invalid(format!(
                    "{name} in Healthcheck cannot be less than 1ms"
                )));
            }
        }
        if check.retries < 0 {
            return Err(ApiError::invalid(
                "Retries in Healthcheck cannot be negative",
            ));
        }
        Ok(())
    }

    /// The health check to be done, if one is.
    ///
    /// # Errors
    /// 400: the test is none of `NONE`, `CMD` and `CMD-SHELL`.
    pub fn health(&self) -> Result<Option<HealthCheck>, ApiError> {
        let Some(check) = &self.healthcheck else {
            return Ok(None);
        };
        let argv = match check.test.split_first() {
            None => return Ok(None),
            Some((kind, rest)) => match kind.as_str() {
                "NONE" => return Ok(None),
                "CMD" => rest.to_vec(),
                "CMD-SHELL" => {
                    let mut argv = match &self.shell {
                        Some(shell) if !shell.0.is_empty() => shell.0.clone(),
                        _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
                    };
                    argv.extend_from_slice(rest);
                    argv
                }
                other => {
                    return Err(ApiError::invalid(format!(
                        "Unknown healthcheck type '{other}' (expected 'CMD' or 'CMD-SHELL')"
                    )));
                }
            },
        };
        if argv.is_empty() {
            return Ok(None);
        }
        let time = |nanos: i64, default: u64| match u64::try_from(nanos) {
            Ok(0) | Err(_) => Duration::from_secs(default),
            Ok(nanos) => Duration::from_nanos(nanos),
        };
        let three = NonZeroU32::MIN.saturating_add(2);
        Ok(Some(HealthCheck {
            argv,
            interval: time(check.interval, 30),
            timeout: time(check.timeout, 30),
            start_period: time(check.start_period, 0),
            start_interval: time(check.start_interval, 5),
            retries: u32::try_from(check.retries)
                .ok()
                .and_then(NonZeroU32::new)
                .unwrap_or(three),
        }))
    }
}

fn set<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, Empty> {
    names.map(|name| (name.clone(), Empty)).collect()
}

/// `base` changed by `own`: a value replaces, a bare name takes away (the Engine's
/// `ReplaceOrAppendEnvValues`).
pub fn environment(base: &[String], own: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::with_capacity(base.len() + own.len());
    for entry in base.iter().chain(own) {
        let known = |other: &String| variable(other) == variable(entry);
        match (merged.iter().position(known), entry.contains('=')) {
            (Some(place), true) => merged[place].clone_from(entry),
            (Some(place), false) => {
                merged.remove(place);
            }
            (None, true) => merged.push(entry.clone()),
            (None, false) => {}
        }
    }
    merged
}

/// A path without `.`, `..` and doubled slashes (Go's `filepath.Clean` of an absolute path).
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
