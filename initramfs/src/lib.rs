//! The boot image: what a containerVM starts from.
#![forbid(unsafe_code)]

mod content;
mod date;
mod elf;
mod error;
pub mod fat;
pub mod iso;
mod isolinux;
pub mod newc;

pub use content::Content;
pub use date::Date;
pub use elf::check_static;
pub use error::Error;
pub use isolinux::{CommandLine, Isolinux};
