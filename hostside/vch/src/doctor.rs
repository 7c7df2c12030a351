//! `vch doctor`: what this machine has and lacks.

use crate::cli::JsonArgs;
use crate::failure::Failure;
use crate::image_commands::{print, print_json, table};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// It works, with less.
    Limited,
    Missing,
}

/// Looks, says, and exits with 1 when something is missing that nothing runs without.
pub fn run(args: &JsonArgs) -> Result<u8, Failure> {
    let findings = [qemu(), qemu_version(), kvm(), vsock(), uefi(), boot_image()];
    if args.json {
        print_json(&findings)?;
    } else {
        let rows: Vec<[String; 3]> = findings
            .iter()
            .map(|finding| {
                let state = match finding.state {
                    State::Good => "good",
                    State::Limited => "limited",
                    State::Missing => "MISSING",
                };
                [finding.what, state, &finding.detail].map(str::to_owned)
            })
            .collect();
        print(&table(&rows))?;
    }
    let missing = findings.iter().any(|f| f.state == State::Missing);
    Ok(u8::from(missing))
}

fn finding(what: &'static str, state: State, detail: impl Into<String>) -> Finding {
    Finding {
        what,
        state,
        detail: detail.into(),
    }
}

const QEMU: &str = "qemu-system-x86_64";

fn version() -> Option<String> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?;
    Some(version.to_owned())
}

fn qemu() -> Finding {
    match version() {
        Some(version) => finding("QEMU", State::Good, version),
        None => finding(
            "QEMU",
            State::Missing,
            format!("{QEMU} does not run; install the package qemu-system-x86"),
        ),
    }
}

fn qemu_version() -> Finding {
    let major_minor = version().and_then(|version| {
        let mut parts = version.split(['.', ' ']);
        let major = parts.next()?.parse::<u32>().ok()?;
        let minor = parts.next()?.parse::<u32>().ok()?;
        Some((major, minor))
    });
    match major_minor {
        Some(version) if version >= (7, 2) => finding("QEMU 7.2", State::Good, "or newer"),
        Some((major, minor)) => finding(
            "QEMU 7.2",
            State::Missing,
            format!("this is {major}.{minor}; install 7.2 or newer"),
        ),
        None => finding("QEMU 7.2", State::Missing, "no version to be seen"),
    }
}

fn kvm() -> Finding {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let virtual_cpu = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|f| matches!(f, "vmx" | "svm")))
    });
    match (opened, virtual_cpu) {
        (Ok(_), true) => finding("KVM", State::Good, "/dev/kvm opens"),
        (Ok(_), false) => finding(
            "KVM",
            State::Limited,
            "/dev/kvm opens, but the processor shows neither vmx nor svm: emulation is used",
        ),
        (Err(error), _) => finding(
            "KVM",
            State::Limited,
            format!("/dev/kvm: {error}: emulation is used"),
        ),
    }
}

fn vsock() -> Finding {
    if Path::new("/dev/vhost-vsock").exists() {
        finding("vsock", State::Good, "/dev/vhost-vsock")
    } else {
        finding(
            "vsock",
            State::Limited,
            "no /dev/vhost-vsock: channels are virtio-serial",
        )
    }
}

fn uefi() -> Finding {
    let code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    if Path::new(code).exists() {
        finding("UEFI", State::Good, code)
    } else {
        finding(
            "UEFI",
            State::Limited,
            "no firmware for --firmware uefi; install the package ovmf",
        )
    }
}

fn boot_image() -> Finding {
    let Some(directory) = std::env::var_os("VCH_BOOT_IMAGE") else {
        return finding(
            "boot image",
            State::Missing,
            "VCH_BOOT_IMAGE is not set; scripts/vch builds one and sets it",
        );
    };
    let directory = Path::new(&directory);
    let missing: Vec<&str> = ["bzImage", "initramfs.cpio", "tether.iso"]
        .into_iter()
        .filter(|name| !directory.join(name).is_file())
        .collect();
    if missing.is_empty() {
        finding("boot image", State::Good, directory.display().to_string())
    } else {
        finding(
            "boot image",
            State::Missing,
            format!("{} lacks {}", directory.display(), missing.join(", ")),
        )
    }
}
