//! Container images in, ext4 filesystems in VMDK disks out, and the store that keeps them.

#![forbid(unsafe_code)]

pub mod digest;
pub mod disk;
pub mod ext4;
pub mod tar;
pub mod tree;
pub mod vmdk;
