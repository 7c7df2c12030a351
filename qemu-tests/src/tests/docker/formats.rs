//! Filters and formats of listings.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-formats",
        "ps filters by everything it can",
        containers,
    ),
    Case::new(
        "docker-formats",
        "ps limits, orders, sizes and templates",
        templates,
    ),
    Case::new(
        "docker-formats",
        "images filter by reference, label and dangling",
        images,
    ),
];

fn containers(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let zero = docker.ok([
        "create", "--name", "zero", "--label", "kind=a", IMAGE, "true",
    ])?;
    docker.done([
        "run", "--name", "one", "--label", "kind=b", IMAGE, "sh", "-c", "exit 1",
    ])?;
    docker.done(["run", "--name", "two", "--label", "kind", IMAGE, "true"])?;
    docker.lasting("three", &[])?;
    docker.lasting("four", &[])?;
    docker.ok(["pause", "four"])?;
    let short = format!("id={}", &zero[..12]);
    for (filters, wanted) in [
        (&["name=o"][..], "four one two zero"),
        (&["name=^one$"], "one"),
        (&["name=one", "name=two"], "one two"),
        (&[short.as_str()], "zero"),
        (&["label=kind"], "one two zero"),
        (&["label=kind=b"], "one"),
        (&["status=created"], "zero"),
        (&["status=exited"], "one two"),
        (&["status=running"], "three"),
        (&["status=paused"], "four"),
        (&["status=exited", "status=created"], "one two zero"),
        (&["exited=1"], "one"),
        (&["exited=0"], "two"),
        (&["ancestor=sample/busybox"], "four one three two zero"),
        (&["ancestor=sample/busybox:latest", "status=paused"], "four"),
        (&["before=two"], "one zero"),
        (&["since=two"], "four three"),
        (&["health=none"], "four one three two zero"),
        (&["network=bridge", "status=running"], "three"),
    ] {
        let words = ["ps", "-a", "--format", "{{.Names}}"];
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let found = docker.ok(words.into_iter().chain(filters.clone()))?;
        let mut found: Vec<&str> = found.lines().collect();
        found.sort_unstable();
        assert_eq!(found.join(" "), wanted, "{:?}", filters.collect::<Vec<_>>());
    }
    docker
        .done(["ps", "--filter", "nonsense=1"])?
        .status(1)
        .stderr_has("invalid filter 'nonsense'");
    docker
        .done(["ps", "--filter", "status=nonsense"])?
        .status(1)
        .stderr_has("nonsense");
    docker.end()
}

fn templates(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for name in ["one", "two", "three"] {
        docker.ok([
            "create", "--name", name, "--label", "a=b", "-p", "8080", IMAGE, "true",
        ])?;
    }
    assert_eq!(
        docker.ok(["ps", "-a", "-n", "2", "--format", "{{.Names}}"])?,
        "three\ntwo"
    );
    assert_eq!(docker.ok(["ps", "-l", "--format", "{{.Names}}"])?, "three");
    let line = docker.ok([
        "ps",
        "-l",
        "--format",
        "{{.Image}}|{{.Command}}|{{.Label \"a\"}}|{{.Networks}}|{{.LocalVolumes}}",
    ])?;
    assert_eq!(line, "sample/busybox|\"true\"|b|bridge|0");
    let json = docker.ok(["ps", "-l", "--no-trunc", "--format", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(json["Names"], "three");
    let sized = docker.ok(["ps", "-a", "-s", "--format", "{{.Size}}"])?;
    assert!(
        sized.lines().all(|line| line.contains("virtual")),
        "{sized}"
    );
    docker.end()
}

fn images(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["tag", IMAGE, "one/name:a"])?;
    docker.ok(["tag", IMAGE, "one/name:b"])?;
    let found = |filter: &str| {
        docker.ok([
            "images",
            "--filter",
            filter,
            "--format",
            "{{.Repository}}:{{.Tag}}",
        ])
    };
    let mut names: Vec<String> = found("reference=one/*")?
        .lines()
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["one/name:a", "one/name:b"]);
    assert_eq!(found("reference=*/name:b")?, "one/name:b");
    assert_eq!(found("reference=nothing")?, "");
    assert_eq!(found("dangling=true")?, "");
    assert_eq!(found("label=nothing")?, "");
    assert_eq!(docker.ok(["images", "-q"])?.lines().count(), 3);
    assert!(docker.ok(["images"])?.starts_with("REPOSITORY"));
    docker.end()
}
