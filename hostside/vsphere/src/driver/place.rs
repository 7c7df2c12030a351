//! Where a VCH is in a server's inventory, and the networks its machines can be attached to.

use std::collections::HashMap;

use hypervisor::Cause;

use crate::property::Properties;
use crate::session::{Client, Error, chain};
use crate::soap::{Element as _, Node};
use crate::types::{
    Backing, ContinueRetrievePropertiesEx, DistributedVirtualSwitchPortConnection,
    FindByInventoryPath, ManagedObject, ObjectSpec, PropertyFilterSpec, PropertySpec,
    RetrieveOptions, RetrievePropertiesEx, Selection, TraversalSpec,
    VirtualEthernetCardDistributedVirtualPortBackingInfo, VirtualEthernetCardNetworkBackingInfo,
};

/// The names a VCH's place has. Inventory paths begin with a slash, as in `/DC0/host/C0/Resources/vch1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceNames {
    /// The datacenter's inventory path; `/ha-datacenter` on ESXi.
    pub datacenter: String,
    /// The resource pool's.
    pub pool: String,
    /// The folder's; `/ha-datacenter/vm` on ESXi, which has no others.
    pub folder: String,
    /// The datastore's name.
    pub datastore: String,
    /// The VCH's directory on it.
    pub directory: String,
}

/// The place itself.
#[derive(Debug, Clone)]
pub struct Place {
    /// The datacenter.
    pub datacenter: ManagedObject,
    /// The resource pool.
    pub pool: ManagedObject,
    /// The folder.
    pub folder: ManagedObject,
}

impl Place {
    /// Finds it.
    ///
    /// # Errors
    ///
    /// All that is not there, at once.
    pub async fn find(client: &Client, names: &PlaceNames) -> Result<Self, Cause> {
        let datastore = format!("{}/datastore/{}", names.datacenter, names.datastore);
        let mut missing = Vec::new();
        let mut found = Vec::new();
        for (what, path, kinds) in [
            ("datacenter", &names.datacenter, &["Datacenter"][..]),
            (
                "resource pool",
                &names.pool,
                &["ResourcePool", "VirtualApp"],
            ),
            ("folder", &names.folder, &["Folder"]),
            ("datastore", &datastore, &["Datastore"]),
        ] {
            match by_path(client, path).await {
                Ok(Some(object)) if kinds.contains(&object.kind.as_str()) => found.push(object),
                Ok(Some(object)) => {
                    missing.push(format!("{path} is no {what} but a {}", object.kind));
                }
                Ok(None) => missing.push(format!(
                    "there is no {what} {path}, or {} may not see it",
                    client.user()
                )),
                Err(error) => missing.push(format!("{what} {path}: {}", chain(&error))),
            }
        }
        match <[ManagedObject; 4]>::try_from(found) {
            Ok([datacenter, pool, folder, _]) => Ok(Self {
                datacenter,
                pool,
                folder,
            }),
            Err(_) => Err(Cause::hypervisor(missing.join("; "))),
        }
    }
}

/// The object at an inventory path.
///
/// # Errors
///
/// The server does not say.
pub async fn by_path(client: &Client, path: &str) -> Result<Option<ManagedObject>, Error> {
    let search = FindByInventoryPath {
        _this: client.manager("search index", |content| &content.searchIndex)?,
        inventoryPath: path.to_owned(),
    };
    client.call(&search).await
}

/// Reads properties once.
///
/// # Errors
///
/// The server refuses.
pub async fn read(
    client: &Client,
    spec: PropertyFilterSpec,
) -> Result<Vec<(ManagedObject, Properties)>, Error> {
    let collector = client.content().propertyCollector.clone();
    let first = RetrievePropertiesEx {
        _this: collector.clone(),
        specSet: vec![spec],
        options: RetrieveOptions::default(),
    };
    let mut page = client.call(&first).await?.unwrap_or_default();
    let mut objects = page.objects;
    while let Some(token) = page.token.take() {
        let next = ContinueRetrievePropertiesEx {
            _this: collector.clone(),
            token,
        };
        page = client.call(&next).await?;
        objects.append(&mut page.objects);
    }
    let properties = objects.into_iter().map(|content| {
        let all = content
            .propSet
            .into_iter()
            .map(|property| (property.name, property.val.0));
        (content.obj, all.collect())
    });
    Ok(properties.collect())
}

