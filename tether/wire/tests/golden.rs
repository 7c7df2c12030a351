//! The bytes of protocol version 1. **Do not change this test**: a program that speaks version 1 is
//! out there. What is new comes as new variants at the end, with lines of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tether_wire::frame::{Direction, write_frame, write_preamble};
use tether_wire::message::*;
use tether_wire::serial::Serial;
use tether_wire::{Time, handshake};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
fn check<T>(message: &T, expected: &str)
where
    T: serde::Serialize + for<'a> serde::Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    let bytes = postcard::to_allocvec(message).unwrap();
    assert_eq!(hex(&bytes), expected, "{message:?}");
    let bytes: &'static [u8] = bytes.leak();
    assert_eq!(&postcard::from_bytes::<T>(bytes).unwrap(), message);
}

#[track_caller]
fn to_guest(message: ToGuest<'_>, expected: &str) {
    let bytes = postcard::to_allocvec(&message).unwrap();
    assert_eq!(hex(&bytes), expected, "{message:?}");
    assert_eq!(
        postcard::from_bytes::<ToGuest<'_>>(&bytes).unwrap(),
        message
    );
}

#[track_caller]
fn to_host(message: ToHost<'_>, expected: &str) {
    let bytes = postcard::to_allocvec(&message).unwrap();
    assert_eq!(hex(&bytes), expected, "{message:?}");
    assert_eq!(postcard::from_bytes::<ToHost<'_>>(&bytes).unwrap(), message);
}

fn request(request: Request, expected: &str) {
    to_guest(
        ToGuest::Request {
            id: RequestId(300),
            settled: RequestId(2),
            request,
        },
        expected,
    );
}

const P: ProcessId = ProcessId(5);

#[test]
fn requests() {
    request(
        Request::Setup(Setup {
            identity: Identity {
                hostname: "web".into(),
                domainname: "d".into(),
                machine_id: [1; 16],
                seed: [2; 32],
                unix_nanos: 1_700_000_000_000_000_000,
            },
            root: Root {
                disk: DiskId::Serial("root".into()),
                read_only: true,
            },
            mounts: vec![
                Mount {
                    target: "/data".into(),
                    source: MountSource::Disk {
                        disk: DiskId::Label("vol".into()),
                        populate: true,
                    },
                    read_only: false,
                },
                Mount {
                    target: "/tmp".into(),
                    source: MountSource::Tmpfs {
                        size: 65536,
                        mode: 0o1777,
                        options: "noexec".into(),
                    },
                    read_only: false,
                },
            ],
            network: Network {
                interfaces: vec![
                    Interface {
                        mac: MacAddress([2, 0, 0, 0, 0, 1]),
                        name: "eth0".into(),
                        mtu: 1500,
                        addressing: InterfaceAddressing::Static {
                            addresses: vec![Address {
                                address: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)),
                                prefix: 24,
                            }],
                            routes: vec![Route {
                                destination: Address {
                                    address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                                    prefix: 0,
                                },
                                gateway: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
                            }],
                        },
                    },
                    Interface {
                        mac: MacAddress([2, 0, 0, 0, 0, 2]),
                        name: "eth1".into(),
                        mtu: 0,
                        addressing: InterfaceAddressing::Dhcp,
                    },
                ],
                dns: Dns {
                    servers: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3))],
                    search: vec!["s".into()],
                    options: vec!["ndots:1".into()],
                },
                hosts: vec![HostsEntry {
                    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    names: vec!["a".into(), "b".into()],
                }],
            },
            deadline_ms: 30_000,
        }),
        "00ac0202000377656201640101010101010101010101010101010102020202020202020202020202020202020202020202020202020202020202028080a8b1e39fe7cb170004726f6f740102052f64617461000103766f6c0100042f746d7001808004ff07066e6f6578656300020200000000010465746830dc0b0001000a00020f18010100000000000000000000000000000000000101000000000000000000000000000000010200000000020465746831000101000a00020301017301076e646f74733a3101007f0000010201610162b0ea01",
    );
    request(
        Request::Start {
            process: P,
            spec: ProcessSpec {
                argv: vec!["sh".into(), "-c".into()],
                env: vec!["A=1".into()],
                cwd: "/".into(),
                user: User {
                    user: "u:g".into(),
                    groups: vec!["7".into()],
                },
                stdio: Stdio::Terminal {
                    size: TerminalSize {
                        rows: 24,
                        columns: 80,
                    },
                    stdin: true,
                },
                limits: vec![ResourceLimit {
                    resource: 7,
                    soft: 1024,
                    hard: u64::MAX,
                }],
                role: Role::Main {
                    pid_namespace: PidNamespace::Private,
                    init: true,
                },
            },
        },
        "00ac0202010502027368022d630103413d31012f03753a670101370118500101078008ffffffffffffffffff01000001",
    );
    request(
        Request::Start {
            process: P,
            spec: ProcessSpec {
                argv: vec!["x".into()],
                env: vec![],
                cwd: String::new(),
                user: User::default(),
                stdio: Stdio::Pipes { stdin: true },
                limits: vec![],
                role: Role::Exec,
            },
        },
        "00ac020201050101780000000000010001",
    );
    request(
        Request::Start {
            process: P,
            spec: ProcessSpec {
                argv: vec![],
                env: vec![],
                cwd: String::new(),
                user: User::default(),
                stdio: Stdio::Pipes { stdin: false },
                limits: vec![],
                role: Role::Main {
                    pid_namespace: PidNamespace::Machine,
                    init: false,
                },
            },
        },
        "00ac020201050000000000000000000100",
    );
    request(
        Request::Signal {
            process: P,
            signal: 15,
            target: SignalTarget::Process,
        },
        "00ac020202050f00",
    );
    request(
        Request::Signal {
            process: P,
            signal: 9,
            target: SignalTarget::Group,
        },
        "00ac020202050901",
    );
    request(
        Request::Resize {
            process: P,
            size: TerminalSize {
                rows: 50,
                columns: 132,
            },
        },
        "00ac02020305328401",
    );
    request(Request::Forget { process: P }, "00ac02020405");
    request(Request::Processes { after: 77 }, "00ac0202054d");
    request(Request::Statistics, "00ac020206");
    request(Request::SetClock { unix_nanos: 9 }, "00ac02020709");
    request(
        Request::Shutdown(ShutdownSpec {
            signal: 15,
            grace_ms: 10_000,
            action: Action::PowerOff,
        }),
        "00ac0202080f904e00",
    );
    request(
        Request::Shutdown(ShutdownSpec {
            signal: 3,
            grace_ms: 0,
            action: Action::Reboot,
        }),
        "00ac020208030001",
    );
    request(
        Request::Mount(Mount {
            target: "/m".into(),
            source: MountSource::Disk {
                disk: DiskId::Serial("v".into()),
                populate: false,
            },
            read_only: true,
        }),
        "00ac020209022f6d000001760001",
    );
    request(Request::Network(Network::default()), "00ac02020a0000000000");
}

