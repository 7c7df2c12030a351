//! Images from every kind of source into a store, and the store itself.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::ext4::Filesystem;
use common::layout::{self, Layout, Packing};
use common::tar::{Header, Tar};
use image::digest::Digest;
use image::ext4::Size;
use image::import::Options;
use image::layer::Limits;
use image::progress::{Phase, Progress, Silent};
use image::reference::{Name, Source};
use image::rootfs::Owners;
use image::store::{ImageRecord, Removal, Store, StoreError};
use serde_json::json;

fn small() -> Options {
    Options {
        size: Size::AtLeast {
            size: 64 << 20,
            free: 16 << 20,
        },
        ..Options::default()
    }
}

struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self, transport: &str, name: &str) -> Source {
        format!("{transport}:{}", self.path(name).display())
            .parse()
            .unwrap()
    }

    fn import(&self, source: &Source, name: Option<&str>) -> Result<ImageRecord, StoreError> {
        let name = name.map(|name| name.parse().unwrap());
        self.store.import(source, name.as_ref(), &small(), &Silent)
    }

    /// The error of an import, which must leave nothing behind.
    fn refused(&self, source: &Source, options: &Options) -> String {
        let error = self
            .store
            .import(source, None, options, &Silent)
            .unwrap_err();
        assert_eq!(fs::read_dir(self.path("store/partial")).unwrap().count(), 0);
        assert_eq!(self.store.list().unwrap(), []);
        common::chain(&error)
    }

    /// Writes a layout of one image and returns its source.
    fn layout(&self, layers: &[Vec<u8>], packing: Packing) -> Source {
        layout::simple(layers, packing).write(&self.path("layout"));
        self.source("oci", "layout")
    }

    /// The image's disk as a raw file, converted by `qemu-img`; `None` if there is none.
    fn raw(&self, disk: &Path) -> Option<PathBuf> {
        let raw = self.path("raw");
        let output = common::run(
            "qemu-img",
            &["convert", "-O", "raw", disk.to_str()?, raw.to_str()?],
        )?;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        common::assert_clean(&raw);
        Some(raw)
    }
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new()
            .directory("bin/")
            .file("bin/sh", vec![1; 200_000])
            .file("old", "x")
            .end(),
        Tar::new()
            .file(".wh.old", "")
            .link("bin/ash", "bin/sh")
            .end(),
        Tar::new().symlink("sh", "bin/sh").end(),
    ]
}

#[test]
fn one_image_has_one_id_and_one_content_whatever_it_comes_in() {
    let place = Place::new();
    let mut disks = Vec::new();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let other = Place::new();
        let record = other
            .import(&other.layout(&layers(), packing), Some("sample/busybox"))
            .unwrap();
        assert_eq!(
            record.names,
            ["sample/busybox:latest".parse::<Name>().unwrap()]
        );
        assert_eq!(record.config.config.cmd, ["sh"]);
        disks.push((record.id, fs::read(&record.disk).unwrap()));
    }
    for (file, bytes, transport) in [
        (
            "a.tar",
            layout::simple(&layers(), Packing::Plain).archive(),
            "oci-archive",
        ),
        (
            "a.tar.gz",
            Packing::Gzip.pack(&layout::simple(&layers(), Packing::Gzip).archive()),
            "oci-archive",
        ),
        (
            "d.tar",
            layout::docker_archive(&layers(), &["sample/busybox:1"]).end(),
            "docker-archive",
        ),
        (
            "d.tar.zst",
            Packing::Zstd.pack(&layout::docker_archive(&layers(), &["sample/busybox:1"]).end()),
            "docker-archive",
        ),
    ] {
        let other = Place::new();
        fs::write(other.path(file), bytes).unwrap();
        let record = other.import(&other.source(transport, file), None).unwrap();
        disks.push((record.id, fs::read(&record.disk).unwrap()));
    }
    assert!(disks.iter().all(|disk| *disk == disks[0]));

    let record = place
        .import(&place.layout(&layers(), Packing::Gzip), None)
        .unwrap();
    let Some(raw) = place.raw(&record.disk) else {
        return;
    };
    let all = Filesystem::open(&raw).all();
    assert_eq!(
        all.keys().collect::<Vec<_>>(),
        ["", "bin", "bin/ash", "bin/sh", "sh"]
    );
    assert_eq!(all["bin/sh"].data, vec![1; 200_000]);
    assert_eq!(all["bin/sh"].links, 2);
}

