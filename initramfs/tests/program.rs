//! The program `bootimage`: what its users see.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn bootimage(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bootimage"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("RUST_BACKTRACE")
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .expect("the program was built")
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// The smallest that counts as static for x86-64: a header without segments.
fn init() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes[32] = 64;
    bytes[54] = 56;
    bytes
}

#[test]
fn an_archive_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let here = directory.path();
    fs::write(here.join("init"), init()).expect("init");
    fs::write(here.join("script"), "#!/bin/sh\n").expect("script");

    let refused = bootimage(&["cpio", "--init", "script", "-o", "a.cpio"], here);
    assert!(error(&refused).contains("script cannot be the init: it is not an ELF program"));
    let missing = bootimage(&["cpio", "--init", "none", "-o", "a.cpio"], here);
    assert!(error(&missing).contains("cannot read none"));
    let nowhere = bootimage(&["cpio", "--init", "init", "-o", "no/a.cpio"], here);
    assert!(error(&nowhere).contains("no/a.cpio was not written"));
    let directory_as_init = bootimage(&["cpio", "--init", ".", "-o", "a.cpio"], here);
    assert!(error(&directory_as_init).contains(". is not a regular file"));
    assert!(!here.join("a.cpio").exists());

    let written = bootimage(&["cpio", "--init", "init", "-o", "a.cpio"], here);
    assert!(written.status.success(), "{written:?}");
    let archive = fs::read(here.join("a.cpio")).expect("archive");
    let entries = bootimage::newc::read(&archive).expect("newc");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].data, init());
    // Besides the inputs and the archive, nothing is left.
    assert_eq!(fs::read_dir(here).expect("listing").count(), 3);
}

#[test]
fn an_iso_of_other_files_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let here = directory.path();
    fs::write(here.join("kernel"), "not a kernel").expect("kernel");
    let arguments = [
        "iso",
        "--kernel",
        "kernel",
        "--initramfs",
        "kernel",
        "--isolinux",
        ".",
        "--efi",
        "kernel",
        "--append",
        "-x",
        "-o",
        "out.iso",
    ];
    let refused = bootimage(&arguments, here);
    assert!(error(&refused).contains("kernel cannot be the kernel: it is not a bzImage"));
    assert!(!here.join("out.iso").exists());
}
