//! VMDK disks: what image disks, containers' own disks and new volumes are stored in.
//!
//! The format is `monolithicSparse` (VMware's *Virtual Disk Format 5.0*): 64 KiB grains, found through
//! two levels of tables. [`SparseDisk`] writes one front to back, grains first and tables last, for a
//! disk whose size is not known before. [`create_child`] and [`create_scratch`] write one that is to be
//! written to later: tables first, and all there, because QEMU (7.2, `block/vmdk.c`) makes new grains but
//! never new tables. Tables without grains are holes of the file: a child takes 8 bytes for each 32 MiB of
//! its parent (1.3 KB for 10 GiB), and 16 KiB beside; no time that depends on what is in the parent.
//! [`export_stream`] writes the compressed form that ESXi imports.

mod export;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::disk::{Disk, punch};
use crate::ext4::{self, Ext4Error, Identity, Label};
use crate::tree::Tree;
pub use export::export_stream;

const SECTOR: u64 = 512;
/// Sectors in a grain.
const GRAIN_SECTORS: u64 = 128;
const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
/// Grains in a table.
const TABLE_GRAINS: u64 = 512;
const TABLE_SECTORS: u64 = TABLE_GRAINS * 4 / SECTOR;
/// Sectors for the descriptor, after the header.
const DESCRIPTOR_SECTORS: u64 = 20;
const MAGIC: u32 = 0x564d_444b;
/// The most sectors a disk can have: 2 TiB.
const CAPACITY_MAX: u64 = 1 << 32;
/// The longest file name QEMU takes for a parent.
const HINT_MAX: usize = 1023;
/// What a disk written front to back calls itself: the store's name for image disks.
const IMAGE_NAME: &str = "image.vmdk";
const NO_PARENT: u32 = 0xffff_ffff;

/// What went wrong with which disk.
#[derive(Debug, thiserror::Error)]
pub enum VmdkError {
    /// The new file could not be made.
    #[error("cannot create the disk {path}")]
    Create {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The parent could not be read.
    #[error("cannot read the disk {path}")]
    Read {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The parent is not a disk this crate makes.
    #[error("{path} is not a VMDK image disk: {what}")]
    Format {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A path that cannot be written into a disk.
    #[error(
        "the path {path} cannot stand in a VMDK: it has a quote, a line end or more than {HINT_MAX} bytes, or is not UTF-8"
    )]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A disk could not be written out in another form.
    #[error("cannot write the disk {path} out")]
    Export {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A new volume could not be formatted.
    #[error("cannot format the disk {path}")]
    Filesystem {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: Ext4Error,
    },
}

/// The header, without the tables.
struct Header {
    capacity: u64,
    redundant_directory: u64,
    directory: u64,
    /// Sectors before the first grain.
    overhead: u64,
    form: Form,
}

/// The two kinds of disk.
#[derive(Clone, Copy)]
enum Form {
    /// `monolithicSparse`, version 1.
    Sparse,
    /// `streamOptimized`, version 3: compressed grains, with markers between them.
    Stream,
}

impl Header {
    fn encode(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        // Bit 0: line ends can be checked. Bit 1: the redundant directory is in use. Bits 16 and 17:
        // compressed grains, markers.
        let (version, flags, compression) = match self.form {
            Form::Sparse => (1u32, 0x3u32, 0u16),
            Form::Stream => (3, 0x3_0001, 1),
        };
        put(&version.to_le_bytes());
        put(&flags.to_le_bytes());
        put(&self.capacity.to_le_bytes());
        put(&GRAIN_SECTORS.to_le_bytes());
        put(&1u64.to_le_bytes());
        put(&DESCRIPTOR_SECTORS.to_le_bytes());
        put(&(TABLE_GRAINS as u32).to_le_bytes());
        put(&self.redundant_directory.to_le_bytes());
        put(&self.directory.to_le_bytes());
        put(&self.overhead.to_le_bytes());
        put(&[0]);
        put(b"\n \r\n");
        put(&compression.to_le_bytes());
        bytes
    }
}

/// The descriptor's text.
struct Descriptor<'a> {
    /// The disk's own file name.
    file: &'a str,
    capacity: u64,
    cid: u32,
    parent: Option<(u32, &'a str)>,
    form: Form,
}

impl Descriptor<'_> {
    fn encode(&self) -> Vec<u8> {
        let (parent_cid, hint) = match self.parent {
            Some((cid, path)) => (cid, format!("parentFileNameHint=\"{path}\"\n")),
            None => (NO_PARENT, String::new()),
        };
        let kind = match self.form {
            Form::Sparse => "monolithicSparse",
            Form::Stream => "streamOptimized",
        };
        let cylinders = (self.capacity / (255 * 63)).clamp(1, 65_535);
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\n\
             createType=\"{kind}\"\n{hint}\n\
             # Extent description\nRW {} SPARSE \"{}\"\n\n\
             # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"7\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"255\"\n\
             ddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n",
            self.cid, self.capacity, self.file,
        )
        .into_bytes()
    }
}

