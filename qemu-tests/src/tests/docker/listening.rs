//! Who may connect, how, and what those do who connect and do not listen.

use super::{Case, IMAGE};
use crate::docker::Docker;
use crate::environment::program;
use crate::harness::{Context, skip};
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "docker-listening",
        "over TCP who has a certificate of the authority's is answered, and nobody else",
        certificates,
    )
    .not_on_vsphere(),
    Case::new(
        "docker-listening",
        "plain TCP is for loopback addresses, and only when asked for",
        plain,
    )
    .not_on_vsphere(),
    Case::new(
        "docker-listening",
        "systemd's socket starts it, is served and outlives it",
        activated,
    )
    .not_on_vsphere(),
    Case::new(
        "docker-listening",
        "a client that does not read delays nobody and costs no memory",
        slow_readers,
    )
    .not_on_vsphere()
    .minutes(5),
    Case::new(
        "docker-listening",
        "clients beyond the limit are told so, and there is room again when others go",
        too_many,
    )
    .not_on_vsphere(),
    Case::new(
        "docker-listening",
        "metrics are Prometheus's, and count",
        metrics,
    )
    .not_on_vsphere(),
];

fn openssl(directory: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new("openssl")
        .args(words)
        .current_dir(directory)
        .output()
        .context("cannot run openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {words:?}: {said}");
    Ok(())
}

/// An authority NAME, and `NAME-server` and `NAME-client` certificates that it signed.
fn authority(directory: &Path, name: &str) -> Result<()> {
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let (ca_key, ca) = (format!("{name}-ca-key.pem"), format!("{name}-ca.pem"));
    let words = ["req", "-x509", "-days", "1", "-subj", "/CN=authority"];
    let out = ["-keyout", &ca_key, "-out", &ca];
    openssl(directory, &[&words[..], &key, &out].concat())?;
    for (who, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        let (own_key, request, own) = (
            format!("{name}-{who}-key.pem"),
            format!("{name}-{who}.csr"),
            format!("{name}-{who}.pem"),
        );
        let out = ["-keyout", &own_key, "-out", &request];
        openssl(
            directory,
            &[&["req", "-subj", "/CN=vch"][..], &key, &out].concat(),
        )?;
        let extensions = format!("{name}-{who}.ext");
        std::fs::write(
            directory.join(&extensions),
            format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n"),
        )?;
        let words = [
            "x509",
            "-req",
            "-days",
            "1",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &extensions,
            "-out",
            &own,
        ];
        openssl(directory, &words)?;
    }
    Ok(())
}

/// What a `vch serve` on `tcp://127.0.0.1:0` says its address is.
fn tcp_address(said: &str) -> Result<String> {
    let at = said.find("tcp://").context("no TCP address was told")?;
    let address: String = said[at..]
        .chars()
        .take_while(|c| !c.is_whitespace() && *c != '"')
        .collect();
    Ok(address)
}

