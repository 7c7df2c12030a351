//! Signals that `vch run` gets are the process's.

use crate::harness::{Context, Test};
use crate::machine::{Machine, Wanted, block_on, main_process};
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tether_wire::message::{Action, ExitStatus, ProcessId, ShutdownSpec};

const SIGUSR1: u8 = 10;
const SIGTERM: u8 = 15;

pub const TESTS: &[Test] = &[
    Test::new(
        "signals",
        "signals are forwarded and a handler's exit status comes back",
        forwarded,
    ),
    Test::new(
        "signals",
        "a process that a forwarded signal kills is 128 and the signal",
        fatal,
    ),
    Test::new(
        "signals",
        "a reader that goes away stops the container with --stop-signal",
        unread,
    ),
    Test::new(
        "signals",
        "a process that ignores the stop signal is killed after --stop-timeout",
        stubborn,
    ),
    Test::new(
        "signals",
        "a shutdown stops the process by its signal, and kills it when the grace is over",
        shut_down,
    ),
];

fn forwarded(t: &Context) -> Result<()> {
    let script = "
        for signal in HUP INT QUIT USR1 USR2 ALRM; do trap \"echo $signal\" $signal; done
        trap 'echo TERM; exit 3' TERM
        echo ready
        while :; do sleep 1; done";
    let mut running = t.run(["sh", "-c", script]).spawn()?;
    running.expect("ready\n");
    for (signal, name) in [
        (Signal::HUP, "HUP\n"),
        (Signal::INT, "INT\n"),
        (Signal::QUIT, "QUIT\n"),
        (Signal::USR1, "USR1\n"),
        (Signal::USR2, "USR2\n"),
        (Signal::ALARM, "ALRM\n"),
    ] {
        running.signal(signal)?.expect(name);
    }
    running.signal(Signal::TERM)?;
    running
        .wait()?
        .status(3)
        .stdout("ready\nHUP\nINT\nQUIT\nUSR1\nUSR2\nALRM\nTERM\n");
    Ok(())
}

fn fatal(t: &Context) -> Result<()> {
    for (signal, status) in [(Signal::TERM, 143), (Signal::USR1, 138)] {
        // Process 1 would ignore it.
        let mut running = t
            .run(["sh", "-c", "echo ready; exec sleep 1000"])
            .flags(["--init"])
            .spawn()?;
        running.expect("ready\n");
        running.signal(signal)?;
        running.wait()?.status(status).stdout("ready\n");
    }
    Ok(())
}

fn unread(t: &Context) -> Result<()> {
    let volume = format!("{}:/data", t.file("data.vmdk").display());
    let script = "trap 'echo told >/data/word; exit' INT; while :; do echo y; done";
    t.run(["sh", "-c", script])
        .flags(["--stop-signal", "INT", "-v", &format!("{volume}:size=32m")])
        .into_vch()?
        .into_head()
        .done()?
        .status(0)
        .stdout("y\n");
    // 128 and SIGPIPE, as in any pipeline.
    assert_eq!(std::fs::read_to_string(t.file("status"))?, "141\n");
    t.run(["cat", "/data/word"])
        .flags(["-v", &volume])
        .done()?
        .status(0)
        .stdout("told\n");
    Ok(())
}

fn stubborn(t: &Context) -> Result<()> {
    let volume = format!("{}:/data", t.file("data.vmdk").display());
    // Once told, it says every moment that it is still there.
    let script = "trap 'while :; do cut -d. -f1 /proc/uptime >>/data/alive; sleep 0.2; done' TERM
        while :; do echo y; done";
    t.run(["sh", "-c", script])
        .flags(["--stop-timeout", "5", "-v", &format!("{volume}:size=32m")])
        .into_vch()?
        .into_head()
        .done()?
        .status(0)
        .stdout("y\n");
    let said = t
        .run(["cat", "/data/alive"])
        .flags(["-v", &volume])
        .done()?
        .status(0)
        .text();
    let seconds: Vec<u64> = said.lines().map(str::parse).collect::<Result<_, _>>()?;
    let first = seconds.first().context("the signal never came")?;
    let lived = seconds.last().unwrap_or(first) - first;
    assert!((4..=6).contains(&lived), "it lived for {lived} s: {said}");
    Ok(())
}

fn shut_down(t: &Context) -> Result<()> {
    for (signal, script, grace, wanted) in [
        (
            SIGTERM,
            "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done",
            Duration::from_secs(3),
            ExitStatus::Signal(9),
        ),
        (
            SIGUSR1,
            "trap 'echo told; exit 7' USR1; echo up; while :; do sleep 0.1; done",
            Duration::from_secs(3600),
            ExitStatus::Code(7),
        ),
    ] {
        block_on(t, async {
            let machine = Machine::set_up(t, Wanted::default()).await?;
            let main = main_process(&["sh", "-c", script]);
            let mut main = machine.link.start(ProcessId::MAIN, main).await?;
            let mut said = Vec::new();
            let mut asked = None;
            while let Some(chunk) = main.stdout.next().await? {
                said.extend_from_slice(&chunk.data);
                main.stdout.stored(chunk.end());
                if said == b"up\n" && asked.is_none() {
                    let spec = ShutdownSpec {
                        signal,
                        grace_ms: grace.as_millis() as u32,
                        action: Action::PowerOff,
                    };
                    asked = Some((Instant::now(), machine.link.shutdown(spec)));
                }
            }
            let (asked, answer) = asked.context("it never said that it was up")?;
            let exit = main.wait().await?;
            let took = asked.elapsed();
            assert_eq!(String::from_utf8_lossy(&said), "up\ntold\n");
            assert_eq!(exit.status, wanted);
            assert!(!exit.oom_killed);
            if wanted == ExitStatus::Signal(9) {
                assert_eq!(exit.status.shell(), 137);
                // Not before its time; how long after it is the host's load.
                assert!(took >= grace, "{took:?}");
            }
            // The machine may be gone before its answer is here.
            let _ = answer.await;
            machine.ended().await
        })?;
    }
    Ok(())
}
