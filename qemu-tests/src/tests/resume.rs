//! A controller that is killed, and the next one.

use crate::harness::{Context, Test};
use crate::machine::{Machine, Wanted, block_on, main_process};
use crate::random::Random;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tether_link::Adopted;
use tether_wire::message::{ExitStatus, ProcessId};

pub const TESTS: &[Test] = &[
    Test::new("resume", "kill -9 in the middle of output to a file loses and doubles nothing", to_a_file).minutes(6),
    Test::new("resume", "kill -9 in the middle of output to a pipe loses nothing and repeats at most the piece in flight", to_a_pipe).minutes(6),
    Test::new("resume", "kill -9 at any moment of the start starts the process once", during_start).minutes(6),
    Test::new("resume", "what ended while nobody was there is told to the next", ended_alone),
    Test::new("resume", "--sig-proxy=false leaves the container for --resume", left),
    Test::new("resume", "output that cannot be written waits for --resume", full_disk),
    Test::new("resume", "a controller that comes back after a while finds a process that waits for it", after_a_while),
    Test::new("resume", "another controller gets each stream from what was stored", another_controller),
];

const LINES: usize = 60_000;

/// Numbered lines on standard output, some on standard error, and a status of its own.
fn script() -> String {
    format!("seq 1 {LINES}; echo over >&2; exit 7")
}

fn lines() -> String {
    (1..=LINES).map(|line| format!("{line}\n")).collect()
}

/// Waits until the file has this size.
fn wait_for_size(path: &Path, size: u64, until: Instant) -> Result<()> {
    let watcher = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watcher, path, inotify::WatchFlags::MODIFY)?;
    let mut buffer = [0; 4096];
    loop {
        if path.metadata()?.len() >= size {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("{} never had {size} bytes", path.display());
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&watcher, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? > 0 {
            rustix::io::read(&watcher, &mut buffer)?;
        }
    }
}

fn to_a_file(t: &Context) -> Result<()> {
    let mut random = Random::from_clock();
    let seed = random.seed();
    let file = t.file("output");
    std::fs::write(&file, "")?;
    let expected = lines();
    let mut points: Vec<u64> = (0..8)
        .map(|_| random.below(expected.len() as u64))
        .collect();
    points.sort_unstable();
    let mut running = t
        .run(["sh", "-c", &script()])
        .flags(["--name", "counter"])
        .stdout_to(&file)
        .spawn()?;
    let mut errors = Vec::new();
    for &point in &points {
        wait_for_size(&file, point, t.deadline())?;
        errors.extend(running.kill()?.err);
        running = t
            .vch(["run", "--resume", "counter"])
            .stdout_to(&file)
            .spawn()?;
    }
    let done = running.wait()?;
    done.status(7);
    errors.extend(&done.err);
    let text = std::fs::read_to_string(&file)?;
    assert!(
        text == expected,
        "{} bytes instead of {}, killed at {points:?} (seed {seed}); {}",
        text.len(),
        expected.len(),
        first_difference(&text, &expected)
    );
    assert_eq!(String::from_utf8_lossy(&errors), "over\n");
    Ok(())
}

fn first_difference(text: &str, expected: &str) -> String {
    let place = text
        .bytes()
        .zip(expected.bytes())
        .position(|(a, b)| a != b)
        .unwrap_or(text.len().min(expected.len()));
    let near = |text: &str| {
        let start = place.saturating_sub(20);
        text.get(start..(place + 20).min(text.len()))
            .unwrap_or_default()
            .to_owned()
    };
    format!(
        "from byte {place}: {:?} instead of {:?}",
        near(text),
        near(expected)
    )
}

/// What a pipe takes whole or not at all (`PIPE_BUF`), and `vch` writes at once: nobody can tell
/// whether a pipe took the last of them before the kill.
const PIECE: usize = 4096;

