//! Both ends in memory: random operations, connections that break, lines that lie, controllers
//! that are killed; and what a hostile peer can do to either end.

use proptest::prelude::*;
use std::collections::BTreeMap;
use tether_wire::guest::Outcome;
use tether_wire::message::*;
use tether_wire::{
    CarrierKind, ChannelKey, GuestSession, HostEvent, HostSession, Input, Machine, OUTPUT_WINDOW,
    Ready, Refusal, Ticket, Time, VERSION_MAX,
};

const KEY: ChannelKey = ChannelKey([7; 32]);

/// A machine whose processes write a known pattern and echo their input to stderr.
#[derive(Default)]
struct Sim {
    entropy: u8,
    setups: Vec<Ticket>,
    started: Vec<ProcessId>,
    signals: Vec<(ProcessId, u8)>,
    forgotten: Vec<ProcessId>,
}

impl Machine for Sim {
    fn entropy(&mut self) -> [u8; 16] {
        self.entropy = self.entropy.wrapping_add(1);
        [self.entropy; 16]
    }
    fn setup(&mut self, ticket: Ticket, _: Setup) -> Outcome {
        self.setups.push(ticket);
        Outcome::Later
    }
    fn start(&mut self, _: Ticket, process: ProcessId, spec: ProcessSpec) -> Outcome {
        if spec.argv.is_empty() {
            return Outcome::Done(Err(Error::new(ErrorKind::NotFound, "no such program")));
        }
        self.started.push(process);
        Outcome::Done(Ok(Reply::Started(Started {
            pid: 100 + process.0,
        })))
    }
    fn files(&mut self, _: Ticket, process: ProcessId, operation: FileOperation) -> Outcome {
        if matches!(operation, FileOperation::Stat { .. }) {
            return Outcome::Done(Err(Error::new(ErrorKind::Busy, "no root")));
        }
        self.started.push(process);
        Outcome::Done(Ok(Reply::Started(Started {
            pid: 100 + process.0,
        })))
    }
    fn signal(&mut self, process: ProcessId, signal: u8, _: SignalTarget) -> Result<(), Error> {
        self.signals.push((process, signal));
        Ok(())
    }
    fn resize(&mut self, _: ProcessId, _: TerminalSize) -> Result<(), Error> {
        Ok(())
    }
    fn forget(&mut self, process: ProcessId) {
        self.forgotten.push(process);
    }
    fn processes(&mut self, _: u32) -> Result<ProcessPage, Error> {
        Ok(ProcessPage::default())
    }
    fn statistics(&mut self) -> Result<Statistics, Error> {
        Ok(Statistics::default())
    }
    fn set_clock(&mut self, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn shutdown(&mut self, _: Ticket, _: ShutdownSpec) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
    fn mount(&mut self, _: Ticket, _: Mount) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
    fn network(&mut self, _: Ticket, _: Network) -> Outcome {
        Outcome::Done(Ok(Reply::Done))
    }
}

fn pattern(process: ProcessId, at: u64) -> u8 {
    let x = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(process.0);
    (x >> 29) as u8
}

fn setup() -> Setup {
    Setup {
        identity: Identity {
            hostname: "c".into(),
            domainname: String::new(),
            machine_id: [1; 16],
            seed: [2; 32],
            unix_nanos: 3,
        },
        root: Root {
            disk: DiskId::Serial("root".into()),
            read_only: false,
        },
        mounts: vec![],
        network: Network::default(),
        deadline_ms: 1000,
    }
}

fn spec() -> ProcessSpec {
    ProcessSpec {
        argv: vec!["run".into()],
        env: vec![],
        cwd: "/".into(),
        user: User::default(),
        stdio: Stdio::Pipes { stdin: true },
        limits: vec![],
        role: Role::Exec,
    }
}

fn write_files(process: ProcessId) -> Request {
    Request::Files {
        process,
        operation: FileOperation::Write {
            path: b"/".to_vec(),
            conflicts: Conflicts::Replace,
            owners: Owners::Recorded,
        },
    }
}

/// What a controller has on disk: it survives the controller.
#[derive(Default, Clone)]
struct Stored {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: [bool; 2],
    exit: Option<Exit>,
}

struct World {
    kind: CarrierKind,
    guest: GuestSession,
    sim: Sim,
    host: HostSession,
    now: Time,
    nonce: u8,
    session: u8,
    /// What each process will write in all, and has written.
    plan: BTreeMap<ProcessId, (u64, u64)>,
    /// Input the guest's processes have read.
    read: BTreeMap<ProcessId, (Vec<u8>, bool)>,
    exited: BTreeMap<ProcessId, bool>,
    stored: BTreeMap<ProcessId, Stored>,
    replies: BTreeMap<RequestId, Result<Reply, Error>>,
    damage: Vec<(bool, u8, usize)>,
    lag: Vec<(ProcessId, Output, u64)>,
}

impl World {
    fn new(kind: CarrierKind) -> Self {
        let mut world = Self {
            kind,
            guest: GuestSession::new(kind, KEY, [9; 16]),
            sim: Sim::default(),
            host: HostSession::new(kind, KEY, [1; 16]),
            now: Time(0),
            nonce: 0,
            session: 1,
            plan: BTreeMap::new(),
            read: BTreeMap::new(),
            exited: BTreeMap::new(),
            stored: BTreeMap::new(),
            replies: BTreeMap::new(),
            damage: vec![],
            lag: vec![],
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.nonce += 1;
        let mut nonce = [self.nonce; 16];
        nonce[15] = 0xa5;
        self.host.disconnected();
        self.host.connected(nonce);
        if self.kind == CarrierKind::Stream {
            self.guest.connected();
        }
    }

    /// kill -9 of the controller, and another one that has its records.
    fn new_controller(&mut self) {
        self.lag.clear();
        self.replies.clear();
        self.session += 1;
        self.host = HostSession::new(self.kind, KEY, [self.session; 16]);
        for (process, stored) in &self.stored {
            self.host.adopt(
                *process,
                stored.stdout.len() as u64,
                stored.stderr.len() as u64,
            );
        }
        self.connect();
    }

    /// One turn of everything; whether anything moved.
    fn turn(&mut self) -> bool {
        let mut lines = [Vec::new(), Vec::new()];
        self.host.transmit(self.now, &mut lines[0]);
        self.guest.transmit(self.now, &mut lines[1]);
        let moved = lines.iter().any(|line| !line.is_empty());
        if self.kind == CarrierKind::Serial
            && let Some((which, what, at)) = self.damage.pop()
        {
            let line = &mut lines[usize::from(which)];
            if !line.is_empty() {
                let at = at % line.len();
                match what {
                    0 => line[at] ^= 0x10,
                    1 => drop(line.remove(at)),
                    2 => line.truncate(at),
                    _ => line.insert(at, 0),
                }
            }
        }
        let [to_guest, to_host] = lines;
        for part in to_guest.chunks(9000) {
            self.guest
                .receive(part, self.now, &mut self.sim)
                .expect("the host keeps the protocol");
        }
        for ticket in std::mem::take(&mut self.sim.setups) {
            self.guest.complete(ticket, Ok(Reply::Done), &mut self.sim);
        }
        self.run_guest();
        for part in to_host.chunks(7000) {
            if self.host.receive(part, self.now).is_err() {
                // Only a serial line may do that: the other end was restarted.
                assert_eq!(self.kind, CarrierKind::Serial);
                self.connect();
                break;
            }
            self.run_host();
        }
        moved
    }

    fn run_guest(&mut self) {
        while let Some(ready) = self.guest.next_ready() {
            let Ready::Input(process) = ready else {
                continue;
            };
            let read = self.read.entry(process).or_default();
            loop {
                match self.guest.input(process) {
                    Input::Data(data) => {
                        let n = data.len();
                        read.0.extend_from_slice(data);
                        self.guest.input_taken(process, n);
                    }
                    Input::Empty => break,
                    Input::End => {
                        read.1 = true;
                        break;
                    }
                }
            }
        }
        for process in std::mem::take(&mut self.sim.started) {
            self.exited.insert(process, false);
        }
        for (process, exited) in &mut self.exited {
            let (total, written) = self.plan.get_mut(process).expect("planned");
            loop {
                let room = self.guest.output_room(*process, Output::Stdout);
                let n = room.len().min((*total - *written) as usize);
                if n == 0 {
                    break;
                }
                for (i, byte) in room[..n].iter_mut().enumerate() {
                    *byte = pattern(*process, *written + i as u64);
                }
                *written += n as u64;
                self.guest.output_filled(*process, Output::Stdout, n);
            }
            if *written == *total && !*exited {
                *exited = true;
                self.guest.output_ended(*process, Output::Stdout);
                self.guest.output_ended(*process, Output::Stderr);
                let status = ExitStatus::Code(process.0 as u8);
                self.guest.exited(
                    *process,
                    Exit {
                        status,
                        oom_killed: false,
                        unix_nanos: 1,
                    },
                );
            }
        }
    }

    fn run_host(&mut self) {
        while let Some(event) = self.host.next_event() {
            match event {
                HostEvent::Output {
                    process,
                    output,
                    offset,
                    data,
                } => {
                    let stored = self.stored.entry(process).or_default();
                    let stream = match output {
                        Output::Stdout => &mut stored.stdout,
                        Output::Stderr => &mut stored.stderr,
                    };
                    assert_eq!(
                        stream.len() as u64,
                        offset,
                        "a gap or a repetition reached the host"
                    );
                    stream.extend_from_slice(&data);
                    self.lag.push((process, output, offset + data.len() as u64));
                }
                HostEvent::OutputEnd {
                    process,
                    output,
                    offset,
                } => {
                    let stored = self.stored.entry(process).or_default();
                    let (stream, ended) = match output {
                        Output::Stdout => (&stored.stdout, &mut stored.ended[0]),
                        Output::Stderr => (&stored.stderr, &mut stored.ended[1]),
                    };
                    assert_eq!(stream.len() as u64, offset);
                    *ended = true;
                }
                HostEvent::Exited { process, exit } => {
                    self.stored.entry(process).or_default().exit = Some(exit);
                }
                HostEvent::Reply { id, result } => {
                    assert!(
                        self.replies.insert(id, result).is_none(),
                        "a request was answered twice"
                    );
                }
                HostEvent::Gap { .. } => panic!("bytes were lost"),
                HostEvent::Refused(refusal) => panic!("{refusal}"),
                _ => {}
            }
        }
    }

    fn acknowledge(&mut self) {
        for (process, output, offset) in self.lag.drain(..) {
            self.host.stored(process, output, offset);
        }
    }

    fn start(&mut self, total: u64) -> ProcessId {
        let process = ProcessId(self.plan.len() as u32);
        self.plan.insert(process, (total, 0));
        self.stored.entry(process).or_default();
        // Every other one reads or writes files: to the session it is a process like any.
        let request = match process.0 % 2 {
            0 => Request::Start {
                process,
                spec: spec(),
            },
            _ => write_files(process),
        };
        self.host.request(request).expect("room for a request");
        process
    }

    /// Runs until nothing moves and no timer is left that could move anything.
    fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..100_000 {
            self.acknowledge();
            if self.turn() {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > 2 {
                match [self.host.timeout(), self.guest.timeout()]
                    .into_iter()
                    .flatten()
                    .min()
                {
                    Some(next) => self.now = next.max(self.now.plus(1)),
                    None => return,
                }
            }
        }
        panic!("never settles");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Start(u64),
    Input(u32, usize),
    EndInput(u32),
    Turns(u8),
    Acknowledge,
    Break,
    Kill,
    Ask,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            (0u64..400_000).prop_map(Step::Start),
            (0u32..6, 0usize..30_000).prop_map(|(p, n)| Step::Input(p, n)),
            (0u32..6).prop_map(Step::EndInput),
            (1u8..6).prop_map(Step::Turns),
            Just(Step::Acknowledge),
            Just(Step::Break),
            Just(Step::Kill),
            Just(Step::Ask),
        ],
        1..40,
    )
}

fn run(kind: CarrierKind, steps: Vec<Step>, damage: Vec<(bool, u8, usize)>) {
    let mut world = World::new(kind);
    world.damage = damage;
    world.host.request(Request::Setup(setup())).unwrap();
    world.settle();
    let mut written: BTreeMap<ProcessId, Vec<u8>> = BTreeMap::new();
    let mut killed = false;
    for step in steps {
        match step {
            Step::Input(..) | Step::EndInput(_) if killed => {}
            Step::Start(total) => drop(world.start(total)),
            Step::Input(process, n) => {
                let process = ProcessId(process);
                let sent = written.entry(process).or_default();
                let data: Vec<u8> = (0..n)
                    .map(|i| pattern(process, (sent.len() + i) as u64))
                    .collect();
                if world.plan.contains_key(&process) {
                    let n = world.host.write_input(process, &data);
                    sent.extend_from_slice(&data[..n]);
                }
            }
            Step::EndInput(process) => world.host.end_input(ProcessId(process)),
            Step::Turns(n) => (0..n).for_each(|_| {
                world.turn();
            }),
            Step::Acknowledge => world.acknowledge(),
            Step::Break => world.connect(),
            Step::Kill => {
                // A new controller asks again for what it has no answer to; the guest says Exists.
                let missing: Vec<ProcessId> = world
                    .plan
                    .keys()
                    .filter(|p| !world.exited.contains_key(p))
                    .copied()
                    .collect();
                world.new_controller();
                world.replies.clear();
                for process in missing {
                    world
                        .host
                        .request(Request::Start {
                            process,
                            spec: spec(),
                        })
                        .unwrap();
                }
                // What the old controller had queued as input died with it.
                for (process, sent) in &mut written {
                    let had = world.read.get(process).map_or(0, |(read, _)| read.len());
                    sent.truncate(had);
                }
                killed = true;
            }
            Step::Ask => drop(world.host.request(Request::Statistics).unwrap()),
        }
    }
    world.settle();
    for (process, (total, _)) in &world.plan {
        let stored = &world.stored[process];
        assert_eq!(
            stored.stdout.len() as u64,
            *total,
            "process {process:?} has all its output"
        );
        assert!(
            stored
                .stdout
                .iter()
                .enumerate()
                .all(|(i, b)| *b == pattern(*process, i as u64))
        );
        assert_eq!(
            stored.exit.map(|e| e.status),
            Some(ExitStatus::Code(process.0 as u8))
        );
        assert_eq!(stored.ended, [true, true]);
    }
    for (process, (read, _)) in &world.read {
        // A process that ended stops reading, and a killed controller's last words may have
        // arrived or not; what was read is right.
        if let Some(written) = written.get(process) {
            assert!(read.starts_with(written) || written.starts_with(read));
        }
        assert!(
            read.iter()
                .enumerate()
                .all(|(i, b)| *b == pattern(*process, i as u64))
        );
    }
    assert!(world.host.request(Request::Statistics).is_ok());
    world.settle();
    assert!(world.guest.is_flushed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled_on_a_stream(steps in steps()) {
        run(CarrierKind::Stream, steps, vec![]);
    }

    #[test]
    fn nothing_is_lost_or_doubled_on_a_line_that_lies(
        steps in steps(),
        damage in prop::collection::vec((any::<bool>(), 0u8..4, any::<usize>()), 0..80),
    ) {
        run(CarrierKind::Serial, steps, damage);
    }

    #[test]
    fn a_hostile_peer_harms_nobody(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        for kind in [CarrierKind::Stream, CarrierKind::Serial] {
            let mut world = World::new(kind);
            world.host.request(Request::Setup(setup())).unwrap();
            world.settle();
            let _ = world.guest.receive(&bytes, world.now, &mut world.sim);
            let _ = world.host.receive(&bytes, world.now);
            // And what decodes: the same bytes as the body of good frames.
            let mut nonce = [world.nonce; 16];
            nonce[15] = 0xa5;
            let mut framed = Vec::new();
            for body in bytes.chunks(40) {
                use tether_wire::frame::{Direction, write_frame};
                write_frame(&nonce, Direction::ToHost, &mut framed, |out| out.extend_from_slice(body));
                write_frame(&nonce, Direction::ToGuest, &mut framed, |out| out.extend_from_slice(body));
            }
            let _ = world.guest.receive(&framed, world.now, &mut world.sim);
            let _ = world.host.receive(&framed, world.now);
            world.new_controller();
            let process = world.start(1000);
            world.settle();
            assert_eq!(world.stored[&process].stdout.len(), 1000);
        }
    }
}

#[test]
fn a_start_waits_for_the_setup() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let process = world.start(10);
    world.settle();
    assert_eq!(world.stored[&process].stdout.len(), 10);
}

#[test]
fn a_start_before_any_setup_is_refused() {
    let mut world = World::new(CarrierKind::Stream);
    world.start(10);
    world.settle();
    assert!(matches!(&world.replies[&RequestId(0)], Err(error) if error.kind == ErrorKind::Busy));
}

#[test]
fn files_wait_for_the_setup_as_a_start_does() {
    let mut world = World::new(CarrierKind::Stream);
    let process = ProcessId(1);
    world.plan.insert(process, (10, 0));
    world.host.request(write_files(process)).unwrap();
    world.settle();
    assert!(matches!(&world.replies[&RequestId(0)], Err(error) if error.kind == ErrorKind::Busy));
    world.host.request(Request::Setup(setup())).unwrap();
    world.host.request(write_files(process)).unwrap();
    world.host.request(write_files(process)).unwrap();
    world.settle();
    assert_eq!(
        world.replies[&RequestId(2)],
        Ok(Reply::Started(Started { pid: 101 }))
    );
    assert!(matches!(&world.replies[&RequestId(3)], Err(error) if error.kind == ErrorKind::Exists));
    assert_eq!(world.stored[&process].stdout.len(), 10);
}

#[test]
fn only_an_operation_that_reads_input_is_given_any() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let (list, write) = (ProcessId(1), ProcessId(3));
    for process in [list, write] {
        // More than anybody stores: they stay.
        world.plan.insert(process, (50_000_000, 0));
    }
    world.host.request(write_files(write)).unwrap();
    world
        .host
        .request(Request::Files {
            process: list,
            operation: FileOperation::List {
                path: b"/".to_vec(),
                boundary: Boundary::FileSystem,
            },
        })
        .unwrap();
    for _ in 0..100 {
        world.turn();
    }
    for process in [list, write] {
        world.host.write_input(process, b"record");
    }
    for _ in 0..100 {
        world.turn();
    }
    assert_eq!(world.read[&write].0, b"record");
    assert!(!world.read.contains_key(&list));
}

