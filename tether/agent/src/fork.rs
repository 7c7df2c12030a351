//! From a template's copy to a machine of its own.
//!
//! A template is tether on a channel that nobody has opened, with nothing mounted and no secret: its
//! key and its identity are zeros. A fork of it wakes up in the same instant, with another identity
//! in the firmware's hands. The first it hears of that is its host opening the channel, so that is
//! when [`Expectant::look`] looks, before the host's first byte is read. What follows with `Setup`
//! (clock, names, the host's own seed) is [`crate::identity`]'s, and still before any process.
//!
//! | what | from where | when |
//! |---|---|---|
//! | random generator | key and boot id, then the host's seed | before the greeting, `Setup` |
//! | channel key, boot id | fw_cfg | before the greeting |
//! | boot id and UUID as processes read them | files mounted over the kernel's | with root and main process |
//! | disks and vNICs | found on the bus by looking again | `Setup` |
//! | UUID and MAC addresses of one made ahead of need | its host | `Claim`, `Setup` |
//! | counters | counted from the fork on | always |

use crate::boot::{self, CGROUPS, Identity, Sources};
use crate::failure::{Context, Result};
use crate::files;
use crate::prelude::*;
use crate::root::{self, write_file};
use crate::statistics::Start;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pwrite;

/// The file mounted over /proc/sys/kernel/random/boot_id; `sys/spawn.rs` has its path.
const BOOT_ID: &str = "boot-id";
/// The file mounted over the SMBIOS UUID in /sys.
pub const PRODUCT_UUID: &str = "product-uuid";

/// A fork that has just been born.
pub struct NewMachine {
    /// Its channel's key.
    pub key: [u8; 32],
    /// Its own, where the kernel's is the template's.
    pub boot_id: [u8; 16],
    /// What it is not to count.
    pub start: Start,
}

/// What another machine's first moments need, open, so that there is little left to do in them: a path
/// that a template looks up, none of its forks has to.
pub struct Expectant {
    sources: Sources,
    random: OwnedFd,
    boot_id: OwnedFd,
    uuid: OwnedFd,
    /// A template's counters stand where its forks' begin.
    start: Start,
}

impl Expectant {
    /// Opens it, and counts from here.
    ///
    /// # Errors
    /// /run takes no file; there is no random generator.
    pub fn prepare() -> Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let random = open("/dev/urandom", flags, Mode::empty()).context(|| SEEDING)?;
        Ok(Self {
            sources: Sources::open(),
            random,
            boot_id: root::open_file(BOOT_ID)?,
            uuid: root::open_file(PRODUCT_UUID)?,
            start: Start::now(),
        })
    }

    /// Whether this is another machine by now; if it is, with a random generator and names of its own.
    ///
    /// # Errors
    /// The firmware holds no key; the generator takes no seed; /run is full.
    pub fn look(&self) -> Result<Option<NewMachine>> {
        let Some(Identity::Own { boot_id, uuid }) = self.sources.identity()? else {
            return Ok(None);
        };
        let key = self.sources.key()?;
        self.reseed(&key, &boot_id)?;
        self.write_names(&boot_id, &uuid)?;
        Ok(Some(NewMachine {
            key,
            boot_id,
            start: self.start,
        }))
    }

    /// All names are of one length, so that one takes another's place.
    ///
    /// # Errors
    /// /run is full.
    pub fn write_names(&self, boot_id: &[u8; 16], uuid: &[u8; 16]) -> Result<()> {
        for (file, id) in [(&self.boot_id, boot_id), (&self.uuid, uuid)] {
            pwrite(file, uuid_text(id).as_bytes(), 0).context(|| "writing down an identity")?;
        }
        Ok(())
    }

    /// The key is secret and the boot id was never used before: what is drawn from here on, the
    /// handshake's nonce first, is shared with no other fork, nor with an earlier life of this one.
    fn reseed(&self, key: &[u8; 32], boot_id: &[u8; 16]) -> Result<()> {
        let mut seed = *key;
        for (byte, other) in seed.iter_mut().zip(boot_id) {
            *byte ^= other;
        }
        sys::seed_generator(self.random.as_fd(), &seed).context(|| SEEDING)
    }
}

const SEEDING: &str = "seeding the random generator of a fork";

/// Writes down, in a machine that boots, what a child of it would have of its own: its processes see
/// these files from the start.
///
/// # Errors
/// /run takes no file.
pub fn keep_names() -> Result<()> {
    if let Some(Identity::Own { uuid, .. }) = Identity::read()? {
        write_file(BOOT_ID, &uuid_text(&boot::boot_id()))?;
        write_file(PRODUCT_UUID, &uuid_text(&uuid))?;
    }
    Ok(())
}

/// Writes down the UUID of the machine that a fork has become.
///
/// # Errors
/// /run takes no file.
pub fn keep_uuid(uuid: &[u8; 16]) -> Result<()> {
    write_file(PRODUCT_UUID, &uuid_text(uuid))
}

/// Control groups that take up what the kernel's first chunk of memory for each processor has left.
const GROUPS: u32 = 24;

/// Makes in the template what the kernel would otherwise make once in every fork: the next chunk of
/// memory for each processor, which clears 4 MiB for its accounting (mm/percpu-vm.c). The control
/// groups that bring it about stay, for taking them down again would be the forks' work.
///
/// # Errors
/// What `mkdir(2)` says.
pub fn leave_room() -> Result<()> {
    for number in 0..GROUPS {
        let group = format!("{CGROUPS}/template-{number}");
        files::make_directory(&group).context(|| format!("making {group}"))?;
    }
    Ok(())
}

/// Finds the disks and vNICs that the template did not have: they are on the bus from the start, and
/// no hot plug tells of them. When this returns their drivers have them
/// (Documentation/ABI/testing/sysfs-bus-pci).
///
/// # Errors
/// What writing to /sys says.
pub fn find_devices() -> Result<()> {
    let file = "/sys/bus/pci/rescan";
    files::tell(file, "1").context(|| format!("writing {file}"))
}

/// As the kernel writes a UUID, with the end of line it writes in /proc and /sys.
fn uuid_text(id: &[u8; 16]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(37);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_the_kernel_writes_it() {
        let id = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        assert_eq!(uuid_text(&id), "00112233-4455-6677-8899-aabbccddeeff\n");
    }
}
