//! The local store of imported images.
//!
//! ```text
//! <store>/images/<id>/image.vmdk      the disk, never written again
//!                     files.records   the list of its files (tether_wire::files)
//!                     config.json     the image's configuration, byte for byte: its sha256 is <id>
//!                     metadata.json   what this crate knows besides
//!                     lock            held shared by whoever uses the disk
//!                     users/<name>    one empty file for each container that has a child of the disk
//! <store>/references.json             names and their ids
//! <store>/partial/<name>/             imports under way; `lock` within is held by the importer
//! <store>/locks/<id>                  held by whoever imports this image
//! <store>/lock                        held for the moment in which the store changes
//! ```
//!
//! An image's directory is made complete in `partial`, synced, and renamed into place: it is there whole
//! or not at all. Whatever is in `partial` without its lock being held was left behind by an importer that
//! died, and the next import removes it. All waiting is for locks; all calls block.

mod error;
mod files;
mod lock;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::import::{Opened, Options};
use crate::progress::Progress;
use crate::reference::{Name, Source};
use crate::vmdk;
pub use error::StoreError;
use error::failed;
use files::{names_in, read_json, sync_directory, to_json, write_synced};
use lock::{Lock, Mode};

const DISK: &str = "image.vmdk";
const CONFIG: &str = "config.json";
const FILES: &str = "files.records";
const METADATA: &str = "metadata.json";
const VERSION: u32 = 1;

/// What the store knows of an image besides its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    version: u32,
    source: String,
    imported: u64,
    size: u64,
    files: u32,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRecord {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its names, sorted.
    pub names: Vec<Name>,
    /// Its disk, to be used read-only as the parent of others.
    pub disk: PathBuf,
    /// The disk's size as a guest sees it, in bytes.
    pub size: u64,
    /// What the disk and the list of its files take here, in bytes.
    pub stored: u64,
    /// Files, directories and all else with an inode.
    pub files: u32,
    /// Where it came from.
    pub source: String,
    /// When it was imported, in seconds since 1970.
    pub imported: u64,
    /// What to run in it.
    pub config: ImageConfig,
}

/// Whether an image is removed although it has several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// By name: only that name is taken away. By id: it is not removed.
    Unforced,
    /// With all its names.
    Forced,
}

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Name>,
    /// The image, if it is gone too.
    pub deleted: Option<Digest>,
}

/// As long as it lives the image is not removed.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

