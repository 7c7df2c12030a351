//! VMDK disks as QEMU's tools see them.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::ext4::Filesystem;
use image::digest::Digest;
use image::disk::Disk;
use image::ext4::Label;
use image::vmdk::{self, SparseDisk, VmdkError};

fn tool(program: &str, args: &[&str]) -> Option<String> {
    let output = common::run(program, args)?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    Some(text)
}

fn convert(disk: &Path, raw: &Path) -> Option<Vec<u8>> {
    tool("qemu-img", &["check", disk.to_str()?])?;
    tool(
        "qemu-img",
        &["convert", "-O", "raw", disk.to_str()?, raw.to_str()?],
    )?;
    Some(fs::read(raw).unwrap())
}

/// A disk of `size` bytes with `pieces` written in this order, and what it must read as.
fn write(path: &Path, size: u64, pieces: &[(u64, usize, u8)], discarded: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = SparseDisk::new(fs::File::create_new(path).unwrap());
    let mut expected = vec![0; size as usize];
    for &(offset, length, value) in pieces {
        disk.write(offset, &vec![value; length]).unwrap();
        expected[offset as usize..][..length].fill(value);
    }
    for &(offset, length) in discarded {
        disk.discard(offset, length).unwrap();
        expected[offset as usize..][..length as usize].fill(0);
    }
    disk.identify(&Digest::of(b"disk"));
    disk.finish(size).unwrap();
    expected
}

#[test]
fn a_sparse_disk_reads_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.vmdk");
    let mib = 1 << 20;
    let expected = write(
        &path,
        70 * mib,
        &[
            (512, 1024, 1),
            // Over the end of the first table, backwards, and across grains.
            (33 * mib, 3 * mib as usize, 2),
            (31 * mib, 4 * mib as usize, 3),
            (69 * mib, mib as usize, 4),
            (100_352, 200_192, 5),
            (66_048, 512, 6),
        ],
        &[
            (34 * mib, 65_536 + 4096),
            (131_072, 65_536),
            (60 * mib, mib),
            (512, 512),
        ],
    );
    let Some(found) = convert(&path, &directory.path().join("raw")) else {
        return;
    };
    assert!(found == expected);
    let info = tool("qemu-img", &["info", path.to_str().unwrap()]).unwrap();
    assert!(info.contains("create type: monolithicSparse"), "{info}");
}

#[test]
fn an_empty_disk_has_the_size_it_was_given() {
    let directory = tempfile::tempdir().unwrap();
    for size in [65_536, 16 << 20, 33 << 20] {
        let path = directory.path().join(format!("{size}.vmdk"));
        write(&path, size, &[], &[]);
        assert_eq!(vmdk::info(&path).unwrap().size, size);
        let Some(found) = convert(&path, &directory.path().join("raw")) else {
            return;
        };
        assert_eq!(found.len() as u64, size);
    }
}

#[test]
fn a_child_reads_as_its_parent_until_it_is_written_to_and_never_changes_it() {
    let directory = tempfile::tempdir().unwrap();
    let parent = directory.path().join("image.vmdk");
    let child = directory.path().join("child.vmdk");
    let grandchild = directory.path().join("grandchild.vmdk");
    let expected = write(
        &parent,
        40 << 20,
        &[(0, 8192, 1), (34 << 20, 100_352, 2)],
        &[],
    );
    let before = fs::read(&parent).unwrap();
    vmdk::create_child(&parent, &child).unwrap();
    assert!(fs::metadata(&child).unwrap().blocks() * 512 <= 64 << 10);
    let raw = directory.path().join("raw");
    let Some(found) = convert(&child, &raw) else {
        return;
    };
    assert!(found == expected);
    let info = tool(
        "qemu-img",
        &["info", "--output=json", child.to_str().unwrap()],
    )
    .unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        info["full-backing-filename"].as_str(),
        fs::canonicalize(&parent).unwrap().to_str()
    );
    assert_eq!(
        info["format-specific"]["data"]["parent-cid"],
        vmdk::info(&parent).unwrap().cid
    );
    assert_ne!(
        vmdk::info(&parent).unwrap().cid,
        vmdk::info(&child).unwrap().cid
    );

    let write = |disk: &Path, command: &str| {
        tool(
            "qemu-io",
            &["-f", "vmdk", "-c", command, disk.to_str().unwrap()],
        )
    };
    if write(&child, "write -P 7 4096 4096").is_none() {
        return;
    }
    write(&child, "write -P 8 36M 100k").unwrap();
    let mut changed = expected;
    changed[4096..8192].fill(7);
    changed[36 << 20..][..100 << 10].fill(8);
    assert!(convert(&child, &raw).unwrap() == changed);
    assert!(fs::read(&parent).unwrap() == before);

    // A container's disk can itself be a parent, once it is no longer written to.
    vmdk::create_child(&child, &grandchild).unwrap();
    assert!(convert(&grandchild, &raw).unwrap() == changed);
    write(&grandchild, "write -P 9 0 512").unwrap();
    changed[..512].fill(9);
    assert!(convert(&grandchild, &raw).unwrap() == changed);
}

