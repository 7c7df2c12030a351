//! Forks beside boots of the same machine, and beside forks of a machine with a C agent.

use super::{Agent, Bench, Tether, within};
use anyhow::{Context as _, Result, bail, ensure};
use hypervisor::{Hypervisor as _, MachineId, Start, Started};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use tether_wire::message::{PidNamespace, ProcessId, Role};

/// Samples by what they are of.
#[derive(Default)]
struct Samples(Map<String, Value>);

impl Samples {
    fn add(&mut self, name: &str, sample: f64) {
        let samples = self.0.entry(name).or_insert_with(|| json!([]));
        if let Value::Array(samples) = samples {
            samples.push(sample.into());
        }
    }
}

impl Bench {
    /// The first of each makes its template, and is thrown away.
    pub(super) async fn fork(&self) -> Result<Value> {
        let mut samples = Samples::default();
        let ahead = self.ahead().await?;
        for number in 0..=self.arguments.pairs {
            let fork = self.life(Start::Fork).await?;
            let boot = self.life(Start::Boot).await?;
            let agent = self.theirs(Start::Fork).await?;
            let theirs = agent.machine.powered_on.elapsed().as_secs_f64();
            self.must_be_forked(&agent).await?;
            let used = Used::by(&agent.machine.id)?;
            self.driver.destroy(&agent.machine.id).await?;
            // The first has no spare yet, and what it starts is the next one's.
            let spare = ahead.life(Start::Fork).await?;
            ahead.spare_is_ready().await?;
            if number == 0 {
                continue;
            }
            for (name, life) in [("fork", &fork), ("boot", &boot), ("spare", &spare)] {
                samples.add(&format!("{name}_ready"), life.ready);
                samples.add(&format!("{name}_first_byte"), life.first_byte);
                samples.add(&format!("{name}_ready_cpu"), life.at_ready.processor);
                samples.add(&format!("{name}_first_byte_cpu"), life.after.processor);
                samples.add(&format!("{name}_unshared_at_ready"), life.at_ready.unshared);
                samples.add(&format!("{name}_unshared_after"), life.after.unshared);
                samples.add(&format!("{name}_own"), life.after.own);
            }
            samples.add("theirs_ready", theirs);
            samples.add("theirs_ready_cpu", used.processor);
            samples.add("theirs_unshared", used.unshared);
        }
        Ok(Value::Object(samples.0))
    }

    /// The same with a driver that starts QEMUs ahead of need.
    async fn ahead(&self) -> Result<Self> {
        let mut arguments = self.arguments.clone();
        arguments.state = arguments.state.join("ahead");
        let ahead = Self::open_with(arguments, 1).await?;
        ahead.clean().await?;
        Ok(ahead)
    }

    async fn spare_is_ready(&self) -> Result<()> {
        let ready = async {
            while self.driver.spares_ready() == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        };
        within(ready)
            .await
            .context("no QEMU was started ahead of need")
    }

    async fn must_be_forked(&self, agent: &Agent) -> Result<()> {
        match self.driver.inspect(&agent.machine.id).await?.began {
            Some(Started::Forked { .. }) => Ok(()),
            other => bail!("the C agent's machine was not forked: {other:?}"),
        }
    }

    /// From power on to the first byte that a process writes.
    async fn life(&self, start: Start) -> Result<Life> {
        let tether = self.ours(start).await?;
        let ready = tether.machine.powered_on.elapsed();
        let id = tether.machine.id;
        let began = self.driver.inspect(&id).await?.began;
        match (start, &began) {
            (Start::Fork, Some(Started::Forked { .. })) | (Start::Boot, Some(Started::Booted)) => {}
            _ => bail!("a machine that was to {start} began otherwise: {began:?}"),
        }
        let at_ready = Used::by(&id)?;
        let first_byte = first_byte(&tether).await?;
        let after = Used::by(&id)?;
        drop(tether);
        self.driver.destroy(&id).await?;
        Ok(Life {
            ready: ready.as_secs_f64(),
            // Without what looking at its memory took.
            first_byte: ready.as_secs_f64() + first_byte,
            at_ready,
            after,
        })
    }
}

/// One machine's times, in seconds since power on, and what it had used by then.
struct Life {
    ready: f64,
    first_byte: f64,
    at_ready: Used,
    after: Used,
}

/// What a machine's QEMU has used of the host.
struct Used {
    /// Seconds of processor time.
    processor: f64,
    /// Bytes of the guest's memory that it shares with nobody.
    unshared: f64,
    /// Bytes of memory that it shares with nobody, guest's and QEMU's.
    own: f64,
}

/// Seconds from asking for the setup to the first byte of a process.
async fn first_byte(tether: &Tether) -> Result<f64> {
    let asked = std::time::Instant::now();
    tether.set_up().await?;
    let main = Role::Main {
        pid_namespace: PidNamespace::Machine,
        init: false,
    };
    let mut echo = within(tether.start(ProcessId::MAIN, &["/bin/echo", "x"], main)).await?;
    let chunk = within(echo.stdout.next()).await?;
    let took = asked.elapsed().as_secs_f64();
    ensure!(
        chunk.is_some_and(|chunk| chunk.data[..] == *b"x\n"),
        "echo said nothing"
    );
    within(echo.wait()).await?;
    Ok(took)
}

impl Used {
    fn by(id: &MachineId) -> Result<Self> {
        let process = process_of(id)?;
        let (unshared, own) = memory(&std::fs::read_to_string(process.join("smaps"))?)?;
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(process.join("task"))? {
            // Documentation/scheduler/sched-stats.rst: time on the processor comes first.
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let word = text.split_ascii_whitespace().next();
            nanoseconds += word.context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(Self {
            processor: nanoseconds as f64 / 1e9,
            unshared: unshared as f64,
            own: own as f64,
        })
    }
}

/// What is a process's own: of the guest's memory, and altogether. A private view's pages are its own
/// when they are anonymous (proc_pid_smaps(5)).
fn memory(smaps: &str) -> Result<(u64, u64)> {
    let (mut ram, mut all, mut is_ram) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Anonymous:") => {
                let kib: u64 = words.next().context("no number")?.parse()?;
                all += kib << 10;
                ram += if is_ram { kib << 10 } else { 0 };
            }
            // A mapping's line begins with its addresses; the file of a removed template is still its.
            Some(first) if first.contains('-') => {
                is_ram = line.trim_end_matches(" (deleted)").ends_with("/ram");
            }
            _ => {}
        }
    }
    Ok((ram, all))
}

/// The process that runs in the machine's directory, or in what was a spare's there.
fn process_of(id: &MachineId) -> Result<PathBuf> {
    let name = id.to_string();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Ok(directory) = std::fs::read_link(path.join("cwd")) else {
            continue;
        };
        let home = match directory.ends_with("run") {
            true => directory.parent(),
            false => Some(directory.as_path()),
        };
        if home.is_some_and(|home| home.ends_with(&name)) {
            return Ok(path);
        }
    }
    bail!("no QEMU of machine {id}")
}
