//! The Docker Engine API over the port layer.
//!
//! ```text
//! listeners (serve/) ──> Endpoint (router) ──> handlers ──> PortLayer
//!   Unix, TLS, TCP        version, headers,     containers/  images/  system/
//!                         metrics               exec, events, networks
//! ```
//!
//! A handler reads a request (query, JSON of bounded size, or a stream), maps it to the port layer's types
//! and what that answers back to the API's. All mapping is in plain functions with tables for tests. The
//! API is that of Engine 27: versions 1.24 to 1.47.
//!
//! What is the endpoint's own is what Docker has a word for and a VM has not: configurations as clients
//! wrote them, written down with the container and given back word by word.
//!
//! Changes run to their end even when the client goes away; reading ends with the client. A slow client
//! slows only itself. When the endpoint ends, streams end and containers run on.

#![forbid(unsafe_code)]
// `/info` is one long JSON object.
#![recursion_limit = "256"]

mod body;
mod containers;
mod detach_keys;
mod engine;
mod errors;
mod events;
mod exec;
mod file_mode;
mod filters;
mod hijack;
mod images;
mod json;
mod metrics;
mod multiplex;
mod networks;
mod query;
mod router;
pub mod serve;
pub mod signals;
mod system;
#[cfg(test)]
mod tests;
mod time;
pub mod ulimits;
mod unsupported;
mod version;

pub use engine::Vch;
pub use serve::serve;
