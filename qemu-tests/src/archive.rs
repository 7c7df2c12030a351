//! A docker-archive of one layer, with what only root can put into a directory: owners, devices,
//! extended attributes.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

/// What a file of the layer is.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// With these contents.
    File(&'a [u8]),
    /// A further name of a file that came before.
    Link(&'a str),
    /// To this path.
    Symlink(&'a str),
    /// By major and minor number.
    Character(u32, u32),
    /// By major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// What is in it comes after it.
    Directory,
}

/// A file of the layer.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    path: &'a str,
    kind: Kind<'a>,
    mode: u32,
    owner: (u32, u32),
    attributes: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Entry<'a> {
    /// root's.
    pub fn new(path: &'a str, kind: Kind<'a>, mode: u32) -> Self {
        Self {
            path,
            kind,
            mode,
            owner: (0, 0),
            attributes: Vec::new(),
        }
    }

    /// A user's and a group's.
    pub fn owner(mut self, user: u32, group: u32) -> Self {
        self.owner = (user, group);
        self
    }

    /// With an extended attribute.
    pub fn attribute(mut self, name: &'a str, value: &'a [u8]) -> Self {
        self.attributes.push((name, value));
        self
    }
}

/// When everything in the layer was changed last, in seconds since the Unix epoch.
pub const CHANGED: u64 = 1_234_567_890;

/// Writes the archive of an image with this one layer.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, layer: &[Entry<'_>]) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    for entry in layer {
        put(&mut bytes, entry);
    }
    end(&mut bytes);
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": ["archive:latest"],
        "Layers": ["layer.tar"],
    }]);
    let mut archive = Vec::new();
    for (name, contents) in [
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("layer.tar", &bytes),
    ] {
        put(&mut archive, &Entry::new(name, Kind::File(contents), 0o644));
    }
    end(&mut archive);
    std::fs::write(file, archive)
}

/// One file of a tar archive (POSIX pax interchange format; attributes as GNU tar writes them).
fn put(out: &mut Vec<u8>, entry: &Entry<'_>) {
    if !entry.attributes.is_empty() {
        let mut records = Vec::new();
        for (name, value) in &entry.attributes {
            record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        header(out, "PaxHeaders", b'x', 0o644, (0, 0), "", (0, 0), &records);
    }
    let (kind, target, device, contents) = match entry.kind {
        Kind::File(contents) => (b'0', "", (0, 0), contents),
        Kind::Link(target) => (b'1', target, (0, 0), &[][..]),
        Kind::Symlink(target) => (b'2', target, (0, 0), &[][..]),
        Kind::Character(major, minor) => (b'3', "", (major, minor), &[][..]),
        Kind::Block(major, minor) => (b'4', "", (major, minor), &[][..]),
        Kind::Directory => (b'5', "", (0, 0), &[][..]),
        Kind::Fifo => (b'6', "", (0, 0), &[][..]),
    };
    header(
        out,
        entry.path,
        kind,
        entry.mode,
        entry.owner,
        target,
        device,
        contents,
    );
}

/// `LENGTH NAME=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend(format!("{length} {name}=").bytes());
    out.extend(value);
    out.push(b'\n');
}

#[expect(clippy::too_many_arguments, reason = "the fields of a header")]
fn header(
    out: &mut Vec<u8>,
    path: &str,
    kind: u8,
    mode: u32,
    owner: (u32, u32),
    target: &str,
    device: (u32, u32),
    contents: &[u8],
) {
    let mut block = [0; 512];
    let mut text =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    text(0, path);
    text(100, &format!("{mode:07o}"));
    text(108, &format!("{:07o}", owner.0));
    text(116, &format!("{:07o}", owner.1));
    text(124, &format!("{:011o}", contents.len()));
    text(136, &format!("{CHANGED:011o}"));
    text(148, "        ");
    text(157, target);
    text(257, "ustar\x0000");
    text(329, &format!("{:07o}", device.0));
    text(337, &format!("{:07o}", device.1));
    block[156] = kind;
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.extend(block);
    out.extend(contents);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn end(out: &mut Vec<u8>) {
    out.resize(out.len() + 1024, 0);
}

#[cfg(test)]
mod tests {
    use super::record;

    #[test]
    fn a_records_length_counts_its_own_digits() {
        for (value, length) in [(0, 8), (89, 98), (90, 99), (91, 101)] {
            let mut out = Vec::new();
            record(&mut out, "name", &vec![b'v'; value]);
            assert_eq!(out.len(), length, "{value}");
            assert!(out.starts_with(format!("{length} ").as_bytes()));
        }
    }
}