#[test]
fn a_childs_size_follows_from_its_parents_size_alone() {
    let directory = tempfile::tempdir().unwrap();
    let stored = |name: &str, size: u64, pieces: &[(u64, usize, u8)]| {
        let parent = directory.path().join(format!("{name}.vmdk"));
        let child = directory.path().join(format!("{name}-child.vmdk"));
        let mut disk = SparseDisk::new(fs::File::create_new(&parent).unwrap());
        for &(offset, length, value) in pieces {
            disk.write(offset, &vec![value; length]).unwrap();
        }
        disk.finish(size).unwrap();
        vmdk::create_child(&parent, &child).unwrap();
        let metadata = fs::metadata(&child).unwrap();
        (metadata.len(), metadata.blocks() * 512)
    };
    let empty = stored("empty", 10 << 30, &[]);
    let full = stored(
        "full",
        10 << 30,
        &[(0, 50 << 20, 1), (9 << 30, 50 << 20, 2)],
    );
    assert_eq!(empty, full);
    assert!(empty.1 <= 32 << 10, "{empty:?}");
    let large = stored("large", 1 << 40, &[]);
    assert!(large.1 <= 512 << 10, "{large:?}");
}

#[test]
fn parents_that_are_none_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let child = directory.path().join("child.vmdk");
    let missing = directory.path().join("missing.vmdk");
    assert!(matches!(
        vmdk::create_child(&missing, &child),
        Err(VmdkError::Read { .. })
    ));
    for bytes in [&b""[..], b"KDMV", &[0; 4096]] {
        let path = directory.path().join("wrong.vmdk");
        fs::write(&path, bytes).unwrap();
        assert!(matches!(
            vmdk::create_child(&path, &child),
            Err(VmdkError::Format { .. })
        ));
    }
    let quoted = directory.path().join("a\"b.vmdk");
    write(&quoted, 1 << 20, &[], &[]);
    assert!(matches!(
        vmdk::create_child(&quoted, &child),
        Err(VmdkError::Path { .. })
    ));
    let long = directory
        .path()
        .join("d".repeat(250))
        .join("e".repeat(250))
        .join("f".repeat(250))
        .join("g".repeat(250));
    fs::create_dir_all(&long).unwrap();
    let long = long.join("image.vmdk");
    write(&long, 1 << 20, &[], &[]);
    assert!(matches!(
        vmdk::create_child(&long, &child),
        Err(VmdkError::Path { .. })
    ));
    assert!(!child.exists());
    let parent = directory.path().join("parent.vmdk");
    write(&parent, 1 << 20, &[], &[]);
    fs::write(&child, "in the way").unwrap();
    assert!(matches!(
        vmdk::create_child(&parent, &child),
        Err(VmdkError::Create { .. })
    ));
    assert_eq!(fs::read(&child).unwrap(), b"in the way");
}

