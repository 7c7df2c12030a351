//! Where things are kept.
//!
//! ```text
//! STATE/
//!   images/          the image store (crate image)
//!   runs/NAME/       one container; see `run_directory`
//!   vch/NAME/        one VCH that is served; see `serve`
//! ```

use anyhow::{Context, Result, bail};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The state directory.
#[derive(Clone, Debug)]
pub struct State(PathBuf);

impl State {
    /// What `--state` or `VCH_STATE` says, else `$XDG_STATE_HOME/vch`, else `~/.local/state/vch`.
    /// Made, readable by its owner only, when missing.
    ///
    /// # Errors
    /// No home directory is known, or the directory cannot be made.
    pub fn open(given: Option<&Path>) -> Result<Self> {
        let directory = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let path = match given {
            Some(path) => path.to_owned(),
            None => match (directory("XDG_STATE_HOME"), directory("HOME")) {
                (Some(state), _) if state.is_absolute() => state.join("vch"),
                (_, Some(home)) => home.join(".local/state/vch"),
                _ => bail!("no state directory: set HOME, or name one with --state"),
            },
        };
        make(&path)?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot open state directory {}", path.display()))?;
        Ok(Self(path))
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// The templates of this state directory. They are memory, so they are on a tmpfs, under a name
    /// that no other directory has had since this host started. Those of state directories that
    /// are gone are removed when this one's place is made.
    ///
    /// # Errors
    /// The state directory is gone.
    pub fn templates(&self) -> Result<PathBuf> {
        let uid = rustix::process::geteuid().as_raw();
        self.templates_below(Path::new(&format!("/dev/shm/vch-{uid}")))
    }

    fn templates_below(&self, place: &Path) -> Result<PathBuf> {
        let directory = place.join(name_for_this_boot(&self.0)?);
        if !directory.exists() {
            sweep(place);
            // Where it cannot be made, the driver boots and says why.
            if make(&directory).is_ok() {
                let _ = symlink(&self.0, directory.join(OWNER));
            }
        }
        Ok(directory)
    }

    /// The templates of one VCH of this state directory.
    ///
    /// # Errors
    /// As [`templates`](Self::templates).
    pub fn templates_of(&self, vch: &str) -> Result<PathBuf> {
        let mut name = self.templates()?.into_os_string();
        name.push(format!("-{vch}"));
        Ok(PathBuf::from(name))
    }

    /// The containers, one directory each. Made when missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn runs(&self) -> Result<PathBuf> {
        let runs = self.0.join("runs");
        make(&runs)?;
        Ok(runs)
    }

    /// The VCH called so. Made when missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn vch(&self, name: &str) -> Result<PathBuf> {
        let vch = self.0.join("vch").join(name);
        make(&vch)?;
        Ok(vch)
    }
}

/// A link in a place for templates to the state directory it belongs to.
const OWNER: &str = "state";

/// A name for a directory that lasts as long as both it and this boot of the host.
fn name_for_this_boot(directory: &Path) -> Result<String> {
    let metadata = std::fs::metadata(directory)
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    let born = metadata
        .created()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .unwrap_or_default();
    let (device, inode) = (metadata.dev(), metadata.ino());
    Ok(format!("{device:x}-{inode:x}-{:x}", born.as_nanos()))
}

/// Gives back the memory of templates whose state directory is gone. What cannot be looked at is
/// left.
fn sweep(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let Ok(owner) = std::fs::read_link(entry.path().join(OWNER)) else {
            continue;
        };
        let is_owned = name_for_this_boot(&owner)
            .is_ok_and(|name| entry.file_name().to_str() == Some(name.as_str()));
        if !is_owned {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes a directory that only its owner reads.
///
/// # Errors
/// The reason it could not, with its path.
pub fn make(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_of_a_state_directory_that_is_gone_are_removed_and_no_others() {
        let here = tempfile::tempdir().unwrap();
        let place = here.path().join("place");
        let state = |name: &str| State::open(Some(&here.path().join(name))).unwrap();
        let (gone, kept) = (state("gone"), state("kept"));
        let of_gone = gone.templates_below(&place).unwrap();
        let of_kept = kept.templates_below(&place).unwrap();
        assert_ne!(of_gone, of_kept);
        // As one looks that is just being made.
        let unowned = place.join("unowned");
        make(&unowned).unwrap();
        std::fs::remove_dir_all(&gone.0).unwrap();
        let of_next = state("next").templates_below(&place).unwrap();
        assert!(!of_gone.exists());
        for left in [of_kept, of_next, unowned] {
            assert!(left.exists(), "{} is gone", left.display());
        }
        // The same directory, the same place.
        assert_eq!(
            kept.templates_below(&place).unwrap(),
            State::open(Some(&kept.0))
                .unwrap()
                .templates_below(&place)
                .unwrap()
        );
    }
}
