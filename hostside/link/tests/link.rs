//! A link and a guest in one process.

mod guest;

use guest::{Guest, KEY, Line, pattern};
use std::time::Duration;
use tether_link::{
    Adopted, Config, Connector, Link, LinkError, Notice, OutputReader, RunningProcess,
};
use tether_wire::message::{
    Boundary, Conflicts, DiskId, Error, ErrorKind, ExitStatus, FileOperation, Identity,
    MachineEvent, Network, Owners, PidNamespace, ProcessId, ProcessSpec, Role, Root, Setup,
    SignalTarget, Stdio, TerminalSize, User,
};
use tether_wire::{CarrierKind, ChannelKey};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(600);

fn setup(hostname: &str) -> Setup {
    Setup {
        identity: Identity {
            hostname: hostname.to_owned(),
            domainname: String::new(),
            machine_id: [1; 16],
            seed: [2; 32],
            unix_nanos: 3,
        },
        root: Root {
            disk: DiskId::Serial("root".to_owned()),
            read_only: false,
        },
        mounts: Vec::new(),
        network: Network::default(),
        deadline_ms: 1000,
    }
}

fn spec(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: true },
        limits: Vec::new(),
        role: Role::Main {
            pid_namespace: PidNamespace::Private,
            init: false,
        },
    }
}

fn config(kind: CarrierKind) -> Config {
    Config::new(kind, KEY)
}

fn stream(guest: &Guest) -> Link {
    Link::spawn(guest.connector(), config(CarrierKind::Stream)).unwrap()
}

async fn start(link: &Link, id: u32, argv: &[&str]) -> RunningProcess {
    link.start(ProcessId(id), spec(argv)).await.unwrap()
}

async fn set_up(link: &Link) {
    link.setup(setup("web")).await.unwrap();
}

/// Reads to the end, storing as it goes.
async fn read_all(reader: &mut OutputReader) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        assert_eq!(chunk.offset, all.len() as u64);
        all.extend_from_slice(&chunk.data);
        reader.stored(chunk.end());
    }
    all
}

/// Reads at least `count` bytes from `from` on; gives what came, none of it stored.
async fn read_some(reader: &mut OutputReader, from: u64, count: usize) -> Vec<u8> {
    let mut some = Vec::new();
    while some.len() < count {
        let chunk = reader.next().await.unwrap().unwrap();
        assert_eq!(chunk.offset, from + some.len() as u64);
        some.extend_from_slice(&chunk.data);
    }
    some
}

#[tokio::test(start_paused = true)]
async fn setup_and_start_reach_the_guest_before_its_first_answer() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    // Neither is awaited before both are made.
    let setup = link.setup(setup("web"));
    let start = link.start(ProcessId::MAIN, spec(&["say", "out", "err", "42"]));
    let resumed = link.ready(SOON).await.unwrap();
    assert!(!resumed.rebooted);
    assert_eq!(resumed.boot_id, [1; 16]);
    setup.await.unwrap();
    let mut process = start.await.unwrap();
    assert_eq!(read_all(&mut process.stdout).await, b"out");
    assert_eq!(read_all(&mut process.stderr).await, b"err");
    assert_eq!(process.wait().await.unwrap().status, ExitStatus::Code(42));
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_lets_go_of_the_guest_which_is_as_new_afterwards() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let rehearse = || async {
        let carrier = guest.connector().connect().await.unwrap();
        tether_link::rehearse(carrier, KEY, SOON).await
    };
    // One that is too old to know of it has greeted.
    rehearse().await.unwrap();
    guest.machine(|machine| machine.rehearsal = Some(Ok(())));
    rehearse().await.unwrap();
    let broken = Error::new(ErrorKind::System, "no memory");
    guest.machine(|machine| machine.rehearsal = Some(Err(broken)));
    let error = rehearse().await.unwrap_err();
    assert!(error.to_string().contains("no memory"), "{error}");
    assert_eq!(guest.machine(|machine| machine.rehearsals), 3);
    let link = stream(&guest);
    set_up(&link).await;
    assert_eq!(guest.machine(|machine| machine.setups), 1);
    // Too late.
    let error = link.rehearse().await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Guest(error) if error.kind == ErrorKind::Exists),
        "{error}"
    );
    assert_eq!(guest.machine(|machine| machine.rehearsals), 3);
}

