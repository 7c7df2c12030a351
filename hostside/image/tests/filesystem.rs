//! The ext4 writer against `e2fsck`, `debugfs` and a reader of its own.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::ext4::Filesystem;
use image::digest::Digest;
use image::disk::{Disk, RawDisk};
use image::ext4::{BLOCK, Ext4Error, Identity, Label, Size, Summary, Writer};
use image::tree::{Attributes, Kind, NodeId, Time, Tree};

const SMALL: Size = Size::Fixed(64 << 20);

fn identity() -> Identity {
    Identity::of(&Digest::of(b"test"), Label::new("image").unwrap())
}

struct Made {
    _directory: tempfile::TempDir,
    path: PathBuf,
    summary: Summary,
}

/// Writes what `fill` puts into a tree, and checks it with `e2fsck`.
fn make(size: Size, fill: impl FnOnce(&mut Tree, &mut Writer<RawDisk>)) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let file = std::fs::File::create_new(&path).unwrap();
    let mut tree = Tree::new(1 << 20);
    let mut writer = Writer::new(RawDisk(file), size).unwrap();
    fill(&mut tree, &mut writer);
    let (_, summary) = writer.finish(&tree, &identity()).unwrap();
    common::assert_clean(&path);
    Made {
        _directory: directory,
        path,
        summary,
    }
}

fn file(writer: &mut Writer<RawDisk>, size: u64, pieces: &[(u64, &[u8])]) -> Kind {
    let contents = writer.contents();
    let mut file = contents.file();
    for (offset, bytes) in pieces {
        contents.write(&mut file, *offset, bytes).unwrap();
    }
    Kind::File {
        size,
        runs: contents.end(file),
    }
}

fn put(tree: &mut Tree, name: &str, attributes: Attributes, kind: Kind) -> NodeId {
    tree.insert(tree.root(), name.as_bytes(), attributes, kind, 1)
        .unwrap()
}

#[test]
fn an_empty_filesystem_is_clean_at_every_size() {
    let sizes = [
        16 << 20,
        17 << 20,
        100_000_000,
        128 << 20,
        129 << 20,
        160 << 20,
        1 << 30,
        10 << 30,
        40 << 30,
    ];
    for size in sizes {
        let made = make(Size::Fixed(size), |_, _| {});
        assert_eq!(made.summary.size, size / BLOCK * BLOCK);
        assert_eq!(
            std::fs::metadata(&made.path).unwrap().len(),
            made.summary.size
        );
    }
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    for size in [0, (16 << 20) - 1, (2 << 40) + 1] {
        let file = tempfile::tempfile().unwrap();
        assert!(
            matches!(
                Writer::new(RawDisk(file), Size::Fixed(size)),
                Err(Ext4Error::Size(_))
            ),
            "{size}"
        );
    }
}

