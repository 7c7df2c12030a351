//! Whether guests run on the host's processor.
//!
//! A `/dev/kvm` that opens proves nothing: machines exist where it does, makes
//! virtual machines, and hangs every kernel. So it is believed only after it
//! has run this very kernel from its first instruction to its panic for want
//! of a root. What came of it is remembered for this boot of the host and this
//! kernel.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::process::Command;

/// How guest instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// On the host's processor.
    Kvm,
    /// In emulation.
    Tcg,
}

/// What a user asked for (`--accel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where it is proved, else emulation.
    #[default]
    Auto,
    /// KVM, or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl FromStr for AcceleratorChoice {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("{word:?} is not one of auto, kvm, tcg")),
        }
    }
}

/// What is used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceleration {
    /// What is used.
    pub accelerator: Accelerator,
    /// Why, as a sentence for the user.
    pub why: String,
}

/// KVM was demanded and is not there.
#[derive(Debug, thiserror::Error)]
#[error("KVM cannot be used: {0}; try --accel tcg")]
pub struct NoKvm(String);

/// How long a kernel may take to its panic. With KVM it takes about a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// What has to be there for the choice to be made.
#[derive(Debug, Clone)]
pub struct Probe {
    /// QEMU.
    pub program: PathBuf,
    /// The kernel guests will run; without one KVM is not proved, so not used.
    pub kernel: Option<PathBuf>,
    /// Where results are kept.
    pub cache: PathBuf,
}

impl Probe {
    /// Makes the choice.
    ///
    /// # Errors
    ///
    /// [`NoKvm`], when KVM was asked for by name and cannot be opened, or does not run this kernel.
    pub async fn choose(&self, choice: AcceleratorChoice) -> Result<Acceleration, NoKvm> {
        let tcg = |why: String| Acceleration {
            accelerator: Accelerator::Tcg,
            why,
        };
        let kvm = |why: &str| Acceleration {
            accelerator: Accelerator::Kvm,
            why: why.to_owned(),
        };
        match choice {
            AcceleratorChoice::Tcg => Ok(tcg("emulation was asked for".to_owned())),
            AcceleratorChoice::Kvm => {
                open_kvm().and_then(|()| processor_can()).map_err(NoKvm)?;
                // Without a kernel to prove it with, the user's word counts.
                if let Some(kernel) = &self.kernel {
                    self.proved(kernel).await.map_err(NoKvm)?;
                }
                Ok(kvm("KVM was asked for"))
            }
            AcceleratorChoice::Auto => {
                if let Err(why) = open_kvm().and_then(|()| processor_can()) {
                    return Ok(tcg(why));
                }
                let Some(kernel) = &self.kernel else {
                    return Ok(tcg(
                        "KVM is there, but there is no kernel to prove it with".to_owned()
                    ));
                };
                Ok(match self.proved(kernel).await {
                    Ok(()) => kvm("KVM has run this kernel"),
                    Err(why) => tcg(format!("KVM is there, but {why}")),
                })
            }
        }
    }

    /// Whether KVM runs this kernel, from memory or by trying.
    async fn proved(&self, kernel: &Path) -> Result<(), String> {
        let remembered = name(kernel).map(|name| self.cache.join("kvm").join(name));
        if let Ok(file) = &remembered
            && let Ok(text) = fs::read_to_string(file)
        {
            return if text.is_empty() { Ok(()) } else { Err(text) };
        }
        let tried = self.boots(kernel, "kvm", "host", DEADLINE).await;
        if let Ok(file) = &remembered {
            let text = tried.as_ref().err().map(String::as_str).unwrap_or_default();
            if let Err(error) = remember(file, text) {
                tracing::debug!(file = %file.display(), %error, "cannot remember whether KVM works");
            }
        }
        tried
    }

    /// Boots the kernel without a root: it panics, resets, and QEMU ends.
    async fn boots(
        &self,
        kernel: &Path,
        accelerator: &str,
        cpu: &str,
        deadline: Duration,
    ) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-machine",
                "q35,usb=off,sata=off,smbus=off",
                "-m",
                "128M",
                "-accel",
                accelerator,
                "-cpu",
                cpu,
            ])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", "quiet panic=-1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command
            .spawn()
            .map_err(|error| format!("{} cannot be run: {error}", self.program.display()))?;
        match tokio::time::timeout(deadline, child.wait_with_output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.lines().last().unwrap_or("no reason given");
                Err(format!(
                    "QEMU refused it: {}",
                    said.chars().take(300).collect::<String>()
                ))
            }
            Ok(Err(error)) => Err(format!("QEMU's end was not seen: {error}")),
            Err(_) => Err(format!(
                "it did not get this kernel through its boot in {} s",
                deadline.as_secs()
            )),
        }
    }
}

