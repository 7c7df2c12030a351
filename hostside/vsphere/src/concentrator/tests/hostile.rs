//! Those who dial and should not, and hosts that are gone.

use super::*;
use crate::concentrator::extension::Message;

#[tokio::test]
async fn a_live_machines_name_cannot_be_taken_and_a_dead_ones_can() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let machine = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    let thief = Dialer::port(address, Machine::of(1), "channel").await;
    thief.closed().await;
    machine.send(b"still me").await;
    assert_eq!(read_exactly(&mut stream, 8).await, b"still me");
    assert!(!machine.is_closed());

    machine.fall_silent();
    let restarted = Dialer::port(address, Machine::of(1), "channel").await;
    machine.closed().await;
    assert_eq!(read_to_end(&mut stream).await, b"");
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    restarted.send(b"again").await;
    assert_eq!(read_exactly(&mut stream, 5).await, b"again");
}

#[tokio::test]
async fn a_machine_that_answers_behind_a_flood_that_nobody_reads_keeps_its_name() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    concentrator.admit([1; 16]);
    let machine = Arc::new(Dialer::port(address, Machine::of(1), "channel").await);
    let sender = machine.clone();
    let flood = tokio::spawn(async move { sender.send(&noise(1, 8 << 20)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let thief = Dialer::port(address, Machine::of(1), "channel").await;
    thief.closed().await;
    assert!(!machine.is_closed());
    flood.abort();
}

#[tokio::test]
async fn a_machine_that_dials_in_anew_replaces_its_old_stream() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let old = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    old.send(b"before").await;
    old.hang_up().await;
    old.closed().await;
    let new = Dialer::port(address, Machine::of(1), "channel").await;
    new.send(b"after").await;
    assert_eq!(read_to_end(&mut stream).await, b"before");
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    assert_eq!(read_exactly(&mut stream, 5).await, b"after");
}

#[tokio::test]
async fn a_migration_needs_its_secret() {
    let concentrator = listen_with(Limits {
        identify: Duration::from_secs(1),
        ..limits()
    })
    .await;
    let address = concentrator.local_addr();
    let machine = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    let (cookie, _) = machine.begin(b"sequence").await;
    let mut wrong = cookie.clone();
    *wrong.last_mut().unwrap() ^= 1;
    for cookie in [wrong, b"sequence".to_vec(), Vec::new()] {
        let thief = Dialer::dial(address, Machine::of(1)).await;
        thief.introduce().await;
        thief.say(Message::VmotionPeer(cookie)).await;
        thief.closed().await;
    }
    // Neither does the UUID alone do while the machine moves.
    let thief = Dialer::port(address, Machine::of(1), "channel").await;
    thief.closed().await;
    // A stranger cannot say that the migration is over.
    let stranger = Dialer::port(address, Machine::of(2), "channel").await;
    stranger.say(Message::VmotionComplete(cookie.clone())).await;
    stranger.say(Message::VmotionAbort(cookie.clone())).await;
    machine.send(b"still me").await;
    assert_eq!(read_exactly(&mut stream, 8).await, b"still me");
    Dialer::target(address, Machine::of(1), &cookie).await;
}

#[tokio::test]
async fn a_machine_lost_in_its_migration_can_dial_in_again() {
    let concentrator = listen_with(Limits {
        identify: Duration::from_secs(1),
        ..limits()
    })
    .await;
    let address = concentrator.local_addr();
    let machine = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    machine.begin(b"s").await;
    machine.fall_silent();
    let restarted = Dialer::port(address, Machine::of(1), "channel").await;
    assert_eq!(read_to_end(&mut stream).await, b"");
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    restarted.send(b"again").await;
    assert_eq!(read_exactly(&mut stream, 5).await, b"again");
    assert_eq!(concentrator.registry.counts().2, 0);
}

#[tokio::test]
async fn who_does_not_say_who_he_is_is_closed() {
    let concentrator = listen_with(Limits {
        identify: Duration::from_millis(200),
        ..limits()
    })
    .await;
    let address = concentrator.local_addr();
    let silent = TcpStream::connect(address).await.unwrap();
    let dialer = Dialer::dial(address, Machine::of(1)).await;
    let nameless = Machine {
        vc: None,
        bios: None,
        ..Machine::of(1)
    };
    let nameless = Dialer::port(address, nameless, "channel").await;
    dialer.closed().await;
    nameless.closed().await;
    let mut silent = silent;
    let mut greeting = Vec::new();
    soon(silent.read_to_end(&mut greeting)).await.unwrap();
    // The last answers were sent, the places are free again.
    soon(async {
        while concentrator.registry.counts() != (0, 0, 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_does_not_speak_the_option_or_talks_too_much_is_closed_at_once() {
    let concentrator = listen_with(Limits {
        identify: Duration::from_secs(600),
        ..limits()
    })
    .await;
    let endless = [&b"\xff\xfa\xe8"[..], &[b'x'; 5000]].concat();
    for line in [b"\xff\xfc\xe8".to_vec(), vec![b'x'; 128 << 10], endless] {
        let mut host = TcpStream::connect(concentrator.local_addr()).await.unwrap();
        let _ = host.write_all(&line).await;
        let mut rest = Vec::new();
        // Unread bytes make the end a reset.
        let _ = soon(host.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn connections_of_nobodys_machines_are_limited_in_number_and_time() {
    let limits = Limits {
        pending: 3,
        unclaimed: Duration::from_millis(400),
        ..limits()
    };
    let concentrator = listen_with(limits).await;
    let address = concentrator.local_addr();
    concentrator.admit([9; 16]);
    let strangers = [
        Dialer::port(address, Machine::of(1), "channel").await,
        Dialer::port(address, Machine::of(2), "channel").await,
    ];
    // A machine that is known does not count.
    let known = Dialer::port(address, Machine::of(9), "channel").await;
    let third = Dialer::port(address, Machine::of(3), "channel").await;
    let fourth = Dialer::dial(address, Machine::of(4)).await;
    fourth.closed().await;
    assert!(fourth.data_now().is_empty());
    // One is asked for in time, the others are closed.
    let mut stream = soon(concentrator.connect([3; 16])).await.unwrap();
    for stranger in &strangers {
        stranger.closed().await;
    }
    third.send(b"third").await;
    assert_eq!(read_exactly(&mut stream, 5).await, b"third");
    assert!(!known.is_closed() && !third.is_closed());
    concentrator.forget([9; 16]);
    known.closed().await;
}

#[tokio::test]
async fn one_address_cannot_take_all_places_of_strangers() {
    let limits = Limits {
        pending_of_address: 1,
        ..limits()
    };
    let concentrator = listen_with(limits).await;
    let _first = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel").await;
    let second = Dialer::dial(concentrator.local_addr(), Machine::of(2)).await;
    second.closed().await;
    let other = tokio::net::TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = other.connect(concentrator.local_addr()).await.unwrap();
    let mut greeting = [0; 3];
    soon(other.read_exact(&mut greeting)).await.unwrap();
}

#[tokio::test]
async fn connections_are_limited_in_all() {
    let concentrator = listen_with(Limits {
        connections: 1,
        ..limits()
    })
    .await;
    concentrator.admit([1; 16]);
    let first = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel").await;
    let second = Dialer::dial(concentrator.local_addr(), Machine::of(2)).await;
    second.closed().await;
    first.hang_up().await;
    first.closed().await;
    soon(async {
        loop {
            let third = Dialer::dial(concentrator.local_addr(), Machine::of(3)).await;
            if timeout(Duration::from_millis(100), third.closed())
                .await
                .is_err()
            {
                return;
            }
        }
    })
    .await;
}

/// Over a pipe whose size is known, and not TCP: what telnet runs over does not matter.
#[tokio::test]
async fn a_flood_of_questions_does_not_fill_the_memory() {
    let concentrator = listen_with(Limits {
        identify: Duration::from_secs(600),
        ..limits()
    })
    .await;
    let (mut host, ours) = tokio::io::duplex(4096);
    let (registry, address) = (concentrator.registry.clone(), concentrator.local_addr());
    let pending = registry.pend(address.ip()).unwrap();
    let serving = tokio::spawn(connection::serve(registry, ours, address, pending));
    // Each is refused with three bytes, none of which is read.
    let flood = [255, 253, 99].repeat(1000);
    let mut sent = 0;
    while let Ok(length) = timeout(Duration::from_secs(1), host.write(&flood)).await {
        sent += length.unwrap();
        assert!(sent < 256 << 10, "{sent} bytes of questions were read");
    }
    assert!(sent > 64 << 10, "{sent}");
    assert!(!serving.is_finished());
}

#[tokio::test]
async fn a_target_that_runs_before_its_time_is_closed() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator.connect([1; 16])).await.unwrap();
    let (cookie, _) = source.begin(b"s").await;
    let target = Dialer::target(address, Machine::of(1), &cookie).await;
    let mut line = Vec::new();
    telnet::encode(&noise(5, 256 << 10), true, &mut line);
    let _ = target.raw(&line).await;
    target.closed().await;
    source.send(b"still me").await;
    assert_eq!(read_exactly(&mut stream, 8).await, b"still me");
}