fn to_a_pipe(t: &Context) -> Result<()> {
    let mut random = Random::from_clock();
    let seed = random.seed();
    let expected = lines();
    // What each one wrote has to go on where the one before it ended, or a piece earlier.
    let mut place = 0usize;
    let mut go_on = |text: String| {
        let earliest = place.saturating_sub(PIECE);
        let fits = |start: &usize| expected[*start..].starts_with(&text);
        match (earliest..=place).rev().find(fits) {
            Some(start) => place = start + text.len(),
            None => panic!(
                "{} bytes do not go on at byte {place} (seed {seed}); {}",
                text.len(),
                first_difference(&text, &expected[place..])
            ),
        }
    };
    let mut running = t
        .run(["sh", "-c", &script()])
        .flags(["--name", "counter"])
        .spawn()?;
    for _ in 0..5 {
        let more = random.below(expected.len() as u64 / 5) as usize;
        running.reached(more);
        go_on(running.kill()?.text());
        running = t.vch(["run", "--resume", "counter"]).spawn()?;
    }
    let done = running.wait()?;
    done.status(7);
    go_on(done.text());
    assert_eq!(place, expected.len(), "the end is missing (seed {seed})");
    Ok(())
}

fn during_start(t: &Context) -> Result<()> {
    let mut random = Random::from_clock();
    for number in 0..6 {
        let name = format!("start{number}");
        // From before there is anything to after it is over.
        let after = Duration::from_millis(random.below(6000));
        starts_once(t, &name, &[], &[], after)
            .with_context(|| format!("round {number} of seed {}", random.seed()))?;
    }
    Ok(())
}

