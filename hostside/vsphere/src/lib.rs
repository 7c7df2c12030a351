//! The vSphere driver: containerVMs on vCenter and ESXi.
//!
//! [`concentrator`] is where machines' serial ports arrive.

#![forbid(unsafe_code)]

pub mod concentrator;
