//! What runs in simulated containers, asked over the real wire.

mod controller;

use std::time::Duration;

use controller::{Controller, container, program, running, said, setup, sh, spec};
use hypervisor::fake::Host;
use hypervisor::{ChannelKey, ChannelKind, DiskSource, Hypervisor as _, Metadata, PowerOff};
use tether_wire::message::{
    Action, DiskId, ErrorKind, ExitStatus, HostsEntry, MachineEvent, Mount, MountSource, Output,
    PidNamespace, ProcessId, Reply, Request, Role, ShutdownSpec, SignalTarget, Stdio, TerminalSize,
};

const MAIN: Role = Role::Main {
    pid_namespace: PidNamespace::Private,
    init: false,
};

fn signal(number: u8, process: u32) -> Request {
    Request::Signal {
        process: ProcessId(process),
        signal: number,
        target: SignalTarget::Process,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_outlives_power_and_controller() {
    let host = Host::default();
    let driver = host.open();
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    sh(&mut controller, "echo kept > /data; rm /etc/shadow").await;
    driver.power_off(&id, PowerOff::Cut).await.unwrap();
    drop((controller, driver));

    let driver = host.open();
    driver.power_on(&id).await.unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    let (out, ..) = sh(&mut controller, "cat /data; ls /etc/shadow || echo gone").await;
    assert_eq!(out, "kept\ngone\n");

    let mut other = spec(ChannelKind::Virtio);
    other.disks[0].source = DiskSource::File("another.vmdk".into());
    let key = ChannelKey::from_bytes(controller::KEY);
    let id = driver.create(other, key, Metadata::new()).await.unwrap();
    driver.power_on(&id).await.unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    let (out, ..) = sh(&mut controller, "ls /data 2>/dev/null || echo none").await;
    assert_eq!(out, "none\n");
}

#[tokio::test(start_paused = true)]
async fn programs_that_cannot_start_say_why_as_tether_does() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    sh(
        &mut controller,
        "echo text > /tmp/text; chmod +x /tmp/text; mkdir /tmp/d",
    )
    .await;
    let cases: [(&[&str], ErrorKind, &str); 6] = [
        (
            &["foo"],
            ErrorKind::NotFound,
            "exec: \"foo\": executable file not found in $PATH",
        ),
        (
            &["/bin/foo"],
            ErrorKind::NotFound,
            "exec: \"/bin/foo\": No such file or directory",
        ),
        (
            &["/etc"],
            ErrorKind::NotExecutable,
            "exec: \"/etc\": Permission denied",
        ),
        (
            &["/etc/passwd"],
            ErrorKind::NotExecutable,
            "exec: \"/etc/passwd\": Permission denied",
        ),
        (
            &["/tmp/text"],
            ErrorKind::NotExecutable,
            "exec: \"/tmp/text\": Exec format error",
        ),
        (&[""], ErrorKind::Invalid, "no program is named"),
    ];
    for (argv, kind, message) in cases {
        let error = controller.start(0, argv).await.unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (kind, message),
            "{argv:?}"
        );
    }
    let mut spec = program(&["true"], MAIN);
    spec.user.user = "somebody".into();
    let start = Request::Start {
        process: ProcessId(0),
        spec,
    };
    let error = controller.ask(start).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("no user \"somebody\""), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_process_is_who_and_where_it_was_asked_to_be() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let mut spec = program(
        &[
            "sh",
            "-c",
            "id -u; id -gn; pwd; echo $HOME $TERM $HOSTNAME $A; touch /root/x",
        ],
        MAIN,
    );
    spec.user.user = "nobody:daemon".into();
    spec.cwd = "/srv/deep".into();
    spec.env.push("A=1".into());
    let start = Request::Start {
        process: ProcessId(0),
        spec,
    };
    controller.ask(start).await.unwrap();
    let status = controller.exit(0).await;
    let (out, err, status) = said(&mut controller, 0, status).await;
    assert_eq!(out, "65534\ndaemon\n/srv/deep\n/home test 1\n");
    assert_eq!(err, "touch: /root/x: Permission denied\n");
    assert_eq!(status, ExitStatus::Code(1));
}

