//! Many processes in one guest, over the channel itself.

use crate::harness::{Context, Test};
use crate::machine::{
    Finished, Machine, Wanted, block_on, exec, main_process, read_all, run, setup, with_input,
};
use anyhow::{Result, bail};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tether_link::LinkError;
use tether_wire::message::{ErrorKind, ExitStatus, PidNamespace, ProcessId, Role, SignalTarget};
use tokio::task::JoinSet;

const SIGKILL: u8 = 9;

pub const TESTS: &[Test] = &[
    Test::new("exec", "fifty execs at once each have their own output and status", fifty),
    Test::new("exec", "a thousand execs in a row lose no last line and no status", thousand).minutes(5),
    Test::new("exec", "ten thousand execs in a row lose no last line and no status", ten_thousand).minutes(40).full(),
    Test::new("exec", "ten thousand short processes in a row inside the guest lose nothing", shorts).minutes(8),
    Test::new("exec", "a thousand orphans leave no zombie under --init, under --pid host and of an exec", orphans).minutes(6),
    Test::new("exec", "a reader that stops reading one stream does not delay another", stalled),
    Test::new("exec", "the guest lists its processes and measures itself", lists),
    Test::new("exec", "a disk that is not there is named when the deadline has passed", missing_disk),
];

/// A guest whose main process lasts.
async fn lasting(t: &Context) -> Result<Machine> {
    let machine = Machine::set_up(t, Wanted::default()).await?;
    let main = machine
        .link
        .start(ProcessId::MAIN, main_process(&["sleep", "100000"]))
        .await?;
    drop(main);
    Ok(machine)
}

async fn fifty_execs(machine: &Machine) -> Result<()> {
    let mut running = JoinSet::new();
    for number in 1..=50u32 {
        let link = machine.link.clone();
        running.spawn(async move {
            let script = format!(
                "read word; echo out {number} $word; echo err {number} >&2; exit {number}"
            );
            let spec = with_input(exec(&["sh", "-c", &script]));
            let input = format!("word{number}\n");
            (
                number,
                run(&link, ProcessId(number), spec, input.as_bytes()).await,
            )
        });
    }
    while let Some(ended) = running.join_next().await {
        let (number, finished) = ended?;
        let finished = finished?;
        assert_eq!(finished.text(), format!("out {number} word{number}\n"));
        assert_eq!(finished.stderr, format!("err {number}\n").as_bytes());
        assert_eq!(finished.exit.status, ExitStatus::Code(number as u8));
    }
    Ok(())
}

fn fifty(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = lasting(t).await?;
        for _ in 0..3 {
            fifty_execs(&machine).await?;
        }
        machine.end().await
    })
}

fn in_a_row(t: &Context, count: u32) -> Result<()> {
    block_on(t, async {
        let machine = lasting(t).await?;
        for number in 1..=count {
            let code = (number % 251) as u8;
            let script = format!("echo line {number}; exit {code}");
            let Finished {
                stdout,
                stderr,
                exit,
            } = machine.run(number, exec(&["sh", "-c", &script]), b"").await?;
            assert_eq!(
                (String::from_utf8_lossy(&stdout).as_ref(), stderr.len(), exit.status),
                (format!("line {number}\n").as_str(), 0, ExitStatus::Code(code))
            );
        }
        machine.end().await
    })
}

fn thousand(t: &Context) -> Result<()> {
    in_a_row(t, 1000)
}

fn ten_thousand(t: &Context) -> Result<()> {
    in_a_row(t, 10_000)
}

fn shorts(t: &Context) -> Result<()> {
    let said = t
        .script(
            "i=0
             while [ $i -lt 10000 ]; do
                 i=$((i+1)); code=0
                 /bin/busybox sh -c \"echo $i; exit $((i % 256))\" || code=$?
                 [ $code = $((i % 256)) ]
             done",
        )
        .done()?
        .finished();
    let mut lines = said.lines();
    for number in 1..=10_000 {
        assert_eq!(lines.next(), Some(number.to_string().as_str()));
    }
    assert_eq!(lines.next(), None);
    Ok(())
}

/// Makes a thousand orphans, waits until the last of them is gone, and says how many zombies there
/// are. Its own children it waits for.
const ORPHANS: &str = "
    i=0
    while [ $i -lt 1000 ]; do
        (sleep 1 & )
        i=$((i+1))
    done
    # The one that is reaped last may be a moment behind.
    tries=0
    while cat /proc/[0-9]*/stat 2>/dev/null | grep -q '(sleep) [^Z]'; do sleep 1; done
    while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ') Z '; do
        tries=$((tries+1))
        [ $tries -lt 20 ]
        sleep 1
    done";

