//! Moments and durations as the Engine API writes them: RFC 3339 with nanoseconds, `seconds.nanoseconds`
//! since 1970, and Go's durations (`1h30m`).
//!
//! Sources: Engine API 1.47, `api/types/time` of the Engine; Go's `time.ParseDuration`. Zones that are not
//! written are UTC: which zone this host is in says nothing about a client's.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How Go writes the zero of its `time.Time`: "it has not happened".
pub const NEVER: &str = "0001-01-01T00:00:00Z";

const DAY: i64 = 86_400;

/// A text that is neither a moment nor a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to parse value as time or duration: {0:?}")]
pub struct InvalidTime(pub String);

/// Seconds and nanoseconds since 1970, negative before it.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_nanos(),
        ),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => (-seconds, 0),
                nanos => (-seconds - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

/// Whole seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> i64 {
    since_epoch(time).0
}

/// Nanoseconds since 1970.
pub fn unix_nanos(time: SystemTime) -> i64 {
    let (seconds, nanos) = since_epoch(time);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::from(nanos))
}

/// Year, month and day of a day since 1970-01-01 in the proleptic Gregorian calendar.
///
/// Years are counted from March, so that the leap day is a year's last and a month's first day follows
/// from `(153 * month + 2) / 5`.
fn date(days: i64) -> (i64, u32, u32) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let era = days.div_euclid(ERA);
    let day_of_era = days.rem_euclid(ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year_of_era + next, month as u32, day as u32)
}

