//! Layers over layers: the rules one by one, then random layers against a simple model.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::ext4::Filesystem;
use common::tar::{Header, Tar, seal};
use image::digest::Digest;
use image::disk::RawDisk;
use image::ext4::{Identity, Label, Size, Writer};
use image::layer::{self, LayerError, Limits};
use image::tree::Tree;
use proptest::prelude::*;

fn flatten(layers: &[Vec<u8>], disk: &Path) -> Result<(), LayerError> {
    let file = std::fs::File::create(disk).unwrap();
    let mut writer = Writer::new(RawDisk(file), Size::Fixed(32 << 20)).unwrap();
    let mut tree = Tree::new(100_000);
    for (index, layer) in layers.iter().enumerate() {
        layer::apply(
            &layer[..],
            index as u32 + 1,
            &mut tree,
            writer.contents(),
            &Limits::default(),
        )?;
    }
    writer
        .finish(&tree, &Identity::of(&Digest::of(b"x"), Label::EMPTY))
        .unwrap();
    common::assert_clean(disk);
    Ok(())
}

/// What is there, as `path kind`: `/` for directories, `=content` for files, `>target` for symbolic
/// links.
fn listing(disk: &Path) -> Vec<String> {
    let all = Filesystem::open(disk).all();
    let lines = all
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, node)| match node.mode >> 12 {
            0o4 => format!("{path}/"),
            0o10 => format!("{path}={}", String::from_utf8_lossy(&node.data)),
            0o12 => format!("{path}>{}", String::from_utf8_lossy(&node.data)),
            kind => format!("{path}?{kind:o}"),
        });
    lines.collect()
}

fn check(layers: &[Tar], expected: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let layers: Vec<_> = layers.iter().map(|layer| layer.clone().end()).collect();
    flatten(&layers, &disk).unwrap();
    assert_eq!(listing(&disk), expected);
}

fn refused(layers: &[Tar], expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    let layers: Vec<_> = layers.iter().map(|layer| layer.clone().end()).collect();
    let flattened = flatten(&layers, &directory.path().join("disk"));
    let text = flattened.map_or_else(
        |error| common::chain(&error),
        |()| "it was taken".to_owned(),
    );
    assert!(text.contains(expected), "{text} (not: {expected})");
}

fn tar() -> Tar {
    Tar::new()
}

#[test]
fn upper_files_replace_lower_ones_and_directories_merge() {
    check(
        &[
            tar().directory("d/").file("d/a", "1").file("d/b", "1"),
            tar().directory("d/").file("d/b", "2").file("d/c", "2"),
        ],
        &["d/", "d/a=1", "d/b=2", "d/c=2"],
    );
}

#[test]
fn the_last_of_several_entries_of_one_name_counts() {
    check(
        &[tar()
            .file("a", "1")
            .file("a", "2")
            .symlink("b", "x")
            .file("b", "3")],
        &["a=2", "b=3"],
    );
}

#[test]
fn types_change_between_layers() {
    check(
        &[tar().file("x", "1"), tar().directory("x/").file("x/y", "2")],
        &["x/", "x/y=2"],
    );
    check(
        &[tar().directory("x/").file("x/y", "1"), tar().file("x", "2")],
        &["x=2"],
    );
    check(
        &[
            tar().directory("x/").file("x/y", "1"),
            tar().symlink("x", "z"),
        ],
        &["x>z"],
    );
    check(
        &[
            tar().directory("z/").symlink("x", "z"),
            tar().directory("x/").file("x/y", "2"),
        ],
        &["x/", "x/y=2", "z/"],
    );
    check(
        &[
            tar().file("x", "1"),
            tar().entry(Header::new(b'6', "x"), b""),
        ],
        &["x?1"],
    );
}

