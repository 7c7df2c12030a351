//! Every way to boot, on every hardware, over every channel.

use crate::harness::{Context, Test, skip};
use anyhow::{Context as _, Result};
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

fn gdb(t: &Context) -> Result<()> {
    let port = free_port()?;
    let running = t
        .run(["echo", "hello"])
        .flags([format!("--gdb=127.0.0.1:{port}")])
        .spawn()?;
    let mut stub = connect(port, t.deadline())?;
    // GDB's remote protocol: why did it stop? It has not started yet; then, detach: go on alone.
    stub.write_all(b"$?#3f")?;
    let mut answer = [0; 3];
    stub.read_exact(&mut answer)?;
    assert_eq!(
        &answer, b"+$T",
        "the debugger's stub answered something else"
    );
    stub.write_all(b"+$D#44")?;
    running.wait()?.status(0).stdout("hello\n");
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
