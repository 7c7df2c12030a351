//! A machine's directory: what a controller finds of it after another died.
//!
//! ```text
//! STATE/owner.lock             held by the process that owns the VCH
//! STATE/machines/UUID/
//!     machine.json             specification, metadata, life; replaced by rename
//!     channel.key              32 bytes, for its owner only
//!     qmp.sock channel.sock    while it runs
//!     console.log[.1]          what was drained of the console, bounded
//!     qemu.log                 QEMU's own words of its last run
//!     run/                     of a machine that became of a spare: where its QEMU runs ([`crate::spare`])
//! STATE/machines/.new-UUID/    being made: removed when found
//! STATE/machines/.spare-UUID/  a spare's
//! STATE/machines/.gone-UUID/   being removed: removed when found
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypervisor::{Cause, ChannelKey, MachineId, MachineSpec, Metadata, Started, StopCause};
use serde::{Deserialize, Serialize};

use crate::argv::KEY_FILE;

/// The control socket.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The channel's socket.
pub const CHANNEL_SOCKET: &str = "channel.sock";
/// QEMU's words.
pub const LOG: &str = "qemu.log";
const RECORD: &str = "machine.json";
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// What a spare's directory begins with.
pub const SPARE: &str = ".spare-";
/// A directory in a machine's, that was a spare's.
pub const RUN: &str = "run";

/// The record's format. A driver that finds a later one leaves the machine be.
const VERSION: u32 = 1;

/// What is written of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// What it is made of.
    pub spec: MachineSpec,
    /// What its maker wrote on it.
    #[serde(default)]
    pub metadata: Metadata,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last powered on.
    pub started: SystemTime,
    /// When it last went off.
    pub stopped: SystemTime,
    /// Whether there should be a QEMU.
    pub life: Life,
    /// How it last got to run.
    #[serde(default)]
    pub began: Option<Started>,
    /// The devices of a child of a running machine: see [`Record::devices`].
    #[serde(default)]
    pub devices: Option<Devices>,
}

/// Which devices a machine's QEMU has been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Devices {
    /// Those of one that booted.
    Booted,
    /// Those of one that was forked from a template.
    Forked,
}

/// Whether there should be a QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// No; one that is found is ended.
    Off(StopCause),
    /// Yes; if there is none, its log says why.
    Started,
}

impl Record {
    /// The record of a machine never started.
    pub fn new(spec: MachineSpec, metadata: Metadata) -> Self {
        Self {
            version: VERSION,
            spec,
            metadata,
            created: SystemTime::now(),
            started: SystemTime::UNIX_EPOCH,
            stopped: SystemTime::UNIX_EPOCH,
            life: Life::Off(StopCause::NeverStarted),
            began: None,
            devices: None,
        }
    }

    /// The devices it has been given when it was last powered on.
    pub fn devices(&self) -> Devices {
        match (self.devices, &self.began) {
            (Some(devices), _) => devices,
            (None, Some(Started::Forked { .. })) => Devices::Forked,
            (None, _) => Devices::Booted,
        }
    }
}

/// The machine whose directory has this name, now or while it is made or
/// removed.
pub fn machine_of(name: &str) -> Option<MachineId> {
    let name = name
        .strip_prefix(NEW)
        .or_else(|| name.strip_prefix(GONE))
        .or_else(|| name.strip_prefix(SPARE))
        .unwrap_or(name);
    name.parse().ok()
}