#[test]
fn whiteouts_hide_what_lower_layers_left() {
    let lower = || {
        tar()
            .directory("d/")
            .directory("d/e/")
            .file("d/e/f", "1")
            .file("d/g", "1")
    };
    check(
        &[lower(), tar().file("d/.wh.g", "")],
        &["d/", "d/e/", "d/e/f=1"],
    );
    check(&[lower(), tar().file("d/.wh.e", "")], &["d/", "d/g=1"]);
    check(&[lower(), tar().file(".wh.d", "")], &[]);
    check(
        &[
            lower(),
            tar()
                .file("d/.wh.missing", "")
                .file("no/such/.wh.x", "")
                .file("d/g/.wh.x", ""),
        ],
        &["d/", "d/e/", "d/e/f=1", "d/g=1"],
    );
    // And what hides is not itself there, nor are other files of this name's kind.
    check(
        &[tar().file(".wh..wh.plnk", "").file(".wh..wh.aufs", "")],
        &[],
    );
}

#[test]
fn whiteouts_do_not_hide_what_their_own_layer_puts_there() {
    let lower = || {
        tar()
            .directory("d/")
            .directory("d/e/")
            .file("d/e/f", "1")
            .file("d/g", "1")
    };
    for layer in [
        tar().file("d/.wh.g", "").file("d/g", "2"),
        tar().file("d/g", "2").file("d/.wh.g", ""),
    ] {
        check(&[lower(), layer], &["d/", "d/e/", "d/e/f=1", "d/g=2"]);
    }
    for layer in [
        tar()
            .file("d/.wh.e", "")
            .directory("d/e/")
            .file("d/e/h", "2"),
        tar()
            .directory("d/e/")
            .file("d/e/h", "2")
            .file("d/.wh.e", ""),
        tar().file("d/e/h", "2").file("d/.wh.e", ""),
    ] {
        check(&[lower(), layer], &["d/", "d/e/", "d/e/h=2", "d/g=1"]);
    }
}

#[test]
fn opaque_directories_hide_all_that_lower_layers_left_below() {
    let lower = || {
        tar()
            .directory("d/")
            .directory("d/e/")
            .file("d/e/f", "1")
            .file("d/g", "1")
            .file("top", "1")
    };
    for layer in [
        tar()
            .directory("d/")
            .file("d/.wh..wh..opq", "")
            .file("d/new", "2"),
        tar()
            .directory("d/")
            .file("d/new", "2")
            .file("d/.wh..wh..opq", ""),
    ] {
        check(&[lower(), layer], &["d/", "d/new=2", "top=1"]);
    }
    // Something new far below keeps only the directories on its way.
    check(
        &[
            lower(),
            tar().file("d/e/new", "2").file("d/.wh..wh..opq", ""),
        ],
        &["d/", "d/e/", "d/e/new=2", "top=1"],
    );
    check(
        &[lower(), tar().file(".wh..wh..opq", "").file("only", "2")],
        &["only=2"],
    );
    // It holds for lower layers, not for later ones.
    check(
        &[
            lower(),
            tar().file("d/.wh..wh..opq", ""),
            tar().file("d/later", "3"),
        ],
        &["d/", "d/later=3", "top=1"],
    );
}

#[test]
fn hard_links_share_a_file_within_and_across_layers() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let layers = [
        tar().file("a", "1").link("b", "a").end(),
        tar().link("c", "/b").link("d/e", "./c").end(),
        tar().file(".wh.a", "").file("b", "2").end(),
    ];
    flatten(&layers, &disk).unwrap();
    let all = Filesystem::open(&disk).all();
    assert_eq!((all["c"].inode, all["c"].links), (all["d/e"].inode, 2));
    assert_eq!(
        (&all["c"].data[..], &all["b"].data[..]),
        (&b"1"[..], &b"2"[..])
    );
    assert!(!all.contains_key("a"));
    // To itself it changes nothing; to a symbolic link it is the link that is shared.
    check(&[tar().file("a", "1").link("a", "a")], &["a=1"]);
    check(
        &[tar().symlink("s", "nowhere").link("t", "s")],
        &["s>nowhere", "t>nowhere"],
    );
    refused(
        &[tar().link("a", "missing")],
        "the hard link `a` to `missing` cannot be made: it does not exist",
    );
    refused(
        &[tar().directory("d").link("a", "d")],
        "cannot be hard linked",
    );
    refused(&[tar().link("a", "/")], "cannot be hard linked");
}

