//! From a [`Source`] to a disk: finds the image's configuration and layers, then flattens the layers
//! into an ext4 filesystem on a sparse VMDK in one pass.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;

use crate::archive::{self, Archive, ArchiveError};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::ext4::{self, Ext4Error, Identity, Label, Size};
use crate::files;
use crate::layer::{self, LayerError, Limits};
use crate::oci::{self, DirectoryLayout, Layout, OciError};
use crate::progress::{Phase, Progress};
use crate::reference::{Name, Source};
use crate::rootfs::{self, Owners, RootfsError};
use crate::stream::{Blob, BlobError, Compression, Stream};
use crate::tree::Tree;
use crate::vmdk::SparseDisk;

/// How an image becomes a disk.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How large the filesystem is. A child disk has the same size.
    pub size: Size,
    /// The filesystem's label.
    pub label: Label,
    /// Who owns the files of a `dir:` source.
    pub owners: Owners,
    /// When to refuse.
    pub limits: Limits,
}

impl Default for Options {
    /// 10 GiB, or more to leave 2 GiB free; labelled `image`; owners as they are.
    fn default() -> Self {
        Self {
            size: Size::AtLeast {
                size: 10 << 30,
                free: 2 << 30,
            },
            label: Label::new("image").unwrap_or(Label::EMPTY),
            owners: Owners::Kept,
            limits: Limits::default(),
        }
    }
}

/// Why an image could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The layout's documents are wrong.
    #[error("cannot import {origin}")]
    Layout {
        /// The source.
        origin: String,
        /// Why.
        source: OciError,
    },
    /// The archive is wrong.
    #[error("cannot import {origin}")]
    Archive {
        /// The source.
        origin: String,
        /// Why.
        source: ArchiveError,
    },
    /// The directory cannot be copied.
    #[error("cannot import {origin}")]
    Rootfs {
        /// The source.
        origin: String,
        /// Why.
        source: RootfsError,
    },
    /// A container's files cannot be an image.
    #[error("cannot make an image of {origin}")]
    Files {
        /// The source.
        origin: String,
        /// Why.
        source: files::Recorded,
    },
    /// The list of the image's files cannot be written.
    #[error("cannot write the list of the files of {origin}")]
    Listing {
        /// The source.
        origin: String,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be unpacked.
    #[error("cannot unpack layer {number} ({layer})")]
    Layer {
        /// From 1 on.
        number: usize,
        /// Its digest or name.
        layer: String,
        /// Why.
        source: LayerError,
    },
    /// A layer is not what it should be.
    #[error("layer {number} ({layer}) cannot be used")]
    Blob {
        /// From 1 on.
        number: usize,
        /// Its digest or name.
        layer: String,
        /// Why.
        source: BlobError,
    },
    /// The layers together are too large.
    #[error("the image's layers decompress to more than {0} bytes, the limit")]
    TooLarge(u64),
    /// The filesystem cannot be written.
    #[error("cannot write the filesystem of {origin}")]
    Filesystem {
        /// The source.
        origin: String,
        /// Why.
        source: Ext4Error,
    },
    /// The disk cannot be written.
    #[error("cannot write the disk {path}")]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A registry.
    #[error(
        "cannot import {0}: registries are not supported yet; use oci:, oci-archive:, docker-archive: or dir:"
    )]
    Registry(String),
}

/// A layer to unpack.
struct Input<'a> {
    /// For messages: a digest or a name.
    name: String,
    digest: Option<Digest>,
    size: Option<u64>,
    compression: Compression,
    content: Digest,
    open: Box<dyn Fn() -> io::Result<Box<dyn Read + Send>> + 'a>,
}

/// An opened source: which image it is, before its layers are read.
pub(crate) struct Opened<'a> {
    origin: String,
    kind: OpenedKind<'a>,
}

enum OpenedKind<'a> {
    Layers {
        id: Digest,
        config: Vec<u8>,
        parsed: ImageConfig,
        layout: Box<dyn Layout>,
        layers: Vec<oci::Layer>,
    },
    Docker {
        image: archive::DockerImage,
        parsed: ImageConfig,
        archive: Archive,
    },
    Rootfs(PathBuf),
    Files {
        records: Box<dyn Read + 'a>,
        config: serde_json::Map<String, serde_json::Value>,
    },
}

/// A finished disk.
pub(crate) struct Built {
    pub id: Digest,
    pub config: Vec<u8>,
    pub summary: ext4::Summary,
}

