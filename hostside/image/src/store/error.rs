//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::import::ImportError;
use crate::reference::{Name, ReferenceError};
use crate::vmdk::VmdkError;

/// What went wrong with the store or in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory of the store could not be used.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the store is damaged.
    #[error("{path} is damaged: remove the image and import it again")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The image could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The name is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No such image.
    #[error("there is no image `{0}` in the store; import one, or see the list of those there are")]
    NotFound(String),
    /// An image that was imported before lists of files were kept.
    #[error("there is no list of the files of the image {0}: remove it and import it again")]
    NoFiles(Digest),
    /// The start of more than one id.
    #[error("`{0}` is the start of several image ids: give more of it")]
    AmbiguousId(String),
    /// It has names, so that it is not removed by id.
    #[error("the image {id} has the names {names}: remove those, or force it")]
    Named {
        /// Which.
        id: Digest,
        /// Its names.
        names: String,
    },
    /// It is in use.
    #[error("the image {id} is in use by {users}")]
    InUse {
        /// Which.
        id: Digest,
        /// By whom.
        users: String,
    },
    /// The name of a user of an image that cannot be a file's.
    #[error("`{0}` cannot be the name of an image's user: it must be a file name")]
    User(String),
    /// A name with a digest cannot be given to an image.
    #[error("`{0}` has a digest: an image can only be given a name with a tag")]
    Digested(Name),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] VmdkError),
}

/// Makes an error of what the system said to `action` on `path`.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File {
        action,
        path,
        source,
    }
}
