//! Looking in: processes, statistics, limits changed.

use std::time::{Duration, Instant};

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use serde_json::Value;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-observe",
        "top lists the processes, in the columns asked for",
        top,
    )
    .guests_too(),
    Case::new(
        "docker-observe",
        "stats give memory, its limit, and processor time that grows",
        stats,
    )
    .guests_too(),
    Case::new(
        "docker-observe",
        "update changes limits as far as it can",
        update,
    ),
    Case::new(
        "docker-observe",
        "inspect has everything scripts look for",
        inspect,
    ),
];

fn top(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.detached(&["--name", "main"], "sleep 4321 & exec sleep 1234")?;
    let commands = ["sleep 4321", "sleep 1234"];
    let missing = |list: &str| {
        let mut lines = list.lines().skip(1).map(str::trim_end);
        !commands
            .iter()
            .all(|command| lines.clone().any(|line| line.ends_with(command)))
            || lines.any(|line| line.contains("sh -c"))
    };
    let mut list = docker.ok(["top", "main"])?;
    // Between a shell's fork and its child's exec the child is listed as the shell that it still is, and in
    // the middle of an exec by no arguments.
    let deadline = Instant::now() + Duration::from_secs(10);
    while missing(&list) && Instant::now() < deadline {
        list = docker.ok(["top", "main"])?;
    }
    assert!(!missing(&list), "{list}");
    let head = list.lines().next().unwrap_or_default();
    assert!(head.starts_with("UID"), "{list}");
    assert!(head.trim_end().ends_with("CMD"), "{list}");
    let list = docker.ok(["top", "main", "-o", "pid,args"])?;
    assert!(list.starts_with("PID"), "{list}");
    let list = docker.ok(["top", "main", "aux"])?;
    assert!(list.starts_with("USER"), "{list}");
    docker.ok(["kill", "main"])?;
    docker
        .done(["top", "main"])?
        .status(1)
        .stderr_has("is not running");
    docker.end()
}

fn stats(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.detached(&["--name", "busy", "-m", "160m"], "while :; do :; done")?;
    let one = |path: &str| -> Result<Value> {
        Ok(serde_json::from_str(
            &docker.request("GET", path, "")?.body,
        )?)
    };
    let path = "/containers/busy/stats?stream=false";
    let first = one(path)?;
    let second = one(path)?;
    let number = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    for stats in [&first, &second] {
        let (usage, limit) = (
            number(stats, "/memory_stats/usage"),
            number(stats, "/memory_stats/limit"),
        );
        assert!(usage > 0 && usage < limit && limit <= 160 << 20, "{stats}");
        assert!(number(stats, "/pids_stats/current") >= 1, "{stats}");
        assert!(number(stats, "/cpu_stats/online_cpus") == 1, "{stats}");
    }
    let total = "/cpu_stats/cpu_usage/total_usage";
    assert!(
        number(&first, total) < number(&second, total),
        "{first} {second}"
    );
    let table = docker.ok(["stats", "--no-stream"])?;
    assert!(
        table.contains("busy") && table.contains("160MiB"),
        "{table}"
    );
    docker.end()
}

fn update(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["create", "--name", "made", IMAGE, "nproc"])?;
    docker.ok([
        "update",
        "--cpus",
        "2",
        "-m",
        "200m",
        "--memory-swap",
        "-1",
        "made",
    ])?;
    let limits = docker.inspect("made", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}")?;
    assert_eq!(limits, format!("{} 2000000000", 200 << 20));
    assert_eq!(docker.ok(["start", "-a", "made"])?, "2");
    docker
        .done(["update", "-m", "100m", "nobody"])?
        .status(1)
        .stderr_has("No such container: nobody");
    docker
        .done(["create", "-m", "4k", IMAGE, "true"])?
        .status(1)
        .stderr_has("Minimum memory limit");
    docker.end()
}

fn inspect(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let id = docker.lasting("main", &["-e", "A=b", "--restart", "on-failure:2"])?;
    let all: Value = serde_json::from_str(&docker.ok(["inspect", "main"])?)?;
    let one = &all[0];
    for (at, wanted) in [
        ("/Id", Value::from(id)),
        ("/Name", "/main".into()),
        ("/Path", "sh".into()),
        ("/Args/0", "-c".into()),
        ("/State/Status", "running".into()),
        ("/State/Running", true.into()),
        ("/State/OOMKilled", false.into()),
        ("/State/FinishedAt", "0001-01-01T00:00:00Z".into()),
        ("/Config/Image", IMAGE.into()),
        ("/Config/Env/0", "A=b".into()),
        ("/Config/Tty", false.into()),
        ("/Config/StopSignal", "KILL".into()),
        ("/HostConfig/RestartPolicy/Name", "on-failure".into()),
        ("/HostConfig/AutoRemove", false.into()),
        ("/HostConfig/LogConfig/Type", "json-file".into()),
        ("/RestartCount", 0.into()),
        ("/Platform", "linux".into()),
    ] {
        assert_eq!(one.pointer(at), Some(&wanted), "{at} of {one}");
    }
    for at in [
        "/Created",
        "/Image",
        "/State/StartedAt",
        "/LogPath",
        "/HostConfig/Memory",
        "/NetworkSettings/Networks",
        "/Mounts",
        "/Driver",
    ] {
        assert!(one.pointer(at).is_some(), "no {at} in {one}");
    }
    let image = docker.ok(["image", "inspect", "-f", "{{.Id}}", IMAGE])?;
    assert_eq!(docker.inspect("main", "{{.Image}}")?, image);
    docker
        .done(["inspect", "nobody"])?
        .status(1)
        .stdout("[]\n")
        .stderr_has("No such object: nobody");
    docker.end()
}
