//! `vch fork`: running containers out of a running one.

use super::Case;
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-live-fork",
        "a script goes on in parent and children, each on a disk and a machine of its own",
        script,
    )
    .guests_only()
    .guests(2)
    .minutes(5),
    Case::new(
        "docker-live-fork",
        "redis with a million keys answers in parent and child, and connections stay the parent's",
        redis,
    )
    .guests_only()
    .guests(2)
    .minutes(10),
    Case::new(
        "docker-live-fork",
        "what cannot be forked says why, and goes on",
        refused,
    )
    .guests_only()
    .minutes(5),
];

fn fork(docker: &Docker, words: &[&str]) -> Result<Vec<String>> {
    let done = docker.vch([&["fork"], words].concat()).done()?;
    done.status(0);
    Ok(done.text().lines().map(str::to_owned).collect())
}

/// The number that a counting container has come to.
fn count(docker: &Docker, name: &str) -> Result<u32> {
    Ok(docker.ok(["exec", name, "cat", "/count"])?.trim().parse()?)
}

/// Waits until it has come further.
fn goes_on(docker: &Docker, name: &str) -> Result<()> {
    let before = count(docker, name)?;
    for _ in 0..100 {
        if count(docker, name)? > before {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{name} stands still at {before}");
}

fn script(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    // A file that stays open, a number that is nowhere but in memory, a file of its own on the disk.
    let script = "exec 9>>/open; i=0; while :; do i=$((i+1)); echo $i >&9; echo $i >/count.new; \
        mv /count.new /count; sleep 0.1; done";
    let flags = ["--name", "parent", "-m", "96m", "--stop-signal", "KILL"];
    docker.detached(&flags, script)?;
    docker.ok(["exec", "parent", "sh", "-c", "echo before >/mark"])?;
    goes_on(&docker, "parent")?;
    let at_fork = count(&docker, "parent")?;
    let children = fork(&docker, &["parent", "--count", "2"])?;
    assert_eq!(children.len(), 2);
    let all = [&["parent".to_owned()], &children[..]].concat();
    for name in &all {
        goes_on(&docker, name)?;
        assert!(count(&docker, name)? > at_fork, "{name} began anew");
        // No line of the file that was open is missing or there twice.
        let lines = docker.ok(["exec", name, "cat", "/open"])?;
        assert!(
            lines
                .lines()
                .zip(1..)
                .all(|(line, n)| line == n.to_string()),
            "{lines}"
        );
        assert_eq!(docker.ok(["exec", name, "cat", "/mark"])?, "before");
        docker.ok(["exec", name, "sh", "-c", "hostname >/mark"])?;
    }
    // Nothing that tells machines apart is common to two.
    for what in [
        "cat /proc/sys/kernel/random/boot_id",
        "head -c 16 /dev/urandom | sha256sum",
        "hostname",
        "cat /sys/class/net/eth0/address",
        "cat /mark",
    ] {
        let answers = all
            .iter()
            .map(|name| docker.ok(["exec", name, "sh", "-c", what]))
            .collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(answers.len(), all.len(), "{what}: {answers:?}");
    }
    // A child is forked again, and its child outlives it.
    let grandchild = fork(&docker, &[&children[0]])?.remove(0);
    docker.ok(["rm", "-f", &children[0]])?;
    goes_on(&docker, &grandchild)?;
    goes_on(&docker, "parent")?;
    // A parent that is started again has its disk as it left it.
    docker.ok(["stop", "parent"])?;
    docker.ok(["cp", "parent:/mark", "-"])?;
    docker.ok(["start", "parent"])?;
    assert_ne!(docker.ok(["exec", "parent", "cat", "/mark"])?, "before");
    // And so has a child after its controller was killed.
    docker.kill_serving()?;
    docker.start_serving()?;
    goes_on(&docker, &children[1])?;
    docker.end()
}

fn refused(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--memory", "256m"])?;
    docker.lasting("one", &["-m", "96m"])?;
    let refused = |words: &[&str], why: &str| -> Result<()> {
        let done = docker.vch([&["fork"], words].concat()).done()?;
        done.status(125).stderr_has(why);
        Ok(())
    };
    refused(&["nobody"], "No such container: nobody")?;
    refused(&["one", "--count", "0"], "1 to 64 children")?;
    // Two more of 96 MiB are more than the VCH has.
    refused(&["one", "--count", "2"], "memory")?;
    docker.ok(["pause", "one"])?;
    refused(&["one"], "is paused")?;
    docker.ok(["unpause", "one"])?;
    assert_eq!(docker.ok(["ps", "-aq"])?.lines().count(), 1);
    assert_eq!(docker.ok(["exec", "one", "echo", "here"])?, "here");
    docker.ok(["kill", "one"])?;
    refused(&["one"], "is not running")?;
    docker.end()
}

fn redis(t: &Context) -> Result<()> {
    const KEYS: u32 = 1_000_000;
    let docker = Docker::serve(t)?;
    docker.import("redis")?;
    let words = [
        "run",
        "-d",
        "--name",
        "kv",
        "-m",
        "512m",
        "-p",
        "127.0.0.1::6379",
        "sample/redis",
    ];
    docker.ok(words)?;
    docker
        .cmd(["logs", "-f", "kv"])
        .spawn()?
        .expect("Ready to accept connections");
    let cli =
        |name: &str, words: &[&str]| docker.ok([&["exec", name, "redis-cli"], words].concat());
    let fill = "for i = 1, ARGV[1] do redis.call('set', 'key:' .. i, i * 7) end return 'full'";
    assert_eq!(cli("kv", &["EVAL", fill, "0", &KEYS.to_string()])?, "full");
    // A connection from outside, over the published port, that lasts.
    let shown = docker.ok(["port", "kv", "6379"])?;
    let address = shown
        .lines()
        .next()
        .context("no port is published")?
        .to_owned();
    let mut client = BufReader::new(TcpStream::connect(&address)?);
    client
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut ask = |command: &str| -> Result<String> {
        client
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        client.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    assert_eq!(ask("PING")?, "+PONG");
    let child = fork(&docker, &["kv"])?.remove(0);
    for name in ["kv", &child] {
        assert_eq!(cli(name, &["DBSIZE"])?, KEYS.to_string(), "{name}");
        for key in [1, 123_456, KEYS] {
            let value = cli(name, &["GET", &format!("key:{key}")])?;
            assert_eq!(value, (u64::from(key) * 7).to_string(), "{name}");
        }
    }
    // The parent never lost it; in the child it was reset.
    assert_eq!(ask("SET whose parent")?, "+OK");
    assert_eq!(cli(&child, &["GET", "whose"])?, "");
    let connected = |name: &str| -> Result<usize> {
        Ok(cli(name, &["CLIENT", "LIST"])?
            .lines()
            .filter(|line| !line.is_empty())
            .count())
    };
    // Itself is one.
    assert_eq!((connected("kv")?, connected(&child)?), (2, 1));
    // The child is reached from outside at a port of its own.
    let own = docker.ok(["port", &child, "6379"])?;
    let own = own
        .lines()
        .next()
        .context("the child publishes no port")?
        .to_owned();
    assert_ne!(own, address);
    let mut stream = BufReader::new(TcpStream::connect(&own)?);
    stream
        .get_ref()
        .set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.get_mut().write_all(b"GET key:2\r\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    line.clear();
    stream.read_line(&mut line)?;
    assert_eq!(line.trim_end(), "14");
    docker.end()
}
