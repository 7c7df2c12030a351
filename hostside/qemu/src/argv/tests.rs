use hypervisor::{Cpus, GuestDebugger, MacAddress, MachineId, Memory, Protocol, PublishedPort};

use super::*;

fn spec() -> MachineSpec {
    MachineSpec {
        id: MachineId::from_bytes([0xab; 16]),
        name: "web".into(),
        cpus: Cpus::ONE,
        memory: Memory::from_mib(128).unwrap(),
        boot: Boot::Kernel {
            kernel: "/k/bzImage".into(),
            initramfs: "/k/i,1.cpio".into(),
            append: " loglevel=7 ".into(),
        },
        start: Default::default(),
        hardware: Hardware::Virtio,
        channel: ChannelKind::Virtio,
        disks: vec![disk(DiskAccess::ReadOnly)],
        nics: Vec::new(),
        debugger: None,
    }
}

fn disk(access: DiskAccess) -> DiskSpec {
    DiskSpec {
        source: DiskSource::File("/d/a \"b\",c.vmdk".into()),
        format: DiskFormat::Vmdk,
        access,
        serial: DiskSerial::new("image").unwrap(),
    }
}

fn nic(published: &[(Protocol, &str, u16)]) -> NicSpec {
    let published = published
        .iter()
        .map(|(protocol, host, guest_port)| PublishedPort {
            protocol: *protocol,
            host: host.parse().unwrap(),
            guest_port: *guest_port,
        })
        .collect();
    NicSpec {
        mac: MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap(),
        attachment: Attachment::UserMode { published },
    }
}

/// The arguments, one option with its value a line.
fn lines(spec: &MachineSpec, accelerator: Accelerator, channel: Wire) -> Vec<String> {
    let prepared = Prepared {
        spec,
        accelerator,
        qmp_fd: 5,
        channel,
        hot_plug_slots: 2,
        tsc_khz: (accelerator == Accelerator::Tcg).then_some(2_596_100),
        uefi_code: Some("/fw/a,b.fd".into()),
        birth: Birth::Boot,
    };
    let mut lines: Vec<String> = Vec::new();
    for argument in arguments(&prepared) {
        let argument = argument.into_string().unwrap();
        match lines.last_mut() {
            Some(last) if !argument.starts_with('-') => *last = format!("{last} {argument}"),
            _ => lines.push(argument),
        }
    }
    lines
}

/// What a change to the plain specification must and must not say.
fn check(
    change: impl Fn(&mut MachineSpec),
    accelerator: Accelerator,
    wire: Wire,
    has: &[&str],
    has_not: &[&str],
) {
    let mut spec = spec();
    change(&mut spec);
    spec.check().unwrap();
    let lines = lines(&spec, accelerator, wire);
    for expected in has {
        assert!(
            lines.iter().any(|line| line == expected),
            "no {expected:?} in\n{}",
            lines.join("\n")
        );
    }
    for part in has_not {
        assert!(
            !lines.iter().any(|line| line.contains(part)),
            "{part:?} in\n{}",
            lines.join("\n")
        );
    }
}

const SOCKET: Wire = Wire::Listener { fd: 6 };

#[test]
fn a_virtio_machine_has_virtio_devices_and_its_channel_by_name() {
    check(
        |_| {},
        Accelerator::Tcg,
        SOCKET,
        &[
            "-name guest=web,debug-threads=on",
            "-uuid abababab-abab-abab-abab-abababababab",
            "-accel tcg,thread=single,tb-size=128",
            "-m 128M",
            "-object memory-backend-ram,id=ram,size=128M",
            "-chardev socket,id=qmp,fd=5,server=on,wait=off",
            "-chardev socket,id=channel,fd=6,server=on,wait=off",
            "-device virtserialport,bus=ports.0,chardev=channel,id=channel0,name=org.tether.channel",
            "-device pcie-root-port,id=slot1,chassis=2,addr=1e.1,multifunction=on",
            "-fw_cfg name=opt/tether/key,file=channel.key",
            "-fw_cfg name=opt/tether/channel,string=virtio:org.tether.channel",
            "-kernel /k/bzImage",
            "-initrd /k/i,1.cpio",
            "-append console=ttyS0 quiet panic=-1 tether.channel=virtio:org.tether.channel tsc_early_khz=2596100 loglevel=7",
        ],
        &["pvscsi", "vmxnet3", "ide-cd", "-gdb", "netdev", "kvm"],
    );
}

