//! Images: what the store has, and what is told of its changes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image::archive;
use image::digest::Digest;
use image::import::Options;
use image::progress::Silent;
use image::reference::Name;
use image::store::{ImageRecord, Removal, Removed, Store};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::event::{Action, Subject};
use crate::identity::ContainerId;
use crate::layer::{Layer, image_error};
use crate::port_layer::PortLayer;

/// Bytes that come in: pieces, then the end; an error ends them early.
pub type ByteSource = mpsc::Receiver<io::Result<Bytes>>;

/// An image that an archive brought in.
#[derive(Debug)]
pub struct Loaded {
    /// What the store has of it now.
    pub record: ImageRecord,
    /// The names that the archive gives it; `record` has these and those it had before.
    pub names: Vec<Name>,
}

impl PortLayer {
    /// All images.
    ///
    /// # Errors
    /// The store's.
    pub fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let listed = self.layer.images.list();
        listed.map_err(|source| image_error("list".to_owned(), source))
    }

    /// The image called so: by name, id, or a prefix of one id.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], or the store's.
    pub fn image(&self, text: &str) -> Result<ImageRecord, Error> {
        let found = self.layer.images.inspect(text);
        found.map_err(|source| image_error(text.to_owned(), source))
    }

    /// Brings in the images of an archive, `docker save`'s or an OCI layout's, possibly compressed.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is no archive of images, [`Error::Image`].
    pub async fn load(&self, archive: ByteSource) -> Result<Vec<Loaded>, Error> {
        let scratch = Scratch::of(&self.layer)?;
        scratch.fill(archive).await?;
        let store = self.layer.images.clone();
        let loaded = self
            .layer
            .under_way
            .blocking(move || load(&store, &scratch))
            .await?;
        for Loaded { record, .. } in &loaded {
            self.tell_image(
                record.id,
                name_of(record),
                &record.config.config.labels,
                Action::Load,
            );
        }
        Ok(loaded)
    }

    /// Gives an image one more name; one that another image has goes over to it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], or the store's.
    pub fn tag(&self, image: &str, name: &Name) -> Result<(), Error> {
        let record = self.image(image)?;
        let tagged = self.layer.images.tag(image, name);
        tagged.map_err(|source| image_error(image.to_owned(), source))?;
        let labels = &record.config.config.labels;
        self.tell_image(record.id, name.to_string(), labels, Action::Tag);
        Ok(())
    }

    /// Takes a name away, and the image with its last one.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`]; the store's, when containers use it.
    pub fn remove_image(&self, text: &str, how: Removal) -> Result<Removed, Error> {
        let record = self.image(text)?;
        let removed = self.layer.images.remove(text, how);
        let removed = removed.map_err(|source| image_error(text.to_owned(), source))?;
        let labels = &record.config.config.labels;
        for name in &removed.untagged {
            self.tell_image(record.id, name.to_string(), labels, Action::Untag);
        }
        if let Some(id) = removed.deleted {
            self.tell_image(id, id.to_string(), labels, Action::Delete);
        }
        Ok(removed)
    }

    /// Containers made of an image.
    pub fn image_users(&self, id: &Digest) -> Vec<ContainerId> {
        let cells = self.layer.cells();
        let using = cells
            .iter()
            .filter(|cell| cell.view.borrow().container.spec.image.id == *id);
        using.map(|cell| cell.id).collect()
    }

    pub(crate) fn tell_image(
        &self,
        id: Digest,
        name: String,
        labels: &BTreeMap<String, String>,
        action: Action,
    ) {
        let subject = Subject::Image {
            id: id.to_string(),
            name,
            labels: labels.clone(),
        };
        self.layer.emit(subject, action);
    }
}

/// Its first name, or its id.
pub(crate) fn name_of(record: &ImageRecord) -> String {
    match record.names.first() {
        Some(name) => name.to_string(),
        None => record.id.to_string(),
    }
}

fn load(store: &Store, scratch: &Scratch) -> Result<Vec<Loaded>, Error> {
    let options = Options::default();
    let listed = archive::images(
        &scratch.path,
        scratch.directory(),
        options.limits.total_bytes,
        &Silent,
    );
    let listed = listed.map_err(|error| Error::Invalid(crate::boot::chain(&error)))?;
    if listed.is_empty() {
        return Err(Error::Invalid("the archive holds no image".to_owned()));
    }
    let mut loaded = Vec::new();
    for image in listed {
        let of_image = |source| Error::Image {
            image: image
                .names
                .first()
                .map_or_else(String::new, Name::to_string),
            source: Box::new(source),
        };
        let imported = store.import(&image.source, image.names.first(), &options, &Silent);
        let id = imported.map_err(of_image)?.id.to_string();
        for name in image.names.iter().skip(1) {
            store.tag(&id, name).map_err(of_image)?;
        }
        loaded.push(Loaded {
            record: store.inspect(&id).map_err(of_image)?,
            names: image.names,
        });
    }
    Ok(loaded)
}

/// A file for what comes in, gone with this value.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn of(layer: &Layer) -> Result<Self, Error> {
        let id = ContainerId::random().map_err(Error::Random)?;
        let path = layer.scratch.join(id.short());
        Ok(Self { path })
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Writes what comes to the file.
    pub async fn fill(&self, mut source: ByteSource) -> Result<(), Error> {
        let failed = |error| Error::state("write", &self.path)(error);
        let mut file = tokio::fs::File::create(&self.path).await.map_err(failed)?;
        while let Some(piece) = source.recv().await {
            let piece =
                piece.map_err(|error| Error::Invalid(format!("the upload broke off: {error}")))?;
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed when the port layer is opened again.
        let _ = fs::remove_file(&self.path);
    }
}
