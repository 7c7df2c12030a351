//! The events this driver acts on.

use serde_json::Value;

/// An event. Those a guest can cause without bound (`RTC_CHANGE`,
/// `BLOCK_IO_ERROR`, ...) are not here: nothing acts on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest powered off or reset, or QEMU was told to end.
    Shutdown {
        /// QEMU's `ShutdownCause`.
        reason: String,
    },
    /// The guest's kernel panicked.
    GuestPanicked,
    /// Virtual CPUs stopped.
    Stop,
    /// Virtual CPUs run again.
    Resume,
    /// The state coming in or going out has come this far (`MigrationStatus`
    /// of `qapi/migration.json`). Only where the capability `events` is set.
    Migration {
        /// QEMU's word.
        status: String,
    },
    /// The guest let go of a device.
    DeviceDeleted {
        /// The device's id; empty for a part of one.
        device: String,
    },
}

impl Event {
    /// The event of this name and data, if it is one of these.
    pub(super) fn parse(name: &str, data: Option<&Value>) -> Option<Self> {
        let text = |key: &str| {
            let text = data
                .and_then(|d| d.get(key))
                .and_then(Value::as_str)
                .unwrap_or_default();
            text.chars().take(200).collect::<String>()
        };
        match name {
            "SHUTDOWN" => Some(Self::Shutdown {
                reason: text("reason"),
            }),
            "GUEST_PANICKED" => Some(Self::GuestPanicked),
            "STOP" => Some(Self::Stop),
            "RESUME" => Some(Self::Resume),
            "MIGRATION" => Some(Self::Migration {
                status: text("status"),
            }),
            "DEVICE_DELETED" => Some(Self::DeviceDeleted {
                device: text("device"),
            }),
            _ => None,
        }
    }
}