#[test]
fn parents_that_are_symbolic_links_are_followed_within_the_root() {
    let lower = || {
        tar()
            .directory("usr/")
            .directory("usr/lib/")
            .symlink("lib", "usr/lib")
            .symlink("abs", "/usr/lib")
    };
    let base = ["abs>/usr/lib", "lib>usr/lib", "usr/", "usr/lib/"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    check(
        &[lower(), tar().file("lib/x", "1")],
        &with(&["usr/lib/x=1"]),
    );
    check(
        &[lower(), tar().file("abs/x", "1")],
        &with(&["usr/lib/x=1"]),
    );
    check(
        &[lower().file("usr/lib/x", "1"), tar().file("lib/.wh.x", "")],
        &base,
    );
    // However many `..` there are, a link leads to the root at most.
    check(
        &[
            tar().symlink("up", "../../../../etc"),
            tar().file("up/passwd", "x"),
        ],
        &["etc/", "etc/passwd=x", "up>../../../../etc"],
    );
    check(
        &[
            tar().symlink("new", "made/on/demand"),
            tar().file("new/f", "x"),
        ],
        &[
            "made/",
            "made/on/",
            "made/on/demand/",
            "made/on/demand/f=x",
            "new>made/on/demand",
        ],
    );
    refused(
        &[tar().symlink("a", "b").symlink("b", "a").file("a/x", "1")],
        "more than 40 symbolic links",
    );
}

#[test]
fn paths_are_taken_as_below_the_root() {
    check(
        &[tar()
            .file("/abs", "1")
            .file("./dot", "2")
            .file("a//b/./c", "3")
            .file("x/../y", "4")],
        &["a/", "a/b/", "a/b/c=3", "abs=1", "dot=2", "y=4"],
    );
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in [
        "..",
        "../x",
        "a/../../x",
        "/../etc/passwd",
        "./../x",
        "a/b/../../../x",
    ] {
        refused(
            &[tar().file(path, "x")],
            "it leads out of the root directory",
        );
    }
    refused(
        &[tar().link("x", "../../etc/shadow")],
        "it leads out of the root directory",
    );
    refused(
        &[tar().file("../.wh.x", "")],
        "it leads out of the root directory",
    );
    refused(
        &[tar().file("f", "").file("f/x", "1")],
        "`f` on the way to it is not a directory",
    );
    refused(&[tar().file("d/.wh.", "")], "names nothing");
    refused(&[tar().file("d/.wh...", ""), tar()], "names nothing");
    refused(
        &[tar().entry(Header::new(b'6', "./"), b"")],
        "the root can only be a directory",
    );
    refused(
        &[tar()
            .pax(&[("path", "n".repeat(256).as_bytes())])
            .file("x", "")],
        "longer than 255 bytes",
    );
    refused(
        &[tar()
            .pax(&[("path", "d/".repeat(3000).as_bytes())])
            .directory("x")],
        "nested deeper",
    );
    refused(
        &[tar()
            .pax(&[("linkpath", "t".repeat(4096).as_bytes())])
            .symlink("x", "y")],
        "longer than 4095 bytes",
    );
    refused(
        &[tar().entry(Header::new(b'2', "x"), b"")],
        "target is empty",
    );
}

#[test]
fn the_limits_hold() {
    let many = (0..50)
        .fold(tar(), |tar, index| tar.file(&format!("{index}"), ""))
        .end();
    let apply = |limits: &Limits| {
        let mut writer = Writer::new(
            RawDisk(tempfile::tempfile().unwrap()),
            Size::Fixed(16 << 20),
        )
        .unwrap();
        let mut tree = Tree::new(limits.files);
        layer::apply(&many[..], 1, &mut tree, writer.contents(), limits)
            .map(|_| ())
            .map_err(|error| common::chain(&error))
    };
    assert_eq!(apply(&Limits::default()), Ok(()));
    let error = apply(&Limits {
        entries: 49,
        ..Limits::default()
    })
    .unwrap_err();
    assert!(error.contains("more than 49 entries"), "{error}");
    let error = apply(&Limits {
        files: 50,
        ..Limits::default()
    })
    .unwrap_err();
    assert!(error.contains("more than 50 files"), "{error}");
}

#[test]
fn what_would_take_too_much_is_refused() {
    let links = (0..65_000).fold(tar().file("f", ""), |tar, index| {
        tar.link(&format!("{index}"), "f")
    });
    refused(&[links], "it has more than 65000 names");
    let fits = tar()
        .pax(&[("SCHILY.xattr.user.a", &[1; 3900])])
        .file("f", "");
    check(&[fits], &["f="]);
    refused(
        &[tar()
            .pax(&[("SCHILY.xattr.user.a", &[1; 4096])])
            .file("f", "")],
        "take more than 4 KiB",
    );
    refused(
        &[tar()
            .pax(&[("SCHILY.xattr.user.a", &[1; 4096])])
            .directory("./")],
        "take more than 4 KiB",
    );
    // A byte in every second block: 4 KiB of disk each.
    let map: Vec<String> = (0..5000)
        .map(|index| format!("{},1", index * 8192))
        .collect();
    let sparse = tar()
        .pax(&[
            ("GNU.sparse.size", b"40960000"),
            ("GNU.sparse.map", map.join(",").as_bytes()),
        ])
        .file("f", vec![7; 5000])
        .end();
    let mut writer = Writer::new(
        RawDisk(tempfile::tempfile().unwrap()),
        Size::Fixed(256 << 20),
    )
    .unwrap();
    let mut tree = Tree::new(100);
    let limits = Limits {
        total_bytes: 10 << 20,
        ..Limits::default()
    };
    let error = layer::apply(&sparse[..], 1, &mut tree, writer.contents(), &limits).unwrap_err();
    assert!(
        common::chain(&error).contains("take more than 10485760 bytes of disk"),
        "{error}"
    );
}

#[test]
fn damaged_streams_are_refused_each_with_its_reason() {
    let whole = tar().file("a", vec![7; 5000]).end();
    let header = |change: &dyn Fn(&mut [u8; 512])| {
        let mut block = Header::new(b'0', "a").encode();
        change(&mut block);
        tar().raw(&block).end()
    };
    let sealed = |change: &dyn Fn(&mut [u8; 512])| {
        header(&|block| {
            change(block);
            seal(block);
        })
    };
    let pax = |records: &[(&str, &[u8])]| tar().pax(records).file("f", "12345").end();
    let mut huge = Header::new(b'0', "a");
    huge.size = u64::MAX;
    let mut long = Header::new(b'x', "pax");
    long.size = 2 << 20;
    for (stream, expected) in [
        (whole[..300].to_vec(), "in the middle of an entry"),
        (whole[..3000].to_vec(), "in the middle of an entry"),
        (vec![0xff; 1024], "its checksum does not match"),
        (vec![b'x'; 1024], "its checksum is not a number"),
        (
            header(&|block| block[0] = b'b'),
            "its checksum does not match",
        ),
        (sealed(&|block| block[156] = b'Z'), "unknown type"),
        (
            sealed(&|block| block[124..128].copy_from_slice(b"12x4")),
            "its size is not a number",
        ),
        (
            sealed(&|block| block[124..136].fill(0xff)),
            "its size is not a number",
        ),
        (
            sealed(&|block| block[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0])),
            "its owner",
        ),
        (sealed(&|block| block[0] = 0), "it has no path"),
        (tar().raw(&huge.encode()).end(), "its size is not a number"),
        (tar().raw(&long.encode()).end(), "longer than 1 MiB"),
        (
            (0..20)
                .fold(tar(), |tar, _| tar.pax(&[("a", b"b")]))
                .file("f", "")
                .end(),
            "too many extension headers",
        ),
        (pax(&[("size", b"18446744073709551615")]), "size"),
        (pax(&[("size", b"-1")]), "not a number"),
        (pax(&[("uid", b"4294967296")]), "owner"),
        (pax(&[("mtime", b"yesterday")]), "time"),
        (pax(&[("SCHILY.xattr.", b"x")]), "attribute"),
        (pax(&[("LIBARCHIVE.xattr.user.a", b"!!")]), "base64"),
        (
            pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,5,3,0")]),
            "goes backwards",
        ),
        (
            pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,3")]),
            "not of its contents",
        ),
        (
            pax(&[("GNU.sparse.size", b"4"), ("GNU.sparse.map", b"0,5")]),
            "beyond its size",
        ),
        (
            pax(&[
                ("GNU.sparse.size", b"4"),
                ("GNU.sparse.map", b"18446744073709551615,5"),
            ]),
            "overflows",
        ),
        (
            pax(&[
                ("GNU.sparse.size", b"9999999999999999999"),
                ("GNU.sparse.map", b"0,5"),
            ]),
            "overflows",
        ),
        (
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")]),
            "longer than its contents",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let flattened = flatten(&[stream], &directory.path().join("disk"));
        let text = flattened.map_or_else(
            |error| common::chain(&error),
            |()| "it was taken".to_owned(),
        );
        assert!(text.contains(expected), "{text} (not: {expected})");
    }
}

#[test]
fn extended_headers_say_what_does_not_fit_into_a_plain_one() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let layer = tar()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000"),
            ("gid", b"4000000"),
            ("mtime", b"1700000000.123456789"),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\x00\x00\x02\x00\x20\x00\x00",
            ),
            ("SCHILY.xattr.user.a.b", b"binary\n\0value"),
            ("LIBARCHIVE.xattr.user.c", b"Yw=="),
            ("SCHILY.xattr.com.apple.provenance", b"dropped"),
        ])
        .file("short", "x")
        .entry(
            Header::new(b'L', "././@LongLink"),
            format!("{}\0", "g".repeat(150)).as_bytes(),
        )
        .file("cut", "y")
        .entry(
            Header::new(b'K', "././@LongLink"),
            format!("{}\0", "t".repeat(150)).as_bytes(),
        )
        .symlink("link", "cut")
        .end();
    flatten(&[layer], &disk).unwrap();
    let all = Filesystem::open(&disk).all();
    let node = &all[&long];
    assert_eq!(
        (node.uid, node.gid, node.mtime),
        (3_000_000, 4_000_000, (1_700_000_000, 123_456_789))
    );
    let xattrs: Vec<_> = node
        .xattrs
        .iter()
        .map(|(name, value)| (&name[..], &value[..]))
        .collect();
    assert_eq!(
        xattrs,
        [
            (
                &b"security.capability"[..],
                &b"\x01\x00\x00\x02\x00\x20\x00\x00"[..]
            ),
            (b"user.a.b", b"binary\n\0value"),
            (b"user.c", b"c"),
        ]
    );
    assert_eq!(all[&"g".repeat(150)].data, b"y");
    assert_eq!(all["link"].data, "t".repeat(150).as_bytes());
    // What one header says is not said of the next entry.
    assert_eq!(all[&"g".repeat(150)].uid, 0);
}

