//! Exit statuses and how listings show them.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-status",
        "ps shows what runs, and with -a how the others ended",
        listed,
    ),
    Case::new(
        "docker-status",
        "a container killed by a signal is 128 and the signal",
        signalled,
    ),
    Case::new(
        "docker-status",
        "one that ran out of memory says so",
        out_of_memory,
    )
    .guests_only(),
];

fn listed(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["create", "--name", "made", IMAGE, "true"])?;
    docker
        .done(["run", "--name", "three", IMAGE, "sh", "-c", "exit 3"])?
        .status(3);
    docker.lasting("runs", &[])?;
    let format = "{{.Names}}|{{.Status}}|{{.State}}";
    let all = docker.ok(["ps", "-a", "--format", format])?;
    let lines: Vec<&str> = all.lines().collect();
    assert_eq!(lines.len(), 3, "{all}");
    // Newest first.
    assert!(
        lines[0].starts_with("runs|Up ") && lines[0].ends_with("|running"),
        "{all}"
    );
    assert!(
        lines[1].starts_with("three|Exited (3) ") && lines[1].ends_with(" ago|exited"),
        "{all}"
    );
    assert_eq!(lines[2], "made|Created|created");
    assert_eq!(docker.ok(["ps", "--format", "{{.Names}}"])?, "runs");
    let table = docker.ok(["ps", "--no-trunc"])?;
    assert!(table.starts_with("CONTAINER ID"), "{table}");
    assert!(table.contains("\"sh -c 'sleep 100000'\""), "{table}");
    docker.end()
}

fn signalled(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for (signal, status) in [("KILL", 137), ("TERM", 143)] {
        let script = format!("kill -{signal} $$");
        docker
            .done(["run", "--rm", "--init", IMAGE, "sh", "-c", &script])?
            .status(status);
    }
    docker.end()
}

fn out_of_memory(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let words = [
        "run",
        "--name",
        "big",
        "-m",
        "96m",
        IMAGE,
        "tail",
        "/dev/zero",
    ];
    docker.done(words)?.status(137);
    assert_eq!(
        docker.inspect("big", "{{.State.OOMKilled}} {{.State.ExitCode}}")?,
        "true 137"
    );
    docker.end()
}
