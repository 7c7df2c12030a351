//! Sparse files in tar streams: which parts of a file its stored bytes are.

use super::header::number;
use super::pax::decimal;

/// The most segments one file may have.
pub(super) const SEGMENTS_MAX: usize = 1 << 20;

/// `length` bytes at `offset` of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How long, in bytes.
    pub length: u64,
}

/// The whole map of a file.
#[derive(Debug)]
pub(super) struct Map {
    /// The file's length, holes included.
    pub size: u64,
    pub segments: Vec<Segment>,
}

/// A map of GNU's own sparse type as far as it was read.
#[derive(Debug)]
pub(super) struct GnuMap {
    pub map: Map,
    /// Another block of it follows.
    pub continues: bool,
}

/// Returns the segments of `map` if they ascend, stay within the file and make up the `stored` bytes
/// that the stream has.
pub(super) fn checked(map: Map, stored: u64) -> Result<Vec<Segment>, &'static str> {
    let mut end = 0;
    let mut sum = 0u64;
    for segment in &map.segments {
        if segment.offset < end {
            return Err("its sparse map goes backwards");
        }
        end = segment
            .offset
            .checked_add(segment.length)
            .ok_or("its sparse map overflows")?;
        sum = sum
            .checked_add(segment.length)
            .ok_or("its sparse map overflows")?;
    }
    if end > map.size {
        return Err("its sparse map is beyond its size");
    }
    if sum != stored {
        return Err("its sparse map is not of its contents");
    }
    Ok(map.segments)
}

/// The part of a map that is in a GNU header of type `S`.
pub(super) fn gnu_header(block: &[u8; 512]) -> Result<GnuMap, &'static str> {
    let size = number(&block[483..495]).and_then(|size| u64::try_from(size).ok());
    let size = size.ok_or("its sparse size is not a number")?;
    let mut found = GnuMap {
        map: Map {
            size,
            segments: Vec::new(),
        },
        continues: block[482] != 0,
    };
    gnu_segments(&block[386..482], &mut found)?;
    Ok(found)
}

/// The part of a map that is in a block after the header.
pub(super) fn gnu_extension(block: &[u8; 512], found: &mut GnuMap) -> Result<(), &'static str> {
    gnu_segments(&block[..504], found)?;
    found.continues = block[504] != 0;
    Ok(())
}

fn gnu_segments(fields: &[u8], found: &mut GnuMap) -> Result<(), &'static str> {
    for pair in fields.as_chunks::<24>().0 {
        if pair[0] == 0 {
            break;
        }
        let value = |field| {
            let value = number(field).and_then(|value| u64::try_from(value).ok());
            value.ok_or("its sparse map has a value that is not a number")
        };
        found.map.segments.push(Segment {
            offset: value(&pair[..12])?,
            length: value(&pair[12..])?,
        });
    }
    Ok(())
}

/// The PAX 1.0 map, read in blocks from in front of the contents: decimal numbers, a line each; first
/// how many segments, then offset and length of each.
#[derive(Debug, Default)]
pub(super) struct ContentsMap {
    line: Vec<u8>,
    expected: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl ContentsMap {
    /// Takes one block; returns the segments once they are complete.
    pub fn block(&mut self, block: &[u8; 512]) -> Result<Option<Vec<Segment>>, &'static str> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > 20 {
                    return Err("its sparse map has a value that is not a number");
                }
                continue;
            }
            let value =
                decimal(&self.line).ok_or("its sparse map has a value that is not a number")?;
            self.line.clear();
            match (self.expected, self.offset.take()) {
                (None, _) if value > SEGMENTS_MAX as u64 => {
                    return Err("its sparse map is too long");
                }
                (None, _) => self.expected = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.segments.push(Segment {
                    offset,
                    length: value,
                }),
            }
            if self.expected == Some(self.segments.len() as u64) {
                // The rest of the block is padding.
                return Ok(Some(std::mem::take(&mut self.segments)));
            }
        }
        Ok(None)
    }
}
