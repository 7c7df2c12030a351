//! File modes as Go's `os.FileMode` numbers them, which is what `X-Docker-Container-Path-Stat` holds.

/// `S_IFMT` and the bits above the permissions, `inode(7)`.
const TYPE: u32 = 0o170_000;

/// A mode of `stat(2)` in Go's numbers (Go's `os.FileMode`: type bits from the top, nine permission bits).
pub fn go_mode(mode: u32) -> u32 {
    const DIRECTORY: u32 = 1 << 31;
    const SYMLINK: u32 = 1 << 27;
    const DEVICE: u32 = 1 << 26;
    const PIPE: u32 = 1 << 25;
    const SOCKET: u32 = 1 << 24;
    const SET_UID: u32 = 1 << 23;
    const SET_GID: u32 = 1 << 22;
    const CHARACTER: u32 = 1 << 21;
    const STICKY: u32 = 1 << 20;
    const IRREGULAR: u32 = 1 << 19;
    let kind = match mode & TYPE {
        0o040_000 => DIRECTORY,
        0o120_000 => SYMLINK,
        0o060_000 => DEVICE,
        0o020_000 => DEVICE | CHARACTER,
        0o010_000 => PIPE,
        0o140_000 => SOCKET,
        0o100_000 => 0,
        _ => IRREGULAR,
    };
    let mut go = kind | (mode & 0o777);
    for (bit, flag) in [(0o4000, SET_UID), (0o2000, SET_GID), (0o1000, STICKY)] {
        if mode & bit != 0 {
            go |= flag;
        }
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_file_has_go_s_bit() {
        let cases = [
            (0o100_644, 0o644),
            (0o040_755, 0x8000_0000 | 0o755),
            (0o041_777, 0x8010_0000 | 0o777),
            (0o120_777, 0x0800_0000 | 0o777),
            (0o060_660, 0x0400_0000 | 0o660),
            (0o020_620, 0x0420_0000 | 0o620),
            (0o010_600, 0x0200_0000 | 0o600),
            (0o140_755, 0x0100_0000 | 0o755),
            (0o104_755, 0x0080_0000 | 0o755),
            (0o102_755, 0x0040_0000 | 0o755),
            (0o000_644, 0x0008_0000 | 0o644),
        ];
        for (mode, expected) in cases {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }
}
