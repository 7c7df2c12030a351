//! Where things are kept.
//!
//! ```text
//! STATE/
//!   images/          the image store (crate image)
//!   runs/NAME/       one container; see `run_directory`
//! ```

use anyhow::{Context, Result, bail};
use std::os::unix::fs::DirBuilderExt;
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

    /// The containers, one directory each. Made when missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn runs(&self) -> Result<PathBuf> {
        let runs = self.0.join("runs");
        make(&runs)?;
        Ok(runs)
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
