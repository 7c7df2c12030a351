//! What a setup and the start of a process ask of a machine, done once with nothing of anybody's: a
//! fork that waits for its host to need it has time, and what is done for the first time takes
//! longest. An emulator translates code that it has not run before, and a processor copies the
//! pages that are the template's.
//!
//! What there is of it afterwards is what there was before: devices are found and let go, a root in
//! memory is mounted and unmounted, a process has said a word and ended.

use crate::container::Container;
use crate::failure::{Context, Result};
use crate::files;
use crate::fork;
use crate::prelude::*;
use crate::process;
use crate::root::{self, Root};
use crate::setup::Work;
use crate::sys::entry::REHEARSAL;
use tether_wire::guest::Ticket;

const DEVICES: &str = "/sys/bus/pci/devices";

impl Container {
    /// Goes through it.
    ///
    /// # Errors
    /// What failed, and why; then not all of it may have been undone.
    pub fn go_through_a_start(&mut self, ticket: Ticket) -> Result<()> {
        find_and_forget_devices()?;
        self.root = Some(Root::with_tether(REHEARSAL)?);
        let played = self.play(ticket);
        // It keeps its mounts busy.
        self.root = None;
        let unmounted = root::unmount_all();
        played.and(unmounted)
    }

    fn play(&mut self, ticket: Ticket) -> Result<()> {
        self.step(Work::Files { read_only: false })?;
        match &self.root {
            Some(root) => process::rehearse(ticket, root, &mut self.groups),
            None => Ok(()),
        }
    }
}

/// A device that was found keeps what its driver read of it; one found again is read again
/// (Documentation/ABI/testing/sysfs-bus-pci, `remove`).
fn find_and_forget_devices() -> Result<()> {
    let known = files::names(DEVICES).context(|| format!("reading {DEVICES}"))?;
    fork::find_devices()?;
    let found = files::names(DEVICES).context(|| format!("reading {DEVICES}"))?;
    for name in found.iter().filter(|name| !known.contains(name)) {
        let file = format!("{DEVICES}/{name}/remove");
        files::tell(file.as_str(), "1").context(|| format!("writing {file}"))?;
    }
    Ok(())
}
