//! Why the port layer refused or failed.

use std::io;
use std::path::PathBuf;

use crate::container::StartFailure;
use crate::identity::{ContainerId, ContainerName, ExecId};

/// Why the port layer refused or failed. Wording that scripts look for is Docker's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No container has this name, id or prefix.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// Several containers' ids start so.
    #[error("Multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// No exec has this id.
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// The image is not there.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// The name is another container's.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{by}\". \
         You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken {
        /// The name.
        name: ContainerName,
        /// Whose it is.
        by: ContainerId,
    },
    /// What was asked makes no sense; says what and why.
    #[error("{0}")]
    Invalid(String),
    /// This cannot be done here; names it.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// The container is not in a state for it.
    #[error(transparent)]
    WrongState(#[from] WrongState),
    /// The VCH's limits leave no room.
    #[error(
        "not enough {resource} in this VCH: {wanted} wanted, {free} free of {limit}; stop a container, \
         or give this one less"
    )]
    NoRoom {
        /// `memory` or `CPUs`.
        resource: &'static str,
        /// What was wanted, with its unit.
        wanted: String,
        /// What is free.
        free: String,
        /// The limit.
        limit: String,
    },
    /// The main process could not be started. Nothing is left running.
    #[error("{}", failure.message)]
    Start {
        /// The container.
        id: ContainerId,
        /// Why.
        failure: StartFailure,
    },
    /// An exec's process could not be started.
    #[error("{message}")]
    ExecStart {
        /// The exec.
        id: ExecId,
        /// 126, 127, or another status for other reasons.
        status: u8,
        /// One sentence.
        message: String,
    },
    /// The image store refused or failed.
    #[error("image {image}")]
    Image {
        /// What was asked about.
        image: String,
        /// Why.
        source: Box<image::store::StoreError>,
    },
    /// The hypervisor refused or failed.
    #[error("container {id}: the hypervisor")]
    Hypervisor {
        /// The container.
        id: ContainerId,
        /// Why.
        source: Box<hypervisor::Error>,
    },
    /// The guest could not be reached, or refused.
    #[error("container {id}: its VM")]
    Guest {
        /// The container.
        id: ContainerId,
        /// Why.
        source: tether_link::LinkError,
    },
    /// A path in a container.
    #[error("{message}")]
    Path {
        /// Which way it is wrong.
        kind: PathProblem,
        /// One sentence with the path in it.
        message: String,
    },
    /// The state directory.
    #[error("cannot {operation} {}", path.display())]
    State {
        /// What was done: `create`, `read`, `write`, `remove`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The hypervisor, about no container in particular.
    #[error("the hypervisor cannot be used")]
    Driver(#[source] Box<hypervisor::Error>),
    /// The kernel gave no random bytes.
    #[error("cannot choose an identity")]
    Random(#[source] io::Error),
    /// The controller is going down; the containers run on.
    #[error("the controller is shutting down")]
    ShuttingDown,
}

/// A container that is not in a state for what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongState {
    /// It has to run, and does not.
    #[error("container {0} is not running")]
    NotRunning(ContainerId),
    /// The restart policy is about to start it again.
    #[error("Container {0} is restarting, wait until the container is running")]
    Restarting(ContainerId),
    /// It is paused.
    #[error("Container {0} is paused, unpause the container before exec")]
    Paused(ContainerId),
    /// It is paused already.
    #[error("Container {0} is already paused")]
    AlreadyPaused(ContainerId),
    /// It is not paused.
    #[error("Container {0} is not paused")]
    NotPaused(ContainerId),
    /// It cannot be removed while it runs.
    #[error(
        "cannot remove container \"/{name}\": container is {state}: stop the container before removing or force remove"
    )]
    Running {
        /// Its name.
        name: ContainerName,
        /// `running`, `paused` or `restarting`.
        state: &'static str,
    },
    /// It cannot be started while it is paused.
    #[error("cannot start a paused container, try unpause instead")]
    StartPaused,
    /// It runs already, or is off already: nothing was to be done.
    #[error("container {0} is in that state already")]
    NothingToDo(ContainerId),
    /// It is being removed.
    #[error("removal of container {0} is already in progress")]
    Removing(ContainerId),
    /// Somebody reads or writes its files, and it cannot be started or removed meanwhile.
    #[error("the files of container {0} are being read or written; try again when that is done")]
    FilesInUse(ContainerId),
    /// It goes away by itself and has no restart policy to be given.
    #[error("Restart policy cannot be updated because AutoRemove is enabled for the container")]
    AutoRemove,
    /// The exec was started before.
    #[error("Error: Exec command {0} has already run")]
    ExecStarted(ExecId),
    /// The exec's process does not run.
    #[error("Exec process {0} is not running")]
    ExecNotRunning(ExecId),
}

/// Which way a path in a container is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathProblem {
    /// There is none.
    NotFound,
    /// It is no directory and has to be.
    NotADirectory,
    /// A directory would replace something else, or the other way round.
    Conflict,
    /// It cannot be written.
    ReadOnly,
    /// The disk is full.
    NoSpace,
    /// The archive given is no archive.
    BadArchive,
    /// Anything else.
    Other,
}

impl Error {
    /// For `map_err` on what the hypervisor is asked about a container.
    pub(crate) fn hypervisor(id: ContainerId) -> impl FnOnce(hypervisor::Error) -> Error {
        move |source| Error::Hypervisor {
            id,
            source: Box::new(source),
        }
    }

    /// For `map_err` on what the hypervisor is asked about no container in particular.
    pub(crate) fn driver(source: hypervisor::Error) -> Error {
        Error::Driver(Box::new(source))
    }

    /// For `map_err` on the state directory.
    pub(crate) fn state(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::State {
            operation,
            path,
            source,
        }
    }
}
