//! The container's files, read and written by tether; the host only speaks records.

use crate::harness::{Context, Test};
use crate::machine::{
    Finished, Machine, Wanted, block_on, exec, finish, main_process, read_all, setup,
};
use anyhow::{Context as _, Result, bail};
use image::files::{Base, ChangeKind, Diff, ToTar, from_tar};
use image::store::Store;
use std::fs::File;
use tether_link::Link;
use tether_wire::files::{
    Decoder, Failure, FileEntry, FileKind, Item, Shape, Timestamp, Xattr, encode_end, encode_entry,
};
use tether_wire::message::{
    Boundary, Conflicts, ErrorKind, ExitStatus, FileOperation, Mount, MountSource, Owners,
    ProcessId, SignalTarget, User,
};

const SIGKILL: u8 = 9;

pub const TESTS: &[Test] = &[
    Test::new(
        "files",
        "a tree with one of every kind is written, listed and read as it was",
        round_trip,
    ),
    Test::new(
        "files",
        "a container that changed nothing has no diff, and one that did exactly its changes",
        changes,
    ),
    Test::new(
        "files",
        "links and names that lead out of the root lead nowhere",
        escapes,
    ),
    Test::new(
        "files",
        "writing as the container's user, over the wrong kind and into a read-only root",
        refusals,
    ),
    Test::new(
        "files",
        "volumes show where docker cp looks and not where docker export does",
        volumes,
    ),
    Test::new(
        "files",
        "a copy waits for its input, and can be killed, while the container goes on",
        waiting,
    ),
];

type Files = Vec<(FileEntry, Vec<u8>)>;

const OPERATION: ProcessId = ProcessId(77);

/// Does an operation to its end and forgets it.
async fn files(link: &Link, operation: FileOperation, input: &[u8]) -> Result<Finished> {
    finish(link.files(OPERATION, operation).await?, Some(input)).await
}

fn outcome(finished: Finished) -> Result<Vec<u8>, (Failure, String)> {
    let sentence = String::from_utf8_lossy(&finished.stderr).into_owned();
    match finished.exit.status {
        ExitStatus::Code(code) => match Failure::of_code(code) {
            None => {
                assert_eq!(sentence, "");
                Ok(finished.stdout)
            }
            Some(failure) => Err((failure, sentence)),
        },
        ExitStatus::Signal(signal) => Err((Failure::Other, format!("signal {signal}"))),
    }
}

async fn done(link: &Link, operation: FileOperation, input: &[u8]) -> Result<Vec<u8>> {
    let shown = format!("{operation:?}");
    match outcome(files(link, operation, input).await?) {
        Ok(bytes) => Ok(bytes),
        Err((failure, sentence)) => bail!("{shown}: {failure:?}: {sentence}"),
    }
}

async fn failed(
    link: &Link,
    operation: FileOperation,
    input: &[u8],
    expected: Failure,
) -> Result<String> {
    let shown = format!("{operation:?}");
    match outcome(files(link, operation, input).await?) {
        Ok(_) => bail!("{shown} did not fail"),
        Err((failure, sentence)) => {
            assert_eq!(failure, expected, "{shown}: {sentence}");
            Ok(sentence)
        }
    }
}

fn stat(path: &str) -> FileOperation {
    FileOperation::Stat { path: path.into() }
}

fn read(path: &str, boundary: Boundary) -> FileOperation {
    let path = path.into();
    FileOperation::Read { path, boundary }
}

fn list() -> FileOperation {
    FileOperation::List {
        path: b"/".to_vec(),
        boundary: Boundary::FileSystem,
    }
}

fn write(path: &str) -> FileOperation {
    FileOperation::Write {
        path: path.into(),
        conflicts: Conflicts::Replace,
        owners: Owners::Recorded,
    }
}

