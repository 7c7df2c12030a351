//! What can go wrong while a boot image is written.

use std::io;
use std::path::PathBuf;

/// Why an archive or an ISO could not be written, or an archive not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input file could not be opened, inspected or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The input file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },

    /// An input is a directory, a device or another thing without a fixed length.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The input.
        path: PathBuf,
    },

    /// An input file's length changed between planning the image and writing it.
    #[error("{} was {planned} bytes long and is now {found}: it changed while it was being read; \
             run again once nothing writes to it", path.display())]
    Changed {
        /// The input file.
        path: PathBuf,
        /// Bytes when the image was planned.
        planned: u64,
        /// Bytes found when it was copied; at most one more than planned is counted.
        found: u64,
    },

    /// The output could not be written.
    #[error("cannot write the {image}")]
    Write {
        /// Which artefact: `initramfs` or `ISO`.
        image: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },

    /// An input is larger than its place in the image can be.
    #[error("the {what} is {length} bytes long; at most {limit} fit")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// The largest length in bytes that would do.
        limit: u64,
    },

    /// An input has no bytes.
    #[error("the {what} is empty")]
    Empty {
        /// What was empty.
        what: &'static str,
    },

    /// The file for `/init` cannot be the only file of an initramfs.
    #[error("{what} cannot be the init: {reason}")]
    UnusableInit {
        /// The file, as the caller named it.
        what: String,
        /// Why the kernel could not run it.
        reason: &'static str,
    },

    /// The file for the kernel cannot be started by both boot loaders.
    #[error("{what} cannot be the kernel: {reason}")]
    UnusableKernel {
        /// The file, as the caller named it.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The file for the EFI loader is neither an EFI application nor a program one can be made of.
    #[error("{what} cannot be the EFI loader: {reason}")]
    UnusableLoader {
        /// The file, as the caller named it.
        what: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A file handed in as isolinux is something else.
    #[error("{what} is not usable: {reason}")]
    NotIsolinux {
        /// Which of isolinux's two files.
        what: &'static str,
        /// What about it is wrong.
        reason: &'static str,
    },

    /// The kernel command line cannot be carried by both boot loaders.
    #[error("the command line cannot be put on the ISO: {reason}")]
    CommandLine {
        /// What about it is wrong.
        reason: String,
    },

    /// A path is not representable in the file system it was meant for.
    #[error("{name:?} cannot be a file name on a {filesystem} file system")]
    Name {
        /// The offending path component.
        name: String,
        /// `FAT` or `ISO 9660`.
        filesystem: &'static str,
    },

    /// A directory has no room for all its entries.
    #[error("directory {directory:?} would hold {entries} entries; at most {limit} fit")]
    DirectoryFull {
        /// The directory's path, `/` for the root.
        directory: String,
        /// Entries wanted.
        entries: usize,
        /// Entries that fit.
        limit: usize,
    },

    /// The same path was given twice.
    #[error("{path:?} appears twice")]
    Duplicate {
        /// The path.
        path: String,
    },

    /// A cpio archive breaks off or holds a field that is no number.
    #[error("not a newc archive: {reason} at byte {offset}")]
    Archive {
        /// What was expected.
        reason: &'static str,
        /// Where, in bytes from the archive's start.
        offset: usize,
    },
}

impl Error {
    /// For `map_err` on writes to the artefact called `image`.
    pub(crate) fn write(image: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Write { image, source }
    }
}
