//! What is wrong with a VCH before it is made: everything at once.

use std::collections::BTreeSet;
use std::fmt;

use super::VchSpec;
use crate::driver::datastore::FILE_PRIVILEGES;
use crate::driver::place::{Networks, by_path, of_one, properties, read};
use crate::session::{Client, Error, chain};
use crate::soap::{Element as _, Node};
use crate::types::{
    FetchUserPrivilegeOnEntities, METHODS, ManagedObject, ObjectSpec, PropertyFilterSpec,
    Selection, TraversalSpec,
};

/// The oldest hosts that have what the driver needs.
const HOST_OLDEST: [u32; 2] = [6, 5];
/// Bytes of the datastore that have to be free.
const SPACE: u64 = 1 << 30;
/// The rule of a host's firewall that lets serial ports out.
const RULE: &str = "remoteSerialPort";

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Places that have to be there, and names that have to be free.
    Place,
    /// The datastore's state and space.
    Datastore,
    /// Networks.
    Network,
    /// The hosts' state and versions.
    Host,
    /// The hosts' firewalls, which have to let serial ports out.
    Firewall,
    /// The licence.
    Licence,
    /// The user's privileges.
    Privileges,
}

/// Something that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which check found it.
    pub check: Check,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: Check, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding {
            check,
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    /// The value, or that it could not be had.
    fn have<T>(&mut self, check: Check, what: &str, answer: Result<T, Error>) -> Option<T> {
        answer
            .inspect_err(|error| {
                let what = format!("{what} cannot be checked ({})", chain(error));
                self.add(
                    check,
                    what,
                    "give the user System.Read there, or accept it unchecked",
                );
            })
            .ok()
    }
}

/// Everything that is wrong.
pub async fn check(client: &Client, spec: &VchSpec) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    let datastore = format!("{}/datastore/{}", spec.datacenter, spec.datastore);
    let pool = place(client, &mut found, &spec.parent_pool, "resource pool").await;
    let folder = place(client, &mut found, &spec.parent_folder, "folder").await;
    let datacenter = place(client, &mut found, &spec.datacenter, "datacenter").await;
    let datastore = place(client, &mut found, &datastore, "datastore").await;
    name(client, &mut found, spec).await;
    if let Some(datastore) = &datastore {
        space(client, &mut found, datastore, spec).await;
    }
    if let Some(datacenter) = datacenter {
        networks(client, &mut found, datacenter, spec).await;
    }
    if let Some(pool) = &pool {
        hosts(client, &mut found, pool).await;
    }
    licence(client, &mut found).await;
    let entities: Vec<ManagedObject> = [pool, folder, datastore].into_iter().flatten().collect();
    privileges(client, &mut found, &entities).await;
    found.0
}

async fn place(
    client: &Client,
    found: &mut Findings,
    path: &str,
    what: &str,
) -> Option<ManagedObject> {
    let answer = found.have(Check::Place, path, by_path(client, path).await)?;
    if answer.is_none() {
        found.add(
            Check::Place,
            format!("there is no {what} {path}"),
            format!("name one that {} may see", client.user()),
        );
    }
    answer
}

async fn name(client: &Client, found: &mut Findings, spec: &VchSpec) {
    let fits = (1..=60).contains(&spec.name.len())
        && spec
            .name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !spec.name.starts_with('.');
    if !fits {
        found.add(
            Check::Place,
            format!("{:?} is no name for a VCH", spec.name),
            "take 1 to 60 letters, digits, dots, hyphens and underscores",
        );
        return;
    }
    let mut taken = vec![format!("{}/{}", spec.parent_pool, spec.name)];
    if client.is_vcenter() {
        taken.push(format!("{}/{}", spec.parent_folder, spec.name));
    }
    for path in taken {
        if let Ok(Some(_)) = by_path(client, &path).await {
            found.add(
                Check::Place,
                format!("{path} is there already"),
                "take another name",
            );
        }
    }
}

async fn space(client: &Client, found: &mut Findings, datastore: &ManagedObject, spec: &VchSpec) {
    let answer = read(client, of_one(datastore, &["summary"])).await;
    let Some(answer) = found.have(Check::Datastore, &spec.datastore, answer) else {
        return;
    };
    let summary = answer.first().and_then(|(_, all)| all.get("summary"));
    let text = |name: &str| {
        summary
            .and_then(|summary| summary.text_of(name))
            .map(str::trim)
    };
    if text("accessible") == Some("false") {
        found.add(
            Check::Datastore,
            format!("datastore {} is not accessible", spec.datastore),
            "connect it, or name another",
        );
    }
    let free: Option<u64> = text("freeSpace").and_then(|text| text.parse().ok());
    if free.is_some_and(|free| free < SPACE) {
        found.add(
            Check::Datastore,
            format!(
                "datastore {} has {} MiB left",
                spec.datastore,
                free.unwrap_or_default() >> 20
            ),
            format!("free {} MiB, or name another", SPACE >> 20),
        );
    }
}

async fn networks(
    client: &Client,
    found: &mut Findings,
    datacenter: ManagedObject,
    spec: &VchSpec,
) {
    let networks = Networks::new(client.clone(), datacenter);
    for name in &spec.networks {
        if let Err(error) = networks.backing(name).await {
            found.add(
                Check::Network,
                error.to_string(),
                "name one of them, or make it",
            );
        }
    }
}

