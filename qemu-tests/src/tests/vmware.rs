//! What tether does on a VMware platform, as far as QEMU can be one.
//!
//! QEMU's `vmport` answers the backdoor's version, from ring 3 only with I/O privilege, and no messages. For
//! those a debugger stands in for the hypervisor: it stops the guest at tether's `in` instruction, does what the
//! simulated host of tether's own tests does, and lets it go on behind it. So everything is real but how a VMware
//! hypervisor takes the instruction.

use super::boot::{Stub, connect, free_port};
use crate::harness::{Context, Test};
use crate::machine::{block_on, main_process, setup};
use anyhow::{Context as _, Result, bail};
use simulated_host::Host;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tether_link::{Config, Link, Notice};
use tether_wire::CarrierKind;
use tether_wire::message::{
    Address, ExitStatus, Interface, InterfaceAddressing, MacAddress, MachineEvent, ProcessId,
};

#[path = "../../../tether/agent/src/guestinfo/simulated_host.rs"]
#[allow(dead_code)]
mod simulated_host;

pub const TESTS: &[Test] = &[
    Test::new(
        "boot",
        "VMware's backdoor is asked where SMBIOS says VMware, and only there",
        backdoor,
    ),
    Test::new(
        "boot",
        "guestinfo configures a machine, and the hypervisor sees its name and addresses and shuts it down",
        guestinfo,
    )
    .minutes(5),
];

/// A machine that says it is VMware's, to the guest's SMBIOS.
const VMWARE: [&str; 2] = ["-smbios", "type=1,manufacturer=VMware,, Inc."];

/// QEMU, killed when this is dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest {
    /// Boots the boot image without a driver.
    fn boot(t: &Context, arguments: &[&str], append: &str) -> Result<Self> {
        let boot_image = t.environment().boot_image();
        Command::new("qemu-system-x86_64")
            .args(["-m", "128", "-nodefaults", "-display", "none", "-no-reboot"])
            .args(VMWARE.iter().filter(|_| arguments.contains(&VMWARE[1])))
            .args(arguments.iter().filter(|word| !VMWARE.contains(word)))
            .arg("-kernel")
            .arg(boot_image.join("bzImage"))
            .arg("-initrd")
            .arg(boot_image.join("initramfs.cpio"))
            .arg("-append")
            .arg(format!("console=ttyS0 loglevel=7 panic=-1 {append}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Self)
            .context("cannot run qemu-system-x86_64")
    }
}

/// What tether says on the console until it is ready.
fn words_of_tether(t: &Context, machine: &[&str]) -> Result<String> {
    let arguments = [machine, &["-serial", "stdio", "-serial", "null"]].concat();
    let mut guest = Guest::boot(t, &arguments, "tether.channel=serial:ttyS1")?;
    let console = guest.0.stdout.take().context("QEMU has no output")?;
    let (mut all, mut words) = (String::new(), String::new());
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        all.push_str(&line);
        if let Some((_, said)) = line.split_once("tether: ") {
            words.push_str(said.trim_end());
            words.push('\n');
            if said.starts_with("ready") {
                return Ok(words);
            }
        }
    }
    panic!("tether did not become ready: {all}");
}

fn backdoor(t: &Context) -> Result<()> {
    const READY: &str = "ready on Serial(\"ttyS1\")\n";
    let said = words_of_tether(t, &["-machine", "q35,vmport=on", VMWARE[0], VMWARE[1]])?;
    let found = "VMware backdoor version 6, without messages\n";
    assert_eq!(said, format!("{found}{READY}"));
    // Where nobody answers on the port, tether goes on without; elsewhere it does not ask.
    let said = words_of_tether(t, &["-machine", "q35,vmport=off", VMWARE[0], VMWARE[1]])?;
    assert_eq!(said, READY);
    let said = words_of_tether(t, &["-machine", "q35,vmport=on"])?;
    assert_eq!(said, READY);
    Ok(())
}

/// The simulated host, and who waits for what the guest does to it.
type Shared = Arc<(Mutex<Host>, Condvar)>;

/// Waits until the host has seen what is looked for.
fn until(shared: &Shared, what: &str, seen: impl Fn(&Host) -> bool) {
    let host = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    let minute = Duration::from_secs(60);
    let (host, waited) = shared
        .1
        .wait_timeout_while(host, minute, |host| !seen(host))
        .unwrap_or_else(PoisonError::into_inner);
    let requests: Vec<_> = host
        .requests
        .iter()
        .map(|bytes| bytes.escape_ascii().to_string())
        .collect();
    assert!(!waited.timed_out(), "{what} did not come: {requests:#?}");
}

