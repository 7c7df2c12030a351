//! `vch host`: VCHs on vSphere, from the first to the last.

use crate::args::host::{AllocationArgs, CreateArgs, HostCommand, NamedArgs};
use crate::args::vsphere::ServerArgs;
use crate::failure::Failure;
use anyhow::{Context, Result, bail};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use vsphere::lifecycle::{self, Allocation, Check, Vch, VchSpec};
use vsphere::session::Client;

/// The vSphere API counts memory of pools in these.
const MB: u64 = 1 << 20;

/// Runs one; its status.
///
/// # Errors
/// What failed, on what, and what to do.
pub fn run(state: Option<&Path>, command: HostCommand) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done: Result<()> = runtime.block_on(async {
        match command {
            HostCommand::Create(args) => create(state, *args).await,
            HostCommand::Configure(args) => configure(&args.named, &args.allocation).await,
            HostCommand::Inspect(args) => inspect(&args).await,
            HostCommand::Ls(args) => {
                let client = connect(&args.server).await?;
                let names = lifecycle::list(&client, &args.resource_pool).await?;
                for name in names {
                    say(&name)?;
                }
                log_out(client).await;
                Ok(())
            }
            HostCommand::Upgrade(args) => {
                let (client, mut vch) = find(&args.named).await?;
                lifecycle::upgrade(&client, &mut vch, &iso(&args.boot_image)?).await?;
                log_out(client).await;
                say(&vch.boot_image)
            }
            HostCommand::Delete(args) => delete(state, &args).await,
        }
    });
    done?;
    Ok(0)
}

/// A reader that has gone has read what it wanted.
fn say(line: &str) -> Result<()> {
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}

fn iso(boot_image: &Path) -> Result<PathBuf> {
    let iso = boot_image.join("tether.iso");
    iso.canonicalize()
        .with_context(|| format!("no boot image at {}", iso.display()))
}

async fn connect(server: &ServerArgs) -> Result<Client> {
    Ok(Client::connect(server.session()?).await?)
}

/// Gives the session back. One that cannot be ends by itself.
pub async fn log_out(client: Client) {
    let _ = client.log_out().await;
}

/// The VCH of this name.
///
/// # Errors
/// There is none, or the server does not say.
pub async fn find(args: &NamedArgs) -> Result<(Client, Vch)> {
    let client = connect(&args.server).await?;
    let spec = VchSpec {
        name: args.name.clone(),
        datacenter: args.server.datacenter(&client)?,
        datastore: args.server.datastore()?,
        parent_pool: String::new(),
        parent_folder: String::new(),
        networks: Vec::new(),
        cpu: NOTHING,
        memory: NOTHING,
    };
    let vch = lifecycle::inspect(&client, &spec).await?;
    Ok((client, vch))
}

const NOTHING: Allocation = Allocation {
    reservation: 0,
    limit: None,
    shares: None,
};

/// What was said, over what there is.
fn allocations(
    args: &AllocationArgs,
    cpu: Allocation,
    memory: Allocation,
) -> (Allocation, Allocation) {
    let megabytes =
        |size: crate::args::size::Size| i64::try_from(size.0.div_ceil(MB)).unwrap_or(i64::MAX);
    (
        Allocation {
            reservation: args.cpu_reservation.unwrap_or(cpu.reservation),
            limit: args.cpu_limit.or(cpu.limit),
            shares: args.cpu_shares.or(cpu.shares),
        },
        Allocation {
            reservation: args
                .memory_reservation
                .map_or(memory.reservation, megabytes),
            limit: args.memory_limit.map(megabytes).or(memory.limit),
            shares: args.memory_shares.or(memory.shares),
        },
    )
}

fn check(word: &str) -> Result<Check> {
    Ok(match word {
        "place" => Check::Place,
        "datastore" => Check::Datastore,
        "network" => Check::Network,
        "host" => Check::Host,
        "firewall" => Check::Firewall,
        "licence" | "license" => Check::Licence,
        "privileges" => Check::Privileges,
        _ => bail!(
            "--accept {word}: it is place, datastore, network, host, firewall, licence or privileges"
        ),
    })
}

async fn create(state: Option<&Path>, args: CreateArgs) -> Result<()> {
    let accepted = args.accepted.iter().map(|word| check(word));
    let accepted = accepted.collect::<Result<Vec<_>>>()?;
    let iso = iso(&args.boot_image)?;
    let client = connect(&args.named.server).await?;
    let datacenter = args.named.server.datacenter(&client)?;
    let (cpu, memory) = allocations(&args.allocation, NOTHING, NOTHING);
    let spec = VchSpec {
        name: args.named.name.clone(),
        parent_folder: args.folder.unwrap_or_else(|| format!("{datacenter}/vm")),
        datacenter,
        parent_pool: args.resource_pool,
        datastore: args.named.server.datastore()?,
        networks: args.networks,
        cpu,
        memory,
    };
    let vch = lifecycle::create(&client, spec, &iso, &accepted).await?;
    log_out(client).await;
    let socket = socket(state, &args.named.name)?;
    say(&format!("VCH {} is {}", vch.spec.name, vch.place().pool))?;
    say(&format!(
        "vch serve --driver vsphere --name {}",
        vch.spec.name
    ))?;
    say(&format!("export DOCKER_HOST=unix://{}", socket.display()))
}

/// Where its endpoint listens, unless it is told otherwise.
fn socket(state: Option<&Path>, name: &str) -> Result<PathBuf> {
    let state = crate::paths::State::open(state)?;
    Ok(state.vch(name)?.join("docker.sock"))
}

async fn configure(args: &NamedArgs, allocation: &AllocationArgs) -> Result<()> {
    let (client, mut vch) = find(args).await?;
    let (cpu, memory) = allocations(allocation, vch.spec.cpu, vch.spec.memory);
    lifecycle::configure(&client, &mut vch, cpu, memory).await?;
    log_out(client).await;
    show(&vch)
}

async fn inspect(args: &NamedArgs) -> Result<()> {
    let (client, vch) = find(args).await?;
    log_out(client).await;
    show(&vch)
}

fn show(vch: &Vch) -> Result<()> {
    say(&serde_json::to_string_pretty(vch).context("cannot show the VCH")?)
}

async fn delete(state: Option<&Path>, args: &NamedArgs) -> Result<()> {
    let (client, vch) = find(args).await?;
    log_out(client).await;
    let options = vsphere::Options {
        session: args.server.session()?,
        vch: vch.spec.name.clone(),
        place: vch.place(),
        user_network: vch.spec.networks.first().cloned(),
        guests_are_here: false,
        state: crate::paths::State::open(state)?
            .vch(&args.name)?
            .join("vsphere"),
    };
    let left = lifecycle::delete(options, &vch).await?;
    if left.is_empty() {
        return Ok(());
    }
    bail!(
        "the VCH's containers are removed, but these are not its own and were left where they are, with what holds them: {}",
        left.join(", ")
    )
}
