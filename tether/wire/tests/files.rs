//! Records of files: what is written is what is read, however the bytes are cut, and what is damaged
//! is an error.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tether_wire::files::*;

fn entry(path: &str, kind: FileKind) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Timestamp::default(),
        xattrs: vec![],
    }
}

/// Everything a decoder gives of `bytes`, cut where `cuts` say, with contents joined.
fn decode(
    shape: Shape,
    bytes: &[u8],
    cuts: &[usize],
) -> Result<Vec<(FileEntry, Vec<u8>)>, FormatError> {
    let mut decoder = Decoder::new(shape);
    let mut found: Vec<(FileEntry, Vec<u8>)> = Vec::new();
    let mut ended = false;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for range in cuts.windows(2) {
        let mut input = &bytes[range[0]..range[1]];
        while let Some(item) = decoder.next(&mut input)? {
            match item {
                Item::Entry(entry) => found.push((entry, Vec::new())),
                Item::Data(data) => found.last_mut().unwrap().1.extend_from_slice(data),
                Item::End => {
                    assert!(!ended);
                    ended = true;
                }
            }
        }
        assert!(
            input.is_empty(),
            "a decoder that wants more has taken everything"
        );
    }
    decoder.finish().map(|()| {
        assert!(ended);
        found
    })
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

#[test]
fn the_bytes_of_a_record_are_these() {
    let file = FileEntry {
        path: b"a/b".to_vec(),
        kind: FileKind::Regular { size: 2 },
        mode: 0o4755,
        uid: 1000,
        gid: 5,
        modified: Timestamp {
            seconds: -2,
            nanos: 3,
        },
        xattrs: vec![Xattr {
            name: b"user.x".to_vec(),
            value: vec![0, 255],
        }],
    };
    let bytes = encode(&[(file, b"hi".to_vec())]);
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "1800000003612f620002ed13e8070503030106757365722e780200ff686900000000"
    );
    let kinds = [
        (FileKind::Directory, "01"),
        (
            FileKind::Symlink {
                target: b"t".to_vec(),
            },
            "020174",
        ),
        (
            FileKind::HardLink {
                target: b"t".to_vec(),
            },
            "030174",
        ),
        (FileKind::Fifo, "04"),
        (FileKind::Socket, "05"),
        (
            FileKind::CharacterDevice {
                major: 1,
                minor: 300,
            },
            "0601ac02",
        ),
        (FileKind::BlockDevice { major: 8, minor: 0 }, "070800"),
    ];
    for (kind, expected) in kinds {
        let bytes = postcard::to_allocvec(&kind).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected, "{kind:?}");
    }
}

#[test]
fn entries_that_break_a_rule_are_neither_written_nor_read() {
    let regular = FileKind::Regular { size: 0 };
    let long = "x".repeat(MAX_PATH + 1);
    let mut wrong: Vec<FileEntry> = [
        "/a", "a/", "a//b", ".", "a/..", "../a", "a/./b", "a\0b", &long,
    ]
    .into_iter()
    .map(|path| entry(path, regular.clone()))
    .collect();
    for target in ["", "a\0", &"t".repeat(MAX_TARGET + 1)] {
        let target = target.into();
        wrong.push(entry("l", FileKind::Symlink { target }));
    }
    for target in ["", "l", "../x", "/x"] {
        let target = target.into();
        wrong.push(entry("l", FileKind::HardLink { target }));
    }
    let base = entry("f", regular);
    wrong.push(FileEntry {
        mode: 0o10000,
        ..base.clone()
    });
    wrong.push(FileEntry {
        modified: Timestamp {
            seconds: 0,
            nanos: 1_000_000_000,
        },
        ..base.clone()
    });
    let xattr = |name: &str, length| Xattr {
        name: name.into(),
        value: vec![0; length],
    };
    for xattrs in [
        vec![xattr("", 1)],
        vec![xattr("a\0", 1)],
        vec![xattr(&"n".repeat(MAX_XATTR_NAME + 1), 1)],
        vec![xattr("user.a", MAX_XATTRS)],
        vec![xattr("n", 0); MAX_XATTR_COUNT + 1],
    ] {
        wrong.push(FileEntry {
            xattrs,
            ..base.clone()
        });
    }
    for entry in wrong {
        let mut out = vec![7];
        assert!(
            matches!(encode_entry(&entry, &mut out), Err(FormatError::Entry(_))),
            "{entry:?}"
        );
        assert_eq!(out, [7]);
        let header = postcard::to_allocvec(&entry).unwrap();
        let mut bytes = (header.len() as u32).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 4]);
        assert!(decode(Shape::Archive, &bytes, &[]).is_err(), "{entry:?}");
    }
    let longest = FileEntry {
        path: vec![b'p'; MAX_PATH],
        kind: FileKind::HardLink {
            target: vec![b't'; MAX_PATH],
        },
        uid: u32::MAX,
        gid: u32::MAX,
        modified: Timestamp {
            seconds: i64::MIN,
            nanos: 999_999_999,
        },
        xattrs: vec![xattr("n", MAX_XATTRS / MAX_XATTR_COUNT - 1); MAX_XATTR_COUNT],
        mode: 0o7777,
    };
    let bytes = encode(&[(longest.clone(), vec![])]);
    assert!(bytes.len() <= MAX_HEADER + 8);
    assert_eq!(
        decode(Shape::Archive, &bytes, &[]).unwrap(),
        [(longest, vec![])]
    );
}