#[test]
fn every_kind_of_node_comes_back_with_its_attributes() {
    let target = "t".repeat(60);
    let long = "u".repeat(4095);
    let attributes = |mode, uid, gid, seconds, nanoseconds| Attributes {
        mode,
        uid,
        gid,
        mtime: Time {
            seconds,
            nanoseconds,
        },
        ..Attributes::plain(0)
    };
    let made = make(SMALL, |tree, writer| {
        put(
            tree,
            "setuid",
            attributes(0o4755, 1, 2, 1, 1),
            file(writer, 5, &[(0, b"hello")]),
        );
        put(
            tree,
            "empty",
            attributes(0o600, 65_536, 4_000_000_000, -1, 999_999_999),
            file(writer, 0, &[]),
        );
        put(
            tree,
            "sticky",
            attributes(0o1777, 0, 0, 4_294_967_296, 5),
            Kind::directory(),
        );
        put(
            tree,
            "setgid",
            attributes(0o2755, 0, 50, 0, 0),
            Kind::directory(),
        );
        put(
            tree,
            "fast",
            attributes(0o777, 7, 7, 2, 2),
            Kind::Symlink(target.as_bytes()[..59].into()),
        );
        put(
            tree,
            "slow",
            attributes(0o777, 7, 7, 2, 2),
            Kind::Symlink(target.as_bytes().into()),
        );
        put(
            tree,
            "longest",
            attributes(0o777, 7, 7, 2, 2),
            Kind::Symlink(long.as_bytes().into()),
        );
        put(
            tree,
            "null",
            attributes(0o666, 0, 0, 3, 0),
            Kind::Character { major: 1, minor: 3 },
        );
        put(
            tree,
            "wide",
            attributes(0o666, 0, 0, 3, 0),
            Kind::Character {
                major: 300,
                minor: 70_000,
            },
        );
        put(
            tree,
            "disk",
            attributes(0o660, 0, 6, 3, 0),
            Kind::Block { major: 8, minor: 1 },
        );
        put(tree, "pipe", attributes(0o600, 0, 0, 3, 0), Kind::Fifo);
        put(tree, "socket", attributes(0o600, 0, 0, 3, 0), Kind::Socket);
        let node = tree.child(tree.root(), b"setuid").unwrap();
        tree.link(tree.root(), b"again", node, 1).unwrap();
    });
    let all = Filesystem::open(&made.path).all();
    for (path, mode, uid, gid, mtime) in [
        ("", 0o40755, 0, 0, (0, 0)),
        ("setuid", 0o104_755, 1, 2, (1, 1)),
        ("again", 0o104_755, 1, 2, (1, 1)),
        ("empty", 0o100_600, 65_536, 4_000_000_000, (-1, 999_999_999)),
        ("sticky", 0o41777, 0, 0, (4_294_967_296, 5)),
        ("setgid", 0o42755, 0, 50, (0, 0)),
        ("fast", 0o120_777, 7, 7, (2, 2)),
        ("null", 0o20666, 0, 0, (3, 0)),
        ("disk", 0o60660, 0, 6, (3, 0)),
        ("pipe", 0o10600, 0, 0, (3, 0)),
        ("socket", 0o140_600, 0, 0, (3, 0)),
    ] {
        let node = &all[path];
        assert_eq!(
            (node.mode, node.uid, node.gid, node.mtime),
            (mode, uid, gid, mtime),
            "{path}"
        );
    }
    assert_eq!(all["setuid"].data, b"hello");
    assert_eq!(
        (all["setuid"].links, all["setuid"].inode),
        (2, all["again"].inode)
    );
    assert_eq!(all[""].links, 4);
    assert_eq!(all["fast"].data, target.as_bytes()[..59]);
    assert_eq!(all["slow"].data, target.as_bytes());
    assert_eq!(all["longest"].data, long.as_bytes());
    assert_eq!(all["null"].device, (1, 3));
    assert_eq!(all["wide"].device, (300, 70_000));
    assert_eq!(all["disk"].device, (8, 1));
    assert_eq!(all.len(), 14);
    if let Some(text) = common::debugfs(&made.path, "stat /wide") {
        assert!(
            text.contains("Device major/minor number: 300:70000"),
            "{text}"
        );
    }
}

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

fn xattrs_round_trip(sets: &[&[(&str, Vec<u8>)]]) -> (Made, Vec<Xattrs>) {
    let made = make(SMALL, |tree, _| {
        for (index, set) in sets.iter().enumerate() {
            let mut attributes = Attributes::plain(0o644);
            attributes.xattrs = set
                .iter()
                .map(|(name, value)| (name.as_bytes().into(), value.clone().into()))
                .collect();
            put(tree, &format!("{index:06}"), attributes, Kind::Fifo);
        }
    });
    let filesystem = Filesystem::open(&made.path);
    let found = (0..sets.len())
        .map(|index| filesystem.inode(11 + index as u32).xattrs)
        .collect();
    (made, found)
}

