//! `vch ls`, `vch inspect`, `vch rm`: containers that `vch run` made.

use crate::cli::{ListArgs, NamesArgs, RemoveArgs};
use crate::failure::Failure;
use crate::image_commands::{print, print_json, table};
use crate::images;
use crate::paths::State;
use crate::record::{Ended, Record, now};
use crate::run::Container;
use crate::run_directory::{self, Claim, RunDirectory};
use anyhow::{Context, Result, anyhow, bail};
use hypervisor::PowerState;
use serde::Serialize;
use std::path::Path;

/// What there is to say about one.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    record: Record,
    status: Status,
    /// The process that attends it.
    owner: Option<u32>,
    ended: Option<Ended>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// Attended by a `vch run`.
    Running,
    /// Its `vch run` was killed: `--resume` goes on, `rm --force` gives up.
    Orphaned,
    /// Ended and kept.
    Exited,
}

fn show(runs: &Path, name: &str) -> Result<Shown> {
    let record = run_directory::record(runs, name)?;
    let owner = run_directory::owned_by(runs, name);
    let ended = run_directory::ended(runs, name)?;
    let status = match (&owner, &ended) {
        (Some(_), _) => Status::Running,
        (None, Some(_)) => Status::Exited,
        (None, None) => Status::Orphaned,
    };
    Ok(Shown {
        record,
        status,
        owner: owner.flatten(),
        ended,
    })
}

/// `vch ls`.
pub fn list(state: Option<&Path>, args: &ListArgs) -> Result<u8, Failure> {
    let runs = State::open(state)?.runs()?;
    let mut all = Vec::new();
    for name in run_directory::names(&runs)? {
        match show(&runs, &name) {
            Ok(shown) => all.push(shown),
            // Removed meanwhile.
            Err(_) if !runs.join(&name).exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if args.json {
        print_json(&all)?;
    } else if args.quiet {
        let names: String = all.iter().map(|s| format!("{}\n", s.record.name)).collect();
        print(&names)?;
    } else {
        let heads = [
            "NAME", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS",
        ];
        let mut rows = vec![heads.map(str::to_owned)];
        rows.extend(all.iter().map(row));
        print(&table(&rows))?;
    }
    Ok(0)
}

fn row(shown: &Shown) -> [String; 7] {
    let record = &shown.record;
    let command: String = record.process.argv.join(" ").chars().take(30).collect();
    let status = match (shown.status, &shown.ended) {
        (Status::Exited, Some(ended)) => format!("exited ({})", ended.status),
        (Status::Exited, None) => "exited".to_owned(),
        (Status::Running, _) => "running".to_owned(),
        (Status::Orphaned, _) => "orphaned: vch run --resume".to_owned(),
    };
    let ports: Vec<String> = record
        .machine
        .spec
        .nics
        .iter()
        .flat_map(|nic| nic.attachment.published())
        .map(|port| format!("{}->{}/{}", port.host, port.guest_port, port.protocol))
        .collect();
    [
        record.name.clone(),
        record.id.chars().take(12).collect(),
        record.image.clone(),
        command,
        ago(now().as_secs().saturating_sub(record.created)),
        status,
        ports.join(", "),
    ]
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// `vch inspect`.
pub fn inspect(state: Option<&Path>, args: &NamesArgs) -> Result<u8, Failure> {
    let runs = State::open(state)?.runs()?;
    let shown = args
        .names
        .iter()
        .map(|text| show(&runs, &run_directory::find(&runs, text)?))
        .collect::<Result<Vec<_>>>()?;
    print_json(&shown)?;
    Ok(0)
}

/// `vch rm`.
pub fn remove(state: Option<&Path>, args: &RemoveArgs) -> Result<u8, Failure> {
    let state = State::open(state)?;
    let runs = state.runs()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    for text in &args.names {
        let name = run_directory::find(&runs, text)?;
        runtime.block_on(remove_one(&state, &runs, &name, args.force))?;
        print(&format!("{name}\n"))?;
    }
    Ok(0)
}

async fn remove_one(state: &State, runs: &Path, name: &str, force: bool) -> Result<()> {
    let directory = match RunDirectory::claim(runs, name)? {
        Claim::Owned(directory) => directory,
        Claim::Taken { pid } => {
            let who = pid.map_or_else(|| "another vch".to_owned(), |pid| format!("process {pid}"));
            bail!("container {name} is attended by {who}: end that first");
        }
    };
    let record = run_directory::record(runs, name)?;
    let container = Container {
        store: images::store(state)?,
        key: directory.key()?,
        record,
        directory,
    };
    let driver = container.driver().await?;
    let machine = driver.inspect(&container.record.machine.spec.id).await;
    if let Ok(machine) = machine
        && !force
        && !matches!(machine.power, PowerState::Off { .. })
    {
        return Err(anyhow!(
            "container {name} runs without a vch: go on with `vch run --resume {name}`, or give up with `vch rm --force {name}`"
        ));
    }
    container.remove(Some(driver)).await
}
