//! Signals that `vch run` gets are the process's.

use crate::harness::{Context, Test};
use anyhow::Result;
use rustix::process::Signal;

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