/// A CID out of `seed`, avoiding those with a meaning.
fn cid(seed: [u8; 4]) -> u32 {
    match u32::from_le_bytes(seed) {
        cid @ (0 | 0xffff_fffe | NO_PARENT) => cid ^ 0x5a5a_5a5a,
        cid => cid,
    }
}

fn fresh_cid() -> io::Result<u32> {
    let mut seed = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(cid(seed))
}

/// A disk written front to back, once, whose size may be told at the end.
#[derive(Debug)]
pub struct SparseDisk {
    file: File,
    cid: u32,
    /// The sector of each grain, 0 where it was never written.
    grains: Vec<u32>,
    /// The sector where the next new grain goes.
    next: u64,
}

impl SparseDisk {
    /// Starts a disk in the empty `file`.
    pub fn new(file: File) -> Self {
        Self {
            file,
            cid: NO_PARENT,
            grains: Vec::new(),
            next: GRAIN_SECTORS,
        }
    }

    /// Takes the content id from `digest`: equal digests make equal disks.
    pub fn identify(&mut self, digest: &Digest) {
        self.cid = cid(*digest.bytes().first_chunk().expect("a digest has 32 bytes"));
    }

    /// The file.
    pub fn into_file(self) -> File {
        self.file
    }

    /// The sector of grain `index`, new if it has none.
    fn place(&mut self, index: usize) -> io::Result<u64> {
        if self.grains.len() <= index {
            self.grains.resize(index + 1, 0);
        }
        if self.grains[index] == 0 {
            let too_large = |_| {
                io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "a VMDK cannot be larger than 2 TiB",
                )
            };
            self.grains[index] = u32::try_from(self.next).map_err(too_large)?;
            self.next += GRAIN_SECTORS;
        }
        Ok(u64::from(self.grains[index]))
    }
}

impl Disk for SparseDisk {
    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // As many grains as lie one behind the other in the file.
            let start = self.place((offset / GRAIN) as usize)? * SECTOR + offset % GRAIN;
            let mut count = (GRAIN - offset % GRAIN).min(bytes.len() as u64);
            while count < bytes.len() as u64 {
                if self.place(((offset + count) / GRAIN) as usize)? * SECTOR != start + count {
                    break;
                }
                count = (count + GRAIN).min(bytes.len() as u64);
            }
            let (now, later) = bytes.split_at(count as usize);
            self.file.write_all_at(now, start)?;
            offset += count;
            bytes = later;
        }
        Ok(())
    }

    fn discard(&mut self, mut offset: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let index = (offset / GRAIN) as usize;
            let count = (GRAIN - offset % GRAIN).min(length);
            if let Some(&sector) = self.grains.get(index)
                && sector != 0
            {
                punch(
                    &self.file,
                    u64::from(sector) * SECTOR + offset % GRAIN,
                    count,
                )?;
                if count == GRAIN {
                    self.grains[index] = 0;
                }
            }
            offset += count;
            length -= count;
        }
        Ok(())
    }

    fn finish(&mut self, size: u64) -> io::Result<()> {
        let capacity = size.next_multiple_of(GRAIN) / SECTOR;
        let tables = (capacity / GRAIN_SECTORS).div_ceil(TABLE_GRAINS);
        self.grains.resize((tables * TABLE_GRAINS) as usize, 0);
        let layout = Layout {
            tables,
            start: self.next,
        };
        let header = layout.header(capacity, GRAIN_SECTORS);
        let bytes: Vec<u8> = self
            .grains
            .iter()
            .flat_map(|sector| sector.to_le_bytes())
            .collect();
        for copy in [layout.redundant(), layout.main()] {
            self.file
                .write_all_at(&layout.directory(copy), copy * SECTOR)?;
            for (index, table) in bytes.chunks((TABLE_SECTORS * SECTOR) as usize).enumerate() {
                if table.iter().any(|&byte| byte != 0) {
                    self.file
                        .write_all_at(table, layout.table(copy, index as u64) * SECTOR)?;
                }
            }
        }
        let descriptor = Descriptor {
            file: IMAGE_NAME,
            capacity,
            cid: self.cid,
            parent: None,
            form: Form::Sparse,
        };
        self.file.write_all_at(&header.encode(), 0)?;
        self.file.write_all_at(&descriptor.encode(), SECTOR)?;
        self.file.set_len(layout.end() * SECTOR)
    }
}

