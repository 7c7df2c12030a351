//! Templates: machines frozen at "tether ready", from which others are forked.
//!
//! ```text
//! TEMPLATES/ID/            one template, whole
//!     template.json        what it was made from, and what its files are
//!     ram                  the guest's memory; every fork maps it privately
//!     state                everything else of the guest, as QEMU migrates it
//!     kernel               the head of its kernel
//! TEMPLATES/.new-ID/       being made
//! TEMPLATES/.gone-ID/      being removed
//! TEMPLATES/ID.lock        whole: by its maker and its remover; shared: while a fork starts
//! ```
//!
//! The directory is on a tmpfs, so templates are as lasting as the host's boot. `ID` is the hash of
//! everything a template is made from ([`record::Inputs`]), so what was made from something else is
//! never found. Who makes one holds its lock, and others wait; its QEMU dies with its maker, and what
//! a killed maker left is removed by the next.
//!
//! A fork's QEMU inherits the files open, so that a template can be removed at any time; its memory
//! is given back with its last fork.

mod make;
mod record;

pub(crate) use make::{arrived, kernel_head, prepare};
pub use record::{FileIdentity, Inputs, TemplateRecord};

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypervisor::{Boot, Cause, ChannelKind, Hardware, MachineId, MachineSpec, TemplateId};

use crate::argv::Birth;
use crate::driver::Options;
use crate::tsc::Measurement;

/// Most templates of one VCH. Making another removes the one longest unused.
const KEEP: usize = 8;
/// Free space that is left to others, in bytes.
const SPARE: u64 = 16 << 20;
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
const LOCK: &str = ".lock";

/// The templates of one VCH.
#[derive(Debug, Clone)]
pub struct Templates {
    directory: PathBuf,
}

/// A template that is there while this lives.
#[derive(Debug)]
pub struct Template {
    /// What it is.
    pub record: TemplateRecord,
    /// Whether it was made for who asked.
    pub made: bool,
    ram: File,
    state: File,
    kernel: File,
    /// Shared.
    _lock: File,
}

impl Template {
    /// What a fork's QEMU inherits.
    pub(crate) fn files(&self) -> [BorrowedFd<'_>; 3] {
        [self.ram.as_fd(), self.state.as_fd(), self.kernel.as_fd()]
    }

    /// Makes it as it was opened, for another fork once the one before has its state: their QEMUs share the
    /// place up to which it is read.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`].
    pub(crate) fn rewind(&self) -> Result<(), Cause> {
        use std::io::Seek as _;
        (&self.state)
            .rewind()
            .map_err(|source| Cause::because("cannot read a template's state again", source))
    }

    /// Where QEMU reads the state.
    pub(crate) fn state_uri(&self) -> String {
        format!("fd:{}", self.state.as_raw_fd())
    }

    /// Another fork; `spare` if it is to wait for its machine.
    ///
    /// # Errors
    ///
    /// [`Cause::Hypervisor`], when the host's random source fails.
    pub(crate) fn birth(&self, spare: bool) -> Result<Birth, Cause> {
        let boot_id = MachineId::random()
            .map_err(|source| Cause::because("the host has no random bytes", source))?;
        Ok(Birth::Fork {
            ram_fd: self.ram.as_raw_fd(),
            kernel_fd: self.kernel.as_raw_fd(),
            boot_id,
            spare,
        })
    }
}

/// One template in a listing.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TemplateStatus {
    /// What it is.
    #[serde(flatten)]
    pub record: TemplateRecord,
    /// When it was last forked, or made.
    pub used: SystemTime,
    /// Memory of the host it holds, in bytes.
    pub held: u64,
}

