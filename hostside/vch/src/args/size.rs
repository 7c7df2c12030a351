//! Sizes in bytes as Docker writes them (`github.com/docker/go-units`, `RAMInBytes`).

use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    /// A number, decimals allowed, then `b`, `k`, `m`, `g`, `t` or `p`, each a power of 1024, in
    /// either case and optionally followed by `b` or `ib`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("invalid size: '{text}' (write it as 64m, 512m or 1.5g)");
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let number: f64 = text[..digits].parse().map_err(|_| refuse())?;
        let suffix = text[digits..].trim_start().to_ascii_lowercase();
        let (unit, rest) = match suffix.chars().next() {
            None => (1u64, ""),
            Some('b') => (1, &suffix[1..]),
            Some(letter) => {
                let power = "kmgtp".find(letter).ok_or_else(refuse)?;
                (1 << (10 * (power + 1)), &suffix[1..])
            }
        };
        if !(rest.is_empty() || unit > 1 && matches!(rest, "b" | "ib")) {
            return Err(refuse());
        }
        let bytes = number * unit as f64;
        // Below 2^63 the conversion is exact enough and cannot overflow.
        if bytes < 9.0e18 {
            Ok(Self(bytes as u64))
        } else {
            Err(refuse())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let cases: &[(&str, Option<u64>)] = &[
            ("32", Some(32)),
            ("32b", Some(32)),
            ("32k", Some(32 << 10)),
            ("32K", Some(32 << 10)),
            ("32kb", Some(32 << 10)),
            ("32KiB", Some(32 << 10)),
            ("512m", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("1 g", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1mm", None),
            ("1bb", None),
            ("9999999p", None),
            ("1.2.3", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Size>().ok().map(|s| s.0), *expected, "{text}");
        }
    }
}
