//! Files as records: to and from tar streams, against GNU tar and Python's; diffs; the list that the
//! store keeps; images of a container's files.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use common::{chain, run};
use image::ext4::Size;
use image::files::{Base, Change, ChangeKind, Diff, FilesError, Records, ToTar, from_tar};
use image::import::Options;
use image::progress::Silent;
use image::reference::Source;
use image::store::{Store, StoreError};
use image::tar::{Entry, EntryKind, Reader, Writer};
use image::tree::{Time, Xattrs};
use proptest::prelude::*;
use tether_wire::files::{
    Decoder, FileEntry, FileKind, FormatError, Item, MOUNT_POINT, Shape, Timestamp, Xattr, compare,
    encode_end, encode_entry,
};

type Files = Vec<(FileEntry, Vec<u8>)>;

fn entry(path: &str, kind: FileKind) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 100,
        modified: Timestamp {
            seconds: 1_600_000_000,
            nanos: 500_000_000,
        },
        xattrs: vec![],
    }
}

fn directory(path: &str) -> (FileEntry, Vec<u8>) {
    (entry(path, FileKind::Directory), vec![])
}

fn file(path: &str, contents: &str) -> (FileEntry, Vec<u8>) {
    let size = contents.len() as u64;
    (entry(path, FileKind::Regular { size }), contents.into())
}

