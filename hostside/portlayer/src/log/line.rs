//! A record as a line of JSON: `{"log":"...","stream":"stdout","time":"..."}`, which is what Docker's
//! `json-file` driver writes and what log shippers read.
//!
//! **Bytes that are no UTF-8** cannot be in JSON. Docker puts U+FFFD in their place, and they are lost. Here
//! each such byte becomes one character of a private range, U+F700 plus the byte, and the line says so by a
//! fourth field, `"lone_bytes":true`. In such a line the range means bytes and nothing else: the text's own
//! characters of that range are written byte by byte too. In all other lines it means itself. So every
//! line is valid JSON, readers that know only Docker's three fields read all text unharmed, and what was
//! written comes back exactly.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{LogRecord, time};
use crate::stream::Output;

/// Longest record, in bytes as they came (Docker's buffer for one message).
pub(super) const LONGEST_RECORD: usize = 16 * 1024;

/// Longest line, in bytes: each byte of a record takes six at most (`\u0000`), the rest is well below.
pub(super) const LONGEST_LINE: usize = LONGEST_RECORD * 6 + 256;

const LONE: u32 = 0xf700;

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lone_bytes: bool,
}

/// Appends the record's line, with its newline.
pub(super) fn encode(into: &mut Vec<u8>, output: Output, at: SystemTime, data: &[u8]) {
    let (log, lone_bytes) = match std::str::from_utf8(data) {
        Ok(text) => (Cow::Borrowed(text), false),
        Err(_) => (Cow::Owned(with_lone_bytes(data)), true),
    };
    let line = Line {
        log,
        stream: Cow::Borrowed(match output {
            Output::Stdout => "stdout",
            Output::Stderr => "stderr",
        }),
        time: Cow::Owned(time::format(at)),
        lone_bytes,
    };
    // Writing text into memory: neither can fail.
    let written = serde_json::to_writer(&mut *into, &line);
    debug_assert!(written.is_ok());
    into.push(b'\n');
}

/// The record of a line without its newline. `None` if it is none.
pub(super) fn decode(line: &[u8]) -> Option<LogRecord> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let output = match &*line.stream {
        "stdout" => Output::Stdout,
        "stderr" => Output::Stderr,
        _ => return None,
    };
    let data = if line.lone_bytes {
        without_lone_bytes(&line.log)
    } else {
        line.log.into_owned().into_bytes()
    };
    Some(LogRecord {
        output,
        time: time::parse(&line.time)?,
        data: data.into(),
    })
}

fn with_lone_bytes(data: &[u8]) -> String {
    let mut text = String::with_capacity(data.len() * 3);
    let lone = |text: &mut String, byte: u8| {
        // U+F780 to U+F7FF are characters.
        text.extend(char::from_u32(LONE + u32::from(byte)));
    };
    for chunk in data.utf8_chunks() {
        for character in chunk.valid().chars() {
            if as_lone_byte(character).is_some() {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    lone(&mut text, byte);
                }
            } else {
                let written = text.write_char(character);
                debug_assert!(written.is_ok());
            }
        }
        for byte in chunk.invalid() {
            lone(&mut text, *byte);
        }
    }
    text
}

fn without_lone_bytes(text: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(text.len());
    for character in text.chars() {
        match as_lone_byte(character) {
            Some(byte) => data.push(byte),
            None => data.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    data
}

/// Only bytes from 0x80 on can be no UTF-8.
fn as_lone_byte(character: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(character).checked_sub(LONE)?).ok()?;
    (byte >= 0x80).then_some(byte)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn line(data: &[u8]) -> String {
        let mut line = Vec::new();
        encode(&mut line, Output::Stderr, UNIX_EPOCH, data);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn text_is_written_as_docker_writes_it() {
        assert_eq!(
            line(b"a \"quote\"\t\\ \x1b[1m\n"),
            concat!(
                r#"{"log":"a \"quote\"\t\\ \u001b[1m\n","stream":"stderr","#,
                r#""time":"1970-01-01T00:00:00.000000000Z"}"#,
                "\n"
            )
        );
        assert!(line("grün 🦀 \u{f7ff}".as_bytes()).contains("grün 🦀 \u{f7ff}\""));
    }

    #[test]
    fn bytes_that_are_no_text_are_marked_and_text_beside_them_can_be_read() {
        let line = line(b"ok \xff\n");
        assert!(line.contains("\"log\":\"ok \u{f7ff}\\n\""), "{line}");
        assert!(line.contains("\"lone_bytes\":true"), "{line}");
        serde_json::from_str::<serde_json::Value>(&line).unwrap();
    }

    #[test]
    fn what_docker_wrote_is_read() {
        let record = decode(
            br#"{"log":"hi \u003cb\u003e\n","stream":"stdout","attrs":{"a":"b"},"time":"2024-02-29T12:34:56.12Z"}"#,
        )
        .unwrap();
        assert_eq!(&record.data[..], b"hi <b>\n");
        assert_eq!(record.output, Output::Stdout);
        assert_eq!(
            record.time,
            UNIX_EPOCH + Duration::new(1_709_210_096, 120_000_000)
        );
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for line in [
            &b""[..],
            b"{}",
            b"\xff",
            br#"{"log":"a","stream":"stdin","time":"2024-02-29T12:34:56Z"}"#,
            br#"{"log":"a","stream":"stdout","time":"yesterday"}"#,
            br#"{"log":"a","stream":"stdout","time":"2024-02-29T12:34:56Z"} x"#,
        ] {
            assert!(decode(line).is_none(), "{line:?} was taken");
        }
    }

    /// Bytes in which text, its private range, and what is no text all are likely.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<Vec<u8>>(),
            ".*".prop_map(String::into_bytes),
            (0xf700u32..0xf800).prop_map(|c| char::from_u32(c).unwrap().to_string().into_bytes()),
            Just(vec![0xef, 0x9f]),
        ];
        prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn all_bytes_come_back_in_one_line(data in bytes(), nanoseconds: u32) {
            let at = UNIX_EPOCH + Duration::from_nanos(u64::from(nanoseconds));
            let mut line = Vec::new();
            encode(&mut line, Output::Stdout, at, &data);
            prop_assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1));
            prop_assert!(line.len() <= data.len() * 6 + 256);
            let record = decode(&line[..line.len() - 1]).unwrap();
            prop_assert_eq!(&record.data[..], &data[..]);
            prop_assert_eq!(record.time, at);
        }

        #[test]
        fn no_line_makes_the_reader_panic(line: Vec<u8>) {
            let _ = decode(&line);
        }
    }
}
