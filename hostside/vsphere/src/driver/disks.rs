//! Local disks and their counterparts on the datastore.
//!
//! | local | on the datastore |
//! |---|---|
//! | an image disk of the store | `images/DIGEST.vmdk`, uploaded once, shared by every host |
//! | a child of one, empty | `disks/KEY.vmdk`, a child that the server makes with the machine |
//! | a disk without a parent (a volume) | `disks/KEY.vmdk`, uploaded once |
//! | the boot image | `boot/DIGEST.iso`, uploaded once |
//!
//! The local files are never written to: they say what there is, and by their path and content id KEY tells
//! which disk of the datastore is meant, so that a later machine with the same local disk has the same one.
//! A ledger, one small local file a disk, is written before a disk is made and again when it is. What it
//! names and whose local file is gone, [`Disks::sweep`] removes.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hypervisor::{Cause, DiskFormat, DiskSource, DiskSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::datastore::{DatastorePath, Directory};
use super::lease::Lease;
use super::{cause, unsupported};
use crate::property::Collector;
use crate::session::chain;

/// A disk that a machine can have.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its file.
    pub file: DatastorePath,
    /// What it is a child of.
    pub parent: Option<DatastorePath>,
    /// Bytes; 0 where the server knows.
    pub capacity: u64,
    /// Whether the server has to make the file.
    pub make: bool,
    entry: Option<PathBuf>,
}

/// What the ledger says of a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    local: PathBuf,
    file: String,
    parent: Option<String>,
    made: bool,
}

/// What is read from a local disk's head.
#[derive(Debug)]
struct Head {
    size: u64,
    cid: u32,
    parent: Option<PathBuf>,
    empty: bool,
}

/// The disks of a VCH.
#[derive(Debug)]
pub struct Disks {
    directory: Directory,
    ledger: PathBuf,
    lease: Lease,
    /// One at a time for each file of the datastore.
    locks: Mutex<HashMap<DatastorePath, Arc<tokio::sync::Mutex<bool>>>>,
    digests: Mutex<HashMap<(PathBuf, u64, SystemTime), String>>,
    /// Uploads under way.
    sending: AtomicUsize,
}

impl Disks {
    /// The disks in this directory, with the ledger in a local one.
    ///
    /// # Errors
    ///
    /// The local directory cannot be made.
    pub fn open(directory: Directory, ledger: PathBuf, lease: Lease) -> Result<Self, Cause> {
        fs::create_dir_all(&ledger).map_err(file("cannot make directory", &ledger))?;
        Ok(Self {
            directory,
            ledger,
            lease,
            locks: Mutex::default(),
            digests: Mutex::default(),
            sending: AtomicUsize::new(0),
        })
    }

    /// Whether an upload is under way.
    pub fn is_sending(&self) -> bool {
        self.sending.load(Ordering::SeqCst) > 0
    }

    /// The VCH's directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes the directories that are written to.
    ///
    /// # Errors
    ///
    /// The server refuses.
    pub async fn make_directories(&self) -> Result<(), crate::session::Error> {
        for name in ["boot", "images", "disks"] {
            self.directory.make(name).await?;
        }
        Ok(())
    }