#[test]
fn a_vmware_machine_has_no_virtio_device() {
    check(
        |spec| {
            spec.hardware = Hardware::Vmware;
            spec.channel = ChannelKind::Serial;
            spec.nics = vec![nic(&[])];
        },
        Accelerator::Tcg,
        SOCKET,
        &[
            "-device pvscsi,id=scsi",
            "-device isa-serial,id=serial0,chardev=console",
            "-device isa-serial,id=serial1,chardev=channel",
            "-device vmxnet3,id=nic0,netdev=net0,mac=02:00:00:00:00:09,romfile=",
            "-fw_cfg name=opt/tether/channel,string=serial:ttyS1",
        ],
        &["virtio", "virtserialport"],
    );
}

#[test]
fn processors_follow_the_accelerator() {
    check(
        |spec| spec.cpus = Cpus::new(4).unwrap(),
        Accelerator::Tcg,
        SOCKET,
        &[
            "-accel tcg,thread=multi,tb-size=128",
            "-smp cpus=4,sockets=1,cores=4,threads=1",
        ],
        &["kvm"],
    );
    check(
        |_| {},
        Accelerator::Kvm,
        SOCKET,
        &["-accel kvm", "-cpu host,migratable=off"],
        &["tcg"],
    );
}

#[test]
fn a_vsock_is_the_kernels_or_a_daemons() {
    let vsock = |spec: &mut MachineSpec| spec.channel = ChannelKind::Vsock;
    check(
        vsock,
        Accelerator::Kvm,
        Wire::Vhost { cid: 77 },
        &[
            "-device vhost-vsock-pci,id=vsock,guest-cid=77",
            "-object memory-backend-ram,id=ram,size=128M",
        ],
        &["virtserialport", "vhost-user"],
    );
    check(
        vsock,
        Accelerator::Tcg,
        Wire::VhostUser {
            socket: "vhost.sock",
        },
        &[
            "-chardev socket,id=vsock,path=vhost.sock",
            "-device vhost-user-vsock-pci,chardev=vsock",
            "-object memory-backend-memfd,id=ram,share=on,size=128M",
        ],
        &["virtserialport"],
    );
}

#[test]
fn ports_are_published_by_the_network() {
    check(
        |spec| {
            spec.nics = vec![nic(&[
                (Protocol::Tcp, "127.0.0.1:8080", 80),
                (Protocol::Udp, "[::1]:53", 5353),
            ])];
        },
        Accelerator::Tcg,
        SOCKET,
        &[
            "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:[::1]:53-:5353",
            "-device virtio-net-pci,id=nic0,netdev=net0,mac=02:00:00:00:00:09,romfile=",
        ],
        &[],
    );
}

#[test]
fn an_iso_is_booted_by_the_firmware_asked_for() {
    let iso = |firmware| {
        move |spec: &mut MachineSpec| {
            spec.boot = Boot::Iso {
                iso: "/b/t,1.iso".into(),
                firmware,
            }
        }
    };
    let cdrom = "-device ide-cd,bus=ide.2,drive=cdrom,bootindex=0";
    check(
        iso(Firmware::Bios),
        Accelerator::Tcg,
        SOCKET,
        &[cdrom],
        &["pflash", "-kernel", "-append", "sata=off"],
    );
    check(
        iso(Firmware::Uefi),
        Accelerator::Tcg,
        SOCKET,
        &[
            cdrom,
            "-drive if=pflash,format=raw,unit=0,readonly=on,file=/fw/a,,b.fd",
            "-drive if=pflash,format=raw,unit=1,readonly=off,file=uefi-variables.fd",
        ],
        &["-kernel", "sata=off"],
    );
    // UEFI firmware would take a host's first word on COM2 for keys pressed.
    for (firmware, device, word) in [
        (
            Firmware::Bios,
            "-device isa-serial,id=serial1,chardev=channel",
            "serial:ttyS1",
        ),
        (
            Firmware::Uefi,
            "-device isa-serial,id=serial1,chardev=channel,index=3",
            "serial:ttyS3",
        ),
    ] {
        check(
            |spec| {
                iso(firmware)(spec);
                spec.channel = ChannelKind::Serial;
            },
            Accelerator::Tcg,
            SOCKET,
            &[
                device,
                &format!("-fw_cfg name=opt/tether/channel,string={word}"),
            ],
            &[],
        );
    }
}