#[test]
fn requests_of_version_2() {
    request(Request::Freeze { hold_ms: 300 }, "00ac02020cac02");
    request(Request::Thaw { unix_nanos: 9 }, "00ac02020d09");
    let rebirth = Rebirth {
        identity: Identity {
            hostname: "h".into(),
            domainname: String::new(),
            machine_id: [1; 16],
            seed: [2; 32],
            unix_nanos: 3,
        },
        network: Network::default(),
        signal: 10,
    };
    let expected = format!(
        "00ac02020e016800{}{}0300000000000a",
        "01".repeat(16),
        "02".repeat(32)
    );
    request(Request::Rebirth(rebirth), &expected);
}

#[test]
fn requests_of_version_3() {
    let claim = Claim {
        uuid: [3; 16],
        macs: vec![MacAddress([2, 0, 0, 0, 0, 1])],
    };
    let expected = format!("00ac02020f{}01020000000001", "03".repeat(16));
    request(Request::Claim(claim), &expected);
}

#[test]
fn requests_of_version_4() {
    request(Request::Rehearse, "00ac020210");
}

#[test]
fn requests_about_files() {
    let files = |operation, expected| {
        let process = P;
        request(Request::Files { process, operation }, expected);
    };
    files(
        FileOperation::Stat {
            path: b"/a".to_vec(),
        },
        "00ac02020b0500022f61",
    );
    files(
        FileOperation::Read {
            path: b"/".to_vec(),
            boundary: Boundary::FileSystem,
        },
        "00ac02020b0501012f00",
    );
    files(
        FileOperation::List {
            path: vec![b'/', 0xff],
            boundary: Boundary::Volumes,
        },
        "00ac02020b0502022fff01",
    );
    files(
        FileOperation::Write {
            path: b"/".to_vec(),
            conflicts: Conflicts::Replace,
            owners: Owners::Recorded,
        },
        "00ac02020b0503012f0000",
    );
    files(
        FileOperation::Write {
            path: b"/".to_vec(),
            conflicts: Conflicts::KeepKind,
            owners: Owners::All(User {
                user: "u".into(),
                groups: vec![],
            }),
        },
        "00ac02020b0503012f0101017500",
    );
}