/// A store in a directory. Several may be open on one, in any number of processes.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making what of it is missing.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for directory in ["images", "partial", "locks"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        let root = fs::canonicalize(root).map_err(failed("open", root))?;
        Ok(Self { root })
    }

    /// Imports the image at `source` and gives it `name`; without one, the name that the source itself
    /// has for it, if any. An image that is there already is not imported again, whatever the options.
    pub fn import(
        &self,
        source: &Source,
        name: Option<&Name>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, StoreError> {
        if let Some(name) = name.filter(|name| name.digest().is_some()) {
            return Err(StoreError::Digested(name.clone()));
        }
        let partial = self.begin()?;
        let opened = Opened::new(source, &partial.path, options, progress)?;
        self.import_opened(opened, &partial, name, options, progress)
    }

    /// Makes an image of a container's files and gives it `name`: what `Read` of its root wrote, or
    /// what [`crate::files::from_tar`] makes of a tar stream. `config` is the image's configuration as
    /// a JSON object, complete but for `rootfs`, which is set here: the digest of the records is its one
    /// layer's. `origin` says in the record where it came from.
    pub fn import_files(
        &self,
        records: impl Read,
        config: serde_json::Map<String, serde_json::Value>,
        origin: &str,
        name: Option<&Name>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, StoreError> {
        if let Some(name) = name.filter(|name| name.digest().is_some()) {
            return Err(StoreError::Digested(name.clone()));
        }
        let partial = self.begin()?;
        let opened = Opened::files(origin.to_owned(), Box::new(records), config);
        self.import_opened(opened, &partial, name, options, progress)
    }

    /// The list of the files of the image `id`, as records of [`tether_wire::files::Shape::Listing`].
    pub fn files(&self, id: &Digest) -> Result<File, StoreError> {
        self.exists(id)?;
        let path = self.image(id).join(FILES);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StoreError::NoFiles(*id)),
            other => other.map_err(failed("read", &path)),
        }
    }

    fn begin(&self) -> Result<Partial, StoreError> {
        let changing = self.changing()?;
        self.prune(&changing)?;
        self.partial(&changing)
    }

    fn import_opened(
        &self,
        opened: Opened<'_>,
        partial: &Partial,
        name: Option<&Name>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<ImageRecord, StoreError> {
        let source = opened.origin().to_owned();
        let name = name
            .or(opened.name())
            .filter(|name| name.digest().is_none())
            .cloned()
            .map(Name::tagged);
        // Several importers of one image wait for the first.
        let locks = self.root.join("locks");
        let _import = match opened.id() {
            Some(id) => {
                let path = locks.join(id.hex());
                let lock = Lock::wait(&path, Mode::Exclusive).map_err(failed("lock", &path))?;
                if let Some(record) = self.existing(&id, name.as_ref())? {
                    return Ok(record);
                }
                Some(lock)
            }
            None => None,
        };
        let disk = partial.path.join("image").join(DISK);
        let directory = partial.path.join("image");
        fs::create_dir(&directory).map_err(failed("create", &directory))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&disk);
        let file = file.map_err(failed("create", &disk))?;
        let path = directory.join(FILES);
        let listing = File::create_new(&path).map_err(failed("create", &path))?;
        let mut listing = BufWriter::new(listing);
        let built = opened.build(file, &disk, &mut listing, options, progress)?;
        let listing = listing.into_inner().map_err(|error| error.into_error());
        listing
            .and_then(|listing| listing.sync_all())
            .map_err(failed("write", &path))?;
        let metadata = Metadata {
            version: VERSION,
            source,
            imported: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            size: built.summary.size,
            files: built.summary.files,
        };
        let users = directory.join("users");
        fs::create_dir(&users).map_err(failed("create", &users))?;
        write_synced(&directory.join("lock"), b"")?;
        write_synced(&directory.join(CONFIG), &built.config)?;
        write_synced(&directory.join(METADATA), &to_json(&metadata))?;
        let read_only = fs::Permissions::from_mode(0o444);
        fs::set_permissions(&disk, read_only).map_err(failed("protect", &disk))?;
        sync_directory(&directory)?;

        let changing = self.changing()?;
        let place = self.image(&built.id);
        if !place.exists() {
            fs::rename(&directory, &place).map_err(failed("create", &place))?;
            sync_directory(&self.root.join("images"))?;
        }
        if let Some(name) = name {
            self.set_name(&changing, name, built.id)?;
        }
        self.record(&built.id, &self.references()?)
    }

    /// The image `id` if it is there, given `name` as well.
    fn existing(
        &self,
        id: &Digest,
        name: Option<&Name>,
    ) -> Result<Option<ImageRecord>, StoreError> {
        let changing = self.changing()?;
        if !self.image(id).exists() {
            return Ok(None);
        }
        if let Some(name) = name {
            self.set_name(&changing, name.clone(), *id)?;
        }
        self.record(id, &self.references()?).map(Some)
    }

    /// All images, by id.
    pub fn list(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let references = self.references()?;
        let mut ids = self.ids()?;
        ids.sort_unstable();
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            match self.record(&id, &references) {
                Ok(record) => records.push(record),
                // Removed meanwhile.
                Err(_) if !self.image(&id).exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// The image called `text`: a name, or an id with or without `sha256:`, or the start of one. A name
    /// goes before an id, as in Docker.
    pub fn inspect(&self, text: &str) -> Result<ImageRecord, StoreError> {
        let references = self.references()?;
        self.record(&self.find(text, &references)?, &references)
    }

    /// Gives the image called `text` one more name, which is taken from the image that has it.
    pub fn tag(&self, text: &str, name: &Name) -> Result<(), StoreError> {
        if name.digest().is_some() {
            return Err(StoreError::Digested(name.clone()));
        }
        let changing = self.changing()?;
        let id = self.find(text, &self.references()?)?;
        self.set_name(&changing, name.clone().tagged(), id)
    }

    /// Takes a name away; the image stays.
    pub fn untag(&self, name: &Name) -> Result<Digest, StoreError> {
        let _changing = self.changing()?;
        let mut references = self.references()?;
        let name = name.clone().tagged();
        let id = references
            .remove(&name)
            .ok_or_else(|| StoreError::NotFound(name.to_string()))?;
        self.write_references(&references)?;
        Ok(id)
    }

    /// Takes the name `text` away and removes the image if that was its last; or removes the image of the
    /// id `text`, which may have one name (as `docker rmi` does). An image in use is never removed.
    pub fn remove(&self, text: &str, removal: Removal) -> Result<Removed, StoreError> {
        let changing = self.changing()?;
        let mut references = self.references()?;
        let id = self.find(text, &references)?;
        let own = text
            .parse::<Name>()
            .ok()
            .map(Name::tagged)
            .filter(|name| references.get(name) == Some(&id));
        let names: Vec<Name> = references
            .iter()
            .filter(|(_, other)| **other == id)
            .map(|(name, _)| name.clone())
            .collect();
        if removal == Removal::Unforced && names.len() > 1 {
            if let Some(own) = own {
                references.remove(&own);
                self.write_references(&references)?;
                return Ok(Removed {
                    untagged: vec![own],
                    deleted: None,
                });
            }
            let names = names
                .iter()
                .map(Name::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(StoreError::Named { id, names });
        }
        let place = self.image(&id);
        let users = self.users(&id)?;
        if !users.is_empty() {
            return Err(StoreError::InUse {
                id,
                users: users.join(", "),
            });
        }
        let path = place.join("lock");
        let lock = Lock::attempt(&path, Mode::Exclusive).map_err(failed("lock", &path))?;
        if lock.is_none() {
            return Err(StoreError::InUse {
                id,
                users: "a running process".to_owned(),
            });
        }
        references.retain(|_, other| *other != id);
        self.write_references(&references)?;
        // Renamed first, so that it is gone at once even if what follows is interrupted.
        let partial = self.partial(&changing)?;
        fs::rename(&place, partial.path.join("image")).map_err(failed("remove", &place))?;
        Ok(Removed {
            untagged: names,
            deleted: Some(id),
        })
    }

    /// Keeps the image `id` from being removed while the lease lives.
    pub fn hold(&self, id: &Digest) -> Result<Lease, StoreError> {
        let _changing = self.changing()?;
        self.exists(id)?;
        let path = self.image(id).join("lock");
        let lock = Lock::attempt(&path, Mode::Shared).map_err(failed("lock", &path))?;
        let lock = lock.ok_or_else(|| StoreError::NotFound(id.to_string()))?;
        Ok(Lease { _lock: lock })
    }

    /// Makes a disk at `path` that is a child of the image `id`, for the container `user`. The image is
    /// not removed before [`Store::release`] was called for the same user.
    pub fn child(&self, id: &Digest, user: &str, path: &Path) -> Result<(), StoreError> {
        let _changing = self.changing()?;
        self.exists(id)?;
        let mark = self.user(id, user)?;
        let known = mark.exists();
        write_synced(&mark, b"")?;
        let made = vmdk::create_child(&self.image(id).join(DISK), path);
        if made.is_err() && !known {
            fs::remove_file(&mark).map_err(failed("remove", &mark))?;
        }
        made?;
        Ok(())
    }

    /// Says that the container `user` has a disk that grows from the image `id`, though not as its child:
    /// what is between them is the caller's. The image is not removed before [`Store::release`] was called
    /// for the same user.
    pub fn add_user(&self, id: &Digest, user: &str) -> Result<(), StoreError> {
        let _changing = self.changing()?;
        self.exists(id)?;
        write_synced(&self.user(id, user)?, b"")
    }

    /// Says that the container `user` has no disk of the image `id` any more.
    pub fn release(&self, id: &Digest, user: &str) -> Result<(), StoreError> {
        let _changing = self.changing()?;
        let mark = self.user(id, user)?;
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &mark)(error))
            }
            _ => Ok(()),
        }
    }

    /// The containers that have children of the image `id`.
    pub fn users(&self, id: &Digest) -> Result<Vec<String>, StoreError> {
        let mut users = names_in(&self.image(id).join("users"))?;
        users.sort_unstable();
        Ok(users)
    }

    /// Removes what importers that died have left behind. Returns how many there were.
    pub fn prune_partial(&self) -> Result<usize, StoreError> {
        self.prune(&self.changing()?)
    }

    fn prune(&self, _changing: &Lock) -> Result<usize, StoreError> {
        let mut removed = 0;
        for name in names_in(&self.root.join("partial"))? {
            let path = self.root.join("partial").join(&name);
            let lock = path.join("lock");
            let free = match Lock::attempt(&lock, Mode::Exclusive) {
                Ok(lock) => lock,
                // Its importer ended just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("lock", &lock)(error)),
            };
            if free.is_some() {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn image(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    fn user(&self, id: &Digest, user: &str) -> Result<PathBuf, StoreError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if user.is_empty() || user.len() > 200 || user.starts_with('.') || !user.chars().all(plain)
        {
            return Err(StoreError::User(user.to_owned()));
        }
        Ok(self.image(id).join("users").join(user))
    }

    fn exists(&self, id: &Digest) -> Result<(), StoreError> {
        if self.image(id).exists() {
            Ok(())
        } else {
            Err(StoreError::NotFound(id.to_string()))
        }
    }

    fn changing(&self) -> Result<Lock, StoreError> {
        let path = self.root.join("lock");
        Lock::wait(&path, Mode::Exclusive).map_err(failed("lock", &path))
    }

    /// A directory for one import. Nobody prunes before its lock is held.
    fn partial(&self, _changing: &Lock) -> Result<Partial, StoreError> {
        let mut random = [0; 16];
        let source = Path::new("/dev/urandom");
        File::open(source)
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut random))
            .map_err(failed("read", source))?;
        let path = self.root.join("partial").join(Digest::of(&random).hex());
        fs::create_dir(&path).map_err(failed("create", &path))?;
        let lock =
            Lock::wait(&path.join("lock"), Mode::Exclusive).map_err(failed("lock", &path))?;
        Ok(Partial { path, _lock: lock })
    }

    fn ids(&self) -> Result<Vec<Digest>, StoreError> {
        let names = names_in(&self.root.join("images"))?;
        Ok(names
            .iter()
            .filter_map(|name| Digest::from_hex(name).ok())
            .collect())
    }

    fn find(&self, text: &str, references: &References) -> Result<Digest, StoreError> {
        if let Ok(name) = text.parse::<Name>() {
            // A digest decides; the tag beside it is for people.
            let found = match name.digest() {
                Some(digest) => self.image(digest).exists().then_some(*digest),
                None => references.get(&name.tagged()).copied(),
            };
            if let Some(id) = found {
                return Ok(id);
            }
        }
        let start = text.strip_prefix("sha256:").unwrap_or(text);
        let hexadecimal = start
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if start.is_empty() || !hexadecimal {
            if !text.starts_with("sha256:") {
                text.parse::<Name>()?;
            }
            return Err(StoreError::NotFound(text.to_owned()));
        }
        let mut found = self
            .ids()?
            .into_iter()
            .filter(|id| id.hex().starts_with(start));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(StoreError::AmbiguousId(text.to_owned())),
            (None, _) => Err(StoreError::NotFound(text.to_owned())),
        }
    }

    fn record(&self, id: &Digest, references: &References) -> Result<ImageRecord, StoreError> {
        let place = self.image(id);
        let disk = place.join(DISK);
        let metadata: Metadata = read_json(&place.join(METADATA))?;
        let stored = fs::metadata(&disk).map_err(failed("read", &disk))?;
        let listed = fs::metadata(place.join(FILES)).map_or(0, |listed| listed.blocks());
        Ok(ImageRecord {
            id: *id,
            names: references
                .iter()
                .filter(|(_, other)| *other == id)
                .map(|(name, _)| name.clone())
                .collect(),
            size: metadata.size,
            stored: (stored.blocks() + listed) * 512,
            files: metadata.files,
            source: metadata.source,
            imported: metadata.imported,
            config: read_json(&place.join(CONFIG))?,
            disk,
        })
    }

    fn references(&self) -> Result<References, StoreError> {
        let path = self.root.join("references.json");
        if path.exists() {
            read_json(&path)
        } else {
            Ok(References::new())
        }
    }

    fn set_name(&self, _changing: &Lock, name: Name, id: Digest) -> Result<(), StoreError> {
        let mut references = self.references()?;
        if references.insert(name, id) != Some(id) {
            self.write_references(&references)?;
        }
        Ok(())
    }

    fn write_references(&self, references: &References) -> Result<(), StoreError> {
        let path = self.root.join("references.json");
        let new = self.root.join("references.json.new");
        write_synced(&new, &to_json(references))?;
        fs::rename(&new, &path).map_err(failed("write", &path))?;
        sync_directory(&self.root)
    }
}

type References = BTreeMap<Name, Digest>;

/// A directory that goes with its holder.
struct Partial {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What is left is removed by the next import.
        let _ = fs::remove_dir_all(&self.path);
    }
}
