//! Container images in, ext4 filesystems in VMDK disks out, and the store that keeps them.

#![forbid(unsafe_code)]

pub mod archive;
pub mod config;
pub mod digest;
pub mod disk;
pub mod ext4;
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
