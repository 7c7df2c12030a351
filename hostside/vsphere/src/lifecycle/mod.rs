//! A VCH on vSphere: its resource pool, its folder, its directory on a datastore, and their life.
//!
//! ```text
//! <pool>/NAME           resource pool: reservation, limit and shares of CPU and memory
//! <folder>/NAME         folder of its machines; on ESXi, which has none, the host's own
//! [datastore] NAME/     vch.json: what was made and with what
//!                       boot/, images/, disks/: see the driver
//! ```
//!
//! What is made is checked first ([`check`]), and everything that is wrong is told at once. [`delete`] removes
//! what `create` and the VCH's containers made; whatever else is found in their places stays, and is named.

mod check;

use std::path::{Path, PathBuf};

use hypervisor::{Cause, Hypervisor as _};
use serde::{Deserialize, Serialize};

pub use check::{Check, Finding, check};

use crate::driver::datastore::{DatastorePath, Directory};
use crate::driver::place::{by_path, of_one, read};
use crate::driver::{Options, PlaceNames, Vsphere};
use crate::property::Collector;
use crate::serial::NoPorts;
use crate::session::{self, Client, chain};
use crate::soap::Element as _;
use crate::task;
use crate::types::{
    CreateFolder, CreateResourcePool, Destroy_Task, ManagedObject, ResourceAllocationInfo,
    ResourceConfigSpec, SharesInfo, SharesLevel, UpdateConfig,
};

/// The file that says what a VCH is.
const RECORD: &str = "vch.json";

/// How much of a resource a VCH is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// What it always has: MHz, or MB.
    pub reservation: i64,
    /// The most it may have, if there is one.
    pub limit: Option<i64>,
    /// How it counts beside others when there is not enough, if not like any (4000).
    pub shares: Option<i32>,
}

/// What a VCH is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VchSpec {
    /// Its name: of its pool, its folder and its directory.
    pub name: String,
    /// The datacenter's inventory path.
    pub datacenter: String,
    /// That of the pool in which its own is made, as in `/DC0/host/C0/Resources`.
    pub parent_pool: String,
    /// That of the folder in which its own is made, as in `/DC0/vm`.
    pub parent_folder: String,
    /// Its datastore's name.
    pub datastore: String,
    /// The networks its containers may be attached to.
    pub networks: Vec<String>,
    /// MHz.
    pub cpu: Allocation,
    /// MB.
    pub memory: Allocation,
}

/// A VCH that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vch {
    /// What it was made as, with every change since.
    pub spec: VchSpec,
    /// The boot image its machines are made with, on the datastore.
    pub boot_image: String,
    /// Whether it has a folder of its own.
    pub own_folder: bool,
}

impl Vch {
    /// The place the driver works in.
    pub fn place(&self) -> PlaceNames {
        let spec = &self.spec;
        PlaceNames {
            datacenter: spec.datacenter.clone(),
            pool: format!("{}/{}", spec.parent_pool, spec.name),
            folder: match self.own_folder {
                true => format!("{}/{}", spec.parent_folder, spec.name),
                false => spec.parent_folder.clone(),
            },
            datastore: spec.datastore.clone(),
            directory: spec.name.clone(),
        }
    }
}

/// A VCH could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong, as the check found before anything was made.
    #[error("the VCH cannot be made:\n{}", shown(.0))]
    Wrong(Vec<Finding>),
    /// The server refused.
    #[error("{what}")]
    Server {
        /// What failed.
        what: String,
        /// What the server said.
        source: Box<session::Error>,
    },
    /// The driver refused.
    #[error("the containers of the VCH cannot be removed")]
    Driver(#[source] hypervisor::Error),
    /// It is not there.
    #[error(
        "there is no VCH {name} on datastore {datastore}: its {RECORD} is missing or not whole"
    )]
    NotFound {
        /// Its name.
        name: String,
        /// Where it was looked for.
        datastore: String,
    },
}

fn shown(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| format!("- {finding}"))
        .collect();
    lines.join("\n")
}

fn server(what: impl Into<String>) -> impl FnOnce(session::Error) -> Error {
    let what = what.into();
    move |error| Error::Server {
        what,
        source: Box::new(error),
    }
}

/// A client that can wait for tasks.
#[derive(Debug)]
struct Hands {
    client: Client,
    collector: Collector,
}

