//! The vSphere driver: containerVMs on vCenter and ESXi.
//!
//! From the wire up: [`soap`] is XML to values and back, [`types`] the typed subset of the API,
//! [`transport`] HTTP over TLS to one server, [`session`] a logged-in client, [`property`] the one
//! collector that everything is waited for with, [`task`] what a task came to. [`driver`] is the driver,
//! [`lifecycle`] how a VCH comes and goes.
//! [`concentrator`] is where machines' serial ports arrive; [`serial`] is what the driver wants of it.

#![forbid(unsafe_code)]

pub mod concentrator;
pub mod driver;
pub mod faults;
pub mod lifecycle;
pub mod property;
pub mod serial;
pub mod session;
pub mod soap;
pub mod task;
pub mod transport;
pub mod types;

pub use driver::{Options, PlaceNames, Vsphere};