/// Where the two copies of directory and tables are: one after the other from sector `start` on.
#[derive(Clone, Copy)]
struct Layout {
    tables: u64,
    start: u64,
}

impl Layout {
    fn directory_sectors(&self) -> u64 {
        (self.tables * 4).div_ceil(SECTOR)
    }

    /// The redundant copy's directory; its tables follow.
    fn redundant(&self) -> u64 {
        self.start
    }

    /// The main copy's directory; its tables follow.
    fn main(&self) -> u64 {
        self.start + self.directory_sectors() + self.tables * TABLE_SECTORS
    }

    fn end(&self) -> u64 {
        self.main() + self.directory_sectors() + self.tables * TABLE_SECTORS
    }

    fn table(&self, copy: u64, index: u64) -> u64 {
        copy + self.directory_sectors() + index * TABLE_SECTORS
    }

    fn directory(&self, copy: u64) -> Vec<u8> {
        (0..self.tables)
            .flat_map(|index| (self.table(copy, index) as u32).to_le_bytes())
            .collect()
    }

    fn header(&self, capacity: u64, overhead: u64) -> Header {
        Header {
            capacity,
            redundant_directory: self.redundant(),
            directory: self.main(),
            overhead,
            form: Form::Sparse,
        }
    }
}

/// Writes the empty structures of a disk that is to be written to: header, descriptor and tables.
fn create_empty(file: &File, descriptor: &Descriptor<'_>) -> io::Result<Layout> {
    let tables = (descriptor.capacity / GRAIN_SECTORS).div_ceil(TABLE_GRAINS);
    let layout = Layout {
        tables,
        start: 1 + DESCRIPTOR_SECTORS,
    };
    let overhead = layout.end().next_multiple_of(GRAIN_SECTORS);
    for copy in [layout.redundant(), layout.main()] {
        file.write_all_at(&layout.directory(copy), copy * SECTOR)?;
    }
    file.write_all_at(&descriptor.encode(), SECTOR)?;
    file.write_all_at(&layout.header(descriptor.capacity, overhead).encode(), 0)?;
    file.set_len(overhead * SECTOR)?;
    Ok(layout)
}

/// What a child has to know of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Bytes.
    pub size: u64,
    /// The content id, which changes when the disk is written to.
    pub cid: u32,
}

/// Whether a file begins as a VMDK does, whoever made it: a sparse extent (VMware's Virtual Disk
/// Format 5.0), an ESXi sparse extent, or a descriptor.
///
/// # Errors
/// The file cannot be read.
pub fn is_vmdk(path: &Path) -> std::io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(21).read_to_end(&mut head)?;
    Ok([&b"KDMV"[..], b"COWD", b"# Disk DescriptorFile"]
        .iter()
        .any(|magic| head.starts_with(magic)))
}

/// Reads the header of a disk made here.
pub fn info(path: &Path) -> Result<Info, VmdkError> {
    let wrong = |what| VmdkError::Format {
        path: path.to_owned(),
        what,
    };
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take((1 + DESCRIPTOR_SECTORS) * SECTOR)
                .read_to_end(&mut head)
        })
        .map_err(|source| VmdkError::Read {
            path: path.to_owned(),
            source,
        })?;
    if head.len() <= 512 || head[..4] != MAGIC.to_le_bytes() {
        return Err(wrong("it does not start as one"));
    }
    let capacity = head[12..]
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&head[512..]);
    let cid = text.lines().find_map(|line| line.strip_prefix("CID="));
    let cid = cid.and_then(|text| u32::from_str_radix(text.trim(), 16).ok());
    let cid = cid.ok_or(wrong("its descriptor has no CID"))?;
    let size = capacity
        .checked_mul(SECTOR)
        .ok_or(wrong("its capacity overflows"))?;
    Ok(Info { size, cid })
}

