//! The container's files: what is read and written on request, as a process of the wire.

use super::User;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Something done with the container's files.
///
/// It runs as a process of the wire, without a role: records ([`crate::files`]) come on its standard
/// output, or go to its standard input; standard error gets one sentence when it fails, and the exit
/// code says of what kind the failure is ([`crate::files::Failure`]). It sees what the setup and
/// later requests have mounted, and nothing that the container's own processes mount.
///
/// Paths are absolute, in bytes as the container has them (no NUL), and resolved inside the
/// container's root: symbolic links and `..` never lead out (`RESOLVE_IN_ROOT`, openat2(2)). A
/// symbolic link at the very end of a path is followed only when `/` or `/.` comes after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOperation {
    /// What is at `path`: one record with an empty path and no contents. For a symbolic link that
    /// leads to something a second one follows, whose path is the resolved one in the container,
    /// without its leading `/`, and which says what is there.
    Stat {
        /// What to look at.
        path: Vec<u8>,
    },
    /// `path` and everything below it, with contents.
    Read {
        /// Where to begin; the records' paths are relative to it.
        path: Vec<u8>,
        /// How far it goes.
        boundary: Boundary,
    },
    /// The same records without contents. Hard links are not told apart: every name is a record of
    /// its file's own kind and size.
    List {
        /// Where to begin.
        path: Vec<u8>,
        /// How far it goes.
        boundary: Boundary,
    },
    /// Makes what comes on standard input, in any order, missing parents included.
    Write {
        /// A directory, followed if it is a symbolic link; the records' paths are relative to it.
        path: Vec<u8>,
        /// What happens to what is there.
        conflicts: Conflicts,
        /// Who owns what is made.
        owners: Owners,
    },
}

/// Where [`FileOperation::Read`] and [`FileOperation::List`] end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boundary {
    /// The container's root file system alone: `path` is looked up and read as if nothing were
    /// mounted on it (`docker export`, `diff` and `commit`).
    FileSystem,
    /// What is mounted shows, and volumes below `path` are entered; a file system in memory or of the
    /// kernel's is an empty directory unless `path` is in it (`docker cp`).
    Volumes,
}

/// What happens when a record's path is taken. A directory that meets one is that one from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conflicts {
    /// What is there is removed, a directory with everything in it.
    Replace,
    /// It fails when a directory meets something else or something else a directory (the Engine
    /// API's `noOverwriteDirNonDir`); the rest is replaced.
    KeepKind,
}

/// Who owns what is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owners {
    /// Whom the records name.
    Recorded,
    /// This user and group, resolved in the container as a process's (the Engine API's
    /// `copyUIDGID`, with the container's user).
    All(User),
}