fn encode(files: &[(FileEntry, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, contents) in files {
        encode_entry(entry, &mut bytes).unwrap();
        bytes.extend_from_slice(contents);
    }
    encode_end(&mut bytes);
    bytes
}

fn decode(shape: Shape, mut bytes: &[u8]) -> Files {
    let mut decoder = Decoder::new(shape);
    let mut found: Files = Vec::new();
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

/// One of every kind and every way a header can be too small, in order.
fn everything() -> Files {
    let long = "n".repeat(180);
    let deep = format!("deep/{}/{}", "d".repeat(120), "e".repeat(90));
    let mut far = file("far", "x");
    far.0.uid = u32::MAX;
    far.0.gid = 3_000_000;
    far.0.modified = Timestamp {
        seconds: -2,
        nanos: 250_000_000,
    };
    let mut capable = file("capable", "program");
    capable.0.mode = 0o4755;
    capable.0.xattrs = vec![
        Xattr {
            name: b"security.capability".to_vec(),
            value: vec![1, 0, 0, 2, 0, 10, 13],
        },
        Xattr {
            name: b"user.note".to_vec(),
            value: b"a=b\n".to_vec(),
        },
    ];
    let link = |path: &str, target: &str| {
        let target = target.into();
        (entry(path, FileKind::Symlink { target }), vec![])
    };
    let mut files = vec![
        directory(""),
        file("a", "contents\n"),
        capable,
        directory("d"),
        file("d/empty", ""),
        link("d/link", "../a"),
        link("d/long", &"t/".repeat(100)),
        directory("deep"),
        directory(&deep[..125]),
        file(&deep, &"0123456789".repeat(200)),
        far,
        (entry("fifo", FileKind::Fifo), vec![]),
        (
            entry(
                "hard",
                FileKind::HardLink {
                    target: b"a".to_vec(),
                },
            ),
            vec![],
        ),
        file(&long, "long"),
        (
            entry("null", FileKind::CharacterDevice { major: 1, minor: 3 }),
            vec![],
        ),
        file("späß", "not ASCII"),
        (
            entry(
                "zz",
                FileKind::BlockDevice {
                    major: 259,
                    minor: 0xfffff,
                },
            ),
            vec![],
        ),
    ];
    files.sort_by(|one, other| compare(&one.0.path, &other.0.path));
    files
}

fn to_tar(files: &Files, base: Base) -> Vec<u8> {
    let mut tar = ToTar::new(Vec::new(), base);
    for piece in encode(files).chunks(1000) {
        tar.push(piece).unwrap();
    }
    tar.finish().unwrap()
}

#[test]
fn a_tree_becomes_a_tar_and_again_a_tree() {
    let files = everything();
    for base in [
        Base::Left,
        Base::Named(b"b".to_vec()),
        Base::Named(b"/".to_vec()),
    ] {
        let tar = to_tar(&files, base.clone());
        let mut records = Vec::new();
        from_tar(&tar[..], &mut records).unwrap();
        let mut found = decode(Shape::Archive, &records);
        let mut expected = files.clone();
        match base {
            Base::Left => drop(expected.remove(0)),
            Base::Named(name) if name == b"b" => {
                for (entry, _) in &mut found {
                    let path = entry.path.strip_prefix(b"b").unwrap();
                    entry.path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
                    if let FileKind::HardLink { target } = &mut entry.kind {
                        *target = target.strip_prefix(b"b/").unwrap().to_vec();
                    }
                }
            }
            Base::Named(_) => {}
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn sockets_and_attributes_that_are_not_the_containers_go_into_no_archive() {
    let mut marked = directory("proc");
    marked.0.xattrs = vec![Xattr {
        name: MOUNT_POINT.to_vec(),
        value: b"1".to_vec(),
    }];
    let socket = (entry("socket", FileKind::Socket), vec![]);
    let tar = to_tar(&vec![directory(""), marked, socket], Base::Left);
    let mut reader = Reader::new(&tar[..]);
    let proc = reader.next_entry().unwrap().unwrap();
    assert_eq!(
        (proc.path.as_slice(), proc.xattrs.len()),
        (&b"proc/"[..], 0)
    );
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn other_programs_read_what_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("a.tar");
    let files = everything();
    fs::write(&path, to_tar(&files, Base::Named(b"base".to_vec()))).unwrap();
    let path = path.to_str().unwrap();
    if let Some(output) = run(
        "tar",
        &["--list", "--file", path, "--quoting-style=literal"],
    ) {
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let listed: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let expected: Vec<String> = files
            .iter()
            .map(|(entry, _)| {
                let path = String::from_utf8(entry.path.clone()).unwrap();
                let slash = if entry.kind == FileKind::Directory && !path.is_empty() {
                    "/"
                } else {
                    ""
                };
                format!("base/{path}{slash}")
            })
            .collect();
        assert_eq!(listed, expected);
    }
    let script = r#"
import sys, tarfile
for m in tarfile.open(sys.argv[1]):
    data = m.isfile() and tarfile.open(sys.argv[1]).extractfile(m.name).read() or b""
    caps = m.pax_headers.get("SCHILY.xattr.user.note", "")
    print(m.name, m.type.decode(), oct(m.mode), m.uid, m.gid, "%.2f" % m.mtime, m.size,
          m.linkname, m.devmajor, m.devminor, len(data), repr(caps), sep="|")
"#;
    if let Some(output) = run("python3", &["-c", script, path]) {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let seen = String::from_utf8(output.stdout).unwrap();
        for (line, (entry, contents)) in seen.lines().zip(&files) {
            let fields: Vec<&str> = line.split('|').collect();
            let path = String::from_utf8(entry.path.clone()).unwrap();
            let name = format!("base/{path}");
            assert_eq!(fields[0], name.trim_end_matches('/'));
            let time = entry.modified.seconds as f64 + f64::from(entry.modified.nanos) / 1e9;
            assert_eq!(fields[5], format!("{time:.2}"), "{name}");
            assert_eq!(fields[3], entry.uid.to_string());
            assert_eq!(fields[4], entry.gid.to_string());
            assert_eq!(fields[6], contents.len().to_string(), "{name}");
            assert_eq!(fields[10], contents.len().to_string(), "{name}");
            match &entry.kind {
                FileKind::Symlink { target } => {
                    assert_eq!(fields[7].as_bytes(), target);
                }
                FileKind::HardLink { .. } => assert_eq!(fields[7], "base/a"),
                FileKind::CharacterDevice { major, minor }
                | FileKind::BlockDevice { major, minor } => {
                    assert_eq!(fields[8..10], [major.to_string(), minor.to_string()]);
                }
                _ => {}
            }
            if name.ends_with("capable") {
                assert_eq!(fields[11], r"'a=b\n'");
            }
        }
        assert_eq!(seen.lines().count(), files.len());
    }
}

#[test]
fn an_archive_of_gnu_tar_with_holes_and_long_names_is_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let long = "l".repeat(150);
    fs::create_dir(&root).unwrap();
    fs::write(root.join(&long), "long").unwrap();
    let holes = fs::File::create(root.join("holes")).unwrap();
    holes.set_len(5 << 20).unwrap();
    let archive = scratch.path().join("a.tar");
    let (root, archive) = (root.to_str().unwrap(), archive.to_str().unwrap());
    for format in ["gnu", "pax"] {
        let format = format!("--format={format}");
        let args = [
            "--create",
            "--sparse",
            &format,
            "--file",
            archive,
            "--directory",
            root,
            ".",
        ];
        let Some(output) = run("tar", &args) else {
            return;
        };
        assert!(output.status.success());
        let tar = fs::read(archive).unwrap();
        assert!(tar.len() < 1 << 20);
        let mut records = Vec::new();
        from_tar(&tar[..], &mut records).unwrap();
        let found: BTreeMap<Vec<u8>, Vec<u8>> = decode(Shape::Archive, &records)
            .into_iter()
            .map(|(entry, contents)| (entry.path, contents))
            .collect();
        assert_eq!(found[long.as_bytes()], b"long");
        assert!(found[&b"holes"[..]] == vec![0; 5 << 20]);
        assert!(found.contains_key(&b""[..]));
    }
}

#[test]
fn tar_streams_that_lead_out_or_stop_are_refused() {
    let tar = |path: &[u8], size| {
        let mut writer = Writer::new(Vec::new());
        let entry = Entry {
            path: path.to_vec(),
            kind: EntryKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::new(),
            size,
        };
        writer.entry(&entry).unwrap();
        std::mem::take(writer.get_mut())
    };
    let mut out = Vec::new();
    let error = from_tar(&tar(b"a/../../b", 0)[..], &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the entry `a/../../b` of the tar stream cannot be used: its path has `..`"
    );
    let long = [b"x/".repeat(5000), b"y".to_vec()].concat();
    assert!(matches!(
        from_tar(&tar(&long, 0)[..], &mut out),
        Err(FilesError::Entry { .. })
    ));
    assert!(matches!(
        from_tar(&tar(b"a", 5)[..], &mut out),
        Err(FilesError::Tar(_))
    ));
    let mut cut = ToTar::new(Vec::new(), Base::Left);
    let bytes = encode(&[directory(""), file("a", "12345")]);
    cut.push(&bytes[..bytes.len() - 6]).unwrap();
    assert!(matches!(
        cut.finish(),
        Err(FilesError::Records(FormatError::Truncated))
    ));
}

fn diff(old: &Files, new: &Files) -> Vec<(ChangeKind, String)> {
    let old = encode(old);
    let mut diff = Diff::new(&old[..]);
    let mut changes = Vec::new();
    for piece in encode(new).chunks(7) {
        diff.push(piece).unwrap();
        changes.extend(diff.take());
    }
    changes.extend(diff.finish().unwrap());
    let shown = |Change { path, kind }| (kind, String::from_utf8(path).unwrap());
    changes.into_iter().map(shown).collect()
}

/// A listing of these paths: directories end with `/`, links have `->`, the rest are files whose size
/// comes after `=`.
fn listing(paths: &[&str]) -> Files {
    let mut files = vec![directory("")];
    for path in paths {
        files.push(if let Some(path) = path.strip_suffix('/') {
            directory(path)
        } else if let Some((path, target)) = path.split_once("->") {
            let target = target.into();
            (entry(path, FileKind::Symlink { target }), vec![])
        } else {
            let (path, size) = path.split_once('=').unwrap_or((path, "0"));
            let size = size.parse().unwrap();
            (entry(path, FileKind::Regular { size }), vec![])
        });
    }
    files
}

#[track_caller]
fn check_diff(old: &[&str], new: &[&str], expected: &[&str]) {
    let letters = |changes: Vec<(ChangeKind, String)>| -> Vec<String> {
        let line = |(kind, path)| format!("{} {path}", ["C", "A", "D"][kind as usize]);
        changes.into_iter().map(line).collect()
    };
    assert_eq!(letters(diff(&listing(old), &listing(new))), expected);
}

#[test]
fn changes_are_those_that_docker_tells() {
    let image = &[
        "bin/",
        "bin/sh=5",
        "etc/",
        "etc/group=3",
        "etc/passwd=4",
        "etc/x/",
        "etc/x/y",
        "tmp/",
    ];
    check_diff(image, image, &[]);
    check_diff(
        image,
        &[
            "bin/",
            "bin/sh=5",
            "etc/",
            "etc/group=9",
            "etc/x/",
            "etc/x/y",
            "new=0",
            "tmp/",
        ],
        &["C /etc", "C /etc/group", "D /etc/passwd", "A /new"],
    );
    // A directory that is gone is one line, and so is one that became something else.
    check_diff(image, &["bin/", "bin/sh=5", "tmp/"], &["D /etc"]);
    check_diff(image, &["bin/", "bin/sh=5", "etc=7", "tmp/"], &["C /etc"]);
    check_diff(
        image,
        &["bin/", "bin/sh=5", "etc->bin", "tmp/"],
        &["C /etc"],
    );
    // A new directory is told with everything in it.
    check_diff(
        &["a=1"],
        &["a/", "a/b=1", "c/", "c/d/", "c/d/e=1"],
        &["C /a", "A /a/b", "A /c", "A /c/d", "A /c/d/e"],
    );
    check_diff(
        &["a/", "a/b/", "a/b/c/", "a/b/c/d=1"],
        &["a/", "a/b/", "a/b/c/"],
        &["C /a", "C /a/b", "C /a/b/c", "D /a/b/c/d"],
    );
    check_diff(&["l->a"], &["l->b"], &["C /l"]);
    // Names that sort on either side of the slash.
    check_diff(
        &["a/", "a/x=1", "a-b/", "a-b/y=1"],
        &["a/", "a-b/", "a-b/y=1", "ab=1"],
        &["C /a", "D /a/x", "A /ab"],
    );
    check_diff(&[], &["f=1"], &["A /f"]);
    check_diff(&["f=1"], &[], &["D /f"]);
}

#[test]
fn what_counts_is_kind_mode_owner_device_capability_and_for_files_size_and_time() {
    type Alter = fn(&mut FileEntry);
    let check = |kind: FileKind, alter: Alter, counts: bool| {
        let old = vec![directory(""), (entry("x", kind), vec![])];
        let mut new = old.clone();
        alter(&mut new[1].0);
        let changes = diff(&old, &new);
        assert_eq!(!changes.is_empty(), counts, "{:?} {:?}", old[1].0, new[1].0);
    };
    let regular = || FileKind::Regular { size: 1 };
    let dir = || FileKind::Directory;
    let device = || FileKind::CharacterDevice { major: 1, minor: 3 };
    for kind in [regular, dir, device] {
        check(kind(), |_| {}, false);
        check(kind(), |e| e.mode = 0o600, true);
        check(kind(), |e| e.uid = 1, true);
        check(kind(), |e| e.gid = 1, true);
    }
    check(regular(), |e| e.modified.seconds += 1, true);
    check(regular(), |e| e.modified.nanos += 1, true);
    check(regular(), |e| e.modified.nanos = 0, false);
    check(dir(), |e| e.modified.seconds += 1, false);
    check(regular(), |e| e.kind = FileKind::Regular { size: 2 }, true);
    check(
        device(),
        |e| e.kind = FileKind::CharacterDevice { major: 1, minor: 5 },
        true,
    );
    let xattr = |name: &[u8]| Xattr {
        name: name.to_vec(),
        value: vec![1],
    };
    assert_eq!(xattr(b"a").value, [1]);
    check(
        regular(),
        |e| {
            e.xattrs = vec![Xattr {
                name: b"security.capability".to_vec(),
                value: vec![1],
            }]
        },
        true,
    );
    check(
        regular(),
        |e| {
            e.xattrs = vec![Xattr {
                name: b"user.x".to_vec(),
                value: vec![1],
            }]
        },
        false,
    );
    // The root itself is never told.
    let mut new = vec![directory("")];
    new[0].0.mode = 0o700;
    assert_eq!(diff(&vec![directory("")], &new), []);
}

#[test]
fn mount_points_that_tether_made_are_silent_until_something_is_in_them() {
    let mark = |mut files: Files, path: &str| {
        for (entry, _) in &mut files {
            if entry.path == path.as_bytes() {
                entry.xattrs = vec![Xattr {
                    name: MOUNT_POINT.to_vec(),
                    value: b"1".to_vec(),
                }];
            }
        }
        files
    };
    let image = listing(&["etc/"]);
    let new = ["data/", "data/vol/", "etc/", "etc/hosts"];
    let new = mark(mark(mark(listing(&new), "data"), "data/vol"), "etc/hosts");
    assert_eq!(diff(&image, &new), []);
    let filled = ["data/", "data/vol/", "data/vol/x=1", "etc/", "etc/hosts=5"];
    let filled = mark(
        mark(mark(listing(&filled), "data"), "data/vol"),
        "etc/hosts",
    );
    use ChangeKind::{Added, Modified};
    assert_eq!(
        diff(&image, &filled),
        [
            (Modified, "/data".to_owned()),
            (Modified, "/data/vol".to_owned()),
            (Added, "/data/vol/x".to_owned()),
            (Modified, "/etc".to_owned()),
            (Added, "/etc/hosts".to_owned()),
        ]
    );
}

#[test]
fn lists_that_are_cut_off_are_no_diff() {
    let bytes = encode(&listing(&["a", "b"]));
    let mut diff = Diff::new(&bytes[..]);
    diff.push(&bytes[..bytes.len() - 1]).unwrap();
    assert!(diff.finish().is_err());
    let mut diff = Diff::new(&bytes[..bytes.len() - 1]);
    assert!(diff.push(&bytes).is_err());
}

/// What a diff of trees has to say, written the other way: from the sets of paths.
fn naive(old: &Files, new: &Files) -> BTreeSet<(ChangeKindOrder, String)> {
    let map = |files: &Files| -> BTreeMap<String, FileEntry> {
        let pair = |(entry, _): &(FileEntry, Vec<u8>)| {
            (
                String::from_utf8(entry.path.clone()).unwrap(),
                entry.clone(),
            )
        };
        files.iter().map(pair).collect()
    };
    let (old, new) = (map(old), map(new));
    let parent = |path: &str| {
        path.rsplit_once('/')
            .map_or("", |(parent, _)| parent)
            .to_owned()
    };
    let mut told = BTreeSet::new();
    for (path, entry) in &new {
        match old.get(path) {
            None => drop(told.insert((1, path.clone()))),
            Some(before) if !path.is_empty() && before.kind != entry.kind => {
                told.insert((0, path.clone()));
            }
            _ => {}
        }
    }
    for path in old.keys().filter(|path| !new.contains_key(*path)) {
        if new
            .get(&parent(path))
            .is_some_and(|above| above.kind == FileKind::Directory)
        {
            told.insert((2, path.clone()));
        }
    }
    let mut above = BTreeSet::new();
    for (_, path) in &told {
        let mut path = parent(path);
        while !path.is_empty() {
            above.insert(path.clone());
            path = parent(&path);
        }
    }
    for path in above {
        if !told.contains(&(1, path.clone())) {
            told.insert((0, path));
        }
    }
    told
}

type ChangeKindOrder = u8;

fn trees() -> impl Strategy<Value = Files> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "a-", "ab"]), 1..4);
    prop::collection::btree_map(path, 0..3u64, 0..10).prop_map(|paths| {
        let mut all: BTreeMap<String, FileKind> = BTreeMap::new();
        for (names, size) in paths {
            for depth in 1..names.len() {
                all.insert(names[..depth].join("/"), FileKind::Directory);
            }
            all.entry(names.join("/"))
                .or_insert(FileKind::Regular { size });
        }
        let mut files = vec![directory("")];
        files.extend(
            all.into_iter()
                .map(|(path, kind)| (entry(&path, kind), vec![])),
        );
        files.sort_by(|one, other| compare(&one.0.path, &other.0.path));
        files
    })
}