impl Hands {
    async fn new(client: &Client) -> Result<Self, Error> {
        let tasks = client.manager("task manager", |content| &content.taskManager);
        let tasks = tasks.map_err(server("the server cannot be used"))?;
        let specs = vec![task::recent_tasks(tasks)];
        let collector = Collector::open(client.clone(), specs, Box::new(|_| {})).await;
        Ok(Self {
            client: client.clone(),
            collector: collector.map_err(server("the server cannot be watched"))?,
        })
    }

    async fn destroy(&self, object: ManagedObject) -> Result<(), session::Error> {
        let destroy = Destroy_Task { _this: object };
        let done = task::run(&self.client, &self.collector, &destroy, &mut task::quiet).await;
        match done {
            Err(error) if error.fault().is_some_and(|fault| fault.is_gone()) => Ok(()),
            done => done.map(drop),
        }
    }
}

async fn directory(client: &Client, spec: &VchSpec) -> Result<Directory, Error> {
    let datacenter = by_path(client, &spec.datacenter).await;
    let datacenter = datacenter.map_err(server("the datacenter cannot be found"))?;
    let missing = || Error::NotFound {
        name: spec.name.clone(),
        datastore: spec.datastore.clone(),
    };
    let root = DatastorePath {
        datastore: spec.datastore.clone(),
        path: spec.name.clone(),
    };
    let datacenter = datacenter.ok_or_else(missing)?;
    Ok(Directory::new(
        client.clone(),
        datacenter,
        &spec.datacenter,
        root,
    ))
}

/// A resource's share as the API takes it, complete: a pool is made with all of it or not at all.
fn allocation(wanted: &Allocation) -> ResourceAllocationInfo {
    let (shares, level) = match wanted.shares {
        Some(shares) => (shares, SharesLevel::Custom),
        None => (4000, SharesLevel::Normal),
    };
    ResourceAllocationInfo {
        reservation: Some(wanted.reservation),
        expandableReservation: Some(true),
        limit: Some(wanted.limit.unwrap_or(-1)),
        shares: Some(SharesInfo { shares, level }),
    }
}

fn resources(spec: &VchSpec) -> ResourceConfigSpec {
    ResourceConfigSpec {
        cpuAllocation: allocation(&spec.cpu),
        memoryAllocation: allocation(&spec.memory),
        ..ResourceConfigSpec::default()
    }
}

/// Makes a VCH. What went wrong on the way is taken back.
///
/// # Errors
///
/// [`Error::Wrong`] with everything that was found, but for the checks in `accepted`.
pub async fn create(
    client: &Client,
    spec: VchSpec,
    boot_image: &Path,
    accepted: &[Check],
) -> Result<Vch, Error> {
    let mut findings = check(client, &spec).await;
    findings.retain(|finding| !accepted.contains(&finding.check));
    if !findings.is_empty() {
        return Err(Error::Wrong(findings));
    }
    let hands = Hands::new(client).await?;
    let mut made = Vec::new();
    let result = make(&hands, spec, boot_image, &mut made).await;
    if result.is_err() {
        for object in made.into_iter().rev() {
            if let Err(error) = hands.destroy(object).await {
                tracing::warn!(error = %chain(&error), "what was made of the VCH is left behind");
            }
        }
    }
    result
}

async fn find(client: &Client, path: &str) -> Result<ManagedObject, Error> {
    let found = by_path(client, path).await;
    let found = found.map_err(server(format!("{path} cannot be found")))?;
    found.ok_or_else(|| Error::NotFound {
        name: path.to_owned(),
        datastore: "the inventory".into(),
    })
}

async fn make(
    hands: &Hands,
    spec: VchSpec,
    boot_image: &Path,
    made: &mut Vec<ManagedObject>,
) -> Result<Vch, Error> {
    let client = &hands.client;
    let pool = CreateResourcePool {
        _this: find(client, &spec.parent_pool).await?,
        name: spec.name.clone(),
        spec: resources(&spec),
    };
    let pool = client
        .call(&pool)
        .await
        .map_err(server("the resource pool cannot be made"))?;
    made.push(pool);
    let own_folder = client.is_vcenter();
    if own_folder {
        let folder = CreateFolder {
            _this: find(client, &spec.parent_folder).await?,
            name: spec.name.clone(),
        };
        let folder = client
            .call(&folder)
            .await
            .map_err(server("the folder cannot be made"))?;
        made.push(folder);
    }
    let mut vch = Vch {
        spec,
        boot_image: String::new(),
        own_folder,
    };
    upgrade_with(hands, &mut vch, boot_image).await?;
    Ok(vch)
}

