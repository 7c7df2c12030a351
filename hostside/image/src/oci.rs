//! Indexes and manifests: from a layout's `index.json` to the configuration and layers of the image for
//! this platform.
//!
//! Sources: the OCI image specification 1.1 (`image-layout.md`, `image-index.md`, `manifest.md`,
//! `descriptor.md`) and Docker's *Image Manifest Version 2, Schema 2*.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::reference::Name;
use crate::stream::Compression;

/// The largest index, manifest or configuration taken, in bytes; registries take 4 MiB.
pub const DOCUMENT_MAX: u64 = 8 << 20;
/// How deep indexes may nest.
const INDEX_DEPTH: u32 = 4;
const ARCHITECTURE: &str = "amd64";
const OS: &str = "linux";

/// Where blobs and the files beside them are.
pub trait Layout {
    /// The file of this name beside the blobs, such as `index.json`.
    fn file(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;

    /// The blob of this digest.
    fn blob(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        self.file(&format!("blobs/sha256/{}", digest.hex()))
    }
}

/// An image layout in a directory.
#[derive(Debug, Clone)]
pub struct DirectoryLayout(pub PathBuf);

impl Layout for DirectoryLayout {
    fn file(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        open_file(&self.0.join(name)).map(|file| Box::new(file) as _)
    }
}

/// Opens a regular file to read; anything else, which could block or never end, is an error.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let file = File::from(open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(file)
}

/// What is wrong with an image's documents.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// A document or blob that is not there or cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// A file name or digest.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A document that is not what it should be.
    #[error("{name} is not valid")]
    Parse {
        /// A file name or digest.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A document that is larger than [`DOCUMENT_MAX`].
    #[error("{name} is larger than {DOCUMENT_MAX} bytes")]
    TooLarge {
        /// A file name or digest.
        name: String,
    },
    /// A document that hashes to something else.
    #[error("{expected} is damaged: its content hashes to {found}")]
    Digest {
        /// What it should hash to.
        expected: Digest,
        /// What it does.
        found: Digest,
    },
    /// A document of another length than its descriptor says.
    #[error("{digest} has {found} bytes, not {expected}")]
    Size {
        /// The document.
        digest: Digest,
        /// What its descriptor says.
        expected: u64,
        /// What it has.
        found: u64,
    },
    /// No image of this tag.
    #[error("there is no image `{tag}`; there are: {}", list(.found))]
    NoTag {
        /// The tag asked for.
        tag: String,
        /// The tags there are.
        found: Vec<String>,
    },
    /// More than one image and no tag.
    #[error("there are several images: say which, one of {}", list(.0))]
    Ambiguous(Vec<String>),
    /// No image at all.
    #[error("there is no image in it")]
    Empty,
    /// No image for this platform.
    #[error("there is no image for {OS}/{ARCHITECTURE}; there are: {}", list(.0))]
    Platform(Vec<String>),
    /// Something this crate cannot use.
    #[error("{digest} has the media type `{media_type}`, which is not supported here")]
    MediaType {
        /// The blob.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Indexes within indexes without end.
    #[error("the indexes are nested deeper than {INDEX_DEPTH} levels")]
    Nested,
    /// Layers and their digests in the configuration do not match up.
    #[error("the image has {layers} layers and its configuration names {diff_ids}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than allowed.
    #[error("the image has {0} layers, more than the limit of {1}")]
    TooManyLayers(usize, usize),
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// What it hashes to.
    pub digest: Digest,
    /// How long it is.
    pub size: u64,
    /// Names and the like.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What it runs on.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    /// Processor architecture, in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, in Go's words.
    #[serde(default)]
    pub os: String,
}

impl Descriptor {
    fn tag(&self) -> Option<&str> {
        self.annotations
            .as_ref()?
            .get("org.opencontainers.image.ref.name")
            .map(String::as_str)
    }

    fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            "application/vnd.oci.image.index.v1+json"
                | "application/vnd.docker.distribution.manifest.list.v2+json"
        )
    }

    /// How a layer of this media type is compressed.
    fn compression(&self) -> Option<Compression> {
        let base = self
            .media_type
            .strip_prefix("application/vnd.oci.image.layer.")
            .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
        match (base, self.media_type.as_str()) {
            (Some("v1.tar"), _) | (_, "application/vnd.docker.image.rootfs.diff.tar") => {
                Some(Compression::None)
            }
            (Some("v1.tar+gzip"), _)
            | (
                _,
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ) => Some(Compression::Gzip),
            (Some("v1.tar+zstd"), _) | (_, "application/vnd.docker.image.rootfs.diff.tar.zstd") => {
                Some(Compression::Zstd)
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// A manifest or index: which of them is told by what it has, for media types within are optional.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// A layer of a [`Resolved`] image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// An image's configuration and layers, as its manifest has them.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The configuration's digest, the image's id.
    pub id: Digest,
    /// The configuration as it is, checked against its digest.
    pub config: Vec<u8>,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
}

/// Finds the image `tag` in `layout`, or the only one there is.
pub fn resolve(
    layout: &dyn Layout,
    tag: Option<&str>,
    layers_max: usize,
) -> Result<Resolved, OciError> {
    let index: Index = parse(
        "index.json",
        &read_document("index.json", layout.file("index.json"))?,
    )?;
    let tags = || {
        index
            .manifests
            .iter()
            .filter_map(|found| found.tag().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let candidates: Vec<&Descriptor> = match tag {
        Some(tag) => index
            .manifests
            .iter()
            .filter(|found| found.tag() == Some(tag))
            .collect(),
        None => index.manifests.iter().collect(),
    };
    let descriptor = match (&candidates[..], tag) {
        ([], Some(tag)) => {
            return Err(OciError::NoTag {
                tag: tag.to_owned(),
                found: tags(),
            });
        }
        ([], None) => return Err(OciError::Empty),
        ([one], _) => (*one).clone(),
        // Several of one name are one image for several platforms.
        (several, _) => {
            if tag.is_none() && several.iter().any(|other| other.tag() != several[0].tag()) {
                return Err(OciError::Ambiguous(tags()));
            }
            choose(several)?.clone()
        }
    };
    manifest(layout, descriptor, layers_max)
}

/// Follows `descriptor` to the manifest for this platform.
fn manifest(
    layout: &dyn Layout,
    mut descriptor: Descriptor,
    layers_max: usize,
) -> Result<Resolved, OciError> {
    for _ in 0..INDEX_DEPTH {
        let bytes = document(layout, &descriptor)?;
        let manifest = match parse::<Document>(&descriptor.digest.to_string(), &bytes)? {
            Document::Index(index) => {
                let all: Vec<&Descriptor> = index.manifests.iter().collect();
                descriptor = choose(&all)?.clone();
                continue;
            }
            Document::Manifest(_) if descriptor.is_index() => {
                return Err(OciError::MediaType {
                    digest: descriptor.digest,
                    media_type: descriptor.media_type,
                });
            }
            Document::Manifest(manifest) => manifest,
        };
        if manifest.layers.len() > layers_max {
            return Err(OciError::TooManyLayers(manifest.layers.len(), layers_max));
        }
        let layers = manifest
            .layers
            .into_iter()
            .map(|layer| match layer.compression() {
                Some(compression) => Ok(Layer {
                    digest: layer.digest,
                    size: layer.size,
                    compression,
                }),
                None => Err(OciError::MediaType {
                    digest: layer.digest,
                    media_type: layer.media_type,
                }),
            });
        return Ok(Resolved {
            manifest: descriptor.digest,
            id: manifest.config.digest,
            layers: layers.collect::<Result<_, _>>()?,
            config: document(layout, &manifest.config)?,
        });
    }
    Err(OciError::Nested)
}

/// The manifest for this platform; one that names no platform counts if there is no other.
fn choose<'d>(manifests: &[&'d Descriptor]) -> Result<&'d Descriptor, OciError> {
    let is_ours = |found: &&&'d Descriptor| {
        found
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == OS && platform.architecture == ARCHITECTURE)
    };
    if let Some(found) = manifests.iter().find(is_ours) {
        return Ok(found);
    }
    if let Some(found) = manifests.iter().find(|found| found.platform.is_none()) {
        return Ok(found);
    }
    let platforms = manifests.iter().filter_map(|found| found.platform.as_ref());
    Err(OciError::Platform(
        platforms
            .map(|found| format!("{}/{}", found.os, found.architecture))
            .collect(),
    ))
}

