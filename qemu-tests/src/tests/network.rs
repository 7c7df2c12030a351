//! User-mode networking: in through published ports, out through the host.

use super::boot::{connect, free_port};
use crate::harness::{Context, Test};
use crate::machine::{Machine, Wanted, block_on, main_process, setup};
use anyhow::{Result, bail};
use hypervisor::{Attachment, MacAddress, NicSpec, UserNetwork};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use tether_link::Notice;
use tether_wire::message::{ExitStatus, Interface, InterfaceAddressing, MachineEvent};

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
    Test::new(
        "network",
        "a vNIC that asks by DHCP has address, route and name server from the lease",
        leased,
    ),
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

/// QEMU's user-mode network has a DHCP server. Its lease lasts a day, so that a renewal is seen only by
/// the client's own tests.
fn leased(t: &Context) -> Result<()> {
    let mac = MacAddress::random()?;
    let wanted = Wanted {
        nics: vec![NicSpec {
            mac,
            attachment: Attachment::UserMode {
                published: Vec::new(),
            },
        }],
        ..Wanted::default()
    };
    block_on(t, async {
        let machine = Machine::boot(t, wanted).await?;
        let mut setup = setup("root");
        setup.network.interfaces = vec![Interface {
            mac: tether_wire::message::MacAddress(mac.bytes()),
            name: "uplink".to_owned(),
            mtu: 0,
            addressing: InterfaceAddressing::Dhcp,
        }];
        let network = setup.network.clone();
        // It answers when the lease is there.
        machine.link.setup(setup).await?;
        let lease = loop {
            if let Notice::Machine(MachineEvent::Lease {
                interface,
                address,
                gateway,
            }) = machine.link.notice().await?
            {
                break (interface, address.address, address.prefix, gateway);
            }
        };
        assert_eq!(
            lease,
            (
                "uplink".to_owned(),
                IpAddr::V4(UserNetwork::GUEST),
                UserNetwork::PREFIX,
                Some(IpAddr::V4(UserNetwork::GATEWAY))
            )
        );
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let answer = std::thread::spawn(move || listener.accept()?.0.write_all(b"reached\n"));
        let script = format!(
            "set -e
             ip -o -4 addr show uplink | awk '{{ print $4 }}'
             ip route | grep ^default
             grep ^nameserver /etc/resolv.conf
             grep -w test /etc/hosts | tr -s '\\t' ' '
             nc 10.0.2.2 {port} </dev/null"
        );
        let said = machine
            .run(0, main_process(&["sh", "-c", &script]), b"")
            .await?;
        assert_eq!(
            said.text(),
            "10.0.2.15/24\ndefault via 10.0.2.2 dev uplink \nnameserver 10.0.2.3\n\
             10.0.2.15 test\nreached\n",
            "{:?}",
            String::from_utf8_lossy(&said.stderr)
        );
        assert_eq!(said.exit.status, ExitStatus::Code(0));
        if answer.join().map_or(true, |wrote| wrote.is_err()) {
            bail!("the host's side failed");
        }
        // Told of its network anew, as a fork is, it asks for a lease of its own.
        machine.link.network(network).await?;
        while !matches!(
            machine.link.notice().await?,
            Notice::Machine(MachineEvent::Lease { .. })
        ) {}
        machine.end().await
    })
}
