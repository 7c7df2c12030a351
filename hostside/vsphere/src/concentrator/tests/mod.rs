//! The concentrator against simulated hosts, over TCP.

mod dialer;
mod hostile;
mod migration;

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use dialer::{Dialer, Machine, SOON};

/// Short where the test waits for one to pass, long where it must not.
fn limits() -> Limits {
    Limits {
        identify: Duration::from_secs(5),
        probe: Duration::from_millis(300),
        drain: Duration::from_millis(200),
        ..Limits::default()
    }
}

async fn listen_with(limits: Limits) -> Concentrator {
    let service = |name: &str, when_full| Service {
        name: name.into(),
        when_full,
    };
    let services = vec![
        service(CHANNEL, WhenFull::Wait),
        service(CONSOLE, WhenFull::DropOldest),
    ];
    Concentrator::listen_with("127.0.0.1:0", services, limits)
        .await
        .unwrap()
}

async fn listen() -> Concentrator {
    listen_with(limits()).await
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("it happens in time")
}

async fn read_exactly(stream: &mut PortStream, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    soon(stream.read_exact(&mut data)).await.unwrap();
    data
}

async fn read_to_end(stream: &mut PortStream) -> Vec<u8> {
    let mut data = Vec::new();
    soon(stream.read_to_end(&mut data)).await.unwrap();
    data
}

/// Bytes that look random, the same ones for a seed every time (xorshift64*), IAC and CR often among them.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56
    };
    (0..length)
        .map(|_| match next() as u8 {
            0..8 => 0xff,
            8..12 => b'\r',
            12..16 => 0,
            byte => byte,
        })
        .collect()
}

fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[tokio::test]
async fn a_machine_that_dials_in_is_given_to_who_waits_for_it() {
    let concentrator = listen().await;
    let waiting = concentrator.connect([1; 16]);
    let dialling = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel");
    let (stream, dialer) = tokio::join!(soon(waiting), dialling);
    let mut stream = stream.unwrap();
    dialer.send(b"from \xff\xf0 the guest\r\0").await;
    assert_eq!(
        read_exactly(&mut stream, 19).await,
        b"from \xff\xf0 the guest\r\0"
    );
    stream
        .write_all(b"to \xff\xfa the guest\r\0")
        .await
        .unwrap();
    assert_eq!(dialer.data(17).await, b"to \xff\xfa the guest\r\0");
    dialer.send(b"the last").await;
    dialer.hang_up().await;
    assert_eq!(read_to_end(&mut stream).await, b"the last");
    let error = stream.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    drop(stream);
    assert_eq!(concentrator.registry.counts(), (0, 0, 0));
}

/// What a host sends and hears, byte by byte, without this crate's parser on the host's side.
#[tokio::test]
async fn the_bytes_of_a_whole_session_are_these() {
    let concentrator = listen().await;
    let mut host = TcpStream::connect(concentrator.local_addr()).await.unwrap();
    host.write_all(
        b"\xff\xfb\xe8\xff\xfb\x00\xff\xfd\x00\xff\xfb\x03\xff\xfd\x03\xff\xfd\x01\
          \xff\xfa\xe8\x00\x00\x01\x02\x03\x28\x29\x2b\x2c\x2d\x2e\x30\x46\x47\x49\x50\x51\x52\x53\xff\xf0\
          \xff\xfa\xe8\x46Stelnet://channel:1\xff\xf0\
          \xff\xfa\xe8\x5001 02 03 04 05 06 07 08-09 0a 0b 0c 0d 0e 0f 10\xff\xf0\
          login: \xff\xff",
    )
    .await
    .unwrap();
    let uuid = std::array::from_fn(|at| at as u8 + 1);
    let mut stream = soon(concentrator.connect(uuid)).await.unwrap();
    assert_eq!(read_exactly(&mut stream, 8).await, b"login: \xff");
    stream.write_all(b"me\xff\r").await.unwrap();
    let expected: &[&[u8]] = &[
        b"\xff\xfb\x00\xff\xfb\x03\xff\xfb\x01\xff\xfd\x00\xff\xfd\x03\xff\xfd\xe8",
        b"\xff\xfa\xe8\x01\x00\x01\x02\x03\x28\x29\x2b\x2c\x2d\x2e\x30\x46\x47\x49\x50\x51\x52\x53\x54\x55\x56\x57\xff\xf0",
        // It is asked for what it said it can tell, and no more.
        b"\xff\xfa\xe8\x51\xff\xf0",
        b"\xff\xfa\xe8\x47\xff\xf0",
        b"me\xff\xff\r",
    ];
    let expected = expected.concat();
    let mut heard = vec![0; expected.len()];
    soon(host.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, expected);
}

