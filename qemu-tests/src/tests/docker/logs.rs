//! What a container wrote, kept and read.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use sha2::{Digest, Sha256};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-logs",
        "five thousand lines are intact, and their tail is what is asked for",
        five_thousand,
    )
    .vsphere_too()
    .esxi_too()
    .guests_too(),
    Case::new(
        "docker-logs",
        "binary output has the same sha256 on the client and in the log",
        binary,
    )
    .vsphere_too()
    .guests_too(),
    Case::new("docker-logs", "stdout and stderr are kept apart", apart),
    Case::new(
        "docker-logs",
        "timestamps have nanoseconds, rise, and cut exactly with --since and --until",
        timestamps,
    ),
    Case::new(
        "docker-logs",
        "following gets what comes and ends when the container does",
        follow,
    )
    .guests_too(),
    Case::new(
        "docker-logs",
        "a last line without a newline is kept",
        last_line,
    ),
    Case::new(
        "docker-logs",
        "max-size and max-file bound what is kept, and the newest lines are kept",
        rotated,
    ),
    Case::new(
        "docker-logs",
        "the log driver none keeps nothing and says so",
        none,
    ),
    Case::new(
        "docker-logs",
        "the log goes on over a restart",
        over_restart,
    ),
    Case::new(
        "docker-logs",
        "a container that floods its output harms only itself",
        flood,
    )
    .guests_too()
    .guests(2),
];

fn five_thousand(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(&[], "for i in $(seq 1 5000); do echo line number $i; done")?;
    docker.ok(["wait", &id])?;
    let expected: Vec<String> = (1..=5000).map(|n| format!("line number {n}")).collect();
    let lines = |words: &[&str]| -> Result<Vec<String>> {
        let words = [&["logs"], words, &[id.as_str()]].concat();
        let done = docker.done(words)?;
        done.status(0).stderr("");
        Ok(done.text().lines().map(str::to_owned).collect())
    };
    for (words, count) in [
        (&[][..], 5000),
        (&["--tail", "all"], 5000),
        (&["--tail", "0"], 0),
        (&["--tail", "1"], 1),
        (&["-n", "4321"], 4321),
        (&["-n", "100000"], 5000),
        (&["-f"], 5000),
        (&["-f", "--tail", "10"], 10),
    ] {
        let lines = lines(words)?;
        assert!(
            lines == expected[5000 - count..],
            "{words:?}: {} lines",
            lines.len()
        );
    }
    docker.end()
}

fn binary(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script =
        "dd if=/dev/urandom of=/data bs=1024 count=500 2>/dev/null; cat /data; sha256sum /data >&2";
    let done = docker.done(["run", "--name", "bytes", IMAGE, "sh", "-c", script])?;
    done.status(0);
    let sum = |bytes: &[u8]| -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let inside = done.error();
    let inside = inside.split_whitespace().next().unwrap_or_default();
    assert_eq!(done.out.len(), 500 << 10);
    assert_eq!(sum(&done.out), inside);
    let logged = docker.done(["logs", "bytes"])?;
    assert_eq!(sum(&logged.out), inside);
    docker.end()
}

fn apart(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done";
    docker.ok(["run", "--name", "two", IMAGE, "sh", "-c", script])?;
    docker
        .done(["logs", "two"])?
        .stdout("out 1\nout 2\nout 3\n")
        .stderr("err 1\nerr 2\nerr 3\n");
    let only = docker.request("GET", "/containers/two/logs?stderr=1", "")?;
    assert!(
        only.body.contains("err 3") && !only.body.contains("out"),
        "{only:?}"
    );
    let neither = docker.request("GET", "/containers/two/logs", "")?;
    assert_eq!(neither.status, 400, "{neither:?}");
    assert!(
        neither.body.contains("you must choose at least one stream"),
        "{neither:?}"
    );
    docker
        .done(["logs", "nobody"])?
        .status(1)
        .stderr_has("No such container: nobody");
    docker.end()
}

fn timestamps(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.3; done";
    docker.ok(["run", "--name", "clock", IMAGE, "sh", "-c", script])?;
    let stamped = docker.ok(["logs", "-t", "clock"])?;
    let lines: Vec<(&str, &str)> = stamped
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    assert_eq!(lines.len(), 5, "{stamped}");
    for (number, (time, line)) in lines.iter().enumerate() {
        assert_eq!(*line, (number + 1).to_string());
        // 2006-01-02T15:04:05.000000000Z
        assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
        assert!(number == 0 || lines[number - 1].0 < *time, "{stamped}");
    }
    let third = lines[2].0;
    assert_eq!(docker.ok(["logs", "--since", third, "clock"])?, "3\n4\n5");
    // A moment belongs to what comes before it, as Docker has it; this one lies between two.
    let between = format!("{}5Z", &third[..third.len() - 2]);
    let until = docker.ok(["logs", "--until", &between, "clock"])?;
    assert!(until == "1\n2" || until == "1\n2\n3", "{until}");
    assert_eq!(
        docker
            .ok(["logs", "--since", "1h", "clock"])?
            .lines()
            .count(),
        5
    );
    assert_eq!(docker.ok(["logs", "--until", "1h", "clock"])?, "");
    docker.end()
}