#[tokio::test(start_paused = true)]
async fn files_are_read_and_written_as_processes_of_their_own() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let path = b"/etc/passwd".to_vec();
    let stat = FileOperation::Stat { path: path.clone() };
    let mut stat = link.files(ProcessId(7), stat).await.unwrap();
    assert_eq!(read_all(&mut stat.stdout).await, path);
    assert_eq!(stat.wait().await.unwrap().status, ExitStatus::Code(0));
    stat.control.forget().await.unwrap();
    let list = FileOperation::List {
        path: b"/".to_vec(),
        boundary: Boundary::FileSystem,
    };
    let mut list = link.files(ProcessId(7), list).await.unwrap();
    assert_eq!(read_all(&mut list.stdout).await, pattern(100_000));
    let write = FileOperation::Write {
        path: b"/".to_vec(),
        conflicts: Conflicts::Replace,
        owners: Owners::Recorded,
    };
    let mut write = link.files(ProcessId(8), write).await.unwrap();
    let input = async {
        write.stdin.write_all(&pattern(300_000)).await.unwrap();
        write.stdin.finish();
    };
    let (echo, ()) = tokio::join!(read_all(&mut write.stdout), input);
    assert_eq!(echo, pattern(300_000));
    assert_eq!(
        write.control.wait().await.unwrap().status,
        ExitStatus::Code(0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_named_silent_with_the_reason() {
    let connector = || async {
        Err::<tokio::io::DuplexStream, _>(std::io::Error::other("nobody is listening"))
    };
    let link = Link::spawn(connector, config(CarrierKind::Stream)).unwrap();
    let error = link.ready(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest did not answer on its channel within 3 s (last attempt: nobody is listening)"
    );
}

#[tokio::test(start_paused = true)]
async fn another_key_is_refused_for_good() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let other = Config::new(CarrierKind::Stream, ChannelKey([8; 32]));
    let link = Link::spawn(guest.connector(), other).unwrap();
    let start = link.start(ProcessId::MAIN, spec(&["sleep"]));
    assert!(matches!(link.ready(SOON).await, Err(LinkError::Refused(_))));
    assert!(matches!(start.await, Err(LinkError::Refused(_))));
    assert_eq!(guest.machine(|m| m.starts), 0);
}

#[tokio::test(start_paused = true)]
async fn what_the_guest_refuses_comes_back_as_its_own_error() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let error = link
        .start(ProcessId::MAIN, spec(&["missing"]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            LinkError::Guest(Error {
                kind: ErrorKind::NotFound,
                ..
            })
        ),
        "{error:?}"
    );
    // The id is free again.
    start(&link, 0, &["sleep"]).await;
    let again = link.start(ProcessId::MAIN, spec(&["sleep"])).await;
    assert!(
        matches!(
            again,
            Err(LinkError::Guest(Error {
                kind: ErrorKind::Exists,
                ..
            }))
        ),
        "{again:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_no_frame_can_hold_is_refused_here() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let long = "x".repeat(300 * 1024);
    let error = link
        .start(ProcessId::MAIN, spec(&["say", &long]))
        .await
        .unwrap_err();
    assert!(matches!(error, LinkError::TooLong(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn input_comes_back_whole_and_ends() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let mut process = start(&link, 0, &["cat"]).await;
    let sent = pattern(3_000_000);
    let mut stdin = process.stdin;
    let writing = tokio::spawn({
        let sent = sent.clone();
        async move {
            stdin.write_all(&sent).await.unwrap();
            stdin.finish();
        }
    });
    assert!(read_all(&mut process.stdout).await == sent);
    writing.await.unwrap();
    assert_eq!(
        process.control.wait().await.unwrap().status,
        ExitStatus::Code(0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_terminals_standard_error_has_ended_before_it_began() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let mut spec = spec(&["say", "out"]);
    spec.stdio = Stdio::Terminal {
        size: TerminalSize {
            rows: 24,
            columns: 80,
        },
        stdin: true,
    };
    let mut process = link.start(ProcessId::MAIN, spec).await.unwrap();
    assert_eq!(read_all(&mut process.stderr).await, b"");
    assert_eq!(read_all(&mut process.stdout).await, b"out");
}

#[tokio::test(start_paused = true)]
async fn writing_to_a_process_that_ended_is_a_broken_pipe() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let mut process = start(&link, 0, &["say"]).await;
    process.wait().await.unwrap();
    let error = process.stdin.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_delays_no_other_stream() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    // More than every buffer between the two ends holds.
    let stuck = start(&link, 1, &["both", "2000000", "1000000"]).await;
    let mut stuck_err = stuck.stderr;
    let mut seen = Vec::new();
    while seen.len() < 1_000_000 {
        let chunk = stuck_err.next().await.unwrap().unwrap();
        seen.extend_from_slice(&chunk.data);
        stuck_err.stored(chunk.end());
    }
    assert!(seen == pattern(1_000_000));
    let mut other = start(&link, 2, &["count", "2000000"]).await;
    assert!(read_all(&mut other.stdout).await == pattern(2_000_000));
    assert_eq!(other.wait().await.unwrap().status, ExitStatus::Code(0));
    // And the one nobody read is complete all the same.
    let mut stuck_out = stuck.stdout;
    assert!(read_all(&mut stuck_out).await == pattern(2_000_000));
}

#[tokio::test(start_paused = true)]
async fn output_nobody_wants_does_not_stop_the_process() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let process = start(&link, 0, &["count", "5000000"]).await;
    process.stdout.discard();
    assert_eq!(
        process.control.wait().await.unwrap().status,
        ExitStatus::Code(0)
    );
}

#[tokio::test(start_paused = true)]
async fn fifty_processes_at_once_have_their_own_output_and_status() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let starts: Vec<_> = (0..50u32)
        .map(|n| {
            let argv = [
                "say".to_owned(),
                format!("out{n}"),
                format!("err{n}"),
                n.to_string(),
            ];
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            link.start(ProcessId(n), spec(&argv))
        })
        .collect();
    for (n, start) in starts.into_iter().enumerate() {
        let mut process = start.await.unwrap();
        assert_eq!(
            read_all(&mut process.stdout).await,
            format!("out{n}").as_bytes()
        );
        assert_eq!(
            read_all(&mut process.stderr).await,
            format!("err{n}").as_bytes()
        );
        let exit = process.wait().await.unwrap();
        assert_eq!(exit.status, ExitStatus::Code(n as u8));
        process.control.forget().await.unwrap();
        assert!(matches!(process.wait().await, Err(LinkError::Unknown(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_may_be_unanswered_wait_for_room() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    let all: Vec<_> = (0..5000).map(|_| link.statistics()).collect();
    for answer in all {
        assert_eq!(answer.await.unwrap().processes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn signals_sizes_lists_and_events_pass() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let process = start(&link, 7, &["sleep"]).await;
    let size = TerminalSize {
        rows: 3,
        columns: 4,
    };
    process.control.resize(size).await.unwrap();
    process
        .control
        .signal(15, SignalTarget::Group)
        .await
        .unwrap();
    assert_eq!(process.wait().await.unwrap().status, ExitStatus::Signal(15));
    guest.machine(|machine| {
        assert_eq!(machine.signals, [(ProcessId(7), 15)]);
        assert_eq!(machine.sizes, [(ProcessId(7), size)]);
    });
    let pids: Vec<u32> = link
        .processes()
        .await
        .unwrap()
        .iter()
        .map(|p| p.pid)
        .collect();
    assert_eq!(pids, (1..=10).collect::<Vec<_>>());
    link.ping().await.unwrap();
    link.set_clock(5).await.unwrap();
    assert!(matches!(link.notice().await.unwrap(), Notice::Up));
    guest.say(MachineEvent::OutOfMemory { process: None });
    assert!(matches!(
        link.notice().await.unwrap(),
        Notice::Machine(MachineEvent::OutOfMemory { process: None })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_breaks_again_and_again_loses_and_repeats_nothing() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let line = Line {
        seed: 5,
        drop: 0,
        flip: 0,
        cut: 300_000,
    };
    let link = Link::spawn(guest.through(line), config(CarrierKind::Stream)).unwrap();
    set_up(&link).await;
    let mut process = start(&link, 0, &["cat"]).await;
    let sent = pattern(2_000_000);
    let mut stdin = process.stdin;
    let writing = tokio::spawn({
        let sent = sent.clone();
        async move {
            stdin.write_all(&sent).await.unwrap();
            stdin.finish();
        }
    });
    assert!(read_all(&mut process.stdout).await == sent);
    writing.await.unwrap();
    assert_eq!(
        process.control.wait().await.unwrap().status,
        ExitStatus::Code(0)
    );
    guest.machine(|machine| assert_eq!((machine.setups, machine.starts), (1, 1)));
    let mut downs = 0;
    while let Ok(Ok(notice)) = tokio::time::timeout(Duration::ZERO, link.notice()).await {
        downs += u32::from(matches!(notice, Notice::Down));
    }
    assert!(downs > 5, "the carrier broke {downs} times");
}

#[tokio::test(start_paused = true)]
async fn a_serial_line_that_drops_and_flips_bytes_delivers_all_of_them() {
    let guest = Guest::boot(CarrierKind::Serial, 1);
    let line = Line {
        seed: 11,
        drop: 3000,
        flip: 2000,
        cut: 0,
    };
    let link = Link::spawn(guest.through(line), config(CarrierKind::Serial)).unwrap();
    set_up(&link).await;
    let mut process = start(&link, 0, &["cat"]).await;
    let sent = pattern(300_000);
    let mut stdin = process.stdin;
    let writing = tokio::spawn({
        let sent = sent.clone();
        async move {
            stdin.write_all(&sent).await.unwrap();
            stdin.finish();
        }
    });
    assert!(read_all(&mut process.stdout).await == sent);
    writing.await.unwrap();
    assert_eq!(
        process.control.wait().await.unwrap().status,
        ExitStatus::Code(0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_controller_goes_on_where_the_old_one_stored() {
    for kind in [CarrierKind::Stream, CarrierKind::Serial] {
        let guest = Guest::boot(kind, 1);
        let expected = pattern(400_000);
        let mut stored: Vec<u8> = Vec::new();
        let first = Link::spawn(guest.connector(), config(kind)).unwrap();
        set_up(&first).await;
        let mut process = start(&first, 0, &["count", "400000"]).await;
        let some = read_some(&mut process.stdout, 0, 30_000).await;
        // Stored here, and acknowledged only in part, when the controller is killed.
        stored.extend_from_slice(&some);
        process.stdout.stored(10_000);
        drop(first);

        let mut next = config(kind);
        next.adopt.push(Adopted {
            process: ProcessId::MAIN,
            stdout: stored.len() as u64,
            stderr: 0,
        });
        let second = Link::spawn(guest.connector(), next).unwrap();
        let resumed = second.ready(SOON).await.unwrap();
        assert_eq!(resumed.setup, Some(Ok(())));
        assert_eq!(resumed.processes.len(), 1);
        assert_eq!(guest.machine(|machine| machine.starts), 1);
        let mut process = second.attach(ProcessId::MAIN).unwrap();
        assert!(second.attach(ProcessId::MAIN).is_none());
        while let Some(chunk) = process.stdout.next().await.unwrap() {
            assert_eq!(chunk.offset, stored.len() as u64);
            stored.extend_from_slice(&chunk.data);
            process.stdout.stored(chunk.end());
        }
        assert!(stored == expected, "{kind:?}");
        assert_eq!(process.wait().await.unwrap().status, ExitStatus::Code(0));
        drop(second);

        // The status is still there for a third.
        let third = Link::spawn(guest.connector(), config(kind)).unwrap();
        third.ready(SOON).await.unwrap();
        let process = third.attach(ProcessId::MAIN).unwrap();
        assert_eq!(process.wait().await.unwrap().status, ExitStatus::Code(0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_restarted_has_lost_its_processes_and_says_so() {
    let before = Guest::boot(CarrierKind::Stream, 1);
    let after = Guest::boot(CarrierKind::Stream, 2);
    let line = Line {
        seed: 5,
        drop: 0,
        flip: 0,
        cut: 100_000,
    };
    let mut connectors = vec![after, before];
    let (to, mut guests) = tokio::sync::mpsc::unbounded_channel();
    while let Some(guest) = connectors.pop() {
        to.send(guest).unwrap();
    }
    let connector = move || {
        let guest = guests.try_recv().ok();
        async move {
            let guest = guest.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            tether_link::Connector::connect(&mut guest.through(line)).await
        }
    };
    let link = Link::spawn(connector, config(CarrierKind::Stream)).unwrap();
    set_up(&link).await;
    let mut process = start(&link, 0, &["count", "1000000"]).await;
    // The line is cut in the middle of this, and the other guest answers.
    let error = loop {
        match process.stdout.next().await {
            Ok(Some(chunk)) => process.stdout.stored(chunk.end()),
            Ok(None) => panic!("the process of a machine that is gone has ended"),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, LinkError::Lost(ProcessId::MAIN)),
        "{error:?}"
    );
    assert!(matches!(process.wait().await, Err(LinkError::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_mute_is_given_up_for_the_next_one() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let mut mute = Vec::new();
    let connector = move || {
        let mut good = guest.connector();
        let silent = (mute.len() < 2).then(|| {
            let (host, nobody) = tokio::io::duplex(1024);
            // Open, and nobody reads it or writes.
            mute.push(nobody);
            host
        });
        async move {
            match silent {
                Some(host) => Ok(host),
                None => tether_link::Connector::connect(&mut good).await,
            }
        }
    };
    let link = Link::spawn(connector, config(CarrierKind::Stream)).unwrap();
    link.ready(SOON).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_link_ends_every_call() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    let mut process = start(&link, 0, &["sleep"]).await;
    let control = process.control.clone();
    let waiting = tokio::spawn(async move { control.wait().await });
    let reading = tokio::spawn(async move { process.stdout.next().await });
    let asking = link.statistics();
    drop(link);
    assert!(matches!(waiting.await.unwrap(), Err(LinkError::Closed)));
    assert!(matches!(reading.await.unwrap(), Err(LinkError::Closed)));
    assert!(matches!(asking.await, Err(LinkError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_dropped_lose_nothing() {
    let guest = Guest::boot(CarrierKind::Stream, 1);
    let link = stream(&guest);
    set_up(&link).await;
    drop(link.start(ProcessId(3), spec(&["count", "200000"])));
    link.ping().await.unwrap();
    let mut process = link.attach(ProcessId(3)).unwrap();
    let mut all = Vec::new();
    loop {
        // Polled once and dropped, whatever it was about to do.
        tokio::select! {
            biased;
            chunk = process.stdout.next() => match chunk.unwrap() {
                Some(chunk) => {
                    all.extend_from_slice(&chunk.data);
                    process.stdout.stored(chunk.end());
                }
                None => break,
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(all == pattern(200_000));
}

#[tokio::test(start_paused = true)]
async fn attempts_to_connect_are_paced() {
    let start = Instant::now();
    let (attempts, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let connector = move || {
        let _ = attempts.send(start.elapsed());
        async { Err::<tokio::io::DuplexStream, _>(std::io::ErrorKind::ConnectionRefused.into()) }
    };
    let link = Link::spawn(connector, config(CarrierKind::Stream)).unwrap();
    let _ = link.ready(Duration::from_secs(10)).await;
    let mut times = Vec::new();
    while let Ok(time) = seen.try_recv() {
        times.push(time);
    }
    assert!((40..=60).contains(&times.len()), "{} attempts", times.len());
}
