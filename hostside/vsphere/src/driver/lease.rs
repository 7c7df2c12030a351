//! Image disks by import lease: the server makes a machine with a disk of its own kind, takes a
//! `streamOptimized` stream for it, and the disk is moved out of the machine, which goes.
//!
//! Source: API reference, `HttpNfcLease`; it is how OVF imports work.

use std::path::Path;
use std::time::Duration;

use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::{Method, Request};

use super::datastore::{DatastorePath, Directory};
use super::{devices, place};
use crate::faults::Fault;
use crate::property::Collector;
use crate::session::{Client, Error, chain};
use crate::soap::Element as _;
use crate::task;
use crate::transport::{Address, Transport, Trust, streamed};
use crate::types::{
    Backing, Destroy_Task, DeviceChange, HttpNfcLeaseAbort, HttpNfcLeaseComplete, HttpNfcLeaseInfo,
    HttpNfcLeaseProgress, Import, ImportVApp, ManagedObject, MoveVirtualDisk_Task,
    ParaVirtualSCSIController, ReconfigVM_Task, VirtualDevice, VirtualDeviceConfigSpec,
    VirtualDeviceConfigSpecFileOperation, VirtualDeviceConfigSpecOperation, VirtualDisk,
    VirtualDiskFlatVer2BackingInfo, VirtualMachineConfigSpec, VirtualMachineFileInfo,
    VirtualMachineImportSpec, VirtualSCSISharing,
};

/// The beginning of the names of the machines that uploads go through.
pub const UPLOAD: &str = "vch-upload-";
/// How long an upload may take.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How long the server may take to make the disk that is then sent to.
const READY: Duration = Duration::from_secs(300);
/// How often the server is told that the upload goes on; it gives up after 300 s.
const BEAT: Duration = Duration::from_secs(60);

/// What imports need.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The server.
    pub client: Client,
    /// Where the machines are made.
    pub pool: ManagedObject,
    /// In which folder.
    pub folder: ManagedObject,
}

impl Lease {
    /// Makes the disk `target` of `size` bytes out of a `streamOptimized` file.
    ///
    /// # Errors
    ///
    /// The server refuses, or the upload fails. No machine is left then, as far as the server lets it go.
    pub async fn import(
        &self,
        collector: &Collector,
        directory: &Directory,
        stream: &Path,
        target: &DatastorePath,
        size: u64,
    ) -> Result<(), Error> {
        let import = ImportVApp {
            _this: self.pool.clone(),
            spec: Some(Import::from(self.machine(target, size))),
            folder: Some(self.folder.clone()),
            host: None,
        };
        let lease = self.client.call(&import).await?;
        let filter = place::of_one(&lease, &["state", "info", "error"]);
        let watched = collector.watch(filter).await?;
        let sent = self.send(collector, &lease, stream).await;
        collector.unwatch(watched, &lease).await;
        let machine = match sent {
            Ok(machine) => machine,
            Err(error) => {
                let abort = HttpNfcLeaseAbort {
                    _this: lease,
                    fault: None,
                };
                // The server removes the machine with it.
                if let Err(error) = self.client.call(&abort).await {
                    tracing::warn!(error = %chain(&error), "an upload's machine may be left behind");
                }
                return Err(error);
            }
        };
        let moved = self.take_out(collector, directory, &machine, target).await;
        let destroy = Destroy_Task { _this: machine };
        let destroyed = task::run(&self.client, collector, &destroy, &mut task::quiet).await;
        moved?;
        destroyed.map(drop)
    }

    /// Waits for the lease, and sends the file. Returns the machine.
    async fn send(
        &self,
        collector: &Collector,
        lease: &ManagedObject,
        stream: &Path,
    ) -> Result<ManagedObject, Error> {
        let ready = collector.wait(|objects| {
            let properties = objects.get(lease)?;
            match properties.get("state")?.text.as_str() {
                "ready" => Some(Ok(properties.get("info")?.clone())),
                "error" => {
                    let error = properties.get("error").cloned().unwrap_or_default();
                    Some(Err(Fault::of_task(&error)))
                }
                _ => None,
            }
        });
        let gone = |_| Error::TaskGone {
            method: "ImportVApp",
            object: lease.clone(),
        };
        let info = tokio::time::timeout(READY, ready)
            .await
            .map_err(gone)??
            .map_err(|source| Error::Fault {
                method: "ImportVApp",
                object: lease.clone(),
                source,
            })?;
        let info = HttpNfcLeaseInfo::read(&info).map_err(|source| Error::Malformed {
            method: "ImportVApp",
            source,
        })?;
        let device = info
            .deviceUrl
            .iter()
            .find(|device| device.disk != Some(false))
            .ok_or_else(|| Error::Malformed {
                method: "ImportVApp",
                source: crate::soap::Malformed::new("deviceUrl", "no disk"),
            })?;
        let put = self.put(&device.url, &device.sslThumbprint, stream);
        tokio::pin!(put);
        loop {
            tokio::select! {
                sent = &mut put => {
                    sent?;
                    break;
                }
                () = tokio::time::sleep(BEAT) => {
                    let progress = HttpNfcLeaseProgress { _this: lease.clone(), percent: 50 };
                    self.client.call(&progress).await?;
                }
            }
        }
        let complete = HttpNfcLeaseComplete {
            _this: lease.clone(),
        };
        self.client.call(&complete).await?;
        Ok(info.entity)
    }