#[test]
fn every_sparse_format_of_the_systems_tar_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mut expected = vec![0u8; 6 << 20];
    let file = std::fs::File::create(root.join("sparse")).unwrap();
    file.set_len(expected.len() as u64).unwrap();
    // Enough pieces for the maps to need several blocks.
    for piece in 0..150usize {
        let at = piece * 40_960 + 4096;
        expected[at..at + 100].fill(piece as u8 + 1);
        std::os::unix::fs::FileExt::write_all_at(&file, &expected[at..at + 4096], at as u64)
            .unwrap();
    }
    std::fs::write(root.join("after"), "still in step").unwrap();
    for format in ["gnu", "0.0", "0.1", "1.0"] {
        let out = directory.path().join("layer.tar");
        let version = format!("--sparse-version={format}");
        let mut args = vec![
            "-S",
            "-C",
            root.to_str().unwrap(),
            "-cf",
            out.to_str().unwrap(),
        ];
        args.extend(if format == "gnu" {
            vec!["--format=gnu"]
        } else {
            vec!["--format=pax", &version]
        });
        args.extend(["sparse", "after"]);
        let Some(output) = common::run("tar", &args) else {
            return;
        };
        assert!(output.status.success());
        let layer = std::fs::read(&out).unwrap();
        assert!(layer.len() < 2 << 20, "tar found no holes");
        let disk = directory.path().join("disk");
        flatten(&[layer], &disk).unwrap();
        let all = Filesystem::open(&disk).all();
        assert!(all["sparse"].data == expected, "{format}");
        assert_eq!(all["sparse"].mapped, 150, "{format}");
        assert_eq!(all["after"].data, b"still in step", "{format}");
    }
}