fn tell(shared: &Shared, order: &str) {
    let mut host = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    host.order(order);
}

fn asked(host: &Host, request: &str) -> bool {
    host.requests
        .iter()
        .any(|asked| asked == request.as_bytes())
}

/// Stands in for the hypervisor until the guest is off.
fn stand_in(mut stub: Stub, places: &[u64], shared: &Shared) -> Result<()> {
    for place in places {
        assert_eq!(stub.ask(&format!("Z0,{place:x},1"))?, "OK");
    }
    loop {
        stub.tell("c")?;
        // It ends with its guest, in one word or none.
        let Ok(stopped) = stub.hear() else {
            return Ok(());
        };
        if stopped.starts_with('W') {
            return Ok(());
        }
        // Sixteen digits each: rax, rbx, rcx, rdx, rsi, rdi, ..., rip the seventeenth (i386's org.gnu.gdb.i386.core).
        let mut file = stub.ask("g")?;
        let register = |file: &str, number: usize| -> Result<u64> {
            let digits = file
                .get(16 * number..16 * (number + 1))
                .context("too few registers")?;
            Ok(u64::from_str_radix(digits, 16)?.swap_bytes())
        };
        let place = register(&file, 16)?;
        let mut registers = [0; 6];
        for (number, value) in registers.iter_mut().enumerate() {
            *value = register(&file, number)? as u32;
        }
        let is_call =
            registers[0] == simulated_host::MAGIC && registers[3] & 0xffff == simulated_host::PORT;
        if !is_call {
            // Another program has another instruction there.
            stub.ask(&format!("z0,{place:x},1"))?;
            stub.ask("s")?;
            stub.ask(&format!("Z0,{place:x},1"))?;
            continue;
        }
        let answer = shared
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .call(registers);
        shared.1.notify_all();
        let mut set = |number: usize, value: u64| {
            let digits = format!("{:016x}", value.swap_bytes());
            file.replace_range(16 * number..16 * (number + 1), &digits);
        };
        for (number, value) in answer.into_iter().enumerate() {
            set(number, value.into());
        }
        // `in eax, dx` is one byte.
        set(16, place + 1);
        assert_eq!(stub.ask(&format!("G{file}"))?, "OK");
    }
}

