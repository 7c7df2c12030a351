//! What a template was made from, and what its files have to be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hypervisor::{Boot, Cause, MachineId, MachineSpec, TemplateId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{at, is_id};
use crate::accel::Accelerator;
use crate::argv::{self, Birth, Prepared, Wire};
use crate::driver::Options;

/// The record's format, and with it how templates are made. One with another is another template.
const FORMAT: u32 = 1;
/// The longest state taken. It is some hundreds of kilobytes.
pub(super) const STATE_LIMIT: u64 = 64 << 20;
const RECORD: &str = "template.json";

/// Everything that a template is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// [`FORMAT`].
    format: u32,
    /// QEMU's command line, with numbers of descriptors that mean nothing.
    pub arguments: Vec<String>,
    /// QEMU, kernel and initramfs.
    pub files: Vec<FileIdentity>,
    /// The host's processor, where guests see it.
    pub processor: String,
}

/// A file with this content, as far as its file system tells: any write to it changes this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Where it is.
    pub path: PathBuf,
    device: u64,
    inode: u64,
    /// How long it is.
    pub bytes: u64,
    /// Nanoseconds since the Unix epoch, of its content and of its inode.
    modified: i128,
    changed: i128,
}

impl FileIdentity {
    /// Looks.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    fn of(path: &Path) -> Result<Self, Cause> {
        let metadata = fs::metadata(path).map_err(at("cannot look at", path))?;
        Ok(Self::from_metadata(path, &metadata))
    }

    fn from_metadata(path: &Path, metadata: &fs::Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Inputs {
    /// Those of a template for machines like `model`, which has neither disks nor vNICs.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]: one of the files is not there.
    pub(super) fn of(model: &MachineSpec, options: &Options) -> Result<Self, Cause> {
        let arguments = argv::arguments(&Prepared {
            spec: model,
            accelerator: options.accelerator,
            qmp_fd: 0,
            channel: Wire::Listener { fd: 0 },
            hot_plug_slots: options.hot_plug_slots,
            // Measured anew each time, and every time almost the same.
            tsc_khz: None,
            uefi_code: None,
            birth: Birth::Template {
                ram_fd: 0,
                console_fd: 0,
            },
        });
        let mut files = vec![FileIdentity::of(&program(&options.program))?];
        if let Boot::Kernel {
            kernel, initramfs, ..
        } = &model.boot
        {
            files.push(FileIdentity::of(kernel)?);
            files.push(FileIdentity::of(initramfs)?);
        }
        Ok(Self {
            format: FORMAT,
            arguments: arguments
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            files,
            processor: match options.accelerator {
                Accelerator::Kvm => processor(),
                Accelerator::Tcg => String::new(),
            },
        })
    }

    /// Their hash.
    pub fn id(&self) -> TemplateId {
        // Strings and numbers only: this cannot fail, and if it did, every template would be one
        // that is not found.
        let text = serde_json::to_vec(self).unwrap_or_default();
        TemplateId(hexadecimal(&Sha256::digest(text)))
    }
}

/// The file that a program's name means, as `execvp(3)` finds it.
fn program(name: &Path) -> PathBuf {
    if name.components().count() > 1 {
        return name.to_owned();
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| name.to_owned())
}

/// Model and features of the first processor.
fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = information.split("\n\n").next().unwrap_or_default();
    let told = |line: &&str| line.starts_with("model name") || line.starts_with("flags");
    first.lines().filter(told).collect::<Vec<_>>().join("\n")
}

/// A file whose every byte is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// How long it is.
    pub bytes: u64,
    /// What its content hashes to.
    sha256: String,
}

impl Sealed {
    /// A file with this content.
    pub(super) fn of(content: &[u8]) -> Self {
        Self {
            bytes: content.len() as u64,
            sha256: hexadecimal(&Sha256::digest(content)),
        }
    }
}

/// What is written of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// Its name.
    pub id: TemplateId,
    /// The machine it was.
    pub spec: MachineSpec,
    /// What it was made from.
    pub inputs: Inputs,
    /// QEMU's version, as it says it.
    pub qemu: String,
    /// When it was made.
    pub created: SystemTime,
    /// How long making it took, in milliseconds.
    pub took_ms: u64,
    /// Its memory: too large to be read, so known by what every write to it changes.
    pub ram: FileIdentity,
    /// Its state.
    pub state: Sealed,
    /// Its kernel's head.
    pub kernel: Sealed,
}

impl TemplateRecord {
    /// Reads the record in a template's directory.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]; `InvalidData` when it is none, or another template's.
    pub(super) fn read(home: &Path) -> Result<Self, Cause> {
        let path = home.join(RECORD);
        let read = || {
            let record: Self = serde_json::from_slice(&fs::read(&path)?)?;
            if record.inputs.format != FORMAT
                || record.inputs.id() != record.id
                || !is_id(&record.id.0)
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is not what its name says",
                ));
            }
            Ok(record)
        };
        read().map_err(at("cannot read", &path))
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// [`Cause::File`].
    pub(super) fn write(&self, home: &Path) -> Result<(), Cause> {
        let path = home.join(RECORD);
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&path, text))
            .map_err(at("cannot write", &path))
    }

    /// Opens memory, state and kernel, if they are what they were.
    ///
    /// # Errors
    ///
    /// [`Cause::File`]: which is not.
    pub(super) fn open_files(&self, home: &Path, id: &TemplateId) -> Result<[File; 3], Cause> {
        if self.id != *id {
            return Err(corrupt(&home.join(RECORD), "it is another template's"));
        }
        let path = home.join("ram");
        // QEMU opens memory for writing, though a private view of it writes nothing.
        let ram = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(at("cannot open", &path))?;
        let metadata = ram.metadata().map_err(at("cannot look at", &path))?;
        let found = FileIdentity::from_metadata(&self.ram.path, &metadata);
        if found != self.ram || found.bytes != self.spec.memory.bytes() {
            return Err(corrupt(&path, "it was written to"));
        }
        let sealed = |name: &str, sealed: &Sealed| {
            let path = home.join(name);
            let mut file = File::open(&path).map_err(at("cannot open", &path))?;
            let mut content = Vec::new();
            (&mut file)
                .take(STATE_LIMIT)
                .read_to_end(&mut content)
                .map_err(at("cannot read", &path))?;
            if Sealed::of(&content) != *sealed {
                return Err(corrupt(&path, "it is not what was written"));
            }
            // QEMU reads on from where this descriptor is.
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))
                .map_err(|errno| at("cannot read", &path)(errno.into()))?;
            Ok(file)
        };
        Ok([
            ram,
            sealed("state", &self.state)?,
            sealed("kernel", &self.kernel)?,
        ])
    }

    /// What a file is now that nobody writes to it any more.
    pub(super) fn memory(path: &Path) -> Result<FileIdentity, Cause> {
        let metadata = fs::metadata(path).map_err(at("cannot look at", path))?;
        // Its path changes when the template is renamed into place.
        Ok(FileIdentity::from_metadata(Path::new("ram"), &metadata))
    }

    /// The identity that its QEMU has.
    pub(super) fn machine_id(id: &TemplateId) -> MachineId {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&Sha256::digest(&id.0)[..16]);
        MachineId::from_bytes(bytes)
    }
}

fn corrupt(path: &Path, why: &str) -> Cause {
    at("cannot use", path)(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
