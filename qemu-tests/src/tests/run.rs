//! A process's output, input and exit status are its own.

use crate::harness::{Context, Test};
use anyhow::Result;

pub const TESTS: &[Test] = &[
    Test::new("run", "echo hello prints hello", echo_hello),
    Test::new("run", "exit 0, 1 and 42 come back as such", codes),
    Test::new(
        "run",
        "what cannot be executed is 126 and what is not found 127",
        not_started,
    ),
    Test::new("run", "a killed process is 137", killed),
    Test::new("run", "sort sorts its input", sort),
    Test::new(
        "run",
        "every byte value comes back as it was sent",
        every_byte,
    ),
    Test::new("run", "without -i there is no input", no_input),
    Test::new(
        "run",
        "a process that does not read its input ends all the same",
        unread_input,
    ),
    Test::new(
        "run",
        "standard output and standard error stay apart",
        apart,
    ),
    Test::new(
        "run",
        "the process is process 1 in a world of its own",
        first_process,
    ),
    Test::new(
        "run",
        "the image's own command is run when none is named",
        own_command,
    ),
    Test::new("run", "fifteen at once each give their own", fifteen)
        .guests(15)
        .minutes(6),
];

fn echo_hello(t: &Context) -> Result<()> {
    t.run(["echo", "hello"])
        .done()?
        .status(0)
        .stdout("hello\n")
        .stderr("");
    Ok(())
}

fn codes(t: &Context) -> Result<()> {
    for code in [0, 1, 42] {
        t.run(["sh", "-c", &format!("exit {code}")])
            .done()?
            .status(code)
            .stdout("")
            .stderr("");
    }
    Ok(())
}

fn not_started(t: &Context) -> Result<()> {
    for (program, status, words) in [
        ("/etc/passwd", 126, "permission denied"),
        ("/etc", 126, ""),
        ("no-such-program", 127, "not found"),
        ("/bin/no-such-program", 127, "no such file"),
    ] {
        t.run([program])
            .done()?
            .status(status)
            .stdout("")
            .says(&[program, words]);
    }
    Ok(())
}

fn killed(t: &Context) -> Result<()> {
    // Process 1 of a pid namespace cannot kill itself; one that is not process 1 can.
    for flags in [&["--init"][..], &["--pid", "host"]] {
        t.run(["sh", "-c", "echo alive; kill -9 $$; echo dead"])
            .flags(flags)
            .done()?
            .status(137)
            .stdout("alive\n");
    }
    t.run(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
        .done()?
        .status(137);
    Ok(())
}

fn sort(t: &Context) -> Result<()> {
    t.run(["sort"])
        .flags(["-i"])
        .stdin("b\na\n")
        .done()?
        .status(0)
        .stdout("a\nb\n")
        .stderr("");
    Ok(())
}

fn every_byte(t: &Context) -> Result<()> {
    let bytes: Vec<u8> = (0..=255u8).cycle().take(64 << 10).collect();
    let done = t.run(["cat"]).flags(["-i"]).stdin(bytes.clone()).done()?;
    done.status(0);
    assert!(done.out == bytes, "{} bytes came back", done.out.len());
    Ok(())
}

fn no_input(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "cat; echo end"])
        .stdin("this is not forwarded\n")
        .done()?
        .status(0)
        .stdout("end\n");
    Ok(())
}

fn unread_input(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "exec <&-; echo deaf; exit 3"])
        .flags(["-i"])
        .stdin(vec![b'x'; 4 << 20])
        .done()?
        .status(3)
        .stdout("deaf\n");
    Ok(())
}

fn apart(t: &Context) -> Result<()> {
    t.run(["sh", "-c", "echo out; echo err >&2; echo out again"])
        .done()?
        .status(0)
        .stdout("out\nout again\n")
        .stderr("err\n");
    Ok(())
}

fn first_process(t: &Context) -> Result<()> {
    let said = t
        .script(
            "echo $$
             cat /proc/1/comm
             ls -d /proc/[0-9]* | wc -l
             # Its mounts are not tether's: nothing shows the machine behind it.
             test ! -e /init
             ! grep -q ' rootfs ' /proc/mounts",
        )
        .done()?
        .finished();
    // The shell, `ls` and `wc`.
    assert_eq!(said, "1\nsh\n3\n");
    let outside = t
        .script("[ $$ != 1 ]; cat /proc/1/comm")
        .flags(["--pid", "host"])
        .done()?
        .finished();
    assert_ne!(outside, "sh\n");
    Ok(())
}

fn own_command(t: &Context) -> Result<()> {
    // Of sample/busybox it is `sh`.
    t.run([""; 0])
        .flags(["-i"])
        .stdin("echo from $0\nexit 5\n")
        .done()?
        .status(5)
        .stdout("from sh\n");
    Ok(())
}

fn fifteen(t: &Context) -> Result<()> {
    let running = (0..15)
        .map(|number| {
            t.run(["sh", "-c", &format!("echo number {number}; exit {number}")])
                .flags(["-m", "96m", "--boot-timeout", "300"])
                .spawn()
        })
        .collect::<Result<Vec<_>>>()?;
    for (number, running) in running.into_iter().enumerate() {
        running
            .wait()?
            .status(number as i32)
            .stdout(&format!("number {number}\n"))
            .stderr("");
    }
    Ok(())
}
