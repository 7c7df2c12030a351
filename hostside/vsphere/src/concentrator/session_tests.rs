//! One session without connections: random histories of migrations.

use super::*;
use proptest::prelude::*;

/// What happens to a machine and its reader.
#[derive(Debug, Clone)]
enum Step {
    FromSource(u8),
    FromTarget(u8),
    Begin,
    Peer,
    Complete,
    Abort,
    SourceLost,
    TargetLost,
    Drained,
    ToGuest(u8),
    Sent(u8),
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..50u8).prop_map(Step::FromSource),
        4 => (1..50u8).prop_map(Step::FromTarget),
        2 => Just(Step::Begin),
        2 => Just(Step::Peer),
        2 => Just(Step::Complete),
        1 => Just(Step::Abort),
        1 => Just(Step::SourceLost),
        1 => Just(Step::TargetLost),
        1 => Just(Step::Drained),
        3 => (1..50u8).prop_map(Step::ToGuest),
        3 => (1..50u8).prop_map(Step::Sent),
        3 => (1..50u8).prop_map(Step::Read),
    ]
}

/// What a session has to be like, told in whole streams instead of buffers.
#[derive(Debug, Default)]
struct Model {
    /// All the reader will have read.
    up: Vec<u8>,
    ahead: Vec<u8>,
    /// All the guest was sent, over any connection.
    down: usize,
    next: u8,
}

impl Model {
    fn bytes(&mut self, length: u8) -> Vec<u8> {
        (0..length)
            .map(|_| {
                self.next = self.next.wrapping_add(1);
                self.next
            })
            .collect()
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_history_of_migrations_loses_doubles_or_reorders_bytes(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let (mut source, mut target, mut next) = (1, None, 2);
        let session = Session::new(source, WhenFull::Wait, true);
        let reader = session.attach().unwrap();
        let mut model = Model::default();
        let (mut read, mut written, mut sent) = (Vec::new(), Vec::new(), Vec::new());
        // Whether the machine may be sent to, and who is alive.
        #[derive(PartialEq, Debug, Clone, Copy)]
        enum At { Steady, Moving, Peered, Draining }
        let mut at = At::Steady;
        let mut source_alive = true;
        let mut ended = false;
        let cookie = b"cookie";
        for step in steps {
            match step {
                Step::FromSource(length) if source_alive && !ended => {
                    let bytes = model.bytes(length);
                    prop_assert!(session.deliver(source, &bytes).is_ok());
                    model.up.extend(&bytes);
                }
                Step::FromTarget(length) if !ended => {
                    if let Some(target) = target {
                        let bytes = model.bytes(length);
                        prop_assert!(session.deliver(target, &bytes).is_ok());
                        model.ahead.extend(&bytes);
                    }
                }
                Step::Begin if source_alive && !ended => {
                    let began = session.begin(source, cookie);
                    prop_assert_eq!(began, at == At::Steady);
                    if began {
                        at = At::Moving;
                    }
                }
                Step::Peer if !ended => {
                    let taken = session.peer(next, cookie);
                    prop_assert_eq!(taken, matches!(at, At::Moving | At::Peered));
                    if taken {
                        (target, at) = (Some(next), At::Peered);
                        model.ahead.clear();
                    }
                    next += 1;
                }
                Step::Complete if at == At::Peered && !ended => {
                    prop_assert!(session.complete(target.unwrap()).is_some());
                    at = At::Draining;
                    if !source_alive {
                        model.up.append(&mut model.ahead);
                        (source, target, at, source_alive) = (target.unwrap(), None, At::Steady, true);
                    }
                }
                Step::Abort if source_alive && !ended => {
                    let aborted = session.abort(source).is_some();
                    prop_assert_eq!(aborted, matches!(at, At::Moving | At::Peered));
                    if aborted {
                        (target, at) = (None, At::Steady);
                        model.ahead.clear();
                    }
                }
                Step::SourceLost if source_alive && !ended => {
                    session.lost(source);
                    match at {
                        At::Steady | At::Moving => ended = true,
                        At::Peered => source_alive = false,
                        At::Draining => {
                            model.up.append(&mut model.ahead);
                            (source, target, at) = (target.unwrap(), None, At::Steady);
                        }
                    }
                }
                Step::TargetLost if at == At::Peered && !ended => {
                    session.lost(target.unwrap());
                    model.ahead.clear();
                    (target, at) = (None, At::Moving);
                    ended = !source_alive;
                }
                Step::Drained if at == At::Draining && !ended => {
                    session.drain_over(source);
                    model.up.append(&mut model.ahead);
                    (source, target, at) = (target.unwrap(), None, At::Steady);
                }
                Step::ToGuest(length) if !ended => {
                    let bytes = model.bytes(length);
                    let taken = session.poll_write(reader, &cx(), &bytes);
                    prop_assert_eq!(taken, Poll::Ready(Some(bytes.len())));
                    written.extend(bytes);
                }
                Step::Sent(room) => {
                    // Whoever tries, only the machine's own connection gets anything.
                    let own = if at == At::Draining { target.unwrap() } else { source };
                    for id in 1..next {
                        let before = sent.len();
                        session.take_outbound(id, room.into(), |bytes| sent.extend_from_slice(bytes));
                        let may = id == own && matches!(at, At::Steady | At::Draining);
                        prop_assert!(may || ended || sent.len() == before, "{} of {:?}", id, at);
                    }
                    model.down = sent.len();
                }
                Step::Read(room) => {
                    let _ = session.poll_read(reader, &cx(), room.into(), |b| read.extend_from_slice(b));
                }
                _ => {}
            }
            prop_assert_eq!(session.ended(), ended);
        }
        while session.poll_read(reader, &cx(), 7, |b| read.extend_from_slice(b)).is_ready() {
            if session.ended() && session.lock().inbound.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&read, &model.up);
        prop_assert!(written.starts_with(&sent));
        prop_assert_eq!(model.down, sent.len());
        if at == At::Steady && !ended {
            session.take_outbound(source, usize::MAX, |bytes| sent.extend_from_slice(bytes));
            prop_assert_eq!(sent, written);
        }
    }
}

#[test]
fn a_target_lost_while_its_source_drains_is_heard_in_full() {
    let session = Session::new(1, WhenFull::Wait, true);
    let reader = session.attach().unwrap();
    assert!(session.begin(1, b"c") && session.peer(2, b"c"));
    session.complete(2).unwrap();
    session.deliver(2, b" and last").unwrap();
    session.lost(2);
    assert!(!session.ended());
    session.deliver(1, b"first").unwrap();
    session.lost(1);
    assert!(session.ended());
    let mut read = Vec::new();
    for _ in 0..2 {
        assert!(
            session
                .poll_read(reader, &cx(), 99, |b| read.extend_from_slice(b))
                .is_ready()
        );
    }
    assert_eq!(read, b"first and last");
}