#[test]
fn ordered_streams_have_every_directory_before_what_is_in_it() {
    let regular = || FileKind::Regular { size: 0 };
    let link = |target: &str| FileKind::HardLink {
        target: target.into(),
    };
    let check = |shape, entries: &[(&str, FileKind)], good: bool| {
        let files: Vec<_> = entries
            .iter()
            .map(|(path, kind)| (entry(path, kind.clone()), vec![]))
            .collect();
        let result = decode(shape, &encode(&files), &[]);
        assert_eq!(result.is_ok(), good, "{shape:?} {entries:?}: {result:?}");
    };
    let dir = || FileKind::Directory;
    for shape in [Shape::Listing, Shape::Tree] {
        check(shape, &[("", regular())], true);
        check(
            shape,
            &[
                ("", dir()),
                ("a", dir()),
                ("a/b", regular()),
                ("a-b", dir()),
            ],
            true,
        );
        check(
            shape,
            &[
                ("", dir()),
                ("a", dir()),
                ("a/b", dir()),
                ("a/b/c", dir()),
                ("b", dir()),
            ],
            true,
        );
        check(shape, &[], false);
        check(shape, &[("a", regular())], false);
        check(shape, &[("", regular()), ("a", regular())], false);
        check(shape, &[("", dir()), ("a/b", regular())], false);
        check(
            shape,
            &[("", dir()), ("a", regular()), ("a/b", regular())],
            false,
        );
        check(
            shape,
            &[("", dir()), ("a", dir()), ("ab/c", regular())],
            false,
        );
        check(shape, &[("", dir()), ("b", dir()), ("a", dir())], false);
        check(shape, &[("", dir()), ("a", dir()), ("a", dir())], false);
        check(
            shape,
            &[("", dir()), ("a", dir()), ("a-b", dir()), ("a/b", dir())],
            false,
        );
    }
    check(
        Shape::Tree,
        &[("", dir()), ("a", regular()), ("b", link("a"))],
        true,
    );
    check(Shape::Tree, &[("", dir()), ("b", link("c"))], false);
    check(
        Shape::Listing,
        &[("", dir()), ("a", regular()), ("b", link("a"))],
        false,
    );
    check(
        Shape::Archive,
        &[("b", dir()), ("a/b", regular()), ("b", link("z"))],
        true,
    );
    check(Shape::Archive, &[], true);
    check(Shape::Stat, &[("", regular())], true);
    check(Shape::Stat, &[("", regular()), ("etc/x", dir())], true);
    check(
        Shape::Stat,
        &[("", regular()), ("x", dir()), ("y", dir())],
        false,
    );
    check(Shape::Stat, &[], false);
}

#[test]
fn a_stream_that_stops_or_goes_on_is_wrong() {
    let file = entry("f", FileKind::Regular { size: 3 });
    let bytes = encode(&[(file, b"abc".to_vec())]);
    for length in 0..bytes.len() {
        let result = decode(Shape::Archive, &bytes[..length], &[]);
        assert_eq!(result, Err(FormatError::Truncated), "{length}");
    }
    let mut more = bytes.clone();
    more.push(0);
    assert_eq!(
        decode(Shape::Archive, &more, &[]),
        Err(FormatError::AfterEnd)
    );
    let huge = u32::MAX.to_le_bytes();
    assert_eq!(
        decode(Shape::Tree, &huge, &[]),
        Err(FormatError::HeaderLength(u32::MAX))
    );
}