#[test]
fn files_that_cannot_be_reached_leave_no_record() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    for _ in 0..2 {
        let path = b"/".to_vec();
        let operation = FileOperation::Stat { path };
        let process = ProcessId(1);
        world
            .host
            .request(Request::Files { process, operation })
            .unwrap();
        world.settle();
    }
    for id in [1, 2] {
        let reply = &world.replies[&RequestId(id)];
        assert!(matches!(reply, Err(error) if error.message == "no root"));
    }
}

#[test]
fn a_program_that_is_not_there_leaves_no_record() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let spec = ProcessSpec {
        argv: vec![],
        ..spec()
    };
    for id in 0..3000 {
        world
            .host
            .request(Request::Start {
                process: ProcessId(id),
                spec: spec.clone(),
            })
            .unwrap();
        world.settle();
    }
    assert!(
        world
            .replies
            .values()
            .skip(1)
            .all(|r| matches!(r, Err(e) if e.kind == ErrorKind::NotFound))
    );
}

#[test]
fn a_stream_nobody_stores_stops_and_delays_no_other() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let stalled = world.start(50_000_000);
    let lively = world.start(5_000_000);
    for _ in 0..3000 {
        let lag = std::mem::take(&mut world.lag);
        for (process, output, offset) in lag {
            if process == lively {
                world.host.stored(process, output, offset);
            }
        }
        world.turn();
    }
    assert_eq!(world.stored[&lively].stdout.len(), 5_000_000);
    let stuck = world.stored[&stalled].stdout.len() as u64;
    assert!(stuck > 0 && stuck <= OUTPUT_WINDOW, "{stuck}");
}

