//! The QEMU driver: machines as `qemu-system-x86_64` processes.
//!
//! It owns the command line ([`argv`]), the control protocol ([`qmp`]), the
//! processes and the directories they live in. A machine's QEMU outlives its
//! controller; a new controller finds it, knows what it missed, and goes on.
//!
//! ```text
//!            create            power_on: record says Started, then spawn
//!  nothing ---------> Off  ---------------------------> Running
//!                      ^   finish: record says Off(cause),  |
//!                      |   then `quit`, then the event      |
//!                      +------------------------------------+
//! ```
//!
//! The record is written before what it announces, so that after a kill at
//! any instant the next controller knows: Started without a process means it
//! died (its log says of what); Off with a process means end it.
//!
//! A guest that powers off, resets or panics does not take its QEMU along:
//! QEMU pauses (`-action`), the cause and the last console lines are read,
//! and QEMU is told to quit. Without a controller it waits for the next one.

#![deny(unsafe_code)]

mod accel;
pub mod argv;
mod channel;
mod console;
mod directory;
mod driver;
mod log;
mod machine;
mod process;
pub mod qmp;
mod rehearsal;
mod spare;
mod start;
mod statistics;
mod sys;
mod template;
mod tsc;
mod vsock;

pub use accel::{Acceleration, Accelerator, AcceleratorChoice, NoKvm, Probe};
pub use driver::{Options, Qemu};
pub use rehearsal::{Rehearsal, Rehearsed};
pub use spare::SpareLimits;
pub use template::{FileIdentity, Inputs, TemplateRecord, TemplateStatus, Templates};
pub use vsock::VsockCarrier;
