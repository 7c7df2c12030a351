//! A container's files: copied out and in, compared with its image's, exported, made an image of.
//!
//! Tether reads and writes them: the container's own while it runs, a helper containerVM's while it is off.
//! What passes here are records ([`tether_wire::files`]) and tar streams, and nothing is mounted or parsed as
//! a file system.

mod convert;
mod operation;

use std::io::{BufReader, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use image::config::ImageConfig;
use image::digest::Digest;
pub use image::files::ChangeKind;
use image::files::{Base, Diff, ToTar};
use image::reference::Name;
use tether_wire::files::{Decoder, FileEntry, FileKind, FormatError, Item, Shape};
use tether_wire::message::{Boundary, Conflicts, FileOperation, Owners};
use tokio::sync::mpsc;

use self::convert::{convert, converted, import, joined, pipe};
use self::operation::{AHEAD, Access, read, read_to, write};
use crate::cell::Cell;
use crate::error::Error;
use crate::event::Action;
use crate::identity::ContainerId;
use crate::images::{ByteSource, name_of};
use crate::layer::image_error;
use crate::port_layer::PortLayer;
use crate::task::subject;

/// `stat(2)`'s kinds (`S_IFMT` in linux/stat.h).
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const FIFO: u32 = 0o010_000;
const SOCKET: u32 = 0o140_000;
const CHARACTER: u32 = 0o020_000;
const BLOCK: u32 = 0o060_000;

/// What is at a path in a container (Engine API, `HEAD /containers/{id}/archive`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// Its last component.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// `st_mode`, kind and permissions.
    pub mode: u32,
    /// When its contents last changed.
    pub modified: SystemTime,
    /// Where a symbolic link leads, resolved in the container and absolute; as it stands if nowhere. Empty
    /// for everything else.
    pub link_target: String,
}

/// How files are written (Engine API, `PUT /containers/{id}/archive`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Refuse a directory where something else is, and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Give everything to the container's user.
    pub copy_uid_gid: bool,
}

/// What a container changed of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// To what, absolute.
    pub path: String,
}

/// Bytes that go out: pieces, then the end; an error is the last.
#[derive(Debug)]
pub struct ByteStream {
    pieces: mpsc::Receiver<Result<Bytes, Error>>,
}

impl ByteStream {
    /// The next piece; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        self.pieces.recv().await
    }
}

