//! Finding disks: by serial number as the hypervisor gave it, or by ext4 label.
//!
//! vSphere gives a disk no serial number of anybody's choice; there the hypervisor says beside, in
//! `guestinfo.tether.disks`, which serial is at which target of the SCSI controller. That is read whenever a disk is
//! looked for, for disks come and go.
//!
//! Nothing here waits: the kernel says on its uevent socket when a block device appears, and the
//! caller looks again.

use crate::boot;
use crate::failure::{Result, invalid};
use crate::files;
use crate::prelude::*;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;
use tether_wire::message::{DiskId, Error, ErrorKind};

const BLOCK: &str = "/sys/block";

/// The device file of the disk, if it is there now.
///
/// # Errors
/// `Invalid` for an empty name.
pub fn find(disk: &DiskId) -> Result<Option<String>> {
    let (DiskId::Serial(wanted) | DiskId::Label(wanted)) = disk;
    if wanted.is_empty() {
        return Err(invalid("a disk is named by an empty serial or label"));
    }
    let target = match disk {
        DiskId::Serial(serial) => {
            boot::firmware_disks().and_then(|table| target_of(&table, serial))
        }
        DiskId::Label(_) => None,
    };
    for name in files::names(BLOCK).unwrap_or_default() {
        let device = format!("/dev/{name}");
        let matches = match disk {
            DiskId::Serial(serial) => {
                has_serial(&name, serial) || (target.is_some() && scsi_target(&name) == target)
            }
            DiskId::Label(label) => {
                label_of(&device).is_some_and(|found| found == label.as_bytes())
            }
        };
        if matches {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// What is said when it did not come in time; with what there is instead.
pub fn absent(disk: &DiskId) -> Error {
    let mut present = String::new();
    for name in files::names(BLOCK).unwrap_or_default() {
        if !present.is_empty() {
            present.push_str(", ");
        }
        present.push_str(&name);
        if let Some(serial) = serials(&name).into_iter().next() {
            present.push_str(" (serial ");
            present.push_str(&String::from_utf8_lossy(&serial));
            present.push(')');
        }
    }
    if present.is_empty() {
        present.push_str("none");
    }
    let what = match disk {
        DiskId::Serial(serial) => format!("no disk with serial {serial:?} appeared in time"),
        DiskId::Label(label) => format!("no ext4 disk with label {label:?} appeared in time"),
    };
    Error::new(
        ErrorKind::NotFound,
        format!("{what}; the machine's disks: {present}"),
    )
}

fn has_serial(name: &str, wanted: &str) -> bool {
    serials(name)
        .iter()
        .any(|serial| serial == wanted.as_bytes())
}

/// The target of `wanted` in a table like `0=root,1=data`.
fn target_of(table: &[u8], wanted: &str) -> Option<u32> {
    core::str::from_utf8(table)
        .ok()?
        .split(',')
        .find_map(|entry| {
            let (target, serial) = entry.split_once('=')?;
            (serial == wanted).then(|| target.trim().parse().ok())?
        })
}

/// The SCSI target of a disk, from the name of its device: host, channel, target and unit
/// (Documentation/driver-api/scsi.rst, `scsi_device` names). A CD-ROM drive, which has a target of its own
/// controller's, is none: its type is not 0 (SPC-4, 6.6.2).
fn scsi_target(name: &str) -> Option<u32> {
    if files::text(format!("{BLOCK}/{name}/device/type")).trim() != "0" {
        return None;
    }
    let units = files::names(format!("{BLOCK}/{name}/device/scsi_device")).ok()?;
    target_in(units.first()?)
}

fn target_in(unit: &str) -> Option<u32> {
    let mut parts = unit.split(':');
    let target = parts.nth(2)?.parse().ok()?;
    // A second unit of a target has another number in the end.
    (parts.next() == Some("0") && parts.next().is_none()).then_some(target)
}

fn serials(name: &str) -> Vec<Vec<u8>> {
    // virtio-blk; NVMe; SCSI, whose VPD page 0x80 has a header of four bytes (SPC-4, 7.8.16).
    let plain = ["serial", "device/serial"]
        .iter()
        .filter_map(|file| files::content(format!("{BLOCK}/{name}/{file}")).ok());
    let scsi = files::content(format!("{BLOCK}/{name}/device/vpd_pg80"))
        .ok()
        .and_then(|page| Some(page.get(4..)?.to_vec()));
    plain
        .chain(scsi)
        .map(|bytes| trim(&bytes).to_vec())
        .filter(|serial| !serial.is_empty())
        .collect()
}

fn trim(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes[..end].trim_ascii()
}

fn label_of(device: &str) -> Option<Vec<u8>> {
    let file = open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut superblock = [0; 1024];
    let length = pread(&file, &mut superblock, 1024).ok()?;
    if length < superblock.len() {
        return None;
    }
    ext4_label(&superblock).map(<[u8]>::to_vec)
}

/// The label in an ext4 superblock (kernel fs/ext4/ext4.h: `s_magic` at 0x38, `s_volume_name` at
/// 0x78, 16 bytes).
fn ext4_label(superblock: &[u8; 1024]) -> Option<&[u8]> {
    (superblock[0x38..0x3a] == [0x53, 0xef]).then(|| {
        let field = &superblock[0x78..0x88];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(16);
        &field[..end]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_only_from_an_ext4_superblock() {
        let mut superblock = [0; 1024];
        superblock[0x78..0x7c].copy_from_slice(b"data");
        assert_eq!(ext4_label(&superblock), None);
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(ext4_label(&superblock), Some(&b"data"[..]));
        superblock[0x78..0x88].copy_from_slice(b"sixteen-letters!");
        assert_eq!(ext4_label(&superblock), Some(&b"sixteen-letters!"[..]));
    }

    #[test]
    fn a_disk_without_a_serial_is_known_by_its_target() {
        let table = b"0=root,8=data,x=bad,9";
        assert_eq!(target_of(table, "root"), Some(0));
        assert_eq!(target_of(table, "data"), Some(8));
        for absent in ["bad", "", "9", "roo"] {
            assert_eq!(target_of(table, absent), None, "{absent}");
        }
        assert_eq!(target_of(b"", "root"), None);
        assert_eq!(target_in("2:0:8:0"), Some(8));
        for other in ["2:0:8:1", "2:0:8", "2:0:x:0", "", "2:0:8:0:0"] {
            assert_eq!(target_in(other), None, "{other}");
        }
    }

    #[test]
    fn serials_lose_their_padding() {
        assert_eq!(trim(b"abc  \n"), b"abc");
        assert_eq!(trim(b"abc\0\0"), b"abc");
        assert_eq!(trim(b"   "), b"");
    }
}
