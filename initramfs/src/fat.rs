//! A FAT volume that is written in one pass and whose files can be found from
//! outside.
//!
//! UEFI firmware boots a CD-ROM from a FAT image inside it (UEFI 2.10, 13.3.2).
//! Here every file of the volume is contiguous and starts at a multiple of
//! [`CLUSTER`] from the volume's start, so that ISO 9660 directory records can
//! point at the same bytes. Layout per Microsoft's "FAT: General Overview of
//! On-Disk Format" 1.03; FAT12 or FAT16 by the number of clusters.
//!
//! ```text
//! boot sector | padding | FAT | FAT | root directory | clusters ...
//!                                                    ^ multiple of CLUSTER
//! ```

use std::collections::BTreeMap;
use std::io::Write;

use crate::content::Positioned;
use crate::{Content, Date, Error};

/// Bytes in a cluster, and so the alignment of every file: one CD-ROM sector.
pub const CLUSTER: u64 = 2048;
const SECTOR: u64 = 512;
const SECTORS_PER_CLUSTER: u64 = CLUSTER / SECTOR;
const FATS: u64 = 2;
const ENTRY: usize = 32;
const ROOT_ENTRIES: usize = 64;
const MEDIA: u8 = 0xf8;
const FIRST_CLUSTER: u64 = 2;
/// Fewer clusters make FAT12, and fewer than `FAT16_END` FAT16. Readers are
/// known to be off by up to sixteen, so that neighbourhood is avoided, as the
/// specification advises.
const FAT16_START: u64 = 4085;
const FAT16_END: u64 = 65_525;
const MARGIN: u64 = 16;

const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_DIRECTORY: u8 = 0x10;
const ATTRIBUTE_ARCHIVE: u8 = 0x20;

/// A FAT volume whose layout is decided and whose bytes are not yet written.
#[derive(Debug)]
pub struct Volume {
    label: [u8; 11],
    serial: u32,
    date: Date,
    files: Vec<PlacedFile>,
    directories: Vec<PlacedDirectory>,
    geometry: Geometry,
}

/// Where a file's bytes lie, from the start of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in bytes, a multiple of [`CLUSTER`].
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

#[derive(Debug)]
struct PlacedFile {
    path: String,
    content: Content,
    first: u64,
}

#[derive(Debug)]
struct PlacedDirectory {
    /// Cluster of this directory, 0 for the root.
    first: u64,
    clusters: u64,
    parent: u64,
    entries: Vec<Named>,
}

#[derive(Debug)]
struct Named {
    name: [u8; 11],
    target: Target,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    File(usize),
    Directory(usize),
}

#[derive(Debug)]
struct Geometry {
    fat16: bool,
    clusters: u64,
    fat_sectors: u64,
    reserved_sectors: u64,
}

impl Geometry {
    fn for_clusters(used: u64) -> Result<Self, Error> {
        let near_boundary = FAT16_START - MARGIN..FAT16_START + MARGIN;
        let clusters = if near_boundary.contains(&used) {
            near_boundary.end
        } else {
            used
        };
        let limit = FAT16_END - MARGIN;
        if clusters > limit {
            return Err(Error::TooLarge {
                what: "FAT volume",
                length: clusters * CLUSTER,
                limit: limit * CLUSTER,
            });
        }
        let fat16 = clusters >= FAT16_START;
        let numbers = clusters + FIRST_CLUSTER;
        let fat_bytes = if fat16 {
            numbers * 2
        } else {
            (numbers * 3).div_ceil(2)
        };
        let fat_sectors = fat_bytes.div_ceil(SECTOR);
        let behind_reserved = FATS * fat_sectors + root_sectors();
        // At least the boot sector, and as many more as align the clusters.
        let reserved_sectors =
            (1 + behind_reserved).next_multiple_of(SECTORS_PER_CLUSTER) - behind_reserved;
        Ok(Geometry {
            fat16,
            clusters,
            fat_sectors,
            reserved_sectors,
        })
    }

    fn data_start(&self) -> u64 {
        (self.reserved_sectors + FATS * self.fat_sectors + root_sectors()) * SECTOR
    }

    fn length(&self) -> u64 {
        self.data_start() + self.clusters * CLUSTER
    }

    fn offset(&self, cluster: u64) -> u64 {
        self.data_start() + (cluster - FIRST_CLUSTER) * CLUSTER
    }
}

fn root_sectors() -> u64 {
    (ROOT_ENTRIES * ENTRY) as u64 / SECTOR
}