/// A machine's directory, by its path and held open, so that sockets in it
/// are reached whatever the path's length.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Makes the directory of a new machine, whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Cause::AlreadyExists`], or [`Cause::File`].
    pub fn create(machines: &Path, record: &Record, key: &ChannelKey) -> Result<Self, Cause> {
        let id = record.spec.id;
        let path = machines.join(id.to_string());
        let new = machines.join(format!("{NEW}{id}"));
        if let Err(source) = DirBuilder::new().mode(0o700).create(&new) {
            return Err(if source.kind() == io::ErrorKind::AlreadyExists {
                Cause::AlreadyExists {
                    what: format!("a machine being made with identity {id}"),
                }
            } else {
                Cause::File {
                    what: "cannot make directory",
                    path: new,
                    source,
                }
            });
        }
        let made = (|| {
            let at = |what, path: &Path| {
                let path = path.to_owned();
                move |source| Cause::File { what, path, source }
            };
            let file = new.join(KEY_FILE);
            let mut key_file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)
                .map_err(at("cannot create", &file))?;
            key_file
                .write_all(key.as_bytes())
                .map_err(at("cannot write", &file))?;
            key_file.sync_data().map_err(at("cannot write", &file))?;
            let directory = Self::open(new.clone())?;
            directory.write(record)?;
            // An empty directory could be replaced by a rename; this one's
            // target, if there, is not empty.
            match fs::rename(&new, &path) {
                Ok(()) => Ok(Self {
                    path: path.clone(),
                    fd: directory.fd,
                }),
                Err(source)
                    if matches!(
                        source.kind(),
                        io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    Err(Cause::AlreadyExists {
                        what: format!("machine {id}"),
                    })
                }
                Err(source) => Err(Cause::File {
                    what: "cannot rename",
                    path: new.clone(),
                    source,
                }),
            }
        })();
        if made.is_err() {
            let _ = fs::remove_dir_all(&new);
        }
        made
    }

    /// Holds a directory that is there.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn open(path: PathBuf) -> Result<Self, Cause> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { path, fd }),
            Err(source) => Err(Cause::File {
                what: "cannot open",
                path,
                source: source.into(),
            }),
        }
    }

    /// Makes a spare's directory part of this machine's, with all its QEMU has there.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn take_over(&self, spare: &Self) -> Result<(), Cause> {
        fs::rename(&spare.path, self.file(RUN))
            .and_then(|()| self.link_run())
            .map_err(|source| Cause::File {
                what: "cannot take over a QEMU by",
                path: self.file(RUN),
                source,
            })
    }

    /// Sees to it that what lies in the directory of a QEMU that was a spare's is found in the machine's.
    ///
    /// # Errors
    ///
    /// What making links says.
    pub fn link_run(&self) -> io::Result<()> {
        if !self.took_over() {
            return Ok(());
        }
        for name in [QMP_SOCKET, CHANNEL_SOCKET, LOG, KEY_FILE] {
            let link = self.file(&format!("{name}.new"));
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(Path::new(RUN).join(name), &link)?;
            fs::rename(&link, self.file(name))?;
        }
        Ok(())
    }

    /// Whether its QEMU was a spare's.
    pub fn took_over(&self) -> bool {
        self.file(RUN).exists()
    }

    /// What a file of the machine is called where its QEMU runs.
    pub fn seen_from_qemu(&self, name: &str) -> String {
        if self.took_over() {
            format!("../{name}")
        } else {
            name.to_owned()
        }
    }

    /// Takes back what lies in the directory of a QEMU that is gone.
    pub fn leave_run(&self) {
        if !self.took_over() {
            return;
        }
        let run = self.file(RUN);
        for name in [LOG, KEY_FILE] {
            let _ = fs::rename(run.join(name), self.file(name));
        }
        let _ = fs::remove_dir_all(run);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A short path of a file in it, for a socket's address, valid while this
    /// lives.
    pub fn short(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Whether the directory is still where it was made.
    pub fn exists(&self) -> bool {
        let Ok(here) = rustix::fs::fstat(&self.fd) else {
            return false;
        };
        let Ok(there) = rustix::fs::lstat(&self.path) else {
            return false;
        };
        (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
    }

    /// Replaces the record.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn write(&self, record: &Record) -> Result<(), Cause> {
        self.replace(record, |file| file.sync_data())
    }

    /// Replaces the record with one that says more, without waiting for the
    /// storage: should the host crash now, the machine is off anyway.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub fn note(&self, record: &Record) -> Result<(), Cause> {
        self.replace(record, |_| Ok(()))
    }

    fn replace(
        &self,
        record: &Record,
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), Cause> {
        let path = self.file(RECORD);
        let temporary = self.file("machine.json.new");
        let write = || {
            let mut file = File::create(&temporary)?;
            serde_json::to_writer_pretty(&mut file, record)?;
            file.write_all(b"\n")?;
            sync(&file)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|source| Cause::File {
            what: "cannot write",
            path: path.clone(),
            source,
        })
    }

    /// Reads the record.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; `InvalidData` when it is not a record of this version.
    pub fn read(&self) -> Result<Record, Cause> {
        let path = self.file(RECORD);
        let read = || {
            let record: Record = serde_json::from_slice(&fs::read(&path)?)?;
            if record.version != VERSION {
                let what = format!(
                    "it has version {} of the record, this driver knows {VERSION}",
                    record.version
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Ok(record)
        };
        read().map_err(|source| Cause::File {
            what: "cannot read",
            path: path.clone(),
            source,
        })
    }

    /// The channel's key.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; `InvalidData` when it is not 32 bytes.
    pub fn key(&self) -> Result<ChannelKey, Cause> {
        let path = self.file(KEY_FILE);
        fs::read(&path)
            .and_then(|bytes| {
                <[u8; 32]>::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
            })
            .map(ChannelKey::from_bytes)
            .map_err(|source| Cause::File {
                what: "cannot read the key",
                path,
                source,
            })
    }

    /// The last `limit` bytes of QEMU's log.
    pub fn log_tail(&self, limit: u64) -> String {
        let read = || {
            let mut file = File::open(self.file(LOG))?;
            let length = file.metadata()?.len();
            file.seek(io::SeekFrom::Start(length.saturating_sub(limit)))?;
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }

    /// Removes the directory and all in it, in one step as far as anyone who
    /// looks for machines can see.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]. Already gone is success.
    pub fn remove(&self) -> Result<(), Cause> {
        let name = self
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let gone = if name.starts_with('.') {
            self.path.clone()
        } else {
            let gone = self.path.with_file_name(format!("{GONE}{name}"));
            // Left by a removal that was cut short.
            let _ = fs::remove_dir_all(&gone);
            match fs::rename(&self.path, &gone) {
                Ok(()) => gone,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(source) => {
                    return Err(Cause::File {
                        what: "cannot rename",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        };
        match fs::remove_dir_all(&gone) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Cause::File {
                what: "cannot remove",
                path: gone,
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// What lies in the place of machines.
#[derive(Debug)]
pub struct Listing {
    /// Whole machines.
    pub machines: Vec<(MachineId, PathBuf)>,
    /// Machines half made or half removed.
    pub leftovers: Vec<(MachineId, PathBuf)>,
}

/// Lists the place of machines; what is neither is not the driver's.
///
/// # Errors
///
/// [`Cause::File`].
pub fn list(machines: &Path) -> Result<Listing, Cause> {
    let mut listing = Listing {
        machines: Vec::new(),
        leftovers: Vec::new(),
    };
    let fail = |source| Cause::File {
        what: "cannot list",
        path: machines.to_owned(),
        source,
    };
    for entry in fs::read_dir(machines).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Ok(id) = name.parse() {
            listing.machines.push((id, entry.path()));
        } else if let Some(id) = name
            .strip_prefix(NEW)
            .or_else(|| name.strip_prefix(GONE))
            .or_else(|| name.strip_prefix(SPARE))
            .and_then(|id| id.parse().ok())
        {
            listing.leftovers.push((id, entry.path()));
        }
    }
    listing.machines.sort();
    Ok(listing)
}