/// What a layer does, as a model sees it.
#[derive(Debug, Clone)]
enum Change {
    File(String, u8),
    Directory(String, u16),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// A node of the model: a kind with content, and which file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Model {
    Directory(u16),
    File(usize, Vec<u8>),
    Symlink(String),
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn below(path: &str, directory: &str) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// Applies a layer to the model: what it hides first, then what it puts. `None` if an entry's parent is
/// no directory, which is an error (symbolic links as parents have their own test).
fn model(state: &mut BTreeMap<String, Model>, layer: &[Change], files: &mut usize) -> Option<()> {
    for change in layer {
        match change {
            Change::Whiteout(path) => state.retain(|other, _| other != path && !below(other, path)),
            Change::Opaque(path) => state.retain(|other, _| !below(other, path)),
            _ => {}
        }
    }
    for change in layer {
        let (path, node) = match change {
            Change::File(path, content) => {
                *files += 1;
                (
                    path,
                    Model::File(*files, vec![*content; usize::from(*content) * 60]),
                )
            }
            Change::Directory(path, mode) => (path, Model::Directory(*mode)),
            Change::Symlink(path, target) => (path, Model::Symlink(target.clone())),
            Change::Link(path, target) => match state.get(target) {
                Some(Model::Directory(_)) | None => return None,
                Some(node) => (path, node.clone()),
            },
            Change::Opaque(path) => {
                let _ = path;
                continue;
            }
            Change::Whiteout(_) => continue,
        };
        for parent in parents(path) {
            match state
                .entry(parent.to_owned())
                .or_insert(Model::Directory(0o755))
            {
                Model::Directory(_) => {}
                _ => return None,
            }
        }
        let merge = matches!(
            (&node, state.get(path)),
            (Model::Directory(_), Some(Model::Directory(_)))
        );
        if !merge {
            state.retain(|other, _| !below(other, path));
        }
        state.insert(path.clone(), node);
    }
    Some(())
}

fn stream(layer: &[Change]) -> Vec<u8> {
    let hidden = |path: &str| match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    let write = |tar: Tar, change: &Change| match change {
        Change::File(path, content) => tar.file(path, vec![*content; usize::from(*content) * 60]),
        Change::Directory(path, mode) => {
            let mut header = Header::new(b'5', format!("{path}/"));
            header.mode = u32::from(*mode);
            tar.entry(header, b"")
        }
        Change::Symlink(path, target) => tar.symlink(path, target),
        Change::Link(path, target) => tar.link(path, target),
        Change::Whiteout(path) => tar.file(&hidden(path), ""),
        Change::Opaque(path) if path.is_empty() => tar.file(".wh..wh..opq", ""),
        Change::Opaque(path) => tar.file(&format!("{path}/.wh..wh..opq"), ""),
    };
    layer.iter().fold(Tar::new(), write).end()
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, content)| Change::File(path, content)),
        3 => (path(), prop::sample::select(vec![0o700, 0o755, 0o1777])).prop_map(|(path, mode)| Change::Directory(path, mode)),
        1 => (path(), path()).prop_map(|(path, target)| Change::Symlink(path, format!("nowhere/{target}"))),
        2 => (path(), path()).prop_map(|(path, target)| Change::Link(path, target)),
        3 => path().prop_map(Change::Whiteout),
        1 => prop_oneof![Just(String::new()), path()].prop_map(Change::Opaque),
    ]
}