fn orphans(t: &Context) -> Result<()> {
    for flags in [&["--init"][..], &["--pid", "host"]] {
        assert_eq!(t.script(ORPHANS).flags(flags).done()?.finished(), "");
    }
    block_on(t, async {
        let machine = Machine::set_up(t, Wanted::default()).await?;
        let mut main = main_process(&["cat"]);
        main = with_input(main);
        main.role = Role::Main {
            pid_namespace: PidNamespace::Private,
            init: true,
        };
        let main = machine.link.start(ProcessId::MAIN, main).await?;
        let script = format!("set -eu\n{ORPHANS}\necho done");
        let finished = machine.run(1, exec(&["sh", "-c", &script]), b"").await?;
        assert_eq!(finished.text(), "done\n", "{finished:?}");
        let processes = machine.link.processes().await?;
        assert!(
            processes.iter().all(|process| process.state != b'Z'),
            "{processes:?}"
        );
        drop(main);
        machine.end().await
    })
}

fn stalled(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = lasting(t).await?;
        // Two that nobody reads, one of them on both streams.
        let flood = machine.link.start(ProcessId(1), exec(&["yes", "flood"]));
        let both = "yes out & exec yes err >&2";
        let both = machine.link.start(ProcessId(2), exec(&["sh", "-c", both]));
        let (mut flood, both) = (flood.await?, both.await?);
        // Until the guest's own buffer is full as well it would not matter.
        for number in 3..8 {
            let numbers = machine
                .run(number, exec(&["seq", "1", "100000"]), b"")
                .await?;
            let expected: String = (1..=100_000).map(|line| format!("{line}\n")).collect();
            assert!(numbers.text() == expected, "{} bytes", numbers.stdout.len());
            assert_eq!(numbers.exit.status, ExitStatus::Code(0));
        }
        machine.link.ping().await?;
        fifty_from(&machine, 100).await?;
        // The stalled one's bytes are all still there, and it still ends when told to.
        flood.control.signal(SIGKILL, SignalTarget::Process).await?;
        let said = read_all(&mut flood.stdout, 0).await?;
        assert!(said.len() > 64 << 10, "only {} bytes", said.len());
        let whole = said.len() / 6 * 6;
        assert!(said[..whole].chunks(6).all(|line| line == b"flood\n"));
        assert_eq!(flood.wait().await?.status, ExitStatus::Signal(SIGKILL));
        drop(both);
        machine.end().await
    })
}

async fn fifty_from(machine: &Machine, first: u32) -> Result<()> {
    let mut running = JoinSet::new();
    for number in first..first + 50 {
        let link: Arc<_> = machine.link.clone();
        running.spawn(async move {
            let finished = run(&link, ProcessId(number), exec(&["echo", "hello"]), b"").await?;
            if finished.text() != "hello\n" {
                bail!("exec {number} said {:?}", finished.text());
            }
            Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(())
}

fn lists(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = lasting(t).await?;
        let spec = exec(&["sh", "-c", "x=$(dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' x); echo up; exec sleep 5000"]);
        let mut second = machine.link.start(ProcessId(1), spec).await?;
        let up = second.stdout.next().await?;
        assert_eq!(up.map(|chunk| chunk.data.to_vec()), Some(b"up\n".to_vec()));
        let processes = machine.link.processes().await?;
        let commands: Vec<(&str, u32)> = processes
            .iter()
            .map(|process| (process.command.as_str(), process.container_pid))
            .collect();
        assert_eq!(commands.len(), 2, "{commands:?}");
        assert_eq!(commands[0], ("sleep 100000", 1));
        assert_eq!(commands[1].0, "sleep 5000");
        let statistics = machine.link.statistics().await?;
        let memory = statistics.memory;
        assert_eq!(statistics.processes, 2, "{statistics:?}");
        assert_eq!(statistics.cpu.online, 1);
        let cpu = statistics.cpu;
        // The machine's time is counted in ticks, the container's in nanoseconds.
        assert!(cpu.container > 0 && cpu.machine > cpu.container / 2, "{cpu:?}");
        assert!(memory.total > 90 << 20 && memory.total <= 128 << 20, "{memory:?}");
        assert!(memory.available < memory.total && memory.container < memory.total);
        assert!(memory.tether > 0 && memory.tether < 4 << 20, "{memory:?}");
        assert_eq!(memory.oom_kills, 0);
        assert_eq!(statistics.disks.len(), 1, "{statistics:?}");
        assert!(statistics.disks[0].read > 0);
        // The clock is what it is set to.
        let then = Duration::from_secs(2_000_000_000);
        machine.link.set_clock(then.as_nanos() as u64).await?;
        let date = machine.run(2, exec(&["date", "+%s"]), b"").await?;
        let seconds: u64 = date.text().trim().parse()?;
        assert!((2_000_000_000..2_000_000_060).contains(&seconds), "{seconds}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        machine.link.set_clock(now.as_nanos() as u64).await?;
        machine.end().await
    })
}

fn missing_disk(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::boot(t, Wanted::default()).await?;
        let mut nowhere = setup("nowhere");
        nowhere.deadline_ms = 1000;
        match machine.link.setup(nowhere).await {
            Err(LinkError::Guest(error)) => {
                assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
                assert!(error.to_string().contains("nowhere"), "{error}");
            }
            other => bail!("setup without its disk: {other:?}"),
        }
        machine.end().await
    })
}
