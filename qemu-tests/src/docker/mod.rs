//! The stock `docker` command line, and the `vch serve` that it drives.

mod engine;
mod request;
mod simulator;

pub use engine::{Docker, Driver};
