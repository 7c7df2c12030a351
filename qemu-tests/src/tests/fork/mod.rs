//! VMs that begin as a template's copy: they are machines of their own, and leave nothing behind.
//!
//! The other groups fork too, where nothing stands against it; here is what only forks can get wrong.

mod driver;
mod identity;
mod templates;

use super::{mute, resume};
use crate::harness::{Context, Test, skip};
use crate::random::Random;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const TESTS: &[Test] = &[
    Test::new(
        "fork",
        "the first VM makes the template and the next one uses it",
        hello,
    ),
    Test::new(
        "fork",
        "forks one after another have nothing of their own in common and leave nothing",
        identity::in_sequence,
    )
    .minutes(30),
    Test::new(
        "fork",
        "forks at once have nothing of their own in common and leave nothing",
        identity::at_once,
    )
    .guests(10)
    .minutes(10),
    Test::new(
        "fork",
        "the clock is right before the first instruction of the workload",
        clock,
    ),
    Test::new("fork", "counters begin at the fork", counters),
    Test::new(
        "fork",
        "a template is made anew for every changed input",
        templates::changed_inputs,
    )
    .minutes(6),
    Test::new(
        "fork",
        "a damaged template is found out and made anew",
        templates::damaged,
    )
    .minutes(6),
    Test::new(
        "fork",
        "a template that is being made is waited for",
        templates::waited_for,
    )
    .guests(4),
    Test::new(
        "fork",
        "a controller killed while it makes a template or forks is no loss",
        killed,
    )
    .minutes(6),
    Test::new("fork", "what cannot be forked boots and says why", instead),
    Test::new(
        "fork",
        "a fork that does not answer in its time is destroyed, and its console shown",
        mute_fork,
    ),
    Test::new(
        "fork",
        "a driver forks a named template, all of the children or none",
        driver::by_name,
    ),
    Test::new(
        "fork",
        "volumes, tmpfs and a read-only root are there in a fork",
        mounts,
    ),
];

/// A place for templates that is this test's alone.
struct Templates<'a> {
    test: &'a Context,
    directory: PathBuf,
}

impl<'a> Templates<'a> {
    fn of(test: &'a Context) -> Self {
        let name = test.directory().file_name().unwrap_or_default();
        let directory = test.environment().templates().join(name);
        Self { test, directory }
    }

    fn run(&self, script: &str, flags: &[&str]) -> crate::vch::Run<'a> {
        self.test
            .script(script)
            .flags(["--rm", "--boot", "fork"])
            .flags(flags)
            .variable("VCH_TEMPLATES", &self.directory)
    }

    /// What `vch template ls --json` says: creation and directory, by id.
    fn all(&self) -> Result<BTreeMap<String, PathBuf>> {
        let done = self
            .test
            .vch(["template", "ls", "--quiet"])
            .variable("VCH_TEMPLATES", &self.directory)
            .done()?;
        done.status(0).stderr("");
        Ok(done
            .text()
            .lines()
            .map(|id| (id.to_owned(), self.directory.join(id)))
            .collect())
    }

    fn only(&self) -> Result<PathBuf> {
        let all = self.all()?;
        ensure!(all.len() == 1, "{} templates: {all:?}", all.len());
        all.into_values().next().context("no template")
    }

    /// What changes when it is made anew.
    fn made(&self) -> Result<String> {
        let record = std::fs::read_to_string(self.only()?.join("template.json"))?;
        let created = record
            .lines()
            .find(|line| line.contains("nanos_since_epoch"));
        Ok(created.context("no creation time")?.to_owned())
    }
}

fn nothing_in(directory: &Path) -> Result<()> {
    match std::fs::read_dir(directory)?.next() {
        Some(entry) => bail!("{} is left", entry?.path().display()),
        None => Ok(()),
    }
}

/// Nothing of a container that was removed is in the state directory.
fn nothing_left(t: &Context) -> Result<()> {
    let runs = t.state().join("runs");
    nothing_in(&runs)
}

fn hello(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    for _ in 0..2 {
        let done = templates.run("echo hello", &[]).done()?;
        done.stderr("");
        assert_eq!(done.finished(), "hello\n");
    }
    let home = templates.only()?;
    let made = templates.made()?;
    let id = home.file_name().unwrap_or_default().to_string_lossy();
    let shown = t
        .vch(["template", "inspect", &id[..12]])
        .variable("VCH_TEMPLATES", &templates.directory)
        .done()?;
    shown.status(0).stderr("");
    assert!(shown.text().contains(&*id) && shown.text().contains("bzImage"));
    // The same that `run` would make, so it is there.
    let built = t
        .vch(["template", "build"])
        .variable("VCH_TEMPLATES", &templates.directory)
        .done()?;
    built.status(0).stdout(&format!("{id}\n"));
    assert_eq!(templates.made()?, made);
    let removed = t
        .vch(["template", "rm", &id[..12]])
        .variable("VCH_TEMPLATES", &templates.directory)
        .done()?;
    removed.status(0).stdout(&format!("{id}\n"));
    nothing_in(&templates.directory)?;
    nothing_left(t)
}

/// Microseconds since the Unix epoch.
fn now() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_micros() as i128
}

