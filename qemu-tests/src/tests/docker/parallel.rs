//! Many at once.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new("docker-parallel", "fifteen runs at once all succeed", runs)
        .guests_too()
        .guests(15)
        .minutes(10),
    Case::new(
        "docker-parallel",
        "a storm past the memory of the VCH is refused before it starts, and what runs goes on",
        storm,
    ),
    Case::new(
        "docker-parallel",
        "of fifty creates of one name exactly one wins",
        one_name,
    )
    .guests_too(),
    Case::new(
        "docker-parallel",
        "fifty different creates and removals at once all succeed",
        creates,
    )
    .guests_too(),
    Case::new(
        "docker-parallel",
        "stop, kill, restart and remove of one container at once end in order",
        one_container,
    ),
];

fn runs(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut clients = Vec::new();
    for number in 0..15 {
        let script =
            format!("read line; echo {number} $line; echo err {number} >&2; exit {number}");
        let words = ["run", "--rm", "-i", "-m", "96m", IMAGE, "sh", "-c", &script];
        clients.push(docker.cmd(words).stdin(format!("line{number}\n")).spawn()?);
    }
    for (number, client) in clients.into_iter().enumerate() {
        client
            .wait()?
            .status(number as i32)
            .stdout(&format!("{number} line{number}\n"))
            .stderr(&format!("err {number}\n"));
    }
    assert_eq!(docker.ok(["ps", "-aq"])?, "");
    docker.end()
}

fn storm(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--memory", "512m"])?;
    docker.lasting("before", &["-m", "128m"])?;
    let mut clients = Vec::new();
    for number in 0..12 {
        let name = format!("storm-{number}");
        let words = [
            "run", "-d", "-m", "128m", "--name", &name, IMAGE, "sleep", "1000",
        ];
        clients.push(docker.cmd(words).spawn()?);
    }
    let mut refused = 0;
    for client in clients {
        let done = client.wait()?;
        if !done.error().is_empty() {
            done.status(125).stderr_has("memory");
            refused += 1;
        }
    }
    assert_eq!(refused, 9);
    assert_eq!(docker.ok(["ps", "-q"])?.lines().count(), 4);
    assert_eq!(docker.ok(["exec", "before", "echo", "here"])?, "here");
    // Those that were refused were created, and have their turn when there is room.
    // Gone with its VM, unlike one that was killed a moment ago.
    docker.ok(["rm", "-f", "before"])?;
    let waiting = docker.ok(["ps", "-aq", "--filter", "status=created"])?;
    docker.ok(["start", waiting.lines().next().unwrap_or_default()])?;
    docker.end()
}

fn one_name(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(
            docker
                .cmd(["create", "--name", "one", IMAGE, "true"])
                .spawn()?,
        );
    }
    let mut won = Vec::new();
    for client in clients {
        let done = client.wait()?;
        if done.error().is_empty() {
            done.status(0);
            won.push(done.text());
        } else {
            done.status(1)
                .stderr_has("\"/one\" is already in use by container");
        }
    }
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(docker.ok(["ps", "-aq", "--no-trunc"])?, won[0].trim_end());
    docker.end()
}

fn creates(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let all = |words: &dyn Fn(u32) -> Vec<String>| -> Result<()> {
        let clients: Result<Vec<_>> = (0..50)
            .map(|number| docker.cmd(words(number)).spawn())
            .collect();
        for client in clients? {
            client.wait()?.status(0);
        }
        Ok(())
    };
    all(&|number| {
        ["create", "--name", &format!("c{number:02}"), IMAGE, "true"]
            .map(str::to_owned)
            .to_vec()
    })?;
    let names = docker.ok(["ps", "-a", "--format", "{{.Names}}"])?;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    let expected: Vec<String> = (0..50).map(|number| format!("c{number:02}")).collect();
    assert_eq!(names, expected);
    all(&|number| ["rm", &format!("c{number:02}")].map(str::to_owned).to_vec())?;
    assert_eq!(docker.ok(["ps", "-aq"])?, "");
    docker.end()
}

fn one_container(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for _ in 0..5 {
        docker.lasting("one", &[])?;
        let mut clients = Vec::new();
        for words in [
            &["stop", "one"][..],
            &["kill", "one"],
            &["restart", "one"],
            &["pause", "one"],
            &["rm", "-f", "one"],
            &["start", "one"],
        ] {
            clients.push(docker.cmd(words).spawn()?);
        }
        for client in clients {
            // Which of them came too late is a matter of luck; none hangs.
            client.wait()?;
        }
        docker.done(["rm", "-f", "one"])?;
        assert_eq!(docker.ok(["ps", "-aq"])?, "");
    }
    docker.end()
}