#[test]
fn the_rest_of_what_the_host_says() {
    to_guest(
        ToGuest::Input {
            process: P,
            offset: 128,
            data: b"hi",
        },
        "01058001026869",
    );
    to_guest(
        ToGuest::InputEnd {
            process: P,
            offset: 130,
        },
        "02058201",
    );
    to_guest(
        ToGuest::Ack {
            process: P,
            output: Output::Stdout,
            stored: 1,
            limit: 262_145,
        },
        "03050001818010",
    );
    to_guest(
        ToGuest::Ack {
            process: P,
            output: Output::Stderr,
            stored: 0,
            limit: 1,
        },
        "0305010001",
    );
    to_guest(ToGuest::Ping { token: 6 }, "0406");
    to_guest(
        ToGuest::Settled {
            below: RequestId(9),
        },
        "0509",
    );
}

#[test]
fn what_the_guest_says() {
    to_host(
        ToHost::Resume {
            setup: None,
            processes: vec![
                ProcessState {
                    process: P,
                    run: RunState::Starting,
                    input: InputState {
                        received: 3,
                        taken: 2,
                        limit: 16_384,
                        ended: true,
                    },
                    stdout: OutputState {
                        stored: 1,
                        produced: 2,
                        ended: false,
                    },
                    stderr: OutputState {
                        stored: 0,
                        produced: 0,
                        ended: true,
                    },
                },
                ProcessState {
                    process: P,
                    run: RunState::Running { pid: 200 },
                    input: InputState {
                        received: 3,
                        taken: 2,
                        limit: 16_384,
                        ended: true,
                    },
                    stdout: OutputState {
                        stored: 1,
                        produced: 2,
                        ended: false,
                    },
                    stderr: OutputState {
                        stored: 0,
                        produced: 0,
                        ended: true,
                    },
                },
                ProcessState {
                    process: P,
                    run: RunState::Exited(Exit {
                        status: ExitStatus::Signal(9),
                        oom_killed: true,
                        unix_nanos: 8,
                    }),
                    input: InputState {
                        received: 3,
                        taken: 2,
                        limit: 16_384,
                        ended: true,
                    },
                    stdout: OutputState {
                        stored: 1,
                        produced: 2,
                        ended: false,
                    },
                    stderr: OutputState {
                        stored: 0,
                        produced: 0,
                        ended: true,
                    },
                },
            ],
        },
        "00000305000302808001010102000000010501c801030280800101010200000001050201090108030280800101010200000001",
    );
    to_host(
        ToHost::Resume {
            setup: Some(Ok(())),
            processes: vec![],
        },
        "00010000",
    );
    to_host(
        ToHost::Resume {
            setup: Some(Err(Error {
                kind: ErrorKind::TimedOut,
                errno: 110,
                message: "no disk".into(),
            })),
            processes: vec![],
        },
        "000101056e076e6f206469736b00",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Ok(Reply::Done),
        },
        "01010000",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Ok(Reply::Started(Started { pid: 40 })),
        },
        "0101000128",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Ok(Reply::Processes(ProcessPage {
                processes: vec![ProcessInfo {
                    pid: 9,
                    parent: 1,
                    container_pid: 2,
                    uid: 0,
                    state: b'S',
                    cpu_ms: 4,
                    started_ms: 5,
                    resident: 6,
                    virtual_size: 7,
                    threads: 8,
                    terminal: 0,
                    command: "sh".into(),
                }],
                more: true,
            })),
        },
        "0101000201090102005304050607080002736801",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Ok(Reply::Statistics(Statistics {
                monotonic_nanos: 1,
                cpu: CpuUsage {
                    container: 2,
                    container_user: 3,
                    container_system: 4,
                    machine: 5,
                    online: 6,
                },
                memory: MemoryUsage {
                    container: 7,
                    container_inactive_file: 8,
                    total: 9,
                    available: 10,
                    tether: 11,
                    oom_kills: 12,
                },
                processes: 13,
                interfaces: vec![InterfaceUsage {
                    name: "eth0".into(),
                    received: 14,
                    received_packets: 15,
                    receive_errors: 16,
                    receive_dropped: 17,
                    sent: 18,
                    sent_packets: 19,
                    send_errors: 20,
                    send_dropped: 21,
                }],
                disks: vec![BlockDeviceUsage {
                    major: 254,
                    minor: 0,
                    read: 22,
                    written: 23,
                    reads: 24,
                    writes: 25,
                }],
            })),
        },
        "010100030102030405060708090a0b0c0d0104657468300e0f10111213141501fe010016171819",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::NotFound,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010002016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::NotExecutable,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010102016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Invalid,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010202016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Exists,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010302016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Busy,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010402016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::TimedOut,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010502016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Unsupported,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010602016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Limit,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010702016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::System,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010802016d",
    );
    to_host(
        ToHost::Reply {
            id: RequestId(1),
            result: Err(Error {
                kind: ErrorKind::Cancelled,
                errno: 2,
                message: "m".into(),
            }),
        },
        "0101010902016d",
    );
    to_host(
        ToHost::Output {
            process: P,
            output: Output::Stderr,
            offset: 70_000,
            data: b"\x00\xff",
        },
        "020501f0a2040200ff",
    );
    to_host(
        ToHost::OutputEnd {
            process: P,
            output: Output::Stdout,
            offset: 70_002,
        },
        "030500f2a204",
    );
    to_host(
        ToHost::InputRoom {
            process: P,
            taken: 5,
            limit: 65_541,
        },
        "040505858004",
    );
    to_host(
        ToHost::Exited {
            process: P,
            exit: Exit {
                status: ExitStatus::Code(42),
                oom_killed: false,
                unix_nanos: 0,
            },
        },
        "0505002a0000",
    );
    to_host(
        ToHost::Exited {
            process: P,
            exit: Exit {
                status: ExitStatus::Signal(9),
                oom_killed: true,
                unix_nanos: 8,
            },
        },
        "050501090108",
    );
    to_host(
        ToHost::Event(MachineEvent::OutOfMemory { process: Some(P) }),
        "06000105",
    );
    to_host(
        ToHost::Event(MachineEvent::Warning {
            message: "w".into(),
        }),
        "06010177",
    );
    to_host(
        ToHost::Event(MachineEvent::Lease {
            interface: "eth0".into(),
            address: Address {
                address: IpAddr::V4(Ipv4Addr::new(192, 168, 0, 9)),
                prefix: 16,
            },
            gateway: None,
        }),
        "0602046574683000c0a800091000",
    );
    to_host(ToHost::Pong { token: 6 }, "0706");
}