fn certificates(t: &Context) -> Result<()> {
    if program("openssl").is_none() {
        return skip("there is no openssl to make certificates with: install the package openssl");
    }
    let directory = t.directory();
    authority(directory, "right")?;
    authority(directory, "wrong")?;
    let docker = Docker::serve_with(
        t,
        &[
            "--host",
            "tcp://127.0.0.1:0",
            "--tlsverify",
            "--tlscacert",
            "right-ca.pem",
            "--tlscert",
            "right-server.pem",
            "--tlskey",
            "right-server-key.pem",
        ],
    )?;
    let address = tcp_address(&docker.serving_says("tcp://")?)?;
    let as_who = |flags: &[&str]| {
        let words = [flags, &["ps", "-q"]].concat();
        docker.cmd(words).variable("DOCKER_HOST", &address).done()
    };
    let right = [
        "--tlsverify",
        "--tlscacert=right-ca.pem",
        "--tlscert=right-client.pem",
        "--tlskey=right-client-key.pem",
    ];
    as_who(&right)?.status(0).stdout("");
    // Attached, with input: what is hijacked is encrypted as well.
    let words = [&right[..], &["run", "--rm", "-i", IMAGE, "sort"]].concat();
    let sorted = docker
        .cmd(words)
        .variable("DOCKER_HOST", &address)
        .stdin("b\na\n")
        .done()?;
    sorted.status(0).stdout("a\nb\n");
    // Signed by somebody else; by a certificate for servers; without any; without TLS.
    as_who(&[
        "--tlsverify",
        "--tlscacert=right-ca.pem",
        "--tlscert=wrong-client.pem",
        "--tlskey=wrong-client-key.pem",
    ])?
    .status(1)
    .stderr_has("tls: ");
    as_who(&[
        "--tlsverify",
        "--tlscacert=right-ca.pem",
        "--tlscert=right-server.pem",
        "--tlskey=right-server-key.pem",
    ])?
    .status(1)
    .stderr_has("tls: ");
    as_who(&["--tls", "--tlscert=none.pem", "--tlskey=none.pem"])?.status(1);
    let mut plain = TcpStream::connect(address.trim_start_matches("tcp://"))?;
    plain.set_read_timeout(Some(Duration::from_secs(20)))?;
    plain.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.windows(3).any(|word| word == b"200"), "{answer:?}");
    // A client that never finishes its handshake is in nobody's way.
    let _silent = TcpStream::connect(address.trim_start_matches("tcp://"))?;
    as_who(&right)?.status(0);
    docker.end()
}

fn plain(t: &Context) -> Result<()> {
    let driver = t.driver().to_string();
    let refused = |words: &[&str], why: &str| -> Result<()> {
        let words = [&["serve", "--driver", &driver], words].concat();
        t.vch(words).done()?.status(125).stderr_has(why);
        Ok(())
    };
    refused(&["--host", "tcp://127.0.0.1:0"], "needs --tlsverify")?;
    refused(
        &["--host", "tcp://0.0.0.0:0", "--tls=false"],
        "can be reached from other machines",
    )?;
    refused(
        &["--host", "tcp://127.0.0.1:0", "--tlsverify"],
        "--tlscacert",
    )?;
    refused(&["--host", "fd://"], "handed over")?;
    let docker = Docker::serve_with(t, &["--host", "tcp://127.0.0.1:0", "--tls=false"])?;
    let address = tcp_address(&docker.serving_says("tcp://")?)?;
    let done = docker
        .cmd(["run", "--rm", IMAGE, "echo", "plain"])
        .variable("DOCKER_HOST", &address)
        .done()?;
    done.status(0).stdout("plain\n");
    docker.end()
}

fn activated(t: &Context) -> Result<()> {
    if program("systemd-socket-activate").is_none() {
        return skip("there is no systemd-socket-activate: install the package systemd");
    }
    let docker = Docker::serve(t)?;
    docker.stop_serving()?;
    let socket = t.file("activated.sock");
    let listen = format!("--listen={}", socket.display());
    let driver = t.driver().to_string();
    let vch = t.environment().vch().to_owned();
    let words = [
        listen.as_str(),
        "-E",
        "VCH_STATE",
        "-E",
        "VCH_BOOT_IMAGE",
        "-E",
        "VCH_TEMPLATES",
        "-E",
        crate::harness::MARK,
    ];
    let words = words.iter().map(std::ffi::OsString::from).chain([
        vch.into_os_string(),
        "serve".into(),
        "--driver".into(),
        driver.into(),
    ]);
    let mut serving = t.vch(words).program("systemd-socket-activate").spawn()?;
    let host = format!("unix://{}", socket.display());
    serving.expect_error("Listening on");
    // The first connection starts it, and is answered.
    let done = docker
        .cmd(["run", "--rm", IMAGE, "echo", "activated"])
        .variable("DOCKER_HOST", &host)
        .done()?;
    done.status(0).stdout("activated\n");
    serving.signal(Signal::TERM)?;
    serving.wait()?.status(0);
    // It is the service manager's to remove.
    assert!(socket.exists());
    docker.start_serving()?;
    docker.end()
}

/// `VmRSS` of a process, in KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(words.context("no VmRSS")?.parse()?)
}