#[test]
fn an_acknowledgement_waits_a_moment_for_more_to_say_and_then_goes() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    // Its process is started, and neither writes its last byte nor ends.
    let process = world.start(100_000);
    let write = |world: &mut World, n: usize| {
        world.guest.output_room(process, Output::Stdout)[..n].fill(7);
        world.guest.output_filled(process, Output::Stdout, n);
        let mut line = Vec::new();
        world.guest.transmit(world.now, &mut line);
        world.host.receive(&line, world.now).unwrap();
        while world.host.next_event().is_some() {}
    };
    let said = |world: &mut World| {
        let mut line = Vec::new();
        world.host.transmit(world.now, &mut line);
        world
            .guest
            .receive(&line, world.now, &mut world.sim)
            .unwrap();
        !line.is_empty()
    };
    for _ in 0..20 {
        let mut line = Vec::new();
        world.host.transmit(world.now, &mut line);
        world
            .guest
            .receive(&line, world.now, &mut world.sim)
            .unwrap();
        for ticket in std::mem::take(&mut world.sim.setups) {
            world
                .guest
                .complete(ticket, Ok(Reply::Done), &mut world.sim);
        }
        line.clear();
        world.guest.transmit(world.now, &mut line);
        world.host.receive(&line, world.now).unwrap();
        while world.host.next_event().is_some() {}
    }
    assert_eq!(world.sim.started, [process]);
    write(&mut world, 100);
    world.host.stored(process, Output::Stdout, 100);
    assert!(!said(&mut world));
    let at = world.host.timeout().expect("it is not forgotten");
    write(&mut world, 100);
    world.host.stored(process, Output::Stdout, 200);
    assert!(!said(&mut world));
    assert_eq!(world.host.timeout(), Some(at));
    world.now = at;
    assert!(said(&mut world));
    assert_eq!(world.host.timeout(), None);
}