#[test]
fn the_handshake() {
    check(
        &handshake::HostHello {
            min: 1,
            max: 1,
            session: [3; 16],
        },
        "010103030303030303030303030303030303",
    );
    check(
        &handshake::GuestHello::Welcome {
            version: 1,
            boot_id: [4; 16],
            nonce: [5; 16],
            proof: [6; 32],
        },
        "000104040404040404040404040404040404050505050505050505050505050505050606060606060606060606060606060606060606060606060606060606060606",
    );
    check(
        &handshake::GuestHello::Refused(handshake::Refusal::Version { min: 1, max: 1 }),
        "01000101",
    );
    check(
        &handshake::GuestHello::Refused(handshake::Refusal::Key),
        "0101",
    );
    check(
        &handshake::HostProof { proof: [7; 32] },
        "0707070707070707070707070707070707070707070707070707070707070707",
    );
}

#[test]
fn frames_and_packets() {
    let nonce = *b"0123456789abcdef";
    let mut out = Vec::new();
    write_preamble(&nonce, &mut out);
    write_frame(&nonce, Direction::ToGuest, &mut out, |out| {
        out.extend_from_slice(b"abc")
    });
    write_frame(&nonce, Direction::ToHost, &mut out, |out| {
        out.extend_from_slice(b"abc")
    });
    assert_eq!(
        hex(&out),
        "ff544554484552313031323334353637383961626364656603000000616263303132330300000061626334353637"
    );
    let mut serial = Serial::host(0x0102_0304);
    serial.write(b"a\0b");
    let mut line = Vec::new();
    serial.transmit(Time(0), 1000, &mut line);
    assert_eq!(
        hex(&line),
        "06010403020101010101010101010101010101010102610662ecade32600"
    );
}
