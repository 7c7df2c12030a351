//! One container's directory: what survives when its `vch run` does not.
//!
//! ```text
//! runs/NAME/
//!   owner        locked by the `vch` that owns the container now; holds its process id
//!   record.json  what it is: written once
//!   key          the channel key, 32 bytes, mode 0600
//!   disk.vmdk    its disk, a child of the image's
//!   cursor       how far its output was written (`cursor`)
//!   exit.json    how its process ended, once it has
//!   vm/          the hypervisor driver's own
//! ```
//!
//! A directory is made beside its place and renamed into it with the lock held, so a name is taken
//! once and a directory with a name always has a record. What a killed `vch` leaves half made
//! starts with a dot and is swept by the next one.

use crate::paths;
use crate::record::{Ended, Record};
use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A container's directory, owned by this process.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    // Held for its lock.
    _owner: File,
}

/// Whether a container has an owner.
#[derive(Debug)]
pub enum Claim {
    /// This process is the owner now.
    Owned(RunDirectory),
    /// Another one is.
    Taken {
        /// Its process id, as far as it is known.
        pid: Option<u32>,
    },
}

impl RunDirectory {
    /// Makes the directory of a new container under `runs`.
    ///
    /// # Errors
    /// The name is taken or no name, or the file system refuses.
    pub fn create(runs: &Path, record: &Record, key: &[u8; 32]) -> Result<Self> {
        check_name(&record.name)?;
        sweep(runs)?;
        let building = runs.join(format!(".{}.{}", record.name, record.id));
        paths::make(&building)?;
        let path = runs.join(&record.name);
        let made = (|| {
            let owner = lock(&building)?.ok_or_else(|| anyhow!("cannot lock a new directory"))?;
            write_private(&building.join("key"), key)?;
            let text = serde_json::to_vec_pretty(record).context("cannot write the record")?;
            write_private(&building.join("record.json"), &text)?;
            match std::fs::rename(&building, &path) {
                Ok(()) => Ok(owner),
                Err(_) if path.exists() => bail!(
                    "the container name \"{name}\" is already in use; remove it with `vch rm {name}`, or choose another",
                    name = record.name
                ),
                Err(error) => Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        })();
        match made {
            Ok(owner) => Ok(Self {
                path,
                _owner: owner,
            }),
            Err(error) => {
                // Swept by the next one if this fails.
                let _ = std::fs::remove_dir_all(&building);
                Err(error)
            }
        }
    }

    /// Takes over an existing container, if nobody owns it.
    ///
    /// # Errors
    /// There is none of that name, or its files cannot be read.
    pub fn claim(runs: &Path, name: &str) -> Result<Claim> {
        check_name(name)?;
        let path = runs.join(name);
        if !path.is_dir() {
            bail!("no such container: {name}");
        }
        Ok(match lock(&path)? {
            Some(owner) => Claim::Owned(Self {
                path,
                _owner: owner,
            }),
            None => Claim::Taken { pid: owner(&path) },
        })
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The channel key.
    ///
    /// # Errors
    /// It cannot be read or is not 32 bytes.
    pub fn key(&self) -> Result<[u8; 32]> {
        let path = self.join("key");
        std::fs::read(&path)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| anyhow!("cannot read the channel key {}", path.display()))
    }

    /// Keeps how the process ended. Whole or not at all.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_ended(&self, ended: &Ended) -> Result<()> {
        let text = serde_json::to_vec_pretty(ended).context("cannot write the exit status")?;
        let temporary = self.join("exit.json.new");
        write_private(&temporary, &text)?;
        let path = self.join("exit.json");
        std::fs::rename(&temporary, &path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the container's files. The VM must be gone.
    ///
    /// # Errors
    /// The file system refuses; what is left is swept later.
    pub fn remove(self) -> Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let doomed = format!(".{name}.{}.removed", std::process::id());
        let doomed = self.path.with_file_name(doomed);
        std::fs::rename(&self.path, &doomed)
            .and_then(|()| std::fs::remove_dir_all(&doomed))
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// The record of a container, whoever owns it.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn record(runs: &Path, name: &str) -> Result<Record> {
    check_name(name)?;
    let path = runs.join(name).join("record.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("no such container: {name}")
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
}

/// How a container's process ended, if it has.
///
/// # Errors
/// The file is there and cannot be read.
pub fn ended(runs: &Path, name: &str) -> Result<Option<Ended>> {
    check_name(name)?;
    let path = runs.join(name).join("exit.json");
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .with_context(|| format!("cannot read {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The names of all containers, sorted.
///
/// # Errors
/// The directory cannot be read.
pub fn names(runs: &Path) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// The name of the container that `text` means: its name, its id, or the start of its id.
///
/// # Errors
/// None, or more than one.
pub fn find(runs: &Path, text: &str) -> Result<String> {
    let names = names(runs)?;
    if let Some(name) = names.iter().find(|name| *name == text) {
        return Ok(name.clone());
    }
    let hexadecimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let mut found = names.into_iter().filter(|name| {
        hexadecimal && record(runs, name).is_ok_and(|record| record.id.starts_with(text))
    });
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(name),
        (Some(_), Some(_)) => bail!("multiple containers have an id that starts with {text}"),
        _ => bail!("no such container: {text}"),
    }
}

/// Docker's rule for names.
fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && rest && name.len() <= 64 {
        Ok(())
    } else {
        bail!(
            "invalid container name ({name}): 1 to 64 of a-z, A-Z, 0-9, underscore, dot and hyphen are allowed, and the first not a sign"
        )
    }
}

fn lock(directory: &Path) -> Result<Option<File>> {
    let path = directory.join("owner");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // It may have been removed between opening and locking.
    use std::os::unix::fs::MetadataExt;
    let same = path.metadata().ok().zip(file.metadata().ok());
    if same.is_none_or(|(named, held)| named.ino() != held.ino()) {
        bail!("{} was removed meanwhile", directory.display());
    }
    let pid = std::process::id().to_string();
    file.set_len(0)
        .and_then(|()| file.write_all(pid.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(file))
}

/// The process id in a taken lock.
fn owner(directory: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(directory.join("owner"))
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    text.trim().parse().ok()
}

/// Whether some process owns the container now, and which.
pub fn owned_by(runs: &Path, name: &str) -> Option<Option<u32>> {
    let path = runs.join(name);
    let file = File::open(path.join("owner")).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Some(owner(&path)),
        _ => None,
    }
}

/// Removes what killed ones left half made or half removed.
fn sweep(runs: &Path) -> Result<()> {
    let entries =
        std::fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))?;
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // The owner is written once the lock is held, so an owner without a lock is dead; without
        // an owner it may be being made this moment.
        if (owner(&path).is_some() || old(&path)) && matches!(lock(&path), Ok(Some(_))) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// Nobody takes this long between making a directory and locking it.
fn old(path: &Path) -> bool {
    let age = path.metadata().and_then(|meta| meta.modified());
    age.is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 3600))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_name_is_taken_once_and_free_again_after_removal() {
        let runs = runs();
        let record = Record::for_tests("web");
        let first = RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap();
        assert_eq!(first.key().unwrap(), [7; 32]);
        let again = RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap_err();
        assert!(again.to_string().contains("already in use"), "{again}");
        first.remove().unwrap();
        RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap();
    }

    #[test]
    fn a_container_has_one_owner_at_a_time() {
        let runs = runs();
        let record = Record::for_tests("web");
        let first = RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap();
        assert!(matches!(
            RunDirectory::claim(runs.path(), "web").unwrap(),
            Claim::Taken { pid: Some(pid) } if pid == std::process::id()
        ));
        assert_eq!(owned_by(runs.path(), "web"), Some(Some(std::process::id())));
        drop(first);
        assert_eq!(owned_by(runs.path(), "web"), None);
        assert!(matches!(
            RunDirectory::claim(runs.path(), "web").unwrap(),
            Claim::Owned(_)
        ));
        assert!(RunDirectory::claim(runs.path(), "absent").is_err());
    }

    #[test]
    fn a_container_is_found_by_name_id_or_the_start_of_its_id() {
        let runs = runs();
        let record = Record::for_tests("web");
        let _kept = RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap();
        for text in ["web", &record.id, &record.id[..6]] {
            assert_eq!(find(runs.path(), text).unwrap(), "web");
        }
        for text in ["", "we", "../web", "zz"] {
            assert!(find(runs.path(), text).is_err(), "{text} was found");
        }
    }

    #[test]
    fn a_name_never_leads_elsewhere() {
        for bad in ["", ".", "..", "a/b", ".hidden", "-x", "a b", "ü"] {
            assert!(check_name(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_a_killed_one_left_half_made_is_swept() {
        let runs = runs();
        let left = runs.path().join(".web.0123");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("owner"), "1").unwrap();
        let record = Record::for_tests("web");
        let _kept = RunDirectory::create(runs.path(), &record, &[7; 32]).unwrap();
        assert!(!left.exists());
        assert_eq!(names(runs.path()).unwrap(), ["web"]);
    }
}