#[test]
fn a_new_volume_is_an_empty_clean_filesystem_that_takes_writes() {
    let directory = tempfile::tempdir().unwrap();
    for size in [16 << 20, (100 << 20) + 12_345, 10 << 30] {
        let path = directory.path().join(format!("{size}.vmdk"));
        vmdk::create_scratch(size, Label::new("data").unwrap(), &path).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 256 << 10);
        let raw = directory.path().join("raw");
        if tool("qemu-img", &["check", path.to_str().unwrap()]).is_none() {
            return;
        }
        tool(
            "qemu-img",
            &[
                "convert",
                "-O",
                "raw",
                path.to_str().unwrap(),
                raw.to_str().unwrap(),
            ],
        )
        .unwrap();
        common::assert_clean(&raw);
        assert_eq!(Filesystem::open(&raw).all().len(), 1);
        assert_eq!(fs::metadata(&raw).unwrap().len(), size / 65_536 * 65_536);
        // A grain that was not there before.
        if tool(
            "qemu-io",
            &[
                "-f",
                "vmdk",
                "-c",
                "write -P 7 12M 4k",
                path.to_str().unwrap(),
            ],
        )
        .is_some()
        {
            tool(
                "qemu-io",
                &[
                    "-f",
                    "vmdk",
                    "-c",
                    "read -P 7 12M 4k",
                    path.to_str().unwrap(),
                ],
            )
            .unwrap();
            tool("qemu-img", &["check", path.to_str().unwrap()]).unwrap();
        }
    }
    let first = directory.path().join("1.vmdk");
    let second = directory.path().join("2.vmdk");
    for path in [&first, &second] {
        vmdk::create_scratch(16 << 20, Label::EMPTY, path).unwrap();
    }
    assert_ne!(
        vmdk::info(&first).unwrap().cid,
        vmdk::info(&second).unwrap().cid
    );
    assert!(matches!(
        vmdk::create_scratch(1 << 20, Label::EMPTY, &directory.path().join("s")),
        Err(VmdkError::Filesystem { .. })
    ));
    assert!(matches!(
        vmdk::create_scratch(16 << 20, Label::EMPTY, &first),
        Err(VmdkError::Create { .. })
    ));
}

#[test]
fn an_exported_stream_reads_as_the_disk_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("d.vmdk");
    let stream = directory.path().join("stream.vmdk");
    let raw = directory.path().join("raw");
    let mib = 1 << 20;
    for pieces in [
        &[][..],
        &[
            (512, 1024, 1),
            (10 * mib, 65_536, 0),
            (33 * mib, 3 * mib as usize, 2),
            (129 * mib, mib as usize, 3),
        ],
    ] {
        let _ = fs::remove_file(&path);
        let expected = write(&path, 130 * mib, pieces, &[]);
        let written = vmdk::export_stream(&path, fs::File::create(&stream).unwrap()).unwrap();
        assert_eq!(fs::metadata(&stream).unwrap().len(), written);
        assert!(written < 200 << 10, "{written}");
        let mut again = Vec::new();
        vmdk::export_stream(&path, &mut again).unwrap();
        assert!(fs::read(&stream).unwrap() == again);
        let Some(found) = convert(&stream, &raw) else {
            return;
        };
        assert!(found == expected);
        let info = tool("qemu-img", &["info", stream.to_str().unwrap()]).unwrap();
        assert!(info.contains("create type: streamOptimized"), "{info}");
    }
    let child = directory.path().join("child.vmdk");
    vmdk::create_child(&path, &child).unwrap();
    assert!(matches!(
        vmdk::export_stream(&child, Vec::new()),
        Err(VmdkError::Format { .. })
    ));
}

#[test]
fn a_vmdk_is_known_by_how_it_begins() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    for (head, expected) in [
        (&b"KDMV\x01\0\0\0"[..], true),
        (b"COWD\x01\0\0\0", true),
        (b"# Disk DescriptorFile\nversion=1\n", true),
        (b"this is no VMDK\n", false),
        (b"KDM", false),
        (b"", false),
    ] {
        fs::write(&file, head).unwrap();
        assert_eq!(vmdk::is_vmdk(&file).unwrap(), expected, "{head:?}");
    }
    assert!(vmdk::is_vmdk(&directory.path().join("missing")).is_err());
}
