//! The 512-byte tar header: ustar, GNU and the v7 format before both.

use super::TarError;

/// The fields of one header.
#[derive(Debug)]
pub(super) struct Header {
    pub path: Vec<u8>,
    pub target: Vec<u8>,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    pub kind: u8,
    pub major: u32,
    pub minor: u32,
}

impl Header {
    /// Checks and splits `block`, whose end is at byte `at` of the stream.
    pub fn parse(block: &[u8; 512], at: u64) -> Result<Self, TarError> {
        let wrong = |what| TarError::Header { at, what };
        let stored = number(&block[148..156]).ok_or(wrong("its checksum is not a number"))?;
        // Some old writers summed signed bytes; every reader takes either.
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (index, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(wrong("its checksum does not match"));
        }
        let ustar = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        let mut path = text(&block[0..100]).to_vec();
        if ustar {
            let prefix = text(&block[345..500]);
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        let small = |range: std::ops::Range<usize>, what| {
            number(&block[range])
                .and_then(|value| u32::try_from(value).ok())
                .ok_or(wrong(what))
        };
        let (mut major, mut minor) = (0, 0);
        if (ustar || gnu) && matches!(block[156], b'3' | b'4') {
            major = small(329..337, "its device number is not one")?;
            minor = small(337..345, "its device number is not one")?;
        }
        let mode = number(&block[100..108]).ok_or(wrong("its mode is not a number"))?;
        Ok(Self {
            path,
            target: text(&block[157..257]).to_vec(),
            mode: (mode & 0o7777) as u16,
            uid: small(108..116, "its owner is not a user number")?,
            gid: small(116..124, "its group is not a group number")?,
            size: number(&block[124..136])
                .and_then(|size| u64::try_from(size).ok())
                .ok_or(wrong("its size is not a number"))?,
            mtime: number(&block[136..148]).ok_or(wrong("its time is not a number"))?,
            kind: block[156],
            major,
            minor,
        })
    }
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// A number field: octal with blanks or NULs around it, or GNU's big-endian base 256. An empty one
/// is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, &byte) in field.iter().enumerate() {
            // The first byte's top bit is the mark, not part of the number.
            let byte = if index == 0 && !negative {
                byte & 0x7f
            } else {
                byte
            };
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|&b| b == 0 || b == b' ')
        .unwrap_or(digits.len());
    let mut value: i64 = 0;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_fields_are_read_in_every_way_they_are_written() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"0000684\0", None),
            (b"-000001\0", None),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:x?}");
        }
    }
}
