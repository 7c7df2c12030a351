//! Published ports of machines on a port group: the driver listens and carries. The machine here is this
//! process: the server is told that its guest's address is the loopback's.

use std::net::SocketAddr;

use hypervisor::{PortGroup, Protocol, PublishedPort};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use vsphere::soap::Raw;
use vsphere::types::{ConfigOption, OptionValue, ReconfigVM_Task, VirtualMachineConfigSpec};

use super::*;

/// A port that nobody has just now.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// Says `guest.net` of a machine as its tools would.
async fn address(rig: &Rig, id: &MachineId) {
    let client = rig.simulator.client().await.unwrap();
    let told = ReconfigVM_Task {
        _this: rig.object(id).await,
        spec: VirtualMachineConfigSpec {
            extraConfig: vec![ConfigOption::from(OptionValue {
                key: "SET.guest.ipAddress".into(),
                value: Raw::string("127.0.0.1"),
            })],
            ..VirtualMachineConfigSpec::default()
        },
    };
    client.call(&told).await.unwrap();
}

async fn echo_once(to: SocketAddr, text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(text).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_a_published_port_is_carried_to_the_machine_while_it_is_on() {
    for kind in KINDS {
        let Some(rig) = Rig::start("what_comes_to_a_published_port", kind).await else {
            return;
        };
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside = guest.local_addr().unwrap().port();
        let echoing = tokio::spawn(async move {
            while let Ok((mut client, _)) = guest.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let udp_inside = datagrams.local_addr().unwrap().port();
        let answering = tokio::spawn(async move {
            let mut buffer = [0; 100];
            while let Ok((length, from)) = datagrams.recv_from(&mut buffer).await {
                let _ = datagrams.send_to(&buffer[..length], from).await;
            }
        });
        let (tcp, udp) = (free(), free());
        let port = |protocol, host, guest_port| PublishedPort {
            protocol,
            host,
            guest_port,
        };
        let disk = rig.container("web");
        let mut spec = rig.spec("web", &disk);
        spec.nics[0].attachment = Attachment::PortGroup(PortGroup {
            name: "VM Network".into(),
            published: vec![
                port(Protocol::Tcp, tcp, inside),
                port(Protocol::Udp, udp, udp_inside),
            ],
        });
        let id = rig
            .driver
            .create(spec.clone(), key(), metadata())
            .await
            .unwrap();
        assert!(TcpStream::connect(tcp).await.is_err(), "it is off");
        rig.driver.power_on(&id).await.unwrap();
        // A client that is too early waits until there is an address.
        let early = tokio::spawn(async move { echo_once(tcp, b"early").await });
        address(&rig, &id).await;
        assert_eq!(early.await.unwrap().unwrap(), b"early");
        let long = vec![0x5a; 1 << 20];
        assert_eq!(echo_once(tcp, &long).await.unwrap(), long);
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(udp).await.unwrap();
        let mut answer = [0; 100];
        for text in [b"one", b"two"] {
            client.send(text).await.unwrap();
            let received = tokio::time::timeout(Duration::from_secs(10), client.recv(&mut answer));
            let length = received.await.expect("an answer comes").unwrap();
            assert_eq!(&answer[..length], text);
        }

        // Another machine cannot have the port as long as this one is on.
        let disk = rig.container("rival");
        let rival = MachineSpec {
            nics: spec.nics.clone(),
            ..rig.spec("rival", &disk)
        };
        let rival = rig.driver.create(rival, key(), metadata()).await.unwrap();
        let error = rig.driver.power_on(&rival).await.unwrap_err();
        assert!(
            matches!(error.cause(), Cause::PortInUse { address, .. } if *address == tcp),
            "{error:?}"
        );
        let never = PowerState::Off {
            cause: StopCause::NeverStarted,
        };
        assert_eq!(rig.power(&rival).await, never);

        // A controller that comes later listens again.
        let rig = rig.again().await;
        let mut answer = Err(std::io::ErrorKind::NotConnected.into());
        for _ in 0..500 {
            answer = echo_once(tcp, b"again").await;
            if answer.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(answer.unwrap(), b"again");
        rig.driver.power_off(&id, PowerOff::Cut).await.unwrap();
        assert!(TcpStream::connect(tcp).await.is_err(), "it is off again");
        rig.driver.power_on(&rival).await.unwrap();
        rig.driver.destroy(&rival).await.unwrap();
        assert!(TcpStream::connect(tcp).await.is_err(), "it is gone");
        echoing.abort();
        answering.abort();
    }
}
