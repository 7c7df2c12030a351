//! `-t`: a terminal in the guest, and the user's own given back.

use crate::harness::{Context, Test};
use crate::terminal::{Terminal, same_modes};
use anyhow::Result;
use rustix::process::Signal;

pub const TESTS: &[Test] = &[
    Test::new("terminal", "a shell at a terminal has its size, follows a resize, obeys Ctrl-C and ends at Ctrl-D", shell),
    Test::new("terminal", "the terminal is given back as it was, however the guest ends", given_back),
    Test::new("terminal", "-t without a terminal on this side still has one in the guest", without),
    Test::new("terminal", "-it with input that is no terminal is refused", not_a_terminal),
];

fn shell(t: &Context) -> Result<()> {
    let terminal = Terminal::open(24, 80, &t.file("screen"))?;
    // A shell that edits its line keeps the signal to itself, so another one waits for it first.
    let script = "trap 'stty size' WINCH; echo ready; while ! read word; do :; done; exec sh";
    let mut running = t
        .run(["sh", "-c", script])
        .flags(["-it", "--name", "shell"])
        .on(&terminal)
        .spawn()?;
    terminal.expect("ready\r\n");
    terminal.resize(50, 132)?;
    running.signal(Signal::WINCH)?;
    terminal.expect("50 132\r\n");
    terminal.types("go\r")?.expect("/ # ");
    terminal.types("stty size; tty; echo $TERM\r")?;
    terminal
        .expect("\n50 132\r\n/dev/pts/0\r\nxterm\r\n")
        .expect("/ # ");
    terminal.types("echo now; cat\r")?.expect("\nnow\r\n");
    terminal.types("some\r")?.expect("some\r\nsome\r\n");
    terminal.types("\x03")?.expect("^C").expect("/ # ");
    terminal.types("echo now; cat; echo over $?\r")?.expect("\nnow\r\n");
    terminal.types("\x04")?.expect("over 0\r\n").expect("/ # ");
    terminal.types("exit 7\r")?;
    running.wait()?.status(7);
    Ok(())
}

fn given_back(t: &Context) -> Result<()> {
    let terminal = Terminal::open(24, 80, &t.file("screen"))?;
    let before = terminal.modes()?;
    let mut running = t
        .run(["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 1; done"])
        .flags(["-it"])
        .on(&terminal)
        .spawn()?;
    terminal.expect("ready\r\n");
    assert!(
        !same_modes(&before, &terminal.modes()?),
        "the terminal is not raw while the guest has it"
    );
    running.signal(Signal::TERM)?;
    running.wait()?.status(3);
    assert!(same_modes(&before, &terminal.modes()?), "modes after an exit");
    t.run(["no-such-program"])
        .flags(["-it"])
        .on(&terminal)
        .done()?
        .status(127);
    assert!(same_modes(&before, &terminal.modes()?), "modes after a failed start");
    t.run(["true"])
        .flags(["-it", "--append", "rdinit=/no-such-init"])
        .on(&terminal)
        .done()?
        .status(125);
    assert!(same_modes(&before, &terminal.modes()?), "modes after a panic");
    Ok(())
}

fn without(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "test -t 1 && test -t 0 && echo both"])
        .flags(["-t"])
        .done()?
        .status(0)
        .stdout("both\r\n");
    Ok(())
}

fn not_a_terminal(t: &Context) -> Result<()> {
    t.run(["true"])
        .flags(["-it"])
        .stdin("x")
        .done()?
        .stderr_has("the input device is not a TTY");
    Ok(())
}
