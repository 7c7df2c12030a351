//! Health checks.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-health",
        "a check makes a container healthy and unhealthy, tells it as events and keeps what it said",
        checked,
    )
    .guests_too(),
    Case::new(
        "docker-health",
        "a check that takes too long fails",
        too_long,
    ),
    Case::new(
        "docker-health",
        "a container without a check, or with --no-healthcheck, has no health",
        without,
    ),
];

const CHECK: &[&str] = &[
    "--health-cmd",
    "echo checking; test -e /tmp/well",
    "--health-interval",
    "300ms",
    "--health-retries",
    "2",
    "--health-timeout",
    "20s",
];

fn checked(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut events = docker
        .cmd([
            "events",
            "--filter",
            "event=health_status",
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    docker.lasting("main", &[CHECK, &["--health-start-period", "60s"]].concat())?;
    assert_eq!(
        docker.inspect("main", "{{.State.Health.Status}}")?,
        "starting"
    );
    docker.ok(["exec", "main", "touch", "/tmp/well"])?;
    events.expect("health_status: healthy");
    assert_eq!(
        docker.inspect("main", "{{.State.Health.Status}}")?,
        "healthy"
    );
    assert!(docker.ok(["ps"])?.contains("(healthy)"));
    assert_eq!(
        docker
            .ok(["ps", "-q", "--filter", "health=healthy"])?
            .lines()
            .count(),
        1
    );
    docker.ok(["exec", "main", "rm", "/tmp/well"])?;
    events.expect("health_status: unhealthy");
    let streak = docker.inspect("main", "{{.State.Health.FailingStreak}}")?;
    assert!(streak.parse::<u32>()? >= 2, "{streak}");
    let log = docker.inspect(
        "main",
        "{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{end}}",
    )?;
    assert!(log.contains("1 checking"), "{log}");
    docker.ok(["stop", "main"])?;
    events.signal(rustix::process::Signal::INT)?;
    events.wait()?;
    docker.end()
}

fn too_long(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut events = docker
        .cmd([
            "events",
            "--filter",
            "event=health_status",
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    let flags = [
        "--health-cmd",
        "sleep 100",
        "--health-interval",
        "200ms",
        "--health-retries",
        "1",
        "--health-timeout",
        "300ms",
    ];
    docker.lasting("main", &flags)?;
    events.expect("health_status: unhealthy");
    let log = docker.inspect(
        "main",
        "{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}",
    )?;
    assert!(
        log.starts_with("-1 ") && log.contains("exceeded timeout"),
        "{log}"
    );
    events.signal(rustix::process::Signal::INT)?;
    events.wait()?;
    docker.end()
}

fn without(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("plain", &[])?;
    docker.lasting("never", &["--no-healthcheck"])?;
    for name in ["plain", "never"] {
        assert_eq!(docker.inspect(name, "{{json .State.Health}}")?, "null");
    }
    docker.ok([
        "create",
        "--name",
        "asked",
        "--health-cmd",
        "true",
        IMAGE,
        "true",
    ])?;
    assert_eq!(
        docker.inspect("asked", "{{json .Config.Healthcheck.Test}}")?,
        r#"["CMD-SHELL","true"]"#
    );
    docker.end()
}