#[test]
fn extended_attributes_are_kept_in_the_inode_and_in_blocks() {
    let capability = vec![
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let sets: [&[(&str, Vec<u8>)]; 7] = [
        &[("security.capability", capability.clone())],
        &[("user.empty", vec![]), ("user.long", vec![7; 3000])],
        &[
            ("security.capability", capability),
            ("user.a", vec![1; 500]),
            ("trusted.b", vec![2; 33]),
        ],
        &[
            ("user.x", b"not kept with it".to_vec()),
            ("com.example.unknown", vec![1]),
        ],
        &[
            ("user.1", vec![1; 41]),
            ("user.2", vec![2; 41]),
            ("user.33", vec![3; 41]),
            ("user.4", vec![4; 41]),
        ],
        &[("user.\u{e9}\u{e8}", vec![9; 200])],
        &[("user.fits", vec![5; 68])],
    ];
    let (made, found) = xattrs_round_trip(&sets);
    for (set, found) in sets.iter().zip(&found) {
        let expected: Xattrs = set
            .iter()
            .filter(|(name, _)| !name.starts_with("com."))
            .map(|(name, value)| (name.as_bytes().to_vec(), value.clone()))
            .collect();
        assert_eq!(*found, expected);
    }
    if let Some(text) = common::debugfs(&made.path, "ea_list /000000") {
        assert!(text.contains("security.capability (20)"), "{text}");
    }
}

#[test]
fn access_control_lists_take_their_form_on_disk() {
    // Owner rwx, user 1000 r--, group r-x, mask rwx, others ---.
    let entry = |tag: u16, bits: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &bits.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let value = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, !0),
        entry(2, 4, 1000),
        entry(4, 5, !0),
        entry(0x10, 7, !0),
        entry(0x20, 0, !0),
    ]
    .concat();
    let set = [
        ("system.posix_acl_access", value.clone()),
        ("system.posix_acl_default", value),
    ];
    let (made, found) = xattrs_round_trip(&[&set]);
    let stored = [
        &[1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0][..],
        &[4, 0, 5, 0, 0x10, 0, 7, 0, 0x20, 0, 0, 0],
    ]
    .concat();
    assert_eq!(found[0][&b"system.posix_acl_access"[..]], stored);
    assert_eq!(found[0][&b"system.posix_acl_default"[..]], stored);
    if let Some(text) = common::debugfs(&made.path, "ea_get -V /000000 system.posix_acl_access") {
        assert!(!text.is_empty());
    }
}

#[test]
fn equal_attribute_blocks_are_shared_by_up_to_1024_files() {
    let set: &[(&str, Vec<u8>)] = &[("user.same", vec![1; 300])];
    let (made, found) = xattrs_round_trip(&vec![set; 2500]);
    assert!(found.iter().all(|xattrs| xattrs.len() == 1));
    let (single, _) = xattrs_round_trip(&[set]);
    let used = |made: &Made| (made.summary.size - made.summary.free) / BLOCK;
    // Two blocks more for attributes and what 2500 names take; not 2500 blocks.
    assert!(
        used(&made) - used(&single) < 30,
        "{}",
        used(&made) - used(&single)
    );
}

#[test]
fn attributes_that_fit_nowhere_are_refused() {
    let mut tree = Tree::new(10);
    let mut attributes = Attributes::plain(0o644);
    attributes
        .xattrs
        .insert((*b"user.huge").into(), vec![0; 4080].into());
    put(&mut tree, "a", attributes, Kind::Fifo);
    let writer = Writer::new(RawDisk(tempfile::tempfile().unwrap()), SMALL).unwrap();
    assert!(matches!(
        writer.finish(&tree, &identity()),
        Err(Ext4Error::Xattrs)
    ));
}

#[test]
fn holes_take_no_blocks_and_read_as_zeros() {
    let made = make(SMALL, |tree, writer| {
        // A hole at the start, one within a block, one of whole blocks, and one at the end.
        let pieces: [(u64, &[u8]); 4] = [
            (5000, b"a"),
            (5100, b"b"),
            (40_000, &[7; 9000]),
            (1 << 20, b"end"),
        ];
        let kind = file(writer, 3 << 20, &pieces);
        put(tree, "sparse", Attributes::plain(0o644), kind);
        let kind = file(writer, 12 << 40, &[(11 << 40, b"far")]);
        put(tree, "huge", Attributes::plain(0o644), kind);
        let kind = file(writer, 1 << 30, &[]);
        put(tree, "hole", Attributes::plain(0o644), kind);
    });
    let all = Filesystem::open(&made.path).all();
    let mut expected = vec![0; 3 << 20];
    expected[5000] = b'a';
    expected[5100] = b'b';
    expected[40_000..49_000].fill(7);
    expected[1 << 20..][..3].copy_from_slice(b"end");
    assert!(all["sparse"].data == expected);
    assert_eq!(all["sparse"].mapped, 5);
    assert_eq!((all["huge"].size, all["huge"].mapped), (12 << 40, 1));
    assert_eq!((all["hole"].size, all["hole"].mapped), (1 << 30, 0));
}

