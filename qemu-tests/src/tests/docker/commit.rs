//! What a container changed: compared, made an image of, exported.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use std::process::Command;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-commit",
        "diff lists what was added, changed and deleted, and nothing of an untouched container",
        diff,
    )
    .vsphere_too()
    .guests_only()
    .guests(2),
    Case::new(
        "docker-commit",
        "commit makes an image with the container's files and the configuration asked for",
        commit,
    )
    .vsphere_too()
    .guests_only()
    .guests(2),
    Case::new(
        "docker-commit",
        "export gives the whole file system as an archive, which import makes an image of",
        export,
    )
    .guests_only()
    .guests(2),
    Case::new(
        "docker-commit",
        "diff and commit work beside a container that runs",
        beside,
    ),
];

fn diff(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["create", "--name", "untouched", IMAGE, "true"])?;
    assert_eq!(docker.ok(["diff", "untouched"])?, "");
    let script = "mkdir /new; echo x >/new/file; rm /etc/group; echo more >>/etc/passwd";
    docker.ok(["run", "--name", "touched", IMAGE, "sh", "-c", script])?;
    let changes = docker.ok(["diff", "touched"])?;
    let mut changes: Vec<&str> = changes.lines().collect();
    changes.sort_unstable();
    for line in [
        "A /new",
        "A /new/file",
        "C /etc",
        "C /etc/passwd",
        "D /etc/group",
    ] {
        assert!(changes.contains(&line), "no {line:?} in {changes:?}");
    }
    assert_eq!(changes.len(), 5, "{changes:?}");
    docker.lasting("runs", &[])?;
    docker.ok(["exec", "runs", "touch", "/tmp/now"])?;
    let changes = docker.ok(["diff", "runs"])?;
    assert!(changes.contains("A /tmp/now"), "{changes}");
    docker.end()
}

/// What the fake can say: its disks do not hold what images hold.
fn beside(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("runs", &[])?;
    docker.ok([
        "exec",
        "runs",
        "sh",
        "-c",
        "mkdir /new; echo x >/new/file; echo more >>/etc/passwd",
    ])?;
    let changes = docker.ok(["diff", "runs"])?;
    for line in ["A /new", "A /new/file", "C /etc/passwd"] {
        assert!(
            changes.lines().any(|other| other == line),
            "no {line:?} in {changes}"
        );
    }
    let id = docker.ok(["commit", "-c", "LABEL a=b", "runs", "made/image"])?;
    let label = [
        "image",
        "inspect",
        "-f",
        "{{.Id}} {{.Config.Labels.a}}",
        "made/image:latest",
    ];
    assert_eq!(docker.ok(label)?, format!("{id} b"));
    assert_eq!(docker.inspect("runs", "{{.State.Status}}")?, "running");
    docker.end()
}

fn commit(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "echo kept >/kept; rm /etc/group";
    docker.ok([
        "run", "--name", "source", "-e", "A=source", IMAGE, "sh", "-c", script,
    ])?;
    let words = [
        "commit",
        "-m",
        "why",
        "-a",
        "who",
        "-c",
        "CMD [\"cat\", \"/kept\"]",
        "-c",
        "ENV B=commit",
        "-c",
        "LABEL c=d",
        "source",
        "made/image:one",
    ];
    let id = docker.ok(words)?;
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    assert_eq!(docker.ok(["run", "--rm", "made/image:one"])?, "kept");
    let script = "echo $A $B; ls /etc/group 2>/dev/null || echo gone";
    assert_eq!(
        docker.ok(["run", "--rm", "made/image:one", "sh", "-c", script])?,
        "source commit\ngone"
    );
    assert_eq!(
        docker.ok([
            "image",
            "inspect",
            "-f",
            "{{.Id}} {{.Config.Labels.c}}",
            "made/image:one"
        ])?,
        format!("{id} d")
    );
    // Of one that runs.
    docker.lasting("runs", &[])?;
    docker.ok(["exec", "runs", "sh", "-c", "echo live >/live"])?;
    docker.ok(["commit", "runs", "made/image:two"])?;
    assert_eq!(docker.inspect("runs", "{{.State.Status}}")?, "running");
    assert_eq!(
        docker.ok(["run", "--rm", "made/image:two", "cat", "/live"])?,
        "live"
    );
    docker.end()
}

fn export(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok([
        "run",
        "--name",
        "source",
        IMAGE,
        "sh",
        "-c",
        "echo out >/exported",
    ])?;
    let archive = t.file("root.tar");
    docker.ok(["export", "-o", &archive.display().to_string(), "source"])?;
    let listing = Command::new("tar").arg("-tvf").arg(&archive).output()?;
    assert!(listing.status.success(), "{listing:?}");
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    for file in [" exported", "etc/passwd", "bin/sh"] {
        assert!(listing.contains(file), "no {file:?} in {listing}");
    }
    let archive = archive.display().to_string();
    docker.ok([
        "import",
        "-c",
        "CMD [\"cat\", \"/exported\"]",
        &archive,
        "made/import:latest",
    ])?;
    assert_eq!(docker.ok(["run", "--rm", "made/import"])?, "out");
    docker.end()
}
