//! `vch template ...`: what VMs are forked from.

use crate::args::{MachineArgs, RunArgs, size};
use crate::cli::{ListArgs, TemplateCommand};
use crate::failure::Failure;
use crate::image_commands::{human, print, print_json, table};
use crate::machine;
use crate::paths::State;
use crate::record::now;
use anyhow::{Context, Result, bail};
use qemu::{TemplateStatus, Templates};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Runs one of them; gives the exit status.
pub fn run(state: Option<&Path>, command: TemplateCommand) -> Result<u8, Failure> {
    let state = State::open(state)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(async {
        match command {
            TemplateCommand::Ls(args) => list(&open(&state)?, &args),
            TemplateCommand::Inspect { templates } => {
                let all = open(&state)?.list()?;
                let found = templates
                    .iter()
                    .map(|name| find(&all, name))
                    .collect::<Result<Vec<_>>>()?;
                print_json(&found)
            }
            TemplateCommand::Build {
                memory,
                cpus,
                machine,
                json,
            } => build(&state, memory, cpus, *machine, json).await,
            TemplateCommand::Rm { templates } => remove(&open(&state)?, &templates).await,
        }
    })?;
    Ok(0)
}

/// The templates of `VCH_TEMPLATES`, else the state directory's own.
fn open(state: &State) -> Result<Templates> {
    let told = std::env::var_os("VCH_TEMPLATES").filter(|directory| !directory.is_empty());
    let directory = match told {
        Some(directory) => PathBuf::from(directory),
        None => state.templates()?,
    };
    Ok(Templates::open(directory)?)
}

/// The one whose id begins so.
fn find<'a>(all: &'a [TemplateStatus], name: &str) -> Result<&'a TemplateStatus> {
    let mut found = all
        .iter()
        .filter(|template| !name.is_empty() && template.record.id.0.starts_with(name));
    match (found.next(), found.next()) {
        (Some(template), None) => Ok(template),
        (Some(_), Some(_)) => bail!("more than one template's id begins with {name}"),
        (None, _) => bail!("no such template: {name}"),
    }
}

fn list(templates: &Templates, args: &ListArgs) -> Result<()> {
    let all = templates.list()?;
    if args.json {
        return print_json(&all);
    }
    if args.quiet {
        let ids: String = all
            .iter()
            .map(|template| format!("{}\n", template.record.id))
            .collect();
        return print(&ids);
    }
    let mut rows = vec![
        [
            "ID",
            "CPUS",
            "MEMORY",
            "HELD",
            "MADE IN",
            "LAST USED",
            "KERNEL",
        ]
        .map(str::to_owned),
    ];
    rows.extend(all.iter().map(row));
    print(&table(&rows))
}

fn row(template: &TemplateStatus) -> [String; 7] {
    let record = &template.record;
    let used = template.used.duration_since(UNIX_EPOCH).unwrap_or_default();
    [
        record.id.0.chars().take(12).collect(),
        record.spec.cpus.count().to_string(),
        human(record.spec.memory.bytes()),
        human(template.held),
        format!("{} ms", record.took_ms),
        format!("{} s ago", now().saturating_sub(used).as_secs()),
        match &record.spec.boot {
            hypervisor::Boot::Kernel { kernel, .. } => kernel.display().to_string(),
            hypervisor::Boot::Iso { iso, .. } => iso.display().to_string(),
        },
    ]
}

async fn build(
    state: &State,
    memory: Option<size::Size>,
    cpus: Option<f64>,
    machine: MachineArgs,
    json: bool,
) -> Result<()> {
    let args = RunArgs::of_machine(machine, memory, cpus);
    let (mut record, _) = machine::plan(&args, "template", PathBuf::from("/"))?;
    let directory = match record.templates.take() {
        Some(directory) => directory,
        None => state.templates()?,
    };
    let place = Some(directory.clone());
    let options = machine::options(&record.accel, &record.spec.boot, place).await?;
    let made = Templates::open(directory)?
        .make_ready(&record.spec, &options)
        .await?;
    if json {
        print_json(&made)
    } else {
        print(&format!("{}\n", made.id))
    }
}

async fn remove(templates: &Templates, names: &[String]) -> Result<()> {
    for name in names {
        let all = templates.list()?;
        let id = &find(&all, name)?.record.id;
        templates.remove(id).await?;
        print(&format!("{id}\n"))?;
    }
    Ok(())
}