#[test]
fn extent_trees_grow_several_levels() {
    for extents in [4u64, 5, 340, 341, 1360, 1361, 4000] {
        let made = make(SMALL, |tree, writer| {
            let contents = writer.contents();
            let mut file = contents.file();
            for index in 0..extents {
                contents
                    .write(&mut file, index * 2 * BLOCK, &index.to_le_bytes())
                    .unwrap();
            }
            let kind = Kind::File {
                size: extents * 2 * BLOCK,
                runs: contents.end(file),
            };
            put(tree, "f", Attributes::plain(0o644), kind);
        });
        let all = Filesystem::open(&made.path).all();
        assert_eq!(all["f"].mapped, extents);
        for index in 0..extents {
            let at = (index * 2 * BLOCK) as usize;
            assert_eq!(
                all["f"].data[at..at + 8],
                index.to_le_bytes(),
                "{extents}: {index}"
            );
        }
    }
}

/// A disk that forgets contents of one value, to be fast.
struct Forgetful(RawDisk);

impl Disk for Forgetful {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if bytes[0] == 0x5a && bytes[bytes.len() - 1] == 0x5a {
            return Ok(());
        }
        self.0.write(offset, bytes)
    }

    fn discard(&mut self, offset: u64, length: u64) -> std::io::Result<()> {
        self.0.discard(offset, length)
    }

    fn finish(&mut self, size: u64) -> std::io::Result<()> {
        self.0.finish(size)
    }
}

#[test]
fn a_file_larger_than_a_flexible_group_goes_round_the_structures() {
    let size: u64 = 2_300 << 20;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let disk = Forgetful(RawDisk(std::fs::File::create_new(&path).unwrap()));
    let wanted = Size::AtLeast {
        size: 3 << 30,
        free: 64 << 20,
    };
    let mut writer = Writer::new(disk, wanted).unwrap();
    let contents = writer.contents();
    let mut file = contents.file();
    let piece = vec![0x5a; 8 << 20];
    let mut offset = 0;
    while offset < size {
        let count = (size - offset).min(piece.len() as u64);
        contents
            .write(&mut file, offset, &piece[..count as usize])
            .unwrap();
        offset += count;
    }
    let mut tree = Tree::new(10);
    let kind = Kind::File {
        size,
        runs: contents.end(file),
    };
    put(&mut tree, "f", Attributes::plain(0o644), kind);
    writer.finish(&tree, &identity()).unwrap();
    common::assert_clean(&path);
    let all = Filesystem::open(&path).all();
    assert_eq!(all["f"].mapped, size / BLOCK);
}

#[test]
fn directories_of_any_size_are_indexed_and_complete() {
    for count in [0usize, 1, 300, 301, 5_000, 60_000] {
        let name = |index: usize| format!("file-{index:06}-{}", "x".repeat(index % 200));
        let made = make(Size::Fixed(1 << 30), |tree, _| {
            for index in 0..count {
                put(tree, &name(index), Attributes::plain(0o644), Kind::Fifo);
            }
        });
        let all = Filesystem::open(&made.path).all();
        assert_eq!(all.len(), count + 1);
        assert!((0..count).all(|index| all.contains_key(&name(index))));
        if count > 300
            && let Some(text) = common::debugfs(&made.path, "htree_dump /")
        {
            assert!(text.contains("Hash Version: 1"), "{text}");
            // debugfs looks names up by hash where there is an index.
            let found = common::debugfs(&made.path, &format!("stat /{}", name(count - 1))).unwrap();
            assert!(found.contains("Type: FIFO"), "{found}");
        }
    }
}

#[test]
fn a_directory_with_two_levels_of_index_is_sound() {
    let made = make(Size::Fixed(2 << 30), |tree, _| {
        for index in 0..16_000 {
            put(
                tree,
                &format!("{index:05}{}", "n".repeat(250)),
                Attributes::plain(0o644),
                Kind::Fifo,
            );
        }
    });
    let text = common::debugfs(&made.path, "htree_dump /")
        .unwrap_or_else(|| "Indirect levels: 1".to_owned());
    assert!(text.contains("Indirect levels: 1"));
    assert_eq!(Filesystem::open(&made.path).all().len(), 16_001);
}

#[test]
fn more_subdirectories_than_links_can_count_are_possible() {
    let made = make(Size::Fixed(2 << 30), |tree, _| {
        for index in 0..65_001 {
            put(
                tree,
                &format!("{index}"),
                Attributes::plain(0o755),
                Kind::directory(),
            );
        }
    });
    assert_eq!(Filesystem::open(&made.path).inode(2).links, 1);
}