#[test]
fn a_wrong_key_is_refused_by_name() {
    let mut guest = GuestSession::new(CarrierKind::Stream, ChannelKey([1; 32]), [9; 16]);
    let mut host = HostSession::new(CarrierKind::Stream, KEY, [1; 16]);
    let mut sim = Sim::default();
    guest.connected();
    host.connected([3; 16]);
    for _ in 0..4 {
        let mut line = Vec::new();
        host.transmit(Time(0), &mut line);
        guest.receive(&line, Time(0), &mut sim).unwrap();
        line.clear();
        guest.transmit(Time(0), &mut line);
        host.receive(&line, Time(0)).unwrap();
    }
    assert_eq!(host.next_event(), Some(HostEvent::Refused(Refusal::Key)));
    assert!(!guest.is_open());
}

#[test]
fn a_host_without_the_key_gets_nothing_done() {
    // It does not check the guest's proof, and sends a proof and a request of its own making.
    use tether_wire::frame::{Direction, write_frame, write_preamble};
    let mut guest = GuestSession::new(CarrierKind::Stream, KEY, [9; 16]);
    let mut sim = Sim::default();
    guest.connected();
    let nonce = [5; 16];
    let mut line = Vec::new();
    write_preamble(&nonce, &mut line);
    let mut hello = vec![0xfe, 1, 1];
    hello.extend([1; 16]);
    let mut proof = vec![0xfd];
    proof.extend([0; 32]);
    let request = postcard::to_allocvec(&ToGuest::Request {
        id: RequestId(0),
        settled: RequestId(0),
        request: Request::Setup(setup()),
    })
    .unwrap();
    for body in [&hello, &proof, &request] {
        write_frame(&nonce, Direction::ToGuest, &mut line, |out| {
            out.extend_from_slice(body)
        });
    }
    guest.receive(&line, Time(0), &mut sim).unwrap();
    assert!(sim.setups.is_empty() && !guest.is_open());
}

