//! vMotion in the middle of a flow of bytes in both directions.

use super::*;
use crate::concentrator::extension::Message;

const LENGTH: usize = 1 << 20;

/// A reader that writes `down` and gives what it reads, once that is `length` bytes.
fn relay(stream: PortStream, down: Vec<u8>, length: usize) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut up = vec![0; length];
        let (read, written) = tokio::join!(read.read_exact(&mut up), async {
            for piece in down.chunks(1777) {
                write.write_all(piece).await?;
            }
            io::Result::Ok(())
        });
        read.unwrap();
        written.unwrap();
        up
    })
}

#[tokio::test]
async fn a_stream_goes_on_over_the_target_without_a_byte_lost_or_doubled() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let (up, down) = (noise(10, 4 * LENGTH), noise(11, 4 * LENGTH));
    let stream = soon(concentrator_stream(&concentrator, 1));
    let first = Dialer::port(address, Machine::of(1), "channel");
    let (stream, mut source) = tokio::join!(stream, first);
    let relay = relay(stream, down.clone(), up.len());
    let (mut sent, mut received) = (0, Vec::new());
    // Three times, the last time as far as the end.
    for round in 0..3u8 {
        let cut = sent + LENGTH;
        source.send(&up[sent..cut]).await;
        let (cookie, before) = source.begin(&[round, 0xff, 9]).await;
        // The machine still runs here while its memory is copied.
        source.send(&up[cut..cut + 4000]).await;
        let target = Dialer::target(address, Machine::of(1), &cookie).await;
        source.send(&up[cut + 4000..cut + 5000]).await;
        sent = cut + 5000;
        // Target and source are different hosts: nothing orders their connections.
        target
            .say(Message::VmotionComplete(vec![round, 0xff, 9]))
            .await;
        target.send(&up[sent..sent + 3000]).await;
        sent += 3000;
        assert_eq!(
            source.data_now().len(),
            before,
            "sent to a machine that moves"
        );
        received.extend(source.data_now());
        if round == 1 {
            source.closed().await;
        } else {
            source.hang_up().await;
        }
        source = target;
    }
    source.send(&up[sent..]).await;
    let read = soon(relay).await.unwrap();
    received.extend(source.data(down.len() - received.len()).await);
    assert_eq!(read.len(), up.len());
    assert_eq!(sha256(&read), sha256(&up));
    assert_eq!(received.len(), down.len());
    assert_eq!(sha256(&received), sha256(&down));
    assert_eq!(
        concentrator.registry.counts().2,
        0,
        "a cookie is still good"
    );
}

async fn concentrator_stream(concentrator: &Concentrator, byte: u8) -> PortStream {
    concentrator.connect([byte; 16]).await.unwrap()
}

#[tokio::test]
async fn an_aborted_migration_returns_to_the_source() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let (up, down) = (noise(12, LENGTH), noise(13, LENGTH));
    for with_target in [false, true] {
        let source = Dialer::port(address, Machine::of(1), "channel").await;
        let stream = soon(concentrator_stream(&concentrator, 1)).await;
        let relay = relay(stream, down.clone(), up.len());
        source.send(&up[..LENGTH / 3]).await;
        let (cookie, before) = source.begin(b"seq").await;
        let mut target = None;
        if with_target {
            let dialer = Dialer::target(address, Machine::of(1), &cookie).await;
            dialer.send(b"a machine that does not run").await;
            target = Some(dialer);
        }
        source.send(&up[LENGTH / 3..LENGTH / 2]).await;
        assert_eq!(source.data_now().len(), before);
        source.say(Message::VmotionAbort(b"seq".to_vec())).await;
        source.send(&up[LENGTH / 2..]).await;
        assert_eq!(sha256(&soon(relay).await.unwrap()), sha256(&up));
        assert_eq!(sha256(&source.data(LENGTH).await), sha256(&down));
        if let Some(target) = target {
            target.closed().await;
            assert!(target.data_now().is_empty());
        }
        assert_eq!(concentrator.registry.counts().2, 0);
        // The cookie is of no more use, to nobody.
        let late = Dialer::dial(address, Machine::of(1)).await;
        late.introduce().await;
        late.say(Message::VmotionPeer(cookie)).await;
        late.closed().await;
        source.hang_up().await;
        source.closed().await;
    }
}