/// The time that `adjtimex` showed.
fn guest_time(said: &str) -> Result<i128> {
    let number = |name: &str| -> Result<i128> {
        let line = said.lines().find(|line| line.contains(name));
        let word = line.and_then(|line| line.split_ascii_whitespace().nth(1));
        Ok(word
            .with_context(|| format!("no {name} in {said}"))?
            .parse()?)
    };
    Ok(number("time.tv_sec")? * 1_000_000 + number("time.tv_usec")?)
}

fn clock(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    // It is long ago that the template's clock was right.
    templates.run("true", &[]).done()?.finished();
    // What lies between two processes on a host that is busy with others is not the clock's error: one
    // time of several that it is right is enough, for a wrong one never is.
    let mut wrong = String::new();
    for _ in 0..5 {
        match clock_error(&templates)? {
            None => return Ok(()),
            Some(error) => wrong = error,
        }
    }
    panic!("{wrong}");
}

/// How far a fork's clock is off, if it is by more than 10 ms.
fn clock_error(templates: &Templates) -> Result<Option<String>> {
    let mut running = templates
        .run(
            "adjtimex; echo first; read line; adjtimex; echo second",
            &["-i"],
        )
        .stdin_open()
        .spawn()?;
    running.expect("first");
    let (first_seen, asked) = (now(), now());
    running.write(b"\n")?;
    running.expect("second");
    let second_seen = now();
    let said = running.wait()?.finished();
    let Some((first, second)) = said.split_once("first\n") else {
        bail!("{said}");
    };
    let (first, second) = match (guest_time(first), guest_time(second)) {
        (Ok(first), Ok(second)) => (first, second),
        _ => skip("this busybox's adjtimex shows no time")?,
    };
    // What the guest read lies between asking and hearing, or its clock is wrong by so much.
    let ahead = (first - first_seen).max(second - second_seen);
    let behind = asked - second;
    println!("ahead by {ahead} us, behind by {behind} us at least");
    if ahead >= 10_000 || behind >= 10_000 {
        return Ok(Some(format!("ahead by {ahead} us, behind by {behind} us")));
    }
    // Nor is it that the answer took long enough to hide it: the clock was not set in between.
    let between = second - first;
    assert!(between >= 0, "the clock went back by {between} us");
    Ok(None)
}

fn counters(t: &Context) -> Result<()> {
    let said = Templates::of(t)
        .run(
            "cat /sys/class/net/eth0/statistics/tx_bytes
             cat /sys/fs/cgroup/memory.events | grep -c 'oom_kill 0'",
            &[],
        )
        .done()?
        .finished();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].parse::<u64>()? < 100_000, "{said}");
    assert_eq!(lines[1], "1");
    Ok(())
}

fn killed(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut random = Random::from_clock();
    let variables = [("VCH_TEMPLATES", templates.directory.as_path())];
    for number in 0..8 {
        let name = format!("killed{number}");
        // The first rounds make the template, the others fork.
        let within = if number < 3 { 3000 } else { 800 };
        let after = Duration::from_millis(random.below(within));
        resume::starts_once(t, &name, &["--boot", "fork"], &variables, after)
            .with_context(|| format!("round {number} of seed {}", random.seed()))?;
    }
    assert_eq!(
        templates.run("echo hello", &[]).done()?.finished(),
        "hello\n"
    );
    for entry in std::fs::read_dir(&templates.directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with('.'), "{name} is left");
    }
    Ok(())
}

fn instead(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let cases: [(&[&str], &str); 2] = [
        (&["--channel", "serial"], "virtio channel"),
        (&["--hardware", "vmware"], "virtio hardware"),
    ];
    for (flags, why) in cases {
        let done = templates.run("echo hello", flags).done()?;
        assert_eq!(done.finished(), "hello\n");
        done.stderr_has("booted instead").stderr_has(why);
    }
    let done = t
        .script("echo hello")
        .flags(["--boot", "fork"])
        .variable("VCH_TEMPLATES", t.file("templates"))
        .done()?;
    assert_eq!(done.finished(), "hello\n");
    if rustix::fs::statfs(t.directory())?.f_type != 0x0102_1994 {
        done.stderr_has("not on a tmpfs");
    }
    Ok(())
}

fn mute_fork(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let initramfs = t.file("mute.cpio");
    std::fs::write(&initramfs, mute::template())?;
    templates
        .run("true", &["--boot-timeout", "5", "--initrd"])
        .flags([&initramfs])
        .done()?
        .status(125)
        .stdout("")
        .says(&["did not answer", "5 s"])
        .shows_console(mute::MUTTERED);
    templates.only()?;
    nothing_left(t)
}

fn mounts(t: &Context) -> Result<()> {
    let volumes: Vec<String> = (0..3)
        .map(|number| {
            let file = t.file(&format!("v{number}.vmdk"));
            format!("{}:/v{number}:size=64m", file.display())
        })
        .collect();
    let mut flags = vec!["--read-only", "--tmpfs", "/t", "--cpus", "2", "-m", "192m"];
    for volume in &volumes {
        flags.extend(["-v", volume]);
    }
    let said = Templates::of(t)
        .run(
            "for v in /v0 /v1 /v2 /t; do echo $v >$v/file; cat $v/file; done
             ! touch /file 2>/dev/null
             grep -c ^processor /proc/cpuinfo
             df -h / >/dev/null",
            &flags,
        )
        .done()?
        .finished();
    assert_eq!(said, "/v0\n/v1\n/v2\n/t\n2\n");
    Ok(())
}
