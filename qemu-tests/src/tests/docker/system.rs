//! The endpoint about itself.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::harness::Context;
use anyhow::Result;
use std::os::unix::fs::PermissionsExt;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-system",
        "info, version and ping name what serves, its driver and its limits",
        info,
    )
    .guests_too(),
    Case::new(
        "docker-system",
        "versions of the API are negotiated",
        versions,
    ),
    Case::new("docker-system", "df counts and prune removes", df),
    Case::new(
        "docker-system",
        "what is not understood is said in Docker's way",
        wrong,
    ),
    Case::new(
        "docker-system",
        "there is one owner, its socket is its group's, and it ends cleanly",
        owner,
    ),
];

fn info(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--memory", "3g", "--cpus", "4"])?;
    docker.lasting("runs", &[])?;
    docker.ok(["create", IMAGE, "true"])?;
    let counts = "{{.Containers}} {{.ContainersRunning}} {{.ContainersPaused}} {{.ContainersStopped}} {{.Images}}";
    assert_eq!(docker.ok(["info", "--format", counts])?, "2 1 0 1 1");
    let limits = docker.ok(["info", "--format", "{{.MemTotal}} {{.NCPU}} {{.OSType}}"])?;
    assert_eq!(limits, format!("{} 4 linux", 3u64 << 30));
    let all = docker.ok(["info"])?;
    assert!(all.contains(&t.driver().to_string()), "{all}");
    let version = docker.ok([
        "version",
        "--format",
        "{{.Server.APIVersion}} {{.Server.MinAPIVersion}} {{.Server.Os}}",
    ])?;
    assert_eq!(version, "1.47 1.24 linux");
    let ping = docker.request("GET", "/_ping", "")?;
    assert_eq!((ping.status, ping.body.as_str()), (200, "OK"));
    for header in [
        "api-version: 1.47",
        "ostype: linux",
        "docker-experimental: false",
    ] {
        assert!(ping.headers.contains(header), "no {header:?} in {ping:?}");
    }
    assert_eq!(docker.request("HEAD", "/_ping", "")?.body, "");
    docker.end()
}

fn versions(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    for version in ["1.24", "1.40", "1.47"] {
        let done = docker
            .cmd(["run", "--rm", IMAGE, "echo", "hello"])
            .variable("DOCKER_API_VERSION", version)
            .done()?;
        done.status(0).stdout("hello\n");
    }
    for (path, status, words) in [
        ("/v1.23/info", 400, "client version 1.23 is too old"),
        ("/v1.99/info", 400, "client version 1.99 is too new"),
        ("/v1.40/info", 200, ""),
        ("/info", 200, ""),
        ("/no/such/page", 404, "page not found"),
        ("/v1.40/no/such/page", 404, "page not found"),
    ] {
        let answer = docker.request("GET", path, "")?;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(words), "{path}: {answer:?}");
    }
    docker.end()
}

fn df(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["run", "--name", "one", IMAGE, "true"])?;
    docker.lasting("two", &[])?;
    let table = docker.ok(["system", "df"])?;
    for kind in ["Images", "Containers"] {
        assert!(table.contains(kind), "{table}");
    }
    let containers = docker.ok([
        "system",
        "df",
        "--format",
        "{{.Type}} {{.TotalCount}} {{.Active}}",
    ])?;
    assert!(containers.contains("Containers 2 1"), "{containers}");
    assert!(containers.contains("Images 1 1"), "{containers}");
    docker.ok(["system", "prune", "-f"])?;
    assert_eq!(docker.ok(["ps", "-a", "--format", "{{.Names}}"])?, "two");
    docker.end()
}

fn wrong(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.ok(["create", "--name", "one", IMAGE, "true"])?;
    for (method, path, body, status) in [
        ("POST", "/containers/create", "{", 400),
        ("POST", "/containers/create", "{}", 400),
        ("POST", "/containers/create", "", 400),
        ("GET", "/containers/json?filters=nonsense", "", 400),
        ("GET", "/containers/json?limit=x", "", 400),
        ("POST", "/containers/one/kill?signal=0x", "", 400),
        ("POST", "/containers/one/resize?h=x&w=1", "", 400),
        ("DELETE", "/containers/json", "", 404),
        ("POST", "/containers/one/rename", "", 400),
        ("POST", "/containers/one/wait?condition=never", "", 400),
        ("GET", "/containers/one/archive", "", 400),
    ] {
        let answer = docker.request(method, path, body)?;
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        assert!(
            answer.body.contains("\"message\":\""),
            "{method} {path}: {answer:?}"
        );
    }
    docker.ok(["ps"])?;
    docker.end()
}

fn owner(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    let mode = std::fs::metadata(docker.socket())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o660, "{mode:o}");
    let driver = t.driver().to_string();
    let other = format!("unix://{}", t.file("other.sock").display());
    t.vch(["serve", "--host", &other, "--driver", &driver])
        .done()?
        .status(125)
        .stderr_has("is served by another process");
    // Another VCH beside it has nothing of the first.
    docker.ok(["create", "--name", "one", IMAGE, "true"])?;
    docker.make_vch("second")?;
    let mut second = docker.serve_other("second", &other).spawn()?;
    second.expect_error("listening");
    let listed = docker
        .cmd(["ps", "-aq"])
        .variable("DOCKER_HOST", &other)
        .done()?;
    listed.status(0).stdout("");
    second.signal(rustix::process::Signal::TERM)?;
    second.wait()?.status(0);
    docker.delete_vch("second")?;
    docker.end()
}