#[tokio::test]
async fn a_second_migration_of_the_same_port_has_to_wait() {
    let concentrator = listen().await;
    let source = Dialer::port(concentrator.local_addr(), Machine::of(1), "channel").await;
    let (_cookie, _) = source.begin(b"a").await;
    source.say(Message::VmotionBegin(b"b".to_vec())).await;
    let (_, answer) = source.hear(|m| !matches!(m, Message::GetVmBiosUuid)).await;
    assert_eq!(answer, Message::VmotionNotnow(b"b".to_vec()));
}

#[tokio::test]
async fn a_target_may_say_its_uuid_before_its_cookie() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator_stream(&concentrator, 1)).await;
    let (cookie, _) = source.begin(b"s").await;
    // Service and UUID are told, as in a first connection.
    let target = Dialer::port(address, Machine::of(1), "channel").await;
    target.say(Message::VmVcUuid(Some([1; 16]))).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    target.say(Message::VmotionPeer(cookie)).await;
    target
        .hear(|m| matches!(m, Message::VmotionPeerOk(_)))
        .await;
    target.say(Message::VmotionComplete(b"s".to_vec())).await;
    source.send(b"old").await;
    source.hang_up().await;
    target.send(b"new").await;
    assert_eq!(read_exactly(&mut stream, 6).await, b"oldnew");
    stream.write_all(b"down").await.unwrap();
    assert_eq!(target.data(4).await, b"down");
}

#[tokio::test]
async fn a_source_that_goes_before_its_target_completes_ends_nothing() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator_stream(&concentrator, 1)).await;
    let (cookie, _) = source.begin(b"s").await;
    let target = Dialer::target(address, Machine::of(1), &cookie).await;
    source.send(b"old").await;
    source.hang_up().await;
    source.closed().await;
    assert_eq!(read_exactly(&mut stream, 3).await, b"old");
    stream.write_all(b"kept").await.unwrap();
    target.say(Message::VmotionComplete(b"s".to_vec())).await;
    target.send(b"new").await;
    assert_eq!(read_exactly(&mut stream, 3).await, b"new");
    assert_eq!(target.data(4).await, b"kept");
}

#[tokio::test]
async fn a_target_that_never_completes_is_given_up_when_its_source_is_gone() {
    let takeover = Duration::from_millis(200);
    let concentrator = listen_with(Limits {
        takeover,
        ..limits()
    })
    .await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator_stream(&concentrator, 1)).await;
    let (cookie, _) = source.begin(b"s").await;
    let target = Dialer::target(address, Machine::of(1), &cookie).await;
    source.hang_up().await;
    target.closed().await;
    assert_eq!(read_to_end(&mut stream).await, b"");
    assert_eq!(concentrator.registry.counts(), (0, 0, 0));
}

#[tokio::test]
async fn a_target_that_breaks_may_dial_again_and_the_source_goes_on_until_then() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Dialer::port(address, Machine::of(1), "channel").await;
    let mut stream = soon(concentrator_stream(&concentrator, 1)).await;
    let (cookie, _) = source.begin(b"s").await;
    let broken = Dialer::target(address, Machine::of(1), &cookie).await;
    broken.hang_up().await;
    broken.closed().await;
    source.send(b"one").await;
    assert_eq!(read_exactly(&mut stream, 3).await, b"one");
    let stale = Dialer::target(address, Machine::of(1), &cookie).await;
    let target = Dialer::target(address, Machine::of(1), &cookie).await;
    stale.closed().await;
    target.say(Message::VmotionComplete(b"s".to_vec())).await;
    target.send(b"two").await;
    source.hang_up().await;
    assert_eq!(read_exactly(&mut stream, 3).await, b"two");
}

#[tokio::test]
async fn a_source_with_a_slow_reader_is_heard_to_its_end() {
    let concentrator = listen().await;
    let address = concentrator.local_addr();
    let source = Arc::new(Dialer::port(address, Machine::of(1), "channel").await);
    let mut stream = soon(concentrator_stream(&concentrator, 1)).await;
    let up = noise(14, 3 << 20);
    let (cookie, _) = source.begin(b"s").await;
    let target = Dialer::target(address, Machine::of(1), &cookie).await;
    // More than is read ahead, so that most of it is still in the source's connection.
    let (sender, bytes) = (source.clone(), up.clone());
    let sending = tokio::spawn(async move { sender.send(&bytes).await });
    target.say(Message::VmotionComplete(b"s".to_vec())).await;
    target.send(b"after").await;
    // Longer than a silent source is given.
    tokio::time::sleep(3 * limits().drain).await;
    let read = read_exactly(&mut stream, up.len() + 5).await;
    assert_eq!(sha256(&read[..up.len()]), sha256(&up));
    assert_eq!(&read[up.len()..], b"after");
    sending.await.unwrap();
}
