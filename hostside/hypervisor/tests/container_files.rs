//! Files of simulated containers, read, listed and written over the real wire.

mod controller;

use std::sync::Arc;
use std::time::Duration;

use controller::{Controller, container, said, sh};
use hypervisor::fake::{Host, ImageFile};
use tether_wire::files::{
    Decoder, Failure, FileEntry, FileKind, Item, Shape, Timestamp, encode_end, encode_entry,
};
use tether_wire::message::{
    Boundary, Conflicts, ExitStatus, FileOperation, Output, Owners, ProcessId, Request, User,
};

/// Runs a file operation: its output, its sentence, its kind of failure.
async fn operate(
    controller: &mut Controller,
    operation: FileOperation,
    input: &[u8],
) -> (Vec<u8>, String, Option<Failure>) {
    let process = ProcessId(77);
    let writes = matches!(operation, FileOperation::Write { .. });
    let request = Request::Files { process, operation };
    controller.ask(request).await.unwrap();
    let mut at = 0;
    while writes && at < input.len() {
        at += controller.session.write_input(process, &input[at..]);
        let pause = Duration::from_millis(10);
        let _ = tokio::time::timeout(pause, controller.until(|_| false)).await;
    }
    controller.session.end_input(process);
    let ExitStatus::Code(code) = controller.exit(77).await else {
        panic!("it was killed");
    };
    let output = controller.output.get(&(process, Output::Stdout)).cloned();
    let (_, sentence, _) = said(controller, 77, ExitStatus::Code(code)).await;
    (output.unwrap_or_default(), sentence, Failure::of_code(code))
}

/// The entries of a stream, files with their contents.
fn entries(bytes: &[u8], shape: Shape) -> Vec<(FileEntry, Vec<u8>)> {
    let mut decoder = Decoder::new(shape);
    let mut rest = bytes;
    let mut all: Vec<(FileEntry, Vec<u8>)> = Vec::new();
    while let Some(item) = decoder.next(&mut rest).unwrap() {
        match item {
            Item::Entry(entry) => all.push((entry, Vec::new())),
            Item::Data(data) => all.last_mut().unwrap().1.extend_from_slice(data),
            Item::End => {}
        }
    }
    decoder.finish().unwrap();
    all
}