/// The document that `descriptor` refers to, checked.
fn document(layout: &dyn Layout, descriptor: &Descriptor) -> Result<Vec<u8>, OciError> {
    let Descriptor { digest, size, .. } = descriptor;
    let bytes = read_document(&digest.to_string(), layout.blob(digest))?;
    if bytes.len() as u64 != *size {
        return Err(OciError::Size {
            digest: *digest,
            expected: *size,
            found: bytes.len() as u64,
        });
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(OciError::Digest {
            expected: *digest,
            found,
        });
    }
    Ok(bytes)
}

/// All of a small file.
/// A tag in a layout's index, none for what has none, and the names that annotations give the image.
pub(crate) type Tagged = (Option<String>, Vec<Name>);

/// The tags in a layout's index, each once.
pub(crate) fn tags(layout: &dyn Layout) -> Result<Vec<Tagged>, OciError> {
    let index: Index = parse(
        "index.json",
        &read_document("index.json", layout.file("index.json"))?,
    )?;
    let mut tags: Vec<Tagged> = Vec::new();
    for descriptor in &index.manifests {
        let tag = descriptor.tag().map(str::to_owned);
        // A tag alone ("latest") is no name; containerd writes the whole one beside it.
        let annotations = descriptor.annotations.as_ref();
        let whole = annotations.and_then(|all| all.get("io.containerd.image.name"));
        let text = whole.or(tag.as_ref().filter(|tag| tag.contains([':', '/'])));
        let name = text
            .and_then(|text| text.parse::<Name>().ok())
            .map(Name::tagged);
        match tags.iter_mut().find(|(known, _)| *known == tag) {
            Some((_, names)) => names.extend(name.filter(|name| !names.contains(name))),
            None => tags.push((tag, name.into_iter().collect())),
        }
    }
    Ok(tags)
}

pub(crate) fn read_document(
    name: &str,
    file: io::Result<Box<dyn Read + Send>>,
) -> Result<Vec<u8>, OciError> {
    let failed = |source| OciError::Read {
        name: name.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    file.map_err(failed)?
        .take(DOCUMENT_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(OciError::TooLarge {
            name: name.to_owned(),
        });
    }
    Ok(bytes)
}

pub(crate) fn parse<'b, T: Deserialize<'b>>(name: &str, bytes: &'b [u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Parse {
        name: name.to_owned(),
        source,
    })
}