    async fn put(&self, url: &str, thumbprint: &str, stream: &Path) -> Result<(), Error> {
        let what = "uploading to";
        let refused = |status| Error::File {
            what,
            place: url.to_owned(),
            status,
        };
        let (address, path) = split(url, self.client.address()).ok_or_else(|| refused(400))?;
        let unreadable = |source: std::io::Error| Error::Local {
            path: stream.to_owned(),
            source,
        };
        let file = tokio::fs::File::open(stream).await.map_err(unreadable)?;
        let length = file.metadata().await.map_err(unreadable)?.len();
        let mut request = Request::new(streamed(super::datastore::pieces(file)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| refused(400))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_LENGTH, length.into());
        let kind = hyper::header::HeaderValue::from_static("application/x-vnd.vmware-streamVmdk");
        headers.insert(CONTENT_TYPE, kind);
        let response = if address == *self.client.address() {
            self.client.send_file(what, request, PATIENCE).await?
        } else {
            // A host's certificate is vouched for by the vCenter that names it.
            let trust = thumbprint.parse().map_or(Trust::System, Trust::Thumbprint);
            let failed = |source| Error::Transport {
                method: what,
                source,
            };
            let host = Transport::new(address, &trust).map_err(failed)?;
            host.exchange(request, PATIENCE).await.map_err(failed)?
        };
        match response.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(refused(status)),
        }
    }

    /// Takes the disk out of the machine and gives it its place.
    async fn take_out(
        &self,
        collector: &Collector,
        directory: &Directory,
        machine: &ManagedObject,
        target: &DatastorePath,
    ) -> Result<(), Error> {
        let properties =
            place::read(&self.client, place::of_one(machine, &["config.hardware"])).await?;
        let disk = properties
            .first()
            .and_then(|(_, properties)| devices::disks(properties.get("config.hardware")?).pop())
            .ok_or_else(|| Error::Malformed {
                method: "ImportVApp",
                source: crate::soap::Malformed::new("config.hardware", "no disk"),
            })?;
        let detach = ReconfigVM_Task {
            _this: machine.clone(),
            spec: VirtualMachineConfigSpec {
                deviceChange: vec![devices::detach(&disk)],
                ..VirtualMachineConfigSpec::default()
            },
        };
        task::run(&self.client, collector, &detach, &mut task::quiet).await?;
        let manager = self.client.manager("virtual disk manager", |content| {
            &content.virtualDiskManager
        })?;
        let rename = MoveVirtualDisk_Task {
            _this: manager,
            sourceName: disk.file,
            sourceDatacenter: Some(directory.datacenter().clone()),
            destName: target.to_string(),
            destDatacenter: Some(directory.datacenter().clone()),
            force: Some(false),
        };
        task::run(&self.client, collector, &rename, &mut task::quiet).await?;
        Ok(())
    }

    fn machine(&self, target: &DatastorePath, size: u64) -> VirtualMachineImportSpec {
        let name = target.path.rsplit('/').next().unwrap_or_default();
        let name: String = name.trim_end_matches(".vmdk").chars().take(32).collect();
        let add = |device: VirtualDevice, file| {
            DeviceChange::from(VirtualDeviceConfigSpec {
                operation: Some(VirtualDeviceConfigSpecOperation::Add),
                fileOperation: file,
                device: Some(device),
            })
        };
        let controller = ParaVirtualSCSIController {
            key: -1,
            sharedBus: VirtualSCSISharing::NoSharing,
            ..ParaVirtualSCSIController::default()
        };
        let disk = VirtualDisk {
            key: -2,
            controllerKey: Some(-1),
            unitNumber: Some(0),
            capacityInKB: i64::try_from(size / 1024).unwrap_or_default(),
            backing: Some(Backing::from(VirtualDiskFlatVer2BackingInfo {
                fileName: String::new(),
                diskMode: "persistent".into(),
                thinProvisioned: Some(true),
                ..VirtualDiskFlatVer2BackingInfo::default()
            })),
            ..VirtualDisk::default()
        };
        VirtualMachineImportSpec {
            configSpec: VirtualMachineConfigSpec {
                name: Some(format!("{UPLOAD}{name}")),
                guestId: Some("otherLinux64Guest".into()),
                files: Some(VirtualMachineFileInfo {
                    vmPathName: Some(format!("[{}]", target.datastore)),
                    ..VirtualMachineFileInfo::default()
                }),
                numCPUs: Some(1),
                memoryMB: Some(32),
                deviceChange: vec![
                    add(controller.into(), None),
                    add(
                        disk.into(),
                        Some(VirtualDeviceConfigSpecFileOperation::Create),
                    ),
                ],
                ..VirtualMachineConfigSpec::default()
            },
            resPoolEntity: Some(self.pool.clone()),
        }
    }
}

/// Host and path of an upload's URL. A host of `*` is the server itself (API reference,
/// `HttpNfcLeaseDeviceUrl.url`).
fn split(url: &str, server: &Address) -> Option<(Address, String)> {
    let rest = url.strip_prefix("https://")?;
    let (authority, path) = rest.split_at(rest.find('/')?);
    let address = match authority.strip_prefix('*') {
        Some(_) => server.clone(),
        None => {
            let address: Address = authority.parse().ok()?;
            match address.host == server.host && address.port == server.port {
                true => server.clone(),
                false => address,
            }
        }
    };
    Some((address, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uploads_url_may_leave_the_host_open() {
        let server: Address = "vc.example:8443".parse().unwrap();
        let check = |url| split(url, &server).map(|(address, path)| (address.authority(), path));
        assert_eq!(
            check("https://*/nfc/1/disk-0.vmdk"),
            Some(("vc.example:8443".into(), "/nfc/1/disk-0.vmdk".into()))
        );
        assert_eq!(
            check("https://esx1/nfc/1/d"),
            Some(("esx1:443".into(), "/nfc/1/d".into()))
        );
        assert_eq!(check("http://esx1/nfc"), None);
    }
}