fn entry(path: &str, kind: FileKind) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind,
        mode: 0o751,
        uid: 12,
        gid: 34,
        modified: Timestamp {
            seconds: 1_000_000,
            nanos: 17,
        },
        xattrs: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn files_go_in_and_come_out_as_they_were() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let big = vec![b'x'; 100_000];
    let tree = [
        (entry("t", FileKind::Directory), &b""[..]),
        (entry("t/a", FileKind::Regular { size: 3 }), b"abc"),
        (
            entry("t/big", FileKind::Regular { size: 100_000 }),
            big.as_slice(),
        ),
        (entry("t/d", FileKind::Directory), b""),
        (
            entry("t/d/null", FileKind::CharacterDevice { major: 1, minor: 3 }),
            b"",
        ),
        (entry("t/fifo", FileKind::Fifo), b""),
        (
            entry(
                "t/link",
                FileKind::Symlink {
                    target: b"../../../etc".to_vec(),
                },
            ),
            b"",
        ),
        (
            entry(
                "t/same",
                FileKind::HardLink {
                    target: b"t/a".to_vec(),
                },
            ),
            b"",
        ),
    ];
    let mut stream = Vec::new();
    for (entry, data) in &tree {
        encode_entry(entry, &mut stream).unwrap();
        stream.extend_from_slice(data);
    }
    encode_end(&mut stream);
    let write = FileOperation::Write {
        path: b"/tmp".to_vec(),
        conflicts: Conflicts::Replace,
        owners: Owners::Recorded,
    };
    // No main process is needed.
    let (_, sentence, failure) = operate(&mut controller, write, &stream).await;
    assert_eq!((sentence.as_str(), failure), ("", None));
    let read = FileOperation::Read {
        path: b"/tmp".to_vec(),
        boundary: Boundary::Volumes,
    };
    let (out, ..) = operate(&mut controller, read, b"").await;
    let found: Vec<(FileEntry, Vec<u8>)> = entries(&out, Shape::Tree).split_off(1);
    assert_eq!(found.len(), tree.len());
    for ((entry, data), (expected, content)) in found.iter().zip(&tree) {
        assert_eq!((entry, data.as_slice()), (expected, *content));
    }
    let script = "cat /tmp/t/same; stat -c '%a %u %g %h' /tmp/t/a; ls /tmp/t/link | head -n 1";
    let (out, ..) = sh(&mut controller, script).await;
    assert_eq!(out, "abc751 12 34 2\ngroup\n");

    let stat = |path: &str| FileOperation::Stat { path: path.into() };
    let (out, ..) = operate(&mut controller, stat("/tmp/t/link"), b"").await;
    let found = entries(&out, Shape::Stat);
    assert_eq!(found[1].0.path, b"etc");
    assert_eq!(found[1].0.kind, FileKind::Directory);
    let (_, sentence, failure) = operate(&mut controller, stat("/none"), b"").await;
    assert_eq!(sentence, "looking at /none: No such file or directory");
    assert_eq!(failure, Some(Failure::NotFound));

    let keep = FileOperation::Write {
        path: b"/".to_vec(),
        conflicts: Conflicts::KeepKind,
        owners: Owners::All(User {
            user: "nobody".into(),
            groups: Vec::new(),
        }),
    };
    let mut stream = Vec::new();
    encode_entry(&entry("etc", FileKind::Regular { size: 0 }), &mut stream).unwrap();
    encode_end(&mut stream);
    let (_, _, failure) = operate(&mut controller, keep.clone(), &stream).await;
    assert_eq!(failure, Some(Failure::Conflict));
    let (_, _, failure) = operate(&mut controller, keep, &stream[..9]).await;
    assert_eq!(failure, Some(Failure::BadStream));
}

#[tokio::test(start_paused = true)]
async fn an_untouched_container_lists_what_its_image_has() {
    let mut image = vec![entry("", FileKind::Directory)];
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        image.push(entry(name, FileKind::Directory));
        if name == "bin" {
            image.push(entry("bin/sh", FileKind::Regular { size: 9_000_000 }));
            image.push(entry("bin/touch", FileKind::Regular { size: 7 }));
        }
        if name == "etc" {
            for name in [
                "group",
                "hostname",
                "hosts",
                "machine-id",
                "passwd",
                "resolv.conf",
            ] {
                image.push(entry(&format!("etc/{name}"), FileKind::Regular { size: 5 }));
            }
        }
    }
    let files: Vec<ImageFile> = image
        .iter()
        .map(|entry| ImageFile {
            entry: entry.clone(),
            content: None,
        })
        .collect();
    let host = Host::with_images(Arc::new(move |_| Some(files.clone())));
    let driver = host.open();
    let mut controller = container(&driver).await;
    controller.start(0, &["sh", "-c", "exit 6"]).await.unwrap();
    let status = controller.exit(0).await;
    assert_eq!(
        said(&mut controller, 0, status).await.2,
        ExitStatus::Code(6)
    );
    let list = || FileOperation::List {
        path: b"/".to_vec(),
        boundary: Boundary::FileSystem,
    };
    let (out, ..) = operate(&mut controller, list(), b"").await;
    let listed: Vec<FileEntry> = entries(&out, Shape::Listing)
        .into_iter()
        .map(|(entry, _)| entry)
        .collect();
    assert_eq!(listed, image);
    sh(&mut controller, "touch /new; echo x >> /etc/group").await;
    let (out, ..) = operate(&mut controller, list(), b"").await;
    let listed: Vec<FileEntry> = entries(&out, Shape::Listing)
        .into_iter()
        .map(|(entry, _)| entry)
        .collect();
    assert_eq!(listed.len(), image.len() + 1);
    assert!(listed.iter().any(|entry| entry.path == b"new"));
    let group = listed
        .iter()
        .find(|entry| entry.path == b"etc/group")
        .unwrap();
    assert_eq!(group.kind, FileKind::Regular { size: 7 });
}