impl Volume {
    /// Lays out a volume with `files`, each a path like `EFI/BOOT/BOOTX64.EFI`
    /// with its content; directories follow from the paths. `label` is padded
    /// with spaces; `serial` is the volume's serial number.
    ///
    /// # Errors
    /// [`Error::Name`] for a path component that is no 8.3 name of capital
    /// letters, digits, `_` and `-`; [`Error::Duplicate`];
    /// [`Error::DirectoryFull`] for more than 63 entries in the root;
    /// [`Error::TooLarge`] beyond 128 MiB.
    pub fn plan(
        label: &str,
        serial: u32,
        date: Date,
        files: Vec<(&str, Content)>,
    ) -> Result<Self, Error> {
        let mut directories = vec![PlacedDirectory {
            first: 0,
            clusters: 0,
            parent: 0,
            entries: Vec::new(),
        }];
        let mut known: BTreeMap<String, Target> = BTreeMap::new();
        let mut placed = Vec::new();
        for (path, content) in files {
            let duplicate = || Error::Duplicate {
                path: path.to_owned(),
            };
            let (parents, name) = match path.rsplit_once('/') {
                Some((parents, name)) => (parents.split('/').collect(), name),
                None => (Vec::new(), path),
            };
            let mut at = 0;
            let mut prefix = String::new();
            for component in parents {
                prefix = format!("{prefix}/{component}");
                at = match known.get(&prefix) {
                    Some(Target::Directory(index)) => *index,
                    Some(Target::File(_)) => return Err(duplicate()),
                    None => {
                        let target = Target::Directory(directories.len());
                        let name = short_name(component)?;
                        directories[at].entries.push(Named { name, target });
                        known.insert(prefix.clone(), target);
                        directories.push(PlacedDirectory {
                            first: 0,
                            clusters: 0,
                            parent: at as u64,
                            entries: Vec::new(),
                        });
                        directories.len() - 1
                    }
                };
            }
            let target = Target::File(placed.len());
            let name = short_name(name)?;
            directories[at].entries.push(Named { name, target });
            if known.insert(format!("/{path}"), target).is_some() {
                return Err(duplicate());
            }
            placed.push(PlacedFile {
                path: path.to_owned(),
                content,
                first: 0,
            });
        }
        let root_entries = directories[0].entries.len() + 1;
        if root_entries > ROOT_ENTRIES {
            return Err(Error::DirectoryFull {
                directory: "/".to_owned(),
                entries: root_entries,
                limit: ROOT_ENTRIES,
            });
        }
        let end = allocate(&mut directories, &mut placed);
        Ok(Volume {
            label: padded(label)?,
            serial,
            date,
            files: placed,
            directories,
            geometry: Geometry::for_clusters(end - FIRST_CLUSTER)?,
        })
    }

    /// Length of the volume in bytes, a multiple of [`CLUSTER`].
    pub fn length(&self) -> u64 {
        self.geometry.length()
    }

    /// Where the file planned as `path` lies; `None` if there is none or it is
    /// empty and so lies nowhere.
    pub fn extent(&self, path: &str) -> Option<Extent> {
        let file = self.files.iter().find(|file| file.path == path)?;
        (file.first != 0).then(|| Extent {
            offset: self.geometry.offset(file.first),
            length: file.content.length(),
        })
    }

    /// Writes the volume's [`length`](Self::length) bytes.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Changed`] from the files, [`Error::Write`]
    /// from `out`.
    pub fn write(&self, out: impl Write) -> Result<(), Error> {
        let mut out = Positioned::new(out, "FAT volume");
        out.bytes(&self.boot_sector())?;
        out.zeros_until(self.geometry.reserved_sectors * SECTOR)?;
        let table = self.table();
        for _ in 0..FATS {
            out.bytes(&table)?;
        }
        let [root, directories @ ..] = &self.directories[..] else {
            unreachable!("plan always makes a root");
        };
        let mut label = self.entry(&self.label, ATTRIBUTE_LABEL, 0, 0).to_vec();
        label.extend(self.entries(root));
        out.bytes(&label)?;
        out.zeros_until(self.geometry.data_start())?;
        for directory in directories {
            out.zeros_until(self.geometry.offset(directory.first))?;
            let dot = |name, cluster| self.entry(name, ATTRIBUTE_DIRECTORY, cluster, 0);
            let parent = self.directories[directory.parent as usize].first;
            out.bytes(&dot(b".          ", directory.first))?;
            out.bytes(&dot(b"..         ", parent))?;
            out.bytes(&self.entries(directory))?;
        }
        for file in self.files.iter().filter(|file| file.first != 0) {
            out.zeros_until(self.geometry.offset(file.first))?;
            out.content(&file.content)?;
        }
        out.zeros_until(self.length())?;
        out.flush()
    }

