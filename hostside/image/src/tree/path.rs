//! Paths, and why one cannot be used.

use super::{DEPTH_MAX, LINKS_MAX, MEMORY_MAX, NAME_MAX, NAMES_MAX, TARGET_MAX};

/// Why a path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` beyond the root.
    #[error("it leads out of the root directory")]
    Escapes,
    /// A component that is something else than a directory.
    #[error("`{0}` on the way to it is not a directory")]
    NotDirectory(String),
    /// A loop of symbolic links.
    #[error("it passes through more than {LINKS_MAX} symbolic links")]
    Loop,
    /// A component longer than [`NAME_MAX`].
    #[error("a component is longer than {NAME_MAX} bytes")]
    NameTooLong,
    /// Deeper than [`DEPTH_MAX`].
    #[error("it is nested deeper than {DEPTH_MAX} directories")]
    TooDeep,
    /// A NUL byte within.
    #[error("it contains a NUL byte")]
    Nul,
    /// More names than [`NAMES_MAX`].
    #[error("it has more than {NAMES_MAX} names")]
    TooManyNames,
    /// More metadata than [`MEMORY_MAX`].
    #[error("the image's names, attributes and sparse maps take more than {} MiB, the limit", MEMORY_MAX >> 20)]
    TooMuch,
    /// Extended attributes that ext4 has no room for.
    #[error("its extended attributes take more than 4 KiB")]
    Xattrs,
    /// More nodes than the limit.
    #[error("the image has more than {0} files, the limit")]
    TooMany(u32),
    /// A symbolic link target that is empty or longer than [`TARGET_MAX`].
    #[error("its target is empty or longer than {TARGET_MAX} bytes")]
    Target,
    /// The path names nothing.
    #[error("it does not exist")]
    Missing,
    /// A hard link to a directory.
    #[error("it is a directory, which cannot be hard linked")]
    LinkToDirectory,
    /// The root can only be a directory.
    #[error("the root can only be a directory")]
    Root,
}

/// The components of `path` with `.`, `..` and empty ones resolved by name alone.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut components = Vec::new();
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop().ok_or(PathError::Escapes)?;
            }
            name if name.len() > NAME_MAX => return Err(PathError::NameTooLong),
            name => components.push(name),
        }
        if components.len() > usize::from(DEPTH_MAX) {
            return Err(PathError::TooDeep);
        }
    }
    Ok(components)
}
