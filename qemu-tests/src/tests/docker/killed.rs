//! `vch serve` killed at any moment: nothing is lost and nothing is orphaned.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use crate::random::Random;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-killed",
        "vch serve killed eight times at random under load loses no line, no status and no VM",
        eight,
    )
    .vsphere_too()
    .guests_only()
    .guests(2)
    .minutes(8),
    Case::new(
        "docker-killed",
        "vch serve killed a hundred times at random under load loses no line, no status and no VM",
        hundred,
    )
    .guests_only()
    .guests(2)
    .minutes(60)
    .on_request(),
];

/// A container that counts, and ends with a status of its own when its number is reached.
struct Counting {
    lines: u32,
    status: i32,
}

fn eight(t: &Context) -> Result<()> {
    killed(t, 8)
}

fn hundred(t: &Context) -> Result<()> {
    killed(t, 100)
}

/// Starts containers all the time, some that end by themselves and some that are removed, and kills the one
/// that serves `times` times in between.
fn killed(t: &Context, times: u32) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mut random = Random::from_clock();
    println!("seed {}", random.seed());
    let mut counting = BTreeMap::new();
    let mut started = 0;
    for round in 0..times {
        // At most two run at once; those that ended are kept to be looked at.
        let running = docker.ok(["ps", "-q"])?.lines().count();
        let mut clients = Vec::new();
        if running < 2 {
            started += 1;
            let (name, lines) = (format!("count-{started}"), 50 + random.below(300) as u32);
            let status = random.below(200) as i32;
            let script = format!(
                "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.02; done; exit {status}"
            );
            let words = [
                "run", "-d", "-m", "96m", "--name", &name, IMAGE, "sh", "-c", &script,
            ];
            clients.push(docker.cmd(words).spawn()?);
            counting.insert(name, Counting { lines, status });
        }
        // Others come and go; what becomes of them is not foreseen, but for that they end.
        let passing = format!("passing-{round}");
        let words = [
            "run", "-d", "--rm", "-m", "96m", "--name", &passing, IMAGE, "sleep", "1",
        ];
        clients.push(docker.cmd(words).spawn()?);
        let other = format!("made-{round}");
        clients.push(
            docker
                .cmd(["create", "--name", &other, IMAGE, "true"])
                .spawn()?,
        );
        // The moment is the point: anywhere in what these do.
        std::thread::sleep(Duration::from_millis(random.below(3000)));
        docker.kill_serving()?;
        for client in clients {
            // Cut off, or done before.
            client.wait()?;
        }
        docker.start_serving()?;
    }
    let all = docker.ok(["ps", "-a", "--format", "{{.Names}}"])?;
    let mut found = 0;
    for (name, Counting { lines, status }) in &counting {
        // One whose creation was cut off is there whole or not at all.
        if !all.lines().any(|other| other == name) {
            continue;
        }
        if docker.inspect(name, "{{.State.Status}}")? == "created" {
            docker.ok(["start", name])?;
        }
        assert_eq!(docker.ok(["wait", name])?, status.to_string(), "{name}");
        let log = docker.ok(["logs", name])?;
        let expected: Vec<String> = (1..=*lines)
            .map(|number| format!("line {number}"))
            .collect();
        assert!(
            log.lines().eq(expected.iter()),
            "{name}: {} lines of {lines}: {log}",
            log.lines().count()
        );
        found += 1;
    }
    assert!(found > 0, "no container survived its creation");
    docker.end()
}