#[test]
fn the_configuration_is_kept_byte_for_byte_and_read_whole() {
    let place = Place::new();
    let mut layout = Layout::default();
    let process = json!({
        "User": "daemon:adm", "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Env": ["A=1", "B="],
        "Entrypoint": ["/init"], "Cmd": null, "Volumes": {"/data": {}}, "WorkingDir": "/srv",
        "Labels": {"k": "v"}, "StopSignal": "SIGINT", "Unknown": {"kept": true},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000i64, "Retries": 3},
    });
    let descriptor = layout.image(&layers(), Packing::Gzip, process);
    layout.add(descriptor, "latest");
    layout.write(&place.path("layout"));
    let record = place.import(&place.source("oci", "layout"), None).unwrap();
    let config = &record.config.config;
    assert_eq!(config.user, "daemon:adm");
    assert_eq!(
        config.exposed_ports.iter().collect::<Vec<_>>(),
        ["53/udp", "80/tcp"]
    );
    assert_eq!(config.env, ["A=1", "B="]);
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..]),
        (&["/init".to_owned()][..], &[][..])
    );
    assert_eq!(config.volumes.iter().collect::<Vec<_>>(), ["/data"]);
    assert_eq!(
        (config.working_dir.as_str(), config.stop_signal.as_str()),
        ("/srv", "SIGINT")
    );
    assert_eq!(config.labels["k"], "v");
    let healthcheck = config.healthcheck.as_ref().unwrap();
    assert_eq!(
        (healthcheck.interval, healthcheck.retries),
        (5_000_000_000, 3)
    );
    let kept = fs::read(record.disk.with_file_name("config.json")).unwrap();
    assert_eq!(Digest::of(&kept), record.id);
}

#[test]
fn a_tag_chooses_among_images_and_a_platform_within_one() {
    let place = Place::new();
    let mut layout = Layout::default();
    let image = |layout: &mut Layout, name: &str| {
        layout.image(
            &[Tar::new().file(name, "").end()],
            Packing::Plain,
            json!({}),
        )
    };
    let one = image(&mut layout, "one");
    let mut platforms = Vec::new();
    for (name, os, architecture) in [
        ("arm", "linux", "arm64"),
        ("ours", "linux", "amd64"),
        ("attestation", "unknown", "unknown"),
    ] {
        let mut descriptor = image(&mut layout, name);
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        platforms.push(descriptor);
    }
    let ours = platforms[1].clone();
    let index = json!({"schemaVersion": 2, "manifests": platforms});
    let many = layout.descriptor(
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    );
    let foreign = json!({"schemaVersion": 2, "manifests": [platforms[0], platforms[2]]});
    let foreign = layout.descriptor(
        "application/vnd.docker.distribution.manifest.list.v2+json",
        foreign.to_string().as_bytes(),
    );
    layout.add(one, "1.0");
    layout.add(many, "multi");
    layout.add(foreign, "foreign");
    layout.write(&place.path("layout"));
    let path = place.path("layout").display().to_string();
    let by = |tag: &str| place.import(&format!("oci:{path}{tag}").parse().unwrap(), None);
    let chain = |error: StoreError| common::chain(&error);

    let multi = by(":multi").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(
        &fs::read(
            place.path("layout/blobs/sha256").join(
                ours["digest"]
                    .as_str()
                    .unwrap()
                    .trim_start_matches("sha256:"),
            ),
        )
        .unwrap(),
    )
    .unwrap();
    assert_eq!(multi.id.to_string(), manifest["config"]["digest"]);
    assert_ne!(by(":1.0").unwrap().id, multi.id);
    assert!(chain(by("").unwrap_err()).contains("say which, one of 1.0, multi, foreign"));
    assert!(
        chain(by(":2.0").unwrap_err())
            .contains("there is no image `2.0`; there are: 1.0, multi, foreign")
    );
    assert!(
        chain(by(":foreign").unwrap_err())
            .contains("no image for linux/amd64; there are: linux/arm64, unknown/unknown")
    );
}