fn open_kvm() -> Result<(), String> {
    match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("this machine has no /dev/kvm".to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("/dev/kvm may not be opened; add your user to the group kvm".to_owned())
        }
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// Whether the processor says that it can run guests (`vmx` on Intel, `svm` on
/// AMD).
fn processor_can() -> Result<(), String> {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_extensions(&information) {
        Ok(())
    } else {
        Err("/dev/kvm is there, but the processor has neither vmx nor svm".to_owned())
    }
}

fn has_extensions(information: &str) -> bool {
    information
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| {
            flags
                .split_ascii_whitespace()
                .any(|flag| matches!(flag, "vmx" | "svm"))
        })
}

/// This boot of the host and this kernel, as a file's name.
fn name(kernel: &Path) -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let kernel = fs::metadata(kernel)?;
    Ok(format!(
        "{}-{}-{}-{}-{}",
        boot.trim(),
        kernel.dev(),
        kernel.ino(),
        kernel.size(),
        kernel
            .mtime_nsec()
            .wrapping_add(kernel.mtime().wrapping_mul(1_000_000_000)),
    ))
}

/// Writes a result, whole or not at all.
fn remember(file: &Path, text: &str) -> io::Result<()> {
    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let temporary = file.with_extension(format!("new-{}", std::process::id()));
    fs::write(&temporary, text)?;
    fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A QEMU that is a shell script.
    fn probe(directory: &Path, script: &str) -> (Probe, PathBuf) {
        let program = directory.join("qemu");
        fs::write(
            &program,
            format!(
                "#!/bin/sh\necho run >>{}/runs\n{script}\n",
                directory.display()
            ),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let kernel = directory.join("bzImage");
        fs::write(&kernel, "kernel").unwrap();
        (
            Probe {
                program,
                kernel: Some(kernel.clone()),
                cache: directory.join("cache"),
            },
            kernel,
        )
    }

    #[tokio::test]
    async fn a_kernel_that_came_to_its_panic_proves_kvm_once_for_all() {
        let directory = tempfile::tempdir().unwrap();
        let (probe, kernel) = probe(directory.path(), "exit 0");
        for _ in 0..3 {
            assert_eq!(probe.proved(&kernel).await, Ok(()));
        }
        assert_eq!(
            fs::read_to_string(directory.path().join("runs")).unwrap(),
            "run\n"
        );
        // Another kernel is another question.
        fs::write(&kernel, "another kernel").unwrap();
        assert_eq!(probe.proved(&kernel).await, Ok(()));
        assert_eq!(
            fs::read_to_string(directory.path().join("runs")).unwrap(),
            "run\nrun\n"
        );
    }

    #[tokio::test]
    async fn a_refusal_is_remembered_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let (probe, kernel) = probe(directory.path(), "echo no such luck >&2; exit 1");
        for _ in 0..2 {
            assert_eq!(
                probe.proved(&kernel).await,
                Err("QEMU refused it: no such luck".to_owned())
            );
        }
        assert_eq!(
            fs::read_to_string(directory.path().join("runs")).unwrap(),
            "run\n"
        );
    }

    #[tokio::test]
    async fn a_kernel_that_hangs_proves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (probe, kernel) = probe(directory.path(), "exec sleep 1000");
        let said = probe
            .boots(&kernel, "kvm", "host", Duration::from_millis(1))
            .await
            .unwrap_err();
        assert!(
            said.contains("did not get this kernel through its boot"),
            "{said}"
        );
    }

    #[test]
    fn the_processors_flags_are_read_whole() {
        assert!(has_extensions("flags\t\t: fpu vmx sse\n"));
        assert!(has_extensions("model name : x\nflags : svm\n"));
        assert!(!has_extensions(
            "flags\t\t: fpu svm_lock vmxnet\nvmx flags : vnmi\n"
        ));
        assert!(!has_extensions(""));
    }

    #[tokio::test]
    async fn emulation_is_used_when_asked_for() {
        let probe = Probe {
            program: "qemu".into(),
            kernel: None,
            cache: "cache".into(),
        };
        assert_eq!(
            probe
                .choose(AcceleratorChoice::Tcg)
                .await
                .unwrap()
                .accelerator,
            Accelerator::Tcg
        );
    }
}