/// A container whose controller is killed a while after it began to start it, and which the next one
/// resumes, if the first one came to anything, has started once.
pub(super) fn starts_once(
    t: &Context,
    name: &str,
    flags: &[&str],
    variables: &[(&str, &Path)],
    after: Duration,
) -> Result<()> {
    let mut run = t
        .run(["sh", "-c", "echo started >>/count; cat /count; exit 3"])
        .flags(flags)
        .flags(["--name", name]);
    let mut resume = t.vch(["run", "--resume", name]);
    for (variable, value) in variables {
        run = run.variable(variable, value);
        resume = resume.variable(variable, value);
    }
    let mut running = run.spawn()?;
    let moment = Instant::now() + after;
    while Instant::now() < moment && running.runs()? {
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = running.kill()?;
    if first.killed_by().is_none() {
        first.status(3).stdout("started\n");
        return Ok(());
    }
    let known = t.vch(["ls", "-q"]).done()?;
    known.status(0);
    if !known.text().lines().any(|line| line == name) {
        // Killed before it had a name: nothing is left of it.
        ensure!(first.text().is_empty(), "{first:?}");
        return Ok(());
    }
    let second = resume.done()?;
    second.status(3);
    let said = first.text() + &second.text();
    ensure!(said == "started\n", "both said {said:?}");
    Ok(())
}

fn ended_alone(t: &Context) -> Result<()> {
    let file = t.file("output");
    std::fs::write(&file, "")?;
    let mut running = t
        .run(["sh", "-c", "echo first; read word; echo $word; exit 9"])
        .flags(["-i", "--name", "alone"])
        .stdin_open()
        .stdout_to(&file)
        .spawn()?;
    wait_for_size(&file, 6, t.deadline())?;
    running.write(b"last\n")?;
    // Whether the word has left or not: what was not sent is the next one's to send.
    running.kill()?;
    t.vch(["run", "--resume", "alone"])
        .stdin("last\n")
        .stdout_to(&file)
        .done()?
        .status(9);
    assert_eq!(std::fs::read_to_string(&file)?, "first\nlast\n");
    t.vch(["run", "--resume", "alone"])
        .done()?
        .status(9)
        .stdout("");
    t.vch(["run", "--resume", "no-such-container"])
        .done()?
        .status(125)
        .says(&["no such container: no-such-container"]);
    Ok(())
}

fn left(t: &Context) -> Result<()> {
    let mut running = t
        .run([
            "sh",
            "-c",
            "trap 'echo told' TERM; echo ready; read word; echo got $word",
        ])
        .flags(["-i", "--sig-proxy=false", "--name", "left"])
        .stdin_open()
        .spawn()?;
    running.expect("ready\n");
    running.signal(Signal::TERM)?;
    running
        .ended()?
        .status(143)
        .stdout("ready\n")
        .says(&["runs on", "vch run --resume left"]);
    t.vch(["run", "--resume", "left"])
        .stdin("word\n")
        .done()?
        .status(0)
        .stdout("got word\n");
    Ok(())
}

fn full_disk(t: &Context) -> Result<()> {
    t.run(["sh", "-c", &script()])
        .flags(["--name", "full"])
        .stdout_to(Path::new("/dev/full"))
        .done()?
        .status(125)
        .stderr_has("standard output")
        .stderr_has("vch run --resume full");
    let file = t.file("output");
    t.vch(["run", "--resume", "full"])
        .stdout_to(&file)
        .done()?
        .status(7)
        .stderr("over\n");
    let text = std::fs::read_to_string(&file)?;
    assert!(text == lines(), "{} bytes", text.len());
    Ok(())
}

fn another_controller(t: &Context) -> Result<()> {
    let mut random = Random::from_clock();
    let seed = random.seed();
    let expected = lines();
    block_on(t, async {
        let mut machine = Machine::set_up(t, Wanted::default()).await?;
        let spec = main_process(&["sh", "-c", &script()]);
        let mut process = machine.link.start(ProcessId::MAIN, spec).await?;
        let mut stored = Vec::new();
        for _ in 0..10 {
            // Some is stored, some is only read, and then the controller is gone.
            let count = random.below(expected.len() as u64 / 12) as usize;
            let target = stored.len() + count;
            let mut unstored = stored.len();
            while unstored < target + 3000 {
                let Some(chunk) = process.stdout.next().await? else {
                    break;
                };
                assert_eq!(chunk.offset, unstored as u64, "seed {seed}");
                unstored = chunk.end() as usize;
                if unstored <= target {
                    stored.extend_from_slice(&chunk.data);
                    process.stdout.stored(chunk.end());
                }
            }
            drop(process);
            let adopted = Adopted {
                process: ProcessId::MAIN,
                stdout: stored.len() as u64,
                stderr: 0,
            };
            machine.another_controller(vec![adopted]).await?;
            process = machine
                .link
                .attach(ProcessId::MAIN)
                .context("the process is not known any more")?;
        }
        let rest = crate::machine::read_all(&mut process.stdout, stored.len() as u64).await?;
        stored.extend(rest);
        let text = String::from_utf8_lossy(&stored);
        assert!(
            text == expected,
            "seed {seed}; {}",
            first_difference(&text, &expected)
        );
        assert_eq!(process.wait().await?.status, ExitStatus::Code(7));
        machine.end().await
    })
}

fn after_a_while(t: &Context) -> Result<()> {
    block_on(t, async {
        let mut machine = Machine::set_up(t, Wanted::default()).await?;
        let spec = main_process(&["sh", "-c", &script()]);
        let mut process = machine.link.start(ProcessId::MAIN, spec).await?;
        // Enough that its buffer is full and it waits.
        let mut read = 0;
        while read < 60_000 {
            read = match process.stdout.next().await? {
                Some(chunk) => chunk.end(),
                None => bail!("it ended early"),
            };
        }
        drop(process);
        machine.nobody().await;
        let adopted = Adopted {
            process: ProcessId::MAIN,
            stdout: 0,
            stderr: 0,
        };
        machine.another_controller(vec![adopted]).await?;
        let mut process = machine
            .link
            .attach(ProcessId::MAIN)
            .context("the process is not known any more")?;
        let text = crate::machine::read_all(&mut process.stdout, 0).await?;
        let text = String::from_utf8_lossy(&text);
        assert!(text == lines(), "{}", first_difference(&text, &lines()));
        assert_eq!(process.wait().await?.status, ExitStatus::Code(7));
        machine.end().await
    })
}
