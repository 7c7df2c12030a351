//! Boots tether in QEMU and drives it through the wire, without the rest of the host side: for
//! working on tether itself.
//!
//! ```text
//! cargo run --example drive -- KERNEL INITRAMFS IMAGE [--channel virtio|vsock|serial] [--volume IMAGE]
//!     [--memory MB] [NAME...]
//! ```
//!
//! Runs the checks whose names contain one of NAME, each in its own machine, and prints what came.

mod machine;

use machine::{Machine, Options, spec};
use std::process::ExitCode;
use std::time::Duration;
use tether_wire::message::{
    Action, Address, DiskId, Dns, ErrorKind, ExitStatus, HostsEntry, Interface,
    InterfaceAddressing, MacAddress, MachineEvent, Mount, MountSource, Network, PidNamespace,
    ProcessId, Reply, Request, ResourceLimit, Role, Route, ShutdownSpec, SignalTarget, Stdio,
    TerminalSize, User,
};

type Check = (&'static str, fn(&Options));

const CHECKS: &[Check] = &[
    ("echo", echo),
    ("statuses", statuses),
    ("first-process", first_process),
    ("stdin", stdin),
    ("terminal", terminal),
    ("execs", execs),
    ("many", many),
    ("orphans", orphans),
    ("init", init),
    ("host-pids", host_pids),
    ("users", users),
    ("files", files),
    ("read-only", read_only),
    ("volume", volume),
    ("absent-disk", absent_disk),
    ("no-channel", no_channel),
    ("network", network),
    ("dhcp", dhcp),
    ("memory", memory),
    ("bulk", bulk),
    ("stalled", stalled),
    ("measures", measures),
    ("shutdown", shutdown),
    ("reconnect", reconnect),
];

fn main() -> ExitCode {
    let (options, names) = Options::from_arguments();
    let mut failed = 0;
    for (name, check) in CHECKS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("== {name}");
        let started = std::time::Instant::now();
        if std::panic::catch_unwind(|| check(&options)).is_err() {
            failed += 1;
            println!("== {name} FAILED");
        } else {
            println!("== {name} passed in {:.1?}", started.elapsed());
        }
    }
    println!("{failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn main_shell(machine: &mut Machine, script: &str) -> machine::Finished {
    machine.run(ProcessId::MAIN, spec(&["sh", "-c", script]), b"")
}

fn echo(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let finished = machine.run(ProcessId::MAIN, spec(&["echo", "hello"]), b"");
    assert_eq!(finished.stdout, b"hello\n");
    assert_eq!(finished.exit.status, ExitStatus::Code(0));
    println!("boot to hello: {:.1?}", machine.age());
    machine.power_off();
}

fn statuses(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    for code in [0, 1, 42] {
        let finished = main_shell(&mut machine, &format!("exit {code}"));
        assert_eq!(finished.exit.status, ExitStatus::Code(code));
        machine.forget(ProcessId::MAIN);
    }
    for (argv, kind) in [
        ("nosuch", ErrorKind::NotFound),
        ("/bin/nosuch", ErrorKind::NotFound),
        ("/bin/text", ErrorKind::NotExecutable),
        ("/bin/noexec", ErrorKind::NotExecutable),
        ("noexec", ErrorKind::NotExecutable),
        ("/etc", ErrorKind::NotExecutable),
        ("", ErrorKind::Invalid),
    ] {
        let error = machine.start(ProcessId::MAIN, spec(&[argv])).unwrap_err();
        println!("{argv:?}: {error}");
        assert_eq!(error.kind, kind, "{argv}: {error}");
    }
    machine
        .start(ProcessId::MAIN, spec(&["sleep", "1000"]))
        .unwrap();
    machine.signal(ProcessId::MAIN, 9, SignalTarget::Process);
    let finished = machine.wait(ProcessId::MAIN);
    assert_eq!(finished.exit.status, ExitStatus::Signal(9));
    machine.forget(ProcessId::MAIN);
    let mut wrong = spec(&["true"]);
    wrong.cwd = "/etc/passwd".into();
    println!("{}", machine.start(ProcessId::MAIN, wrong).unwrap_err());
    let mut wrong = spec(&["true"]);
    wrong.user.user = "nobody".into();
    println!("{}", machine.start(ProcessId::MAIN, wrong).unwrap_err());
    let error = machine.start(ProcessId(1), exec(&["true"])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    machine.power_off();
}

fn exec(argv: &[&str]) -> tether_wire::message::ProcessSpec {
    let mut spec = spec(argv);
    spec.role = Role::Exec;
    spec
}

fn first_process(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let script = "echo $$; ps -o pid,comm; cat /proc/self/mountinfo; ls -la /dev /; cat /proc/self/cgroup; \
                  cat /proc/self/oom_score_adj; ulimit -n; env; grep Sig /proc/self/status; ls -l /proc/self/fd";
    let finished = main_shell(&mut machine, script);
    print!("{}", finished.text());
    assert!(finished.text().starts_with("1\n"));
    assert_eq!(finished.exit.status, ExitStatus::Code(0));
    machine.power_off();
}

fn stdin(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let mut sort = spec(&["sort"]);
    sort.stdio = Stdio::Pipes { stdin: true };
    let finished = machine.run(ProcessId::MAIN, sort, b"b\na\n");
    assert_eq!(finished.stdout, b"a\nb\n");
    machine.forget(ProcessId::MAIN);
    // One that does not read what it is sent.
    let mut deaf = spec(&["sh", "-c", "exec <&-; echo deaf; sleep 1; exit 3"]);
    deaf.stdio = Stdio::Pipes { stdin: true };
    let finished = machine.run(ProcessId::MAIN, deaf, &vec![b'x'; 300_000]);
    assert_eq!(finished.stdout, b"deaf\n");
    assert_eq!(finished.exit.status, ExitStatus::Code(3));
    machine.power_off();
}

fn terminal(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let size = TerminalSize {
        rows: 30,
        columns: 100,
    };
    let stdio = Stdio::Terminal { size, stdin: true };
    let mut shell = spec(&[
        "sh",
        "-c",
        "tty; stty size; ls -l /dev/console /proc/self/fd/0; echo $TERM; cat; echo over",
    ]);
    shell.stdio = stdio;
    let finished = machine.run(ProcessId::MAIN, shell, b"line\npart");
    print!("{}", finished.text());
    assert!(finished.text().contains("/dev/pts/0\r\n30 100\r\n"));
    assert!(finished.text().ends_with("over\r\n"));
    assert_eq!(finished.exit.status, ExitStatus::Code(0));
    machine.forget(ProcessId::MAIN);
    let mut shell = spec(&[
        "sh",
        "-c",
        "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done",
    ]);
    shell.stdio = stdio;
    machine.start(ProcessId::MAIN, shell).unwrap();
    machine.wait_output(ProcessId::MAIN, b"ready");
    let process = ProcessId::MAIN;
    let size = TerminalSize {
        rows: 40,
        columns: 120,
    };
    machine.ask(Request::Resize { process, size }).unwrap();
    machine.wait_output(ProcessId::MAIN, b"40 120");
    // A terminal without input is silent, not at its end.
    let mut silent = exec(&["sh", "-c", "timeout 1 cat; echo $?"]);
    silent.stdio = Stdio::Terminal { size, stdin: false };
    let finished = machine.run(ProcessId(2), silent, b"");
    assert!(finished.text().ends_with("143\r\n"));
    let mut second = exec(&["tty"]);
    second.stdio = stdio;
    let finished = machine.run(ProcessId(1), second, b"");
    assert_eq!(finished.text(), "/dev/pts/1\r\n");
    // ^C reaches the foreground group.
    machine.input(ProcessId::MAIN, b"\x03");
    let finished = machine.wait(ProcessId::MAIN);
    println!("{:?}", finished.exit);
    machine.power_off();
}

fn execs(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    machine
        .start(ProcessId::MAIN, spec(&["sleep", "1000"]))
        .unwrap();
    let started = std::time::Instant::now();
    let numbers = 1..=50u8;
    let mut replies = Vec::new();
    for number in numbers.clone() {
        let script = format!("echo out {number}; echo err {number} >&2; exit {number}");
        let spec = exec(&["sh", "-c", &script]);
        let process = ProcessId(u32::from(number));
        replies.push(machine.send(Request::Start { process, spec }));
    }
    for reply in replies {
        machine.reply(reply).unwrap();
    }
    for number in numbers {
        let finished = machine.wait(ProcessId(u32::from(number)));
        assert_eq!(finished.stdout, format!("out {number}\n").as_bytes());
        assert_eq!(finished.stderr, format!("err {number}\n").as_bytes());
        assert_eq!(finished.exit.status, ExitStatus::Code(number));
        machine.forget(ProcessId(u32::from(number)));
    }
    println!("50 execs: {:.1?}", started.elapsed());
    let finished = machine.run(
        ProcessId(100),
        exec(&[
            "sh",
            "-c",
            "ps -o pid,args; cat /proc/1/comm; ls -l /proc/self/ns; echo $HOSTNAME",
        ]),
        b"",
    );
    print!("{}", finished.text());
    machine.power_off();
}

fn many(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    machine
        .start(ProcessId::MAIN, spec(&["sleep", "100000"]))
        .unwrap();
    let before = machine.statistics();
    let started = std::time::Instant::now();
    let total: u32 = std::env::var("MANY").map_or(2000, |many| many.parse().unwrap());
    for number in 1..=total {
        let text = format!("line {number}");
        let process = ProcessId(number);
        let finished = machine.run(process, exec(&["echo", &text]), b"");
        assert_eq!(finished.text(), format!("{text}\n"));
        assert_eq!(finished.exit.status, ExitStatus::Code(0));
        machine.forget(process);
    }
    let took = started.elapsed();
    println!(
        "{total} execs one after the other: {took:.1?}, {:.2?} each",
        took / total
    );
    let after = machine.statistics();
    println!(
        "tether's memory before {} after {}; available before {} after {}",
        before.memory.tether, after.memory.tether, before.memory.available, after.memory.available
    );
    assert!(after.memory.tether < before.memory.tether + 200_000);
    let finished = machine.run(ProcessId(total + 1), exec(&["ls", "/sys/fs/cgroup"]), b"");
    drop(finished);
    machine.power_off();
}

fn orphans(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let mut main = spec(&[
        "sh",
        "-c",
        "i=0; while [ $i -lt 1000 ]; do (sleep 1 &) ; i=$((i+1)); done; sleep 3; ps | grep -c sleep",
    ]);
    main.role = Role::Main {
        pid_namespace: PidNamespace::Machine,
        init: false,
    };
    let finished = machine.run(ProcessId::MAIN, main, b"");
    println!("{}", finished.text());
    let Reply::Processes(page) = machine.ask(Request::Processes { after: 0 }).unwrap() else {
        panic!("not a page");
    };
    println!("{:?}", page.processes);
    assert!(page.processes.is_empty());
    machine.power_off();
}

fn init(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let with_init = |argv: &[&str]| {
        let mut spec = spec(argv);
        spec.role = Role::Main {
            pid_namespace: PidNamespace::Private,
            init: true,
        };
        spec
    };
    let finished = machine.run(
        ProcessId::MAIN,
        with_init(&["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &); done; sleep 1; ps -o pid,stat,comm; ls -l /proc/1/fd; exit 7"]),
        b"",
    );
    print!("{}", finished.text());
    assert_eq!(finished.exit.status, ExitStatus::Code(7));
    machine.forget(ProcessId::MAIN);
    let script = "trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.1; done";
    machine
        .start(ProcessId::MAIN, with_init(&["sh", "-c", script]))
        .unwrap();
    machine.wait_output(ProcessId::MAIN, b"ready");
    machine.signal(ProcessId::MAIN, 10, SignalTarget::Process);
    let finished = machine.wait(ProcessId::MAIN);
    assert!(finished.text().ends_with("got it\n"));
    assert_eq!(finished.exit.status, ExitStatus::Code(5));
    machine.forget(ProcessId::MAIN);
    let error = machine
        .start(ProcessId::MAIN, with_init(&["nosuch"]))
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let mut shell = with_init(&["sh", "-c", "tty; cat"]);
    let size = TerminalSize {
        rows: 3,
        columns: 10,
    };
    shell.stdio = Stdio::Terminal { size, stdin: true };
    machine.start(ProcessId::MAIN, shell).unwrap();
    machine.wait_output(ProcessId::MAIN, b"/dev/pts/0");
    machine.input(ProcessId::MAIN, b"\x03");
    let finished = machine.wait(ProcessId::MAIN);
    println!("{:?}", finished.exit);
    assert_eq!(finished.exit.status.shell(), 130);
    machine.power_off();
}

fn host_pids(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let mut main = spec(&[
        "sh",
        "-c",
        "cat /proc/1/comm; sleep 1000 & echo $$; exec sleep 1001",
    ]);
    main.role = Role::Main {
        pid_namespace: PidNamespace::Machine,
        init: false,
    };
    machine.start(ProcessId::MAIN, main).unwrap();
    machine.wait_output(ProcessId::MAIN, b"init\n");
    let finished = machine.run(
        ProcessId(1),
        exec(&[
            "sh",
            "-c",
            "ps -o pid,comm | grep -v '\\['; tail -1 /proc/mounts",
        ]),
        b"",
    );
    print!("{}", finished.text());
    machine.signal(ProcessId::MAIN, 15, SignalTarget::Process);
    let finished = machine.wait(ProcessId::MAIN);
    assert_eq!(finished.exit.status, ExitStatus::Signal(15));
    machine.power_off();
}

fn users(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    for (user, groups, expected) in [
        ("", &[][..], "uid=0(root) gid=0(root)"),
        ("app", &[], "uid=1000(app) gid=1001(app) groups=29(audio)"),
        ("1000:29", &["77"], "uid=1000(app) gid=29(audio) groups=77"),
    ] {
        let mut id = spec(&[
            "sh",
            "-c",
            "id; echo $HOME; pwd; echo to stdout > /dev/stdout; umask",
        ]);
        id.user = User {
            user: user.into(),
            groups: groups.iter().map(|&group| String::from(group)).collect(),
        };
        id.cwd = "/work/dir".into();
        let finished = machine.run(ProcessId::MAIN, id, b"");
        print!("{}", finished.text());
        assert!(finished.text().starts_with(expected));
        assert!(finished.text().contains("/work/dir\nto stdout\n"));
        machine.forget(ProcessId::MAIN);
    }
    let mut limited = spec(&["sh", "-c", "ulimit -n; ulimit -c"]);
    limited.limits = vec![ResourceLimit {
        resource: 7,
        soft: 100,
        hard: 200,
    }];
    let finished = machine.run(ProcessId::MAIN, limited, b"");
    print!("{}", finished.text());
    assert!(finished.text().starts_with("100\n"));
    machine.power_off();
}

fn files(options: &Options) {
    let mut machine = Machine::boot(options);
    let mut setup = machine.default_setup();
    setup.network.dns = Dns {
        servers: vec![[9, 9, 9, 9].into()],
        search: vec!["example.org".into()],
        options: vec!["ndots:1".into()],
    };
    setup.network.hosts = vec![HostsEntry {
        address: [10, 1, 1, 1].into(),
        names: vec!["db".into()],
    }];
    setup.mounts = vec![
        Mount {
            target: "/escape/tmpfs".into(),
            source: MountSource::Tmpfs {
                size: 1 << 20,
                mode: 0o1777,
                options: "noexec".into(),
            },
            read_only: false,
        },
        Mount {
            target: "/seed".into(),
            source: MountSource::Tmpfs {
                size: 0,
                mode: 0o700,
                options: String::new(),
            },
            read_only: true,
        },
    ];
    machine.ask(Request::Setup(setup)).unwrap();
    let finished = main_shell(
        &mut machine,
        "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf /etc/machine-id; date; mount; ls -la /etc /evil; touch /seed/x; ls /seed",
    );
    print!(
        "{}{}",
        finished.text(),
        String::from_utf8_lossy(&finished.stderr)
    );
    assert!(finished.text().contains("nameserver 9.9.9.9"));
    assert!(finished.text().contains("10.1.1.1\tdb"));
    assert!(finished.text().contains("/evil/tmpfs"));
    machine.power_off();
}

fn read_only(options: &Options) {
    let mut machine = Machine::boot(options);
    let mut setup = machine.default_setup();
    setup.root.read_only = true;
    setup.mounts = vec![Mount {
        target: "/data".into(),
        source: MountSource::Tmpfs {
            size: 0,
            mode: 0o755,
            options: String::new(),
        },
        read_only: false,
    }];
    machine.ask(Request::Setup(setup)).unwrap();
    let mut main = spec(&[
        "sh",
        "-c",
        "pwd; touch /x || echo refused; touch /data/x && echo data; echo a > /dev/null && echo device; echo x >> /etc/hosts && echo hosts",
    ]);
    main.cwd = "/made/for/it".into();
    let finished = machine.run(ProcessId::MAIN, main, b"");
    assert_eq!(
        finished.text(),
        "/made/for/it\nrefused\ndata\ndevice\nhosts\n"
    );
    machine.power_off();
}

fn volume(options: &Options) {
    let Some(_) = &options.volume else {
        println!("skipped: no --volume");
        return;
    };
    let mut machine = Machine::boot(options);
    let disk = DiskId::Label("volume".into());
    let mut setup = machine.default_setup();
    setup.mounts = vec![Mount {
        target: "/seed".into(),
        source: MountSource::Disk {
            disk: disk.clone(),
            populate: true,
        },
        read_only: false,
    }];
    machine.ask(Request::Setup(setup)).unwrap();
    let script = "ls -la /seed; cat /seed/file; grep seed /proc/mounts; echo more >> /seed/more; exec sleep 1000";
    machine
        .start(ProcessId::MAIN, spec(&["sh", "-c", script]))
        .unwrap();
    machine.wait_output(ProcessId::MAIN, b"ext4 rw");
    assert!(machine.output_so_far(ProcessId::MAIN).contains("seeded"));
    println!("{}", machine.output_so_far(ProcessId::MAIN));
    // The same disk once more, while the container runs.
    let mount = Mount {
        target: "/late/mount".into(),
        source: MountSource::Disk {
            disk,
            populate: false,
        },
        read_only: true,
    };
    machine.ask(Request::Mount(mount)).unwrap();
    let finished = machine.run(
        ProcessId(1),
        exec(&[
            "sh",
            "-c",
            "ls /late/mount; touch /late/mount/x || echo refused; grep late /proc/mounts",
        ]),
        b"",
    );
    print!("{}", finished.text());
    assert!(finished.text().contains("refused"));
    machine.power_off();
}

fn absent_disk(options: &Options) {
    let mut machine = Machine::boot(options);
    let mut setup = machine.default_setup();
    setup.root.disk = DiskId::Serial("nosuch".into());
    setup.deadline_ms = 500;
    let error = machine.ask(Request::Setup(setup)).unwrap_err();
    println!("{error}");
    assert_eq!(error.kind, ErrorKind::NotFound);
    machine.power_off();
}

fn no_channel(options: &Options) {
    let options = options.with("tether.channel=carrier-pigeon:1");
    let console = Machine::boot_to_its_end(&options);
    println!("{console}");
    assert!(console.contains("tether: cannot start: the channel \"carrier-pigeon:1\" is none of"));
    assert!(console.contains("reboot: Power down"));
}

fn vnic(addressing: InterfaceAddressing) -> Network {
    Network {
        interfaces: vec![Interface {
            mac: MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            name: "eth7".into(),
            mtu: 1400,
            addressing,
        }],
        ..Network::default()
    }
}

fn network(options: &Options) {
    let mut machine = Machine::boot(options);
    let mut setup = machine.default_setup();
    let any = Address {
        address: [0, 0, 0, 0].into(),
        prefix: 0,
    };
    let at = |address: &str, prefix| Address {
        address: address.parse().unwrap(),
        prefix,
    };
    setup.network = vnic(InterfaceAddressing::Static {
        addresses: vec![at("10.0.2.15", 24), at("fd00::15", 64)],
        routes: vec![Route {
            destination: any,
            gateway: Some([10, 0, 2, 2].into()),
        }],
    });
    machine.ask(Request::Setup(setup)).unwrap();
    let finished = main_shell(
        &mut machine,
        "ip addr; ip route; ip -6 route; ping -c 1 10.0.2.2; ping -c 1 127.0.0.1; cat /etc/hosts",
    );
    print!("{}", finished.text());
    assert!(finished.text().contains("10.0.2.15/24"));
    assert!(finished.text().contains("default via 10.0.2.2"));
    machine.forget(ProcessId::MAIN);
    let other = vnic(InterfaceAddressing::Static {
        addresses: vec![at("10.0.2.16", 24)],
        routes: vec![],
    });
    machine.ask(Request::Network(other)).unwrap();
    let finished = main_shell(&mut machine, "ip addr; ip route; cat /etc/hosts");
    print!("{}", finished.text());
    assert!(!finished.text().contains("10.0.2.15"));
    assert!(!finished.text().contains("default"));
    machine.power_off();
}

fn dhcp(options: &Options) {
    let mut machine = Machine::boot(options);
    let mut setup = machine.default_setup();
    setup.network = vnic(InterfaceAddressing::Dhcp);
    machine.ask(Request::Setup(setup)).unwrap();
    let finished = main_shell(
        &mut machine,
        "ip addr show eth7; ip route; cat /etc/resolv.conf",
    );
    print!("{}", finished.text());
    assert!(finished.text().contains("10.0.2.15/24"));
    assert!(finished.text().contains("nameserver 10.0.2.3"));
    assert!(
        machine
            .events
            .iter()
            .any(|event| matches!(event, MachineEvent::Lease { .. }))
    );
    machine.power_off();
}

fn memory(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    machine
        .start(ProcessId::MAIN, spec(&["sleep", "1000"]))
        .unwrap();
    let greedy = "x=a; while :; do x=$x$x; done";
    let finished = machine.run(ProcessId(1), exec(&["sh", "-c", greedy]), b"");
    println!("{:?} {:?}", finished.exit, machine.events);
    assert!(finished.exit.oom_killed);
    assert_eq!(finished.exit.status, ExitStatus::Signal(9));
    let process = Some(ProcessId(1));
    assert!(
        machine
            .events
            .contains(&MachineEvent::OutOfMemory { process })
    );
    machine.signal(ProcessId::MAIN, 9, SignalTarget::Process);
    assert!(!machine.wait(ProcessId::MAIN).exit.oom_killed);
    machine.power_off();
}

fn bulk(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let megabytes: usize = std::env::var("BULK").map_or(20, |bulk| bulk.parse().unwrap());
    let bytes = megabytes << 20;
    let script = format!(
        "head -c {bytes} /dev/urandom > /dev/shm/x; sha256sum < /dev/shm/x >&2; cat /dev/shm/x"
    );
    let finished = main_shell(
        &mut machine,
        &format!("mount -o remount,size=200m /dev/shm; {script}"),
    );
    println!("{} bytes out", finished.stdout.len());
    let expected = String::from_utf8_lossy(&finished.stderr[..64]).into_owned();
    assert_eq!(machine::sha256(&finished.stdout), expected);
    machine.forget(ProcessId::MAIN);
    let started = std::time::Instant::now();
    let finished = main_shell(&mut machine, &format!("head -c {bytes} /dev/zero"));
    let rate = finished.stdout.len() as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.1} MB/s out");
    machine.forget(ProcessId::MAIN);
    let data: Vec<u8> = (0..megabytes << 20)
        .map(|i| (i * 7 + (i >> 8) * 13) as u8)
        .collect();
    let mut sum = spec(&["sha256sum"]);
    sum.stdio = Stdio::Pipes { stdin: true };
    let started = std::time::Instant::now();
    let finished = machine.run(ProcessId::MAIN, sum, &data);
    let rate = data.len() as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.1} MB/s in, with sha256sum");
    assert_eq!(&finished.text()[..64], machine::sha256(&data));
    machine.power_off();
}