fn encode(files: &[(FileEntry, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (entry, contents) in files {
        encode_entry(entry, &mut bytes)?;
        bytes.extend_from_slice(contents);
    }
    encode_end(&mut bytes);
    Ok(bytes)
}

fn decode(shape: Shape, mut bytes: &[u8]) -> Result<Files> {
    let mut decoder = Decoder::new(shape);
    let mut found: Files = Vec::new();
    while let Some(item) = decoder.next(&mut bytes)? {
        match item {
            Item::Entry(entry) => found.push((entry, Vec::new())),
            Item::Data(data) => match found.last_mut() {
                Some(last) => last.1.extend_from_slice(data),
                None => bail!("contents before an entry"),
            },
            Item::End => {}
        }
    }
    decoder.finish()?;
    Ok(found)
}

fn entry(path: &str, kind: FileKind) -> FileEntry {
    FileEntry {
        path: path.into(),
        kind,
        mode: 0o640,
        uid: 1234,
        gid: 77,
        modified: Timestamp {
            seconds: 1_234_567_890,
            nanos: 987_654_321,
        },
        xattrs: vec![],
    }
}

fn file(path: &str, contents: &[u8]) -> (FileEntry, Vec<u8>) {
    let size = contents.len() as u64;
    (entry(path, FileKind::Regular { size }), contents.to_vec())
}

fn link_to(path: &str, target: &str) -> (FileEntry, Vec<u8>) {
    let target = target.into();
    let mut entry = entry(path, FileKind::Symlink { target });
    entry.mode = 0o777;
    (entry, vec![])
}

fn everything() -> Files {
    let device = |path: &str, kind| (entry(path, kind), vec![]);
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let mut all = vec![
        device("d", FileKind::Directory),
        file("d/big", &big),
        file("d/empty", b""),
        device(
            "d/hard",
            FileKind::HardLink {
                target: b"d/big".to_vec(),
            },
        ),
        device("d/sub", FileKind::Directory),
        device(
            "disk",
            FileKind::BlockDevice {
                major: 259,
                minor: 70_000,
            },
        ),
        device("fifo", FileKind::Fifo),
        link_to("link", "/d/../nowhere"),
        device("socket", FileKind::Socket),
        device("tty", FileKind::CharacterDevice { major: 5, minor: 0 }),
    ];
    // VFS_CAP_REVISION_2, cap_net_raw+ep (linux/capability.h).
    let mut value = vec![0; 20];
    (value[0], value[3], value[5]) = (1, 2, 0x20);
    let xattrs = vec![
        Xattr {
            name: b"security.capability".to_vec(),
            value,
        },
        Xattr {
            name: b"user.note".to_vec(),
            value: b"kept".to_vec(),
        },
    ];
    for at in [1, 3] {
        all[at].0.mode = 0o4711;
        all[at].0.xattrs.clone_from(&xattrs);
    }
    all[4].0.mode = 0o1700;
    all
}

/// As it was, without printing megabytes when not.
fn assert_same(found: &Files, expected: &[(FileEntry, Vec<u8>)]) {
    let paths = |files: &[(FileEntry, Vec<u8>)]| -> Vec<String> {
        let shown = |(entry, _): &(FileEntry, Vec<u8>)| String::from_utf8_lossy(&entry.path).into();
        files.iter().map(shown).collect()
    };
    assert_eq!(paths(found), paths(expected));
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.0, expected.0);
        assert!(found.1 == expected.1, "contents of {:?}", found.0.path);
    }
}

