//! Software people run, from the distribution's packages, served and queried.

use super::Case;
use crate::docker::Docker;
use crate::environment::program;
use crate::harness::{Context, skip};
use anyhow::{Context as _, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-software",
        "redis answers PING, SET and GET through its published port, and keeps data over a restart",
        redis,
    )
    .guests_only()
    .minutes(8),
    Case::new(
        "docker-software",
        "nginx serves a page that was copied in, through its published port",
        nginx,
    )
    .guests_only()
    .minutes(8),
    Case::new(
        "docker-software",
        "PostgreSQL makes a database, takes rows and gives them back through its published port",
        postgres,
    )
    .guests_only()
    .minutes(10),
];

/// The port on this side of a published one.
fn port(docker: &Docker<'_>, name: &str, inside: u16) -> Result<u16> {
    let shown = docker.ok(["port", name, &inside.to_string()])?;
    let first = shown.lines().next().unwrap_or_default();
    let number = first.rsplit(':').next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("docker port {name} said {shown:?}"))
}

fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .with_context(|| format!("cannot connect to port {port}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(BufReader::new(stream))
}

fn redis(t: &Context) -> Result<()> {
    let docker = Docker::serve_published(t)?;
    docker.import("redis")?;
    let words = [
        "run",
        "-d",
        "--name",
        "redis",
        "-p",
        "127.0.0.1::6379",
        "sample/redis",
    ];
    docker.ok(words)?;
    let wait_ready = |times: usize| -> Result<()> {
        let mut log = docker.cmd(["logs", "-f", "redis"]).spawn()?;
        for _ in 0..times {
            log.expect("Ready to accept connections");
        }
        Ok(())
    };
    wait_ready(1)?;
    let ask = |commands: &[(&str, &str)]| -> Result<()> {
        let mut redis = connect(port(&docker, "redis", 6379)?)?;
        for (command, answer) in commands {
            redis
                .get_mut()
                .write_all(format!("{command}\r\n").as_bytes())?;
            let mut line = String::new();
            redis.read_line(&mut line)?;
            assert_eq!(line.trim_end(), *answer, "{command}");
        }
        Ok(())
    };
    ask(&[
        ("PING", "+PONG"),
        ("SET key value", "+OK"),
        ("STRLEN key", ":5"),
        ("INCR n", ":1"),
        ("SAVE", "+OK"),
    ])?;
    assert_eq!(
        docker.ok(["exec", "redis", "redis-cli", "GET", "key"])?,
        "value"
    );
    docker.ok(["restart", "redis"])?;
    wait_ready(2)?;
    ask(&[("INCR n", ":2"), ("STRLEN key", ":5")])?;
    docker.end()
}

fn nginx(t: &Context) -> Result<()> {
    let docker = Docker::serve_published(t)?;
    docker.import("nginx")?;
    docker.ok([
        "create",
        "--name",
        "web",
        "-p",
        "127.0.0.1::80",
        "sample/nginx",
    ])?;
    let page = t.file("page.html");
    std::fs::write(&page, "<p>served by a VM</p>\n")?;
    docker.ok([
        "cp",
        &page.display().to_string(),
        "web:/var/www/html/page.html",
    ])?;
    docker.ok(["start", "web"])?;
    // It says nothing when it is ready; the connection waits in the guest until it listens.
    let ready = "while ! grep -q ':0050 .* 0A ' /proc/net/tcp; do sleep 0.2; done";
    docker.ok(["exec", "web", "sh", "-c", ready])?;
    let get = |path: &str| -> Result<String> {
        let mut web = connect(port(&docker, "web", 80)?)?;
        web.get_mut()
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        web.read_to_string(&mut text)?;
        Ok(text)
    };
    let page = get("/page.html")?;
    assert!(
        page.contains(" 200 OK") && page.ends_with("<p>served by a VM</p>\n"),
        "{page}"
    );
    assert!(get("/none")?.contains(" 404 "));
    assert!(docker.ok(["logs", "web"])?.contains("GET /page.html"));
    docker.ok(["stop", "web"])?;
    assert_eq!(docker.inspect("web", "{{.State.ExitCode}}")?, "0");
    docker.end()
}

fn postgres(t: &Context) -> Result<()> {
    let Some(psql) = program("psql") else {
        return skip("there is no psql here: install the package postgresql-client");
    };
    let docker = Docker::serve_published(t)?;
    docker.import("postgres")?;
    let words = [
        "run",
        "-d",
        "--name",
        "db",
        "-m",
        "512m",
        "-p",
        "127.0.0.1::5432",
        "sample/postgres",
    ];
    docker.ok(words)?;
    let log = docker.cmd(["logs", "-f", "db"]).spawn()?;
    log.expect_error("database system is ready to accept connections");
    let port = port(&docker, "db", 5432)?.to_string();
    let ask = |sql: &str| -> Result<String> {
        let words = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-At",
            "-c",
            sql,
        ];
        let done = t.vch(words).program(psql.clone()).done()?;
        done.status(0);
        Ok(done.text().trim_end().to_owned())
    };
    ask("CREATE TABLE sums (n int PRIMARY KEY, square int)")?;
    ask("INSERT INTO sums SELECT n, n * n FROM generate_series(1, 1000) n")?;
    assert_eq!(
        ask("SELECT count(*), sum(square) FROM sums")?,
        "1000|333833500"
    );
    docker.ok(["stop", "-t", "60", "db"])?;
    assert_eq!(docker.inspect("db", "{{.State.ExitCode}}")?, "0");
    drop(log);
    docker.end()
}
