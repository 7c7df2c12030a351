//! Every way to boot, on every hardware, over every channel.

use crate::harness::{Context, Test, skip};
use crate::vch::Running;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = &[
    Test::new(
        "boot",
        "the kernel boots directly, told what --append says",
        kernel,
    ),
    Test::new("boot", "the ISO boots by BIOS", iso_bios),
    Test::new("boot", "the ISO boots by UEFI firmware", iso_uefi),
    Test::new("boot", "the kernel boots on VMware's hardware", vmware),
    Test::new(
        "boot",
        "the ISO boots on VMware's hardware by both firmwares",
        vmware_iso,
    )
    .minutes(5),
    Test::new("boot", "the channel runs over virtio", virtio),
    Test::new("boot", "the channel runs over a serial line", serial),
    Test::new("boot", "the channel runs over vsock", vsock),
    Test::new(
        "boot",
        "the channel runs over the kernel's own vhost-vsock",
        kernel_vsock,
    ),
    Test::new(
        "boot",
        "--accel kvm runs the guest where KVM works, and says why not elsewhere",
        kvm,
    ),
    Test::new("boot", "--console shows the kernel's log", console),
    Test::new(
        "boot",
        "another kernel and initramfs are booted when named",
        other_kernel,
    ),
    Test::new(
        "boot",
        "--gdb holds the machine until the debugger lets it go",
        gdb,
    ),
    Test::new(
        "boot",
        "a debugger stops the running guest, reads its registers and lets it go on",
        gdb_interrupts,
    ),
];

/// What UEFI's variables are before a boot (Debian's package ovmf).
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What a guest says of its hardware: a disk's driver, the vNIC's, and whether it can look around.
const HARDWARE: &str = "
    readlink /sys/class/net/eth0/device/driver | sed 's|.*/||'
    mount | grep ' on / type ' | cut -c1-7
    echo hello";

fn boots(t: &Context, flags: &[&str]) -> Result<String> {
    Ok(t.script(HARDWARE).flags(flags).done()?.finished())
}

fn kernel(t: &Context) -> Result<()> {
    let said = t
        .script("tr ' ' '\\n' </proc/cmdline | grep ^test")
        .flags(["--boot", "kernel", "--append", "test.word=1 test.other"])
        .done()?
        .finished();
    assert_eq!(said, "test.word=1\ntest.other\n");
    assert_eq!(boots(t, &[])?, "virtio_net\n/dev/vd\nhello\n");
    Ok(())
}

fn iso_bios(t: &Context) -> Result<()> {
    let said = boots(t, &["--boot", "iso", "--firmware", "bios"])?;
    assert_eq!(said, "virtio_net\n/dev/vd\nhello\n");
    Ok(())
}

fn iso_uefi(t: &Context) -> Result<()> {
    need_uefi()?;
    let flags = ["--boot", "iso", "--firmware", "uefi", "--name", "uefi"];
    assert_eq!(boots(t, &flags)?, "virtio_net\n/dev/vd\nhello\n");
    // Firmware that ran has written to its variables.
    let machines = t.state().join("runs/uefi/vm/machines");
    let machine = std::fs::read_dir(&machines)?
        .next()
        .context("the machine left no directory")??;
    let variables = std::fs::read(machine.path().join("uefi-variables.fd"))?;
    assert!(variables != std::fs::read(UEFI_VARIABLES)?);
    Ok(())
}

fn need_uefi() -> Result<()> {
    if Path::new(UEFI_VARIABLES).exists() {
        Ok(())
    } else {
        skip("there is no UEFI firmware: install ovmf")
    }
}

fn vmware(t: &Context) -> Result<()> {
    let said = boots(t, &["--hardware", "vmware"])?;
    assert_eq!(said, "vmxnet3\n/dev/sd\nhello\n");
    Ok(())
}

fn vmware_iso(t: &Context) -> Result<()> {
    let bios = boots(
        t,
        &[
            "--hardware",
            "vmware",
            "--boot",
            "iso",
            "--firmware",
            "bios",
        ],
    )?;
    assert_eq!(bios, "vmxnet3\n/dev/sd\nhello\n");
    need_uefi()?;
    let uefi = boots(
        t,
        &[
            "--hardware",
            "vmware",
            "--boot",
            "iso",
            "--firmware",
            "uefi",
        ],
    )?;
    assert_eq!(uefi, "vmxnet3\n/dev/sd\nhello\n");
    Ok(())
}

fn channel(t: &Context, kind: &str) -> Result<()> {
    t.run(["sh", "-c", "cat; echo err >&2; exit 9"])
        .flags(["-i", "--channel", kind])
        .stdin("in\n")
        .done()?
        .status(9)
        .stdout("in\n")
        .stderr("err\n");
    Ok(())
}

fn virtio(t: &Context) -> Result<()> {
    channel(t, "virtio")
}

fn serial(t: &Context) -> Result<()> {
    channel(t, "serial")
}

fn vsock(t: &Context) -> Result<()> {
    need_vsock()?;
    channel(t, "vsock")
}

/// Skips where nothing carries vsock.
pub fn need_vsock() -> Result<()> {
    match qemu::Options::default().vsock {
        qemu::VsockCarrier::None => {
            skip("nothing carries vsock: no /dev/vhost-vsock, and scripts/vsock-daemon has not run")
        }
        qemu::VsockCarrier::Kernel | qemu::VsockCarrier::Daemon(_) => Ok(()),
    }
}

