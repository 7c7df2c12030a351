//! What containers' disks grow from, once a running container has been forked.
//!
//! At a fork the disk that the parent wrote to until then gets a second name here, and is never written
//! to again: the disks that parent and children go on with are children of it by that name. So a container
//! can be removed whatever others grow from what it was.
//!
//! ```text
//! STATE/bases/ID.vmdk                 a hard link; read-only from then on
//! STATE/containers/ID/bases           names of those its disk grows from, one a line
//! ```
//!
//! A container's list is written before anything grows from what it names, and a base that no list names
//! is removed. Its own parent is the image's disk, or another base.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::identity::ContainerId;

const LIST: &str = "bases";

/// The bases of one VCH.
#[derive(Debug, Clone)]
pub(crate) struct Bases {
    directory: PathBuf,
    containers: PathBuf,
}

impl Bases {
    /// Those in this state directory; removes those that nothing grows from.
    pub fn open(state: &Path, containers: &Path) -> Result<Self, Error> {
        let directory = state.join("bases");
        fs::create_dir_all(&directory).map_err(Error::state("create", &directory))?;
        let bases = Self {
            directory,
            containers: containers.to_owned(),
        };
        let all = bases.names()?;
        bases.sweep(all)?;
        Ok(bases)
    }

    /// A name that nothing has.
    pub fn new_name() -> Result<String, Error> {
        let id = ContainerId::random().map_err(Error::Random)?;
        Ok(format!("{id}.vmdk"))
    }

    /// Where one is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What the disk of the container in this directory grows from.
    pub fn of(container: &Path) -> Result<BTreeSet<String>, Error> {
        let path = container.join(LIST);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(Error::state("read", &path)(error)),
        }
    }

    /// Writes that down.
    pub fn set(container: &Path, names: &BTreeSet<String>) -> Result<(), Error> {
        let path = container.join(LIST);
        let new = container.join("bases.new");
        let text: String = names.iter().map(|name| format!("{name}\n")).collect();
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(Error::state("write", &path))
    }

    /// Removes those of `names` that no container's disk grows from.
    pub fn sweep(&self, mut names: BTreeSet<String>) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        let failed = || Error::state("read", &self.containers);
        for entry in fs::read_dir(&self.containers).map_err(failed())? {
            for used in Self::of(&entry.map_err(failed())?.path())? {
                names.remove(&used);
            }
        }
        for name in names {
            let path = self.path(&name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::state("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn names(&self) -> Result<BTreeSet<String>, Error> {
        let read = || -> io::Result<BTreeSet<String>> {
            let entries = fs::read_dir(&self.directory)?;
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect()
        };
        read().map_err(Error::state("read", &self.directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_stays_as_long_as_a_disk_grows_from_it() {
        let state = tempfile::tempdir().unwrap();
        let containers = state.path().join("containers");
        let (parent, child) = (containers.join("parent"), containers.join("child"));
        fs::create_dir_all(&parent).unwrap();
        fs::create_dir_all(&child).unwrap();
        let bases = Bases::open(state.path(), &containers).unwrap();
        let names: BTreeSet<String> = ["a.vmdk", "b.vmdk"].map(str::to_owned).into();
        for name in &names {
            fs::write(bases.path(name), "").unwrap();
        }
        Bases::set(&parent, &names).unwrap();
        Bases::set(&child, &["a.vmdk".to_owned()].into()).unwrap();
        fs::remove_dir_all(&parent).unwrap();
        bases.sweep(names.clone()).unwrap();
        assert!(bases.path("a.vmdk").exists() && !bases.path("b.vmdk").exists());
        fs::remove_dir_all(&child).unwrap();
        // What a killed controller did not come to is done by the next.
        Bases::open(state.path(), &containers).unwrap();
        assert!(!bases.path("a.vmdk").exists());
    }
}