fn round_trip(t: &Context) -> Result<()> {
    block_on(t, async {
        // As in a containerVM that only helps: nothing was started.
        let machine = Machine::set_up(t, Wanted::default()).await?;
        let link = &machine.link;
        let all = everything();
        let records = encode(&all)?;
        done(link, write("/tmp"), &records).await?;
        let found = done(link, read("/tmp", Boundary::Volumes), b"").await?;
        let found = decode(Shape::Tree, &found)?;
        assert_same(&found[1..].to_vec(), &all);
        let found = done(link, stat("/tmp/d/sub"), b"").await?;
        let mut expected = all[4].0.clone();
        expected.path.clear();
        assert_eq!(decode(Shape::Stat, &found)?, [(expected, vec![])]);

        // Once more through a tar, over what is there.
        let mut tar = ToTar::new(Vec::new(), Base::Named(b"tmp".to_vec()));
        tar.push(&done(link, read("/tmp", Boundary::FileSystem), b"").await?)?;
        let tar = tar.finish()?;
        let mut records = Vec::new();
        from_tar(&tar[..], &mut records)?;
        done(link, write("/"), &records).await?;
        let found = done(link, read("/tmp", Boundary::Volumes), b"").await?;
        let found = decode(Shape::Tree, &found)?;
        assert_same(&found[1..].to_vec(), &all);

        // And what runs sees it.
        let main = link.start(ProcessId::MAIN, main_process(&["sleep", "100000"]));
        let main = main.await?;
        let argv = [
            "stat",
            "-c",
            "%a %u %g %Y %h %s",
            "/tmp/d/big",
            "/tmp/d/hard",
        ];
        let seen = machine.run(1, exec(&argv), b"").await?;
        let line = "4711 1234 77 1234567890 2 3000000\n";
        assert_eq!(seen.text(), line.repeat(2));
        drop(main);
        machine.end().await
    })
}

/// What `docker diff` would say.
async fn diff(link: &Link, t: &Context) -> Result<Vec<String>> {
    let store = Store::open(&t.environment().images())?;
    let list_of_image: File = store.files(&store.inspect("sample/busybox")?.id)?;
    let mut diff = Diff::new(list_of_image);
    diff.push(&done(link, list(), b"").await?)?;
    let lines = diff.finish()?.into_iter().map(|change| {
        let letter = match change.kind {
            ChangeKind::Modified => 'C',
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
        };
        format!("{letter} {}", String::from_utf8_lossy(&change.path))
    });
    Ok(lines.collect())
}

fn changes(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::boot(t, Wanted::default()).await?;
        let link = &machine.link;
        let mut wanted = setup("root");
        wanted.mounts = vec![Mount {
            target: "/made/for/this".to_owned(),
            source: MountSource::Tmpfs {
                size: 65_536,
                mode: 0o755,
                options: String::new(),
            },
            read_only: false,
        }];
        link.setup(wanted).await?;
        assert_eq!(diff(link, t).await?, [""; 0]);
        let main = main_process(&["sleep", "100000"]);
        let main = link.start(ProcessId::MAIN, main).await?;
        assert_eq!(diff(link, t).await?, [""; 0]);
        let script = "touch /new /made/for/this/x && rm /etc/passwd && echo x >> /etc/group";
        let argv = ["sh", "-c", script];
        let ended = machine.run(1, exec(&argv), b"").await?;
        assert_eq!(ended.exit.status, ExitStatus::Code(0), "{ended:?}");
        let expected = ["C /etc", "C /etc/group", "D /etc/passwd", "A /new"];
        assert_eq!(diff(link, t).await?, expected);

        // An image of it has the same files, and a container of that would have no diff.
        let records = done(link, read("/", Boundary::FileSystem), b"").await?;
        let store = Store::open(&t.file("store"))?;
        let config = serde_json::json!({"architecture": "amd64", "os": "linux"});
        let config = config.as_object().cloned().context("no object")?;
        let image = store.import_files(
            &records[..],
            config,
            "container test",
            None,
            &image::import::Options::default(),
            &image::progress::Silent,
        )?;
        let mut same = Diff::new(store.files(&image.id)?);
        same.push(&done(link, list(), b"").await?)?;
        assert_eq!(same.finish()?, []);
        drop(main);
        machine.end().await
    })
}

