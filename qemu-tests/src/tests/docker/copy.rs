//! Files in and out, of running and of stopped containers.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-copy",
        "a file and a tree go in and come out of a running container as they were",
        running,
    )
    .vsphere_too()
    .guests_too(),
    Case::new(
        "docker-copy",
        "the same of a stopped one, which stays stopped",
        stopped,
    )
    .vsphere_too()
    .guests_too()
    .guests(2),
    Case::new(
        "docker-copy",
        "where a copy lands is what docker cp says",
        places,
    ),
    Case::new(
        "docker-copy",
        "an archive is streamed by - both ways",
        streams,
    ),
    Case::new(
        "docker-copy",
        "what is not there is said in Docker's words",
        missing,
    ),
];

/// A tree on this side: modes, a link, an empty directory, bytes.
fn tree(t: &Context) -> Result<std::path::PathBuf> {
    let tree = t.file("tree");
    fs::create_dir_all(tree.join("sub/empty"))?;
    fs::write(tree.join("text"), "some text\n")?;
    fs::write(
        tree.join("sub/bytes"),
        crate::random::Random::new(3).bytes(300_000),
    )?;
    fs::write(tree.join("sub/none"), "")?;
    fs::write(tree.join("run.sh"), "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(tree.join("run.sh"), fs::Permissions::from_mode(0o750))?;
    symlink("../text", tree.join("sub/link"))?;
    Ok(tree)
}

fn both_ways(t: &Context, docker: &Docker<'_>, name: &str) -> Result<()> {
    let tree = tree(t)?;
    let path = tree.display().to_string();
    docker.ok(["cp", &path, &format!("{name}:/tmp/in")])?;
    docker.ok(["cp", &format!("{path}/text"), &format!("{name}:/etc/put")])?;
    let back = t.file("back");
    docker.ok([
        "cp",
        &format!("{name}:/tmp/in"),
        &back.display().to_string(),
    ])?;
    for file in ["text", "sub/bytes", "sub/none", "run.sh"] {
        assert!(
            fs::read(back.join(file))? == fs::read(tree.join(file))?,
            "{file} differs"
        );
    }
    assert!(back.join("sub/empty").is_dir());
    assert_eq!(
        fs::read_link(back.join("sub/link"))?,
        fs::read_link(tree.join("sub/link"))?
    );
    assert_eq!(
        fs::metadata(back.join("run.sh"))?.permissions().mode() & 0o7777,
        0o750
    );
    let put = t.file("put");
    docker.ok([
        "cp",
        &format!("{name}:/etc/put"),
        &put.display().to_string(),
    ])?;
    assert_eq!(fs::read_to_string(put)?, "some text\n");
    fs::remove_dir_all(back)?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

fn running(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    both_ways(t, &docker, "main")?;
    assert_eq!(docker.ok(["exec", "main", "sh", "/tmp/in/run.sh"])?, "ran");
    assert_eq!(
        docker.ok(["exec", "main", "cat", "/tmp/in/sub/link"])?,
        "some text"
    );
    docker.end()
}

fn stopped(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.done([
        "run",
        "--name",
        "over",
        IMAGE,
        "sh",
        "-c",
        "echo written >/file; exit 1",
    ])?;
    both_ways(t, &docker, "over")?;
    let file = t.file("file");
    docker.ok(["cp", "over:/file", &file.display().to_string()])?;
    assert_eq!(fs::read_to_string(file)?, "written\n");
    let state = "{{.State.Status}} {{.State.ExitCode}}";
    assert_eq!(docker.inspect("over", state)?, "exited 1");
    // One that never ran, and then does.
    docker.ok(["create", "--name", "made", IMAGE, "sh", "/tmp/in/run.sh"])?;
    both_ways(t, &docker, "made")?;
    assert_eq!(docker.inspect("made", "{{.State.Status}}")?, "created");
    assert_eq!(docker.ok(["start", "-a", "made"])?, "ran");
    docker.end()
}

fn places(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let tree = tree(t)?.display().to_string();
    let text = format!("{tree}/text");
    docker.ok(["exec", "main", "sh", "-c", "mkdir -p /d /e; ln -s /d /to-d"])?;
    for (from, to, at) in [
        // Into a directory, by its own name.
        (text.as_str(), "/d", "/d/text"),
        (&text, "/d/", "/d/text"),
        // Under another one.
        (&text, "/d/other", "/d/other"),
        // Through a link.
        (&text, "/to-d/linked", "/d/linked"),
        // A directory into one that is there, and its contents.
        (&tree, "/e", "/e/tree/text"),
        (&format!("{tree}/."), "/e", "/e/text"),
        // One that is not there takes the name.
        (&tree, "/new", "/new/text"),
    ] {
        docker.ok(["cp", from, &format!("main:{to}")])?;
        assert_eq!(
            docker.ok(["exec", "main", "cat", at])?,
            "some text",
            "{from} to {to}"
        );
    }
    let out = t.file("out");
    fs::create_dir(&out)?;
    docker.ok(["cp", "main:/e/text", &out.display().to_string()])?;
    docker.ok(["cp", "main:/e/tree", &out.display().to_string()])?;
    assert_eq!(fs::read_to_string(out.join("text"))?, "some text\n");
    assert_eq!(fs::read_to_string(out.join("tree/text"))?, "some text\n");
    docker.end()
}

fn streams(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    docker.ok(["exec", "main", "sh", "-c", "mkdir /d; echo inside >/d/file"])?;
    let archive = docker.done(["cp", "main:/d", "-"])?;
    archive.status(0);
    assert!(archive.out.len() >= 1024 && archive.out.len() % 512 == 0);
    docker.ok(["exec", "main", "mkdir", "/back"])?;
    docker
        .cmd(["cp", "-", "main:/back"])
        .stdin(archive.out.clone())
        .done()?
        .status(0);
    assert_eq!(
        docker.ok(["exec", "main", "cat", "/back/d/file"])?,
        "inside"
    );
    docker
        .cmd(["cp", "-", "main:/back"])
        .stdin("this is no archive at all")
        .done()?
        .status(1);
    docker.end()
}

fn missing(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.lasting("main", &[])?;
    let here = t.directory().display().to_string();
    docker
        .done(["cp", "main:/no/such", &here])?
        .status(1)
        .stderr_has("/no/such");
    docker
        .done(["cp", "nobody:/etc", &here])?
        .status(1)
        .stderr_has("No such container: nobody");
    let file = t.file("file");
    fs::write(&file, "x")?;
    docker
        .done(["cp", &file.display().to_string(), "main:/no/such/place"])?
        .status(1);
    docker
        .done(["cp", &file.display().to_string(), "main:/etc/passwd/below"])?
        .status(1);
    let head = docker.request("HEAD", "/containers/main/archive?path=/etc/passwd", "")?;
    assert_eq!(head.status, 200);
    assert!(
        head.headers.contains("x-docker-container-path-stat:"),
        "{head:?}"
    );
    docker.end()
}