/// The hosts below a pool's compute resource.
fn hosts_of(compute: &ManagedObject) -> PropertyFilterSpec {
    let paths = [
        "name",
        "runtime.connectionState",
        "config.product",
        "configManager.firewallSystem",
    ];
    PropertyFilterSpec {
        propSet: vec![properties("HostSystem", &paths)],
        objectSet: vec![ObjectSpec {
            obj: compute.clone(),
            skip: Some(true),
            selectSet: vec![Selection::from(TraversalSpec {
                r#type: compute.kind.clone(),
                path: "host".into(),
                skip: Some(false),
                ..TraversalSpec::default()
            })],
        }],
        reportMissingObjectsInResults: None,
    }
}

async fn hosts(client: &Client, found: &mut Findings, pool: &ManagedObject) {
    let owner = read(client, of_one(pool, &["owner"])).await;
    let Some(owner) = found.have(Check::Host, "the hosts", owner) else {
        return;
    };
    let owner = owner.first().and_then(|(_, all)| all.get("owner"));
    let Some(Ok(owner)) = owner.map(ManagedObject::read) else {
        found.add(
            Check::Host,
            "the hosts of the resource pool are not to be seen",
            "give the user System.Read on their cluster",
        );
        return;
    };
    let hosts = read(client, hosts_of(&owner)).await;
    let hosts = found
        .have(Check::Host, "the hosts", hosts)
        .unwrap_or_default();
    let mut usable = 0;
    for (host, all) in &hosts {
        let text = |path: &str| all.get(path).map(|node| node.text.trim().to_owned());
        let name = text("name").unwrap_or_else(|| host.to_string());
        let version = all
            .get("config.product")
            .and_then(|product| product.text_of("version"))
            .unwrap_or_default();
        if version_of(version) < HOST_OLDEST.to_vec() && !version.is_empty() {
            let needed = HOST_OLDEST.map(|number| number.to_string()).join(".");
            found.add(
                Check::Host,
                format!("host {name} is ESXi {version}"),
                format!("upgrade it to {needed} or newer"),
            );
        }
        if text("runtime.connectionState").is_none_or(|state| state == "connected") {
            usable += 1;
        }
        if let Some(Ok(firewall)) = all
            .get("configManager.firewallSystem")
            .map(ManagedObject::read)
        {
            wall(client, found, &name, &firewall).await;
        }
    }
    if usable == 0 {
        found.add(Check::Host, "no host is connected", "connect one");
    }
}

fn version_of(text: &str) -> Vec<u32> {
    text.split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

async fn wall(client: &Client, found: &mut Findings, host: &str, firewall: &ManagedObject) {
    let answer = read(client, of_one(firewall, &["firewallInfo"])).await;
    let Some(answer) = found.have(Check::Firewall, &format!("the firewall of {host}"), answer)
    else {
        return;
    };
    let info = answer.first().and_then(|(_, all)| all.get("firewallInfo"));
    let rule = |info: &Node| {
        let rule = info
            .children_named("ruleset")
            .find(|rule| rule.text_of("key") == Some(RULE))?;
        Some(rule.text_of("enabled")?.trim() == "true")
    };
    if info.and_then(rule) == Some(false) {
        found.add(
            Check::Firewall,
            format!("the firewall of {host} lets no serial port out, and containers are spoken to over one"),
            format!("enable the rule {RULE} (\"VM serial port connected over network\") on it"),
        );
    }
}

async fn licence(client: &Client, found: &mut Findings) {
    let Ok(manager) = client.manager("licence manager", |content| &content.licenseManager) else {
        return;
    };
    // Who may not see licences is told by the first call that is refused.
    let Ok(answer) = read(client, of_one(&manager, &["licenses"])).await else {
        return;
    };
    let licences = answer.first().and_then(|(_, all)| all.get("licenses"));
    let free = |licence: &Node| licence.text_of("editionKey") == Some("esxBasic");
    let all = licences
        .map(|list| list.children.as_slice())
        .unwrap_or_default();
    if !client.is_vcenter() && !all.is_empty() && all.iter().all(free) {
        found.add(
            Check::Licence,
            "the host has the free licence, with which nothing can be made through the API",
            "give it another, or use a vCenter",
        );
    }
}

/// The privileges that have to be there on any of the places.
fn needed() -> BTreeSet<&'static str> {
    METHODS
        .iter()
        .flat_map(|method| method.privileges)
        .chain(FILE_PRIVILEGES)
        .copied()
        .filter(|name| !name.starts_with("System.") && !name.starts_with("Network."))
        .collect()
}

async fn privileges(client: &Client, found: &mut Findings, entities: &[ManagedObject]) {
    let Ok(manager) = client.manager("authorization manager", |content| {
        &content.authorizationManager
    }) else {
        return;
    };
    // Roles are a vCenter's; on a host of its own, who is no administrator may change nothing.
    if !client.is_vcenter() || entities.is_empty() {
        return;
    }
    let fetch = FetchUserPrivilegeOnEntities {
        _this: manager,
        entities: entities.to_vec(),
        userName: client.user().to_owned(),
    };
    let answer = client.call(&fetch).await;
    let Some(answer) = found.have(Check::Privileges, "the user's privileges", answer) else {
        return;
    };
    let granted: BTreeSet<&str> = answer
        .iter()
        .flat_map(|result| result.privileges.iter().map(String::as_str))
        .collect();
    let missing: Vec<&str> = needed()
        .into_iter()
        .filter(|name| !granted.contains(name))
        .collect();
    if !missing.is_empty() {
        found.add(
            Check::Privileges,
            format!("{} lacks {}", client.user(), missing.join(", ")),
            "grant them; PRIVILEGES.md says where",
        );
    }
}