fn times() -> impl Strategy<Value = Time> {
    (any::<i32>(), 0..1_000_000_000u32).prop_map(|(seconds, nanoseconds)| Time {
        seconds: i64::from(seconds),
        nanoseconds,
    })
}

proptest! {
    #[test]
    fn a_diff_says_what_comparing_the_whole_trees_says(old in trees(), new in trees()) {
        let changes = diff(&old, &new);
        let paths: Vec<&str> = changes.iter().map(|(_, path)| path.as_str()).collect();
        prop_assert!(paths.is_sorted_by(|a, b| compare(a.as_bytes(), b.as_bytes()).is_lt()));
        let said: BTreeSet<_> = changes
            .iter()
            .map(|(kind, path)| (*kind as u8, path[1..].to_owned()))
            .collect();
        prop_assert_eq!(said, naive(&old, &new));
    }

    #[test]
    fn what_the_writer_writes_the_reader_reads(
        path in prop::collection::vec(1..=255u8, 1..300),
        target in prop::collection::vec(1..=255u8, 1..150),
        kind in 0..6,
        mode in 0..=0o7777u16,
        ids in any::<(u32, u32)>(),
        mtime in times(),
        xattrs in prop::collection::btree_map("user\\.[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40), 0..3),
        contents in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        prop_assume!(!path.ends_with(b"/"));
        let mut entry = Entry {
            path,
            kind: match kind {
                0 => EntryKind::File,
                1 => EntryKind::Link(target),
                2 => EntryKind::Symlink(target),
                3 => EntryKind::Directory,
                4 => EntryKind::Fifo,
                _ => EntryKind::Block { major: 4095, minor: 77 },
            },
            mode,
            uid: ids.0,
            gid: ids.1,
            mtime,
            xattrs: xattrs.into_iter().map(|(n, v)| (n.into_bytes().into(), v.into())).collect(),
            size: if kind == 0 { contents.len() as u64 } else { 0 },
        };
        let mut writer = Writer::new(Vec::new());
        for _ in 0..2 {
            writer.entry(&entry).unwrap();
            if kind == 0 {
                prop_assert!(contents.is_empty() || writer.entry(&entry).is_err());
                writer.contents(&contents).unwrap();
                prop_assert!(writer.contents(b"x").is_err());
            }
        }
        writer.finish().unwrap();
        let tar = std::mem::take(writer.get_mut());
        prop_assert_eq!(tar.len() % 512, 0);
        if kind == 3 {
            entry.path.push(b'/');
        }
        let mut reader = Reader::new(&tar[..]);
        for _ in 0..2 {
            prop_assert_eq!(&reader.next_entry().unwrap().unwrap(), &entry);
            let mut read = Vec::new();
            while let Some((_, bytes)) = reader.chunk().unwrap() {
                let count = bytes.len();
                read.extend_from_slice(bytes);
                reader.consume(count);
            }
            prop_assert_eq!(read.len() as u64, entry.size);
        }
        prop_assert!(reader.next_entry().unwrap().is_none());
    }
}

fn options() -> Options {
    Options {
        size: Size::Fixed(64 << 20),
        ..Options::default()
    }
}

fn config() -> serde_json::Map<String, serde_json::Value> {
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/a"], "Env": ["X=1"]},
        "history": [{"comment": "committed"}],
    });
    config.as_object().unwrap().clone()
}

