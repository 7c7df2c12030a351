//! How containers are called.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-names",
        "a name is taken by one container at a time, in Docker's words",
        conflict,
    ),
    Case::new(
        "docker-names",
        "a container is found by name, id and every unambiguous beginning of its id",
        found,
    ),
    Case::new("docker-names", "rename gives the name free", rename),
    Case::new(
        "docker-names",
        "a name that is none is refused in Docker's words",
        invalid,
    ),
    Case::new(
        "docker-names",
        "one without a name is given one of two words",
        chosen,
    ),
];

fn conflict(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.ok(["create", "--name", "web", IMAGE, "true"])?;
    let words = format!(
        "Conflict. The container name \"/web\" is already in use by container \"{id}\". You have to \
         remove (or rename) that container to be able to reuse that name."
    );
    docker
        .done(["create", "--name", "web", IMAGE, "true"])?
        .status(1)
        .stderr_has(&words);
    docker
        .done(["run", "--name", "web", IMAGE, "true"])?
        .status(125)
        .stderr_has(&words);
    let body = format!(r#"{{"Image":"{IMAGE}","Cmd":["true"]}}"#);
    let answer = docker.request("POST", "/containers/create?name=web", &body)?;
    assert_eq!(answer.status, 409, "{answer:?}");
    docker.ok(["rm", "web"])?;
    docker.ok(["create", "--name", "web", IMAGE, "true"])?;
    docker.end()
}

fn found(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut ids = Vec::new();
    // Seventeen ids: two begin with the same digit.
    for _ in 0..17 {
        ids.push(docker.ok(["create", IMAGE, "true"])?);
    }
    let name = docker.inspect(&ids[0], "{{.Name}}")?;
    for word in [&ids[0], &ids[0][..12], &name, &name[1..]] {
        assert_eq!(docker.inspect(word, "{{.Id}}")?, ids[0], "{word}");
    }
    let digit = |id: &String| id.chars().next();
    let twice = ids
        .iter()
        .find(|id| ids.iter().filter(|other| digit(other) == digit(id)).count() > 1);
    let twice = &twice.expect("two that begin alike")[..1];
    let answer = docker.request("GET", &format!("/containers/{twice}/json"), "")?;
    assert!((400..=500).contains(&answer.status), "{answer:?}");
    assert!(
        answer
            .body
            .contains("ultiple IDs found with provided prefix"),
        "{answer:?}"
    );
    docker.end()
}

fn rename(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.lasting("before", &[])?;
    docker.ok(["rename", "before", "after"])?;
    assert_eq!(
        docker.inspect("after", "{{.Id}} {{.Name}}")?,
        format!("{id} /after")
    );
    docker.done(["inspect", "before"])?.status(1);
    docker.lasting("before", &[])?;
    docker
        .done(["rename", "before", "after"])?
        .status(1)
        .stderr_has("\"/after\" is already in use by container");
    docker
        .done(["rename", "nobody", "x1"])?
        .status(1)
        .stderr_has("No such container: nobody");
    docker.end()
}

fn invalid(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for name in ["a/b", "-x", "a b", "x"] {
        docker
            .done(["create", &format!("--name={name}"), IMAGE, "true"])?
            .status(1)
            .stderr_has(&format!(
                "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            ));
    }
    docker
        .done(["run", "--rm", "no/such:image", "true"])?
        .status(125);
    docker.end()
}

fn chosen(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["create", IMAGE, "true"])?;
    docker.ok(["create", IMAGE, "true"])?;
    let names = docker.ok(["ps", "-a", "--format", "{{.Names}}"])?;
    let names: Vec<&str> = names.lines().collect();
    assert!(names.len() == 2 && names[0] != names[1], "{names:?}");
    assert!(
        names.iter().all(|name| name.contains(['-', '_'])),
        "{names:?}"
    );
    docker.end()
}