    /// Sees to it that a machine can have this disk.
    ///
    /// # Errors
    ///
    /// It is of a kind that vSphere has not, cannot be read, or not be uploaded.
    pub async fn prepare(&self, collector: &Collector, disk: &DiskSpec) -> Result<Prepared, Cause> {
        let local = match &disk.source {
            DiskSource::Datastore { datastore, path } => {
                return Ok(Prepared {
                    file: DatastorePath {
                        datastore: datastore.clone(),
                        path: path.clone(),
                    },
                    parent: None,
                    capacity: 0,
                    make: false,
                    entry: None,
                });
            }
            DiskSource::File(path) => {
                std::path::absolute(path).map_err(file("cannot find", path))?
            }
        };
        if disk.format == DiskFormat::Raw {
            return Err(unsupported("attach a raw disk", "make a VMDK of it"));
        }
        let head = head(&local)?;
        let key = key(&local, head.cid);
        let target = self.directory.file(&format!("disks/{key}.vmdk"));
        let entry = self.ledger.join(format!("{key}.json"));
        let lock = self.lock(&target);
        let _one = lock.lock().await;
        let known = read_entry(&entry);
        match &head.parent {
            Some(parent) => {
                if !head.empty {
                    return Err(unsupported(
                        "use a disk that another driver has written to",
                        "what is on it is not on the datastore; make a new container",
                    ));
                }
                let image = self.image(collector, parent).await?;
                let make = match known {
                    Some(Entry { made: true, .. }) => false,
                    // Whether it came to it is not known.
                    Some(_) => !self.has(&target).await?,
                    None => {
                        self.write_entry(&entry, &local, &target, Some(&image), false)?;
                        true
                    }
                };
                Ok(Prepared {
                    file: target,
                    parent: Some(image),
                    capacity: head.size,
                    make,
                    entry: Some(entry),
                })
            }
            None => {
                if !known.is_some_and(|entry| entry.made) {
                    self.write_entry(&entry, &local, &target, None, false)?;
                    if !self.has(&target).await? {
                        self.send(collector, &local, &target, head.size).await?;
                    }
                    self.write_entry(&entry, &local, &target, None, true)?;
                }
                Ok(Prepared {
                    file: target,
                    parent: None,
                    capacity: head.size,
                    make: false,
                    entry: Some(entry),
                })
            }
        }
    }

    /// Notes that the server has made a disk.
    pub fn made(&self, disk: &Prepared) {
        let Some(path) = disk.entry.as_ref().filter(|_| disk.make) else {
            return;
        };
        if let Some(mut entry) = read_entry(path) {
            entry.made = true;
            if let Err(error) = write_whole(path, &entry) {
                // Looked for on the datastore the next time.
                tracing::warn!(error = %chain(&error), "a disk is not noted as made");
            }
        }
    }

    /// The boot image on the datastore.
    ///
    /// # Errors
    ///
    /// It cannot be read or uploaded.
    pub async fn boot_image(
        &self,
        collector: &Collector,
        iso: &Path,
    ) -> Result<DatastorePath, Cause> {
        let iso = std::path::absolute(iso).map_err(file("cannot find", iso))?;
        let digest = self.digest(&iso).await?;
        let target = self.directory.file(&format!("boot/{digest}.iso"));
        let lock = self.lock(&target);
        let mut done = lock.lock().await;
        if !*done {
            if !self.has(&target).await? {
                let uploaded = self.directory.upload(collector, &iso, &target).await;
                uploaded.map_err(|error| cause("the boot image cannot be uploaded", error))?;
            }
            *done = true;
        }
        Ok(target)
    }

