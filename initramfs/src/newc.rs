//! The initramfs: a cpio archive in the `newc` format that holds `/init`.
//!
//! Owns the format (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`)
//! in both directions; does not own where the archive is kept or how it reaches
//! the kernel. The reader exists for tests and for checking what was built.
//!
//! # Why one entry is enough
//!
//! PID 1 needs `/dev/console` to exist before it has mounted anything, because
//! the kernel opens it for stdin, stdout and stderr. A kernel without
//! `INITRAMFS_SOURCE` builds in a default archive (`usr/default_cpio_list`: `/dev`,
//! `/dev/console` 5:1 and `/root`), unpacks that first and this one over it,
//! so a console node here would only repeat it. Mount points are made by the
//! init itself.

use std::io::Write;

use crate::content::Positioned;
use crate::{Content, Error};

/// What errors call this artefact.
const IMAGE: &str = "initramfs";
/// Magic, then thirteen fields of eight hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
const MAGIC: &[u8] = b"070701";
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Regular file, rwxr-xr-x.
const INIT_MODE: u32 = 0o100_755;
/// The largest init taken: far more than any, far less than a small guest's memory.
pub const MAX_INIT: u64 = 64 << 20;

/// Writes the archive that holds `init` as `/init` (mode 0755, owner 0:0,
/// time 0) and nothing else. The bytes depend on `init`'s bytes alone.
///
/// # Errors
/// [`Error::TooLarge`] above [`MAX_INIT`] bytes, [`Error::Read`] or
/// [`Error::Changed`] from the input, [`Error::Write`] from `out`.
pub fn write(init: &Content, out: impl Write) -> Result<(), Error> {
    if init.length() > MAX_INIT {
        return Err(Error::TooLarge {
            what: "init",
            length: init.length(),
            limit: MAX_INIT,
        });
    }
    let mut out = Positioned::new(out, IMAGE);
    let inode = 1;
    out.bytes(&header(inode, INIT_MODE, init.length() as u32, "init"))?;
    out.align(4)?;
    out.content(init)?;
    out.align(4)?;
    out.bytes(&header(0, 0, 0, TRAILER))?;
    out.align(4)?;
    out.flush()
}

/// Header and NUL-terminated name; the caller pads to four bytes.
fn header(inode: u32, mode: u32, length: u32, name: &str) -> Vec<u8> {
    let (uid, gid, links, mtime) = (0, 0, 1, 0);
    let (device, node, check) = ([0, 0], [0, 0], 0);
    let name_size = name.len() as u32 + 1;
    let fields = [
        inode, mode, uid, gid, links, mtime, length, device[0], device[1], node[0], node[1],
        name_size, check,
    ];
    let mut bytes = MAGIC.to_vec();
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    bytes
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path relative to the root, without a leading slash.
    pub name: &'a [u8],
    /// File type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Number of links.
    pub links: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// The file's bytes.
    pub data: &'a [u8],
}

/// Entries of `archive` up to its trailer, in order.
///
/// # Errors
/// [`Error::Archive`] where the bytes are not an archive or break off.
pub fn read(archive: &[u8]) -> Result<Vec<Entry<'_>>, Error> {
    let mut entries = Vec::new();
    let mut offset = 0;
    loop {
        let field = |index: usize| number(archive, offset + MAGIC.len() + 8 * index);
        if archive.get(offset..offset + MAGIC.len()) != Some(MAGIC) {
            let reason = "no header";
            return Err(Error::Archive { reason, offset });
        }
        let name_start = offset + HEADER;
        let name_end = name_start.saturating_add(field(11)? as usize);
        let name = match archive.get(name_start..name_end) {
            Some([name @ .., 0]) => name,
            _ => {
                return Err(Error::Archive {
                    reason: "name breaks off",
                    offset: name_start,
                });
            }
        };
        if name == TRAILER.as_bytes() {
            return Ok(entries);
        }
        let data_start = name_end.next_multiple_of(4);
        let data_end = data_start.saturating_add(field(6)? as usize);
        let data = archive.get(data_start..data_end).ok_or(Error::Archive {
            reason: "data breaks off",
            offset: data_start,
        })?;
        entries.push(Entry {
            name,
            mode: field(1)?,
            uid: field(2)?,
            gid: field(3)?,
            links: field(4)?,
            mtime: field(5)?,
            data,
        });
        offset = data_end.next_multiple_of(4);
    }
}

fn number(archive: &[u8], offset: usize) -> Result<u32, Error> {
    archive
        .get(offset..offset + 8)
        .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or(Error::Archive {
            reason: "field is no number",
            offset,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(init: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(&Content::bytes(init), &mut out).expect("writing to memory");
        out
    }

    #[test]
    fn an_archive_of_three_bytes_is_these_bytes() {
        let expected = [
            "070701",
            "00000001",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000003",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0\0",
            "abc\0", //
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0\0\0\0",
        ];
        let expected = expected.concat();
        // Header and name together are padded to four: 110 + 5 + 1, 110 + 11 + 3.
        assert_eq!(expected.len(), 116 + 4 + 124);
        assert_eq!(archive(b"abc"), expected.as_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_as_one_file(init in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = archive(&init);
            prop_assert_eq!(bytes.len() % 4, 0);
            let expected = Entry { name: b"init", mode: 0o100_755, uid: 0, gid: 0, links: 1, mtime: 0, data: &init };
            prop_assert_eq!(read(&bytes).expect("own archive"), vec![expected]);
        }

        #[test]
        fn an_archive_that_breaks_off_is_an_error(init in proptest::collection::vec(any::<u8>(), 0..50), cut in 0usize..1000) {
            let bytes = archive(&init);
            // The last three bytes may be padding after the trailer.
            let end = cut % (bytes.len() - 3);
            prop_assert!(read(&bytes[..end]).is_err());
        }

        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0usize..300) {
            let _ = read(&bytes);
            let mut damaged = archive(b"abc");
            let flip = flip % damaged.len();
            damaged[flip] ^= bytes.first().copied().unwrap_or(1);
            let _ = read(&damaged);
        }
    }

    #[test]
    fn a_field_that_claims_more_than_there_is_is_an_error() {
        let mut bytes = archive(b"abc");
        bytes[6 + 8 * 6..6 + 8 * 7].copy_from_slice(b"ffffffff");
        assert!(matches!(read(&bytes), Err(Error::Archive { .. })));
        bytes[6 + 8 * 6..6 + 8 * 7].copy_from_slice(b"+0000003");
        assert!(matches!(read(&bytes), Err(Error::Archive { .. })));
    }
}
