//! Processes beside the main one.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use crate::terminal::Terminal;
use anyhow::Result;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-exec",
        "exit codes 1 to 9 come back, with output on both streams",
        codes,
    )
    .vsphere_too()
    .esxi_too()
    .guests_too(),
    Case::new(
        "docker-exec",
        "forty-nine detached at once all run",
        forty_nine,
    )
    .guests_too(),
    Case::new("docker-exec", "input goes in only with -i", input),
    Case::new(
        "docker-exec",
        "a program that is not there is 127, one that cannot be executed 126",
        not_started,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-exec",
        "environment, directory and user are the container's or as asked",
        configured,
    ),
    Case::new(
        "docker-exec",
        "there is none in a container that is stopped, paused or not there",
        refused,
    ),
    Case::new(
        "docker-exec",
        "at a terminal it has a size, and the detach keys leave it running",
        terminal,
    )
    .guests_too(),
    Case::new(
        "docker-exec",
        "an exec is listed while it runs, inspected after, and ends with the container",
        inspected,
    ),
];

fn codes(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    for code in 1..=9 {
        let script = format!("echo out {code}; echo err {code} >&2; exit {code}");
        docker
            .done(["exec", "main", "sh", "-c", &script])?
            .status(code)
            .stdout(&format!("out {code}\n"))
            .stderr(&format!("err {code}\n"));
    }
    docker.end()
}

fn forty_nine(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let mut clients = Vec::new();
    for number in 0..49 {
        let script = format!("echo {number} >/tmp/ran-{number}");
        clients.push(
            docker
                .cmd(["exec", "-d", "main", "sh", "-c", &script])
                .spawn()?,
        );
    }
    for client in clients {
        client.wait()?.status(0).stdout("");
    }
    // Detached: the last may still be about to write.
    let script =
        "while [ $(ls /tmp | wc -l) -lt 49 ]; do sleep 0.1; done; cat /tmp/ran-* | sort -n";
    let found = docker.ok(["exec", "main", "sh", "-c", script])?;
    let expected: Vec<String> = (0..49).map(|number| number.to_string()).collect();
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    docker.end()
}

fn input(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let script = "cat; echo end";
    docker
        .cmd(["exec", "-i", "main", "sh", "-c", script])
        .stdin("given\n")
        .done()?
        .status(0)
        .stdout("given\nend\n");
    docker
        .cmd(["exec", "main", "sh", "-c", script])
        .stdin("given\n")
        .done()?
        .status(0)
        .stdout("end\n");
    docker.end()
}

fn not_started(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let none = docker.done(["exec", "main", "no-such-program"])?;
    none.status(127);
    assert!(
        (none.text() + &none.error()).contains("no-such-program"),
        "{none:?}"
    );
    docker.done(["exec", "main", "/etc"])?.status(126);
    docker.done(["exec", "-w", "/no/such", "main", "pwd"])?;
    assert_eq!(docker.inspect("main", "{{.State.Running}}")?, "true");
    docker.end()
}

fn configured(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting(
        "main",
        &["-e", "A=main", "-e", "B=main", "-w", "/tmp", "-u", "nobody"],
    )?;
    let script = "echo $A $B; pwd; id -u";
    docker
        .done(["exec", "main", "sh", "-c", script])?
        .stdout("main main\n/tmp\n65534\n");
    docker
        .done([
            "exec", "-e", "A=exec", "-w", "/", "-u", "0", "main", "sh", "-c", script,
        ])?
        .stdout("exec main\n/\n0\n");
    docker.end()
}

fn refused(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.lasting("main", &[])?;
    docker.ok(["pause", "main"])?;
    docker
        .done(["exec", "main", "true"])?
        .status(1)
        .stderr_has(&format!(
            "Container {id} is paused, unpause the container before exec"
        ));
    docker.ok(["unpause", "main"])?;
    docker.ok(["stop", "main"])?;
    docker
        .done(["exec", "main", "true"])?
        .status(1)
        .stderr_has("is not running");
    let body = r#"{"Cmd":["true"]}"#;
    let answer = docker.request("POST", "/containers/main/exec", body)?;
    assert_eq!(answer.status, 409, "{answer:?}");
    docker
        .done(["exec", "nobody", "true"])?
        .status(1)
        .stderr_has("No such container: nobody");
    docker.end()
}

fn terminal(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let terminal = Terminal::open(30, 100, &t.file("screen"))?;
    let script = "echo ready; while read a; do stty size; echo got $a; done; exit 3";
    let words = ["exec", "-it", "main", "sh", "-c", script];
    let client = docker.on(&terminal, words).spawn()?;
    terminal.expect("ready\r\n");
    terminal
        .types("a\r")?
        .expect("30 100\r\n")
        .expect("got a\r\n");
    terminal.types("\x04")?;
    client.wait()?.status(3);
    let client = docker.on(&terminal, words).spawn()?;
    terminal.expect("ready\r\n");
    terminal.types("\x10\x11")?;
    client.wait()?;
    assert!(docker.ok(["top", "main"])?.contains("read a"));
    docker.end()
}

fn inspected(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let body = r#"{"Cmd":["sleep","100000"],"AttachStdout":false}"#;
    let made = docker.request("POST", "/containers/main/exec", body)?;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.body.split('"').nth(3).unwrap_or_default().to_owned();
    assert_eq!(id.len(), 64, "{made:?}");
    let state = || docker.request("GET", &format!("/exec/{id}/json"), "");
    assert!(state()?.body.contains("\"Running\":false"));
    let start = r#"{"Detach":true}"#;
    let path = format!("/exec/{id}/start");
    assert_eq!(docker.request("POST", &path, start)?.status, 200);
    let running = state()?.body;
    assert!(
        running.contains("\"Running\":true") && running.contains("\"ExitCode\":null"),
        "{running}"
    );
    assert!(docker.inspect("main", "{{json .ExecIDs}}")?.contains(&id));
    assert_eq!(docker.request("POST", &path, start)?.status, 409);
    docker.ok(["stop", "main"])?;
    assert!(docker.request("GET", "/exec/0123/json", "")?.status == 404);
    docker.ok(["create", "--name", "other", IMAGE, "true"])?;
    docker.end()
}