    /// The image disk on the datastore.
    async fn image(&self, collector: &Collector, local: &Path) -> Result<DatastorePath, Cause> {
        let head = head(local)?;
        if head.parent.is_some() {
            return Err(unsupported(
                "use a disk whose parent has a parent",
                "only children of image disks are known on vSphere",
            ));
        }
        let named = local
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        let digest = match named {
            Some(name) if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) => {
                name.to_owned()
            }
            _ => self.digest(local).await?,
        };
        let target = self.directory.file(&format!("images/{digest}.vmdk"));
        let entry = self.ledger.join(format!("image-{digest}.json"));
        let lock = self.lock(&target);
        let mut done = lock.lock().await;
        if !*done {
            if !self.has(&target).await? {
                self.write_entry(&entry, local, &target, None, false)?;
                self.send(collector, local, &target, head.size).await?;
            }
            self.write_entry(&entry, local, &target, None, true)?;
            *done = true;
        }
        Ok(target)
    }

    /// Uploads a disk without a parent.
    async fn send(
        &self,
        collector: &Collector,
        local: &Path,
        target: &DatastorePath,
        size: u64,
    ) -> Result<(), Cause> {
        let stream = self.ledger.join(format!(
            "upload-{}.vmdk",
            hex::encode(&Sha256::digest(target.path.as_bytes())[..12])
        ));
        let (from, to) = (local.to_owned(), stream.clone());
        tracing::info!(disk = %local.display(), target = %target, "uploading a disk");
        let written = tokio::task::spawn_blocking(move || -> Result<(), Cause> {
            let out = File::create(&to).map_err(file("cannot write", &to))?;
            image::vmdk::export_stream(&from, std::io::BufWriter::new(out))
                .map(drop)
                .map_err(|error| Cause::because("the disk cannot be exported", error))
        });
        let written = written
            .await
            .unwrap_or_else(|error| Err(Cause::because("the export failed", error)));
        self.sending.fetch_add(1, Ordering::SeqCst);
        let sent = match written {
            Ok(()) => self
                .lease
                .import(collector, &self.directory, &stream, target, size)
                .await
                .map_err(|error| cause(&format!("{} cannot be uploaded", local.display()), error)),
            Err(error) => Err(error),
        };
        self.sending.fetch_sub(1, Ordering::SeqCst);
        let _ = fs::remove_file(&stream);
        sent
    }

    /// Removes what belonged to local disks that are gone, unless a machine has it.
    pub async fn sweep(&self, collector: &Collector, used: &HashSet<String>) -> Vec<String> {
        let mut removed = Vec::new();
        let Ok(listing) = fs::read_dir(&self.ledger) else {
            return removed;
        };
        let paths: Vec<PathBuf> = listing
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .collect();
        let all: Vec<(PathBuf, Entry)> = paths
            .into_iter()
            .filter_map(|path| read_entry(&path).map(|entry| (path, entry)))
            .collect();
        let mut parents: HashSet<String> = HashSet::new();
        let (children, images): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(_, entry)| entry.parent.is_some());
        for (path, entry) in children.into_iter().chain(images) {
            let in_use = used.contains(&entry.file) || parents.contains(&entry.file);
            if in_use || entry.local.exists() || !self.remove(collector, &path, &entry).await {
                parents.extend(entry.parent);
            } else {
                removed.push(entry.file);
            }
        }
        removed
    }

    async fn remove(&self, collector: &Collector, path: &Path, entry: &Entry) -> bool {
        let Some(file) = DatastorePath::parse(&entry.file) else {
            return false;
        };
        let lock = self.lock(&file);
        let mut done = lock.lock().await;
        // Somebody may just be making it anew.
        if entry.local.exists() {
            return false;
        }
        match self.directory.remove_disk(collector, &file).await {
            Ok(()) => {
                *done = false;
                let _ = fs::remove_file(path);
                true
            }
            Err(error) => {
                tracing::warn!(disk = %file, error = %chain(&error), "a disk is left behind until later");
                false
            }
        }
    }

    fn lock(&self, file: &DatastorePath) -> Arc<tokio::sync::Mutex<bool>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(file.clone()).or_default().clone()
    }

    async fn has(&self, file: &DatastorePath) -> Result<bool, Cause> {
        let has = self.directory.has(file).await;
        has.map_err(|error| cause(&format!("cannot look for {file}"), error))
    }

    /// The SHA-256 of a file's bytes.
    async fn digest(&self, path: &Path) -> Result<String, Cause> {
        let metadata = fs::metadata(path).map_err(file("cannot read", path))?;
        let modified = metadata.modified().map_err(file("cannot read", path))?;
        let known = (path.to_owned(), metadata.len(), modified);
        if let Some(digest) = self
            .digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&known)
        {
            return Ok(digest.clone());
        }
        let own = path.to_owned();
        let digest = tokio::task::spawn_blocking(move || -> Result<String, Cause> {
            let mut hash = Sha256::new();
            let mut input = File::open(&own).map_err(file("cannot read", &own))?;
            let mut piece = vec![0; 256 << 10];
            loop {
                let count = input.read(&mut piece).map_err(file("cannot read", &own))?;
                if count == 0 {
                    return Ok(hex::encode(hash.finalize()));
                }
                hash.update(&piece[..count]);
            }
        })
        .await
        .unwrap_or_else(|error| Err(Cause::because("reading failed", error)))?;
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.insert(known, digest.clone());
        Ok(digest)
    }

    fn write_entry(
        &self,
        path: &Path,
        local: &Path,
        file: &DatastorePath,
        parent: Option<&DatastorePath>,
        made: bool,
    ) -> Result<(), Cause> {
        let entry = Entry {
            local: local.to_owned(),
            file: file.to_string(),
            parent: parent.map(ToString::to_string),
            made,
        };
        write_whole(path, &entry)
    }
}