/// Gives a VCH another boot image, for the machines that are made from now on.
///
/// # Errors
///
/// It is not there, or the image cannot be uploaded.
pub async fn upgrade(client: &Client, vch: &mut Vch, boot_image: &Path) -> Result<(), Error> {
    let hands = Hands::new(client).await?;
    upgrade_with(&hands, vch, boot_image).await
}

async fn upgrade_with(hands: &Hands, vch: &mut Vch, boot_image: &Path) -> Result<(), Error> {
    let directory = directory(&hands.client, &vch.spec).await?;
    let made = directory.make("boot").await;
    made.map_err(server("the VCH's directory cannot be made"))?;
    let digest = digest(boot_image.to_owned()).await;
    let digest = digest.map_err(server("the boot image cannot be read"))?;
    let target = directory.file(&format!("boot/{digest}.iso"));
    let failed = || server("the boot image cannot be uploaded");
    if !directory.has(&target).await.map_err(failed())? {
        let uploaded = directory
            .upload(&hands.collector, boot_image, &target)
            .await;
        uploaded.map_err(failed())?;
    }
    vch.boot_image = target.to_string();
    write(&directory, vch).await
}

async fn digest(path: PathBuf) -> Result<String, session::Error> {
    use sha2::Digest as _;
    let bytes = tokio::fs::read(&path).await;
    let bytes = bytes.map_err(|source| session::Error::Local { path, source })?;
    Ok(hex::encode(sha2::Sha256::digest(&bytes)))
}

async fn write(directory: &Directory, vch: &Vch) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(vch).unwrap_or_default();
    let written = directory.put(&directory.file(RECORD), text).await;
    written.map_err(server("what the VCH is cannot be written down"))
}

/// Reads what a VCH is.
///
/// # Errors
///
/// [`Error::NotFound`].
pub async fn inspect(client: &Client, spec: &VchSpec) -> Result<Vch, Error> {
    let directory = directory(client, spec).await?;
    let text = directory.get(&directory.file(RECORD)).await;
    let text = text.map_err(server("what the VCH is cannot be read"))?;
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .ok_or_else(|| Error::NotFound {
            name: spec.name.clone(),
            datastore: spec.datastore.clone(),
        })
}

/// The names of the resource pools in a pool: the VCHs there are, and pools that are none.
///
/// # Errors
///
/// The server does not say.
pub async fn list(client: &Client, parent_pool: &str) -> Result<Vec<String>, Error> {
    let failed = || server("the resource pools cannot be listed");
    let parent = find(client, parent_pool).await?;
    let found = read(client, of_one(&parent, &["resourcePool"])).await;
    let found = found.map_err(failed())?;
    let mut names = Vec::new();
    let children = found.first().and_then(|(_, all)| all.get("resourcePool"));
    for child in children
        .map(|list| list.children.as_slice())
        .unwrap_or_default()
    {
        let Ok(pool) = ManagedObject::read(child) else {
            continue;
        };
        let name = read(client, of_one(&pool, &["name"]))
            .await
            .map_err(failed())?;
        let name = name.first().and_then(|(_, all)| all.get("name"));
        names.extend(name.map(|name| name.text.clone()));
    }
    names.sort();
    Ok(names)
}

/// Changes what a VCH is given of its hosts.
///
/// # Errors
///
/// The server refuses.
pub async fn configure(
    client: &Client,
    vch: &mut Vch,
    cpu: Allocation,
    memory: Allocation,
) -> Result<(), Error> {
    let mut spec = vch.spec.clone();
    (spec.cpu, spec.memory) = (cpu, memory);
    let update = UpdateConfig {
        _this: find(client, &vch.place().pool).await?,
        name: None,
        config: Some(resources(&spec)),
    };
    let updated = client.call(&update).await;
    updated.map_err(server("the resource pool cannot be changed"))?;
    vch.spec = spec;
    write(&directory(client, &vch.spec).await?, vch).await
}

