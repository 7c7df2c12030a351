//! What happens to containers and images, in order, told to whoever listens and kept for a while.

mod journal;

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use self::journal::EventReader;
pub(crate) use self::journal::Journal;
use crate::container::HealthStatus;
use crate::identity::{ContainerId, ExecId};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When. Strictly later than the event before it.
    pub time: SystemTime,
    /// To what.
    pub subject: Subject,
    /// What.
    pub action: Action,
}

/// What something happened to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A container.
    Container {
        /// Its identity.
        id: ContainerId,
        /// Its name then.
        name: String,
        /// Its image as the user called it.
        image: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// An image.
    Image {
        /// Its id (`sha256:...`).
        id: String,
        /// The name it happened to; the id if none.
        name: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
}

/// What happened; each is the Engine API's event of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// A container was made.
    Create,
    /// Its main process runs.
    Start,
    /// Its main process ended.
    Die {
        /// The status as a shell reports it.
        status: u8,
        /// How long it ran, in whole seconds.
        seconds: u64,
    },
    /// A stop that was asked for is complete.
    Stop,
    /// A signal was sent.
    Kill {
        /// Which.
        signal: u8,
    },
    /// A restart that was asked for is complete.
    Restart,
    /// Its VM was paused.
    Pause,
    /// Its VM goes on.
    Unpause,
    /// Memory ran out.
    OutOfMemory,
    /// It has another name.
    Rename {
        /// The former one.
        from: String,
    },
    /// Its limits or restart policy were changed.
    Update,
    /// It is gone.
    Destroy,
    /// Somebody attached.
    Attach,
    /// Somebody left by the detach keys.
    Detach,
    /// Its terminal changed its size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters a line.
        columns: u16,
    },
    /// Its processes were listed.
    Top,
    /// An exec was made.
    ExecCreate {
        /// Which.
        exec: ExecId,
        /// Program and arguments, separated by spaces.
        command: String,
    },
    /// An exec's process runs.
    ExecStart {
        /// Which.
        exec: ExecId,
        /// Program and arguments, separated by spaces.
        command: String,
    },
    /// Somebody left an exec by the detach keys.
    ExecDetach {
        /// Which.
        exec: ExecId,
    },
    /// An exec's process ended.
    ExecDie {
        /// Which.
        exec: ExecId,
        /// The status as a shell reports it.
        status: u8,
    },
    /// The health check says something new.
    HealthStatus {
        /// What.
        status: HealthStatus,
    },
    /// Files were copied out.
    ArchivePath,
    /// Files were copied in.
    ExtractToDir,
    /// Its file system was read whole.
    Export,
    /// An image was made of it.
    Commit,
    /// An image was loaded.
    Load,
    /// An image was made of a file system.
    Import,
    /// An image got a name.
    Tag,
    /// An image lost a name.
    Untag,
    /// An image is gone.
    Delete,
}
