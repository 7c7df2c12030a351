//! Operations on directories of this machine, through files instead of pipes. Devices and owners need
//! root; without it those lines are left out.

use super::*;
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tether_wire::files::{
    Decoder, FileEntry, FileKind, Item, Shape, Timestamp, Xattr, encode_end, encode_entry,
};
use tether_wire::message::Conflicts;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("tether-transfer-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    fn tree(&self) -> Tree {
        Tree::open(self.root().to_str().unwrap()).unwrap()
    }

    /// A file in place of a pipe, for reading from its start or for writing.
    fn stream(&self, contents: &[u8]) -> OwnedFd {
        let path = self.0.join("stream");
        fs::write(&path, contents).unwrap();
        open(path.to_str().unwrap(), OFlags::RDWR, Mode::empty()).unwrap()
    }

    fn output(
        &self,
        shape: Shape,
        work: impl FnOnce(BorrowedFd<'_>) -> Outcome<()>,
    ) -> core::result::Result<Found, Failure> {
        let stream = self.stream(b"");
        work(stream.as_fd()).map_err(|stopped| stopped.kind)?;
        let bytes = fs::read(self.0.join("stream")).unwrap();
        Ok(decode(shape, &bytes))
    }

    fn stat(&self, path: &str) -> core::result::Result<Found, Failure> {
        self.output(Shape::Stat, |to| {
            read::stat(&self.tree(), path.as_bytes(), to)
        })
    }

    fn read(&self, path: &str) -> core::result::Result<Found, Failure> {
        let contents = read::Contents::Included;
        self.output(Shape::Tree, |to| {
            read::tree(&self.tree(), path.as_bytes(), contents, to)
        })
    }

    fn list(&self, path: &str) -> Found {
        let contents = read::Contents::Left;
        let list = |to: BorrowedFd<'_>| read::tree(&self.tree(), path.as_bytes(), contents, to);
        self.output(Shape::Listing, list).unwrap()
    }

    fn write(
        &self,
        path: &str,
        conflicts: Conflicts,
        records: &Found,
    ) -> core::result::Result<(), Failure> {
        let mut bytes = Vec::new();
        for (entry, contents) in records {
            encode_entry(entry, &mut bytes).unwrap();
            bytes.extend_from_slice(contents);
        }
        encode_end(&mut bytes);
        self.write_bytes(path, conflicts, &bytes)
    }

    fn write_bytes(
        &self,
        path: &str,
        conflicts: Conflicts,
        bytes: &[u8],
    ) -> core::result::Result<(), Failure> {
        let stream = self.stream(bytes);
        let path = checked(path.as_bytes()).map_err(|stopped| stopped.kind)?;
        write::tree(&self.tree(), path, conflicts, None, stream.as_fd())
            .map_err(|stopped| stopped.kind)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Found = Vec<(FileEntry, Vec<u8>)>;

fn decode(shape: Shape, mut bytes: &[u8]) -> Found {
    let mut decoder = Decoder::new(shape);
    let mut found: Found = Vec::new();
    while let Some(item) = decoder.next(&mut bytes).unwrap() {
        match item {
            Item::Entry(entry) => found.push((entry, Vec::new())),
            Item::Data(data) => found.last_mut().unwrap().1.extend_from_slice(data),
            Item::End => {}
        }
    }
    decoder.finish().unwrap();
    found
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn entry(path: &str, kind: FileKind) -> FileEntry {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    FileEntry {
        path: path.into(),
        kind,
        mode: 0o640,
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        modified: Timestamp {
            seconds: 1_000_000_000,
            nanos: 123_456_789,
        },
        xattrs: vec![],
    }
}

fn file(path: &str, contents: &str) -> (FileEntry, Vec<u8>) {
    let size = contents.len() as u64;
    (entry(path, FileKind::Regular { size }), contents.into())
}

fn directory(path: &str) -> (FileEntry, Vec<u8>) {
    let mut entry = entry(path, FileKind::Directory);
    entry.mode = 0o1751;
    (entry, vec![])
}

fn link(path: &str, target: &str) -> (FileEntry, Vec<u8>) {
    let target = target.into();
    let mut entry = entry(path, FileKind::Symlink { target });
    entry.mode = 0o777;
    (entry, vec![])
}

fn hard_link(path: &str, target: &str) -> (FileEntry, Vec<u8>) {
    let target = target.into();
    (entry(path, FileKind::HardLink { target }), vec![])
}

#[track_caller]
fn same(found: &[(FileEntry, Vec<u8>)], expected: &[(FileEntry, Vec<u8>)]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.0, expected.0);
        assert!(
            found.1 == expected.1,
            "contents of {}",
            shown(&found.0.path)
        );
    }
    assert_eq!(found.len(), expected.len());
}

/// One of every kind, in order.
fn everything() -> Found {
    let mut all = vec![
        directory(""),
        directory("d"),
        file("d/empty", ""),
        file("d/f", &"contents".repeat(20_000)),
        hard_link("d/g", "d/f"),
        directory("d/sub"),
        link("dangling", "/no/where"),
        (entry("fifo", FileKind::Fifo), vec![]),
        (entry("socket", FileKind::Socket), vec![]),
        link("up", "../../../../../etc"),
    ];
    all[3].0.mode = 0o4711;
    all[4].0.mode = 0o4711;
    if is_root() {
        for (entry, _) in &mut all {
            (entry.uid, entry.gid) = (1234, 77);
        }
        for entry in &mut all[3..5] {
            entry.0.xattrs = vec![Xattr {
                name: b"security.capability".to_vec(),
                // VFS_CAP_REVISION_2, cap_net_raw+ep (linux/capability.h).
                value: [
                    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ]
                .to_vec(),
            }];
        }
        let device = entry("zero", FileKind::CharacterDevice { major: 1, minor: 5 });
        let disk = entry(
            "zz",
            FileKind::BlockDevice {
                major: 259,
                minor: 300,
            },
        );
        all.extend([(device, vec![]), (disk, vec![])]);
    }
    all
}

#[test]
fn what_was_written_is_read_again_with_every_attribute() {
    let scratch = Scratch::new("round");
    fs::create_dir(scratch.root().join("t")).unwrap();
    let all = everything();
    // A record of the place itself is for reading; writing leaves the place as it is.
    scratch.write("/t", Conflicts::Replace, &all).unwrap();
    let found = scratch.read("/t").unwrap();
    same(&found[1..], &all[1..]);
    // Over itself, in any order and twice, it stays the same.
    let mut backwards: Found = all[1..].iter().rev().cloned().collect();
    backwards.sort_by_key(|(entry, _)| matches!(entry.kind, FileKind::HardLink { .. }));
    scratch
        .write("/t", Conflicts::KeepKind, &backwards)
        .unwrap();
    scratch.write("/t", Conflicts::Replace, &all).unwrap();
    same(&scratch.read("/t").unwrap()[1..], &all[1..]);
}

#[test]
fn a_listing_has_every_name_with_its_own_size() {
    let scratch = Scratch::new("list");
    let all = everything();
    scratch.write("/", Conflicts::Replace, &all).unwrap();
    let mut expected = all;
    for (entry, contents) in &mut expected {
        if let FileKind::HardLink { .. } = entry.kind {
            entry.kind = FileKind::Regular { size: 160_000 };
        }
        contents.clear();
    }
    same(&scratch.list("/")[1..], &expected[1..]);
}

#[test]
fn siblings_come_in_the_order_of_their_bytes() {
    let scratch = Scratch::new("order");
    for path in ["b", "a/x", "a-b", "a.c", "B", "a/y/z"] {
        fs::create_dir_all(scratch.root().join(path)).unwrap();
    }
    let paths: Vec<String> = scratch
        .list("/")
        .iter()
        .map(|(entry, _)| String::from_utf8(entry.path.clone()).unwrap())
        .collect();
    assert_eq!(
        paths,
        ["", "B", "a", "a/x", "a/y", "a/y/z", "a-b", "a.c", "b"]
    );
}

#[test]
fn a_link_at_the_end_is_followed_only_when_a_slash_comes_after() {
    let scratch = Scratch::new("stat");
    fs::create_dir_all(scratch.root().join("real/dir")).unwrap();
    symlink("/real/dir", scratch.root().join("link")).unwrap();
    symlink("nowhere", scratch.root().join("dangling")).unwrap();
    fs::write(scratch.root().join("file"), "123").unwrap();
    let shown = |path: &str| -> core::result::Result<Vec<(String, bool)>, Failure> {
        let found = scratch.stat(path)?;
        let show = |(entry, _): &(FileEntry, Vec<u8>)| {
            let path = String::from_utf8(entry.path.clone()).unwrap();
            (path, entry.kind == FileKind::Directory)
        };
        Ok(found.iter().map(show).collect())
    };
    let own = |directory| Ok(vec![(String::new(), directory)]);
    assert_eq!(shown("/"), own(true));
    assert_eq!(shown("/real/../real/./dir"), own(true));
    assert_eq!(
        shown("/link"),
        Ok(vec![(String::new(), false), ("real/dir".into(), true)])
    );
    assert_eq!(shown("/link/"), own(true));
    assert_eq!(shown("/link/."), own(true));
    assert_eq!(shown("/dangling"), own(false));
    assert_eq!(shown("/file"), own(false));
    assert_eq!(shown("/file/"), Err(Failure::NotADirectory));
    assert_eq!(shown("/file/x"), Err(Failure::NotADirectory));
    assert_eq!(shown("/none"), Err(Failure::NotFound));
    assert_eq!(shown("/../../../file"), own(false));
    assert_eq!(scratch.read("/file").unwrap()[0].1, b"123");
    assert_eq!(scratch.read("/link").unwrap().len(), 1);
    assert_eq!(scratch.read("/real/").unwrap().len(), 2);
}

#[test]
fn nothing_leads_out_of_the_root() {
    let scratch = Scratch::new("escape");
    let victim = scratch.0.join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("secret"), "secret").unwrap();
    symlink("../../victim", scratch.root().join("up")).unwrap();
    symlink(&victim, scratch.root().join("absolute")).unwrap();
    for path in [
        "/up/secret",
        "/absolute/secret",
        "/../victim/secret",
        "/up/",
    ] {
        assert_eq!(scratch.stat(path), Err(Failure::NotFound), "{path}");
        assert_eq!(scratch.read(path), Err(Failure::NotFound), "{path}");
    }
    // Reading the root gives the links, and nothing behind them.
    let found = scratch.read("/").unwrap();
    assert_eq!(found.len(), 3);
    for path in ["/up", "/absolute", "/../victim"] {
        let written = scratch.write(path, Conflicts::Replace, &vec![file("x", "x")]);
        assert_eq!(written, Err(Failure::NotFound), "{path}");
    }
    // Made by the stream itself, first a link and then something below it.
    let records = vec![link("l", "../../victim"), file("l/x", "x")];
    let written = scratch.write("/", Conflicts::Replace, &records);
    assert_eq!(written, Err(Failure::NotADirectory));
    let records = vec![link("m", "../victim/secret"), file("m", "x")];
    scratch.write("/", Conflicts::Replace, &records).unwrap();
    let records = vec![hard_link("h", "up/secret")];
    assert_eq!(
        scratch.write("/", Conflicts::Replace, &records),
        Err(Failure::NotFound)
    );
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert_eq!(fs::read(victim.join("secret")).unwrap(), b"secret");
}

