//! Restart policies, and what becomes of containers when the one that serves ends.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-restart",
        "on-failure starts it again at most so many times",
        on_failure,
    )
    .guests_too(),
    Case::new(
        "docker-restart",
        "on-failure leaves one that succeeded alone",
        success,
    ),
    Case::new(
        "docker-restart",
        "always starts it again until it is stopped",
        always,
    ),
    Case::new(
        "docker-restart",
        "a policy is changed by update, and not for one with --rm",
        update,
    ),
    Case::new(
        "docker-restart",
        "over a stop and start of vch serve containers run on, and policies are kept to",
        over_serving,
    )
    .vsphere_too()
    .guests_only()
    .guests(2)
    .minutes(5),
];

/// Until the container is not about to be started again.
fn settled(docker: &Docker<'_>, name: &str, wanted: &str) -> Result<()> {
    let mut events = docker
        .cmd([
            "events",
            "--since",
            "0",
            "--filter",
            "event=die",
            "--filter",
            &format!("container={name}"),
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    for _ in 0..wanted
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse::<u32>()?
        + 1
    {
        events.expect("die\n");
    }
    events.signal(rustix::process::Signal::INT)?;
    events.wait()?;
    docker.ok(["wait", name])?;
    assert_eq!(
        docker.inspect(name, "{{.RestartCount}} {{.State.Status}}")?,
        wanted
    );
    Ok(())
}

fn on_failure(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(
        &["--name", "fails", "--restart", "on-failure:2"],
        "echo try; exit 1",
    )?;
    settled(&docker, "fails", "2 exited")?;
    assert_eq!(docker.ok(["logs", &id])?, "try\ntry\ntry");
    assert_eq!(docker.inspect("fails", "{{.State.ExitCode}}")?, "1");
    docker.end()
}

fn success(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.detached(&["--name", "well", "--restart", "on-failure:2"], "exit 0")?;
    docker.ok(["wait", "well"])?;
    settled(&docker, "well", "0 exited")?;
    docker.end()
}

fn always(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut events = docker
        .cmd([
            "events",
            "--filter",
            "event=start",
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    docker.detached(&["--name", "ends", "--restart", "always"], "exit 0")?;
    for _ in 0..4 {
        events.expect("start\n");
    }
    docker.ok(["stop", "ends"])?;
    assert_eq!(docker.inspect("ends", "{{.State.Status}}")?, "exited");
    let count = docker.inspect("ends", "{{.RestartCount}}")?;
    assert!(count.parse::<u32>()? >= 3, "{count}");
    events.signal(rustix::process::Signal::INT)?;
    events.wait()?;
    docker.end()
}

fn update(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    docker.ok(["update", "--restart", "on-failure:3", "main"])?;
    let policy =
        "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(docker.inspect("main", policy)?, "on-failure 3");
    docker.lasting("passing", &["--rm"])?;
    docker
        .done(["update", "--restart", "always", "passing"])?
        .status(1)
        .stderr_has(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        );
    docker
        .done(["run", "--rm", "--restart", "always", IMAGE, "true"])?
        .stderr_has("--restart and --rm");
    docker.end()
}

fn over_serving(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
    let runs = docker.detached(&["--name", "runs"], script)?;
    docker.lasting("stopped", &["--restart", "unless-stopped"])?;
    docker.ok(["stop", "stopped"])?;
    docker.lasting("always", &["--restart", "always"])?;
    docker.ok(["stop", "always"])?;
    let pid = docker.inspect("runs", "{{.State.Pid}} {{.State.StartedAt}}")?;
    docker.stop_serving()?;
    docker.start_serving()?;
    assert_eq!(
        docker.inspect("runs", "{{.State.Pid}} {{.State.StartedAt}}")?,
        pid
    );
    let mut follow = docker.cmd(["logs", "-f", &runs]).spawn()?;
    let next = docker.ok(["logs", "--tail", "1", &runs])?.parse::<u32>()? + 3;
    follow.expect(&format!("\n{next}\n"));
    docker.ok(["kill", "runs"])?;
    let said = follow.wait()?.text();
    for (number, line) in said.lines().enumerate() {
        assert_eq!(line, (number + 1).to_string());
    }
    assert_eq!(docker.inspect("stopped", "{{.State.Status}}")?, "exited");
    // Docker starts it with the daemon, although it was stopped by hand.
    let mut events = docker
        .cmd([
            "events",
            "--since",
            "0",
            "--filter",
            "container=always",
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    events.expect("stop\n").expect("start\n");
    events.signal(rustix::process::Signal::INT)?;
    events.wait()?;
    docker.end()
}
