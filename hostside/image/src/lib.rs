//! Container images in, ext4 filesystems in VMDK disks out, and the store that keeps them.
//!
//! An import is one pass: a layer's blob is read, hashed and decompressed on a thread of its own
//! ([`stream`]); its tar entries ([`tar`]) are applied to a metadata tree ([`tree`]) by the rules of
//! layers ([`layer`]) while file contents go straight to their blocks on the disk; what the tree says is
//! written behind them as an ext4 filesystem ([`ext4`]) in a sparse VMDK ([`vmdk`]). Nothing is mounted,
//! nothing needs a privilege, and nothing that came from outside is trusted: digests are checked as the
//! bytes pass, and [`layer::Limits`] bounds what they can cost.
//!
//! Where an image comes from is a [`reference::Source`], found and checked by [`oci`], [`archive`] and
//! [`rootfs`]; [`import`] puts the parts together; [`store`] keeps the results. All calls block.
//!
//! ```no_run
//! use std::path::Path;
//! use image::{import::Options, progress::Silent, reference::Source, store::Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open(Path::new("images"))?;
//! let source: Source = "oci:busybox".parse()?;
//! let image = store.import(&source, Some(&"sample/busybox".parse()?), &Options::default(), &Silent)?;
//! store.child(&image.id, "container-1", Path::new("container-1.vmdk"))?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod archive;
pub mod config;
pub mod digest;
pub mod disk;
pub mod ext4;
pub mod files;
pub mod import;
pub mod layer;
pub mod oci;
pub mod progress;
pub mod reference;
pub mod rootfs;
pub mod store;
pub mod stream;
pub mod tar;
pub mod tree;
pub mod vmdk;