#[test]
fn a_debugger_may_hold_the_guest() {
    let debugger = |start| {
        move |spec: &mut MachineSpec| {
            spec.debugger = Some(GuestDebugger {
                listen: "127.0.0.1:1234".parse().unwrap(),
                start,
            });
        }
    };
    check(
        debugger(DebuggerStart::Run),
        Accelerator::Tcg,
        SOCKET,
        &["-gdb tcp:127.0.0.1:1234"],
        &[],
    );
    check(
        debugger(DebuggerStart::Wait),
        Accelerator::Tcg,
        SOCKET,
        &["-gdb tcp:127.0.0.1:1234", "-S"],
        &[],
    );
}

#[test]
fn a_disks_file_name_needs_no_escaping_and_its_format_is_never_guessed() {
    for (access, read_only) in [(DiskAccess::ReadOnly, true), (DiskAccess::ReadWrite, false)] {
        let nodes = nodes(&disk(access));
        assert_eq!(nodes[0]["filename"], "/d/a \"b\",c.vmdk");
        assert_eq!(nodes[1]["driver"], "vmdk");
        assert_eq!(nodes[1]["file"], nodes[0]["node-name"]);
        for node in &nodes {
            assert_eq!(node["read-only"], read_only);
            assert!(node["node-name"].as_str().unwrap().len() <= 31);
        }
    }
}

#[test]
fn the_key_is_not_among_the_arguments_nor_its_file_anyones_choice() {
    let said = lines(&spec(), Accelerator::Tcg, SOCKET).join("\n");
    assert_eq!(said.matches("opt/tether/key").count(), 1);
    assert!(said.contains("name=opt/tether/key,file=channel.key"));
}

/// As [`lines`], for another birth.
fn born(birth: Birth) -> Vec<String> {
    let mut spec = spec();
    spec.nics = vec![nic(&[])];
    let prepared = Prepared {
        spec: &spec,
        accelerator: Accelerator::Tcg,
        qmp_fd: 5,
        channel: Wire::Listener { fd: 6 },
        hot_plug_slots: 2,
        tsc_khz: None,
        uefi_code: None,
        birth,
    };
    let arguments = arguments(&prepared);
    arguments
        .into_iter()
        .map(|argument| argument.into_string().unwrap())
        .collect()
}

/// What follows every `option`.
fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    arguments
        .windows(2)
        .filter(|pair| pair[0] == option)
        .map(|pair| pair[1].as_str())
        .collect()
}

#[test]
fn a_fork_has_its_templates_devices_first_and_in_their_order() {
    let template = born(Birth::Template {
        ram_fd: 7,
        console_fd: 8,
    });
    let fork = born(Birth::Fork {
        ram_fd: 7,
        kernel_fd: 9,
        boot_id: MachineId::from_bytes([0xcd; 16]),
        spare: false,
    });
    let own = |device: &&str| device.contains("disk-image") || device.contains("netdev=net0");
    let [of_template, of_fork] = [&template, &fork].map(|arguments| values(arguments, "-device"));
    // The state names devices by their place on the bus.
    let shared: Vec<_> = of_template.iter().copied().filter(|d| !own(d)).collect();
    assert_eq!(shared, of_fork[..shared.len()]);
    assert!(of_fork[shared.len()..].iter().all(own));
    // So does the firmware's directory, sorted by name, with as many bytes for each.
    let names = |arguments: &[String]| -> Vec<(String, usize)> {
        values(arguments, "-fw_cfg")
            .iter()
            .map(|value| {
                let (name, content) = value.split_once(',').unwrap();
                (name.to_owned(), content.len())
            })
            .collect()
    };
    assert_eq!(names(&template), names(&fork));
    for option in ["-machine", "-cpu", "-smp", "-m", "-accel", "-rtc"] {
        assert_eq!(values(&template, option), values(&fork, option), "{option}");
    }
    // Which would give the template's memory back.
    assert!(!fork.iter().any(|argument| argument.contains("balloon")));
}

#[test]
fn a_fork_sees_its_templates_memory_and_changes_none_of_it() {
    let fork = born(Birth::Fork {
        ram_fd: 7,
        kernel_fd: 9,
        boot_id: MachineId::from_bytes([0xcd; 16]),
        spare: false,
    });
    assert!(
        values(&fork, "-object")
            .contains(&"memory-backend-file,id=ram,mem-path=/proc/self/fd/7,share=off,size=128M")
    );
    assert_eq!(values(&fork, "-incoming"), ["defer"]);
    assert_eq!(values(&fork, "-kernel"), ["/proc/self/fd/9"]);
    let identity = format!(
        "name=opt/tether/identity,string={}{}",
        "cd".repeat(16),
        "ab".repeat(16)
    );
    assert!(values(&fork, "-fw_cfg").contains(&identity.as_str()));
}