impl Templates {
    /// The templates in this directory, which is made when it is missing and has to be on a tmpfs.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; [`Cause::Unsupported`] on another file system.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, Cause> {
        let directory = directory.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(at("cannot make directory", &directory))?;
        // linux/magic.h, TMPFS_MAGIC.
        const TMPFS: u64 = 0x0102_1994;
        let found = rustix::fs::statfs(&directory)
            .map_err(|errno| at("cannot look at", &directory)(errno.into()))?;
        if found.f_type as u64 != TMPFS {
            return Err(unsupported(format!(
                "templates live in memory, and {} is not on a tmpfs",
                directory.display()
            )));
        }
        Ok(Self { directory })
    }

    /// Those that a driver was given a place for.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; [`Cause::Unsupported`] for a driver without one.
    pub(crate) fn of(options: &Options) -> Result<Self, Cause> {
        match &options.templates {
            Some(directory) => Self::open(directory),
            None => Err(unsupported("it has no place for templates".to_owned())),
        }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The template for machines like this one, made if there is none, and held.
    ///
    /// # Errors
    ///
    /// [`Cause::Unsupported`]: a machine like this is not forked. Anything else that keeps a template
    /// from being made.
    pub(crate) async fn obtain(
        &self,
        spec: &MachineSpec,
        options: &Options,
        tsc: Measurement,
    ) -> Result<Template, Cause> {
        let model = model(spec)?;
        let inputs = Inputs::of(&model, options)?;
        let id = inputs.id();
        let mut made = false;
        loop {
            let held = self.lock(&id, Lock::Shared).await?;
            match self.whole(&id, held, made) {
                Ok(template) => return Ok(template),
                Err(Unusable::Absent) => {}
                Err(Unusable::Corrupt(why)) if made => return Err(why),
                Err(Unusable::Corrupt(why)) => {
                    tracing::warn!(template = %id, %why, "a template is made anew");
                }
            }
            let lock = self.lock(&id, Lock::Whole).await?;
            // Another may have made it meanwhile.
            let again = lock.try_clone().map_err(at("cannot lock", &self.directory));
            if self.whole(&id, again?, made).is_err() {
                self.clear(&id)?;
                self.make_room(&model)?;
                self.make(&id, &inputs, &model, options, tsc).await?;
                made = true;
                self.drop_oldest(&id);
            }
            drop(lock);
        }
    }

    /// [`Self::obtain`] for who is to use it later: a `power_on`, or `vch template build`.
    ///
    /// # Errors
    ///
    /// As a power on of the machine would say why it boots instead.
    pub async fn make_ready(
        &self,
        spec: &MachineSpec,
        options: &Options,
    ) -> Result<TemplateRecord, Cause> {
        let template = self.obtain(spec, options, Measurement::begin()).await?;
        Ok(template.record.clone())
    }

    /// Removes a template that is no good: the next who wants it makes it anew.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; [`Cause::NotFound`].
    pub async fn remove(&self, id: &TemplateId) -> Result<(), Cause> {
        if !is_id(&id.0) || !self.home(id).exists() {
            return Err(Cause::NotFound { what: "template" });
        }
        let _lock = self.lock(id, Lock::Whole).await?;
        self.clear(id)?;
        let _ = fs::remove_file(self.lock_file(id));
        Ok(())
    }

    /// All of them, the one last used first. One that is not whole is not listed.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn list(&self) -> Result<Vec<TemplateStatus>, Cause> {
        let mut all = Vec::new();
        let listing = fs::read_dir(&self.directory).map_err(at("cannot list", &self.directory))?;
        for entry in listing {
            let entry = entry.map_err(at("cannot list", &self.directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_id(&name) {
                continue;
            }
            let Ok(record) = TemplateRecord::read(&entry.path()) else {
                continue;
            };
            let used = fs::metadata(self.lock_file(&TemplateId(name)))
                .and_then(|lock| lock.modified())
                .unwrap_or(record.created);
            let held = ["ram", "state", "kernel"]
                .iter()
                .filter_map(|file| fs::metadata(entry.path().join(file)).ok())
                .map(|metadata| metadata.blocks() * 512)
                .sum();
            all.push(TemplateStatus { record, used, held });
        }
        all.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(all)
    }

    fn home(&self, id: &TemplateId) -> PathBuf {
        self.directory.join(&id.0)
    }

    fn lock_file(&self, id: &TemplateId) -> PathBuf {
        self.directory.join(format!("{id}{LOCK}"))
    }

    /// Waits for a lock. Dropping what comes back gives it up.
    async fn lock(&self, id: &TemplateId, lock: Lock) -> Result<File, Cause> {
        let path = self.lock_file(id);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(at("cannot open", &path))?;
            let file = tokio::task::spawn_blocking(move || {
                match lock {
                    Lock::Shared => file.lock_shared(),
                    Lock::Whole => file.lock(),
                }
                .map(|()| file)
            })
            .await
            .map_err(|error| Cause::because("the driver failed", error))?
            .map_err(at("cannot lock", &path))?;
            // Who removed the template removed its lock with it: then this is a lock of nothing.
            if is_file_at(&file, &path) {
                return Ok(file);
            }
        }
    }

    /// Opens a template that is all that its record says.
    fn whole(&self, id: &TemplateId, lock: File, made: bool) -> Result<Template, Unusable> {
        let home = self.home(id);
        if !home.exists() {
            return Err(Unusable::Absent);
        }
        let record = TemplateRecord::read(&home).map_err(Unusable::Corrupt)?;
        let [ram, state, kernel] = record.open_files(&home, id).map_err(Unusable::Corrupt)?;
        // Which templates go first is told by it; a wrong order harms nobody.
        let _ = lock.set_modified(SystemTime::now());
        Ok(Template {
            record,
            made,
            ram,
            state,
            kernel,
            _lock: lock,
        })
    }

    /// Removes what there is of a template, whole or not.
    fn clear(&self, id: &TemplateId) -> Result<(), Cause> {
        let gone = self.directory.join(format!("{GONE}{id}"));
        let new = self.directory.join(format!("{NEW}{id}"));
        remove_all(&gone)?;
        match fs::rename(self.home(id), &gone) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(at("cannot remove", &self.home(id))(source));
            }
            _ => {}
        }
        remove_all(&gone)?;
        remove_all(&new)
    }

    /// Whether another template's memory has a place: all of it and all that the others have yet to
    /// take, for a page of a template that does not fit kills the fork that touches it.
    fn make_room(&self, spec: &MachineSpec) -> Result<(), Cause> {
        let space = rustix::fs::statvfs(&self.directory)
            .map_err(|errno| at("cannot look at", &self.directory)(errno.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let promised: u64 = self
            .list()?
            .iter()
            .map(|template| template.record.ram.bytes.saturating_sub(template.held))
            .sum();
        let needed = spec.memory.bytes().saturating_add(SPARE);
        let left = free.saturating_sub(promised);
        if left < needed {
            return Err(Cause::hypervisor(format!(
                "a template of this machine needs {} MiB of {} and {} MiB are left; make the file \
                 system larger, or remove templates",
                needed >> 20,
                self.directory.display(),
                left >> 20
            )));
        }
        Ok(())
    }

    /// Keeps their number bounded. One that is just being forked stays for another time.
    fn drop_oldest(&self, new: &TemplateId) {
        let Ok(all) = self.list() else { return };
        for template in all.iter().skip(KEEP) {
            let id = &template.record.id;
            if id == new {
                continue;
            }
            let path = self.lock_file(id);
            let Ok(lock) = OpenOptions::new().write(true).open(&path) else {
                continue;
            };
            if lock.try_lock().is_ok() && is_file_at(&lock, &path) && self.clear(id).is_ok() {
                tracing::info!(template = %id, "removed a template long unused");
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// How a template is locked.
#[derive(Debug, Clone, Copy)]
enum Lock {
    Shared,
    Whole,
}

/// Why a template cannot be forked.
enum Unusable {
    Absent,
    Corrupt(Cause),
}

/// What all machines that fork from one template have in common.
///
/// # Errors
///
/// [`Cause::Unsupported`], for a machine that is not forked.
fn model(spec: &MachineSpec) -> Result<MachineSpec, Cause> {
    let why = match (&spec.boot, spec.hardware, spec.channel, &spec.debugger) {
        (Boot::Iso { .. }, ..) => "templates are made of a kernel, not of an ISO",
        (_, Hardware::Vmware, ..) => "only machines with virtio hardware are forked",
        (_, _, ChannelKind::Vsock | ChannelKind::Serial, _) => {
            "only machines with a virtio channel are forked"
        }
        (.., Some(_)) => "a debugger sees a machine from its first instruction",
        (Boot::Kernel { .. }, Hardware::Virtio, ChannelKind::Virtio, None) => {
            return Ok(MachineSpec {
                id: MachineId::from_bytes([0; 16]),
                name: "template".into(),
                disks: Vec::new(),
                nics: Vec::new(),
                ..spec.clone()
            });
        }
    };
    Err(unsupported(why.to_owned()))
}

fn unsupported(why: String) -> Cause {
    Cause::Unsupported {
        driver: "qemu",
        what: "fork this machine".into(),
        why,
    }
}

/// Whether a directory's name is a template's: a SHA-256 in hexadecimal.
fn is_id(name: &str) -> bool {
    name.len() == 64
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_file_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(here), Ok(there)) => (here.dev(), here.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn remove_all(path: &Path) -> Result<(), Cause> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(at("cannot remove", path)(source))
        }
        _ => Ok(()),
    }
}

/// A failed step on a file.
pub(crate) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Cause + use<> {
    let path = path.to_owned();
    move |source| Cause::File { what, path, source }
}

#[cfg(test)]
mod tests;