fn listed(store: &Store, id: &image::digest::Digest) -> Files {
    let mut bytes = Vec::new();
    store.files(id).unwrap().read_to_end(&mut bytes).unwrap();
    decode(Shape::Listing, &bytes)
}

#[test]
fn a_containers_files_become_an_image_whose_list_is_theirs() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let mut files = everything();
    let mut marked = directory("proc");
    marked.0.xattrs = vec![Xattr {
        name: MOUNT_POINT.to_vec(),
        value: b"1".to_vec(),
    }];
    files.push(marked);
    files.push((entry("socket", FileKind::Socket), vec![]));
    files.push(file("zeros", &"\0".repeat(100_000)));
    files.sort_by(|one, other| compare(&one.0.path, &other.0.path));
    let name = "committed".parse().unwrap();
    let import = || {
        let records = encode(&files);
        store
            .import_files(
                &records[..],
                config(),
                "container c1",
                Some(&name),
                &options(),
                &Silent,
            )
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    };
    let image = import();
    assert_eq!(import().id, image.id);
    assert_eq!(image.source, "container c1");
    assert_eq!(image.config.config.cmd, ["/a"]);
    assert_eq!(image.config.rootfs.diff_ids.len(), 1);
    assert_eq!(image.names.len(), 1);

    let mut expected = files.clone();
    expected.retain(|(entry, _)| !matches!(&entry.path[..], b"proc" | b"socket"));
    let linked = expected
        .iter()
        .find(|(entry, _)| entry.path == b"a")
        .unwrap()
        .0
        .clone();
    for (entry, contents) in &mut expected {
        if let FileKind::HardLink { .. } = entry.kind {
            *entry = FileEntry {
                path: entry.path.clone(),
                ..linked.clone()
            };
        }
        contents.clear();
    }
    assert_eq!(listed(&store, &image.id), expected);
    // The container it is of has changed nothing.
    assert_eq!(diff(&expected, &listed(&store, &image.id)), []);

    let raw = scratch.path().join("raw");
    let disk = image.disk.to_str().unwrap();
    if run(
        "qemu-img",
        &["convert", "-O", "raw", disk, raw.to_str().unwrap()],
    )
    .is_some()
    {
        common::assert_clean(&raw);
        let cat = common::debugfs(&raw, "cat /hard").unwrap();
        assert_eq!(cat, "contents\n");
    }
}