/// Removes a VCH: its containers, its pool, its folder, its files. Returns what is in their places that none
/// of them made, and was left there with them. Killed in between, it is done by another call.
///
/// # Errors
///
/// The server refuses.
pub async fn delete(options: Options, vch: &Vch) -> Result<Vec<String>, Error> {
    let client = Client::connect(options.session.clone()).await;
    let client = client.map_err(server("the server cannot be used"))?;
    let hands = Hands::new(&client).await?;
    let place = vch.place();
    let pool = by_path(&client, &place.pool).await;
    let pool = pool.map_err(server("the resource pool cannot be found"))?;
    if pool.is_some() {
        remove_machines(options).await?;
    }
    let mut left = Vec::new();
    if let Some(pool) = pool {
        let foreign = strangers(&client, &pool, "vm").await?;
        match foreign.is_empty() {
            true => hands
                .destroy(pool)
                .await
                .map_err(server("the resource pool cannot be removed"))?,
            false => left.extend(
                foreign
                    .into_iter()
                    .map(|name| format!("{}: {name}", place.pool)),
            ),
        }
    }
    let folder = by_path(&client, &place.folder).await;
    let folder = folder.map_err(server("the folder cannot be found"))?;
    if let Some(folder) = folder.filter(|_| vch.own_folder) {
        let foreign = strangers(&client, &folder, "childEntity").await?;
        match foreign.is_empty() {
            true => hands
                .destroy(folder)
                .await
                .map_err(server("the folder cannot be removed"))?,
            false => left.extend(
                foreign
                    .into_iter()
                    .map(|name| format!("{}: {name}", place.folder)),
            ),
        }
    }
    if left.is_empty() {
        let directory = directory(&client, &vch.spec).await?;
        for name in ["boot", "images", "disks", RECORD] {
            let removed = directory
                .remove(&hands.collector, &directory.file(name))
                .await;
            removed.map_err(server(format!(
                "{name} cannot be removed from the datastore"
            )))?;
        }
        let failed = || server("the VCH's directory cannot be removed from the datastore");
        let path = format!("{}/datastore/{}", vch.spec.datacenter, vch.spec.datastore);
        let browser = browser(&client, &path).await.map_err(failed())?;
        if let Some(browser) = browser {
            let removed = directory.remove_if_empty(&hands.collector, browser).await;
            // Somebody's files in it are none of what is removed here.
            removed.map_err(failed())?;
        }
    }
    Ok(left)
}

/// What looks into the datastore at an inventory path.
async fn browser(client: &Client, path: &str) -> Result<Option<ManagedObject>, session::Error> {
    let Some(datastore) = by_path(client, path).await? else {
        return Ok(None);
    };
    let found = read(client, of_one(&datastore, &["browser"])).await?;
    let browser = found.first().and_then(|(_, all)| all.get("browser"));
    Ok(browser.and_then(|node| ManagedObject::read(node).ok()))
}

/// Removes the containers.
async fn remove_machines(options: Options) -> Result<(), Error> {
    let driver = Vsphere::open(options, std::sync::Arc::new(NoPorts)).await;
    let driver = driver.map_err(Error::Driver)?;
    driver.reconcile().await.map_err(Error::Driver)?;
    for machine in driver.list().await.map_err(Error::Driver)? {
        match driver.destroy(&machine.id).await {
            Err(error) if matches!(error.cause(), Cause::NotFound { .. }) => {}
            destroyed => destroyed.map_err(Error::Driver)?,
        }
    }
    for template in driver.templates().await.map_err(Error::Driver)? {
        match driver.remove_template(&template.id).await {
            Err(error) if matches!(error.cause(), Cause::NotFound { .. }) => {}
            removed => removed.map_err(Error::Driver)?,
        }
    }
    Ok(())
}

/// The names of what is in a pool or folder.
async fn strangers(client: &Client, of: &ManagedObject, path: &str) -> Result<Vec<String>, Error> {
    let failed = || server("what is left of the VCH cannot be listed");
    let found = read(client, of_one(of, &[path])).await.map_err(failed())?;
    let list = found.first().and_then(|(_, all)| all.get(path));
    let mut names = Vec::new();
    for child in list
        .map(|list| list.children.as_slice())
        .unwrap_or_default()
    {
        let Ok(object) = ManagedObject::read(child) else {
            continue;
        };
        let name = read(client, of_one(&object, &["name"]))
            .await
            .map_err(failed())?;
        let name = name
            .first()
            .and_then(|(_, all)| Some(all.get("name")?.text.clone()));
        names.push(name.unwrap_or_else(|| object.to_string()));
    }
    Ok(names)
}