fn escapes(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::set_up(t, Wanted::default()).await?;
        let link = &machine.link;
        // Not in /tmp: there the kernel lets nobody follow others' links (protected_symlinks).
        let directory = encode(&[(entry("w", FileKind::Directory), vec![])])?;
        done(link, write("/"), &directory).await?;
        // /run of tether's own has the container's root; nothing of it may be reached.
        let records = encode(&[
            link_to("up", "../../../../../../run/root"),
            link_to("proc", "/proc/1/root"),
            link_to("here", "/etc"),
        ])?;
        done(link, write("/w"), &records).await?;
        for path in [
            "/w/up/",
            "/w/up/etc",
            "/w/proc/",
            "/../run/root",
            "/../../run/disk",
        ] {
            for operation in [stat(path), read(path, Boundary::Volumes)] {
                let sentence = failed(link, operation, b"", Failure::NotFound).await?;
                assert!(sentence.contains(path), "{sentence}");
            }
            let records = encode(&[file("x", b"x")])?;
            failed(link, write(path), &records, Failure::NotFound).await?;
        }
        let found = done(link, stat("/w/here"), b"").await?;
        let found = decode(Shape::Stat, &found)?;
        assert_eq!(found.len(), 2);
        assert_eq!(
            (&found[1].0.path[..], &found[1].0.kind),
            (&b"etc"[..], &FileKind::Directory)
        );
        // A link that came first and a file through it: inside it is followed, out of it is not.
        let through = encode(&[file("here/through", b"1")])?;
        done(link, write("/w"), &through).await?;
        done(link, stat("/etc/through"), b"").await?;
        let through = encode(&[link_to("l", "/../run/disk"), file("l/x", b"1")])?;
        failed(link, write("/w"), &through, Failure::NotADirectory).await?;
        failed(link, stat("tmp"), b"", Failure::BadPath).await?;
        machine.end().await
    })
}

fn refusals(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::set_up(t, Wanted::default()).await?;
        let link = &machine.link;
        let user = |name: &str| FileOperation::Write {
            path: b"/tmp".to_vec(),
            conflicts: Conflicts::KeepKind,
            owners: Owners::All(User {
                user: name.to_owned(),
                groups: vec![],
            }),
        };
        let records = encode(&[file("f", b"1")])?;
        done(link, user("55:66"), &records).await?;
        let found = decode(Shape::Stat, &done(link, stat("/tmp/f"), b"").await?)?;
        assert_eq!((found[0].0.uid, found[0].0.gid), (55, 66));
        let refused = link.files(OPERATION, user("nobody-of-that-name")).await;
        match refused {
            Err(tether_link::LinkError::Guest(error)) => assert_eq!(error.kind, ErrorKind::Invalid),
            other => bail!("{other:?}"),
        }
        let directory = encode(&[(entry("f", FileKind::Directory), vec![])])?;
        let sentence = failed(link, user("0"), &directory, Failure::Conflict).await?;
        assert_eq!(
            sentence,
            "cannot overwrite non-directory \"/tmp/f\" with a directory"
        );
        failed(link, write("/tmp/f"), &records, Failure::NotADirectory).await?;
        failed(link, write("/tmp"), &records[..9], Failure::BadStream).await?;
        machine.end().await?;

        let machine = Machine::boot(t, Wanted::default()).await?;
        let mut read_only = setup("root");
        read_only.root.read_only = true;
        machine.link.setup(read_only).await?;
        failed(&machine.link, write("/tmp"), &records, Failure::ReadOnly).await?;
        machine.end().await
    })
}