#[test]
fn records_that_are_wrong_leave_no_image() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let import = |bytes: &[u8]| {
        let error = store
            .import_files(bytes, config(), "container c1", None, &options(), &Silent)
            .unwrap_err();
        chain(&error)
    };
    let good = encode(&everything());
    let cut = import(&good[..good.len() - 1]);
    assert_eq!(
        cut,
        "cannot make an image of container c1: the stream of files stopped before its end"
    );
    let links = [
        directory(""),
        (
            entry(
                "l",
                FileKind::HardLink {
                    target: b"none".to_vec(),
                },
            ),
            vec![],
        ),
    ];
    assert!(import(&encode(&links)).contains("`l` cannot be put into the image"));
    let below = [file("f", "x"), file("f/g", "x")];
    assert!(import(&encode(&below)).contains("`f/g` cannot be put into the image"));
    assert!(import(&[0; 4096]).contains("goes on behind its end"));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(scratch.path().join("partial"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn every_import_keeps_the_list_of_its_files_and_older_ones_say_that_there_is_none() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/passwd"), "root").unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("again")).unwrap();
    let source = Source::Directory(root);
    let import = |store: &Path| {
        let store = Store::open(store).unwrap();
        let image = store.import(&source, None, &options(), &Silent).unwrap();
        (store, image)
    };
    let (store, image) = import(&scratch.path().join("one"));
    let (other, _) = import(&scratch.path().join("two"));
    let bytes = |store: &Store| {
        let mut bytes = Vec::new();
        store
            .files(&image.id)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    };
    assert_eq!(bytes(&store), bytes(&other));
    let paths: Vec<Vec<u8>> = listed(&store, &image.id)
        .into_iter()
        .map(|(e, _)| e.path)
        .collect();
    assert_eq!(paths, [&b""[..], b"again", b"etc", b"etc/passwd"]);
    let mut records = Records::new(store.files(&image.id).unwrap(), Shape::Listing);
    let mut count = 0;
    while records.entry().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 4);
    let list = image.disk.parent().unwrap().join("files.records");
    assert!(image.stored >= fs::metadata(&list).unwrap().len());
    fs::remove_file(&list).unwrap();
    assert!(matches!(
        store.files(&image.id),
        Err(StoreError::NoFiles(_))
    ));
    assert!(store.inspect(&image.id.hex()).is_ok());
}
