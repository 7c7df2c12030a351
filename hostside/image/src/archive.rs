//! Images in one file: a tar of an OCI layout, or what `docker save` writes.
//!
//! An archive is indexed once and its members are then read in place, so that layers can be read side
//! by side. One that is compressed as a whole is first unpacked into an unnamed temporary file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::Digest;
use crate::oci::{self, Layout, OciError, open_file};
use crate::progress::{Phase, Progress};
use crate::reference::{Name, Source};
use crate::stream::Compression;
use crate::tar::{EntryKind, Reader, TarError};

/// The most members an archive may have.
const MEMBERS_MAX: usize = 100_000;
/// How many links within the archive may lead to a member.
const LINKS_MAX: u32 = 8;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It is compressed and does not decompress.
    #[error("cannot decompress the archive")]
    Decompress(#[source] io::Error),
    /// It decompresses to more than is allowed.
    #[error("the archive decompresses to more than {0} bytes, the limit")]
    TooLarge(u64),
    /// It is not a tar, or a damaged one.
    #[error("the archive cannot be read as a tar")]
    Tar(#[from] TarError),
    /// Too many members.
    #[error("the archive has more than {MEMBERS_MAX} members")]
    Members,
    /// A document within is not what it should be.
    #[error(transparent)]
    Document(#[from] OciError),
    /// A member that the archive's manifest names is missing.
    #[error("cannot read the member `{name}`")]
    Member {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// No image of this name.
    #[error("there is no image `{name}` in the archive; there are: {found}")]
    NoName {
        /// The name asked for.
        name: String,
        /// The names there are.
        found: String,
    },
    /// Several images and no name.
    #[error("the archive has {count} images: say which, one of {found}")]
    Ambiguous {
        /// How many.
        count: usize,
        /// Their names.
        found: String,
    },
    /// The configuration is not the one its file name says.
    #[error("the configuration `{name}` is damaged: it hashes to {found}")]
    Config {
        /// Its name in the archive.
        name: String,
        /// What it hashes to.
        found: Digest,
    },
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// An indexed archive.
pub struct Archive {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

impl Archive {
    /// Indexes the archive at `path`. What has to be unpacked goes to `spool`, a directory, and may
    /// take up to `limit` bytes.
    pub fn open(
        path: &Path,
        spool: &Path,
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<Self, ArchiveError> {
        let mut file = open_file(path).map_err(ArchiveError::Read)?;
        let mut start = [0; 4];
        let count = file.read_at(&mut start, 0).map_err(ArchiveError::Read)?;
        let compression = Compression::guess(&start[..count]);
        let size = file.metadata().map_err(ArchiveError::Read)?.len();
        if compression != Compression::None {
            progress.phase(&Phase::Index, Some(size));
            file = unpack(file, compression, spool, limit, progress)?;
        }
        let members = index(&file)?;
        Ok(Self {
            file: Arc::new(file),
            members,
        })
    }

    /// The member `name`, links followed, and its length.
    pub fn member(&self, name: &str) -> io::Result<(Section, u64)> {
        let missing = |what| io::Error::new(io::ErrorKind::NotFound, what);
        let mut name = normal(name).ok_or(missing("its path leads out of the archive"))?;
        for _ in 0..=LINKS_MAX {
            match self.members.get(&name) {
                None => return Err(missing("the archive has no such member")),
                Some(Member::Link(target)) => name.clone_from(target),
                Some(&Member::File { offset, size }) => {
                    return Ok((
                        Section {
                            file: self.file.clone(),
                            offset,
                            left: size,
                        },
                        size,
                    ));
                }
            }
        }
        Err(missing("too many links lead to it"))
    }
}

impl Layout for Archive {
    fn file(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        self.member(name).map(|(section, _)| Box::new(section) as _)
    }
}

/// A part of a file, read without moving anyone else's position in it.
#[derive(Debug)]
pub struct Section {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Decompresses `file` into an unnamed file in `spool`.
fn unpack(
    file: File,
    compression: Compression,
    spool: &Path,
    limit: u64,
    progress: &dyn Progress,
) -> Result<File, ArchiveError> {
    let source = BufReader::with_capacity(
        1 << 20,
        Advancing {
            inner: file,
            progress,
        },
    );
    let decoder: Box<dyn Read> = match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(
            zstd::stream::read::Decoder::with_buffer(source).map_err(ArchiveError::Decompress)?,
        ),
        Compression::None => Box::new(source),
    };
    let mut decoder = decoder.take(limit.saturating_add(1));
    let mut out = unnamed(spool).map_err(ArchiveError::Decompress)?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ArchiveError::Decompress(error)),
        };
        total += count as u64;
        if total > limit {
            return Err(ArchiveError::TooLarge(limit));
        }
        out.write_all(&buffer[..count])
            .map_err(ArchiveError::Decompress)?;
    }
    Ok(out)
}

/// A file without a name in `directory`, gone when it is closed.
fn unnamed(directory: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every filesystem has unnamed files.
        Err(_) => {
            let path = directory.join("spool");
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

struct Advancing<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Advancing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.advance(count as u64);
        Ok(count)
    }
}

/// Where each member of the tar in `file` is; of several by one name, the last.
fn index(mut file: &File) -> Result<HashMap<String, Member>, ArchiveError> {
    let mut members = HashMap::new();
    let mut offset = 0;
    let length = file.metadata().map_err(ArchiveError::Read)?.len();
    loop {
        // A reader for each member, so that contents are skipped without being read.
        file.seek(SeekFrom::Start(offset))
            .map_err(ArchiveError::Read)?;
        let mut reader = Reader::new(BufReader::with_capacity(4096, file));
        let Some(entry) = reader.next_entry()? else {
            return Ok(members);
        };
        let start = offset + reader.position();
        let stored = reader.stored();
        offset = stored
            .checked_next_multiple_of(512)
            .and_then(|padded| start.checked_add(padded))
            .filter(|_| start.saturating_add(stored) <= length)
            .ok_or(TarError::Truncated { at: length })?;
        if members.len() >= MEMBERS_MAX {
            return Err(ArchiveError::Members);
        }
        let Ok(path) = String::from_utf8(entry.path) else {
            continue;
        };
        let Some(name) = normal(&path) else { continue };
        let text = |target: Vec<u8>| String::from_utf8(target).ok();
        let member = match entry.kind {
            EntryKind::File => Some(Member::File {
                offset: start,
                size: stored,
            }),
            EntryKind::Link(target) => text(target)
                .and_then(|target| normal(&target))
                .map(Member::Link),
            EntryKind::Symlink(target) => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                text(target)
                    .and_then(|target| normal(&format!("{directory}/{target}")))
                    .map(Member::Link)
            }
            _ => None,
        };
        if let Some(member) = member {
            members.insert(name, member);
        }
    }
}

/// A member's name without `.`, `..` and needless slashes, unless it leads out.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image of a docker archive.
#[derive(Debug)]
pub struct DockerImage {
    /// The configuration's digest, the image's id.
    pub id: Digest,
    /// The configuration.
    pub config: Vec<u8>,
    /// The members that are its layers, lowest first.
    pub layers: Vec<String>,
    /// The name it has in the archive, if it has one this crate can read.
    pub name: Option<Name>,
}

/// Finds the image `name` in a docker archive, or the only one there is.
pub fn docker_image(archive: &Archive, name: Option<&Name>) -> Result<DockerImage, ArchiveError> {
    let bytes = oci::read_document("manifest.json", archive.file("manifest.json"))?;
    let mut images: Vec<Image> = oci::parse("manifest.json", &bytes)?;
    let names = |image: &Image| -> Vec<Name> {
        let tags = image.repo_tags.iter().flatten();
        tags.filter_map(|tag| tag.parse().ok())
            .map(Name::tagged)
            .collect()
    };
    let found = || {
        let tags: Vec<&str> = images
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten())
            .map(String::as_str)
            .collect();
        if tags.is_empty() {
            "none with a name".to_owned()
        } else {
            tags.join(", ")
        }
    };
    let place = match name {
        Some(name) => images
            .iter()
            .position(|image| names(image).contains(name))
            .ok_or_else(|| ArchiveError::NoName {
                name: name.to_string(),
                found: found(),
            })?,
        None if images.len() == 1 => 0,
        None => {
            return Err(ArchiveError::Ambiguous {
                count: images.len(),
                found: found(),
            });
        }
    };
    let image = images.swap_remove(place);
    let config = oci::read_document(&image.config, archive.file(&image.config))?;
    let id = Digest::of(&config);
    // Docker names the configuration by its digest; other tools may not.
    let base = image.config.rsplit('/').next().unwrap_or_default();
    let base = base.strip_suffix(".json").unwrap_or(base);
    if Digest::from_hex(base).is_ok_and(|expected| expected != id) {
        return Err(ArchiveError::Config {
            name: image.config,
            found: id,
        });
    }
    let name = name.cloned().or_else(|| names(&image).into_iter().next());
    Ok(DockerImage {
        id,
        config,
        layers: image.layers.unwrap_or_default(),
        name,
    })
}

/// An image that can be imported from an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What imports it.
    pub source: Source,
    /// All names it has in the archive that this crate can read.
    pub names: Vec<Name>,
}

