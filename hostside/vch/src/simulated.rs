//! The in-process fake as a driver: what its disks hold at first is what the store says of their images.

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use hypervisor::fake::{Fake, Host, ImageFile};
use image::files::Records;
use image::store::Store;
use tether_wire::files::Shape;

/// A host of its own, gone with this process.
pub fn driver(store: Store) -> Fake {
    Host::with_images(Arc::new(move |disk| files(&store, disk))).open()
}

/// The files of the image that this disk is a child of. The store keeps no contents of files.
fn files(store: &Store, disk: &Path) -> Option<Vec<ImageFile>> {
    let image = portlayer::image_of(disk)?;
    let list = BufReader::new(store.files(&image).ok()?);
    let mut records = Records::new(list, Shape::Listing);
    let mut files = Vec::new();
    while let Ok(Some(entry)) = records.entry() {
        files.push(ImageFile {
            entry,
            content: None,
        });
    }
    Some(files)
}
