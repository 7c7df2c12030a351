//! `vch fork`: running containers out of a running one.

use super::{Case, spares};
use crate::docker::Docker;
use crate::harness::{Context, skip};
use crate::random::Random;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
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
    .not_on_vsphere()
    .guests(2)
    .minutes(5),
    Case::new(
        "docker-live-fork",
        "redis with a million keys answers in parent and child, and connections stay the parent's",
        redis,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(2)
    .minutes(10),
    Case::new(
        "docker-live-fork",
        "threads go on with what they have in registers and memory, and are told of it",
        threads,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(2)
    .minutes(5),
    Case::new(
        "docker-live-fork",
        "a controller killed while it forks costs the parent nothing and leaves no half child",
        killed,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(2)
    .minutes(8),
    Case::new(
        "docker-live-fork",
        "what cannot be forked says why, and goes on",
        refused,
    )
    .guests_only()
    .not_on_vsphere()
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

/// The files that live forks have their memory from: how many machines map each.
fn shared(t: &Context) -> Result<BTreeMap<String, usize>> {
    let mut files = BTreeMap::new();
    for pid in spares::running_in(&t.state().join("vch"))? {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let mut lines = maps.lines();
        let Some(line) = lines.find(|line| line.contains("/memfd:vch-fork ")) else {
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        *files.entry(words[4].to_owned()).or_default() += 1;
        let mut pages = |name: &str| -> Result<u64> {
            let line = lines
                .find(|line| line.starts_with(name))
                .context("no line")?;
            Ok(line
                .split_whitespace()
                .nth(1)
                .context("no number")?
                .parse()?)
        };
        let (all, own) = (pages("Rss:")?, pages("Anonymous:")?);
        assert!(
            own < all / 2,
            "{pid} has {own} KiB of {all} for itself: {maps}"
        );
    }
    Ok(files)
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
    // One copy of what was there, for the parent as well.
    assert_eq!(shared(t)?.into_values().collect::<Vec<_>>(), [3]);
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
    assert_eq!(shared(t)?.into_values().collect::<Vec<_>>(), [2, 2]);
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

/// Four threads that count, each in a register and in memory of its own; the first thread says how far
/// they are, what the file says, and how many signals came.
const COUNTING: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static volatile unsigned long counts[4];
static volatile int wrong, told;
static void hear(int signal) { told++; }
static void *count(void *number) {
    volatile unsigned long *shared = &counts[(long)number];
    for (unsigned long own = 0;; own++) {
        if (*shared != own) wrong++;
        *shared = own + 1;
        usleep(1000);
    }
}
int main(void) {
    signal(SIGUSR1, hear);
    for (long i = 0; i < 4; i++) {
        pthread_t thread;
        pthread_create(&thread, 0, count, (void *)i);
    }
    for (;;) {
        char forks[16] = "?";
        FILE *file = fopen("/dev/vch-fork", "r");
        if (file) { fscanf(file, "%15s", forks); fclose(file); }
        FILE *out = fopen("/said.new", "w");
        fprintf(out, "%lu %lu %lu %lu wrong %d told %d forks %s\n",
            counts[0], counts[1], counts[2], counts[3], wrong, told, forks);
        fclose(out);
        rename("/said.new", "/said");
        usleep(50000);
    }
}
"#;

/// What the counting program last said: its counts, and the rest.
fn said(docker: &Docker, name: &str) -> Result<([u64; 4], String)> {
    let line = docker.ok(["exec", name, "cat", "/said"])?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut counts = [0; 4];
    for (count, word) in counts.iter_mut().zip(&words) {
        *count = word.parse().with_context(|| format!("{line:?}"))?;
    }
    Ok((counts, words.get(4..).unwrap_or_default().join(" ")))
}

fn threads(t: &Context) -> Result<()> {
    if crate::environment::program("musl-gcc").is_none() {
        return skip("there is no musl-gcc: install the package musl-tools");
    }
    let (source, program) = (t.file("counting.c"), t.file("counting"));
    std::fs::write(&source, COUNTING)?;
    let built = std::process::Command::new("musl-gcc")
        .args(["-O1", "-static", "-pthread", "-o"])
        .args([&program, &source])
        .status()?;
    assert!(built.success(), "musl-gcc: {built}");
    let docker = Docker::serve(t)?;
    let flags = ["--cpus", "2", "-m", "96m", "--name", "parent"];
    let words = [&["create"], &flags[..], &["sample/busybox", "/counting"]].concat();
    docker.ok(words)?;
    let from = program.display().to_string();
    docker.ok(["cp", &from, "parent:/counting"])?;
    docker.ok(["start", "parent"])?;
    let further = |name: &str, than: [u64; 4]| -> Result<String> {
        for _ in 0..200 {
            if let Ok((counts, rest)) = said(&docker, name)
                && counts.iter().zip(than).all(|(count, than)| *count > than)
            {
                return Ok(rest);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{name} stands still: {:?}", said(&docker, name));
    };
    assert_eq!(further("parent", [0; 4])?, "wrong 0 told 0 forks 0");
    let (at_fork, _) = said(&docker, "parent")?;
    let child = fork(&docker, &["parent", "--signal", "USR1"])?.remove(0);
    assert_eq!(further("parent", at_fork)?, "wrong 0 told 0 forks 0");
    // What it said of the moment of the fork may be from just before.
    let (counts, _) = said(&docker, &child)?;
    assert_eq!(further(&child, counts)?, "wrong 0 told 1 forks 1");
    assert!(
        counts.iter().zip(at_fork).all(|(now, then)| *now >= then),
        "{counts:?} is before {at_fork:?}"
    );
    let grandchild = fork(&docker, &[&child, "--signal", "USR1"])?.remove(0);
    let (counts, _) = said(&docker, &grandchild)?;
    assert_eq!(further(&grandchild, counts)?, "wrong 0 told 2 forks 2");
    docker.end()
}

fn killed(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut random = Random::from_clock();
    println!("seed {}", random.seed());
    let script = "i=0; while :; do i=$((i+1)); echo $i >/count.new; mv /count.new /count; \
        echo $i; sleep 0.1; done";
    let flags = ["--name", "parent", "-m", "64m", "--stop-signal", "KILL"];
    docker.detached(&flags, script)?;
    let begun = "until [ -f /count ]; do sleep 0.1; done";
    docker.ok(["exec", "parent", "sh", "-c", begun])?;
    for round in 0..6 {
        goes_on(&docker, "parent")?;
        let forking = docker.vch(["fork", "parent"]).spawn()?;
        std::thread::sleep(Duration::from_millis(random.below(700)));
        docker.kill_serving()?;
        // Its answer is lost, or it came just before.
        drop(forking.wait()?);
        docker.start_serving()?;
        goes_on(&docker, "parent")?;
        // Whatever else there is, is a whole child and runs, or there is none.
        let all = docker.ok(["ps", "-a", "--format", "{{.Names}} {{.State}}"])?;
        for line in all.lines() {
            let (name, state) = line.split_once(' ').context("no state")?;
            if name == "parent" {
                continue;
            }
            println!("round {round}: {name} is {state}");
            assert_eq!(state, "running", "{all}");
            goes_on(&docker, name)?;
            docker.ok(["rm", "-f", name])?;
        }
    }
    // It lost no line of what it said, nor said one twice.
    let lines = docker.ok(["logs", "parent"])?;
    for (expected, line) in (1u32..).zip(lines.lines()) {
        assert_eq!(line, expected.to_string());
    }
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
