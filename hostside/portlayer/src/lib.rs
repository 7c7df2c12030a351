//! Containers over a hypervisor.
//!
//! The port layer creates, starts, watches, stops and removes containerVMs and keeps what they write. It
//! knows no Docker: the endpoint above translates. It knows no driver either: it holds an
//! `Arc<dyn Hypervisor>`.
//!
//! ```text
//!            start             booted, set up, started
//!  Created --------> Starting -------------------------> Running <---> Paused
//!     ^                 |  could not start                  |  pause/unpause
//!     |  (never ran)    v                                   | main process ended, output stored
//!     +----------- Created/Exited  <---- no policy ---------+
//!                       | start                             | restart policy
//!                       v                                   v
//!                    Starting  <------- pause over ---- Restarting
//!
//!  remove, from any state: Removing --> (nothing)
//! ```
//!
//! **The hypervisor is the truth.** A container *is* a machine: it exists from the moment the driver's
//! `create` returned until its `destroy` did. What it was made as, how it last ended and whether somebody
//! asked for it is written on the machine itself. [`PortLayer::open`] rebuilds everything from there,
//! connects to what runs, and goes on.
//!
//! **One task a container** owns its transitions, so two operations on one are ordered and those on
//! different ones never wait for each other. Looking (inspect, list, logs, statistics) asks no task.
//!
//! **Output is stored before the guest forgets it**: bytes are acknowledged when they are in the log file.
//!
//! What is not here: the Engine API, image formats (crate `image`), machines (crate `hypervisor`).

#![forbid(unsafe_code)]

mod admission;
mod attend;
mod bases;
mod boot;
mod cell;
mod command;
mod container;
mod error;
mod event;
mod exec;
mod execs;
mod files;
mod health;
mod helper;
mod hub;
mod identity;
mod images;
mod layer;
mod log;
mod machine;
pub mod names;
mod port_layer;
mod record;
mod restart;
pub mod spec;
mod stream;
mod task;
mod under_way;

pub use admission::Limits;
pub use command::Removal;
pub use container::{
    Container, Ended, Health, HealthResult, HealthStatus, Run, StartFailure, State,
};
pub use error::{Error, PathProblem, WrongState};
pub use event::{Action, Event, EventReader, Subject};
pub use exec::{Exec, ExecState};
pub use files::{ByteStream, Change, ChangeKind, ExtractOptions, PathStat};
pub use identity::{ContainerId, ContainerName, ExecId, InvalidName, NotAnIdentity, random_bytes};
pub use images::{ByteSource, Loaded};
pub use layer::image_of;
pub use log::{Follow, LogQuery, LogReader, LogRecord};
pub use machine::DefaultNetwork;
pub use port_layer::{Config, PortLayer, Usage, WaitFor};
pub use stream::{AttachedInput, AttachedOutput, Attachment, InputClosed, Output, Piece, Wanted};
pub use tether_wire::message::{ProcessInfo, Statistics};
pub use {
    hypervisor::{Applied, Boot, ChannelKind, Hardware, Hypervisor, PublishedPort, Start},
    image,
};