fn slow_readers(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    // 2,000,000 lines of 8 bytes: more than any buffer on the way takes.
    let script = "seq 1000001 3000000; exec sleep 100000";
    docker.detached(&["--name", "chatty", "--stop-signal", "KILL"], script)?;
    let mut readers = Vec::new();
    for path in [
        "/containers/chatty/logs?follow=1&stdout=1&stderr=1",
        "/events",
        "/containers/chatty/stats?stream=1",
    ] {
        for _ in 0..8 {
            let mut reader = UnixStream::connect(docker.socket())?;
            write!(reader, "GET {path} HTTP/1.1\r\nHost: docker\r\n\r\n")?;
            readers.push(reader);
        }
    }
    // Who reads gets everything, while the others do not.
    let followed = docker.cmd(["logs", "--follow", "chatty"]).spawn()?;
    assert!(followed.reached(2_000_000 * "1000001\n".len()));
    let lines = followed.kill()?.text();
    assert_eq!(lines.lines().count(), 2_000_000);
    assert!(
        lines
            .lines()
            .zip(1_000_001..)
            .all(|(line, n)| line == n.to_string())
    );
    let used = resident(docker.serving_pid()?)?;
    assert!(used < 300 << 10, "{used} KiB are resident");
    let done = docker.ok(["exec", "chatty", "echo", "still here"])?;
    assert_eq!(done, "still here");
    // One of the slow ones reads at last: it missed nothing.
    let mut late = readers.swap_remove(0);
    drop(readers);
    late.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 1 << 16]);
    while !bytes
        .windows(8)
        .rev()
        .take(1 << 17)
        .any(|word| word == b"3000000\n")
    {
        let count = late.read(&mut piece)?;
        assert!(count > 0, "it ended after {} bytes", bytes.len());
        bytes.extend_from_slice(&piece[..count]);
    }
    let text = String::from_utf8_lossy(&bytes);
    for line in ["1000001\n", "1500000\n", "2000000\n", "2999999\n"] {
        assert!(text.contains(line), "no {line:?}");
    }
    docker.end()
}

fn too_many(t: &Context) -> Result<()> {
    let docker = Docker::serve(t)?;
    docker.stop_serving()?;
    let socket = t.file("few.sock");
    let host = format!("unix://{}", socket.display());
    let driver = t.driver().to_string();
    let vch = t.environment().vch().to_owned();
    // Two descriptors a client, and half of all for clients: 40 of them.
    let words = ["-c", "ulimit -n 160; exec \"$0\" \"$@\""].map(std::ffi::OsString::from);
    let words = words.into_iter().chain([
        vch.into_os_string(),
        "serve".into(),
        "--host".into(),
        host.clone().into(),
        "--driver".into(),
        driver.into(),
    ]);
    let mut serving = t.vch(words).program("/bin/sh").spawn()?;
    serving.expect_error("listening");
    let ps = || {
        docker
            .cmd(["ps", "-q"])
            .variable("DOCKER_HOST", &host)
            .done()
    };
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(UnixStream::connect(&socket)?);
    }
    ps()?.status(1).stderr_has("too many connections");
    drop(idle);
    ps()?.status(0);
    serving.signal(Signal::TERM)?;
    serving.wait()?.status(0);
    docker.start_serving()?;
    docker.end()
}

fn metrics(t: &Context) -> Result<()> {
    let docker = Docker::serve_with(t, &["--metrics-addr", "127.0.0.1:0"])?;
    docker.lasting("one", &[])?;
    docker.ok(["create", IMAGE, "true"])?;
    let said = docker.serving_says("metrics=")?;
    let at = said
        .find("metrics=")
        .context("no address for metrics was told")?;
    let address: String = said[at + "metrics=".len()..]
        .chars()
        .take_while(|c| !c.is_whitespace())
        .collect();
    let ask = |path: &str| -> Result<String> {
        let mut stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: metrics\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask("/metrics")?;
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
    let value = |state: &str| {
        text.lines()
            .find(|line| {
                line.contains("containers") && line.contains(state) && !line.starts_with('#')
            })
            .and_then(|line| line.rsplit(' ').next())
            .map(str::to_owned)
    };
    assert_eq!(value("running").as_deref(), Some("1"), "{text}");
    assert!(ask("/containers/json")?.starts_with("HTTP/1.0 404"));
    docker.end()
}
