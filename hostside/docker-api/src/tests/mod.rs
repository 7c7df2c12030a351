//! The endpoint as a client sees it, on the in-process fake.

mod api;
mod streams;
pub(crate) mod world;