#[tokio::test(start_paused = true)]
async fn signals_reach_process_1_only_when_it_handles_them() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let second = Duration::from_secs(1);
    // Without a handler process 1 of a namespace ignores all but SIGKILL.
    controller.start(0, &["sleep", "infinity"]).await.unwrap();
    controller.ask(signal(15, 0)).await.unwrap();
    let waited = tokio::time::timeout(second, controller.exit(0)).await;
    assert!(waited.is_err());
    controller.ask(signal(9, 0)).await.unwrap();
    let status = controller.exit(0).await;
    assert_eq!(
        said(&mut controller, 0, status).await.2,
        ExitStatus::Signal(9)
    );
    // With one it runs it; in the machine's namespace or under init it dies.
    let cases = [
        (
            PidNamespace::Private,
            false,
            "trap 'exit 7' TERM; while :; do sleep 0.1; done",
            ExitStatus::Code(7),
        ),
        (
            PidNamespace::Machine,
            false,
            "sleep infinity",
            ExitStatus::Signal(15),
        ),
        (
            PidNamespace::Private,
            true,
            "sleep infinity",
            ExitStatus::Code(143),
        ),
    ];
    for (pid_namespace, init, script, expected) in cases {
        let role = Role::Main {
            pid_namespace,
            init,
        };
        let start = Request::Start {
            process: ProcessId(0),
            spec: program(&["sh", "-c", script], role),
        };
        controller.ask(start).await.unwrap();
        let _ = tokio::time::timeout(second, controller.until(|_| false)).await;
        controller.ask(signal(15, 0)).await.unwrap();
        let status = controller.exit(0).await;
        assert_eq!(
            said(&mut controller, 0, status).await.2,
            expected,
            "{script}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_exec_sees_and_reaches_the_main_process() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let main = "trap 'echo term; exit 4' TERM; echo hidden > /tmp/f; while :; do sleep 0.1; done";
    controller.start(0, &["sh", "-c", main]).await.unwrap();
    let script = "cat /tmp/f; ps -o pid,args | grep -c '[t]rap'; echo $$ | grep -q '^1$' || echo other; kill -TERM 1";
    tokio::time::sleep(Duration::from_secs(1)).await;
    controller.start(1, &["sh", "-c", script]).await.unwrap();
    assert_eq!(controller.exit(0).await, ExitStatus::Code(4));
    assert_eq!(controller.stdout(0), b"term\n");
    assert!(controller.stdout(1).starts_with(b"hidden\n1\nother\n"));
    for code in 1..=9 {
        controller
            .ask(Request::Forget {
                process: ProcessId(0),
            })
            .await
            .ok();
        controller.exits.remove(&ProcessId(0));
        controller.ended.clear();
        controller.start(0, &["sleep", "infinity"]).await.unwrap();
        let exit = format!("exit {code}");
        controller
            .start(10 + code, &["sh", "-c", &exit])
            .await
            .unwrap();
        let expected = ExitStatus::Code(u8::try_from(code).unwrap());
        assert_eq!(controller.exit(10 + code).await, expected);
        controller.ask(signal(9, 0)).await.unwrap();
        controller.exit(0).await;
    }
}

async fn terminal(controller: &mut Controller, argv: &[&str]) {
    let mut spec = program(argv, MAIN);
    spec.stdio = Stdio::Terminal {
        size: TerminalSize {
            rows: 24,
            columns: 80,
        },
        stdin: true,
    };
    let start = Request::Start {
        process: ProcessId(0),
        spec,
    };
    controller.ask(start).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_terminal_echoes_edits_signals_and_has_a_size() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let has = |text: &'static str| {
        move |c: &Controller| String::from_utf8_lossy(c.stdout(0)).contains(text)
    };
    terminal(&mut controller, &["sh"]).await;
    assert!(controller.until(has("/ # ")).await);
    controller
        .session
        .write_input(ProcessId(0), b"echo a$((1+1)); stty size; tty\r");
    assert!(
        controller
            .until(has("a2\r\n24 80\r\n/dev/pts/0\r\n/ # "))
            .await
    );
    let resize = Request::Resize {
        process: ProcessId(0),
        size: TerminalSize {
            rows: 50,
            columns: 132,
        },
    };
    controller.ask(resize).await.unwrap();
    controller.session.write_input(ProcessId(0), b"stty size\r");
    assert!(controller.until(has("50 132\r\n")).await);
    // ^C ends what is in front, and not the shell.
    controller
        .session
        .write_input(ProcessId(0), b"sleep 1000\r");
    assert!(controller.until(has("sleep 1000\r\n")).await);
    let pause = Duration::from_secs(1);
    let _ = tokio::time::timeout(pause, controller.until(|_| false)).await;
    controller
        .session
        .write_input(ProcessId(0), b"\x03echo after $?\r");
    assert!(controller.until(has("after 130\r\n")).await);
    controller.session.write_input(ProcessId(0), b"exit 3\r");
    assert_eq!(controller.exit_of_terminal(0).await, ExitStatus::Code(3));
    assert!(
        !controller
            .output
            .contains_key(&(ProcessId(0), Output::Stderr))
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_terminals_input_is_typed() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    terminal(&mut controller, &["cat"]).await;
    controller.session.write_input(ProcessId(0), b"line\npart");
    controller.session.end_input(ProcessId(0));
    assert_eq!(controller.exit_of_terminal(0).await, ExitStatus::Code(0));
    let shown = String::from_utf8_lossy(controller.stdout(0)).into_owned();
    assert_eq!(shown.matches("line\r\n").count(), 2, "{shown:?}");
    assert_eq!(shown.matches("part").count(), 2, "{shown:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_asks_first_and_kills_after_its_grace() {
    let driver = Host::default().open();
    for (script, grace, expected) in [
        (
            "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done",
            60_000,
            ExitStatus::Code(0),
        ),
        ("trap '' TERM; sleep infinity", 2_000, ExitStatus::Signal(9)),
    ] {
        let mut controller = container(&driver).await;
        controller.start(0, &["sh", "-c", script]).await.unwrap();
        let pause = Duration::from_secs(1);
        let _ = tokio::time::timeout(pause, controller.until(|_| false)).await;
        let before = tokio::time::Instant::now();
        let shutdown = Request::Shutdown(ShutdownSpec {
            signal: 15,
            grace_ms: grace,
            action: Action::PowerOff,
        });
        controller.ask(shutdown).await.unwrap();
        assert_eq!(controller.exit(0).await, expected);
        let took = before.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert!(expected == ExitStatus::Code(0) || took >= Duration::from_secs(2));
    }
}

#[tokio::test(start_paused = true)]
async fn memory_runs_out_for_the_largest() {
    let driver = Host::default().open();
    for script in [
        "dd if=/dev/zero of=/dev/null bs=1G count=1",
        "tail /dev/zero; exit",
    ] {
        let mut controller = container(&driver).await;
        let (.., status) = sh(&mut controller, script).await;
        let killed = [ExitStatus::Signal(9), ExitStatus::Code(137)];
        assert!(killed.contains(&status), "{script}: {status:?}");
        let told = MachineEvent::OutOfMemory {
            process: Some(ProcessId(0)),
        };
        controller.until(|c| !c.events.is_empty()).await;
        assert_eq!(controller.events, [told], "{script}");
        let Reply::Statistics(measured) = controller.ask(Request::Statistics).await.unwrap() else {
            panic!("no statistics");
        };
        assert_eq!(measured.memory.oom_kills, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_machine_makes_no_progress() {
    let driver = Host::default().open();
    let id = running(&driver, ChannelKind::Virtio).await;
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    controller.set_up().await.unwrap();
    let script = "while :; do echo tick; sleep 1; done";
    controller.start(0, &["sh", "-c", script]).await.unwrap();
    assert!(controller.until(|c| c.stdout(0).len() >= 15).await);
    driver.suspend(&id).await.unwrap();
    let before = controller.stdout(0).len();
    let minute = Duration::from_secs(60);
    let _ = tokio::time::timeout(minute, controller.until(|_| false)).await;
    assert!(controller.stdout(0).len() <= before + 5);
    driver.resume(&id).await.unwrap();
    assert!(controller.until(|c| c.stdout(0).len() >= before + 15).await);
}

#[tokio::test(start_paused = true)]
async fn processes_are_listed_with_both_pids() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let script = "sleep 1000 & sleep 2000";
    controller.start(0, &["sh", "-c", script]).await.unwrap();
    let pause = Duration::from_secs(1);
    let _ = tokio::time::timeout(pause, controller.until(|_| false)).await;
    let Reply::Processes(page) = controller
        .ask(Request::Processes { after: 0 })
        .await
        .unwrap()
    else {
        panic!("no list");
    };
    let commands: Vec<&str> = page.processes.iter().map(|p| p.command.as_str()).collect();
    // The last command of `-c` takes the shell's place.
    assert_eq!(commands, ["sleep 2000", "sleep 1000"]);
    assert_eq!(page.processes[0].container_pid, 1);
    assert_eq!(page.processes[1].parent, page.processes[0].pid);
    assert_ne!(page.processes[0].pid, 1);
    let Reply::Statistics(measured) = controller.ask(Request::Statistics).await.unwrap() else {
        panic!("no statistics");
    };
    assert_eq!(measured.processes, 2);
    assert!(measured.cpu.container > 0 && measured.memory.container > 0);
}

#[tokio::test(start_paused = true)]
async fn mounts_are_where_the_setup_put_them() {
    let driver = Host::default().open();
    let mut machine = spec(ChannelKind::Virtio);
    for name in ["one", "two"] {
        let mut disk = machine.disks[0].clone();
        disk.source = DiskSource::File(format!("{name}.vmdk").into());
        disk.serial = hypervisor::DiskSerial::new(name).unwrap();
        machine.disks.push(disk);
    }
    let key = ChannelKey::from_bytes(controller::KEY);
    let id = driver.create(machine, key, Metadata::new()).await.unwrap();
    driver.power_on(&id).await.unwrap();
    let mut controller = Controller::new(driver.connect_channel(&id).await.unwrap());
    let mut wanted = setup("root");
    wanted.root.read_only = true;
    let volume = |target: &str, disk: &str, populate, read_only| Mount {
        target: target.into(),
        source: MountSource::Disk {
            disk: DiskId::Serial(disk.into()),
            populate,
        },
        read_only,
    };
    wanted.mounts = vec![
        volume("/etc", "one", true, false),
        volume("/made/here", "two", false, true),
        Mount {
            target: "/scratch".into(),
            source: MountSource::Tmpfs {
                size: 4096,
                mode: 0o1777,
                options: String::new(),
            },
            read_only: false,
        },
    ];
    wanted.network.hosts = vec![HostsEntry {
        address: "10.0.0.9".parse().unwrap(),
        names: vec!["db".into()],
    }];
    controller.ask(Request::Setup(wanted)).await.unwrap();
    let script = "touch /x; touch /made/here/x; grep root /etc/passwd; touch /etc/new && echo ok
        stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=1k count=5 status=none
        grep db /etc/hosts; cat /etc/hostname; hostname; echo x > /dev/null; ls /made";
    let (out, err, _) = sh(&mut controller, script).await;
    assert_eq!(
        out,
        "root:x:0:0:root:/root:/bin/sh\nok\n1777\n10.0.0.9\tdb\ntest\ntest\nhere\n"
    );
    assert_eq!(
        err,
        "touch: /x: Read-only file system\ntouch: /made/here/x: Read-only file system\n\
         dd: error writing: No space left on device\n"
    );
}

#[tokio::test]
async fn many_containers_start_and_end_quickly() {
    let driver = Host::default().open();
    let before = std::time::Instant::now();
    let mut all = Vec::new();
    for _ in 0..50 {
        let id = running(&driver, ChannelKind::Virtio).await;
        let channel = driver.connect_channel(&id).await.unwrap();
        all.push(async move {
            let mut controller = Controller::new(channel);
            controller.set_up().await.unwrap();
            let (out, ..) = sh(&mut controller, "echo hi | cat; exit 0").await;
            assert_eq!(out, "hi\n");
        });
    }
    for one in all {
        one.await;
    }
    let took = before.elapsed();
    println!("50 containers: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_container_that_spins_leaves_time_for_others() {
    let driver = Host::default().open();
    let mut spinning = container(&driver).await;
    spinning
        .start(0, &["sh", "-c", "while :; do :; done"])
        .await
        .unwrap();
    let mut other = container(&driver).await;
    let before = std::time::Instant::now();
    let (out, ..) = sh(&mut other, "seq 1 100000 | tail -n 1").await;
    println!("seq beside a loop: {:?}", before.elapsed());
    assert_eq!(out, "100000\n");
    spinning.ask(signal(9, 0)).await.unwrap();
    assert_eq!(spinning.exit(0).await, ExitStatus::Signal(9));
}

#[tokio::test]
async fn bytes_come_whole_however_many_they_are() {
    let driver = Host::default().open();
    let mut controller = container(&driver).await;
    let before = std::time::Instant::now();
    let script = "head -c 1000000 /dev/urandom | tee f | sha256sum; sha256sum f; wc -c < f";
    let (out, ..) = sh(&mut controller, script).await;
    let lines: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(lines[0], lines[2]);
    assert_eq!(lines[4], "1000000");
    controller
        .start(0, &["sh", "-c", "cat /f 2>/dev/null || cat f"])
        .await
        .unwrap();
    assert_eq!(controller.exit(0).await, ExitStatus::Code(0));
    assert_eq!(controller.stdout(0).len(), 1_000_000);
    println!("1 MB four times: {:?}", before.elapsed());
}
