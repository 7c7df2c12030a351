//! Writing tar streams: ustar, with PAX records for what does not fit in it.
//!
//! The same entries give the same bytes. What a ustar header can say exactly is said there alone;
//! long or non-ASCII names, large sizes and numbers, times before the epoch or within a second, and
//! extended attributes (`SCHILY.xattr.*`) come as PAX records in front. Sources: POSIX.1-2017 `pax`.

use std::io::{self, Write};

use super::{BLOCK, Entry, EntryKind};

/// Writes entries one after another, and each one's contents behind it.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    /// Content bytes of the current entry still to come.
    left: u64,
    padding: u64,
}

impl<W: Write> Writer<W> {
    /// At the beginning of a stream.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// What is written into.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// What was written into.
    pub fn into_inner(self) -> W {
        self.inner
    }

    /// Writes an entry's header. A file's `size` bytes come next, by [`Writer::contents`]; a
    /// directory's path is given a `/` at its end if it has none.
    ///
    /// # Errors
    /// The writer's own; `InvalidInput` when contents of the entry before are missing, and for paths
    /// or attributes that hold a NUL or `=` where a tar cannot say so.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.left > 0 {
            return Err(invalid("the file before is not complete"));
        }
        let (block, records) = headers(entry)?;
        if !records.is_empty() {
            let mut header = Header::new(b'x', 0o644);
            // The name is for readers without PAX; a constant one, as archives of the same must be.
            header.text(0..100, b"PaxHeaders/0");
            header.octal(124..136, records.len() as u64);
            self.inner.write_all(&header.sealed())?;
            self.inner.write_all(&records)?;
            self.zeros(padding(records.len() as u64))?;
        }
        self.inner.write_all(&block)?;
        if entry.kind == EntryKind::File {
            self.left = entry.size;
            self.padding = padding(entry.size);
        }
        Ok(())
    }

    /// Writes contents of the last entry.
    ///
    /// # Errors
    /// The writer's own; `InvalidInput` for more than the entry's size.
    pub fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| invalid("the file is longer than was announced"))?;
        self.inner.write_all(bytes)?;
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.zeros(padding)?;
        }
        Ok(())
    }

    /// Writes the archive's end.
    ///
    /// # Errors
    /// The writer's own; `InvalidInput` when contents are missing.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(invalid("the last file is not complete"));
        }
        self.zeros(2 * BLOCK)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        self.inner
            .write_all(&[0; 2 * BLOCK as usize][..count as usize])
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

struct Header([u8; BLOCK as usize]);

impl Header {
    fn new(kind: u8, mode: u16) -> Self {
        let mut header = Self([0; BLOCK as usize]);
        header.octal(100..108, u64::from(mode));
        for range in [108..116, 116..124, 124..136, 136..148] {
            header.octal(range, 0);
        }
        header.text(156..157, &[kind]);
        header.text(257..265, b"ustar\x0000");
        header
    }

    fn text(&mut self, range: std::ops::Range<usize>, text: &[u8]) {
        let length = text.len().min(range.len());
        self.0[range.start..range.start + length].copy_from_slice(&text[..length]);
    }

    /// Octal digits and a NUL; whether the number fits.
    fn octal(&mut self, range: std::ops::Range<usize>, value: u64) -> bool {
        let digits = range.len() - 1;
        let fits = value < 1 << (3 * digits);
        let value = if fits { value } else { 0 };
        self.text(range, format!("{value:0digits$o}\0").as_bytes());
        fits
    }

    fn sealed(mut self) -> [u8; BLOCK as usize] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.text(148..155, format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

/// An entry's ustar header and the PAX records that go before it.
fn headers(entry: &Entry) -> io::Result<([u8; BLOCK as usize], Vec<u8>)> {
    let mut records = Vec::new();
    let kind = match entry.kind {
        EntryKind::File => b'0',
        EntryKind::Link(_) => b'1',
        EntryKind::Symlink(_) => b'2',
        EntryKind::Character { .. } => b'3',
        EntryKind::Block { .. } => b'4',
        EntryKind::Directory => b'5',
        EntryKind::Fifo => b'6',
    };
    if let EntryKind::Link(target) | EntryKind::Symlink(target) = &entry.kind
        && target.contains(&0)
    {
        return Err(invalid("a link's target has a zero byte"));
    }
    if entry.path.contains(&0) || entry.path.is_empty() {
        return Err(invalid("a path is empty or has a zero byte"));
    }
    let mut header = Header::new(kind, entry.mode);
    let mut path = entry.path.clone();
    if entry.kind == EntryKind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    match split(&path) {
        Some((prefix, name)) => {
            header.text(0..100, name);
            header.text(345..500, prefix);
        }
        None => {
            // What a reader without PAX is shown.
            header.text(0..100, &ascii(&path));
            record(&mut records, b"path", &path);
        }
    }
    if let EntryKind::Link(target) | EntryKind::Symlink(target) = &entry.kind {
        if target.len() <= 100 && target.is_ascii() {
            header.text(157..257, target);
        } else {
            header.text(157..257, &ascii(target));
            record(&mut records, b"linkpath", target);
        }
    }
    for (range, value, name) in [
        (108..116, entry.uid, &b"uid"[..]),
        (116..124, entry.gid, b"gid"),
    ] {
        if !header.octal(range, u64::from(value)) {
            record(&mut records, name, value.to_string().as_bytes());
        }
    }
    if entry.kind == EntryKind::File && !header.octal(124..136, entry.size) {
        record(&mut records, b"size", entry.size.to_string().as_bytes());
    }
    let seconds = u64::try_from(entry.mtime.seconds).ok();
    let exact = entry.mtime.nanoseconds == 0;
    let fits = header.octal(136..148, seconds.unwrap_or(0));
    if !(exact && fits && seconds.is_some()) {
        record(&mut records, b"mtime", decimal(entry).as_bytes());
    }
    if let EntryKind::Character { major, minor } | EntryKind::Block { major, minor } = entry.kind {
        // Linux has 12 and 20 bits of them (linux/kdev_t.h), and the field 21.
        if !header.octal(329..337, u64::from(major)) || !header.octal(337..345, u64::from(minor)) {
            return Err(invalid("a device number does not fit in a tar"));
        }
    }
    for (name, value) in &entry.xattrs {
        if name.contains(&b'=') || name.contains(&0) {
            return Err(invalid(
                "an extended attribute's name has `=` or a zero byte",
            ));
        }
        record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    Ok((header.sealed(), records))
}

/// Prefix and name as ustar has them, if they fit and every reader takes them alike.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // At a slash that is not the last byte, as early as the name allows.
    let first = path.len() - 101;
    let at = (first..path.len() - 1).find(|&at| path[at] == b'/')?;
    (at <= 155 && at > 0).then(|| (&path[..at], &path[at + 1..]))
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter()
        .map(|&byte| if byte.is_ascii() { byte } else { b'_' })
        .collect()
}

/// Seconds with a fraction: what is below zero counts down from the second above.
fn decimal(entry: &Entry) -> String {
    let (seconds, nanos) = (entry.mtime.seconds, entry.mtime.nanoseconds);
    if nanos == 0 {
        return seconds.to_string();
    }
    let text = if seconds < 0 {
        format!(
            "-{}.{:09}",
            -(i128::from(seconds) + 1),
            1_000_000_000 - nanos
        )
    } else {
        format!("{seconds}.{nanos:09}")
    };
    text.trim_end_matches('0').to_owned()
}

/// `LENGTH NAME=VALUE\n`, whose length counts itself.
fn record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(name);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
