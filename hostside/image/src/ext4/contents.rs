//! File contents on their way to the disk: blocks are handed out in rising order and written in large
//! pieces, so the disk sees one sequential stream.

use std::io;

use super::geometry::{BLOCK, Geometry};
use crate::disk::Disk;
use crate::tree::Run;

/// Bytes gathered before they are written.
const BUFFER: usize = 1 << 20;

/// Hands out data blocks and writes what goes into them.
#[derive(Debug)]
pub struct Contents<D> {
    pub(super) disk: D,
    pub(super) geometry: Geometry,
    /// Bytes for the disk from block `start` on.
    buffer: Vec<u8>,
    start: u64,
    /// The next block to hand out.
    next: u64,
    /// What is left of the stretch `next` is in.
    stretch_end: u64,
    limit: u64,
    /// How many blocks were handed out.
    handed: u64,
}

/// A file's contents as they are written; see [`Contents::file`].
#[derive(Debug, Default)]
pub struct FileWriter {
    runs: Vec<Run>,
    /// How many bytes of the last block are written; 0 when it is full or there is none.
    partial: usize,
}

impl<D: Disk> Contents<D> {
    pub(super) fn new(disk: D, geometry: Geometry, limit: u64) -> Self {
        let (next, stretch_end) = geometry.data_stretch(0);
        Self {
            disk,
            geometry,
            buffer: Vec::with_capacity(BUFFER),
            start: next,
            next,
            stretch_end,
            limit,
            handed: 0,
        }
    }

    /// The disk below.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Starts a file. Only one is written at a time.
    pub fn file(&mut self) -> FileWriter {
        FileWriter::default()
    }

    /// Writes `bytes` at `offset` of the file. Offsets only ever rise; what is left out reads as
    /// zeros, and takes no space if it is whole blocks.
    pub fn write(
        &mut self,
        file: &mut FileWriter,
        mut offset: u64,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let logical = offset / BLOCK;
            let within = (offset % BLOCK) as usize;
            let last = file.runs.last().map(|run| run.logical + run.blocks - 1);
            if last == Some(logical) && file.partial > 0 {
                debug_assert!(within >= file.partial, "contents go backwards");
                self.buffer
                    .resize(self.buffer.len() + (within - file.partial), 0);
                let count = bytes.len().min(BLOCK as usize - within);
                self.buffer.extend_from_slice(&bytes[..count]);
                file.partial = (within + count) % BLOCK as usize;
                offset += count as u64;
                bytes = &bytes[count..];
                continue;
            }
            self.pad(file);
            let wanted = (within as u64 + bytes.len() as u64).div_ceil(BLOCK);
            let (physical, blocks) = self.allocate(wanted)?;
            match file.runs.last_mut() {
                Some(run)
                    if run.logical + run.blocks == logical
                        && run.physical + run.blocks == physical =>
                {
                    run.blocks += blocks;
                }
                _ => file.runs.push(Run {
                    logical,
                    physical,
                    blocks,
                }),
            }
            self.buffer.resize(self.buffer.len() + within, 0);
            let count = bytes.len().min((blocks * BLOCK) as usize - within);
            self.buffer.extend_from_slice(&bytes[..count]);
            file.partial = (within + count) % BLOCK as usize;
            offset += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Ends a file; returns where its blocks are.
    pub fn end(&mut self, mut file: FileWriter) -> Vec<Run> {
        self.pad(&mut file);
        file.runs
    }

    /// Writes `bytes` into blocks of their own, for directories and the like.
    pub(super) fn whole(&mut self, bytes: &[u8]) -> io::Result<Vec<Run>> {
        let mut file = self.file();
        self.write(&mut file, 0, bytes)?;
        Ok(self.end(file))
    }

    fn pad(&mut self, file: &mut FileWriter) {
        if file.partial > 0 {
            self.buffer
                .resize(self.buffer.len() + BLOCK as usize - file.partial, 0);
            file.partial = 0;
        }
    }

    /// Up to `wanted` consecutive blocks, at least one, with room for them in the buffer.
    fn allocate(&mut self, wanted: u64) -> io::Result<(u64, u64)> {
        let room = ((BUFFER - self.buffer.len()) as u64) / BLOCK;
        if room == 0 {
            self.flush()?;
            return self.allocate(wanted);
        }
        let (physical, blocks) = self.reserve(wanted.min(room))?;
        if physical != self.start + self.buffer.len() as u64 / BLOCK {
            self.flush()?;
            self.start = physical;
        }
        Ok((physical, blocks))
    }

    /// Takes up to `wanted` consecutive blocks, at least one, which read as zeros.
    pub(super) fn reserve(&mut self, wanted: u64) -> io::Result<(u64, u64)> {
        if self.next == self.stretch_end {
            (self.next, self.stretch_end) = self.geometry.data_stretch(self.next);
        }
        let physical = self.next;
        let blocks = wanted.min(self.stretch_end - physical);
        if physical + blocks > self.limit {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the contents do not fit into a disk of {} MiB",
                    (self.limit * BLOCK) >> 20
                ),
            ));
        }
        self.next += blocks;
        self.handed += blocks;
        Ok((physical, blocks))
    }

    /// How much of the disk is behind what was handed out, in bytes.
    pub fn taken(&self) -> u64 {
        self.handed * BLOCK
    }

    /// One block past the last one handed out.
    pub(super) fn end_block(&self) -> u64 {
        self.next
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.disk.write(self.start * BLOCK, &self.buffer)?;
            self.start += self.buffer.len() as u64 / BLOCK;
            self.buffer.clear();
        }
        Ok(())
    }
}
