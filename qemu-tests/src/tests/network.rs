//! User-mode networking: in through published ports, out through the host.

use super::boot::{connect, free_port};
use crate::harness::{Context, Test};
use anyhow::Result;
use std::io::{Read, Write};
use std::net::TcpListener;

pub const TESTS: &[Test] = &[
    Test::new(
        "network",
        "a published port reaches the container's HTTP server",
        published,
    ),
    Test::new(
        "network",
        "the container reaches the host's network",
        outward,
    ),
    Test::new("network", "a port that is taken is named", taken),
    Test::new("network", "--network none has only the loopback", none),
];

fn published(t: &Context) -> Result<()> {
    let port = free_port()?;
    let mut running = t
        .run([
            "sh",
            "-c",
            "mkdir /www; echo over there >/www/page; httpd -p 8080 -h /www; echo up; cat",
        ])
        .flags(["-i", "-p", &format!("127.0.0.1:{port}:8080")])
        .stdin_open()
        .spawn()?;
    running.expect("up\n");
    for _ in 0..3 {
        let mut server = connect(port, t.deadline())?;
        server.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        server.read_to_string(&mut answer)?;
        assert!(
            answer.starts_with("HTTP/1.") && answer.contains(" 200 "),
            "{answer}"
        );
        assert!(answer.ends_with("over there\n"), "{answer}");
    }
    running.wait()?.status(0);
    Ok(())
}

fn outward(t: &Context) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let answer = std::thread::spawn(move || -> Result<()> {
        let (mut client, _) = listener.accept()?;
        client.write_all(b"hello from the host\n")?;
        Ok(())
    });
    let said = t
        .script(&format!(
            "nc 10.0.2.2 {port} </dev/null; ip -o -4 addr show eth0 | awk '{{ print $4 }}'"
        ))
        .done()?
        .finished();
    assert_eq!(said, "hello from the host\n10.0.2.15/24\n");
    answer
        .join()
        .unwrap_or_else(|_| panic!("the host's side panicked"))
}

fn taken(t: &Context) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    t.run(["true"])
        .flags(["-p", &format!("127.0.0.1:{port}:80")])
        .done()?
        .status(125)
        .stdout("")
        .says(&[&port.to_string(), "in use"]);
    Ok(())
}

fn none(t: &Context) -> Result<()> {
    t.run([
        "sh",
        "-c",
        "ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo lo answers",
    ])
    .flags(["--network", "none"])
    .done()?
    .status(0)
    .stdout("lo\nlo answers\n");
    Ok(())
}
