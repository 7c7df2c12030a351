//! Images.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::{Context as _, Result};
use std::process::Command;

pub(super) const CASES: &[Case] = &[
    Case::new("docker-images", "an archive is loaded and run", load).guests_too(),
    Case::new(
        "docker-images",
        "images are tagged, inspected and removed by name",
        tag,
    ),
    Case::new(
        "docker-images",
        "an image in use is not removed, in Docker's words",
        conflict,
    ),
    Case::new(
        "docker-images",
        "one that is not there is said, and what there is instead of a registry",
        missing,
    ),
    Case::new(
        "docker-images",
        "prune removes what has no name and no user",
        prune,
    ),
    Case::new(
        "docker-images",
        "build, pull and push say a way out",
        not_here,
    ),
];

/// An archive of a directory's image layout, as `skopeo copy oci-archive:` makes it.
fn archive(t: &Context) -> Result<String> {
    let file = t.file("image.tar");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&file)
        .arg("-C")
        .arg(t.environment().sample_layout("busybox"))
        .arg(".")
        .status()
        .context("cannot run tar")?;
    assert!(status.success());
    Ok(file.display().to_string())
}

fn load(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let archive = archive(t)?;
    docker.ok(["rmi", IMAGE])?;
    assert_eq!(docker.ok(["images", "-q"])?, "");
    let said = docker.ok(["load", "-i", &archive])?;
    assert!(said.contains("Loaded image"), "{said}");
    let name = docker.ok(["images", "--no-trunc", "-q"])?;
    assert_eq!(
        docker.ok(["run", "--rm", &name, "echo", "loaded"])?,
        "loaded"
    );
    docker.cmd(["load"]).stdin("no archive").done()?.status(1);
    docker.end()
}

fn tag(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.ok(["image", "inspect", "-f", "{{.Id}}", IMAGE])?;
    docker.ok(["tag", IMAGE, "other:v1"])?;
    docker.ok(["tag", &id, "host.example:5000/deep/name:v2"])?;
    let tags = docker.ok(["image", "inspect", "-f", "{{json .RepoTags}}", &id[7..19]])?;
    for name in [
        "sample/busybox:latest",
        "other:v1",
        "host.example:5000/deep/name:v2",
    ] {
        assert!(tags.contains(&format!("\"{name}\"")), "{tags}");
    }
    assert_eq!(
        docker.ok(["run", "--rm", "other:v1", "echo", "here"])?,
        "here"
    );
    let history = docker.ok(["history", "-q", "--no-trunc", IMAGE])?;
    assert!(history.contains(&id), "{history}");
    assert!(
        docker
            .ok(["rmi", "other:v1"])?
            .contains("Untagged: other:v1")
    );
    docker
        .done(["rmi", "other:v1"])?
        .status(1)
        .stderr_has("No such image: other:v1");
    docker
        .done(["rmi", &id])?
        .status(1)
        .stderr_has("must be forced");
    let gone = docker.ok(["rmi", "-f", &id])?;
    assert!(gone.contains(&format!("Deleted: {id}")), "{gone}");
    assert_eq!(docker.ok(["images", "-aq"])?, "");
    docker
        .done(["tag", "nothing", "x"])?
        .status(1)
        .stderr_has("No such image: nothing");
    docker.end()
}

fn conflict(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let container = docker.ok(["create", IMAGE, "true"])?;
    let refused = docker.done(["rmi", IMAGE])?;
    refused.status(1);
    refused.stderr_has("conflict: unable to remove repository reference");
    refused.stderr_has(&container[..12]);
    docker.lasting("runs", &[])?;
    docker.done(["rmi", "-f", "no/such"])?;
    let id = docker.ok(["image", "inspect", "-f", "{{.Id}}", IMAGE])?;
    docker
        .done(["rmi", "-f", &id])?
        .status(1)
        .stderr_has("image is being used by running container");
    docker.end()
}

fn missing(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let body = r#"{"Image":"no/such","Cmd":["true"]}"#;
    let answer = docker.request("POST", "/containers/create", body)?;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.body.contains("No such image: no/such"), "{answer:?}");
    docker.done(["run", "no/such", "true"])?.status(125);
    docker
        .done(["run", "--pull", "never", "no/such", "true"])?
        .status(125)
        .stderr_has("No such image: no/such");
    docker
        .done(["image", "inspect", "no/such"])?
        .status(1)
        .stderr_has("No such image: no/such");
    docker.end()
}

fn prune(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["run", "--name", "one", IMAGE, "true"])?;
    docker.ok(["commit", "one"])?;
    assert_eq!(
        docker
            .ok(["images", "-q", "--filter", "dangling=true"])?
            .lines()
            .count(),
        1
    );
    assert!(
        docker
            .ok(["image", "prune", "-f"])?
            .contains("deleted: sha256:")
    );
    assert_eq!(docker.ok(["images", "-q"])?.lines().count(), 1);
    assert!(
        docker
            .ok(["container", "prune", "-f"])?
            .contains("Deleted Containers:")
    );
    docker.ok(["image", "prune", "-af"])?;
    assert_eq!(docker.ok(["images", "-aq"])?, "");
    docker.end()
}

fn not_here(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for (method, path) in [
        ("POST", "/build"),
        ("POST", "/images/create?fromImage=busybox&tag=latest"),
        ("POST", "/images/busybox/push?tag=latest"),
        ("POST", "/networks/create"),
        ("POST", "/volumes/create"),
        ("POST", "/swarm/init"),
    ] {
        let answer = docker.request(method, path, "")?;
        assert!(
            matches!(answer.status, 400 | 404 | 501 | 503),
            "{path}: {answer:?}"
        );
        assert!(answer.body.contains("\"message\":"), "{path}: {answer:?}");
    }
    let build = docker.request("POST", "/build", "")?;
    assert_eq!(build.status, 501, "{build:?}");
    assert!(build.body.contains("load"), "{build:?}");
    docker.done(["pull", "busybox"])?.status(1);
    docker
        .done(["run", "-v", "/etc:/etc", IMAGE, "true"])?
        .status(125);
    docker.done(["network", "create", "mine"])?.status(1);
    docker.done(["volume", "create", "mine"])?.status(1);
    docker.end()
}