/// The day since 1970-01-01 of a date; the inverse of [`date`].
fn day_number(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (i64::from(month) + 9) % 12;
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn seconds_text(seconds: i64) -> String {
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let time = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// RFC 3339 as Go's `time.RFC3339Nano` has it: no trailing zeroes in the fraction.
pub fn rfc3339(time: SystemTime) -> String {
    let (seconds, nanos) = since_epoch(time);
    let mut text = seconds_text(seconds);
    if nanos != 0 {
        let fraction = format!("{nanos:09}");
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// RFC 3339 with all nine digits, so that lines of a log align.
pub fn rfc3339_fixed(time: SystemTime) -> String {
    let (seconds, nanos) = since_epoch(time);
    let mut text = seconds_text(seconds);
    // Writing to a String does not fail.
    let _ = write!(text, ".{nanos:09}Z");
    text
}

/// A duration in Go's syntax: decimal numbers with units, `-` in front for backwards.
///
/// Returns nanoseconds; `None` if it is no duration.
pub fn go_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: f64 = 0.0;
    while !rest.is_empty() {
        let number = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += digits.parse::<f64>().ok()? * scale;
        rest = after;
    }
    if total > i64::MAX as f64 {
        return None;
    }
    let total = total as i64;
    Some(if negative { -total } else { total })
}

/// A moment: RFC 3339 or the start of it, seconds since 1970 with a fraction, or a Go duration before `now`.
///
/// # Errors
/// [`InvalidTime`].
pub fn parse(text: &str, now: SystemTime) -> Result<SystemTime, InvalidTime> {
    let found = unix(text).or_else(|| calendar(text)).or_else(|| {
        let nanos = go_duration(text)?;
        shift(now, nanos.checked_neg()?)
    });
    found.ok_or_else(|| InvalidTime(text.chars().take(80).collect()))
}

fn shift(time: SystemTime, nanos: i64) -> Option<SystemTime> {
    let by = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 {
        time.checked_sub(by)
    } else {
        time.checked_add(by)
    }
}

fn at(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)?
    } else {
        UNIX_EPOCH.checked_add(whole)?
    };
    second.checked_add(Duration::from_nanos(nanos.into()))
}

/// A decimal fraction as nanoseconds; digits beyond the ninth are dropped.
fn fraction(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine: String = digits
        .chars()
        .chain(std::iter::repeat('0'))
        .take(9)
        .collect();
    nine.parse().ok()
}

fn unix(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = match text.split_once('.') {
        Some((seconds, digits)) => (seconds, fraction(digits)?),
        None => (text, 0),
    };
    at(seconds.parse().ok()?, nanos)
}

/// Reads a number of exactly `digits` digits and the separator in front of it.
fn field(rest: &mut &str, separator: &str, digits: usize) -> Option<u32> {
    let after = rest.strip_prefix(separator)?;
    let number = after.get(..digits)?;
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    *rest = &after[digits..];
    number.parse().ok()
}

fn calendar(text: &str) -> Option<SystemTime> {
    let mut rest = text;
    let year = field(&mut rest, "", 4)?;
    let month = field(&mut rest, "-", 2)?;
    let day = field(&mut rest, "-", 2)?;
    let (mut hour, mut minute, mut second, mut nanos) = (0, 0, 0, 0);
    if rest.starts_with('T') {
        hour = field(&mut rest, "T", 2)?;
        minute = field(&mut rest, ":", 2)?;
        if rest.starts_with(':') {
            second = field(&mut rest, ":", 2)?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(after.len());
                nanos = fraction(&after[..end])?;
                rest = &after[end..];
            }
        }
    }
    let offset = match rest.as_bytes().first() {
        None => 0,
        Some(b'Z') if rest.len() == 1 => 0,
        Some(sign @ (b'+' | b'-')) => {
            let mut zone = &rest[1..];
            let hours = field(&mut zone, "", 2)?;
            let minutes = field(&mut zone, ":", 2)?;
            if !zone.is_empty() || hours > 23 || minutes > 59 {
                return None;
            }
            let east = i64::from(hours * 3600 + minutes * 60);
            if *sign == b'+' { east } else { -east }
        }
        Some(_) => return None,
    };
    let sound = (1..=12).contains(&month)
        && day >= 1
        && date(day_number(year.into(), month, day)) == (i64::from(year), month, day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !sound {
        return None;
    }
    let time = i64::from(hour * 3600 + minute * 60 + second);
    at(
        day_number(year.into(), month, day) * DAY + time - offset,
        nanos,
    )
}

/// How long ago something was, as `docker ps` writes it (`units.HumanDuration` of docker/go-units).
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    // Rounded, as there.
    let hours = (duration.as_secs_f64() / 3600.0).round() as u64;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment(seconds: i64, nanos: u32) -> SystemTime {
        at(seconds, nanos).unwrap()
    }

    #[test]
    fn a_moment_is_written_as_go_writes_it() {
        let cases = [
            (
                0,
                0,
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00.000000000Z",
            ),
            (
                951_782_400,
                120_000_000,
                "2000-02-29T00:00:00.12Z",
                "2000-02-29T00:00:00.120000000Z",
            ),
            (
                1_700_000_000,
                1,
                "2023-11-14T22:13:20.000000001Z",
                "2023-11-14T22:13:20.000000001Z",
            ),
            (
                -1,
                0,
                "1969-12-31T23:59:59Z",
                "1969-12-31T23:59:59.000000000Z",
            ),
        ];
        for (seconds, nanos, short, fixed) in cases {
            assert_eq!(rfc3339(moment(seconds, nanos)), short);
            assert_eq!(rfc3339_fixed(moment(seconds, nanos)), fixed);
        }
    }

    #[test]
    fn a_moment_is_read_in_every_form_clients_send() {
        let now = moment(1_700_000_000, 0);
        let cases = [
            ("1700000000", Some((1_700_000_000, 0))),
            ("1700000000.5", Some((1_700_000_000, 500_000_000))),
            ("1700000000.000000007", Some((1_700_000_000, 7))),
            ("0", Some((0, 0))),
            ("2023-11-14T22:13:20Z", Some((1_700_000_000, 0))),
            ("2023-11-14T23:13:20+01:00", Some((1_700_000_000, 0))),
            (
                "2023-11-14T21:43:20.25-00:30",
                Some((1_700_000_000, 250_000_000)),
            ),
            ("2023-11-14T22:13:20", Some((1_700_000_000, 0))),
            ("2023-11-14T22:13", Some((1_699_999_980, 0))),
            ("2023-11-14", Some((1_699_920_000, 0))),
            ("10m", Some((1_699_999_400, 0))),
            ("1h30m", Some((1_699_994_600, 0))),
            ("-1s", Some((1_700_000_001, 0))),
            ("2023-02-29", None),
            ("2023-13-01", None),
            ("2023-11-14T24:00", None),
            ("2023-11-14X", None),
            ("yesterday", None),
            ("", None),
            ("1.x", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(seconds, nanos)| moment(seconds, nanos));
            assert_eq!(parse(text, now).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_go_duration_is_numbers_with_units() {
        let cases = [
            ("0", Some(0)),
            ("1s", Some(1_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("2m3ms", Some(120_003_000_000)),
            ("-1h", Some(-3_600_000_000_000)),
            ("100ns", Some(100)),
            ("1", None),
            ("s", None),
            ("1d", None),
            ("-", None),
            ("", None),
            ("1..5s", None),
            ("99999999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(go_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_age_is_said_as_docker_says_it() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 20, "2 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in -1_000_000_000i64..10_000_000_000, nanos in 0u32..1_000_000_000) {
            let time = moment(seconds, nanos);
            prop_assert_eq!(parse(&rfc3339(time), time).unwrap(), time);
            prop_assert_eq!(parse(&rfc3339_fixed(time), time).unwrap(), time);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = parse(&text, UNIX_EPOCH);
        }
    }
}
