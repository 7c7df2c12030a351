//! What programs that are not ours make of an ISO and an archive: they list
//! and extract both file systems, check them, and find the same files.
//!
//! A program or isolinux that is not installed makes its test a skip, which
//! prints its reason.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bootimage::{CommandLine, Content, Date, Isolinux, iso, newc};
use tempfile::TempDir;

const CORE: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const MODULE: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// An ISO in a directory of its own, and the files it was made from.
struct Fixture {
    directory: TempDir,
    iso: PathBuf,
    volume_offset: u64,
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
}

/// Bytes in which no cluster repeats another.
fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

impl Fixture {
    /// `None`, with the reason printed, without isolinux.
    fn new(kernel_length: usize) -> Option<Self> {
        if !Path::new(CORE).exists() || !Path::new(MODULE).exists() {
            return skip("isolinux is not installed (packages isolinux, syslinux-common)");
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        let iso_path = directory.path().join("tether.iso");
        let kernel = noise(kernel_length, 1);
        let initramfs = noise(300_001, 2);
        // The kernel comes from a file, as it does for users.
        let kernel_path = directory.path().join("kernel");
        fs::write(&kernel_path, &kernel).expect("kernel");
        let open = |path: &Path| Content::open(path).expect("open");
        let iso = iso::BootIso::plan(iso::Contents {
            kernel: open(&kernel_path),
            initramfs: Content::bytes(initramfs.clone()),
            efi_loader: Content::bytes(noise(5_000, 3)),
            isolinux: Isolinux::new(&open(Path::new(CORE)), &open(Path::new(MODULE)))
                .expect("isolinux"),
            command_line: CommandLine::new("quiet console=ttyS0").expect("ASCII"),
            date: Date::from_epoch(1_709_210_096),
        })
        .expect("plan");
        let file = File::create(&iso_path).expect("create");
        iso.write(BufWriter::new(file)).expect("write");
        Some(Fixture {
            volume_offset: iso.volume().offset,
            directory,
            iso: iso_path,
            kernel,
            initramfs,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The FAT volume as mtools names it: an image at an offset.
    fn volume(&self) -> String {
        format!("{}@@{}", self.iso.display(), self.volume_offset)
    }
}

fn skip<T>(reason: &str) -> Option<T> {
    // Not `eprintln`, which the test runner would keep from a test that passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
    None
}

/// Runs `program`; `None`, with the reason printed, if it is not installed.
fn run(program: &str, package: &str, arguments: &[&str]) -> Option<Output> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip(&format!("{program} is not installed (package {package})"))
        }
        Err(error) => panic!("{program}: {error}"),
        Ok(output) => {
            assert!(
                output.status.success(),
                "{program} {arguments:?}: {output:?}"
            );
            Some(output)
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn xorriso_extracts_the_iso_and_finds_both_boot_images() {
    let Some(fixture) = Fixture::new(1_500_007) else {
        return;
    };
    let (iso, tree) = (fixture.iso.display().to_string(), fixture.path("tree"));
    let tree_name = tree.display().to_string();
    let arguments = ["-indev", &iso, "-report_el_torito", "plain"];
    let Some(output) = run("xorriso", "xorriso", &arguments) else {
        return;
    };
    let report = text(&output);
    for line in [
        "Volume id    : 'TETHER'",
        "El Torito img path :   1  /ISOLINUX.BIN",
        "El Torito img opts :   1  boot-info-table",
    ] {
        assert!(report.contains(line), "no {line:?} in {report}");
    }
    let efi = report
        .lines()
        .find(|line| line.contains("UEFI") && line.contains("boot img"))
        .expect("an EFI boot image");
    let sector = fixture.volume_offset / iso::SECTOR;
    assert!(efi.ends_with(&format!(" {sector}")), "{efi}");

    let extract = [
        "-osirrox", "on", "-indev", &iso, "-extract", "/", &tree_name,
    ];
    run("xorriso", "xorriso", &extract).expect("it ran before");
    let extracted = |name: &str| fs::read(tree.join(name)).expect(name);
    assert!(extracted("VMLINUZ") == fixture.kernel);
    assert!(extracted("INITRD") == fixture.initramfs);
    assert!(extracted("LDLINUX.C32") == fs::read(MODULE).expect(MODULE));
    let configuration = String::from_utf8(extracted("ISOLINUX.CFG")).expect("text");
    assert!(configuration.contains("  APPEND quiet console=ttyS0\n"));
}

#[test]
fn isoinfo_lists_the_files_with_their_date() {
    let Some(fixture) = Fixture::new(1_500_007) else {
        return;
    };
    let iso = fixture.iso.display().to_string();
    let Some(output) = run("isoinfo", "genisoimage", &["-l", "-i", &iso]) else {
        return;
    };
    let listing = text(&output);
    let kernel = listing
        .lines()
        .find(|line| line.contains("VMLINUZ"))
        .expect("the kernel");
    assert!(kernel.contains("1500007 Feb 29 2024"), "{kernel}");
    assert_eq!(listing.matches(";1").count(), 6, "{listing}");
}

#[test]
fn mtools_copies_the_same_files_out_of_the_fat_volume() {
    for kernel_length in [1_500_007, 10_000_001] {
        let Some(fixture) = Fixture::new(kernel_length) else {
            return;
        };
        let (volume, tree) = (fixture.volume(), fixture.path("volume"));
        fs::create_dir(&tree).expect("directory");
        let tree_name = tree.display().to_string();
        let arguments = ["-s", "-n", "-i", &volume, "::/", &tree_name];
        if run("mcopy", "mtools", &arguments).is_none() {
            return;
        }
        let copied = |name: &str| fs::read(tree.join(name)).expect(name);
        assert!(copied("VMLINUZ") == fixture.kernel);
        assert!(copied("INITRD") == fixture.initramfs);
        assert!(copied("EFI/BOOT/BOOTX64.EFI") == noise(5_000, 3));
        assert_eq!(copied("CMDLINE"), b"quiet console=ttyS0");
    }
}

#[test]
fn fsck_finds_no_fault_in_the_fat_volume() {
    // FAT12, just below and above the limit of FAT12, and FAT16.
    for kernel_length in [1_500_007, 7_990_000, 8_100_000, 10_000_001] {
        let Some(fixture) = Fixture::new(kernel_length) else {
            return;
        };
        let bytes = fs::read(&fixture.iso).expect("ISO");
        let volume = fixture.path("volume.img");
        fs::write(&volume, &bytes[fixture.volume_offset as usize..]).expect("volume");
        let arguments = ["-n", "-v", &volume.display().to_string()];
        let Some(output) = run("fsck.vfat", "dosfstools", &arguments) else {
            return;
        };
        let report = text(&output);
        let fat = if kernel_length > 8_000_000 {
            "16"
        } else {
            "12"
        };
        assert!(report.contains(&format!("{fat} bit entries")), "{report}");
        assert!(report.contains("7 files"), "{report}");
    }
}

#[test]
fn cpio_extracts_init_with_its_mode() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let archive = directory.path().join("initramfs.cpio");
    let init = noise(12_345, 4);
    let file = File::create(&archive).expect("create");
    newc::write(&Content::bytes(init.clone()), file).expect("write");
    let name = archive.display().to_string();
    let Some(output) = run("cpio", "cpio", &["-itv", "--quiet", "-F", &name]) else {
        return;
    };
    let listing = text(&output);
    assert_eq!(listing.lines().count(), 1, "{listing}");
    assert!(listing.starts_with("-rwxr-xr-x   1 root     root        12345 Jan  1  1970 init"));
    let extract = ["-i", "--quiet", "--to-stdout", "-F", &name];
    let output = run("cpio", "cpio", &extract).expect("it ran before");
    assert!(output.stdout == init);
}