#[test]
fn docker_media_types_are_those_of_oci_by_other_names() {
    let place = Place::new();
    let mut layout = Layout::default();
    let layers = layers();
    let config = layout::config(&layers, json!({}));
    let config = layout.descriptor(
        "application/vnd.docker.container.image.v1+json",
        config.to_string().as_bytes(),
    );
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            layout.descriptor(
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                &Packing::Gzip.pack(layer),
            )
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = layout.descriptor(
        "application/vnd.docker.distribution.manifest.v2+json",
        manifest.to_string().as_bytes(),
    );
    layout.add(manifest, "x");
    layout.write(&place.path("layout"));
    assert_eq!(
        place
            .import(&place.source("oci", "layout"), None)
            .unwrap()
            .files,
        3
    );
}

/// Changes one file of a layout; the first whose path contains `part`.
fn damaged(layers: &[Vec<u8>], packing: Packing, change: impl Fn(&mut Layout)) -> (Place, Source) {
    let place = Place::new();
    let mut layout = layout::simple(layers, packing);
    change(&mut layout);
    layout.write(&place.path("layout"));
    let source = place.source("oci", "layout");
    (place, source)
}

#[test]
fn nothing_that_is_not_what_its_digest_says_is_imported() {
    // In the order they are written: configuration, layers, manifest.
    let layers = [Tar::new().file("a", "some content").file("b", "more").end()];
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let (place, source) = damaged(&layers, packing, |layout| {
            let blob = &mut layout.files[1].1;
            let middle = blob.len() / 2;
            blob[middle] ^= 1;
        });
        let text = place.refused(&source, &small());
        assert!(
            text.contains("its content is damaged: it hashes to"),
            "{packing:?}: {text}"
        );
        let (place, source) = damaged(&layers, packing, |layout| {
            let blob = &mut layout.files[1].1;
            blob.truncate(blob.len() - 5);
        });
        let text = place.refused(&source, &small());
        assert!(text.contains("bytes, not"), "{packing:?}: {text}");
        let (place, source) = damaged(&layers, packing, |layout| layout.files[1].1.extend([0; 9]));
        let text = place.refused(&source, &small());
        assert!(text.contains("bytes, not"), "{packing:?}: {text}");
        let (place, source) = damaged(&layers, packing, |layout| drop(layout.files.remove(1)));
        let text = place.refused(&source, &small());
        assert!(text.contains("No such file"), "{packing:?}: {text}");
    }
    for (index, expected) in [
        (0, "is damaged: its content hashes to"),
        (2, "is damaged: its content hashes to"),
    ] {
        let (place, source) = damaged(&layers, Packing::Gzip, |layout| {
            let blob = &mut layout.files[index].1;
            let at = blob.len() - 2;
            blob[at] ^= 1;
        });
        let text = place.refused(&source, &small());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_layer_that_is_not_the_one_of_the_configuration_is_refused() {
    let other = vec![Tar::new().file("a", "1").end()];
    let mut layout = Layout::default();
    let config = layout::config(&other, json!({}));
    let config = layout.descriptor(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    for (layers, expected) in [
        (vec![Tar::new().file("a", "2").end()], "not to the"),
        (
            vec![other[0].clone(), other[0].clone()],
            "the image has 2 layers and its configuration names 1",
        ),
    ] {
        let place = Place::new();
        let mut layout = layout.clone();
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                layout.descriptor(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    &Packing::Gzip.pack(layer),
                )
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let manifest = layout.descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        );
        layout.add(manifest, "x");
        layout.write(&place.path("layout"));
        let text = place.refused(&place.source("oci", "layout"), &small());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    let place = Place::new();
    let directory = place.path("layout");
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let source = place.source("oci", "layout");
    let hash = "0".repeat(64);
    for (index, expected) in [
        (String::new(), "index.json is not valid"),
        ("{}".to_owned(), "missing field `manifests`"),
        (r#"{"manifests":[]}"#.to_owned(), "there is no image in it"),
        (
            r#"{"manifests":[{"digest":"sha512:00","size":1}]}"#.to_owned(),
            "is not a sha256 digest",
        ),
        (
            r#"{"manifests":[{"digest":"sha256:../../../etc/passwd","size":1}]}"#.to_owned(),
            "is not a sha256 digest",
        ),
        (
            format!(r#"{{"manifests":[{{"digest":"sha256:{hash}","size":1}}]}}"#),
            "No such file",
        ),
        (
            format!("{{\"manifests\":[]{}}}", " ".repeat(9 << 20)),
            "larger than",
        ),
    ] {
        fs::write(directory.join("index.json"), index).unwrap();
        let text = place.refused(&source, &small());
        assert!(text.contains(expected), "{text} (not: {expected})");
    }
    assert!(
        place
            .refused(&place.source("oci", "missing"), &small())
            .contains("No such file")
    );
    // A named pipe would be waited for without end.
    fs::remove_file(directory.join("index.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.join("index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(
        place
            .refused(&source, &small())
            .contains("not a regular file")
    );
}

#[test]
fn an_index_that_contains_itself_ends() {
    // It cannot, by digest: but indexes can be nested as deep as one likes.
    let place = Place::new();
    let mut layout = Layout::default();
    let mut descriptor = layout.image(&layers(), Packing::Gzip, json!({}));
    for _ in 0..10 {
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        descriptor = layout.descriptor(
            "application/vnd.oci.image.index.v1+json",
            index.to_string().as_bytes(),
        );
    }
    layout.add(descriptor, "x");
    layout.write(&place.path("layout"));
    let text = place.refused(&place.source("oci", "layout"), &small());
    assert!(text.contains("nested deeper than 4 levels"), "{text}");
}

#[test]
fn bombs_are_stopped_at_the_limits() {
    let place = Place::new();
    let bomb = vec![Tar::new().file("zeros", vec![0; 8 << 20]).end()];
    let limited = |limits| Options { limits, ..small() };
    for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
        let source = place.layout(&bomb, packing);
        let text = place.refused(
            &source,
            &limited(Limits {
                layer_bytes: 1 << 20,
                ..Limits::default()
            }),
        );
        assert!(
            text.contains("more than 1048576 bytes"),
            "{packing:?}: {text}"
        );
        let text = place.refused(
            &source,
            &limited(Limits {
                total_bytes: 1 << 20,
                ..Limits::default()
            }),
        );
        assert!(
            text.contains("more than 1048576 bytes"),
            "{packing:?}: {text}"
        );
        fs::remove_dir_all(place.path("layout")).unwrap();
    }
    // What comes after the archive's end counts too.
    let mut trailing = Tar::new().file("a", "").end();
    trailing.extend(vec![0; 8 << 20]);
    let source = place.layout(&[trailing], Packing::Gzip);
    let text = place.refused(
        &source,
        &limited(Limits {
            layer_bytes: 1 << 20,
            ..Limits::default()
        }),
    );
    assert!(text.contains("the limit"), "{text}");
    fs::write(place.path("a.tgz"), Packing::Gzip.pack(&vec![0; 8 << 20])).unwrap();
    let text = place.refused(
        &place.source("docker-archive", "a.tgz"),
        &limited(Limits {
            total_bytes: 1 << 20,
            ..Limits::default()
        }),
    );
    assert!(
        text.contains("the archive decompresses to more than 1048576 bytes"),
        "{text}"
    );
    let source = place.source("oci", "many");
    layout::simple(&vec![Tar::new().end(); 5], Packing::Plain).write(&place.path("many"));
    let text = place.refused(
        &source,
        &limited(Limits {
            layers: 4,
            ..Limits::default()
        }),
    );
    assert!(
        text.contains("the image has 5 layers, more than the limit of 4"),
        "{text}"
    );
    // A small disk is full when it is full.
    let source = place.layout(&bomb, Packing::Gzip);
    let text = place.refused(
        &source,
        &Options {
            size: Size::Fixed(16 << 20),
            limits: Limits::default(),
            ..small()
        },
    );
    assert!(
        text.contains("cannot write") || text.contains("do not fit"),
        "{text}"
    );
}

#[test]
fn a_file_declared_larger_than_anything_is_refused_before_it_fills_the_disk() {
    let place = Place::new();
    let mut header = Header::new(b'0', "huge");
    header.size = 1 << 60;
    let source = place.layout(&[Tar::new().raw(&header.encode()).end()], Packing::Gzip);
    let text = place.refused(&source, &small());
    assert!(text.contains("in the middle of an entry"), "{text}");
}

#[test]
fn docker_archives_are_read_with_links_and_several_images() {
    let place = Place::new();
    // As `docker save` shares a layer between images: by a symbolic link to the other's.
    let layers = layers();
    let config = layout::config(
        &[layers[0].clone(), layers[0].clone()],
        json!({"Cmd": ["linked"]}),
    )
    .to_string();
    let linked = json!({"Config": "c.json", "RepoTags": ["sample/linked:1", "sample/linked:2"], "Layers": ["a/layer.tar", "b/layer.tar"]});
    let plain_config = layout::config(&layers[..1], json!({})).to_string();
    let plain = json!({"Config": "p.json", "RepoTags": null, "Layers": ["a/layer.tar"]});
    let archive = |images: serde_json::Value| {
        Tar::new()
            .file("./c.json", &config)
            .file("p.json", &plain_config)
            .file("a/layer.tar", Packing::Gzip.pack(&layers[0]))
            .symlink("b/layer.tar", "../a/layer.tar")
            .symlink("loop", "loop")
            .symlink("out", "../../etc/passwd")
            .file("manifest.json", images.to_string())
            .end()
    };
    let import = |images, name: &str| {
        fs::write(place.path("d.tar"), archive(images)).unwrap();
        let source = format!("docker-archive:{}{name}", place.path("d.tar").display())
            .parse()
            .unwrap();
        place
            .import(&source, None)
            .map_err(|error| common::chain(&error))
    };
    let record = import(json!([linked, plain]), ":sample/linked:2").unwrap();
    assert_eq!(record.names, ["sample/linked:2".parse().unwrap()]);
    assert_eq!(record.config.config.cmd, ["linked"]);
    assert_eq!(import(json!([linked]), "").unwrap().names.len(), 2);
    assert_eq!(import(json!([plain]), "").unwrap().names, []);
    assert!(
        import(json!([linked, plain]), "")
            .unwrap_err()
            .contains("has 2 images: say which, one of sample/linked:1, sample/linked:2")
    );
    assert!(
        import(json!([linked, plain]), ":other")
            .unwrap_err()
            .contains("there is no image `other:latest`")
    );
    assert!(import(json!([]), "").unwrap_err().contains("has 0 images"));
    for (layer, expected) in [
        ("loop", "too many links"),
        ("out", "no such member"),
        ("../x", "leads out"),
        ("none", "no such member"),
    ] {
        // Of an image that is there its layers are not looked at.
        let _ = place.store.remove(
            &Digest::of(plain_config.as_bytes()).to_string(),
            Removal::Forced,
        );
        let image = json!([{"Config": "p.json", "Layers": [layer]}]);
        let text = import(image, "").unwrap_err();
        assert!(text.contains(expected), "{text} (not: {expected})");
    }
    let wrong = format!("{}.json", "0".repeat(64));
    fs::write(
        place.path("d.tar"),
        Tar::new()
            .file(&wrong, &config)
            .file(
                "manifest.json",
                json!([{"Config": wrong, "Layers": []}]).to_string(),
            )
            .end(),
    )
    .unwrap();
    let error = place
        .import(&place.source("docker-archive", "d.tar"), None)
        .unwrap_err();
    assert!(
        common::chain(&error).contains("is damaged: it hashes to"),
        "{error}"
    );
    fs::write(place.path("d.tar"), "not a tar at all, by far too short").unwrap();
    assert!(
        place
            .import(&place.source("docker-archive", "d.tar"), None)
            .is_err()
    );
}

#[test]
fn a_directory_is_copied_as_it_is() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let place = Place::new();
    let root = place.path("root");
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::hard_link(root.join("etc/passwd"), root.join("etc/deep/again")).unwrap();
    symlink("../nowhere", root.join("etc/link")).unwrap();
    fs::set_permissions(root.join("etc/deep"), fs::Permissions::from_mode(0o1750)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", 9 << 20).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let with_xattr = rustix::fs::lsetxattr(
        root.join("etc/passwd"),
        "user.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok();

    let source = place.source("dir", "root");
    let record = place.import(&source, Some("sample/dir:1")).unwrap();
    let again = Place::new();
    let second = again
        .store
        .import(&source, None, &small(), &Silent)
        .unwrap();
    assert_eq!(record.id, second.id);
    assert!(fs::read(&record.disk).unwrap() == fs::read(&second.disk).unwrap());

    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/SH\n").unwrap();
    assert_ne!(
        again
            .store
            .import(&source, None, &small(), &Silent)
            .unwrap()
            .id,
        record.id
    );
    let owned = Options {
        owners: Owners::Fixed { uid: 7, gid: 8 },
        ..small()
    };
    let owned = again.store.import(&source, None, &owned, &Silent).unwrap();

    let Some(raw) = place.raw(&record.disk) else {
        return;
    };
    let all = Filesystem::open(&raw).all();
    let expected = [
        "",
        "etc",
        "etc/deep",
        "etc/deep/again",
        "etc/deep/er",
        "etc/link",
        "etc/passwd",
        "pipe",
        "sparse",
    ];
    assert_eq!(all.keys().collect::<Vec<_>>(), expected);
    let metadata = fs::metadata(root.join("etc/deep")).unwrap();
    let node = &all["etc/deep"];
    assert_eq!(
        (node.mode, node.uid, node.mtime.0),
        (0o41750, metadata.uid(), metadata.mtime())
    );
    assert_eq!(all["etc/passwd"].inode, all["etc/deep/again"].inode);
    assert_eq!(all["etc/passwd"].data, b"root:x:0:0::/:/bin/sh\n");
    assert_eq!(all["etc/passwd"].xattrs.len(), usize::from(with_xattr));
    assert_eq!(all["etc/link"].data, b"../nowhere");
    assert_eq!(&all["sparse"].data[9 << 20..][..4], b"here");
    assert!(all["sparse"].mapped < 100);
    let raw = place.raw(&owned.disk).unwrap();
    assert!(
        Filesystem::open(&raw)
            .all()
            .values()
            .all(|node| (node.uid, node.gid) == (7, 8))
    );

    let error = place
        .import(&place.source("dir", "root/etc/passwd"), None)
        .unwrap_err();
    assert!(
        common::chain(&error).contains("not a directory"),
        "{}",
        common::chain(&error)
    );
}

/// The same tree by this crate and by `mke2fs -d`, the second opinion.
#[test]
fn a_directory_comes_out_as_mke2fs_makes_it() {
    let place = Place::new();
    let root = place.path("root");
    fs::create_dir_all(&root).unwrap();
    let mut index = 0u64;
    for directory in ["a", "a/b", "a/b/c", "d"] {
        fs::create_dir(root.join(directory)).unwrap();
        for size in [0, 1, 4095, 4096, 4097, 100_000] {
            index += 1;
            let bytes: Vec<u8> = (0..size)
                .map(|at: u64| (at * index % 251) as u8 + 1)
                .collect();
            fs::write(root.join(directory).join(format!("f{size}")), bytes).unwrap();
        }
    }
    for count in 0..400 {
        fs::write(
            root.join("d")
                .join(format!("many-{count}-{}", "x".repeat(count % 60))),
            "y",
        )
        .unwrap();
    }
    for length in [1, 59, 60, 1000] {
        std::os::unix::fs::symlink("t".repeat(length), root.join(format!("link{length}"))).unwrap();
    }
    fs::hard_link(root.join("a/f4097"), root.join("d/linked")).unwrap();
    let other = place.path("other");
    let args = [
        "-q",
        "-b",
        "4096",
        "-I",
        "256",
        "-t",
        "ext4",
        "-d",
        root.to_str().unwrap(),
        other.to_str().unwrap(),
        "64M",
    ];
    let Some(output) = common::run("mke2fs", &args) else {
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let record = place.import(&place.source("dir", "root"), None).unwrap();
    let Some(raw) = place.raw(&record.disk) else {
        return;
    };
    let nodes = |disk: &Path| -> Vec<_> {
        let all = Filesystem::open(disk).all();
        let kept = all.into_iter().filter(|(path, _)| path != "lost+found");
        kept.map(|(path, node)| {
            let data = if node.mode >> 12 == 0o4 {
                Vec::new()
            } else {
                node.data
            };
            // mke2fs counts its own lost+found in the root.
            let links = if path.is_empty() { 0 } else { node.links };
            (
                path,
                node.mode,
                node.uid,
                node.gid,
                links,
                node.mtime.0,
                data,
            )
        })
        .collect()
    };
    let (ours, theirs) = (nodes(&raw), nodes(&other));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(ours == theirs, "{} and {} differ", ours.0, theirs.0);
    }
}

#[test]
fn a_registry_is_said_to_be_unsupported() {
    let place = Place::new();
    let text = place.refused(&"docker://sample/busybox".parse().unwrap(), &small());
    assert!(text.contains("registries are not supported yet"), "{text}");
}

#[derive(Default)]
struct Recorded {
    phases: Mutex<Vec<String>>,
    bytes: AtomicU64,
}

impl Progress for Recorded {
    fn phase(&self, phase: &Phase, _: Option<u64>) {
        let text = match phase {
            Phase::Layer { number, count, .. } => format!("{number}/{count}"),
            other => format!("{other:?}"),
        };
        self.phases.lock().unwrap().push(text);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[test]
fn progress_tells_every_phase_and_every_byte() {
    let place = Place::new();
    let source = place.layout(&layers(), Packing::Plain);
    let progress = Recorded::default();
    place
        .store
        .import(&source, None, &small(), &progress)
        .unwrap();
    assert_eq!(
        *progress.phases.lock().unwrap(),
        ["1/3", "2/3", "3/3", "Finish"]
    );
    let total: usize = layers().iter().map(Vec::len).sum();
    assert_eq!(progress.bytes.load(Ordering::Relaxed), total as u64);
}

#[test]
fn names_are_given_taken_and_found() {
    let place = Place::new();
    let first = place
        .import(&place.layout(&layers(), Packing::Gzip), Some("sample/one"))
        .unwrap();
    fs::remove_dir_all(place.path("layout")).unwrap();
    let second = place
        .import(
            &place.layout(&layers()[..1], Packing::Gzip),
            Some("sample/two:2"),
        )
        .unwrap();
    let store = &place.store;
    let id = |text: &str| {
        store
            .inspect(text)
            .map(|record| record.id)
            .map_err(|error| error.to_string())
    };
    let hex = first.id.hex();
    for text in [
        "sample/one",
        "sample/one:latest",
        &hex,
        &hex[..12],
        &first.id.to_string(),
        &format!("x@{}", first.id),
    ] {
        assert_eq!(id(text), Ok(first.id), "{text}");
    }
    assert!(
        id("sample/two")
            .unwrap_err()
            .contains("there is no image `sample/two`")
    );
    assert!(id("Sample/Two").unwrap_err().contains("lower case"));
    assert!(id("sha256:zz").unwrap_err().contains("there is no image"));
    store
        .tag("sample/one", &"other:1".parse().unwrap())
        .unwrap();
    assert_eq!(id("other:1"), Ok(first.id));
    // A name moves.
    store
        .tag(&second.id.to_string(), &"other:1".parse().unwrap())
        .unwrap();
    assert_eq!(id("other:1"), Ok(second.id));
    assert_eq!(store.untag(&"other:1".parse().unwrap()).unwrap(), second.id);
    assert!(id("other:1").is_err());
    assert!(
        store
            .tag("sample/one", &format!("x@{}", first.id).parse().unwrap())
            .is_err()
    );
    let mut ids = [first.id, second.id];
    ids.sort();
    assert_eq!(
        store
            .list()
            .unwrap()
            .iter()
            .map(|record| record.id)
            .collect::<Vec<_>>(),
        ids
    );
    // All of it is on disk, not in this value.
    assert_eq!(
        Store::open(&place.path("store"))
            .unwrap()
            .inspect("sample/one")
            .unwrap(),
        store.inspect("sample/one").unwrap()
    );
}

#[test]
fn an_image_is_removed_only_when_nobody_needs_it() {
    let place = Place::new();
    let source = place.layout(&layers(), Packing::Gzip);
    let store = &place.store;
    let record = place.import(&source, Some("sample/one")).unwrap();
    store
        .tag("sample/one", &"sample/other".parse().unwrap())
        .unwrap();
    let hex = record.id.hex();
    let refused = |text: &str, removal| store.remove(text, removal).unwrap_err().to_string();

    assert!(
        refused(&hex, Removal::Unforced)
            .contains("has the names sample/one:latest, sample/other:latest")
    );
    let removed = store.remove("sample/other", Removal::Unforced).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (1, None));
    let lease = store.hold(&record.id).unwrap();
    assert!(refused("sample/one", Removal::Forced).contains("in use by a running process"));
    drop(lease);
    store
        .child(&record.id, "container-1", &place.path("child.vmdk"))
        .unwrap();
    assert!(refused("sample/one", Removal::Forced).contains("in use by container-1"));
    store.release(&record.id, "container-1").unwrap();
    store.release(&record.id, "container-1").unwrap();
    for wrong in ["", "..", "a/b", ".hidden"] {
        assert!(
            store.child(&record.id, wrong, &place.path("c")).is_err(),
            "{wrong}"
        );
    }
    let removed = store.remove("sample/one", Removal::Unforced).unwrap();
    assert_eq!(removed.deleted, Some(record.id));
    assert_eq!(store.list().unwrap(), []);
    assert!(!record.disk.exists());
    assert!(store.hold(&record.id).is_err());
    assert!(refused("sample/one", Removal::Forced).contains("there is no image"));
    // And can be imported again.
    assert_eq!(place.import(&source, None).unwrap().id, record.id);
}

#[test]
fn what_a_dead_importer_left_is_removed_by_the_next_and_a_living_one_keeps_its() {
    let place = Place::new();
    let partial = place.path("store/partial");
    fs::create_dir(partial.join("dead")).unwrap();
    fs::write(partial.join("dead/lock"), "").unwrap();
    fs::write(partial.join("dead/image.vmdk"), "half").unwrap();
    fs::create_dir(partial.join("dead-before-its-lock")).unwrap();
    fs::create_dir(partial.join("alive")).unwrap();
    let lock = fs::File::create(partial.join("alive/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    place
        .import(&place.layout(&layers(), Packing::Gzip), None)
        .unwrap();
    let left: Vec<_> = fs::read_dir(&partial)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["alive"]);
    drop(lock);
    assert_eq!(place.store.prune_partial().unwrap(), 1);
}

#[test]
fn importers_of_one_image_at_once_make_one_image() {
    let place = Place::new();
    let source = place.layout(&layers(), Packing::Gzip);
    fs::create_dir(place.path("root")).unwrap();
    fs::write(place.path("root/file"), "x").unwrap();
    let directory = place.source("dir", "root");
    let stores: Vec<Store> = (0..6)
        .map(|_| Store::open(&place.path("store")).unwrap())
        .collect();
    let records: Vec<ImageRecord> = std::thread::scope(|scope| {
        let threads: Vec<_> = stores
            .iter()
            .enumerate()
            .map(|(index, store)| {
                let source = if index % 2 == 0 { &source } else { &directory };
                let name = format!("sample/n{index}").parse().unwrap();
                scope.spawn(move || {
                    store
                        .import(source, Some(&name), &small(), &Silent)
                        .unwrap()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(place.store.list().unwrap().len(), 2);
    assert!(
        records
            .iter()
            .all(|record| record.id == records[0].id || record.id == records[1].id)
    );
    let names: usize = place
        .store
        .list()
        .unwrap()
        .iter()
        .map(|record| record.names.len())
        .sum();
    assert_eq!(names, 6);
    assert_eq!(
        fs::read_dir(place.path("store/partial")).unwrap().count(),
        0
    );
}