/// The filter that reads these properties of one object.
pub fn of_one(object: &ManagedObject, paths: &[&str]) -> PropertyFilterSpec {
    PropertyFilterSpec {
        propSet: vec![properties(&object.kind, paths)],
        objectSet: vec![ObjectSpec {
            obj: object.clone(),
            skip: Some(false),
            selectSet: Vec::new(),
        }],
        reportMissingObjectsInResults: None,
    }
}

/// Properties of objects of one type.
pub fn properties(kind: &str, paths: &[&str]) -> PropertySpec {
    PropertySpec {
        r#type: kind.to_owned(),
        all: None,
        pathSet: paths.iter().map(|path| (*path).to_owned()).collect(),
    }
}

/// Networks by name, as a vNIC's backing.
#[derive(Debug)]
pub struct Networks {
    client: Client,
    datacenter: ManagedObject,
    /// Held while they are looked for, so that many who do not find one look once.
    known: tokio::sync::Mutex<HashMap<String, Backing>>,
}

impl Networks {
    /// Those of a datacenter.
    pub fn new(client: Client, datacenter: ManagedObject) -> Self {
        Self {
            client,
            datacenter,
            known: tokio::sync::Mutex::default(),
        }
    }

    /// The backing of a vNIC on this network.
    ///
    /// # Errors
    ///
    /// There is none of this name; the ones there are are named.
    pub async fn backing(&self, name: &str) -> Result<Backing, Cause> {
        let mut known = self.known.lock().await;
        if let Some(backing) = known.get(name) {
            return Ok(backing.clone());
        }
        *known = self
            .look()
            .await
            .map_err(|error| Cause::because("the networks cannot be listed", error))?;
        let found = known.get(name).cloned();
        let mut names: Vec<String> = known.keys().cloned().collect();
        found.ok_or_else(|| {
            names.sort();
            Cause::hypervisor(format!(
                "there is no network {name:?} in the datacenter; there are: {}",
                names.join(", ")
            ))
        })
    }

    async fn look(&self) -> Result<HashMap<String, Backing>, Error> {
        let spec = PropertyFilterSpec {
            propSet: vec![
                properties("Network", &["name"]),
                properties(
                    "DistributedVirtualPortgroup",
                    &["name", "key", "config.distributedVirtualSwitch"],
                ),
            ],
            objectSet: vec![ObjectSpec {
                obj: self.datacenter.clone(),
                skip: Some(true),
                selectSet: vec![Selection::from(TraversalSpec {
                    r#type: "Datacenter".into(),
                    path: "network".into(),
                    skip: Some(false),
                    ..TraversalSpec::default()
                })],
            }],
            reportMissingObjectsInResults: None,
        };
        let mut switches: HashMap<ManagedObject, String> = HashMap::new();
        let mut all = HashMap::new();
        for (object, properties) in read(&self.client, spec).await? {
            let text = |path: &str| properties.get(path).map(|node: &Node| node.text.clone());
            let Some(name) = text("name").map(|name| unescape(&name)) else {
                continue;
            };
            let backing = match object.kind.as_str() {
                "Network" => Backing::from(VirtualEthernetCardNetworkBackingInfo {
                    deviceName: name.clone(),
                    network: Some(object),
                }),
                "DistributedVirtualPortgroup" => {
                    let switch = properties.get("config.distributedVirtualSwitch");
                    let Some(Ok(switch)) = switch.map(ManagedObject::read) else {
                        continue;
                    };
                    if !switches.contains_key(&switch) {
                        let uuid = self.switch_uuid(&switch).await?;
                        switches.insert(switch.clone(), uuid);
                    }
                    let port = DistributedVirtualSwitchPortConnection {
                        switchUuid: switches.get(&switch).cloned().unwrap_or_default(),
                        portgroupKey: text("key"),
                    };
                    Backing::from(VirtualEthernetCardDistributedVirtualPortBackingInfo { port })
                }
                _ => continue,
            };
            all.insert(name, backing);
        }
        Ok(all)
    }

    async fn switch_uuid(&self, switch: &ManagedObject) -> Result<String, Error> {
        let mut found = read(&self.client, of_one(switch, &["uuid"])).await?;
        let uuid = found
            .pop()
            .and_then(|(_, properties)| Some(properties.get("uuid")?.text.clone()));
        Ok(uuid.unwrap_or_default())
    }
}

/// Names in the inventory have `%`, `/` and `\` as `%25`, `%2f` and `%5c` (API reference, `ManagedEntity.name`).
fn unescape(name: &str) -> String {
    name.replace("%2f", "/")
        .replace("%5c", "\\")
        .replace("%25", "%")
}