/// The images of the archive at `path`, of either kind, which is what `docker load` brings in. What has to
/// be unpacked goes to `spool` and may take up to `limit` bytes.
///
/// # Errors
/// [`ArchiveError`]; an archive of neither kind is one without an `index.json`.
pub fn images(
    path: &Path,
    spool: &Path,
    limit: u64,
    progress: &dyn Progress,
) -> Result<Vec<Listed>, ArchiveError> {
    let archive = Archive::open(path, spool, limit, progress)?;
    let manifest = match archive.file("manifest.json") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let listed = oci::tags(&archive)?.into_iter().map(|(tag, names)| Listed {
                source: Source::OciArchive {
                    path: path.to_owned(),
                    tag,
                },
                names,
            });
            return Ok(listed.collect());
        }
        manifest => oci::read_document("manifest.json", manifest)?,
    };
    let images: Vec<Image> = oci::parse("manifest.json", &manifest)?;
    let listed = images.into_iter().map(|image| {
        let tags = image.repo_tags.unwrap_or_default();
        let names: Vec<Name> = tags
            .iter()
            .filter_map(|tag| tag.parse::<Name>().ok())
            .map(Name::tagged)
            .collect();
        Listed {
            source: Source::DockerArchive {
                path: path.to_owned(),
                name: names.first().cloned(),
            },
            names,
        }
    });
    Ok(listed.collect())
}
