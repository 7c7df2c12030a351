//! Layout rules of the FAT volume that no outside tool would complain about.

use super::*;

fn volume(files: &[(&str, usize)]) -> Volume {
    let files = files
        .iter()
        .map(|(path, length)| (*path, Content::bytes(vec![path.as_bytes()[0]; *length])))
        .collect();
    Volume::plan("TETHER", 7, Date::EPOCH, files).expect("plan")
}

fn image(volume: &Volume) -> Vec<u8> {
    let mut bytes = Vec::new();
    volume.write(&mut bytes).expect("writing to memory");
    bytes
}

#[test]
fn every_file_lies_whole_at_a_cd_sector_boundary() {
    for clusters in [0, 1, 5, 4000, 4068, 4090, 9000] {
        let first = ("A", 1 + clusters * CLUSTER as usize);
        let volume = volume(&[first, ("EFI/BOOT/B.EFI", 3), ("EMPTY", 0), ("C", 2048)]);
        let bytes = image(&volume);
        assert_eq!(bytes.len() as u64, volume.length());
        assert_eq!(volume.length() % CLUSTER, 0);
        for (path, fill, length) in [
            ("A", b'A', first.1),
            ("EFI/BOOT/B.EFI", b'E', 3),
            ("C", b'C', 2048),
        ] {
            let Extent {
                offset,
                length: found,
            } = volume.extent(path).expect(path);
            assert_eq!(offset % CLUSTER, 0, "{path}");
            assert_eq!(found, length as u64);
            let (start, end) = (offset as usize, offset as usize + length);
            assert!(bytes[start..end].iter().all(|byte| *byte == fill), "{path}");
        }
        assert_eq!(volume.extent("EMPTY"), None);
        assert_eq!(volume.extent("MISSING"), None);
    }
}

#[test]
fn the_neighbourhood_of_the_fat12_limit_is_avoided() {
    for used in 1..10_000 {
        let geometry = Geometry::for_clusters(used).expect("fits");
        assert!(geometry.clusters >= used);
        assert!(geometry.clusters.abs_diff(FAT16_START) >= MARGIN, "{used}");
        assert_eq!(geometry.fat16, geometry.clusters > FAT16_START);
        assert_eq!(geometry.data_start() % CLUSTER, 0);
        assert!(geometry.reserved_sectors >= 1);
        let bits = if geometry.fat16 { 16 } else { 12 };
        assert!(geometry.fat_sectors * SECTOR * 8 >= (geometry.clusters + 2) * bits);
    }
    assert!(matches!(
        Geometry::for_clusters(FAT16_END),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn fat12_entries_are_packed_in_pairs() {
    // Clusters 2 and 3 hold A (a chain of two), 4 holds B.
    let volume = volume(&[("A", 2049), ("B", 1)]);
    let table = volume.table();
    assert_eq!(
        table[..9],
        [0xf8, 0xff, 0xff, 0x03, 0xf0, 0xff, 0xff, 0x0f, 0]
    );
}

#[test]
fn paths_that_fat_cannot_hold_are_refused() {
    for path in [
        "lower",
        "NINECHARS",
        "A.LONG",
        "A.",
        "",
        "A/",
        "A B",
        "A.B.C",
        ".A",
        "/A",
        "A//B",
    ] {
        let files = vec![(path, Content::bytes(*b"x"))];
        let result = Volume::plan("TETHER", 7, Date::EPOCH, files);
        assert!(matches!(result, Err(Error::Name { .. })), "{path:?}");
    }
    for label in ["", "ELEVENCHARS1", "lower"] {
        let result = Volume::plan(label, 7, Date::EPOCH, Vec::new());
        assert!(matches!(result, Err(Error::Name { .. })), "{label:?}");
    }
    for paths in [["A", "A"], ["A", "A/B"], ["A/B", "A"]] {
        let files = paths.map(|path| (path, Content::bytes(*b"x"))).into();
        let result = Volume::plan("TETHER", 7, Date::EPOCH, files);
        assert!(matches!(result, Err(Error::Duplicate { .. })), "{paths:?}");
    }
    let names: Vec<String> = (0..64).map(|number| format!("F{number}")).collect();
    let files = names
        .iter()
        .map(|name| (name.as_str(), Content::bytes(*b"x")))
        .collect();
    let result = Volume::plan("TETHER", 7, Date::EPOCH, files);
    assert!(matches!(
        result,
        Err(Error::DirectoryFull { limit: 64, .. })
    ));
}
