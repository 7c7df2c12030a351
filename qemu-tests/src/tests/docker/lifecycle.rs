//! Created, started, stopped, removed.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use std::time::{Duration, Instant};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-lifecycle",
        "a container is created, started, stopped, started again and removed",
        life,
    )
    .vsphere_too()
    .esxi_too()
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "run passes output and the exit status on and leaves the container",
        run,
    )
    .vsphere_too()
    .esxi_too(),
    Case::new(
        "docker-lifecycle",
        "run --rm leaves nothing, also when it is detached",
        run_rm,
    )
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "a program that is not there is 127, one that cannot be executed 126, and nothing runs",
        not_started,
    ),
    Case::new(
        "docker-lifecycle",
        "stop sends the stop signal, waits as long as it may and then kills",
        stop,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "kill sends any signal by name and number",
        kill,
    ),
    Case::new(
        "docker-lifecycle",
        "a paused container stands still and goes on",
        pause,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "wait gives the status of one that ended and of one that will",
        wait,
    ),
    Case::new(
        "docker-lifecycle",
        "a container that runs is not removed unless forced",
        remove,
    ),
    Case::new(
        "docker-lifecycle",
        "restart starts what ran and what did not",
        restart,
    ),
    Case::new(
        "docker-lifecycle",
        "what is done already is no error to docker and 304 to the API",
        already,
    ),
    Case::new(
        "docker-lifecycle",
        "files written stay over a stop and a start",
        files_stay,
    )
    .vsphere_too(),
    Case::new(
        "docker-lifecycle",
        "environment, working directory, host name, labels and entrypoint are as asked",
        configured,
    )
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "users are names, numbers and groups of the image",
        users,
    )
    .guests_too(),
    Case::new(
        "docker-lifecycle",
        "a read-only root cannot be written, a tmpfs in it can",
        read_only,
    ),
];

fn life(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.ok([
        "create",
        "--name",
        "one",
        IMAGE,
        "sh",
        "-c",
        "echo up; sleep 100000",
    ])?;
    assert_eq!(id.len(), 64);
    let status = |wanted: &str| -> Result<()> {
        assert_eq!(docker.inspect("one", "{{.State.Status}}")?, wanted);
        Ok(())
    };
    status("created")?;
    assert_eq!(docker.ok(["start", "one"])?, "one");
    status("running")?;
    assert_eq!(docker.ok(["ps", "-q", "--no-trunc"])?, id);
    assert_eq!(
        docker.inspect("one", "{{.State.Running}} {{gt .State.Pid 0}}")?,
        "true true"
    );
    docker.ok(["stop", "-t", "1", "one"])?;
    status("exited")?;
    assert_eq!(
        docker.inspect("one", "{{.State.ExitCode}} {{.State.Pid}}")?,
        "137 0"
    );
    assert_eq!(docker.ok(["ps", "-q"])?, "");
    docker.ok(["start", "one"])?;
    status("running")?;
    docker.ok(["kill", "one"])?;
    docker.done(["wait", "one"])?.status(0).stdout("137\n");
    docker.ok(["rm", "one"])?;
    docker
        .done(["inspect", "one"])?
        .status(1)
        .stderr_has("No such object: one");
    docker.end()
}

fn run(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for status in [0, 1, 42, 255] {
        let script = format!("echo out; echo err >&2; exit {status}");
        docker
            .done(["run", IMAGE, "sh", "-c", &script])?
            .status(status)
            .stdout("out\n")
            .stderr("err\n");
    }
    assert_eq!(docker.ok(["ps", "-aq"])?.lines().count(), 4);
    docker.end()
}

fn run_rm(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .done(["run", "--rm", IMAGE, "sh", "-c", "echo gone; exit 3"])?
        .status(3)
        .stdout("gone\n");
    assert_eq!(docker.ok(["ps", "-aq"])?, "");
    let id = docker.detached(&["--rm"], "read line </dev/null; exit 4")?;
    // Whoever waits for the removal still gets the status, or comes too late.
    let waited = docker.done(["wait", &id])?;
    let late = waited.error().contains("No such container");
    assert!(late || waited.text() == "4\n", "{waited:?}");
    let gone = docker.request(
        "POST",
        &format!("/containers/{id}/wait?condition=removed"),
        "",
    )?;
    assert!(matches!(gone.status, 200 | 404), "{gone:?}");
    assert_eq!(docker.ok(["ps", "-aq"])?, "");
    docker.end()
}