/// Layers with whiteouts first, as tools write them, each entry one the model can take.
fn layers() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 0..14), 1..5).prop_map(|layers| {
        let mut state = BTreeMap::new();
        let mut files = 0;
        let mut kept = Vec::new();
        for mut layer in layers {
            layer.sort_by_key(|change| !matches!(change, Change::Whiteout(_) | Change::Opaque(_)));
            let mut taken: Vec<Change> = Vec::new();
            for change in layer {
                let mut attempt = taken.clone();
                attempt.push(change);
                if model(&mut state.clone(), &attempt, &mut files.clone()).is_some()
                    && !through_symlink(&state, &attempt)
                {
                    taken = attempt;
                }
            }
            model(&mut state, &taken, &mut files).unwrap();
            kept.push(taken);
        }
        kept
    })
}

/// Whether a whiteout or the target of a link has a symbolic link among its parents.
fn through_symlink(state: &BTreeMap<String, Model>, layer: &[Change]) -> bool {
    let links: BTreeSet<&str> = state
        .iter()
        .filter(|(_, node)| matches!(node, Model::Symlink(_)))
        .map(|(path, _)| path.as_str())
        .chain(layer.iter().filter_map(|change| match change {
            Change::Symlink(path, _) | Change::Link(path, _) => Some(path.as_str()),
            _ => None,
        }))
        .collect();
    layer.iter().any(|change| match change {
        Change::Whiteout(path) | Change::Link(_, path) => {
            parents(path).any(|parent| links.contains(parent))
        }
        Change::Opaque(path) => {
            links.contains(path.as_str()) || parents(path).any(|parent| links.contains(parent))
        }
        _ => false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_flatten_as_the_model_says(layers in layers()) {
        let mut expected = BTreeMap::new();
        let mut files = 0;
        for layer in &layers {
            model(&mut expected, layer, &mut files).unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let streams: Vec<_> = layers.iter().map(|layer| stream(layer)).collect();
        flatten(&streams, &disk).unwrap();
        let mut found = Filesystem::open(&disk).all();
        found.remove("");
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        let mut inodes = BTreeMap::new();
        for (path, node) in &expected {
            let on_disk = &found[path];
            match node {
                Model::Directory(mode) => prop_assert_eq!(on_disk.mode, 0o40000 | mode, "{}", path),
                Model::File(number, content) => {
                    prop_assert_eq!(&on_disk.data, content, "{}", path);
                    // Names of one file have one inode, and count.
                    let inode = *inodes.entry(*number).or_insert(on_disk.inode);
                    prop_assert_eq!(inode, on_disk.inode, "{}", path);
                    let names = expected.values().filter(|other| matches!(other, Model::File(other, _) if other == number)).count();
                    prop_assert_eq!(usize::from(on_disk.links), names, "{}", path);
                }
                Model::Symlink(target) => prop_assert_eq!(&on_disk.data, target.as_bytes(), "{}", path),
            }
        }
    }

    #[test]
    fn random_bytes_never_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), flips in prop::collection::vec((0usize..4096, any::<u8>()), 0..20)) {
        let mut stream = Tar::new()
            .pax(&[("path", b"some/where"), ("GNU.sparse.size", b"10000"), ("GNU.sparse.map", b"0,5,100,5")])
            .file("x", "1234567890")
            .link("l", "some/where")
            .symlink("s", "some")
            .file("s/y", &bytes)
            .end();
        for (at, value) in flips {
            let at = at % stream.len();
            stream[at] ^= value;
            let start = at / 512 * 512;
            // Half of the damage is in headers whose checksum is right.
            if value & 1 == 0 && let Some(block) = stream[start..].first_chunk_mut::<512>() {
                seal(block);
            }
        }
        let mut writer = Writer::new(RawDisk(tempfile::tempfile().unwrap()), Size::Fixed(16 << 20)).unwrap();
        let mut tree = Tree::new(1000);
        let _ = layer::apply(&stream[..], 1, &mut tree, writer.contents(), &Limits::default());
        let _ = layer::apply(&bytes[..], 2, &mut tree, writer.contents(), &Limits::default());
    }
}