#[tokio::test]
async fn a_host_without_binary_is_spoken_to_as_an_nvt() {
    let concentrator = listen().await;
    let machine = Machine {
        binary: false,
        ..Machine::of(1)
    };
    let dialer = Dialer::port(concentrator.local_addr(), machine, "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    let (up, down) = (noise(1, 5000), noise(2, 5000));
    dialer.send(&up).await;
    assert_eq!(
        sha256(&read_exactly(&mut stream, up.len()).await),
        sha256(&up)
    );
    soon(stream.write_all(&down)).await.unwrap();
    assert_eq!(sha256(&dialer.data(down.len()).await), sha256(&down));
}

#[tokio::test]
async fn a_fork_is_known_by_its_uri_whatever_it_says_besides() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut of_source = soon(concentrator.connect([1; 16])).await.unwrap();
    // It says its source's UUID still.
    let uri = "channel/02020202-0202-0202-0202-020202020202";
    let fork = Dialer::port(address, Machine::of(1), uri).await;
    let mut of_fork = soon(concentrator.connect([2; 16])).await.unwrap();
    fork.send(b"fork").await;
    source.send(b"source").await;
    assert_eq!(read_exactly(&mut of_fork, 4).await, b"fork");
    assert_eq!(read_exactly(&mut of_source, 6).await, b"source");
}

#[tokio::test]
async fn ports_of_one_machine_differ_by_their_service() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let channel = Dialer::port(address, Machine::of(1), "telnet://channel:2377").await;
    let console = Dialer::port(address, Machine::of(1), "console").await;
    channel.send(b"channel").await;
    console.send(b"console").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    assert_eq!(read_exactly(&mut stream, 7).await, b"channel");
    let mut stream = soon(concentrator.connect_to([1; 16], CONSOLE))
        .await
        .unwrap();
    assert_eq!(read_exactly(&mut stream, 7).await, b"console");
    let error = concentrator
        .connect_to([1; 16], "debugger")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);

    let dialer = Dialer::dial(address, Machine::of(1)).await;
    dialer.introduce().await;
    let uri = "debugger".to_owned();
    dialer
        .say(extension::Message::DoProxy(
            extension::Direction::Server,
            uri,
        ))
        .await;
    dialer
        .hear(|message| *message == extension::Message::WontProxy)
        .await;
    dialer.closed().await;
}

#[tokio::test]
async fn a_machine_without_vcenters_uuid_is_known_by_its_bioss() {
    let concentrator = listen().await;
    let knows: Vec<u8> = extension::KNOWN
        .iter()
        .copied()
        .filter(|code| *code < 80 || *code > 81)
        .collect();
    for (machine, uuid) in [
        (
            Machine {
                vc: None,
                ..Machine::of(1)
            },
            0x0e,
        ),
        (
            Machine {
                vc: None,
                knows,
                ..Machine::of(2)
            },
            0x0d,
        ),
    ] {
        let dialer = Dialer::port(concentrator.local_addr(), machine, "channel").await;
        dialer.send(b"here").await;
        let mut stream = soon(concentrator.connect([uuid; 16])).await.unwrap();
        assert_eq!(read_exactly(&mut stream, 4).await, b"here");
    }
}

#[tokio::test]
async fn who_stops_waiting_takes_nothing_with_him() {
    let concentrator = listen().await;
    let gave_up = timeout(Duration::from_millis(20), concentrator.connect([1; 16])).await;
    assert!(gave_up.is_err());
    assert_eq!(concentrator.registry.counts(), (0, 0, 0));
    let dialer = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel").await;
    dialer.send(b"first").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    assert_eq!(read_exactly(&mut stream, 5).await, b"first");
}

