//! The ISO's own rules, read back from its bytes. What other programs make of
//! them is in `tests/`.

use super::*;

fn contents(kernel: usize, initramfs: usize) -> Contents {
    let mut core = vec![0x90; 5000];
    core[100..109].copy_from_slice(b"ISOLINUX ");
    let mut module = b"\x7fELF\x01\x01".to_vec();
    module.resize(3000, 0);
    module[18] = 3;
    Contents {
        kernel: Content::bytes(vec![b'K'; kernel]),
        initramfs: Content::bytes(vec![b'I'; initramfs]),
        efi_loader: Content::bytes(vec![b'E'; 3000]),
        isolinux: Isolinux::new(&Content::bytes(core), &Content::bytes(module)).expect("isolinux"),
        command_line: CommandLine::new("console=ttyS0").expect("ASCII"),
        date: Date::EPOCH,
    }
}

fn write(iso: &BootIso) -> Vec<u8> {
    let mut bytes = Vec::new();
    iso.write(&mut bytes).expect("writing to memory");
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[test]
fn two_builds_are_the_same_bytes() {
    let build = || write(&BootIso::plan(contents(10_000, 3_000)).expect("plan"));
    assert_eq!(build(), build());
}

#[test]
fn kernel_and_initramfs_are_on_the_disc_once() {
    let iso = BootIso::plan(contents(10_000, 3_000)).expect("plan");
    let bytes = write(&iso);
    assert_eq!(bytes.len() as u64, iso.length());
    for (extent, fill) in [(iso.kernel(), b'K'), (iso.initramfs(), b'I')] {
        assert_eq!(extent.offset % SECTOR, 0);
        assert!(extent.offset >= iso.volume().offset);
        let (start, end) = (
            extent.offset as usize,
            (extent.offset + extent.length) as usize,
        );
        assert!(bytes[start..end].iter().all(|byte| *byte == fill));
        let run = [fill; 64];
        let outside = [&bytes[..start], &bytes[end..]];
        assert!(
            outside
                .iter()
                .all(|part| !part.windows(64).any(|window| window == run))
        );
    }
}

#[test]
fn the_root_directory_points_into_the_fat_volume() {
    let iso = BootIso::plan(contents(10_000, 3_000)).expect("plan");
    let bytes = write(&iso);
    let mut found = Vec::new();
    let mut at = ROOT_DIRECTORY as usize * SECTOR as usize;
    while bytes[at] != 0 {
        let length = bytes[at + 32] as usize;
        let identifier = bytes[at + 33..at + 33 + length].to_vec();
        let offset = u64::from(word(&bytes, at + 2)) * SECTOR;
        found.push((identifier, offset, u64::from(word(&bytes, at + 10))));
        at += bytes[at] as usize;
    }
    let names: Vec<_> = found[2..].iter().map(|(name, ..)| name.clone()).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
    let place = |name: &[u8]| {
        let (_, offset, length) = found
            .iter()
            .find(|(found, ..)| found == name)
            .expect("named");
        Extent {
            offset: *offset,
            length: *length,
        }
    };
    assert_eq!(place(b"VMLINUZ.;1"), iso.kernel());
    assert_eq!(place(b"INITRD.;1"), iso.initramfs());
}

#[test]
fn the_boot_catalog_names_isolinux_and_the_fat_volume() {
    let iso = BootIso::plan(contents(10_000, 3_000)).expect("plan");
    let bytes = write(&iso);
    let record = 17 * SECTOR as usize;
    assert_eq!(
        &bytes[record..record + 30],
        b"\0CD001\x01EL TORITO SPECIFICATION"
    );
    let catalog = word(&bytes, record + 71) as usize * SECTOR as usize;
    let sum = bytes[catalog..catalog + 32]
        .as_chunks()
        .0
        .iter()
        .fold(0u16, |sum, word| {
            sum.wrapping_add(u16::from_le_bytes(*word))
        });
    assert_eq!(sum, 0);
    assert_eq!(word(&bytes, catalog + 32 + 8), FIRST_FILE);
    assert_eq!(&bytes[catalog + 64..catalog + 68], &[0x91, 0xef, 1, 0]);
    let efi = catalog + 96;
    assert_eq!(
        u64::from(word(&bytes, efi + 8)) * SECTOR,
        iso.volume().offset
    );
    let sectors = u64::from(u16::from_le_bytes([bytes[efi + 6], bytes[efi + 7]]));
    assert_eq!(sectors * 512, iso.volume().length);
}

#[test]
fn a_volume_beyond_32_mib_runs_to_the_end_of_the_disc() {
    let big = 33 << 20;
    let catalog = eltorito::catalog(23, 100, big);
    assert_eq!(&catalog[96 + 6..96 + 8], &[0, 0]);
    let iso = BootIso::plan(contents(big as usize, 10)).expect("plan");
    assert_eq!(iso.volume().offset + iso.volume().length, iso.length());
}

#[test]
fn what_cannot_be_on_the_disc_is_refused_by_name() {
    let plan = |kernel, initramfs| BootIso::plan(contents(kernel, initramfs));
    assert!(matches!(plan(0, 1), Err(Error::Empty { what: "kernel" })));
    assert!(matches!(
        plan(1, 0),
        Err(Error::Empty { what: "initramfs" })
    ));
    let over = FILE_LIMIT as usize + 1;
    assert!(matches!(
        plan(over, 1),
        Err(Error::TooLarge { what: "kernel", .. })
    ));
}
