//! Containers of QEMUs that were started ahead of need.

use super::Case;
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-spares",
        "a container of a QEMU started ahead is as any other, and none is left over",
        as_any_other,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(3)
    .minutes(5),
    Case::new(
        "docker-spares",
        "a spare that was killed, or has another shape, is in nobody's way",
        no_good,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(2)
    .minutes(5),
    Case::new(
        "docker-spares",
        "VCHs share no page of a template unless told to",
        isolation,
    )
    .guests_only()
    .not_on_vsphere()
    .guests(2)
    .minutes(5),
];

/// What is in the place of the VCH's machines.
fn places(t: &Context) -> Result<Vec<PathBuf>> {
    let machines = t.state().join("vch/default/machines/machines");
    let list = std::fs::read_dir(&machines)
        .with_context(|| format!("cannot list {}", machines.display()))?;
    list.map(|entry| Ok(entry?.path())).collect()
}

fn spares(t: &Context) -> Result<BTreeSet<PathBuf>> {
    let is_spare = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(".spare-")
    };
    Ok(places(t)?.into_iter().filter(is_spare).collect())
}

/// Waits until there are so many, and the controller says of each that it is ready.
fn wait_for_spares(t: &Context, docker: &Docker, count: usize) -> Result<BTreeSet<PathBuf>> {
    for _ in 0..600 {
        let said = docker.serving_says("a QEMU is ready ahead of need")?;
        let found = spares(t)?;
        if found.len() == count && found.iter().all(|home| is_ready(home, &said)) {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("there are {:?}, not {count}", spares(t)?);
}

/// The controller has said of it that it is ready.
fn is_ready(home: &std::path::Path, said: &str) -> bool {
    let name = home.file_name().unwrap_or_default().to_string_lossy();
    let id = name.trim_start_matches(".spare-");
    said.lines()
        .any(|line| line.contains("ready ahead of need") && line.contains(id))
}

/// The machines of containers that were spares.
fn taken_over(t: &Context) -> Result<Vec<PathBuf>> {
    let all = places(t)?.into_iter();
    Ok(all.filter(|home| home.join("run").is_dir()).collect())
}

/// The processes that run in a directory.
pub(super) fn running_in(home: &std::path::Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (Some(pid), Ok(cwd)) = (pid, std::fs::read_link(path.join("cwd")))
            && cwd.starts_with(home)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

fn as_any_other(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--spares", "1", "--log-level", "debug"])?;
    docker.lasting("first", &["-m", "96m"])?;
    let spare = wait_for_spares(t, &docker, 1)?;
    let script = "echo served >/tmp/index.html; httpd -p 80 -h /tmp; echo started; sleep 100000";
    let flags = [
        "--name",
        "web",
        "-m",
        "96m",
        "-p",
        "127.0.0.1::80",
        "--stop-signal",
        "KILL",
    ];
    docker.detached(&flags, script)?;
    let taken = taken_over(t)?;
    assert_eq!(taken.len(), 1, "the spare {spare:?} was not used");
    let machine = taken[0].file_name().unwrap_or_default().to_string_lossy();
    // Who it is, is what it would be had it been forked for it.
    let uuid = "cat /sys/class/dmi/id/product_uuid";
    let id = docker.inspect("web", "{{.Id}}")?;
    assert_eq!(docker.ok(["exec", "web", "sh", "-c", uuid])?, machine);
    assert_eq!(docker.ok(["exec", "web", "hostname"])?, id[..12]);
    let mac = docker.ok(["exec", "web", "cat", "/sys/class/net/eth0/address"])?;
    assert_eq!(
        mac,
        docker.inspect(
            "web",
            "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}"
        )?
    );
    let all = ["first", "web"];
    for what in [
        uuid,
        "cat /proc/sys/kernel/random/boot_id",
        "head -c 16 /dev/urandom | sha256sum",
        "cat /etc/machine-id",
        "cat /sys/class/net/eth0/address",
    ] {
        let answers = all
            .iter()
            .map(|name| docker.ok(["exec", name, "sh", "-c", what]))
            .collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(answers.len(), all.len(), "{what}: {answers:?}");
    }
    let served = |port: String| -> Result<()> {
        let mut stream = std::net::TcpStream::connect(port.trim())?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.ends_with("served\n"), "{answer:?}");
        Ok(())
    };
    docker.ok(["logs", "web"])?;
    served(docker.ok(["port", "web", "80"])?)?;
    // The next controller finds it, and ends the spares of the last.
    let spare = wait_for_spares(t, &docker, 1)?;
    docker.kill_serving()?;
    docker.start_serving()?;
    assert_eq!(docker.ok(["exec", "web", "sh", "-c", uuid])?, machine);
    assert_eq!(docker.ok(["logs", "web"])?, "started");
    served(docker.ok(["port", "web", "80"])?)?;
    for home in &spare {
        assert!(!home.exists(), "{} is left", home.display());
        assert_eq!(running_in(home)?, Vec::<u32>::new());
    }
    // It is paused, forked while it runs, stopped and started.
    docker.ok(["pause", "web"])?;
    docker.ok(["unpause", "web"])?;
    let child = docker.vch(["fork", "web"]).done()?;
    child.status(0);
    let child = child.text().trim().to_owned();
    assert_ne!(docker.ok(["exec", &child, "sh", "-c", uuid])?, machine);
    docker.ok(["rm", "-f", &child])?;
    docker.ok(["stop", "web"])?;
    docker.ok(["cp", "web:/tmp/index.html", "-"])?;
    docker.ok(["start", "web"])?;
    assert_eq!(docker.ok(["exec", "web", "sh", "-c", uuid])?, machine);
    docker.end()?;
    assert_eq!(places(t)?, Vec::<PathBuf>::new());
    Ok(())
}

fn no_good(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--spares", "1", "--log-level", "debug"])?;
    docker.ok(["run", "--rm", "-m", "96m", "sample/busybox", "true"])?;
    let spare = wait_for_spares(t, &docker, 1)?;
    for home in &spare {
        for pid in running_in(home)? {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("a process 0")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
    }
    let hello = [
        "run",
        "--rm",
        "-m",
        "96m",
        "sample/busybox",
        "echo",
        "hello",
    ];
    assert_eq!(docker.ok(hello)?, "hello");
    // Another memory, another number of vNICs: each is started for itself, and the spare after it is like it.
    let other = [
        "run",
        "--rm",
        "-m",
        "64m",
        "sample/busybox",
        "echo",
        "hello",
    ];
    assert_eq!(docker.ok(other)?, "hello");
    let alone = [
        "run",
        "--rm",
        "-m",
        "64m",
        "--network",
        "none",
        "sample/busybox",
        "ls",
        "/sys/class/net",
    ];
    assert_eq!(docker.ok(alone)?, "lo");
    wait_for_spares(t, &docker, 1)?;
    assert_eq!(docker.ok(alone)?, "lo");
    assert_eq!(docker.ok(other)?, "hello");
    docker.end()?;
    assert_eq!(places(t)?, Vec::<PathBuf>::new());
    Ok(())
}

/// The file that the memory of the one machine in a VCH is a view of: its device and inode.
fn memory_of(t: &Context, vch: &str) -> Result<(String, String)> {
    let machines = t.state().join("vch").join(vch).join("machines/machines");
    let pids = running_in(&machines)?;
    let pid = pids.first().context("no machine runs")?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("/ram"))
        .with_context(|| format!("process {pid} has no template's memory"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    Ok((words[3].to_owned(), words[4].to_owned()))
}

fn isolation(t: &Context) -> Result<()> {
    // Only for its image store.
    Docker::serve(t)?.end()?;
    let shared = t.environment().templates().join("isolation");
    let shared = shared.display().to_string();
    let memory = |vch: &str, flags: &[&str]| -> Result<(String, String)> {
        let host = format!("unix://{}", t.file(vch).display());
        let words = [&["serve", "--host", &host, "--name", vch], flags].concat();
        let mut serve = t.vch(words).without("VCH_TEMPLATES").spawn()?;
        serve.expect_error("listening");
        let docker = |words: &[&str]| {
            let client = t
                .vch(words)
                .program("docker")
                .variable("DOCKER_HOST", &host);
            client.done().map(|done| done.status(0).text())
        };
        let run = ["run", "-d", "--stop-signal", "KILL", "-m", "96m"];
        let id = docker(&[&run[..], &["sample/busybox", "sleep", "1000"]].concat())?;
        let memory = memory_of(t, vch)?;
        docker(&["rm", "-f", id.trim()])?;
        serve.signal(rustix::process::Signal::TERM)?;
        serve.wait()?.status(0);
        Ok(memory)
    };
    let (one, two) = (memory("one", &[])?, memory("two", &[])?);
    assert_ne!(one, two, "two VCHs share memory");
    assert_eq!(memory("one", &[])?, one, "a VCH has its template for good");
    let told = ["--templates", &shared];
    let (three, four) = (memory("three", &told)?, memory("four", &told)?);
    assert_eq!(three, four, "two VCHs that were told to share do not");
    for name in ["one", "two"] {
        assert_ne!(memory(name, &[])?, three);
    }
    Ok(())
}