fn kernel_vsock(t: &Context) -> Result<()> {
    match qemu::Options::default().vsock {
        qemu::VsockCarrier::Kernel => channel(t, "vsock"),
        qemu::VsockCarrier::None | qemu::VsockCarrier::Daemon(_) => {
            skip("there is no /dev/vhost-vsock: load the module vhost_vsock")
        }
    }
}

fn kvm(t: &Context) -> Result<()> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let guests = cpus
        .split_whitespace()
        .any(|flag| matches!(flag, "vmx" | "svm"));
    let opens = File::options().read(true).write(true).open("/dev/kvm");
    let done = t.run(["echo", "hello"]).flags(["--accel", "kvm"]).done()?;
    if opens.is_ok() && guests {
        done.status(0).stdout("hello\n");
    } else {
        done.status(125)
            .stdout("")
            .says(&["KVM cannot be used", "/dev/kvm", "try --accel tcg"]);
    }
    // Left to itself it finds a way.
    t.run(["echo", "hello"]).done()?.status(0).stdout("hello\n");
    Ok(())
}

fn console(t: &Context) -> Result<()> {
    t.run(["echo", "hello"])
        .flags(["--console", "--append", "loglevel=7"])
        .done()?
        .status(0)
        .stdout("hello\n")
        .stderr_has("Linux version")
        .stderr_has("Run /init as init process");
    Ok(())
}

fn other_kernel(t: &Context) -> Result<()> {
    let boot_image = t.environment().boot_image();
    for file in ["bzImage", "initramfs.cpio"] {
        std::fs::copy(boot_image.join(file), t.file(file))?;
    }
    t.run(["echo", "hello"])
        .flags(["--kernel".as_ref(), t.file("bzImage").as_os_str()])
        .flags(["--initrd".as_ref(), t.file("initramfs.cpio").as_os_str()])
        .flags(["--boot-image", "/no/such/directory"])
        .done()?
        .status(0)
        .stdout("hello\n");
    Ok(())
}

/// A guest that waits for a debugger, and GDB's remote protocol with the stub that holds it.
fn debugged(t: &Context, command: &[&str]) -> Result<(Running, Stub)> {
    let port = free_port()?;
    let running = t
        .run(command)
        .flags(["-i".to_owned(), format!("--gdb=127.0.0.1:{port}")])
        .stdin_open()
        .spawn()?;
    Ok((running, Stub(connect(port, t.deadline())?)))
}

/// The far end of GDB's remote serial protocol (GDB manual, appendix E).
pub struct Stub(pub TcpStream);

impl Stub {
    /// Sends a packet: `$`, the words, `#` and their sum.
    pub fn tell(&mut self, words: &str) -> Result<()> {
        let sum = words.bytes().fold(0u8, u8::wrapping_add);
        self.0.write_all(format!("${words}#{sum:02x}").as_bytes())?;
        Ok(())
    }

    /// Receives one, and says so.
    pub fn hear(&mut self) -> Result<String> {
        let mut byte = [0];
        let mut next = || -> Result<u8> {
            self.0.read_exact(&mut byte)?;
            Ok(byte[0])
        };
        // In front of it the last packet sent may be acknowledged.
        while next()? != b'$' {}
        let mut words = String::new();
        loop {
            match next()? {
                b'#' => break,
                byte => words.push(byte.into()),
            }
        }
        let sum = words.bytes().fold(0u8, u8::wrapping_add);
        let said = [next()?, next()?];
        assert_eq!(said, format!("{sum:02x}").as_bytes(), "{words}");
        self.0.write_all(b"+")?;
        Ok(words)
    }

    /// Both.
    pub fn ask(&mut self, words: &str) -> Result<String> {
        self.tell(words)?;
        self.hear()
    }
}

fn gdb(t: &Context) -> Result<()> {
    let (running, mut stub) = debugged(t, &["echo", "hello"])?;
    // Why did it stop? It has not started yet; then, detach: go on alone.
    let why = stub.ask("?")?;
    assert!(why.starts_with('T'), "{why}");
    assert_eq!(stub.ask("D")?, "OK");
    running.wait()?.status(0).stdout("hello\n");
    Ok(())
}

fn gdb_interrupts(t: &Context) -> Result<()> {
    let (mut running, mut stub) = debugged(t, &["sh", "-c", "echo hello; read word; echo $word"])?;
    let features = stub.ask("qSupported:multiprocess+")?;
    assert!(features.contains("PacketSize="), "{features}");
    let why = stub.ask("?")?;
    assert!(why.starts_with('T'), "{why}");
    assert!(!running.said_anything(), "it ran before it was let go");
    stub.tell("c")?;
    running.expect("hello\n");
    stub.0.write_all(&[3])?;
    let why = stub.hear()?;
    assert!(why.starts_with("T02"), "SIGINT was asked for: {why}");
    let registers = stub.ask("g")?;
    let hexadecimal = registers.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(
        hexadecimal && registers.len() > 16 * 17,
        "no registers: {registers}"
    );
    // What is said to a machine that stands still is heard when it goes on.
    running.write(b"again\n")?;
    stub.tell("c")?;
    running.expect("again\n");
    running.wait()?.status(0).stdout("hello\nagain\n");
    Ok(())
}

/// A port nobody listens on at this moment.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Connects as soon as somebody listens. (Nothing tells when that is: this is the one place that
/// asks again and again.)
pub fn connect(port: u16, until: Instant) -> Result<TcpStream> {
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                return Ok(stream);
            }
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error).context("nobody listens"),
        }
    }
}