#[test]
fn what_is_in_the_way_is_replaced_or_kept() {
    let check = |conflicts, there: &Found, record: (FileEntry, Vec<u8>), expected| {
        let scratch = Scratch::new("way");
        scratch.write("/", Conflicts::Replace, there).unwrap();
        let records = vec![record];
        let written = scratch.write("/", conflicts, &records);
        assert_eq!(written, expected, "{conflicts:?} {there:?} {records:?}");
        let kept = if expected.is_ok() { &records } else { there };
        let found = scratch.read("/").unwrap();
        assert!(found.contains(&kept[0]), "{kept:?} {found:?}");
    };
    let full = vec![directory("x"), file("x/inside", "1")];
    let conflict = Err(Failure::Conflict);
    for conflicts in [Conflicts::Replace, Conflicts::KeepKind] {
        check(conflicts, &vec![file("x", "old")], file("x", "new"), Ok(()));
        check(conflicts, &vec![link("x", "/y")], file("x", "new"), Ok(()));
        check(conflicts, &vec![file("x", "old")], link("x", "y"), Ok(()));
        check(conflicts, &full, directory("x"), Ok(()));
    }
    check(Conflicts::Replace, &full, file("x", "new"), Ok(()));
    check(
        Conflicts::Replace,
        &vec![file("x", "old")],
        directory("x"),
        Ok(()),
    );
    check(
        Conflicts::Replace,
        &vec![link("x", ".")],
        directory("x"),
        Ok(()),
    );
    check(Conflicts::KeepKind, &full, file("x", "new"), conflict);
    check(
        Conflicts::KeepKind,
        &vec![file("x", "old")],
        directory("x"),
        conflict,
    );
    check(
        Conflicts::KeepKind,
        &vec![link("x", ".")],
        directory("x"),
        conflict,
    );
}