/// The name of a local disk's counterpart.
fn key(local: &Path, cid: u32) -> String {
    let digest = Sha256::digest(local.as_os_str().as_encoded_bytes());
    format!("{}-{cid:08x}", hex::encode(&digest[..12]))
}

pub(super) fn file(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Cause {
    let path = path.to_owned();
    move |source| Cause::File {
        what,
        path: path.clone(),
        source,
    }
}

fn read_entry(path: &Path) -> Option<Entry> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes an entry so that it is there whole or not at all.
fn write_whole(path: &Path, entry: &Entry) -> Result<(), Cause> {
    let partial = path.with_extension("partial");
    let text = serde_json::to_vec(entry).map_err(|error| Cause::because("the ledger", error))?;
    fs::write(&partial, text).map_err(file("cannot write", &partial))?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .map_err(file("cannot write", &partial))?;
    fs::rename(&partial, path).map_err(file("cannot write", path))
}

/// What the beginning of a disk made by the image crate says (`hostside/image/src/vmdk.rs`; VMware's
/// *Virtual Disk Format 5.0*).
fn head(path: &Path) -> Result<Head, Cause> {
    let info = image::vmdk::info(path)
        .map_err(|error| Cause::because("the disk cannot be used", error))?;
    let mut bytes = Vec::new();
    let input = File::open(path).map_err(file("cannot read", path))?;
    let length = input.metadata().map_err(file("cannot read", path))?.len();
    input
        .take(21 * 512)
        .read_to_end(&mut bytes)
        .map_err(file("cannot read", path))?;
    // "overHead": sectors before the first grain.
    let overhead = bytes
        .get(64..72)
        .and_then(|field| <[u8; 8]>::try_from(field).ok())
        .map_or(0, u64::from_le_bytes);
    let text = String::from_utf8_lossy(bytes.get(512..).unwrap_or_default());
    let hint = text.lines().find_map(|line| {
        line.strip_prefix("parentFileNameHint=\"")?
            .strip_suffix('"')
    });
    let parent = hint.map(|hint| path.parent().unwrap_or(Path::new("/")).join(hint));
    Ok(Head {
        size: info.size,
        cid: info.cid,
        parent,
        empty: length <= overhead.saturating_mul(512),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::disk::Disk as _;

    #[test]
    fn a_child_says_what_it_is_a_child_of_and_whether_it_was_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let (parent, child) = (
            directory.path().join("p.vmdk"),
            directory.path().join("c.vmdk"),
        );
        let mut disk = image::vmdk::SparseDisk::new(
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&parent)
                .unwrap(),
        );
        disk.write(0, &[1; 4096]).unwrap();
        disk.identify(&image::digest::Digest::of(b"x"));
        disk.finish(1 << 20).unwrap();
        image::vmdk::create_child(&parent, &child).unwrap();
        let found = head(&child).unwrap();
        assert_eq!(found.parent, Some(fs::canonicalize(&parent).unwrap()));
        assert!(found.empty);
        assert_eq!(found.size, 1 << 20);
        assert_eq!(head(&parent).unwrap().parent, None);
        let written = File::options().append(true).open(&child).unwrap();
        std::io::Write::write_all(&mut &written, &[0; 65_536]).unwrap();
        assert!(!head(&child).unwrap().empty);
    }

    #[test]
    fn two_disks_of_one_path_are_told_apart() {
        let path = Path::new("/a/disk.vmdk");
        assert_ne!(key(path, 1), key(path, 2));
        assert_ne!(key(path, 1), key(Path::new("/b/disk.vmdk"), 1));
        assert_eq!(key(path, 1), key(path, 1));
    }
}