fn volumes(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::boot(t, Wanted::default()).await?;
        let link = &machine.link;
        let mut wanted = setup("root");
        wanted.mounts = vec![Mount {
            target: "/tmp/memory".to_owned(),
            source: MountSource::Tmpfs {
                size: 1 << 20,
                mode: 0o755,
                options: String::new(),
            },
            read_only: false,
        }];
        link.setup(wanted).await?;
        let records = encode(&[file("inside", b"1")])?;
        done(link, write("/tmp/memory"), &records).await?;
        let paths = async |path: &str, boundary| -> Result<Vec<String>> {
            let found = decode(Shape::Tree, &done(link, read(path, boundary), b"").await?)?;
            let shown = |(entry, _): &(FileEntry, Vec<u8>)| {
                String::from_utf8_lossy(&entry.path).into_owned()
            };
            Ok(found.iter().map(shown).collect())
        };
        assert_eq!(
            paths("/tmp/memory", Boundary::Volumes).await?,
            ["", "inside"]
        );
        assert_eq!(paths("/tmp", Boundary::Volumes).await?, ["", "memory"]);
        assert_eq!(paths("/tmp/memory", Boundary::FileSystem).await?, [""]);
        let all = paths("/", Boundary::FileSystem).await?;
        let below = |name: &str| all.iter().filter(|path| path.starts_with(name)).count();
        assert_eq!((below("dev/"), below("proc/"), below("sys/")), (0, 0, 0));
        assert!(below("bin/") > 0);
        // The files that tether lays over the image's are its own where docker cp looks.
        let hosts = |boundary| read("/etc/hosts", boundary);
        let shown = decode(
            Shape::Tree,
            &done(link, hosts(Boundary::Volumes), b"").await?,
        )?;
        let own = decode(
            Shape::Tree,
            &done(link, hosts(Boundary::FileSystem), b"").await?,
        )?;
        assert!(String::from_utf8_lossy(&shown[0].1).contains("localhost"));
        assert_ne!(shown[0].1, own[0].1);
        machine.end().await
    })
}

fn waiting(t: &Context) -> Result<()> {
    block_on(t, async {
        let machine = Machine::set_up(t, Wanted::default()).await?;
        let link = &machine.link;
        let main = main_process(&["sleep", "100000"]);
        let main = link.start(ProcessId::MAIN, main).await?;
        let mut copy = link.files(OPERATION, write("/tmp")).await?;
        let records = encode(&[file("f", &[b'x'; 100_000])])?;
        copy.stdin.write_all(&records[..50_000]).await?;
        // Nothing else waits for it.
        let seen = machine.run(1, exec(&["echo", "meanwhile"]), b"").await?;
        assert_eq!(seen.text(), "meanwhile\n");
        // It is none of the container's processes.
        let listed = link.processes().await?;
        let commands: Vec<&str> = listed.iter().map(|one| one.command.as_str()).collect();
        assert_eq!(commands, ["sleep 100000"]);
        // It holds nobody's descriptors: an exec that reads to the end of its input gets there.
        let cat = crate::machine::with_input(exec(&["cat"]));
        assert_eq!(
            machine.run(2, cat, b"to the end").await?.text(),
            "to the end"
        );
        copy.stdin.write_all(&records[50_000..]).await?;
        copy.stdin.finish();
        assert_eq!(copy.control.wait().await?.status, ExitStatus::Code(0));
        copy.control.forget().await?;
        // The end of the main process does not end a copy, and a signal does.
        let copy = link.files(OPERATION, write("/tmp")).await?;
        main.control.signal(SIGKILL, SignalTarget::Process).await?;
        main.control.wait().await?;
        done_beside(link).await?;
        copy.control.signal(SIGKILL, SignalTarget::Process).await?;
        assert_eq!(
            copy.control.wait().await?.status,
            ExitStatus::Signal(SIGKILL)
        );
        copy.control.forget().await?;
        // And a machine with one under way still shuts down.
        let _copy = link.files(OPERATION, write("/tmp")).await?;
        machine.end().await
    })
}

/// An operation while the first one is under way.
async fn done_beside(link: &Link) -> Result<()> {
    let mut second = link.files(ProcessId(78), stat("/tmp/f")).await?;
    let found = read_all(&mut second.stdout, 0).await?;
    let found = decode(Shape::Stat, &found)?;
    assert_eq!(found[0].0.kind, FileKind::Regular { size: 100_000 });
    Ok(())
}