/// Where tether's `in` instructions are when the kernel puts nothing at random places: a static program that can be
/// anywhere ends where the stack's part of the address space begins (load_elf_binary, mmap_base).
fn places_of_in(boot_image: &Path) -> Result<Vec<u64>> {
    const TOP: u64 = 0x7fff_f7ff_f000;
    const PAGE: u64 = 4096;
    let archive = std::fs::read(boot_image.join("initramfs.cpio"))?;
    let start = archive
        .windows(4)
        .position(|word| word == b"\x7fELF")
        .context("no program in the initramfs")?;
    let program = &archive[start..];
    let number = |at: usize, length: usize| -> Result<u64> {
        let bytes = program
            .get(at..at + length)
            .context("the program is cut off")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (mut end, mut code) = (0, 0);
    for header in 0..number(56, 2)? {
        // elf(5): p_type, p_flags, p_offset, p_vaddr, p_filesz, p_memsz.
        let at = (number(32, 8)? + header * number(54, 2)?) as usize;
        if number(at, 4)? == 1 {
            end = end.max(number(at + 16, 8)? + number(at + 40, 8)?);
            if number(at + 4, 4)? & 1 != 0 {
                assert_eq!(
                    (number(at + 8, 8)?, number(at + 16, 8)?),
                    (0, 0),
                    "the code is elsewhere"
                );
                code = number(at + 32, 8)? as usize;
            }
        }
    }
    let base = TOP - end.next_multiple_of(PAGE);
    // xchg rbx, REGISTER; in eax, dx; xchg rbx, REGISTER
    let is_in = |bytes: &[u8]| {
        bytes[0] & 0xf8 == 0x48 && bytes[1] == 0x87 && bytes[3] == 0xed && bytes[..3] == bytes[4..]
    };
    let windows = program
        .get(..code)
        .context("the program is cut off")?
        .windows(7)
        .enumerate();
    let places: Vec<_> = windows
        .filter(|(_, bytes)| is_in(bytes))
        .map(|(at, _)| base + at as u64 + 3)
        .collect();
    if places.is_empty() {
        bail!("no `in` instruction in tether");
    }
    Ok(places)
}

fn guestinfo(t: &Context) -> Result<()> {
    t.environment().need_sample("busybox")?;
    let store = image::store::Store::open(&t.environment().images())?;
    let image = store.inspect("sample/busybox")?;
    let disk = t.file("root.vmdk");
    store.child(&image.id, "guestinfo", &disk)?;

    let key: [u8; 32] = std::array::from_fn(|at| at as u8 * 7 + 3);
    let mut host = Host::new();
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    host.values
        .insert("guestinfo.tether.key".into(), digits.into_bytes());
    host.values
        .insert("guestinfo.tether.channel".into(), b"serial:ttyS1".to_vec());
    let shared: Shared = Arc::new((Mutex::new(host), Condvar::new()));

    let (debugger, line) = (free_port()?, free_port()?);
    let arguments = [
        "-machine".to_owned(),
        "q35,vmport=off".to_owned(),
        VMWARE[1].to_owned(),
        "-S".to_owned(),
        "-gdb".to_owned(),
        format!("tcp:127.0.0.1:{debugger}"),
        "-serial".to_owned(),
        format!("file:{}", t.file("console").display()),
        "-serial".to_owned(),
        format!("tcp:127.0.0.1:{line},server=on,wait=off"),
        "-drive".to_owned(),
        format!("file={},format=vmdk,if=none,id=root", disk.display()),
        "-device".to_owned(),
        "virtio-blk-pci,drive=root,serial=root".to_owned(),
        "-nic".to_owned(),
        "user,model=virtio-net-pci,mac=02:00:00:00:00:07".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut guest = Guest::boot(t, &arguments, "norandmaps")?;
    let stub = Stub(connect(debugger, t.deadline())?);
    stub.0.set_read_timeout(None)?;
    stub.0.set_nodelay(true)?;
    let places = places_of_in(t.environment().boot_image())?;
    let hypervisor = {
        let shared = shared.clone();
        std::thread::spawn(move || stand_in(stub, &places, &shared))
    };

    block_on(t, async {
        let connector = move || tokio::net::TcpStream::connect(("127.0.0.1", line));
        let config = Config::new(CarrierKind::Serial, tether_wire::ChannelKey(key));
        let link = Link::spawn(connector, config)?;
        // The key, and where the channel is, tether has from guestinfo alone.
        if let Err(error) = link.ready(Duration::from_secs(120)).await {
            let console = std::fs::read_to_string(t.file("console")).unwrap_or_default();
            bail!("{error}; the console: {console}");
        }
        let address = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 77));
        let mut setup = setup("root");
        setup.network.interfaces = vec![Interface {
            mac: MacAddress([2, 0, 0, 0, 0, 7]),
            name: "eth0".to_owned(),
            mtu: 0,
            addressing: InterfaceAddressing::Static {
                addresses: vec![Address {
                    address,
                    prefix: 24,
                }],
                routes: Vec::new(),
            },
        }];
        link.setup(setup).await?;
        for order in ["reset", "Capabilities_Register", "ping"] {
            tell(&shared, order);
        }
        until(&shared, "the name", |host| {
            asked(host, "SetGuestInfo  1 test\0")
        });
        until(&shared, "the address", |host| {
            let octets = [0, 0, 0, 4, 10, 0, 2, 77];
            let told = |request: &Vec<u8>| {
                request.starts_with(b"SetGuestInfo  10 ")
                    && request.windows(8).any(|bytes| bytes == octets)
            };
            host.requests.iter().any(told)
        });
        until(&shared, "a heartbeat", |host| {
            host.said
                .ends_with(&[b"OK ".to_vec(), Vec::new(), Vec::new()])
        });

        // "Shut down guest", while a process runs that has something to do first.
        let script = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 1; done";
        let process = link
            .start(ProcessId(1), main_process(&["sh", "-c", script]))
            .await?;
        let mut stdout = process.stdout;
        let first = stdout.next().await?.context("it says that it is up")?;
        assert_eq!(&first.data[..], b"up\n");
        stdout.stored(first.end());
        tell(&shared, "OS_Halt");
        until(&shared, "the status", |host| {
            asked(host, "tools.os.statechange.status 1 1\0")
        });
        let last = stdout.next().await?.context("it was not asked to end")?;
        assert_eq!(&last.data[..], b"asked\n");
        stdout.stored(last.end());
        let exit = process.control.wait().await?;
        assert_eq!(exit.status, ExitStatus::Code(5));
        let warning = "the hypervisor asked for a shutdown";
        loop {
            if let Notice::Machine(MachineEvent::Warning { message }) = link.notice().await?
                && message == warning
            {
                return Ok(());
            }
        }
    })?;
    let status = guest.0.wait()?;
    assert!(status.success(), "{status}");
    hypervisor.join().expect("the hypervisor's thread ends")?;
    Ok(())
}
