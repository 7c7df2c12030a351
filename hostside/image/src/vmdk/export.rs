//! `streamOptimized` disks: the form in which disks are uploaded to ESXi.
//!
//! Written front to back to anything: each grain that is not all zeros, compressed, behind a marker with
//! its place; after the grains of a table the table, in the end the directory and a footer that says
//! where it is. Source: *Virtual Disk Format 5.0*, "Stream-Optimized Compressed Sparse Extents"; version 3,
//! as ESXi wants it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::{
    DESCRIPTOR_SECTORS, Descriptor, Form, GRAIN, GRAIN_SECTORS, Header, Info, NO_PARENT, SECTOR,
    TABLE_GRAINS, TABLE_SECTORS, VmdkError, info,
};

/// Says that the directory is found through the footer.
const DIRECTORY_AT_END: u64 = u64::MAX;

/// What a marker announces.
#[derive(Clone, Copy)]
enum Marker {
    End = 0,
    Table = 1,
    Directory = 2,
    Footer = 3,
}

/// Writes the image disk `disk` to `out` as a `streamOptimized` VMDK of the same content id. Returns how
/// many bytes that were.
///
/// `disk` must be one that [`super::SparseDisk`] wrote: a parent is not followed, so a child is refused.
pub fn export_stream<W: Write>(disk: &Path, out: W) -> Result<u64, VmdkError> {
    let read = |source| VmdkError::Read {
        path: disk.to_owned(),
        source,
    };
    let wrong = |what| VmdkError::Format {
        path: disk.to_owned(),
        what,
    };
    let Info { size, cid } = info(disk)?;
    let file = File::open(disk).map_err(read)?;
    let mut head = [0; (SECTOR * (1 + DESCRIPTOR_SECTORS)) as usize];
    file.read_exact_at(&mut head, 0).map_err(read)?;
    if !String::from_utf8_lossy(&head[512..]).contains(&format!("parentCID={NO_PARENT:08x}")) {
        return Err(wrong("it has a parent, without which it is incomplete"));
    }
    let field = |at: usize| {
        head[at..]
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let (capacity, grain, directory) = (field(12), field(20), field(56));
    if grain != GRAIN_SECTORS || head[4] != 1 || capacity > super::CAPACITY_MAX {
        return Err(wrong(
            "its grains are not of 64 KiB, or it is larger than 2 TiB",
        ));
    }
    let tables = (capacity / GRAIN_SECTORS).div_ceil(TABLE_GRAINS);
    let directory = numbers(&file, directory, tables).map_err(read)?;

    let name = disk
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("disk.vmdk");
    let descriptor = Descriptor {
        file: name,
        capacity,
        cid,
        parent: None,
        form: Form::Stream,
    };
    let write = move || -> io::Result<u64> {
        let mut stream = Stream { out, sector: 0 };
        stream.put(&header(capacity, DIRECTORY_AT_END).encode())?;
        let mut text = descriptor.encode();
        text.resize((DESCRIPTOR_SECTORS * SECTOR) as usize, 0);
        stream.put(&text)?;
        stream.put(&vec![
            0;
            ((GRAIN_SECTORS - 1 - DESCRIPTOR_SECTORS) * SECTOR)
                as usize
        ])?;
        let mut places = Vec::with_capacity(directory.len());
        for (number, &table) in directory.iter().enumerate() {
            places.push(stream.table(&file, number as u64, table, size)?);
        }
        let bytes: Vec<u8> = places
            .iter()
            .flat_map(|place| place.to_le_bytes())
            .collect();
        stream.marker(Marker::Directory, (bytes.len() as u64).div_ceil(SECTOR))?;
        let place = stream.sector;
        stream.put(&bytes)?;
        stream.marker(Marker::Footer, 1)?;
        stream.put(&header(capacity, place).encode())?;
        stream.marker(Marker::End, 0)?;
        stream.out.flush()?;
        Ok(stream.sector * SECTOR)
    };
    write().map_err(|source| VmdkError::Export {
        path: disk.to_owned(),
        source,
    })
}

fn header(capacity: u64, directory: u64) -> Header {
    Header {
        capacity,
        redundant_directory: 0,
        directory,
        overhead: GRAIN_SECTORS,
        form: Form::Stream,
    }
}

/// `count` numbers of a table at `sector`.
fn numbers(file: &File, sector: u64, count: u64) -> io::Result<Vec<u32>> {
    let mut bytes = vec![0; (count * 4) as usize];
    file.read_exact_at(&mut bytes, sector.saturating_mul(SECTOR))?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|four| u32::from_le_bytes(*four))
        .collect())
}

struct Stream<W> {
    out: W,
    /// Where the next byte goes; all that is written is whole sectors.
    sector: u64,
}

impl<W: Write> Stream<W> {
    /// Writes `bytes` and zeros to the sector's end.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sectors = (bytes.len() as u64).div_ceil(SECTOR);
        self.out.write_all(bytes)?;
        self.out
            .write_all(&[0; SECTOR as usize][..(sectors * SECTOR) as usize - bytes.len()])?;
        self.sector += sectors;
        Ok(())
    }

    fn marker(&mut self, marker: Marker, sectors: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&(marker as u32).to_le_bytes());
        self.put(&bytes)
    }

    /// The sector for something new; a stream of more than 2 TiB cannot be.
    fn place(&self) -> io::Result<u32> {
        u32::try_from(self.sector).map_err(|_| io::ErrorKind::FileTooLarge.into())
    }

    /// Writes the grains of table `number` of `file`, which is at sector `table`, and the new table, if it
    /// has any. Returns the new table's sector, or 0.
    fn table(&mut self, file: &File, number: u64, table: u32, size: u64) -> io::Result<u32> {
        if table == 0 {
            return Ok(0);
        }
        let mut places = vec![0u32; TABLE_GRAINS as usize];
        let mut grain = vec![0; GRAIN as usize];
        for (index, sector) in numbers(file, u64::from(table), TABLE_GRAINS)?
            .into_iter()
            .enumerate()
        {
            let first = number * TABLE_GRAINS + index as u64;
            if sector == 0 || first * GRAIN >= size {
                continue;
            }
            file.read_exact_at(&mut grain, u64::from(sector) * SECTOR)?;
            if grain.iter().all(|&byte| byte == 0) {
                continue;
            }
            places[index] = self.place()?;
            let mut encoder = ZlibEncoder::new(vec![0; 12], Compression::fast());
            encoder.write_all(&grain)?;
            let mut bytes = encoder.finish()?;
            let length = (bytes.len() - 12) as u32;
            bytes[..8].copy_from_slice(&(first * GRAIN_SECTORS).to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            self.put(&bytes)?;
        }
        if places.iter().all(|&place| place == 0) {
            return Ok(0);
        }
        self.marker(Marker::Table, TABLE_SECTORS)?;
        let place = self.place()?;
        let bytes: Vec<u8> = places
            .iter()
            .flat_map(|place| place.to_le_bytes())
            .collect();
        self.put(&bytes)?;
        Ok(place)
    }
}