fn not_started(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .done(["run", "--name", "none", IMAGE, "no-such-program"])?
        .status(127)
        .stderr_has("no-such-program");
    docker
        .done(["run", "--name", "dir", IMAGE, "/etc"])?
        .status(126)
        .stderr_has("/etc");
    for name in ["none", "dir"] {
        assert_eq!(docker.inspect(name, "{{.State.Status}}")?, "created");
    }
    assert_eq!(docker.inspect("none", "{{.State.ExitCode}}")?, "127");
    assert_eq!(docker.ok(["ps", "-q"])?, "");
    docker
        .done(["run", "--rm", IMAGE, "no-such-program"])?
        .status(127);
    assert_eq!(docker.ok(["ps", "-aq"])?.lines().count(), 2);
    docker.end()
}

fn stop(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let id = docker.detached(&[], script)?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("up");
    docker.ok(["stop", &id])?;
    follow.wait()?.status(0).stdout("up\ntold\n");
    assert_eq!(docker.inspect(&id, "{{.State.ExitCode}}")?, "5");
    // Its own stop signal, from the command line.
    let script = "trap 'exit 6' USR1; trap '' TERM; echo up; while :; do sleep 0.1; done";
    let id = docker.detached(&["--stop-signal", "SIGUSR1"], script)?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("up");
    docker.ok(["stop", &id])?;
    assert_eq!(docker.inspect(&id, "{{.State.ExitCode}}")?, "6");
    follow.wait()?.status(0);
    // One that does not listen.
    let id = docker.detached(&[], "trap '' TERM; echo up; while :; do sleep 0.1; done")?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("up");
    let begun = Instant::now();
    docker.ok(["stop", "-t", "2", &id])?;
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(docker.inspect(&id, "{{.State.ExitCode}}")?, "137");
    follow.wait()?.status(0);
    docker.end()
}

fn kill(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo int; exit 7' INT
                  echo up; while :; do sleep 0.1; done";
    let id = docker.detached(&[], script)?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("up\n");
    for (signal, said) in [("USR1", "usr1\n"), ("SIGHUP", "hup\n"), ("10", "usr1\n")] {
        docker.ok(["kill", "-s", signal, &id])?;
        follow.expect(said);
    }
    docker.ok(["kill", "-s", "sigint", &id])?;
    follow.expect("int\n");
    follow.wait()?.status(0);
    assert_eq!(docker.ok(["wait", &id])?, "7");
    docker
        .done(["kill", &id])?
        .status(1)
        .stderr_has("is not running");
    let id = docker.detached(&[], "sleep 100000")?;
    docker
        .done(["kill", "-s", "NONSENSE", &id])?
        .status(1)
        .stderr_has("Invalid signal: NONSENSE");
    docker.end()
}

fn pause(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(&[], "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done")?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    follow.expect("1\n");
    docker.ok(["pause", &id])?;
    assert_eq!(
        docker.inspect(&id, "{{.State.Status}} {{.State.Paused}}")?,
        "paused true"
    );
    assert!(docker.ok(["ps"])?.contains("(Paused)"));
    // What was on its way has come; then nothing does.
    let before = docker.ok(["logs", &id])?;
    std::thread::sleep(Duration::from_secs(1));
    let after = docker.ok(["logs", &id])?;
    assert!(
        after.lines().count() <= before.lines().count() + 1,
        "{before} then {after}"
    );
    docker
        .done(["pause", &id])?
        .status(1)
        .stderr_has("already paused");
    docker
        .done(["exec", &id, "true"])?
        .status(1)
        .stderr_has("is paused");
    docker.ok(["unpause", &id])?;
    follow.expect(&format!("{}\n", after.lines().count() + 1));
    docker
        .done(["unpause", &id])?
        .status(1)
        .stderr_has("is not paused");
    docker.ok(["kill", &id])?;
    follow.wait()?.status(0);
    docker.end()
}

fn wait(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(&["-i"], "read line; exit 9")?;
    let waiting = docker.cmd(["wait", &id]).spawn()?;
    let attached = docker.cmd(["attach", &id]).stdin("go\n").spawn()?;
    attached.wait()?.status(9);
    waiting.wait()?.status(0).stdout("9\n");
    assert_eq!(docker.ok(["wait", &id, &id])?, "9\n9");
    docker
        .done(["wait", "nobody"])?
        .status(1)
        .stderr_has("No such container: nobody");
    docker.end()
}