/// Makes a disk at `path` that reads as the one at `parent` until it is written to.
///
/// The parent is named by its absolute path, is never written to, and must not change while it has
/// children. `path` must not exist.
pub fn create_child(parent: &Path, path: &Path) -> Result<(), VmdkError> {
    let hint = std::fs::canonicalize(parent).map_err(|source| VmdkError::Read {
        path: parent.to_owned(),
        source,
    })?;
    let hint = quotable(&hint)?;
    let name = quotable(Path::new(path.file_name().unwrap_or_default()))?;
    let Info { size, cid } = info(parent)?;
    new_file(path)
        .and_then(|file| {
            let descriptor = Descriptor {
                file: name,
                capacity: size / SECTOR,
                cid: fresh_cid()?,
                parent: Some((cid, hint)),
                form: Form::Sparse,
            };
            create_empty(&file, &descriptor)
        })
        .map(|_| ())
        .map_err(|source| VmdkError::Create {
            path: path.to_owned(),
            source,
        })
}

/// Makes a disk at `path` with an empty ext4 filesystem of `size` bytes in it, owned by root.
///
/// `path` must not exist. Takes a few milliseconds and, for 10 GiB, about 100 KB of the host's disk.
pub fn create_scratch(size: u64, label: Label, path: &Path) -> Result<(), VmdkError> {
    let failed = |source| VmdkError::Create {
        path: path.to_owned(),
        source,
    };
    let formatted = |source| VmdkError::Filesystem {
        path: path.to_owned(),
        source,
    };
    let mut uuid = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut uuid))
        .map_err(failed)?;
    // Version 4, random (RFC 9562).
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    if !(ext4::SIZE_MIN..=ext4::SIZE_MAX).contains(&size) {
        return Err(formatted(Ext4Error::Size(size)));
    }
    let size = size / GRAIN * GRAIN;
    let name = quotable(Path::new(path.file_name().unwrap_or_default()))?;
    let file = new_file(path).map_err(failed)?;
    let write = || {
        let disk = GrowingDisk::new(file, name, size / SECTOR).map_err(Ext4Error::Write)?;
        let writer = ext4::Writer::new(disk, ext4::Size::Fixed(size))?;
        writer.finish(&Tree::new(1), &Identity { uuid, label })
    };
    write().map(|_| ()).map_err(|source| {
        let _ = std::fs::remove_file(path);
        formatted(source)
    })
}

/// `path` as a text that can stand in quotes.
fn quotable(path: &Path) -> Result<&str, VmdkError> {
    path.to_str()
        .filter(|text| text.len() <= HINT_MAX && !text.contains(['"', '\n', '\r']))
        .ok_or_else(|| VmdkError::Path {
            path: path.to_owned(),
        })
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// A disk whose tables are in front and stay open for more grains.
struct GrowingDisk {
    inner: SparseDisk,
    layout: Layout,
}

impl GrowingDisk {
    fn new(file: File, name: &str, capacity: u64) -> io::Result<Self> {
        let descriptor = Descriptor {
            file: name,
            capacity,
            cid: fresh_cid()?,
            parent: None,
            form: Form::Sparse,
        };
        let layout = create_empty(&file, &descriptor)?;
        let mut inner = SparseDisk::new(file);
        inner.next = layout.end().next_multiple_of(GRAIN_SECTORS);
        Ok(Self { inner, layout })
    }
}

impl Disk for GrowingDisk {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write(offset, bytes)
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.discard(offset, length)
    }

    fn finish(&mut self, _size: u64) -> io::Result<()> {
        for copy in [self.layout.redundant(), self.layout.main()] {
            for (index, sector) in self
                .inner
                .grains
                .iter()
                .enumerate()
                .filter(|(_, sector)| **sector != 0)
            {
                let table = self.layout.table(copy, index as u64 / TABLE_GRAINS);
                let within = index as u64 % TABLE_GRAINS * 4;
                self.inner
                    .file
                    .write_all_at(&sector.to_le_bytes(), table * SECTOR + within)?;
            }
        }
        // The last grain may be written in part only.
        self.inner.file.set_len(self.inner.next * SECTOR)
    }
}
