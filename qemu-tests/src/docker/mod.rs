//! The stock `docker` command line, and the `vch serve` that it drives.

mod engine;
mod request;

pub use engine::{Docker, Driver};
