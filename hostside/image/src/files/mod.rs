//! Files of containers as the records that tether speaks ([`tether_wire::files`]).
//!
//! ```text
//!   guest ── Read ──▶ ToTar ──▶ docker cp, export        tar ──▶ from_tar ── Write ──▶ guest
//!   guest ── List ──▶ Diff ◀── the image's own list, kept by the store at import
//!   guest ── Read ──▶ Store::import_files ──▶ an image (docker commit)
//! ```
//!
//! Everything here is bytes in, bytes out: nothing is mounted, no file system is parsed, and what a
//! guest or a client sends is checked before it means anything. Memory is one record's, and the tree's
//! for an import.

mod diff;
mod import;
mod listing;
mod read;
mod tar;

use std::io;

pub use diff::{Change, ChangeKind, Diff};
pub use import::Recorded;
pub(crate) use import::copy;
pub(crate) use listing::write_listing;
pub use read::Records;
pub use tar::{Base, ToTar, from_tar};

use crate::tar::TarError;
use tether_wire::files::FormatError;

/// Why files could not be converted or compared.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The records are wrong.
    #[error(transparent)]
    Records(#[from] FormatError),
    /// The tar stream is wrong.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry of the tar stream cannot be a file of a container.
    #[error("the entry `{path}` of the tar stream cannot be used: {what}")]
    Entry {
        /// Its path.
        path: String,
        /// Why not.
        what: String,
    },
    /// The records could not be read.
    #[error("cannot read the files' records")]
    Read(#[source] io::Error),
    /// The result could not be written.
    #[error("cannot write the files")]
    Write(#[source] io::Error),
}