#[test]
fn missing_directories_are_made_and_links_to_some_are_followed() {
    let scratch = Scratch::new("parents");
    fs::create_dir_all(scratch.root().join("usr/lib")).unwrap();
    symlink("usr/lib", scratch.root().join("lib")).unwrap();
    let records = vec![
        file("a/b/c", "1"),
        file("lib/so", "2"),
        file("lib/deep/so", "3"),
    ];
    scratch.write("/", Conflicts::KeepKind, &records).unwrap();
    let contents = |path: &str| fs::read(scratch.root().join(path)).unwrap();
    assert_eq!(contents("a/b/c"), b"1");
    assert_eq!(contents("usr/lib/so"), b"2");
    assert_eq!(contents("usr/lib/deep/so"), b"3");
    assert!(
        fs::symlink_metadata(scratch.root().join("lib"))
            .unwrap()
            .is_symlink()
    );
    let mode = fs::metadata(scratch.root().join("a/b")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_place_that_is_no_directory_and_streams_that_are_none_say_so() {
    let scratch = Scratch::new("wrong");
    fs::write(scratch.root().join("file"), "1").unwrap();
    let write = |path: &str, bytes: &[u8]| scratch.write_bytes(path, Conflicts::Replace, bytes);
    let end = [0; 4];
    assert_eq!(write("/", &end), Ok(()));
    assert_eq!(write("/file", &end), Err(Failure::NotADirectory));
    assert_eq!(write("/none", &end), Err(Failure::NotFound));
    assert_eq!(write("none", &end), Err(Failure::BadPath));
    assert_eq!(write("/a\0", &end), Err(Failure::BadPath));
    assert_eq!(write("/", b""), Err(Failure::BadStream));
    assert_eq!(write("/", b"\x01\x00\x00\x00\xff"), Err(Failure::BadStream));
    let base = vec![file("", "x")];
    assert_eq!(
        scratch.write("/", Conflicts::Replace, &base),
        Err(Failure::BadStream)
    );
    // Cut off amidst a file.
    let mut bytes = Vec::new();
    encode_entry(&file("f", "12345").0, &mut bytes).unwrap();
    bytes.extend(b"123");
    assert_eq!(write("/", &bytes), Err(Failure::BadStream));
}

#[test]
fn a_file_has_the_size_that_was_announced() {
    // What /proc has is longer than it says: it says 0.
    let scratch = Scratch::new("size");
    let tree = Tree::open("/proc").unwrap();
    let contents = read::Contents::Included;
    let read = |to: BorrowedFd<'_>| read::tree(&tree, b"/version", contents, to);
    let found = scratch.output(Shape::Tree, read).unwrap();
    assert_eq!(found[0].0.kind, FileKind::Regular { size: 0 });
    assert!(found[0].1.is_empty());
    // And what sysfs has is shorter: it says one page.
    let tree = Tree::open("/sys/kernel").unwrap();
    let read = |to: BorrowedFd<'_>| read::tree(&tree, b"/uevent_seqnum", contents, to);
    let found = scratch.output(Shape::Tree, read).unwrap();
    assert_eq!(found[0].0.kind, FileKind::Regular { size: 4096 });
    assert_eq!(found[0].1.len(), 4096);
    assert_eq!(found[0].1.last(), Some(&0));
}

#[test]
fn holes_read_as_zeros() {
    let scratch = Scratch::new("holes");
    let file = File::create(scratch.root().join("f")).unwrap();
    file.set_len(300_000).unwrap();
    let found = scratch.read("/f").unwrap();
    assert_eq!(found[0].1, vec![0; 300_000]);
}

#[test]
fn deep_trees_are_read_whole() {
    let scratch = Scratch::new("deep");
    let mut path = scratch.root();
    for _ in 0..300 {
        path.push("d");
    }
    fs::create_dir_all(&path).unwrap();
    assert_eq!(scratch.list("/").len(), 301);
}

#[test]
fn marks_of_mount_points_are_not_written() {
    let scratch = Scratch::new("marks");
    let mut records = vec![directory("proc")];
    records[0].0.xattrs = vec![Xattr {
        name: tether_wire::files::MOUNT_POINT.to_vec(),
        value: b"1".to_vec(),
    }];
    scratch.write("/", Conflicts::Replace, &records).unwrap();
    assert!(scratch.list("/")[1].0.xattrs.is_empty());
}

#[test]
fn a_directory_that_was_there_gets_the_mode_and_keeps_its_files() {
    let scratch = Scratch::new("merge");
    let inside = scratch.root().join("d/inside");
    fs::create_dir(scratch.root().join("d")).unwrap();
    fs::write(&inside, "kept").unwrap();
    let path: &Path = &scratch.root().join("d");
    fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    scratch
        .write("/", Conflicts::KeepKind, &vec![directory("d")])
        .unwrap();
    assert_eq!(fs::read(&inside).unwrap(), b"kept");
    let found: BTreeMap<_, _> = scratch
        .list("/")
        .into_iter()
        .map(|(entry, _)| (entry.path.clone(), entry))
        .collect();
    assert_eq!(found[b"d".as_slice()], directory("d").0);
}
