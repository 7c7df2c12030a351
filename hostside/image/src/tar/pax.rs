//! PAX records: `"<length> <key>=<value>\n"`, of which those that matter to a filesystem are kept.

use super::sparse::{SEGMENTS_MAX, Segment};
use crate::tree::{Time, Xattrs};

/// What PAX records say of the entry they precede.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub target: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Time>,
    pub xattrs: Xattrs,
    /// `GNU.sparse.name`.
    pub sparse_name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `.realsize`: set makes the entry sparse.
    pub sparse_size: Option<u64>,
    /// Formats 0.0 and 0.1.
    pub sparse_map: Vec<Segment>,
    /// Format 1.0: the map is in front of the contents.
    pub sparse_in_contents: bool,
    sparse_offset: Option<u64>,
}

impl Records {
    /// Adds the records in `bytes`.
    pub fn parse(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            // Some writers pad the last record with NULs.
            if bytes[0] == 0 {
                break;
            }
            let space = bytes
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or("a PAX record has no length")?;
            let length = decimal(&bytes[..space]).ok_or("a PAX record's length is not a number")?;
            let length = usize::try_from(length).map_err(|_| "a PAX record is too long")?;
            if length > bytes.len() || length < space + 3 || bytes[length - 1] != b'\n' {
                return Err("a PAX record's length is wrong");
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or("a PAX record has no `=`")?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || decimal(value).ok_or("a PAX record's value is not a number");
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.target = text(value)?,
            b"size" => {
                self.size = if value.is_empty() {
                    None
                } else {
                    Some(number()?)
                }
            }
            b"uid" => self.uid = id(value)?,
            b"gid" => self.gid = id(value)?,
            b"mtime" => {
                self.mtime = if value.is_empty() {
                    None
                } else {
                    Some(time(value)?)
                }
            }
            b"GNU.sparse.major" => self.sparse_in_contents = number()? == 1,
            b"GNU.sparse.name" => self.sparse_name = text(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            b"GNU.sparse.offset" => self.sparse_offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self
                    .sparse_offset
                    .take()
                    .ok_or("a sparse map has a length without an offset")?;
                self.segment(offset, number()?)?;
            }
            b"GNU.sparse.map" => {
                let mut numbers = value.split(|&b| b == b',');
                self.sparse_map.clear();
                while let Some(offset) = numbers.next() {
                    if offset.is_empty() && self.sparse_map.is_empty() {
                        break;
                    }
                    let length = numbers
                        .next()
                        .ok_or("a sparse map has an offset without a length")?;
                    let wrong = "a sparse map's value is not a number";
                    self.segment(decimal(offset).ok_or(wrong)?, decimal(length).ok_or(wrong)?)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name =
                        unescape(name).ok_or("an extended attribute's name is not URL-encoded")?;
                    let value =
                        unbase64(value).ok_or("an extended attribute's value is not base64")?;
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn segment(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        if self.sparse_map.len() >= SEGMENTS_MAX {
            return Err("a sparse map is too long");
        }
        self.sparse_map.push(Segment { offset, length });
        Ok(())
    }

    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err("an extended attribute's name is empty, too long or contains NUL");
        }
        self.xattrs.insert(name.into(), value.into());
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a PAX record's path contains NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn id(value: &[u8]) -> Result<Option<u32>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    let id = decimal(value).and_then(|id| u32::try_from(id).ok());
    id.map(Some)
        .ok_or("a PAX record's owner is not a user or group number")
}

/// A decimal number of at most 20 digits.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// `[-]seconds[.fraction]`; digits below nanoseconds are cut off.
fn time(value: &[u8]) -> Result<Time, &'static str> {
    let wrong = "a PAX record's time is not a number";
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&b| b == b'.');
    let seconds = decimal(parts.next().unwrap_or_default()).ok_or(wrong)?;
    let seconds = i64::try_from(seconds).map_err(|_| wrong)?;
    let mut nanoseconds = 0u32;
    let fraction = parts.next().unwrap_or_default();
    for index in 0..9 {
        let digit = fraction.get(index).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(wrong);
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Time {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(*rest.next()?).to_digit(16);
            out.push((digit()? << 4 | digit()?) as u8);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' | b'\n' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &[u8]) -> Result<Records, &'static str> {
        let mut records = Records::default();
        records.parse(text).map(|()| records)
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_before_1970() {
        for (text, seconds, nanoseconds) in [
            ("1", 1, 0),
            ("1.5", 1, 500_000_000),
            ("1700000000.1234567891", 1_700_000_000, 123_456_789),
            ("-1", -1, 0),
            ("-0.25", -1, 750_000_000),
        ] {
            assert_eq!(
                time(text.as_bytes()),
                Ok(Time {
                    seconds,
                    nanoseconds
                }),
                "{text}"
            );
        }
        for text in ["", "x", "1.x", "--1", "99999999999999999999"] {
            assert!(time(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn extended_attributes_come_in_two_spellings() {
        let found =
            records(b"25 SCHILY.xattr.user.a=b\n37 LIBARCHIVE.xattr.user.%61%3d=AAEC\n").unwrap();
        let found: Vec<_> = found
            .xattrs
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        assert_eq!(
            found,
            [(&b"user.a"[..], &b"b"[..]), (b"user.a=", &[0, 1, 2])]
        );
    }

    #[test]
    fn damaged_records_are_refused() {
        for text in [
            &b"x path=a\n"[..],
            b"99 path=a\n",
            b"3 =\n",
            b"9 path=a ",
            b"8 patha\n",
            b"12 path=a\0b\n",
            b"12 uid=-10\n\n",
        ] {
            assert!(records(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
