//! Input, terminals, attaching and leaving.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use crate::terminal::Terminal;
use anyhow::Result;
use rustix::process::Signal;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-interaction",
        "run -i passes input on to its end, half-closed",
        input,
    )
    .guests_too(),
    Case::new(
        "docker-interaction",
        "without -i there is no input",
        no_input,
    ),
    Case::new(
        "docker-interaction",
        "a shell at a terminal echoes, has its size, obeys Ctrl-C and ends at exit",
        terminal,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-interaction",
        "the detach keys leave a container running, which is attached again",
        detach,
    )
    .guests_too(),
    Case::new(
        "docker-interaction",
        "attach gets what comes, from stdout and stderr apart, and the exit status",
        attach,
    ),
    Case::new(
        "docker-interaction",
        "signals of an attached client reach the container",
        proxied,
    ),
    Case::new(
        "docker-interaction",
        "several clients attached to one container all get everything",
        several,
    ),
    Case::new(
        "docker-interaction",
        "a megabyte through cat comes back as it went",
        megabyte,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-interaction",
        "start -ai goes on with input after a stop",
        start_attached,
    ),
    Case::new(
        "docker-interaction",
        "a client killed while attached does no harm",
        client_killed,
    ),
];

fn input(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .cmd(["run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo end"])
        .stdin("one\ntwo")
        .done()?
        .status(0)
        .stdout("one\ntwoend\n");
    // Answers while the input is still open.
    let mut running = docker
        .cmd([
            "run",
            "--rm",
            "-i",
            IMAGE,
            "sh",
            "-c",
            "while read a; do echo got $a; done; exit 4",
        ])
        .stdin_open()
        .spawn()?;
    running.write(b"1\n")?.expect("got 1\n");
    running.write(b"2\n")?.expect("got 2\n");
    running.wait()?.status(4).stdout("got 1\ngot 2\n");
    docker.end()
}

fn no_input(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .cmd(["run", "--rm", IMAGE, "sh", "-c", "cat; echo end"])
        .stdin("not for you\n")
        .done()?
        .status(0)
        .stdout("end\n");
    docker.end()
}

fn terminal(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let terminal = Terminal::open(24, 80, &t.file("screen"))?;
    let script = "trap 'echo interrupted' INT; echo ready
                  while :; do
                      if read word; then
                          if [ \"$word\" = size ]; then echo is $(stty size)
                          elif [ \"$word\" = out ]; then exit 7
                          else echo got $word; fi
                      fi
                  done";
    let words = ["run", "-it", "--name", "shell", IMAGE, "sh", "-c", script];
    let mut running = docker.on(&terminal, words).spawn()?;
    terminal.expect("ready\r\n");
    terminal
        .types("hello\r")?
        .expect("hello\r\n")
        .expect("got hello\r\n");
    terminal.types("size\r")?.expect("is 24 80\r\n");
    terminal.resize(50, 132)?;
    running.signal(Signal::WINCH)?;
    // It arrives by itself, a moment later.
    while !terminal
        .types("size\r")?
        .shows_one_of("is 50 132\r\n", "is 24 80\r\n")
    {}
    terminal.types("\x03")?.expect("interrupted\r\n");
    terminal.types("out\r")?;
    running.wait()?.status(7);
    assert_eq!(docker.inspect("shell", "{{.Config.Tty}}")?, "true");
    docker.end()
}

fn detach(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let terminal = Terminal::open(24, 80, &t.file("screen"))?;
    let script = "echo ready; while read word; do echo got $word; done; exit 5";
    let running = docker
        .on(
            &terminal,
            ["run", "-it", "--name", "shell", IMAGE, "sh", "-c", script],
        )
        .spawn()?;
    terminal.expect("ready\r\n");
    // The first of the two keys alone is a key like any other.
    terminal.types("a\x10b\r")?.expect("got a");
    terminal.types("\x10\x11")?;
    running.wait()?.status(0);
    assert_eq!(docker.inspect("shell", "{{.State.Running}}")?, "true");
    let attached = docker
        .on(&terminal, ["attach", "--detach-keys", "ctrl-x,x", "shell"])
        .spawn()?;
    terminal.types("again\r")?.expect("got again\r\n");
    terminal.types("\x18x")?;
    attached.wait()?;
    assert_eq!(docker.inspect("shell", "{{.State.Running}}")?, "true");
    let attached = docker.on(&terminal, ["attach", "shell"]).spawn()?;
    terminal.types("last\r")?.expect("got last\r\n");
    terminal.types("\x04")?;
    attached.wait()?.status(5);
    docker.end()
}

fn attach(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(&["-i"], "read a; echo out $a; echo err $a >&2; exit 3")?;
    docker
        .cmd(["attach", &id])
        .stdin("go\n")
        .done()?
        .status(3)
        .stdout("out go\n")
        .stderr("err go\n");
    docker
        .done(["attach", &id])?
        .status(1)
        .stderr_has("cannot attach to a stopped container");
    docker.end()
}

fn proxied(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "trap 'echo hup' HUP; trap 'exit 8' TERM; echo up; while :; do sleep 0.1; done";
    let mut running = docker.cmd(["run", IMAGE, "sh", "-c", script]).spawn()?;
    running.expect("up\n");
    running.signal(Signal::HUP)?.expect("hup\n");
    running.signal(Signal::TERM)?;
    running.wait()?.status(8);
    docker.end()
}

fn several(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(&["-i"], "while read a; do echo got $a; done; exit 2")?;
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = docker.cmd(["attach", &id]).stdin_open().spawn()?;
        client.write(format!("{number}\n").as_bytes())?;
        client.expect(&format!("got {number}\n"));
        clients.push(client);
    }
    // All are attached now.
    clients[0].write(b"all\n")?;
    for client in &mut clients {
        client.expect("got all\n");
    }
    docker.ok(["kill", &id])?;
    for client in clients {
        client.ended()?.status(137);
    }
    docker.end()
}

fn megabyte(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let bytes = crate::random::Random::new(7).bytes(1 << 20);
    let done = docker
        .cmd(["run", "--rm", "-i", IMAGE, "cat"])
        .stdin(bytes.clone())
        .done()?;
    done.status(0);
    assert!(done.out == bytes, "{} bytes came back", done.out.len());
    docker.end()
}

fn start_attached(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.ok(["create", "-i", IMAGE, "sh", "-c", "cat; exit 6"])?;
    for text in ["first\n", "second\n"] {
        docker
            .cmd(["start", "-ai", &id])
            .stdin(text)
            .done()?
            .status(6)
            .stdout(text);
    }
    assert_eq!(docker.ok(["logs", &id])?, "first\nsecond");
    docker.end()
}

fn client_killed(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(
        &[],
        "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done",
    )?;
    for _ in 0..5 {
        let mut client = docker.cmd(["attach", &id]).spawn()?;
        client.expect("line");
        client.kill()?;
    }
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("line 1\n").expect("line 30\n");
    docker.ok(["kill", &id])?;
    let said = follow.wait()?;
    for (number, line) in said.text().lines().enumerate() {
        assert_eq!(line, format!("line {}", number + 1));
    }
    docker.end()
}