#[test]
fn exit_codes_and_kinds_of_failure_are_one_to_one() {
    for kind in Failure::ALL {
        assert_eq!(Failure::of_code(kind.code()), Some(kind));
    }
    assert_eq!(Failure::of_code(0), None);
    assert_eq!(Failure::of_code(137), Some(Failure::Other));
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![Just(b'a'), Just(b'-'), Just(0xff), 1..=255u8],
        1..6,
    )
    .prop_filter("a name", |name| {
        !name.contains(&b'/') && !matches!(name.as_slice(), b"." | b"..")
    })
}

fn kinds() -> impl Strategy<Value = FileKind> {
    let text = || vec(1..=255u8, 1..20);
    prop_oneof![
        (0..200u64).prop_map(|size| FileKind::Regular { size }),
        text().prop_map(|target| FileKind::Symlink { target }),
        Just(FileKind::Fifo),
        Just(FileKind::Socket),
        any::<(u32, u32)>().prop_map(|(major, minor)| FileKind::CharacterDevice { major, minor }),
        any::<(u32, u32)>().prop_map(|(major, minor)| FileKind::BlockDevice { major, minor }),
    ]
}

prop_compose! {
    fn attributes()(
        kind in kinds(),
        mode in 0..=0o7777u16,
        ids in any::<(u32, u32)>(),
        seconds in any::<i64>(),
        nanos in 0..1_000_000_000u32,
        xattrs in vec((vec(1..=255u8, 1..10), vec(any::<u8>(), 0..30)), 0..3),
        fill in any::<u8>(),
    ) -> (FileEntry, u8) {
        let xattrs = xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect();
        let modified = Timestamp { seconds, nanos };
        (FileEntry { path: vec![], kind, mode, uid: ids.0, gid: ids.1, modified, xattrs }, fill)
    }
}

/// A tree in order, from a random set of paths: whatever has something below it is a directory.
fn trees() -> impl Strategy<Value = Vec<(FileEntry, Vec<u8>)>> {
    btree_map(vec(names(), 1..4), attributes(), 0..12).prop_map(|paths| {
        let mut all = std::collections::BTreeMap::new();
        for (names, leaf) in paths {
            for depth in 0..names.len() {
                let mut directory = leaf.clone();
                directory.0.kind = FileKind::Directory;
                all.insert(names[..depth].to_vec(), directory);
            }
            all.entry(names).or_insert(leaf);
        }
        let mut files: Vec<(FileEntry, Vec<u8>)> = all
            .into_iter()
            .map(|(names, (mut entry, fill))| {
                entry.path = names.join(&b'/');
                let contents = match entry.kind {
                    FileKind::Regular { size } => vec![fill; size as usize],
                    _ => vec![],
                };
                (entry, contents)
            })
            .collect();
        files.sort_by(|a, b| compare(&a.0.path, &b.0.path));
        files
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read_however_it_is_cut(files in trees(), cuts in vec(any::<usize>(), 0..20)) {
        let bytes = encode(&files);
        prop_assert_eq!(decode(Shape::Archive, &bytes, &cuts).unwrap(), files.clone());
        if !files.is_empty() {
            prop_assert_eq!(decode(Shape::Tree, &bytes, &cuts).unwrap(), files.clone());
        }
        let bare: Vec<_> = files.into_iter().map(|(entry, _)| (entry, vec![])).collect();
        if !bare.is_empty() {
            prop_assert_eq!(decode(Shape::Listing, &encode(&bare), &cuts).unwrap(), bare);
        }
    }

    #[test]
    fn any_damage_is_an_error_or_another_stream_that_keeps_the_rules(
        files in trees(),
        damage in vec((any::<usize>(), any::<u8>()), 1..4),
        cuts in vec(any::<usize>(), 0..4),
    ) {
        let mut bytes = encode(&files);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        for shape in [Shape::Archive, Shape::Tree, Shape::Listing, Shape::Stat] {
            if let Ok(found) = decode(shape, &bytes, &cuts) {
                for (entry, contents) in found {
                    prop_assert!(entry.check().is_ok());
                    if let FileKind::Regular { size } = entry.kind
                        && matches!(shape, Shape::Archive | Shape::Tree)
                    {
                        prop_assert_eq!(contents.len() as u64, size);
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_at_all_are_survived(bytes in vec(any::<u8>(), 0..300), cuts in vec(any::<usize>(), 0..4)) {
        for shape in [Shape::Archive, Shape::Tree, Shape::Listing, Shape::Stat] {
            let whole = decode(shape, &bytes, &[]);
            prop_assert_eq!(decode(shape, &bytes, &cuts), whole);
        }
    }
}