#[tokio::test]
async fn the_newest_reader_goes_on_where_the_one_before_was() {
    let concentrator = listen().await;
    let dialer = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel").await;
    let mut first = soon(concentrator.connect([1; 16])).await.unwrap();
    dialer.send(b"onetwo").await;
    assert_eq!(read_exactly(&mut first, 3).await, b"one");
    let mut second = soon(concentrator.connect([1; 16])).await.unwrap();
    assert_eq!(read_to_end(&mut first).await, b"");
    assert_eq!(
        first.write(b"x").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    // One that leaves late does not take the port from the next.
    drop(first);
    assert_eq!(read_exactly(&mut second, 3).await, b"two");
    drop(second);
    dialer.send(b"three").await;
    let mut third = soon(concentrator.connect([1; 16])).await.unwrap();
    assert_eq!(read_exactly(&mut third, 5).await, b"three");
}

#[tokio::test]
async fn a_channel_waits_for_its_reader_and_a_console_does_not() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    for service in [CHANNEL, CONSOLE] {
        concentrator.admit([1; 16]);
        let dialer = Dialer::port(address, Machine::of(1), service).await;
        // More than all buffers on the way.
        let flood = noise(3, 24 << 20);
        let sending = timeout(Duration::from_secs(2), dialer.send(&flood)).await;
        assert_eq!(sending.is_ok(), service == CONSOLE, "{service}");
        dialer.hang_up().await;
        if service == CONSOLE {
            // What a machine that is known said last is kept when it is gone.
            dialer.closed().await;
        }
        let mut stream = soon(concentrator.connect_to([1; 16], service))
            .await
            .unwrap();
        let read = read_to_end(&mut stream).await;
        if service == CONSOLE {
            assert_eq!(read.len(), 256 << 10);
            assert!(flood.ends_with(&read));
        } else {
            assert!(read.len() > 256 << 10, "{}", read.len());
            assert!(flood.starts_with(&read));
        }
    }
}

#[tokio::test]
async fn a_guest_that_does_not_read_holds_its_writer_up_and_not_its_own_output() {
    let concentrator = listen().await;
    let mut host = TcpStream::connect(concentrator.local_addr()).await.unwrap();
    host.write_all(
        b"\xff\xfb\xe8\xff\xfd\x00\xff\xfa\xe8\x00\x51\xff\xf0\xff\xfa\xe8\x46Schannel\xff\xf0\
          \xff\xfa\xe8\x5007 07 07 07 07 07 07 07-07 07 07 07 07 07 07 07\xff\xf0",
    )
    .await
    .unwrap();
    let stream = soon(concentrator.connect([7; 16])).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let flood = vec![b'x'; 64 << 20];
    let writing = timeout(Duration::from_secs(1), write.write_all(&flood)).await;
    assert!(writing.is_err(), "64 MiB went into buffers");
    host.write_all(b"still heard").await.unwrap();
    let mut heard = [0; 11];
    soon(read.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"still heard");
}

#[tokio::test]
async fn two_hundred_machines_dial_in_at_once() {
    let concentrator = Arc::new(listen().await);
    let address = concentrator.local_addr();
    let mut tasks = JoinSet::new();
    for number in 0..200u8 {
        let concentrator = concentrator.clone();
        tasks.spawn(async move {
            let dialling = Dialer::port(address, Machine::of(number), "channel");
            let connecting = concentrator.connect([number; 16]);
            let (dialer, stream) = tokio::join!(dialling, soon(connecting));
            let mut stream = stream.unwrap();
            dialer.send(&[number; 100]).await;
            assert_eq!(read_exactly(&mut stream, 100).await, [number; 100]);
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn dropping_the_concentrator_closes_everything() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let dialer = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    drop(concentrator);
    assert_eq!(read_to_end(&mut stream).await, b"");
    dialer.closed().await;
    assert!(TcpStream::connect(address).await.is_err());
}