fn stalled(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    // Nobody stores what the main process writes: it must block, and nobody else.
    machine.hold_back(ProcessId::MAIN);
    machine.start(ProcessId::MAIN, spec(&["yes"])).unwrap();
    machine.wait_output(ProcessId::MAIN, &b"y\n".repeat(30_000));
    for number in 1..20 {
        let finished = machine.run(ProcessId(number), exec(&["echo", "hello"]), b"");
        assert_eq!(finished.text(), "hello\n");
        machine.forget(ProcessId(number));
    }
    let held = machine.output_so_far(ProcessId::MAIN).len();
    println!("{held} bytes came of the stalled stream");
    assert!(held < 1 << 20);
    machine.power_off();
}

fn measures(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    machine
        .start(
            ProcessId::MAIN,
            spec(&[
                "sh",
                "-c",
                "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 1000",
            ]),
        )
        .unwrap();
    let finished = machine.run(ProcessId(1), exec(&["sh", "-c", "sleep 1"]), b"");
    drop(finished);
    println!("{:#?}", machine.statistics());
    println!("{:#?}", machine.ask(Request::Processes { after: 0 }));
    machine.power_off();
}

fn shutdown(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    let script = "trap 'echo stopping; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    machine
        .start(ProcessId::MAIN, spec(&["sh", "-c", script]))
        .unwrap();
    machine.wait_output(ProcessId::MAIN, b"ready");
    let spec_of = |grace_ms| ShutdownSpec {
        signal: 15,
        grace_ms,
        action: Action::PowerOff,
    };
    machine.ask(Request::Shutdown(spec_of(10_000))).unwrap();
    let finished = machine.wait(ProcessId::MAIN);
    assert_eq!(finished.exit.status, ExitStatus::Code(9));
    assert!(finished.text().ends_with("stopping\n"));
    machine.settle_and_expect_off();
    let mut machine = Machine::boot(options);
    machine.set_up();
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    machine
        .start(ProcessId::MAIN, spec(&["sh", "-c", stubborn]))
        .unwrap();
    machine.wait_output(ProcessId::MAIN, b"ready");
    machine.ask(Request::Shutdown(spec_of(500))).unwrap();
    let finished = machine.wait(ProcessId::MAIN);
    assert_eq!(finished.exit.status, ExitStatus::Signal(9));
    machine.settle_and_expect_off();
}

fn reconnect(options: &Options) {
    let mut machine = Machine::boot(options);
    machine.set_up();
    machine
        .start(
            ProcessId::MAIN,
            spec(&[
                "sh",
                "-c",
                "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 4",
            ]),
        )
        .unwrap();
    for _ in 0..5 {
        machine.wait_more(ProcessId::MAIN);
        machine.reconnect(Duration::ZERO);
    }
    let finished = machine.wait(ProcessId::MAIN);
    let expected: String = (0..20000).map(|i| format!("line {i}\n")).collect();
    assert_eq!(finished.text(), expected);
    assert_eq!(finished.exit.status, ExitStatus::Code(4));
    // Without a host tether waits, and does nothing.
    let before = machine.statistics();
    machine.reconnect(Duration::from_secs(3));
    let after = machine.statistics();
    let busy = Duration::from_nanos(after.cpu.machine - before.cpu.machine);
    println!("busy for {busy:.2?} of 3 s");
    assert!(busy < Duration::from_secs(1));
    machine.power_off();
}