#[test]
fn versions_without_overlap_are_refused_by_name() {
    use tether_wire::frame::{Direction, Found, FrameReader, write_frame, write_preamble};
    let mut guest = GuestSession::new(CarrierKind::Stream, KEY, [9; 16]);
    guest.connected();
    let nonce = [5; 16];
    let mut line = Vec::new();
    write_preamble(&nonce, &mut line);
    let mut hello = vec![0xfe, VERSION_MAX as u8 + 1, VERSION_MAX as u8 + 4];
    hello.extend([1; 16]);
    write_frame(&nonce, Direction::ToGuest, &mut line, |out| {
        out.extend_from_slice(&hello)
    });
    guest.receive(&line, Time(0), &mut Sim::default()).unwrap();
    let mut answer = Vec::new();
    guest.transmit(Time(0), &mut answer);
    let mut reader = FrameReader::host(nonce);
    reader.push(&answer);
    assert_eq!(reader.next(), Some(Found::Preamble(nonce)));
    // Refused(Version { min: 1, max: VERSION_MAX })
    let refused = [0xfe, 1, 0, 1, VERSION_MAX as u8];
    assert_eq!(reader.next(), Some(Found::Frame(&refused)));
}

#[test]
fn a_start_that_fails_after_its_controller_died_ends_for_the_next_one() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let (process, missing) = (
        ProcessId(7),
        ProcessSpec {
            argv: vec![],
            ..spec()
        },
    );
    world
        .host
        .request(Request::Start {
            process,
            spec: missing,
        })
        .unwrap();
    for _ in 0..3 {
        let mut lines = [Vec::new(), Vec::new()];
        world.host.transmit(world.now, &mut lines[0]);
        world.guest.transmit(world.now, &mut lines[1]);
        world
            .guest
            .receive(&lines[0], world.now, &mut world.sim)
            .unwrap();
        world.host.receive(&lines[1], world.now).unwrap();
    }
    // The setup is still under way, and the start waits for it, when the controller is killed.
    let tickets = std::mem::take(&mut world.sim.setups);
    world.new_controller();
    for _ in 0..3 {
        world.turn();
    }
    for ticket in tickets {
        world
            .guest
            .complete(ticket, Ok(Reply::Done), &mut world.sim);
    }
    world.settle();
    let stored = &world.stored[&process];
    assert_eq!(
        stored.exit.map(|exit| exit.status),
        Some(ExitStatus::Code(127))
    );
    assert_eq!(stored.ended, [true, true]);
}