    fn boot_sector(&self) -> [u8; SECTOR as usize] {
        let mut sector = [0; SECTOR as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            sector[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let geometry = &self.geometry;
        let sectors = geometry.length() / SECTOR;
        let sectors16 = u16::try_from(sectors).unwrap_or(0);
        let sectors32 = if sectors16 == 0 { sectors as u32 } else { 0 };
        put(0, &[0xeb, 0x3c, 0x90]);
        put(3, b"TETHER  ");
        put(11, &(SECTOR as u16).to_le_bytes());
        put(13, &[SECTORS_PER_CLUSTER as u8]);
        put(14, &(geometry.reserved_sectors as u16).to_le_bytes());
        put(16, &[FATS as u8]);
        put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
        put(19, &sectors16.to_le_bytes());
        put(21, &[MEDIA]);
        put(22, &(geometry.fat_sectors as u16).to_le_bytes());
        // Sectors per track and heads: nothing reads them, but mtools wants
        // the volume to be whole tracks.
        put(24, &(SECTORS_PER_CLUSTER as u16).to_le_bytes());
        put(26, &1u16.to_le_bytes());
        put(32, &sectors32.to_le_bytes());
        let (drive, extended_signature) = (0x80, 0x29);
        put(36, &[drive, 0, extended_signature]);
        put(39, &self.serial.to_le_bytes());
        put(43, &self.label);
        put(
            54,
            if geometry.fat16 {
                b"FAT16   "
            } else {
                b"FAT12   "
            },
        );
        // Boot code for whoever boots this volume by itself: stand still.
        put(62, &[0xeb, 0xfe]);
        put(510, &[0x55, 0xaa]);
        sector
    }

    /// One copy of the file allocation table.
    fn table(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.geometry.fat_sectors * SECTOR) as usize];
        let mut set = |cluster: u64, value: u16| {
            if self.geometry.fat16 {
                let at = cluster as usize * 2;
                bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
            } else {
                let at = cluster as usize * 3 / 2;
                let [low, high] = (value & 0xfff).to_le_bytes();
                if cluster.is_multiple_of(2) {
                    bytes[at] = low;
                    bytes[at + 1] |= high;
                } else {
                    bytes[at] |= low << 4;
                    bytes[at + 1] = high << 4 | low >> 4;
                }
            }
        };
        let end_of_chain = 0xffff;
        set(0, 0xff00 | u16::from(MEDIA));
        set(1, end_of_chain);
        let directories = self.directories.iter().map(|d| (d.first, d.clusters));
        let files = self.files.iter().map(|f| (f.first, clusters(&f.content)));
        for (first, count) in directories.chain(files) {
            for cluster in first..first + count {
                let last = cluster + 1 == first + count;
                set(
                    cluster,
                    if last {
                        end_of_chain
                    } else {
                        cluster as u16 + 1
                    },
                );
            }
        }
        bytes
    }

    fn entries(&self, directory: &PlacedDirectory) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Named { name, target } in &directory.entries {
            let entry = match *target {
                Target::File(index) => {
                    let PlacedFile { content, first, .. } = &self.files[index];
                    self.entry(name, ATTRIBUTE_ARCHIVE, *first, content.length())
                }
                Target::Directory(index) => {
                    let first = self.directories[index].first;
                    self.entry(name, ATTRIBUTE_DIRECTORY, first, 0)
                }
            };
            bytes.extend_from_slice(&entry);
        }
        bytes
    }

    fn entry(&self, name: &[u8; 11], attribute: u8, cluster: u64, length: u64) -> [u8; ENTRY] {
        let (time, date) = self.date.fat();
        let mut entry = [0; ENTRY];
        entry[..11].copy_from_slice(name);
        entry[11] = attribute;
        if attribute != ATTRIBUTE_LABEL {
            entry[14..16].copy_from_slice(&time.to_le_bytes());
            entry[16..18].copy_from_slice(&date.to_le_bytes());
            entry[18..20].copy_from_slice(&date.to_le_bytes());
        }
        entry[22..24].copy_from_slice(&time.to_le_bytes());
        entry[24..26].copy_from_slice(&date.to_le_bytes());
        entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
        entry[28..32].copy_from_slice(&(length as u32).to_le_bytes());
        entry
    }
}

fn clusters(content: &Content) -> u64 {
    content.length().div_ceil(CLUSTER)
}

/// Gives every directory and then every file its clusters, one after another;
/// returns the first cluster not given. Empty files get none.
fn allocate(directories: &mut [PlacedDirectory], files: &mut [PlacedFile]) -> u64 {
    let mut next = FIRST_CLUSTER;
    for directory in &mut directories[1..] {
        let dots = 2;
        let bytes = (directory.entries.len() + dots) * ENTRY;
        directory.first = next;
        directory.clusters = (bytes as u64).div_ceil(CLUSTER);
        next += directory.clusters;
    }
    for file in files {
        let count = clusters(&file.content);
        if count > 0 {
            file.first = next;
            next += count;
        }
    }
    next
}

fn allowed(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
}

fn short_name(component: &str) -> Result<[u8; 11], Error> {
    let (base, extension) = component.split_once('.').unwrap_or((component, ""));
    let dangling_dot = component.ends_with('.');
    let fits = (1..=8).contains(&base.len()) && extension.len() <= 3 && !dangling_dot;
    if !fits || !base.bytes().chain(extension.bytes()).all(allowed) {
        return Err(Error::Name {
            name: component.to_owned(),
            filesystem: "FAT",
        });
    }
    let mut name = [b' '; 11];
    name[..base.len()].copy_from_slice(base.as_bytes());
    name[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Ok(name)
}

fn padded(label: &str) -> Result<[u8; 11], Error> {
    if label.is_empty() || label.len() > 11 || !label.bytes().all(allowed) {
        return Err(Error::Name {
            name: label.to_owned(),
            filesystem: "FAT",
        });
    }
    let mut field = [b' '; 11];
    field[..label.len()].copy_from_slice(label.as_bytes());
    Ok(field)
}

#[cfg(test)]
#[path = "fat_tests.rs"]
mod tests;
