//! VMs that begin as a template's copy: they are machines of their own, and leave nothing behind.
//!
//! The other groups fork too, where nothing stands against it; here is what only forks can get wrong.

use super::mute;
use crate::harness::{Context, Test, skip};
use crate::machine::block_on;
use crate::random::Random;
use crate::vch::Done;
use anyhow::{Context as _, Result, bail, ensure};
use hypervisor::{
    Boot, Cause, ChannelKey, ChannelKind, Cpus, Fork, ForkParent, Hardware, Hypervisor as _,
    MachineId, MachineSpec, Memory, PowerOff, PowerState, Start, Started,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub const TESTS: &[Test] = &[
    Test::new(
        "fork",
        "the first VM makes the template and the next one uses it",
        hello,
    ),
    Test::new(
        "fork",
        "forks one after another have nothing of their own in common and leave nothing",
        in_sequence,
    )
    .minutes(30),
    Test::new(
        "fork",
        "forks at once have nothing of their own in common and leave nothing",
        at_once,
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
        changed_inputs,
    )
    .minutes(6),
    Test::new(
        "fork",
        "a damaged template is found out and made anew",
        damaged,
    )
    .minutes(6),
    Test::new(
        "fork",
        "a template that is being made is waited for",
        waited_for,
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
        by_name,
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

/// Says what no two machines may have in common, a line each: random bytes first of all.
const IDENTITY: &str = "
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n'; echo
head -c 32 /dev/random | od -An -v -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/uuid
mktemp -u XXXXXXXXXXXX
od -An -v -tx8 /proc/self/auxv | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/boot_id
cat /etc/machine-id
cat /sys/class/dmi/id/product_uuid
cat /etc/hostname
hostname
cat /sys/class/net/eth0/address";

/// What was said, line by line, each with what it is.
#[derive(Default)]
struct Seen(BTreeSet<(usize, String)>, usize);

impl Seen {
    fn add(&mut self, said: &str) {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 11, "{said}");
        for (number, line) in lines.into_iter().enumerate() {
            assert!(line.len() >= 12, "{line:?} in {said}");
            let new = self.0.insert((number, line.to_owned()));
            assert!(
                new,
                "two forks of {} have {line:?} (line {number})",
                self.1 + 1
            );
        }
        self.1 += 1;
    }
}

fn in_sequence(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut seen = Seen::default();
    let count = if t.environment().full() { 1000 } else { 20 };
    for _ in 0..count {
        let done = templates.run(IDENTITY, &[]).done()?;
        done.stderr("");
        seen.add(&done.finished());
    }
    nothing_left(t)?;
    let home = templates.only()?;
    let mut names: Vec<_> = std::fs::read_dir(&home)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    names.sort();
    assert_eq!(names, ["kernel", "ram", "state", "template.json"]);
    Ok(())
}

fn at_once(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut seen = Seen::default();
    let count = if t.environment().full() { 100 } else { 10 };
    let script = format!("{IDENTITY}\nread line");
    let mut running = (0..count)
        .map(|_| {
            templates
                .run(&script, &["-i", "-m", "96m", "--boot-timeout", "300"])
                .stdin_open()
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    for one in &mut running {
        // The last line of the identity is the address of the vNIC.
        for _ in 0..5 {
            one.expect(":");
        }
    }
    let mut keys = BTreeSet::new();
    for container in std::fs::read_dir(t.state().join("runs"))? {
        let machines = container?.path().join("vm/machines");
        for machine in std::fs::read_dir(machines)? {
            let key = std::fs::read(machine?.path().join("channel.key"))?;
            assert_ne!(key, [0; 32], "the template's own key");
            assert!(keys.insert(key), "two forks have one key");
        }
    }
    assert_eq!(keys.len(), count);
    for mut one in running {
        one.write(b"\n")?;
        let done = one.wait()?;
        done.stderr("");
        seen.add(&done.finished());
    }
    templates.only()?;
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

fn changed_inputs(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let own = t.file("initramfs.cpio");
    let copy = || std::fs::copy(t.environment().boot_image().join("initramfs.cpio"), &own);
    copy()?;
    let own = own.to_string_lossy().into_owned();
    let with: [&[&str]; 4] = [
        &[],
        &["-m", "128m"],
        &["--append", "mitigations=off"],
        &["--initrd", &own],
    ];
    for (number, flags) in with.into_iter().enumerate() {
        for _ in 0..2 {
            let done = templates.run("grep MemTotal /proc/meminfo", flags).done()?;
            done.stderr("").finished();
        }
        assert_eq!(templates.all()?.len(), number + 1, "after {flags:?}");
    }
    // Another file under the same name.
    std::fs::remove_file(&own)?;
    copy()?;
    templates
        .run("true", &["--initrd", &own])
        .done()?
        .finished();
    assert_eq!(templates.all()?.len(), with.len() + 1);
    Ok(())
}

/// Writes over the middle of a file.
fn damage(path: &Path) -> Result<Vec<u8>> {
    let mut content = std::fs::read(path)?;
    let middle = content.len() / 2;
    for byte in content.iter_mut().skip(middle).take(4096) {
        *byte ^= 0xff;
    }
    std::fs::write(path, &content)?;
    Ok(content)
}

fn damaged(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let run = || -> Result<Done> { templates.run("echo hello", &[]).done() };
    run()?.finished();
    let home = templates.only()?;
    let mut made = vec![templates.made()?];
    for file in ["state", "ram", "template.json"] {
        damage(&home.join(file)).with_context(|| file.to_owned())?;
        assert_eq!(run()?.stderr("").finished(), "hello\n");
        made.push(templates.made()?);
    }
    // A state that is what its record says, and that no QEMU takes.
    let state = damage(&home.join("state"))?;
    let record = std::fs::read_to_string(home.join("template.json"))?;
    let (before, after) = record
        .split_once("\"state\"")
        .and_then(|(before, rest)| Some((before, rest.split_once("\"sha256\": \"")?)))
        .map(|(before, (between, after))| (format!("{before}\"state\"{between}"), &after[64..]))
        .context("no hash of the state")?;
    let hash = sha256(&state)?;
    std::fs::write(
        home.join("template.json"),
        format!("{before}\"sha256\": \"{hash}{after}"),
    )?;
    assert_eq!(run()?.stderr("").finished(), "hello\n");
    made.push(templates.made()?);
    let all = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), all, "one of them was used");
    nothing_left(t)
}

fn sha256(content: &[u8]) -> Result<String> {
    use std::io::Write as _;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no pipe")?.write_all(content)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.chars().take(64).collect())
}

fn waited_for(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let running = (0..4)
        .map(|_| templates.run("echo hello", &["-m", "96m"]).spawn())
        .collect::<Result<Vec<_>>>()?;
    for one in running {
        assert_eq!(one.wait()?.stderr("").finished(), "hello\n");
    }
    templates.only()?;
    Ok(())
}

fn killed(t: &Context) -> Result<()> {
    let templates = Templates::of(t);
    let mut random = Random::from_clock();
    let seed = random.seed();
    for number in 0..8 {
        let name = format!("killed{number}");
        let mut running = t
            .run(["sh", "-c", "echo started >>/count; cat /count; exit 3"])
            .flags(["--boot", "fork", "--name", &name])
            .variable("VCH_TEMPLATES", &templates.directory)
            .spawn()?;
        // The first rounds make the template, the others fork.
        let within = if number < 3 { 3000 } else { 800 };
        let moment = Instant::now() + Duration::from_millis(random.below(within));
        while Instant::now() < moment && running.runs()? {
            std::thread::sleep(Duration::from_millis(5));
        }
        let first = running.kill()?;
        if first.killed_by().is_none() {
            first.status(3).stdout("started\n");
            continue;
        }
        let known = t.vch(["ls", "-q"]).done()?;
        known.status(0);
        if !known.text().lines().any(|line| line == name) {
            assert_eq!(first.text(), "");
            continue;
        }
        let second = t
            .vch(["run", "--resume", &name])
            .variable("VCH_TEMPLATES", &templates.directory)
            .done()?;
        second.status(3);
        assert_eq!(
            first.text() + &second.text(),
            "started\n",
            "round {number} of seed {seed}"
        );
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

/// What a child does not have from its template.
fn child(id: MachineId) -> Result<Fork> {
    Ok(Fork {
        id,
        name: "child".to_owned(),
        key: ChannelKey::random()?,
        metadata: [("of".to_owned(), "template".to_owned())].into(),
        disks: Vec::new(),
        nics: Vec::new(),
    })
}

fn by_name(t: &Context) -> Result<()> {
    block_on(t, async {
        let options = qemu::Options {
            templates: Some(Templates::of(t).directory),
            ..qemu::Options::default()
        };
        let driver = qemu::Qemu::open(t.file("vm"), options).await?;
        assert!(driver.capabilities().fork);
        let boot_image = t.environment().boot_image();
        let spec = MachineSpec {
            id: MachineId::random()?,
            name: "model".to_owned(),
            cpus: Cpus::ONE,
            memory: Memory::from_mib(128)?,
            boot: Boot::Kernel {
                kernel: boot_image.join("bzImage"),
                initramfs: boot_image.join("initramfs.cpio"),
                append: String::new(),
            },
            start: Start::Boot,
            hardware: Hardware::Virtio,
            channel: ChannelKind::Virtio,
            disks: Vec::new(),
            nics: Vec::new(),
            debugger: None,
        };
        let template = driver.make_template(&spec).await?;
        assert_eq!(driver.templates().await?, std::slice::from_ref(&template));
        let parent = ForkParent::Template(template.id.clone());

        let (one, two) = (MachineId::random()?, MachineId::random()?);
        let forked = driver.fork(&parent, vec![child(one)?, child(two)?]).await?;
        assert_eq!(forked, [one, two]);
        for id in forked {
            let machine = driver.inspect(&id).await?;
            assert_eq!(machine.power, PowerState::On);
            assert_eq!(machine.metadata["of"], "template");
            let began = Started::Forked {
                template: template.id.clone(),
                made: false,
            };
            assert_eq!(machine.began, Some(began));
            // Off and on again is another fork.
            driver.power_off(&id, PowerOff::Cut).await?;
            driver.power_on(&id).await?;
            assert_eq!(driver.inspect(&id).await?.power, PowerState::On);
        }

        // One that cannot be takes the others along, and leaves those that were there.
        let three = MachineId::random()?;
        let failed = driver.fork(&parent, vec![child(three)?, child(one)?]).await;
        let cause = failed.unwrap_err();
        assert!(
            matches!(cause.cause(), Cause::AlreadyExists { .. }),
            "{cause:?}"
        );
        assert_eq!(driver.list().await?.len(), 2);
        let live = ForkParent::Machine(one);
        let failed = driver.fork(&live, vec![child(three)?]).await;
        assert!(matches!(
            failed.unwrap_err().cause(),
            Cause::Unsupported { .. }
        ));

        // Who runs does not need its template any more.
        driver.remove_template(&template.id).await?;
        assert_eq!(driver.templates().await?, []);
        assert_eq!(driver.inspect(&two).await?.power, PowerState::On);
        let failed = driver.fork(&parent, vec![child(three)?]).await;
        assert!(matches!(
            failed.unwrap_err().cause(),
            Cause::NotFound { .. }
        ));
        for id in [one, two] {
            driver.destroy(&id).await?;
        }
        Ok(())
    })
}