fn remove(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("stays", &[])?;
    docker
        .done(["rm", "stays"])?
        .status(1)
        .stderr_has("container is running: stop the container before removing or force remove");
    assert_eq!(docker.inspect("stays", "{{.State.Running}}")?, "true");
    assert_eq!(docker.ok(["rm", "-f", "stays"])?, "stays");
    docker
        .done(["rm", "stays"])?
        .status(1)
        .stderr_has("No such container: stays");
    docker
        .done(["rm", "-f", "stays"])?
        .stderr_has("No such container: stays");
    docker.end()
}

fn restart(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("again", &[])?;
    let first = docker.inspect("again", "{{.State.StartedAt}}")?;
    docker.ok(["restart", "again"])?;
    let second = docker.inspect("again", "{{.State.StartedAt}}")?;
    assert!(first < second, "{first} {second}");
    docker.ok(["stop", "again"])?;
    docker.ok(["restart", "again"])?;
    let status = docker.inspect("again", "{{.State.Status}} {{.RestartCount}}")?;
    assert_eq!(status, "running 0");
    docker.end()
}

fn already(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("one", &[])?;
    docker.ok(["start", "one"])?;
    let status = |path: &str| Ok::<_, anyhow::Error>(docker.request("POST", path, "")?.status);
    assert_eq!(status("/v1.43/containers/one/start")?, 304);
    docker.ok(["stop", "one"])?;
    docker.ok(["stop", "one"])?;
    assert_eq!(status("/containers/one/stop")?, 304);
    assert_eq!(status("/containers/one/start")?, 204);
    assert_eq!(status("/containers/two/start")?, 404);
    docker.end()
}

fn files_stay(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "cat /count 2>/dev/null; echo once more >>/count";
    docker.ok(["run", "--name", "count", IMAGE, "sh", "-c", script])?;
    for times in 1..3 {
        let said = docker.ok(["start", "-a", "count"])?;
        assert_eq!(said.lines().count(), times);
    }
    // Another one of the same image has none of it.
    docker.done(["run", IMAGE, "cat", "/count"])?.status(1);
    docker.end()
}

fn configured(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "echo $A $B; pwd; hostname; echo $HOSTNAME; echo $1";
    let words = [
        "run",
        "--rm",
        "-e",
        "A=one two",
        "-e",
        "B",
        "-w",
        "/new/place",
        "-h",
        "place",
        "--entrypoint",
        "sh",
        IMAGE,
        "-c",
        script,
        "sh",
        "argument",
    ];
    let done = docker.cmd(words).variable("B", "three").done()?;
    done.status(0)
        .stdout("one two three\n/new/place\nplace\nplace\nargument\n");
    let id = docker.ok(["create", "--label", "a=b", "--label", "c", IMAGE, "true"])?;
    assert_eq!(
        docker.inspect(&id, "{{json .Config.Labels}}")?,
        r#"{"a":"b","c":""}"#
    );
    assert_eq!(docker.inspect(&id, "{{.Config.Hostname}}")?, id[..12]);
    // Limits are there without being asked for, and as asked.
    let limits = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}";
    let default = docker.inspect(&id, limits)?;
    assert!(
        !default.starts_with("0 ") && !default.ends_with(" 0"),
        "{default}"
    );
    let id = docker.ok(["create", "-m", "192m", "--cpus", "2", IMAGE, "true"])?;
    assert_eq!(
        docker.inspect(&id, limits)?,
        format!("{} 2000000000", 192 << 20)
    );
    docker.end()
}

fn users(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for (user, said) in [
        ("root", "0 0"),
        ("nobody", "65534 65534"),
        ("nobody:root", "65534 0"),
        ("1234", "1234 0"),
        ("1234:5678", "1234 5678"),
    ] {
        let script = "echo $(id -u) $(id -g)";
        docker
            .done(["run", "--rm", "-u", user, IMAGE, "sh", "-c", script])?
            .status(0)
            .stdout(&format!("{said}\n"));
    }
    docker
        .done(["run", "--rm", "-u", "stranger", IMAGE, "true"])?
        .stderr_has("stranger");
    docker.end()
}

fn read_only(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .done([
            "run",
            "--rm",
            "--read-only",
            IMAGE,
            "sh",
            "-c",
            "echo x >/file",
        ])?
        .status(1)
        .stderr_has("Read-only file system");
    let script = "echo x >/scratch/file && cat /scratch/file";
    docker
        .done([
            "run",
            "--rm",
            "--read-only",
            "--tmpfs",
            "/scratch",
            IMAGE,
            "sh",
            "-c",
            script,
        ])?
        .status(0)
        .stdout("x\n");
    docker.end()
}