#[test]
fn blocks_of_removed_files_are_free_and_zero() {
    let secret = vec![0xa5; 3 * BLOCK as usize];
    let made = make(SMALL, |tree, writer| {
        let kind = file(writer, secret.len() as u64, &[(0, &secret)]);
        put(tree, "gone", Attributes::plain(0o644), kind);
        let kind = file(writer, 4, &[(0, b"stay")]);
        put(tree, "stays", Attributes::plain(0o644), kind);
        tree.remove(tree.root(), b"gone");
    });
    let empty = make(SMALL, |tree, writer| {
        let kind = file(writer, 4, &[(0, b"stay")]);
        put(tree, "stays", Attributes::plain(0o644), kind);
    });
    assert_eq!(made.summary.free, empty.summary.free);
    assert_eq!(Filesystem::open(&made.path).all()["stays"].data, b"stay");
    assert!(!contains(&made.path, &secret[..64]));
}

fn contains(path: &Path, needle: &[u8]) -> bool {
    std::fs::read(path)
        .unwrap()
        .chunks(512)
        .any(|sector| sector.starts_with(needle))
}

#[test]
fn contents_beyond_a_fixed_size_are_refused_and_otherwise_make_it_grow() {
    let piece = vec![1; 20 << 20];
    let mut fixed = Writer::new(
        RawDisk(tempfile::tempfile().unwrap()),
        Size::Fixed(16 << 20),
    )
    .unwrap();
    let mut open = fixed.contents().file();
    let error = fixed.contents().write(&mut open, 0, &piece).unwrap_err();
    assert!(error.to_string().contains("do not fit"), "{error}");

    let made = make(
        Size::AtLeast {
            size: 16 << 20,
            free: 300 << 20,
        },
        |tree, writer| {
            let kind = file(writer, 20 << 20, &[(0, &piece)]);
            put(tree, "f", Attributes::plain(0o644), kind);
        },
    );
    assert!(made.summary.free >= 300 << 20, "{:?}", made.summary);
    assert_eq!(Filesystem::open(&made.path).all()["f"].data.len(), 20 << 20);
}

#[test]
fn more_files_than_inodes_are_refused_and_otherwise_make_it_grow() {
    let fill = |tree: &mut Tree| {
        for index in 0..20_000 {
            put(
                tree,
                &format!("{index}"),
                Attributes::plain(0o644),
                Kind::Fifo,
            );
        }
    };
    let mut tree = Tree::new(1 << 20);
    fill(&mut tree);
    let writer = Writer::new(
        RawDisk(tempfile::tempfile().unwrap()),
        Size::Fixed(64 << 20),
    )
    .unwrap();
    assert!(matches!(
        writer.finish(&tree, &identity()),
        Err(Ext4Error::Inodes { files: 20_000, .. })
    ));
    let made = make(
        Size::AtLeast {
            size: 64 << 20,
            free: 0,
        },
        |tree, _| fill(tree),
    );
    assert_eq!(made.summary.files, 20_000);
}

#[test]
fn label_and_uuid_are_the_identity_and_two_writings_are_equal() {
    let write = || {
        make(SMALL, |tree, writer| {
            for index in 0..500u32 {
                let mut attributes = Attributes::plain(0o644);
                attributes
                    .xattrs
                    .insert((*b"user.x").into(), vec![index as u8; 200].into());
                let kind = file(writer, 4, &[(0, &index.to_le_bytes())]);
                put(tree, &format!("name {index}"), attributes, kind);
            }
        })
    };
    let (first, second) = (write(), write());
    assert!(std::fs::read(&first.path).unwrap() == std::fs::read(&second.path).unwrap());
    let Some(output) = common::run("dumpe2fs", &["-h", first.path.to_str().unwrap()]) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Filesystem volume name:   image"), "{text}");
    let uuid: String = identity()
        .uuid
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(text.replace('-', "").contains(&uuid), "{text}");
    assert!(text.contains("Total journal blocks:     1024"), "{text}");
}

#[test]
fn the_kernel_has_nothing_left_to_initialise() {
    let made = make(Size::Fixed(10 << 30), |_, _| {});
    let Some(output) = common::run("dumpe2fs", &[made.path.to_str().unwrap()]) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let groups = text
        .lines()
        .filter(|line| line.starts_with("Group ") && line.contains(": (Blocks"))
        .count();
    assert_eq!(groups, 80);
    assert_eq!(text.matches("ITABLE_ZEROED").count(), groups, "{text}");
}
