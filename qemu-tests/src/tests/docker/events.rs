//! What happens, told in order.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use rustix::process::Signal;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-events",
        "a container's life is told in order, while it happens and afterwards",
        life,
    )
    .guests_too(),
    Case::new(
        "docker-events",
        "events carry names, images, labels, signals and exit codes",
        attributes,
    ),
    Case::new("docker-events", "filters choose among them", filters),
    Case::new(
        "docker-events",
        "execs, attaching and images have theirs",
        others,
    ),
];

/// In the nanoseconds that `0s` would leave out.
fn now() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}.{:09}", now.as_secs(), now.subsec_nanos())
}

fn life(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut live = docker
        .cmd(["events", "--format", "{{.Type}} {{.Action}}"])
        .spawn()?;
    // Whether it listens shows by the first that comes.
    let made = docker.ok(["create", IMAGE, "true"])?;
    let mut number = 0;
    while !live.said_anything() {
        number += 1;
        docker.ok(["rename", &made, &format!("made-{number}")])?;
    }
    let id = docker.lasting("one", &[])?;
    docker.ok(["pause", "one"])?;
    docker.ok(["unpause", "one"])?;
    docker.ok(["rename", "one", "two"])?;
    docker.ok(["restart", "-t", "1", "two"])?;
    docker.ok(["kill", "two"])?;
    docker.ok(["wait", "two"])?;
    docker.ok(["rm", "two"])?;
    let expected = [
        "create", "start", "pause", "unpause", "rename", "kill", "die", "stop", "start", "restart",
        "kill", "die", "destroy",
    ];
    for action in expected {
        live.expect(&format!("container {action}\n"));
    }
    live.signal(Signal::INT)?;
    live.wait()?;
    let words = [
        "events",
        "--since",
        "0",
        "--until",
        &now(),
        "--filter",
        &format!("container={id}"),
        "--format",
        "{{.Action}} {{.TimeNano}}",
    ];
    let past = docker.ok(words)?;
    let past: Vec<(&str, &str)> = past
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let actions: Vec<&str> = past.iter().map(|(action, _)| *action).collect();
    assert_eq!(actions, expected);
    assert!(past.is_sorted_by(|a, b| a.1 < b.1), "{past:?}");
    docker.end()
}

fn attributes(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let flags = [
        "run", "--name", "one", "--label", "a=b", IMAGE, "sh", "-c", "exit 3",
    ];
    docker.done(flags)?.status(3);
    docker.lasting("two", &[])?;
    // To a first process that has no handler the kernel gives none but KILL.
    docker.ok(["kill", "-s", "USR1", "two"])?;
    docker.ok(["kill", "two"])?;
    docker.ok(["wait", "two"])?;
    let past = docker.ok([
        "events",
        "--since",
        "0",
        "--until",
        &now(),
        "--format",
        "{{json .}}",
    ])?;
    let find = |name: &str, action: &str| {
        let wanted = [
            format!("\"name\":\"{name}\""),
            format!("\"Action\":\"{action}\""),
        ];
        let found = past
            .lines()
            .find(|line| wanted.iter().all(|word| line.contains(word)));
        found
            .unwrap_or_else(|| panic!("no {action} of {name} in {past}"))
            .to_owned()
    };
    let die = find("one", "die");
    for word in [
        "\"exitCode\":\"3\"",
        "\"a\":\"b\"",
        "\"image\":\"sample/busybox\"",
        "\"execDuration\":",
        "\"Type\":\"container\"",
        "\"scope\":\"local\"",
    ] {
        assert!(die.contains(word), "no {word} in {die}");
    }
    assert!(find("two", "kill").contains("\"signal\":\"10\""));
    assert!(find("two", "die").contains("\"exitCode\":\"137\""));
    docker.end()
}

fn filters(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["run", "--name", "one", "--label", "kind=a", IMAGE, "true"])?;
    docker.ok(["run", "--name", "two", "--label", "kind=b", IMAGE, "true"])?;
    let count = |words: &[&str]| -> Result<Vec<String>> {
        let base = [
            "events",
            "--since",
            "0",
            "--until",
            &now(),
            "--format",
            "{{.Action}}",
        ];
        let filters = words.iter().flat_map(|word| ["--filter", word]);
        let said = docker.ok(base.into_iter().chain(filters))?;
        Ok(said.lines().map(str::to_owned).collect())
    };
    assert_eq!(count(&["event=die"])?.len(), 2);
    assert_eq!(count(&["event=die", "container=one"])?, ["die"]);
    assert_eq!(
        count(&["event=die", "event=start", "label=kind=b"])?,
        ["start", "die"]
    );
    assert_eq!(count(&["type=image", "event=die"])?.len(), 0);
    assert_eq!(count(&["image=sample/busybox", "event=create"])?.len(), 2);
    assert_eq!(count(&["container=nobody"])?.len(), 0);
    docker.end()
}

fn others(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("one", &[])?;
    docker
        .done(["exec", "one", "sh", "-c", "exit 2"])?
        .status(2);
    docker.ok(["top", "one"])?;
    docker.ok(["tag", IMAGE, "other/name:tag"])?;
    docker.ok(["rmi", "other/name:tag"])?;
    let past = docker.ok([
        "events",
        "--since",
        "0",
        "--until",
        &now(),
        "--format",
        "{{.Type}} {{.Action}}",
    ])?;
    let mut lines = past.lines();
    for wanted in [
        "container exec_create: sh -c exit 2",
        "container exec_start: sh -c exit 2",
        "container exec_die",
        "container top",
        "image tag",
        "image untag",
    ] {
        assert!(
            lines.any(|line| line == wanted),
            "no {wanted:?} in its place in {past}"
        );
    }
    docker.end()
}
