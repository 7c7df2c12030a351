//! Secrets: text that is sent and never shown. One comes from a file or from the environment; an argument
//! would be in the list of processes.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::soap::{Element, Malformed, Node, Writer};

/// A password. Its `Debug` output has nothing of it, and it has no `Display`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// A secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NoSecret {
    /// The file could not be read.
    #[error("cannot read the password file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is none.
    #[error("{0} holds no password")]
    Empty(String),
}

impl Secret {
    /// The secret that is this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first line of a file.
    ///
    /// # Errors
    ///
    /// [`NoSecret`].
    pub fn from_file(path: &Path) -> Result<Self, NoSecret> {
        let text = std::fs::read_to_string(path).map_err(|source| NoSecret::File {
            path: path.to_owned(),
            source,
        })?;
        let line = text.lines().next().unwrap_or_default();
        match line.is_empty() {
            true => Err(NoSecret::Empty(path.display().to_string())),
            false => Ok(Self(line.to_owned())),
        }
    }

    /// The value of an environment variable.
    ///
    /// # Errors
    ///
    /// [`NoSecret::Empty`].
    pub fn from_environment(variable: &str) -> Result<Self, NoSecret> {
        match std::env::var(variable) {
            Ok(text) if !text.is_empty() => Ok(Self(text)),
            _ => Err(NoSecret::Empty(format!(
                "the environment variable {variable}"
            ))),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Element for Secret {
    const TYPE: &'static str = "string";

    fn write(&self, name: &str, out: &mut Writer) {
        out.leaf(name, &self.0);
    }

    fn read(node: &Node) -> Result<Self, Malformed> {
        Ok(Self(node.text.clone()))
    }

    #[cfg(test)]
    fn sample(_depth: u32) -> Self {
        Self::new("secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Login, ManagedObject};

    #[test]
    fn a_password_is_never_shown() {
        let login = Login {
            _this: ManagedObject::new("SessionManager", "s"),
            userName: "root".into(),
            password: Secret::new("hunter2"),
            locale: None,
        };
        let shown = format!("{login:?} {login:#?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("root"),
            "{shown}"
        );
    }

    #[test]
    fn a_password_file_has_it_in_its_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "pass word\n").unwrap();
        assert_eq!(Secret::from_file(&path).unwrap(), Secret::new("pass word"));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(Secret::from_file(&path), Err(NoSecret::Empty(_))));
        assert!(Secret::from_file(&directory.path().join("none")).is_err());
    }
}