impl PortLayer {
    /// What is at a path.
    ///
    /// # Errors
    /// [`Error::Path`]; [`WrongState`] of a paused container; the guest's.
    pub async fn path_stat(&self, id: &ContainerId, path: &str) -> Result<PathStat, Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        stat(&access, *id, path).await
    }

    /// A tar stream of what is at a path and below, named by the path's last component, and what is there.
    ///
    /// # Errors
    /// As [`path_stat`](Self::path_stat); later ones come through the stream.
    pub async fn archive(
        &self,
        id: &ContainerId,
        path: &str,
    ) -> Result<(PathStat, ByteStream), Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        let stat = stat(&access, *id, path).await?;
        let operation = FileOperation::Read {
            path: path.as_bytes().to_vec(),
            boundary: Boundary::Volumes,
        };
        let base = Base::Named(last_component(path).into_bytes());
        let stream = self.stream(&cell, access, operation, base).await?;
        self.layer.emit(subject(&cell), Action::ArchivePath);
        Ok((stat, stream))
    }

    /// Makes the files of a tar stream below the directory at a path.
    ///
    /// # Errors
    /// [`Error::Path`] and as [`path_stat`](Self::path_stat). What was made until then stays, as with Docker.
    pub async fn extract(
        &self,
        id: &ContainerId,
        path: &str,
        options: ExtractOptions,
        tar: ByteSource,
    ) -> Result<(), Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        let user = cell.view.borrow().container.spec.process.user.clone();
        let operation = FileOperation::Write {
            path: path.as_bytes().to_vec(),
            conflicts: if options.no_overwrite_dir_non_dir {
                Conflicts::KeepKind
            } else {
                Conflicts::Replace
            },
            owners: if options.copy_uid_gid {
                Owners::All(user)
            } else {
                Owners::Recorded
            },
        };
        let process = access.begin(*id, operation).await?;
        write(*id, process, tar).await?;
        self.layer.emit(subject(&cell), Action::ExtractToDir);
        Ok(())
    }

    /// What the container changed of its image's files, in order.
    ///
    /// # Errors
    /// As [`path_stat`](Self::path_stat); the image's own list is missing or damaged.
    pub async fn diff(&self, id: &ContainerId) -> Result<Vec<Change>, Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        let image = cell.view.borrow().container.spec.image.clone();
        let listed = self.layer.images.files(&image.id);
        let listed = listed.map_err(|source| image_error(image.reference, source))?;
        let mut diff = Diff::new(BufReader::new(listed));
        let operation = FileOperation::List {
            path: b"/".to_vec(),
            boundary: Boundary::FileSystem,
        };
        let process = access.begin(*id, operation).await?;
        let mut changes = Vec::new();
        read(*id, process, |bytes| {
            diff.push(bytes).map_err(converted)?;
            changes.append(&mut diff.take());
            Ok(())
        })
        .await?;
        changes.append(&mut diff.finish().map_err(converted)?);
        let change = |change: image::files::Change| Change {
            kind: change.kind,
            path: String::from_utf8_lossy(&change.path).into_owned(),
        };
        Ok(changes.into_iter().map(change).collect())
    }

    /// A tar stream of the container's root file system.
    ///
    /// # Errors
    /// As [`path_stat`](Self::path_stat); later ones come through the stream.
    pub async fn export(&self, id: &ContainerId) -> Result<ByteStream, Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        let stream = self.stream(&cell, access, whole(), Base::Left).await?;
        self.layer.emit(subject(&cell), Action::Export);
        Ok(stream)
    }

    /// An image of the container's root file system with this configuration. A process that writes meanwhile
    /// is not held up: its tether, which reads, is in the same VM.
    ///
    /// # Errors
    /// As [`path_stat`](Self::path_stat), and the store's.
    pub async fn commit(
        &self,
        id: &ContainerId,
        config: ImageConfig,
        name: Option<Name>,
    ) -> Result<Digest, Error> {
        let cell = self.layer.cell(id)?;
        let access = Access::to(self, &cell).await?;
        let process = access.begin(*id, whole()).await?;
        let (records, mut sink) = pipe()?;
        let store = self.layer.images.clone();
        let origin = format!("commit:{id}");
        let importing = tokio::task::spawn_blocking(move || {
            import(&store, records, &config, &origin, name.as_ref())
        });
        // The pipe is short and blocks when the import is slower, so it is filled off the runtime's thread.
        let (sender, mut pieces) = mpsc::channel::<Bytes>(AHEAD);
        let filling = tokio::task::spawn_blocking(move || {
            while let Some(piece) = pieces.blocking_recv() {
                // An import that ended early says why.
                if sink.write_all(&piece).is_err() {
                    return;
                }
            }
        });
        let done = read_to(*id, process, sender).await;
        let _ = filling.await;
        let record = joined(importing.await);
        // What the guest says comes first: a stream that was cut short is its failure.
        done?;
        let record = record?;
        self.tell_image(
            record.id,
            name_of(&record),
            &record.config.config.labels,
            Action::Commit,
        );
        Ok(record.id)
    }

    /// An image of a root file system that comes as a tar stream (`docker import`).
    ///
    /// # Errors
    /// [`Error::Path`] with [`PathProblem::BadArchive`], or the store's.
    pub async fn import(
        &self,
        tar: ByteSource,
        config: ImageConfig,
        name: Option<Name>,
    ) -> Result<Digest, Error> {
        let (records, sink) = pipe()?;
        let converting = tokio::task::spawn_blocking(move || convert(tar, sink));
        let store = self.layer.images.clone();
        let importing = tokio::task::spawn_blocking(move || {
            import(&store, records, &config, "tar", name.as_ref())
        });
        let converted = joined(converting.await);
        let record = joined(importing.await);
        converted?;
        let record = record?;
        self.tell_image(
            record.id,
            name_of(&record),
            &record.config.config.labels,
            Action::Import,
        );
        Ok(record.id)
    }

    /// What an operation reads as a tar stream. The tether that reads it stays until the stream ends.
    async fn stream(
        &self,
        cell: &Cell,
        access: Access,
        operation: FileOperation,
        base: Base,
    ) -> Result<ByteStream, Error> {
        let id = cell.id;
        let process = access.begin(id, operation).await?;
        let (sender, pieces) = mpsc::channel(AHEAD);
        self.layer.spawn(async move {
            let _access = access;
            let mut tar = ToTar::new(Vec::new(), base);
            let (records, mut received) = mpsc::channel::<Bytes>(AHEAD);
            let reading = read_to(id, process, records);
            let out = sender.clone();
            // Its end of `records` goes with it: then the reading ends, too.
            let converting = async move {
                while let Some(bytes) = received.recv().await {
                    tar.push(&bytes).map_err(converted)?;
                    let piece = std::mem::take(tar.get_mut());
                    if !piece.is_empty() && out.send(Ok(piece.into())).await.is_err() {
                        break;
                    }
                }
                Ok::<(), Error>(())
            };
            let (read, converted) = tokio::join!(reading, converting);
            if let Err(error) = read.and(converted) {
                // Whoever read may have gone.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(ByteStream { pieces })
    }
}

/// `Read` of the whole root file system.
fn whole() -> FileOperation {
    FileOperation::Read {
        path: b"/".to_vec(),
        boundary: Boundary::FileSystem,
    }
}

async fn stat(access: &Access, id: ContainerId, path: &str) -> Result<PathStat, Error> {
    let operation = FileOperation::Stat {
        path: path.as_bytes().to_vec(),
    };
    let process = access.begin(id, operation).await?;
    let mut decoder = Decoder::new(Shape::Stat);
    let mut entries: Vec<FileEntry> = Vec::new();
    read(id, process, |mut bytes| {
        while let Some(item) = decoder
            .next(&mut bytes)
            .map_err(|error| converted(error.into()))?
        {
            if let Item::Entry(entry) = item {
                entries.push(entry);
            }
        }
        Ok(())
    })
    .await?;
    let mut entries = entries.into_iter();
    let Some(entry) = entries.next() else {
        return Err(converted(FormatError::Truncated.into()));
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let link_target = match (&entry.kind, entries.next()) {
        (FileKind::Symlink { .. }, Some(resolved)) => format!("/{}", text(&resolved.path)),
        (FileKind::Symlink { target }, None) => text(target),
        _ => String::new(),
    };
    let (kind, size) = match &entry.kind {
        FileKind::Regular { size } => (REGULAR, *size),
        FileKind::Directory => (DIRECTORY, 4096),
        FileKind::Symlink { target } => (SYMLINK, target.len() as u64),
        FileKind::HardLink { .. } => (REGULAR, 0),
        FileKind::Fifo => (FIFO, 0),
        FileKind::Socket => (SOCKET, 0),
        FileKind::CharacterDevice { .. } => (CHARACTER, 0),
        FileKind::BlockDevice { .. } => (BLOCK, 0),
    };
    let nanos = Duration::from_nanos(entry.modified.nanos.into());
    let whole = Duration::from_secs(entry.modified.seconds.unsigned_abs());
    let modified = if entry.modified.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let modified = modified.and_then(|time| time.checked_add(nanos));
    Ok(PathStat {
        name: last_component(path),
        size,
        mode: kind | u32::from(entry.mode),
        modified: modified.unwrap_or(UNIX_EPOCH),
        link_target,
    })
}

/// The name Docker gives what is at a path: the last component, whatever slashes and dots follow; `/` for
/// the root.
fn last_component(path: &str) -> String {
    let component = path
        .rsplit('/')
        .find(|component| !component.is_empty() && *component != ".");
    component.unwrap_or("/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::last_component;

    #[test]
    fn a_path_is_named_by_its_last_component() {
        let cases = [
            ("/a/b", "b"),
            ("/a/b/", "b"),
            ("/a/b/.", "b"),
            ("/a//b//", "b"),
            ("/", "/"),
            ("/.", "/"),
            ("b", "b"),
        ];
        for (path, name) in cases {
            assert_eq!(last_component(path), name, "{path}");
        }
    }
}