fn follow(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.detached(
        &["-i"],
        "while read a && [ $a != end ]; do echo got $a; done; echo over; exit 1",
    )?;
    let mut follow = docker.cmd(["logs", "-f", &id]).spawn()?;
    let mut late = docker.cmd(["logs", "-f", "--tail", "0", &id]).spawn()?;
    let mut client = docker.cmd(["attach", &id]).stdin_open().spawn()?;
    client.write(b"1\n")?.expect("got 1\n");
    follow.expect("got 1\n");
    for number in 2..50 {
        client.write(format!("{number}\n").as_bytes())?;
        follow.expect(&format!("got {number}\n"));
    }
    late.expect("got 49\n");
    client.write(b"end\n")?;
    client.wait()?.status(1);
    let said = follow.wait()?;
    said.status(0);
    assert!(said.text().ends_with("got 49\nover\n"), "{said:?}");
    assert!(late.wait()?.text().ends_with("over\n"));
    docker.end()
}

fn last_line(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .done([
            "run",
            "--name",
            "half",
            IMAGE,
            "sh",
            "-c",
            "echo whole; echo -n half; exit 1",
        ])?
        .status(1)
        .stdout("whole\nhalf");
    docker.done(["logs", "half"])?.stdout("whole\nhalf");
    // Longer than a record, without a newline.
    let script = "for i in $(seq 1 5000); do echo -n 0123456789; done";
    let done = docker.done(["run", "--name", "long", IMAGE, "sh", "-c", script])?;
    assert_eq!(done.out.len(), 50_000);
    assert!(docker.done(["logs", "long"])?.out == done.out);
    docker.end()
}

fn rotated(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let flags = ["--log-opt", "max-size=10k", "--log-opt", "max-file=3"];
    let id = docker.detached(&flags, "for i in $(seq 1 2000); do echo line $i; done")?;
    docker.ok(["wait", &id])?;
    let kept = docker.ok(["logs", &id])?;
    let lines: Vec<&str> = kept.lines().collect();
    assert!((100..600).contains(&lines.len()), "{} lines", lines.len());
    for (back, line) in lines.iter().rev().enumerate() {
        assert_eq!(*line, format!("line {}", 2000 - back));
    }
    let path = docker.inspect(&id, "{{.LogPath}}")?;
    let mut files = 0;
    for suffix in ["", ".1", ".2", ".3"] {
        if let Ok(data) = std::fs::metadata(format!("{path}{suffix}")) {
            files += 1;
            assert!(data.len() < 11 << 10, "{path}{suffix}: {}", data.len());
        }
    }
    assert_eq!(files, 3);
    let options = docker.inspect(&id, "{{json .HostConfig.LogConfig}}")?;
    assert_eq!(
        options,
        r#"{"Type":"json-file","Config":{"max-file":"3","max-size":"10k"}}"#
    );
    docker.end()
}

fn none(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker
        .done([
            "run",
            "--name",
            "mute",
            "--log-driver",
            "none",
            IMAGE,
            "echo",
            "shown",
        ])?
        .stdout("shown\n");
    docker
        .done(["logs", "mute"])?
        .status(1)
        .stderr_has("configured logging driver does not support reading");
    docker
        .done(["create", "--log-driver", "syslog", IMAGE, "true"])?
        .status(1)
        .stderr_has("syslog");
    docker.end()
}

fn over_restart(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.done([
        "run",
        "--name",
        "again",
        IMAGE,
        "sh",
        "-c",
        "echo one; echo -n two",
    ])?;
    docker.ok(["start", "-a", "again"])?;
    assert_eq!(docker.ok(["logs", "again"])?, "one\ntwoone\ntwo");
    docker.end()
}

fn flood(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let flags = ["--log-opt", "max-size=100k", "--log-opt", "max-file=2"];
    let flood = docker.detached(&flags, "yes a rather long line of a flood")?;
    docker
        .done(["run", "--rm", IMAGE, "echo", "calm"])?
        .status(0)
        .stdout("calm\n");
    docker.lasting("other", &[])?;
    docker
        .done(["exec", "other", "echo", "still"])?
        .stdout("still\n");
    let tail = docker.ok(["logs", "--tail", "3", &flood])?;
    assert_eq!(tail.lines().count(), 3, "{tail}");
    docker.ok(["kill", &flood])?;
    docker.end()
}