impl<'a> Opened<'a> {
    /// Reads the documents of `source`. `spool` is for what has to be unpacked first.
    pub fn new(
        source: &Source,
        spool: &Path,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Self, ImportError> {
        let origin = source.to_string();
        let limits = &options.limits;
        let layout_failed = |source| ImportError::Layout {
            origin: origin.clone(),
            source,
        };
        let archive_failed = |source| ImportError::Archive {
            origin: origin.clone(),
            source,
        };
        let open = |path: &Path| {
            Archive::open(path, spool, limits.total_bytes, progress).map_err(archive_failed)
        };
        let kind = match source {
            Source::Directory(path) => OpenedKind::Rootfs(path.clone()),
            Source::Oci { path, tag } => OpenedKind::layers(
                Box::new(DirectoryLayout(path.clone())),
                tag.as_deref(),
                limits,
            )
            .map_err(layout_failed)?,
            Source::OciArchive { path, tag } => {
                OpenedKind::layers(Box::new(open(path)?), tag.as_deref(), limits)
                    .map_err(layout_failed)?
            }
            Source::DockerArchive { path, name } => {
                let archive = open(path)?;
                let image =
                    archive::docker_image(&archive, name.as_ref()).map_err(archive_failed)?;
                let parsed = parse_config(&image.id, &image.config, image.layers.len(), limits)
                    .map_err(layout_failed)?;
                OpenedKind::Docker {
                    image,
                    parsed,
                    archive,
                }
            }
            Source::Registry(_) => return Err(ImportError::Registry(origin)),
        };
        Ok(Self { origin, kind })
    }

    /// A container's files, with the configuration of the image they are to be.
    pub fn files(
        origin: String,
        records: Box<dyn Read + 'a>,
        config: serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        let kind = OpenedKind::Files { records, config };
        Self { origin, kind }
    }

    /// Where it comes from, for people.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The image's id, if it is known before the content is read.
    pub fn id(&self) -> Option<Digest> {
        match &self.kind {
            OpenedKind::Layers { id, .. } => Some(*id),
            OpenedKind::Docker { image, .. } => Some(image.id),
            OpenedKind::Rootfs(_) | OpenedKind::Files { .. } => None,
        }
    }

    /// The name that the source itself gives the image.
    pub fn name(&self) -> Option<&Name> {
        match &self.kind {
            OpenedKind::Docker { image, .. } => image.name.as_ref(),
            _ => None,
        }
    }

    /// Writes the image's disk into the empty `file`, which is at `path`, and the list of its files into
    /// `listing`.
    pub fn build(
        self,
        file: File,
        path: &Path,
        listing: &mut dyn Write,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Built, ImportError> {
        let Self { origin, kind } = self;
        let written = |source| ImportError::Filesystem {
            origin: origin.clone(),
            source,
        };
        let mut writer = ext4::Writer::new(SparseDisk::new(file), options.size).map_err(written)?;
        let mut tree = Tree::new(options.limits.files);
        let (id, config, content) = match kind {
            OpenedKind::Rootfs(root) => {
                progress.phase(&Phase::Directory, None);
                let content = rootfs::copy(
                    &root,
                    options.owners,
                    &mut tree,
                    writer.contents(),
                    progress,
                )
                .map_err(|source| ImportError::Rootfs {
                    origin: origin.clone(),
                    source,
                })?;
                let config = rootfs::config(content);
                (Digest::of(&config), config, content)
            }
            OpenedKind::Files {
                mut records,
                mut config,
            } => {
                progress.phase(&Phase::Directory, None);
                let content = files::copy(
                    &mut *records,
                    &mut tree,
                    writer.contents(),
                    &options.limits,
                    progress,
                )
                .map_err(|source| ImportError::Files {
                    origin: origin.clone(),
                    source,
                })?;
                let rootfs = serde_json::json!({"type": "layers", "diff_ids": [content]});
                config.insert("rootfs".to_owned(), rootfs);
                let config = serde_json::to_vec(&config).unwrap_or_default();
                (Digest::of(&config), config, content)
            }
            OpenedKind::Layers {
                id,
                config,
                parsed,
                layout,
                layers,
            } => {
                let inputs: Vec<_> = layers
                    .iter()
                    .zip(&parsed.rootfs.diff_ids)
                    .map(|(layer, content)| Input {
                        name: layer.digest.to_string(),
                        digest: Some(layer.digest),
                        size: Some(layer.size),
                        compression: layer.compression,
                        content: *content,
                        open: Box::new(|| layout.blob(&layer.digest)),
                    })
                    .collect();
                unpack(&inputs, &mut tree, &mut writer, options, progress)?;
                (id, config, id)
            }
            OpenedKind::Docker {
                image,
                parsed,
                archive,
            } => {
                let mut inputs = Vec::new();
                for (name, content) in image.layers.iter().zip(&parsed.rootfs.diff_ids) {
                    let mut start = [0; 4];
                    let (mut section, size) =
                        archive
                            .member(name)
                            .map_err(|source| ImportError::Archive {
                                origin: origin.clone(),
                                source: ArchiveError::Member {
                                    name: name.clone(),
                                    source,
                                },
                            })?;
                    let count = section.read(&mut start).unwrap_or(0);
                    inputs.push(Input {
                        name: name.clone(),
                        digest: None,
                        size: Some(size),
                        compression: Compression::guess(&start[..count]),
                        content: *content,
                        open: Box::new(|| archive.file(name)),
                    });
                }
                unpack(&inputs, &mut tree, &mut writer, options, progress)?;
                (image.id, image.config, image.id)
            }
        };
        progress.phase(&Phase::Finish, None);
        files::write_listing(&tree, listing).map_err(|source| ImportError::Listing {
            origin: origin.clone(),
            source,
        })?;
        let identity = Identity::of(&content, options.label);
        // Parents are told apart by their content id: what makes the disks differ makes it differ.
        writer.contents().disk_mut().identify(&Digest::of(
            format!("{content} {:?}", options.size).as_bytes(),
        ));
        let (disk, summary) = writer.finish(&tree, &identity).map_err(written)?;
        disk.into_file()
            .sync_all()
            .map_err(|source| ImportError::Disk {
                path: path.to_owned(),
                source,
            })?;
        Ok(Built {
            id,
            config,
            summary,
        })
    }
}

impl OpenedKind<'_> {
    fn layers(
        layout: Box<dyn Layout>,
        tag: Option<&str>,
        limits: &Limits,
    ) -> Result<Self, OciError> {
        let found = oci::resolve(&*layout, tag, limits.layers)?;
        let parsed = parse_config(&found.id, &found.config, found.layers.len(), limits)?;
        Ok(Self::Layers {
            id: found.id,
            config: found.config,
            parsed,
            layout,
            layers: found.layers,
        })
    }
}

fn parse_config(
    id: &Digest,
    bytes: &[u8],
    layers: usize,
    limits: &Limits,
) -> Result<ImageConfig, OciError> {
    let config: ImageConfig = oci::parse(&id.to_string(), bytes)?;
    let diff_ids = config.rootfs.diff_ids.len();
    if diff_ids != layers {
        return Err(OciError::Layers { layers, diff_ids });
    }
    if layers > limits.layers {
        return Err(OciError::TooManyLayers(layers, limits.layers));
    }
    Ok(config)
}

/// Applies `inputs`, lowest first; those that come next are already being decompressed.
fn unpack(
    inputs: &[Input<'_>],
    tree: &mut Tree,
    writer: &mut ext4::Writer<SparseDisk>,
    options: &Options,
    progress: &dyn Progress,
) -> Result<(), ImportError> {
    let limits = &options.limits;
    let threads = thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8));
    thread::scope(|scope| {
        let mut started: VecDeque<Stream<'_>> = VecDeque::new();
        let mut waiting = inputs.iter().enumerate();
        let mut total = 0u64;
        for (index, input) in inputs.iter().enumerate() {
            let number = index + 1;
            while started.len() < threads {
                let Some((index, input)) = waiting.next() else {
                    break;
                };
                let reader = (input.open)().map_err(|source| ImportError::Blob {
                    number: index + 1,
                    layer: input.name.clone(),
                    source: BlobError::Read(source),
                })?;
                let blob = Blob {
                    reader,
                    digest: input.digest,
                    size: input.size,
                    compression: input.compression,
                    content: Some(input.content),
                };
                started.push_back(Stream::start(scope, blob, limits.layer_bytes, |bytes| {
                    progress.advance(bytes)
                }));
            }
            let Some(mut stream) = started.pop_front() else {
                break;
            };
            progress.phase(
                &Phase::Layer {
                    number,
                    count: inputs.len(),
                    digest: input.digest,
                },
                input.size,
            );
            let applied = layer::apply(&mut stream, number as u32, tree, writer.contents(), limits);
            let blob_failed = |source| ImportError::Blob {
                number,
                layer: input.name.clone(),
                source,
            };
            let unpacked = |source| ImportError::Layer {
                number,
                layer: input.name.clone(),
                source,
            };
            match applied {
                Ok(_) => {}
                // A damaged blob explains a damaged tar; nothing else needs the rest of the stream.
                Err(source @ LayerError::Tar(_)) => {
                    stream.finish().map_err(blob_failed)?;
                    return Err(unpacked(source));
                }
                Err(source) => return Err(unpacked(source)),
            }
            total = total.saturating_add(stream.finish().map_err(blob_failed)?);
            if total > limits.total_bytes {
                return Err(ImportError::TooLarge(limits.total_bytes));
            }
        }
        Ok(())
    })
}