#[test]
fn a_reboot_cancels_what_was_asked_and_says_so() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    world.settle();
    world.host.request(Request::Statistics).unwrap();
    let mut lost = Vec::new();
    world.host.transmit(world.now, &mut lost);
    world.guest = GuestSession::new(CarrierKind::Stream, KEY, [10; 16]);
    world.connect();
    let mut rebooted = false;
    for _ in 0..6 {
        let mut line = Vec::new();
        world.host.transmit(world.now, &mut line);
        world
            .guest
            .receive(&line, world.now, &mut world.sim)
            .unwrap();
        line.clear();
        world.guest.transmit(world.now, &mut line);
        world.host.receive(&line, world.now).unwrap();
        while let Some(event) = world.host.next_event() {
            match event {
                HostEvent::Resumed {
                    rebooted: again, ..
                } => rebooted = again,
                HostEvent::Reply { id, result } => {
                    assert_eq!(id, RequestId(1));
                    assert!(matches!(result, Err(error) if error.kind == ErrorKind::Cancelled));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(rebooted);
}

#[test]
fn a_new_controller_writes_input_after_what_the_old_one_sent() {
    let mut world = World::new(CarrierKind::Stream);
    world.host.request(Request::Setup(setup())).unwrap();
    let process = world.start(u64::from(u32::MAX));
    world.host.write_input(process, b"old ");
    for _ in 0..5 {
        world.turn();
    }
    world.new_controller();
    world.host.write_input(process, b"new");
    world.host.end_input(process);
    for _ in 0..5 {
        world.turn();
    }
    assert_eq!(world.read[&process], (b"old new".to_vec(), true));
}
