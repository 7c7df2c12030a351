//! Control groups: one for the container, below it one for each process of the wire, so that what
//! the OOM killer took can be told from whom.
//!
//! Groups are used again. A memory group that is removed lives on in the kernel as long as one page
//! of cache is charged to it, which ten thousand short processes would turn into a leak.

use crate::boot::CGROUPS;
use crate::failure::{Context, Result};
use crate::files;
use crate::prelude::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};

/// One process's group, while it runs.
pub struct Group {
    number: u32,
    directory: OwnedFd,
    kills_before: u64,
    kills_told: u64,
}

impl Group {
    /// Its directory, for `CLONE_INTO_CGROUP`.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// How many the OOM killer killed in it since this was last asked.
    pub fn new_kills(&mut self) -> u64 {
        let now = kills(&path_of(self.number));
        let new = now.saturating_sub(self.kills_told);
        self.kills_told = now;
        new
    }

    /// Whether the OOM killer killed anything in it since it was taken, as last asked.
    pub fn was_out_of_memory(&self) -> bool {
        self.kills_told > self.kills_before
    }

    fn is_populated(&self) -> bool {
        let events = format!("{}/cgroup.events", path_of(self.number));
        field(&files::text(events), "populated") != Some(0)
    }
}

/// The container's group and those below it.
pub struct Groups {
    events: OwnedFd,
    state: OwnedFd,
    kills: u64,
    free: Vec<Group>,
    // Their process ended, and left others behind.
    lingering: Vec<Group>,
    made: u32,
}

/// The container's group.
pub const CONTAINER: &str = "/sys/fs/cgroup/container";

fn path_of(number: u32) -> String {
    format!("{CONTAINER}/{number}")
}

impl Groups {
    /// Makes the container's group and switches on what is measured.
    ///
    /// # Errors
    /// Which file, and why.
    pub fn new() -> Result<Self> {
        files::make_directory(CONTAINER).context(|| format!("making {CONTAINER}"))?;
        for group in [CGROUPS, CONTAINER] {
            // One at a time: a kernel without one of them still has the others.
            for controller in ["+cpu", "+memory", "+pids", "+io"] {
                let _ = files::tell(format!("{group}/cgroup.subtree_control"), controller);
            }
        }
        let path = format!("{CONTAINER}/memory.events");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events =
            open(path.as_str(), flags, Mode::empty()).context(|| format!("opening {path}"))?;
        let path = format!("{CONTAINER}/cgroup.events");
        let state =
            open(path.as_str(), flags, Mode::empty()).context(|| format!("opening {path}"))?;
        Ok(Self {
            events,
            state,
            kills: 0,
            free: Vec::new(),
            lingering: Vec::new(),
            made: 0,
        })
    }

    /// `memory.events` of the container: `EPOLLPRI` when a count rises.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Reads the count of kills anew, which also ends the event. Whether it rose.
    pub fn kills_rose(&mut self) -> bool {
        let mut buffer = [0; 512];
        let length = rustix::io::pread(&self.events, &mut buffer, 0).unwrap_or(0);
        let text = core::str::from_utf8(&buffer[..length]).unwrap_or_default();
        let now = field(text, "oom_kill").unwrap_or(0);
        let rose = now > self.kills;
        self.kills = now;
        rose
    }

    /// OOM kills in the container since boot, as last read.
    pub fn kills(&self) -> u64 {
        self.kills
    }

    /// An empty group.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn take(&mut self) -> Result<Group> {
        let (busy, empty) = core::mem::take(&mut self.lingering)
            .into_iter()
            .partition(Group::is_populated);
        self.lingering = busy;
        self.free.extend::<Vec<_>>(empty);
        if let Some(mut group) = self.free.pop() {
            group.kills_before = kills(&path_of(group.number));
            group.kills_told = group.kills_before;
            return Ok(group);
        }
        let path = path_of(self.made);
        files::make_directory(path.as_str()).context(|| format!("making {path}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            open(path.as_str(), flags, Mode::empty()).context(|| format!("opening {path}"))?;
        let number = self.made;
        self.made += 1;
        Ok(Group {
            number,
            directory,
            kills_before: 0,
            kills_told: 0,
        })
    }

    /// Takes a group back once its process has ended.
    pub fn give_back(&mut self, group: Group) {
        self.lingering.push(group);
    }

    /// `cgroup.events` of the container: `EPOLLPRI` when it has become frozen, or thawed.
    pub fn state(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }

    /// Stops everything in the container where it is, or lets it go on. [`Groups::state`] tells when
    /// the last one stands.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub fn freeze(frozen: bool) -> Result<()> {
        let path = format!("{CONTAINER}/cgroup.freeze");
        let word = if frozen { "1" } else { "0" };
        files::tell(path.as_str(), word).context(|| format!("writing {word} to {path}"))
    }

    /// Whether everything in the container stands still.
    pub fn is_frozen(&self) -> bool {
        let mut buffer = [0; 256];
        let length = rustix::io::pread(&self.state, &mut buffer, 0).unwrap_or(0);
        let text = core::str::from_utf8(&buffer[..length]).unwrap_or_default();
        field(text, "frozen") == Some(1)
    }

    /// SIGKILL to everything in the container.
    pub fn kill_all(&self) {
        let _ = files::tell(format!("{CONTAINER}/cgroup.kill"), "1");
    }

    /// Whether anything is left in the container.
    pub fn is_populated(&self) -> bool {
        let events = files::text(format!("{CONTAINER}/cgroup.events"));
        field(&events, "populated") == Some(1)
    }
}

fn kills(group: &str) -> u64 {
    field(&files::text(format!("{group}/memory.events")), "oom_kill").unwrap_or(0)
}

/// A number from a flat keyed file (`Documentation/admin-guide/cgroup-v2.rst`).
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n";
        assert_eq!(field(text, "oom"), Some(3));
        assert_eq!(field(text, "oom_kill"), Some(4));
        assert_eq!(field(text, "kill"), None);
        assert_eq!(field("populated 1\nfrozen 0\n", "populated"), Some(1));
        assert_eq!(field("populated x\n", "populated"), None);
    }
}
